//! Refuses to decode videos, in a build without FFmpeg (feature `media`).

use std::convert::Infallible;
use std::path::Path;

use crate::media::film::FrameHash;
use crate::media::video_facts::{ProbeError, probe};

/// One decoded frame. This build makes none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Planes Y, U and V.
    pub planes: Vec<u8>,
}

/// A stand-in for the frames of a video file. This build cannot open any.
pub struct VideoFrames(Infallible);

impl VideoFrames {
    /// Refuses to open a file.
    ///
    /// # Errors
    /// Always [`ProbeError::NoMedia`].
    pub fn open(path: &Path) -> Result<Self, ProbeError> {
        match probe(path)? {}
    }

    /// Is never called, because no file is open.
    ///
    /// # Errors
    /// None.
    pub fn next_frame(&mut self) -> Result<Option<Pixels>, ProbeError> {
        match self.0 {}
    }
}

/// A stand-in for the sound of a video file. This build cannot open any.
pub struct VideoSound(Infallible);

impl VideoSound {
    /// Refuses to open a file.
    ///
    /// # Errors
    /// Always [`ProbeError::NoMedia`].
    pub fn open(path: &Path) -> Result<Option<Self>, SoundError> {
        match probe(path)? {}
    }

    /// Is never called, because no file is open.
    pub fn form(&self) -> (u32, usize) {
        match self.0 {}
    }

    /// Is never called, because no file is open.
    ///
    /// # Errors
    /// None.
    pub fn read(&mut self, _: usize) -> Result<Vec<f32>, SoundError> {
        match self.0 {}
    }
}

/// A reason why the sound of a video cannot be read.
pub type SoundError = ProbeError;

/// Refuses to read a file.
///
/// # Errors
/// Always [`ProbeError::NoMedia`].
pub fn hash_frames(path: &Path) -> Result<FrameHash, ProbeError> {
    match probe(path)? {}
}
