//! How much of a recording the speech encoder takes at a time.

use engines::components::speech::SpeechConfig;

/// How much of a recording the speech encoder takes at a time. What it holds besides grows with the recording by its hidden states alone.
#[derive(Clone, Copy, Debug)]
pub struct SpeechChunk {
    /// Most bytes of attention scores in one call.
    pub score_bytes: usize,
    /// Frames of features made at a time.
    pub feature_frames: usize,
}

impl SpeechChunk {
    /// Rows of a layer in one call, of a recording of `frames` frames.
    pub fn rows(&self, heads: usize, frames: usize) -> usize {
        let frames = frames.max(1);
        (self.score_bytes / (size_of::<f32>() * heads * frames)).clamp(1, frames)
    }

    /// Most samples of one call.
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
