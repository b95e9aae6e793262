//! Builders of commands, and random ones that often make sense.
#![allow(dead_code, reason = "each suite uses a part of it")]

use grey_core::{
    AdmitNode, AttemptId, AttemptResult, Bootstrap, Cancel, Command, Content, CordonNode, CreateJoinToken,
    CreateTenant, CreateToken, EnrolFounder, Entry, Epoch, ExecutorKind, Finished, FlowSubmission,
    ForgetNode, GroupSubmission, IdempotencyKey, JobId, JoinTokenRow, Keeper, LoseWorker,
    NEWEST_FEATURE_LEVEL, NewNode, NodeRole, NodeStanding, NodeVersion, Outcome, Phase, RaiseFeatureLevel,
    RateLimit, Recover, RegisterWorker, RenewNode, Report, Resources, Retries, RevokeJoinToken, RevokeToken,
    Revoked, SandboxLevel, SetIssuingAuthority, SetNodeAddress, SetNodeStanding, SetNodeVersion,
    SetTenantQuota, SetTenantSuspended, SignedRoot, StageSubmission, State, Submit, SuspectWorker, Target,
    TaskDefaults, TaskId, TaskRange, TaskSpec, TenantId, TenantRecord, Tier, TokenRole, TokenRow, Usage,
    UsageSource, Worker, WorkerId, apply, plan,
};
use grey_proof::Digest;
use proptest::prelude::*;

pub const TENANT: TenantId = TenantId(2);

pub fn bootstrap() -> Entry {
    let defaults = TaskDefaults {
        resources: Resources { cpu_millicores: 100, memory_bytes: 1 << 20, disk_bytes: 0 },
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
        priority: 100,
    };
    let tenant = |name: &str| TenantRecord { name: name.to_owned(), defaults };
    let body = Bootstrap {
        cluster: Digest::of(b"cluster"),
        wall_ms: 1_000,
        tenants: vec![tenant("system"), tenant("default")],
    };
    Entry { time_ms: 0, command: Command::Bootstrap(body) }
}

/// A founded cluster, and its log so far.
pub fn founded() -> (State, Vec<Vec<u8>>) {
    let mut state = State::new();
    let bytes = bootstrap().encode().unwrap();
    assert!(apply(&mut state, 1, 1, &bytes).unwrap().answer.is_ok());
    (state, vec![bytes])
}

/// The same at the newest feature level, as a cluster of one process is.
pub fn founded_at_newest() -> (State, Vec<Vec<u8>>) {
    let (mut state, mut log) = founded();
    for level in state.feature_level() + 1..=NEWEST_FEATURE_LEVEL {
        let command = Command::RaiseFeatureLevel(RaiseFeatureLevel { level });
        log.push(Entry { time_ms: state.meta().time_ms, command: command.clone() }.encode().unwrap());
        applied(&mut state, command).answer.unwrap();
    }
    (state, log)
}

/// Applies a command and returns what it came to.
pub fn applied(state: &mut State, command: Command) -> grey_core::Applied {
    let entry = Entry { time_ms: state.meta().time_ms, command };
    let index = state.applied_index() + 1;
    let applied = apply(state, 1, index, &entry.encode().unwrap()).unwrap();
    state.check().unwrap();
    applied
}

/// Lets cluster time pass, step by step, as it is bound to.
pub fn pass(state: &mut State, ms: u64) {
    let target_ms = state.meta().time_ms + ms;
    while state.meta().time_ms < target_ms {
        let entry = Entry { time_ms: target_ms, command: Command::Tick };
        let index = state.applied_index() + 1;
        apply(state, 1, index, &entry.encode().unwrap()).unwrap();
        state.check().unwrap();
    }
}

pub fn spec(name: &str) -> TaskSpec {
    TaskSpec {
        name: name.to_owned(),
        executor: ExecutorKind::Process,
        command: vec!["true".to_owned()],
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpu_millicores: 100, memory_bytes: 1 << 20, disk_bytes: 0 },
        priority: 100,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries { failure: 1, infrastructure: 2 },
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    }
}

pub fn submit(groups: Vec<(TaskSpec, u32)>) -> Submit {
    Submit {
        tenant: TENANT,
        submitter: "somebody".to_owned(),
        name: String::new(),
        labels: Vec::new(),
        key: None,
        groups: groups.into_iter().map(|(spec, count)| GroupSubmission { spec, count }).collect(),
        flow: Default::default(),
        wall_ms: 2_000,
    }
}

fn devices(count: u32) -> Vec<grey_core::Devices> {
    if count == 0 { Vec::new() } else { vec![grey_core::Devices { name: "gpu".to_owned(), count }] }
}

/// The first announcement of a worker's life.
pub fn register(node: u8, incarnation: u64, slots: u32, holding: Vec<AttemptId>) -> Command {
    announce(node, incarnation, 1, slots, holding)
}

/// An announcement of a worker.
pub fn announce(node: u8, incarnation: u64, session: u64, slots: u32, holding: Vec<AttemptId>) -> Command {
    Command::RegisterWorker(RegisterWorker {
        node: Digest([node; 32]),
        name: format!("host-{node}"),
        incarnation,
        session,
        capacity: Resources { cpu_millicores: 1_000, memory_bytes: 1 << 30, disk_bytes: 0 },
        slots,
        sandbox: SandboxLevel::PidNamespace,
        labels: vec![("zone".to_owned(), if node.is_multiple_of(2) { "a" } else { "b" }.to_owned())],
        devices: devices(u32::from(node % 3)),
        certificate: Digest([node; 32]),
        holding,
    })
}

pub fn result(outcome: Outcome) -> AttemptResult {
    AttemptResult {
        outcome,
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(b"hello\n".to_vec()),
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    }
}

pub fn finished(tasks: TaskRange, epoch: Epoch, outcome: Outcome) -> Finished {
    let usage = Usage { started_at_ms: 5_000, duration_us: 7_000, cpu_time_us: 10, peak_memory_bytes: 4_096 };
    Finished { tasks, epoch, result: result(outcome), usage: vec![usage; tasks.count as usize] }
}

/// A report of the worker's present life, next in order.
pub fn report(state: &State, worker: WorkerId, started: Vec<AttemptId>, finished: Vec<Finished>) -> Report {
    let row = &state.workers()[&worker];
    let signed = (!finished.is_empty()).then(|| SignedRoot {
        root: Digest::of(b"root"),
        salt: [1; 32],
        signature: vec![7; 64],
    });
    Report {
        worker,
        incarnation: row.incarnation,
        session: row.session,
        sequence: row.last_sequence + 1,
        slots: row.slots,
        started,
        finished,
        signed,
    }
}

/// One random step. Numbers choose among what the state has when the step is taken.
#[derive(Debug, Clone)]
pub enum Step {
    Submit { groups: Vec<(u8, u8)>, key: Option<u8>, tenant: u32 },
    Register { node: u8, restart: bool, hold: u8, slots: u8 },
    Plan { budget: u8 },
    Stale { task: u8, count: u8, worker: u8, epoch: u8 },
    Report { worker: u8, start: u8, finish: u8, outcome: u8, wrong_epoch: bool, again: bool },
    Cancel { job: bool, number: u8, tenant: u32 },
    Revoke { worker: u8, chance: u8 },
    Suspect { worker: u8, suspected: bool },
    Lose { worker: u8, late: bool },
    Quarantine { worker: u8, ordered: Option<bool> },
    Timeout { job: bool, number: u8, tenant: u32, timeout_ms: u64 },
    Identity { kind: u8, seed: u8, other: u8, late_ms: u64 },
    Tick { ms: u32 },
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (proptest::collection::vec((any::<u8>(), 1u8..20), 0..4), proptest::option::of(0u8..4), 1u32..4)
            .prop_map(|(groups, key, tenant)| Step::Submit { groups, key, tenant }),
        2 => (0u8..3, any::<bool>(), any::<u8>(), 0u8..40)
            .prop_map(|(node, restart, hold, slots)| Step::Register { node, restart, hold, slots }),
        4 => (1u8..).prop_map(|budget| Step::Plan { budget }),
        1 => (any::<u8>(), any::<u8>(), 0u8..4, 0u8..4)
            .prop_map(|(task, count, worker, epoch)| Step::Stale { task, count, worker, epoch }),
        6 => (0u8..4, any::<u8>(), any::<u8>(), any::<u8>(), proptest::bool::weighted(0.1), proptest::bool::weighted(0.1))
            .prop_map(|(worker, start, finish, outcome, wrong_epoch, again)| {
                Step::Report { worker, start, finish, outcome, wrong_epoch, again }
            }),
        2 => (any::<bool>(), any::<u8>(), 1u32..4).prop_map(|(job, number, tenant)| Step::Cancel { job, number, tenant }),
        1 => (0u8..4, any::<u8>()).prop_map(|(worker, chance)| Step::Revoke { worker, chance }),
        1 => (0u8..4, any::<bool>()).prop_map(|(worker, suspected)| Step::Suspect { worker, suspected }),
        1 => (0u8..4, proptest::bool::weighted(0.2)).prop_map(|(worker, late)| Step::Lose { worker, late }),
        1 => (0u8..4, proptest::option::of(any::<bool>()))
            .prop_map(|(worker, ordered)| Step::Quarantine { worker, ordered }),
        1 => (any::<bool>(), any::<u8>(), 1u32..4, 0u64..90_000)
            .prop_map(|(job, number, tenant, timeout_ms)| Step::Timeout { job, number, tenant, timeout_ms }),
        3 => (0u8..16, 0u8..4, 0u8..6, 0u64..3_000)
            .prop_map(|(kind, seed, other, late_ms)| Step::Identity { kind, seed, other, late_ms }),
        1 => any::<u32>().prop_map(|ms| Step::Tick { ms }),
    ]
}

/// The entry that a step becomes in a state.
pub fn entry_for(state: &State, step: &Step, number: u64) -> Entry {
    let command = match step {
        Step::Submit { groups, key, tenant } => Command::Submit(random_submit(groups, *key, *tenant)),
        Step::Register { node, restart, hold, slots } => {
            random_register(state, *node, *restart, *hold, *slots)
        }
        Step::Plan { budget } => Command::Plan(plan(state, u32::from(*budget))),
        Step::Stale { task, count, worker, epoch } => Command::Plan(grey_core::Plan {
            version: 1,
            placements: vec![grey_core::Placement {
                worker: WorkerId(u32::from(*worker)),
                tasks: TaskRange { first: TaskId(u64::from(*task)), count: u32::from(*count) },
                epoch: Epoch(u32::from(*epoch)),
            }],
        }),
        Step::Report { .. } => random_report(state, step),
        Step::Cancel { job, number, tenant } => Command::Cancel(Cancel {
            tenant: TenantId(*tenant),
            target: target(state, *job, *number),
            wall_ms: 1_800_000_000_000,
        }),
        Step::Revoke { worker, chance } => {
            let workers: Vec<WorkerId> = state.workers().keys().copied().collect();
            let Some(worker) = pick(&workers, *worker) else {
                return Entry { time_ms: state.meta().time_ms, command: Command::Tick };
            };
            let mut attempts = held_by(state, worker);
            attempts.retain(|attempt| (attempt.task.0 as u8).wrapping_mul(91) < *chance);
            let incarnation = state.workers()[&worker].incarnation;
            Command::Revoked(Revoked { worker, incarnation, attempts })
        }
        Step::Suspect { worker, suspected } => match pick_worker(state, *worker) {
            Some((worker, row)) => Command::SuspectWorker(SuspectWorker {
                worker,
                incarnation: row.incarnation,
                session: row.session,
                suspected: *suspected,
            }),
            None => Command::Tick,
        },
        Step::Quarantine { worker, ordered } => match (pick_worker(state, *worker), *ordered) {
            (Some((_, row)), Some(quarantined)) => {
                Command::SetQuarantine(grey_core::SetQuarantine { node: row.node, quarantined })
            }
            (Some((worker, row)), None) => Command::QuarantineWorker(grey_core::QuarantineWorker {
                worker,
                incarnation: row.incarnation,
                session: row.session,
            }),
            (None, _) => Command::Tick,
        },
        Step::Lose { worker, late } => match pick_worker(state, *worker) {
            Some((worker, row)) => Command::LoseWorker(LoseWorker {
                worker,
                incarnation: row.incarnation,
                session: row.session - u64::from(*late),
            }),
            None => Command::Tick,
        },
        Step::Timeout { job, number, tenant, timeout_ms } => {
            Command::ChangeTimeout(grey_core::ChangeTimeout {
                tenant: TenantId(*tenant),
                target: target(state, *job, *number),
                timeout_ms: *timeout_ms,
            })
        }
        Step::Identity { kind, seed, other, late_ms } => random_identity(*kind, *seed, *other, *late_ms),
        Step::Tick { .. } => Command::Tick,
    };
    let ms = if let Step::Tick { ms } = step { u64::from(*ms) } else { number };
    Entry { time_ms: state.meta().time_ms + ms, command }
}

fn pick_worker(state: &State, number: u8) -> Option<(WorkerId, Worker)> {
    let workers: Vec<WorkerId> = state.workers().keys().copied().collect();
    pick(&workers, number).map(|worker| (worker, state.workers()[&worker].clone()))
}

fn target(state: &State, job: bool, number: u8) -> Target {
    if job {
        let jobs: Vec<JobId> = state.jobs().keys().copied().collect();
        Target::Job(pick(&jobs, number).unwrap_or(JobId(u64::from(number))))
    } else {
        Target::Task(TaskId(u64::from(number)))
    }
}

fn pick<T: Copy>(from: &[T], number: u8) -> Option<T> {
    from.get(usize::from(number) % from.len().max(1)).copied()
}

fn random_submit(groups: &[(u8, u8)], key: Option<u8>, tenant: u32) -> Submit {
    let groups = groups
        .iter()
        .map(|(shape, count)| {
            let mut spec = spec(&shape.to_string());
            spec.priority = shape % 4;
            spec.resources.cpu_millicores = u64::from(shape % 16) * 100;
            if shape % 5 == 0 {
                spec.devices =
                    vec![grey_core::Devices { name: "gpu".to_owned(), count: 1 + u32::from(shape % 2) }];
            }
            if shape % 7 == 0 {
                let zone = if shape % 2 == 0 { "a" } else { "b" };
                spec.constraints.labels = vec![("zone".to_owned(), zone.to_owned())];
            }
            spec.retries = Retries { failure: u16::from(shape % 2), infrastructure: u16::from(shape % 3) };
            (spec, u32::from(*count))
        })
        .collect();
    let mut submit = submit(groups);
    submit.flow = random_flow(&submit.groups);
    submit.tenant = TenantId(tenant);
    submit.key = key.map(|key| IdempotencyKey { key: key.to_string(), body: Digest([key % 3; 32]) });
    submit
}

/// Each group a stage that may wait for the one before it, in about every second submission of several.
fn random_flow(groups: &[GroupSubmission]) -> FlowSubmission {
    let chance: u32 = groups.iter().map(|group| group.count * 7 + u32::from(group.spec.priority)).sum();
    if chance.is_multiple_of(2) {
        return FlowSubmission::default();
    }
    let stage = |number: u32| StageSubmission {
        groups: 1,
        after: if number > 0 && !(chance >> number).is_multiple_of(3) {
            vec![number - 1]
        } else {
            Vec::new()
        },
        inputs: Vec::new(),
        items: None,
    };
    FlowSubmission {
        parallel: chance.is_multiple_of(3).then_some(chance % 5),
        max_failures: chance.is_multiple_of(5).then_some(chance % 4),
        stages: (0u32..).zip(groups).map(|(number, _)| stage(number)).collect(),
    }
}

fn held_by(state: &State, worker: WorkerId) -> Vec<AttemptId> {
    let held = state.live().iter().filter(|(_, live)| live.phase.worker() == Some(worker));
    held.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect()
}

fn random_register(state: &State, node: u8, restart: bool, hold: u8, slots: u8) -> Command {
    let known = state.workers().iter().find(|(_, worker)| worker.node == Digest([node; 32]));
    let incarnation = known.map_or(1, |(_, worker)| worker.incarnation + u64::from(restart));
    let mut holding = known.map(|(id, _)| held_by(state, *id)).unwrap_or_default();
    holding.retain(|attempt| (attempt.task.0 as u8).wrapping_mul(31) >= hold);
    if hold == 7 {
        holding.push(AttemptId { task: TaskId(9_999), epoch: Epoch(1) });
    }
    let session = known.map_or(1, |(_, worker)| worker.session + u64::from(!slots.is_multiple_of(8)));
    announce(node, incarnation, session, u32::from(slots), holding)
}

fn random_report(state: &State, step: &Step) -> Command {
    let Step::Report { worker, start, finish, outcome, wrong_epoch, again } = step else { unreachable!() };
    let workers: Vec<WorkerId> = state.workers().keys().copied().collect();
    let Some(worker) = pick(&workers, *worker) else { return Command::Tick };
    let mut started = Vec::new();
    let mut runs: Vec<Finished> = Vec::new();
    for attempt in held_by(state, worker) {
        let chance = (attempt.task.0 as u8).wrapping_mul(57);
        if chance < *finish {
            let outcomes = [
                Outcome::Exited(0),
                Outcome::Exited(3),
                Outcome::TimedOut,
                Outcome::Infrastructure,
                Outcome::Cancelled,
            ];
            let outcome = pick(&outcomes, outcome.wrapping_add(chance / 64)).unwrap();
            let epoch = if *wrong_epoch { Epoch(attempt.epoch.0 + 1) } else { attempt.epoch };
            runs.push(finished(TaskRange::single(attempt.task), epoch, outcome));
        } else if chance < *start {
            started.push(attempt);
        }
    }
    let mut report = report(state, worker, started, runs);
    if *again {
        report.sequence -= 1;
    }
    Command::Report(report)
}

/// The phase of a live task.
pub fn phase(state: &State, task: u64) -> Option<Phase> {
    state.live().get(&TaskId(task)).map(|live| live.phase)
}

/// What is known of a node that enters, the same for the same number.
pub fn new_node(seed: u8, role: NodeRole) -> NewNode {
    let public_key = [seed; 32];
    NewNode {
        node: Digest::of(&public_key),
        public_key,
        tls_key: Digest::of(&[seed, 1]),
        name: format!("host-{seed}"),
        role,
        address: if role == NodeRole::Server { format!("10.0.0.{seed}:7654") } else { String::new() },
        tier: Tier::Software,
        evidence: Digest::of(b"evidence"),
        serial: u64::from(seed),
        certificate: (Digest::of(&[seed, 2]), vec![seed; 8]),
    }
}

/// The worker of such a node announces itself.
pub fn announcement(seed: u8) -> Command {
    announcement_in(seed, 1)
}

/// The same in a later session.
pub fn announcement_in(seed: u8, session: u64) -> Command {
    let Command::RegisterWorker(mut body) = announce(seed, 1, session, 4, Vec::new()) else { unreachable!() };
    body.node = Digest::of(&[seed; 32]);
    body.certificate = Digest::of(&[seed, 2]);
    Command::RegisterWorker(body)
}

fn random_upgrade(seed: u8, other: u8) -> Command {
    let choice = |of: u8| other.is_multiple_of(of);
    match seed % 4 {
        3 => Command::SetIssuingAuthority(SetIssuingAuthority {
            follows: (!choice(3)).then(|| Digest::of(&[other - 1, 9])),
            previous: choice(2).then(|| (Digest::of(b"first"), vec![1])),
            issuer: (Digest::of(&[other, 9]), vec![other]),
            serial: u64::from(other),
            not_after_wall_ms: 1_000 + u64::from(other),
            wall_ms: 1_001,
        }),
        0 => Command::SetNodeVersion(SetNodeVersion {
            node: Digest::of(&[seed; 32]),
            version: NodeVersion { understands: 3 + u16::from(other % 4), name: format!("0.{other}.0") },
        }),
        1 => Command::RaiseFeatureLevel(RaiseFeatureLevel { level: 3 + u16::from(other % 4) }),
        _ => {
            Command::SetTenantQuota(SetTenantQuota {
                tenant: TenantId(u32::from(seed % 4)),
                weight_milli: choice(3).then_some(u32::from(other) * 500),
                queued_tasks: choice(2).then_some((other > 1).then_some(u64::from(other) * 10)),
                rate: (!choice(2)).then_some((other > 2).then_some(RateLimit {
                    tasks_per_second: u64::from(other),
                    burst: u64::from(other) * 20,
                })),
            })
        }
    }
}

fn random_identity(kind: u8, seed: u8, other: u8, late_ms: u64) -> Command {
    let wall_ms = 1_000_000 + late_ms;
    let (node, id) = (Digest::of(&[seed; 32]), Digest::of(&[other, 3]));
    let role = if seed.is_multiple_of(2) { NodeRole::Server } else { NodeRole::Worker };
    let standing = [NodeStanding::Admitted, NodeStanding::Leaving, NodeStanding::Blocked];
    let token_role = TokenRole::ALL[usize::from(other) % TokenRole::ALL.len()];
    let token = TokenRow {
        id,
        name: "somebody".to_owned(),
        role: token_role,
        tenant: token_role.is_of_tenant().then_some(TENANT),
        expires_wall_ms: wall_ms + 1_000,
        created_wall_ms: wall_ms,
        created_by: String::new(),
    };
    match kind {
        0 => Command::EnrolFounder(EnrolFounder { node: new_node(0, NodeRole::Server), token, wall_ms }),
        // The same few tokens and nonces again and again, some of which are used or have expired.
        1 | 2 => Command::AdmitNode(AdmitNode {
            token: Digest::of(&[seed, 4]),
            nonce: [other; 32],
            node: new_node(seed, role),
            wall_ms,
        }),
        3 => Command::RenewNode(RenewNode {
            node,
            nonce: [other + 100; 32],
            tls_key: Digest::of(&[other + 50, 1]),
            tier: if other == 0 { Tier::None } else { Tier::Hardware },
            evidence: Digest::of(b"evidence"),
            serial: 100 + u64::from(other),
            certificate: (other > 1).then(|| (Digest::of(&[other + 50, 2]), vec![1])),
            wall_ms,
        }),
        4 if other > 2 => Command::CordonNode(CordonNode { node, cordoned: other == 3 }),
        4 => Command::SetNodeStanding(SetNodeStanding { node, standing: standing[usize::from(other) % 3] }),
        5 => Command::SetNodeAddress(SetNodeAddress { node, address: format!("h{other}:{other}") }),
        6 => Command::ForgetNode(ForgetNode { node }),
        7 => {
            let (expires_wall_ms, created_wall_ms) = (wall_ms + 1_000, wall_ms);
            let token = JoinTokenRow { id: Digest::of(&[seed, 4]), role, expires_wall_ms, created_wall_ms };
            Command::CreateJoinToken(CreateJoinToken { token })
        }
        8 => Command::RevokeJoinToken(RevokeJoinToken { id: Digest::of(&[seed, 4]) }),
        9 => Command::CreateToken(CreateToken { token }),
        10 => Command::RevokeToken(RevokeToken { id }),
        11 => announcement(seed),
        13 => Command::Recover(Recover { keeper: Keeper::Survivor(node), wall_ms }),
        14 => Command::Recover(Recover {
            keeper: Keeper::Newcomer { node: Box::new(new_node(seed, role)), token, issuers: Vec::new() },
            wall_ms,
        }),
        15 => random_upgrade(seed, other),
        _ if other > 2 => Command::SetTenantSuspended(SetTenantSuspended {
            tenant: TenantId(u32::from(seed)),
            suspended: other == 3,
        }),
        _ => {
            let Command::Bootstrap(founding) = bootstrap().command else { unreachable!() };
            Command::CreateTenant(CreateTenant {
                name: format!("tenant-{seed}"),
                defaults: founding.tenants[0].defaults,
                weight_milli: u32::from(other) * 500,
            })
        }
    }
}
