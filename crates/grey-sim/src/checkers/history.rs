//! What clients see is as if everything happened one after the other, between its question and its answer.
//!
//! All that a client can observe of a job only ever grows: it exists, tasks of it have ended, it has ended. For such a
//! history linearizability needs no search (Wing and Gong, 1993): a read must show at least what was known, to anybody,
//! before it was asked, and nothing that the log does not have when it is answered. An answer that never came says
//! nothing, and whether the operation was carried out shows in the log alone.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Answer, Cancel, Counts, Effect, HistoryRecord, JobId, Rejection, Target, TaskId};

use super::Checker;
use crate::fact::{Fact, Told, Wish};

/// What is known of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    completed: u64,
    failed: u64,
    cancelled: u64,
    /// A cancel of all of it was acknowledged.
    cancel: bool,
    ended: bool,
}

#[derive(Default)]
pub struct History {
    jobs: BTreeMap<JobId, Known>,
    jobs_by_task: BTreeMap<TaskId, (TaskId, JobId)>,
    /// What was known when a read was asked.
    open: BTreeMap<(usize, u64), Known>,
    ended: BTreeSet<JobId>,
}

impl History {
    fn known(&self, job: JobId) -> Known {
        Known { ended: self.ended.contains(&job), ..self.jobs.get(&job).copied().unwrap_or_default() }
    }

    fn read(&mut self, job: JobId, before: Known, counts: Option<Counts>) -> Result<(), String> {
        let Some(counts) = counts else {
            if self.ended.contains(&job) {
                return Ok(());
            }
            return Err(format!("a read did not find {job}, which has not ended"));
        };
        let grew = counts.completed >= before.completed
            && counts.failed >= before.failed
            && counts.cancelled >= before.cancelled;
        let over = counts.live() == 0 || !before.cancel;
        if !grew || !over || before.ended {
            return Err(format!("a read of {job} shows {counts:?}, though {before:?} was known before"));
        }
        let known = self.jobs.entry(job).or_default();
        known.completed = known.completed.max(counts.completed);
        known.failed = known.failed.max(counts.failed);
        known.cancelled = known.cancelled.max(counts.cancelled);
        Ok(())
    }

    fn job_of(&self, target: Target) -> Option<JobId> {
        match target {
            Target::Job(job) => Some(job),
            Target::Task(task) => {
                let (_, (end, job)) = self.jobs_by_task.range(..=task).next_back()?;
                (task < *end).then_some(*job)
            }
        }
    }

    fn cancelled(&mut self, body: &Cancel, told: &Told) -> Result<(), String> {
        match (told, body.target) {
            (Told::Applied(Ok(Answer::Cancelled { .. })), Target::Job(job)) => {
                self.jobs.entry(job).or_default().cancel = true;
                Ok(())
            }
            (Told::Applied(Ok(Answer::Cancelled { .. })), Target::Task(_)) => Ok(()),
            (Told::Applied(Err(Rejection::UnknownJob(_) | Rejection::UnknownTask(_))), target) => {
                match self.job_of(target) {
                    Some(job) if !self.ended.contains(&job) => {
                        Err(format!("a cancel did not find {job}, which has not ended"))
                    }
                    _ => Ok(()),
                }
            }
            (other, _) => Err(format!("a cancel was answered by {other:?}")),
        }
    }
}

impl Checker for History {
    fn promise(&self) -> &'static str {
        "clients-see-one-order"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { first: true, applied, .. } => {
                for effect in &applied.effects {
                    if let Effect::History(HistoryRecord::Job(job, _)) = effect {
                        self.ended.insert(*job);
                    }
                }
                Ok(())
            }
            Fact::Invoked { client, operation, wish: Wish::Read(job) } => {
                self.open.insert((*client, *operation), self.known(*job));
                Ok(())
            }
            Fact::Answered { client, operation, wish, told, .. } => match (wish, told) {
                (Wish::Read(job), Told::Read(counts)) => {
                    let before = self.open.remove(&(*client, *operation)).unwrap_or_default();
                    self.read(*job, before, *counts)
                }
                (Wish::Submit { .. }, Told::Applied(Ok(Answer::Submitted { job, tasks, .. }))) => {
                    self.jobs.entry(*job).or_default();
                    self.jobs_by_task.insert(tasks.first, (tasks.end(), *job));
                    Ok(())
                }
                (Wish::Cancel(body), told) => self.cancelled(body, told),
                (Wish::ChangeTimeout(_), Told::Applied(Err(Rejection::InternalBug { what, .. }))) => {
                    Err(what.clone())
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
