//! Errors of the hub and of its cache.

use std::io;
use std::path::PathBuf;

use engines::error_kind::{ErrorKind, Shortage};

use super::id::{HubId, IdError};

/// A repository that cannot be found, downloaded or read from the cache.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("no folder for the cache: there is no home folder; set HF_HOME to a folder")]
    NoHome,
    #[error(
        "{id}: not in the hub's cache, {} is not there; `avatar-export download {id}` fetches it",
        place.display()
    )]
    NotCached { id: String, place: PathBuf },
    #[error(
        "{id}: wanted one LoRA in {}, found {}; give the path of a file",
        dir.display(),
        listed(found)
    )]
    NoLora {
        id: String,
        dir: PathBuf,
        found: Vec<String>,
    },
    #[error(
        "{id}: {endpoint} wants a token (401); set HF_TOKEN. \
         The hub answers so for a name that does not exist, too"
    )]
    Token { id: String, endpoint: String },
    #[error(
        "{id}: {endpoint} refuses this token (403); accept the terms on the page of the \
         repository, or set HF_TOKEN to a token that may read it"
    )]
    Refused { id: String, endpoint: String },
    #[error(
        "{id}: {endpoint} has no such repository, revision or file (404){}",
        file.as_ref().map(|f| format!(": {f}")).unwrap_or_default()
    )]
    Absent {
        id: String,
        endpoint: String,
        file: Option<String>,
    },
    #[error(
        "{id}: cannot fetch {what} from {endpoint}: {reason}; \
         what arrived is kept, and the same command continues"
    )]
    Network {
        id: String,
        endpoint: String,
        what: String,
        reason: String,
    },
    #[error("{id}: the answer of {endpoint} cannot be used: {reason}")]
    Listing {
        id: String,
        endpoint: String,
        reason: String,
    },
    #[error(
        "{id}: no file there belongs to a checkpoint or a LoRA, found {}; \
         --all downloads every file",
        listed(found)
    )]
    Nothing { id: String, found: Vec<String> },
    #[error(
        "{}: the download needs {:.2} GB more, and {:.2} GB are free; \
         free some room, or set HF_HOME to a folder on another disk",
        place.display(),
        *need as f64 / 1e9,
        *free as f64 / 1e9
    )]
    Room {
        place: PathBuf,
        need: u64,
        free: u64,
    },
    #[error("{}: another process downloads this file; wait for its end", file.display())]
    Busy { file: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: wanted {want}, got {got}; the damaged file was removed, \
         and the same command fetches it again",
        file.display()
    )]
    Damaged {
        file: PathBuf,
        want: String,
        got: String,
    },
}

impl HubError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Id(_) => ErrorKind::Usage,
            Self::NoHome | Self::Network { .. } | Self::Room { .. } | Self::Busy { .. } => {
                ErrorKind::Resources
            }
            Self::Io { source, .. } if Shortage::of(source).is_some() => ErrorKind::Resources,
            Self::NotCached { .. }
            | Self::NoLora { .. }
            | Self::Token { .. }
            | Self::Refused { .. }
            | Self::Absent { .. }
            | Self::Listing { .. }
            | Self::Nothing { .. }
            | Self::Io { .. }
            | Self::Damaged { .. } => ErrorKind::Model,
        }
    }

    /// Returns the error of an answer whose status says no.
    pub(super) fn status(id: &HubId, endpoint: &str, what: Option<&str>, status: u16) -> Self {
        let (id, endpoint) = (id.to_string(), endpoint.to_owned());
        match status {
            401 => Self::Token { id, endpoint },
            403 => Self::Refused { id, endpoint },
            404 => Self::Absent {
                id,
                endpoint,
                file: what.map(str::to_owned),
            },
            _ => Self::Network {
                id,
                endpoint,
                what: what.unwrap_or("the list of files").to_owned(),
                reason: format!("status {status}"),
            },
        }
    }
}

/// Returns the first names, and the number of the others.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    if names.is_empty() {
        return "none".to_owned();
    }
    let first = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
