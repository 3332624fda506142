//! A request to build engines, and the reasons why it fails.
use super::prepare::PrepareError;
use super::sizes::Limits;
use crate::families::FamilyErrors;
use crate::graph::error::WriteError;
use crate::synth::Preset;
use engines::backend::tensorrt::{Flavour, TensorRtError};
use engines::console::OutputError;
use engines::error_kind::ErrorKind;
use engines::manifest::{ManifestError, Models};
use engines::profile::ProfileError;
use engines::recipe::Recipe;
use std::io;
use std::path::{Path, PathBuf};

/// A request to build engines.
#[derive(Clone, Debug)]
pub struct Request {
    /// The graphs to build.
    pub input: BuildInput,
    /// The largest calls that the engines take.
    pub limits: Limits,
    /// The TensorRT library.
    pub flavour: Flavour,
    /// SM version of the card without its dot, for example 89.
    pub sm: u32,
    /// Most device memory for an engine's intermediate results, in bytes.
    pub workspace: u64,
    /// Optimisation level, 0 to 5 on TensorRT's own scale.
    pub level: i32,
    /// The place of the weights inside an engine.
    pub weights: InsideWeights,
    /// The facts that an engine keeps about its layers.
    pub detail: LayerDetail,
    /// Most host memory for one build, in bytes.
    pub memory_limit: u64,
    /// Names of the engines to leave out.
    pub skip: Vec<String>,
    /// Folder of the engines.
    pub out: PathBuf,
    /// The command line. An error about a stale folder shows it.
    pub command: String,
}

/// The place of the weights inside an engine while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideWeights {
    /// In device memory.
    Resident,
    /// In host memory, from which the enterprise library streams them.
    Streamed,
}

/// The facts that an engine keeps about its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerDetail {
    /// Their names.
    Names,
    /// Every fact, which is also written as JSON beside the engine.
    Inspected,
}

/// A plan or a build that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum BuildError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Graphs(#[from] FamilyErrors),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    #[error("{graph}: {source}")]
    Prepare { graph: String, source: PrepareError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{name}: building it takes about {need} bytes of host memory \
         ({factor} x {weights} bytes of weights inside), the limit is {limit}; \
         build on a machine with more, raise --memory-limit, \
         or leave it out with --skip {name} and run it on another backend"
    )]
    Memory {
        name: String,
        need: u64,
        factor: f64,
        weights: u64,
        limit: u64,
    },
    #[error(
        "recipe: the profile wants {want}, the models are {got}; \
         export them with --recipe {want}, or use a profile of {got}"
    )]
    Recipe { want: Recipe, got: Recipe },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("--skip {name}: no engine has that name; they are {have}")]
    Skip { name: String, have: String },
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl BuildError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Write(e) => e.kind(),
            Self::TensorRt(e) => e.kind(),
            Self::Memory { .. } => ErrorKind::Resources,
            Self::Io { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Prepare { .. } => ErrorKind::Model,
            Self::Profile(e) => e.kind(),
            Self::Output(e) => e.kind(),
            Self::Recipe { .. } | Self::Skip { .. } | Self::Unfit(_) => ErrorKind::Usage,
        }
    }
}

/// The origin of the graphs.
#[derive(Clone, Debug)]
pub enum BuildInput {
    /// An export, with its weights.
    Models(Box<Models>),
    /// The sizes of a preset. Engines whose weights are inputs can be built; the others can be
    /// planned.
    Preset(Preset, Recipe),
}

impl BuildInput {
    /// Returns the precision of the graphs.
    pub fn recipe(&self) -> Recipe {
        match self {
            Self::Models(m) => m.recipe(),
            Self::Preset(_, recipe) => *recipe,
        }
    }
}

pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> BuildError + '_ {
    move |source| BuildError::Io {
        path: path.to_owned(),
        source,
    }
}
