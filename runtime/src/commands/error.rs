//! The one error of the library: what the reader of a message can act on, and the exit code that tells a script the same.

use std::path::PathBuf;

use engines::backend::EngineError;
use engines::error_kind::ErrorKind;
use engines::graph_folder::GraphFolderError;
use engines::manifest::ManifestError;

use crate::numbers::geometry::{ClipLengthError, RingLengthError};
use crate::checks::parity::Differs;
use crate::checks::verify::VerifyError;
use crate::inputs::replay::ReplayError;
use crate::inputs::prompt::PromptError;
use crate::media::audio_file::AudioError;
use crate::media::contact_sheet::ContactSheetError;
use crate::media::mp4::Mp4Error;
use crate::media::picture::PictureError;
use crate::media::video_facts::ProbeError;
use crate::numbers::schedule::ScheduleError;
use crate::numbers::size::SizeError;
use crate::placement::footprint::TooSmall;
use crate::placement::plan::PlanError;
use crate::planner::PlannerError;
use engines::tensor_file::TensorFileError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Planner(Box<PlannerError>),
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error(transparent)]
    ClipLength(#[from] ClipLengthError),
    #[error(transparent)]
    RingLength(#[from] RingLengthError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error(transparent)]
    Audio(#[from] AudioError),
    #[error(transparent)]
    Mp4(#[from] Mp4Error),
    #[error(transparent)]
    ContactSheet(#[from] ContactSheetError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Graphs(#[from] GraphFolderError),
    #[error(transparent)]
    Differs(#[from] Differs),
    #[error(transparent)]
    Engine(Box<EngineError>),
    #[error("stage {stage}: {source}")]
    Stage {
        stage: String,
        source: Box<EngineError>,
    },
    #[error("model has {found} speech states of width {dim}, this program wants {wanted}")]
    SpeechStates {
        wanted: usize,
        found: usize,
        dim: usize,
    },
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("cannot listen for Ctrl-C: {reason}")]
    Signal { reason: String },
    #[error("{path}: cannot write: {source}", path = path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The other side of a channel ended first; its own error is the one to show.
    #[error("stopped because another stage ended")]
    Stopped,
    #[error("interrupted after {frames} frames{}", at(partial))]
    Interrupted {
        frames: usize,
        partial: Option<PathBuf>,
    },
}

fn at(partial: &Option<PathBuf>) -> String {
    partial.as_ref().map_or_else(
        || "; nothing was written".to_owned(),
        |p| format!("; what is there plays: {}", p.display()),
    )
}

impl From<PlannerError> for Error {
    fn from(error: PlannerError) -> Self {
        Self::Planner(Box::new(error))
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl Error {
    /// What a process that fails with this returns.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Usage(_) => ErrorKind::Usage,
            Self::Size(e) => e.kind(),
            Self::Plan(e) => e.kind(),
            Self::Planner(e) => e.kind(),
            Self::TooSmall(e) => e.kind(),
            Self::Schedule(e) => e.kind(),
            Self::ClipLength(e) => e.kind(),
            Self::RingLength(e) => e.kind(),
            Self::Prompt(e) => e.kind(),
            Self::Picture(e) => e.kind(),
            Self::Audio(e) => e.kind(),
            Self::Mp4(e) => e.kind(),
            Self::ContactSheet(e) => e.kind(),
            Self::Probe(e) => e.kind(),
            Self::TensorFile(e) => e.kind(),
            Self::Replay(e) => e.kind(),
            Self::Manifest(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Differs(e) => e.kind(),
            Self::Engine(e) | Self::Stage { source: e, .. } => e.kind(),
            Self::Verify(e) => e.kind(),
            Self::SpeechStates { .. } => ErrorKind::Model,
            Self::Signal { .. } | Self::Stopped => ErrorKind::Resources,
            Self::Write { source, .. } if source.kind() != std::io::ErrorKind::StorageFull => {
                ErrorKind::Input
            }
            Self::Write { .. } => ErrorKind::Resources,
            Self::Interrupted { .. } => ErrorKind::Interrupted,
        }
    }
}
