//! The leader changes the membership until it is what the log says: servers enter, catch up and vote; servers leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use grey_core::{
    AdmitNode, Bootstrap, Command, CreateJoinToken, EnrolFounder, JoinTokenRow, NEWEST_FEATURE_LEVEL,
    NewNode, NodeRole, NodeStanding, NodeVersion, OLDEST_FEATURE_LEVEL, RaiseFeatureLevel, SetNodeStanding,
    SetTenantQuota, TenantId, Tier, TokenRole, TokenRow,
};
use grey_proof::Digest;
use grey_replica::{
    HardState, LogEntry, LogReader, Membership, Options, Output, ReadError, Recovered, Replica, ReplicaError,
    Server, ServerOptions, ServerOutput, Ticket,
};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<LogEntry>>>);

impl LogReader for Memory {
    fn entries(&self, low: u64, high: u64, _max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        let log = self.0.lock().unwrap();
        Ok(log.iter().filter(|entry| (low..high).contains(&entry.index)).cloned().collect())
    }
    fn term(&self, index: u64) -> Result<u64, ReadError> {
        let log = self.0.lock().unwrap();
        log.iter().find(|entry| entry.index == index).map(|entry| entry.term).ok_or(ReadError::Missing(index))
    }
}

/// Servers on perfect disks and links; some are switched off.
#[derive(Default)]
struct House {
    servers: BTreeMap<u64, Server>,
    logs: BTreeMap<u64, Memory>,
    hard_states: BTreeMap<u64, HardState>,
    off: BTreeSet<u64>,
    /// The newest feature level of servers that play an earlier version.
    earlier: BTreeMap<u64, u16>,
    refused: Vec<ReplicaError>,
    messages: VecDeque<(u64, u64, Vec<u8>)>,
    tickets: u64,
}

impl House {
    fn founded() -> House {
        let mut house = House::default();
        house.start(1);
        house.settle();
        house.propose(Command::Bootstrap(Bootstrap {
            cluster: Digest::of(b"c"),
            wall_ms: 1,
            tenants: Vec::new(),
        }));
        let token = TokenRow {
            id: Digest::of(b"token"),
            name: "operator".to_owned(),
            role: TokenRole::Operator,
            tenant: None,
            expires_wall_ms: 10,
            created_wall_ms: 1,
            created_by: String::new(),
        };
        house.propose(Command::EnrolFounder(EnrolFounder { node: node(1), token, wall_ms: 1 }));
        house
    }

    /// Every log begins with the first server as the only voter. No server writes a checkpoint, so that one that is started again has
    /// that and its log.
    fn start(&mut self, number: u64) {
        let (log, voters) = (self.logs.get(&number).cloned().unwrap_or_default(), vec![1]);
        let hard_state = self.hard_states.get(&number).copied().unwrap_or_default();
        let last_index = log.0.lock().unwrap().last().map_or(0, |entry| entry.index);
        let membership = Membership { voters, ..Membership::default() };
        let recovered = Recovered { membership, hard_state, last_index, ..Recovered::default() };
        let options =
            Options { id: number, seed: number, checkpoint_bytes: u64::MAX, version: self.version(number) };
        let replica = Replica::new(&options, recovered, Box::new(log.clone())).unwrap();
        self.servers.insert(number, Server::with_options(replica, ServerOptions::default()).unwrap());
        self.logs.insert(number, log);
    }

    fn version(&self, number: u64) -> NodeVersion {
        let newest = NodeVersion::newest("test");
        let understands = self.earlier.get(&number).copied().unwrap_or(newest.understands);
        NodeVersion { understands, ..newest }
    }

    /// What servers say of themselves when they connect.
    fn greet(&mut self) {
        let versions: Vec<(u64, NodeVersion)> =
            self.servers.keys().map(|number| (*number, self.version(*number))).collect();
        for (number, server) in &mut self.servers {
            for (other, version) in versions.iter().filter(|(other, _)| other != number) {
                server.heard_version(*other, version.clone());
            }
        }
    }

    fn leader(&self) -> u64 {
        let leads = |number: &&u64| !self.off.contains(number) && self.servers[number].replica().leads();
        *self.servers.keys().find(leads).expect("nobody leads")
    }

    fn propose(&mut self, command: Command) {
        self.tickets += 1;
        let (leader, ticket) = (self.leader(), Ticket(self.tickets));
        self.servers.get_mut(&leader).unwrap().propose(ticket, command);
        self.settle();
    }

    /// A server is let in and started; what it knows of the others comes from the leader.
    fn admit(&mut self, number: u64) {
        let id = Digest::of(&number.to_le_bytes());
        let token = JoinTokenRow { id, role: NodeRole::Server, expires_wall_ms: 9, created_wall_ms: 1 };
        self.propose(Command::CreateJoinToken(CreateJoinToken { token }));
        let nonce = [number as u8; 32];
        self.propose(Command::AdmitNode(AdmitNode { token: id, nonce, node: node(number), wall_ms: 1 }));
        self.start(number);
    }

    fn set_standing(&mut self, number: u64, standing: NodeStanding) {
        let node = node(number).node;
        self.propose(Command::SetNodeStanding(SetNodeStanding { node, standing }));
    }

    fn voters(&self) -> Vec<u64> {
        self.servers[&self.leader()].replica().membership().voters
    }

    fn elapse(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            for (number, server) in &mut self.servers {
                if !self.off.contains(number) {
                    server.elapse(50).unwrap();
                }
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for (number, server) in &mut self.servers {
                server.flush().unwrap();
                for output in server.outputs().unwrap() {
                    moved = true;
                    match output {
                        ServerOutput::Replica(Output::Persist(batch)) => {
                            let mut log = self.logs[number].0.lock().unwrap();
                            if let Some(first) = batch.entries.first() {
                                log.retain(|entry| entry.index < first.index);
                            }
                            log.extend(batch.entries);
                            drop(log);
                            if let Some(hard_state) = batch.hard_state {
                                self.hard_states.insert(*number, hard_state);
                            }
                            server.replica_mut().persisted(batch.number).unwrap();
                        }
                        ServerOutput::Replica(Output::Send { to, bytes, .. }) => {
                            self.messages.push_back((*number, to, bytes));
                        }
                        ServerOutput::Refused(_, error) => self.refused.push(error),
                        _ => {}
                    }
                }
            }
            while let Some((from, to, bytes)) = self.messages.pop_front() {
                moved = true;
                if self.off.contains(&from) || self.off.contains(&to) {
                    continue;
                }
                if let Some(server) = self.servers.get_mut(&to) {
                    server.replica_mut().receive_from(from, &bytes).unwrap();
                }
            }
            if !moved {
                return;
            }
        }
    }
}

fn node(number: u64) -> NewNode {
    let public_key = [number as u8; 32];
    NewNode {
        node: Digest::of(&public_key),
        public_key,
        tls_key: Digest::of(&[number as u8, 1]),
        name: format!("server-{number}"),
        role: NodeRole::Server,
        address: format!("server-{number}:7654"),
        tier: Tier::Software,
        evidence: Digest::ZERO,
        serial: number,
        certificate: (Digest::of(&[number as u8, 2]), vec![1]),
    }
}

#[test]
fn servers_that_were_let_in_learn_and_then_vote() {
    let mut house = House::founded();
    assert_eq!(house.voters(), vec![1]);
    house.admit(2);
    house.admit(3);
    house.off.insert(3);
    house.elapse(2_000);
    assert_eq!(house.voters(), vec![1, 2], "one that does not answer does not vote");
    house.off.remove(&3);
    house.elapse(2_000);
    let mut voters = house.voters();
    voters.sort_unstable();
    assert_eq!(voters, vec![1, 2, 3]);
    let hashes: BTreeSet<Digest> = house.servers.values().map(|server| server.state().hash()).collect();
    assert_eq!(hashes.len(), 1);
}

#[test]
fn a_server_that_comes_back_counts_the_votes_of_those_that_it_knew() {
    let mut house = House::founded();
    for number in 2..=3 {
        house.admit(number);
    }
    house.elapse(2_000);
    assert_eq!((house.leader(), house.voters().len()), (1, 3));
    // When: it starts again with its log and without a checkpoint, and the others cannot be reached.
    let before = house.servers[&1].state().applied_index();
    house.off.extend([2, 3]);
    house.start(1);
    // Then: it does not lead by its vote alone, as it did when it founded the cluster, and commits nothing.
    for _ in 0..40 {
        house.elapse(50);
        assert!(!house.servers[&1].replica().leads());
    }
    assert!(house.servers[&1].state().applied_index() <= before);
    house.off.clear();
    house.elapse(2_000);
    assert_eq!(house.voters().len(), 3);
    let hashes: BTreeSet<Digest> = house.servers.values().map(|server| server.state().hash()).collect();
    assert_eq!(hashes.len(), 1);
}

#[test]
fn a_server_that_leaves_is_removed_and_forgotten_also_when_it_leads() {
    let mut house = House::founded();
    house.admit(2);
    house.admit(3);
    house.elapse(2_000);
    assert_eq!(house.leader(), 1);
    house.set_standing(1, NodeStanding::Leaving);
    house.elapse(2_000);
    assert_ne!(house.leader(), 1);
    let mut voters = house.voters();
    voters.sort_unstable();
    assert_eq!(voters, vec![2, 3]);
    let state = house.servers[&house.leader()].state();
    assert!(state.node_of_server(1).is_none(), "it is forgotten");
}

#[test]
fn a_voter_is_removed_only_while_the_others_are_a_majority_in_touch() {
    let mut house = House::founded();
    for number in 2..=3 {
        house.admit(number);
    }
    house.elapse(2_000);
    house.off.insert(2);
    house.elapse(1_000);
    house.set_standing(3, NodeStanding::Leaving);
    house.elapse(2_000);
    assert_eq!(house.voters().len(), 3, "without it one of two would be in touch");
    house.off.remove(&2);
    house.elapse(2_000);
    let mut voters = house.voters();
    voters.sort_unstable();
    assert_eq!(voters, vec![1, 2]);
}

#[test]
fn leadership_is_handed_on_and_a_message_speaks_for_its_sender_only() {
    let mut house = House::founded();
    house.admit(2);
    house.elapse(2_000);
    assert_eq!((house.leader(), house.voters().len()), (1, 2));
    house.servers.get_mut(&1).unwrap().hand_over(None).unwrap();
    house.settle();
    house.elapse(200);
    assert_eq!(house.leader(), 2);
    house.servers.get_mut(&2).unwrap().elapse(50).unwrap();
    let outputs = house.servers.get_mut(&2).unwrap().outputs().unwrap();
    let bytes = outputs.into_iter().find_map(|output| match output {
        ServerOutput::Replica(Output::Send { bytes, .. }) => Some(bytes),
        _ => None,
    });
    let refused =
        house.servers.get_mut(&1).unwrap().replica_mut().receive_from(3, &bytes.expect("a heartbeat"));
    assert!(matches!(refused, Err(ReplicaError::Refused { from: 2, .. })), "{refused:?}");
}

#[test]
fn leadership_is_handed_to_the_voter_that_is_named_if_it_can_lead() {
    // Given three voters.
    let mut house = House::founded();
    for number in 2..=3 {
        house.admit(number);
        house.elapse(2_000);
    }
    let hand_over = |house: &mut House, from: u64, to: u64| {
        let answer = house.servers.get_mut(&from).unwrap().hand_over(Some(to));
        house.settle();
        house.elapse(200);
        answer.map_err(|error| error.to_string())
    };
    assert_eq!((house.leader(), hand_over(&mut house, 1, 1)), (1, Ok(1)), "it leads already");
    assert_eq!((hand_over(&mut house, 1, 3), house.leader()), (Ok(3), 3));
    assert!(hand_over(&mut house, 1, 2).unwrap_err().contains("does not lead"));
    // When one is not there, then it is not asked, and neither is one that does not vote.
    house.off.insert(2);
    house.set_standing(1, NodeStanding::Admitted);
    assert_eq!(hand_over(&mut house, 3, 2), Err("server 2 has not caught up".to_owned()));
    house.elapse(3_000);
    for (to, why) in [(2, "server 2 is out of touch"), (9, "server 9 does not vote")] {
        assert_eq!(hand_over(&mut house, 3, to), Err(why.to_owned()));
    }
    let any = house.servers.get_mut(&3).unwrap().hand_over(None);
    assert_eq!(any.unwrap(), 1, "the only other one that is there");
}

#[test]
fn the_cluster_keeps_what_its_servers_say_that_they_run() {
    let mut house = House::founded();
    house.admit(2);
    house.earlier.insert(3, OLDEST_FEATURE_LEVEL);
    house.admit(3);
    house.greet();
    house.elapse(2_000);
    for number in 1..=3 {
        let server = &house.servers[&number];
        for other in 1..=3 {
            let kept = server.state().version_of(&node(other).node).unwrap();
            assert_eq!(*kept, house.version(other), "of {other}, at {number}");
        }
    }
    // When: it says something else, that is kept in its place.
    house.earlier.remove(&3);
    house.greet();
    house.elapse(1_000);
    assert_eq!(house.servers[&1].state().understood_by_all(), NEWEST_FEATURE_LEVEL);
}

#[test]
fn nothing_that_an_earlier_version_does_not_understand_gets_into_the_log_beside_it() {
    let raise = Command::RaiseFeatureLevel(RaiseFeatureLevel { level: OLDEST_FEATURE_LEVEL + 1 });
    let quota = Command::SetTenantQuota(SetTenantQuota {
        tenant: TenantId(1),
        weight_milli: None,
        queued_tasks: None,
        rate: None,
    });
    // Given: one server of three is of the earlier version.
    let mut house = House::founded();
    house.admit(2);
    house.earlier.insert(3, OLDEST_FEATURE_LEVEL);
    house.admit(3);
    house.greet();
    house.elapse(2_000);
    let before = house.servers[&1].replica().commit_index();
    // When: the next level is asked for, and what came with it. Then: neither is proposed, and everybody goes on.
    house.propose(raise.clone());
    house.propose(quota.clone());
    let refused: Vec<String> = house.refused.drain(..).map(|error| error.to_string()).collect();
    assert!(refused[0].contains("server-3 understands feature levels up to"), "{refused:?}");
    assert!(refused[1].contains("is needed"), "{refused:?}");
    assert_eq!((refused.len(), house.servers[&1].replica().commit_index()), (2, before));
    // When: it is of the new version too. Then: the level comes into force.
    house.earlier.remove(&3);
    house.start(3);
    house.elapse(2_000);
    house.greet();
    house.elapse(1_000);
    house.propose(raise);
    house.propose(quota);
    assert!(house.refused.is_empty(), "{:?}", house.refused);
    house.elapse(1_000);
    for server in house.servers.values() {
        assert_eq!(server.state().feature_level(), OLDEST_FEATURE_LEVEL + 1);
    }
}

#[test]
fn a_server_that_does_not_understand_the_level_in_force_halts_and_says_so() {
    let mut house = House::founded();
    house.greet();
    house.elapse(500);
    house.propose(Command::RaiseFeatureLevel(RaiseFeatureLevel { level: OLDEST_FEATURE_LEVEL + 1 }));
    // It has the entry in its log, and is started again as the earlier version. It leads alone, so that it applies it at once.
    house.earlier.insert(1, OLDEST_FEATURE_LEVEL);
    let log = house.logs[&1].clone();
    let last_index = log.0.lock().unwrap().last().unwrap().index;
    let membership = Membership { voters: vec![1], ..Membership::default() };
    let hard_state = house.hard_states[&1];
    let recovered = Recovered { membership, hard_state, last_index, ..Recovered::default() };
    let options = Options { id: 1, seed: 1, checkpoint_bytes: u64::MAX, version: house.version(1) };
    let mut replica = Replica::new(&options, recovered, Box::new(log)).unwrap();
    // What it has to make durable first, it makes durable.
    let halted = (0..10).find_map(|_| {
        let numbers: Vec<u64> = replica
            .outputs()
            .filter_map(|output| match output {
                Output::Persist(batch) => Some(batch.number),
                _ => None,
            })
            .collect();
        numbers.into_iter().find_map(|number| replica.persisted(number).err())
    });
    match halted {
        Some(ReplicaError::NotUnderstood { level, understands }) => {
            assert_eq!((level, understands), (OLDEST_FEATURE_LEVEL + 1, OLDEST_FEATURE_LEVEL));
        }
        other => panic!("{other:?}"),
    }
}
