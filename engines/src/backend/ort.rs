//! ONNX Runtime: on the CPU the embedded default and the oracle for every other backend, with weights that stay a memory map of the export's
//! data files; on an NVIDIA device with everything bound where it lies. One global thread pool serves all sessions of the process.
#[cfg(feature = "cuda")]
mod cuda;
mod library;

use super::rim::{Facts, Mismatch, Rim};
use super::{Backend, Elsewhere, EngineError, LoadOptions, Outputs, Perturb, Session, State};
use crate::contract::{Contract, DType, NEXT, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;
use crate::manifest::{ComponentEntry, ManifestError, Models};
use crate::memory::{Charge, Class, HostMemory, Memory, Place, Span};
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::{BoundWeights, HostWeights};
use half::bf16;
use library::{COPIED_STATE, Kind};
use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, TensorElementType, ValueType};
use ort::{AsPointer, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// ONNX Runtime over one opened export: its CPU provider, unless it was made for another device.
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

/// Where graphs run.
#[derive(Clone)]
enum Provider {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Cuda),
}

/// A graph file outside an export, all of its weights inputs.
#[derive(Clone, Debug)]
pub struct GraphFile {
    pub path: PathBuf,
    pub contract: &'static Contract,
    pub recipe: Recipe,
    /// Sizes that every call must agree with.
    pub bindings: Bindings,
}

/// An input that a contract does not list: a weight, named as in the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPort {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Runtime {
    /// The CPU provider. Loads the library and starts the shared pool of `threads` threads. One per process: later calls share the first pool.
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

    /// The CUDA provider on the device of `memory`, from which it takes everything it needs: weights, workspace and outputs are counted.
    ///
    /// # Errors
    /// [`EngineError::CudaLibrary`] for each library that is missing, before anything is loaded; [`EngineError::Library`].
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

    /// The same library as a virtual device of the CPU with memory of its own.
    #[must_use]
    pub fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            environment: self.environment.clone(),
            provider: Provider::Cpu,
            memory,
        }
    }

    /// The device's memory.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Loads a graph that no export lists; the weights to bind come with it.
    ///
    /// # Errors
    /// A file that does not load, a rim that is not the contract's, a weight of unknown size.
    pub fn open(
        &self,
        graph: &GraphFile,
    ) -> Result<(Box<dyn Session>, Vec<WeightPort>), EngineError> {
        let component = graph.contract.name.to_owned();
        let load = |source| EngineError::Load {
            path: graph.path.clone(),
            component: component.clone(),
            source,
        };
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

    /// Options that every session of this provider has.
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

    /// Makes a session, its allocations counted as weights.
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

    /// What a session needs to know of its device; refuses one with work left on the host.
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

    /// Whether sessions read bound memory wherever it lies in the process.
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
    /// An export on the CPU, see [`Runtime::cpu`].
    ///
    /// # Errors
    /// As there.
    pub fn new(models: Models, threads: usize) -> Result<Self, EngineError> {
        Ok(Self::with(models, Runtime::cpu(threads)?))
    }

    /// An export on any device.
    pub fn with(models: Models, runtime: Runtime) -> Self {
        Self {
            runtime,
            bindings: models.config().bindings(),
            models: Arc::new(models),
        }
    }

    /// The same library and export as a virtual device of the CPU with memory of its own.
    #[must_use]
    pub fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            runtime: self.runtime.on(memory),
            models: Arc::clone(&self.models),
            bindings: self.bindings.clone(),
        }
    }

    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Names of the tapped values in the graph.
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

    /// A weight's own values plus the fault, under its name in the graph.
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

    /// Counts the weights inside a graph, which another device would hold a copy of.
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
        let charge = self.charge(entry, contract)?;
        let cpu_graph = entry.cpu_graph.as_ref().filter(|_| self.runtime.on_host());
        let graph = cpu_graph.unwrap_or(&entry.graph);
        let path = self.models.dir().join(&graph.file);
        let load = |source| EngineError::Load {
            path: path.clone(),
            component: entry.name.clone(),
            source,
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

/// Protobuf bytes that, appended to a serialised model, make inner values outputs: a repeated `graph` field (7) merges into the first, and
/// its repeated `output` entries (12) are appended.
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

struct OrtSession {
    rim: Rim,
    /// Module path -> name of the value in the graph.
    taps: BTreeMap<String, String>,
    session: ort::session::Session,
    device: Device,
    weights: BoundWeights,
    /// Weights inside, where the device is apart.
    _charge: Option<Charge>,
}

/// The device of a session. Dropped after it: its memory, its stream.
struct Device {
    provider: Provider,
    /// Outputs come from here.
    memory: Arc<dyn Memory>,
    info: MemoryInfo<'static>,
    host: MemoryInfo<'static>,
    place: Place,
    /// What is read on the host whatever the device.
    host_inputs: BTreeSet<String>,
    elsewhere: Vec<Elsewhere>,
}

impl Device {
    /// Where an input must lie.
    fn wants(&self, input: &str) -> Place {
        match self.host_inputs.contains(input) {
            true => Place::Host,
            false => self.place,
        }
    }

    fn info(&self, place: Place) -> &MemoryInfo<'static> {
        match place {
            Place::Host => &self.host,
            Place::Cuda(_) => &self.info,
        }
    }

    /// A copy in `place`.
    fn moved(&self, view: &View<'_>, place: Place) -> Result<Tensor, EngineError> {
        if place != Place::Host {
            return Ok(view.copied_to(&*self.memory, Class::Activations)?);
        }
        let mut copy = Tensor::zeros(view.dtype, &view.shape);
        self.memory.copy(view.span, copy.view_mut().span)?;
        Ok(copy)
    }

    /// The refusal behind an error of the library.
    fn error(&self, component: &str, source: ort::Error) -> EngineError {
        match &self.provider {
            Provider::Cpu => run_error(component, source),
            #[cfg(feature = "cuda")]
            Provider::Cuda(cuda) => match cuda.refusal() {
                Some(refusal) => refusal.into(),
                None => run_error(component, source),
            },
        }
    }
}

impl OrtSession {
    /// The graph's real rim must be the contract's, before any frame is made.
    fn check_rim(&self, path: &Path) -> Result<(), EngineError> {
        let rim = self.session.inputs().iter().chain(self.session.outputs());
        let found = rim.map(|o| (o.name().to_owned(), o.dtype())).collect();
        let fits = |fact: &&ValueType, port: &Port| {
            matches!(fact, ValueType::Tensor { ty, shape, .. }
                if dtype_of(*ty) == Some(port.dtype(self.rim.recipe))
                    && shape.len() == port.dims().len())
        };
        let is_tap = |name: &str| self.taps.values().any(|value| value == name);
        let show = |fact: &&ValueType| format!("{fact:?}");
        let Some(Mismatch { port, want, got }) = self.rim.mismatch(found, fits, show, is_tap)
        else {
            return Ok(());
        };
        Err(EngineError::Graph {
            path: path.to_owned(),
            component: self.rim.component.clone(),
            port,
            want,
            got,
        })
    }

    fn run_error(&self, source: ort::Error) -> EngineError {
        EngineError::Run {
            component: self.rim.component.clone(),
            source,
        }
    }

    /// Binds an input where it lies, or a copy where it should: that is kept in `moved` for the call.
    fn bind_input(
        &self,
        binding: &mut IoBinding,
        name: &str,
        view: &View<'_>,
        moved: &mut Vec<Tensor>,
    ) -> Result<(), EngineError> {
        let wanted = self.device.wants(name);
        if view.span.place() == wanted {
            return self.bind_there(binding, name, view);
        }
        let copy = self.device.moved(view, wanted)?;
        self.bind_there(binding, name, &copy.view())?;
        moved.push(copy);
        Ok(())
    }

    fn bind_there(
        &self,
        binding: &mut IoBinding,
        name: &str,
        view: &View<'_>,
    ) -> Result<(), EngineError> {
        self.bind_span(binding, name, view.dtype, &view.shape, view.span)
    }

    fn bind_span(
        &self,
        binding: &mut IoBinding,
        name: &str,
        dtype: DType,
        shape: &[usize],
        span: Span<'_>,
    ) -> Result<(), EngineError> {
        let value = self.wrap(name, dtype, shape, span)?;
        binding
            .bind_input(name, &value)
            .map_err(|e| self.run_error(e))
    }

    /// The caller holds the memory exclusively until the run is over.
    fn bind_output(
        &self,
        binding: &mut IoBinding,
        name: &str,
        dtype: DType,
        shape: &[usize],
        span: Span<'_>,
    ) -> Result<(), EngineError> {
        let mut value = self.wrap(name, dtype, shape, span)?;
        binding
            .bind_output(name, &mut value)
            .map_err(|e| self.run_error(e))
    }

    fn wrap(
        &self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        span: Span<'_>,
    ) -> Result<DynValue, EngineError> {
        let place = span.place();
        if place != Place::Host && place != self.device.place {
            let wanted = format!("memory of {}", self.device.place);
            return Err(self.rim.error(name, wanted, place.to_string()));
        }
        let info = self.device.info(place);
        wrap(info, dtype, shape, span.address(), span.len()).map_err(|e| self.run_error(e))
    }

    /// Copies rings that lie elsewhere than on this session's device; none when they lie there.
    fn rings(&self, views: &[(&str, ViewMut<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let place = self.device.place;
        if views.iter().all(|(_, v)| v.span.place() == place) {
            return Ok(Vec::new());
        }
        let copy = |v: &ViewMut<'_>| {
            let span = v.span.as_span();
            let view = View {
                dtype: v.dtype,
                shape: v.shape.clone(),
                span,
            };
            self.device.moved(&view, place)
        };
        views.iter().map(|(_, v)| copy(v)).collect()
    }

    fn bind_weights(&self, binding: &mut IoBinding) -> Result<(), EngineError> {
        for weight in self.rim.bound(&self.weights) {
            let (name, tensor) = weight?;
            let wanted = self.device.wants(name);
            if tensor.place() != wanted {
                let wanted = format!("a weight in memory of {wanted}");
                return Err(self.rim.error(name, wanted, tensor.place().to_string()));
            }
            self.bind_there(binding, name, &tensor.view())?;
        }
        Ok(())
    }

    /// Binds state that is read; in place, the same memory is written.
    fn bind_state(&self, call: &mut Call, state: &mut State<'_>) -> Result<(), EngineError> {
        match state {
            State::InPlace(views) => {
                // Rings of a caller that keeps them on the host, on the device for this call.
                call.rings = self.rings(views)?;
                for (i, (name, view)) in views.iter_mut().enumerate() {
                    let view = match call.rings.get_mut(i) {
                        Some(ring) => ring.view_mut(),
                        None => view.again(),
                    };
                    let (shape, span) = (&view.shape, view.span.as_span());
                    self.bind_span(&mut call.binding, name, view.dtype, shape, span)?;
                    let next = format!("{name}{NEXT}");
                    self.bind_output(&mut call.binding, &next, view.dtype, shape, span)?;
                }
            }
            State::Replace(cache) if self.rim.contract.state_kind == StateKind::Replace => {
                for port in self.rim.contract.state {
                    let view = cache[port.name].view();
                    self.bind_input(&mut call.binding, port.name, &view, &mut call.moved)?;
                }
            }
            State::Replace(_) | State::None => {}
        }
        Ok(())
    }

    /// Binds outputs: memory of ours where the bindings fix the size, else the library's.
    fn bind_outputs(&self, call: &mut Call, facts: &Facts) -> Result<(), EngineError> {
        call.unknown.extend(self.taps.values().cloned());
        for (name, _) in self.rim.contract.graph_outputs() {
            call.unknown.remove(&name);
        }
        for (name, port) in self.rim.fresh_outputs() {
            let Some(shape) = facts.shape(port) else {
                call.unknown.insert(name);
                continue;
            };
            let dtype = port.dtype(self.rim.recipe);
            let memory = &*self.device.memory;
            let mut tensor = Tensor::zeros_in(memory, Class::Activations, dtype, &shape)?;
            let span = tensor.view_mut().span;
            self.bind_output(&mut call.binding, &name, dtype, &shape, span.as_span())?;
            call.outputs.insert(name, tensor);
        }
        for name in &call.unknown {
            call.binding
                .bind_output_to_device(name.as_str(), &self.device.host)
                .map_err(|e| self.run_error(e))?;
        }
        Ok(())
    }

    /// Binds inputs, weights, state and outputs of one call.
    fn bind_all(
        &self,
        inputs: &[(&Port, View<'_>)],
        state: &mut State<'_>,
    ) -> Result<Call, EngineError> {
        let facts = self.rim.check(inputs, state)?;
        let mut call = Call {
            binding: self
                .session
                .create_binding()
                .map_err(|e| self.run_error(e))?,
            outputs: BTreeMap::new(),
            unknown: BTreeSet::new(),
            moved: Vec::new(),
            rings: Vec::new(),
        };
        self.bind_outputs(&mut call, &facts)?;
        for (port, view) in inputs {
            self.bind_input(&mut call.binding, port.name, view, &mut call.moved)?;
        }
        self.bind_weights(&mut call.binding)?;
        self.bind_state(&mut call, state)?;
        Ok(call)
    }

    /// Runs the graph, and copies the outputs that the library allocated.
    fn call(&mut self, call: &mut Call) -> Result<(), EngineError> {
        let (component, device) = (&self.rim.component, &self.device);
        let outputs = self
            .session
            .run_binding(&call.binding)
            .map_err(|source| device.error(component, source))?;
        for name in std::mem::take(&mut call.unknown) {
            let tensor =
                copy_out(&outputs[name.as_str()]).map_err(|source| run_error(component, source))?;
            call.outputs.insert(name, tensor);
        }
        Ok(())
    }

    /// Hands the results of a finished call to the caller: state, taps and outputs.
    fn collect(&self, call: Call, mut state: State<'_>) -> Result<Outputs, EngineError> {
        let Call {
            binding,
            mut outputs,
            rings,
            ..
        } = call;
        drop(binding);
        if let State::InPlace(views) = &mut state {
            for ((_, view), ring) in views.iter_mut().zip(&rings) {
                let (from, to) = (ring.view().span, view.again().span);
                self.device.memory.copy(from, to)?;
            }
            if COPIED_STATE.load(Ordering::Relaxed) {
                return Err(EngineError::Aliasing {
                    component: self.rim.component.clone(),
                    message: "a KV ring was copied instead of written in place".to_owned(),
                });
            }
        }
        for (tap, value) in &self.taps {
            if let Some(tensor) = outputs.get(value).cloned() {
                outputs.insert(tap.clone(), tensor);
            }
        }
        self.rim.hand_on(&mut outputs, state);
        Ok(Outputs(outputs))
    }
}

/// One call's binding and the memory that it points to; the binding is dropped first.
struct Call {
    binding: IoBinding,
    /// Outputs in memory of ours, by name.
    outputs: BTreeMap<String, Tensor>,
    /// Outputs that the library allocates.
    unknown: BTreeSet<String>,
    /// Copies of inputs that lay elsewhere than the graph reads them.
    moved: Vec<Tensor>,
    /// Copies of rings that lie elsewhere than on the device.
    rings: Vec<Tensor>,
}

impl Session for OrtSession {
    fn contract(&self) -> &'static Contract {
        self.rim.contract
    }

    fn component(&self) -> &str {
        &self.rim.component
    }

    fn recipe(&self) -> Recipe {
        self.rim.recipe
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.weights = weights;
    }

    fn elsewhere(&self) -> &[Elsewhere] {
        &self.device.elsewhere
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        mut state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        let mut call = self.bind_all(inputs, &mut state)?;
        self.call(&mut call)?;
        self.collect(call, state)
    }
}

fn run_error(component: &str, source: ort::Error) -> EngineError {
    let text = source.to_string();
    if text.contains("Failed to allocate") || text.contains("bad_alloc") {
        EngineError::Memory {
            component: component.to_owned(),
            reason: text,
        }
    } else {
        EngineError::Run {
            component: component.to_owned(),
            source,
        }
    }
}

/// Wraps memory as a tensor value without a copy. The caller keeps the memory alive and unmoved until the value is gone.
#[expect(
    unsafe_code,
    reason = "the binding's safe constructors copy borrowed memory"
)]
fn wrap(
    memory: &MemoryInfo<'_>,
    dtype: DType,
    shape: &[usize],
    bytes: NonNull<u8>,
    len: usize,
) -> Result<DynValue, ort::Error> {
    let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
    let mut value: *mut sys::OrtValue = ptr::null_mut();
    // SAFETY: `bytes` points to `len` valid bytes of the stated type and shape (checked against the port by the caller); inputs are only
    // read; the value is dropped with the binding, before the borrow that `bytes` came from ends.
    unsafe {
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            bytes.as_ptr().cast(),
            len,
            dims.as_ptr(),
            dims.len(),
            element_type(dtype).into(),
            &mut value,
        );
        ort::Error::result_from_status(status)?;
        let value = NonNull::new(value).expect("a successful call returns a value");
        Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
    }
}

/// A value with a copy of a weight.
fn owned(tensor: &Tensor) -> Result<DynValue, ort::Error> {
    let shape = tensor.shape().to_vec();
    Ok(match tensor.dtype() {
        DType::BF16 => {
            let data = tensor.as_slice::<bf16>().to_vec();
            ort::value::Tensor::from_array((shape, data))?.into_dyn()
        }
        _ => {
            let data = tensor.as_slice::<f32>().to_vec();
            ort::value::Tensor::from_array((shape, data))?.into_dyn()
        }
    })
}

fn copy_out(value: &DynValue) -> Result<Tensor, ort::Error> {
    fn take<T: crate::tensor::Element + ort::value::PrimitiveTensorElementType>(
        value: &DynValue,
    ) -> Result<Tensor, ort::Error> {
        let (shape, data) = value.try_extract_tensor::<T>()?;
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        Ok(Tensor::from_slice(&shape, data))
    }
    match value.dtype().tensor_type() {
        Some(TensorElementType::Int64) => take::<i64>(value),
        Some(TensorElementType::Uint8) => take::<u8>(value),
        Some(TensorElementType::Bfloat16) => take::<bf16>(value),
        _ => take::<f32>(value),
    }
}

fn element_type(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        DType::I64 => TensorElementType::Int64,
        DType::U8 => TensorElementType::Uint8,
        DType::Bool => TensorElementType::Bool,
    }
}

fn dtype_of(ty: TensorElementType) -> Option<DType> {
    [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::U8,
        DType::Bool,
    ]
    .into_iter()
    .find(|&d| element_type(d) == ty)
}
