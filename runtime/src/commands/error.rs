//! Why a command failed.

use std::path::PathBuf;

use engines::backend::EngineError;
use engines::claims::ClaimError;
use engines::error_kind::{ErrorKind, reason};
use engines::manifest::ManifestError;

use crate::checks::error::CheckError;
use crate::generate::AlignError;
use crate::generate::error::GenerateError;
use crate::inputs::synthesiser::SynthesiserError;
use crate::media::video_facts::ProbeError;
use crate::numbers::size::SizeError;
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
    /// Lips and sound of a video cannot be compared.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// A program did not speak.
    #[error(transparent)]
    Synthesiser(#[from] SynthesiserError),
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
            Self::Usage(_) | Self::ConfigField { .. } => ErrorKind::Usage,
            Self::Size(e) => e.kind(),
            Self::Plan(e) => e.kind(),
            Self::Planner(e) => e.kind(),
            Self::Generate(e) => e.kind(),
            Self::Check(e) => e.kind(),
            Self::Manifest(e) => e.kind(),
            Self::Engine(e) => e.kind(),
            Self::Probe(e) => e.kind(),
            Self::Align(e) => e.kind(),
            Self::Synthesiser(e) => e.kind(),
            Self::NoPath { .. } => ErrorKind::Input,
            Self::Config { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Signal { .. } => ErrorKind::Resources,
            Self::Claim(e) => e.kind(),
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Write { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
        }
    }
}
