//! The whole export on one page: open the checkpoints, lay the LoRA over the DiT, build every graph, write weights once, write graphs, write
//! the manifest last. Everything goes to a folder beside the target and is renamed at the end, so no half-written export has its name.
use crate::checkpoint::{Checkpoint, CheckpointError, Lora, LoraScale, layout};
use crate::config::{self, ConfigError};
use crate::graph::lower;
use crate::graph::write::{
    DataFile, WeightBytes, WeightPlacement, WriteError, to_model, write_data, write_model,
};
use crate::graph::{Builder, Fault, Graph, GraphError, GraphErrors, WeightSource};
use crate::models::{umt5, wan_s2v, wan_vae, wav2vec2};
use engines::components::{dit, speech, text, vae};
use engines::contract::{Contract, Sizes, Weights};
use engines::exit::Exit;
use engines::manifest::{
    self, ComponentEntry, DataEntry, FORMAT, FileEntry, LoraEntry, Manifest, ModelConfig,
    WeightEntry,
};
use engines::recipe::Recipe;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What to export.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder of the base checkpoint.
    pub ckpt_dir: PathBuf,
    /// LoRA and its strength; `None` exports the base weights.
    pub lora: Option<(PathBuf, LoraScale)>,
    pub recipe: Recipe,
    /// Folder to make.
    pub out: PathBuf,
}

/// What an export did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub out: PathBuf,
    pub components: usize,
    pub weights: usize,
    pub bytes: u64,
    pub lora_targets: usize,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{}: already exists and is not an export; choose another --out or remove it", path.display())]
    Occupied { path: PathBuf },
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
    pub fn exit(&self) -> Exit {
        match self {
            Self::Occupied { .. } => Exit::Usage,
            Self::Checkpoint(e) => e.exit(),
            Self::Write(e) => e.exit(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Exit::Resources
            }
            Self::Io { .. } => Exit::Input,
            _ => Exit::Model,
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

    fn has_ranges(&self, key: &str) -> bool {
        self.computed(key).is_none()
    }

    fn read_f32_range(
        &self,
        key: &str,
        elements: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, Self::Error> {
        Self::read_f32_range(self, key, elements)
    }
}

/// The four opened checkpoints of a folder and their sizes.
pub struct Sources {
    pub dit: Checkpoint,
    pub text: Checkpoint,
    pub vae: Checkpoint,
    pub speech: Checkpoint,
    pub config: ModelConfig,
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
        })
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
    let out = &request.out;
    if out.exists()
        && !out.join(manifest::FILE).is_file()
        && fs::read_dir(out).is_ok_and(|mut d| d.next().is_some())
    {
        return Err(ExportError::Occupied { path: out.clone() });
    }
    let sources = Sources::open(&request.ckpt_dir, request.lora.as_ref())?;
    let families = sources.graphs(request.recipe)?;
    sources.check_types(&families)?;
    let staging = Staging::create(out)?;
    let mut components = Vec::new();
    let mut data = Vec::new();
    let mut files = GraphFiles::default();
    for family in &families {
        let (entry, placed) = write_weights(family, sources.of(family), &staging.path, progress)?;
        for (contract, graph) in &family.graphs {
            let written = files.write(contract, graph, &placed, &staging.path)?;
            components.push(component(contract, graph, written, &entry.file.file));
        }
        data.push(entry);
    }
    let tokenizer = copy_tokenizer(&request.ckpt_dir, &staging.path)?;
    let lora = sources.dit.lora().map(|r| LoraEntry {
        file: r
            .file
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        scale: r.scale,
        ranks: vec![r.rank],
        targets: r.modules,
    });
    let report = Report {
        out: out.clone(),
        components: components.len(),
        weights: data.iter().map(|d| d.weights.len()).sum(),
        bytes: data.iter().map(|d| d.file.bytes).sum(),
        lora_targets: lora.as_ref().map_or(0, |l| l.targets),
    };
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        exporter: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: request.recipe,
        config: sources.config.clone(),
        lora,
        tokenizer,
        components,
        data,
    };
    let path = staging.path.join(manifest::FILE);
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
    fs::write(&path, text).map_err(|source| ExportError::Io { path, source })?;
    staging.publish(out)?;
    Ok(report)
}

fn write_weights(
    family: &Family,
    source: &Checkpoint,
    dir: &Path,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<(DataEntry, DataFile), ExportError> {
    let file = format!("{}.data", family.name);
    let weights = || family.graphs.iter().flat_map(|(_, g)| &g.weights);
    let placed = write_data(&dir.join(&file), weights(), source, &mut |done, total| {
        progress(&file, done, total);
    })?;
    let mut seen = BTreeSet::new();
    let entries = weights().filter(|w| seen.insert(&w.name)).map(|w| {
        let at = &placed.layout[&w.name];
        WeightEntry {
            name: w.name.clone(),
            key: w.key.clone(),
            dtype: w.dtype,
            shape: w.shape.clone(),
            offset: at.offset,
            length: at.length,
            transposed: w.transform == crate::graph::Transform::Transpose2,
        }
    });
    let entry = DataEntry {
        weights: entries.collect(),
        file: FileEntry {
            file,
            bytes: placed.bytes,
            blake3: placed.blake3.clone(),
        },
    };
    Ok((entry, placed))
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
        placed: &DataFile,
        dir: &Path,
    ) -> Result<GraphEntry, ExportError> {
        let (graph, placement) = match contract.weights {
            Weights::Inside => (graph.clone(), WeightPlacement::External(&placed.layout)),
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

/// A folder beside the target; removed unless it is published.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn create(out: &Path) -> Result<Self, ExportError> {
        let name = out
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_else(|| "models".to_owned());
        let path = out.with_file_name(format!(".{name}.partial-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|source| ExportError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    /// Takes the target's place; an older export there is replaced.
    fn publish(self, out: &Path) -> Result<(), ExportError> {
        let io = |source| ExportError::Io {
            path: out.to_owned(),
            source,
        };
        if out.exists() {
            fs::remove_dir_all(out).map_err(io)?;
        }
        fs::rename(&self.path, out).map_err(io)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a publish there is nothing left under this name; a leftover is only clutter, never a wrong result.
        let _ = fs::remove_dir_all(&self.path);
    }
}
