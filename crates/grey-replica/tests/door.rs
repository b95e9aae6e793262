//! The door and the links of real servers, on disks, links and clocks of the test's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use grey_core::{
    Bootstrap, Command, ExecutorKind, GroupSubmission, IdempotencyKey, NodeVersion, RateLimit, Resources,
    Retries, Submit, TaskDefaults, TaskSpec, TenantId, TenantRecord,
};
use grey_health::{Amount, CapacityOptions, Class, GateOptions, Level, RefusalCode, ShedOptions};
use grey_proof::Digest;
use grey_replica::{
    DoorOptions, LinkOptions, LogEntry, LogReader, Membership, Options, Output, Peer, PeerMessage,
    PersistBatch, ReadError, Recovered, Replica, ReplicaError, Server, ServerOptions, ServerOutput, Ticket,
};
use proptest::prelude::*;

type Log = Arc<Mutex<BTreeMap<u64, LogEntry>>>;

struct Reader(Log);

impl LogReader for Reader {
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (_, entry) in self.0.lock().unwrap().range(low..high) {
            bytes += entry.data.len() as u64;
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }
    fn term(&self, index: u64) -> Result<u64, ReadError> {
        self.0.lock().unwrap().get(&index).map(|entry| entry.term).ok_or(ReadError::Missing(index))
    }
}

struct Node {
    server: Server,
    log: Log,
    unsynced: VecDeque<PersistBatch>,
    hold_disk: bool,
    applied: Vec<Ticket>,
    unknown: Vec<Ticket>,
    refused: Vec<(Ticket, ReplicaError)>,
}

impl Node {
    fn new(id: u64, servers: u64, door: &DoorOptions) -> Node {
        let membership = Membership { voters: (1..=servers).collect(), ..Membership::default() };
        let recovered = Recovered { membership, ..Recovered::default() };
        let log = Log::default();
        let options =
            Options { id, seed: 31 * id, checkpoint_bytes: u64::MAX, version: NodeVersion::newest("test") };
        let replica = Replica::new(&options, recovered, Box::new(Reader(log.clone()))).unwrap();
        let options = ServerOptions { watch: None, door: door.clone(), links: Some(LinkOptions::default()) };
        Node {
            server: Server::with_options(replica, options).unwrap(),
            log,
            unsynced: VecDeque::new(),
            hold_disk: false,
            applied: Vec::new(),
            unknown: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Does what the server asks for, except sending.
    fn serve(&mut self) -> bool {
        self.server.flush().unwrap();
        let outputs = self.server.outputs().unwrap();
        let mut moved = !outputs.is_empty();
        for output in outputs {
            match output {
                ServerOutput::Replica(Output::Persist(batch)) => self.unsynced.push_back(batch),
                ServerOutput::Replica(Output::Applied { ticket: Some(ticket), .. }) => {
                    self.applied.push(ticket)
                }
                ServerOutput::Replica(Output::Unknown(ticket)) => self.unknown.push(ticket),
                ServerOutput::Refused(ticket, error) => self.refused.push((ticket, error)),
                _ => {}
            }
        }
        while !self.hold_disk && self.sync() {
            moved = true;
        }
        moved
    }

    /// Makes the oldest batch durable.
    fn sync(&mut self) -> bool {
        let Some(batch) = self.unsynced.pop_front() else { return false };
        {
            let mut log = self.log.lock().unwrap();
            if let Some(first) = batch.entries.first() {
                log.split_off(&first.index);
            }
            log.extend(batch.entries.into_iter().map(|entry| (entry.index, entry)));
        }
        self.server.replica_mut().persisted(batch.number).unwrap();
        true
    }

    fn refusal(&self) -> (RefusalCode, u64, u64) {
        match self.refused.last() {
            Some((_, ReplicaError::Door(refused))) => {
                (refused.refusal.code, refused.refusal.limit, refused.refusal.usage)
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Cluster {
    nodes: Vec<Node>,
    cut: BTreeSet<u64>,
    tickets: u64,
}

impl Cluster {
    fn new(servers: u64, door: &DoorOptions) -> Cluster {
        let nodes = (1..=servers).map(|id| Node::new(id, servers, door)).collect();
        let mut cluster = Cluster { nodes, cut: BTreeSet::new(), tickets: 1 };
        (1..=servers).for_each(|id| cluster.connect(id));
        cluster.elapse(3_000);
        let leader = cluster.leader().expect("somebody leads");
        let resources = Resources { cpu_millicores: 100, memory_bytes: 1, disk_bytes: 0 };
        let defaults = TaskDefaults { resources, timeout_ms: 1_000, output_limit_bytes: 1_000, priority: 1 };
        let tenant = |name: &str| TenantRecord { name: name.to_owned(), defaults };
        let tenants = vec![tenant("first"), tenant("second")];
        let found = Command::Bootstrap(Bootstrap { cluster: Digest::of(b"c"), wall_ms: 1, tenants });
        cluster.propose(leader, found);
        cluster.elapse(200);
        cluster
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.server.replica().leads())
    }

    fn others(&self, id: u64) -> Vec<u64> {
        (1..=self.nodes.len() as u64).filter(|other| *other != id && !self.cut.contains(other)).collect()
    }

    fn connect(&mut self, id: u64) {
        self.cut.remove(&id);
        for other in self.others(id) {
            self.nodes[id as usize - 1].server.connected(Peer::Server(other)).unwrap();
            self.nodes[other as usize - 1].server.connected(Peer::Server(id)).unwrap();
        }
    }

    fn cut(&mut self, id: u64) {
        for other in self.others(id) {
            self.nodes[id as usize - 1].server.disconnected(Peer::Server(other));
            self.nodes[other as usize - 1].server.disconnected(Peer::Server(id));
        }
        self.cut.insert(id);
    }

    fn propose(&mut self, node: usize, command: Command) -> Ticket {
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.nodes[node].server.propose(ticket, command);
        ticket
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for node in &mut self.nodes {
                moved |= node.serve();
            }
            for from in 1..=self.nodes.len() as u64 {
                for to in (1..=self.nodes.len() as u64).filter(|to| *to != from) {
                    while let Some(parcel) = self.nodes[from as usize - 1].server.take(Peer::Server(to)) {
                        assert!(
                            !self.cut.contains(&from) && !self.cut.contains(&to),
                            "there is no connection"
                        );
                        moved = true;
                        self.nodes[from as usize - 1].server.sent(Peer::Server(to), parcel.number);
                        let PeerMessage::Server(bytes) = parcel.message else { panic!("not a server's") };
                        self.nodes[to as usize - 1].server.replica_mut().receive(&bytes).unwrap();
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Carries what is to be sent, except from one server to another.
    fn carry_except(&mut self, not_from: u64, not_to: u64) -> bool {
        let (mut moved, ids) = (false, 1..=self.nodes.len() as u64);
        let pairs = ids.clone().flat_map(|from| ids.clone().map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to && (*from, *to) != (not_from, not_to)) {
            while let Some(parcel) = self.nodes[from as usize - 1].server.take(Peer::Server(to)) {
                assert!(!self.cut.contains(&from) && !self.cut.contains(&to), "there is no connection");
                moved = true;
                self.nodes[from as usize - 1].server.sent(Peer::Server(to), parcel.number);
                let PeerMessage::Server(bytes) = parcel.message else { panic!("not a server's") };
                self.nodes[to as usize - 1].server.replica_mut().receive(&bytes).unwrap();
            }
        }
        moved
    }

    fn elapse(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.nodes.iter_mut().for_each(|node| node.server.elapse(50).unwrap());
            self.settle();
        }
    }
}

fn submission(tenant: u32, count: u32, key: Option<&str>, bytes: usize) -> Command {
    let spec = TaskSpec {
        name: String::new(),
        executor: ExecutorKind::Process,
        command: vec!["x".repeat(bytes.max(1))],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpu_millicores: 100, memory_bytes: 1, disk_bytes: 0 },
        priority: 1,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 60_000,
        output_limit_bytes: 1_000,
    };
    Command::Submit(Submit {
        tenant: TenantId(tenant),
        submitter: String::new(),
        name: String::new(),
        labels: Vec::new(),
        key: key.map(|key| IdempotencyKey { key: key.to_owned(), body: Digest::of(key.as_bytes()) }),
        groups: vec![GroupSubmission { spec, count }],
        flow: Default::default(),
        wall_ms: 1,
    })
}

const SHARED: u64 = 6;

fn door() -> DoorOptions {
    let capacity = CapacityOptions {
        heartbeats: Amount { count: 2, bytes: 10_000 },
        endings: Amount { count: 2, bytes: 10_000 },
        shared: Amount { count: SHARED, bytes: 10_000 },
    };
    DoorOptions {
        gate: GateOptions {
            capacity,
            shed: ShedOptions { target_ms: 100, interval_ms: 500, longest_retry_after_ms: 5_000 },
            ..GateOptions::default()
        },
        rate: Some(RateLimit { tasks_per_second: 1, burst: 100 }),
        queued_tasks: 120,
        ..DoorOptions::default()
    }
}

#[test]
fn the_door_asks_for_rate_then_queue_then_room_then_delay() {
    let mut cluster = Cluster::new(1, &door());
    let node = |cluster: &mut Cluster, command: Command| {
        cluster.propose(0, command);
        cluster.settle();
    };
    node(&mut cluster, submission(1, 90, None, 1));
    // Given: a disk that stands still, a queue that is nearly full, and no room.
    cluster.nodes[0].hold_disk = true;
    for _ in 0..SHARED {
        node(&mut cluster, submission(2, 1, None, 1));
    }
    assert!(cluster.nodes[0].refused.is_empty());
    cluster.elapse(900);
    node(&mut cluster, submission(1, 101, None, 1));
    assert_eq!(cluster.nodes[0].refusal(), (RefusalCode::Burst, 100, 101));
    node(&mut cluster, submission(1, 40, None, 1));
    assert_eq!(cluster.nodes[0].refusal().0, RefusalCode::Rate);
    cluster.elapse(100_000);
    node(&mut cluster, submission(1, 40, None, 1));
    assert_eq!(cluster.nodes[0].refusal(), (RefusalCode::Queue, 120, 90));
    node(&mut cluster, submission(1, 20, None, 1));
    assert_eq!(cluster.nodes[0].refusal(), (RefusalCode::Proposals, SHARED, SHARED));
    // When: there is room, but what was accepted has been waiting for long.
    cluster.nodes[0].sync();
    cluster.nodes[0].serve();
    node(&mut cluster, submission(1, 20, None, 1));
    let Some((_, ReplicaError::Door(refused))) = cluster.nodes[0].refused.last() else { panic!("let in") };
    assert_eq!((refused.refusal.code, refused.refusal.limit), (RefusalCode::Delay, 100));
    assert_eq!(refused.level, Level::Blocked);
    assert!(refused.refusal.retry_after_ms.is_some());
    // Then: it is open when the queue is gone, and refusals have charged nothing.
    cluster.nodes[0].hold_disk = false;
    cluster.elapse(600);
    let last = cluster.propose(0, submission(1, 30, None, 1));
    cluster.elapse(50);
    assert!(cluster.nodes[0].applied.contains(&last));
    assert_eq!(cluster.nodes[0].server.under_way(), 0);
}

#[test]
fn bytes_are_counted_as_they_are_proposed() {
    let mut cluster = Cluster::new(1, &door());
    cluster.nodes[0].hold_disk = true;
    for _ in 0..2 {
        cluster.propose(0, submission(1, 1, None, 4_500));
        cluster.settle();
    }
    assert!(cluster.nodes[0].refused.is_empty());
    cluster.propose(0, submission(1, 1, None, 4_500));
    cluster.settle();
    let (code, limit, usage) = cluster.nodes[0].refusal();
    assert_eq!((code, limit), (RefusalCode::ProposalBytes, 10_000));
    assert!((9_000..9_400).contains(&usage), "{usage}");
}

#[test]
fn what_was_accepted_may_be_asked_for_again_whatever_rate_and_queue_say() {
    let mut cluster = Cluster::new(1, &door());
    let first = cluster.propose(0, submission(1, 100, Some("once"), 1));
    cluster.elapse(50);
    cluster.propose(0, submission(1, 100, Some("twice"), 1));
    cluster.settle();
    assert_eq!(cluster.nodes[0].refusal().0, RefusalCode::Rate);
    let again = cluster.propose(0, submission(1, 100, Some("once"), 1));
    cluster.elapse(50);
    assert!([first, again].iter().all(|ticket| cluster.nodes[0].applied.contains(ticket)));
    assert_eq!(cluster.nodes[0].server.state().tenants()[&TenantId(1)].queued_tasks, 100);
}

#[test]
fn the_level_rises_before_the_door_closes_and_for_a_tenant_with_its_queue() {
    let mut cluster = Cluster::new(1, &door());
    cluster.nodes[0].hold_disk = true;
    let mut levels = Vec::new();
    for _ in 0..SHARED {
        cluster.propose(0, submission(2, 1, None, 1));
        levels.push(cluster.nodes[0].server.level());
    }
    let expected =
        [Level::Normal, Level::Normal, Level::Normal, Level::Warning, Level::Critical, Level::Blocked];
    assert_eq!(levels, expected);
    cluster.nodes[0].hold_disk = false;
    cluster.elapse(50);
    assert_eq!(cluster.nodes[0].server.level(), Level::Normal);
    cluster.propose(0, submission(1, 100, None, 1));
    cluster.elapse(50);
    assert_eq!(cluster.nodes[0].server.level_for(TenantId(1)), Level::Critical);
    assert_eq!(cluster.nodes[0].server.level_for(TenantId(2)), Level::Normal);
}

#[test]
fn a_server_that_does_not_lead_charges_nothing() {
    let mut cluster = Cluster::new(3, &door());
    let follower = (cluster.leader().unwrap() + 1) % 3;
    for _ in 0..20 {
        cluster.propose(follower, submission(1, 100, None, 1));
        cluster.settle();
    }
    assert_eq!(cluster.nodes[follower].refused.len(), 20);
    let all_say_so = |(_, error): &(Ticket, ReplicaError)| matches!(error, ReplicaError::NotLeader { leader } if *leader > 0);
    assert!(cluster.nodes[follower].refused.iter().all(all_say_so));
    assert_eq!(cluster.nodes[follower].server.under_way(), 0);
}

/// Clients send at this part of the capacity, in thousandths; a disk makes one entry durable in a millisecond. Returns how many were applied,
/// and after how many milliseconds each.
fn load(permille: u64, seconds: u64) -> (Vec<u64>, usize, Cluster) {
    let door = DoorOptions { rate: None, ..DoorOptions::default() };
    let mut cluster = Cluster::new(1, &door);
    let node = &mut cluster.nodes[0];
    node.hold_disk = true;
    let (mut sent_ms, mut due, mut delays, mut refused) = (BTreeMap::new(), 0, Vec::new(), 0);
    let (mut disk_free_ms, mut ticket) = (0u64, 1_000u64);
    for now_ms in 0..seconds * 1_000 {
        node.server.elapse(1).unwrap();
        due += permille;
        while due >= 1_000 {
            due -= 1_000;
            sent_ms.insert(Ticket(ticket), now_ms);
            node.server.propose(Ticket(ticket), submission(1, 1, None, 1));
            ticket += 1;
        }
        node.serve();
        // One batch at a time; it takes as long as it has entries.
        if disk_free_ms <= now_ms
            && let Some(batch) = node.unsynced.front()
        {
            disk_free_ms = now_ms + batch.entries.len() as u64;
            node.sync();
            node.serve();
        }
        delays.extend(node.applied.drain(..).filter_map(|ticket| Some(now_ms - sent_ms.remove(&ticket)?)));
        refused += node
            .refused
            .drain(..)
            .inspect(|(_, error)| assert!(matches!(error, ReplicaError::Door(_))))
            .count();
    }
    (delays, refused, cluster)
}

#[test]
fn at_twice_the_capacity_goodput_stays_and_the_delay_of_what_is_accepted_is_bounded() {
    const SECONDS: u64 = 30;
    let (peak, none, _) = load(950, SECONDS);
    assert_eq!(none, 0, "below the capacity nothing is refused");
    let (mut delays, refused, mut cluster) = load(2_000, SECONDS);
    assert!(delays.len() * 10 >= peak.len() * 9, "{} of {}", delays.len(), peak.len());
    assert!(refused > 0);
    delays.sort_unstable();
    let p99_ms = delays[delays.len() * 99 / 100];
    // The target, the interval over which it is exceeded, and what came in meanwhile; without the door it would be 15 s and growing.
    assert!(p99_ms <= 4_500, "{p99_ms} ms");
    // When the congestion clears, the door opens.
    cluster.nodes[0].hold_disk = false;
    cluster.elapse(3_000);
    assert_eq!(cluster.nodes[0].server.level(), Level::Normal);
    let after = cluster.propose(0, submission(1, 1, None, 1));
    cluster.elapse(50);
    assert!(cluster.nodes[0].applied.contains(&after));
}

#[test]
fn a_peer_that_comes_back_is_sent_little_at_first() {
    let mut cluster = Cluster::new(3, &DoorOptions { rate: None, ..DoorOptions::default() });
    let leader = cluster.leader().unwrap();
    let away = (leader + 1) % 3;
    let peer = Peer::Server(away as u64 + 1);
    cluster.cut(away as u64 + 1);
    for _ in 0..200 {
        cluster.propose(leader, submission(1, 1, None, 100_000));
        cluster.settle();
    }
    assert!(cluster.nodes[leader].server.take(peer).is_none(), "nothing goes to somebody who is away");
    cluster.connect(away as u64 + 1);
    // When: the leader's link to it takes a tick to write what it was given.
    let (mut unwritten, mut at_once) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let node = &mut cluster.nodes[leader];
        unwritten.drain(..).for_each(|number| node.server.sent(peer, number));
        cluster.nodes.iter_mut().for_each(|node| node.server.elapse(50).unwrap());
        let mut bytes = 0;
        loop {
            let mut moved = false;
            for node in &mut cluster.nodes {
                moved |= node.serve();
            }
            while let Some(parcel) = cluster.nodes[leader].server.take(peer) {
                moved = true;
                unwritten.push(parcel.number);
                let PeerMessage::Server(message) = parcel.message else { panic!("not a server's") };
                bytes += message.len();
                cluster.nodes[away].server.replica_mut().receive(&message).unwrap();
            }
            moved |= cluster.carry_except(leader as u64 + 1, away as u64 + 1);
            if !moved {
                break;
            }
        }
        at_once.push(bytes);
    }
    // Then: it has caught up on twenty megabytes, of which no tick brought more than the window; the first no more than the first window.
    let indexes: BTreeSet<u64> =
        cluster.nodes.iter().map(|node| node.server.state().applied_index()).collect();
    assert_eq!(indexes.len(), 1, "it has caught up");
    assert!(at_once.iter().sum::<usize>() > 20_000_000);
    let window = LinkOptions::default().servers.first_window;
    let first = at_once.iter().copied().find(|bytes| *bytes > 10_000).unwrap() as u64;
    assert!(first <= window.bytes, "{first}");
    assert!(at_once.iter().all(|bytes| *bytes as u64 <= 64 << 20));
}

#[test]
fn a_leader_keeps_leading_while_the_disks_of_its_followers_stand_still() {
    let mut cluster = Cluster::new(3, &DoorOptions { rate: None, ..DoorOptions::default() });
    let leader = cluster.leader().unwrap();
    let term = cluster.nodes[leader].server.replica().term();
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    others.iter().for_each(|node| cluster.nodes[*node].hold_disk = true);
    let waiting = cluster.propose(leader, submission(1, 1, None, 1));
    // Ten times the time after which a leader that no quorum answers steps down.
    cluster.elapse(6_000);
    assert_eq!(cluster.leader(), Some(leader));
    assert!(!cluster.nodes[leader].applied.contains(&waiting), "no quorum has it on its disk");
    others.iter().for_each(|node| cluster.nodes[*node].hold_disk = false);
    cluster.elapse(200);
    assert!(cluster.nodes[leader].applied.contains(&waiting));
    assert_eq!(cluster.nodes[leader].server.replica().term(), term);
}

#[test]
fn a_server_to_which_writing_fails_is_left_alone_and_then_tried_with_care() {
    let mut cluster = Cluster::new(3, &DoorOptions::default());
    let leader = cluster.leader().unwrap();
    let peer = Peer::Server((leader as u64 + 1) % 3 + 1);
    let server = &mut cluster.nodes[leader].server;
    let mut failed = 0;
    for _ in 0..200 {
        server.elapse(50).unwrap();
        server.outputs().unwrap();
        while let Some(parcel) = server.take(peer) {
            failed += 1;
            server.not_sent(peer, parcel.number);
        }
        if failed >= 40 {
            break;
        }
    }
    // Twenty calls at most until it opens, then a probe or two each second of ten.
    assert!((10..40).contains(&failed), "{failed}");
    server.disconnected(peer);
    let wait_ms = loop {
        match server.may_connect(peer) {
            Ok(()) => server.disconnected(peer),
            Err(refused) => break refused.retry_after_ms,
        }
    };
    assert!(wait_ms >= 1);
}

#[test]
fn acknowledgements_overtake_entries_on_a_link() {
    let mut outbox = grey_health::PeerOutbox::new(LinkOptions::default().servers).unwrap();
    outbox.connected();
    outbox.push(Class::Other, 1_000_000, 9, "entries", 0).unwrap();
    outbox.push_latest(Class::Ending, 50, 9, "acknowledged", 0).unwrap();
    outbox.push_latest(Class::Heartbeat, 50, 9, "alive", 0).unwrap();
    let order: Vec<&str> = core::iter::from_fn(|| outbox.take(0)).map(|sending| sending.message).collect();
    assert_eq!(order, ["alive", "acknowledged", "entries"]);
}

#[derive(Debug, Clone)]
enum Step {
    Propose { node: usize, count: u32, read: bool },
    Elapse(u64),
    Cut(u64),
    Heal(u64),
    HoldDisk(usize),
    ReleaseDisk(usize),
    ToLeader,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..3, 1u32..4, any::<bool>()).prop_map(|(node, count, read)| Step::Propose { node, count, read }),
        6 => Just(Step::ToLeader),
        4 => (1u64..30).prop_map(|ticks| Step::Elapse(ticks * 50)),
        2 => (1u64..=3).prop_map(Step::Cut),
        2 => (1u64..=3).prop_map(Step::Heal),
        1 => (0usize..3).prop_map(Step::HoldDisk),
        1 => (0usize..3).prop_map(Step::ReleaseDisk),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_admission_is_settled_once_whatever_becomes_of_the_proposal(steps in steps()) {
        let door = DoorOptions { rate: None, ..door() };
        let mut cluster = Cluster::new(3, &door);
        let (mut proposed, mut reads) = (BTreeSet::new(), 0);
        for step in steps {
            match step {
                Step::Propose { node, count, read: false } => {
                    proposed.insert(cluster.propose(node, submission(1, count, None, 1)));
                }
                Step::Propose { node, read: true, .. } => {
                    reads += 1;
                    cluster.nodes[node].server.read(Ticket(1_000_000 + reads));
                }
                Step::ToLeader => {
                    // Several may believe that they lead.
                    for node in 0..3 {
                        if cluster.nodes[node].server.replica().leads() {
                            proposed.insert(cluster.propose(node, submission(1, 1, None, 1)));
                        }
                    }
                    cluster.settle();
                }
                Step::Elapse(ms) => cluster.elapse(ms),
                Step::Cut(id) if !cluster.cut.contains(&id) => cluster.cut(id),
                Step::Heal(id) if cluster.cut.contains(&id) => cluster.connect(id),
                Step::Cut(_) | Step::Heal(_) => {}
                Step::HoldDisk(node) => cluster.nodes[node].hold_disk = true,
                Step::ReleaseDisk(node) => cluster.nodes[node].hold_disk = false,
            }
            for node in &cluster.nodes {
                prop_assert!(node.server.under_way() as u64 <= SHARED + 4);
            }
        }
        for id in cluster.cut.clone() {
            cluster.connect(id);
        }
        cluster.nodes.iter_mut().for_each(|node| node.hold_disk = false);
        cluster.elapse(10_000);
        let mut outcomes = BTreeMap::new();
        for node in &cluster.nodes {
            prop_assert_eq!(node.server.under_way(), 0);
            prop_assert_eq!(node.server.level(), Level::Normal);
            let refused = node.refused.iter().map(|(ticket, _)| ticket);
            for ticket in node.applied.iter().chain(&node.unknown).chain(refused) {
                *outcomes.entry(*ticket).or_insert(0) += 1;
            }
        }
        for ticket in &proposed {
            prop_assert_eq!(outcomes.get(ticket), Some(&1), "{:?}", ticket);
        }
        // The whole room is there again.
        let leader = cluster.leader().expect("somebody leads");
        cluster.nodes[leader].hold_disk = true;
        let before = cluster.nodes[leader].refused.len();
        for _ in 0..SHARED {
            cluster.propose(leader, submission(2, 1, None, 1));
        }
        prop_assert_eq!(cluster.nodes[leader].refused.len(), before);
        prop_assert_eq!(cluster.nodes[leader].server.under_way() as u64, SHARED);
    }
}
