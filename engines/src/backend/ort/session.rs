//! One loaded graph of ONNX Runtime. A call binds every tensor where it lies, runs, and hands the
//! results on.

use super::library::COPIED_STATE;
use super::provider::Provider;
use crate::backend::rim::{Facts, Mismatch, Rim};
use crate::backend::{Elsewhere, EngineError, Outputs, Session, State, brief};
use crate::cancel::Cancel;
use crate::contract::{Contract, DType, NEXT, Port, StateKind};
use crate::error_kind::Shortage;
use crate::memory::{Charge, Class, Memory, Place, Span};
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::BoundWeights;
use half::bf16;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, RunOptions};
use ort::value::{DynValue, TensorElementType, ValueType};
use ort::{AsPointer, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One loaded graph.
pub(super) struct OrtSession {
    pub(super) rim: Rim,
    /// Module path -> name of the value in the graph.
    pub(super) taps: BTreeMap<String, String>,
    pub(super) session: ort::session::Session,
    pub(super) device: Device,
    pub(super) weights: BoundWeights,
    /// Weights inside, where the device is apart.
    pub(super) _charge: Option<Charge>,
}

/// The device of a session. Dropped after it: its memory, its stream.
pub(super) struct Device {
    pub(super) provider: Provider,
    /// Outputs come from here.
    pub(super) memory: Arc<dyn Memory>,
    pub(super) info: MemoryInfo<'static>,
    pub(super) host: MemoryInfo<'static>,
    pub(super) place: Place,
    /// Inputs that the graph reads on the host on any device.
    pub(super) host_inputs: BTreeSet<String>,
    pub(super) elsewhere: Vec<Elsewhere>,
}

impl Device {
    /// Says where an input must lie.
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
    pub(super) fn check_rim(&self, path: &Path) -> Result<(), EngineError> {
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

    /// Binds an input where it lies, or else a copy of it that `moved` keeps for the call.
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

    /// Runs the graph, and copies the outputs that the library allocated. A request to stop ends
    /// the run between two nodes of the graph.
    fn call(&mut self, call: &mut Call, cancel: &Cancel) -> Result<(), EngineError> {
        let (component, device) = (&self.rim.component, &self.device);
        let options = Arc::new(RunOptions::new().map_err(|e| run_error(component, e))?);
        let stopped = Arc::clone(&options);
        // A run that cannot be stopped ends by itself.
        let watch = cancel.watch(move || drop(stopped.terminate()));
        let outputs = self
            .session
            .run_binding_with_options(&call.binding, &options)
            .map_err(|source| match cancel.is_cancelled() {
                true => EngineError::Cancelled,
                false => device.error(component, source),
            })?;
        drop(watch);
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
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        self.run_until(inputs, state, &Cancel::default())
    }

    fn run_until(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        mut state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let mut call = self.bind_all(inputs, &mut state)?;
        self.call(&mut call, cancel)?;
        self.collect(call, state)
    }
}

fn run_error(component: &str, source: ort::Error) -> EngineError {
    let text = source.to_string();
    if Shortage::named_in(&text) == Some(Shortage::Memory) {
        // The library's place in its source comes before the reason.
        let reason = text
            .find("Failed to allocate")
            .map_or(&*text, |at| &text[at..]);
        EngineError::Memory {
            component: component.to_owned(),
            reason: brief(&reason),
        }
    } else {
        EngineError::Run {
            component: component.to_owned(),
            source,
        }
    }
}

/// Wraps memory as a tensor value without a copy. The caller keeps the memory alive and in place
/// until the value is gone.
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
    // SAFETY: `bytes` points to `len` valid bytes of the stated type and shape (checked against the
    // port by the caller); inputs are only read; the value is dropped with the binding, before the
    // borrow that `bytes` came from ends.
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
pub(super) fn owned(tensor: &Tensor) -> Result<DynValue, ort::Error> {
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

pub(super) fn dtype_of(ty: TensorElementType) -> Option<DType> {
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
