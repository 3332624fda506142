//! A preset as shapes and sizes alone: what graphs can be built from without a checkpoint.
use super::preset::{Preset, Sizes};
use super::tokenizer::Tokenizer;
use crate::checkpoint::layout::{AUDIO_LAYERS, PosConv, TensorSpec};
use engines::components::dit::{AudioConfig, DitConfig};
use engines::components::speech::SpeechConfig;
use engines::components::text::TextConfig;
use engines::components::vae::VaeConfig;
use engines::manifest::ModelConfig;
use std::collections::BTreeMap;

/// Tensor shapes of a preset by component, and its sizes.
#[derive(Clone, Debug)]
pub struct Shapes {
    pub dit: BTreeMap<String, Vec<usize>>,
    pub text: BTreeMap<String, Vec<usize>>,
    pub vae: BTreeMap<String, Vec<usize>>,
    pub speech: BTreeMap<String, Vec<usize>>,
    pub config: ModelConfig,
}

/// Shapes of `preset`, with `layers` transformer layers when not the preset's own number.
pub fn shapes(preset: Preset, layers: Option<usize>) -> Shapes {
    let sizes = preset.sizes(layers, Tokenizer::new(preset.extra_ids()).len());
    let table = |specs: Vec<TensorSpec>| specs.into_iter().map(|t| (t.name, t.shape)).collect();
    Shapes {
        dit: table(sizes.dit.tensors()),
        text: table(sizes.t5.tensors()),
        vae: table(sizes.vae.tensors()),
        speech: table(sizes.wav.tensors(PosConv::Plain)),
        config: config(&sizes),
    }
}

fn config(s: &Sizes) -> ModelConfig {
    ModelConfig {
        dit: DitConfig {
            dim: s.dit.dim,
            heads: s.heads,
            layers: s.dit.layers,
            ffn_dim: s.dit.ffn,
            audio_inject_layers: s.inject.clone(),
            text_dim: s.dit.text_dim,
            text_len: 512,
            freq_dim: s.dit.freq_dim,
            latent_channels: s.dit.in_dim,
            eps: 1e-6,
            block_frames: 3,
            audio: AudioConfig {
                dim: s.dit.audio_dim,
                states: AUDIO_LAYERS,
                tokens: 5,
            },
        },
        vae: VaeConfig {
            dim: s.vae.dim,
            latent_channels: s.vae.z_dim,
        },
        text: TextConfig {
            vocab: s.t5.vocab,
            dim: s.t5.dim,
            attn_dim: s.t5.attn_dim,
            ffn_dim: s.t5.ffn,
            heads: s.t5.heads,
            layers: s.t5.layers,
            buckets: s.t5.buckets,
        },
        speech: SpeechConfig {
            dim: s.wav.hidden,
            ffn_dim: s.wav.ffn,
            heads: s.wav_heads,
            layers: s.wav.layers,
            conv_kernel: s.wav.convs.iter().map(|&(_, kernel)| kernel).collect(),
            conv_stride: super::preset::CONVS
                .iter()
                .map(|&(_, stride)| stride)
                .collect(),
            pos_conv_groups: s.wav.pos_groups,
            eps: 1e-5,
        },
    }
}
