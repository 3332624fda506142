//! Refuses to decode videos, in a build without FFmpeg (feature `media`).

use std::path::Path;

use crate::media::film::FrameHash;
use crate::media::video_facts::ProbeError;

/// Refuses to read a file.
///
/// # Errors
/// Always [`ProbeError::NoMedia`].
pub fn hash_frames(path: &Path) -> Result<FrameHash, ProbeError> {
    Err(ProbeError::NoMedia {
        path: path.to_owned(),
    })
}
