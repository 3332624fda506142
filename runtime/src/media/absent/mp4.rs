//! Videos in a build without FFmpeg (feature `media`): the same nouns, and every file refused by a
//! sentence.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::audio_file::AudioTrack;
use crate::media::partial::Partial;
use crate::numbers::size::Size;

/// Why a video cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Mp4Error {
    #[error(
        "{path}: this program was built without FFmpeg and writes no video; use one built with the feature `media`"
    )]
    NoMedia { path: PathBuf },
}

impl Mp4Error {
    /// Always the program's fault.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}

/// How the picture would be compressed.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    pub crf: u8,
    pub preset: String,
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

/// A video being written: there is none.
pub struct Writer(Infallible);

impl Writer {
    /// # Errors
    /// Always.
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

    pub fn frames(&self) -> usize {
        match self.0 {}
    }

    /// # Errors
    /// Never called: there is no video.
    pub fn write_frames(&mut self, _: &[u8]) -> Result<(), Mp4Error> {
        match self.0 {}
    }

    /// # Errors
    /// Never called: there is no video.
    pub fn finish(self) -> Result<PathBuf, Mp4Error> {
        match self.0 {}
    }

    /// # Errors
    /// Never called: there is no video.
    pub fn finish_partial(self) -> Result<Option<Partial>, Mp4Error> {
        match self.0 {}
    }
}
