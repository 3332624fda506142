//! Named tensors in safetensors files. A file is read whole, and appears under its name once it is
//! whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::contract::DType;
use crate::error_kind::ErrorKind;
use crate::files::WholeFile;
use crate::tensor::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, View};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Why a tensor file cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum TensorFileError {
    #[error("{}: wants a safetensors file: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: wants a safetensors file: {source}", path.display())]
    Parse {
        path: PathBuf,
        source: safetensors::SafeTensorError,
    },
    #[error("{}: key {key}: wants one of f32, f16, bf16, i64, u8, bool, got {got}", path.display())]
    DType {
        path: PathBuf,
        key: String,
        got: String,
    },
    #[error("{}: cannot write: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: cannot write: {source}", path.display())]
    Serialize {
        path: PathBuf,
        source: safetensors::SafeTensorError,
    },
}

impl TensorFileError {
    /// Returns the kind of failure: a full disk is a lack of resources, all else is the input.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::Resources
            }
            _ => ErrorKind::Input,
        }
    }
}

const DTYPES: [(DType, Dtype); 6] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I64, Dtype::I64),
    (DType::U8, Dtype::U8),
    (DType::Bool, Dtype::BOOL),
];

/// Reads every tensor of a file.
///
/// # Errors
/// The file is missing, damaged, or holds another element type than [`DType`] knows.
pub fn read(path: &Path) -> Result<Tensors, TensorFileError> {
    let bytes = std::fs::read(path).map_err(|source| TensorFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| TensorFileError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let tensor = |(key, view): (String, safetensors::tensor::TensorView<'_>)| {
        let dtype = DTYPES
            .iter()
            .find(|(_, d)| *d == view.dtype())
            .map(|(d, _)| *d);
        let got = || TensorFileError::DType {
            path: path.to_owned(),
            key: key.clone(),
            got: format!("{:?}", view.dtype()),
        };
        let mut t = Tensor::zeros(dtype.ok_or_else(got)?, view.shape());
        t.bytes_mut().copy_from_slice(view.data());
        Ok((key, t))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Writes `tensors` to `path`, in place of an older file once all of it is written.
///
/// # Errors
/// The path cannot be written.
///
/// # Panics
/// If a tensor does not lie on the host.
pub fn write(path: &Path, tensors: &Tensors) -> Result<(), TensorFileError> {
    let fail = |source| TensorFileError::Write {
        path: path.to_owned(),
        source,
    };
    let file = WholeFile::create(path).map_err(fail)?;
    let permissions = file.file().metadata().map_err(fail)?.permissions();
    let views = tensors.iter().map(|(k, t)| (k.as_str(), Shown(t)));
    safetensors::serialize_to_file(views, None, file.temporary_path()).map_err(|source| {
        match source {
            safetensors::SafeTensorError::IoError(source) => fail(source),
            source => TensorFileError::Serialize {
                path: path.to_owned(),
                source,
            },
        }
    })?;
    // safetensors has replaced the empty file by one that only its owner can read.
    std::fs::set_permissions(file.temporary_path(), permissions).map_err(fail)?;
    file.finish().map(drop).map_err(fail)
}

struct Shown<'a>(&'a Tensor);

impl View for Shown<'_> {
    fn dtype(&self) -> Dtype {
        let of = self.0.dtype();
        DTYPES
            .iter()
            .find(|(d, _)| *d == of)
            .map_or(Dtype::U8, |(_, d)| *d)
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.bytes())
    }

    fn data_len(&self) -> usize {
        self.0.bytes().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let tensors = Tensors::from([
            (
                "a".to_owned(),
                Tensor::from_slice(&[2, 2], &[1f32, 2., 3., 4.]),
            ),
            ("b".to_owned(), Tensor::from_slice(&[3], &[1i64, -2, 3])),
            ("c".to_owned(), Tensor::from_slice(&[1, 3], &[7u8, 8, 9])),
        ]);
        write(&path, &tensors).unwrap();
        let back = read(&path).unwrap();
        for (k, t) in &tensors {
            assert_eq!(
                (back[k].dtype(), back[k].shape(), back[k].bytes()),
                (t.dtype(), t.shape(), t.bytes()),
                "{k}"
            );
        }
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        let plain = dir.path().join("plain");
        std::fs::write(&plain, b"").unwrap();
        let permissions = |path: &Path| path.metadata().unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&plain));
    }

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.safetensors");
        assert!(
            read(&missing)
                .unwrap_err()
                .to_string()
                .contains("none.safetensors")
        );
        let damaged = dir.path().join("damaged.safetensors");
        std::fs::write(&damaged, [255; 64]).unwrap();
        let error = read(&damaged).unwrap_err();
        assert!(matches!(error, TensorFileError::Parse { .. }) && error.kind() == ErrorKind::Input);
        assert!(
            write(
                &dir.path().join("no/such/folder.safetensors"),
                &Tensors::new()
            )
            .is_err()
        );
    }
}
