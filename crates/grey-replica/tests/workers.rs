//! What a leader does for its workers: sessions, leases, suspicion and loss. The workers are real agents; links and clocks are
//! the test's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, VecDeque};

use grey_agent::{Agent, AgentOptions, KeepOptions, Output as AgentOutput, StopReason};
use grey_core::{
    AttemptId, AttemptResult, Bootstrap, Cancel, Command, Content, ExecutorKind, FromWorker, GroupSubmission,
    LoseWorker, NodeVersion, Outcome, Presence, RegisterWorker, Resources, Retries, Revoked, SandboxLevel,
    Signer, Standing, Submit, Target, TaskDefaults, TaskSpec, TenantId, TenantRecord, ToWorker, Usage,
    UsageSource, WorkerId, WorkerMessage,
};
use grey_health::{Amount, CapacityOptions, GateOptions, Level, RefusalCode};
use grey_proof::{Digest, SigningKey};
use grey_replica::{
    DoorOptions, LinkOptions, LogEntry, LogReader, Membership, Options, Output, Peer, PeerMessage, ReadError,
    Recovered, Replica, ReplicaError, Server, ServerOptions, ServerOutput, Ticket, WatchOptions,
};

const WORKER: WorkerId = WorkerId(1);
/// How long at most until a silent worker is lost: lease, drift, rounding, and a tick.
const LOST_AFTER_MS: u64 = 3_100;

struct NoLog;

impl LogReader for NoLog {
    fn entries(&self, low: u64, _high: u64, _max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        Err(ReadError::Missing(low))
    }
    fn term(&self, index: u64) -> Result<u64, ReadError> {
        Err(ReadError::Missing(index))
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

/// One server, one worker, and the link between them.
struct House {
    server: Server,
    agent: Agent,
    up: bool,
    /// Messages to the worker that are swallowed before the next gets through.
    swallow: usize,
    /// Whether what the worker gives back does not arrive.
    lose_returns: bool,
    running: BTreeSet<AttemptId>,
    executed: Vec<AttemptId>,
    stopped: Vec<AttemptId>,
    held: VecDeque<ToWorker>,
    hold: bool,
    tickets: u64,
    /// Batches that are written and not durable, while the disk is held.
    unsynced: Vec<u64>,
    hold_disk: bool,
    refused: Vec<(Ticket, ReplicaError)>,
    applied: BTreeSet<Ticket>,
}

impl House {
    fn new() -> House {
        House::with(ServerOptions { watch: Some(WatchOptions::default()), ..ServerOptions::default() })
    }

    fn with(server: ServerOptions) -> House {
        let membership = Membership { voters: vec![1], ..Membership::default() };
        let recovered = Recovered { membership, ..Recovered::default() };
        let options =
            Options { id: 1, seed: 5, checkpoint_bytes: u64::MAX, version: NodeVersion::newest("test") };
        let replica = Replica::new(&options, recovered, Box::new(NoLog)).unwrap();
        let agent = AgentOptions {
            signer: Signer {
                cluster: Digest::of(b"c"),
                node: key().verifying_key().id(),
                certificate: Digest::of(b"certificate"),
            },
            name: "host".to_owned(),
            incarnation: 1,
            capacity: Resources { cpu_millicores: 2_000, memory_bytes: 1 << 30, disk_bytes: 0 },
            sandbox: SandboxLevel::PidNamespace,
            labels: Vec::new(),
            devices: Vec::new(),
            parallel: 4,
            lease: Some(KeepOptions::default()),
            salt_seed: [9; 32],
        };
        let mut house = House {
            server: Server::with_options(replica, server).unwrap(),
            agent: Agent::new(agent, key(), [], &[]).unwrap(),
            up: true,
            swallow: 0,
            lose_returns: false,
            running: BTreeSet::new(),
            executed: Vec::new(),
            stopped: Vec::new(),
            held: VecDeque::new(),
            hold: false,
            tickets: 1,
            unsynced: Vec::new(),
            hold_disk: false,
            refused: Vec::new(),
            applied: BTreeSet::new(),
        };
        house.server.connected(house.peer()).unwrap();
        house.settle();
        let resources = Resources { cpu_millicores: 100, memory_bytes: 1, disk_bytes: 0 };
        let defaults = TaskDefaults { resources, timeout_ms: 1_000, output_limit_bytes: 1_000, priority: 1 };
        let tenants = vec![TenantRecord { name: "default".to_owned(), defaults }];
        house.propose(Command::Bootstrap(Bootstrap { cluster: Digest::of(b"c"), wall_ms: 1, tenants }));
        house.elapse(2_000);
        assert_eq!(house.presence(), Presence::Present);
        house
    }

    fn peer(&self) -> Peer {
        Peer::Worker(key().verifying_key().id())
    }

    fn presence(&self) -> Presence {
        self.server.state().workers()[&WORKER].presence
    }

    fn propose(&mut self, command: Command) -> Ticket {
        let ticket = Ticket(self.tickets);
        self.server.propose(ticket, command);
        self.tickets += 1;
        self.settle();
        ticket
    }

    fn submit(&mut self, count: u32) -> Ticket {
        self.submit_of(count, 100)
    }

    fn submit_of(&mut self, count: u32, cpu_millicores: u64) -> Ticket {
        let spec = TaskSpec {
            name: String::new(),
            executor: ExecutorKind::Process,
            command: vec!["true".to_owned()],
            environment: Vec::new(),
            stdin: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            resources: Resources { cpu_millicores, memory_bytes: 1, disk_bytes: 0 },
            priority: 1,
            devices: Vec::new(),
            constraints: Default::default(),
            retries: Retries::default(),
            timeout_ms: 60_000,
            output_limit_bytes: 1_000,
        };
        self.propose(Command::Submit(Submit {
            tenant: TenantId(1),
            submitter: String::new(),
            name: String::new(),
            labels: Vec::new(),
            key: None,
            groups: vec![GroupSubmission { spec, count }],
            flow: Default::default(),
            wall_ms: 1,
        }))
    }

    /// Lets both clocks run, in steps of 50 ms.
    fn elapse(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.server.elapse(50).unwrap();
            self.agent.elapse(50_000);
            if self.agent.is_down() && self.up {
                self.agent.announce();
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            self.server.flush().unwrap();
            for output in self.server.outputs().unwrap() {
                moved = true;
                match output {
                    ServerOutput::Replica(Output::Persist(batch)) => self.unsynced.push(batch.number),
                    ServerOutput::Replica(Output::Applied { ticket: Some(ticket), .. }) => {
                        assert!(self.applied.insert(ticket));
                    }
                    ServerOutput::Refused(ticket, error) => self.refused.push((ticket, error)),
                    ServerOutput::ToWorker { message, .. } if self.up => self.deliver(message),
                    _ => {}
                }
            }
            while let Some(parcel) = self.server.take(self.peer()) {
                moved = true;
                self.server.sent(self.peer(), parcel.number);
                match parcel.message {
                    PeerMessage::Worker(message) if self.up => self.deliver(message),
                    PeerMessage::Worker(_) => {}
                    PeerMessage::Server(_) => panic!("there is no other server"),
                }
            }
            if !self.hold_disk {
                for number in core::mem::take(&mut self.unsynced) {
                    moved = true;
                    self.server.replica_mut().persisted(number).unwrap();
                }
            }
            self.agent.settle().unwrap();
            let outputs: Vec<AgentOutput> = self.agent.outputs().collect();
            for output in outputs {
                moved = true;
                self.serve(output);
            }
            if !moved {
                return;
            }
        }
    }

    fn deliver(&mut self, message: ToWorker) {
        if self.swallow > 0 && !matches!(message.message, WorkerMessage::Heard(_)) {
            self.swallow -= 1;
        } else if self.hold {
            self.held.push_back(message);
        } else {
            self.agent.receive(message, 1);
        }
    }

    fn serve(&mut self, output: AgentOutput) {
        match output {
            AgentOutput::Send(FromWorker::Revoked(_)) if self.lose_returns => {}
            AgentOutput::Send(message) if self.up => {
                self.server.from_worker(&key().verifying_key(), message);
            }
            AgentOutput::Execute(start) => {
                self.executed.push(start.attempt);
                self.running.insert(start.attempt);
                self.agent.started(start.attempt);
            }
            AgentOutput::Stop(attempt, reason) => {
                let outcome = match reason {
                    StopReason::Cancelled => Outcome::Cancelled,
                    StopReason::Infrastructure => Outcome::Infrastructure,
                };
                self.stopped.push(attempt);
                self.finish(attempt, outcome);
            }
            AgentOutput::Persist(_) => self.agent.persisted(),
            AgentOutput::Adopt(start) => drop(self.running.insert(start.attempt)),
            AgentOutput::Send(_) | AgentOutput::ChangeTimeout(..) | AgentOutput::Release(_) => {}
        }
    }

    fn finish(&mut self, attempt: AttemptId, outcome: Outcome) {
        self.running.remove(&attempt);
        let result = AttemptResult {
            outcome,
            sandbox: SandboxLevel::PidNamespace,
            usage_source: UsageSource::None,
            stdout: Content::EMPTY,
            stderr: Content::EMPTY,
            files: Vec::new(),
            message: String::new(),
        };
        let usage = Usage { started_at_ms: 1, duration_us: 1, cpu_time_us: 1, peak_memory_bytes: 1 };
        self.agent.finished(attempt, result, usage);
    }

    fn finish_all(&mut self) {
        for attempt in self.running.clone() {
            self.finish(attempt, Outcome::Exited(0));
        }
        self.settle();
    }
}

#[test]
fn a_worker_that_is_heard_keeps_its_lease_and_is_never_suspected() {
    let mut house = House::new();
    house.submit(2);
    for _ in 0..600 {
        house.elapse(50);
        assert!(!house.server.state().workers()[&WORKER].is_suspect());
        assert!(house.agent.has_lease());
    }
    assert!(house.stopped.is_empty());
    assert_eq!(house.running.len(), 2);
}

#[test]
fn a_silent_worker_is_suspected_then_lost_and_its_lease_ended_before_that() {
    let mut house = House::new();
    house.submit(2);
    house.elapse(200);
    house.up = false;
    let (mut suspected_ms, mut ended_ms) = (None, None);
    let mut silent_ms = 0;
    while house.presence() != Presence::Lost {
        house.elapse(50);
        silent_ms += 50;
        if house.server.state().workers()[&WORKER].is_suspect() && suspected_ms.is_none() {
            suspected_ms = Some(silent_ms);
        }
        if !house.agent.has_lease() && ended_ms.is_none() {
            ended_ms = Some(silent_ms);
        }
        assert!(silent_ms <= LOST_AFTER_MS + 500, "it should be lost by now");
    }
    assert!(suspected_ms.unwrap() < silent_ms, "suspicion comes first");
    assert!(ended_ms.unwrap() <= silent_ms, "the worker stopped before it was given up");
    assert!(house.running.is_empty(), "nothing runs without a lease");

    // When: it is heard of again, it runs the tasks anew once its quarantine is over, under a new epoch.
    house.up = true;
    house.elapse(1_500);
    assert_eq!(house.presence(), Presence::Present);
    assert!(house.running.is_empty());
    house.elapse(30_000);
    assert_eq!(house.running.len(), 2);
    assert!(house.running.iter().all(|attempt| attempt.epoch.0 == 2));
    house.finish_all();
    house.elapse(100);
    assert!(house.server.state().jobs().is_empty(), "the job has ended");
}

#[test]
fn a_message_that_does_not_arrive_is_made_good_by_a_new_announcement() {
    let mut house = House::new();
    house.swallow = 1;
    house.submit(1);
    assert!(house.running.is_empty(), "the assignment was lost");
    house.elapse(1_000);
    assert_eq!(house.running.len(), 1);
    assert_eq!(house.executed[0].epoch.0, 1, "it is the same attempt, sent again");
    assert_eq!(house.executed.len(), 1);
}

#[test]
fn an_answer_to_a_report_that_does_not_arrive_costs_nothing_but_time() {
    let mut house = House::new();
    house.submit(1);
    house.elapse(100);
    house.swallow = 1;
    house.finish_all();
    house.elapse(1_500);
    assert!(house.server.state().jobs().is_empty());
    assert!(house.agent.is_idle());
    assert_eq!(house.executed.len(), 1);
    assert_eq!(house.server.state().meta().refused_results, 0);
}

#[test]
fn what_was_given_back_is_asked_for_until_the_cluster_knows_also_when_nobody_else_wants_it() {
    // Given: a worker that holds more than it can run, and another one that idles.
    let mut house = House::new();
    house.submit_of(6, 1_000);
    house.elapse(100);
    assert_eq!((house.agent.held(), house.running.len()), (6, 2));
    house.lose_returns = true;
    let other = SigningKey::from_seed([4; 32]).verifying_key().id();
    house.propose(Command::RegisterWorker(RegisterWorker {
        node: other,
        name: "other".to_owned(),
        incarnation: 1,
        session: 1,
        capacity: Resources { cpu_millicores: 2_000, memory_bytes: 1 << 30, disk_bytes: 0 },
        slots: 4,
        sandbox: SandboxLevel::PidNamespace,
        labels: Vec::new(),
        devices: Vec::new(),
        certificate: Digest::of(b"certificate"),
        holding: Vec::new(),
    }));
    house.elapse(200);
    let given_back = 6 - house.agent.held();
    assert!(given_back > 0, "it was asked");

    // When: the other one is gone before the answer arrives, so that nobody idles.
    house.propose(Command::LoseWorker(LoseWorker { worker: WorkerId(2), incarnation: 1, session: 1 }));
    house.lose_returns = false;
    house.elapse(3_000);

    // Then: the cluster learns that they are free, and gives them out again.
    let live = house.server.state().live();
    let again = live.iter().filter(|(_, live)| live.epoch.0 == 2).count();
    assert_eq!((house.agent.held(), again), (6, given_back));
    for _ in 0..6 {
        house.finish_all();
        house.elapse(100);
    }
    assert!(house.server.state().jobs().is_empty());
    assert_eq!(house.executed.len(), 6, "none ran twice");
}

#[test]
fn what_was_said_in_an_earlier_session_is_passed_over() {
    let mut house = House::new();
    house.hold = true;
    house.submit(1);
    house.hold = false;
    house.agent.unavailable();
    house.elapse(100);
    assert_eq!(house.executed.len(), 1, "the new session brought it");
    for late in house.held.drain(..).collect::<Vec<_>>() {
        house.agent.receive(late, 1);
    }
    house.elapse(2_000);
    assert_eq!(house.executed.len(), 1);
    assert!(house.agent.has_lease());
}

#[test]
fn a_leader_that_was_paused_takes_nobody_for_lost() {
    let mut house = House::new();
    house.submit(1);
    house.elapse(200);
    // Given: the server's process stands still for a minute; the worker's heartbeats wait in its queue.
    house.server.elapse(60_000).unwrap();
    house.settle();
    house.elapse(500);
    assert_eq!(house.presence(), Presence::Present);
    assert_eq!(house.running.len(), 1);
}

#[test]
fn a_worker_that_was_paused_past_its_lease_stops_what_runs_at_once() {
    let mut house = House::new();
    house.submit(1);
    house.elapse(200);
    house.agent.elapse(10_000_000);
    house.settle();
    assert_eq!(house.stopped.len(), 1);
    house.elapse(2_000);
    assert_eq!(house.running.len(), 1, "it runs again under a new lease");
}

#[test]
fn a_node_speaks_for_itself_only() {
    let mut house = House::new();
    let foreign = SigningKey::from_seed([7; 32]).verifying_key();
    let row = house.server.state().workers()[&WORKER].clone();
    let heartbeat = grey_core::Heartbeat {
        worker: WORKER,
        incarnation: row.incarnation,
        session: row.session,
        number: 9,
    };
    house.submit_of(6, 1_000);
    house.elapse(100);
    let held: Vec<AttemptId> = house
        .server
        .state()
        .live()
        .iter()
        .map(|(task, live)| AttemptId { task: *task, epoch: live.epoch })
        .collect();
    let taken = Revoked { worker: WORKER, incarnation: row.incarnation, attempts: held };
    house.server.from_worker(&foreign, FromWorker::Revoked(taken));
    house.elapse(100);
    assert!(
        house.server.state().live().values().all(|live| live.epoch.0 == 1),
        "a stranger gives nothing back"
    );
    house.up = false;
    for _ in 0..LOST_AFTER_MS / 50 + 10 {
        house.server.from_worker(&foreign, FromWorker::Heartbeat(heartbeat));
        house.elapse(50);
    }
    assert_eq!(house.presence(), Presence::Lost, "a stranger's heartbeats keep nobody alive");
}

/// A door with little shared room, and links.
fn small() -> ServerOptions {
    let capacity = CapacityOptions {
        heartbeats: Amount { count: 4, bytes: 1 << 20 },
        endings: Amount { count: 8, bytes: 1 << 20 },
        shared: Amount { count: 20, bytes: 1 << 20 },
    };
    ServerOptions {
        watch: Some(WatchOptions::default()),
        door: DoorOptions {
            gate: GateOptions { capacity, ..GateOptions::default() },
            ..DoorOptions::default()
        },
        links: Some(LinkOptions::default()),
    }
}

#[test]
fn with_everything_else_refused_heartbeats_completions_and_cancels_go_through() {
    let mut house = House::with(small());
    house.submit(2);
    house.elapse(200);
    assert_eq!(house.running.len(), 2);
    let long = house.submit(1);
    house.elapse(100);
    let job = *house.server.state().jobs().keys().next_back().unwrap();
    assert!(house.applied.contains(&long));
    // Given: a disk that stands still, and a flood that has filled the room for proposals.
    house.hold_disk = true;
    let flood: Vec<Ticket> = (0..60).map(|_| house.submit(1)).collect();
    assert_eq!(house.refused.len(), 40);
    for (_, error) in &house.refused {
        let ReplicaError::Door(refused) = error else { panic!("{error}") };
        assert_eq!((refused.refusal.code, refused.refusal.limit), (RefusalCode::Proposals, 20));
        assert_eq!((refused.refusal.usage, refused.level), (20, Level::Blocked));
        assert!(refused.refusal.retry_after_ms.is_some());
    }
    // Then: the worker's signs of life are heard for longer than its lease is.
    house.elapse(10_000);
    assert!(house.agent.has_lease(), "load is not death");
    assert!(!house.server.state().workers()[&WORKER].is_suspect());
    // When: a cancel comes, and what runs ends.
    let cancel =
        house.propose(Command::Cancel(Cancel { tenant: TenantId(1), target: Target::Job(job), wall_ms: 1 }));
    let ended: Vec<AttemptId> = house.running.iter().copied().take(2).collect();
    ended.into_iter().for_each(|attempt| house.finish(attempt, Outcome::Exited(0)));
    house.elapse(500);
    assert_eq!(house.refused.len(), 40, "the cancel was let in");
    assert_eq!(house.server.under_way(), 22, "and so was the report of what ended");
    // Then: all that was accepted is done as soon as the disk goes on, and the door is open again.
    house.hold_disk = false;
    house.elapse(200);
    assert!(house.applied.contains(&cancel));
    assert!(flood[..20].iter().all(|ticket| house.applied.contains(ticket)));
    assert!(!house.server.state().jobs().contains_key(&job), "it was cancelled and has stopped");
    house.elapse(3_000);
    assert_eq!(house.server.level(), Level::Normal);
    let last = house.submit(1);
    assert!(house.applied.contains(&last));
    assert_eq!(house.server.under_way(), 0);
}

#[test]
fn a_worker_of_which_a_message_was_dropped_announces_itself_and_gets_what_it_lacks() {
    let mut house = House::with(small());
    house.up = false;
    house.server.disconnected(house.peer());
    house.submit(1);
    assert!(house.running.is_empty());
    house.up = true;
    house.server.connected(house.peer()).unwrap();
    house.elapse(1_500);
    assert_eq!(house.running.len(), 1, "the session that was cut is over, and the next one brings it");
    assert_eq!(house.executed.len(), 1);
}

#[test]
fn a_worker_that_fails_what_it_is_given_goes_into_quarantine_and_shows_itself_on_probation() {
    let mut house = House::new();
    house.submit(1_000);
    let fail_all = |house: &mut House, outcome: Outcome| {
        for attempt in house.running.clone() {
            house.finish(attempt, outcome);
        }
        house.settle();
        house.elapse(50);
    };
    let standing = |house: &House| house.server.state().workers()[&WORKER].quarantine.standing;
    // Given: attempts that fail by themselves say nothing about the worker.
    for _ in 0..5 {
        fail_all(&mut house, Outcome::Exited(1));
    }
    assert_eq!(standing(&house), Standing::Active);
    // When: it cannot run what it is given.
    let mut rounds = 0;
    while standing(&house) == Standing::Active {
        fail_all(&mut house, Outcome::Infrastructure);
        rounds += 1;
        assert!(rounds < 20, "it should be in quarantine by now");
    }
    assert!(rounds > 1, "one failure is no pattern");
    fail_all(&mut house, Outcome::Infrastructure);
    let executed = house.executed.len();
    house.elapse(25_000);
    assert!(matches!(standing(&house), Standing::Quarantined { .. }));
    assert_eq!(house.executed.len(), executed, "it gets nothing meanwhile");
    assert_eq!(house.server.state().workers()[&WORKER].quarantine.times, 1, "one opening, one quarantine");
    // Then: on probation it fails again, and is away for longer; then it does well.
    house.elapse(6_000);
    assert!(matches!(standing(&house), Standing::Probation { .. }));
    fail_all(&mut house, Outcome::Infrastructure);
    house.elapse(200);
    assert!(matches!(standing(&house), Standing::Quarantined { .. }));
    assert_eq!(house.server.state().workers()[&WORKER].quarantine.times, 2);
    house.elapse(61_000);
    for _ in 0..20 {
        fail_all(&mut house, Outcome::Exited(0));
    }
    assert_eq!(standing(&house), Standing::Active);
}
