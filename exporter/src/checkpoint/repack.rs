//! Recognises repacks: files that hold the model in another program's form. A refusal can then name
//! the form, instead of every tensor whose name is unknown.

use super::dtype::StoredDType;

/// The form of a repacked file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Repack {
    /// Quantised weights with a scale for each of them.
    #[error("an fp8 repack with scales; its weights are rounded to 8 bits")]
    ScaledFp8,
    /// Quantised weights without scales.
    #[error("an fp8 repack; its weights are rounded to 8 bits")]
    Fp8,
    /// All models of a pipeline in one file, as ComfyUI's checkpoints have it.
    #[error("a repack for ComfyUI, with the prefix `model.diffusion_model.`")]
    ComfyCheckpoint,
    /// The transformer alone, as ComfyUI's tools save it.
    #[error("a repack for ComfyUI, with the prefix `diffusion_model.`")]
    ComfyDiffusionModel,
    /// The transformer with diffusers' names.
    #[error("a repack for diffusers (WanTransformer3DModel)")]
    DiffusersTransformer,
    /// The VAE with diffusers' names.
    #[error("a repack for diffusers (AutoencoderKLWan)")]
    DiffusersVae,
    /// The text encoder with transformers' names, which ComfyUI and diffusers use.
    #[error("a repack with the names of transformers (UMT5EncoderModel), as ComfyUI uses it")]
    TransformersText,
    /// The speech encoder without its recognition head.
    #[error("a bare Wav2Vec2Model, without the prefix `wav2vec2.`")]
    BareSpeech,
    /// The published tensors under another file name, as ComfyUI's split files have them.
    #[error("a repack under another file name, as ComfyUI uses it")]
    OtherName,
    /// Weights that torch's data-parallel wrapper saved.
    #[error("a file that torch's DataParallel saved, with the prefix `module.`")]
    DataParallel,
}

/// Returns the form of a repack, or `None` for names and types of no known repack.
pub(super) fn recognise<'a>(
    tensors: impl Iterator<Item = (&'a str, StoredDType)>,
) -> Option<Repack> {
    let (names, types): (Vec<&str>, Vec<StoredDType>) = tensors.unzip();
    let begins = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
    let has = |part: &str| names.iter().any(|n| n.contains(part));
    let is_scale =
        |n: &str| n.ends_with(".scale_weight") || n.ends_with(".weight_scale") || n == "scaled_fp8";
    let fp8 = types
        .iter()
        .any(|t| matches!(t, StoredDType::F8E4M3 | StoredDType::F8E5M2));
    let forms = [
        (fp8 && names.iter().any(|n| is_scale(n)), Repack::ScaledFp8),
        (fp8, Repack::Fp8),
        (begins("model.diffusion_model."), Repack::ComfyCheckpoint),
        (begins("diffusion_model."), Repack::ComfyDiffusionModel),
        (
            begins("condition_embedder.") || has(".attn1.to_q."),
            Repack::DiffusersTransformer,
        ),
        (
            begins("quant_conv.") || has("coder.conv_in.") || has("coder.mid_block."),
            Repack::DiffusersVae,
        ),
        (
            begins("shared.weight") || begins("encoder.block.0."),
            Repack::TransformersText,
        ),
        (
            begins("feature_extractor.conv_layers.") || begins("feature_projection."),
            Repack::BareSpeech,
        ),
        (
            names.iter().all(|n| n.starts_with("module.")),
            Repack::DataParallel,
        ),
    ];
    let found = forms
        .into_iter()
        .find(|(fits, _)| *fits && !names.is_empty());
    found.map(|(_, form)| form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_known_by_its_names_or_types() {
        type Tensors = &'static [(&'static str, StoredDType)];
        let cases: [(Tensors, Option<Repack>); 12] = [
            (
                &[
                    ("blocks.0.ffn.0.weight", StoredDType::F8E4M3),
                    ("blocks.0.ffn.0.scale_weight", StoredDType::F32),
                ],
                Some(Repack::ScaledFp8),
            ),
            (
                &[("blocks.0.ffn.0.weight", StoredDType::F8E5M2)],
                Some(Repack::Fp8),
            ),
            (
                &[(
                    "model.diffusion_model.blocks.0.ffn.0.weight",
                    StoredDType::F32,
                )],
                Some(Repack::ComfyCheckpoint),
            ),
            (
                &[("diffusion_model.blocks.0.ffn.0.weight", StoredDType::F32)],
                Some(Repack::ComfyDiffusionModel),
            ),
            (
                &[("blocks.0.attn1.to_q.weight", StoredDType::F32)],
                Some(Repack::DiffusersTransformer),
            ),
            (
                &[("encoder.conv_in.weight", StoredDType::F32)],
                Some(Repack::DiffusersVae),
            ),
            (
                &[("shared.weight", StoredDType::F32)],
                Some(Repack::TransformersText),
            ),
            (
                &[(
                    "feature_extractor.conv_layers.0.conv.weight",
                    StoredDType::F32,
                )],
                Some(Repack::BareSpeech),
            ),
            (
                &[("module.encoder.conv1.weight", StoredDType::F32)],
                Some(Repack::DataParallel),
            ),
            // The published names of the four files.
            (
                &[
                    ("blocks.0.ffn.0.weight", StoredDType::F32),
                    ("encoder.conv1.weight", StoredDType::F32),
                    ("wav2vec2.encoder.layer_norm.bias", StoredDType::F32),
                    ("token_embedding.weight", StoredDType::F32),
                ],
                None,
            ),
            (&[("scaled_fp8", StoredDType::F32)], None),
            (&[], None),
        ];
        for (tensors, want) in cases {
            assert_eq!(recognise(tensors.iter().copied()), want, "{tensors:?}");
        }
    }
}
