//! The devices of a run, by the numbers that a plan uses. The plan says which work runs where.

use std::sync::Arc;

use engines::backend::Backend;
use engines::memory::Ledger;

use crate::placement::plan::PlanError;

/// A backend for each device.
#[derive(Clone)]
pub struct Devices {
    backends: Backends,
    host: Arc<Ledger>,
}

#[derive(Clone)]
enum Backends {
    /// One backend that stands for every device.
    One(Arc<dyn Backend>),
    /// Device `i` is backend `i`.
    Each(Vec<Arc<dyn Backend>>),
}

impl Devices {
    /// Makes devices of one backend that stands for every device. Stages are threads over the same
    /// memory, and nothing is copied between them.
    pub fn one(backend: Arc<dyn Backend>) -> Self {
        Self {
            backends: Backends::One(backend),
            host: Ledger::new("host", u64::MAX),
        }
    }

    /// Makes devices of which number `i` is backend `i`.
    pub fn each(backends: Vec<Arc<dyn Backend>>) -> Self {
        Self {
            backends: Backends::Each(backends),
            host: Ledger::new("host", u64::MAX),
        }
    }

    /// Returns the same devices, with `host` counting the bytes that stages keep in host memory.
    #[must_use]
    pub fn with_host(self, host: Arc<Ledger>) -> Self {
        Self { host, ..self }
    }

    /// Returns the same devices, each backend as `wrap` gives it back. One that stands for every
    /// device stays one.
    #[must_use]
    pub(crate) fn map(self, wrap: impl Fn(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Self {
        let backends = match self.backends {
            Backends::One(backend) => Backends::One(wrap(backend)),
            Backends::Each(all) => Backends::Each(all.into_iter().map(wrap).collect()),
        };
        Self { backends, ..self }
    }

    /// Lists the ledgers of all devices, each once, and whether its device has memory besides the
    /// process's own.
    pub(crate) fn ledgers(&self) -> Vec<(Arc<Ledger>, bool)> {
        let backends = match &self.backends {
            Backends::One(backend) => std::slice::from_ref(backend),
            Backends::Each(all) => all,
        };
        let mut found: Vec<(Arc<Ledger>, bool)> = Vec::new();
        for memory in backends.iter().map(|b| b.memory()) {
            if !found.iter().any(|(l, _)| Arc::ptr_eq(l, memory.ledger())) {
                found.push((Arc::clone(memory.ledger()), memory.is_separate()));
            }
        }
        found
    }

    /// Returns the ledger of host memory.
    pub fn host(&self) -> &Arc<Ledger> {
        &self.host
    }

    /// Returns the backend of device 0.
    ///
    /// # Panics
    /// If there are no devices: such a list is broken in code.
    pub fn first(&self) -> &Arc<dyn Backend> {
        match &self.backends {
            Backends::One(backend) => backend,
            Backends::Each(all) => all.first().expect("a set of devices has one"),
        }
    }

    /// Returns a device's backend.
    ///
    /// # Errors
    /// The device does not exist.
    pub fn get(&self, device: usize) -> Result<&Arc<dyn Backend>, PlanError> {
        match &self.backends {
            Backends::One(backend) => Ok(backend),
            Backends::Each(all) => all.get(device).ok_or(PlanError::Device {
                wanted: device,
                have: all.len(),
            }),
        }
    }

    /// Returns the first device that shares this device's memory. Devices with one home read each
    /// other's tensors.
    pub fn home(&self, device: usize) -> usize {
        let Backends::Each(all) = &self.backends else {
            return 0;
        };
        let same = |a: &Arc<dyn Backend>, b: &Arc<dyn Backend>| {
            Arc::ptr_eq(a.memory().ledger(), b.memory().ledger())
        };
        let Some(own) = all.get(device) else {
            return device;
        };
        let first = all.iter().position(|b| same(b, own));
        first.unwrap_or(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, small_geometry};
    use engines::memory::HostMemory;

    #[test]
    fn devices_of_one_memory_have_one_home_and_a_missing_one_is_named() {
        let fake = Fake::new(config(1), small_geometry(12));
        let other: Arc<dyn Backend> = Arc::new(fake.on(HostMemory::new("cpu:1", 10)));
        let fake: Arc<dyn Backend> = Arc::new(fake);
        let devices = Devices::each([&fake, &other, &fake].map(Arc::clone).to_vec());
        assert_eq!([0, 1, 2].map(|d| devices.home(d)), [0, 1, 0]);
        let missing = devices.get(3).err().unwrap();
        assert_eq!(missing, PlanError::Device { wanted: 3, have: 3 });
        assert_eq!(missing.kind(), engines::error_kind::ErrorKind::Resources);
        let ledgers = devices.ledgers();
        let ledgers: Vec<_> = ledgers.iter().map(|(l, _)| l.device()).collect();
        assert_eq!(ledgers.len(), 2, "{ledgers:?}");
        let one = Devices::one(fake);
        assert_eq!((one.home(7), one.get(7).is_ok()), (0, true));
    }
}
