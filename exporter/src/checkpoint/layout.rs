//! The published layout: the files of a checkpoint folder, and the tensors of each component with
//! their shapes.
//!
//! The sizes come from the tensors ([`DitSizes::derive`] and its siblings) and are never assumed.
//! `tensors()` then lists every tensor of a component with these sizes. `inspect` compares a
//! checkpoint with the list, and `synth` writes from it. The module builds no graph and reads no
//! tensor data.

use std::collections::BTreeSet;

use super::{Checkpoint, LayoutFault};

/// Folder of the base checkpoint, under a parent that also holds [`LORA_FILE`].
pub(crate) const WAN_DIR: &str = "Wan2.2-S2V-14B";
/// The LoRA, from the parent folder.
pub(crate) const LORA_FILE: &str = "LiveAvatar/liveavatar.safetensors";
/// Text encoder, in the base folder.
pub(crate) const T5_FILE: &str = "models_t5_umt5-xxl-enc-bf16.pth";
/// VAE, in the base folder.
pub(crate) const VAE_FILE: &str = "Wan2.1_VAE.pth";
/// Tokenizer folder, in the base folder.
pub(crate) const TOKENIZER_DIR: &str = "google/umt5-xxl";
/// The tokenizer itself, in [`TOKENIZER_DIR`] and in an export.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
/// Audio encoder folder, in the base folder.
pub(crate) const WAV2VEC2_DIR: &str = "wav2vec2-large-xlsr-53-english";
/// Stem of the DiT's shards and index, in the base folder.
pub(crate) const DIT_STEM: &str = "diffusion_pytorch_model";

/// Hashes of the names and shapes of the published files (see `names_hash.rs`), as
/// DiffSynth-Studio lists them in diffsynth/configs/model_configs.py.
pub(crate) mod published {
    /// The transformer: 1260 tensors in four shards.
    pub(crate) const DIT: &str = "966cffdcc52f9c46c391768b27637614";
    /// The text encoder: 242 tensors.
    pub(crate) const TEXT: &str = "9c8818c2cbea55eca56c7b447df170da";
    /// The VAE: 194 tensors.
    pub(crate) const VAE: &str = "ccc42284ea13e1ad04693284c7a09be6";
    /// The speech encoder: 424 tensors, with the head of the recognition.
    pub(crate) const SPEECH: &str = "06be60f3a4526586d8431cd038a71486";
}

/// Hidden states of wav2vec2 that the audio adapter weighs; hard-coded in the reference.
pub(crate) const AUDIO_LAYERS: usize = 25;
/// Latent channels of the VAE and of the DiT's packers; hard-coded in the reference.
pub(crate) const LATENT_CHANNELS: usize = 16;
/// Channel multiples of the VAE's stages; hard-coded in the reference.
const VAE_MULT: [usize; 4] = [1, 2, 4, 4];

/// The name and shape of a component's tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Returns the number of elements.
    pub(crate) fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A size that cannot be read: its tensor is missing or has another number of dimensions.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "no size can be read from {key}: wanted {dims} dimensions, got {}",
    got.as_ref().map_or_else(|| "no such tensor".to_owned(), |s| format!("{s:?}"))
)]
pub(crate) struct SizeError {
    pub key: String,
    pub dims: usize,
    /// `None`: no such tensor.
    pub got: Option<Vec<usize>>,
}

/// Compares a checkpoint with the published layout. It needs the tensors `needed`, and may have the
/// tensors `idle`. Returns every difference.
pub(crate) fn compare(
    checkpoint: &Checkpoint,
    needed: &[TensorSpec],
    idle: &[TensorSpec],
) -> Vec<LayoutFault> {
    let mut faults = Vec::new();
    let mut known = BTreeSet::new();
    let all = needed.iter().map(|t| (t, true));
    for (spec, must) in all.chain(idle.iter().map(|t| (t, false))) {
        known.insert(spec.name.as_str());
        let (key, shape) = (spec.name.clone(), spec.shape.clone());
        match checkpoint.info(&key) {
            None if must => faults.push(LayoutFault::MissingTensor { key, shape }),
            None => {}
            Some(info) if info.shape != shape => faults.push(LayoutFault::Shape {
                key,
                want: shape,
                got: info.shape.clone(),
            }),
            Some(info) if must && !info.dtype.is_float() => faults.push(LayoutFault::NotFloat {
                key,
                got: info.dtype.name(),
            }),
            Some(_) => {}
        }
    }
    let extra = checkpoint.names().filter(|n| !known.contains(n));
    faults.extend(extra.filter_map(|key| {
        let info = checkpoint.info(key)?;
        Some(LayoutFault::Unexpected {
            key: key.to_owned(),
            shape: info.shape.clone(),
        })
    }));
    faults
}

fn shape<const N: usize>(checkpoint: &Checkpoint, key: &str) -> Result<[usize; N], SizeError> {
    let got = checkpoint.info(key).map(|i| &i.shape);
    let fail = || SizeError {
        key: key.to_owned(),
        dims: N,
        got: got.cloned(),
    };
    got.and_then(|s| s.as_slice().try_into().ok())
        .ok_or_else(fail)
}

/// Returns the largest `N` among the names `prefixN.`, plus one; 0 without such a name.
fn count(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let number = |k: &str| {
        k.strip_prefix(prefix)?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    };
    // The bound turns a stray huge index into missing keys instead of missing memory.
    checkpoint
        .names()
        .filter_map(number)
        .max()
        .map_or(0, |n| n.min(9999) + 1)
}

#[derive(Default)]
struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push(TensorSpec {
            name,
            shape: shape.to_vec(),
        });
    }

    /// Adds `name.weight` of `shape`, and `name.bias` of its first dimension.
    fn biased(&mut self, name: &str, shape: &[usize]) {
        self.add(format!("{name}.weight"), shape);
        self.add(format!("{name}.bias"), &shape[..1]);
    }
}

/// Sizes of the DiT (`CausalWanModel_S2V`, liveavatar/models/wan/causal_model_s2v.py).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct DitSizes {
    pub dim: usize,
    pub ffn: usize,
    pub layers: usize,
    /// Number of layers with an audio injector.
    pub injectors: usize,
    /// Width of the text encoder.
    pub text_dim: usize,
    /// Width of the audio encoder.
    pub audio_dim: usize,
    /// Width of the sinusoidal time embedding.
    pub freq_dim: usize,
    /// Channels of the pose condition.
    pub cond_dim: usize,
    pub in_dim: usize,
    pub out_dim: usize,
}

impl DitSizes {
    pub(crate) fn derive(checkpoint: &Checkpoint) -> Result<Self, SizeError> {
        let [dim, text_dim] = shape(checkpoint, "text_embedding.0.weight")?;
        let [ffn, _] = shape(checkpoint, "blocks.0.ffn.0.weight")?;
        let [_, audio_dim, _] = shape(
            checkpoint,
            "casual_audio_encoder.encoder.conv1_global.conv.weight",
        )?;
        let [_, freq_dim] = shape(checkpoint, "time_embedding.0.weight")?;
        let [_, cond_dim, ..] = shape::<5>(checkpoint, "cond_encoder.weight")?;
        let [_, in_dim, ..] = shape::<5>(checkpoint, "patch_embedding.weight")?;
        let [out, _] = shape(checkpoint, "head.head.weight")?;
        let (layers, injectors) = (
            count(checkpoint, "blocks."),
            count(checkpoint, "audio_injector.injector."),
        );
        Ok(Self {
            dim,
            ffn,
            layers,
            injectors,
            text_dim,
            audio_dim,
            freq_dim,
            cond_dim,
            in_dim,
            out_dim: out / 4,
        })
    }

    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = List::default();
        let d = self.dim;
        list.biased("patch_embedding", &[d, self.in_dim, 1, 2, 2]);
        list.biased("cond_encoder", &[d, self.cond_dim, 1, 2, 2]);
        list.add("trainable_cond_mask.weight".into(), &[3, d]);
        list.biased("frame_packer.proj", &[d, LATENT_CHANNELS, 1, 2, 2]);
        list.biased("frame_packer.proj_2x", &[d, LATENT_CHANNELS, 2, 4, 4]);
        list.biased("frame_packer.proj_4x", &[d, LATENT_CHANNELS, 4, 8, 8]);
        list.biased("text_embedding.0", &[d, self.text_dim]);
        list.biased("text_embedding.2", &[d, d]);
        list.biased("time_embedding.0", &[d, self.freq_dim]);
        list.biased("time_embedding.2", &[d, d]);
        list.biased("time_projection.1", &[6 * d, d]);
        self.audio(&mut list);
        for i in 0..self.layers {
            self.block(&mut list, &format!("blocks.{i}"));
        }
        list.add("head.modulation".into(), &[1, 2, d]);
        list.biased("head.head", &[4 * self.out_dim, d]);
        list.0
    }

    fn audio(&self, list: &mut List) {
        let d = self.dim;
        let encoder = "casual_audio_encoder.encoder";
        list.add(
            "casual_audio_encoder.weights".into(),
            &[1, AUDIO_LAYERS, 1, 1],
        );
        list.add(format!("{encoder}.padding_tokens"), &[1, 1, 1, d]);
        list.biased(
            &format!("{encoder}.conv1_local.conv"),
            &[d, self.audio_dim, 3],
        );
        list.biased(
            &format!("{encoder}.conv1_global.conv"),
            &[d / 4, self.audio_dim, 3],
        );
        list.biased(&format!("{encoder}.conv2.conv"), &[d / 2, d / 4, 3]);
        list.biased(&format!("{encoder}.conv3.conv"), &[d, d / 2, 3]);
        list.biased(&format!("{encoder}.final_linear"), &[d, d]);
        for i in 0..self.injectors {
            self.attention(list, &format!("audio_injector.injector.{i}"));
            list.biased(
                &format!("audio_injector.injector_adain_layers.{i}.linear"),
                &[2 * d, d],
            );
        }
    }

    fn block(&self, list: &mut List, block: &str) {
        let d = self.dim;
        list.add(format!("{block}.modulation"), &[1, 6, d]);
        self.attention(list, &format!("{block}.self_attn"));
        list.biased(&format!("{block}.norm3"), &[d]);
        self.attention(list, &format!("{block}.cross_attn"));
        list.biased(&format!("{block}.ffn.0"), &[self.ffn, d]);
        list.biased(&format!("{block}.ffn.2"), &[d, self.ffn]);
    }

    fn attention(&self, list: &mut List, at: &str) {
        for side in ["q", "k", "v", "o"] {
            list.biased(&format!("{at}.{side}"), &[self.dim, self.dim]);
        }
        list.add(format!("{at}.norm_q.weight"), &[self.dim]);
        list.add(format!("{at}.norm_k.weight"), &[self.dim]);
    }

    /// Returns the modules that a LoRA of the published kind changes, with their (out, in) sizes.
    /// The names end in `q`, `k`, `v`, `o`, `ffn.0` or `ffn.2`.
    pub(crate) fn lora_targets(&self) -> Vec<(String, usize, usize)> {
        let adapted = |m: &str| {
            ["q", "k", "v", "o", "ffn.0", "ffn.2"]
                .iter()
                .any(|t| m.strip_suffix(t).is_some_and(|rest| rest.ends_with('.')))
        };
        let module = |t: TensorSpec| Some((t.name.strip_suffix(".weight")?.to_owned(), t.shape));
        let modules = self
            .tensors()
            .into_iter()
            .filter_map(module)
            .filter(|(m, s)| adapted(m) && s.len() == 2);
        modules.map(|(m, s)| (m, s[0], s[1])).collect()
    }
}

/// Sizes of the umT5 encoder (`umt5_xxl`, wan_2_2/modules/t5.py).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct T5Sizes {
    /// Rows of the token embedding. The tokenizer may use fewer.
    pub vocab: usize,
    pub dim: usize,
    /// All heads together.
    pub attn_dim: usize,
    pub heads: usize,
    pub ffn: usize,
    pub layers: usize,
    /// Relative position buckets.
    pub buckets: usize,
}

impl T5Sizes {
    pub(crate) fn derive(checkpoint: &Checkpoint) -> Result<Self, SizeError> {
        let [vocab, dim] = shape(checkpoint, "token_embedding.weight")?;
        let [attn_dim, _] = shape(checkpoint, "blocks.0.attn.q.weight")?;
        let [ffn, _] = shape(checkpoint, "blocks.0.ffn.fc1.weight")?;
        let [buckets, heads] = shape(checkpoint, "blocks.0.pos_embedding.embedding.weight")?;
        Ok(Self {
            vocab,
            dim,
            attn_dim,
            heads,
            ffn,
            layers: count(checkpoint, "blocks."),
            buckets,
        })
    }

    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let Self {
            dim, attn_dim, ffn, ..
        } = *self;
        let mut list = List::default();
        list.add("token_embedding.weight".into(), &[self.vocab, dim]);
        for i in 0..self.layers {
            list.add(format!("blocks.{i}.norm1.weight"), &[dim]);
            for side in ["q", "k", "v"] {
                list.add(format!("blocks.{i}.attn.{side}.weight"), &[attn_dim, dim]);
            }
            list.add(format!("blocks.{i}.attn.o.weight"), &[dim, attn_dim]);
            list.add(format!("blocks.{i}.norm2.weight"), &[dim]);
            list.add(format!("blocks.{i}.ffn.gate.0.weight"), &[ffn, dim]);
            list.add(format!("blocks.{i}.ffn.fc1.weight"), &[ffn, dim]);
            list.add(format!("blocks.{i}.ffn.fc2.weight"), &[dim, ffn]);
            list.add(
                format!("blocks.{i}.pos_embedding.embedding.weight"),
                &[self.buckets, self.heads],
            );
        }
        list.add("norm.weight".into(), &[dim]);
        list.0
    }
}

/// Sizes of the Wan2.1 VAE (`WanVAE_`, wan_2_2/modules/vae_streaming.py): two residual blocks a
/// stage, time halved in stages 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct VaeSizes {
    /// Channels of the first stage.
    pub dim: usize,
    /// Latent channels.
    pub z_dim: usize,
}

impl VaeSizes {
    pub(crate) fn derive(checkpoint: &Checkpoint) -> Result<Self, SizeError> {
        let [dim, ..] = shape::<5>(checkpoint, "encoder.conv1.weight")?;
        let [z_dim, ..] = shape::<5>(checkpoint, "conv2.weight")?;
        Ok(Self { dim, z_dim })
    }

    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = List::default();
        self.encoder(&mut list);
        list.biased("conv1", &[2 * self.z_dim, 2 * self.z_dim, 1, 1, 1]);
        list.biased("conv2", &[self.z_dim, self.z_dim, 1, 1, 1]);
        self.decoder(&mut list);
        list.0
    }

    fn encoder(&self, list: &mut List) {
        let dims = VAE_MULT.map(|m| m * self.dim);
        list.biased("encoder.conv1", &[dims[0], 3, 3, 3, 3]);
        let (mut from, mut at) = (dims[0], 0);
        for (stage, to) in dims.into_iter().enumerate() {
            for _ in 0..2 {
                residual(list, &format!("encoder.downsamples.{at}"), from, to);
                (from, at) = (to, at + 1);
            }
            if stage < 3 {
                let name = format!("encoder.downsamples.{at}");
                list.biased(&format!("{name}.resample.1"), &[to, to, 3, 3]);
                if stage > 0 {
                    list.biased(&format!("{name}.time_conv"), &[to, to, 3, 1, 1]);
                }
                at += 1;
            }
        }
        middle(list, "encoder.middle", from);
        list.add("encoder.head.0.gamma".into(), &[from, 1, 1, 1]);
        list.biased("encoder.head.2", &[2 * self.z_dim, from, 3, 3, 3]);
    }

    fn decoder(&self, list: &mut List) {
        let dims = VAE_MULT.map(|m| m * self.dim);
        let mut from = dims[3];
        list.biased("decoder.conv1", &[from, self.z_dim, 3, 3, 3]);
        middle(list, "decoder.middle", from);
        let mut at = 0;
        for (stage, to) in dims.into_iter().rev().enumerate() {
            for _ in 0..3 {
                residual(list, &format!("decoder.upsamples.{at}"), from, to);
                (from, at) = (to, at + 1);
            }
            if stage < 3 {
                let name = format!("decoder.upsamples.{at}");
                list.biased(&format!("{name}.resample.1"), &[to / 2, to, 3, 3]);
                if stage < 2 {
                    list.biased(&format!("{name}.time_conv"), &[2 * to, to, 3, 1, 1]);
                }
                (from, at) = (to / 2, at + 1);
            }
        }
        list.add("decoder.head.0.gamma".into(), &[from, 1, 1, 1]);
        list.biased("decoder.head.2", &[3, from, 3, 3, 3]);
    }
}

fn residual(list: &mut List, name: &str, from: usize, to: usize) {
    list.add(format!("{name}.residual.0.gamma"), &[from, 1, 1, 1]);
    list.biased(&format!("{name}.residual.2"), &[to, from, 3, 3, 3]);
    list.add(format!("{name}.residual.3.gamma"), &[to, 1, 1, 1]);
    list.biased(&format!("{name}.residual.6"), &[to, to, 3, 3, 3]);
    if from != to {
        list.biased(&format!("{name}.shortcut"), &[to, from, 1, 1, 1]);
    }
}

fn middle(list: &mut List, name: &str, dim: usize) {
    residual(list, &format!("{name}.0"), dim, dim);
    list.add(format!("{name}.1.norm.gamma"), &[dim, 1, 1]);
    list.biased(&format!("{name}.1.to_qkv"), &[3 * dim, dim, 1, 1]);
    list.biased(&format!("{name}.1.proj"), &[dim, dim, 1, 1]);
    residual(list, &format!("{name}.2"), dim, dim);
}

/// Sizes of the audio encoder (`Wav2Vec2ForCTC` of transformers, stable layer norm).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct WavSizes {
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    /// Channels and kernel of each convolution of the feature extractor.
    pub convs: Vec<(usize, usize)>,
    /// Kernel of the positional convolution.
    pub pos_kernel: usize,
    pub pos_groups: usize,
    /// Letters of the CTC head.
    pub vocab: usize,
}

/// The form in which the weight of the positional convolution is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PosConv {
    /// `weight_g` and `weight_v`.
    Hook,
    /// `parametrizations.weight.original0` and `original1`.
    Parametrized,
    /// `weight`.
    Plain,
}

const POS_CONV: &str = "wav2vec2.encoder.pos_conv_embed.conv";

impl WavSizes {
    /// Reads the sizes from the tensors, which may be stored in any of the three forms.
    pub(crate) fn derive(checkpoint: &Checkpoint) -> Result<(Self, PosConv), SizeError> {
        let forms = [
            ("weight_v", PosConv::Hook),
            ("parametrizations.weight.original1", PosConv::Parametrized),
            ("weight", PosConv::Plain),
        ];
        let present = forms
            .into_iter()
            .find(|(end, _)| checkpoint.info(&format!("{POS_CONV}.{end}")).is_some());
        let (end, form) = present.unwrap_or(forms[0]);
        let [hidden, per_group, pos_kernel] = shape(checkpoint, &format!("{POS_CONV}.{end}"))?;
        let [ffn, _] = shape(
            checkpoint,
            "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight",
        )?;
        let conv = |i| {
            shape(
                checkpoint,
                &format!("wav2vec2.feature_extractor.conv_layers.{i}.conv.weight"),
            )
            .map(|[out, _, k]| (out, k))
        };
        let convs = (0..count(checkpoint, "wav2vec2.feature_extractor.conv_layers."))
            .map(conv)
            .collect::<Result<_, _>>()?;
        let layers = count(checkpoint, "wav2vec2.encoder.layers.");
        // The CTC head is never run, and some checkpoints lack it.
        let vocab = shape::<2>(checkpoint, "lm_head.weight").map_or(0, |[rows, _]| rows);
        Ok((
            Self {
                hidden,
                ffn,
                layers,
                convs,
                pos_kernel,
                pos_groups: hidden.checked_div(per_group).unwrap_or(0),
                vocab,
            },
            form,
        ))
    }

    /// Returns the tensors that the encoder computes with. [`WavSizes::idle`] returns the others.
    pub(crate) fn tensors(&self, form: PosConv) -> Vec<TensorSpec> {
        let mut list = List::default();
        let mut from = 1;
        for (i, &(to, kernel)) in self.convs.iter().enumerate() {
            let layer = format!("wav2vec2.feature_extractor.conv_layers.{i}");
            list.biased(&format!("{layer}.conv"), &[to, from, kernel]);
            list.biased(&format!("{layer}.layer_norm"), &[to]);
            from = to;
        }
        list.biased("wav2vec2.feature_projection.layer_norm", &[from]);
        list.biased(
            "wav2vec2.feature_projection.projection",
            &[self.hidden, from],
        );
        self.pos_conv(&mut list, form);
        list.biased("wav2vec2.encoder.layer_norm", &[self.hidden]);
        for i in 0..self.layers {
            self.layer(&mut list, &format!("wav2vec2.encoder.layers.{i}"));
        }
        list.0
    }

    /// Returns the tensors of a `Wav2Vec2ForCTC` that serve only training and the CTC head. A
    /// checkpoint may lack them.
    pub(crate) fn idle(&self) -> Vec<TensorSpec> {
        let mut list = List::default();
        list.add("wav2vec2.masked_spec_embed".into(), &[self.hidden]);
        list.biased("lm_head", &[self.vocab, self.hidden]);
        list.0
    }

    /// Adds the positional convolution, whose weight is stored in one of the three published forms:
    /// as `[hidden, hidden / groups, kernel]`, or as a magnitude `[1, 1, kernel]` and a direction.
    fn pos_conv(&self, list: &mut List, form: PosConv) {
        let per_group = self.hidden.checked_div(self.pos_groups).unwrap_or(0);
        let weight = [self.hidden, per_group, self.pos_kernel];
        let magnitude = [1, 1, self.pos_kernel];
        let tensors = match form {
            PosConv::Plain => vec![("weight", &weight)],
            PosConv::Hook => vec![("weight_g", &magnitude), ("weight_v", &weight)],
            PosConv::Parametrized => vec![
                ("parametrizations.weight.original0", &magnitude),
                ("parametrizations.weight.original1", &weight),
            ],
        };
        list.add(format!("{POS_CONV}.bias"), &[self.hidden]);
        for (name, shape) in tensors {
            list.add(format!("{POS_CONV}.{name}"), shape);
        }
    }

    fn layer(&self, list: &mut List, layer: &str) {
        let h = self.hidden;
        for side in ["k_proj", "v_proj", "q_proj", "out_proj"] {
            list.biased(&format!("{layer}.attention.{side}"), &[h, h]);
        }
        list.biased(&format!("{layer}.layer_norm"), &[h]);
        list.biased(
            &format!("{layer}.feed_forward.intermediate_dense"),
            &[self.ffn, h],
        );
        list.biased(
            &format!("{layer}.feed_forward.output_dense"),
            &[h, self.ffn],
        );
        list.biased(&format!("{layer}.final_layer_norm"), &[h]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::names_hash;
    use super::*;

    /// The published sizes of the transformer (config.json of Wan-AI/Wan2.2-S2V-14B).
    fn published_dit() -> DitSizes {
        DitSizes {
            dim: 5120,
            ffn: 13_824,
            layers: 40,
            injectors: 12,
            text_dim: 4096,
            audio_dim: 1024,
            freq_dim: 256,
            cond_dim: 16,
            in_dim: 16,
            out_dim: 16,
        }
    }

    fn published_t5() -> T5Sizes {
        T5Sizes {
            vocab: 256_384,
            dim: 4096,
            attn_dim: 4096,
            heads: 64,
            ffn: 10_240,
            layers: 24,
            buckets: 32,
        }
    }

    fn published_wav() -> WavSizes {
        WavSizes {
            hidden: 1024,
            ffn: 4096,
            layers: 24,
            convs: [10, 3, 3, 3, 3, 2, 2].map(|k| (512, k)).to_vec(),
            pos_kernel: 128,
            pos_groups: 16,
            vocab: 33,
        }
    }

    fn hash(specs: &[TensorSpec]) -> String {
        names_hash(specs.iter().map(|t| (t.name.as_str(), t.shape.as_slice())))
    }

    /// One name, one shape or one tensor more or less would give another hash.
    #[test]
    fn the_layout_has_the_hashes_of_the_published_files() {
        let wav = published_wav();
        let speech = |form| [wav.tensors(form), wav.idle()].concat();
        for (specs, count, want) in [
            (published_dit().tensors(), 1260, published::DIT),
            (published_t5().tensors(), 242, published::TEXT),
            (
                VaeSizes { dim: 96, z_dim: 16 }.tensors(),
                194,
                published::VAE,
            ),
            (speech(PosConv::Hook), 424, published::SPEECH),
        ] {
            assert_eq!((specs.len(), hash(&specs).as_str()), (count, want));
        }
        assert_ne!(hash(&speech(PosConv::Parametrized)), published::SPEECH);
    }

    fn parameters(specs: &[TensorSpec]) -> usize {
        specs.iter().map(TensorSpec::numel).sum()
    }

    /// 127 M is the size the Wan2.1 VAE is published with; 16.3 B is the transformer; 5.68 B is the
    /// encoder of umT5-xxl; 315 M that of wav2vec2-large.
    #[test]
    fn real_sizes_give_the_published_parameter_counts() {
        for (got, want) in [
            (
                parameters(&VaeSizes { dim: 96, z_dim: 16 }.tensors()),
                126_892_531,
            ),
            (parameters(&published_dit().tensors()), 16_295_755_609),
            (parameters(&published_t5().tensors()), 5_680_910_336),
            (
                parameters(&published_wav().tensors(PosConv::Hook)),
                315_437_696,
            ),
        ] {
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_lora_adapts_ten_modules_a_layer_and_four_an_injector() {
        let sizes = DitSizes {
            dim: 8,
            ffn: 16,
            layers: 3,
            injectors: 2,
            text_dim: 4,
            audio_dim: 4,
            freq_dim: 256,
            cond_dim: 16,
            in_dim: 16,
            out_dim: 16,
        };
        let targets = sizes.lora_targets();
        assert_eq!(targets.len(), 10 * 3 + 4 * 2);
        assert!(targets.contains(&("blocks.2.ffn.0".to_owned(), 16, 8)));
        assert!(
            targets.iter().all(
                |(m, ..)| m.starts_with("blocks.") || m.starts_with("audio_injector.injector.")
            )
        );
    }
}
