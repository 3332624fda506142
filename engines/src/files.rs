//! Files that appear under their name only when they are complete. A reader never meets half a
//! file, and a failed write leaves the older file in place.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

use crate::claims;

/// A file that is being written under a temporary name, in the folder of its final name.
///
/// [`Self::finish`] gives the file its name and replaces an older file there. A drop without
/// `finish` removes the temporary file. The permissions are those of a file that
/// [`File::create`] makes. Nothing is synchronised: a caller whose file must survive a power cut
/// calls [`File::sync_all`] first. A link is followed: its target is replaced. A device or a pipe
/// has no other name and takes the bytes as they come.
///
/// ```
/// use engines::files::WholeFile;
/// use std::io::Write;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("report.json");
/// let mut file = WholeFile::create(&path)?;
/// file.write_all(b"{}")?;
/// assert!(!path.exists());
/// file.finish()?;
/// assert_eq!(std::fs::read(&path)?, b"{}");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct WholeFile {
    place: Place,
    path: PathBuf,
}

#[derive(Debug)]
enum Place {
    Temporary(NamedTempFile),
    Direct(File),
}

impl WholeFile {
    /// Creates an empty file beside `path`, as `.NAME.??????.partial`.
    ///
    /// # Errors
    /// `path` has no file name, or its folder does not exist or cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let Some(path) = claims::real(path)? else {
            let file = File::options().write(true).open(path)?;
            let path = path.to_owned();
            return Ok(Self {
                place: Place::Direct(file),
                path,
            });
        };
        let name = path.file_name().ok_or_else(|| {
            let reason = format!("{} names no file", path.display());
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        })?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        // Opened here: the crate's own files are readable by their owner alone, and its errors
        // show the random name.
        let open = |path: &Path| File::options().write(true).create_new(true).open(path);
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .make_in(folder, open)?;
        Ok(Self {
            place: Place::Temporary(temporary),
            path,
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        match &self.place {
            Place::Temporary(temporary) => temporary.as_file(),
            Place::Direct(file) => file,
        }
    }

    /// The temporary name, for a writer that opens its file itself.
    pub fn temporary_path(&self) -> &Path {
        match &self.place {
            Place::Temporary(temporary) => temporary.path(),
            Place::Direct(_) => &self.path,
        }
    }

    /// Gives the file its name, in place of an older file, and returns it.
    ///
    /// # Errors
    /// The file cannot be renamed; it is removed then.
    pub fn finish(self) -> io::Result<File> {
        match self.place {
            Place::Temporary(temporary) => {
                let named = temporary.persist(&self.path);
                named.map_err(|refused| refused.error)
            }
            Place::Direct(file) => Ok(file),
        }
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

/// Writes a whole file under a temporary name, then renames it to `path`.
///
/// # Errors
/// The file cannot be created, written or renamed; an older file at `path` stays as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes)?;
    file.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let name = |e: io::Result<std::fs::DirEntry>| e.unwrap().file_name();
        let mut names: Vec<String> = entries.map(|e| name(e).into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_no_other_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_whole(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"ne").unwrap();
        let seen = names(dir.path());
        assert_eq!(seen.len(), 2);
        assert!(seen[0].starts_with(".a.bin.") && seen[0].ends_with(".partial"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(names(dir.path()), ["a.bin"]);
        write_whole(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_link_is_followed_and_a_device_takes_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        for old in [false, true] {
            if old {
                std::fs::write(&target, b"old").unwrap();
            } else {
                std::os::unix::fs::symlink("target", &link).unwrap();
            }
            write_whole(&link, b"new").unwrap();
            assert!(link.symlink_metadata().unwrap().is_symlink());
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
            assert_eq!(names(dir.path()), ["link", "target"]);
        }
        write_whole(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn permissions_are_those_of_a_created_file() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        write_whole(&ours, b"").unwrap();
        std::fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        assert_ne!(
            mode(&ours) & 0o777,
            0o600,
            "the umask of this test hides a difference"
        );
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused_without_a_random_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_whole(&dir.path().join("no/such"), b"").unwrap_err();
        assert_eq!(error.to_string(), "No such file or directory (os error 2)");
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        assert!(write_whole(&folder, b"").is_err());
        assert_eq!(names(dir.path()), ["folder"]);
        let error = write_whole(Path::new(".."), b"").unwrap_err();
        assert_eq!(error.to_string(), ".. names no file");
    }

    #[test]
    fn a_bare_name_is_written_in_the_current_folder() {
        let path = PathBuf::from(format!("whole-file-{}.tmp", std::process::id()));
        write_whole(&path, b"here").unwrap();
        let read = std::fs::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), b"here");
    }
}
