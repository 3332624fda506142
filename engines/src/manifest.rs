//! `manifest.json`: describes an export. The exporter writes it once, and everyone who opens the
//! folder checks it.

pub use crate::components::ModelConfig;

use crate::cancel::Cancel;
use crate::claims::Holder;
use crate::contract::{Contract, DType};
use crate::error_kind::{ErrorKind, reason};
use crate::recipe::Recipe;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Layout of the folder; a reader refuses any other.
pub const FORMAT: &str = "liveavatar-models/2";
/// Name of the manifest inside the folder.
pub const FILE: &str = "manifest.json";

/// One file of the export.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name of the file, inside the folder.
    pub file: String,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// BLAKE3 hash of the file, in hexadecimal.
    pub blake3: String,
}

/// One graph.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentEntry {
    /// Unique name, such as `dit_layer.03`.
    pub name: String,
    /// Name of its contract, such as `dit_layer_audio`.
    pub contract: String,
    /// Fingerprint of that contract, see [`Contract::fingerprint`].
    pub fingerprint: String,
    /// File of the graph. Components with bound weights share one.
    pub graph: FileEntry,
    /// The same graph for ONNX Runtime's CPU provider, with casts around operators that it has no
    /// kernel of the recipe's type for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_graph: Option<FileEntry>,
    /// Data file that holds the weights.
    pub data: String,
    /// Weights of the graph: name in the graph, to name in [`DataEntry::weights`] of the data file.
    pub weights: BTreeMap<String, String>,
    /// Inner values that a caller can ask for: module path, to name of the value in the graph.
    pub taps: BTreeMap<String, String>,
}

/// One stored weight.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightEntry {
    /// Name within the data file.
    pub name: String,
    /// Checkpoint key that the weight was made from.
    pub key: String,
    /// Element type.
    pub dtype: DType,
    /// Shape as stored.
    pub shape: Vec<usize>,
    /// First byte in the data file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether a matrix is stored as its transpose.
    pub transposed: bool,
}

/// One file of weights.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataEntry {
    /// The file.
    pub file: FileEntry,
    /// Weights that it holds.
    pub weights: Vec<WeightEntry>,
}

/// A LoRA that was merged into the transformer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraEntry {
    /// Name of the LoRA's file.
    pub file: String,
    /// BLAKE3 hash of the file, in hexadecimal. An export of an older version has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Factor of the product of its matrices, without the strength: the lowest of all modules.
    pub scale: f32,
    /// The highest factor, where modules differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_scale: Option<f32>,
    /// A further factor of the whole LoRA.
    #[serde(default = "full")]
    pub strength: f32,
    /// Ranks that occur in the LoRA.
    pub ranks: Vec<usize>,
    /// Number of weights that it changed.
    pub targets: usize,
}

/// Returns the strength of a LoRA that an older version merged.
fn full() -> f32 {
    1.0
}

/// Reads a list of LoRAs. An older version wrote one LoRA, or null, in its place.
fn loras<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<LoraEntry>, D::Error> {
    use serde::Deserialize as _;
    let value = serde_json::Value::deserialize(from)?;
    let list = match value {
        serde_json::Value::Null => serde_json::Value::Array(Vec::new()),
        one @ serde_json::Value::Object(_) => serde_json::Value::Array(vec![one]),
        other => other,
    };
    serde_json::from_value(list).map_err(serde::de::Error::custom)
}

/// The whole folder.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout of the folder, [`FORMAT`].
    pub format: String,
    /// Version of the program that wrote it.
    pub exporter: String,
    /// Precision.
    pub recipe: Recipe,
    /// Sizes of every component.
    pub config: ModelConfig,
    /// Layers of the checkpoint's transformer, if the export holds the first few of them only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_of: Option<usize>,
    /// The LoRAs that were merged, in their order.
    #[serde(default, deserialize_with = "loras")]
    pub lora: Vec<LoraEntry>,
    /// File of the tokenizer.
    pub tokenizer: FileEntry,
    /// Graphs.
    pub components: Vec<ComponentEntry>,
    /// Files of weights.
    pub data: Vec<DataEntry>,
}

/// Returns the command that makes a folder where none is there, after a semicolon.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "; `avatar-export onnx` makes this folder"
        }
        _ => "",
    }
}

/// Why a models folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum ManifestError {
    #[error(
        "{}: cannot read: {}{}",
        path.display(),
        reason(source),
        remedy(source)
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {holder} replaces this export; try again when it is done", path.display())]
    Busy { path: PathBuf, holder: Holder },
    #[error(
        "{}: changed while it was in use, so what was made with it is suspect; export again",
        path.display()
    )]
    Changed { path: PathBuf },
    #[error("cancelled")]
    Cancelled,
    #[error("{}: not a manifest: {source}", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{}: field format: wanted {FORMAT:?}, found {found:?}; export again with this version",
        path.display()
    )]
    Format { path: PathBuf, found: String },
    #[error(
        "{}: size: wanted {want} bytes, found {found}; the folder is incomplete or mixed, export \
         again",
        path.display()
    )]
    Size {
        path: PathBuf,
        want: u64,
        found: u64,
    },
    #[error(
        "{}: hash: wanted {want}, found {found}; the file is damaged or from another export, \
         export again",
        path.display()
    )]
    Hash {
        path: PathBuf,
        want: String,
        found: String,
    },
    #[error(
        "{}: component {name}: contract {contract}: wanted fingerprint {want}, found {found}; \
         export again with this version",
        path.display()
    )]
    Fingerprint {
        path: PathBuf,
        name: String,
        contract: String,
        want: String,
        found: String,
    },
    #[error("{}: component {name:?} is missing; the folder has {have}", path.display())]
    Missing {
        path: PathBuf,
        name: String,
        have: String,
    },
    #[error(
        "{}: component {component}: weight {weight:?}: wanted an entry inside its data file, found \
         none",
        path.display()
    )]
    Weight {
        path: PathBuf,
        component: String,
        weight: String,
    },
    #[error("{}: file name {name:?} leaves the folder", path.display())]
    Escapes { path: PathBuf, name: String },
}

impl ManifestError {
    /// Returns the kind of failure: the model, unless the system lacks something.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } => ErrorKind::of_io(source, ErrorKind::Model),
            Self::Busy { .. } => ErrorKind::Resources,
            Self::Cancelled => ErrorKind::Interrupted,
            _ => ErrorKind::Model,
        }
    }
}

/// An opened and checked export.
///
/// ```no_run
/// use engines::components::dit;
/// use engines::manifest::Models;
///
/// let models = Models::open("models".as_ref())?;
/// let (entry, contract) = models.component(&dit::layer_name(0))?;
/// println!("{}: {contract}", entry.graph.file);
/// # Ok::<(), engines::manifest::ManifestError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Models {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// One map for each data file, in the manifest's order.
    pub(crate) maps: Vec<Arc<Mmap>>,
    /// Every file of the export as it was when it was opened.
    files: Arc<Vec<Opened>>,
}

/// A file of the export, open under a lock that others may share. An export that would replace the
/// file sees the lock.
#[derive(Debug)]
struct Opened {
    entry: FileEntry,
    path: PathBuf,
    stamp: Stamp,
    _file: File,
}

/// The facts that change when a file does.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds of the last write.
    written: (i64, i64),
}

impl Stamp {
    fn of(facts: &Metadata) -> Self {
        Self {
            file: (facts.dev(), facts.ino()),
            bytes: facts.len(),
            written: (facts.mtime(), facts.mtime_nsec()),
        }
    }
}

/// Longest wait for an export that is being given its name.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that are hashed between two looks at a request to stop: some milliseconds of work.
const HASHED_AT_ONCE: usize = 1 << 20;

impl Models {
    /// Opens a folder. Checks size, hash and contract of everything that the manifest names.
    ///
    /// # Errors
    /// The folder has no manifest or one of another format; a file is missing, of another size or
    /// damaged; a contract is not this program's.
    pub fn open(dir: &Path) -> Result<Self, ManifestError> {
        Self::open_until(dir, &Cancel::default())
    }

    /// Opens a folder as [`Self::open`] does, until `cancel` asks to stop: hashing takes a while.
    ///
    /// # Errors
    /// [`ManifestError::Cancelled`]; the errors of [`Self::open`].
    pub fn open_until(dir: &Path, cancel: &Cancel) -> Result<Self, ManifestError> {
        let path = dir.join(FILE);
        let read = |source| ManifestError::Read {
            path: path.clone(),
            source,
        };
        let mut described = open_shared(&path)?;
        let mut text = String::new();
        described.read_to_string(&mut text).map_err(read)?;
        // The format is looked at first: a folder of another version deserves that answer, not
        // "unknown field".
        let probe: serde_json::Value =
            serde_json::from_str(&text).map_err(|source| ManifestError::Parse {
                path: path.clone(),
                source,
            })?;
        match probe.get("format").and_then(|f| f.as_str()) {
            Some(FORMAT) => {}
            found => {
                return Err(ManifestError::Format {
                    path,
                    found: found.unwrap_or("nothing").to_owned(),
                });
            }
        }
        let manifest: Manifest =
            serde_json::from_value(probe).map_err(|source| ManifestError::Parse {
                path: path.clone(),
                source,
            })?;
        let mut models = Self {
            dir: dir.to_owned(),
            manifest,
            maps: Vec::new(),
            files: Arc::default(),
        };
        models.check_contracts()?;
        let graphs = models.manifest.components.iter();
        let files: BTreeMap<&str, &FileEntry> = graphs
            .flat_map(|c| [Some(&c.graph), c.cpu_graph.as_ref()])
            .flatten()
            .chain(models.manifest.data.iter().map(|d| &d.file))
            .chain([&models.manifest.tokenizer])
            .map(|f| (f.file.as_str(), f))
            .collect();
        let opened = files.into_values().map(|f| models.check_file(f, cancel));
        let mut opened: Vec<Opened> = opened.collect::<Result<_, _>>()?;
        opened.push(Opened {
            entry: FileEntry {
                file: FILE.to_owned(),
                bytes: text.len() as u64,
                blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
            },
            stamp: Stamp::of(&described.metadata().map_err(read)?),
            path: path.clone(),
            _file: described,
        });
        models.files = Arc::new(opened);
        let data = models.manifest.data.iter();
        models.maps = data
            .map(|d| map_file(&dir.join(&d.file.file)))
            .collect::<Result<_, _>>()?;
        models.check_placement()?;
        Ok(models)
    }

    /// Checks that no file has changed since it was opened: the bytes in use are those that were
    /// checked. A file that was written again with the same bytes counts as unchanged.
    ///
    /// # Errors
    /// [`ManifestError::Changed`] with the first file that differs.
    pub fn unchanged(&self) -> Result<(), ManifestError> {
        let never = Cancel::default();
        let differs = |opened: &&Opened| {
            let facts = std::fs::metadata(&opened.path);
            let same = facts.as_ref().is_ok_and(|f| Stamp::of(f) == opened.stamp);
            let equal = |facts: Metadata| {
                facts.len() == opened.entry.bytes
                    && File::open(&opened.path)
                        .and_then(|mut file| hash(&mut file, &never))
                        .is_ok_and(|h| h.as_ref() == Some(&opened.entry.blake3))
            };
            !same && !facts.is_ok_and(equal)
        };
        match self.files.iter().find(differs) {
            None => Ok(()),
            Some(opened) => Err(ManifestError::Changed {
                path: opened.path.clone(),
            }),
        }
    }

    /// Returns the precision of the export.
    pub fn recipe(&self) -> Recipe {
        self.manifest.recipe
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the sizes of every component.
    pub fn config(&self) -> &ModelConfig {
        &self.manifest.config
    }

    /// Returns the path of the tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.dir.join(&self.manifest.tokenizer.file)
    }

    /// Finds one component: its entry and its contract.
    ///
    /// # Errors
    /// [`ManifestError::Missing`] with the names of those that exist.
    pub fn component(
        &self,
        name: &str,
    ) -> Result<(&ComponentEntry, &'static Contract), ManifestError> {
        let missing = || ManifestError::Missing {
            path: self.dir.join(FILE),
            name: name.to_owned(),
            have: self
                .manifest
                .components
                .iter()
                .map(|c| c.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let entry = self
            .manifest
            .components
            .iter()
            .find(|c| c.name == name)
            .ok_or_else(missing)?;
        let contract = self.config().contract(&entry.contract);
        Ok((entry, contract.ok_or_else(missing)?))
    }

    /// Finds one weight of a component and the file that holds it.
    pub fn weight(
        &self,
        component: &ComponentEntry,
        name: &str,
    ) -> Option<(PathBuf, &WeightEntry)> {
        let data = self
            .manifest
            .data
            .iter()
            .find(|d| d.file.file == component.data)?;
        let weight = data.weights.iter().find(|w| w.name == name)?;
        Some((self.dir.join(&data.file.file), weight))
    }

    /// Reads one weight of floats as f32. Returns `None` if the component has no weight of that
    /// name in f32 or bf16.
    ///
    /// # Errors
    /// [`ManifestError::Read`].
    pub fn read_weight(
        &self,
        component: &ComponentEntry,
        name: &str,
    ) -> Result<Option<(&WeightEntry, Vec<f32>)>, ManifestError> {
        use std::io::{Read, Seek, SeekFrom};
        let Some((path, weight)) = self
            .weight(component, name)
            .filter(|(_, w)| matches!(w.dtype, DType::F32 | DType::BF16))
        else {
            return Ok(None);
        };
        let mut bytes = vec![0u8; usize::try_from(weight.length).unwrap_or(usize::MAX)];
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(weight.offset))?;
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|source| ManifestError::Read {
            path: path.clone(),
            source,
        })?;
        let floats = match weight.dtype {
            DType::BF16 => bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            _ => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        };
        Ok(Some((weight, floats)))
    }

    fn check_contracts(&self) -> Result<(), ManifestError> {
        for c in &self.manifest.components {
            let contract = self.config().contract(&c.contract);
            let want = contract.map_or_else(|| "none".to_owned(), Contract::fingerprint);
            if want != c.fingerprint {
                return Err(ManifestError::Fingerprint {
                    path: self.dir.join(FILE),
                    name: c.name.clone(),
                    contract: c.contract.clone(),
                    want,
                    found: c.fingerprint.clone(),
                });
            }
        }
        Ok(())
    }

    /// Checks that every weight lies inside its file, so that a view of it never fails.
    fn check_placement(&self) -> Result<(), ManifestError> {
        for (data, map) in self.manifest.data.iter().zip(&self.maps) {
            let fits = |w: &&WeightEntry| {
                let bytes = w.shape.iter().product::<usize>() * w.dtype.size();
                w.length == bytes as u64
                    && w.offset
                        .checked_add(w.length)
                        .is_some_and(|end| end <= map.len() as u64)
            };
            if let Some(w) = data.weights.iter().find(|w| !fits(w)) {
                return Err(ManifestError::Weight {
                    path: self.dir.join(FILE),
                    component: data.file.file.clone(),
                    weight: w.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_file(&self, entry: &FileEntry, cancel: &Cancel) -> Result<Opened, ManifestError> {
        let mut parts = Path::new(&entry.file).components();
        if !matches!(
            (parts.next(), parts.next()),
            (Some(std::path::Component::Normal(_)), None)
        ) {
            return Err(ManifestError::Escapes {
                path: self.dir.join(FILE),
                name: entry.file.clone(),
            });
        }
        let path = self.dir.join(&entry.file);
        let read = |source| ManifestError::Read {
            path: path.clone(),
            source,
        };
        let mut file = open_shared(&path)?;
        let facts = file.metadata().map_err(read)?;
        let found = facts.len();
        if found != entry.bytes {
            return Err(ManifestError::Size {
                path,
                want: entry.bytes,
                found,
            });
        }
        let found = hash(&mut file, cancel).map_err(read)?;
        let found = found.ok_or(ManifestError::Cancelled)?;
        if found != entry.blake3 {
            return Err(ManifestError::Hash {
                path,
                want: entry.blake3.clone(),
                found,
            });
        }
        Ok(Opened {
            entry: entry.clone(),
            path,
            stamp: Stamp::of(&facts),
            _file: file,
        })
    }
}

/// Opens a file for reading and locks it together with other readers.
fn open_shared(path: &Path) -> Result<File, ManifestError> {
    let read = |source| ManifestError::Read {
        path: path.to_owned(),
        source,
    };
    let since = Instant::now();
    loop {
        let file = File::open(path).map_err(read)?;
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(ManifestError::Busy {
                    path: path.to_owned(),
                    holder: Holder::of(&file),
                });
            }
            // A file system without locks; the checks at the end of a run must do.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

/// Maps a file that nobody writes while it is open.
#[expect(unsafe_code, reason = "weights are read in place")]
fn map_file(path: &Path) -> Result<Arc<Mmap>, ManifestError> {
    let read = |source| ManifestError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    // SAFETY: an export is written once and renamed into place. `Models::unchanged` finds a file
    // that was written nevertheless, and `signals` tells of one that was cut short.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    Ok(Arc::new(map))
}

/// BLAKE3 of a file, as the manifest writes it.
pub fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes an open file from where it stands to its end. Returns `None` if `cancel` asked to stop.
fn hash(file: &mut File, cancel: &Cancel) -> io::Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; HASHED_AT_ONCE];
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match file.read(&mut bytes)? {
            0 => return Ok(Some(hasher.finalize().to_hex().to_string())),
            n => drop(hasher.update(&bytes[..n])),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default, deserialize_with = "loras")]
        lora: Vec<LoraEntry>,
    }

    #[test]
    fn loras_of_an_older_manifest_are_read_as_a_list() {
        let old = r#"{"file":"a","scale":0.5,"ranks":[4],"targets":2}"#;
        let entry = LoraEntry {
            file: "a".to_owned(),
            blake3: None,
            scale: 0.5,
            highest_scale: None,
            strength: 1.0,
            ranks: vec![4],
            targets: 2,
        };
        for (lora, want) in [
            ("null".to_owned(), vec![]),
            (old.to_owned(), vec![entry.clone()]),
            (format!("[{old},{old}]"), vec![entry.clone(), entry]),
        ] {
            let list: List = serde_json::from_str(&format!(r#"{{"lora":{lora}}}"#)).unwrap();
            assert_eq!(list.lora, want, "{lora}");
        }
        let unknown = r#"{"lora":[{"file":"a","rank":4}]}"#;
        assert!(serde_json::from_str::<List>(unknown).is_err());
    }
}
