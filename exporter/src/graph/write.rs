//! A graph on disk: the ONNX file, and the one `.data` file that every graph of a checkpoint shares.
//!
//! The bytes are streamed: workers read, transform and convert tensors while the caller's thread writes and hashes them in file order;
//! what is in flight is bounded. Each tensor starts at a multiple of [`ALIGN`] and is stored once, however many graphs use it. Files appear
//! under their names only when complete. Not here: reading checkpoints (a [`WeightBytes`]), the manifest.
use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, dimension,
};
use super::{Attribute, Constant, ConstantData, Fact, Graph, Node, Transform, Weight};
use crate::graph::builder::is_unknown;
use engines::contract::DType;
use engines::exit::Exit;
use prost::Message;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Operator set that every graph is written in.
pub const OPSET: i64 = 24;
/// ONNX file format that goes with [`OPSET`].
pub const IR_VERSION: i64 = 12;
/// Every tensor of a data file starts at a multiple of this; CUDA reads such tensors where they lie.
pub const ALIGN: u64 = 256;

/// The floats of a checkpoint.
pub trait WeightBytes: Sync {
    /// Why a tensor could not be read.
    type Error: Error + Send + Sync + 'static;

    /// All elements of a tensor, row-major, whatever the stored type.
    fn read_f32(&self, key: &str) -> Result<Vec<f32>, Self::Error>;

    /// Whether [`Self::read_f32_range`] is cheaper than the whole tensor. Large tensors are then read in pieces.
    fn has_ranges(&self, _key: &str) -> bool {
        false
    }

    /// Some elements of a tensor, counted row-major.
    fn read_f32_range(&self, key: &str, elements: Range<usize>) -> Result<Vec<f32>, Self::Error> {
        Ok(self
            .read_f32(key)?
            .get(elements)
            .unwrap_or_default()
            .to_vec())
    }
}

/// Where each initializer's bytes are.
pub type DataLayout = BTreeMap<String, Placed>;

/// A place in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// File name, beside the ONNX file.
    pub file: String,
    /// First byte, a multiple of [`ALIGN`].
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// How an ONNX file refers to its weights.
#[derive(Clone, Copy, Debug)]
pub enum WeightPlacement<'a> {
    /// Initializers whose bytes are in data files.
    External(&'a DataLayout),
    /// Graph inputs: the graph alone, for checking shapes without any bytes.
    AsInputs,
}

/// A data file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where each initializer is.
    pub layout: DataLayout,
    /// Size of the file.
    pub bytes: u64,
    /// Hash of the file, hex.
    pub blake3: String,
}

/// Why a graph could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A tensor could not be read.
    #[error("weight {key}: {source}")]
    Read {
        /// Checkpoint key.
        key: String,
        /// What the checkpoint said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A tensor has another number of elements than its shape says.
    #[error("weight {key} wants {want} elements, got {got}")]
    Length {
        /// Checkpoint key.
        key: String,
        /// Elements by shape.
        want: usize,
        /// Elements read.
        got: usize,
    },
    /// Two graphs use one initializer name for different tensors.
    #[error("weight {name} is {one} in one graph and {other} in another")]
    Clash {
        /// Initializer.
        name: String,
        /// Type and shape.
        one: String,
        /// Type and shape.
        other: String,
    },
    /// The layout lacks a weight of the graph.
    #[error("graph {graph}: weight {name} is in no data file")]
    Unplaced {
        /// Component.
        graph: String,
        /// Initializer.
        name: String,
    },
}

impl WriteError {
    /// The exit code it ends the process with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::OutOfMemory => Exit::Resources,
                _ => Exit::Input,
            },
            _ => Exit::Model,
        }
    }
}

/// ONNX's number for an element type.
pub(super) fn onnx_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::BF16 => 16,
    }
}

/// The graph as an ONNX model. Symbolic dimensions become `dim_param` texts such as `3*h*w`; every intermediate value has its type and shape.
pub fn to_model(graph: &Graph, placement: WeightPlacement<'_>) -> Result<ModelProto, WriteError> {
    let infos = |ids: &[usize]| {
        ids.iter()
            .map(|&id| value_info(&graph.values[id].name, &graph.values[id].fact))
            .collect::<Vec<_>>()
    };
    let mut input = infos(&graph.inputs);
    let mut initializer: Vec<TensorProto> =
        graph.constants.iter().map(|c| constant(graph, c)).collect();
    for w in &graph.weights {
        match placement {
            WeightPlacement::AsInputs => {
                input.push(value_info(&w.name, &graph.values[w.value].fact));
            }
            WeightPlacement::External(layout) => {
                let placed = layout.get(&w.name);
                let placed = placed.ok_or_else(|| WriteError::Unplaced {
                    graph: graph.name.clone(),
                    name: w.name.clone(),
                })?;
                initializer.push(external(w, placed));
            }
        }
    }
    let inner: Vec<usize> = graph
        .nodes
        .iter()
        .flat_map(|n| n.outputs.iter().copied())
        .filter(|id| !graph.outputs.contains(id))
        .collect();
    let graph_proto = GraphProto {
        node: graph.nodes.iter().map(|n| node(graph, n)).collect(),
        name: Some(graph.name.clone()),
        initializer,
        input,
        output: infos(&graph.outputs),
        value_info: infos(&inner),
    };
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("avatar-export".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(graph_proto),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        metadata_props: graph.metadata.iter().map(|(k, v)| entry(k, v)).collect(),
    })
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    }
}

fn value_info(name: &str, fact: &Fact) -> ValueInfoProto {
    let dim = fact.dims.iter().map(|d| DimensionProto {
        value: match d.as_const() {
            Some(n) => Some(dimension::Value::DimValue(n)),
            None if is_unknown(d) => None,
            None => Some(dimension::Value::DimParam(d.to_string())),
        },
    });
    let shape = TensorShapeProto { dim: dim.collect() };
    let tensor = TensorTypeProto {
        elem_type: Some(onnx_type(fact.dtype)),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

fn node(graph: &Graph, n: &Node) -> NodeProto {
    NodeProto {
        input: n
            .inputs
            .iter()
            .map(|i| {
                i.map(|id| graph.values[id].name.clone())
                    .unwrap_or_default()
            })
            .collect(),
        output: n
            .outputs
            .iter()
            .map(|&id| graph.values[id].name.clone())
            .collect(),
        name: Some(n.name.clone()),
        op_type: Some(n.op.to_owned()),
        attribute: n
            .attributes
            .iter()
            .map(|(name, a)| attribute(name, a))
            .collect(),
    }
}

fn attribute(name: &str, a: &Attribute) -> AttributeProto {
    let blank = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    match a {
        Attribute::Float(x) => AttributeProto {
            f: Some(*x),
            r#type: Some(1),
            ..blank
        },
        Attribute::Int(i) => AttributeProto {
            i: Some(*i),
            r#type: Some(2),
            ..blank
        },
        Attribute::Text(word) => AttributeProto {
            s: Some(word.as_bytes().to_vec()),
            r#type: Some(3),
            ..blank
        },
        Attribute::Ints(list) => AttributeProto {
            ints: list.clone(),
            r#type: Some(7),
            ..blank
        },
    }
}

fn tensor(name: &str, dtype: DType, shape: &[usize]) -> TensorProto {
    TensorProto {
        dims: shape
            .iter()
            .map(|&n| i64::try_from(n).unwrap_or(i64::MAX))
            .collect(),
        data_type: Some(onnx_type(dtype)),
        name: Some(name.to_owned()),
        ..TensorProto::default()
    }
}

fn constant(graph: &Graph, c: &Constant) -> TensorProto {
    let (dtype, bytes) = match &c.data {
        ConstantData::F32(x) => (DType::F32, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ConstantData::I64(x) => (DType::I64, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ConstantData::BF16(x) => (
            DType::BF16,
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
    };
    TensorProto {
        raw_data: Some(bytes),
        ..tensor(&graph.values[c.value].name, dtype, &c.shape)
    }
}

fn external(w: &Weight, placed: &Placed) -> TensorProto {
    let place = [
        ("location", placed.file.clone()),
        ("offset", placed.offset.to_string()),
        ("length", placed.length.to_string()),
    ];
    let external_data = place.iter().map(|(k, v)| entry(k, v)).collect();
    TensorProto {
        external_data,
        data_location: Some(1),
        ..tensor(&w.name, w.dtype, &w.shape)
    }
}

/// Writes a model; returns the hash of the file, hex.
pub fn write_model(path: &Path, model: &ModelProto) -> Result<String, WriteError> {
    let bytes = model.encode_to_vec();
    let mut file = Partial::create(path)?;
    file.append(&bytes)?;
    file.finish()
}

/// Streams the weights of any number of graphs into one file at `path`. `progress` is told bytes done and in total.
pub fn write_data<'g, S: WeightBytes>(
    path: &Path,
    weights: impl IntoIterator<Item = &'g Weight>,
    source: &S,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<DataFile, WriteError> {
    let weights = unique(weights)?;
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (layout, total) = lay_out(&weights, &name);
    let pieces = pieces(&weights, source);
    let line = Line::new(&pieces);
    let mut file = Partial::create(path)?;
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(pieces.len());
    std::thread::scope(|threads| {
        // Dropped on every way out, so that the workers stop too.
        let _stop = StopOnDrop(&line);
        for _ in 0..workers {
            threads.spawn(|| line.work(source));
        }
        for (i, piece) in pieces.iter().enumerate() {
            let Some(bytes) = line.take(i) else { break };
            if piece.first {
                file.pad_to(layout[&piece.weight.name].offset)?;
            }
            file.append(bytes?.as_bytes())?;
            line.release(i);
            progress(file.written, total);
        }
        Ok(())
    })?;
    Ok(DataFile {
        layout,
        bytes: file.written,
        blake3: file.finish()?,
    })
}

/// Each initializer once, in order of first use.
fn unique<'g>(
    weights: impl IntoIterator<Item = &'g Weight>,
) -> Result<Vec<&'g Weight>, WriteError> {
    let mut seen: BTreeMap<&str, &Weight> = BTreeMap::new();
    let mut order = Vec::new();
    let content = |w: &Weight| {
        (
            w.key.clone(),
            w.transform.clone(),
            w.dtype,
            w.stored.clone(),
            w.shape.clone(),
        )
    };
    for w in weights {
        match seen.insert(&w.name, w) {
            None => order.push(w),
            Some(other) if content(other) == content(w) => {}
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

/// Offsets in order, aligned; and the size of the file.
fn lay_out(weights: &[&Weight], file: &str) -> (DataLayout, u64) {
    let (mut layout, mut end) = (DataLayout::new(), 0u64);
    for w in weights {
        let offset = end.next_multiple_of(ALIGN);
        end = offset + w.bytes();
        layout.insert(
            w.name.clone(),
            Placed {
                file: file.to_owned(),
                offset,
                length: w.bytes(),
            },
        );
    }
    (layout, end)
}

/// Elements of a piece of a large tensor.
const PIECE: usize = 1 << 24;

/// What one worker makes at a time: a tensor, or part of a large one that needs no transform.
struct Piece<'g> {
    weight: &'g Weight,
    /// Stored elements; `None` is all.
    elements: Option<Range<usize>>,
    /// Whether it starts its tensor.
    first: bool,
}

impl Piece<'_> {
    /// Memory that it takes at its peak: what is read and what is made of it.
    fn cost(&self) -> usize {
        let read = self.elements.as_ref().map_or_else(
            || self.weight.stored.iter().product(),
            ExactSizeIterator::len,
        );
        let plain = self.weight.transform == Transform::Identity && self.weight.dtype == DType::F32;
        read * if plain { 4 } else { 8 }
    }

    fn bytes<S: WeightBytes>(&self, source: &S) -> Result<Bytes, WriteError> {
        let w = self.weight;
        let read = |key: &str| {
            source.read_f32(key).map_err(|e| WriteError::Read {
                key: key.to_owned(),
                source: Box::new(e),
            })
        };
        let length = |want: usize, got: usize| {
            if want == got {
                Ok(())
            } else {
                Err(WriteError::Length {
                    key: w.key.clone(),
                    want,
                    got,
                })
            }
        };
        let data = match &self.elements {
            Some(range) => {
                let data = source.read_f32_range(&w.key, range.clone());
                let data = data.map_err(|e| WriteError::Read {
                    key: w.key.clone(),
                    source: Box::new(e),
                })?;
                length(range.len(), data.len())?;
                data
            }
            None => {
                let data = read(&w.key)?;
                length(w.stored.iter().product(), data.len())?;
                let (data, _) = w.transform.apply(data, w.stored.clone(), &read)?;
                length(w.shape.iter().product(), data.len())?;
                data
            }
        };
        Ok(Bytes::new(data, w.dtype))
    }
}

fn pieces<'g, S: WeightBytes>(weights: &[&'g Weight], source: &S) -> Vec<Piece<'g>> {
    let mut pieces = Vec::new();
    for &weight in weights {
        let len: usize = weight.stored.iter().product();
        if len <= PIECE
            || weight.transform != Transform::Identity
            || !source.has_ranges(&weight.key)
        {
            pieces.push(Piece {
                weight,
                elements: None,
                first: true,
            });
            continue;
        }
        let starts = (0..len).step_by(PIECE);
        pieces.extend(starts.map(|at| Piece {
            weight,
            elements: Some(at..(at + PIECE).min(len)),
            first: at == 0,
        }));
    }
    pieces
}

/// Converted elements. f32 stays as it was read, without a copy.
enum Bytes {
    F32(Vec<f32>),
    Half(Vec<u16>),
}

impl Bytes {
    /// Rounds to nearest even. A weight is never an integer.
    fn new(data: Vec<f32>, dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::Half(
                data.into_iter()
                    .map(|x| half::f16::from_f32(x).to_bits())
                    .collect(),
            ),
            DType::BF16 => Self::Half(
                data.into_iter()
                    .map(|x| half::bf16::from_f32(x).to_bits())
                    .collect(),
            ),
            _ => Self::F32(data),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::Half(x) => bytemuck::cast_slice(x),
        }
    }
}

type Fetch<'a> = dyn Fn(&str) -> Result<Vec<f32>, WriteError> + 'a;

impl Transform {
    /// The transformed elements and their shape. `fetch` reads other keys.
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
                (transpose(&data, rows, columns), vec![columns, rows])
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

/// By tiles, so that both sides stay in the cache.
fn transpose(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; data.len()];
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..columns).step_by(TILE) {
            for c in c0..(c0 + TILE).min(columns) {
                for r in r0..(r0 + TILE).min(rows) {
                    out[c * rows + r] = data[r * columns + c];
                }
            }
        }
    }
    out
}

/// Bytes of tensors in flight; a larger tensor goes alone.
const BUDGET: usize = 768 << 20;

/// The assembly line between workers and writer. Pieces are begun strictly in file order, so the next one to be written is always paid for
/// and the line cannot lock up.
struct Line<'p, 'g> {
    pieces: &'p [Piece<'g>],
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Default)]
struct LineState {
    next: usize,
    in_flight: usize,
    stopped: bool,
    done: BTreeMap<usize, Result<Bytes, WriteError>>,
}

impl<'p, 'g> Line<'p, 'g> {
    fn new(pieces: &'p [Piece<'g>]) -> Self {
        Self {
            pieces,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, LineState>) -> MutexGuard<'s, LineState> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes pieces until there are none, or the line stops. A panic in `source` stops it.
    fn work<S: WeightBytes>(&self, source: &S) {
        let stop = StopOnDrop(self);
        while let Some(i) = self.begin() {
            let bytes = self.pieces[i].bytes(source);
            self.lock().done.insert(i, bytes);
            self.changed.notify_all();
        }
        std::mem::forget(stop);
    }

    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let piece = self.pieces.get(state.next)?;
            if state.stopped {
                return None;
            }
            if state.in_flight == 0 || state.in_flight + piece.cost() <= BUDGET {
                state.in_flight += piece.cost();
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }

    /// Waits for piece `i`; `None` when the line has stopped.
    fn take(&self, i: usize) -> Option<Result<Bytes, WriteError>> {
        let mut state = self.lock();
        loop {
            if let Some(bytes) = state.done.remove(&i) {
                return Some(bytes);
            }
            if state.stopped {
                return None;
            }
            state = self.wait(state);
        }
    }

    fn release(&self, i: usize) {
        self.lock().in_flight -= self.pieces[i].cost();
        self.changed.notify_all();
    }
}

struct StopOnDrop<'l, 'p, 'g>(&'l Line<'p, 'g>);

impl Drop for StopOnDrop<'_, '_, '_> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

/// A file that has its final name only once complete; dropped before, it is removed.
struct Partial {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    written: u64,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, WriteError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|source| WriteError::Io {
            path: part.clone(),
            source,
        })?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            hasher: blake3::Hasher::new(),
            written: 0,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| WriteError::Io {
            path: self.part.clone(),
            source,
        })
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), WriteError> {
        let gap = usize::try_from(offset.saturating_sub(self.written)).unwrap_or_default();
        self.append(&[0; 256][..gap.min(256)])
    }

    /// Makes the bytes durable and gives the file its name. Returns its hash, hex.
    fn finish(mut self) -> Result<String, WriteError> {
        let fail = |source| WriteError::Io {
            path: self.path.clone(),
            source,
        };
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(fail)?;
        fs::rename(&self.part, &self.path).map_err(|source| WriteError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

impl Drop for Partial {
    /// After a rename there is nothing under the temporary name; an error here has nobody to go to.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Fact};
    use engines::contract::Port;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const X: Port = Port::new("x", DType::F32, "B 3*h*w 4");
    const Y: Port = Port::new("y", DType::F32, "B 3*h*w 3");

    #[derive(Debug, thiserror::Error)]
    #[error("gone")]
    struct Gone;

    /// Tensors that count up from 0.
    struct Ramp {
        shapes: BTreeMap<String, Vec<usize>>,
        lost: Option<&'static str>,
        ranges: bool,
        reads: AtomicUsize,
    }

    impl Ramp {
        fn new(shapes: &[(&str, &[usize])]) -> Self {
            let shapes = shapes
                .iter()
                .map(|(k, s)| ((*k).to_owned(), s.to_vec()))
                .collect();
            Self {
                shapes,
                lost: None,
                ranges: false,
                reads: AtomicUsize::new(0),
            }
        }
    }

    impl WeightBytes for Ramp {
        type Error = Gone;

        fn read_f32(&self, key: &str) -> Result<Vec<f32>, Gone> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let len = self
                .shapes
                .get(key)
                .filter(|_| self.lost != Some(key))
                .ok_or(Gone)?
                .iter()
                .product();
            Ok((0..len).map(|i: usize| i as f32).collect())
        }

        fn has_ranges(&self, _key: &str) -> bool {
            self.ranges
        }

        fn read_f32_range(&self, _key: &str, elements: Range<usize>) -> Result<Vec<f32>, Gone> {
            Ok(elements.map(|i| i as f32).collect())
        }
    }

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

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    #[test]
    fn transforms_move_the_elements_they_promise() {
        use Transform::{Chain, Concat, Identity, Reshape, Select, Transpose2};
        let concat = |axis| Concat {
            axis,
            with: vec!["other".into()],
        };
        let cases: [(Transform, &[usize], &[f32]); 8] = [
            (Identity, &[2, 3], &[0., 1., 2., 3., 4., 5.]),
            (Reshape(vec![3, 2]), &[3, 2], &[0., 1., 2., 3., 4., 5.]),
            (Transpose2, &[3, 2], &[0., 3., 1., 4., 2., 5.]),
            (Select { axis: 0, index: 1 }, &[3], &[3., 4., 5.]),
            (Select { axis: 1, index: 2 }, &[2], &[2., 5.]),
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
    fn tiles_transpose_any_size() {
        for (rows, columns) in [(1, 1), (1, 70), (33, 65), (64, 32)] {
            let data: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let out = transpose(&data, rows, columns);
            assert!(
                (0..rows * columns).all(|i| out[i % columns * rows + i / columns] == data[i]),
                "{rows} x {columns}"
            );
        }
    }

    #[test]
    fn weights_are_stored_once_aligned_and_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.data");
        let source = Ramp::new(&[("a", &[3]), ("b", &[100]), ("c", &[2])]);
        let (a, b, c) = (
            weight("a", DType::F32, &[3]),
            weight("b", DType::F32, &[100]),
            weight("c", DType::BF16, &[2]),
        );
        let mut told = Vec::new();
        let file = write_data(&path, [&a, &b, &a, &c, &b], &source, &mut |done, total| {
            told.push((done, total));
        })
        .unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(source.reads.into_inner(), 3);
        assert_eq!(
            (file.bytes, file.blake3),
            (
                bytes.len() as u64,
                blake3::hash(&bytes).to_hex().to_string()
            )
        );
        let placed: Vec<(u64, u64)> = file.layout.values().map(|p| (p.offset, p.length)).collect();
        assert_eq!(placed, [(0, 12), (256, 400), (768, 4)]);
        assert_eq!(floats(&bytes[..12]), [0., 1., 2.]);
        assert_eq!(floats(&bytes[256..656])[99], 99.);
        assert_eq!(bytes[768..], [0, 0, 0x80, 0x3f]);
        assert_eq!(told, [(12, 772), (656, 772), (772, 772)]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn large_plain_tensors_are_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.data");
        let len = PIECE + 5;
        let source = Ramp {
            ranges: true,
            ..Ramp::new(&[("a", &[len]), ("b", &[1])])
        };
        let (a, b) = (
            weight("a", DType::F16, &[len]),
            weight("b", DType::F32, &[1]),
        );
        let file = write_data(&path, [&a, &b], &source, &mut |_, _| {}).unwrap();
        assert_eq!(source.reads.into_inner(), 1);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, file.layout["b"].offset + 4);
        // PIECE + 4 overflows f16: infinity, as rounding says.
        assert_eq!(
            bytes[2 * (len - 1)..2 * len],
            half::f16::INFINITY.to_le_bytes()
        );
        assert_eq!(
            bytes[2 * 1000..2 * 1001],
            half::f16::from_f32(1000.0).to_le_bytes()
        );
    }

    #[test]
    fn a_failed_write_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.data");
        let source = Ramp {
            lost: Some("b"),
            ..Ramp::new(&[("a", &[3]), ("b", &[4])])
        };
        let (a, b) = (weight("a", DType::F32, &[3]), weight("b", DType::F32, &[4]));
        let error = write_data(&path, [&a, &b], &source, &mut |_, _| {}).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit()),
            ("weight b: gone", Exit::Model)
        );
        let short = Weight {
            stored: vec![5],
            shape: vec![5],
            ..a.clone()
        };
        let error = write_data(&path, [&short], &source, &mut |_, _| {}).unwrap_err();
        assert_eq!(error.to_string(), "weight a wants 5 elements, got 3");
        let other = Weight {
            shape: vec![3, 1],
            ..a.clone()
        };
        let error = write_data(&path, [&a, &other], &source, &mut |_, _| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            "weight a is f32 [3] from a [3] in one graph and f32 [3, 1] from a [3] in another"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error =
            write_data(&dir.path().join("no/w.data"), [&a], &source, &mut |_, _| {}).unwrap_err();
        assert_eq!(error.exit(), Exit::Input);
    }

    fn graph(source: &BTreeMap<String, Vec<usize>>) -> Graph {
        let b = Builder::new("t", source);
        let (s, x) = (b.root().pp("q"), b.input(&X));
        let w = s.weight_as("weight", [3, 4], Transform::Transpose2);
        b.output(&Y, s.out((x * 0.5).softmax(-1).matmul(w)));
        b.finish().unwrap()
    }

    #[test]
    fn a_model_holds_types_shapes_and_places_of_weights() {
        let g = graph(&BTreeMap::from([("q.weight".to_owned(), vec![3, 4])]));
        let missing = to_model(&g, WeightPlacement::External(&DataLayout::new())).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "graph t: weight q.weight|transpose is in no data file"
        );
        let placed = Placed {
            file: "m.data".into(),
            offset: 512,
            length: 48,
        };
        let layout = DataLayout::from([("q.weight|transpose".to_owned(), placed)]);
        let model = to_model(&g, WeightPlacement::External(&layout)).unwrap();
        let again = ModelProto::decode(model.encode_to_vec().as_slice()).unwrap();
        assert_eq!(again, model);
        let graph = model.graph.unwrap();
        let external = graph
            .initializer
            .iter()
            .find(|t| t.data_location == Some(1))
            .unwrap();
        let place: Vec<&str> = external
            .external_data
            .iter()
            .filter_map(|e| e.value.as_deref())
            .collect();
        assert_eq!(
            (place, external.dims.as_slice()),
            (vec!["m.data", "512", "48"], [4, 3].as_slice())
        );
        assert_eq!(
            graph.input,
            [value_info(
                "x",
                &Fact {
                    dtype: DType::F32,
                    dims: X.dims()
                }
            )]
        );
        let axis = graph
            .node
            .iter()
            .flat_map(|n| &n.attribute)
            .find(|a| a.name.as_deref() == Some("axis"))
            .unwrap();
        assert_eq!((axis.i, axis.r#type), (Some(-1), Some(2)));
        assert_eq!(
            (model.ir_version, model.opset_import[0].version),
            (Some(12), Some(24))
        );
    }

    #[test]
    fn without_bytes_the_weights_are_inputs() {
        let g = graph(&BTreeMap::from([("q.weight".to_owned(), vec![3, 4])]));
        let graph = to_model(&g, WeightPlacement::AsInputs)
            .unwrap()
            .graph
            .unwrap();
        let names: Vec<&str> = graph
            .input
            .iter()
            .filter_map(|i| i.name.as_deref())
            .collect();
        assert_eq!(names, ["x", "q.weight|transpose"]);
        assert!(graph.initializer.iter().all(|t| t.data_location.is_none()));
    }
}
