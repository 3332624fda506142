//! Runs one component on tensors from a file, to find a fault in an export.

use std::path::PathBuf;

use engines::backend::{Backend, EngineError, LoadOptions, run_named};
use engines::tensor_file::{self, Tensors};

use crate::checks::error::CheckError;

/// The component to run, and its files.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Name of the component.
    pub component: String,
    /// File of the inputs and the state, by port name.
    pub inputs: PathBuf,
    /// File for the outputs, the next states (`name.next`) and the taps.
    pub outputs: PathBuf,
    /// Names of the inner values to write.
    pub taps: Vec<String>,
}

/// Runs the component. Returns the names and the shapes of the written tensors.
///
/// # Errors
/// A file cannot be read or written; a tensor is missing, left over, or of another type or shape;
/// the component or a tap does not exist.
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
