//! Chooses the rule for a value of an export that rounds to bf16. The rules of a golden set are for
//! f32 arithmetic. The limit for bf16 is the error of the reference's own bf16 arithmetic. A golden
//! set states this error for the transformer. For another network, the limit is this error times
//! the ratio of the reference's errors. The file `compare.rs` applies the rule.

use engines::components::{ALL, speech, text};
use engines::recipe::Recipe;

use super::golden::Golden;
use super::tolerance::Tolerance;

/// JSON pointer of the error of the reference's bf16 prediction against its f32 prediction, as a
/// relative root mean square.
const STATED: &str = "/bf16_vs_f32/noise_pred_rel_rms";

/// File of the reference's tensors of block 0 in bf16 arithmetic.
pub(super) const BF16: &str = "dit_bf16";

/// Error for a golden set that states none: sixteen independent roundings. The error of a rounding
/// is evenly spread and at most 2^-9 of the value.
const UNSTATED: f64 = 4.0 / 512.0 * 0.577;

/// Factor for roundings in another order. The export adds a bias after it rounds the product, and
/// the reference rounds once.
const ORDER: f64 = 1.25;

/// Error of the reference's text encoder in bf16, over the error of its transformer. This and the
/// next two factors are the largest of the carried and the shared golden set. The program
/// `scripts/reference/bf16_error.py` measures them.
const TEXT: f64 = 1.42;
/// Error of the reference's VAE encoder in bf16, over the error of its transformer.
const VAE_ENCODER: f64 = 3.75;
/// Error of the reference's VAE decoder in bf16, over the error of its transformer.
const VAE_DECODER: f64 = 4.35;

/// The rules of one pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Precision {
    /// Error of the reference's transformer in bf16; `None` when the export computes in f32.
    reference: Option<f64>,
}

impl Precision {
    /// Returns the rules for an export of `recipe`.
    pub(super) fn of(golden: &Golden, recipe: Recipe) -> Self {
        Self {
            reference: (recipe != Recipe::Fp32).then(|| stated(golden).unwrap_or(UNSTATED)),
        }
    }

    /// Returns the rule for a value that `component` made; `own` is the golden set's rule.
    ///
    /// # Errors
    /// The reason why there is no rule.
    pub(super) fn rule(
        self,
        component: &str,
        (file, name): (&str, &str),
        own: Tolerance,
    ) -> Result<Tolerance, &'static str> {
        let Some(reference) = self.reference.filter(|_| own != Tolerance::Exact) else {
            return Ok(own);
        };
        if component.starts_with("chain") && is_encoded_again(name) {
            return Err(
                "encoded from decoded frames: no golden set states the reference's bf16 error there",
            );
        }
        Ok(match share(component, file, name) {
            Some(share) => Tolerance::RelativeRms(reference * share * ORDER),
            None => own,
        })
    }
}

/// Reads the error of the reference's bf16 prediction that the golden set states.
pub(super) fn stated(golden: &Golden) -> Option<f64> {
    let found = golden.value(STATED).and_then(serde_json::Value::as_f64);
    found.filter(|x| x.is_finite() && *x > 0.0)
}

/// Returns whether a tensor holds the motion of a clip after the first.
fn is_encoded_again(name: &str) -> bool {
    name.strip_prefix("motion_latents.clip")
        .is_some_and(|rest| !rest.starts_with('0'))
}

/// Returns the factor between the error of the transformer and the limit of a value. `None` means
/// that no bf16 rounding affects the value.
fn share(component: &str, file: &str, name: &str) -> Option<f64> {
    if component.starts_with("chain") {
        return of_chain(name);
    }
    let exported = ALL.iter().any(|c| c.name.starts_with(component));
    let is_f32 = component.starts_with("audio_encoder") || component == speech::ADAPTER.name;
    match component {
        _ if !exported || is_f32 => None,
        // Sinusoid, embedding and modulation.
        _ if file == "time" => None,
        c if c == text::ENCODER.name => Some(TEXT),
        c if c.starts_with("vae_encoder") => Some(VAE_ENCODER),
        c if c.starts_with("vae_decoder") => Some(VAE_DECODER),
        // Both sides have the error of bf16, and the errors are independent.
        _ if file == BF16 => Some(2.0),
        _ => Some(1.0),
    }
}

/// Returns the factor of [`share`] for a value of the whole chain.
fn of_chain(name: &str) -> Option<f64> {
    match name {
        "relative_dist" => None,
        "context" => Some(TEXT),
        "ref_latents.clip0" => Some(VAE_ENCODER),
        n if n.starts_with("motion_latents") => Some(VAE_ENCODER),
        // The frames are decoded after motion latents, whose error adds to theirs.
        n if n.starts_with("frame") => Some(VAE_ENCODER + VAE_DECODER),
        _ => Some(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::tests::golden_of;
    use super::*;

    const OWN: Tolerance = Tolerance::Close {
        atol: 1e-4,
        rtol: 1e-4,
    };

    fn rule(precision: Precision, component: &str, file: &str, name: &str) -> Tolerance {
        precision.rule(component, (file, name), OWN).unwrap()
    }

    #[test]
    fn only_what_was_rounded_is_judged_by_the_references_own_rounding() {
        let reference = Precision {
            reference: Some(0.01),
        };
        let limit = |share: f64| Tolerance::RelativeRms(0.01 * share * ORDER);
        for (component, file, name, want) in [
            ("dit_layer", "dit_kv", "block1.layer0.k", limit(1.0)),
            ("dit_head", "dit_bf16", "noise_pred", limit(2.0)),
            ("dit_embed", "time", "t0.e", OWN),
            ("dit_embed", "dit_blocks", "block0.tokens_in", limit(1.0)),
            ("text_encoder", "text", "en.t5", limit(TEXT)),
            ("vae_encoder", "vae", "encode.latents17", limit(VAE_ENCODER)),
            ("vae_decoder", "vae", "decode.frames7", limit(VAE_DECODER)),
            ("audio_encoder", "audio", "a16k.hidden_states", OWN),
            ("audio_adapter", "causal_audio", "one.global", OWN),
            ("rotary tables", "rope", "noisy.f0.cos", OWN),
            ("tokenizer", "text", "en.ids", OWN),
            ("chain, tpp", "e2e_tpp", "block0.latents", limit(1.0)),
            (
                "chain, tpp",
                "e2e_tpp",
                "frames_u8",
                limit(VAE_ENCODER + VAE_DECODER),
            ),
            ("chain, tpp", "e2e_tpp", "relative_dist", OWN),
        ] {
            assert_eq!(
                rule(reference, component, file, name),
                want,
                "{component} {name}"
            );
            let f32_export = Precision { reference: None };
            assert_eq!(rule(f32_export, component, file, name), OWN);
        }
        let exact = reference.rule("dit_layer", ("f", "n"), Tolerance::Exact);
        assert_eq!(exact, Ok(Tolerance::Exact));
    }

    #[test]
    fn frames_that_are_encoded_again_have_no_rule() {
        let bf16 = Precision {
            reference: Some(0.01),
        };
        let rule = |name| bf16.rule("chain, single", ("e2e_single", name), OWN);
        assert!(rule("motion_latents.clip1_last19").is_err());
        assert!(rule("motion_latents_last19").is_ok() && rule("ref_latents.clip1").is_ok());
    }

    #[test]
    fn a_set_that_states_nothing_is_judged_by_sixteen_roundings() {
        let dir = tempfile::tempdir().unwrap();
        let golden = golden_of(dir.path(), &[("x", None, serde_json::json!("exact"))]);
        let limit = rule(Precision::of(&golden, Recipe::Bf16), "dit_head", "f", "n");
        assert_eq!(limit, Tolerance::RelativeRms(UNSTATED * ORDER));
        assert_eq!(
            rule(Precision::of(&golden, Recipe::Fp32), "dit_head", "f", "n"),
            OWN
        );
    }
}
