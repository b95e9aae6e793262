//! What one attempt of a task came to.

use grey_proof::{Digest, ResultFile, ResultManifest};
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, TaskId, TaskRange};
use crate::spec::BlobReference;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The program ended by itself with this status.
    Exited(u8),
    /// A signal ended the program.
    Signaled(u8),
    /// It ran longer than its time-out.
    TimedOut,
    /// A cancel stopped it.
    Cancelled,
    /// It wrote more than its output limit.
    OutputLimit,
    /// It was killed for its memory.
    OutOfMemory,
    /// The program was not found.
    CommandNotFound,
    /// The program was found and could not be executed.
    CommandNotExecutable,
    /// A declared output could not be collected safely, or is missing.
    OutputRefused,
    /// The worker could not run it or lost it; the task is not at fault.
    Infrastructure,
    /// What it was to be given of other tasks cannot be laid out as asked.
    InputRefused,
}

impl Outcome {
    /// The class that statements and results name.
    pub fn class(self) -> &'static str {
        match self {
            Outcome::Exited(_) => "exited",
            Outcome::Signaled(_) => "signaled",
            Outcome::TimedOut => "timed_out",
            Outcome::Cancelled => "cancelled",
            Outcome::OutputLimit => "output_limit",
            Outcome::OutOfMemory => "out_of_memory",
            Outcome::CommandNotFound => "command_not_found",
            Outcome::CommandNotExecutable => "command_not_executable",
            Outcome::OutputRefused => "output_refused",
            Outcome::Infrastructure => "infrastructure",
            Outcome::InputRefused => "input_refused",
        }
    }

    /// The exit code that a shell would show: the status, 128 + signal, 124 for a time-out, 126, 127; 125 for the rest.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Exited(status) => status,
            Outcome::Signaled(signal) => 128u8.saturating_add(signal),
            Outcome::TimedOut => 124,
            Outcome::CommandNotExecutable => 126,
            Outcome::CommandNotFound => 127,
            Outcome::Cancelled => 130,
            Outcome::OutputLimit
            | Outcome::OutOfMemory
            | Outcome::OutputRefused
            | Outcome::InputRefused
            | Outcome::Infrastructure => 125,
        }
    }

    /// Whether the task did what it was asked.
    pub fn is_success(self) -> bool {
        self == Outcome::Exited(0)
    }
}

/// What an executor can enforce around an attempt; a higher level includes the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SandboxLevel {
    /// Nothing runs, so nothing is enforced (`noop`).
    None,
    /// A process group of its own; the worker kills every descendant that it can find.
    ProcessGroup,
    /// A pid namespace of its own: when its init ends, every descendant ends.
    PidNamespace,
}

impl SandboxLevel {
    /// Every level, lowest first.
    pub const ALL: [SandboxLevel; 3] =
        [SandboxLevel::None, SandboxLevel::ProcessGroup, SandboxLevel::PidNamespace];

    /// The name in statements and listings.
    pub fn name(self) -> &'static str {
        match self {
            SandboxLevel::None => "none",
            SandboxLevel::ProcessGroup => "process-group",
            SandboxLevel::PidNamespace => "pid-namespace",
        }
    }
}

/// Where the figures of an attempt's usage come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UsageSource {
    /// Nothing was measured because nothing ran.
    None,
    /// The kernel's resource usage of reaped processes; a task that hides its children from `wait` is undercounted.
    ResourceUsage,
    /// The control group of the attempt.
    ControlGroup,
}

impl UsageSource {
    /// The name in statements.
    pub fn name(self) -> &'static str {
        match self {
            UsageSource::None => "none",
            UsageSource::ResourceUsage => "rusage",
            UsageSource::ControlGroup => "cgroup",
        }
    }
}

/// When an attempt ran and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Start by the worker's wall clock, milliseconds since 1970. Data, never used to decide.
    pub started_at_ms: u64,
    /// Run time by the worker's monotonic clock, in microseconds.
    pub duration_us: u64,
    /// Processor time in microseconds.
    pub cpu_time_us: u64,
    /// Highest resident memory in bytes.
    pub peak_memory_bytes: u64,
}

impl Usage {
    /// End by the wall clock: the start plus the monotonic duration, in milliseconds since 1970.
    pub fn completed_at_ms(&self) -> u64 {
        self.started_at_ms.saturating_add(self.duration_us / 1_000)
    }
}

/// A stream or file of an attempt: small ones travel in the report, larger ones by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// The bytes, at most [`crate::limits::INLINE_OUTPUT_BYTES`].
    Inline(Vec<u8>),
    /// A blob that was durable before the report was sent.
    Blob(BlobReference),
}

impl Content {
    /// Nothing at all.
    pub const EMPTY: Content = Content::Inline(Vec::new());

    /// Length in bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Blob(blob) => blob.size_bytes,
        }
    }

    /// SHA-256 of the bytes.
    pub fn digest(&self) -> Digest {
        match self {
            Content::Inline(bytes) => Digest::of(bytes),
            Content::Blob(blob) => blob.digest,
        }
    }
}

/// A file that an attempt left and a pattern of its task asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Path below `GREY_OUT`, as raw bytes.
    pub path: Vec<u8>,
    /// Whether the owner may execute it.
    pub executable: bool,
    /// What it holds.
    pub content: Content,
}

/// What equal attempts have in common: everything but when they ran and what they used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// How it ended.
    pub outcome: Outcome,
    /// What was enforced around it.
    pub sandbox: SandboxLevel,
    /// Where the usage figures come from.
    pub usage_source: UsageSource,
    /// Standard output.
    pub stdout: Content,
    /// Standard error.
    pub stderr: Content,
    /// Output files, sorted by path, no path twice.
    pub files: Vec<OutputFile>,
    /// For a person: why it ended as it did, when the outcome alone does not say it. At most 512 bytes.
    pub message: String,
}

impl AttemptResult {
    /// The blobs among its streams and its files, streams first; `true` for a stream.
    pub fn blobs(&self) -> impl Iterator<Item = (bool, BlobReference)> + '_ {
        let streams = [&self.stdout, &self.stderr].into_iter().map(|content| (true, content));
        let files = self.files.iter().map(|file| (false, &file.content));
        streams.chain(files).filter_map(|(is_stream, content)| match content {
            Content::Blob(blob) => Some((is_stream, *blob)),
            Content::Inline(_) => None,
        })
    }

    /// The manifest whose digest the proof signs.
    pub fn manifest(&self) -> ResultManifest {
        ResultManifest {
            outcome_class: self.outcome.class().to_owned(),
            exit_code: match self.outcome {
                Outcome::Exited(status) => Some(i32::from(status)),
                Outcome::Signaled(signal) => Some(128 + i32::from(signal)),
                _ => None,
            },
            stdout_size_bytes: self.stdout.size_bytes(),
            stdout_digest: self.stdout.digest(),
            files: self
                .files
                .iter()
                .map(|file| ResultFile {
                    path: file.path.clone(),
                    executable: file.executable,
                    size_bytes: file.content.size_bytes(),
                    digest: file.content.digest(),
                })
                .collect(),
        }
    }
}

/// A run of neighbouring tasks whose attempts of the same epoch ended with the same result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The tasks.
    pub tasks: TaskRange,
    /// The epoch of every attempt in the run.
    pub epoch: Epoch,
    /// What they have in common.
    pub result: AttemptResult,
    /// One for each task, in order.
    pub usage: Vec<Usage>,
}

/// One attempt, named by task and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// Which assignment of it.
    pub epoch: Epoch,
}
