//! Decodes a video file, frame by frame, and its sound.

use std::path::{Path, PathBuf};

use ffmpeg_next::format::Pixel;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};
use ffmpeg_next::{Error, Packet, codec, decoder, frame, media};
use sha2::{Digest as _, Sha256};

use crate::media::audio_file::{AudioError, AudioTrack};
use crate::media::ffmpeg;
use crate::media::film::FrameHash;
use crate::media::video_facts::{ProbeError, probe};

/// One decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Planes Y `[H, W]`, U and V `[H / 2, W / 2]`, one behind the other. A file that stores
    /// pixels otherwise is converted.
    pub planes: Vec<u8>,
}

/// The frames of a video file, in the order of time.
pub struct VideoFrames {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Video,
    scaler: Option<Scaler>,
    /// The file is read to its end, and the decoder knows that.
    ended: bool,
}

impl VideoFrames {
    /// Opens a video file.
    ///
    /// # Errors
    /// A file that FFmpeg cannot open or decode, or one without video.
    pub fn open(path: &Path) -> Result<Self, ProbeError> {
        let input = ffmpeg::open(path)?;
        let video = input.streams().best(media::Type::Video);
        let video = video.ok_or_else(|| ProbeError::NoVideo {
            path: path.to_owned(),
        })?;
        let (stream, parameters) = (video.index(), video.parameters());
        let decoder = codec::Context::from_parameters(parameters)
            .and_then(|context| context.decoder().video())
            .map_err(|source| ProbeError::Read {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            input,
            stream,
            decoder,
            scaler: None,
            ended: false,
        })
    }

    /// Returns the next frame, or `None` after the last one.
    ///
    /// # Errors
    /// The rest of the file cannot be decoded.
    pub fn next_frame(&mut self) -> Result<Option<Pixels>, ProbeError> {
        let decoded = self.decode();
        let pixels = decoded.and_then(|frame| frame.map(|f| self.pixels(f)).transpose());
        pixels.map_err(|source| ProbeError::Read {
            path: self.path.clone(),
            source,
        })
    }

    fn decode(&mut self) -> Result<Option<frame::Video>, Error> {
        let (mut frame, mut packet) = (frame::Video::empty(), Packet::empty());
        loop {
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => return Ok(Some(frame)),
                Err(Error::Eof) => return Ok(None),
                Err(Error::Other {
                    errno: ffmpeg_next::error::EAGAIN,
                }) if !self.ended => {}
                Err(source) => return Err(source),
            }
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.stream => self.decoder.send_packet(&packet)?,
                Ok(()) => {}
                Err(Error::Eof) => {
                    self.decoder.send_eof()?;
                    self.ended = true;
                }
                Err(source) => return Err(source),
            }
        }
    }

    fn pixels(&mut self, frame: frame::Video) -> Result<Pixels, Error> {
        let (format, width, height) = (frame.format(), frame.width(), frame.height());
        let mut planar = frame::Video::empty();
        let frame = if format == Pixel::YUV420P {
            frame
        } else {
            let flags = Flags::BILINEAR | Flags::ACCURATE_RND | Flags::BITEXACT;
            let same = self.scaler.take().filter(|scaler| {
                let from = scaler.input();
                (from.format, from.width, from.height) == (format, width, height)
            });
            let scaler = match same {
                Some(scaler) => scaler,
                None => {
                    let to = (Pixel::YUV420P, width, height);
                    Scaler::get(format, width, height, to.0, to.1, to.2, flags)?
                }
            };
            self.scaler.insert(scaler).run(&frame, &mut planar)?;
            planar
        };
        let (width, height) = (width as usize, height as usize);
        let halves = (width.div_ceil(2), height.div_ceil(2));
        let mut planes = Vec::with_capacity(width * height + 2 * halves.0 * halves.1);
        for (at, (columns, rows)) in [(width, height), halves, halves].into_iter().enumerate() {
            let lines = frame.data(at).chunks(frame.stride(at)).take(rows);
            lines.for_each(|line| planes.extend_from_slice(&line[..columns]));
        }
        Ok(Pixels {
            width,
            height,
            planes,
        })
    }
}

/// Decodes a whole video and hashes its frames.
///
/// # Errors
/// As [`VideoFrames`].
pub fn hash_frames(path: &Path) -> Result<FrameHash, ProbeError> {
    let mut video = VideoFrames::open(path)?;
    let (mut hash, mut frames) = (Sha256::new(), 0);
    while let Some(pixels) = video.next_frame()? {
        hash.update(&pixels.planes);
        frames += 1;
    }
    let digits = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(FrameHash {
        frames,
        sha256: digits,
    })
}

/// The sound of a video file.
pub struct VideoSound(AudioTrack);

impl VideoSound {
    /// Opens the sound of a video file, if it has any.
    ///
    /// # Errors
    /// A file that FFmpeg cannot open or decode.
    pub fn open(path: &Path) -> Result<Option<Self>, SoundError> {
        match probe(path)?.audio {
            None => Ok(None),
            Some(_) => Ok(Some(Self(AudioTrack::open(path)?))),
        }
    }

    /// Returns the samples per second of each channel, and the number of channels.
    pub fn form(&self) -> (u32, usize) {
        (self.0.rate(), self.0.channels())
    }

    /// Returns the next samples, `[n, channels]`: at most `n`, and fewer at the end.
    ///
    /// # Errors
    /// The rest of the sound cannot be decoded.
    pub fn read(&mut self, n: usize) -> Result<Vec<f32>, SoundError> {
        Ok(self.0.read_up_to(n)?)
    }
}

/// A reason why the sound of a video cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SoundError {
    /// The file cannot be opened.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The sound cannot be decoded.
    #[error(transparent)]
    Audio(#[from] AudioError),
}

impl SoundError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> engines::error_kind::ErrorKind {
        match self {
            Self::Probe(error) => error.kind(),
            Self::Audio(error) => error.kind(),
        }
    }
}
