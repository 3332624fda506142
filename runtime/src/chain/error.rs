//! Why a part of the chain failed.

use engines::backend::EngineError;
use engines::error_kind::ErrorKind;
use engines::memory::MemoryError;
use engines::tensor_file::TensorFileError;

use crate::media::audio_file::AudioError;
use crate::media::pcm::PipeError;
use crate::placement::plan::PlanError;

/// Why an encoder, the executor or a decoder stopped.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A graph or its device failed, outside the stages.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A graph or its device failed in a stage.
    #[error("stage {stage}: {source}")]
    Stage {
        /// Device and layers of the stage.
        stage: String,
        /// The failure.
        source: Box<EngineError>,
    },
    /// The kept state of an earlier run cannot be read.
    #[error(transparent)]
    State(#[from] TensorFileError),
    /// The placement does not fit the model or the machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The recording cannot be read.
    #[error(transparent)]
    Audio(Box<AudioError>),
    /// The other side of a channel ended first. Its own error is the one to show.
    #[error("stopped because another part of the chain ended")]
    Stopped,
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl From<EngineError> for ChainError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Cancelled,
            error => Self::Engine(Box::new(error)),
        }
    }
}

impl From<AudioError> for ChainError {
    fn from(error: AudioError) -> Self {
        match error {
            AudioError::Pipe(PipeError::Stopped) => Self::Cancelled,
            error => Self::Audio(Box::new(error)),
        }
    }
}

impl From<MemoryError> for ChainError {
    fn from(error: MemoryError) -> Self {
        EngineError::from(error).into()
    }
}

impl ChainError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(e) | Self::Stage { source: e, .. } => e.kind(),
            Self::State(e) => e.kind(),
            Self::Plan(e) => e.kind(),
            Self::Audio(e) => e.kind(),
            Self::Stopped => ErrorKind::Resources,
            Self::Cancelled => ErrorKind::Interrupted,
        }
    }
}
