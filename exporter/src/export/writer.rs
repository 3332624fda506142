//! Writes the data files on all cores.
//!
//! Each worker takes the next block, makes it, hashes it and writes it. The caller's thread keeps
//! the journal. A block that the journal lists is read and hashed instead, and made again when the
//! hash differs. Each worker holds one block and one tile, whatever the model.
use super::error::ExportError;
use super::journal::Journal;
use crate::graph::data::{BLOCK, DataPlan, WeightBytes};
use crate::graph::error::WriteError;
use blake3::hazmat::ChainingValue;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Most memory of all workers together.
const BUDGET: usize = 1 << 30;
/// Memory of one worker: its block, a tile, and the values computed for a tile.
const WORKER: usize = 2 * BLOCK as usize;

/// One data file and the source of its floats.
pub(super) struct Work<'a, S> {
    pub(super) plan: &'a DataPlan<'a>,
    pub(super) source: &'a S,
    file: File,
    path: PathBuf,
}

impl<'a, S> Work<'a, S> {
    /// Opens `plan`'s file in `dir`, or makes it. Existing bytes stay.
    pub(super) fn open(
        plan: &'a DataPlan<'a>,
        source: &'a S,
        dir: &Path,
    ) -> Result<Self, WriteError> {
        let path = dir.join(&plan.file);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        match file {
            Ok(file) => Ok(Self {
                plan,
                source,
                file,
                path,
            }),
            Err(source) => Err(WriteError::Io { path, source }),
        }
    }

    fn io<T>(&self, result: std::io::Result<T>) -> Result<T, WriteError> {
        result.map_err(|source| WriteError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// A block that is written.
struct Placed {
    work: usize,
    block: u64,
    hash: ChainingValue,
    /// True when an earlier run wrote the block.
    kept: bool,
}

/// The progress of an export.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Data file that the last block belongs to.
    pub file: &'a str,
    /// Bytes of all data files that are written.
    pub done: u64,
    /// Of these, bytes that an earlier run wrote and that were found sound.
    pub kept: u64,
    /// Bytes of all data files.
    pub total: u64,
}

/// Returns the number of threads whose memory fits [`BUDGET`].
pub(super) fn workers() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(1, BUDGET / WORKER)
}

/// Writes every block and returns the hash of each file. It stops early when `stop` is set; the
/// journal then lists the written blocks.
pub(super) fn write<S: WeightBytes>(
    works: &[Work<'_, S>],
    journal: &mut Journal,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<String>, ExportError> {
    let items: Vec<(usize, u64)> = (0..works.len())
        .flat_map(|w| (0..works[w].plan.blocks()).map(move |b| (w, b)))
        .collect();
    let total = works.iter().map(|w| w.plan.bytes()).sum();
    let known = journal.known().clone();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut hashes: Vec<Vec<Option<ChainingValue>>> = works
        .iter()
        .map(|w| vec![None; w.plan.blocks() as usize])
        .collect();
    let (mut done, mut kept, mut error) = (0, 0, None);
    thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(2 * workers());
        for _ in 0..workers() {
            let send = send.clone();
            scope.spawn(|| {
                let (send, mut bytes) = (send, Vec::new());
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let halt = stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed);
                    let Some(&(w, block)) = items.get(i).filter(|_| !halt) else {
                        return;
                    };
                    if let Some(&(w, block)) = items.get(i + workers()) {
                        works[w].plan.prefetch(block, works[w].source);
                    }
                    let listed = known.get(&(works[w].plan.file.clone(), block));
                    let placed = place(&works[w], block, listed, &mut bytes);
                    let placed = placed.map(|(hash, kept)| Placed {
                        work: w,
                        block,
                        hash,
                        kept,
                    });
                    if send.send(placed).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for placed in receive {
            let noted = placed.map_err(ExportError::from).and_then(|p| {
                let plan = works[p.work].plan;
                if !p.kept {
                    let added = journal.add(&plan.file, p.block, &p.hash);
                    added.map_err(|source| ExportError::Io {
                        path: works[p.work].path.with_file_name(super::journal::FILE),
                        source,
                    })?;
                }
                hashes[p.work][p.block as usize] = Some(p.hash);
                let range = plan.range(p.block);
                done += range.end - range.start;
                kept += if p.kept { range.end - range.start } else { 0 };
                observe(Progress {
                    file: &plan.file,
                    done,
                    kept,
                    total,
                });
                Ok(())
            });
            if let Err(e) = noted {
                failed.store(true, Ordering::Relaxed);
                error.get_or_insert(e);
            }
        }
    });
    match error {
        Some(error) => Err(error),
        None => works.iter().zip(&hashes).map(|(w, h)| seal(w, h)).collect(),
    }
}

/// Writes block `i`, unless the file already has the block with the hash `listed`. Returns its hash
/// and whether the file had it.
fn place<S: WeightBytes>(
    work: &Work<'_, S>,
    i: u64,
    listed: Option<&ChainingValue>,
    bytes: &mut Vec<u8>,
) -> Result<(ChainingValue, bool), WriteError> {
    let range = work.plan.range(i);
    if let Some(listed) = listed {
        bytes.clear();
        bytes.resize((range.end - range.start) as usize, 0);
        let read = work.file.read_exact_at(bytes, range.start);
        if read.is_ok() && work.plan.hash_block(i, bytes) == *listed {
            return Ok((*listed, true));
        }
    }
    work.plan.fill(i, work.source, bytes)?;
    let hash = work.plan.hash_block(i, bytes);
    work.io(work.file.write_all_at(bytes, range.start))?;
    Ok((hash, false))
}

/// Cuts a finished file to its size and returns its hash in hex.
fn seal<S>(work: &Work<'_, S>, hashes: &[Option<ChainingValue>]) -> Result<String, ExportError> {
    let Some(hashes) = hashes.iter().copied().collect::<Option<Vec<_>>>() else {
        return Err(ExportError::Stopped);
    };
    work.io(work.file.set_len(work.plan.bytes()))?;
    Ok(work.plan.hash(&hashes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::journal::{self, Identity, Known};
    use super::*;
    use crate::graph::{Transform, Weight};
    use engines::contract::DType;
    use engines::error_kind::ErrorKind;
    use engines::recipe::Recipe;
    use std::ops::Range;

    #[derive(Debug, thiserror::Error)]
    #[error("gone")]
    struct Gone;

    /// Tensors of ones, of which one may be lost; reads are counted.
    #[derive(Default)]
    struct Ones {
        lost: Option<&'static str>,
        reads: AtomicUsize,
    }

    impl WeightBytes for Ones {
        type Error = Gone;

        fn read_f32(&self, key: &str) -> Result<Vec<f32>, Gone> {
            self.read_f32_range(key, 0..SIZE)
        }

        fn read_f32_range(&self, key: &str, elements: Range<usize>) -> Result<Vec<f32>, Gone> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let found = (self.lost != Some(key)).then(|| vec![1.0; elements.len()]);
            found.ok_or(Gone)
        }

        fn read_f32_tile(
            &self,
            key: &str,
            rows: Range<usize>,
            columns: Range<usize>,
            out: &mut Vec<f32>,
        ) -> Result<(), Gone> {
            *out = self.read_f32_range(key, 0..rows.len() * columns.len())?;
            Ok(())
        }
    }

    /// Four blocks of 1024 bytes each.
    const SIZE: usize = 1024;

    fn weights() -> [Weight; 3] {
        ["a", "b", "c"].map(|key| Weight {
            name: key.into(),
            key: key.into(),
            transform: Transform::Identity,
            dtype: DType::F32,
            stored: vec![SIZE],
            shape: vec![SIZE],
            value: 0,
        })
    }

    fn journal(dir: &Path) -> Journal {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(journal::FILE))
            .unwrap();
        let identity = Identity::new(Recipe::Fp32, None, "g".into());
        Journal::open(file, &identity, false).unwrap().0
    }

    fn run(dir: &Path, source: &Ones, stop: bool) -> (Result<Vec<String>, ExportError>, u64) {
        let weights = weights();
        let plan = DataPlan::new("w.data".into(), &weights)
            .unwrap()
            .in_blocks_of(1024);
        let works = [Work::open(&plan, source, dir).unwrap()];
        let mut kept = 0;
        let stop = AtomicBool::new(stop);
        let hashes = write(&works, &mut journal(dir), &stop, &mut |p| kept = p.kept);
        (hashes, kept)
    }

    fn known(dir: &Path) -> Known {
        journal(dir).known().clone()
    }

    #[test]
    fn only_what_is_not_soundly_there_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (first, kept) = run(dir.path(), &Ones::default(), false);
        let first = first.unwrap();
        let path = dir.path().join("w.data");
        let mut bytes = std::fs::read(&path).unwrap();
        let hash = blake3::hash(&bytes).to_hex().to_string();
        assert_eq!(
            (kept, bytes.len(), &first[0], known(dir.path()).len()),
            (0, 3 * 4 * SIZE, &hash, 12)
        );
        // One block is damaged and the last is not there.
        bytes[2000] ^= 1;
        bytes.truncate(11 * 1024 + 5);
        std::fs::write(&path, &bytes).unwrap();
        let again = Ones::default();
        let (second, kept) = run(dir.path(), &again, false);
        assert_eq!((second.unwrap(), kept), (first, 10 * 1024));
        assert_eq!(again.reads.into_inner(), 2);
    }

    #[test]
    fn a_stop_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (stopped, _) = run(dir.path(), &Ones::default(), true);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
        let lost = Ones {
            lost: Some("c"),
            ..Ones::default()
        };
        let (failed, _) = run(dir.path(), &lost, false);
        assert_eq!(failed.unwrap_err().to_string(), "weight c: gone");
        let noted = known(dir.path());
        // Every block before the lost tensor was taken first, and each that was written is noted.
        assert_eq!(noted.len(), 8);
        assert!(run(dir.path(), &Ones::default(), false).0.is_ok());
    }

    #[test]
    fn a_disk_that_fills_up_is_a_lack_of_resources() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("w.data")).unwrap();
        let error = run(dir.path(), &Ones::default(), false).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources);
        assert!(error.to_string().contains("w.data"), "{error}");
        assert!(known(dir.path()).is_empty());
    }
}
