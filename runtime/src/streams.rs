//! The weights of all layers that stream, on whatever stages, made ready once before the stages load: in pages that are locked, so that they
//! cross at the link's rate. When they cross is the offload's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use engines::components::dit;
use engines::memory::{Ledger, MemoryError};
use engines::weights::{HostWeights, Streaming};

use crate::devices::Devices;
use crate::error::Error;
use crate::plan::Plan;
use crate::stage::Options;

/// Weights by layer, locked for as long as this lives.
pub struct Streams {
    layers: Vec<usize>,
    ready: Option<Streaming>,
}

impl Streams {
    /// Finds and locks what streams in `plan`. A layer that streams on several devices is locked once: locked pages serve them all.
    ///
    /// # Errors
    /// A device that is not there, a component that is not there. Memory that cannot be locked is no error, see [`Self::refused`].
    pub fn new(plan: &Plan, devices: &Devices<'_>, options: Options<'_>) -> Result<Self, Error> {
        let mut found: BTreeMap<usize, HostWeights> = BTreeMap::new();
        let mut device = None;
        for spec in plan.chains.iter().flat_map(|c| &c.stages) {
            let backend = devices.get(spec.device)?;
            if !backend.memory().apart() {
                continue;
            }
            for layer in spec.layers.clone().skip(spec.residency.resident_layers) {
                let name = dit::layer_name(layer);
                if !options(&name).is_particular() && !found.contains_key(&layer) {
                    found.insert(layer, backend.weights(&name)?);
                    device.get_or_insert(backend);
                }
            }
        }
        let (layers, weights): (Vec<usize>, Vec<HostWeights>) = found.into_iter().unzip();
        let host: &Arc<Ledger> = devices.host();
        let ready = device.map(|backend| Streaming::new(weights, &**backend.memory(), host));
        Ok(Self { layers, ready })
    }

    /// A layer's weights, if it streams.
    pub fn of(&self, layer: usize) -> Option<&HostWeights> {
        let at = self.layers.binary_search(&layer).ok()?;
        self.ready.as_ref().map(|s| &s.weights[at])
    }

    /// Why they stream from memory that is not locked, more slowly than the link could.
    pub fn refused(&self) -> Option<&MemoryError> {
        self.ready.as_ref()?.refused.as_ref()
    }
}
