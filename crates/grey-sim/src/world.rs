//! The cluster and its time: nodes, links, the events to come, and what happens at each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use grey_core::{Answer, Applied, AttemptId, Effect, EventKind, JobId, Outcome, Phase, Resources, State};
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{ServerOptions, WatchOptions};

use crate::checkers::{Broken, Checkers};
use crate::disk::SimulatedDisk;
use crate::fact::{Fact, Placed};
use crate::faults::{Counters, Fault};
use crate::ledger::Ledger;
use crate::load::Load;
use crate::message::Packet;
use crate::network::{Network, NodeIndex, Traffic};
use crate::operator::Operator;
use crate::orders::Orders;
use crate::queue::Queue;
use crate::random::Streams;
use crate::server::{self, Server};
use crate::swarm::Plan;
use crate::trace::Trace;
use crate::upgrade::Upgrade;
use crate::worker::{self, Identity, Worker};
use crate::workload::{Client, bootstrap};

/// How often a server looks at its clock, in microseconds.
const TICK_US: u64 = 50_000;
/// The client that only reads.
const READER: usize = 6;
/// Messages that come within so many milliseconds are handled in one turn.
const TURN_MS: u64 = 8;

/// What runs on a node.
pub enum Process {
    /// Nothing now.
    Down,
    /// A server.
    Server(Box<Server>),
    /// A worker.
    Worker(Box<Worker>),
    /// A client.
    Client(Box<Client>),
    /// A client that submits at a rate, whatever becomes of what it submitted before.
    Load(Box<Load>),
}

/// A monotonic clock that is not quite right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// By how many millionths it is fast.
    pub drift_ppm: i64,
    /// When it was zero.
    pub started_us: u64,
}

impl Clock {
    fn rate(self) -> u64 {
        1_000_000u64.saturating_add_signed(self.drift_ppm)
    }

    /// What it shows.
    pub fn local_us(self, now_us: u64) -> u64 {
        (u128::from(now_us.saturating_sub(self.started_us)) * u128::from(self.rate()) / 1_000_000) as u64
    }

    /// When it will show that at the earliest.
    pub fn real_us(self, local_us: u64) -> u64 {
        self.started_us + (u128::from(local_us) * 1_000_000 / u128::from(self.rate())) as u64 + 1
    }
}

/// A node with what belongs to it whether it is up or not.
pub struct Node {
    pub process: Process,
    /// One more at every start and end of its process; what was meant for another one is dropped.
    pub life: u32,
    pub disk: SimulatedDisk,
    pub clock: Clock,
    pub paused_until_us: u64,
    /// Until when it is slow, and how long it takes over everything then.
    pub slow: (u64, u64),
    pub late_until_us: u64,
    pub slow_disk_until_us: u64,
    /// What each entry adds to the time that a sync takes.
    pub entry_us: u64,
    /// The power goes in the middle of the next write; whether it tears.
    pub doomed: Option<bool>,
    /// Its storage is gone or not to be trusted.
    pub lost: bool,
    /// It is not started again.
    pub stays_down: bool,
    /// A write of it is to land elsewhere, or has.
    pub at_risk: bool,
    pub wall_offset_ms: u64,
    busy_until_us: u64,
    inbox: VecDeque<Input>,
    last_ms: u64,
}

impl Node {
    pub fn new(clock: Clock) -> Node {
        Node {
            process: Process::Down,
            life: 0,
            disk: SimulatedDisk::default(),
            clock,
            paused_until_us: 0,
            slow: (0, 0),
            late_until_us: 0,
            slow_disk_until_us: 0,
            entry_us: 0,
            doomed: None,
            lost: false,
            stays_down: false,
            at_risk: false,
            wall_offset_ms: 0,
            busy_until_us: 0,
            inbox: VecDeque::new(),
            last_ms: 0,
        }
    }

    pub fn server(&self) -> Option<&Server> {
        match &self.process {
            Process::Server(server) => Some(server),
            _ => None,
        }
    }

    /// A process begins or ends.
    pub fn begin_life(&mut self, now_us: u64, process: Process) {
        self.life += 1;
        self.process = process;
        self.clock.started_us = now_us;
        self.last_ms = 0;
        self.inbox.clear();
        (self.paused_until_us, self.busy_until_us) = (0, 0);
        self.doomed = None;
    }
}

/// What a process is given.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most inputs are packets: a box each would cost more")]
pub enum Input {
    Packet(NodeIndex, Box<Packet>),
    Timer,
    LogDone,
    SideDone,
    JournalDone,
    /// A client asks again.
    Again(u64),
    /// A client has waited long enough.
    TimeOut(u64),
    /// A client begins its next operation.
    Next,
}

/// What happens at a time.
#[derive(Debug)]
pub enum Event {
    /// A message arrives.
    Arrive { from: NodeIndex, to: NodeIndex, packet: Box<Packet> },
    /// Something that a process of that life waits for.
    Input { node: NodeIndex, life: u32, input: Input },
    /// A paused or busy node goes on.
    Resume { node: NodeIndex },
    /// A fault of the plan.
    Blow(usize),
    /// The power of a node goes.
    PowerCut { node: NodeIndex, life: u32, torn: bool },
    /// A node is looked at after it was told to misdirect a write.
    Misdirected { node: NodeIndex },
    /// A disk has room again.
    Room { node: NodeIndex },
    /// A node starts.
    Start { node: NodeIndex },
    /// Something of what goes on without its worker ends.
    Outlived { node: NodeIndex, life: u32 },
    /// The storm is over.
    Heal,
    /// Whether the cluster has recovered.
    Look,
}

/// Everything.
pub struct World {
    pub now_us: u64,
    pub queue: Queue<Event>,
    pub nodes: Vec<Node>,
    pub servers: usize,
    /// The first so many servers vote from the beginning; the others are let in.
    pub founders: usize,
    pub workers: usize,
    /// Who replaces servers, where that is done.
    pub operator: Option<Operator>,
    /// What an operator wants of tenants and workers.
    pub orders: Orders,
    pub upgrade: Upgrade,
    /// Jobs that clients know to be accepted, for those who look at anybody's.
    pub published: Vec<JobId>,
    /// How often the storm went on since a class of fault had yet to fire.
    pub extensions: u32,
    pub identities: Vec<Identity>,
    pub network: Network,
    pub chance: Streams,
    pub plan: Plan,
    /// How servers behave towards clients, workers and other servers.
    pub behaviour: ServerOptions,
    pub counters: Counters,
    pub trace: Trace,
    pub checkers: Checkers,
    /// What was decided, where it is kept.
    pub ledger: Ledger,
    pub keeps_ledger: bool,
    pub cluster: Digest,
    pub keys: Arc<BTreeMap<NodeIndex, VerifyingKey>>,
    pub by_node: Arc<BTreeMap<Digest, NodeIndex>>,
    pub broken: Option<Broken>,
    pub calm: bool,
    pub healed_us: u64,
    pub finished: bool,
    pub skipped_operations: BTreeSet<(usize, u64)>,
    pub skipped_blows: BTreeSet<u64>,
    pub seed: u64,
    pub operations: u64,
    pub begun: BTreeSet<(usize, u64)>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
    highest_applied: u64,
    founded_term: u64,
}

impl World {
    /// A world without anything that happens yet.
    pub fn new(seed: u64, servers: usize, workers: usize, clients: usize, plan: Plan, trace: Trace) -> World {
        let mut chance = Streams::new(seed);
        let cluster = Digest::of(b"a simulated cluster");
        let mut identities = Vec::new();
        for number in 0..workers {
            let capacity = Resources {
                cpu_millicores: 1_000 * chance.process.between(2, 8),
                memory_bytes: 1 << 30,
                disk_bytes: 0,
            };
            let parallel = u32::try_from(chance.process.between(1, 6)).unwrap_or(1);
            identities.push(Identity::new(
                u8::try_from(number).unwrap_or(u8::MAX),
                cluster,
                capacity,
                parallel,
            ));
        }
        let place = |number: usize| servers + number;
        let keys = identities.iter().enumerate().map(|(number, one)| (place(number), one.verifying_key));
        let by_node = identities.iter().enumerate().map(|(number, one)| (one.node, place(number)));
        let mut counters = Counters::default();
        let nodes = (0..servers + workers + clients).map(|number| {
            let drift = plan.drift_ppm.saturating_mul(2);
            let drift_ppm = chance.clock.below(drift + 1) as i64 - plan.drift_ppm as i64;
            if drift_ppm != 0 {
                counters.count(Fault::Drift);
            }
            let mut node = Node::new(Clock { drift_ppm, started_us: 0 });
            if plan.has(Fault::Skew) {
                node.wall_offset_ms = chance.clock.below(3_600_000);
                counters.count(Fault::Skew);
            }
            if let Some(client) = number.checked_sub(servers + workers) {
                node.process =
                    Process::Client(Box::new(Client::new(client, seed, servers as u64, client == READER)));
            }
            node
        });
        let nodes: Vec<Node> = nodes.collect();
        World {
            now_us: 0,
            queue: Queue::default(),
            network: Network::new(nodes.len(), plan.links),
            nodes,
            servers,
            founders: servers,
            workers,
            operator: None,
            orders: Orders::default(),
            upgrade: Upgrade::default(),
            published: Vec::new(),
            extensions: 0,
            keys: Arc::new(keys.collect()),
            by_node: Arc::new(by_node.collect()),
            identities,
            chance,
            plan,
            behaviour: ServerOptions { watch: Some(WatchOptions::default()), ..ServerOptions::default() },
            counters,
            trace,
            checkers: Checkers::new(),
            ledger: Ledger::default(),
            keeps_ledger: false,
            cluster,
            broken: None,
            calm: false,
            healed_us: 0,
            finished: false,
            skipped_operations: BTreeSet::new(),
            skipped_blows: BTreeSet::new(),
            seed,
            operations: 0,
            begun: BTreeSet::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
            highest_applied: 0,
            founded_term: 0,
        }
    }

    /// A node by its position; the positions are the world's own.
    pub fn node(&mut self, index: NodeIndex) -> Option<&mut Node> {
        self.nodes.get_mut(index)
    }

    /// The name of a node in a trace.
    pub fn name(&self, index: NodeIndex) -> String {
        match index.checked_sub(self.servers) {
            None => format!("server-{}", index + 1),
            Some(worker) if worker < self.workers => format!("worker-{worker}"),
            Some(client) => format!("client-{}", client - self.workers),
        }
    }

    /// Tells the checkers; what they find broken ends the run.
    pub fn tell(&mut self, fact: &Fact<'_>) {
        if self.keeps_ledger {
            self.ledger.note(self.now_us, fact);
        }
        if self.broken.is_none() {
            self.broken = self.checkers.observe(self.now_us, fact).err();
        }
    }

    /// Something is broken that needs no checker to see it.
    pub fn break_promise(&mut self, promise: &'static str, what: String) {
        if self.broken.is_none() {
            self.broken = Some(Broken { promise, what });
        }
    }

    /// Lets everything happen that is due, until it is over or something is broken.
    pub fn run(&mut self, end_us: u64) {
        while self.run_one(end_us) {}
    }

    /// Lets one thing happen that is due; whether there was one and nothing is over or broken.
    pub fn run_one(&mut self, end_us: u64) -> bool {
        if self.broken.is_some() || self.finished || self.queue.next_us().is_none_or(|at_us| at_us > end_us) {
            return false;
        }
        let Some((at_us, event)) = self.queue.pop() else { return false };
        self.now_us = at_us;
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, packet } => {
                self.trace.fold(&[self.now_us, 1, from as u64, to as u64, packet.bytes() as u64]);
                if self.trace.is_written() {
                    let (from, to) = (self.name(from), self.name(to));
                    self.trace.say(self.now_us, || format!("{from} > {to}: {}", packet.describe()));
                }
                self.give(to, None, Input::Packet(from, packet));
            }
            Event::Input { node, life, input } => {
                self.trace.fold(&[self.now_us, 2, node as u64, u64::from(life)]);
                self.give(node, Some(life), input);
            }
            Event::Resume { node } => self.resume(node),
            Event::Blow(number) => self.blow(number),
            Event::PowerCut { node, life, torn } => self.power_cut(node, life, torn),
            Event::Misdirected { node } => self.after_misdirection(node),
            Event::Room { node } => {
                if let Some(node) = self.node(node) {
                    node.disk.set_full(false);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Outlived { node, life } => self.outlived(node, life),
            Event::Heal => self.end_storm(),
            Event::Look => self.look(),
        }
    }

    /// Schedules something for a process of the present life of a node.
    pub fn later(&mut self, at_us: u64, node: NodeIndex, input: Input) {
        if let Some(life) = self.nodes.get(node).map(|node| node.life) {
            self.queue.push(at_us, Event::Input { node, life, input });
        }
    }

    /// Gives a process something, now or when it goes on.
    fn give(&mut self, index: NodeIndex, life: Option<u32>, input: Input) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        if matches!(node.process, Process::Down) || life.is_some_and(|life| life != node.life) {
            return;
        }
        let until_us = node.paused_until_us.max(node.busy_until_us);
        if until_us > now_us || !node.inbox.is_empty() {
            if node.inbox.is_empty() {
                self.queue.push(until_us.max(now_us), Event::Resume { node: index });
            }
            node.inbox.push_back(input);
            return;
        }
        self.step(index, input);
    }

    fn resume(&mut self, index: NodeIndex) {
        loop {
            let now_us = self.now_us;
            let Some(node) = self.nodes.get_mut(index) else { return };
            let until_us = node.paused_until_us.max(node.busy_until_us);
            if node.inbox.is_empty() {
                return;
            }
            if until_us > now_us {
                self.queue.push(until_us, Event::Resume { node: index });
                return;
            }
            let Some(input) = node.inbox.pop_front() else { return };
            self.step(index, input);
        }
    }

    /// A process handles one input.
    fn step(&mut self, index: NodeIndex, input: Input) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        if now_us < node.slow.0 {
            node.busy_until_us = now_us + node.slow.1;
        }
        match &mut node.process {
            Process::Down => {}
            Process::Server(_) => self.server_step(index, input),
            Process::Worker(_) => self.worker_step(index, input),
            Process::Client(_) => self.client_step(index, input),
            Process::Load(_) => self.load_step(index, input),
        }
    }

    fn server_step(&mut self, index: NodeIndex, input: Input) {
        let now_us = self.now_us;
        if self.plan.has(Fault::Links) && matches!(input, Input::Timer) {
            self.look_at_connections(index);
        }
        let Some(node) = self.nodes.get_mut(index) else { return };
        let local_ms = node.clock.local_us(now_us) / 1_000;
        let mut elapsed_ms = local_ms.saturating_sub(node.last_ms);
        // A server that handles several messages at once looks at its clock once.
        if elapsed_ms < TURN_MS && matches!(input, Input::Packet(..)) {
            elapsed_ms = 0;
        } else {
            node.last_ms = local_ms;
        }
        let greeting = match &input {
            Input::Packet(from, packet) if matches!(**packet, Packet::Engine(_)) && self.has_levels() => {
                Some((*from as u64 + 1, self.version(*from)))
            }
            _ => None,
        };
        let Some(node) = self.nodes.get_mut(index) else { return };
        let tick_at_us = node.clock.real_us(node.clock.local_us(now_us) + TICK_US);
        let late = now_us < node.late_until_us;
        let Process::Server(server) = &mut node.process else { return };
        if let Some((from, version)) = greeting {
            server.greeted(from, version);
        }
        let mut outcome = if elapsed_ms > 0 { server.elapse(elapsed_ms) } else { Ok(()) };
        if outcome.is_ok() {
            outcome = match input {
                Input::Packet(from, packet) => server.receive(from, *packet),
                Input::LogDone => server.log_done(),
                Input::SideDone => server.side_done(),
                Input::Timer => {
                    let mut at_us = tick_at_us;
                    if late {
                        self.counters.count(Fault::LateTick);
                        at_us += self.chance.clock.below(600_000);
                    }
                    self.later(at_us, index, Input::Timer);
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        if outcome.is_ok() {
            outcome = self.found(index);
        }
        self.carry_out_server(index);
        if let Err(ended) = outcome {
            self.server_ended(index, ended);
        }
    }

    /// Whoever leads first founds the cluster.
    fn found(&mut self, index: NodeIndex) -> Result<(), server::Ended> {
        let (cluster, founded_term) = (self.cluster, self.founded_term);
        let Some(server) = self.nodes.get(index).and_then(Node::server) else { return Ok(()) };
        let replica = server.replica();
        if replica.state().meta().cluster.is_none() && replica.leads() && replica.term() > founded_term {
            self.founded_term = replica.term();
            // Before there is any work, or it is too late for it.
            let enrolment = self.operator.is_some().then(|| self.enrolment());
            let commands = std::iter::once(bootstrap(cluster)).chain(enrolment).collect();
            return match self.nodes.get_mut(index).map(|node| &mut node.process) {
                Some(Process::Server(server)) => server.propose(commands),
                _ => Ok(()),
            };
        }
        self.operate(index)?;
        self.carry_out_orders(index)?;
        self.carry_out_upgrade(index)
    }

    fn carry_out_server(&mut self, index: NodeIndex) {
        let Some(Process::Server(server)) = self.nodes.get_mut(index).map(|node| &mut node.process) else {
            return;
        };
        for order in std::mem::take(&mut server.ordered) {
            match order {
                server::Ordered::Send { to, packet } => self.send(index, to, packet),
                server::Ordered::LogWork { entries } => {
                    let entry_us = self.nodes.get(index).map_or(0, |node| node.entry_us);
                    let at_us = self.now_us + self.sync_us(index) + entries * entry_us;
                    self.later(at_us, index, Input::LogDone);
                    self.maybe_doom(index, at_us);
                }
                server::Ordered::SideWork => {
                    let at_us = self.now_us + 2 * self.sync_us(index);
                    self.later(at_us, index, Input::SideDone);
                }
                server::Ordered::Applied { term, index: at, applied } => {
                    self.applied(index, term, at, &applied)
                }
                server::Ordered::Connected | server::Ordered::Disconnected => {
                    if self.plan.has(Fault::Links) {
                        self.counters.count(Fault::Links);
                    }
                }
                server::Ordered::Installed { index: at } => self.installed(index, at),
                server::Ordered::Role { leads, leader, term } => {
                    self.trace.fold(&[self.now_us, 3, index as u64, u64::from(leads), leader, term]);
                    let name = self.name(index);
                    self.trace.say(self.now_us, || {
                        let role = if leads { "leads".to_owned() } else { format!("follows {leader}") };
                        format!("{name} {role} in term {term}")
                    });
                    if leads {
                        self.tell(&Fact::Leads { server: index as u64 + 1, term });
                    }
                }
            }
        }
    }

    fn maybe_doom(&mut self, index: NodeIndex, done_us: u64) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        if let Some(torn) = node.doomed.take() {
            let life = node.life;
            let at_us = now_us + (done_us - now_us) / 2;
            self.queue.push(at_us, Event::PowerCut { node: index, life, torn });
        }
    }

    fn applied(&mut self, index: NodeIndex, term: u64, at: u64, applied: &Applied) {
        let first = at > self.highest_applied;
        self.highest_applied = self.highest_applied.max(at);
        let Some(server) = self.nodes.get(index).and_then(Node::server) else { return };
        let state = server.replica().state();
        let exact = state.applied_index() == at;
        let placed = if first && exact { placed(state, applied) } else { Vec::new() };
        let stopping = if first && exact { stopping(state, applied) } else { Vec::new() };
        let hash = if exact { state.hash().0 } else { [0; 32] };
        let [a, b, c, d, ..] = hash;
        let short = u64::from(u32::from_le_bytes([a, b, c, d]));
        self.trace.fold(&[self.now_us, 4, index as u64, term, at, short]);
        if self.trace.is_written() || (first && !matches!(applied.answer, Ok(grey_core::Answer::Done))) {
            let name = self.name(index);
            self.trace
                .say(self.now_us, || format!("{name} applies {at} of term {term}: {:?}", applied.answer));
        }
        if self.broken.is_none() {
            let server = index as u64 + 1;
            let placed = &placed;
            let fact =
                Fact::Applied { server, term, index: at, first, state, applied, placed, stopping: &stopping };
            if self.keeps_ledger {
                self.ledger.note(self.now_us, &fact);
            }
            self.broken = self.checkers.observe(self.now_us, &fact).err();
        }
    }

    /// How long a sync takes, in microseconds.
    fn sync_us(&mut self, index: NodeIndex) -> u64 {
        let (fast_us, slow_us) = self.plan.sync_us;
        let took_us = self.chance.disk.between(fast_us, slow_us);
        let slow = self.nodes.get(index).is_some_and(|node| self.now_us < node.slow_disk_until_us);
        if slow { took_us + self.chance.disk.between(20_000, 400_000) } else { took_us }
    }

    fn worker_step(&mut self, index: NodeIndex, input: Input) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        let local_us = node.clock.local_us(self.now_us);
        let Process::Worker(worker) = &mut node.process else { return };
        worker.elapse_to(local_us);
        let outcome = match input {
            Input::Packet(from, packet) => {
                if let Packet::ToWorker(told) = *packet {
                    worker.receive(from as u64 + 1, told);
                }
                Ok(())
            }
            Input::JournalDone => worker.journal_done(),
            _ => Ok(()),
        };
        let outcome = outcome.and_then(|()| worker.settle());
        let capacity = worker.capacity();
        let clock = node.clock;
        let orders = std::mem::take(&mut worker.ordered);
        if std::mem::take(&mut worker.adopted) > 0 {
            self.counters.count(Fault::WorkerRestart);
        }
        let identity = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        let Some(who) = identity.map(|identity| identity.node) else { return };
        for order in orders {
            match order {
                worker::Ordered::Send { server, message } => {
                    let to = usize::try_from(server.saturating_sub(1)).unwrap_or(usize::MAX);
                    self.send(index, to, Packet::FromWorker(message));
                }
                worker::Ordered::JournalWork => {
                    let at_us = self.now_us + self.sync_us(index);
                    self.later(at_us, index, Input::JournalDone);
                    self.maybe_doom(index, at_us);
                }
                worker::Ordered::WakeAt(local_us) => {
                    let at_us = clock.real_us(local_us).max(self.now_us + 1);
                    self.later(at_us, index, Input::Timer);
                }
                worker::Ordered::Started { attempt, needs } => {
                    self.trace.fold(&[
                        self.now_us,
                        5,
                        index as u64,
                        attempt.task.0,
                        u64::from(attempt.epoch.0),
                    ]);
                    if self.trace.is_written() {
                        let name = self.name(index);
                        let (task, epoch) = (attempt.task, attempt.epoch);
                        self.trace.say(self.now_us, || format!("{name} starts {task}/{epoch}"));
                    }
                    self.tell(&Fact::Started { worker: who, attempt, needs, capacity });
                }
                worker::Ordered::Stopped { attempt, outcome } => self.attempt_ended(index, attempt, outcome),
            }
        }
        if let Err(reason) = outcome {
            self.worker_ended(index, &reason);
        }
    }

    /// The process of an attempt is gone.
    pub fn attempt_ended(&mut self, index: NodeIndex, attempt: AttemptId, outcome: Option<Outcome>) {
        let (task, epoch) = (attempt.task, attempt.epoch);
        self.trace.fold(&[self.now_us, 6, index as u64, task.0, u64::from(epoch.0)]);
        if self.trace.is_written() {
            let name = self.name(index);
            self.trace.say(self.now_us, || format!("{name}: {task}/{epoch} is {outcome:?}"));
        }
        let worker = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        if let Some(worker) = worker.map(|identity| identity.node) {
            self.tell(&Fact::Stopped { worker, attempt, outcome });
        }
    }

    pub fn send(&mut self, from: NodeIndex, to: NodeIndex, packet: Packet) {
        if let Packet::ToWorker(told) = &packet
            && self.keeps_ledger
        {
            self.ledger.told(&told.message);
        }
        let traffic = match packet {
            Packet::Reply { .. } => Traffic::Answer,
            Packet::FromWorker(_) | Packet::ToWorker(_) => Traffic::Worker,
            Packet::Engine(_) | Packet::Request { .. } => Traffic::Plain,
        };
        let bytes = packet.bytes();
        let arrivals = self.network.send(
            self.now_us,
            (from, to),
            bytes,
            traffic,
            &mut self.chance.network,
            &mut self.counters,
        );
        let packet = Box::new(packet);
        if let [Some(first_us), second] = arrivals {
            if let Some(at_us) = second {
                self.queue.push(at_us, Event::Arrive { from, to, packet: packet.clone() });
            }
            self.queue.push(first_us, Event::Arrive { from, to, packet });
        }
    }
}

/// What a plan gave away, as the state says after it.
fn placed(state: &State, applied: &Applied) -> Vec<Placed> {
    if !matches!(applied.answer, Ok(Answer::Planned { placed: 1.., .. })) {
        return Vec::new();
    }
    let index = state.applied_index();
    let new = state.live().iter().filter(|(_, live)| live.assigned_index == index);
    let placed = new.filter_map(|(task, live)| {
        let worker = live.phase.worker()?;
        Some(Placed { attempt: AttemptId { task: *task, epoch: live.epoch }, group: live.group, worker })
    });
    placed.collect()
}

/// Attempts whose tasks are cancelled and that have yet to stop, after an entry that cancelled any.
fn stopping(state: &State, applied: &Applied) -> Vec<AttemptId> {
    let cancels = |effect: &Effect| matches!(effect, Effect::Event(event) if matches!(event.kind, EventKind::Cancelled(_)));
    if !applied.effects.iter().any(cancels) {
        return Vec::new();
    }
    let stopping = state.live().iter().filter(|(_, live)| matches!(live.phase, Phase::Stopping { .. }));
    stopping.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect()
}
