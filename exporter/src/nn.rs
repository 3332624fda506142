//! Layers: functions from a scope and values to a value, with PyTorch's names. How each is lowered to operators is decided here and
//! nowhere else. Not here: models, and operators without weights ([`crate::graph`]).
use crate::graph::{IntoDim, Scope, Transform, Value};
use engines::dim::Dim;

fn bias<'g>(s: Scope<'g>, out_features: &Dim) -> Option<Value<'g>> {
    s.has("bias").then(|| s.weight("bias", [out_features]))
}

/// `nn.Linear`. x `[.., in] -> [.., out]`. The checkpoint's `[out, in]` weight is stored transposed, so that the graph is one MatMul
/// (and an Add, when the checkpoint has a bias). Where a missing bias must be an error, use [`linear_biased`].
#[track_caller]
pub fn linear<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
    if s.has("bias") {
        linear_biased(s, x, out_features)
    } else {
        linear_no_bias(s, x, out_features)
    }
}

/// [`linear`] that must have a bias: a checkpoint without one is an error.
#[track_caller]
pub fn linear_biased<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
    let (s, out) = (s.enter(), out_features.into_dim());
    let y = x.matmul(s.weight_as("weight", [out.clone(), x.dim(-1)], Transform::Transpose2));
    s.out(y + s.weight("bias", [out]))
}

/// `nn.Linear(bias=False)`; a bias in the checkpoint stays unread.
#[track_caller]
pub fn linear_no_bias<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
    let s = s.enter();
    s.out(x.matmul(s.weight_as(
        "weight",
        [out_features.into_dim(), x.dim(-1)],
        Transform::Transpose2,
    )))
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
    let (weight, bias) = (
        s.weight("weight", [x.dim(-1)]),
        s.weight("bias", [x.dim(-1)]),
    );
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
pub fn embedding<'g>(
    s: Scope<'g>,
    ids: Value<'g>,
    vocab: impl IntoDim,
    width: impl IntoDim,
) -> Value<'g> {
    let s = s.enter();
    s.out(
        s.weight("weight", [vocab.into_dim(), width.into_dim()])
            .gather(ids, 0),
    )
}

/// Two linear layers named `names` with GELU (tanh formula) between. x `[.., D] -> [.., D]`, D to `hidden` and back.
#[track_caller]
pub fn feed_forward<'g>(
    s: Scope<'g>,
    x: Value<'g>,
    hidden: impl IntoDim,
    names: [&str; 2],
) -> Value<'g> {
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
        Self {
            kernel: 1,
            stride: 1,
            pads: [0; 2],
            groups: 1,
        }
    }
}

/// `nn.Conv1d`. x `[B, C, L] -> [B, out, L']`; the bias is added when the checkpoint has one.
#[track_caller]
pub fn conv1d<'g>(s: Scope<'g>, x: Value<'g>, out_channels: impl IntoDim, c: Conv1d) -> Value<'g> {
    let (s, out) = (s.enter(), out_channels.into_dim());
    let w = s.weight(
        "weight",
        [out.clone(), per_group(x, c.groups), Dim::from(c.kernel)],
    );
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
        Self {
            kernel: [1; 2],
            stride: [1; 2],
            pads: [0; 4],
            groups: 1,
        }
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
        Self {
            stride: [1; 3],
            pads: None,
        }
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
pub fn causal_conv3d_with<'g>(
    s: Scope<'g>,
    frames: Value<'g>,
    out_channels: impl IntoDim,
    c: CausalConv3d,
) -> Value<'g> {
    let (s, out) = (s.enter(), out_channels.into_dim());
    // A missing weight is recorded below whatever the kernel; 1 keeps the rest quiet.
    let stored = s
        .dims("weight")
        .filter(|d| d.len() == 5)
        .unwrap_or(vec![1; 5]);
    let [kt, kh, kw] =
        [stored[2], stored[3], stored[4]].map(|k| i64::try_from(k).unwrap_or(i64::MAX));
    let pads = c
        .pads
        .unwrap_or([kh / 2, kw / 2, (kh - 1) / 2, (kw - 1) / 2]);
    let dims = [
        out.clone(),
        frames.dim(1),
        Dim::from(kt),
        Dim::from(kh),
        Dim::from(kw),
    ];
    let mut sum = None;
    for (k, index) in (0..kt).zip(0..) {
        let behind = k + 1 - kt;
        let end = if behind == 0 { i64::MAX } else { behind };
        let slice = if kt == 1 && c.stride[0] == 1 {
            frames
        } else {
            frames.slice_step(0, k, end, c.stride[0])
        };
        let w = s.weight_as("weight", dims.clone(), Transform::Select { axis: 2, index });
        let b = if behind == 0 { bias(s, &out) } else { None };
        let y = slice.conv2d(w, b, [c.stride[1], c.stride[2]], pads, 1);
        sum = Some(sum.map_or(y, |sum| sum + y));
    }
    s.out(sum.unwrap_or(frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Graph};
    use engines::contract::{DType, Port};
    use std::collections::BTreeMap;

    const FRAMES: Port = Port::new("frames", DType::F32, "T+2 4 h w");
    const X: Port = Port::new("x", DType::F32, "B L 8");

    fn shapes(list: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
        list.iter()
            .map(|(k, s)| ((*k).to_owned(), s.to_vec()))
            .collect()
    }

    fn ops(g: &Graph) -> Vec<&str> {
        g.nodes.iter().map(|n| n.op).collect()
    }

    #[test]
    fn causal_conv3d_is_one_2d_convolution_per_tap_with_one_bias() {
        let source = shapes(&[("c.weight", &[5, 4, 3, 3, 3]), ("c.bias", &[5])]);
        let b = Builder::new("t", &source);
        let y = causal_conv3d(b.root().pp("c"), b.input(&FRAMES), 5);
        assert_eq!(format!("{y:?}"), "f32 [T, 5, h, w]");
        let g = b.finish().unwrap();
        assert_eq!(
            ops(&g),
            [
                "Slice", "Conv", "Slice", "Conv", "Add", "Slice", "Conv", "Add"
            ]
        );
        assert_eq!(
            g.nodes
                .iter()
                .filter(|n| n.inputs.len() == 3 && n.op == "Conv")
                .count(),
            1
        );
        assert_eq!(g.weights[0].shape, [5, 4, 3, 3]);
    }

    #[test]
    fn causal_conv3d_steps_over_time_and_skips_slices_without_context() {
        let source = shapes(&[
            ("t.weight", &[4, 4, 3, 1, 1]),
            ("p.weight", &[2, 4, 1, 1, 1]),
        ]);
        let b = Builder::new("t", &source);
        let stepped = causal_conv3d_with(
            b.root().pp("t"),
            b.input(&FRAMES),
            4,
            CausalConv3d {
                stride: [2, 1, 1],
                pads: None,
            },
        );
        assert_eq!(format!("{stepped:?}"), "f32 [floor((T + 1)/2), 4, h, w]");
        let pointwise = causal_conv3d(b.root().pp("p"), b.input(&FRAMES), 2);
        assert_eq!(format!("{pointwise:?}"), "f32 [T + 2, 2, h, w]");
        assert_eq!(b.finish().unwrap().nodes.last().unwrap().op, "Conv");
    }

    #[test]
    fn a_linear_without_its_bias_is_an_error_only_where_one_is_due() {
        let source = shapes(&[("q.weight", &[3, 8])]);
        for (due, errors) in [(false, 0), (true, 1)] {
            let b = Builder::new("t", &source);
            let (s, x) = (b.root().pp("q"), b.input(&X));
            let y = if due {
                linear_biased(s, x, 3)
            } else {
                linear(s, x, 3)
            };
            assert_eq!(format!("{y:?}"), "f32 [B, L, 3]");
            assert_eq!(b.finish().map_or_else(|e| e.0.len(), |_| 0), errors);
        }
    }

    #[test]
    fn arguments_of_a_layer_stay_with_its_caller() {
        let source = shapes(&[("f.0.weight", &[16, 8]), ("f.2.weight", &[8, 16])]);
        let b = Builder::new("t", &source);
        feed_forward(b.root().pp("f"), b.input(&X), 16, ["0", "2"]);
        let g = b.finish().unwrap();
        let scopes: Vec<(&str, &str)> = g.nodes.iter().map(|n| (n.scope.as_str(), n.op)).collect();
        assert_eq!(
            scopes,
            [("f.0", "MatMul"), ("f", "Gelu"), ("f.2", "MatMul")]
        );
        assert_eq!(g.taps(), ["f.0", "f.2", "f"]);
    }
}
