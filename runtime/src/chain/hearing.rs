//! Turns sound into features: runs the speech encoder on one window after another.
//!
//! A window depends on its own samples and on the normalisation of the recording, so windows can be
//! encoded in any order and at any time.

use engines::backend::{Backend, EngineError, Loading};
use engines::components::speech::{self, SpeechConfig};
use engines::tensor::Tensor;
use ndarray::{Array3, ArrayView3, s};

use crate::chain::encoders;
use crate::inputs::heard::{Heard, Window};
use crate::inputs::speech::{AudioFeatures, HIDDEN_LAYERS};
use crate::placement::speech_chunk::SpeechChunk;

/// Encodes `windows` of a sound, which follow each other. Returns the features of their frames.
///
/// # Errors
/// A component does not load or fails, or the model has another number of states than
/// wav2vec2-large has.
pub(crate) fn encode_windows(
    backend: &dyn Backend,
    loading: &Loading,
    config: &SpeechConfig,
    heard: &Heard<'_>,
    windows: &[Window],
) -> Result<AudioFeatures, EngineError> {
    let first = windows.first().map_or(0, |w| w.kept.start);
    let end = windows.last().map_or(0, |w| w.kept.end);
    let states = config.layers + 1;
    let mut hidden = Array3::zeros((states, end - first, config.dim));
    for Window { encoded, kept } in windows {
        let values = heard.values_of(encoded.clone());
        let chunk = SpeechChunk::default();
        let made = encoders::encode_speech(backend, loading, config, &values, chunk)?;
        let made = view(&made).ok_or_else(|| wrong_states(config))?;
        let (from, into) = (
            kept.start - encoded.start..kept.end - encoded.start,
            kept.start - first..kept.end - first,
        );
        hidden
            .slice_mut(s![.., into, ..])
            .assign(&made.slice(s![.., from, ..]));
    }
    let features = AudioFeatures::of_part(hidden, first, heard.frames());
    features.ok_or_else(|| wrong_states(config))
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
