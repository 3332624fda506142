//! A placement: which device gets which layers and steps, where the VAE and the encoders go, and
//! which weights and rings stay on each device between calls.

use std::ops::Range;

use engines::profile::{Kind, Profile};

use crate::placement::plan::{Lanes, Plan, PlanError, Residency, Rings, StageSpec, Stages};

/// One stage of a placement.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlacedStage {
    /// Number of the device.
    pub device: usize,
    /// Layers of the model.
    pub layers: Range<usize>,
    /// Denoising steps.
    pub steps: Range<usize>,
    /// Weights and rings that stay.
    pub residency: StageResidency,
}

/// What of a stage stays on its device between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StageResidency {
    /// The first so many layers of the stage keep their weights there.
    pub resident_layers: usize,
    /// Rings lie in pinned host memory and stream.
    pub rings_on_host: bool,
    /// Layers that are on their way at once, where any streams.
    pub slots: usize,
}

impl StageResidency {
    /// Whether any of `layers` layers streams.
    pub fn streams(&self, layers: usize) -> bool {
        self.rings_on_host || self.resident_layers < layers
    }
}

/// Where the encoders of text, speech and picture run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Encoders {
    /// Number of the device.
    pub device: usize,
    /// Loaded, run and freed one by one before the transformer is loaded.
    pub freed_before_dit: bool,
}

/// All of the work on the devices of one machine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Placement {
    /// By steps, then by layers.
    pub stages: Vec<PlacedStage>,
    /// Most lanes of a call.
    pub lanes: usize,
    /// Device of the VAE's decoder.
    pub vae: usize,
    /// Device of the encoders.
    pub encoders: Encoders,
    /// Blocks of a KV ring.
    pub ring_blocks: usize,
}

impl Placement {
    /// The executor's plan of the same stages.
    ///
    /// # Errors
    /// The stages do not cover the model; [`super::place::place`] makes none of that kind.
    pub fn plan(&self, layers: usize, steps: usize) -> Result<Plan, PlanError> {
        let stage = |s: &PlacedStage| StageSpec {
            residency: Residency {
                resident_layers: s.residency.resident_layers,
                rings: if s.residency.rings_on_host {
                    Rings::OnHost
                } else {
                    Rings::OnDevice
                },
                slots: s.residency.slots,
            },
            ..StageSpec::new(s.device, s.layers.clone(), s.steps.clone())
        };
        let stages = Stages::List(self.stages.iter().map(stage).collect());
        let plan = Plan::new(&stages, Lanes::AtMost(self.lanes), layers, steps)?;
        Ok(Plan {
            encoders: self.encoders.device,
            encoders_stay: !self.encoders.freed_before_dit,
            ring_blocks: Some(self.ring_blocks),
            vae: self.vae,
            ..plan
        })
    }

    /// Devices in use.
    pub fn devices(&self) -> usize {
        let stages = self.stages.iter().map(|s| s.device + 1).max().unwrap_or(0);
        stages.max(self.vae + 1).max(self.encoders.device + 1)
    }
}

/// Returns the name of a device of a profile, such as `cuda:1` or `cpu:0`.
pub(crate) fn device_name(profile: &Profile, device: usize) -> String {
    match profile.each_device().nth(device).map(|d| d.kind) {
        Some(Kind::Gpu) => format!("cuda:{device}"),
        _ => format!("cpu:{device}"),
    }
}
