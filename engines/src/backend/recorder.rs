//! A backend that keeps the newest outputs of every session, so that a check or a calibration can
//! read values that a run consumes and drops. No second graph and no tap is needed for that.

use super::{Backend, Elsewhere, EngineError, LoadOptions, Outputs, Session, State};
use crate::cancel::Cancel;
use crate::contract::{Contract, Port};
use crate::memory::Memory;
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View};
use crate::weights::{BoundWeights, HostWeights};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Outputs by component and port.
type Kept = Arc<Mutex<BTreeMap<(String, String), Tensor>>>;

/// A backend that hands every call on to another one and keeps a copy of the outputs.
///
/// Only the newest value of each component and port is kept. On a device the copy shares the
/// memory of the output, and holds it until the next call of the component.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<dyn Backend>,
    kept: Kept,
}

impl Recorder {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self {
            inner,
            kept: Kept::default(),
        }
    }

    /// Returns the newest value of an output or tap, or `None` before the component's first run.
    pub fn get(&self, component: &str, output: &str) -> Option<Tensor> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&(component.to_owned(), output.to_owned()))
            .cloned()
    }

    fn recorded(&self, component: &str, inner: Box<dyn Session>) -> Box<dyn Session> {
        Box::new(Recorded {
            component: component.to_owned(),
            inner,
            kept: Arc::clone(&self.kept),
        })
    }
}

impl Backend for Recorder {
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

/// A session whose outputs are kept.
struct Recorded {
    component: String,
    inner: Box<dyn Session>,
    kept: Kept,
}

impl Session for Recorded {
    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn component(&self) -> &str {
        &self.component
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn elsewhere(&self) -> &[Elsewhere] {
        self.inner.elsewhere()
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.inner.bind(weights);
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
        state: State<'_>,
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        let outputs = self.inner.run_until(inputs, state, cancel)?.into_inner();
        let copies = outputs
            .iter()
            .map(|(name, t)| ((self.component.clone(), name.clone()), t.clone()));
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(copies);
        Ok(outputs.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tiny;
    use crate::memory::HostMemory;

    /// A session that adds one to its input, and says that a node of it runs elsewhere.
    struct Fake(Vec<Elsewhere>, BoundWeights);

    impl Session for Fake {
        fn contract(&self) -> &'static Contract {
            &tiny::STATELESS
        }

        fn recipe(&self) -> Recipe {
            Recipe::Fp32
        }

        fn elsewhere(&self) -> &[Elsewhere] {
            &self.0
        }

        fn bind(&mut self, weights: BoundWeights) {
            self.1 = weights;
        }

        fn run(
            &mut self,
            inputs: &[(&Port, View<'_>)],
            _: State<'_>,
        ) -> Result<Outputs, EngineError> {
            let y = Tensor::from(inputs[0].1.array::<f32>().map(|x| x + 1.));
            Ok(BTreeMap::from([("y".to_owned(), y)]).into())
        }
    }

    struct Fakes(Arc<dyn Memory>);

    fn elsewhere() -> Vec<Elsewhere> {
        vec![Elsewhere {
            provider: "CPUExecutionProvider".to_owned(),
            operator: "Concat".to_owned(),
            nodes: 1,
            shapes_only: true,
        }]
    }

    impl Backend for Fakes {
        fn memory(&self) -> &Arc<dyn Memory> {
            &self.0
        }

        fn recipe(&self) -> Recipe {
            Recipe::Fp32
        }

        fn load(&self, _: &str, _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
            Ok(Box::new(Fake(elsewhere(), BoundWeights::default())))
        }

        fn load_unbound(
            &self,
            component: &str,
            options: &LoadOptions,
        ) -> Result<Box<dyn Session>, EngineError> {
            self.load(component, options)
        }

        fn weights(&self, _: &str) -> Result<HostWeights, EngineError> {
            Ok(HostWeights::from_tensors(&[])?)
        }
    }

    #[test]
    fn the_newest_outputs_are_kept_and_everything_else_is_handed_on() {
        let fakes = Fakes(HostMemory::unlimited());
        let recorder = Recorder::new(Arc::new(fakes));
        let options = LoadOptions::default();
        let load = |name| recorder.load(name, &options).unwrap();
        let mut sessions = [
            load("a.00"),
            recorder.load_unbound("a.01", &options).unwrap(),
        ];
        for (session, name) in sessions.iter_mut().zip(["a.00", "a.01"]) {
            assert_eq!(session.component(), name);
            assert_eq!(session.elsewhere(), elsewhere());
            assert!(recorder.get(name, "y").is_none());
            for x in [1f32, 5.] {
                let x = [x];
                let inputs = [(&tiny::STATELESS.inputs[0], View::from_slice(&[1], &x))];
                let mut out = session.run(&inputs, State::None).unwrap();
                let given = out.take_named("y");
                let kept = recorder.get(name, "y").unwrap();
                assert_eq!(kept.as_slice::<f32>(), [x[0] + 1.]);
                assert_eq!(given.as_slice::<f32>(), kept.as_slice::<f32>());
            }
        }
        assert!(recorder.get("a.00", "x").is_none());
    }
}
