//! The sound that the speech encoder hears: silence, the recording, and silence again.
//!
//! The silence before the recording covers the frames that the video drops. The silence after it
//! gives every computed frame a feature of its own. Silence is the recording's mean level, so it
//! adds no step to a recording with an offset.

use std::ops::Range;

use crate::inputs::speech::{
    self, RATE, Speech, features_30, hidden_frames, hidden_of_row, row_30,
};
use crate::numbers::timing::{FPS, Timing};

/// Samples of 16 kHz in a video frame.
const FRAME_SAMPLES: usize = (RATE / FPS) as usize;
/// Samples of 16 kHz from one hidden frame to the next.
const HOP: usize = 320;
/// Samples of 16 kHz that one hidden frame sees.
const FIELD: usize = 400;
/// Hidden frames of the longest sound that is encoded as a whole, 60 seconds.
const WHOLE: usize = 3000;
/// Hidden frames that a window of a longer sound gives, 20 seconds.
const KEPT: usize = 1000;
/// Hidden frames of context on each side of them, 20 seconds.
const CONTEXT: usize = 1000;

/// Video frames beyond those of any recording: a thousand years.
const MOST_FRAMES: usize = 1 << 40;

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

/// Counts the samples of a recording that a video of `frames` computed video frames needs at most.
///
/// The reference's timing hears the whole recording.
pub(crate) fn most_samples(timing: Timing, frames: usize) -> usize {
    // Interpolation drifts by a frame at most. The limit keeps the product in range.
    let hidden = 2 * frames.min(MOST_FRAMES) + 4;
    match timing {
        Timing::Reference => usize::MAX,
        Timing::Recording => HOP * (hidden.next_multiple_of(KEPT) + CONTEXT).max(WHOLE + CONTEXT),
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

    /// Returns the windows that together give every hidden frame of the video, in order.
    ///
    /// A sound of up to 60 seconds is one window, as in the reference. Windows of a longer one
    /// depend neither on its length nor on the number of clips.
    pub(crate) fn windows(&self) -> Vec<Window> {
        let whole = self.frames();
        if self.timing == Timing::Reference || whole <= WHOLE {
            return vec![Window {
                encoded: 0..whole,
                kept: 0..whole,
            }];
        }
        let last_row = row_30(self.video_frames.max(1) - 1).min(features_30(whole) - 1);
        let ([_, last], _) = hidden_of_row(last_row, whole);
        let window = |start: usize| Window {
            encoded: start.saturating_sub(CONTEXT)..(start + KEPT + CONTEXT).min(whole),
            kept: start..(start + KEPT).min(last + 1),
        };
        (0..=last).step_by(KEPT).map(window).collect()
    }

    /// Counts the hidden frames of the largest window.
    pub(crate) fn most_frames(&self) -> usize {
        let windows = self.windows().into_iter();
        windows.map(|w| w.encoded.len()).max().unwrap_or(0)
    }

    /// Returns the normalised samples of hidden frames.
    pub(crate) fn values_of(&self, frames: Range<usize>) -> Vec<f32> {
        // A whole sound has samples after its last hidden frame; no frame sees them.
        self.values(frames.start * HOP..frames.end.max(1) * HOP - HOP + FIELD)
    }

    /// Returns normalised samples, by their place in the whole sound.
    ///
    /// The mean and the variance are those of the recording alone.
    ///
    /// # Panics
    /// If a sample is asked for that the recording has and that was not kept.
    fn values(&self, samples: Range<usize>) -> Vec<f32> {
        let normalise = self.speech.normalisation();
        let recorded = self.before..self.before + self.speech.length();
        let value = |at: usize| {
            if recorded.contains(&at) {
                normalise.value(self.speech.samples[at - self.before])
            } else {
                0.0
            }
        };
        samples.map(value).collect()
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
            assert_eq!(heard.values_of(0..hidden), speech.input_values()[..seen]);
            assert_eq!(heard.windows().len(), 1);
            assert_eq!(heard.frames(), hidden);
        }
    }

    #[test]
    fn silence_stands_before_and_after_the_recording() {
        // An offset would be a step at the silence, if silence were zero volts.
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 0.5).map(|v| v / 4.0 + 0.6));
        let speech = Speech::open(&path).unwrap();
        let heard = Heard::new(&speech, Timing::Recording, 24);
        let all = heard.values(0..heard.length);
        let (before, rest) = all.split_at(1920);
        let (recording, after) = rest.split_at(8000);
        assert!(before.iter().chain(after).all(|&v| v == 0.0));
        assert_eq!(recording, speech.input_values());
        assert_eq!(heard.values(1900..2000), all[1900..2000]);
    }

    /// Opens a recording of some seconds, and keeps the samples that a video needs.
    fn long(seconds: f32, frames: usize) -> (tempfile::TempDir, Speech) {
        let (dir, path) = wav(floats(16_000, 1), tone(16_000, seconds));
        let most = most_samples(Timing::Recording, frames);
        let speech = Speech::listen(&path, Channels::Mix, most).unwrap();
        (dir, speech)
    }

    #[test]
    fn a_long_recording_is_heard_in_windows_that_do_not_depend_on_its_length() {
        let windows = |seconds: f32, frames: usize| {
            let (_dir, speech) = long(seconds, frames);
            let heard = Heard::new(&speech, Timing::Recording, frames);
            // Every window has its samples.
            for window in heard.windows() {
                let samples = heard.values_of(window.encoded.clone());
                assert_eq!(hidden_frames(samples.len()), window.encoded.len());
            }
            (heard.windows(), speech.samples.len())
        };
        let (short, kept) = windows(70.0, 96);
        assert_eq!(short.len(), 1);
        assert_eq!(short[0].encoded, 0..2000);
        let (long, kept_of_long) = windows(200.0, 96);
        assert_eq!(
            (&short[0].encoded, kept.min(kept_of_long)),
            (&long[0].encoded, kept)
        );
        assert!(kept_of_long <= 90 * 16_000, "{kept_of_long}");
        let (many, _) = windows(130.0, 1500);
        let encoded: Vec<_> = many.iter().map(|w| w.encoded.clone()).collect();
        assert_eq!(encoded, [0..2000, 0..3000, 1000..4000]);
        assert!(
            many.iter()
                .zip(&many[1..])
                .all(|(a, b)| a.kept.end == b.kept.start)
        );
        // Up to 60 seconds the sound is one window.
        let (whole, _) = windows(59.0, 96);
        assert_eq!(whole[0].encoded, whole[0].kept);
        let (_dir, speech) = self::long(70.0, 96);
        let heard = Heard::new(&speech, Timing::Reference, 96);
        assert_eq!(heard.windows()[0].kept, 0..heard.frames());
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
