//! Contracts and sizes of the causal speech-to-video transformer, cut where a stage may end: text
//! embedding, sink prefill (embed, layer) and denoising (embed, layer, head). One layer is one
//! graph, so any contiguous range of layers runs on any device.
//!
//! Mirrors `CausalWanModel_S2V`, liveavatar/models/wan/causal_model_s2v.py @ 9c2c38d.

use super::symbols;
use crate::contract::{Contract, DType::F32, DType::I64, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;

/// Rows of the text encoder, `[B, M, T]`; zeros after the prompt's last token.
pub const CONTEXT: Port = Port::new("context", F32, "B M T");
/// Embedded text, `[B, M, D]`; its padding rows take part in cross attention.
pub const TEXT: Port = Port::compute("text", "B M D");

/// Latent of the reference picture, `[B, Z, 1, 2*h, 2*w]`.
pub const REF_LATENTS: Port = Port::new("ref_latents", F32, "B Z 1 2*h 2*w");
/// The newest 19 latent frames of motion, `[B, Z, 19, 2*h, 2*w]`, oldest first; zeros where no
/// frame exists yet.
pub const MOTION_LATENTS: Port = Port::new("motion_latents", F32, "B Z 19 2*h 2*w");
/// Tokens of the sink, `[B, C, D]`: the reference, the newest motion frame, two frames at half
/// size, sixteen at quarter size.
pub const SINK_TOKENS: Port = Port::compute(
    "sink_tokens",
    "B 2*h*w+floor(h/2)*floor(w/2)+4*floor(h/4)*floor(w/4) D",
);
/// Hidden state of the sink before a layer, `[B, C, D]`.
pub const SINK_HIDDEN: Port = Port::compute("sink_hidden", "B C D");
/// Hidden state of the sink after a layer, `[B, C, D]`.
pub const SINK_HIDDEN_OUT: Port = Port::compute("sink_hidden_out", "B C D");
/// Modulation of the sink, `[B, 1, 6, D]`: the time projection at timestep 0.
pub const SINK_E0: Port = Port::new("sink_e0", F32, "B 1 6 D");
/// Cosines of the sink's rotary angles, `[B, C, p]`. The frame index of the reference token moves
/// with the block, so a call takes new tables.
pub const SINK_ROPE_COS: Port = Port::new("sink_rope_cos", F32, "B C p");
/// Sines of the sink's rotary angles, `[B, C, p]`.
pub const SINK_ROPE_SIN: Port = Port::new("sink_rope_sin", F32, "B C p");

/// Keys of the sink, `[B, N, C, d]`, normed and not yet rotated; computed once for each anchor.
pub const SINK_K_OUT: Port = Port::compute("sink_k_out", "B N C d");
/// Values of the sink, `[B, N, C, d]`; computed once for each anchor.
pub const SINK_V_OUT: Port = Port::compute("sink_v_out", "B N C d");
/// Keys of the text, `[B, N, M, d]`. Every step and block uses the same ones, so the sink's layer
/// computes them too.
pub const TEXT_K_OUT: Port = Port::compute("text_k_out", "B N M d");
/// Values of the text, `[B, N, M, d]`.
pub const TEXT_V_OUT: Port = Port::compute("text_v_out", "B N M d");

/// Noisy latents of one block, `[B, Z, F, 2*h, 2*w]`.
pub const LATENTS: Port = Port::new("latents", F32, "B Z F 2*h 2*w");
/// Latents of the pose video, `[B, Z, F, 2*h, 2*w]`; zeros without a pose video.
pub const POSE_LATENTS: Port = Port::new("pose_latents", F32, "B Z F 2*h 2*w");
/// Sinusoid of each frame's timestep, `[B, F, f]`: cosines, then sines. The host computes it in
/// f64.
pub const SINUSOID: Port = Port::new("sinusoid", F32, "B F f");
/// Hidden state of a block before a layer, `[B, F*h*w, D]`.
pub const HIDDEN: Port = Port::compute("hidden", "B F*h*w D");
/// Hidden state of a block after a layer, `[B, F*h*w, D]`.
pub const HIDDEN_OUT: Port = Port::compute("hidden_out", "B F*h*w D");
/// Time embedding of each frame, `[B, F, D]`; the head takes it.
pub const E: Port = Port::new("e", F32, "B F D");
/// Projection of the time embedding, `[B, F, 6, D]`: shift, scale and gate of attention, then of
/// the feed-forward network. The layers take it.
pub const E0: Port = Port::new("e0", F32, "B F 6 D");
/// Time embedding as the embedding graph returns it, `[B, F, D]`.
pub const E_OUT: Port = Port::new("e_out", F32, "B F D");
/// Projection of the time embedding as the embedding graph returns it, `[B, F, 6, D]`.
pub const E0_OUT: Port = Port::new("e0_out", F32, "B F 6 D");

/// Cosines of the rotary angles of the block's own tokens, `[B, F*h*w, p]`.
pub const ROPE_COS: Port = Port::new("rope_cos", F32, "B F*h*w p");
/// Sines of the rotary angles of the block's own tokens, `[B, F*h*w, p]`.
pub const ROPE_SIN: Port = Port::new("rope_sin", F32, "B F*h*w p");
/// Keys of the sink, `[G, N, C, d]`, not yet rotated.
pub const SINK_K: Port = Port::compute("sink_k", "G N C d");
/// Values of the sink, `[G, N, C, d]`.
pub const SINK_V: Port = Port::compute("sink_v", "G N C d");
/// Keys of the text, `[G, N, M, d]`.
pub const TEXT_K: Port = Port::compute("text_k", "G N M d");
/// Values of the text, `[G, N, M, d]`.
pub const TEXT_V: Port = Port::compute("text_v", "G N M d");
/// First ring token that the block writes, `[B]`; a write never wraps.
pub const SLOT: Port = Port::new("slot", I64, "B");
/// Number of keys that attention sees, `[B]`: the sink's tokens and the filled ring tokens.
pub const KV_LEN: Port = Port::new("kv_len", I64, "B");
/// Keys of the newest blocks, `[B, N, S, d]`, rotated: the ring of one step and layer.
pub const KEYS: Port = Port::compute("keys", "B N S d");
/// Values of the newest blocks, `[B, N, S, d]`: the ring of one step and layer.
pub const VALUES: Port = Port::compute("values", "B N S d");

/// One audio token for each actor and frame, `[B, A, F, D]`; it modulates the adaptive norm.
pub const AUDIO_GLOBAL: Port = Port::new("audio_global", F32, "B A F D");
/// Audio tokens that a frame's tokens attend to, `[B, A, F, K, D]`.
pub const AUDIO_LOCAL: Port = Port::new("audio_local", F32, "B A F K D");
/// Weight of each actor's sound for each token, `[B, A, F, h*w]`, from 0 to 1.
pub const ACTOR_MASK: Port = Port::new("actor_mask", F32, "B A F h*w");

/// Noise levels of this step and of the next one, `[B, 2]`; the next one is 0 after the last step.
pub const SIGMAS: Port = Port::new("sigmas", F32, "B 2");
/// Predicted velocity, `[B, Z, F, 2*h, 2*w]`.
pub const NOISE_PRED: Port = Port::new("noise_pred", F32, "B Z F 2*h 2*w");
/// Latents after this step, `[B, Z, F, 2*h, 2*w]`:
/// `latents + (sigma_next - sigma) * noise_pred`.
pub const NEXT_LATENTS: Port = Port::new("next_latents", F32, "B Z F 2*h 2*w");

/// Embeds the text encoder's rows.
pub const TEXT_EMBED: Contract = Contract {
    name: "dit_text",
    inputs: &[CONTEXT],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[TEXT],
    weights: Weights::Inside,
};
/// Embeds the reference picture and the motion history as the sink's tokens.
pub const SINK_EMBED: Contract = Contract {
    name: "dit_sink_embed",
    inputs: &[REF_LATENTS, MOTION_LATENTS],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[SINK_TOKENS, SINK_E0],
    weights: Weights::Inside,
};
/// One layer over the sink's tokens; it also computes the sink's and the text's keys and values.
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
/// Embeds the latents of a block and its timestep.
pub const EMBED: Contract = Contract {
    name: "dit_embed",
    inputs: &[LATENTS, POSE_LATENTS, SINUSOID],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[HIDDEN_OUT, E_OUT, E0_OUT],
    weights: Weights::Inside,
};
/// One denoising layer: self attention over `[sink | ring]`, cross attention to the text, and the
/// feed-forward network.
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
/// One layer of `audio_inject_layers`: a denoising layer, then the audio residual.
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
/// Predicts the velocity and takes one Euler step.
pub const HEAD: Contract = Contract {
    name: "dit_head",
    inputs: &[HIDDEN, E, LATENTS, SIGMAS],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[NOISE_PRED, NEXT_LATENTS],
    weights: Weights::Inside,
};

/// Sizes of the transformer, derived from its tensors and `config.json`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    /// Width of the hidden state.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Denoising layers.
    pub layers: usize,
    /// Inner width of the feed-forward network.
    pub ffn_dim: usize,
    /// Layers that an audio injection follows, ascending. The place in this list is the injector's
    /// index.
    pub audio_inject_layers: Vec<usize>,
    /// Width of the text encoder's rows.
    pub text_dim: usize,
    /// Text rows, padding included.
    pub text_len: usize,
    /// Elements of the timestep's sinusoid.
    pub freq_dim: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Latent frames of one block.
    pub block_frames: usize,
    /// Sizes of the audio encoder.
    pub audio: AudioConfig,
}

/// Sizes of the causal audio encoder inside the transformer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioConfig {
    /// Width of the speech encoder's hidden states.
    pub dim: usize,
    /// Hidden states of the speech encoder that are mixed: 25 in the published model.
    pub states: usize,
    /// Local audio tokens of a frame, the padding token included: 5 in the published model.
    pub tokens: usize,
}

/// Returns the component name of one layer of the sink prefill.
pub fn sink_layer_name(layer: usize) -> String {
    format!("{}.{layer:02}", SINK_LAYER.name)
}

/// Returns the component name of one denoising layer, with or without audio.
pub fn layer_name(layer: usize) -> String {
    format!("{}.{layer:02}", LAYER.name)
}

/// Latent frames of the packed motion history.
pub const MOTION_FRAMES: usize = 19;

impl DitConfig {
    /// Elements of one attention head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Counts the sink's tokens for a frame of `h` x `w` tokens.
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
