//! Native processes, a bounded number at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grey_agent::{
    Adoptable, Capabilities, EventSink, Executed, Execution, Executor, ExecutorEvent, OutputStream,
    StopReason, Tail,
};
use grey_core::limits::WORKER_SLOTS;
use grey_core::{AttemptId, Outcome, Resources, SandboxLevel};

use crate::attempt::{self, Ground, never_ran, stopped};
use crate::capture::Brought;
use crate::connection::Found;
use crate::directory::WorkDirectory;
use crate::error::ExecError;
use crate::keeper::{Keeper, PATIENCE};
use crate::plan::Fence;
use crate::probe::probe;
use crate::wishes::Wishes;

/// Attempts that may be accepted and not yet finished: as many as a worker may hold.
const ACCEPTED: usize = WORKER_SLOTS as usize;
/// The stack of an attempt's thread in bytes; it keeps its buffers on the heap.
const STACK_BYTES: usize = 512 * 1024;
/// How long a thread waits for another attempt before it ends.
const IDLE: Duration = Duration::from_secs(1);

/// What a [`ProcessExecutor`] needs to know.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The directory under which every attempt has its own. One executor has it at a time.
    pub work_dir: PathBuf,
    /// The binary to re-execute. Its `main` calls [`crate::launcher::run_if_requested`] first. `/proc/self/exe` stays
    /// right when the file of the running binary is replaced.
    pub launcher: PathBuf,
    /// Where the shim listens that holds the attempts, and outlives this process; without it, it ends with it.
    pub door: Option<PathBuf>,
    /// Attempts that run at the same time, 1–16,384; further ones wait. Each has a thread and about ten descriptors.
    pub max_running: usize,
    /// What the machine gives to tasks.
    pub resources: Resources,
}

/// Runs every attempt as native processes of this machine, behind the strongest fence that works here.
///
/// Captured files lie in the attempt's directory until `release`, and are written by the same user as the task: a
/// reader checks them against their digest. Dropping the executor stops what runs, and its ends are still reported; with a
/// door it leaves what runs to the next executor that is made with the same door.
pub struct ProcessExecutor {
    shared: Arc<Shared>,
}

struct Shared {
    options: ProcessOptions,
    work: WorkDirectory,
    keeper: Keeper,
    fence: Fence,
    capabilities: Capabilities,
    sink: EventSink,
    state: Mutex<State>,
    /// Told of every attempt that is queued for an idle thread.
    queued: Condvar,
}

/// An attempt that runs.
struct Handle {
    wishes: Arc<Wishes>,
    /// Its standard output and standard error.
    brought: [Arc<Brought>; 2],
}

/// An attempt that waits for a thread.
struct Queued {
    execution: Execution,
    wishes: Arc<Wishes>,
    /// Where it runs already.
    found: Option<Found>,
}

#[derive(Default)]
struct State {
    /// What the shim held when this executor came, and nobody has adopted.
    found: BTreeMap<AttemptId, Found>,
    queue: VecDeque<Queued>,
    /// Attempts that are queued or run.
    accepted: BTreeSet<AttemptId>,
    running: BTreeMap<AttemptId, Handle>,
    threads: usize,
    /// Threads that wait for an attempt.
    idle: usize,
    /// No attempt will follow.
    closed: bool,
}

impl ProcessExecutor {
    /// Takes the work directory, sweeps what an earlier life left there, and finds out what can be enforced here.
    ///
    /// # Errors
    /// [`ExecError`] when the directory cannot be used, another executor has it, or the launcher does not work.
    pub fn new(options: ProcessOptions, sink: EventSink) -> Result<ProcessExecutor, ExecError> {
        ProcessExecutor::with_highest_level(options, sink, SandboxLevel::PidNamespace)
    }

    /// As [`ProcessExecutor::new`], with a fence no stronger than `highest`: for machines whose policy forbids
    /// namespaces although they work.
    ///
    /// # Errors
    /// As [`ProcessExecutor::new`]. A `highest` of `SandboxLevel::None` leaves no fence to run behind.
    pub fn with_highest_level(
        options: ProcessOptions,
        sink: EventSink,
        highest: SandboxLevel,
    ) -> Result<ProcessExecutor, ExecError> {
        if options.max_running == 0 || options.max_running > ACCEPTED {
            return Err(ExecError::Options {
                field: "max_running",
                value: u64::try_from(options.max_running).unwrap_or(u64::MAX),
                expected: "between 1 and 16384",
            });
        }
        let work = WorkDirectory::open(&options.work_dir)?;
        let opened = Keeper::open(options.launcher.clone(), options.door.clone());
        let (keeper, held) = opened.map_err(|error| ExecError::Launcher {
            path: options.launcher.clone(),
            reason: format!(
                "it does not start, or does not call `run_if_requested` before everything else: {error}"
            ),
        })?;
        let going_on: Vec<AttemptId> = held.iter().map(|found| found.attempt).collect();
        work.sweep(&going_on)?;
        let probed = probe(&keeper, highest)?;
        let capabilities =
            Capabilities { sandbox: probed.fence.level(), resources: options.resources, notes: probed.notes };
        let found = held.into_iter().map(|found| (found.attempt, found)).collect();
        let state = Mutex::new(State { found, ..State::default() });
        let shared = Shared {
            options,
            work,
            keeper,
            fence: probed.fence,
            capabilities,
            sink,
            state,
            queued: Condvar::new(),
        };
        Ok(ProcessExecutor { shared: Arc::new(shared) })
    }

    /// What runs, or has ended, since before this executor came. Each is to be adopted or released.
    pub fn adoptable(&self) -> Vec<Adoptable> {
        let state = self.shared.state();
        let adoptable = |found: &Found| Adoptable {
            attempt: found.attempt,
            record: found.record.clone(),
            timeout_ms: found.clock.timeout_ms,
        };
        state.found.values().map(adoptable).collect()
    }
}

impl Drop for ProcessExecutor {
    fn drop(&mut self) {
        let queued = {
            let mut state = self.shared.state();
            state.closed = true;
            if !self.shared.keeper.outlives() {
                let stop =
                    |handle: &Handle| handle.wishes.stop(StopReason::Infrastructure, &self.shared.keeper);
                state.running.values().for_each(stop);
            }
            state.take_all_queued()
        };
        self.shared.queued.notify_all();
        if self.shared.keeper.outlives() {
            return self.shared.keeper.leave();
        }
        for Queued { execution, .. } in queued {
            self.shared.refuse(execution.attempt, stopped(StopReason::Infrastructure));
        }
    }
}

impl Executor for ProcessExecutor {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities.clone()
    }

    /// A second start of an attempt that has not finished is not accepted, and so gets no answer of its own.
    fn start(&self, execution: Execution) {
        self.shared.clone().accept(execution, false);
    }

    /// One that is not adoptable ends at once.
    fn adopt(&self, execution: Execution) {
        self.shared.clone().accept(execution, true);
    }

    fn hold_until(&self, lease_end_ns: u64) {
        self.shared.keeper.hold_until(lease_end_ns);
    }

    fn stop(&self, attempt: AttemptId, reason: StopReason) {
        let mut state = self.shared.state();
        if let Some(handle) = state.running.get(&attempt) {
            return handle.wishes.stop(reason, &self.shared.keeper);
        }
        if state.take_queued(attempt) {
            drop(state);
            return self.shared.refuse(attempt, stopped(reason));
        }
        // What runs already is stopped where it runs; its end is told once a thread has it.
        if let Some(wishes) = state.wishes(attempt) {
            wishes.stop(reason, &self.shared.keeper);
        }
    }

    fn change_timeout(&self, attempt: AttemptId, timeout_ms: u64) {
        let state = self.shared.state();
        if let Some(wishes) = state.wishes(attempt) {
            wishes.change_timeout(timeout_ms, &self.shared.keeper);
        }
    }

    fn tail(&self, attempt: AttemptId, stream: OutputStream) -> Option<Arc<dyn Tail>> {
        let state = self.shared.state();
        let [stdout, stderr] = &state.running.get(&attempt)?.brought;
        Some(match stream {
            OutputStream::Stdout => stdout.clone(),
            OutputStream::Stderr => stderr.clone(),
        })
    }

    /// Takes time in proportion to the number of files. An attempt that was accepted and has not finished keeps its
    /// directory; one that was not adopted is ended.
    fn release(&self, attempt: AttemptId) {
        let found = {
            let mut state = self.shared.state();
            if state.accepted.contains(&attempt) {
                tracing::warn!(task = %attempt.task, epoch = %attempt.epoch, "a running attempt was released");
                return;
            }
            state.found.remove(&attempt)
        };
        self.shared.keeper.release(attempt);
        let ended = found.map_or(Ok(()), |found| {
            found.mailbox.wait_for_guard(PATIENCE);
            self.shared.work.wait_for_guard(attempt)
        });
        if let Err(error) = ended.and_then(|()| self.shared.work.remove(attempt)) {
            tracing::warn!(task = %attempt.task, epoch = %attempt.epoch, %error, "a directory was not removed");
        }
    }
}

impl State {
    /// What is wished of an attempt that runs or waits for a thread.
    fn wishes(&self, attempt: AttemptId) -> Option<&Arc<Wishes>> {
        let queued = || self.queue.iter().find(|queued| queued.execution.attempt == attempt);
        let running = self.running.get(&attempt).map(|handle| &handle.wishes);
        running.or_else(|| queued().map(|queued| &queued.wishes))
    }

    /// Takes an attempt out of the queue that runs nowhere yet.
    fn take_queued(&mut self, attempt: AttemptId) -> bool {
        let is_it = |queued: &Queued| queued.execution.attempt == attempt && queued.found.is_none();
        let position = self.queue.iter().position(is_it);
        if let Some(position) = position {
            self.queue.remove(position);
            self.accepted.remove(&attempt);
        }
        position.is_some()
    }

    /// Takes everything out of the queue.
    fn take_all_queued(&mut self) -> VecDeque<Queued> {
        let queued = std::mem::take(&mut self.queue);
        queued.iter().for_each(|queued| {
            self.accepted.remove(&queued.execution.attempt);
        });
        queued
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Shared>, execution: Execution, adopts: bool) {
        let attempt = execution.attempt;
        let needs_thread = {
            let mut state = self.state();
            if state.accepted.len() >= ACCEPTED {
                drop(state);
                return self.refuse(attempt, (Outcome::Infrastructure, "the worker holds too many attempts"));
            }
            if !state.accepted.insert(attempt) {
                tracing::warn!(task = %attempt.task, epoch = %attempt.epoch, "an attempt was started twice");
                return;
            }
            let found = state.found.remove(&attempt);
            if found.is_some() != adopts {
                state.accepted.remove(&attempt);
                drop(state);
                return self
                    .refuse(attempt, (Outcome::Infrastructure, "the attempt is not held, or held already"));
            }
            // What a shim holds is told at once what is wished of it.
            let wishes = Arc::new(match &found {
                None => Wishes::before(attempt, execution.spec.timeout_ms),
                Some(found) => Wishes::during(attempt, found.clock.timeout_ms),
            });
            state.queue.push_back(Queued { execution, wishes, found });
            if state.idle >= state.queue.len() {
                drop(state);
                return self.queued.notify_one();
            }
            let needs_thread = state.threads < self.options.max_running;
            state.threads = state.threads.saturating_add(usize::from(needs_thread));
            needs_thread
        };
        if needs_thread && let Err(error) = self.clone().spawn() {
            self.without_thread(&error);
        }
    }

    fn finished(&self, executed: Executed) {
        (self.sink)(ExecutorEvent::Finished(Box::new(executed)));
    }

    fn refuse(&self, attempt: AttemptId, (outcome, message): (Outcome, &str)) {
        self.finished(never_ran(attempt, self.capabilities.sandbox, outcome, message));
    }

    fn spawn(self: Arc<Shared>) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name("grey-attempt".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || self.work_off())
            .map(|_| ())
    }

    /// Without a thread of its own an attempt waits for another's. Without any, nothing that waits can run, or go on.
    fn without_thread(&self, error: &std::io::Error) {
        let stranded = {
            let mut state = self.state();
            state.threads = state.threads.saturating_sub(1);
            if state.threads > 0 { VecDeque::new() } else { state.take_all_queued() }
        };
        for Queued { execution, found, .. } in stranded {
            let attempt = execution.attempt;
            if let Some(found) = found {
                // Nobody would take what it writes.
                self.keeper.release(attempt);
                found.mailbox.wait_for_guard(PATIENCE);
            }
            self.refuse(attempt, (Outcome::Infrastructure, &format!("no thread can be started: {error}")));
        }
    }

    /// The state when an attempt is queued; `None` when this thread has waited for one in vain, and is not counted any
    /// more.
    fn wait_for_work(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.queue.is_empty() && !state.closed {
            state.idle = state.idle.saturating_add(1);
            let waited =
                self.queued.wait_timeout_while(state, IDLE, |state| state.queue.is_empty() && !state.closed);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle = state.idle.saturating_sub(1);
        }
        if state.queue.is_empty() {
            state.threads = state.threads.saturating_sub(1);
            return None;
        }
        Some(state)
    }

    /// Runs queued attempts until none is left.
    fn work_off(&self) {
        loop {
            let brought: [Arc<Brought>; 2] = Default::default();
            let queued = {
                let Some(mut state) = self.wait_for_work() else { return };
                let Some(queued) = state.queue.pop_front() else { continue };
                let handle = Handle { wishes: queued.wishes.clone(), brought: brought.clone() };
                state.running.insert(queued.execution.attempt, handle);
                queued
            };
            let attempt = queued.execution.attempt;
            let executed = self.run(queued, &brought);
            // Also of an attempt that never ran, nothing more will come.
            brought.iter().for_each(|stream| stream.end());
            {
                let mut state = self.state();
                state.running.remove(&attempt);
                state.accepted.remove(&attempt);
            }
            // What is left to the next worker is not finished here.
            let Some(executed) = executed else { continue };
            // A sink that panics must not take the thread and the queue behind it along.
            if catch_unwind(AssertUnwindSafe(|| self.finished(executed))).is_err() {
                tracing::error!(task = %attempt.task, epoch = %attempt.epoch, "the event sink panicked");
            }
        }
    }

    /// Runs an attempt or goes on with it; `None` when it is left to the next worker.
    fn run(&self, queued: Queued, brought: &[Arc<Brought>; 2]) -> Option<Executed> {
        let ground = Ground { work: &self.work, keeper: &self.keeper, fence: self.fence };
        let Queued { execution, wishes, found } = queued;
        let attempt = execution.attempt;
        let started = || (self.sink)(ExecutorEvent::Started(attempt));
        let run = AssertUnwindSafe(|| match found {
            None => attempt::run(&ground, &execution, &wishes, brought, &started),
            Some(found) => attempt::resume(&ground, &execution, found, &wishes, brought, &started),
        });
        // An attempt that panics still gets its one answer.
        catch_unwind(run).unwrap_or_else(|_| {
            self.keeper.release(attempt);
            let message = "the worker failed at the attempt";
            Some(never_ran(attempt, self.capabilities.sandbox, Outcome::Infrastructure, message))
        })
    }
}
