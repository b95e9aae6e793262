//! The life of tasks from submission to proof, on the real core, replica, store and agents under virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod simulation;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use grey_core::{
    Answer, AttemptId, Command, Entry, Epoch, EventKind, JobId, Outcome, Phase, Rejection, Resources,
    Retries, Signer, State, TaskId, leaves, limits, plan, report_header, statement,
};
use grey_proof::{
    BUNDLE_TYPE, BundledLeaf, BundledLog, Certificate, Digest, Evidence, LogEntry, ProofBundle,
    SignedCheckpoint, inclusion_path, leaf_salt, log_inclusion_path, report_digest, verify,
};
use simulation::{Simulation, WALL_MS, result, submission, task};

#[test]
fn test_basic_task_submission() {
    let mut simulation = Simulation::new();
    // Given: a disk that does not answer. Then nothing is acknowledged.
    simulation.hold_disk = true;
    let ticket = simulation.begin(submission(vec![(task(100), 3)]));
    simulation.run(200);
    assert_eq!(simulation.answer(ticket), None, "acknowledged before it is durable");
    assert!(simulation.state().jobs().is_empty());
    // When it answers, the submission has its ids, which follow one another.
    simulation.hold_disk = false;
    simulation.run(10);
    let Some(Ok(Answer::Submitted { job, tasks, duplicate: false })) = simulation.answer(ticket) else {
        panic!("{:?}", simulation.answer(ticket));
    };
    assert_eq!((*job, tasks.first, tasks.count), (JobId(1), TaskId(1), 3));
    assert_eq!(simulation.submit(vec![(task(100), 1)]), (JobId(2), TaskId(4)));
    let counts = simulation.counts(JobId(1));
    assert_eq!((counts.pending, counts.total()), (3, 3), "without a worker it waits");
    for wrong in [
        submission(vec![]),
        submission(vec![(task(100), 0)]),
        submission(vec![(grey_core::TaskSpec { command: vec![], ..task(100) }, 1)]),
        submission(vec![(grey_core::TaskSpec { timeout_ms: 0, ..task(100) }, 1)]),
    ] {
        assert!(matches!(simulation.propose(wrong), Err(Rejection::OutOfBounds { .. })));
    }
    assert_eq!(simulation.submit(vec![(task(100), 1)]), (JobId(3), TaskId(5)), "a refusal takes no id");
}

/// A state with workers of different sizes and tasks of different needs that wait.
fn crowded() -> State {
    let mut simulation = Simulation::new();
    for cpu_millicores in [4_000, 1_000, 2_500] {
        simulation.add_worker(cpu_millicores);
    }
    simulation.behave(|_| (10_000, Outcome::Exited(0)));
    for number in 0..20 {
        let spec = grey_core::TaskSpec { priority: (number % 5) as u8, ..task(100 + 170 * (number % 7)) };
        simulation.submit(vec![(spec, 1 + (number % 3) as u32)]);
    }
    simulation.run(100);
    simulation.state().clone()
}

fn plan_bytes(state: &State) -> Vec<u8> {
    Entry { time_ms: 0, command: Command::Plan(plan(state, 1_000)) }.encode().unwrap()
}

#[test]
fn test_deterministic_scheduling() {
    // The same inputs lead to the same state and the same plan, byte for byte, also in another process.
    let state = crowded();
    let digest = Digest::of(&[state.hash().0.as_slice(), &plan_bytes(&state)].concat());
    if std::env::var_os("GREY_TEST_PRINTS_ITS_PLAN").is_some() {
        println!("plan {digest}");
        return;
    }
    assert_eq!(crowded().hash(), state.hash());
    let rows = state.all_rows();
    let reloaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))).unwrap();
    assert_eq!(plan_bytes(&reloaded), plan_bytes(&state), "a state read from a checkpoint plans alike");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "test_deterministic_scheduling", "--nocapture"])
        .env("GREY_TEST_PRINTS_ITS_PLAN", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("plan {digest}")), "another process plans differently: {text}");
}

#[test]
fn test_resource_governance_enforcement() {
    let mut simulation = Simulation::new();
    simulation.add_worker(2_000);
    simulation.add_worker(1_000);
    // Given: tasks of which two fit on the first worker and one on the second, and one that fits nowhere.
    let (fitting, _) = simulation.submit(vec![(task(900), 30)]);
    let (giant, _) = simulation.submit(vec![(task(2_001), 1)]);
    let mut most = [0u64; 2];
    while simulation.state().jobs().contains_key(&fitting) {
        simulation.run(5);
        for (number, most) in most.iter_mut().enumerate() {
            *most = (*most).max(simulation.in_use(number).cpu_millicores);
        }
        assert!(simulation.now_ms < 60_000, "it does not end");
    }
    // Then: each worker was used as far as it goes and never further, which every step of the simulation checks.
    assert_eq!(most, [1_800, 900]);
    assert_eq!(simulation.counts(fitting).completed, 30);
    assert_eq!(simulation.counts(giant).pending, 1, "what fits nowhere waits and holds nobody up");
    for worker in simulation.state().workers().values() {
        assert_eq!((worker.charged, worker.held), (Resources::default(), 0), "everything was given back");
    }
    assert_eq!(simulation.state().tenants()[&simulation::TENANT].usage, Resources::default());
}

#[test]
fn test_complete_task_execution_flow() {
    let mut simulation = Simulation::new();
    simulation.behave(|_| (100, Outcome::Exited(0)));
    let (job, id) = simulation.submit(vec![(task(500), 1)]);
    let mut seen: Vec<&'static str> = Vec::new();
    let mut note = |simulation: &Simulation| {
        let counts = simulation.counts(job);
        let name = match simulation.phase(id) {
            Some(Phase::Assigned { .. }) => "assigned",
            Some(Phase::Running { .. }) => "running",
            Some(_) => "other",
            None if counts.pending == 1 => "pending",
            None => "ended",
        };
        if seen.last() != Some(&name) {
            seen.push(name);
        }
    };
    note(&simulation);
    simulation.add_worker(1_000);
    for _ in 0..60 {
        simulation.run(5);
        note(&simulation);
    }
    assert_eq!(seen, ["pending", "assigned", "running", "ended"]);
    let counts = simulation.counts(job);
    assert_eq!((counts.completed, counts.live()), (1, 0));
    assert!(simulation.state().jobs().is_empty(), "what has ended leaves the state");
    let kinds: Vec<&EventKind> = simulation.events.iter().map(|(_, _, kind)| kind).collect();
    assert!(
        matches!(
            kinds.as_slice(),
            [
                EventKind::Submitted,
                EventKind::AttemptEnded { outcome: "exited", retry: false, .. },
                EventKind::Ended(_)
            ]
        ),
        "{kinds:?}"
    );
}

#[test]
fn test_priority_based_scheduling() {
    let mut simulation = Simulation::new();
    // Given: one worker with one place, busy, and tasks of rising priority that come later.
    simulation.add_worker(1_000);
    let with = |priority| grey_core::TaskSpec { priority, ..task(1_000) };
    simulation.behave(|_| (300, Outcome::Exited(0)));
    simulation.submit(vec![(with(100), 9)]);
    simulation.run(50);
    let (_, low) = simulation.submit(vec![(with(1), 2)]);
    let (_, high) = simulation.submit(vec![(with(255), 2)]);
    let (_, middle) = simulation.submit(vec![(with(128), 2)]);
    simulation.run_until("everything has ended", |simulation| simulation.state().jobs().is_empty());
    let order: Vec<TaskId> = simulation.workers[0].started.iter().map(|(_, attempt)| attempt.task).collect();
    let position = |id: TaskId| order.iter().position(|task| *task == id).unwrap();
    let next = |id: TaskId| TaskId(id.0 + 1);
    // Then: the highest first, and within a priority in the order of submission.
    assert!(position(high) < position(next(high)));
    assert!(position(next(high)) < position(middle));
    assert!(position(middle) < position(next(middle)));
    assert!(position(next(middle)) < position(low));
    assert!(position(high) < order.len() - 6, "what the worker did not hold yet was overtaken");
}

#[test]
fn test_work_stealing() {
    let mut simulation = Simulation::new();
    // Given: a worker that holds more than it can run, while nothing waits for a place.
    let busy = simulation.add_worker(2_000);
    simulation.behave(|_| (2_000, Outcome::Exited(0)));
    let (job, first) = simulation.submit(vec![(task(1_000), 8)]);
    simulation.run(100);
    let held = simulation.state().workers().values().next().unwrap().held;
    assert_eq!((held, simulation.in_use(busy).cpu_millicores), (8, 2_000));
    // When: an idle one joins.
    let idle = simulation.add_worker(3_000);
    simulation.run(500);
    // Then: it runs what the other had not started, as far as it goes.
    assert_eq!(simulation.in_use(idle).cpu_millicores, 3_000);
    simulation.run_until("the job has ended", |simulation| simulation.ended.contains_key(&job));
    assert_eq!(simulation.counts(job).completed, 8);
    assert!(simulation.now_ms < 6_000, "alone it would have taken 8 s, it took {}", simulation.now_ms);
    let mut started: BTreeMap<TaskId, Vec<Epoch>> = BTreeMap::new();
    for worker in &simulation.workers {
        for (_, attempt) in &worker.started {
            started.entry(attempt.task).or_default().push(attempt.epoch);
        }
    }
    assert_eq!(started.len(), 8);
    assert!(started.values().all(|epochs| epochs.len() == 1), "each task ran once: {started:?}");
    let stolen =
        simulation.workers[idle].started.iter().filter(|(_, attempt)| attempt.epoch == Epoch(2)).count();
    assert!(stolen >= 3, "{stolen} were stolen, each under a new epoch");
    assert!(simulation.workers[busy].started.iter().any(|(_, attempt)| attempt.task == first));
    assert_eq!(simulation.state().meta().refused_results, 0);
}

#[test]
fn test_task_failure_and_retry() {
    let mut simulation = Simulation::new();
    simulation.add_worker(4_000);
    let starts: Rc<RefCell<BTreeMap<TaskId, u32>>> = Rc::default();
    let counted = starts.clone();
    // Given: tasks that fail with a status until their third attempt; one times out; one is lost once.
    simulation.behave(move |start| {
        let mut counted = counted.borrow_mut();
        let attempts = counted.entry(start.attempt.task).or_default();
        *attempts += 1;
        let outcome = match (start.attempt.task.0, *attempts) {
            (4, 1) => Outcome::Infrastructure,
            (3, 1) => Outcome::TimedOut,
            (1 | 2, 1 | 2) => Outcome::Exited(7),
            _ => Outcome::Exited(0),
        };
        (20, outcome)
    });
    let with = |failure, infrastructure| grey_core::TaskSpec {
        retries: Retries { failure, infrastructure },
        ..task(100)
    };
    let groups = vec![(with(2, 5), 1), (with(1, 5), 1), (with(1, 5), 1), (with(0, 1), 1)];
    let (job, _) = simulation.submit(groups);
    simulation.run_until("the job has ended", |simulation| simulation.ended.contains_key(&job));
    // Then: retries are spent by whoever was at fault, and no more than allowed.
    let counts = simulation.counts(job);
    assert_eq!((counts.completed, counts.failed), (3, 1));
    let starts = starts.borrow();
    assert_eq!([1, 2, 3, 4].map(|task| starts[&TaskId(task)]), [3, 2, 2, 2]);
    // A failure waits before it is tried again, longer each time; a loss does not.
    let at = |task: u64| -> Vec<u64> {
        let of_task = |(_, attempt): &&(u64, AttemptId)| attempt.task == TaskId(task);
        simulation.workers[0].started.iter().filter(of_task).map(|(at, _)| *at).collect()
    };
    let waits: Vec<u64> = at(1).windows(2).map(|pair| pair[1] - pair[0] - 20).collect();
    assert!((75..=130).contains(&waits[0]) && (150..=230).contains(&waits[1]), "{waits:?}");
    let lost = at(4);
    assert!(lost[1] - lost[0] < 60, "{lost:?}");
    let epochs: BTreeSet<u32> =
        simulation.attempts.keys().filter(|attempt| attempt.task == TaskId(1)).map(|a| a.epoch.0).collect();
    assert_eq!(epochs, BTreeSet::from([1, 2, 3]), "failed attempts are on record too");
}

#[test]
fn test_batch_task_submission() {
    let mut simulation = Simulation::new();
    simulation.add_worker(4_000);
    simulation.behave(|_| (5, Outcome::Exited(0)));
    let batch = |size: usize| {
        (0..size).map(|n| (grey_core::TaskSpec { name: format!("n{n}"), ..task(1) }, 1)).collect::<Vec<_>>()
    };
    // All or nothing: one wrong task among ten thousand leaves nothing behind.
    let before = simulation.state().meta().tasks_submitted;
    let mut wrong = batch(limits::BATCH_TASKS);
    wrong[9_876].0.command.clear();
    let refused = simulation.propose(submission(wrong));
    let Err(Rejection::OutOfBounds { field, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!(field, "tasks[9876].command");
    let refused = simulation.propose(submission(batch(limits::BATCH_TASKS + 1)));
    assert!(matches!(refused, Err(Rejection::OutOfBounds { limit: 10_000, .. })), "{refused:?}");
    assert_eq!(simulation.state().meta().tasks_submitted, before);
    assert!(simulation.state().jobs().is_empty());

    let (job, first) = simulation.submit(batch(500));
    assert_eq!(first, TaskId(1));
    simulation.run_until("the batch has ended", |simulation| simulation.ended.contains_key(&job));
    assert_eq!(simulation.counts(job).completed, 500);
    assert_eq!(simulation.attempts.len(), 500, "one accepted result each");
    let reports = simulation.reports.len();
    assert!(reports < 200, "{reports} reports, so {reports} signatures, for 500 tasks");
}

/// The proof of an attempt as a server puts it together.
fn proof(simulation: &Simulation, attempt: AttemptId) -> ProofBundle {
    let (position, leaf) = simulation.attempts[&attempt];
    let record = simulation.reports.iter().find(|report| report.position == position).unwrap();
    let worker = simulation.workers.iter().find(|worker| {
        Certificate::open(&worker.certificate, &simulation.root.verifying_keys().unwrap())
            .is_ok_and(|certificate| certificate.node_id == record.node)
    });
    let signer =
        Signer { cluster: simulation.root.cluster, node: record.node, certificate: record.certificate };
    let hashes = leaves(&signer, &record.signed.salt, &record.runs).unwrap();
    let mut offset = leaf;
    let run = record
        .runs
        .iter()
        .find(|run| {
            let here = offset < run.finished.tasks.count;
            offset -= if here { 0 } else { run.finished.tasks.count };
            here
        })
        .unwrap();
    let statement = statement(&signer, run.context.as_ref().unwrap(), &run.finished, offset).unwrap();
    let report = report_header(simulation.root.cluster, record, hashes.len() as u32);
    let entry = LogEntry {
        report_digest: report_digest(&report, &record.signed.signature).unwrap(),
        term: record.term,
        index: record.index,
        refused: record.refused.clone(),
    };
    let log = simulation.log();
    let read = |index: u64| Ok::<_, ()>(simulation.tree_hashes[index as usize]);
    let path = log_inclusion_path(position, log.size(), read).unwrap().unwrap();
    let mut checkpoint = SignedCheckpoint::new(simulation.root.cluster, log.size(), log.root());
    checkpoint.sign(&simulation.server_key);
    ProofBundle {
        kind: BUNDLE_TYPE.to_owned(),
        statement,
        result: run.finished.result.manifest(),
        leaf: BundledLeaf {
            index: leaf,
            salt: Digest(leaf_salt(&record.signed.salt, leaf)),
            path: inclusion_path(&hashes, leaf as usize).unwrap(),
        },
        report,
        signature: record.signed.signature.clone(),
        certificate: worker.unwrap().certificate.clone(),
        issuers: Vec::new(),
        log: BundledLog {
            entry,
            position,
            path,
            checkpoint: checkpoint.encode(),
            servers: vec![simulation.server_certificate.clone()],
        },
    }
}

#[test]
fn test_proof_artifact_integrity() {
    let mut simulation = Simulation::new();
    simulation.add_worker(2_000);
    simulation.add_worker(2_000);
    simulation.behave(|start| {
        let outcome =
            if start.attempt.task.0.is_multiple_of(3) { Outcome::Exited(1) } else { Outcome::Exited(0) };
        (30 + start.attempt.task.0 % 4 * 10, outcome)
    });
    let (job, _) = simulation.submit(vec![(task(300), 20), (task(700), 5)]);
    simulation.run_until("the job has ended", |simulation| simulation.ended.contains_key(&job));
    assert_eq!(simulation.attempts.len(), 25);
    let evidence = Evidence { stdout: Some((5, Digest::of(b"done\n"))), ..Evidence::default() };
    for attempt in simulation.attempts.keys() {
        // Then: each attempt's proof holds after a journey through its file, and says what the executor said.
        let bundle = ProofBundle::decode(&proof(&simulation, *attempt).encode()).unwrap();
        let verification = verify(&bundle, &simulation.root, &evidence);
        assert!(verification.holds(), "{attempt:?}: {verification:#?}");
        let (worker, begun_ms) = simulation
            .workers
            .iter()
            .enumerate()
            .find_map(|(number, worker)| {
                let start = worker.started.iter().find(|(_, started)| started == attempt)?;
                Some((number, start.0))
            })
            .unwrap();
        let certificate = Certificate::open(
            &simulation.workers[worker].certificate,
            &simulation.root.verifying_keys().unwrap(),
        );
        let ran_ms = 30 + attempt.task.0 % 4 * 10;
        let statement = &bundle.statement;
        let outcome = if attempt.task.0.is_multiple_of(3) { Outcome::Exited(1) } else { Outcome::Exited(0) };
        assert_eq!(statement.task_id, attempt.task.0);
        assert_eq!(statement.worker_id, certificate.unwrap().node_id);
        assert_eq!(statement.started_at_ms, WALL_MS + begun_ms);
        assert_eq!(statement.completed_at_ms, WALL_MS + begun_ms + ran_ms);
        assert_eq!(statement.cpu_time_us, ran_ms * 900);
        assert_eq!(statement.result_hash, result(outcome).manifest().result_hash().unwrap());

        for change in [
            (|bundle| bundle.statement.task_id += 1) as fn(&mut ProofBundle),
            |bundle| bundle.statement.worker_id = Digest::ZERO,
            |bundle| bundle.statement.started_at_ms += 1,
            |bundle| bundle.statement.completed_at_ms -= 1,
            |bundle| bundle.statement.cpu_time_us += 1,
            |bundle| bundle.statement.result_hash = Digest::ZERO,
            |bundle| bundle.statement.attempt_epoch += 1,
            |bundle| bundle.leaf.index += 1,
        ] {
            let mut changed = bundle.clone();
            change(&mut changed);
            assert!(!verify(&changed, &simulation.root, &evidence).holds(), "{attempt:?}");
        }
    }
}
