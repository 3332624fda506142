//! Proves that the checks can fail. A fault changes one weight of a component a little, and some
//! check of this component must notice it.

use std::sync::Arc;

use engines::backend::{Loading, Perturb};
use engines::cancel::Cancel;
use engines::components::{dit, speech, text, vae};
use engines::contract::DType;
use engines::manifest::{ComponentEntry, Models, WeightEntry};
use engines::recipe::Recipe;

use super::golden::Golden;
use super::pass::pass;
use super::subject::Subject;
use super::table::{Focus, Results, Row};
use crate::chain::events::{Event, Observer, Phase, Silent};
use crate::checks::error::CheckError;

/// Returns the number that a fault adds to every element of a weight. In bf16 it is larger, because
/// rounding alone changes a prediction half as much as 0.01 does.
fn amount(recipe: Recipe) -> f32 {
    match recipe {
        Recipe::Fp32 => 0.01,
        _ => 0.05,
    }
}

/// One planted fault, and the checks that noticed it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Fault {
    /// The component that was disturbed.
    pub component: String,
    /// The weight that was disturbed.
    pub weight: String,
    /// The number that was added to every element of the weight.
    pub amount: f32,
    /// The first check that fails with the fault and passes without it.
    pub caught_by: Option<Row>,
    /// Number of checks that ran.
    pub checks: usize,
    /// Number of checks that fail with the fault and pass without it.
    pub failing: usize,
}

/// Plants a fault in every component, one after the other. `sound` holds the results without
/// faults.
///
/// # Errors
/// [`Cancelled`](crate::chain::ChainError::Cancelled).
pub(super) fn run(
    subject: &Subject,
    golden: &Golden,
    sound: &Results,
    focus: Focus<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<Fault>, CheckError> {
    observer.event(&Event::Phase(Phase::Checking(
        "planting a fault in each component",
    )));
    let amount = amount(subject.models.recipe());
    let mut faults = Vec::new();
    for component in &subject.models.manifest().components {
        let Some(weight) = chosen(&subject.models, component) else {
            faults.push(Fault {
                component: component.name.clone(),
                weight: "none".to_owned(),
                amount: 0.0,
                caught_by: None,
                checks: 0,
                failing: 0,
            });
            continue;
        };
        let faulty = Subject {
            loading: with_fault(subject, &component.name, &weight.name, amount),
            ..subject.clone()
        };
        let looked = looked_at(golden, &component.contract, focus);
        let focus = |file: &str, name: &str| looked.iter().any(|(f, n)| f == file && n == name);
        let (results, _) = pass(&faulty, golden, &focus, true, &Silent, cancel)?;
        faults.push(judge(
            (&component.name, &weight.name, amount),
            results.rows,
            sound,
        ));
    }
    Ok(faults)
}

/// Returns the subject's loading with `amount` added to a weight of a component.
fn with_fault(subject: &Subject, component: &str, weight: &str, amount: f32) -> Loading {
    let base = Arc::clone(&subject.loading);
    let (component, weight) = (component.to_owned(), weight.to_owned());
    Arc::new(move |name| {
        let mut options = base(name);
        if name == component {
            options.perturb = Some(Perturb {
                weight: weight.clone(),
                amount,
            });
        }
        options
    })
}

/// Judges a fault. A check catches it if its value was made, is wrong, and was right without the
/// fault.
fn judge((component, weight, amount): (&str, &str, f32), rows: Vec<Row>, sound: &Results) -> Fault {
    let was_right = |row: &Row| {
        let same =
            |r: &&Row| r.file == row.file && r.tensor == row.tensor && r.component == row.component;
        sound.rows.iter().find(same).is_some_and(|r| r.pass)
    };
    let checks = rows.len();
    let failing: Vec<Row> = rows
        .into_iter()
        .filter(|r| !r.pass && r.made && was_right(r))
        .collect();
    Fault {
        component: component.to_owned(),
        weight: weight.to_owned(),
        amount,
        checks,
        failing: failing.len(),
        caught_by: failing.into_iter().next(),
    }
}

/// Picks the weight to disturb: the component's largest float tensor, the first of equals.
/// Exception: if a channel norm follows a convolution, the norm cancels a constant offset. Then the
/// next linear layer is used instead.
fn chosen<'m>(models: &'m Models, component: &ComponentEntry) -> Option<&'m WeightEntry> {
    let data = models
        .manifest()
        .data
        .iter()
        .find(|d| d.file.file == component.data)?;
    let linear = match component.contract.as_str() {
        c if c == speech::ADAPTER.name => "final_linear.weight",
        c if c == speech::ENCODER_FEATURES.name => "feature_projection.projection.weight",
        _ => "",
    };
    let telling = |w: &&WeightEntry| w.key.ends_with(linear);
    let own = data
        .weights
        .iter()
        .filter(|w| matches!(w.dtype, DType::F32 | DType::BF16))
        .filter(|w| component.weights.values().any(|n| *n == w.name));
    own.filter(telling)
        .fold(None, |most: Option<&WeightEntry>, w| {
            if most.is_none_or(|m| w.length > m.length) {
                Some(w)
            } else {
                most
            }
        })
}

/// Selects the tensors that a fault in a component of this contract must change. They are few, so
/// that a control run is quick. If the golden set has none of them, all tensors of components are
/// selected.
fn looked_at(golden: &Golden, contract: &str, focus: Focus<'_>) -> Vec<(String, String)> {
    let listed = |wanted: &dyn Fn(&str, &str) -> bool| -> Vec<(String, String)> {
        let entries = golden
            .entries()
            .iter()
            .filter(|e| focus(&e.file, &e.name) && wanted(&e.file, &e.name));
        entries.map(|e| (e.file.clone(), e.name.clone())).collect()
    };
    let few = listed(&|file, name| moved(contract, file, name));
    if few.is_empty() {
        listed(&|file, _| !file.starts_with("e2e_"))
    } else {
        few
    }
}

/// Returns whether a fault in a component of this contract must change the tensor.
fn moved(contract: &str, file: &str, name: &str) -> bool {
    let is = |c: &engines::contract::Contract| c.name == contract;
    match file {
        "text" => is(&text::ENCODER) && name.ends_with(".t5"),
        "audio" => {
            [
                speech::ENCODER_FEATURES,
                speech::ENCODER_POSITIONS,
                speech::ENCODER_LAYER,
                speech::ENCODER_LAST,
            ]
            .iter()
            .any(is)
                && name.contains(".hidden_")
        }
        "causal_audio" => is(&speech::ADAPTER),
        "vae" if name.starts_with("encode.latents") => {
            (is(&vae::ENCODER_FIRST) || is(&vae::ENCODER_NEXT)) && !name.ends_with("_repeat73")
        }
        "vae" => is(&vae::DECODER_NEXT) && name.starts_with("decode.frames"),
        "vae_stream" => is(&vae::DECODER_FIRST) && name == "fresh_single_latent.frames",
        "dit_sink" => match name {
            "text_embedding_head" => is(&dit::TEXT_EMBED),
            "block0.input" | "framepack.tokens" => is(&dit::SINK_EMBED),
            _ => is(&dit::SINK_LAYER) && (name.contains(".cond_") || name == "last_block.output"),
        },
        "dit_blocks" => {
            [dit::EMBED, dit::LAYER, dit::LAYER_AUDIO, dit::HEAD]
                .iter()
                .any(is)
                && name == "block0.noise_pred"
        }
        _ => false,
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "control {} weight {} +{}: ",
            self.component, self.weight, self.amount
        )?;
        match &self.caught_by {
            Some(row) => {
                let of = format!("{} of {} checks fail", self.failing, self.checks);
                write!(
                    f,
                    "caught by {} (max abs {:.1e}, tolerance {}; {of})",
                    row.name(),
                    row.max_abs,
                    row.rule
                )
            }
            None if self.checks == 0 => {
                f.write_str("NOT CAUGHT: the golden set has no check for it")
            }
            None => write!(f, "NOT CAUGHT by {} checks", self.checks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::tests::golden_of;
    use super::super::table::Table;
    use super::*;
    use engines::tensor::Tensor;
    use serde_json::json;

    #[test]
    fn only_a_wrong_value_that_was_right_before_catches_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let one = || Some(Tensor::from_slice(&[1], &[1f32]));
        let rule = || json!({"atol": 1e-4, "rtol": 0});
        let golden = golden_of(
            dir.path(),
            &["was_wrong", "broke", "moved", "same"].map(|n| (n, one(), rule())),
        );
        let rows = |values: [Option<f32>; 4]| {
            let table = Table::new(&golden, &|_, _| true);
            for (name, value) in ["was_wrong", "broke", "moved", "same"].iter().zip(values) {
                match value {
                    Some(v) => table.check("c", "f", name, &Tensor::from_slice(&[1], &[v])),
                    None => table.failed("c", "f", name, "no session"),
                }
            }
            table.finish()
        };
        let sound = rows([Some(2.0), Some(1.0), Some(1.0), Some(1.0)]);
        let fault = judge(
            ("c", "w", 0.01),
            rows([Some(3.0), None, Some(1.5), Some(1.0)]).rows,
            &sound,
        );
        assert_eq!(
            (
                fault.caught_by.as_ref().map(Row::name),
                fault.failing,
                fault.checks
            ),
            (Some("f.moved".to_owned()), 1, 4)
        );
        let missed = judge(
            ("c", "w", 0.01),
            rows([Some(3.0), None, Some(1.0), Some(1.0)]).rows,
            &sound,
        );
        assert!(missed.caught_by.is_none());
        assert_eq!(
            missed.to_string(),
            "control c weight w +0.01: NOT CAUGHT by 4 checks"
        );
    }

    #[test]
    fn every_contract_has_tensors_that_it_moves() {
        let names = [
            ("text", "en.t5"),
            ("audio", "a16k.hidden_states"),
            ("causal_audio", "one.global"),
            ("vae", "encode.latents1"),
            ("vae", "decode.frames7"),
            ("vae_stream", "fresh_single_latent.frames"),
            ("dit_sink", "text_embedding_head"),
            ("dit_sink", "block0.input"),
            ("dit_sink", "layer0.cond_k"),
            ("dit_blocks", "block0.noise_pred"),
        ];
        for contract in engines::components::ALL {
            assert!(
                names
                    .iter()
                    .any(|(file, name)| moved(contract.name, file, name)),
                "{}",
                contract.name
            );
        }
        assert!(!moved("dit_head", "e2e_tpp", "block0.latents"));
    }
}
