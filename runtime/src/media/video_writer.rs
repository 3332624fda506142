//! Writes one output of a run, whatever its format.

use std::path::{Path, PathBuf};

use crate::media::audio_file::AudioTrack;
use crate::media::encoding::Encoding;
use crate::media::mp4_boxes::BoxError;
use crate::media::muxed::{self, Muxed};
use crate::media::partial::Partial;
use crate::media::plain::{self, Plain};
pub(crate) use crate::media::plain::{is_free, may_replace};
use crate::media::target::Target;
use crate::media::video_error::VideoError;
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// An output that is being written.
pub struct VideoWriter {
    target: Target,
    kind: Kind,
}

enum Kind {
    Muxed(Box<Muxed>),
    Plain(Box<Plain>),
}

/// A finished output.
#[derive(Debug)]
pub struct Finished {
    /// The final name, or the name of the stream.
    pub path: PathBuf,
    /// Why the file keeps its fragments, if it has no index first. It plays in both forms.
    pub fragmented: Option<BoxError>,
}

/// Checks encoder and filters before anything is made.
///
/// # Errors
/// As [`VideoWriter::create`], but for the place.
pub(crate) fn check(target: &Target, size: Size, encoding: &Encoding) -> Result<(), VideoError> {
    match target.muxer() {
        Some(container) => muxed::check(container, size, encoding),
        None => plain::check(target, size, encoding),
    }
}

impl VideoWriter {
    /// Creates the output under its partial name, and the folders that it needs, or opens the
    /// stream. The sound is cut, or filled with silence, to the length of the video.
    ///
    /// # Errors
    /// A path that cannot be written, or an encoder or filters that FFmpeg refuses. No file stays
    /// behind.
    pub fn create(
        target: &Target,
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, VideoError> {
        let kind = match target.muxer() {
            Some(container) => {
                let muxed = Muxed::create(target, container, size, encoding, audio)?;
                Kind::Muxed(Box::new(muxed))
            }
            None => Kind::Plain(Box::new(Plain::create(target, size, encoding, audio)?)),
        };
        Ok(Self {
            target: target.clone(),
            kind,
        })
    }

    /// Counts the frames of the model so far.
    pub fn frames(&self) -> usize {
        match &self.kind {
            Kind::Muxed(muxed) => muxed.frames(),
            Kind::Plain(plain) => plain.frames(),
        }
    }

    /// Returns the length of the sound so far, in seconds.
    pub fn sound_seconds(&self) -> f64 {
        match &self.kind {
            Kind::Muxed(muxed) => muxed.sound_seconds(),
            // A folder has a sound file of the same length.
            Kind::Plain(plain) if matches!(self.target, Target::Folder { .. }) => {
                plain.frames() as f64 / f64::from(FPS)
            }
            Kind::Plain(_) => 0.0,
        }
    }

    /// Appends one block, `[T, H, W, 3]` 8-bit RGB, with its sound, and puts it on the disk.
    ///
    /// # Errors
    /// A block that is no whole number of frames, a full disk, or sound that cannot be read. The
    /// earlier blocks stay playable.
    pub fn write_frames(&mut self, frames: &[u8]) -> Result<(), VideoError> {
        match &mut self.kind {
            Kind::Muxed(muxed) => muxed.write_frames(frames),
            Kind::Plain(plain) => plain.write_frames(frames),
        }
    }

    /// Encodes the next frame without what was learnt from earlier ones, where a run can be
    /// resumed.
    ///
    /// # Errors
    /// The encoder cannot be opened again.
    pub fn restart_encoder(&mut self) -> Result<(), VideoError> {
        match &mut self.kind {
            Kind::Muxed(muxed) => muxed.restart_encoder(),
            Kind::Plain(_) => Ok(()),
        }
    }

    /// Puts everything that was written on the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&self) -> Result<(), VideoError> {
        match &self.kind {
            Kind::Muxed(muxed) => muxed.sync(),
            Kind::Plain(_) => Ok(()),
        }
    }

    /// Takes the pictures of the first blocks from an earlier MP4 file of the same settings, and
    /// their sound from the source. `blocks` are the frames of each.
    ///
    /// # Errors
    /// The earlier file cannot be read or has fewer frames; as [`Self::write_frames`].
    pub fn take_blocks(&mut self, earlier: &Path, blocks: &[usize]) -> Result<(), VideoError> {
        match &mut self.kind {
            Kind::Muxed(muxed) => muxed.take_blocks(earlier, blocks),
            Kind::Plain(_) => Ok(()),
        }
    }

    /// Completes the output under its final name.
    ///
    /// # Errors
    /// A full disk. The partial name then stays, and the final one does not appear.
    pub fn finish(self) -> Result<Finished, VideoError> {
        let path = self.target.path();
        let fragmented = match self.kind {
            Kind::Muxed(muxed) => muxed.finish()?,
            Kind::Plain(plain) => {
                plain.finish()?;
                None
            }
        };
        Ok(Finished { path, fragmented })
    }

    /// Completes the unfinished output and leaves it under the partial name, cut to its last whole
    /// block after a failed write. Returns `None` where nothing is left.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn finish_partial(self) -> Result<Option<Partial>, VideoError> {
        match self.kind {
            Kind::Muxed(muxed) => muxed.finish_partial(),
            Kind::Plain(plain) => plain.finish_partial(),
        }
    }
}
