//! Contract of a graph that belongs to no model: one matrix product. It measures a device's peak
//! through the same backend that runs the models.

use crate::contract::{Contract, Port, StateKind, Weights};

/// The left matrix, `[m, k]`.
pub const LEFT: Port = Port::compute("left", "m k");
/// The right matrix, `[k, n]`.
pub const RIGHT: Port = Port::compute("right", "k n");
/// The product, `[m, n]`.
pub const PRODUCT: Port = Port::compute("product", "m n");

/// The graph. Its name is that of its file in a folder of graphs.
pub const MATMUL: Contract = Contract {
    name: "probe_matmul",
    inputs: &[LEFT, RIGHT],
    state: &[],
    state_kind: StateKind::Replace,
    outputs: &[PRODUCT],
    weights: Weights::Inside,
};
