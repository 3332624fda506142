//! The whole export on one page.
//!
//! It opens the checkpoints, lays the LoRAs over the transformer, builds every graph, writes the
//! graphs, writes every weight once, and writes the manifest last. All files go to a folder beside
//! the target, which is renamed at the end: no unfinished export has the target's name. An export
//! that was stopped or killed continues from that folder.
mod checkpoints;
mod error;
mod journal;
mod limits;
mod staging;
mod writer;

pub use error::ExportError;
pub use limits::{Limits, Rates};
pub use staging::Start;
pub use writer::Progress;

use crate::checkpoint::sums::SumsWatch;
use crate::checkpoint::{LoraFile, SumsProgress, layout, read_text};
use crate::families::{Family, generic};
use crate::graph::data::{BLOCK, DataLayout, DataPlan};
use crate::graph::write::{WeightPlacement, to_model, write_model};
use crate::graph::{Graph, lower};
use crate::usage::{self, PeakMemory};
use checkpoints::Checkpoints;
use engines::contract::{Contract, Weights};
use engines::manifest::{
    self, ComponentEntry, DataEntry, FORMAT, FileEntry, Manifest, WeightEntry,
};
use engines::recipe::Recipe;
use journal::Identity;
use staging::Staging;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The checkpoint to export, and the settings of the export.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder of the base checkpoint.
    pub ckpt_dir: PathBuf,
    /// LoRAs to merge into the transformer, in this order; none exports the base weights.
    pub loras: Vec<LoraFile>,
    /// Precision of the graphs.
    pub recipe: Recipe,
    /// Number of the transformer's first layers to export; `None` exports all layers.
    pub layers: Option<usize>,
    /// Folder to make.
    pub out: PathBuf,
}

/// The exports after which the machine's limits are measured. A measurement takes a few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MeasureLimits {
    /// After no export.
    #[default]
    Never,
    /// After an export of [`LONG_EXPORT_SECONDS`] or more.
    LongExports,
    /// After every export, with longer measurements.
    Always,
}

/// Seconds from which [`MeasureLimits::LongExports`] measures: below, the measurement itself would
/// take a noticeable part of the time.
pub const LONG_EXPORT_SECONDS: f64 = 20.0;

/// A message for the user while an export runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A fact that the user should know.
    Notice(&'a str),
    /// A file of the checkpoint is compared with its list of sums.
    Checking(SumsProgress<'a>),
    /// A block of a data file is in place.
    Progress(Progress<'a>),
}

/// Options of an export that do not change its result.
#[derive(Default)]
pub struct Options<'a> {
    /// The use of an unfinished export that lies beside the target.
    pub start: Start,
    /// The exports after which limits are measured.
    pub measure_limits: MeasureLimits,
    /// The caller sets this flag to stop the export soon. Finished blocks are kept.
    pub stop: Option<&'a AtomicBool>,
}

/// The result of an export.
#[derive(Clone, Debug)]
pub struct Report {
    /// Folder of the export.
    pub out: PathBuf,
    /// Number of components.
    pub components: usize,
    /// Number of weights.
    pub weights: usize,
    /// Bytes of all data files.
    pub bytes: u64,
    /// Of these bytes, those that an earlier, unfinished run wrote and that were found sound.
    pub kept: u64,
    /// Number of tensors that the LoRAs change.
    pub lora_targets: usize,
    /// Wall time, in seconds. It includes the comparison with lists of sums.
    pub seconds: f64,
    /// Processor time of all threads, in seconds. The difference to `seconds` is time spent
    /// waiting.
    pub processor_seconds: Option<f64>,
    /// Highest anonymous memory of the process (without pages of files), in bytes, by sampling.
    pub peak_anonymous: Option<u64>,
    /// Highest resident memory, pages of files included, in bytes.
    pub peak_resident: Option<u64>,
    /// The measured limits of the machine.
    pub limits: LimitsOutcome,
}

/// The outcome of measuring the machine's limits.
#[derive(Clone, Debug, PartialEq)]
pub enum LimitsOutcome {
    /// The options asked for no measurement of this export.
    NotRequested,
    /// The limits, with the time of this export.
    Measured(Limits),
    /// The measurement failed, for example because the disk is full.
    Failed {
        /// The system's message.
        reason: String,
    },
}

/// Exports a checkpoint folder with default options. Calls `progress` with the data file's name,
/// the bytes in place and the bytes in total.
///
/// # Errors
/// See [`export_with`].
pub fn export(
    request: &Request,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Report, ExportError> {
    export_with(request, &Options::default(), &mut |event| {
        if let Event::Progress(p) = event {
            progress(p.file, p.done, p.total);
        }
    })
}

/// Exports a checkpoint folder, or continues an unfinished export of the same request.
///
/// # Errors
/// Every fault of the inputs, together; a disk that is full; a target that is no export; the
/// caller's stop flag.
pub fn export_with(
    request: &Request,
    options: &Options<'_>,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Report, ExportError> {
    let (began, watch) = (Instant::now(), PeakMemory::start());
    let (storage, processor) = (usage::read_from_storage(), usage::processor_seconds());
    if request.recipe == Recipe::Fp8 {
        let got = request.recipe;
        return Err(ExportError::Recipe { got });
    }
    staging::check_target(&request.out)?;
    drop(staging::unused(&request.out)?);
    let mut sums = SumsWatch {
        stop: options.stop,
        observe: Box::new(|progress| observe(Event::Checking(progress))),
    };
    let mut checkpoints = Checkpoints::open(&request.ckpt_dir, &request.loras, &mut sums)?;
    drop(sums);
    if let Some(count) = checkpoints.sums {
        observe(Event::Notice(&count.to_string()));
    }
    let notices = checkpoints.lora_notices();
    for notice in notices.into_iter().chain(checkpoints.vae_notice()) {
        observe(Event::Notice(&notice));
    }
    if let Some(layers) = request.layers {
        checkpoints = checkpoints.cut(layers)?;
    }
    unless_stopped(options)?;
    let families = checkpoints.graphs(request.recipe)?;
    unless_stopped(options)?;
    let plans = families
        .iter()
        .map(|f| {
            let weights = f.graphs.iter().flat_map(|(_, g)| &g.weights);
            DataPlan::new(format!("{}.data", f.name), weights)
        })
        .collect::<Result<Vec<_>, _>>()?;
    tracing::info!(
        folder = %request.ckpt_dir.display(),
        loras = request.loras.len(),
        recipe = %request.recipe,
        graphs = families.iter().map(|f| f.graphs.len()).sum::<usize>(),
        "checkpoints opened"
    );
    let identity = checkpoints.identity(request.recipe, &families, &plans)?;
    let (mut staging, notice) = Staging::open(&request.out, &identity, options.start)?;
    if let Some(notice) = notice {
        observe(Event::Notice(&notice));
    }
    let job = Job {
        request,
        checkpoints: &checkpoints,
        families: &families,
        plans: &plans,
        identity: &identity,
    };
    let (mut done, mut kept) = (0, 0);
    let written = job.write(&mut staging, options, &mut |p| {
        (done, kept) = (p.done, p.kept);
        observe(Event::Progress(p));
    });
    let total = plans.iter().map(DataPlan::bytes).sum();
    let manifest = match written {
        Ok(manifest) => manifest,
        Err(source) => return Err(unfinished(staging, done, total, source)),
    };
    let _replaced = match staging::unused(&request.out) {
        Ok(file) => file,
        Err(source) => return Err(unfinished(staging, total, total, source)),
    };
    staging.publish(&request.out, names(&manifest))?;
    tracing::info!(folder = %request.out.display(), bytes = total, "export complete");
    let mut report = Report {
        out: request.out.clone(),
        components: manifest.components.len(),
        weights: manifest.data.iter().map(|d| d.weights.len()).sum(),
        bytes: total,
        kept,
        lora_targets: checkpoints.dit.lora_work().0,
        seconds: began.elapsed().as_secs_f64(),
        processor_seconds: usage::processor_seconds()
            .zip(processor)
            .map(|(now, before)| now - before),
        peak_anonymous: watch.peak(),
        peak_resident: usage::peak_resident(),
        limits: LimitsOutcome::NotRequested,
    };
    let (task, files) = (job.task(&report, storage), checkpoints.files());
    // Mapped pages cannot be dropped from the page cache, so reading them would not read from
    // storage.
    drop(plans);
    drop(families);
    drop(checkpoints);
    report.limits = measure_limits(options.measure_limits, task, &files, &request.out);
    Ok(report)
}

fn unless_stopped(options: &Options<'_>) -> Result<(), ExportError> {
    match options.stop {
        Some(stop) if stop.load(Ordering::Relaxed) => Err(ExportError::Stopped),
        _ => Ok(()),
    }
}

/// Measures the machine's limits, when `wanted` covers this export, and returns them.
fn measure_limits(
    wanted: MeasureLimits,
    task: limits::Task,
    files: &[PathBuf],
    out: &Path,
) -> LimitsOutcome {
    let effort = match wanted {
        MeasureLimits::LongExports if task.seconds >= LONG_EXPORT_SECONDS => limits::Effort::BRIEF,
        MeasureLimits::Always => limits::Effort::THOROUGH,
        MeasureLimits::LongExports | MeasureLimits::Never => return LimitsOutcome::NotRequested,
    };
    // The parent of a relative name without a folder is the empty path.
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty());
    let disk = parent.unwrap_or(Path::new("."));
    match limits::measure(files, disk, task.threads, effort) {
        Ok(rates) => LimitsOutcome::Measured(Limits::new(task, rates)),
        Err(e) => LimitsOutcome::Failed {
            reason: e.to_string(),
        },
    }
}

/// Returns the error of a failed run. Where finished blocks exist, it says that they are kept;
/// otherwise the unfinished folder is removed.
fn unfinished(staging: Staging, done: u64, total: u64, source: ExportError) -> ExportError {
    let noted = staging.journal.known().len() as u64 * BLOCK;
    if noted == 0 && done == 0 {
        staging.remove();
        return source;
    }
    ExportError::Unfinished {
        path: staging.path,
        done: done.max(noted.min(total)),
        total,
        source: Box::new(source),
    }
}

/// Returns the name of every file that belongs to an export.
fn names(manifest: &Manifest) -> BTreeSet<String> {
    let graphs = manifest
        .components
        .iter()
        .flat_map(|c| [Some(&c.graph), c.cpu_graph.as_ref()])
        .flatten();
    let data = manifest.data.iter().map(|d| &d.file);
    let files = graphs.chain(data).chain([&manifest.tokenizer]);
    files
        .map(|f| f.file.clone())
        .chain([manifest::FILE.to_owned()])
        .collect()
}

/// An export whose graphs are built and whose data files are laid out.
struct Job<'a> {
    request: &'a Request,
    checkpoints: &'a Checkpoints,
    families: &'a [Family],
    plans: &'a [DataPlan<'a>],
    identity: &'a Identity,
}

impl Job<'_> {
    /// Writes every file of the export.
    fn write(
        &self,
        staging: &mut Staging,
        options: &Options<'_>,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Manifest, ExportError> {
        staging.check_room(self.plans)?;
        let dir = &staging.path;
        let mut components = Vec::new();
        let mut files = GraphFiles::default();
        for (family, plan) in self.families.iter().zip(self.plans) {
            let layout = plan.layout();
            for (contract, graph) in &family.graphs {
                let file = files.write(contract, graph, &layout, dir)?;
                components.push(component(contract, graph, file, &plan.file));
            }
        }
        let tokenizer = copy_tokenizer(&self.request.ckpt_dir, dir)?;
        let works = self.families.iter().zip(self.plans);
        let works = works
            .map(|(f, plan)| writer::Work::open(plan, self.checkpoints.of(f), dir))
            .collect::<Result<Vec<_>, _>>()?;
        let never = AtomicBool::new(false);
        let stop = options.stop.unwrap_or(&never);
        let hashes = writer::write(&works, &mut staging.journal, stop, observe)?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            exporter: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: self.request.recipe,
            config: self.checkpoints.config.clone(),
            layers_of: self.checkpoints.layers_of,
            lora: self
                .checkpoints
                .lora_entries(self.identity.loras.iter().map(|l| l.blake3.as_str())),
            tokenizer,
            components,
            data: self
                .plans
                .iter()
                .zip(hashes)
                .map(|(p, h)| data_entry(p, h))
                .collect(),
        };
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
        let path = staging.path.join(manifest::FILE);
        fs::write(&path, text).map_err(|source| ExportError::Io { path, source })?;
        staging.synchronise(&names(&manifest))?;
        Ok(manifest)
    }

    /// Returns the amount of work that a finished run did; the limits are computed for it.
    fn task(&self, report: &Report, storage_before: Option<u64>) -> limits::Task {
        let files = self.checkpoints.files();
        let read: u64 = files
            .iter()
            .filter_map(|f| fs::metadata(f).ok())
            .map(|m| m.len())
            .sum();
        // A run that continued another did only this share of the work itself.
        let share = |n: u64| {
            let written = u128::from(report.bytes - report.kept);
            (u128::from(n) * written / u128::from(report.bytes.max(1))) as u64
        };
        limits::Task {
            read: share(read),
            from_storage: usage::read_from_storage()
                .zip(storage_before)
                .map(|(now, before)| now - before),
            written: report.bytes - report.kept,
            multiply_adds: share(self.checkpoints.dit.lora_work().1),
            threads: writer::workers(),
            seconds: report.seconds,
        }
    }
}

fn data_entry(plan: &DataPlan<'_>, blake3: String) -> DataEntry {
    let entries = plan.weights().map(|(offset, w)| WeightEntry {
        name: w.name.clone(),
        key: w.key.clone(),
        dtype: w.dtype,
        shape: w.shape.clone(),
        offset,
        length: w.bytes(),
        transposed: w.transform == crate::graph::Transform::Transpose2,
    });
    DataEntry {
        weights: entries.collect(),
        file: FileEntry {
            file: plan.file.clone(),
            bytes: plan.bytes(),
            blake3,
        },
    }
}

/// The graph files of an export, by name; components whose weights are bound share one.
#[derive(Default)]
struct GraphFiles(BTreeMap<String, (Graph, GraphEntry)>);

/// The files of a graph. A graph that needs kernels which the CPU provider lacks has a second file.
#[derive(Clone)]
struct GraphEntry {
    graph: FileEntry,
    cpu: Option<FileEntry>,
}

impl GraphFiles {
    /// Writes the graph files of a component, unless another component with the same graph wrote
    /// them.
    fn write(
        &mut self,
        contract: &Contract,
        graph: &Graph,
        layout: &DataLayout,
        dir: &Path,
    ) -> Result<GraphEntry, ExportError> {
        let (graph, placement) = match contract.weights {
            Weights::Inside => (graph.clone(), WeightPlacement::External(layout)),
            Weights::Bound => (generic(contract, graph), WeightPlacement::AsInputs),
        };
        let file = format!("{}.onnx", graph.name);
        if let Some((first, entry)) = self.0.get(&file) {
            let same = first.values == graph.values && first.nodes == graph.nodes;
            return if same {
                Ok(entry.clone())
            } else {
                Err(ExportError::Unequal { file })
            };
        }
        let lowered = lower::for_cpu(&graph);
        let cpu = (lowered != graph)
            .then(|| write_graph(&lowered, format!("{}.cpu.onnx", graph.name), placement, dir))
            .transpose()?;
        let entry = GraphEntry {
            graph: write_graph(&graph, file.clone(), placement, dir)?,
            cpu,
        };
        self.0.insert(file, (graph, entry.clone()));
        Ok(entry)
    }
}

fn write_graph(
    graph: &Graph,
    file: String,
    placement: WeightPlacement<'_>,
    dir: &Path,
) -> Result<FileEntry, ExportError> {
    let path = dir.join(&file);
    let blake3 = write_model(&path, &to_model(graph, placement)?)?;
    let bytes = fs::metadata(&path)
        .map_err(|source| ExportError::Io { path, source })?
        .len();
    tracing::debug!(file, bytes, "graph written");
    Ok(FileEntry {
        file,
        bytes,
        blake3,
    })
}

fn component(
    contract: &Contract,
    graph: &Graph,
    written: GraphEntry,
    data: &str,
) -> ComponentEntry {
    let named = match contract.weights {
        Weights::Inside => graph.clone(),
        Weights::Bound => generic(contract, graph),
    };
    let weights = named.weights.iter().zip(&graph.weights);
    ComponentEntry {
        name: graph.name.clone(),
        contract: contract.name.to_owned(),
        fingerprint: contract.fingerprint(),
        graph: written.graph,
        cpu_graph: written.cpu,
        data: data.to_owned(),
        weights: weights
            .map(|(inside, w)| (inside.name.clone(), w.name.clone()))
            .collect(),
        taps: named
            .tap_values()
            .map(|(path, value)| (path.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn copy_tokenizer(ckpt_dir: &Path, dir: &Path) -> Result<FileEntry, ExportError> {
    let from = ckpt_dir
        .join(layout::TOKENIZER_DIR)
        .join(layout::TOKENIZER_FILE);
    let io = |path: &Path, source| ExportError::Io {
        path: path.to_owned(),
        source,
    };
    let to = dir.join(layout::TOKENIZER_FILE);
    let text = read_text(&from)?;
    fs::write(&to, &text).map_err(|e| io(&to, e))?;
    let blake3 = manifest::hash_file(&to).map_err(|e| io(&to, e))?;
    Ok(FileEntry {
        file: layout::TOKENIZER_FILE.to_owned(),
        bytes: text.len() as u64,
        blake3,
    })
}
