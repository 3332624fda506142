//! Reasons why a placement cannot be used.

use engines::backend::EngineError;
use engines::error_kind::ErrorKind;

use crate::placement::footprint::TooSmall;
use crate::placement::plan::PlanError;

/// The reason why a placement cannot be used on the devices of this machine.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The plan does not cover the model, or names a device that does not exist.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A component's weights cannot be found.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A device is too small.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
}

impl From<EngineError> for PlacementError {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl PlacementError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Plan(e) => e.kind(),
            Self::Engine(e) => e.kind(),
            Self::TooSmall(e) => e.kind(),
        }
    }
}
