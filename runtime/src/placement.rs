//! Decides who runs what where. Nothing is loaded here.

pub(crate) mod speech_chunk;
pub(crate) mod queues;
pub(crate) mod devices;
pub(crate) mod footprint;
pub(crate) mod plan;
pub(crate) mod wavefront;

pub use devices::Devices;
pub use footprint::{Footprints, Workload};
pub use plan::{Lanes, Plan, PlanError, Residency, Rings, Stages};
pub use speech_chunk::SpeechChunk;
