//! Compares files with the SHA-256 sums that a list beside them states. `sha256sum * > SHA256SUMS`
//! makes such a list. A damaged weight has a legal value, so no other check finds it.
//!
//! The list of the checkpoint folder, or of a LoRA folder, counts as a whole. The list beside a
//! LoRA file counts for that file only, because such folders hold LoRAs that nobody asks for.
//! A folder without a list is not checked.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use engines::error_kind::ErrorKind;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::{CheckpointError, Faults};
use super::text::read_text;

/// Name of the list.
pub(crate) const SUMS_FILE: &str = "SHA256SUMS";
/// Bytes that are hashed between two looks at a request to stop. A processor without instructions
/// for SHA-256 hashes them in some milliseconds.
const HASHED_AT_ONCE: usize = 1 << 20;

/// The progress of a check.
#[derive(Clone, Copy, Debug)]
pub struct SumsProgress<'a> {
    /// File that is hashed, as its list names it.
    pub file: &'a str,
    /// Bytes of all files that are hashed.
    pub done: u64,
    /// Bytes of all files that the lists name.
    pub total: u64,
}

/// The two ends of a check that others hold: the request to stop, and the observer of its progress.
pub(crate) struct SumsWatch<'a> {
    /// The check ends soon after this flag is set.
    pub(crate) stop: Option<&'a AtomicBool>,
    /// Gets the progress, after each megabyte.
    pub(crate) observe: Box<dyn FnMut(SumsProgress<'_>) + 'a>,
}

impl SumsWatch<'_> {
    /// Returns a watch that never stops a check, and drops its progress.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        Self {
            stop: None,
            observe: Box::new(|_| ()),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// A check that ended early, because a stop was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by a signal")]
pub struct Stopped;

/// The number of files that lists name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SumsCount {
    /// Files that lists name.
    pub(crate) files: usize,
    /// Of these, files with the sum that their list states.
    pub(crate) sound: usize,
}

impl fmt::Display for SumsCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, sound } = self;
        match (files, sound) {
            (1, 1) => write!(f, "1 file is as {SUMS_FILE} says"),
            _ if files == sound => write!(f, "{files} files are as {SUMS_FILE} says"),
            _ => write!(f, "{sound} of {files} files are as {SUMS_FILE} says"),
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Default)]
pub(crate) struct SumsReport {
    pub(crate) count: SumsCount,
    /// Every fault of the lists, then every fault of the files.
    pub(crate) faults: Vec<SumFault>,
}

/// A SHA-256 sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum([u8; 32]);

impl Sum {
    /// Parses 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return None;
        };
        let bytes = pairs.iter().map(|&[high, low]| {
            let byte = digit(high)? << 4 | digit(low)?;
            u8::try_from(byte).ok()
        });
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A list that is malformed, or a file that differs from its list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SumFault {
    /// The system does not let a list or a file be read, or a list is a pointer of git-lfs.
    #[error(transparent)]
    Unreadable(#[from] CheckpointError),
    /// Lines of a list are malformed.
    #[error("{}: {faults}; renew the list, or remove it to export without it", list.display())]
    List {
        list: PathBuf,
        faults: Faults<LineFault>,
    },
    #[error(
        "{}: missing, {SUMS_FILE} wants it with sha256 {want}; fetch or copy the file again, \
         or renew or remove {SUMS_FILE} if it was removed on purpose",
        file.display()
    )]
    Missing { file: PathBuf, want: Sum },
    #[error("{}: not a file, {SUMS_FILE} wants one with sha256 {want}", file.display())]
    NoFile { file: PathBuf, want: Sum },
    #[error(
        "{}: sha256 is {got}, {SUMS_FILE} wants {want}; fetch or copy the file again, \
         or renew or remove {SUMS_FILE} if it was changed on purpose",
        file.display()
    )]
    Differs { file: PathBuf, want: Sum, got: Sum },
}

impl SumFault {
    /// Returns the kind of failure.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreadable(e) => e.kind(),
            _ => ErrorKind::Model,
        }
    }
}

/// A fault of one line of a list. Lines count from 1.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum LineFault {
    #[error("line {line} is {got:?}, wanted `<64 hex digits>  <path>`")]
    Form { line: usize, got: String },
    #[error("line {line}: path {path} leaves the folder, wanted a path inside")]
    Leaves { line: usize, path: String },
    #[error("line {line}: {path} has another sum than before")]
    Disagrees { line: usize, path: String },
    #[error("it names no file")]
    Empty,
}

/// Compares the files of the checkpoint folder `dir` and the LoRAs with their lists.
///
/// # Errors
/// A stop that was asked for. Faults are in the report.
pub(crate) fn check<'a>(
    dir: &Path,
    loras: impl IntoIterator<Item = &'a Path>,
    watch: &mut SumsWatch<'_>,
) -> Result<SumsReport, Stopped> {
    let mut report = SumsReport::default();
    let mut files = Vec::new();
    for scope in scopes(dir, loras) {
        match list(&scope.folder) {
            Ok(None) => {}
            Ok(Some((sums, fault))) => {
                report.faults.extend(fault);
                let named = sums.into_iter().filter(|(name, _)| scope.covers(name));
                files.extend(named.map(|(name, sum)| (scope.folder.join(&name), name, sum)));
            }
            Err(unreadable) => report.faults.push(unreadable.into()),
        }
    }
    let length = |(path, ..): &(PathBuf, _, _)| fs::metadata(path).map_or(0, |m| m.len());
    let total = files.iter().map(length).sum();
    let mut done = 0;
    report.count.files = files.len();
    for (path, name, want) in files {
        let name = name.to_string_lossy();
        let mut advance = |bytes| {
            done += bytes;
            (watch.observe)(SumsProgress {
                file: &name,
                done,
                total,
            });
            watch.is_stopped()
        };
        match compare(path, want, &mut advance)? {
            None => report.count.sound += 1,
            Some(fault) => report.faults.push(fault),
        }
    }
    Ok(report)
}

/// A folder whose list counts.
struct Scope {
    folder: PathBuf,
    /// The only files that count, or `None` where all count.
    only: Option<Vec<PathBuf>>,
}

impl Scope {
    fn covers(&self, name: &Path) -> bool {
        self.only
            .as_ref()
            .is_none_or(|o| o.iter().any(|f| f == name))
    }

    /// Tells whether two spellings name this folder.
    fn is(&self, folder: &Path) -> bool {
        let real = |path: &Path| fs::canonicalize(path).ok();
        self.folder == folder || real(&self.folder).is_some_and(|r| Some(r) == real(folder))
    }
}

/// Returns the folders whose lists count, each of them once.
fn scopes<'a>(dir: &Path, loras: impl IntoIterator<Item = &'a Path>) -> Vec<Scope> {
    let whole = |folder: &Path| Scope {
        folder: folder.to_owned(),
        only: None,
    };
    let mut scopes = vec![whole(dir)];
    for lora in loras {
        let (folder, name) = match (lora.parent(), lora.file_name()) {
            (Some(folder), Some(name)) if !lora.is_dir() => (folder, Some(PathBuf::from(name))),
            _ => (lora, None),
        };
        // The parent of a relative name without a folder is the empty path.
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        match (scopes.iter_mut().find(|s| s.is(folder)), name) {
            (Some(scope), None) => scope.only = None,
            (Some(scope), Some(name)) => scope.only.iter_mut().for_each(|o| o.push(name.clone())),
            (None, None) => scopes.push(whole(folder)),
            (None, Some(name)) => scopes.push(Scope {
                folder: folder.to_owned(),
                only: Some(vec![name]),
            }),
        }
    }
    scopes
}

/// The sums of a list by path, and the fault of its other lines.
type List = (BTreeMap<PathBuf, Sum>, Option<SumFault>);

/// Reads the list of a folder. Returns `None` where the folder has none.
fn list(folder: &Path) -> Result<Option<List>, CheckpointError> {
    let path = folder.join(SUMS_FILE);
    // A link to nothing is a list that cannot be read, not an absent list.
    match fs::symlink_metadata(&path) {
        Err(e) if is_absent(&e) => return Ok(None),
        _ => {}
    }
    let (sums, faults) = parse(&read_text(&path)?);
    let fault = (!faults.is_empty()).then_some(SumFault::List {
        list: path,
        faults: Faults(faults),
    });
    Ok(Some((sums, fault)))
}

/// Parses a list. Returns the sum of each path, and the faults of the other lines.
///
/// A line for the list itself is passed over: `sha256sum * > SHA256SUMS` writes it when it renews a
/// list, and no file holds its own sum.
fn parse(text: &[u8]) -> (BTreeMap<PathBuf, Sum>, Vec<LineFault>) {
    let (mut sums, mut faults) = (BTreeMap::new(), Vec::new());
    if text.is_empty() {
        return (sums, vec![LineFault::Empty]);
    }
    let lines = text.strip_suffix(b"\n").unwrap_or(text);
    for (line, bytes) in (1..).zip(lines.split(|&b| b == b'\n')) {
        let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes));
        let (sum, path) = match entry(line, &text) {
            Ok(entry) => entry,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        match sums.entry(path) {
            Entry::Vacant(place) => drop(place.insert(sum)),
            Entry::Occupied(place) if *place.get() == sum => {}
            Entry::Occupied(place) => faults.push(LineFault::Disagrees {
                line,
                path: place.key().display().to_string(),
            }),
        }
    }
    sums.remove(Path::new(SUMS_FILE));
    (sums, faults)
}

/// Parses a line without its end: the sum, two spaces or a space and an asterisk, and the path.
fn entry(line: usize, text: &str) -> Result<(Sum, PathBuf), LineFault> {
    /// Digits of a sum.
    const DIGITS: usize = 64;
    /// Most characters of a malformed line that the message quotes.
    const QUOTED: usize = 80;
    let parts = text.split_at_checked(DIGITS).and_then(|(sum, rest)| {
        let path = rest
            .strip_prefix("  ")
            .or_else(|| rest.strip_prefix(" *"))?;
        Some((Sum::parse(sum)?, path)).filter(|_| !path.is_empty())
    });
    let Some((sum, path)) = parts else {
        let got = text.chars().take(QUOTED).collect();
        return Err(LineFault::Form { line, got });
    };
    let mut inside = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                let path = path.to_owned();
                return Err(LineFault::Leaves { line, path });
            }
        }
    }
    Ok((sum, inside))
}

/// Compares a file with the sum that its list wants. `advance` gets the number of bytes that were
/// hashed, and returns true to stop.
fn compare(
    file: PathBuf,
    want: Sum,
    advance: &mut impl FnMut(u64) -> bool,
) -> Result<Option<SumFault>, Stopped> {
    let hashed = match fs::metadata(&file) {
        // A pipe would be waited for.
        Ok(meta) if !meta.is_file() => return Ok(Some(SumFault::NoFile { file, want })),
        Ok(_) => File::open(&file).and_then(|file| hash(file, advance)),
        Err(e) => Err(e),
    };
    match hashed {
        Ok(None) => Err(Stopped),
        Ok(Some(got)) if got == want => Ok(None),
        Ok(Some(got)) => Ok(Some(SumFault::Differs { file, want, got })),
        Err(e) if is_absent(&e) => Ok(Some(SumFault::Missing { file, want })),
        Err(source) => Ok(Some(SumFault::Unreadable(CheckpointError::Io {
            path: file,
            op: "read",
            source,
        }))),
    }
}

/// Hashes a file. Returns `None` where `advance` stopped it. It reads and does not map the file: a
/// file that is cut meanwhile would end the process.
fn hash(mut file: File, advance: &mut impl FnMut(u64) -> bool) -> io::Result<Option<Sum>> {
    let mut hasher = Sha256::new();
    let mut bytes = vec![0; HASHED_AT_ONCE];
    loop {
        let read = file.read(&mut bytes)?;
        hasher.update(&bytes[..read]);
        if advance(read as u64) {
            return Ok(None);
        }
        if read == 0 {
            return Ok(Some(Sum(hasher.finalize().into())));
        }
    }
}

/// Tells whether the system found no file, or a file in the place of one of its folders.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tempfile::{TempDir, tempdir};

    use super::*;

    /// SHA-256 of nothing and of `abc`, from FIPS 180-2 and `sha256sum`.
    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    /// Checks a folder and returns the count with the faults, without this machine's path.
    fn checked(dir: &Path, loras: &[PathBuf]) -> (String, Vec<String>) {
        let loras = loras.iter().map(PathBuf::as_path);
        let report = check(dir, loras, &mut SumsWatch::idle()).unwrap();
        let plain = |f: &SumFault| f.to_string().replace(&dir.display().to_string(), "DIR");
        assert!(report.faults.iter().all(|f| f.kind() == ErrorKind::Model));
        (
            report.count.to_string(),
            report.faults.iter().map(plain).collect(),
        )
    }

    #[test]
    fn both_forms_of_a_line_and_both_ends_are_read() {
        let upper = ABC.to_uppercase();
        for text in [
            format!("{ABC}  a b.pth\n{NOTHING} *./in/n.json\n"),
            format!("{upper} *a b.pth\r\n{NOTHING}  in//n.json\r\n"),
            format!("{ABC}  a b.pth\n{ABC}  ./a b.pth\n{NOTHING}  in/n.json"),
            format!("{NOTHING}  SHA256SUMS\n{ABC}  a b.pth\n{NOTHING}  in/n.json\n"),
        ] {
            let (sums, faults) = parse(text.as_bytes());
            let sums: Vec<_> = sums
                .iter()
                .map(|(path, sum)| (path.to_str().unwrap(), sum.to_string()))
                .collect();
            let want = [
                ("a b.pth", ABC.to_owned()),
                ("in/n.json", NOTHING.to_owned()),
            ];
            assert_eq!((&sums[..], faults), (&want[..], vec![]), "{text}");
        }
    }

    #[test]
    fn a_malformed_line_is_named_and_hides_no_other() {
        let form = |line, got: &str| LineFault::Form {
            line,
            got: got.to_owned(),
        };
        let leaves = |line, path: &str| LineFault::Leaves {
            line,
            path: path.to_owned(),
        };
        let (short, spaced) = (format!("{}  a", &ABC[1..]), format!("{ABC} a"));
        let (tagged, bare) = (format!("SHA256 (a) = {ABC}"), format!("{ABC}  "));
        let escaped = format!("\\{ABC}  a\\\\b");
        let digit = format!("{}g  a", &ABC[1..]);
        for (line, want) in [
            ("", form(2, "")),
            ("# made by hand", form(2, "# made by hand")),
            (short.as_str(), form(2, &short)),
            (&spaced, form(2, &spaced)),
            (&digit, form(2, &digit)),
            (&bare, form(2, &bare)),
            (&tagged, form(2, &tagged[..tagged.len().min(80)])),
            (&escaped, form(2, &escaped)),
            (&"é".repeat(90), form(2, &"é".repeat(80))),
            (&format!("{ABC}  ../a"), leaves(2, "../a")),
            (&format!("{ABC}  in/../../a"), leaves(2, "in/../../a")),
            (&format!("{ABC} */etc/passwd"), leaves(2, "/etc/passwd")),
            (
                &format!("{NOTHING}  first"),
                LineFault::Disagrees {
                    line: 2,
                    path: "first".to_owned(),
                },
            ),
        ] {
            let text = format!("{ABC}  first\n{line}\n{NOTHING}  last\n");
            let (sums, faults) = parse(text.as_bytes());
            assert_eq!((sums.len(), &faults[..]), (2, &[want][..]), "{line}");
        }
        assert_eq!(parse(b"").1, [LineFault::Empty]);
        assert_eq!(parse(b"\n").1, [form(1, "")]);
        assert!(
            parse(b"\xFF\xFE").1[0]
                .to_string()
                .starts_with("line 1 is ")
        );
    }

    #[test]
    fn every_fault_of_a_folder_is_told_at_once() {
        let list = format!(
            "{ABC}  right\n{ABC}  other\n{NOTHING}  gone\n{NOTHING}  other/in\n{NOTHING}  in\n\
             what\n{ABC}  ../out\n"
        );
        let dir = folder(&[("right", "abc"), ("other", ""), ("in/a", "")]);
        fs::write(dir.path().join(SUMS_FILE), list).unwrap();
        let again = "fetch or copy the file again, or renew or remove SHA256SUMS if it was";
        let missing = |n| {
            format!(
                "DIR/{n}: missing, SHA256SUMS wants it with sha256 {NOTHING}; {again} removed on purpose"
            )
        };
        let want = [
            "DIR/SHA256SUMS: line 6 is \"what\", wanted `<64 hex digits>  <path>`; \
             line 7: path ../out leaves the folder, wanted a path inside; \
             renew the list, or remove it to export without it"
                .to_owned(),
            missing("gone"),
            format!("DIR/in: not a file, SHA256SUMS wants one with sha256 {NOTHING}"),
            format!(
                "DIR/other: sha256 is {NOTHING}, SHA256SUMS wants {ABC}; {again} changed on purpose"
            ),
            missing("other/in"),
        ];
        let (count, faults) = checked(dir.path(), &[]);
        assert_eq!(faults, want);
        assert_eq!(count, "1 of 5 files are as SHA256SUMS says");
    }

    #[test]
    fn a_list_beside_a_lora_counts_for_this_lora_only() {
        let list = format!("{ABC}  a.safetensors\n{ABC}  b.safetensors\n{ABC}  gone\n");
        let dir = folder(&[("loras/a.safetensors", "abc"), ("loras/b.safetensors", "")]);
        let loras = dir.path().join("loras");
        fs::write(loras.join(SUMS_FILE), &list).unwrap();
        let (a, b) = (loras.join("a.safetensors"), loras.join("b.safetensors"));
        let of = |loras: &[PathBuf]| {
            let (count, faults) = checked(dir.path(), loras);
            (count, faults.len())
        };
        let files = |sound, files| SumsCount { files, sound }.to_string();
        assert_eq!(of(&[]), (files(0, 0), 0));
        assert_eq!(
            of(std::slice::from_ref(&a)),
            ("1 file is as SHA256SUMS says".to_owned(), 0)
        );
        assert_eq!(of(std::slice::from_ref(&b)), (files(0, 1), 1));
        assert_eq!(of(&[a.clone(), b]), (files(1, 2), 1));
        // A LoRA that the list does not name, and PEFT's folder.
        assert_eq!(of(&[loras.join("c")]), (files(0, 0), 0));
        assert_eq!(of(&[a.clone(), loras.clone()]), (files(1, 3), 2));
        // A checkpoint folder with the LoRA inside is checked once.
        let twice = loras.join("../loras/a.safetensors");
        let report = check(&loras, [twice.as_path()], &mut SumsWatch::idle()).unwrap();
        assert_eq!((report.count.files, report.faults.len()), (3, 2));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_a_link_to_nothing_is_no_absent_list() {
        let dir = folder(&[("blob", "abc"), ("wan/none", "")]);
        let wan = dir.path().join("wan");
        std::os::unix::fs::symlink("../blob", wan.join("vae.pth")).unwrap();
        fs::write(wan.join(SUMS_FILE), format!("{ABC}  vae.pth\n")).unwrap();
        assert_eq!(
            checked(&wan, &[]),
            ("1 file is as SHA256SUMS says".to_owned(), vec![])
        );
        fs::remove_file(wan.join(SUMS_FILE)).unwrap();
        std::os::unix::fs::symlink("nothing", wan.join(SUMS_FILE)).unwrap();
        assert_eq!(checked(&wan, &[]).1, ["DIR/SHA256SUMS: no file there"]);
    }

    #[test]
    fn a_check_tells_its_progress_and_stops_within_a_megabyte() {
        const MB: usize = 1 << 20;
        let dir = folder(&[("a", &"x".repeat(3 * MB)), ("b", "abc")]);
        fs::write(
            dir.path().join(SUMS_FILE),
            format!("{ABC}  a\n{ABC}  b\n{ABC}  none\n"),
        )
        .unwrap();
        let mut told = Vec::new();
        let mut watch = SumsWatch {
            stop: None,
            observe: Box::new(|p| told.push((p.file.to_owned(), p.done, p.total))),
        };
        check(dir.path(), [], &mut watch).unwrap();
        drop(watch);
        let total = 3 * MB as u64 + 3;
        assert_eq!(told[0], ("a".to_owned(), MB as u64, total));
        assert_eq!(told.last(), Some(&("b".to_owned(), total, total)));

        let (stop, done) = (AtomicBool::new(false), Cell::new(0));
        let observe = |p: SumsProgress<'_>| {
            done.set(p.done);
            stop.store(true, Ordering::Relaxed);
        };
        let mut watch = SumsWatch {
            stop: Some(&stop),
            observe: Box::new(observe),
        };
        assert_eq!(check(dir.path(), [], &mut watch).unwrap_err(), Stopped);
        drop(watch);
        assert_eq!(done.get(), MB as u64);
    }
}
