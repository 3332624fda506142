//! Rates and counts of frames that the reference fixes.
//!
//! Source: `liveavatar/models/wan/causal_s2v_pipeline_tpp.py` @ 9c2c38d.

/// Video frames a second.
pub(crate) const FPS: u32 = 25;

/// Video frames of one latent frame.
pub(crate) const FRAMES_PER_LATENT: usize = engines::components::vae::TEMPORAL_STRIDE;

/// Pixel frames of the motion history, `motion_frames` of the reference.
pub(crate) const MOTION_PIXEL_FRAMES: usize = 73;

/// Motion latents that prime the streaming decoder. Their frames are dropped.
pub(crate) const PRIMING_LATENTS: usize = 7;

/// Video frames that the very first block drops: they belong to the priming.
pub(crate) const DROPPED_FRAMES: usize = 3;

/// How the time of the video follows the time of the recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// The video begins and ends with the recording, to the frame.
    ///
    /// The model hears silence during the frames that are dropped, and the recording after it.
    #[default]
    Recording,
    /// The reference's way: the recording loses its first 0.12 s, and silence fills the last clip.
    Reference,
}

/// Length of one video.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Length {
    /// Clips of the video; the last one may be short of blocks.
    pub(crate) clips: usize,
    /// Blocks that are computed.
    pub(crate) blocks: usize,
    /// Frames of the video.
    pub(crate) frames: usize,
}

/// Video frames of a clip and of a block, as the model computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    /// Video frames of a clip, a whole number of blocks.
    pub(crate) clip: usize,
    /// Video frames of a block.
    pub(crate) block: usize,
}

impl Timing {
    /// Counts the frames of silence that the model hears before the recording.
    pub(crate) fn silent_frames(self) -> usize {
        match self {
            Self::Recording => DROPPED_FRAMES,
            Self::Reference => 0,
        }
    }

    /// Counts the frames at the recording's start whose sound the video leaves out.
    pub(crate) fn skipped_frames(self) -> usize {
        DROPPED_FRAMES - self.silent_frames()
    }
}

impl Length {
    /// Returns the length of a video that ends with its recording of `frames` video frames.
    ///
    /// A video of fewer clips than the recording fills has whole clips, less the dropped frames.
    pub(crate) fn of_recording(frames: usize, at_most: Option<usize>, units: Units) -> Self {
        let clips = Self::clips_of(frames, units).min(at_most.unwrap_or(usize::MAX));
        let frames = frames.min(clips * units.clip - DROPPED_FRAMES);
        Self {
            clips,
            blocks: (frames + DROPPED_FRAMES).div_ceil(units.block),
            frames,
        }
    }

    /// Counts the clips that a recording of `frames` video frames fills.
    pub(crate) fn clips_of(frames: usize, units: Units) -> usize {
        (frames + DROPPED_FRAMES).div_ceil(units.clip)
    }

    /// Returns the length of a video of whole clips, less the dropped frames.
    pub(crate) fn of_clips(clips: usize, units: Units) -> Self {
        Self {
            clips,
            blocks: clips * units.clip / units.block,
            frames: clips * units.clip - DROPPED_FRAMES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_is_as_long_as_its_recording() {
        let units = Units {
            clip: 48,
            block: 12,
        };
        for (recording, at_most, (clips, blocks, frames)) in [
            (2, None, (1, 1, 2)),
            (9, None, (1, 1, 9)),
            (10, None, (1, 2, 10)),
            (25, None, (1, 3, 25)),
            // Exactly a clip, and one frame more.
            (45, None, (1, 4, 45)),
            (46, None, (2, 5, 46)),
            (100, None, (3, 9, 100)),
            // Fewer clips than the recording fills, and more.
            (100, Some(2), (2, 8, 93)),
            (100, Some(1), (1, 4, 45)),
            (100, Some(9), (3, 9, 100)),
        ] {
            let want = Length {
                clips,
                blocks,
                frames,
            };
            assert_eq!(Length::of_recording(recording, at_most, units), want);
        }
        // A million seconds: more frames than f32 counts, and fewer than u32 does.
        let long = Length::of_recording(25_000_000, None, units);
        assert_eq!((long.clips, long.blocks), (520_834, 2_083_334));
        let whole = Length::of_clips(2, units);
        assert_eq!((whole.clips, whole.blocks, whole.frames), (2, 8, 93));
    }
}
