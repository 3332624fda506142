//! Measures a device at the real shapes, without a checkpoint. The graphs come from `avatar-export
//! graphs`, and the weights are made up. The stage that makes videos runs on them, resident and
//! streamed. One large matrix product through the same backend gives the rate to compare with. The
//! times are meaningful; the computed values are not.

mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use engines::backend::ort::{Runtime, WeightPort};
use engines::backend::{Backend, EngineError, LoadOptions, Session, State, plain};
use engines::cancel::Cancel;
use engines::components::dit::{self, DitConfig};
use engines::components::matmul;
use engines::contract::{Contract, DType};
use engines::device::{Device, gpu};
use engines::graph_folder::GraphFolder;
use engines::manifest::ModelConfig;
use engines::memory::{Class, Counts, Ledger, Memory, MemoryError};
use engines::profile::Kind;
use engines::recipe::Recipe;
use engines::tensor::Tensor;
use engines::weights::{BoundWeights, HostWeights};

use self::report::{MemoryUse, Offload, Product, Report, Row};
use crate::chain::call::{Anchor, BlockAudio, Lane, LayerCondition, Placed, Tables};
use crate::chain::stage::{Site, Stage, StageState};
use crate::checks::error::CheckError;
use crate::checks::made_up;
use crate::generate::error::GenerateError;
use crate::numbers::geometry::Geometry;
use crate::numbers::size::Size;
use crate::placement::plan::{MIN_SLOTS, Residency, Rings, StageSpec};
use crate::placement::wavefront::Item;
use crate::planner::memory::transformer_bytes;
use crate::planner::work::Work;

/// Bytes that stay free under a cap: ONNX Runtime and the driver take memory that the budget does
/// not count.
const HEADROOM: u64 = 256 << 20;

/// The sizes and the runs that are timed.
pub(crate) struct Request<'a> {
    /// Returns the sizes of the run for a model.
    pub geometry: &'a dyn Fn(&DitConfig) -> Result<Geometry, GenerateError>,
    /// Folder that `avatar-export graphs` made.
    pub graphs: PathBuf,
    /// The device that is measured.
    pub device: Device,
    /// Size of the video.
    pub size: Size,
    /// Numbers of lanes of a call; each number becomes a row.
    pub lanes: Vec<usize>,
    /// Number of layers of the transformer; `None` means all.
    pub layers: Option<usize>,
    /// Number of timed calls. Two calls before them warm up.
    pub runs: usize,
    /// Side of the square matrices of the product.
    pub matmul: usize,
    /// Bytes of the device for a second run, which streams the layers that do not fit.
    pub offload: Option<u64>,
}

/// Opens the device. A budget limits its bytes.
pub(crate) type Opener<'a> = &'a dyn Fn(Option<u64>) -> Result<Runtime, EngineError>;

/// Times the transformer on a device.
///
/// # Errors
/// The graphs or the device cannot be used; the device has too little memory; the cap of the
/// streamed run is smaller than the streaming slots.
pub(crate) fn run(request: &Request<'_>, open: Opener<'_>) -> Result<Report, CheckError> {
    let before = device_used(request.device);
    let set = GraphFolder::open(&request.graphs)?;
    let mut model = set.config.dit.clone();
    model.layers = request.layers.unwrap_or(model.layers);
    model.audio_inject_layers.retain(|l| *l < model.layers);
    let geometry = (request.geometry)(&model)?;
    let (product, rows, memory) = {
        let runtime = open(None)?;
        let product = product(&runtime, &set, request)?;
        let bench = OnDevice::new(runtime, &set, &model, &geometry, request)?;
        let (rows, mut memory) = bench.resident(&product)?;
        memory.device_used_before = before;
        (product, rows, memory)
    };
    let offload = request.offload.map(|budget| {
        let bench = OnDevice::new(open(Some(budget))?, &set, &model, &geometry, request)?;
        let mut offload = bench.offload(budget, &rows, &memory)?;
        offload.memory.device_used_before = before;
        Ok::<_, CheckError>(offload)
    });
    Ok(Report {
        device: request.device,
        recipe: set.recipe,
        size: request.size,
        layers: model.layers,
        offload: offload.transpose()?,
        product,
        rows,
        memory,
    })
}

/// Times one matrix product.
fn product(
    runtime: &Runtime,
    set: &GraphFolder,
    request: &Request<'_>,
) -> Result<Product, EngineError> {
    let side = request.matmul;
    let (mut session, _) = runtime.open(&set.file(&request.graphs, &matmul::MATMUL))?;
    let memory = &**runtime.memory();
    let square = |seed| {
        made_up::on_device(
            memory,
            Class::Activations,
            set.recipe.compute(),
            &[side, side],
            seed,
        )
    };
    let (left, right) = (square(1)?, square(2)?);
    let mut times = Vec::new();
    for _ in 0..request.runs + 2 {
        let inputs = [(&matmul::LEFT, left.view()), (&matmul::RIGHT, right.view())];
        let began = Instant::now();
        session.run(&inputs, State::None)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let (median_ms, _) = median_and_least(times.split_off(2));
    Ok(Product {
        side,
        median_ms,
        tflop_per_s: 2.0 * (side as f64).powi(3) / median_ms / 1e9,
    })
}

/// An opened device, and the model that is timed on it.
struct OnDevice<'a> {
    backend: Arc<Synthetic>,
    model: &'a DitConfig,
    /// Sizes of the graphs' model, with the wanted number of layers.
    config: ModelConfig,
    geometry: &'a Geometry,
    request: &'a Request<'a>,
    host: Arc<Ledger>,
}

impl<'a> OnDevice<'a> {
    fn new(
        runtime: Runtime,
        set: &'a GraphFolder,
        model: &'a DitConfig,
        geometry: &'a Geometry,
        request: &'a Request<'a>,
    ) -> Result<Self, CheckError> {
        let host = Ledger::new("host", u64::MAX);
        Ok(Self {
            backend: Arc::new(Synthetic::new(runtime, set, model, request, &host)?),
            model,
            config: ModelConfig {
                dit: model.clone(),
                ..set.config.clone()
            },
            geometry,
            request,
            host,
        })
    }

    fn memory(&self) -> &dyn Memory {
        &**self.backend.memory()
    }

    fn most_lanes(&self) -> usize {
        self.request.lanes.iter().copied().max().unwrap_or(1)
    }

    /// Loads the model as one stage, and begins a run on it.
    fn stage(&self, residency: Residency) -> Result<(Stage, StageState), CheckError> {
        let steps = self.most_lanes();
        let spec = StageSpec {
            residency,
            ..StageSpec::whole(self.model.layers, steps)
        };
        let backend: Arc<dyn Backend> = Arc::<Synthetic>::clone(&self.backend);
        let mut site = Site::alone(backend, self.model, steps, plain());
        site.host = Arc::clone(&self.host);
        let mut stage = Stage::load(site, &spec)?;
        let state = stage.begin(self.geometry, &Cancel::default())?;
        Ok((stage, state))
    }

    /// Times the calls with everything on the device. Returns a row for each number of lanes.
    fn resident(&self, product: &Product) -> Result<(Vec<Row>, MemoryUse), CheckError> {
        let mut stage = self.stage(Residency::default())?;
        let anchor = self.anchor()?;
        let work = Work::new(
            &self.config,
            self.backend.recipe(),
            self.request.size,
            self.geometry.ring_blocks,
        );
        let kind = match self.request.device {
            Device::Cpu => Kind::Cpu,
            Device::Cuda(_) => Kind::Gpu,
        };
        let mut rows = Vec::new();
        for &lanes in &self.request.lanes {
            let (median_ms, min_ms) = self.time(&mut stage, &anchor, lanes)?;
            let tflop = work.call_operations().total() / 1e12 * lanes as f64;
            let tflop_per_s = tflop / median_ms * 1e3;
            rows.push(Row {
                lanes,
                median_ms,
                min_ms,
                tflop,
                tflop_per_s,
                share: tflop_per_s / product.tflop_per_s,
            });
        }
        let steps = self.most_lanes();
        let planned = Some(transformer_bytes(&work, steps, steps, kind));
        Ok((
            rows,
            MemoryUse {
                planned,
                ..self.used()
            },
        ))
    }

    /// Times the calls under a cap. The rings are on the host. As many layers are resident as fit
    /// beside the slots.
    fn offload(
        &self,
        budget: u64,
        rows: &[Row],
        resident: &MemoryUse,
    ) -> Result<Offload, CheckError> {
        let lanes = self.most_lanes();
        let resident_layers = self.resident_layers(budget, resident)?;
        let residency = Residency {
            resident_layers,
            rings: Rings::OnHost,
            slots: MIN_SLOTS,
        };
        let mut stage = self.stage(residency)?;
        let anchor = self.anchor()?;
        let (median_ms, _) = self.time(&mut stage, &anchor, lanes)?;
        let whole = rows.iter().find(|r| r.lanes == lanes);
        let streams = self.model.layers.saturating_sub(resident_layers) as u64;
        let ring = self.ring_bytes() * self.model.layers as u64;
        Ok(Offload {
            budget,
            lanes,
            resident_layers,
            median_ms,
            ratio: whole.map_or(f64::NAN, |r| median_ms / r.median_ms),
            streamed: streams * self.backend.layer_bytes() + ring,
            memory: self.used(),
        })
    }

    /// Returns the bytes of one layer's rings for all lanes.
    fn ring_bytes(&self) -> u64 {
        let dtype = self.backend.recipe().compute();
        (self.most_lanes() * self.geometry.ring_lane_bytes(dtype)) as u64
    }

    /// Returns how many layers fit the budget, beside the slots and the bytes that the resident run
    /// used for other purposes than weights and rings.
    fn resident_layers(&self, budget: u64, resident: &MemoryUse) -> Result<usize, CheckError> {
        let of = |class: Class| {
            resident
                .by_class
                .get(&class.to_string())
                .copied()
                .unwrap_or(0)
        };
        let layer = self.backend.layer_bytes();
        let slots = MIN_SLOTS as u64 * (layer + self.ring_bytes());
        let inside = of(Class::Weights).saturating_sub(layer * self.model.layers as u64);
        let stays = [Class::Weights, Class::Rings, Class::Condition].map(of);
        let passes = resident.peak.saturating_sub(stays.iter().sum());
        let fixed = of(Class::Condition) + passes + slots + inside + HEADROOM.min(budget / 32);
        let room = budget.checked_sub(fixed).ok_or(MemoryError::Short {
            device: self.request.device.to_string(),
            wanted: fixed,
            free: budget,
            total: budget,
        });
        let room = room.map_err(EngineError::from)?;
        Ok(usize::try_from(room / layer)
            .unwrap_or(usize::MAX)
            .min(self.model.layers))
    }

    /// Times a call of `lanes` lanes with a full ring. Returns the median and the shortest time in
    /// milliseconds.
    fn time(
        &self,
        (stage, state): &mut (Stage, StageState),
        anchor: &Arc<Anchor>,
        lanes: usize,
    ) -> Result<(f64, f64), CheckError> {
        let g = self.geometry;
        let tables = Tables::new(g.clone(), self.most_lanes())?;
        let latents = made_up::tensor(DType::F32, &g.latents_shape(g.block_frames), 3);
        let audio = self.audio();
        // The first step has the newest block. The ring is full before this block.
        let lane = |step: usize| Lane {
            item: Item {
                block: g.clip_blocks + lanes - 1 - step,
                step,
            },
            relative_dist: 30,
            latents: &latents,
            pose_latents: None,
            audio: &audio,
        };
        let items: Vec<Lane<'_>> = (0..lanes).map(lane).collect();
        let mut times = Vec::new();
        for _ in 0..self.request.runs + 2 {
            let mut call = tables.call(&items, Arc::clone(anchor));
            let began = Instant::now();
            stage.denoise(state, &mut call, &|| false)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median_and_least(times.split_off(2)))
    }

    fn audio(&self) -> BlockAudio {
        let (c, (h, w)) = (self.model, self.geometry.tokens);
        let (frames, tokens) = (c.block_frames, c.audio.tokens);
        BlockAudio {
            global: made_up::tensor(DType::F32, &[1, 1, frames, c.dim], 4),
            local: made_up::tensor(DType::F32, &[1, 1, frames, tokens, c.dim], 5),
            mask: made_up::tensor(DType::F32, &[1, 1, frames, h * w], 6),
        }
    }

    /// Makes up the keys and values of the sink and of the text, for each layer its own.
    fn anchor(&self) -> Result<Arc<Anchor>, CheckError> {
        let (c, dtype) = (self.model, self.backend.recipe().compute());
        let made = |tokens: usize, seed: u64| {
            let shape = [1, c.heads, tokens, c.head_dim()];
            made_up::on_device(self.memory(), Class::Condition, dtype, &shape, seed)
        };
        let layer = |l: usize| {
            let (seed, sink) = (4 * l as u64, self.geometry.sink_tokens);
            let condition = LayerCondition {
                sink_k: made(sink, seed)?,
                sink_v: made(sink, seed + 1)?,
                text_k: made(c.text_len, seed + 2)?,
                text_v: made(c.text_len, seed + 3)?,
            };
            let condition = Arc::new(condition);
            Ok(vec![Placed { home: 0, condition }])
        };
        let layers = (0..c.layers).map(layer).collect::<Result<_, MemoryError>>();
        Ok(Arc::new(Anchor {
            index: 0,
            layers: layers.map_err(EngineError::from)?,
        }))
    }

    fn used(&self) -> MemoryUse {
        let counts: Counts = self.memory().ledger().counts();
        let by_class = Class::ALL.map(|c| (c.to_string(), counts.of(c)));
        MemoryUse {
            by_class: by_class.into_iter().collect(),
            counted: counts.total(),
            peak: counts.peak,
            planned: None,
            device_used_before: None,
            device_used: device_used(self.request.device),
        }
    }
}

/// A backend with made-up weights. All layers of one kind share one copy of weights on the host.
struct Synthetic {
    runtime: Runtime,
    set: GraphFolder,
    /// Folder of the graphs.
    graphs: PathBuf,
    model: DitConfig,
    layers: BTreeMap<&'static str, HostWeights>,
}

impl Synthetic {
    fn new(
        runtime: Runtime,
        set: &GraphFolder,
        model: &DitConfig,
        request: &Request<'_>,
        ledger: &Arc<Ledger>,
    ) -> Result<Self, CheckError> {
        let mut layers = BTreeMap::new();
        for contract in [&dit::LAYER, &dit::LAYER_AUDIO] {
            let hears = |l: usize| model.audio_inject_layers.contains(&l);
            let wanted =
                (0..model.layers).any(|l| hears(l) == (contract.name == dit::LAYER_AUDIO.name));
            if !wanted {
                continue;
            }
            let (_, ports) = runtime.open(&set.file(&request.graphs, contract))?;
            let tensors = ports
                .iter()
                .zip(1..)
                .map(|(p, seed)| (p.name.clone(), weight(p, seed)));
            let tensors: Vec<(String, Tensor)> = tensors.collect();
            let made = HostWeights::from_tensors(&tensors);
            let made = made.and_then(|w| w.locked_for(&**runtime.memory(), ledger));
            layers.insert(contract.name, made.map_err(EngineError::from)?);
        }
        Ok(Self {
            runtime,
            set: set.clone(),
            graphs: request.graphs.clone(),
            model: model.clone(),
            layers,
        })
    }

    /// Returns the bytes of a layer of the larger kind.
    fn layer_bytes(&self) -> u64 {
        self.layers
            .values()
            .map(|w| w.slab_bytes() as u64)
            .max()
            .unwrap_or(0)
    }

    fn contract(&self, component: &str) -> &'static Contract {
        let layer = component
            .strip_prefix(dit::LAYER.name)
            .and_then(|l| l.strip_prefix('.'));
        match layer.and_then(|l| l.parse::<usize>().ok()) {
            Some(l) if self.model.audio_inject_layers.contains(&l) => &dit::LAYER_AUDIO,
            Some(_) => &dit::LAYER,
            None if component == dit::HEAD.name => &dit::HEAD,
            None => &dit::EMBED,
        }
    }
}

impl Backend for Synthetic {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.runtime.memory()
    }

    fn recipe(&self) -> Recipe {
        self.set.recipe
    }

    fn load(&self, component: &str, _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        let file = self.set.file(&self.graphs, self.contract(component));
        let (mut session, ports) = self.runtime.open(&file)?;
        let memory = &**self.memory();
        let weights = ports.iter().zip(1..).map(|(p, seed)| {
            let there = weight(p, seed).copied_to(memory, Class::Weights)?;
            Ok((p.name.clone(), there))
        });
        session.bind(weights.collect::<Result<BoundWeights, MemoryError>>()?);
        Ok(session)
    }

    fn load_unbound(
        &self,
        component: &str,
        _: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let file = self.set.file(&self.graphs, self.contract(component));
        Ok(self.runtime.open(&file)?.0)
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        let name = self.contract(component).name;
        Ok(self.layers[name].clone())
    }
}

/// Makes up a weight that keeps activations finite. Norms are 1, and other values are about
/// 1 / sqrt(columns).
fn weight(port: &WeightPort, seed: u64) -> Tensor {
    if port.shape.len() == 1 && port.name.contains("norm") && port.name.ends_with("weight") {
        return made_up::filled(port.dtype, &port.shape, |_| 1.0);
    }
    let columns = port.shape.first().copied().unwrap_or(1).max(64);
    let scale = (columns as f32).sqrt().recip();
    let numbers = made_up::numbers(seed);
    let value = |i| scale * numbers[i % numbers.len()];
    made_up::filled(port.dtype, &port.shape, value)
}

/// Returns the median and the least.
fn median_and_least(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Returns the bytes that all processes use on the device. `None` for the CPU, without a driver,
/// and in a build without CUDA.
fn device_used(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => Some(gpu(ordinal).ok()?.used()),
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn weights_are_finite_small_and_norms_are_one() {
        let port = |name: &str, dtype, shape: &[usize]| WeightPort {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let norm = weight(&port("blocks.0.norm3.weight", DType::BF16, &[4]), 1);
        assert_eq!(norm.as_slice::<bf16>(), [bf16::ONE; 4]);
        let matrix = weight(
            &port("blocks.0.ffn.0.weight|transpose", DType::F32, &[256, 512]),
            2,
        );
        let squares: f32 = matrix.as_slice::<f32>().iter().map(|x| x * x).sum();
        assert!((squares / 512.0 - 1.0).abs() < 0.05, "{squares}");
        assert_ne!(
            matrix.as_slice::<f32>()[..512],
            matrix.as_slice::<f32>()[512..1024]
        );
    }
}
