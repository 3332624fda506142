//! Backends and sessions. A backend loads artefacts of an export on one device; a session runs one
//! of them. A session binds tensors by port and checks each against the contract before anything
//! runs. It never falls back to another device.

pub mod mixed;
mod named;
pub mod ort;
mod recorder;
mod rim;
pub mod tensorrt;
#[cfg(test)]
mod tiny;

pub use named::{NamedCall, run_named};
pub use recorder::Recorder;

use crate::cancel::Cancel;
use crate::contract::{Contract, DType, Port};
use crate::error_kind::{ErrorKind, Shortage};
use crate::manifest::ManifestError;
use crate::memory::{Memory, MemoryError};
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::{BoundWeights, HostWeights};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Says how to load each component, by its name: with which taps and faults.
pub type Loading = Arc<dyn Fn(&str) -> LoadOptions + Send + Sync>;

/// Loads a component without taps and without faults.
pub fn plain() -> Loading {
    Arc::new(|_| LoadOptions::default())
}

/// Caches that a graph replaces whole at each call, by port name.
pub type FeatureCache = BTreeMap<&'static str, Tensor>;

/// State of one call.
pub enum State<'a> {
    /// The contract has no state.
    None,
    /// Memory that is bound both as input and as output, by port name.
    InPlace(Vec<(&'static str, ViewMut<'a>)>),
    /// Caches that the call reads (unless the contract only produces them) and replaces.
    Replace(&'a mut FeatureCache),
}

impl State<'_> {
    /// Returns type and shape of the tensor that is bound to a state port.
    fn fact(&self, port: &Port) -> Option<(DType, Vec<usize>)> {
        match self {
            Self::None => None,
            Self::InPlace(views) => {
                let found = views.iter().find(|(n, _)| *n == port.name);
                found.map(|(_, v)| (v.dtype, v.shape.clone()))
            }
            Self::Replace(cache) => cache
                .get(port.name)
                .map(|t| (t.dtype(), t.shape().to_vec())),
        }
    }
}

/// Outputs and taps of one call, by name.
#[derive(Debug)]
pub struct Outputs(pub(crate) BTreeMap<String, Tensor>);

impl From<BTreeMap<String, Tensor>> for Outputs {
    /// Wraps the outputs of a backend outside this crate. [`Session::run`] must return exactly the
    /// outputs and taps of its contract.
    fn from(outputs: BTreeMap<String, Tensor>) -> Self {
        Self(outputs)
    }
}

impl Outputs {
    /// Takes one output.
    ///
    /// # Panics
    /// If the contract has no such port, or the output was taken before.
    pub fn take(&mut self, port: &Port) -> Tensor {
        self.take_named(port.name)
    }

    /// Takes a tap or an output by its name.
    ///
    /// # Panics
    /// If there is no such output, or it was taken before.
    pub fn take_named(&mut self, name: &str) -> Tensor {
        self.0
            .remove(name)
            .unwrap_or_else(|| panic!("no output {name}"))
    }

    /// Returns every output that was not taken.
    pub fn into_inner(self) -> BTreeMap<String, Tensor> {
        self.0
    }
}

/// One loaded graph.
pub trait Session: Send {
    /// Returns the contract that the graph was checked against.
    fn contract(&self) -> &'static Contract;

    /// Names the loaded component, as errors show it. One contract may serve many components.
    fn component(&self) -> &str {
        self.contract().name
    }

    /// Returns the precision of the export that the graph belongs to.
    fn recipe(&self) -> Recipe;

    /// Binds the weights of the runs from here on, for a contract whose weights are bound. They
    /// must lie where the session's device reads. A graph with its weights inside ignores them.
    fn bind(&mut self, weights: BoundWeights);

    /// Lists nodes that run elsewhere than on the session's device. Only nodes that compute shapes
    /// do.
    fn elsewhere(&self) -> &[Elsewhere] {
        &[]
    }

    /// Runs the graph once.
    ///
    /// # Errors
    /// [`EngineError::Bind`] if an input or state port of the contract is not bound, or not with
    /// its type and shape; the library's own errors.
    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError>;

    /// Runs the graph once, unless `cancel` asks to stop. A session that can be stopped in the
    /// middle of a graph does so. State that is written in place is of no use after that.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`]; the errors of [`Self::run`].
    fn run_until(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        match cancel.is_cancelled() {
            true => Err(EngineError::Cancelled),
            false => self.run(inputs, state),
        }
    }
}

/// Nodes of a graph that run elsewhere than on its device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Elsewhere {
    /// Name of the provider that runs them, as the library spells it.
    pub provider: String,
    /// ONNX operator of the nodes.
    pub operator: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Whether they compute sizes only. Then nothing waits for them, and no tensor leaves the
    /// device.
    pub shapes_only: bool,
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}", self.nodes, self.operator, self.provider)
    }
}

/// Loads components of an opened export on one device.
pub trait Backend: Send + Sync {
    /// Returns the device's memory. Outputs come from it.
    fn memory(&self) -> &Arc<dyn Memory>;

    /// Returns the precision of the export.
    fn recipe(&self) -> Recipe;

    /// Loads one component with its weights.
    ///
    /// # Errors
    /// The component, a tap or a weight does not exist; the graph does not load or is not the
    /// contract's; the device lacks memory.
    fn load(&self, component: &str, options: &LoadOptions)
    -> Result<Box<dyn Session>, EngineError>;

    /// Loads the graph of a component with bound weights, without the weights. The caller binds
    /// those of this component, or of another one with the same graph, before the first run.
    ///
    /// # Errors
    /// The errors of [`Self::load`].
    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError>;

    /// Returns the weights of a component, on the host.
    ///
    /// # Errors
    /// The component does not exist.
    fn weights(&self, component: &str) -> Result<HostWeights, EngineError>;
}

/// Options of one load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Inner values to return as well, by tap name.
    pub taps: Vec<String>,
    /// A fault to put into one weight, which proves that a check can fail.
    pub perturb: Option<Perturb>,
    /// Whether the component gets a session of its own even where one could serve several. Then its
    /// outputs can be told from those of others.
    pub alone: bool,
    /// Stops the load.
    pub cancel: Cancel,
}

impl LoadOptions {
    /// Says whether a session that is loaded with these options can serve no other component.
    pub fn is_particular(&self) -> bool {
        self.alone || !self.taps.is_empty() || self.perturb.is_some()
    }
}

/// A deliberate fault: `amount` added to every element of a weight.
#[derive(Clone, Debug)]
pub struct Perturb {
    /// Name of the weight in its data file.
    pub weight: String,
    /// Value to add.
    pub amount: f32,
}

/// Why a component could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum EngineError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    DeviceMemory(#[from] MemoryError),
    #[error(transparent)]
    TensorRt(#[from] tensorrt::TensorRtError),
    #[error(
        "libonnxruntime: {reason}; `scripts/setup` fetches it, or set ORT_DYLIB_PATH to \
         libonnxruntime.so of version 1.{minor} or later"
    )]
    Library { reason: String, minor: u32 },
    #[error("libonnxruntime: {shortage}")]
    LibraryShort { shortage: Shortage },
    #[error("{reason}; {library} comes with {package}")]
    CudaLibrary {
        library: &'static str,
        reason: String,
        package: &'static str,
    },
    #[error(
        "{}: component {component}: {device} cannot run {nodes}; export in a recipe that it has \
         kernels for",
        path.display()
    )]
    Placement {
        path: PathBuf,
        component: String,
        device: String,
        nodes: String,
    },
    #[error("{}: component {component}: {}", path.display(), brief(source))]
    Load {
        path: PathBuf,
        component: String,
        source: ::ort::Error,
    },
    #[error(
        "{}: component {component}: port {port}: wanted {want}, graph has {got}; export again",
        path.display()
    )]
    Graph {
        path: PathBuf,
        component: String,
        port: String,
        want: String,
        got: String,
    },
    #[error("component {component}: port {port}: wanted {want}, got {got}")]
    Bind {
        component: String,
        port: String,
        want: String,
        got: String,
    },
    #[error("component {component}: tap {tap:?} does not exist; it has {have}")]
    Tap {
        component: String,
        tap: String,
        have: String,
    },
    #[error("component {component}: weight {weight:?} does not exist")]
    Weight { component: String, weight: String },
    #[error("component {component}: {}", brief(source))]
    Run {
        component: String,
        source: ::ort::Error,
    },
    #[error("component {component}: out of memory: {reason}")]
    Memory { component: String, reason: String },
    #[error("{}: component {component}: {shortage}", path.display())]
    Short {
        path: PathBuf,
        component: String,
        shortage: Shortage,
    },
    #[error("cancelled")]
    Cancelled,
    #[error("component {component}: {message}")]
    Aliasing { component: String, message: String },
    #[error("{wanted}: this program was built without {missing}; build it with {build}")]
    NotBuilt {
        wanted: String,
        missing: &'static str,
        build: &'static str,
    },
}

/// Most characters of a library's message that an error shows.
const BRIEF: usize = 300;

/// Returns the first line of a library's message, cut at [`BRIEF`]. Some libraries print a page:
/// cuDNN prints a graph in JSON.
pub(crate) fn brief(source: &impl fmt::Display) -> String {
    let text = source.to_string();
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines.next().unwrap_or_default();
    match line.char_indices().nth(BRIEF) {
        Some((at, _)) => format!("{} ...", &line[..at]),
        None => line.to_owned(),
    }
}

impl EngineError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TensorRt(e) => e.kind(),
            Self::Library { .. }
            | Self::LibraryShort { .. }
            | Self::CudaLibrary { .. }
            | Self::Memory { .. }
            | Self::Short { .. }
            | Self::DeviceMemory(_) => ErrorKind::Resources,
            Self::Manifest(e) => e.kind(),
            Self::Cancelled => ErrorKind::Interrupted,
            Self::Bind { .. } => ErrorKind::Input,
            Self::Tap { .. } | Self::NotBuilt { .. } => ErrorKind::Usage,
            _ => ErrorKind::Model,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_a_library_prints_is_shown_as_its_first_line() {
        let long = "x".repeat(400);
        for (text, want) in [
            ("one line", "one line".to_owned()),
            (
                "\n  cudnn failed: {\n\"graph\": 1\n}",
                "cudnn failed: {".to_owned(),
            ),
            (&long, format!("{} ...", "x".repeat(BRIEF))),
            (&"é".repeat(BRIEF), "é".repeat(BRIEF)),
            ("", String::new()),
        ] {
            assert_eq!(brief(&text), want);
        }
    }
}
