//! The wavefront on threads: one worker a stage behind a bounded channel, one that prepares blocks, and the scheduler, which alone knows
//! the order. A call travels down the stages of its chain and comes back; finished blocks leave in order. Nothing waits but for what it
//! needs, and no arithmetic is done here.

mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use engines::components::dit::DitConfig;
use engines::tensor::Tensor;

use crate::chain::call::{Anchor, BlockAudio, Call, Lane, Tables};
use crate::chain::source::Source;
use crate::chain::events::{Cancel, Event, Observer};
use crate::chain::page_locks::Streams;
use crate::commands::error::Error;
use crate::inputs::replay::Distances;
use crate::numbers::latents;
use crate::placement::devices::Devices;
use crate::placement::plan::{Plan, StageSpec};
use crate::placement::wavefront::{Grid, Group, Item, Wavefront};
use engines::backend::Loading;
use worker::{LastWord, PREFILLS, Packet, Report, prepare, spawn_chain};

/// Where the second anchor comes from, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// One anchor for the whole video.
    Never,
    /// The first latent frame of block 0, for the second clip and all after.
    FirstLatent,
    /// Whatever [`Feedback::anchor`] brings, for the second clip and all after.
    Fed,
}

/// What an anchor is made from.
pub struct AnchorInput {
    /// `[1, Z, 1, H/8, W/8]`.
    pub ref_latents: Tensor,
    /// `[1, Z, 19, H/8, W/8]`.
    pub motion_latents: Tensor,
}

/// Everything that one run of the executor needs.
pub struct Job<'a> {
    pub devices: &'a Devices<'a>,
    pub options: Loading<'a>,
    pub plan: &'a Plan,
    pub tables: &'a Tables,
    pub model: &'a DitConfig,
    pub steps: usize,
    pub blocks: usize,
    pub swap: Swap,
    pub distances: &'a Distances<'a>,
    /// Embedded prompt, `[1, M, D]`.
    pub text: Arc<Tensor>,
    pub anchor: AnchorInput,
    pub cancel: &'a Cancel,
    pub observer: &'a dyn Observer,
}

/// A block that left the last step.
pub struct Finished {
    pub block: usize,
    /// `[1, Z, F, H/8, W/8]`.
    pub latents: Tensor,
}

/// The way back into the scheduler for whoever decodes. Dropping it early stops the run.
pub struct Feedback(SyncSender<Report>);

impl Feedback {
    /// Hands over the second anchor's input ([`Swap::Fed`]).
    pub fn anchor(&self, input: AnchorInput) {
        // A scheduler that is gone has its own error to show.
        drop(self.0.send(Report::Fed(Box::new(input))));
    }
}

impl Drop for Feedback {
    fn drop(&mut self) {
        drop(self.0.try_send(Report::Gone));
    }
}

/// The scheduler's end of every way back.
pub struct Inbox {
    sender: SyncSender<Report>,
    receiver: Receiver<Report>,
}

/// The ways back, large enough that nobody who reports ever waits: every call, every prefill, every prepared block and one last word of
/// every thread fit at once.
pub fn inbox(plan: &Plan, steps: usize) -> (Feedback, Inbox) {
    let stages: usize = plan.chains.iter().map(|c| c.stages.len()).sum();
    let calls = stages + plan.chains.len();
    let (sender, receiver) = sync_channel(calls + PREFILLS + 2 * steps + stages + 8);
    (Feedback(sender.clone()), Inbox { sender, receiver })
}

/// Runs every item and sends every block, in order, to `finished`. Returns when all threads have ended; the first error wins.
///
/// # Errors
/// A stage or the source fails; [`Error::Stopped`] when the receiver of `finished` or the feedback is gone;
/// [`Error::Interrupted`] when the run was cancelled.
pub fn run(
    job: &Job<'_>,
    source: &mut dyn Source,
    finished: SyncSender<Finished>,
    inbox: Inbox,
) -> Result<(), Error> {
    let streams = Streams::new(job.plan, job.devices, job.options)?;
    if let Some(reason) = streams.refused() {
        job.observer.event(&Event::Notice(format!(
            "weights stream from memory that could not be locked, more slowly than the link could: {reason}"
        )));
    }
    thread::scope(|scope| {
        let Inbox { sender, receiver } = inbox;
        let heads = job
            .plan
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| spawn_chain(scope, (job, &streams), index, chain, &sender))
            .collect();
        let (requests, wanted) = sync_channel(job.steps + 8);
        let reports = LastWord(sender);
        scope.spawn(move || prepare(source, &wanted, &reports));
        // The scheduler owns every way in and the way back closes with this scope: then every worker ends.
        Scheduler::new(job, heads, requests, finished).run(&receiver)
    })
}

/// A block between its first and its last step.
struct Open {
    latents: Tensor,
    audio: BlockAudio,
}

struct Scheduler<'a> {
    job: &'a Job<'a>,
    front: Wavefront,
    /// First block of the second anchor, if there will be one.
    swap_at: Option<usize>,
    open: BTreeMap<usize, Open>,
    anchors: [Option<Arc<Anchor>>; 2],
    heads: Vec<SyncSender<Packet>>,
    requests: SyncSender<usize>,
    requested: usize,
    received: usize,
    finished: SyncSender<Finished>,
}

impl<'a> Scheduler<'a> {
    fn new(
        job: &'a Job<'a>,
        heads: Vec<SyncSender<Packet>>,
        requests: SyncSender<usize>,
        finished: SyncSender<Finished>,
    ) -> Self {
        let clip = job.tables.geometry().clip_blocks;
        let swap_at = (job.swap != Swap::Never && job.blocks > clip).then_some(clip);
        let grid = Grid {
            blocks: job.blocks,
            steps: job.steps,
            swap_at,
        };
        Self {
            front: Wavefront::new(grid, job.plan),
            swap_at,
            open: BTreeMap::new(),
            anchors: [None, None],
            heads,
            requests,
            requested: 0,
            received: 0,
            finished,
            job,
        }
    }

    fn run(mut self, reports: &Receiver<Report>) -> Result<(), Error> {
        match self.work(reports) {
            // Whoever closed a channel on us said why before closing it.
            Err(Error::Stopped) => Err(reason(reports).unwrap_or(Error::Stopped)),
            result => result,
        }
    }

    fn work(&mut self, reports: &Receiver<Report>) -> Result<(), Error> {
        let AnchorInput {
            ref_latents,
            motion_latents,
        } = &self.job.anchor;
        self.prefill(0, ref_latents.clone(), motion_latents.clone())?;
        while !self.front.is_complete() {
            self.issue()?;
            let report = reports.recv().map_err(|_| Error::Stopped)?;
            if self.job.cancel.is_cancelled() {
                return Err(Error::Interrupted {
                    frames: 0,
                    partial: None,
                });
            }
            self.take(report)?;
        }
        Ok(())
    }

    /// Starts everything that may start.
    fn issue(&mut self) -> Result<(), Error> {
        while let Some(group) = self.front.issue() {
            let call = self.call(&group);
            let chain = group.chain;
            self.heads[chain]
                .send(Packet::Call(group, Box::new(call)))
                .map_err(|_| Error::Stopped)?;
        }
        while self.requested < self.front.wanted() {
            self.requests
                .send(self.requested)
                .map_err(|_| Error::Stopped)?;
            self.requested += 1;
        }
        Ok(())
    }

    fn call(&self, group: &Group) -> Call {
        let lane = |item: &Item| {
            let Open { latents, audio } = &self.open[&item.block];
            let relative_dist = self.job.distances.of(*item);
            Lane {
                item: *item,
                relative_dist,
                latents,
                pose_latents: None,
                audio,
            }
        };
        let lanes: Vec<Lane<'_>> = group.items.iter().map(lane).collect();
        let anchor = self.anchors[group.anchor]
            .clone()
            .expect("a group starts after its anchor");
        self.job.tables.call(&lanes, anchor)
    }

    /// An anchor that is placed down to `chain` goes on to the next chain with a device that lacks it; then it is there.
    fn anchored(&mut self, anchor: Box<Anchor>, chain: usize) -> Result<(), Error> {
        let lacks = |spec: &StageSpec| {
            let home = self.job.devices.home(spec.device);
            spec.layers.clone().any(|l| anchor.of(l, home).is_none())
        };
        let chains = self.job.plan.chains.iter().enumerate().skip(chain + 1);
        let mut next = chains.map(|(i, c)| (i, c.stages.iter().any(lacks)));
        if let Some((next, _)) = next.find(|(_, lacks)| *lacks) {
            return self.heads[next]
                .send(Packet::Place(anchor))
                .map_err(|_| Error::Stopped);
        }
        let index = anchor.index;
        self.anchors[index] = Some(Arc::from(anchor));
        self.front.anchored();
        self.job.observer.event(&Event::Anchored { index });
        Ok(())
    }

    /// A prefill goes down the first chain; what it computes serves every chain.
    fn prefill(
        &mut self,
        index: usize,
        ref_latents: Tensor,
        motion_latents: Tensor,
    ) -> Result<(), Error> {
        let prefill =
            self.job
                .tables
                .prefill(index, ref_latents, motion_latents, self.job.text.clone());
        self.heads[0]
            .send(Packet::Prefill(Box::new(prefill)))
            .map_err(|_| Error::Stopped)
    }

    fn take(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Prepared(input) => {
                self.open.insert(
                    self.received,
                    Open {
                        latents: input.latents,
                        audio: input.audio,
                    },
                );
                self.received += 1;
                self.front.prepared();
                Ok(())
            }
            Report::Anchored { anchor, chain } => self.anchored(anchor, chain),
            Report::Fed(input) => self.prefill(1, input.ref_latents, input.motion_latents),
            Report::Done(group, call) => self.done(&group, *call),
            Report::Failed(error) => Err(error),
            Report::Gone => Err(Error::Stopped),
        }
    }

    fn done(&mut self, group: &Group, call: Call) -> Result<(), Error> {
        let output = call.output.ok_or(Error::Interrupted {
            frames: 0,
            partial: None,
        })?;
        self.front.finished(group);
        for (lane, item) in group.items.iter().enumerate() {
            let one = lane..lane + 1;
            let (latents, noise_pred) = (
                call.latents.lanes(one.clone()),
                output.noise_pred.lanes(one.clone()),
            );
            self.job.observer.event(&Event::Stepped {
                item: *item,
                latents,
                noise_pred,
            });
            let next = output.next_latents.lanes(one).to_tensor();
            if item.step + 1 < self.job.steps {
                self.open
                    .get_mut(&item.block)
                    .expect("a block under way is open")
                    .latents = next;
            } else {
                self.leave(item.block, next)?;
            }
        }
        Ok(())
    }

    /// A block is clean: it may become the anchor, and goes to the decoder, which may make us wait.
    fn leave(&mut self, block: usize, latents: Tensor) -> Result<(), Error> {
        self.open.remove(&block);
        if block == 0 && self.job.swap == Swap::FirstLatent && self.swap_at.is_some() {
            let motion_latents = self.job.anchor.motion_latents.clone();
            self.prefill(1, latents::frames(&latents, 0..1), motion_latents)?;
        }
        if self.swap_at == Some(block + 1) {
            self.anchors[0] = None;
        }
        self.job.observer.event(&Event::Denoised {
            block,
            latents: &latents,
        });
        self.finished
            .send(Finished { block, latents })
            .map_err(|_| Error::Stopped)?;
        self.front.delivered();
        Ok(())
    }
}

/// The first failure among what was reported and not yet read.
fn reason(reports: &Receiver<Report>) -> Option<Error> {
    reports.try_iter().find_map(|report| match report {
        Report::Failed(error) => Some(error),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
