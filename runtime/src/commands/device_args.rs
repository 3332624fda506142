//! Parses `--device` and opens an export on that one device. Placements over several devices are in
//! `placement`.

use std::num::NonZeroUsize;
use std::path::Path;

use engines::backend::EngineError;
use engines::backend::ort::{Ort, Runtime};
use engines::device::{Device, cuda};
use engines::manifest::Models;
use engines::memory::HostMemory;

use crate::commands::error::Error;
use crate::numbers::memory_size::MemorySize;

/// Flags that choose a device.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where graphs run: cpu or cuda:N.
    #[arg(long, value_name = "cpu|cuda:N", default_value = "cpu")]
    pub device: Device,
    /// Most memory of the device to use, such as 22GB; what is free by default.
    #[arg(long = "device-memory", value_name = "SIZE")]
    pub device_memory: Option<MemorySize>,
    /// CPU threads; all cores by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

impl DeviceArgs {
    /// CPU threads that were asked for, or all cores.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }

    /// The library on the device.
    ///
    /// # Errors
    /// A driver, device or library that is missing; less memory free than asked for.
    pub fn runtime(&self) -> Result<Runtime, Error> {
        match self.device {
            Device::Cpu if self.device_memory.is_some() => Err(Error::Usage(
                "--device-memory bounds a GPU's memory; --device cpu has none".to_owned(),
            )),
            Device::Cpu => Ok(Runtime::cpu(self.threads())?),
            Device::Cuda(ordinal) => Ok(cuda(
                ordinal,
                self.device_memory.map(|m| m.0),
                self.threads(),
            )?),
        }
    }

    /// Opens the library on a device of at most `budget` bytes: on the GPU, or on a part of the
    /// host's memory as a device of its own.
    ///
    /// # Errors
    /// As [`Self::runtime`].
    pub fn separate(&self, budget: Option<u64>) -> Result<Runtime, EngineError> {
        let budget = budget.or(self.device_memory.map(|m| m.0));
        match self.device {
            Device::Cpu => {
                let memory = HostMemory::new("cpu:0", budget.unwrap_or(u64::MAX));
                Ok(Runtime::cpu(self.threads())?.on(memory))
            }
            Device::Cuda(ordinal) => cuda(ordinal, budget, self.threads()),
        }
    }

    /// An export on the device. The device is asked for first: hashing an export takes a while.
    ///
    /// # Errors
    /// As [`Self::runtime`]; a folder that is missing, damaged or of another version.
    pub fn open(&self, models: &Path) -> Result<Ort, Error> {
        let runtime = self.runtime()?;
        Ok(Ort::with(Models::open(models)?, runtime))
    }
}

/// CPU threads that were asked for, or all cores.
pub(crate) fn threads(wanted: Option<NonZeroUsize>) -> usize {
    wanted
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}
