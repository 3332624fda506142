//! Speech that arrives while the video is made. The model hears a part of what was there, the
//! block at hand, and a little of what follows it.

use std::ops::Range;
use std::path::PathBuf;

use crate::inputs::speech::{Channels, Held, LEAST_SAMPLES, Moments, Mono, RATE, Settled};
use crate::media::audio_file::{AudioError, Chunk};
use crate::media::pcm::Tap;
use crate::numbers::timing::{DROPPED_FRAMES, FPS};

/// Hidden frames, 50 a second, that a block's window has before the block: 5 s.
const HISTORY: usize = 250;
/// Hidden frames that it has after the block: the look-ahead.
const LOOK_AHEAD: usize = 50;
/// Seconds of sound after a block that must have arrived before it is made.
pub(crate) const LOOK_AHEAD_SECONDS: f64 = LOOK_AHEAD as f64 / 50.0;
/// Hidden frames of the largest window, with those of a block.
pub(crate) const MOST_FRAMES: usize = HISTORY + LOOK_AHEAD + 32;
/// Hidden frames of a sound without an end. Positions in it are five thirds of a row, exactly.
pub(crate) const ENDLESS: usize = 1 << 50;
/// Samples of 16 kHz from one hidden frame to the next, and those that one sees.
const HOP: usize = 320;
const FIELD: usize = 400;
/// Samples of silence before the recording, for the frames that the video drops.
const BEFORE: usize = DROPPED_FRAMES * (RATE / FPS) as usize;

/// Speech that arrives.
pub(crate) struct LiveSpeech {
    tap: Tap,
    mono: Mono<Heard>,
    only: Option<usize>,
    ended: bool,
}

/// What is kept of the sound so far.
#[derive(Default)]
struct Heard {
    held: Held,
    /// Of all of it.
    moments: Moments,
}

impl Settled for Heard {
    fn settle(&mut self, samples: &[f32]) {
        self.moments.take(samples);
        self.held.settle(samples);
    }
}

impl LiveSpeech {
    /// Listens to channels of a pipe.
    pub(crate) fn new(tap: Tap, channels: Channels) -> Self {
        Self {
            mono: Mono::new(tap.path(), Heard::default()).at_once(),
            tap,
            only: channels.only(),
            ended: false,
        }
    }

    /// Returns the window of a block whose hidden frames are `needed`.
    pub(crate) fn window(needed: &Range<usize>) -> Range<usize> {
        needed.start.saturating_sub(HISTORY)..needed.end + LOOK_AHEAD
    }

    /// Waits for the samples of a window of hidden frames and returns them, normalised. Windows
    /// begin later and later. After the end there is silence.
    ///
    /// The mean and the variance are those of the sound so far, and at first of very little: no
    /// later sound can change a block.
    ///
    /// # Errors
    /// The pipe cannot be read, the run is to stop, or the sound is too short.
    pub(crate) fn hear(&mut self, window: &Range<usize>) -> Result<Vec<f32>, AudioError> {
        let samples = window.start * HOP..(window.end - 1) * HOP + FIELD;
        let place = |at: usize| at.saturating_sub(BEFORE);
        let (start, end) = (place(samples.start), place(samples.end));
        self.wait_for(end)?;
        let heard = &mut self.mono.settled;
        heard.held.forget_before(start);
        let normalise = heard.moments.normalisation();
        let mut values = vec![0.0; samples.len()];
        let silence = BEFORE.clamp(samples.start, samples.end) - samples.start;
        for (value, &sample) in values[silence..].iter_mut().zip(&heard.held.samples) {
            *value = normalise.value(sample);
        }
        Ok(values)
    }

    /// Reads until `end` samples of 16 kHz are there, or the sound ends.
    fn wait_for(&mut self, end: usize) -> Result<(), AudioError> {
        while !self.ended && self.mono.settled.held.end() < end {
            match Chunk::arriving(&mut self.tap)? {
                Some(chunk) => self.mono.take(&chunk, self.only)?,
                None => {
                    self.ended = true;
                    self.mono.finish()?;
                }
            }
        }
        let got = self.mono.settled.moments.count;
        if self.ended && got < LEAST_SAMPLES {
            return Err(AudioError::TooShort {
                path: PathBuf::from(self.tap.path()),
                least_ms: LEAST_SAMPLES * 1000 / RATE as usize,
                got_ms: got * 1000 / RATE as usize,
            });
        }
        Ok(())
    }

    /// Counts the video frames that the sound lasts, once it has ended.
    pub(crate) fn video_frames(&self) -> Option<usize> {
        self.ended.then(|| self.mono.video_frames())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use engines::cancel::Cancel;

    use super::*;
    use crate::fixtures::sound::tone;
    use crate::media::pcm::{Gaps, Pcm, SampleForm, listen};

    fn live(seconds: f32) -> LiveSpeech {
        let bytes: Vec<u8> = tone(16_000, seconds).flat_map(f32::to_le_bytes).collect();
        let pcm = Pcm {
            rate: 16_000,
            channels: 1,
            form: SampleForm::F32Le,
            gaps: Gaps::Wait,
        };
        let arriving = listen(Cursor::new(bytes), pcm, 0, &Cancel::default());
        LiveSpeech::new(arriving.model, Channels::Mix)
    }

    #[test]
    fn a_window_has_silence_before_the_sound_and_after_it() {
        let mut speech = live(1.0);
        let values = speech.hear(&(0..100)).unwrap();
        assert_eq!(values.len(), 99 * 320 + 400);
        assert!(
            values[..1920]
                .iter()
                .chain(&values[17_920..])
                .all(|&v| v == 0.0)
        );
        // A tone of any level has the level of a unit variance.
        let level = values[1920..17_920].iter().map(|v| v * v).sum::<f32>() / 16_000.0;
        assert!((level - 1.0).abs() < 1e-3, "{level}");
        assert_eq!(speech.video_frames(), Some(25));
    }

    #[test]
    fn only_a_window_is_held_and_the_end_is_known_when_it_is_reached() {
        let mut speech = live(60.0);
        let mut all = Vec::new();
        for block in 0..120 {
            let needed = 20 * block..20 * block + 22;
            let window = LiveSpeech::window(&needed);
            assert!(window.len() <= MOST_FRAMES);
            all.push(speech.hear(&window).unwrap());
            assert!(speech.mono.settled.held.samples.len() < 8 * 16_000);
            assert!(block < 100 || speech.video_frames().is_none_or(|n| n == 1500));
        }
        assert_eq!(all.len(), 120);
        assert!(live(0.02).hear(&(0..50)).is_err());
    }
}
