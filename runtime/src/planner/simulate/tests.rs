//! Compares the simulation with the executor, on fake graphs that sleep, on virtual devices, for
//! several placements.
use super::*;
use crate::chain::call::{AnchorInput, BlockAudio, Tables};
use crate::chain::error::ChainError;
use crate::chain::events::{Event as Heard, Observer, Silent};
use crate::chain::executor::{Chains, inbox};
use crate::chain::job::{Finished, Job, Swap};
use crate::chain::source::{BlockInput, Source, everywhere};
use crate::fixtures::fake::Fake;
use crate::fixtures::sizes::{config, small_geometry};
use crate::inputs::replay::Distances;
use crate::numbers::geometry::Geometry;
use crate::placement::devices::Devices;
use crate::placement::plan::{Lanes, Latency, Stages};
use engines::backend::plain;
use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State as Kept};
use engines::cancel::Cancel;
use engines::contract::{Contract, DType, Port};
use engines::memory::Memory;
use engines::recipe::Recipe;
use engines::tensor::{Tensor, View};
use engines::weights::{BoundWeights, HostWeights};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const LAYERS: usize = 4;
const STEPS: usize = 4;

/// Milliseconds of the pieces of work. No two are equal, so that few things happen at one time.
#[derive(Clone, Copy)]
struct Known {
    layer: f64,
    /// For each further lane.
    lane: f64,
    sink_layer: f64,
    /// Embedding and head, each.
    rim: f64,
    decode: f64,
    prime: f64,
    prepare: f64,
}

const KNOWN: Known = Known {
    layer: 31.0,
    lane: 22.0,
    sink_layer: 27.0,
    rim: 6.0,
    decode: 83.0,
    prime: 140.0,
    prepare: 11.0,
};

fn pause(ms: f64) {
    sleep(Duration::from_secs_f64(ms / 1e3));
}

/// Seconds that each graph should take, and took. A busy machine wakes sleepers late.
type Taken = Arc<Mutex<Vec<(f64, f64)>>>;

/// The fake backend, its sessions asleep as long as [`Known`] says.
struct Slow {
    fake: Fake,
    known: Known,
    taken: Taken,
}

struct SlowSession {
    inner: Box<dyn Session>,
    known: Known,
    taken: Taken,
}

impl Backend for Slow {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.fake.memory()
    }

    fn recipe(&self) -> Recipe {
        self.fake.recipe()
    }

    fn load_unbound(&self, c: &str, o: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        self.load(c, o)
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.fake.weights(component)
    }

    fn load(&self, c: &str, o: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(SlowSession {
            inner: self.fake.load(c, o)?,
            known: self.known,
            taken: self.taken.clone(),
        }))
    }
}

impl Session for SlowSession {
    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.inner.bind(weights);
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: Kept<'_>,
    ) -> Result<Outputs, EngineError> {
        let (start, lanes) = (Instant::now(), inputs[0].1.shape()[0] as f64);
        let out = self.inner.run(inputs, state);
        let ms = match self.contract().name {
            "dit_layer" | "dit_layer_audio" => self.known.layer + self.known.lane * (lanes - 1.0),
            "dit_sink_layer" => self.known.sink_layer,
            _ => self.known.rim,
        };
        // What the fake itself computes is part of the time.
        sleep(Duration::from_secs_f64(ms / 1e3).saturating_sub(start.elapsed()));
        let took = start.elapsed().as_secs_f64();
        self.taken.lock().unwrap().push((ms / 1e3, took));
        out
    }
}

struct Slept<'a>(&'a Geometry, Known);

impl Source for Slept<'_> {
    fn block(&mut self, _block: usize) -> Result<Option<BlockInput>, ChainError> {
        pause(self.1.prepare);
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        Ok(Some(BlockInput {
            latents: zeros(&self.0.latents_shape(3)),
            audio: BlockAudio {
                global: zeros(&[1, 1, 3, 8]),
                local: zeros(&[1, 1, 3, 5, 8]),
                mask: everywhere(self.0),
            },
        }))
    }
}

/// When every item came back.
struct Watch(Instant, Mutex<Vec<(f64, (usize, usize))>>);

impl Observer for Watch {
    fn event(&self, event: &Heard<'_>) {
        if let Heard::Stepped { item, .. } = event {
            let at = self.0.elapsed().as_secs_f64();
            self.1.lock().unwrap().push((at, (item.block, item.step)));
        }
    }
}

struct Measured {
    items: Vec<(f64, (usize, usize))>,
    decoded: Vec<f64>,
    /// How much longer than told the graphs took, all together.
    late: f64,
    /// How much more than that one in ten was late.
    unevenly: f64,
}

fn execute(plan: &Plan, blocks: usize, known: Known) -> Measured {
    let g = small_geometry(48);
    let taken = Taken::default();
    let backend = Slow {
        fake: Fake::new(config(LAYERS), g.clone()),
        known,
        taken: taken.clone(),
    };
    let devices = Devices::one(Arc::new(backend));
    let chains = Chains::load(plan, &devices, &config(LAYERS), &plain(), &Silent).unwrap();
    let tables = Arc::new(Tables::new(g.clone(), STEPS).unwrap());
    let zeros = |frames| Tensor::zeros(DType::F32, &g.latents_shape(frames));
    let watch = Watch(Instant::now(), Mutex::default());
    let job = Job {
        tables,
        steps: STEPS,
        blocks,
        start: None,
        keeper: None,
        swap: Swap::FirstLatent,
        distances: &Distances {
            seed: 1,
            replay: None,
        },
        text: Arc::new(Tensor::zeros(DType::F32, &[1, 6, 8])),
        guidance: None,
        anchor: AnchorInput {
            ref_latents: zeros(1),
            motion_latents: zeros(19),
        },
        cancel: &Cancel::default(),
        observer: &watch,
    };
    let (feedback, inbox) = inbox(plan, STEPS);
    let (sender, receiver) = sync_channel(FINISHED_WAITING);
    let decoded = thread::scope(|scope| {
        let start = watch.0;
        let decoder = scope.spawn(move || {
            pause(known.prime);
            let all = receiver.iter().map(|Finished { .. }| {
                pause(known.decode);
                feedback.decoded();
                start.elapsed().as_secs_f64()
            });
            let all: Vec<f64> = all.collect();
            drop(feedback);
            all
        });
        chains
            .run(&job, &mut Slept(&g, known), sender, inbox)
            .unwrap();
        decoder.join().unwrap()
    });
    let taken = taken.lock().unwrap();
    let (told, took) = taken.iter().fold((0.0, 0.0), |a, t| (a.0 + t.0, a.1 + t.1));
    // Of layers only: what a moment makes of embedding and head says nothing.
    let layers = taken.iter().filter(|t| t.0 * 1e3 > 2.0 * known.rim);
    let mut each: Vec<f64> = layers.map(|t| t.1 / t.0).collect();
    each.sort_by(f64::total_cmp);
    Measured {
        late: took / told,
        unevenly: (each[each.len() * 9 / 10] - took / told).max(0.0),
        items: watch.1.into_inner().unwrap(),
        decoded,
    }
}

impl Known {
    fn scaled(self, by: f64) -> Self {
        Self {
            layer: self.layer * by,
            lane: self.lane * by,
            sink_layer: self.sink_layer * by,
            rim: self.rim * by,
            decode: self.decode * by,
            prime: self.prime * by,
            prepare: self.prepare * by,
        }
    }
}

/// The same times for the simulation.
struct Injected<'a>(&'a Plan, Known);

impl Injected<'_> {
    /// A stage whose layers take `layer` milliseconds each; `ends` are the times before layer 0 and
    /// after the last.
    fn stage(&self, stage: usize, layer: f64, ends: [f64; 2]) -> Spent {
        let mut stages = self.0.chains.iter().flat_map(|c| &c.stages);
        let layers = stages.nth(stage).unwrap().layers.clone();
        let first = if layers.start == 0 { ends[0] } else { 0.0 };
        let last = if layers.end == LAYERS { ends[1] } else { 0.0 };
        Spent::computing((layers.len() as f64 * layer + first + last) / 1e3)
    }
}

impl Costs for Injected<'_> {
    fn call(&self, stage: usize, lanes: usize) -> Spent {
        let layer = self.1.layer + self.1.lane * (lanes as f64 - 1.0);
        self.stage(stage, layer, [self.1.rim; 2])
    }

    fn prefill(&self, stage: usize) -> Spent {
        self.stage(stage, self.1.sink_layer, [self.1.rim, 0.0])
    }

    fn load(&self, _stage: usize) -> f64 {
        0.0
    }

    fn prepare(&self) -> f64 {
        self.1.prepare / 1e3
    }

    fn prime(&self) -> f64 {
        self.1.prime / 1e3
    }

    fn decode(&self) -> f64 {
        self.1.decode / 1e3
    }
}

fn simulated(plan: &Plan, blocks: usize, known: Known) -> Timeline {
    let stages = plan.chains.iter().map(|c| c.stages.len()).sum();
    simulate(&Schedule {
        plan,
        steps: STEPS,
        blocks,
        passes: 1,
        swap_at: Some(4),
        devices: (0..stages).collect(),
        decoder: stages,
        decode_pieces: 1,
        costs: &Injected(plan, known),
    })
}

/// What differs by more than timers do; `None` when nothing does.
///
/// The simulation gets the mean delay of the graphs. Stages that wait for each other follow the
/// latest one. So a run on a busy machine takes longer by up to the spread of the delays, and
/// threads wait for a core. The test allows that much, but never so much that work which should
/// overlap could take turns: a decoder that waits for its turn
fn difference(real: &Measured, sim: &Timeline) -> Option<String> {
    let busy = (2.0 * real.unevenly + 0.5 * (real.late - 1.0)).min(0.09);
    let off = |what: &str, real: f64, sim: f64| {
        let share = (real / sim - 1.0).abs();
        (share > 0.03 + busy)
            .then(|| format!("{what}: {real:.3} s ran, {sim:.3} s simulated, {busy:.3} allowed"))
    };
    let last = |d: &[f64]| d.last().copied().unwrap();
    let at: BTreeMap<(usize, usize), f64> = sim
        .completions
        .iter()
        .flat_map(|c| c.items.iter().map(|i| (*i, c.at)))
        .collect();
    assert_eq!(at.len(), real.items.len());
    // What comes back within this time may come in any order.
    let near = 0.02 + 0.25 * busy;
    let swapped = real
        .items
        .windows(2)
        .find(|w| at[&w[0].1] > at[&w[1].1] + near);
    swapped
        .map(|w| format!("{:?} came before {:?}", w[0].1, w[1].1))
        .or_else(|| off("all", last(&real.decoded), last(&sim.decoded)))
        .or_else(|| off("first block", real.decoded[0], sim.decoded[0]))
}

#[test]
fn the_executor_takes_as_long_as_simulated_and_in_the_same_order() {
    let slow_decoder = Known {
        decode: 260.0,
        ..KNOWN
    };
    let (normal, low) = (Latency::Normal, Latency::Low);
    let cases = [
        ("1", 1, 7, KNOWN, normal),
        ("1", 4, 9, KNOWN, normal),
        ("4x1", 1, 10, KNOWN, normal),
        ("4x1", 2, 10, KNOWN, normal),
        ("1x4", 1, 12, KNOWN, normal),
        (
            "0:0-1/0-1;1:2-3/0-1;2:0-0/2-3;3:1-3/2-3",
            1,
            10,
            KNOWN,
            normal,
        ),
        ("2x2", 2, 10, slow_decoder, normal),
        ("0:0-0/0-3;1:1-3/0-3", 1, 8, KNOWN, normal),
        ("4x1", 1, 10, KNOWN, low),
        ("2x2", 2, 10, slow_decoder, low),
    ];
    for half in cases.chunks(4) {
        thread::scope(|scope| {
            for &(stages, lanes, blocks, known, latency) in half {
                scope.spawn(move || {
                    let stages_read: Stages = stages.parse().unwrap();
                    let plan =
                        Plan::new(&stages_read, Lanes::AtMost(lanes), LAYERS, STEPS).unwrap();
                    let plan = plan.with_latency(latency);
                    // The simulation gets the times that the graphs really took. On an idle machine
                    // these are the wanted times. A run in which other work came between proves
                    // nothing, and the test makes another.
                    let tries = (0..8).map(|_| {
                        let real = execute(&plan, blocks, known);
                        difference(&real, &simulated(&plan, blocks, known.scaled(real.late)))
                    });
                    let mut all = Vec::new();
                    for found in tries {
                        match found {
                            None => return,
                            Some(what) => all.push(what),
                        }
                    }
                    panic!("{stages}, {lanes} lanes: {}", all.join("; "));
                });
            }
        });
    }
}

#[test]
fn a_device_that_decodes_as_well_does_one_thing_at_a_time() {
    let plan = Plan::new(&Stages::default(), Lanes::AtMost(1), LAYERS, STEPS).unwrap();
    let schedule = |decoder| {
        simulate(&Schedule {
            plan: &plan,
            steps: STEPS,
            blocks: 20,
            passes: 1,
            swap_at: None,
            devices: vec![0],
            decoder,
            decode_pieces: 3,
            costs: &Injected(&plan, KNOWN),
        })
    };
    let (apart, together) = (schedule(1), schedule(0));
    let call = 4.0 * KNOWN.layer + 2.0 * KNOWN.rim;
    let before = KNOWN.prime + 4.0 * KNOWN.sink_layer + KNOWN.rim;
    let work = 20.0 * (4.0 * call + KNOWN.decode) + before;
    assert!(
        (together.seconds - work / 1e3).abs() < 0.05,
        "{}",
        together.seconds
    );
    assert!(apart.seconds < together.seconds - 19.0 * KNOWN.decode / 1e3);
    let mut spans: Vec<&Span> = together.spans.iter().collect();
    spans.sort_by(|a, b| a.start.total_cmp(&b.start));
    assert!(spans.windows(2).all(|w| w[0].end <= w[1].start + 1e-6));
    let busy = together.utilisation(0, 1.0, 5.0);
    assert!((busy.compute - 1.0).abs() < 1e-3, "{busy:?}");
}

#[test]
fn a_picture_has_a_row_for_each_device_and_a_piece_for_each_span() {
    let plan = Plan::new(&"2x1".parse().unwrap(), Lanes::AtMost(2), LAYERS, STEPS).unwrap();
    let mut timeline = simulated(&plan, 5, KNOWN);
    timeline.preceded_by(&[("text", 2, 0.5)]);
    let names = ["cuda:0", "cuda:1", "cuda<2>"].map(str::to_owned);
    let drawn = svg::draw(&timeline, "a & b", &names);
    assert_eq!(drawn.matches("<g><title>").count(), timeline.spans.len());
    assert!(drawn.contains("cuda&lt;2&gt;") && drawn.contains("a &amp; b"));
    assert!(
        drawn.contains("block 2 step 0, block 1 step 1"),
        "lanes are told"
    );
    assert!((timeline.decoded[0] - 0.5 - simulated(&plan, 5, KNOWN).decoded[0]).abs() < 1e-9);
}
