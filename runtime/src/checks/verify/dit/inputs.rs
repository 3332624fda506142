//! Reads the inputs that several checks of the transformer use.

use engines::components::dit;
use engines::contract::DType;
use engines::tensor::Tensor;

use crate::chain::encoders::embed_text;
use crate::checks::verify::checkup::{Checkup, Problem};
use crate::numbers::latents;

/// Returns the newest 19 motion latents. Zeros in front replace the missing latents.
pub(super) fn newest(motion: &Tensor) -> Tensor {
    let total = motion.shape()[2];
    let kept = latents::frames(motion, total.saturating_sub(dit::MOTION_FRAMES)..total);
    let missing = dit::MOTION_FRAMES - kept.shape()[2];
    if missing == 0 {
        return kept;
    }
    let mut shape = kept.shape().to_vec();
    shape[2] = missing;
    latents::join(&[Tensor::zeros(DType::F32, &shape), kept])
}

/// Reads the reference latents and the newest motion latents of the sink.
pub(super) fn sink_inputs(checkup: &Checkup<'_>) -> Result<(Tensor, Tensor), Problem> {
    Ok((
        checkup.floats("dit_sink", "ref_latents", 5)?,
        newest(&checkup.floats("dit_sink", "motion_latents", 5)?),
    ))
}

/// Embeds the text. Returns its rows, and how many of them belong to the prompt.
pub(super) fn text(checkup: &Checkup<'_>) -> Result<(Tensor, usize), Problem> {
    let context = checkup.floats("dit_sink", "context", 2)?;
    Ok((
        embed_text(
            &**checkup.backend(),
            checkup.loading(),
            checkup.dit(),
            &context,
        )?,
        context.shape()[0],
    ))
}

/// Returns whether a component of the export has the tap.
pub(super) fn has_tap(checkup: &Checkup<'_>, component: &str, tap: &str) -> bool {
    checkup
        .models()
        .component(component)
        .is_ok_and(|(entry, _)| entry.taps.contains_key(tap))
}
