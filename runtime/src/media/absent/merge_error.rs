//! Why a build without FFmpeg (feature `media`) joins no videos.

use std::path::PathBuf;

use engines::error_kind::ErrorKind;

/// A reason why videos cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// This build writes no video.
    #[error(
        "{path}: this program was built without FFmpeg and joins no videos; \
         use one built with the feature `media`"
    )]
    NoMedia {
        /// Path of the video.
        path: PathBuf,
    },
}

impl MergeError {
    /// Returns `Resources`: another build would write the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}
