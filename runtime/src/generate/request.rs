//! A request for one video: what to make, and which files to write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engines::claims::{Claims, Existing, FilePlan, real};

use crate::chain::decoders::Mode;
use crate::generate::error::GenerateError;
use crate::inputs::speech::Channels;
use crate::media::contact_sheet;
use crate::media::mp4::Encoding;
use crate::media::partial::partial_path;
use crate::media::pcm::Pcm;
use crate::media::picture::{Fit, Reading};
use crate::numbers::guide_scale::GuideScale;
use crate::numbers::size::{Size, SizeMode};
use crate::numbers::solver::Sampling;
use crate::numbers::timing::Timing;

/// How many clips to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clips {
    /// As many as the recording fills.
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
    /// The form of raw samples on standard input, which then take the place of `audio`.
    pub live: Option<Pcm>,
    /// Channels of the speech that are heard.
    pub channels: Channels,
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
    /// How the time of the video follows the recording's.
    pub timing: Timing,
    /// Denoising steps.
    pub steps: usize,
    /// Solver of the steps and shift of their sigmas.
    pub sampling: Sampling,
    /// Guidance away from a negative prompt and from silence.
    pub guidance: Guiding,
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

/// Guidance as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Guiding {
    /// How far the video is led away. 1 or less is no guidance, as in Wan 2.2.
    pub scale: GuideScale,
    /// What the video should not show.
    pub negative_prompt: String,
}

impl Default for Guiding {
    fn default() -> Self {
        Self {
            scale: GuideScale::default(),
            negative_prompt: NEGATIVE_PROMPT.to_owned(),
        }
    }
}

/// The negative prompt of Wan 2.2's `wan_s2v_14B.py`.
pub(crate) const NEGATIVE_PROMPT: &str = "\
    画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，\
    多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，\
    形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

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
    /// What happens to files that exist under these names.
    pub existing: Existing,
}

/// A request whose files to write are claimed: no other run writes them, and none of them is read.
#[derive(Clone, Debug)]
pub struct ClaimedRequest {
    /// The request. Its video has the name of the file itself where a link was given.
    pub request: Request,
    pub(crate) claims: Arc<Claims>,
}

impl ClaimedRequest {
    /// Gives the claims up, also where copies of this request live on.
    pub fn release(&self) {
        self.claims.release();
    }
}

impl Request {
    /// Returns the passes of a step: 2 with guidance.
    pub fn passes(&self) -> usize {
        self.guidance.scale.passes()
    }

    /// Returns the calls of a block, which a placement is made for.
    pub fn calls(&self) -> usize {
        self.steps * self.passes()
    }

    /// Claims the files to write, before anything is read. `also_read` are files and folders that
    /// the run reads besides those of the request, with the flags that name them.
    ///
    /// # Errors
    /// A name has an ending that says another format; [`GenerateError::Claim`].
    pub fn claim(self, also_read: &[(&str, &Path)]) -> Result<ClaimedRequest, GenerateError> {
        let mut request = self;
        partial_path(&request.files.video)?;
        if let Some(sheet) = &request.files.contact_sheet {
            contact_sheet::format(sheet)?;
        }
        // The partial file lies beside the file itself, which a link may name.
        if let Ok(Some(video)) = real(&request.files.video) {
            request.files.video = video;
        }
        let files = &request.files;
        let mut plan = FilePlan::with_folders();
        plan.reads("--image", &request.image);
        if request.live.is_none() {
            plan.reads("--audio", &request.audio);
        }
        for (flag, path) in also_read {
            plan.reads(*flag, path);
        }
        if let Some(replay) = &request.replay {
            plan.reads("--replay", replay);
        }
        plan.writes("--out", &files.video);
        plan.passes_through(
            "the unfinished video of --out",
            &partial_path(&files.video)?,
        );
        if let Some(sheet) = &files.contact_sheet {
            plan.writes("--contact-sheet", sheet);
        }
        if let Some(trace) = &files.trace {
            plan.writes("--trace", trace);
        }
        let claims = Arc::new(plan.claim(files.existing)?);
        Ok(ClaimedRequest { request, claims })
    }
}
