//! Checks the sink: motion packer, text embedding, embedding and layers.

use std::sync::Arc;

use engines::backend::State;
use engines::components::dit;
use engines::contract::DType;
use engines::tensor::Tensor;
use ndarray::s;

use super::inputs::{has_tap, newest, sink_inputs, text};
use super::scene::Scene;
use crate::chain::call::SinkFlow;
use crate::checks::verify::checkup::{Checkup, Problem, swapped, widened};
use crate::checks::verify::host::tokens;
use crate::checks::verify::precision::BF16;
use crate::numbers::rope::Rope;

/// Tap of the packed motion tokens, before the condition mask.
const PACKER: &str = "frame_packer";

/// Checks the packed motion tokens.
pub(super) fn packer(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    for name in names.iter().filter(|n| n.ends_with(".tokens")) {
        let motion = checkup.floats("framepack", &name.replace(".tokens", ".latents"), 5)?;
        let motion = newest(&motion);
        let mut shape = motion.shape().to_vec();
        shape[2] = 1;
        let (_, packed) = embed_sink(checkup, &Tensor::zeros(DType::F32, &shape), &motion)?;
        checkup.table.check(
            dit::SINK_EMBED.name,
            "framepack",
            name,
            &packed.ok_or_else(no_packer_tap)?,
        );
    }
    Ok(())
}

/// Checks the embedding of the text, up to the first row of filling.
pub(super) fn text_head(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (text, rows) = text(checkup)?;
    let (total, width) = (text.shape()[1], text.shape()[2]);
    let kept = (rows + 1).min(total);
    let text = widened(&text);
    let head = Tensor::from_slice(&[1, kept, width], &text.as_slice::<f32>()[..kept * width]);
    checkup.table.check(
        dit::TEXT_EMBED.name,
        "dit_sink",
        "text_embedding_head",
        &head,
    );
    Ok(())
}

/// Checks the rotary table of the packed motion tokens.
pub(super) fn packer_rope(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (h, w) = tokens(checkup)?;
    let table = Rope::new(h, w, checkup.dit().head_dim()).cond(0);
    for (part, values) in [("cos", &table.cos), ("sin", &table.sin)] {
        let motion = Tensor::from(values.slice(s![h * w.., ..]));
        let name = format!("framepack.rope_{part}");
        checkup
            .table
            .check("rotary tables", "dit_sink", &name, &motion);
    }
    Ok(())
}

/// Checks the tokens of the sink.
pub(super) fn sink_embed(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (reference, motion) = sink_inputs(checkup)?;
    let (tokens, packed) = embed_sink(checkup, &reference, &motion)?;
    checkup
        .table
        .check(dit::SINK_EMBED.name, "dit_sink", "block0.input", &tokens);
    if let Some(packed) = &packed {
        checkup
            .table
            .check(dit::SINK_EMBED.name, "dit_sink", "framepack.tokens", packed);
    }
    packed.map(drop).ok_or_else(no_packer_tap)
}

/// Checks the keys and values of the sink, and the output of its last layer.
pub(super) fn sink_layers(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let scene = Scene::new(checkup)?;
    let mut running = scene.stage(Arc::clone(checkup.backend()), checkup.loading())?;
    let prefill = scene.prefill(checkup, &mut running)?;
    if let Some(SinkFlow { hidden, .. }) = &prefill.flow {
        checkup.table.check(
            dit::SINK_LAYER.name,
            "dit_sink",
            "last_block.output",
            hidden,
        );
    }
    for (i, layer) in prefill.layers.iter().enumerate() {
        let layer = &layer.condition;
        for (what, values) in [("k", &layer.sink_k), ("v", &layer.sink_v)] {
            let (name, values) = (format!("layer{i}.cond_{what}"), swapped(values));
            for file in ["dit_sink", BF16] {
                checkup.check_open(dit::SINK_LAYER.name, file, &name, &values);
            }
        }
    }
    Ok(())
}

/// Runs the sink's embedding. Returns its tokens, and the packed motion tokens where the export has
/// the tap.
fn embed_sink(
    checkup: &Checkup<'_>,
    reference: &Tensor,
    motion: &Tensor,
) -> Result<(Tensor, Option<Tensor>), Problem> {
    let component = dit::SINK_EMBED.name;
    let tapped = has_tap(checkup, component, PACKER);
    let mut options = (checkup.loading())(component);
    options.taps.extend(tapped.then(|| PACKER.to_owned()));
    let mut session = checkup.backend().load(component, &options)?;
    let inputs = [
        (&dit::REF_LATENTS, reference.view()),
        (&dit::MOTION_LATENTS, motion.view()),
    ];
    let mut out = session.run(&inputs, State::None)?;
    Ok((
        out.take(&dit::SINK_TOKENS),
        tapped.then(|| out.take_named(PACKER)),
    ))
}

fn no_packer_tap() -> Problem {
    Problem::Lacks(format!("the export has no tap {PACKER}"))
}
