//! Ports and contracts: names, element types and symbolic shapes that exporter, artefact and
//! runtime agree on. The contracts themselves stand in [`crate::components`].

pub use crate::dtype::DType;

use crate::dim::{Bindings, Dim};
use crate::recipe::Recipe;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Element type of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// One type in every export: values that the host computes or reads.
    Is(DType),
    /// The recipe's compute type: values that stay on the device, such as hidden states, keys,
    /// values and feature caches.
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

/// One named tensor of a graph's rim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Name of the tensor in the graph.
    pub name: &'static str,
    /// Element type.
    pub elem: Elem,
    /// Shape: dimensions without spaces inside, with spaces between, such as `"B 16 F 2*h 2*w"`.
    /// The empty text is a scalar. [`crate::components::symbols`] lists the symbols.
    pub shape: &'static str,
}

impl Port {
    /// Makes a port of one type in every export.
    pub const fn new(name: &'static str, dtype: DType, shape: &'static str) -> Self {
        Self {
            name,
            elem: Elem::Is(dtype),
            shape,
        }
    }

    /// Makes a port of the recipe's compute type.
    pub const fn compute(name: &'static str, shape: &'static str) -> Self {
        Self {
            name,
            elem: Elem::Compute,
            shape,
        }
    }

    /// Returns the element type in an export of `recipe`.
    pub fn dtype(&self, recipe: Recipe) -> DType {
        match self.elem {
            Elem::Is(dtype) => dtype,
            Elem::Compute => recipe.compute(),
        }
    }

    /// Prints type and shape as errors show them, such as `f32 [B, M, T]`.
    pub fn fact(&self, recipe: Recipe) -> String {
        format!("{} [{}]", self.dtype(recipe), self.list())
    }

    fn list(&self) -> String {
        self.shape.split_whitespace().collect::<Vec<_>>().join(", ")
    }

    /// Returns the shape as dimensions.
    ///
    /// # Panics
    /// If the shape is malformed; a unit test parses the shape of every contract.
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
/// A state port is an input `name` and an output `name.next` of the same type and shape. With
/// [`StateKind::InPlace`] both are bound to the same memory, and the graph writes part of it.
///
/// ```
/// use engines::components::text;
/// use engines::contract::DType;
/// use engines::recipe::Recipe;
///
/// let contract = text::ENCODER;
/// let inputs: Vec<&str> = contract.graph_inputs().map(|port| port.name).collect();
/// assert_eq!(inputs, ["ids"]);
/// assert_eq!(text::IDS.dtype(Recipe::Bf16), DType::I64);
/// assert_eq!(text::CONTEXT_ROWS.fact(Recipe::Bf16), "f32 [1, t, T]");
/// println!("{contract}  fingerprint {}", contract.fingerprint());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contract {
    /// Name of the graph, without a layer's number.
    pub name: &'static str,
    /// Inputs in the graph's order.
    pub inputs: &'static [Port],
    /// State in the graph's order, after the inputs and after the outputs.
    pub state: &'static [Port],
    /// Way in which the graph hands its state on.
    pub state_kind: StateKind,
    /// Outputs in the graph's order.
    pub outputs: &'static [Port],
    /// Place of the graph's weights.
    pub weights: Weights,
}

/// Place of a graph's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Initializers: the graph is loaded with its weights.
    Inside,
    /// Inputs, bound for each call. One graph serves every layer, and weights lie or stream
    /// wherever the plan puts them.
    Bound,
}

/// Way in which a graph hands its state on.
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
    /// Lists every graph input in order: inputs, then the state that the graph reads.
    pub fn graph_inputs(&self) -> impl Iterator<Item = &'static Port> + use<> {
        let state = if self.state_kind == StateKind::Produce {
            &[][..]
        } else {
            self.state
        };
        self.inputs.iter().chain(state)
    }

    /// Lists every graph output as (name, port): outputs, then `NAME.next` of each state port.
    pub fn graph_outputs(&self) -> impl Iterator<Item = (String, &'static Port)> + use<> {
        let state = self.state.iter().map(|p| (format!("{}{NEXT}", p.name), p));
        self.outputs
            .iter()
            .map(|p| (p.name.to_owned(), p))
            .chain(state)
    }

    /// Returns the contract without the state ports for which `absent` is true. The same ports give
    /// the same contract again: each lives as long as the process, because sessions refer to it.
    #[must_use]
    pub fn without_state(&'static self, absent: impl Fn(&Port) -> bool) -> &'static Self {
        static NARROWED: Mutex<Vec<&Contract>> = Mutex::new(Vec::new());
        let kept = self.state.iter().filter(|port| !absent(port));
        let kept: Vec<Port> = kept.copied().collect();
        if kept.len() == self.state.len() {
            return self;
        }
        let mut known = NARROWED.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |c: &Self| {
            let whole = Self {
                state: self.state,
                ..*c
            };
            c.state == kept && whole == *self
        };
        if let Some(found) = known.iter().find(|c| same(c)) {
            return found;
        }
        let narrowed = Box::leak(Box::new(Self {
            state: Vec::leak(kept),
            ..*self
        }));
        known.push(narrowed);
        narrowed
    }

    /// Hashes every name, type and shape. Equal contracts have equal fingerprints on every machine.
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
    /// Returns the values of the symbols that the checkpoint fixes. The other symbols are dynamic.
    fn bindings(&self) -> Bindings;
}
