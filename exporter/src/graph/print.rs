//! A graph as text, for people and for snapshots.
//!
//! Nodes stand under their module paths, every value has its shape, and the weights are at the end.
//! The text leaves out the nodes that only compute sizes, and writes `sizes` where a node takes
//! their result: the shape of the node's output says the same. The text is the same on every
//! machine.
use super::{Attribute, Fact, Graph, Node, Transform, ValueId, Weight};
use engines::contract::DType;
use engines::dim::Dim;
use std::collections::BTreeSet;
use std::fmt;

/// A shape, written `[B, 3*h*w, 256]`. A dimension that nobody knows is `?`.
pub(super) struct Dims<'a>(pub(super) &'a [Dim]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[{}]",
            self.0
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        )
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dtype, Dims(&self.dims))
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::Ints(list) => write!(f, "{list:?}"),
            Self::Text(word) => f.write_str(word),
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {}", self.name)?;
        for (role, ids) in [("in ", &self.inputs), ("out", &self.outputs)] {
            for v in ids.iter().map(|&id| &self.values[id]) {
                writeln!(f, "  {role} {}: {}", v.name, v.fact)?;
            }
        }
        let (sizes, mut scope) = (self.sizes(), None);
        for node in &self.nodes {
            if node.outputs.iter().all(|o| sizes.contains(o)) {
                continue;
            }
            if scope.replace(node.scope.as_str()) != Some(node.scope.as_str()) {
                writeln!(
                    f,
                    "\n{}",
                    if node.scope.is_empty() {
                        "(root)"
                    } else {
                        &node.scope
                    }
                )?;
            }
            writeln!(f, "  {}", self.line(node, &sizes))?;
        }
        if !self.weights.is_empty() {
            writeln!(f, "\nweights")?;
        }
        self.weights
            .iter()
            .try_for_each(|w| writeln!(f, "  {}", weight(w)))
    }
}

impl Graph {
    /// Returns the values that only tell sizes: a fixed count of whole numbers that nodes compute,
    /// and that are no result of the graph.
    fn sizes(&self) -> BTreeSet<ValueId> {
        let computed = self.nodes.iter().flat_map(|n| &n.outputs).copied();
        let is_size = |id: &ValueId| {
            let fact = &self.values[*id].fact;
            let fixed = fact.dims.iter().all(|d| d.as_const().is_some());
            fact.dtype == DType::I64 && fixed && !self.outputs.contains(id)
        };
        computed.filter(is_size).collect()
    }

    fn line(&self, node: &Node, sizes: &BTreeSet<ValueId>) -> String {
        let short = |id: ValueId| {
            if sizes.contains(&id) {
                return "sizes".to_owned();
            }
            let name = self.values[id].name.as_str();
            let inner = name
                .strip_prefix(node.scope.as_str())
                .filter(|rest| !node.scope.is_empty() && rest.starts_with('.'));
            inner.unwrap_or(name).to_owned()
        };
        let outputs: Vec<String> = node
            .outputs
            .iter()
            .map(|&o| format!("{}: {}", short(o), self.values[o].fact))
            .collect();
        let mut arguments: Vec<String> = node
            .inputs
            .iter()
            .map(|i| i.map_or_else(|| "_".to_owned(), short))
            .collect();
        arguments.extend(
            node.attributes
                .iter()
                .map(|(name, a)| format!("{name}={a}")),
        );
        format!(
            "{} = {}({})",
            outputs.join(", "),
            node.op,
            arguments.join(", ")
        )
    }
}

fn weight(w: &Weight) -> String {
    match w.transform {
        Transform::Identity => format!("{}: {} {:?}", w.name, w.dtype, w.shape),
        _ => format!("{}: {} {:?} from {:?}", w.name, w.dtype, w.shape, w.stored),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Transform};
    use crate::nn::{linear, linear_no_bias, rms_norm};
    use engines::contract::{DType, Port};
    use std::collections::BTreeMap;

    const X: Port = Port::new("x", DType::F32, "B 3*h*w 8");
    const OUT: Port = Port::new("out", DType::F32, "B 3*h*w 2");

    #[test]
    fn a_graph_prints_as_its_module_tree() {
        let keys: [(&str, &[usize]); 5] = [
            ("ffn.0.weight", &[16, 8]),
            ("ffn.0.bias", &[16]),
            ("ffn.2.weight", &[8, 16]),
            ("norm.weight", &[8]),
            ("head", &[2, 8, 1]),
        ];
        let source: BTreeMap<String, Vec<usize>> = keys
            .iter()
            .map(|(k, s)| ((*k).to_owned(), s.to_vec()))
            .collect();
        let b = Builder::new("tiny", &source);
        let (s, x) = (b.root(), b.input(&X));
        let norm = rms_norm(s.pp("norm"), x, 1e-6);
        let f = s.pp("ffn");
        let hidden = linear(f.pp(0), norm, 16).gelu_tanh();
        let y = x + f.out(linear_no_bias(f.pp(2), hidden, 8)) * 0.5;
        let head = s.weight_as(
            "head",
            [2, 8, 1],
            Transform::Chain(vec![
                Transform::Select { axis: 2, index: 0 },
                Transform::Transpose2,
            ]),
        );
        b.output(
            &OUT,
            y.reshape(&[x.dim(0), x.dim(1), 8i64.into()]).matmul(head),
        );
        insta::assert_snapshot!(b.finish().unwrap(), @"
        graph tiny
          in  x: f32 [B, 3*h*w, 8]
          out out: f32 [B, 3*h*w, 2]

        norm
          norm: f32 [B, 3*h*w, 8] = RMSNormalization(x, .weight, axis=-1, epsilon=0.000001)

        ffn.0
          .MatMul: f32 [B, 3*h*w, 16] = MatMul(norm, .weight|transpose)
          ffn.0: f32 [B, 3*h*w, 16] = Add(.MatMul, .bias)

        ffn
          .Gelu: f32 [B, 3*h*w, 16] = Gelu(.0, approximate=tanh)

        ffn.2
          ffn.2: f32 [B, 3*h*w, 8] = MatMul(ffn.Gelu, .weight|transpose)

        (root)
          Mul: f32 [B, 3*h*w, 8] = Mul(ffn.2, f32(0.5))
          Add: f32 [B, 3*h*w, 8] = Add(x, Mul)
          Reshape: f32 [B, 3*h*w, 8] = Reshape(Add, i64[0, 0, 8])
          out: f32 [B, 3*h*w, 2] = MatMul(Reshape, head|select2.0|transpose)

        weights
          norm.weight: f32 [8]
          ffn.0.weight|transpose: f32 [8, 16] from [16, 8]
          ffn.0.bias: f32 [16]
          ffn.2.weight|transpose: f32 [16, 8] from [8, 16]
          head|select2.0|transpose: f32 [8, 2] from [2, 8, 1]
        ");
    }
}
