//! Prepares speech for the model, and the hidden states of the speech encoder for blocks.
//!
//! wav2vec2 takes 16 kHz, normalised. Its hidden states come at 50 frames a second. This file turns
//! them into 30 and then 25 frames a second, one block at a time. It never stores the 25 fps bucket
//! of the reference. [`crate::media::audio_file::AudioTrack`] is the sound of the output video.

use std::ops::Range;
use std::path::Path;

use ndarray::{Array2, Array3, ArrayViewMut2, Axis, Zip};

use crate::media::audio_file::{AudioError, AudioFile, Pcm, Resampler};
use crate::numbers::timing::FPS;

/// Samples per second that wav2vec2 takes.
pub(crate) const RATE: u32 = 16_000;
/// Hidden states of wav2vec2-large: the input of each of 24 layers, and the normed output.
pub(crate) const HIDDEN_LAYERS: usize = 25;
/// Smallest number of samples that gives a 30 fps feature: two hidden frames.
pub(crate) const LEAST_SAMPLES: usize = 720;
/// Kernel and stride of each convolution of wav2vec2.
const CONVOLUTIONS: [(usize, usize); 7] = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)];
/// Peak (-80 dB) below which a recording counts as silent.
const SILENT_PEAK: f32 = 1e-4;

/// A recording, prepared for the model.
#[derive(Clone, Debug)]
pub struct Speech {
    /// Mono samples at 16 kHz.
    pub samples: Vec<f32>,
    /// Samples per second of the file.
    pub source_rate: u32,
    /// Channels of the file.
    pub source_channels: usize,
    /// FFmpeg's name of the file's codec.
    pub codec: &'static str,
    /// True if every sample is below -80 dB. The lips will hardly move.
    pub silent: bool,
    video_frames: usize,
}

impl Speech {
    /// Reads a whole file: the mean of its channels, resampled to 16 kHz.
    ///
    /// Source: librosa `load(path, sr=16000)` with the resampler soxr HQ. A file of 16 kHz is not
    /// resampled. A build without the feature `media` reads WAV files of 16 kHz only.
    ///
    /// # Errors
    /// A file without usable audio, or one shorter than 45 ms.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        let mut file = AudioFile::open(path)?;
        let (mut samples, mut read, mut source) = (Vec::new(), 0, None);
        let mut resampler = None;
        while let Some(chunk) = file.next_chunk()? {
            let mono: Vec<f32> = chunk
                .samples
                .chunks_exact(chunk.channels)
                .map(mean)
                .collect();
            read += mono.len();
            if source.is_none() && chunk.rate != RATE {
                let [from, to] = [chunk.rate, RATE].map(Pcm::mono);
                resampler = Some(Resampler::new(path, from, to)?);
            }
            source = Some((chunk.rate, chunk.channels));
            match &mut resampler {
                Some(resampler) => resampler.push(&mono, &mut samples)?,
                None => samples.extend(mono),
            }
        }
        if let Some(mut resampler) = resampler {
            resampler.finish(&mut samples)?;
        }
        let (source_rate, source_channels) = source.unwrap_or((RATE, 1));
        samples.resize(resampled_length(read, source_rate), 0.0);
        if samples.len() < LEAST_SAMPLES {
            let ms = |n: usize, rate: u32| n * 1000 / rate as usize;
            return Err(AudioError::TooShort {
                path: path.to_owned(),
                least_ms: ms(LEAST_SAMPLES, RATE),
                got_ms: ms(read, source_rate),
            });
        }
        let silent = samples.iter().all(|v| v.abs() < SILENT_PEAK);
        Ok(Self {
            samples,
            source_rate,
            source_channels,
            codec: file.codec(),
            silent,
            video_frames: video_frames(read, source_rate),
        })
    }

    /// Returns the length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(RATE)
    }

    /// Counts the video frames, at 25 a second, of the recording. The last one may be short.
    pub fn video_frames(&self) -> usize {
        self.video_frames
    }

    /// Returns `(x - mean) / sqrt(var + 1e-7)` over the whole file, `[samples]`, summed in f64.
    ///
    /// Source: transformers `Wav2Vec2FeatureExtractor`.
    pub fn input_values(&self) -> Vec<f32> {
        let normalise = self.normalisation();
        self.samples.iter().map(|&x| normalise.value(x)).collect()
    }

    /// Returns the normalisation of the whole file.
    pub(crate) fn normalisation(&self) -> Normalisation {
        let n = self.samples.len().max(1) as f64;
        let mean = self.samples.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = self
            .samples
            .iter()
            .map(|&x| (f64::from(x) - mean).powi(2))
            .sum::<f64>()
            / n;
        Normalisation {
            mean,
            scale: (variance + 1e-7).sqrt(),
        }
    }

    /// Counts the clips of `infer_frames` video frames that this recording fills.
    ///
    /// The last clip may end in padding.
    pub fn clips(&self, infer_frames: usize) -> usize {
        clips(features_30(hidden_frames(self.samples.len())), infer_frames)
    }
}

/// The normalisation of a recording: zero mean and unit variance.
pub(crate) struct Normalisation {
    mean: f64,
    scale: f64,
}

impl Normalisation {
    /// Returns the normalised value of a sample.
    pub(crate) fn value(&self, sample: f32) -> f32 {
        ((f64::from(sample) - self.mean) / self.scale) as f32
    }
}

/// Returns the mean of the channels of one sample.
fn mean(channels: &[f32]) -> f32 {
    channels.iter().sum::<f32>() / channels.len() as f32
}

/// Returns `ceil(n * 16000 / rate)` with librosa's product of floats.
fn resampled_length(n: usize, rate: u32) -> usize {
    if rate == RATE {
        n
    } else {
        (n as f64 * (f64::from(RATE) / f64::from(rate))).ceil() as usize
    }
}

/// Counts the video frames that `n` samples of `rate` last; the last one may be short.
fn video_frames(n: usize, rate: u32) -> usize {
    (n * FPS as usize).div_ceil(rate as usize)
}

/// Counts the hidden frames (50 a second) of `samples` at 16 kHz.
pub(crate) fn hidden_frames(samples: usize) -> usize {
    CONVOLUTIONS
        .into_iter()
        .fold(samples, |n, (kernel, stride)| {
            if n < kernel {
                0
            } else {
                (n - kernel) / stride + 1
            }
        })
}

/// Returns the fewest samples at 16 kHz whose rows at 30 fps include `row`.
pub(crate) fn samples_of_row(row: usize) -> usize {
    let enough = |hidden: &usize| features_30(*hidden) > row;
    let hidden = (row * 50 / 30..).find(enough).unwrap_or(row);
    // The convolutions undone: each input is just long enough for its outputs.
    let undo = |n: usize, (kernel, stride): (usize, usize)| (n - 1) * stride + kernel;
    CONVOLUTIONS.into_iter().rev().fold(hidden, undo)
}

/// Counts the rows at 30 fps of `hidden` rows at 50: `int(hidden / 50 * 30)`.
pub(crate) fn features_30(hidden: usize) -> usize {
    (hidden as f64 / 50.0 * 30.0) as usize
}

/// Counts the clips of `infer_frames` video frames in `rows` rows at 30 fps.
///
/// `int(rows / (infer_frames * 1.2)) + 1`, the `num_repeat` of the reference's
/// `get_audio_embed_bucket_fps`.
pub(crate) fn clips(rows: usize, infer_frames: usize) -> usize {
    (rows as f64 / (infer_frames as f64 * 1.2)) as usize + 1
}

/// Returns the 30 fps row of a video frame at 25 fps.
///
/// The row is `round(frame * 30 / 25)`. The quotient is never half-way between two rows.
pub(crate) fn row_30(frame: usize) -> usize {
    (12 * frame + 5) / 10
}

/// The hidden states of the audio encoder. Interpolation turns them into the features of blocks.
pub(crate) struct AudioFeatures {
    /// `[25, frames, dim]`, 50 frames a second.
    hidden: Array3<f32>,
}

impl AudioFeatures {
    /// Takes hidden states, `[25, frames, dim]` at 50 frames a second.
    ///
    /// Returns `None` when the length of `hidden` is not that product, or `dim` is 0.
    pub(crate) fn new(hidden: Vec<f32>, frames: usize, dim: usize) -> Option<Self> {
        let hidden = Array3::from_shape_vec((HIDDEN_LAYERS, frames, dim), hidden).ok()?;
        (dim > 0).then_some(Self { hidden })
    }

    /// Returns the width of a hidden state.
    pub(crate) fn dim(&self) -> usize {
        self.hidden.len_of(Axis(2))
    }

    /// Counts the rows at 30 fps. The features of later video frames are zero.
    pub(crate) fn rows(&self) -> usize {
        features_30(self.frames())
    }

    /// Returns one row at 30 fps of every hidden state, `[25, dim]`.
    ///
    /// # Panics
    /// If the row is not below [`Self::rows`].
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        let mut out = Array2::zeros((HIDDEN_LAYERS, self.dim()));
        self.interpolate(row, out.view_mut());
        out.into_raw_vec_and_offset().0
    }

    /// Returns the features of video frames, `[25, dim, n]`, with zeros after the recording's end.
    ///
    /// The frames are at 25 fps and count from the start of the recording. Reference:
    /// `linear_interpolation` to 30 fps (align_corners), then `get_audio_embed_bucket_fps`.
    pub(crate) fn block(&self, frames: Range<usize>) -> Vec<f32> {
        let mut out = Array3::zeros((HIDDEN_LAYERS, self.dim(), frames.len()));
        for (into, row) in out.axis_iter_mut(Axis(2)).zip(frames.map(row_30)) {
            if row < self.rows() {
                self.interpolate(row, into);
            }
        }
        out.into_raw_vec_and_offset().0
    }

    /// Counts the hidden frames, 50 a second.
    fn frames(&self) -> usize {
        self.hidden.len_of(Axis(1))
    }

    /// Computes one 30 fps row, `[25, dim]`. Positions and weights are f32, as in torch.
    fn interpolate(&self, row: usize, into: ArrayViewMut2<'_, f32>) {
        let last = self.frames() - 1;
        let scale = if self.rows() > 1 {
            last as f32 / (self.rows() - 1) as f32
        } else {
            0.0
        };
        let position = scale * row as f32;
        let first = (position as usize).min(last);
        let second = (first + 1).min(last);
        let weight = (position - first as f32).clamp(0.0, 1.0);
        Zip::from(into)
            .and(self.hidden.index_axis(Axis(1), first))
            .and(self.hidden.index_axis(Axis(1), second))
            .for_each(|value, a, b| *value = (1.0 - weight) * a + weight * b);
    }
}

#[cfg(test)]
mod tests {
    use engines::error_kind::ErrorKind;

    use super::*;
    use crate::fixtures::golden;
    #[cfg(not(feature = "media"))]
    use crate::fixtures::sound::integers;
    use crate::fixtures::sound::{floats, tone, wav};

    #[test]
    fn golden_recordings_are_heard_as_the_reference_does() {
        for set in golden::sets() {
            let recordings = [
                ("a16k", "speech_16k_mono.wav", 0.0),
                ("a44k", "speech_44k1_stereo.wav", 2e-3),
            ];
            // Without FFmpeg nothing resamples the second one.
            let readable = if cfg!(feature = "media") { 2 } else { 1 };
            for (tag, file, tolerance) in recordings.into_iter().take(readable) {
                let speech = Speech::open(&set.input(file)).unwrap();
                let worst = golden::worst(
                    &speech.samples,
                    &set.f32s("audio", &format!("{tag}.pcm16k")),
                );
                assert!(worst <= tolerance, "{tag}: {worst}");
                if let Some(want) = set.try_f32s("audio", &format!("{tag}.input_values")) {
                    let worst = golden::worst(&speech.input_values(), &want);
                    assert!(worst <= 1e-4, "{tag}: {worst}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_slices_of_the_references_bucket() {
        for set in golden::sets() {
            let [_, frames, dim] = set.shape("audio", "a16k.hidden_states")[..] else {
                panic!("hidden states")
            };
            let features =
                AudioFeatures::new(set.f32s("audio", "a16k.hidden_states"), frames, dim).unwrap();
            let [rows, repeats] =
                ["T30", "num_repeat"].map(|name| set.number(&format!("/values/audio/a16k/{name}")));
            assert_eq!(
                (features.rows(), clips(features.rows(), 48)),
                (rows, repeats)
            );
            let bucket = set.f32s("audio", "a16k.bucket");
            let worst = golden::worst(&features.block(0..48 * repeats), &bucket);
            assert!(worst <= 2e-6, "{worst}");
            let want: Vec<f32> = bucket
                .chunks(48 * repeats)
                .flat_map(|row| &row[12..24])
                .copied()
                .collect();
            assert!(golden::worst(&features.block(12..24), &want) <= 2e-6);
        }
    }

    #[test]
    fn frames_after_the_end_are_zero() {
        let features = AudioFeatures::new(vec![1.0; 25 * 50 * 2], 50, 2).unwrap();
        assert_eq!(features.rows(), 30);
        let block = features.block(24..27); // rows 29, 30, 31
        assert!(block.chunks(3).all(|row| row == [1.0, 0.0, 0.0]));
        assert!(AudioFeatures::new(vec![0.0; 10], 1, 1).is_none());
    }

    #[test]
    fn lengths_follow_the_reference() {
        for (samples, hidden, rows) in [
            (0, 0, 0),
            (399, 0, 0),
            (400, 1, 0),
            (720, 2, 1),
            (48_000, 149, 89),
            (27_200, 84, 50),
        ] {
            assert_eq!(
                (hidden_frames(samples), features_30(hidden_frames(samples))),
                (hidden, rows),
                "{samples}"
            );
        }
        assert_eq!(resampled_length(74_970, 44_100), 27_200);
        for row in 0..3000 {
            let rows = |samples| features_30(hidden_frames(samples));
            let least = samples_of_row(row);
            assert!(
                rows(least) > row && rows(least - 1) <= row,
                "{row}: {least}"
            );
        }
        for (samples, rate, frames) in [
            (1, 16_000, 1),
            (640, 16_000, 1),
            (641, 16_000, 2),
            (44_100, 44_100, 25),
            (44_101, 44_100, 26),
            (800, 16_000, 2),
        ] {
            assert_eq!(video_frames(samples, rate), frames, "{samples} at {rate}");
        }
        for set in golden::sets() {
            let table = set.i64s("audio", "length_table");
            for row in table
                .chunks(6)
                .map(|r| r.iter().map(|&v| v as usize).collect::<Vec<_>>())
            {
                let rows = features_30(hidden_frames(row[0]));
                assert_eq!(
                    [
                        hidden_frames(row[0]),
                        rows,
                        clips(rows, 12),
                        clips(rows, 48),
                        clips(rows, 80)
                    ],
                    row[1..]
                );
            }
            let index = set.i64s("audio", "bucket_index_480");
            assert!(
                index
                    .iter()
                    .enumerate()
                    .all(|(i, &row)| row_30(i) == row as usize)
            );
        }
    }

    #[test]
    fn channels_are_averaged_and_16_khz_is_left_alone() {
        let (_dir, path) = wav(
            floats(16_000, 3),
            (0..2000).flat_map(|i| [0.3, 0.6, i as f32 / 1e4]),
        );
        let speech = Speech::open(&path).unwrap();
        assert_eq!((speech.samples.len(), speech.source_channels), (2000, 3));
        assert_eq!(speech.samples[7], (0.3 + 0.6 + 7.0 / 1e4) / 3.0);
    }

    #[test]
    #[cfg(feature = "media")]
    fn a_tone_keeps_its_shape_at_every_rate() {
        for rate in [8_000, 11_025, 22_050, 44_100, 48_000, 96_000] {
            let (_dir, path) = wav(floats(rate, 1), tone(rate, 1.0));
            let speech = Speech::open(&path).unwrap();
            assert_eq!(speech.samples.len(), 16_000, "{rate}");
            let want: Vec<f32> = tone(16_000, 1.0).collect();
            let worst = golden::worst(&speech.samples[1000..15_000], &want[1000..15_000]);
            assert!(worst < 2e-3, "{rate}: {worst}");
        }
    }

    #[test]
    #[cfg(not(feature = "media"))]
    fn another_rate_is_an_error_that_names_the_build_which_resamples() {
        let (_dir, path) = wav(floats(44_100, 2), tone(44_100, 0.5).flat_map(|v| [v, v]));
        let error = Speech::open(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: sampling rate wants 16000 Hz, got 44100 Hz; this program was built without \
                 FFmpeg, a build with the feature `media` resamples",
                path.display()
            )
        );
        assert_eq!(error.kind(), ErrorKind::Resources);
    }

    #[test]
    #[cfg(not(feature = "media"))]
    fn a_recording_is_heard_without_ffmpeg() {
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 0.02));
        let error = Speech::open(&path).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("at least 45 ms of audio, got 20 ms"),
            "{error}"
        );
        let stored: Vec<i32> = (0..2000).flat_map(|i| [i, 3 * i]).collect();
        let (_dir, path) = wav(integers(16_000, 2, 16), stored);
        let speech = Speech::open(&path).unwrap();
        assert_eq!((speech.codec, speech.source_channels), ("pcm_s16le", 2));
        assert!(
            (0..2000).all(|i| speech.samples[i] == 2.0 * i as f32 / 32_768.0),
            "the mean of both channels"
        );
    }

    #[test]
    #[cfg(feature = "media")]
    fn bad_audio_is_an_error_of_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let says = |path: &Path, want: &str| {
            let error = Speech::open(path).expect_err(want);
            let text = error.to_string();
            assert!(
                text.contains(want)
                    && text.contains(path.to_str().unwrap())
                    && !text.contains('\n'),
                "{text}"
            );
            assert_eq!(error.kind(), ErrorKind::Input);
        };
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        says(&dir.path().join("none.wav"), "No such file");
        says(dir.path(), "got a folder");
        says(&file("empty.wav", b""), "the file is empty");
        says(
            &file("text.wav", b"hello, this is no sound"),
            "that FFmpeg reads",
        );
        says(
            &file("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
            "media",
        );
        let (_d, path) = wav(floats(16_000, 1), tone(16_000, 0.005));
        says(&path, "at least 45 ms of audio, got 5 ms");
        let (_d, path) = wav::<f32>(floats(16_000, 1), []);
        says(&path, "no sample could be decoded");
        for bad in [f32::NAN, f32::INFINITY] {
            let (_d, path) = wav(floats(16_000, 1), tone(16_000, 0.5).chain([bad]));
            says(&path, "audio wants finite samples");
        }
        let png = dir.path().join("picture.png");
        image::RgbImage::new(32, 32).save(&png).unwrap();
        says(&png, "wants an audio stream, found none among 1 streams");
    }

    #[test]
    fn silence_is_allowed_and_noticed() {
        let (_dir, path) = wav(floats(16_000, 1), vec![0.0; 16_000]);
        let speech = Speech::open(&path).unwrap();
        assert!(speech.silent && speech.input_values().iter().all(|&v| v == 0.0));
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 1.0));
        assert!(!Speech::open(&path).unwrap().silent);
    }
}
