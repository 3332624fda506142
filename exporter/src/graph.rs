//! A graph as plain data, and the typed builder that makes one.
//!
//! A [`Builder`] hands out [`Scope`]s (places in the checkpoint) and [`Value`]s (tensors of the
//! graph). An operator checks shapes and types at once and records a fault; [`Builder::finish`]
//! returns the [`Graph`], or every fault together. A graph holds no bytes of weights: [`data`]
//! makes them later, one block of a file at a time. Not here: layers with weights (`nn.rs`),
//! models, optimisations.
//!
//! One name is used throughout: checkpoint key = scope = node prefix = tap name.
//!
//! ```
//! use engines::contract::{DType, Port};
//! use exporter::graph::{Builder, Transform};
//! use std::collections::BTreeMap;
//!
//! const X: Port = Port::new("x", DType::F32, "B 4");
//! const Y: Port = Port::new("y", DType::F32, "B 3");
//!
//! // The checkpoint's names and shapes; a linear layer is stored as [out, in].
//! let checkpoint = BTreeMap::from([("head.weight".to_owned(), vec![3, 4])]);
//! let builder = Builder::new("example", &checkpoint);
//! let head = builder.root().pp("head");
//! let weight = head.weight_as("weight", [3, 4], Transform::Transpose2);
//! let y = head.out(builder.input(&X).matmul(weight));
//! builder.output(&Y, y);
//!
//! let graph = builder.finish()?;
//! assert_eq!(graph.taps(), ["head"]);
//! assert_eq!(graph.weights[0].shape, [4, 3]);
//!
//! // A wrong shape is a fault that names the key and both shapes.
//! let builder = Builder::new("example", &checkpoint);
//! builder.root().weight("head.weight", [3, 5]);
//! let faults = builder.finish().unwrap_err().to_string();
//! assert!(faults.contains("head.weight") && faults.contains("[3, 4]"), "{faults}");
//! # Ok::<(), exporter::graph::GraphErrors>(())
//! ```
mod builder;
pub mod data;
pub mod error;
pub mod lower;
mod ops;
mod print;
pub mod write;

pub use builder::{Builder, Fault, GraphError, GraphErrors, IntoDim, Scope, Value, WeightSource};
pub use ops::{AttentionOptions, attention, tensor_scatter};

use engines::contract::{DType, NEXT};
use engines::dim::{Bindings, Dim};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Index of a value in [`Graph::values`].
pub type ValueId = usize;

/// One built graph: the content of an ONNX file without the bytes of its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name of the component.
    pub name: String,
    /// Operators; each stands after the operators that it reads from.
    pub nodes: Vec<Node>,
    /// Every tensor: inputs, weights, constants and node outputs.
    pub values: Vec<ValueInfo>,
    /// Tensors of the checkpoint, in the order of their first use.
    pub weights: Vec<Weight>,
    /// Small tensors embedded in the graph.
    pub constants: Vec<Constant>,
    /// Graph inputs, in the order of the contract.
    pub inputs: Vec<ValueId>,
    /// Graph outputs, in the order of the contract.
    pub outputs: Vec<ValueId>,
    /// Module paths, as PyTorch hooks would name them, each with the value that the module ends on.
    /// They are in the order of construction; two paths may end on one value.
    pub taps: Vec<(String, ValueId)>,
    /// Texts for the ONNX file: component, contract fingerprint, exporter version.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor's name, type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Name, unique in the graph.
    pub name: String,
    /// Type and shape.
    pub fact: Fact,
}

/// Element type and symbolic shape, written `f32 [B, 3*h*w, 256]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Shape; the empty list is a scalar.
    pub dims: Vec<Dim>,
}

/// One operator of the default ONNX domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique name: the scope, the operator, and a count when it is needed.
    pub name: String,
    /// Module path that the node belongs to.
    pub scope: String,
    /// ONNX operator.
    pub op: &'static str,
    /// Inputs; `None` is an optional input that is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs.
    pub outputs: Vec<ValueId>,
    /// Attributes by their ONNX names.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// A node's attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A word from the operator's list.
    Text(&'static str),
}

/// A checkpoint tensor and the form in which the graph takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Initializer name: the key, then the transform and any type other than f32.
    pub name: String,
    /// Checkpoint key.
    pub key: String,
    /// The change between checkpoint and graph.
    pub transform: Transform,
    /// Type in the graph.
    pub dtype: DType,
    /// Shape in the checkpoint.
    pub stored: Vec<usize>,
    /// Shape in the graph.
    pub shape: Vec<usize>,
    /// The value of the graph.
    pub value: ValueId,
}

impl Weight {
    /// Returns the bytes of the weight in its data file.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }

    /// Returns every checkpoint key that the weight is made of.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys = vec![self.key.as_str()];
        self.transform.more_keys(&mut keys);
        keys
    }
}

/// The change from a stored tensor to a graph's tensor. It is recorded while a graph is built and
/// applied while the data file is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transform {
    /// No change.
    Identity,
    /// `[a, b] -> [b, a]`.
    Transpose2,
    /// Takes one index of an axis and drops the axis.
    Select {
        /// Counted from the front.
        axis: usize,
        /// Which slice.
        index: usize,
    },
    /// Adds one index of an axis to the index before it, so that the axis is one shorter.
    Fold {
        /// Counted from the front.
        axis: usize,
        /// The index that takes the sum.
        index: usize,
    },
    /// Another shape with the same elements.
    Reshape(Vec<usize>),
    /// Joins this tensor and the tensors of other keys along one axis.
    Concat {
        /// Counted from the front.
        axis: usize,
        /// Names in the same scope (the builder makes them full keys).
        with: Vec<String>,
    },
    /// Several changes, one after the other.
    Chain(Vec<Transform>),
}

impl Transform {
    fn more_keys<'a>(&'a self, keys: &mut Vec<&'a str>) {
        match self {
            Self::Concat { with, .. } => keys.extend(with.iter().map(String::as_str)),
            Self::Chain(steps) => steps.iter().for_each(|t| t.more_keys(keys)),
            _ => {}
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("as stored"),
            Self::Transpose2 => f.write_str("transpose"),
            Self::Select { axis, index } => write!(f, "select{axis}.{index}"),
            Self::Fold { axis, index } => write!(f, "fold{axis}.{index}"),
            Self::Reshape(shape) => write!(f, "reshape{shape:?}"),
            Self::Concat { axis, with } => write!(f, "concat{axis}({})", with.join(", ")),
            Self::Chain(steps) => f.write_str(
                &steps
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("|"),
            ),
        }
    }
}

/// A small tensor embedded in the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// The value of the graph.
    pub value: ValueId,
    /// Shape; the empty list is a scalar.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: ConstantData,
}

/// Elements of a [`Constant`].
#[derive(Clone, Debug, PartialEq)]
pub enum ConstantData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Floats with the range of 32 bits and the digits of 8.
    BF16(Vec<half::bf16>),
}

/// A tap that the graph lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("graph {graph} has no tap {wanted}; nearest is {nearest}")]
pub struct UnknownTap {
    /// Name of the component.
    pub graph: String,
    /// Path that the caller asked for.
    pub wanted: String,
    /// Path of the graph that begins most like it.
    pub nearest: String,
}

impl Graph {
    /// Returns the graph with symbols replaced by sizes, for example by the real sizes of the 14B
    /// model.
    #[must_use]
    pub fn bind(&self, bindings: &Bindings) -> Self {
        let mut graph = self.clone();
        for dim in graph.values.iter_mut().flat_map(|v| &mut v.fact.dims) {
            *dim = dim.bind(bindings);
        }
        graph
    }

    /// Returns the graph with the module path `from` renamed to `to` in every name. This removes
    /// the difference between the layers of a stack. Taps keep their names, because a caller asks
    /// for the tap of one layer.
    #[must_use]
    pub fn renamed(&self, places: &[(String, String)]) -> Self {
        let rename = |text: &mut String| {
            for (from, to) in places {
                let rest = text.strip_prefix(from.as_str());
                if let Some(rest) = rest.filter(|r| r.is_empty() || r.starts_with(['.', '/'])) {
                    *text = format!("{to}{rest}");
                    return;
                }
            }
        };
        let mut graph = self.clone();
        graph.values.iter_mut().for_each(|v| rename(&mut v.name));
        for n in &mut graph.nodes {
            rename(&mut n.name);
            rename(&mut n.scope);
        }
        graph.weights.iter_mut().for_each(|w| rename(&mut w.name));
        graph
    }

    /// Returns every module path that can become an extra output, in the order of construction.
    pub fn taps(&self) -> Vec<&str> {
        self.taps.iter().map(|(path, _)| path.as_str()).collect()
    }

    /// Returns the path of every tap and the name of its value.
    pub fn tap_values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.taps
            .iter()
            .map(|(path, id)| (path.as_str(), self.values[*id].name.as_str()))
    }

    /// Returns the graph with the values at `paths` as extra outputs. Each output is named by its
    /// path, or `path.tap` when the graph already uses that name.
    ///
    /// # Errors
    /// A path that is no tap of the graph.
    pub fn with_taps<S: AsRef<str>>(&self, paths: &[S]) -> Result<Self, UnknownTap> {
        let mut graph = self.clone();
        for path in paths {
            graph.expose(path.as_ref())?;
        }
        Ok(graph)
    }

    fn expose(&mut self, path: &str) -> Result<(), UnknownTap> {
        let Some(&(_, id)) = self.taps.iter().find(|(p, _)| p == path) else {
            return Err(self.unknown_tap(path));
        };
        if self.values[id].name == path && self.nodes.iter().any(|n| n.outputs.contains(&id)) {
            if !self.outputs.contains(&id) {
                self.outputs.push(id);
            }
            return Ok(());
        }
        let copies = |n: &Node| n.op == "Identity" && n.scope == path && n.inputs == [Some(id)];
        if self.nodes.iter().any(copies) {
            return Ok(());
        }
        let taken = self.values.iter().any(|v| v.name == path);
        let name = if taken {
            format!("{path}.tap")
        } else {
            path.to_owned()
        };
        let copy = self.values.len();
        self.values.push(ValueInfo {
            name: name.clone(),
            fact: self.values[id].fact.clone(),
        });
        let node = Node {
            name: format!("{name}.Identity"),
            scope: path.to_owned(),
            op: "Identity",
            inputs: vec![Some(id)],
            outputs: vec![copy],
            attributes: Vec::new(),
        };
        self.nodes.push(node);
        self.outputs.push(copy);
        Ok(())
    }

    fn unknown_tap(&self, wanted: &str) -> UnknownTap {
        let common = |p: &str| {
            p.bytes()
                .zip(wanted.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        let nearest = self
            .taps()
            .into_iter()
            .max_by_key(|p| (common(p), std::cmp::Reverse(p.len())))
            .unwrap_or("none at all");
        UnknownTap {
            graph: self.name.clone(),
            wanted: wanted.to_owned(),
            nearest: nearest.to_owned(),
        }
    }

    /// Returns every checkpoint key that the graph reads.
    pub fn used_keys(&self) -> BTreeSet<String> {
        self.weights
            .iter()
            .flat_map(|w| w.keys())
            .map(str::to_owned)
            .collect()
    }

    /// Returns the state outputs: the outputs whose name is an input's name and [`NEXT`].
    pub fn state_outputs(&self) -> Vec<&str> {
        let inputs: BTreeSet<&str> = self
            .inputs
            .iter()
            .map(|&i| self.values[i].name.as_str())
            .collect();
        let names = self.outputs.iter().map(|&o| self.values[o].name.as_str());
        names
            .filter(|n| n.strip_suffix(NEXT).is_some_and(|n| inputs.contains(n)))
            .collect()
    }
}
