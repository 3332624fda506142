//! Locks the pages of all weights that stream, once, before the stages load. Locked pages cross the
//! link at its full rate. The offload decides when they cross.

use std::collections::BTreeMap;
use std::sync::Arc;

use engines::components::dit;
use engines::memory::{Ledger, MemoryError};
use engines::weights::{HostWeights, Streaming};

use crate::chain::error::ChainError;
use crate::placement::devices::Devices;
use crate::placement::plan::Plan;
use engines::backend::Loading;

/// Weights by layer, locked for as long as this lives.
pub(crate) struct PageLocks {
    layers: Vec<usize>,
    ready: Option<Streaming>,
}

impl PageLocks {
    /// Finds and locks the weights that stream in `plan`. A layer that streams on several devices
    /// is locked once, because locked pages serve all of them.
    ///
    /// # Errors
    /// A device or a component does not exist. Memory that cannot be locked is no error, see
    /// [`Self::refused`].
    pub(crate) fn new(
        plan: &Plan,
        devices: &Devices,
        loading: &Loading,
    ) -> Result<Self, ChainError> {
        let mut found: BTreeMap<usize, HostWeights> = BTreeMap::new();
        let mut device = None;
        for spec in plan.chains.iter().flat_map(|c| &c.stages) {
            let backend = devices.get(spec.device)?;
            if !backend.memory().is_separate() {
                continue;
            }
            for layer in spec.layers.clone().skip(spec.residency.resident_layers) {
                let name = dit::layer_name(layer);
                if !loading(&name).is_particular() && !found.contains_key(&layer) {
                    found.insert(layer, backend.weights(&name)?);
                    device.get_or_insert(Arc::clone(backend));
                }
            }
        }
        let (layers, weights): (Vec<usize>, Vec<HostWeights>) = found.into_iter().unzip();
        let host: &Arc<Ledger> = devices.host();
        let ready = device.map(|backend| Streaming::new(weights, &**backend.memory(), host));
        Ok(Self { layers, ready })
    }

    /// Returns a layer's weights if it streams.
    pub(crate) fn of(&self, layer: usize) -> Option<&HostWeights> {
        let at = self.layers.binary_search(&layer).ok()?;
        self.ready.as_ref().map(|s| &s.weights[at])
    }

    /// Returns the reason why the weights are not locked, and so stream more slowly than the link
    /// could.
    pub(crate) fn refused(&self) -> Option<&MemoryError> {
        self.ready.as_ref()?.refused.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use engines::backend::{Backend, LoadOptions};
    use engines::memory::HostMemory;

    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, small_geometry};
    use crate::placement::plan::{Lanes, Residency};
    use engines::backend::plain;

    const LAYERS: usize = 4;

    fn plan(stages: &str, resident_layers: usize) -> Plan {
        let plan = Plan::new(&stages.parse().unwrap(), Lanes::Auto, LAYERS, 2).unwrap();
        let residency = Residency {
            resident_layers,
            ..Residency::default()
        };
        plan.with_residency(residency).unwrap()
    }

    #[test]
    fn layers_that_stream_anywhere_are_made_ready_and_no_others() {
        let fake = Fake::new(config(LAYERS), small_geometry(12));
        let device = |i| -> Arc<dyn Backend> {
            Arc::new(fake.on(HostMemory::new(format!("cpu:{i}"), u64::MAX)))
        };
        let devices = Devices::each([0, 1].map(device).to_vec());
        let alone: Loading = Arc::new(|name| LoadOptions {
            alone: name == "dit_layer.03",
            ..LoadOptions::default()
        });
        let plain = plain();
        let cases: [(&str, usize, &Loading, &[usize]); 5] = [
            ("1x2", 1, &plain, &[1, 2, 3]),
            ("2x1", 1, &plain, &[1, 3]),
            ("2x1", 0, &alone, &[0, 1, 2]),
            ("1", 4, &plain, &[]),
            ("1", usize::MAX, &plain, &[]),
        ];
        for (stages, resident, loading, want) in cases {
            let made = PageLocks::new(&plan(stages, resident), &devices, loading).unwrap();
            let ready: Vec<usize> = (0..LAYERS).filter(|l| made.of(*l).is_some()).collect();
            assert_eq!(ready, want, "{stages} {resident}");
            assert!(made.refused().is_none());
        }
        let own = PageLocks::new(&plan("1", 0), &Devices::one(Arc::new(fake)), &plain).unwrap();
        assert!(own.of(0).is_none(), "nothing streams to the process's own");
        assert_eq!(devices.host().counts().peak, 0);
    }
}
