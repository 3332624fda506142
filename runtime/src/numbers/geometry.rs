//! Sizes of one run, and the rows of the KV ring that a block writes and reads.

use engines::components::dit::DitConfig;
use engines::components::symbols;
use engines::contract::{DType, Sizes};
use engines::dim::Bindings;
use engines::error_kind::ErrorKind;
use engines::manifest::ModelConfig;

use crate::numbers::size::Size;
use crate::numbers::timing::FRAMES_PER_LATENT;

/// A clip length that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "infer_frames wants a multiple of {unit}, the frames of a block, got {got}; {}; the model is made for 48",
    self.nearest()
)]
pub struct ClipLengthError {
    /// Video frames that were asked for.
    pub got: usize,
    /// Video frames of a block.
    pub unit: usize,
}

impl ClipLengthError {
    /// Names the lengths next to the one that was asked for.
    fn nearest(&self) -> String {
        match self.got / self.unit * self.unit {
            0 => format!("the least is {}", self.unit),
            below => format!("the nearest are {below} and {}", below + self.unit),
        }
    }

    /// Returns `Usage`.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
}

/// A ring length that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ring_blocks wants 1 to {most}, the blocks of a clip, got {got}; the model is made for {most}"
)]
pub struct RingLengthError {
    /// Blocks that were asked for.
    pub got: usize,
    /// Blocks of a clip.
    pub most: usize,
}

impl RingLengthError {
    /// Returns `Usage`.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
}

/// The sizes of a run's tensors.
///
/// ```
/// use engines::components::preset::Preset;
/// use runtime::numbers::Geometry;
///
/// let config = Preset::Full.config().dit;
/// let geometry = Geometry::new(&config, "704*384".parse()?, 48)?;
/// assert_eq!(geometry.tokens, (24, 44));
/// assert_eq!(geometry.clip_blocks, 4);
/// assert_eq!(geometry.latents_shape(3), [1, 16, 3, 48, 88]);
/// // The fifth block overwrites the first one in the ring, and attention reads the whole ring.
/// assert_eq!(geometry.slot(4), geometry.slot(0));
/// assert_eq!(geometry.filled(4), geometry.ring_tokens());
/// assert!(Geometry::new(&config, geometry.size, 47).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the video, in pixels.
    pub size: Size,
    /// Rows and columns of tokens in a latent frame.
    pub tokens: (usize, usize),
    /// Rows and columns of latents in a latent frame.
    pub latent: (usize, usize),
    /// Channels of the latents, `Z`.
    pub latent_channels: usize,
    /// Latent frames of a block.
    pub block_frames: usize,
    /// Blocks of a clip.
    pub clip_blocks: usize,
    /// Newest blocks that the ring holds. By default it holds as many as a clip has.
    pub ring_blocks: usize,
    /// Tokens of the sink, `C`.
    pub sink_tokens: usize,
    /// Attention heads, `N`.
    pub heads: usize,
    /// Elements of a head, `d`.
    pub head_dim: usize,
}

impl Geometry {
    /// Computes the sizes of clips of `infer_frames` video frames. The ring holds one clip.
    ///
    /// # Errors
    /// `infer_frames` is 0 or not a whole number of blocks.
    pub fn new(
        config: &DitConfig,
        size: Size,
        infer_frames: usize,
    ) -> Result<Self, ClipLengthError> {
        let unit = config.block_frames * FRAMES_PER_LATENT;
        if infer_frames == 0 || !infer_frames.is_multiple_of(unit) {
            return Err(ClipLengthError {
                got: infer_frames,
                unit,
            });
        }
        let tokens = size.tokens();
        Ok(Self {
            size,
            tokens,
            latent: size.latent(),
            latent_channels: config.latent_channels,
            block_frames: config.block_frames,
            clip_blocks: infer_frames / unit,
            ring_blocks: infer_frames / unit,
            sink_tokens: config.sink_tokens(tokens.0, tokens.1),
            heads: config.heads,
            head_dim: config.head_dim(),
        })
    }

    /// Returns the same sizes with a ring of `blocks`.
    ///
    /// Attention reads no older blocks, so a shorter ring changes the video.
    ///
    /// # Errors
    /// `blocks` is 0 or more than a clip has.
    pub fn with_ring(self, blocks: usize) -> Result<Self, RingLengthError> {
        if blocks == 0 || blocks > self.clip_blocks {
            return Err(RingLengthError {
                got: blocks,
                most: self.clip_blocks,
            });
        }
        Ok(Self {
            ring_blocks: blocks,
            ..self
        })
    }

    /// Counts the video frames of a block. (The first block of a video shows fewer.)
    pub fn block_video_frames(&self) -> usize {
        self.block_frames * FRAMES_PER_LATENT
    }

    /// Counts the video frames of a clip.
    pub fn clip_video_frames(&self) -> usize {
        self.clip_blocks * self.block_video_frames()
    }

    /// Counts the tokens of a block, `3*h*w`.
    pub fn block_tokens(&self) -> usize {
        self.block_frames * self.tokens.0 * self.tokens.1
    }

    /// Counts the tokens of the ring, `S`.
    pub fn ring_tokens(&self) -> usize {
        self.ring_blocks * self.block_tokens()
    }

    /// Returns the first global latent frame of a block.
    pub fn first_frame(&self, block: usize) -> usize {
        block * self.block_frames
    }

    /// Returns the first ring token that `block` writes.
    ///
    /// The ring is a whole number of blocks, so a write never wraps.
    pub fn slot(&self, block: usize) -> usize {
        (block % self.ring_blocks) * self.block_tokens()
    }

    /// Counts the ring tokens in use after `block` is written. They are a prefix of the ring.
    pub fn filled(&self, block: usize) -> usize {
        (block + 1).min(self.ring_blocks) * self.block_tokens()
    }

    /// Returns the shape of latents, `[1, Z, frames, H/8, W/8]`.
    pub fn latents_shape(&self, frames: usize) -> [usize; 5] {
        [
            1,
            self.latent_channels,
            frames,
            self.latent.0,
            self.latent.1,
        ]
    }

    /// Binds every symbol of the model's ports that a run fixes, for calls of `lanes` lanes and one
    /// actor.
    pub fn bindings(&self, config: &ModelConfig, lanes: usize) -> Bindings {
        let mut sizes = config.dit.bindings();
        for more in [
            config.vae.bindings(),
            config.text.bindings(),
            config.speech.bindings(),
        ] {
            sizes.extend(more);
        }
        sizes.extend(symbols::bindings([
            (symbols::TOKEN_ROWS, self.tokens.0),
            (symbols::TOKEN_COLUMNS, self.tokens.1),
            (symbols::LATENT_ROWS, self.latent.0),
            (symbols::LATENT_COLUMNS, self.latent.1),
            (symbols::RING_TOKENS, self.ring_tokens()),
            (symbols::SINK_TOKENS, self.sink_tokens),
            (symbols::LANES, lanes),
            (symbols::CONDITION_LANES, 1),
            (symbols::ACTORS, 1),
        ]));
        sizes
    }

    /// Counts the bytes of keys and values of one layer and one step, over the whole ring.
    pub fn ring_lane_bytes(&self, dtype: DType) -> usize {
        2 * self.heads * self.ring_tokens() * self.head_dim * dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sizes::{config, geometry};
    use proptest::prelude::*;

    #[test]
    fn a_ring_holds_a_clip_and_the_fifth_block_takes_the_first_slot() {
        let g = geometry(48);
        let n = 16;
        assert_eq!(
            (g.block_tokens(), g.ring_tokens(), g.sink_tokens),
            (3 * n, 12 * n, 40)
        );
        let seen: Vec<(usize, usize)> = (0..6).map(|b| (g.slot(b) / n, g.filled(b) / n)).collect();
        assert_eq!(seen, [(0, 3), (3, 6), (6, 9), (9, 12), (0, 12), (3, 12)]);
    }

    #[test]
    fn clip_lengths_are_whole_blocks() {
        for (frames, blocks) in [
            (12, Some(1)),
            (36, Some(3)),
            (48, Some(4)),
            (0, None),
            (80, None),
            (47, None),
        ] {
            let got = Geometry::new(
                &config(1),
                Size {
                    width: 64,
                    height: 64,
                },
                frames,
            );
            assert_eq!(got.clone().map(|g| g.clip_blocks).ok(), blocks, "{frames}");
            assert!(blocks.is_some() || got.is_err_and(|e| e.got == frames && e.unit == 12));
        }
    }

    #[test]
    fn a_ring_has_a_block_and_no_more_than_a_clip() {
        for (blocks, fits) in [(0, false), (1, true), (4, true), (5, false)] {
            let got = geometry(48).with_ring(blocks);
            let want = if fits { Ok(blocks) } else { Err((blocks, 4)) };
            assert_eq!(
                got.map(|g| g.ring_blocks).map_err(|e| (e.got, e.most)),
                want
            );
        }
    }

    proptest! {
        #[test]
        fn a_ring_always_holds_the_newest_blocks_and_nothing_else(
            clip in 1usize..6,
            blocks in 1usize..6,
            last in 0usize..40,
        ) {
            let blocks = blocks.min(clip);
            let g = geometry(12 * clip).with_ring(blocks).unwrap();
            let mut ring = vec![None; g.ring_tokens()];
            for b in 0..=last {
                let slot = g.slot(b);
                prop_assert!(slot + g.block_tokens() <= ring.len());
                prop_assert!(slot + g.block_tokens() <= g.filled(b));
                ring[slot..slot + g.block_tokens()].fill(Some(b));
            }
            let seen = ring[..g.filled(last)].iter();
            let mut seen: Vec<usize> = seen.map(|t| t.expect("filled")).collect();
            seen.sort_unstable();
            seen.dedup();
            let newest = (last + 1).saturating_sub(blocks)..=last;
            prop_assert_eq!(seen, newest.collect::<Vec<_>>());
            prop_assert!(ring[g.filled(last)..].iter().all(Option::is_none));
        }
    }
}
