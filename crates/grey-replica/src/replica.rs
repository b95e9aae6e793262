//! One node of the control plane as a state machine: inputs are method calls, outputs are drained. It owns no thread,
//! clock, disk or socket.

use std::collections::{BTreeMap, VecDeque};

use grey_core::{
    Applied, AttemptId, Command, Entry, NodeVersion, State, WorkerId, level_of_entry, limits, plan, steal,
};
use grey_health::Class;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry as EngineEntry, EntryType, Message, MessageType};
use raft::{Config, RawNode, Ready, SnapshotStatus, StateRole};

use crate::error::ReplicaError;
use crate::guard;
use crate::installation::{Installation, Installing};
use crate::level::understood;
use crate::ports::{Checkpoint, HardState, LogReader, Membership, PersistBatch, Recovered, RowChange};
use crate::window::{Window, from_entry};

/// One tick of the engine, and the heartbeat between servers, in milliseconds.
pub const TICK_MS: u64 = 50;
const ELECTION_TICKS: usize = 6;
const LONGEST_ELECTION_TICKS: usize = 12;
const MESSAGE_BYTES: u64 = 1024 * 1024;
const INFLIGHT_MESSAGES: usize = 64;
/// How often the leader looks for unstarted attempts that an idle worker could start, in milliseconds. An answer takes a
/// commit; asking again before it came would be answered by nothing.
const STEAL_EVERY_MS: u64 = 100;
/// The most attempts that are asked back at once.
const STOLEN_AT_ONCE: u32 = 1_024;
/// The door lets in less than this, so that the engine never refuses what the door accepted.
pub(crate) const UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;
const COMMITTED_BYTES_PER_STEP: u64 = 16 * 1024 * 1024;

/// Names a proposal to whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a replica is told once.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's number among the servers; not zero.
    pub id: u64,
    /// Seed of the election time-outs.
    pub seed: u64,
    /// Bytes of applied log after which a checkpoint is due.
    pub checkpoint_bytes: u64,
    /// What it runs. That it understands less than this version does is for playing an earlier one.
    pub version: NodeVersion,
    /// A mistake that it makes.
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
}

/// What a replica asks the outside to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Make durable, then call [`Replica::persisted`].
    Persist(PersistBatch),
    /// Send to another server.
    Send {
        /// Which server.
        to: u64,
        /// How urgent it is: what keeps leadership alive goes first, then acknowledgements, then entries.
        class: Class,
        /// The engine's bytes.
        bytes: Vec<u8>,
    },
    /// An entry was applied.
    Applied {
        /// Its term.
        term: u64,
        /// Its index.
        index: u64,
        /// Who proposed it here.
        ticket: Option<Ticket>,
        /// Whether this node leads in the entry's own term, and so acts on effects that concern workers.
        leads: bool,
        /// What it came to.
        applied: Applied,
    },
    /// The proposal's fate is unknown to this node: leadership was lost, or another entry took its place.
    Unknown(Ticket),
    /// A read asked for by [`Replica::read`] may be served from the state as it is now.
    Readable(Ticket),
    /// A change of membership came to this.
    Reconfigured {
        /// Who proposed it.
        ticket: Ticket,
        /// Whether it was made: it is not while another is under way.
        changed: bool,
    },
    /// A whole state of another server took the place of this one's. What ended before `index` and after the entry that was
    /// applied last here is in no history of this server.
    Installed {
        /// Index of the last entry in it.
        index: u64,
    },
    /// Make durable, then call [`Replica::checkpointed`].
    Checkpoint(Checkpoint),
    /// Ask a worker to give attempts back that it has not started; what it gives back is proposed as
    /// [`Command::Revoked`].
    Revoke {
        /// Which worker.
        worker: WorkerId,
        /// Which attempts.
        attempts: Vec<AttemptId>,
    },
    /// Leadership changed.
    Role {
        /// Whether this node leads now.
        leads: bool,
        /// Who leads, 0 when unknown.
        leader: u64,
        /// The term.
        term: u64,
    },
}

/// A ready whose batch is not yet durable.
struct Unpersisted {
    ready: u64,
    batch: u64,
    messages: Vec<Message>,
    /// Whether the batch makes a term or a vote durable.
    promises: bool,
}

/// How urgent a message of the engine is.
fn class(message: MessageType) -> Class {
    match message {
        MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => Class::Heartbeat,
        // It makes room in the leader's own window.
        MessageType::MsgAppendResponse => Class::Ending,
        _ => Class::Other,
    }
}

/// One server of the control plane.
pub struct Replica {
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<grey_core::Mutant>,
    pub(crate) engine: RawNode<Window>,
    pub(crate) state: State,
    checkpoint_bytes: u64,
    pub(crate) version: NodeVersion,
    pub(crate) outputs: VecDeque<Output>,
    unpersisted: VecDeque<Unpersisted>,
    pub(crate) next_batch: u64,
    durable_index: u64,
    durable_hard_state: (u64, u64),
    /// What became known to be committed since the last batch.
    unwritten: Option<HardState>,
    pub(crate) proposals: BTreeMap<u64, (u64, Ticket)>,
    reads: BTreeMap<u64, Ticket>,
    readable: VecDeque<(u64, Ticket)>,
    next_read: u64,
    pub(crate) bytes_since_growth: u64,
    /// Up to where the log had grown when it was dropped, or began, the last time.
    pub(crate) grown_at: u64,
    checkpoint_in_flight: bool,
    plan_in_flight: Option<u64>,
    tick_in_flight: Option<u64>,
    pub(crate) plan_is_moot: bool,
    pub(crate) clock_ms: u64,
    unticked_ms: u64,
    unstolen_ms: u64,
    pub(crate) installing: Option<Installing>,
    /// Servers that were sent a whole state, and how long ago, in milliseconds.
    pub(crate) offered: BTreeMap<u64, u64>,
    random: u64,
    role: (bool, u64, u64),
}

impl Replica {
    /// Brings a node back from what storage found. A node that is the only voter starts its election at once.
    pub fn new(
        options: &Options,
        recovered: Recovered,
        reader: Box<dyn LogReader>,
    ) -> Result<Replica, ReplicaError> {
        let last_index = recovered.last_index.max(recovered.truncated.0);
        if last_index < recovered.checkpoint_index {
            return Err(ReplicaError::LogBehindCheckpoint {
                last_index,
                checkpoint_index: recovered.checkpoint_index,
            });
        }
        let rows = recovered.rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        let mut state = State::load(rows)?;
        understood(&options.version, state.feature_level())?;
        state.take_dirty_rows();
        #[cfg(feature = "mutants")]
        state.mutate(options.mutant);
        let mut hard_state = recovered.hard_state;
        // The commit index is not made durable by itself; what a checkpoint covers was committed.
        hard_state.commit = hard_state.commit.clamp(recovered.checkpoint_index, last_index);
        let window = Window::new(hard_state, &recovered.membership, recovered.truncated, last_index, reader);
        let config = Config {
            id: options.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: 1,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: LONGEST_ELECTION_TICKS,
            applied: recovered.checkpoint_index,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_STEP,
            ..Config::default()
        };
        let engine = RawNode::new(&config, window, &slog::Logger::root(slog::Discard, slog::o!()))?;
        let mut replica = Replica {
            engine,
            clock_ms: state.meta().time_ms,
            state,
            checkpoint_bytes: options.checkpoint_bytes,
            version: options.version.clone(),
            #[cfg(feature = "mutants")]
            mutant: options.mutant,
            outputs: VecDeque::new(),
            unpersisted: VecDeque::new(),
            next_batch: 1,
            durable_index: last_index,
            durable_hard_state: (hard_state.term, hard_state.vote),
            unwritten: None,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            readable: VecDeque::new(),
            next_read: 1,
            bytes_since_growth: 0,
            grown_at: recovered.checkpoint_index,
            checkpoint_in_flight: false,
            plan_in_flight: None,
            tick_in_flight: None,
            plan_is_moot: false,
            unticked_ms: 0,
            unstolen_ms: 0,
            installing: None,
            offered: BTreeMap::new(),
            random: options.seed | 1,
            role: (false, 0, 0),
        };
        if recovered.membership.voters == [options.id] {
            replica.engine.campaign()?;
        }
        replica.settle()?;
        Ok(replica)
    }

    /// The state as of the last applied entry.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this node leads and has applied everything of earlier terms, so that it may act for the cluster.
    pub fn leads(&self) -> bool {
        self.engine.raft.state == StateRole::Leader && self.engine.raft.commit_to_current_term()
    }

    /// The leader as far as this node knows; 0 is nobody.
    pub fn leader(&self) -> u64 {
        self.engine.raft.leader_id
    }

    /// This node's number among the servers.
    pub fn id(&self) -> u64 {
        self.engine.raft.id
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.engine.raft.term
    }

    /// Whom this node votes for in the present term; 0 is nobody.
    pub fn voted_for(&self) -> u64 {
        self.engine.raft.vote
    }

    /// Highest index known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.engine.raft.raft_log.committed
    }

    /// Membership as applied.
    pub fn membership(&self) -> Membership {
        self.engine.store().membership()
    }

    /// What is to be done, in order. The caller drains it after every call.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.outputs.drain(..)
    }

    /// Lets time pass, by the node's monotonic clock. A long gap, as after a pause of the process, counts as two ticks
    /// at most: that this node was late says nothing about the others.
    pub fn elapse(&mut self, elapsed_ms: u64) -> Result<(), ReplicaError> {
        self.clock_ms = self.clock_ms.saturating_add(elapsed_ms.min(limits::TIME_STEP_MS));
        if self.installing.is_some() {
            return Ok(());
        }
        self.pass_offers(elapsed_ms);
        self.unticked_ms = self.unticked_ms.saturating_add(elapsed_ms).min(2 * TICK_MS);
        while self.unticked_ms >= TICK_MS {
            self.unticked_ms -= TICK_MS;
            self.engine.tick();
            // Between ticks too: the second must already count against the seeded time-out.
            self.seed_election();
        }
        self.unstolen_ms = self.unstolen_ms.saturating_add(elapsed_ms);
        self.settle()?;
        if self.unstolen_ms >= STEAL_EVERY_MS && self.leads() {
            self.unstolen_ms = 0;
            for (worker, attempts) in steal(&self.state, STOLEN_AT_ONCE) {
                self.outputs.push_back(Output::Revoke { worker, attempts });
            }
        }
        Ok(())
    }

    /// A message from another server, already authenticated.
    ///
    /// # Errors
    /// [`ReplicaError::BadMessage`] and [`ReplicaError::Refused`] leave the replica as it was and say that the other server is
    /// wrong; any other error ends this one.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ReplicaError> {
        self.take_in(None, bytes)
    }

    /// A message that came over a connection which is authenticated as this server's: like [`Replica::receive`], and refused where it
    /// claims to be somebody else's.
    pub fn receive_from(&mut self, from: u64, bytes: &[u8]) -> Result<(), ReplicaError> {
        self.take_in(Some(from), bytes)
    }

    fn take_in(&mut self, from: Option<u64>, bytes: &[u8]) -> Result<(), ReplicaError> {
        if bytes.len() > guard::INSTALLATION_BYTES {
            return Err(ReplicaError::BadMessage);
        }
        let message = Message::parse_from_bytes(bytes).map_err(|_| ReplicaError::BadMessage)?;
        if from.is_some_and(|from| from != message.from) {
            return Err(ReplicaError::Refused { from: message.from, what: "another server sent it" });
        }
        // The engine must see nothing before an installed state is durable; what is lost here is sent again.
        if self.installing.is_some() {
            return Ok(());
        }
        guard::check(&message, &self.engine)
            .map_err(|what| ReplicaError::Refused { from: message.from, what })?;
        match self.engine.step(message) {
            // The engine refuses messages from peers it does not know; that is no failure of this node.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::StepLocalMsg) => {}
            Err(error) => return Err(error.into()),
        }
        self.settle()
    }

    /// Proposes a command. Its fate comes as [`Output::Applied`] or [`Output::Unknown`] with the same ticket.
    pub fn propose(&mut self, ticket: Ticket, command: Command) -> Result<(), ReplicaError> {
        self.append(command, Some(ticket))?;
        self.settle()
    }

    /// Proposes several commands, which share one entry of the disk's queue. Each gets its own answer, in order.
    pub fn propose_all(
        &mut self,
        commands: impl IntoIterator<Item = (Ticket, Command)>,
    ) -> Result<Vec<(Ticket, ReplicaError)>, ReplicaError> {
        let mut refused = Vec::new();
        for (ticket, command) in commands {
            if let Err(error) = self.append(command, Some(ticket)) {
                refused.push((ticket, error));
            }
        }
        self.settle()?;
        Ok(refused)
    }

    /// The entry of a command as it would be proposed now, so that its bytes are known before it is let in.
    pub(crate) fn encode(&self, command: Command) -> Result<Vec<u8>, ReplicaError> {
        self.must_take_proposals()?;
        self.must_be_in_force(&command)?;
        Ok(Entry { time_ms: self.clock_ms, command }.encode()?)
    }

    /// Proposes what [`Replica::encode`] made, like [`Replica::propose_all`].
    pub(crate) fn propose_encoded(
        &mut self,
        entries: impl IntoIterator<Item = (Ticket, Vec<u8>)>,
    ) -> Result<Vec<(Ticket, ReplicaError)>, ReplicaError> {
        let mut refused = Vec::new();
        for (ticket, bytes) in entries {
            if let Err(error) = self.append_bytes(bytes, Some(ticket)) {
                refused.push((ticket, error));
            }
        }
        self.settle()?;
        Ok(refused)
    }

    /// Whether this server leads, perhaps without having applied everything of earlier terms.
    pub(crate) fn must_take_proposals(&self) -> Result<(), ReplicaError> {
        if self.engine.raft.state == StateRole::Leader {
            Ok(())
        } else {
            Err(ReplicaError::NotLeader { leader: self.leader() })
        }
    }

    /// What was to be sent to a server was not: the engine stops streaming to it and looks for where it stands.
    pub(crate) fn unreachable(&mut self, server: u64) {
        self.engine.report_unreachable(server);
        // Does nothing unless a snapshot was under way.
        self.engine.report_snapshot(server, SnapshotStatus::Failure);
    }

    fn append(&mut self, command: Command, ticket: Option<Ticket>) -> Result<u64, ReplicaError> {
        let bytes = self.encode(command)?;
        self.append_bytes(bytes, ticket)
    }

    fn append_bytes(&mut self, bytes: Vec<u8>, ticket: Option<Ticket>) -> Result<u64, ReplicaError> {
        self.must_take_proposals()?;
        match self.engine.propose(Vec::new(), bytes) {
            Ok(()) => {}
            Err(raft::Error::ProposalDropped) => return Err(ReplicaError::Overloaded),
            Err(error) => return Err(error.into()),
        }
        let index = self.engine.raft.raft_log.last_index();
        if let Some(ticket) = ticket {
            self.proposals.insert(index, (self.engine.raft.term, ticket));
        }
        Ok(index)
    }

    /// Asks for a linearizable read; [`Output::Readable`] with the same ticket allows it.
    pub fn read(&mut self, ticket: Ticket) -> Result<(), ReplicaError> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(grey_core::Mutant::ReadWithoutQuorum) {
            self.outputs.push_back(Output::Readable(ticket));
            return Ok(());
        }
        // Before an entry of its own term is committed, the engine would drop the request without a word.
        if !self.leads() {
            return Err(ReplicaError::NotLeader { leader: self.leader() });
        }
        let context = self.next_read;
        self.next_read += 1;
        self.reads.insert(context, ticket);
        self.engine.read_index(context.to_le_bytes().to_vec());
        self.settle()
    }

    /// Every batch up to `number` is durable.
    pub fn persisted(&mut self, number: u64) -> Result<(), ReplicaError> {
        let mut ready = None;
        while let Some(front) = self.unpersisted.front() {
            if front.batch > number {
                break;
            }
            let Some(front) = self.unpersisted.pop_front() else { break };
            ready = Some(front.ready);
            self.send(front.messages);
        }
        if let Some(ready) = ready {
            self.engine.on_persist_ready(ready);
            self.durable_index = self.engine.raft.raft_log.persisted;
        }
        if let Some(installing) = self.installing.take_if(|installing| installing.batch <= number) {
            self.installed(installing);
        }
        self.settle()
    }

    /// The checkpoint at `index` is durable.
    pub fn checkpointed(&mut self, truncate_through: u64) {
        self.checkpoint_in_flight = false;
        self.engine.mut_store().truncate_through(truncate_through);
    }

    /// The state's changes since the last checkpoint, now; `None` when one is under way or nothing was applied. The log stays as it is.
    pub fn checkpoint_now(&mut self) -> Option<Checkpoint> {
        self.checkpoint(0)
    }

    /// A checkpoint because the log has grown: it may be dropped up to where it had grown as far the last time. So whoever is less than that
    /// behind is sent entries, which bring history along, and not a whole state.
    fn checkpoint_of_growth(&mut self) -> Option<Checkpoint> {
        let checkpoint = self.checkpoint(self.grown_at)?;
        (self.grown_at, self.bytes_since_growth) = (checkpoint.index, 0);
        Some(checkpoint)
    }

    fn checkpoint(&mut self, truncate_through: u64) -> Option<Checkpoint> {
        if self.checkpoint_in_flight || self.state.applied_index() == 0 {
            return None;
        }
        self.checkpoint_in_flight = true;
        let index = self.state.applied_index();
        let rows: Vec<RowChange> = self.state.take_dirty_rows();
        Some(Checkpoint {
            index,
            term: self.state.applied_term(),
            membership: self.membership(),
            rows,
            truncate_through,
        })
    }

    /// Handles everything that the engine has ready, and proposes what follows from the new state.
    pub(crate) fn settle(&mut self) -> Result<(), ReplicaError> {
        if self.installing.is_some() {
            return Ok(());
        }
        self.seed_election();
        loop {
            while self.engine.has_ready() {
                let ready = self.engine.ready();
                self.handle(ready)?;
                self.seed_election();
                if self.installing.is_some() {
                    return Ok(());
                }
            }
            self.serve_reads();
            self.note_role();
            if !self.act_as_leader()? {
                break;
            }
        }
        self.engine.mut_store().shrink(self.durable_index.min(self.state.applied_index()));
        if self.engine.store().wants_offer() {
            self.offer();
        }
        Ok(())
    }

    fn handle(&mut self, mut ready: Ready) -> Result<(), ReplicaError> {
        let messages = ready.take_messages();
        self.send(messages);
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let hard_state =
            ready.hs().map(|state| HardState { term: state.term, vote: state.vote, commit: state.commit });
        for read in ready.take_read_states() {
            let context = <[u8; 8]>::try_from(read.request_ctx.as_slice()).map(u64::from_le_bytes);
            if let Some(ticket) = context.ok().and_then(|context| self.reads.remove(&context)) {
                self.readable.push_back((read.index, ticket));
            }
        }
        let held = ready.take_persisted_messages();
        let number = ready.number();
        let installation = match ready.snapshot().is_empty() {
            true => None,
            false => Some(self.begin_installation(ready.snapshot())?),
        };
        self.engine.mut_store().append(&entries);
        self.engine.advance_append_async(ready);
        self.persist(number, installation, hard_state, &entries, held);
        if self.installing.is_some() {
            return Ok(());
        }
        #[cfg(feature = "mutants")]
        let committed = self.disordered(committed);
        for entry in committed {
            self.apply(&entry)?;
        }
        self.engine.advance_apply_to(self.state.applied_index());
        Ok(())
    }

    /// Asks for durability where a ready needs it. Its held messages, and the engine's own knowledge of durability,
    /// wait for it and for everything before it.
    fn persist(
        &mut self,
        ready: u64,
        installation: Option<Box<Installation>>,
        hard_state: Option<HardState>,
        entries: &[EngineEntry],
        messages: Vec<Message>,
    ) {
        // A commit index alone is not worth an fsync: it is learned again from the next leader. What is written anyway takes it along. Who
        // votes follows from it after a restart: a change of membership is proposed only after the one before it was committed, so whoever
        // has a change in its log has the commit of the one before it too, and counts no votes by a membership that is two changes old.
        self.unwritten = hard_state.or(self.unwritten);
        let promised = hard_state.filter(|state| (state.term, state.vote) != self.durable_hard_state);
        let mut messages = messages;
        // That a follower hears its leader promises nothing about the log: held behind a slow disk it would look like silence, and a
        // leader that a quorum does not answer steps down. The term in which it is said must be durable, though.
        if promised.is_none() && !self.unpersisted.iter().any(|waiting| waiting.promises) {
            let heard = |message: &Message| message.msg_type == MessageType::MsgHeartbeatResponse;
            let (heard, held) = messages.into_iter().partition(heard);
            self.send(heard);
            messages = held;
        }
        if promised.is_none() && entries.is_empty() && installation.is_none() {
            match self.unpersisted.back() {
                Some(last) => {
                    let batch = last.batch;
                    self.unpersisted.push_back(Unpersisted { ready, batch, messages, promises: false });
                }
                None => {
                    self.engine.on_persist_ready(ready);
                    self.send(messages);
                }
            }
            return;
        }
        let promises = promised.is_some();
        if let Some(state) = promised {
            self.durable_hard_state = (state.term, state.vote);
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        let hard_state = self.unwritten.take();
        #[cfg(feature = "mutants")]
        let hard_state = hard_state.filter(|_| self.mutant != Some(grey_core::Mutant::ForgetVote));
        #[cfg(feature = "mutants")]
        let messages = self.acknowledged_early(messages);
        self.unpersisted.push_back(Unpersisted { ready, batch, messages, promises });
        self.outputs.push_back(Output::Persist(PersistBatch {
            number: batch,
            installation,
            hard_state,
            entries: entries.iter().map(from_entry).collect(),
        }));
    }

    pub(crate) fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let (to, class) = (message.to, class(message.msg_type));
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.offered.insert(to, 0);
            }
            match message.write_to_bytes() {
                Ok(bytes) => self.outputs.push_back(Output::Send { to, class, bytes }),
                Err(_) => self.engine.report_unreachable(to),
            }
        }
    }

    fn apply(&mut self, entry: &EngineEntry) -> Result<(), ReplicaError> {
        let (term, index) = (entry.term, entry.index);
        let bytes: &[u8] = match entry.entry_type {
            EntryType::EntryNormal => &entry.data,
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                self.change_membership(entry)?;
                &[]
            }
        };
        understood(&self.version, level_of_entry(bytes).unwrap_or(0))?;
        let applied = grey_core::apply(&mut self.state, term, index, bytes)?;
        self.clock_ms = self.clock_ms.max(self.state.meta().time_ms);
        self.plan_is_moot = false;
        if self.plan_in_flight.is_some_and(|planned| planned <= index) {
            self.plan_in_flight = None;
        }
        if self.tick_in_flight.is_some_and(|tick| tick <= index) {
            self.tick_in_flight = None;
        }
        // A change of membership that was not made becomes an entry without content.
        let changed = entry.entry_type != EntryType::EntryNormal;
        let ticket = match self.proposals.remove(&index) {
            Some((proposed_term, ticket)) if proposed_term == term && (changed || bytes.is_empty()) => {
                self.outputs.push_back(Output::Reconfigured { ticket, changed });
                None
            }
            Some((proposed_term, ticket)) if proposed_term == term => Some(ticket),
            Some((_, ticket)) => {
                self.outputs.push_back(Output::Unknown(ticket));
                None
            }
            None => None,
        };
        let leads = self.engine.raft.state == StateRole::Leader && self.engine.raft.term == term;
        self.outputs.push_back(Output::Applied { term, index, ticket, leads, applied });
        self.bytes_since_growth = self.bytes_since_growth.saturating_add(entry.data.len() as u64 + 64);
        if self.bytes_since_growth >= self.checkpoint_bytes
            && let Some(checkpoint) = self.checkpoint_of_growth()
        {
            self.outputs.push_back(Output::Checkpoint(checkpoint));
        }
        Ok(())
    }

    fn change_membership(&mut self, entry: &EngineEntry) -> Result<(), ReplicaError> {
        let wrong = |what: String| ReplicaError::BadMembership { index: entry.index, what };
        let change = ConfChangeV2::parse_from_bytes(&entry.data).map_err(|error| wrong(error.to_string()))?;
        let membership = self.engine.apply_conf_change(&change).map_err(|error| wrong(error.to_string()))?;
        let id = self.engine.raft.id;
        let votes = membership.voters.contains(&id) || membership.voters_outgoing.contains(&id);
        self.engine.mut_store().set_membership(membership);
        if !votes && self.engine.raft.state == StateRole::Leader {
            // A removed leader would go on leading, and serve stale reads.
            let term = self.engine.raft.term;
            self.engine.raft.become_follower(term, 0);
        }
        Ok(())
    }

    fn serve_reads(&mut self) {
        while let Some((index, ticket)) = self.readable.front().copied() {
            if index > self.state.applied_index() {
                break;
            }
            self.readable.pop_front();
            self.outputs.push_back(Output::Readable(ticket));
        }
    }

    fn note_role(&mut self) {
        let role = (self.leads(), self.leader(), self.term());
        if role == self.role {
            return;
        }
        let stepped_down = self.engine.raft.state != StateRole::Leader || role.2 != self.role.2;
        self.role = role;
        if stepped_down {
            self.plan_in_flight = None;
            self.tick_in_flight = None;
            let term = role.2;
            let leads_term = self.engine.raft.state == StateRole::Leader;
            let kept = |proposed: u64| leads_term && proposed == term;
            let unknown: Vec<u64> = self
                .proposals
                .iter()
                .filter(|(_, (proposed, _))| !kept(*proposed))
                .map(|(index, _)| *index)
                .collect();
            for index in unknown {
                if let Some((_, ticket)) = self.proposals.remove(&index) {
                    self.outputs.push_back(Output::Unknown(ticket));
                }
            }
            for (_, ticket) in core::mem::take(&mut self.reads) {
                self.outputs.push_back(Output::Unknown(ticket));
            }
        }
        self.outputs.push_back(Output::Role { leads: role.0, leader: role.1, term: role.2 });
    }

    /// Proposes what only a leader proposes; whether it did.
    fn act_as_leader(&mut self) -> Result<bool, ReplicaError> {
        if !self.leads() || self.state.meta().cluster.is_none() {
            return Ok(false);
        }
        let mut acted = self.leave_joint()?;
        let due = self.state.next_deadline_ms().is_some_and(|due_ms| due_ms <= self.clock_ms);
        if due && self.tick_in_flight.is_none() {
            self.tick_in_flight = self.append_own(Command::Tick)?;
            acted |= self.tick_in_flight.is_some();
        }
        if self.plan_in_flight.is_none() && !self.plan_is_moot && !self.state.ready().is_empty() {
            let planned = plan(&self.state, limits::PLAN_TASKS);
            if planned.placements.is_empty() {
                self.plan_is_moot = true;
            } else {
                self.plan_in_flight = self.append_own(Command::Plan(planned))?;
                acted |= self.plan_in_flight.is_some();
            }
        }
        Ok(acted)
    }

    /// Proposes a command of the leader's own; `None` when there is no room now, and it is tried again later.
    fn append_own(&mut self, command: Command) -> Result<Option<u64>, ReplicaError> {
        match self.append(command, None) {
            Ok(index) => Ok(Some(index)),
            Err(ReplicaError::Overloaded) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the engine's own choice of an election time-out, its only source of chance, by a seeded one.
    fn seed_election(&mut self) {
        if self.engine.raft.election_elapsed != 0 {
            return;
        }
        // xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let drawn = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        let span = (LONGEST_ELECTION_TICKS - ELECTION_TICKS) as u64;
        let timeout = ELECTION_TICKS + usize::try_from(drawn % span).unwrap_or(0);
        self.engine.raft.set_randomized_election_timeout(timeout);
    }
}
