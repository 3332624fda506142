//! Builds every component as a TensorRT engine for one profile.
//!
//! The folder of the engines lists the inputs of each engine. An engine stays when it was built
//! from the same graph, weights, sizes, library and GPU. The prepared graphs lie beside the
//! engines, with command lines for NVIDIA's own tool. Not here: TensorRT itself
//! (`engines::backend::tensorrt`).
pub mod command;
mod item;
pub mod prepare;
mod request;
pub mod sizes;
mod tool;

pub use crate::usage::PeakMemory;
pub use item::{Item, items};
pub use request::{BuildError, BuildInput, InsideWeights, LayerDetail, Request};
pub use tool::GRAPHS;

use request::io;

use engines::backend::tensorrt::TensorRtError;
use engines::backend::tensorrt::engine_list::{self, EngineEntry, EngineList};
use engines::manifest::{FileEntry, hash_file};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The result for one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The engine was built.
    Built,
    /// The folder has an engine that was built from the same inputs.
    Kept,
    /// The engine holds weights, and no export was given that has them.
    NoWeights,
}

/// An observer of the build.
pub trait Watch: Sync {
    /// Receives the start of an engine, its place in the list and the length of the list.
    fn begin(&self, item: &Item, at: usize, all: usize);
    /// Receives the result for an engine, and its entry in the list when there is one.
    fn done(&self, item: &Item, done: Done, entry: Option<&EngineEntry>);
}

/// Name of the text file with the lines for NVIDIA's own tool.
pub const TOOL_FILE: &str = "trtexec.txt";

/// Writes the prepared graphs, and the command lines that build the same engines with NVIDIA's own
/// tool. Returns the path of the command lines.
///
/// # Errors
/// An error of the file system.
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

/// Links a data file into the folder of the graphs, where the graphs expect it.
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

/// Returns the names of the engines that the folder has already.
pub fn present(request: &Request, items: &[Item]) -> BTreeSet<String> {
    let known = known(&request.out);
    items
        .iter()
        .filter(|i| i.find(&known, &request.out).is_some())
        .map(|i| i.name.clone())
        .collect()
}

/// Checks, before the first build, that every build fits the memory limit.
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

/// An engine's file, with the measurements of its build.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Bytes of the engine's file.
    pub plan: Vec<u8>,
    /// Time of the build.
    pub seconds: f64,
    /// Most host memory of the build, in bytes; 0 where the system does not tell.
    pub memory: u64,
    /// The engine's layers as JSON, when the request asked for them.
    pub layers: Option<String>,
}

/// Builds every engine that the folder lacks. `make` builds one engine from the path of its graph.
///
/// # Errors
/// The first engine that fails. The engines before it stay, and the next build finds them.
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
        recipe: request.input.recipe(),
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
        tracing::info!(
            engine = entry.file.file,
            seconds = entry.build_seconds,
            "engine listed"
        );
        watch.done(item, done, Some(&entry));
        built.engines.push(entry);
        // The list is written after each engine, so an interruption keeps every finished engine.
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

/// Returns the engines of the folder's list. A list that cannot be read counts as empty, and the
/// engines are built again.
fn known(out: &Path) -> Vec<EngineEntry> {
    let text = fs::read_to_string(out.join(engine_list::FILE)).unwrap_or_default();
    engine_list::parse(&text)
        .map(|s| s.engines)
        .unwrap_or_default()
}

/// Writes the list of engines. `more` are engines of an older list that are not compared yet, so an
/// interruption loses none.
fn write_list(out: &Path, built: &EngineList, more: &[EngineEntry]) -> Result<(), BuildError> {
    let mut list = built.clone();
    let rest = more
        .iter()
        .filter(|m| !built.engines.iter().any(|e| e.name == m.name));
    list.engines.extend(rest.cloned());
    let text = serde_json::to_string_pretty(&list).expect("a list of engines is plain data");
    write_atomically(&out.join(engine_list::FILE), text.as_bytes())
}

/// Writes a file that has its name only once it is complete.
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
        // A partial file that stays does no harm.
        let _ = fs::remove_file(&partial);
        BuildError::Io {
            path: path.to_owned(),
            source,
        }
    })
}

/// Builds with TensorRT itself, for a binary with that feature.
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub mod library {
    use super::{InsideWeights, Item, LayerDetail, Made, PeakMemory, Request};
    use engines::backend::tensorrt::build::{self, Detail, InputRange, Options, WeightMemory};
    use engines::backend::tensorrt::library::Library;
    use engines::backend::tensorrt::{TensorRtError, session};
    use std::path::Path;
    use std::time::Instant;

    /// Builds one engine from its prepared graph.
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
        let watch = PeakMemory::start();
        let start = Instant::now();
        let plan = build::build(library, graph, &options, progress)?;
        let seconds = start.elapsed().as_secs_f64();
        let memory = watch.growth().unwrap_or(0);
        drop(watch);
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
