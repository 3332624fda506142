//! ONNX Runtime: the default on the CPU and the oracle for every other backend. On the CPU weights
//! stay a memory map of the export's data files; on an NVIDIA device every tensor is bound where it
//! lies. One global thread pool serves all sessions of the process.

#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod library;
mod provider;
mod session;

use super::rim::Rim;
use super::{Backend, EngineError, LoadOptions, Perturb, Session};
use crate::cancel::{Cancel, Watch};
use crate::contract::{Contract, DType, Sizes, Weights};
use crate::dim::Bindings;
use crate::error_kind::Shortage;
use crate::manifest::{ComponentEntry, ManifestError, Models};
use crate::memory::{Charge, Class, HostMemory, Memory, Place};
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use crate::weights::{BoundWeights, HostWeights};
use half::bf16;
use library::Kind;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::ValueType;
use provider::Provider;
use session::{Device, OrtSession, dtype_of, owned};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// ONNX Runtime over one opened export, on the CPU or on one NVIDIA device.
pub struct Ort {
    runtime: Runtime,
    models: Arc<Models>,
    bindings: Bindings,
}

/// The library, one of its providers, and the memory that outputs come from.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    provider: Provider,
    memory: Arc<dyn Memory>,
}

/// Loads every library that the CUDA provider beside `library` needs.
///
/// # Errors
/// [`EngineError::CudaLibrary`] names the first one that is missing.
#[cfg(feature = "cuda")]
pub(crate) fn preload_cuda(library: &Path) -> Result<(), EngineError> {
    cuda::preload(library)
}

/// A graph file outside an export; all of its weights are inputs.
#[derive(Clone, Debug)]
pub struct GraphFile {
    /// The ONNX file.
    pub path: PathBuf,
    /// Contract that the graph must have.
    pub contract: &'static Contract,
    /// Precision of the graph.
    pub recipe: Recipe,
    /// Sizes that every call must agree with.
    pub bindings: Bindings,
}

/// An input that a contract does not list: a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPort {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Runtime {
    /// Opens the CPU provider. Loads the library and starts the shared pool of `threads` threads. A
    /// process has one pool: later calls share the first one.
    ///
    /// # Errors
    /// [`EngineError::Library`].
    pub fn cpu(threads: usize) -> Result<Self, EngineError> {
        Ok(Self {
            environment: library::environment(threads, Kind::Cpu)?,
            provider: Provider::Cpu,
            memory: HostMemory::unlimited(),
        })
    }

    /// Opens the CUDA provider on the device of `memory`. It takes everything it needs from there:
    /// weights, workspace and outputs are counted.
    ///
    /// # Errors
    /// [`EngineError::CudaLibrary`] for the first library that is missing, before anything is
    /// loaded; [`EngineError::Library`].
    #[cfg(feature = "cuda")]
    pub fn cuda(
        threads: usize,
        memory: Arc<crate::memory::cuda::CudaMemory>,
    ) -> Result<Self, EngineError> {
        if let Some(library) = Kind::Cuda.locate() {
            cuda::preload(&library)?;
        }
        let environment = library::environment(threads, Kind::Cuda)?;
        Ok(Self {
            provider: Provider::Cuda(cuda::Cuda::new(&environment, Arc::clone(&memory))?),
            environment,
            memory,
        })
    }

    /// Makes a virtual device of the CPU with memory of its own, on the same library.
    #[must_use]
    pub fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            environment: self.environment.clone(),
            provider: Provider::Cpu,
            memory,
        }
    }

    /// Returns the device's memory.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Loads a graph that no export lists, and lists the weights to bind.
    ///
    /// # Errors
    /// The file does not load, its rim is not the contract's, or a weight has no fixed size.
    pub fn open(
        &self,
        graph: &GraphFile,
    ) -> Result<(Box<dyn Session>, Vec<WeightPort>), EngineError> {
        let component = graph.contract.name.to_owned();
        let load = |source| load_error(&graph.path, &component, source);
        let mut builder = self.builder(&load)?;
        let session = self.commit(&load, || builder.commit_from_file(&graph.path))?;
        let rim: BTreeSet<&str> = graph.contract.graph_inputs().map(|p| p.name).collect();
        let mut weights = Vec::new();
        for input in session.inputs().iter().filter(|i| !rim.contains(i.name())) {
            let port = weight_port(input.name(), input.dtype());
            weights.push(port.ok_or_else(|| EngineError::Graph {
                path: graph.path.clone(),
                component: component.clone(),
                port: input.name().to_owned(),
                want: "a weight of known size".to_owned(),
                got: format!("{:?}", input.dtype()),
            })?);
        }
        let rim = Rim {
            component: component.clone(),
            contract: graph.contract,
            recipe: graph.recipe,
            bindings: graph.bindings.clone(),
            weights: weights.iter().map(|w| w.name.clone()).collect(),
        };
        let loaded = OrtSession {
            rim,
            taps: BTreeMap::new(),
            weights: BoundWeights::default(),
            _charge: None,
            device: self.device(&graph.path, &component, &session, &load)?,
            session,
        };
        loaded.check_rim(&graph.path)?;
        Ok((Box::new(loaded), weights))
    }

    /// Makes a builder with the options that every session of this provider has.
    fn builder(
        &self,
        load: &dyn Fn(ort::Error) -> EngineError,
    ) -> Result<SessionBuilder, EngineError> {
        let builder = ort::session::Session::builder(&self.environment)
            .and_then(|b| {
                Ok(b.with_prepacking(false)?
                    .with_env_allocators()?
                    .with_optimization_level(GraphOptimizationLevel::All)?)
            })
            .map_err(load)?;
        match &self.provider {
            Provider::Cpu => Ok(builder),
            #[cfg(feature = "cuda")]
            Provider::Cuda(cuda) => {
                let provider = cuda.provider()?;
                builder
                    .with_config_entry("session.record_ep_graph_assignment_info", "1")
                    .and_then(|b| b.with_no_environment_execution_providers())
                    .and_then(|b| b.with_execution_providers([provider]))
                    .map_err(|e| load(e.into()))
            }
        }
    }

    /// Makes a session and counts its allocations as weights.
    fn commit(
        &self,
        load: &dyn Fn(ort::Error) -> EngineError,
        make: impl FnOnce() -> Result<ort::session::Session, ort::Error>,
    ) -> Result<ort::session::Session, EngineError> {
        match &self.provider {
            Provider::Cpu => make().map_err(load),
            #[cfg(feature = "cuda")]
            Provider::Cuda(cuda) => cuda.loading(make).map_err(|e| match cuda.refusal() {
                Some(refusal) => refusal.into(),
                None => load(e),
            }),
        }
    }

    /// Collects the facts about its device that a session needs. Refuses a graph with work left on
    /// the host.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, unused_mut, reason = "only a device can differ")
    )]
    fn device(
        &self,
        path: &Path,
        component: &str,
        session: &ort::session::Session,
        load: &dyn Fn(ort::Error) -> EngineError,
    ) -> Result<Device, EngineError> {
        let host = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::Default,
        )
        .map_err(load)?;
        let mut device = Device {
            provider: self.provider.clone(),
            memory: Arc::clone(&self.memory),
            info: host.clone(),
            host,
            place: Place::Host,
            host_inputs: BTreeSet::new(),
            elsewhere: Vec::new(),
        };
        #[cfg(feature = "cuda")]
        if let Provider::Cuda(cuda) = &self.provider {
            device.elsewhere = cuda::elsewhere(session).map_err(load)?;
            let misplaced = device.elsewhere.iter().filter(|e| !e.shapes_only);
            let misplaced: Vec<String> = misplaced.map(ToString::to_string).collect();
            if !misplaced.is_empty() {
                return Err(EngineError::Placement {
                    path: path.to_owned(),
                    component: component.to_owned(),
                    device: cuda::place(cuda).to_string(),
                    nodes: misplaced.join(", "),
                });
            }
            device.info = cuda.memory_info().map_err(load)?;
            device.place = cuda::place(cuda);
            device.host_inputs = cuda::host_inputs(session).map_err(load)?;
        }
        Ok(device)
    }

    /// Says whether sessions read bound memory wherever it lies in the process.
    fn on_host(&self) -> bool {
        matches!(self.provider, Provider::Cpu)
    }
}

fn weight_port(name: &str, dtype: &ValueType) -> Option<WeightPort> {
    let ValueType::Tensor { ty, shape, .. } = dtype else {
        return None;
    };
    let sizes = shape.iter().map(|&n| usize::try_from(n).ok());
    Some(WeightPort {
        name: name.to_owned(),
        dtype: dtype_of(*ty)?,
        shape: sizes.collect::<Option<_>>()?,
    })
}

impl Ort {
    /// Opens an export on the CPU, see [`Runtime::cpu`].
    ///
    /// # Errors
    /// The errors of [`Runtime::cpu`].
    pub fn new(models: Models, threads: usize) -> Result<Self, EngineError> {
        Ok(Self::with(models, Runtime::cpu(threads)?))
    }

    /// Opens an export on the device of `runtime`.
    pub fn with(models: Models, runtime: Runtime) -> Self {
        Self {
            runtime,
            bindings: models.config().bindings(),
            models: Arc::new(models),
        }
    }

    /// Makes a virtual device of the CPU with memory of its own, on the same library and export.
    #[must_use]
    pub fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            runtime: self.runtime.on(memory),
            models: Arc::clone(&self.models),
            bindings: self.bindings.clone(),
        }
    }

    /// Returns the export.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Names the tapped values in the graph.
    fn taps(
        &self,
        entry: &ComponentEntry,
        wanted: &[String],
    ) -> Result<BTreeMap<String, String>, EngineError> {
        let found = wanted.iter().map(|tap| {
            let value = entry.taps.get(tap).ok_or_else(|| EngineError::Tap {
                component: entry.name.clone(),
                tap: tap.clone(),
                have: entry.taps.keys().cloned().collect::<Vec<_>>().join(", "),
            })?;
            Ok((tap.clone(), value.clone()))
        });
        found.collect()
    }

    /// Returns a weight's own values plus the fault, under its name in the graph.
    fn perturbed(
        &self,
        entry: &ComponentEntry,
        p: &Perturb,
    ) -> Result<(String, Tensor), EngineError> {
        let unknown = || EngineError::Weight {
            component: entry.name.clone(),
            weight: p.weight.clone(),
        };
        let named = entry.weights.iter().find(|(_, name)| **name == p.weight);
        let (input, _) = named.ok_or_else(unknown)?;
        let (w, mut data) = self
            .models
            .read_weight(entry, &p.weight)?
            .ok_or_else(unknown)?;
        data.iter_mut().for_each(|x| *x += p.amount);
        let tensor = match w.dtype {
            DType::BF16 => {
                let rounded: Vec<bf16> = data.into_iter().map(bf16::from_f32).collect();
                Tensor::from_slice(&w.shape, &rounded)
            }
            _ => Tensor::from_slice(&w.shape, &data),
        };
        Ok((input.clone(), tensor))
    }

    /// Counts the weights inside a graph, of which another device would hold a copy.
    fn charge(
        &self,
        entry: &ComponentEntry,
        contract: &Contract,
    ) -> Result<Option<Charge>, EngineError> {
        // A provider of a real device takes them from its memory, which counts them.
        let memory = &self.runtime.memory;
        if contract.weights == Weights::Bound || !memory.is_separate() || !self.runtime.on_host() {
            return Ok(None);
        }
        let bytes = self.models.weights(&entry.name)?.slab_bytes() as u64;
        let charge = memory.ledger().charge(bytes, Class::Weights)?;
        Ok(Some(charge))
    }

    fn session(
        &self,
        entry: &ComponentEntry,
        contract: &'static Contract,
        options: &LoadOptions,
        fault: Option<&(String, Tensor)>,
    ) -> Result<OrtSession, EngineError> {
        if options.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let charge = self.charge(entry, contract)?;
        let cpu_graph = entry.cpu_graph.as_ref().filter(|_| self.runtime.on_host());
        let graph = cpu_graph.unwrap_or(&entry.graph);
        let path = self.models.dir().join(&graph.file);
        let cancel = &options.cancel;
        let load = |source| match cancel.is_cancelled() {
            true => EngineError::Cancelled,
            false => load_error(&path, &entry.name, source),
        };
        let taps = self.taps(entry, &options.taps)?;
        let mut builder = self.runtime.builder(&load)?;
        if cpu_graph.is_some() {
            // Folding would keep an f32 copy of every weight that is cast.
            builder = builder
                .with_config_entry(
                    "optimization.disable_specified_optimizers",
                    "ConstantFolding",
                )
                .map_err(|e| load(e.into()))?;
        }
        if let Some((input, tensor)) = fault.filter(|_| contract.weights == Weights::Inside) {
            builder = builder
                .with_external_initializer(input, owned(tensor).map_err(load)?)
                .map_err(|e| load(e.into()))?;
        }
        let rim: Vec<String> = contract.graph_outputs().map(|(name, _)| name).collect();
        let inner: BTreeSet<&str> = taps
            .values()
            .map(String::as_str)
            .filter(|v| !rim.iter().any(|r| r == v))
            .collect();
        let session = if inner.is_empty() {
            let _watch = watch(cancel, &builder);
            self.runtime
                .commit(&load, || builder.commit_from_file(&path))
        } else {
            let mut graph = std::fs::read(&path).map_err(|source| ManifestError::Read {
                path: path.clone(),
                source,
            })?;
            graph.extend(extra_outputs(&inner));
            let folder = self.models.dir().to_string_lossy();
            let mut builder = builder
                .with_config_entry(
                    "session.model_external_initializers_file_folder_path",
                    folder,
                )
                .map_err(|e| load(e.into()))?;
            let _watch = watch(cancel, &builder);
            self.runtime
                .commit(&load, || builder.commit_from_memory(&graph))
        }?;
        let loaded = OrtSession {
            rim: Rim::of(entry, contract, self.models.recipe(), &self.bindings),
            taps,
            device: self.runtime.device(&path, &entry.name, &session, &load)?,
            session,
            weights: BoundWeights::default(),
            _charge: charge,
        };
        loaded.check_rim(&path)?;
        Ok(loaded)
    }
}

impl Backend for Ort {
    fn memory(&self) -> &Arc<dyn Memory> {
        &self.runtime.memory
    }

    fn recipe(&self) -> Recipe {
        self.models.recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let (entry, contract) = self.models.component(component)?;
        let fault = options.perturb.as_ref();
        let fault = fault.map(|p| self.perturbed(entry, p)).transpose()?;
        let mut session = self.session(entry, contract, options, fault.as_ref())?;
        if contract.weights == Weights::Bound {
            let weights = self.models.weights(component)?;
            let mut weights = match self.runtime.on_host() {
                true => weights.mapped(),
                false => weights.resident(&**self.memory())?,
            };
            let fault = match fault {
                Some((input, t)) if !self.runtime.on_host() => {
                    Some((input, t.copied_to(&**self.memory(), Class::Weights)?))
                }
                fault => fault,
            };
            if let Some((input, tensor)) = fault {
                weights.replace(&input, tensor);
            }
            session.bind(weights);
        }
        Ok(Box::new(session))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let (entry, contract) = self.models.component(component)?;
        Ok(Box::new(self.session(entry, contract, options, None)?))
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        Ok(self.models.weights(component)?)
    }
}

/// Stops the loading of a graph when `cancel` asks for it.
fn watch(cancel: &Cancel, builder: &SessionBuilder) -> Watch {
    let canceler = builder.canceler();
    // A load that cannot be stopped ends by itself.
    cancel.watch(move || drop(canceler.cancel()))
}

/// Returns the error of a graph that does not load: the graph's, or a shortage of the system.
fn load_error(path: &Path, component: &str, source: ort::Error) -> EngineError {
    let (path, component) = (path.to_owned(), component.to_owned());
    match Shortage::named_in(&source.to_string()) {
        Some(shortage) => EngineError::Short {
            path,
            component,
            shortage,
        },
        None => EngineError::Load {
            path,
            component,
            source,
        },
    }
}

/// Returns protobuf bytes that make inner values outputs when they follow a serialised model. A
/// repeated `graph` field (7) merges into the first one, and its repeated `output` entries (12) are
/// appended.
fn extra_outputs(names: &BTreeSet<&str>) -> Vec<u8> {
    fn field(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2];
        let mut n = body.len();
        while n >= 0x80 {
            out.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out.extend(body);
        out
    }
    let outputs: Vec<u8> = names
        .iter()
        .flat_map(|n| field(12, &field(1, n.as_bytes())))
        .collect();
    field(7, &outputs)
}
