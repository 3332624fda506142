//! Checks the VAE: encoding and decoding of whole videos, and the streaming decoder with its
//! feature caches after priming.

use engines::components::vae;
use engines::tensor::Tensor;
use serde_json::Value;

use super::checkup::{Checkup, Problem, lacks, lane, number_in};
use crate::chain::vae::{Decoder, Encoder};
use crate::numbers::latents;
use crate::numbers::timing::PRIMING_LATENTS;

/// Name of the encoder in reports: the common part of its components' names.
const ENCODER: &str = "vae_encoder";
/// Name of the decoder in reports: the common part of its components' names.
const DECODER: &str = "vae_decoder";

/// Runs the checks of this file.
pub(super) fn check(checkup: &Checkup<'_>) {
    checkup.part(
        ENCODER,
        "vae",
        |n| n.starts_with("encode.latents"),
        |names| encode(checkup, names),
    );
    checkup.part(
        DECODER,
        "vae",
        |n| n.starts_with("decode.frames"),
        |names| decode(checkup, names),
    );
    checkup.part(
        DECODER,
        "vae_stream",
        |n| n == "fresh_single_latent.frames",
        |_| {
            let frames = decoder(checkup)?
                .decode(&part(&latent(checkup)?, 0..1)?)?
                .pixels;
            checkup
                .table
                .check(DECODER, "vae_stream", "fresh_single_latent.frames", &frames);
            Ok(())
        },
    );
    let covers = |n: &str| {
        n.starts_with("cache_after_prime.") || n.starts_with("prime.") || n.starts_with("block")
    };
    checkup.part(DECODER, "vae_stream", covers, |names| {
        stream(checkup, names)
    });
}

fn decoder(checkup: &Checkup<'_>) -> Result<Decoder, Problem> {
    Ok(Decoder::load(
        &**checkup.backend(),
        checkup.loading(),
        &checkup.models().config().vae,
    )?)
}

/// Reads the latents that are decoded, `[1, Z, F, h, w]`.
fn latent(checkup: &Checkup<'_>) -> Result<Tensor, Problem> {
    Ok(lane(checkup.floats("vae", "decode.latents", 4)?))
}

fn part(t: &Tensor, range: std::ops::Range<usize>) -> Result<Tensor, Problem> {
    match t.shape()[2] >= range.end {
        true => Ok(latents::frames(t, range)),
        false => Err(lacks(format!(
            "latent frames {range:?} in vae.decode.latents"
        ))),
    }
}

fn encode(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let video = lane(checkup.floats("vae", "encode.video", 4)?);
    let (count, shape) = (video.shape()[2], video.shape()[1..].to_vec());
    let frame =
        |i: usize| latents::frames(&video, i..i + 1).reshaped(&[shape[0], shape[2], shape[3]]);
    let frames: Vec<Tensor> = (0..count).map(frame).collect();
    let negative = Tensor::from_slice(
        frames[0].shape(),
        &vec![-1f32; frames[0].shape().iter().product()],
    );
    let mut encoder = Encoder::load(
        &**checkup.backend(),
        checkup.loading(),
        &checkup.models().config().vae,
    )?;
    for name in names {
        let found = if let Some(n) =
            number_in(name, "encode.latents", "").filter(|n| (1..=count).contains(n))
        {
            encoder.encode(&frames[..n])?
        } else if let Some(n) = number_in(name, "encode.latents_repeat", "") {
            encoder.encode(std::iter::repeat_n(&frames[0], n))?
        } else if let Some(n) = number_in(name, "encode.latents_minus_one", "") {
            encoder.encode(std::iter::repeat_n(&negative, n))?
        } else {
            continue;
        };
        checkup.table.check(ENCODER, "vae", name, &found);
    }
    Ok(())
}

fn decode(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let latent = latent(checkup)?;
    let mut decoder = decoder(checkup)?;
    for name in names {
        if let Some(n) = number_in(name, "decode.frames", "") {
            decoder.reset();
            checkup.table.check(
                DECODER,
                "vae",
                name,
                &decoder.decode(&part(&latent, 0..n)?)?.pixels,
            );
        }
    }
    Ok(())
}

/// Primes the decoder, compares its caches, then decodes block after block. The multi-device
/// pipeline does the same.
fn stream(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let latent = latent(checkup)?;
    let mut decoder = decoder(checkup)?;
    let primed = decoder.decode(&part(&latent, 0..PRIMING_LATENTS)?)?.pixels;
    let total = primed.shape()[2];
    let kept = vae::TEMPORAL_STRIDE.min(total);
    checkup.table.check(
        DECODER,
        "vae_stream",
        "prime.frames",
        &latents::frames(&primed, total - kept..total),
    );
    caches(checkup, &decoder, names);
    let frames = checkup.dit().block_frames;
    let blocks = names
        .iter()
        .filter_map(|n| number_in(n, "block", ".frames"))
        .max()
        .map_or(0, |b| b + 1);
    for block in 0..blocks {
        let at = PRIMING_LATENTS + block * frames;
        let decoded = decoder.decode(&part(&latent, at..at + frames)?)?.pixels;
        checkup.table.check(
            DECODER,
            "vae_stream",
            &format!("block{block}.frames"),
            &decoded,
        );
    }
    Ok(())
}

/// Compares the caches. The reference numbers them in the order in which its convolutions run, and
/// leaves some numbers unused. The contract of a whole VAE lists its state in the same order. A
/// cache that the model does not have is not checked.
fn caches(checkup: &Checkup<'_>, decoder: &Decoder, names: &[String]) {
    let slots = checkup
        .golden
        .value("/vae/decoder_cache_shapes_after_prime")
        .and_then(Value::as_array);
    let used: Vec<usize> = match slots {
        Some(slots) => (0..slots.len()).filter(|&i| !slots[i].is_null()).collect(),
        None => (0..vae::DECODER_NEXT.state.len()).collect(),
    };
    let kept = checkup.models().config().vae.contract(&vae::DECODER_NEXT);
    for name in names {
        let Some(slot) = number_in(name, "cache_after_prime.", "") else {
            continue;
        };
        let port = used
            .iter()
            .position(|&u| u == slot)
            .and_then(|at| vae::DECODER_NEXT.state.get(at));
        match port.and_then(|p| Some((p, decoder.cache().get(p.name)?))) {
            Some((port, cache)) => {
                checkup
                    .table
                    .check_noted(DECODER, "vae_stream", name, cache, port.name);
            }
            None if port.is_some_and(|p| !kept.state.contains(p)) => {
                let reason = "zeros of the VAE make the cache idle, so the export leaves it out";
                checkup.table.not_checked("vae_stream", name, reason);
            }
            None => {
                checkup
                    .table
                    .failed(DECODER, "vae_stream", name, "the decoder has no such cache");
            }
        }
    }
}
