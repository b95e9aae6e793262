//! Replicas on disks and links that the test holds: what is acknowledged, what survives, who leads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use grey_core::{
    Answer, Bootstrap, Command, ExecutorKind, GroupSubmission, NodeVersion, RegisterWorker, Resources,
    Retries, SandboxLevel, Submit, TaskDefaults, TaskSpec, TenantId, TenantRecord,
};
use grey_proof::Digest;
use grey_replica::{
    Checkpoint, LogEntry, LogReader, MemberChange, Membership, Options, Output, PersistBatch, ReadError,
    Recovered, Replica, ReplicaError, Ticket,
};

/// A disk in memory: what was written and may be lost, and what is durable.
#[derive(Default)]
struct Disk {
    recovered: Recovered,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    log: BTreeMap<u64, LogEntry>,
}

impl Disk {
    fn write(&mut self, batch: PersistBatch) {
        if let Some(installation) = batch.installation {
            self.rows = installation.rows.into_iter().collect();
            let found = &mut self.recovered;
            (found.checkpoint_index, found.checkpoint_term) = (installation.index, installation.term);
            found.membership = installation.membership;
            found.truncated = (installation.index, installation.term);
            self.log.clear();
        }
        if let Some(state) = batch.hard_state {
            self.recovered.hard_state = state;
        }
        if let Some(first) = batch.entries.first() {
            self.log.split_off(&first.index);
        }
        self.log.extend(batch.entries.into_iter().map(|entry| (entry.index, entry)));
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) {
        for (key, value) in checkpoint.rows {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        let found = &mut self.recovered;
        (found.checkpoint_index, found.checkpoint_term) = (checkpoint.index, checkpoint.term);
        found.membership = checkpoint.membership;
        let through = checkpoint.truncate_through;
        if let Some(last) = self.log.get(&through) {
            found.truncated = (through, last.term);
            self.log = self.log.split_off(&(through + 1));
        }
    }

    fn recover(&self) -> Recovered {
        let mut found = self.recovered.clone();
        found.rows = self.rows.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        found.last_index = self.log.keys().next_back().copied().unwrap_or(found.truncated.0);
        found
    }
}

struct Reader(Arc<Mutex<Disk>>);

impl LogReader for Reader {
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        let disk = self.0.lock().unwrap();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (_, entry) in disk.log.range(low..high) {
            bytes += entry.data.len() as u64;
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        if taken.first().map(|entry| entry.index) == Some(low) {
            Ok(taken)
        } else {
            Err(ReadError::Missing(low))
        }
    }

    fn term(&self, index: u64) -> Result<u64, ReadError> {
        self.0.lock().unwrap().log.get(&index).map(|entry| entry.term).ok_or(ReadError::Missing(index))
    }
}

/// A server: the replica, its disk, and batches that are written and not yet durable.
struct Server {
    id: u64,
    replica: Option<Replica>,
    disk: Arc<Mutex<Disk>>,
    unsynced: VecDeque<PersistBatch>,
    hold_disk: bool,
    answers: BTreeMap<u64, Option<Result<Answer, grey_core::Rejection>>>,
    readable: BTreeSet<u64>,
    reconfigured: BTreeMap<u64, bool>,
    installed: u32,
}

struct Cluster {
    servers: BTreeMap<u64, Server>,
    links: VecDeque<(u64, u64, Vec<u8>)>,
    cut: BTreeSet<u64>,
    checkpoint_bytes: u64,
    next_ticket: u64,
}

impl Cluster {
    fn new(size: u64) -> Cluster {
        let membership = Membership { voters: (1..=size).collect(), ..Membership::default() };
        let mut cluster = Cluster {
            servers: BTreeMap::new(),
            links: VecDeque::new(),
            cut: BTreeSet::new(),
            checkpoint_bytes: u64::MAX,
            next_ticket: 1,
        };
        for id in 1..=size {
            let disk = Disk {
                recovered: Recovered { membership: membership.clone(), ..Recovered::default() },
                ..Disk::default()
            };
            let server = Server {
                id,
                replica: None,
                disk: Arc::new(Mutex::new(disk)),
                unsynced: VecDeque::new(),
                hold_disk: false,
                answers: BTreeMap::new(),
                readable: BTreeSet::new(),
                reconfigured: BTreeMap::new(),
                installed: 0,
            };
            cluster.servers.insert(id, server);
            cluster.start(id);
        }
        cluster
    }

    /// A server that knows nothing and votes for nobody: it waits to be taken in.
    fn add_blank(&mut self, id: u64) {
        let server = Server {
            id,
            replica: None,
            disk: Arc::default(),
            unsynced: VecDeque::new(),
            hold_disk: false,
            answers: BTreeMap::new(),
            readable: BTreeSet::new(),
            reconfigured: BTreeMap::new(),
            installed: 0,
        };
        self.servers.insert(id, server);
        self.start(id);
    }

    fn reconfigure(&mut self, changes: &[MemberChange]) -> Option<bool> {
        let leader = self.leader();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.replica(leader).reconfigure(Ticket(ticket), changes).unwrap();
        self.elapse(1_000);
        self.servers[&leader].reconfigured.get(&ticket).copied()
    }

    /// Submits so much that every server that is up has made a checkpoint and cut its log.
    fn outrun(&mut self) {
        let leader = self.leader();
        for count in 1..60 {
            self.propose(leader, submit(count));
        }
        self.elapse(500);
        assert!(self.servers[&leader].disk.lock().unwrap().recovered.truncated.0 > 30);
    }

    fn start(&mut self, id: u64) {
        let options = Options {
            id,
            seed: 77 * id,
            checkpoint_bytes: self.checkpoint_bytes,
            version: NodeVersion::newest("test"),
        };
        let server = self.servers.get_mut(&id).unwrap();
        let recovered = server.disk.lock().unwrap().recover();
        let reader = Box::new(Reader(server.disk.clone()));
        server.replica = Some(Replica::new(&options, recovered, reader).unwrap());
        self.settle();
    }

    /// Kills a server: what was not durable is gone.
    fn kill(&mut self, id: u64) {
        let server = self.servers.get_mut(&id).unwrap();
        server.replica = None;
        server.unsynced.clear();
        server.hold_disk = false;
    }

    /// Carries messages and makes writes durable until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for id in self.servers.keys().copied().collect::<Vec<_>>() {
                moved |= self.drain(id);
            }
            while let Some((from, to, bytes)) = self.links.pop_front() {
                if self.cut.contains(&from) || self.cut.contains(&to) {
                    continue;
                }
                if let Some(replica) = self.servers.get_mut(&to).and_then(|server| server.replica.as_mut()) {
                    replica.receive(&bytes).unwrap();
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn drain(&mut self, id: u64) -> bool {
        let server = self.servers.get_mut(&id).unwrap();
        let Some(replica) = server.replica.as_mut() else { return false };
        let outputs: Vec<Output> = replica.outputs().collect();
        let mut moved = !outputs.is_empty();
        for output in outputs {
            match output {
                Output::Persist(batch) => server.unsynced.push_back(batch),
                Output::Send { to, bytes, .. } => self.links.push_back((id, to, bytes)),
                Output::Applied { ticket: Some(ticket), applied, .. } => {
                    server.answers.insert(ticket.0, Some(applied.answer));
                }
                Output::Unknown(ticket) => {
                    server.answers.insert(ticket.0, None);
                }
                Output::Readable(ticket) => {
                    server.readable.insert(ticket.0);
                }
                Output::Checkpoint(checkpoint) => {
                    let through = checkpoint.truncate_through;
                    server.disk.lock().unwrap().checkpoint(checkpoint);
                    replica.checkpointed(through);
                }
                Output::Reconfigured { ticket, changed } => {
                    server.reconfigured.insert(ticket.0, changed);
                }
                Output::Installed { .. } => server.installed += 1,
                Output::Applied { .. } | Output::Revoke { .. } | Output::Role { .. } => {}
            }
        }
        if !server.hold_disk {
            while let Some(batch) = server.unsynced.pop_front() {
                let number = batch.number;
                server.disk.lock().unwrap().write(batch);
                replica.persisted(number).unwrap();
                moved = true;
            }
        }
        moved
    }

    fn elapse(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            for server in self.servers.values_mut() {
                if let Some(replica) = &mut server.replica {
                    replica.elapse(50).unwrap();
                }
            }
            self.settle();
        }
    }

    fn leader(&mut self) -> u64 {
        for _ in 0..100 {
            let leads = self.servers.values().find(|server| {
                !self.cut.contains(&server.id) && server.replica.as_ref().is_some_and(Replica::leads)
            });
            if let Some(server) = leads {
                return server.id;
            }
            self.elapse(50);
        }
        panic!("nobody leads after five seconds");
    }

    fn replica(&mut self, id: u64) -> &mut Replica {
        self.servers.get_mut(&id).unwrap().replica.as_mut().unwrap()
    }

    fn propose(&mut self, id: u64, command: Command) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.replica(id).propose(Ticket(ticket), command).unwrap();
        self.settle();
        ticket
    }

    fn answer(&self, id: u64, ticket: u64) -> Option<Answer> {
        self.servers[&id].answers.get(&ticket).cloned().flatten().and_then(Result::ok)
    }

    fn hashes(&self) -> BTreeSet<(u64, Digest)> {
        let states = self.servers.values().filter_map(|server| server.replica.as_ref().map(Replica::state));
        states.map(|state| (state.applied_index(), state.hash())).collect()
    }
}

fn bootstrap() -> Command {
    let resources = Resources { cpu_millicores: 100, memory_bytes: 1, disk_bytes: 0 };
    let defaults = TaskDefaults { resources, timeout_ms: 1_000, output_limit_bytes: 1_000, priority: 1 };
    let tenants = vec![TenantRecord { name: "default".to_owned(), defaults }];
    Command::Bootstrap(Bootstrap { cluster: Digest::of(b"c"), wall_ms: 1, tenants })
}

fn submit(count: u32) -> Command {
    let spec = TaskSpec {
        name: String::new(),
        executor: ExecutorKind::Noop,
        command: Vec::new(),
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpu_millicores: 100, memory_bytes: 1, disk_bytes: 0 },
        priority: 1,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 1_000,
        output_limit_bytes: 1_000,
    };
    Command::Submit(Submit {
        tenant: TenantId(1),
        submitter: String::new(),
        name: String::new(),
        labels: Vec::new(),
        key: None,
        groups: vec![GroupSubmission { spec, count }],
        flow: Default::default(),
        wall_ms: 1,
    })
}

fn register() -> Command {
    Command::RegisterWorker(RegisterWorker {
        node: Digest::of(b"w"),
        name: String::new(),
        incarnation: 1,
        session: 1,
        capacity: Resources { cpu_millicores: 1_000, memory_bytes: 1_000, disk_bytes: 0 },
        slots: 100,
        sandbox: SandboxLevel::None,
        labels: Vec::new(),
        devices: Vec::new(),
        certificate: Digest::ZERO,
        holding: Vec::new(),
    })
}

#[test]
fn a_single_server_leads_at_once_in_term_one() {
    let mut cluster = Cluster::new(1);
    assert!(cluster.replica(1).leads());
    assert_eq!(cluster.replica(1).term(), 1);
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let mut cluster = Cluster::new(1);
    cluster.propose(1, bootstrap());
    cluster.servers.get_mut(&1).unwrap().hold_disk = true;
    let held = cluster.propose(1, submit(3));
    cluster.elapse(1_000);
    assert_eq!(cluster.answer(1, held), None);
    assert_eq!(cluster.replica(1).state().meta().jobs_submitted, 0);

    cluster.servers.get_mut(&1).unwrap().hold_disk = false;
    cluster.settle();
    assert!(matches!(cluster.answer(1, held), Some(Answer::Submitted { .. })));
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_what_was_not_durable_is_gone() {
    let mut cluster = Cluster::new(1);
    cluster.propose(1, bootstrap());
    let kept = cluster.propose(1, submit(1));
    assert!(cluster.answer(1, kept).is_some());
    let hash = cluster.replica(1).state().hash();
    cluster.servers.get_mut(&1).unwrap().hold_disk = true;
    cluster.propose(1, submit(1));
    cluster.kill(1);
    cluster.start(1);
    assert_eq!(cluster.replica(1).state().meta().jobs_submitted, 1);
    assert_eq!(cluster.replica(1).term(), 2);
    assert_ne!(cluster.replica(1).state().hash(), hash, "the new term's own entry counts");
}

#[test]
fn a_checkpoint_and_the_log_behind_it_bring_back_the_same_state() {
    let mut plain = Cluster::new(1);
    let mut checkpointed = Cluster::new(1);
    checkpointed.kill(1);
    checkpointed.servers.get_mut(&1).unwrap().disk.lock().unwrap().recovered.hard_state = Default::default();
    *checkpointed.servers[&1].disk.lock().unwrap() = Disk {
        recovered: Recovered {
            membership: Membership { voters: vec![1], ..Membership::default() },
            ..Recovered::default()
        },
        ..Disk::default()
    };
    checkpointed.checkpoint_bytes = 500;
    checkpointed.start(1);
    for cluster in [&mut plain, &mut checkpointed] {
        cluster.propose(1, bootstrap());
        cluster.propose(1, register());
        for count in 1..30 {
            cluster.propose(1, submit(count));
        }
        cluster.kill(1);
        cluster.start(1);
    }
    assert!(checkpointed.servers[&1].disk.lock().unwrap().recovered.checkpoint_index > 20);
    assert!(checkpointed.servers[&1].disk.lock().unwrap().log.len() < 20, "the log was truncated");
    assert_eq!(plain.hashes(), checkpointed.hashes());
}

#[test]
fn the_leader_places_waiting_tasks_by_itself() {
    let mut cluster = Cluster::new(1);
    cluster.propose(1, bootstrap());
    cluster.propose(1, submit(250));
    assert_eq!(cluster.replica(1).state().live().len(), 0);
    cluster.propose(1, register());
    assert_eq!(cluster.replica(1).state().live().len(), 100, "as many as the worker has slots");
}

#[test]
fn three_servers_elect_one_leader_and_hold_the_same_state() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let ticket = cluster.propose(leader, bootstrap());
    assert_eq!(cluster.answer(leader, ticket), Some(Answer::Founded));
    cluster.propose(leader, register());
    cluster.propose(leader, submit(10));
    cluster.elapse(200);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
    let leaders = cluster.servers.values().filter(|server| server.replica.as_ref().unwrap().leads()).count();
    assert_eq!(leaders, 1);
}

#[test]
fn a_follower_refuses_proposals_and_names_the_leader() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.elapse(100);
    let follower = 1 + leader % 3;
    let refused = cluster.replica(follower).propose(Ticket(9), bootstrap());
    assert!(matches!(refused, Err(ReplicaError::NotLeader { leader: named }) if named == leader));
}

#[test]
fn a_new_leader_has_everything_acknowledged_and_an_unfinished_proposal_is_unknown() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.propose(old, bootstrap());
    let kept = cluster.propose(old, submit(5));
    assert!(cluster.answer(old, kept).is_some());

    cluster.cut.insert(old);
    let lost = cluster.propose(old, submit(7));
    let new = cluster.leader();
    assert_ne!(new, old);
    assert_eq!(cluster.replica(new).state().meta().jobs_submitted, 1);
    let term = cluster.replica(new).term();

    cluster.cut.clear();
    cluster.elapse(2_000);
    assert_eq!(cluster.servers[&old].answers.get(&lost), Some(&None), "unknown, never failed");
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
    assert!(cluster.replica(old).term() >= term);
}

#[test]
fn a_leader_cut_off_from_the_others_serves_no_read() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    cluster.propose(leader, bootstrap());
    cluster.replica(leader).read(Ticket(501)).unwrap();
    cluster.settle();
    assert!(cluster.servers[&leader].readable.contains(&501));

    cluster.cut.insert(leader);
    let asked = cluster.replica(leader).read(Ticket(502));
    cluster.elapse(3_000);
    assert!(asked.is_ok(), "it still believes that it leads when asked");
    assert!(!cluster.servers[&leader].readable.contains(&502));
    assert!(!cluster.replica(leader).leads(), "it steps down without a quorum");
}

#[test]
fn a_pause_of_the_process_starts_no_election() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let term = cluster.replica(leader).term();
    let follower = 1 + leader % 3;
    cluster.replica(follower).elapse(60_000).unwrap();
    cluster.settle();
    cluster.elapse(500);
    assert_eq!(cluster.replica(leader).term(), term);
    assert!(cluster.replica(leader).leads());
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let mut cluster = Cluster::new(1);
    assert!(matches!(cluster.replica(1).receive(&[0xff; 9]), Err(ReplicaError::BadMessage)));
}

#[test]
fn the_same_seeds_give_the_same_history() {
    let history = || {
        let mut cluster = Cluster::new(3);
        let leader = cluster.leader();
        cluster.propose(leader, bootstrap());
        cluster.cut.insert(leader);
        let next = cluster.leader();
        let term = cluster.replica(next).term();
        (leader, next, term, cluster.hashes())
    };
    assert_eq!(history(), history());
}

/// Three servers that cut their logs soon, founded.
fn forgetful() -> Cluster {
    let mut cluster = Cluster::new(3);
    for id in 1..=3 {
        cluster.kill(id);
    }
    cluster.checkpoint_bytes = 1_000;
    for id in 1..=3 {
        cluster.start(id);
    }
    let leader = cluster.leader();
    cluster.propose(leader, bootstrap());
    cluster.elapse(200);
    cluster
}

#[test]
fn a_server_that_missed_what_the_log_no_longer_has_gets_the_whole_state_and_goes_on() {
    let mut cluster = forgetful();
    let behind = 1 + cluster.leader() % 3;
    cluster.kill(behind);
    cluster.outrun();
    cluster.start(behind);
    cluster.elapse(2_000);
    assert_eq!(cluster.servers[&behind].installed, 1);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());

    // Then: it goes on from the log, also after a restart, and votes.
    let leader = cluster.leader();
    cluster.propose(leader, submit(3));
    cluster.kill(behind);
    cluster.start(behind);
    cluster.elapse(500);
    assert_eq!(cluster.servers[&behind].installed, 1, "the rest was in the log");
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
    cluster.kill(leader);
    cluster.cut.insert(leader);
    let next = cluster.leader();
    let ticket = cluster.propose(next, submit(1));
    assert!(cluster.answer(next, ticket).is_some(), "with it there is a quorum");
}

#[test]
fn who_is_a_little_behind_is_sent_entries_whatever_checkpoints_are_asked_for() {
    let mut cluster = forgetful();
    let behind = 1 + cluster.leader() % 3;
    cluster.kill(behind);
    // Given: less than a checkpoint's worth of log, and a checkpoint right behind it, as before a snapshot.
    let leader = cluster.leader();
    cluster.propose(leader, submit(1));
    cluster.elapse(200);
    for id in [leader, 1 + (behind % 3)] {
        let replica = cluster.replica(id);
        if let Some(checkpoint) = replica.checkpoint_now() {
            assert_eq!(checkpoint.truncate_through, 0);
            replica.checkpointed(0);
        }
    }
    cluster.start(behind);
    cluster.elapse(2_000);
    assert_eq!(cluster.servers[&behind].installed, 0);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
}

#[test]
fn a_state_that_was_not_durable_is_installed_again() {
    let mut cluster = forgetful();
    let behind = 1 + cluster.leader() % 3;
    cluster.kill(behind);
    cluster.outrun();
    cluster.start(behind);
    cluster.servers.get_mut(&behind).unwrap().hold_disk = true;
    cluster.elapse(2_000);
    assert_eq!(cluster.servers[&behind].installed, 0, "nothing is applied before it is durable");
    assert!(cluster.replica(behind).state().applied_index() < 30);
    cluster.kill(behind);
    cluster.start(behind);
    cluster.elapse(12_000);
    assert_eq!(cluster.servers[&behind].installed, 1);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
}

#[test]
fn a_state_that_was_lost_on_the_way_is_sent_again() {
    let mut cluster = forgetful();
    let behind = 1 + cluster.leader() % 3;
    cluster.kill(behind);
    cluster.outrun();
    cluster.start(behind);
    // Given: the link breaks as soon as the state is on it.
    for _ in 0..40 {
        let leader = cluster.leader();
        cluster.replica(leader).elapse(50).unwrap();
        cluster.drain(leader);
        let large = cluster.links.iter().position(|(_, to, bytes)| *to == behind && bytes.len() > 2_000);
        if let Some(large) = large {
            cluster.links.remove(large);
            break;
        }
        cluster.settle();
    }
    cluster.elapse(12_000);
    assert_eq!(cluster.servers[&behind].installed, 1);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
}

#[test]
fn a_server_enters_as_a_learner_catches_up_and_then_votes() {
    let mut cluster = forgetful();
    cluster.outrun();
    cluster.add_blank(4);
    assert_eq!(cluster.reconfigure(&[MemberChange::AddLearner(4)]), Some(true));
    cluster.elapse(2_000);
    assert_eq!(cluster.hashes().len(), 1, "{:?}", cluster.hashes());
    let leader = cluster.leader();
    assert!(cluster.replica(leader).has_caught_up(4));
    assert_eq!(cluster.replica(4).membership().learners, [4]);

    // When: it takes the place of another one, in one step.
    let replaced = 1 + leader % 3;
    let step = [MemberChange::Promote(4), MemberChange::Remove(replaced)];
    assert_eq!(cluster.reconfigure(&step), Some(true));
    let membership = cluster.replica(leader).membership();
    assert!(membership.voters.contains(&4) && !membership.voters.contains(&replaced));
    assert!(membership.voters_outgoing.is_empty(), "the joint configuration was left");
}

#[test]
fn a_leader_that_is_removed_leads_no_longer_and_the_others_go_on() {
    let mut cluster = forgetful();
    let old = cluster.leader();
    cluster.reconfigure(&[MemberChange::Remove(old)]);
    assert!(!cluster.replica(old).leads());
    cluster.cut.insert(old);
    let new = cluster.leader();
    assert_ne!(new, old);
    let ticket = cluster.propose(new, submit(1));
    assert!(cluster.answer(new, ticket).is_some());
}

#[test]
fn leadership_is_handed_over_when_it_is_asked_for() {
    let mut cluster = forgetful();
    let old = cluster.leader();
    let heir = 1 + old % 3;
    cluster.replica(old).transfer_leadership(heir).unwrap();
    cluster.elapse(300);
    assert_eq!(cluster.leader(), heir);
}

#[test]
fn a_change_that_leaves_no_voter_or_says_nothing_is_refused() {
    let mut cluster = Cluster::new(1);
    for changes in
        [&[][..], &[MemberChange::Remove(1)], &[MemberChange::AddLearner(1)], &[MemberChange::Promote(0)]]
    {
        let refused = cluster.replica(1).reconfigure(Ticket(5), changes);
        assert!(matches!(refused, Err(ReplicaError::BadReconfiguration)), "{changes:?}");
    }
}
