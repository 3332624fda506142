//! Bytes that a run holds on one device, and the refusal of a device that is too small.

use std::fmt;

use engines::error_kind::ErrorKind;

/// Bytes that a run holds on one device, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Footprint {
    /// Weights that stay.
    pub weights: u64,
    /// KV rings that stay.
    pub rings: u64,
    /// Keys and values of the sink and the text, of every anchor.
    pub condition: u64,
    /// Slots that layers stream through.
    pub slots: u64,
    /// Inputs and outputs of graphs, and caches.
    pub activations: u64,
}

impl Footprint {
    /// Returns the sum of all purposes.
    pub fn total(&self) -> u64 {
        self.weights + self.rings + self.condition + self.slots + self.activations
    }

    /// Adds each purpose of `more`.
    pub(super) fn add(&mut self, more: &Self) {
        self.weights += more.weights;
        self.rings += more.rings;
        self.condition += more.condition;
        self.slots += more.slots;
        self.activations += more.activations;
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            weights,
            rings,
            condition,
            slots,
            activations,
        } = self;
        write!(
            f,
            "{} bytes (weights {weights}, rings {rings}, condition {condition}, slots {slots}, \
             activations {activations})",
            self.total()
        )
    }
}

/// A device that is too small for its part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device}: the placement needs {wanted}, the budget is {budget} bytes; \
     stream layers (--resident-layers, --host-rings), compute fewer lanes in a call (--lanes 1) \
     or spread the layers over more devices (--stages)"
)]
pub struct TooSmall {
    /// Name of the device, such as `cuda:0`.
    pub device: String,
    /// Bytes that the plan holds there.
    pub wanted: Footprint,
    /// Bytes that the device may hold.
    pub budget: u64,
}

impl TooSmall {
    /// Returns the kind of the failure, which is always a lack of resources.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}
