//! Why a command failed.

use std::path::PathBuf;
use std::time::Duration;

use engines::backend::EngineError;
use engines::claims::ClaimError;
use engines::error_kind::{ErrorKind, reason};
use engines::manifest::ManifestError;

use crate::checks::error::CheckError;
use crate::generate::error::GenerateError;
use crate::media::merge_error::MergeError;
use crate::media::partial::NameError;
use crate::media::video_facts::ProbeError;
use crate::numbers::size::SizeError;
use crate::placement::footprints::AtATime;
use crate::placement::plan::PlanError;
use crate::planner::PlannerError;

/// Why a command failed: what the reader of a message can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags contradict each other, or this build cannot honour one.
    #[error("{0}")]
    Usage(String),
    /// A size cannot be used.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A placement cannot be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is no plan for a machine.
    #[error(transparent)]
    Planner(Box<PlannerError>),
    /// A video could not be made.
    #[error(transparent)]
    Generate(Box<GenerateError>),
    /// A check could not be made, or failed.
    #[error(transparent)]
    Check(Box<CheckError>),
    /// An export cannot be opened.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A device or its library cannot be opened.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A video file cannot be read.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Videos cannot be joined.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The name of an output says no format.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A flag names a path that does not exist.
    #[error("{flag} {}: there is no such file or folder", path.display())]
    NoPath {
        /// The flag.
        flag: String,
        /// Its value.
        path: PathBuf,
    },
    /// A configuration file cannot be read.
    #[error("--config {}: cannot read: {}", file.display(), reason(source))]
    Config {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An input of an earlier run, or its model, is another one now.
    #[error(
        "{}: {changed}; --changed-inputs goes on with what is there", run.display()
    )]
    Changed {
        /// The run file.
        run: PathBuf,
        /// What is another one.
        changed: String,
    },
    /// An input of an earlier run cannot be read.
    #[error("{flag} {}: cannot read: {}", path.display(), reason(source))]
    NoInput {
        /// The flag.
        flag: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A repeated run made other frames.
    #[error("{}: the frames differ from those of {}: {what}", video.display(), run.display())]
    NotEqual {
        /// The new video.
        video: PathBuf,
        /// The run file.
        run: PathBuf,
        /// The first difference.
        what: String,
    },
    /// A list of a batch cannot be read.
    #[error("{}: cannot read: {}", file.display(), reason(source))]
    List {
        /// The list.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A list of a batch has a fault.
    #[error("{place}: {message}")]
    ListField {
        /// File, line and, where it is known, column.
        place: String,
        /// What is wrong, what was wanted and what was got.
        message: String,
    },
    /// Fewer videos fit at a time than were asked for.
    #[error("--jobs {wanted}: {fit} fit at a time: {room}; --jobs auto takes what fits")]
    Jobs {
        /// Videos that were asked for.
        wanted: usize,
        /// Videos that fit.
        fit: usize,
        /// The memory that limits them.
        room: AtATime,
    },
    /// A video of a batch took too long.
    #[error("--timeout: stopped after {:.1} s; {stopped}", after.as_secs_f64())]
    Timeout {
        /// The longest time of a video.
        after: Duration,
        /// What is left.
        stopped: Box<Error>,
    },
    /// Videos of a batch failed.
    #[error("{failed} of {all} videos failed, first {}: {first}", item.display())]
    Batch {
        /// Videos that failed.
        failed: usize,
        /// Videos of the batch.
        all: usize,
        /// The first of them.
        item: PathBuf,
        /// Why it failed.
        first: Box<Error>,
    },
    /// A configuration file has a fault.
    #[error("{place}: {message}")]
    ConfigField {
        /// File, line and column.
        place: String,
        /// What is wrong, what was wanted and what was got.
        message: String,
    },
    /// A file to write is read too, exists, or belongs to another run.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A signal stopped the command.
    #[error("interrupted")]
    Interrupted,
    /// Signals cannot be heard.
    #[error("cannot listen for Ctrl-C: {reason}")]
    Signal {
        /// The system's reason.
        reason: String,
    },
    /// An output cannot be written.
    #[error("{}: cannot write: {}", path.display(), reason(source))]
    Write {
        /// The output.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<PlannerError> for Error {
    fn from(error: PlannerError) -> Self {
        Self::Planner(Box::new(error))
    }
}

impl From<GenerateError> for Error {
    fn from(error: GenerateError) -> Self {
        Self::Generate(Box::new(error))
    }
}

impl From<CheckError> for Error {
    fn from(error: CheckError) -> Self {
        Self::Check(Box::new(error))
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl Error {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Usage(_) | Self::ConfigField { .. } | Self::ListField { .. } => ErrorKind::Usage,
            Self::Changed { .. } => ErrorKind::Input,
            Self::NoInput { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::NotEqual { .. } => ErrorKind::Verification,
            Self::Jobs { .. } | Self::Timeout { .. } => ErrorKind::Resources,
            Self::Batch { first, .. } => first.kind(),
            Self::Size(e) => e.kind(),
            Self::Plan(e) => e.kind(),
            Self::Planner(e) => e.kind(),
            Self::Generate(e) => e.kind(),
            Self::Check(e) => e.kind(),
            Self::Manifest(e) => e.kind(),
            Self::Engine(e) => e.kind(),
            Self::Probe(e) => e.kind(),
            Self::Merge(e) => e.kind(),
            Self::Name(e) => e.kind(),
            Self::NoPath { .. } => ErrorKind::Input,
            Self::Config { source, .. } | Self::List { source, .. } => {
                ErrorKind::of_io(source, ErrorKind::Input)
            }
            Self::Signal { .. } => ErrorKind::Resources,
            Self::Claim(e) => e.kind(),
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Write { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
        }
    }
}
