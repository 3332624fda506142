//! A request for one video: what to make, and which files to write.

use std::path::PathBuf;

use crate::chain::decoders::Mode;
use crate::media::mp4::Encoding;
use crate::media::picture::{Fit, Reading};
use crate::numbers::size::{Size, SizeMode};

/// How many clips to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clips {
    /// As many as the recording fills. Silence pads the last one.
    #[default]
    Auto,
    /// At most this many, and never more than the recording fills.
    AtMost(usize),
}

/// What to generate. Where it runs is the [`crate::generate::Engine`]'s placement.
#[derive(Clone, Debug)]
pub struct Request {
    /// Picture of the person.
    pub image: PathBuf,
    /// Use of the picture's profile and transparency.
    pub reading: Reading,
    /// Speech.
    pub audio: PathBuf,
    /// Text that describes the video.
    pub prompt: String,
    /// Size that the user asks for.
    pub size: Size,
    /// Meaning of `size`.
    pub size_mode: SizeMode,
    /// How a picture of another shape fills an exact size.
    pub fit: Fit,
    /// Clips to make.
    pub clips: Clips,
    /// Denoising steps.
    pub steps: usize,
    /// Video frames of a clip.
    pub infer_frames: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Pipeline of the reference to follow.
    pub mode: Mode,
    /// Recorded noise and distances instead of seeded ones.
    pub replay: Option<PathBuf>,
    /// Files to write.
    pub files: OutputFiles,
}

/// The files that a run writes.
#[derive(Clone, Debug)]
pub struct OutputFiles {
    /// The video.
    pub video: PathBuf,
    /// Codec settings of the video.
    pub encoding: Encoding,
    /// A sheet of frames spread over the video.
    pub contact_sheet: Option<PathBuf>,
    /// Every tensor that the run computes on its way.
    pub trace: Option<PathBuf>,
}
