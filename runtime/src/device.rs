//! Which device a command runs on, and an export opened there. Not here: placements over several devices, which are plans.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;

use engines::backend::EngineError;
use engines::backend::ort::{OrtCpu, Runtime};
use engines::manifest::Models;
use engines::memory::HostMemory;

use crate::devices::MemorySize;
use crate::error::Error;

/// The CPU, or an NVIDIA device by ordinal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(into = "String")]
pub enum Device {
    #[default]
    Cpu,
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ordinal = |n: &str| n.parse().ok().map(Self::Cuda);
        match text {
            "cpu" | "cpu:0" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(ordinal),
        }
        .ok_or_else(|| format!("device wants cpu or cuda:N, got `{text}`"))
    }
}

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

    /// The library on a device of at most `budget` bytes: of the GPU, or of the host's memory as a device of its own.
    ///
    /// # Errors
    /// As [`Self::runtime`].
    pub fn apart(&self, budget: Option<u64>) -> Result<Runtime, Error> {
        let budget = budget.or(self.device_memory.map(|m| m.0));
        match self.device {
            Device::Cpu => {
                let memory = HostMemory::new("cpu:0", budget.unwrap_or(u64::MAX));
                Ok(Runtime::cpu(self.threads())?.on(memory))
            }
            Device::Cuda(ordinal) => Ok(cuda(ordinal, budget, self.threads())?),
        }
    }

    /// An export on the device. The device is asked for first: hashing an export takes a while.
    ///
    /// # Errors
    /// As [`Self::runtime`]; a folder that is missing, damaged or of another version.
    pub fn open(&self, models: &Path) -> Result<OrtCpu, Error> {
        let runtime = self.runtime()?;
        Ok(OrtCpu::with(Models::open(models)?, runtime))
    }
}

/// CPU threads that were asked for, or all cores.
pub fn threads(wanted: Option<NonZeroUsize>) -> usize {
    wanted
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: u32, budget: Option<u64>, threads: usize) -> Result<Runtime, EngineError> {
    let memory = engines::memory::cuda::CudaMemory::open(ordinal, budget)?;
    Runtime::cuda(threads, memory)
}

/// A CUDA device with at most `most` bytes of what is free.
///
/// # Errors
/// A driver, device or library that is missing.
#[cfg(feature = "cuda")]
pub fn cuda_at_most(ordinal: u32, most: u64, threads: usize) -> Result<Runtime, EngineError> {
    let (free, _) = engines::memory::cuda::CudaDevice::open(ordinal)?.free_and_total()?;
    cuda(ordinal, Some(most.min(free)), threads)
}

/// As the other, in a program without the feature.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn cuda_at_most(ordinal: u32, most: u64, threads: usize) -> Result<Runtime, EngineError> {
    cuda(ordinal, Some(most), threads)
}

#[cfg(not(feature = "cuda"))]
fn cuda(ordinal: u32, _: Option<u64>, _: usize) -> Result<Runtime, EngineError> {
    Err(engines::memory::MemoryError::Driver {
        device: format!("cuda:{ordinal}"),
        reason: "this program was built without the feature `cuda`".to_owned(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_as_they_print_and_others_are_named() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:7", Device::Cuda(7)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA:0", ""] {
            let error = bad.parse::<Device>().unwrap_err();
            assert_eq!(error, format!("device wants cpu or cuda:N, got `{bad}`"));
        }
    }
}
