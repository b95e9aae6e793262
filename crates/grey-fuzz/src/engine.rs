//! Messages of the consensus engine from a server that is authenticated and wrong: a replica refuses them or goes on, and
//! never ends by a panic.
//!
//! The engine's messages are written here by hand, field by field as `eraftpb.proto` numbers them, since only the replica
//! names the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use grey_core::Command;
use grey_core::NodeVersion;
use grey_replica::{
    LogEntry, LogReader, Membership, Options, Output, PersistBatch, ReadError, Recovered, Replica,
    ReplicaError, TICK_MS, Ticket,
};

use crate::bytes::Bytes;
use crate::commands::founding;
use crate::mutate::variable;

const STEPS: usize = 48;
const MESSAGE_TYPES: u8 = 19;
const APPEND: u64 = 3;
const APPEND_RESPONSE: u64 = 4;
const VOTE_RESPONSE: u64 = 6;
const HEARTBEAT: u64 = 8;
const PREVOTE_RESPONSE: u64 = 18;

/// A message as protocol buffers write it.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn number(&mut self, field: u64, value: u64) {
        self.0.extend(variable(field << 3));
        self.0.extend(variable(value));
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.0.extend(variable(field << 3 | 2));
        self.0.extend(variable(value.len() as u64));
        self.0.extend_from_slice(value);
    }
}

fn head(kind: u64, from: u64, term: u64) -> Wire {
    let mut wire = Wire::default();
    for (field, value) in [(1, kind), (2, 1), (3, from), (4, term)] {
        wire.number(field, value);
    }
    wire
}

type Entries = Arc<Mutex<BTreeMap<u64, LogEntry>>>;

struct Reader(Entries);

impl LogReader for Reader {
    fn entries(&self, low: u64, high: u64, _max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<LogEntry> = entries.range(low..high).map(|(_, entry)| entry.clone()).collect();
        if found.first().map(|entry| entry.index) == Some(low) {
            Ok(found)
        } else {
            Err(ReadError::Missing(low))
        }
    }

    fn term(&self, index: u64) -> Result<u64, ReadError> {
        self.entries(index, index + 1, 0)
            .and_then(|found| found.first().map(|entry| entry.term).ok_or(ReadError::Missing(index)))
    }
}

/// A server of three, its log, and what it was asked to make durable.
struct House {
    replica: Replica,
    log: Entries,
    unsynced: Vec<PersistBatch>,
    last_index: u64,
    applied: u64,
    commit: u64,
    term: u64,
}

impl House {
    fn new(seed: u64) -> House {
        let log = Entries::default();
        let membership = Membership { voters: vec![1, 2, 3], ..Membership::default() };
        let options =
            Options { id: 1, seed, checkpoint_bytes: u64::MAX, version: NodeVersion::newest("test") };
        let recovered = Recovered { membership, ..Recovered::default() };
        let replica = Replica::new(&options, recovered, Box::new(Reader(log.clone())));
        let replica = replica.expect("a new server starts");
        House { replica, log, unsynced: Vec::new(), last_index: 0, applied: 0, commit: 0, term: 0 }
    }

    /// A server that follows another one, with six entries of which four are committed; or one that leads, and the cluster
    /// is founded.
    fn established(seed: u64, leads: bool) -> House {
        let mut house = House::new(seed);
        if leads {
            house.lead();
        } else {
            house.follow();
        }
        house
    }

    fn follow(&mut self) {
        let mut append = head(APPEND, 2, 3);
        for index in 1..=6 {
            let mut entry = Wire::default();
            entry.number(2, 1 + index / 4);
            entry.number(3, index);
            if index == 1 {
                entry.bytes(4, &founding().encode().unwrap_or_default());
            }
            append.bytes(7, &entry.0);
        }
        let mut heartbeat = head(HEARTBEAT, 2, 3);
        heartbeat.number(8, 4);
        for message in [append, heartbeat] {
            self.replica.receive(&message.0).expect("a leader's message is taken");
            self.drain();
            self.sync().expect("what is durable is taken");
            self.drain();
        }
        assert_eq!(self.applied, 4);
    }

    fn lead(&mut self) {
        for _ in 0..40 {
            self.replica.elapse(TICK_MS).expect("time passes");
            self.drain();
            self.sync().expect("what is durable is taken");
            self.drain();
            for kind in [PREVOTE_RESPONSE, VOTE_RESPONSE] {
                let granted = head(kind, 2, self.replica.term().max(1) + u64::from(kind == PREVOTE_RESPONSE));
                self.replica.receive(&granted.0).expect("a vote is taken");
                self.drain();
            }
            self.acknowledge();
        }
        assert!(self.replica.leads(), "a server that is voted for leads");
        let Command::Bootstrap(body) = founding().command else { return };
        self.replica.propose(Ticket(1), Command::Bootstrap(body)).expect("a leader takes proposals");
        self.drain();
        self.acknowledge();
        self.replica.propose(Ticket(2), Command::Tick).expect("a leader takes proposals");
        self.drain();
        assert!(self.applied >= 2);
    }

    /// What is asked for becomes durable here and on one other server.
    fn acknowledge(&mut self) {
        self.sync().expect("what is durable is taken");
        self.drain();
        let mut response = head(APPEND_RESPONSE, 2, self.replica.term());
        response.number(6, self.last_index);
        self.replica.receive(&response.0).expect("an answer is taken");
        self.drain();
    }

    /// Takes what the replica asks for, and looks whether it kept what it must.
    fn drain(&mut self) {
        let outputs: Vec<Output> = self.replica.outputs().collect();
        for output in outputs {
            match output {
                Output::Persist(batch) => {
                    let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                    for entry in &batch.entries {
                        log.split_off(&entry.index);
                        assert!(
                            entry.index == 1 || log.contains_key(&(entry.index - 1)),
                            "the log has no gap"
                        );
                        assert!(entry.index > self.applied, "what was applied is written over");
                        log.insert(entry.index, entry.clone());
                        self.last_index = entry.index;
                    }
                    drop(log);
                    self.unsynced.push(batch);
                }
                Output::Applied { index, .. } => {
                    assert_eq!(index, self.applied + 1, "entries are applied one after another");
                    self.applied = index;
                }
                Output::Send { to, .. } => assert_ne!(to, 1, "nobody sends to itself"),
                _ => {}
            }
        }
        assert!(self.replica.commit_index() >= self.commit, "what is committed stays");
        assert!(self.replica.term() >= self.term, "a term does not go back");
        assert!(self.replica.commit_index() <= self.last_index, "no more is committed than there is");
        (self.commit, self.term) = (self.replica.commit_index(), self.replica.term());
    }

    /// Everything asked for so far is durable.
    fn sync(&mut self) -> Result<(), ReplicaError> {
        match self.unsynced.drain(..).next_back() {
            Some(batch) => self.replica.persisted(batch.number),
            None => Ok(()),
        }
    }
}

fn entries(house: &House, index: u64, term: u64, bytes: &mut Bytes<'_>) -> Vec<Vec<u8>> {
    let founding = founding().encode().unwrap_or_default();
    (1..=u64::from(bytes.below(4)))
        .map(|offset| {
            let mut entry = Wire::default();
            let odd = bytes.byte();
            match odd {
                240.. => entry.number(1, u64::from(odd - 238)),
                _ => entry.number(1, 0),
            }
            let written = if odd == 1 { bytes.near(term) } else { term };
            entry.number(2, written);
            let position = if odd == 2 { bytes.near(house.last_index) } else { index.wrapping_add(offset) };
            entry.number(3, position);
            match odd % 4 {
                0 => entry.bytes(4, &founding),
                1 => entry.bytes(4, bytes.slice(24)),
                _ => {}
            }
            if odd == 3 {
                entry.bytes(6, b"context");
            }
            entry.0
        })
        .collect()
}

/// A message that may make sense: its numbers lie near those of the server that gets it.
fn message(house: &House, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let kinds = [3, 4, 5, 6, 8, 9, 17, 18];
    let kind = match bytes.below(12) {
        0 => u64::from(bytes.below(MESSAGE_TYPES)),
        other => kinds.get(usize::from(other) % kinds.len()).copied().unwrap_or(APPEND),
    };
    // Where most fields are as they should be, one that is not gets further.
    let odd = bytes.below(16);
    let near = |bytes: &mut Bytes<'_>, field: u8, anchor: u64| {
        if odd == field { bytes.near(anchor) } else { anchor }
    };
    let term = house.term.max(1).saturating_add(u64::from(bytes.chance(8)));
    let mut wire = Wire::default();
    wire.number(1, kind);
    wire.number(2, near(bytes, 1, 1));
    let from = 2 + u64::from(bytes.below(2));
    wire.number(3, near(bytes, 2, from));
    let term = near(bytes, 3, term);
    wire.number(4, term);
    let index = match bytes.below(4) {
        0 => 0,
        1 => house.commit,
        _ => house.last_index,
    };
    let index = near(bytes, 4, index);
    let log = house.log.lock().unwrap_or_else(PoisonError::into_inner);
    let log_term = log.get(&index).map_or(0, |entry| entry.term);
    drop(log);
    let log_term = near(bytes, 5, log_term);
    wire.number(5, log_term);
    wire.number(6, index);
    if kind == APPEND || odd == 11 {
        for entry in entries(house, index, term.max(log_term), bytes) {
            wire.bytes(7, &entry);
        }
    }
    let commit = match bytes.below(3) {
        0 => house.commit,
        1 => house.last_index,
        _ => 0,
    };
    wire.number(8, near(bytes, 6, commit));
    if odd == 7 {
        wire.number(15, bytes.near(house.term));
        wire.number(13, bytes.near(0));
        wire.number(16, bytes.number());
    }
    if odd == 8 {
        wire.bytes(9, bytes.slice(40));
    }
    wire.number(10, u64::from(bytes.chance(3)));
    wire.number(11, near(bytes, 9, index.saturating_sub(1)));
    if bytes.chance(4) {
        wire.bytes(12, bytes.slice(16));
    }
    if odd == 10 {
        wire.bytes(12, b"CampaignTransfer");
    }
    wire.0
}

/// A server of three hears what the bytes say, lets time pass, and makes things durable.
pub(crate) fn messages(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let start = bytes.byte();
    let mut house = match start % 3 {
        0 => House::new(start.into()),
        other => House::established(start.into(), other == 1),
    };
    house.drain();
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        let done = match bytes.below(16) {
            0 => house.replica.elapse(u64::from(bytes.byte()) * 8),
            1 | 2 => house.replica.elapse(TICK_MS * 2),
            3..=5 => house.sync(),
            6 => proposed(house.replica.propose(Ticket(3), Command::Tick)),
            7 => proposed(house.replica.read(Ticket(4))),
            8 => {
                let raw = bytes.slice(255).to_vec();
                heard(&mut house, &raw)
            }
            _ => {
                let message = message(&house, &mut bytes);
                heard(&mut house, &message)
            }
        };
        house.drain();
        match done {
            Ok(()) => {}
            // Whoever leads may commit what this version does not understand, and that ends a server by design.
            Err(ReplicaError::Entry(error)) if error.must_halt() => return,
            Err(ReplicaError::NotUnderstood { .. }) => return,
            Err(ReplicaError::BadMembership { .. }) => return,
            Err(error) => panic!("a message ends the server: {error}"),
        }
    }
}

/// Only a leader takes proposals and reads, and only so many.
fn proposed(done: Result<(), ReplicaError>) -> Result<(), ReplicaError> {
    match done {
        Err(ReplicaError::NotLeader { .. } | ReplicaError::Overloaded) => Ok(()),
        other => other,
    }
}

fn heard(house: &mut House, message: &[u8]) -> Result<(), ReplicaError> {
    let before = (house.replica.term(), house.replica.commit_index(), house.replica.state().hash());
    match house.replica.receive(message) {
        Err(ReplicaError::BadMessage | ReplicaError::Refused { .. }) => {
            let after = (house.replica.term(), house.replica.commit_index(), house.replica.state().hash());
            assert_eq!(before, after, "a message that is refused changes nothing");
            Ok(())
        }
        other => other,
    }
}

/// Each of the three beginnings, then chance.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut random = crate::Random::seeded(8);
    (0..15u8).map(|start| [vec![start], random.bytes(180)].concat()).collect()
}
