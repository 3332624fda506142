//! The state of a run on the disk, from which another run goes on with the same bytes.
//!
//! A state is a folder of tensor files and `state.json`, which names them. The files of a newer
//! state are on the disk before `state.json` names them, and only then those of the older one go.
//! So a power cut leaves one whole state. Why it is kept and how often is in `docs/resume.md`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engines::error_kind::{ErrorKind, reason};
use engines::files::WholeFile;
use engines::tensor_file::{self, TensorFileError, Tensors};
use serde::{Deserialize, Serialize};

use crate::chain::call::AnchorInput;
use crate::chain::snapshot::{Keeper, Kept, RingPlace, RingRows};

/// Version of the format.
const VERSION: u32 = 1;
/// File that names the others.
const STATE: &str = "state.json";
/// File of the decoder and of everything small.
const DECODER: &str = "decoder.safetensors";
/// Part of the time that keeping states may take.
const MOST_OF_TIME: u32 = 20;

/// Why a kept state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses to read or write a file of it.
    #[error("{}: {}", path.display(), reason(source))]
    File {
        /// The file.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// `state.json` is damaged, or of another version.
    #[error("{}: wanted the state of an unfinished run: {fault}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The state is that of another video.
    #[error(
        "{}: the unfinished run made another video, so this one cannot go on from it: {}; \
         without --resume a new video begins",
        path.display(),
        differences.join("; ")
    )]
    Other {
        /// The state.
        path: PathBuf,
        /// Each setting that differs, with both values.
        differences: Vec<String>,
    },
    /// An input of the run to go on with can be read only once.
    #[error(
        "{flag} {}: --resume wants a file, which it can compare with that of the unfinished run",
        path.display()
    )]
    Pipe {
        /// Flag of the input.
        flag: &'static str,
        /// The input.
        path: PathBuf,
    },
    /// A run with these outputs cannot go on to the same bytes.
    #[error(
        "--resume wants one MP4 file by libx264 without filters, as a run that kept its state has: {reason}"
    )]
    Outputs {
        /// What is otherwise.
        reason: String,
    },
    /// A tensor file of it cannot be read.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
}

impl JournalError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Format { .. } => ErrorKind::Input,
            Self::Other { .. } | Self::Pipe { .. } | Self::Outputs { .. } => ErrorKind::Usage,
            Self::Tensors(e) => e.kind(),
        }
    }
}

/// What a video is made from: names of settings and inputs, with their values or hashes.
pub(crate) type Identity = BTreeMap<String, String>;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    liveavatar_state: u32,
    /// First block that is still to be made.
    block: usize,
    /// Frames of the video before it.
    frames: usize,
    identity: Identity,
    /// Tensor files, by their names in the folder.
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    crc32: u32,
}

/// Keeps the states of one run, the newest one at a time.
pub(crate) struct Journal {
    folder: PathBuf,
    identity: Identity,
    /// Rings of a whole state.
    rings: usize,
    /// Least time between two states.
    every: Duration,
    /// Blocks of the video.
    blocks: usize,
    /// The state after the last block is kept, for the next part of a longer video.
    keeps_end: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    pending: Option<Pending>,
    /// When the newest state was whole, or the run began.
    since: Instant,
    /// Time that it took to write.
    cost: Duration,
    /// First block of the newest whole state.
    whole: Option<usize>,
    /// Why no more states are kept, and whether that was told.
    failed: Option<(String, bool)>,
}

/// A state that is being written.
struct Pending {
    block: usize,
    files: BTreeMap<String, Entry>,
    rings: usize,
    frames: Option<usize>,
    cost: Duration,
}

impl Journal {
    /// Makes a journal that keeps nothing yet. A whole state has `rings` rings.
    pub(crate) fn new(
        folder: PathBuf,
        identity: Identity,
        rings: usize,
        every: Duration,
        (blocks, keeps_end): (usize, bool),
    ) -> Self {
        let inner = Inner {
            pending: None,
            since: Instant::now(),
            cost: Duration::ZERO,
            whole: None,
            failed: None,
        };
        Self {
            folder,
            identity,
            rings,
            every,
            blocks,
            keeps_end,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the state before `block` is being kept.
    pub(crate) fn keeps(&self, block: usize) -> bool {
        let inner = self.lock();
        inner.pending.as_ref().is_some_and(|p| p.block == block)
    }

    /// Returns the first block of the newest whole state.
    pub(crate) fn whole(&self) -> Option<usize> {
        self.lock().whole
    }

    /// Returns once why no more states are kept.
    pub(crate) fn failure(&self) -> Option<String> {
        let mut inner = self.lock();
        let (text, told) = inner.failed.as_mut()?;
        (!std::mem::replace(told, true)).then(|| text.clone())
    }

    /// Takes the decoder's part of the state before `block`. The video's `frames` before it are on
    /// the disk.
    pub(crate) fn decoder(&self, block: usize, frames: usize, state: &Tensors) {
        self.part(block, DECODER, state, |pending| {
            pending.frames = Some(frames);
        });
    }

    /// Removes everything that was kept.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes one file of a state, and the state once it is whole. A failure ends the journal and
    /// not the video.
    fn part(&self, block: usize, name: &str, tensors: &Tensors, note: impl FnOnce(&mut Pending)) {
        let begun = Instant::now();
        let written = self.write_part(block, name, tensors);
        let mut inner = self.lock();
        let Some(mut pending) = inner.pending.take_if(|p| p.block == block) else {
            return;
        };
        let done = written.and_then(|entry| {
            pending.files.insert(name.to_owned(), entry);
            note(&mut pending);
            pending.cost += begun.elapsed();
            match (pending.rings == self.rings, pending.frames) {
                (true, Some(frames)) => self.commit(&mut inner, pending, frames),
                _ => {
                    inner.pending = Some(pending);
                    Ok(())
                }
            }
        });
        if let Err(error) = done {
            let text = format!("the run's state is no longer kept: {error}");
            inner.failed = Some((text, false));
        }
    }

    fn write_part(
        &self,
        block: usize,
        name: &str,
        tensors: &Tensors,
    ) -> Result<Entry, JournalError> {
        let folder = self.folder.join(state_folder(block));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::File { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = folder.join(name);
        tensor_file::write(&path, tensors)?;
        let file = File::open(&path).map_err(failed(&path))?;
        file.sync_all().map_err(failed(&path))?;
        let bytes = file.metadata().map_err(failed(&path))?.len();
        Ok(Entry {
            bytes,
            crc32: checksum(tensors),
        })
    }

    /// Names the files of a whole state, and removes those of the older one.
    fn commit(
        &self,
        inner: &mut Inner,
        pending: Pending,
        frames: usize,
    ) -> Result<(), JournalError> {
        let begun = Instant::now();
        let state = StateFile {
            liveavatar_state: VERSION,
            block: pending.block,
            frames,
            identity: self.identity.clone(),
            files: pending.files,
        };
        let path = self.folder.join(STATE);
        let written = || {
            sync_folder(&self.folder.join(state_folder(state.block)))?;
            let mut file = WholeFile::create(&path)?;
            serde_json::to_writer_pretty(&mut file, &state)?;
            file.write_all(b"\n")?;
            file.file().sync_all()?;
            file.finish()?;
            sync_folder(&self.folder)
        };
        written().map_err(|source| JournalError::File { path, source })?;
        if let Some(older) = inner.whole.replace(state.block) {
            // A folder that stays takes room and does no harm.
            drop(fs::remove_dir_all(self.folder.join(state_folder(older))));
        }
        inner.cost = pending.cost + begun.elapsed();
        inner.since = Instant::now();
        Ok(())
    }
}

impl Keeper for Journal {
    fn wants(&self, block: usize) -> bool {
        let mut inner = self.lock();
        // The decoder may be behind, with the state before.
        if inner.failed.is_some() || inner.pending.is_some() {
            return false;
        }
        let wait = match self.every {
            Duration::ZERO => Duration::ZERO,
            every => every.max(inner.cost * MOST_OF_TIME),
        };
        let due = match block == self.blocks {
            true => self.keeps_end,
            false => inner.since.elapsed() >= wait,
        };
        if due {
            inner.pending = Some(Pending {
                block,
                files: BTreeMap::new(),
                rings: 0,
                frames: None,
                cost: Duration::ZERO,
            });
        }
        due
    }

    fn ring(&self, block: usize, place: RingPlace, rows: RingRows) {
        let tensors = [
            (KEYS.to_owned(), rows.keys),
            (VALUES.to_owned(), rows.values),
        ];
        let name = ring_file(place);
        self.part(block, &name, &tensors.into(), |pending| pending.rings += 1);
    }
}

/// Names of a ring's tensors, and of the second anchor's.
const KEYS: &str = "keys";
const VALUES: &str = "values";
const ANCHOR: [&str; 2] = ["second_anchor.ref_latents", "second_anchor.motion_latents"];

/// Adds the input of the second anchor to the decoder's part of a state.
pub(crate) fn with_anchor(state: &mut Tensors, anchor: &AnchorInput) {
    let parts = [&anchor.ref_latents, &anchor.motion_latents];
    for (name, tensor) in ANCHOR.iter().zip(parts) {
        state.insert((*name).to_owned(), tensor.clone());
    }
}

fn ring_file(RingPlace { step, layer }: RingPlace) -> String {
    format!("ring.step{step:02}.layer{layer:02}.safetensors")
}

fn state_folder(block: usize) -> String {
    format!("block-{block:08}")
}

fn checksum(tensors: &Tensors) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    for (name, tensor) in tensors {
        hash.update(name.as_bytes());
        hash.update(tensor.bytes());
    }
    hash.finalize()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Says whether a folder has parts of a state and no whole one.
pub(crate) fn is_of_no_use(folder: &Path) -> bool {
    folder.is_dir() && !folder.join(STATE).exists()
}

/// A whole state that an earlier run left.
pub(crate) struct Found {
    folder: PathBuf,
    state: StateFile,
    /// The decoder's state.
    pub(crate) decoder: Tensors,
    /// Input of the second anchor, if the run has one.
    pub(crate) second_anchor: Option<AnchorInput>,
}

impl Found {
    /// Reads the state of a run in `folder`, without its rings. Returns `None` if there is none.
    ///
    /// # Errors
    /// The state is damaged, or that of a video with another identity.
    pub(crate) fn open(folder: &Path, identity: &Identity) -> Result<Option<Self>, JournalError> {
        let path = folder.join(STATE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JournalError::File { path, source }),
        };
        let state: StateFile = serde_json::from_str(&text).map_err(|e| JournalError::Format {
            path: path.clone(),
            fault: e.to_string(),
        })?;
        if state.liveavatar_state != VERSION {
            let fault = format!(
                "version {}, this program knows {VERSION}",
                state.liveavatar_state
            );
            return Err(JournalError::Format { path, fault });
        }
        let differences = differences(&state.identity, identity);
        if !differences.is_empty() {
            return Err(JournalError::Other { path, differences });
        }
        let mut found = Self {
            folder: folder.join(state_folder(state.block)),
            state,
            decoder: Tensors::new(),
            second_anchor: None,
        };
        found.decoder = found.tensors(DECODER)?;
        let [picture, motion] = ANCHOR.map(|name| found.decoder.remove(name));
        found.second_anchor =
            picture
                .zip(motion)
                .map(|(ref_latents, motion_latents)| AnchorInput {
                    ref_latents,
                    motion_latents,
                });
        Ok(Some(found))
    }

    /// Returns the first block that is still to be made.
    pub(crate) fn block(&self) -> usize {
        self.state.block
    }

    /// Counts the frames of the video before that block.
    pub(crate) fn frames(&self) -> usize {
        self.state.frames
    }

    fn tensors(&self, name: &str) -> Result<Tensors, TensorFileError> {
        let path = self.folder.join(name);
        let damaged = |text: &str| TensorFileError::Read {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, text.to_owned()),
        };
        let Some(entry) = self.state.files.get(name) else {
            return Err(damaged("state.json does not name it"));
        };
        let tensors = tensor_file::read(&path)?;
        if checksum(&tensors) != entry.crc32 {
            return Err(damaged("its checksum is not the one in state.json"));
        }
        Ok(tensors)
    }
}

impl Kept for Found {
    fn ring(&self, place: RingPlace) -> Result<RingRows, TensorFileError> {
        let name = ring_file(place);
        let mut tensors = self.tensors(&name)?;
        let mut take = |key: &str| {
            tensors.remove(key).ok_or_else(|| TensorFileError::Read {
                path: self.folder.join(&name),
                source: io::Error::new(io::ErrorKind::InvalidData, format!("it has no {key}")),
            })
        };
        Ok(RingRows {
            keys: take(KEYS)?,
            values: take(VALUES)?,
        })
    }
}

/// Returns each setting that differs, with both values.
fn differences(then: &Identity, now: &Identity) -> Vec<String> {
    let value =
        |of: &Identity, name: &str| of.get(name).map_or("nothing", String::as_str).to_owned();
    let mut names: Vec<&String> = then.keys().chain(now.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differs = |name: &&String| then.get(*name) != now.get(*name);
    let tell = |name: &String| format!("{name} was {}, is {}", value(then, name), value(now, name));
    names.into_iter().filter(differs).map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engines::contract::DType;
    use engines::tensor::Tensor;

    fn identity(steps: &str) -> Identity {
        let pairs = [("sample_steps", steps), ("image", "ab")];
        pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).into()
    }

    fn rows(value: f32) -> RingRows {
        let tensor = |v: f32| Tensor::from_slice(&[1, 2], &[v, v + 1.0]);
        RingRows {
            keys: tensor(value),
            values: tensor(-value),
        }
    }

    const PLACES: [RingPlace; 2] = [
        RingPlace { step: 0, layer: 0 },
        RingPlace { step: 1, layer: 0 },
    ];

    fn kept(folder: &Path, block: usize, every: Duration) -> Journal {
        let journal = Journal::new(folder.to_owned(), identity("4"), 2, every, (99, false));
        keep(&journal, block);
        journal
    }

    /// Gives a journal the whole state before `block`, the decoder's part in the middle.
    fn keep(journal: &Journal, block: usize) {
        assert!(journal.wants(block));
        journal.ring(block, PLACES[0], rows(block as f32));
        let state = [("cache".to_owned(), Tensor::zeros(DType::F32, &[3]))];
        journal.decoder(block, 12 * block - 3, &state.into());
        assert_ne!(journal.whole(), Some(block));
        journal.ring(block, PLACES[1], rows(2.0));
        assert_eq!(journal.whole(), Some(block));
    }

    #[test]
    fn the_newest_whole_state_is_found_and_older_ones_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("v.partial.state");
        assert!(Found::open(&folder, &identity("4")).unwrap().is_none());
        let journal = kept(&folder, 4, Duration::ZERO);
        keep(&journal, 8);
        // A third one is begun and never whole.
        assert!(journal.wants(12));
        journal.ring(12, PLACES[0], rows(12.0));
        let found = Found::open(&folder, &identity("4")).unwrap().unwrap();
        assert_eq!((found.block(), found.frames()), (8, 93));
        let ring = Kept::ring(&found, PLACES[0]).unwrap();
        assert_eq!(ring.keys.as_slice::<f32>(), [8.0, 9.0]);
        assert_eq!(ring.values.as_slice::<f32>(), [-8.0, -7.0]);
        assert_eq!(found.decoder["cache"].shape(), [3]);
        assert!(!folder.join(state_folder(4)).exists());
        journal.remove().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_state_is_kept_when_it_is_due_and_after_the_last_block() {
        let dir = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let journal = Journal::new(dir.path().join("s"), identity("4"), 2, hour, (8, true));
        assert!(!journal.wants(4));
        assert!(journal.wants(8));
    }

    #[test]
    fn another_video_and_damage_are_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("s");
        kept(&folder, 4, Duration::ZERO);
        let refused = |identity: &Identity| Found::open(&folder, identity).err().unwrap();
        let error = refused(&identity("3"));
        assert_eq!(error.kind(), ErrorKind::Usage);
        let text = error.to_string();
        assert!(text.contains("sample_steps was 4, is 3;"), "{text}");
        assert!(!text.contains("image"), "{text}");
        let ring = folder.join(state_folder(4)).join(ring_file(PLACES[1]));
        let mut bytes = fs::read(&ring).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&ring, bytes).unwrap();
        let found = Found::open(&folder, &identity("4")).unwrap().unwrap();
        assert!(Kept::ring(&found, PLACES[0]).is_ok());
        let text = Kept::ring(&found, PLACES[1]).unwrap_err().to_string();
        assert!(
            text.contains("ring.step01.layer00") && text.contains("checksum"),
            "{text}"
        );
        fs::write(folder.join(STATE), "{").unwrap();
        let error = refused(&identity("4"));
        assert!(matches!(error, JournalError::Format { .. }), "{error}");
    }

    #[test]
    fn a_state_that_cannot_be_written_ends_the_journal_and_says_why_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("s"), "a file").unwrap();
        let folder = dir.path().join("s");
        let journal = Journal::new(folder, identity("4"), 2, Duration::ZERO, (99, false));
        assert!(journal.wants(4));
        journal.ring(4, PLACES[0], rows(1.0));
        assert!(journal.failure().unwrap().contains("no longer kept"));
        assert_eq!(journal.failure(), None);
        assert!(!journal.wants(8));
    }
}
