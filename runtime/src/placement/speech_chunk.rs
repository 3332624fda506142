//! The part of a recording that the speech encoder takes at a time.

use engines::components::speech::SpeechConfig;

/// The part of a recording that the speech encoder takes at a time. Beside this part, memory grows
/// with the recording only by its hidden states.
#[derive(Clone, Copy, Debug)]
pub struct SpeechChunk {
    /// Most bytes of attention scores in one call.
    pub score_bytes: usize,
    /// Frames of features made at a time.
    pub feature_frames: usize,
}

impl SpeechChunk {
    /// Returns the rows of a layer in one call, for a recording of `frames` frames.
    pub fn rows(&self, heads: usize, frames: usize) -> usize {
        let frames = frames.max(1);
        (self.score_bytes / (size_of::<f32>() * heads * frames)).clamp(1, frames)
    }

    /// Returns the most samples of one call.
    pub fn samples(&self, config: &SpeechConfig) -> usize {
        (self.feature_frames - 1) * config.hop() + config.min_samples()
    }
}

impl Default for SpeechChunk {
    fn default() -> Self {
        Self {
            score_bytes: 256 << 20,
            feature_frames: 1000,
        }
    }
}
