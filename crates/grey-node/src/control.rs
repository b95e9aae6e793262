//! The control thread: owns the replica, turns requests into proposals and outputs into actions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use grey_agent::ReportAnswer;
use grey_core::{
    Answer, Applied, Command, Effect, Event, EventKind, JobId, RegisterWorker, Rejection, Report,
    ReportRefusal, Revoked, State, TaskId, check_report,
};
use grey_proof::VerifyingKey;
use grey_replica::{Output, Replica, ReplicaError, TICK_MS, Ticket};
use tokio::sync::{broadcast, oneshot, watch};

use crate::error::NodeError;
use crate::rate::EndRate;
use crate::threads::{LogRequest, SideRequest};
use crate::worker::WorkerMessage;

/// How many messages are handled before what they came to is acted on.
const MESSAGES_PER_TURN: usize = 512;

/// What a proposal came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was committed and applied.
    Applied(Result<Answer, Rejection>),
    /// It was not proposed.
    Refused(ReplicaError),
    /// It was proposed, and this node lost track of it.
    Unknown,
}

/// A question to the state, asked when everything committed before it is applied.
pub(crate) type Question = Box<dyn FnOnce(Result<&Replica, ReplicaError>) + Send>;

/// What the control thread is asked.
pub(crate) enum Message {
    /// Propose a command.
    Propose(Command, oneshot::Sender<Outcome>),
    /// Answer a question.
    Ask(Question),
    /// Say when a job, or one task of it, has ended.
    Wait(JobId, Option<TaskId>, oneshot::Sender<()>),
    /// The worker announces itself.
    Register(RegisterWorker),
    /// The worker reports.
    Report(Report),
    /// The worker gives attempts back.
    Revoked(Revoked),
    /// The log is durable up to this batch.
    Persisted(u64),
    /// A checkpoint is durable.
    Checkpointed(u64),
    /// A writing thread ended.
    Failed(&'static str),
    /// End after a last checkpoint.
    Stop,
}

/// Who is told what a proposal came to.
enum Reply {
    Client(oneshot::Sender<Outcome>),
    /// Nobody: what came of it shows in the state.
    Nobody,
    Registration,
    Report(u64),
}

/// What the control thread talks to.
pub(crate) struct Wiring {
    pub(crate) log: SyncSender<LogRequest>,
    pub(crate) side: SyncSender<SideRequest>,
    pub(crate) worker: Sender<WorkerMessage>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) role: watch::Sender<bool>,
    pub(crate) worker_key: VerifyingKey,
    pub(crate) rate: Arc<EndRate>,
}

pub(crate) struct Control {
    replica: Replica,
    wiring: Wiring,
    replies: BTreeMap<Ticket, Reply>,
    questions: BTreeMap<Ticket, Question>,
    waiters: HashMap<JobId, Vec<(Option<TaskId>, oneshot::Sender<()>)>>,
    next_ticket: u64,
    last_elapse: Instant,
    stopping: bool,
    checkpoint_requested: bool,
    ended: bool,
}

/// Whether a task of a live job has ended.
fn task_ended(state: &State, task: TaskId) -> bool {
    let pending = state.group_of(task).is_some_and(|(_, group)| group.pending.contains(task));
    // A cancelled attempt that has yet to stop has ended for its user.
    let live = state.live().get(&task);
    let held = live.is_some_and(|live| !matches!(live.phase, grey_core::Phase::Stopping { .. }));
    !pending && !held
}

impl Control {
    pub(crate) fn new(replica: Replica, wiring: Wiring) -> Control {
        Control {
            replica,
            wiring,
            replies: BTreeMap::new(),
            questions: BTreeMap::new(),
            waiters: HashMap::new(),
            next_ticket: 1,
            last_elapse: Instant::now(),
            stopping: false,
            checkpoint_requested: false,
            ended: false,
        }
    }

    /// Runs until it is stopped or cannot go on.
    pub(crate) fn run(mut self, messages: &Receiver<Message>) -> Result<(), NodeError> {
        self.act()?;
        loop {
            let wait = Duration::from_millis(TICK_MS).saturating_sub(self.last_elapse.elapsed());
            let mut next = match messages.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut proposals = Vec::new();
            let mut handled = 0;
            while let Some(message) = next {
                self.handle(message, &mut proposals)?;
                handled += 1;
                next = if handled < MESSAGES_PER_TURN { messages.try_recv().ok() } else { None };
            }
            if !proposals.is_empty() {
                for (ticket, error) in self.replica.propose_all(proposals)? {
                    self.refuse(ticket, error);
                }
            }
            let elapsed_ms = u64::try_from(self.last_elapse.elapsed().as_millis()).unwrap_or(u64::MAX);
            if elapsed_ms > 0 {
                self.last_elapse += Duration::from_millis(elapsed_ms);
                self.replica.elapse(elapsed_ms)?;
            }
            self.act()?;
            if self.stopping {
                self.request_last_checkpoint()?;
            }
            if self.ended {
                return Ok(());
            }
        }
    }

    /// A node ends with a checkpoint, so that the next start has nothing to replay.
    fn request_last_checkpoint(&mut self) -> Result<(), NodeError> {
        if self.checkpoint_requested {
            return Ok(());
        }
        match self.replica.checkpoint_now() {
            Some(checkpoint) => {
                self.checkpoint_requested = true;
                self.to_side(SideRequest::Checkpoint(Box::new(checkpoint)))
            }
            None => {
                // Nothing was ever applied; otherwise one is under way, and this is tried again after it.
                self.ended = self.replica.state().applied_index() == 0;
                Ok(())
            }
        }
    }

    fn handle(&mut self, message: Message, proposals: &mut Vec<(Ticket, Command)>) -> Result<(), NodeError> {
        match message {
            Message::Propose(command, reply) => {
                proposals.push((self.ticket(Reply::Client(reply)), command));
            }
            Message::Ask(question) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                match self.replica.read(ticket) {
                    Ok(()) => drop(self.questions.insert(ticket, question)),
                    Err(error) => question(Err(error)),
                }
            }
            Message::Wait(job, task, reply) => self.wait(job, task, reply),
            Message::Register(body) => {
                proposals.push((self.ticket(Reply::Registration), Command::RegisterWorker(body)));
            }
            Message::Report(report) => {
                let sequence = report.sequence;
                match check_report(self.replica.state(), &report, &self.wiring.worker_key) {
                    Ok(()) => {
                        proposals.push((self.ticket(Reply::Report(sequence)), Command::Report(report)));
                    }
                    Err(refusal) => self.refuse_report(sequence, refusal),
                }
            }
            Message::Revoked(body) => proposals.push((self.ticket(Reply::Nobody), Command::Revoked(body))),
            Message::Persisted(number) => self.replica.persisted(number)?,
            Message::Checkpointed(through) => {
                self.replica.checkpointed(through);
                self.ended = self.stopping && self.checkpoint_requested;
            }
            Message::Failed(thread) => return Err(NodeError::ThreadEnded(thread)),
            Message::Stop => self.stopping = true,
        }
        Ok(())
    }

    fn ticket(&mut self, reply: Reply) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.replies.insert(ticket, reply);
        ticket
    }

    fn wait(&mut self, job: JobId, task: Option<TaskId>, reply: oneshot::Sender<()>) {
        let state = self.replica.state();
        let submitted = job.0 <= state.meta().jobs_submitted;
        let ended = match (state.jobs().get(&job), task) {
            (None, _) => submitted,
            (Some(job), None) => job.counts.live() == 0,
            (Some(_), Some(task)) => task_ended(state, task),
        };
        if ended {
            // Who no longer waits need not be told.
            let _ = reply.send(());
        } else {
            let waiting = self.waiters.entry(job).or_default();
            // Those whose time was up are gone; whoever asks again and again leaves no trail.
            waiting.retain(|(_, reply)| !reply.is_closed());
            waiting.push((task, reply));
        }
    }

    /// Tells those who wait for a job to which something happened.
    fn wake(&mut self, event: &Event) {
        let Some(waiting) = self.waiters.remove(&event.job) else { return };
        let state = self.replica.state();
        let left = state.jobs().get(&event.job).map_or(0, |job| job.counts.live());
        let mut still = Vec::new();
        for (task, reply) in waiting {
            let ended = left == 0 || task.is_some_and(|task| task_ended(state, task));
            if ended {
                let _ = reply.send(());
            } else if !reply.is_closed() {
                still.push((task, reply));
            }
        }
        if !still.is_empty() {
            self.waiters.insert(event.job, still);
        }
    }

    fn refuse(&mut self, ticket: Ticket, error: ReplicaError) {
        match self.replies.remove(&ticket) {
            Some(Reply::Client(reply)) => drop(reply.send(Outcome::Refused(error))),
            Some(Reply::Registration | Reply::Report(_)) => self.to_worker(WorkerMessage::Unavailable),
            Some(Reply::Nobody) | None => {}
        }
    }

    fn refuse_report(&mut self, sequence: u64, refusal: ReportRefusal) {
        let answer = match refusal {
            ReportRefusal::NotHeld(attempts) => ReportAnswer::NotHeld(attempts),
            ReportRefusal::Unregistered => ReportAnswer::Unregistered,
            ReportRefusal::BadSignature | ReportRefusal::Malformed => {
                tracing::error!(sequence, %refusal, "the node's own worker sent a report that does not hold");
                ReportAnswer::Unregistered
            }
        };
        self.to_worker(WorkerMessage::Reported(sequence, answer));
    }

    fn to_worker(&self, message: WorkerMessage) {
        // The worker's thread ends before this one only when the node ends.
        drop(self.wiring.worker.send(message));
    }

    fn to_side(&self, request: SideRequest) -> Result<(), NodeError> {
        self.wiring.side.send(request).map_err(|_| NodeError::ThreadEnded("history"))
    }

    /// Does what the replica asks for.
    fn act(&mut self) -> Result<(), NodeError> {
        let outputs: Vec<Output> = self.replica.outputs().collect();
        for output in outputs {
            match output {
                Output::Persist(batch) => self
                    .wiring
                    .log
                    .send(LogRequest::Persist(batch))
                    .map_err(|_| NodeError::ThreadEnded("log"))?,
                // A local cluster has one server, so there is nobody to send to.
                Output::Send { .. } => {}
                Output::Applied { index, ticket, leads, applied, .. } => {
                    self.applied(index, ticket, leads, applied)?;
                }
                Output::Unknown(ticket) => self.unknown(ticket),
                Output::Readable(ticket) => {
                    if let Some(question) = self.questions.remove(&ticket) {
                        question(Ok(&self.replica));
                    }
                }
                Output::Checkpoint(checkpoint) => {
                    self.to_side(SideRequest::Checkpoint(Box::new(checkpoint)))?;
                }
                Output::Revoke { attempts, .. } => self.to_worker(WorkerMessage::Revoke(attempts)),
                Output::Role { leads, term, .. } => {
                    tracing::info!(leads, term, "role");
                    self.wiring.role.send_replace(leads);
                }
            }
        }
        Ok(())
    }

    fn unknown(&mut self, ticket: Ticket) {
        if let Some(question) = self.questions.remove(&ticket) {
            question(Err(ReplicaError::NotLeader { leader: self.replica.leader() }));
        }
        match self.replies.remove(&ticket) {
            Some(Reply::Client(reply)) => drop(reply.send(Outcome::Unknown)),
            Some(Reply::Registration | Reply::Report(_)) => self.to_worker(WorkerMessage::Unavailable),
            Some(Reply::Nobody) | None => {}
        }
    }

    fn applied(
        &mut self,
        index: u64,
        ticket: Option<Ticket>,
        leads: bool,
        applied: Applied,
    ) -> Result<(), NodeError> {
        let (mut kept, mut ended) = (Vec::new(), 0);
        for effect in applied.effects {
            match effect {
                Effect::Assign(assignment) if leads => {
                    self.to_worker(WorkerMessage::Assign(Arc::new(assignment)));
                }
                Effect::Stop { attempt, .. } if leads => self.to_worker(WorkerMessage::Stop(attempt)),
                Effect::ChangeTimeout { attempts, timeout_ms, .. } if leads => {
                    self.to_worker(WorkerMessage::ChangeTimeout(attempts, timeout_ms));
                }
                Effect::Assign(_) | Effect::Stop { .. } | Effect::ChangeTimeout { .. } => {}
                Effect::Event(event) => {
                    if matches!(event.kind, EventKind::AttemptEnded { .. }) {
                        ended += 1;
                    }
                    self.wake(&event);
                    if self.wiring.events.receiver_count() > 0 {
                        // Nobody listening any more is no error.
                        drop(self.wiring.events.send(event));
                    }
                }
                Effect::History(_) | Effect::LogGrew { .. } => kept.push(effect),
            }
        }
        if ended > 0 {
            self.wiring.rate.count(ended);
        }
        if let Err(Rejection::InternalBug { index, what }) = &applied.answer {
            tracing::error!(index, what, "an invariant broke; the entry's effects were discarded");
        }
        // Every index is told, also one that left nothing: readers wait for it.
        self.to_side(SideRequest::Effects(index, kept))?;
        let reply = ticket.and_then(|ticket| self.replies.remove(&ticket));
        match (reply, applied.answer) {
            (None | Some(Reply::Nobody), _) => {}
            (Some(Reply::Client(reply)), answer) => drop(reply.send(Outcome::Applied(answer))),
            (Some(Reply::Registration), Ok(Answer::Registered { worker, unknown })) => {
                self.to_worker(WorkerMessage::Registered(worker, unknown));
            }
            (Some(Reply::Report(sequence)), Ok(_)) => {
                self.to_worker(WorkerMessage::Reported(sequence, ReportAnswer::Accepted));
            }
            (Some(Reply::Report(sequence)), Err(Rejection::ReportOutOfOrder { .. })) => {
                self.to_worker(WorkerMessage::Reported(sequence, ReportAnswer::TooEarly));
            }
            (Some(Reply::Report(sequence)), Err(rejection)) => {
                tracing::warn!(sequence, %rejection, "a report was rejected");
                self.to_worker(WorkerMessage::Reported(sequence, ReportAnswer::Unregistered));
            }
            (Some(Reply::Registration), answer) => {
                tracing::error!(?answer, "the worker's announcement was rejected");
                self.to_worker(WorkerMessage::Unavailable);
            }
        }
        Ok(())
    }
}

/// The event as people read it.
pub(crate) fn event_message(event: &Event) -> grey_api::EventMessage {
    let mut message = grey_api::EventMessage {
        index: event.index,
        job: event.job.to_string(),
        kind: String::new(),
        task: None,
        outcome: None,
        retry: None,
        tasks: None,
    };
    let kind = match &event.kind {
        EventKind::Submitted => "submitted",
        EventKind::AttemptEnded { task, outcome, retry } => {
            message.task = Some(task.to_string());
            message.outcome = Some((*outcome).to_owned());
            message.retry = Some(*retry);
            "attempt_ended"
        }
        EventKind::Cancelled(tasks) => {
            message.tasks = Some(*tasks);
            "cancelled"
        }
        EventKind::Ended(counts) => {
            message.tasks = Some(counts.total());
            "job_ended"
        }
    };
    message.kind = kind.to_owned();
    message
}
