//! The tensors of checkpoint files as they are stored: names and lazy views over mapped files.
//! Overlays that are computed are in `checkpoint.rs`.
use super::dtype::StoredDType;
use super::error::{CheckpointError, Faults, IndexFault};
use super::safetensors::{self, Located};
use super::text;
use super::torch;
use memmap2::Mmap;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// File names that a folder's only file may have, in search order.
const SINGLE_SAFETENSORS: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
const SINGLE_TORCH: &str = "pytorch_model.bin";

/// Type, shape and file of a tensor, known without reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type in the file. A weight-normalised tensor is F32; a LoRA target keeps the type of
    /// its base.
    pub dtype: StoredDType,
    /// Sizes of the tensor, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds the tensor.
    pub file: Arc<Path>,
}

impl TensorInfo {
    /// Returns the number of elements.
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the number of elements of a row: the product of all axes but the first.
    fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Checks that the elements `range` are inside the tensor `key`.
    pub(super) fn check_range(
        &self,
        key: &str,
        range: &Range<usize>,
    ) -> Result<(), CheckpointError> {
        let len = self.elements();
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        Err(CheckpointError::Range {
            key: key.to_owned(),
            range: range.clone(),
            len,
        })
    }

    /// Checks that some rows and columns are inside the tensor `key`, and returns its width.
    pub(super) fn check_tile(
        &self,
        key: &str,
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> Result<usize, CheckpointError> {
        let (height, width) = (self.shape.first().copied().unwrap_or(1), self.columns());
        let inside = |range: &Range<usize>, len| range.start <= range.end && range.end <= len;
        if inside(rows, height) && inside(columns, width) {
            return Ok(width);
        }
        Err(CheckpointError::Range {
            key: key.to_owned(),
            range: rows.start * width + columns.start..rows.end * width,
            len: height * width,
        })
    }
}

/// The stored tensors of one component, by name.
#[derive(Debug)]
pub(super) struct StoredTensors {
    root: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Debug)]
struct StoredTensor {
    info: TensorInfo,
    map: Arc<Mmap>,
    /// The bytes of the file from the first element to the last.
    range: Range<usize>,
    /// Elements between neighbours of each dimension; `None` for a row-major tensor without gaps.
    strides: Option<Vec<usize>>,
}

impl StoredTensor {
    /// Returns the bytes of the elements `range`, counted row-major. It copies only a strided
    /// tensor.
    ///
    /// # Panics
    /// The range is not inside the tensor.
    fn part(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        let (bytes, size) = (&self.map[self.range.clone()], self.info.dtype.size());
        match &self.strides {
            None => Cow::Borrowed(&bytes[range.start * size..range.end * size]),
            Some(strides) => Cow::Owned(gather(bytes, size, &self.info.shape, strides, range)),
        }
    }
}

/// Copies the elements `range` of a strided tensor, counted row-major. An element has `size` bytes.
fn gather(
    bytes: &[u8],
    size: usize,
    shape: &[usize],
    strides: &[usize],
    range: Range<usize>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(range.len() * size);
    // The position of the next element, by dimension.
    let mut index = vec![0; shape.len()];
    let mut rest = range.start;
    for (at, &n) in index.iter_mut().zip(shape).rev() {
        (*at, rest) = (rest % n, rest / n);
    }
    let mut from: usize = index
        .iter()
        .zip(strides)
        .map(|(at, stride)| at * stride)
        .sum();
    for _ in range {
        out.extend_from_slice(&bytes[from * size..(from + 1) * size]);
        for ((at, &n), &stride) in index.iter_mut().zip(shape).zip(strides).rev() {
            *at += 1;
            from += stride;
            if *at < n {
                break;
            }
            from -= n * stride;
            *at = 0;
        }
    }
    out
}

impl StoredTensors {
    /// Opens a file by its content, or a folder by its file names: safetensors before
    /// `pytorch_model.bin`.
    ///
    /// # Errors
    /// A path without a checkpoint, a file of another format, a damaged file.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        if path.is_dir() {
            let names = list(path)?;
            let torch = path.join(SINGLE_TORCH);
            let has_safetensors = names
                .iter()
                .any(|n| n.ends_with(".safetensors") || n.ends_with(INDEX_SUFFIX));
            return if !has_safetensors && torch.is_file() {
                Self::open_torch(&torch)
            } else {
                Self::open_safetensors(path)
            };
        }
        let map = map(path)?;
        text::check_pointer(path, &map)?;
        match Format::of(&map) {
            Some(format) => Self::open_file(path, format),
            None => Err(CheckpointError::Format {
                path: path.to_owned(),
                got: match map.is_empty() {
                    true => "the file is empty",
                    false => "unknown first bytes",
                },
            }),
        }
    }

    /// Opens one file. Its content decides the format; `format` is for content that tells none.
    fn open_file(path: &Path, format: Format) -> Result<Self, CheckpointError> {
        let tensors = read_file(path, format)?.into_iter().collect();
        Ok(Self {
            root: path.to_owned(),
            tensors,
        })
    }

    /// Opens one safetensors file, or a folder.
    ///
    /// Of a folder it opens the shards under its only `*.safetensors.index.json`. Without an index
    /// it opens `model.safetensors`, then `diffusion_pytorch_model.safetensors`, then the only
    /// `*.safetensors`.
    ///
    /// # Errors
    /// A missing or damaged file, an index that does not fit its shards, several candidates.
    pub(super) fn open_safetensors(dir_or_file: &Path) -> Result<Self, CheckpointError> {
        if !dir_or_file.is_dir() {
            return Self::open_file(dir_or_file, Format::Safetensors);
        }
        let names = list(dir_or_file)?;
        if let Some(index) = only(
            dir_or_file,
            &names,
            INDEX_SUFFIX,
            "*.safetensors.index.json",
        )? {
            return Self::open_sharded(dir_or_file, index);
        }
        let known = SINGLE_SAFETENSORS
            .into_iter()
            .find(|n| names.iter().any(|m| m == n));
        let file = match known {
            Some(name) => Some(name),
            None => only(
                dir_or_file,
                &names,
                ".safetensors",
                "*.safetensors without an index",
            )?,
        };
        let file = file.ok_or_else(|| CheckpointError::Missing {
            path: dir_or_file.to_owned(),
            want: "*.safetensors",
        })?;
        Self::open_safetensors(&dir_or_file.join(file))
    }

    /// Opens a torch archive (zip and pickle, torch 1.6 or later) whose pickle is a dictionary of
    /// tensors. It executes nothing from the archive.
    ///
    /// # Errors
    /// A missing or damaged file, or a pickle that holds anything but tensors and plain containers.
    pub(super) fn open_torch(path: &Path) -> Result<Self, CheckpointError> {
        Self::open_file(path, Format::Torch)
    }

    fn open_sharded(dir: &Path, index: &str) -> Result<Self, CheckpointError> {
        let file = dir.join(index);
        let fault = |faults: Vec<IndexFault>| CheckpointError::Index {
            file: file.clone(),
            faults: Faults(faults),
        };
        let text = text::read_text(&file)?;
        let weight_map = weight_map(&text).map_err(|f| fault(vec![f]))?;
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut faults = Vec::new();
        let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
        let mut place: BTreeMap<String, &str> = BTreeMap::new();
        for &shard in &shards {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                faults.push(IndexFault::ShardName {
                    shard: shard.to_owned(),
                });
            } else if !dir.join(shard).is_file() {
                faults.push(IndexFault::MissingShard {
                    shard: shard.to_owned(),
                });
            } else {
                for (key, entry) in read_file(&dir.join(shard), Format::Safetensors)? {
                    if let Some(first) = place.insert(key.clone(), shard) {
                        faults.push(IndexFault::Twice {
                            key: key.clone(),
                            first: first.to_owned(),
                            second: shard.to_owned(),
                        });
                    }
                    tensors.insert(key, entry);
                }
            }
        }
        let missing = |shard: &str| {
            faults.iter().any(|fault| match fault {
                IndexFault::MissingShard { shard: of } | IndexFault::ShardName { shard: of } => {
                    of == shard
                }
                _ => false,
            })
        };
        let elsewhere = weight_map
            .iter()
            .filter(|(key, shard)| place.get(*key) != Some(&shard.as_str()) && !missing(shard));
        let lost: Vec<_> = elsewhere
            .map(|(key, shard)| IndexFault::NotInShard {
                key: key.clone(),
                shard: shard.clone(),
            })
            .collect();
        faults.extend(lost);
        if faults.is_empty() {
            Ok(Self {
                root: dir.to_owned(),
                tensors,
            })
        } else {
            Err(fault(faults))
        }
    }

    /// Returns the path that was opened.
    pub(super) fn path(&self) -> &Path {
        &self.root
    }

    /// Returns the names of all tensors, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the type, the shape and the file of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|t| &t.info)
    }

    /// Returns the facts and the bytes of a tensor, or `None` for an unknown name and for a strided
    /// tensor.
    pub(super) fn get(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let tensor = self.tensors.get(name).filter(|t| t.strides.is_none())?;
        Some((&tensor.info, &tensor.map[tensor.range.clone()]))
    }

    /// Returns whether the elements of a tensor do not lie side by side in its file.
    pub(super) fn is_strided(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|t| t.strides.is_some())
    }

    /// Returns the error for an unknown name. `names` are the names that the caller may use.
    pub(super) fn unknown<'n>(
        &self,
        name: &str,
        names: impl Iterator<Item = &'n str>,
    ) -> CheckpointError {
        CheckpointError::UnknownKey {
            path: self.root.clone(),
            key: name.to_owned(),
            nearest: nearest(name, names),
        }
    }

    fn stored(&self, name: &str) -> Result<&StoredTensor, CheckpointError> {
        let tensor = self.tensors.get(name);
        tensor.ok_or_else(|| self.unknown(name, self.names()))
    }

    /// Reads a tensor as f32.
    pub(super) fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.stored(name)?;
        floats(name, &tensor.info, &tensor.part(0..tensor.info.elements()))
    }

    /// Reads the elements `range` of a tensor as f32, counted row-major.
    pub(super) fn read_f32_range(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.stored(name)?;
        tensor.info.check_range(name, &range)?;
        floats(name, &tensor.info, &tensor.part(range))
    }

    /// Reads some rows and columns of a matrix as f32 into `out`, row-major.
    pub(super) fn read_f32_tile(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: &Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), CheckpointError> {
        out.clear();
        let tensor = self.stored(name)?;
        let info = &tensor.info;
        let width = info.check_tile(name, &rows, columns)?;
        for row in rows {
            let part = tensor.part(row * width + columns.start..row * width + columns.end);
            if !info.dtype.extend_f32(&part, out) {
                return Err(not_float(name, info));
            }
        }
        Ok(())
    }

    /// Advises the system to read a tensor's pages ahead. A system that ignores the advice only
    /// reads later.
    pub(super) fn prefetch(&self, name: &str) {
        if let Some(StoredTensor { map, range, .. }) = self.tensors.get(name) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// Returns every file that holds one of the tensors.
    pub(super) fn files(&self) -> BTreeSet<&Path> {
        self.tensors.values().map(|t| &*t.info.file).collect()
    }
}

/// Returns the error for a tensor that is not floating point.
pub(super) fn not_float(name: &str, info: &TensorInfo) -> CheckpointError {
    CheckpointError::NotFloat {
        file: info.file.to_path_buf(),
        key: name.to_owned(),
        got: info.dtype,
    }
}

fn floats(name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, CheckpointError> {
    info.dtype
        .to_f32(bytes)
        .ok_or_else(|| not_float(name, info))
}

/// Returns the name whose beginning and end have most in common with `name`.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let same = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(x, y)| x == y).count();
    let score = |k: &&str| {
        same(&mut k.bytes().zip(name.bytes())) + same(&mut k.bytes().rev().zip(name.bytes().rev()))
    };
    names.max_by_key(score).map(str::to_owned)
}

/// The format of a file of tensors.
#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

impl Format {
    /// Returns the format that the first bytes of a file tell.
    fn of(bytes: &[u8]) -> Option<Self> {
        // Some header lengths of safetensors begin like an old torch file, so safetensors are tried
        // first.
        if bytes.get(8) == Some(&b'{') {
            Some(Self::Safetensors)
        } else if bytes.starts_with(torch::ZIP_MAGIC) || torch::is_legacy(bytes) {
            Some(Self::Torch)
        } else {
            None
        }
    }
}

/// Reads the tensors of one file. A file that has another name than its format wants is read for
/// its content; `format` is for content that tells no format.
fn read_file(path: &Path, format: Format) -> Result<Vec<(String, StoredTensor)>, CheckpointError> {
    let map = Arc::new(map(path)?);
    text::check_pointer(path, &map)?;
    let located = match Format::of(&map).unwrap_or(format) {
        Format::Safetensors => {
            safetensors::read(&map).map_err(|f| CheckpointError::Safetensors {
                file: path.to_owned(),
                faults: Faults(f),
            })?
        }
        Format::Torch => torch::read(&map).map_err(|f| CheckpointError::Torch {
            file: path.to_owned(),
            faults: Faults(f),
        })?,
    };
    let file: Arc<Path> = path.into();
    let entry = |Located {
                     key,
                     dtype,
                     shape,
                     start,
                     len,
                     strides,
                 }| {
        let info = TensorInfo {
            dtype,
            shape,
            file: file.clone(),
        };
        (
            key,
            StoredTensor {
                info,
                map: map.clone(),
                range: start..start + len,
                strides,
            },
        )
    };
    Ok(located.into_iter().map(entry).collect())
}

#[expect(unsafe_code, reason = "weights are read through a memory map")]
fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    if !file
        .metadata()
        .map_err(|source| io_error(path, source))?
        .is_file()
    {
        return Err(CheckpointError::Missing {
            path: path.to_owned(),
            want: "checkpoint file",
        });
    }
    // SAFETY: the map is read-only and private. A file that another process shortens would end this
    // process with a bus error, as with every map. Published checkpoints do not change.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        op: "map",
        source,
    })
}

fn io_error(path: &Path, source: io::Error) -> CheckpointError {
    match source.kind() {
        io::ErrorKind::NotFound => CheckpointError::Missing {
            path: path.to_owned(),
            want: "checkpoint file",
        },
        _ => CheckpointError::Io {
            path: path.to_owned(),
            op: "read",
            source,
        },
    }
}

/// Returns the names of the files in a folder, sorted.
fn list(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|e| e.map(|e| e.file_name()))
            .collect::<io::Result<Vec<_>>>()
    });
    let mut names: Vec<String> = entries
        .map_err(|source| io_error(dir, source))?
        .into_iter()
        .filter_map(|n| n.into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn only<'a>(
    dir: &Path,
    names: &'a [String],
    suffix: &str,
    want: &'static str,
) -> Result<Option<&'a str>, CheckpointError> {
    let found: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|n| n.ends_with(suffix))
        .collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(CheckpointError::Ambiguous {
            path: dir.to_owned(),
            want,
            found: found.iter().map(|&n| n.to_owned()).collect(),
        }),
    }
}

fn weight_map(text: &[u8]) -> Result<BTreeMap<String, String>, IndexFault> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(text).map_err(|e| IndexFault::Json {
        reason: e.to_string(),
    })?;
    if index.weight_map.is_empty() {
        Err(IndexFault::Empty)
    } else {
        Ok(index.weight_map)
    }
}
