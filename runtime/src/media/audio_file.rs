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
    ChannelLayout, Dictionary, Error, Packet, Rational, codec, decoder, frame, media,
};

use crate::media::ffmpeg::{self, OpenError};
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
    /// The stream changes its format.
    #[error(
        "{path}: audio wants one format throughout, got {was_rate} Hz x {was_channels}, \
         then {rate} Hz x {channels}"
    )]
    Changed {
        /// Path of the file.
        path: PathBuf,
        /// Samples per second of the first chunk.
        was_rate: u32,
        /// Channels of the first chunk.
        was_channels: usize,
        /// Samples per second of a later chunk.
        rate: u32,
        /// Channels of the later chunk.
        channels: usize,
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
    /// Returns `Resources` where FFmpeg lacks its resampler, and `Input` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Resample { .. } => ErrorKind::Resources,
            _ => ErrorKind::Input,
        }
    }
}

/// The best audio stream of a file, decoded while it is read.
pub(crate) struct AudioFile {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Audio,
    codec: &'static str,
    shape: Option<(u32, usize)>,
    time_base: Rational,
    samples: usize,
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

impl AudioFile {
    /// Opens the best audio stream of a file. The sound track of a video is one too.
    ///
    /// # Errors
    /// A file that FFmpeg cannot open, that has no audio stream, or whose codec is unknown.
    pub(crate) fn open(path: &Path) -> Result<Self, AudioError> {
        let input = ffmpeg::open(path)?;
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
        Ok(Self {
            path: path.to_owned(),
            input,
            stream: index,
            decoder,
            codec,
            shape: None,
            time_base,
            samples: 0,
            drained: false,
        })
    }

    /// Returns FFmpeg's name of the codec.
    pub(crate) fn codec(&self) -> &'static str {
        self.codec
    }

    /// Decodes the next samples. Returns `None` at the end.
    ///
    /// It skips a damaged packet, as players do.
    ///
    /// # Errors
    /// The rest of the file cannot be read, changes its format, or holds a value that is not
    /// finite.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>, AudioError> {
        let mut frame = frame::Audio::empty();
        loop {
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => match self.chunk(&frame)? {
                    chunk if chunk.samples.is_empty() => {}
                    chunk => return Ok(Some(chunk)),
                },
                Err(Error::Eof) if self.samples == 0 => {
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
        let (was_rate, was_channels) = *self.shape.get_or_insert((rate, channels));
        let path = || self.path.clone();
        if (was_rate, was_channels) != (rate, channels) || rate == 0 || channels == 0 {
            return Err(AudioError::Changed {
                path: path(),
                was_rate,
                was_channels,
                rate,
                channels,
            });
        }
        let mut samples =
            interleaved(frame).ok_or_else(|| self.decode_error(Error::PatchWelcome))?;
        samples.drain(..channels * self.lead_in(frame));
        if let Some(at) = samples.iter().position(|v| !v.is_finite()) {
            let seconds = (self.samples + at / channels) as f64 / f64::from(rate);
            return Err(AudioError::NotFinite {
                path: path(),
                value: samples[at],
                seconds,
            });
        }
        self.samples += samples.len() / channels;
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

/// The sound of the output video: the original recording, in mono or stereo.
///
/// It keeps a rate of 44.1 or 48 kHz; any other becomes 48 kHz. It is read while the video grows,
/// and silent after the end of the recording.
pub struct AudioTrack {
    file: AudioFile,
    rate: u32,
    channels: usize,
    resampler: Option<Resampler>,
    ready: VecDeque<f32>,
    ended: bool,
}

impl AudioTrack {
    /// Opens the recording and decodes its beginning.
    ///
    /// # Errors
    /// The file cannot be opened or decoded, or FFmpeg cannot resample it.
    pub fn open(path: &Path) -> Result<Self, AudioError> {
        let mut file = AudioFile::open(path)?;
        let first = file.next_chunk()?.ok_or_else(|| AudioError::NoSamples {
            path: path.to_owned(),
        })?;
        let rate = if TRACK_RATES.contains(&first.rate) {
            first.rate
        } else {
            TRACK_RATES[0]
        };
        let channels = first.channels.min(2);
        let from = Pcm {
            rate: first.rate,
            layout: layout_of(&first),
        };
        let to = Pcm {
            rate,
            layout: if channels == 1 {
                ChannelLayout::MONO
            } else {
                ChannelLayout::STEREO
            },
        };
        let same = rate == first.rate && channels == first.channels;
        let resampler = if same {
            None
        } else {
            Some(Resampler::new(path, from, to)?)
        };
        let mut track = Self {
            file,
            rate,
            channels,
            resampler,
            ready: VecDeque::new(),
            ended: false,
        };
        track.take(&first.samples)?;
        Ok(track)
    }

    /// Returns the samples per second of each channel.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Returns the number of channels, 1 or 2.
    pub fn channels(&self) -> usize {
        self.channels
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
        let wanted = n * self.channels;
        while self.ready.len() < wanted && !self.ended {
            match self.file.next_chunk()? {
                Some(chunk) => self.take(&chunk.samples)?,
                None => {
                    self.ended = true;
                    let mut rest = Vec::new();
                    self.resampler
                        .as_mut()
                        .map_or(Ok(()), |r| r.finish(&mut rest))?;
                    self.ready.extend(rest);
                }
            }
        }
        let have = wanted.min(self.ready.len());
        let mut out: Vec<f32> = self.ready.drain(..have).collect();
        out.resize(wanted, 0.0);
        Ok(out)
    }

    /// Appends samples of the file to those that are ready, resampled where needed.
    fn take(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        match &mut self.resampler {
            None => self.ready.extend(samples),
            Some(resampler) => {
                let mut out = Vec::new();
                resampler.push(samples, &mut out)?;
                self.ready.extend(out);
            }
        }
        Ok(())
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
}
