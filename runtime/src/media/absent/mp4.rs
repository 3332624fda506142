//! Refuses to write videos, in a build without FFmpeg (feature `media`).

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::audio_file::AudioTrack;
use crate::media::partial::Partial;
use crate::numbers::size::Size;

/// A reason why a video cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Mp4Error {
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

impl Mp4Error {
    /// Returns `Resources`: another build would write the file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// The settings of the encoder. This build has none and ignores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// Constant rate factor of x264.
    pub crf: u8,
    /// Preset of x264.
    pub preset: String,
    /// Slices that are encoded at once.
    pub threads: u32,
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            crf: 17,
            preset: "fast".to_owned(),
            threads: 4,
        }
    }
}

/// A stand-in for the facts of a finished video file. This build writes none.
#[derive(Debug)]
pub struct Finished {
    /// The final name.
    pub path: PathBuf,
    /// Why the file keeps its fragments.
    pub fragmented: Option<Infallible>,
}

/// A stand-in for the video file. This build cannot create one.
pub struct Writer(Infallible);

impl Writer {
    /// Refuses to write a video.
    ///
    /// # Errors
    /// Always [`Mp4Error::NoMedia`].
    pub fn create(
        out: &Path,
        _: Size,
        _: &Encoding,
        _: Option<AudioTrack>,
    ) -> Result<Self, Mp4Error> {
        Err(Mp4Error::NoMedia {
            path: out.to_owned(),
        })
    }

    /// Is never called, because no writer exists.
    pub fn frames(&self) -> usize {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn write_frames(&mut self, _: &[u8]) -> Result<(), Mp4Error> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn restart_encoder(&mut self) -> Result<(), Mp4Error> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn sync(&self) -> Result<(), Mp4Error> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn take_blocks(&mut self, _: &Path, _: &[usize]) -> Result<(), Mp4Error> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn finish(self) -> Result<Finished, Mp4Error> {
        match self.0 {}
    }

    /// Is never called, because no writer exists.
    ///
    /// # Errors
    /// None.
    pub fn finish_partial(self) -> Result<Option<Partial>, Mp4Error> {
        match self.0 {}
    }
}
