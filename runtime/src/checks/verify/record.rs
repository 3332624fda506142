//! A backend that keeps a copy of every output of every session: values that a run hands on and drops can be looked at without another graph.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::contract::{Contract, Port};
use engines::memory::Memory;
use engines::recipe::Recipe;
use engines::tensor::{Tensor, View};
use engines::weights::{HostWeights, WeightSet};

type Kept = Arc<Mutex<BTreeMap<String, Tensor>>>;

/// Wraps a backend. The newest output of each component and port is kept.
pub(super) struct Recorder<'a> {
    inner: &'a dyn Backend,
    kept: Kept,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(inner: &'a dyn Backend) -> Self {
        Self {
            inner,
            kept: Kept::default(),
        }
    }

    fn recorded(&self, component: &str, inner: Box<dyn Session>) -> Box<dyn Session> {
        Box::new(Recorded {
            name: component.to_owned(),
            inner,
            kept: self.kept.clone(),
        })
    }

    /// The newest value of an output or tap.
    pub(super) fn get(&self, component: &str, output: &str) -> Option<Tensor> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&format!("{component}/{output}")).cloned()
    }
}

impl Backend for Recorder<'_> {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.inner.memory()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.inner.weights(component)
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let inner = self.inner.load_unbound(component, options)?;
        Ok(self.recorded(component, inner))
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let inner = self.inner.load(component, options)?;
        Ok(self.recorded(component, inner))
    }
}

struct Recorded {
    name: String,
    inner: Box<dyn Session>,
    kept: Kept,
}

impl Session for Recorded {
    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn bind(&mut self, weights: WeightSet) {
        self.inner.bind(weights);
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        let outputs = self.inner.run(inputs, state)?.into_inner();
        let copies = outputs
            .iter()
            .map(|(name, t)| (format!("{}/{name}", self.name), t.clone()));
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(copies);
        Ok(outputs.into())
    }
}
