//! Parses `--device` and opens an export on that one device. Placements over several devices are in
//! `placement`.

use std::num::NonZeroUsize;
use std::path::Path;

use engines::backend::EngineError;
use engines::backend::ort::{Ort, Runtime};
use engines::device::{Device, Gpu, cuda};
use engines::manifest::Models;
use engines::memory::HostMemory;

use crate::commands::error::Error;
use crate::numbers::memory_size::MemorySize;

/// Flags that choose a device.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Device that runs the graphs, cpu or cuda:N; cpu by default.
    #[arg(long, value_name = "cpu|cuda:N")]
    pub device: Option<Device>,
    /// Most memory of the device to use, such as 22GB; what is free by default.
    #[arg(long = "device-memory", value_name = "SIZE")]
    pub device_memory: Option<MemorySize>,
    /// CPU threads; all cores by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

impl DeviceArgs {
    /// Returns the device that was asked for, or the CPU.
    pub fn device(&self) -> Device {
        self.device.unwrap_or_default()
    }

    /// Returns the notice on GPUs that are not used, because no flag names a device.
    fn unused(&self, gpus: &[Gpu]) -> Option<String> {
        let first = gpus.first().filter(|_| self.device.is_none())?;
        let device = Device::Cuda(first.ordinal);
        Some(format!(
            "note: the CPU computes; --device {device} uses {}",
            first.name
        ))
    }

    /// CPU threads that were asked for, or all cores.
    pub fn threads(&self) -> usize {
        threads(self.threads)
    }

    /// The library on the device.
    ///
    /// # Errors
    /// A driver, device or library that is missing; less memory free than asked for.
    pub fn runtime(&self) -> Result<Runtime, Error> {
        if let Some(notice) = self.unused(&engines::device::gpus().unwrap_or_default()) {
            engines::console::tell(notice);
        }
        match self.device() {
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
        match self.device() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_no_flag_chose_is_named() {
        let gpu = Gpu {
            ordinal: 0,
            name: "NVIDIA L4".to_owned(),
            capability: (8, 9),
            free: 1,
            total: 2,
            link: None,
        };
        let args = |device| DeviceArgs {
            device,
            device_memory: None,
            threads: None,
        };
        let notice = "note: the CPU computes; --device cuda:0 uses NVIDIA L4";
        let gpus = [gpu];
        assert_eq!(args(None).unused(&gpus).as_deref(), Some(notice));
        assert_eq!(args(Some(Device::Cpu)).unused(&gpus), None);
        assert_eq!(args(None).unused(&[]), None);
    }
}
