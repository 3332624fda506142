//! Counts the facts of a video file, its frames and times, from its packets and not its header.

use std::fmt;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::{Error, Packet, codec, media};

use crate::media::ffmpeg::{self, OpenError};
use crate::media::film::{Film, FrameHash};

/// A reason why a video file cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file has no picture.
    #[error("{path}: wants a video stream, found none")]
    NoVideo {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file cannot be read to its end.
    #[error("{path}: cannot read the rest of the file: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// The file cannot be hashed.
    #[error("{path}: cannot read the file: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
}

impl ProbeError {
    /// Returns `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// The facts of one video file.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Probe {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// FFmpeg's name of the picture's codec.
    pub video_codec: &'static str,
    /// Frames per second, by the header.
    pub fps: f64,
    /// Number of frames, counted.
    pub frames: usize,
    /// Seconds from the beginning of the first frame to the end of the last one.
    pub video_seconds: f64,
    /// Facts of the sound, if the file has any.
    pub audio: Option<AudioProbe>,
    /// Milliseconds from the first frame to the first sound.
    pub av_offset_ms: f64,
}

/// The facts of the sound of one video file.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct AudioProbe {
    /// FFmpeg's name of the codec.
    pub codec: &'static str,
    /// Samples per second.
    pub rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Length in seconds, without the lead-in that players skip.
    pub seconds: f64,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{} {} {} fps, {} frames, {:.3} s",
            self.width, self.height, self.video_codec, self.fps, self.frames, self.video_seconds
        )?;
        match &self.audio {
            None => write!(f, "; no audio"),
            Some(a) => {
                let AudioProbe {
                    codec,
                    rate,
                    channels,
                    seconds,
                } = a;
                write!(
                    f,
                    "; {codec} {rate} Hz x {channels}, {seconds:.3} s, offset {:+.1} ms",
                    self.av_offset_ms
                )
            }
        }
    }
}

impl Probe {
    /// Adds the hash of the decoded frames.
    pub(crate) fn film(self, decoded: FrameHash, file_sha256: String) -> Film {
        Film {
            width: self.width,
            height: self.height,
            fps: self.fps,
            frames: self.frames,
            decoded_frames: decoded.frames,
            video_seconds: self.video_seconds,
            sound_seconds: self.audio.map(|a| a.seconds),
            av_offset_ms: self.av_offset_ms,
            decoded_sha256: decoded.sha256,
            file_sha256,
        }
    }
}

/// The times of one stream, in seconds.
#[derive(Clone, Copy)]
struct Span {
    stream: usize,
    packets: usize,
    start: f64,
    end: f64,
}

/// Reads a whole file and counts its facts. It decodes no frame.
///
/// # Errors
/// A file that FFmpeg cannot open or read, or one without video.
pub fn probe(path: &Path) -> Result<Probe, ProbeError> {
    let mut input = ffmpeg::open(path)?;
    let no_video = || ProbeError::NoVideo {
        path: path.to_owned(),
    };
    let read = |source| ProbeError::Read {
        path: path.to_owned(),
        source,
    };
    let video = input
        .streams()
        .best(media::Type::Video)
        .ok_or_else(no_video)?;
    let fps = f64::from(video.avg_frame_rate());
    let (video_codec, parameters, video) = (
        video.parameters().id().name(),
        video.parameters(),
        video.index(),
    );
    let picture = codec::Context::from_parameters(parameters)
        .and_then(|c| c.decoder().video())
        .map_err(read)?;
    let sound = match input.streams().best(media::Type::Audio) {
        None => None,
        Some(stream) => {
            let (index, parameters) = (stream.index(), stream.parameters());
            let name = parameters.id().name();
            let decoder = codec::Context::from_parameters(parameters)
                .and_then(|c| c.decoder().audio())
                .map_err(read)?;
            Some((index, name, decoder.rate(), usize::from(decoder.channels())))
        }
    };
    let spans = spans(&mut input).map_err(read)?;
    let span_of = |stream: usize| {
        spans
            .iter()
            .find(|s| s.stream == stream)
            .copied()
            .ok_or_else(no_video)
    };
    let seen = span_of(video)?;
    let mut av_offset_ms = 0.0;
    let mut audio = None;
    if let Some((stream, codec, rate, channels)) = sound {
        let heard = span_of(stream).ok().map(|s| (s.start, s.end));
        let (start, end) = heard.unwrap_or((seen.start, seen.start));
        av_offset_ms = (start - seen.start) * 1000.0;
        audio = Some(AudioProbe {
            codec,
            rate,
            channels,
            seconds: end - start,
        });
    }
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Probe {
        width,
        height,
        video_codec,
        fps,
        frames: seen.packets,
        video_seconds: seen.end - seen.start,
        audio,
        av_offset_ms,
    })
}

/// Counts the packets and times of every stream.
///
/// Sound before time 0 is the lead-in of an encoder, which players skip.
fn spans(input: &mut Input) -> Result<Vec<Span>, Error> {
    let mut spans: Vec<Span> = Vec::new();
    let mut packet = Packet::empty();
    loop {
        match packet.read(input) {
            Ok(()) => {}
            Err(Error::Eof) => return Ok(spans),
            Err(source) => return Err(source),
        }
        let stream = packet.stream();
        let unit = input
            .stream(stream)
            .map_or(0.0, |s| f64::from(s.time_base()));
        let Some(pts) = packet.pts() else { continue };
        let start = (pts as f64 * unit).max(0.0);
        let end = (pts + packet.duration()) as f64 * unit;
        match spans.iter_mut().find(|s| s.stream == stream) {
            None => spans.push(Span {
                stream,
                packets: 1,
                start,
                end,
            }),
            Some(span) => {
                span.packets += 1;
                span.start = span.start.min(start);
                span.end = span.end.max(end);
            }
        }
    }
}
