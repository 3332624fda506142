//! The door to FFmpeg: one start, quiet, and media files opened by content from a file handle, so
//! that neither a name with a colon nor a playlist inside the file can make the demuxer reach for
//! anything else.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engines::error_kind::ErrorKind;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::util::log;
use ffmpeg_next::{Dictionary, Error, format};

/// Why a media file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: wants a media file, {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: wants a media file, got a folder")]
    Folder { path: PathBuf },
    #[error("{path}: wants a media file, the file is empty")]
    Empty { path: PathBuf },
    #[error("{path}: wants a media file that FFmpeg reads, {source}")]
    Container { path: PathBuf, source: Error },
}

impl OpenError {
    /// Always the input's fault.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// Starts FFmpeg's libraries once and silences their log; errors carry the library's own words
/// instead.
pub(crate) fn start() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        ffmpeg_next::init()?;
        log::set_level(log::Level::Quiet);
        Ok(())
    })
}

/// Opens a media file for reading.
pub(crate) fn open(path: &Path) -> Result<Input, OpenError> {
    let at = || path.to_owned();
    let file = File::open(path).map_err(|source| OpenError::File { path: at(), source })?;
    let facts = file
        .metadata()
        .map_err(|source| OpenError::File { path: at(), source })?;
    if facts.is_dir() {
        return Err(OpenError::Folder { path: at() });
    }
    if facts.is_file() && facts.len() == 0 {
        return Err(OpenError::Empty { path: at() });
    }
    let demux = || {
        start()?;
        let mut options = Dictionary::new();
        options.set("protocol_whitelist", "none");
        format::input_from_stream(StreamIo::from_read_seek(file)?, None, Some(options))
    };
    demux().map_err(|source| OpenError::Container { path: at(), source })
}
