//! Reads the JSON files of a checkpoint folder, and names files that hold something else.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::CheckpointError;

/// First bytes of a UTF-8 file that some editors write.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// First bytes of the text that git-lfs leaves in the place of a large file.
const LFS_MAGIC: &[u8] = b"version https://git-lfs.github.com/spec/";
/// A pointer of git-lfs is shorter than this, as its specification says.
const LFS_LIMIT: usize = 1024;

/// Reads a JSON file. It may begin with a byte-order mark.
///
/// # Errors
/// A file that is missing, is a pointer of git-lfs, or is not the JSON that `T` wants.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let bytes = read_text(path)?;
    serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json {
        file: path.to_owned(),
        source,
    })
}

/// Reads a text file without its byte-order mark.
///
/// # Errors
/// A file that is missing or is a pointer of git-lfs.
pub(crate) fn read_text(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CheckpointError::Missing {
            path: path.to_owned(),
            want: "file",
        },
        _ => CheckpointError::Io {
            path: path.to_owned(),
            op: "read",
            source,
        },
    })?;
    check_pointer(path, &bytes)?;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// Checks that a file with the content `bytes` is not a pointer of git-lfs.
///
/// # Errors
/// [`CheckpointError::LfsPointer`].
pub(super) fn check_pointer(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    if bytes.len() > LFS_LIMIT || !bytes.starts_with(LFS_MAGIC) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(bytes);
    let size = text.lines().find_map(|l| l.strip_prefix("size "));
    Err(CheckpointError::LfsPointer {
        file: path.to_owned(),
        bytes: size.and_then(|s| s.trim().parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_fault_of_json() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, b"\xEF\xBB\xBF{\"dim\": 4}").unwrap();
        assert_eq!(read_json::<Value>(&path).unwrap(), json!({"dim": 4}));
        assert_eq!(read_text(&path).unwrap(), b"{\"dim\": 4}");
        fs::write(&path, b"{\"dim\": NaN}").unwrap();
        let error = read_json::<Value>(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("config.json: not JSON: expected value at line 1 column 9"),
            "{error}"
        );
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named_with_the_command() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 16837417\n",
            "ab".repeat(32)
        );
        fs::write(&path, pointer).unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "tokenizer.json: a git-lfs pointer to 16837417 bytes, not the file itself; \
                 run `git lfs pull` in its folder"
            ),
            "{error}"
        );
    }
}
