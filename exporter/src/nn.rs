//! Layers: functions from a scope and values to a value, with PyTorch's names. How each is lowered to operators is decided here and
//! nowhere else. Not here: models, and operators without weights ([`crate::graph`]).
use crate::graph::{IntoDim, Scope, Transform, Value};

/// `nn.Linear`. x `[.., in] -> [.., out]`. The checkpoint's `[out, in]` weight is stored transposed, so that the graph is one MatMul and an
/// Add. A checkpoint without the bias is an error.
#[track_caller]
pub fn linear<'g>(s: Scope<'g>, x: Value<'g>, out_features: impl IntoDim) -> Value<'g> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use engines::contract::{DType, Port};
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
