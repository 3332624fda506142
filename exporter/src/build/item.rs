//! An engine to build: its graph, its weights, its predicted costs, and the key under which a later
//! build finds it.
use super::prepare::{self, Prepared, Sizes};
use super::request::{BuildError, BuildInput, Request, io};
use crate::families::{ModelShapes, generic};
use crate::graph::Graph;
use crate::graph::write::{WeightPlacement, encode, to_model};
use crate::synth::{self, Preset};
use engines::backend::tensorrt::engine_list::{self, EngineEntry};
use engines::contract::{Contract, Weights};
use engines::manifest::{FileEntry, ModelConfig, Models, hash_file};
use engines::recipe::Recipe;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Predicted size, memory and time of a build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Bytes of the engine.
    pub bytes: u64,
    /// Most host memory of the build, in bytes.
    pub memory: u64,
    /// Time of the build.
    pub seconds: f64,
}

/// Host memory of a build for each byte of weights inside, measured (docs/measured.md).
pub(super) const MEMORY_PER_WEIGHT: f64 = 3.1;
/// Host memory of a build without weights, in bytes.
const MEMORY_BASE: u64 = 192 << 20;
/// Size of an engine without weights, in bytes.
const ENGINE_BASE: u64 = 12 << 20;
/// Seconds of a build without weights, and seconds for each GB of weights.
const SECONDS_BASE: f64 = 0.5;
const SECONDS_PER_GB: f64 = 3.0;

impl Predicted {
    pub(super) fn of(weights: u64) -> Self {
        Self {
            bytes: weights + ENGINE_BASE,
            memory: (weights as f64 * MEMORY_PER_WEIGHT) as u64 + MEMORY_BASE,
            seconds: SECONDS_BASE + weights as f64 / 1e9 * SECONDS_PER_GB,
        }
    }
}

/// An engine to build.
#[derive(Clone, Debug)]
pub struct Item {
    /// Name of the graph.
    pub name: String,
    /// The contract that the graph keeps.
    pub contract: &'static Contract,
    /// The graph, prepared for TensorRT.
    pub prepared: Prepared,
    /// Bytes of the weights inside the engine.
    pub weights: u64,
    /// Predicted costs of the build.
    pub predicted: Predicted,
    pub(super) key: String,
    /// Name of each data file beside the graph, and its path.
    pub(super) data_files: Vec<(String, PathBuf)>,
    graph_hash: String,
    data_hash: Option<String>,
    lacks_weights: bool,
    sizes: Sizes,
}

impl Item {
    /// Returns whether the weights are available.
    pub fn buildable(&self) -> bool {
        !self.lacks_weights
    }

    /// Returns the file name of the prepared graph.
    pub fn graph_file(&self) -> String {
        format!("{}.onnx", self.name)
    }

    /// Returns the file name of the engine, for example `dit_layer.0123456789abcdef.engine`.
    pub fn engine_file(&self) -> String {
        format!("{}.{}.engine", self.name, self.key)
    }

    pub(super) fn entry(&self, file: FileEntry, seconds: f64, memory: u64) -> EngineEntry {
        EngineEntry {
            name: self.name.clone(),
            contract: self.contract.name.to_owned(),
            fingerprint: self.contract.fingerprint(),
            graph: self.graph_hash.clone(),
            data: self.data_hash.clone(),
            key: self.key.clone(),
            file,
            sizes: self.sizes.clone(),
            build_seconds: seconds,
            build_memory: memory,
        }
    }

    /// Returns the entry of the engine with this key, when the engine's file is whole.
    pub(super) fn find(&self, known: &[EngineEntry], out: &Path) -> Option<EngineEntry> {
        let entry = known
            .iter()
            .find(|e| e.name == self.name && e.key == self.key)?;
        let path = out.join(self.engine_file());
        let whole = entry.file.file == self.engine_file()
            && hash_file(&path).is_ok_and(|hash| hash == entry.file.blake3);
        whole.then(|| entry.clone())
    }
}

/// Returns every engine of a request, in data-flow order.
///
/// # Errors
/// Models or graphs that cannot be read; a name in `skip` that no engine has.
pub fn items(request: &Request, version: &str) -> Result<Vec<Item>, BuildError> {
    let raw = match &request.input {
        BuildInput::Models(models) => of_models(models)?,
        BuildInput::Preset(preset, recipe) => of_preset(*preset, *recipe)?,
    };
    let names: BTreeSet<&str> = raw.0.iter().map(|r| r.name.as_str()).collect();
    if let Some(name) = request.skip.iter().find(|s| !names.contains(s.as_str())) {
        return Err(BuildError::Skip {
            name: name.clone(),
            have: names.into_iter().collect::<Vec<_>>().join(", "),
        });
    }
    let (graphs, config) = raw;
    graphs
        .into_iter()
        .filter(|g| !request.skip.contains(&g.name))
        .map(|g| g.item(request, version, &config))
        .collect()
}

/// A graph before it is prepared.
struct Raw {
    name: String,
    contract: &'static Contract,
    onnx: Vec<u8>,
    data: Option<(String, PathBuf)>,
    /// Bytes of the engine's weights that no file holds.
    absent: u64,
}

impl Raw {
    fn item(
        self,
        request: &Request,
        version: &str,
        config: &ModelConfig,
    ) -> Result<Item, BuildError> {
        let sizes = request.limits.of(self.contract, config);
        let prepared =
            prepare::prepare(&self.onnx, &sizes).map_err(|source| BuildError::Prepare {
                graph: self.name.clone(),
                source,
            })?;
        let sizes: Sizes = sizes
            .into_iter()
            .filter(|(k, _)| prepared.symbols.contains(k))
            .collect();
        let graph_hash = blake3::hash(&self.onnx).to_hex().to_string();
        let weights = prepared.weights + self.absent;
        let data_hash = self.data.as_ref().map(|(hash, _)| hash.clone());
        let key = key(
            request,
            version,
            &graph_hash,
            data_hash.as_deref(),
            &sizes,
            &prepared,
        );
        let folder = self
            .data
            .as_ref()
            .and_then(|(_, path)| path.parent().map(Path::to_owned));
        let data_files = prepared
            .files
            .iter()
            .filter_map(|f| Some((f.clone(), folder.as_ref()?.join(f))))
            .collect();
        Ok(Item {
            name: self.name,
            contract: self.contract,
            predicted: Predicted::of(weights),
            weights,
            prepared,
            key,
            data_files,
            graph_hash,
            data_hash,
            lacks_weights: self.absent > 0,
            sizes,
        })
    }
}

/// Returns sixteen digits of the hash of everything that an engine depends on.
fn key(
    request: &Request,
    version: &str,
    graph: &str,
    data: Option<&str>,
    sizes: &Sizes,
    prepared: &Prepared,
) -> String {
    // The prepared graph is hashed too, because another exporter may prepare it otherwise.
    let prepared = blake3::hash(&prepared.onnx).to_hex().to_string();
    let facts = serde_json::json!({
        "graph": graph,
        "data": data,
        "prepared": prepared,
        "sizes": sizes,
        "recipe": request.input.recipe(),
        "flavour": request.flavour.name(),
        "version": version,
        "sm": request.sm,
        "workspace": request.workspace,
        "level": request.level,
        "weights": format!("{:?}", request.weights),
        "detail": format!("{:?}", request.detail),
    });
    blake3::hash(facts.to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// Returns every distinct graph of an export.
fn of_models(models: &Models) -> Result<(Vec<Raw>, ModelConfig), BuildError> {
    let mut seen = BTreeSet::new();
    let mut graphs = Vec::new();
    for c in &models.manifest().components {
        let name = engine_list::engine_name(c);
        if !seen.insert(name) {
            continue;
        }
        let (_, contract) = models.component(&c.name)?;
        let path = models.dir().join(&c.graph.file);
        let onnx = fs::read(&path).map_err(io(&path))?;
        let data = engine_list::data_of(c, &models.manifest().data);
        graphs.push(Raw {
            name: name.to_owned(),
            contract,
            onnx,
            data: data.map(|d| (d.file.blake3.clone(), models.dir().join(&d.file.file))),
            absent: 0,
        });
    }
    Ok((graphs, models.config().clone()))
}

/// Returns every distinct graph of a preset, with its weights as inputs.
fn of_preset(preset: Preset, recipe: Recipe) -> Result<(Vec<Raw>, ModelConfig), BuildError> {
    let s = synth::shapes(preset, None);
    let families = ModelShapes {
        recipe,
        dit: &s.dit,
        text: &s.text,
        vae: &s.vae,
        speech: &s.speech,
        config: &s.config,
    }
    .graphs()?;
    let mut graphs: BTreeMap<String, (usize, &'static Contract, Graph)> = BTreeMap::new();
    for (contract, graph) in families.into_iter().flat_map(|f| f.graphs) {
        let graph = match contract.weights {
            Weights::Bound => generic(contract, &graph),
            Weights::Inside => graph,
        };
        let at = graphs.len();
        graphs
            .entry(graph.name.clone())
            .or_insert((at, contract, graph));
    }
    let mut ordered: Vec<_> = graphs.into_values().collect();
    ordered.sort_by_key(|(at, ..)| *at);
    let raw = ordered.into_iter().map(|(_, contract, graph)| {
        let onnx = encode(&to_model(&graph, WeightPlacement::AsInputs)?);
        let absent = match contract.weights {
            Weights::Bound => 0,
            Weights::Inside => graph.weights.iter().map(crate::graph::Weight::bytes).sum(),
        };
        Ok(Raw {
            name: graph.name.clone(),
            contract,
            onnx,
            data: None,
            absent,
        })
    });
    Ok((raw.collect::<Result<_, BuildError>>()?, s.config))
}
