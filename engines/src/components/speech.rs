//! Contracts and sizes of speech: the wav2vec2 encoder, and the causal audio encoder that turns its
//! hidden states into the audio tokens of one block.

use super::symbols;
use crate::contract::{Contract, DType::F32, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;

/// Sound samples at 16 kHz, `[1, s]`, normalised over the whole file.
pub const INPUT_VALUES: Port = Port::new("input_values", F32, "1 s");
/// Projected features at 50 frames a second, `[1, t, E]`. A frame sees its own samples only, so a
/// long recording can be cut anywhere.
pub const FEATURES_OUT: Port = Port::new("features_out", F32, "1 t E");
/// Features of the whole recording, `[1, t, E]`.
pub const FEATURES: Port = Port::new("features", F32, "1 t E");
/// Computes features from samples. Mirrors `Wav2Vec2FeatureEncoder` and
/// `Wav2Vec2FeatureProjection` of transformers 4.51.
pub const ENCODER_FEATURES: Contract = Contract {
    name: "audio_encoder_features",
    inputs: &[INPUT_VALUES],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[FEATURES_OUT],
    weights: Weights::Inside,
};

/// Input of the first layer, `[1, t, E]`.
pub const FIRST_ROWS_OUT: Port = Port::new("rows_out", F32, "1 t E");
/// Keys of the first layer, `[1, t, E]`.
pub const FIRST_KEYS_OUT: Port = Port::new("keys_out", F32, "1 t E");
/// Values of the first layer, `[1, t, E]`.
pub const FIRST_VALUES_OUT: Port = Port::new("values_out", F32, "1 t E");
/// Adds the positional convolution over the whole recording. Mirrors
/// `Wav2Vec2PositionalConvEmbedding` of transformers 4.51.
pub const ENCODER_POSITIONS: Contract = Contract {
    name: "audio_encoder_positions",
    inputs: &[FEATURES],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[FIRST_ROWS_OUT, FIRST_KEYS_OUT, FIRST_VALUES_OUT],
    weights: Weights::Inside,
};

/// Some rows of a layer's input, `[1, r, E]`. Keys and values are those of the whole recording, so
/// that attention's scores stay small for a recording of any length.
pub const ROWS: Port = Port::new("rows", F32, "1 r E");
/// Keys of the whole recording, `[1, t, E]`.
pub const KEYS: Port = Port::new("keys", F32, "1 t E");
/// Values of the whole recording, `[1, t, E]`.
pub const VALUES: Port = Port::new("values", F32, "1 t E");
/// The same rows after the layer, `[1, r, E]`.
pub const ROWS_OUT: Port = Port::new("rows_out", F32, "1 r E");
/// Keys of these rows for the next layer, `[1, r, E]`.
pub const KEYS_OUT: Port = Port::new("keys_out", F32, "1 r E");
/// Values of these rows for the next layer, `[1, r, E]`.
pub const VALUES_OUT: Port = Port::new("values_out", F32, "1 r E");
/// One layer. Mirrors `Wav2Vec2EncoderLayerStableLayerNorm` of transformers 4.51.
pub const ENCODER_LAYER: Contract = Contract {
    name: "audio_encoder_layer",
    inputs: &[ROWS, KEYS, VALUES],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[ROWS_OUT, KEYS_OUT, VALUES_OUT],
    weights: Weights::Inside,
};
/// The last layer, and the norm after it.
pub const ENCODER_LAST: Contract = Contract {
    name: "audio_encoder_last",
    inputs: &[ROWS, KEYS, VALUES],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[ROWS_OUT],
    weights: Weights::Inside,
};

/// Hidden states of one block at 25 frames a second, `[A, Q, E, 4*F]`; one row for each actor.
pub const AUDIO: Port = Port::new("audio", F32, "A Q E 4*F");
/// One audio token for each frame, `[A, F, D]`.
pub const AUDIO_GLOBAL_OUT: Port = Port::new("audio_global_out", F32, "A F D");
/// Local audio tokens of each frame, `[A, F, K, D]`.
pub const AUDIO_LOCAL_OUT: Port = Port::new("audio_local_out", F32, "A F K D");
/// Turns hidden states into audio tokens, the leading copies of the first frame included. Mirrors
/// `CausalAudioEncoder`, liveavatar/models/wan/wan_2_2/modules/s2v/audio_utils.py @ 9c2c38d.
pub const ADAPTER: Contract = Contract {
    name: "audio_adapter",
    inputs: &[AUDIO],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[AUDIO_GLOBAL_OUT, AUDIO_LOCAL_OUT],
    weights: Weights::Inside,
};

/// Sizes of the wav2vec2 encoder.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechConfig {
    /// Width of the hidden states.
    pub dim: usize,
    /// Inner width of the feed-forward networks.
    pub ffn_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Kernel sizes of the feature encoder's convolutions, in samples of their input.
    pub conv_kernel: Vec<usize>,
    /// Strides of the same convolutions.
    pub conv_stride: Vec<usize>,
    /// Groups of the positional convolution.
    pub pos_conv_groups: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl SpeechConfig {
    /// Returns the component name and the contract of one layer.
    pub fn layer(&self, layer: usize) -> (String, &'static Contract) {
        let contract = if layer + 1 == self.layers {
            &ENCODER_LAST
        } else {
            &ENCODER_LAYER
        };
        (format!("{}.{layer:02}", ENCODER_LAYER.name), contract)
    }

    /// Counts the samples from one frame to the next.
    pub fn hop(&self) -> usize {
        self.conv_stride.iter().product()
    }

    /// Counts the frames of `samples` samples; `None` when they are fewer than a kernel.
    pub fn frames(&self, samples: usize) -> Option<usize> {
        self.conv_kernel
            .iter()
            .zip(&self.conv_stride)
            .try_fold(samples, |n, (k, s)| Some(n.checked_sub(*k)? / s + 1))
    }

    /// Counts the samples of the shortest sound that gives one frame.
    pub fn min_samples(&self) -> usize {
        self.conv_kernel
            .iter()
            .zip(&self.conv_stride)
            .rev()
            .fold(1, |n, (k, s)| (n - 1) * s + k)
    }
}

impl Sizes for SpeechConfig {
    fn bindings(&self) -> Bindings {
        symbols::bindings([
            (symbols::SPEECH_STATES, self.layers + 1),
            (symbols::SPEECH_WIDTH, self.dim),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_count_follows_the_conv_strides() {
        let c = SpeechConfig {
            dim: 1,
            ffn_dim: 1,
            heads: 1,
            layers: 24,
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            pos_conv_groups: 16,
            eps: 1e-5,
        };
        for (samples, frames) in [
            (48000, Some(149)),
            (27200, Some(84)),
            (400, Some(1)),
            (399, Some(0)),
            (9, None),
        ] {
            assert_eq!(
                c.frames(samples)
                    .filter(|&n| n > 0)
                    .or(frames.filter(|&n| n == 0)),
                frames,
                "{samples} samples"
            );
        }
        assert_eq!(c.min_samples(), 400);
    }
}
