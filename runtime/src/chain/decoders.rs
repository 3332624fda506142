//! Decodes clean latents to frames, in order, on one thread. The multi-device pipeline decodes the
//! video as one; the single-device pipelines decode every clip from scratch. Both hold one block of
//! frames at a time. Everything that depends on the pipeline is decided here.
//!
//! Source: `liveavatar/models/wan/causal_s2v_pipeline_tpp.py` and `causal_s2v_pipeline.py`
//! @ 9c2c38d.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use engines::backend::EngineError;
use engines::cancel::Cancel;
use engines::components::dit::MOTION_FRAMES;
use engines::tensor::Tensor;
use engines::tensor_file::Tensors;

use crate::chain::call::AnchorInput;
use crate::chain::error::ChainError;
use crate::chain::executor::Feedback;
use crate::chain::job::{Finished, Swap};
use crate::chain::vae::{Decoder, Encoder, Frames};
use crate::numbers::latents;
use crate::numbers::timing::{DROPPED_FRAMES, MOTION_PIXEL_FRAMES, PRIMING_LATENTS};

/// Copies of the picture that the single-device pipeline encodes for one reference latent.
const SINGLE_REPEATS: usize = 5;

/// Which of the reference's pipelines is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The multi-GPU pipeline: the video is decoded as one, and the anchor is swapped before the
    /// second clip.
    #[default]
    Tpp,
    /// The single-GPU pipeline: every clip is decoded from scratch after the motion latents. The
    /// anchor stays.
    Single,
    /// As [`Mode::Single`], but the first decoded clip becomes the second's reference and motion.
    SingleOnline,
}

impl Mode {
    /// Returns the name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tpp => "tpp",
            Self::Single => "single",
            Self::SingleOnline => "single, online decode",
        }
    }

    /// Returns where the second anchor comes from.
    pub fn swap(self) -> Swap {
        match self {
            Self::Tpp => Swap::FirstLatent,
            Self::Single => Swap::Never,
            Self::SingleOnline => Swap::Fed,
        }
    }

    /// Returns whether a video of more than one clip swaps its anchor.
    pub fn swaps(self) -> bool {
        self.swap() != Swap::Never
    }

    /// Returns whether the decoder encodes motion between clips, and so needs the VAE's encoder on
    /// its device.
    pub fn encodes_motion(self) -> bool {
        match self {
            Self::Tpp => false,
            Self::Single | Self::SingleOnline => true,
        }
    }

    /// Returns the name of a clip's motion latents in the golden end-to-end files, or `None` where
    /// they do not have them.
    pub fn motion_key(self, clip: usize) -> Option<String> {
        match (self, clip) {
            (Self::Tpp, 0) => Some("motion_latents".to_owned()),
            (Self::Tpp, _) => None,
            (Self::Single | Self::SingleOnline, 0) => Some("motion_latents_last19".to_owned()),
            (Self::Single | Self::SingleOnline, _) => {
                Some(format!("motion_latents.clip{clip}_last19"))
            }
        }
    }

    /// Returns how many copies of the picture are encoded, and which latent frame of them is the
    /// reference. The encoder is causal, so the first latent frame differs from later ones.
    fn picture_frames(self) -> (usize, usize) {
        match self {
            Self::Tpp => (MOTION_PIXEL_FRAMES, 0),
            Self::Single | Self::SingleOnline => (SINGLE_REPEATS * MOTION_PIXEL_FRAMES, 1),
        }
    }
}

/// Names of a clip decoder's tensors in a kept state: motion latents, and the newest frames.
const MOTION: &str = "motion_latents";
const WINDOW: &str = "window";

/// One block of the video.
pub(crate) struct VideoBlock<'a> {
    /// Number of the block in the video.
    pub index: usize,
    /// Clean latents, `[1, Z, F, H/8, W/8]`.
    pub latents: &'a Tensor,
    /// The block's frames. The first block has [`DROPPED_FRAMES`] frames fewer, and the last one
    /// ends with the video.
    pub frames: Frames,
}

/// Receives the video block by block.
pub(crate) trait BlockSink: Send {
    /// The reason why the sink cannot go on.
    type Error;

    /// Takes the next block.
    ///
    /// # Errors
    /// The sink cannot go on; the video ends.
    fn block(&mut self, block: VideoBlock<'_>) -> Result<(), Self::Error>;

    /// Takes the input of the anchor of `clip`, when the anchor changes.
    fn anchor(&mut self, _clip: usize, _input: &AnchorInput) {}

    /// Says whether states are kept at all. The second anchor's input belongs to them.
    fn keeps_states(&self) -> bool {
        false
    }

    /// Says whether the state before `block` is kept, the first of a clip or the one after the
    /// last.
    fn keeps(&self, _block: usize) -> bool {
        false
    }

    /// Takes the decoder's state before `block`. The blocks before it were taken already.
    ///
    /// # Errors
    /// The sink cannot go on.
    fn state(&mut self, _block: usize, _state: Tensors) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The error of a decoding: the chain failed, or the sink did.
#[derive(Debug)]
pub(crate) enum Decoding<E> {
    /// A graph failed, or the run was cancelled.
    Chain(ChainError),
    /// The sink could not go on.
    Sink(E),
}

impl<E> From<ChainError> for Decoding<E> {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl<E> From<EngineError> for Decoding<E> {
    fn from(error: EngineError) -> Self {
        Self::Chain(error.into())
    }
}

/// Latents that the picture alone gives.
pub(crate) struct PictureLatents {
    /// Latents of the picture, `[1, Z, 1, H/8, W/8]`.
    pub ref_latents: Tensor,
    /// Latents of the motion history, `[1, Z, 19, ...]`, or 92 in the single-device pipelines.
    pub motion_latents: Tensor,
}

impl PictureLatents {
    /// Encodes the picture `[3, H, W]`, in [-1, 1], for `mode`. `progress` gets the copies that are
    /// encoded, and all of them.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn encode(
        encoder: &mut Encoder,
        picture: &Tensor,
        mode: Mode,
        progress: impl Fn(usize, usize),
    ) -> Result<Self, EngineError> {
        let (count, at) = mode.picture_frames();
        let copies = (0..count).map(|done| {
            progress(done, count);
            picture
        });
        let motion_latents = encoder.encode(copies)?;
        Ok(Self {
            ref_latents: latents::frames(&motion_latents, at..at + 1),
            motion_latents,
        })
    }

    /// Returns the first anchor's input.
    pub(crate) fn anchor(&self) -> AnchorInput {
        AnchorInput {
            ref_latents: self.ref_latents.clone(),
            motion_latents: newest(&self.motion_latents),
        }
    }
}

/// Returns the newest motion latents, as many as the sink packs.
fn newest(motion: &Tensor) -> Tensor {
    let total = motion.shape()[2];
    latents::frames(motion, total - MOTION_FRAMES..total)
}

/// The decoder of one video in any mode.
pub(crate) enum VideoDecoder {
    /// Decodes the whole video as one.
    Continuous(ContinuousDecoder),
    /// Decodes clip by clip.
    Clips(ClipDecoder),
}

/// Sizes of the video that a decoder makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VideoLength {
    /// Blocks of a clip.
    pub clip_blocks: usize,
    /// Clips of the video.
    pub clips: usize,
    /// Frames of the video. The last block may give more, which are cut off.
    pub frames: usize,
}

/// The state that a decoder goes on with.
pub(crate) struct Resumed {
    /// First block to decode, the first of a clip.
    pub block: usize,
    /// Frames of the video before it.
    pub frames: usize,
    /// What [`BlockSink::state`] got.
    pub state: Tensors,
}

impl VideoLength {
    /// Cuts the frames of a block to those of the video. `before` frames precede them.
    fn cut(self, frames: Frames, before: &mut usize) -> Frames {
        let frames = frames.take(self.frames - *before);
        *before += frames.count();
        frames
    }
}

impl VideoDecoder {
    /// Makes the decoder that `mode` wants. `encoder` is there where the mode encodes motion, and
    /// `picture` is `[3, H, W]`.
    pub(crate) fn new(
        mode: Mode,
        decoder: Decoder,
        encoder: Option<Encoder>,
        picture: &Tensor,
        latents: PictureLatents,
        length: VideoLength,
        resumed: Option<Resumed>,
    ) -> Self {
        match encoder {
            None => Self::Continuous(ContinuousDecoder {
                decoder,
                resumed,
                motion_latents: latents.motion_latents,
                length,
            }),
            Some(encoder) => Self::Clips(ClipDecoder {
                decoder,
                resumed,
                encoder,
                picture: picture.clone(),
                motion_latents: latents.motion_latents,
                length,
                online: mode.swap() == Swap::Fed,
            }),
        }
    }

    /// Decodes until the denoiser has no more. `feedback` brings the second anchor's input where
    /// the mode wants that.
    ///
    /// # Errors
    /// A graph or the sink fails; [`ChainError::Cancelled`] after the block at hand.
    pub(crate) fn run<S: BlockSink>(
        self,
        finished: &Receiver<Finished>,
        feedback: &Feedback,
        sink: &mut S,
        cancel: &Cancel,
    ) -> Result<(), Decoding<S::Error>> {
        match self {
            Self::Continuous(decoder) => decoder.run(finished, feedback, sink, cancel),
            Self::Clips(clips) => clips.run(finished, feedback, sink, cancel),
        }
    }
}

fn unless_cancelled(cancel: &Cancel) -> Result<(), ChainError> {
    if cancel.is_cancelled() {
        return Err(ChainError::Cancelled);
    }
    Ok(())
}

/// The decoder of the multi-device pipeline. It decodes the whole video as one, after the oldest
/// motion latents.
pub(crate) struct ContinuousDecoder {
    decoder: Decoder,
    resumed: Option<Resumed>,
    motion_latents: Tensor,
    length: VideoLength,
}

impl ContinuousDecoder {
    fn run<S: BlockSink>(
        mut self,
        finished: &Receiver<Finished>,
        feedback: &Feedback,
        sink: &mut S,
        cancel: &Cancel,
    ) -> Result<(), Decoding<S::Error>> {
        let mut before = self.begin()?;
        for Finished { block, latents } in finished {
            unless_cancelled(cancel)?;
            let dropped = if block == 0 { DROPPED_FRAMES } else { 0 };
            let frames = self.decoder.decode(&latents)?.skip(dropped);
            feedback.decoded();
            if block == 0 && (self.length.clips > 1 || sink.keeps_states()) {
                let ref_latents = latents::frames(&latents, 0..1);
                sink.anchor(
                    1,
                    &AnchorInput {
                        ref_latents,
                        motion_latents: newest(&self.motion_latents),
                    },
                );
            }
            sink.block(VideoBlock {
                index: block,
                latents: &latents,
                frames: self.length.cut(frames, &mut before),
            })
            .map_err(Decoding::Sink)?;
            let next = block + 1;
            if next.is_multiple_of(self.length.clip_blocks) && sink.keeps(next) {
                let state = self.decoder.kept()?;
                sink.state(next, state).map_err(Decoding::Sink)?;
            }
        }
        Ok(())
    }

    /// Decodes the motion that is dropped, or goes on with a kept state. Returns the frames of the
    /// video so far.
    fn begin(&mut self) -> Result<usize, EngineError> {
        if let Some(resumed) = &self.resumed {
            self.decoder.restore(&resumed.state)?;
            return Ok(resumed.frames);
        }
        self.decoder.reset();
        for i in 0..PRIMING_LATENTS {
            self.decoder
                .decode_one(latents::frames(&self.motion_latents, i..i + 1).view())?;
        }
        Ok(0)
    }
}

/// The decoder of the single-device pipelines. It decodes every clip from scratch, after all motion
/// latents. After each clip it encodes the motion latents anew, from the newest 365 frames.
pub(crate) struct ClipDecoder {
    decoder: Decoder,
    resumed: Option<Resumed>,
    encoder: Encoder,
    /// `[3, H, W]`.
    picture: Tensor,
    /// All 92.
    motion_latents: Tensor,
    length: VideoLength,
    /// The first decoded clip conditions the following ones.
    online: bool,
}

impl ClipDecoder {
    fn run<S: BlockSink>(
        mut self,
        finished: &Receiver<Finished>,
        feedback: &Feedback,
        sink: &mut S,
        cancel: &Cancel,
    ) -> Result<(), Decoding<S::Error>> {
        let (mut window, mut before, first_clip) = self.begin()?;
        for clip in first_clip..self.length.clips {
            let Some(first) =
                self.clip(&mut window, (finished, feedback), sink, cancel, &mut before)?
            else {
                break;
            };
            let (last, next) = (
                clip + 1 == self.length.clips,
                (clip + 1) * self.length.clip_blocks,
            );
            if last && !sink.keeps(next) {
                break;
            }
            self.motion_latents = self.encoder.encode(window.iter().map(Arc::as_ref))?;
            if self.online && clip == 0 {
                let input = AnchorInput {
                    ref_latents: first,
                    motion_latents: newest(&self.motion_latents),
                };
                sink.anchor(1, &input);
                if !last {
                    feedback.anchor(input);
                }
            }
            if sink.keeps(next) {
                let state = self.kept(&window);
                sink.state(next, state).map_err(Decoding::Sink)?;
            }
        }
        Ok(())
    }

    /// Returns the newest frames, the frames of the video so far and the first clip: those of the
    /// beginning, or of a kept state.
    fn begin(&mut self) -> Result<(VecDeque<Arc<Tensor>>, usize, usize), EngineError> {
        let count = SINGLE_REPEATS * MOTION_PIXEL_FRAMES;
        let Some(Resumed {
            block,
            frames,
            mut state,
        }) = self.resumed.take()
        else {
            let picture = Arc::new(self.picture.clone());
            return Ok((std::iter::repeat_n(picture, count).collect(), 0, 0));
        };
        let mut kept = |name: &str| {
            state.remove(name).ok_or_else(|| EngineError::Bind {
                component: "VAE decoder".to_owned(),
                port: name.to_owned(),
                want: "a tensor in the kept state".to_owned(),
                got: "none".to_owned(),
            })
        };
        self.motion_latents = kept(MOTION)?;
        let window = kept(WINDOW)?;
        let frame = |i| {
            Arc::new(
                window
                    .lanes(i..i + 1)
                    .to_tensor()
                    .reshaped(&window.shape()[1..]),
            )
        };
        let all = (0..window.shape()[0]).map(frame).collect();
        Ok((all, frames, block / self.length.clip_blocks))
    }

    /// Copies what the next clip needs.
    fn kept(&self, window: &VecDeque<Arc<Tensor>>) -> Tensors {
        let lane = |frame: &Arc<Tensor>| {
            let shape = [&[1], frame.shape()].concat();
            frame.as_ref().clone().reshaped(&shape)
        };
        let frames: Vec<Tensor> = window.iter().map(lane).collect();
        let window = Tensor::stack(frames.iter().map(Tensor::view));
        [
            (MOTION.to_owned(), self.motion_latents.clone()),
            (WINDOW.to_owned(), window),
        ]
        .into()
    }

    /// Decodes one clip. Returns its first latent frame, or `None` when the denoiser has ended.
    ///
    /// `before` counts the frames of the video before this clip, and then those with it.
    fn clip<S: BlockSink>(
        &mut self,
        window: &mut VecDeque<Arc<Tensor>>,
        (finished, feedback): (&Receiver<Finished>, &Feedback),
        sink: &mut S,
        cancel: &Cancel,
        before: &mut usize,
    ) -> Result<Option<Tensor>, Decoding<S::Error>> {
        self.decoder.reset();
        for i in 0..self.motion_latents.shape()[2] {
            unless_cancelled(cancel)?;
            self.decoder
                .decode_one(latents::frames(&self.motion_latents, i..i + 1).view())?;
        }
        let mut first = None;
        for _ in 0..self.length.clip_blocks {
            let Ok(Finished { block, latents }) = finished.recv() else {
                return Ok(None);
            };
            unless_cancelled(cancel)?;
            let dropped = if block == 0 { DROPPED_FRAMES } else { 0 };
            let frames = self.decoder.decode(&latents)?.skip(dropped);
            feedback.decoded();
            remember(window, &frames.pixels);
            first.get_or_insert_with(|| latents::frames(&latents, 0..1));
            sink.block(VideoBlock {
                index: block,
                latents: &latents,
                frames: self.length.cut(frames, before),
            })
            .map_err(Decoding::Sink)?;
        }
        Ok(first)
    }
}

/// Adds frames to the window and removes as many of the oldest.
fn remember(window: &mut VecDeque<Arc<Tensor>>, pixels: &Tensor) {
    let shape = pixels.shape();
    for t in 0..shape[2] {
        window.pop_front();
        let frame = latents::frames(pixels, t..t + 1).reshaped(&[shape[1], shape[3], shape[4]]);
        window.push_back(Arc::new(frame));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::mpsc::sync_channel;

    use engines::components::vae::VaeConfig;

    use super::*;
    use crate::chain::executor;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, small_geometry};
    use crate::placement::plan::{Lanes, Plan, Stages};
    use engines::backend::plain;

    /// Blocks as (index, frames, level of the first pixel), and anchors as (clip, reference, newest
    /// motion).
    #[derive(Default)]
    struct Seen {
        blocks: Vec<(usize, usize, u8)>,
        anchors: Vec<(usize, f32, f32)>,
        cancel: Option<(usize, Cancel)>,
    }

    impl BlockSink for Seen {
        type Error = Infallible;

        fn block(&mut self, block: VideoBlock<'_>) -> Result<(), Infallible> {
            assert_eq!(block.frames.pixels.shape()[2], block.frames.count());
            self.blocks.push((
                block.index,
                block.frames.count(),
                block.frames.rgb.bytes()[0],
            ));
            if let Some((_, cancel)) = self.cancel.as_ref().filter(|(at, _)| *at == block.index) {
                cancel.cancel();
            }
            Ok(())
        }

        fn anchor(&mut self, clip: usize, input: &AnchorInput) {
            let motion = input.motion_latents.as_slice::<f32>();
            self.anchors.push((
                clip,
                input.ref_latents.as_slice::<f32>()[0],
                motion[motion.len() - 1],
            ));
        }
    }

    type Outcome = Result<(), Decoding<Infallible>>;

    /// Decodes `clips` clips of 4 blocks whose latents are `block / 10`. Returns the result, the
    /// events and the components that ran.
    fn decode(mode: Mode, clips: usize, seen: Seen) -> (Outcome, Seen, Vec<String>) {
        let length = VideoLength {
            clip_blocks: 4,
            clips,
            frames: 48 * clips - 3,
        };
        decode_blocks(mode, 4 * clips, length, seen)
    }

    fn decode_blocks(
        mode: Mode,
        blocks: usize,
        length: VideoLength,
        mut seen: Seen,
    ) -> (Outcome, Seen, Vec<String>) {
        let g = small_geometry(48);
        let backend = Fake::new(config(1), g.clone());
        let vae = VaeConfig {
            dim: 1,
            latent_channels: 16,
            ..VaeConfig::default()
        };
        let plan = Plan::new(&Stages::default(), Lanes::Auto, 1, 4).unwrap();
        let (feedback, _inbox) = executor::inbox(&plan, 4);
        let (sender, finished) = sync_channel(100);
        for block in 0..blocks {
            let shape = g.latents_shape(3);
            let latents =
                Tensor::from_slice(&shape, &vec![block as f32 / 10.0; shape.iter().product()]);
            sender.send(Finished { block, latents }).unwrap();
        }
        drop(sender);
        let cancel = seen
            .cancel
            .as_ref()
            .map(|(_, c)| c.clone())
            .unwrap_or_default();
        let picture = Tensor::from_slice(&[3, 32, 32], &[-1f32; 3 * 32 * 32]);
        let mut encoder = Encoder::load(&backend, &plain(), &vae).unwrap();
        let latents = PictureLatents::encode(&mut encoder, &picture, mode, |_, _| ()).unwrap();
        let decoder = Decoder::load(&backend, &plain(), &vae).unwrap();
        backend.log.lock().unwrap().clear();
        let encoder = mode.encodes_motion().then_some(encoder);
        let decoder = VideoDecoder::new(mode, decoder, encoder, &picture, latents, length, None);
        let result = decoder.run(&finished, &feedback, &mut seen, &cancel);
        let log = backend.log.lock().unwrap().clone();
        (result, seen, log)
    }

    fn runs(log: &[String], name: &str) -> usize {
        log.iter().filter(|c| *c == name).count()
    }

    #[test]
    fn every_mode_gives_every_frame_but_the_first_three() {
        for mode in [Mode::Tpp, Mode::Single, Mode::SingleOnline] {
            let (result, seen, _) = decode(mode, 3, Seen::default());
            result.unwrap();
            let frames: Vec<usize> = seen.blocks.iter().map(|b| b.1).collect();
            assert_eq!(frames.iter().sum::<usize>(), 3 * 48 - 3, "{mode:?}");
            assert_eq!((frames[0], frames[4], frames[8]), (9, 12, 12), "{mode:?}");
            let levels: Vec<u8> = seen.blocks.iter().map(|b| b.2).collect();
            assert!(
                seen.blocks.iter().map(|b| b.0).eq(0..12) && levels.is_sorted() && levels[0] == 127,
                "{levels:?}"
            );
        }
    }

    #[test]
    fn the_last_block_is_cut_where_the_video_ends() {
        for mode in [Mode::Tpp, Mode::Single, Mode::SingleOnline] {
            for (blocks, frames, last) in [(1_usize, 2, 2), (4, 45, 12), (5, 46, 1), (6, 64, 7)] {
                let length = VideoLength {
                    clip_blocks: 4,
                    clips: blocks.div_ceil(4),
                    frames,
                };
                let (result, seen, _) = decode_blocks(mode, blocks, length, Seen::default());
                result.unwrap();
                let counts: Vec<usize> = seen.blocks.iter().map(|b| b.1).collect();
                assert_eq!(counts.iter().sum::<usize>(), frames, "{mode:?}: {counts:?}");
                assert_eq!(counts.last(), Some(&last), "{mode:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn the_stream_is_primed_once_and_its_anchor_is_block_zeros_first_frame() {
        let (_, seen, log) = decode(Mode::Tpp, 2, Seen::default());
        assert_eq!(
            (
                runs(&log, "vae_decoder_first"),
                runs(&log, "vae_decoder_next")
            ),
            (1, 6 + 24)
        );
        assert_eq!(seen.anchors, [(1, 0.0, -1.0)]);
        assert_eq!(
            runs(&log, "vae_encoder_first"),
            0,
            "motion is never encoded again"
        );
        assert_eq!(decode(Mode::Tpp, 1, Seen::default()).1.anchors, []);
    }

    #[test]
    fn clips_are_decoded_from_scratch_and_motion_is_encoded_between_them() {
        for (mode, clips, anchors) in [
            (Mode::Single, 3, vec![]),
            (Mode::SingleOnline, 1, vec![]),
            // The newest motion latent sees the clip's last block.
            (Mode::SingleOnline, 3, vec![(1, 0.0, 0.3)]),
        ] {
            let (_, seen, log) = decode(mode, clips, Seen::default());
            assert_eq!(seen.anchors, anchors, "{mode:?}");
            assert_eq!(
                (
                    runs(&log, "vae_decoder_first"),
                    runs(&log, "vae_decoder_next")
                ),
                (clips, clips * (91 + 12))
            );
            assert_eq!(
                (
                    runs(&log, "vae_encoder_first"),
                    runs(&log, "vae_encoder_next")
                ),
                (clips - 1, (clips - 1) * 91)
            );
        }
    }

    #[test]
    fn the_picture_gives_19_or_92_motion_latents() {
        let g = small_geometry(48);
        let backend = Fake::new(config(1), g.clone());
        let mut encoder = Encoder::load(
            &backend,
            &plain(),
            &VaeConfig {
                dim: 1,
                latent_channels: 16,
                ..VaeConfig::default()
            },
        )
        .unwrap();
        let picture = Tensor::from_slice(&[3, 32, 32], &[0.5f32; 3 * 32 * 32]);
        for (mode, count) in [
            (Mode::Tpp, 19),
            (Mode::Single, 92),
            (Mode::SingleOnline, 92),
        ] {
            let latents = PictureLatents::encode(&mut encoder, &picture, mode, |_, _| ()).unwrap();
            assert_eq!(
                (
                    latents.motion_latents.shape()[2],
                    latents.anchor().motion_latents.shape()[2]
                ),
                (count, 19)
            );
            assert_eq!(latents.ref_latents.shape(), g.latents_shape(1));
        }
    }

    #[test]
    fn a_cancelled_decoder_keeps_the_block_at_hand() {
        for mode in [Mode::Tpp, Mode::Single] {
            let seen = Seen {
                cancel: Some((5, Cancel::default())),
                ..Seen::default()
            };
            let (result, seen, _) = decode(mode, 3, seen);
            assert!(matches!(
                result,
                Err(Decoding::Chain(ChainError::Cancelled))
            ));
            assert_eq!(seen.blocks.len(), 6, "{mode:?}");
        }
    }
}
