//! Finds the nearest settings that fit where a plan does not, the bottleneck where it does, and the
//! cheapest ways to more speed. Each is found by one change and a new plan, and never by a rule of
//! thumb.

use engines::manifest::ModelConfig;
use engines::profile::{Keep, LanePolicy, Parts, Profile, VaePolicy};
use engines::recipe::Recipe;

use super::ask::Ask;
use super::draft::{Draft, Planned};
use super::error::Remedy;
use super::placement::device_name;
use crate::numbers::size::Size;

/// Sizes that are tried in place of another, descending.
pub(crate) const SIZES: [(usize, usize); 9] = [
    (1280, 720),
    (1024, 704),
    (832, 480),
    (720, 400),
    (704, 384),
    (688, 368),
    (512, 320),
    (384, 256),
    (256, 256),
];

/// A change that makes a plan faster.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Lever {
    /// The setting and its value, or the hardware.
    pub what: String,
    /// Frames a second after the change.
    pub fps: f64,
    /// Frames a second after the change, divided by those before.
    pub gain: f64,
}

/// A profile and a request with one change.
struct Change {
    what: String,
    /// Cost of the change for the user: settings are cheaper than quality, and quality is cheaper
    /// than hardware.
    cost: u32,
    profile: Profile,
    ask: Ask,
}

/// Remedies that a refusal names at most.
const MOST_REMEDIES: usize = 4;

/// Returns the nearest settings that fit, the smallest change first.
pub(crate) fn nearest(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Vec<Remedy> {
    let fits =
        |c: &Change| Draft::new(&c.profile, config, &c.ask).is_ok_and(|d| d.shortage().is_none());
    let mut changes = settings(profile, config, ask);
    changes.extend(lighter_beside_vae(profile, config, ask));
    changes.extend(smaller(profile, config, ask));
    changes.extend(others(profile, ask));
    changes.sort_by_key(|c| c.cost);
    let mut remedies: Vec<Remedy> = Vec::new();
    let mut kinds = Vec::new();
    for change in changes {
        let kind = change.what.split(' ').next().unwrap_or_default().to_owned();
        if remedies.len() < MOST_REMEDIES && !kinds.contains(&kind) && fits(&change) {
            remedies.push(Remedy { what: change.what });
            kinds.push(kind);
        }
    }
    remedies
}

/// Returns changes that cost only time, or memory elsewhere.
fn settings(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Vec<Change> {
    let mut all = Vec::new();
    let mut push = |what: String, cost, profile: Profile| {
        all.push(Change {
            what,
            cost,
            profile,
            ask: ask.clone(),
        });
    };
    let most = ask.steps.div_ceil(profile.layout.steps.min(ask.steps));
    for n in (1..=most).rev() {
        let mut p = profile.clone();
        p.layout.lanes = LanePolicy::AtMost(n);
        if p.layout.lanes != profile.layout.lanes
            && (n != most || profile.layout.lanes != LanePolicy::Wave)
        {
            push(format!("lanes {n}"), 1 + (most - n) as u32, p);
        }
    }
    if profile.residency.weights != Keep::Fit || profile.residency.rings != Keep::Fit {
        let mut p = profile.clone();
        (p.residency.weights, p.residency.rings) = (Keep::Fit, Keep::Fit);
        p.layout.lanes = LanePolicy::Wave;
        p.host.pinned_gib = p.host.pinned_gib.max(0.8 * p.host.memory_gib);
        if p.devices.iter().all(|d| d.host_link_gbs > 0.0) {
            push(
                "offload (residency weights = \"fit\", rings = \"fit\", lanes = \"wave\")"
                    .to_owned(),
                20,
                p,
            );
        }
    }
    for blocks in (1..ask.clip_blocks(config).min(profile.layout.ring_blocks)).rev() {
        let mut p = profile.clone();
        p.layout.ring_blocks = blocks;
        let cost = 30 + 5 * (profile.layout.ring_blocks - blocks) as u32;
        push(format!("ring_blocks {blocks}"), cost, p);
    }
    if profile.recipe == Recipe::Bf16 {
        let mut p = profile.clone();
        p.recipe = Recipe::Fp8;
        push(
            "recipe fp8 (planned for; no export has it yet)".to_owned(),
            60,
            p,
        );
    }
    all
}

/// Returns changes to a smaller, shorter or coarser video.
fn smaller(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Vec<Change> {
    let change = |what: String, cost, ask: Ask| Change {
        what,
        cost,
        profile: profile.clone(),
        ask,
    };
    let area = |(w, h): (usize, usize)| w * h;
    let now = ask.size.width * ask.size.height;
    let sizes = SIZES
        .into_iter()
        .filter(|&s| area(s) < now)
        .map(|(width, height)| {
            let size = turned(ask.size, width, height);
            let lost = 100 - 100 * area((width, height)) / now;
            change(
                format!("size {size}"),
                10 + lost as u32,
                Ask {
                    size,
                    ..ask.clone()
                },
            )
        });
    let passes = ask.passes;
    let all = ask.steps / passes;
    let steps = (1..all).rev().map(move |steps| {
        let cost = 40 + 10 * (all - steps) as u32;
        change(
            format!("sample_steps {steps}"),
            cost,
            Ask {
                steps: steps * passes,
                ..ask.clone()
            },
        )
    });
    let clip = (ask.clips != Some(1)).then(|| {
        let ask = Ask {
            clips: Some(1),
            ..ask.clone()
        };
        change("num_clip 1 (one anchor at a time)".to_owned(), 90, ask)
    });
    let frames = config.dit.block_frames * crate::numbers::timing::FRAMES_PER_LATENT;
    let clips = (1..ask.clip_blocks(config)).rev().map(move |blocks| {
        let ask = Ask {
            infer_frames: blocks * frames,
            ..ask.clone()
        };
        change(
            format!("infer_frames {}", blocks * frames),
            50 + 5 * (8 - blocks.min(8)) as u32,
            ask,
        )
    });
    sizes.chain(steps).chain(clip).chain(clips).collect()
}

/// Returns a size in the orientation of the size that it replaces.
fn turned(like: Size, width: usize, height: usize) -> Size {
    if like.height > like.width {
        Size {
            width: height,
            height: width,
        }
    } else {
        Size { width, height }
    }
}

/// Returns built-in profiles with no more devices and no more memory.
fn others(profile: &Profile, ask: &Ask) -> Vec<Change> {
    let memory = |p: &Profile| p.each_device().map(|d| d.memory_gib).fold(0.0, f64::max);
    let all = Profile::built_in().unwrap_or_default().into_iter();
    let same = all.filter(|p| {
        p.name != profile.name
            && p.device_count() <= profile.device_count()
            && memory(p) <= memory(profile)
            && p.devices
                .iter()
                .zip(&profile.devices)
                .all(|(a, b)| a.kind == b.kind)
    });
    same.map(|p| Change {
        what: format!("profile {}", p.name),
        cost: if p.recipe == Recipe::Fp8 {
            61
        } else {
            25 + (profile.device_count() - p.device_count()) as u32
        },
        profile: p,
        ask: ask.clone(),
    })
    .collect()
}

/// Gain from which on a change is named.
const WORTH: f64 = 1.05;

/// Returns the two cheapest changes that give more frames a second.
pub(crate) fn levers(planned: &Planned) -> Vec<Lever> {
    let (profile, ask, config) = (&planned.profile, &planned.ask, planned.work.config());
    let mut changes = settings(profile, config, ask);
    changes.extend(rebalanced(planned));
    changes.extend(hardware(profile, ask));
    // A smaller video is not the same video: such changes come last.
    changes.extend(smaller(profile, config, ask).into_iter().map(|c| Change {
        cost: c.cost + 1000,
        ..c
    }));
    changes.retain(|c| !c.what.starts_with("num_clip"));
    changes.sort_by_key(|c| c.cost);
    let mut found: Vec<Lever> = Vec::new();
    let mut kinds = Vec::new();
    for change in changes {
        let kind = change.what.split(' ').next().unwrap_or_default().to_owned();
        if found.len() == 2 || kinds.contains(&kind) {
            continue;
        }
        let draft = Draft::new(&change.profile, config, &change.ask).ok();
        let planned_so = draft
            .filter(|d| d.shortage().is_none())
            .and_then(|d| d.timed().ok());
        let Some(fps) = planned_so.map(|p| p.speed.fps) else {
            continue;
        };
        if fps >= WORTH * planned.speed.fps {
            kinds.push(kind);
            found.push(Lever {
                what: change.what,
                fps,
                gain: fps / planned.speed.fps,
            });
        }
    }
    found
}

/// Moves one to three layers off the device that has the VAE as well.
fn lighter_beside_vae(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Vec<Change> {
    let Ok(draft) = Draft::new(profile, config, ask) else {
        return Vec::new();
    };
    let stages = &draft.placement.stages;
    let vae = stages.iter().position(|s| s.device == draft.placement.vae);
    let (Some(vae), 1, 2..) = (vae, profile.layout.steps, stages.len()) else {
        return Vec::new();
    };
    let lighter = |moved: usize| {
        let mut shares: Vec<usize> = stages.iter().map(|s| s.layers.len() + moved).collect();
        shares[vae] = stages[vae]
            .layers
            .len()
            .checked_sub(moved * (stages.len() - 1))?;
        let mut p = profile.clone();
        p.layout.layers = Parts::Shares(shares.clone());
        Some(Change {
            what: format!("layout.layers = {shares:?} (fewer beside the VAE)"),
            cost: 4 + moved as u32,
            profile: p,
            ask: ask.clone(),
        })
    };
    (1..=3).filter_map(lighter).collect()
}

/// Moves layers off the device that has the VAE as well, until every device computes for the same
/// time.
fn rebalanced(planned: &Planned) -> Option<Change> {
    let (profile, placement) = (&planned.profile, &planned.placement);
    let stages = &placement.stages;
    let with_vae = stages.iter().position(|s| s.device == placement.vae)?;
    if stages.len() < 2 || profile.layout.steps > 1 {
        return None;
    }
    let vae_ms = planned.waves[placement.vae].vae_ms;
    let total: f64 = planned.waves.iter().map(|w| w.compute_ms).sum();
    let layers = planned.work.config().dit.layers as f64;
    let others = (total + vae_ms) / stages.len() as f64 / total * layers;
    let other = others.round() as usize;
    let own = (layers as usize)
        .checked_sub(other * (stages.len() - 1))
        .filter(|&n| n > 0)?;
    let mut shares = vec![other; stages.len()];
    shares[with_vae] = own;
    if stages
        .iter()
        .zip(&shares)
        .all(|(s, n)| s.layers.len() == *n)
    {
        return None;
    }
    let mut p = profile.clone();
    p.layout.layers = Parts::Shares(shares.clone());
    Some(Change {
        what: format!("layout.layers = {shares:?} (fewer beside the VAE)"),
        cost: 3,
        profile: p,
        ask: planned.ask.clone(),
    })
}

/// Returns changes of the hardware.
fn hardware(profile: &Profile, ask: &Ask) -> Vec<Change> {
    let mut all = Vec::new();
    let mut push = |what: &str, cost, change: &dyn Fn(&mut Profile)| {
        let mut p = profile.clone();
        change(&mut p);
        all.push(Change {
            what: what.to_owned(),
            cost,
            profile: p,
            ask: ask.clone(),
        });
    };
    push("a host link of twice the rate", 100, &|p| {
        p.devices.iter_mut().for_each(|d| d.host_link_gbs *= 2.0);
    });
    push("a peer link of four times the rate", 105, &|p| {
        p.devices.iter_mut().for_each(|d| d.peer_link_gbs *= 4.0);
    });
    if profile.layout.vae == VaePolicy::LeastLoaded {
        push("one more device for the VAE alone", 110, &|p| {
            p.devices[0].count += 1;
            p.layout.vae = VaePolicy::Own;
        });
    }
    push("one more device for the transformer's layers", 111, &|p| {
        p.devices[0].count += p.layout.steps;
        p.layout.layers = Parts::Even(p.layout.layers.count() + 1);
    });
    all
}

/// Names the busiest device or link of the steady run, in one sentence.
pub(crate) fn bottleneck(planned: &Planned) -> String {
    let name = |d: usize| device_name(&planned.profile, d);
    let mut most: Option<(f64, String)> = None;
    let mut consider = |share: f64, what: String| {
        if most.as_ref().is_none_or(|(s, _)| share > *s) {
            most = Some((share, what));
        }
    };
    for (d, share) in planned.shares.iter().enumerate() {
        let vae = planned.placement.vae == d;
        let stages = planned.placement.stages.iter().any(|s| s.device == d);
        let what = match (vae, stages) {
            (true, false) => "the VAE's convolutions",
            (true, true) => "arithmetic of the transformer and of the VAE",
            _ => "arithmetic of the transformer",
        };
        consider(share.compute, format!("{what} on {}", name(d)));
        consider(share.up, format!("the host's link to {}", name(d)));
        consider(share.peer, format!("the link into {}", name(d)));
    }
    let (share, what) = most.unwrap_or((0.0, "nothing".to_owned()));
    if share < 0.9 {
        format!(
            "no device or link is busy all the time; most is {what} ({:.0} % of it): the stages wait for each other",
            100.0 * share
        )
    } else {
        format!(
            "{what} is busy {:.0} % of the time, and everything waits for it",
            100.0 * share
        )
    }
}
