//! A placement as flags describe it, before the sizes of the model are known.

use crate::numbers::memory_size::MemorySize;
use crate::placement::plan::{Lanes, Plan, PlanError, Residency, Stages};

/// The devices of the work, as the user wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Layers and steps of each stage.
    pub stages: Stages,
    /// Items of a wave that share a call.
    pub lanes: Lanes,
    /// Which weights and rings of every stage stay on its device.
    pub residency: Residency,
    /// Device of the VAE decoder; that of the first stage if `None`.
    pub vae_device: Option<usize>,
    /// Budget of each virtual device.
    pub device_memory: Option<MemorySize>,
    /// Blocks that attention sees back, this one among them; those of a clip if `None`.
    pub ring_blocks: Option<usize>,
}

impl Told {
    /// Returns the plan for a model of `layers` layers and a run of `steps` steps.
    ///
    /// # Errors
    /// The stages do not cover the layers and steps, or there are too few slots.
    pub fn plan(&self, layers: usize, steps: usize) -> Result<Plan, PlanError> {
        let plan = Plan::new(&self.stages, self.lanes, layers, steps)?;
        let plan = plan.with_residency(self.residency)?;
        let vae = self.vae_device.unwrap_or(plan.vae);
        Ok(plan.with_vae(vae).with_ring(self.ring_blocks))
    }

    /// Returns the budget of the virtual devices that the placement needs, in bytes. `None` means
    /// that the process's own memory will do: it has no budget, and nothing streams to it.
    pub fn virtual_budget(&self) -> Option<u64> {
        let streams = self.residency != Residency::default();
        let unlimited = streams.then_some(u64::MAX);
        self.device_memory.map(|m| m.0).or(unlimited)
    }
}
