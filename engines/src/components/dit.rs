//! The causal speech-to-video transformer, cut where a stage may end: text embedding, sink prefill (embed, layer), denoising (embed,
//! layer, head). One layer is one graph, so any contiguous range of layers can be placed anywhere.
//! Mirrors `CausalWanModel_S2V`, liveavatar/models/wan/causal_model_s2v.py @ 9c2c38d.
use super::symbols;
use crate::contract::{Contract, DType::F32, DType::I64, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;

/// Text encoder rows, zero-padded to the text length.
pub const CONTEXT: Port = Port::new("context", F32, "B M T");
/// Embedded text; the padding rows take part in cross attention.
pub const TEXT: Port = Port::compute("text", "B M D");

/// Reference picture's latent.
pub const REF_LATENTS: Port = Port::new("ref_latents", F32, "B Z 1 2*h 2*w");
/// The newest 19 motion latent frames, oldest first, zeros where there are none.
pub const MOTION_LATENTS: Port = Port::new("motion_latents", F32, "B Z 19 2*h 2*w");
/// Sink tokens [ref | newest | two at half size | sixteen at quarter size].
pub const SINK_TOKENS: Port = Port::compute(
    "sink_tokens",
    "B 2*h*w+floor(h/2)*floor(w/2)+4*floor(h/4)*floor(w/4) D",
);
pub const SINK_HIDDEN: Port = Port::compute("sink_hidden", "B C D");
pub const SINK_HIDDEN_OUT: Port = Port::compute("sink_hidden_out", "B C D");
/// Modulation of the sink: time projection at timestep 0.
pub const SINK_E0: Port = Port::new("sink_e0", F32, "B 1 6 D");
/// Rotary tables of the sink; the reference token's frame index shifts with the block.
pub const SINK_ROPE_COS: Port = Port::new("sink_rope_cos", F32, "B C p");
pub const SINK_ROPE_SIN: Port = Port::new("sink_rope_sin", F32, "B C p");

/// Normed, un-roped keys and values of the sink, computed once per anchor.
pub const SINK_K_OUT: Port = Port::compute("sink_k_out", "B N C d");
pub const SINK_V_OUT: Port = Port::compute("sink_v_out", "B N C d");
/// Keys and values of the text: the same for every step and block, so they ride along with the sink's.
pub const TEXT_K_OUT: Port = Port::compute("text_k_out", "B N M d");
pub const TEXT_V_OUT: Port = Port::compute("text_v_out", "B N M d");

pub const LATENTS: Port = Port::new("latents", F32, "B Z F 2*h 2*w");
/// Zeros without a pose video.
pub const POSE_LATENTS: Port = Port::new("pose_latents", F32, "B Z F 2*h 2*w");
/// `[cos | sin]` of the timestep per frame, computed in f64 by the host.
pub const SINUSOID: Port = Port::new("sinusoid", F32, "B F f");
pub const HIDDEN: Port = Port::compute("hidden", "B F*h*w D");
pub const HIDDEN_OUT: Port = Port::compute("hidden_out", "B F*h*w D");
/// Time embedding (for the head) and its projection (for the blocks).
pub const E: Port = Port::new("e", F32, "B F D");
pub const E0: Port = Port::new("e0", F32, "B F 6 D");
pub const E_OUT: Port = Port::new("e_out", F32, "B F D");
pub const E0_OUT: Port = Port::new("e0_out", F32, "B F 6 D");

/// Rotary tables of the block's own tokens.
pub const ROPE_COS: Port = Port::new("rope_cos", F32, "B F*h*w p");
pub const ROPE_SIN: Port = Port::new("rope_sin", F32, "B F*h*w p");
pub const SINK_K: Port = Port::compute("sink_k", "G N C d");
pub const SINK_V: Port = Port::compute("sink_v", "G N C d");
pub const TEXT_K: Port = Port::compute("text_k", "G N M d");
pub const TEXT_V: Port = Port::compute("text_v", "G N M d");
/// First ring token that this block writes; a write never wraps.
pub const SLOT: Port = Port::new("slot", I64, "B");
/// Keys that attention may see: sink tokens + filled ring tokens.
pub const KV_LEN: Port = Port::new("kv_len", I64, "B");
/// KV ring of one step and layer: roped keys and values of the newest blocks.
pub const KEYS: Port = Port::compute("keys", "B N S d");
pub const VALUES: Port = Port::compute("values", "B N S d");

/// One adaptive-norm token per frame, local audio tokens per frame, and where each actor is heard.
pub const AUDIO_GLOBAL: Port = Port::new("audio_global", F32, "B A F D");
pub const AUDIO_LOCAL: Port = Port::new("audio_local", F32, "B A F K D");
pub const ACTOR_MASK: Port = Port::new("actor_mask", F32, "B A F h*w");

/// Sigma of this step and of the next (0 after the last).
pub const SIGMAS: Port = Port::new("sigmas", F32, "B 2");
pub const NOISE_PRED: Port = Port::new("noise_pred", F32, "B Z F 2*h 2*w");
/// `latents + (sigma_next - sigma) * noise_pred`.
pub const NEXT_LATENTS: Port = Port::new("next_latents", F32, "B Z F 2*h 2*w");

pub const TEXT_EMBED: Contract = Contract {
    name: "dit_text",
    inputs: &[CONTEXT],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[TEXT],
    weights: Weights::Inside,
};
pub const SINK_EMBED: Contract = Contract {
    name: "dit_sink_embed",
    inputs: &[REF_LATENTS, MOTION_LATENTS],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[SINK_TOKENS, SINK_E0],
    weights: Weights::Inside,
};
pub const SINK_LAYER: Contract = Contract {
    name: "dit_sink_layer",
    inputs: &[SINK_HIDDEN, SINK_E0, TEXT, SINK_ROPE_COS, SINK_ROPE_SIN],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[
        SINK_HIDDEN_OUT,
        SINK_K_OUT,
        SINK_V_OUT,
        TEXT_K_OUT,
        TEXT_V_OUT,
    ],
    weights: Weights::Bound,
};
pub const EMBED: Contract = Contract {
    name: "dit_embed",
    inputs: &[LATENTS, POSE_LATENTS, SINUSOID],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[HIDDEN_OUT, E_OUT, E0_OUT],
    weights: Weights::Inside,
};
pub const LAYER: Contract = Contract {
    name: "dit_layer",
    inputs: &[
        HIDDEN,
        E0,
        ROPE_COS,
        ROPE_SIN,
        SINK_ROPE_COS,
        SINK_ROPE_SIN,
        SINK_K,
        SINK_V,
        TEXT_K,
        TEXT_V,
        SLOT,
        KV_LEN,
    ],
    state: &[KEYS, VALUES],
    state_kind: StateKind::InPlace,
    outputs: &[HIDDEN_OUT],
    weights: Weights::Bound,
};
/// A layer of `audio_inject_layers`: the block, then the audio residual.
pub const LAYER_AUDIO: Contract = Contract {
    name: "dit_layer_audio",
    inputs: &[
        HIDDEN,
        E0,
        ROPE_COS,
        ROPE_SIN,
        SINK_ROPE_COS,
        SINK_ROPE_SIN,
        SINK_K,
        SINK_V,
        TEXT_K,
        TEXT_V,
        SLOT,
        KV_LEN,
        AUDIO_GLOBAL,
        AUDIO_LOCAL,
        ACTOR_MASK,
    ],
    state: &[KEYS, VALUES],
    state_kind: StateKind::InPlace,
    outputs: &[HIDDEN_OUT],
    weights: Weights::Bound,
};
pub const HEAD: Contract = Contract {
    name: "dit_head",
    inputs: &[HIDDEN, E, LATENTS, SIGMAS],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[NOISE_PRED, NEXT_LATENTS],
    weights: Weights::Inside,
};

/// Sizes of a DiT, all derived from its tensors and `config.json`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    pub dim: usize,
    pub heads: usize,
    pub layers: usize,
    pub ffn_dim: usize,
    /// Layers followed by an audio injection, ascending; the injector's index is the place in this list.
    pub audio_inject_layers: Vec<usize>,
    pub text_dim: usize,
    pub text_len: usize,
    pub freq_dim: usize,
    pub latent_channels: usize,
    pub eps: f32,
    /// Latent frames of one block.
    pub block_frames: usize,
    pub audio: AudioConfig,
}

/// Sizes of the causal audio encoder inside the DiT.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioConfig {
    /// Width of the speech encoder's hidden states.
    pub dim: usize,
    /// Hidden states that are mixed (25).
    pub states: usize,
    /// Local tokens per frame, the padding token included (5).
    pub tokens: usize,
}

/// Component name of one layer of the sink prefill.
pub fn sink_layer_name(layer: usize) -> String {
    format!("{}.{layer:02}", SINK_LAYER.name)
}

/// Component name of one denoising layer, with or without audio.
pub fn layer_name(layer: usize) -> String {
    format!("{}.{layer:02}", LAYER.name)
}

/// Latent frames of the packed motion history.
pub const MOTION_FRAMES: usize = 19;

impl DitConfig {
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Sink tokens for a frame of `h` x `w` tokens.
    pub fn sink_tokens(&self, h: usize, w: usize) -> usize {
        2 * h * w + (h / 2) * (w / 2) + 4 * (h / 4) * (w / 4)
    }
}

impl Sizes for DitConfig {
    fn bindings(&self) -> Bindings {
        symbols::bindings([
            (symbols::MODEL_WIDTH, self.dim),
            (symbols::HEADS, self.heads),
            (symbols::HEAD_SIZE, self.head_dim()),
            (symbols::ROTARY_PAIRS, self.head_dim() / 2),
            (symbols::BLOCK_FRAMES, self.block_frames),
            (symbols::TEXT_ROWS, self.text_len),
            (symbols::TEXT_WIDTH, self.text_dim),
            (symbols::SINUSOID_SIZE, self.freq_dim),
            (symbols::LATENT_CHANNELS, self.latent_channels),
            (symbols::AUDIO_TOKENS, self.audio.tokens),
            (symbols::SPEECH_STATES, self.audio.states),
            (symbols::SPEECH_WIDTH, self.audio.dim),
        ])
    }
}
