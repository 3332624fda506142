//! Computes with numbers alone: sizes, times, schedules, positions and random numbers.

pub(crate) mod geometry;
pub(crate) mod guide_scale;
pub(crate) mod latents;
pub(crate) mod memory_size;
pub(crate) mod rng;
pub(crate) mod rope;
pub(crate) mod schedule;
pub(crate) mod size;
pub(crate) mod solver;
pub(crate) mod speech_windows;
pub(crate) mod timing;

pub use geometry::Geometry;
pub use guide_scale::GuideScale;
pub use size::{Size, SizeMode};
pub use solver::{Sampling, Solver};
pub use timing::Timing;
