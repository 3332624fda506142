//! Contract and sizes of the umT5 text encoder, which runs on token ids without padding.
//!
//! Mirrors `T5Encoder`, liveavatar/models/wan/wan_2_2/modules/t5.py @ 9c2c38d.

use super::symbols;
use crate::contract::{Contract, DType::F32, DType::I64, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;

/// Token ids, `[1, t]`; the last one is the end-of-sentence id. They are at most the text length.
pub const IDS: Port = Port::new("ids", I64, "1 t");
/// Encoded tokens, `[1, t, T]`.
pub const CONTEXT_ROWS: Port = Port::new("context_rows", F32, "1 t T");

/// The whole encoder.
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
    /// Token ids that exist.
    pub vocab: usize,
    /// Width of the hidden state.
    pub dim: usize,
    /// Width of all attention heads together.
    pub attn_dim: usize,
    /// Inner width of the feed-forward networks.
    pub ffn_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Buckets of relative positions.
    pub buckets: usize,
}

impl Sizes for TextConfig {
    fn bindings(&self) -> Bindings {
        symbols::bindings([(symbols::TEXT_WIDTH, self.dim)])
    }
}
