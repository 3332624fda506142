//! Checks the embedding of timesteps and the audio adapter.

use engines::backend::State;
use engines::components::{dit, speech};
use engines::contract::DType;
use engines::tensor::{Tensor, View};

use super::inputs::has_tap;
use crate::checks::verify::checkup::{Checkup, Problem, lane, number_in};
use crate::numbers::schedule;

/// Tap of all frames of the global audio token.
const ADAPTER_GLOBAL: &str = "casual_audio_encoder.encoder.global";

/// Checks timesteps, their sinusoids and their embedding.
pub(super) fn time(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let mut tags: Vec<&str> = names
        .iter()
        .filter_map(|n| Some(n.split_once('.')?.0))
        .collect();
    tags.dedup();
    let steps = schedule::timesteps(checkup.config("steps")?)?;
    for tag in tags {
        let name = |what: &str| format!("{tag}.{what}");
        if let Some(t) = number_in(tag, "t", "").and_then(|i| steps.get(i)) {
            checkup.table.check(
                "schedule",
                "time",
                &name("timestep"),
                &Tensor::from_slice(&[1], &[*t]),
            );
        }
        let given = checkup.floats("time", &name("timestep"), 1)?;
        let sinusoid = schedule::sinusoid(given.as_slice::<f32>()[0]);
        checkup.table.check(
            "schedule",
            "time",
            &name("sinusoid"),
            &Tensor::from_slice(&[1, sinusoid.len()], &sinusoid),
        );
        if checkup.table.is_open("time", &name("e")) || checkup.table.is_open("time", &name("e0")) {
            embedded_time(checkup, tag, &sinusoid)?;
        }
    }
    Ok(())
}

/// Checks the embedding of a timestep. The graph of the sink takes no timestep: it is always 0.
fn embedded_time(checkup: &Checkup<'_>, tag: &str, sinusoid: &[f32]) -> Result<(), Problem> {
    let (c, frames) = (checkup.dit(), checkup.dit().block_frames);
    let zeros = |frames: usize, side: usize| {
        Tensor::zeros(DType::F32, &[1, c.latent_channels, frames, side, side])
    };
    let first = |t: Tensor| {
        let shape = t.shape()[2..].to_vec();
        let data = t.as_slice::<f32>()[..shape.iter().product()].to_vec();
        lane(Tensor::from_slice(&shape, &data))
    };
    let latents = zeros(frames, 2);
    let rows = sinusoid.repeat(frames);
    let inputs = [
        (&dit::LATENTS, latents.view()),
        (&dit::POSE_LATENTS, latents.view()),
        (
            &dit::SINUSOID,
            View::from_slice(&[1, frames, sinusoid.len()], &rows),
        ),
    ];
    let mut embed = checkup
        .backend()
        .load(dit::EMBED.name, &(checkup.loading())(dit::EMBED.name))?;
    let mut out = embed.run(&inputs, State::None)?;
    checkup.table.check(
        dit::EMBED.name,
        "time",
        &format!("{tag}.e"),
        &first(out.take(&dit::E_OUT)),
    );
    checkup.table.check(
        dit::EMBED.name,
        "time",
        &format!("{tag}.e0"),
        &first(out.take(&dit::E0_OUT)),
    );
    if tag == "tzero" {
        let (reference, motion) = (zeros(1, 8), zeros(dit::MOTION_FRAMES, 8));
        let mut sink = checkup.backend().load(
            dit::SINK_EMBED.name,
            &(checkup.loading())(dit::SINK_EMBED.name),
        )?;
        let inputs = [
            (&dit::REF_LATENTS, reference.view()),
            (&dit::MOTION_LATENTS, motion.view()),
        ];
        let e0 = first(sink.run(&inputs, State::None)?.take(&dit::SINK_E0));
        checkup.table.check_noted(
            dit::SINK_EMBED.name,
            "time",
            "tzero.e0",
            &e0,
            "the sink's own modulation",
        );
    }
    Ok(())
}

/// Checks the audio tokens that the adapter makes of hidden states.
pub(super) fn adapter(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let mut tags: Vec<&str> = names
        .iter()
        .filter_map(|n| Some(n.split_once('.')?.0))
        .collect();
    tags.dedup();
    let (mut options, component) = (
        (checkup.loading())(speech::ADAPTER.name),
        speech::ADAPTER.name,
    );
    options
        .taps
        .extend(has_tap(checkup, component, ADAPTER_GLOBAL).then(|| ADAPTER_GLOBAL.to_owned()));
    let mut session = checkup.backend().load(component, &options)?;
    for tag in tags {
        let audio = checkup.floats("causal_audio", &format!("{tag}.audio_input"), 4)?;
        let mut out = session.run(&[(&speech::AUDIO, audio.view())], State::None)?;
        let (global, local) = (
            out.take(&speech::AUDIO_GLOBAL_OUT),
            out.take(&speech::AUDIO_LOCAL_OUT),
        );
        checkup
            .table
            .check(component, "causal_audio", &format!("{tag}.global"), &global);
        checkup
            .table
            .check(component, "causal_audio", &format!("{tag}.local"), &local);
        for name in names
            .iter()
            .filter(|n| n.starts_with(&format!("{tag}.global_all")))
        {
            match options.taps.is_empty() {
                false => checkup.table.check(
                    component,
                    "causal_audio",
                    name,
                    &out.take_named(ADAPTER_GLOBAL),
                ),
                true => checkup.table.not_checked(
                    "causal_audio",
                    name,
                    format!("the export has no tap {ADAPTER_GLOBAL}"),
                ),
            }
        }
    }
    Ok(())
}
