//! Sound that arrives as raw samples (PCM) on a pipe, without a header and without a known end.
//!
//! One thread reads the pipe, and another one keeps the time. All taps get every sample: the model's
//! tap makes the pipe wait, the tap of an output holds what the model has heard and no block shows yet.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engines::cancel::Cancel;

/// Name of standard input where a path is wanted.
pub(crate) const STANDARD_INPUT: &str = "standard input";
/// Longest part of the sound in a chunk: 40 ms.
const CHUNKS_A_SECOND: usize = 25;
/// Chunks that may wait for the model, about 2.5 s. The pipe waits when they are full.
const WAITING_CHUNKS: usize = 64;
/// How late sound may be before silence takes its place.
const GRACE: Duration = Duration::from_millis(200);
/// How often a thread that waits looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// The form of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SampleForm {
    /// Signed integers of 16 bits, low byte first.
    #[default]
    S16Le,
    /// Floats of 32 bits, low byte first.
    F32Le,
}

impl SampleForm {
    fn bytes(self) -> usize {
        match self {
            Self::S16Le => 2,
            Self::F32Le => 4,
        }
    }

    fn value(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::S16Le, &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Self::F32Le, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        }
    }
}

/// What happens while no sound arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gaps {
    /// The video waits for sound.
    #[default]
    Wait,
    /// Silence fills the gap, so the video keeps the pace of a clock.
    Silence,
}

/// Raw samples on standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pcm {
    /// Samples per second of each channel.
    pub rate: u32,
    /// Number of channels.
    pub channels: usize,
    /// Form of each sample.
    pub form: SampleForm,
    /// What happens while no sound arrives.
    pub gaps: Gaps,
}

/// When sound arrived: samples of each channel so far, and the moment.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<VecDeque<(usize, Instant)>>);

impl Arrivals {
    fn note(&self, samples: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back((samples, Instant::now()));
    }

    /// Returns the moment at which sample `n` was there, and forgets earlier ones. A sound that has
    /// ended before gives its last moment.
    pub(crate) fn of(&self, n: usize) -> Option<Instant> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while all.len() > 1 && all.front().is_some_and(|(samples, _)| *samples < n) {
            all.pop_front();
        }
        all.front().map(|(_, at)| *at)
    }
}

/// Why no more sound comes.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The pipe cannot be read, or holds what is no sample.
    #[error("{STANDARD_INPUT}: cannot read the sound: {0}")]
    Read(#[source] io::Error),
    /// The caller asked to stop while sound was awaited.
    #[error("stopped")]
    Stopped,
}

/// One reader of the sound.
pub(crate) struct Tap {
    samples: Receiver<io::Result<Vec<f32>>>,
    pcm: Pcm,
    cancel: Cancel,
}

impl Tap {
    /// Returns the next samples, `[n, channels]`, and waits for them. Returns `None` at the end.
    ///
    /// # Errors
    /// The pipe cannot be read, or the run is to stop.
    pub(crate) fn next_samples(&mut self) -> Result<Option<Vec<f32>>, PipeError> {
        loop {
            match self.samples.recv_timeout(LOOK) {
                Ok(Ok(samples)) => return Ok(Some(samples)),
                Ok(Err(source)) => return Err(PipeError::Read(source)),
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => {
                    return Err(PipeError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Returns the format of the samples.
    pub(crate) fn pcm(&self) -> Pcm {
        self.pcm
    }

    /// Returns the name of the pipe.
    pub(crate) fn path(&self) -> &'static Path {
        Path::new(STANDARD_INPUT)
    }
}

/// A sound that arrives.
pub(crate) struct Arriving {
    /// For the model, which hears it first.
    pub(crate) model: Tap,
    /// For each output.
    pub(crate) videos: Vec<Tap>,
    /// When it arrived.
    pub(crate) arrivals: Arc<Arrivals>,
}

/// Starts to read `pipe` for a model and some outputs. It ends at the end of the pipe, when nobody
/// listens, or when `cancel` asks to stop.
pub(crate) fn listen(
    pipe: impl Read + Send + 'static,
    pcm: Pcm,
    outputs: usize,
    cancel: &Cancel,
) -> Arriving {
    let (read, arrived) = sync_channel(1);
    let (model, hears) = sync_channel(WAITING_CHUNKS);
    let (videos, play): (Vec<_>, Vec<_>) = (0..outputs).map(|_| channel()).unzip();
    let arrivals = Arc::new(Arrivals::default());
    let tap = |samples| Tap {
        samples,
        pcm,
        cancel: cancel.clone(),
    };
    let keeper = Keeper {
        pcm,
        model,
        videos,
        arrivals: Arc::clone(&arrivals),
        samples: 0,
    };
    // Nobody waits for these threads: a read of a pipe may never return.
    thread::spawn(move || read_all(pipe, pcm, &read));
    thread::spawn(move || keeper.keep(&arrived));
    Arriving {
        model: tap(hears),
        videos: play.into_iter().map(tap).collect(),
        arrivals,
    }
}

/// Reads whole samples of all channels and sends them.
fn read_all(mut pipe: impl Read, pcm: Pcm, to: &SyncSender<io::Result<Vec<f32>>>) {
    let frame = pcm.form.bytes() * pcm.channels;
    let most = frame * (pcm.rate as usize / CHUNKS_A_SECOND).max(1);
    let (mut bytes, mut filled) = (vec![0; most], 0);
    loop {
        let sent = match pipe.read(&mut bytes[filled..]) {
            // A part of a sample at the end is none.
            Ok(0) => return,
            Ok(n) => {
                filled += n;
                let whole = filled - filled % frame;
                let values = bytes[..whole].chunks_exact(pcm.form.bytes());
                let values: Vec<f32> = values.map(|b| pcm.form.value(b)).collect();
                bytes.copy_within(whole..filled, 0);
                filled -= whole;
                match values.iter().find(|v| !v.is_finite()) {
                    Some(bad) => Err(io::Error::other(format!("a sample is {bad}"))),
                    None if values.is_empty() => continue,
                    None => Ok(values.iter().map(|v| v.clamp(-1.0, 1.0)).collect()),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let ends = sent.is_err();
        if to.send(sent).is_err() || ends {
            return;
        }
    }
}

/// Hands samples on to all taps, and silence in place of samples that are late.
struct Keeper {
    pcm: Pcm,
    model: SyncSender<io::Result<Vec<f32>>>,
    videos: Vec<Sender<io::Result<Vec<f32>>>>,
    arrivals: Arc<Arrivals>,
    /// Samples of each channel so far.
    samples: usize,
}

impl Keeper {
    fn keep(mut self, arrived: &Receiver<io::Result<Vec<f32>>>) {
        let mut begun = None;
        loop {
            let goes_on = match arrived.recv_timeout(LOOK) {
                Ok(Ok(samples)) => {
                    begun.get_or_insert_with(Instant::now);
                    self.hand_on(samples)
                }
                Ok(Err(error)) => {
                    drop(self.model.send(Err(error)));
                    false
                }
                Err(RecvTimeoutError::Timeout) => begun.is_none_or(|since| self.fill(since)),
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Fills with silence what a clock is ahead by.
    fn fill(&mut self, since: Instant) -> bool {
        let samples = |time: Duration| (time.as_secs_f64() * f64::from(self.pcm.rate)) as usize;
        let late = samples(since.elapsed()).saturating_sub(self.samples);
        if self.pcm.gaps == Gaps::Wait || late <= samples(GRACE) {
            return true;
        }
        self.hand_on(vec![0.0; late * self.pcm.channels])
    }

    /// Returns false when the model listens no more. The outputs then have all that a block shows.
    fn hand_on(&mut self, samples: Vec<f32>) -> bool {
        self.samples += samples.len() / self.pcm.channels;
        self.arrivals.note(self.samples);
        // An output without sound has no use for it.
        let plays = |video: &Sender<_>| video.send(Ok(samples.clone())).is_ok();
        self.videos.retain(plays);
        self.model.send(Ok(samples)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn pcm(form: SampleForm, gaps: Gaps) -> Pcm {
        Pcm {
            rate: 8_000,
            channels: 2,
            form,
            gaps,
        }
    }

    fn all(mut tap: Tap) -> Result<Vec<f32>, PipeError> {
        let mut samples = Vec::new();
        while let Some(more) = tap.next_samples()? {
            assert!(more.len().is_multiple_of(2));
            samples.extend(more);
        }
        Ok(samples)
    }

    /// A pipe that gives three bytes at a time, and waits once in the middle.
    struct Slow {
        bytes: Cursor<Vec<u8>>,
        wait_at: u64,
        wait: Duration,
    }

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.bytes.position() >= self.wait_at {
                thread::sleep(std::mem::take(&mut self.wait));
            }
            let most = into.len().min(3);
            self.bytes.read(&mut into[..most])
        }
    }

    #[test]
    fn all_taps_get_every_sample_in_either_form() {
        let values: Vec<f32> = (-400..400).map(|v| v as f32 / 512.0).collect();
        let integers = values.iter().map(|v| (v * 32_768.0) as i16);
        let integers: Vec<u8> = integers.flat_map(i16::to_le_bytes).collect();
        let floats: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (form, mut bytes) in [(SampleForm::S16Le, integers), (SampleForm::F32Le, floats)] {
            // A part of a sample at the end is left out.
            bytes.push(7);
            let wait = Duration::ZERO;
            let pipe = Slow {
                bytes: Cursor::new(bytes),
                wait_at: 0,
                wait,
            };
            let heard = listen(pipe, pcm(form, Gaps::Wait), 2, &Cancel::default());
            assert_eq!(all(heard.model).unwrap(), values);
            for video in heard.videos {
                assert_eq!(all(video).unwrap(), values);
            }
            assert!(heard.arrivals.of(1) <= heard.arrivals.of(400));
        }
    }

    #[test]
    fn silence_fills_a_gap_only_where_it_is_asked_for() {
        for (gaps, filled) in [(Gaps::Wait, false), (Gaps::Silence, true)] {
            let samples: Vec<u8> = [16_384_i16; 800]
                .into_iter()
                .flat_map(i16::to_le_bytes)
                .collect();
            let pipe = Slow {
                bytes: Cursor::new(samples),
                wait_at: 800,
                wait: Duration::from_millis(700),
            };
            let heard = listen(pipe, pcm(SampleForm::S16Le, gaps), 1, &Cancel::default());
            let samples = all(heard.model).unwrap();
            assert_eq!(samples.iter().filter(|&&v| v == 0.5).count(), 800);
            let silence = samples.iter().filter(|&&v| v == 0.0).count();
            // 700 ms of two channels, within the grace and a look.
            assert_eq!(silence > 0, filled, "{silence}");
            assert!(
                !filled || (2 * 3_000..2 * 8_000).contains(&silence),
                "{silence}"
            );
            for video in heard.videos {
                assert_eq!(all(video).unwrap(), samples);
            }
        }
    }

    #[test]
    fn a_bad_sample_and_a_stop_are_errors() {
        let bytes = [0.0_f32, 0.1, f32::NAN, 0.1].map(f32::to_le_bytes).concat();
        let form = pcm(SampleForm::F32Le, Gaps::Wait);
        let heard = listen(Cursor::new(bytes), form, 1, &Cancel::default());
        let text = all(heard.model).unwrap_err().to_string();
        assert_eq!(
            text,
            "standard input: cannot read the sound: a sample is NaN"
        );
        let (end, _open) = io::pipe().unwrap();
        let cancel = Cancel::default();
        let heard = listen(end, form, 1, &cancel);
        cancel.cancel();
        assert!(matches!(all(heard.model), Err(PipeError::Stopped)));
    }
}
