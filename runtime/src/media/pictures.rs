//! Decodes the pictures of any video that FFmpeg reads, one after the other.

use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};
use ffmpeg_next::{Error, Packet, codec, decoder, ffi, frame, media};

use crate::media::ffmpeg::{self, OpenError};
use crate::numbers::size::Size;

/// A reason why the pictures of a video cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PicturesError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file has no picture.
    #[error("{path}: wants a video, found no picture among {streams} streams")]
    NoVideo {
        /// Path of the file.
        path: PathBuf,
        /// Streams of the file.
        streams: usize,
    },
    /// FFmpeg cannot decode the pictures.
    #[error("{path}: cannot decode the video ({codec}): {source}")]
    Decode {
        /// Path of the file.
        path: PathBuf,
        /// FFmpeg's name of the codec.
        codec: &'static str,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// The stream ends without a picture.
    #[error("{path}: video is empty or damaged, no picture could be decoded")]
    NoFrames {
        /// Path of the file.
        path: PathBuf,
    },
}

impl PicturesError {
    /// Returns the kind of the file's error, or `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            _ => ErrorKind::Input,
        }
    }
}

/// The colours that a reader gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colours {
    /// Three bytes a pixel, at the video's own size.
    Rgb,
    /// One byte a pixel, scaled to this size.
    Grey(Size),
}

/// One picture of a video.
pub(crate) struct Frame {
    /// Seconds from the earliest stream's start.
    pub(crate) seconds: f64,
    /// Width and height of the pixels.
    pub(crate) size: Size,
    /// Pixels row by row.
    pub(crate) pixels: Vec<u8>,
}

/// The pictures of a video, decoded while it is read.
pub(crate) struct Pictures {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Video,
    codec: &'static str,
    colours: Colours,
    scaler: Option<Movable>,
    /// Seconds of a timestamp's unit.
    unit: f64,
    /// Time of the earliest stream.
    begin: f64,
    rate: f64,
    given: usize,
    drained: bool,
}

/// A scaler that may go to another thread.
struct Movable(Scaler);

#[expect(
    unsafe_code,
    reason = "the wrapper does not say that a scaler may move"
)]
// SAFETY: swscale keeps no state of a thread, and only one thread has the scaler at a time.
unsafe impl Send for Movable {}

impl Pictures {
    /// Opens the best video stream of a file.
    ///
    /// # Errors
    /// A file that FFmpeg does not recognise, without video, or with an unknown codec.
    pub(crate) fn open(path: &Path, colours: Colours) -> Result<Self, PicturesError> {
        let input = ffmpeg::open(path)?;
        let streams = input.streams().count();
        let Some(stream) = input.streams().best(media::Type::Video) else {
            return Err(PicturesError::NoVideo {
                path: path.to_owned(),
                streams,
            });
        };
        let (index, parameters) = (stream.index(), stream.parameters());
        let (unit, rate) = (
            f64::from(stream.time_base()),
            f64::from(stream.avg_frame_rate()),
        );
        let codec = parameters.id().name();
        let decoder = codec::Context::from_parameters(parameters)
            .and_then(|context| context.decoder().video())
            .map_err(|source| PicturesError::Decode {
                path: path.to_owned(),
                codec,
                source,
            })?;
        Ok(Self {
            begin: begin_seconds(&input),
            path: path.to_owned(),
            input,
            stream: index,
            decoder,
            codec,
            colours,
            scaler: None,
            unit,
            rate: if rate.is_finite() && rate > 0.0 {
                rate
            } else {
                25.0
            },
            given: 0,
            drained: false,
        })
    }

    /// Returns the pictures a second by the header, or 25 where it says none.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// Decodes the next picture. Returns `None` at the end.
    ///
    /// It skips a damaged packet, as players do.
    ///
    /// # Errors
    /// The rest of the file cannot be read, or there is no picture at all.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, PicturesError> {
        let mut decoded = frame::Video::empty();
        loop {
            match self.decoder.receive_frame(&mut decoded) {
                Ok(()) => return self.frame(&decoded).map(Some),
                Err(Error::Eof) if self.given == 0 => {
                    return Err(PicturesError::NoFrames {
                        path: self.path.clone(),
                    });
                }
                Err(Error::Eof) => return Ok(None),
                Err(Error::Other {
                    errno: ffmpeg_next::error::EAGAIN,
                }) => self.feed()?,
                Err(Error::InvalidData) => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    /// Gives the next packet to the decoder, or the end of the file.
    fn feed(&mut self) -> Result<(), PicturesError> {
        if self.drained {
            return Err(self.failed(Error::Bug));
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
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Converts a decoded picture. One without a time follows the one before it.
    fn frame(&mut self, decoded: &frame::Video) -> Result<Frame, PicturesError> {
        let (width, height) = (decoded.width() as usize, decoded.height() as usize);
        let (format, size, channels) = match self.colours {
            Colours::Rgb => (Pixel::RGB24, Size { width, height }, 3),
            Colours::Grey(size) => (Pixel::GRAY8, size, 1),
        };
        let mut converted = frame::Video::empty();
        let scaled = self
            .scaler(decoded, format, size)
            .and_then(|scaler| scaler.0.run(decoded, &mut converted));
        scaled.map_err(|e| self.failed(e))?;
        let stated = decoded.timestamp();
        let stated = stated.map(|at| at as f64 * self.unit - self.begin);
        let seconds = stated.unwrap_or(self.given as f64 / self.rate);
        self.given += 1;
        let rows = converted.data(0).chunks(converted.stride(0));
        let rows = rows.take(size.height);
        Ok(Frame {
            seconds,
            size,
            pixels: rows
                .flat_map(|row| &row[..channels * size.width])
                .copied()
                .collect(),
        })
    }

    /// Returns the scaler for a decoded picture, a new one where its form has changed.
    fn scaler(
        &mut self,
        decoded: &frame::Video,
        format: Pixel,
        size: Size,
    ) -> Result<&mut Movable, Error> {
        let (from, width, height) = (decoded.format(), decoded.width(), decoded.height());
        let kept = self.scaler.take().filter(|kept| {
            let known = kept.0.input();
            (known.format, known.width, known.height) == (from, width, height)
        });
        if let Some(kept) = kept {
            return Ok(self.scaler.insert(kept));
        }
        let flags = match self.colours {
            Colours::Rgb => Flags::BICUBIC,
            Colours::Grey(_) => Flags::AREA,
        };
        let (to_width, to_height) = (size.width as u32, size.height as u32);
        let made = Scaler::get(from, width, height, format, to_width, to_height, flags)?;
        Ok(self.scaler.insert(Movable(made)))
    }

    /// Adds the file and its codec to FFmpeg's error.
    fn failed(&self, source: Error) -> PicturesError {
        PicturesError::Decode {
            path: self.path.clone(),
            codec: self.codec,
            source,
        }
    }
}

/// Returns the time of the earliest stream of a file, or 0 where it is unknown.
fn begin_seconds(input: &Input) -> f64 {
    #[expect(unsafe_code, reason = "the wrapper does not give the file's start")]
    // SAFETY: the context is valid as long as `input` is.
    let start = unsafe { (*input.as_ptr()).start_time };
    if start == ffi::AV_NOPTS_VALUE {
        return 0.0;
    }
    (start as f64 / f64::from(ffi::AV_TIME_BASE)).max(0.0)
}
