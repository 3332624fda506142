//! The events that a run reports while it works.
//! [`crate::commands::progress`] shows the events.

use std::path::PathBuf;
use std::time::Duration;

use engines::tensor::{Tensor, View};

use crate::chain::clock::Spent;
use crate::chain::vae::Frames;
use crate::numbers::size::{Size, SizeMode};
use crate::placement::wavefront::Item;

/// Something that happened. The event borrows its tensors: an observer that keeps one copies it.
pub enum Event<'a> {
    /// Inputs are read and the settings are final.
    Started(&'a Settings),
    /// What devices with a memory of their own are planned to hold, before anything is loaded.
    Planned(&'a [PlannedMemory]),
    /// A part of the work begins.
    Phase(Phase),
    /// A fact that the user should know and that needs no action.
    Notice(String),
    /// Copies of the picture are encoded, each as a frame of a still video.
    Encoding {
        /// Copies so far.
        done: usize,
        /// All copies.
        of: usize,
    },
    /// An anchor's conditions are computed.
    Anchored {
        /// Number of the anchor: 0 for the picture's, 1 for the one after the swap.
        index: usize,
    },
    /// One denoising step of one block, `[1, Z, F, H/8, W/8]` each.
    Stepped {
        /// Block and step.
        item: Item,
        /// Latents after the step.
        latents: View<'a>,
        /// The predicted noise.
        noise_pred: View<'a>,
    },
    /// A block's clean latents left the denoiser.
    Denoised {
        /// Number of the block in the video.
        block: usize,
        /// Clean latents, `[1, Z, F, H/8, W/8]`.
        latents: &'a Tensor,
    },
    /// A block's frames left the decoder, in [-1, 1] and as bytes.
    Decoded {
        /// Number of the block in the video.
        block: usize,
        /// Frames of the block.
        frames: &'a Frames,
    },
    /// A block's frames are on the disk; `frames` counts all frames so far.
    Written {
        /// Number of the block in the video.
        block: usize,
        /// Frames of the video so far.
        frames: usize,
        /// Time since the last sound of the block arrived, where sound arrives.
        latency: Option<Duration>,
    },
    /// The run has ended and its files are complete.
    Finished(&'a Summary),
}

/// Memory of one device, as it is planned.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlannedMemory {
    /// Name of the device, such as `cuda:0`.
    pub device: String,
    /// Most bytes that a run holds there.
    pub bytes: u64,
}

/// A part of the work, in the order of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An export is opened and its files are hashed.
    OpeningModels,
    /// Picture, speech and prompt are read.
    ReadingInputs,
    /// The text encoder runs.
    EncodingPrompt,
    /// The speech encoder runs.
    EncodingSpeech,
    /// The VAE encodes the picture.
    EncodingPicture,
    /// Blocks are denoised, decoded and written.
    Denoising,
    /// A check runs; the text says which one.
    Checking(&'static str),
}

impl Phase {
    /// Returns the text that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpeningModels => "opening the models",
            Self::ReadingInputs => "reading inputs",
            Self::EncodingPrompt => "encoding the prompt",
            Self::EncodingSpeech => "encoding the speech",
            Self::EncodingPicture => "encoding the picture",
            Self::Denoising => "denoising",
            Self::Checking(name) => name,
        }
    }
}

/// Receives events from several threads.
pub trait Observer: Sync {
    /// Receives one event. It is called by several threads, and the run waits for it.
    fn event(&self, event: &Event<'_>);
}

/// An observer that ignores every event.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event<'_>) {}
}

/// Settings after every default and rule was applied.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Settings {
    /// Size that the user asked for.
    pub requested_size: Size,
    /// Size of the video.
    pub effective_size: Size,
    /// Rule that made the one from the other.
    pub size_mode: SizeMode,
    /// Size of the picture.
    pub picture_size: Size,
    pub mode: &'static str,
    /// Clips of the video. This and the other lengths are 0 where sound arrives without a known end.
    pub clips: usize,
    /// Clips that the recording fills.
    pub clips_in_audio: usize,
    /// Blocks of the video.
    pub blocks: usize,
    /// Blocks of a clip.
    pub clip_blocks: usize,
    /// Frames of the video.
    pub frames: usize,
    /// Length of the video.
    pub video_seconds: f64,
    /// Length of the recording.
    pub audio_seconds: f64,
    /// Sound after a block that must have arrived before it is made, where sound arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_ahead_seconds: Option<f64>,
    /// Denoising steps.
    pub steps: usize,
    /// Solver of the steps.
    pub solver: &'static str,
    /// Shift of the sigmas.
    pub shift: f64,
    /// Scale of the guidance; 1 or less is none.
    pub guide_scale: f32,
    /// Frames of a clip.
    pub infer_frames: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// The cleaned prompt.
    pub prompt: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The placement in words.
    pub placement: String,
    /// The video file, if one is written.
    pub out: Option<PathBuf>,
}

/// Results of a finished run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// The video file, if one was written.
    pub out: Option<PathBuf>,
    /// Frames of the video.
    pub frames: usize,
    /// Length of the video.
    pub video_seconds: f64,
    /// Time from the start of the command to its end.
    pub wall_seconds: f64,
    /// Frames of the video that an earlier run made, which this run went on from.
    pub resumed_frames: usize,
    /// Frames a second, from the start of denoising, without those of an earlier run.
    pub frames_per_second: f64,
    /// Time from the start of the command to the first frames on the disk.
    pub first_frame_seconds: f64,
    /// Real-time factor: `wall_seconds` as a part of the video's length. Below 1, a video is made
    /// faster than it plays.
    pub real_time_factor: f64,
    /// `first_frame_seconds` as a part of the video's length.
    pub first_frame_factor: f64,
    /// Time of opening the export and its components, a part of `wall_seconds`. It is 0 for a video
    /// on an engine that has all of them open.
    pub opening_seconds: f64,
    /// Time of the video encoder and the disk.
    pub writing_seconds: f64,
    /// Calls of each component, the longest first.
    pub components: Vec<Spent>,
    /// Most resident memory of the process, where the system says it.
    pub peak_memory_bytes: Option<u64>,
    /// Size that the user asked for.
    pub requested_size: Size,
    /// Size of the video.
    pub effective_size: Size,
}
