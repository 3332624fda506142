//! Reads WAV files with `hound`: the only sound files of a build without FFmpeg.
//!
//! The samples are bit for bit those that FFmpeg gives for the same file. A build with the feature
//! `media` compiles this file for its tests only, which compare the two.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use hound::{SampleFormat, WavReader, WavSpec};

use crate::media::input_file::InputFileError;
use crate::media::sound_file::{Reader, SoundFile};
use crate::media::wav_header::WavHeader;

/// Samples per channel of one chunk.
const CHUNK: usize = 4096;

/// A reason why a WAV file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] InputFileError),
    /// The system cannot read the file.
    #[error("{path}: cannot read the WAV file: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// The file is of another kind, or its header is damaged.
    #[error(
        "{path}: wants a WAV file, {reason}; a build with the feature `media` reads other files"
    )]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// Fault that `hound` found.
        reason: String,
    },
    /// The samples are stored in a way that `hound` does not decode.
    #[error(
        "{path}: WAV samples want 8, 16, 24 or 32 bits of PCM or 32 bits of float, got {got}; \
         a build with the feature `media` decodes others"
    )]
    Samples {
        /// Path of the file.
        path: PathBuf,
        /// Stored kind of sample.
        got: String,
    },
    /// The sampling rate is zero.
    #[error("{path}: sampling rate wants at least 1 Hz, got 0 Hz")]
    Rate {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file has a header and no sample.
    #[error("{path}: WAV data wants at least 1 sample, got none")]
    NoSamples {
        /// Path of the file.
        path: PathBuf,
    },
    /// A sample is infinite or not a number.
    #[error("{path}: audio wants finite samples, got {value} at {seconds:.3} s")]
    NotFinite {
        /// Path of the file.
        path: PathBuf,
        /// The sample.
        value: f32,
        /// Time of the sample.
        seconds: f64,
    },
}

impl WavError {
    /// Returns `Resources` where another build would read the file, and `Input` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Samples { .. } => ErrorKind::Resources,
            _ => ErrorKind::Input,
        }
    }
}

/// A WAV file, decoded while it is read.
pub(crate) struct WavFile {
    path: PathBuf,
    reader: WavReader<BufReader<Reader>>,
    codec: &'static str,
    /// Samples of all channels that were read.
    read: u32,
}

impl WavFile {
    /// Reads the header of an opened file.
    ///
    /// # Errors
    /// A file that is no WAV file, or whose samples `hound` does not decode.
    pub(crate) fn of(file: &SoundFile) -> Result<Self, WavError> {
        let path = file.path().to_owned();
        let failed = |error| failure(file.path(), error);
        let reader = WavReader::new(BufReader::new(file.reader())).map_err(failed)?;
        let spec = reader.spec();
        // `hound` would read the low bits of a wide container, which are not the sample.
        let bits = spec.bits_per_sample;
        let stored = file.wav().map_or(bits, WavHeader::container_bits);
        let codec = codec(spec).filter(|_| stored == bits);
        let codec = codec.ok_or_else(|| WavError::Samples {
            path: path.clone(),
            got: format!(
                "{bits} bits of {:?}, stored in {stored} bits",
                spec.sample_format
            ),
        })?;
        if spec.sample_rate == 0 {
            return Err(WavError::Rate { path });
        }
        Ok(Self {
            path,
            reader,
            codec,
            read: 0,
        })
    }

    /// Returns FFmpeg's name of the codec.
    pub(crate) fn codec(&self) -> &'static str {
        self.codec
    }

    /// Returns the samples per second of each channel.
    pub(crate) fn rate(&self) -> u32 {
        self.reader.spec().sample_rate
    }

    /// Returns the number of channels.
    pub(crate) fn channels(&self) -> usize {
        usize::from(self.reader.spec().channels)
    }

    /// Reads the next samples, `[n, channels]` interleaved. Returns `None` at the end.
    ///
    /// # Errors
    /// A file that cannot be read, has no sample, or holds a value that is not finite.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Vec<f32>>, WavError> {
        let wanted = CHUNK * self.channels();
        let WavSpec {
            sample_format,
            bits_per_sample,
            ..
        } = self.reader.spec();
        let mut samples = Vec::new();
        let filled = match sample_format {
            SampleFormat::Float => fill(&mut samples, self.reader.samples::<f32>().take(wanted)),
            SampleFormat::Int => {
                let full_scale = f64::from(1u32 << (bits_per_sample - 1));
                let value = |v: i32| (f64::from(v) / full_scale) as f32;
                let stored = self.reader.samples::<i32>().take(wanted);
                fill(&mut samples, stored.map(|v| v.map(value)))
            }
        };
        let before = self.read;
        self.read += samples.len() as u32;
        filled.map_err(|error| failure(&self.path, error))?;
        self.check_finite(&samples, before)?;
        match samples.is_empty() {
            false => Ok(Some(samples)),
            true if self.read > 0 => Ok(None),
            true => Err(WavError::NoSamples {
                path: self.path.clone(),
            }),
        }
    }

    /// Refuses a sample that is infinite or not a number. `before` samples precede these.
    fn check_finite(&self, samples: &[f32], before: u32) -> Result<(), WavError> {
        let Some(at) = samples.iter().position(|v| !v.is_finite()) else {
            return Ok(());
        };
        let frame = (before as usize + at) / self.channels();
        Err(WavError::NotFinite {
            path: self.path.clone(),
            value: samples[at],
            seconds: frame as f64 / f64::from(self.rate()),
        })
    }
}

/// Appends samples up to the first failure.
fn fill(
    samples: &mut Vec<f32>,
    stored: impl Iterator<Item = hound::Result<f32>>,
) -> hound::Result<()> {
    for sample in stored {
        samples.push(sample?);
    }
    Ok(())
}

/// Returns FFmpeg's name of a codec that `hound` decodes as FFmpeg does.
fn codec(spec: WavSpec) -> Option<&'static str> {
    match (spec.sample_format, spec.bits_per_sample) {
        (SampleFormat::Int, 8) => Some("pcm_u8"),
        (SampleFormat::Int, 16) => Some("pcm_s16le"),
        (SampleFormat::Int, 24) => Some("pcm_s24le"),
        (SampleFormat::Int, 32) => Some("pcm_s32le"),
        (SampleFormat::Float, 32) => Some("pcm_f32le"),
        _ => None,
    }
}

/// Turns `hound`'s error into one that names the file.
fn failure(path: &Path, error: hound::Error) -> WavError {
    let path = path.to_owned();
    match error {
        hound::Error::IoError(source) if source.raw_os_error().is_some() => {
            WavError::Read { path, source }
        }
        hound::Error::IoError(_) => WavError::Format {
            path,
            reason: "the file ends in its header".to_owned(),
        },
        hound::Error::Unsupported | hound::Error::TooWide => WavError::Samples {
            path,
            got: "another codec or width".to_owned(),
        },
        error => WavError::Format {
            path,
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sound::{floats, integers, tone, wav};

    fn read(path: &Path) -> Result<Vec<f32>, WavError> {
        let mut file = WavFile::of(&SoundFile::open(path)?)?;
        let mut samples = Vec::new();
        while let Some(chunk) = file.next_chunk()? {
            samples.extend(chunk);
        }
        Ok(samples)
    }

    /// Integers of `bits`, with both ends of the range, over more than one chunk.
    fn stored(bits: u16, channels: u16) -> Vec<i32> {
        let full = 1i64 << (bits - 1);
        let ends = [-full, full - 1, 0, -1, 1, full / 3];
        let count = i64::from(channels) * (CHUNK as i64 + 100);
        let ramp = (0..count).map(|i| i * 7919 % (2 * full) - full);
        ramp.enumerate()
            .map(|(i, v)| *ends.get(i).unwrap_or(&v) as i32)
            .collect()
    }

    #[test]
    fn integers_become_fractions_of_their_full_scale() {
        for (bits, name) in [
            (8, "pcm_u8"),
            (16, "pcm_s16le"),
            (24, "pcm_s24le"),
            (32, "pcm_s32le"),
        ] {
            for channels in [1, 2, 6] {
                let stored = stored(bits, channels);
                let (_dir, path) = wav(integers(16_000, channels, bits), stored.iter().copied());
                let file = WavFile::of(&SoundFile::open(&path).unwrap()).unwrap();
                assert_eq!(
                    (file.codec(), file.rate(), file.channels()),
                    (name, 16_000, usize::from(channels))
                );
                let scale = f64::from(bits - 1).exp2();
                let want: Vec<f32> = stored
                    .iter()
                    .map(|&v| (f64::from(v) / scale) as f32)
                    .collect();
                assert_eq!(read(&path).unwrap(), want, "{bits} bits x {channels}");
            }
        }
    }

    #[test]
    fn floats_stay_as_they_are() {
        let (_dir, path) = wav(floats(48_000, 1), tone(48_000, 0.2).chain([1.5, -0.0]));
        let want: Vec<f32> = tone(48_000, 0.2).chain([1.5, -0.0]).collect();
        assert_eq!(read(&path).unwrap(), want);
    }

    #[test]
    #[cfg(feature = "media")]
    fn samples_are_ffmpegs_bit_for_bit() {
        let check = |path: &Path| {
            let mut file = crate::media::audio_file::AudioFile::open(path).unwrap();
            let (mut want, mut shape) = (Vec::new(), None);
            while let Some(chunk) = file.next_chunk().unwrap() {
                shape = Some((file.codec(), chunk.rate, chunk.channels));
                want.extend(chunk.samples.into_iter().map(f32::to_bits));
            }
            let ours = WavFile::of(&SoundFile::open(path).unwrap()).unwrap();
            assert_eq!(
                Some((ours.codec(), ours.rate(), ours.channels())),
                shape,
                "{}",
                path.display()
            );
            let got = read(path).unwrap();
            assert!(!got.is_empty());
            let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
            assert!(got == want, "{}: {shape:?}", path.display());
        };
        for channels in [1, 2, 3, 6] {
            for bits in [8, 16, 24, 32] {
                let samples = stored(bits, channels);
                check(&wav(integers(16_000, channels, bits), samples).1);
            }
            let samples = tone(16_000, 0.5).flat_map(|v| vec![v; usize::from(channels)]);
            check(&wav(floats(16_000, channels), samples).1);
        }
        for set in crate::fixtures::golden::sets() {
            for name in ["speech_16k_mono.wav", "speech_44k1_stereo.wav"] {
                check(&set.input(name));
            }
        }
    }

    #[test]
    fn a_bad_file_is_an_error_that_names_the_file_wanted_and_got() {
        let (dir, good) = wav(integers(16_000, 2, 16), stored(16, 2));
        let good = std::fs::read(good).unwrap();
        let says = |bytes: &[u8], kind: ErrorKind, want: &str| {
            let path = dir.path().join("bad.wav");
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).expect_err(want);
            let text = error.to_string();
            assert!(
                text.starts_with(path.to_str().unwrap()) && !text.contains('\n'),
                "{text}"
            );
            assert!(text.contains(want), "{text}");
            assert_eq!(error.kind(), kind, "{text}");
        };
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        let input = ErrorKind::Input;
        says(b"", input, "the file is empty");
        says(b"hello, this is no sound", input, "got a text file");
        says(b"fLaC\0\0\0\x22", input, "wants a WAV file, ");
        says(&good[..30], input, "the file ends in its header");
        says(
            &with(40, &[0; 4])[..44],
            input,
            "at least 1 sample, got none",
        );
        says(&with(22, &[0; 2]), input, "zero channels");
        says(&with(24, &[0; 8]), input, "at least 1 Hz, got 0 Hz");
        says(
            &with(20, &[2]),
            ErrorKind::Resources,
            "32 bits of float, got another codec",
        );
        let (_dir, nan) = wav(floats(16_000, 1), tone(16_000, 0.5).chain([f32::NAN]));
        says(
            &std::fs::read(nan).unwrap(),
            input,
            "finite samples, got NaN at 0.500 s",
        );
        assert!(matches!(
            SoundFile::open(dir.path()),
            Err(InputFileError::Folder { .. })
        ));
    }

    /// Makes a file of one sample, -2^22 of 24 bits, in the high bits of 32.
    fn narrow() -> Vec<u8> {
        let mut file = b"RIFF\x40\0\0\0WAVEfmt \x28\0\0\0\xfe\xff\x01\0".to_vec();
        file.extend([16_000_u32, 64_000].map(u32::to_le_bytes).concat());
        // Bytes of a frame, bits of the container, length of the extension, valid bits.
        file.extend([4_u16, 32, 22, 24].map(u16::to_le_bytes).concat());
        file.extend(b"\0\0\0\0\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71");
        file.extend(b"data\x04\0\0\0");
        file.extend((-(1_i32 << 22) << 8).to_le_bytes());
        file
    }

    #[test]
    fn samples_narrower_than_their_container_are_its_high_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("narrow.wav");
        std::fs::write(&path, narrow()).unwrap();
        assert_eq!(read(&path).unwrap(), [-0.5]);
    }

    #[test]
    #[cfg(feature = "media")]
    fn ffmpeg_reads_samples_narrower_than_their_container_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("narrow.wav");
        std::fs::write(&path, narrow()).unwrap();
        let mut file = crate::media::audio_file::AudioFile::open(&path).unwrap();
        assert_eq!(file.next_chunk().unwrap().unwrap().samples, [-0.5]);
    }

    #[test]
    fn a_file_is_read_as_far_as_it_goes() {
        let (dir, good) = wav(integers(16_000, 2, 16), stored(16, 2));
        let good = std::fs::read(good).unwrap();
        let path = dir.path().join("short.wav");
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        let whole = stored(16, 2).len();
        assert_eq!(read(&path).unwrap().len(), whole - 2);
        // A program that writes into a pipe does not know the length.
        let mut streamed = good;
        streamed[40..44].fill(0xff);
        std::fs::write(&path, streamed).unwrap();
        assert_eq!(read(&path).unwrap().len(), whole);
    }
}
