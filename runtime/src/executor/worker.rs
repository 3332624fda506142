//! The executor's threads: what they take, what they report, and how they end. A worker runs one stage in the order that calls arrive; it
//! never waits for anyone but the next stage, and reports every ending.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use engines::backend::EngineError;

use super::{AnchorInput, Job};
use crate::call::{Anchor, Call, Prefill};
use crate::condition::{BlockInput, Source};
use crate::error::Error;
use crate::plan::StageSpec;
use crate::stage::{Stage, anchor_of};
use crate::wavefront::Group;

/// Packets that may wait at the head of a chain beside its calls: the prefills.
pub(super) const PREFILLS: usize = 2;

/// What travels down a chain.
pub(super) enum Packet {
    Call(Group, Box<Call>),
    Prefill(Box<Prefill>),
}

/// What comes back to the scheduler.
pub(super) enum Report {
    Prepared(Box<BlockInput>),
    Done(Group, Box<Call>),
    Anchored(Arc<Anchor>),
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
    job: &'env Job<'env>,
    stages: &'env [StageSpec],
    reports: &SyncSender<Report>,
) -> SyncSender<Packet> {
    let mut next = None;
    for spec in stages.iter().rev() {
        // The head never makes the scheduler wait: it holds every call that may be under way.
        let room = if spec.layers.start == 0 {
            stages.len() + 1 + PREFILLS
        } else {
            1
        };
        let (sender, receiver) = sync_channel(room);
        let worker = Worker {
            job,
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
    spec: &'a StageSpec,
    next: Option<SyncSender<Packet>>,
    reports: LastWord,
}

impl Worker<'_> {
    fn run(self, packets: &Receiver<Packet>) {
        if let Err(source) = self.work(packets) {
            let StageSpec { device, layers, .. } = self.spec;
            let stage = format!(
                "cpu:{device} layers {}-{}",
                layers.start,
                layers.end.saturating_sub(1)
            );
            self.reports.send(Report::Failed(Error::Stage {
                stage,
                source: Box::new(source),
            }));
        }
    }

    fn work(&self, packets: &Receiver<Packet>) -> Result<(), EngineError> {
        let job = self.job;
        let stop = || job.cancel.is_cancelled();
        let mut stage = Stage::load(
            job.backend,
            self.spec,
            job.layers,
            job.tables.geometry(),
            job.options,
        )?;
        for mut packet in packets {
            match &mut packet {
                Packet::Call(_, call) => stage.denoise(call, &stop)?,
                Packet::Prefill(prefill) => stage.prefill(prefill, &stop)?,
            }
            let sent = match &self.next {
                Some(next) => next.send(packet).is_ok(),
                None => self.reports.send(match packet {
                    Packet::Call(group, call) => Report::Done(group, call),
                    Packet::Prefill(prefill) => Report::Anchored(anchor_of(*prefill)),
                }),
            };
            if !sent {
                return Ok(());
            }
        }
        Ok(())
    }
}
