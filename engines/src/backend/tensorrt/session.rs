//! Runs engines: a folder of them opened for one device, and sessions that bind every port and
//! every bound weight by its address. Outputs and scratch come from the caller's counted memory.

use super::TensorRtError;
use super::engine_list::{Engines, Here, engine_name};
use super::library::{self, Library};
use crate::backend::rim::{Facts, Mismatch, Rim};
use crate::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use crate::contract::{Contract, DType, NEXT, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;
use crate::manifest::{ComponentEntry, Models};
use crate::memory::cuda::{CudaDevice, CudaMemory};
use crate::memory::{Block, Class, Memory, Place};
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View};
use crate::weights::{BoundWeights, HostWeights};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trtx::trtx_sys::Dims64;
use trtx::{
    CudaEngine, DataType, ExecutionContext, ExecutionContextAllocationStrategy,
    LayerInformationFormat, Runtime, TensorLocation,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for the weights inside engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideBudget {
    /// On the device.
    Resident,
    /// At most so many bytes of an engine on the device; the rest streams from the host. Only for
    /// enterprise engines that were built for it.
    AtMost(u64),
}

/// A folder of engines on one device.
pub struct TensorRt {
    models: Arc<Models>,
    engines: Engines,
    device: Arc<CudaDevice>,
    memory: Arc<dyn Memory>,
    bindings: Bindings,
    inside: InsideBudget,
    /// One scratch for all sessions of the device: they take turns on its stream.
    scratch: Arc<Mutex<Option<Block>>>,
    runtime: Arc<Shared<Runtime<'static>>>,
    /// Engines by name: the layers of a stack share one.
    loaded: Mutex<BTreeMap<String, Arc<Shared<CudaEngine<'static>>>>>,
    #[cfg(feature = "tensorrt-rtx")]
    cache: cache::Kernels,
}

/// An object of TensorRT's, used by one thread at a time.
struct Shared<T>(Mutex<T>);

// SAFETY: TensorRT's objects belong to no thread; the mutex lets one at a time use this one.
#[expect(unsafe_code, reason = "the binding's types say nothing about threads")]
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the binding's types say nothing about threads")]
unsafe impl<T> Sync for Shared<T> {}

impl TensorRt {
    /// Opens the engines at `dir` for the components that `wanted` names. Checks driver, library,
    /// GPU and then each engine before it loads anything.
    ///
    /// # Errors
    /// A driver or library is missing; an engine is missing, stale, damaged or for another GPU,
    /// with the command that rebuilds it.
    pub fn open(
        models: Models,
        dir: &Path,
        memory: Arc<CudaMemory>,
        inside: InsideBudget,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Self, EngineError> {
        let library = Library::load()?;
        let device = Arc::clone(memory.device());
        let (major, minor) = device.capability()?;
        let here = Here {
            flavour: library.flavour(),
            version: library.version(),
            sm: major * 10 + minor,
        };
        let engines = Engines::open(dir, &models, &here, wanted)?;
        let runtime = Runtime::new(library::logger()?).map_err(|e| run_error("runtime", &e))?;
        Ok(Self {
            bindings: models.config().bindings(),
            models: Arc::new(models),
            #[cfg(feature = "tensorrt-rtx")]
            cache: cache::Kernels::beside(dir),
            engines,
            device,
            memory,
            inside,
            scratch: Arc::default(),
            runtime: Arc::new(Shared(Mutex::new(runtime))),
            loaded: Mutex::default(),
        })
    }

    /// Returns the export.
    pub fn models(&self) -> &Models {
        &self.models
    }

    fn engine(
        &self,
        component: &ComponentEntry,
    ) -> Result<Arc<Shared<CudaEngine<'static>>>, EngineError> {
        let name = engine_name(component);
        let mut loaded = lock(&self.loaded);
        if let Some(engine) = loaded.get(name) {
            return Ok(Arc::clone(engine));
        }
        let missing = || TensorRtError::Unsupported {
            component: component.name.clone(),
            what: "an engine was asked for that the folder was not opened for".to_owned(),
        };
        let (entry, path) = self.engines.of(component).ok_or_else(missing)?;
        let plan = std::fs::read(&path).map_err(|source| TensorRtError::Read {
            path,
            source,
            rebuild: self.engines.list().command.clone(),
        })?;
        let mut made = None;
        self.device.compute(|_| {
            let engine = lock(&self.runtime.0).deserialize_cuda_engine(&plan);
            made = Some(engine.map_err(|e| run_error(&entry.name, &e))?);
            Ok::<(), EngineError>(())
        })?;
        let engine = made.ok_or_else(missing)?;
        #[cfg(feature = "tensorrt")]
        let engine = self.streamed(&entry.name, engine)?;
        #[cfg(not(feature = "tensorrt"))]
        if self.inside != InsideBudget::Resident {
            return Err(TensorRtError::Unsupported {
                component: component.name.clone(),
                what: "weights were to be streamed".to_owned(),
            }
            .into());
        }
        let engine = Arc::new(Shared(Mutex::new(engine)));
        loaded.insert(name.to_owned(), Arc::clone(&engine));
        Ok(engine)
    }

    #[cfg(feature = "tensorrt")]
    fn streamed(
        &self,
        name: &str,
        mut engine: CudaEngine<'static>,
    ) -> Result<CudaEngine<'static>, EngineError> {
        if let InsideBudget::AtMost(bytes) = self.inside {
            super::streaming::set_budget(name, &mut engine, bytes)?;
        }
        Ok(engine)
    }

    fn session(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<TensorRtSession, EngineError> {
        let (entry, contract) = self.models.component(component)?;
        for (asked, what) in [
            (!options.taps.is_empty(), "taps were asked for"),
            (options.perturb.is_some(), "a fault was to be put in"),
        ] {
            if asked {
                return Err(TensorRtError::Unsupported {
                    component: component.to_owned(),
                    what: what.to_owned(),
                }
                .into());
            }
        }
        let engine = self.engine(entry)?;
        let mut made = None;
        self.device.compute(|_| {
            made = Some(self.context(component, &mut lock(&engine.0))?);
            Ok::<(), EngineError>(())
        })?;
        let (context, on_host) =
            made.ok_or_else(|| run_error(component, &"no context was made"))?;
        let session = TensorRtSession {
            rim: Rim::of(entry, contract, self.models.recipe(), &self.bindings),
            context: Shared(Mutex::new(context)),
            engine,
            _runtime: Arc::clone(&self.runtime),
            device: Arc::clone(&self.device),
            memory: Arc::clone(&self.memory),
            scratch: Arc::clone(&self.scratch),
            on_host,
            weights: BoundWeights::default(),
        };
        session.check_rim()?;
        Ok(session)
    }

    /// A context whose scratch we give it, and the inputs that it reads on the host.
    fn context(
        &self,
        component: &str,
        engine: &mut CudaEngine<'static>,
    ) -> Result<(ExecutionContext<'static>, BTreeSet<String>), EngineError> {
        let fail = |e: trtx::Error| run_error(component, &e);
        let mut config = engine.create_runtime_config().map_err(fail)?;
        config.set_execution_context_allocation_strategy(
            ExecutionContextAllocationStrategy::kUSER_MANAGED,
        );
        #[cfg(feature = "tensorrt-rtx")]
        self.cache.give(&mut config).map_err(fail)?;
        let context = engine
            .create_execution_context_with_config(Rc::new(config))
            .map_err(fail)?;
        let mut on_host = BTreeSet::new();
        for name in names(engine).map_err(fail)? {
            if engine.tensor_location(&name).map_err(fail)? == TensorLocation::kHOST {
                on_host.insert(name);
            }
        }
        Ok((context, on_host))
    }
}

#[cfg(feature = "tensorrt-rtx")]
impl Drop for TensorRt {
    fn drop(&mut self) {
        self.cache.keep();
    }
}

impl Backend for TensorRt {
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
        let mut session = self.session(component, options)?;
        if session.rim.contract.weights == Weights::Bound {
            session.bind(self.weights(component)?.resident(&*self.memory)?);
        }
        Ok(Box::new(session))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(self.session(component, options)?))
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        Ok(self.models.weights(component)?)
    }
}

/// Lists every tensor on an engine's rim.
fn names(engine: &CudaEngine<'static>) -> Result<Vec<String>, trtx::Error> {
    (0..engine.nb_io_tensors()?)
        .map(|i| engine.io_tensor_name(i))
        .collect()
}

fn run_error(component: &str, error: &dyn std::fmt::Display) -> EngineError {
    TensorRtError::Run {
        component: component.to_owned(),
        reason: library::said(error),
    }
    .into()
}

fn dtype_of(ty: DataType) -> Option<DType> {
    Some(match ty {
        DataType::kFLOAT => DType::F32,
        DataType::kHALF => DType::F16,
        DataType::kBF16 => DType::BF16,
        DataType::kINT64 => DType::I64,
        DataType::kUINT8 => DType::U8,
        DataType::kBOOL => DType::Bool,
        _ => return None,
    })
}

/// One engine's context. The order of the fields is the order of their drops: the context before
/// its engine, the engine before the runtime.
struct TensorRtSession {
    context: Shared<ExecutionContext<'static>>,
    engine: Arc<Shared<CudaEngine<'static>>>,
    _runtime: Arc<Shared<Runtime<'static>>>,
    rim: Rim,
    device: Arc<CudaDevice>,
    memory: Arc<dyn Memory>,
    scratch: Arc<Mutex<Option<Block>>>,
    /// Inputs that TensorRT reads on the host.
    on_host: BTreeSet<String>,
    weights: BoundWeights,
}

impl TensorRtSession {
    /// The engine's real rim must be the contract's, before any frame is made.
    fn check_rim(&self) -> Result<(), EngineError> {
        let engine = lock(&self.engine.0);
        let fail = |e: trtx::Error| run_error(&self.rim.component, &e);
        let mut found = BTreeMap::new();
        for name in names(&engine).map_err(fail)? {
            let dtype = dtype_of(engine.tensor_data_type(&name).map_err(fail)?);
            found.insert(name, dtype);
        }
        let fits = |dtype: &Option<DType>, port: &Port| *dtype == Some(port.dtype(self.rim.recipe));
        let show = |dtype: &Option<DType>| {
            dtype.map_or_else(|| "a type that no port has".to_owned(), |t| t.to_string())
        };
        match self.rim.mismatch(found, fits, show, |_| false) {
            None => Ok(()),
            Some(Mismatch { port, want, got }) => Err(self.rim.error(&port, want, got)),
        }
    }

    /// Binds an input where its elements lie, or else a copy where it is read, which `moved` keeps
    /// for the call.
    fn place(
        &self,
        name: &str,
        view: &View<'_>,
        moved: &mut Vec<Tensor>,
    ) -> Result<(), EngineError> {
        let on_host = self.on_host.contains(name);
        let here = view.span().place();
        let copy = match (on_host, here == Place::Host) {
            (true, true) => None,
            (true, false) => Some(Tensor::zeros(view.dtype, &view.shape)),
            (false, _) if here == self.memory.place() => None,
            (false, _) => Some(Tensor::zeros_in(
                &*self.memory,
                Class::Activations,
                view.dtype,
                &view.shape,
            )?),
        };
        let address = match copy {
            None => view.span().address().as_ptr().cast::<c_void>(),
            Some(mut copy) => {
                self.memory.copy(view.span(), copy.view_mut().span_mut())?;
                let address = copy.view().span().address().as_ptr().cast();
                moved.push(copy);
                address
            }
        };
        self.bind_address(name, Some(&view.shape), address)
    }

    /// Tells the context where a tensor is, and how large for an input.
    #[expect(unsafe_code, reason = "addresses are handed to TensorRT")]
    fn bind_address(
        &self,
        name: &str,
        shape: Option<&[usize]>,
        address: *mut c_void,
    ) -> Result<(), EngineError> {
        let fail = |e: trtx::Error| run_error(&self.rim.component, &e);
        let mut context = lock(&self.context.0);
        if let Some(shape) = shape {
            let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            context
                .set_input_shape(name, &Dims64::from_slice(&dims))
                .map_err(fail)?;
        }
        // SAFETY: the address names memory of the tensor's type and shape (checked against the
        // port), where the engine reads it, that the caller of `run` or this call's own tensors
        // keep until the stream has been waited for.
        unsafe { context.set_tensor_address(name, address) }.map_err(fail)
    }

    fn bind_weights(&self, moved: &mut Vec<Tensor>) -> Result<(), EngineError> {
        for weight in self.rim.bound(&self.weights) {
            let (name, tensor) = weight?;
            self.place(name, &tensor.view(), moved)?;
        }
        Ok(())
    }

    /// Binds state that is read; in place, the same address is written.
    fn bind_state(&self, state: &State<'_>, moved: &mut Vec<Tensor>) -> Result<(), EngineError> {
        match state {
            State::InPlace(views) => {
                for (name, v) in views {
                    let span = v.span.as_span();
                    if span.place() != self.memory.place() {
                        let message = format!(
                            "KV ring {name} lies on {}, it is written in place on {}",
                            span.place(),
                            self.memory.place()
                        );
                        return Err(EngineError::Aliasing {
                            component: self.rim.component.clone(),
                            message,
                        });
                    }
                    let address = span.address().as_ptr().cast();
                    self.bind_address(name, Some(&v.shape), address)?;
                    self.bind_address(&format!("{name}{NEXT}"), None, address)?;
                }
                Ok(())
            }
            State::Replace(cache) if self.rim.contract.state_kind == StateKind::Replace => {
                for port in self.rim.contract.state {
                    self.place(port.name, &cache[port.name].view(), moved)?;
                }
                Ok(())
            }
            State::Replace(_) | State::None => Ok(()),
        }
    }

    /// Outputs in the device's memory, bound. Their shapes are known once all inputs are.
    fn outputs(&self, facts: &Facts) -> Result<BTreeMap<String, Tensor>, EngineError> {
        let mut owned = BTreeMap::new();
        for (name, port) in self.rim.fresh_outputs() {
            let shape = match facts.shape(port) {
                Some(shape) => shape,
                None => self.inferred(&name)?,
            };
            let dtype = port.dtype(self.rim.recipe);
            let t = Tensor::zeros_in(&*self.memory, Class::Activations, dtype, &shape)?;
            self.bind_address(&name, None, t.view().span().address().as_ptr().cast())?;
            owned.insert(name, t);
        }
        Ok(owned)
    }

    fn inferred(&self, name: &str) -> Result<Vec<usize>, EngineError> {
        let dims = lock(&self.context.0)
            .tensor_shape(name)
            .map_err(|e| run_error(&self.rim.component, &e))?;
        let rank = usize::try_from(dims.nbDims).unwrap_or(0);
        let sizes = dims.d.iter().take(rank).map(|&n| usize::try_from(n));
        sizes.collect::<Result<_, _>>().map_err(|_| {
            run_error(
                &self.rim.component,
                &format!("output {name} has no size yet"),
            )
        })
    }

    /// Gives the context its scratch, larger than before where these sizes need it.
    #[expect(unsafe_code, reason = "an address is handed to TensorRT")]
    fn give_scratch(&self, scratch: &mut Option<Block>) -> Result<(), EngineError> {
        let mut context = lock(&self.context.0);
        let need = context.update_device_memory_size_for_shapes();
        if scratch.as_ref().map_or(0, Block::len) < need {
            // The smaller one first: the two need not fit together.
            *scratch = None;
            *scratch = Some(self.memory.alloc(need, Class::Workspace)?);
        }
        let (address, len) = scratch.as_ref().map_or((std::ptr::null_mut(), 0), |b| {
            (b.span(0, b.len()).address().as_ptr().cast(), b.len())
        });
        // SAFETY: the block lies on this device, is as large as stated, and stays locked until the
        // stream has been waited for.
        unsafe { context.set_device_memory_v2(address, len as i64) };
        Ok(())
    }

    #[expect(unsafe_code, reason = "work is queued on a CUDA stream")]
    fn enqueue(&self, stream: *mut c_void) -> Result<(), EngineError> {
        // SAFETY: every tensor of the rim was bound; all memory outlives the wait that follows; the
        // stream is the device's own.
        unsafe { lock(&self.context.0).enqueue_v3(stream) }
            .map_err(|e| run_error(&self.rim.component, &e))
    }
}

impl Session for TensorRtSession {
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

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        let facts = self.rim.check(inputs, &state)?;
        let mut moved = Vec::new();
        for (port, view) in inputs {
            self.place(port.name, view, &mut moved)?;
        }
        self.bind_weights(&mut moved)?;
        self.bind_state(&state, &mut moved)?;
        let mut owned = self.outputs(&facts)?;
        let shared = Arc::clone(&self.scratch);
        let mut scratch = lock(&shared);
        self.device.compute(|stream| {
            self.give_scratch(&mut scratch)?;
            self.enqueue(stream)
        })?;
        drop(scratch);
        drop(moved);
        self.rim.hand_on(&mut owned, state);
        Ok(Outputs::from(owned))
    }
}

/// The layers of an engine as JSON. TensorRT reads its own engines only on a GPU.
///
/// # Errors
/// No driver, or an engine that this library and GPU do not take.
pub fn inspect(_library: Library, path: &Path, plan: &[u8]) -> Result<String, TensorRtError> {
    let device = library::driver(0)?;
    let fail = |e: trtx::Error| TensorRtError::Build {
        path: path.to_owned(),
        reason: library::said(&e),
    };
    let mut layers = String::new();
    device.compute(|_| {
        let mut runtime = Runtime::new(library::logger()?).map_err(fail)?;
        let engine = runtime.deserialize_cuda_engine(plan).map_err(fail)?;
        let inspector = engine.create_engine_inspector().map_err(fail)?;
        layers = inspector
            .engine_information(LayerInformationFormat::kJSON)
            .map_err(fail)?;
        Ok::<(), TensorRtError>(())
    })?;
    Ok(layers)
}

/// Kernels that TensorRT for RTX finishes when an engine is first used, kept in a file beside the
/// engines for the next run.
#[cfg(feature = "tensorrt-rtx")]
mod cache {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};
    use trtx::{RuntimeCache, RuntimeConfig};

    /// Name of the file.
    const FILE: &str = "kernels.cache";

    pub(super) struct Kernels {
        path: PathBuf,
        cache: Mutex<Option<Arc<RuntimeCache>>>,
    }

    impl Kernels {
        pub(super) fn beside(dir: &Path) -> Self {
            Self {
                path: dir.join(FILE),
                cache: Mutex::new(None),
            }
        }

        /// Has a context use the cache.
        pub(super) fn give(&self, config: &mut RuntimeConfig<'static>) -> Result<(), trtx::Error> {
            let mut cache = super::lock(&self.cache);
            let shared = match &*cache {
                Some(shared) => Arc::clone(shared),
                None => {
                    let made = config.create_runtime_cache()?;
                    if let Ok(bytes) = std::fs::read(&self.path)
                        && made.deserialize(&bytes).is_err()
                    {
                        // Of another library or card: it is made anew.
                        made.reset()?;
                    }
                    Arc::clone(cache.insert(Arc::new(made)))
                }
            };
            config.set_runtime_cache(shared)
        }

        /// Writes the cache to its file. A lost cache costs time at the next start and nothing
        /// else, so a folder that cannot be written is no error.
        pub(super) fn keep(&self) {
            let Some(cache) = super::lock(&self.cache).take() else {
                return;
            };
            let Ok(bytes) = cache.serialize() else { return };
            drop(crate::files::write_whole(&self.path, &bytes));
        }
    }
}
