//! The export that is checked.

use std::sync::Arc;

use engines::backend::{Backend, Loading, plain};
use engines::manifest::Models;

/// An opened export on one device, which a verification checks.
#[derive(Clone)]
pub struct Subject {
    /// The export.
    pub models: Models,
    /// Loads and runs the components of the export.
    pub backend: Arc<dyn Backend>,
    /// Taps and faults by component.
    pub(super) loading: Loading,
}

impl Subject {
    /// Makes a subject of the export `models`, which `backend` runs.
    pub fn new(models: Models, backend: Arc<dyn Backend>) -> Self {
        Self {
            models,
            backend,
            loading: plain(),
        }
    }
}
