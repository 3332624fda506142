//! A sound file that the user names. It is opened once, and read as often as needed.
//!
//! A pipe is copied into a file without a name first, so that it can be read twice. The system
//! removes such a file when the program ends, however it ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::media::input_file::{self, InputFileError};
use crate::media::playlist;
use crate::media::wav_header::{Patch, WavHeader};

/// First bytes that tell text from sound.
const FIRST_BYTES: usize = 1024;
/// Part of the free disk space that a copied pipe may take: 1 / 2.
const SHARE_OF_DISK: u64 = 2;

/// An opened sound file.
#[derive(Clone, Debug)]
pub(crate) struct SoundFile {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
    wav: Option<WavHeader>,
}

impl SoundFile {
    /// Opens a file, or copies a pipe. A text is refused.
    ///
    /// # Errors
    /// A file that cannot be opened or copied, a folder, an empty file, a text.
    pub(crate) fn open(path: &Path) -> Result<Self, InputFileError> {
        let at = || path.to_owned();
        let refused = |source| InputFileError::Open { path: at(), source };
        let mut file = input_file::open(path)?;
        if !file.metadata().map_err(refused)?.is_file() {
            file = copy(path, file, free_bytes() / SHARE_OF_DISK)?;
        }
        let length = file.metadata().map_err(refused)?.len();
        if length == 0 {
            return Err(InputFileError::Empty { path: at() });
        }
        let mut sound = Self {
            path: at(),
            file: Arc::new(file),
            length,
            wav: None,
        };
        let mut first = Vec::new();
        let mut beginning = sound.reader().take(FIRST_BYTES as u64);
        beginning.read_to_end(&mut first).map_err(refused)?;
        if let Some(kind) = playlist::text_kind(&first) {
            return Err(InputFileError::Text { path: at(), kind });
        }
        // A damaged header is the decoder's to name.
        sound.wav = WavHeader::read(&mut sound.reader(), length).unwrap_or(None);
        Ok(sound)
    }

    /// Returns the path that the user named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the facts of the header, if this is a WAV file.
    pub(crate) fn wav(&self) -> Option<&WavHeader> {
        self.wav.as_ref()
    }

    /// Reads the file from its start, with the corrections of its header.
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            file: Arc::clone(&self.file),
            at: 0,
            length: self.length,
            patches: self
                .wav
                .as_ref()
                .map_or_else(Vec::new, |w| w.patches.clone()),
        }
    }
}

/// Returns the free bytes of the folder of temporary files.
fn free_bytes() -> u64 {
    let disk = rustix::fs::statvfs(std::env::temp_dir());
    disk.map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Copies a pipe of at most `most` bytes into a file without a name.
fn copy(path: &Path, pipe: impl Read, most: u64) -> Result<File, InputFileError> {
    let failed = |source| InputFileError::Copy {
        path: path.to_owned(),
        source,
    };
    let mut file = tempfile::tempfile().map_err(failed)?;
    let copied = io::copy(&mut pipe.take(most.saturating_add(1)), &mut file).map_err(failed)?;
    file.flush().map_err(failed)?;
    if copied > most {
        return Err(InputFileError::TooLong {
            path: path.to_owned(),
            most,
        });
    }
    Ok(file)
}

/// A reader with a place of its own in a shared file.
#[derive(Debug)]
pub(crate) struct Reader {
    file: Arc<File>,
    at: u64,
    length: u64,
    patches: Vec<Patch>,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        let end = self.at + n as u64;
        for patch in &self.patches {
            for (at, &byte) in (patch.at..).zip(&patch.bytes) {
                if (self.at..end).contains(&at) {
                    into[(at - self.at) as usize] = byte;
                }
            }
        }
        self.at = end;
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use engines::error_kind::ErrorKind;

    use super::*;
    use crate::fixtures::sound::{floats, tone, wav};

    #[test]
    fn a_pipe_is_copied_and_read_twice() {
        let (dir, path) = wav(floats(16_000, 1), tone(16_000, 0.2));
        let stored = std::fs::read(&path).unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let (into, bytes) = (pipe.clone(), stored.clone());
        let writer = std::thread::spawn(move || std::fs::write(into, bytes));
        let sound = SoundFile::open(&pipe).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(sound.path(), pipe);
        let mut readers = [sound.reader(), sound.reader()];
        readers[0].seek(SeekFrom::Start(100)).unwrap();
        for (reader, from) in readers.iter_mut().zip([100, 0]) {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == stored[from..]);
        }
        assert_eq!(
            readers[1].seek(SeekFrom::End(-4)).unwrap() + 4,
            stored.len() as u64
        );
        assert!(readers[1].seek(SeekFrom::Current(-99_999)).is_err());
    }

    #[test]
    fn an_endless_pipe_ends_at_the_limit() {
        let error = copy(Path::new("pipe"), io::repeat(1), 5000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources);
        let text = error.to_string();
        assert!(
            text.contains("pipe: ") && text.contains("5000 bytes"),
            "{text}"
        );
        assert!(copy(Path::new("pipe"), &[1; 5000][..], 5000).is_ok());
    }

    #[test]
    fn corrections_stand_in_place_of_the_files_bytes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut reader = Reader {
            file: Arc::new(file),
            at: 0,
            length: 10,
            patches: vec![Patch {
                at: 3,
                bytes: b"abc".to_vec(),
            }],
        };
        let mut read = [0; 4];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"012a");
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"bc67");
    }
}
