//! Epochs rise by one; what an attempt came to is accepted once, from the worker that ran it, in its own epoch, and not
//! after the task has ended.

use std::collections::BTreeMap;

use grey_core::{AttemptId, Effect, EventKind, HistoryRecord, Outcome, ReportRecord, TaskId};
use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

#[derive(Default, Clone, Copy)]
struct Task {
    /// The latest assignment.
    epoch: u32,
    /// The latest accepted result.
    accepted: u32,
    /// Completed or failed for good.
    ended: bool,
    /// A cancel was committed.
    cancelled: bool,
}

#[derive(Default)]
pub struct Completions {
    tasks: BTreeMap<TaskId, Task>,
    /// What each worker ran and what it came to there.
    ran: BTreeMap<(Digest, AttemptId), Option<Outcome>>,
}

impl Completions {
    fn accept(&mut self, attempt: AttemptId) -> Result<(), String> {
        let task = self.tasks.entry(attempt.task).or_default();
        let epoch = attempt.epoch.0;
        if task.ended || task.cancelled {
            return Err(format!("a result of {attempt:?} was accepted after the task had ended"));
        }
        // An assignment may have been applied together with what followed it, and so not been seen.
        task.epoch = task.epoch.max(epoch);
        if epoch < task.epoch {
            return Err(format!("a result of {attempt:?} was accepted in epoch {}", task.epoch));
        }
        if task.accepted == epoch {
            return Err(format!("two results of {attempt:?} were accepted"));
        }
        task.accepted = epoch;
        Ok(())
    }

    /// What a report says must be what its worker saw.
    fn compare(&self, record: &ReportRecord) -> Result<(), String> {
        let mut leaf = 0;
        for run in &record.runs {
            for task in run.finished.tasks.tasks() {
                let attempt = AttemptId { task, epoch: run.finished.epoch };
                let said = run.finished.result.outcome;
                let refused = record.refused.binary_search(&leaf).is_ok();
                leaf += 1;
                let unstarted = matches!(said, Outcome::Cancelled | Outcome::Infrastructure);
                match self.ran.get(&(record.node, attempt)) {
                    Some(Some(outcome)) if *outcome == said => {}
                    None if unstarted => {}
                    _ if refused => {}
                    found => return Err(format!("{attempt:?} was reported as {said:?}, and was {found:?}")),
                }
            }
        }
        Ok(())
    }
}

impl Checker for Completions {
    fn promise(&self) -> &'static str {
        "one-completion"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Started { worker, attempt, .. } => {
                if self.ran.insert((*worker, *attempt), None).is_some() {
                    return Err(format!("{attempt:?} was started twice on one worker"));
                }
                Ok(())
            }
            Fact::Stopped { worker, attempt, outcome } => {
                self.ran.insert((*worker, *attempt), *outcome);
                Ok(())
            }
            Fact::Applied { first: true, applied, placed, stopping, .. } => {
                for one in *placed {
                    let (id, epoch) = (one.attempt.task, one.attempt.epoch.0);
                    let task = self.tasks.entry(id).or_default();
                    if epoch <= task.epoch || task.ended || task.cancelled {
                        return Err(format!("{id} was assigned in epoch {epoch} after {}", task.epoch));
                    }
                    task.epoch = epoch;
                }
                for attempt in *stopping {
                    self.tasks.entry(attempt.task).or_default().cancelled = true;
                }
                for effect in &applied.effects {
                    match effect {
                        Effect::History(HistoryRecord::Attempts { tasks, epoch, .. }) => {
                            for task in tasks.tasks() {
                                self.accept(AttemptId { task, epoch: grey_core::Epoch(*epoch) })?;
                            }
                        }
                        Effect::History(HistoryRecord::Report(record)) => self.compare(record)?,
                        _ => {}
                    }
                }
                for effect in &applied.effects {
                    if let Effect::Event(event) = effect
                        && let EventKind::AttemptEnded { task, retry: false, .. } = event.kind
                    {
                        let entry = self.tasks.entry(task).or_default();
                        if entry.ended {
                            return Err(format!("{task} ended twice"));
                        }
                        entry.ended = true;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
