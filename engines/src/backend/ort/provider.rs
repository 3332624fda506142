//! The provider of ONNX Runtime that runs graphs.

#[cfg(feature = "cuda")]
use super::cuda;

/// The provider that runs graphs.
#[derive(Clone)]
pub(super) enum Provider {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Cuda),
}
