//! Why a video could not be made.

use std::path::PathBuf;

use engines::backend::EngineError;
use engines::claims::ClaimError;
use engines::error_kind::{ErrorKind, reason};
use engines::manifest::ManifestError;
use engines::tensor_file::TensorFileError;

use crate::chain::error::ChainError;
use crate::generate::journal::JournalError;
use crate::generate::run_file::RunFileError;
use crate::inputs::prompt::PromptError;
use crate::inputs::replay::ReplayError;
use crate::media::audio_file::AudioError;
use crate::media::contact_sheet::ContactSheetError;
use crate::media::partial::{NameError, Partial};
use crate::media::picture::PictureError;
use crate::media::video_error::VideoError;
use crate::numbers::geometry::{ClipLengthError, RingLengthError};
use crate::numbers::schedule::ScheduleError;
use crate::numbers::size::SizeError;
use crate::numbers::timing::FPS;
use crate::placement::error::PlacementError;
use crate::placement::plan::PlanError;

/// Why a video could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The size cannot be used with the picture.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The number of steps cannot be used.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The length of a clip cannot be used.
    #[error(transparent)]
    ClipLength(#[from] ClipLengthError),
    /// The length of the ring cannot be used.
    #[error(transparent)]
    RingLength(#[from] RingLengthError),
    /// The prompt or the tokenizer cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The picture cannot be used.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The recording cannot be used.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The video cannot be written.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The contact sheet cannot be written.
    #[error(transparent)]
    ContactSheet(#[from] ContactSheetError),
    /// The state of an earlier run cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The recorded run cannot be replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] TensorFileError),
    /// A run file cannot be read, or an input of one.
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    /// The placement cannot be used.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The engine was placed for another number of steps.
    #[error("sample_steps: this engine is placed for {placed} steps, the request wants {wanted}")]
    Steps {
        /// Steps of the placement.
        placed: usize,
        /// Steps of the request.
        wanted: usize,
    },
    /// The model could not run.
    #[error(transparent)]
    Chain(ChainError),
    /// An output has a name that says another format, or is a folder.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file to write is read too, exists, or belongs to another run.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The video of an earlier run cannot be moved aside.
    #[error("{}: cannot move it aside: {source}", path.display())]
    Aside {
        /// The unfinished video.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file of metrics cannot be created.
    #[error("{}: cannot write metrics: {}", path.display(), reason(source))]
    Metrics {
        /// The file of metrics.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the model changed while it was in use.
    #[error("{source}{}", suspect(partial))]
    Suspect {
        /// The file that changed.
        source: ManifestError,
        /// The video that was made with it, if any frame was written.
        partial: Option<Partial>,
    },
    /// The caller asked to stop.
    #[error("interrupted after {}{}", at(partial), if *resumes { RESUMES } else { "" })]
    Interrupted {
        /// The unfinished video, if any frame was written. It plays.
        partial: Option<Partial>,
        /// A state is kept, from which another run can go on.
        resumes: bool,
    },
}

/// What a user can do about an unfinished video whose run kept its state.
pub(crate) const RESUMES: &str = "; the same command with --resume goes on";

/// Returns a number of frames with their length.
pub(crate) fn length(frames: usize) -> String {
    let seconds = frames as f64 / f64::from(FPS);
    format!("{frames} frames ({seconds:.2} s)")
}

fn at(partial: &Option<Partial>) -> String {
    partial.as_ref().map_or_else(
        || "0 frames; nothing was written".to_owned(),
        |p| {
            let length = length(p.frames);
            format!("{length}; what is there plays: {}", p.path.display())
        },
    )
}

fn suspect(partial: &Option<Partial>) -> String {
    partial.as_ref().map_or_else(String::new, |p| {
        let length = length(p.frames);
        format!("; the video is kept, {length}: {}", p.path.display())
    })
}

impl From<ChainError> for GenerateError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Plan(error) => PlacementError::from(error).into(),
            error => Self::Chain(error),
        }
    }
}

impl From<EngineError> for GenerateError {
    fn from(error: EngineError) -> Self {
        ChainError::from(error).into()
    }
}

impl From<PlanError> for GenerateError {
    fn from(error: PlanError) -> Self {
        PlacementError::from(error).into()
    }
}

impl GenerateError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Size(e) => e.kind(),
            Self::Schedule(e) => e.kind(),
            Self::ClipLength(e) => e.kind(),
            Self::RingLength(e) => e.kind(),
            Self::Prompt(e) => e.kind(),
            Self::Picture(e) => e.kind(),
            Self::Audio(e) => e.kind(),
            Self::Video(e) => e.kind(),
            Self::ContactSheet(e) => e.kind(),
            Self::Journal(e) => e.kind(),
            Self::Replay(e) => e.kind(),
            Self::Trace(e) => e.kind(),
            Self::RunFile(e) => e.kind(),
            Self::Placement(e) => e.kind(),
            Self::Steps { .. } => ErrorKind::Usage,
            Self::Chain(e) => e.kind(),
            Self::Name(e) => e.kind(),
            Self::Claim(e) => e.kind(),
            Self::Metrics { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Aside { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Suspect { source, .. } => source.kind(),
            Self::Interrupted { .. } => ErrorKind::Interrupted,
        }
    }
}
