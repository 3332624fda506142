//! Lengths of the queues between threads. The executor and its simulation share them.

/// Finished blocks that may wait for the decoder.
pub const FINISHED_WAITING: usize = 1;

/// Prefills that may wait at the head of a chain, beside its calls: one for each anchor.
pub const PREFILLS: usize = 2;
