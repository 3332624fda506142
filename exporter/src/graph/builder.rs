//! The builder of graphs: one arena behind two kinds of `Copy` handles, [`Scope`] and [`Value`].
//!
//! It works like a compiler's front end. A faulty operator is recorded with its scope, operands and
//! source line, and returns a *poisoned* value. Later operators accept a poisoned value in silence,
//! so one fault gives one message, and all faults are reported together. An unknown dimension (`?`)
//! matches every dimension for the same reason. Not here: the operators (`ops.rs`).
use super::print::Dims;
use super::{
    Attribute, Constant, ConstantData, Fact, Graph, Node, Transform, ValueId, ValueInfo, Weight,
};
use engines::contract::{Contract, DType, Port};
use engines::dim::{Bindings, Dim};
use engines::error_kind::ErrorKind;
use engines::recipe::Recipe;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::panic::Location;

/// The names and shapes of a checkpoint's tensors, without bytes.
pub trait WeightSource {
    /// Returns the shape of a stored tensor, or `None` for an unknown key.
    fn shape(&self, key: &str) -> Option<Vec<usize>>;
    /// Returns every key.
    fn keys(&self) -> Vec<String>;
    /// Returns the file or the folder, when there is one.
    fn origin(&self) -> Option<String> {
        None
    }
}

impl WeightSource for BTreeMap<String, Vec<usize>> {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.get(key).cloned()
    }

    fn keys(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// A value that can stand for a dimension: a [`Dim`], a whole number, or a reference to either.
pub trait IntoDim {
    /// Returns the dimension.
    fn into_dim(self) -> Dim;
}

impl IntoDim for Dim {
    fn into_dim(self) -> Dim {
        self
    }
}

impl<T: IntoDim + Clone> IntoDim for &T {
    fn into_dim(self) -> Dim {
        self.clone().into_dim()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {
        $(impl IntoDim for $number {
            fn into_dim(self) -> Dim {
                Dim::from(i64::try_from(self).unwrap_or(i64::MAX))
            }
        })*
    };
}
whole_numbers!(i64, i32, u32, usize);

/// Returns an unknown dimension, which matches every dimension.
pub(super) fn unknown() -> Dim {
    Dim::symbol("?")
}

pub(super) fn is_unknown(dim: &Dim) -> bool {
    dim.as_const().is_none() && dim.to_string().contains('?')
}

/// Returns the common dimension of two dimensions that must be equal.
pub(super) fn same(a: &Dim, b: &Dim) -> Option<Dim> {
    match (is_unknown(a), is_unknown(b)) {
        (true, _) => Some(b.clone()),
        (_, true) => Some(a.clone()),
        _ => (a == b).then(|| a.clone()),
    }
}

fn fits(want: &Fact, got: &Fact) -> bool {
    want.dtype == got.dtype
        && want.dims.len() == got.dims.len()
        && want
            .dims
            .iter()
            .zip(&got.dims)
            .all(|(a, b)| same(a, b).is_some())
}

/// A fault of a graph under construction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The operands of an operator do not fit each other.
    #[error("{op}({}): {reason}", .operands.join(", "))]
    Operands {
        /// ONNX operator.
        op: &'static str,
        /// Types and shapes of the operands.
        operands: Vec<String>,
        /// Message: the wanted and the given operand.
        reason: String,
    },
    /// The checkpoint lacks a tensor.
    #[error("weight {key} {want} is missing from the checkpoint")]
    Missing {
        /// Checkpoint key.
        key: String,
        /// Shape that the model wants.
        want: String,
    },
    /// A tensor of the checkpoint has another shape.
    #[error("weight {key} wants {want}, checkpoint has {got:?}")]
    Misshaped {
        /// Checkpoint key.
        key: String,
        /// Shape that the model wants.
        want: String,
        /// Shape that is stored.
        got: Vec<usize>,
    },
    /// A transform does not fit the shape of its tensor.
    #[error("weight {key} {dims}: {reason}")]
    Transform {
        /// Checkpoint key.
        key: String,
        /// Stored shape.
        dims: String,
        /// Message: the wanted and the given shape.
        reason: String,
    },
    /// No graph reads a tensor of the checkpoint.
    #[error("weight {key} {got:?} of the checkpoint is not used")]
    Unused {
        /// Checkpoint key.
        key: String,
        /// Shape that is stored.
        got: Vec<usize>,
    },
    /// A graph output differs from its port.
    #[error("output {port} wants {want}, graph gives {got}")]
    Port {
        /// Port name.
        port: String,
        /// Type and shape in the contract.
        want: String,
        /// Type and shape of the value.
        got: String,
    },
    /// The graph's inputs or outputs differ from the contract's.
    #[error("contract {contract} wants {side} {want}, graph has {got}")]
    Rim {
        /// Contract name.
        contract: &'static str,
        /// `inputs` or `outputs`.
        side: &'static str,
        /// Names of the contract's ports.
        want: String,
        /// Names of the graph's ports.
        got: String,
    },
    /// The builder was used in a wrong order.
    #[error("{reason}")]
    Misuse {
        /// The wrong call.
        reason: &'static str,
    },
}

/// A [`Fault`] with its place: the module path that claimed it, and the line of the model that
/// caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphError {
    /// Component and module path.
    pub scope: String,
    /// The fault.
    pub fault: Fault,
    /// Source line of the model.
    pub at: &'static Location<'static>,
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({}:{})",
            self.scope,
            self.fault,
            self.at.file(),
            self.at.line()
        )
    }
}

impl std::error::Error for GraphError {}

/// All faults of a graph, in the order of construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphErrors(pub Vec<GraphError>);

impl GraphErrors {
    /// Returns the kind of failure: the checkpoint does not fit the model.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Model
    }
}

impl fmt::Display for GraphErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            &self
                .0
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n"),
        )
    }
}

impl std::error::Error for GraphErrors {}

/// Builds one [`Graph`].
pub struct Builder<'w> {
    source: &'w dyn WeightSource,
    recipe: Recipe,
    state: RefCell<State>,
}

/// A place in the checkpoint and in the module tree. It is `Copy`, and comes from [`Builder::root`]
/// and [`Scope::pp`].
#[derive(Clone, Copy)]
pub struct Scope<'g> {
    builder: &'g Builder<'g>,
    id: usize,
}

/// A tensor of the graph. It is `Copy`, and has arithmetic and the operators of `ops.rs`.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    builder: &'g Builder<'g>,
    id: ValueId,
}

#[derive(Default)]
struct State {
    name: String,
    bindings: Bindings,
    contract: Option<&'static Contract>,
    /// Facts of the values; `None` is a poisoned value.
    values: Vec<Option<Fact>>,
    names: HashMap<ValueId, String>,
    nodes: Vec<Draft>,
    weights: Vec<Weight>,
    constants: Vec<Constant>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    scopes: Vec<Place>,
    taps: Vec<(String, ValueId)>,
    errors: Vec<Suspect>,
}

/// A node before it has a scope and a name.
struct Draft {
    op: &'static str,
    scope: Option<usize>,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<ValueId>,
    attributes: Vec<(&'static str, Attribute)>,
}

/// An error before a scope claims it.
struct Suspect {
    scope: Option<usize>,
    fault: Fault,
    at: &'static Location<'static>,
}

struct Place {
    path: String,
    /// Nodes and errors that are older than the scope, which it cannot claim.
    first_node: usize,
    first_error: usize,
}

impl State {
    fn place(&mut self, path: String) -> usize {
        self.scopes.push(Place {
            path,
            first_node: self.nodes.len(),
            first_error: self.errors.len(),
        });
        self.scopes.len() - 1
    }

    fn add(&mut self, fact: Option<Fact>) -> ValueId {
        self.values.push(fact);
        self.values.len() - 1
    }

    fn record(&mut self, scope: Option<usize>, fault: Fault, at: &'static Location<'static>) {
        self.errors.push(Suspect { scope, fault, at });
    }

    /// Returns the fact with each bare symbol that no input has replaced by an unknown dimension.
    /// Only the graph knows such a length, so it matches every dimension.
    fn freed(&self, want: Fact) -> Fact {
        let given: Vec<&Dim> = self
            .inputs
            .iter()
            .filter_map(|&i| self.values[i].as_ref())
            .flat_map(|f| &f.dims)
            .collect();
        let dims = want.dims.into_iter().map(|d| {
            if d.as_symbol().is_some() && !given.contains(&&d) {
                unknown()
            } else {
                d
            }
        });
        Fact {
            dims: dims.collect(),
            ..want
        }
    }

    fn named(&self, name: &str) -> Option<ValueId> {
        self.names
            .iter()
            .find(|(_, n)| *n == name)
            .map(|(&id, _)| id)
    }
}

impl<'w> Builder<'w> {
    /// Returns an empty graph over the shapes of a checkpoint.
    pub fn new(name: &str, source: &'w dyn WeightSource) -> Self {
        let mut state = State {
            name: name.to_owned(),
            ..State::default()
        };
        state.place(String::new());
        Self {
            source,
            recipe: Recipe::Fp32,
            state: RefCell::new(state),
        }
    }

    /// Returns the builder with another precision than f32. Call it before the first value.
    #[must_use]
    pub fn with_recipe(self, recipe: Recipe) -> Self {
        Self { recipe, ..self }
    }

    /// Returns the precision of the graph.
    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Returns the scope at the top of the checkpoint.
    pub fn root(&'w self) -> Scope<'w> {
        Scope {
            builder: self,
            id: 0,
        }
    }

    /// Sets the sizes of symbols in all later ports and dimensions. Other symbols stay symbols.
    /// Call it before the first input.
    #[track_caller]
    pub fn bind(&self, bindings: Bindings) {
        let mut state = self.state.borrow_mut();
        if !state.values.is_empty() {
            state.record(
                None,
                Fault::Misuse {
                    reason: "sizes must be bound before the first value",
                },
                Location::caller(),
            );
        }
        state.bindings.extend(bindings);
    }

    /// Sets the contract of the graph. [`Self::finish`] compares inputs and outputs with it and
    /// takes its order.
    pub fn contract(&self, contract: &'static Contract) {
        self.state.borrow_mut().contract = Some(contract);
    }

    /// Returns a graph input. The same port gives the same value again. A state is an input like
    /// any other.
    pub fn input(&'w self, port: &Port) -> Value<'w> {
        let mut state = self.state.borrow_mut();
        if let Some(id) = state.named(port.name) {
            return Value { builder: self, id };
        }
        let dims = port
            .dims()
            .iter()
            .map(|d| d.bind(&state.bindings))
            .collect();
        let id = state.add(Some(Fact {
            dtype: port.dtype(self.recipe),
            dims,
        }));
        state.names.insert(id, port.name.to_owned());
        state.inputs.push(id);
        Value { builder: self, id }
    }

    /// Makes a value a graph output. Its type and shape must be the port's.
    #[track_caller]
    pub fn output(&'w self, port: &Port, v: Value<'w>) {
        self.output_named(port.name, port, v);
    }

    /// Makes a value a graph output with another name than its port, for example the `name.next` of
    /// a state.
    #[track_caller]
    pub fn output_named(&'w self, name: &str, port: &Port, v: Value<'w>) {
        let want = Fact {
            dtype: port.dtype(self.recipe),
            dims: self.dims(port.dims()),
        };
        let mut state = self.state.borrow_mut();
        let want = state.freed(want);
        let Some(got) = state.values[v.id].clone() else {
            return;
        };
        if !fits(&want, &got) {
            let fault = Fault::Port {
                port: name.to_owned(),
                want: want.to_string(),
                got: got.to_string(),
            };
            return state.record(Some(0), fault, Location::caller());
        }
        // An output needs a name of its own, so an input, a weight or a second output gets a copy.
        let computed = state.nodes.iter().any(|n| n.outputs.contains(&v.id));
        let id = if computed && !state.names.contains_key(&v.id) {
            v.id
        } else {
            let id = state.add(Some(got));
            let draft = Draft {
                op: "Identity",
                scope: Some(0),
                inputs: vec![Some(v.id)],
                outputs: vec![id],
                attributes: Vec::new(),
            };
            state.nodes.push(draft);
            id
        };
        state.names.insert(id, name.to_owned());
        state.outputs.push(id);
    }

    /// Returns a small f32 tensor that is embedded in the graph.
    #[track_caller]
    pub fn const_f32(
        &'w self,
        dims: impl IntoIterator<Item: IntoDim>,
        data: Vec<f32>,
    ) -> Value<'w> {
        self.constant(
            &self.dims(dims),
            ConstantData::F32(data),
            Location::caller(),
        )
    }

    /// Returns a small i64 tensor that is embedded in the graph.
    #[track_caller]
    pub fn const_i64(
        &'w self,
        dims: impl IntoIterator<Item: IntoDim>,
        data: Vec<i64>,
    ) -> Value<'w> {
        self.constant(
            &self.dims(dims),
            ConstantData::I64(data),
            Location::caller(),
        )
    }

    /// Returns a number of shape `[]`.
    pub fn scalar(&'w self, x: f32) -> Value<'w> {
        self.const_f32([0i64; 0], vec![x])
    }

    /// Returns ones of a float type that are embedded in the graph.
    #[track_caller]
    pub(super) fn ones(&'w self, dims: &[Dim], count: usize, dtype: DType) -> Value<'w> {
        let data = match dtype {
            DType::BF16 => ConstantData::BF16(vec![half::bf16::ONE; count]),
            _ => ConstantData::F32(vec![1.0; count]),
        };
        self.constant(dims, data, Location::caller())
    }

    fn constant(
        &'w self,
        dims: &[Dim],
        data: ConstantData,
        at: &'static Location<'static>,
    ) -> Value<'w> {
        let mut state = self.state.borrow_mut();
        let (dtype, len) = match &data {
            ConstantData::F32(x) => (DType::F32, x.len()),
            ConstantData::I64(x) => (DType::I64, x.len()),
            ConstantData::BF16(x) => (DType::BF16, x.len()),
        };
        if dims.iter().any(is_unknown) {
            let id = state.add(None);
            return Value { builder: self, id };
        }
        let shape: Option<Vec<usize>> = dims
            .iter()
            .map(|d| d.as_const().and_then(|c| usize::try_from(c).ok()))
            .collect();
        let Some(shape) = shape.filter(|s| s.iter().product::<usize>() == len) else {
            let reason = format!("{len} elements do not fill {}", Dims(dims));
            state.record(
                None,
                Fault::Operands {
                    op: "Constant",
                    operands: vec![dtype.to_string()],
                    reason,
                },
                at,
            );
            let id = state.add(None);
            return Value { builder: self, id };
        };
        let equal = |c: &&Constant| c.shape == shape && same_bits(&c.data, &data);
        if let Some(c) = state.constants.iter().find(equal) {
            return Value {
                builder: self,
                id: c.value,
            };
        }
        let id = state.add(Some(Fact {
            dtype,
            dims: dims.to_vec(),
        }));
        let name = constant_name(&shape, &data, state.constants.len());
        state.names.insert(id, name);
        state.constants.push(Constant {
            value: id,
            shape,
            data,
        });
        Value { builder: self, id }
    }

    /// Records an error for each key under `prefixes` (but not under `ignore`) that this graph does
    /// not read. Where several graphs share a checkpoint, compare the union of their
    /// [`Self::used_keys`] instead. Call it last.
    #[track_caller]
    pub fn unused(&self, prefixes: &[&str], ignore: &[&str]) {
        let used = self.used_keys();
        let under = |list: &[&str], key: &str| list.iter().any(|p| key.starts_with(p));
        for key in self.source.keys() {
            if under(prefixes, &key) && !under(ignore, &key) && !used.contains(&key) {
                let got = self.source.shape(&key).unwrap_or_default();
                self.state.borrow_mut().record(
                    Some(0),
                    Fault::Unused { key, got },
                    Location::caller(),
                );
            }
        }
    }

    /// Returns every checkpoint key that was read so far.
    pub fn used_keys(&self) -> BTreeSet<String> {
        self.state
            .borrow()
            .weights
            .iter()
            .flat_map(|w| w.keys())
            .map(str::to_owned)
            .collect()
    }

    /// Returns the graph.
    ///
    /// # Errors
    /// Every fault of the graph.
    #[track_caller]
    pub fn finish(self) -> Result<Graph, GraphErrors> {
        let mut state = self.state.into_inner();
        let metadata = state.settle_contract(Location::caller());
        if !state.errors.is_empty() {
            return Err(state.into_errors());
        }
        state.drop_unread_constants();
        Ok(state.into_graph(metadata))
    }

    /// Returns the dimensions with the bound symbols replaced.
    pub(super) fn dims(&self, dims: impl IntoIterator<Item: IntoDim>) -> Vec<Dim> {
        let dims: Vec<Dim> = dims.into_iter().map(IntoDim::into_dim).collect();
        let state = self.state.borrow();
        dims.iter().map(|d| d.bind(&state.bindings)).collect()
    }

    /// Adds a node. `infer` gives its outputs; a failure is recorded as a fault. A poisoned operand
    /// adds nothing.
    pub(super) fn emit<I: Into<Option<Value<'w>>>>(
        &'w self,
        at: &'static Location<'static>,
        op: &'static str,
        inputs: impl IntoIterator<Item = I>,
        attributes: Vec<(&'static str, Attribute)>,
        infer: impl FnOnce() -> Result<Vec<Fact>, String>,
    ) -> Option<Vec<Value<'w>>> {
        let inputs: Vec<Option<Value<'w>>> = inputs.into_iter().map(Into::into).collect();
        let operands: Vec<Value<'w>> = inputs.iter().flatten().copied().collect();
        if operands.iter().any(Value::is_poisoned) {
            return None;
        }
        let facts = match infer() {
            Ok(facts) => facts,
            Err(reason) => {
                self.fault(at, op, &operands, reason);
                return None;
            }
        };
        let mut state = self.state.borrow_mut();
        let outputs: Vec<ValueId> = facts.into_iter().map(|f| state.add(Some(f))).collect();
        let inputs = inputs.into_iter().map(|v| v.map(|v| v.id)).collect();
        state.nodes.push(Draft {
            op,
            scope: None,
            inputs,
            outputs: outputs.clone(),
            attributes,
        });
        Some(
            outputs
                .into_iter()
                .map(|id| Value { builder: self, id })
                .collect(),
        )
    }

    /// Records operands that do not fit each other, unless one is poisoned, and returns a poisoned
    /// value.
    pub(super) fn fault(
        &'w self,
        at: &'static Location<'static>,
        op: &'static str,
        operands: &[Value<'w>],
        reason: String,
    ) -> Value<'w> {
        if !operands.iter().any(Value::is_poisoned) {
            let operands = operands.iter().map(|v| v.fact().to_string()).collect();
            self.state.borrow_mut().record(
                None,
                Fault::Operands {
                    op,
                    operands,
                    reason,
                },
                at,
            );
        }
        self.poison()
    }

    pub(super) fn poison(&'w self) -> Value<'w> {
        Value {
            builder: self,
            id: self.state.borrow_mut().add(None),
        }
    }
}

impl State {
    /// Compares inputs and outputs with the contract, takes its order, and returns the metadata.
    fn settle_contract(&mut self, at: &'static Location<'static>) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from([
            ("component".to_owned(), self.name.clone()),
            ("exporter".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        let Some(contract) = self.contract else {
            return metadata;
        };
        metadata.insert("contract".to_owned(), contract.fingerprint());
        let inputs: Vec<String> = contract.graph_inputs().map(|p| p.name.to_owned()).collect();
        let outputs: Vec<String> = contract.graph_outputs().map(|(name, _)| name).collect();
        // A missing output may belong to an error that is already recorded.
        let clean = self.errors.is_empty();
        for (side, want) in [("inputs", inputs), ("outputs", outputs)] {
            let ids = if side == "inputs" {
                &mut self.inputs
            } else {
                &mut self.outputs
            };
            let mut got: Vec<(String, ValueId)> =
                ids.iter().map(|id| (self.names[id].clone(), *id)).collect();
            got.sort_by_key(|(name, _)| want.iter().position(|w| w == name));
            *ids = got.iter().map(|&(_, id)| id).collect();
            let got: Vec<String> = got.into_iter().map(|(name, _)| name).collect();
            if got != want && (clean || side == "inputs") {
                let (want, got) = (want.join(" "), got.join(" "));
                self.record(
                    Some(0),
                    Fault::Rim {
                        contract: contract.name,
                        side,
                        want,
                        got,
                    },
                    at,
                );
            }
        }
        metadata
    }

    /// Removes constants that no node reads: an operator may have taken another form.
    fn drop_unread_constants(&mut self) {
        let read: HashSet<ValueId> = self
            .nodes
            .iter()
            .flat_map(|n| n.inputs.iter().flatten().copied())
            .collect();
        self.constants.retain(|c| read.contains(&c.value));
    }

    fn into_graph(self, metadata: BTreeMap<String, String>) -> Graph {
        let (names, node_names) = (self.value_names(), self.node_names());
        // A poisoned value has recorded an error, or no node reads it.
        let facts = self.values.into_iter().map(|f| {
            f.unwrap_or(Fact {
                dtype: DType::F32,
                dims: Vec::new(),
            })
        });
        let values = names
            .into_iter()
            .zip(facts)
            .map(|(name, fact)| ValueInfo { name, fact })
            .collect();
        let node = |(n, name): (Draft, String)| Node {
            name,
            scope: self.scopes[n.scope.unwrap_or(0)].path.clone(),
            op: n.op,
            inputs: n.inputs,
            outputs: n.outputs,
            attributes: n.attributes,
        };
        Graph {
            name: self.name,
            nodes: self.nodes.into_iter().zip(node_names).map(node).collect(),
            values,
            weights: self.weights,
            constants: self.constants,
            inputs: self.inputs,
            outputs: self.outputs,
            taps: self.taps,
            metadata,
        }
    }

    fn into_errors(self) -> GraphErrors {
        let Self {
            name,
            scopes,
            errors,
            ..
        } = self;
        let errors = errors.into_iter().map(|e| {
            let path = &scopes[e.scope.unwrap_or(0)].path;
            let scope = if path.is_empty() {
                name.clone()
            } else {
                format!("{name}: {path}")
            };
            GraphError {
                scope,
                fault: e.fault,
                at: e.at,
            }
        });
        GraphErrors(errors.collect())
    }

    /// Returns the name of a node: the scope, the operator, and a count from the second one on.
    fn node_names(&self) -> Vec<String> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let name = |n: &Draft| {
            let path = &self.scopes[n.scope.unwrap_or(0)].path;
            let base = if path.is_empty() {
                n.op.to_owned()
            } else {
                format!("{path}.{}", n.op)
            };
            let count = seen.entry(base.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                base
            } else {
                format!("{base}_{count}")
            }
        };
        self.nodes.iter().map(name).collect()
    }

    /// Returns the name of a value: its port, weight or constant; else the first module path that
    /// ends on it; else its node.
    fn value_names(&self) -> Vec<String> {
        let mut names = self.names.clone();
        let mut taken: HashSet<String> = names.values().cloned().collect();
        for (path, id) in &self.taps {
            if !names.contains_key(id) && taken.insert(path.clone()) {
                names.insert(*id, path.clone());
            }
        }
        for (node, name) in self.nodes.iter().zip(self.node_names()) {
            for (i, id) in node.outputs.iter().enumerate() {
                names.entry(*id).or_insert_with(|| {
                    let mut name = if node.outputs.len() == 1 {
                        name.clone()
                    } else {
                        format!("{name}.{i}")
                    };
                    while !taken.insert(name.clone()) {
                        name.push('\'');
                    }
                    name
                });
            }
        }
        (0..self.values.len())
            .map(|id| names.remove(&id).unwrap_or_default())
            .collect()
    }
}

fn same_bits(a: &ConstantData, b: &ConstantData) -> bool {
    match (a, b) {
        (ConstantData::F32(a), ConstantData::F32(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (ConstantData::I64(a), ConstantData::I64(b)) => a == b,
        (ConstantData::BF16(a), ConstantData::BF16(b)) => a == b,
        _ => false,
    }
}

/// Returns the name of a constant. A small constant is named by its content, so that a printed
/// graph needs no table.
fn constant_name(shape: &[usize], data: &ConstantData, index: usize) -> String {
    match (shape, data) {
        ([], ConstantData::F32(x)) => format!("f32({})", x[0]),
        ([], ConstantData::I64(x)) => format!("i64({})", x[0]),
        ([0..=8], ConstantData::I64(x)) => format!("i64{x:?}"),
        (_, ConstantData::F32(_)) => format!("f32{shape:?}#{index}"),
        (_, ConstantData::I64(_)) => format!("i64{shape:?}#{index}"),
        (_, ConstantData::BF16(_)) => format!("bf16{shape:?}#{index}"),
    }
}

impl<'g> Scope<'g> {
    /// Returns a scope below this one. `s.pp("blocks").pp(3)` is `s.pp("blocks.3")`.
    #[must_use]
    pub fn pp(self, name: impl fmt::Display) -> Self {
        let path = self.join(&name.to_string());
        let id = self.builder.state.borrow_mut().place(path);
        Self { id, ..self }
    }

    /// Returns the same place, which claims only the nodes born from here on. A layer function
    /// begins with it, so that the nodes of its arguments stay with its caller.
    #[must_use]
    pub fn enter(self) -> Self {
        let path = self.path();
        let id = self.builder.state.borrow_mut().place(path);
        Self { id, ..self }
    }

    /// Returns the dotted path from the top of the checkpoint; it is empty at the root.
    pub fn path(self) -> String {
        self.builder.state.borrow().scopes[self.id].path.clone()
    }

    /// Returns the builder, for constants and for [`Builder::concat`].
    pub fn builder(self) -> &'g Builder<'g> {
        self.builder
    }

    /// Returns a checkpoint tensor as it is stored, in f32 for every recipe. Islands of f32 read
    /// such tensors.
    #[track_caller]
    pub fn weight(self, name: &str, dims: impl IntoIterator<Item: IntoDim>) -> Value<'g> {
        self.weight_as(name, dims, Transform::Identity)
    }

    /// Returns a checkpoint tensor that is stored as `dims` and then transformed. A missing or
    /// misshaped tensor is recorded as an error. No byte is read.
    #[track_caller]
    pub fn weight_as(
        self,
        name: &str,
        dims: impl IntoIterator<Item: IntoDim>,
        transform: Transform,
    ) -> Value<'g> {
        self.weight_of(DType::F32, name, dims, transform)
    }

    /// Returns a checkpoint tensor as [`Self::weight`] does, in the float type of the value that it
    /// meets.
    #[track_caller]
    pub fn weight_like(
        self,
        x: Value<'g>,
        name: &str,
        dims: impl IntoIterator<Item: IntoDim>,
    ) -> Value<'g> {
        self.weight_of(x.dtype(), name, dims, Transform::Identity)
    }

    /// Returns a checkpoint tensor as [`Self::weight_as`] does, in a float type. The data file
    /// holds it rounded once.
    #[track_caller]
    pub fn weight_of(
        self,
        dtype: DType,
        name: &str,
        dims: impl IntoIterator<Item: IntoDim>,
        transform: Transform,
    ) -> Value<'g> {
        let (b, at) = (self.builder, Location::caller());
        let key = self.join(name);
        let want = b.dims(dims);
        let transform = self.with_full_keys(transform);
        let mut initializer = key.clone();
        if transform != Transform::Identity {
            initializer.push_str(&format!("|{transform}"));
        }
        if dtype != DType::F32 {
            initializer.push_str(&format!("|{dtype}"));
        }
        if let Some(id) = b.state.borrow().named(&initializer) {
            return Value { builder: b, id };
        }
        let Some(stored) = b.source.shape(&key) else {
            let fault = Fault::Missing {
                key,
                want: Dims(&want).to_string(),
            };
            return self.flawed_weight(fault, want, (&transform, dtype), at);
        };
        let got: Vec<Dim> = stored.iter().map(IntoDim::into_dim).collect();
        // A free symbol cannot be compared with a number.
        let agrees = |(w, g): (&Dim, &Dim)| w.as_const().is_none() || w == g;
        if got.len() != want.len() || !want.iter().zip(&got).all(agrees) {
            let fault = Fault::Misshaped {
                key,
                want: Dims(&want).to_string(),
                got: stored,
            };
            return self.flawed_weight(fault, want, (&transform, dtype), at);
        }
        let declared = want
            .iter()
            .zip(&got)
            .map(|(w, g)| if is_unknown(w) { g.clone() } else { w.clone() })
            .collect();
        let shapes = self
            .transformed(&transform, got.clone())
            .and_then(|shape| Ok((shape, self.transformed(&transform, declared)?)));
        let mut state = b.state.borrow_mut();
        match shapes {
            Err(fault_reason) => {
                let fault = Fault::Transform {
                    key,
                    dims: Dims(&got).to_string(),
                    reason: fault_reason,
                };
                state.record(Some(self.id), fault, at);
                let id = state.add(None);
                Value { builder: b, id }
            }
            Ok((shape, dims)) => {
                let id = state.add(Some(Fact { dtype, dims }));
                state.names.insert(id, initializer.clone());
                let shape = shape
                    .iter()
                    .filter_map(Dim::as_const)
                    .filter_map(|c| usize::try_from(c).ok())
                    .collect();
                state.weights.push(Weight {
                    name: initializer,
                    key,
                    transform,
                    dtype,
                    stored,
                    shape,
                    value: id,
                });
                Value { builder: b, id }
            }
        }
    }

    /// Returns whether the checkpoint has the tensor. This does not count as reading it.
    pub fn has(self, name: &str) -> bool {
        self.builder.source.shape(&self.join(name)).is_some()
    }

    /// Returns the stored shape of a tensor, when it exists. This does not count as reading it.
    pub fn dims(self, name: &str) -> Option<Vec<usize>> {
        self.builder.source.shape(&self.join(name))
    }

    /// Returns the children under a prefix: `list("blocks.")` -> `["0", "1", ..]`. Numbers come
    /// first in order, then words.
    pub fn list(self, prefix: &str) -> Vec<String> {
        let prefix = format!("{}.", self.join(prefix.trim_end_matches('.')));
        let prefix = prefix.trim_start_matches('.');
        let keys = self.builder.source.keys();
        let children = keys
            .iter()
            .filter_map(|k| k.strip_prefix(prefix))
            .filter_map(|rest| rest.split('.').next());
        let distinct: BTreeSet<(u64, &str)> = children
            .map(|c| (c.parse().unwrap_or(u64::MAX), c))
            .collect();
        distinct.into_iter().map(|(_, c)| c.to_owned()).collect()
    }

    /// Ends a layer. `v` gets the module's path as its name and tap. The module claims the nodes
    /// born since [`Self::pp`] that no inner scope claimed. Two paths may end on one value.
    pub fn out(self, v: Value<'g>) -> Value<'g> {
        let mut state = self.builder.state.borrow_mut();
        let Place {
            path,
            first_node,
            first_error,
        } = &state.scopes[self.id];
        let (path, first_node, first_error) = (path.clone(), *first_node, *first_error);
        for node in &mut state.nodes[first_node..] {
            node.scope.get_or_insert(self.id);
        }
        for error in &mut state.errors[first_error..] {
            error.scope.get_or_insert(self.id);
        }
        drop(state);
        self.builder.add_tap(path, v);
        v
    }

    /// Names an intermediate value `path.name`, and makes it a tap.
    pub fn tap(self, name: &str, v: Value<'g>) -> Value<'g> {
        self.builder.add_tap(self.join(name), v);
        v
    }

    fn join(self, name: &str) -> String {
        let path = &self.builder.state.borrow().scopes[self.id].path;
        match (path.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (_, true) => path.clone(),
            _ => format!("{path}.{name}"),
        }
    }

    fn with_full_keys(self, transform: Transform) -> Transform {
        match transform {
            Transform::Concat { axis, with } => Transform::Concat {
                axis,
                with: with.iter().map(|n| self.join(n)).collect(),
            },
            Transform::Chain(steps) => {
                Transform::Chain(steps.into_iter().map(|t| self.with_full_keys(t)).collect())
            }
            other => other,
        }
    }

    fn transformed(self, transform: &Transform, dims: Vec<Dim>) -> Result<Vec<Dim>, String> {
        transform.shape(dims, &|key| self.builder.source.shape(key))
    }

    /// Records the fault of a weight. The value keeps the wanted shape, so that later operators are
    /// still checked.
    fn flawed_weight(
        self,
        fault: Fault,
        want: Vec<Dim>,
        (transform, dtype): (&Transform, DType),
        at: &'static Location<'static>,
    ) -> Value<'g> {
        let dims = self.transformed(transform, want).ok();
        let mut state = self.builder.state.borrow_mut();
        if !state.errors.iter().any(|e| e.fault == fault) {
            state.record(Some(self.id), fault, at);
        }
        let id = state.add(dims.map(|dims| Fact { dtype, dims }));
        Value {
            builder: self.builder,
            id,
        }
    }
}

impl Builder<'_> {
    /// Adds a tap. A path that is used before gets a count, because a module can be called twice.
    fn add_tap(&self, path: String, v: Value<'_>) {
        let mut state = self.state.borrow_mut();
        if path.is_empty()
            || state.values[v.id].is_none()
            || state.taps.contains(&(path.clone(), v.id))
        {
            return;
        }
        let calls = state
            .taps
            .iter()
            .filter(|(p, _)| {
                p.strip_prefix(&path)
                    .is_some_and(|r| r.is_empty() || r.starts_with('@'))
            })
            .count();
        let path = if calls == 0 {
            path
        } else {
            format!("{path}@{calls}")
        };
        state.taps.push((path, v.id));
    }
}

impl Transform {
    /// Returns the shape after the transform. `stored` looks up other keys.
    fn shape(
        &self,
        mut dims: Vec<Dim>,
        stored: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Vec<Dim>, String> {
        let rank = dims.len();
        match self {
            Self::Identity => {}
            Self::Transpose2 if rank == 2 => dims.swap(0, 1),
            Self::Transpose2 => {
                return Err(format!("only a matrix is transposed, not rank {rank}"));
            }
            Self::Select { axis, index } => {
                let size = dims.get(*axis).ok_or_else(|| format!("no axis {axis}"))?;
                if size
                    .as_const()
                    .is_some_and(|n| usize::try_from(n).is_ok_and(|n| *index >= n))
                {
                    return Err(format!("axis {axis} has no index {index}"));
                }
                dims.remove(*axis);
            }
            Self::Fold { axis, index } => {
                let size = dims.get_mut(*axis);
                let size = size.ok_or_else(|| format!("no axis {axis}"))?;
                let numbers = size.as_const().map(usize::try_from);
                if numbers.is_some_and(|n| n.is_ok_and(|n| index + 1 >= n)) {
                    return Err(format!("axis {axis} has no index {}", index + 1));
                }
                *size = size.clone() - Dim::from(1);
            }
            Self::Reshape(shape) => {
                let want: Vec<Dim> = shape.iter().map(IntoDim::into_dim).collect();
                let product = |dims: &[Dim]| dims.iter().cloned().fold(Dim::from(1), |a, d| a * d);
                let have = product(&dims);
                if have.as_const().is_some() && have != product(&want) {
                    return Err(format!("{shape:?} has another number of elements"));
                }
                dims = want;
            }
            Self::Concat { axis, with } => {
                for key in with {
                    let other = stored(key)
                        .ok_or_else(|| format!("{key} is missing from the checkpoint"))?;
                    let other: Vec<Dim> = other.iter().map(IntoDim::into_dim).collect();
                    let fits = other.len() == rank
                        && *axis < rank
                        && (0..rank).all(|i| i == *axis || same_or_symbolic(&dims[i], &other[i]));
                    if !fits {
                        return Err(format!(
                            "{key} {} does not continue {} along axis {axis}",
                            Dims(&other),
                            Dims(&dims)
                        ));
                    }
                    dims[*axis] = dims[*axis].clone() + other[*axis].clone();
                }
            }
            Self::Chain(steps) => {
                return steps.iter().try_fold(dims, |dims, t| t.shape(dims, stored));
            }
        }
        Ok(dims)
    }
}

fn same_or_symbolic(a: &Dim, b: &Dim) -> bool {
    a.as_const().is_none() || a == b
}

/// Rank of a poisoned value. It exceeds every real rank, so that indexing its shape gives no second
/// fault.
const POISONED_RANK: usize = 8;

impl<'g> Value<'g> {
    /// Returns the shape. A poisoned value has unknown dimensions.
    pub fn dims(self) -> Vec<Dim> {
        self.fact().dims
    }

    /// Returns one dimension; a negative axis counts from the back. It is unknown when the axis
    /// does not exist.
    pub fn dim(self, axis: isize) -> Dim {
        let dims = self.dims();
        let index = if axis < 0 {
            dims.len().checked_add_signed(axis)
        } else {
            usize::try_from(axis).ok()
        };
        index
            .and_then(|i| dims.get(i).cloned())
            .unwrap_or_else(unknown)
    }

    /// Returns the number of axes.
    pub fn rank(self) -> usize {
        self.fact().dims.len()
    }

    /// Returns the element type.
    pub fn dtype(self) -> DType {
        self.fact().dtype
    }

    /// Returns the type and the shape.
    pub fn fact(self) -> Fact {
        let fact = self.builder.state.borrow().values[self.id].clone();
        fact.unwrap_or_else(|| Fact {
            dtype: DType::F32,
            dims: vec![unknown(); POISONED_RANK],
        })
    }

    /// Returns the builder of the value.
    pub fn builder(self) -> &'g Builder<'g> {
        self.builder
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.builder.state.borrow().values[self.id].is_none()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_poisoned() {
            f.write_str("poisoned")
        } else {
            write!(f, "{}", self.fact())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Transform::Transpose2;
    use super::*;
    use engines::contract::StateKind;

    const X: Port = Port::new("x", DType::F32, "B L D");
    const Y: Port = Port::new("y", DType::F32, "B L D");
    const STATE: Port = Port::new("cache", DType::F32, "B 2");
    const RIM: Contract = Contract {
        name: "rim",
        inputs: &[X],
        state: &[STATE],
        state_kind: StateKind::Replace,
        outputs: &[Y],
        weights: engines::contract::Weights::Inside,
    };

    fn source() -> BTreeMap<String, Vec<usize>> {
        let keys: [(&str, &[usize]); 6] = [
            ("blocks.0.q.weight", &[8, 8]),
            ("blocks.0.k.weight", &[4, 8]),
            ("blocks.1.q.weight", &[8, 8]),
            ("blocks.10.q.weight", &[8, 8]),
            ("blocks.x", &[1]),
            ("norm.weight", &[7]),
        ];
        keys.iter()
            .map(|(k, s)| ((*k).to_owned(), s.to_vec()))
            .collect()
    }

    fn eight() -> Bindings {
        Bindings::from([("D".to_owned(), 8)])
    }

    fn lines(b: Builder<'_>) -> Vec<String> {
        let errors = b.finish().unwrap_err();
        // Line numbers move with every edit, so the test below only checks that they exist.
        errors
            .0
            .iter()
            .map(|e| {
                e.to_string()
                    .split(" (exporter")
                    .next()
                    .unwrap()
                    .split(" (src")
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn three_planted_faults_give_three_lines_and_no_cascade() {
        let source = source();
        let b = Builder::new("t", &source);
        b.bind(eight());
        let s = b.root().pp("blocks.0");
        let x = b.input(&X);
        let q = s.pp("q");
        let y = q.out(x.matmul(q.weight("weight", [8, 9]))); // misshaped
        let z = (y + x).reshape(&[x.dim(0), Dim::from(3)]); // other number of elements
        let z = s.out(
            (z.transpose(&[1, 0]).softmax(-1) * x)
                .layer_norm(-1, 1e-6, None, None)
                .split(-1, 4)[3],
        );
        b.output(&Y, z);
        let w = b.root().pp("head").weight("weight", [2, 8]); // missing
        let _ = x.matmul(w.transpose(&[1, 0]));
        assert_eq!(
            lines(b),
            [
                "t: blocks.0.q: weight blocks.0.q.weight wants [8, 9], checkpoint has [8, 8]",
                "t: blocks.0: Add(f32 [B, L, 9], f32 [B, L, 8]): 9 and 8 do not broadcast",
                "t: head: weight head.weight [2, 8] is missing from the checkpoint",
            ]
        );
    }

    #[test]
    fn an_error_names_the_line_of_the_model() {
        let source = source();
        let b = Builder::new("t", &source);
        let x = b.input(&X);
        let line = line!() + 1;
        let _ = x + b.input(&STATE);
        let errors = b.finish().unwrap_err();
        assert_eq!(
            (errors.0[0].at.line(), errors.0[0].at.file()),
            (line, file!())
        );
        assert_eq!(errors.kind(), ErrorKind::Model);
    }

    #[test]
    fn a_missing_weight_is_reported_once_and_keeps_its_shape() {
        let source = source();
        let b = Builder::new("t", &source);
        let s = b.root().pp("blocks.7");
        for _ in 0..2 {
            assert_eq!(
                format!("{:?}", s.weight_as("w", [3, 5], Transpose2)),
                "f32 [5, 3]"
            );
        }
        assert_eq!(
            lines(b),
            ["t: blocks.7: weight blocks.7.w [3, 5] is missing from the checkpoint"]
        );
    }

    #[test]
    fn out_claims_what_was_born_in_the_scope_and_two_paths_may_share_a_value() {
        let source = source();
        let b = Builder::new("t", &source);
        b.bind(eight());
        let x = b.input(&X);
        let outer = b.root().pp("blocks.0");
        let y = x.sigmoid();
        let inner = outer.pp("q");
        let z = outer.out(inner.out(y.matmul(inner.weight_as("weight", [8, 8], Transpose2))));
        outer.tap("late", z.sigmoid());
        b.output(&Y, z.sqrt());
        let g = b.finish().unwrap();
        let nodes: Vec<(&str, &str)> = g
            .nodes
            .iter()
            .map(|n| (n.name.as_str(), n.scope.as_str()))
            .collect();
        let want = [
            ("blocks.0.Sigmoid", "blocks.0"),
            ("blocks.0.q.MatMul", "blocks.0.q"),
            ("Sigmoid", ""),
            ("Sqrt", ""),
        ];
        assert_eq!(nodes, want);
        assert_eq!(g.taps(), ["blocks.0.q", "blocks.0", "blocks.0.late"]);
        let tapped = g
            .with_taps(&["blocks.0", "blocks.0.q", "blocks.0"])
            .unwrap();
        let outputs: Vec<&str> = tapped
            .outputs
            .iter()
            .map(|&o| tapped.values[o].name.as_str())
            .collect();
        assert_eq!(outputs, ["y", "blocks.0", "blocks.0.q"]);
        assert_eq!(
            g.with_taps(&["blocks.0.k"]).unwrap_err().to_string(),
            "graph t has no tap blocks.0.k; nearest is blocks.0.q"
        );
    }

    #[test]
    fn the_rim_is_compared_with_the_contract_and_takes_its_order() {
        let source = source();
        let b = Builder::new("t", &source);
        b.contract(&RIM);
        let (c, x) = (b.input(&STATE), b.input(&X));
        b.output_named("cache.next", &STATE, c);
        b.output(&Y, x);
        let g = b.finish().unwrap();
        let names = |ids: &[usize]| {
            ids.iter()
                .map(|&i| g.values[i].name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (names(&g.inputs), names(&g.outputs)),
            (
                vec!["x".into(), "cache".into()],
                vec!["y".into(), "cache.next".into()]
            )
        );
        assert_eq!(
            (g.metadata["contract"].as_str(), g.state_outputs()),
            (RIM.fingerprint().as_str(), vec!["cache.next"])
        );

        let b = Builder::new("t", &source);
        b.contract(&RIM);
        b.output(&Y, b.input(&X));
        let want = [
            "t: contract rim wants inputs x cache, graph has x",
            "t: contract rim wants outputs y cache.next, graph has y",
        ];
        assert_eq!(lines(b), want);

        let b = Builder::new("t", &source);
        let _ = b.input(&X);
        b.output(&Y, b.input(&STATE));
        assert_eq!(
            lines(b),
            ["t: output y wants f32 [B, L, D], graph gives f32 [B, 2]"]
        );
    }

    #[test]
    fn keys_that_nobody_read_are_errors_unless_ignored() {
        let source = source();
        let b = Builder::new("t", &source);
        let _ = b.root().pp("blocks").pp(0).weight("q.weight", [8, 8]);
        assert_eq!(
            b.used_keys().into_iter().collect::<Vec<_>>(),
            ["blocks.0.q.weight"]
        );
        b.unused(&["blocks."], &["blocks.1"]);
        let want = [
            "t: weight blocks.0.k.weight [4, 8] of the checkpoint is not used",
            "t: weight blocks.x [1] of the checkpoint is not used",
        ];
        assert_eq!(lines(b), want);
    }

    #[test]
    fn scopes_look_at_the_checkpoint_without_reading_it() {
        let source = source();
        let b = Builder::new("t", &source);
        let s = b.root();
        assert_eq!(s.list("blocks."), ["0", "1", "10", "x"]);
        assert_eq!(s.pp("blocks.0").list(""), ["k", "q"]);
        assert_eq!(
            (
                s.pp("norm").has("weight"),
                s.pp("norm").dims("bias"),
                s.dims("norm.weight")
            ),
            (true, None, Some(vec![7]))
        );
        assert!(b.used_keys().is_empty());
    }

    #[test]
    fn equal_weights_and_constants_are_stored_once() {
        let source = source();
        let b = Builder::new("t", &source);
        b.bind(eight());
        let x = b.input(&X);
        let s = b.root().pp("blocks.0.q");
        let twice = x
            .matmul(s.weight("weight", [8, 8]))
            .matmul(s.weight("weight", [8, 8]))
            * 2.0
            + 2.0;
        let unread = b.scalar(5.0);
        assert_eq!(unread.rank(), 0);
        b.output(&Y, twice.matmul(s.weight_as("weight", [8, 8], Transpose2)));
        let g = b.finish().unwrap();
        let names: Vec<&str> = g.weights.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(names, ["blocks.0.q.weight", "blocks.0.q.weight|transpose"]);
        assert_eq!(g.constants.len(), 1);
    }

    #[test]
    fn transforms_give_their_shape_or_say_why_not() {
        use Transform::{Chain, Concat, Fold, Reshape, Select};
        let concat = |axis, with: &str| Concat {
            axis,
            with: vec![with.to_owned()],
        };
        for (transform, want) in [
            (Transpose2, "[8, 4]"),
            (Select { axis: 0, index: 3 }, "[8]"),
            (Select { axis: 0, index: 4 }, "axis 0 has no index 4"),
            (Select { axis: 2, index: 0 }, "no axis 2"),
            (Fold { axis: 1, index: 6 }, "[4, 7]"),
            (Fold { axis: 1, index: 7 }, "axis 1 has no index 8"),
            (Reshape(vec![2, 16]), "[2, 16]"),
            (
                Reshape(vec![2, 15]),
                "[2, 15] has another number of elements",
            ),
            (concat(0, "blocks.0.q.weight"), "[12, 8]"),
            (
                concat(1, "blocks.0.q.weight"),
                "blocks.0.q.weight [8, 8] does not continue [4, 8] along axis 1",
            ),
            (
                Chain(vec![
                    Transpose2,
                    Reshape(vec![2, 4, 4]),
                    Select { axis: 1, index: 0 },
                ]),
                "[2, 4]",
            ),
            (
                Chain(vec![Select { axis: 0, index: 0 }, Transpose2]),
                "only a matrix is transposed, not rank 1",
            ),
        ] {
            let got = transform.shape([4, 8].map(Dim::from).to_vec(), &|key| {
                source().get(key).cloned()
            });
            assert_eq!(
                got.map_or_else(|e| e, |d| Dims(&d).to_string()),
                want,
                "{transform}"
            );
        }
    }

    #[test]
    fn an_output_length_that_no_input_has_is_the_graphs_own() {
        let source = source();
        let b = Builder::new("t", &source);
        b.output(
            &Port::new("y", DType::F32, "B M"),
            b.input(&STATE).slice(1, 1, 2),
        );
        assert_eq!(
            b.finish().unwrap().to_string().lines().nth(2),
            Some("  out y: f32 [B, 1]")
        );
    }

    #[test]
    fn a_graph_is_bound_to_sizes_after_it_was_built() {
        let source = source();
        let b = Builder::new("t", &source);
        let x = b.input(&X);
        b.output(&Y, x.reshape(&[x.dim(0), x.dim(1), x.dim(2)]));
        let g = b.finish().unwrap().bind(&Bindings::from([
            ("B".to_owned(), 4),
            ("D".to_owned(), 5120),
        ]));
        assert_eq!(g.values[g.outputs[0]].fact.to_string(), "f32 [4, L, 5120]");
    }
}
