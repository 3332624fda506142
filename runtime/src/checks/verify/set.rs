//! A golden folder: `golden/manifest.json`, `golden/*.safetensors` and `inputs/`. Read-only facts; which tensor is checked how is not its
//! business.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engines::tensor::Tensor;
use serde_json::Value;

use super::VerifyError;
use engines::tensor_file::{self, Tensors};

/// How far a value may be from the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Bit for bit (integers).
    Exact,
    /// `|got - want| <= atol + rtol * |want|`.
    Close { atol: f64, rtol: f64 },
    /// 8-bit levels.
    Levels(f64),
    /// Root mean square of the difference over that of the reference: for values with roundings to bf16 behind them, of which the single
    /// element says little. No set asks for it; see `precision`.
    RelativeRms(f64),
}

impl Tolerance {
    /// `"exact"`, `{"atol": a, "rtol": r}` or `{"max_abs_levels": n}`; nothing else, so that no other rule passes by mistake.
    pub fn parse(value: &Value) -> Option<Self> {
        if value.as_str() == Some("exact") {
            return Some(Self::Exact);
        }
        let fields = value.as_object()?;
        let known = |names: &[&str]| fields.keys().all(|k| names.contains(&k.as_str()));
        let number = |name: &str| match fields.get(name) {
            None => Some(0.0),
            Some(v) => v.as_f64().filter(|x| x.is_finite() && *x >= 0.0),
        };
        match fields.get("max_abs_levels") {
            Some(_) if known(&["max_abs_levels"]) => Some(Self::Levels(number("max_abs_levels")?)),
            None if !fields.is_empty() && known(&["atol", "rtol"]) => Some(Self::Close {
                atol: number("atol")?,
                rtol: number("rtol")?,
            }),
            _ => None,
        }
    }

    /// Largest difference allowed beside the reference value `want`.
    pub fn allowed(self, want: f64) -> f64 {
        match self {
            Self::Exact => 0.0,
            Self::Close { atol, rtol } => atol + rtol * want.abs(),
            Self::Levels(n) => n,
            // Of the whole tensor: the comparison sees to it.
            Self::RelativeRms(_) => f64::INFINITY,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Close {
                atol: 0.0,
                rtol: 0.0,
            } => f.write_str("equal"),
            Self::Close { atol, rtol: 0.0 } => write!(f, "{atol:.1e}"),
            Self::Close { atol: 0.0, rtol } => write!(f, "{rtol:.1e}*|x|"),
            Self::Close { atol, rtol } => write!(f, "{atol:.1e} + {rtol:.1e}*|x|"),
            Self::RelativeRms(limit) => write!(f, "rms {limit:.2e}*rms(x)"),
            Self::Levels(n) => write!(f, "{n} level{}", if *n == 1.0 { "" } else { "s" }),
        }
    }
}

/// One tensor as the manifest describes it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub file: String,
    pub name: String,
    pub meaning: String,
    /// The rule as it is written, and as it was understood.
    pub rule: Value,
    pub tolerance: Option<Tolerance>,
}

/// A golden folder, its manifest read.
pub struct Set {
    root: PathBuf,
    config: Value,
    values: Value,
    entries: Vec<Entry>,
    files: RefCell<BTreeMap<String, Option<Rc<Tensors>>>>,
}

impl Set {
    /// Opens a folder laid out as the generator of golden sets does.
    ///
    /// # Errors
    /// A manifest that is missing, no JSON, or lists no files.
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

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every tensor of the manifest, in its order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn entry(&self, file: &str, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|e| e.file == file && e.name == name)
    }

    /// A whole number of `config`.
    pub fn config(&self, name: &str) -> Option<usize> {
        whole(self.config.get(name)?)
    }

    /// Something of `values`, by JSON pointer.
    pub fn value(&self, pointer: &str) -> Option<&Value> {
        self.values.pointer(pointer)
    }

    /// A whole number of `values`, by JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<usize> {
        whole(self.value(pointer)?)
    }

    /// Path of an input file.
    pub fn input(&self, file: &str) -> PathBuf {
        self.root.join("inputs").join(file)
    }

    /// Path of a file of tensors.
    pub fn file(&self, file: &str) -> PathBuf {
        self.root.join("golden").join(format!("{file}.safetensors"))
    }

    /// One tensor; `None` when there is no such file or the file lacks it.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
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

    /// Tensors that lie in the folder and that the manifest does not list, as (file, name); a file that cannot be read has no name.
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
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_rules_that_are_understood_whole_are_rules() {
        for (rule, want) in [
            (json!("exact"), Some(Tolerance::Exact)),
            (
                json!({"atol": 1e-4, "rtol": 0}),
                Some(Tolerance::Close {
                    atol: 1e-4,
                    rtol: 0.0,
                }),
            ),
            (
                json!({"rtol": 0.5}),
                Some(Tolerance::Close {
                    atol: 0.0,
                    rtol: 0.5,
                }),
            ),
            (json!({"max_abs_levels": 1}), Some(Tolerance::Levels(1.0))),
            (json!({"max_abs_levels": 1, "atol": 9}), None),
            (json!({"atol": 1e-4, "fraction": 0.9}), None),
            (json!({"atol": -1.0}), None),
            (json!({"atol": "1e-4"}), None),
            (json!({}), None),
            (json!("about"), None),
            (Value::Null, None),
        ] {
            assert_eq!(Tolerance::parse(&rule), want, "{rule}");
        }
    }

    #[test]
    fn tensors_that_only_one_side_knows_are_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("golden")).unwrap();
        let manifest = json!({"config": {"heads": 2}, "values": {"a": {"b": 7}},
            "files": {"f.safetensors": {"x": {"tolerance": "exact", "meaning": "m"}, "gone": {}}, "g.safetensors": {"y": {}}}});
        std::fs::write(
            dir.path().join("golden/manifest.json"),
            manifest.to_string(),
        )
        .unwrap();
        let tensor = || Tensor::from_slice(&[1], &[1f32]);
        let tensors = Tensors::from([("x".to_owned(), tensor()), ("more".to_owned(), tensor())]);
        let set = Set::open(dir.path()).unwrap();
        tensor_file::write(&set.file("f"), &tensors).unwrap();
        std::fs::write(set.file("h"), "no tensors").unwrap();
        let names: Vec<_> = set
            .entries()
            .iter()
            .map(|e| (e.file.as_str(), e.name.as_str()))
            .collect();
        assert_eq!(names, [("f", "x"), ("f", "gone"), ("g", "y")]);
        assert_eq!(
            (set.config("heads"), set.number("/a/b"), set.number("/a/c")),
            (Some(2), Some(7), None)
        );
        assert!(set.tensor("f", "x").unwrap().is_some());
        assert!(
            set.tensor("f", "gone").unwrap().is_none() && set.tensor("g", "y").unwrap().is_none()
        );
        assert!(set.tensor("h", "z").is_err());
        assert_eq!(
            set.unlisted(),
            [
                ("f".to_owned(), Some("more".to_owned())),
                ("h".to_owned(), None)
            ]
        );
    }

    #[test]
    fn a_folder_without_a_manifest_is_an_input_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Set::open(dir.path()).err().unwrap();
        assert!(
            error.to_string().contains("golden/manifest.json")
                && error.kind() == engines::error_kind::ErrorKind::Input,
            "{error}"
        );
    }
}
