//! Facts of a video in a build without FFmpeg (feature `media`): none.

use std::fmt;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// Why a file cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "{path}: this program was built without FFmpeg and reads no video; use one built with the feature `media`"
    )]
    NoMedia { path: PathBuf },
}

impl ProbeError {
    /// Always the program's fault.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// The facts of a video: there are none.
#[derive(Clone, Debug, serde::Serialize)]
pub enum Probe {}

impl fmt::Display for Probe {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// # Errors
/// Always.
pub fn probe(path: &Path) -> Result<Probe, ProbeError> {
    Err(ProbeError::NoMedia {
        path: path.to_owned(),
    })
}
