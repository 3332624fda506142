//! Sound files in a build without FFmpeg (feature `media`). WAV is read with `hound`. Other files,
//! other rates and the sound of a video are refused, with the way out.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

use crate::media::wav::WavFile;

/// Why a sound file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file is no WAV file, and nothing else can be read.
    #[error(
        "{path}: this program was built without FFmpeg and reads only WAV ({source}); \
         use a program with the feature `media`"
    )]
    Wav {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        source: hound::Error,
    },
    /// The rate would have to change.
    #[error(
        "{path}: wants {to} Hz, got {from} Hz; this program was built without FFmpeg and cannot \
         resample: use a program with the feature `media`"
    )]
    Rate {
        /// The file.
        path: PathBuf,
        /// Its rate.
        from: u32,
        /// The wanted rate.
        to: u32,
    },
    /// A sample is not a number.
    #[error("{path}: audio wants finite samples, got {value} at {seconds:.3} s")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The sample.
        value: f32,
        /// Its time from the start.
        seconds: f64,
    },
    /// A video with sound would have to be written.
    #[error(
        "{path}: this program was built without FFmpeg and writes no sound; \
         use a program with the feature `media`"
    )]
    NoMedia {
        /// The recording.
        path: PathBuf,
    },
    /// The recording is too short for the model.
    #[error("{path}: wants at least {least_ms} ms of audio, got {got_ms} ms")]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Least length, in milliseconds.
        least_ms: usize,
        /// Its length, in milliseconds.
        got_ms: usize,
    },
}

impl AudioError {
    /// Returns the kind of the failure: the program's limits, or the input.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wav { .. } | Self::NotFinite { .. } | Self::TooShort { .. } => ErrorKind::Input,
            Self::Rate { .. } | Self::NoMedia { .. } => ErrorKind::Resources,
        }
    }
}

/// A WAV file, decoded as it is read.
pub(crate) struct AudioFile {
    path: PathBuf,
    file: WavFile,
    /// Frames that were read.
    read: u64,
}

/// Consecutive samples, at least one, `[n, channels]` interleaved.
pub(crate) struct Chunk {
    pub(crate) rate: u32,
    pub(crate) channels: usize,
    pub(crate) samples: Vec<f32>,
}

impl AudioFile {
    /// Opens a WAV file.
    ///
    /// # Errors
    /// [`AudioError::Wav`].
    pub(crate) fn open(path: &Path) -> Result<Self, AudioError> {
        let file = WavFile::open(path).map_err(|source| AudioError::Wav {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            read: 0,
        })
    }

    /// Returns the name of the coding.
    pub(crate) fn codec(&self) -> &'static str {
        self.file.codec()
    }

    /// Returns the next samples, or `None` at the end.
    ///
    /// # Errors
    /// The file is damaged, or a sample is not a number.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        let samples = self.file.next().map_err(|source| AudioError::Wav {
            path: self.path.clone(),
            source,
        })?;
        if let Some(at) = samples.iter().position(|s| !s.is_finite()) {
            let frame = self.read + (at / self.file.channels) as u64;
            return Err(AudioError::NotFinite {
                path: self.path.clone(),
                value: samples[at],
                seconds: frame as f64 / f64::from(self.file.rate),
            });
        }
        self.read += (samples.len() / self.file.channels) as u64;
        Ok((!samples.is_empty()).then_some(Chunk {
            rate: self.file.rate,
            channels: self.file.channels,
            samples,
        }))
    }
}

/// Interleaved f32 at a rate.
#[derive(Clone, Copy)]
pub(crate) struct Pcm(u32);

impl Pcm {
    /// One channel at `rate`.
    pub(crate) fn mono(rate: u32) -> Self {
        Self(rate)
    }
}

/// A stand-in for the resampler. This build has none, so it cannot be created.
pub(crate) struct Resampler(Infallible);

impl Resampler {
    /// Returns an error: nothing can change a rate.
    ///
    /// # Errors
    /// Always [`AudioError::Rate`].
    pub(crate) fn new(path: &Path, from: Pcm, to: Pcm) -> Result<Self, AudioError> {
        Err(AudioError::Rate {
            path: path.to_owned(),
            from: from.0,
            to: to.0,
        })
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub(crate) fn push(&mut self, _: &[f32], _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub(crate) fn finish(&mut self, _: &mut Vec<f32>) -> Result<(), AudioError> {
        match self.0 {}
    }
}

/// A stand-in for the sound of a video. This build writes none, so it cannot be created.
pub struct AudioTrack(Infallible);

impl AudioTrack {
    /// Returns an error: no sound can be written.
    ///
    /// # Errors
    /// Always [`AudioError::NoMedia`].
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        Err(AudioError::NoMedia {
            path: path.to_owned(),
        })
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn skip(&mut self, _frames: usize) -> Result<(), AudioError> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::speech::Speech;

    #[test]
    fn speech_is_read_at_its_rate_and_refused_at_another() {
        let set = &crate::fixtures::golden::sets()[0];
        let speech = Speech::open(&set.input("speech_16k_mono.wav")).unwrap();
        assert!(speech.samples.len() > 16_000);
        let error = Speech::open(&set.input("speech_44k1_stereo.wav"))
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(text.contains("wants 16000 Hz, got 44100 Hz"), "{text}");
        assert_eq!(error.kind(), ErrorKind::Resources);
        let error = Speech::open(&set.input("ref.png")).err().unwrap();
        assert!(error.to_string().contains("reads only WAV"), "{error}");
    }
}
