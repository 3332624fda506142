//! Running one component on tensors from a file: the debugger's way into an export.

use std::path::PathBuf;

use engines::backend::{Backend, EngineError, LoadOptions, run_named};
use engines::tensor_file::{self, Tensors};

use crate::checks::error::CheckError;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Request {
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
pub(crate) fn exec(
    backend: &dyn Backend,
    request: &Request,
) -> Result<Vec<(String, String)>, CheckError> {
    let tensors = tensor_file::read(&request.inputs)?;
    let outputs = run(backend, request, tensors)?;
    tensor_file::write(&request.outputs, &outputs)?;
    Ok(outputs
        .into_iter()
        .map(|(name, t)| (name, format!("{t:?}")))
        .collect())
}

fn run(backend: &dyn Backend, request: &Request, tensors: Tensors) -> Result<Tensors, CheckError> {
    let options = LoadOptions {
        taps: request.taps.clone(),
        ..LoadOptions::default()
    };
    let mut session = backend.load(&request.component, &options)?;
    run_named(&mut *session, &**backend.memory(), tensors).map_err(|error| match error {
        error @ EngineError::Bind { .. } => CheckError::Inputs {
            path: request.inputs.clone(),
            source: Box::new(error),
        },
        error => error.into(),
    })
}
