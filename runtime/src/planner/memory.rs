//! Counts the memory of a placement on each device and on the host while it runs. The classes are
//! those of the ledger of a device.

use engines::profile::{GIB, Kind, Profile};

use super::ask::Ask;
use super::placement::{PlacedStage, Placement};
use super::work::Work;

/// Memory of one device, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Budget {
    /// Bytes that tensors may take: the device's memory without its reserve.
    pub usable: u64,
    /// Weights that stay.
    pub weights: u64,
    /// KV rings that stay.
    pub rings: u64,
    /// Keys and values of the sink and the text, for every anchor that exists at once.
    pub condition: u64,
    /// Inputs and inner values of the transformer for all lanes, and hidden states between stages.
    pub activations: u64,
    /// Slots that layers stream through.
    pub slots: u64,
    /// Weights, caches and activations of the VAE's decoder.
    pub vae: u64,
    /// Engines' scratch.
    pub workspace: u64,
    /// Weights and inner values of encoders that stay, or of the part of the speech encoder that
    /// comes back for each window.
    pub encoders: u64,
    /// The most that the encoders take before the transformer is loaded.
    pub before: u64,
}

impl Budget {
    /// Returns the bytes in use while the video is made.
    pub fn run(&self) -> u64 {
        self.weights
            + self.rings
            + self.condition
            + self.activations
            + self.slots
            + self.vae
            + self.workspace
            + self.encoders
    }

    /// Returns the most bytes in use at any time.
    pub fn peak(&self) -> u64 {
        self.run().max(self.before)
    }

    /// Returns the usable bytes that are left; a negative number is short.
    pub fn headroom(&self) -> i64 {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        signed(self.usable) - signed(self.peak())
    }
}

/// Memory of the host, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HostBudget {
    /// Bytes that the program may take.
    pub usable: u64,
    /// Bytes whose pages the program may lock.
    pub pinnable: u64,
    /// Weights and rings that stream.
    pub pinned: u64,
    /// The program itself, its libraries, and frames on their way.
    pub process: u64,
    /// Weights mapped from files: the system may drop and read them again.
    pub mapped: u64,
    /// Files of the export.
    pub disk: u64,
}

impl HostBudget {
    /// Returns the bytes that the program needs.
    pub fn needed(&self) -> u64 {
        self.pinned + self.process
    }
}

/// Counts the anchors that exist at once: the second is made before the last block of the first
/// clip has left.
fn anchors(ask: &Ask) -> u64 {
    let swaps = if ask.clips == Some(1) { 1 } else { 2 };
    swaps * ask.passes as u64
}

/// Returns the memory of every device of `profile`, in order.
pub(crate) fn budgets(
    profile: &Profile,
    work: &Work,
    ask: &Ask,
    placement: &Placement,
) -> Vec<Budget> {
    let device = |(index, device): (usize, &engines::profile::Device)| {
        let mut budget = Budget {
            usable: device.usable_bytes(),
            ..Budget::default()
        };
        let stages = placement.stages.iter().filter(|s| s.device == index);
        for stage in stages {
            stage_budget(&mut budget, work, ask, placement, stage, device.kind);
        }
        if placement.vae == index {
            budget.vae = vae_bytes(work, device.kind);
        }
        let busy = budget.run() > 0;
        if placement.encoders.device == index {
            let [text, speech, picture] = encoder_bytes(work, device.kind);
            if placement.encoders.freed_before_dit {
                budget.before = text.max(speech).max(picture);
                if ask.hears_in_windows() {
                    budget.encoders = work.speech_window_bytes();
                }
            } else {
                budget.encoders = text + speech + picture;
            }
            budget.weights += work.adapter_weights();
        }
        if busy {
            budget.workspace = (profile.builder.workspace_mib as u64) << 20;
        }
        budget
    };
    profile.each_device().enumerate().map(device).collect()
}

fn stage_budget(
    b: &mut Budget,
    work: &Work,
    ask: &Ask,
    placement: &Placement,
    stage: &PlacedStage,
    kind: Kind,
) {
    let dit = &work.config().dit;
    let (layers, steps) = (stage.layers.len() as u64, stage.steps.len() as u64);
    let lanes = placement.lanes.min(stage.steps.len()) as u64;
    let r = stage.residency;
    let resident = stage.layers.clone().take(r.resident_layers);
    b.weights += resident.map(|l| work.layer_weights(l)).sum::<u64>();
    if stage.layers.start == 0 {
        b.weights += work.embed_weights();
    }
    if stage.layers.end == dit.layers {
        b.weights += work.head_weights();
    }
    if !r.rings_on_host {
        b.rings += layers * steps * work.ring_bytes();
    }
    b.condition += anchors(ask) * layers * (work.sink_bytes() + work.text_bytes());
    let call = lanes * (work.layer_activations(kind) + work.input_bytes());
    let prefill = prefill_bytes(work, stage);
    // A stage that hands on has one call in the channel, one that waits to be sent, and one that
    // the next stage has not copied yet. Where one is the last, the next call's states arrive.
    let waiting = if stage.layers.end == dit.layers { 1 } else { 3 };
    let flow = (lanes * work.hidden_bytes()).max(work.sink_hidden_bytes());
    b.activations += call.max(prefill) + waiting * flow;
    if r.streams(stage.layers.len()) {
        b.slots += r.slots as u64 * slot_bytes(work, stage, lanes);
    }
    if kind == Kind::Gpu {
        // A prefill reads the text's projections of one layer at a time.
        b.activations += work.text_key_weights();
    }
}

/// Returns the most bytes that pass through a stage in a prefill. The first chain alone computes
/// conditions. The sink's embedding is there before any of them is.
fn prefill_bytes(work: &Work, stage: &PlacedStage) -> u64 {
    if stage.steps.start > 0 {
        return 0;
    }
    let layers = work.sink_hidden_bytes() + work.sink_layer_bytes();
    if stage.layers.start > 0 {
        return layers;
    }
    let later = stage.layers.len() as u64 * (work.sink_bytes() + work.text_bytes());
    layers.max(work.sink_embed_bytes().saturating_sub(later))
}

/// Returns the bytes of the transformer alone on one device, with everything resident: `steps`
/// rings, one anchor, and calls of `lanes` lanes.
pub(crate) fn transformer_bytes(work: &Work, steps: usize, lanes: usize, kind: Kind) -> u64 {
    let (layers, steps, lanes) = (work.config().dit.layers, steps as u64, lanes as u64);
    let weights: u64 = (0..layers).map(|l| work.layer_weights(l)).sum();
    let kept = steps * work.ring_bytes() + work.sink_bytes() + work.text_bytes();
    let call = lanes * (work.layer_activations(kind) + work.hidden_bytes());
    weights + work.embed_weights() + work.head_weights() + layers as u64 * kept + call
}

/// Returns the bytes of a slot: the weights of the largest layer that streams, and the rings of a
/// call's lanes unless they stay.
fn slot_bytes(work: &Work, stage: &PlacedStage, lanes: u64) -> u64 {
    let r = stage.residency;
    let streamed = stage.layers.clone().skip(r.resident_layers);
    let weights = streamed.map(|l| work.layer_weights(l)).max().unwrap_or(0);
    let rings = if r.rings_on_host {
        lanes * work.ring_bytes()
    } else {
        0
    };
    weights + rings
}

/// Returns the bytes of the decoder: the weights of its two graphs, the caches that a call reads
/// and those that it writes, and its inner values. The graph of the first frame stays for the next
/// video, with weights of its own.
fn vae_bytes(work: &Work, kind: Kind) -> u64 {
    let live = 2 * work.decoder_caches() + work.vae_activations(kind);
    2 * work.decoder_weights() + held(live, kind)
}

/// Returns the bytes that an allocator holds for `live` bytes of many sizes. The CPU arena of ONNX
/// Runtime keeps freed memory in pieces of the sizes that were asked for, and later requests do not
/// fit into them. Over a whole video it held 2.6 times as much, measured at four sizes and lanes.
fn held(live: u64, kind: Kind) -> u64 {
    match kind {
        Kind::Gpu => live,
        Kind::Cpu => live * 13 / 5,
    }
}

/// Returns the bytes of the encoders of text, speech and picture while each runs.
fn encoder_bytes(work: &Work, kind: Kind) -> [u64; 3] {
    let live = 2 * work.encoder_caches() + work.vae_activations(kind);
    [
        work.text_weights() + work.text_embed_weights(),
        work.speech_weights(),
        2 * work.encoder_weights() + live,
    ]
}

/// Returns the memory of the host.
pub(crate) fn host_budget(profile: &Profile, work: &Work, placement: &Placement) -> HostBudget {
    let stage = |s: &PlacedStage| {
        let r = s.residency;
        let streamed = s.layers.clone().skip(r.resident_layers);
        let weights: u64 = streamed.map(|l| work.layer_weights(l)).sum();
        let rings = (s.layers.len() * s.steps.len()) as u64 * work.ring_bytes();
        // The projections of the text for a prefill stream as well, but from the file.
        weights + if r.rings_on_host { rings } else { 0 }
    };
    let files = work.transformer_weights()
        + work.text_weights()
        + work.speech_weights()
        + work.decoder_weights()
        + work.encoder_weights();
    HostBudget {
        usable: ((profile.host.memory_gib - profile.host.reserve_gib) * GIB) as u64,
        pinnable: (profile.host.pinned_gib * GIB) as u64,
        pinned: placement.stages.iter().map(stage).sum(),
        process: work.speech_states_bytes()
            + if profile.devices.iter().all(|d| d.kind == Kind::Cpu) {
                PROCESS_CPU
            } else {
                PROCESS
            },
        mapped: files,
        disk: files,
    }
}

/// Bytes of libraries, thread stacks, the encoder of the video and frames on their way, with CUDA's
/// libraries.
const PROCESS: u64 = 600 << 20;
const PROCESS_CPU: u64 = 128 << 20;
