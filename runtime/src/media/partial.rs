//! The file in which a video grows, `NAME.partial.mp4`: its name, and the file of an earlier run
//! that still lies there.

use std::io;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// Why a name is none of a video.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The name has another ending, or none.
    #[error("{path}: output wants a name that ends in .mp4")]
    Name {
        /// The name.
        path: PathBuf,
    },
    /// A folder has the name.
    #[error("{path}: output wants a file name, got a folder")]
    Folder {
        /// The folder.
        path: PathBuf,
    },
}

impl NameError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } => ErrorKind::Usage,
            Self::Folder { .. } => ErrorKind::Input,
        }
    }
}

/// An unfinished video that plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The file.
    pub path: PathBuf,
    /// Its frames.
    pub frames: usize,
}

/// Returns the name under which an unfinished video grows: `video.mp4` -> `video.partial.mp4`. The
/// name keeps the spelling of `.mp4`, so that two videos never share one.
///
/// # Errors
/// `out` is a folder or has another ending.
pub(crate) fn partial_path(out: &Path) -> Result<PathBuf, NameError> {
    let mp4 = out
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("mp4"));
    if out.is_dir() {
        return Err(NameError::Folder {
            path: out.to_owned(),
        });
    }
    match (out.file_stem(), out.extension()) {
        (Some(stem), Some(ending)) if mp4 => {
            let mut name = stem.to_owned();
            name.push(".partial.");
            name.push(ending);
            Ok(out.with_file_name(name))
        }
        _ => Err(NameError::Name {
            path: out.to_owned(),
        }),
    }
}

/// Moves a file that an earlier run left at the partial name to the first free name
/// `video.partial.N.mp4`, and returns that name. A file without a byte is removed.
///
/// # Errors
/// The file cannot be moved.
pub(crate) fn move_aside(partial: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::symlink_metadata(partial) {
        Ok(facts) if facts.is_file() && facts.len() == 0 => {
            std::fs::remove_file(partial)?;
            return Ok(None);
        }
        Ok(_) => {}
        Err(_) => return Ok(None),
    }
    let stem = partial.file_stem().unwrap_or_default();
    let ending = partial.extension().unwrap_or_default();
    let name = |number: usize| {
        let mut name = stem.to_owned();
        name.push(format!(".{number}."));
        name.push(ending);
        partial.with_file_name(name)
    };
    let free = (1..).map(name).find(|p| p.symlink_metadata().is_err());
    let free = free.expect("a folder has fewer files than numbers");
    std::fs::rename(partial, &free)?;
    Ok(Some(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_part_moves_to_the_first_free_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(partial_path(&at("v.MP4")).unwrap(), at("v.partial.MP4"));
        assert_ne!(partial_path(&at("v.mp4")).unwrap(), at("v.partial.MP4"));
        let partial = partial_path(&at("v.mp4")).unwrap();
        assert_eq!(move_aside(&partial).unwrap(), None);
        for number in 1..3 {
            std::fs::write(&partial, [number]).unwrap();
            let moved = at(&format!("v.partial.{number}.mp4"));
            assert_eq!(move_aside(&partial).unwrap(), Some(moved.clone()));
            assert_eq!(std::fs::read(moved).unwrap(), [number]);
        }
        std::fs::write(&partial, b"").unwrap();
        assert_eq!(move_aside(&partial).unwrap(), None);
        assert!(!partial.exists());
    }
}
