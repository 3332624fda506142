//! The folder of an unfinished export: `.NAME.partial` beside the target. One process writes to it
//! at a time. It stays when the export fails or is killed, and gets the target's name when it is
//! whole. Not here: the files in it.
use super::error::ExportError;
use super::journal::{self, Identity, Journal};
use crate::graph::data::DataPlan;
use engines::claims::Holder;
use engines::manifest;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for the lock. A killed process holds it until its last write is done.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes for the graphs, the manifest and the journal.
const SLACK: u64 = 16 << 20;

/// The use of the files that an earlier, unfinished export left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Continue, when they belong to the same request.
    #[default]
    Continue,
    /// Delete them and start from the beginning.
    Anew,
}

/// An unfinished export, locked for this process.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
    pub(super) journal: Journal,
}

/// Returns `.NAME.partial` beside `out`.
fn beside(out: &Path) -> PathBuf {
    let name = out
        .file_name()
        .map_or_else(|| "models".into(), |n| n.to_string_lossy());
    out.with_file_name(format!(".{name}.partial"))
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    let path = path.to_owned();
    |source| ExportError::Io { path, source }
}

/// Checks that the target may be replaced: it must be an export, an empty folder, or absent.
pub(super) fn check_target(out: &Path) -> Result<(), ExportError> {
    let empty = |path| fs::read_dir(path).is_ok_and(|mut d| d.next().is_none());
    if out.exists() && !out.join(manifest::FILE).is_file() && !empty(out) {
        return Err(ExportError::Occupied {
            path: out.to_owned(),
        });
    }
    Ok(())
}

/// Checks that no run uses the export that would be replaced, and keeps runs from opening it while
/// the returned file lives.
pub(super) fn unused(out: &Path) -> Result<Option<File>, ExportError> {
    let Ok(file) = File::open(out.join(manifest::FILE)) else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ExportError::InUse {
            path: out.to_owned(),
            holder: Holder::of(&file),
        }),
        // A file system without locks: a run sees the change when it ends.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

impl Staging {
    /// Makes the folder, or opens the folder of an earlier run. Returns a notice when files were
    /// deleted.
    pub(super) fn open(
        out: &Path,
        identity: &Identity,
        start: Start,
    ) -> Result<(Self, Option<String>), ExportError> {
        let path = beside(out);
        retract(out, &path)?;
        let mut notice = leftover(&path)?;
        let file = lock(&path)?;
        let anew = start == Start::Anew;
        let (journal, other) =
            Journal::open(file, identity, anew).map_err(fail(&path.join(journal::FILE)))?;
        if journal.known().is_empty() {
            let removed = sweep(&path, &BTreeSet::from([journal::FILE.to_owned()]))?;
            notice = match other {
                Some(why) if removed > 0 => Some(format!(
                    "{}: an unfinished export of {why} is thrown away",
                    path.display()
                )),
                _ => notice,
            };
        }
        Ok((Self { path, journal }, notice))
    }

    /// Checks that the disk has room for the rest of the files.
    pub(super) fn check_room(&self, plans: &[DataPlan<'_>]) -> Result<(), ExportError> {
        let written = |plan: &DataPlan<'_>| {
            let file = fs::metadata(self.path.join(&plan.file));
            file.map_or(0, |m| (m.blocks() * 512).min(plan.bytes()))
        };
        let want: u64 = plans.iter().map(|p| p.bytes() - written(p)).sum::<u64>() + SLACK;
        let disk = rustix::fs::statvfs(&self.path).map_err(|e| fail(&self.path)(e.into()))?;
        match disk.f_bavail.saturating_mul(disk.f_frsize) {
            free if free < want => Err(ExportError::NoSpace {
                path: self.path.clone(),
                want,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Makes `files` durable. One call at the end waits for the disk once; a call for each file
    /// would wait each time.
    pub(super) fn synchronise(&self, files: &BTreeSet<String>) -> Result<(), ExportError> {
        for path in files
            .iter()
            .map(|f| self.path.join(f))
            .chain([self.path.clone()])
        {
            File::open(&path)
                .and_then(|f| f.sync_all())
                .map_err(fail(&path))?;
        }
        Ok(())
    }

    /// Gives the folder the target's name. An older export is replaced first and removed then.
    /// `files` are the files of the export.
    pub(super) fn publish(
        self,
        out: &Path,
        mut files: BTreeSet<String>,
    ) -> Result<(), ExportError> {
        files.insert(journal::FILE.to_owned());
        sweep(&self.path, &files)?;
        let sync = |path: &Path| {
            File::open(path)
                .and_then(|d| d.sync_all())
                .map_err(fail(path))
        };
        if out.exists() {
            replace(&self.path, out).map_err(fail(out))?;
        } else {
            fs::rename(&self.path, out).map_err(fail(out))?;
        }
        // The journal is removed last. A target that still has its journal is taken back and
        // checked.
        fs::remove_file(out.join(journal::FILE)).map_err(fail(out))?;
        match out.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }

    /// Removes the folder, in which nothing is worth keeping.
    pub(super) fn remove(self) {
        // A folder that cannot be removed is removed by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Swaps the two folders, so that the target never misses, and removes the older one. Where the
/// file system cannot swap, the older folder is removed first.
fn replace(new: &Path, out: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, out, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_dir_all(new),
        Err(_) => {
            fs::remove_dir_all(out)?;
            fs::rename(new, out)
        }
    }
}

/// Takes the target back when it has a journal: a run was killed while it published. The caller
/// checks it and publishes it again.
fn retract(out: &Path, path: &Path) -> Result<(), ExportError> {
    let left = out.join(journal::FILE);
    if !left.is_file() {
        return Ok(());
    }
    let _held = lock(out)?;
    if path.exists() && !path.join(journal::FILE).is_file() {
        fs::remove_dir_all(path).map_err(fail(path))?;
    }
    match path.exists() {
        // A newer run has its own folder. The target is complete; only its journal must go.
        true => fs::remove_file(&left).map_err(fail(&left)),
        false => fs::rename(out, path).map_err(fail(out)),
    }
}

/// Removes a folder without a journal that has the name of the unfinished folder, when it is an
/// older export. Any other folder is an error.
fn leftover(path: &Path) -> Result<Option<String>, ExportError> {
    if !path.exists() || path.join(journal::FILE).is_file() {
        return Ok(None);
    }
    check_target(path)?;
    let export = path.join(manifest::FILE).is_file();
    fs::remove_dir_all(path).map_err(fail(path))?;
    Ok(export.then(|| format!("{}: a replaced export is removed", path.display())))
}

/// Opens the journal of a folder and locks it for this process. Makes the folder when it is
/// missing.
fn lock(path: &Path) -> Result<File, ExportError> {
    let name = path.join(journal::FILE);
    let since = Instant::now();
    loop {
        fs::create_dir_all(path).map_err(fail(path))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&name)
            .map_err(fail(&name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(ExportError::Busy {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(fail(&name)(e)),
        }
        // Another process may have published or removed the folder before the lock.
        let id = |m: fs::Metadata| (m.dev(), m.ino());
        let held = file.metadata().map(id).map_err(fail(&name))?;
        if fs::metadata(&name).is_ok_and(|m| id(m) == held) {
            return Ok(file);
        }
    }
}

/// Removes every entry that `keep` does not name. Returns the number of removed entries.
fn sweep(path: &Path, keep: &BTreeSet<String>) -> Result<usize, ExportError> {
    let mut removed = 0;
    for entry in fs::read_dir(path).map_err(fail(path))? {
        let entry = entry.map_err(fail(path))?;
        if keep.contains(&*entry.file_name().to_string_lossy()) {
            continue;
        }
        let at = entry.path();
        let gone = if entry.file_type().is_ok_and(|t| t.is_dir()) {
            fs::remove_dir_all(&at)
        } else {
            fs::remove_file(&at)
        };
        gone.map_err(fail(&at))?;
        removed += 1;
    }
    Ok(removed)
}
