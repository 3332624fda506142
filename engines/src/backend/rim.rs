//! Rules for the rim of a loaded graph: which ports, weights and state a session binds and hands
//! on. They are the same for every library that runs graphs.

use super::{EngineError, State};
use crate::contract::{Contract, DType, NEXT, Port, StateKind, Weights};
use crate::dim::{Bindings, Dim};
use crate::manifest::ComponentEntry;
use crate::recipe::Recipe;
use crate::tensor::{Tensor, View};
use crate::weights::BoundWeights;
use std::collections::{BTreeMap, BTreeSet};

/// The rim of one loaded graph.
pub(super) struct Rim {
    /// Name of the component, as errors show it.
    pub(super) component: String,
    pub(super) contract: &'static Contract,
    pub(super) recipe: Recipe,
    /// Sizes that the export fixes.
    pub(super) bindings: Bindings,
    /// Names of the inputs that are weights, which a caller must bind.
    pub(super) weights: BTreeSet<String>,
}

/// A port of a loaded graph that is not the contract's.
pub(super) struct Mismatch {
    pub(super) port: String,
    pub(super) want: String,
    pub(super) got: String,
}

impl Rim {
    /// The rim of a component of an export.
    pub(super) fn of(
        entry: &ComponentEntry,
        contract: &'static Contract,
        recipe: Recipe,
        bindings: &Bindings,
    ) -> Self {
        Self {
            component: entry.name.clone(),
            contract,
            recipe,
            bindings: bindings.clone(),
            weights: match contract.weights {
                Weights::Inside => BTreeSet::new(),
                Weights::Bound => entry.weights.keys().cloned().collect(),
            },
        }
    }

    /// Makes the error of a port that a caller did not bind as `want` says.
    pub(super) fn error(
        &self,
        port: &str,
        want: impl Into<String>,
        got: impl Into<String>,
    ) -> EngineError {
        EngineError::Bind {
            component: self.component.clone(),
            port: port.to_owned(),
            want: want.into(),
            got: got.into(),
        }
    }

    /// Finds the first difference between the contract and the ports that a library found in the
    /// graph. `fits` compares one of those with a port, `show` prints it for the error. Ports that
    /// the contract lacks must be weights or pass `is_extra`.
    pub(super) fn mismatch<F>(
        &self,
        mut found: BTreeMap<String, F>,
        fits: impl Fn(&F, &Port) -> bool,
        show: impl Fn(&F) -> String,
        is_extra: impl Fn(&str) -> bool,
    ) -> Option<Mismatch> {
        let inputs = self.contract.graph_inputs();
        let wanted = inputs
            .map(|p| (p.name.to_owned(), p))
            .chain(self.contract.graph_outputs());
        for (port, wanted) in wanted {
            let fact = found.remove(&port);
            if !fact.as_ref().is_some_and(|f| fits(f, wanted)) {
                return Some(Mismatch {
                    port,
                    want: wanted.fact(self.recipe),
                    got: fact.map_or_else(|| "no such port".to_owned(), |f| show(&f)),
                });
            }
        }
        let known = |name: &String| self.weights.contains(name) || is_extra(name);
        let port = found.into_keys().find(|name| !known(name))?;
        Some(Mismatch {
            port,
            want: "no such port".to_owned(),
            got: "one more".to_owned(),
        })
    }

    /// Checks every binding of a call and returns the sizes that they fix.
    pub(super) fn check(
        &self,
        inputs: &[(&Port, View<'_>)],
        state: &State<'_>,
    ) -> Result<Facts, EngineError> {
        let mut facts = Facts::new(self.recipe, self.bindings.clone());
        for port in self.contract.graph_inputs() {
            let fact = match inputs.iter().find(|(p, _)| p.name == port.name) {
                Some((_, v)) => Some((v.dtype, v.shape.clone())),
                None => state.fact(port),
            };
            let (dtype, shape) =
                fact.ok_or_else(|| self.error(port.name, port.fact(self.recipe), "nothing"))?;
            facts
                .learn(port, dtype, &shape)
                .map_err(|(want, got)| self.error(port.name, want, got))?;
        }
        let known = |p: &Port| self.contract.inputs.iter().any(|q| q.name == p.name);
        match inputs.iter().find(|(p, _)| !known(p)) {
            None => Ok(facts),
            Some((p, v)) => {
                let got = format!("{} {:?}", v.dtype, v.shape);
                Err(self.error(p.name, "no such port", got))
            }
        }
    }

    /// Lists the weights to bind, in the order of their names.
    pub(super) fn bound<'a>(
        &'a self,
        bound: &'a BoundWeights,
    ) -> impl Iterator<Item = Result<(&'a str, &'a Tensor), EngineError>> {
        self.weights.iter().map(|name| {
            let found = bound.iter().find(|(n, _)| n == name);
            let (_, tensor) = found.ok_or_else(|| self.error(name, "a bound weight", "nothing"))?;
            Ok((name.as_str(), tensor))
        })
    }

    /// Lists the outputs that a call allocates: all but state that is written in place.
    pub(super) fn fresh_outputs(&self) -> impl Iterator<Item = (String, &'static Port)> + use<> {
        let in_place = self.contract.state_kind == StateKind::InPlace;
        self.contract
            .graph_outputs()
            .filter(move |(name, _)| !(in_place && name.ends_with(NEXT)))
    }

    /// Moves the next state of a finished call from its outputs to the caller's cache.
    pub(super) fn hand_on(&self, outputs: &mut BTreeMap<String, Tensor>, state: State<'_>) {
        let State::Replace(cache) = state else { return };
        for port in self.contract.state {
            if let Some(next) = outputs.remove(&format!("{}{NEXT}", port.name)) {
                cache.insert(port.name, next);
            }
        }
    }
}

/// Sizes that the bindings of one call have fixed so far.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    recipe: Recipe,
    symbols: Bindings,
    /// Sizes of dimensions with several unknown symbols, e.g. `3*h*w`.
    products: BTreeMap<Dim, i64>,
}

impl Facts {
    fn new(recipe: Recipe, symbols: Bindings) -> Self {
        Self {
            recipe,
            symbols,
            products: BTreeMap::new(),
        }
    }

    /// Checks one binding against its port and learns from it. An error is (wanted, got).
    fn learn(
        &mut self,
        port: &Port,
        dtype: DType,
        shape: &[usize],
    ) -> Result<(), (String, String)> {
        let dims = port.dims();
        let fits = dtype == port.dtype(self.recipe)
            && dims.len() == shape.len()
            && dims.iter().zip(shape).all(|(d, &n)| self.dim(d, n as i64));
        if fits {
            return Ok(());
        }
        let dims = dims.iter().map(|d| d.bind(&self.symbols));
        let want = dims.map(|d| match self.products.get(&d) {
            Some(size) => size.to_string(),
            None => d.to_string(),
        });
        let want = want.collect::<Vec<_>>().join(", ");
        Err((
            format!("{} [{want}]", port.dtype(self.recipe)),
            format!("{dtype} {shape:?}"),
        ))
    }

    fn dim(&mut self, dim: &Dim, size: i64) -> bool {
        let bound = dim.bind(&self.symbols);
        if let Some(c) = bound.as_const() {
            return c == size;
        }
        if let Some((name, value)) = bound.solve(size, &self.symbols) {
            return value >= 0 && self.symbols.insert(name, value).is_none();
        }
        // One unknown that no whole number satisfies is a misfit; several unknowns stand as one.
        bound.solve(0, &self.symbols).is_none()
            && *self.products.entry(bound).or_insert(size) == size
    }

    /// The port's shape, when everything in it is known.
    pub(super) fn shape(&self, port: &Port) -> Option<Vec<usize>> {
        let size = |d: &Dim| {
            let bound = d.bind(&self.symbols);
            bound
                .as_const()
                .or_else(|| self.products.get(&bound).copied())
        };
        port.dims()
            .iter()
            .map(|d| size(d).and_then(|n| usize::try_from(n).ok()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{FeatureCache, tiny};
    use crate::components::dit;
    use crate::weights::HostWeights;

    fn rim(contract: &'static Contract, weights: &[&str]) -> Rim {
        Rim {
            component: "part".to_owned(),
            contract,
            recipe: Recipe::Fp32,
            bindings: Bindings::new(),
            weights: weights.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_first_port_that_is_not_the_contracts_is_named() {
        let good = [("x", DType::F32), ("s", DType::F32)];
        let next = [("y", DType::F32), ("s.next", DType::F32)];
        let rim = rim(&tiny::REPLACE, &["w"]);
        let of = |ports: &[(&str, DType)]| {
            let found = ports.iter().map(|(n, d)| ((*n).to_owned(), *d)).collect();
            let fits = |d: &DType, p: &Port| *d == p.dtype(Recipe::Fp32);
            let found = rim.mismatch(found, fits, ToString::to_string, |n| n == "tap");
            found.map(|m| [m.port, m.want, m.got])
        };
        let with = |more: &[(&'static str, DType)]| [&good[..], &next[..], more].concat();
        assert_eq!(of(&with(&[])), None);
        assert_eq!(of(&with(&[("w", DType::F32), ("tap", DType::I64)])), None);
        for (ports, want) in [
            (good.to_vec(), ["y", "f32 [n]", "no such port"]),
            (with(&[("s", DType::I64)]), ["s", "f32 [n]", "i64"]),
            (
                with(&[("v", DType::F32)]),
                ["v", "no such port", "one more"],
            ),
        ] {
            assert_eq!(of(&ports), Some(want.map(str::to_owned)));
        }
    }

    #[test]
    fn weights_are_bound_by_name_and_state_goes_to_the_cache() {
        let rim = rim(&tiny::REPLACE, &["a", "b"]);
        let weight = |name: &str| (name.to_owned(), Tensor::zeros(DType::F32, &[1]));
        let some = HostWeights::from_tensors(&[weight("b")]).unwrap().mapped();
        let bound: Vec<_> = rim.bound(&some).collect();
        let error = bound[0].as_ref().unwrap_err().to_string();
        assert_eq!(
            error,
            "component part: port a: wanted a bound weight, got nothing"
        );
        assert_eq!(bound[1].as_ref().unwrap().0, "b");

        let fresh = |rim: &Rim| rim.fresh_outputs().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(fresh(&rim), ["y", "s.next"]);
        assert_eq!(fresh(&self::rim(&tiny::IN_PLACE, &[])), ["y"]);
        let mut outputs: BTreeMap<String, Tensor> = ["y", "s.next"].map(weight).into();
        let mut cache = FeatureCache::new();
        rim.hand_on(&mut outputs, State::Replace(&mut cache));
        assert!(outputs.keys().eq(["y"]) && cache.keys().eq(&["s"]));
    }

    #[test]
    fn bindings_are_learned_and_then_held() {
        let mut facts = Facts::new(
            Recipe::Fp32,
            Bindings::from([
                ("D".to_owned(), 8),
                ("F".to_owned(), 3),
                ("Z".to_owned(), 16),
            ]),
        );
        facts
            .learn(&dit::LATENTS, DType::F32, &[2, 16, 3, 8, 16])
            .unwrap();
        let symbols = &facts.symbols;
        assert_eq!((symbols["B"], symbols["h"], symbols["w"]), (2, 4, 8));
        let err = facts
            .learn(&dit::HIDDEN, DType::F32, &[2, 95, 8])
            .unwrap_err();
        assert_eq!(
            err,
            ("f32 [2, 96, 8]".to_owned(), "f32 [2, 95, 8]".to_owned())
        );
    }

    #[test]
    fn a_product_of_unknowns_is_held_as_one() {
        let mut facts = Facts::new(
            Recipe::Fp32,
            Bindings::from([("D".to_owned(), 8), ("F".to_owned(), 3)]),
        );
        facts.learn(&dit::HIDDEN, DType::F32, &[1, 96, 8]).unwrap();
        assert_eq!(facts.shape(&dit::HIDDEN_OUT), Some(vec![1, 96, 8]));
        let err = facts
            .learn(&dit::HIDDEN, DType::F32, &[1, 93, 8])
            .unwrap_err();
        assert_eq!(err.0, "f32 [1, 96, 8]");
    }

    #[test]
    fn odd_latents_do_not_fit_whole_tokens() {
        let mut facts = Facts::new(Recipe::Fp32, Bindings::new());
        assert!(
            facts
                .learn(&dit::LATENTS, DType::F32, &[1, 16, 3, 9, 16])
                .is_err()
        );
    }
}
