//! The executor's threads: the packets that they take, their reports, and their ends. A worker runs
//! one stage. It takes the packets of all runs in the order of their arrival, and waits only for
//! the next stage. A run that fails on a stage leaves the stage ready for other runs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use engines::backend::EngineError;
use engines::cancel::Cancel;

use crate::chain::call::{Anchor, AnchorInput, Call, Prefill};
use crate::chain::error::ChainError;
use crate::chain::job::Job;
use crate::chain::snapshot::{Begin, Keeper};
use crate::chain::source::{BlockInput, Source};
use crate::chain::stage::{Site, Stage, StageState, anchor_of};
use crate::numbers::geometry::Geometry;
use crate::placement::plan::{Chain, StageSpec};
use crate::placement::queues::PREFILLS;
use crate::placement::wavefront::Group;

/// One run, as the threads of the stages know it. Every packet of the run holds it, and every stage
/// with state of the run.
pub(super) struct Run {
    id: u64,
    geometry: Geometry,
    cancel: Cancel,
    start: Option<Begin>,
    keeper: Option<Arc<dyn Keeper>>,
    /// The scheduler has ended: what is still under way is of no use.
    over: AtomicBool,
    reports: SyncSender<Report>,
    /// Closes when nobody holds the run any more.
    _alive: SyncSender<Infallible>,
}

impl Run {
    /// Makes a run, and the receiver that closes when nobody holds it any more.
    pub(super) fn new(
        id: u64,
        job: &Job<'_>,
        reports: SyncSender<Report>,
    ) -> (Arc<Self>, Receiver<Infallible>) {
        let (alive, ended) = sync_channel(0);
        let run = Self {
            id,
            geometry: job.tables.geometry().clone(),
            cancel: job.cancel.clone(),
            start: job.start.clone(),
            keeper: job.keeper.clone(),
            over: AtomicBool::new(false),
            reports,
            _alive: alive,
        };
        (Arc::new(run), ended)
    }

    /// Tells the stages that nobody waits for results any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || self.cancel.is_cancelled()
    }

    /// Reports to the scheduler. One that is gone needs no report.
    fn report(&self, report: Report) {
        drop(self.reports.send(report));
    }
}

/// Work of one run on its way down a chain.
pub(super) struct Packet {
    run: Arc<Run>,
    work: Work,
}

impl Packet {
    pub(super) fn new(run: &Arc<Run>, work: Work) -> Self {
        Self {
            run: Arc::clone(run),
            work,
        }
    }
}

/// Work for every stage of a chain, in order.
pub(super) enum Work {
    /// Make the run's rings.
    Begin,
    Call(Group, Box<Call>),
    Prefill(Box<Prefill>),
    /// Copy the rings of a step, as they are before a block.
    Keep {
        block: usize,
        step: usize,
    },
    /// An anchor that other devices hold, to be placed on this chain's.
    Place(Box<Anchor>),
    /// Free the run's rings.
    End,
}

/// What comes back to the scheduler.
pub(super) enum Report {
    Prepared(Box<BlockInput>),
    /// The video ends before this block.
    Ended(usize),
    Done(Group, Box<Call>),
    /// Placed on the devices of a chain.
    Anchored {
        anchor: Box<Anchor>,
        chain: usize,
    },
    /// The first block is decoded.
    Shown,
    Fed(Box<AnchorInput>),
    Failed(ChainError),
    /// A thread ended before its work did; its own error, or panic, says why.
    Gone,
}

/// Says that a thread is gone when it unwinds, so that the scheduler never waits for it.
pub(super) struct LastWord(pub(super) SyncSender<Report>);

impl Drop for LastWord {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(self.0.try_send(Report::Gone));
        }
    }
}

impl LastWord {
    /// Returns whether anybody still listens.
    fn send(&self, report: Report) -> bool {
        self.0.send(report).is_ok()
    }
}

pub(super) fn prepare(source: &mut dyn Source, wanted: &Receiver<usize>, reports: &LastWord) {
    for block in wanted {
        let report = match source.block(block) {
            Ok(Some(input)) => Report::Prepared(Box::new(input)),
            Ok(None) => Report::Ended(block),
            Err(error) => Report::Failed(error),
        };
        let ends = matches!(report, Report::Failed(_));
        if !reports.send(report) || ends {
            return;
        }
    }
}

/// Starts a chain's workers, last first, and returns the way into it. Every worker sends once to
/// `loaded`.
pub(super) fn spawn_chain(
    index: usize,
    chain: &Chain,
    sites: Vec<Site>,
    name: impl Fn(&StageSpec) -> String,
    loaded: &SyncSender<Result<(), ChainError>>,
    broken: &Arc<AtomicBool>,
    threads: &mut Vec<JoinHandle<()>>,
) -> SyncSender<Packet> {
    let mut next = None;
    for (spec, site) in chain.stages.iter().zip(sites).rev() {
        // The head never makes a lone scheduler wait: it holds every call that may be under way.
        let room = if spec.layers.start == 0 {
            chain.stages.len() + 1 + PREFILLS
        } else {
            1
        };
        let (sender, receiver) = sync_channel(room);
        let start = Start {
            site,
            spec: spec.clone(),
            name: name(spec),
            chain: index,
            next: next.replace(sender),
            broken: Arc::clone(broken),
        };
        let loaded = loaded.clone();
        threads.push(thread::spawn(move || start.run(&receiver, loaded)));
    }
    next.expect("a chain has a stage")
}

/// A worker before its stage is loaded.
struct Start {
    site: Site,
    spec: StageSpec,
    name: String,
    chain: usize,
    next: Option<SyncSender<Packet>>,
    broken: Arc<AtomicBool>,
}

impl Start {
    fn run(self, packets: &Receiver<Packet>, loaded: SyncSender<Result<(), ChainError>>) {
        match Stage::load(self.site, &self.spec) {
            Ok(stage) => {
                drop(loaded.send(Ok(())));
                drop(loaded);
                let worker = Worker {
                    stage,
                    name: self.name,
                    chain: self.chain,
                    next: self.next,
                    broken: self.broken,
                    members: BTreeMap::new(),
                };
                worker.work(packets);
            }
            Err(error) => drop(loaded.send(Err(in_stage(&self.name, error)))),
        }
    }
}

fn in_stage(stage: &str, error: EngineError) -> ChainError {
    match error {
        EngineError::Cancelled => ChainError::Cancelled,
        error => ChainError::Stage {
            stage: stage.to_owned(),
            source: Box::new(error),
        },
    }
}

/// A run that has begun on a stage.
struct Member {
    run: Arc<Run>,
    /// `None` while the rings are made, and after the run failed on this stage.
    state: Option<StageState>,
}

struct Worker {
    stage: Stage,
    name: String,
    /// Index of the chain.
    chain: usize,
    next: Option<SyncSender<Packet>>,
    /// Set by a panic, before any run hears of it.
    broken: Arc<AtomicBool>,
    members: BTreeMap<u64, Member>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if thread::panicking() {
            self.broken.store(true, Ordering::SeqCst);
            for member in self.members.values() {
                drop(member.run.reports.try_send(Report::Gone));
            }
        }
    }
}

impl Worker {
    fn work(mut self, packets: &Receiver<Packet>) {
        for mut packet in packets {
            match self.step(&mut packet) {
                Ok(true) => self.pass_on(packet),
                Ok(false) => {}
                Err(error) => {
                    self.fail(&packet.run);
                    packet.run.report(Report::Failed(error));
                }
            }
        }
    }

    /// Does a packet's work. Returns false for a run that has failed here: its packets stop here.
    fn step(&mut self, packet: &mut Packet) -> Result<bool, ChainError> {
        let Packet { run, work } = packet;
        match work {
            Work::Begin => {
                let member = Member {
                    run: Arc::clone(run),
                    state: None,
                };
                self.members.insert(run.id, member);
                let state = self.begin(run)?;
                self.with_state(run).replace(state);
                return Ok(true);
            }
            Work::End => {
                self.members.remove(&run.id);
                return Ok(true);
            }
            _ => {}
        }
        let stop = || run.is_over();
        let member = self.members.get_mut(&run.id);
        let Some(state) = member.and_then(|m| m.state.as_mut()) else {
            return Ok(false);
        };
        let done = match work {
            Work::Call(_, call) => self.stage.denoise(state, call, &stop),
            Work::Prefill(prefill) => self.stage.prefill(state, prefill, &stop),
            Work::Place(anchor) => self.stage.place(anchor),
            Work::Keep { block, step } => match &run.keeper {
                // The last state of a run is kept after its last block.
                Some(keeper) if !run.cancel.is_cancelled() => {
                    self.stage.keep(state, *block, *step, &**keeper)
                }
                _ => Ok(()),
            },
            Work::Begin | Work::End => Ok(()),
        };
        done.map_err(|error| in_stage(&self.name, error))?;
        Ok(true)
    }

    /// Makes the run's rings, empty or as the run begins with them.
    fn begin(&mut self, run: &Run) -> Result<StageState, ChainError> {
        let begun = self.stage.begin(&run.geometry, &run.cancel);
        let state = begun.map_err(|error| in_stage(&self.name, error))?;
        if let Some(start) = &run.start {
            for place in self.stage.ring_places() {
                let rows = start.rings.ring(place)?;
                let filled = self.stage.fill_ring(&state, place, &rows);
                filled.map_err(|error| in_stage(&self.name, error))?;
            }
        }
        Ok(state)
    }

    fn with_state(&mut self, run: &Run) -> &mut Option<StageState> {
        let member = self.members.get_mut(&run.id);
        &mut member.expect("the run has begun here").state
    }

    /// Frees what a run holds here. It stays a member until its end comes by.
    fn fail(&mut self, run: &Run) {
        if let Some(member) = self.members.get_mut(&run.id) {
            member.state = None;
        }
    }

    fn pass_on(&self, packet: Packet) {
        let Packet { run, work } = packet;
        let Some(next) = &self.next else {
            match work {
                Work::Call(group, call) => run.report(Report::Done(group, call)),
                Work::Prefill(prefill) => run.report(self.anchored(Box::new(anchor_of(*prefill)))),
                Work::Place(anchor) => run.report(self.anchored(anchor)),
                Work::Begin | Work::Keep { .. } | Work::End => {}
            }
            return;
        };
        if let Err(unsent) = next.send(Packet { run, work }) {
            unsent.0.run.report(Report::Gone);
        }
    }

    fn anchored(&self, anchor: Box<Anchor>) -> Report {
        Report::Anchored {
            anchor,
            chain: self.chain,
        }
    }
}
