//! Why a check or a measurement could not run, and the failures that a check reports.

use std::path::PathBuf;

use engines::backend::EngineError;
use engines::error_kind::ErrorKind;
use engines::graph_folder::GraphFolderError;
use engines::manifest::ManifestError;
use engines::memory::MemoryError;
use engines::tensor_file::TensorFileError;

use crate::chain::error::ChainError;
use crate::checks::diff::DiffError;
use crate::checks::doctor::Ill;
use crate::checks::film::{self, DescriptionError};
use crate::checks::parity::Differs;
use crate::checks::verify::error::VerifyError;
use crate::generate::error::GenerateError;
use crate::inputs::prompt::PromptError;
use crate::inputs::replay::ReplayError;
use crate::media::audio_file::AudioError;
use crate::media::picture::PictureError;
use crate::media::video_facts::ProbeError;
use crate::numbers::geometry::ClipLengthError;
use crate::numbers::schedule::ScheduleError;
use crate::numbers::size::SizeError;
use crate::placement::plan::PlanError;

/// Why a check or a measurement could not run, or the failure that a check found.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Flags or values contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A golden set cannot be used, or its check failed.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A part of this machine keeps a video from being made.
    #[error(transparent)]
    Ill(#[from] Ill),
    /// The description of a video cannot be used.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// A video differs from its description.
    #[error(transparent)]
    Film(#[from] film::Differs),
    /// A device differs from the CPU.
    #[error(transparent)]
    Differs(#[from] Differs),
    /// Two files cannot be compared, or differ.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// A video could not be made.
    #[error(transparent)]
    Generate(Box<GenerateError>),
    /// The chain failed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An export cannot be opened.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A folder of graphs cannot be used.
    #[error(transparent)]
    Graphs(#[from] GraphFolderError),
    /// A file of tensors cannot be used.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// A recorded run cannot be replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A prompt cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A picture cannot be used.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A recording cannot be used.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// A video file cannot be read.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A size cannot be used.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A number of steps cannot be used.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A length of a clip cannot be used.
    #[error(transparent)]
    ClipLength(#[from] ClipLengthError),
    /// A placement cannot be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Tensors of a file do not fit a component.
    #[error("{}: {source}", path.display())]
    Inputs {
        /// The file.
        path: PathBuf,
        /// The port, the wanted tensor and the given tensor.
        source: Box<EngineError>,
    },
    /// A report cannot be written.
    #[error("{}: cannot write: {source}", path.display())]
    Write {
        /// The report.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<EngineError> for CheckError {
    fn from(error: EngineError) -> Self {
        ChainError::from(error).into()
    }
}

impl From<MemoryError> for CheckError {
    fn from(error: MemoryError) -> Self {
        ChainError::from(error).into()
    }
}

impl From<GenerateError> for CheckError {
    fn from(error: GenerateError) -> Self {
        Self::Generate(Box::new(error))
    }
}

impl CheckError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Usage(_) => ErrorKind::Usage,
            Self::Verify(e) => e.kind(),
            Self::Ill(e) => e.kind,
            Self::Description(e) => e.kind(),
            Self::Film(_) => ErrorKind::Verification,
            Self::Differs(e) => e.kind(),
            Self::Diff(e) => e.kind(),
            Self::Generate(e) => e.kind(),
            Self::Chain(e) => e.kind(),
            Self::Manifest(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Tensors(e) => e.kind(),
            Self::Replay(e) => e.kind(),
            Self::Prompt(e) => e.kind(),
            Self::Picture(e) => e.kind(),
            Self::Audio(e) => e.kind(),
            Self::Probe(e) => e.kind(),
            Self::Size(e) => e.kind(),
            Self::Schedule(e) => e.kind(),
            Self::ClipLength(e) => e.kind(),
            Self::Plan(e) => e.kind(),
            Self::Inputs { source, .. } => source.kind(),
            Self::Write { source, .. } if source.kind() != std::io::ErrorKind::StorageFull => {
                ErrorKind::Input
            }
            Self::Write { .. } => ErrorKind::Resources,
        }
    }
}
