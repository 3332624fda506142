//! The umT5 text encoder, run on unpadded token ids. Mirrors `T5Encoder`, liveavatar/models/wan/wan_2_2/modules/t5.py @ 9c2c38d.
use super::symbols;
use crate::contract::{Contract, DType::F32, DType::I64, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;

/// Token ids ending with the end-of-sentence id, at most the text length.
pub const IDS: Port = Port::new("ids", I64, "1 t");
pub const CONTEXT_ROWS: Port = Port::new("context_rows", F32, "1 t T");

pub const ENCODER: Contract = Contract {
    name: "text_encoder",
    inputs: &[IDS],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[CONTEXT_ROWS],
    weights: Weights::Inside,
};

/// Sizes of the text encoder.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    pub vocab: usize,
    pub dim: usize,
    pub attn_dim: usize,
    pub ffn_dim: usize,
    pub heads: usize,
    pub layers: usize,
    pub buckets: usize,
}

impl Sizes for TextConfig {
    fn bindings(&self) -> Bindings {
        symbols::bindings([(symbols::TEXT_WIDTH, self.dim)])
    }
}
