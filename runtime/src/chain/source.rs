//! Makes the input of each block: noise, and audio tokens of the speech.

use engines::tensor::Tensor;

use crate::chain::call::BlockAudio;
use crate::chain::encoders::AudioAdapter;
use crate::chain::error::ChainError;
use crate::chain::hearing::Ear;
use crate::inputs::replay::Replay;
use crate::inputs::speech::HIDDEN_LAYERS;
use crate::numbers::geometry::Geometry;
use crate::numbers::{latents, rng};

/// Input of the denoiser for one block.
pub(crate) struct BlockInput {
    /// Noise, `[1, Z, F, H/8, W/8]`.
    pub latents: Tensor,
    /// Audio tokens.
    pub audio: BlockAudio,
}

/// A source of blocks in ascending order.
pub(crate) trait Source: Send {
    /// Returns the input of a block, or `None` where the video has ended before it.
    ///
    /// # Errors
    /// A graph fails, or the speech cannot be read.
    fn block(&mut self, block: usize) -> Result<Option<BlockInput>, ChainError>;
}

/// Origin of the noise.
pub(crate) enum Noise<'a> {
    /// torch's CPU generator, with this seed plus the number of the clip.
    Seed(u64),
    /// Noise of a golden file.
    Replay(&'a Replay),
}

impl Noise<'_> {
    /// Returns the noise of a clip, `[1, Z, frames, H/8, W/8]`.
    pub(crate) fn of_clip(&self, clip: usize, geometry: &Geometry) -> Tensor {
        let frames = geometry.clip_blocks * geometry.block_frames;
        let shape = geometry.latents_shape(frames);
        match self {
            Self::Seed(seed) => {
                let values = rng::clip_noise(*seed, clip, frames, geometry.latent);
                Tensor::from_slice(&shape, &values)
            }
            Self::Replay(replay) => replay.noise(clip).clone().reshaped(&shape),
        }
    }
}

/// The source of a video. It draws the noise of a clip with its first block and drops it with its
/// last. It computes the audio tokens of each block.
pub(crate) struct ClipSource<'a> {
    /// Sizes of the video.
    pub geometry: &'a Geometry,
    /// Origin of the noise.
    pub noise: Noise<'a>,
    /// Features of the speech.
    pub hearing: Ear<'a>,
    /// The audio encoder.
    pub adapter: AudioAdapter,
    clip: Option<(usize, Tensor)>,
}

impl<'a> ClipSource<'a> {
    /// Makes a source before its first block.
    pub(crate) fn new(
        geometry: &'a Geometry,
        noise: Noise<'a>,
        hearing: Ear<'a>,
        adapter: AudioAdapter,
    ) -> Self {
        Self {
            geometry,
            noise,
            hearing,
            adapter,
            clip: None,
        }
    }

    fn noise(&mut self, block: usize) -> Tensor {
        let g = self.geometry;
        let clip = block / g.clip_blocks;
        if self.clip.as_ref().is_none_or(|(at, _)| *at != clip) {
            self.clip = Some((clip, self.noise.of_clip(clip, g)));
        }
        let at = (block % g.clip_blocks) * g.block_frames;
        let (_, noise) = self.clip.as_ref().expect("drawn above");
        latents::frames(noise, at..at + g.block_frames)
    }
}

impl Source for ClipSource<'_> {
    fn block(&mut self, block: usize) -> Result<Option<BlockInput>, ChainError> {
        let g = self.geometry;
        let frames = g.block_video_frames();
        let features = self.hearing.block(block * frames..(block + 1) * frames)?;
        let Some(features) = features else {
            return Ok(None);
        };
        let shape = [1, HIDDEN_LAYERS, self.hearing.dim(), frames];
        let features = Tensor::from_slice(&shape, &features);
        let audio = self.adapter.tokens(&features, everywhere(g))?;
        Ok(Some(BlockInput {
            latents: self.noise(block),
            audio,
        }))
    }
}

/// Returns the mask of a single actor, who is heard in every token.
pub(crate) fn everywhere(geometry: &Geometry) -> Tensor {
    let tokens = geometry.tokens.0 * geometry.tokens.1;
    Tensor::from_slice(
        &[1, 1, geometry.block_frames, tokens],
        &vec![1f32; geometry.block_frames * tokens],
    )
}
