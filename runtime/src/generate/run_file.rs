//! The run file of a video, `NAME.run.json`: everything that made it, and what came out. `replay`
//! repeats the run, `diff` and other checks compare a video with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use engines::files::WholeFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of the form. A reader refuses every other one.
pub(crate) const FORMAT: u32 = 1;
/// Ending of the name, in place of the video's.
const ENDING: &str = "run.json";
/// Bytes that are hashed at a time.
const HASHED_AT_ONCE: usize = 1 << 16;

/// The command of a video, as the run file shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The command line with every layer in it, the program's name first.
    pub command: Vec<String>,
    /// The value that counted of each flag, by its name without dashes in front.
    pub values: BTreeMap<String, Value>,
}

/// The value of one flag, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// A text, a list of texts, or whether a switch is on.
    pub value: serde_json::Value,
    /// `default`, `command line`, a variable, a preset, or a file with its line.
    pub from: String,
}

/// A file that a run read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Absolute path, or - for standard input.
    pub path: PathBuf,
    /// SHA-256 of the bytes, or `None` for a pipe, whose bytes are gone.
    pub sha256: Option<String>,
    /// Length, or `None` for a pipe.
    pub bytes: Option<u64>,
}

/// The export of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedModels {
    /// Absolute path of the folder.
    pub path: PathBuf,
    /// SHA-256 of its manifest, which holds the hashes of all its files.
    pub manifest_sha256: String,
}

/// What a run made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Name of the video, in the folder of the run file.
    pub video: PathBuf,
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Frames a second.
    pub fps: u32,
    /// Number of frames.
    pub frames: usize,
    /// Length of the picture.
    pub video_seconds: f64,
    /// Length of the sound.
    pub sound_seconds: f64,
    /// SHA-256 of all frames, `[T, H, W, 3]` 8-bit RGB, before they were encoded. `None`
    /// for a run that went on with `--resume`: it did not see the first frames.
    pub frames_sha256: Option<String>,
    /// SHA-256 of the video file.
    pub sha256: String,
    /// Length of the video file.
    pub bytes: u64,
    /// Times and memory, as the event `finished` has them.
    pub summary: serde_json::Value,
}

/// A run file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Version of the form.
    pub liveavatar_run: u32,
    /// Name and version of the program.
    pub program: String,
    /// Folder in which the command ran. Relative paths in `values` begin there.
    pub folder: PathBuf,
    /// The command line with every layer in it.
    pub command: Vec<String>,
    /// The value of each flag.
    pub values: BTreeMap<String, Value>,
    /// Settings after every default and rule was applied, as the event `started` has them.
    pub settings: serde_json::Value,
    /// The files that the run read, by flag.
    pub inputs: BTreeMap<String, InputFile>,
    /// The export.
    pub models: UsedModels,
    /// What the run made.
    pub result: Made,
}

/// Why a run file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// The file cannot be read.
    #[error("{}: cannot read: {}", path.display(), engines::error_kind::reason(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is no run file, or a field of it has another form.
    #[error("{}: wants a run file (NAME.run.json): {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// The file has the form of another version of the program.
    #[error(
        "{}: liveavatar_run is {found}, this program reads {FORMAT}; use the program that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
    },
}

impl RunFileError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> engines::error_kind::ErrorKind {
        use engines::error_kind::ErrorKind;
        match self {
            Self::Read { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Form { .. } | Self::Version { .. } => ErrorKind::Input,
        }
    }
}

/// Returns the name of a video's run file: `talk.mp4` -> `talk.run.json`.
pub fn path_of(video: &Path) -> PathBuf {
    video.with_extension(ENDING)
}

/// Returns whether a path has the name of a run file.
pub fn is_named(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(&format!(".{ENDING}"))
}

impl RunFile {
    /// Reads a run file.
    ///
    /// # Errors
    /// The file cannot be read, is no run file, or is of another version.
    pub fn read(path: &Path) -> Result<Self, RunFileError> {
        let text = std::fs::read_to_string(path).map_err(|source| RunFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let form = |error: serde_json::Error| RunFileError::Form {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        // The version is looked at first: a file of another one deserves that answer.
        let Version { liveavatar_run } = serde_json::from_str(&text).map_err(form)?;
        if liveavatar_run != FORMAT {
            return Err(RunFileError::Version {
                path: path.to_owned(),
                found: liveavatar_run,
            });
        }
        serde_json::from_str(&text).map_err(form)
    }

    /// Returns the path of the video that the file at `path` belongs to.
    pub fn video(&self, path: &Path) -> PathBuf {
        path.with_file_name(&self.result.video)
    }

    /// Writes the file under its name when it is whole and on the disk.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("plain data is JSON");
        text.push('\n');
        let mut file = WholeFile::create(path)?;
        file.write_all(text.as_bytes())?;
        file.file().sync_all()?;
        file.finish().map(drop)
    }
}

#[derive(Deserialize)]
struct Version {
    liveavatar_run: u32,
}

/// Returns SHA-256 of a file, and its length.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of(path: &Path) -> io::Result<(String, u64)> {
    let (mut file, mut hash, mut length) = (File::open(path)?, Sha256::new(), 0);
    let mut bytes = vec![0; HASHED_AT_ONCE];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok((hex(hash), length)),
            n => {
                hash.update(&bytes[..n]);
                length += n as u64;
            }
        }
    }
}

/// Returns name and version of this program.
pub(crate) fn program() -> String {
    concat!("avatar-run ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Returns a hash in hexadecimal digits.
pub(crate) fn hex(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns SHA-256 of the manifest of an export.
///
/// # Errors
/// The manifest cannot be read.
pub fn manifest_hash(models: &Path) -> io::Result<String> {
    sha256_of(&models.join(engines::manifest::FILE)).map(|(hash, _)| hash)
}

impl InputFile {
    /// Describes a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        // What is no file, such as a pipe, can be read once, and the run does that.
        let hashed = std::fs::metadata(path)?.is_file().then(|| sha256_of(path));
        let (sha256, bytes) = hashed.transpose()?.unzip();
        Ok(Self {
            path: std::path::absolute(path)?,
            sha256,
            bytes,
        })
    }

    /// Describes standard input, whose bytes are gone after the run.
    pub(crate) fn gone(name: &Path) -> Self {
        Self {
            path: name.to_owned(),
            sha256: None,
            bytes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_file_lies_beside_its_video() {
        let path = path_of(Path::new("d/a.b.mp4"));
        assert_eq!(path, Path::new("d/a.b.run.json"));
        assert!(is_named(&path));
        assert!(!is_named(Path::new("d/run.json")));
    }

    #[test]
    fn what_is_no_run_file_is_refused_with_its_fault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.run.json");
        for (text, want) in [
            ("[]", "wants a run file (NAME.run.json): "),
            (
                "{\"liveavatar_run\": 2}",
                "liveavatar_run is 2, this program reads 1",
            ),
            (
                "{\"liveavatar_run\": 1}",
                "missing field `program` at line 1",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = RunFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(RunFile::read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_file_has_the_hash_that_sha256sum_prints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "abc").unwrap();
        let file = InputFile::of(&path).unwrap();
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((file.sha256.as_deref(), file.bytes), (Some(want), Some(3)));
        let device = InputFile::of(Path::new("/dev/null")).unwrap();
        assert_eq!((device.sha256, device.bytes), (None, None));
    }
}
