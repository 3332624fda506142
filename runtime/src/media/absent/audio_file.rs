//! Sound files in a build without FFmpeg (feature `media`): WAV files of one sampling rate.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::input_file::InputFileError;
use crate::media::pcm::{PipeError, Tap};
use crate::media::sound_file::SoundFile;
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
    /// No more sound comes from a pipe.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The file has less sound than when it was read first.
    #[error(
        "{path}: the recording changed while it was used: wants {wanted:.2} s, found {got:.2} s"
    )]
    Shorter {
        /// Path of the file.
        path: PathBuf,
        /// Seconds of sound that are needed.
        wanted: f64,
        /// Seconds of sound that are there.
        got: f64,
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
            Self::TooShort { .. } | Self::Shorter { .. } | Self::Pipe(_) => ErrorKind::Input,
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

impl Chunk {
    /// Makes a chunk of samples `[n, channels]`.
    pub(crate) fn new(rate: u32, channels: usize, samples: Vec<f32>) -> Self {
        Self {
            rate,
            channels,
            samples,
        }
    }

    /// Waits for the next samples of a pipe. Returns `None` at its end.
    ///
    /// # Errors
    /// The pipe cannot be read, or the run is to stop.
    pub(crate) fn arriving(tap: &mut Tap) -> Result<Option<Self>, AudioError> {
        let pcm = tap.pcm();
        let samples = tap.next_samples()?;
        Ok(samples.map(|samples| Self::new(pcm.rate, pcm.channels, samples)))
    }

    /// Returns whether another chunk has the same rate and channels.
    pub(crate) fn is_like(&self, rate: u32, channels: usize) -> bool {
        (self.rate, self.channels) == (rate, channels)
    }
}

impl From<InputFileError> for AudioError {
    fn from(error: InputFileError) -> Self {
        Self::Wav(error.into())
    }
}

impl AudioFile {
    /// Opens a WAV file.
    ///
    /// # Errors
    /// A file that cannot be opened or is no WAV file that this build reads.
    pub(crate) fn of(file: &SoundFile) -> Result<Self, AudioError> {
        Ok(Self(WavFile::of(file)?))
    }

    /// Returns `None`: the header of a WAV file tells its length.
    pub(crate) fn announced_seconds(&self) -> Option<f64> {
        None
    }

    /// Returns FFmpeg's name of the codec.
    pub(crate) fn codec(&self) -> &'static str {
        self.0.codec()
    }

    /// Reads the next samples. Returns `None` at the end.
    ///
    /// # Errors
    /// A file that cannot be read, has no sample, or holds a value that is not finite.
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

/// What the video takes of a recording's sound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TrackSound {
    /// Channels of the track, 1 or 2.
    pub(crate) channels: usize,
    /// The only channel of the recording that is heard, or all.
    pub(crate) only: Option<usize>,
    /// Factor of every sample.
    pub(crate) gain: f32,
    /// The only sampling rate that the video takes, or any of those that it takes.
    pub(crate) rate: Option<u32>,
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

    /// Refuses to open a recording for a video.
    ///
    /// # Errors
    /// Always [`AudioError::NoMedia`].
    pub(crate) fn of(source: &SoundFile, _sound: TrackSound) -> Result<Self, AudioError> {
        Self::open(source.path())
    }

    /// Refuses sound that arrives for a video.
    ///
    /// # Errors
    /// Always [`AudioError::NoMedia`].
    pub(crate) fn arriving(
        tap: Tap,
        _only: Option<usize>,
        _rate: Option<u32>,
    ) -> Result<Self, AudioError> {
        Self::open(tap.path())
    }

    /// Is never called, because no track exists.
    ///
    /// # Errors
    /// None.
    pub fn skip(&mut self, _frames: usize) -> Result<(), AudioError> {
        match self.0 {}
    }
}
