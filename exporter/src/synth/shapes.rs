//! The tensor shapes of a preset. Graphs can be built from them without a checkpoint.
use super::preset::Sizes;
use crate::checkpoint::layout::{PosConv, TensorSpec};
use engines::components::preset::Preset;
use engines::manifest::ModelConfig;
use std::collections::BTreeMap;

/// Names and shapes of a preset's tensors by checkpoint, and the sizes of the model.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// Tensors of the video transformer.
    pub dit: BTreeMap<String, Vec<usize>>,
    /// Tensors of the text encoder.
    pub text: BTreeMap<String, Vec<usize>>,
    /// Tensors of the VAE.
    pub vae: BTreeMap<String, Vec<usize>>,
    /// Tensors of the speech encoder.
    pub speech: BTreeMap<String, Vec<usize>>,
    /// Sizes of every component.
    pub config: ModelConfig,
}

/// Returns the shapes of `preset`. `layers` replaces the depth of its transformer.
pub fn shapes(preset: Preset, layers: Option<usize>) -> Shapes {
    let sizes = Sizes::new(preset, layers);
    let table = |specs: Vec<TensorSpec>| specs.into_iter().map(|t| (t.name, t.shape)).collect();
    Shapes {
        dit: table(sizes.dit.tensors()),
        text: table(sizes.t5.tensors()),
        vae: table(sizes.vae.tensors()),
        speech: table(sizes.wav.tensors(PosConv::Plain)),
        config: sizes.config,
    }
}
