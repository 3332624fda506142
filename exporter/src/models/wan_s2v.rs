//! The causal speech-to-video transformer. Field names are the reference's: `WanModel_S2V` and
//! `CausalWanModel_S2V`, liveavatar/models/wan/causal_model_s2v.py, and
//! liveavatar/models/wan/wan_2_2/modules/s2v/*.py @ 9c2c38d.
//!
//! Types follow the reference's casts. Linear layers and attention compute in the recipe's type;
//! time, modulation, rotation, the residual inside a block and the audio encoder are islands of
//! f32. The reference rounds the prediction and the latents to bf16 after the head; here they stay
//! f32.
//!
//! The tokens of a frame are a dimension of their own (`[B, F, n, D]`), because modulation and
//! audio act on frames.
use crate::graph::{AttentionOptions, Builder, IntoDim, Scope, Transform, Value};
use crate::nn::{attention, layer_norm, layer_norm_affine, linear, rms_norm};
use engines::components::dit::{self, DitConfig};
use engines::components::speech;
use engines::contract::NEXT;
use engines::dim::Dim;

/// Epsilon of the adaptive norm before the audio injection. The other norms take the config's.
const ADAIN_EPS: f32 = 1e-5;
/// Copies of a block's first audio frame before the block, because the audio encoder sees no
/// history.
const AUDIO_LEAD_FRAMES: i64 = 73;

/// Shift, scale and gate of one sub-layer, each `[B, F, 1, D]`.
struct Modulation<'g> {
    shift: Value<'g>,
    scale: Value<'g>,
    gate: Value<'g>,
}

impl<'g> Modulation<'g> {
    fn apply(&self, x: Value<'g>) -> Value<'g> {
        x * (self.scale + 1.0) + self.shift
    }
}

/// A rotary table, cos and sin `[B, L, d/2]`.
#[derive(Clone, Copy)]
struct Rope<'g> {
    cos: Value<'g>,
    sin: Value<'g>,
}

impl<'g> Rope<'g> {
    fn inputs(
        b: &'g Builder<'g>,
        cos: &engines::contract::Port,
        sin: &engines::contract::Port,
    ) -> Self {
        Self {
            cos: b.input(cos),
            sin: b.input(sin),
        }
    }

    /// Rotates `[B, N, L, d]` by interleaved pairs, in f32, and rounds to the type of `x`.
    fn rotate(self, x: Value<'g>) -> Value<'g> {
        x.to_f32().rotary(self.cos, self.sin, true).cast(x.dtype())
    }
}

/// Keys and values, `[B, N, L, d]`.
#[derive(Clone, Copy)]
struct KeyValue<'g> {
    k: Value<'g>,
    v: Value<'g>,
}

/// Builds `dit_text`: rows of the text encoder, padded with zeros, to the model's width. Mirrors
/// `text_embedding` of the reference.
pub(crate) fn text_embed<'g>(b: &'g Builder<'g>, c: &DitConfig) {
    let s = b.root().pp("text_embedding");
    let context = b.input(&dit::CONTEXT).to_compute();
    let y = linear(s.pp(0), context, c.dim).gelu_tanh();
    b.output(&dit::TEXT, s.out(linear(s.pp(2), y, c.dim)));
}

/// Builds `dit_sink_embed`: reference and motion latents to sink tokens, and the modulation of
/// timestep 0. Mirrors `_forward_sink` of the reference.
pub(crate) fn sink_embed<'g>(b: &'g Builder<'g>, c: &DitConfig) {
    let s = b.root();
    let (ref_latents, motion) = (b.input(&dit::REF_LATENTS), b.input(&dit::MOTION_LATENTS));
    let reference = tokens(
        patches(s.pp("patch_embedding"), ref_latents, [1, 2, 2], c),
        c,
    );
    let reference = reference + cond_mask(s, 1, reference, c);
    let motion = frame_packer(s.pp("frame_packer"), motion, c);
    let motion = motion + cond_mask(s, 2, motion, c);
    b.output(&dit::SINK_TOKENS, b.concat(1, &[reference, motion]));
    // The sinusoid of timestep 0 is cos 1, sin 0.
    let half = c.freq_dim / 2;
    let sinusoid = [vec![1.0; half], vec![0.0; half]].concat();
    let sinusoid = b
        .const_f32([1, 1, c.freq_dim], sinusoid)
        .broadcast_leading(ref_latents);
    b.output(&dit::SINK_E0, time(s, sinusoid, c).1);
}

/// Builds `dit_sink_layer`: one block among the sink's own tokens. It returns the layer's
/// condition: the keys before rotation and the values of the sink, and those of the text.
pub(crate) fn sink_layer<'g>(b: &'g Builder<'g>, c: &DitConfig, layer: usize) {
    let s = b.root().pp("blocks").pp(layer);
    let hidden = b.input(&dit::SINK_HIDDEN);
    let text = text_keys(s.pp("cross_attn"), b.input(&dit::TEXT), c);
    let rope = Rope::inputs(b, &dit::SINK_ROPE_COS, &dit::SINK_ROPE_SIN);
    let mut own = None;
    let x = hidden.unsqueeze(1); // [B, C, D] -> [B, 1, C, D]
    let x = block(s, x, b.input(&dit::SINK_E0), text, c, |q, kv| {
        own = Some(kv);
        let (q, k) = (rope.rotate(q), rope.rotate(kv.k));
        attention(q, k, kv.v, AttentionOptions::default())
    });
    b.output(&dit::SINK_HIDDEN_OUT, x.squeeze(1));
    if let Some(KeyValue { k, v }) = own {
        b.output(&dit::SINK_K_OUT, k);
        b.output(&dit::SINK_V_OUT, v);
    }
    b.output(&dit::TEXT_K_OUT, text.k);
    b.output(&dit::TEXT_V_OUT, text.v);
}

/// Builds `dit_embed`: noisy latents, pose and timestep to hidden states and modulation.
pub(crate) fn embed<'g>(b: &'g Builder<'g>, c: &DitConfig) {
    let s = b.root();
    let x = patches(
        s.pp("patch_embedding"),
        b.input(&dit::LATENTS),
        [1, 2, 2],
        c,
    );
    let pose = patches(
        s.pp("cond_encoder"),
        b.input(&dit::POSE_LATENTS),
        [1, 2, 2],
        c,
    );
    let x = tokens(x + pose, c);
    let x = x + cond_mask(s, 0, x, c);
    b.output(&dit::HIDDEN_OUT, s.tap("tokens", x));
    let (e, e0) = time(s, b.input(&dit::SINUSOID), c);
    b.output(&dit::E_OUT, e);
    b.output(&dit::E0_OUT, e0);
}

/// Builds `dit_layer` or `dit_layer_audio`: one block of the noisy tokens against [sink | ring],
/// then the audio residual where the layer has an injector. The ring is written in place first, so
/// its newest rows are this block's own.
pub(crate) fn layer<'g>(b: &'g Builder<'g>, c: &DitConfig, layer: usize) {
    let s = b.root().pp("blocks").pp(layer);
    let hidden = b.input(&dit::HIDDEN);
    let rope = Rope::inputs(b, &dit::ROPE_COS, &dit::ROPE_SIN);
    let sink_rope = Rope::inputs(b, &dit::SINK_ROPE_COS, &dit::SINK_ROPE_SIN);
    // The condition is shared by all lanes (leading 1), or each lane has its own.
    let per_lane = |port| b.input(port).broadcast_leading(hidden);
    let sink = KeyValue {
        k: sink_rope.rotate(per_lane(&dit::SINK_K)),
        v: per_lane(&dit::SINK_V),
    };
    let text = KeyValue {
        k: per_lane(&dit::TEXT_K),
        v: per_lane(&dit::TEXT_V),
    };
    let (slot, kv_len) = (b.input(&dit::SLOT), b.input(&dit::KV_LEN));

    let x = frames(hidden, c);
    let x = block(s, x, b.input(&dit::E0), text, c, |q, kv| {
        let keys = b
            .input(&dit::KEYS)
            .tensor_scatter(rope.rotate(kv.k), slot, -2);
        let values = b.input(&dit::VALUES).tensor_scatter(kv.v, slot, -2);
        b.output_named(&format!("{}{NEXT}", dit::KEYS.name), &dit::KEYS, keys);
        b.output_named(&format!("{}{NEXT}", dit::VALUES.name), &dit::VALUES, values);
        // [B, N, C + S, d]: the keys in use are one prefix, so no mask is needed.
        let (k, v) = (b.concat(2, &[sink.k, keys]), b.concat(2, &[sink.v, values]));
        let options = AttentionOptions {
            kv_len: Some(kv_len),
            ..Default::default()
        };
        attention(rope.rotate(q), k, v, options)
    });
    let x = match c.audio_inject_layers.iter().position(|&l| l == layer) {
        Some(injector) => audio_injection(b.root().pp("audio_injector"), injector, x, c),
        None => x,
    };
    b.output(&dit::HIDDEN_OUT, merge_frames(x, c));
}

/// Builds `dit_head`: hidden states to the noise prediction, and one Euler step.
pub(crate) fn head<'g>(b: &'g Builder<'g>, c: &DitConfig) {
    let s = b.root().pp("head");
    let latents = b.input(&dit::LATENTS);
    let m = s.weight("modulation", [1, 2, c.dim]) + b.input(&dit::E).unsqueeze(2); // [B, F, 2, D]
    let parts = m.split(2, 2);
    let x = layer_norm(s.pp("norm"), frames(b.input(&dit::HIDDEN), c), c.eps).to_f32();
    let x = x * (parts[1] + 1.0) + parts[0];
    let y = linear(s.pp("head"), x, 4 * c.latent_channels); // [B, F, h*w, 4*Z]
    // Channel (p_h * 2 + p_w) * Z + z of token (row, col) is pixel (2*row + p_h, 2*col + p_w) of
    // latent channel z.
    let (batch, f, z) = (latents.dim(0), c.block_frames, c.latent_channels);
    let (rows, cols) = (Dim::symbol("h"), Dim::symbol("w"));
    let two = Dim::from(2);
    let y = y.reshape_from(
        &[
            batch.clone(),
            Dim::from(f as i64),
            rows.clone(),
            cols.clone(),
            two.clone(),
            two.clone(),
            Dim::from(z as i64),
        ],
        &[latents],
    );
    let y = y.transpose(&[0, 6, 1, 2, 4, 3, 5]); // [B, Z, F, h, 2, w, 2]
    let noise_pred = s.out(y.reshape_from(
        &[
            batch,
            z.into_dim(),
            f.into_dim(),
            rows * two.clone(),
            cols * two,
        ],
        &[latents],
    ));
    b.output(&dit::NOISE_PRED, noise_pred);
    let sigmas = b.input(&dit::SIGMAS); // [B, 2]: this step's, the next one's
    let dt = sigmas.slice(1, 1, 2) - sigmas.slice(1, 0, 1);
    let dt = dt.reshape(&[
        sigmas.dim(0),
        Dim::from(1),
        Dim::from(1),
        Dim::from(1),
        Dim::from(1),
    ]);
    b.output(&dit::NEXT_LATENTS, latents + noise_pred * dt);
}

/// Builds `audio_adapter`: speech hidden states of one block to global and local audio tokens.
/// Mirrors `CausalAudioEncoder` and `MotionEncoder_tc` of the reference, with the leading copies of
/// the first frame and the cut after them.
pub(crate) fn audio_adapter<'g>(b: &'g Builder<'g>, c: &DitConfig) {
    let s = b.root().pp("casual_audio_encoder");
    let audio = b.input(&speech::AUDIO).pad_edge(3, AUDIO_LEAD_FRAMES, 0); // [A, Q, E, 85]
    let w = s.weight("weights", [1, c.audio.states, 1, 1]).silu();
    let mixed = (audio * (w / w.reduce_sum(&[1], true))).reduce_sum(&[1], false); // [A, E, 85]

    let s = s.pp("encoder");
    let heads = c.audio.tokens - 1;
    let quarter = c.dim / 4;
    let conv = |name: &str, x: Value<'g>, out: usize, stride: i64| {
        let s = s.pp(name).pp("conv");
        let w = s.weight("weight", [Dim::from(out as i64), x.dim(1), Dim::from(3)]);
        x.pad_edge(2, 2, 0)
            .conv1d(w, Some(s.weight("bias", [out])), stride, [0, 0], 1)
    };
    let norm = |x: Value<'g>| {
        layer_norm(s, x.transpose(&[0, 2, 1]), c.eps)
            .silu()
            .transpose(&[0, 2, 1])
    };
    let tail = |x: Value<'g>| {
        norm(conv(
            "conv3",
            norm(conv("conv2", norm(x), c.dim / 2, 2)),
            c.dim,
            2,
        ))
        .transpose(&[0, 2, 1])
    };
    // Frames after two convolutions of stride 2; the newest are the block's own.
    let total = (AUDIO_LEAD_FRAMES + 4 * c.block_frames as i64 + 3) / 4;
    let first = total - c.block_frames as i64;

    let local = conv("conv1_local", mixed, heads * quarter, 1); // [A, heads * D/4, 85]
    let actors = mixed.dim(0);
    let frames = local.dim(2);
    let local = local.reshape(&[
        actors.clone() * Dim::from(heads as i64),
        quarter.into_dim(),
        frames,
    ]); // heads join the batch
    let local = tail(local)
        .reshape(&[actors, heads.into_dim(), total.into_dim(), c.dim.into_dim()])
        .transpose(&[0, 2, 1, 3]);
    let local = local.slice(1, first, total); // [A, F, heads, D]
    let padding = s.weight("padding_tokens", [1, 1, 1, c.dim]);
    let padding = b
        .concat(1, &vec![padding; c.block_frames])
        .broadcast_leading(local);
    b.output(&speech::AUDIO_LOCAL_OUT, b.concat(2, &[local, padding]));

    let global = tail(conv("conv1_global", mixed, quarter, 1));
    let global = s.tap("global", linear(s.pp("final_linear"), global, c.dim));
    b.output(&speech::AUDIO_GLOBAL_OUT, global.slice(1, first, total));
}

/// Applies one transformer block without the audio residual: `x [B, F, n, D]`, `e0 [B, F, 6, D]`.
/// `attend` maps queries and keys/values, before rotation, to the attention's result
/// `[B, N, L, d]`. Mirrors `CausalWanS2VAttentionBlock.forward` of the reference.
fn block<'g>(
    s: Scope<'g>,
    x: Value<'g>,
    e0: Value<'g>,
    text: KeyValue<'g>,
    c: &DitConfig,
    attend: impl FnOnce(Value<'g>, KeyValue<'g>) -> Value<'g>,
) -> Value<'g> {
    let [attn, ffn] = modulation(s, e0, c);
    let y = attn.apply(layer_norm(s.pp("norm1"), x, c.eps).to_f32());
    let y = self_attention(s.pp("self_attn"), y.to_compute(), c, attend);
    let x = x.to_f32() + y.to_f32() * attn.gate;
    let y = layer_norm_affine(s.pp("norm3"), x.to_compute(), c.eps);
    let x = x + cross_attention(s.pp("cross_attn"), y, text, c).to_f32();
    let y = ffn.apply(layer_norm(s.pp("norm2"), x, c.eps));
    let y = feed_forward(s.pp("ffn"), y.to_compute(), c);
    s.out((x + y.to_f32() * ffn.gate).to_compute())
}

/// Splits the modulation, in the order: shift, scale, gate of self attention, then of the
/// feed-forward.
fn modulation<'g>(s: Scope<'g>, e0: Value<'g>, c: &DitConfig) -> [Modulation<'g>; 2] {
    let m = (s.weight("modulation", [1, 6, c.dim]) + e0).split(2, 6);
    [0, 3].map(|i| Modulation {
        shift: m[i],
        scale: m[i + 1],
        gate: m[i + 2],
    })
}

fn self_attention<'g>(
    s: Scope<'g>,
    x: Value<'g>,
    c: &DitConfig,
    attend: impl FnOnce(Value<'g>, KeyValue<'g>) -> Value<'g>,
) -> Value<'g> {
    let q = heads(
        rms_norm(s.pp("norm_q"), linear(s.pp("q"), x, c.dim), c.eps),
        c,
    );
    let k = heads(
        rms_norm(s.pp("norm_k"), linear(s.pp("k"), x, c.dim), c.eps),
        c,
    );
    let v = heads(linear(s.pp("v"), x, c.dim), c);
    let y = merge_heads(attend(q, KeyValue { k, v }), x, c);
    s.out(linear(s.pp("o"), y, c.dim))
}

/// Computes the keys and values of the text for one layer, `[B, N, M, d]`. The padding rows take
/// part.
fn text_keys<'g>(s: Scope<'g>, text: Value<'g>, c: &DitConfig) -> KeyValue<'g> {
    let split = |x: Value<'g>| {
        x.reshape(&[
            x.dim(0),
            x.dim(1),
            c.heads.into_dim(),
            c.head_dim().into_dim(),
        ])
        .transpose(&[0, 2, 1, 3])
    };
    let k = rms_norm(s.pp("norm_k"), linear(s.pp("k"), text, c.dim), c.eps);
    KeyValue {
        k: split(k),
        v: split(linear(s.pp("v"), text, c.dim)),
    }
}

fn cross_attention<'g>(s: Scope<'g>, x: Value<'g>, text: KeyValue<'g>, c: &DitConfig) -> Value<'g> {
    let q = heads(
        rms_norm(s.pp("norm_q"), linear(s.pp("q"), x, c.dim), c.eps),
        c,
    );
    let y = attention(q, text.k, text.v, AttentionOptions::default());
    let y = merge_heads(y, x, c);
    s.out(linear(s.pp("o"), y, c.dim))
}

fn feed_forward<'g>(s: Scope<'g>, x: Value<'g>, c: &DitConfig) -> Value<'g> {
    let y = linear(s.pp(0), x, c.ffn_dim).gelu_tanh(); // s.pp(1) is GELU: no weights
    s.out(linear(s.pp(2), y, c.dim))
}

/// Adds each actor's audio to `x [B, F, n, D]` where that actor is. Mirrors
/// `after_transformer_block` of the reference.
fn audio_injection<'g>(s: Scope<'g>, injector: usize, x: Value<'g>, c: &DitConfig) -> Value<'g> {
    let b = s.builder();
    let adain = s.pp("injector_adain_layers").pp(injector);
    let style = linear(
        adain.pp("linear"),
        silu(b.input(&dit::AUDIO_GLOBAL).to_compute()),
        2 * c.dim,
    )
    .unsqueeze(3); // [B, A, F, 1, 2*D]
    let parts = style.to_f32().split(4, 2); // shift, scale
    let x = x.to_f32();
    let z = layer_norm(adain.pp("norm"), x, ADAIN_EPS).unsqueeze(1); // [B, 1, F, n, D]
    let z = adain.out(z * (parts[1] + 1.0) + parts[0]).to_compute(); // [B, A, F, n, D]

    // A frame has five keys. The attention is written as its parts, because each frame of each
    // actor is a batch of its own. It is in f32, because a rounded score is a wrong weight.
    let s = s.pp("injector").pp(injector);
    let local = b.input(&dit::AUDIO_LOCAL).to_compute(); // [B, A, F, K, D]
    let split = |x: Value<'g>| {
        x.reshape(&[
            x.dim(0),
            x.dim(1),
            x.dim(2),
            x.dim(3),
            c.heads.into_dim(),
            c.head_dim().into_dim(),
        ])
        .to_f32()
    };
    let q = split(rms_norm(s.pp("norm_q"), linear(s.pp("q"), z, c.dim), c.eps))
        .transpose(&[0, 1, 2, 4, 3, 5]); // [B, A, F, N, n, d]
    let k = split(rms_norm(
        s.pp("norm_k"),
        linear(s.pp("k"), local, c.dim),
        c.eps,
    ))
    .transpose(&[0, 1, 2, 4, 5, 3]); // [.., d, K]
    let v = split(linear(s.pp("v"), local, c.dim)).transpose(&[0, 1, 2, 4, 3, 5]); // [.., K, d]
    let scale = 1.0 / (c.head_dim() as f32).sqrt();
    let y = (q.matmul(k) * scale)
        .softmax(-1)
        .matmul(v)
        .transpose(&[0, 1, 2, 4, 3, 5]);
    let y = y.reshape(&[z.dim(0), z.dim(1), z.dim(2), z.dim(3), c.dim.into_dim()]);
    let r = s.out(linear(s.pp("o"), y.to_compute(), c.dim)).to_f32();
    let heard = (r * b.input(&dit::ACTOR_MASK).unsqueeze(4)).reduce_sum(&[1], false);
    (x + heard).to_compute()
}

/// Applies SiLU and rounds once.
fn silu<'g>(x: Value<'g>) -> Value<'g> {
    x.to_f32().silu().cast(x.dtype())
}

/// Computes the time embedding `e [B, F, D]` and its projection `e0 [B, F, 6, D]`.
fn time<'g>(s: Scope<'g>, sinusoid: Value<'g>, c: &DitConfig) -> (Value<'g>, Value<'g>) {
    let t = s.pp("time_embedding");
    let e = t.out(linear(
        t.pp(2),
        linear(t.pp(0), sinusoid, c.dim).silu(),
        c.dim,
    ));
    let p = s.pp("time_projection");
    let e0 = p.out(linear(p.pp(1), e.silu(), 6 * c.dim));
    (
        e,
        e0.reshape(&[e.dim(0), e.dim(1), 6.into_dim(), c.dim.into_dim()]),
    )
}

/// Returns the row of `trainable_cond_mask`, `[D]`, to add to `x`: 0 noisy, 1 reference, 2 motion.
fn cond_mask<'g>(s: Scope<'g>, row: usize, x: Value<'g>, c: &DitConfig) -> Value<'g> {
    s.pp("trainable_cond_mask").weight_of(
        x.dtype(),
        "weight",
        [3, c.dim],
        Transform::Select {
            axis: 0,
            index: row,
        },
    )
}

/// Embeds non-overlapping patches of f32 latents: `[B, Z, T, H, W] -> [B, D, T/kt, H/kh, W/kw]`.
fn patches<'g>(s: Scope<'g>, x: Value<'g>, kernel: [usize; 3], c: &DitConfig) -> Value<'g> {
    let [kt, kh, kw] = kernel;
    let x = x.to_compute();
    let w = s.weight_like(x, "weight", [c.dim, c.latent_channels, kt, kh, kw]);
    s.out(x.conv3d(
        w,
        Some(s.weight_like(x, "bias", [c.dim])),
        [kt as i64, kh as i64, kw as i64],
        [0; 6],
        1,
    ))
}

/// Reorders `[B, D, T, h, w] -> [B, T*h*w, D]`, frame-major.
fn tokens<'g>(x: Value<'g>, c: &DitConfig) -> Value<'g> {
    let count = x.dim(2) * x.dim(3) * x.dim(4);
    x.reshape(&[x.dim(0), c.dim.into_dim(), count])
        .transpose(&[0, 2, 1])
}

/// Packs the motion frames: the newest at full token size, the two before it at half size, the
/// sixteen before those at quarter size. Mirrors `FramePackMotioner` of the reference.
fn frame_packer<'g>(s: Scope<'g>, motion: Value<'g>, c: &DitConfig) -> Value<'g> {
    let newest = tokens(
        patches(s.pp("proj"), motion.slice(2, 18, 19), [1, 2, 2], c),
        c,
    );
    let half = tokens(
        patches(s.pp("proj_2x"), motion.slice(2, 16, 18), [2, 4, 4], c),
        c,
    );
    let quarter = tokens(
        patches(s.pp("proj_4x"), motion.slice(2, 0, 16), [4, 8, 8], c),
        c,
    );
    s.out(s.builder().concat(1, &[newest, half, quarter]))
}

/// Reshapes `[B, F*n, D] -> [B, F, n, D]`.
fn frames<'g>(x: Value<'g>, c: &DitConfig) -> Value<'g> {
    let per_frame = x
        .dim(1)
        .exact_div(c.block_frames as i64)
        .unwrap_or_else(|| x.dim(1));
    x.reshape(&[
        x.dim(0),
        c.block_frames.into_dim(),
        per_frame,
        c.dim.into_dim(),
    ])
}

/// Reshapes `[B, F, n, D] -> [B, F*n, D]`.
fn merge_frames<'g>(x: Value<'g>, c: &DitConfig) -> Value<'g> {
    x.reshape(&[x.dim(0), x.dim(1) * x.dim(2), c.dim.into_dim()])
}

/// Splits heads: `[B, F, n, D] -> [B, N, F*n, d]`.
fn heads<'g>(x: Value<'g>, c: &DitConfig) -> Value<'g> {
    let tokens = x.dim(1) * x.dim(2);
    x.reshape(&[
        x.dim(0),
        tokens,
        c.heads.into_dim(),
        c.head_dim().into_dim(),
    ])
    .transpose(&[0, 2, 1, 3])
}

/// Joins heads: `[B, N, F*n, d] -> [B, F, n, D]`, with the frames of `like`.
fn merge_heads<'g>(y: Value<'g>, like: Value<'g>, c: &DitConfig) -> Value<'g> {
    y.transpose(&[0, 2, 1, 3])
        .reshape(&[like.dim(0), like.dim(1), like.dim(2), c.dim.into_dim()])
}
