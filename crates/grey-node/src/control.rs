//! The control thread: owns the replica, turns requests into proposals and outputs into actions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grey_core::{
    Answer, Applied, Command, Effect, Event, EventKind, FromWorker, HistoryRecord, JobId, Rejection, State,
    TaskId, TenantId,
};
use grey_health::Level;
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{Output, Peer, Replica, ReplicaError, Server, ServerOutput, TICK_MS, Ticket};
use tokio::sync::{broadcast, oneshot, watch};

use crate::directory::Directory;
use crate::error::NodeError;
use crate::metrics::{Meters, ServerSample, Tally};
use crate::peers::{PeerEvent, Peers};
use crate::pressure::Pressure;
use crate::rate::EndRate;
use crate::threads::{LogRequest, SideRequest};
use crate::worker::WorkerMessage;

/// How many messages are handled before what they came to is acted on.
const MESSAGES_PER_TURN: usize = 512;

/// What a proposal came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was committed and applied; and how full the door is for its tenant.
    Applied(Result<Answer, Rejection>, Level),
    /// It was not proposed.
    Refused(ReplicaError),
    /// It was proposed, and this node lost track of it.
    Unknown,
}

/// A question to the state, asked when everything committed before it is applied.
pub(crate) type Question = Box<dyn FnOnce(Result<&Replica, ReplicaError>) + Send>;

/// What the control thread is asked.
pub(crate) enum Message {
    /// Propose a command, which waits since then.
    Propose(Command, Instant, oneshot::Sender<Outcome>),
    /// Answer a question.
    Ask(Question),
    /// Say when a job, or one task of it, has ended.
    Wait(JobId, Option<TaskId>, oneshot::Sender<()>),
    /// Answer a question from the state as it is here, which may lag behind the leader's.
    Look(Box<dyn FnOnce(&Replica) + Send>),
    /// The worker of this process says something.
    FromWorker(FromWorker),
    /// A worker that speaks for this key says something over a connection.
    FromNode(VerifyingKey, u64, FromWorker),
    /// Say how the server is, for whoever reads metrics.
    Measure(oneshot::Sender<ServerSample>),
    /// Another server says something.
    FromServer(u64, Bytes),
    /// Something happened to a connection.
    Peer(PeerEvent),
    /// Hand leadership on, to a server or to any, if it can lead; says to which.
    HandOver(Option<u64>, oneshot::Sender<Result<u64, ReplicaError>>),
    /// The log is durable up to this batch.
    Persisted(u64),
    /// A checkpoint is durable.
    Checkpointed(u64),
    /// Make everything so far durable, so that what covers it can go.
    Checkpoint,
    /// A writing thread ended.
    Failed(&'static str),
    /// End after a last checkpoint.
    Stop,
}

/// What the control thread talks to.
pub(crate) struct Wiring {
    pub(crate) log: SyncSender<LogRequest>,
    pub(crate) side: SyncSender<SideRequest>,
    /// The worker of this process and the key it speaks for, where it has one.
    pub(crate) worker: Option<(Sender<WorkerMessage>, VerifyingKey)>,
    /// Other servers, and workers elsewhere.
    pub(crate) peers: Option<Peers>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) directory: watch::Sender<Arc<Directory>>,
    /// Who fetches the content that reports name, where there are other servers.
    pub(crate) named: Option<tokio::sync::mpsc::Sender<Digest>>,
    pub(crate) rate: Arc<EndRate>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) meters: Arc<Meters>,
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Role {
    /// Whether this server does.
    pub(crate) leads: bool,
    /// Who does as far as this server knows; 0 is nobody.
    pub(crate) leader: u64,
}

/// Who waits for what a proposal comes to.
struct Waiting {
    reply: oneshot::Sender<Outcome>,
    tenant: Option<TenantId>,
    /// When it was asked for.
    since: Instant,
}

pub(crate) struct Control {
    server: Server,
    wiring: Wiring,
    tally: Tally,
    replies: BTreeMap<Ticket, Waiting>,
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
    pub(crate) fn new(server: Server, wiring: Wiring) -> Control {
        Control {
            tally: Tally::after(server.replica().commit_index()),
            server,
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
        self.publish();
        self.act()?;
        loop {
            let wait = Duration::from_millis(TICK_MS).saturating_sub(self.last_elapse.elapsed());
            let mut next = match messages.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let elapsed_ms = u64::try_from(self.last_elapse.elapsed().as_millis()).unwrap_or(u64::MAX);
            if elapsed_ms > 0 {
                self.last_elapse += Duration::from_millis(elapsed_ms);
                self.server.elapse(elapsed_ms)?;
            }
            let mut handled = 0;
            while let Some(message) = next {
                self.handle(message)?;
                handled += 1;
                next = if handled < MESSAGES_PER_TURN { messages.try_recv().ok() } else { None };
            }
            self.server.flush()?;
            self.act()?;
            if let Some(peers) = &mut self.wiring.peers {
                peers.pump(&mut self.server);
            }
            self.wiring.pressure.set(self.server.level());
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
        match self.server.replica_mut().checkpoint_now() {
            Some(checkpoint) => {
                self.checkpoint_requested = true;
                self.to_side(SideRequest::Checkpoint(Box::new(checkpoint)))
            }
            None => {
                // Nothing was ever applied; otherwise one is under way, and this is tried again after it.
                self.ended = self.server.state().applied_index() == 0;
                Ok(())
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), NodeError> {
        match message {
            Message::Propose(command, since, reply) => {
                let ticket = self.ticket();
                let tenant = match &command {
                    Command::Submit(body) => Some(body.tenant),
                    _ => None,
                };
                self.replies.insert(ticket, Waiting { reply, tenant, since });
                let waited_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.server.propose_waited(ticket, command, waited_ms);
            }
            Message::Ask(question) => {
                let ticket = self.ticket();
                self.questions.insert(ticket, question);
                self.server.read(ticket);
            }
            Message::Wait(job, task, reply) => self.wait(job, task, reply),
            Message::FromWorker(message) => {
                if let FromWorker::Report(report) = &message {
                    self.wiring.rate.started(&report.started);
                }
                if let Some((_, key)) = &self.wiring.worker {
                    self.server.from_worker(key, message);
                }
            }
            Message::FromNode(key, connection, message) => {
                let peers = self.wiring.peers.as_ref();
                if !peers.is_some_and(|peers| peers.is_present(Peer::Worker(key.id()), connection)) {
                    return Ok(());
                }
                if let FromWorker::Report(report) = &message {
                    self.wiring.rate.started(&report.started);
                }
                self.server.from_worker(&key, message);
            }
            Message::FromServer(from, bytes) => self.take_in(from, &bytes)?,
            Message::Peer(event) => {
                if let Some(peers) = &mut self.wiring.peers {
                    peers.event(&mut self.server, event)?;
                }
            }
            Message::Look(question) => question(self.server.replica()),
            // Whoever asked and left need not be told.
            Message::Measure(reply) => drop(reply.send(ServerSample::of(&self.server, &self.tally))),
            Message::HandOver(to, reply) => match self.server.hand_over(to) {
                Err(error)
                    if !matches!(error, ReplicaError::NotLeader { .. } | ReplicaError::NoSuccessor(_)) =>
                {
                    return Err(error.into());
                }
                // Whoever waited and left need not be told.
                answer => drop(reply.send(answer)),
            },
            Message::Persisted(number) => self.server.replica_mut().persisted(number)?,
            Message::Checkpointed(through) => {
                self.server.replica_mut().checkpointed(through);
                self.ended = self.stopping && self.checkpoint_requested;
            }
            Message::Checkpoint => {
                // One that is under way serves as well, sooner or later.
                if let Some(checkpoint) = self.server.replica_mut().checkpoint_now() {
                    self.to_side(SideRequest::Checkpoint(Box::new(checkpoint)))?;
                }
            }
            Message::Failed(thread) => return Err(NodeError::ThreadEnded(thread)),
            Message::Stop => self.stopping = true,
        }
        Ok(())
    }

    /// What another server says wrongly is its fault, and no reason to end.
    fn take_in(&mut self, from: u64, bytes: &[u8]) -> Result<(), NodeError> {
        if let Some(peers) = &mut self.wiring.peers {
            peers.heard(from);
        }
        match self.server.replica_mut().receive_from(from, bytes) {
            Ok(()) => Ok(()),
            Err(error @ (ReplicaError::BadMessage | ReplicaError::Refused { .. })) => {
                tracing::warn!(from, %error, "a message of another server is not taken");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells who may speak, and whom there is to speak to.
    fn publish(&self) {
        self.wiring.directory.send_replace(Arc::new(Directory::of(self.server.state())));
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    fn wait(&mut self, job: JobId, task: Option<TaskId>, reply: oneshot::Sender<()>) {
        let state = self.server.state();
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
        let state = self.server.state();
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

    /// A proposal or a question was not taken.
    fn refuse(&mut self, ticket: Ticket, error: ReplicaError) {
        // Who asked and went away need not be told.
        if let Some(question) = self.questions.remove(&ticket) {
            question(Err(error));
        } else if let Some(waiting) = self.replies.remove(&ticket) {
            drop(waiting.reply.send(Outcome::Refused(error)));
        }
    }

    fn to_side(&self, request: SideRequest) -> Result<(), NodeError> {
        self.wiring.side.send(request).map_err(|_| NodeError::ThreadEnded("history"))
    }

    /// Does what the replica asks for.
    fn act(&mut self) -> Result<(), NodeError> {
        for output in self.server.outputs()? {
            let output = match output {
                ServerOutput::Replica(output) => output,
                ServerOutput::ToWorker { message, .. } => {
                    if let Some((worker, _)) = &self.wiring.worker {
                        // The worker's thread ends before this one only when the node ends.
                        drop(worker.send(WorkerMessage::FromLeader(message)));
                    }
                    continue;
                }
                ServerOutput::Refused(ticket, error) => {
                    self.refuse(ticket, error);
                    continue;
                }
            };
            match output {
                // A whole state goes to both, in that order.
                Output::Persist(batch) if batch.installation.is_some() => {
                    self.to_side(SideRequest::Install(Box::new(batch)))?;
                }
                Output::Persist(batch) => self
                    .wiring
                    .log
                    .send(LogRequest::Persist(batch))
                    .map_err(|_| NodeError::ThreadEnded("log"))?,
                // With links it waits there; without, there is one server, and nobody to send to.
                Output::Send { .. } => {}
                Output::Applied { index, ticket, applied, .. } => self.applied(index, ticket, applied)?,
                Output::Unknown(ticket) => self.unknown(ticket),
                Output::Readable(ticket) => {
                    if let Some(question) = self.questions.remove(&ticket) {
                        question(Ok(self.server.replica()));
                    }
                }
                Output::Checkpoint(checkpoint) => {
                    self.to_side(SideRequest::Checkpoint(Box::new(checkpoint)))?;
                }
                // The server has sent it to the worker.
                Output::Revoke { .. } => {}
                // The server proposes changes of membership itself, and knows what became of them.
                Output::Reconfigured { .. } => {}
                Output::Installed { index } => {
                    tracing::warn!(
                        index,
                        "took over a whole state; what ended before it is fetched from another server"
                    );
                    self.publish();
                }
                Output::Role { leads, leader, term } => {
                    tracing::info!(leads, leader, term, "role");
                    self.wiring.role.send_replace(Role { leads, leader });
                }
            }
        }
        Ok(())
    }

    /// Has the content fetched that a report names. What finds no room is found by the collector later.
    fn tell_named(&self, record: &HistoryRecord) {
        if let (Some(named), HistoryRecord::Report(report)) = (&self.wiring.named, record) {
            let blobs = report.runs.iter().flat_map(|run| run.finished.result.blobs());
            for (_, blob) in blobs {
                let _ = named.try_send(blob.digest);
            }
        }
    }

    fn unknown(&mut self, ticket: Ticket) {
        if let Some(question) = self.questions.remove(&ticket) {
            let leader = self.server.replica().leader();
            question(Err(ReplicaError::NotLeader { leader }));
        } else if let Some(waiting) = self.replies.remove(&ticket) {
            drop(waiting.reply.send(Outcome::Unknown));
        }
    }

    fn applied(&mut self, index: u64, ticket: Option<Ticket>, applied: Applied) -> Result<(), NodeError> {
        let (mut kept, mut ended) = (Vec::new(), 0);
        let is_counted = self.tally.is_due(index, self.server.replica().leads());
        for effect in applied.effects {
            match effect {
                Effect::Event(event) => {
                    if let EventKind::AttemptEnded { task, .. } = &event.kind {
                        self.wiring.rate.ended(*task);
                        ended += 1;
                    }
                    if is_counted {
                        self.count(&event.kind);
                    }
                    self.wake(&event);
                    if self.wiring.events.receiver_count() > 0 {
                        // Nobody listening any more is no error.
                        drop(self.wiring.events.send(event));
                    }
                }
                Effect::History(record) => {
                    self.tell_named(&record);
                    kept.push(Effect::History(record));
                }
                Effect::LogGrew { .. } => kept.push(effect),
                // The server has sent them to the worker.
                Effect::Assign(_) | Effect::Stop { .. } | Effect::ChangeTimeout { .. } => {}
            }
        }
        if ended > 0 {
            self.wiring.rate.count(ended);
        }
        let routine = match &applied.answer {
            Ok(answer) => answer.is_routine(),
            Err(_) => true,
        };
        if !routine {
            self.publish();
        }
        if let Err(Rejection::InternalBug { index, what }) = &applied.answer {
            tracing::error!(index, what, "an invariant broke; the entry's effects were discarded");
        }
        // Every index is told, also one that left nothing: readers wait for it.
        self.to_side(SideRequest::Effects(index, kept))?;
        if let Some(Waiting { reply, tenant, since }) = ticket.and_then(|ticket| self.replies.remove(&ticket))
        {
            self.wiring.meters.committed(since.elapsed());
            if let (Some(tenant), Ok(Answer::Submitted { tasks, duplicate: false, .. })) =
                (tenant, &applied.answer)
            {
                self.tally.submitted(tenant, tasks.count.into());
            }
            let level = tenant.map_or_else(|| self.server.level(), |tenant| self.server.level_for(tenant));
            drop(reply.send(Outcome::Applied(applied.answer, level)));
        }
        Ok(())
    }

    /// Counts what has happened.
    fn count(&mut self, event: &EventKind) {
        match event {
            EventKind::AttemptEnded { outcome, .. } => self.tally.attempt_ended(outcome),
            EventKind::Ended(counts) => self.tally.job_ended(counts),
            EventKind::Submitted | EventKind::Cancelled(_) => {}
        }
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
