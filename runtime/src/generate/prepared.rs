//! The inputs of one video, read and decided before anything is placed or loaded. The planner and
//! the run both take them from here, so that size and length are decided once.

use std::sync::Arc;

use engines::claims::Claims;
use engines::manifest::Models;

use crate::chain::events::{Event, Observer, Phase};
use crate::generate::error::GenerateError;
use crate::generate::request::{ClaimedRequest, Clips, Request};
use crate::inputs::framing::Framing;
use crate::inputs::prompt::{Prompt, Prompter};
use crate::inputs::speech::Speech;
use crate::media::picture::Picture;
use crate::numbers::geometry::Geometry;
use crate::numbers::schedule;

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
    /// Clips to make.
    pub clips: usize,
    /// Clips that the recording fills.
    pub clips_in_audio: usize,
    /// Keeps other runs from the files to write.
    _claims: Arc<Claims>,
}

impl Prepared {
    /// Claims the files to write, and reads the inputs of `request` for a model.
    ///
    /// # Errors
    /// An input, a size, a length or a number of steps cannot be used, or an output cannot be
    /// claimed.
    pub fn open(
        request: Request,
        models: &Models,
        observer: &dyn Observer,
    ) -> Result<Self, GenerateError> {
        let claimed = request.claim(&[("--models", models.dir())])?;
        Self::open_claimed(claimed, models, observer)
    }

    /// Reads the inputs of a claimed request for a model.
    ///
    /// # Errors
    /// An input, a size, a length or a number of steps cannot be used.
    pub fn open_claimed(
        claimed: ClaimedRequest,
        models: &Models,
        observer: &dyn Observer,
    ) -> Result<Self, GenerateError> {
        let ClaimedRequest { request, claims } = claimed;
        observer.event(&Event::Phase(Phase::ReadingInputs));
        let picture = Picture::open(&request.image)?;
        let framing = Framing::new(request.size, request.size_mode, request.fit, &picture)?;
        Geometry::new(&models.config().dit, framing.size, request.infer_frames)?;
        schedule::sigmas(request.steps)?;
        let prompt = Prompter::open(&models.tokenizer())?.encode(&request.prompt)?;
        let speech = Speech::open(&request.audio)?;
        let clips_in_audio = speech.clips(request.infer_frames);
        let clips = match request.clips {
            Clips::Auto => clips_in_audio,
            Clips::AtMost(n) => n.min(clips_in_audio),
        };
        let prepared = Self {
            request,
            framing,
            prompt,
            speech,
            clips,
            clips_in_audio,
            _claims: claims,
        };
        prepared.notices(observer);
        Ok(prepared)
    }

    fn notices(&self, observer: &dyn Observer) {
        let tell = |text: String| observer.event(&Event::Notice(text));
        if let Clips::AtMost(wanted) = self.request.clips
            && wanted > self.clips
        {
            tell(format!(
                "num_clip {wanted} is cut to {}: the recording of {:.2} s fills no more",
                self.clips,
                self.speech.seconds()
            ));
        }
        if self.prompt.truncated {
            let tokens = self.prompt.ids.len();
            tell(format!("prompt is cut to its first {tokens} tokens"));
        }
        if self.speech.silent {
            tell("recording is silent; the lips will hardly move".to_owned());
        }
        if self.request.steps != 4 {
            let steps = self.request.steps;
            tell(format!(
                "sample_steps {steps}: the model is distilled for 4"
            ));
        }
    }
}
