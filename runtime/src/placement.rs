//! Decides who runs what where. Nothing is loaded here.

pub(crate) mod devices;
pub(crate) mod error;
pub(crate) mod footprint;
pub(crate) mod footprints;
pub(crate) mod plan;
pub(crate) mod queues;
pub(crate) mod speech_chunk;
pub(crate) mod told;
pub(crate) mod wavefront;

pub use devices::Devices;
pub use error::PlacementError;
pub use footprint::{Footprint, TooSmall};
pub use footprints::{Footprints, Workload};
pub use plan::{Lanes, Latency, Plan, PlanError, Residency, Rings, Stages};
pub use speech_chunk::SpeechChunk;
pub use told::Told;
