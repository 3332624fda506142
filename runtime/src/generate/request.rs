//! A request for one video: what to make, and which files to write.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engines::claims::{ClaimError, Claims, Existing, FilePlan, real};

use crate::chain::decoders::Mode;
use crate::generate::error::GenerateError;
use crate::generate::run_file::{self, Asked, RunFile};
use crate::inputs::speech::Channels;
use crate::media::contact_sheet;
use crate::media::encoding::{Encoding, Rate};
use crate::media::partial::NameError;
use crate::media::pcm::Pcm;
use crate::media::picture::{Fit, Reading};
use crate::media::target::{Format, Target};
use crate::media::video_writer::{self, may_replace};
use crate::numbers::guide_scale::GuideScale;
use crate::numbers::size::{Size, SizeMode, TOKEN_STRIDE};
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
    /// State of the run that is kept beside the video.
    pub keeping: Keeping,
}

/// State of a run that is kept while the run goes on, so that another run can go on from it.
#[derive(Clone, Debug, Default)]
pub struct Keeping {
    /// Least time between two states. `None` keeps none.
    pub every: Option<Duration>,
    /// Go on from the state that an earlier run kept, if there is one.
    pub resume: bool,
    /// Facts of the machine that the bytes of a video depend on, by name.
    pub machine: Vec<(&'static str, String)>,
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
    /// The video: a file, a folder of frames, `-` for standard output, or a URL.
    pub video: PathBuf,
    /// More outputs of the same frames.
    pub copies: Vec<PathBuf>,
    /// Format of the outputs, where their names do not say it.
    pub format: Option<Format>,
    /// Settings of the encoders, and filters.
    pub encoding: Encoding,
    /// A sheet of frames spread over the video.
    pub contact_sheet: Option<PathBuf>,
    /// Every tensor that the run computes on its way.
    pub trace: Option<PathBuf>,
    /// The command, for the run file beside the video. Without it, none is written.
    pub asked: Option<Asked>,
    /// One JSON object a second and a block, on times and memory.
    pub metrics: Option<PathBuf>,
    /// What happens to files that exist under these names.
    pub existing: Existing,
}

impl OutputFiles {
    /// Returns every output of the frames, the video first.
    ///
    /// # Errors
    /// A name says no format, or contradicts the format that is told.
    pub fn targets(&self) -> Result<Vec<Target>, NameError> {
        let names = [&self.video].into_iter().chain(&self.copies);
        let targets = names.map(|name| Target::of(name, self.format));
        let targets: Vec<Target> = targets.collect::<Result<_, _>>()?;
        let stdout = |t: &&Target| matches!(t, Target::Stdout { .. });
        if targets.iter().filter(stdout).count() > 1 {
            return Err(NameError::TwoStreams);
        }
        Ok(targets)
    }

    /// Returns the path of the video's run file, if there is one. A stream and a folder have none.
    pub(crate) fn run_file(&self) -> Option<PathBuf> {
        let target = Target::of(&self.video, self.format).ok()?;
        let file = matches!(target, Target::File { .. }) && self.asked.is_some();
        file.then(|| run_file::path_of(&target.path()))
    }

    /// Follows links to the files themselves. A partial file lies beside the file, not the link.
    fn follow_links(&mut self) -> Result<(), NameError> {
        let files = self.targets()?;
        let names = [&mut self.video].into_iter().chain(&mut self.copies);
        for (name, target) in names.zip(files) {
            if !target.is_stream()
                && let Ok(Some(file)) = real(name)
            {
                *name = file;
            }
        }
        Ok(())
    }

    /// Opens encoders and filters for a trial, before models are read. The usual ones need none.
    fn check(&self, size: Size) -> Result<(), GenerateError> {
        // The real size is not known yet. It is a multiple of this one.
        let whole = |side: usize| (side / TOKEN_STRIDE).max(1) * TOKEN_STRIDE;
        let size = Size {
            width: whole(size.width),
            height: whole(size.height),
        };
        let usual = Encoding {
            rate: self.encoding.rate,
            preset: self.encoding.preset.clone(),
            ..Encoding::default()
        };
        for target in self.targets()? {
            let mp4 = matches!(
                target,
                Target::File {
                    format: Format::Mp4,
                    ..
                }
            );
            let quality = matches!(self.encoding.rate, Rate::Quality(_));
            if !(mp4 && quality && self.encoding == usual) {
                video_writer::check(&target, size, &self.encoding)?;
            }
        }
        Ok(())
    }

    /// Adds the outputs to the files that are claimed.
    fn plan(&self, plan: &mut FilePlan) -> Result<(), GenerateError> {
        for target in self.targets()? {
            match (&target, target.partial()) {
                (Target::File { path, .. }, Some(partial)) => {
                    plan.writes("--out", path);
                    plan.passes_through("the unfinished video of --out", &partial);
                }
                (Target::Folder { path }, Some(partial)) => {
                    self.may_write_folder(path)?;
                    plan.writes_folder("--out", path);
                    plan.writes_folder("the unfinished frames of --out", &partial);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a folder whose files would be lost.
    fn may_write_folder(&self, path: &Path) -> Result<(), GenerateError> {
        if video_writer::is_free(path) {
            return Ok(());
        }
        may_replace(path)?;
        match self.existing {
            Existing::Replace => Ok(()),
            Existing::Keep => Err(ClaimError::Exists {
                paths: vec![path.to_owned()],
            }
            .into()),
        }
    }
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
        request.files.targets()?;
        if let Some(sheet) = &request.files.contact_sheet {
            contact_sheet::format(sheet)?;
        }
        request.files.check(request.size)?;
        request.files.follow_links()?;
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
        files.plan(&mut plan)?;
        if let Some(path) = files.run_file() {
            // The run file of a video that is gone has no use.
            let name = "the run file of --out";
            match RunFile::read(&path) {
                Ok(_) => plan.passes_through(name, &path),
                Err(_) => plan.writes(name, &path),
            }
        }
        if let Some(sheet) = &files.contact_sheet {
            plan.writes("--contact-sheet", sheet);
        }
        if let Some(trace) = &files.trace {
            plan.writes("--trace", trace);
        }
        if let Some(metrics) = &files.metrics {
            plan.writes("--metrics", metrics);
        }
        let claims = Arc::new(plan.claim(files.existing)?);
        Ok(ClaimedRequest { request, claims })
    }
}
