//! One server: the real replica over the real store on a simulated disk, and what its threads do for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use grey_core::{Applied, Command, Effect, HistoryRecord, JobId, NodeStanding, NodeVersion, State, ToWorker};
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{
    Checkpoint, Options, Output, Peer, PeerMessage, PersistBatch, Replica, ReplicaError,
    Server as Replicated, ServerOptions, ServerOutput, Ticket,
};
use grey_store::{RecordKey, RecordKind, Storage, StorageOptions, StoreError};

use crate::disk::SimulatedDisk;
use crate::message::{Ask, Packet, Told};
use crate::network::NodeIndex;

/// History segments are small here, so that runs seal some.
pub const SEGMENT_BYTES: u64 = 32 * 1024;
/// The kind under which a report's record is kept.
pub const REPORTS: RecordKind = RecordKind(1);

/// What the log's thread is asked.
enum LogRequest {
    Persist(PersistBatch),
    /// Drop entries up to an index.
    Truncate(u64),
}

/// What the side's thread is asked, in the order of the log.
enum SideRequest {
    Effects(Vec<Effect>),
    Checkpoint(Box<Checkpoint>),
    /// Put a whole state in the place of what is here; the log gets the same batch.
    Install(Box<PersistBatch>),
}

/// What a server asks of the world.
pub enum Ordered {
    /// Send.
    Send { to: NodeIndex, packet: Packet },
    /// The log's thread has something to write: so many entries.
    LogWork { entries: u64 },
    /// The side's thread has something to write.
    SideWork,
    /// An entry was applied.
    Applied { term: u64, index: u64, applied: Applied },
    /// A whole state took the place of what was here.
    Installed { index: u64 },
    /// A connection was made.
    Connected,
    /// A connection was found broken by what was to be written to it.
    Disconnected,
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
    /// Those that vote before anything else is decided: the first so many.
    pub founders: u64,
    pub election_seed: u64,
    pub checkpoint_bytes: u64,
    /// What it runs.
    pub version: NodeVersion,
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
    /// How it behaves towards others.
    pub behaviour: ServerOptions,
    /// Whether what comes while the log is written waits for the next write.
    pub paced: bool,
    /// Keys of workers by node.
    pub keys: Arc<BTreeMap<NodeIndex, VerifyingKey>>,
    pub nodes: Arc<BTreeMap<Digest, NodeIndex>>,
}

/// A server that is up.
pub struct Server {
    server: Replicated,
    /// The index of the checkpoint from which it came back.
    pub restored_index: u64,
    /// How many reports that covers.
    pub restored_reports: u64,
    storage: Storage,
    log_queue: VecDeque<LogRequest>,
    log_busy: bool,
    /// Requests of the write that is under way, where those after them wait for the next.
    writing: usize,
    pub paced: bool,
    /// Whether it has links.
    linked: bool,
    /// The other servers, where it has links.
    others: Vec<u64>,
    connected: BTreeSet<Peer>,
    /// What others said that they understand.
    greeted: BTreeMap<u64, u16>,
    /// To whom nothing can be written.
    away: BTreeSet<Peer>,
    side_queue: VecDeque<SideRequest>,
    side_busy: bool,
    replies: BTreeMap<u64, (NodeIndex, u64)>,
    reads: BTreeMap<u64, (NodeIndex, u64, JobId)>,
    next_ticket: u64,
    keys: Arc<BTreeMap<NodeIndex, VerifyingKey>>,
    nodes: Arc<BTreeMap<Digest, NodeIndex>>,
    pub ordered: Vec<Ordered>,
}

/// The founding membership, where nothing on the disk says otherwise.
pub fn founding(founders: u64) -> Vec<u64> {
    (1..=founders).collect()
}

impl Server {
    /// Brings a server back from its disk.
    pub fn start(disk: &SimulatedDisk, options: StartOptions) -> Result<Server, Ended> {
        let store = StorageOptions { segment_bytes: SEGMENT_BYTES };
        let (storage, mut recovered) = Storage::open(Arc::new(disk.clone()), &store)?;
        if recovered.membership.voters.is_empty() {
            recovered.membership.voters = founding(options.founders);
        }
        let restored_index = recovered.checkpoint_index;
        // The replica may apply more than that at once.
        let rows = recovered.rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        let restored = State::load(rows).map_err(|error| Ended::Replica(error.to_string()))?;
        let restored_reports = restored.meta().log.size();
        let replica = Replica::new(
            &Options {
                id: options.id,
                seed: options.election_seed,
                checkpoint_bytes: options.checkpoint_bytes,
                version: options.version,
                #[cfg(feature = "mutants")]
                mutant: options.mutant,
            },
            recovered,
            Box::new(storage.log.reader()),
        )?;
        let linked = options.behaviour.links.is_some();
        let others = (1..=options.servers).filter(|other| linked && *other != options.id).collect();
        Ok(Server {
            server: Replicated::with_options(replica, options.behaviour)?,
            restored_index,
            restored_reports,
            storage,
            log_queue: VecDeque::new(),
            log_busy: false,
            writing: 0,
            paced: options.paced,
            linked,
            others,
            connected: BTreeSet::new(),
            greeted: BTreeMap::new(),
            away: BTreeSet::new(),
            side_queue: VecDeque::new(),
            side_busy: false,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
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

    /// The replica.
    pub fn replica(&self) -> &Replica {
        self.server.replica()
    }

    /// Time passed by this node's monotonic clock.
    pub fn elapse(&mut self, elapsed_ms: u64) -> Result<(), Ended> {
        self.server.elapse(elapsed_ms)?;
        for position in 0..self.others.len() {
            let Some(peer) = self.others.get(position).map(|other| Peer::Server(*other)) else { continue };
            if !self.connected.contains(&peer) && self.server.may_connect(peer).is_ok() {
                if self.away.contains(&peer) {
                    self.server.disconnected(peer);
                } else {
                    self.connect(peer)?;
                }
            }
        }
        self.act()
    }

    fn connect(&mut self, peer: Peer) -> Result<(), Ended> {
        if self.linked && self.connected.insert(peer) {
            self.server.connected(peer)?;
            self.ordered.push(Ordered::Connected);
        }
        Ok(())
    }

    /// Whether anything can be written to a peer. That it cannot is found when it is tried.
    pub fn set_away(&mut self, peer: Peer, away: bool) {
        if away {
            self.away.insert(peer);
        } else {
            self.away.remove(&peer);
        }
    }

    /// To these nothing can be written, and to all others it can.
    pub fn set_all_away(&mut self, away: BTreeSet<Peer>) {
        self.away = away;
    }

    /// The real server.
    pub fn real(&mut self) -> &mut Replicated {
        &mut self.server
    }

    /// Writes what the links let through; where writing fails the connection is over.
    fn post(&mut self) {
        for peer in self.server.busy_peers() {
            if !self.connected.contains(&peer) {
                continue;
            }
            while let Some(parcel) = self.server.take(peer) {
                if self.away.contains(&peer) {
                    self.server.not_sent(peer, parcel.number);
                    self.server.disconnected(peer);
                    self.connected.remove(&peer);
                    self.ordered.push(Ordered::Disconnected);
                    break;
                }
                self.server.sent(peer, parcel.number);
                match (peer, parcel.message) {
                    (Peer::Server(to), PeerMessage::Server(bytes)) => self.send_engine(to, bytes),
                    (Peer::Worker(node), PeerMessage::Worker(message)) => self.send_worker(node, message),
                    _ => {}
                }
            }
        }
    }

    fn send_engine(&mut self, to: u64, bytes: Vec<u8>) {
        let to = usize::try_from(to.saturating_sub(1)).unwrap_or(usize::MAX);
        self.send(to, Packet::Engine(bytes));
    }

    fn send_worker(&mut self, node: Digest, message: ToWorker) {
        if let Some(to) = self.nodes.get(&node).copied() {
            self.send(to, Packet::ToWorker(message));
        }
    }

    /// What another server says that it runs, when it connects.
    pub fn greeted(&mut self, server: u64, version: NodeVersion) {
        if self.greeted.get(&server) != Some(&version.understands) {
            self.greeted.insert(server, version.understands);
            self.server.heard_version(server, version);
        }
    }

    /// Something arrived.
    pub fn receive(&mut self, from: NodeIndex, packet: Packet) -> Result<(), Ended> {
        match packet {
            Packet::Engine(bytes) => match self.server.replica_mut().receive(&bytes) {
                // The sender is wrong, not this server, which is as it was.
                Ok(()) | Err(ReplicaError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            },
            Packet::Request { number, ask } => {
                let ticket = self.ticket();
                match ask {
                    Ask::Propose(command) => {
                        self.replies.insert(ticket.0, (from, number));
                        self.server.propose(ticket, *command);
                    }
                    Ask::Read(job) => {
                        self.reads.insert(ticket.0, (from, number, job));
                        self.server.read(ticket);
                    }
                }
            }
            Packet::FromWorker(message) => {
                let key = self.keys.get(&from).copied();
                // A connection is taken by what the server's own state says of whose it is.
                if let Some(key) = key.filter(|key| !self.has_blocked(&key.id())) {
                    self.connect(Peer::Worker(key.id()))?;
                    self.server.from_worker(&key, message);
                }
            }
            Packet::ToWorker(_) | Packet::Reply { .. } => {}
        }
        self.act()
    }

    fn has_blocked(&self, node: &Digest) -> bool {
        let row = self.server.replica().state().node(node);
        row.is_some_and(|row| row.standing == NodeStanding::Blocked)
    }

    /// Does what the server asks for.
    fn act(&mut self) -> Result<(), Ended> {
        self.server.flush()?;
        for output in self.server.outputs()? {
            match output {
                ServerOutput::Replica(output) => self.carry_out(output),
                ServerOutput::ToWorker { node, message } => self.send_worker(node, message),
                ServerOutput::Refused(ticket, error) => {
                    let told = match error {
                        ReplicaError::NotLeader { leader } => Told::NotLeader(leader),
                        ReplicaError::Overloaded => Told::Overloaded(None),
                        ReplicaError::Door(refusal) => Told::Overloaded(Some(refusal)),
                        // Only an operator asks for what is not in force, and asks again.
                        ReplicaError::Rejected(_) => Told::Overloaded(None),
                        error => return Err(error.into()),
                    };
                    self.tell(ticket, told);
                }
            }
        }
        self.post();
        Ok(())
    }

    fn tell(&mut self, ticket: Ticket, told: Told) {
        let asked = self.reads.remove(&ticket.0).map(|(node, number, _)| (node, number));
        if let Some((node, number)) = asked.or_else(|| self.replies.remove(&ticket.0)) {
            let advice = self.server.advice();
            self.send(node, Packet::Reply { number, told, advice });
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            // A whole state goes to both, in that order.
            Output::Persist(batch) if batch.installation.is_some() => {
                self.tell_side(SideRequest::Install(Box::new(batch)));
            }
            Output::Persist(batch) => self.tell_log(LogRequest::Persist(batch)),
            Output::Send { to, bytes, .. } => self.send_engine(to, bytes),
            Output::Applied { term, index, ticket, applied, .. } => {
                let kept = applied
                    .effects
                    .iter()
                    .filter(|effect| matches!(effect, Effect::History(_) | Effect::LogGrew { .. }));
                let kept: Vec<Effect> = kept.cloned().collect();
                if !kept.is_empty() {
                    self.tell_side(SideRequest::Effects(kept));
                }
                if let Some(ticket) = ticket {
                    self.tell(ticket, Told::Applied(applied.answer.clone()));
                }
                self.ordered.push(Ordered::Applied { term, index, applied });
            }
            Output::Unknown(ticket) => self.tell(ticket, Told::Unknown),
            Output::Readable(ticket) => {
                if let Some((_, _, job)) = self.reads.get(&ticket.0).copied() {
                    let counts = self.server.state().jobs().get(&job).map(|job| job.counts);
                    self.tell(ticket, Told::Read(counts));
                }
            }
            Output::Checkpoint(checkpoint) => self.tell_side(SideRequest::Checkpoint(Box::new(checkpoint))),
            Output::Role { leads, leader, term } => {
                self.ordered.push(Ordered::Role { leads, leader, term });
            }
            Output::Installed { index } => self.ordered.push(Ordered::Installed { index }),
            Output::Revoke { .. } | Output::Reconfigured { .. } => {}
        }
    }

    fn tell_log(&mut self, request: LogRequest) {
        self.log_queue.push_back(request);
        self.wake_log();
    }

    fn wake_log(&mut self) {
        if !self.log_busy && !self.log_queue.is_empty() {
            self.log_busy = true;
            self.writing = self.log_queue.len();
            let length = |request: &LogRequest| match request {
                LogRequest::Persist(batch) => batch.entries.len() as u64,
                LogRequest::Truncate(_) => 0,
            };
            let entries = self.log_queue.iter().map(length).sum();
            self.ordered.push(Ordered::LogWork { entries });
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

    /// The log's thread is through: everything that waits is written with one sync, or what waited when it began.
    pub fn log_done(&mut self) -> Result<(), Ended> {
        self.write_log()?;
        self.log_busy = false;
        self.act()?;
        self.wake_log();
        Ok(())
    }

    fn write_log(&mut self) -> Result<(), Ended> {
        let count = if self.paced { self.writing.min(self.log_queue.len()) } else { self.log_queue.len() };
        let (mut batches, mut truncate) = (Vec::new(), None);
        for request in self.log_queue.drain(..count) {
            match request {
                LogRequest::Persist(batch) => batches.push(batch),
                LogRequest::Truncate(index) => truncate = Some(index),
            }
        }
        self.storage.log.write(&batches, truncate)?;
        if let Some(last) = batches.last().map(|batch: &PersistBatch| batch.number) {
            self.server.replica_mut().persisted(last)?;
        }
        Ok(())
    }

    /// The side's thread is through with what waits, up to and with the first checkpoint or whole state.
    pub fn side_done(&mut self) -> Result<(), Ended> {
        self.write_side()?;
        self.side_busy = false;
        self.act()?;
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
                    let through = checkpoint.truncate_through;
                    self.tell_log(LogRequest::Truncate(through));
                    self.server.replica_mut().checkpointed(through);
                    return Ok(());
                }
                SideRequest::Install(batch) => {
                    side.history.append(records.iter().map(|(key, value)| (*key, value.as_slice())))?;
                    if let Some(installation) = &batch.installation {
                        side.install(installation)?;
                    }
                    self.tell_log(LogRequest::Persist(*batch));
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
            drop(self.write_log());
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

    /// Proposes commands of whoever runs the cluster, who looks into the state for what became of them.
    pub fn propose(&mut self, commands: Vec<Command>) -> Result<(), Ended> {
        for command in commands {
            let ticket = self.ticket();
            self.server.propose(ticket, command);
        }
        self.act()
    }
}
