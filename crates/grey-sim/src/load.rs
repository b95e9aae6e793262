//! A client that submits at a steady rate, open loop: it begins the next submission when it is due, whatever became of those before.
//!
//! Waiting for one answer before the next question hides what a queue does to those who come meanwhile ("coordinated omission"); so latency
//! counts from when a submission was due until its acknowledgement arrived, repetitions included.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    Answer, Cancel, Command, ExecutorKind, GroupSubmission, IdempotencyKey, JobId, Resources, Retries,
    Submit, Target, TaskSpec, TenantId,
};
use grey_health::Advice;
use grey_proof::Digest;
use grey_replica::DoorRefusal;

use crate::fact::{self, Fact, Wish};
use crate::message::{Ask, Packet, Told};
use crate::network::NodeIndex;
use crate::workload::{TENANTS, WALL_MS};
use crate::world::{Input, Process, World};

/// How long it waits before it asks again after an answer that decides nothing, in microseconds.
const SOON_US: u64 = 80_000;
/// A server of which nothing was heard for so long is not asked first any more, in microseconds.
const SILENCE_US: u64 = 400_000;

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Submissions of one task a second, at least 1.
    pub per_second: u64,
    /// How long, in milliseconds.
    pub lasts_ms: u64,
    /// After so long without an answer the same is asked again under the same key, in milliseconds; at least 1.
    pub again_ms: u64,
    /// After so long without an answer what became of a submission is unknown, in milliseconds.
    pub patience_ms: u64,
    /// How long an attempt runs, in microseconds; up to half as long again.
    pub attempt_us: u64,
    /// Whether it sends at the rate that servers advise.
    pub obeys: bool,
}

/// One submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How many equal tasks, at least 1.
    pub tasks: u32,
    /// How long an attempt runs, in microseconds; up to half as long again.
    pub attempt_us: u64,
    /// The first so many attempts of each task fail by its own fault; it may not fail at all, so that one is the end of it.
    pub failures: u32,
}

/// Refusals for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// How many.
    pub count: u64,
    /// How many of them said when to try again.
    pub with_retry_after: u64,
}

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Submissions that were begun.
    pub begun: u64,
    /// Those that were acknowledged: when they were due and how long it took, in microseconds.
    pub acknowledged: Vec<(u64, u64)>,
    /// Those that the door refused, by its code.
    pub refused: BTreeMap<&'static str, Refused>,
    /// Those of which the client never learned what became of them.
    pub unknown: u64,
    /// Those that have no answer yet.
    pub open: u64,
    /// Jobs of the acknowledged ones.
    pub jobs: Vec<JobId>,
    /// Cancels that were answered: how long each took, in microseconds.
    pub cancelled: Vec<u64>,
    /// The lowest rate that it was advised, in thousandths of the usual one; 0 after it was told to send nothing.
    pub lowest_permille: u64,
}

impl LoadReport {
    /// Latencies of the acknowledged submissions that were due within that time of the run, sorted, in microseconds.
    pub fn latencies_us(&self, from_us: u64, to_us: u64) -> Vec<u64> {
        let within = self.acknowledged.iter().filter(|(due_us, _)| (from_us..to_us).contains(due_us));
        let mut all: Vec<u64> = within.map(|(_, took_us)| *took_us).collect();
        all.sort_unstable();
        all
    }

    /// How many acknowledgements arrived within that time of the run.
    pub fn arrived(&self, from_us: u64, to_us: u64) -> u64 {
        let arrived = self.acknowledged.iter().map(|(due_us, took_us)| due_us + took_us);
        arrived.filter(|at_us| (from_us..to_us).contains(at_us)).count() as u64
    }

    /// The latency that so many thousandths of the acknowledged submissions did not exceed, in microseconds; 0 without any.
    pub fn latency_us(&self, permille: usize) -> u64 {
        let all = self.latencies_us(0, u64::MAX);
        let rank = (all.len() * permille).div_ceil(1_000).max(1) - 1;
        all.get(rank).copied().unwrap_or(0)
    }

    /// All that the door refused.
    pub fn refusals(&self) -> u64 {
        self.refused.values().map(|refused| refused.count).sum()
    }
}

struct Open {
    wish: Wish,
    due_us: u64,
    asked: u64,
}

/// The client.
pub struct Load {
    client: usize,
    servers: usize,
    options: LoadOptions,
    until_us: u64,
    target: NodeIndex,
    heard_us: u64,
    quiet_until_us: u64,
    permille: u64,
    next: u64,
    open: BTreeMap<u64, Open>,
    cancels: BTreeSet<u64>,
    /// Commands of an operator, and what was answered.
    pub questions: BTreeMap<u64, Option<Told>>,
    pub report: LoadReport,
}

impl Load {
    /// One that has nothing to do yet.
    pub fn new(client: usize, servers: usize) -> Load {
        let idle = LoadOptions {
            per_second: 1,
            lasts_ms: 0,
            again_ms: 200,
            patience_ms: 10_000,
            attempt_us: 1,
            obeys: false,
        };
        Load {
            client,
            servers,
            options: idle,
            until_us: 0,
            target: client % servers.max(1),
            heard_us: 0,
            quiet_until_us: 0,
            permille: 1_000,
            next: 0,
            open: BTreeMap::new(),
            cancels: BTreeSet::new(),
            questions: BTreeMap::new(),
            report: LoadReport { lowest_permille: 1_000, ..LoadReport::default() },
        }
    }

    /// Begins a load with a report of its own.
    pub fn begin(&mut self, options: LoadOptions, now_us: u64) {
        self.until_us = now_us + options.lasts_ms * 1_000;
        self.options = options;
        (self.permille, self.quiet_until_us, self.heard_us) = (1_000, 0, now_us);
        self.report = LoadReport { lowest_permille: 1_000, ..LoadReport::default() };
    }

    /// Whether nothing is open or due.
    pub fn is_idle(&self, now_us: u64) -> bool {
        self.open.is_empty() && now_us >= self.until_us
    }

    fn submission(&self, work: Work) -> Wish {
        let spec = TaskSpec {
            name: String::new(),
            executor: ExecutorKind::Process,
            command: vec!["simulated".to_owned(), work.attempt_us.to_string(), work.failures.to_string()],
            environment: Vec::new(),
            stdin: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            resources: Resources { cpu_millicores: 100, memory_bytes: 1 << 20, disk_bytes: 0 },
            priority: 100,
            devices: Vec::new(),
            constraints: Default::default(),
            retries: Retries { failure: 0, infrastructure: 5 },
            timeout_ms: 60_000,
            output_limit_bytes: 1 << 20,
        };
        let name = format!("load-{}-{}", self.client, self.next);
        let key = IdempotencyKey { body: Digest::of(name.as_bytes()), key: name };
        let body = Submit {
            tenant: self.tenant(),
            submitter: format!("load-{}", self.client),
            name: String::new(),
            labels: Vec::new(),
            key: Some(key),
            groups: vec![GroupSubmission { spec, count: work.tasks }],
            flow: Default::default(),
            wall_ms: WALL_MS,
        };
        Wish::Submit { body: Box::new(body), feasible: true }
    }

    /// The same as a command.
    pub fn command(&self, work: Work) -> Option<Command> {
        match self.submission(work) {
            Wish::Submit { body, .. } => Some(Command::Submit(*body)),
            Wish::Cancel(_) | Wish::ChangeTimeout(_) | Wish::Read(_) => None,
        }
    }

    fn tenant(&self) -> TenantId {
        TenantId(1 + u32::try_from(self.client).unwrap_or(0) % TENANTS)
    }

    /// Takes the rate that it is advised, if it obeys.
    fn heed(&mut self, advice: Advice, now_us: u64) {
        let permille = match advice {
            Advice::Send { rate_permille } => rate_permille,
            Advice::Reject { retry_after_ms } => {
                if self.options.obeys {
                    self.quiet_until_us = now_us + retry_after_ms * 1_000;
                }
                0
            }
        };
        self.report.lowest_permille = self.report.lowest_permille.min(permille);
        if self.options.obeys && permille > 0 {
            self.permille = permille;
        }
    }

    fn refused(&mut self, number: u64, refusal: &DoorRefusal) {
        // After a repetition the first one may have been let in: its fate is open, and it is asked for again.
        if self.open.get(&number).is_some_and(|open| open.asked == 1) {
            self.open.remove(&number);
            let refused = self.report.refused.entry(refusal.refusal.code.name()).or_default();
            refused.count += 1;
            refused.with_retry_after += u64::from(refusal.refusal.retry_after_ms.is_some());
        }
    }
}

impl World {
    /// The load on a node.
    pub fn load(&mut self, index: NodeIndex) -> Option<&mut Load> {
        match self.nodes.get_mut(index).map(|node| &mut node.process) {
            Some(Process::Load(load)) => Some(load),
            _ => None,
        }
    }

    /// A load handles one input.
    pub fn load_step(&mut self, index: NodeIndex, input: Input) {
        let now_us = self.now_us;
        let Some(load) = self.load(index) else { return };
        match input {
            Input::Next if now_us < load.until_us => {
                let every_us = 1_000_000_000 / (load.options.per_second * load.permille).max(1);
                let next_us = (now_us + every_us).max(load.quiet_until_us);
                let attempt_us = load.options.attempt_us;
                let wish = load.submission(Work { tasks: 1, attempt_us, failures: 0 });
                load.report.begun += 1;
                self.later(next_us, index, Input::Next);
                self.load_wish(index, wish);
            }
            Input::TimeOut(number) => self.load_again(index, number),
            Input::Again(number) => self.load_ask(index, number),
            Input::Packet(from, packet) => {
                let Packet::Reply { number, told, advice } = *packet else { return };
                if from == load.target {
                    load.heard_us = now_us;
                }
                load.heed(advice, now_us);
                if let Some(answer) = load.questions.get_mut(&number) {
                    *answer = Some(told);
                    return;
                }
                self.load_told(index, from, number, told);
            }
            _ => {}
        }
    }

    /// One submission more, whatever the load is.
    pub fn load_submit(&mut self, index: NodeIndex, work: Work) {
        let Some(load) = self.load(index) else { return };
        let wish = load.submission(work);
        load.report.begun += 1;
        self.load_wish(index, wish);
    }

    /// Asks a server for something that is no load, once; the number under which the answer is kept.
    pub fn load_question(&mut self, index: NodeIndex, server: NodeIndex, command: Command) -> u64 {
        let Some(load) = self.load(index) else { return 0 };
        let number = load.next;
        load.next += 1;
        load.questions.insert(number, None);
        self.send(index, server, Packet::Request { number, ask: Ask::Propose(Box::new(command)) });
        number
    }

    /// Cancels a job of a load.
    pub fn load_cancel(&mut self, index: NodeIndex, job: JobId) {
        let Some(load) = self.load(index) else { return };
        let cancel = Cancel { tenant: load.tenant(), target: Target::Job(job), wall_ms: WALL_MS };
        load.cancels.insert(load.next);
        self.load_wish(index, Wish::Cancel(cancel));
    }

    fn load_wish(&mut self, index: NodeIndex, wish: Wish) {
        let now_us = self.now_us;
        let Some(load) = self.load(index) else { return };
        let (client, number) = (load.client, load.next);
        load.next += 1;
        load.open.insert(number, Open { wish: wish.clone(), due_us: now_us, asked: 0 });
        self.tell(&Fact::Asked { client, operation: number, wish: &wish });
        self.load_again(index, number);
    }

    /// Asks, for the first time or again, until the patience ends.
    fn load_again(&mut self, index: NodeIndex, number: u64) {
        let now_us = self.now_us;
        let Some(load) = self.load(index) else { return };
        let Some(open) = load.open.get(&number) else { return };
        let again_us = load.options.again_ms.max(1) * 1_000;
        if now_us >= open.due_us + load.options.patience_ms * 1_000 {
            load.open.remove(&number);
            load.report.unknown += u64::from(!load.cancels.contains(&number));
            return;
        }
        if open.asked > 0 && now_us >= load.heard_us + SILENCE_US {
            load.target = (load.target + 1) % load.servers.max(1);
            load.heard_us = now_us;
        }
        self.later(now_us + again_us, index, Input::TimeOut(number));
        self.load_ask(index, number);
    }

    fn load_ask(&mut self, index: NodeIndex, number: u64) {
        let Some(load) = self.load(index) else { return };
        let target = load.target;
        let Some(open) = load.open.get_mut(&number) else { return };
        open.asked += 1;
        let command = match &open.wish {
            Wish::Submit { body, .. } => Command::Submit(body.as_ref().clone()),
            Wish::Cancel(body) => Command::Cancel(body.clone()),
            Wish::ChangeTimeout(_) | Wish::Read(_) => return,
        };
        self.send(index, target, Packet::Request { number, ask: Ask::Propose(Box::new(command)) });
    }

    fn load_told(&mut self, index: NodeIndex, from: NodeIndex, number: u64, told: Told) {
        let now_us = self.now_us;
        let Some(load) = self.load(index) else { return };
        match told {
            Told::NotLeader(leader) => {
                let Some(open) = load.open.get_mut(&number) else { return };
                // It was not proposed there, so that question does not count.
                open.asked = open.asked.saturating_sub(1);
                let hint = usize::try_from(leader).unwrap_or(0).checked_sub(1);
                match hint.filter(|hint| *hint != from) {
                    Some(leader) => (load.target, load.heard_us) = (leader, now_us),
                    None => load.target = (from + 1) % load.servers.max(1),
                }
                match hint {
                    Some(_) => self.load_ask(index, number),
                    None => self.later(now_us + SOON_US, index, Input::Again(number)),
                }
            }
            Told::Overloaded(Some(refusal)) => load.refused(number, &refusal),
            Told::Unknown | Told::Overloaded(None) => {
                self.later(now_us + SOON_US, index, Input::Again(number))
            }
            Told::Read(_) => {}
            Told::Applied(result) => {
                let Some(open) = load.open.remove(&number) else { return };
                let took_us = now_us - open.due_us;
                match (&open.wish, &result) {
                    (Wish::Submit { .. }, Ok(Answer::Submitted { job, .. })) => {
                        load.report.acknowledged.push((open.due_us, took_us));
                        load.report.jobs.push(*job);
                    }
                    (Wish::Cancel(_), _) => load.report.cancelled.push(took_us),
                    _ => load.report.unknown += 1,
                }
                let client = load.client;
                let told = fact::Told::Applied(result);
                self.tell(&Fact::Answered { client, operation: number, wish: &open.wish, told: &told });
            }
        }
    }
}

impl Load {
    /// What became of it so far.
    pub fn reported(&self) -> LoadReport {
        let open = self.open.keys().filter(|number| !self.cancels.contains(number)).count() as u64;
        LoadReport { open, ..self.report.clone() }
    }
}
