//! Sound files in a build without FFmpeg (feature `media`): WAV files of one sampling rate.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::wav::{WavError, WavFile};

/// A reason why a sound file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file is no WAV file that this build reads.
    #[error(transparent)]
    Wav(#[from] WavError),
    /// The file has another sampling rate than the model.
    #[error(
        "{path}: sampling rate wants {wanted} Hz, got {got} Hz; \
         this program was built without FFmpeg, a build with the feature `media` resamples"
    )]
    Rate {
        /// Path of the file.
        path: PathBuf,
        /// Samples per second that the model takes.
        wanted: u32,
        /// Samples per second of the file.
        got: u32,
    },
    /// The file is too short for one feature of the model.
    #[error("{path}: wants at least {least_ms} ms of audio, got {got_ms} ms")]
    TooShort {
        /// Path of the file.
        path: PathBuf,
        /// Shortest length, in milliseconds.
        least_ms: usize,
        /// Length of the file, in milliseconds.
        got_ms: usize,
    },
    /// The output video needs sound, and this build writes none.
    #[error(
        "{path}: cannot write sound into a video: \
         this program was built without FFmpeg, use a build with the feature `media`"
    )]
    NoMedia {
        /// Path of the recording.
        path: PathBuf,
    },
}

impl AudioError {
    /// Returns `Resources` where a build with FFmpeg would succeed, and `Input` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wav(error) => error.kind(),
            Self::Rate { .. } | Self::NoMedia { .. } => ErrorKind::Resources,
            Self::TooShort { .. } => ErrorKind::Input,
        }
    }
}

/// A WAV file, decoded while it is read.
pub(crate) struct AudioFile(WavFile);

/// Consecutive samples, at least one per channel.
pub(crate) struct Chunk {
    /// Samples per second of each channel.
    pub rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Samples, `[n, channels]` interleaved.
    pub samples: Vec<f32>,
}

impl AudioFile {
    /// Opens a WAV file.
    ///
    /// # Errors
    /// A file that cannot be opened or is no WAV file that this build reads.
    pub(crate) fn open(path: &Path) -> Result<Self, AudioError> {
        Ok(Self(WavFile::open(path)?))
    }

    /// Returns FFmpeg's name of the codec.
    pub(crate) fn codec(&self) -> &'static str {
        self.0.codec()
    }

    /// Reads the next samples. Returns `None` at the end.
    ///
    /// # Errors
    /// A file that ends too early, has no sample, or holds a value that is not finite.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        let samples = self.0.next_chunk()?;
        Ok(samples.map(|samples| Chunk {
            rate: self.0.rate(),
            channels: self.0.channels(),
            samples,
        }))
    }
}

/// A sampling rate of mono sound.
#[derive(Clone, Copy)]
pub(crate) struct Pcm {
    rate: u32,
}

impl Pcm {
    /// Describes mono sound of `rate` samples per second.
    pub(crate) fn mono(rate: u32) -> Self {
        Self { rate }
    }
}

/// A stand-in for the resampler. This build has no FFmpeg, so none can be created.
pub(crate) struct Resampler(Infallible);

impl Resampler {
    /// Refuses to resample.
    ///
    /// # Errors
    /// Always [`AudioError::Rate`].
    pub(crate) fn new(path: &Path, from: Pcm, to: Pcm) -> Result<Self, AudioError> {
        Err(AudioError::Rate {
            path: path.to_owned(),
            wanted: to.rate,
            got: from.rate,
        })
    }

    /// Is never called, because no resampler exists.
    pub(crate) fn push(&mut self, _: &[f32], _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }

    /// Is never called, because no resampler exists.
    pub(crate) fn finish(&mut self, _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }
}

/// A stand-in for the sound of the output video. This build writes no video.
pub struct AudioTrack(Infallible);

impl AudioTrack {
    /// Refuses to open a recording for a video.
    ///
    /// # Errors
    /// Always [`AudioError::NoMedia`].
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        Err(AudioError::NoMedia {
            path: path.to_owned(),
        })
    }

    /// Is never called, because no track exists.
    ///
    /// # Errors
    /// None.
    pub fn skip(&mut self, _frames: usize) -> Result<(), AudioError> {
        match self.0 {}
    }
}
