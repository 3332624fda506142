//! The wavefront on threads. The stages of a placement are loaded once, one thread each, behind
//! bounded channels. A run has a scheduler, which alone knows its order, and a thread that prepares
//! its blocks. A call travels down the stages of its chain and comes back; finished blocks leave in
//! order. Nothing waits but for what it needs, and no arithmetic is done here.

mod worker;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use engines::backend::Loading;
use engines::components::dit::DitConfig;
use engines::tensor::Tensor;

use crate::chain::call::{Anchor, AnchorInput, BlockAudio, Call, Lane};
use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer};
use crate::chain::job::{Finished, Job, Swap};
use crate::chain::page_locks::PageLocks;
use crate::chain::source::Source;
use crate::numbers::latents;
use crate::numbers::solver::Memory;
use crate::placement::devices::Devices;
use crate::placement::plan::{Plan, StageSpec};
use crate::placement::queues::PREFILLS;
use crate::placement::wavefront::{Grid, Group, Item, Wavefront};
use worker::{LastWord, Packet, Report, Run, Work, prepare, spawn_chain};

/// The stages of a placement, loaded, on threads that live as long as this.
///
/// Weights are loaded once. Any number of runs may use the stages, one after the other or at a
/// time; each has KV rings of its own. Dropping this ends the threads and frees the weights.
pub(crate) struct Chains {
    plan: Plan,
    devices: Devices,
    heads: Vec<SyncSender<Packet>>,
    threads: Vec<JoinHandle<()>>,
    /// Number of the next run.
    next: AtomicU64,
    /// A stage's thread has panicked.
    broken: Arc<AtomicBool>,
}

impl Chains {
    /// Loads every stage of `plan`, all at once, and waits until they are ready.
    ///
    /// # Errors
    /// A device or a component is missing, a component does not load, or memory runs out. The first
    /// failure is returned after every thread has ended.
    ///
    /// # Panics
    /// If a stage's thread panics while it loads: that is an error in its code.
    pub(crate) fn load(
        plan: &Plan,
        devices: &Devices,
        model: &DitConfig,
        loading: &Loading,
        observer: &dyn Observer,
    ) -> Result<Self, ChainError> {
        let locks = Arc::new(PageLocks::new(plan, devices, loading)?);
        if let Some(reason) = locks.refused() {
            observer.event(&Event::Notice(format!(
                "weights stream from memory that could not be locked, which is slower: {reason}"
            )));
        }
        let mut chains = Self {
            plan: plan.clone(),
            devices: devices.clone(),
            heads: Vec::new(),
            threads: Vec::new(),
            next: AtomicU64::new(0),
            broken: Arc::default(),
        };
        let (loaded, results) = sync_channel(plan.stages().count());
        for (index, chain) in plan.chains.iter().enumerate() {
            let site = |spec: &StageSpec| {
                Ok::<_, ChainError>(crate::chain::stage::Site {
                    backend: Arc::clone(devices.get(spec.device)?),
                    home: devices.home(spec.device),
                    host: Arc::clone(devices.host()),
                    model: model.clone(),
                    lanes: chain.lanes,
                    loading: Arc::clone(loading),
                    page_locks: Some(Arc::clone(&locks)),
                })
            };
            let sites = chain.stages.iter().map(site);
            let sites = sites.collect::<Result<Vec<_>, _>>()?;
            let name = |spec: &StageSpec| plan.stage_name(spec);
            let (broken, threads) = (&chains.broken, &mut chains.threads);
            let head = spawn_chain(index, chain, sites, name, &loaded, broken, threads);
            chains.heads.push(head);
        }
        drop(loaded);
        let results: Vec<Result<(), ChainError>> = results.into_iter().collect();
        assert_eq!(
            results.len(),
            chains.threads.len(),
            "a stage's thread panicked"
        );
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(chains)
    }

    /// Runs every item of `job` and sends every block, in order, to `finished`. Returns when the
    /// run's rings and conditions are freed on every device. The first error wins.
    ///
    /// # Errors
    /// A stage or the source fails; [`ChainError::Stopped`] when the receiver of `finished` or the
    /// feedback is gone; [`ChainError::Cancelled`] when the job was cancelled.
    ///
    /// # Panics
    /// If a stage's thread has panicked: that is an error in the code of a stage.
    pub(crate) fn run(
        &self,
        job: &Job<'_>,
        source: &mut dyn Source,
        finished: SyncSender<Finished>,
        inbox: Inbox,
    ) -> Result<(), ChainError> {
        let Inbox { sender, receiver } = inbox;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (run, ended) = Run::new(id, job, sender.clone());
        let result = thread::scope(|scope| {
            let (requests, wanted) = sync_channel(job.steps + 8);
            let reports = LastWord(sender);
            scope.spawn(move || prepare(source, &wanted, &reports));
            let scheduler = Scheduler::new(self, job, Arc::clone(&run), requests, finished);
            scheduler.run(&receiver)
        });
        run.end();
        for head in &self.heads {
            // A chain whose thread is gone has dropped the run already.
            drop(head.send(Packet::new(&run, Work::End)));
        }
        drop((run, receiver));
        // Every holder of the run is gone when the channel closes.
        let _closed = ended.recv();
        let broken = self.broken.load(Ordering::SeqCst);
        assert!(!broken, "a stage's thread panicked");
        result
    }
}

impl Drop for Chains {
    fn drop(&mut self) {
        self.heads.clear();
        for thread in self.threads.drain(..) {
            // A panic was shown when it happened, and `run` has passed it on.
            drop(thread.join());
        }
    }
}

/// The decoder's way back to the scheduler. It must tell of the first block. Dropping it early
/// stops the run.
pub(crate) struct Feedback {
    reports: SyncSender<Report>,
    /// The first block is told of.
    told: Cell<bool>,
}

impl Feedback {
    /// Tells that a block is decoded. A chain on the decoder's device waits for the first one.
    pub(crate) fn decoded(&self) {
        if !self.told.replace(true) {
            // As for an anchor.
            drop(self.reports.send(Report::Shown));
        }
    }

    /// Sends the input of the second anchor, for [`Swap::Fed`].
    pub(crate) fn anchor(&self, input: AnchorInput) {
        // A scheduler that is gone has its own error to show.
        drop(self.reports.send(Report::Fed(Box::new(input))));
    }
}

impl Drop for Feedback {
    fn drop(&mut self) {
        drop(self.reports.try_send(Report::Gone));
    }
}

/// The scheduler's end of every way back.
pub(crate) struct Inbox {
    sender: SyncSender<Report>,
    receiver: Receiver<Report>,
}

/// Makes the ways back of one run of `steps` steps on `plan`. They are large enough that no report
/// ever waits: every call, every prefill, every prepared block and the last word of every thread
/// fit at once.
pub(crate) fn inbox(plan: &Plan, steps: usize) -> (Feedback, Inbox) {
    let stages: usize = plan.chains.iter().map(|c| c.stages.len()).sum();
    let calls = stages + plan.chains.len();
    let (sender, receiver) = sync_channel(calls + PREFILLS + 2 * steps + 2 * stages + 9);
    let feedback = Feedback {
        reports: sender.clone(),
        told: Cell::new(false),
    };
    (feedback, Inbox { sender, receiver })
}

/// A block between its first and its last step.
struct Open {
    latents: Tensor,
    /// What the solver keeps of earlier steps.
    memory: Memory,
    audio: BlockAudio,
    /// The flow of a step's first pass, while its second one is under way.
    prompted: Option<Tensor>,
}

struct Scheduler<'a> {
    chains: &'a Chains,
    job: &'a Job<'a>,
    run: Arc<Run>,
    front: Wavefront,
    /// First block of the second anchor, if there will be one.
    swap_at: Option<usize>,
    open: BTreeMap<usize, Open>,
    /// The anchors of the picture, one for each pass, then those after the swap.
    anchors: Vec<Option<Arc<Anchor>>>,
    /// First blocks of clips before which the state is being kept.
    keeping: BTreeSet<usize>,
    requests: SyncSender<usize>,
    requested: usize,
    received: usize,
    finished: SyncSender<Finished>,
}

impl<'a> Scheduler<'a> {
    fn new(
        chains: &'a Chains,
        job: &'a Job<'a>,
        run: Arc<Run>,
        requests: SyncSender<usize>,
        finished: SyncSender<Finished>,
    ) -> Self {
        let clip = job.tables.geometry().clip_blocks;
        let swap_at = (job.swap != Swap::Never && job.blocks > clip).then_some(clip);
        let first = job.start.as_ref().map_or(0, |s| s.block);
        let grid = Grid {
            first,
            blocks: job.blocks,
            steps: job.steps * job.tables.passes(),
            passes: job.tables.passes(),
            swap_at,
        };
        Self {
            front: Wavefront::new(grid, &chains.plan),
            swap_at,
            open: BTreeMap::new(),
            anchors: vec![None; 2 * job.tables.passes()],
            requests,
            keeping: BTreeSet::new(),
            requested: first,
            received: first,
            finished,
            chains,
            job,
            run,
        }
    }

    fn run(mut self, reports: &Receiver<Report>) -> Result<(), ChainError> {
        match self.work(reports) {
            // Whoever closed a channel on us said why before closing it.
            Err(ChainError::Stopped) => Err(reason(reports).unwrap_or(ChainError::Stopped)),
            result => result,
        }
    }

    fn work(&mut self, reports: &Receiver<Report>) -> Result<(), ChainError> {
        for chain in 0..self.chains.heads.len() {
            self.send(chain, Work::Begin)?;
        }
        let job = self.job;
        let second = job.start.as_ref().and_then(|s| s.second_anchor.as_ref());
        match second {
            Some(second) => self.prefill(1, second)?,
            None => self.prefill(0, &job.anchor)?,
        }
        while !self.front.is_complete() {
            self.issue()?;
            let report = reports.recv().map_err(|_| ChainError::Stopped)?;
            if self.job.cancel.is_cancelled() {
                return Err(ChainError::Cancelled);
            }
            self.take(report)?;
        }
        Ok(())
    }

    /// Starts everything that may start.
    fn issue(&mut self) -> Result<(), ChainError> {
        while let Some(group) = self.front.issue() {
            let call = self.call(&group);
            let chain = group.chain;
            let items = group.items.clone();
            self.send(chain, Work::Call(group, Box::new(call)))?;
            for item in items {
                self.keep(chain, item)?;
            }
        }
        while self.requested < self.front.wanted() {
            self.requests
                .send(self.requested)
                .map_err(|_| ChainError::Stopped)?;
            self.requested += 1;
        }
        Ok(())
    }

    /// Has the rings of a step copied behind the call of a clip's last block, if its state is kept.
    fn keep(&mut self, chain: usize, Item { block, step }: Item) -> Result<(), ChainError> {
        let job = self.job;
        let Some(keeper) = &job.keeper else {
            return Ok(());
        };
        let (next, clip) = (block + 1, job.tables.geometry().clip_blocks);
        if !next.is_multiple_of(clip) {
            return Ok(());
        }
        if step == 0 && keeper.wants(next) {
            self.keeping.insert(next);
        }
        if !self.keeping.contains(&next) {
            return Ok(());
        }
        if step + 1 == job.steps * job.tables.passes() {
            self.keeping.remove(&next);
        }
        self.send(chain, Work::Keep { block: next, step })
    }

    fn call(&self, group: &Group) -> Call {
        let lane = |item: &Item| {
            let Open { latents, audio, .. } = &self.open[&item.block];
            let (step, pass) = self.job.tables.step_and_pass(item);
            let relative_dist = self.job.distances.of(item.block, step);
            let guidance = self.job.guidance.as_ref().filter(|_| pass > 0);
            Lane {
                item: *item,
                relative_dist,
                latents,
                pose_latents: None,
                audio: guidance.map_or(audio, |g| &g.audio),
            }
        };
        let lanes: Vec<Lane<'_>> = group.items.iter().map(lane).collect();
        let anchor = self.anchors[group.anchor]
            .clone()
            .expect("a group starts after its anchor");
        self.job.tables.call(&lanes, anchor)
    }

    /// Sends an anchor that `chain` has placed to the next chain with a device that lacks it. If no
    /// device lacks it, the anchor is ready.
    fn anchored(&mut self, anchor: Box<Anchor>, chain: usize) -> Result<(), ChainError> {
        let lacks = |spec: &StageSpec| {
            let home = self.chains.devices.home(spec.device);
            spec.layers.clone().any(|l| anchor.of(l, home).is_none())
        };
        let chains = self.chains.plan.chains.iter().enumerate().skip(chain + 1);
        let mut next = chains.map(|(i, c)| (i, c.stages.iter().any(lacks)));
        if let Some((next, _)) = next.find(|(_, lacks)| *lacks) {
            return self.send(next, Work::Place(anchor));
        }
        let index = anchor.index;
        self.anchors[index] = Some(Arc::from(anchor));
        self.front.anchored();
        let passes = self.job.tables.passes();
        if index % passes + 1 == passes {
            let index = index / passes;
            self.job.observer.event(&Event::Anchored { index });
        }
        Ok(())
    }

    /// Sends the prefills of an anchor down the first chain, one for each pass. Their conditions
    /// serve every chain.
    fn prefill(&mut self, index: usize, input: &AnchorInput) -> Result<(), ChainError> {
        let tables = &self.job.tables;
        let guidance = self.job.guidance.as_ref().map(|g| &g.text);
        for (pass, text) in iter::once(&self.job.text).chain(guidance).enumerate() {
            let index = index * tables.passes() + pass;
            let (picture, motion) = (input.ref_latents.clone(), input.motion_latents.clone());
            let prefill = tables.prefill(index, picture, motion, Arc::clone(text));
            self.send(0, Work::Prefill(Box::new(prefill)))?;
        }
        Ok(())
    }

    fn send(&self, chain: usize, work: Work) -> Result<(), ChainError> {
        let packet = Packet::new(&self.run, work);
        let sent = self.chains.heads[chain].send(packet);
        sent.map_err(|_| ChainError::Stopped)
    }

    fn take(&mut self, report: Report) -> Result<(), ChainError> {
        match report {
            Report::Prepared(input) => {
                self.open.insert(
                    self.received,
                    Open {
                        latents: input.latents,
                        memory: Memory::default(),
                        audio: input.audio,
                        prompted: None,
                    },
                );
                self.received += 1;
                self.front.prepared();
                Ok(())
            }
            Report::Ended(block) => {
                self.front.end_before(block);
                Ok(())
            }
            Report::Anchored { anchor, chain } => self.anchored(anchor, chain),
            Report::Shown => {
                self.front.shown();
                Ok(())
            }
            Report::Fed(input) => self.prefill(1, &input),
            Report::Done(group, call) => self.done(&group, *call),
            Report::Failed(error) => Err(error),
            Report::Gone => Err(ChainError::Stopped),
        }
    }

    fn done(&mut self, group: &Group, call: Call) -> Result<(), ChainError> {
        let output = call.output.ok_or(ChainError::Cancelled)?;
        self.front.finished(group);
        for (lane, item) in group.items.iter().enumerate() {
            let one = lane..lane + 1;
            let noise_pred = output.noise_pred.lanes(one.clone());
            let (step, pass) = self.job.tables.step_and_pass(item);
            let open = self.open.get_mut(&item.block);
            let open = open.expect("a block under way is open");
            if pass + 1 < self.job.tables.passes() {
                open.prompted = Some(noise_pred.to_tensor());
                continue;
            }
            let guided = self.job.guidance.as_ref().zip(open.prompted.take());
            let guided = guided.map(|(guidance, prompted)| {
                let other = noise_pred.as_slice::<f32>();
                let flow = guidance.flow(prompted.as_slice::<f32>(), other);
                Tensor::from_slice(noise_pred.shape(), &flow)
            });
            let noise_pred = guided.as_ref().map_or(noise_pred, Tensor::view);
            self.job.observer.event(&Event::Stepped {
                item: Item { step, ..*item },
                latents: open.latents.view(),
                noise_pred: noise_pred.clone(),
            });
            let path = self.job.tables.path();
            let next = if path.is_in_graph() && guided.is_none() {
                output.next_latents.lanes(one).to_tensor()
            } else {
                let x = open.latents.as_slice::<f32>();
                let flow = noise_pred.as_slice::<f32>();
                let next = path.advance(step, x, flow, &mut open.memory);
                Tensor::from_slice(open.latents.shape(), &next)
            };
            if step + 1 < self.job.steps {
                open.latents = next;
            } else {
                self.leave(item.block, next)?;
            }
        }
        Ok(())
    }

    /// A block is clean: it may become the anchor, and goes to the decoder, which may make us wait.
    fn leave(&mut self, block: usize, latents: Tensor) -> Result<(), ChainError> {
        self.open.remove(&block);
        if block == 0 && self.job.swap == Swap::FirstLatent && self.swap_at.is_some() {
            let input = AnchorInput {
                ref_latents: latents::frames(&latents, 0..1),
                motion_latents: self.job.anchor.motion_latents.clone(),
            };
            self.prefill(1, &input)?;
        }
        if self.swap_at == Some(block + 1) {
            self.anchors[..self.job.tables.passes()].fill(None);
        }
        self.job.observer.event(&Event::Denoised {
            block,
            latents: &latents,
        });
        self.finished
            .send(Finished { block, latents })
            .map_err(|_| ChainError::Stopped)?;
        self.front.delivered();
        Ok(())
    }
}

/// The first failure among what was reported and not yet read.
fn reason(reports: &Receiver<Report>) -> Option<ChainError> {
    reports.try_iter().find_map(|report| match report {
        Report::Failed(error) => Some(error),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
