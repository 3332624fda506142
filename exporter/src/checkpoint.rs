//! Published checkpoints as one table of tensor names and lazy views over mapped files.
//!
//! A [`Checkpoint`] reads safetensors (one file, or shards under an index) and torch archives. It
//! reads no byte of a tensor before a caller asks for the tensor. It can carry two overlays that
//! are computed tensor by tensor: weight normalisation ([`Checkpoint::with_weight_norm`]) and
//! LoRAs ([`Checkpoint::with_lora`]). It does not know which tensors a model needs: `layout.rs`
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
mod names_hash;
mod pickle;
pub(crate) mod product;
mod repack;
mod safetensors;
mod stored;
pub(crate) mod sums;
mod text;
mod torch;
mod weight_norm;
mod zip;

pub use dtype::StoredDType;
pub(crate) use error::first;
pub use error::{
    CheckpointError, Faults, IndexFault, LayoutFault, LayoutFaults, LoraFault, SafetensorsFault,
    TorchFault, WeightNormFault,
};
pub use lora::{Lora, LoraFile, LoraForm, LoraReport, LoraScale};
pub(crate) use names_hash::names_hash;
pub use repack::Repack;
pub use stored::TensorInfo;
pub use sums::SumsProgress;
pub(crate) use text::{read_json, read_text};

use lora::Merge;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use stored::StoredTensors;
use weight_norm::WeightNorm;

/// The tensors of one component, by name.
#[derive(Debug)]
pub struct Checkpoint {
    stored: StoredTensors,
    /// Weights that weight normalisation computes, by name.
    normed: BTreeMap<String, NormedWeight>,
    /// Names that `names` leaves out: tensors that only serve to compute another tensor, and
    /// tensors that were cut off.
    hidden: BTreeSet<String>,
    /// LoRAs in the order of their merge.
    loras: Vec<Merge>,
}

#[derive(Debug)]
struct NormedWeight {
    info: TensorInfo,
    norm: WeightNorm,
}

impl From<StoredTensors> for Checkpoint {
    fn from(stored: StoredTensors) -> Self {
        Self {
            stored,
            normed: BTreeMap::new(),
            hidden: BTreeSet::new(),
            loras: Vec::new(),
        }
    }
}

impl Checkpoint {
    /// Opens a file by its content, or a folder by its file names: safetensors before
    /// `pytorch_model.bin`.
    ///
    /// # Errors
    /// A path without a checkpoint, a file of another format, a damaged file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        StoredTensors::open(path).map(Self::from)
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
        StoredTensors::open_safetensors(dir_or_file).map(Self::from)
    }

    /// Opens a torch archive (zip and pickle, torch 1.6 or later) whose pickle is a dictionary of
    /// tensors. It executes nothing from the archive.
    ///
    /// # Errors
    /// A missing or damaged file, or a pickle that holds anything but tensors and plain containers.
    pub fn open_torch(path: &Path) -> Result<Self, CheckpointError> {
        StoredTensors::open_torch(path).map(Self::from)
    }

    /// Returns the path that was opened.
    pub fn path(&self) -> &Path {
        self.stored.path()
    }

    /// Returns the names of all tensors that a model can read, sorted. The inputs of a computed
    /// tensor are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all: BTreeSet<&str> = self
            .stored
            .names()
            .chain(self.normed.keys().map(String::as_str))
            .collect();
        all.into_iter().filter(|name| !self.hidden.contains(*name))
    }

    /// Returns the form of a repack, or `None` for names and types of no known repack.
    pub(crate) fn repack(&self) -> Option<Repack> {
        let types = self.names().filter_map(|n| Some((n, self.info(n)?.dtype)));
        repack::recognise(types)
    }

    /// Returns the type, the shape and the file of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let normed = self.normed.get(name).map(|n| &n.info);
        normed.or_else(|| self.stored.info(name))
    }

    /// Returns the name of the computation that makes a tensor, or `None` when its stored bytes are
    /// its value.
    pub fn computed(&self, name: &str) -> Option<&'static str> {
        if self.normed.contains_key(name) {
            return Some("weight norm");
        }
        let merged = self.is_target(name).then_some("LoRA merge");
        merged.or_else(|| {
            self.stored
                .is_strided(name)
                .then_some("gathered by strides")
        })
    }

    /// Returns the stored bytes (little-endian, row-major) without a copy.
    ///
    /// # Errors
    /// An unknown name, or a tensor that is computed when it is read. A strided tensor counts as
    /// computed.
    pub fn bytes(&self, name: &str) -> Result<&[u8], CheckpointError> {
        match self.computed(name) {
            Some(how) => Err(CheckpointError::Computed {
                key: name.to_owned(),
                how,
            }),
            None => match self.stored.get(name) {
                Some((_, bytes)) => Ok(bytes),
                None => Err(self.unknown(name)),
            },
        }
    }

    /// Reads a tensor as f32, with its overlays. A LoRA target is rounded to the stored type of its
    /// base after each LoRA, as in the reference.
    ///
    /// # Errors
    /// An unknown name, or a tensor that is not floating point.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        if let Some(NormedWeight { norm, .. }) = self.normed.get(name) {
            let (magnitude, direction) = (&norm.g, &norm.v);
            return norm.compute(
                &self.stored.read_f32(magnitude)?,
                &self.stored.read_f32(direction)?,
            );
        }
        let dtype = self.known(name)?.dtype;
        let mut weight = self.stored.read_f32(name)?;
        for merge in &self.loras {
            merge.apply(name, &mut weight, dtype)?;
        }
        Ok(weight)
    }

    /// Reads the elements `range` of [`Checkpoint::read_f32`], counted row-major. It computes only
    /// the range; of a LoRA target the rows around the range, and of a weight-normalised tensor
    /// everything.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read_f32`]; a range beyond the end.
    pub fn read_f32_range(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<f32>, CheckpointError> {
        let info = self.known(name)?;
        info.check_range(name, &range)?;
        if let (true, &[_, columns]) = (self.is_target(name), &info.shape[..]) {
            let rows = range.start / columns.max(1)..range.end.div_ceil(columns.max(1));
            let (from, mut tile) = (rows.start * columns, Vec::new());
            self.read_f32_tile(name, rows, 0..columns, &mut tile)?;
            tile.truncate(range.end - from);
            tile.drain(..range.start - from);
            return Ok(tile);
        }
        if self.normed.contains_key(name) || self.is_target(name) {
            return Ok(self.read_f32(name)?[range].to_vec());
        }
        self.stored.read_f32_range(name, range)
    }

    /// Reads some rows and columns of a matrix into `out`, row-major, with the values of
    /// [`Checkpoint::read_f32`]. It runs on the caller's thread and computes only the tile, except
    /// for a weight-normalised tensor.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read_f32`]; rows or columns beyond the end.
    pub fn read_f32_tile(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), CheckpointError> {
        out.clear();
        let info = self.known(name)?;
        let width = info.check_tile(name, &rows, &columns)?;
        if self.normed.contains_key(name) {
            let whole = self.read_f32(name)?;
            let part = |row| &whole[row * width..][columns.clone()];
            out.extend(rows.flat_map(part));
            return Ok(());
        }
        self.stored
            .read_f32_tile(name, rows.clone(), &columns, out)?;
        for merge in &self.loras {
            let part = (rows.clone(), columns.clone());
            merge.apply_tile(name, part, out, info.dtype)?;
        }
        Ok(())
    }

    /// Tells whether a LoRA changes this tensor.
    fn is_target(&self, name: &str) -> bool {
        self.loras.iter().any(|l| l.targets(name))
    }

    /// Returns the stored type and bytes of a tensor, or `None` for a tensor that is computed.
    pub fn raw(&self, name: &str) -> Option<(StoredDType, &[u8])> {
        if self.computed(name).is_some() {
            return None;
        }
        self.stored
            .get(name)
            .map(|(info, bytes)| (info.dtype, bytes))
    }

    /// Advises the system to read a tensor's pages ahead. A system that ignores the advice only
    /// reads later.
    pub fn prefetch(&self, name: &str) {
        self.stored.prefetch(name);
    }

    /// Returns every file that holds one of its own tensors, sorted.
    pub(crate) fn own_files(&self) -> BTreeSet<&Path> {
        self.stored.files()
    }

    /// Returns every file that holds one of its tensors or one of its LoRAs' tensors, sorted.
    pub fn files(&self) -> BTreeSet<&Path> {
        let loras = self.loras.iter().flat_map(Merge::files);
        self.stored.files().into_iter().chain(loras).collect()
    }

    /// Returns the number of tensors that LoRAs change, and the multiply-adds of these changes.
    /// Tensors that were cut off do not count.
    pub fn lora_work(&self) -> (usize, u64) {
        let (mut changed, mut work) = (BTreeSet::new(), 0);
        for (key, rank) in self.loras.iter().flat_map(Merge::ranks) {
            if self.is_listed(key) {
                let elements = self
                    .info(key)
                    .map_or(0, |i| i.shape.iter().product::<usize>());
                changed.insert(key);
                work += elements as u64 * rank as u64;
            }
        }
        (changed.len(), work)
    }

    /// Tells whether [`Checkpoint::names`] has this tensor.
    pub(crate) fn is_listed(&self, name: &str) -> bool {
        !self.hidden.contains(name) && self.info(name).is_some()
    }

    /// Leaves out the tensors for which `cut` is true, as if no file had them.
    #[must_use]
    pub fn without(mut self, cut: impl Fn(&str) -> bool) -> Self {
        let cut: Vec<String> = self.names().filter(|n| cut(n)).map(str::to_owned).collect();
        self.hidden.extend(cut);
        self
    }

    /// Lays a LoRA over the checkpoint, and over the LoRAs that lie there.
    ///
    /// # Errors
    /// A module of the LoRA that has no tensor here, or a tensor of another shape.
    pub fn with_lora(mut self, lora: Lora) -> Result<Self, CheckpointError> {
        let shape_of = |key: &str| self.info(key).map(|i| i.shape.as_slice());
        let merge = lora.onto(self.names(), shape_of)?;
        self.loras.push(merge);
        Ok(self)
    }

    /// Returns the facts of the LoRAs that lie over this checkpoint, in the order of their merge.
    pub fn loras(&self) -> impl Iterator<Item = &LoraReport> {
        self.loras.iter().map(Merge::report)
    }

    /// Replaces each pair of weight-norm tensors by the weight that it describes, named `*.weight`.
    /// The weight is f32 and is computed when it is read. A checkpoint without such pairs stays as
    /// it is.
    ///
    /// # Errors
    /// Every pair that is incomplete or misshaped.
    pub fn with_weight_norm(mut self) -> Result<Self, CheckpointError> {
        let shape_of = |key: &str| self.stored.info(key).map(|i| i.shape.as_slice());
        let pairs = weight_norm::find(self.stored.names(), shape_of).map_err(|faults| {
            CheckpointError::WeightNorm {
                path: self.path().to_owned(),
                faults: Faults(faults),
            }
        })?;
        for (key, norm) in pairs {
            let info = TensorInfo {
                dtype: StoredDType::F32,
                ..self.known(&norm.v)?.clone()
            };
            self.hidden.extend([norm.g.clone(), norm.v.clone()]);
            self.normed.insert(key, NormedWeight { info, norm });
        }
        Ok(self)
    }

    fn known(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.info(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> CheckpointError {
        self.stored.unknown(name, self.names())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::safetensors::Dtype;
    use ::safetensors::tensor::TensorView;
    use tempfile::tempdir;

    use super::*;
    use crate::synth::torch_file::{Archive, Record};

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
        fs::write(path, ::safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// A torch archive of one f32 tensor, with the numbers 0, 1, 2 and so on.
    fn torch_file(key: &str, shape: &[usize]) -> Vec<u8> {
        let record = Record {
            key: key.to_owned(),
            dtype: StoredDType::F32,
            shape: shape.to_vec(),
        };
        let count = shape.iter().product::<usize>();
        let mut out = std::io::Cursor::new(Vec::new());
        let mut archive = Archive::start(&mut out, "w", &[record]).unwrap();
        let numbers: Vec<f32> = (0..count).map(|n| n as f32).collect();
        archive.record(|w| w.write_all(&f32s(&numbers))).unwrap();
        archive.finish().unwrap();
        out.into_inner()
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
    fn a_file_is_read_for_its_content_and_not_for_its_name() {
        let dir = tempdir().unwrap();
        let weights = dir.path().join("weights.pth");
        write(&weights, &[("a", Dtype::F32, vec![1], f32s(&[2.5]))]);
        assert_eq!(
            Checkpoint::open_torch(&weights)
                .unwrap()
                .read_f32("a")
                .unwrap(),
            [2.5]
        );
        let archive = dir.path().join("archive.safetensors");
        fs::write(&archive, torch_file("w", &[2, 3])).unwrap();
        let c = Checkpoint::open_safetensors(&archive).unwrap();
        assert_eq!(c.info("w").unwrap().shape, [2, 3]);
    }

    #[test]
    fn strided_tensors_are_gathered() {
        // Six f32 numbers 0 to 5 in column order, as torch saves `x.t()`.
        let bytes = torch_file("w", &[2, 3]);
        let strides = b"K\x03K\x01\x86";
        let at = bytes.windows(5).position(|w| w == strides).unwrap();
        let (mut turned, dir) = (bytes.clone(), tempdir().unwrap());
        turned[at..at + 5].copy_from_slice(b"K\x01K\x02\x86");
        let open = |bytes: &[u8]| {
            let path = dir.path().join("w.pth");
            fs::write(&path, bytes).unwrap();
            Checkpoint::open_torch(&path).unwrap()
        };
        let plain = open(&bytes);
        assert_eq!(plain.read_f32("w").unwrap(), [0., 1., 2., 3., 4., 5.]);
        assert!(plain.raw("w").is_some());
        let c = open(&turned);
        assert_eq!(c.read_f32("w").unwrap(), [0., 2., 4., 1., 3., 5.]);
        assert_eq!(c.read_f32_range("w", 2..5).unwrap(), [4., 1., 3.]);
        let mut tile = Vec::new();
        c.read_f32_tile("w", 0..2, 1..3, &mut tile).unwrap();
        assert_eq!(tile, [2., 4., 3., 5.]);
        assert!(c.raw("w").is_none());
        let error = c.bytes("w").unwrap_err().to_string();
        assert!(
            error.contains("is computed (gathered by strides)"),
            "{error}"
        );
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named_in_every_place() {
        let dir = tempdir().unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
        let path = dir.path().join("s-1.safetensors");
        fs::write(&path, pointer).unwrap();
        let index = dir.path().join("s.safetensors.index.json");
        fs::write(&index, r#"{"weight_map":{"a":"s-1.safetensors"}}"#).unwrap();
        let want = "s-1.safetensors: a git-lfs pointer to 12 bytes, not the file itself; \
                    run `git lfs pull` in its folder";
        for error in [
            Checkpoint::open(dir.path()).unwrap_err(),
            Checkpoint::open(&path).unwrap_err(),
            Checkpoint::open_torch(&path).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with(want), "{error}");
        }
        fs::write(&index, pointer).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("index.json: a git-lfs pointer"), "{error}");
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
