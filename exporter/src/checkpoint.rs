//! Published checkpoints as one table of tensor names and lazy views over mapped files.
//!
//! A [`Checkpoint`] reads safetensors (one file, or shards under an index) and torch archives. It
//! reads no byte of a tensor before a caller asks for the tensor. It can carry two overlays that
//! are computed tensor by tensor: weight normalisation ([`Checkpoint::with_weight_norm`]) and a
//! LoRA ([`Checkpoint::with_lora`]). It does not know which tensors a model needs: `layout.rs`
//! lists the tensors of the published files, and the graph builder reports the tensors that no
//! graph read.
//!
//! ```
//! use exporter::checkpoint::Checkpoint;
//!
//! // One tensor in the safetensors format: the length of the header, the header, the bytes.
//! let header = br#"{"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! let mut file = (header.len() as u64).to_le_bytes().to_vec();
//! file.extend(header);
//! file.extend([1.5f32, -2.0].map(f32::to_le_bytes).concat());
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! std::fs::write(&path, file)?;
//!
//! let checkpoint = Checkpoint::open(&path)?;
//! assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["head.bias"]);
//! assert_eq!(checkpoint.read_f32("head.bias")?, [1.5, -2.0]);
//!
//! // An unknown name is an error that names the nearest tensor.
//! let error = checkpoint.read_f32("head.weight").unwrap_err().to_string();
//! assert!(error.ends_with("no tensor head.weight; nearest is head.bias"), "{error}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod dtype;
mod error;
pub(crate) mod layout;
mod lora;
mod pickle;
pub(crate) mod product;
mod safetensors;
mod torch;
mod weight_norm;
mod zip;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use dtype::StoredDType;
pub use error::{
    CheckpointError, Faults, IndexFault, LoraFault, SafetensorsFault, TorchFault, WeightNormFault,
};
pub use lora::{Lora, LoraReport, LoraScale};

use lora::Merge;
use safetensors::Located;
use weight_norm::WeightNorm;

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

/// The tensors of one component, by name.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    tensors: BTreeMap<String, Entry>,
    lora: Option<Box<Merge>>,
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    storage: Storage,
    /// Whether `names` leaves the tensor out: it only serves to compute another tensor, or it was
    /// cut off.
    consumed: bool,
}

#[derive(Debug)]
enum Storage {
    Stored { map: Arc<Mmap>, range: Range<usize> },
    WeightNorm(WeightNorm),
}

impl Checkpoint {
    /// Opens a file by its content, or a folder by its file names: safetensors before
    /// `pytorch_model.bin`.
    ///
    /// # Errors
    /// A path without a checkpoint, a file of another format, a damaged file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
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
        // Some header lengths of safetensors begin like an old torch file, so safetensors are tried
        // first.
        if map.get(8) == Some(&b'{') {
            Self::open_safetensors(path)
        } else if map.starts_with(torch::ZIP_MAGIC) || torch::is_legacy(&map) {
            Self::open_torch(path)
        } else {
            let got = if map.is_empty() {
                "the file is empty"
            } else {
                "unknown first bytes"
            };
            Err(CheckpointError::Format {
                path: path.to_owned(),
                got,
            })
        }
    }

    /// Opens one safetensors file, or a folder.
    ///
    /// Of a folder it opens the shards under its only `*.safetensors.index.json`. Without an index
    /// it opens `model.safetensors`, then `diffusion_pytorch_model.safetensors`, then the only
    /// `*.safetensors`.
    ///
    /// # Errors
    /// A missing or damaged file, an index that does not fit its shards, several candidates.
    pub fn open_safetensors(dir_or_file: &Path) -> Result<Self, CheckpointError> {
        if !dir_or_file.is_dir() {
            let tensors = read_file(dir_or_file, Format::Safetensors)?
                .into_iter()
                .collect();
            return Ok(Self {
                root: dir_or_file.to_owned(),
                tensors,
                lora: None,
            });
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
    pub fn open_torch(path: &Path) -> Result<Self, CheckpointError> {
        let tensors = read_file(path, Format::Torch)?.into_iter().collect();
        Ok(Self {
            root: path.to_owned(),
            tensors,
            lora: None,
        })
    }

    fn open_sharded(dir: &Path, index: &str) -> Result<Self, CheckpointError> {
        let file = dir.join(index);
        let fault = |faults: Vec<IndexFault>| CheckpointError::Index {
            file: file.clone(),
            faults: Faults(faults),
        };
        let text = fs::read(&file).map_err(|source| io_error(&file, source))?;
        let weight_map = weight_map(&text).map_err(|f| fault(vec![f]))?;
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut faults = Vec::new();
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
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
                lora: None,
            })
        } else {
            Err(fault(faults))
        }
    }

    /// Returns the path that was opened.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Returns the names of all tensors that a model can read, sorted. The inputs of a computed
    /// tensor are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors
            .iter()
            .filter(|(_, e)| !e.consumed)
            .map(|(k, _)| k.as_str())
    }

    /// Returns the type, the shape and the file of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|e| &e.info)
    }

    /// Returns the name of the computation that makes a tensor, or `None` when its stored bytes are
    /// its value.
    pub fn computed(&self, name: &str) -> Option<&'static str> {
        match self.tensors.get(name).map(|e| &e.storage) {
            Some(Storage::WeightNorm(_)) => Some("weight norm"),
            _ => self
                .lora
                .as_ref()
                .is_some_and(|l| l.targets(name))
                .then_some("LoRA merge"),
        }
    }

    /// Returns the stored bytes (little-endian, row-major) without a copy.
    ///
    /// # Errors
    /// An unknown name, or a tensor that is computed when it is read.
    pub fn bytes(&self, name: &str) -> Result<&[u8], CheckpointError> {
        match self.computed(name) {
            Some(how) => Err(CheckpointError::Computed {
                key: name.to_owned(),
                how,
            }),
            None => self.stored(name).map(|(_, bytes)| bytes),
        }
    }

    /// Reads a tensor as f32, with its overlays. A LoRA target is rounded to the stored type of its
    /// base, as in the reference.
    ///
    /// # Errors
    /// An unknown name, or a tensor that is not floating point.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        if let Some(Entry {
            storage: Storage::WeightNorm(norm),
            ..
        }) = self.tensors.get(name)
        {
            return norm.compute(&self.stored_f32(&norm.g)?, &self.stored_f32(&norm.v)?);
        }
        let mut w = self.stored_f32(name)?;
        if let Some(merge) = self.target(name) {
            let dtype = self.tensors[name].info.dtype;
            merge.apply(name, &mut w, dtype)?;
        }
        Ok(w)
    }

    /// Reads the elements `range` of [`Checkpoint::read_f32`], counted row-major. It computes only
    /// the range; of a LoRA target the rows around the range, and of a weight-normalised tensor
    /// everything.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`]; a range beyond the end.
    pub fn read_f32_range(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<f32>, CheckpointError> {
        let shape = self.info(name).map_or(&[][..], |i| &i.shape);
        let len = shape.iter().product();
        if range.start > range.end || range.end > len && self.tensors.contains_key(name) {
            let key = name.to_owned();
            return Err(CheckpointError::Range { key, range, len });
        }
        if let (Some(_), &[_, columns]) = (self.target(name), shape) {
            let rows = range.start / columns.max(1)..range.end.div_ceil(columns.max(1));
            let (from, mut tile) = (rows.start * columns, Vec::new());
            self.read_f32_tile(name, rows, 0..columns, &mut tile)?;
            tile.truncate(range.end - from);
            tile.drain(..range.start - from);
            return Ok(tile);
        }
        if self.computed(name).is_some() {
            return Ok(self.read_f32(name)?[range].to_vec());
        }
        let (info, bytes) = self.stored(name)?;
        let size = info.dtype.size();
        self.floats(name, info, &bytes[range.start * size..range.end * size])
    }

    /// Reads some rows and columns of a matrix into `out`, row-major, with the values of
    /// [`Checkpoint::read_f32`]. It runs on the caller's thread and computes only the tile, except
    /// for a weight-normalised tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`]; rows or columns beyond the end.
    pub fn read_f32_tile(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), CheckpointError> {
        out.clear();
        let width = self.columns(name);
        let beyond = |range: &Range<usize>, len| range.start > range.end || range.end > len;
        let height = self
            .info(name)
            .map_or(0, |i| i.shape.first().copied().unwrap_or(1));
        if self.tensors.contains_key(name) && (beyond(&rows, height) || beyond(&columns, width)) {
            let (key, len) = (name.to_owned(), height * width);
            let range = rows.start * width + columns.start..rows.end * width;
            return Err(CheckpointError::Range { key, range, len });
        }
        if self.target(name).is_none() && self.computed(name).is_some() {
            let whole = self.read_f32(name)?;
            let part = |row| &whole[row * width..][columns.clone()];
            out.extend(rows.flat_map(part));
            return Ok(());
        }
        let (info, bytes) = self.stored(name)?;
        let size = info.dtype.size();
        for row in rows.clone() {
            let at = (row * width + columns.start) * size;
            let part = &bytes[at..at + columns.len() * size];
            if !info.dtype.extend_f32(part, out) {
                return self.check_float(name);
            }
        }
        match self.target(name) {
            Some(merge) => merge.apply_tile(name, (rows, columns), out, info.dtype),
            None => Ok(()),
        }
    }

    /// Returns the number of elements of a row: the product of all axes but the first.
    fn columns(&self, name: &str) -> usize {
        self.info(name)
            .map_or(0, |i| i.shape.iter().skip(1).product())
    }

    /// Returns the LoRA when it changes this tensor.
    fn target(&self, name: &str) -> Option<&Merge> {
        self.lora.as_deref().filter(|l| l.targets(name))
    }

    /// Returns the stored type and bytes of a tensor, or `None` for a tensor that is computed.
    pub fn raw(&self, name: &str) -> Option<(StoredDType, &[u8])> {
        if self.computed(name).is_some() {
            return None;
        }
        self.stored(name).ok().map(|(info, b)| (info.dtype, b))
    }

    /// Advises the system to read a tensor's pages ahead. A system that ignores the advice only
    /// reads later.
    pub fn prefetch(&self, name: &str) {
        if let Some(Storage::Stored { map, range }) = self.tensors.get(name).map(|e| &e.storage) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// Returns every file that holds one of its tensors or one of its LoRA's tensors, sorted.
    pub fn files(&self) -> BTreeSet<&Path> {
        let own = self.tensors.values().map(|e| &*e.info.file);
        let lora = self.lora.iter().flat_map(|l| l.tensors().files());
        own.chain(lora).collect()
    }

    /// Returns the number of tensors that the LoRA changes, and the multiply-adds of these changes.
    /// Tensors that were cut off do not count.
    pub fn lora_work(&self) -> (usize, u64) {
        let Some(lora) = &self.lora else {
            return (0, 0);
        };
        let listed = |key: &&str| self.tensors.get(*key).is_some_and(|e| !e.consumed);
        let elements = |key: &str| {
            self.info(key)
                .map_or(0, |i| i.shape.iter().product::<usize>() as u64)
        };
        lora.keys().filter(listed).fold((0, 0), |(n, work), key| {
            (n + 1, work + elements(key) * lora.report().rank as u64)
        })
    }

    /// Leaves out the tensors for which `cut` is true, as if no file had them.
    #[must_use]
    pub fn without(mut self, cut: impl Fn(&str) -> bool) -> Self {
        for (key, entry) in &mut self.tensors {
            entry.consumed |= cut(key);
        }
        self
    }

    /// Lays a LoRA over the checkpoint.
    ///
    /// # Errors
    /// A module of the LoRA that has no tensor here, or a tensor of another shape.
    pub fn with_lora(mut self, lora: Lora) -> Result<Self, CheckpointError> {
        let merge = lora.onto(|key| self.tensors.get(key).map(|e| e.info.shape.as_slice()))?;
        self.lora = Some(Box::new(merge));
        Ok(self)
    }

    /// Checks that a tensor is floating point. An unknown name passes; reading it is an error.
    ///
    /// # Errors
    /// [`CheckpointError::NotFloat`].
    pub fn check_float(&self, name: &str) -> Result<(), CheckpointError> {
        match self.tensors.get(name).map(|e| &e.info) {
            Some(info) if info.dtype.to_f32(&[]).is_none() => Err(CheckpointError::NotFloat {
                file: info.file.to_path_buf(),
                key: name.to_owned(),
                got: info.dtype,
            }),
            _ => Ok(()),
        }
    }

    /// Returns the facts of the LoRA that lies over this checkpoint.
    pub fn lora(&self) -> Option<&LoraReport> {
        self.lora.as_deref().map(Merge::report)
    }

    /// Replaces each pair of weight-norm tensors by the weight that it describes, named `*.weight`.
    /// The weight is f32 and is computed when it is read. A checkpoint without such pairs stays as
    /// it is.
    ///
    /// # Errors
    /// Every pair that is incomplete or misshaped.
    pub fn with_weight_norm(mut self) -> Result<Self, CheckpointError> {
        let shape_of = |key: &str| self.tensors.get(key).map(|e| e.info.shape.as_slice());
        let pairs = weight_norm::find(self.tensors.keys().map(String::as_str), shape_of).map_err(
            |faults| CheckpointError::WeightNorm {
                path: self.root.clone(),
                faults: Faults(faults),
            },
        )?;
        for (key, norm) in pairs {
            let direction = &self.tensors[&norm.v].info;
            let info = TensorInfo {
                dtype: StoredDType::F32,
                shape: direction.shape.clone(),
                file: direction.file.clone(),
            };
            for part in [&norm.g, &norm.v] {
                if let Some(entry) = self.tensors.get_mut(part) {
                    entry.consumed = true;
                }
            }
            let weight = Entry {
                info,
                storage: Storage::WeightNorm(norm),
                consumed: false,
            };
            self.tensors.insert(key, weight);
        }
        Ok(self)
    }

    fn stored(&self, name: &str) -> Result<(&TensorInfo, &[u8]), CheckpointError> {
        match self.tensors.get(name) {
            Some(Entry {
                info,
                storage: Storage::Stored { map, range },
                ..
            }) => Ok((info, &map[range.clone()])),
            Some(Entry {
                storage: Storage::WeightNorm(_),
                ..
            }) => Err(CheckpointError::Computed {
                key: name.to_owned(),
                how: "weight norm",
            }),
            None => {
                let nearest = self.nearest(name);
                Err(CheckpointError::UnknownKey {
                    path: self.root.clone(),
                    key: name.to_owned(),
                    nearest,
                })
            }
        }
    }

    fn stored_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let (info, bytes) = self.stored(name)?;
        self.floats(name, info, bytes)
    }

    fn floats(
        &self,
        name: &str,
        info: &TensorInfo,
        bytes: &[u8],
    ) -> Result<Vec<f32>, CheckpointError> {
        let fail = || CheckpointError::NotFloat {
            file: info.file.to_path_buf(),
            key: name.to_owned(),
            got: info.dtype,
        };
        info.dtype.to_f32(bytes).ok_or_else(fail)
    }

    /// Returns the listed name whose beginning and end have most in common with `name`.
    fn nearest(&self, name: &str) -> Option<String> {
        let same = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(x, y)| x == y).count();
        let score = |k: &&str| {
            same(&mut k.bytes().zip(name.bytes()))
                + same(&mut k.bytes().rev().zip(name.bytes().rev()))
        };
        self.names().max_by_key(score).map(str::to_owned)
    }
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

fn read_file(path: &Path, format: Format) -> Result<Vec<(String, Entry)>, CheckpointError> {
    let map = Arc::new(map(path)?);
    let located = match format {
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
                 }| {
        let info = TensorInfo {
            dtype,
            shape,
            file: file.clone(),
        };
        (
            key,
            Entry {
                info,
                storage: Storage::Stored {
                    map: map.clone(),
                    range: start..start + len,
                },
                consumed: false,
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

#[cfg(test)]
mod tests {
    use ::safetensors::Dtype;
    use ::safetensors::tensor::TensorView;
    use tempfile::tempdir;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
        fs::write(path, ::safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn f32s(xs: &[f32]) -> Vec<u8> {
        xs.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// Two shards: `a` (bf16 [2]) in the first, `b` (f32 [1]) in the second; `index` maps names to
    /// shards.
    fn sharded(index: &str) -> tempfile::TempDir {
        let dir = tempdir().unwrap();
        write(
            &dir.path().join("s-1.safetensors"),
            &[("a", Dtype::BF16, vec![2], vec![0x80, 0x3F, 0, 0x40])],
        );
        write(
            &dir.path().join("s-2.safetensors"),
            &[("b", Dtype::F32, vec![1], f32s(&[3.5]))],
        );
        fs::write(dir.path().join("s.safetensors.index.json"), index).unwrap();
        dir
    }

    #[test]
    fn shards_read_as_one_table() {
        let dir = sharded(r#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}}"#);
        let c = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(c.read_f32("a").unwrap(), [1.0, 2.0]);
        assert_eq!(c.bytes("b").unwrap(), 3.5f32.to_le_bytes());
        assert_eq!(c.read_f32_range("a", 1..2).unwrap(), [2.0]);
        let error = c.read_f32_range("a", 1..3).unwrap_err().to_string();
        assert_eq!(error, "tensor a: elements 1..3 of 2 were asked for");
        let unknown = c.read_f32_range("z", 0..1);
        assert!(matches!(unknown, Err(CheckpointError::UnknownKey { .. })));
        assert_eq!(c.info("a").unwrap().dtype, StoredDType::BF16);
        assert!(c.info("b").unwrap().file.ends_with("s-2.safetensors"));
    }

    #[test]
    fn an_index_is_held_against_its_shards() {
        for (index, want) in [
            (
                concat!(
                    r#"{"weight_map":{"a":"s-1.safetensors","b":"s-1.safetensors","#,
                    r#""c":"s-2.safetensors"}}"#
                ),
                "tensor b is not in its shard s-1.safetensors; \
                 tensor c is not in its shard s-2.safetensors",
            ),
            (
                r#"{"weight_map":{"a":"s-1.safetensors","b":"s-9.safetensors"}}"#,
                "shard s-9.safetensors is missing",
            ),
            (
                r#"{"weight_map":{"a":"../s-1.safetensors"}}"#,
                "shard name \"../s-1.safetensors\" is not a plain file name",
            ),
            (r#"{"weight_map":{}}"#, "weight_map names no shard"),
            (
                r#"{"weights":{}}"#,
                "not an index: missing field `weight_map` at line 1 column 14",
            ),
        ] {
            let dir = sharded(index);
            let error = Checkpoint::open(dir.path()).unwrap_err();
            assert!(error.to_string().ends_with(want), "{error} has no {want:?}");
        }
    }

    #[test]
    fn what_is_missing_or_no_checkpoint_is_said() {
        let dir = tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("empty"), "").unwrap();
        fs::write(at("text"), "hello, hello, hello").unwrap();
        for (path, want) in [
            (at("absent"), "no checkpoint file there"),
            (dir.path().to_owned(), "no *.safetensors there"),
            (
                at("empty"),
                "neither safetensors nor a torch zip archive (the file is empty)",
            ),
            (
                at("text"),
                "neither safetensors nor a torch zip archive (unknown first bytes)",
            ),
        ] {
            let error = Checkpoint::open(&path).unwrap_err();
            assert!(error.to_string().ends_with(want), "{error} has no {want:?}");
            assert_eq!(error.kind(), engines::error_kind::ErrorKind::Model);
        }
    }

    #[test]
    fn a_header_length_that_looks_like_an_old_pickle_is_still_safetensors() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("x");
        let mut bytes = 640u64.to_le_bytes().to_vec();
        bytes.extend(br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#);
        bytes.resize(8 + 640, b' ');
        bytes.push(7);
        assert!(torch::is_legacy(&bytes));
        fs::write(&file, bytes).unwrap();
        assert_eq!(Checkpoint::open(&file).unwrap().bytes("a").unwrap(), [7]);
    }

    #[test]
    fn two_loose_files_are_ambiguous() {
        let dir = tempdir().unwrap();
        for name in ["x.safetensors", "y.safetensors"] {
            write(
                &dir.path().join(name),
                &[("a", Dtype::U8, vec![1], vec![0])],
            );
        }
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "wanted one *.safetensors without an index, found x.safetensors, y.safetensors"
            ),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let dir = sharded(r#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}}"#);
        write(
            &dir.path().join("one.st"),
            &[
                ("blocks.0.ffn.0.weight", Dtype::U8, vec![1], vec![0]),
                ("head", Dtype::U8, vec![1], vec![0]),
            ],
        );
        let c = Checkpoint::open(&dir.path().join("one.st")).unwrap();
        let error = c.bytes("blocks.0.ffn.1.weight").unwrap_err().to_string();
        assert!(
            error.ends_with("no tensor blocks.0.ffn.1.weight; nearest is blocks.0.ffn.0.weight"),
            "{error}"
        );
        assert!(matches!(
            c.read_f32("head"),
            Err(CheckpointError::NotFloat {
                got: StoredDType::U8,
                ..
            })
        ));
    }

    #[test]
    fn weight_norm_is_served_under_the_plain_name() {
        for (g, v) in [
            ("c.weight_g", "c.weight_v"),
            (
                "c.parametrizations.weight.original0",
                "c.parametrizations.weight.original1",
            ),
        ] {
            let dir = tempdir().unwrap();
            let file = dir.path().join("model.safetensors");
            write(
                &file,
                &[
                    (g, Dtype::F32, vec![1, 1, 2], f32s(&[2.0, 10.0])),
                    (v, Dtype::F32, vec![2, 1, 2], f32s(&[3.0, 0.0, 4.0, 5.0])),
                ],
            );
            let c = Checkpoint::open(dir.path())
                .unwrap()
                .with_weight_norm()
                .unwrap();
            assert_eq!(c.names().collect::<Vec<_>>(), ["c.weight"]);
            assert_eq!(c.info("c.weight").unwrap().shape, [2, 1, 2]);
            // ||v[:,:,0]|| = 5, ||v[:,:,1]|| = 5
            assert_eq!(c.read_f32("c.weight").unwrap(), [1.2, 0.0, 1.6, 10.0]);
            assert!(matches!(
                c.bytes("c.weight"),
                Err(CheckpointError::Computed { .. })
            ));
        }
    }

    #[test]
    fn half_a_weight_norm_is_refused() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        write(
            &file,
            &[("c.weight_g", Dtype::F32, vec![1, 1, 2], f32s(&[2.0, 10.0]))],
        );
        let error = Checkpoint::open(dir.path())
            .unwrap()
            .with_weight_norm()
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("c.weight_g is there without c.weight_v"),
            "{error}"
        );
    }
}
