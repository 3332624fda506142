//! The wav2vec2 encoder with stable layer norm: raw speech to all hidden states. Names are those of transformers'
//! `Wav2Vec2Model` (4.51), whose last hidden state is normed; the others are the layers' inputs.
use crate::graph::{AttentionOptions, Builder, IntoDim, Scope, Value};
use crate::nn::{layer_norm_affine, linear};
use engines::components::speech::{self, SpeechConfig};
use engines::dim::Dim;

/// `audio_encoder`: samples `[1, s]` to hidden states `[Q, t, E]`. `prefix` is the module that holds the encoder (`wav2vec2` or empty).
pub fn encoder<'g>(b: &'g Builder<'g>, prefix: &str, c: &SpeechConfig) {
    let s = if prefix.is_empty() {
        b.root()
    } else {
        b.root().pp(prefix)
    };
    let x = feature_extractor(
        s.pp("feature_extractor.conv_layers"),
        b.input(&speech::INPUT_VALUES),
        c,
    );
    let p = s.pp("feature_projection");
    let x = p.out(linear(
        p.pp("projection"),
        layer_norm_affine(p.pp("layer_norm"), x, c.eps),
        c.dim,
    ));
    let s = s.pp("encoder");
    let mut x = x + positional(s.pp("pos_conv_embed.conv"), x, c);
    let mut states = Vec::with_capacity(c.layers + 1);
    for i in 0..c.layers {
        states.push(x);
        x = layer(s.pp("layers").pp(i), x, c);
    }
    states.push(layer_norm_affine(s.pp("layer_norm"), x, c.eps));
    b.output(&speech::HIDDEN_STATES, b.concat(0, &states));
}

/// Strided convolutions, each followed by a norm over channels and GELU: `[1, s] -> [1, t, C]`.
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

/// Grouped convolution over time, padded by half its kernel; an even kernel gives one frame too many.
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

/// `Wav2Vec2EncoderLayerStableLayerNorm.forward`.
fn layer<'g>(s: Scope<'g>, x: Value<'g>, c: &SpeechConfig) -> Value<'g> {
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
    let heads = |name: &str| {
        let x = linear(s.pp(name), y, c.dim);
        x.reshape(&[
            x.dim(0),
            x.dim(1),
            c.heads.into_dim(),
            (c.dim / c.heads).into_dim(),
        ])
        .transpose(&[0, 2, 1, 3])
    };
    let o = heads("q_proj")
        .attention(
            heads("k_proj"),
            heads("v_proj"),
            AttentionOptions::default(),
        )
        .transpose(&[0, 2, 1, 3]);
    let width: Dim = c.dim.into_dim();
    s.out(linear(
        s.pp("out_proj"),
        o.reshape(&[y.dim(0), y.dim(1), width]),
        c.dim,
    ))
}
