//! The state of a run between two blocks: what it takes to go on as if the run had never stopped.
//!
//! The state before block `n` is, for every step, each layer's KV ring once block `n - 1` has taken
//! the step and before block `n` takes it. A ring is copied in the order of the calls, so nothing
//! waits for a barrier. To it belong the decoder's state after block `n - 1` and the input of the
//! second anchor. Everything else follows from the inputs and the number of the block.

use engines::tensor::Tensor;
use engines::tensor_file::TensorFileError;
use std::sync::Arc;

use crate::chain::call::AnchorInput;

/// The place of a ring: a layer in a call of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RingPlace {
    /// Denoising step; with guidance, the step times the passes, plus the pass.
    pub step: usize,
    /// Layer of the model.
    pub layer: usize,
}

/// A ring of one layer and one step on the host, `[1, N, S, d]` each.
#[derive(Debug)]
pub(crate) struct RingRows {
    /// Keys.
    pub keys: Tensor,
    /// Values.
    pub values: Tensor,
}

/// Takes the state of a run while the run goes on.
pub(crate) trait Keeper: Send + Sync {
    /// Says whether the state before `block` is to be kept. Asked once for each first block of a
    /// clip, and for the block after the last.
    fn wants(&self, block: usize) -> bool;

    /// Takes one ring of the state before `block`. The stage waits for it.
    fn ring(&self, block: usize, place: RingPlace, rows: RingRows);
}

/// Gives kept rings back.
pub(crate) trait Kept: Send + Sync {
    /// Reads one ring.
    ///
    /// # Errors
    /// The ring was not kept, or its file is damaged.
    fn ring(&self, place: RingPlace) -> Result<RingRows, TensorFileError>;
}

/// The state that a run begins with.
#[derive(Clone)]
pub(crate) struct Begin {
    /// First block to make.
    pub block: usize,
    /// The rings before it.
    pub rings: Arc<dyn Kept>,
    /// Input of the second anchor, where the blocks to make need it.
    pub second_anchor: Option<AnchorInput>,
}
