//! Distributions of the parameters, by name and shape. Weights are scaled by their fan-in and norm
//! gains lie around one, so activations stay near one at any depth. No parameter is zero, so every
//! path of the model carries signal, also the paths that training starts from zero.

use crate::checkpoint::layout::TensorSpec;

use super::random::Fill;

fn zero_mean(std: f32) -> Fill {
    Fill { mean: 0.0, std }
}

/// Returns a weight that keeps the variance of its input, times `gain`.
fn fan_in(shape: &[usize], gain: f32) -> Fill {
    zero_mean(gain / (shape[1..].iter().product::<usize>() as f32).sqrt())
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn is_norm_gain(name: &str) -> bool {
    name.contains("norm") && last(name) == "weight"
}

/// Returns the distribution of a DiT parameter. In a deeper model (`layers`) each residual branch
/// adds less.
pub(super) fn dit(t: &TensorSpec, layers: usize) -> Fill {
    let name = t.name.as_str();
    let residual = (4.0 / layers as f32).sqrt().min(1.0);
    match last(name) {
        _ if is_norm_gain(name) => Fill {
            mean: 1.0,
            std: 0.2,
        },
        "modulation" => zero_mean(0.3),
        // The model applies SiLU and divides by the sum, which must not be near zero.
        "weights" => Fill {
            mean: 0.5,
            std: 0.35,
        },
        "padding_tokens" => zero_mean(0.7),
        "bias" => zero_mean(0.1),
        _ if name.starts_with("trainable_cond_mask") => zero_mean(0.5),
        _ if name.starts_with("time_projection") => fan_in(&t.shape, 0.5),
        _ if name.contains("injector_adain_layers") => fan_in(&t.shape, 0.7),
        _ if name.starts_with("cond_encoder") => fan_in(&t.shape, 0.6),
        _ if name.ends_with(".o.weight") || name.ends_with(".ffn.2.weight") => {
            fan_in(&t.shape, residual)
        }
        _ => fan_in(&t.shape, 1.0),
    }
}

/// Returns the distribution of a LoRA factor. With scale 0.5, `B @ A` moves a weight by about 40 %
/// of its deviation, at any rank.
pub(super) fn lora(t: &TensorSpec) -> Fill {
    if t.name.contains("lora_A") {
        fan_in(&t.shape, 1.0)
    } else {
        fan_in(&t.shape, 0.8)
    }
}

/// Returns the distribution of a T5 parameter. umT5 does not scale its attention logits, so `q`
/// carries the factor.
pub(super) fn t5(t: &TensorSpec, head_dim: usize) -> Fill {
    let name = t.name.as_str();
    match name {
        _ if is_norm_gain(name) => Fill {
            mean: 1.0,
            std: 0.2,
        },
        "token_embedding.weight" => zero_mean(1.0),
        _ if name.contains("pos_embedding") => zero_mean(0.7),
        _ if name.ends_with("attn.q.weight") => fan_in(&t.shape, 1.0 / (head_dim as f32).sqrt()),
        _ => fan_in(&t.shape, 1.0),
    }
}

/// Returns the distribution of a VAE parameter. The decoder's head is small, so that pixels rarely
/// leave [-1, 1]. The encoder's head is large, because latents are divided by deviations of 1.5 to
/// 3.
pub(super) fn vae(t: &TensorSpec) -> Fill {
    match (t.name.as_str(), last(&t.name)) {
        (_, "gamma") => Fill {
            mean: 1.0,
            std: 0.15,
        },
        (_, "bias") => zero_mean(0.1),
        ("decoder.head.2.weight", _) => fan_in(&t.shape, 0.5),
        ("encoder.head.2.weight", _) => fan_in(&t.shape, 2.0),
        ("conv1.weight" | "conv2.weight", _) => fan_in(&t.shape, 0.7),
        _ => fan_in(&t.shape, 1.0),
    }
}

/// Returns the distribution of a wav2vec2 parameter. `hidden` scales the magnitudes of the
/// positional convolution: each is the norm of a whole `[O, I]` slice.
pub(super) fn wav(t: &TensorSpec, hidden: usize) -> Fill {
    let name = t.name.as_str();
    match last(name) {
        _ if is_norm_gain(name) => Fill {
            mean: 1.0,
            std: 0.2,
        },
        "weight_g" => {
            let mean = 0.7 * (hidden as f32 / t.numel() as f32).sqrt();
            Fill {
                mean,
                std: 0.2 * mean,
            }
        }
        "weight_v" => zero_mean(1.0),
        "bias" => zero_mean(0.1),
        "masked_spec_embed" => Fill {
            mean: 0.5,
            std: 0.25,
        },
        _ if name.contains(".out_proj.") || name.contains("output_dense") => fan_in(&t.shape, 0.6),
        _ => fan_in(&t.shape, 1.0),
    }
}
