//! Changes a graph for ONNX Runtime's CPU provider, which has few kernels in bf16. Each other node
//! in bf16 runs in f32 between casts, and every result is still rounded to bf16. Names, ports,
//! weights and taps stay. Not here: the type of each computation, which the models decide.
use super::write::onnx_type;
use super::{Attribute, Fact, Graph, Node, ValueId, ValueInfo};
use engines::contract::DType;
use std::collections::{HashMap, HashSet};

/// Operators that ONNX Runtime 1.31.1's CPU provider runs in bf16: those that move elements, and a
/// norm that computes in f32 inside. Each was found by loading a graph with it.
const NATIVE: &[&str] = &[
    "Cast",
    "Concat",
    "Gather",
    "Identity",
    "LayerNormalization",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Squeeze",
    "TensorScatter",
    "Transpose",
    "Unsqueeze",
];

/// Operators that only move elements. Their f32 result needs no rounding before another f32 use.
const EXACT: &[&str] = &["Expand"];

/// Returns a graph whose bf16 nodes run on ONNX Runtime's CPU provider. A graph without bf16 is
/// returned unchanged.
#[must_use]
pub fn for_cpu(graph: &Graph) -> Graph {
    let mut pass = Pass {
        graph: Graph {
            nodes: Vec::with_capacity(graph.nodes.len()),
            ..graph.clone()
        },
        names: graph.values.iter().map(|v| v.name.clone()).collect(),
        wide: HashMap::new(),
    };
    for node in &graph.nodes {
        pass.node(node);
    }
    let mut graph = pass.graph;
    drop_unread_casts(&mut graph);
    graph
}

struct Pass {
    graph: Graph,
    names: HashSet<String>,
    /// The f32 value with the same numbers, for each bf16 value.
    wide: HashMap<ValueId, ValueId>,
}

impl Pass {
    fn node(&mut self, node: &Node) {
        let half = |id: &ValueId| self.graph.values[*id].fact.dtype == DType::BF16;
        let touches = node.inputs.iter().flatten().chain(&node.outputs).any(half);
        if !touches || NATIVE.contains(&node.op) {
            self.remember_widening(node);
            return self.graph.nodes.push(node.clone());
        }
        let mut wide = node.clone();
        for id in wide.inputs.iter_mut().flatten() {
            *id = self.widened(*id, node);
        }
        let mut narrowed = Vec::new();
        for id in &mut wide.outputs {
            if self.graph.values[*id].fact.dtype == DType::BF16 {
                let f32_id = self.value(*id);
                narrowed.push((std::mem::replace(id, f32_id), f32_id));
            }
        }
        self.graph.nodes.push(wide);
        for (half, f32_id) in narrowed {
            if EXACT.contains(&node.op) {
                self.wide.insert(half, f32_id);
            }
            self.cast(f32_id, half, &node.scope);
        }
    }

    /// A cast to f32 in the graph itself serves later nodes too.
    fn remember_widening(&mut self, node: &Node) {
        if let ("Cast", [Some(from)], [to]) = (node.op, &node.inputs[..], &node.outputs[..]) {
            let dtype = |id: ValueId| self.graph.values[id].fact.dtype;
            if (dtype(*from), dtype(*to)) == (DType::BF16, DType::F32) {
                self.wide.entry(*from).or_insert(*to);
            }
        }
    }

    fn widened(&mut self, id: ValueId, reader: &Node) -> ValueId {
        if self.graph.values[id].fact.dtype != DType::BF16 {
            return id;
        }
        if let Some(&known) = self.wide.get(&id) {
            return known;
        }
        let wide = self.value(id);
        self.cast(id, wide, &reader.scope);
        self.wide.insert(id, wide);
        wide
    }

    /// Adds an f32 value with the shape of `like`, named after it.
    fn value(&mut self, like: ValueId) -> ValueId {
        let ValueInfo { name, fact } = &self.graph.values[like];
        let mut name = format!("{name}|f32");
        while !self.names.insert(name.clone()) {
            name.push('\'');
        }
        let fact = Fact {
            dtype: DType::F32,
            dims: fact.dims.clone(),
        };
        self.graph.values.push(ValueInfo { name, fact });
        self.graph.values.len() - 1
    }

    fn cast(&mut self, from: ValueId, to: ValueId, scope: &str) {
        let ValueInfo { name, fact } = &self.graph.values[to];
        let code = onnx_type(fact.dtype);
        self.graph.nodes.push(Node {
            name: format!("{name}|cast"),
            scope: scope.to_owned(),
            op: "Cast",
            inputs: vec![Some(from)],
            outputs: vec![to],
            attributes: vec![("to", Attribute::Int(code.into()))],
        });
    }
}

/// Removes the casts back to bf16 that no node reads, because every reader took the f32 value.
fn drop_unread_casts(graph: &mut Graph) {
    let read: HashSet<ValueId> = graph
        .nodes
        .iter()
        .flat_map(|n| n.inputs.iter().flatten().copied())
        .chain(graph.outputs.iter().copied())
        .chain(graph.taps.iter().map(|(_, id)| *id))
        .collect();
    graph
        .nodes
        .retain(|n| n.op != "Cast" || n.outputs.iter().any(|o| read.contains(o)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::nn::linear;
    use engines::contract::Port;
    use engines::recipe::Recipe;
    use std::collections::BTreeMap;

    const X: Port = Port::compute("x", "B 3 8");
    const OUT: Port = Port::compute("out", "B 3 2");

    fn graph(recipe: Recipe) -> Graph {
        let source = BTreeMap::from([
            ("q.weight".to_owned(), vec![2, 8]),
            ("q.bias".to_owned(), vec![2]),
        ]);
        let b = Builder::new("t", &source).with_recipe(recipe);
        let x = b.input(&X);
        let x = x.broadcast_leading(x).layer_norm(-1, 1.0, None, None);
        b.output(&OUT, linear(b.root().pp("q"), x, 2));
        b.finish().unwrap()
    }

    #[test]
    fn nodes_without_a_kernel_stand_between_casts_and_every_result_is_rounded() {
        insta::assert_snapshot!(for_cpu(&graph(Recipe::Bf16)), @"
    graph t
      in  x: bf16 [B, 3, 8]
      out out: bf16 [B, 3, 2]

    (root)
      x|f32: f32 [B, 3, 8] = Cast(x, to=1)
      Expand|f32: f32 [B, 3, 8] = Expand(x|f32, sizes)
      Expand: bf16 [B, 3, 8] = Cast(Expand|f32, to=16)
      LayerNormalization: bf16 [B, 3, 8] = LayerNormalization(Expand, bf16[8]#1, axis=-1, epsilon=1)

    q
      LayerNormalization|f32: f32 [B, 3, 8] = Cast(LayerNormalization, to=1)
      .weight|transpose|bf16|f32: f32 [8, 2] = Cast(.weight|transpose|bf16, to=1)
      .MatMul|f32: f32 [B, 3, 2] = MatMul(LayerNormalization|f32, .weight|transpose|bf16|f32)
      .MatMul: bf16 [B, 3, 2] = Cast(.MatMul|f32, to=16)
      .MatMul|f32': f32 [B, 3, 2] = Cast(.MatMul, to=1)
      .bias|bf16|f32: f32 [2] = Cast(.bias|bf16, to=1)
      out|f32: f32 [B, 3, 2] = Add(.MatMul|f32', .bias|bf16|f32)
      out: bf16 [B, 3, 2] = Cast(out|f32, to=16)

    weights
      q.weight|transpose|bf16: bf16 [8, 2] from [2, 8]
      q.bias|bf16: bf16 [2]
    ");
    }

    #[test]
    fn the_rim_and_the_taps_stay_and_an_f32_graph_is_unchanged() {
        let (before, f32_graph) = (graph(Recipe::Bf16), graph(Recipe::Fp32));
        let after = for_cpu(&before);
        let named = |g: &Graph, ids: &[ValueId]| -> Vec<ValueInfo> {
            ids.iter().map(|&i| g.values[i].clone()).collect()
        };
        assert_eq!(named(&after, &after.inputs), named(&before, &before.inputs));
        assert_eq!(
            named(&after, &after.outputs),
            named(&before, &before.outputs)
        );
        assert_eq!(
            after.tap_values().collect::<Vec<_>>(),
            before.tap_values().collect::<Vec<_>>()
        );
        assert_eq!(after.weights, before.weights);
        assert_eq!(for_cpu(&f32_graph), f32_graph);
    }

    #[test]
    fn nothing_but_native_operators_touches_bf16() {
        let g = for_cpu(&graph(Recipe::Bf16));
        let half = |id: &ValueId| g.values[*id].fact.dtype == DType::BF16;
        for n in &g.nodes {
            let touches = n.inputs.iter().flatten().chain(&n.outputs).any(half);
            assert!(!touches || NATIVE.contains(&n.op), "{} {}", n.name, n.op);
        }
    }
}
