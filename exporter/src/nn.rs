//! Layers: functions from a scope and values to a value, with PyTorch's names. How each is lowered to operators is decided here and
//! nowhere else. Not here: models, and operators without weights ([`crate::graph`]).
use crate::graph::{IntoDim, Scope, Transform, Value};
use engines::dim::Dim;

fn bias<'g>(s: Scope<'g>, out_features: &Dim) -> Option<Value<'g>> {
    s.has("bias").then(|| s.weight("bias", [out_features]))
}

/// `nn.Linear`. x `[.., in] -> [.., out]`. The checkpoint's `[out, in]` weight is stored transposed, so that the graph is one MatMul
/// (and an Add, when the checkpoint has a bias).
#[track_caller]
pub fn linear<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
    let (s, out) = (s.enter(), out_features.into_dim());
    let y = x.matmul(s.weight_as("weight", [out.clone(), x.dim(-1)], Transform::Transpose2));
    s.out(if s.has("bias") { y + s.weight("bias", [out]) } else { y })
}

/// `nn.LayerNorm(elementwise_affine=False)` over the last axis, which must be constant.
#[track_caller]
pub fn layer_norm<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    s.out(x.layer_norm(-1, eps, None, None))
}

/// `nn.LayerNorm` over the last axis with `weight` `[D]` and `bias` `[D]`.
#[track_caller]
pub fn layer_norm_affine<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    let (weight, bias) = (s.weight("weight", [x.dim(-1)]), s.weight("bias", [x.dim(-1)]));
    s.out(x.layer_norm(-1, eps, Some(weight), Some(bias)))
}

/// `RMSNorm` over the last axis with `weight` `[D]`.
#[track_caller]
pub fn rms_norm<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    s.out(x.rms_norm(eps, s.weight("weight", [x.dim(-1)])))
}

/// `nn.Embedding`. ids i64 `[..] -> [.., width]`.
#[track_caller]
pub fn embedding<'g>(s: Scope<'g>, ids: Value<'g>, vocab: impl IntoDim, width: impl IntoDim) -> Value<'g> {
    let s = s.enter();
    s.out(s.weight("weight", [vocab.into_dim(), width.into_dim()]).gather(ids, 0))
}

/// Two linear layers named `names` with GELU (tanh formula) between. x `[.., D] -> [.., D]`, D to `hidden` and back.
#[track_caller]
pub fn feed_forward<'g>(s: Scope<'g>, x: Value<'g>, hidden: impl IntoDim, names: [&str; 2]) -> Value<'g> {
    let s = s.enter();
    let y = linear(s.pp(names[0]), x, hidden).gelu_tanh();
    s.out(linear(s.pp(names[1]), y, x.dim(-1)))
}

/// Geometry of a 1-D convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1d {
    /// Taps.
    pub kernel: i64,
    /// Step.
    pub stride: i64,
    /// Zeros `[before, after]`.
    pub pads: [i64; 2],
    /// Channel groups.
    pub groups: i64,
}

impl Default for Conv1d {
    fn default() -> Self {
        Self { kernel: 1, stride: 1, pads: [0; 2], groups: 1 }
    }
}

/// `nn.Conv1d`. x `[B, C, L] -> [B, out, L']`; the bias is added when the checkpoint has one.
#[track_caller]
pub fn conv1d<'g>(s: Scope<'g>, x: Value<'g>, out_channels: impl IntoDim, c: Conv1d) -> Value<'g> {
    let (s, out) = (s.enter(), out_channels.into_dim());
    let w = s.weight("weight", [out.clone(), per_group(x, c.groups), Dim::from(c.kernel)]);
    s.out(x.conv1d(w, bias(s, &out), c.stride, c.pads, c.groups))
}

/// Geometry of a 2-D convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Taps `[height, width]`.
    pub kernel: [i64; 2],
    /// Step `[height, width]`.
    pub stride: [i64; 2],
    /// Zeros `[top, left, bottom, right]`.
    pub pads: [i64; 4],
    /// Channel groups.
    pub groups: i64,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { kernel: [1; 2], stride: [1; 2], pads: [0; 4], groups: 1 }
    }
}

/// `nn.Conv2d`. x `[B, C, H, W] -> [B, out, H', W']`; the bias is added when the checkpoint has one.
#[track_caller]
pub fn conv2d<'g>(s: Scope<'g>, x: Value<'g>, out_channels: impl IntoDim, c: Conv2d) -> Value<'g> {
    let (s, out) = (s.enter(), out_channels.into_dim());
    let [kh, kw] = c.kernel.map(Dim::from);
    let w = s.weight("weight", [out.clone(), per_group(x, c.groups), kh, kw]);
    s.out(x.conv2d(w, bias(s, &out), c.stride, c.pads, c.groups))
}

fn per_group(x: Value<'_>, groups: i64) -> Dim {
    x.dim(1).exact_div(groups).unwrap_or_else(|| x.dim(1))
}

/// Geometry of a causal 3-D convolution; the kernel is the checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CausalConv3d {
    /// Step `[time, height, width]`.
    pub stride: [i64; 3],
    /// Zeros `[top, left, bottom, right]`; `None` keeps the size of an odd kernel.
    pub pads: Option<[i64; 4]>,
}

impl Default for CausalConv3d {
    fn default() -> Self {
        Self { stride: [1; 3], pads: None }
    }
}

/// [`causal_conv3d_with`] at stride 1, keeping height and width: frames `[T + kt - 1, C, h, w] -> [T, out, h, w]`.
#[track_caller]
pub fn causal_conv3d<'g>(s: Scope<'g>, frames: Value<'g>, out_channels: impl IntoDim) -> Value<'g> {
    causal_conv3d_with(s, frames, out_channels, CausalConv3d::default())
}

/// `CausalConv3d` of the VAE (wan/modules/vae2_1.py) over frames that already have their `kt - 1` predecessors in front. The frames are the
/// batch. Lowered as `kt` 2-D convolutions over shifted frame slices, summed, the bias on the last: a 3-D convolution on the CPU unrolls its
/// input `kt * kh * kw` times in memory, a 2-D one only one frame `kh * kw` times.
#[track_caller]
pub fn causal_conv3d_with<'g>(s: Scope<'g>, frames: Value<'g>, out_channels: impl IntoDim, c: CausalConv3d) -> Value<'g> {
    let (s, out) = (s.enter(), out_channels.into_dim());
    // A missing weight is recorded below whatever the kernel; 1 keeps the rest quiet.
    let stored = s.dims("weight").filter(|d| d.len() == 5).unwrap_or(vec![1; 5]);
    let [kt, kh, kw] = [stored[2], stored[3], stored[4]].map(|k| i64::try_from(k).unwrap_or(i64::MAX));
    let pads = c.pads.unwrap_or([kh / 2, kw / 2, (kh - 1) / 2, (kw - 1) / 2]);
    let dims = [out.clone(), frames.dim(1), Dim::from(kt), Dim::from(kh), Dim::from(kw)];
    let mut sum = None;
    for (k, index) in (0..kt).zip(0..) {
        let behind = k + 1 - kt;
        let end = if behind == 0 { i64::MAX } else { behind };
        let slice = if kt == 1 && c.stride[0] == 1 { frames } else { frames.slice_step(0, k, end, c.stride[0]) };
        let w = s.weight_as("weight", dims.clone(), Transform::Select { axis: 2, index });
        let b = if behind == 0 { bias(s, &out) } else { None };
        let y = slice.conv2d(w, b, [c.stride[1], c.stride[2]], pads, 1);
        sum = Some(sum.map_or(y, |sum| sum + y));
    }
    s.out(sum.unwrap_or(frames))
}
