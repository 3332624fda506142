//! The folder of an unfinished export: `.NAME.partial` beside the target, one writer at a time,
//! kept when the export fails or is killed, and renamed when it is whole. Not here: what is written
//! into it.
use super::error::ExportError;
use super::journal::{self, Identity, Journal};
use crate::graph::data::DataPlan;
use engines::manifest;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the lock is waited for: a killed process holds it until its last write is through.
const PATIENCE: Duration = Duration::from_secs(3);
/// Room for graphs, manifest and journal.
const SLACK: u64 = 16 << 20;

/// Whether what an earlier, unfinished export left is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Where it belongs to the same request.
    #[default]
    Continue,
    /// Never: it is thrown away.
    Anew,
}

/// An unfinished export that this process alone writes to.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
    pub(super) journal: Journal,
}

/// `.NAME.partial` beside `out`.
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

/// A target that is a file, or a folder with something other than an export in it, is not ours to
/// replace.
pub(super) fn check_target(out: &Path) -> Result<(), ExportError> {
    let empty = |path| fs::read_dir(path).is_ok_and(|mut d| d.next().is_none());
    if out.exists() && !out.join(manifest::FILE).is_file() && !empty(out) {
        return Err(ExportError::Occupied {
            path: out.to_owned(),
        });
    }
    Ok(())
}

impl Staging {
    /// Makes the folder, or takes up one that an earlier run left. Returns a notice when something
    /// was thrown away.
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

    /// Whether the disk takes what is still to be written.
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

    /// Makes `files` durable. Together at the end, since each alone would wait for the disk.
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

    /// Takes the target's place; an older export there is replaced and then removed. `files` are
    /// those that belong to the export.
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
        // The journal goes last: a target that still has one is taken back and looked through.
        fs::remove_file(out.join(journal::FILE)).map_err(fail(out))?;
        match out.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }

    /// Nothing was written that is worth keeping.
    pub(super) fn remove(self) {
        // What cannot be removed is found, and thrown away, by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Swaps the two folders, so that the target is never missing, and removes the older. Where the
/// file system cannot swap, the older goes first.
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

/// A run that was killed while it published left its journal in the target: the target is taken
/// back, to be looked through and published again.
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
        // A newer attempt is under way: the target is complete, only its journal is too many.
        true => fs::remove_file(&left).map_err(fail(&left)),
        false => fs::rename(out, path).map_err(fail(out)),
    }
}

/// What lies under our name without a journal: an older export that was being replaced is removed,
/// anything else is not ours.
fn leftover(path: &Path) -> Result<Option<String>, ExportError> {
    if !path.exists() || path.join(journal::FILE).is_file() {
        return Ok(None);
    }
    check_target(path)?;
    let export = path.join(manifest::FILE).is_file();
    fs::remove_dir_all(path).map_err(fail(path))?;
    Ok(export.then(|| format!("{}: a replaced export is removed", path.display())))
}

/// The journal of a folder, locked for this process; the folder is made if need be.
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
        // Another process may have published or removed the folder between opening and locking.
        let id = |m: fs::Metadata| (m.dev(), m.ino());
        let held = file.metadata().map(id).map_err(fail(&name))?;
        if fs::metadata(&name).is_ok_and(|m| id(m) == held) {
            return Ok(file);
        }
    }
}

/// Removes what is not named; returns how many entries.
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
