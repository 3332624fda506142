//! Refuses to examine videos, in a build without FFmpeg (feature `media`).

use std::fmt;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::film::{Film, FrameHash};

/// A reason why a video file cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This build reads no video.
    #[error(
        "{path}: this program was built without FFmpeg and reads no video; \
         use one built with the feature `media`"
    )]
    NoMedia {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file cannot be hashed.
    #[error("{path}: cannot read the file: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
}

impl ProbeError {
    /// Returns `Resources`: another build would read the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// A stand-in for the facts of a video. This build cannot create any.
#[derive(Clone, Debug, serde::Serialize)]
pub enum Probe {}

impl Probe {
    /// Adds the hash of the decoded frames.
    pub(crate) fn film(self, _: FrameHash, _: String) -> Film {
        match self {}
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// Refuses to read a file.
///
/// # Errors
/// Always [`ProbeError::NoMedia`].
pub fn probe(path: &Path) -> Result<Probe, ProbeError> {
    Err(ProbeError::NoMedia {
        path: path.to_owned(),
    })
}
