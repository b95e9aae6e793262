//! What a task is to do: the part of a submission that is copied to a worker.

use grey_proof::{Digest, ExecInputs, exec_key};
use serde::{Deserialize, Serialize};

use crate::constraint::{Constraints, Devices};
use crate::flow::Stage;

/// Resources in integers: what a task asks for, a worker has, a tenant uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor core.
    pub cpu_millicores: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Scratch disk in bytes.
    pub disk_bytes: u64,
}

impl Resources {
    /// Whether `self` fits into `room` in every dimension.
    pub fn fits(&self, room: &Resources) -> bool {
        self.cpu_millicores <= room.cpu_millicores
            && self.memory_bytes <= room.memory_bytes
            && self.disk_bytes <= room.disk_bytes
    }

    /// The sum, `None` where a dimension would overflow.
    pub fn checked_add(&self, other: &Resources) -> Option<Resources> {
        Some(Resources {
            cpu_millicores: self.cpu_millicores.checked_add(other.cpu_millicores)?,
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
            disk_bytes: self.disk_bytes.checked_add(other.disk_bytes)?,
        })
    }

    /// The difference, `None` where a dimension would fall below zero.
    pub fn checked_sub(&self, other: &Resources) -> Option<Resources> {
        Some(Resources {
            cpu_millicores: self.cpu_millicores.checked_sub(other.cpu_millicores)?,
            memory_bytes: self.memory_bytes.checked_sub(other.memory_bytes)?,
            disk_bytes: self.disk_bytes.checked_sub(other.disk_bytes)?,
        })
    }
}

/// What runs a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExecutorKind {
    /// A native process of the worker's machine.
    Process,
    /// Nothing: succeeds at once. It measures the control plane.
    Noop,
}

impl ExecutorKind {
    /// The name in task files, statements and metrics.
    pub fn name(self) -> &'static str {
        match self {
            ExecutorKind::Process => "process",
            ExecutorKind::Noop => "noop",
        }
    }
}

/// Content named by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobReference {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// The content's length in bytes.
    pub size_bytes: u64,
}

/// A file that is laid into the task's working directory before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Relative path below the working directory, without `..`.
    pub path: String,
    /// The file's content.
    pub blob: BlobReference,
    /// Whether the owner may execute it.
    pub executable: bool,
}

/// How often a task is tried again, by who was at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// After a failure of the task's own: exit status, time-out, limit.
    pub failure: u16,
    /// After the loss of its worker, a preemption, a revocation.
    pub infrastructure: u16,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries { failure: 0, infrastructure: 5 }
    }
}

/// One task, or the template of a run of equal tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The user's name for it within the job; may be empty.
    pub name: String,
    /// What runs it.
    pub executor: ExecutorKind,
    /// Program and arguments; empty only for `noop`.
    pub command: Vec<String>,
    /// Environment variables, sorted by name, no name twice.
    pub environment: Vec<(String, String)>,
    /// Standard input; nothing means an empty one.
    pub stdin: Option<BlobReference>,
    /// Files laid into the working directory.
    pub inputs: Vec<InputFile>,
    /// Patterns of files to keep, relative to `GREY_OUT`.
    pub outputs: Vec<String>,
    /// What one attempt needs.
    pub resources: Resources,
    /// Devices that one attempt has to itself, sorted by name.
    pub devices: Vec<Devices>,
    /// What its worker must be like.
    pub constraints: Constraints,
    /// 0–255, higher first.
    pub priority: u8,
    /// How often to try again.
    pub retries: Retries,
    /// An attempt's longest run by the worker's monotonic clock, in milliseconds.
    pub timeout_ms: u64,
    /// The most that stdout, stderr and the output files of an attempt may hold together, in bytes.
    pub output_limit_bytes: u64,
}

impl TaskSpec {
    /// The content that it names: its standard input and its input files.
    pub fn blobs(&self) -> impl Iterator<Item = BlobReference> + '_ {
        self.stdin.into_iter().chain(self.inputs.iter().map(|input| input.blob))
    }

    /// The digest of everything that a submission says to execute. Beside it a task sees only who it is: `GREY_TASK`,
    /// `GREY_JOB`, `GREY_ATTEMPT`, and its position among equal tasks in `GREY_INDEX`.
    /// Output files of other tasks are named by those tasks, whose own proofs say what they left; a range of items by
    /// its first, a list of items by its digest.
    pub fn exec_key(&self, stage: Option<&Stage>) -> Digest {
        let mut inputs: Vec<(String, Digest, bool)> = self
            .inputs
            .iter()
            .map(|input| (input.path.clone(), input.blob.digest, input.executable))
            .collect();
        let gathered = stage.into_iter().flat_map(|stage| &stage.inputs);
        inputs.extend(gathered.map(|outputs| (outputs.path.clone(), outputs.digest(), false)));
        let mut environment = self.environment.clone();
        environment.extend(stage.and_then(|stage| stage.items).map(|items| items.stated()));
        exec_key(&ExecInputs {
            executor: self.executor.name(),
            command: &self.command,
            environment: &environment,
            stdin: self.stdin.map(|blob| blob.digest),
            inputs: &inputs,
            outputs: &self.outputs,
        })
    }
}
