//! Reasons why an export fails.
use crate::checkpoint::CheckpointError;
use crate::checkpoint::sums;
use crate::families::FamilyErrors;
use crate::graph::error::WriteError;
use crate::verdict::{NoFolder, Refusals};
use engines::claims::Holder;
use engines::error_kind::{ErrorKind, reason};
use engines::recipe::Recipe;
use std::path::PathBuf;

/// An export that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum ExportError {
    #[error(
        "{}: already exists and is not an export; choose another --out or remove it",
        path.display()
    )]
    Occupied { path: PathBuf },
    #[error(
        "{}: another export is writing here; wait for it, or choose another --out",
        path.display()
    )]
    Busy { path: PathBuf },
    #[error("{}: {holder} uses this export; wait for it, or choose another --out", path.display())]
    InUse { path: PathBuf, holder: Holder },
    #[error("{}: {want} bytes are needed, {free} are free", path.display())]
    NoSpace { path: PathBuf, want: u64, free: u64 },
    #[error("layers is {got}, wanted 1 to {have}, which the checkpoint has")]
    Layers { got: usize, have: usize },
    #[error("recipe is {got}, wanted fp32 or bf16: no exporter makes it yet")]
    Recipe { got: Recipe },
    #[error("stopped by a signal")]
    Stopped,
    #[error(
        "{source}; {done} of {total} bytes are kept in {}: \
         the same command continues, --restart begins anew",
        path.display()
    )]
    Unfinished {
        path: PathBuf,
        done: u64,
        total: u64,
        source: Box<ExportError>,
    },
    #[error(transparent)]
    NoFolder(#[from] NoFolder),
    #[error(transparent)]
    Refused(#[from] Refusals),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Families(#[from] FamilyErrors),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{file}: wanted the same graph for every layer, the layers of this checkpoint differ")]
    Unequal { file: String },
    #[error("{}: {}", path.display(), reason(source))]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl From<sums::Stopped> for ExportError {
    fn from(_: sums::Stopped) -> Self {
        Self::Stopped
    }
}

impl ExportError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Occupied { .. } | Self::Layers { .. } | Self::Recipe { .. } => ErrorKind::Usage,
            Self::Busy { .. } | Self::InUse { .. } | Self::NoSpace { .. } => ErrorKind::Resources,
            Self::Stopped => ErrorKind::Interrupted,
            Self::Unfinished { source, .. } => source.kind(),
            Self::Checkpoint(e) => e.kind(),
            Self::Refused(e) => e.kind(),
            Self::Write(e) => e.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            _ => ErrorKind::Model,
        }
    }
}
