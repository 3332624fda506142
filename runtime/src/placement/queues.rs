//! Lengths of the queues between threads. The executor and its simulation share them.

/// Finished blocks that may wait for the decoder.
pub(crate) const FINISHED_WAITING: usize = 1;

/// Prefills that may wait at the head of a chain, beside its calls: one for each anchor, of the
/// prompt and of what guidance leads away from.
pub(crate) const PREFILLS: usize = 4;
