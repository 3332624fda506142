//! Values and ranges of the symbols in a component's ports, for one video size and one machine.
use super::prepare::Sizes;
use crate::graphs::{TOKEN_PIXELS, bindings};
use engines::backend::tensorrt::engine_list::Range;
use engines::components::{dit, speech, text};
use engines::contract::Contract;
use engines::manifest::ModelConfig;

/// The largest calls that engines take. They are part of an engine's key: other limits give another
/// engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width of the picture in pixels, a multiple of 16.
    pub width: usize,
    /// Height of the picture in pixels, a multiple of 16.
    pub height: usize,
    /// Lanes of one call of the transformer, at most.
    pub lanes: usize,
    /// Actors in one picture, at most.
    pub actors: usize,
    /// Blocks that a KV ring holds.
    pub ring_blocks: usize,
    /// Seconds of speech that the speech encoder takes, at most.
    pub speech_seconds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            width: 704,
            height: 384,
            lanes: 4,
            actors: 2,
            ring_blocks: 4,
            speech_seconds: 600,
        }
    }
}

/// Frames of speech for which the runtime computes features at a time.
const FEATURE_FRAMES: i64 = 1000;
/// Rows of speech a second.
const SPEECH_RATE: i64 = 50;
/// Tokens of a usual prompt.
const USUAL_TOKENS: i64 = 128;

impl Limits {
    /// Returns the ranges of the symbols in a contract's inputs.
    pub fn of(&self, contract: &Contract, config: &ModelConfig) -> Sizes {
        let mut sizes: Sizes = bindings(self.width, self.height)
            .into_iter()
            .map(|(k, n)| (k, Range::fixed(n)))
            .collect();
        let mut set = |symbol: &str, range| {
            sizes.insert(symbol.to_owned(), range);
        };
        let block = (self.width / TOKEN_PIXELS
            * (self.height / TOKEN_PIXELS)
            * config.dit.block_frames) as i64;
        set("S", Range::fixed(self.ring_blocks as i64 * block));
        let upto = |opt: i64, max: usize| Range {
            min: 1,
            opt: opt.min(max as i64),
            max: max as i64,
        };
        if [dit::EMBED, dit::LAYER, dit::LAYER_AUDIO, dit::HEAD].contains(contract) {
            set("B", upto(self.lanes as i64, self.lanes));
            set("G", upto(1, self.lanes));
        }
        set("A", upto(1, self.actors));
        let frames = self.speech_seconds as i64 * SPEECH_RATE;
        let rows = upto(10 * SPEECH_RATE, frames.max(1) as usize);
        if *contract == text::ENCODER {
            set("t", upto(USUAL_TOKENS, config.dit.text_len));
        } else {
            set("t", rows);
        }
        set("r", rows);
        if *contract == speech::ENCODER_FEATURES {
            let samples = |frames: i64| {
                (frames - 1) * config.speech.hop() as i64 + config.speech.min_samples() as i64
            };
            let max = samples(FEATURE_FRAMES);
            set(
                "s",
                Range {
                    min: samples(1),
                    opt: max,
                    max,
                },
            );
        }
        sizes
    }
}
