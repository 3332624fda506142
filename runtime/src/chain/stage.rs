//! One stage: a range of layers for a range of steps on one device. A stage is loaded once; each
//! run on it has rings of its own. It knows no order, no thread of the executor and no other stage.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use engines::backend::{Backend, EngineError, LoadOptions, Loading, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::components::dit::{self, DitConfig};
use engines::contract::Port;
use engines::memory::{Block, Class, Ledger, Memory, MemoryError};
use engines::tensor::{Tensor, View};
use engines::weights::{BoundWeights, HostWeights};

use crate::chain::call::{
    Anchor, BlockAudio, Call, CallOutput, Flow, LayerCondition, Placed, Prefill, SinkFlow,
};
use crate::chain::host_session::here;
use crate::chain::offload::{
    Filled, Load, Slot, SlotFeed, SlotSize, Window, locked, through_slots,
};
use crate::chain::page_locks::PageLocks;
use crate::chain::ring::KvRing;
use crate::chain::snapshot::{Keeper, RingPlace, RingRows};
use crate::numbers::geometry::Geometry;
use crate::placement::plan::{Rings, StageSpec};

/// The device and the model of a stage.
#[derive(Clone)]
pub(crate) struct Site {
    /// Loads and runs the graphs.
    pub backend: Arc<dyn Backend>,
    /// Home of the device, see [`crate::placement::devices::Devices::home`].
    pub home: usize,
    /// Counts the bytes that the stage keeps in host memory.
    pub host: Arc<Ledger>,
    /// Sizes of the model.
    pub model: DitConfig,
    /// Most lanes of a call.
    pub lanes: usize,
    /// Taps and faults by component.
    pub loading: Loading,
    /// Layers whose weights were made ready to stream.
    pub page_locks: Option<Arc<PageLocks>>,
}

impl Site {
    /// Describes a stage that is alone on its device.
    pub(crate) fn alone(
        backend: Arc<dyn Backend>,
        model: &DitConfig,
        lanes: usize,
        loading: Loading,
    ) -> Self {
        Self {
            backend,
            home: 0,
            host: Ledger::new("host", u64::MAX),
            model: model.clone(),
            lanes,
            loading,
            page_locks: None,
        }
    }

    fn memory(&self) -> &dyn Memory {
        &**self.backend.memory()
    }

    fn load(&self, name: &str) -> Result<Loaded, EngineError> {
        self.load_with(name, &(self.loading)(name))
    }

    /// Loads a component that only one run uses.
    fn load_for(&self, name: &str, cancel: &Cancel) -> Result<Loaded, EngineError> {
        self.load_with(name, &self.options_for(name, cancel))
    }

    fn options_for(&self, name: &str, cancel: &Cancel) -> LoadOptions {
        LoadOptions {
            cancel: cancel.clone(),
            ..(self.loading)(name)
        }
    }

    fn load_with(&self, name: &str, options: &LoadOptions) -> Result<Loaded, EngineError> {
        Ok(Loaded {
            name: name.to_owned(),
            session: self.backend.load(name, options)?,
        })
    }
}

struct Loaded {
    name: String,
    session: Box<dyn Session>,
}

/// The place of a layer's weights between calls.
enum Weights {
    /// In the memory that the device's sessions read; in a slab if the device has its own memory.
    Resident {
        set: BoundWeights,
        slab: Option<Arc<Block>>,
    },
    /// On the host, and in a slot while the layer runs.
    Streamed,
    /// In a session of the layer's own.
    Inside,
}

struct Layer {
    index: usize,
    name: String,
    host: HostWeights,
    weights: Weights,
}

/// Sessions of the layers: one for each graph, and those of layers that need their own.
#[derive(Default)]
struct Graphs {
    layer: Option<Box<dyn Session>>,
    layer_audio: Option<Box<dyn Session>>,
    own: BTreeMap<usize, Box<dyn Session>>,
}

impl Graphs {
    /// Loads the session of layer `index`. Returns true if the layer has a session of its own.
    fn load(&mut self, site: &Site, index: usize, name: &str) -> Result<bool, EngineError> {
        let options = (site.loading)(name);
        if options.is_particular() {
            self.own.insert(index, site.backend.load(name, &options)?);
            return Ok(true);
        }
        let shared = self.shared(&site.model, index);
        if shared.is_none() {
            *shared = Some(site.backend.load_unbound(name, &options)?);
        }
        Ok(false)
    }

    fn shared(&mut self, model: &DitConfig, index: usize) -> &mut Option<Box<dyn Session>> {
        if model.audio_inject_layers.contains(&index) {
            &mut self.layer_audio
        } else {
            &mut self.layer
        }
    }

    fn of(&mut self, model: &DitConfig, index: usize) -> &mut dyn Session {
        if let Some(own) = self.own.get_mut(&index) {
            return own.as_mut();
        }
        let shared = if model.audio_inject_layers.contains(&index) {
            self.layer_audio.as_mut()
        } else {
            self.layer.as_mut()
        };
        shared.expect("loaded with the stage").as_mut()
    }
}

/// A loaded stage: weights and graphs, without the state of any run.
///
/// Several runs may share a stage. Each has a [`StageState`] of its own.
pub(crate) struct Stage {
    site: Site,
    spec: StageSpec,
    embed: Option<Loaded>,
    graphs: Graphs,
    layers: Vec<Layer>,
    head: Option<Loaded>,
    pool: Pool,
}

/// The state of one run on one stage: the KV ring of each of the stage's layers.
pub(crate) struct StageState {
    geometry: Geometry,
    /// First layer of the stage.
    first: usize,
    rings: Vec<Mutex<KvRing>>,
    /// Stops the run, also in the middle of a graph.
    cancel: Cancel,
}

impl StageState {
    /// Returns the ring of a layer, or `None` for a layer of another stage. A lane of the ring is a
    /// step of the stage.
    pub(crate) fn ring(&self, layer: usize) -> Option<MutexGuard<'_, KvRing>> {
        let at = layer.checked_sub(self.first)?;
        self.rings.get(at).map(locked)
    }
}

impl Stage {
    /// Loads the layers of `spec`, the embedding with the model's first layer, and the head with
    /// its last.
    ///
    /// # Errors
    /// A component is missing or does not load; a device or the host has too little memory.
    pub(crate) fn load(site: Site, spec: &StageSpec) -> Result<Self, EngineError> {
        let optional = |name: &str, wanted: bool| wanted.then(|| site.load(name)).transpose();
        let embed = optional(dit::EMBED.name, spec.layers.start == 0)?;
        let head = optional(dit::HEAD.name, spec.layers.end == site.model.layers)?;
        let (mut graphs, mut layers) = (Graphs::default(), Vec::new());
        for index in spec.layers.clone() {
            layers.push(load_layer(&site, spec, &mut graphs, index)?);
        }
        Ok(Self {
            spec: spec.clone(),
            embed,
            graphs,
            layers,
            head,
            pool: Pool::default(),
            site,
        })
    }

    /// Starts a run on this stage: its rings are empty, and its slots are there.
    ///
    /// # Errors
    /// The device or the host has too little memory.
    pub(crate) fn begin(
        &mut self,
        geometry: &Geometry,
        cancel: &Cancel,
    ) -> Result<StageState, EngineError> {
        let (site, residency) = (&self.site, self.spec.residency);
        let (memory, dtype) = (site.memory(), site.backend.recipe().compute());
        let alloc = |bytes| match residency.rings {
            Rings::OnDevice => memory.alloc(bytes, Class::Rings),
            Rings::OnHost => memory.host_alloc(&site.host, bytes, Class::Rings),
        };
        let ring = |_: &Layer| {
            let ring = KvRing::new(geometry, self.spec.steps.len(), dtype, alloc)?;
            Ok(Mutex::new(ring))
        };
        let rings = self.layers.iter().map(ring);
        let rings = rings.collect::<Result<_, MemoryError>>()?;
        self.pool
            .fill(&self.site, &self.spec, &self.layers, geometry)?;
        Ok(StageState {
            geometry: geometry.clone(),
            first: self.spec.layers.start,
            rings,
            cancel: cancel.clone(),
        })
    }

    /// Returns the places of the rings that a run has on this stage.
    pub(crate) fn ring_places(&self) -> Vec<RingPlace> {
        let layers = self.spec.layers.clone();
        let of = |layer| {
            self.spec
                .steps
                .clone()
                .map(move |step| RingPlace { step, layer })
        };
        layers.flat_map(of).collect()
    }

    /// Fills a ring of a run with rows from the host.
    ///
    /// # Errors
    /// The device refuses.
    ///
    /// # Panics
    /// If the stage has no such ring, or the rows have another shape.
    pub(crate) fn fill_ring(
        &self,
        state: &StageState,
        place: RingPlace,
        rows: &RingRows,
    ) -> Result<(), EngineError> {
        let lane = place.step - self.spec.steps.start;
        let mut ring = state.ring(place.layer).expect("a ring of this stage");
        Ok(ring.fill_lane(lane, rows, self.site.memory())?)
    }

    /// Copies the rings of one step to the host, one after the other, and gives them to `keeper` as
    /// a part of the state before `block`. A stage of other steps has none.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn keep(
        &self,
        state: &StageState,
        block: usize,
        step: usize,
        keeper: &dyn Keeper,
    ) -> Result<(), EngineError> {
        for place in self.ring_places() {
            if place.step == step
                && let Some(ring) = state.ring(place.layer)
            {
                let lane = step - self.spec.steps.start;
                let rows = ring.lane_to_host(lane, self.site.memory())?;
                keeper.ring(block, place, rows);
            }
        }
        Ok(())
    }

    /// Runs a call through this stage's layers. `stop` is asked before each layer. A call that was
    /// stopped comes back without output.
    ///
    /// # Errors
    /// A graph fails; [`EngineError::Cancelled`].
    ///
    /// # Panics
    /// If an earlier stage did not run: the order of stages is broken in code.
    pub(crate) fn denoise(
        &mut self,
        state: &mut StageState,
        call: &mut Call,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        if stop() {
            return Ok(());
        }
        if let Some(embed) = &mut self.embed {
            embed_lanes(&self.site, embed, call, &state.cancel)?;
        }
        let flow = call.flow.as_mut().expect("the first stage embeds");
        if flow.home != self.site.home {
            let copy = |t: &Tensor| t.copied_to(self.site.memory(), Class::Activations);
            (flow.hidden, flow.e, flow.e0) = (copy(&flow.hidden)?, copy(&flow.e)?, copy(&flow.e0)?);
            flow.home = self.site.home;
        }
        self.run_layers(state, call, stop)?;
        match &mut self.head {
            Some(head) if !stop() => run_head(&self.site, head, call, &state.cancel),
            _ => Ok(()),
        }
    }

    fn run_layers(
        &mut self,
        state: &mut StageState,
        call: &mut Call,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        self.pool
            .fill(&self.site, &self.spec, &self.layers, &state.geometry)?;
        let (memory, rings) = (self.site.memory(), self.spec.residency.rings);
        let windows = windows(&state.geometry, &self.spec, call);
        let lanes = windows[0].step..windows[0].step + windows.len();
        let loads = loads(&self.layers, rings, &state.rings);
        let (model, home) = (&self.site.model, self.site.home);
        let (layers, graphs) = (&self.layers, &mut self.graphs);
        let (anchor, taps) = (Arc::clone(&call.anchor), &mut call.taps);
        let Flow { hidden, e0, .. } = call.flow.as_mut().expect("the first stage embeds");
        let shared = Shared {
            e0,
            rope: pair(memory, &call.rope)?,
            sink_rope: pair(memory, &call.sink_rope)?,
            slot: here(memory, &call.slot)?,
            kv_len: here(memory, &call.kv_len)?,
            audio: audio_here(memory, &call.audio)?,
        };
        let work = |feed: &SlotFeed<'_>| {
            for (layer, ring) in layers.iter().zip(&state.rings) {
                if stop() {
                    return Ok(());
                }
                let condition = anchor.of(layer.index, home);
                let condition = condition.expect("an anchor is placed before its calls");
                let mut filled = layer.streams(rings).then(|| feed.next()).transpose()?;
                let session = graphs.of(model, layer.index);
                let inputs = shared.inputs(session, hidden, condition);
                let ring = (ring, &lanes);
                let mut out = layer.run(session, &inputs, filled.as_mut(), ring, &state.cancel)?;
                *hidden = out.take(&dit::HIDDEN_OUT);
                keep_taps(memory, taps, &layer.name, out)?;
                if let Some(filled) = filled {
                    feed.give_back(filled);
                }
            }
            Ok(())
        };
        with_slots(memory, &mut self.pool.slots, &loads, &windows, work)
    }

    /// Runs the sink prefill through this stage's layers. `stop` is asked before each layer; a
    /// prefill that was stopped lacks layers. The prefill's graphs are loaded here and dropped
    /// after: they run once for each anchor, at most twice a video.
    ///
    /// # Errors
    /// A component that does not load or fails.
    pub(crate) fn prefill(
        &mut self,
        state: &StageState,
        prefill: &mut Prefill,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        if stop() {
            return Ok(());
        }
        self.pool
            .fill(&self.site, &self.spec, &self.layers, &state.geometry)?;
        let (site, memory) = (&self.site, self.site.memory());
        if self.spec.layers.start == 0 {
            embed_sink(site, prefill, &state.cancel)?;
        }
        let flow = prefill.flow.as_mut().expect("the first stage embeds");
        if flow.home != site.home {
            flow.hidden = flow.hidden.copied_to(memory, Class::Activations)?;
            flow.e0 = flow.e0.copied_to(memory, Class::Activations)?;
            flow.home = site.home;
        }
        let mut sink = Sink {
            site,
            shared: None,
            text: here(memory, &prefill.text)?,
            rope: pair(memory, &prefill.rope)?,
            cancel: &state.cancel,
        };
        // A ring has nothing to do with the sink.
        let (layers, loads) = (&self.layers, loads(&self.layers, Rings::OnDevice, &[]));
        let (done, taps) = (&mut prefill.layers, &mut prefill.taps);
        let work = |feed: &SlotFeed<'_>| {
            for layer in layers {
                if stop() {
                    return Ok(());
                }
                let streams = layer.streams(Rings::OnDevice);
                let filled = streams.then(|| feed.next()).transpose()?;
                let condition = sink.run(layer, filled.as_ref(), flow, taps)?;
                done.push(Placed {
                    home: site.home,
                    condition: Arc::new(condition),
                });
                if let Some(filled) = filled {
                    feed.give_back(filled);
                }
            }
            Ok(())
        };
        with_slots(memory, &mut self.pool.slots, &loads, &[], work)
    }

    /// Copies the conditions of this stage's layers to its device, unless they lie there.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub(crate) fn place(&self, anchor: &mut Anchor) -> Result<(), EngineError> {
        let (memory, home) = (self.site.memory(), self.site.home);
        for placed in &mut anchor.layers[self.spec.layers.clone()] {
            if !placed.iter().any(|p| p.home == home) {
                let condition = placed[0].condition.copied_to(memory)?;
                let condition = Arc::new(condition);
                placed.push(Placed { home, condition });
            }
        }
        Ok(())
    }
}

/// Runs `work` while the loads pass through slots. Without loads it starts no thread.
fn with_slots<'l>(
    memory: &dyn Memory,
    pool: &mut Vec<Slot>,
    loads: &[Load<'l>],
    windows: &[Window],
    work: impl FnOnce(&SlotFeed<'l>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    if loads.is_empty() {
        work(&SlotFeed::empty())
    } else {
        through_slots(memory, pool, loads, windows, work)
    }
}

impl Layer {
    fn streams(&self, rings: Rings) -> bool {
        rings == Rings::OnHost || matches!(self.weights, Weights::Streamed)
    }

    /// Runs the layer on its weights and the rings of `lanes`, from its slot where it streams.
    fn run(
        &self,
        session: &mut dyn Session,
        inputs: &[(&Port, View<'_>)],
        mut filled: Option<&mut Filled<'_>>,
        (ring, lanes): (&Mutex<KvRing>, &Range<usize>),
        cancel: &Cancel,
    ) -> Result<Outputs, EngineError> {
        match (&self.weights, filled.as_ref().and_then(|f| f.weights())) {
            (Weights::Resident { set, .. }, _) => session.bind(set.clone()),
            (Weights::Streamed, Some(set)) => session.bind(set),
            (Weights::Streamed | Weights::Inside, _) => {}
        }
        let mut own = locked(ring);
        let (ring, lanes) = match filled.as_mut().and_then(|f| f.ring()) {
            Some(ring) => (ring, 0..lanes.len()),
            None => (&mut *own, lanes.clone()),
        };
        let (keys, values) = ring.lanes_mut(lanes);
        let state = State::InPlace(vec![(dit::KEYS.name, keys), (dit::VALUES.name, values)]);
        let out = session.run_until(inputs, state, cancel);
        // A slot is free again when nothing refers to the weights in it, also after a failure.
        if matches!(self.weights, Weights::Streamed) {
            session.bind(BoundWeights::default());
        }
        out
    }
}

/// Returns the loads of a pass in the order of the layers. `host_rings` has the ring of every
/// layer, or nothing where rings stay on the device.
fn loads<'l>(layers: &'l [Layer], rings: Rings, host_rings: &'l [Mutex<KvRing>]) -> Vec<Load<'l>> {
    let load = |(at, layer): (usize, &'l Layer)| Load {
        weights: matches!(layer.weights, Weights::Streamed).then_some(&layer.host),
        ring: (rings == Rings::OnHost).then(|| &host_rings[at]),
    };
    let all = layers.iter().enumerate();
    all.filter(|(_, l)| l.streams(rings)).map(load).collect()
}

fn load_layer(
    site: &Site,
    spec: &StageSpec,
    graphs: &mut Graphs,
    index: usize,
) -> Result<Layer, EngineError> {
    let (memory, name) = (site.memory(), dit::layer_name(index));
    let own = graphs.load(site, index, &name)?;
    let host = site.backend.weights(&name)?;
    let stays = index - spec.layers.start < spec.residency.resident_layers;
    let weights = match (own, memory.is_separate()) {
        (true, _) => Weights::Inside,
        (false, false) => Weights::Resident {
            set: host.mapped(),
            slab: None,
        },
        (false, true) if stays => {
            let mut slab = memory.alloc(host.slab_bytes(), Class::Weights)?;
            host.upload(memory, &mut slab)?;
            let slab = Arc::new(slab);
            Weights::Resident {
                set: host.in_slab(&slab),
                slab: Some(slab),
            }
        }
        (false, true) => Weights::Streamed,
    };
    let ready = site.page_locks.as_ref().and_then(|s| s.of(index));
    let host = match (&weights, ready) {
        (Weights::Streamed, Some(ready)) => ready.clone(),
        _ => host,
    };
    Ok(Layer {
        index,
        name,
        host,
        weights,
    })
}

/// The slots of a stage. They fit one geometry where rings stream through them.
#[derive(Default)]
struct Pool {
    slots: Vec<Slot>,
    /// Size of each slot, and the geometry of its rings where it has one.
    made: Option<(SlotSize, Option<Geometry>)>,
}

impl Pool {
    /// Makes every slot that a pass over `layers` needs. Slots are made anew for another geometry,
    /// and where a pass that failed or stopped lost one.
    fn fill(
        &mut self,
        site: &Site,
        spec: &StageSpec,
        layers: &[Layer],
        geometry: &Geometry,
    ) -> Result<(), MemoryError> {
        let rings = spec.residency.rings;
        let streamed = layers.iter().filter(|l| l.streams(rings));
        let count = streamed.clone().count().min(spec.residency.slots);
        let weights = streamed
            .filter(|l| matches!(l.weights, Weights::Streamed))
            .map(|l| l.host.slab_bytes());
        let on_host = rings == Rings::OnHost;
        let size = SlotSize {
            weights: weights.max().unwrap_or(0),
            lanes: on_host.then_some(site.lanes.min(spec.steps.len())),
            dtype: site.backend.recipe().compute(),
        };
        let wanted = Some((size.clone(), on_host.then(|| geometry.clone())));
        if self.made != wanted {
            self.slots.clear();
            self.made = wanted;
        }
        while self.slots.len() < count {
            self.slots.push(size.alloc(site.memory(), geometry)?);
        }
        Ok(())
    }
}

/// Turns a prefill that has passed every layer into its anchor, placed where the layers ran.
pub(crate) fn anchor_of(prefill: Prefill) -> Anchor {
    Anchor {
        index: prefill.index,
        layers: prefill.layers.into_iter().map(|p| vec![p]).collect(),
    }
}

impl LayerCondition {
    fn copied_to(&self, memory: &dyn Memory) -> Result<Self, MemoryError> {
        let copy = |t: &Tensor| t.copied_to(memory, Class::Condition);
        Ok(Self {
            sink_k: copy(&self.sink_k)?,
            sink_v: copy(&self.sink_v)?,
            text_k: copy(&self.text_k)?,
            text_v: copy(&self.text_v)?,
        })
    }
}

/// Returns the rows of its ring that each lane of a call reads and writes.
fn windows(g: &Geometry, spec: &StageSpec, call: &Call) -> Vec<Window> {
    let window = |item: &crate::placement::wavefront::Item| {
        let slot = g.slot(item.block);
        Window {
            step: item.step - spec.steps.start,
            new: slot..slot + g.block_tokens(),
            filled: g.filled(item.block),
        }
    };
    call.items.iter().map(window).collect()
}

/// Inputs of all layers of a stage, on its device.
struct Shared<'c> {
    e0: &'c Tensor,
    rope: [Cow<'c, Tensor>; 2],
    sink_rope: [Cow<'c, Tensor>; 2],
    slot: Cow<'c, Tensor>,
    kv_len: Cow<'c, Tensor>,
    audio: [Cow<'c, Tensor>; 3],
}

impl Shared<'_> {
    fn inputs<'v>(
        &'v self,
        session: &dyn Session,
        hidden: &'v Tensor,
        condition: &'v LayerCondition,
    ) -> Vec<(&'static Port, View<'v>)> {
        let mut inputs = vec![
            (&dit::HIDDEN, hidden.view()),
            (&dit::E0, self.e0.view()),
            (&dit::ROPE_COS, self.rope[0].view()),
            (&dit::ROPE_SIN, self.rope[1].view()),
            (&dit::SINK_ROPE_COS, self.sink_rope[0].view()),
            (&dit::SINK_ROPE_SIN, self.sink_rope[1].view()),
            (&dit::SINK_K, condition.sink_k.view()),
            (&dit::SINK_V, condition.sink_v.view()),
            (&dit::TEXT_K, condition.text_k.view()),
            (&dit::TEXT_V, condition.text_v.view()),
            (&dit::SLOT, self.slot.view()),
            (&dit::KV_LEN, self.kv_len.view()),
        ];
        if session.contract().name == dit::LAYER_AUDIO.name {
            let ports = [&dit::AUDIO_GLOBAL, &dit::AUDIO_LOCAL, &dit::ACTOR_MASK];
            inputs.extend(ports.into_iter().zip(self.audio.iter().map(|t| t.view())));
        }
        inputs
    }
}

fn pair<'t>(
    memory: &dyn Memory,
    tables: &'t (Tensor, Tensor),
) -> Result<[Cow<'t, Tensor>; 2], MemoryError> {
    Ok([here(memory, &tables.0)?, here(memory, &tables.1)?])
}

fn audio_here<'t>(
    memory: &dyn Memory,
    audio: &'t BlockAudio,
) -> Result<[Cow<'t, Tensor>; 3], MemoryError> {
    let BlockAudio {
        global,
        local,
        mask,
    } = audio;
    Ok([
        here(memory, global)?,
        here(memory, local)?,
        here(memory, mask)?,
    ])
}

fn embed_lanes(
    site: &Site,
    embed: &mut Loaded,
    call: &mut Call,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let memory = site.memory();
    let (latents, pose_latents, sinusoid) = (
        here(memory, &call.latents)?,
        here(memory, &call.pose_latents)?,
        here(memory, &call.sinusoid)?,
    );
    let inputs = [
        (&dit::LATENTS, latents.view()),
        (&dit::POSE_LATENTS, pose_latents.view()),
        (&dit::SINUSOID, sinusoid.view()),
    ];
    let mut out = embed.session.run_until(&inputs, State::None, cancel)?;
    call.flow = Some(Flow {
        home: site.home,
        hidden: out.take(&dit::HIDDEN_OUT),
        e: out.take(&dit::E_OUT),
        e0: out.take(&dit::E0_OUT),
    });
    keep_taps(memory, &mut call.taps, &embed.name, out)
}

fn run_head(
    site: &Site,
    head: &mut Loaded,
    call: &mut Call,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let memory = site.memory();
    let flow = call.flow.take().expect("the first stage embeds");
    let (latents, sigmas) = (here(memory, &call.latents)?, here(memory, &call.sigmas)?);
    let inputs = [
        (&dit::HIDDEN, flow.hidden.view()),
        (&dit::E, flow.e.view()),
        (&dit::LATENTS, latents.view()),
        (&dit::SIGMAS, sigmas.view()),
    ];
    let mut out = head.session.run_until(&inputs, State::None, cancel)?;
    call.output = Some(CallOutput {
        noise_pred: out.take(&dit::NOISE_PRED).into_host(memory)?,
        next_latents: out.take(&dit::NEXT_LATENTS).into_host(memory)?,
    });
    keep_taps(memory, &mut call.taps, &head.name, out)
}

fn embed_sink(site: &Site, prefill: &mut Prefill, cancel: &Cancel) -> Result<(), EngineError> {
    let memory = site.memory();
    let mut embed = site.load_for(dit::SINK_EMBED.name, cancel)?;
    let reference = here(memory, &prefill.ref_latents)?;
    let motion = here(memory, &prefill.motion_latents)?;
    let inputs = [
        (&dit::REF_LATENTS, reference.view()),
        (&dit::MOTION_LATENTS, motion.view()),
    ];
    let mut out = embed.session.run_until(&inputs, State::None, cancel)?;
    prefill.flow = Some(SinkFlow {
        home: site.home,
        hidden: out.take(&dit::SINK_TOKENS),
        e0: out.take(&dit::SINK_E0),
    });
    keep_taps(memory, &mut prefill.taps, &embed.name, out)
}

/// The sink's layers on one stage: one session for all of them, on the weights of the stage's own
/// layers.
struct Sink<'p> {
    site: &'p Site,
    shared: Option<Box<dyn Session>>,
    text: Cow<'p, Tensor>,
    rope: [Cow<'p, Tensor>; 2],
    cancel: &'p Cancel,
}

impl Sink<'_> {
    fn run(
        &mut self,
        layer: &Layer,
        filled: Option<&Filled<'_>>,
        flow: &mut SinkFlow,
        taps: &mut BTreeMap<String, Tensor>,
    ) -> Result<LayerCondition, EngineError> {
        let (backend, memory) = (&self.site.backend, self.site.memory());
        let name = dit::sink_layer_name(layer.index);
        let options = self.site.options_for(&name, self.cancel);
        let mut own = None;
        let session = if options.is_particular() {
            own.insert(backend.load(&name, &options)?)
        } else {
            let weights = self.weights(&name, layer, filled)?;
            let shared = match self.shared.take() {
                Some(session) => session,
                None => backend.load_unbound(&name, &options)?,
            };
            let session = self.shared.insert(shared);
            session.bind(weights);
            session
        };
        let inputs = [
            (&dit::SINK_HIDDEN, flow.hidden.view()),
            (&dit::SINK_E0, flow.e0.view()),
            (&dit::TEXT, self.text.view()),
            (&dit::SINK_ROPE_COS, self.rope[0].view()),
            (&dit::SINK_ROPE_SIN, self.rope[1].view()),
        ];
        let mut out = session.run_until(&inputs, State::None, self.cancel)?;
        session.bind(BoundWeights::default());
        flow.hidden = out.take(&dit::SINK_HIDDEN_OUT);
        let made = LayerCondition {
            sink_k: out.take(&dit::SINK_K_OUT),
            sink_v: out.take(&dit::SINK_V_OUT),
            text_k: out.take(&dit::TEXT_K_OUT),
            text_v: out.take(&dit::TEXT_V_OUT),
        };
        keep_taps(memory, taps, &name, out)?;
        // Outputs count as activations, but the condition stays.
        Ok(if memory.is_separate() {
            made.copied_to(memory)?
        } else {
            made
        })
    }

    fn weights(
        &self,
        name: &str,
        layer: &Layer,
        filled: Option<&Filled<'_>>,
    ) -> Result<BoundWeights, EngineError> {
        let (backend, memory) = (&self.site.backend, self.site.memory());
        let host = backend.weights(name)?;
        let there = match (&layer.weights, filled) {
            _ if !memory.is_separate() => Some(host.mapped()),
            (_, Some(filled)) => filled.weights_of(&host),
            (Weights::Resident { slab, .. }, _) => {
                let slab = slab.as_ref();
                slab.and_then(|slab| host.in_slab_of(&layer.host, slab))
            }
            _ => None,
        };
        Ok(match there {
            Some(set) => set,
            None => host.resident(memory)?,
        })
    }
}

fn keep_taps(
    memory: &dyn Memory,
    taps: &mut BTreeMap<String, Tensor>,
    component: &str,
    left: Outputs,
) -> Result<(), EngineError> {
    for (name, t) in left.into_inner() {
        taps.insert(format!("{component}/{name}"), t.into_host(memory)?);
    }
    Ok(())
}
