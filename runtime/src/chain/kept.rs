//! A backend that keeps every session which it has loaded. The encoders use it where the placement
//! says that they stay on their device for the next video.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engines::backend::{Backend, Elsewhere, EngineError, LoadOptions, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::contract::{Contract, Port};
use engines::memory::Memory;
use engines::recipe::Recipe;
use engines::tensor::View;
use engines::weights::{BoundWeights, HostWeights};

type Shared = Arc<Mutex<Box<dyn Session>>>;

/// Hands every call on to another backend, but loads each component once. Users of one component
/// take turns.
pub(crate) struct KeptSessions {
    inner: Arc<dyn Backend>,
    sessions: Mutex<BTreeMap<String, Shared>>,
}

impl KeptSessions {
    /// Wraps `inner`. Nothing is loaded yet.
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self {
            inner,
            sessions: Mutex::default(),
        }
    }
}

impl Backend for KeptSessions {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.inner.memory()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        // Taps and faults belong to one use of a component.
        if options.is_particular() {
            return self.inner.load(component, options);
        }
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = match sessions.get(component) {
            Some(session) => Arc::clone(session),
            None => {
                let session = Arc::new(Mutex::new(self.inner.load(component, options)?));
                sessions.insert(component.to_owned(), Arc::clone(&session));
                session
            }
        };
        Ok(Box::new(KeptSession::new(&session)))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.inner.load_unbound(component, options)
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.inner.weights(component)
    }
}

/// One user's handle on a kept session.
struct KeptSession {
    session: Shared,
    component: String,
    contract: &'static Contract,
    recipe: Recipe,
    elsewhere: Vec<Elsewhere>,
}

impl KeptSession {
    fn new(session: &Shared) -> Self {
        let inner = locked(session);
        Self {
            component: inner.component().to_owned(),
            contract: inner.contract(),
            recipe: inner.recipe(),
            elsewhere: inner.elsewhere().to_vec(),
            session: Arc::clone(session),
        }
    }
}

fn locked(session: &Shared) -> MutexGuard<'_, Box<dyn Session>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session for KeptSession {
    fn component(&self) -> &str {
        &self.component
    }

    fn contract(&self) -> &'static Contract {
        self.contract
    }

    fn recipe(&self) -> Recipe {
        self.recipe
    }

    fn bind(&mut self, weights: BoundWeights) {
        locked(&self.session).bind(weights);
    }

    fn elsewhere(&self) -> &[Elsewhere] {
        &self.elsewhere
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        locked(&self.session).run(inputs, state)
    }

    fn run_until(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        locked(&self.session).run_until(inputs, state, cancel)
    }
}
