//! What each part costs, a thousand tasks at a time. `cargo bench --bench parts`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "criterion's macros make functions without them")]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use grey_core::{
    Answer, AttemptResult, Bootstrap, Command, Content, Entry, ExecutorKind, Finished, GroupSubmission,
    Outcome, RegisterWorker, Report, ReportedRun, Resources, Retries, RunContext, SandboxLevel, SignedRoot,
    Signer, State, Submit, TaskDefaults, TaskRange, TaskSpec, TenantId, TenantRecord, Usage, UsageSource,
    WorkerId, apply_entry, check_report, leaves, plan, report_root,
};
use grey_proof::{Digest, ReportHeader, SigningKey, derive_seed, merkle_root};
use grey_replica::{HardState, LogEntry, LogEntryKind, PersistBatch};
use grey_store::{Folder, Storage, StorageOptions};

const TASKS: u32 = 1_000;

fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

fn signer() -> Signer {
    Signer {
        cluster: Digest::of(b"cluster"),
        node: key().verifying_key().id(),
        certificate: Digest::of(b"certificate"),
    }
}

fn spec(name: String) -> TaskSpec {
    TaskSpec {
        name,
        executor: ExecutorKind::Noop,
        command: Vec::new(),
        environment: Vec::new(),
        stdin: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources::default(),
        priority: 100,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
    }
}

fn step(state: &mut State, command: Command) -> Result<Answer, grey_core::Rejection> {
    let (index, time_ms) = (state.applied_index() + 1, state.meta().time_ms);
    apply_entry(state, 1, index, Entry { time_ms, command }).answer
}

fn founded() -> State {
    let mut state = State::new();
    let defaults = TaskDefaults {
        resources: Resources::default(),
        timeout_ms: 60_000,
        output_limit_bytes: 1 << 20,
        priority: 100,
    };
    let tenants = vec![TenantRecord { name: "default".to_owned(), defaults }];
    step(&mut state, Command::Bootstrap(Bootstrap { cluster: signer().cluster, wall_ms: 1, tenants }))
        .unwrap();
    let register = RegisterWorker {
        node: signer().node,
        name: "host".to_owned(),
        incarnation: 1,
        session: 1,
        capacity: Resources { cpu_millicores: 2_000, memory_bytes: 1 << 30, disk_bytes: 0 },
        slots: 16_000,
        sandbox: SandboxLevel::PidNamespace,
        labels: Vec::new(),
        devices: Vec::new(),
        certificate: signer().certificate,
        holding: Vec::new(),
    };
    step(&mut state, Command::RegisterWorker(register)).unwrap();
    state
}

fn submission(distinct: bool) -> Command {
    let groups = if distinct {
        (0..TASKS).map(|n| GroupSubmission { spec: spec(format!("n{n}")), count: 1 }).collect()
    } else {
        vec![GroupSubmission { spec: spec(String::new()), count: TASKS }]
    };
    Command::Submit(Submit {
        tenant: TenantId(1),
        submitter: String::new(),
        name: String::new(),
        labels: Vec::new(),
        key: None,
        groups,
        flow: Default::default(),
        wall_ms: 1,
    })
}

fn usage() -> Usage {
    Usage { started_at_ms: 1_795_512_600_000, duration_us: 1_000, cpu_time_us: 900, peak_memory_bytes: 4_096 }
}

fn result() -> AttemptResult {
    AttemptResult {
        outcome: Outcome::Exited(0),
        sandbox: SandboxLevel::None,
        usage_source: UsageSource::None,
        stdout: Content::EMPTY,
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    }
}

/// A state with a thousand assigned tasks, and the report of all of them.
fn reportable(distinct: bool) -> (State, Report, Vec<ReportedRun>) {
    let mut state = founded();
    step(&mut state, submission(distinct)).unwrap();
    let planned = plan(&state, TASKS);
    step(&mut state, Command::Plan(planned.clone())).unwrap();
    let runs: Vec<ReportedRun> = planned
        .placements
        .iter()
        .flat_map(|placement| {
            let each: Vec<TaskRange> = if distinct {
                placement.tasks.tasks().map(TaskRange::single).collect()
            } else {
                vec![placement.tasks]
            };
            each.into_iter().map(|tasks| (tasks, placement.epoch))
        })
        .map(|(tasks, epoch)| {
            let (group, row) = state.group_of(tasks.first).unwrap();
            let live = &state.live()[&tasks.first];
            let assigned = vec![(live.assigned_term, live.assigned_index); tasks.count as usize];
            let spec = state.spec(group).unwrap();
            ReportedRun {
                context: Some(RunContext {
                    first_item: None,
                    job: row.job,
                    tenant: "default".to_owned(),
                    executor: spec.executor,
                    exec_key: spec.exec_key(None),
                    assigned,
                }),
                finished: Finished {
                    tasks,
                    epoch,
                    result: result(),
                    usage: vec![usage(); tasks.count as usize],
                },
            }
        })
        .collect();
    let salt = derive_seed(&[9; 32], "salt");
    let root = report_root(&signer(), &salt, &runs).unwrap();
    let header = header(root);
    let signature = header.sign(&key()).unwrap().to_vec();
    let report = Report {
        worker: WorkerId(1),
        incarnation: 1,
        session: 1,
        sequence: 1,
        slots: 16_000,
        started: Vec::new(),
        finished: runs.iter().map(|run| run.finished.clone()).collect(),
        signed: Some(SignedRoot { root, salt, signature }),
    };
    (state, report, runs)
}

fn header(root: Digest) -> ReportHeader {
    let Signer { cluster, node, certificate } = signer();
    ReportHeader {
        cluster,
        worker_id: node,
        certificate,
        incarnation: 1,
        sequence: 1,
        leaf_count: TASKS,
        root,
    }
}

fn core(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    group.throughput(Throughput::Elements(u64::from(TASKS)));
    for (name, distinct) in [("equal", false), ("different", true)] {
        group.bench_function(format!("submit/{name}"), |bencher| {
            let setup = || (founded(), submission(distinct));
            bencher.iter_batched_ref(
                setup,
                |(state, command)| step(state, command.clone()),
                BatchSize::LargeInput,
            );
        });
        group.bench_function(format!("plan and apply/{name}"), |bencher| {
            let setup = || {
                let mut state = founded();
                step(&mut state, submission(distinct)).unwrap();
                state
            };
            let run = |state: &mut State| {
                let planned = plan(state, TASKS);
                step(state, Command::Plan(planned))
            };
            bencher.iter_batched_ref(setup, run, BatchSize::LargeInput);
        });
        group.bench_function(format!("report/{name}"), |bencher| {
            let setup = || reportable(distinct);
            let run = |(state, report, _): &mut (State, Report, Vec<ReportedRun>)| {
                step(state, Command::Report(report.clone()))
            };
            bencher.iter_batched_ref(setup, run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn proof(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("proof");
    group.throughput(Throughput::Elements(u64::from(TASKS)));
    for (name, distinct) in [("equal", false), ("different", true)] {
        let (state, report, runs) = reportable(distinct);
        let salt = report.signed.as_ref().unwrap().salt;
        group.bench_function(format!("worker states and signs/{name}"), |bencher| {
            bencher.iter(|| {
                let root = report_root(&signer(), &salt, &runs).unwrap();
                header(root).sign(&key()).unwrap()
            });
        });
        group.bench_function(format!("leader checks/{name}"), |bencher| {
            let verifying = key().verifying_key();
            bencher.iter(|| check_report(&state, &report, &verifying).unwrap());
        });
        group.bench_function(format!("leaves/{name}"), |bencher| {
            bencher.iter(|| leaves(&signer(), &salt, &runs).unwrap());
        });
    }
    let hashes: Vec<Digest> = (0..TASKS).map(|n| Digest::of(&n.to_le_bytes())).collect();
    group.bench_function("merkle root", |bencher| bencher.iter(|| merkle_root(&hashes)));
    group.finish();
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    for size in [200usize, 60_000, 1_000_000] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Arc::new(Folder::open(directory.path()).unwrap());
        let (mut storage, _) = Storage::open(disk, &StorageOptions::default()).unwrap();
        let data = Bytes::from(vec![7u8; size]);
        let mut index = 0;
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("append and sync/{size} bytes"), |bencher| {
            bencher.iter(|| {
                index += 1;
                let entry = LogEntry { term: 1, index, kind: LogEntryKind::Normal, data: data.clone() };
                let hard_state = (index == 1).then_some(HardState { term: 1, vote: 1, commit: 0 });
                storage
                    .log
                    .append(&[PersistBatch {
                        number: index,
                        hard_state,
                        entries: vec![entry],
                        ..PersistBatch::default()
                    }])
                    .unwrap();
                if index.is_multiple_of(64) {
                    storage.log.truncate_through(index).unwrap();
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, core, proof, store);
criterion_main!(benches);
