//! Sizes of the models that are known by name. The exporter's synthetic checkpoints are made from
//! them, and the planner uses them when no model is at hand.
use super::ModelConfig;
use super::dit::{AudioConfig, DitConfig};
use super::speech::SpeechConfig;
use super::text::TextConfig;
use super::vae::VaeConfig;

/// A model known by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// About 8 M parameters, for tests and the demo.
    Tiny,
    /// About 155 M parameters, for benchmarks.
    Small,
    /// The published one: Wan 2.2 S2V 14B, umT5-XXL, wav2vec2-large-xlsr-53 and the Wan 2.1 VAE.
    #[default]
    Full,
}

/// Sizes in which the presets differ.
struct Row {
    heads: usize,
    ffn: usize,
    layers: usize,
    inject: &'static [usize],
    text: TextConfig,
    vae_dim: usize,
    /// Width of the hidden state, inner width of the feed-forward network, and heads.
    speech: [usize; 3],
}

const HEAD_DIM: usize = 128;

const fn text(vocab: usize, dim: usize, ffn_dim: usize, heads: usize, layers: usize) -> TextConfig {
    let head = if dim == 64 { 16 } else { 64 };
    TextConfig {
        vocab,
        dim,
        attn_dim: heads * head,
        ffn_dim,
        heads,
        layers,
        buckets: 32,
    }
}

const TINY: Row = Row {
    heads: 2,
    ffn: 512,
    layers: 4,
    inject: &[0, 2, 3],
    text: text(640, 64, 96, 4, 3),
    vae_dim: 8,
    speech: [32, 64, 4],
};
const SMALL: Row = Row {
    heads: 6,
    ffn: 1536,
    layers: 12,
    inject: &[0, 4, 8],
    text: text(640, 512, 1280, 8, 4),
    vae_dim: 32,
    speech: [256, 1024, 4],
};
const FULL: Row = Row {
    heads: 40,
    ffn: 13_824,
    layers: 40,
    inject: &[0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
    text: text(256_384, 4096, 10_240, 64, 24),
    vae_dim: 96,
    speech: [1024, 4096, 16],
};

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Small, Self::Full];

    /// Returns the name as command lines spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Full => "full",
        }
    }

    /// Returns the sizes of every component.
    pub fn config(self) -> ModelConfig {
        let row = match self {
            Self::Tiny => &TINY,
            Self::Small => &SMALL,
            Self::Full => &FULL,
        };
        let [dim, ffn_dim, heads] = row.speech;
        ModelConfig {
            dit: DitConfig {
                dim: row.heads * HEAD_DIM,
                heads: row.heads,
                layers: row.layers,
                ffn_dim: row.ffn,
                audio_inject_layers: row.inject.to_vec(),
                text_dim: row.text.dim,
                text_len: 512,
                freq_dim: 256,
                latent_channels: 16,
                eps: 1e-6,
                block_frames: 3,
                audio: AudioConfig {
                    dim,
                    states: 25,
                    tokens: 5,
                },
            },
            vae: VaeConfig {
                dim: row.vae_dim,
                latent_channels: 16,
                ..VaeConfig::default()
            },
            text: row.text.clone(),
            speech: SpeechConfig {
                dim,
                ffn_dim,
                heads,
                layers: 24,
                conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
                conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
                pos_conv_groups: 16,
                eps: 1e-5,
            },
        }
    }
}
