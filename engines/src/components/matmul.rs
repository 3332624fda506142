//! A graph that belongs to no model: one matrix product, to measure what a device can do at most through the same backend.
use crate::contract::{Contract, Port, StateKind, Weights};

pub const LEFT: Port = Port::compute("left", "m k");
pub const RIGHT: Port = Port::compute("right", "k n");
pub const PRODUCT: Port = Port::compute("product", "m n");

pub const MATMUL: Contract = Contract {
    name: "probe_matmul",
    inputs: &[LEFT, RIGHT],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[PRODUCT],
    weights: Weights::Inside,
};
