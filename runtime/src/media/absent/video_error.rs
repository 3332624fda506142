//! Why a build without FFmpeg (feature `media`) writes no video.

use std::path::PathBuf;

use engines::error_kind::ErrorKind;

/// A reason why a video cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
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

impl VideoError {
    /// Returns `Resources`: another build would write the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}
