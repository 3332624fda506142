//! Starts FFmpeg and opens media files with it.
//!
//! FFmpeg recognises a file by its content and reads it from a file handle. So neither a name with
//! a colon nor a playlist inside the file can make the demuxer open anything else.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engines::error_kind::ErrorKind;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::util::log;
use ffmpeg_next::{Dictionary, Error, format};

use crate::media::ffmpeg_log;
use crate::media::input_file::{self, InputFileError};
use crate::media::sound_file::SoundFile;

/// A reason why a media file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, or it is empty.
    #[error(transparent)]
    File(#[from] InputFileError),
    /// FFmpeg does not recognise the content.
    #[error("{path}: wants a media file that FFmpeg reads: {source}")]
    Container {
        /// Path of the file.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
}

impl OpenError {
    /// Returns the kind of the file's error, or `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::Container { .. } => ErrorKind::Input,
        }
    }
}

/// Starts FFmpeg's libraries once and silences their log. Our errors carry FFmpeg's messages.
///
/// # Errors
/// The libraries do not start.
pub(crate) fn start() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        ffmpeg_next::init()?;
        log::set_level(log::Level::Quiet);
        ffmpeg_log::hear_all();
        Ok(())
    })
}

/// Opens a media file for reading.
///
/// # Errors
/// A file that cannot be opened, is empty, or has a content that FFmpeg does not recognise.
pub(crate) fn open(path: &Path) -> Result<Input, OpenError> {
    demux(path, input_file::open(path)?)
}

/// Opens a sound file for reading.
///
/// # Errors
/// A content that FFmpeg does not recognise.
pub(crate) fn open_sound(file: &SoundFile) -> Result<Input, OpenError> {
    demux(file.path(), file.reader())
}

/// Recognises the content of a file, which can open no other file and no network.
fn demux(path: &Path, file: impl Read + Seek + Send + 'static) -> Result<Input, OpenError> {
    let demux = || {
        start()?;
        let mut options = Dictionary::new();
        options.set("protocol_whitelist", "none");
        format::input_from_stream(StreamIo::from_read_seek(file)?, None, Some(options))
    };
    demux().map_err(|source| OpenError::Container {
        path: path.to_owned(),
        source,
    })
}
