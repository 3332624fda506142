//! Checks blocks with two actors, who each have a part of the picture.

use std::sync::Arc;

use engines::components::dit;
use engines::tensor::Tensor;

use super::scene::{Block, Scene};
use crate::chain::encoders::AudioAdapter;
use crate::chain::stage::anchor_of;
use crate::checks::verify::checkup::{Checkup, Problem, lacks, lane, number_in};

/// Checks the predictions of blocks with two actors.
pub(super) fn two_actors(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let blocks = names
        .iter()
        .filter_map(|n| number_in(n, "block", ".noise_pred"))
        .max()
        .map_or(0, |b| b + 1);
    let scene = Scene::new(checkup)?;
    let g = scene.geometry();
    let mask = checkup.floats("dit_two", "mask", 5)?;
    let (actors, tokens) = (mask.shape()[0], g.tokens.0 * g.tokens.1);
    if mask.shape()[2] * mask.shape()[3] != tokens || mask.shape()[1] < g.block_frames {
        return Err(Problem::Lacks(format!(
            "dit_two.mask: wanted {} frames of {tokens} tokens, found {mask:?}",
            g.block_frames
        )));
    }
    // The reference uses the first frames of the mask for every block.
    let row = mask.shape()[1] * tokens;
    let kept = mask
        .as_slice::<f32>()
        .chunks_exact(row)
        .flat_map(|actor| &actor[..g.block_frames * tokens]);
    let mask = Tensor::from_slice(
        &[1, actors, g.block_frames, tokens],
        &kept.copied().collect::<Vec<f32>>(),
    );
    let mut running = scene.stage(Arc::clone(checkup.backend()), checkup.loading())?;
    let anchor = Arc::new(anchor_of(scene.prefill(checkup, &mut running)?));
    let adapter = AudioAdapter::load(&**checkup.backend(), checkup.loading())?;
    for index in 0..blocks {
        let latents = lane(checkup.floats("dit_two", &format!("block{index}.x"), 4)?);
        let features = checkup.floats("dit_two", &format!("block{index}.audio_input"), 4)?;
        let name = format!("block{index}.noise_pred");
        let relative_dist = recorded_distance(checkup, &name)?;
        let audio = adapter.tokens(&features, mask.clone())?;
        let block = Block {
            index,
            relative_dist,
            latents: &latents,
            pose_latents: None,
            audio: &audio,
        };
        if let Some(output) = scene.denoise(&mut running, &block, &anchor)?.output {
            checkup
                .table
                .check(dit::HEAD.name, "dit_two", &name, &output.noise_pred);
        }
    }
    Ok(())
}

/// Reads the distance of a block. The golden set states it only in words: "relative_dist 11, ...".
fn recorded_distance(checkup: &Checkup<'_>, name: &str) -> Result<u32, Problem> {
    let meaning = checkup
        .golden
        .entry("dit_two", name)
        .map_or("", |e| e.meaning.as_str());
    let word = meaning
        .split("relative_dist ")
        .nth(1)
        .and_then(|t| t.split(|c: char| !c.is_ascii_digit()).next());
    word.and_then(|w| w.parse().ok())
        .ok_or_else(|| lacks(format!("relative_dist in the meaning of dit_two.{name}")))
}
