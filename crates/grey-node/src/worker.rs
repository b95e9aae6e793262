//! The worker's thread: owns the agent and its outbox, runs what the agent asks for, and stores what attempts leave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use grey_agent::{
    Agent, Captured, CapturedFile, Executed, Execution, Executor, ExecutorEvent, Output, Start, StopReason,
};
use grey_blob::Hold;
use grey_core::{
    AttemptId, AttemptResult, BlobReference, Content, ExecutorKind, FromWorker, Items, Outcome, OutputFile,
    SandboxLevel, Stage, ToWorker, Usage, UsageSource, limits,
};
use grey_proof::Digest;
use grey_store::Journal;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use tracing::Instrument;

use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::control::Message;
use crate::error::NodeError;
use crate::gather::{GatherError, Inputs};
use crate::metrics::WorkerSample;
use crate::traces::Traces;

/// How many messages are handled before what they came to is acted on.
const MESSAGES_PER_TURN: usize = 4_096;
/// How long after a lost answer the worker announces itself again.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(100);
/// How long servers may take to keep an attempt's outputs, and how soon they are asked again.
const SPREAD_WITHIN: Duration = Duration::from_secs(120);
const SPREAD_AGAIN: Duration = Duration::from_millis(500);
/// The longest that the thread sleeps.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// The most bytes of an attempt's files that travel inside its report; what is beyond goes to blobs.
const INLINE_FILES_BYTES: usize = 64 * 1024;

/// What the worker's thread is told.
pub(crate) enum WorkerMessage {
    /// The leader says something.
    FromLeader(ToWorker),
    /// There is a connection to a server.
    Connected,
    /// There is none any more.
    Disconnected,
    /// An executor tells something.
    Event(ExecutorEvent),
    /// An attempt's inputs are at hand, or why they are not.
    Prepared(Box<Execution>, Result<(), GatherError>),
    /// An attempt's outputs are stored.
    Stored(AttemptId, Box<AttemptResult>, Usage),
    /// It has another certificate.
    Certified(Digest),
    /// Say which blobs are named by results that were not accepted yet.
    Unreported(oneshot::Sender<Vec<Digest>>),
    /// Say how the worker is, for whoever reads metrics.
    Measure(oneshot::Sender<WorkerSample>),
    /// The node ends.
    End,
}

/// What the worker's thread talks to.
pub(crate) struct WorkerWiring {
    pub(crate) leader: Leader,
    pub(crate) itself: Sender<WorkerMessage>,
    pub(crate) process: Arc<dyn Executor>,
    pub(crate) noop: Arc<dyn Executor>,
    pub(crate) inputs: Inputs,
    /// Where spans are told, if anywhere.
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) runtime: Handle,
}

/// Where the leader is.
pub(crate) enum Leader {
    /// In this process.
    Here(Sender<Message>),
    /// Behind a connection.
    Elsewhere(UnboundedSender<FromWorker>),
}

/// What is wished of an attempt before it runs.
#[derive(Default)]
struct Wishes {
    stop: Option<StopReason>,
    timeout_ms: Option<u64>,
}

pub(crate) struct Worker {
    agent: Agent,
    journal: Journal,
    wiring: WorkerWiring,
    /// Attempts whose inputs are being read, and what was wished of them meanwhile.
    preparing: BTreeMap<AttemptId, Wishes>,
    /// The end of the lease that the executor was told last, in microseconds of the agent's clock.
    lease_end_us: Option<u64>,
    /// Attempts that ended in this life, by the class of their outcome.
    ended: BTreeMap<&'static str, u64>,
    last_elapse: Instant,
    announced: Instant,
    connected: bool,
}

impl Worker {
    pub(crate) fn new(agent: Agent, journal: Journal, wiring: WorkerWiring) -> Worker {
        let now = Instant::now();
        let connected = matches!(wiring.leader, Leader::Here(_));
        Worker {
            agent,
            journal,
            wiring,
            preparing: BTreeMap::new(),
            lease_end_us: None,
            ended: BTreeMap::new(),
            last_elapse: now,
            announced: now,
            connected,
        }
    }

    /// Runs until the node ends or the outbox cannot be written.
    pub(crate) fn run(mut self, messages: &Receiver<WorkerMessage>) -> Result<(), NodeError> {
        loop {
            self.act()?;
            let wake = self.agent.next_wake_us().map_or(LONGEST_SLEEP, Duration::from_micros);
            let mut next = match messages.recv_timeout(wake.min(LONGEST_SLEEP)) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.elapse();
            let mut handled = 0;
            while let Some(message) = next {
                if matches!(message, WorkerMessage::End) {
                    return Ok(());
                }
                self.handle(message);
                handled += 1;
                next = if handled < MESSAGES_PER_TURN { messages.try_recv().ok() } else { None };
            }
            if self.connected && self.agent.is_down() && self.announced.elapsed() >= ANNOUNCE_AGAIN {
                self.announced = Instant::now();
                self.agent.announce();
            }
        }
    }

    fn elapse(&mut self) {
        let elapsed_us = u64::try_from(self.last_elapse.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_elapse += Duration::from_micros(elapsed_us);
        self.agent.elapse(elapsed_us);
    }

    fn handle(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::FromLeader(message) => self.agent.receive(message, wall_ms()),
            WorkerMessage::Connected => {
                self.connected = true;
                // What was said before went nowhere.
                self.agent.unavailable();
                self.announced = Instant::now();
                self.agent.announce();
            }
            WorkerMessage::Disconnected => {
                self.connected = false;
                self.agent.unavailable();
            }
            WorkerMessage::Event(ExecutorEvent::Started(attempt)) => {
                tracing::debug!(task = %attempt.task, epoch = %attempt.epoch, "an attempt runs");
                self.agent.started(attempt);
            }
            WorkerMessage::Event(ExecutorEvent::Finished(executed)) => self.finished(*executed),
            WorkerMessage::Prepared(execution, outcome) => self.prepared(*execution, outcome),
            WorkerMessage::Stored(attempt, result, usage) => self.has_result(attempt, *result, usage),
            WorkerMessage::Certified(certificate) => self.agent.certified(certificate),
            WorkerMessage::Unreported(reply) => {
                // Who asked and is gone needs no answer.
                drop(reply.send(self.agent.unreported_blobs().map(|blob| blob.digest).collect()));
            }
            WorkerMessage::Measure(reply) => drop(reply.send(WorkerSample::of(&self.agent, &self.ended))),
            WorkerMessage::End => {}
        }
    }

    fn finished(&mut self, executed: Executed) {
        let (attempt, usage) = (executed.attempt, executed.usage);
        tracing::debug!(task = %attempt.task, epoch = %attempt.epoch, outcome = ?executed.outcome, "an attempt has ended");
        match inline(executed) {
            Ok(result) => self.has_result(attempt, result, usage),
            Err(executed) => {
                let (blobs, itself) = (self.wiring.inputs.blobs.clone(), self.wiring.itself.clone());
                self.wiring.runtime.spawn(async move {
                    let mut hold = blobs.local.hold();
                    let keeping = async {
                        let result = store(&mut hold, *executed).await;
                        spread(&blobs, result).await
                    };
                    let span = tracing::info_span!("attempt", task = %attempt.task, epoch = %attempt.epoch);
                    let result = keeping.instrument(span).await;
                    drop(itself.send(WorkerMessage::Stored(attempt, Box::new(result), usage)));
                    // From here on the agent knows which blobs the result names.
                    drop(hold);
                });
            }
        }
    }

    fn has_result(&mut self, attempt: AttemptId, result: AttemptResult, usage: Usage) {
        *self.ended.entry(result.outcome.class()).or_default() += 1;
        if let Some(traces) = &self.wiring.traces {
            traces.attempt(attempt, self.agent.job(&attempt), &result, &usage);
        }
        self.agent.finished(attempt, result, usage);
    }

    /// Removing what attempts left takes as long as they left files, so it is not done on this thread.
    fn release(&self, attempts: Vec<AttemptId>) {
        let process = self.wiring.process.clone();
        let remove = move || attempts.into_iter().for_each(|attempt| process.release(attempt));
        self.wiring.runtime.spawn_blocking(remove);
    }

    /// Has the executor end what runs when the lease does, also when this process is not there any more. To be called before
    /// anything is started under the lease.
    fn tell_lease(&mut self) {
        let Some((end_us, now_us)) = self.agent.lease_end_and_now_us() else { return };
        if self.lease_end_us == Some(end_us) {
            return;
        }
        self.lease_end_us = Some(end_us);
        // The agent's clock stands where it was moved to last. What has passed since is taken off.
        let passed_us = u64::try_from(self.last_elapse.elapsed().as_micros()).unwrap_or(u64::MAX);
        let left_us = end_us.saturating_sub(now_us).saturating_sub(passed_us);
        let end_ns = grey_exec::boot_ns().saturating_add(left_us.saturating_mul(1_000));
        self.wiring.process.hold_until(end_ns);
    }

    fn act(&mut self) -> Result<(), NodeError> {
        self.agent.settle()?;
        loop {
            self.tell_lease();
            let outputs: Vec<Output> = self.agent.outputs().collect();
            if outputs.is_empty() {
                return Ok(());
            }
            for output in outputs {
                self.do_output(output)?;
            }
            self.agent.settle()?;
        }
    }

    fn do_output(&mut self, output: Output) -> Result<(), NodeError> {
        match output {
            // Whoever carries it ends before this thread only when the node ends.
            Output::Send(message) => match &self.wiring.leader {
                Leader::Here(control) => drop(control.send(Message::FromWorker(message))),
                Leader::Elsewhere(link) => drop(link.send(message)),
            },
            Output::Execute(start) => self.execute(start),
            Output::Adopt(start) => self.wiring.process.adopt(execution(start)),
            Output::Release(attempts) => self.release(attempts),
            Output::Stop(attempt, reason) => match self.preparing.get_mut(&attempt) {
                Some(wishes) => wishes.stop = Some(reason),
                None => self.wiring.process.stop(attempt, reason),
            },
            Output::ChangeTimeout(attempt, timeout_ms) => match self.preparing.get_mut(&attempt) {
                Some(wishes) => wishes.timeout_ms = Some(timeout_ms),
                None => self.wiring.process.change_timeout(attempt, timeout_ms),
            },
            Output::Persist(changes) => {
                self.journal.change(changes)?;
                self.agent.persisted();
            }
        }
        Ok(())
    }

    fn execute(&mut self, start: Start) {
        let (stage, assigned_index) = (start.stage.clone(), start.assigned_index);
        let mut execution = execution(start);
        match execution.spec.executor {
            ExecutorKind::Noop => return self.wiring.noop.start(execution),
            ExecutorKind::Process
                if execution.spec.stdin.is_none() && execution.spec.inputs.is_empty() && stage.is_none() =>
            {
                return self.wiring.process.start(execution);
            }
            ExecutorKind::Process => {}
        }
        self.preparing.insert(execution.attempt, Wishes::default());
        let (inputs, itself) = (self.wiring.inputs.clone(), self.wiring.itself.clone());
        self.wiring.runtime.spawn(async move {
            let outcome = prepare(&inputs, &mut execution, stage, assigned_index).await;
            drop(itself.send(WorkerMessage::Prepared(Box::new(execution), outcome)));
        });
    }

    fn prepared(&mut self, mut execution: Execution, outcome: Result<(), GatherError>) {
        let wishes = self.preparing.remove(&execution.attempt).unwrap_or_default();
        if let Some(timeout_ms) = wishes.timeout_ms {
            Arc::make_mut(&mut execution.spec).timeout_ms = timeout_ms;
        }
        let (reason, message) = match (wishes.stop, outcome) {
            (None, Ok(())) => return self.wiring.process.start(execution),
            (Some(StopReason::Cancelled), _) => {
                (Outcome::Cancelled, "cancelled before it started".to_owned())
            }
            (Some(StopReason::Infrastructure), _) => {
                (Outcome::Infrastructure, "stopped before it started".to_owned())
            }
            (None, Err(GatherError::Refused(reason))) => (Outcome::InputRefused, reason),
            (None, Err(GatherError::Failed(reason))) => {
                (Outcome::Infrastructure, format!("an input cannot be read: {reason}"))
            }
        };
        let (result, usage) = unstarted(reason, &message);
        self.has_result(execution.attempt, result, usage);
    }
}

/// What an executor is told of an attempt, before its inputs are found.
fn execution(start: Start) -> Execution {
    let mut spec = start.spec;
    if spec.timeout_ms != start.timeout_ms {
        Arc::make_mut(&mut spec).timeout_ms = start.timeout_ms;
    }
    for (kind, numbers) in start.devices {
        let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
        let variable = (format!("GREY_DEVICE_{}", kind.to_uppercase()), numbers.join(","));
        Arc::make_mut(&mut spec).environment.push(variable);
    }
    let (attempt, job, index, record) = (start.attempt, start.job, start.index, start.record);
    Execution { attempt, job, index, spec, stdin: None, inputs: Vec::new(), record }
}

/// Finds an attempt's inputs and checks their content, those included that other tasks left for it.
async fn prepare(
    inputs: &Inputs,
    execution: &mut Execution,
    stage: Option<Arc<Stage>>,
    assigned_index: u64,
) -> Result<(), GatherError> {
    if let Some(stage) = stage {
        let gathered = inputs.gather(&stage, assigned_index, &execution.spec.inputs).await?;
        let spec = Arc::make_mut(&mut execution.spec);
        spec.inputs.extend(gathered);
        let item = match stage.items {
            None => None,
            Some(Items::Numbers(first)) => Some(first.saturating_add(i64::from(execution.index)).to_string()),
            Some(Items::Listed(list)) => {
                let item = inputs.item(list, execution.index).await?;
                spec.inputs.extend(item.file);
                Some(item.text)
            }
        };
        spec.environment.extend(item.map(|item| ("GREY_ITEM".to_owned(), item)));
    }
    if let Some(stdin) = &execution.spec.stdin {
        execution.stdin = Some(inputs.path(&stdin.digest).await?);
    }
    for input in &execution.spec.inputs {
        execution.inputs.push(inputs.path(&input.blob.digest).await?);
    }
    Ok(())
}

/// The result of an attempt that never ran.
fn unstarted(outcome: Outcome, message: &str) -> (AttemptResult, Usage) {
    let message = message.get(..message.floor_char_boundary(limits::MESSAGE_BYTES)).unwrap_or_default();
    let result = AttemptResult {
        outcome,
        sandbox: SandboxLevel::None,
        usage_source: UsageSource::None,
        stdout: Content::EMPTY,
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: message.to_owned(),
    };
    (result, Usage { started_at_ms: wall_ms(), duration_us: 0, cpu_time_us: 0, peak_memory_bytes: 0 })
}

/// The result as it travels, when all of it is small; otherwise what was executed comes back.
fn inline(executed: Executed) -> Result<AttemptResult, Box<Executed>> {
    let small = |captured: &Captured| match captured {
        Captured::Inline(bytes) => (bytes.len() <= limits::INLINE_OUTPUT_BYTES).then_some(bytes.len()),
        Captured::File { .. } => None,
    };
    let files: Option<usize> = executed.files.iter().map(|file| small(&file.content)).sum();
    let streams = small(&executed.stdout).is_some() && small(&executed.stderr).is_some();
    if !streams || files.is_none_or(|bytes| bytes > INLINE_FILES_BYTES) {
        return Err(Box::new(executed));
    }
    let content = |captured| match captured {
        Captured::Inline(bytes) => Content::Inline(bytes),
        Captured::File { .. } => Content::EMPTY,
    };
    let file = |file: CapturedFile| OutputFile {
        path: file.path,
        executable: file.executable,
        content: content(file.content),
    };
    Ok(AttemptResult {
        outcome: executed.outcome,
        sandbox: executed.sandbox,
        usage_source: executed.usage_source,
        stdout: content(executed.stdout),
        stderr: content(executed.stderr),
        files: executed.files.into_iter().map(file).collect(),
        message: executed.message,
    })
}

/// Has a majority of the servers keep what the result names, before the result counts. A worker that cannot reach them tries on: nobody
/// could read what only it has.
async fn spread(blobs: &Blobs, result: AttemptResult) -> AttemptResult {
    let named: Vec<Digest> = result.blobs().map(|(_, blob)| blob.digest).collect();
    for digest in named {
        let begun = Instant::now();
        while let Err(error) = blobs.spread(&digest).await {
            if begun.elapsed() >= SPREAD_WITHIN {
                tracing::error!(%error, "an attempt's outputs are not on enough servers");
                return lost(&result, &format!("its outputs could not be stored: {error}"));
            }
            tokio::time::sleep(SPREAD_AGAIN).await;
        }
    }
    result
}

/// The result of an attempt whose outputs are nowhere.
fn lost(result: &AttemptResult, message: &str) -> AttemptResult {
    AttemptResult {
        outcome: Outcome::Infrastructure,
        sandbox: result.sandbox,
        usage_source: result.usage_source,
        stdout: Content::EMPTY,
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: message
            .get(..message.floor_char_boundary(limits::MESSAGE_BYTES))
            .unwrap_or_default()
            .to_owned(),
    }
}

/// Puts what is large into blobs, durably. When that fails the attempt has no result, and the task is not at fault.
async fn store(hold: &mut Hold, executed: Executed) -> AttemptResult {
    let (outcome, sandbox, usage_source) = (executed.outcome, executed.sandbox, executed.usage_source);
    let message = executed.message.clone();
    match store_contents(hold, executed).await {
        Ok((stdout, stderr, files)) => {
            AttemptResult { outcome, sandbox, usage_source, stdout, stderr, files, message }
        }
        Err(error) => {
            tracing::error!(%error, "an attempt's outputs could not be stored");
            let mut message = format!("its outputs could not be stored: {error}");
            message.truncate(message.floor_char_boundary(limits::MESSAGE_BYTES));
            AttemptResult {
                outcome: Outcome::Infrastructure,
                sandbox,
                usage_source,
                stdout: Content::EMPTY,
                stderr: Content::EMPTY,
                files: Vec::new(),
                message,
            }
        }
    }
}

async fn store_contents(
    hold: &mut Hold,
    executed: Executed,
) -> Result<(Content, Content, Vec<OutputFile>), grey_blob::BlobError> {
    let stdout = store_one(hold, executed.stdout, limits::INLINE_OUTPUT_BYTES).await?;
    let stderr = store_one(hold, executed.stderr, limits::INLINE_OUTPUT_BYTES).await?;
    let mut files = Vec::with_capacity(executed.files.len());
    let mut room = INLINE_FILES_BYTES;
    for file in executed.files {
        let content = store_one(hold, file.content, room.min(limits::INLINE_OUTPUT_BYTES)).await?;
        if let Content::Inline(bytes) = &content {
            room = room.saturating_sub(bytes.len());
        }
        files.push(OutputFile { path: file.path, executable: file.executable, content });
    }
    Ok((stdout, stderr, files))
}

async fn store_one(
    hold: &mut Hold,
    captured: Captured,
    inline_bytes: usize,
) -> Result<Content, grey_blob::BlobError> {
    match captured {
        Captured::Inline(bytes) if bytes.len() <= inline_bytes => Ok(Content::Inline(bytes)),
        Captured::Inline(bytes) => {
            let size_bytes = bytes.len() as u64;
            let digest = hold.put(bytes.into()).await?;
            Ok(Content::Blob(BlobReference { digest, size_bytes }))
        }
        Captured::File { path, size_bytes, digest } => {
            hold.put_file(&path, &digest, size_bytes).await?;
            Ok(Content::Blob(BlobReference { digest, size_bytes }))
        }
    }
}
