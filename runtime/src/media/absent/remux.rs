//! Refuses to write videos again, in a build without FFmpeg (feature `media`).

use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// A reason why the sound of a video cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum RemuxError {
    /// This build writes no video.
    #[error(
        "{path}: this program was built without FFmpeg and writes no video; \
         use one built with the feature `media`"
    )]
    NoMedia {
        /// Path of the video.
        path: PathBuf,
    },
}

impl RemuxError {
    /// Returns `Resources`: another build would write the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// Refuses to write a video.
///
/// # Errors
/// Always [`RemuxError::NoMedia`].
pub(crate) fn move_sound(_: &Path, to: &Path, _: f64) -> Result<(), RemuxError> {
    Err(RemuxError::NoMedia {
        path: to.to_owned(),
    })
}
