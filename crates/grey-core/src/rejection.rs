//! Why a command changed nothing. Replicas agree on it as they agree on everything else.

use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::gcra::{RateLimit, RateRefusal};
use crate::ids::{JobId, TaskId, TenantId, WorkerId};

/// A typed refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// The entry's body did not decode.
    #[error("the command could not be read")]
    Malformed,
    /// Nothing but a bootstrap may come before the bootstrap.
    #[error("the cluster has not been founded")]
    NotFounded,
    /// A second bootstrap.
    #[error("the cluster has been founded already")]
    AlreadyFounded,
    /// No such tenant.
    #[error("tenant {0} is unknown")]
    UnknownTenant(TenantId),
    /// No such job, or it has ended.
    #[error("job {0} is unknown or has ended")]
    UnknownJob(JobId),
    /// No such task, or it has ended.
    #[error("task {0} is unknown or has ended")]
    UnknownTask(TaskId),
    /// No such worker.
    #[error("worker {0} is unknown")]
    UnknownWorker(WorkerId),
    /// A field lies outside its bounds.
    #[error("`{field}` {problem}; the limit is {limit}")]
    OutOfBounds {
        /// Which field, as in the API.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// The bound.
        limit: u64,
    },
    /// A task of an array that was never given to a worker has nothing of its own that could be changed.
    #[error(
        "task {task} of the array has not started; what is changed for it is changed for the whole of {job}"
    )]
    NotStarted {
        /// The task.
        task: TaskId,
        /// Its job.
        job: JobId,
    },
    /// The key was used for another submission.
    #[error("the idempotency key was used for job {job} with another body")]
    IdempotencyConflict {
        /// The job that has the key.
        job: JobId,
    },
    /// The tenant has as many tasks or keys as it may.
    #[error("the tenant's {what} are at their limit of {limit}")]
    QueueFull {
        /// What is full.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A report or announcement of an earlier life of the worker.
    #[error("worker {worker} speaks as incarnation {given}; its present one is {present}")]
    StaleIncarnation {
        /// Who.
        worker: WorkerId,
        /// What it said.
        given: u64,
        /// What is known.
        present: u64,
    },
    /// What a worker said, or what was said of it, under an announcement that is not its present one.
    #[error("worker {worker} is spoken of under its announcement {given}; its present one is {present}")]
    StaleSession {
        /// Who.
        worker: WorkerId,
        /// Which announcement.
        given: u64,
        /// What is known.
        present: u64,
    },
    /// The worker was taken for lost, and has not announced itself since.
    #[error("worker {0} was lost and has to announce itself")]
    WorkerLost(WorkerId),
    /// A report was left out before this one.
    #[error("worker {worker} sent report {given}; report {expected} is due")]
    ReportOutOfOrder {
        /// Who.
        worker: WorkerId,
        /// What it sent.
        given: u64,
        /// What is due.
        expected: u64,
    },
    /// A tenant that an operator suspended submits.
    #[error("tenant {0} is suspended")]
    TenantSuspended(TenantId),
    /// No such node.
    #[error("node {0} is unknown")]
    UnknownNode(Digest),
    /// No such token.
    #[error("token {0} is unknown")]
    UnknownToken(Digest),
    /// A node, or a change of one, is not taken.
    #[error("{0}")]
    NotAdmitted(String),
    /// The number space of an identifier is used up.
    #[error("no {0} number is left")]
    Exhausted(String),
    /// What needs another feature level than is in force.
    #[error("feature level {needed} is needed and {in_force} is in force{}", raise_first(*.needed, *.in_force))]
    FeatureLevel {
        /// Which it needs, or is to be put in force.
        needed: u16,
        /// Which is in force.
        in_force: u16,
    },
    /// A feature level that a server does not understand is to be put in force.
    #[error(
        "server {server} understands feature levels up to {understands}, not {level}; upgrade or remove it first"
    )]
    NotUnderstood {
        /// The level.
        level: u16,
        /// The server's name.
        server: String,
        /// The newest that it understands.
        understands: u16,
    },
    /// A submission exceeds the tenant's rate.
    #[error("{refusal} (the tenant's rate is {} a second, {} at once)", .limit.tasks_per_second, .limit.burst)]
    RateExceeded {
        /// The rate.
        limit: RateLimit,
        /// Why it does not fit, and when it does.
        refusal: RateRefusal,
    },
    /// An invariant of Grey's own broke while applying this entry: its effects were discarded on every replica alike.
    #[error("internal error at index {index}: {what}")]
    InternalBug {
        /// The entry's index.
        index: u64,
        /// Which invariant.
        what: String,
    },
}

fn raise_first(needed: u16, in_force: u16) -> &'static str {
    if needed > in_force {
        "; once every server runs this version, `grey cluster upgrade` puts it in force"
    } else {
        ""
    }
}
