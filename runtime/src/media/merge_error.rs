//! Why videos cannot be joined.

use std::io;
use std::path::PathBuf;

use engines::error_kind::{ErrorKind, reason};
use ffmpeg_next::Error;

use crate::media::audio_file::AudioError;
use crate::media::ffmpeg::OpenError;
use crate::media::video_error::VideoError;

/// A reason why videos cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A video cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file has no picture.
    #[error("{path}: merge wants a video, this file has no frames")]
    NoVideo {
        /// The file.
        path: PathBuf,
    },
    /// A video cannot be read to its end.
    #[error("{path}: cannot read the rest of the video: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// Two videos have different parameters.
    #[error("{path}: merge wants the {field} of {first}: {wanted}, got {got}")]
    Differs {
        /// The video that differs.
        path: PathBuf,
        /// The first video.
        first: PathBuf,
        /// What differs.
        field: &'static str,
        /// Value of the first video.
        wanted: String,
        /// Value of the video.
        got: String,
    },
    /// Frames are not even in time, or not in the order in which they are seen.
    #[error(
        "{path}: merge wants frames at even times and in their order, as generate writes them; \
         frame {frame} is not"
    )]
    Uneven {
        /// The video.
        path: PathBuf,
        /// Number of the frame, from 0.
        frame: usize,
    },
    /// The output is no container.
    #[error("{path}: merge wants an output that ends in .mp4, .mkv or .webm")]
    Target {
        /// The output.
        path: PathBuf,
    },
    /// An earlier unfinished video cannot be moved aside.
    #[error("{path}: cannot move it aside: {}", reason(source))]
    Aside {
        /// The unfinished video.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The sound cannot be decoded.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The output cannot be written.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The caller asked to stop.
    #[error("interrupted; nothing was written")]
    Cancelled,
}

impl MergeError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Target { .. } => ErrorKind::Usage,
            Self::Audio(error) => error.kind(),
            Self::Video(error) => error.kind(),
            Self::Cancelled => ErrorKind::Interrupted,
            Self::NoVideo { .. }
            | Self::Read { .. }
            | Self::Differs { .. }
            | Self::Uneven { .. }
            | Self::Aside { .. } => ErrorKind::Input,
        }
    }
}
