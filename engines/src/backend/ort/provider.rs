//! Names the execution provider that runs the graphs of a session.

#[cfg(feature = "cuda")]
use super::cuda::Cuda;

/// The provider that runs graphs.
#[derive(Clone)]
pub(super) enum Provider {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}
