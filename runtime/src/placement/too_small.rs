//! The bytes that one device would hold, and the refusal of a device that is too small for them.

use std::fmt;

use engines::error_kind::ErrorKind;

/// Bytes on one device, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Footprint {
    pub weights: u64,
    pub rings: u64,
    pub condition: u64,
    pub slots: u64,
    pub activations: u64,
}

impl Footprint {
    pub fn total(&self) -> u64 {
        self.weights + self.rings + self.condition + self.slots + self.activations
    }

    pub(crate) fn add(&mut self, more: &Self) {
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
            "{} bytes (weights {weights}, rings {rings}, condition {condition}, slots {slots}, activations {activations})",
            self.total()
        )
    }
}

/// A device that is too small for its part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device}: the placement wants {wanted}, the budget is {budget} bytes; stream layers (--resident-layers, --host-rings), let fewer lanes \
     ride in a call (--lanes 1) or spread the layers over more devices (--stages)"
)]
pub struct TooSmall {
    pub device: String,
    pub wanted: Footprint,
    pub budget: u64,
}

impl TooSmall {
    /// Always a matter of resources.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Resources
    }
}
