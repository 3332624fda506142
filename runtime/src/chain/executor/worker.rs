//! The executor's threads: what they take, what they report, and how they end. A worker runs one stage in the order that calls arrive; it
//! never waits for anyone but the next stage, and reports every ending.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use super::{AnchorInput, Job};
use crate::chain::call::{Anchor, Call, Prefill};
use crate::chain::source::{BlockInput, Source};
use crate::chain::page_locks::Streams;
use crate::chain::stage::{Site, Stage, anchor_of};
use crate::commands::error::Error;
use crate::placement::plan::{Chain, StageSpec};
use crate::placement::wavefront::Group;

/// What travels down a chain.
pub(super) enum Packet {
    Call(Group, Box<Call>),
    Prefill(Box<Prefill>),
    /// An anchor that other devices hold, to be placed on this chain's.
    Place(Box<Anchor>),
}

/// What comes back to the scheduler.
pub(super) enum Report {
    Prepared(Box<BlockInput>),
    Done(Group, Box<Call>),
    /// Placed on the devices of a chain.
    Anchored {
        anchor: Box<Anchor>,
        chain: usize,
    },
    Fed(Box<AnchorInput>),
    Failed(Error),
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
    /// False when nobody listens any more.
    pub(super) fn send(&self, report: Report) -> bool {
        self.0.send(report).is_ok()
    }
}

pub(super) fn prepare(source: &mut dyn Source, wanted: &Receiver<usize>, reports: &LastWord) {
    for block in wanted {
        let report = match source.block(block) {
            Ok(input) => Report::Prepared(Box::new(input)),
            Err(error) => Report::Failed(error),
        };
        let ends = matches!(report, Report::Failed(_));
        if !reports.send(report) || ends {
            return;
        }
    }
}

/// Starts a chain's workers, last first, and returns the way into it.
pub(super) fn spawn_chain<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    (job, streams): (&'env Job<'env>, &'env Streams),
    index: usize,
    chain: &'env Chain,
    reports: &SyncSender<Report>,
) -> SyncSender<Packet> {
    let mut next = None;
    for spec in chain.stages.iter().rev() {
        // The head never makes the scheduler wait: it holds every call that may be under way.
        let room = if spec.layers.start == 0 {
            chain.stages.len() + 1 + PREFILLS
        } else {
            1
        };
        let (sender, receiver) = sync_channel(room);
        let worker = Worker {
            job,
            streams,
            index,
            chain,
            spec,
            next: next.replace(sender),
            reports: LastWord(reports.clone()),
        };
        scope.spawn(move || worker.run(&receiver));
    }
    next.expect("a chain has a stage")
}

struct Worker<'a> {
    job: &'a Job<'a>,
    streams: &'a Streams,
    index: usize,
    chain: &'a Chain,
    spec: &'a StageSpec,
    next: Option<SyncSender<Packet>>,
    reports: LastWord,
}

impl Worker<'_> {
    fn run(self, packets: &Receiver<Packet>) {
        if let Err(error) = self.work(packets) {
            let StageSpec { device, layers, .. } = self.spec;
            let stage = format!(
                "cpu:{device} layers {}-{}",
                layers.start,
                layers.end.saturating_sub(1)
            );
            self.reports.send(Report::Failed(match error {
                Error::Engine(source) => Error::Stage { stage, source },
                error => error,
            }));
        }
    }

    fn anchored(&self, anchor: Box<Anchor>) -> Report {
        Report::Anchored {
            anchor,
            chain: self.index,
        }
    }

    fn work(&self, packets: &Receiver<Packet>) -> Result<(), Error> {
        let job = self.job;
        let stop = || job.cancel.is_cancelled();
        let site = Site {
            backend: job.devices.get(self.spec.device)?,
            home: job.devices.home(self.spec.device),
            host: Arc::clone(job.devices.host()),
            model: job.model,
            geometry: job.tables.geometry(),
            lanes: self.chain.lanes,
            options: job.options,
            streaming: Some(self.streams),
        };
        let mut stage = Stage::load(site, self.spec)?;
        for mut packet in packets {
            match &mut packet {
                Packet::Call(_, call) => stage.denoise(call, &stop)?,
                Packet::Prefill(prefill) => stage.prefill(prefill, &stop)?,
                Packet::Place(anchor) => stage.place(anchor)?,
            }
            let sent = match &self.next {
                Some(next) => next.send(packet).is_ok(),
                None => self.reports.send(match packet {
                    Packet::Call(group, call) => Report::Done(group, call),
                    Packet::Prefill(prefill) => self.anchored(Box::new(anchor_of(*prefill))),
                    Packet::Place(anchor) => self.anchored(anchor),
                }),
            };
            if !sent {
                return Ok(());
            }
        }
        Ok(())
    }
}
