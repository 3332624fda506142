//! Ports and contracts: the names, element types and symbolic shapes that exporter, artefact and runtime agree on.
//! Everything here is data; the lists themselves stand in [`crate::components`].
pub use crate::dtype::DType;

use crate::dim::{Bindings, Dim};
use crate::recipe::Recipe;
use std::fmt;

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// The same in every export: what the host computes or reads.
    Is(DType),
    /// What the recipe computes in: what stays on the device (hidden states, keys, values, feature caches).
    Compute,
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(dtype) => dtype.fmt(f),
            Self::Compute => f.write_str("compute"),
        }
    }
}

/// One named tensor of a graph's rim. `shape` is written as in the docs: dimensions without spaces, separated by spaces,
/// e.g. `"B 16 F 2*h 2*w"`; the empty string is a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    pub name: &'static str,
    pub elem: Elem,
    pub shape: &'static str,
}

impl Port {
    /// A port of one type in every export.
    pub const fn new(name: &'static str, dtype: DType, shape: &'static str) -> Self {
        Self {
            name,
            elem: Elem::Is(dtype),
            shape,
        }
    }

    /// A port of the recipe's compute type.
    pub const fn compute(name: &'static str, shape: &'static str) -> Self {
        Self {
            name,
            elem: Elem::Compute,
            shape,
        }
    }

    /// The element type in an export of `recipe`.
    pub fn dtype(&self, recipe: Recipe) -> DType {
        match self.elem {
            Elem::Is(dtype) => dtype,
            Elem::Compute => recipe.compute(),
        }
    }

    /// Type and shape as errors show them: `f32 [B, M, T]`.
    pub fn fact(&self, recipe: Recipe) -> String {
        format!("{} [{}]", self.dtype(recipe), self.list())
    }

    fn list(&self) -> String {
        self.shape.split_whitespace().collect::<Vec<_>>().join(", ")
    }

    /// The shape as dimensions. Panics on a malformed const; a unit test parses every one.
    pub fn dims(&self) -> Vec<Dim> {
        self.shape
            .split_whitespace()
            .map(|d| Dim::parse(d).unwrap_or_else(|e| panic!("port {}: {e}", self.name)))
            .collect()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.name, self.elem, self.list())
    }
}

/// The whole rim of one graph.
///
/// A state port is an input `name` and an output `name.next` of the same type and shape. With [`StateKind::InPlace`] both are bound
/// to the same memory and the graph writes only part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contract {
    pub name: &'static str,
    pub inputs: &'static [Port],
    pub state: &'static [Port],
    pub state_kind: StateKind,
    pub outputs: &'static [Port],
    pub weights: Weights,
}

/// Where a graph's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Initializers: the graph is loaded with them.
    Inside,
    /// Inputs, bound for each call: one graph serves every layer, and the weights may lie or stream where the plan says.
    Bound,
}

/// How a graph hands its state on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Input and output share memory (KV rings by TensorScatter).
    InPlace,
    /// A new tensor replaces the old one (VAE feature caches).
    Replace,
    /// The graph only produces the state (first frame of a VAE); it has no state inputs.
    Produce,
}

/// Suffix of a state port's output.
pub const NEXT: &str = ".next";

impl Contract {
    /// Every graph input in order: inputs, then state (none when the state is only produced).
    pub fn graph_inputs(&self) -> impl Iterator<Item = &'static Port> + use<> {
        let state = if self.state_kind == StateKind::Produce {
            &[][..]
        } else {
            self.state
        };
        self.inputs.iter().chain(state)
    }

    /// Every graph output as (name, port): outputs, then `state.next`.
    pub fn graph_outputs(&self) -> impl Iterator<Item = (String, &'static Port)> + use<> {
        let state = self.state.iter().map(|p| (format!("{}{NEXT}", p.name), p));
        self.outputs
            .iter()
            .map(|p| (p.name.to_owned(), p))
            .chain(state)
    }

    /// Hash of every name, type and shape; equal contracts have equal fingerprints on every machine.
    pub fn fingerprint(&self) -> String {
        blake3::hash(self.to_string().as_bytes()).to_hex()[..16].to_owned()
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        for p in self.inputs {
            writeln!(f, "  in    {p}")?;
        }
        for p in self.state {
            writeln!(
                f,
                "  state {p}{}",
                match self.state_kind {
                    StateKind::InPlace => " in place",
                    StateKind::Replace => "",
                    StateKind::Produce => " produced",
                }
            )?;
        }
        for p in self.outputs {
            writeln!(f, "  out   {p}")?;
        }
        match self.weights {
            Weights::Inside => Ok(()),
            Weights::Bound => writeln!(f, "  weights bound"),
        }
    }
}

/// Sizes that bind a contract's symbols, read from a checkpoint (see [`crate::components`]).
pub trait Sizes {
    /// Values of the symbols that the checkpoint fixes; what stays unbound is dynamic.
    fn bindings(&self) -> Bindings;
}
