//! Names a device and opens a backend on it. Only this crate knows the features `cuda` and
//! `tensorrt`. Without one, opening returns an error that says how to build the program with it.

pub use crate::memory::gpu::{Gpu, PcieLink};

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::backend::ort::Runtime;
use crate::backend::{Backend, EngineError};
use crate::manifest::Models;
use crate::memory::MemoryError;

/// The CPU, or an NVIDIA device by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(into = "String")]
pub enum Device {
    /// The process's own processor and memory.
    #[default]
    Cpu,
    /// CUDA device with this number.
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

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device wants cpu or cuda:N, got `{got}`")]
pub struct DeviceNameError {
    /// The text.
    pub got: String,
}

impl FromStr for Device {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ordinal = |n: &str| n.parse().ok().map(Self::Cuda);
        match text {
            "cpu" | "cpu:0" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(ordinal),
        }
        .ok_or_else(|| DeviceNameError {
            got: text.to_owned(),
        })
    }
}

/// Lists every NVIDIA device of this machine, in the driver's order.
///
/// # Errors
/// [`MemoryError::NoDriver`] where there is no driver; [`MemoryError::Driver`] when it refuses, or
/// when this build lacks the feature `cuda`.
pub fn gpus() -> Result<Vec<Gpu>, MemoryError> {
    #[cfg(feature = "cuda")]
    return crate::memory::cuda::gpus();
    #[cfg(not(feature = "cuda"))]
    return Err(without_cuda("cuda"));
}

/// Returns the newest CUDA that the installed driver serves, such as (13, 0).
///
/// # Errors
/// The errors of [`gpus`].
pub fn driver_cuda() -> Result<(u32, u32), MemoryError> {
    #[cfg(feature = "cuda")]
    return crate::memory::cuda::driver_version();
    #[cfg(not(feature = "cuda"))]
    return Err(without_cuda("cuda"));
}

/// Lists the pairs of devices of which the first cannot read the memory of the second directly.
/// Copies between them go through the host.
///
/// # Errors
/// The errors of [`gpus`].
pub fn strangers() -> Result<Vec<(u32, u32)>, MemoryError> {
    #[cfg(feature = "cuda")]
    return crate::memory::cuda::strangers();
    #[cfg(not(feature = "cuda"))]
    return Err(without_cuda("cuda"));
}

/// Describes one NVIDIA device.
///
/// # Errors
/// The errors of [`gpus`], and [`MemoryError::NoDevice`] for a number that no device has.
pub fn gpu(ordinal: u32) -> Result<Gpu, MemoryError> {
    #[cfg(feature = "cuda")]
    return crate::memory::cuda::CudaDevice::open(ordinal)?.describe();
    #[cfg(not(feature = "cuda"))]
    return Err(without_cuda(&format!("cuda:{ordinal}")));
}

/// Opens CUDA device `ordinal` for ONNX Runtime. `budget` limits its bytes; `None` takes what is
/// free.
///
/// # Errors
/// [`EngineError::DeviceMemory`] when the driver or the device is missing, or less than `budget` is
/// free; [`EngineError::CudaLibrary`] when a library of NVIDIA's is missing.
#[cfg(feature = "cuda")]
pub fn cuda(ordinal: u32, budget: Option<u64>, threads: usize) -> Result<Runtime, EngineError> {
    let memory = crate::memory::cuda::CudaMemory::open(ordinal, budget)?;
    Runtime::cuda(threads, memory)
}

/// Returns an error: this build has no CUDA.
///
/// # Errors
/// Always [`EngineError::DeviceMemory`].
#[cfg(not(feature = "cuda"))]
pub fn cuda(ordinal: u32, _: Option<u64>, _: usize) -> Result<Runtime, EngineError> {
    Err(without_cuda(&format!("cuda:{ordinal}")).into())
}

/// The error of every call that this build lacks the feature `cuda` for.
#[cfg(not(feature = "cuda"))]
fn without_cuda(device: &str) -> MemoryError {
    MemoryError::Driver {
        device: device.to_owned(),
        reason: "this program was built without the feature `cuda`".to_owned(),
    }
}

/// Opens CUDA device `ordinal` for ONNX Runtime, with at most `most` bytes of what is free.
///
/// # Errors
/// The errors of [`cuda`].
pub fn cuda_at_most(ordinal: u32, most: u64, threads: usize) -> Result<Runtime, EngineError> {
    #[cfg(feature = "cuda")]
    let most = {
        let (free, _) = crate::memory::cuda::CudaDevice::open(ordinal)?.free_and_total()?;
        most.min(free)
    };
    cuda(ordinal, Some(most), threads)
}

/// Opens the TensorRT engines in `folder` on CUDA device `ordinal`, with at most `most` bytes of
/// what is free. ONNX Runtime runs the components that have no engine there, in the same memory.
///
/// # Errors
/// A driver or library is missing; the folder has no engine, or one that is stale, damaged or for
/// another GPU; [`EngineError::NotBuilt`] when the program was built without TensorRT.
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub fn tensorrt(
    models: &Models,
    folder: &Path,
    ordinal: u32,
    most: u64,
    threads: usize,
) -> Result<Arc<dyn Backend>, EngineError> {
    use crate::backend::mixed::Mixed;
    use crate::backend::ort::Ort;
    use crate::backend::tensorrt::engine_list::EngineList;
    use crate::backend::tensorrt::session::{InsideBudget, TensorRt};
    use crate::memory::cuda::{CudaDevice, CudaMemory};
    let (free, _) = CudaDevice::open(ordinal)?.free_and_total()?;
    let memory = CudaMemory::open(ordinal, Some(most.min(free)))?;
    // A folder without any engine is refused as one that lacks all of them.
    let covers = EngineList::of_folder(folder).map(|list| list.covers(models));
    let covers = covers.filter(|(has, lacks)| !has.is_empty() && !lacks.is_empty());
    let wanted = |name: &str| covers.as_ref().is_none_or(|(has, _)| has.contains(name));
    let resident = InsideBudget::Resident;
    let shared = Arc::clone(&memory);
    let engines = TensorRt::open(models.clone(), folder, shared, resident, &wanted)?;
    let engines: Arc<dyn Backend> = Arc::new(engines);
    let Some((has, _)) = covers else {
        return Ok(engines);
    };
    let rest = Ort::with(models.clone(), Runtime::cuda(threads, memory)?);
    Ok(Arc::new(Mixed::new(engines, Arc::new(rest), has)))
}

/// Returns an error: this build has no TensorRT.
///
/// # Errors
/// Always [`EngineError::NotBuilt`].
#[cfg(not(any(feature = "tensorrt-rtx", feature = "tensorrt")))]
pub fn tensorrt(
    _: &Models,
    folder: &Path,
    _: u32,
    _: u64,
    _: usize,
) -> Result<Arc<dyn Backend>, EngineError> {
    Err(EngineError::NotBuilt {
        wanted: format!("--engines {}", folder.display()),
        missing: "TensorRT",
        build: "`cargo build --release --features tensorrt-rtx` (RTX cards) or `tensorrt` \
             (data-centre cards)",
    })
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
            assert_eq!(
                error.to_string(),
                format!("device wants cpu or cuda:N, got `{bad}`")
            );
        }
    }
}
