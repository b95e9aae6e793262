//! What a cluster decided, from its log and from what its servers told workers: for tests that ask for figures, not for promises.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    AttemptId, Counts, Effect, Epoch, HistoryRecord, JobId, Outcome, ReportAnswer, ReportRecord, TaskId,
    TaskRange, WorkerMessage,
};
use grey_proof::Digest;

use crate::fact::Fact;

/// An attempt as its worker ran it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// On which node.
    pub worker: Digest,
    /// When it was started, in microseconds.
    pub from_us: u64,
    /// When it ended or was stopped, in microseconds; absent while it runs, and where its process died.
    pub to_us: Option<u64>,
    /// What it came to, where it ended.
    pub outcome: Option<Outcome>,
}

/// What was decided so far.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// How jobs ended, with their tasks.
    pub ended: BTreeMap<JobId, (TaskRange, Counts)>,
    /// Results that were accepted, of each task in order.
    pub accepted: BTreeMap<TaskId, Vec<(Epoch, Outcome)>>,
    /// Attempts whose results were refused, since they were the task's no longer: in a report or already when the worker announced itself.
    pub refused: BTreeSet<AttemptId>,
    /// Attempts that were started.
    pub runs: BTreeMap<AttemptId, Run>,
}

impl Ledger {
    /// Tasks of the jobs that ended, and how often a success of each was accepted.
    pub fn completions(&self) -> BTreeMap<TaskId, usize> {
        let tasks = self.ended.values().flat_map(|(tasks, _)| tasks.tasks());
        let successes = |task: TaskId| {
            let accepted = self.accepted.get(&task).into_iter().flatten();
            accepted.filter(|(_, outcome)| *outcome == Outcome::Exited(0)).count()
        };
        tasks.map(|task| (task, successes(task))).collect()
    }

    pub(crate) fn note(&mut self, at_us: u64, fact: &Fact<'_>) {
        match fact {
            Fact::Started { worker, attempt, .. } => {
                self.runs
                    .insert(*attempt, Run { worker: *worker, from_us: at_us, to_us: None, outcome: None });
            }
            Fact::Stopped { attempt, outcome, .. } => {
                self.runs
                    .entry(*attempt)
                    .and_modify(|run| (run.to_us, run.outcome) = (Some(at_us), *outcome));
            }
            Fact::Applied { first: true, applied, .. } => {
                for effect in &applied.effects {
                    match effect {
                        Effect::History(HistoryRecord::Report(record)) => self.reported(record),
                        Effect::History(HistoryRecord::Job(job, record)) => {
                            self.ended.insert(*job, (record.info.tasks, record.counts));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// A server tells a worker something.
    pub(crate) fn told(&mut self, message: &WorkerMessage) {
        match message {
            WorkerMessage::Reported(_, ReportAnswer::NotHeld(attempts)) => self.refused.extend(attempts),
            // Whatever they came to is not asked for any more.
            WorkerMessage::Registered { unknown, .. } => self.refused.extend(unknown),
            _ => {}
        }
    }

    fn reported(&mut self, record: &ReportRecord) {
        let mut leaf = 0;
        for run in &record.runs {
            let (epoch, outcome) = (run.finished.epoch, run.finished.result.outcome);
            for task in run.finished.tasks.tasks() {
                if record.refused.binary_search(&leaf).is_ok() {
                    self.refused.insert(AttemptId { task, epoch });
                } else {
                    self.accepted.entry(task).or_default().push((epoch, outcome));
                }
                leaf += 1;
            }
        }
    }
}
