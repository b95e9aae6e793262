//! Records of what has ended. They leave the state for immutable history segments: memory follows live work only.

use grey_proof::{Digest, DigestBuilder};
use serde::{Deserialize, Serialize};

use crate::attempt::Finished;
use crate::command::SignedRoot;
use crate::flow::{Broken, Flow, Stage};
use crate::ids::{JobId, TaskId, TaskRange};
use crate::rows::{Counts, JobInfo};
use crate::spec::{ExecutorKind, TaskSpec};

/// What a statement says of the assignment behind each attempt of a [`Finished`] run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunContext {
    /// The job.
    pub job: JobId,
    /// Name of the tenant.
    pub tenant: String,
    /// What executed it.
    pub executor: ExecutorKind,
    /// Digest of everything that was executed.
    pub exec_key: Digest,
    /// Which item of its array the first attempt had, from zero, where the array has items; each following one has the
    /// next.
    pub first_item: Option<u32>,
    /// Term and index of the entry that assigned each attempt, in order.
    pub assigned: Vec<(u64, u64)>,
}

/// Attempts that ended together, with what their statements need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedRun {
    /// Where they came from; absent where every attempt of the run was refused, as nothing is known of it.
    pub context: Option<RunContext>,
    /// What they came to.
    pub finished: Finished,
}

/// A report as accepted: everything from which its statements, its root and its place in the cluster's log are rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// Position in the cluster's log of reports, from zero; the record's key.
    pub position: u64,
    /// The worker's node.
    pub node: Digest,
    /// Its certificate.
    pub certificate: Digest,
    /// Its life.
    pub incarnation: u64,
    /// The report's number in that life.
    pub sequence: u64,
    /// The signature over the statements.
    pub signed: SignedRoot,
    /// Term of the entry that accepted it.
    pub term: u64,
    /// Index of the entry that accepted it.
    pub index: u64,
    /// Leaves that were not accepted, ascending.
    pub refused: Vec<u32>,
    /// The attempts, in the order of the leaves.
    pub runs: Vec<ReportedRun>,
}

/// Where the record of one attempt lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptPointer {
    /// Position of its report.
    pub position: u64,
    /// Its leaf in that report.
    pub leaf: u32,
}

/// A job that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// What never changed.
    pub info: JobInfo,
    /// How its tasks ended.
    pub counts: Counts,
    /// Wall clock of the last report, milliseconds since 1970; not before the job's submission, nor before what the last
    /// submission or cancel of any job said.
    pub ended_at_ms: u64,
    /// What its tasks were, in order.
    pub groups: Vec<(TaskRange, TaskSpec)>,
}

/// The flow of a job that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// What it was.
    pub flow: Flow,
    /// Why each stage could not be completed, where it could not.
    pub broken: Vec<Option<Broken>>,
}

/// One record to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryRecord {
    /// Where the attempts `first, first + 1, …` of `epoch` lie: leaves `leaf, leaf + 1, …` of one report.
    Attempts {
        /// The tasks.
        tasks: TaskRange,
        /// Their epoch.
        epoch: u32,
        /// Where the first one's record lies.
        pointer: AttemptPointer,
    },
    /// A report.
    Report(Box<ReportRecord>),
    /// A job that ended.
    Job(JobId, Box<JobRecord>),
    /// How the stages of a job that ended followed one another, where it had any.
    Flow(JobId, Box<FlowRecord>),
}

impl RunContext {
    /// Digest of everything that the attempt at `offset` executed: its item too, where it has one.
    pub fn exec_key_of(&self, offset: u32) -> Digest {
        let Some(first) = self.first_item else { return self.exec_key };
        let mut hash = DigestBuilder::domain("grey/exec-item/v1");
        hash.field(&self.exec_key.0);
        hash.number(u64::from(first) + u64::from(offset));
        hash.finish()
    }

    /// The item of a run's first task, where its stage has items.
    pub fn first_item_of(stage: Option<&Stage>, first: TaskId) -> Option<u32> {
        let stage = stage.filter(|stage| stage.items.is_some())?;
        u32::try_from(first.0.checked_sub(stage.tasks.first.0)?).ok()
    }
}

impl JobRecord {
    /// The specification of one of its tasks.
    pub fn spec(&self, task: TaskId) -> Option<&TaskSpec> {
        self.groups.iter().find(|(tasks, _)| tasks.contains(task)).map(|(_, spec)| spec)
    }
}
