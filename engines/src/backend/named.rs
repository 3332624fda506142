//! Runs a component on tensors that are bound by name. One call sorts them by port and binds state
//! by its kind. It returns outputs and next states by name. Replays, checks, benchmarks and
//! calibration use this call; the denoising loop binds ports by their consts instead.

use super::{EngineError, FeatureCache, Outputs, Session, State};
use crate::contract::{Contract, NEXT, Port, StateKind};
use crate::memory::{Class, Memory, MemoryError};
use crate::tensor::{Tensor, View};
use crate::tensor_file::Tensors;

/// Runs `session` once on `tensors` and returns every result on the host.
///
/// `tensors` must hold each input port and each state port that the graph reads, by the port's
/// name, and nothing else. The result holds each output port and each tap by its name, and each
/// state port's new value as `NAME.next`. `memory` is the memory of the session's device
/// ([`super::Backend::memory`]). State is copied to it first where the device is separate: some
/// backends write state only there.
///
/// # Errors
/// - [`EngineError::Bind`] with the port's name: a tensor is missing, superfluous, or of another
///   type or shape than the contract's.
/// - [`EngineError::DeviceMemory`]: a copy does not fit.
/// - The errors of [`Session::run`].
pub fn run_named(
    session: &mut dyn Session,
    memory: &dyn Memory,
    tensors: Tensors,
) -> Result<Tensors, EngineError> {
    let mut call = NamedCall::new(session, tensors)?.with_state_in(memory)?;
    let mut results = call.run(session)?.into_inner();
    results.extend(call.into_next());
    results
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.into_host(memory)?)))
        .collect()
}

/// Tensors of one call, sorted by the role of their port.
///
/// A benchmark prepares one call and runs it often; [`run_named`] is the short form for one run.
#[derive(Clone, Debug)]
pub struct NamedCall {
    contract: &'static Contract,
    inputs: Vec<(&'static Port, Tensor)>,
    state: FeatureCache,
}

impl NamedCall {
    /// Sorts `tensors` by the ports of the session's contract.
    ///
    /// # Errors
    /// [`EngineError::Bind`] with the name of a port that has no tensor, or of a tensor that no
    /// port has. [`Session::run`] checks types and shapes.
    pub fn new(session: &dyn Session, mut tensors: Tensors) -> Result<Self, EngineError> {
        let contract = session.contract();
        let bind = |port: &str, want: String, got: String| EngineError::Bind {
            component: session.component().to_owned(),
            port: port.to_owned(),
            want,
            got,
        };
        let mut take = |port: &Port| {
            let found = tensors.remove(port.name);
            let want = || port.fact(session.recipe());
            found.ok_or_else(|| bind(port.name, want(), "nothing".to_owned()))
        };
        let mut inputs = Vec::new();
        for port in contract.inputs {
            inputs.push((port, take(port)?));
        }
        let mut state = FeatureCache::new();
        if contract.state_kind != StateKind::Produce {
            for port in contract.state {
                state.insert(port.name, take(port)?);
            }
        }
        if let Some((name, left)) = tensors.first_key_value() {
            let names: Vec<&str> = contract.graph_inputs().map(|p| p.name).collect();
            let want = format!("one of {}", names.join(", "));
            return Err(bind(name, want, format!("{left:?}")));
        }
        Ok(Self {
            contract,
            inputs,
            state,
        })
    }

    /// Copies the state to `memory`, where that is separate from the process's own memory.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub fn with_state_in(mut self, memory: &dyn Memory) -> Result<Self, MemoryError> {
        let class = match self.contract.state_kind {
            StateKind::InPlace => Class::Rings,
            StateKind::Replace | StateKind::Produce => Class::Activations,
        };
        if memory.is_separate() {
            for tensor in self.state.values_mut() {
                *tensor = tensor.copied_to(memory, class)?;
            }
        }
        Ok(self)
    }

    /// Runs `session` once. Afterwards the state of this call is the next one: written in place,
    /// or replaced. A caller that repeats the very same call runs a clone.
    ///
    /// # Errors
    /// The errors of [`Session::run`].
    ///
    /// # Panics
    /// If the contract writes state in place and a state tensor shares its memory (a mapped
    /// tensor, or a clone of one in device memory).
    pub fn run(&mut self, session: &mut dyn Session) -> Result<Outputs, EngineError> {
        let inputs: Vec<(&Port, View<'_>)> =
            self.inputs.iter().map(|(p, t)| (*p, t.view())).collect();
        let state = match self.contract.state_kind {
            _ if self.contract.state.is_empty() => State::None,
            StateKind::InPlace => {
                let views = self.state.iter_mut().map(|(name, t)| (*name, t.view_mut()));
                State::InPlace(views.collect())
            }
            StateKind::Replace | StateKind::Produce => State::Replace(&mut self.state),
        };
        session.run(&inputs, state)
    }

    /// Returns the state by the name of the graph's output, `NAME.next`.
    pub fn into_next(self) -> impl Iterator<Item = (String, Tensor)> {
        let next = |(name, tensor)| (format!("{name}{NEXT}"), tensor);
        self.state.into_iter().map(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ort::Runtime;
    use crate::backend::tiny;
    use crate::contract::DType;
    use crate::memory::HostMemory;

    fn tensors(named: &[(&str, &[f32])]) -> Tensors {
        let tensor = |values: &[f32]| Tensor::from_slice(&[values.len()], values);
        let named = named.iter().map(|(n, v)| ((*n).to_owned(), tensor(v)));
        named.collect()
    }

    fn values(tensors: &Tensors) -> Vec<(&str, &[f32])> {
        let all = tensors.iter();
        all.map(|(n, t)| (n.as_str(), t.as_slice::<f32>()))
            .collect()
    }

    /// `y = 2 x` and `s.next = s + x`, or `2 x` where the state is only produced.
    #[test]
    fn every_kind_of_state_comes_back_by_name() {
        let with_state = tensors(&[("x", &[1., 2.]), ("s", &[10., 20.])]);
        let without = tensors(&[("x", &[1., 2.])]);
        let y: (&str, &[f32]) = ("y", &[2., 4.]);
        for (contract, given, next) in [
            (&tiny::STATELESS, &without, None),
            (&tiny::IN_PLACE, &with_state, Some([11., 22.])),
            (&tiny::REPLACE, &with_state, Some([11., 22.])),
            (&tiny::PRODUCE, &without, Some([2., 4.])),
        ] {
            let runtime = Runtime::cpu(1).unwrap();
            let mut session = tiny::open(&runtime, contract);
            let got = run_named(&mut *session, &**runtime.memory(), given.clone()).unwrap();
            let mut want = vec![y];
            if let Some(next) = &next {
                want.insert(0, ("s.next", next));
            }
            assert_eq!(values(&got), want, "{}", contract.name);
        }
    }

    #[test]
    fn state_of_a_separate_device_lies_in_its_memory_and_results_on_the_host() {
        let device = HostMemory::new("cpu:1", 1 << 20);
        let runtime = Runtime::cpu(1).unwrap().on(device.clone());
        let mut session = tiny::open(&runtime, &tiny::IN_PLACE);
        let given = tensors(&[("x", &[1., 2.]), ("s", &[10., 20.])]);
        let call = NamedCall::new(&*session, given.clone()).unwrap();
        let call = call.with_state_in(&*device).unwrap();
        assert_eq!(device.ledger().counts().of(Class::Rings), 8);
        drop(call);
        let got = run_named(&mut *session, &*device, given.clone()).unwrap();
        let want: [(&str, &[f32]); 2] = [("s.next", &[11., 22.]), ("y", &[2., 4.])];
        assert_eq!(values(&got), want);
        assert_eq!(device.ledger().counts().total(), 0, "results were copied");
        let full = HostMemory::new("cpu:1", 7);
        let error = run_named(&mut *session, &*full, given).unwrap_err();
        assert!(matches!(error, EngineError::DeviceMemory(_)), "{error}");
    }

    #[test]
    fn a_prepared_call_goes_on_from_its_own_state() {
        let runtime = Runtime::cpu(1).unwrap();
        for contract in [&tiny::IN_PLACE, &tiny::REPLACE] {
            let mut session = tiny::open(&runtime, contract);
            let given = tensors(&[("x", &[1., 2.]), ("s", &[10., 20.])]);
            let mut call = NamedCall::new(&*session, given).unwrap();
            let first = call.clone();
            call.run(&mut *session).unwrap();
            call.run(&mut *session).unwrap();
            let next: Tensors = call.into_next().collect();
            assert_eq!(next["s.next"].as_slice::<f32>(), [12., 24.]);
            let kept: Tensors = first.into_next().collect();
            assert_eq!(kept["s.next"].as_slice::<f32>(), [10., 20.]);
        }
    }

    #[test]
    fn tensors_that_fit_no_call_are_named() {
        let runtime = Runtime::cpu(1).unwrap();
        let refusal = |contract, given: Tensors| {
            let mut session = tiny::open(&runtime, contract);
            let error = run_named(&mut *session, &**runtime.memory(), given).unwrap_err();
            assert!(matches!(error, EngineError::Bind { .. }));
            error.to_string()
        };
        let x: (&str, &[f32]) = ("x", &[1., 2.]);
        let mut whole = tensors(&[("s", &[1., 2.])]);
        whole.insert("x".to_owned(), Tensor::zeros(DType::I64, &[2]));
        for (contract, given, want) in [
            (
                &tiny::STATELESS,
                tensors(&[]),
                "component tiny_stateless: port x: wanted f32 [n], got nothing",
            ),
            (
                &tiny::REPLACE,
                tensors(&[x]),
                "component tiny_replace: port s: wanted f32 [n], got nothing",
            ),
            (
                &tiny::PRODUCE,
                tensors(&[x, ("s", &[1., 2.])]),
                "component tiny_produce: port s: wanted one of x, got f32[2]",
            ),
            (
                &tiny::IN_PLACE,
                tensors(&[x, ("s", &[1., 2., 3.])]),
                "component tiny_in_place: port s: wanted f32 [2], got f32 [3]",
            ),
            (
                &tiny::REPLACE,
                whole,
                "component tiny_replace: port x: wanted f32 [n], got i64 [2]",
            ),
        ] {
            assert_eq!(refusal(contract, given), want);
        }
    }
}
