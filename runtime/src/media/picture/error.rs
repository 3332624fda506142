//! Reasons why a picture cannot be used.

use std::fmt;
use std::path::PathBuf;

use engines::error_kind::ErrorKind;

use super::limits::{MAX_BYTES, MAX_PIXELS, MAX_SIDE, MIN_SIDE};

/// A reason why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The system refuses to open the file.
    #[error("{path}: cannot open the picture: {source}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
    /// The path names a folder.
    #[error("{path}: wants a picture file, got a folder")]
    Folder {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{path}: wants a picture, the file is empty")]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file has more bytes than a picture of the largest size can have.
    #[error("{path}: wants a picture file of at most {} GiB, got a larger file", MAX_BYTES >> 30)]
    Long {
        /// Path of the file.
        path: PathBuf,
    },
    /// The content is of no known format.
    #[error(
        "{path}: wants a picture (png, jpeg, webp, bmp, gif, tiff or pnm), found none of these"
    )]
    Format {
        /// Path of the file.
        path: PathBuf,
    },
    /// The content is of a known kind that this program does not read.
    #[error(
        "{path}: wants a picture (png, jpeg, webp, bmp, gif, tiff or pnm), got {kind}; {to_do}"
    )]
    Kind {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the content.
        kind: &'static str,
        /// Action that makes a picture of the file.
        to_do: String,
    },
    /// The decoder does not know this form of a known format.
    #[error("{path}: this form of picture is not supported: {reason}; {to_do}")]
    Form {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the decoder.
        reason: String,
        /// Action that makes another form of the picture.
        to_do: String,
    },
    /// The file ends before its picture does.
    #[error("{path}: the picture is cut short: {missing}; copy or download the file again")]
    Cut {
        /// Path of the file.
        path: PathBuf,
        /// Part of the picture that is missing.
        missing: Missing,
    },
    /// The decoder refuses the content.
    #[error("{path}: picture is damaged or not supported: {reason}")]
    Decode {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the decoder.
        reason: String,
    },
    /// No pixel can be seen.
    #[error(
        "{path}: wants a picture that can be seen, every pixel is transparent; \
         `--background drop` shows the hidden colours"
    )]
    Transparent {
        /// Path of the file.
        path: PathBuf,
    },
    /// The colours are CMYK of a profile, in a format where the inks cannot be read.
    #[error(
        "{path}: the CMYK profile of a TIFF file cannot be applied; {to_do}, \
         or take plain inks with `--icc ignore`"
    )]
    Inks {
        /// Path of the file.
        path: PathBuf,
        /// Action that makes an RGB picture of the file.
        to_do: String,
    },
    /// A side is too short.
    #[error("{path}: wants a picture of at least {MIN_SIDE} x {MIN_SIDE}, got {width} x {height}")]
    TooSmall {
        /// Path of the file.
        path: PathBuf,
        /// Columns of pixels.
        width: usize,
        /// Rows of pixels.
        height: usize,
    },
    /// A side is too long, or there are too many pixels.
    #[error(
        "{path}: wants a picture of at most {MAX_SIDE} a side and {} megapixels, \
         got {width} x {height}",
        MAX_PIXELS >> 20
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Columns of pixels.
        width: usize,
        /// Rows of pixels.
        height: usize,
    },
}

impl PictureError {
    /// Returns `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// The part of a picture that its file lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Bytes at the end, where the header states the length.
    Bytes {
        /// Bytes that the file lacks.
        lacks: u64,
        /// Bytes of the whole file.
        whole: u64,
    },
    /// Rows of pixels.
    Rows {
        /// Rows that the file has.
        has: usize,
        /// Rows of the picture.
        whole: usize,
    },
    /// Bytes of a named part.
    Part {
        /// Name of the part, by its format.
        name: String,
        /// Bytes that the file lacks.
        lacks: u64,
    },
    /// The rest of a pass over the picture, and the passes after it.
    Scan {
        /// Number of the pass, from 1.
        scan: usize,
    },
    /// The rest of a frame.
    Frame {
        /// Number of the frame, from 1.
        frame: usize,
    },
    /// The end marker of the format.
    EndMarker {
        /// Name of the marker.
        name: &'static str,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { lacks, whole } => write!(f, "it lacks {lacks} of its {whole} bytes"),
            Self::Rows { has, whole } => write!(f, "it ends after {has} of {whole} rows"),
            Self::Part { name, lacks } => write!(f, "its part {name} lacks {lacks} bytes"),
            Self::Scan { scan } => write!(f, "it ends in scan {scan} of a progressive picture"),
            Self::Frame { frame } => write!(f, "it ends in frame {frame}"),
            Self::EndMarker { name } => write!(f, "it has no end marker ({name})"),
        }
    }
}
