//! The sound that the speech encoder hears: silence, the recording, and silence again.
//!
//! The silence before the recording covers the frames that the video drops. The silence after it
//! gives every computed frame a feature of its own. Silence is the recording's mean level, so it
//! adds no step to a recording with an offset.

use std::ops::Range;

use crate::inputs::speech::{self, RATE, Speech, hidden_frames, row_30};
use crate::numbers::timing::{FPS, Timing};

/// Samples of 16 kHz in a video frame.
const FRAME_SAMPLES: usize = (RATE / FPS) as usize;

/// The sound that the speech encoder hears.
pub(crate) struct Heard<'a> {
    speech: &'a Speech,
    /// Samples of silence before the recording.
    before: usize,
    /// Samples of the whole.
    length: usize,
}

impl<'a> Heard<'a> {
    /// Lays silence around a recording for a video whose model computes `frames` video frames.
    ///
    /// The reference's timing has no silence.
    pub(crate) fn new(speech: &'a Speech, timing: Timing, frames: usize) -> Self {
        let before = timing.silent_frames() * FRAME_SAMPLES;
        let recording = before + speech.samples.len();
        let least = match timing {
            Timing::Recording if frames > 0 => speech::samples_of_row(row_30(frames - 1)),
            _ => 0,
        };
        Self {
            speech,
            before,
            length: recording.max(least),
        }
    }

    /// Counts the hidden frames of the whole sound, 50 a second.
    pub(crate) fn frames(&self) -> usize {
        hidden_frames(self.length)
    }

    /// Returns normalised samples, by their place in the whole sound.
    ///
    /// The mean and the variance are those of the recording alone.
    pub(crate) fn values(&self, samples: Range<usize>) -> Vec<f32> {
        let normalise = self.speech.normalisation();
        let value = |at: usize| {
            let recorded = at.checked_sub(self.before);
            recorded
                .and_then(|at| self.speech.samples.get(at))
                .map_or(0.0, |&x| normalise.value(x))
        };
        samples.map(value).collect()
    }

    /// Returns all normalised samples.
    pub(crate) fn all(&self) -> Vec<f32> {
        self.values(0..self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;
    use crate::fixtures::sound::{floats, tone, wav};
    use crate::inputs::speech::{AudioFeatures, HIDDEN_LAYERS};

    #[test]
    fn the_references_timing_hears_the_recording_alone() {
        for set in golden::sets() {
            let speech = Speech::open(&set.input("speech_16k_mono.wav")).unwrap();
            let heard = Heard::new(&speech, Timing::Reference, 96);
            assert_eq!(heard.all(), speech.input_values());
            assert_eq!(heard.frames(), hidden_frames(speech.samples.len()));
        }
    }

    #[test]
    fn silence_stands_before_and_after_the_recording() {
        // An offset would be a step at the silence, if silence were zero volts.
        let (_dir, path) = wav(floats(16_000, 1), tone(16_000, 0.5).map(|v| v / 4.0 + 0.6));
        let speech = Speech::open(&path).unwrap();
        let heard = Heard::new(&speech, Timing::Recording, 24);
        let all = heard.all();
        let (before, rest) = all.split_at(1920);
        let (recording, after) = rest.split_at(8000);
        assert!(before.iter().chain(after).all(|&v| v == 0.0));
        assert_eq!(recording, speech.input_values());
        assert_eq!(heard.values(1900..2000), all[1900..2000]);
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
