//! Refuses to read the pictures of a video, in a build without FFmpeg (feature `media`).

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::numbers::size::Size;

/// A reason why the pictures of a video cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PicturesError {
    /// This build reads no video.
    #[error(
        "{path}: this program was built without FFmpeg and reads no video; \
         use one built with the feature `media`"
    )]
    NoMedia {
        /// Path of the file.
        path: PathBuf,
    },
}

impl PicturesError {
    /// Returns `Resources`: another build would read the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// The colours that a reader would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colours {
    /// Three bytes a pixel.
    Rgb,
    /// One byte a pixel, scaled to this size.
    Grey(Size),
}

/// A stand-in for one picture.
pub(crate) struct Frame {
    /// Seconds from the start.
    pub(crate) seconds: f64,
    /// Width and height.
    pub(crate) size: Size,
    /// Pixels row by row.
    pub(crate) pixels: Vec<u8>,
}

/// A stand-in for the pictures of a video. This build cannot open any.
pub(crate) struct Pictures(Infallible);

impl Pictures {
    /// Refuses to open a video.
    ///
    /// # Errors
    /// Always [`PicturesError::NoMedia`].
    pub(crate) fn open(path: &Path, _: Colours) -> Result<Self, PicturesError> {
        Err(PicturesError::NoMedia {
            path: path.to_owned(),
        })
    }

    /// Is never called, because no video was opened.
    pub(crate) fn rate(&self) -> f64 {
        match self.0 {}
    }

    /// Is never called, because no video was opened.
    ///
    /// # Errors
    /// None.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, PicturesError> {
        match self.0 {}
    }
}
