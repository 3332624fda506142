//! The Wan 2.1 video VAE as a stream. One walk over the checkpoint's module list serves the encoder
//! and the decoder, and the first chunk and the next ones. They differ in the source of the frames
//! before a causal convolution. Names are the reference's:
//! liveavatar/models/wan/wan_2_2/modules/vae2_1.py @ 9c2c38d. Convolutions and feature caches have
//! the recipe's type. Norms, their activations and the statistics of latents are f32, as in the
//! reference's autocast.
//!
//! A value has one of two layouts: a video `[1, C, T, h, w]`, or its frames `[T, C, h, w]`. Only
//! convolutions over time need a video. Where zeros leave a convolution with one frame, it runs on
//! frames, because 2-D convolutions are faster. Every other operator follows the layout it meets.
//! Without zeros every value is a video.
use crate::graph::{AttentionOptions, Builder, IntoDim, Scope, Transform, Value};
use crate::nn;
use engines::components::vae::{self, LATENT_MEAN, LATENT_STD, VaeConfig};
use engines::contract::{Contract, NEXT, StateKind};
use engines::dim::Dim;
use engines::recipe::Recipe;

/// Frames of context that a causal convolution of kernel 3 needs.
const CONTEXT: i64 = 2;

/// The half of the network and the chunk of the stream, both fixed by the contract, and the parts
/// that are zero.
#[derive(Clone, Copy)]
struct Stream<'c> {
    contract: &'static Contract,
    config: &'c VaeConfig,
}

impl Stream<'_> {
    /// Whether the chunk is the first, which has no frames before it.
    fn starts(self) -> bool {
        self.contract.state_kind == StateKind::Produce
    }

    /// Whether the branch of the module at `s` adds zero.
    fn leaves_out(self, s: Scope<'_>) -> bool {
        self.config.idle_branches.contains(&s.path())
    }

    /// Whether the causal convolution at `s` sees one frame at a time.
    fn sees_one_frame(self, s: Scope<'_>) -> bool {
        self.config.frame_convolutions.contains(&s.path())
    }

    /// Whether 2-D convolutions run on frames. A model without zeros keeps every value a video.
    fn prefers_frames(self) -> bool {
        !self.config.frame_convolutions.is_empty()
    }

    /// Returns a value for a 2-D convolution.
    fn spatial(self, x: Value<'_>) -> Value<'_> {
        match self.prefers_frames() {
            true => as_frames(x),
            false => x,
        }
    }

    /// Returns `x` behind the remembered frames of the convolution at `s` (zeros at the start), and
    /// remembers the newest `keep` frames.
    fn extend<'g>(self, s: Scope<'g>, x: Value<'g>, keep: i64) -> Value<'g> {
        let b = s.builder();
        let path = s.path();
        // A convolution without a port does not fit the contract; the builder reports the missing
        // output.
        let Some(port) = self.contract.state.iter().find(|p| p.name == path) else {
            return x;
        };
        let all = if self.starts() {
            x.pad_zero(2, keep, 0)
        } else {
            b.concat(2, &[b.input(port), x])
        };
        b.output_named(
            &format!("{path}{NEXT}"),
            port,
            all.slice(2, -keep, i64::MAX),
        );
        all
    }
}

/// Builds `vae_encoder_first` and `vae_encoder_next`: pixels to the normalised mean of one latent
/// frame.
pub(crate) fn encoder<'g>(b: &'g Builder<'g>, contract: &'static Contract, c: &VaeConfig) {
    let stream = Stream {
        contract,
        config: c,
    };
    let s = b.root().pp("encoder");
    let pixels = b.input(&contract.inputs[0]).to_compute();
    let x = causal_conv(stream, s.pp("conv1"), pixels, c.dim);
    let x = walk(stream, s.pp("downsamples"), x);
    let x = walk(stream, s.pp("middle"), x);
    let x = s.out(causal_conv(
        stream,
        s.pp("head.2"),
        activated(s.pp("head.0"), x),
        2 * c.latent_channels,
    ));
    let mean_logvar = pointwise(b.root().pp("conv1"), as_video(x), 2 * c.latent_channels);
    let mu = mean_logvar.slice(1, 0, c.latent_channels as i64).to_f32();
    let [mean, std] = statistics(b, c);
    b.output(&vae::LATENTS_OUT, (mu - mean) / std);
}

/// Builds `vae_decoder_first` and `vae_decoder_next`: one latent frame to pixels, as f32 and as
/// bytes.
pub(crate) fn decoder<'g>(b: &'g Builder<'g>, contract: &'static Contract, c: &VaeConfig) {
    let stream = Stream {
        contract,
        config: c,
    };
    let [mean, std] = statistics(b, c);
    let z = (b.input(&vae::LATENTS) * std + mean).to_compute();
    let x = pointwise(b.root().pp("conv2"), z, c.latent_channels);
    let s = b.root().pp("decoder");
    let x = causal_conv(stream, s.pp("conv1"), x, 4 * c.dim);
    let x = walk(stream, s.pp("middle"), x);
    let x = walk(stream, s.pp("upsamples"), x);
    let x = s.out(causal_conv(
        stream,
        s.pp("head.2"),
        activated(s.pp("head.0"), x),
        3,
    ));
    let frames = x.to_f32().clip(-1.0, 1.0);
    b.output(&contract.outputs[0], as_video(frames));
    let bytes = (frames + 1.0) / 2.0 * 255.0;
    let bytes = match is_frames(bytes) {
        true => bytes.transpose(&[0, 2, 3, 1]),
        false => bytes.squeeze(0).transpose(&[1, 2, 3, 0]),
    };
    b.output(
        &contract.outputs[1],
        bytes.cast(engines::contract::DType::U8),
    );
}

fn statistics<'g>(b: &'g Builder<'g>, c: &VaeConfig) -> [Value<'g>; 2] {
    [LATENT_MEAN, LATENT_STD].map(|x| b.const_f32([1, c.latent_channels, 1, 1, 1], x.to_vec()))
}

/// Whether the layout of `x` is `[T, C, h, w]`.
fn is_frames(x: Value<'_>) -> bool {
    x.rank() == 4
}

/// Returns a value as `[T, C, h, w]`.
fn as_frames(x: Value<'_>) -> Value<'_> {
    match (is_frames(x), x.dim(2).as_const()) {
        (true, _) => x,
        (false, Some(1)) => x.squeeze(2),
        (false, _) => x.squeeze(0).transpose(&[1, 0, 2, 3]),
    }
}

/// Returns a value as `[1, C, T, h, w]`.
fn as_video(x: Value<'_>) -> Value<'_> {
    match (is_frames(x), x.dim(0).as_const()) {
        (false, _) => x,
        (true, Some(1)) => x.unsqueeze(2),
        (true, _) => x.transpose(&[1, 0, 2, 3]).unsqueeze(0),
    }
}

/// Returns `x` in the layout of `like`.
fn laid_like<'g>(x: Value<'g>, like: Value<'g>) -> Value<'g> {
    match is_frames(like) {
        true => as_frames(x),
        false => as_video(x),
    }
}

/// Applies a list of modules. The tensors of a module show its kind.
fn walk<'g>(stream: Stream<'_>, s: Scope<'g>, mut x: Value<'g>) -> Value<'g> {
    for i in s.list("") {
        let m = s.pp(i);
        x = if m.has("residual.0.gamma") {
            residual(stream, m, x)
        } else if m.has("to_qkv.weight") {
            attention(stream, m, x)
        } else if stream.contract.name.contains("encoder") {
            downsample(stream, m, x)
        } else {
            upsample(stream, m, x)
        };
    }
    x
}

/// Mirrors `ResidualBlock.forward`.
fn residual<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    let out = s.dims("residual.2.weight").map_or(0, |d| d[0]);
    let shortcut = |x| match s.has("shortcut.weight") {
        true => pointwise(s.pp("shortcut"), x, out),
        false => x,
    };
    if stream.leaves_out(s) {
        return s.out(shortcut(x));
    }
    let y = causal_conv(
        stream,
        s.pp("residual.2"),
        activated(s.pp("residual.0"), x),
        out,
    );
    let y = causal_conv(
        stream,
        s.pp("residual.6"),
        activated(s.pp("residual.3"), y),
        out,
    );
    s.out(shortcut(laid_like(x, y)) + y)
}

/// Applies attention with one head over the pixels of each frame. Mirrors `AttentionBlock.forward`.
fn attention<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    if stream.leaves_out(s) {
        return s.out(x);
    }
    let x = as_video(x);
    let (channels, frames) = (x.dim(1), x.dim(2));
    let width = s.dims("proj.weight").map_or(0, |d| d[0]);
    let qkv = frame_conv(
        s.pp("to_qkv"),
        rms(s.pp("norm"), x).to_compute(),
        3 * width,
        [1, 1, 1],
        [0; 6],
    );
    // [1, C, T, h, w] -> [1, T, h*w, C]: the frames take the place of heads.
    let pixels = x.dim(3) * x.dim(4);
    let heads = |v: Value<'g>| {
        v.reshape(&[
            Dim::from(1),
            channels.clone(),
            frames.clone(),
            pixels.clone(),
        ])
        .transpose(&[0, 2, 3, 1])
    };
    let qkv = qkv.split(1, 3);
    let [q, k, v] = [0, 1, 2].map(|i| heads(qkv[i]));
    // The published head is wider than any fused kernel takes. The attention is written as its
    // parts at every size, so that small models show the behaviour of large ones.
    let y = match s.builder().recipe() {
        Recipe::Fp32 => nn::attention(q, k, v, AttentionOptions::default()),
        _ => nn::attention_in_parts(q, k, v, None),
    };
    let y = y.transpose(&[0, 3, 1, 2]).reshape_from(x.dims(), &[x]);
    s.out(x + frame_conv(s.pp("proj"), y, width, [1, 1, 1], [0; 6]))
}

/// Halves the rows and columns. With a `time_conv` it halves the frames too, except in the first
/// chunk, which is only remembered. Mirrors `Resample.forward`, downsample2d and downsample3d.
fn downsample<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    let width = s.dims("resample.1.weight").map_or(0, |d| d[0]);
    let x = stream.spatial(x);
    // The zeros stand to the right and below only.
    let x = frame_conv(s.pp("resample.1"), x, width, [1, 2, 2], [0, 0, 0, 0, 1, 1]);
    if !s.has("time_conv.weight") {
        return s.out(x);
    }
    let (t, x) = (s.pp("time_conv"), as_video(x));
    let port = stream.contract.state.iter().find(|p| p.name == t.path());
    if let (true, Some(port)) = (stream.starts(), port) {
        s.builder().output_named(
            &format!("{}{NEXT}", port.name),
            port,
            x.slice(2, -1, i64::MAX),
        );
        // Only the graph of the next chunk reads it.
        return s.out(x);
    }
    let all = stream.extend(t, x, 1);
    let w = t.weight_like(x, "weight", [width, width, 3, 1, 1]);
    let bias = t.weight_like(x, "bias", [width]);
    s.out(t.out(all.conv3d(w, Some(bias), [2, 1, 1], [0; 6], 1)))
}

/// Doubles the rows and columns. With a `time_conv` it doubles the frames too, except for the very
/// first latent frame. Mirrors `Resample.forward`, upsample2d and upsample3d.
fn upsample<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    let x = if s.has("time_conv.weight") && !stream.starts() {
        double_frames(stream, s.pp("time_conv"), x)
    } else {
        x
    };
    let x = stream.spatial(x);
    let out = s.dims("resample.1.weight").map_or(0, |d| d[0]);
    if is_frames(x) {
        return s.out(doubling_conv(s.pp("resample.1"), x, out));
    }
    let x = x.squeeze(0).resize_nearest2x(2).unsqueeze(0);
    s.out(frame_conv(
        s.pp("resample.1"),
        x,
        out,
        [1, 1, 1],
        [0, 1, 1, 0, 1, 1],
    ))
}

/// Doubles the rows and columns of frames and applies a 3x3 convolution. Each row of the result
/// sees two rows of `x`, because neighbours in the doubled picture are equal. Two convolutions with
/// sums of weights give the two rows of each place, with 2/3 of the products. Columns are doubled
/// before: to put them between each other afterwards would take longer.
fn doubling_conv<'g>(s: Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    let stored = [out.into_dim(), x.dim(1), 3.into_dim(), 3.into_dim()];
    let bias = s.weight_like(x, "bias", [out]);
    let wide = x.resize_nearest2x(1);
    let rows = [0_usize, 1].map(|row| {
        // The first of two rows sees the row above with one weight and its own with two, the
        // second its own with two and the row below with one.
        let sum = Transform::Fold {
            axis: 2,
            index: 1 - row,
        };
        let w = s.weight_of(x.dtype(), "weight", stored.clone(), sum);
        let above = i64::from(row == 0);
        wide.conv2d(w, Some(bias), [1, 1], [above, 1, 1 - above, 1], 1)
            .unsqueeze(3)
    });
    // [T, C, h, 2, 2*w] -> [1, T, C, 2*h, 2*w]: the columns keep their place, as Reshape wants.
    let pairs = s.builder().concat(3, &rows);
    let [frames, channels, places, columns] = [0, 1, 2, 4].map(|axis| pairs.dim(axis));
    let doubled = [
        Dim::from(1),
        frames,
        channels,
        places * Dim::from(2),
        columns,
    ];
    s.out(pairs.reshape(doubled).squeeze(0))
}

/// Applies a causal convolution to twice the channels, whose halves are frames `2*i` and `2*i + 1`.
fn double_frames<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    let x = as_video(x);
    let width = s.dims("weight").map_or(0, |d| d[1]);
    let w = s.weight_like(x, "weight", [2 * width, width, 3, 1, 1]);
    let y = stream.extend(s, x, CONTEXT).conv3d(
        w,
        Some(s.weight_like(x, "bias", [2 * width])),
        [1, 1, 1],
        [0; 6],
        1,
    );
    let frames = x.dim(2).as_const().unwrap_or(1);
    if stream.prefers_frames() && frames == 1 {
        // [1, 2*C, 1, h, w] -> [2, C, h, w].
        let [rows, columns] = [3, 4].map(|axis| x.dim(axis));
        return s.out(
            y.squeeze(2)
                .reshape([2.into_dim(), width.into_dim(), rows, columns]),
        );
    }
    let halves = y.split(1, 2);
    let interleaved: Vec<Value<'g>> = (0..frames)
        .flat_map(|i| [halves[0].slice(2, i, i + 1), halves[1].slice(2, i, i + 1)])
        .collect();
    s.out(s.builder().concat(2, &interleaved))
}

/// Applies a 3x3x3 convolution that sees only this frame and earlier ones. Mirrors
/// `CausalConv3d.forward`.
fn causal_conv<'g>(stream: Stream<'_>, s: Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    let stored = [
        out.into_dim(),
        x.dim(1),
        3.into_dim(),
        3.into_dim(),
        3.into_dim(),
    ];
    if stream.sees_one_frame(s) {
        let x = as_frames(x);
        let newest = Transform::Select { axis: 2, index: 2 };
        let w = s.weight_of(x.dtype(), "weight", stored, newest);
        let bias = s.weight_like(x, "bias", [out]);
        return s.out(x.conv2d(w, Some(bias), [1, 1], [1; 4], 1));
    }
    let x = as_video(x);
    let w = s.weight_like(x, "weight", stored);
    let all = stream.extend(s, x, CONTEXT);
    s.out(all.conv3d(
        w,
        Some(s.weight_like(x, "bias", [out])),
        [1, 1, 1],
        [0, 1, 1, 0, 1, 1],
        1,
    ))
}

/// Applies a 1x1x1 convolution, which needs no context and no cache.
fn pointwise<'g>(s: Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    let stored = [
        out.into_dim(),
        x.dim(1),
        1.into_dim(),
        1.into_dim(),
        1.into_dim(),
    ];
    if is_frames(x) {
        let flat = Transform::Select { axis: 2, index: 0 };
        let w = s.weight_of(x.dtype(), "weight", stored, flat);
        let bias = s.weight_like(x, "bias", [out]);
        return s.out(x.conv2d(w, Some(bias), [1, 1], [0; 4], 1));
    }
    let w = s.weight_like(x, "weight", stored);
    let bias = s.weight_like(x, "bias", [out]);
    s.out(x.conv3d(w, Some(bias), [1, 1, 1], [0; 6], 1))
}

/// Applies a 2-D convolution to every frame. On a video its kernel gets a time extent of 1. `pads`
/// are (t, h, w) before, then after; both of t are zero.
fn frame_conv<'g>(
    s: Scope<'g>,
    x: Value<'g>,
    out: usize,
    stride: [i64; 3],
    pads: [i64; 6],
) -> Value<'g> {
    let stored = s.dims("weight").unwrap_or_else(|| vec![out, 0, 1, 1]);
    let kernel = stored.last().copied().unwrap_or(1);
    let in_channels = stored.get(1).copied().unwrap_or(0);
    let dims = [
        out.into_dim(),
        x.dim(1),
        kernel.into_dim(),
        kernel.into_dim(),
    ];
    if is_frames(x) {
        let ([_, down, across], [_, top, left, _, bottom, right]) = (stride, pads);
        let w = s.weight_like(x, "weight", dims);
        let bias = s.weight_like(x, "bias", [out]);
        let pads = [top, left, bottom, right];
        return s.out(x.conv2d(w, Some(bias), [down, across], pads, 1));
    }
    let flat = Transform::Reshape(vec![out, in_channels, 1, kernel, kernel]);
    let w = s.weight_of(x.dtype(), "weight", dims, flat);
    let bias = s.weight_like(x, "bias", [out]);
    s.out(x.conv3d(w, Some(bias), stride, pads, 1))
}

/// Applies the norm and SiLU before a convolution.
fn activated<'g>(s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    rms(s, x).silu().to_compute()
}

/// Computes `x / max(|x|, 1e-12) * sqrt(C) * gamma` in f32; the norm is over channels. Mirrors
/// `RMS_norm.forward`.
fn rms<'g>(s: Scope<'g>, x: Value<'g>) -> Value<'g> {
    let x = x.to_f32();
    let stored = s.dims("gamma").unwrap_or_default();
    let channels = stored.first().copied().unwrap_or(0);
    let mut shape = vec![1; x.rank()];
    shape[1] = channels;
    let gamma = s.weight_as("gamma", stored.clone(), Transform::Reshape(shape));
    let scale = (channels as f32).sqrt();
    if is_frames(x) {
        // ONNX Runtime reduces a sum along channels in a tenth of the time of a norm.
        let norm = (x * x).reduce_sum(&[1], true).sqrt().maximum(1e-12);
        return s.out(x / norm * (gamma * scale));
    }
    s.out(x / x.reduce_l2(&[1], true).maximum(1e-12) * scale * gamma)
}
