//! A graph as text, for people and for snapshots: nodes under their module paths, shapes on every value, weights once at the end.
//! Stable: nothing in it depends on hashing, addresses or the machine.
use super::{Attribute, Fact, Graph, Node, Transform, Weight};
use engines::dim::Dim;
use std::fmt;

/// `[B, 3*h*w, 256]`; dimensions that nobody knows are `?`.
pub(super) struct Dims<'a>(pub(super) &'a [Dim]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
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
        let mut scope = None;
        for node in &self.nodes {
            if scope.replace(node.scope.as_str()) != Some(node.scope.as_str()) {
                writeln!(f, "\n{}", if node.scope.is_empty() { "(root)" } else { &node.scope })?;
            }
            writeln!(f, "  {}", self.line(node))?;
        }
        if !self.weights.is_empty() {
            writeln!(f, "\nweights")?;
        }
        self.weights.iter().try_for_each(|w| writeln!(f, "  {}", weight(w)))
    }
}

impl Graph {
    fn line(&self, node: &Node) -> String {
        let short = |id: usize| {
            let name = self.values[id].name.as_str();
            let inner = name.strip_prefix(node.scope.as_str()).filter(|rest| !node.scope.is_empty() && rest.starts_with('.'));
            inner.unwrap_or(name).to_owned()
        };
        let outputs: Vec<String> = node.outputs.iter().map(|&o| format!("{}: {}", short(o), self.values[o].fact)).collect();
        let mut arguments: Vec<String> = node.inputs.iter().map(|i| i.map_or_else(|| "_".to_owned(), short)).collect();
        arguments.extend(node.attributes.iter().map(|(name, a)| format!("{name}={a}")));
        format!("{} = {}({})", outputs.join(", "), node.op, arguments.join(", "))
    }
}

fn weight(w: &Weight) -> String {
    match w.transform {
        Transform::Identity => format!("{}: {} {:?}", w.name, w.dtype, w.shape),
        _ => format!("{}: {} {:?} from {:?}", w.name, w.dtype, w.shape, w.stored),
    }
}
