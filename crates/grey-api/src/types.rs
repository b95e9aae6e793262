//! Requests and responses. Identifiers are texts such as `j17` and `t42`, digests 64 hexadecimal digits, times RFC 3339.

use crate::types_authority::IssuingKeyStatus;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// How often a task is tried again, by who was at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetriesRequest {
    /// After a failure of the task's own; 0 when left out.
    #[serde(default)]
    pub failure: u16,
    /// After the loss of its worker; 5 when left out.
    #[serde(default = "default_infrastructure_retries")]
    pub infrastructure: u16,
}

fn default_infrastructure_retries() -> u16 {
    5
}

/// Content that was sent before, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobRequest {
    /// SHA-256.
    pub digest: String,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// A file that is laid into the task's working directory before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputRequest {
    /// Relative path, without `..`.
    pub path: String,
    /// SHA-256 of the content, which was sent before.
    pub digest: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Whether it may be executed.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub executable: bool,
}

/// Content was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobCreated {
    /// SHA-256.
    pub digest: String,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// Digests of content that a client could send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobQuery {
    /// At most 1000 digests.
    pub digests: Vec<String>,
}

/// What of it is not there and has to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobsMissing {
    /// Digests.
    pub missing: Vec<String>,
}

/// Output files of the tasks of a name, all laid into one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputsRequest {
    /// The tasks' name.
    pub task: String,
    /// Where the files go: a relative path of a directory, without `..`.
    pub path: String,
}

/// What the worker of a task must be like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstraintsRequest {
    /// Labels that it must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How far it must be trusted at least: `software` when left out, `measured-tpm`, `hardware-degraded`, `hardware`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// What it must enforce at least: `none` when left out, `process-group`, `pid-namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// Another time-out for what has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeoutRequest {
    /// Longest run of an attempt in milliseconds, from its start. An attempt that has run longer ends at once.
    pub timeout_ms: u64,
}

/// A time-out was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimeoutChanged {
    /// Of how many tasks.
    pub tasks: u64,
    /// To how much, in milliseconds.
    pub timeout_ms: u64,
}

/// A task to be run. What is left out gets the tenant's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// A name within the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `process` when left out, or `noop`, which runs nothing and measures the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Standard input; an empty one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<BlobRequest>,
    /// Files laid into the working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputRequest>,
    /// Patterns of files to keep, relative to `GREY_OUT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Thousandths of a processor core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u64>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Scratch disk in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// 0–255, higher first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Longest run of an attempt in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The most that an attempt may write, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_limit_bytes: Option<u64>,
    /// How often to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetriesRequest>,
    /// How many such tasks; 1 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Devices that an attempt has to itself: how many of each kind, as the workers' operators named them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, u32>,
    /// What its worker must be like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<ConstraintsRequest>,
    /// The `GREY_ITEM` of each of `count` tasks: a list that was sent before, with as many lines. A line is a JSON text, or
    /// an object with `path`, `digest`, `size_bytes` and `executable` that names a file for the working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<BlobRequest>,
    /// `GREY_ITEM` of the first of them; each following one has one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_item: Option<i64>,
    /// Names of tasks of the same job that must have succeeded before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Output files of other tasks of the same job; they are waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs_from: Vec<OutputsRequest>,
}

/// A job of tasks, accepted as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// A name.
    #[serde(default)]
    pub name: String,
    /// Whose job it is; `default` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The most of its tasks that run at once; any number when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// When more tasks than this have failed for good, the rest is cancelled; never when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// The tasks; their ids are given in this order.
    pub tasks: Vec<TaskRequest>,
}

/// A job was accepted: it is on the disks of a quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobCreated {
    /// The job.
    pub job: String,
    /// Its first task; the others follow without a gap.
    pub first_task: String,
    /// How many tasks.
    pub tasks: u32,
    /// Whether an earlier submission under the same idempotency key made it.
    pub duplicate: bool,
}

/// Tasks of a stream were accepted as one job: a line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamedJob {
    /// The job.
    pub job: String,
    /// Its first task; the others follow without a gap.
    pub first_task: String,
    /// How many tasks.
    pub tasks: u32,
    /// Whether an earlier stream under the same idempotency key made it.
    pub duplicate: bool,
    /// The first line that it was made of, from one.
    pub first_line: u64,
    /// The last line.
    pub last_line: u64,
}

/// What a stream came to: the last line of the answer. Without it the answer is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamEnd {
    /// Lines that were accepted; all before a refused one.
    pub lines: u64,
    /// Jobs that they became.
    pub jobs: u64,
    /// Tasks of these.
    pub tasks: u64,
    /// Why it ended before the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// How many tasks of a job are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct JobCounts {
    /// Waiting.
    pub pending: u64,
    /// Placed and not started.
    pub assigned: u64,
    /// Started.
    pub running: u64,
    /// Succeeded.
    pub completed: u64,
    /// Failed for good.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobStatus {
    /// The job.
    pub id: String,
    /// Its name; may be empty.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Who submitted it: the name of a token, or `owner` where it came over the node's own socket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub submitter: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether no task of it is left.
    pub ended: bool,
    /// Where its tasks are.
    pub counts: JobCounts,
    /// Its first task.
    pub first_task: String,
    /// How many tasks.
    pub tasks: u32,
    /// When it was accepted, by the server's clock.
    pub created_at_ms: u64,
    /// When its last task ended, by the worker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
}

/// A page of jobs, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobStatus>,
    /// Give it as `before` to see the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// The task.
    pub id: String,
    /// Its job.
    pub job: String,
    /// Its name within the job; may be empty.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// `pending`, `assigned`, `running`, `completed`, `failed` or `cancelled`.
    pub state: String,
    /// Why it is there, where the state alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its attempt under way, or the latest whose result was accepted; 0 when there is none, as for a task that was
    /// cancelled during its first.
    pub attempt: u32,
    /// Who holds the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What its latest ended attempt came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
}

impl TaskStatus {
    /// Whether it goes no further.
    pub fn ended(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "failed" | "cancelled")
    }
}

/// Why a task is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskExplanation {
    /// The task.
    pub task: String,
    /// Its state, as in its status.
    pub state: String,
    /// Why it is there, where the state alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For a task that waits: whether some worker of the cluster could run it, had it nothing else to do. One that no worker could run
    /// waits until such a worker enters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feasible: Option<bool>,
    /// Tasks of the same tenant that stand before it in the line; absent when it stands in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// Whether there may be more: only so many are counted.
    pub ahead_is_lower_bound: bool,
    /// How long it may wait, in milliseconds; absent when nothing is known. An estimate, no promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_wait_ms: Option<u64>,
    /// From what: `durations` of tasks of the same job that ended, as many of which run now; `running_times` of those that
    /// run, where none has ended yet, which makes it a lower bound; or `rate` at which attempts ended in the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_from: Option<String>,
}

/// A page of tasks, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskList {
    /// The tasks.
    pub tasks: Vec<TaskStatus>,
    /// Give it as `from` to see the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which stream of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A stream's length and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContentStatus {
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256.
    pub digest: String,
}

/// An output file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStatus {
    /// Path below `GREY_OUT`; bytes that are no text are replaced.
    pub path: String,
    /// The path's bytes in hexadecimal where they are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Its position among the files, which names it in `/outputs/{number}`.
    pub number: u32,
    /// Whether its owner may execute it.
    pub executable: bool,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256.
    pub digest: String,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// Its job.
    pub job: String,
    /// Which attempt.
    pub attempt: u32,
    /// `exited`, `signaled`, `timed_out`, `cancelled`, `output_limit`, `out_of_memory`, `command_not_found`,
    /// `command_not_executable`, `output_refused`, `input_refused` or `infrastructure`.
    pub outcome: String,
    /// As a shell shows it: the status, 124 for a time-out, 125 for a limit or Grey's failure, 126, 127, 128 + signal.
    pub exit_code: u8,
    /// What it says for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was enforced around it.
    pub sandbox: String,
    /// The node that ran it.
    pub worker: String,
    /// Start by the worker's clock, milliseconds since 1970.
    pub started_at_ms: u64,
    /// Run time in microseconds.
    pub duration_us: u64,
    /// Processor time in microseconds.
    pub cpu_time_us: u64,
    /// Highest resident memory in bytes.
    pub peak_memory_bytes: u64,
    /// Standard output.
    pub stdout: ContentStatus,
    /// Standard error.
    pub stderr: ContentStatus,
    /// Output files, sorted by path.
    pub files: Vec<FileStatus>,
}

/// What a cancel came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CancelResponse {
    /// Tasks that it ended.
    pub cancelled: u64,
    /// Tasks that had ended before.
    pub already_ended: u64,
}

/// Something that happened, as the `data` of a server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventMessage {
    /// Index of the entry behind it.
    pub index: u64,
    /// The job.
    pub job: String,
    /// `submitted`, `attempt_ended`, `cancelled` or `job_ended`.
    pub kind: String,
    /// The task, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// How an attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Whether the task is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<bool>,
    /// How many tasks, where it is about several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerStatus {
    /// Its number.
    pub id: String,
    /// The node's identity.
    pub node: String,
    /// The host's name.
    pub name: String,
    /// What it can enforce.
    pub sandbox: String,
    /// Whether it can be reached: `present` or `lost`.
    #[serde(default)]
    pub presence: String,
    /// Attempts that it holds.
    pub held: u32,
    /// Attempts that it wants to hold.
    pub slots: u32,
    /// Thousandths of processor cores.
    pub cpu_millicores: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Thousandths of processor cores that the attempts that it holds ask for; more than there are when some wait for others.
    #[serde(default)]
    pub asked_cpu_millicores: u64,
    /// Memory in bytes that they ask for.
    #[serde(default)]
    pub asked_memory_bytes: u64,
    /// How far it is trusted.
    #[serde(default)]
    pub tier: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its devices by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, DeviceStatus>,
}

/// Devices of a kind that a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStatus {
    /// How many.
    pub count: u32,
    /// How many the attempts that it holds ask for; more than there are when some wait for others.
    pub asked_for: u64,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// The cluster's identity.
    pub cluster: String,
    /// What stands behind its root: `local`, `lab` or `production`.
    pub class: String,
    /// Version of this node.
    pub version: String,
    /// This server's number.
    pub server: u64,
    /// The leader's number; null where this server knows of none. Servers of before say 0 then.
    #[serde(default, deserialize_with = "known_leader")]
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// Servers that vote, by their numbers.
    #[serde(default)]
    pub voters: Vec<u64>,
    /// Servers that receive the log and do not vote yet.
    #[serde(default)]
    pub learners: Vec<u64>,
    /// The feature level in force: what all servers have agreed to write.
    #[serde(default)]
    pub feature_level: u16,
    /// The newest feature level that every server understands.
    #[serde(default)]
    pub understood_by_all: u16,
    /// The key that issues certificates; absent in a local cluster, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuing_key: Option<IssuingKeyStatus>,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Hash of the state at that index: equal on every server.
    pub state_hash: String,
    /// Reports in the cluster's log.
    pub reports: u64,
    /// Jobs submitted so far.
    pub jobs_submitted: u64,
    /// Tasks submitted so far.
    pub tasks_submitted: u64,
    /// Jobs that have not ended.
    pub jobs_live: u64,
    /// Placements that were dropped because the state had moved on.
    pub stale_placements: u64,
    /// Results that were refused.
    pub refused_results: u64,
    /// Attempts that ended within the last minute, as far as this server has run for so long.
    #[serde(default)]
    pub attempts_ended_in_last_minute: u64,
    /// How full this server's door is: `normal`, `warning`, `critical` or `blocked`.
    #[serde(default)]
    pub pressure: String,
    /// Whether new work is taken; otherwise why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// What it keeps of what has ended, and how much that takes.
    pub retention: RetentionStatus,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// Where this node's data lies.
    pub data_dir: String,
    /// The node's process.
    pub process_id: u32,
}

/// A leader's number, which servers of before say as 0 where they know of none.
fn known_leader<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.filter(|leader| *leader != 0))
}

/// What a node keeps of what has ended. Times are milliseconds after the end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RetentionStatus {
    /// How long standard output and error are kept that are blobs.
    pub logs_ms: u64,
    /// How long output files are kept that are blobs.
    pub results_ms: u64,
    /// How long records are kept, and with them proofs.
    pub history_ms: u64,
    /// How long inputs of jobs that ended are kept, and content that was sent and not used.
    pub inputs_ms: u64,
    /// Segments of history.
    pub history_segments: u64,
    /// Their records in bytes.
    pub history_bytes: u64,
    /// Blobs when it last looked; absent before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_bytes: Option<u64>,
    /// When it last looked, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_at_ms: Option<u64>,
    /// Of jobs that ended until then, records may be gone; milliseconds since 1970, absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_gone_until_ms: Option<u64>,
    /// Segments removed since the node started.
    pub removed_segments: u64,
    /// Blobs removed since the node started.
    pub removed_blobs: u64,
    /// Their bytes.
    pub removed_blob_bytes: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_leader_that_is_not_known_is_null_and_was_0() {
        #[derive(Serialize, Deserialize)]
        struct Status {
            #[serde(default, deserialize_with = "known_leader")]
            leader: Option<u64>,
        }
        for (text, leader) in [
            (r#"{"leader":2}"#, Some(2)),
            (r#"{"leader":null}"#, None),
            (r#"{"leader":0}"#, None),
            ("{}", None),
        ] {
            assert_eq!(serde_json::from_str::<Status>(text).unwrap().leader, leader, "{text}");
        }
        assert_eq!(serde_json::to_string(&Status { leader: None }).unwrap(), r#"{"leader":null}"#);
    }
}
