//! How fast tasks are placed, and how that grows with the cluster. `cargo bench --bench scheduler`.
//!
//! A synthetic cluster in memory, the real core: workers of 16 cores and 64 slots, tenants that take turns, every task
//! submitted singly. It is filled, and then kept full for a while: some workers report, as many tasks are submitted, and
//! the planner fills the gaps. Only the planner and the applying of its plans are timed.
//!
//! Before that, while no memory has been freed, it measures what a waiting task needs: resident memory before and after
//! tasks were submitted singly, and before and after an array.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use grey_core::{
    Answer, AttemptResult, Bootstrap, Command, Content, Entry, Epoch, ExecutorKind, Finished, FlowSubmission,
    GroupSubmission, Outcome, RegisterWorker, Report, Resources, Retries, SandboxLevel, SignedRoot, State,
    Submit, TaskDefaults, TaskId, TaskRange, TaskSpec, TenantId, TenantRecord, Usage, UsageSource, WorkerId,
    apply_entry, plan,
};
use grey_proof::Digest;

/// Placements that are timed in the steady state, beside those that fill the cluster.
const STEADY_PLACEMENTS: u64 = 200_000;
/// Tasks that end between two plans of the steady state.
const ENDED_PER_TURN: u64 = 1_024;
/// Waiting tasks whose memory is measured, as one array and submitted singly.
const ARRAY_TASKS: u32 = 1_000_000;
const SINGLE_TASKS: u64 = 100_000;
const NEED: Resources = Resources { cpu_millicores: 500, memory_bytes: 256 << 20, disk_bytes: 0 };

struct Cluster {
    state: State,
    held: BTreeMap<WorkerId, Vec<TaskId>>,
    order: VecDeque<WorkerId>,
    sequences: BTreeMap<WorkerId, u64>,
    tenants: u32,
    submitted: u64,
}

#[derive(Default)]
struct Timed {
    placed: u64,
    planning: Duration,
    applying: Duration,
}

impl Timed {
    fn rate(&self) -> f64 {
        self.placed as f64 / (self.planning + self.applying).as_secs_f64()
    }

    fn each_us(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.placed as f64
    }
}

impl Cluster {
    fn step(&mut self, command: Command) -> Answer {
        let (index, time_ms) = (self.state.applied_index() + 1, self.state.meta().time_ms);
        apply_entry(&mut self.state, 1, index, Entry { time_ms, command }).answer.unwrap()
    }

    fn new(workers: u32, tenants: u32) -> Cluster {
        let mut cluster = Cluster {
            state: State::new(),
            held: BTreeMap::new(),
            order: VecDeque::new(),
            sequences: BTreeMap::new(),
            tenants,
            submitted: 0,
        };
        let defaults =
            TaskDefaults { resources: NEED, timeout_ms: 60_000, output_limit_bytes: 1 << 20, priority: 100 };
        let tenant = |number| TenantRecord { name: format!("tenant-{number}"), defaults };
        let tenants = (0..tenants).map(tenant).collect();
        cluster.step(Command::Bootstrap(Bootstrap { cluster: Digest::of(b"cluster"), wall_ms: 1, tenants }));
        for number in 0..workers {
            let node = Digest::of(&number.to_le_bytes());
            let answer = cluster.step(Command::RegisterWorker(RegisterWorker {
                node,
                name: format!("host-{number}"),
                incarnation: 1,
                session: 1,
                capacity: Resources { cpu_millicores: 16_000, memory_bytes: 64 << 30, disk_bytes: 0 },
                slots: 64,
                sandbox: SandboxLevel::PidNamespace,
                labels: Vec::new(),
                devices: Vec::new(),
                certificate: node,
                holding: Vec::new(),
            }));
            let Answer::Registered { worker, .. } = answer else { panic!("{answer:?}") };
            cluster.order.push_back(worker);
        }
        cluster
    }

    fn submit(&mut self, count: u64) {
        for number in self.submitted..self.submitted + count {
            let spec = spec(number.to_string());
            self.submit_equal(TenantId(1 + (number % u64::from(self.tenants)) as u32), spec, 1);
        }
        self.submitted += count;
    }

    fn submit_equal(&mut self, tenant: TenantId, spec: TaskSpec, count: u32) {
        self.step(Command::Submit(Submit {
            tenant,
            submitter: String::new(),
            name: String::new(),
            labels: Vec::new(),
            key: None,
            groups: vec![GroupSubmission { spec, count }],
            flow: FlowSubmission::default(),
            wall_ms: 1,
        }));
    }

    fn place(&mut self, timed: &mut Timed) -> u64 {
        let begun = Instant::now();
        let planned = plan(&self.state, 16_384);
        timed.planning += begun.elapsed();
        for placement in &planned.placements {
            self.held.entry(placement.worker).or_default().extend(placement.tasks.tasks());
        }
        let begun = Instant::now();
        let answer = self.step(Command::Plan(planned));
        timed.applying += begun.elapsed();
        let Answer::Planned { placed, stale: 0 } = answer else { panic!("{answer:?}") };
        timed.placed += placed;
        placed
    }

    /// Whole workers report everything that they hold, one after another, until so many tasks have ended.
    fn end(&mut self, count: u64) -> u64 {
        let mut ended = 0;
        while ended < count {
            let worker = self.order.pop_front().unwrap();
            self.order.push_back(worker);
            let tasks = self.held.remove(&worker).unwrap_or_default();
            if tasks.is_empty() {
                continue;
            }
            ended += tasks.len() as u64;
            let sequence = self.sequences.entry(worker).or_default();
            *sequence += 1;
            let report = Report {
                worker,
                incarnation: 1,
                session: 1,
                sequence: *sequence,
                slots: 64,
                started: Vec::new(),
                finished: tasks.into_iter().map(finished).collect(),
                signed: Some(SignedRoot { root: Digest::of(b"root"), salt: [1; 32], signature: vec![7; 64] }),
            };
            self.step(Command::Report(report));
        }
        ended
    }
}

fn spec(name: String) -> TaskSpec {
    TaskSpec {
        name,
        executor: ExecutorKind::Process,
        command: vec!["true".to_owned()],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: NEED,
        priority: 100,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    }
}

fn finished(task: TaskId) -> Finished {
    Finished {
        tasks: TaskRange::single(task),
        epoch: Epoch(1),
        result: AttemptResult {
            outcome: Outcome::Exited(0),
            sandbox: SandboxLevel::PidNamespace,
            usage_source: UsageSource::ResourceUsage,
            stdout: Content::EMPTY,
            stderr: Content::EMPTY,
            files: Vec::new(),
            message: String::new(),
        },
        usage: vec![Usage::default()],
    }
}

/// Resident memory in bytes; zero where there is no `/proc`.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}

fn measure_memory() {
    let mut cluster = Cluster::new(1, 100);
    let before = resident_bytes();
    cluster.submit_equal(TenantId(1), spec(String::new()), ARRAY_TASKS);
    let array_bytes = resident_bytes().saturating_sub(before) as f64 / f64::from(ARRAY_TASKS);
    let before = resident_bytes();
    cluster.submit(SINGLE_TASKS);
    let single_bytes = resident_bytes().saturating_sub(before) as f64 / SINGLE_TASKS as f64;
    println!("bytes a waiting task: {single_bytes:.0} submitted singly, {array_bytes:.3} in an array\n");
}

fn measure(workers: u32, tenants: u32, pending: u64) {
    let mut cluster = Cluster::new(workers, tenants);
    let slots = u64::from(workers) * 64;
    cluster.submit(pending + slots);
    let mut filling = Timed::default();
    while cluster.place(&mut filling) > 0 {}
    let mut steady = Timed::default();
    while steady.placed < STEADY_PLACEMENTS {
        let ended = cluster.end(ENDED_PER_TURN);
        cluster.submit(ended);
        cluster.place(&mut steady);
    }
    println!(
        "{workers:>7} {tenants:>8} {pending:>9} {:>14.0} {:>13.0} {:>10.2} {:>10.2}",
        filling.rate(),
        steady.rate(),
        steady.each_us(steady.planning),
        steady.each_us(steady.applying),
    );
}

fn main() {
    // Cargo asks every benchmark of a workspace to run as a test too; this one has nothing to say then.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    measure_memory();
    println!("workers  tenants   pending  filling /s    steady /s    plan µs   apply µs");
    for (workers, tenants, pending) in
        [(1_000, 100, 100_000), (10_000, 100, 100_000), (1_000, 1_000, 100_000), (1_000, 100, 1_000_000)]
    {
        measure(workers, tenants, pending);
    }
}
