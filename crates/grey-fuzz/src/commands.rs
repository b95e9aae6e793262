//! Entries of the log: any bytes, and sequences of commands that often make sense.

use grey_core::{
    Answer, AttemptId, AttemptResult, Bootstrap, Cancel, ChangeTimeout, Command, Constraints, Content,
    Devices, Entry, Epoch, ExecutorKind, Finished, FlowSubmission, GroupSubmission, IdempotencyKey, Items,
    JobId, LoseWorker, Outcome, Placement, Plan, QuarantineWorker, RegisterWorker, Rejection, Report,
    Resources, Retries, Revoked, SandboxLevel, SetQuarantine, SignedRoot, Source, StageInput,
    StageSubmission, State, Submit, SuspectWorker, Target, TaskDefaults, TaskId, TaskRange, TaskSpec,
    TenantId, TenantRecord, Usage, UsageSource, WorkerId, apply, check_report, plan, steal,
};
use grey_proof::{Digest, SigningKey};

use crate::bytes::Bytes;
use crate::identities;

/// The most steps of a sequence.
const STEPS: usize = 64;
/// How many tasks a plan of a sequence places at most.
const PLANNED: u32 = 200;

pub(crate) fn founding() -> Entry {
    let defaults = TaskDefaults {
        resources: Resources { cpu_millicores: 100, memory_bytes: 1 << 20, disk_bytes: 0 },
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
        priority: 100,
    };
    let tenant = |name: &str| TenantRecord { name: name.to_owned(), defaults };
    let tenants = vec![tenant("system"), tenant("default")];
    let body = Bootstrap { cluster: Digest::of(b"cluster"), wall_ms: 1_000, tenants };
    Entry { time_ms: 0, command: Command::Bootstrap(body) }
}

/// Applies an entry, which must leave a state that holds its invariants, or change nothing; `None` where it halts.
pub(crate) fn applied(state: &mut State, term: u64, bytes: &[u8]) -> Option<Result<Answer, Rejection>> {
    let (before, index) = (state.hash(), state.applied_index() + 1);
    match apply(state, term, index, bytes) {
        Ok(applied) => {
            state.check().expect("the invariants hold after an entry");
            assert_eq!(state.applied_index(), index);
            if let Err(Rejection::InternalBug { what, .. }) = &applied.answer {
                panic!("a bug of Grey's own: {what}");
            }
            Some(applied.answer)
        }
        Err(error) => {
            assert!(error.must_halt(), "{error}");
            assert_eq!(state.hash(), before, "an entry that halts changes nothing");
            None
        }
    }
}

/// Rows that are written are the rows that are read, at a checkpoint of everything and of the changes alone.
pub(crate) fn round_trips(state: &State) {
    let rows = state.all_rows();
    let loaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
    let mut loaded = loaded.expect("the rows of a state are one");
    assert!(&loaded == state, "the rows of a state are that state");
    assert!(loaded.take_dirty_rows().len() <= 2, "what was loaded has not changed");
}

/// Plans twice alike; what is planned can be placed.
fn planned(state: &State, budget: u32) -> Plan {
    let first = plan(state, budget);
    assert_eq!(first, plan(state, budget), "the same state gives the same plan");
    let tasks: u64 = first.placements.iter().map(|placement| u64::from(placement.tasks.count)).sum();
    assert!(tasks <= u64::from(budget), "a plan keeps its budget");
    first
}

/// One entry of any bytes, after a state in which much goes on.
pub(crate) fn entry(data: &[u8]) {
    if let Ok(entry) = Entry::decode(data) {
        let encoded = entry.encode();
        if let Ok(bytes) = &encoded {
            assert_eq!(Entry::decode(bytes).as_ref(), Ok(&entry), "an entry reads back as written");
        }
        if let Command::Report(report) = &entry.command {
            let key = SigningKey::from_seed([1; 32]).verifying_key();
            assert!(check_report(&busy(), report, &key).is_err() || report.signed.is_none());
        }
    }
    for state in [State::new(), busy(), identities::enrolled()] {
        let mut first = state.clone();
        let mut second = state;
        let answer = applied(&mut first, 2, data);
        assert_eq!(answer, applied(&mut second, 2, data));
        assert_eq!(first.hash(), second.hash(), "replicas agree");
        assert!(first == second);
        planned(&first, 50);
    }
}

/// A state with jobs, workers and attempts, the same every time.
pub(crate) fn busy() -> State {
    static BUSY: std::sync::LazyLock<State> = std::sync::LazyLock::new(|| {
        let mut state = State::new();
        for bytes in busy_log() {
            applied(&mut state, 1, &bytes);
        }
        state
    });
    BUSY.clone()
}

fn busy_log() -> Vec<Vec<u8>> {
    let mut state = State::new();
    let mut log = Vec::new();
    for step in BUSY_STEPS {
        let mut bytes = Bytes::new(step);
        let entry = if log.is_empty() { founding() } else { next(&state, &mut bytes) };
        let encoded = entry.encode().expect("a step of the corpus is encoded");
        applied(&mut state, 1, &encoded);
        log.push(encoded);
    }
    log
}

/// A founding, workers, a flow, plans, reports and a cancel.
const BUSY_STEPS: [&[u8]; 11] = [
    &[],
    &[0, 0, 1, 1, 30, 0, 0, 1],
    &[0, 0, 1, 2, 8, 0, 0, 2],
    &[0, 0, 0, 1, 1, 3, 2, 5, 1, 9, 7, 9, 0, 1, 1, 1, 1, 2, 0, 0],
    &[0, 0, 0, 0, 0, 2, 12, 20, 3, 4, 0, 0],
    &[0, 0, 2, 30],
    &[0, 0, 4, 0, 90, 60, 0, 0, 0],
    &[0, 0, 4, 1, 200, 120, 1, 0, 0],
    &[0, 0, 2, 10],
    &[0, 0, 5, 0, 2, 0],
    &[0, 0, 7, 1, 2, 0, 9],
];

pub(crate) fn entry_corpus() -> Vec<Vec<u8>> {
    let mut corpus = busy_log();
    let state = busy();
    // One of each kind that the log lacks, so that a mutation of it is never far.
    for step in
        [&[0, 0, 3, 1, 4, 0, 3][..], &[0, 0, 6, 0, 255], &[0, 0, 8, 1, 1], &[0, 0, 9, 0, 0], &[0, 0, 10]]
    {
        corpus.push(next(&state, &mut Bytes::new(step)).encode().expect("a command is encoded"));
    }
    corpus.extend(identities::entries());
    corpus
}

/// Commands chosen by the bytes, into one state: after each the invariants hold, nothing is a bug of Grey's own, and at
/// the end another replica has come to the same.
pub(crate) fn sequence(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (mut state, mut log) = (State::new(), Vec::new());
    for number in 0..STEPS {
        if number > 0 && bytes.is_empty() {
            break;
        }
        let encoded = if number == 0 {
            founding().encode().expect("the founding is encoded")
        } else if bytes.chance(32) {
            bytes.slice(64).to_vec()
        } else {
            match next(&state, &mut bytes).encode() {
                Ok(encoded) => encoded,
                Err(_) => continue,
            }
        };
        if applied(&mut state, 1, &encoded).is_some() {
            log.push(encoded);
        }
        if number % 16 == 15 {
            round_trips(&state);
        }
    }
    let mut other = State::new();
    for encoded in &log {
        applied(&mut other, 1, encoded);
    }
    assert_eq!(state.hash(), other.hash(), "replicas agree");
    assert!(state == other);
    round_trips(&state);
    let stolen = steal(&state, PLANNED);
    assert_eq!(stolen, steal(&state, PLANNED));
    let plan = planned(&state, PLANNED);
    let tasks: u64 = plan.placements.iter().map(|placement| u64::from(placement.tasks.count)).sum();
    let entry = Entry { time_ms: state.meta().time_ms, command: Command::Plan(plan) };
    let answer = applied(&mut state, 1, &entry.encode().expect("a plan is encoded"));
    assert_eq!(
        answer,
        Some(Ok(Answer::Planned { placed: tasks, stale: 0 })),
        "what is planned can be placed"
    );
}

pub(crate) fn sequence_corpus() -> Vec<Vec<u8>> {
    let whole: Vec<u8> = BUSY_STEPS.iter().skip(1).flat_map(|step| [&[0][..], step].concat()).collect();
    let twice = [whole.clone(), whole.clone()].concat();
    let mut random = crate::Random::seeded(21);
    let joined = identities::STEPS.iter().flat_map(|step| [&[0, 0, 0, 11][..], step].concat()).collect();
    let mut corpus = vec![whole, twice, joined];
    corpus.extend((0..6).map(|_| random.bytes(400)));
    corpus
}

/// The command that bytes choose in a state, and how far time has gone on.
pub(crate) fn next(state: &State, bytes: &mut Bytes<'_>) -> Entry {
    let passed_ms = match bytes.below(4) {
        0 => u64::from(bytes.byte()),
        1 => 10_000,
        2 => bytes.near(0),
        _ => u64::from(bytes.byte()) * 100,
    };
    let command = match bytes.below(12) {
        0 => Command::Submit(submit(state, bytes)),
        1 => register(state, bytes),
        2 => Command::Plan(planned(state, u32::from(bytes.byte()))),
        3 => Command::Plan(Plan { version: 1, placements: placements(state, bytes) }),
        4 => report(state, bytes),
        5 => Command::Cancel(Cancel {
            tenant: tenant(bytes),
            target: target(state, bytes),
            wall_ms: bytes.near(2_000),
        }),
        6 => revoked(state, bytes),
        7 => {
            let (tenant, target) = (tenant(bytes), target(state, bytes));
            Command::ChangeTimeout(ChangeTimeout { tenant, target, timeout_ms: bytes.near(60_000) })
        }
        8 | 9 => presence(state, bytes),
        11 => identities::command(bytes),
        _ => Command::Tick,
    };
    Entry { time_ms: state.meta().time_ms.saturating_add(passed_ms), command }
}

fn tenant(bytes: &mut Bytes<'_>) -> TenantId {
    TenantId(match bytes.below(8) {
        0..=5 => 2,
        6 => 1,
        _ => bytes.near(3) as u32,
    })
}

fn resources(bytes: &mut Bytes<'_>) -> Resources {
    let amount = |bytes: &mut Bytes<'_>| match bytes.below(8) {
        0 => bytes.near(1 << 48),
        other => u64::from(other) * 100,
    };
    Resources { cpu_millicores: amount(bytes), memory_bytes: amount(bytes), disk_bytes: 0 }
}

fn devices(bytes: &mut Bytes<'_>) -> Vec<Devices> {
    match bytes.below(4) {
        0 => vec![Devices { name: "gpu".to_owned(), count: u32::from(bytes.byte()) }],
        _ => Vec::new(),
    }
}

fn labels(bytes: &mut Bytes<'_>) -> Vec<(String, String)> {
    match bytes.below(4) {
        0 => vec![("zone".to_owned(), if bytes.chance(2) { "a" } else { "b" }.to_owned())],
        _ => Vec::new(),
    }
}

pub(crate) fn spec(bytes: &mut Bytes<'_>) -> TaskSpec {
    TaskSpec {
        name: String::from_utf8_lossy(bytes.slice(3)).into_owned(),
        executor: if bytes.chance(3) { ExecutorKind::Noop } else { ExecutorKind::Process },
        command: vec!["true".to_owned()],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: resources(bytes),
        devices: devices(bytes),
        constraints: Constraints { labels: labels(bytes), ..Constraints::default() },
        priority: bytes.byte(),
        retries: Retries { failure: bytes.below(3).into(), infrastructure: bytes.below(3).into() },
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    }
}

fn submit(state: &State, bytes: &mut Bytes<'_>) -> Submit {
    let keyed = bytes.chance(4);
    let groups: Vec<GroupSubmission> = (0..bytes.below(5))
        .map(|_| GroupSubmission {
            count: match bytes.below(16) {
                0 => bytes.near(1_000_000) as u32,
                1 => 0,
                other => u32::from(other),
            },
            spec: spec(bytes),
        })
        .collect();
    let flow = flow(state, groups.len(), bytes);
    let key =
        keyed.then(|| IdempotencyKey { key: bytes.below(4).to_string(), body: Digest([bytes.below(3); 32]) });
    let (tenant, labels) = (tenant(bytes), labels(bytes));
    let (submitter, name) = ("somebody".to_owned(), String::new());
    Submit { tenant, submitter, name, labels, key, groups, flow, wall_ms: bytes.near(2_000) }
}

/// A stage for each group, most of which wait for earlier ones.
fn flow(state: &State, groups: usize, bytes: &mut Bytes<'_>) -> FlowSubmission {
    if !bytes.chance(2) {
        return FlowSubmission::default();
    }
    let stage = |number: u32, bytes: &mut Bytes<'_>| {
        let after: Vec<u32> = match bytes.below(4) {
            0 => Vec::new(),
            1 => (0..number).collect(),
            2 => number.checked_sub(1).into_iter().collect(),
            _ => vec![bytes.byte().into()],
        };
        let task = state.live().keys().next().copied().unwrap_or(TaskId(1));
        let sources = match after.first() {
            Some(first) => vec![Source::Stage(*first)],
            None => vec![Source::Tasks(TaskRange { first: task, count: bytes.near(1) as u32 })],
        };
        let inputs = vec![StageInput { path: "in".to_owned(), sources }];
        StageSubmission {
            groups: 1,
            after,
            inputs: if bytes.chance(3) { inputs } else { Vec::new() },
            items: bytes.chance(4).then(|| Items::Numbers(bytes.number() as i64)),
        }
    };
    FlowSubmission {
        parallel: bytes.chance(3).then(|| bytes.byte().into()),
        max_failures: bytes.chance(4).then(|| bytes.below(3).into()),
        stages: (0u32..).zip(0..groups).map(|(number, _)| stage(number, bytes)).collect(),
    }
}

/// A worker of the state; its row, and the attempts that it holds.
fn worker(state: &State, bytes: &mut Bytes<'_>) -> (WorkerId, u64, u64, Vec<AttemptId>) {
    let known: Vec<WorkerId> = state.workers().keys().copied().collect();
    let worker = bytes.pick(&known).unwrap_or(WorkerId(1));
    let held = state.live().iter().filter(|(_, live)| live.phase.worker() == Some(worker));
    let held = held.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect();
    let row = state.workers().get(&worker);
    (worker, row.map_or(1, |row| row.incarnation), row.map_or(1, |row| row.session), held)
}

fn attempt(bytes: &mut Bytes<'_>) -> AttemptId {
    AttemptId { task: TaskId(bytes.near(5)), epoch: Epoch(bytes.near(1) as u32) }
}

fn register(state: &State, bytes: &mut Bytes<'_>) -> Command {
    let node = Digest([bytes.below(4); 32]);
    let slots = match bytes.byte() {
        255 => bytes.near(16_384) as u32,
        other => u32::from(other),
    };
    let known = state.workers().iter().find(|(_, row)| row.node == node);
    let restart = bytes.below(4);
    let (incarnation, session) = match (known, restart) {
        (Some((_, row)), 0 | 1) => (row.incarnation, row.session.saturating_add(restart.into())),
        (Some((_, row)), 2) => (row.incarnation.saturating_add(1), 1),
        _ => (bytes.near(1), bytes.near(1)),
    };
    let keeps = bytes.byte();
    let mut holding: Vec<AttemptId> = state
        .live()
        .iter()
        .filter(|(_, live)| live.phase.worker() == known.map(|(id, _)| *id) && known.is_some())
        .map(|(task, live)| AttemptId { task: *task, epoch: live.epoch })
        .filter(|attempt| (attempt.task.0 as u8).wrapping_mul(31) >= keeps)
        .collect();
    if bytes.chance(8) {
        holding.push(attempt(bytes));
    }
    Command::RegisterWorker(RegisterWorker {
        node,
        name: "host".to_owned(),
        incarnation,
        session,
        capacity: if bytes.chance(4) {
            resources(bytes)
        } else {
            Resources { cpu_millicores: 4_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 }
        },
        slots,
        sandbox: SandboxLevel::PidNamespace,
        labels: labels(bytes),
        devices: devices(bytes),
        certificate: node,
        holding,
    })
}

fn placements(state: &State, bytes: &mut Bytes<'_>) -> Vec<Placement> {
    let waiting: Vec<TaskId> = state.ready().values().flatten().map(|key| key.task).collect();
    (0..bytes.below(4))
        .map(|_| {
            let first = bytes.pick(&waiting).unwrap_or(TaskId(1));
            Placement {
                worker: worker(state, bytes).0,
                tasks: TaskRange { first: TaskId(bytes.near(first.0)), count: bytes.near(2) as u32 },
                epoch: Epoch(bytes.near(1) as u32),
            }
        })
        .collect()
}

fn finished(tasks: TaskRange, epoch: Epoch, outcome: Outcome, usages: usize) -> Finished {
    let usage = Usage { started_at_ms: 5_000, duration_us: 7_000, cpu_time_us: 10, peak_memory_bytes: 4_096 };
    let result = AttemptResult {
        outcome,
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(b"hello\n".to_vec()),
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    };
    Finished { tasks, epoch, result, usage: vec![usage; usages] }
}

const OUTCOMES: [Outcome; 5] =
    [Outcome::Exited(0), Outcome::Exited(3), Outcome::TimedOut, Outcome::Infrastructure, Outcome::Cancelled];

fn report(state: &State, bytes: &mut Bytes<'_>) -> Command {
    let (worker, incarnation, session, held) = worker(state, bytes);
    let (starts, ends) = (bytes.byte(), bytes.byte());
    let outcome = bytes.byte();
    let (mut started, mut runs) = (Vec::new(), Vec::new());
    for attempt in held {
        let chance = (attempt.task.0 as u8).wrapping_mul(57);
        if chance < ends {
            let outcome = OUTCOMES.get(usize::from(outcome.wrapping_add(chance / 64)) % 5).copied();
            let outcome = outcome.unwrap_or(Outcome::TimedOut);
            runs.push(finished(TaskRange::single(attempt.task), attempt.epoch, outcome, 1));
        } else if chance < starts {
            started.push(attempt);
        }
    }
    if bytes.chance(8) {
        let AttemptId { task, epoch } = attempt(bytes);
        let (count, usages) = (bytes.near(2) as u32, usize::from(bytes.below(4)));
        runs.push(finished(TaskRange { first: task, count }, epoch, Outcome::Exited(0), usages));
    }
    let signed = runs.is_empty() == bytes.chance(16);
    let last = state.workers().get(&worker).map_or(0, |row| row.last_sequence);
    Command::Report(Report {
        worker,
        incarnation,
        session,
        sequence: if bytes.chance(8) { bytes.near(last) } else { last.saturating_add(1) },
        slots: bytes.near(16) as u32,
        started,
        finished: runs,
        signed: signed.then(|| SignedRoot {
            root: Digest::of(b"root"),
            salt: [1; 32],
            signature: vec![7; 64],
        }),
    })
}

fn target(state: &State, bytes: &mut Bytes<'_>) -> Target {
    let jobs: Vec<JobId> = state.jobs().keys().copied().collect();
    match (bytes.below(3), bytes.pick(&jobs)) {
        (0, Some(job)) => Target::Job(job),
        _ => Target::Task(TaskId(bytes.near(3))),
    }
}

fn revoked(state: &State, bytes: &mut Bytes<'_>) -> Command {
    let (worker, incarnation, _, mut attempts) = worker(state, bytes);
    let chance = bytes.byte();
    attempts.retain(|attempt| (attempt.task.0 as u8).wrapping_mul(91) < chance);
    if bytes.chance(8) {
        attempts.push(attempt(bytes));
    }
    Command::Revoked(Revoked { worker, incarnation, attempts })
}

fn presence(state: &State, bytes: &mut Bytes<'_>) -> Command {
    let (worker, incarnation, session, _) = worker(state, bytes);
    match bytes.below(5) {
        4 => {
            let node = state.workers().get(&worker).map_or(Digest::ZERO, |row| row.node);
            Command::SetQuarantine(SetQuarantine { node, quarantined: bytes.chance(2) })
        }
        0 => Command::LoseWorker(LoseWorker { worker, incarnation, session }),
        1 if bytes.chance(2) => Command::QuarantineWorker(QuarantineWorker { worker, incarnation, session }),
        other => Command::SuspectWorker(SuspectWorker { worker, incarnation, session, suspected: other > 1 }),
    }
}
