//! Makes the input of each block: noise, and audio tokens of the speech.

use std::iter;

use engines::tensor::Tensor;

use crate::chain::call::BlockAudio;
use crate::chain::encoders::AudioAdapter;
use crate::chain::error::ChainError;
use crate::chain::vae::Encoder;
use crate::inputs::pose::PoseVideo;
use crate::inputs::replay::Replay;
use crate::inputs::speech::{AudioFeatures, HIDDEN_LAYERS};
use crate::numbers::geometry::Geometry;
use crate::numbers::{latents, rng};

/// Input of the denoiser for one block.
pub(crate) struct BlockInput {
    /// Noise, `[1, Z, F, H/8, W/8]`.
    pub latents: Tensor,
    /// Audio tokens.
    pub audio: BlockAudio,
    /// Latents of the pose, of the shape of the noise; `None` without a pose video.
    pub pose: Option<Tensor>,
}

/// A source of blocks in ascending order.
pub(crate) trait Source: Send {
    /// # Errors
    /// A graph fails, or the pose video cannot be read.
    fn block(&mut self, block: usize) -> Result<BlockInput, ChainError>;
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
    /// Features of the speech of each person.
    pub features: &'a [AudioFeatures],
    /// Weight of each person's sound for each token, `[1, A, F, h*w]`.
    pub mask: &'a Tensor,
    /// The audio encoder.
    pub adapter: AudioAdapter,
    /// Origin of the pose, if there is one.
    pub pose: Option<PoseSource>,
    clip: Option<(usize, Tensor)>,
}

/// The pose of a video. It encodes the pose of a clip for its first block and keeps it to its last.
///
/// Source: `load_pose_cond`, as [`crate::inputs::pose`].
pub(crate) struct PoseSource {
    video: PoseVideo,
    encoder: Encoder,
    clip: Option<(usize, Tensor)>,
}

impl PoseSource {
    /// Makes a source before its first block.
    pub(crate) fn new(video: PoseVideo, encoder: Encoder) -> Self {
        Self {
            video,
            encoder,
            clip: None,
        }
    }

    /// Encodes a clip of `frames` frames: its first frame once more, then all of them. The latent
    /// of the copy is dropped.
    fn encode(&mut self, clip: usize, frames: usize) -> Result<Tensor, ChainError> {
        let mut failure = None;
        let read = iter::once(0).chain(0..frames).map_while(|at| {
            let frame = self.video.frame(clip, at);
            frame.map_err(|error| failure = Some(error)).ok()
        });
        let encoded = self.encoder.encode(read);
        if let Some(error) = failure {
            return Err(error.into());
        }
        let encoded = encoded?;
        Ok(latents::frames(&encoded, 1..encoded.shape()[2]))
    }
}

impl<'a> ClipSource<'a> {
    /// Makes a source before its first block.
    pub(crate) fn new(
        geometry: &'a Geometry,
        noise: Noise<'a>,
        features: &'a [AudioFeatures],
        mask: &'a Tensor,
        adapter: AudioAdapter,
    ) -> Self {
        Self {
            geometry,
            noise,
            features,
            mask,
            adapter,
            pose: None,
            clip: None,
        }
    }

    fn pose(&mut self, block: usize) -> Result<Option<Tensor>, ChainError> {
        let (g, Some(source)) = (self.geometry, &mut self.pose) else {
            return Ok(None);
        };
        let clip = block / g.clip_blocks;
        let kept = source.clip.take().filter(|(at, _)| *at == clip);
        let (_, encoded) = match kept {
            Some(kept) => source.clip.insert(kept),
            None => {
                let encoded = source.encode(clip, g.clip_video_frames())?;
                source.clip.insert((clip, encoded))
            }
        };
        let at = (block % g.clip_blocks) * g.block_frames;
        Ok(Some(latents::frames(encoded, at..at + g.block_frames)))
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
    fn block(&mut self, block: usize) -> Result<BlockInput, ChainError> {
        let g = self.geometry;
        let frames = g.block_video_frames();
        let wanted = block * frames..(block + 1) * frames;
        let heard = self.features.iter().map(|f| f.block(wanted.clone()));
        let heard: Vec<f32> = heard.flatten().collect();
        let width = self.features.first().map_or(0, AudioFeatures::dim);
        let shape = [self.features.len(), HIDDEN_LAYERS, width, frames];
        let features = Tensor::from_slice(&shape, &heard);
        let audio = self.adapter.tokens(&features, self.mask.clone())?;
        Ok(BlockInput {
            latents: self.noise(block),
            audio,
            pose: self.pose(block)?,
        })
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

#[cfg(all(test, feature = "media"))]
mod tests {
    use std::path::PathBuf;

    use engines::backend::plain;
    use engines::components::vae::VaeConfig;

    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, small_geometry};
    use crate::inputs::pose::PoseShape;
    use crate::media::encoding::{Encoding, Rate};
    use crate::media::picture::Fit;
    use crate::media::target::Target;
    use crate::media::video_writer::VideoWriter;
    use crate::numbers::size::{Size, SizeMode};

    /// Writes a video of so many grey frames, which grow brighter by 4 levels each.
    fn brighter(frames: usize, size: Size) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pose.mp4");
        let encoding = Encoding {
            rate: Rate::Quality(0),
            ..Encoding::default()
        };
        let target = Target::of(&path, None).unwrap();
        let mut writer = VideoWriter::create(&target, size, &encoding, None).unwrap();
        for frame in 0..frames {
            let pixels = vec![(20 + 4 * frame) as u8; 3 * size.width * size.height];
            writer.write_frames(&pixels).unwrap();
        }
        writer.finish().unwrap();
        (dir, path)
    }

    fn level(frame: &Tensor) -> f32 {
        (frame.as_slice::<f32>()[0] + 1.0) / 2.0 * 255.0
    }

    fn shape(size: Size, lead: usize) -> PoseShape {
        PoseShape {
            size,
            mode: SizeMode::Exact,
            fit: Fit::Crop,
            lead,
            clip: 48,
        }
    }

    #[test]
    fn a_pose_is_shown_at_its_time_and_is_black_after_its_end() {
        let (_dir, path) = brighter(
            30,
            Size {
                width: 64,
                height: 48,
            },
        );
        let size = Size {
            width: 32,
            height: 32,
        };
        for lead in [0, 3] {
            let mut pose = PoseVideo::open(&path, shape(size, lead)).unwrap();
            assert_eq!(pose.sampled_rate(), None);
            for at in 0..60 {
                let frame = pose.frame(at / 48, at % 48).unwrap();
                assert_eq!(frame.shape(), [3, 32, 32]);
                let shown = at.saturating_sub(lead);
                let want = if shown < 30 {
                    20.0 + 4.0 * shown as f32
                } else {
                    0.0
                };
                // H.264 has 219 levels of grey.
                assert!(
                    (level(&frame) - want).abs() < 1.6,
                    "{lead} {at}: {}",
                    level(&frame)
                );
            }
        }
    }

    #[test]
    fn a_clip_of_poses_is_encoded_with_its_first_frame_twice() {
        let g = small_geometry(48);
        let (_dir, path) = brighter(30, g.size);
        let vae = VaeConfig {
            dim: 1,
            latent_channels: 16,
            ..VaeConfig::default()
        };
        let backend = Fake::new(config(1), g.clone());
        let encoder = Encoder::load(&backend, &plain(), &vae).unwrap();
        let mut alone = encoder.another(&Default::default());
        let video = PoseVideo::open(&path, shape(g.size, 0)).unwrap();
        let mut source = PoseSource::new(video, encoder);
        let mut again = PoseVideo::open(&path, shape(g.size, 0)).unwrap();
        for clip in 0..2 {
            let got = source.encode(clip, 48).unwrap();
            assert_eq!(got.shape(), g.latents_shape(12));
            let frames: Vec<Tensor> = (0..48).map(|at| again.frame(clip, at).unwrap()).collect();
            let all = iter::once(&frames[0]).chain(&frames);
            let whole = alone.encode(all).unwrap();
            let want = latents::frames(&whole, 1..13);
            assert_eq!(got.bytes(), want.bytes());
            assert!(frames[47].as_slice::<f32>().iter().all(|&v| v == -1.0));
        }
        let runs = backend.log.lock().unwrap();
        let first = runs
            .iter()
            .filter(|name| *name == "vae_encoder_first")
            .count();
        let next = runs
            .iter()
            .filter(|name| *name == "vae_encoder_next")
            .count();
        assert_eq!((first, next), (4, 48));
    }
}
