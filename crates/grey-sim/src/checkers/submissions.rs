//! An acknowledged submission is there for ever, once, whatever became of the answer.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Answer, Effect, EventKind, HistoryRecord, JobId, Rejection, TaskRange};

use super::Checker;
use crate::fact::{Fact, Told, Wish};

#[derive(Default)]
pub struct Submissions {
    /// Jobs in the log, and whether they ended.
    jobs: BTreeMap<JobId, bool>,
    acknowledged: BTreeMap<JobId, (usize, u64)>,
    ranges: BTreeMap<u64, u64>,
    open: BTreeSet<(usize, u64)>,
}

impl Submissions {
    fn acknowledge(&mut self, job: JobId, tasks: TaskRange, who: (usize, u64)) -> Result<(), String> {
        if !self.jobs.contains_key(&job) {
            return Err(format!("{job} was acknowledged and is in no log"));
        }
        if let Some(other) = self.acknowledged.insert(job, who)
            && other != who
        {
            return Err(format!("{job} is the answer to two submissions: {other:?} and {who:?}"));
        }
        let (first, end) = (tasks.first.0, tasks.end().0);
        let before = self.ranges.range(..=first).next_back().is_some_and(|(_, other)| *other > first);
        let after = self.ranges.range(first..).next().is_some_and(|(other, _)| *other < end);
        if before || after {
            return Err(format!("tasks of {job} have the numbers of others"));
        }
        self.ranges.insert(first, end);
        Ok(())
    }
}

impl Checker for Submissions {
    fn promise(&self) -> &'static str {
        "acknowledged-stays"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { first: true, applied, .. } => {
                for effect in &applied.effects {
                    match effect {
                        Effect::Event(event)
                            if event.kind == EventKind::Submitted
                                && self.jobs.insert(event.job, false).is_some() =>
                        {
                            return Err(format!("{} was submitted twice", event.job));
                        }
                        Effect::History(HistoryRecord::Job(job, record)) => {
                            if record.counts.total() != u64::from(record.info.tasks.count) {
                                return Err(format!("{job} ended with {:?}", record.counts));
                            }
                            if self.jobs.insert(*job, true) != Some(false) {
                                return Err(format!("{job} ended twice or was never submitted"));
                            }
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Fact::Asked { client, operation, wish: Wish::Submit { .. }, .. } => {
                self.open.insert((*client, *operation));
                Ok(())
            }
            Fact::Answered { client, operation, wish: Wish::Submit { body, .. }, told, .. } => {
                self.open.remove(&(*client, *operation));
                match told {
                    Told::Applied(Ok(Answer::Submitted { job, tasks, .. })) => {
                        let asked: u64 = body.groups.iter().map(|group| u64::from(group.count)).sum();
                        if u64::from(tasks.count) != asked {
                            return Err(format!("{job} has {} tasks of {asked}", tasks.count));
                        }
                        self.acknowledge(*job, *tasks, (*client, *operation))
                    }
                    Told::Applied(Err(Rejection::QueueFull { .. } | Rejection::NotFounded)) => Ok(()),
                    other => Err(format!("a submission was answered by {other:?}")),
                }
            }
            Fact::Final { server, state, .. } => {
                for (job, ended) in &self.jobs {
                    if *ended == state.jobs().contains_key(job) {
                        return Err(format!("{job} is lost on server {server}"));
                    }
                    if !self.acknowledged.contains_key(job) && self.open.is_empty() {
                        return Err(format!("{job} is in the log and no submission's"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
