//! The life of tasks, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use grey_core::{
    Answer, AttemptId, Cancel, Command, Effect, Entry, Epoch, EventKind, HistoryRecord, IdempotencyKey,
    JobId, Outcome, Phase, Rejection, Revoked, State, Target, TaskId, TaskRange, WorkerId, apply, limits,
    plan,
};
use grey_proof::{Digest, leaf_hash, merkle_root};
use support::{
    TENANT, applied, bootstrap, finished, founded, founded_at_newest, phase, register, report, spec, submit,
};

const WORKER: WorkerId = WorkerId(1);

fn place_all(state: &mut State) -> Vec<Effect> {
    let planned = plan(state, 10_000);
    applied(state, Command::Plan(planned)).effects
}

/// A cluster with a worker and one job of `count` equal tasks, all placed.
fn with_placed(count: u32) -> State {
    with_placed_in(founded().0, count)
}

fn with_placed_in(mut state: State, count: u32) -> State {
    applied(&mut state, register(1, 1, 100, vec![]));
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), count)])));
    place_all(&mut state);
    state
}

fn finish(state: &mut State, first: u64, count: u32, epoch: u32, outcome: Outcome) -> grey_core::Applied {
    let run = finished(TaskRange { first: TaskId(first), count }, Epoch(epoch), outcome);
    let report = report(state, WORKER, vec![], vec![run]);
    applied(state, Command::Report(report))
}

fn ended(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Event(event) if matches!(event.kind, EventKind::Ended(_))))
}

#[test]
fn a_task_goes_from_pending_to_completed_and_leaves_the_state() {
    let (mut state, _) = founded();
    let submitted = applied(&mut state, Command::Submit(submit(vec![(spec("a"), 1)])));
    let tasks = TaskRange::single(TaskId(1));
    assert_eq!(submitted.answer, Ok(Answer::Submitted { job: JobId(1), tasks, duplicate: false }));
    assert!(plan(&state, 10).placements.is_empty(), "there is no worker yet");

    applied(&mut state, register(1, 1, 4, vec![]));
    let effects = place_all(&mut state);
    let [Effect::Assign(assignment)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((assignment.placement.worker, assignment.placement.epoch), (WORKER, Epoch(1)));
    assert_eq!(phase(&state, 1), Some(Phase::Assigned { worker: WORKER }));

    let attempt = AttemptId { task: TaskId(1), epoch: Epoch(1) };
    let started = report(&state, WORKER, vec![attempt], vec![]);
    applied(&mut state, Command::Report(started));
    assert_eq!(phase(&state, 1), Some(Phase::Running { worker: WORKER }));

    let done = finish(&mut state, 1, 1, 1, Outcome::Exited(0));
    assert!(ended(&done.effects));
    assert!(state.jobs().is_empty() && state.groups().is_empty() && state.live().is_empty());
    assert_eq!(state.workers()[&WORKER].held, 0);
    let job = done.effects.iter().find_map(|effect| match effect {
        Effect::History(HistoryRecord::Job(id, record)) => Some((*id, record.counts.completed)),
        _ => None,
    });
    assert_eq!(job, Some((JobId(1), 1)));
}

#[test]
fn a_failure_is_retried_after_its_back_off_with_a_new_epoch_and_then_fails_for_good() {
    let mut state = with_placed(1);
    finish(&mut state, 1, 1, 1, Outcome::Exited(3));
    let Some(Phase::Backoff { until_ms }) = phase(&state, 1) else { panic!("{:?}", phase(&state, 1)) };
    assert!((75..=100).contains(&until_ms), "{until_ms}");
    assert!(plan(&state, 10).placements.is_empty(), "it waits");
    assert_eq!(state.next_deadline_ms(), Some(until_ms));

    let tick = Entry { time_ms: until_ms, command: Command::Tick }.encode().unwrap();
    let index = state.applied_index() + 1;
    apply(&mut state, 1, index, &tick).unwrap();
    assert_eq!(phase(&state, 1), Some(Phase::Ready));
    place_all(&mut state);
    assert_eq!(state.live()[&TaskId(1)].epoch, Epoch(2));
    let done = finish(&mut state, 1, 1, 2, Outcome::TimedOut);
    assert!(ended(&done.effects), "its one retry is used up");
}

/// Lets a back-off of the first task end, and places it again.
fn end_back_off(state: &mut State) -> u64 {
    let Some(Phase::Backoff { until_ms }) = phase(state, 1) else { panic!("{:?}", phase(state, 1)) };
    assert!(plan(state, 10).placements.is_empty(), "it waits");
    let waited_ms = until_ms - state.meta().time_ms;
    while state.meta().time_ms < until_ms {
        let tick = Entry { time_ms: until_ms, command: Command::Tick }.encode().unwrap();
        let index = state.applied_index() + 1;
        apply(state, 1, index, &tick).unwrap();
    }
    place_all(state);
    waited_ms
}

#[test]
fn what_a_worker_could_not_run_waits_longer_each_time_before_it_is_tried_again() {
    let (mut state, _) = founded_at_newest();
    applied(&mut state, register(1, 1, 100, vec![]));
    let tried =
        grey_core::TaskSpec { retries: grey_core::Retries { failure: 0, infrastructure: 5 }, ..spec("a") };
    applied(&mut state, Command::Submit(submit(vec![(tried, 1)])));
    place_all(&mut state);
    for epoch in 1..=5 {
        finish(&mut state, 1, 1, epoch, Outcome::Infrastructure);
        let (waited_ms, whole_ms) = (end_back_off(&mut state), 100 << (epoch - 1));
        assert!((whole_ms * 3 / 4..=whole_ms).contains(&waited_ms), "{waited_ms} of {whole_ms}");
        assert_eq!(u32::from(state.live()[&TaskId(1)].losses), epoch);
    }
    let done = finish(&mut state, 1, 1, 6, Outcome::Infrastructure);
    assert!(ended(&done.effects), "its five retries are used up");
}

#[test]
fn what_was_lost_with_its_worker_or_given_back_waits_for_nothing() {
    let mut state = with_placed_in(founded_at_newest().0, 2);
    let attempts = vec![AttemptId { task: TaskId(1), epoch: Epoch(1) }];
    applied(&mut state, Command::Revoked(Revoked { worker: WORKER, incarnation: 1, attempts }))
        .answer
        .unwrap();
    assert_eq!(phase(&state, 1), Some(Phase::Ready));
    applied(
        &mut state,
        Command::LoseWorker(grey_core::LoseWorker { worker: WORKER, incarnation: 1, session: 1 }),
    )
    .answer
    .unwrap();
    assert_eq!(phase(&state, 2), Some(Phase::Ready));
}

#[test]
fn before_the_level_is_in_force_what_a_worker_could_not_run_waits_for_nothing() {
    let mut state = with_placed(1);
    finish(&mut state, 1, 1, 1, Outcome::Infrastructure);
    assert_eq!(phase(&state, 1), Some(Phase::Ready), "logs that were written so are replayed so");
}

#[test]
fn a_result_of_an_earlier_epoch_is_refused_and_the_log_says_so() {
    let mut state = with_placed(1);
    applied(&mut state, register(1, 2, 100, vec![]));
    assert_eq!(phase(&state, 1), Some(Phase::Ready), "the new life does not hold it");
    place_all(&mut state);
    let late = finish(&mut state, 1, 1, 1, Outcome::Exited(0));
    assert_eq!(state.meta().refused_results, 1);
    assert_eq!(state.live()[&TaskId(1)].epoch, Epoch(2));
    let record = late.effects.iter().find_map(|effect| match effect {
        Effect::History(HistoryRecord::Report(record)) => Some(record.clone()),
        _ => None,
    });
    assert_eq!(record.unwrap().refused, [0]);
    assert!(
        !late.effects.iter().any(|effect| matches!(effect, Effect::History(HistoryRecord::Attempts { .. })))
    );
}

#[test]
fn a_report_is_accepted_once_and_one_left_out_is_noticed() {
    let mut state = with_placed(2);
    let run = finished(TaskRange::single(TaskId(1)), Epoch(1), Outcome::Exited(0));
    let first = report(&state, WORKER, vec![], vec![run]);
    assert_eq!(
        applied(&mut state, Command::Report(first.clone())).answer,
        Ok(Answer::Reported { duplicate: false })
    );
    let size = state.meta().log.size();
    assert_eq!(applied(&mut state, Command::Report(first)).answer, Ok(Answer::Reported { duplicate: true }));
    assert_eq!(state.meta().log.size(), size);
    let mut skipping = report(&state, WORKER, vec![], vec![]);
    skipping.sequence += 1;
    assert!(matches!(
        applied(&mut state, Command::Report(skipping)).answer,
        Err(Rejection::ReportOutOfOrder { given: 3, expected: 2, .. })
    ));
}

#[test]
fn losses_count_against_infrastructure_only() {
    let mut state = with_placed(1);
    for life in 2..=3 {
        applied(&mut state, register(1, life, 100, vec![]));
        assert_eq!(phase(&state, 1), Some(Phase::Ready), "life {life}");
        assert_eq!(state.live()[&TaskId(1)].failures, 0);
        place_all(&mut state);
    }
    let third = applied(&mut state, register(1, 4, 100, vec![]));
    assert!(ended(&third.effects), "two losses are allowed");
}

#[test]
fn a_worker_that_still_holds_an_attempt_after_its_restart_keeps_it() {
    let mut state = with_placed(1);
    let held = AttemptId { task: TaskId(1), epoch: Epoch(1) };
    let foreign = AttemptId { task: TaskId(77), epoch: Epoch(1) };
    let answer = applied(&mut state, register(1, 2, 100, vec![held, foreign])).answer;
    assert_eq!(answer, Ok(Answer::Registered { worker: WORKER, unknown: vec![foreign] }));
    assert!(ended(&finish(&mut state, 1, 1, 1, Outcome::Exited(0)).effects));
}

#[test]
fn a_cancel_is_terminal_and_the_quota_stays_charged_until_the_attempt_has_stopped() {
    let mut state = with_placed(3);
    let cancel = Command::Cancel(Cancel { tenant: TENANT, target: Target::Job(JobId(1)), wall_ms: 0 });
    let cancelled = applied(&mut state, cancel);
    assert_eq!(cancelled.answer, Ok(Answer::Cancelled { cancelled: 3, already_ended: 0 }));
    assert_eq!(cancelled.effects.iter().filter(|effect| matches!(effect, Effect::Stop { .. })).count(), 3);
    assert_eq!(state.tenants()[&TENANT].held_tasks, 3);
    let late = finish(&mut state, 1, 3, 1, Outcome::Exited(0));
    assert!(ended(&late.effects));
    assert_eq!(state.tenants()[&TENANT].held_tasks, 0);
    let counts = late.effects.iter().find_map(|effect| match effect {
        Effect::History(HistoryRecord::Job(_, record)) => Some(record.counts),
        _ => None,
    });
    assert_eq!(counts.map(|counts| (counts.completed, counts.cancelled)), Some((0, 3)));
}

#[test]
fn a_job_that_is_cancelled_after_a_long_wait_ended_when_it_was_cancelled() {
    let ended_at = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::History(HistoryRecord::Job(_, record)) => Some(record.ended_at_ms),
            _ => None,
        })
    };
    let target = Target::Job(JobId(1));
    let (mut state, _) = founded();
    let submission = submit(vec![(spec("a"), 3)]);
    let wall_ms = submission.wall_ms + 400 * 86_400_000;
    applied(&mut state, Command::Submit(submission));
    let cancelled = applied(&mut state, Command::Cancel(Cancel { tenant: TENANT, target, wall_ms }));
    assert_eq!(ended_at(&cancelled.effects), Some(wall_ms));
    // One whose attempts have yet to stop ends after its cancel, whatever the clock of their worker says.
    let mut state = with_placed(1);
    applied(&mut state, Command::Cancel(Cancel { tenant: TENANT, target, wall_ms }));
    let late = finish(&mut state, 1, 1, 1, Outcome::Cancelled);
    assert_eq!(ended_at(&late.effects), Some(wall_ms));
}

#[test]
fn another_tenant_s_job_looks_as_if_it_did_not_exist() {
    let mut state = with_placed(1);
    let cancel =
        Command::Cancel(Cancel { tenant: grey_core::TenantId(1), target: Target::Job(JobId(1)), wall_ms: 0 });
    assert_eq!(applied(&mut state, cancel).answer, Err(Rejection::UnknownJob(JobId(1))));
}

#[test]
fn the_same_key_and_body_give_the_same_job_and_another_body_is_refused_until_the_key_is_forgotten() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 4, vec![]));
    let keyed = |body: &[u8]| {
        let mut submit = submit(vec![(spec("a"), 2)]);
        submit.key = Some(IdempotencyKey { key: "k".to_owned(), body: Digest::of(body) });
        Command::Submit(submit)
    };
    let tasks = TaskRange { first: TaskId(1), count: 2 };
    let answer = |duplicate| Ok(Answer::Submitted { job: JobId(1), tasks, duplicate });
    assert_eq!(applied(&mut state, keyed(b"one")).answer, answer(false));
    assert_eq!(applied(&mut state, keyed(b"one")).answer, answer(true));
    assert_eq!(
        applied(&mut state, keyed(b"two")).answer,
        Err(Rejection::IdempotencyConflict { job: JobId(1) })
    );
    place_all(&mut state);
    assert!(ended(&finish(&mut state, 1, 2, 1, Outcome::Exited(0)).effects));
    assert_eq!(applied(&mut state, keyed(b"one")).answer, answer(true), "kept after the end");

    let due_ms = state.next_deadline_ms().unwrap();
    assert_eq!(due_ms, state.meta().time_ms + limits::KEY_RETENTION_MS);
    while state.meta().time_ms < due_ms {
        let time_ms = state.meta().time_ms + limits::TIME_STEP_MS;
        let index = state.applied_index() + 1;
        apply(&mut state, 1, index, &Entry { time_ms, command: Command::Tick }.encode().unwrap()).unwrap();
    }
    assert!(matches!(applied(&mut state, keyed(b"two")).answer, Ok(Answer::Submitted { job: JobId(2), .. })));
}

#[test]
fn time_never_goes_back_and_a_jump_is_clamped() {
    let (mut state, _) = founded();
    for (given, seen) in [(5, 5), (3, 5), (u64::MAX, 5 + limits::TIME_STEP_MS), (0, 5 + limits::TIME_STEP_MS)]
    {
        let index = state.applied_index() + 1;
        apply(&mut state, 1, index, &Entry { time_ms: given, command: Command::Tick }.encode().unwrap())
            .unwrap();
        assert_eq!(state.meta().time_ms, seen, "after {given}");
    }
}

#[test]
fn a_million_waiting_tasks_are_one_range_and_too_many_are_refused_whole() {
    let (mut state, _) = founded();
    let million = Command::Submit(submit(vec![(spec("a"), limits::ARRAY_TASKS)]));
    assert!(applied(&mut state, million).answer.is_ok());
    assert_eq!(state.groups()[&TaskId(1)].pending.ranges().len(), 1);
    let before = state.meta().tasks_submitted;
    let over = Command::Submit(submit(vec![(spec("a"), limits::ARRAY_TASKS), (spec("b"), 1)]));
    let answer = applied(&mut state, over).answer;
    assert!(
        matches!(&answer, Err(Rejection::OutOfBounds { field, .. }) if field == "tasks[1].count"),
        "{answer:?}"
    );
    assert_eq!(state.meta().tasks_submitted, before);
}

#[test]
fn a_task_that_fits_no_worker_waits_and_holds_up_nobody() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 4, vec![]));
    let mut large = spec("large");
    large.resources.cpu_millicores = 64_000;
    applied(&mut state, Command::Submit(submit(vec![(large, 1), (spec("small"), 1)])));
    let planned = plan(&state, 10);
    assert_eq!(planned.placements.len(), 1);
    assert_eq!(planned.placements[0].tasks.first, TaskId(2));
}

#[test]
fn the_higher_priority_goes_first_and_equal_ones_in_order_of_submission() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 2, vec![]));
    let with = |priority| {
        let mut spec = spec("");
        spec.priority = priority;
        (spec, 1)
    };
    applied(&mut state, Command::Submit(submit(vec![with(1), with(9), with(9)])));
    let firsts: Vec<u64> =
        plan(&state, 10).placements.iter().map(|placement| placement.tasks.first.0).collect();
    assert_eq!(firsts, [2, 3]);
}

#[test]
fn two_tenants_get_equal_shares_of_a_full_worker() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 1_000, vec![]));
    for tenant in [1, 2] {
        let mut submit = submit(vec![(spec("a"), 5_000)]);
        submit.tenant = grey_core::TenantId(tenant);
        applied(&mut state, Command::Submit(submit));
    }
    place_all(&mut state);
    let held: Vec<u64> = state.tenants().values().map(|tenant| tenant.held_tasks).collect();
    assert_eq!(held.iter().sum::<u64>(), 1_000);
    assert!(held[0].abs_diff(held[1]) <= 64, "a turn is 64 tasks: {held:?}");
}

#[test]
fn nothing_but_a_bootstrap_founds_a_cluster_and_only_once() {
    let mut state = State::new();
    let tick = Entry { time_ms: 1, command: Command::Tick }.encode().unwrap();
    assert_eq!(apply(&mut state, 1, 1, &tick).unwrap().answer, Err(Rejection::NotFounded));
    let bytes = support::bootstrap().encode().unwrap();
    assert_eq!(apply(&mut state, 1, 2, &bytes).unwrap().answer, Ok(Answer::Founded));
    assert_eq!(apply(&mut state, 1, 3, &bytes).unwrap().answer, Err(Rejection::AlreadyFounded));
}

#[test]
fn an_entry_of_a_newer_version_halts_and_a_damaged_body_is_a_refusal() {
    let (mut state, _) = founded();
    let mut newer = Entry { time_ms: 1, command: Command::Tick }.encode().unwrap();
    newer[0] = 9;
    assert!(apply(&mut state, 1, 2, &newer).unwrap_err().must_halt());
    let mut unknown = Entry { time_ms: 1, command: Command::Tick }.encode().unwrap();
    unknown[2] = 99;
    assert!(apply(&mut state, 1, 2, &unknown).unwrap_err().must_halt());
    let mut trailing = Entry { time_ms: 1, command: Command::Tick }.encode().unwrap();
    trailing.push(0);
    assert_eq!(apply(&mut state, 1, 2, &trailing).unwrap().answer, Err(Rejection::Malformed));
}

#[test]
fn a_submission_s_bytes_are_published_and_do_not_change() {
    let mut body = submit(vec![(spec("a"), 2)]);
    body.labels = vec![("k".to_owned(), "v".to_owned())];
    body.key = Some(IdempotencyKey { key: "key".to_owned(), body: Digest::of(b"body") });
    let bytes = Entry { time_ms: 0x0102_0304, command: Command::Submit(body) }.encode().unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "0300020004030201000000000208736f6d65626f64790001016b017601036b6579230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb50101610001047472756500000000648080400000000200640102e0d40380804002000000d00f"
    );
}

#[test]
fn each_report_adds_one_leaf_to_the_cluster_s_log() {
    let mut state = with_placed(3);
    let mut leaves = Vec::new();
    for task in 1..=3 {
        let effects = finish(&mut state, task, 1, 1, Outcome::Exited(0)).effects;
        let grew = effects.iter().find_map(|effect| match effect {
            Effect::LogGrew { position, hashes } => Some((*position, hashes[0])),
            _ => None,
        });
        assert_eq!(grew.unwrap().0, leaves.len() as u64);
        leaves.push(grew.unwrap().1);
        assert_eq!(state.meta().log.root(), merkle_root(&leaves));
    }
    assert_ne!(leaves[0], leaf_hash(b""));
}

#[test]
fn an_attempt_that_is_given_back_waits_again_and_counts_against_nobody() {
    let mut state = with_placed(3);
    let attempt = |task: u64, epoch: u32| AttemptId { task: TaskId(task), epoch: Epoch(epoch) };
    let revoke = |state: &mut State, attempts: Vec<AttemptId>, incarnation| {
        let body = Revoked { worker: WorkerId(1), incarnation, attempts };
        applied(state, Command::Revoked(body)).answer
    };
    // Given: one attempt has started.
    let started = report(&state, WorkerId(1), vec![attempt(1, 1)], vec![]);
    applied(&mut state, Command::Report(started)).answer.unwrap();
    // When: all are given back, one under another epoch.
    let answer = revoke(&mut state, vec![attempt(1, 1), attempt(2, 1), attempt(3, 2)], 1);
    // Then: only what was assigned and not started waits again.
    assert_eq!(answer, Ok(Answer::Revoked { revoked: 1 }));
    assert_eq!(phase(&state, 2), Some(Phase::Ready));
    assert!(matches!(phase(&state, 1), Some(Phase::Running { .. })));
    assert!(matches!(phase(&state, 3), Some(Phase::Assigned { .. })));
    assert_eq!(state.live()[&TaskId(2)].losses, 0);
    assert_eq!(state.workers()[&WorkerId(1)].held, 2);
    // Then: its next assignment has the next epoch, and a late result of the first one is refused.
    let planned = plan(&state, 10);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    assert_eq!(state.live()[&TaskId(2)].epoch, Epoch(2));
    finish(&mut state, 2, 1, 1, Outcome::Exited(0));
    assert_eq!(state.meta().refused_results, 1);
    // Then: a worker of another life gives nothing back.
    let answer = revoke(&mut state, vec![attempt(3, 1)], 9);
    assert!(matches!(answer, Err(Rejection::StaleIncarnation { .. })), "{answer:?}");
}

#[test]
fn every_command_s_bytes_are_published_and_do_not_change() {
    let attempt = AttemptId { task: TaskId(300), epoch: Epoch(2) };
    let Entry { command: bootstrap, .. } = bootstrap();
    let tasks = TaskRange { first: TaskId(300), count: 2 };
    let commands = [
        bootstrap,
        register(7, 3, 16, vec![attempt]),
        Command::Plan(grey_core::Plan {
            version: 1,
            placements: vec![grey_core::Placement { worker: WorkerId(2), tasks, epoch: Epoch(2) }],
        }),
        Command::Report(grey_core::Report {
            worker: WorkerId(2),
            incarnation: 3,
            session: 1,
            sequence: 4,
            slots: 16,
            started: vec![attempt],
            finished: vec![finished(tasks, Epoch(2), Outcome::Signaled(9))],
            signed: Some(grey_core::SignedRoot {
                root: Digest::of(b"root"),
                salt: [1; 32],
                signature: vec![7; 64],
            }),
        }),
        Command::Cancel(grey_core::Cancel {
            tenant: TENANT,
            target: grey_core::Target::Task(TaskId(300)),
            wall_ms: 0,
        }),
        Command::Revoked(Revoked { worker: WorkerId(2), incarnation: 3, attempts: vec![attempt] }),
        Command::ChangeTimeout(grey_core::ChangeTimeout {
            tenant: TENANT,
            target: grey_core::Target::Job(grey_core::JobId(300)),
            timeout_ms: 300,
        }),
        Command::SuspectWorker(grey_core::SuspectWorker {
            worker: WorkerId(2),
            incarnation: 3,
            session: 4,
            suspected: true,
        }),
        Command::LoseWorker(grey_core::LoseWorker { worker: WorkerId(2), incarnation: 3, session: 4 }),
        Command::QuarantineWorker(grey_core::QuarantineWorker {
            worker: WorkerId(2),
            incarnation: 3,
            session: 4,
        }),
        Command::Tick,
    ];
    let mut found = Vec::new();
    for command in commands {
        let entry = Entry { time_ms: 0x0102_0304, command };
        let bytes = entry.encode().unwrap();
        assert_eq!(Entry::decode(&bytes).unwrap(), entry);
        found.push(Digest::of(&bytes).to_string().chars().take(16).collect::<String>());
    }
    let published = [
        "df07a374af8cb84a",
        "2502b8fcb36c01dc",
        "652548f74266f5df",
        "e34c9eae0137b958",
        "88b1dadeb5303a24",
        "73526978725a65f0",
        "2a531512ca16b90c",
        "fcef3af93b9fd93c",
        "bd20a4dcacec3882",
        "8552fa614ce3cc80",
        "1dd7fbbae3e521ee",
    ];
    assert_eq!(found, published);
}

#[test]
fn what_came_and_went_between_two_checkpoints_is_in_neither() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 100, vec![]));
    let founding = state.take_dirty_rows().len();
    for round in 0..50 {
        applied(&mut state, Command::Submit(submit(vec![(spec("a"), 20)])));
        place_all(&mut state);
        finish(&mut state, 1 + round * 20, 20, 1, Outcome::Exited(0));
    }
    let rows = state.take_dirty_rows();
    assert!(rows.len() <= founding, "{} rows for a thousand tasks of which none is left", rows.len());
    // A row that a checkpoint has is deleted by the next one.
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), 1)])));
    place_all(&mut state);
    let with_task = state.take_dirty_rows();
    finish(&mut state, 1_001, 1, 1, Outcome::Exited(0));
    let without = state.take_dirty_rows();
    let deleted: Vec<&Vec<u8>> =
        without.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key).collect();
    assert!(deleted.len() >= 3, "the job, its group, its specification and its attempt are deleted");
    assert!(
        deleted.iter().all(|key| with_task.iter().any(|(other, value)| other == *key && value.is_some()))
    );
}
