//! What applying an entry asks the outside to do. Effects are returned, never done here.

use std::sync::Arc;

use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::attempt::AttemptId;
use crate::command::Placement;
use crate::flow::Stage;
use crate::history::HistoryRecord;
use crate::ids::{JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::rejection::Rejection;
use crate::rows::Counts;
use crate::spec::TaskSpec;

/// Attempts given to a worker, with all that it needs to run them and to state what they came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Worker, tasks and epoch.
    pub placement: Placement,
    /// The job.
    pub job: JobId,
    /// First task of the group: a task's index is its distance from it.
    pub group: TaskId,
    /// Name of the tenant.
    pub tenant: Arc<str>,
    /// What to do.
    pub spec: Arc<TaskSpec>,
    /// What the tasks are given of others, where the job has stages.
    pub stage: Option<Arc<Stage>>,
    /// The time-out of each attempt, in milliseconds: what the specification says, unless it was changed.
    pub timeout_ms: u64,
    /// Term of the assigning entry.
    pub term: u64,
    /// Index of the assigning entry.
    pub index: u64,
}

/// What happened to a job or to tasks of it: for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Index of the entry.
    pub index: u64,
    /// The job.
    pub job: JobId,
    /// What.
    pub kind: EventKind,
}

/// The kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The job was accepted.
    Submitted,
    /// An attempt ended; `retry` when the task is tried again.
    AttemptEnded {
        /// The task.
        task: TaskId,
        /// The outcome's class.
        outcome: &'static str,
        /// Whether the task goes on.
        retry: bool,
    },
    /// A cancel was committed for this many tasks.
    Cancelled(u64),
    /// No task of the job is left.
    Ended(Counts),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the worker to run attempts. Leader only.
    Assign(Assignment),
    /// Tell the worker to stop an attempt. Leader only.
    Stop {
        /// Who holds it.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
    },
    /// Tell the worker that attempts have another time-out. Leader only.
    ChangeTimeout {
        /// Who holds them.
        worker: WorkerId,
        /// Which.
        attempts: Vec<AttemptId>,
        /// Their time-out from now on, in milliseconds.
        timeout_ms: u64,
    },
    /// Keep a record. Every replica.
    History(HistoryRecord),
    /// The cluster's log grew by one leaf at `position`: keep these stored hashes. Every replica.
    LogGrew {
        /// The new leaf's position.
        position: u64,
        /// The leaf's hash and every interior hash that it completes.
        hashes: Vec<Digest>,
    },
    /// Tell those who watch. Every replica.
    Event(Event),
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing to say but that it was done.
    Done,
    /// The cluster was founded.
    Founded,
    /// Something changed about who belongs to the cluster or who may speak.
    Identity,
    /// A node belongs to the cluster, or has other certificates.
    Admitted {
        /// Its number, where it is a server.
        server: Option<u64>,
    },
    /// A tenant was made.
    TenantCreated {
        /// Its number.
        tenant: TenantId,
    },
    /// A submission was accepted, now or earlier under the same key.
    Submitted {
        /// The job.
        job: JobId,
        /// Its tasks.
        tasks: TaskRange,
        /// Whether an earlier submission made it.
        duplicate: bool,
    },
    /// A worker is known.
    Registered {
        /// Under this number.
        worker: WorkerId,
        /// Attempts that it holds and the state does not: to be stopped.
        unknown: Vec<AttemptId>,
    },
    /// A plan was applied.
    Planned {
        /// Tasks placed.
        placed: u64,
        /// Tasks whose placement had become stale.
        stale: u64,
    },
    /// A report was accepted; the worker may forget it.
    Reported {
        /// Whether it had been accepted before.
        duplicate: bool,
    },
    /// Attempts were given back.
    Revoked {
        /// How many of them wait again.
        revoked: u64,
    },
    /// A time-out was changed.
    TimeoutChanged {
        /// Of how many tasks.
        tasks: u64,
    },
    /// A cancel was committed.
    Cancelled {
        /// Tasks that it ended.
        cancelled: u64,
        /// Tasks of the target that had ended before.
        already_ended: u64,
    },
}

impl Answer {
    /// Whether nothing changed about who belongs to the cluster and who may speak.
    pub fn is_routine(&self) -> bool {
        !matches!(
            self,
            Answer::Founded | Answer::Identity | Answer::Admitted { .. } | Answer::TenantCreated { .. }
        )
    }
}

/// The result of applying one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer to whoever proposed it.
    pub answer: Result<Answer, Rejection>,
    /// What is to be done, in order.
    pub effects: Vec<Effect>,
}
