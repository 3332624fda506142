//! Opens the media files that a user names.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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
    /// The file has no bytes.
    #[error("{path}: wants a media file, the file is empty")]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
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
