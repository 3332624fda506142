//! Two backends over one export and one memory: one runs some of the components, and the other the
//! rest. So a folder of engines need not have all of them.

use super::{Backend, EngineError, LoadOptions, Session};
use crate::memory::Memory;
use crate::recipe::Recipe;
use crate::weights::HostWeights;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Hands each component on to the backend that runs it.
pub struct Mixed {
    first: Arc<dyn Backend>,
    rest: Arc<dyn Backend>,
    of_first: BTreeSet<String>,
}

impl Mixed {
    /// Lets `first` run the components of the names `of_first`, and `rest` all others.
    ///
    /// # Panics
    /// The backends count their memory apart, or have another recipe: they cannot hand tensors on.
    pub fn new(
        first: Arc<dyn Backend>,
        rest: Arc<dyn Backend>,
        of_first: BTreeSet<String>,
    ) -> Self {
        let ledgers = [&first, &rest].map(|b| b.memory().ledger());
        assert!(Arc::ptr_eq(ledgers[0], ledgers[1]), "one memory");
        assert_eq!(first.recipe(), rest.recipe(), "one recipe");
        Self {
            first,
            rest,
            of_first,
        }
    }

    fn of(&self, component: &str) -> &dyn Backend {
        match self.of_first.contains(component) {
            true => &*self.first,
            false => &*self.rest,
        }
    }
}

impl Backend for Mixed {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.first.memory()
    }

    fn recipe(&self) -> Recipe {
        self.first.recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.of(component).load(component, options)
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.of(component).load_unbound(component, options)
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.of(component).weights(component)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostMemory;

    /// A backend that refuses every component and names itself.
    struct Named(&'static str, Arc<dyn Memory>);

    impl Named {
        fn refusal(&self, component: &str) -> EngineError {
            EngineError::NotBuilt {
                wanted: component.to_owned(),
                missing: self.0,
                build: "",
            }
        }
    }

    impl Backend for Named {
        fn memory(&self) -> &Arc<dyn Memory> {
            &self.1
        }

        fn recipe(&self) -> Recipe {
            Recipe::Fp32
        }

        fn load(&self, name: &str, _: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
            Err(self.refusal(name))
        }

        fn load_unbound(
            &self,
            name: &str,
            _: &LoadOptions,
        ) -> Result<Box<dyn Session>, EngineError> {
            Err(self.refusal(name))
        }

        fn weights(&self, name: &str) -> Result<HostWeights, EngineError> {
            Err(self.refusal(name))
        }
    }

    fn named(name: &'static str, memory: &Arc<dyn Memory>) -> Arc<dyn Backend> {
        Arc::new(Named(name, Arc::clone(memory)))
    }

    #[test]
    fn every_call_goes_to_the_backend_of_its_component() {
        let memory: Arc<dyn Memory> = HostMemory::unlimited();
        let of_first = BTreeSet::from(["dit_layer.00".to_owned()]);
        let (first, rest) = (named("engines", &memory), named("the library", &memory));
        let mixed = Mixed::new(first, rest, of_first);
        let options = LoadOptions::default();
        for (component, want) in [("dit_layer.00", "engines"), ("text_encoder", "the library")] {
            let asked = [
                mixed.load(component, &options).err(),
                mixed.load_unbound(component, &options).err(),
                mixed.weights(component).err(),
            ];
            for error in asked {
                let error = error.unwrap().to_string();
                assert!(error.contains(want) && error.contains(component), "{error}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "one memory")]
    fn backends_of_two_memories_are_refused() {
        let memory = || -> Arc<dyn Memory> { HostMemory::unlimited() };
        let (first, rest) = (named("one", &memory()), named("other", &memory()));
        Mixed::new(first, rest, BTreeSet::new());
    }
}
