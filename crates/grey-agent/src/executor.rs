//! The port through which the agent's shell runs attempts. Implementations live in `grey-exec`.

use std::path::PathBuf;
use std::sync::Arc;

use grey_core::{AttemptId, Outcome, Resources, SandboxLevel, TaskSpec, Usage, UsageSource};
use grey_proof::Digest;

/// One attempt to be run.
#[derive(Debug, Clone)]
pub struct Execution {
    /// Which attempt.
    pub attempt: AttemptId,
    /// The job's id as users write it.
    pub job: String,
    /// Position of the task within its group, from zero.
    pub index: u32,
    /// What to do.
    pub spec: Arc<TaskSpec>,
    /// Standard input as a file that may be read, already checked against its digest.
    pub stdin: Option<PathBuf>,
    /// Input files: where the content lies, already checked, beside the declared path and executable bit in `spec.inputs`, same order.
    pub inputs: Vec<PathBuf>,
    /// What whoever starts it wants to have back with it, should it outlive them: opaque to an executor.
    pub record: Vec<u8>,
}

/// An attempt that an executor found, running or ended, and did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoptable {
    /// Which attempt.
    pub attempt: AttemptId,
    /// What was given with its [`Execution`]; may be anything where that was somebody else's.
    pub record: Vec<u8>,
    /// Its time-out in milliseconds, which may have been changed since.
    pub timeout_ms: u64,
}

/// A stream or file that an attempt left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Captured {
    /// At most [`grey_core::limits::INLINE_OUTPUT_BYTES`] bytes.
    Inline(Vec<u8>),
    /// A file below the attempt's directory, valid until [`Executor::release`].
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its length in bytes.
        size_bytes: u64,
        /// SHA-256 of it, computed while it was written or collected.
        digest: Digest,
    },
}

/// An output file that a pattern asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFile {
    /// Path below `GREY_OUT`, raw bytes.
    pub path: Vec<u8>,
    /// Whether the owner may execute it.
    pub executable: bool,
    /// What it holds.
    pub content: Captured,
}

/// How an attempt ended, with what it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Which attempt.
    pub attempt: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// What was enforced.
    pub sandbox: SandboxLevel,
    /// Where `usage` comes from.
    pub usage_source: UsageSource,
    /// When it ran and what it used.
    pub usage: Usage,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// Output files, sorted by path.
    pub files: Vec<CapturedFile>,
    /// For a person, at most [`grey_core::limits::MESSAGE_BYTES`] bytes.
    pub message: String,
}

/// What an executor tells, in order for each attempt: `Started` at most once, then `Finished` exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutorEvent {
    /// The program is running.
    Started(AttemptId),
    /// The attempt has ended and every process of it is gone.
    Finished(Box<Executed>),
}

/// Where an executor sends its events. It must not block for long.
pub type EventSink = Arc<dyn Fn(ExecutorEvent) + Send + Sync>;

/// What an executor can do on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// What it can enforce around every attempt.
    pub sandbox: SandboxLevel,
    /// What it has to give.
    pub resources: Resources,
    /// Facts for `grey doctor`: what is enforced and why something is not, one sentence each.
    pub notes: Vec<String>,
}

/// Why a running attempt is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A cancel was committed.
    Cancelled,
    /// The worker lost its lease or shuts down: the attempt ends as [`Outcome::Infrastructure`].
    Infrastructure,
}

/// One of the two streams of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A stream of an attempt that runs, to be read while it is written. It can be read to its end also after the attempt was
/// released.
pub trait Tail: Send + Sync {
    /// At most `most` bytes from `offset` on, and whether that is the end: nothing more will come after them. Nothing is
    /// waited for.
    fn read(&self, offset: u64, most: usize) -> std::io::Result<(Vec<u8>, bool)>;
}

/// Runs attempts. Every accepted `start` is answered by exactly one `Finished`, whatever happens.
pub trait Executor: Send + Sync {
    /// What can be enforced here; constant for the life of the executor.
    fn capabilities(&self) -> Capabilities;

    /// Starts an attempt and returns at once; a failure to start is a `Finished` too.
    fn start(&self, execution: Execution);

    /// Goes on with an attempt that the executor found: answered as a start is.
    fn adopt(&self, execution: Execution);

    /// The lease under which attempts run ends then, in nanoseconds since the machine's start, sleep included. Whatever runs
    /// is ended at that moment, whatever becomes of this process, unless a later one is told before. Nothing outlives a
    /// process that never told.
    fn hold_until(&self, lease_end_ns: u64);

    /// Stops every process of the attempt; unknown attempts are ignored.
    fn stop(&self, attempt: AttemptId, reason: StopReason);

    /// Gives an attempt another time-out, counted from its start; when that is over, it ends at once. Unknown attempts
    /// are ignored.
    fn change_timeout(&self, attempt: AttemptId, timeout_ms: u64);

    /// A stream of an attempt that has been started and has not finished.
    fn tail(&self, attempt: AttemptId, stream: OutputStream) -> Option<Arc<dyn Tail>>;

    /// Forgets an attempt and removes its directory, once its outputs are safe elsewhere or nobody wants them. One that was
    /// found and not adopted is ended first.
    fn release(&self, attempt: AttemptId);
}
