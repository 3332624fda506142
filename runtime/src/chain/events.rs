//! The events that a run reports while it works, and the request to stop it.
//! [`crate::commands::progress`] shows the events.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engines::tensor::{Tensor, View};

use crate::chain::vae::Frames;
use crate::numbers::size::{Size, SizeMode};
use crate::placement::wavefront::Item;

/// Something that happened. The event borrows its tensors: an observer that keeps one copies it.
pub enum Event<'a> {
    /// Inputs are read and the settings are final.
    Started(&'a Settings),
    /// A part of the work begins.
    Phase(Phase),
    /// A fact that the user should know and that needs no action.
    Notice(String),
    /// An anchor's conditions are computed.
    Anchored {
        index: usize,
    },
    /// One denoising step of one block, `[1, Z, F, H/8, W/8]` each.
    Stepped {
        item: Item,
        latents: View<'a>,
        noise_pred: View<'a>,
    },
    /// A block's clean latents left the denoiser.
    Denoised {
        block: usize,
        latents: &'a Tensor,
    },
    /// A block's frames left the decoder, in [-1, 1] and as bytes.
    Decoded {
        block: usize,
        frames: &'a Frames,
    },
    /// A block's frames are on the disk; `frames` counts all frames so far.
    Written {
        block: usize,
        frames: usize,
    },
    Finished(&'a Summary),
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
    pub requested_size: Size,
    pub effective_size: Size,
    pub size_mode: SizeMode,
    pub picture_size: Size,
    pub mode: &'static str,
    pub clips: usize,
    pub clips_in_audio: usize,
    pub blocks: usize,
    pub clip_blocks: usize,
    pub frames: usize,
    pub video_seconds: f64,
    pub audio_seconds: f64,
    pub steps: usize,
    pub infer_frames: usize,
    pub seed: u64,
    pub prompt: String,
    pub prompt_tokens: usize,
    pub placement: String,
    pub out: Option<PathBuf>,
}

/// What a finished run did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    pub out: Option<PathBuf>,
    pub frames: usize,
    pub video_seconds: f64,
    pub wall_seconds: f64,
    /// From the start of denoising.
    pub frames_per_second: f64,
    /// From the start of the command to the first frames on the disk.
    pub first_frame_seconds: f64,
    pub peak_memory_bytes: Option<u64>,
    pub requested_size: Size,
    pub effective_size: Size,
}

/// A request to stop, shared by a signal handler and every stage.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks to stop; true when it was asked before.
    pub fn cancel(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
