//! One run of the executor: its inputs, and what leaves it.

use std::sync::Arc;

use engines::cancel::Cancel;
use engines::tensor::Tensor;

use crate::chain::call::{AnchorInput, BlockAudio, Tables};
use crate::chain::events::Observer;
use crate::chain::snapshot::{Begin, Keeper};
use crate::inputs::replay::Distances;

/// Where the second anchor comes from, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// One anchor serves the whole video.
    Never,
    /// The first latent frame of block 0 is the anchor of the second clip and of all later clips.
    FirstLatent,
    /// [`crate::chain::executor::Feedback::anchor`] brings the anchor of the second clip and of all
    /// later clips.
    Fed,
}

/// Guidance: each step has a second pass, with another prompt and without speech, and goes away
/// from what it predicts. Source: Wan 2.2's `WanS2V.generate`, which has zeros as sound there.
#[derive(Clone)]
pub(crate) struct Guidance {
    /// How far: the flow is `u + scale * (c - u)` for the flow `c` of the prompt and `u` of this.
    pub scale: f32,
    /// Embedded negative prompt, `[1, M, D]`.
    pub text: Arc<Tensor>,
    /// Audio tokens of a block without sound.
    pub audio: BlockAudio,
}

impl Guidance {
    /// Returns the flow that a step follows.
    pub(crate) fn flow(&self, prompted: &[f32], other: &[f32]) -> Vec<f32> {
        let pairs = prompted.iter().zip(other);
        pairs.map(|(c, u)| u + self.scale * (c - u)).collect()
    }
}

/// Everything that one run takes besides the loaded stages.
pub(crate) struct Job<'a> {
    /// Sizes, positions and timesteps of the run.
    pub tables: Arc<Tables>,
    /// Denoising steps of a block.
    pub steps: usize,
    /// Blocks of the video, with those before `start`.
    pub blocks: usize,
    /// State to begin with, instead of the beginning of the video.
    pub start: Option<Begin>,
    /// Takes the state at the ends of clips.
    pub keeper: Option<Arc<dyn Keeper>>,
    /// Source of the second anchor.
    pub swap: Swap,
    /// Distance of the reference token for every item.
    pub distances: &'a Distances<'a>,
    /// Embedded prompt, `[1, M, D]`.
    pub text: Arc<Tensor>,
    /// What the video is led away from, if it is.
    pub guidance: Option<Guidance>,
    /// Input of the first anchor.
    pub anchor: AnchorInput,
    /// Stops this run.
    pub cancel: &'a Cancel,
    /// Receives this run's events.
    pub observer: &'a dyn Observer,
}

/// A block that left the last step.
pub(crate) struct Finished {
    /// Number of the block in the video.
    pub block: usize,
    /// Clean latents, `[1, Z, F, H/8, W/8]`.
    pub latents: Tensor,
}
