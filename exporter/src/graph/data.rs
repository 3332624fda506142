//! The data files: the place of each weight of a family of graphs, and the bytes of any block of a
//! file.
//!
//! A file is divided into blocks of [`BLOCK`] bytes, which can be made in any order and on any
//! thread. A block is a subtree of the file's BLAKE3 hash, so the hashes of the blocks give the
//! hash of the file. Each tensor starts at a multiple of [`ALIGN`] and is stored once for all
//! graphs. A large tensor is made in parts, so memory does not depend on its size. Not here: files,
//! threads, progress.
use super::error::WriteError;
use super::{Transform, Weight};
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use engines::contract::DType;
use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;

/// Start of each tensor in a data file, in multiples of bytes. CUDA can read such tensors in place.
pub const ALIGN: u64 = 256;
/// Bytes of a block. It is a power of two, so that a block is a subtree of the hash.
pub const BLOCK: u64 = 16 << 20;
/// Rows and columns of a tile of a transposed matrix. A tile fits a core's second-level cache.
const TILE: (usize, usize) = (256, 512);
/// Elements that are converted at a time.
const PART: usize = 1 << 17;

/// A source of the floats of a checkpoint.
pub trait WeightBytes: Sync {
    /// A tensor that cannot be read.
    type Error: Error + Send + Sync + 'static;

    /// Reads all elements of a tensor, row-major, of any stored type.
    fn read_f32(&self, key: &str) -> Result<Vec<f32>, Self::Error>;

    /// Reads some elements of a tensor, counted row-major.
    fn read_f32_range(&self, key: &str, elements: Range<usize>) -> Result<Vec<f32>, Self::Error> {
        Ok(self
            .read_f32(key)?
            .get(elements)
            .unwrap_or_default()
            .to_vec())
    }

    /// Reads some rows and columns of a matrix into `out`, row-major.
    fn read_f32_tile(
        &self,
        key: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), Self::Error>;

    /// Returns the type and the little-endian bytes of a tensor that a graph could take as it is
    /// stored.
    fn raw(&self, _key: &str) -> Option<(DType, &[u8])> {
        None
    }

    /// Receives the key of a tensor that will be read soon.
    fn prefetch(&self, _key: &str) {}
}

/// The place of each initializer's bytes, by name.
pub type DataLayout = BTreeMap<String, Placed>;

/// A place in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Name of the file, which lies beside the ONNX file.
    pub file: String,
    /// First byte, a multiple of [`ALIGN`].
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// The plan of one data file.
#[derive(Clone, Debug)]
pub struct DataPlan<'g> {
    /// File name.
    pub file: String,
    /// Each initializer once, in the order of first use, with its first byte.
    weights: Vec<(u64, &'g Weight)>,
    bytes: u64,
    /// Bytes of a block: [`BLOCK`], or less in tests.
    block: u64,
}

impl<'g> DataPlan<'g> {
    /// Lays out the weights of any number of graphs.
    ///
    /// # Errors
    /// One name for two different tensors.
    pub fn new(
        file: String,
        weights: impl IntoIterator<Item = &'g Weight>,
    ) -> Result<Self, WriteError> {
        let (mut placed, mut end) = (Vec::new(), 0u64);
        for w in unique(weights)? {
            let offset = end.next_multiple_of(ALIGN);
            end = offset + w.bytes();
            placed.push((offset, w));
        }
        Ok(Self {
            file,
            weights: placed,
            bytes: end,
            block: BLOCK,
        })
    }

    /// Returns the plan with blocks of another power of two, of at least 1024 bytes.
    #[cfg(test)]
    pub(crate) fn in_blocks_of(self, block: u64) -> Self {
        Self { block, ..self }
    }

    /// Returns the size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns every initializer once, in file order, with its first byte.
    pub fn weights(&self) -> impl Iterator<Item = (u64, &'g Weight)> {
        self.weights.iter().copied()
    }

    /// Returns the place of each initializer's bytes.
    pub fn layout(&self) -> DataLayout {
        let place = |&(offset, w): &(u64, &Weight)| {
            let placed = Placed {
                file: self.file.clone(),
                offset,
                length: w.bytes(),
            };
            (w.name.clone(), placed)
        };
        self.weights.iter().map(place).collect()
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        self.bytes.div_ceil(self.block)
    }

    /// Returns the byte range of block `i`.
    pub fn range(&self, i: u64) -> Range<u64> {
        i * self.block..((i + 1) * self.block).min(self.bytes)
    }

    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &'g Weight)> {
        let (range, first) = (
            range.clone(),
            self.weights
                .partition_point(|(at, w)| at + w.bytes() <= range.start),
        );
        self.weights[first..]
            .iter()
            .copied()
            .take_while(move |(at, _)| *at < range.end)
    }

    /// Tells the source the keys of the tensors that begin in block `i`.
    pub fn prefetch<S: WeightBytes>(&self, i: u64, source: &S) {
        let range = self.range(i);
        let starting = self.within(&range).filter(|(at, _)| range.contains(at));
        for key in starting.flat_map(|(_, w)| w.keys()) {
            source.prefetch(key);
        }
    }

    /// Makes the bytes of block `i` in `out`.
    pub fn fill<S: WeightBytes>(
        &self,
        i: u64,
        source: &S,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let range = self.range(i);
        out.resize(index(range.end - range.start), 0);
        let mut filled = 0;
        for (at, weight) in self.within(&range) {
            let (from, to) = (range.start.max(at), range.end.min(at + weight.bytes()));
            if from >= to {
                continue;
            }
            let size = weight.dtype.size();
            let elements = index(from - at) / size..index(to - at) / size;
            let part = index(from - range.start)..index(to - range.start);
            // The bytes between weights are zero, also when `out` held another block before.
            out[filled..part.start].fill(0);
            filled = part.end;
            Part { weight, source }.fill(elements, &mut out[part])?;
        }
        out[filled..].fill(0);
        Ok(())
    }

    /// Returns the hash of block `i`, whose bytes these are. It is a subtree of the file's hash, or
    /// the file's hash when the file has one block.
    pub fn hash_block(&self, i: u64, bytes: &[u8]) -> ChainingValue {
        let mut hasher = blake3::Hasher::new();
        if self.blocks() <= 1 {
            return *hasher.update(bytes).finalize().as_bytes();
        }
        hasher.set_input_offset(i * self.block);
        hasher.update(bytes).finalize_non_root()
    }

    /// Returns the hash of the file from the hashes of its blocks, in order.
    pub fn hash(&self, blocks: &[ChainingValue]) -> blake3::Hash {
        match blocks {
            [] => blake3::hash(&[]),
            [only] => blake3::Hash::from_bytes(*only),
            _ => {
                let (left, right) = halves(blocks);
                merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        }
    }
}

/// Merges the hashes of blocks. In BLAKE3 the left subtree is the largest power of two that leaves
/// a rest for the right one.
fn halves(blocks: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    blocks.split_at(blocks.len().div_ceil(2).next_power_of_two())
}

fn subtree(blocks: &[ChainingValue]) -> ChainingValue {
    if let [only] = blocks {
        return *only;
    }
    let (left, right) = halves(blocks);
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// Converts a file offset to a size in memory. Both have 64 bits on every supported machine.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Returns each initializer once, in the order of first use.
fn unique<'g>(
    weights: impl IntoIterator<Item = &'g Weight>,
) -> Result<Vec<&'g Weight>, WriteError> {
    let mut seen: BTreeMap<&str, &Weight> = BTreeMap::new();
    let mut order = Vec::new();
    let same = |a: &Weight, b: &Weight| {
        (&a.key, &a.transform, a.dtype, &a.stored, &a.shape)
            == (&b.key, &b.transform, b.dtype, &b.stored, &b.shape)
    };
    for w in weights {
        match seen.insert(&w.name, w) {
            None => order.push(w),
            Some(other) if same(other, w) => {}
            Some(other) => {
                let text =
                    |w: &Weight| format!("{} {:?} from {} {:?}", w.dtype, w.shape, w.key, w.stored);
                return Err(WriteError::Clash {
                    name: w.name.clone(),
                    one: text(other),
                    other: text(w),
                });
            }
        }
    }
    Ok(order)
}

/// A part of one weight.
struct Part<'a, S> {
    weight: &'a Weight,
    source: &'a S,
}

impl<S: WeightBytes> Part<'_, S> {
    /// Makes the elements `elements` of the graph's tensor as bytes.
    fn fill(&self, elements: Range<usize>, out: &mut [u8]) -> Result<(), WriteError> {
        let w = self.weight;
        self.check_stored()?;
        match &w.transform {
            Transform::Identity | Transform::Reshape(_) => self.plain(elements, out),
            Transform::Select { axis: 0, index } => {
                let skipped = index * w.shape.iter().product::<usize>();
                self.plain(elements.start + skipped..elements.end + skipped, out)
            }
            Transform::Transpose2 => match self.raw() {
                Some(bytes) if w.dtype.size() == 2 => {
                    self.transposed_raw::<2>(bytes, elements, out);
                    Ok(())
                }
                Some(bytes) if w.dtype.size() == 4 => {
                    self.transposed_raw::<4>(bytes, elements, out);
                    Ok(())
                }
                _ => self.transposed(elements, out),
            },
            other => self.general(other, elements, out),
        }
    }

    /// Checks the number of stored elements. A tensor shorter than its shape would be read beyond
    /// its end.
    fn check_stored(&self) -> Result<(), WriteError> {
        let w = self.weight;
        let want: usize = w.stored.iter().product();
        match self.source.raw(&w.key) {
            Some((dtype, bytes)) if bytes.len() != want * dtype.size() => {
                Err(self.length(want, bytes.len() / dtype.size()))
            }
            _ => Ok(()),
        }
    }

    /// Returns the stored bytes, when their type is the type that the graph wants.
    fn raw(&self) -> Option<&[u8]> {
        let found = self.source.raw(&self.weight.key);
        found.filter(|(d, _)| *d == self.weight.dtype).map(|f| f.1)
    }

    fn plain(&self, elements: Range<usize>, out: &mut [u8]) -> Result<(), WriteError> {
        let (w, size) = (self.weight, self.weight.dtype.size());
        if let Some(bytes) = self.raw() {
            out.copy_from_slice(&bytes[elements.start * size..elements.end * size]);
            return Ok(());
        }
        for (i, out) in out.chunks_mut(PART * size).enumerate() {
            let from = elements.start + i * PART;
            let want = from..from + out.len() / size;
            let read = self.source.read_f32_range(&w.key, want.clone());
            let read = read.map_err(|e| self.unread(&w.key, e))?;
            if read.len() != want.len() {
                return Err(self.length(w.stored.iter().product(), from + read.len()));
            }
            encode(&read, w.dtype, out);
        }
        Ok(())
    }

    /// Returns the rows and the columns of every tile of the stored matrix that holds some of the
    /// elements.
    fn tiles(&self, elements: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let rows = self.weight.stored[0];
        let columns = elements.start / rows.max(1)..elements.end.div_ceil(rows.max(1));
        let across = columns
            .clone()
            .step_by(TILE.1)
            .map(move |c| c..(c + TILE.1).min(columns.end));
        across.flat_map(move |c| {
            let down = (0..rows).step_by(TILE.0);
            down.map(move |r| (r..(r + TILE.0).min(rows), c.clone()))
        })
    }

    /// Elements of the wanted type are moved without a conversion.
    fn transposed_raw<const N: usize>(&self, bytes: &[u8], elements: Range<usize>, out: &mut [u8]) {
        let (from, out) = (bytes.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
        let width = self.weight.stored[1];
        for (rows, columns) in self.tiles(&elements) {
            let tile = Tile {
                data: &from[rows.start * width + columns.start..],
                stride: width,
                rows,
                columns,
            };
            tile.scatter(self.weight.stored[0], &elements, |x| x, out);
        }
    }

    fn transposed(&self, elements: Range<usize>, out: &mut [u8]) -> Result<(), WriteError> {
        let (w, mut data) = (self.weight, Vec::new());
        for (rows, columns) in self.tiles(&elements) {
            let (key, stride) = (&w.key, columns.len());
            self.source
                .read_f32_tile(key, rows.clone(), columns.clone(), &mut data)
                .map_err(|e| self.unread(key, e))?;
            if data.len() != rows.len() * stride {
                return Err(self.length(w.stored.iter().product(), data.len()));
            }
            let tile = Tile {
                data: &data,
                stride,
                rows,
                columns,
            };
            let height = w.stored[0];
            match w.dtype {
                DType::BF16 => {
                    let out = out.as_chunks_mut().0;
                    tile.scatter(height, &elements, bf16_bytes, out);
                }
                DType::F16 => {
                    let out = out.as_chunks_mut().0;
                    tile.scatter(height, &elements, f16_bytes, out);
                }
                _ => {
                    let out = out.as_chunks_mut().0;
                    tile.scatter(height, &elements, f32::to_le_bytes, out);
                }
            }
        }
        Ok(())
    }

    /// Makes the whole tensor of any other transform. No large weight has one.
    fn general(
        &self,
        transform: &Transform,
        elements: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WriteError> {
        let w = self.weight;
        let read = |key: &str| self.source.read_f32(key).map_err(|e| self.unread(key, e));
        let data = read(&w.key)?;
        if data.len() != w.stored.iter().product::<usize>() {
            return Err(self.length(w.stored.iter().product(), data.len()));
        }
        let (data, _) = transform.apply(data, w.stored.clone(), &read)?;
        let want = w.shape.iter().product();
        if data.len() != want {
            return Err(self.length(want, data.len()));
        }
        encode(&data[elements], w.dtype, out);
        Ok(())
    }

    fn unread(&self, key: &str, error: S::Error) -> WriteError {
        WriteError::Read {
            key: key.to_owned(),
            source: Box::new(error),
        }
    }

    fn length(&self, want: usize, got: usize) -> WriteError {
        WriteError::Length {
            key: self.weight.key.clone(),
            want,
            got,
        }
    }
}

fn bf16_bytes(x: f32) -> [u8; 2] {
    half::bf16::from_f32(x).to_le_bytes()
}

fn f16_bytes(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// Converts elements to little-endian bytes, rounded to nearest even. A weight is never an integer.
fn encode(data: &[f32], dtype: DType, out: &mut [u8]) {
    fn each<const N: usize>(data: &[f32], bytes: impl Fn(f32) -> [u8; N], out: &mut [u8]) {
        let out = out.as_chunks_mut::<N>().0;
        out.iter_mut().zip(data).for_each(|(o, &x)| *o = bytes(x));
    }
    match dtype {
        DType::BF16 => each(data, bf16_bytes, out),
        DType::F16 => each(data, f16_bytes, out),
        _ => each(data, f32::to_le_bytes, out),
    }
}

/// A part of a matrix. `data[0]` is its first element, and `stride` elements lie between rows.
struct Tile<'a, T> {
    data: &'a [T],
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<T: Copy> Tile<'_, T> {
    /// Moves its elements to their places in the transpose. The matrix has `height` rows, and `out`
    /// holds `elements` of the transpose. It works in squares, which are read and written one cache
    /// line after another.
    fn scatter<const N: usize>(
        &self,
        height: usize,
        elements: &Range<usize>,
        bytes: impl Fn(T) -> [u8; N],
        out: &mut [[u8; N]],
    ) {
        const SIDE: usize = 32;
        let mut square = [[[0u8; N]; SIDE]; SIDE];
        for r in (0..self.rows.len()).step_by(SIDE) {
            let rows = SIDE.min(self.rows.len() - r);
            for c in (0..self.columns.len()).step_by(SIDE) {
                let columns = SIDE.min(self.columns.len() - c);
                for (row, line) in square[..rows].iter_mut().enumerate() {
                    let from = &self.data[(r + row) * self.stride + c..][..columns];
                    line.iter_mut()
                        .zip(from)
                        .for_each(|(to, &x)| *to = bytes(x));
                }
                for column in 0..columns {
                    // The range of the square's column in the transpose, cut to the wanted
                    // elements.
                    let at = (self.columns.start + c + column) * height + self.rows.start + r;
                    let (from, to) = (at.max(elements.start), (at + rows).min(elements.end));
                    if from >= to {
                        continue;
                    }
                    let line = &square[from - at..to - at];
                    let out = &mut out[from - elements.start..to - elements.start];
                    out.iter_mut()
                        .zip(line)
                        .for_each(|(o, row)| *o = row[column]);
                }
            }
        }
    }
}

type Fetch<'a> = dyn Fn(&str) -> Result<Vec<f32>, WriteError> + 'a;

impl Transform {
    /// Returns the transformed elements and their shape. `fetch` reads other keys.
    fn apply(
        &self,
        data: Vec<f32>,
        mut shape: Vec<usize>,
        fetch: &Fetch<'_>,
    ) -> Result<(Vec<f32>, Vec<usize>), WriteError> {
        Ok(match self {
            Self::Identity => (data, shape),
            Self::Reshape(want) => (data, want.clone()),
            Self::Transpose2 => {
                let [rows, columns] = [shape[0], shape[1]];
                let at = |i: usize| data[i % rows * columns + i / rows];
                ((0..data.len()).map(at).collect(), vec![columns, rows])
            }
            Self::Select { axis, index } => {
                let inner: usize = shape[axis + 1..].iter().product();
                let size = shape.remove(*axis);
                (
                    data.chunks_exact((size * inner).max(1))
                        .flat_map(|outer| &outer[index * inner..(index + 1) * inner])
                        .copied()
                        .collect(),
                    shape,
                )
            }
            Self::Fold { axis, index } => {
                let inner: usize = shape[axis + 1..].iter().product();
                let size = shape[*axis];
                shape[*axis] = size - 1;
                let mut folded = Vec::with_capacity(data.len() / size.max(1) * (size - 1));
                for outer in data.chunks_exact((size * inner).max(1)) {
                    let (before, rest) = outer.split_at(index * inner);
                    let (sum, rest) = rest.split_at(inner);
                    let (added, after) = rest.split_at(inner);
                    folded.extend_from_slice(before);
                    folded.extend(sum.iter().zip(added).map(|(a, b)| a + b));
                    folded.extend_from_slice(after);
                }
                (folded, shape)
            }
            Self::Concat { axis, with } => {
                let others = with
                    .iter()
                    .map(|key| fetch(key))
                    .collect::<Result<Vec<_>, _>>()?;
                let outer: usize = shape[..*axis].iter().product();
                let inner: usize = shape[axis + 1..].iter().product();
                let parts: Vec<&[f32]> = std::iter::once(data.as_slice())
                    .chain(others.iter().map(Vec::as_slice))
                    .collect();
                let joined = (0..outer).flat_map(|o| {
                    parts
                        .iter()
                        .flat_map(move |p| &p[p.len() / outer * o..p.len() / outer * (o + 1)])
                });
                let joined: Vec<f32> = joined.copied().collect();
                shape[*axis] = joined.len() / (outer * inner).max(1);
                (joined, shape)
            }
            Self::Chain(steps) => {
                return steps.iter().try_fold((data, shape), |(data, shape), t| {
                    t.apply(data, shape, fetch)
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("gone")]
    struct Gone;

    /// Tensors that count up from 0, stored in one type.
    struct Ramp {
        tensors: BTreeMap<String, Vec<f32>>,
        raw: BTreeMap<String, (DType, Vec<u8>)>,
    }

    impl Ramp {
        fn new(sizes: &[(&str, usize)], dtype: Option<DType>) -> Self {
            let ramp = |n: usize| (0..n).map(|i| (i % 251) as f32 - 100.0).collect::<Vec<_>>();
            let tensors: BTreeMap<String, Vec<f32>> = sizes
                .iter()
                .map(|&(k, n)| (k.to_owned(), ramp(n)))
                .collect();
            let raw = dtype.map(|dtype| {
                let bytes = |x: &Vec<f32>| {
                    let mut out = vec![0; x.len() * dtype.size()];
                    encode(x, dtype, &mut out);
                    (dtype, out)
                };
                tensors.iter().map(|(k, x)| (k.clone(), bytes(x))).collect()
            });
            Self {
                tensors,
                raw: raw.unwrap_or_default(),
            }
        }
    }

    impl WeightBytes for Ramp {
        type Error = Gone;

        fn read_f32(&self, key: &str) -> Result<Vec<f32>, Gone> {
            self.tensors.get(key).cloned().ok_or(Gone)
        }

        fn read_f32_tile(
            &self,
            key: &str,
            rows: Range<usize>,
            columns: Range<usize>,
            out: &mut Vec<f32>,
        ) -> Result<(), Gone> {
            // Every matrix of these tests has this many columns.
            let data = self.tensors.get(key).ok_or(Gone)?;
            out.clear();
            out.extend(rows.flat_map(|r| &data[r * WIDTH..][columns.clone()]));
            Ok(())
        }

        fn raw(&self, key: &str) -> Option<(DType, &[u8])> {
            self.raw.get(key).map(|(d, b)| (*d, b.as_slice()))
        }
    }

    const WIDTH: usize = 1100;

    fn weight(key: &str, dtype: DType, shape: &[usize]) -> Weight {
        let shape = shape.to_vec();
        Weight {
            name: key.to_owned(),
            key: key.to_owned(),
            transform: Transform::Identity,
            dtype,
            stored: shape.clone(),
            shape,
            value: 0,
        }
    }

    fn whole<S: WeightBytes>(plan: &DataPlan<'_>, source: &S) -> Vec<u8> {
        let mut block = Vec::new();
        (0..plan.blocks())
            .flat_map(|i| {
                plan.fill(i, source, &mut block).unwrap();
                block.clone()
            })
            .collect()
    }

    #[test]
    fn transforms_move_the_elements_they_promise() {
        use Transform::{Chain, Concat, Fold, Identity, Reshape, Select, Transpose2};
        let concat = |axis| Concat {
            axis,
            with: vec!["other".into()],
        };
        let cases: [(Transform, &[usize], &[f32]); 11] = [
            (Identity, &[2, 3], &[0., 1., 2., 3., 4., 5.]),
            (Reshape(vec![3, 2]), &[3, 2], &[0., 1., 2., 3., 4., 5.]),
            (Transpose2, &[3, 2], &[0., 3., 1., 4., 2., 5.]),
            (Select { axis: 0, index: 1 }, &[3], &[3., 4., 5.]),
            (Select { axis: 1, index: 2 }, &[2], &[2., 5.]),
            (Fold { axis: 0, index: 0 }, &[1, 3], &[3., 5., 7.]),
            (Fold { axis: 1, index: 0 }, &[2, 2], &[1., 2., 7., 5.]),
            (Fold { axis: 1, index: 1 }, &[2, 2], &[0., 3., 3., 9.]),
            (
                concat(0),
                &[4, 3],
                &[0., 1., 2., 3., 4., 5., 10., 11., 12., 13., 14., 15.],
            ),
            (
                concat(1),
                &[2, 6],
                &[0., 1., 2., 10., 11., 12., 3., 4., 5., 13., 14., 15.],
            ),
            (
                Chain(vec![Transpose2, Select { axis: 0, index: 1 }]),
                &[2],
                &[1., 4.],
            ),
        ];
        for (transform, shape, want) in cases {
            let data = (0..6u8).map(f32::from).collect();
            let other = |_: &str| Ok((10..16u8).map(f32::from).collect());
            assert_eq!(
                transform.apply(data, vec![2, 3], &other).unwrap(),
                (want.to_vec(), shape.to_vec()),
                "{transform}"
            );
        }
    }

    #[test]
    fn blocks_hold_what_the_whole_transform_gives_whatever_the_types() {
        use Transform::{Identity, Reshape, Select, Transpose2};
        // Rows that do not divide a block: it begins and ends inside a row of the transpose.
        let rows = 301;
        let shapes = [
            (Identity, vec![rows, WIDTH]),
            (Reshape(vec![rows * WIDTH]), vec![rows * WIDTH]),
            (Select { axis: 0, index: 7 }, vec![WIDTH]),
            (Select { axis: 1, index: 3 }, vec![rows]),
            (Transpose2, vec![WIDTH, rows]),
        ];
        for stored in [None, Some(DType::F32), Some(DType::BF16), Some(DType::F16)] {
            let source = Ramp::new(&[("m", rows * WIDTH), ("v", 3)], stored);
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                for (transform, shape) in &shapes {
                    let m = Weight {
                        transform: transform.clone(),
                        stored: vec![rows, WIDTH],
                        ..weight("m", dtype, shape)
                    };
                    let v = weight("v", DType::F32, &[3]);
                    let plan = DataPlan::new("w.data".into(), [&v, &m])
                        .unwrap()
                        .in_blocks_of(1 << 16);
                    let read = source.read_f32("m").unwrap();
                    let (want, _) = transform
                        .apply(read, m.stored.clone(), &|_| unreachable!("no other key"))
                        .unwrap();
                    let mut bytes = vec![0; want.len() * dtype.size()];
                    encode(&want, dtype, &mut bytes);
                    let got = whole(&plan, &source);
                    assert!(
                        got[index(ALIGN)..] == bytes,
                        "{stored:?} {dtype} {transform}"
                    );
                }
            }
        }
    }

    #[test]
    fn stored_bits_pass_through_where_the_type_is_the_graphs() {
        // A signalling NaN, which any conversion would quieten.
        let nan = 0x7f81u16.to_le_bytes();
        let mut source = Ramp::new(&[("m", 2 * WIDTH)], Some(DType::BF16));
        source.raw.get_mut("m").unwrap().1[2..4].copy_from_slice(&nan);
        for (transform, at) in [(Transform::Identity, 1), (Transform::Transpose2, 2)] {
            let m = Weight {
                transform,
                stored: vec![2, WIDTH],
                ..weight("m", DType::BF16, &[2, WIDTH])
            };
            let plan = DataPlan::new("w.data".into(), [&m]).unwrap();
            assert_eq!(whole(&plan, &source)[2 * at..][..2], nan);
        }
    }

    #[test]
    fn weights_are_stored_once_and_aligned() {
        let source = Ramp::new(&[("a", 3), ("b", 100), ("c", 2)], None);
        let (a, b, c) = (
            weight("a", DType::F32, &[3]),
            weight("b", DType::F32, &[100]),
            weight("c", DType::BF16, &[2]),
        );
        let plan = DataPlan::new("w.data".into(), [&a, &b, &a, &c, &b]).unwrap();
        let placed: Vec<(u64, u64)> = plan
            .layout()
            .values()
            .map(|p| (p.offset, p.length))
            .collect();
        assert_eq!(placed, [(0, 12), (256, 400), (768, 4)]);
        let bytes = whole(&plan, &source);
        assert_eq!((bytes.len(), plan.bytes()), (772, 772));
        assert_eq!(bytes[8..12], (-98f32).to_le_bytes());
        assert_eq!(bytes[12..256], [0; 244]);
        assert_eq!(bytes[652..656], (-1f32).to_le_bytes());
        assert_eq!(bytes[768..], [0xc8, 0xc2, 0xc6, 0xc2]);
        let mut used = vec![0xff; 2000];
        plan.fill(0, &source, &mut used).unwrap();
        assert_eq!(used, bytes);
    }

    #[test]
    fn the_hash_of_a_file_comes_from_its_blocks() {
        for (bytes, blocks) in [
            (0, 0),
            (4, 1),
            (1024, 1),
            (1028, 2),
            (2052, 3),
            (5000, 5),
            (8192, 8),
            (9000, 9),
        ] {
            let source = Ramp::new(&[("a", bytes / 4)], Some(DType::F32));
            let a = weight("a", DType::F32, &[bytes / 4]);
            let plan = DataPlan::new("w.data".into(), [&a])
                .unwrap()
                .in_blocks_of(1024);
            assert_eq!(plan.blocks(), blocks, "{bytes}");
            let mut block = Vec::new();
            let hashes: Vec<ChainingValue> = (0..plan.blocks())
                .map(|i| {
                    plan.fill(i, &source, &mut block).unwrap();
                    plan.hash_block(i, &block)
                })
                .collect();
            assert_eq!(
                plan.hash(&hashes),
                blake3::hash(&whole(&plan, &source)),
                "{bytes}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_or_has_another_size_is_named() {
        let source = Ramp::new(&[("a", 3), ("b", 4)], None);
        let error = |w: &Weight| {
            let plan = DataPlan::new("w.data".into(), [w]).unwrap();
            plan.fill(0, &source, &mut Vec::new())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(error(&weight("z", DType::F32, &[3])), "weight z: gone");
        assert_eq!(
            error(&weight("a", DType::F32, &[5])),
            "weight a wants 5 elements, got 0"
        );
        let (a, other) = (
            weight("a", DType::F32, &[3]),
            weight("a", DType::F32, &[3, 1]),
        );
        let error = DataPlan::new("w.data".into(), [&a, &other]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weight a is f32 [3] from a [3] in one graph and f32 [3, 1] from a [3, 1] in another"
        );
    }
}
