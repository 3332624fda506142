//! The inputs of one video, read and decided before anything is placed or loaded. The planner and
//! the run both take them from here, so that size and length are decided once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use engines::claims::Claims;
use engines::manifest::Models;

use crate::chain::events::{Event, Observer, Phase};
use crate::generate::error::GenerateError;
use crate::generate::request::{ClaimedRequest, Clips, Request};
use crate::generate::run_file::{InputFile, RunFileError};
use crate::inputs::framing::Framing;
use crate::inputs::heard::{self, Heard};
use crate::inputs::live::LOOK_AHEAD_SECONDS;
use crate::inputs::prompt::{Prompt, Prompter};
use crate::inputs::speech::Speech;
use crate::media::picture::{Coverage, Fit, Picture};
use crate::numbers::geometry::Geometry;
use crate::numbers::schedule::SHIFT;
use crate::numbers::size::{Size, SizeMode};
use crate::numbers::solver::{Path, Sampling, Solver};
use crate::numbers::speech_windows::{IN_WINDOWS, LIVE};
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
    /// Tokens of the negative prompt, with guidance.
    pub negative: Option<Prompt>,
    /// Samples of the recording; `None` for sound that arrives.
    pub speech: Option<Speech>,
    /// Clips that the recording fills.
    pub clips_in_audio: usize,
    /// Length of the video.
    pub(crate) length: Length,
    /// The files that were read, where a run file describes them.
    pub(crate) inputs: BTreeMap<String, InputFile>,
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
        let inputs = match request.files.asked {
            Some(_) => inputs(&request),
            None => Ok(BTreeMap::new()),
        };
        let (picture, facts) = Picture::open(&request.image, request.reading)?;
        for fact in facts {
            observer.event(&Event::Notice(fact.to_string()));
        }
        let framing = Framing::new(request.size, request.size_mode, request.fit, &picture)?;
        let geometry = Geometry::new(&models.config().dit, framing.size, request.infer_frames)?;
        Path::new(request.sampling, request.steps)?;
        let prompter = Prompter::open(&models.tokenizer())?;
        let prompt = prompter.encode(&request.prompt)?;
        let guided = request.guidance.scale.is_on();
        let negative = guided.then(|| prompter.encode(&request.guidance.negative_prompt));
        let negative = negative.transpose()?;
        let most = heard::most_samples(request.timing);
        let listen = || Speech::listen(&request.audio, request.channels, most);
        let speech = request.live.is_none().then(listen).transpose()?;
        let (clips_in_audio, length) = match &speech {
            Some(speech) => length(&request, speech, &geometry),
            None => (0, open_length(&request, &geometry)),
        };
        // A file that cannot be read was refused above, in its reader's own words.
        let inputs = inputs?;
        let prepared = Self {
            request,
            framing,
            prompt,
            negative,
            speech,
            clips_in_audio,
            length,
            inputs,
            _claims: claims,
        };
        prepared.notices(geometry.block_video_frames(), observer);
        Ok(prepared)
    }

    /// Returns the sound of the recording that the speech encoder hears, if there is one.
    pub(crate) fn heard(&self, block_frames: usize) -> Option<Heard<'_>> {
        let frames = self.length.blocks * block_frames;
        let speech = self.speech.as_ref()?;
        Some(Heard::new(speech, self.request.timing, frames))
    }

    fn notices(&self, block_frames: usize, observer: &dyn Observer) {
        let tell = |text: String| observer.event(&Event::Notice(text));
        if let (Clips::AtMost(wanted), Some(speech)) = (self.request.clips, &self.speech)
            && wanted > self.length.clips
        {
            tell(format!(
                "num_clip {wanted} is cut to {}: the recording of {:.2} s fills no more",
                self.length.clips,
                speech.seconds()
            ));
        }
        let framing = &self.framing;
        let fit = self.request.fit;
        if let Some(text) = poor_fit(framing.picture, framing.size, framing.mode, fit) {
            tell(text);
        }
        if self.prompt.truncated {
            let tokens = self.prompt.ids.len();
            tell(format!("prompt is cut to its first {tokens} tokens"));
        }
        if let (Some(speech), Some(heard)) = (&self.speech, self.heard(block_frames)) {
            speech.notices().into_iter().for_each(tell);
            if heard.is_in_windows() {
                let seconds = speech.seconds();
                tell(format!("recording of {seconds:.2} s: {IN_WINDOWS}"));
            }
        } else {
            tell(format!(
                "speech is heard as it arrives: a block is made when {LOOK_AHEAD_SECONDS:.1} s \
                 after it are there; {LIVE}"
            ));
        }
        if self.request.steps != 4 {
            let steps = self.request.steps;
            tell(format!(
                "sample_steps {steps}: the model is distilled for 4"
            ));
        }
        let Sampling { solver, shift } = self.request.sampling;
        if solver != Solver::Euler {
            tell(format!(
                "sample_solver {}: the model is distilled for euler",
                solver.name()
            ));
        }
        let scale = self.request.guidance.scale;
        if scale.is_on() {
            tell(format!(
                "sample_guide_scale {scale}: the model is distilled to do without; each step takes \
                 two passes, and the rings are twice as large"
            ));
        } else if scale.get() > 0.0 {
            tell(format!(
                "sample_guide_scale {scale}: 1 or less is no guidance"
            ));
        }
        if shift != SHIFT {
            tell(format!(
                "sample_shift {shift}: the model is distilled for {SHIFT}"
            ));
        }
    }
}

/// Describes the files that a request reads, by flag.
fn inputs(request: &Request) -> Result<BTreeMap<String, InputFile>, RunFileError> {
    let mut files = vec![("image", &request.image), ("audio", &request.audio)];
    files.extend(request.replay.as_ref().map(|replay| ("replay", replay)));
    let described = |(flag, path): (&str, &PathBuf)| {
        let file = match request.live {
            Some(_) if flag == "audio" => InputFile::gone(path),
            _ => InputFile::of(path).map_err(|source| RunFileError::Read {
                path: path.clone(),
                source,
            })?,
        };
        Ok((flag.to_owned(), file))
    };
    files.into_iter().map(described).collect()
}

/// Tells of a picture that loses more than half of its area, or fills less than half of the video.
fn poor_fit(picture: Size, video: Size, mode: SizeMode, fit: Fit) -> Option<String> {
    let coverage = Coverage::new(picture, video, mode, fit);
    if coverage.cut > 0.5 {
        let advice = match (mode, fit) {
            (SizeMode::Exact, Fit::Crop) => "--fit pad shows all of it",
            _ => "cut the picture to the face",
        };
        return Some(format!(
            "the video of {video} shows {:.0} % of the picture of {picture}; {advice}",
            100.0 * (1.0 - coverage.cut),
        ));
    }
    let (left, top) = coverage.bars;
    let seen = (video.width - 2 * left) * (video.height - 2 * top);
    (2 * seen < video.width * video.height).then(|| {
        let (bars, sides) = if left > 0 {
            (left, "left and right")
        } else {
            (top, "above and below")
        };
        format!("the picture of {picture} leaves black bars of {bars} pixels {sides}")
    })
}

/// Clips of a video whose end nobody knows: 65 years.
const OPEN_CLIPS: usize = 1 << 30;

/// Returns the most that a video of sound that arrives may have.
fn open_length(request: &Request, geometry: &Geometry) -> Length {
    let clips = match request.clips {
        Clips::Auto => OPEN_CLIPS,
        Clips::AtMost(n) => n.min(OPEN_CLIPS),
    };
    Length::of_clips(
        clips,
        Units {
            clip: geometry.clip_video_frames(),
            block: geometry.block_video_frames(),
        },
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_a_far_shape_is_told_with_what_is_lost() {
        let size = |width, height| Size { width, height };
        let told = |picture, fit| poor_fit(picture, size(704, 384), SizeMode::Exact, fit);
        assert_eq!(
            told(size(2000, 100), Fit::Crop).unwrap(),
            "the video of 704*384 shows 9 % of the picture of 2000*100; --fit pad shows all of it"
        );
        assert_eq!(
            told(size(2000, 100), Fit::Pad).unwrap(),
            "the picture of 2000*100 leaves black bars of 174 pixels above and below"
        );
        assert_eq!(
            told(size(100, 2000), Fit::Pad).unwrap(),
            "the picture of 100*2000 leaves black bars of 342 pixels left and right"
        );
        assert_eq!(told(size(1000, 1000), Fit::Crop), None);
        assert_eq!(told(size(1000, 1000), Fit::Pad), None);
        let area = poor_fit(size(2000, 100), size(704, 384), SizeMode::Area, Fit::Crop);
        assert!(area.unwrap().ends_with("cut the picture to the face"));
    }
}
