//! The file in which a video grows, `NAME.partial.mp4`: its name, and the file of an earlier run
//! that still lies there.

use std::io;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;

/// Why a name is none of a video.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The name says no format.
    #[error(
        "{path}: output wants a name that ends in .mp4, .mkv, .webm, .y4m or .rgb, or a folder \
         with --format frames"
    )]
    Name {
        /// The name.
        path: PathBuf,
    },
    /// The name has another ending than the files of its format.
    #[error("{path}: output wants a name that ends in {wanted}")]
    Ending {
        /// The name.
        path: PathBuf,
        /// The ending, with its dot.
        wanted: String,
    },
    /// Name and flag say two formats.
    #[error("{path}: the name says {named}, --format says {told}")]
    Format {
        /// The name.
        path: PathBuf,
        /// Format of the name.
        named: String,
        /// Format of the flag.
        told: String,
    },
    /// A folder has the name.
    #[error("{path}: output wants a file name, got a folder")]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder of frames cannot go to standard output.
    #[error("standard output takes one stream; --format frames wants a folder as --out")]
    NotAFolder,
    /// Two outputs would mix.
    #[error("--out - can be given once, got it twice")]
    TwoStreams,
    /// The scheme of a URL is not known.
    #[error("{url}: output wants a URL of one of {known}")]
    Scheme {
        /// The URL.
        url: String,
        /// Schemes that are known.
        known: String,
    },
}

impl NameError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Folder { .. } => ErrorKind::Input,
            _ => ErrorKind::Usage,
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

/// Returns the name under which an unfinished video grows: `video.mp4` -> `video.partial.mp4`, and
/// `frames` -> `frames.partial`. The name keeps the spelling of the ending, so that two videos
/// never share one.
pub(crate) fn name(out: &Path) -> PathBuf {
    let mut name = out.file_stem().unwrap_or_default().to_owned();
    name.push(".partial");
    if let Some(ending) = out.extension() {
        name.push(".");
        name.push(ending);
    }
    out.with_file_name(name)
}

/// Moves what an earlier run left at the partial name to the first free name `video.partial.N.mp4`,
/// and returns that name. A file without a byte and an empty folder are removed.
///
/// # Errors
/// The file cannot be moved.
pub(crate) fn move_aside(partial: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::symlink_metadata(partial) {
        Ok(facts) if facts.is_file() && facts.len() == 0 => {
            std::fs::remove_file(partial)?;
            return Ok(None);
        }
        Ok(facts) if facts.is_dir() && std::fs::read_dir(partial)?.next().is_none() => {
            std::fs::remove_dir(partial)?;
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
        assert_eq!(name(&at("v.MP4")), at("v.partial.MP4"));
        assert_ne!(name(&at("v.mp4")), at("v.partial.MP4"));
        assert_eq!(name(&at("frames/")), at("frames.partial"));
        let partial = name(&at("v.mp4"));
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
        let folder = name(&at("frames"));
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(move_aside(&folder).unwrap(), None);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("000001.png"), b"x").unwrap();
        let moved = at("frames.1.partial");
        assert_eq!(move_aside(&folder).unwrap(), Some(moved.clone()));
        assert!(moved.join("000001.png").exists() && !folder.exists());
    }
}
