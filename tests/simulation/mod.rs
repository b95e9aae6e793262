//! A cluster of one server and several workers under virtual time: the real core, replica, store and agents; only the
//! clock, the executors and the links are the test's.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use grey_agent::{Agent, AgentOptions, Output as AgentOutput, Start, StopReason};
use grey_core::{
    Answer, AttemptId, AttemptResult, Bootstrap, Command, Content, Counts, Effect, EventKind, ExecutorKind,
    GroupSubmission, HistoryRecord, JobId, JobRecord, Outcome, Phase, Rejection, ReportRecord, Resources,
    Retries, SandboxLevel, Signer, State, Submit, TaskDefaults, TaskId, TaskSpec, TenantId, TenantRecord,
    Tier, Usage, UsageSource,
};
use grey_proof::{Certificate, Digest, Envelope, LogTree, Role, RootClass, RootFile, SigningKey};
use grey_replica::{Options, Output, PersistBatch, Replica, Server, ServerOutput, Ticket};
use grey_store::{Folder, Storage, StorageOptions};

/// One step of virtual time, in milliseconds.
const STEP_MS: u64 = 5;
/// The wall clock at the beginning.
pub const WALL_MS: u64 = 1_795_512_600_000;
/// The tenant of every task here.
pub const TENANT: TenantId = TenantId(1);

/// How long an attempt runs and what it comes to.
pub type Behaviour = Box<dyn FnMut(&Start) -> (u64, Outcome)>;

struct Running {
    begun_ms: u64,
    ends_ms: u64,
    outcome: Outcome,
    timeout_ms: u64,
    resources: Resources,
}

impl Running {
    /// When it ends, by itself or by its time-out.
    fn end_ms(&self) -> u64 {
        self.ends_ms.min(self.begun_ms + self.timeout_ms)
    }
}

/// One worker.
pub struct SimulatedWorker {
    agent: Agent,
    pub capacity: Resources,
    running: BTreeMap<AttemptId, Running>,
    /// Attempts in the order in which they were started.
    pub started: Vec<(u64, AttemptId)>,
    key: SigningKey,
    pub certificate: Envelope,
}

/// The cluster.
pub struct Simulation {
    pub now_ms: u64,
    server: Server,
    storage: Storage,
    _directory: tempfile::TempDir,
    /// Batches that are written when this is false.
    pub hold_disk: bool,
    unwritten: VecDeque<PersistBatch>,
    pub workers: Vec<SimulatedWorker>,
    answers: BTreeMap<u64, Result<Answer, Rejection>>,
    next_ticket: u64,
    behaviour: Behaviour,
    pub events: Vec<(u64, JobId, EventKind)>,
    pub reports: Vec<ReportRecord>,
    pub attempts: BTreeMap<AttemptId, (u64, u32)>,
    pub tree_hashes: Vec<Digest>,
    pub ended: BTreeMap<JobId, JobRecord>,
    pub root: RootFile,
    root_key: SigningKey,
    pub server_key: SigningKey,
    pub server_certificate: Envelope,
}

fn certify(root: &SigningKey, key: &SigningKey, role: Role, serial: u64) -> Envelope {
    let certificate = Certificate {
        cluster: root.verifying_key().id(),
        node_id: key.verifying_key().id(),
        role,
        public_key: key.verifying_key(),
        tier: Tier::Software.name().to_owned(),
        serial,
        not_before_ms: WALL_MS - 1_000,
        not_after_ms: WALL_MS + 1_000_000_000,
    };
    certificate.sign(root).unwrap()
}

/// A task that asks for so many thousandths of a core.
pub fn task(cpu_millicores: u64) -> TaskSpec {
    TaskSpec {
        name: String::new(),
        executor: ExecutorKind::Process,
        command: vec!["true".to_owned()],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpu_millicores, memory_bytes: 1 << 20, disk_bytes: 0 },
        priority: 100,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    }
}

/// A submission of groups of equal tasks.
pub fn submission(groups: Vec<(TaskSpec, u32)>) -> Command {
    Command::Submit(Submit {
        tenant: TENANT,
        submitter: "tester".to_owned(),
        name: String::new(),
        labels: Vec::new(),
        key: None,
        groups: groups.into_iter().map(|(spec, count)| GroupSubmission { spec, count }).collect(),
        flow: Default::default(),
        wall_ms: WALL_MS,
    })
}

/// What an attempt of an outcome leaves.
pub fn result(outcome: Outcome) -> AttemptResult {
    AttemptResult {
        outcome,
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(b"done\n".to_vec()),
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    }
}

impl Simulation {
    /// A founded cluster without workers. Every attempt runs for 50 ms and succeeds.
    pub fn new() -> Simulation {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Folder::open(directory.path()).unwrap());
        let (storage, mut recovered) = Storage::open(disk, &StorageOptions::default()).unwrap();
        recovered.membership.voters = vec![1];
        let options = Options {
            id: 1,
            seed: 7,
            checkpoint_bytes: u64::MAX,
            version: grey_core::NodeVersion::newest("test"),
        };
        let replica = Replica::new(&options, recovered, Box::new(storage.log.reader())).unwrap();
        let root_key = SigningKey::from_seed([1; 32]);
        let server_key = SigningKey::from_seed([2; 32]);
        let mut simulation = Simulation {
            now_ms: 0,
            server: Server::new(replica, None),
            storage,
            _directory: directory,
            hold_disk: false,
            unwritten: VecDeque::new(),
            workers: Vec::new(),
            answers: BTreeMap::new(),
            next_ticket: 1,
            behaviour: Box::new(|_| (50, Outcome::Exited(0))),
            events: Vec::new(),
            reports: Vec::new(),
            attempts: BTreeMap::new(),
            tree_hashes: Vec::new(),
            ended: BTreeMap::new(),
            root: RootFile::new(RootClass::Lab, &root_key.verifying_key(), 1),
            server_certificate: certify(&root_key, &server_key, Role::Server, 1),
            root_key,
            server_key,
        };
        simulation.run_until("the only voter leads", |simulation| simulation.server.replica().leads());
        let tenants = vec![TenantRecord {
            name: "default".to_owned(),
            defaults: TaskDefaults {
                resources: Resources { cpu_millicores: 1_000, memory_bytes: 1 << 20, disk_bytes: 0 },
                timeout_ms: 60_000,
                output_limit_bytes: 1 << 20,
                priority: 100,
            },
        }];
        let cluster = simulation.root.cluster;
        simulation.propose(Command::Bootstrap(Bootstrap { cluster, wall_ms: WALL_MS, tenants })).unwrap();
        simulation
    }

    /// Sets how attempts behave from now on.
    pub fn behave(&mut self, behaviour: impl FnMut(&Start) -> (u64, Outcome) + 'static) {
        self.behaviour = Box::new(behaviour);
    }

    /// Adds a worker with so many thousandths of cores; returns its position.
    pub fn add_worker(&mut self, cpu_millicores: u64) -> usize {
        let number = self.workers.len();
        let key = || SigningKey::from_seed([10 + u8::try_from(number).unwrap(); 32]);
        let certificate = certify(&self.root_key, &key(), Role::Worker, 10 + number as u64);
        let certificate_id =
            Certificate::open(&certificate, [&self.root_key.verifying_key()]).unwrap().id().unwrap();
        let capacity = Resources { cpu_millicores, memory_bytes: 1 << 30, disk_bytes: 0 };
        let options = AgentOptions {
            signer: Signer {
                cluster: self.root.cluster,
                node: key().verifying_key().id(),
                certificate: certificate_id,
            },
            name: format!("worker-{number}"),
            incarnation: 1,
            capacity,
            sandbox: SandboxLevel::PidNamespace,
            labels: Vec::new(),
            devices: Vec::new(),
            parallel: 4,
            lease: None,
            salt_seed: [u8::try_from(number).unwrap(); 32],
        };
        self.workers.push(SimulatedWorker {
            agent: Agent::new(options, key(), [], &[]).unwrap(),
            capacity,
            running: BTreeMap::new(),
            started: Vec::new(),
            key: key(),
            certificate,
        });
        self.settle();
        number
    }

    pub fn state(&self) -> &State {
        self.server.state()
    }

    /// Proposes without waiting; the answer comes under this number.
    pub fn begin(&mut self, command: Command) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.server.propose(Ticket(ticket), command);
        self.settle();
        ticket
    }

    /// The answer to a proposal, once it is durable and applied.
    pub fn answer(&self, ticket: u64) -> Option<&Result<Answer, Rejection>> {
        self.answers.get(&ticket)
    }

    /// Proposes and returns what it came to.
    pub fn propose(&mut self, command: Command) -> Result<Answer, Rejection> {
        let ticket = self.begin(command);
        self.answers.remove(&ticket).expect("a disk that is not held answers at once")
    }

    /// Submits; returns the job and its first task.
    pub fn submit(&mut self, groups: Vec<(TaskSpec, u32)>) -> (JobId, TaskId) {
        match self.propose(submission(groups)) {
            Ok(Answer::Submitted { job, tasks, .. }) => (job, tasks.first),
            other => panic!("{other:?}"),
        }
    }

    /// The phase of a task that was assigned and has not ended.
    pub fn phase(&self, task: TaskId) -> Option<Phase> {
        self.state().live().get(&task).map(|live| live.phase)
    }

    /// Where the tasks of a job are.
    pub fn counts(&self, job: JobId) -> Counts {
        match self.state().jobs().get(&job) {
            Some(live) => live.counts,
            None => self.ended[&job].counts,
        }
    }

    /// What runs on a worker now, added up.
    pub fn in_use(&self, worker: usize) -> Resources {
        let running = self.workers[worker].running.values();
        running.fold(Resources::default(), |sum, one| sum.checked_add(&one.resources).unwrap())
    }

    /// Lets time pass, and checks the invariants after every step.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(STEP_MS) {
            self.step();
        }
    }

    pub fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Simulation) -> bool) {
        for _ in 0..60_000 / STEP_MS {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("in vain for a minute: {what}");
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        for worker in &mut self.workers {
            worker.agent.elapse(STEP_MS * 1_000);
            let done: Vec<AttemptId> =
                worker.running.iter().filter(|(_, one)| one.end_ms() <= now_ms).map(|(id, _)| *id).collect();
            for attempt in done {
                let one = worker.running.remove(&attempt).unwrap();
                let outcome = if one.ends_ms <= now_ms { one.outcome } else { Outcome::TimedOut };
                worker.agent.finished(attempt, result(outcome), usage(&one, now_ms));
            }
        }
        self.server.elapse(STEP_MS).unwrap();
        self.settle();
        self.state().check().unwrap();
        for number in 0..self.workers.len() {
            let fits = self.in_use(number).fits(&self.workers[number].capacity);
            assert!(fits, "worker {number} runs more than it has");
        }
    }

    /// Carries everything until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            self.server.flush().unwrap();
            for output in self.server.outputs().unwrap() {
                moved = true;
                match output {
                    ServerOutput::Replica(output) => self.take(output),
                    ServerOutput::ToWorker { node, message } => {
                        let at = |worker: &&mut SimulatedWorker| worker.key.verifying_key().id() == node;
                        self.workers.iter_mut().find(at).unwrap().agent.receive(message, WALL_MS);
                    }
                    ServerOutput::Refused(_, error) => panic!("{error}"),
                }
            }
            if !self.hold_disk {
                while let Some(batch) = self.unwritten.pop_front() {
                    moved = true;
                    self.storage.log.append(std::slice::from_ref(&batch)).unwrap();
                    self.server.replica_mut().persisted(batch.number).unwrap();
                }
            }
            for number in 0..self.workers.len() {
                moved |= self.serve(number);
            }
            if !moved {
                return;
            }
        }
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Persist(batch) => self.unwritten.push_back(batch),
            Output::Applied { ticket, applied, .. } => {
                for effect in applied.effects {
                    self.act_on(effect);
                }
                if let Some(ticket) = ticket {
                    self.answers.insert(ticket.0, applied.answer);
                }
            }
            Output::Unknown(_) | Output::Readable(_) | Output::Role { .. } | Output::Revoke { .. } => {}
            Output::Send { .. }
            | Output::Checkpoint(_)
            | Output::Reconfigured { .. }
            | Output::Installed { .. } => panic!("{output:?}"),
        }
    }

    fn act_on(&mut self, effect: Effect) {
        match effect {
            Effect::History(HistoryRecord::Report(report)) => self.reports.push(*report),
            Effect::History(HistoryRecord::Attempts { tasks, epoch, pointer }) => {
                for (task, leaf) in tasks.tasks().zip(pointer.leaf..) {
                    let attempt = AttemptId { task, epoch: grey_core::Epoch(epoch) };
                    let before = self.attempts.insert(attempt, (pointer.position, leaf));
                    assert!(before.is_none(), "{attempt:?} was accepted twice");
                }
            }
            Effect::History(HistoryRecord::Job(job, record)) => drop(self.ended.insert(job, *record)),
            Effect::History(HistoryRecord::Flow(..)) => {}
            Effect::LogGrew { hashes, .. } => self.tree_hashes.extend(hashes),
            Effect::Assign(_) | Effect::Stop { .. } | Effect::ChangeTimeout { .. } => {}
            Effect::Event(event) => self.events.push((self.now_ms, event.job, event.kind)),
        }
    }

    fn serve(&mut self, number: usize) -> bool {
        let worker = &mut self.workers[number];
        worker.agent.settle().unwrap();
        let outputs: Vec<AgentOutput> = worker.agent.outputs().collect();
        let moved = !outputs.is_empty();
        for output in outputs {
            self.serve_one(number, output);
        }
        moved
    }

    fn serve_one(&mut self, number: usize, output: AgentOutput) {
        let now_ms = self.now_ms;
        match output {
            AgentOutput::Send(message) => {
                let key = self.workers[number].key.verifying_key();
                self.server.from_worker(&key, message);
            }
            AgentOutput::Execute(start) => {
                let (duration_ms, outcome) = (self.behaviour)(&start);
                let worker = &mut self.workers[number];
                worker.started.push((now_ms, start.attempt));
                let resources = start.spec.resources;
                let (begun_ms, ends_ms, timeout_ms) = (now_ms, now_ms + duration_ms, start.timeout_ms);
                let running = Running { begun_ms, ends_ms, outcome, timeout_ms, resources };
                worker.running.insert(start.attempt, running);
                worker.agent.started(start.attempt);
            }
            AgentOutput::Stop(attempt, reason) => {
                let worker = &mut self.workers[number];
                let Some(one) = worker.running.remove(&attempt) else { return };
                let outcome = match reason {
                    StopReason::Cancelled => Outcome::Cancelled,
                    StopReason::Infrastructure => Outcome::Infrastructure,
                };
                worker.agent.finished(attempt, result(outcome), usage(&one, now_ms));
            }
            AgentOutput::ChangeTimeout(attempt, timeout_ms) => {
                if let Some(one) = self.workers[number].running.get_mut(&attempt) {
                    one.timeout_ms = timeout_ms;
                }
            }
            AgentOutput::Persist(_) => self.workers[number].agent.persisted(),
            // No worker here outlives another.
            AgentOutput::Adopt(_) | AgentOutput::Release(_) => {}
        }
    }

    /// The cluster's log as it is now.
    pub fn log(&self) -> &LogTree {
        &self.state().meta().log
    }
}

fn usage(one: &Running, now_ms: u64) -> Usage {
    Usage {
        started_at_ms: WALL_MS + one.begun_ms,
        duration_us: (now_ms - one.begun_ms) * 1_000,
        cpu_time_us: (now_ms - one.begun_ms) * 900,
        peak_memory_bytes: 4_096,
    }
}
