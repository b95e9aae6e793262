//! What jobs that have not ended need, asked of the state in small steps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use grey_core::{BlobReference, Flow, Items, JobId, State, TaskId, TaskSpec};
use grey_replica::Replica;
use tokio::sync::{oneshot, watch};

use super::collector::Stop;
use crate::control::{Message, Question};

/// How many groups and jobs one question looks at: the state's thread has other things to do.
const STEP: usize = 2_000;

/// Asks the state from a thread that may wait.
pub(crate) struct Asker {
    pub(crate) control: Sender<Message>,
    pub(crate) kept: watch::Receiver<u64>,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Whether this is one server of several: then the state as it is here has to do, and what it does not name yet was counted on
    /// when it came, and is on other servers.
    pub(crate) is_among_others: bool,
}

/// What one step found.
#[derive(Default)]
struct Part {
    specs: Vec<Arc<TaskSpec>>,
    flows: Vec<Arc<Flow>>,
    next: Option<JobId>,
}

/// What live jobs need beside what their own records name.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    /// The first task of each run of tasks of earlier jobs whose output files are taken.
    pub(crate) tasks: BTreeSet<TaskId>,
}

fn part(state: &State, from: JobId) -> Part {
    let (mut part, mut looked_at) = (Part::default(), 0);
    for (id, job) in state.jobs().range(from..) {
        if looked_at >= STEP {
            part.next = Some(*id);
            break;
        }
        let tasks = job.info.tasks;
        for first in state.groups().range(tasks.first..tasks.end()).map(|(first, _)| *first) {
            looked_at += 1;
            let names_some = |spec: &&Arc<TaskSpec>| spec.blobs().next().is_some();
            part.specs.extend(state.spec(first).filter(names_some).cloned());
        }
        looked_at += 1;
        part.flows.extend(state.flow(*id).cloned());
    }
    part
}

impl Asker {
    /// Asks the state as of everything that was committed before; the answer comes with the index it is as of.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<(T, u64), Stop> {
        let (reply, answer) = oneshot::channel();
        if self.is_among_others {
            let question = Box::new(move |replica: &Replica| {
                drop(reply.send(Ok((question(replica.state()), replica.state().applied_index()))));
            });
            self.control.send(Message::Look(question)).map_err(|_| Stop::Ended)?;
        } else {
            let question: Question = Box::new(move |replica: Result<&Replica, _>| {
                let found =
                    replica.map(|replica| (question(replica.state()), replica.state().applied_index()));
                // Who asked and is gone needs no answer.
                drop(reply.send(found));
            });
            self.control.send(Message::Ask(question)).map_err(|_| Stop::Ended)?;
        }
        match answer.blocking_recv() {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(Stop::Failed(error.to_string())),
            Err(_) => Err(Stop::Ended),
        }
    }

    /// Waits until history has everything up to an index.
    fn catch_up(&self, index: u64) -> Result<(), Stop> {
        let mut kept = self.kept.clone();
        let caught_up = self.runtime.block_on(kept.wait_for(|kept| *kept >= index)).map(|_| ());
        caught_up.map_err(|_| Stop::Ended)
    }

    /// Goes through all live jobs: `blob` is told of each that they name, and whether it is a list of items. History has
    /// everything of the jobs that had ended meanwhile when this returns.
    pub(crate) fn needed(
        &self,
        mut blob: impl FnMut(BlobReference, bool) -> Result<(), Stop>,
        mut rest: impl FnMut() -> Result<(), Stop>,
    ) -> Result<Needed, Stop> {
        let (mut needed, mut from) = (Needed::default(), JobId(0));
        loop {
            let (part, index) = self.ask(move |state| part(state, from))?;
            for named in part.specs.iter().flat_map(|spec| spec.blobs()) {
                blob(named, false)?;
            }
            for stage in part.flows.iter().flat_map(|flow| &flow.stages) {
                if let Some(Items::Listed(list)) = stage.items {
                    blob(list, true)?;
                }
                // A job's own tasks are those of a live job; asking for them does no harm.
                let taken = stage.inputs.iter().flat_map(|input| &input.tasks);
                needed.tasks.extend(taken.map(|range| range.first));
            }
            match part.next {
                Some(next) => from = next,
                None => {
                    self.catch_up(index)?;
                    return Ok(needed);
                }
            }
            rest()?;
        }
    }

    /// Which of these jobs live, ascending. History has the ends of the others when this returns.
    pub(crate) fn live_of(&self, jobs: &[u64]) -> Result<Vec<u64>, Stop> {
        let mut live = Vec::new();
        for some in jobs.chunks(STEP) {
            let some = some.to_vec();
            let (found, index) = self.ask(move |state| {
                some.into_iter().filter(|job| state.jobs().contains_key(&JobId(*job))).collect::<Vec<u64>>()
            })?;
            self.catch_up(index)?;
            live.extend(found);
        }
        Ok(live)
    }
}
