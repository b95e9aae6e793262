//! One server of the control plane: a replica, and what it does for workers while it leads. Sans-IO like the replica.

use std::collections::{BTreeMap, VecDeque};

use grey_core::{
    Answer, Applied, AttemptId, Command, Effect, FromWorker, Heartbeat, NodeVersion, RegisterWorker,
    Rejection, Report, ReportAnswer, ReportRefusal, State, TenantId, ToWorker, WorkerId, WorkerMessage,
    check_report, limits,
};
use grey_health::{Advice, BreakerState, CallOutcome, CallRefused, Level};
use grey_proof::{Digest, VerifyingKey};

use crate::door::{Door, DoorOptions, Entrant};
use crate::error::ReplicaError;
use crate::links::{LinkOptions, Links, Parcel, Peer, PeerMessage, Waiting};
use crate::members::TEND_EVERY_MS;
use crate::recall::Recalls;
use crate::replica::{Output, Replica, Ticket};
use crate::watch::{Endings, Watch, WatchOptions};

/// Tickets of the server's own proposals have this bit; clients' must not.
const OWN: u64 = 1 << 63;

/// What a server asks the outside to do, in order.
#[derive(Debug)]
pub enum ServerOutput {
    /// What the replica asks for. Effects and answers that concern workers are taken out.
    Replica(Output),
    /// Tell a worker something.
    ToWorker {
        /// Which node.
        node: Digest,
        /// What.
        message: ToWorker,
    },
    /// A proposal or a read was not taken. Nothing was proposed, and the door charged nothing.
    Refused(Ticket, ReplicaError),
}

/// A worker that has announced itself to this server.
struct Session {
    incarnation: u64,
    session: u64,
    key: VerifyingKey,
    /// Its number, once the announcement was applied.
    worker: Option<WorkerId>,
    next_number: u64,
}

/// Who is told what a proposal or a read of the server's own came to.
pub(crate) enum Pending {
    Registration {
        node: Digest,
        session: u64,
    },
    Report {
        node: Digest,
        session: u64,
        sequence: u64,
        worker: WorkerId,
        endings: Endings,
    },
    Revoked,
    /// A change of who belongs to the cluster.
    Member,
    Watched(WorkerId),
    Confirmation {
        asked_ms: u64,
    },
}

/// How a server behaves towards clients, workers and other servers.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// How workers are watched. Without it no worker is ever suspected or lost: for a cluster of one server whose only worker lives
    /// in the same process.
    pub watch: Option<WatchOptions>,
    /// What is let in.
    pub door: DoorOptions,
    /// What waits for other servers and for workers. Without it messages come out as outputs, unbounded: for the same cluster of one.
    pub links: Option<LinkOptions>,
}

/// A replica with its workers, its door and its links.
pub struct Server {
    replica: Replica,
    door: Door,
    links: Option<Links>,
    /// What other servers said that they run.
    pub(crate) versions: BTreeMap<u64, NodeVersion>,
    watch_options: Option<WatchOptions>,
    watch: Option<Watch>,
    sessions: BTreeMap<Digest, Session>,
    pending: BTreeMap<u64, Pending>,
    recalls: Recalls,
    queue: Vec<(Ticket, Vec<u8>)>,
    outputs: VecDeque<ServerOutput>,
    next_ticket: u64,
    now_ms: u64,
    untended_ms: u64,
}

impl Server {
    /// A server around a replica with the usual door and without links; see [`ServerOptions`].
    pub fn new(replica: Replica, watch: Option<WatchOptions>) -> Server {
        Server::of(replica, watch, Door::default(), None)
    }

    /// A server around a replica.
    ///
    /// # Errors
    /// [`ReplicaError::Health`] when options lie outside their bounds.
    pub fn with_options(replica: Replica, options: ServerOptions) -> Result<Server, ReplicaError> {
        let links = options.links.map(Links::new).transpose()?;
        Ok(Server::of(replica, options.watch, Door::new(&options.door)?, links))
    }

    fn of(replica: Replica, watch: Option<WatchOptions>, door: Door, links: Option<Links>) -> Server {
        Server {
            replica,
            door,
            links,
            versions: BTreeMap::new(),
            watch_options: watch,
            watch: None,
            sessions: BTreeMap::new(),
            pending: BTreeMap::new(),
            recalls: Recalls::default(),
            queue: Vec::new(),
            outputs: VecDeque::new(),
            next_ticket: 1,
            now_ms: 0,
            untended_ms: 0,
        }
    }

    /// The replica.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The replica, for what concerns servers only: messages between them, disks, membership.
    pub fn replica_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// The state as of the last applied entry.
    pub fn state(&self) -> &State {
        self.replica.state()
    }

    /// Another server said what it runs. The leader has the cluster keep it.
    pub fn heard_version(&mut self, server: u64, version: NodeVersion) {
        // Who speaks belongs to the cluster, perhaps by an entry that is not applied here yet.
        self.versions.insert(server, version);
        if self.versions.len() > limits::SERVERS {
            let state = self.replica.state();
            self.versions.retain(|known, _| *known == server || state.node_of_server(*known).is_some());
        }
    }

    /// Proposes a command of a client's, if the door lets it in. Its fate comes with the same ticket, which must be below 2^63 and is used
    /// once; nothing is proposed before [`Server::flush`].
    pub fn propose(&mut self, ticket: Ticket, command: Command) {
        self.propose_waited(ticket, command, 0);
    }

    /// Proposes a command that has waited for so many milliseconds before it came here: that counts as queueing delay.
    pub fn propose_waited(&mut self, ticket: Ticket, command: Command, waited_ms: u64) {
        let entrant = self.door.entrant(self.replica.state(), &command);
        if let Err(error) = self.enter(ticket, command, entrant, waited_ms) {
            self.outputs.push_back(ServerOutput::Refused(ticket, error));
        }
    }

    fn enter(
        &mut self,
        ticket: Ticket,
        command: Command,
        entrant: Entrant,
        waited_ms: u64,
    ) -> Result<(), ReplicaError> {
        // Only a leader's door is asked: what another server must do costs nothing here.
        self.replica.must_take_proposals()?;
        self.door.ask(&entrant, self.now_ms)?;
        let bytes = self.replica.encode(command)?;
        self.door.admit(ticket, entrant, bytes.len() as u64, waited_ms, self.now_ms)?;
        self.queue.push((ticket, bytes));
        Ok(())
    }

    /// Proposes a command of the server's own, through the room that is reserved for it.
    pub(crate) fn propose_own(&mut self, pending: Pending, command: Command) {
        let entrant = if matches!(pending, Pending::Watched(_)) { Entrant::Life } else { Entrant::Ending };
        let ticket = self.ticket(pending);
        if self.enter(ticket, command, entrant, 0).is_err()
            && let Some(pending) = self.pending.remove(&ticket.0)
        {
            self.came_to_nothing(&pending);
        }
    }

    /// Asks for a linearizable read.
    pub fn read(&mut self, ticket: Ticket) {
        let admitted = self.door.admit_read(ticket).map_err(ReplicaError::from);
        if let Err(error) = admitted.and_then(|()| self.replica.read(ticket)) {
            self.door.read_ended(ticket);
            self.outputs.push_back(ServerOutput::Refused(ticket, error));
        }
    }

    /// How full the door is. It goes with every refusal, and whoever answers a client near the limit sends it along.
    pub fn level(&self) -> Level {
        self.door.level()
    }

    /// How full the door is for one tenant: its queue counts too.
    pub fn level_for(&self, tenant: TenantId) -> Level {
        self.door.level_for(self.replica.state(), tenant)
    }

    /// What the level means for a sender.
    pub fn advice(&self) -> Advice {
        self.door.advice()
    }

    /// Proposals that were let in and of which nobody knows yet what became.
    pub fn under_way(&self) -> usize {
        self.door.under_way()
    }

    /// Whether a connection to a peer may be tried now; what comes of it is told with [`Server::connected`] or
    /// [`Server::disconnected`].
    ///
    /// # Errors
    /// [`CallRefused`] when it failed too often or too lately.
    pub fn may_connect(&mut self, peer: Peer) -> Result<(), CallRefused> {
        let now_ms = self.now_ms;
        self.links.as_mut().map_or(Ok(()), |links| links.may_connect(peer, now_ms))
    }

    /// A connection to a peer was made, by whichever side. Its window is small at first, and nothing of before waits for it.
    ///
    /// # Errors
    /// [`ReplicaError::Health`] at the bound of peers.
    pub fn connected(&mut self, peer: Peer) -> Result<(), ReplicaError> {
        let now_ms = self.now_ms;
        match &mut self.links {
            Some(links) => Ok(links.connected(peer, now_ms)?),
            None => Ok(()),
        }
    }

    /// The connection to a peer was lost, or could not be made.
    pub fn disconnected(&mut self, peer: Peer) {
        let Some(links) = &mut self.links else { return };
        links.disconnected(peer, self.now_ms);
        match peer {
            Peer::Server(server) => self.replica.unreachable(server),
            // What waited for it is gone, and with it the order of the session.
            Peer::Worker(node) => drop(self.sessions.remove(&node)),
        }
    }

    /// Peers to whom something waits to be written, or is being written: for the others [`Server::take`] has nothing.
    pub fn busy_peers(&self) -> Vec<Peer> {
        self.links.as_ref().map(Links::busy).unwrap_or_default()
    }

    /// What is to be written to a peer next, if there is a connection, room in its window, and its breaker lets it through. To be followed
    /// by [`Server::sent`] or [`Server::not_sent`]; never anything without links.
    pub fn take(&mut self, peer: Peer) -> Option<Parcel> {
        loop {
            let sending = self.links.as_mut()?.take(peer, self.now_ms)?;
            let message = match (sending.message, peer) {
                (Waiting::Server(bytes), _) => Some(PeerMessage::Server(bytes)),
                (Waiting::Worker { incarnation, session, message }, Peer::Worker(node)) => {
                    self.numbered(node, incarnation, session, message).map(PeerMessage::Worker)
                }
                (Waiting::Worker { .. }, Peer::Server(_)) => None,
            };
            match message {
                Some(message) => {
                    let (number, deadline_ms) = (sending.number, sending.deadline_ms);
                    return Some(Parcel { number, deadline_ms, message });
                }
                None => self.sent(peer, sending.number),
            }
        }
    }

    /// A parcel was written.
    pub fn sent(&mut self, peer: Peer, number: u64) {
        if let Some(links) = &mut self.links {
            links.settled(peer, number, CallOutcome::Succeeded, self.now_ms);
        }
    }

    /// A parcel could not be written.
    pub fn not_sent(&mut self, peer: Peer, number: u64) {
        let Some(links) = &mut self.links else { return };
        links.settled(peer, number, CallOutcome::Failed, self.now_ms);
        self.lost_on_the_way(peer);
    }

    /// How full the outbox of a peer is; `None` for one that was never connected.
    pub fn outbox_level(&self, peer: Peer) -> Option<Level> {
        self.links.as_ref()?.level(peer)
    }

    /// In which state the breaker before another server is; `None` for a worker, and for a server that was never tried.
    pub fn breaker_state(&mut self, peer: Peer) -> Option<BreakerState> {
        let now_ms = self.now_ms;
        self.links.as_mut()?.breaker_state(peer, now_ms)
    }

    /// Something to a peer was dropped.
    fn lost_on_the_way(&mut self, peer: Peer) {
        match peer {
            Peer::Server(server) => self.replica.unreachable(server),
            Peer::Worker(node) => self.end_session(node),
        }
    }

    /// A worker waits for every number of its session, so a session of which something was dropped is over.
    fn end_session(&mut self, node: Digest) {
        if let Some(links) = &mut self.links {
            links.clear(node);
        }
        if let Some(known) = self.sessions.remove(&node) {
            self.unavailable(node, known.incarnation, known.session);
        }
    }

    /// Lets time pass, by the node's monotonic clock. To be called before anything that came meanwhile is taken in: what a
    /// server grants depends on how long ago it was confirmed.
    pub fn elapse(&mut self, elapsed_ms: u64) -> Result<(), ReplicaError> {
        self.now_ms = self.now_ms.saturating_add(elapsed_ms);
        self.replica.elapse(elapsed_ms)?;
        let now_ms = self.now_ms;
        self.door.tick(now_ms);
        let late = self.links.as_mut().map(|links| links.tick(now_ms)).unwrap_or_default();
        late.into_iter().for_each(|peer| self.lost_on_the_way(peer));
        self.untended_ms = self.untended_ms.saturating_add(elapsed_ms);
        if self.untended_ms >= TEND_EVERY_MS {
            self.untended_ms = 0;
            self.tend_members()?;
        }
        let Some(watch) = &mut self.watch else { return Ok(()) };
        #[cfg(feature = "mutants")]
        if self.replica.mutant == Some(grey_core::Mutant::SuspectWhileLate) {
            watch.suspect_while_late(self.replica.state(), now_ms);
        }
        let commands = watch.tick(self.replica.state(), now_ms);
        if watch.wants_confirmation(now_ms) {
            let ticket = self.ticket(Pending::Confirmation { asked_ms: now_ms });
            if self.replica.read(ticket).is_err() {
                self.pending.remove(&ticket.0);
            }
        }
        for (worker, command) in commands {
            self.propose_own(Pending::Watched(worker), command);
        }
        Ok(())
    }

    /// Forgets what a ticket was for: nothing came of it.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        self.pending.remove(&ticket.0);
    }

    pub(crate) fn ticket(&mut self, pending: Pending) -> Ticket {
        let number = OWN | self.next_ticket;
        self.next_ticket += 1;
        self.pending.insert(number, pending);
        Ticket(number)
    }

    /// A worker says something; `key` is the one with which its connection was authenticated. What one connection brought in order is to be
    /// handed over in order, and nothing of an earlier connection after something of a later one.
    pub fn from_worker(&mut self, key: &VerifyingKey, message: FromWorker) {
        let node = key.id();
        match message {
            FromWorker::Register(body) => self.announced(node, key, body),
            FromWorker::Report(report) => self.reported(node, report),
            FromWorker::Revoked(body) => {
                // Only in its present session: after another announcement it may hold again what it gave back before.
                let known = self.sessions.get(&node).is_some_and(|known| {
                    known.incarnation == body.incarnation && known.worker == Some(body.worker)
                });
                if known {
                    self.propose_own(Pending::Revoked, Command::Revoked(body));
                }
            }
            FromWorker::Heartbeat(heartbeat) => self.heartbeat(node, heartbeat),
        }
    }

    fn announced(&mut self, node: Digest, key: &VerifyingKey, body: RegisterWorker) {
        let newer = |known: &Session| (body.incarnation, body.session) > (known.incarnation, known.session);
        // A node speaks for itself only, and an announcement that was overtaken has been answered.
        if body.node != node || self.sessions.get(&node).is_some_and(|known| !newer(known)) {
            return;
        }
        if !self.replica.leads() {
            return self.unavailable(node, body.incarnation, body.session);
        }
        let session = body.session;
        let opened =
            Session { incarnation: body.incarnation, session, key: *key, worker: None, next_number: 0 };
        self.sessions.insert(node, opened);
        self.propose_own(Pending::Registration { node, session }, Command::RegisterWorker(body));
    }

    fn unavailable(&mut self, node: Digest, incarnation: u64, session: u64) {
        let message = WorkerMessage::Unavailable { leader: self.replica.leader() };
        match &mut self.links {
            // If it is not taken, the worker's own waiting ends.
            Some(links) => drop(links.push_worker(node, incarnation, session, message, self.now_ms)),
            None => {
                let message = ToWorker { incarnation, session, number: 0, message };
                self.outputs.push_back(ServerOutput::ToWorker { node, message });
            }
        }
    }

    fn reported(&mut self, node: Digest, report: Report) {
        let known = self.sessions.get(&node).filter(|known| {
            (known.incarnation, known.session) == (report.incarnation, report.session)
                && known.worker == Some(report.worker)
        });
        let Some(known) = known else {
            return self.unavailable(node, report.incarnation, report.session);
        };
        let (session, sequence) = (report.session, report.sequence);
        match check_report(self.replica.state(), &report, &known.key) {
            Ok(()) => {
                let (worker, endings) = (report.worker, Endings::of(&report));
                let pending = Pending::Report { node, session, sequence, worker, endings };
                self.propose_own(pending, Command::Report(report));
            }
            Err(ReportRefusal::NotHeld(attempts)) => {
                self.answer_report(node, session, sequence, ReportAnswer::NotHeld(attempts));
            }
            Err(ReportRefusal::Unregistered | ReportRefusal::BadSignature | ReportRefusal::Malformed) => {
                self.answer_report(node, session, sequence, ReportAnswer::Unregistered);
            }
        }
    }

    fn answer_report(&mut self, node: Digest, session: u64, sequence: u64, answer: ReportAnswer) {
        self.send_in(node, session, WorkerMessage::Reported(sequence, answer));
    }

    fn heartbeat(&mut self, node: Digest, heartbeat: Heartbeat) {
        let known = self.sessions.get(&node).is_some_and(|known| {
            (known.incarnation, known.session) == (heartbeat.incarnation, heartbeat.session)
                && known.worker == Some(heartbeat.worker)
        });
        if !known {
            return self.unavailable(node, heartbeat.incarnation, heartbeat.session);
        }
        let granted = match &mut self.watch {
            Some(watch) => watch.heard(heartbeat.worker, self.now_ms),
            None => self.watch_options.is_none(),
        };
        if granted {
            self.send_in(node, heartbeat.session, WorkerMessage::Heard(heartbeat.number));
        }
        let due = self.recalls.due(self.replica.state(), heartbeat.worker, self.now_ms);
        if !due.is_empty() {
            self.recall(heartbeat.worker, due);
        }
    }

    /// Sends within a session, if it is still the node's.
    fn send_in(&mut self, node: Digest, session: u64, message: WorkerMessage) {
        let known = self.sessions.get(&node).filter(|known| known.session == session);
        let Some(incarnation) = known.map(|known| known.incarnation) else { return };
        if let Some(links) = &mut self.links {
            if !links.push_worker(node, incarnation, session, message, self.now_ms) {
                self.end_session(node);
            }
        } else if let Some(message) = self.numbered(node, incarnation, session, message) {
            self.outputs.push_back(ServerOutput::ToWorker { node, message });
        }
    }

    /// A message with its number, if its session is still the node's.
    fn numbered(
        &mut self,
        node: Digest,
        incarnation: u64,
        session: u64,
        message: WorkerMessage,
    ) -> Option<ToWorker> {
        if matches!(message, WorkerMessage::Unavailable { .. }) {
            return Some(ToWorker { incarnation, session, number: 0, message });
        }
        let known = self.sessions.get_mut(&node).filter(|known| known.session == session)?;
        let number = known.next_number;
        known.next_number += 1;
        Some(ToWorker { incarnation: known.incarnation, session, number, message })
    }

    /// Sends to a worker that is registered here. To one that is not, nothing is lost: when it announces itself, what it
    /// has not got is sent again.
    fn send_to(&mut self, worker: WorkerId, message: WorkerMessage) {
        let Some(node) = self.replica.state().workers().get(&worker).map(|row| row.node) else { return };
        let session = self.sessions.get(&node).filter(|known| known.worker == Some(worker));
        if let Some(session) = session.map(|known| known.session) {
            self.send_in(node, session, message);
        }
    }

    /// Asks a worker to give attempts back, and again until the state says what became of them.
    fn recall(&mut self, worker: WorkerId, attempts: Vec<AttemptId>) {
        self.recalls.asked(self.replica.state(), worker, &attempts, self.now_ms);
        self.send_to(worker, WorkerMessage::Revoke(attempts));
    }

    /// Proposes what has gathered: it shares one place in the disk's queue.
    pub fn flush(&mut self) -> Result<(), ReplicaError> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let queue = core::mem::take(&mut self.queue);
        for (ticket, error) in self.replica.propose_encoded(queue)? {
            self.door.dropped(ticket, self.now_ms);
            match self.pending.remove(&ticket.0) {
                Some(pending) => self.came_to_nothing(&pending),
                None => self.outputs.push_back(ServerOutput::Refused(ticket, error)),
            }
        }
        Ok(())
    }

    /// What is to be done, in order. The caller drains it after every call.
    pub fn outputs(&mut self) -> Result<Vec<ServerOutput>, ReplicaError> {
        let replica: Vec<Output> = self.replica.outputs().collect();
        for output in replica {
            self.translate(output)?;
        }
        Ok(self.outputs.drain(..).collect())
    }

    fn translate(&mut self, output: Output) -> Result<(), ReplicaError> {
        match output {
            Output::Applied { term, index, ticket, leads, mut applied } => {
                if let Some(ticket) = ticket {
                    self.door.applied(ticket, self.now_ms);
                }
                let pending = ticket.and_then(|ticket| self.pending.remove(&ticket.0));
                let ticket = if pending.is_some() { None } else { ticket };
                if let Some(pending) = pending {
                    self.answered(&pending, &applied)?;
                }
                applied.effects = self.without_workers(applied.effects, leads);
                let output = Output::Applied { term, index, ticket, leads, applied };
                self.outputs.push_back(ServerOutput::Replica(output));
            }
            Output::Unknown(ticket) => {
                self.door.dropped(ticket, self.now_ms);
                self.door.read_ended(ticket);
                match self.pending.remove(&ticket.0) {
                    Some(pending) => self.came_to_nothing(&pending),
                    None => self.outputs.push_back(ServerOutput::Replica(Output::Unknown(ticket))),
                }
            }
            Output::Readable(ticket) => match self.pending.remove(&ticket.0) {
                Some(Pending::Confirmation { asked_ms }) => {
                    if let Some(watch) = &mut self.watch {
                        watch.confirmed(asked_ms);
                    }
                }
                _ => {
                    self.door.read_ended(ticket);
                    self.outputs.push_back(ServerOutput::Replica(Output::Readable(ticket)));
                }
            },
            Output::Send { to, class, bytes } => match &mut self.links {
                Some(links) => {
                    if !links.push_server(to, class, bytes, self.now_ms) {
                        self.replica.unreachable(to);
                    }
                }
                None => self.outputs.push_back(ServerOutput::Replica(Output::Send { to, class, bytes })),
            },
            Output::Reconfigured { ticket, changed } => match self.pending.remove(&ticket.0) {
                Some(_) => {}
                None => {
                    self.outputs.push_back(ServerOutput::Replica(Output::Reconfigured { ticket, changed }));
                }
            },
            Output::Revoke { worker, attempts } => self.recall(worker, attempts),
            Output::Role { leads, leader, term } => {
                self.change_role(leads)?;
                self.outputs.push_back(ServerOutput::Replica(Output::Role { leads, leader, term }));
            }
            other => self.outputs.push_back(ServerOutput::Replica(other)),
        }
        Ok(())
    }

    fn change_role(&mut self, leads: bool) -> Result<(), ReplicaError> {
        if !leads {
            self.watch = None;
            self.recalls = Recalls::default();
            // Workers look for the new leader at once instead of waiting for an answer.
            for (node, known) in core::mem::take(&mut self.sessions) {
                self.unavailable(node, known.incarnation, known.session);
            }
        } else if self.watch.is_none()
            && let Some(options) = &self.watch_options
        {
            self.watch = Some(Watch::new(options, self.replica.state(), self.now_ms)?);
        }
        Ok(())
    }

    fn without_workers(&mut self, effects: Vec<Effect>, leads: bool) -> Vec<Effect> {
        let mut kept = Vec::with_capacity(effects.len());
        for effect in effects {
            match effect {
                Effect::Assign(assignment) if leads => {
                    let worker = assignment.placement.worker;
                    self.send_to(worker, WorkerMessage::Assign(Box::new(assignment)));
                }
                Effect::Stop { worker, attempt } if leads => {
                    self.send_to(worker, WorkerMessage::Stop(attempt));
                }
                Effect::ChangeTimeout { worker, attempts, timeout_ms } if leads => {
                    self.send_to(worker, WorkerMessage::ChangeTimeout(attempts, timeout_ms));
                }
                Effect::Assign(_) | Effect::Stop { .. } | Effect::ChangeTimeout { .. } => {}
                Effect::History(_) | Effect::LogGrew { .. } | Effect::Event(_) => kept.push(effect),
            }
        }
        kept
    }

    /// A proposal of the server's own was applied.
    fn answered(&mut self, pending: &Pending, applied: &Applied) -> Result<(), ReplicaError> {
        match (pending, &applied.answer) {
            (Pending::Registration { node, session }, Ok(Answer::Registered { worker, unknown })) => {
                let Some(known) = self.sessions.get_mut(node).filter(|known| known.session == *session)
                else {
                    return Ok(());
                };
                known.worker = Some(*worker);
                self.recalls.forget(*worker);
                if let Some(watch) = &mut self.watch {
                    watch.registered(*worker, self.now_ms)?;
                }
                let message = WorkerMessage::Registered { worker: *worker, unknown: unknown.clone() };
                self.send_in(*node, *session, message);
            }
            (Pending::Registration { .. }, _) => self.came_to_nothing(pending),
            (Pending::Report { node, session, sequence, worker, endings }, answer) => {
                if let (Ok(_), Some(watch)) = (answer, &mut self.watch) {
                    watch.ended(*worker, *endings, self.now_ms)?;
                }
                let answer = match answer {
                    Ok(_) => ReportAnswer::Accepted,
                    Err(Rejection::ReportOutOfOrder { .. }) => ReportAnswer::TooEarly,
                    Err(_) => ReportAnswer::Unregistered,
                };
                self.answer_report(*node, *session, *sequence, answer);
            }
            (Pending::Watched(worker), _) => {
                if let Some(watch) = &mut self.watch {
                    watch.settled(*worker);
                }
            }
            (Pending::Revoked | Pending::Member | Pending::Confirmation { .. }, _) => {}
        }
        Ok(())
    }

    /// What was proposed or asked will have no answer, or needs none.
    fn came_to_nothing(&mut self, pending: &Pending) {
        match pending {
            Pending::Registration { node, session } | Pending::Report { node, session, .. } => {
                let known = self.sessions.get(node).filter(|known| known.session == *session);
                if let Some(incarnation) = known.map(|known| known.incarnation) {
                    self.sessions.remove(node);
                    self.unavailable(*node, incarnation, *session);
                }
            }
            Pending::Watched(worker) => {
                if let Some(watch) = &mut self.watch {
                    watch.lost(*worker);
                }
            }
            Pending::Revoked | Pending::Member | Pending::Confirmation { .. } => {}
        }
    }
}
