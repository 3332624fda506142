//! Opens the media files that a user names.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// A reason why a media file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum InputFileError {
    /// The system refuses to open the file.
    #[error("{path}: cannot open the media file: {source}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// The path names a folder.
    #[error("{path}: wants a media file, got a folder")]
    Folder {
        /// Path of the folder.
        path: PathBuf,
    },
    /// A pipe cannot be copied.
    #[error("{path}: cannot copy the pipe into a temporary file: {source}")]
    Copy {
        /// Path of the pipe.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// A pipe gives more than the disk may take.
    #[error(
        "{path}: wants a pipe of at most {most} bytes, half of the free space for temporary \
         files, got more; write the sound to a file, or set TMPDIR to a larger disk"
    )]
    TooLong {
        /// Path of the pipe.
        path: PathBuf,
        /// Most bytes that are copied.
        most: u64,
    },
    /// The file is a text, such as a playlist, which names other files.
    #[error("{path}: wants a media file, got {kind}; name the sound file itself")]
    Text {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the text.
        kind: &'static str,
    },
    /// The file has no bytes.
    #[error("{path}: wants a media file, the file is empty")]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
}

impl InputFileError {
    /// Returns `Resources` where the disk is too small, and `Input` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Copy { .. } | Self::TooLong { .. } => ErrorKind::Resources,
            _ => ErrorKind::Input,
        }
    }
}

/// Opens a file for reading.
///
/// # Errors
/// A file that the system refuses, a folder, an empty file.
pub(crate) fn open(path: &Path) -> Result<File, InputFileError> {
    let at = || path.to_owned();
    let refused = |source| InputFileError::Open { path: at(), source };
    let file = File::open(path).map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    if metadata.is_dir() {
        return Err(InputFileError::Folder { path: at() });
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(InputFileError::Empty { path: at() });
    }
    Ok(file)
}
