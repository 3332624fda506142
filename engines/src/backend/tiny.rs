//! Graphs of two additions, as bytes of real ONNX files: what tests run where no export is at hand.

use super::Session;
use super::ort::{GraphFile, Runtime};
use crate::contract::{Contract, DType::F32, NEXT, Port, StateKind, Weights};
use crate::dim::Bindings;
use crate::recipe::Recipe;

const X: Port = Port::new("x", F32, "n");
const S: Port = Port::new("s", F32, "n");
const Y: Port = Port::new("y", F32, "n");

const fn contract(name: &'static str, state: &'static [Port], state_kind: StateKind) -> Contract {
    Contract {
        name,
        inputs: &[X],
        state,
        state_kind,
        outputs: &[Y],
        weights: Weights::Inside,
    }
}

pub(super) const STATELESS: Contract = contract("tiny_stateless", &[], StateKind::Replace);
pub(super) const IN_PLACE: Contract = contract("tiny_in_place", &[S], StateKind::InPlace);
pub(super) const REPLACE: Contract = contract("tiny_replace", &[S], StateKind::Replace);
pub(super) const PRODUCE: Contract = contract("tiny_produce", &[S], StateKind::Produce);

/// Loads the graph of one of the contracts above. It computes `y = x + x` and `s.next = s + x`; a
/// state that is only produced is `x + x`.
pub(super) fn open(runtime: &Runtime, contract: &'static Contract) -> Box<dyn Session> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), model(contract)).unwrap();
    let graph = GraphFile {
        path: file.path().to_owned(),
        contract,
        recipe: Recipe::Fp32,
        bindings: Bindings::new(),
    };
    runtime.open(&graph).unwrap().0
}

/// A serialised `ModelProto`; the numbers are the fields of onnx.proto.
fn model(contract: &Contract) -> Vec<u8> {
    let mut graph = field(1, &addition("x", "x", Y.name));
    if !contract.state.is_empty() {
        let left = match contract.state_kind {
            StateKind::Produce => "x",
            StateKind::InPlace | StateKind::Replace => S.name,
        };
        graph.extend(field(1, &addition(left, "x", &format!("{}{NEXT}", S.name))));
    }
    graph.extend(field(2, contract.name.as_bytes()));
    for port in contract.graph_inputs() {
        graph.extend(field(11, &vector(port.name)));
    }
    for (name, _) in contract.graph_outputs() {
        graph.extend(field(12, &vector(&name)));
    }
    let (ir_version, opset) = ([1 << 3, 8], [2 << 3, 17]);
    [ir_version.to_vec(), field(8, &opset), field(7, &graph)].concat()
}

/// A `NodeProto`.
fn addition(left: &str, right: &str, sum: &str) -> Vec<u8> {
    let (left, right) = (field(1, left.as_bytes()), field(1, right.as_bytes()));
    let (sum, operator) = (field(2, sum.as_bytes()), field(4, b"Add"));
    [left, right, sum, operator].concat()
}

/// A `ValueInfoProto` of f32 `[n]`.
fn vector(name: &str) -> Vec<u8> {
    let shape = field(1, &field(2, b"n"));
    let tensor = [vec![1 << 3, 1], field(2, &shape)].concat();
    let kind = field(1, &tensor);
    [field(1, name.as_bytes()), field(2, &kind)].concat()
}

/// A field of bytes.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = body.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(body);
    bytes
}
