//! The executor without tensors: the same order of work ([`crate::placement::wavefront`]), threads
//! and channels, with times in place of graphs. It simulates events: nothing sleeps, and no clock
//! is read. So a minute of video on any machine takes some milliseconds.

pub(crate) mod svg;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::placement::plan::Plan;
use crate::placement::queues::FINISHED_WAITING;
use crate::placement::wavefront::{Grid, Group, Item, Wavefront};

/// Seconds of a piece of work, and of its parts, which may overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spent {
    /// From its start to its end.
    pub seconds: f64,
    /// Arithmetic.
    pub compute: f64,
    /// Host to device and back.
    pub up: f64,
    /// Copies from the device to the host.
    pub down: f64,
    /// From the device before.
    pub peer: f64,
}

impl Spent {
    /// Makes a piece of work that only computes.
    pub fn computing(seconds: f64) -> Self {
        Self {
            seconds,
            compute: seconds,
            ..Self::default()
        }
    }
}

/// Costs of each piece of work in seconds. Stages are counted over all chains.
pub(crate) trait Costs {
    fn call(&self, stage: usize, lanes: usize) -> Spent;
    fn prefill(&self, stage: usize) -> Spent;
    /// Returns the time before a stage takes its first packet.
    fn load(&self, stage: usize) -> f64;
    /// Returns the time for noise and audio of a block.
    fn prepare(&self) -> f64;
    /// Returns the time for the decoder's latents before the first block.
    fn prime(&self) -> f64;
    /// One block.
    fn decode(&self) -> f64;
}

/// The run to simulate.
pub(crate) struct Schedule<'a> {
    /// Stages and lanes.
    pub plan: &'a Plan,
    /// Denoising steps.
    pub steps: usize,
    /// Blocks of the video.
    pub blocks: usize,
    /// Passes of a step.
    pub(crate) passes: usize,
    /// First block that needs the second anchor; the first latent of block 0 is its picture.
    pub swap_at: Option<usize>,
    /// Device of each stage, and of the decoder: pieces of work on one device take turns.
    pub devices: Vec<usize>,
    /// Device of the decoder.
    pub decoder: usize,
    /// Pieces that a decode is cut into: another stage of its device may run between them.
    pub decode_pieces: usize,
    /// Costs of each piece of work.
    pub costs: &'a dyn Costs,
}

/// The kind of a piece of work.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "work", rename_all = "snake_case")]
pub enum Task {
    /// A call.
    Call { items: Vec<(usize, usize)> },
    /// A prefill.
    Prefill { anchor: usize },
    /// Decoding of the latents before the first block.
    Prime,
    /// Decoding of a block.
    Decode { block: usize },
    /// Before the denoiser starts.
    Encode { what: &'static str },
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Span {
    /// Number of the device.
    pub device: usize,
    /// Of the placement; `None` for decoder and encoders.
    pub stage: Option<usize>,
    /// Start in seconds.
    pub start: f64,
    /// End in seconds.
    pub end: f64,
    /// Kind of the work.
    #[serde(flatten)]
    pub what: Task,
    /// Parts of the time.
    pub spent: Spent,
}

/// A finished call, with its items as (block, step).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Completion {
    /// Time in seconds.
    pub at: f64,
    /// Items as (block, step).
    pub items: Vec<(usize, usize)>,
}

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Timeline {
    /// All pieces of work.
    pub spans: Vec<Span>,
    /// Times at which each block left its last step.
    pub denoised: Vec<f64>,
    /// Times at which each block was decoded.
    pub decoded: Vec<f64>,
    /// Calls in the order in which they finished.
    pub completions: Vec<Completion>,
    /// Length of the run in seconds.
    pub seconds: f64,
}

impl Timeline {
    /// Puts work before everything else: its name, its device and its seconds.
    pub fn preceded_by(&mut self, first: &[(&'static str, usize, f64)]) {
        let total: f64 = first.iter().map(|(_, _, s)| s).sum();
        let shift = |t: &mut f64| *t += total;
        self.spans.iter_mut().for_each(|s| {
            shift(&mut s.start);
            shift(&mut s.end);
        });
        self.completions.iter_mut().for_each(|c| shift(&mut c.at));
        self.denoised.iter_mut().for_each(shift);
        self.decoded.iter_mut().for_each(shift);
        self.seconds += total;
        let mut at = 0.0;
        for &(what, device, seconds) in first {
            self.spans.push(Span {
                device,
                stage: None,
                start: at,
                end: at + seconds,
                what: Task::Encode { what },
                spent: Spent::computing(seconds),
            });
            at += seconds;
        }
    }

    /// Returns the seconds from one block to the next once every step is busy. It measures from the
    /// first block after the anchor has changed to the last block that is well before the end.
    pub fn seconds_a_block(&self, steps: usize, swap_at: Option<usize>) -> f64 {
        let blocks = self.decoded.len();
        let first = (swap_at.unwrap_or(0) + steps).min(blocks.saturating_sub(2));
        let last = blocks.saturating_sub(2 * steps).max(first + 1);
        match (self.decoded.get(first), self.decoded.get(last)) {
            (Some(a), Some(b)) => (b - a) / (last - first) as f64,
            _ => self.seconds / blocks.max(1) as f64,
        }
    }

    /// Returns the shares of `from..to` in which a device computes and its links are in use.
    pub fn utilisation(&self, device: usize, from: f64, to: f64) -> Spent {
        let mut sum = Spent::default();
        for s in self.spans.iter().filter(|s| s.device == device) {
            let inside = (s.end.min(to) - s.start.max(from)).max(0.0);
            let share = if s.end > s.start {
                inside / (s.end - s.start)
            } else {
                0.0
            };
            let part = |whole: f64| whole * share / (to - from).max(f64::MIN_POSITIVE);
            sum.seconds += part(s.end - s.start);
            sum.compute += part(s.spent.compute);
            sum.up += part(s.spent.up);
            sum.down += part(s.spent.down);
            sum.peer += part(s.spent.peer);
        }
        sum
    }
}

/// Simulates a schedule to its end.
pub(crate) fn simulate(schedule: &Schedule<'_>) -> Timeline {
    let mut sim = Simulation::new(schedule);
    sim.settle();
    while let Some(Reverse((at, _, event))) = sim.events.pop() {
        sim.now = at;
        sim.happened(event);
        sim.settle();
    }
    sim.out.seconds = seconds(sim.now);
    sim.out
}

/// Whole nanoseconds: times compare exactly.
type Nanos = u64;

fn nanos(seconds: f64) -> Nanos {
    (seconds * 1e9).round().max(0.0) as Nanos
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A stage has loaded or finished its packet.
    Stage(usize),
    /// A block has its noise and audio.
    Prepared,
    /// A piece of a decoding is finished.
    Decoded,
}

enum Packet {
    Call(Group),
    Prefill(usize),
}

enum Report {
    Prepared,
    Anchored,
    Done(Group),
}

/// The state of a worker. It takes a packet, waits for its device, works, and holds its result
/// until the next stage takes it.
enum State {
    Loading,
    Idle,
    Waiting(Packet),
    Busy(Packet),
    Holding(Packet),
}

struct Stage {
    queue: VecDeque<Packet>,
    state: State,
    /// The stage after it in its chain.
    next: Option<usize>,
}

#[derive(Default)]
struct Decoder {
    queue: VecDeque<usize>,
    job: Option<Job>,
}

/// The block that is being decoded, or the latents before the first.
struct Job {
    block: Option<usize>,
    pieces_left: usize,
    piece: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Worker {
    Stage(usize),
    Decoder,
}

#[derive(Default)]
struct DeviceQueue {
    busy: bool,
    waiting: VecDeque<Worker>,
}

struct Simulation<'a> {
    schedule: &'a Schedule<'a>,
    now: Nanos,
    sequence: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    front: Wavefront,
    heads: Vec<usize>,
    stages: Vec<Stage>,
    reports: VecDeque<Report>,
    /// A block that the decoder has no room for; the scheduler waits with it.
    leaving: Option<usize>,
    requested: usize,
    to_prepare: usize,
    preparing: bool,
    decoder: Decoder,
    turns: BTreeMap<usize, DeviceQueue>,
    out: Timeline,
}

impl<'a> Simulation<'a> {
    fn new(schedule: &'a Schedule<'a>) -> Self {
        let grid = Grid {
            first: 0,
            blocks: schedule.blocks,
            steps: schedule.steps,
            passes: schedule.passes,
            swap_at: schedule.swap_at,
        };
        let (mut stages, mut heads) = (Vec::new(), Vec::new());
        for chain in &schedule.plan.chains {
            heads.push(stages.len());
            for i in 0..chain.stages.len() {
                let next = (i + 1 < chain.stages.len()).then_some(stages.len() + 1);
                stages.push(Stage {
                    queue: VecDeque::new(),
                    state: State::Loading,
                    next,
                });
            }
        }
        let mut sim = Self {
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            front: Wavefront::new(grid, schedule.plan),
            heads,
            stages,
            reports: VecDeque::new(),
            leaving: None,
            requested: 0,
            to_prepare: 0,
            preparing: false,
            decoder: Decoder::default(),
            turns: BTreeMap::new(),
            out: Timeline {
                denoised: vec![0.0; schedule.blocks],
                decoded: vec![0.0; schedule.blocks],
                ..Timeline::default()
            },
            schedule,
        };
        for stage in 0..sim.stages.len() {
            sim.after(schedule.costs.load(stage), Event::Stage(stage));
        }
        sim.start_decoding(None, schedule.costs.prime());
        sim.prefill(0);
        sim
    }

    /// Sends the prefills of an anchor into the first chain, one for each pass.
    fn prefill(&mut self, anchor: usize) {
        let prefills = (0..self.schedule.passes).map(|_| Packet::Prefill(anchor));
        self.stages[self.heads[0]].queue.extend(prefills);
    }

    fn after(&mut self, time: f64, event: Event) {
        self.sequence += 1;
        let at = self.now + nanos(time);
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Stage(stage) => {
                match std::mem::replace(&mut self.stages[stage].state, State::Idle) {
                    State::Busy(packet) => {
                        self.leave_device(self.schedule.devices[stage]);
                        self.stages[stage].state = State::Holding(packet);
                    }
                    _ => self.stages[stage].state = State::Idle,
                }
            }
            Event::Prepared => {
                self.preparing = false;
                self.reports.push_back(Report::Prepared);
            }
            Event::Decoded => self.decoded_piece(),
        }
    }

    /// Repeats until no stage, queue or decoder can make progress at the current time.
    fn settle(&mut self) {
        loop {
            let mut moved = self.schedule_more();
            for stage in (0..self.stages.len()).rev() {
                moved |= self.go_on(stage);
            }
            moved |= self.decode_next();
            moved |= self.prepare_next();
            if !moved {
                return;
            }
        }
    }

    /// Runs the scheduler: it delivers blocks, takes reports and issues calls.
    fn schedule_more(&mut self) -> bool {
        let mut moved = false;
        loop {
            if let Some(block) = self.leaving {
                if self.decoder.queue.len() >= FINISHED_WAITING {
                    return moved;
                }
                self.decoder.queue.push_back(block);
                self.leaving = None;
                self.front.delivered();
                moved = true;
            }
            if !self.front.is_complete() {
                moved |= self.issue();
            }
            let Some(report) = self.reports.pop_front() else {
                return moved;
            };
            self.take(report);
            moved = true;
        }
    }

    fn issue(&mut self) -> bool {
        let mut moved = false;
        while let Some(group) = self.front.issue() {
            let head = self.heads[group.chain];
            self.stages[head].queue.push_back(Packet::Call(group));
            moved = true;
        }
        while self.requested < self.front.wanted() {
            self.requested += 1;
            self.to_prepare += 1;
            moved = true;
        }
        moved
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Prepared => self.front.prepared(),
            Report::Anchored => self.front.anchored(),
            Report::Done(group) => {
                self.front.finished(&group);
                self.out.completions.push(Completion {
                    at: seconds(self.now),
                    items: pairs(&group.items),
                });
                let last = self.schedule.steps - 1;
                if let Some(item) = group.items.iter().find(|i| i.step == last) {
                    self.clean(item.block);
                }
            }
        }
    }

    fn clean(&mut self, block: usize) {
        self.out.denoised[block] = seconds(self.now);
        if block == 0 && self.schedule.swap_at.is_some() {
            self.prefill(1);
        }
        self.leaving = Some(block);
    }

    /// Runs one worker.
    fn go_on(&mut self, at: usize) -> bool {
        match std::mem::replace(&mut self.stages[at].state, State::Idle) {
            State::Idle => match self.stages[at].queue.pop_front() {
                Some(packet) => {
                    self.stages[at].state = State::Waiting(packet);
                    self.ask_device(self.schedule.devices[at], Worker::Stage(at));
                    true
                }
                None => false,
            },
            State::Holding(packet) => self.hand_on(at, packet),
            other => {
                self.stages[at].state = other;
                false
            }
        }
    }

    fn hand_on(&mut self, at: usize, packet: Packet) -> bool {
        match self.stages[at].next {
            Some(next) if !self.stages[next].queue.is_empty() => {
                self.stages[at].state = State::Holding(packet);
                return false;
            }
            Some(next) => self.stages[next].queue.push_back(packet),
            None => self.reports.push_back(match packet {
                Packet::Call(group) => Report::Done(group),
                Packet::Prefill(_) => Report::Anchored,
            }),
        }
        true
    }

    fn ask_device(&mut self, device: usize, who: Worker) {
        let turn = self.turns.entry(device).or_default();
        turn.waiting.push_back(who);
        self.next_turn(device);
    }

    fn leave_device(&mut self, device: usize) {
        self.turns.entry(device).or_default().busy = false;
        self.next_turn(device);
    }

    fn next_turn(&mut self, device: usize) {
        let turn = self.turns.entry(device).or_default();
        if turn.busy {
            return;
        }
        if let Some(who) = turn.waiting.pop_front() {
            turn.busy = true;
            match who {
                Worker::Stage(stage) => self.start_stage(stage),
                Worker::Decoder => self.start_piece(),
            }
        }
    }

    fn start_stage(&mut self, at: usize) {
        let State::Waiting(packet) = std::mem::replace(&mut self.stages[at].state, State::Idle)
        else {
            return;
        };
        let costs = self.schedule.costs;
        let (spent, what) = match &packet {
            Packet::Call(group) => (
                costs.call(at, group.items.len()),
                Task::Call {
                    items: pairs(&group.items),
                },
            ),
            Packet::Prefill(anchor) => (costs.prefill(at), Task::Prefill { anchor: *anchor }),
        };
        self.note(self.schedule.devices[at], Some(at), what, spent);
        self.stages[at].state = State::Busy(packet);
        self.after(spent.seconds, Event::Stage(at));
    }

    fn note(&mut self, device: usize, stage: Option<usize>, what: Task, spent: Spent) {
        let start = seconds(self.now);
        self.out.spans.push(Span {
            device,
            stage,
            start,
            end: start + spent.seconds,
            what,
            spent,
        });
    }

    fn prepare_next(&mut self) -> bool {
        if self.preparing || self.to_prepare == 0 {
            return false;
        }
        self.preparing = true;
        self.to_prepare -= 1;
        self.after(self.schedule.costs.prepare(), Event::Prepared);
        true
    }

    fn decode_next(&mut self) -> bool {
        if self.decoder.job.is_some() {
            return false;
        }
        let Some(block) = self.decoder.queue.pop_front() else {
            return false;
        };
        self.start_decoding(Some(block), self.schedule.costs.decode());
        true
    }

    fn start_decoding(&mut self, block: Option<usize>, time: f64) {
        if block.is_none() && time <= 0.0 {
            return;
        }
        let pieces = self.schedule.decode_pieces.max(1);
        self.decoder.job = Some(Job {
            block,
            pieces_left: pieces,
            piece: time / pieces as f64,
        });
        self.ask_device(self.schedule.decoder, Worker::Decoder);
    }

    fn start_piece(&mut self) {
        let Some(job) = &self.decoder.job else {
            return;
        };
        let piece = job.piece;
        let what = job
            .block
            .map_or(Task::Prime, |block| Task::Decode { block });
        self.note(self.schedule.decoder, None, what, Spent::computing(piece));
        self.after(piece, Event::Decoded);
    }

    fn decoded_piece(&mut self) {
        let Some(mut job) = self.decoder.job.take() else {
            return;
        };
        job.pieces_left -= 1;
        let device = self.schedule.decoder;
        if job.pieces_left > 0 {
            self.decoder.job = Some(job);
            self.turns
                .entry(device)
                .or_default()
                .waiting
                .push_back(Worker::Decoder);
        } else if let Some(block) = job.block {
            self.out.decoded[block] = seconds(self.now);
            self.front.shown();
        }
        self.leave_device(device);
    }
}

fn pairs(items: &[Item]) -> Vec<(usize, usize)> {
    items.iter().map(|i| (i.block, i.step)).collect()
}

#[cfg(test)]
mod tests;
