//! `avatar-export build`: every component as a TensorRT engine for one profile, in a folder that says what each was built from. An engine that
//! is there already, built from the same graph, weights, sizes, library and GPU, is kept. The prepared graphs stay beside the engines, with
//! the lines that build the same by NVIDIA's own tool. Not here: TensorRT itself (`engines::backend::tensorrt`).
pub mod command;
mod item;
mod memory;
pub mod prepare;
pub mod sizes;
mod tool;

pub use item::{Item, Source, items};
pub use memory::{Peak, available};

use engines::backend::tensorrt::engine_list::{self, EngineEntry, EngineList};
use engines::backend::tensorrt::{Flavour, TensorRtError};
use engines::error_kind::ErrorKind;
use engines::manifest::{FileEntry, ManifestError, hash_file};
use engines::recipe::Recipe;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: Source,
    pub limits: sizes::Limits,
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
    Graphs(#[from] crate::export::ExportError),
    #[error(transparent)]
    Write(#[from] crate::graph::write::WriteError),
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    #[error("{graph}: {source}")]
    Prepare {
        graph: String,
        source: prepare::PrepareError,
    },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
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
    Profile(#[from] engines::profile::ProfileError),
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
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::Resources
            }
            Self::Io { .. } => ErrorKind::Input,
            Self::Prepare { .. } => ErrorKind::Model,
            Self::Profile(e) => e.kind(),
            Self::Recipe { .. } | Self::Skip { .. } | Self::Unfit(_) => ErrorKind::Usage,
        }
    }
}

/// What became of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Built,
    /// It was there, built from the same.
    Kept,
    /// Its weights are inside and there are no models to take them from.
    NoWeights,
}

/// Told as the work proceeds.
pub trait Watch: Sync {
    /// One engine begins: its place in the list and how many there are.
    fn begin(&self, item: &Item, at: usize, all: usize);
    fn done(&self, item: &Item, done: Done, entry: Option<&EngineEntry>);
}

/// Name of the text file with the lines for NVIDIA's own tool.
pub const TOOL_FILE: &str = "trtexec.txt";
/// Folder of the prepared graphs.
pub const GRAPHS: &str = "graphs";

/// Writes the prepared graphs, and the lines that build the same engines by NVIDIA's own tool.
///
/// # Errors
/// The file system's.
pub fn write_graphs(request: &Request, items: &[Item]) -> Result<PathBuf, BuildError> {
    let folder = request.out.join(GRAPHS);
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    for item in items {
        let path = folder.join(item.graph_file());
        write_atomically(&path, &item.prepared.onnx)?;
        for (file, from) in &item.data_files {
            link(from, &folder.join(file))?;
        }
    }
    let path = request.out.join(TOOL_FILE);
    write_atomically(&path, tool::lines(request, items).as_bytes())?;
    Ok(path)
}

/// Puts a link to a data file beside the graphs, which name it as beside them.
fn link(from: &Path, to: &Path) -> Result<(), BuildError> {
    let from = fs::canonicalize(from).map_err(io(from))?;
    if fs::read_link(to).is_ok_and(|at| at == from) {
        return Ok(());
    }
    if to.symlink_metadata().is_ok() {
        fs::remove_file(to).map_err(io(to))?;
    }
    std::os::unix::fs::symlink(&from, to).map_err(io(to))
}

/// Names of the engines that are in the folder already.
pub fn present(request: &Request, items: &[Item]) -> BTreeSet<String> {
    let known = known(&request.out);
    items
        .iter()
        .filter(|i| i.find(&known, &request.out).is_some())
        .map(|i| i.name.clone())
        .collect()
}

/// Refuses what cannot be built within the limit, before anything is.
///
/// # Errors
/// [`BuildError::Memory`].
pub fn check(request: &Request, items: &[Item]) -> Result<(), BuildError> {
    let there = present(request, items);
    let too_large = items.iter().find(|i| {
        i.buildable() && i.predicted.memory > request.memory_limit && !there.contains(&i.name)
    });
    match too_large {
        None => Ok(()),
        Some(i) => Err(BuildError::Memory {
            name: i.name.clone(),
            need: i.predicted.memory,
            factor: item::MEMORY_PER_WEIGHT,
            weights: i.weights,
            limit: request.memory_limit,
        }),
    }
}

/// An engine's file, and what was measured while it was built.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub plan: Vec<u8>,
    pub seconds: f64,
    pub memory: u64,
    /// Its layers as JSON, when they were asked for.
    pub layers: Option<String>,
}

/// Builds every engine that is not there. `make` builds one from its prepared graph's path.
///
/// # Errors
/// The first engine that fails; those before it stay and are found again.
pub fn run(
    request: &Request,
    version: &str,
    items: &[Item],
    watch: &dyn Watch,
    make: &dyn Fn(&Item, &Path) -> Result<Made, TensorRtError>,
) -> Result<EngineList, BuildError> {
    let before = known(&request.out);
    let mut built = EngineList {
        format: engine_list::FORMAT.to_owned(),
        flavour: request.flavour,
        version: version.to_owned(),
        sm: request.sm,
        recipe: request.source.recipe(),
        command: request.command.clone(),
        engines: Vec::new(),
    };
    for (at, item) in items.iter().enumerate() {
        watch.begin(item, at, items.len());
        if !item.buildable() {
            watch.done(item, Done::NoWeights, None);
            continue;
        }
        let (done, entry) = match item.find(&before, &request.out) {
            Some(entry) => (Done::Kept, entry),
            None => (Done::Built, one(request, item, make)?),
        };
        watch.done(item, done, Some(&entry));
        built.engines.push(entry);
        // Written each time: what is done stays done when the next build is interrupted.
        write_list(&request.out, &built, &before)?;
    }
    write_list(&request.out, &built, &[])?;
    Ok(built)
}

fn one(
    request: &Request,
    item: &Item,
    make: &dyn Fn(&Item, &Path) -> Result<Made, TensorRtError>,
) -> Result<EngineEntry, BuildError> {
    let graph = request.out.join(GRAPHS).join(item.graph_file());
    let made = make(item, &graph)?;
    let path = request.out.join(item.engine_file());
    write_atomically(&path, &made.plan)?;
    if let Some(layers) = &made.layers {
        write_atomically(&path.with_extension("layers.json"), layers.as_bytes())?;
    }
    let blake3 = hash_file(&path).map_err(io(&path))?;
    let file = FileEntry {
        file: item.engine_file(),
        bytes: made.plan.len() as u64,
        blake3,
    };
    Ok(item.entry(file, made.seconds, made.memory))
}

/// Engines of the folder's list; none when it has none that can be read.
fn known(out: &Path) -> Vec<EngineEntry> {
    let text = fs::read_to_string(out.join(engine_list::FILE)).unwrap_or_default();
    engine_list::parse(&text)
        .map(|s| s.engines)
        .unwrap_or_default()
}

/// Writes the list; `more` are engines of an older list that are still to be looked at, so that an interruption forgets none.
fn write_list(out: &Path, built: &EngineList, more: &[EngineEntry]) -> Result<(), BuildError> {
    let mut list = built.clone();
    let rest = more
        .iter()
        .filter(|m| !built.engines.iter().any(|e| e.name == m.name));
    list.engines.extend(rest.cloned());
    let text = serde_json::to_string_pretty(&list).expect("a list of engines is plain data");
    write_atomically(&out.join(engine_list::FILE), text.as_bytes())
}

/// No file has its name before it is complete.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| {
        // A leftover is clutter only.
        let _ = fs::remove_file(&partial);
        BuildError::Io {
            path: path.to_owned(),
            source,
        }
    })
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> BuildError + '_ {
    move |source| BuildError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Builds with TensorRT itself, which this binary must have.
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub mod library {
    use super::{InsideWeights, Item, LayerDetail, Made, Peak, Request};
    use engines::backend::tensorrt::build::{self, Detail, InputRange, Options, WeightMemory};
    use engines::backend::tensorrt::library::Library;
    use engines::backend::tensorrt::{TensorRtError, session};
    use std::path::Path;
    use std::time::Instant;

    /// One engine from its prepared graph.
    ///
    /// # Errors
    /// A graph that TensorRT refuses; layers to inspect without a driver.
    pub fn make(
        library: Library,
        request: &Request,
        item: &Item,
        graph: &Path,
        progress: build::Progress,
    ) -> Result<Made, TensorRtError> {
        let ranges: Vec<InputRange> = item
            .prepared
            .varying
            .iter()
            .map(|v| InputRange {
                name: v.name.clone(),
                min: v.min.clone(),
                opt: v.opt.clone(),
                max: v.max.clone(),
            })
            .collect();
        let options = Options {
            sm: request.sm,
            workspace: Some(request.workspace),
            level: request.level,
            weights: match request.weights {
                InsideWeights::Streamed if item.weights > 0 => WeightMemory::Streamed,
                _ => WeightMemory::Resident,
            },
            ranges: &ranges,
            detail: match request.detail {
                LayerDetail::Names => Detail::Names,
                LayerDetail::Inspected => Detail::All,
            },
        };
        let peak = Peak::start();
        let start = Instant::now();
        let plan = build::build(library, graph, &options, progress)?;
        let seconds = start.elapsed().as_secs_f64();
        let memory = peak.stop();
        let layers = match request.detail {
            LayerDetail::Names => None,
            LayerDetail::Inspected => Some(session::inspect(library, graph, &plan)?),
        };
        Ok(Made {
            plan,
            seconds,
            memory,
            layers,
        })
    }
}

#[cfg(test)]
mod tests;
