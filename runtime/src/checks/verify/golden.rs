//! Reads a golden set: `golden/manifest.json`, `golden/*.safetensors` and `inputs/`. Other files
//! decide how a tensor is checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engines::tensor::Tensor;
use engines::tensor_file::{self, Tensors};
use serde_json::Value;

use super::error::VerifyError;
use super::tolerance::Tolerance;

/// One tensor as the manifest describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name of the file, without its extension.
    pub file: String,
    /// Name of the tensor in the file.
    pub name: String,
    /// A sentence about the tensor, for people.
    pub meaning: String,
    /// The tolerance as the manifest writes it.
    pub rule: Value,
    /// The tolerance; `None` when the rule has an unknown form.
    pub tolerance: Option<Tolerance>,
}

/// A golden folder whose manifest was read. A file of tensors is read at its first use.
///
/// # Examples
/// ```
/// # use std::path::Path;
/// use runtime::checks::Golden;
///
/// # let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
/// let golden = Golden::open(&root)?;
/// let sigmas = golden.tensor("scheduler", "steps4.sigmas")?.expect("every golden set has it");
/// assert_eq!(sigmas.shape(), [5]);
/// assert_eq!(sigmas.as_slice::<f32>()[4], 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Golden {
    root: PathBuf,
    config: Value,
    values: Value,
    entries: Vec<Entry>,
    files: RefCell<BTreeMap<String, Option<Rc<Tensors>>>>,
}

impl Golden {
    /// Opens a golden folder and reads its manifest.
    ///
    /// # Errors
    /// The manifest is missing, is not JSON, or lists no files.
    pub fn open(root: &Path) -> Result<Self, VerifyError> {
        let path = root.join("golden/manifest.json");
        let bytes = std::fs::read(&path).map_err(|source| VerifyError::Read {
            path: path.clone(),
            source,
        })?;
        let mut manifest: Value =
            serde_json::from_slice(&bytes).map_err(|source| VerifyError::Parse {
                path: path.clone(),
                source,
            })?;
        let Some(files) = manifest.get("files").and_then(Value::as_object) else {
            return Err(VerifyError::NoFiles { path });
        };
        let entries = files.iter().flat_map(|(file, tensors)| {
            let file = file.strip_suffix(".safetensors").unwrap_or(file).to_owned();
            tensors
                .as_object()
                .into_iter()
                .flatten()
                .map(move |(name, facts)| entry(&file, name, facts))
        });
        let entries: Vec<Entry> = entries.collect();
        let mut take = |name: &str| manifest.get_mut(name).map(Value::take).unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            config: take("config"),
            values: take("values"),
            entries,
            files: RefCell::default(),
        })
    }

    /// Returns the golden folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns every tensor that the manifest lists, in its order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the manifest's entry of one tensor.
    pub fn entry(&self, file: &str, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|e| e.file == file && e.name == name)
    }

    /// Returns a whole number of the manifest's `config`.
    pub fn config(&self, name: &str) -> Option<usize> {
        whole(self.config.get(name)?)
    }

    /// Returns a part of the manifest's `values`, by JSON pointer.
    pub fn value(&self, pointer: &str) -> Option<&Value> {
        self.values.pointer(pointer)
    }

    /// Returns a whole number of the manifest's `values`, by JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<usize> {
        whole(self.value(pointer)?)
    }

    /// Returns the path of an input file.
    pub fn input(&self, file: &str) -> PathBuf {
        self.root.join("inputs").join(file)
    }

    /// Returns the path of a file of tensors.
    pub fn file(&self, file: &str) -> PathBuf {
        self.root.join("golden").join(format!("{file}.safetensors"))
    }

    /// Returns one tensor; `None` when the file does not exist or lacks the tensor.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn tensor(&self, file: &str, name: &str) -> Result<Option<Tensor>, VerifyError> {
        Ok(self.tensors(file)?.and_then(|t| t.get(name).cloned()))
    }

    fn tensors(&self, file: &str) -> Result<Option<Rc<Tensors>>, VerifyError> {
        if let Some(known) = self.files.borrow().get(file) {
            return Ok(known.clone());
        }
        let path = self.file(file);
        let read = match path.is_file() {
            true => Some(Rc::new(tensor_file::read(&path)?)),
            false => None,
        };
        self.files
            .borrow_mut()
            .insert(file.to_owned(), read.clone());
        Ok(read)
    }

    /// Lists the tensors of the folder that the manifest does not list, as (file, name). A file
    /// that cannot be read appears without a name.
    pub fn unlisted(&self) -> Vec<(String, Option<String>)> {
        let listed: BTreeSet<(&str, &str)> = self
            .entries
            .iter()
            .map(|e| (e.file.as_str(), e.name.as_str()))
            .collect();
        let folder = std::fs::read_dir(self.root.join("golden"));
        let paths = folder.into_iter().flatten().flatten().map(|f| f.path());
        let mut files: Vec<String> = paths
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned()))
            .collect();
        files.sort_unstable();
        let more = |file: String| match self.tensors(&file) {
            Ok(tensors) => tensors
                .iter()
                .flat_map(|t| t.keys())
                .filter(|name| !listed.contains(&(file.as_str(), name.as_str())))
                .map(|name| (file.clone(), Some(name.clone())))
                .collect(),
            Err(_) => vec![(file, None)],
        };
        files.into_iter().flat_map(more).collect()
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn entry(file: &str, name: &str, facts: &Value) -> Entry {
    let rule = facts.get("tolerance").cloned().unwrap_or_default();
    Entry {
        file: file.to_owned(),
        name: name.to_owned(),
        meaning: facts
            .get("meaning")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        tolerance: Tolerance::parse(&rule),
        rule,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// Makes a golden set of one file `f` with these tensors and rules.
    pub(crate) fn golden_of(dir: &Path, tensors: &[(&str, Option<Tensor>, Value)]) -> Golden {
        let facts: serde_json::Map<String, Value> = tensors
            .iter()
            .map(|(name, _, rule)| ((*name).to_owned(), json!({"tolerance": rule})))
            .collect();
        std::fs::create_dir_all(dir.join("golden")).unwrap();
        let manifest = json!({"files": {"f.safetensors": facts}}).to_string();
        std::fs::write(dir.join("golden/manifest.json"), manifest).unwrap();
        let golden = Golden::open(dir).unwrap();
        let there = tensors
            .iter()
            .filter_map(|(name, t, _)| Some(((*name).to_owned(), t.clone()?)))
            .collect();
        tensor_file::write(&golden.file("f"), &there).unwrap();
        golden
    }

    #[test]
    fn tensors_that_only_one_side_knows_are_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("golden")).unwrap();
        let manifest = json!({"config": {"heads": 2}, "values": {"a": {"b": 7}},
            "files": {"f.safetensors": {"x": {"tolerance": "exact", "meaning": "m"}, "gone": {}},
                "g.safetensors": {"y": {}}}});
        std::fs::write(
            dir.path().join("golden/manifest.json"),
            manifest.to_string(),
        )
        .unwrap();
        let tensor = || Tensor::from_slice(&[1], &[1f32]);
        let tensors = Tensors::from([("x".to_owned(), tensor()), ("more".to_owned(), tensor())]);
        let golden = Golden::open(dir.path()).unwrap();
        tensor_file::write(&golden.file("f"), &tensors).unwrap();
        std::fs::write(golden.file("h"), "no tensors").unwrap();
        let names: Vec<_> = golden
            .entries()
            .iter()
            .map(|e| (e.file.as_str(), e.name.as_str()))
            .collect();
        assert_eq!(names, [("f", "x"), ("f", "gone"), ("g", "y")]);
        assert_eq!(
            (
                golden.config("heads"),
                golden.number("/a/b"),
                golden.number("/a/c")
            ),
            (Some(2), Some(7), None)
        );
        assert!(golden.tensor("f", "x").unwrap().is_some());
        assert!(
            golden.tensor("f", "gone").unwrap().is_none()
                && golden.tensor("g", "y").unwrap().is_none()
        );
        assert!(golden.tensor("h", "z").is_err());
        assert_eq!(
            golden.unlisted(),
            [
                ("f".to_owned(), Some("more".to_owned())),
                ("h".to_owned(), None)
            ]
        );
    }

    #[test]
    fn a_folder_without_a_manifest_is_an_input_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Golden::open(dir.path()).err().unwrap();
        assert!(
            error.to_string().contains("golden/manifest.json")
                && error.kind() == engines::error_kind::ErrorKind::Input,
            "{error}"
        );
    }
}
