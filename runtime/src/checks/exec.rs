//! Running one component on tensors from a file: the debugger's way into an export.

use std::path::PathBuf;

use engines::backend::{Backend, EngineError, FeatureCache, LoadOptions, State};
use engines::contract::{NEXT, Port, StateKind};
use engines::memory::MemoryError;
use engines::tensor::Tensor;

use crate::commands::error::Error;
use engines::tensor_file::{self, Tensors};

/// What to run.
#[derive(Clone, Debug)]
pub struct Request {
    pub component: String,
    /// Inputs and state by port name.
    pub inputs: PathBuf,
    /// Where outputs, next states (`name.next`) and taps go.
    pub outputs: PathBuf,
    pub taps: Vec<String>,
}

/// Runs the component and gives the names and shapes of what was written.
///
/// # Errors
/// A file that cannot be read or written; a tensor that is missing, left over, or of another type or shape; a component or tap that does
/// not exist.
pub fn exec(backend: &dyn Backend, request: &Request) -> Result<Vec<(String, String)>, Error> {
    let tensors = tensor_file::read(&request.inputs)?;
    let outputs = run(backend, request, tensors)?;
    tensor_file::write(&request.outputs, &outputs)?;
    Ok(outputs
        .into_iter()
        .map(|(name, t)| (name, format!("{t:?}")))
        .collect())
}

fn run(backend: &dyn Backend, request: &Request, mut tensors: Tensors) -> Result<Tensors, Error> {
    let options = LoadOptions {
        taps: request.taps.clone(),
        ..LoadOptions::default()
    };
    let mut session = backend.load(&request.component, &options)?;
    let contract = session.contract();
    let mut take = |port: &'static Port| {
        let missing = || EngineError::Bind {
            component: request.component.clone(),
            port: port.name.to_owned(),
            want: port.to_string(),
            got: format!("nothing in {}", request.inputs.display()),
        };
        tensors.remove(port.name).ok_or_else(missing)
    };
    let mut inputs = Vec::new();
    let mut state = FeatureCache::new();
    for port in contract.inputs {
        inputs.push((port, take(port)?));
    }
    if contract.state_kind != StateKind::Produce {
        for port in contract.state {
            state.insert(port.name, take(port)?);
        }
    }
    if let Some((name, left)) = tensors.first_key_value() {
        return Err(EngineError::Bind {
            component: request.component.clone(),
            port: name.clone(),
            want: format!("one of {}", names(contract.inputs, contract.state)),
            got: format!("{left:?}"),
        }
        .into());
    }
    let views: Vec<(&Port, _)> = inputs
        .iter()
        .map(|(p, t): &(_, Tensor)| (*p, t.view()))
        .collect();
    let bound = match contract.state_kind {
        _ if contract.state.is_empty() => State::None,
        StateKind::InPlace => State::InPlace(
            state
                .iter_mut()
                .map(|(name, t)| (*name, t.view_mut()))
                .collect(),
        ),
        StateKind::Replace | StateKind::Produce => State::Replace(&mut state),
    };
    let mut outputs = session.run(&views, bound)?.into_inner();
    outputs.extend(
        state
            .into_iter()
            .map(|(name, t)| (format!("{name}{NEXT}"), t)),
    );
    let here = |(name, t): (String, Tensor)| Ok((name, t.into_host(&**backend.memory())?));
    Ok(outputs
        .into_iter()
        .map(here)
        .collect::<Result<_, MemoryError>>()
        .map_err(EngineError::from)?)
}

fn names(inputs: &[Port], state: &[Port]) -> String {
    inputs
        .iter()
        .chain(state)
        .map(|p| p.name)
        .collect::<Vec<_>>()
        .join(", ")
}
