//! The encoders of the prompt and of the speech. Each is loaded, run and freed before the next, so
//! that only one of them is in memory at a time. The audio adapter stays: every block needs it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use engines::backend::{Backend, EngineError, Loading, State};
use engines::cancel::Cancel;
use engines::components::dit::{self, DitConfig};
use engines::components::speech::{self, SpeechConfig};
use engines::components::text;
use engines::contract::DType;
use engines::tensor::{Tensor, View};

use crate::chain::call::BlockAudio;
use crate::chain::host_session::HostSession;
use crate::inputs::speech::{AudioFeatures, HIDDEN_LAYERS};
use crate::placement::speech_chunk::SpeechChunk;

/// Runs the text encoder on unpadded token ids. Returns `[tokens, T]`.
///
/// # Errors
/// A component does not load or fails.
pub(crate) fn encode_text(
    backend: &dyn Backend,
    loading: &Loading,
    ids: &[i64],
) -> Result<Tensor, EngineError> {
    let name = text::ENCODER.name;
    let mut session = HostSession::load(backend, name, &loading(name))?;
    let mut out = session.run(
        &[(&text::IDS, View::from_slice(&[1, ids.len()], ids))],
        State::None,
    )?;
    let rows = out.take(&text::CONTEXT_ROWS);
    let shape = rows.shape()[1..].to_vec();
    Ok(rows.reshaped(&shape))
}

/// Embeds `context` `[tokens, T]` for the transformer, padded with zeros to the text length.
/// Returns `[1, M, D]`.
///
/// # Errors
/// A component does not load or fails; the context is longer than the text length.
pub(crate) fn embed_text(
    backend: &dyn Backend,
    loading: &Loading,
    config: &DitConfig,
    context: &Tensor,
) -> Result<Tensor, EngineError> {
    let (rows, width) = (context.shape()[0], context.shape()[1]);
    if rows > config.text_len || width != config.text_dim {
        return Err(EngineError::Bind {
            component: dit::TEXT_EMBED.name.to_owned(),
            port: dit::CONTEXT.name.to_owned(),
            want: format!("f32 [at most {}, {}]", config.text_len, config.text_dim),
            got: format!("f32 [{rows}, {width}]"),
        });
    }
    let mut padded = Tensor::zeros(DType::F32, &[1, config.text_len, width]);
    padded.bytes_mut()[..context.bytes().len()].copy_from_slice(context.bytes());
    let name = dit::TEXT_EMBED.name;
    let mut session = HostSession::load(backend, name, &loading(name))?;
    let mut out = session.run(&[(&dit::CONTEXT, padded.view())], State::None)?;
    Ok(out.take(&dit::TEXT))
}

/// Runs the speech encoder on normalised samples of 16 kHz. Returns hidden states `[Q, t, E]`, 50
/// rows a second. A long recording passes through each layer in parts of some rows.
///
/// # Errors
/// A component does not load or fails; the samples are too few for one frame.
pub fn encode_speech(
    backend: &dyn Backend,
    loading: &Loading,
    config: &SpeechConfig,
    input_values: &[f32],
    chunk: SpeechChunk,
) -> Result<Tensor, EngineError> {
    let frames = config.frames(input_values.len()).unwrap_or(0);
    encode_speech_part(backend, loading, config, input_values, 0..frames, chunk)
}

/// As [`encode_speech`], but returns only the hidden states of the frames `kept`.
pub(crate) fn encode_speech_part(
    backend: &dyn Backend,
    loading: &Loading,
    config: &SpeechConfig,
    input_values: &[f32],
    kept: Range<usize>,
    chunk: SpeechChunk,
) -> Result<Tensor, EngineError> {
    let load = |name: &str| HostSession::load(backend, name, &loading(name));
    let frames = config.frames(input_values.len()).unwrap_or(0);
    let features = speech_features(
        load(speech::ENCODER_FEATURES.name)?,
        config,
        input_values,
        frames,
        chunk.feature_frames,
    )?;
    let mut out = load(speech::ENCODER_POSITIONS.name)?
        .run(&[(&speech::FEATURES, features.view())], State::None)?;
    let (mut rows, mut keys, mut values) = (
        out.take(&speech::FIRST_ROWS_OUT),
        out.take(&speech::FIRST_KEYS_OUT),
        out.take(&speech::FIRST_VALUES_OUT),
    );
    let at_once = chunk.rows(config.heads, frames);
    let mut states = Tensor::zeros(DType::F32, &[config.layers + 1, kept.len(), config.dim]);
    let mut keep = |layer: usize, rows: &Tensor| {
        let rows = &rows.as_slice::<f32>()[kept.start * config.dim..kept.end * config.dim];
        let rows = View::from_slice(&[1, kept.len(), config.dim], rows);
        states.lanes_mut(layer..layer + 1).fill_from(&rows);
    };
    for layer in 0..config.layers {
        keep(layer, &rows);
        let (name, contract) = config.layer(layer);
        let mut session = load(&name)?;
        let mut next: [Tensor; 3] =
            std::array::from_fn(|_| Tensor::zeros(DType::F32, &[frames, config.dim]));
        let whole = rows.reshaped(&[frames, config.dim]);
        for start in (0..frames).step_by(at_once) {
            let part = start..(start + at_once).min(frames);
            let shape = [1, part.len(), config.dim];
            let inputs = [
                (&speech::ROWS, whole.lanes(part.clone()).reshaped(&shape)),
                (&speech::KEYS, keys.view()),
                (&speech::VALUES, values.view()),
            ];
            let mut out = session.run(&inputs, State::None)?;
            for (next, port) in next.iter_mut().zip(contract.outputs) {
                next.lanes_mut(part.clone())
                    .fill_from(&out.take(port).view());
            }
        }
        let shape = [1, frames, config.dim];
        [rows, keys, values] = next.map(|t| t.reshaped(&shape));
    }
    keep(config.layers, &rows);
    Ok(states)
}

/// Returns the features of the whole recording, `[1, t, E]`. It computes them part by part.
fn speech_features(
    mut session: HostSession,
    config: &SpeechConfig,
    input_values: &[f32],
    frames: usize,
    at_once: usize,
) -> Result<Tensor, EngineError> {
    let mut features = Tensor::zeros(DType::F32, &[frames, config.dim]);
    for start in (0..frames).step_by(at_once) {
        let part = start..(start + at_once).min(frames);
        let first = part.start * config.hop();
        let samples =
            &input_values[first..first + (part.len() - 1) * config.hop() + config.min_samples()];
        let inputs = [(
            &speech::INPUT_VALUES,
            View::from_slice(&[1, samples.len()], samples),
        )];
        let made = session
            .run(&inputs, State::None)?
            .take(&speech::FEATURES_OUT);
        features.lanes_mut(part).fill_from(&made.view());
    }
    Ok(features.reshaped(&[1, frames, config.dim]))
}

/// Returns the hidden states as features of video frames.
///
/// # Errors
/// [`EngineError::Bind`] if the model has another number of states than wav2vec2-large has.
pub(crate) fn audio_features(hidden_states: &Tensor) -> Result<AudioFeatures, EngineError> {
    let shape = hidden_states.shape();
    let wrong = EngineError::Bind {
        component: speech::ENCODER_LAYER.name.to_owned(),
        port: "hidden states".to_owned(),
        want: format!("{HIDDEN_LAYERS} states"),
        got: format!("{} of width {}", shape[0], shape[2]),
    };
    AudioFeatures::new(hidden_states.as_slice::<f32>().to_vec(), shape[1], shape[2]).ok_or(wrong)
}

/// The causal audio encoder, which turns features of one block into its tokens. The tokens are the
/// same for every denoising step.
///
/// It keeps nothing between blocks, so clones share one session and take turns.
#[derive(Clone)]
pub(crate) struct AudioAdapter {
    session: Arc<Mutex<HostSession>>,
    /// Stops the video's calls.
    cancel: Cancel,
}

impl AudioAdapter {
    /// Loads the adapter.
    ///
    /// # Errors
    /// The component is missing or does not load.
    pub(crate) fn load(backend: &dyn Backend, loading: &Loading) -> Result<Self, EngineError> {
        let name = speech::ADAPTER.name;
        let session = HostSession::load(backend, name, &loading(name))?;
        Ok(Self {
            session: Arc::new(Mutex::new(session)),
            cancel: Cancel::default(),
        })
    }

    /// Returns the adapter for another video, until `cancel` asks to stop.
    #[must_use]
    pub(crate) fn another(&self, cancel: &Cancel) -> Self {
        Self {
            session: Arc::clone(&self.session),
            cancel: cancel.clone(),
        }
    }

    /// Computes the tokens of a block from `features` `[A, Q, E, 4*F]`. `mask` is `[1, A, F, h*w]`.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn tokens(
        &self,
        features: &Tensor,
        mask: Tensor,
    ) -> Result<BlockAudio, EngineError> {
        let session = self.session.lock();
        let inputs = [(&speech::AUDIO, features.view())];
        let mut out = session.unwrap_or_else(PoisonError::into_inner).run_until(
            &inputs,
            State::None,
            &self.cancel,
        )?;
        let lane = |t: Tensor| {
            let shape = [&[1], t.shape()].concat();
            t.reshaped(&shape)
        };
        let (global, local) = (
            out.take(&speech::AUDIO_GLOBAL_OUT),
            out.take(&speech::AUDIO_LOCAL_OUT),
        );
        Ok(BlockAudio {
            global: lane(global),
            local: lane(local),
            mask,
        })
    }
}
