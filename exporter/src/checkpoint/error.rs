//! Faults of a checkpoint. One error holds every fault of one file; each fault is a phrase with its
//! facts.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use engines::error_kind::ErrorKind;

use super::dtype::StoredDType;
use super::repack::Repack;

/// Most items of a list in a message. A count stands for the others.
const SHOWN: usize = 3;

/// A checkpoint or a tensor that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum CheckpointError {
    /// The path holds no checkpoint of the wanted kind.
    #[error("{path}: no {want} there", path = path.display())]
    Missing { path: PathBuf, want: &'static str },
    /// Several files fit, and none has preference.
    #[error(
        "{path}: wanted one {want}, found {found}",
        path = path.display(),
        found = found.join(", ")
    )]
    Ambiguous {
        path: PathBuf,
        want: &'static str,
        found: Vec<String>,
    },
    /// The operating system refused an operation.
    #[error("{path}: cannot {op}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        op: &'static str,
        source: io::Error,
    },
    /// The file is neither safetensors nor a torch archive.
    #[error("{path}: neither safetensors nor a torch zip archive ({got})", path = path.display())]
    Format { path: PathBuf, got: &'static str },
    /// A text of git-lfs in the place of the file.
    #[error(
        "{file}: a git-lfs pointer{}, not the file itself; run `git lfs pull` in its folder",
        bytes.map(|n| format!(" to {n} bytes")).unwrap_or_default(),
        file = file.display()
    )]
    LfsPointer { file: PathBuf, bytes: Option<u64> },
    /// A JSON file that is damaged.
    #[error("{file}: not JSON: {source}", file = file.display())]
    Json {
        file: PathBuf,
        source: serde_json::Error,
    },
    /// The model in another program's form.
    #[error("{path}: {form}; take {instead} instead", path = path.display())]
    Repack {
        path: PathBuf,
        form: Repack,
        instead: String,
    },
    /// Tensors that differ from the published layout.
    #[error("{path}: {faults}", path = path.display())]
    Layout { path: PathBuf, faults: LayoutFaults },
    /// A damaged safetensors file.
    #[error("{file}: {faults}", file = file.display())]
    Safetensors {
        file: PathBuf,
        faults: Faults<SafetensorsFault>,
    },
    /// An index that does not fit its shards.
    #[error("{file}: {faults}", file = file.display())]
    Index {
        file: PathBuf,
        faults: Faults<IndexFault>,
    },
    /// A damaged or refused torch archive.
    #[error("{file}: {faults}", file = file.display())]
    Torch {
        file: PathBuf,
        faults: Faults<TorchFault>,
    },
    /// A LoRA file that does not fit the checkpoint.
    #[error("{file}: {faults}", file = file.display())]
    Lora {
        file: PathBuf,
        faults: Faults<LoraFault>,
    },
    /// Weight norm pairs that do not fit each other.
    #[error("{path}: {faults}", path = path.display())]
    WeightNorm {
        path: PathBuf,
        faults: Faults<WeightNormFault>,
    },
    /// No tensor has this name.
    #[error(
        "{path}: no tensor {key}{}",
        nearest.as_ref().map(|n| format!("; nearest is {n}")).unwrap_or_default(),
        path = path.display()
    )]
    UnknownKey {
        path: PathBuf,
        key: String,
        nearest: Option<String>,
    },
    /// The tensor holds integers, and floating point was wanted.
    #[error("{file}: tensor {key} is {got}, wanted F32, BF16, F16 or F64", file = file.display())]
    NotFloat {
        file: PathBuf,
        key: String,
        got: StoredDType,
    },
    /// The part lies beyond the end of the tensor.
    #[error("tensor {key}: elements {range:?} of {len} were asked for")]
    Range {
        key: String,
        range: Range<usize>,
        len: usize,
    },
    /// The tensor is computed when it is read, so it has no stored bytes.
    #[error("tensor {key} is computed ({how}) and has no stored bytes; read it as f32")]
    Computed { key: String, how: &'static str },
}

impl CheckpointError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull
                ) =>
            {
                ErrorKind::Resources
            }
            _ => ErrorKind::Model,
        }
    }
}

/// All faults of one file. It prints the first three, and the count where there are more.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults<T>(pub Vec<T>);

impl<T> From<T> for Faults<T> {
    fn from(fault: T) -> Self {
        Self(vec![fault])
    }
}

impl<T: fmt::Display> fmt::Display for Faults<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > SHOWN {
            write!(f, "{} faults: ", self.0.len())?;
        }
        f.write_str(&first(&self.0, "; "))
    }
}

/// Returns the first three items of a list, and the number of the others.
pub(crate) fn first<T: fmt::Display>(items: &[T], comma: &str) -> String {
    let shown: Vec<String> = items.iter().take(SHOWN).map(T::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join(comma),
        more => format!("{}{comma}and {more} more", shown.join(comma)),
    }
}

/// A tensor that differs from the published layout.
#[derive(Clone, Debug, PartialEq, serde::Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "the group of a variant and its fields name the fault"
)]
pub enum LayoutFault {
    #[error("{key} {shape:?}")]
    MissingTensor { key: String, shape: Vec<usize> },
    #[error("{key} is {got:?} (wanted {want:?})")]
    Shape {
        key: String,
        want: Vec<usize>,
        got: Vec<usize>,
    },
    #[error("{key} {shape:?}")]
    Unexpected { key: String, shape: Vec<usize> },
    #[error("{key} is {got} (wanted F32, BF16, F16 or F64)")]
    NotFloat { key: String, got: &'static str },
}

impl LayoutFault {
    /// Returns the words for one and for several tensors with this kind of fault.
    fn group(&self) -> (&'static str, &'static str) {
        match self {
            Self::MissingTensor { .. } => ("is missing", "are missing"),
            Self::Shape { .. } => ("has another shape", "have another shape"),
            Self::Unexpected { .. } => ("is not expected", "are not expected"),
            Self::NotFloat { .. } => ("is not floating point", "are not floating point"),
        }
    }
}

/// All tensors of a file that differ from the published layout. Each kind of fault is printed with
/// its count and its first three tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct LayoutFaults(pub Vec<LayoutFault>);

impl fmt::Display for LayoutFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<((&str, &str), Vec<&LayoutFault>)> = Vec::new();
        for fault in &self.0 {
            match groups.iter_mut().find(|(words, _)| *words == fault.group()) {
                Some((_, faults)) => faults.push(fault),
                None => groups.push((fault.group(), vec![fault])),
            }
        }
        let texts = groups.iter().map(|((one, many), faults)| {
            let list = first(faults, ", ");
            match faults.len() {
                1 => format!("1 tensor {one}: {list}"),
                count => format!("{count} tensors {many}: {list}"),
            }
        });
        f.write_str(&texts.collect::<Vec<_>>().join("; "))
    }
}

/// A fault of a safetensors file. Offsets count from the start of the data part.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum SafetensorsFault {
    #[error("{got} bytes long, wanted at least 8 for the header length")]
    Short { got: usize },
    #[error("header length {got} reaches beyond the file, which has {room} bytes left")]
    HeaderLength { got: u64, room: usize },
    #[error("header length {got} is above the limit of {limit}")]
    HeaderLimit { got: u64, limit: usize },
    #[error("header is not a JSON object of tensors: {reason}")]
    Header { reason: String },
    #[error("tensor {key} is listed twice")]
    Twice { key: String },
    #[error("tensor {key}: {reason}")]
    Entry { key: String, reason: String },
    #[error("tensor {key}: unknown dtype {got}")]
    DType { key: String, got: String },
    #[error(
        "tensor {key}: {dtype} {shape:?} is {want} bytes, offsets {begin}..{end} give {got}",
        got = *end as i128 - *begin as i128
    )]
    Size {
        key: String,
        dtype: StoredDType,
        shape: Vec<usize>,
        want: usize,
        begin: usize,
        end: usize,
    },
    #[error("tensor {key}: {dtype} {shape:?} is larger than any memory")]
    Huge {
        key: String,
        dtype: StoredDType,
        shape: Vec<usize>,
    },
    #[error("tensor {key} ends at byte {end}, the file holds {data} bytes of data")]
    Truncated {
        key: String,
        end: usize,
        data: usize,
    },
    #[error("tensor {key} starts at byte {begin}, not a multiple of {align}")]
    Misaligned {
        key: String,
        begin: usize,
        align: usize,
    },
    #[error("tensors {first} and {second} overlap at byte {at}")]
    Overlap {
        first: String,
        second: String,
        at: usize,
    },
    #[error("bytes {from}..{to} belong to no tensor")]
    Gap { from: usize, to: usize },
}

/// A fault of a `*.safetensors.index.json`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum IndexFault {
    #[error("not an index: {reason}")]
    Json { reason: String },
    #[error("weight_map names no shard")]
    Empty,
    #[error("shard name {shard:?} is not a plain file name")]
    ShardName { shard: String },
    #[error("shard {shard} is missing")]
    MissingShard { shard: String },
    #[error("tensor {key} is not in its shard {shard}")]
    NotInShard { key: String, shard: String },
    #[error("tensor {key} is in {first} and in {second}")]
    Twice {
        key: String,
        first: String,
        second: String,
    },
}

/// A fault of a torch archive; `at` is a byte position in its `data.pkl`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum TorchFault {
    #[error("zip: {reason}")]
    Zip { reason: &'static str },
    #[error("zip: record {name}: {reason}")]
    ZipRecord { name: String, reason: &'static str },
    #[error("saved by torch before 1.6 (not a zip archive); load it in torch and save it again")]
    Legacy,
    #[error("byteorder is {got:?}, wanted \"little\"")]
    ByteOrder { got: String },
    #[error("pickle is {got} bytes long, above the limit of {limit}")]
    PickleLimit { got: usize, limit: usize },
    #[error("pickle ends in the middle of an operation at byte {at}")]
    PickleEnd { at: usize },
    #[error("pickle opcode {op:#04x} at byte {at} is not used for tensors and is refused")]
    Opcode { op: u8, at: usize },
    #[error(
        "pickle at byte {at} names {global}, which is refused: \
         only tensors and plain containers are read"
    )]
    Global { global: String, at: usize },
    #[error("pickle at byte {at}: wanted {want}, got {got}")]
    Pickle {
        at: usize,
        want: &'static str,
        got: &'static str,
    },
    #[error("top level is {got}, wanted a dictionary of tensors")]
    TopLevel { got: &'static str },
    #[error("key {key} holds {got}, wanted a tensor")]
    NotTensor { key: String, got: &'static str },
    #[error("a key of the dictionary is {got}, wanted a string")]
    KeyType { got: &'static str },
    #[error("tensor {key} is listed twice")]
    Twice { key: String },
    #[error("tensor {key}: storage record {record} is missing")]
    NoStorage { key: String, record: String },
    #[error("tensor {key}: storage record {record} holds {got} bytes, wanted {want}")]
    StorageSize {
        key: String,
        record: String,
        want: usize,
        got: usize,
    },
    #[error(
        "tensor {key}: {dtype} {shape:?} with strides {strides:?} at element {offset} \
         does not fit its storage of {storage} bytes"
    )]
    OutOfStorage {
        key: String,
        dtype: StoredDType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        storage: usize,
    },
}

/// A fault of a LoRA file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum LoraFault {
    #[error(
        "no key matches {want}; it has {}",
        if found.is_empty() { "no tensors".to_owned() } else { found.join(", ") }
    )]
    NoMatch {
        want: &'static str,
        found: Vec<String>,
    },
    #[error(
        "no LoRA weight ({}), so the base model would be overwritten or the key ignored; \
         wanted {want}",
        counted(keys)
    )]
    NotLora {
        keys: Vec<String>,
        want: &'static str,
    },
    #[error(
        "{form} is not merged ({}); take a plain LoRA, or merge it with the program that made it",
        counted(keys)
    )]
    Form {
        form: &'static str,
        keys: Vec<String>,
    },
    #[error("module {module} is listed twice, by {first} and {second}")]
    Twice {
        module: String,
        first: String,
        second: String,
    },
    #[error("module {module} has {has} but no {lacks}")]
    Half {
        module: String,
        has: &'static str,
        lacks: &'static str,
    },
    #[error("key {key} has shape {got:?}, wanted two dimensions")]
    Rank2 { key: String, got: Vec<usize> },
    #[error(
        "{got} is not merged ({}), wanted F32, BF16, F16 or F64; convert the LoRA to bf16",
        counted(keys)
    )]
    DType { got: StoredDType, keys: Vec<String> },
    #[error("module {module}: lora_A has rank {a}, lora_B has rank {b}")]
    RankOfPair { module: String, a: usize, b: usize },
    #[error(
        "the checkpoint lacks {} of its {of} modules ({}), so it belongs to another model",
        if modules.len() == *of { "all".to_owned() } else { modules.len().to_string() },
        few(modules)
    )]
    Unmatched { modules: Vec<String>, of: usize },
    #[error("module {module} may be {first} or {second} of the checkpoint")]
    Ambiguous {
        module: String,
        first: String,
        second: String,
    },
    #[error("module {module}: B @ A is {got:?}, {key} is {want:?}")]
    Shape {
        module: String,
        key: String,
        want: Vec<usize>,
        got: Vec<usize>,
    },
    #[error("scale {got} is not a finite number")]
    Scale { got: f64 },
    #[error("key {key} has shape {got:?}, wanted one number")]
    NotNumber { key: String, got: Vec<usize> },
    #[error(
        "{} of {of} modules have no alpha ({}); give --lora-alpha or --lora-scale",
        modules.len(),
        few(modules)
    )]
    NoAlpha { modules: Vec<String>, of: usize },
    #[error("two factors are stated, {first} and {second}; give --lora-scale to decide")]
    Disagree { first: String, second: String },
    #[error(
        "module {module} has rank {got} in the file, {statement} says {stated}; \
         give --lora-scale to decide"
    )]
    RankStated {
        module: String,
        statement: String,
        stated: usize,
        got: usize,
    },
    #[error("{statement}: {field} is {got}, wanted {want}")]
    Config {
        statement: String,
        field: String,
        got: String,
        want: &'static str,
    },
}

/// Names in a message about several keys or modules.
const NAMED: usize = 3;

/// Returns the first names, and the number of the others.
fn few(names: &[String]) -> String {
    let first = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Returns the number of keys and the first of them.
fn counted(keys: &[String]) -> String {
    let unit = if keys.len() == 1 { "key" } else { "keys" };
    format!("{} {unit}: {}", keys.len(), few(keys))
}

/// A fault of a weight-normalised tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum WeightNormFault {
    #[error("{have} is there without {lacks}")]
    Half { have: String, lacks: String },
    #[error("{key} is there three times: plain, as {g} and as {v}")]
    Twice { key: String, g: String, v: String },
    #[error("{g} is {got:?}, wanted {want:?} for {v}")]
    Shape {
        g: String,
        v: String,
        want: Vec<usize>,
        got: Vec<usize>,
    },
}
