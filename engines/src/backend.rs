//! Three nouns: a backend loads artefacts, a session runs one. A session binds by port, checks every binding against the contract before
//! anything runs, and never falls back to another device.
mod named;
pub mod ort;
mod recorder;
mod rim;
pub mod tensorrt;
#[cfg(test)]
mod tiny;

pub use named::{NamedCall, run_named};
pub use recorder::Recorder;

use crate::contract::{Contract, DType, Port};
use crate::error_kind::ErrorKind;
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

/// Returns the [`Loading`] without taps and without faults.
pub fn plain() -> Loading {
    Arc::new(|_| LoadOptions::default())
}

/// Caches that a graph replaces whole at each call, by port name.
pub type FeatureCache = BTreeMap<&'static str, Tensor>;

/// State of one call.
pub enum State<'a> {
    /// The contract has none.
    None,
    /// Memory bound both as input and as output.
    InPlace(Vec<(&'static str, ViewMut<'a>)>),
    /// Read (unless the contract only produces it) and replaced.
    Replace(&'a mut FeatureCache),
}

impl State<'_> {
    /// Type and shape of what is bound to a state port.
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

/// Outputs of one call, by name.
#[derive(Debug)]
pub struct Outputs(pub(crate) BTreeMap<String, Tensor>);

impl From<BTreeMap<String, Tensor>> for Outputs {
    /// For backends outside this crate; `run` of a session must return exactly its contract's outputs and taps.
    fn from(outputs: BTreeMap<String, Tensor>) -> Self {
        Self(outputs)
    }
}

impl Outputs {
    /// Takes one output. Panics on a port that the contract lacks: that is a contract broken in code.
    pub fn take(&mut self, port: &Port) -> Tensor {
        self.take_named(port.name)
    }

    /// Takes a tap or an output by name; panics as [`Self::take`].
    pub fn take_named(&mut self, name: &str) -> Tensor {
        self.0
            .remove(name)
            .unwrap_or_else(|| panic!("no output {name}"))
    }

    /// Every output that was not taken.
    pub fn into_inner(self) -> BTreeMap<String, Tensor> {
        self.0
    }
}

/// One loaded graph.
pub trait Session: Send {
    fn contract(&self) -> &'static Contract;

    /// Name of the loaded component, as errors show it. One contract may serve many components.
    fn component(&self) -> &str {
        self.contract().name
    }

    /// Precision of the export that the graph belongs to.
    fn recipe(&self) -> Recipe;

    /// The weights of the runs from here on, for a contract whose weights are bound; they must lie where this session's device reads. A
    /// graph with its weights inside ignores them.
    fn bind(&mut self, weights: BoundWeights);

    /// Nodes that run elsewhere than on the session's device; only what computes shapes ever does.
    fn elsewhere(&self) -> &[Elsewhere] {
        &[]
    }

    /// Runs once. Every input and state port of the contract must be bound, by its name.
    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError>;
}

/// Nodes of a graph that run elsewhere than on its device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Elsewhere {
    /// Where they run instead, in the library's words.
    pub provider: String,
    pub operator: String,
    pub nodes: usize,
    /// They compute sizes, not values: nothing waits for them and no tensor leaves the device.
    pub shapes_only: bool,
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}", self.nodes, self.operator, self.provider)
    }
}

/// Loads components of an opened export on one device.
pub trait Backend: Send + Sync {
    /// The device's memory: outputs come from it, and what a caller wants to keep there.
    fn memory(&self) -> &Arc<dyn Memory>;

    /// Precision of the export.
    fn recipe(&self) -> Recipe;

    /// Loads one component with extra outputs `taps`, weights and all.
    fn load(&self, component: &str, options: &LoadOptions)
    -> Result<Box<dyn Session>, EngineError>;

    /// Loads the graph of a component whose weights are bound, without them: the caller binds a set before the first run, of this component
    /// or of any other with the same graph.
    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError>;

    /// The weights of a component, on the host.
    fn weights(&self, component: &str) -> Result<HostWeights, EngineError>;
}

/// Options of one load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Inner values to return as well, by tap name.
    pub taps: Vec<String>,
    /// Replaces one weight by its own value plus this, to prove that a check can fail.
    pub perturb: Option<Perturb>,
    /// Whether the component gets a session of its own even where one could serve several, so that its outputs can be told apart.
    pub alone: bool,
}

impl LoadOptions {
    /// Whether a session that is loaded with these can serve no other component.
    pub fn is_particular(&self) -> bool {
        self.alone || !self.taps.is_empty() || self.perturb.is_some()
    }
}

/// A deliberate fault: `amount` added to every element of a weight.
#[derive(Clone, Debug)]
pub struct Perturb {
    pub weight: String,
    pub amount: f32,
}

/// Why a component could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    DeviceMemory(#[from] MemoryError),
    #[error(transparent)]
    TensorRt(#[from] tensorrt::TensorRtError),
    #[error(
        "libonnxruntime: {reason}; `scripts/setup` fetches it, or set ORT_DYLIB_PATH to libonnxruntime.so of version 1.{minor} or later"
    )]
    Library { reason: String, minor: u32 },
    #[error("{reason}; {library} comes with {package}")]
    CudaLibrary {
        library: &'static str,
        reason: String,
        package: &'static str,
    },
    #[error(
        "{}: component {component}: {device} cannot run {nodes}; export in a recipe that it has kernels for", path.display()
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
    #[error("{}: component {component}: port {port}: wanted {want}, graph has {got}; export again", path.display())]
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
    #[error("component {component}: {message}")]
    Aliasing { component: String, message: String },
    #[error("{wanted}: this program was built without {missing}; build it with {build}")]
    NotBuilt {
        wanted: String,
        missing: &'static str,
        build: &'static str,
    },
}

/// Most characters of a library's message that are shown.
const BRIEF: usize = 300;

/// The first line of a library's message, of so many characters: some print a page, such as cuDNN a graph in JSON.
fn brief(source: &impl fmt::Display) -> String {
    let text = source.to_string();
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines.next().unwrap_or_default();
    match line.char_indices().nth(BRIEF) {
        Some((at, _)) => format!("{} ...", &line[..at]),
        None => line.to_owned(),
    }
}

impl EngineError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TensorRt(e) => e.kind(),
            Self::Library { .. }
            | Self::CudaLibrary { .. }
            | Self::Memory { .. }
            | Self::DeviceMemory(_) => ErrorKind::Resources,
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
