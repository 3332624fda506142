//! Brings host tensors to a device and back, for sessions outside the waves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::contract::Port;
use engines::memory::{Class, Memory, MemoryError};
use engines::tensor::{Tensor, View};

/// Returns a host tensor in memory that a device's sessions read: the tensor itself, or a copy that
/// is counted as activations.
pub(crate) fn here<'t>(
    memory: &dyn Memory,
    tensor: &'t Tensor,
) -> Result<Cow<'t, Tensor>, MemoryError> {
    Ok(if memory.is_separate() {
        Cow::Owned(tensor.copied_to(memory, Class::Activations)?)
    } else {
        Cow::Borrowed(tensor)
    })
}

/// A session whose inputs and outputs lie on the host, on whatever device it runs. Graphs outside
/// the waves use it.
pub(crate) struct HostSession {
    session: Box<dyn Session>,
    memory: Arc<dyn Memory>,
}

impl HostSession {
    /// Loads a component.
    ///
    /// # Errors
    /// The component is missing or does not load.
    pub(crate) fn load(
        backend: &dyn Backend,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            session: backend.load(component, options)?,
            memory: Arc::clone(backend.memory()),
        })
    }

    /// Runs the session once.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        self.run_until(inputs, state, &Cancel::default())
    }

    /// Runs the session once, unless `cancel` asks to stop.
    ///
    /// # Errors
    /// A graph fails; [`EngineError::Cancelled`].
    pub(crate) fn run_until(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        run_on_host(&mut *self.session, &*self.memory, inputs, state, cancel)
    }
}

/// Runs a session once with inputs and outputs on the host. The state stays on the device.
pub(crate) fn run_on_host(
    session: &mut dyn Session,
    memory: &dyn Memory,
    inputs: &[(&Port, View<'_>)],
    state: State<'_>,
    cancel: &Cancel,
) -> Result<Outputs, EngineError> {
    if !memory.is_separate() {
        return session.run_until(inputs, state, cancel);
    }
    let copies = inputs
        .iter()
        .map(|(port, view)| Ok((*port, view.copied_to(memory, Class::Activations)?)))
        .collect::<Result<Vec<(&Port, Tensor)>, MemoryError>>()?;
    let views: Vec<(&Port, View<'_>)> = copies.iter().map(|(p, t)| (*p, t.view())).collect();
    let outputs = session.run_until(&views, state, cancel)?.into_inner();
    let fetched = outputs
        .into_iter()
        .map(|(name, t)| Ok((name, t.into_host(memory)?)))
        .collect::<Result<BTreeMap<_, _>, MemoryError>>()?;
    Ok(fetched.into())
}
