//! Prepares speech for the model, and the hidden states of the speech encoder for blocks.
//!
//! wav2vec2 takes 16 kHz, normalised. Its hidden states come at 50 frames a second. This file turns
//! them into 30 and then 25 frames a second, one block at a time. It never stores the 25 fps bucket
//! of the reference. [`crate::media::audio_file::AudioTrack`] is the sound of the output video.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, ArrayView3, ArrayViewMut2, Axis, Zip, concatenate, s};

use crate::media::audio_file::{
    AudioError, AudioFile, AudioTrack, Chunk, Pcm, Resampler, TrackSound,
};
use crate::media::sound_file::SoundFile;
use crate::media::wav_header::WavHeader;
use crate::numbers::timing::FPS;

/// Samples per second that wav2vec2 takes.
pub(crate) const RATE: u32 = 16_000;
/// Hidden states of wav2vec2-large: the input of each of 24 layers, and the normed output.
pub(crate) const HIDDEN_LAYERS: usize = 25;
/// Smallest number of samples that gives a 30 fps feature: two hidden frames.
pub(crate) const LEAST_SAMPLES: usize = 720;
/// Kernel and stride of each convolution of wav2vec2.
const CONVOLUTIONS: [(usize, usize); 7] = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)];
/// Part of a lone channel's energy in the mean, -14 dB, below which channels cancel each other.
///
/// For two channels this is 20 dB below the louder one. Two voices, or a room, stay above -10 dB.
const CANCELLED: f64 = 0.04;
/// Seconds that a file may lack before this is told. Lead-ins and padding of codecs are shorter.
const SHORTFALL: f64 = 0.15;
/// Samples that wait for the end of a piece. A resampler is off by fewer.
const WAITING: usize = 4096;
/// Peak (-80 dB) below which a recording counts as silent.
const SILENT_PEAK: f32 = 1e-4;

/// A recording, prepared for the model.
#[derive(Clone, Debug)]
pub struct Speech {
    /// Mono samples at 16 kHz: all, or the first ones where no more are needed.
    pub samples: Vec<f32>,
    /// Samples per second of the file, at its beginning.
    pub source_rate: u32,
    /// Channels of the file, at its beginning.
    pub source_channels: usize,
    /// FFmpeg's name of the file's codec.
    pub codec: &'static str,
    /// True if every sample is below -80 dB. The lips will hardly move.
    pub silent: bool,
    /// Samples of the whole recording at 16 kHz.
    length: usize,
    video_frames: usize,
    moments: Moments,
    file: SoundFile,
    facts: Facts,
    /// The only channel that is heard, or all.
    only: Option<usize>,
}

/// The channels of a recording that are heard, by the model and in the video.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channels {
    /// All of them, mixed: the reference's way. If they cancel each other, the loudest one.
    #[default]
    Mix,
    /// The first one.
    Left,
    /// The second one, or the only one.
    Right,
}

impl Channels {
    /// Returns the only channel, or `None` for all.
    pub(crate) fn only(self) -> Option<usize> {
        match self {
            Self::Mix => None,
            Self::Left => Some(0),
            Self::Right => Some(1),
        }
    }
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
        Self::listen(path, Channels::Mix, usize::MAX)
    }

    /// Reads the channels of a whole file that are asked for, and keeps `most` samples of 16 kHz.
    ///
    /// Length, normalisation and notices are those of the whole file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn listen(path: &Path, channels: Channels, most: usize) -> Result<Self, AudioError> {
        let file = SoundFile::open(path)?;
        let heard = Self::read(&file, channels.only(), most)?;
        match (channels, heard.facts.cancelled()) {
            (Channels::Mix, Some(loudest)) => Self::read(&file, Some(loudest), most),
            _ => Ok(heard),
        }
    }

    /// Reads one channel, or the mean of all.
    fn read(source: &SoundFile, only: Option<usize>, most: usize) -> Result<Self, AudioError> {
        let mut file = AudioFile::of(source)?;
        let mut mono = Mono::new(source.path(), Survey::new(most));
        let (mut facts, mut first) = (Facts::default(), None);
        while let Some(chunk) = file.next_chunk()? {
            first.get_or_insert((chunk.rate, chunk.channels));
            facts.take(&chunk);
            mono.take(&chunk, only)?;
        }
        mono.finish()?;
        let (source_rate, source_channels) = first.unwrap_or((RATE, 1));
        let video_frames = mono.video_frames();
        let survey = mono.settled;
        if survey.moments.count < LEAST_SAMPLES {
            return Err(AudioError::TooShort {
                path: source.path().to_owned(),
                least_ms: LEAST_SAMPLES * 1000 / RATE as usize,
                got_ms: (facts.seconds * 1000.0) as usize,
            });
        }
        facts.announced = match source.wav() {
            Some(header) => header.announced_part().map(|part| part * facts.seconds),
            None => file.announced_seconds(),
        };
        Ok(Self {
            source_rate,
            source_channels,
            codec: file.codec(),
            silent: survey.peak < SILENT_PEAK,
            length: survey.moments.count,
            video_frames,
            moments: survey.moments,
            samples: survey.samples,
            file: source.clone(),
            facts,
            only,
        })
    }

    /// Reads the samples of the model again, in mono at 16 kHz.
    ///
    /// # Errors
    /// The recording cannot be decoded.
    pub(crate) fn reading(&self) -> Result<Reading, AudioError> {
        Ok(Reading {
            file: AudioFile::of(&self.file)?,
            mono: Mono::new(self.file.path(), Held::default()),
            only: self.only,
            ended: false,
        })
    }

    /// Opens the sound of the video, at `rate` where its container takes no other.
    ///
    /// # Errors
    /// The recording cannot be decoded or resampled.
    pub(crate) fn track(&self, rate: Option<u32>) -> Result<AudioTrack, AudioError> {
        let channels = match self.only {
            Some(_) => 1,
            None => self.facts.channels.min(2),
        };
        let sound = TrackSound {
            channels,
            only: self.only,
            gain: 1.0 / self.facts.peak.max(1.0),
            rate,
        };
        AudioTrack::of(&self.file, sound)
    }

    /// Says how the recording was used where it is not as its header or a listener expects.
    pub(crate) fn notices(&self) -> Vec<String> {
        let (facts, seconds) = (&self.facts, self.facts.seconds);
        let mut notices = Vec::new();
        if self.silent {
            notices.push("recording is silent; the lips will hardly move".to_owned());
        }
        if let Some(announced) = facts.announced.filter(|&s| s > seconds + SHORTFALL) {
            notices.push(format!(
                "recording is cut off: its header announces {announced:.2} s, the file has \
                 {seconds:.2} s, which are used"
            ));
        }
        let surplus = seconds * self.file.wav().map_or(0.0, WavHeader::surplus_part);
        if surplus > SHORTFALL {
            notices.push(format!(
                "recording is longer than its header says: the header announces {seconds:.2} s, \
                 which are used; {surplus:.2} s follow"
            ));
        }
        if facts.cancelled().is_some() && self.only.is_some() {
            let [mix, loudest] = [facts.mix, facts.loudest().1].map(|e| 10.0 * e.log10());
            let lost = loudest - mix;
            let lost = if lost.is_finite() {
                format!("by {lost:.0} dB")
            } else {
                "wholly".to_owned()
            };
            notices.push(format!(
                "channels of the recording cancel each other {lost}: only channel {} is used; \
                 --audio_channel left or right chooses one",
                self.only.unwrap_or(0) + 1
            ));
        }
        if facts.peak > 1.0 {
            let (over, above) = (facts.over, 20.0 * facts.peak.log10());
            notices.push(format!(
                "recording has {over} sample{} above full scale, by {above:.1} dB at most: the \
                 video's sound is {above:.1} dB lower, and nothing is clipped",
                if over == 1 { "" } else { "s" }
            ));
        }
        if facts.formats > 1 {
            notices.push(format!(
                "recording changes its rate or channels: {} pieces are converted one by one",
                facts.formats
            ));
        }
        notices
    }

    /// Returns the length in seconds.
    pub fn seconds(&self) -> f64 {
        self.length as f64 / f64::from(RATE)
    }

    /// Counts the samples of the whole recording at 16 kHz.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Counts the video frames, at 25 a second, that the recording lasts. The last may be short.
    pub fn video_frames(&self) -> usize {
        self.video_frames
    }

    /// Returns `(x - mean) / sqrt(var + 1e-7)` of [`Self::samples`]. Mean and variance are those of
    /// the whole file, summed in f64.
    ///
    /// Source: transformers `Wav2Vec2FeatureExtractor`.
    pub fn input_values(&self) -> Vec<f32> {
        let normalise = self.normalisation();
        self.samples.iter().map(|&x| normalise.value(x)).collect()
    }

    /// Returns the normalisation of the whole file.
    pub(crate) fn normalisation(&self) -> Normalisation {
        self.moments.normalisation()
    }

    /// Counts the clips of `infer_frames` video frames that this recording fills.
    ///
    /// The last clip may end in padding.
    pub fn clips(&self, infer_frames: usize) -> usize {
        clips(features_30(hidden_frames(self.length)), infer_frames)
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

/// Mean and variance of samples that come in parts, in f64.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) count: usize,
    mean: f64,
    /// Sum of the squared differences from the mean.
    squares: f64,
}

impl Moments {
    /// Adds samples, by the formula of Chan, Golub and LeVeque for two parts.
    pub(super) fn take(&mut self, samples: &[f32]) {
        if samples.is_empty() {
            return;
        }
        let (before, n) = (self.count as f64, samples.len() as f64);
        let values = || samples.iter().map(|&x| f64::from(x));
        let mean = values().sum::<f64>() / n;
        let squares = values().map(|x| (x - mean).powi(2)).sum::<f64>();
        let (apart, all) = (mean - self.mean, before + n);
        self.squares += squares + apart.powi(2) * before * n / all;
        self.mean += apart * n / all;
        self.count += samples.len();
    }

    fn variance(&self) -> f64 {
        self.squares / self.count.max(1) as f64
    }

    /// Returns the normalisation of the samples.
    pub(super) fn normalisation(&self) -> Normalisation {
        Normalisation {
            mean: self.mean,
            scale: (self.variance() + 1e-7).sqrt(),
        }
    }
}

/// Takes the samples of a recording in order, in mono at 16 kHz.
pub(super) trait Settled {
    fn settle(&mut self, samples: &[f32]);
}

/// What is kept of a recording that is read for the first time.
struct Survey {
    /// The first samples, at most `most`.
    samples: Vec<f32>,
    most: usize,
    moments: Moments,
    /// Largest absolute value.
    peak: f32,
}

impl Survey {
    fn new(most: usize) -> Self {
        Self {
            samples: Vec::new(),
            most,
            moments: Moments::default(),
            peak: 0.0,
        }
    }
}

impl Settled for Survey {
    fn settle(&mut self, samples: &[f32]) {
        self.moments.take(samples);
        self.peak = samples.iter().fold(self.peak, |peak, v| peak.max(v.abs()));
        let room = self.most.saturating_sub(self.samples.len());
        self.samples.extend(&samples[..samples.len().min(room)]);
    }
}

/// The samples that a second reading has, from one of them on.
#[derive(Default)]
pub(super) struct Held {
    /// Place of the first in the recording.
    pub(super) first: usize,
    pub(super) samples: Vec<f32>,
}

impl Held {
    pub(super) fn end(&self) -> usize {
        self.first + self.samples.len()
    }

    /// Drops the samples before `place`, or all that are there.
    pub(super) fn forget_before(&mut self, place: usize) {
        let gone = place.min(self.end()).saturating_sub(self.first);
        self.samples.drain(..gone);
        self.first += gone;
    }
}

impl Settled for Held {
    fn settle(&mut self, samples: &[f32]) {
        self.samples.extend(samples);
    }
}

/// Reads a recording again from its start, in mono at 16 kHz, and holds the part that is asked for.
pub(crate) struct Reading {
    file: AudioFile,
    mono: Mono<Held>,
    only: Option<usize>,
    ended: bool,
}

impl Reading {
    /// Counts the samples that are in memory.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.mono.settled.samples.len()
    }

    /// Returns the samples of `range`. Ranges begin later and later.
    ///
    /// # Errors
    /// The rest of the file cannot be decoded, or ends before `range` does.
    ///
    /// # Panics
    /// If `range` begins before the last one did.
    pub(crate) fn samples(&mut self, range: Range<usize>) -> Result<&[f32], AudioError> {
        loop {
            let held = &mut self.mono.settled;
            held.forget_before(range.start);
            if self.ended || held.end() >= range.end {
                break;
            }
            match self.file.next_chunk()? {
                Some(chunk) => self.mono.take(&chunk, self.only)?,
                None => {
                    self.ended = true;
                    self.mono.finish()?;
                }
            }
        }
        let held = &self.mono.settled;
        let part = held
            .samples
            .get(range.start - held.first..range.end - held.first);
        part.ok_or_else(|| AudioError::Shorter {
            path: self.mono.path.clone(),
            wanted: range.end as f64 / f64::from(RATE),
            got: held.end() as f64 / f64::from(RATE),
        })
    }
}

/// The samples of a recording on their way to mono at 16 kHz.
///
/// A recording that changes its rate or channels is converted piece by piece.
pub(super) struct Mono<S> {
    path: PathBuf,
    pub(super) settled: S,
    /// Samples that wait for the end of a piece.
    waits: usize,
    /// Samples that `settled` took.
    taken: usize,
    /// Samples that the end of a piece may still cut.
    waiting: Vec<f32>,
    piece: Option<Piece>,
    /// Lengths of the finished pieces: samples and rate.
    lengths: Vec<(usize, u32)>,
}

/// Consecutive samples of one rate.
struct Piece {
    rate: u32,
    /// Samples of the file.
    read: usize,
    /// Place of its first sample at 16 kHz.
    begin: usize,
    resampler: Option<Resampler>,
}

impl<S: Settled> Mono<S> {
    pub(super) fn new(path: &Path, settled: S) -> Self {
        Self {
            path: path.to_owned(),
            settled,
            waits: WAITING,
            taken: 0,
            waiting: Vec::new(),
            piece: None,
            lengths: Vec::new(),
        }
    }

    /// Takes samples as soon as they are there. The last piece may be off by a few samples.
    pub(super) fn at_once(self) -> Self {
        Self { waits: 0, ..self }
    }

    /// Appends a chunk: one channel, or the mean of all.
    pub(super) fn take(&mut self, chunk: &Chunk, only: Option<usize>) -> Result<(), AudioError> {
        let samples = chunk.samples.chunks_exact(chunk.channels);
        let mono: Vec<f32> = match only.map(|at| at.min(chunk.channels - 1)) {
            None => samples.map(mean).collect(),
            Some(at) => samples.map(|channels| channels[at]).collect(),
        };
        if self.piece.as_ref().is_none_or(|p| p.rate != chunk.rate) {
            self.finish()?;
            self.piece = Some(self.begin(chunk.rate)?);
        }
        let Some(piece) = &mut self.piece else {
            return Ok(());
        };
        piece.read += mono.len();
        match &mut piece.resampler {
            Some(resampler) => resampler.push(&mono, &mut self.waiting)?,
            None => self.waiting.extend(mono),
        }
        if self.waiting.len() > 2 * self.waits {
            self.settle(self.waiting.len() - self.waits);
        }
        Ok(())
    }

    fn begin(&self, rate: u32) -> Result<Piece, AudioError> {
        let new = || Resampler::new(&self.path, Pcm::mono(rate), Pcm::mono(RATE));
        Ok(Piece {
            rate,
            read: 0,
            begin: self.taken,
            resampler: (rate != RATE).then(new).transpose()?,
        })
    }

    /// Ends the piece at hand.
    pub(super) fn finish(&mut self) -> Result<(), AudioError> {
        let Some(mut piece) = self.piece.take() else {
            return Ok(());
        };
        if let Some(resampler) = &mut piece.resampler {
            resampler.finish(&mut self.waiting)?;
        }
        let end = piece.begin + resampled_length(piece.read, piece.rate);
        let left = end.saturating_sub(self.taken);
        self.waiting.resize(left, 0.0);
        self.settle(left);
        self.lengths.push((piece.read, piece.rate));
        Ok(())
    }

    /// Takes the first `n` of the waiting samples as they are.
    fn settle(&mut self, n: usize) {
        self.settled.settle(&self.waiting[..n]);
        self.taken += n;
        self.waiting.drain(..n);
    }

    /// Counts the video frames of all pieces.
    pub(super) fn video_frames(&self) -> usize {
        match self.lengths[..] {
            // The resampled length of a single piece may be rounded up.
            [(read, rate)] => video_frames(read, rate),
            _ => video_frames(self.taken, RATE),
        }
    }
}

/// Facts of a recording that decide how it is used.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Seconds of sound.
    seconds: f64,
    /// Seconds of sound that the file announces.
    announced: Option<f64>,
    /// Most channels.
    channels: usize,
    /// Pieces of one rate and one number of channels.
    formats: usize,
    format: Option<(u32, usize)>,
    /// Largest absolute value.
    peak: f32,
    /// Samples above full scale.
    over: usize,
    /// Energy of each channel, where there are several.
    energies: Vec<f64>,
    /// Energy of their mean.
    mix: f64,
}

impl Facts {
    fn take(&mut self, chunk: &Chunk) {
        let frames = chunk.samples.chunks_exact(chunk.channels);
        self.seconds += frames.len() as f64 / f64::from(chunk.rate);
        self.channels = self.channels.max(chunk.channels);
        let like = |&(rate, channels): &(u32, usize)| chunk.is_like(rate, channels);
        if !self.format.as_ref().is_some_and(like) {
            self.formats += 1;
            self.format = Some((chunk.rate, chunk.channels));
        }
        for value in &chunk.samples {
            self.peak = self.peak.max(value.abs());
            self.over += usize::from(value.abs() > 1.0);
        }
        if chunk.channels < 2 {
            return;
        }
        self.energies.resize(self.channels, 0.0);
        for frame in frames {
            self.mix += f64::from(mean(frame)).powi(2);
            for (energy, &value) in self.energies.iter_mut().zip(frame) {
                *energy += f64::from(value).powi(2);
            }
        }
    }

    /// Returns the loudest channel and its energy.
    fn loudest(&self) -> (usize, f64) {
        let each = self.energies.iter().copied().enumerate();
        each.fold((0, 0.0), |a, b| if b.1 > a.1 { b } else { a })
    }

    /// Returns the loudest channel, if the mean of all has lost nearly all of it.
    ///
    /// A channel alone among silent ones keeps `1 / channels` of its level in the mean.
    fn cancelled(&self) -> Option<usize> {
        let (channel, energy) = self.loudest();
        let alone = energy / (self.energies.len().max(1) as f64).powi(2);
        (alone > 0.0 && self.mix < CANCELLED * alone).then_some(channel)
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

/// Hidden frames of the longest sound whose positions are torch's f32: ten minutes.
const F32_FRAMES: usize = 30_000;

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
    /// `[25, frames, dim]`, 50 frames a second: a part of the sound, or the whole.
    hidden: Array3<f32>,
    /// First frame of the part.
    first: usize,
    /// Frames of the whole sound.
    whole: usize,
}

impl AudioFeatures {
    /// Takes the hidden states of a whole sound, `[25, frames, dim]` at 50 frames a second.
    ///
    /// Returns `None` when the length of `hidden` is not that product, or `dim` is 0.
    pub(crate) fn new(hidden: Vec<f32>, frames: usize, dim: usize) -> Option<Self> {
        let hidden = Array3::from_shape_vec((HIDDEN_LAYERS, frames, dim), hidden).ok()?;
        Self::of_part(hidden, 0, frames)
    }

    /// Takes the hidden states of a part, `[25, frames, dim]`, of a sound of `whole` frames.
    ///
    /// Returns `None` when there are other than 25 states, or `dim` is 0.
    pub(crate) fn of_part(hidden: Array3<f32>, first: usize, whole: usize) -> Option<Self> {
        let (states, _, dim) = hidden.dim();
        (states == HIDDEN_LAYERS && dim > 0).then_some(Self {
            hidden,
            first,
            whole,
        })
    }

    /// Returns the width of a hidden state.
    pub(crate) fn dim(&self) -> usize {
        self.hidden.len_of(Axis(2))
    }

    /// Counts the rows at 30 fps of the whole sound. Features of later video frames are zero.
    pub(crate) fn rows(&self) -> usize {
        features_30(self.whole)
    }

    /// Returns one row at 30 fps of every hidden state, `[25, dim]`.
    ///
    /// # Panics
    /// If the row is not below [`Self::rows`], or lies outside the part.
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
    ///
    /// # Panics
    /// If a frame needs hidden states outside the part.
    pub(crate) fn block(&self, frames: Range<usize>) -> Vec<f32> {
        let mut out = Array3::zeros((HIDDEN_LAYERS, self.dim(), frames.len()));
        for (into, row) in out.axis_iter_mut(Axis(2)).zip(frames.map(row_30)) {
            if row < self.rows() {
                self.interpolate(row, into);
            }
        }
        out.into_raw_vec_and_offset().0
    }

    /// Returns the hidden frames that the features of video frames need.
    pub(crate) fn needed(frames: &Range<usize>, whole: usize) -> Range<usize> {
        let last = features_30(whole).saturating_sub(1);
        let of = |frame: usize| hidden_of_row(row_30(frame).min(last), whole).0;
        let [first, _] = of(frames.start);
        let [_, end] = of(frames.end.max(1) - 1);
        first..(end + 1).min(whole)
    }

    /// Returns the end of the part.
    pub(crate) fn end(&self) -> usize {
        self.first + self.hidden.len_of(Axis(1))
    }

    /// Appends hidden states `[25, frames, dim]` that follow the part, and drops those before
    /// `first`.
    ///
    /// # Panics
    /// If the states have another number or width.
    pub(crate) fn follow(&mut self, next: &ArrayView3<'_, f32>, first: usize) {
        let gone = first.clamp(self.first, self.end()) - self.first;
        let rest = self.hidden.slice(s![.., gone.., ..]);
        let joined = concatenate(Axis(1), &[rest, next.view()]).expect("states of one model");
        (self.hidden, self.first) = (joined, self.first + gone);
    }

    /// Computes one 30 fps row, `[25, dim]`.
    fn interpolate(&self, row: usize, into: ArrayViewMut2<'_, f32>) {
        let (pair, weight) = hidden_of_row(row, self.whole);
        let [first, second] = pair.map(|at| at - self.first);
        Zip::from(into)
            .and(self.hidden.index_axis(Axis(1), first))
            .and(self.hidden.index_axis(Axis(1), second))
            .for_each(|value, a, b| *value = (1.0 - weight) * a + weight * b);
    }
}

/// Returns the two hidden frames around a 30 fps row of a sound, and the weight of the second.
///
/// Positions and weights are f32, as in torch, up to [`F32_FRAMES`]. Beyond, f32 cannot tell
/// neighbouring positions apart at last, and positions are f64.
pub(crate) fn hidden_of_row(row: usize, whole: usize) -> ([usize; 2], f32) {
    let (last, rows) = (whole.saturating_sub(1), features_30(whole));
    if whole > F32_FRAMES {
        let position = last as f64 / (rows - 1) as f64 * row as f64;
        let first = (position as usize).min(last);
        let weight = (position - first as f64).clamp(0.0, 1.0) as f32;
        return ([first, (first + 1).min(last)], weight);
    }
    let scale = if rows > 1 {
        last as f32 / (rows - 1) as f32
    } else {
        0.0
    };
    let position = scale * row as f32;
    let first = (position as usize).min(last);
    let weight = (position - first as f32).clamp(0.0, 1.0);
    ([first, (first + 1).min(last)], weight)
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
            "got a text file",
        );
        says(&file("noise", &[0xf1; 999]), "that FFmpeg reads");
        says(
            &file("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
            "got a playlist (M3U or HLS); name the sound file itself",
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

    /// Returns the level of samples at 16 kHz, as the root of their mean square.
    fn level(samples: &[f32]) -> f32 {
        (samples.iter().map(|v| v * v).sum::<f32>() / samples.len() as f32).sqrt()
    }

    #[test]
    fn channels_that_cancel_are_replaced_by_the_loudest() {
        for (factor, cancels) in [(-1.0, true), (-0.98, true), (-0.5, false), (0.0, false)] {
            let stereo = tone(16_000, 1.0).flat_map(|v| [v, factor * v]);
            let (_dir, path) = wav(floats(16_000, 2), stereo);
            let speech = Speech::open(&path).unwrap();
            let want = if cancels { 1.0 } else { (1.0 + factor) / 2.0 };
            let want: Vec<f32> = tone(16_000, 1.0).map(|v| v * want).collect();
            assert!(golden::worst(&speech.samples, &want) < 1e-6, "{factor}");
            let told = speech
                .notices()
                .iter()
                .any(|n| n.contains("cancel each other"));
            assert_eq!((told, speech.silent), (cancels, false), "{factor}");
        }
        // A voice in the centre of six channels, and no sound at all, cancel nothing.
        for centre in [0.5, 0.0] {
            let six = tone(16_000, 1.0).flat_map(|v| [0.0, 0.0, centre * v, 0.0, 0.0, 0.0]);
            let (_dir, path) = wav(floats(16_000, 6), six);
            let speech = Speech::open(&path).unwrap();
            assert!(!speech.notices().iter().any(|n| n.contains("cancel")));
        }
    }

    #[test]
    fn a_part_of_the_samples_has_the_facts_of_the_whole() {
        let stereo = tone(16_000, 3.0).enumerate();
        let stereo = stereo.flat_map(|(i, v)| [v * (1.0 + i as f32 / 2e4), 0.2 + v]);
        let (_dir, path) = wav(floats(16_000, 2), stereo);
        let whole = Speech::open(&path).unwrap();
        let part = Speech::listen(&path, Channels::Mix, 10_000).unwrap();
        assert_eq!(part.samples, whole.samples[..10_000]);
        assert_eq!(part.input_values(), whole.input_values()[..10_000]);
        assert_eq!(
            (part.seconds(), part.video_frames(), part.clips(48)),
            (3.0, 75, 2)
        );
        let n = whole.samples.len() as f64;
        let values = || whole.samples.iter().map(|&x| f64::from(x));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let normalisation = part.normalisation();
        assert!((normalisation.mean - mean).abs() < 1e-12);
        assert!((normalisation.scale - (variance + 1e-7).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn positions_are_exact_in_a_long_sound() {
        // Ten minutes and a frame, 10,000 s and 1,000,000 s.
        for whole in [30_001, 500_000, 50_000_000_usize] {
            let (last, rows) = (whole as u128 - 1, features_30(whole) as u128);
            for row in [0, 1, 7, 1_000, rows / 3, rows - 2, rows - 1] {
                // The position in exact arithmetic: a fraction over the last row.
                let (whole_part, rest) = (row * last / (rows - 1), row * last % (rows - 1));
                let weight = rest as f64 / (rows - 1) as f64;
                let ([first, second], got) = hidden_of_row(row as usize, whole);
                let off = first as f64 + f64::from(got) - whole_part as f64 - weight;
                assert!(off.abs() < 1e-6, "row {row} of {whole}: {off}");
                assert_eq!(second, (first + 1).min(last as usize));
            }
        }
        // Where f32 is left, it is still right to a fiftieth of a millisecond.
        let ([first, _], weight) = hidden_of_row(17_000, 30_000);
        let off = first as f64 + f64::from(weight) - 17_000.0 * 29_999.0 / 17_999.0;
        assert!(off.abs() < 1e-3, "{off}");
    }

    #[test]
    fn features_that_follow_take_the_place_of_older_ones() {
        let hidden = Array3::from_shape_fn((25, 400, 2), |(q, t, d)| (q + 3 * t * t + d) as f32);
        let whole = AudioFeatures::of_part(hidden.clone(), 0, 400).unwrap();
        let none = hidden.slice(s![.., 0..0, ..]).to_owned();
        let mut part = AudioFeatures::of_part(none, 0, 400).unwrap();
        let mut parts = (0..400)
            .step_by(100)
            .map(|t| hidden.slice(s![.., t..t + 100, ..]));
        for block in 0..17 {
            let frames = 12 * block..12 * (block + 1);
            let needed = AudioFeatures::needed(&frames, 400);
            while part.end() < needed.end {
                part.follow(&parts.next().unwrap(), needed.start);
                assert!(part.hidden.len_of(Axis(1)) < 130);
            }
            assert_eq!(part.block(frames.clone()), whole.block(frames), "{block}");
        }
        assert!(parts.next().is_none());
    }

    #[test]
    fn a_part_of_the_hidden_states_gives_the_same_features() {
        let hidden = Array3::from_shape_fn((25, 400, 2), |(q, t, d)| (q + 3 * t * t + d) as f32);
        let part = hidden.slice(ndarray::s![.., 90..200, ..]).to_owned();
        let part = AudioFeatures::of_part(part, 90, 400).unwrap();
        let whole = AudioFeatures::of_part(hidden, 0, 400).unwrap();
        assert_eq!(part.block(48..96), whole.block(48..96));
    }

    #[test]
    fn one_channel_is_heard_where_it_is_asked_for() {
        let (_dir, path) = wav(
            floats(16_000, 2),
            tone(16_000, 0.5).flat_map(|v| [v, v / 4.0]),
        );
        let level = |channels| level(&Speech::listen(&path, channels, usize::MAX).unwrap().samples);
        let [mix, left, right] = [Channels::Mix, Channels::Left, Channels::Right].map(level);
        assert!((mix / left - 0.625).abs() < 1e-4 && (right / left - 0.25).abs() < 1e-4);
        #[cfg(feature = "media")]
        for (channels, wanted, value) in [
            (Channels::Mix, 2, 1.0),
            (Channels::Left, 1, 1.0),
            (Channels::Right, 1, 0.25),
        ] {
            let mut track = Speech::listen(&path, channels, usize::MAX)
                .unwrap()
                .track(None)
                .unwrap();
            assert_eq!(track.channels(), wanted);
            let loudest = track.read(20_000).unwrap().into_iter().fold(0.0, f32::max);
            assert!(
                (loudest - value / 2.0).abs() < 1e-3,
                "{channels:?}: {loudest}"
            );
        }
    }

    #[test]
    #[cfg(feature = "media")]
    fn sound_above_full_scale_is_lowered_and_told() {
        let (_dir, path) = wav(floats(48_000, 1), tone(48_000, 1.0).map(|v| 4.0 * v));
        let speech = Speech::open(&path).unwrap();
        let told = speech.notices().join("; ");
        assert!(told.contains("by 6.0 dB at most"), "{told}");
        let track = speech.track(None).unwrap().read(48_000).unwrap();
        let want: Vec<f32> = tone(48_000, 1.0).map(|v| 2.0 * v).collect();
        assert!(golden::worst(&track, &want) < 1e-5);
        // Full scale itself is no fault.
        let (_dir, path) = wav(floats(48_000, 1), tone(48_000, 1.0).map(|v| 2.0 * v));
        let speech = Speech::open(&path).unwrap();
        assert!(speech.notices().is_empty() && speech.facts.peak <= 1.0);
    }

    #[test]
    #[cfg(feature = "media")]
    fn a_recording_may_change_its_rate_and_channels() {
        use crate::fixtures::encoded::Encoded;
        let dir = tempfile::tempdir().unwrap();
        let joined = dir.path().join("joined");
        for (codec, ending, rates) in [
            ("aac", "aac", [(48_000, 1), (24_000, 1)]),
            ("libmp3lame", "mp3", [(48_000, 1), (48_000, 2)]),
        ] {
            let parts = rates.map(|(rate, channels)| {
                let path = dir.path().join(format!("{rate}.{channels}.{ending}"));
                let samples: Vec<f32> = tone(rate, 1.0).collect();
                let sound = Encoded {
                    codec,
                    rate,
                    samples: &samples,
                    channels,
                    begins: None,
                };
                sound.write(&path);
                std::fs::read(path).unwrap()
            });
            std::fs::write(&joined, parts.concat()).unwrap();
            let speech = Speech::open(&joined).unwrap();
            assert!(
                (speech.seconds() - 2.0).abs() < 0.2,
                "{} s",
                speech.seconds()
            );
            for at in [4_000, 20_000, 28_000] {
                let level = level(&speech.samples[at..at + 3000]);
                assert!((level - 0.3535).abs() < 0.03, "{ending} at {at}: {level}");
            }
            let told = speech.notices().join("; ");
            assert!(told.contains("2 pieces"), "{told}");
            let mut track = speech.track(None).unwrap();
            let track_seconds = track.rate() as usize * track.channels();
            let sound = track.read(2 * track.rate() as usize).unwrap();
            for at in [track_seconds / 4, 7 * track_seconds / 4] {
                let level = level(&sound[at..at + 9000]);
                assert!((level - 0.3535).abs() < 0.03, "{ending}, track: {level}");
            }
        }
    }

    #[test]
    #[cfg(feature = "media")]
    fn a_truncated_recording_is_used_and_told() {
        use crate::fixtures::encoded::Encoded;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mp3");
        let samples: Vec<f32> = tone(48_000, 3.0).collect();
        let sound = Encoded {
            codec: "libmp3lame",
            rate: 48_000,
            samples: &samples,
            channels: 1,
            begins: None,
        };
        sound.write(&path);
        assert_eq!(Speech::open(&path).unwrap().notices(), Vec::<String>::new());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
        let speech = Speech::open(&path).unwrap();
        assert!(
            (speech.seconds() - 2.0).abs() < 0.1,
            "{} s",
            speech.seconds()
        );
        let told = speech.notices().join("; ");
        assert!(told.contains("announces 3.0"), "{told}");
    }

    #[test]
    fn a_wav_file_with_a_wrong_length_is_used_and_told() {
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 2.0));
        let whole = std::fs::read(&path).unwrap();
        assert!(Speech::open(&path).unwrap().notices().is_empty());
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let speech = Speech::open(&path).unwrap();
        assert!((speech.seconds() - 1.0).abs() < 0.01);
        let told = speech.notices().join("; ");
        assert!(
            told.contains("announces 2.00 s, the file has 1.00 s"),
            "{told}"
        );
        let mut short = whole;
        let at = short.windows(4).position(|w| w == b"data").unwrap() + 4;
        short[at..at + 4].copy_from_slice(&32_000_u32.to_le_bytes());
        std::fs::write(&path, &short).unwrap();
        let speech = Speech::open(&path).unwrap();
        let told = speech.notices().join("; ");
        assert_eq!(speech.seconds(), 0.5);
        assert!(
            told.contains("0.50 s, which are used; 1.50 s follow"),
            "{told}"
        );
    }
}
