//! The facts of a LoRA, for messages and manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use super::forms::LoraForm;

/// The facts of a LoRA.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LoraReport {
    /// The LoRA file.
    pub file: PathBuf,
    /// Spellings of its keys.
    pub forms: BTreeSet<LoraForm>,
    /// Ranks that occur.
    pub ranks: BTreeSet<usize>,
    /// Lowest and highest factor `alpha / rank`, without the strength.
    pub factors: [f32; 2],
    /// The place that the factors come from, for messages.
    pub origin: String,
    /// Strength of the whole LoRA.
    pub strength: f32,
    /// Element types of the LoRA's tensors.
    pub dtypes: BTreeSet<String>,
    /// Number of adapted modules.
    pub modules: usize,
    /// Adapted modules by kind: `self_attn.q` -> 40.
    pub targets: BTreeMap<String, usize>,
    /// Factors with the strength, by base tensor. The table is empty before the LoRA meets a
    /// checkpoint.
    #[serde(skip)]
    pub weights: BTreeMap<String, f32>,
    /// Files that hold its tensors, sorted.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
}

impl LoraReport {
    /// Returns the form as text, for example `PEFT`.
    pub fn form(&self) -> String {
        let forms: Vec<String> = self.forms.iter().map(LoraForm::to_string).collect();
        forms.join(" and ")
    }

    /// Returns ranks, factors and strength as text, for example `rank 4, factor 2 (alpha of
    /// adapter_config.json), strength 1`.
    pub fn strength_text(&self) -> String {
        let [low, high] = self.factors;
        let ranks = (self.ranks.first(), self.ranks.last());
        format!(
            "{}, {} ({}), strength {}",
            span("rank", ranks.0.unwrap_or(&0), ranks.1.unwrap_or(&0)),
            span("factor", &low, &high),
            self.origin,
            self.strength
        )
    }
}

/// Returns one value, or the lowest and the highest of several.
fn span<T: Display + PartialEq>(name: &str, low: &T, high: &T) -> String {
    if low == high {
        format!("{name} {low}")
    } else {
        format!("{name}s {low} to {high}")
    }
}
