//! Checks the transformer's components: time embedding, audio adapter, motion packer, sink prefill,
//! blocks over a ring that wraps, inner values by taps, and two actors. The inputs are the
//! reference's own tensors, so that each comparison shows the error of one component.

mod blocks;
mod embeddings;
mod inputs;
mod scene;
mod sink;
mod two_actors;

use engines::components::{dit, speech};
use engines::recipe::Recipe;

use crate::checks::verify::checkup::Checkup;
use crate::checks::verify::precision::BF16;

/// Files whose tensors are made by one run over several blocks.
const BLOCK_FILES: [&str; 4] = ["dit_blocks", "dit_kv", "dit_layers", BF16];

/// Tensor of the checkpoint without its LoRA.
const WITHOUT_LORA: &str = "block0.noise_pred_without_lora";

/// Runs the checks of this file.
pub(super) fn check(checkup: &Checkup<'_>) {
    not_applicable(checkup);
    checkup.part(
        dit::EMBED.name,
        "time",
        |_| true,
        |names| embeddings::time(checkup, names),
    );
    checkup.part(
        speech::ADAPTER.name,
        "causal_audio",
        |_| true,
        |names| embeddings::adapter(checkup, names),
    );
    checkup.part(
        dit::SINK_EMBED.name,
        "framepack",
        |_| true,
        |names| sink::packer(checkup, names),
    );
    checkup.part(
        dit::TEXT_EMBED.name,
        "dit_sink",
        |n| n == "text_embedding_head",
        |_| sink::text_head(checkup),
    );
    checkup.part(
        "rotary tables",
        "dit_sink",
        |n| n.starts_with("framepack.rope_"),
        |_| sink::packer_rope(checkup),
    );
    checkup.part(
        dit::SINK_EMBED.name,
        "dit_sink",
        |n| ["framepack.tokens", "block0.input"].contains(&n),
        |_| sink::sink_embed(checkup),
    );
    let sink = |_: &str, n: &str| n.contains(".cond_") || n == "last_block.output";
    checkup.parts(dit::SINK_LAYER.name, &["dit_sink", BF16], sink, |_| {
        sink::sink_layers(checkup)
    });
    let plain = |file: &str, name: &str| {
        if file == BF16 {
            return ["layer0.input", "noise_pred"].contains(&name);
        }
        let inner = file == "dit_layers" && !name.ends_with(".after_injection");
        name.starts_with("block") && name != WITHOUT_LORA && !inner
    };
    checkup.parts(dit::LAYER.name, &BLOCK_FILES, plain, |names| {
        blocks::blocks(checkup, names)
    });
    for (file, prefix) in [("dit_layers", "block"), (BF16, "layer")] {
        checkup.part(
            dit::LAYER.name,
            file,
            |n| n.starts_with(prefix),
            |names| blocks::inner_values(checkup, file, names),
        );
    }
    checkup.part(
        dit::LAYER.name,
        "dit_two",
        |n| n.starts_with("block") || n == "mask",
        |names| two_actors::two_actors(checkup, names),
    );
}

/// Notes the tensors of computations that an export does not hold.
fn not_applicable(checkup: &Checkup<'_>) {
    let manifest = checkup.models().manifest();
    let merged = "made without the LoRA, but the export holds the merged weights only";
    checkup
        .table
        .not_checked("dit_blocks", WITHOUT_LORA, merged);
    for name in checkup
        .table
        .open(BF16)
        .iter()
        .filter(|_| manifest.recipe == Recipe::Fp32)
    {
        checkup.table.not_checked(
            BF16,
            name,
            "made by the reference in bf16, but the export has the recipe fp32",
        );
    }
    for name in checkup
        .table
        .open("rope")
        .iter()
        .filter(|n| n.ends_with("_f16"))
    {
        let reason =
            "the reference's table in half precision; the tensors without _f16 check the f32 table";
        checkup.table.not_checked("rope", name, reason);
    }
}
