//! Sizes of the synthetic checkpoints, and the JSON files that state them.
//!
//! The sizes of the models come from [`Preset::config`]. Only the sizes that a model's
//! configuration does not hold are here: shards, LoRA rank, convolution channels and the
//! tokenizer's sentinels.
use crate::checkpoint::layout::{DitSizes, T5Sizes, VaeSizes, WavSizes};
use engines::components::preset::Preset;
use engines::manifest::ModelConfig;
use serde_json::{Value, json};

/// Letters of the published CTC head, in the order of its ids.
const LETTERS: &str = "|'-abcdefghijklmnopqrstuvwxyz";
const LETTER_SPECIAL: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
/// Kernel of wav2vec2's positional convolution, in every published checkpoint.
const POSITION_KERNEL: usize = 128;

/// All sizes of a synthetic checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// Sizes of the model, with the depth that was asked for.
    pub(super) config: ModelConfig,
    pub(super) dit: DitSizes,
    pub(super) t5: T5Sizes,
    pub(super) vae: VaeSizes,
    pub(super) wav: WavSizes,
    /// Files that the transformer's tensors are split into.
    pub(super) shards: usize,
    pub(super) lora_rank: usize,
    /// Sentinels of the tokenizer.
    pub(super) extra_ids: usize,
}

/// Sizes of a checkpoint that its model's configuration does not hold.
struct Extra {
    shards: usize,
    lora_rank: usize,
    /// Channels of the speech encoder's convolutions.
    conv_channels: usize,
    /// Sentinels of the tokenizer.
    extra_ids: usize,
}

fn extra(preset: Preset) -> Extra {
    match preset {
        Preset::Tiny => Extra {
            shards: 2,
            lora_rank: 4,
            conv_channels: 24,
            extra_ids: 10,
        },
        Preset::Small => Extra {
            shards: 2,
            lora_rank: 16,
            conv_channels: 128,
            extra_ids: 10,
        },
        Preset::Full => Extra {
            shards: 4,
            lora_rank: 128,
            conv_channels: 512,
            extra_ids: 300,
        },
    }
}

impl Sizes {
    /// Returns the sizes of `preset`. `layers` replaces the depth of its transformer.
    pub(super) fn new(preset: Preset, layers: Option<usize>) -> Self {
        let mut config = preset.config();
        let extra = extra(preset);
        let dit = &mut config.dit;
        dit.layers = layers.unwrap_or(dit.layers);
        dit.audio_inject_layers.retain(|&layer| layer < dit.layers);
        let (dit, text, speech) = (&config.dit, &config.text, &config.speech);
        Self {
            dit: DitSizes {
                dim: dit.dim,
                ffn: dit.ffn_dim,
                layers: dit.layers,
                injectors: dit.audio_inject_layers.len(),
                text_dim: dit.text_dim,
                audio_dim: dit.audio.dim,
                freq_dim: dit.freq_dim,
                cond_dim: dit.latent_channels,
                in_dim: dit.latent_channels,
                out_dim: dit.latent_channels,
            },
            t5: T5Sizes {
                vocab: text.vocab,
                dim: text.dim,
                attn_dim: text.attn_dim,
                heads: text.heads,
                ffn: text.ffn_dim,
                layers: text.layers,
                buckets: text.buckets,
            },
            vae: VaeSizes {
                dim: config.vae.dim,
                z_dim: config.vae.latent_channels,
            },
            wav: WavSizes {
                hidden: speech.dim,
                ffn: speech.ffn_dim,
                layers: speech.layers,
                convs: speech
                    .conv_kernel
                    .iter()
                    .map(|&kernel| (extra.conv_channels, kernel))
                    .collect(),
                pos_kernel: POSITION_KERNEL,
                pos_groups: speech.pos_conv_groups,
                vocab: LETTER_SPECIAL.len() + LETTERS.len(),
            },
            shards: extra.shards,
            lora_rank: extra.lora_rank,
            extra_ids: extra.extra_ids,
            config,
        }
    }
}

impl Sizes {
    /// Returns `config.json` of the base folder. The published file does not state the text width,
    /// the head size or the motion frames either.
    pub(super) fn dit_config(&self) -> Value {
        let d = &self.dit;
        json!({
            "_class_name": "WanModel_S2V",
            "_diffusers_version": "0.34.0",
            "adain_mode": "attn_norm",
            "add_last_motion": true,
            "audio_dim": d.audio_dim,
            "audio_inject_layers": self.config.dit.audio_inject_layers,
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
            "num_audio_token": self.config.dit.audio.tokens - 1,
            "num_heads": self.config.dit.heads,
            "num_layers": d.layers,
            "out_dim": d.out_dim,
            "text_len": self.config.dit.text_len,
            "trainable_token_pos_emb": false,
            "zero_init": true,
            "zero_timestep": true,
        })
    }

    /// Returns the JSON files of the audio encoder's folder.
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
            "conv_stride": self.config.speech.conv_stride,
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
            "num_attention_heads": self.config.speech.heads,
            "num_conv_pos_embedding_groups": w.pos_groups,
            "num_conv_pos_embeddings": w.pos_kernel,
            "num_feat_extract_layers": w.convs.len(),
            "num_hidden_layers": w.layers,
            "pad_token_id": 0,
            "vocab_size": w.vocab,
        })
    }
}
