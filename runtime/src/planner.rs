//! What a machine can do before anything is loaded: a profile, a model's sizes and a request give a placement, the memory of every device,
//! and times. Pure: no file, no device and no clock is looked at, but in [`found`].

pub(crate) mod advice;
pub(crate) mod found;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod report;
pub(crate) mod simulate;
pub(crate) mod time;
pub(crate) mod work;

use engines::error_kind::ErrorKind;
use engines::manifest::ModelConfig;
use engines::profile::{Profile, ProfileError};
use engines::recipe::Recipe;

use crate::numbers::timing::FRAMES_PER_LATENT;
use crate::numbers::timing::FPS;
use crate::numbers::size::Size;
use crate::placement::plan::PlanError;
use crate::planner::simulate::{Costs, Schedule, Spent, Timeline, simulate};
use advice::{Lever, Way};
use memory::{Budget, HostBudget, budgets, host_budget};
use place::{Placement, place};
use time::Times;
use work::Work;

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Ask {
    pub size: Size,
    pub steps: usize,
    /// Video frames of a clip.
    pub infer_frames: usize,
    /// As many as the recording fills when not said.
    pub clips: Option<usize>,
}

impl Ask {
    /// Blocks of a clip.
    pub fn clip_blocks(&self, config: &ModelConfig) -> usize {
        (self.infer_frames / (config.dit.block_frames * FRAMES_PER_LATENT)).max(1)
    }

    /// Latent frames of a block.
    pub fn block_frames(&self, config: &ModelConfig) -> usize {
        config.dit.block_frames
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    #[error(transparent)]
    Profile_(#[from] ProfileError),
    #[error(transparent)]
    Stages(#[from] PlanError),
    #[error("profile {profile}: field {field}: wanted {want}, got {got}")]
    Profile {
        profile: String,
        field: &'static str,
        want: String,
        got: String,
    },
    #[error("{0}")]
    DoesNotFit(Box<Refusal>),
    #[error(
        "profile {profile} is for {wanted} device{} of {memory_gib} GiB, this machine has {found}; profiles for it: {instead}",
        if *wanted == 1 { "" } else { "s" }
    )]
    Devices {
        profile: String,
        wanted: usize,
        memory_gib: f64,
        found: String,
        instead: String,
    },
    #[error(
        "{device} has {free_gib:.1} GiB free, profile {profile} plans {needed_gib:.1}; end what else uses it, or take {instead}"
    )]
    Occupied {
        device: String,
        profile: String,
        free_gib: f64,
        needed_gib: f64,
        instead: String,
    },
}

impl PlannerError {
    /// A profile that cannot be is a usage error; everything else lacks memory or devices.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Profile_(e) => e.kind(),
            Self::Stages(e) => e.kind(),
            Self::Profile { .. } => ErrorKind::Usage,
            Self::DoesNotFit(_) | Self::Devices { .. } | Self::Occupied { .. } => {
                ErrorKind::Resources
            }
        }
    }
}

/// Something that a plan lacks, and what would fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub profile: String,
    pub ask: Ask,
    pub lacks: Lack,
    pub nearest: Vec<Way>,
}

/// What is short.
#[derive(Clone, Debug, PartialEq)]
pub enum Lack {
    /// Memory of a device.
    Device {
        device: usize,
        needed: u64,
        usable: u64,
    },
    Host {
        needed: u64,
        usable: u64,
    },
    Pinned {
        needed: u64,
        usable: u64,
    },
    /// The profile's engines are for smaller videos.
    Size {
        max: String,
    },
}

/// One wave on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Wave {
    pub total_ms: f64,
    pub compute_ms: f64,
    pub host_link_ms: f64,
    pub peer_link_ms: f64,
    /// Of the links' time, what lies behind arithmetic.
    pub hidden_ms: f64,
    /// The VAE's share, where it is on this device.
    pub vae_ms: f64,
}

/// Speed of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Speed {
    /// Frames a second once every step is busy.
    pub fps: f64,
    /// From models in place to the first frame: encoders, prefill, one block through all steps, the decoder.
    pub first_frame_s: f64,
    pub clip_s: f64,
    /// Reading every weight once from disk.
    pub loading_s: f64,
    pub encoders_s: f64,
}

/// A placement that fits, and what it will be like.
#[derive(Clone, Debug)]
pub struct Planned {
    pub profile: Profile,
    pub ask: Ask,
    pub work: Work,
    pub placement: Placement,
    pub devices: Vec<Budget>,
    pub host: HostBudget,
    pub waves: Vec<Wave>,
    pub speed: Speed,
    pub timeline: Timeline,
    /// What each device computes, and its links carry, as shares of the steady time.
    pub shares: Vec<Spent>,
}

/// Plans `ask` on `profile` for a model of `config`'s sizes.
///
/// # Errors
/// [`PlannerError::DoesNotFit`] with the nearest settings that do; a profile that does not suit the model or the run.
pub fn plan(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Result<Planned, PlannerError> {
    let drawn = draw(profile, config, ask)?;
    match drawn.lack() {
        None => drawn.timed(),
        Some(lacks) => Err(PlannerError::DoesNotFit(Box::new(Refusal {
            profile: profile.name.clone(),
            ask: ask.clone(),
            lacks,
            nearest: advice::nearest(profile, config, ask),
        }))),
    }
}

/// A placement and its memory, whether it fits or not.
pub(crate) struct Drawn {
    pub(crate) profile: Profile,
    pub(crate) ask: Ask,
    pub(crate) work: Work,
    pub(crate) placement: Placement,
    pub(crate) devices: Vec<Budget>,
    pub(crate) host: HostBudget,
}

pub(crate) fn draw(
    profile: &Profile,
    config: &ModelConfig,
    ask: &Ask,
) -> Result<Drawn, PlannerError> {
    let blocks = profile.layout.ring_blocks.min(ask.clip_blocks(config));
    let work = Work::new(config, profile.recipe, ask.size, blocks);
    let placement = place(profile, &work, ask)?;
    Ok(Drawn {
        devices: budgets(profile, &work, ask, &placement),
        host: host_budget(profile, &work, &placement),
        profile: profile.clone(),
        ask: ask.clone(),
        work,
        placement,
    })
}

impl Drawn {
    pub(crate) fn lack(&self) -> Option<Lack> {
        let max = self.profile.sizes.max;
        if self.ask.size.width * self.ask.size.height > max.area() {
            return Some(Lack::Size {
                max: max.to_string(),
            });
        }
        let worst = self
            .devices
            .iter()
            .enumerate()
            .min_by_key(|(_, b)| b.headroom());
        if let Some((device, b)) = worst.filter(|(_, b)| b.headroom() < 0) {
            return Some(Lack::Device {
                device,
                needed: b.peak(),
                usable: b.usable,
            });
        }
        let h = &self.host;
        if h.pinned > h.pinnable {
            return Some(Lack::Pinned {
                needed: h.pinned,
                usable: h.pinnable,
            });
        }
        (h.needed() > h.usable).then_some(Lack::Host {
            needed: h.needed(),
            usable: h.usable,
        })
    }

    /// Times of a run that is long enough to be steady.
    pub(crate) fn timed(self) -> Result<Planned, PlannerError> {
        let config = self.work.config().clone();
        let blocks = self.ask.clip_blocks(&config) + 6 * self.ask.steps + 8;
        let timeline = self.timeline(blocks)?;
        let swap_at = swap_at(&self.ask, &config);
        let block = timeline.seconds_a_block(self.ask.steps, swap_at);
        let frames = config.dit.block_frames * FRAMES_PER_LATENT;
        let times = Times::new(&self.profile, &self.work, &self.ask, &self.placement);
        let speed = Speed {
            fps: frames as f64 / block,
            first_frame_s: timeline.decoded.first().copied().unwrap_or(0.0),
            clip_s: block * self.ask.clip_blocks(&config) as f64,
            loading_s: times.loading(),
            encoders_s: times.encoders().iter().sum(),
        };
        let waves = (0..self.devices.len())
            .map(|d| self.wave(&times, d))
            .collect();
        let from = timeline.decoded[self.ask.clip_blocks(&config) + self.ask.steps];
        let to = timeline.decoded[blocks - 2 * self.ask.steps];
        let shares = (0..self.devices.len())
            .map(|d| timeline.utilisation(d, from, to))
            .collect();
        Ok(Planned {
            profile: self.profile,
            ask: self.ask,
            work: self.work,
            placement: self.placement,
            devices: self.devices,
            host: self.host,
            waves,
            speed,
            timeline,
            shares,
        })
    }

    /// The schedule of `blocks` blocks, encoders first.
    pub(crate) fn timeline(&self, blocks: usize) -> Result<Timeline, PlannerError> {
        let config = self.work.config();
        let plan = self.placement.plan(config.dit.layers, self.ask.steps)?;
        let times = Times::new(&self.profile, &self.work, &self.ask, &self.placement);
        let swap_at = swap_at(&self.ask, config).filter(|&at| blocks > at);
        let schedule = Schedule {
            plan: &plan,
            steps: self.ask.steps,
            blocks,
            swap_at,
            devices: self.placement.stages.iter().map(|s| s.device).collect(),
            decoder: self.placement.vae,
            decode_pieces: config.dit.block_frames,
            costs: &times,
        };
        let mut timeline = simulate(&schedule);
        let device = self.placement.encoders.device;
        let [text, speech, picture] = times.encoders();
        timeline.preceded_by(&[
            ("text", device, text),
            ("speech", device, speech),
            ("picture", device, picture),
        ]);
        Ok(timeline)
    }

    /// What one full wave and the decoding of one block cost a device.
    fn wave(&self, times: &Times<'_>, device: usize) -> Wave {
        let mut wave = Wave::default();
        let stages = self.placement.stages.iter().enumerate();
        for (index, stage) in stages.filter(|(_, s)| s.device == device) {
            let lanes = self.placement.lanes.min(stage.steps.len());
            let mut left = stage.steps.len();
            while left > 0 {
                let spent = times.call(index, lanes.min(left));
                left -= lanes.min(left);
                wave.total_ms += 1e3 * spent.seconds;
                wave.compute_ms += 1e3 * spent.compute;
                wave.host_link_ms += 1e3 * spent.up.max(spent.down);
                wave.peer_link_ms += 1e3 * spent.peer;
            }
        }
        let shown = wave.total_ms - wave.compute_ms - wave.peer_link_ms;
        wave.hidden_ms = (wave.host_link_ms - shown.max(0.0)).max(0.0);
        if self.placement.vae == device {
            wave.vae_ms = 1e3 * times.decode();
            wave.total_ms += wave.vae_ms;
        }
        wave
    }
}

/// First block of the second anchor, if the run has a second clip.
pub(crate) fn swap_at(ask: &Ask, config: &ModelConfig) -> Option<usize> {
    (ask.clips != Some(1)).then(|| ask.clip_blocks(config))
}

impl Planned {
    /// A timeline of `blocks` blocks on this placement.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn timeline(&self, blocks: usize) -> Result<Timeline, PlannerError> {
        draw(&self.profile, self.work.config(), &self.ask)?.timeline(blocks)
    }

    /// Seconds of video that a second makes.
    pub fn real_time(&self) -> f64 {
        self.speed.fps / f64::from(FPS)
    }

    /// What stands in the way of more frames a second.
    pub fn bottleneck(&self) -> String {
        advice::bottleneck(self)
    }

    /// The cheapest changes that give more frames a second.
    pub fn levers(&self) -> Vec<Lever> {
        advice::levers(self)
    }

    /// What cannot be run today although it can be planned.
    pub fn caveat(&self) -> Option<String> {
        (self.profile.recipe == Recipe::Fp8).then(|| {
            "no export has recipe fp8 yet: this is a plan only; the profiles that end in -offload run today in bf16".to_owned()
        })
    }
}

#[cfg(test)]
mod tests;
