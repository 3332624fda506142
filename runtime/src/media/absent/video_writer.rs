//! Refuses to write videos, in a build without FFmpeg (feature `media`).

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use crate::media::audio_file::AudioTrack;
use crate::media::encoding::Encoding;
use crate::media::partial::Partial;
use crate::media::target::Target;
use crate::media::video_error::VideoError;
use crate::numbers::size::Size;

/// A stand-in for the facts of a finished video file. This build writes none.
#[derive(Debug)]
pub struct Finished {
    /// The final name.
    pub path: PathBuf,
    /// Why the file keeps its fragments.
    pub fragmented: Option<Infallible>,
}

/// Refuses to write a video.
///
/// # Errors
/// Always [`VideoError::NoMedia`].
pub(crate) fn check(target: &Target, _: Size, _: &Encoding) -> Result<(), VideoError> {
    Err(refusal(target))
}

fn refusal(target: &Target) -> VideoError {
    VideoError::NoMedia {
        path: target.path(),
    }
}

/// Says whether a folder is new. Nothing is written into it in this build.
pub(crate) fn is_free(folder: &Path) -> bool {
    !folder.exists()
}

/// Refuses to replace a folder.
///
/// # Errors
/// Always [`VideoError::NoMedia`].
pub(crate) fn may_replace(folder: &Path) -> Result<(), VideoError> {
    Err(VideoError::NoMedia {
        path: folder.to_owned(),
    })
}

/// A stand-in for the video file. This build cannot create one.
pub struct VideoWriter(Infallible);

impl VideoWriter {
    /// Refuses to write a video.
    ///
    /// # Errors
    /// Always [`VideoError::NoMedia`].
    pub fn create(
        target: &Target,
        _: Size,
        _: &Encoding,
        _: Option<AudioTrack>,
    ) -> Result<Self, VideoError> {
        Err(refusal(target))
    }

    /// Is never called, because no writer exists.
    pub fn frames(&self) -> usize {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    pub fn sound_seconds(&self) -> f64 {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn write_frames(&mut self, _: &[u8]) -> Result<(), VideoError> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn restart_encoder(&mut self) -> Result<(), VideoError> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn sync(&self) -> Result<(), VideoError> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn take_blocks(&mut self, _: &Path, _: &[usize]) -> Result<(), VideoError> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn finish(self) -> Result<Finished, VideoError> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn finish_partial(self) -> Result<Option<Partial>, VideoError> {
        match self.0 {}
    }
}
