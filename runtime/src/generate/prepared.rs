//! The inputs of one video, read and decided before anything is placed or loaded. The planner and
//! the run both take them from here, so that size and length are decided once.

use std::path::Path;

use engines::manifest::Models;

use crate::chain::events::{Event, Observer, Phase};
use crate::generate::error::GenerateError;
use crate::generate::request::{Clips, Request};
use crate::inputs::framing::Framing;
use crate::inputs::heard::{self, Heard};
use crate::inputs::prompt::{Prompt, Prompter};
use crate::inputs::speech::Speech;
use crate::media::picture::Picture;
use crate::numbers::geometry::Geometry;
use crate::numbers::schedule;
use crate::numbers::timing::{Length, Timing, Units};

/// The inputs of one video.
#[derive(Debug)]
pub struct Prepared {
    /// The request that they belong to.
    pub request: Request,
    /// Size of the video, and its first look.
    pub framing: Framing,
    /// Tokens of the prompt.
    pub prompt: Prompt,
    /// Samples of the recording.
    pub speech: Speech,
    /// Clips that the recording fills.
    pub clips_in_audio: usize,
    /// Length of the video.
    pub(crate) length: Length,
}

impl Prepared {
    /// Reads the inputs of `request` for a model.
    ///
    /// # Errors
    /// An input, a size, a length or a number of steps cannot be used, or the folder of an output
    /// cannot be made.
    pub fn open(
        request: Request,
        models: &Models,
        observer: &dyn Observer,
    ) -> Result<Self, GenerateError> {
        observer.event(&Event::Phase(Phase::ReadingInputs));
        make_folders(&request)?;
        let picture = Picture::open(&request.image)?;
        let framing = Framing::new(request.size, request.size_mode, request.fit, &picture)?;
        let geometry = Geometry::new(&models.config().dit, framing.size, request.infer_frames)?;
        schedule::sigmas(request.steps)?;
        let prompt = Prompter::open(&models.tokenizer())?.encode(&request.prompt)?;
        let most = match request.clips {
            Clips::Auto => usize::MAX,
            Clips::AtMost(n) => {
                let frames = n.saturating_mul(geometry.clip_video_frames());
                heard::most_samples(request.timing, frames)
            }
        };
        let speech = Speech::listen(&request.audio, request.channels, most)?;
        let (clips_in_audio, length) = length(&request, &speech, &geometry);
        let prepared = Self {
            request,
            framing,
            prompt,
            speech,
            clips_in_audio,
            length,
        };
        prepared.notices(observer);
        Ok(prepared)
    }

    /// Returns the sound that the speech encoder hears.
    pub(crate) fn heard(&self, block_frames: usize) -> Heard<'_> {
        let frames = self.length.blocks * block_frames;
        Heard::new(&self.speech, self.request.timing, frames)
    }

    fn notices(&self, observer: &dyn Observer) {
        let tell = |text: String| observer.event(&Event::Notice(text));
        if let Clips::AtMost(wanted) = self.request.clips
            && wanted > self.length.clips
        {
            tell(format!(
                "num_clip {wanted} is cut to {}: the recording of {:.2} s fills no more",
                self.length.clips,
                self.speech.seconds()
            ));
        }
        if self.prompt.truncated {
            let tokens = self.prompt.ids.len();
            tell(format!("prompt is cut to its first {tokens} tokens"));
        }
        self.speech.notices().into_iter().for_each(tell);
        if self.request.steps != 4 {
            let steps = self.request.steps;
            tell(format!(
                "sample_steps {steps}: the model is distilled for 4"
            ));
        }
    }
}

/// Returns the clips that a recording fills, and the length of its video.
fn length(request: &Request, speech: &Speech, geometry: &Geometry) -> (usize, Length) {
    let units = Units {
        clip: geometry.clip_video_frames(),
        block: geometry.block_video_frames(),
    };
    let at_most = match request.clips {
        Clips::Auto => None,
        Clips::AtMost(n) => Some(n),
    };
    match request.timing {
        Timing::Recording => {
            let frames = speech.video_frames();
            let length = Length::of_recording(frames, at_most, units);
            (Length::clips_of(frames, units), length)
        }
        Timing::Reference => {
            let fills = speech.clips(request.infer_frames);
            let clips = fills.min(at_most.unwrap_or(fills));
            (fills, Length::of_clips(clips, units))
        }
    }
}

/// Makes the folders of side files. The files are written at the end of a long run, so an error
/// must come before it.
fn make_folders(request: &Request) -> Result<(), GenerateError> {
    let files = &request.files;
    for path in [&files.trace, &files.contact_sheet].into_iter().flatten() {
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|source| GenerateError::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}
