//! A placement with its memory, and with its times once the memory is known to fit.

use engines::manifest::ModelConfig;
use engines::profile::Profile;
use engines::recipe::Recipe;

use super::ask::Ask;
use super::error::{PlannerError, Shortage};
use super::memory::{Budget, HostBudget, budgets, host_budget};
use super::place::place;
use super::placement::Placement;
use super::simulate::{Costs, Schedule, Spent, Timeline, simulate};
use super::time::Times;
use super::work::Work;
use crate::numbers::timing::{FPS, FRAMES_PER_LATENT};

/// Times of one wave on one device, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Wave {
    /// The wave from its start to its end.
    pub total_ms: f64,
    /// Arithmetic of the transformer.
    pub compute_ms: f64,
    /// Copies between host and device, in the busier direction.
    pub host_link_ms: f64,
    /// Copies from other devices.
    pub peer_link_ms: f64,
    /// The part of the host link's time that passes during arithmetic.
    pub hidden_ms: f64,
    /// Decoding of one block, if this device has the VAE.
    pub vae_ms: f64,
}

/// Speed of a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Speed {
    /// Frames a second once every step is busy.
    pub fps: f64,
    /// Time from loaded models to the first frame: encoders, prefill, one block through all steps,
    /// and the decoder.
    pub first_frame_s: f64,
    /// Time of one clip once every step is busy.
    pub clip_s: f64,
    /// Time to read every weight once from disk.
    pub loading_s: f64,
    /// Time of the encoders.
    pub encoders_s: f64,
}

/// A placement that fits, with its memory and its times.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The machine.
    pub profile: Profile,
    /// The video that was asked for.
    pub ask: Ask,
    /// Bytes and operations of the model.
    pub work: Work,
    /// Devices of layers, steps, decoder and encoders.
    pub placement: Placement,
    /// Memory by device number.
    pub devices: Vec<Budget>,
    /// Memory of the host.
    pub host: HostBudget,
    /// Times of a wave by device number.
    pub waves: Vec<Wave>,
    /// Speed of the run.
    pub speed: Speed,
    /// Simulation of a run that is long enough to be steady.
    pub timeline: Timeline,
    /// Shares of the steady time in which a device computes and its links carry, by device number.
    pub shares: Vec<Spent>,
}

/// A placement and its memory, which may not fit.
pub(crate) struct Draft {
    /// The machine.
    pub(crate) profile: Profile,
    /// The video that was asked for.
    pub(crate) ask: Ask,
    /// Bytes and operations of the model.
    pub(crate) work: Work,
    /// Devices of layers, steps, decoder and encoders.
    pub(crate) placement: Placement,
    /// Memory by device number.
    pub(crate) devices: Vec<Budget>,
    /// Memory of the host.
    pub(crate) host: HostBudget,
}

impl Draft {
    /// Places `ask` on `profile` and counts its memory.
    ///
    /// # Errors
    /// The profile does not suit the model or the run.
    pub(crate) fn new(
        profile: &Profile,
        config: &ModelConfig,
        ask: &Ask,
    ) -> Result<Self, PlannerError> {
        let blocks = profile.layout.ring_blocks.min(ask.clip_blocks(config));
        let work = Work::new(config, profile.recipe, ask.size, blocks);
        let placement = place(profile, &work, ask)?;
        Ok(Self {
            devices: budgets(profile, &work, ask, &placement),
            host: host_budget(profile, &work, &placement),
            profile: profile.clone(),
            ask: ask.clone(),
            work,
            placement,
        })
    }

    /// Returns the resource that is short, if any: that of the worst device first.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        let max = self.profile.sizes.max;
        if self.ask.size.width * self.ask.size.height > max.area() {
            return Some(Shortage::Size {
                max: max.to_string(),
            });
        }
        let worst = self
            .devices
            .iter()
            .enumerate()
            .min_by_key(|(_, b)| b.headroom());
        if let Some((device, b)) = worst.filter(|(_, b)| b.headroom() < 0) {
            return Some(Shortage::Device {
                device,
                needed: b.peak(),
                usable: b.usable,
            });
        }
        let h = &self.host;
        if h.pinned > h.pinnable {
            return Some(Shortage::Pinned {
                needed: h.pinned,
                usable: h.pinnable,
            });
        }
        (h.needed() > h.usable).then_some(Shortage::Host {
            needed: h.needed(),
            usable: h.usable,
        })
    }

    /// Adds the times of a run that is long enough to be steady.
    ///
    /// # Errors
    /// The stages do not cover the model; [`place`] makes none of that kind.
    pub(crate) fn timed(self) -> Result<Planned, PlannerError> {
        let config = self.work.config().clone();
        let blocks = self.ask.clip_blocks(&config) + 6 * self.ask.steps + 8;
        let timeline = self.timeline(blocks)?;
        let swap_at = self.ask.swap_at(&config);
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

    /// Simulates a run of `blocks` blocks, encoders first.
    ///
    /// # Errors
    /// The stages do not cover the model; [`place`] makes none of that kind.
    pub(crate) fn timeline(&self, blocks: usize) -> Result<Timeline, PlannerError> {
        let config = self.work.config();
        let plan = self.placement.plan(config.dit.layers, self.ask.steps)?;
        let plan = plan.with_latency(self.ask.latency);
        let times = Times::new(&self.profile, &self.work, &self.ask, &self.placement);
        let swap_at = self.ask.swap_at(config).filter(|&at| blocks > at);
        let schedule = Schedule {
            plan: &plan,
            steps: self.ask.steps,
            passes: self.ask.passes,
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

    /// Returns the times that one full wave and the decoding of one block take on a device.
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

impl Planned {
    /// Simulates a run of `blocks` blocks on this placement.
    ///
    /// # Errors
    /// As [`plan`](super::plan).
    pub fn timeline(&self, blocks: usize) -> Result<Timeline, PlannerError> {
        Draft::new(&self.profile, self.work.config(), &self.ask)?.timeline(blocks)
    }

    /// Returns the seconds of video that are made in a second.
    pub fn real_time(&self) -> f64 {
        self.speed.fps / f64::from(FPS)
    }

    /// Returns a note if the plan cannot be run today.
    pub fn caveat(&self) -> Option<String> {
        (self.profile.recipe == Recipe::Fp8).then(|| {
            "no export has recipe fp8 yet, so this plan cannot run; \
             profiles whose names end in -offload run today, in bf16"
                .to_owned()
        })
    }
}
