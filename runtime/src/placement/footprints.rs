//! Counts the bytes that a placement holds on each device, from the sizes of weights, ports and
//! rings, before anything is loaded. The count is an upper bound of the executor's requests to a
//! device's memory. It does not contain the memory that a backend's library takes for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use engines::components::{dit, speech, symbols, text, vae};
use engines::contract::{Contract, Port, StateKind};
use engines::dim::Bindings;
use engines::manifest::ModelConfig;
use engines::recipe::Recipe;

use crate::numbers::geometry::Geometry;
use crate::placement::devices::Devices;
use crate::placement::error::PlacementError;
use crate::placement::footprint::{Footprint, TooSmall};
use crate::placement::plan::{Chain, Plan, Rings, StageSpec};
use crate::placement::speech_chunk::SpeechChunk;

/// Bytes that a run holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprints {
    /// Bytes by device number. Devices that share one memory are counted once, under the lowest
    /// number.
    pub devices: BTreeMap<usize, Footprint>,
    /// Rings in host memory.
    pub host: u64,
    /// Device of the encoders, and its bytes while they run beside everything else.
    pub beside: (usize, Footprint),
}

/// The work of a run, without its placement.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// Sizes of the model.
    pub config: &'a ModelConfig,
    /// Sizes of the video.
    pub geometry: &'a Geometry,
    /// Whether a second anchor follows the first. While blocks of both are computed, both lie on
    /// the devices.
    pub swaps: bool,
    /// Passes of a step; each has anchors of its own.
    pub passes: usize,
    /// Whether the decoder's device encodes motion between clips.
    pub encodes_motion: bool,
    /// Frames that the speech encoder takes at once.
    pub speech_frames: usize,
    /// Whether the speech encoder also runs between blocks, window by window.
    pub speech_in_windows: bool,
}

impl Footprints {
    /// Counts the bytes that `plan` holds on devices with a memory of their own. Other devices are
    /// left out: they read and write in the process's memory.
    ///
    /// # Errors
    /// A device or a component does not exist.
    pub fn new(devices: &Devices, plan: &Plan, work: Workload<'_>) -> Result<Self, PlacementError> {
        let mut all = Self::everywhere(devices, plan, work)?;
        all.devices
            .retain(|&home, _| devices.get(home).is_ok_and(|b| b.memory().is_separate()));
        Ok(all)
    }

    /// As [`Self::new`], with the devices that work in the process's memory.
    fn everywhere(
        devices: &Devices,
        plan: &Plan,
        work: Workload<'_>,
    ) -> Result<Self, PlacementError> {
        let count = Count { devices, work };
        let mut all = Self::default();
        for chain in &plan.chains {
            for (at, spec) in chain.stages.iter().enumerate() {
                let part = count.stage(chain, spec, at + 1 == chain.stages.len())?;
                all.devices
                    .entry(devices.home(spec.device))
                    .or_default()
                    .add(&part);
                all.host += count.host_rings(spec)?;
            }
        }
        for (home, layers) in layers_by_home(devices, plan) {
            let anchors = if work.swaps { 2 } else { 1 } * work.passes as u64;
            let condition = count.condition(home, anchors)? * layers.len() as u64;
            all.devices.entry(home).or_default().condition = condition;
        }
        let decoder = count.decoder(plan.vae)?;
        let vae = all.devices.entry(devices.home(plan.vae)).or_default();
        vae.add(&decoder);
        let adapter = count.component(plan.encoders, &speech::ADAPTER, 1)?;
        let encoders = all.devices.entry(devices.home(plan.encoders)).or_default();
        encoders.add(&adapter);
        let mut beside = *encoders;
        let made = count.encoders(plan.encoders)?;
        let all_weights: u64 = made.iter().map(|e| e.weights).sum();
        for encoder in &made {
            // Encoders that stay keep their weights; one of them runs at a time.
            let weights = if plan.encoders_stay {
                all_weights
            } else {
                encoder.weights
            };
            let mut with = *encoders;
            with.add(&Footprint {
                weights,
                ..*encoder
            });
            if with.total() > beside.total() {
                beside = with;
            }
        }
        // Encoders that do not stay are gone before anything else comes. Only the graphs of speech
        // in windows come back, one by one.
        let mut during = *encoders;
        if work.speech_in_windows {
            let speech = count.speech_encoder(plan.encoders)?.into_iter();
            let largest = speech.max_by_key(Footprint::total);
            during.add(&largest.unwrap_or_default());
        }
        let freed = made.into_iter().chain([during]);
        let freed = freed.max_by_key(Footprint::total);
        *encoders = match freed {
            Some(freed) if !plan.encoders_stay => freed,
            _ => beside,
        };
        all.beside = (devices.home(plan.encoders), beside);
        Ok(all)
    }

    /// Counts the videos like `work` that fit at a time: each has rings, conditions and tensors of
    /// its own, and all share the weights. `host` is the memory that the process may take.
    ///
    /// # Errors
    /// A device or a component does not exist.
    pub fn at_a_time(
        devices: &Devices,
        plan: &Plan,
        work: Workload<'_>,
        host: u64,
    ) -> Result<AtATime, PlacementError> {
        let all = Self::everywhere(devices, plan, work)?;
        let mut on_host = Room {
            device: "host memory".to_owned(),
            budget: host,
            shared: 0,
            each: all.host,
        };
        let mut rooms = Vec::new();
        for (&home, part) in &all.devices {
            let memory = devices.get(home)?.memory();
            let each = part.rings + part.condition + part.activations;
            let shared = part.weights + part.slots;
            if !memory.is_separate() {
                on_host.shared += shared;
                on_host.each += each;
                continue;
            }
            let ledger = memory.ledger();
            rooms.push(Room {
                device: ledger.device().to_owned(),
                budget: ledger.budget(),
                shared,
                each,
            });
        }
        rooms.push(on_host);
        let tightest = rooms.into_iter().min_by_key(Room::videos);
        Ok(AtATime(tightest.expect("the host is always there")))
    }

    /// Returns whether the encoders fit their device while everything else is loaded.
    pub fn fit_beside(&self, devices: &Devices) -> bool {
        let (home, wanted) = self.beside;
        let backend = devices.get(home);
        backend.is_ok_and(|b| {
            !b.memory().is_separate() || wanted.total() <= b.memory().ledger().budget()
        })
    }

    /// Compares every device with its budget.
    ///
    /// # Errors
    /// A device is too small; the first of them is named.
    pub fn check(&self, devices: &Devices) -> Result<(), PlacementError> {
        for (&home, wanted) in &self.devices {
            let ledger = devices.get(home)?.memory().ledger();
            if wanted.total() > ledger.budget() {
                return Err(TooSmall {
                    device: ledger.device().to_owned(),
                    wanted: *wanted,
                    budget: ledger.budget(),
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Returns the layers that any stage runs, by the home of the stage's device.
fn layers_by_home(devices: &Devices, plan: &Plan) -> BTreeMap<usize, BTreeSet<usize>> {
    let mut layers: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for spec in plan.stages() {
        let home = layers.entry(devices.home(spec.device)).or_default();
        home.extend(spec.layers.clone());
    }
    layers
}

/// The videos that fit at a time, and the memory that limits them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtATime(Room);

/// One memory, shared by videos.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Room {
    device: String,
    budget: u64,
    /// Bytes for all videos together.
    shared: u64,
    /// Bytes for each video.
    each: u64,
}

impl Room {
    fn videos(&self) -> u64 {
        let free = self.budget.saturating_sub(self.shared);
        free.checked_div(self.each).unwrap_or(u64::MAX)
    }
}

impl AtATime {
    /// Returns the number of videos.
    pub fn videos(&self) -> usize {
        usize::try_from(self.0.videos()).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for AtATime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Room {
            device,
            budget,
            shared,
            each,
        } = &self.0;
        write!(
            f,
            "{device} has {budget} bytes; {shared} are for weights, and each video needs {each}"
        )
    }
}

struct Count<'a> {
    devices: &'a Devices,
    work: Workload<'a>,
}

impl Count<'_> {
    fn weights(&self, device: usize, component: &str) -> Result<u64, PlacementError> {
        let host = self.devices.get(device)?.weights(component)?;
        Ok(host.slab_bytes() as u64)
    }

    fn recipe(&self, device: usize) -> Result<Recipe, PlacementError> {
        Ok(self.devices.get(device)?.recipe())
    }

    /// Binds every symbol of every port.
    fn sizes(&self, lanes: usize) -> Bindings {
        let Workload {
            config, geometry, ..
        } = self.work;
        let (frames, chunk) = (self.work.speech_frames, SpeechChunk::default());
        let mut sizes = geometry.bindings(config, lanes);
        sizes.extend(symbols::bindings([
            (symbols::SEQUENCE, frames.max(config.dit.text_len)),
            (
                symbols::SEQUENCE_ROWS,
                chunk.rows(config.speech.heads, frames),
            ),
            (symbols::SAMPLES, chunk.samples(&config.speech)),
        ]));
        sizes
    }

    fn ports<'p>(
        &self,
        device: usize,
        lanes: usize,
        ports: impl IntoIterator<Item = &'p Port>,
    ) -> Result<u64, PlacementError> {
        let (recipe, sizes) = (self.recipe(device)?, self.sizes(lanes));
        let size = |d: &engines::dim::Dim| d.eval(&sizes).unwrap_or_default().max(0) as u64;
        let bytes =
            |p: &Port| p.dims().iter().map(size).product::<u64>() * p.dtype(recipe).size() as u64;
        Ok(ports.into_iter().map(bytes).sum())
    }

    /// Counts a graph with its weights inside: the weights, the inputs and the outputs. Caches
    /// count twice, because a call reads the old ones and writes new ones.
    fn component(
        &self,
        device: usize,
        c: &Contract,
        lanes: usize,
    ) -> Result<Footprint, PlacementError> {
        let caches = match c.state_kind {
            StateKind::InPlace => 0,
            StateKind::Replace | StateKind::Produce => 2 * self.ports(device, lanes, c.state)?,
        };
        let ends = self.ports(device, lanes, c.inputs.iter().chain(c.outputs))?;
        Ok(Footprint {
            weights: self.weights(device, c.name)?,
            activations: caches + ends,
            ..Footprint::default()
        })
    }

    fn ring_lane(&self, device: usize) -> Result<u64, PlacementError> {
        let dtype = self.recipe(device)?.compute();
        Ok(self.work.geometry.ring_lane_bytes(dtype) as u64)
    }

    fn rings(&self, spec: &StageSpec) -> Result<u64, PlacementError> {
        let lanes = (spec.layers.len() * spec.steps.len()) as u64;
        Ok(lanes * self.ring_lane(spec.device)?)
    }

    fn host_rings(&self, spec: &StageSpec) -> Result<u64, PlacementError> {
        match spec.residency.rings {
            Rings::OnHost => self.rings(spec),
            Rings::OnDevice => Ok(0),
        }
    }

    /// Counts the condition of one layer for so many anchors.
    fn condition(&self, device: usize, anchors: u64) -> Result<u64, PlacementError> {
        let ports = [&dit::SINK_K, &dit::SINK_V, &dit::TEXT_K, &dit::TEXT_V];
        Ok(anchors * self.ports(device, 1, ports)?)
    }

    fn stage(
        &self,
        chain: &Chain,
        spec: &StageSpec,
        last: bool,
    ) -> Result<Footprint, PlacementError> {
        let (mut resident, mut streamed) = (0, 0);
        for (at, layer) in spec.layers.clone().enumerate() {
            let bytes = self.weights(spec.device, &dit::layer_name(layer))?;
            if at < spec.residency.resident_layers {
                resident += bytes;
            } else {
                streamed = bytes.max(streamed);
            }
        }
        let first = spec.layers.start == 0;
        let inside = [
            (dit::EMBED.name, first),
            (
                dit::HEAD.name,
                spec.layers.end == self.work.config.dit.layers,
            ),
        ];
        for (name, there) in inside {
            if there {
                resident += self.weights(spec.device, name)?;
            }
        }
        let on_host = spec.residency.rings == Rings::OnHost;
        let left = spec
            .layers
            .len()
            .saturating_sub(spec.residency.resident_layers);
        let streams = if on_host { spec.layers.len() } else { left };
        let slots = streams.min(spec.residency.slots) as u64;
        let lanes = chain.lanes.min(spec.steps.len()) as u64;
        let ring = if on_host {
            lanes * self.ring_lane(spec.device)?
        } else {
            0
        };
        Ok(Footprint {
            weights: resident,
            rings: if on_host { 0 } else { self.rings(spec)? },
            condition: 0,
            slots: slots * (streamed + ring),
            activations: self.activations(spec, chain, last)?,
        })
    }

    /// Counts the most bytes that pass through a stage at once: those of its largest kind of run,
    /// and the calls that the next stage has not fetched.
    fn activations(
        &self,
        spec: &StageSpec,
        chain: &Chain,
        last: bool,
    ) -> Result<u64, PlacementError> {
        let (device, lanes) = (spec.device, chain.lanes);
        let ports = |ports: &[&Port]| self.ports(device, lanes, ports.iter().copied());
        let flow = ports(&[&dit::HIDDEN, &dit::E, &dit::E0])?;
        let embed = ports(&[&dit::LATENTS, &dit::POSE_LATENTS, &dit::SINUSOID])?;
        let shared = ports(&[
            &dit::ROPE_COS,
            &dit::ROPE_SIN,
            &dit::SINK_ROPE_COS,
            &dit::SINK_ROPE_SIN,
            &dit::SLOT,
            &dit::KV_LEN,
            &dit::AUDIO_GLOBAL,
            &dit::AUDIO_LOCAL,
            &dit::ACTOR_MASK,
        ])?;
        let layer = shared + ports(&[&dit::HIDDEN_OUT])?;
        let head = ports(&[
            &dit::LATENTS,
            &dit::SIGMAS,
            &dit::NOISE_PRED,
            &dit::NEXT_LATENTS,
        ])?;
        let call = flow + embed.max(layer).max(head);
        let one = |c: &Contract| self.ports(device, 1, c.inputs.iter().chain(c.outputs));
        // Only the first chain computes conditions; the others get copies. The sink's embedding is
        // loaded only while it runs, and the conditions do not exist yet.
        let sink = match (chain.steps.start, spec.layers.start) {
            (0, 0) => {
                let embed = self.weights(device, dit::SINK_EMBED.name)?;
                let embed = embed + one(&dit::SINK_EMBED)?;
                let condition = self.condition(device, 1)? * spec.layers.len() as u64;
                one(&dit::SINK_LAYER)?.max(embed.saturating_sub(condition))
            }
            (0, _) => one(&dit::SINK_LAYER)?,
            _ => 0,
        };
        let sink_flow = self.ports(device, 1, [&dit::SINK_HIDDEN, &dit::SINK_E0])?;
        // One call is in the channel, one waits to be sent, and one was taken by the next stage,
        // which has not copied it yet.
        let waiting = if last { 0 } else { 3 * flow.max(sink_flow) };
        Ok(call.max(sink) + waiting)
    }

    fn decoder(&self, device: usize) -> Result<Footprint, PlacementError> {
        let next = self.work.config.vae.contract(&vae::DECODER_NEXT);
        let mut all = self.component(device, next, 1)?;
        all.weights += self.weights(device, vae::DECODER_FIRST.name)?;
        if self.work.encodes_motion {
            all.add(&self.picture(device)?);
        }
        Ok(all)
    }

    fn picture(&self, device: usize) -> Result<Footprint, PlacementError> {
        let next = self.work.config.vae.contract(&vae::ENCODER_NEXT);
        let mut all = self.component(device, next, 1)?;
        all.weights += self.weights(device, vae::ENCODER_FIRST.name)?;
        Ok(all)
    }

    /// Counts each component that runs before the transformer, alone on its device.
    fn encoders(&self, device: usize) -> Result<Vec<Footprint>, PlacementError> {
        let mut all = vec![self.picture(device)?];
        for c in [&text::ENCODER, &dit::TEXT_EMBED] {
            all.push(self.component(device, c, 1)?);
        }
        all.extend(self.speech_encoder(device)?);
        Ok(all)
    }

    /// Counts each graph of the speech encoder.
    fn speech_encoder(&self, device: usize) -> Result<Vec<Footprint>, PlacementError> {
        let mut all = Vec::new();
        for c in [&speech::ENCODER_FEATURES, &speech::ENCODER_POSITIONS] {
            all.push(self.component(device, c, 1)?);
        }
        for layer in 0..self.work.config.speech.layers {
            let (name, contract) = self.work.config.speech.layer(layer);
            let ends = contract.inputs.iter().chain(contract.outputs);
            all.push(Footprint {
                weights: self.weights(device, &name)?,
                activations: self.ports(device, 1, ends)?,
                ..Footprint::default()
            });
        }
        Ok(all)
    }
}
