//! The devices of a run, by the numbers that a plan knows them by, and how tensors come to them and back. What is placed where is the
//! plan's business.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::contract::Port;
use engines::memory::{Class, Ledger, Memory, MemoryError};
use engines::tensor::{Tensor, View};

use crate::placement::plan::PlanError;

/// An amount of memory, as `--device-memory` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

/// What is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device-memory wants a size such as 24GB, 900MB or 16GiB, got `{got}`")]
pub struct MemorySizeError {
    pub got: String,
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let plain = text.trim();
        let at = plain.find(|c: char| c.is_ascii_alphabetic());
        let (number, unit) = plain.split_at(at.unwrap_or(plain.len()));
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => f64::from(1 << 10),
            "mib" => f64::from(1 << 20),
            "gib" => f64::from(1 << 30),
            _ => f64::NAN,
        };
        let bytes = number.trim().parse().unwrap_or(f64::NAN) * unit;
        if bytes >= 1.0 && bytes < u64::MAX as f64 {
            Ok(Self(bytes as u64))
        } else {
            Err(MemorySizeError {
                got: text.to_owned(),
            })
        }
    }
}

/// A backend for each device.
#[derive(Clone)]
pub struct Devices<'a> {
    backends: Backends<'a>,
    host: Arc<Ledger>,
}

#[derive(Clone)]
enum Backends<'a> {
    /// Every device is this one.
    One(&'a dyn Backend),
    Each(Vec<&'a dyn Backend>),
}

impl<'a> Devices<'a> {
    /// One backend that stands for every device: stages are threads over the same memory, and nothing is copied between them.
    pub fn one(backend: &'a dyn Backend) -> Self {
        Self {
            backends: Backends::One(backend),
            host: Ledger::new("host", u64::MAX),
        }
    }

    /// Device `i` is backend `i`.
    pub fn each(backends: Vec<&'a dyn Backend>) -> Self {
        Self {
            backends: Backends::Each(backends),
            host: Ledger::new("host", u64::MAX),
        }
    }

    /// The same devices, with `host` counting what stages keep in host memory.
    #[must_use]
    pub fn with_host(self, host: Arc<Ledger>) -> Self {
        Self { host, ..self }
    }

    /// What counts host memory.
    pub fn host(&self) -> &Arc<Ledger> {
        &self.host
    }

    /// The backend of device 0. Panics without devices: that is a set broken in code.
    pub fn first(&self) -> &'a dyn Backend {
        match &self.backends {
            Backends::One(backend) => *backend,
            Backends::Each(all) => *all.first().expect("a set of devices has one"),
        }
    }

    /// A device's backend.
    ///
    /// # Errors
    /// There is no such device.
    pub fn get(&self, device: usize) -> Result<&'a dyn Backend, PlanError> {
        match &self.backends {
            Backends::One(backend) => Ok(*backend),
            Backends::Each(all) => all.get(device).copied().ok_or(PlanError::Device {
                wanted: device,
                have: all.len(),
            }),
        }
    }

    /// The first device that shares this one's memory: devices with one home read each other's tensors.
    pub fn home(&self, device: usize) -> usize {
        let Backends::Each(all) = &self.backends else {
            return 0;
        };
        let same = |a: &dyn Backend, b: &dyn Backend| {
            Arc::ptr_eq(a.memory().ledger(), b.memory().ledger())
        };
        let Some(own) = all.get(device) else {
            return device;
        };
        let first = all.iter().position(|b| same(*b, *own));
        first.unwrap_or(device)
    }
}

/// A host tensor where a device's sessions read it: itself, or a copy that is counted as activations.
pub(crate) fn here<'t>(
    memory: &dyn Memory,
    tensor: &'t Tensor,
) -> Result<Cow<'t, Tensor>, MemoryError> {
    Ok(if memory.is_separate() {
        Cow::Owned(tensor.copied_to(memory, Class::Activations)?)
    } else {
        Cow::Borrowed(tensor)
    })
}

/// A session whose inputs and outputs lie on the host, wherever it runs: for what runs outside the waves.
pub(crate) struct HostSession {
    session: Box<dyn Session>,
    memory: Arc<dyn Memory>,
}

impl HostSession {
    pub(crate) fn load(
        backend: &dyn Backend,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            session: backend.load(component, options)?,
            memory: Arc::clone(backend.memory()),
        })
    }

    pub(crate) fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        run_on_host(&mut *self.session, &*self.memory, inputs, state)
    }
}

/// One run with inputs and outputs on the host; the state stays where it is.
pub(crate) fn run_on_host(
    session: &mut dyn Session,
    memory: &dyn Memory,
    inputs: &[(&Port, View<'_>)],
    state: State<'_>,
) -> Result<Outputs, EngineError> {
    if !memory.is_separate() {
        return session.run(inputs, state);
    }
    let copies = inputs
        .iter()
        .map(|(port, view)| Ok((*port, view.copied_to(memory, Class::Activations)?)))
        .collect::<Result<Vec<(&Port, Tensor)>, MemoryError>>()?;
    let views: Vec<(&Port, View<'_>)> = copies.iter().map(|(p, t)| (*p, t.view())).collect();
    let outputs = session.run(&views, state)?.into_inner();
    let fetched = outputs
        .into_iter()
        .map(|(name, t)| Ok((name, t.into_host(memory)?)))
        .collect::<Result<BTreeMap<_, _>, MemoryError>>()?;
    Ok(fetched.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sizes::{config, small_geometry};
    use crate::fixtures::fake::Fake;
    use engines::memory::HostMemory;

    #[test]
    fn memory_sizes_are_read_in_both_kinds_of_units() {
        for (text, want) in [
            ("24GB", Some(24_000_000_000)),
            ("1.5 gib", Some(1_610_612_736)),
            ("900kB", Some(900_000)),
            ("4096", Some(4096)),
            ("0GB", None),
            ("-1GB", None),
            ("GB", None),
            ("3 parsecs", None),
            ("", None),
        ] {
            let got = text.parse::<MemorySize>();
            assert_eq!(got.as_ref().ok().map(|m| m.0), want, "{text}");
            assert!(
                want.is_some()
                    || got
                        == Err(MemorySizeError {
                            got: text.to_owned()
                        })
            );
        }
    }

    #[test]
    fn devices_of_one_memory_have_one_home_and_a_missing_one_is_named() {
        let fake = Fake::new(config(1), small_geometry(12));
        let other = fake.on(HostMemory::new("cpu:1", 10));
        let devices = Devices::each(vec![&fake, &other, &fake]);
        assert_eq!([0, 1, 2].map(|d| devices.home(d)), [0, 1, 0]);
        let missing = devices.get(3).err().unwrap();
        assert_eq!(missing, PlanError::Device { wanted: 3, have: 3 });
        assert_eq!(missing.kind(), engines::error_kind::ErrorKind::Resources);
        let one = Devices::one(&fake);
        assert_eq!((one.home(7), one.get(7).is_ok()), (0, true));
    }
}
