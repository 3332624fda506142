//! Turns a profile into a placement: the devices of layers, steps, VAE and encoders, and the
//! weights and rings that stay on each device between calls. Where a profile says "fit", the memory
//! that is left decides.

use std::ops::Range;

use engines::profile::{EncoderPolicy, Keep, LanePolicy, Parts, Profile, VaePolicy};

use super::ask::Ask;
use super::error::PlannerError;
use super::memory::{Budget, budgets};
use super::placement::{Encoders, PlacedStage, Placement, StageResidency};
use super::work::Work;

/// Places the work of `ask` on the devices of `profile`.
///
/// # Errors
/// The profile has layers or lanes that the model or the run does not have.
pub(crate) fn place(profile: &Profile, work: &Work, ask: &Ask) -> Result<Placement, PlannerError> {
    let layers = work.config().dit.layers;
    let cuts = layer_cuts(profile, layers)?;
    let parts = profile.layout.steps.min(ask.steps);
    let steps = (0..parts).map(|i| ask.steps * i / parts..ask.steps * (i + 1) / parts);
    let residency = StageResidency {
        resident_layers: 0,
        rings_on_host: false,
        slots: profile.residency.slots,
    };
    let stages: Vec<PlacedStage> = steps
        .flat_map(|steps| cuts.iter().map(move |l| (l.clone(), steps.clone())))
        .enumerate()
        .map(|(device, (layers, steps))| PlacedStage {
            device,
            residency: StageResidency {
                resident_layers: layers.len(),
                ..residency
            },
            layers,
            steps,
        })
        .collect();
    let mut placement = Placement {
        vae: stages.len(),
        lanes: lanes(profile, ask)?,
        encoders: Encoders {
            device: 0,
            freed_before_dit: profile.layout.encoders == EncoderPolicy::Freed,
        },
        ring_blocks: ring_blocks(profile, ask, work),
        stages,
    };
    if profile.layout.vae == VaePolicy::LeastLoaded {
        placement.vae = 0;
        settle(profile, work, ask, &mut placement);
        placement.vae = roomiest(profile, work, ask, &placement);
    }
    placement.encoders.device = placement.vae;
    settle(profile, work, ask, &mut placement);
    Ok(placement)
}

fn ring_blocks(profile: &Profile, ask: &Ask, work: &Work) -> usize {
    profile
        .layout
        .ring_blocks
        .min(ask.clip_blocks(work.config()))
}

fn lanes(profile: &Profile, ask: &Ask) -> Result<usize, PlannerError> {
    let parts = profile.layout.steps.min(ask.steps);
    let most = ask.steps.div_ceil(parts);
    match profile.layout.lanes {
        LanePolicy::Wave => Ok(most),
        LanePolicy::AtMost(n) if n > ask.steps => Err(PlannerError::Profile {
            profile: profile.name.clone(),
            field: "layout.lanes",
            want: format!("at most the {} steps of a wave", ask.steps),
            got: n.to_string(),
        }),
        LanePolicy::AtMost(n) => Ok(n.min(most)),
    }
}

fn layer_cuts(profile: &Profile, layers: usize) -> Result<Vec<Range<usize>>, PlannerError> {
    let wrong = |want: String, got: String| PlannerError::Profile {
        profile: profile.name.clone(),
        field: "layout.layers",
        want,
        got,
    };
    match &profile.layout.layers {
        Parts::Even(n) if *n > layers => Err(wrong(
            format!("at most {layers} parts, the model's layers"),
            n.to_string(),
        )),
        Parts::Even(n) => Ok((0..*n)
            .map(|i| layers * i / n..layers * (i + 1) / n)
            .collect()),
        Parts::Shares(list) => {
            let total: usize = list.iter().sum();
            let mut sum = 0;
            let mut ends = vec![0];
            for share in list {
                sum += share;
                ends.push((layers * sum + total / 2) / total);
            }
            if ends.windows(2).any(|e| e[0] == e[1]) {
                let want = format!("shares that give each part one of the model's {layers} layers");
                return Err(wrong(want, format!("{list:?}")));
            }
            Ok(ends.windows(2).map(|e| e[0]..e[1]).collect())
        }
    }
}

/// Returns the device with the most room for the VAE among those with a stage. Of equal devices it
/// is the last, because its stage ends the call and no other stage waits for it.
fn roomiest(profile: &Profile, work: &Work, ask: &Ask, placement: &Placement) -> usize {
    let without = Placement {
        vae: usize::MAX,
        ..placement.clone()
    };
    let free = |b: &Budget| i128::from(b.usable) - i128::from(b.run());
    let used = placement.stages.iter().map(|s| s.device + 1).max();
    let all = budgets(profile, work, ask, &without);
    let among = all.iter().take(used.unwrap_or(1)).enumerate();
    among
        .max_by_key(|(_, b)| free(b))
        .map_or(0, |(device, _)| device)
}

/// Decides which rings and weights stay on each stage's device. Rings come first, because a layer's
/// weights cross the link once a call, and its rings once for each lane. Then as many layers keep
/// their weights as there is room for.
fn settle(profile: &Profile, work: &Work, ask: &Ask, placement: &mut Placement) {
    let policy = profile.residency;
    let rings = match policy.rings {
        Keep::Device => &[false][..],
        Keep::Host => &[true],
        Keep::Fit => &[false, true],
    };
    for i in 0..placement.stages.len() {
        let layers = placement.stages[i].layers.len();
        let (least, most) = match policy.weights {
            Keep::Device => (layers, layers),
            Keep::Host => (0, 0),
            Keep::Fit => (0, layers),
        };
        let mut fits = |resident_layers, rings_on_host| {
            placement.stages[i].residency = StageResidency {
                resident_layers,
                rings_on_host,
                slots: policy.slots,
            };
            let device = placement.stages[i].device;
            let all = budgets(profile, work, ask, placement);
            all.get(device).is_some_and(|b| b.run() <= b.usable)
        };
        for &on_host in rings {
            // A stage that streams nothing needs no slot, so this case is tried first. In the other
            // cases memory grows with every layer that stays.
            if fits(most, on_host) {
                break;
            }
            if fits(least, on_host) {
                let count = largest(least, most, |n| fits(n, on_host));
                fits(count, on_host);
                break;
            }
        }
    }
}

/// Returns the largest number that fits, from `least`, which fits, up to but without `most`.
fn largest(least: usize, most: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let (mut low, mut high) = (least, most);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
