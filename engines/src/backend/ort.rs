//! ONNX Runtime on the CPU: the embedded default and the oracle for every other backend. Weights stay a memory map of the export's data
//! files, shared by every session; one global thread pool serves all sessions of the process.
use super::{Backend, EngineError, Facts, LoadOptions, Outputs, Perturb, Session, State};
use crate::contract::{Contract, DType, NEXT, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;
use crate::manifest::{ComponentEntry, ManifestError, Models};
use crate::memory::{Class, HostMemory, Memory, Place, Span};
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View};
use crate::weights::{HostWeights, WeightSet};
use half::bf16;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, TensorElementType, ValueType};
use ort::{AsPointer, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Name of the library that `scripts/setup` unpacks.
const LIBRARY: &str = "libonnxruntime.so.1.31.1";

/// Set for good when ONNX Runtime warns that a ring was copied instead of written in place.
static COPIED_STATE: AtomicBool = AtomicBool::new(false);

/// ONNX Runtime's CPU provider over one opened export.
pub struct OrtCpu {
    environment: Environment,
    models: Arc<Models>,
    bindings: Bindings,
    memory: Arc<dyn Memory>,
}

impl OrtCpu {
    /// Loads the library and starts the shared pool of `threads` threads. One per process: later calls share the first pool.
    pub fn new(models: Models, threads: usize) -> Result<Self, EngineError> {
        let environment = environment(threads)?;
        let c = models.config();
        let mut bindings = c.dit.bindings();
        for more in [c.vae.bindings(), c.text.bindings(), c.speech.bindings()] {
            bindings.extend(more);
        }
        Ok(Self {
            environment,
            models: Arc::new(models),
            bindings,
            memory: HostMemory::unlimited(),
        })
    }

    /// The same library and export as a virtual device with memory of its own.
    #[must_use]
    pub fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            environment: self.environment.clone(),
            models: Arc::clone(&self.models),
            bindings: self.bindings.clone(),
            memory,
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

    fn session(
        &self,
        entry: &ComponentEntry,
        contract: &'static Contract,
        options: &LoadOptions,
        fault: Option<&(String, Tensor)>,
    ) -> Result<OrtSession, EngineError> {
        let graph = entry.cpu_graph.as_ref().unwrap_or(&entry.graph);
        let path = self.models.dir().join(&graph.file);
        let load = |source| EngineError::Load {
            path: path.clone(),
            component: entry.name.clone(),
            source,
        };
        let taps = self.taps(entry, &options.taps)?;
        let mut builder = ort::session::Session::builder(&self.environment)
            .and_then(|b| {
                Ok(b.with_prepacking(false)?
                    .with_env_allocators()?
                    .with_optimization_level(GraphOptimizationLevel::All)?)
            })
            .map_err(load)?;
        if entry.cpu_graph.is_some() {
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
            builder.commit_from_file(&path)
        } else {
            let mut graph = std::fs::read(&path).map_err(|source| ManifestError::Read {
                path: path.clone(),
                source,
            })?;
            graph.extend(extra_outputs(&inner));
            let folder = self.models.dir().to_string_lossy();
            builder
                .with_config_entry(
                    "session.model_external_initializers_file_folder_path",
                    folder,
                )
                .map_err(|e| load(e.into()))?
                .commit_from_memory(&graph)
        }
        .map_err(load)?;
        let inputs = match contract.weights {
            Weights::Inside => BTreeSet::new(),
            Weights::Bound => entry.weights.keys().cloned().collect(),
        };
        let loaded = OrtSession {
            component: entry.name.clone(),
            contract,
            recipe: self.models.recipe(),
            bindings: self.bindings.clone(),
            taps,
            session,
            memory: Arc::clone(&self.memory),
            info: MemoryInfo::new(
                AllocationDevice::CPU,
                0,
                AllocatorType::Device,
                MemoryType::Default,
            )
            .map_err(load)?,
            inputs,
            weights: WeightSet::default(),
        };
        loaded.check_rim(&path)?;
        Ok(loaded)
    }
}

impl Backend for OrtCpu {
    fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
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
            let mut weights = self.models.weights(component)?.mapped();
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
    component: String,
    contract: &'static Contract,
    recipe: Recipe,
    bindings: Bindings,
    /// Module path -> name of the value in the graph.
    taps: BTreeMap<String, String>,
    session: ort::session::Session,
    /// Outputs come from here.
    memory: Arc<dyn Memory>,
    info: MemoryInfo<'static>,
    /// Names of the weights that must be bound.
    inputs: BTreeSet<String>,
    weights: WeightSet,
}

impl OrtSession {
    /// The graph's real rim must be the contract's, before any frame is made.
    fn check_rim(&self, path: &Path) -> Result<(), EngineError> {
        let wanted = self
            .contract
            .graph_inputs()
            .map(|p| (p.name.to_owned(), p))
            .chain(self.contract.graph_outputs());
        let rim = self.session.inputs().iter().chain(self.session.outputs());
        let mut found: BTreeMap<&str, &ValueType> = rim.map(|o| (o.name(), o.dtype())).collect();
        let mismatch = |port: &str, want: String, got: String| EngineError::Graph {
            path: path.to_owned(),
            component: self.component.clone(),
            port: port.to_owned(),
            want,
            got,
        };
        for (name, port) in wanted {
            let fact = found.remove(name.as_str());
            let fits = matches!(fact, Some(ValueType::Tensor { ty, shape, .. })
                if dtype_of(*ty) == Some(port.dtype(self.recipe)) && shape.len() == port.dims().len());
            if !fits {
                let got = fact.map_or_else(|| "no such port".to_owned(), |f| format!("{f:?}"));
                return Err(mismatch(&name, port.fact(self.recipe), got));
            }
        }
        match found
            .into_keys()
            .find(|name| !self.inputs.contains(*name) && !self.taps.values().any(|t| t == name))
        {
            Some(name) => Err(mismatch(
                name,
                "no such port".to_owned(),
                "one more".to_owned(),
            )),
            None => Ok(()),
        }
    }

    fn run_error(&self, source: ort::Error) -> EngineError {
        EngineError::Run {
            component: self.component.clone(),
            source,
        }
    }

    fn bind_error(
        &self,
        port: &str,
        want: impl Into<String>,
        got: impl Into<String>,
    ) -> EngineError {
        EngineError::Bind {
            component: self.component.clone(),
            port: port.to_owned(),
            want: want.into(),
            got: got.into(),
        }
    }

    /// Checks every binding and returns what they fix.
    fn check(&self, inputs: &[(&Port, View<'_>)], state: &State<'_>) -> Result<Facts, EngineError> {
        let mut facts = Facts::new(self.recipe, self.bindings.clone());
        for port in self.contract.inputs {
            let Some((_, view)) = inputs.iter().find(|(p, _)| p.name == port.name) else {
                return Err(self.bind_error(port.name, port.fact(self.recipe), "nothing"));
            };
            facts
                .learn(port, view.dtype, &view.shape)
                .map_err(|(w, g)| self.bind_error(port.name, w, g))?;
        }
        if let Some((p, v)) = inputs
            .iter()
            .find(|(p, _)| !self.contract.inputs.iter().any(|q| q.name == p.name))
        {
            return Err(self.bind_error(
                p.name,
                "no such port",
                format!("{} {:?}", v.dtype, v.shape),
            ));
        }
        if self.contract.state_kind == StateKind::Produce {
            return Ok(facts);
        }
        for port in self.contract.state {
            let fact = match state {
                State::None => None,
                State::InPlace(views) => views
                    .iter()
                    .find(|(n, _)| *n == port.name)
                    .map(|(_, v)| (v.dtype, v.shape.clone())),
                State::Replace(cache) => cache
                    .get(port.name)
                    .map(|t| (t.dtype(), t.shape().to_vec())),
            };
            let (dtype, shape) =
                fact.ok_or_else(|| self.bind_error(port.name, port.fact(self.recipe), "nothing"))?;
            facts
                .learn(port, dtype, &shape)
                .map_err(|(w, g)| self.bind_error(port.name, w, g))?;
        }
        Ok(facts)
    }

    fn bind_input(
        &self,
        binding: &mut ort::session::IoBinding,
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
        binding: &mut ort::session::IoBinding,
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
        if span.place() != Place::Host {
            return Err(self.bind_error(name, "host memory", span.place().to_string()));
        }
        wrap(&self.info, dtype, shape, span.address(), span.len()).map_err(|e| self.run_error(e))
    }

    fn bind_weights(&self, binding: &mut ort::session::IoBinding) -> Result<(), EngineError> {
        for name in &self.inputs {
            let found = self.weights.iter().find(|(n, _)| n == name);
            let (_, tensor) =
                found.ok_or_else(|| self.bind_error(name, "a bound weight", "nothing"))?;
            let view = tensor.view();
            self.bind_input(binding, name, view.dtype, &view.shape, view.span)?;
        }
        Ok(())
    }
}

impl Session for OrtSession {
    fn contract(&self) -> &'static Contract {
        self.contract
    }

    fn recipe(&self) -> Recipe {
        self.recipe
    }

    fn bind(&mut self, weights: WeightSet) {
        self.weights = weights;
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        mut state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        let facts = self.check(inputs, &state)?;
        let in_place = self.contract.state_kind == StateKind::InPlace;
        let mut owned: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut unknown: BTreeSet<String> = self.taps.values().cloned().collect();
        for (name, _) in self.contract.graph_outputs() {
            unknown.remove(&name);
        }
        for (name, port) in self
            .contract
            .graph_outputs()
            .filter(|(n, _)| !(in_place && n.ends_with(NEXT)))
        {
            // What the bindings fix is allocated here and bound; any other is allocated by ONNX Runtime and copied.
            match facts.shape(port) {
                Some(shape) => {
                    let dtype = port.dtype(self.recipe);
                    let t = Tensor::zeros_in(&*self.memory, Class::Activations, dtype, &shape)?;
                    owned.insert(name, t);
                }
                None => drop(unknown.insert(name)),
            }
        }
        let mut binding = self
            .session
            .create_binding()
            .map_err(|e| self.run_error(e))?;
        for (port, view) in inputs {
            self.bind_input(&mut binding, port.name, view.dtype, &view.shape, view.span)?;
        }
        self.bind_weights(&mut binding)?;
        match &mut state {
            State::InPlace(views) => {
                for (name, v) in views {
                    let span = v.span.as_span();
                    self.bind_input(&mut binding, name, v.dtype, &v.shape, span)?;
                    self.bind_output(
                        &mut binding,
                        &format!("{name}{NEXT}"),
                        v.dtype,
                        &v.shape,
                        span,
                    )?;
                }
            }
            State::Replace(cache) if self.contract.state_kind == StateKind::Replace => {
                for port in self.contract.state {
                    let v = cache[port.name].view();
                    self.bind_input(&mut binding, port.name, v.dtype, &v.shape, v.span)?;
                }
            }
            State::Replace(_) | State::None => {}
        }
        for (name, t) in &mut owned {
            let v = t.view_mut();
            self.bind_output(&mut binding, name, v.dtype, &v.shape, v.span.as_span())?;
        }
        for name in &unknown {
            binding
                .bind_output_to_device(name.as_str(), &self.info)
                .map_err(|e| self.run_error(e))?;
        }
        let component = &self.component;
        let outputs = self
            .session
            .run_binding(&binding)
            .map_err(|source| run_error(component, source))?;
        for name in unknown {
            let tensor =
                copy_out(&outputs[name.as_str()]).map_err(|source| run_error(component, source))?;
            owned.insert(name, tensor);
        }
        drop(outputs);
        if in_place && COPIED_STATE.load(Ordering::Relaxed) {
            let message = "a KV ring was copied instead of written in place".to_owned();
            return Err(EngineError::Aliasing {
                component: component.clone(),
                message,
            });
        }
        for (tap, value) in &self.taps {
            if let Some(t) = owned.get(value).cloned() {
                owned.insert(tap.clone(), t);
            }
        }
        if let State::Replace(cache) = state {
            for port in self.contract.state {
                if let Some(next) = owned.remove(&format!("{}{NEXT}", port.name)) {
                    cache.insert(port.name, next);
                }
            }
        }
        Ok(Outputs(owned))
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

/// The process-wide environment: ONNX Runtime allows one thread pool per process.
fn environment(threads: usize) -> Result<Environment, EngineError> {
    static SHARED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(e) = shared.as_ref() {
        return Ok(e.clone());
    }
    let library = |reason: String| EngineError::Library {
        reason,
        minor: ort::MINOR_VERSION,
    };
    let path = locate_library().ok_or_else(|| {
        library(format!(
            "{LIBRARY} not found beside the program or in a .deps folder above it"
        ))
    })?;
    // Before anything else of the binding: its first call would otherwise look for a library of its own.
    let builder = ort::init_from(&path).map_err(|e| library(format!("{}: {e}", path.display())))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|p| p.with_spin_control(false))
        .map_err(|e| library(e.to_string()))?;
    let environment = builder
        .with_name("liveavatar")
        .with_global_thread_pool(pool)
        .with_logger(Arc::new(|_, _: &str, _: &str, _: &str, message: &str| {
            if message.contains("TensorScatter") {
                COPIED_STATE.store(true, Ordering::Relaxed);
            }
        }))
        .build()
        .map_err(|e| library(e.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Warning);
    share_arena(&environment).map_err(|e| library(e.to_string()))?;
    Ok(shared.insert(environment).clone())
}

/// One arena for all sessions of the process: a layer's scratch is the next layer's. With an arena each, forty layers would keep forty
/// times the scratch of one. It grows by what is asked for, not by powers of two.
#[expect(unsafe_code, reason = "the binding has no call for it")]
fn share_arena(environment: &Environment) -> Result<(), ort::Error> {
    const SAME_AS_REQUESTED: i32 = 1;
    const DEFAULT: i32 = -1;
    let memory = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )?;
    let api = ort::api();
    let mut config = ptr::null_mut();
    // SAFETY: all pointers are live for the calls; the library copies the configuration, which is released here.
    unsafe {
        ort::Error::result_from_status((api.CreateArenaCfg)(
            0,
            SAME_AS_REQUESTED,
            DEFAULT,
            DEFAULT,
            &mut config,
        ))?;
        let status =
            (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), config);
        (api.ReleaseArenaCfg)(config);
        ort::Error::result_from_status(status)
    }
}

/// `ORT_DYLIB_PATH`, else beside the executable, else `.deps/onnxruntime` of a folder above it.
fn locate_library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let exe = std::env::current_exe().ok()?;
    let here = std::env::current_dir().ok();
    let beside = exe.parent().map(|d| d.join(LIBRARY));
    let above = exe
        .ancestors()
        .chain(here.iter().flat_map(|d| d.ancestors()));
    let deps = above.map(|d| d.join(".deps/onnxruntime").join(LIBRARY));
    beside.into_iter().chain(deps).find(|p| p.is_file())
}
