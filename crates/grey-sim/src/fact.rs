//! What checkers are told.

use std::collections::BTreeMap;

use grey_core::{
    Answer, Applied, AttemptId, Cancel, ChangeTimeout, Counts, JobId, Outcome, Rejection, Resources, State,
    Submit, TaskId, TenantId, WorkerId,
};
use grey_proof::Digest;

/// What a client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A job; whether every task of it could run on some worker.
    Submit { body: Box<Submit>, feasible: bool },
    /// An end.
    Cancel(Cancel),
    /// Another time-out.
    ChangeTimeout(ChangeTimeout),
    /// Where the tasks of a job are.
    Read(JobId),
}

/// What a client was told in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// What the cluster made of a command.
    Applied(Result<Answer, Rejection>),
    /// The counts of a job; absent when it has ended.
    Read(Option<Counts>),
}

/// An attempt that a plan gave to a worker.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    pub attempt: AttemptId,
    pub group: TaskId,
    pub worker: WorkerId,
}

/// One thing that happened.
#[derive(Debug)]
pub enum Fact<'a> {
    /// A replica applied an entry.
    Applied {
        server: u64,
        term: u64,
        index: u64,
        /// Whether no replica applied this index before.
        first: bool,
        /// The state after it.
        state: &'a State,
        applied: &'a Applied,
        /// What a plan gave away, where the state is that after this very entry.
        placed: &'a [Placed],
        /// Cancelled attempts that have yet to stop, after an entry that cancelled any.
        stopping: &'a [AttemptId],
    },
    /// A replica came back with what its checkpoint covers; how many reports that are.
    Restored { server: u64, index: u64, reports: u64, hash: Option<Digest> },
    /// A replica took over a whole state, without what had led to it; how many reports are in it.
    Installed { server: u64, index: u64, reports: u64, hash: Option<Digest> },
    /// A replica believes that it leads.
    Leads { server: u64, term: u64 },
    /// A client asked, for the first time or again; whatever became of it before may still come about.
    Asked { client: usize, operation: u64, wish: &'a Wish },
    /// A client was told that its tenant may not submit now.
    Refused { tenant: TenantId },
    /// A client learned what became of it.
    Answered { client: usize, operation: u64, wish: &'a Wish, told: &'a Told },
    /// A worker gave an attempt to its executor.
    Started { worker: Digest, attempt: AttemptId, needs: Resources, capacity: Resources },
    /// An attempt ended on a worker by itself or was stopped there, with its process gone.
    Stopped { worker: Digest, attempt: AttemptId, outcome: Option<Outcome> },
    /// A worker stands still until then, with what runs on it.
    Frozen { worker: Digest, until_us: u64 },
    /// A worker's process ended, and every attempt with it.
    WorkerDied { worker: Digest },
    /// At the end: what a server that is up has.
    Final { server: u64, state: &'a State, history: &'a BTreeMap<u64, Digest> },
}
