//! Sizes of the synthetic checkpoints, and the JSON files that state them.

use serde_json::{Value, json};

use crate::checkpoint::layout::{DitSizes, LATENT_CHANNELS, T5Sizes, VaeSizes, WavSizes};

/// Which sizes to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// About 8 M parameters, for tests and the demo.
    Tiny,
    /// About 155 M parameters, for benchmarks.
    Small,
    /// The published sizes.
    Full,
}

/// Kernels and strides of wav2vec2's feature extractor.
pub(super) const CONVS: [(usize, usize); 7] =
    [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)];
/// Letters of the published CTC head, in the order of its ids.
const LETTERS: &str = "|'-abcdefghijklmnopqrstuvwxyz";
const LETTER_SPECIAL: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
/// One hidden state less than the audio adapter weighs.
const WAV_LAYERS: usize = 24;
const T5_BUCKETS: usize = 32;

/// All sizes of a checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) dit: DitSizes,
    pub(super) heads: usize,
    /// Layers that hear audio.
    pub(super) inject: Vec<usize>,
    pub(super) shards: usize,
    pub(super) lora_rank: usize,
    pub(super) t5: T5Sizes,
    pub(super) vae: VaeSizes,
    pub(super) wav: WavSizes,
    pub(super) wav_heads: usize,
}

/// What tells one preset from another.
struct Row {
    heads: usize,
    ffn: usize,
    layers: usize,
    inject: &'static [usize],
    shards: usize,
    lora_rank: usize,
    /// dim, heads, head size, ffn, layers
    t5: [usize; 5],
    vae_dim: usize,
    /// hidden, ffn, convolution channels, heads
    wav: [usize; 4],
    /// Rows of the token embedding, at least.
    vocab: usize,
}

const HEAD_DIM: usize = 128;
const TINY: Row = Row {
    heads: 2,
    ffn: 512,
    layers: 4,
    inject: &[0, 2, 3],
    shards: 2,
    lora_rank: 4,
    t5: [64, 4, 16, 96, 3],
    vae_dim: 8,
    wav: [32, 64, 24, 4],
    vocab: 0,
};
const SMALL: Row = Row {
    heads: 6,
    ffn: 1536,
    layers: 12,
    inject: &[0, 4, 8],
    shards: 2,
    lora_rank: 16,
    t5: [512, 8, 64, 1280, 4],
    vae_dim: 32,
    wav: [256, 1024, 128, 4],
    vocab: 0,
};
const FULL: Row = Row {
    heads: 40,
    ffn: 13_824,
    layers: 40,
    inject: &[0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
    shards: 4,
    lora_rank: 128,
    t5: [4096, 64, 64, 10_240, 24],
    vae_dim: 96,
    wav: [1024, 4096, 512, 16],
    vocab: 256_384,
};

impl Preset {
    /// Sentinels of the tokenizer.
    pub(super) fn extra_ids(self) -> usize {
        if self == Self::Full { 300 } else { 10 }
    }

    /// `layers` overrides the DiT's depth; `vocab` ids are in use by the tokenizer.
    pub(super) fn sizes(self, layers: Option<usize>, vocab: usize) -> Sizes {
        let row = match self {
            Self::Tiny => &TINY,
            Self::Small => &SMALL,
            Self::Full => &FULL,
        };
        let layers = layers.unwrap_or(row.layers);
        let inject: Vec<usize> = row.inject.iter().copied().filter(|&i| i < layers).collect();
        let [t5_dim, t5_heads, t5_head, t5_ffn, t5_layers] = row.t5;
        let [hidden, wav_ffn, channels, wav_heads] = row.wav;
        Sizes {
            dit: DitSizes {
                dim: row.heads * HEAD_DIM,
                ffn: row.ffn,
                layers,
                injectors: inject.len(),
                text_dim: t5_dim,
                audio_dim: hidden,
                freq_dim: 256,
                cond_dim: LATENT_CHANNELS,
                in_dim: LATENT_CHANNELS,
                out_dim: LATENT_CHANNELS,
            },
            heads: row.heads,
            inject,
            shards: row.shards,
            lora_rank: row.lora_rank,
            t5: T5Sizes {
                vocab: vocab.next_multiple_of(128).max(row.vocab),
                dim: t5_dim,
                attn_dim: t5_heads * t5_head,
                heads: t5_heads,
                ffn: t5_ffn,
                layers: t5_layers,
                buckets: T5_BUCKETS,
            },
            vae: VaeSizes {
                dim: row.vae_dim,
                z_dim: LATENT_CHANNELS,
            },
            wav: WavSizes {
                hidden,
                ffn: wav_ffn,
                layers: WAV_LAYERS,
                convs: CONVS.map(|(kernel, _)| (channels, kernel)).to_vec(),
                pos_kernel: 128,
                pos_groups: 16,
                vocab: LETTER_SPECIAL.len() + LETTERS.len(),
            },
            wav_heads,
        }
    }
}

impl Sizes {
    /// `config.json` of the base folder. As published, it does not state the text width, the head size or the motion frames.
    pub(super) fn dit_config(&self) -> Value {
        let d = &self.dit;
        json!({
            "_class_name": "WanModel_S2V",
            "_diffusers_version": "0.34.0",
            "adain_mode": "attn_norm",
            "add_last_motion": true,
            "audio_dim": d.audio_dim,
            "audio_inject_layers": self.inject,
            "cond_dim": d.cond_dim,
            "dim": d.dim,
            "enable_adain": true,
            "enable_framepack": true,
            "enable_motioner": false,
            "enable_tsm": false,
            "eps": 1e-6,
            "ffn_dim": d.ffn,
            "framepack_drop_mode": "padd",
            "freq_dim": d.freq_dim,
            "in_dim": d.in_dim,
            "model_type": "s2v",
            "motion_token_num": 1024,
            "num_audio_token": 4,
            "num_heads": self.heads,
            "num_layers": d.layers,
            "out_dim": d.out_dim,
            "text_len": 512,
            "trainable_token_pos_emb": false,
            "zero_init": true,
            "zero_timestep": true,
        })
    }

    /// The JSON files of the audio encoder's folder.
    pub(super) fn wav_files(&self) -> [(&'static str, Value); 5] {
        let [pad, bos, eos, unk] = LETTER_SPECIAL;
        let letters = LETTER_SPECIAL
            .into_iter()
            .map(str::to_owned)
            .chain(LETTERS.chars().map(String::from));
        let vocab: serde_json::Map<_, _> = letters
            .enumerate()
            .map(|(i, letter)| (letter, i.into()))
            .collect();
        [
            ("config.json", self.wav_config()),
            (
                "preprocessor_config.json",
                json!({
                    "do_normalize": true,
                    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                    "feature_size": 1,
                    "padding_side": "right",
                    "padding_value": 0.0,
                    "return_attention_mask": true,
                    "sampling_rate": 16000,
                }),
            ),
            ("vocab.json", vocab.into()),
            (
                "special_tokens_map.json",
                json!({"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}),
            ),
            (
                "tokenizer_config.json",
                json!({
                    "bos_token": bos,
                    "eos_token": eos,
                    "unk_token": unk,
                    "pad_token": pad,
                    "do_lower_case": false,
                    "word_delimiter_token": "|",
                    "tokenizer_class": "Wav2Vec2CTCTokenizer",
                }),
            ),
        ]
    }

    fn wav_config(&self) -> Value {
        let w = &self.wav;
        json!({
            "_name_or_path": "facebook/wav2vec2-large-xlsr-53",
            "activation_dropout": 0.05,
            "apply_spec_augment": true,
            "architectures": ["Wav2Vec2ForCTC"],
            "attention_dropout": 0.1,
            "bos_token_id": 1,
            "conv_bias": true,
            "conv_dim": w.convs.iter().map(|&(channels, _)| channels).collect::<Vec<_>>(),
            "conv_kernel": w.convs.iter().map(|&(_, kernel)| kernel).collect::<Vec<_>>(),
            "conv_stride": CONVS.map(|(_, stride)| stride),
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": true,
            "do_stable_layer_norm": true,
            "eos_token_id": 2,
            "feat_extract_activation": "gelu",
            "feat_extract_dropout": 0.0,
            "feat_extract_norm": "layer",
            "feat_proj_dropout": 0.05,
            "final_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout": 0.05,
            "hidden_size": w.hidden,
            "initializer_range": 0.02,
            "intermediate_size": w.ffn,
            "layer_norm_eps": 1e-5,
            "layerdrop": 0.05,
            "mask_feature_length": 10,
            "mask_feature_prob": 0.0,
            "mask_time_length": 10,
            "mask_time_prob": 0.05,
            "model_type": "wav2vec2",
            "num_attention_heads": self.wav_heads,
            "num_conv_pos_embedding_groups": w.pos_groups,
            "num_conv_pos_embeddings": w.pos_kernel,
            "num_feat_extract_layers": w.convs.len(),
            "num_hidden_layers": w.layers,
            "pad_token_id": 0,
            "vocab_size": w.vocab,
        })
    }
}
