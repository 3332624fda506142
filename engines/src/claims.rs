//! Claims on the files that a command writes, made before anything else happens.
//!
//! A claim compares every file to write with every file to read and with each other, by identity
//! and not by name. It refuses to replace a file unless it was asked to. Then it locks each file
//! against other processes. The locks are advisory, in files `.NAME.lock` beside the claimed ones,
//! and the system frees them when the process dies. Not here: how the files are written.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error_kind::{ErrorKind, reason};

/// Longest wait for a lock: a process that was killed holds it until the system has cleaned up.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most links from a name to its file, as the system counts them.
const MOST_LINKS: usize = 40;
/// Depth to which a folder that is read is searched for a file that would be overwritten.
/// Checkpoints lie three folders deep.
const MOST_FOLDERS: usize = 6;

/// What to do with a file that exists where another one is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse it before anything is done.
    #[default]
    Keep,
    /// Replace it when the new file is complete.
    Replace,
}

/// Why a file cannot be claimed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum ClaimError {
    #[error(
        "{}: {flag} would overwrite {input} of the same command; choose another name",
        path.display()
    )]
    Input {
        path: PathBuf,
        flag: &'static str,
        input: String,
    },
    #[error(
        "{}: {first} and {second} would write the same file; choose two names",
        path.display()
    )]
    Twice {
        path: PathBuf,
        first: &'static str,
        second: &'static str,
    },
    #[error("{} already; --overwrite replaces, another name keeps", exist(paths))]
    Exists { paths: Vec<PathBuf> },
    #[error("{}: {holder} is writing here; wait for it, or choose another name", path.display())]
    Busy { path: PathBuf, holder: Holder },
    #[error("{}: {flag} wants a file name, got a folder", path.display())]
    Folder { path: PathBuf, flag: &'static str },
    #[error("{}: cannot write: {}", path.display(), reason(source))]
    Write { path: PathBuf, source: io::Error },
}

fn exist(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let verb = if names.len() == 1 { "exists" } else { "exist" };
    format!("{} {verb}", names.join(", "))
}

impl ClaimError {
    /// Returns the kind of failure: the path, which a user can choose anew, or a lack of resources.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } => ErrorKind::Resources,
            Self::Write { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Input { .. } | Self::Twice { .. } | Self::Exists { .. } | Self::Folder { .. } => {
                ErrorKind::Input
            }
        }
    }
}

/// The process that holds a lock, if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) if process == std::process::id() => f.write_str("another run here"),
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("another process"),
        }
    }
}

impl Holder {
    /// Looks for a process with a lock on `file` in the system's list of locks.
    pub fn of(file: &File) -> Self {
        let found = || {
            let facts = file.metadata().ok()?;
            let wanted = format!(":{}", facts.ino());
            let locks = fs::read_to_string("/proc/locks").ok()?;
            // `1: FLOCK  ADVISORY  READ 4711 08:02:131 0 EOF`
            let process = locks.lines().find_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let place = fields.get(5).filter(|place| place.ends_with(&wanted));
                place.and_then(|_| fields[4].parse().ok())
            })?;
            (process != 0).then_some(process)
        };
        Self(found())
    }
}

/// What a write leaves under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file that the user asked for.
    File,
    /// A file that only lives while the command runs, or is left by a failure.
    Scratch,
    /// A folder.
    Folder,
}

#[derive(Clone, Debug)]
struct Planned {
    flag: &'static str,
    path: PathBuf,
    kind: Kind,
}

/// The files that a command will read and write, before they are claimed.
///
/// ```
/// use engines::claims::{ClaimError, Existing, FilePlan};
///
/// let folder = tempfile::tempdir()?;
/// let (speech, video) = (folder.path().join("a.wav"), folder.path().join("a.mp4"));
/// std::fs::write(&speech, "sound")?;
/// let mut plan = FilePlan::default();
/// plan.reads("--audio", &speech);
/// plan.writes("--out", &video);
/// let claims = plan.claim(Existing::Keep)?;
/// assert!(matches!(plan.claim(Existing::Keep), Err(ClaimError::Busy { .. })));
/// drop(claims);
/// plan.writes("--trace", &speech);
/// assert!(matches!(plan.claim(Existing::Replace), Err(ClaimError::Input { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct FilePlan {
    reads: Vec<(String, PathBuf)>,
    writes: Vec<Planned>,
    folders: Folders,
}

/// What to do about folders that are missing around a file to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Folders {
    #[default]
    Refuse,
    Make,
}

impl FilePlan {
    /// Returns a plan whose claim makes missing folders around the files to write.
    pub fn with_folders() -> Self {
        Self {
            folders: Folders::Make,
            ..Self::default()
        }
    }

    /// Adds a file or a folder that the command reads. `name` is the flag that names it.
    pub fn reads(&mut self, name: impl Into<String>, path: &Path) {
        self.reads.push((name.into(), path.to_owned()));
    }

    /// Adds a file that the command makes.
    pub fn writes(&mut self, flag: &'static str, path: &Path) {
        self.add(flag, path, Kind::File);
    }

    /// Adds a file that the command needs on its way and that is no reason to refuse when it
    /// exists.
    pub fn passes_through(&mut self, flag: &'static str, path: &Path) {
        self.add(flag, path, Kind::Scratch);
    }

    /// Adds a folder that the command makes, or whose files it makes.
    pub fn writes_folder(&mut self, flag: &'static str, path: &Path) {
        self.add(flag, path, Kind::Folder);
    }

    fn add(&mut self, flag: &'static str, path: &Path, kind: Kind) {
        let path = path.to_owned();
        self.writes.push(Planned { flag, path, kind });
    }

    /// Checks and locks every file to write.
    ///
    /// # Errors
    /// A file is read and written, is written twice, exists and `existing` keeps it, is claimed by
    /// another run, or cannot be written. Nothing is left behind then.
    pub fn claim(&self, existing: Existing) -> Result<Claims, ClaimError> {
        let writes = self.writes.iter().map(|w| {
            let real = real(&w.path).map_err(|source| cannot_write(&w.path, source))?;
            Ok((w, real))
        });
        let writes: Vec<(&Planned, Option<PathBuf>)> = writes.collect::<Result<_, _>>()?;
        // A device or a pipe takes bytes and is no file that could be lost.
        let files: Vec<(&Planned, PathBuf)> = writes
            .into_iter()
            .filter_map(|(w, real)| Some((w, real?)))
            .collect();
        for (write, real) in &files {
            if write.kind != Kind::Folder && real.is_dir() {
                let (path, flag) = (write.path.clone(), write.flag);
                return Err(ClaimError::Folder { path, flag });
            }
            self.is_no_input(write, real)?;
        }
        apart(&files)?;
        let kept = files.iter().filter(|(w, real)| {
            existing == Existing::Keep && w.kind == Kind::File && real.symlink_metadata().is_ok()
        });
        let paths: Vec<PathBuf> = kept.map(|(w, _)| w.path.clone()).collect();
        if !paths.is_empty() {
            return Err(ClaimError::Exists { paths });
        }
        let mut held = Held::default();
        for (write, real) in files {
            held.lock(write, &real, self.folders)?;
        }
        Ok(Claims(Mutex::new(held)))
    }

    /// Refuses a file to write that the command reads, itself or in a folder.
    fn is_no_input(&self, write: &Planned, real: &Path) -> Result<(), ClaimError> {
        let identity = Identity::of(real);
        let same = self.reads.iter().find(|(_, read)| match write.kind {
            Kind::Folder => read.exists() && lies_in(read, real),
            Kind::File | Kind::Scratch => holds(read, &identity, MOST_FOLDERS),
        });
        match same {
            None => Ok(()),
            Some((input, _)) => Err(ClaimError::Input {
                path: write.path.clone(),
                flag: write.flag,
                input: input.clone(),
            }),
        }
    }
}

/// Refuses two names of one file.
fn apart(files: &[(&Planned, PathBuf)]) -> Result<(), ClaimError> {
    for (at, (second, real)) in files.iter().enumerate() {
        let identity = Identity::of(real);
        let same = files[..at]
            .iter()
            .find(|(_, r)| Identity::of(r) == identity);
        if let Some((first, _)) = same {
            return Err(twice(first, second));
        }
    }
    Ok(())
}

fn twice(first: &Planned, second: &Planned) -> ClaimError {
    ClaimError::Twice {
        path: second.path.clone(),
        first: first.flag,
        second: second.flag,
    }
}

fn cannot_write(path: &Path, source: io::Error) -> ClaimError {
    let path = path.to_owned();
    ClaimError::Write { path, source }
}

/// A file as the system knows it: whatever its names are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// Device and number of a file that exists.
    File(u64, u64),
    /// Where a file will be.
    Place(PathBuf),
}

impl Identity {
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(facts) => Self::at(&facts),
            Err(_) => Self::Place(place(path)),
        }
    }

    fn at(facts: &Metadata) -> Self {
        Self::File(facts.dev(), facts.ino())
    }
}

/// Returns the absolute path of a file that need not exist, without links in its folders.
fn place(path: &Path) -> PathBuf {
    if let Ok(whole) = fs::canonicalize(path) {
        return whole;
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if folder.as_os_str().is_empty() => {
            place(Path::new(".")).join(name)
        }
        (Some(folder), Some(name)) => place(folder).join(name),
        _ => path.to_owned(),
    }
}

/// Says whether `read` is the file, or a folder that has it.
fn holds(read: &Path, wanted: &Identity, depth: usize) -> bool {
    let Ok(facts) = fs::metadata(read) else {
        return Identity::of(read) == *wanted;
    };
    if Identity::at(&facts) == *wanted {
        return true;
    }
    let exists = matches!(wanted, Identity::File(..));
    if !facts.is_dir() || !exists || depth == 0 {
        return false;
    }
    let mut entries = fs::read_dir(read).into_iter().flatten().flatten();
    entries.any(|entry| holds(&entry.path(), wanted, depth - 1))
}

/// Says whether a path that is read lies inside a folder that is replaced.
fn lies_in(read: &Path, folder: &Path) -> bool {
    place(read).starts_with(place(folder))
}

/// Follows links to the file that a write would change, which need not exist. Returns `None` for a
/// device, a pipe or an open file of this process: they take bytes as they come.
///
/// # Errors
/// The links form a circle.
pub fn real(path: &Path) -> io::Result<Option<PathBuf>> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Ok(None);
    }
    let mut at = path.to_owned();
    for _ in 0..MOST_LINKS {
        if at.starts_with("/proc") && fs::symlink_metadata(&at).is_ok() {
            return Ok(None);
        }
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(Some(at)),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Files that this process alone may write, until it is dropped.
#[derive(Debug, Default)]
pub struct Claims(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    locks: Vec<Lock>,
    /// Folders that were made for the files, outer folders first.
    folders: Vec<PathBuf>,
}

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    identity: Identity,
    /// The claimed file.
    write: Planned,
    _file: File,
}

impl Claims {
    /// Gives the files up before this is dropped. Removes folders that were made for them and that
    /// hold nothing.
    pub fn release(&self) {
        let held = self.0.lock();
        drop(std::mem::take(
            &mut *held.unwrap_or_else(PoisonError::into_inner),
        ));
    }
}

impl Held {
    fn lock(&mut self, write: &Planned, real: &Path, folders: Folders) -> Result<(), ClaimError> {
        let cannot = |source| cannot_write(&write.path, source);
        let folder = real.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        if folders == Folders::Make {
            self.make(folder).map_err(cannot)?;
        }
        let path = folder.join(lock_name(real).map_err(cannot)?);
        // The names of two files that do not exist may differ only where the file system does not.
        let identity = Identity::of(&path);
        if let Some(first) = self.locks.iter().find(|l| l.identity == identity) {
            return Err(twice(&first.write, write));
        }
        let file = lock(&path, &write.path)?;
        self.locks.push(Lock {
            identity: Identity::of(&path),
            path,
            write: write.clone(),
            _file: file,
        });
        Ok(())
    }

    /// Makes a folder with its parents, and notes those that were missing.
    fn make(&mut self, folder: &Path) -> io::Result<()> {
        let missing = folder.ancestors().take_while(|f| !f.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.retain(|f| !f.as_os_str().is_empty());
        missing.reverse();
        self.folders.extend(missing);
        fs::create_dir_all(folder)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for lock in &self.locks {
            // A lock file that stays does no harm: the next run takes it over.
            drop(fs::remove_file(&lock.path));
        }
        for folder in self.folders.iter().rev() {
            // Only a folder that holds nothing goes.
            drop(fs::remove_dir(folder));
        }
    }
}

fn lock_name(path: &Path) -> io::Result<OsString> {
    let name = path.file_name().ok_or_else(|| {
        let reason = format!("{} names no file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, reason)
    })?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".lock");
    Ok(hidden)
}

/// Opens and locks the file `path`, and writes the number of this process into it.
fn lock(path: &Path, claimed: &Path) -> Result<File, ClaimError> {
    let cannot = |source| cannot_write(claimed, source);
    let since = Instant::now();
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            // A file system without locks: the other checks must do.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(cannot(e)),
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                drop(file.read_to_string(&mut text));
                let holder = Holder(text.trim().parse().ok());
                let path = claimed.to_owned();
                return Err(ClaimError::Busy { path, holder });
            }
        }
        // The holder before may have removed the name between the opening and the lock.
        let held = Identity::at(&file.metadata().map_err(cannot)?);
        if Identity::of(path) != held {
            continue;
        }
        let note = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        // A full disk takes no number; the lock holds without it.
        drop(note);
        return Ok(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn plan(reads: &[&Path], writes: &[(&'static str, &Path)]) -> FilePlan {
        let mut plan = FilePlan::with_folders();
        reads.iter().for_each(|p| plan.reads("--audio", p));
        writes.iter().for_each(|(flag, p)| plan.writes(flag, p));
        plan
    }

    #[test]
    fn an_input_is_found_under_every_name_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("models/deep")).unwrap();
        fs::write(at("me.mp4"), "sound").unwrap();
        fs::write(at("models/deep/dit.data"), "weights").unwrap();
        symlink("me.mp4", at("link.mp4")).unwrap();
        fs::hard_link(at("me.mp4"), at("hard.mp4")).unwrap();
        symlink(at("models"), at("m")).unwrap();
        let reads = [at("me.mp4"), at("m")];
        let reads: Vec<&Path> = reads.iter().map(PathBuf::as_path).collect();
        for (out, refused) in [
            ("me.mp4", true),
            ("models/../me.mp4", true),
            ("link.mp4", true),
            ("hard.mp4", true),
            ("models/deep/dit.data", true),
            ("m/deep/dit.data", true),
            ("models/new.mp4", false),
            ("other.mp4", false),
        ] {
            let claimed = plan(&reads, &[("--out", &at(out))]).claim(Existing::Replace);
            let input = matches!(claimed, Err(ClaimError::Input { .. }));
            assert_eq!((input, claimed.is_ok()), (refused, !refused), "{out}");
        }
        assert_eq!(fs::read(at("me.mp4")).unwrap(), b"sound");
    }

    #[test]
    fn a_folder_that_is_replaced_holds_no_input() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        fs::create_dir_all(models.join("ckpt")).unwrap();
        for (read, out, refused) in [
            ("models", "models", true),
            ("models/ckpt", "models", true),
            ("models", "models/ckpt", false),
            ("models/ckpt", "model", false),
        ] {
            let mut plan = FilePlan::default();
            plan.reads("--ckpt_dir", &dir.path().join(read));
            plan.writes_folder("--out", &dir.path().join(out));
            let claimed = plan.claim(Existing::Keep);
            let input = matches!(claimed, Err(ClaimError::Input { .. }));
            assert_eq!(
                (input, claimed.is_ok()),
                (refused, !refused),
                "{read} {out}"
            );
        }
    }

    #[test]
    fn two_names_of_one_file_are_refused_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("a.mp4", at("b.mp4")).unwrap();
        for (first, second) in [("a.mp4", "a.mp4"), ("a.mp4", "b.mp4"), ("new/x", "new/./x")] {
            let writes = [("--out", &*at(first)), ("--trace", &*at(second))];
            let error = plan(&[], &writes).claim(Existing::Keep).unwrap_err();
            assert!(matches!(error, ClaimError::Twice { .. }), "{error}");
            assert!(!at("new").exists() && !at("a.mp4").exists());
        }
    }

    #[test]
    fn an_existing_file_is_kept_unless_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (old, link) = (dir.path().join("old"), dir.path().join("link"));
        fs::write(&old, "old").unwrap();
        symlink("old", &link).unwrap();
        for out in [&old, &link] {
            let plan = plan(&[], &[("--out", out)]);
            let error = plan.claim(Existing::Keep).unwrap_err();
            let want = format!(
                "{} exists already; --overwrite replaces, another name keeps",
                out.display()
            );
            assert_eq!((error.to_string(), error.kind()), (want, ErrorKind::Input));
            assert!(plan.claim(Existing::Replace).is_ok());
        }
        let mut through = FilePlan::default();
        through.passes_through("--out", &old);
        assert!(through.claim(Existing::Keep).is_ok());
    }

    #[test]
    fn a_held_claim_names_its_process_and_a_leftover_lock_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/v.mp4");
        let plan = plan(&[], &[("--out", &out)]);
        let held = plan.claim(Existing::Keep).unwrap();
        let error = plan.claim(Existing::Keep).unwrap_err();
        let holder = Holder(Some(std::process::id()));
        assert!(
            matches!(&error, ClaimError::Busy { holder: h, .. } if *h == holder),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Resources);
        let lock = dir.path().join("new/.v.mp4.lock");
        let own = File::open(&lock).unwrap();
        assert_eq!(Holder::of(&own), holder);
        held.release();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir(dir.path().join("new")).unwrap();
        fs::write(&lock, "1\n").unwrap();
        drop(plan.claim(Existing::Keep).unwrap());
        assert!(!lock.exists());
    }

    #[test]
    fn a_folder_is_made_only_where_the_plan_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = FilePlan::default();
        plan.writes("--svg", &dir.path().join("none/t.svg"));
        let error = plan.claim(Existing::Keep).unwrap_err();
        assert!(matches!(error, ClaimError::Write { .. }), "{error}");
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn devices_take_bytes_and_are_never_claimed() {
        let null = Path::new("/dev/null");
        let writes = [("--out", null), ("--trace", null)];
        let claims = plan(&[], &writes).claim(Existing::Keep).unwrap();
        assert!(claims.0.lock().unwrap().locks.is_empty());
        assert_eq!(real(Path::new("/dev/stdin")).unwrap(), None);
    }
}
