//! The video that a plan is made for.

use engines::manifest::ModelConfig;

use crate::numbers::size::Size;
use crate::numbers::speech_windows::WHOLE_SECONDS;
use crate::numbers::timing::{FPS, FRAMES_PER_LATENT};
use crate::placement::plan::Latency;

/// The video that a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Ask {
    /// Size of the video in pixels.
    pub size: Size,
    /// Denoising steps, times the passes of a step.
    pub steps: usize,
    /// Passes of a step: 2 with guidance, else 1. Each has rings and anchors of its own.
    pub passes: usize,
    /// Video frames of a clip.
    pub infer_frames: usize,
    /// What the order of work favours.
    pub latency: Latency,
    /// Clips of the video; `None` for as many as the recording fills.
    pub clips: Option<usize>,
}

impl Ask {
    /// Returns the blocks of a clip. `infer_frames` is a whole number of blocks:
    /// [`Geometry::new`](crate::numbers::geometry::Geometry::new) refuses every other length.
    pub fn clip_blocks(&self, config: &ModelConfig) -> usize {
        self.infer_frames / (config.dit.block_frames * FRAMES_PER_LATENT)
    }

    /// Returns the latent frames of a block.
    pub fn block_frames(&self, config: &ModelConfig) -> usize {
        config.dit.block_frames
    }

    /// Returns whether the recording may be so long that its speech is encoded in windows, between
    /// blocks.
    pub(crate) fn hears_in_windows(&self) -> bool {
        let frames = |clips: usize| clips.saturating_mul(self.infer_frames);
        self.clips
            .is_none_or(|clips| frames(clips) > WHOLE_SECONDS * FPS as usize)
    }

    /// Returns the first block of the second anchor, if the run has a second clip.
    pub(crate) fn swap_at(&self, config: &ModelConfig) -> Option<usize> {
        (self.clips != Some(1)).then(|| self.clip_blocks(config))
    }
}
