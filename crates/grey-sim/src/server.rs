//! One server: the real replica over the real store on a simulated disk, and what its threads do for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use grey_agent::ReportAnswer;
use grey_core::{
    Answer, Applied, Command, Effect, HistoryRecord, JobId, Rejection, ReportRefusal, check_report,
};
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{Checkpoint, Options, Output, PersistBatch, Replica, ReplicaError, Ticket};
use grey_store::{RecordKey, RecordKind, Storage, StorageOptions, StoreError};

use crate::disk::SimulatedDisk;
use crate::message::{Ask, FromWorker, Packet, ToWorker, Told, WorkerMessage};
use crate::network::NodeIndex;

/// History segments are small here, so that runs seal some.
pub const SEGMENT_BYTES: u64 = 32 * 1024;
/// The kind under which a report's record is kept.
pub const REPORTS: RecordKind = RecordKind(1);

/// What the side's thread is asked, in the order of the log.
enum SideRequest {
    Effects(Vec<Effect>),
    Checkpoint(Box<Checkpoint>),
}

/// Who is told what a proposal came to.
enum Reply {
    Client { node: NodeIndex, number: u64 },
    Registration { worker: NodeIndex },
    Report { worker: NodeIndex, sequence: u64 },
}

/// What a worker has been sent since it announced itself.
struct Session {
    session: u64,
    number: u64,
}

/// What a server asks of the world.
pub enum Ordered {
    /// Send.
    Send { to: NodeIndex, packet: Packet },
    /// The log's thread has something to write.
    LogWork,
    /// The side's thread has something to write.
    SideWork,
    /// An entry was applied.
    Applied { term: u64, index: u64, applied: Applied },
    /// It believes that it leads, or no longer.
    Role { leads: bool, leader: u64, term: u64 },
}

/// Why a server ended.
#[derive(Debug)]
pub enum Ended {
    /// Its storage failed: it ends and starts anew.
    Store(StoreError),
    /// Its replica cannot go on.
    Replica(String),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Ended {
        Ended::Store(error)
    }
}

impl From<ReplicaError> for Ended {
    fn from(error: ReplicaError) -> Ended {
        Ended::Replica(error.to_string())
    }
}

/// What a start needs to know.
pub struct StartOptions {
    pub id: u64,
    pub servers: u64,
    pub election_seed: u64,
    pub checkpoint_bytes: u64,
    /// Keys of workers by node.
    pub keys: Arc<BTreeMap<NodeIndex, VerifyingKey>>,
    pub nodes: Arc<BTreeMap<Digest, NodeIndex>>,
}

/// A server that is up.
pub struct Server {
    pub replica: Replica,
    /// The index of the checkpoint from which it came back.
    pub restored_index: u64,
    storage: Storage,
    log_queue: VecDeque<PersistBatch>,
    log_busy: bool,
    side_queue: VecDeque<SideRequest>,
    side_busy: bool,
    replies: BTreeMap<u64, Reply>,
    reads: BTreeMap<u64, (NodeIndex, u64, JobId)>,
    sessions: BTreeMap<NodeIndex, Session>,
    next_ticket: u64,
    keys: Arc<BTreeMap<NodeIndex, VerifyingKey>>,
    nodes: Arc<BTreeMap<Digest, NodeIndex>>,
    pub ordered: Vec<Ordered>,
}

/// The founding membership, where nothing on the disk says otherwise.
pub fn founding(servers: u64) -> Vec<u64> {
    (1..=servers).collect()
}

impl Server {
    /// Brings a server back from its disk.
    pub fn start(disk: &SimulatedDisk, options: StartOptions) -> Result<Server, Ended> {
        let store = StorageOptions { segment_bytes: SEGMENT_BYTES };
        let (storage, mut recovered) = Storage::open(Arc::new(disk.clone()), &store)?;
        if recovered.membership.voters.is_empty() {
            recovered.membership.voters = founding(options.servers);
        }
        let restored_index = recovered.checkpoint_index;
        let replica = Replica::new(
            &Options {
                id: options.id,
                seed: options.election_seed,
                checkpoint_bytes: options.checkpoint_bytes,
            },
            recovered,
            Box::new(storage.log.reader()),
        )?;
        Ok(Server {
            replica,
            restored_index,
            storage,
            log_queue: VecDeque::new(),
            log_busy: false,
            side_queue: VecDeque::new(),
            side_busy: false,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_ticket: 1,
            keys: options.keys,
            nodes: options.nodes,
            ordered: Vec::new(),
        })
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn send(&mut self, to: NodeIndex, packet: Packet) {
        self.ordered.push(Ordered::Send { to, packet });
    }

    /// Time passed by this node's monotonic clock.
    pub fn elapse(&mut self, elapsed_ms: u64) -> Result<(), Ended> {
        self.replica.elapse(elapsed_ms)?;
        self.act();
        Ok(())
    }

    /// Something arrived.
    pub fn receive(&mut self, from: NodeIndex, packet: Packet) -> Result<(), Ended> {
        match packet {
            Packet::Engine(bytes) => self.replica.receive(&bytes)?,
            Packet::Request { number, ask } => self.request(from, number, ask)?,
            Packet::FromWorker(message) => self.heed_worker(from, message)?,
            Packet::ToWorker(_) | Packet::Reply { .. } => {}
        }
        self.act();
        Ok(())
    }

    fn request(&mut self, node: NodeIndex, number: u64, ask: Ask) -> Result<(), Ended> {
        let ticket = self.ticket();
        let outcome = match ask {
            Ask::Propose(command) => {
                self.replies.insert(ticket.0, Reply::Client { node, number });
                self.replica.propose(ticket, *command)
            }
            Ask::Read(job) => {
                self.reads.insert(ticket.0, (node, number, job));
                self.replica.read(ticket)
            }
        };
        let told = match outcome {
            Ok(()) => return Ok(()),
            Err(ReplicaError::NotLeader { leader }) => Told::NotLeader(leader),
            Err(ReplicaError::Overloaded) => Told::Overloaded,
            Err(error) => return Err(error.into()),
        };
        self.replies.remove(&ticket.0);
        self.reads.remove(&ticket.0);
        self.send(node, Packet::Reply { number, told });
        Ok(())
    }

    fn heed_worker(&mut self, worker: NodeIndex, message: FromWorker) -> Result<(), Ended> {
        if !self.replica.leads() {
            self.unavailable(worker);
            return Ok(());
        }
        match message {
            FromWorker::Register(body) => {
                let reply = Reply::Registration { worker };
                self.propose(reply, Command::RegisterWorker(*body))
            }
            FromWorker::Report(report) => {
                let sequence = report.sequence;
                let Some(key) = self.keys.get(&worker) else { return Ok(()) };
                match check_report(self.replica.state(), &report, key) {
                    Ok(()) => self.propose(Reply::Report { worker, sequence }, Command::Report(*report)),
                    Err(refusal) => {
                        let answer = match refusal {
                            ReportRefusal::NotHeld(attempts) => ReportAnswer::NotHeld(attempts),
                            ReportRefusal::Unregistered => ReportAnswer::Unregistered,
                            ReportRefusal::BadSignature | ReportRefusal::Malformed => {
                                return Err(Ended::Replica(format!("a worker's report: {refusal}")));
                            }
                        };
                        self.tell_worker(worker, WorkerMessage::Reported(sequence, answer));
                        Ok(())
                    }
                }
            }
            FromWorker::Revoked(body) => {
                let ticket = self.ticket();
                match self.replica.propose(ticket, Command::Revoked(*body)) {
                    Ok(()) | Err(ReplicaError::NotLeader { .. } | ReplicaError::Overloaded) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            FromWorker::Heartbeat { session, number } => {
                match self.sessions.get(&worker) {
                    Some(known) if known.session == session && number <= known.number => {
                        let message = WorkerMessage::Heard(known.number);
                        let number = known.number;
                        self.send(worker, Packet::ToWorker(ToWorker { session, number, message }));
                    }
                    _ => self.unavailable(worker),
                }
                Ok(())
            }
        }
    }

    fn propose(&mut self, reply: Reply, command: Command) -> Result<(), Ended> {
        let ticket = self.ticket();
        let worker = match reply {
            Reply::Registration { worker } | Reply::Report { worker, .. } => worker,
            Reply::Client { node, .. } => node,
        };
        self.replies.insert(ticket.0, reply);
        match self.replica.propose(ticket, command) {
            Ok(()) => Ok(()),
            Err(ReplicaError::NotLeader { .. } | ReplicaError::Overloaded) => {
                self.replies.remove(&ticket.0);
                self.unavailable(worker);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unavailable(&mut self, worker: NodeIndex) {
        self.sessions.remove(&worker);
        let message = WorkerMessage::Unavailable(self.replica.leader());
        self.send(worker, Packet::ToWorker(ToWorker { session: 0, number: 0, message }));
    }

    /// The next message of a worker's session; nothing to a worker that has none, since it has to announce itself first.
    fn tell_worker(&mut self, worker: NodeIndex, message: WorkerMessage) {
        let Some(known) = self.sessions.get_mut(&worker) else { return };
        known.number += 1;
        let (session, number) = (known.session, known.number);
        self.send(worker, Packet::ToWorker(ToWorker { session, number, message }));
    }

    fn node_of(&self, worker: grey_core::WorkerId) -> Option<NodeIndex> {
        let row = self.replica.state().workers().get(&worker)?;
        self.nodes.get(&row.node).copied()
    }

    /// Does what the replica asks for.
    fn act(&mut self) {
        let outputs: Vec<Output> = self.replica.outputs().collect();
        for output in outputs {
            match output {
                Output::Persist(batch) => {
                    self.log_queue.push_back(batch);
                    self.wake_log();
                }
                Output::Send { to, bytes } => {
                    let to = usize::try_from(to.saturating_sub(1)).unwrap_or(usize::MAX);
                    self.send(to, Packet::Engine(bytes));
                }
                Output::Applied { term, index, ticket, leads, applied } => {
                    self.applied(ticket, leads, &applied);
                    self.ordered.push(Ordered::Applied { term, index, applied });
                }
                Output::Unknown(ticket) => self.unknown(ticket),
                Output::Readable(ticket) => {
                    if let Some((node, number, job)) = self.reads.remove(&ticket.0) {
                        let counts = self.replica.state().jobs().get(&job).map(|job| job.counts);
                        self.send(node, Packet::Reply { number, told: Told::Read(counts) });
                    }
                }
                Output::Checkpoint(checkpoint) => {
                    self.tell_side(SideRequest::Checkpoint(Box::new(checkpoint)))
                }
                Output::Revoke { worker, attempts } => {
                    if let Some(node) = self.node_of(worker) {
                        self.tell_worker(node, WorkerMessage::Revoke(attempts));
                    }
                }
                Output::Role { leads, leader, term } => {
                    if !leads {
                        self.sessions.clear();
                    }
                    self.ordered.push(Ordered::Role { leads, leader, term });
                }
            }
        }
    }

    fn unknown(&mut self, ticket: Ticket) {
        if let Some((node, number, _)) = self.reads.remove(&ticket.0) {
            self.send(node, Packet::Reply { number, told: Told::Unknown });
        }
        match self.replies.remove(&ticket.0) {
            Some(Reply::Client { node, number }) => {
                self.send(node, Packet::Reply { number, told: Told::Unknown });
            }
            Some(Reply::Registration { worker } | Reply::Report { worker, .. }) => self.unavailable(worker),
            None => {}
        }
    }

    fn applied(&mut self, ticket: Option<Ticket>, leads: bool, applied: &Applied) {
        let reply = ticket.and_then(|ticket| self.replies.remove(&ticket.0));
        if let (Some(Reply::Registration { worker }), Ok(Answer::Registered { worker: id, unknown })) =
            (&reply, &applied.answer)
        {
            // What the entry sends the worker belongs to the new session.
            let session = self.replica.state().applied_index();
            self.sessions.insert(*worker, Session { session, number: 0 });
            self.tell_worker(*worker, WorkerMessage::Registered(*id, unknown.clone()));
        }
        let mut kept = Vec::new();
        for effect in &applied.effects {
            match effect {
                Effect::Assign(assignment) if leads => {
                    if let Some(node) = self.node_of(assignment.placement.worker) {
                        self.tell_worker(node, WorkerMessage::Assign(Box::new(assignment.clone())));
                    }
                }
                Effect::Stop { worker, attempt } if leads => {
                    if let Some(node) = self.node_of(*worker) {
                        self.tell_worker(node, WorkerMessage::Stop(*attempt));
                    }
                }
                Effect::ChangeTimeout { worker, attempts, timeout_ms } if leads => {
                    if let Some(node) = self.node_of(*worker) {
                        self.tell_worker(node, WorkerMessage::ChangeTimeout(attempts.clone(), *timeout_ms));
                    }
                }
                Effect::History(_) | Effect::LogGrew { .. } => kept.push(effect.clone()),
                Effect::Assign(_) | Effect::Stop { .. } | Effect::ChangeTimeout { .. } | Effect::Event(_) => {
                }
            }
        }
        if !kept.is_empty() {
            self.tell_side(SideRequest::Effects(kept));
        }
        match reply {
            Some(Reply::Client { node, number }) => {
                let told = Told::Applied(applied.answer.clone());
                self.send(node, Packet::Reply { number, told });
            }
            Some(Reply::Report { worker, sequence }) => {
                let answer = match &applied.answer {
                    Ok(_) => ReportAnswer::Accepted,
                    Err(Rejection::ReportOutOfOrder { .. }) => ReportAnswer::TooEarly,
                    Err(_) => ReportAnswer::Unregistered,
                };
                self.tell_worker(worker, WorkerMessage::Reported(sequence, answer));
            }
            Some(Reply::Registration { worker }) if applied.answer.is_err() => self.unavailable(worker),
            Some(Reply::Registration { .. }) | None => {}
        }
    }

    fn wake_log(&mut self) {
        if !self.log_busy && !self.log_queue.is_empty() {
            self.log_busy = true;
            self.ordered.push(Ordered::LogWork);
        }
    }

    fn tell_side(&mut self, request: SideRequest) {
        self.side_queue.push_back(request);
        self.wake_side();
    }

    fn wake_side(&mut self) {
        if !self.side_busy && !self.side_queue.is_empty() {
            self.side_busy = true;
            self.ordered.push(Ordered::SideWork);
        }
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.log_busy || self.side_busy
    }

    /// The log's thread is through: everything that waits is written with one sync.
    pub fn log_done(&mut self) -> Result<(), Ended> {
        self.write_log()?;
        self.log_busy = false;
        self.act();
        self.wake_log();
        Ok(())
    }

    fn write_log(&mut self) -> Result<(), Ended> {
        let batches: Vec<PersistBatch> = self.log_queue.drain(..).collect();
        if let Some(last) = batches.last().map(|batch| batch.number) {
            self.storage.log.append(&batches)?;
            self.replica.persisted(last)?;
        }
        Ok(())
    }

    /// The side's thread is through with what waits, up to and with the first checkpoint.
    pub fn side_done(&mut self) -> Result<(), Ended> {
        self.write_side()?;
        self.side_busy = false;
        self.act();
        self.wake_side();
        Ok(())
    }

    fn write_side(&mut self) -> Result<(), Ended> {
        let side = &mut self.storage.side;
        let mut records = Vec::new();
        while let Some(request) = self.side_queue.pop_front() {
            match request {
                SideRequest::Effects(effects) => {
                    for effect in effects {
                        match effect {
                            Effect::History(HistoryRecord::Report(record)) => {
                                let key = RecordKey { kind: REPORTS, key: record.position, subkey: 0 };
                                records.push((key, postcard::to_allocvec(&record).unwrap_or_default()));
                            }
                            Effect::LogGrew { hashes, .. } => side.tree.append(&hashes)?,
                            _ => {}
                        }
                    }
                }
                SideRequest::Checkpoint(checkpoint) => {
                    side.history.append(records.iter().map(|(key, value)| (*key, value.as_slice())))?;
                    side.write_checkpoint(&checkpoint)?;
                    // Without snapshots a follower that is behind needs the whole log.
                    self.replica.checkpointed(0);
                    return Ok(());
                }
            }
        }
        side.history.append(records.iter().map(|(key, value)| (*key, value.as_slice())))?;
        Ok(())
    }

    /// Starts the writes that were under way when the power went; they get as far as the disk lets them.
    pub fn write_in_vain(&mut self) {
        if self.log_busy {
            let batches: Vec<PersistBatch> = self.log_queue.drain(..).collect();
            drop(self.storage.log.append(&batches));
        }
        if self.side_busy {
            drop(self.write_side());
        }
    }

    /// Digests of the reports that history has, by position.
    pub fn history(&self) -> Result<BTreeMap<u64, Digest>, StoreError> {
        let from = RecordKey { kind: REPORTS, key: 0, subkey: 0 };
        let to = RecordKey { kind: REPORTS, key: u64::MAX, subkey: 0 };
        let found = self.storage.side.history.reader().scan(from, to, usize::MAX, false)?;
        Ok(found.into_iter().map(|(key, value)| (key.key, Digest::of(&value))).collect())
    }

    /// Proposes the founding.
    pub fn found(&mut self, cluster: Digest) {
        let ticket = self.ticket();
        // Whoever leads next tries again where this comes to nothing.
        drop(self.replica.propose(ticket, crate::workload::bootstrap(cluster)));
        self.act();
    }
}
