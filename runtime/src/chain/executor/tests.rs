//! Runs the executor on fake graphs. Compares every placement with one block after the other, and
//! tries every early end of a run.
use std::sync::Mutex;

use engines::backend::{Backend, EngineError, plain};
use engines::cancel::Cancel;
use engines::memory::{HostMemory, Memory, MemoryError};
use engines::tensor_file::TensorFileError;
use proptest::prelude::*;

use super::*;
use crate::chain::call::Tables;
use crate::chain::events::Silent;
use crate::chain::job::Guidance;
use crate::chain::snapshot::{Begin, Keeper, Kept, RingPlace, RingRows};
use crate::chain::source::{BlockInput, everywhere};
use crate::chain::stage::{Site, Stage, StageState, anchor_of};
use crate::fixtures::fake::{Fake, Fault};
use crate::fixtures::sizes::{config, small_geometry as geometry};
use crate::inputs::replay::Distances;
use crate::numbers::geometry::Geometry;
use crate::numbers::solver::{self, Sampling, Solver};
use crate::placement::plan::{Lanes, Residency, Rings, StageSpec, Stages};
use crate::placement::queues::FINISHED_WAITING;

const LAYERS: usize = 4;

/// Finished blocks in order of arrival.
type Blocks = Vec<(usize, Vec<f32>)>;

/// Noise and audio that name their block.
struct Named<'a> {
    geometry: &'a Geometry,
    asked: Vec<usize>,
    fails_at: Option<usize>,
    /// Blocks after which the sound ends.
    ends_at: Option<usize>,
}

fn named(shape: &[usize], name: f32) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_slice(
        shape,
        &(0..n)
            .map(|i| (name + i as f32 * 0.125).sin())
            .collect::<Vec<f32>>(),
    )
}

fn input(g: &Geometry, block: usize) -> BlockInput {
    let audio = BlockAudio {
        global: named(&[1, 1, 3, 8], block as f32 + 0.5),
        local: named(&[1, 1, 3, 5, 8], block as f32 + 0.25),
        mask: everywhere(g),
    };
    BlockInput {
        latents: named(&g.latents_shape(3), block as f32),
        audio,
    }
}

fn as_planned() -> EngineError {
    EngineError::Memory {
        component: "source".to_owned(),
        reason: "as planned".to_owned(),
    }
}

impl Source for Named<'_> {
    fn block(&mut self, block: usize) -> Result<Option<BlockInput>, ChainError> {
        assert_eq!(block, self.asked.len(), "blocks are asked for in order");
        self.asked.push(block);
        match self.fails_at {
            Some(at) if at == block => Err(as_planned().into()),
            _ if self.ends_at.is_some_and(|end| block >= end) => Ok(None),
            _ => Ok(Some(input(self.geometry, block))),
        }
    }
}

struct Case {
    blocks: usize,
    steps: usize,
    swap: Swap,
    stages: Stages,
    lanes: Lanes,
    fault: Fault,
    source_fails_at: Option<usize>,
    /// Blocks after which the source ends.
    ends_at: Option<usize>,
    /// Blocks that the decoder takes before it goes away.
    takes: usize,
    /// Block after which a Ctrl-C comes.
    cancel_at: Option<usize>,
    residency: Residency,
    /// Virtual devices with so much memory each; all in the process's own without.
    budget: Option<u64>,
    sampling: Sampling,
    /// Whether each step has a second pass.
    guided: bool,
}

impl Case {
    fn new(blocks: usize, steps: usize, swap: Swap) -> Self {
        Self {
            blocks,
            steps,
            swap,
            stages: Stages::default(),
            lanes: Lanes::Auto,
            fault: Fault::None,
            source_fails_at: None,
            ends_at: None,
            takes: usize::MAX,
            cancel_at: None,
            residency: Residency::default(),
            budget: None,
            sampling: Sampling::default(),
            guided: false,
        }
    }
}

impl Case {
    fn passes(&self) -> usize {
        1 + usize::from(self.guided)
    }

    fn calls(&self) -> usize {
        self.steps * self.passes()
    }

    /// Another prompt, other sound, and a scale that changes every flow.
    fn guidance(&self) -> Option<Guidance> {
        self.guided.then(|| Guidance {
            scale: 2.5,
            text: Arc::new(named(&[1, 6, 8], 4.0)),
            audio: BlockAudio {
                global: named(&[1, 1, 3, 8], 20.5),
                local: named(&[1, 1, 3, 5, 8], 20.25),
                mask: everywhere(&geometry(12)),
            },
        })
    }

    fn tables(&self, g: &Geometry) -> Tables {
        Tables::sampled(g.clone(), self.steps, self.sampling).unwrap()
    }

    fn plan(&self) -> Plan {
        let plan = Plan::new(&self.stages, self.lanes, LAYERS, self.calls()).unwrap();
        plan.with_residency(self.residency).unwrap()
    }
}

fn anchor(g: &Geometry, name: f32) -> AnchorInput {
    AnchorInput {
        ref_latents: named(&g.latents_shape(1), name),
        motion_latents: named(&g.latents_shape(19), name + 0.5),
    }
}

/// Devices of a case: the fake's own memory, or one with a budget for each device of the plan.
fn devices(case: &Case, backend: &Arc<Fake>) -> (Devices, Vec<Arc<HostMemory>>) {
    let Some(budget) = case.budget else {
        return (Devices::one(Arc::<Fake>::clone(backend)), Vec::new());
    };
    let last = *case.plan().device_ids().last().unwrap();
    let memories = (0..=last).map(|i| HostMemory::new(format!("cpu:{i}"), budget));
    let memories: Vec<Arc<HostMemory>> = memories.collect();
    let device = |m: &Arc<HostMemory>| -> Arc<dyn Backend> {
        Arc::new(backend.on(Arc::<HostMemory>::clone(m)))
    };
    (
        Devices::each(memories.iter().map(device).collect()),
        memories,
    )
}

/// Runs a case. Returns the result, the finished blocks in order of arrival, and the components
/// that ran.
fn execute(case: &Case, g: &Geometry) -> (Result<(), ChainError>, Blocks, Vec<String>) {
    let mut backend = Fake::new(config(LAYERS), g.clone());
    backend.fault = case.fault;
    let backend = Arc::new(backend);
    let (devices, memories) = devices(case, &backend);
    let (result, finished) = execute_on(case, g, &devices);
    for memory in &memories {
        let counts = memory.ledger().counts();
        assert_eq!(counts.total(), 0, "everything is freed");
        assert!(counts.peak <= case.budget.unwrap());
    }
    assert_eq!(devices.host().counts().total(), 0);
    let log = backend.log.lock().unwrap().clone();
    (result, finished, log)
}

fn execute_on(case: &Case, g: &Geometry, devices: &Devices) -> (Result<(), ChainError>, Blocks) {
    execute_watched(case, g, devices, &Silent)
}

fn execute_watched(
    case: &Case,
    g: &Geometry,
    devices: &Devices,
    observer: &dyn Observer,
) -> (Result<(), ChainError>, Blocks) {
    match load(case, devices) {
        Ok(chains) => run_on(&chains, case, g, 1, observer),
        Err(error) => (Err(error), Blocks::new()),
    }
}

fn load(case: &Case, devices: &Devices) -> Result<Chains, ChainError> {
    Chains::load(&case.plan(), devices, &config(LAYERS), &plain(), &Silent)
}

/// Keeps the rings of one state in memory.
struct InMemory {
    block: usize,
    rings: Mutex<BTreeMap<RingPlace, RingRows>>,
}

impl Keeper for InMemory {
    fn wants(&self, block: usize) -> bool {
        block == self.block
    }

    fn ring(&self, block: usize, place: RingPlace, rows: RingRows) {
        assert_eq!(block, self.block);
        let before = self.rings.lock().unwrap().insert(place, rows);
        assert!(before.is_none(), "a ring is kept once");
    }
}

impl Kept for InMemory {
    fn ring(&self, place: RingPlace) -> Result<RingRows, TensorFileError> {
        let rings = self.rings.lock().unwrap();
        let RingRows { keys, values } = &rings[&place];
        Ok(RingRows {
            keys: keys.clone(),
            values: values.clone(),
        })
    }
}

/// Runs a case on loaded stages. The seed makes runs differ.
fn run_on(
    chains: &Chains,
    case: &Case,
    g: &Geometry,
    seed: u64,
    observer: &dyn Observer,
) -> (Result<(), ChainError>, Blocks) {
    run_from(chains, case, g, seed, observer, (None, None))
}

/// As [`run_on`], from a state, and with something that takes states.
fn run_from(
    chains: &Chains,
    case: &Case,
    g: &Geometry,
    seed: u64,
    observer: &dyn Observer,
    (start, keeper): (Option<Begin>, Option<Arc<dyn Keeper>>),
) -> (Result<(), ChainError>, Blocks) {
    let cancel = Cancel::default();
    let job = Job {
        tables: Arc::new(case.tables(g).with_passes(case.passes())),
        steps: case.steps,
        blocks: case.blocks,
        start: start.clone(),
        keeper,
        swap: case.swap,
        distances: &Distances { seed, replay: None },
        text: Arc::new(named(&[1, 6, 8], 3.0)),
        guidance: case.guidance(),
        anchor: anchor(g, 9.0),
        cancel: &cancel,
        observer,
    };
    let mut source = Named {
        geometry: g,
        asked: (0..start.map_or(0, |s| s.block)).collect(),
        fails_at: case.source_fails_at,
        ends_at: case.ends_at,
    };
    let (feedback, inbox) = inbox(&case.plan(), case.calls());
    let (sender, receiver) = sync_channel(FINISHED_WAITING);
    let (cancel, takes) = (&cancel, case.takes);
    thread::scope(|scope| {
        let decoder = scope.spawn(move || {
            let mut seen = Vec::new();
            for Finished { block, latents } in receiver.iter().take(takes) {
                feedback.decoded();
                if case.swap == Swap::Fed && block + 1 == g.clip_blocks {
                    feedback.anchor(anchor(g, 11.0));
                }
                if case.cancel_at == Some(block) {
                    cancel.cancel();
                }
                seen.push((block, latents.as_slice::<f32>().to_vec()));
            }
            seen
        });
        let result = chains.run(&job, &mut source, sender, inbox);
        (result, decoder.join().unwrap())
    })
}

/// Computes the blocks in the reference's order on one stage: block by block, step by step, one
/// lane, with the anchor swapped between clips. The passes of a step have a run each.
fn one_by_one(case: &Case, g: &Geometry) -> Blocks {
    let backend = Arc::new(Fake::new(config(LAYERS), g.clone()));
    let tables = case.tables(g);
    let guidance = case.guidance();
    let distances = Distances {
        seed: 1,
        replay: None,
    };
    let model = config(LAYERS);
    let site = Site::alone(backend, &model, case.steps, plain());
    let mut stage = Stage::load(site, &StageSpec::whole(LAYERS, case.steps)).unwrap();
    let begun = (0..case.passes()).map(|_| stage.begin(g, &Cancel::default()).unwrap());
    let mut states: Vec<StageState> = begun.collect();
    let texts = [
        Some(Arc::new(named(&[1, 6, 8], 3.0))),
        guidance.as_ref().map(|g| g.text.clone()),
    ];
    let texts: Vec<Arc<Tensor>> = texts.into_iter().flatten().collect();
    let prefilled =
        |stage: &mut Stage, states: &[StageState], index: usize, input: &AnchorInput| {
            let pass = |(state, text): (&StageState, &Arc<Tensor>)| {
                let (picture, motion) = (input.ref_latents.clone(), input.motion_latents.clone());
                let mut p = tables.prefill(index, picture, motion, Arc::clone(text));
                stage.prefill(state, &mut p, &|| false).unwrap();
                Arc::new(anchor_of(p))
            };
            states.iter().zip(&texts).map(pass).collect::<Vec<_>>()
        };
    let mut held = prefilled(&mut stage, &states, 0, &anchor(g, 9.0));
    let mut out = Blocks::new();
    for block in 0..case.blocks {
        if block == g.clip_blocks && case.swap != Swap::Never {
            let first = Tensor::from_slice(&g.latents_shape(3), &out[0].1);
            let input = match case.swap {
                Swap::FirstLatent => AnchorInput {
                    ref_latents: latents::frames(&first, 0..1),
                    ..anchor(g, 9.0)
                },
                _ => anchor(g, 11.0),
            };
            held = prefilled(&mut stage, &states, 1, &input);
        }
        let BlockInput { mut latents, audio } = input(g, block);
        let mut memory = solver::Memory::default();
        for step in 0..case.steps {
            let item = Item { block, step };
            let heard = iter::once(&audio).chain(guidance.as_ref().map(|g| &g.audio));
            let mut pass = |((state, anchor), audio): ((&mut StageState, &Arc<Anchor>), _)| {
                let lane = Lane {
                    item,
                    relative_dist: distances.of(block, step),
                    latents: &latents,
                    pose_latents: None,
                    audio,
                };
                let mut call = tables.call(&[lane], Arc::clone(anchor));
                stage.denoise(state, &mut call, &|| false).unwrap();
                call.output.unwrap()
            };
            let outputs: Vec<_> = states
                .iter_mut()
                .zip(&held)
                .zip(heard)
                .map(&mut pass)
                .collect();
            let values = |t: &Tensor| t.as_slice::<f32>().to_vec();
            let flow = match &outputs[..] {
                [prompted, other] => {
                    let pairs = values(&prompted.noise_pred)
                        .into_iter()
                        .zip(values(&other.noise_pred));
                    Some(pairs.map(|(c, u)| u + 2.5 * (c - u)).collect())
                }
                [only] if !tables.path().is_in_graph() => Some(values(&only.noise_pred)),
                _ => None,
            };
            latents = match flow {
                Some(flow) => {
                    let next = tables
                        .path()
                        .advance(step, &values(&latents), &flow, &mut memory);
                    Tensor::from_slice(latents.shape(), &next)
                }
                None => outputs.into_iter().next().unwrap().next_latents,
            };
        }
        out.push((block, latents.as_slice::<f32>().to_vec()));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_placement_computes_what_one_block_after_the_other_does(
        blocks in 1usize..8, steps in 1usize..5, l in 1usize..5, s in 1usize..5,
        lanes in 0usize..5, clip in 1usize..4, swap in 0usize..3,
        ring in 1usize..4, solver in 0usize..3, guided in prop::bool::ANY,
    ) {
        let g = geometry(12 * clip).with_ring(ring.min(clip)).unwrap();
        let swap = [Swap::Never, Swap::FirstLatent, Swap::Fed][swap];
        let stages = Stages::Grid { layers: l, steps: s.min(steps) };
        let lanes = if lanes == 0 { Lanes::Auto } else { Lanes::AtMost(lanes.min(steps)) };
        let solver = [Solver::Euler, Solver::UniPc, Solver::DpmPlusPlus][solver];
        let sampling = Sampling { solver, ..Sampling::default() };
        let case = Case { stages, lanes, sampling, guided, ..Case::new(blocks, steps, swap) };
        let (result, finished, _) = execute(&case, &g);
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(finished, one_by_one(&case, &g));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn a_video_may_end_where_nobody_knew(
        blocks in 1usize..8, steps in 1usize..5, l in 1usize..5, s in 1usize..5,
        lanes in 1usize..5, clip in 1usize..4, swap in 0usize..2, guided in prop::bool::ANY,
    ) {
        let g = geometry(12 * clip);
        let swap = [Swap::Never, Swap::FirstLatent][swap];
        let stages = Stages::Grid { layers: l, steps: s.min(steps) };
        let lanes = Lanes::AtMost(lanes.min(steps));
        let known = Case { stages, lanes, guided, ..Case::new(blocks, steps, swap) };
        let want = one_by_one(&known, &g);
        let open = Case { ends_at: Some(blocks), blocks: 1 << 40, ..known };
        let (result, finished, _) = execute(&open, &g);
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(finished, want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_run_from_a_kept_state_makes_the_blocks_of_the_whole_run(
        clips in 2usize..5, at in 1usize..5, steps in 1usize..5, l in 1usize..5, s in 1usize..5,
        lanes in 1usize..5, clip in 1usize..4, swap in 0usize..3, ring in 1usize..4,
        guided in prop::bool::ANY, residency in residency(), more in 0usize..3,
    ) {
        let g = geometry(12 * clip).with_ring(ring.min(clip)).unwrap();
        let swap = [Swap::Never, Swap::FirstLatent, Swap::Fed][swap];
        let stages = Stages::Grid { layers: l, steps: s.min(steps) };
        let (lanes, budget) = (Lanes::AtMost(lanes.min(steps)), Some(u64::MAX));
        let blocks = clips * clip + more.min(clip - 1);
        let plain = Case::new(blocks, steps, swap);
        let case = Case { stages, lanes, guided, residency, budget, ..plain };
        let backend = Arc::new(Fake::new(config(LAYERS), g.clone()));
        let (devices, _memories) = devices(&case, &backend);
        let chains = load(&case, &devices).unwrap();
        let block = at.min(clips) * clip;
        let kept = Arc::new(InMemory { block, rings: Mutex::default() });
        let keeper: Arc<dyn Keeper> = Arc::<InMemory>::clone(&kept);
        let (result, whole) = run_from(&chains, &case, &g, 1, &Silent, (None, Some(keeper)));
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(kept.rings.lock().unwrap().len(), LAYERS * case.calls());
        prop_assert_eq!(&whole, &one_by_one(&case, &g));
        let first = Tensor::from_slice(&g.latents_shape(3), &whole[0].1);
        let second_anchor = match swap {
            _ if blocks <= clip => None,
            Swap::Never => None,
            Swap::FirstLatent => Some(AnchorInput {
                ref_latents: latents::frames(&first, 0..1),
                ..anchor(&g, 9.0)
            }),
            Swap::Fed => Some(anchor(&g, 11.0)),
        };
        // The state holds everything: other stages go on from it.
        let chains = load(&case, &devices).unwrap();
        let start = Begin { block, rings: kept, second_anchor };
        let (result, rest) = run_from(&chains, &case, &g, 1, &Silent, (Some(start), None));
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(rest, &whole[block..]);
    }
}

#[test]
fn guidance_and_solvers_change_every_block() {
    let g = geometry(24);
    let plain = Case::new(3, 4, Swap::FirstLatent);
    let guided = Case {
        guided: true,
        ..Case::new(3, 4, Swap::FirstLatent)
    };
    let solved = Case {
        sampling: Sampling {
            solver: Solver::UniPc,
            ..Sampling::default()
        },
        ..Case::new(3, 4, Swap::FirstLatent)
    };
    let [plain, guided, solved] = [plain, guided, solved].map(|case| execute(&case, &g).1);
    for ((a, b), c) in plain.iter().zip(&guided).zip(&solved) {
        assert!(a.0 == b.0 && a.1 != b.1 && a.1 != c.1, "block {}", a.0);
    }
}

/// Some or all layers stream, through some slots, with rings here or there.
fn residency() -> impl Strategy<Value = Residency> {
    (0usize..5, 2usize..4, prop::bool::ANY).prop_map(|(resident_layers, slots, on_host)| {
        Residency {
            resident_layers,
            rings: if on_host {
                Rings::OnHost
            } else {
                Rings::OnDevice
            },
            slots,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn devices_with_memory_of_their_own_compute_the_same_resident_or_streamed(
        blocks in 1usize..10, steps in 1usize..5, l in 1usize..5, s in 1usize..5,
        lanes in 1usize..5, clip in 1usize..4, swap in 0usize..3,
        ring in 1usize..4, residency in residency(),
    ) {
        let g = geometry(12 * clip).with_ring(ring.min(clip)).unwrap();
        let swap = [Swap::Never, Swap::FirstLatent, Swap::Fed][swap];
        let stages = Stages::Grid { layers: l, steps: s.min(steps) };
        let lanes = Lanes::AtMost(lanes.min(steps));
        let budget = Some(u64::MAX);
        let case = Case { stages, lanes, residency, budget, ..Case::new(blocks, steps, swap) };
        let (result, finished, _) = execute(&case, &g);
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(finished, one_by_one(&case, &g));
    }
}

#[test]
fn chains_that_share_a_device_share_its_condition_and_each_device_has_it_once() {
    let g = geometry(48);
    let stages: Stages = "0:0-3/0-0;1:0-3/1-1;1:0-3/2-3".parse().unwrap();
    let case = Case {
        stages,
        ..Case::new(4, 4, Swap::Never)
    };
    let memories = [0, 1].map(|i| HostMemory::new(format!("cpu:{i}"), u64::MAX));
    let fake = Fake::new(config(LAYERS), g.clone());
    let fakes = memories.clone().map(|m| fake.on(m));
    let devices = Devices::each(fakes.map(|b| Arc::new(b) as Arc<dyn Backend>).to_vec());
    let watch = Watch {
        memories: memories.to_vec(),
        seen: Mutex::default(),
    };
    let (result, _) = execute_watched(&case, &g, &devices, &watch);
    result.unwrap();
    // Keys and values of sink and text, f32; the fake's text is as long as its sink.
    let layer = 4 * g.heads * g.sink_tokens * g.head_dim * size_of::<f32>();
    let whole = (LAYERS * layer) as u64;
    assert_eq!(*watch.seen.lock().unwrap(), [whole, whole]);
    let prefills = fake.log.lock().unwrap();
    let prefills = prefills.iter().filter(|c| *c == "dit_sink_layer.00");
    assert_eq!(prefills.count(), 1, "computed once, copied to the other");
}

/// Keeps the condition on every device when the first block is clean.
struct Watch {
    memories: Vec<Arc<HostMemory>>,
    seen: Mutex<Vec<u64>>,
}

impl Observer for Watch {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Denoised { block: 0, .. }) {
            let condition =
                |m: &Arc<HostMemory>| m.ledger().counts().of(engines::memory::Class::Condition);
            *self.seen.lock().unwrap() = self.memories.iter().map(condition).collect();
        }
    }
}

#[test]
fn a_budget_is_met_to_the_byte() {
    let g = geometry(48);
    for (resident_layers, rings) in [
        (usize::MAX, Rings::OnDevice),
        (0, Rings::OnDevice),
        (2, Rings::OnHost),
    ] {
        let residency = Residency {
            resident_layers,
            rings,
            slots: 2,
        };
        let run = |budget| {
            let case = Case {
                residency,
                lanes: Lanes::AtMost(4),
                budget: Some(budget),
                ..Case::new(9, 4, Swap::Never)
            };
            let memory = HostMemory::new("cpu:0", budget);
            let fake = Fake::new(config(LAYERS), g.clone()).on(memory.clone());
            let (result, _) = execute_on(&case, &g, &Devices::each(vec![Arc::new(fake)]));
            (result, memory.ledger().counts().peak)
        };
        let (result, peak) = run(u64::MAX);
        result.unwrap();
        assert_eq!(run(peak).1, peak);
        run(peak).0.unwrap();
        let error = run(peak - 1).0.unwrap_err();
        assert!(
            matches!(&error, ChainError::Stage { source, .. }
            if matches!(
                **source,
                EngineError::DeviceMemory(MemoryError::Budget { budget, .. })
                    if budget == peak - 1
            )),
            "{error}"
        );
        assert_eq!(error.kind(), engines::error_kind::ErrorKind::Resources);
    }
}

#[test]
fn a_shorter_ring_computes_another_video_the_same_on_one_device_and_on_four() {
    let full = geometry(48);
    let short = full.clone().with_ring(2).unwrap();
    let case = |stages: &str| Case {
        stages: stages.parse().unwrap(),
        lanes: Lanes::AtMost(4),
        budget: Some(u64::MAX),
        ..Case::new(12, 4, Swap::FirstLatent)
    };
    let made = |stages: &str, g: &Geometry| {
        let (result, finished, _) = execute(&case(stages), g);
        result.unwrap();
        finished
    };
    let one = made("1", &short);
    assert_eq!(one, made("4x1", &short));
    // Until the ring is full there is nothing that it lacks.
    let own = made("1", &full);
    assert_eq!(one[..2], own[..2]);
    assert!(one[2..].iter().zip(&own[2..]).all(|(a, b)| a != b));
}

#[test]
fn full_waves_run_each_layer_once_a_wave_and_the_sink_twice() {
    let g = geometry(48);
    let case = Case {
        lanes: Lanes::AtMost(4),
        ..Case::new(8, 4, Swap::FirstLatent)
    };
    let (result, finished, log) = execute(&case, &g);
    result.unwrap();
    let runs = |name: &str| log.iter().filter(|c| c.starts_with(name)).count();
    assert_eq!(finished.len(), 8);
    // 11 waves, of which waves 4, 5 and 6 are split where the anchor changes.
    assert_eq!((runs("dit_layer.00"), runs("dit_head")), (14, 14));
    assert_eq!((runs("dit_sink_embed"), runs("dit_sink_layer.03")), (2, 2));
}

#[test]
fn one_clip_needs_one_prefill() {
    let g = geometry(48);
    for swap in [Swap::FirstLatent, Swap::Fed, Swap::Never] {
        let (result, _, log) = execute(&Case::new(4, 4, swap), &g);
        result.unwrap();
        assert_eq!(
            log.iter().filter(|c| *c == "dit_sink_embed").count(),
            1,
            "{swap:?}"
        );
    }
}

#[test]
fn the_first_error_comes_back_and_earlier_blocks_have_left() {
    let g = geometry(48);
    for stages in ["1", "4x1", "2x2", "steps=4"] {
        for layer in [0, 3] {
            let fault = Fault::Fails { layer, run: 60 };
            let case = Case {
                fault,
                stages: stages.parse().unwrap(),
                lanes: Lanes::AtMost(1),
                ..Case::new(50, 4, Swap::FirstLatent)
            };
            let (result, finished, _) = execute(&case, &g);
            let error = result.unwrap_err();
            assert!(
                matches!(&error, ChainError::Stage { source, .. }
                    if matches!(**source, EngineError::Memory { .. })),
                "{error}"
            );
            assert_eq!(error.kind(), engines::error_kind::ErrorKind::Resources);
            assert!(
                !finished.is_empty() && finished.len() < 50,
                "{stages}: {}",
                finished.len()
            );
            assert!(finished.iter().map(|f| f.0).eq(0..finished.len()));
        }
    }
}

#[test]
fn a_source_that_fails_ends_the_run() {
    let g = geometry(24);
    let case = Case {
        source_fails_at: Some(3),
        ..Case::new(9, 4, Swap::Never)
    };
    assert!(matches!(execute(&case, &g).0, Err(ChainError::Engine(_))));
}

#[test]
fn a_decoder_that_leaves_ends_the_run() {
    let g = geometry(24);
    for swap in [Swap::Never, Swap::FirstLatent, Swap::Fed] {
        for takes in [0, 1, 5] {
            let case = Case {
                takes,
                stages: "2x2".parse().unwrap(),
                ..Case::new(200, 4, swap)
            };
            let (result, finished, _) = execute(&case, &g);
            assert!(
                matches!(result, Err(ChainError::Stopped)),
                "{swap:?} {takes}"
            );
            assert_eq!(finished.len(), takes);
        }
    }
}

#[test]
fn cancelling_ends_the_run_soon() {
    let g = geometry(24);
    for stages in ["1", "2x2", "4x4"] {
        let case = Case {
            cancel_at: Some(4),
            stages: stages.parse().unwrap(),
            ..Case::new(500, 4, Swap::FirstLatent)
        };
        let (result, finished, _) = execute(&case, &g);
        assert!(
            matches!(result, Err(ChainError::Cancelled)),
            "{stages}: {result:?}"
        );
        assert!(
            (5..20).contains(&finished.len()),
            "{stages}: {}",
            finished.len()
        );
    }
}

#[test]
#[should_panic(expected = "a stage's thread panicked")]
fn a_panic_in_a_stage_is_not_swallowed_and_nothing_hangs() {
    let g = geometry(24);
    let fault = Fault::Panics { layer: 2, run: 30 };
    let case = Case {
        fault,
        stages: "4x1".parse().unwrap(),
        ..Case::new(50, 4, Swap::Never)
    };
    drop(execute(&case, &g));
}

#[test]
fn nothing_is_prepared_long_before_it_is_needed() {
    let g = geometry(24);
    let (result, finished, log) = execute(
        &Case {
            takes: 1,
            ..Case::new(1000, 4, Swap::Never)
        },
        &g,
    );
    assert!(matches!(result, Err(ChainError::Stopped)) && finished.len() == 1);
    let calls = log.iter().filter(|c| *c == "dit_embed").count();
    assert!(calls <= 16, "{calls} waves for one block taken");
}

/// How often each component was loaded.
fn loads(fake: &Fake) -> BTreeMap<String, usize> {
    fake.loads.lock().unwrap().clone()
}

#[test]
fn a_second_run_loads_no_layer_again_and_computes_the_same() {
    let g = geometry(48);
    for residency in [
        Residency::default(),
        Residency {
            resident_layers: 1,
            rings: Rings::OnHost,
            slots: 2,
        },
    ] {
        for budget in [None, Some(u64::MAX)] {
            let case = Case {
                stages: "2x2".parse().unwrap(),
                residency,
                budget,
                ..Case::new(9, 4, Swap::FirstLatent)
            };
            let backend = Arc::new(Fake::new(config(LAYERS), g.clone()));
            let (devices, memories) = devices(&case, &backend);
            let chains = load(&case, &devices).unwrap();
            let loaded = loads(&backend);
            let held = |m: &Arc<HostMemory>| m.ledger().counts().total();
            let idle: Vec<u64> = memories.iter().map(held).collect();
            let first = run_on(&chains, &case, &g, 1, &Silent).1;
            let once = loads(&backend);
            let second = run_on(&chains, &case, &g, 1, &Silent).1;
            assert_eq!(first, one_by_one(&case, &g));
            assert_eq!(second, first, "{residency:?}");
            let twice = loads(&backend);
            for (name, count) in &twice {
                let sink = name.starts_with("dit_sink");
                let more = if sink { once[name] } else { 0 };
                assert_eq!(*count, once[name] + more, "{name}");
                assert!(sink || loaded[name] == *count, "{name}: loaded by a run");
            }
            let slots = |m: &Arc<HostMemory>| m.ledger().counts().of(engines::memory::Class::Slots);
            let slots: Vec<u64> = memories.iter().map(slots).collect();
            for (m, (idle, slots)) in memories.iter().zip(idle.iter().zip(slots)) {
                assert_eq!(held(m), idle + slots, "rings and conditions are freed");
            }
        }
    }
}

#[test]
fn runs_at_a_time_share_the_stages_and_compute_what_each_does_alone() {
    let g = geometry(48);
    for (stages, rings) in [
        ("1", Rings::OnDevice),
        ("4x1", Rings::OnDevice),
        ("2x2", Rings::OnHost),
    ] {
        let case = |blocks, swap| Case {
            stages: stages.parse().unwrap(),
            residency: Residency {
                resident_layers: 1,
                rings,
                slots: 2,
            },
            budget: Some(u64::MAX),
            ..Case::new(blocks, 4, swap)
        };
        let cases = [
            (case(13, Swap::FirstLatent), &g),
            (case(10, Swap::Fed), &g),
            (case(9, Swap::Never), &g),
        ];
        let backend = Arc::new(Fake::new(config(LAYERS), g.clone()));
        let (devices, _) = devices(&cases[0].0, &backend);
        let chains = load(&cases[0].0, &devices).unwrap();
        let made: Vec<Blocks> = thread::scope(|scope| {
            let run = |(case, g): &'_ (Case, &Geometry)| {
                let (result, blocks) = run_on(&chains, case, g, 1, &Silent);
                result.unwrap();
                blocks
            };
            let running: Vec<_> = cases.iter().map(|c| scope.spawn(move || run(c))).collect();
            running.into_iter().map(|r| r.join().unwrap()).collect()
        });
        for ((case, g), made) in cases.iter().zip(made) {
            assert_eq!(made, one_by_one(case, g), "{stages}");
        }
    }
}

#[test]
fn a_run_that_fails_or_is_cancelled_leaves_the_stages_ready() {
    let g = geometry(24);
    let streamed = Residency {
        resident_layers: 0,
        rings: Rings::OnHost,
        slots: 2,
    };
    for stages in ["1", "2x2"] {
        for residency in [Residency::default(), streamed] {
            let case = Case {
                stages: stages.parse().unwrap(),
                residency,
                budget: Some(u64::MAX),
                ..Case::new(9, 4, Swap::FirstLatent)
            };
            let backend = Fake::new(config(LAYERS), g.clone());
            backend.fails_once.store(40, Ordering::SeqCst);
            let backend = Arc::new(backend);
            let (devices, memories) = devices(&case, &backend);
            let chains = load(&case, &devices).unwrap();
            let (failed, _) = run_on(&chains, &case, &g, 1, &Silent);
            assert!(
                matches!(failed, Err(ChainError::Stage { .. })),
                "{failed:?}"
            );
            let cancelled = Case {
                cancel_at: Some(2),
                stages: case.stages.clone(),
                ..Case::new(500, 4, Swap::Never)
            };
            let (stopped, _) = run_on(&chains, &cancelled, &g, 1, &Silent);
            assert!(matches!(stopped, Err(ChainError::Cancelled)), "{stopped:?}");
            let (result, made) = run_on(&chains, &case, &g, 1, &Silent);
            result.unwrap();
            assert_eq!(made, one_by_one(&case, &g), "{stages}");
            drop(chains);
            assert!(memories.iter().all(|m| m.ledger().counts().total() == 0));
        }
    }
}

#[test]
fn the_first_anchor_is_freed_with_the_last_block_that_needs_it() {
    let g = geometry(48);
    let case = Case {
        budget: Some(u64::MAX),
        ..Case::new(12, 4, Swap::FirstLatent)
    };
    let backend = Arc::new(Fake::new(config(LAYERS), g.clone()));
    let (devices, memories) = devices(&case, &backend);
    let watch = WatchEach {
        memory: Arc::clone(&memories[0]),
        seen: Mutex::default(),
    };
    let (result, _) = execute_watched(&case, &g, &devices, &watch);
    result.unwrap();
    let layer = 4 * g.heads * g.sink_tokens * g.head_dim * size_of::<f32>();
    let whole = (LAYERS * layer) as u64;
    let seen = watch.seen.lock().unwrap();
    // Both anchors are held while blocks of both clips are under way; afterwards only the second.
    assert_eq!(seen[2], 2 * whole, "block 2");
    assert!(seen[8..].iter().all(|c| *c == whole), "{seen:?}");
}

/// Keeps the condition on one device after each clean block.
struct WatchEach {
    memory: Arc<HostMemory>,
    seen: Mutex<Vec<u64>>,
}

impl Observer for WatchEach {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Denoised { .. }) {
            let counts = self.memory.ledger().counts();
            let condition = counts.of(engines::memory::Class::Condition);
            self.seen.lock().unwrap().push(condition);
        }
    }
}

#[test]
fn the_failing_stage_is_named_by_its_device_and_layers() {
    let g = geometry(24);
    let case = Case {
        stages: "2x1".parse().unwrap(),
        fault: Fault::Fails { layer: 3, run: 0 },
        ..Case::new(1, 1, Swap::Never)
    };
    for (kind, wanted) in [
        (
            crate::placement::plan::DeviceKind::Cpu,
            "stage cpu:1 layers 2-3: ",
        ),
        (
            crate::placement::plan::DeviceKind::Cuda,
            "stage cuda:1 layers 2-3: ",
        ),
    ] {
        let mut backend = Fake::new(config(LAYERS), g.clone());
        backend.fault = case.fault;
        let devices = Devices::one(Arc::new(backend));
        let plan = case.plan().on(kind);
        let chains = Chains::load(&plan, &devices, &config(LAYERS), &plain(), &Silent).unwrap();
        let error = run_on(&chains, &case, &g, 1, &Silent)
            .0
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
}
