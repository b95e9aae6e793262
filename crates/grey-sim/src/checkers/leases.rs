//! Nothing runs on a worker that the cluster has taken for lost, and no task runs on two workers at once.
//!
//! A node that stands still runs nothing meanwhile, and its agent ends what is over before anything goes on.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{AttemptId, Presence, TaskId};
use grey_proof::Digest;

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Leases {
    running: BTreeMap<Digest, BTreeSet<AttemptId>>,
    by_task: BTreeMap<TaskId, BTreeSet<Digest>>,
    frozen: BTreeMap<Digest, u64>,
    lost: BTreeSet<Digest>,
}

impl Leases {
    fn is_frozen(&self, worker: &Digest, at_us: u64) -> bool {
        self.frozen.get(worker).is_some_and(|until_us| at_us < *until_us)
    }

    fn stop(&mut self, worker: &Digest, attempt: AttemptId) {
        self.running.entry(*worker).or_default().remove(&attempt);
        if let Some(workers) = self.by_task.get_mut(&attempt.task) {
            workers.remove(worker);
        }
    }
}

impl Checker for Leases {
    fn promise(&self) -> &'static str {
        "leases-hold"
    }

    fn observe(&mut self, at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Frozen { worker, until_us } => {
                let until = self.frozen.entry(*worker).or_default();
                *until = (*until).max(*until_us);
                Ok(())
            }
            Fact::Started { worker, attempt, .. } => {
                let workers = self.by_task.entry(attempt.task).or_default();
                let others: Vec<Digest> = workers.iter().filter(|other| *other != worker).copied().collect();
                workers.insert(*worker);
                self.running.entry(*worker).or_default().insert(*attempt);
                match others.iter().find(|other| !self.is_frozen(other, at_us)) {
                    Some(_) => Err(format!("{attempt:?} starts while the task runs on another worker")),
                    None => Ok(()),
                }
            }
            Fact::Stopped { worker, attempt, .. } => {
                self.stop(worker, *attempt);
                Ok(())
            }
            Fact::WorkerDied { worker } => {
                self.frozen.remove(worker);
                for attempt in self.running.remove(worker).unwrap_or_default() {
                    self.stop(worker, attempt);
                }
                Ok(())
            }
            Fact::Applied { first: true, index, state, .. } if state.applied_index() == *index => {
                for (id, row) in state.workers().iter() {
                    if row.presence != Presence::Lost {
                        self.lost.remove(&row.node);
                        continue;
                    }
                    let newly = self.lost.insert(row.node);
                    let running = self.running.get(&row.node).filter(|running| !running.is_empty());
                    if let Some(running) = running
                        && newly
                        && !self.is_frozen(&row.node, at_us)
                    {
                        return Err(format!("{id} was lost and runs {running:?}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
