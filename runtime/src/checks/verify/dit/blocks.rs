//! Checks blocks over a ring that wraps: predictions, keys and values, and inner values by taps.

use std::sync::Arc;

use engines::backend::{LoadOptions, Loading, Recorder};
use engines::components::dit;
use engines::contract::DType;
use engines::tensor::Tensor;

use super::inputs::has_tap;
use super::scene::{Block, Running, Scene};
use crate::chain::call::Call;
use crate::chain::encoders::AudioAdapter;
use crate::chain::source::everywhere;
use crate::chain::stage::anchor_of;
use crate::checks::verify::checkup::{Checkup, Problem, lacks, lane, last, number_in, swapped};
use crate::checks::verify::precision::BF16;
use crate::numbers::geometry::Geometry;
use crate::numbers::latents;

/// Checks predictions, keys and values, and the tokens between components.
pub(super) fn blocks(
    checkup: &Checkup<'_>,
    names: &[(&'static str, String)],
) -> Result<(), Problem> {
    run(checkup, names, &[])
}

/// Checks inner values of layers and injectors by taps.
pub(super) fn inner_values(
    checkup: &Checkup<'_>,
    file: &'static str,
    names: &[String],
) -> Result<(), Problem> {
    let (mut taps, mut wanted) = (Vec::new(), Vec::new());
    for name in names {
        let Some(tapped) = tap_of(checkup, file, name) else {
            continue;
        };
        if has_tap(checkup, &tapped.component, &tapped.tap) {
            wanted.push((file, name.clone()));
            taps.push(tapped);
        } else {
            checkup.table.not_checked(
                file,
                name,
                format!(
                    "{} of the export has no tap {}",
                    tapped.component, tapped.tap
                ),
            );
        }
    }
    if taps.is_empty() {
        Ok(())
    } else {
        run(checkup, &wanted, &taps)
    }
}

/// An inner value of a layer: the tensor to compare it with, and the tap that returns it.
struct Tapped {
    file: &'static str,
    name: String,
    block: usize,
    component: String,
    tap: String,
}

/// Runs blocks in order, up to the last block that a tensor's name mentions. With taps, only the
/// tapped values are compared.
fn run(
    checkup: &Checkup<'_>,
    names: &[(&'static str, String)],
    taps: &[Tapped],
) -> Result<(), Problem> {
    let of_block = |name: &str| {
        name.strip_prefix("block")?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let blocks = names
        .iter()
        .filter_map(|(file, n)| if *file == BF16 { Some(0) } else { of_block(n) })
        .max()
        .map_or(0, |b| b + 1);
    let scene = Scene::new(checkup)?;
    let recorder = Recorder::new(Arc::clone(checkup.backend()));
    let base = Arc::clone(checkup.loading());
    let wanted: Vec<(String, String)> = taps
        .iter()
        .map(|t| (t.component.clone(), t.tap.clone()))
        .collect();
    let loading: Loading = Arc::new(move |component: &str| {
        let mut options: LoadOptions = base(component);
        // The recorder identifies sessions by their components.
        options.alone = true;
        let own = wanted.iter().filter(|(c, _)| c == component);
        options.taps.extend(own.map(|(_, tap)| tap.clone()));
        options
    });
    let mut running = scene.stage(Arc::new(recorder.clone()), &loading)?;
    let anchor = Arc::new(anchor_of(scene.prefill(checkup, &mut running)?));
    let adapter = AudioAdapter::load(&**checkup.backend(), checkup.loading())?;
    for index in 0..blocks {
        let latents = lane(checkup.floats("dit_blocks", &format!("block{index}.x"), 4)?);
        let pose_name = format!("block{index}.cond_states");
        let pose = checkup
            .golden
            .entry("dit_blocks", &pose_name)
            .map(|_| checkup.floats("dit_blocks", &pose_name, 5))
            .transpose()?;
        let distance = checkup.number(&format!("/dit_blocks/relative_dist/{index}"))?;
        let audio = adapter.tokens(
            &bucket(checkup, scene.geometry(), index)?,
            everywhere(scene.geometry()),
        )?;
        let relative_dist = u32::try_from(distance).unwrap_or_default();
        let block = Block {
            index,
            relative_dist,
            latents: &latents,
            pose_latents: pose.as_ref(),
            audio: &audio,
        };
        let call = scene.denoise(&mut running, &block, &anchor)?;
        match taps.is_empty() {
            true => plain_values(checkup, &scene, &running, &recorder, index, &call),
            false => tapped_values(checkup, taps, index, &call),
        }
    }
    Ok(())
}

/// Cuts the hidden states of one block out of the reference's bucket.
fn bucket(checkup: &Checkup<'_>, geometry: &Geometry, block: usize) -> Result<Tensor, Problem> {
    let (name, frames) = ("a16k.bucket", geometry.block_video_frames());
    let bucket = checkup
        .golden
        .tensor("audio", name)?
        .ok_or_else(|| lacks(format!("audio.{name}")))?;
    let range = block * frames..(block + 1) * frames;
    match (bucket.dtype(), bucket.shape()) {
        (DType::F32, &[1, _, _, total]) if total >= range.end => Ok(last(&bucket, range)),
        _ => Err(lacks(format!("frames {range:?} of audio.{name}"))),
    }
}

fn plain_values(
    checkup: &Checkup<'_>,
    scene: &Scene,
    running: &Running,
    recorder: &Recorder,
    index: usize,
    call: &Call,
) {
    let name = |what: &str| format!("block{index}.{what}");
    if let Some(output) = &call.output {
        checkup.table.check(
            dit::HEAD.name,
            "dit_blocks",
            &name("noise_pred"),
            &output.noise_pred,
        );
    }
    let hidden = |component: &str| recorder.get(component, dit::HIDDEN_OUT.name);
    if let Some(tokens) = hidden(dit::EMBED.name) {
        checkup
            .table
            .check(dit::EMBED.name, "dit_blocks", &name("tokens_in"), &tokens);
        if index == 0 {
            checkup.check_open(dit::EMBED.name, BF16, "layer0.input", &tokens);
        }
    }
    if let (Some(output), 0) = (&call.output, index) {
        let prediction = &output.noise_pred;
        checkup.check_open(dit::HEAD.name, BF16, "noise_pred", prediction);
    }
    if let Some(head) = hidden(&dit::layer_name(scene.model.layers - 1)) {
        checkup
            .table
            .check(dit::LAYER.name, "dit_blocks", &name("head_in"), &head);
    }
    let g = scene.geometry();
    let written = g.slot(index)..g.slot(index) + g.block_tokens();
    for layer in 0..scene.model.layers {
        if let Some(after) = hidden(&dit::layer_name(layer)) {
            let name = name(&format!("layer{layer}.after_injection"));
            checkup
                .table
                .check(dit::LAYER_AUDIO.name, "dit_layers", &name, &after);
        }
        let Some(ring) = running.state.ring(layer) else {
            continue;
        };
        for (what, values) in [("k", &ring.keys), ("v", &ring.values)] {
            let name = name(&format!("layer{layer}.{what}"));
            if checkup.table.is_open("dit_kv", &name) {
                checkup.table.check(
                    dit::LAYER.name,
                    "dit_kv",
                    &name,
                    &swapped(&latents::frames(values, written.clone())),
                );
            }
        }
    }
}

fn tapped_values(checkup: &Checkup<'_>, taps: &[Tapped], index: usize, call: &Call) {
    for tapped in taps.iter().filter(|t| t.block == index) {
        if let Some(value) = call
            .taps
            .get(&format!("{}/{}", tapped.component, tapped.tap))
        {
            let value = as_golden(checkup, tapped.file, &tapped.name, value.clone());
            checkup
                .table
                .check(dit::LAYER.name, tapped.file, &tapped.name, &value);
        }
    }
}

/// Gives a value the shape of the reference's tensor, if only the split of tokens into frames
/// differs.
fn as_golden(checkup: &Checkup<'_>, file: &str, name: &str, value: Tensor) -> Tensor {
    match checkup.golden.tensor(file, name) {
        Ok(Some(want))
            if want.shape().last() == value.shape().last()
                && elements(&want) == elements(&value) =>
        {
            value.reshaped(want.shape())
        }
        _ => value,
    }
}

/// Returns the number of elements.
fn elements(t: &Tensor) -> usize {
    t.shape().iter().product()
}

/// Finds the tap of a tensor such as `block5.layer0.sa`. The name has the number of a layer or an
/// injector. The bf16 file has longer words, and only tensors of block 0.
fn tap_of(checkup: &Checkup<'_>, file: &'static str, name: &str) -> Option<Tapped> {
    let (block, rest) = match file {
        BF16 => ("0", name),
        _ => name.strip_prefix("block")?.split_once('.')?,
    };
    let injector = |at: usize, path: &str| {
        Some((
            *checkup.dit().audio_inject_layers.get(at)?,
            format!("audio_injector.{path}.{at}"),
        ))
    };
    let (layer, tap) = if let Some(at) = number_in(rest, "adain", "") {
        injector(at, "injector_adain_layers")?
    } else if let Some(at) = number_in(rest, "inject", "") {
        injector(at, "injector")?
    } else {
        let (layer, what) = rest.strip_prefix("layer")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let module = match what {
            "out" | "output" => "",
            "sa" | "self_attn" => ".self_attn",
            "ca" | "cross_attn" => ".cross_attn",
            "ffn" => ".ffn",
            _ => return None,
        };
        (layer, format!("blocks.{layer}{module}"))
    };
    Some(Tapped {
        file,
        name: name.to_owned(),
        block: block.parse().ok()?,
        component: dit::layer_name(layer),
        tap,
    })
}
