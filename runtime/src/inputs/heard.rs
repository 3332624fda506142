//! The sound that the speech encoder hears: silence, the recording, and silence again.
//!
//! The silence before the recording covers the frames that the video drops. The silence after it
//! gives every computed frame a feature of its own. Silence is the recording's mean level, so it
//! adds no step to a recording with an offset.

use std::ops::Range;

use crate::inputs::speech::{
    self, RATE, Reading, Speech, features_30, hidden_frames, hidden_of_row, row_30,
};
use crate::media::audio_file::AudioError;
use crate::numbers::speech_windows::{CONTEXT_SECONDS, KEPT_SECONDS, WHOLE_SECONDS};
use crate::numbers::timing::{FPS, Timing};

/// Samples of 16 kHz in a video frame.
const FRAME_SAMPLES: usize = (RATE / FPS) as usize;
/// Samples of 16 kHz from one hidden frame to the next.
const HOP: usize = 320;
/// Samples of 16 kHz that one hidden frame sees.
const FIELD: usize = 400;
/// Hidden frames of the longest sound that is encoded as a whole.
const WHOLE: usize = 50 * WHOLE_SECONDS;
/// Hidden frames that a window of a longer sound gives.
const KEPT: usize = 50 * KEPT_SECONDS;
/// Hidden frames of context on each side of them.
const CONTEXT: usize = 50 * CONTEXT_SECONDS;

/// The sound that the speech encoder hears.
pub(crate) struct Heard<'a> {
    speech: &'a Speech,
    timing: Timing,
    /// Samples of silence before the recording.
    before: usize,
    /// Samples of the whole.
    length: usize,
    /// Video frames that the model computes.
    video_frames: usize,
}

/// A part of a sound that is encoded at once, in hidden frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Frames that are encoded together: attention sees these.
    pub(crate) encoded: Range<usize>,
    /// Frames that are used.
    pub(crate) kept: Range<usize>,
}

/// Counts the samples of a recording that stay in memory: enough for a sound that is encoded as a
/// whole, and for the first windows of a longer one. The file is read again for the others.
///
/// The reference's timing hears the whole recording at once.
pub(crate) fn most_samples(timing: Timing) -> usize {
    match timing {
        Timing::Reference => usize::MAX,
        Timing::Recording => HOP * (WHOLE + CONTEXT),
    }
}

impl<'a> Heard<'a> {
    /// Lays silence around a recording for a video whose model computes `frames` video frames.
    ///
    /// The reference's timing has no silence.
    pub(crate) fn new(speech: &'a Speech, timing: Timing, frames: usize) -> Self {
        let before = timing.silent_frames() * FRAME_SAMPLES;
        let recording = before + speech.length();
        let least = match timing {
            Timing::Recording if frames > 0 => speech::samples_of_row(row_30(frames - 1)),
            _ => 0,
        };
        Self {
            speech,
            timing,
            before,
            length: recording.max(least),
            video_frames: frames,
        }
    }

    /// Counts the hidden frames of the whole sound, 50 a second.
    pub(crate) fn frames(&self) -> usize {
        hidden_frames(self.length)
    }

    /// Returns whether the speech encoder is needed again while the video is made.
    pub(crate) fn has_more_windows(&self) -> bool {
        self.windows().nth(1).is_some()
    }

    /// Returns whether the sound is encoded in windows and not as a whole.
    ///
    /// A sound of up to 60 seconds is encoded as a whole, as in the reference.
    pub(crate) fn is_in_windows(&self) -> bool {
        self.timing == Timing::Recording && self.frames() > WHOLE
    }

    /// Returns the windows that together give every hidden frame of the video, in order.
    ///
    /// Windows depend neither on the recording's length nor on the number of clips.
    pub(crate) fn windows(&self) -> impl Iterator<Item = Window> + Send + use<> {
        let whole = self.frames();
        let (step, context, last) = if self.is_in_windows() {
            let last_row = row_30(self.video_frames.max(1) - 1).min(features_30(whole) - 1);
            (KEPT, CONTEXT, hidden_of_row(last_row, whole).0[1])
        } else {
            (whole.max(1), 0, whole.max(1) - 1)
        };
        let window = move |start: usize| Window {
            encoded: start.saturating_sub(context)..(start + step + context).min(whole),
            kept: start..(start + step).min(last + 1),
        };
        (0..=last).step_by(step).map(window)
    }

    /// Counts the hidden frames of the largest window.
    pub(crate) fn most_frames(&self) -> usize {
        // The third window is the first with its whole context.
        let windows = self.windows().take(3);
        windows.map(|w| w.encoded.len()).max().unwrap_or(0)
    }

    /// Returns normalised samples, by their place in the whole sound. `recorded` are those of them
    /// that the recording has.
    ///
    /// The mean and the variance are those of the recording alone.
    fn values(&self, samples: &Range<usize>, recorded: &[f32]) -> Vec<f32> {
        let normalise = self.speech.normalisation();
        let silence = self.before.clamp(samples.start, samples.end) - samples.start;
        let mut values = vec![0.0; samples.len()];
        for (value, &sample) in values[silence..].iter_mut().zip(recorded) {
            *value = normalise.value(sample);
        }
        values
    }

    /// Returns the samples of the recording among samples of the whole sound.
    fn recorded(&self, samples: &Range<usize>) -> Range<usize> {
        let place = |at: usize| at.saturating_sub(self.before).min(self.speech.length());
        place(samples.start)..place(samples.end)
    }
}

/// Reads a sound window by window.
pub(crate) struct Listening<'a> {
    heard: Heard<'a>,
    /// Reads what does not stay in memory.
    reading: Option<Reading>,
}

impl<'a> Listening<'a> {
    /// Reads from the start.
    pub(crate) fn new(heard: Heard<'a>) -> Self {
        Self {
            heard,
            reading: None,
        }
    }

    /// Returns the normalised samples of hidden frames. Windows begin later and later.
    ///
    /// # Errors
    /// The recording cannot be read again.
    pub(crate) fn values_of(&mut self, frames: &Range<usize>) -> Result<Vec<f32>, AudioError> {
        // A whole sound has samples after its last hidden frame; no frame sees them.
        self.values(frames.start * HOP..frames.end.max(1) * HOP - HOP + FIELD)
    }

    /// Returns normalised samples, by their place in the whole sound.
    fn values(&mut self, samples: Range<usize>) -> Result<Vec<f32>, AudioError> {
        let (heard, recorded) = (&self.heard, self.heard.recorded(&samples));
        if let Some(kept) = heard.speech.samples.get(recorded.clone()) {
            return Ok(heard.values(&samples, kept));
        }
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(heard.speech.reading()?),
        };
        Ok(heard.values(&samples, reading.samples(recorded)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;
    use crate::fixtures::sound::{floats, tone, wav};
    use crate::inputs::speech::{AudioFeatures, Channels, HIDDEN_LAYERS};

    #[test]
    fn the_references_timing_hears_the_recording_alone() {
        for set in golden::sets() {
            let speech = Speech::open(&set.input("speech_16k_mono.wav")).unwrap();
            let heard = Heard::new(&speech, Timing::Reference, 96);
            let hidden = hidden_frames(speech.length());
            let seen = (hidden - 1) * HOP + FIELD;
            assert_eq!((heard.windows().count(), heard.frames()), (1, hidden));
            let values = Listening::new(heard).values_of(&(0..hidden)).unwrap();
            assert_eq!(values, speech.input_values()[..seen]);
        }
    }

    #[test]
    fn silence_stands_before_and_after_the_recording() {
        // An offset would be a step at the silence, if silence were zero volts.
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 0.5).map(|v| v / 4.0 + 0.6));
        let speech = Speech::open(&path).unwrap();
        let heard = Heard::new(&speech, Timing::Recording, 24);
        let length = heard.length;
        let mut listening = Listening::new(heard);
        let all = listening.values(0..length).unwrap();
        let (before, rest) = all.split_at(1920);
        let (recording, after) = rest.split_at(8000);
        assert!(before.iter().chain(after).all(|&v| v == 0.0));
        assert_eq!(recording, speech.input_values());
        for part in [0..5, 1900..2000, 1920..1921, 9900..9950, length - 3..length] {
            assert_eq!(listening.values(part.clone()).unwrap(), all[part]);
        }
    }

    /// Opens a recording of some seconds as a video does.
    fn long(seconds: f32) -> (tempfile::TempDir, Speech) {
        let (dir, path) = wav(floats(16_000, 1), tone(16_000, seconds));
        let most = most_samples(Timing::Recording);
        let speech = Speech::listen(&path, Channels::Mix, most).unwrap();
        (dir, speech)
    }

    #[test]
    fn a_long_recording_is_heard_in_windows_that_do_not_depend_on_its_length() {
        let windows = |seconds: f32, frames: usize| {
            let (_dir, speech) = long(seconds);
            assert!(speech.samples.len() <= 80 * 16_000);
            let heard = Heard::new(&speech, Timing::Recording, frames);
            heard.windows().collect::<Vec<_>>()
        };
        let short = windows(70.0, 96);
        assert_eq!((short.len(), &short[0].encoded), (1, &(0..2000)));
        assert_eq!(windows(200.0, 96)[0].encoded, short[0].encoded);
        let many = windows(130.0, 1500);
        let encoded: Vec<_> = many.iter().map(|w| w.encoded.clone()).collect();
        assert_eq!(encoded, [0..2000, 0..3000, 1000..4000]);
        let pairs = many.iter().zip(&many[1..]);
        assert!(pairs.into_iter().all(|(a, b)| a.kept.end == b.kept.start));
        // Up to 60 seconds the sound is one window.
        let whole = windows(59.0, 96);
        assert_eq!(whole[0].encoded, whole[0].kept);
        let (_dir, speech) = long(70.0);
        let heard = Heard::new(&speech, Timing::Reference, 96);
        assert_eq!(heard.windows().next().unwrap().kept, 0..heard.frames());
    }

    #[test]
    fn the_file_is_read_again_for_samples_that_do_not_stay() {
        let sound = || {
            tone(48_000, 150.0)
                .enumerate()
                .map(|(i, v)| v * i as f32 / 8e6)
        };
        #[cfg(feature = "media")]
        let (_dir, path) = wav(floats(48_000, 1), sound());
        #[cfg(not(feature = "media"))]
        let (_dir, path) = wav(floats(16_000, 1), sound().step_by(3));
        let whole = Speech::open(&path).unwrap();
        let part = Speech::listen(&path, Channels::Mix, most_samples(Timing::Recording)).unwrap();
        assert_eq!(part.samples.len(), 80 * 16_000);
        let [whole, part] = [&whole, &part].map(|s| Heard::new(s, Timing::Recording, 150 * 25));
        let windows: Vec<Window> = whole.windows().collect();
        assert!(windows.len() == 8 && part.windows().eq(windows.clone()));
        let [mut whole, mut part] = [whole, part].map(Listening::new);
        for Window { encoded, .. } in windows {
            let values = part.values_of(&encoded).unwrap();
            assert!(values == whole.values_of(&encoded).unwrap(), "{encoded:?}");
            assert_eq!(hidden_frames(values.len()), encoded.len());
            // A window of 60 s, and a chunk or two.
            let held = part.reading.as_ref().map_or(0, Reading::held);
            assert!(held <= 61 * 16_000, "{held} samples");
        }
        assert!(whole.reading.is_none() && part.reading.is_some());
    }

    #[test]
    fn a_recording_that_becomes_shorter_is_an_error() {
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 130.0));
        let speech = Speech::listen(&path, Channels::Mix, most_samples(Timing::Recording)).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(4 * 16_000 * 90).unwrap();
        let heard = Heard::new(&speech, Timing::Recording, 125 * 25);
        let windows = heard.windows();
        let mut listening = Listening::new(heard);
        let read = windows.map(|w| listening.values_of(&w.encoded).map(drop));
        let error = read.collect::<Result<Vec<()>, _>>().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the recording changed while it was used"),
            "{text}"
        );
    }

    #[test]
    fn every_computed_frame_has_a_feature() {
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 0.05));
        let speech = Speech::open(&path).unwrap();
        for frames in [5, 12, 24, 36, 48, 480] {
            let hidden = Heard::new(&speech, Timing::Recording, frames).frames();
            let features = AudioFeatures::new(vec![1.0; HIDDEN_LAYERS * hidden], hidden, 1);
            let block = features.unwrap().block(0..frames);
            assert!(block.iter().all(|&v| v == 1.0), "{frames} frames");
        }
    }
}
