//! Says which libraries this machine has, where, and in which version. A missing library is an
//! error that names its remedy.

pub use crate::backend::ort::library::Found;

use crate::backend::EngineError;
use crate::backend::ort::library::{self, Kind};
use crate::backend::tensorrt::{Flavour, TensorRtError};

/// Finds ONNX Runtime as a run on the CPU does.
///
/// # Errors
/// [`EngineError::Library`]: it is missing, does not load, or is older than this program wants.
pub fn onnx_runtime() -> Result<Found, EngineError> {
    library::found(Kind::Cpu)
}

/// Finds ONNX Runtime with its CUDA provider, and loads every library of NVIDIA's that it needs.
///
/// # Errors
/// [`EngineError::CudaLibrary`] names the first library that is missing; [`EngineError::NotBuilt`]
/// without the feature `cuda`.
pub fn onnx_runtime_cuda() -> Result<Found, EngineError> {
    #[cfg(feature = "cuda")]
    {
        let found = library::found(Kind::Cuda)?;
        if let Some(path) = &found.path {
            crate::backend::ort::preload_cuda(path)?;
        }
        Ok(found)
    }
    #[cfg(not(feature = "cuda"))]
    Err(EngineError::NotBuilt {
        wanted: "a CUDA device".to_owned(),
        missing: "CUDA",
        build: "`cargo build --release`",
    })
}

/// Finds the TensorRT that this program was built for. Returns `None` for a program without it.
///
/// # Errors
/// The library is missing or of another version.
pub fn tensorrt() -> Option<(Flavour, Result<Found, TensorRtError>)> {
    #[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
    {
        use crate::backend::tensorrt::library::Library;
        let found = Library::load().map(|library| Found {
            version: library.version(),
            path: None,
        });
        Flavour::BUILT.map(|flavour| (flavour, found))
    }
    #[cfg(not(any(feature = "tensorrt-rtx", feature = "tensorrt")))]
    None
}
