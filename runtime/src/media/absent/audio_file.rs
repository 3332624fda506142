//! Sound files in a build without FFmpeg (feature `media`): the same nouns, and every file refused by a sentence.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// Why a sound file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    #[error(
        "{path}: this program was built without FFmpeg and reads no sound; use one built with the feature `media`"
    )]
    NoMedia { path: PathBuf },
    #[error("{path}: wants at least {least_ms} ms of audio, got {got_ms} ms")]
    TooShort {
        path: PathBuf,
        least_ms: usize,
        got_ms: usize,
    },
}

impl AudioError {
    /// The program's fault, or the input's.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMedia { .. } => ErrorKind::Resources,
            Self::TooShort { .. } => ErrorKind::Input,
        }
    }

    pub(crate) fn no_media(path: &Path) -> Self {
        Self::NoMedia {
            path: path.to_owned(),
        }
    }
}

/// A sound file that was opened: there is none.
pub struct AudioFile(Infallible);

/// Consecutive samples, at least one, `[n, channels]` interleaved.
pub struct Chunk {
    pub rate: u32,
    pub channels: usize,
    pub samples: Vec<f32>,
}

impl AudioFile {
    /// # Errors
    /// Always.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        Err(AudioError::no_media(path))
    }

    pub fn codec(&self) -> &'static str {
        match self.0 {}
    }

    /// # Errors
    /// Never called: there is no file.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        match self.0 {}
    }
}

/// Interleaved f32 at a rate.
#[derive(Clone, Copy)]
pub(crate) struct Pcm;

impl Pcm {
    pub(crate) fn mono(_rate: u32) -> Self {
        Self
    }
}

/// Changes rates: there is none.
pub(crate) struct Resampler(Infallible);

impl Resampler {
    pub(crate) fn new(path: &Path, _: Pcm, _: Pcm) -> Result<Self, AudioError> {
        Err(AudioError::no_media(path))
    }

    pub(crate) fn push(&mut self, _: &[f32], _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }

    pub(crate) fn finish(&mut self, _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }
}

/// The sound of a video: there is none.
pub struct AudioTrack(Infallible);

impl AudioTrack {
    /// # Errors
    /// Always.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        Err(AudioError::no_media(path))
    }

    /// # Errors
    /// Never called: there is no track.
    pub fn skip(&mut self, _frames: usize) -> Result<(), AudioError> {
        match self.0 {}
    }
}
