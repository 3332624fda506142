//! Refuses to join videos, in a build without FFmpeg (feature `media`).

use std::fmt;
use std::path::PathBuf;

use engines::cancel::Cancel;

use crate::media::merge_error::MergeError;
use crate::media::target::Target;

/// A stand-in for a joined video. This build cannot make any.
#[derive(Clone, Debug, serde::Serialize)]
pub enum Merged {}

impl fmt::Display for Merged {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// Refuses to join videos.
///
/// # Errors
/// Always [`MergeError::NoMedia`].
pub fn merge(_: &[PathBuf], target: &Target, _: &Cancel) -> Result<Merged, MergeError> {
    Err(MergeError::NoMedia {
        path: target.path(),
    })
}
