//! The journal of a batch: one JSON object a line for each change of a video's state, on the disk
//! before the next step is taken. It is only appended to, so a stop at any moment loses no line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::commands::error::Error;

/// Version of the form, in the first line.
const FORMAT: u32 = 1;

/// The state of one video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// An attempt has begun.
    Begun,
    /// The video is complete.
    Done,
    /// An attempt has failed.
    Failed,
    /// A signal stopped the attempt.
    Interrupted,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The video, from the folder of the journal, or absolute outside of it.
    pub(super) video: PathBuf,
    pub(super) state: State,
    /// Hash of the flags, the inputs, the model and the program.
    pub(super) key: String,
    /// Number of the attempt, from 1.
    pub(super) attempt: usize,
    /// Length of the finished file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    /// Why the attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Exit code of a single run with this failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) exit: Option<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    liveavatar_batch: u32,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    newest: BTreeMap<PathBuf, Entry>,
}

impl Journal {
    /// Opens a journal, or begins one. A last line without an end is dropped: its write did not
    /// complete.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no journal.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let cannot = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let mut open = File::options();
        let mut file = open
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(cannot)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(cannot)?;
        let whole = bytes
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let newest = entries(path, &text)?;
        let starts = whole == 0 && !bytes.is_empty() && !is_begun_head(&bytes);
        if starts {
            return Err(no_journal(path, 1, "wants a line"));
        }
        file.set_len(whole as u64).map_err(cannot)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            newest,
        };
        if whole == 0 {
            let head = Head {
                liveavatar_batch: FORMAT,
            };
            journal.append(&head)?;
        }
        Ok(journal)
    }

    /// Returns the newest line of a video.
    pub(super) fn newest(&self, video: &Path) -> Option<&Entry> {
        self.newest.get(video)
    }

    /// Writes a line, and returns when it is on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn note(&mut self, entry: Entry) -> Result<(), Error> {
        self.append(&entry)?;
        self.newest.insert(entry.video.clone(), entry);
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).expect("plain data is JSON");
        text.push('\n');
        let written: io::Result<()> = self.file.write_all(text.as_bytes());
        let written = written.and_then(|()| self.file.sync_data());
        written.map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }
}

/// Says whether a first line without an end may be that of a journal.
fn is_begun_head(bytes: &[u8]) -> bool {
    let head = Head {
        liveavatar_batch: FORMAT,
    };
    let head = serde_json::to_vec(&head).expect("plain data is JSON");
    head.starts_with(bytes)
}

fn no_journal(path: &Path, line: usize, reason: &str) -> Error {
    Error::ListField {
        place: format!("{}:{line}", path.display()),
        message: format!("is no line of a batch's journal: {reason}; --journal names another file"),
    }
}

/// Reads the lines, and keeps the newest of each video.
fn entries(path: &Path, text: &str) -> Result<BTreeMap<PathBuf, Entry>, Error> {
    let mut newest = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let fault = |e: serde_json::Error| no_journal(path, at + 1, &e.to_string());
        if at == 0 {
            let head: Head = serde_json::from_str(line).map_err(fault)?;
            if head.liveavatar_batch != FORMAT {
                let found = head.liveavatar_batch;
                let reason = format!("liveavatar_batch is {found}, this program reads {FORMAT}");
                return Err(no_journal(path, 1, &reason));
            }
            continue;
        }
        let entry: Entry = serde_json::from_str(line).map_err(fault)?;
        newest.insert(entry.video.clone(), entry);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn entry(video: &str, state: State) -> Entry {
        Entry {
            video: video.into(),
            state,
            key: "k".to_owned(),
            attempt: 1,
            bytes: None,
            error: None,
            exit: None,
        }
    }

    #[test]
    fn the_newest_line_counts_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batch.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal.note(entry("a", State::Begun)).unwrap();
        journal.note(entry("b", State::Begun)).unwrap();
        journal.note(entry("a", State::Done)).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            let done = journal
                .newest(Path::new("a"))
                .is_some_and(|e| e.state == State::Done);
            assert_eq!(done, cut == whole.len(), "{cut}");
            journal.note(entry("c", State::Failed)).unwrap();
            drop(journal);
            let journal = Journal::open(&path).unwrap();
            assert!(journal.newest(Path::new("c")).is_some(), "{cut}");
        }
    }

    #[test]
    fn another_file_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        for (text, want) in [
            ("hello\nworld\n", "notes.txt:1: is no line"),
            ("hello", "notes.txt:1: is no line"),
            ("{\"liveavatar_batch\":9}\n", "liveavatar_batch is 9"),
            ("{\"liveavatar_batch\":1}\n{}\n", "notes.txt:2: is no line"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Journal::open(&path).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
