//! The whole export on one page: open the checkpoints, lay the LoRA over the DiT, build every graph, write graphs, write weights once, write
//! the manifest last. Everything goes to a folder beside the target and is renamed at the end, so no half-written export has its name; an
//! export that was stopped or killed continues from that folder.
mod journal;
mod limits;
mod staging;
mod usage;
mod writer;

pub use limits::{Limits, Rates};
pub use staging::Start;
pub use writer::Progress;

use crate::checkpoint::{Checkpoint, CheckpointError, Lora, LoraScale, StoredDType, layout};
use crate::config::{self, ConfigError};
use crate::graph::data::{BLOCK, DataLayout, DataPlan, WeightBytes};
use crate::graph::lower;
use crate::graph::write::{WeightPlacement, WriteError, to_model, write_model};
use crate::graph::{Builder, Fault, Graph, GraphError, GraphErrors, WeightSource};
use crate::models::{umt5, wan_s2v, wan_vae, wav2vec2};
use engines::components::{dit, speech, text, vae};
use engines::contract::{Contract, DType, Sizes, Weights};
use engines::error_kind::ErrorKind;
use engines::manifest::{
    self, ComponentEntry, DataEntry, FORMAT, FileEntry, LoraEntry, Manifest, ModelConfig,
    WeightEntry,
};
use engines::recipe::Recipe;
use journal::{Identity, Stamp};
use staging::Staging;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// What to export.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder of the base checkpoint.
    pub ckpt_dir: PathBuf,
    /// LoRA and its strength; `None` exports the base weights.
    pub lora: Option<(PathBuf, LoraScale)>,
    pub recipe: Recipe,
    /// Layers of the transformer to export, from the first; `None`: all.
    pub layers: Option<usize>,
    /// Folder to make.
    pub out: PathBuf,
}

/// When the limits of the machine are measured, which takes a few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    #[default]
    Never,
    /// After an export that took long enough to be held against them.
    Long,
    /// Always, and more thoroughly.
    Always,
}

/// What is told while an export runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Something that the user should know.
    Notice(&'a str),
    Progress(Progress<'a>),
}

/// How to run an export.
#[derive(Default)]
pub struct Options<'a> {
    pub start: Start,
    pub measure: Measure,
    /// Set from outside to stop soon; what is written is kept.
    pub stop: Option<&'a AtomicBool>,
}

/// What an export did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub out: PathBuf,
    pub components: usize,
    pub weights: usize,
    pub bytes: u64,
    /// Of these, written by an earlier, unfinished run and found sound.
    pub kept: u64,
    pub lora_targets: usize,
    pub seconds: f64,
    /// Processor time of all threads: tells waiting, for the disk or for other programs, from work.
    pub processor_seconds: Option<f64>,
    /// Most memory of the process's own, file pages apart, in bytes, sampled while it ran.
    pub peak_anonymous: Option<u64>,
    /// Most resident memory, pages of files included.
    pub peak_resident: Option<u64>,
    pub limits: Option<Limits>,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{}: already exists and is not an export; choose another --out or remove it", path.display())]
    Occupied { path: PathBuf },
    #[error("{}: another export is writing here; wait for it, or choose another --out", path.display())]
    Busy { path: PathBuf },
    #[error("{}: {want} bytes are needed, {free} are free", path.display())]
    NoSpace { path: PathBuf, want: u64, free: u64 },
    #[error("layers is {got}, wanted 1 to {have}, which the checkpoint has")]
    Layers { got: usize, have: usize },
    #[error("recipe is {got}, wanted fp32 or bf16: no exporter makes it yet")]
    Recipe { got: Recipe },
    #[error("stopped by a signal")]
    Stopped,
    #[error("{source}; {done} of {total} bytes are kept in {}: the same command continues, --restart begins anew", path.display())]
    Unfinished {
        path: PathBuf,
        done: u64,
        total: u64,
        source: Box<ExportError>,
    },
    #[error("{}: wanted a checkpoint folder, found {found}", path.display())]
    NoFolder { path: PathBuf, found: &'static str },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}", errors.0.iter().map(|e| format!("{checkpoint}: {e}")).collect::<Vec<_>>().join("\n"))]
    Graph {
        checkpoint: String,
        errors: GraphErrors,
    },
    #[error("{checkpoint}: {} tensors that no graph reads: {}", keys.len(), keys.join(", "))]
    Unused {
        checkpoint: String,
        keys: Vec<String>,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{file}: wanted the same graph for every layer, the layers of this checkpoint differ")]
    Unequal { file: String },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}", many.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Many { many: Vec<ExportError> },
}

impl ExportError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Occupied { .. } | Self::Layers { .. } | Self::Recipe { .. } => ErrorKind::Usage,
            Self::Busy { .. } | Self::NoSpace { .. } => ErrorKind::Resources,
            Self::Stopped => ErrorKind::Interrupted,
            Self::Unfinished { source, .. } => source.kind(),
            Self::Checkpoint(e) => e.kind(),
            Self::Write(e) => e.kind(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::Resources
            }
            Self::Io { .. } => ErrorKind::Input,
            _ => ErrorKind::Model,
        }
    }
}

impl WeightSource for Checkpoint {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.info(key).map(|i| i.shape.clone())
    }

    fn keys(&self) -> Vec<String> {
        self.names().map(str::to_owned).collect()
    }

    fn origin(&self) -> Option<String> {
        Some(self.path().display().to_string())
    }
}

impl WeightBytes for Checkpoint {
    type Error = CheckpointError;

    fn read_f32(&self, key: &str) -> Result<Vec<f32>, Self::Error> {
        Self::read_f32(self, key)
    }

    fn read_f32_range(
        &self,
        key: &str,
        elements: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, Self::Error> {
        Self::read_f32_range(self, key, elements)
    }

    fn read_f32_tile(
        &self,
        key: &str,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), Self::Error> {
        Self::read_f32_tile(self, key, rows, columns, out)
    }

    fn raw(&self, key: &str) -> Option<(DType, &[u8])> {
        let (dtype, bytes) = Self::raw(self, key)?;
        let dtype = match dtype {
            StoredDType::F32 => DType::F32,
            StoredDType::BF16 => DType::BF16,
            StoredDType::F16 => DType::F16,
            _ => return None,
        };
        Some((dtype, bytes))
    }

    fn prefetch(&self, key: &str) {
        Self::prefetch(self, key);
    }
}

/// The four opened checkpoints of a folder and their sizes.
pub struct Sources {
    pub dit: Checkpoint,
    pub text: Checkpoint,
    pub vae: Checkpoint,
    pub speech: Checkpoint,
    pub config: ModelConfig,
    /// Layers of the checkpoint, where only the first of them are exported.
    pub layers_of: Option<usize>,
}

/// Tensors of published files that no component needs: the speech encoder's recognition head and training mask.
const IDLE: &[&str] = &[
    "lm_head.",
    "wav2vec2.masked_spec_embed",
    "masked_spec_embed",
];

/// The tokenizer's file, in the checkpoint and in the export.
const TOKENIZER: &str = "tokenizer.json";

/// Everything that is wrong with the inputs, or none.
fn all<T>(found: Result<T, impl Into<ExportError>>, errors: &mut Vec<ExportError>) -> Option<T> {
    found.map_err(|e| errors.push(e.into())).ok()
}

fn joined(mut errors: Vec<ExportError>) -> ExportError {
    if errors.len() == 1 {
        errors.remove(0)
    } else {
        ExportError::Many { many: errors }
    }
}

impl Sources {
    /// Opens the folder's checkpoints; what is wrong with any of them is reported together.
    pub fn open(dir: &Path, lora: Option<&(PathBuf, LoraScale)>) -> Result<Self, ExportError> {
        if !dir.is_dir() {
            let found = if dir.exists() { "a file" } else { "nothing" };
            return Err(ExportError::NoFolder {
                path: dir.to_owned(),
                found,
            });
        }
        let mut errors = Vec::new();
        let tokenizer = dir.join(layout::TOKENIZER_DIR).join(TOKENIZER);
        if !tokenizer.is_file() {
            let want = "tokenizer of the prompt";
            errors.push(
                CheckpointError::Missing {
                    path: tokenizer,
                    want,
                }
                .into(),
            );
        }
        let speech_dir = dir.join(layout::WAV2VEC2_DIR);
        let mut dit = all(Checkpoint::open_safetensors(dir), &mut errors);
        if let (Some((path, scale)), true) = (lora, dit.is_some()) {
            let merged = Lora::open(path, *scale)
                .and_then(|lora| Checkpoint::open_safetensors(dir)?.with_lora(lora));
            // A LoRA that does not fit leaves the base to be checked all the same.
            dit = all(merged, &mut errors).or(dit);
        }
        let text = all(
            Checkpoint::open_torch(&dir.join(layout::T5_FILE)),
            &mut errors,
        );
        let vae = all(
            Checkpoint::open_torch(&dir.join(layout::VAE_FILE)),
            &mut errors,
        );
        let speech = all(
            Checkpoint::open(&speech_dir).and_then(Checkpoint::with_weight_norm),
            &mut errors,
        );
        let (Some(dit), Some(text), Some(vae), Some(speech)) = (dit, text, vae, speech) else {
            return Err(joined(errors));
        };
        let sizes = (
            all(config::dit(&dit, dir), &mut errors),
            all(config::vae(&vae), &mut errors),
            all(config::text(&text), &mut errors),
            all(config::speech(&speech, &speech_dir), &mut errors),
        );
        let (Some(d), Some(v), Some(t), Some(s)) = sizes else {
            return Err(joined(errors));
        };
        if !errors.is_empty() {
            return Err(joined(errors));
        }
        let config = ModelConfig {
            dit: d,
            vae: v,
            text: t,
            speech: s,
        };
        Ok(Self {
            dit,
            text,
            vae,
            speech,
            config,
            layers_of: None,
        })
    }

    /// Leaves out all but the first `layers` layers of the transformer, and the audio injectors that belong to the others.
    ///
    /// # Errors
    /// None, or more than there are.
    pub fn cut(mut self, layers: usize) -> Result<Self, ExportError> {
        let config = &mut self.config.dit;
        let have = config.layers;
        if !(1..=have).contains(&layers) {
            return Err(ExportError::Layers { got: layers, have });
        }
        if layers == have {
            return Ok(self);
        }
        config.layers = layers;
        config.audio_inject_layers.retain(|&l| l < layers);
        let injectors = config.audio_inject_layers.len();
        let beyond = |key: &str, place: &str, kept: usize| {
            let rest = key.strip_prefix(place).and_then(|r| r.split('.').next());
            rest.and_then(|n| n.parse().ok())
                .is_some_and(|n: usize| n >= kept)
        };
        self.dit = self.dit.without(|key| {
            beyond(key, "blocks.", layers)
                || beyond(key, "audio_injector.injector.", injectors)
                || beyond(key, "audio_injector.injector_adain_layers.", injectors)
        });
        self.layers_of = Some(have);
        Ok(self)
    }

    /// Every file that is read, in order, each once.
    fn files(&self) -> Vec<PathBuf> {
        let all = [&self.dit, &self.text, &self.vae, &self.speech];
        let files: BTreeSet<&Path> = all.into_iter().flat_map(|c| c.files()).collect();
        files.into_iter().map(Path::to_owned).collect()
    }

    /// What the bytes of the data files depend on.
    fn identity(
        &self,
        request: &Request,
        families: &[Family],
        plans: &[DataPlan<'_>],
    ) -> Result<Identity, ExportError> {
        let mut hasher = blake3::Hasher::new();
        for (contract, graph) in families.iter().flat_map(|f| &f.graphs) {
            let name = (&graph.name, contract.fingerprint());
            hasher.update(format!("{name:?}\n").as_bytes());
        }
        for (plan, (at, weight)) in plans.iter().flat_map(|p| p.weights().map(move |w| (p, w))) {
            // The value's number in its graph is no part of the weight.
            let weight = crate::graph::Weight {
                value: 0,
                ..weight.clone()
            };
            hasher.update(format!("{} {at} {weight:?}\n", plan.file).as_bytes());
        }
        let graphs = hasher.finalize().to_hex().to_string();
        let mut identity =
            Identity::new(request.recipe, self.layers_of.and(request.layers), graphs);
        identity.lora_scale = self.dit.lora().map(|l| l.scale.to_bits());
        identity.checkpoint = self
            .files()
            .iter()
            .map(|f| stamp(f))
            .collect::<Result<_, _>>()?;
        Ok(identity)
    }

    /// Every graph of the export.
    pub fn graphs(&self, recipe: Recipe) -> Result<Vec<Family>, ExportError> {
        ShapeSources {
            recipe,
            dit: &self.dit,
            text: &self.text,
            vae: &self.vae,
            speech: &self.speech,
            config: &self.config,
        }
        .graphs()
    }

    /// Weights are floats; a file of whole numbers (a quantised checkpoint, say) is refused before anything is written.
    fn check_types(&self, families: &[Family]) -> Result<(), ExportError> {
        let mut errors = Vec::new();
        for family in families {
            let source = self.of(family);
            let used: BTreeSet<String> = family
                .graphs
                .iter()
                .flat_map(|(_, g)| g.used_keys())
                .collect();
            errors.extend(
                used.iter()
                    .filter_map(|key| source.check_float(key).err())
                    .map(ExportError::from),
            );
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(joined(errors))
        }
    }

    fn of(&self, family: &Family) -> &Checkpoint {
        match family.checkpoint {
            Which::Dit => &self.dit,
            Which::Text => &self.text,
            Which::Vae => &self.vae,
            Which::Speech => &self.speech,
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp, ExportError> {
    let meta = fs::metadata(path).map_err(|source| ExportError::Io {
        path: path.to_owned(),
        source,
    })?;
    let changed = meta.modified().ok();
    Ok(Stamp {
        file: path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        bytes: meta.len(),
        nanoseconds: changed
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |d| d.as_nanos()),
    })
}

/// One of the four checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Dit,
    Text,
    Vae,
    Speech,
}

/// All that graphs are built from: tensor shapes and sizes, no bytes.
pub struct ShapeSources<'s> {
    pub dit: &'s dyn WeightSource,
    pub text: &'s dyn WeightSource,
    pub vae: &'s dyn WeightSource,
    pub speech: &'s dyn WeightSource,
    pub config: &'s ModelConfig,
    pub recipe: Recipe,
}

impl ShapeSources<'_> {
    /// Every graph, by checkpoint. All faults of all graphs are reported together.
    pub fn graphs(&self) -> Result<Vec<Family>, ExportError> {
        let c = self.config;
        let prefix = if self
            .speech
            .keys()
            .iter()
            .any(|n| n.starts_with("wav2vec2."))
        {
            "wav2vec2"
        } else {
            ""
        };
        let mut errors = Vec::new();
        let families = vec![
            Family::build(
                "text_encoder",
                Which::Text,
                (self.text, self.recipe),
                &mut errors,
                |f| {
                    f.add("text_encoder", &text::ENCODER, &c.text, |b| {
                        umt5::encoder(b, &c.text);
                    });
                },
            ),
            Family::build(
                "audio_encoder",
                Which::Speech,
                (self.speech, self.recipe),
                &mut errors,
                |f| {
                    let sizes = &c.speech;
                    let (first, second) = (&speech::ENCODER_FEATURES, &speech::ENCODER_POSITIONS);
                    f.add(first.name, first, sizes, |b| {
                        wav2vec2::features(b, prefix, sizes);
                    });
                    f.add(second.name, second, sizes, |b| {
                        wav2vec2::positions(b, prefix, sizes);
                    });
                    for layer in 0..sizes.layers {
                        let (name, contract) = sizes.layer(layer);
                        f.add(&name, contract, sizes, |b| {
                            wav2vec2::layer(b, prefix, sizes, layer);
                        });
                    }
                },
            ),
            Family::build(
                "vae",
                Which::Vae,
                (self.vae, self.recipe),
                &mut errors,
                |f| {
                    for contract in [&vae::ENCODER_FIRST, &vae::ENCODER_NEXT] {
                        f.add(contract.name, contract, &c.vae, |b| {
                            wan_vae::encoder(b, contract, &c.vae);
                        });
                    }
                    for contract in [&vae::DECODER_FIRST, &vae::DECODER_NEXT] {
                        f.add(contract.name, contract, &c.vae, |b| {
                            wan_vae::decoder(b, contract, &c.vae);
                        });
                    }
                },
            ),
            Family::build(
                "dit",
                Which::Dit,
                (self.dit, self.recipe),
                &mut errors,
                |f| {
                    dit_graphs(f, &c.dit);
                },
            ),
        ];
        if errors.is_empty() {
            Ok(families)
        } else {
            Err(joined(errors))
        }
    }
}

fn dit_graphs(f: &mut Draft<'_>, c: &dit::DitConfig) {
    f.add(speech::ADAPTER.name, &speech::ADAPTER, c, |b| {
        wan_s2v::audio_adapter(b, c);
    });
    f.add(dit::TEXT_EMBED.name, &dit::TEXT_EMBED, c, |b| {
        wan_s2v::text_embed(b, c);
    });
    f.add(dit::SINK_EMBED.name, &dit::SINK_EMBED, c, |b| {
        wan_s2v::sink_embed(b, c);
    });
    f.add(dit::EMBED.name, &dit::EMBED, c, |b| wan_s2v::embed(b, c));
    for layer in 0..c.layers {
        let contract = if c.audio_inject_layers.contains(&layer) {
            &dit::LAYER_AUDIO
        } else {
            &dit::LAYER
        };
        // First, so that what a denoising layer reads lies together in the data file.
        f.add(&dit::layer_name(layer), contract, c, |b| {
            wan_s2v::layer(b, c, layer);
        });
        f.add(&dit::sink_layer_name(layer), &dit::SINK_LAYER, c, |b| {
            wan_s2v::sink_layer(b, c, layer);
        });
    }
    f.add(dit::HEAD.name, &dit::HEAD, c, |b| wan_s2v::head(b, c));
}

/// The graphs that share one checkpoint, hence one data file.
pub struct Family {
    pub name: &'static str,
    pub checkpoint: Which,
    pub graphs: Vec<(&'static Contract, Graph)>,
}

/// A family under construction.
struct Draft<'s> {
    checkpoint: String,
    source: &'s dyn WeightSource,
    recipe: Recipe,
    graphs: Vec<(&'static Contract, Graph)>,
    /// Keys that some graph read or found misshaped, also where the graph failed.
    met: BTreeSet<String>,
    failed: Vec<ExportError>,
}

impl Family {
    fn build(
        name: &'static str,
        checkpoint: Which,
        (source, recipe): (&dyn WeightSource, Recipe),
        errors: &mut Vec<ExportError>,
        add: impl FnOnce(&mut Draft<'_>),
    ) -> Self {
        let mut draft = Draft {
            checkpoint: source.origin().unwrap_or_else(|| name.to_owned()),
            source,
            recipe,
            graphs: Vec::new(),
            met: BTreeSet::new(),
            failed: Vec::new(),
        };
        add(&mut draft);
        draft.failed.extend(draft.unused());
        errors.append(&mut draft.failed);
        Self {
            name,
            checkpoint,
            graphs: draft.graphs,
        }
    }
}

impl Draft<'_> {
    fn add(
        &mut self,
        component: &str,
        contract: &'static Contract,
        sizes: &impl Sizes,
        build: impl FnOnce(&'_ Builder<'_>),
    ) {
        let b = Builder::new(component, self.source).with_recipe(self.recipe);
        b.bind(sizes.bindings());
        b.contract(contract);
        build(&b);
        self.met.extend(b.used_keys());
        match b.finish() {
            Ok(graph) => self.graphs.push((contract, graph)),
            Err(errors) => {
                self.met.extend(errors.0.iter().filter_map(misshaped));
                self.failed.push(ExportError::Graph {
                    checkpoint: self.checkpoint.clone(),
                    errors,
                });
            }
        }
    }

    /// A tensor that no graph reads means that the checkpoint holds something this version does not know.
    fn unused(&self) -> Option<ExportError> {
        let idle = |key: &str| IDLE.iter().any(|p| key.starts_with(p));
        let unknown = |k: &String| !self.met.contains(k) && !idle(k);
        let keys: Vec<String> = self.source.keys().into_iter().filter(unknown).collect();
        (!keys.is_empty()).then(|| ExportError::Unused {
            checkpoint: self.checkpoint.clone(),
            keys,
        })
    }
}

fn misshaped(error: &GraphError) -> Option<String> {
    match &error.fault {
        Fault::Misshaped { key, .. } => Some(key.clone()),
        _ => None,
    }
}

/// Exports a folder. `progress` is told the data file's name, bytes done and in total.
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

/// Exports a folder, or continues where an earlier run with the same request ended.
pub fn export_with(
    request: &Request,
    options: &Options<'_>,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Report, ExportError> {
    let (began, watch) = (Instant::now(), usage::Watch::start());
    let (storage, processor) = (usage::read_from_storage(), usage::processor_seconds());
    if request.recipe == Recipe::Fp8 {
        let got = request.recipe;
        return Err(ExportError::Recipe { got });
    }
    staging::check_target(&request.out)?;
    let mut sources = Sources::open(&request.ckpt_dir, request.lora.as_ref())?;
    if let Some(layers) = request.layers {
        sources = sources.cut(layers)?;
    }
    let families = sources.graphs(request.recipe)?;
    sources.check_types(&families)?;
    let plans = families
        .iter()
        .map(|f| {
            let weights = f.graphs.iter().flat_map(|(_, g)| &g.weights);
            DataPlan::new(format!("{}.data", f.name), weights)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let identity = sources.identity(request, &families, &plans)?;
    let (mut staging, notice) = Staging::open(&request.out, &identity, options.start)?;
    if let Some(notice) = notice {
        observe(Event::Notice(&notice));
    }
    let job = Job {
        request,
        sources: &sources,
        families: &families,
        plans: &plans,
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
    staging.publish(&request.out, names(&manifest))?;
    let mut report = Report {
        out: request.out.clone(),
        components: manifest.components.len(),
        weights: manifest.data.iter().map(|d| d.weights.len()).sum(),
        bytes: total,
        kept,
        lora_targets: manifest.lora.as_ref().map_or(0, |l| l.targets),
        seconds: began.elapsed().as_secs_f64(),
        processor_seconds: usage::processor_seconds()
            .zip(processor)
            .map(|(now, before)| now - before),
        peak_anonymous: watch.peak_anonymous(),
        peak_resident: usage::peak_resident(),
        limits: None,
    };
    let (task, files) = (job.task(&report, storage), sources.files());
    // Pages that are mapped cannot be dropped from the page cache, and are then not read from storage.
    drop(plans);
    drop(families);
    drop(sources);
    report.limits = measure(options.measure, task, &files, &request.out, observe);
    Ok(report)
}

/// The finished export held against the machine, where that is wanted. What cannot be measured is told.
fn measure(
    measure: Measure,
    task: limits::Task,
    files: &[PathBuf],
    out: &Path,
    observe: &mut dyn FnMut(Event<'_>),
) -> Option<Limits> {
    let effort = match measure {
        Measure::Long if task.seconds >= LONG => limits::Effort {
            bytes: 256 << 20,
            time: Duration::from_millis(600),
        },
        Measure::Always => limits::Effort {
            bytes: 1 << 30,
            time: Duration::from_secs(4),
        },
        _ => return None,
    };
    let beside = out.parent().filter(|p| !p.as_os_str().is_empty());
    let dir = beside.unwrap_or(Path::new("."));
    match limits::probe(files, dir, task.threads, effort) {
        Ok(rates) => Some(Limits::new(task, rates)),
        Err(e) => {
            observe(Event::Notice(&format!("limits not measured: {e}")));
            None
        }
    }
}

/// The error of a run that leaves something behind to continue from; without that, nothing is left.
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

/// Every file that belongs to an export.
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
    sources: &'a Sources,
    families: &'a [Family],
    plans: &'a [DataPlan<'a>],
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
            .map(|(f, plan)| writer::Work::open(plan, self.sources.of(f), dir))
            .collect::<Result<Vec<_>, _>>()?;
        let never = AtomicBool::new(false);
        let stop = options.stop.unwrap_or(&never);
        let hashes = writer::write(&works, &mut staging.journal, stop, observe)?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            exporter: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: self.request.recipe,
            config: self.sources.config.clone(),
            layers_of: self.sources.layers_of,
            lora: self.lora(),
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

    fn lora(&self) -> Option<LoraEntry> {
        self.sources.dit.lora().map(|r| LoraEntry {
            file: r
                .file
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default(),
            scale: r.scale,
            ranks: vec![r.rank],
            targets: self.sources.dit.lora_work().0,
        })
    }

    /// What a finished run did, to be held against the machine.
    fn task(&self, report: &Report, storage_before: Option<u64>) -> limits::Task {
        let files = self.sources.files();
        let read: u64 = files
            .iter()
            .filter_map(|f| fs::metadata(f).ok())
            .map(|m| m.len())
            .sum();
        // Of a run that continued another, the part that it did itself.
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
            multiply_adds: share(self.sources.dit.lora_work().1),
            threads: writer::workers(),
            seconds: report.seconds,
        }
    }
}

/// Seconds from which an export is held against the machine without being asked.
const LONG: f64 = 20.0;

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

/// A graph, and its variant for the CPU provider where the graph itself needs kernels that this lacks.
#[derive(Clone)]
struct GraphEntry {
    graph: FileEntry,
    cpu: Option<FileEntry>,
}

impl GraphFiles {
    /// Writes a component's graph and what else it needs, unless they are there already.
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
    Ok(FileEntry {
        file,
        bytes,
        blake3,
    })
}

/// A layer's graph without the layer's number: its weights are inputs, named by their place in any layer.
pub fn generic(contract: &Contract, graph: &Graph) -> Graph {
    let mut places = BTreeSet::new();
    for w in &graph.weights {
        places.extend(numbered_place(&w.key));
    }
    let places: Vec<(String, String)> = places.into_iter().collect();
    let mut graph = graph.renamed(&places);
    contract.name.clone_into(&mut graph.name);
    graph
        .metadata
        .insert("component".to_owned(), contract.name.to_owned());
    graph
}

/// `blocks.3` and `blocks.N` of `blocks.3.ffn.0.weight`: up to the first number.
fn numbered_place(key: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = key.split('.').collect();
    let at = parts.iter().position(|p| p.parse::<usize>().is_ok())?;
    let stem = parts[..at].join(".");
    Some((format!("{stem}.{}", parts[at]), format!("{stem}.N")))
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
    let from = ckpt_dir.join(layout::TOKENIZER_DIR).join(TOKENIZER);
    let io = |path: &Path, source| ExportError::Io {
        path: path.to_owned(),
        source,
    };
    let to = dir.join(TOKENIZER);
    let text = fs::read(&from).map_err(|e| io(&from, e))?;
    fs::write(&to, &text).map_err(|e| io(&to, e))?;
    let blake3 = manifest::hash_file(&to).map_err(|e| io(&to, e))?;
    Ok(FileEntry {
        file: TOKENIZER.to_owned(),
        bytes: text.len() as u64,
        blake3,
    })
}
