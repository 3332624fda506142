//! The wav2vec2 encoder with stable layer norm: raw speech to all hidden states. It is cut into
//! graphs, so that no part needs more than some rows at a time. It is f32 in every recipe, because
//! it is small and runs once. Names are those of transformers' `Wav2Vec2Model` (4.51): its last
//! hidden state is normed, the others are the inputs of the layers.
use crate::graph::{AttentionOptions, Builder, IntoDim, Scope, Value};
use crate::nn::{self, layer_norm_affine, linear};
use engines::components::speech::{self, SpeechConfig};

/// Name of the module that holds the encoder: `wav2vec2` in a recognition model, empty in a bare
/// one.
fn root<'g>(b: &'g Builder<'g>, prefix: &str) -> Scope<'g> {
    if prefix.is_empty() {
        b.root()
    } else {
        b.root().pp(prefix)
    }
}

/// Builds `audio_encoder_features`: samples `[1, s]` to projected features `[1, t, E]`.
pub(crate) fn features<'g>(b: &'g Builder<'g>, prefix: &str, c: &SpeechConfig) {
    let s = root(b, prefix);
    let x = feature_extractor(
        s.pp("feature_extractor.conv_layers"),
        b.input(&speech::INPUT_VALUES),
        c,
    );
    let p = s.pp("feature_projection");
    let x = linear(
        p.pp("projection"),
        layer_norm_affine(p.pp("layer_norm"), x, c.eps),
        c.dim,
    );
    b.output(&speech::FEATURES_OUT, p.out(x));
}

/// Builds `audio_encoder_positions`: features to the first layer's input, keys and values.
pub(crate) fn positions<'g>(b: &'g Builder<'g>, prefix: &str, c: &SpeechConfig) {
    let s = root(b, prefix).pp("encoder");
    let x = b.input(&speech::FEATURES);
    let x = x + positional(s.pp("pos_conv_embed.conv"), x, c);
    let (k, v) = keys(s.pp("layers").pp(0), x, c);
    b.output(&speech::FIRST_ROWS_OUT, x);
    b.output(&speech::FIRST_KEYS_OUT, k);
    b.output(&speech::FIRST_VALUES_OUT, v);
}

/// Builds `audio_encoder_layer` and `audio_encoder_last`: rows through one layer, then their keys
/// and values for the next layer, or the norm.
pub(crate) fn layer<'g>(b: &'g Builder<'g>, prefix: &str, c: &SpeechConfig, index: usize) {
    let s = root(b, prefix).pp("encoder");
    let layers = s.pp("layers");
    let x = encoder_layer(layers.pp(index), b.input(&speech::ROWS), c);
    if index + 1 == c.layers {
        return b.output(
            &speech::ROWS_OUT,
            layer_norm_affine(s.pp("layer_norm"), x, c.eps),
        );
    }
    let (k, v) = keys(layers.pp(index + 1), x, c);
    b.output(&speech::ROWS_OUT, x);
    b.output(&speech::KEYS_OUT, k);
    b.output(&speech::VALUES_OUT, v);
}

/// Computes the keys and values of a layer from its input, `[1, t, E]` each, row by row.
fn keys<'g>(s: Scope<'g>, x: Value<'g>, c: &SpeechConfig) -> (Value<'g>, Value<'g>) {
    let y = layer_norm_affine(s.pp("layer_norm"), x, c.eps);
    let a = s.pp("attention");
    (
        linear(a.pp("k_proj"), y, c.dim),
        linear(a.pp("v_proj"), y, c.dim),
    )
}

/// Applies strided convolutions, each with a norm over channels and GELU after it:
/// `[1, s] -> [1, t, C]`.
fn feature_extractor<'g>(s: Scope<'g>, samples: Value<'g>, c: &SpeechConfig) -> Value<'g> {
    let mut x = samples.unsqueeze(1); // [1, 1, s]
    for (i, (&kernel, &stride)) in c.conv_kernel.iter().zip(&c.conv_stride).enumerate() {
        let l = s.pp(i);
        let conv = l.pp("conv");
        let out = conv.dims("weight").map_or(0, |d| d[0]);
        let w = conv.weight("weight", [out.into_dim(), x.dim(1), kernel.into_dim()]);
        let bias = conv.has("bias").then(|| conv.weight("bias", [out]));
        let y = x
            .conv1d(w, bias, stride as i64, [0, 0], 1)
            .transpose(&[0, 2, 1]);
        x = l
            .out(layer_norm_affine(l.pp("layer_norm"), y, c.eps).gelu_erf())
            .transpose(&[0, 2, 1]);
    }
    x.transpose(&[0, 2, 1])
}

/// Applies a grouped convolution over time, padded by half its kernel. An even kernel gives one
/// frame too many.
fn positional<'g>(s: Scope<'g>, x: Value<'g>, c: &SpeechConfig) -> Value<'g> {
    let kernel = s.dims("weight").map_or(0, |d| d[2]);
    let w = s.weight("weight", [c.dim, c.dim / c.pos_conv_groups, kernel]);
    let pad = kernel as i64 / 2;
    let y = x.transpose(&[0, 2, 1]).conv1d(
        w,
        Some(s.weight("bias", [c.dim])),
        1,
        [pad, pad],
        c.pos_conv_groups as i64,
    );
    let y = if kernel.is_multiple_of(2) {
        y.slice(2, 0, -1)
    } else {
        y
    };
    s.out(y.gelu_erf().transpose(&[0, 2, 1]))
}

/// Mirrors `Wav2Vec2EncoderLayerStableLayerNorm.forward` for some rows.
fn encoder_layer<'g>(s: Scope<'g>, x: Value<'g>, c: &SpeechConfig) -> Value<'g> {
    let x = x + attention(
        s.pp("attention"),
        layer_norm_affine(s.pp("layer_norm"), x, c.eps),
        c,
    );
    let f = s.pp("feed_forward");
    let y = layer_norm_affine(s.pp("final_layer_norm"), x, c.eps);
    let y = linear(f.pp("intermediate_dense"), y, c.ffn_dim).gelu_erf();
    s.out(x + f.out(linear(f.pp("output_dense"), y, c.dim)))
}

fn attention<'g>(s: Scope<'g>, y: Value<'g>, c: &SpeechConfig) -> Value<'g> {
    let b = s.builder();
    let heads = |x: Value<'g>| {
        let split = [
            x.dim(0),
            x.dim(1),
            c.heads.into_dim(),
            (c.dim / c.heads).into_dim(),
        ];
        x.reshape(&split).transpose(&[0, 2, 1, 3])
    };
    let (k, v) = (
        heads(b.input(&speech::KEYS)),
        heads(b.input(&speech::VALUES)),
    );
    let q = heads(linear(s.pp("q_proj"), y, c.dim));
    let o = nn::attention(q, k, v, AttentionOptions::default()).transpose(&[0, 2, 1, 3]);
    s.out(linear(
        s.pp("out_proj"),
        o.reshape(&[y.dim(0), y.dim(1), c.dim.into_dim()]),
        c.dim,
    ))
}
