//! Decodes sound from any file that FFmpeg reads, chunk by chunk.
//!
//! [`AudioFile`] gives the stored samples. [`AudioTrack`] gives the sound of the output video.
//! [`crate::inputs::speech`] prepares the samples for the model.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use ffmpeg_next::format::Sample;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::format::sample::Type;
use ffmpeg_next::software::resampling::Context as Swr;
use ffmpeg_next::{
    ChannelLayout, Dictionary, Error, Packet, Rational, Stream, codec, decoder, ffi, frame, media,
};

use crate::media::ffmpeg::{self, OpenError};
use crate::media::input_file::InputFileError;
use crate::media::pcm::{PipeError, Tap};
use crate::media::sound_file::SoundFile;
use crate::numbers::timing::FPS;

/// A reason why a file gives no usable sound.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file has no sound.
    #[error("{path}: wants an audio stream, found none among {streams} streams")]
    NoStream {
        /// Path of the file.
        path: PathBuf,
        /// Streams of the file.
        streams: usize,
    },
    /// FFmpeg cannot decode the sound.
    #[error("{path}: cannot decode the audio stream ({codec}): {source}")]
    Decode {
        /// Path of the file.
        path: PathBuf,
        /// FFmpeg's name of the codec.
        codec: &'static str,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// The stream ends without a sample.
    #[error("{path}: audio stream is empty or damaged, no sample could be decoded")]
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
    /// FFmpeg cannot change the sampling rate.
    #[error(
        "{path}: cannot resample from {from} Hz to {to} Hz: {source} \
         (FFmpeg must be built with libsoxr)"
    )]
    Resample {
        /// Path of the file.
        path: PathBuf,
        /// Samples per second of the file.
        from: u32,
        /// Samples per second that were asked for.
        to: u32,
        /// Answer of FFmpeg.
        source: Error,
    },
}

impl AudioError {
    /// Returns `Resources` where FFmpeg lacks its resampler or a disk is full, and `Input`
    /// otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Resample { .. } => ErrorKind::Resources,
            _ => ErrorKind::Input,
        }
    }
}

impl From<InputFileError> for AudioError {
    fn from(error: InputFileError) -> Self {
        Self::Open(error.into())
    }
}

/// The best audio stream of a file, decoded while it is read.
///
/// Silence stands before a stream that begins later than the file, such as the sound of a video.
pub(crate) struct AudioFile {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Audio,
    codec: &'static str,
    time_base: Rational,
    /// Seconds of sound by the header of the file.
    announced: Option<f64>,
    /// Seconds of sound so far.
    seconds: f64,
    /// The first chunk, which waits for the silence before it.
    first: Option<Chunk>,
    /// Samples of silence before the first chunk.
    silence: usize,
    drained: bool,
}

/// Consecutive samples, at least one per channel.
pub(crate) struct Chunk {
    /// Samples per second of each channel.
    pub rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Samples, `[n, channels]` interleaved.
    pub samples: Vec<f32>,
    layout: ChannelLayout,
}

impl Chunk {
    /// Makes a chunk of samples `[n, channels]` in the usual places.
    pub(crate) fn new(rate: u32, channels: usize, samples: Vec<f32>) -> Self {
        Self {
            rate,
            channels,
            samples,
            layout: ChannelLayout::default(channels as i32),
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

/// Longest silence before a stream that begins later than its file, in seconds. Timestamps that
/// ask for more are damaged.
const LONGEST_SILENCE: f64 = 3600.0;
/// Shortest such silence. Containers round times to a millisecond.
const SHORTEST_SILENCE: f64 = 0.002;
/// Samples of silence in one chunk.
const SILENT_CHUNK: usize = 4096;

impl AudioFile {
    /// Opens the best audio stream of a file.
    ///
    /// # Errors
    /// A file that cannot be opened, or as [`Self::of`].
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> Result<Self, AudioError> {
        Self::of(&SoundFile::open(path)?)
    }

    /// Opens the best audio stream of an opened file. The sound track of a video is one too.
    ///
    /// # Errors
    /// A file that FFmpeg does not recognise, that has no audio stream, or whose codec is unknown.
    pub(crate) fn of(file: &SoundFile) -> Result<Self, AudioError> {
        let (path, input) = (file.path(), ffmpeg::open_sound(file)?);
        let Some(stream) = input.streams().best(media::Type::Audio) else {
            return Err(AudioError::NoStream {
                path: path.to_owned(),
                streams: input.streams().count(),
            });
        };
        let (index, parameters, time_base) =
            (stream.index(), stream.parameters(), stream.time_base());
        let codec = parameters.id().name();
        let decode = |source| AudioError::Decode {
            path: path.to_owned(),
            codec,
            source,
        };
        let mut context = codec::Context::from_parameters(parameters)
            .map_err(decode)?
            .decoder();
        context.set_packet_time_base(time_base);
        let decoder = context.audio().map_err(decode)?;
        let announced = announced_seconds(&input, &stream);
        Ok(Self {
            path: path.to_owned(),
            stream: index,
            decoder,
            codec,
            time_base,
            announced,
            seconds: 0.0,
            first: None,
            silence: 0,
            drained: false,
            input,
        })
    }

    /// Returns FFmpeg's name of the codec.
    pub(crate) fn codec(&self) -> &'static str {
        self.codec
    }

    /// Returns the seconds of sound that the file announces, where it does.
    pub(crate) fn announced_seconds(&self) -> Option<f64> {
        self.announced
    }

    /// Decodes the next samples. Returns `None` at the end.
    ///
    /// It skips a damaged packet, as players do. Chunks may differ in rate and channels.
    ///
    /// # Errors
    /// The rest of the file cannot be read, or holds a value that is not finite.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        if let Some(first) = &self.first {
            let n = self.silence.min(SILENT_CHUNK);
            self.silence -= n;
            return Ok(match n {
                0 => self.first.take(),
                _ => Some(Chunk {
                    samples: vec![0.0; n * first.channels],
                    ..*first
                }),
            });
        }
        let mut frame = frame::Audio::empty();
        loop {
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => {
                    let begins = self.seconds == 0.0;
                    let chunk = self.chunk(&frame)?;
                    if chunk.samples.is_empty() {
                        continue;
                    }
                    let silence = if begins {
                        self.silence_before(&frame)
                    } else {
                        0
                    };
                    if silence > 0 {
                        (self.silence, self.first) = (silence, Some(chunk));
                        return self.next_chunk();
                    }
                    return Ok(Some(chunk));
                }
                Err(Error::Eof) if self.seconds == 0.0 => {
                    return Err(AudioError::NoSamples {
                        path: self.path.clone(),
                    });
                }
                Err(Error::Eof) => return Ok(None),
                Err(Error::Other {
                    errno: ffmpeg_next::error::EAGAIN,
                }) => self.feed()?,
                Err(Error::InvalidData) => {}
                Err(source) => return Err(self.decode_error(source)),
            }
        }
    }

    /// Gives the next packet to the decoder, or the end of the file. It skips damaged packets.
    fn feed(&mut self) -> Result<(), AudioError> {
        if self.drained {
            return Err(self.decode_error(Error::Bug));
        }
        let mut packet = Packet::empty();
        let sent = match packet.read(&mut self.input) {
            Ok(()) if packet.stream() == self.stream => self.decoder.send_packet(&packet),
            Ok(()) | Err(Error::InvalidData) => Ok(()),
            Err(Error::Eof) => {
                self.drained = true;
                self.decoder.send_eof()
            }
            Err(source) => Err(source),
        };
        match sent {
            Ok(()) | Err(Error::InvalidData) => Ok(()),
            Err(source) => Err(self.decode_error(source)),
        }
    }

    /// Adds the file and its codec to FFmpeg's error.
    fn decode_error(&self, source: Error) -> AudioError {
        AudioError::Decode {
            path: self.path.clone(),
            codec: self.codec,
            source,
        }
    }

    /// Turns a frame into samples, without the encoder's lead-in.
    fn chunk(&mut self, frame: &frame::Audio) -> Result<Chunk, AudioError> {
        let (rate, channels) = (frame.rate(), usize::from(frame.channels()));
        let samples = interleaved(frame).filter(|_| rate > 0 && channels > 0);
        let mut samples = samples.ok_or_else(|| self.decode_error(Error::PatchWelcome))?;
        samples.drain(..channels * self.lead_in(frame));
        if let Some(at) = samples.iter().position(|v| !v.is_finite()) {
            return Err(AudioError::NotFinite {
                path: self.path.clone(),
                value: samples[at],
                seconds: self.seconds + (at / channels) as f64 / f64::from(rate),
            });
        }
        self.seconds += (samples.len() / channels) as f64 / f64::from(rate);
        Ok(Chunk {
            rate,
            channels,
            samples,
            layout: frame.channel_layout(),
        })
    }

    /// Counts the samples of a frame before time 0. They are an encoder's lead-in.
    fn lead_in(&self, frame: &frame::Audio) -> usize {
        let before = frame.pts().map_or(0, |pts| (-pts).max(0)) as f64
            * f64::from(self.time_base)
            * f64::from(frame.rate());
        frame.samples().min(before.round() as usize)
    }

    /// Counts the samples of silence between the start of the file and the first frame.
    fn silence_before(&self, frame: &frame::Audio) -> usize {
        let begin = start_seconds(&self.input).unwrap_or(0.0).max(0.0);
        let first = frame
            .pts()
            .map_or(0.0, |pts| pts as f64 * f64::from(self.time_base));
        let silence = first - begin;
        if (SHORTEST_SILENCE..LONGEST_SILENCE).contains(&silence) {
            (silence * f64::from(frame.rate())).round() as usize
        } else {
            0
        }
    }
}

/// Returns the time of the earliest stream of a file, where it is known.
fn start_seconds(input: &Input) -> Option<f64> {
    #[expect(unsafe_code, reason = "the wrapper does not give the file's start")]
    // SAFETY: the context is valid as long as `input` is.
    let start = unsafe { (*input.as_ptr()).start_time };
    (start != ffi::AV_NOPTS_VALUE).then(|| start as f64 / f64::from(ffi::AV_TIME_BASE))
}

/// Returns the seconds of a stream by the header of its file, or `None` where FFmpeg guesses.
fn announced_seconds(input: &Input, stream: &Stream<'_>) -> Option<f64> {
    use ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_STREAM;
    #[expect(unsafe_code, reason = "the wrapper does not give the method")]
    // SAFETY: the context is valid as long as `input` is.
    let method = unsafe { (*input.as_ptr()).duration_estimation_method };
    let known = method == AVFMT_DURATION_FROM_STREAM && stream.duration() > 0;
    known.then(|| stream.duration() as f64 * f64::from(stream.time_base()))
}

/// Returns the samples of a frame, `[n, channels]`, or `None` for an unknown format.
///
/// Integers are divided by their full scale, as libsndfile does.
fn interleaved(frame: &frame::Audio) -> Option<Vec<f32>> {
    match frame.format() {
        Sample::U8(kind) => Some(collect(frame, kind, |[b]| (f32::from(b) - 128.0) / 128.0)),
        Sample::I16(kind) => Some(collect(frame, kind, |b| {
            f32::from(i16::from_ne_bytes(b)) / 32_768.0
        })),
        Sample::I32(kind) => Some(collect(frame, kind, |b| {
            (f64::from(i32::from_ne_bytes(b)) / 2_147_483_648.0) as f32
        })),
        Sample::I64(kind) => Some(collect(frame, kind, |b| {
            (i64::from_ne_bytes(b) as f64 / 9_223_372_036_854_775_808.0) as f32
        })),
        Sample::F32(kind) => Some(collect(frame, kind, f32::from_ne_bytes)),
        Sample::F64(kind) => Some(collect(frame, kind, |b| f64::from_ne_bytes(b) as f32)),
        Sample::None => None,
    }
}

/// Collects the samples of a frame, `[n, channels]`, from one plane or from one per channel.
fn collect<const N: usize>(
    frame: &frame::Audio,
    kind: Type,
    value: impl Fn([u8; N]) -> f32,
) -> Vec<f32> {
    let (n, channels) = (frame.samples(), usize::from(frame.channels()));
    let values = |bytes: &[u8], count: usize| {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .take(count)
            .map(|&b| value(b))
            .collect::<Vec<_>>()
    };
    if kind == Type::Packed {
        return values(frame.data(0), n * channels);
    }
    let planes: Vec<Vec<f32>> = (0..channels).map(|c| values(frame.data(c), n)).collect();
    (0..n)
        .flat_map(|i| planes.iter().map(move |p| p[i]))
        .collect()
}

/// A converter of rates and channels: swresample with the engine soxr.
///
/// It has soxr's high quality, 20 bits.
pub(crate) struct Resampler {
    swr: Swr,
    path: PathBuf,
}

/// A format of interleaved f32 samples.
#[derive(Clone, Copy)]
pub(crate) struct Pcm {
    /// Samples per second of each channel.
    pub(crate) rate: u32,
    /// Channels and their places.
    pub(crate) layout: ChannelLayout,
}

impl Pcm {
    /// Describes mono sound of `rate` samples per second.
    pub(crate) fn mono(rate: u32) -> Self {
        Self {
            rate,
            layout: ChannelLayout::MONO,
        }
    }
}

/// Interleaved f32 samples.
const F32: Sample = Sample::F32(Type::Packed);

impl Resampler {
    /// Prepares a conversion. `path` stands in the errors only.
    ///
    /// # Errors
    /// FFmpeg has no engine for it.
    pub(crate) fn new(path: &Path, from: Pcm, to: Pcm) -> Result<Self, AudioError> {
        let mut options = Dictionary::new();
        if from.rate != to.rate {
            options.set("resampler", "soxr");
            options.set("precision", "20");
        }
        // Without this, channels of floats are added without a bound. FFmpeg's mix of integers has
        // this one: the weights of an output add up to 1 at most.
        options.set("rematrix_maxval", "1.0");
        let made = Swr::get_with(
            F32,
            from.layout,
            from.rate,
            F32,
            to.layout,
            to.rate,
            options,
        );
        let failed = |source| AudioError::Resample {
            path: path.to_owned(),
            from: from.rate,
            to: to.rate,
            source,
        };
        Ok(Self {
            swr: made.map_err(failed)?,
            path: path.to_owned(),
        })
    }

    /// Takes samples, `[n, channels]`, and appends those that are ready to `out`.
    ///
    /// # Errors
    /// FFmpeg refuses the conversion.
    pub(crate) fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) -> Result<(), AudioError> {
        let (from, to) = (*self.swr.input(), *self.swr.output());
        let n = samples.len() / from.channel_layout.channels() as usize;
        let mut input = frame::Audio::new(F32, n, from.channel_layout);
        input.set_rate(from.rate);
        input.plane_mut::<f32>(0).copy_from_slice(samples);
        let room = n * to.rate as usize / from.rate as usize + SLACK;
        let mut output = frame::Audio::new(F32, room, to.channel_layout);
        self.swr
            .run(&input, &mut output)
            .map_err(|e| self.failed(e))?;
        out.extend_from_slice(output.plane::<f32>(0));
        Ok(())
    }

    /// Appends the remaining samples to `out`.
    ///
    /// # Errors
    /// FFmpeg refuses the conversion.
    pub(crate) fn finish(&mut self, out: &mut Vec<f32>) -> Result<(), AudioError> {
        loop {
            let mut output = frame::Audio::new(F32, SLACK, self.swr.output().channel_layout);
            self.swr.flush(&mut output).map_err(|e| self.failed(e))?;
            if output.samples() == 0 {
                return Ok(());
            }
            out.extend_from_slice(output.plane::<f32>(0));
        }
    }

    /// Adds the file and its rates to FFmpeg's error.
    fn failed(&self, source: Error) -> AudioError {
        AudioError::Resample {
            path: self.path.clone(),
            from: self.swr.input().rate,
            to: self.swr.output().rate,
            source,
        }
    }
}

/// Room, in samples, beyond the expected result of one call.
const SLACK: usize = 4096;
/// Rates of a track, each a whole number of samples per video frame.
///
/// Other rates become 48 kHz. A low one must not stay: the lead-in of an AAC encoder is 1024
/// samples. At 16 kHz these last longer than a video frame, and not every player skips them.
const TRACK_RATES: [u32; 2] = [48_000, 44_100];

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

/// Where the sound of a track comes from.
enum Origin {
    File(Box<AudioFile>),
    Pipe(Tap),
}

impl Origin {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        match self {
            Self::File(file) => file.next_chunk(),
            Self::Pipe(tap) => Chunk::arriving(tap),
        }
    }
}

/// The sound of the output video: the original recording, in mono or stereo.
///
/// It keeps a rate of 44.1 or 48 kHz; any other becomes 48 kHz. It is read while the video grows,
/// and silent after the end of the recording. A recording that changes its format is converted
/// piece by piece.
pub struct AudioTrack {
    origin: Origin,
    path: PathBuf,
    rate: u32,
    sound: TrackSound,
    /// Rate, channels and converter of the piece at hand.
    piece: Option<(u32, usize, Option<Resampler>)>,
    ready: VecDeque<f32>,
    ended: bool,
}

impl AudioTrack {
    /// Opens the recording and decodes its beginning.
    ///
    /// # Errors
    /// The file cannot be opened or decoded, or FFmpeg cannot resample it.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        Self::open_at(path, None)
    }

    /// As [`Self::open`], at `rate` samples per second if it is given.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_at(path: &Path, rate: Option<u32>) -> Result<Self, AudioError> {
        let file = SoundFile::open(path)?;
        let first = AudioFile::of(&file)?.next_chunk()?;
        let sound = TrackSound {
            channels: first.map_or(1, |chunk| chunk.channels.min(2)),
            only: None,
            gain: 1.0,
            rate,
        };
        Self::of(&file, sound)
    }

    /// Opens the track of an opened recording and decodes its beginning.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn of(source: &SoundFile, sound: TrackSound) -> Result<Self, AudioError> {
        let path = source.path().to_owned();
        let mut file = AudioFile::of(source)?;
        let first = file
            .next_chunk()?
            .ok_or_else(|| AudioError::NoSamples { path: path.clone() })?;
        let rate = first.rate;
        let mut track = Self::begin(Origin::File(Box::new(file)), path, rate, sound);
        track.take(first)?;
        Ok(track)
    }

    /// Makes the track of a sound that arrives: all of its channels, or only one. It has `rate`
    /// samples per second if that is given.
    ///
    /// # Errors
    /// None here; a build without FFmpeg has one.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "a build without FFmpeg refuses it"
    )]
    pub(crate) fn arriving(
        tap: Tap,
        only: Option<usize>,
        rate: Option<u32>,
    ) -> Result<Self, AudioError> {
        let (pcm, path) = (tap.pcm(), tap.path().to_owned());
        let sound = TrackSound {
            channels: only.map_or(pcm.channels.min(2), |_| 1),
            only,
            gain: 1.0,
            rate,
        };
        Ok(Self::begin(Origin::Pipe(tap), path, pcm.rate, sound))
    }

    fn begin(origin: Origin, path: PathBuf, source: u32, sound: TrackSound) -> Self {
        let kept = TRACK_RATES.contains(&source).then_some(source);
        Self {
            origin,
            path,
            rate: sound.rate.or(kept).unwrap_or(TRACK_RATES[0]),
            sound,
            piece: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// Returns the samples per second of each channel.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Returns the number of channels, 1 or 2.
    pub fn channels(&self) -> usize {
        self.sound.channels
    }

    /// Counts the samples per channel of `frames` of video. The count is exact for every rate.
    pub fn samples_of(&self, frames: usize) -> usize {
        frames * self.rate as usize / FPS as usize
    }

    /// Drops the sound of the next `frames` of video.
    ///
    /// # Errors
    /// The same as [`Self::read`].
    pub fn skip(&mut self, frames: usize) -> Result<(), AudioError> {
        (0..frames).try_for_each(|_| self.read(self.samples_of(1)).map(drop))
    }

    /// Returns the next `n` samples, `[n, channels]`, with zeros after the end.
    ///
    /// # Errors
    /// The rest of the file cannot be decoded or resampled.
    pub fn read(&mut self, n: usize) -> Result<Vec<f32>, AudioError> {
        let mut out = self.read_up_to(n)?;
        out.resize(n * self.channels(), 0.0);
        Ok(out)
    }

    /// Returns the next samples, `[n, channels]`: at most `n`, and fewer at the end.
    ///
    /// # Errors
    /// The same as [`Self::read`].
    pub(crate) fn read_up_to(&mut self, n: usize) -> Result<Vec<f32>, AudioError> {
        let wanted = n * self.channels();
        while self.ready.len() < wanted && !self.ended {
            match self.origin.next_chunk()? {
                Some(chunk) => self.take(chunk)?,
                None => {
                    self.ended = true;
                    self.finish_piece()?;
                }
            }
        }
        let have = wanted.min(self.ready.len());
        Ok(self.ready.drain(..have).collect())
    }

    /// Appends samples of the file to those that are ready, converted where needed.
    fn take(&mut self, mut chunk: Chunk) -> Result<(), AudioError> {
        if let Some(only) = self.sound.only {
            chunk = chunk.channel(only);
        }
        if self.sound.channels == 2 && chunk.channels == 1 {
            // FFmpeg would lower the sound by 3 dB here.
            chunk = chunk.doubled();
        }
        let gain = self.sound.gain;
        if gain != 1.0 {
            chunk.samples.iter_mut().for_each(|v| *v *= gain);
        }
        let same = |piece: &(u32, usize, _)| chunk.is_like(piece.0, piece.1);
        if !self.piece.as_ref().is_some_and(same) {
            self.finish_piece()?;
            self.begin_piece(&chunk)?;
        }
        match &mut self.piece {
            Some((_, _, Some(resampler))) => {
                let mut out = Vec::new();
                resampler.push(&chunk.samples, &mut out)?;
                self.ready.extend(out);
            }
            _ => self.ready.extend(&chunk.samples),
        }
        Ok(())
    }

    /// Prepares the conversion of a piece that begins with `chunk`.
    fn begin_piece(&mut self, chunk: &Chunk) -> Result<(), AudioError> {
        let from = Pcm {
            rate: chunk.rate,
            layout: layout_of(chunk),
        };
        let to = Pcm {
            rate: self.rate,
            layout: if self.channels() == 1 {
                ChannelLayout::MONO
            } else {
                ChannelLayout::STEREO
            },
        };
        let same = chunk.is_like(self.rate, self.channels());
        let resampler = (!same).then(|| Resampler::new(&self.path, from, to));
        self.piece = Some((chunk.rate, chunk.channels, resampler.transpose()?));
        Ok(())
    }

    /// Appends the samples that the converter of the piece still holds.
    fn finish_piece(&mut self) -> Result<(), AudioError> {
        if let Some((_, _, Some(mut resampler))) = self.piece.take() {
            let mut rest = Vec::new();
            resampler.finish(&mut rest)?;
            self.ready.extend(rest);
        }
        Ok(())
    }
}

impl Chunk {
    /// Keeps one channel, or the last one where there are fewer.
    fn channel(self, channel: usize) -> Self {
        let at = channel.min(self.channels - 1);
        let samples = self.samples.into_iter().skip(at).step_by(self.channels);
        Self {
            rate: self.rate,
            channels: 1,
            samples: samples.collect(),
            layout: ChannelLayout::MONO,
        }
    }

    /// Gives mono samples to two channels.
    fn doubled(self) -> Self {
        Self {
            rate: self.rate,
            channels: 2,
            samples: self.samples.into_iter().flat_map(|v| [v, v]).collect(),
            layout: ChannelLayout::STEREO,
        }
    }
}

/// Returns the layout of the stream, or the usual one for its number of channels.
fn layout_of(chunk: &Chunk) -> ChannelLayout {
    let channels = chunk.channels as i32;
    if chunk.layout.channels() == channels {
        chunk.layout
    } else {
        ChannelLayout::default(channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::encoded::Encoded;
    use crate::fixtures::sound::{floats, tone, wav};

    #[test]
    fn the_track_keeps_the_recording_and_ends_in_silence() {
        let (_dir, path) = wav(floats(48_000, 2), tone(48_000, 0.1).flat_map(|v| [v, -v]));
        let mut track = AudioTrack::open(&path).unwrap();
        assert_eq!(
            (track.rate(), track.channels(), track.samples_of(12)),
            (48_000, 2, 23_040)
        );
        let read = [track.read(3000).unwrap(), track.read(3000).unwrap()].concat();
        let want: Vec<f32> = tone(48_000, 0.1)
            .flat_map(|v| [v, -v])
            .chain([0.0; 2400])
            .collect();
        assert_eq!(read, want);
    }

    #[test]
    fn a_track_can_begin_later() {
        let (_dir, path) = wav(floats(48_000, 1), (0..9600).map(|i| i as f32 / 1e4));
        let mut track = AudioTrack::open(&path).unwrap();
        track.skip(3).unwrap();
        assert_eq!(track.read(2).unwrap(), [0.576, 0.5761]);
    }

    #[test]
    fn other_rates_and_channels_become_stereo_at_48_khz() {
        for (rate, channels, want) in [
            (96_000, 1, (48_000, 1)),
            (44_100, 6, (44_100, 2)),
            (50_000, 2, (48_000, 2)),
            (16_000, 1, (48_000, 1)),
        ] {
            let (_dir, path) = wav(
                floats(rate, channels),
                tone(rate, 0.5).flat_map(|v| vec![v; usize::from(channels)]),
            );
            let mut track = AudioTrack::open(&path).unwrap();
            assert_eq!(
                (track.rate(), track.channels()),
                want,
                "{rate} x {channels}"
            );
            let half = track.read(track.rate() as usize / 2).unwrap();
            let loud = half.iter().filter(|v| v.abs() > 0.1).count();
            assert!(loud > half.len() / 2, "{rate} x {channels}: {loud}");
            assert!(
                track.read(8000).unwrap()[4000..]
                    .iter()
                    .all(|v| v.abs() < 1e-3)
            );
        }
    }

    /// Returns the largest absolute value of half a second of a track.
    fn peak(track: &mut AudioTrack) -> f32 {
        let half = track.read(track.rate() as usize / 2).unwrap();
        half.iter().fold(0.0, |peak, v| v.abs().max(peak))
    }

    #[test]
    fn six_channels_at_full_scale_do_not_exceed_it_when_mixed() {
        let (_dir, path) = wav(
            floats(48_000, 6),
            tone(48_000, 0.5).flat_map(|v| [2.0 * v; 6]),
        );
        let mut track = AudioTrack::open(&path).unwrap();
        let peak = peak(&mut track);
        assert!((0.98..=1.0).contains(&peak), "{peak}");
        // The centre alone has the weight that FFmpeg's mix of integers gives it: 0.2929.
        let centre = |v: f32| [0.0, 0.0, v, 0.0, 0.0, 0.0];
        let (_dir, path) = wav(
            floats(48_000, 6),
            tone(48_000, 0.5).flat_map(|v| centre(2.0 * v)),
        );
        let peak = super::tests::peak(&mut AudioTrack::open(&path).unwrap());
        assert!((peak - 0.2929).abs() < 1e-3, "{peak}");
    }

    #[test]
    fn a_mono_piece_of_a_stereo_track_keeps_its_level() {
        let (_dir, path) = wav(floats(48_000, 1), tone(48_000, 0.5));
        let sound = TrackSound {
            channels: 2,
            only: None,
            gain: 0.5,
            rate: None,
        };
        let mut track = AudioTrack::of(&SoundFile::open(&path).unwrap(), sound).unwrap();
        assert!(track.channels() == 2 && (peak(&mut track) - 0.25).abs() < 1e-4);
    }

    #[test]
    fn sound_that_begins_after_its_picture_has_silence_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let samples: Vec<f32> = tone(48_000, 0.5).collect();
        for (name, begins, wanted) in [
            ("late.mkv", Some(0.4), 0.4),
            ("late.mp4", Some(0.4), 0.4),
            ("together.mp4", Some(0.0), 0.0),
            ("alone.m4a", None, 0.0),
        ] {
            let path = dir.path().join(name);
            let sound = Encoded {
                codec: "aac",
                rate: 48_000,
                samples: &samples,
                channels: 1,
                begins,
            };
            sound.write(&path);
            let mut file = AudioFile::open(&path).unwrap();
            let mut heard = Vec::new();
            while let Some(chunk) = file.next_chunk().unwrap() {
                heard.extend(chunk.samples);
            }
            let first = heard.iter().position(|v| v.abs() > 0.1).unwrap();
            let first = first as f64 / 48_000.0;
            assert!((first - wanted).abs() < 0.023, "{name}: {first} s");
        }
    }

    #[test]
    fn a_file_that_names_files_opens_none() {
        let (dir, path) = wav(floats(48_000, 1), tone(48_000, 0.5));
        for (name, text) in [
            (
                "list.ffconcat",
                "ffconcat version 1.0\nfile a.wav\n".to_owned(),
            ),
            ("list.txt", format!("file '{}'\n", path.display())),
            ("list.m3u", format!("{}\n", path.display())),
            (
                "list.m3u8",
                "#EXTM3U\n#EXTINF:1,\na.wav\n#EXT-X-ENDLIST\n".to_owned(),
            ),
            ("list.pls", "[playlist]\nFile1=a.wav\n".to_owned()),
            (
                "list.mpd",
                "<?xml version=\"1.0\"?>\n<MPD></MPD>\n".to_owned(),
            ),
        ] {
            let list = dir.path().join(name);
            std::fs::write(&list, text).unwrap();
            let error = AudioFile::open(&list).err().expect(name).to_string();
            assert!(error.contains("wants a media file, got a"), "{error}");
            // FFmpeg by itself opens none of the named files either.
            let sound = |input: Input| input.streams().best(media::Type::Audio).is_some();
            assert!(!ffmpeg::open(&list).is_ok_and(sound), "{name}");
        }
    }
}
