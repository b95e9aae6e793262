//! Clients of several tenants: what they want, and how they insist on an answer.

use std::collections::VecDeque;

use grey_core::{
    Answer, Bootstrap, Cancel, ChangeTimeout, Command, ExecutorKind, FlowSubmission, GroupSubmission,
    IdempotencyKey, JobId, Rejection, Resources, Retries, StageSubmission, Submit, Target, TaskDefaults,
    TaskRange, TaskSpec, TenantId, TenantRecord,
};
use grey_proof::Digest;

use crate::fact::{self, Wish};
use crate::faults::{Counters, Fault};
use crate::message::{Ask, Told};
use crate::random::Stream;
use crate::swarm::Plan;

/// Jobs among which a client chooses what it asks about: the last so many that it knows.
const RECENT: usize = 12;
/// How many tenants there are.
pub const TENANTS: u32 = 3;
/// A client that has no answer after so long asks again, in microseconds.
pub const PATIENCE_US: u64 = 2_000_000;
/// The wall clock at the beginning.
pub const WALL_MS: u64 = 1_795_512_600_000;
/// More tasks than this are never run to their end: whoever submits them cancels them.
const LARGE: u32 = 400;

/// The first command of every run.
pub fn bootstrap(cluster: Digest) -> Command {
    let resources = Resources { cpu_millicores: 500, memory_bytes: 1 << 20, disk_bytes: 0 };
    let defaults = TaskDefaults { resources, timeout_ms: 60_000, output_limit_bytes: 1 << 20, priority: 100 };
    let tenants = (1..=TENANTS).map(|number| TenantRecord { name: format!("tenant-{number}"), defaults });
    Command::Bootstrap(Bootstrap { cluster, wall_ms: WALL_MS, tenants: tenants.collect() })
}

/// A job that a client knows of.
#[derive(Debug, Clone, Copy)]
struct Known {
    job: JobId,
    tasks: TaskRange,
    /// Whether it must be cancelled, since it would not end.
    endless: bool,
    cancelled: bool,
}

/// What a client waits for.
#[derive(Debug)]
pub struct Open {
    pub operation: u64,
    pub wish: Wish,
    /// The number of its present request.
    pub number: u64,
    pub attempts: u32,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    pub number: usize,
    tenant: TenantId,
    seed: u64,
    /// It looks at the jobs of all, and does nothing else.
    only_reads: bool,
    pub open: Option<Open>,
    known: Vec<Known>,
    next_operation: u64,
    next_request: u64,
    /// Operations that are due at once.
    hurry: VecDeque<u64>,
    pub leader: u64,
    servers: u64,
    wall_offset_ms: u64,
}

/// What a client does next.
pub enum Step {
    /// Ask a server.
    Ask { server: u64, number: u64, ask: Ask },
    /// Nothing for so long, in microseconds.
    Rest(u64),
    /// Nothing any more.
    Done,
}

fn spec(chance: &mut Stream, plan: &Plan, counters: &mut Counters) -> (TaskSpec, bool) {
    let due = plan.due.contains(&Fault::Huge) && counters.of(Fault::Huge) == 0;
    let huge = plan.has(Fault::Huge) && (chance.chance(50_000) || due);
    if huge {
        counters.count(Fault::Huge);
    }
    let cpu_millicores = if huge { 500_000 } else { 250 * chance.between(1, 8) };
    let failing = if chance.chance(150_000) { chance.between(1, 4) } else { 0 };
    // What fails again and again must still be over within the minute after the storm.
    let duration_us = chance.between(1_000, plan.attempt_us * 2) / (1 + failing);
    let short = chance.chance(60_000);
    let timeout_ms = if short { (duration_us / 2_000).max(1) } else { 60_000 };
    let spec = TaskSpec {
        name: String::new(),
        executor: ExecutorKind::Process,
        command: vec!["simulated".to_owned(), duration_us.to_string(), failing.to_string()],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpu_millicores, memory_bytes: chance.between(1, 64) << 20, disk_bytes: 0 },
        priority: u8::try_from(chance.between(98, 102)).unwrap_or(100),
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries { failure: u16::try_from(chance.between(0, 4)).unwrap_or(0), infrastructure: 5 },
        timeout_ms,
        output_limit_bytes: 1 << 20,
    };
    (spec, !huge)
}

/// Makes the tasks of a job that runs few at a time so short that all of them end in time, with every try.
fn shorten(groups: &mut [GroupSubmission], parallel: u32) {
    let tries: u64 =
        groups.iter().map(|group| u64::from(group.count) * (1 + u64::from(group.spec.retries.failure))).sum();
    let longest_us = 10_000_000 * u64::from(parallel) / tries.max(1);
    for group in groups {
        if let Some(word) = group.spec.command.get_mut(1) {
            let duration_us = word.parse::<u64>().unwrap_or(0).min(longest_us);
            *word = duration_us.to_string();
        }
    }
}

impl Client {
    /// A client by its number.
    pub fn new(number: usize, seed: u64, servers: u64, only_reads: bool) -> Client {
        let tenant = TenantId(1 + u32::try_from(number).unwrap_or(0) % TENANTS);
        let leader = 1 + number as u64 % servers;
        Client {
            number,
            tenant,
            seed,
            only_reads,
            open: None,
            known: Vec::new(),
            next_operation: 0,
            next_request: 0,
            hurry: VecDeque::new(),
            leader,
            servers,
            wall_offset_ms: 0,
        }
    }

    /// So many operations are due at once.
    pub fn hurry(&mut self, operations: u64) {
        let operations = if self.only_reads { 0 } else { operations };
        self.hurry.extend(0..operations);
    }

    /// Its wall clock is set to another time.
    pub fn set_wall_offset(&mut self, offset_ms: u64) {
        self.wall_offset_ms = offset_ms;
    }

    /// Whether nothing is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_none()
            && self.hurry.is_empty()
            && !self.known.iter().any(|job| job.endless && !job.cancelled)
    }

    fn chance(&self, operation: u64) -> Stream {
        Stream::new(self.seed, 1_000_000 * (1 + self.number as u64) + operation)
    }

    /// Begins the next operation, where one is due. `calm` once the storm is over; `skipped` says which operations are
    /// left out.
    pub fn begin(
        &mut self,
        plan: &Plan,
        calm: bool,
        skipped: &dyn Fn(usize, u64) -> bool,
        published: &[JobId],
        counters: &mut Counters,
    ) -> Step {
        let endless = self.known.iter_mut().find(|job| calm && job.endless && !job.cancelled);
        if let Some(known) = endless {
            known.cancelled = true;
            let target = Target::Job(known.job);
            let operation = self.next_operation;
            self.next_operation += 1;
            return self.open(
                operation,
                Wish::Cancel(Cancel { tenant: self.tenant, target, wall_ms: self.wall_ms() }),
            );
        }
        if calm && self.hurry.is_empty() {
            return Step::Done;
        }
        let operation = self.next_operation;
        self.next_operation += 1;
        let mut chance = self.chance(operation);
        let hurried = self.hurry.pop_front().is_some();
        let rest_us = chance.below(2 * self.think_us(plan));
        if skipped(self.number, operation) {
            return Step::Rest(rest_us);
        }
        if self.only_reads {
            let recent = published.get(published.len().saturating_sub(RECENT)..).unwrap_or_default();
            return match chance.pick(recent) {
                Some(job) => self.open(operation, Wish::Read(*job)),
                None => Step::Rest(rest_us),
            };
        }
        let wish = if hurried { None } else { self.about_known(&mut chance, plan, counters) };
        let wish = wish.unwrap_or_else(|| self.submission(operation, &mut chance, plan, counters));
        self.open(operation, wish)
    }

    /// How long it rests after an operation, in microseconds.
    pub fn rest_us(&self, plan: &Plan) -> u64 {
        let think_us = self.think_us(plan);
        if self.hurry.is_empty() { self.chance(self.next_operation).below(2 * think_us) } else { 1_000 }
    }

    /// Its mean pause between two operations, in microseconds. Who only looks does so often.
    fn think_us(&self, plan: &Plan) -> u64 {
        if self.only_reads { plan.think_us / 10 } else { plan.think_us }
    }

    fn open(&mut self, operation: u64, wish: Wish) -> Step {
        self.open = Some(Open { operation, wish, number: 0, attempts: 0 });
        self.ask()
    }

    /// A read, a cancel or another time-out of a job that it knows.
    fn about_known(&mut self, chance: &mut Stream, plan: &Plan, counters: &mut Counters) -> Option<Wish> {
        let choice = chance.below(100);
        let draw = chance.next();
        let recent = self.known.len().saturating_sub(RECENT);
        let known = self.known.get(recent..)?;
        let position = recent + usize::try_from(draw % known.len().max(1) as u64).unwrap_or(0);
        let known = self.known.get_mut(position)?;
        let task = grey_core::TaskId(known.tasks.first.0 + chance.below(u64::from(known.tasks.count)));
        let target = if chance.chance(500_000) { Target::Job(known.job) } else { Target::Task(task) };
        let is_due = |fault| plan.due.contains(&fault) && counters.of(fault) == 0;
        let choice = match choice {
            _ if is_due(Fault::Huge) => 99,
            _ if is_due(Fault::Cancel) => 20,
            _ if is_due(Fault::TimeoutChange) => 35,
            drawn => drawn,
        };
        match choice {
            0..20 => Some(Wish::Read(known.job)),
            20..35 if plan.has(Fault::Cancel) => {
                counters.count(Fault::Cancel);
                known.cancelled |= target == Target::Job(known.job);
                Some(Wish::Cancel(Cancel { tenant: self.tenant, target, wall_ms: self.wall_ms() }))
            }
            35..45 if plan.has(Fault::TimeoutChange) => {
                counters.count(Fault::TimeoutChange);
                let timeout_ms = chance.between(100, 20_000);
                Some(Wish::ChangeTimeout(ChangeTimeout { tenant: self.tenant, target, timeout_ms }))
            }
            _ => None,
        }
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS.saturating_add(self.wall_offset_ms)
    }

    fn submission(&self, operation: u64, chance: &mut Stream, plan: &Plan, counters: &mut Counters) -> Wish {
        let kind = chance.below(100);
        let (mut groups, mut feasible, mut flow) = (Vec::new(), true, FlowSubmission::default());
        let count = match kind {
            0..50 => 1,
            50..90 => chance.between(2, 8),
            90..97 => chance.between(9, 30),
            _ => chance.between(u64::from(LARGE) + 1, 200_000),
        };
        let stages = if (60..85).contains(&kind) { chance.between(2, 3) } else { 1 };
        for _ in 0..stages {
            let (spec, fits) = spec(chance, plan, counters);
            feasible &= fits;
            let count = u32::try_from(count.div_ceil(stages)).unwrap_or(1);
            groups.push(GroupSubmission { spec, count });
        }
        if stages > 1 {
            let stage = |number: u32| StageSubmission {
                groups: 1,
                after: number.checked_sub(1).into_iter().collect(),
                inputs: Vec::new(),
                items: None,
            };
            flow.stages = (0..u32::try_from(stages).unwrap_or(1)).map(stage).collect();
        }
        if chance.chance(100_000) {
            let parallel = u32::try_from(chance.between(1, 4)).unwrap_or(1);
            flow.parallel = Some(parallel);
            shorten(&mut groups, parallel);
        }
        if chance.chance(100_000) {
            flow.max_failures = Some(u32::try_from(chance.below(3)).unwrap_or(0));
        }
        let encoded = postcard::to_allocvec(&(&groups, &flow)).unwrap_or_default();
        let key =
            IdempotencyKey { key: format!("client-{}-{operation}", self.number), body: Digest::of(&encoded) };
        Wish::Submit {
            body: Box::new(Submit {
                tenant: self.tenant,
                submitter: format!("client-{}", self.number),
                name: String::new(),
                labels: Vec::new(),
                key: Some(key),
                groups,
                flow,
                wall_ms: self.wall_ms(),
            }),
            feasible,
        }
    }

    /// Asks, for the first time or again.
    pub fn ask(&mut self) -> Step {
        let Some(open) = &mut self.open else { return Step::Done };
        self.next_request += 1;
        open.number = self.next_request;
        open.attempts += 1;
        let ask = match &open.wish {
            Wish::Submit { body, .. } => Ask::Propose(Box::new(Command::Submit(body.as_ref().clone()))),
            Wish::Cancel(body) => Ask::Propose(Box::new(Command::Cancel(body.clone()))),
            Wish::ChangeTimeout(body) => Ask::Propose(Box::new(Command::ChangeTimeout(body.clone()))),
            Wish::Read(job) => Ask::Read(*job),
        };
        Step::Ask { server: self.leader, number: open.number, ask }
    }

    /// Nobody answered: what became of it is unknown, and another server may know.
    pub fn look_elsewhere(&mut self) {
        self.leader = self.leader % self.servers + 1;
    }

    /// An answer to a request. The operation's end, when it is one; otherwise it is to be asked again after a while.
    pub fn told(&mut self, number: u64, told: Told) -> Option<(Open, fact::Told)> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            return None;
        }
        let told = match told {
            // It insists: what it asked before may still be let in, when the tenant is let go.
            Told::Applied(Err(
                Rejection::TenantSuspended(_) | Rejection::QueueFull { .. } | Rejection::RateExceeded { .. },
            )) => return None,
            Told::Applied(result) => fact::Told::Applied(result),
            Told::Read(counts) => fact::Told::Read(counts),
            Told::NotLeader(leader) => {
                if leader == 0 {
                    self.look_elsewhere()
                } else {
                    self.leader = leader
                }
                return None;
            }
            Told::Unknown | Told::Overloaded(_) => return None,
        };
        let open = self.open.take()?;
        self.learn(&open, &told);
        Some((open, told))
    }

    fn learn(&mut self, open: &Open, told: &fact::Told) {
        match (&open.wish, told) {
            (
                Wish::Submit { feasible, .. },
                fact::Told::Applied(Ok(Answer::Submitted { job, tasks, .. })),
            ) => {
                let endless = !feasible || tasks.count > LARGE;
                self.known.push(Known { job: *job, tasks: *tasks, endless, cancelled: false });
            }
            // What it waited for is over already.
            (_, fact::Told::Applied(Err(Rejection::UnknownJob(ended)))) => {
                self.known.iter_mut().filter(|job| job.job == *ended).for_each(|job| job.cancelled = true);
            }
            _ => {}
        }
    }
}
