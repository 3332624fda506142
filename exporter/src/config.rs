//! Reads the sizes of a model from its tensors. Heads, injected layers and strides show in no
//! tensor, so they come from `config.json`.
mod zeros;

use crate::checkpoint::layout::{DitSizes, SizeError, T5Sizes, VaeSizes, WavSizes};
use crate::checkpoint::{Checkpoint, CheckpointError, read_json};
use engines::components::dit::{AudioConfig, DitConfig};
use engines::components::speech::SpeechConfig;
use engines::components::text::TextConfig;
use engines::components::vae::VaeConfig;
use engines::error_kind::ErrorKind;
use serde_json::Value;
use std::path::{Path, PathBuf};
use zeros::Zeros;

pub(crate) use zeros::notice as zeros_notice;

/// Latent frames of one block, `num_frames_per_block` of the reference's pipelines.
const BLOCK_FRAMES: usize = 3;

/// Defaults of `WanModel_S2V.__init__` (wan/modules/s2v/model_s2v.py) for fields of `config.json`.
/// Other defaults of it do not fit the published model, so the other fields must be stated.
mod default {
    /// Tokens of a prompt.
    pub(super) const TEXT_LEN: usize = 512;
    /// Small number of the norms.
    pub(super) const EPS: f32 = 1e-6;
    /// Tokens that a frame of speech gives.
    pub(super) const NUM_AUDIO_TOKEN: usize = 4;
}

/// A size that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    File(#[from] CheckpointError),
    #[error(
        "{}: {field} is {got}: this is another model, wanted {want}; \
         take {instead} with its config.json",
        path.display()
    )]
    OtherModel {
        path: PathBuf,
        field: &'static str,
        want: &'static str,
        got: String,
        instead: &'static str,
    },
    #[error("{}: field {field}: wanted {want}, got {got}", path.display())]
    Field {
        path: PathBuf,
        field: &'static str,
        want: String,
        got: String,
    },
    #[error("{}: {source}", path.display())]
    Size { path: PathBuf, source: SizeError },
}

impl ConfigError {
    /// Returns the kind of failure.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::File(e) => e.kind(),
            _ => ErrorKind::Model,
        }
    }
}

/// A `config.json` whose errors name the file and the field.
struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    fn open(path: PathBuf) -> Result<Self, ConfigError> {
        let value = read_json(&path)?;
        Ok(Self { path, value })
    }

    fn wrong(&self, field: &'static str, want: impl Into<String>) -> ConfigError {
        let got = self
            .value
            .get(field)
            .map_or_else(|| "nothing".to_owned(), Value::to_string);
        ConfigError::Field {
            path: self.path.clone(),
            field,
            want: want.into(),
            got,
        }
    }

    fn count(&self, field: &'static str) -> Result<usize, ConfigError> {
        let n = self
            .value
            .get(field)
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n > 0);
        n.ok_or_else(|| self.wrong(field, "a whole number of 1 or more"))
    }

    fn number(&self, field: &'static str) -> Result<f32, ConfigError> {
        self.value
            .get(field)
            .and_then(Value::as_f64)
            .map(|x| x as f32)
            .ok_or_else(|| self.wrong(field, "a number"))
    }

    /// Returns a number, or `default` where the field is absent.
    fn number_or(&self, field: &'static str, default: f32) -> Result<f32, ConfigError> {
        match self.value.get(field) {
            None => Ok(default),
            Some(_) => self.number(field),
        }
    }

    fn counts(&self, field: &'static str) -> Result<Vec<usize>, ConfigError> {
        let list = self.value.get(field).and_then(Value::as_array);
        let numbers = list.and_then(|l| {
            l.iter()
                .map(|v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
                .collect()
        });
        numbers.ok_or_else(|| self.wrong(field, "a list of whole numbers"))
    }

    /// Returns a count, or `default` where the field is absent.
    fn count_or(&self, field: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.value.get(field) {
            None => Ok(default),
            Some(_) => self.count(field),
        }
    }

    /// Checks that a size is the one that the tensors have, or is absent.
    fn agrees(&self, field: &'static str, derived: usize) -> Result<(), ConfigError> {
        match self.value.get(field) {
            Some(stated) if *stated != derived => {
                Err(self.wrong(field, format!("{derived}, as the tensors have it")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the field is stated and is `want`. The reference's default differs from `want`.
    fn must_be(&self, field: &'static str, want: impl Into<Value>) -> Result<(), ConfigError> {
        let want = want.into();
        match self.value.get(field) {
            Some(got) if *got == want => Ok(()),
            _ => Err(self.wrong(field, format!("{want} (nothing else is supported)"))),
        }
    }

    /// Checks that the field is `want`, or is absent where the reference's default is `want`.
    fn is(&self, field: &'static str, want: impl Into<Value>) -> Result<(), ConfigError> {
        let want = want.into();
        match self.value.get(field) {
            Some(got) if *got != want => {
                Err(self.wrong(field, format!("{want} (nothing else is supported)")))
            }
            _ => Ok(()),
        }
    }
}

/// Checks that the `config.json` in `dir` is not the one of another model. A file that cannot be
/// read passes here: [`dit`] reports it.
///
/// # Errors
/// [`ConfigError::OtherModel`].
pub(crate) fn check_model(dir: &Path) -> Result<(), ConfigError> {
    let Ok(json) = Json::open(dir.join("config.json")) else {
        return Ok(());
    };
    let kind = json.value.get("model_type").filter(|got| **got != "s2v");
    // Only the class says the model where the kind is absent.
    let class = json.value.get("_class_name").filter(|got| {
        let stated = json.value.get("model_type").is_some();
        !stated && !got.as_str().is_some_and(|name| name.contains("S2V"))
    });
    let wrong = kind.map(|got| ("model_type", "\"s2v\"", got));
    match wrong.or_else(|| class.map(|got| ("_class_name", "\"WanModel_S2V\"", got))) {
        None => Ok(()),
        Some((field, want, got)) => Err(ConfigError::OtherModel {
            field,
            want,
            got: got.to_string(),
            path: json.path,
            instead: "Wan-AI/Wan2.2-S2V-14B",
        }),
    }
}

/// Reads the sizes of the transformer. `dir` holds its `config.json`.
pub(crate) fn dit(checkpoint: &Checkpoint, dir: &Path) -> Result<DitConfig, ConfigError> {
    let json = Json::open(dir.join("config.json"))?;
    let sizes = DitSizes::derive(checkpoint).map_err(|source| ConfigError::Size {
        path: checkpoint.path().to_owned(),
        source,
    })?;
    json.is("adain_mode", "attn_norm")?;
    json.is("enable_tsm", false)?;
    json.must_be("framepack_drop_mode", "padd")?;
    for (field, want) in [
        ("enable_adain", true),
        ("enable_framepack", true),
        ("zero_timestep", true),
        ("enable_motioner", false),
    ] {
        json.must_be(field, want)?;
    }
    for (field, derived) in [
        ("dim", sizes.dim),
        ("ffn_dim", sizes.ffn),
        ("num_layers", sizes.layers),
        ("audio_dim", sizes.audio_dim),
        ("freq_dim", sizes.freq_dim),
    ] {
        json.agrees(field, derived)?;
    }
    let heads = json.count("num_heads")?;
    if !sizes.dim.is_multiple_of(heads) || !(sizes.dim / heads).is_multiple_of(2) {
        return Err(json.wrong(
            "num_heads",
            format!("a divisor of {} that leaves an even head size", sizes.dim),
        ));
    }
    let mut inject = json.counts("audio_inject_layers")?;
    inject.sort_unstable();
    inject.dedup();
    if inject.len() != sizes.injectors || inject.last().is_some_and(|&l| l >= sizes.layers) {
        return Err(json.wrong(
            "audio_inject_layers",
            format!(
                "{} layers below {}, one for each injector",
                sizes.injectors, sizes.layers
            ),
        ));
    }
    let states = checkpoint
        .info("casual_audio_encoder.weights")
        .map_or(0, |i| i.shape.get(1).copied().unwrap_or(0));
    Ok(DitConfig {
        dim: sizes.dim,
        heads,
        layers: sizes.layers,
        ffn_dim: sizes.ffn,
        audio_inject_layers: inject,
        text_dim: sizes.text_dim,
        text_len: json.count_or("text_len", default::TEXT_LEN)?,
        freq_dim: sizes.freq_dim,
        latent_channels: sizes.in_dim,
        eps: json.number_or("eps", default::EPS)?,
        block_frames: BLOCK_FRAMES,
        audio: AudioConfig {
            dim: sizes.audio_dim,
            states,
            tokens: json.count_or("num_audio_token", default::NUM_AUDIO_TOKEN)? + 1,
        },
    })
}

/// Reads the sizes of the text encoder.
pub(crate) fn text(checkpoint: &Checkpoint) -> Result<TextConfig, ConfigError> {
    let s = T5Sizes::derive(checkpoint).map_err(|source| ConfigError::Size {
        path: checkpoint.path().to_owned(),
        source,
    })?;
    Ok(TextConfig {
        vocab: s.vocab,
        dim: s.dim,
        attn_dim: s.attn_dim,
        ffn_dim: s.ffn,
        heads: s.heads,
        layers: s.layers,
        buckets: s.buckets,
    })
}

/// Reads the sizes of the VAE, and finds the parts that its zeros make idle.
pub(crate) fn vae(checkpoint: &Checkpoint) -> Result<VaeConfig, ConfigError> {
    let s = VaeSizes::derive(checkpoint).map_err(|source| ConfigError::Size {
        path: checkpoint.path().to_owned(),
        source,
    })?;
    let zeros = Zeros::of(checkpoint)?;
    Ok(VaeConfig {
        dim: s.dim,
        latent_channels: s.z_dim,
        idle_branches: zeros.idle_branches,
        frame_convolutions: zeros.frame_convolutions,
    })
}

/// Reads the sizes of the speech encoder. `dir` holds its `config.json`.
pub(crate) fn speech(checkpoint: &Checkpoint, dir: &Path) -> Result<SpeechConfig, ConfigError> {
    let json = Json::open(dir.join("config.json"))?;
    let (s, _) = WavSizes::derive(checkpoint).map_err(|source| ConfigError::Size {
        path: checkpoint.path().to_owned(),
        source,
    })?;
    json.is("model_type", "wav2vec2")?;
    json.is("do_stable_layer_norm", true)?;
    for (field, derived) in [
        ("hidden_size", s.hidden),
        ("intermediate_size", s.ffn),
        ("num_hidden_layers", s.layers),
    ] {
        json.agrees(field, derived)?;
    }
    for (field, want) in [
        ("feat_extract_norm", "layer"),
        ("feat_extract_activation", "gelu"),
        ("hidden_act", "gelu"),
    ] {
        json.is(field, want)?;
    }
    let heads = json.count("num_attention_heads")?;
    if !s.hidden.is_multiple_of(heads) {
        return Err(json.wrong("num_attention_heads", format!("a divisor of {}", s.hidden)));
    }
    let conv_stride = json.counts("conv_stride")?;
    if conv_stride.len() != s.convs.len() || conv_stride.contains(&0) {
        return Err(json.wrong(
            "conv_stride",
            format!(
                "{} strides of 1 or more, one for each convolution",
                s.convs.len()
            ),
        ));
    }
    Ok(SpeechConfig {
        dim: s.hidden,
        ffn_dim: s.ffn,
        heads,
        layers: s.layers,
        conv_kernel: s.convs.iter().map(|&(_, kernel)| kernel).collect(),
        conv_stride,
        pos_conv_groups: s.pos_groups,
        eps: json.number("layer_norm_eps")?,
    })
}
