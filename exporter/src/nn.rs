//! Layers with weights: functions from a scope and values to a value, with PyTorch's names.
//!
//! Only this file decides the operators of a layer. A weight takes the float type of the value that
//! it meets, so a cast before a layer decides the type of its arithmetic. Not here: models, and
//! operators without weights ([`crate::graph`]).
use crate::graph::{AttentionOptions, IntoDim, Scope, Transform, Value};
use engines::contract::DType;
use engines::dim::Dim;
use engines::recipe::Recipe;

/// Largest head with a fused kernel in TensorRT, which refuses an Attention node with a larger one.
const FUSED_HEAD: i64 = 256;

/// Applies `nn.Linear`: x `[.., in] -> [.., out]`. The weight `[out, in]` of the checkpoint is
/// stored transposed, so the graph has one MatMul and one Add. A checkpoint without the bias is an
/// error.
#[track_caller]
pub(crate) fn linear<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
    let (s, out) = (s.enter(), out_features.into_dim());
    let y = x.matmul(transposed(s, x, &out));
    s.out(y + s.weight_like(x, "bias", [out]))
}

/// Applies `nn.Linear(bias=False)`. A bias in the checkpoint stays unread.
#[track_caller]
pub(crate) fn linear_no_bias<'g>(
    s: Scope<'g>,
    x: Value<'g>,
    out_features: impl IntoDim,
) -> Value<'g> {
    let s = s.enter();
    s.out(x.matmul(transposed(s, x, &out_features.into_dim())))
}

#[track_caller]
fn transposed<'g>(s: Scope<'g>, x: Value<'g>, out: &Dim) -> Value<'g> {
    let stored = [out.clone(), x.dim(-1)];
    s.weight_of(x.dtype(), "weight", stored, Transform::Transpose2)
}

/// Applies `nn.LayerNorm(elementwise_affine=False)` over the last axis, whose size must be
/// constant.
#[track_caller]
pub(crate) fn layer_norm<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    s.out(x.layer_norm(-1, eps, None, None))
}

/// Applies `nn.LayerNorm` over the last axis, with `weight` `[D]` and `bias` `[D]`.
#[track_caller]
pub(crate) fn layer_norm_affine<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    let (weight, bias) = (
        s.weight_like(x, "weight", [x.dim(-1)]),
        s.weight_like(x, "bias", [x.dim(-1)]),
    );
    s.out(x.layer_norm(-1, eps, Some(weight), Some(bias)))
}

/// Applies `RMSNorm` over the last axis, with `weight` `[D]`.
#[track_caller]
pub(crate) fn rms_norm<'g>(s: Scope<'g>, x: Value<'g>, eps: f32) -> Value<'g> {
    let s = s.enter();
    s.out(x.rms_norm(eps, s.weight_like(x, "weight", [x.dim(-1)])))
}

/// Applies attention per head: q `[B, N, L, D]`, k `[B, N, S, D]`, v `[B, N, S, E]` ->
/// `[B, N, L, E]`. It is one operator, which is fused. Where only the CPU oracle has a kernel for
/// the operator (f32, large heads), it is written as its parts.
#[track_caller]
pub(crate) fn attention<'g>(
    q: Value<'g>,
    k: Value<'g>,
    v: Value<'g>,
    options: AttentionOptions<'g>,
) -> Value<'g> {
    let small = q.dim(-1).as_const().is_none_or(|d| d <= FUSED_HEAD);
    let fused = q.dtype() != DType::F32 && small;
    let plain = options.mask.is_none() && options.kv_len.is_none();
    if q.builder().recipe() == Recipe::Fp32 || fused || !plain {
        q.attention(k, v, options)
    } else {
        attention_in_parts(q, k, v, options.scale)
    }
}

/// Applies [`attention`] as two products and a softmax, over all keys. The query is scaled in f32;
/// the default scale is `1 / sqrt(D)`.
#[track_caller]
pub(crate) fn attention_in_parts<'g>(
    q: Value<'g>,
    k: Value<'g>,
    v: Value<'g>,
    scale: Option<f32>,
) -> Value<'g> {
    let head = q.dim(-1).as_const().unwrap_or(1);
    let scale = scale.unwrap_or_else(|| 1.0 / (head as f32).sqrt());
    let scaled = (q.to_f32() * scale).cast(q.dtype());
    scaled
        .matmul(k.transpose(&[0, 1, 3, 2]))
        .softmax(-1)
        .matmul(v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use engines::contract::Port;
    use std::collections::BTreeMap;

    const X: Port = Port::new("x", DType::F32, "B L 8");

    fn shapes(list: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
        list.iter()
            .map(|(k, s)| ((*k).to_owned(), s.to_vec()))
            .collect()
    }

    #[test]
    fn a_linear_without_its_bias_is_an_error_only_where_one_is_due() {
        let source = shapes(&[("q.weight", &[3, 8])]);
        for (due, errors) in [(false, 0), (true, 1)] {
            let b = Builder::new("t", &source);
            let (s, x) = (b.root().pp("q"), b.input(&X));
            let y = if due {
                linear(s, x, 3)
            } else {
                linear_no_bias(s, x, 3)
            };
            assert_eq!(format!("{y:?}"), "f32 [B, L, 3]");
            assert_eq!(b.finish().map_or_else(|e| e.0.len(), |_| 0), errors);
        }
    }

    #[test]
    fn arguments_of_a_layer_stay_with_its_caller() {
        let source = shapes(&[("f.0.weight", &[16, 8]), ("f.2.weight", &[8, 16])]);
        let b = Builder::new("t", &source);
        let f = b.root().pp("f");
        let y = linear_no_bias(f.pp(0), b.input(&X), 16).gelu_tanh();
        f.out(linear_no_bias(f.pp(2), y, 8));
        let g = b.finish().unwrap();
        let scopes: Vec<(&str, &str)> = g.nodes.iter().map(|n| (n.scope.as_str(), n.op)).collect();
        assert_eq!(
            scopes,
            [("f.0", "MatMul"), ("f", "Gelu"), ("f.2", "MatMul")]
        );
        assert_eq!(g.taps(), ["f.0", "f.2", "f"]);
    }
}
