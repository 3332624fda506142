//! Turns sound into features: runs the speech encoder on one window after another, as blocks need
//! them.
//!
//! A window depends on its own samples and on the normalisation of the recording. Features before
//! the block at hand are dropped, so memory does not grow with the sound.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use engines::backend::{Backend, EngineError, Loading};
use engines::components::speech::{self, SpeechConfig};
use engines::tensor::Tensor;
use ndarray::{Array3, ArrayView3};

use crate::chain::encoders;
use crate::chain::error::ChainError;
use crate::inputs::heard::{Heard, Listening, Window};
use crate::inputs::live::{ENDLESS, LiveSpeech};
use crate::inputs::speech::{AudioFeatures, HIDDEN_LAYERS};
use crate::numbers::timing::DROPPED_FRAMES;
use crate::placement::speech_chunk::SpeechChunk;

/// The speech encoder on its device. Each call loads its graphs one by one and frees them, unless
/// the backend keeps them.
pub(crate) struct SpeechEncoder<'a> {
    /// Device of the encoders.
    pub backend: Box<dyn Backend + 'a>,
    /// Taps and faults.
    pub loading: &'a Loading,
    /// Sizes of the encoder.
    pub config: &'a SpeechConfig,
}

/// The features of a sound, made as blocks need them.
pub(crate) struct Hearing<'a> {
    encoder: SpeechEncoder<'a>,
    listening: Listening<'a>,
    windows: Box<dyn Iterator<Item = Window> + Send>,
    /// Hidden frames of the whole sound.
    whole: usize,
    features: AudioFeatures,
}

impl<'a> Hearing<'a> {
    /// Encodes the window of video frame `first`, where the first block begins.
    ///
    /// # Errors
    /// As [`Self::block`], or the model has another number of states than wav2vec2-large has.
    pub(crate) fn begin(
        encoder: SpeechEncoder<'a>,
        heard: Heard<'a>,
        first: usize,
    ) -> Result<Self, ChainError> {
        let (whole, dim) = (heard.frames(), encoder.config.dim);
        let first = AudioFeatures::needed(&(first..first + 1), whole).start;
        let windows = heard.windows().skip_while(move |w| w.kept.end <= first);
        let mut windows = windows.peekable();
        let first = windows.peek().map_or(0, |w| w.kept.start);
        let windows = Box::new(windows);
        let states = Array3::zeros((encoder.config.layers + 1, 0, dim));
        let features = AudioFeatures::of_part(states, first, whole);
        let features = features.ok_or_else(|| wrong_states(encoder.config))?;
        let mut hearing = Self {
            encoder,
            listening: Listening::new(heard),
            windows,
            whole,
            features,
        };
        hearing.encode_next(0)?;
        Ok(hearing)
    }

    /// Returns the width of a hidden state.
    pub(crate) fn dim(&self) -> usize {
        self.features.dim()
    }

    /// Returns the features of video frames, `[25, dim, n]`, with zeros after the sound's end.
    /// Blocks come in ascending order. Encodes the next window where a frame needs it.
    ///
    /// # Errors
    /// A component does not load or fails, or the recording cannot be read again.
    pub(crate) fn block(&mut self, frames: Range<usize>) -> Result<Vec<f32>, ChainError> {
        let needed = AudioFeatures::needed(&frames, self.whole);
        while self.features.end() < needed.end && self.encode_next(needed.start)? {}
        Ok(self.features.block(frames))
    }

    /// Encodes the next window, and drops the frames before `first`. Returns false after the last.
    fn encode_next(&mut self, first: usize) -> Result<bool, ChainError> {
        let Some(Window { encoded, kept }) = self.windows.next() else {
            return Ok(false);
        };
        let values = self.listening.values_of(&encoded)?;
        let kept = kept.start - encoded.start..kept.end - encoded.start;
        let made = self.encoder.encode(&values, kept)?;
        let made = view(&made).ok_or_else(|| wrong_states(self.encoder.config))?;
        self.features.follow(&made, first);
        Ok(true)
    }
}

/// The features of speech that arrives, made for each block from the sound so far.
pub(crate) struct LiveHearing<'a> {
    encoder: SpeechEncoder<'a>,
    speech: LiveSpeech,
    /// Frames of the video, once the sound has ended.
    end: Arc<OnceLock<usize>>,
}

impl<'a> LiveHearing<'a> {
    /// Listens to `speech`. `end` learns the length of the video before its last block leaves.
    pub(crate) fn new(
        encoder: SpeechEncoder<'a>,
        speech: LiveSpeech,
        end: Arc<OnceLock<usize>>,
    ) -> Self {
        Self {
            encoder,
            speech,
            end,
        }
    }

    /// Returns the features of a block, or `None` after the sound's end. Waits for sound.
    fn block(&mut self, frames: Range<usize>) -> Result<Option<Vec<f32>>, ChainError> {
        let needed = AudioFeatures::needed(&frames, ENDLESS);
        let window = LiveSpeech::window(&needed);
        let values = self.speech.hear(&window)?;
        if let Some(recorded) = self.speech.video_frames() {
            self.end.get_or_init(|| recorded);
            if frames.start >= recorded + DROPPED_FRAMES {
                return Ok(None);
            }
        }
        let kept = needed.start - window.start..needed.end - window.start;
        let made = self.encoder.encode(&values, kept)?;
        let made = view(&made).ok_or_else(|| wrong_states(self.encoder.config))?;
        let features = AudioFeatures::of_part(made.to_owned(), needed.start, ENDLESS);
        let features = features.ok_or_else(|| wrong_states(self.encoder.config))?;
        Ok(Some(features.block(frames)))
    }
}

/// How the model hears: a recording, or sound that arrives.
pub(crate) enum Ear<'a> {
    /// A recording.
    Recording(Box<Hearing<'a>>),
    /// Sound that arrives.
    Live(Box<LiveHearing<'a>>),
}

impl Ear<'_> {
    /// Returns the width of a hidden state.
    pub(crate) fn dim(&self) -> usize {
        match self {
            Self::Recording(hearing) => hearing.dim(),
            Self::Live(live) => live.encoder.config.dim,
        }
    }

    /// Returns the features of video frames, `[25, dim, n]`, or `None` after the end of sound that
    /// arrives. Blocks come in ascending order.
    ///
    /// # Errors
    /// A component does not load or fails, or the sound cannot be read.
    pub(crate) fn block(&mut self, frames: Range<usize>) -> Result<Option<Vec<f32>>, ChainError> {
        match self {
            Self::Recording(hearing) => hearing.block(frames).map(Some),
            Self::Live(live) => live.block(frames),
        }
    }
}

impl SpeechEncoder<'_> {
    /// Encodes normalised samples. Returns the hidden states of the frames `kept`, `[Q, t, E]`.
    ///
    /// # Errors
    /// A component does not load or fails.
    fn encode(&self, values: &[f32], kept: Range<usize>) -> Result<Tensor, EngineError> {
        let (backend, chunk) = (&*self.backend, SpeechChunk::default());
        encoders::encode_speech_part(backend, self.loading, self.config, values, kept, chunk)
    }
}

/// Views hidden states `[Q, t, E]`.
fn view(states: &Tensor) -> Option<ArrayView3<'_, f32>> {
    let [states_count, frames, dim] = *states.shape() else {
        return None;
    };
    ArrayView3::from_shape((states_count, frames, dim), states.as_slice::<f32>()).ok()
}

fn wrong_states(config: &SpeechConfig) -> EngineError {
    EngineError::Bind {
        component: speech::ENCODER_LAYER.name.to_owned(),
        port: "hidden states".to_owned(),
        want: format!("{HIDDEN_LAYERS} states"),
        got: format!("{} of width {}", config.layers + 1, config.dim),
    }
}
