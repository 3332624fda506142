//! Computes the times of a placement: each stage's call, prefill and load on its device, split into
//! arithmetic, the host's link and the link between devices. Rates are the profile's. Copies that
//! pass during arithmetic cost no time.

use engines::profile::{Device, Kind, Profile};
use engines::recipe::Recipe;

use super::ask::Ask;
use super::placement::{PlacedStage, Placement};
use super::work::{F32_BYTES, Operations, Work};
use crate::numbers::timing::{MOTION_PIXEL_FRAMES, PRIMING_LATENTS};
use crate::planner::simulate::{Costs, Spent};

/// Tokens of a prompt of some sentences.
const PROMPT_TOKENS: f64 = 128.0;
/// Speech that is encoded before the first frame, in seconds.
const SPEECH_SECONDS: f64 = 10.0;
/// Rows of the speech encoder a second.
const SPEECH_ROWS: f64 = 50.0;

/// The times of one placement.
pub(crate) struct Times<'a> {
    /// The machine.
    pub profile: &'a Profile,
    /// Bytes and operations of the model.
    pub work: &'a Work,
    /// The video that was asked for.
    pub ask: &'a Ask,
    /// Devices of the work.
    pub placement: &'a Placement,
    devices: Vec<&'a Device>,
}

/// One layer of a call.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    compute: f64,
    up: f64,
    down: f64,
}

impl<'a> Times<'a> {
    /// Makes the times of a placement.
    pub(crate) fn new(
        profile: &'a Profile,
        work: &'a Work,
        ask: &'a Ask,
        placement: &'a Placement,
    ) -> Self {
        Self {
            devices: profile.each_device().collect(),
            profile,
            work,
            ask,
            placement,
        }
    }

    fn recipe(&self) -> Recipe {
        self.profile.recipe
    }

    /// Returns the seconds of operations. Matrix products of large weights run in the recipe's
    /// type, the others and attention in the compute type.
    fn arithmetic(&self, device: &Device, o: Operations) -> f64 {
        let plain = match self.recipe() {
            Recipe::Fp32 => Recipe::Fp32,
            Recipe::Bf16 | Recipe::Fp8 => Recipe::Bf16,
        };
        let a = &device.achieved;
        (o.linear + o.rest) / (device.peak(self.recipe()) * a.linear)
            + o.attention / (device.peak(plain) * a.attention)
    }

    fn moving(&self, device: &Device, bytes: u64) -> f64 {
        bytes as f64 / (device.bandwidth_gbs * 1e9 * device.achieved.memory)
    }

    fn over(gbs: f64, bytes: u64) -> f64 {
        if gbs > 0.0 {
            bytes as f64 / (gbs * 1e9)
        } else {
            0.0
        }
    }

    /// Returns the layers of one call of `lanes` lanes.
    fn layers(&self, stage: &PlacedStage, lanes: usize) -> Vec<Step> {
        let (device, work, r) = (self.devices[stage.device], self.work, stage.residency);
        let one = |(i, layer): (usize, usize)| {
            let weights = work.layer_weights(layer);
            let o = scaled(work.layer_operations(layer), lanes as f64);
            // The rate of a CPU was measured with the copies of memory; on a GPU they take time of
            // their own.
            let traffic = match device.kind {
                Kind::Cpu => 0,
                Kind::Gpu => lanes as u64 * work.layer_traffic(),
            };
            let compute = self.arithmetic(device, o).max(self.moving(device, weights));
            let up = if i < r.resident_layers { 0 } else { weights };
            let rings = if r.rings_on_host { lanes as u64 } else { 0 };
            Step {
                compute: compute + self.moving(device, traffic),
                up: Self::over(device.host_link_gbs, up + rings * work.ring_bytes()),
                down: Self::over(device.host_link_gbs, rings * work.block_ring_bytes()),
            }
        };
        stage.layers.clone().enumerate().map(one).collect()
    }

    /// Returns the layers of a prefill, with the projections of the text and without rings.
    fn sink_layers(&self, stage: &PlacedStage) -> Vec<Step> {
        let (device, work, r) = (self.devices[stage.device], self.work, stage.residency);
        let one = |(i, layer): (usize, usize)| {
            let own = if i < r.resident_layers {
                0
            } else {
                work.layer_weights(layer)
            };
            Step {
                compute: self.arithmetic(device, work.sink_layer_operations()),
                up: Self::over(device.host_link_gbs, own + work.text_key_weights()),
                down: 0.0,
            }
        };
        stage.layers.clone().enumerate().map(one).collect()
    }

    fn spent(&self, stage: &PlacedStage, steps: &[Step], lanes: usize) -> Spent {
        let device = self.devices[stage.device];
        let peer = if stage.layers.start > 0 {
            Self::over(
                device.peer_link_gbs,
                lanes as u64 * self.work.hidden_bytes(),
            )
        } else {
            0.0
        };
        Spent {
            seconds: peer + overlapped(steps, stage.residency.slots),
            compute: steps.iter().map(|s| s.compute).sum(),
            up: steps.iter().map(|s| s.up).sum(),
            down: steps.iter().map(|s| s.down).sum(),
            peer,
        }
    }

    /// Returns the seconds for the text, the speech and the picture.
    pub(crate) fn encoders(&self) -> [f64; 3] {
        let device = self.devices[self.placement.encoders.device];
        let linear = |o: f64| {
            let o = Operations {
                linear: o,
                ..Operations::default()
            };
            self.arithmetic(device, o)
        };
        let element = self.recipe().compute().size() as f64;
        let text = 2.0 * PROMPT_TOKENS * self.work.text_weights() as f64 / element;
        let rows = SPEECH_SECONDS * SPEECH_ROWS;
        let speech = 2.0 * rows * self.work.speech_weights() as f64 / F32_BYTES as f64;
        let chunks = MOTION_PIXEL_FRAMES.div_ceil(4) as f64;
        let picture = self.convolving(device, chunks * self.work.encode_operations());
        [linear(text), linear(speech), picture]
    }

    fn convolving(&self, device: &Device, operations: f64) -> f64 {
        let recipe = match self.recipe() {
            Recipe::Fp32 => Recipe::Fp32,
            Recipe::Bf16 | Recipe::Fp8 => Recipe::Bf16,
        };
        operations / (device.peak(recipe) * device.achieved.convolution)
    }

    /// Returns the seconds that reading every weight once from disk takes.
    pub(crate) fn loading(&self) -> f64 {
        let files = self.work.transformer_weights() + self.work.text_weights();
        Self::over(self.profile.host.disk_gbs, files)
    }
}

impl Costs for Times<'_> {
    fn call(&self, stage: usize, lanes: usize) -> Spent {
        let stage = &self.placement.stages[stage];
        self.spent(stage, &self.layers(stage, lanes), lanes)
    }

    fn prefill(&self, stage: usize) -> Spent {
        let stage = &self.placement.stages[stage];
        self.spent(stage, &self.sink_layers(stage), 1)
    }

    fn load(&self, _stage: usize) -> f64 {
        0.0
    }

    fn prepare(&self) -> f64 {
        let device = self.devices[self.placement.encoders.device];
        let frames = 4.0 * self.ask.block_frames(self.work.config()) as f64 + 73.0;
        let weights = self.work.adapter_weights() / F32_BYTES;
        let operations = 2.0 * frames * weights as f64 * self.ask.actors as f64;
        operations / (device.peak(self.recipe()) * device.achieved.convolution)
    }

    fn decode(&self) -> f64 {
        let device = self.devices[self.placement.vae];
        self.convolving(device, self.work.decode_operations())
    }

    fn prime(&self) -> f64 {
        let frames = self.ask.block_frames(self.work.config()) as f64;
        self.decode() * PRIMING_LATENTS as f64 / frames
    }
}

fn scaled(o: Operations, by: f64) -> Operations {
    Operations {
        linear: o.linear * by,
        attention: o.attention * by,
        rest: o.rest * by,
    }
}

/// Returns the seconds for layers that pass through `slots`. One layer uploads while another
/// computes, and a slot is free once its layer has computed.
fn overlapped(steps: &[Step], slots: usize) -> f64 {
    let mut done: Vec<f64> = Vec::with_capacity(steps.len());
    let (mut link, mut freed) = (0.0f64, Vec::new());
    for step in steps {
        let before = done.last().copied().unwrap_or(0.0);
        let mut start = before;
        if step.up > 0.0 {
            let n: usize = freed.len();
            let slot = if n < slots { 0.0 } else { freed[n - slots] };
            link = link.max(slot) + step.up;
            start = before.max(link);
        }
        done.push(start + step.compute);
        if step.up > 0.0 {
            freed.push(start + step.compute + step.down);
        }
    }
    done.last().copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(compute: f64, up: f64) -> Step {
        Step {
            compute,
            up,
            down: 0.0,
        }
    }

    #[test]
    fn uploads_hide_behind_arithmetic_but_for_the_first() {
        for (steps, want) in [
            (vec![step(2.0, 0.0); 3], 6.0),
            (vec![step(2.0, 1.0); 3], 7.0),
            (vec![step(1.0, 2.0); 3], 7.0),
            (vec![step(2.0, 0.0), step(2.0, 2.0), step(2.0, 0.0)], 6.0),
            (Vec::new(), 0.0),
        ] {
            assert_eq!(overlapped(&steps, 2), want);
        }
        // With many slots the link never waits for arithmetic.
        let uneven = [step(4.0, 1.0), step(0.5, 2.0), step(0.5, 2.0)];
        assert_eq!((overlapped(&uneven, 2), overlapped(&uneven, 3)), (7.5, 6.0));
    }
}
