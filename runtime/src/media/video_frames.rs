//! Decodes the pictures of a video, one after another.
//!
//! The bytes depend on the pictures alone: the decoder has one thread, and the conversion to RGB
//! uses FFmpeg's exact arithmetic with its default matrix.

use std::path::{Path, PathBuf};

use ffmpeg_next::codec;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};
use ffmpeg_next::util::frame::Video;
use ffmpeg_next::{Error, Packet, decoder, media};
use sha2::{Digest as _, Sha256};

use crate::media::ffmpeg;
use crate::media::film::FrameHash;
use crate::media::video_facts::ProbeError;

/// The frames of one video file, in their order of presentation.
pub struct VideoFrames {
    path: PathBuf,
    input: Input,
    stream: usize,
    decoder: decoder::Video,
    scaler: Scaler,
    decoded: Video,
    rgb: Video,
    packed: Vec<u8>,
    ended: bool,
}

impl VideoFrames {
    /// Opens a video.
    ///
    /// # Errors
    /// A file that FFmpeg cannot open, or one without video.
    pub fn open(path: &Path) -> Result<Self, ProbeError> {
        let input = ffmpeg::open(path)?;
        let at = || path.to_owned();
        let video = input.streams().best(media::Type::Video);
        let video = video.ok_or_else(|| ProbeError::NoVideo { path: at() })?;
        let (stream, parameters) = (video.index(), video.parameters());
        let opened = || {
            let decoder = codec::Context::from_parameters(parameters)?
                .decoder()
                .video()?;
            let (format, width, height) = (decoder.format(), decoder.width(), decoder.height());
            let exact = Flags::BICUBIC | Flags::ACCURATE_RND | Flags::BITEXACT;
            let rgb = Pixel::RGB24;
            let scaler = Scaler::get(format, width, height, rgb, width, height, exact)?;
            Ok((decoder, scaler))
        };
        let (decoder, scaler) =
            opened().map_err(|source| ProbeError::Read { path: at(), source })?;
        Ok(Self {
            path: at(),
            input,
            stream,
            decoder,
            scaler,
            decoded: Video::empty(),
            rgb: Video::empty(),
            packed: Vec::new(),
            ended: false,
        })
    }

    /// Returns the bytes of the next frame, `[H, W, 3]` in RGB, or `None` after the last one.
    ///
    /// # Errors
    /// The rest of the file cannot be read or decoded.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, ProbeError> {
        let decoded = self.decode().map_err(|source| ProbeError::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(decoded.then_some(&self.packed))
    }

    /// Decodes a frame into `packed`. Returns false at the end.
    fn decode(&mut self) -> Result<bool, Error> {
        loop {
            match self.decoder.receive_frame(&mut self.decoded) {
                Ok(()) => break,
                Err(Error::Eof) => return Ok(false),
                Err(error) if self.ended => return Err(error),
                Err(Error::Other { errno }) if errno == ffmpeg_next::error::EAGAIN => {
                    self.feed()?
                }
                Err(error) => return Err(error),
            }
        }
        self.scaler.run(&self.decoded, &mut self.rgb)?;
        let (width, height) = (self.rgb.width() as usize, self.rgb.height() as usize);
        let rows = self.rgb.data(0).chunks(self.rgb.stride(0)).take(height);
        self.packed.clear();
        rows.for_each(|row| self.packed.extend_from_slice(&row[..3 * width]));
        Ok(true)
    }

    /// Gives the decoder its next packet, or the end.
    fn feed(&mut self) -> Result<(), Error> {
        let mut packet = Packet::empty();
        loop {
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.stream => {
                    return self.decoder.send_packet(&packet);
                }
                Ok(()) => {}
                Err(Error::Eof) => {
                    self.ended = true;
                    return self.decoder.send_eof();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Decodes a whole video and hashes its frames.
///
/// # Errors
/// As [`VideoFrames`].
pub fn hash_frames(path: &Path) -> Result<FrameHash, ProbeError> {
    let mut video = VideoFrames::open(path)?;
    let (mut hash, mut frames) = (Sha256::new(), 0);
    while let Some(rgb) = video.next_frame()? {
        hash.update(rgb);
        frames += 1;
    }
    let digits = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(FrameHash {
        frames,
        sha256: digits,
    })
}
