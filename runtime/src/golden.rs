//! Reference tensors for unit tests: the small set that the repository carries, and the shared one where it lies beside the repository.
//! Only compiled for tests; a test runs over every set there is.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

/// One golden folder.
pub(crate) struct Set {
    pub(crate) root: PathBuf,
    manifest: Value,
}

/// Every set that is there.
pub(crate) fn sets() -> Vec<Set> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets = ["../tests/golden", "../../shared/golden"].map(|folder| root.join(folder));
    let read = |root: PathBuf| {
        let text = std::fs::read(root.join("golden/manifest.json")).ok()?;
        Some(Set {
            root,
            manifest: serde_json::from_slice(&text).expect("manifest"),
        })
    };
    sets.into_iter().filter_map(read).collect()
}

impl Set {
    pub(crate) fn input(&self, name: &str) -> PathBuf {
        self.root.join("inputs").join(name)
    }

    pub(crate) fn values(&self) -> &Value {
        &self.manifest["values"]
    }

    /// A whole number at `path` of the manifest's `values` or `config`.
    pub(crate) fn number(&self, path: &str) -> usize {
        self.manifest
            .pointer(path)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{path}")) as usize
    }

    fn bytes(&self, file: &str, name: &str) -> Option<Vec<u8>> {
        let file = std::fs::read(
            self.root
                .join("golden")
                .join(file)
                .with_extension("safetensors"),
        )
        .expect("golden file");
        let tensors = SafeTensors::deserialize(&file).expect("golden file");
        Some(tensors.tensor(name).ok()?.data().to_vec())
    }

    pub(crate) fn shape(&self, file: &str, name: &str) -> Vec<usize> {
        let path = format!(
            "/files/{file}.safetensors/{}/shape",
            name.replace('/', "~1")
        );
        let shape = self
            .manifest
            .pointer(&path)
            .and_then(Value::as_array)
            .unwrap_or_else(|| panic!("{path}"));
        shape
            .iter()
            .map(|n| n.as_u64().expect("shape") as usize)
            .collect()
    }

    /// `None` when this set has no such tensor.
    pub(crate) fn try_u8s(&self, file: &str, name: &str) -> Option<Vec<u8>> {
        self.bytes(file, name)
    }

    pub(crate) fn try_f32s(&self, file: &str, name: &str) -> Option<Vec<f32>> {
        let bytes = self.bytes(file, name)?;
        Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
        )
    }

    pub(crate) fn f32s(&self, file: &str, name: &str) -> Vec<f32> {
        self.try_f32s(file, name)
            .unwrap_or_else(|| panic!("{file}: {name}"))
    }

    pub(crate) fn i64s(&self, file: &str, name: &str) -> Vec<i64> {
        let bytes = self
            .bytes(file, name)
            .unwrap_or_else(|| panic!("{file}: {name}"));
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b))
            .collect()
    }

    pub(crate) fn u16s(&self, file: &str, name: &str) -> Vec<u16> {
        let bytes = self
            .bytes(file, name)
            .unwrap_or_else(|| panic!("{file}: {name}"));
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| u16::from_le_bytes(b))
            .collect()
    }
}

/// Largest absolute difference; the lengths must agree.
pub(crate) fn worst(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}
