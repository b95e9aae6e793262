//! An executor with its events at hand.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grey_agent::{Captured, EventSink, Executed, Execution, Executor, ExecutorEvent};
use grey_core::{
    AttemptId, BlobReference, Epoch, ExecutorKind, InputFile, Resources, Retries, SandboxLevel, TaskId,
    TaskSpec,
};
use grey_exec::{ProcessExecutor, ProcessOptions};
use grey_proof::Digest;

/// Longer than anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both levels that a process can have; most rules hold at each.
pub(crate) const LEVELS: [SandboxLevel; 2] = [SandboxLevel::PidNamespace, SandboxLevel::ProcessGroup];

/// A task that runs `command`, for ten seconds and a mebibyte at most.
pub(crate) fn spec(command: &[&str]) -> TaskSpec {
    TaskSpec {
        name: String::new(),
        executor: ExecutorKind::Process,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources::default(),
        priority: 0,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 10_000,
        output_limit_bytes: 1 << 20,
    }
}

/// A task that runs a shell script.
pub(crate) fn script(text: &str) -> TaskSpec {
    spec(&["sh", "-c", text])
}

/// An input file's declaration; its content's reference is not looked at by an executor.
pub(crate) fn input(path: &str, executable: bool) -> InputFile {
    let blob = BlobReference { digest: Digest::ZERO, size_bytes: 0 };
    InputFile { path: path.to_owned(), blob, executable }
}

/// An attempt of a task that no other test uses.
pub(crate) fn fresh_attempt() -> AttemptId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    AttemptId { task: TaskId(NEXT.fetch_add(1, Ordering::SeqCst)), epoch: Epoch(3) }
}

/// What an attempt is to do, without files.
pub(crate) fn execution(attempt: AttemptId, spec: TaskSpec) -> Execution {
    Execution {
        attempt,
        job: "j9".to_owned(),
        index: 4,
        spec: Arc::new(spec),
        stdin: None,
        inputs: Vec::new(),
        record: Vec::new(),
    }
}

/// An executor on a directory of its own.
pub(crate) struct Rig {
    pub(crate) executor: ProcessExecutor,
    pub(crate) root: tempfile::TempDir,
    events: Mutex<Receiver<ExecutorEvent>>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(SandboxLevel::PidNamespace, 4)
    }

    pub(crate) fn with(level: SandboxLevel, max_running: usize) -> Rig {
        let root = tempfile::tempdir().unwrap();
        let (sink, events) = sink();
        let options = options(&root.path().join("work"), max_running);
        let executor = ProcessExecutor::with_highest_level(options, sink, level).unwrap();
        assert_eq!(executor.capabilities().sandbox, level, "{:?}", executor.capabilities().notes);
        Rig { executor, root, events: Mutex::new(events) }
    }

    /// A file outside of every attempt.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn directory(&self, attempt: AttemptId) -> PathBuf {
        let root = self.root.path().canonicalize().unwrap();
        root.join("work").join(format!("{}-{}", attempt.task, attempt.epoch))
    }

    pub(crate) fn event(&self) -> ExecutorEvent {
        self.events.lock().unwrap().recv_timeout(PATIENCE).expect("the executor said nothing")
    }

    /// Whether no event has come that was not taken.
    pub(crate) fn is_silent(&self) -> bool {
        self.events.lock().unwrap().try_recv().is_err()
    }

    pub(crate) fn expect_started(&self, attempt: AttemptId) {
        assert_eq!(self.event(), ExecutorEvent::Started(attempt));
    }

    pub(crate) fn expect_finished(&self) -> Executed {
        match self.event() {
            ExecutorEvent::Finished(executed) => *executed,
            other => panic!("{other:?} instead of an end"),
        }
    }

    /// Starts an attempt and waits for its end.
    pub(crate) fn run(&self, spec: TaskSpec) -> Executed {
        self.run_execution(execution(fresh_attempt(), spec))
    }

    pub(crate) fn run_execution(&self, execution: Execution) -> Executed {
        self.executor.start(execution);
        match self.event() {
            ExecutorEvent::Finished(executed) => *executed,
            ExecutorEvent::Started(_) => self.expect_finished(),
        }
    }
}

pub(crate) fn sink() -> (EventSink, Receiver<ExecutorEvent>) {
    let (sender, receiver) = channel();
    // The receiver of a test that has failed is gone.
    (Arc::new(move |event| drop(sender.send(event))), receiver)
}

pub(crate) fn options(work_dir: &Path, max_running: usize) -> ProcessOptions {
    ProcessOptions {
        work_dir: work_dir.to_path_buf(),
        launcher: "/proc/self/exe".into(),
        door: None,
        max_running,
        resources: Resources { cpu_millicores: 2_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
    }
}

/// What was captured, read back and held against its digest.
pub(crate) fn bytes(captured: &Captured) -> Vec<u8> {
    match captured {
        Captured::Inline(bytes) => bytes.clone(),
        Captured::File { path, size_bytes, digest } => {
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(bytes.len() as u64, *size_bytes);
            assert_eq!(Digest::of(&bytes), *digest);
            bytes
        }
    }
}

pub(crate) fn text(captured: &Captured) -> String {
    String::from_utf8(bytes(captured)).unwrap()
}

/// Whether a process of this machine has `mark` among its arguments.
pub(crate) fn lives(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().any(|entry| {
        let path = entry.unwrap().path().join("cmdline");
        let Ok(arguments) = std::fs::read(path) else { return false };
        arguments.split(|byte| *byte == 0).any(|argument| argument == mark.as_bytes())
    })
}

/// A run time for `sleep` that marks its process: no other test sleeps as long.
pub(crate) fn mark() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", 100_000 + u64::from(std::process::id()), NEXT.fetch_add(1, Ordering::SeqCst))
}
