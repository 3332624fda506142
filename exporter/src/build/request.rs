//! A request to build engines, and the reasons why it fails.
use super::prepare::PrepareError;
use super::sizes::Limits;
use crate::families::FamilyErrors;
use crate::graph::error::WriteError;
use crate::synth::Preset;
use engines::backend::tensorrt::{Flavour, TensorRtError};
use engines::error_kind::ErrorKind;
use engines::manifest::{ManifestError, Models};
use engines::profile::ProfileError;
use engines::recipe::Recipe;
use std::io;
use std::path::{Path, PathBuf};

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    pub input: BuildInput,
    pub limits: Limits,
    pub flavour: Flavour,
    /// Streaming multiprocessor version without its dot, e.g. 89.
    pub sm: u32,
    /// Most scratch of an engine on the device, bytes.
    pub workspace: u64,
    /// 0 to 5, TensorRT's own scale.
    pub level: i32,
    pub weights: InsideWeights,
    pub detail: LayerDetail,
    /// Most host memory for one build, bytes.
    pub memory_limit: u64,
    /// Engines to leave out, by name.
    pub skip: Vec<String>,
    /// Folder of the engines.
    pub out: PathBuf,
    /// The command line, for whoever finds the folder stale.
    pub command: String,
}

/// Where the weights inside an engine are when it runs. Only the enterprise library streams them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideWeights {
    Resident,
    Streamed,
}

/// What an engine remembers of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerDetail {
    Names,
    /// Everything, written as JSON beside the engine.
    Inspected,
}

/// Why engines could not be planned or built.
#[derive(Debug, thiserror::Error)]
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
        "{name}: building it takes about {need} bytes of host memory ({factor} x {weights} bytes of weights inside), the limit is {limit}; \
         build on a machine with more, raise --memory-limit, or leave it out with --skip {name} and run it on another backend"
    )]
    Memory {
        name: String,
        need: u64,
        factor: f64,
        weights: u64,
        limit: u64,
    },
    #[error(
        "recipe: the profile wants {want}, the models are {got}; export them with --recipe {want}, or use a profile of {got}"
    )]
    Recipe { want: Recipe, got: Recipe },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("--skip {name}: no engine has that name; they are {have}")]
    Skip { name: String, have: String },
    #[error("{0}")]
    Unfit(String),
}

impl BuildError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Write(e) => e.kind(),
            Self::TensorRt(e) => e.kind(),
            Self::Memory { .. } => ErrorKind::Resources,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Resources
            }
            Self::Io { .. } => ErrorKind::Input,
            Self::Prepare { .. } => ErrorKind::Model,
            Self::Profile(e) => e.kind(),
            Self::Recipe { .. } | Self::Skip { .. } | Self::Unfit(_) => ErrorKind::Usage,
        }
    }
}

/// Where graphs come from.
#[derive(Clone, Debug)]
pub enum BuildInput {
    /// An export, weights and all.
    Models(Box<Models>),
    /// Sizes alone: engines whose weights are bound can be built, the others can only be planned.
    Preset(Preset, Recipe),
}

impl BuildInput {
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
