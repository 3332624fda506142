//! A backend whose loads and runs end when a run is cancelled. The encoders of one video use it.

use std::sync::Arc;

use engines::backend::{Backend, Elsewhere, EngineError, LoadOptions, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::contract::{Contract, Port};
use engines::memory::Memory;
use engines::recipe::Recipe;
use engines::tensor::View;
use engines::weights::{BoundWeights, HostWeights};

/// Hands every call on to another backend, until a stop is asked for.
pub(crate) struct Cancellable<B> {
    inner: B,
    cancel: Cancel,
}

impl<B> Cancellable<B> {
    /// Wraps `inner`, which may be used by others at the same time.
    pub(crate) fn new(inner: B, cancel: &Cancel) -> Self {
        let cancel = cancel.clone();
        Self { inner, cancel }
    }
}

impl<B> Cancellable<B> {
    fn wrapped(&self, inner: Box<dyn Session>) -> Box<dyn Session> {
        Box::new(CancellableSession {
            inner,
            cancel: self.cancel.clone(),
        })
    }

    fn options(&self, options: &LoadOptions) -> LoadOptions {
        LoadOptions {
            cancel: self.cancel.clone(),
            ..options.clone()
        }
    }
}

impl<B: AsBackend> Backend for Cancellable<B> {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.inner.backend().memory()
    }

    fn recipe(&self) -> Recipe {
        self.inner.backend().recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let options = self.options(options);
        let session = self.inner.backend().load(component, &options)?;
        Ok(self.wrapped(session))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let options = self.options(options);
        let session = self.inner.backend().load_unbound(component, &options)?;
        Ok(self.wrapped(session))
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.inner.backend().weights(component)
    }
}

/// A backend that is borrowed or shared.
pub(crate) trait AsBackend: Send + Sync {
    /// Returns the backend.
    fn backend(&self) -> &dyn Backend;
}

impl AsBackend for &dyn Backend {
    fn backend(&self) -> &dyn Backend {
        *self
    }
}

impl AsBackend for Arc<dyn Backend> {
    fn backend(&self) -> &dyn Backend {
        &**self
    }
}

struct CancellableSession {
    inner: Box<dyn Session>,
    cancel: Cancel,
}

impl Session for CancellableSession {
    fn component(&self) -> &str {
        self.inner.component()
    }

    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.inner.bind(weights);
    }

    fn elsewhere(&self) -> &[Elsewhere] {
        self.inner.elsewhere()
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        self.inner.run_until(inputs, state, &self.cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, geometry};

    #[test]
    fn nothing_loads_or_runs_after_a_stop() {
        let fake: Arc<dyn Backend> = Arc::new(Fake::new(config(2), geometry(24)));
        let cancel = Cancel::default();
        let backend = Cancellable::new(fake, &cancel);
        let mut session = backend
            .load("vae_encoder_first", &LoadOptions::default())
            .unwrap();
        cancel.cancel();
        let stopped = session.run(&[], State::None).unwrap_err();
        assert!(matches!(stopped, EngineError::Cancelled), "{stopped}");
    }
}
