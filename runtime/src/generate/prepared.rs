//! The inputs of one video, read and decided before anything is placed or loaded. The planner and
//! the run both take them from here, so that size and length are decided once.

use std::collections::BTreeMap;
use std::iter;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use engines::claims::Claims;
use engines::manifest::Models;
use engines::tensor::Tensor;

use crate::chain::events::{Event, Observer, Phase};
use crate::generate::error::GenerateError;
use crate::generate::request::{ClaimedRequest, Clips, Request};
use crate::generate::run_file::{Asked, InputFile, RunFileError};
use crate::inputs::framing::Framing;
use crate::inputs::heard::{self, Heard};
use crate::inputs::pose::{PoseShape, PoseVideo};
use crate::inputs::prompt::{Prompt, Prompter};
use crate::inputs::speech::{self, Speech};
use crate::media::audio_file::{AudioError, AudioTrack};
use crate::media::picture::{Coverage, Fit, Picture};
use crate::numbers::geometry::Geometry;
use crate::numbers::schedule::SHIFT;
use crate::numbers::size::{Size, SizeMode};
use crate::numbers::solver::{Path, Sampling, Solver};
use crate::numbers::timing::{FPS, Length, Timing, Units};

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
    /// Samples of the recording of each person.
    pub speeches: Vec<Speech>,
    /// Weight of each person's sound for each token, `[1, A, F, h*w]`.
    pub(crate) mask: Tensor,
    /// Clips that the recording fills.
    pub clips_in_audio: usize,
    /// How a pose video lies over the video.
    pub(crate) pose: PoseShape,
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
        let inputs = match &request.files.asked {
            Some(asked) => inputs(&request, asked),
            None => Ok(BTreeMap::new()),
        };
        let (picture, facts) = Picture::open(&request.image, request.reading)?;
        for fact in facts {
            observer.event(&Event::Notice(fact.to_string()));
        }
        let framing = Framing::new(request.size, request.size_mode, request.fit, &picture)?;
        let geometry = Geometry::new(&models.config().dit, framing.size, request.infer_frames)?;
        request.cast.check()?;
        let mask = request.cast.mask(&framing, &geometry)?;
        Path::new(request.sampling, request.steps)?;
        let prompter = Prompter::open(&models.tokenizer())?;
        let prompt = prompter.encode(&request.prompt)?;
        let guided = request.guidance.scale.is_on();
        let negative = guided.then(|| prompter.encode(&request.guidance.negative_prompt));
        let negative = negative.transpose()?;
        let most = match request.clips {
            Clips::Auto => usize::MAX,
            Clips::AtMost(n) => {
                let frames = n.saturating_mul(geometry.clip_video_frames());
                heard::most_samples(request.timing, frames)
            }
        };
        let recordings = iter::once(&request.audio).chain(&request.cast.others);
        let listen = |path: &PathBuf| Speech::listen(path, request.channels, most);
        let speeches = recordings.map(listen).collect::<Result<Vec<_>, _>>()?;
        // A file that cannot be read was refused above, in its reader's own words.
        let inputs = inputs?;
        let (clips_in_audio, length) = length(&request, shortest(&speeches), &geometry);
        let pose = PoseShape {
            size: framing.size,
            mode: framing.mode,
            fit: request.fit,
            lead: request.timing.silent_frames(),
            clip: geometry.clip_video_frames(),
        };
        if let Some(path) = &request.pose_video
            && let Some(rate) = PoseVideo::open(path, pose)?.sampled_rate()
        {
            observer.event(&Event::Notice(format!(
                "{}: {rate:.2} frames a second are sampled at {FPS}",
                path.display()
            )));
        }
        let prepared = Self {
            request,
            framing,
            prompt,
            negative,
            speeches,
            mask,
            pose,
            clips_in_audio,
            length,
            inputs,
            _claims: claims,
        };
        prepared.notices(observer);
        Ok(prepared)
    }

    /// Returns the sound of each person that the speech encoder hears.
    pub(crate) fn heard(&self, block_frames: usize) -> impl Iterator<Item = Heard<'_>> {
        let frames = self.length.blocks * block_frames;
        let timing = self.request.timing;
        let speeches = self.speeches.iter();
        speeches.map(move |speech| Heard::new(speech, timing, frames))
    }

    /// Returns the recording that ends first, and with it the video.
    pub(crate) fn shortest(&self) -> &Speech {
        shortest(&self.speeches)
    }

    /// Opens the sound of the video: the recording, or the mix of all. It has `rate` where its
    /// container takes no other.
    ///
    /// # Errors
    /// A recording cannot be decoded or resampled.
    pub(crate) fn track(&self, rate: Option<u32>) -> Result<AudioTrack, AudioError> {
        speech::track(&self.speeches, rate)
    }

    /// Tells how each recording is used, and which of several ends the video.
    fn heard_notices(&self) -> Vec<String> {
        let [speech] = &self.speeches[..] else {
            let longest = self
                .speeches
                .iter()
                .map(Speech::seconds)
                .fold(0.0, f64::max);
            let (first, end) = (self.shortest(), self.shortest().seconds());
            let each = self.speeches.iter().flat_map(|speech| {
                let path = speech.path().display();
                speech
                    .notices()
                    .into_iter()
                    .map(move |text| format!("{path}: {text}"))
            });
            let cut = format!(
                "{} ends first, after {end:.2} s: the video ends with it, and the rest of the \
                 others ({longest:.2} s at most) is not used",
                first.path().display()
            );
            return each.chain((longest > end).then_some(cut)).collect();
        };
        speech.notices()
    }

    fn notices(&self, observer: &dyn Observer) {
        let tell = |text: String| observer.event(&Event::Notice(text));
        if let Clips::AtMost(wanted) = self.request.clips
            && wanted > self.length.clips
        {
            tell(format!(
                "num_clip {wanted} is cut to {}: the recording of {:.2} s fills no more",
                self.length.clips,
                self.shortest().seconds()
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
        self.heard_notices().into_iter().for_each(tell);
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

/// Returns the recording that ends first.
fn shortest(speeches: &[Speech]) -> &Speech {
    let first = speeches.iter().min_by_key(|speech| speech.length());
    first.expect("a video has a recording")
}

/// Describes the files that a request reads, by flag. Those of one flag are numbered from the
/// second person on, or as the places of people are. What a program spoke is no file of the user.
fn inputs(request: &Request, asked: &Asked) -> Result<BTreeMap<String, InputFile>, RunFileError> {
    let spoken = asked.values.contains_key("tts-command");
    let audio = (!spoken).then_some(&request.audio);
    let flags = [
        ("image", Some(&request.image)),
        ("audio", audio),
        ("pose-video", request.pose_video.as_ref()),
        ("replay", request.replay.as_ref()),
    ];
    let mut files: Vec<(String, &FilePath)> = Vec::new();
    for (flag, path) in flags {
        files.extend(path.map(|path| (flag.to_owned(), path.as_path())));
    }
    for (at, other) in request.cast.others.iter().enumerate() {
        files.push((format!("audio {}", at + 2), other));
    }
    for (at, place) in request.cast.places.iter().enumerate() {
        files.extend(place.path().map(|path| (format!("masks {}", at + 1), path)));
    }
    let described = |(flag, path): (String, &FilePath)| {
        let file = InputFile::of(path).map_err(|source| RunFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok((flag, file))
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
