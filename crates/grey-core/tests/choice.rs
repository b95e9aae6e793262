//! Who goes first and where it goes: priority with age, constraints, devices; and time-outs that change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use grey_core::{
    Answer, AttemptId, ChangeTimeout, Command, Constraints, Devices, Effect, Entry, Epoch, Outcome,
    Placement, Plan, Rejection, SandboxLevel, State, Target, TaskId, TaskRange, TaskSpec, TenantId, Tier,
    WorkerId, apply, limits, plan,
};
use proptest::prelude::*;
use support::{TENANT, announce, applied, finished, founded, register, report, spec, submit};

/// Lets cluster time pass, step by step, as it is bound to.
fn pass(state: &mut State, ms: u64) {
    let target_ms = state.meta().time_ms + ms;
    while state.meta().time_ms < target_ms {
        let time_ms = target_ms.min(state.meta().time_ms + limits::TIME_STEP_MS);
        let entry = Entry { time_ms, command: Command::Tick };
        let index = state.applied_index() + 1;
        apply(state, 1, index, &entry.encode().unwrap()).unwrap().answer.unwrap();
    }
}

fn with_priority(priority: u8) -> TaskSpec {
    TaskSpec { priority, ..spec("p") }
}

fn submit_one(state: &mut State, spec: TaskSpec) -> TaskId {
    let answer = applied(state, Command::Submit(submit(vec![(spec, 1)]))).answer;
    let Ok(Answer::Submitted { tasks, .. }) = answer else { panic!("{answer:?}") };
    tasks.first
}

/// The waiting tasks of the tenant in the order of their line.
fn line(state: &State) -> Vec<TaskId> {
    state.ready().get(&TENANT).into_iter().flatten().map(|key| key.task).collect()
}

#[test]
fn a_task_gains_a_level_of_priority_on_later_ones_for_each_step_it_waits() {
    let (mut state, _) = founded();
    let low = submit_one(&mut state, with_priority(10));
    // Given: nine steps of waiting are not enough against ten levels, and equal to nine.
    pass(&mut state, 9 * limits::AGEING_STEP_MS);
    let (ten_above, nine_above) =
        (submit_one(&mut state, with_priority(20)), submit_one(&mut state, with_priority(19)));
    assert_eq!(line(&state), [ten_above, low, nine_above]);
    // When: it has waited for ten steps.
    pass(&mut state, limits::AGEING_STEP_MS + 1);
    // Then: what is submitted ten levels above it from now on goes behind it.
    let late = submit_one(&mut state, with_priority(20));
    assert_eq!(line(&state), [ten_above, low, nine_above, late]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_line_is_what_priority_plus_age_says_whenever_it_is_looked_at(
        steps in proptest::collection::vec((0u64..200_000, any::<u8>()), 1..30),
        later_ms in 0u64..2_000_000,
    ) {
        let (mut state, _) = founded();
        let mut submitted = Vec::new();
        for (wait_ms, priority) in steps {
            pass(&mut state, wait_ms);
            let at_ms = state.meta().time_ms;
            submitted.push((submit_one(&mut state, with_priority(priority)), at_ms, priority));
        }
        pass(&mut state, later_ms);
        // In units of one step's fraction, as of now: priority levels and what was waited.
        let now_ms = state.meta().time_ms;
        let worth = |at_ms: u64, priority: u8| u64::from(priority) * limits::AGEING_STEP_MS + (now_ms - at_ms);
        submitted.sort_by_key(|(task, at_ms, priority)| (core::cmp::Reverse(worth(*at_ms, *priority)), *task));
        let expected: Vec<TaskId> = submitted.iter().map(|(task, _, _)| *task).collect();
        prop_assert_eq!(line(&state), expected);
    }

    #[test]
    fn nobody_waits_behind_what_comes_255_steps_later(priority in any::<u8>(), mine in any::<u8>()) {
        let (mut state, _) = founded();
        let first = submit_one(&mut state, with_priority(mine));
        pass(&mut state, 255 * limits::AGEING_STEP_MS);
        submit_one(&mut state, with_priority(priority));
        prop_assert_eq!(line(&state)[0], first);
    }
}

/// Three workers: w1 of zone b with one device, w2 of zone a with two, w3 of zone b with none.
fn three_workers() -> State {
    let (mut state, _) = founded();
    for node in [1, 2, 3] {
        applied(&mut state, register(node, 1, 20, vec![])).answer.unwrap();
    }
    state
}

fn placed(state: &mut State) -> Vec<(WorkerId, TaskRange)> {
    let planned = plan(state, 1_000);
    let placements = planned.placements.iter().map(|one| (one.worker, one.tasks)).collect();
    let tasks: u64 = planned.placements.iter().map(|one| u64::from(one.tasks.count)).sum();
    let answer = applied(state, Command::Plan(planned)).answer;
    assert_eq!(answer, Ok(Answer::Planned { placed: tasks, stale: 0 }));
    placements
}

fn in_zone(zone: &str) -> Constraints {
    Constraints { labels: vec![("zone".to_owned(), zone.to_owned())], ..Constraints::default() }
}

fn gpus(count: u32) -> Vec<Devices> {
    vec![Devices { name: "gpu".to_owned(), count }]
}

#[test]
fn a_task_goes_only_where_its_constraints_hold() {
    let mut state = three_workers();
    let cases = [
        (TaskSpec { constraints: in_zone("a"), ..spec("zone") }, Some(WorkerId(2))),
        (TaskSpec { devices: gpus(2), ..spec("two devices") }, Some(WorkerId(2))),
        (TaskSpec { devices: gpus(1), constraints: in_zone("b"), ..spec("both") }, Some(WorkerId(1))),
        (TaskSpec { devices: gpus(3), ..spec("too many") }, None),
        (TaskSpec { constraints: in_zone("c"), ..spec("nowhere") }, None),
        (
            TaskSpec {
                constraints: Constraints { tier: Tier::Hardware, ..Constraints::default() },
                ..spec("trust")
            },
            None,
        ),
        (
            TaskSpec {
                constraints: Constraints { sandbox: SandboxLevel::PidNamespace, ..in_zone("a") },
                ..spec("sandbox")
            },
            Some(WorkerId(2)),
        ),
    ];
    for (spec, expected) in cases {
        let name = spec.name.clone();
        let task = submit_one(&mut state, spec);
        let found = placed(&mut state).into_iter().find(|(_, tasks)| tasks.contains(task));
        assert_eq!(found.map(|(worker, _)| worker), expected, "{name}");
    }
}

#[test]
fn a_placement_that_a_plan_should_not_have_made_is_stale() {
    let mut state = three_workers();
    let task = submit_one(&mut state, TaskSpec { constraints: in_zone("a"), ..spec("zone") });
    let placement = Placement { worker: WorkerId(1), tasks: TaskRange::single(task), epoch: Epoch(1) };
    let answer = applied(&mut state, Command::Plan(Plan { version: 3, placements: vec![placement] })).answer;
    assert_eq!(answer, Ok(Answer::Planned { placed: 0, stale: 1 }));
}

#[test]
fn as_many_start_at_once_as_there_are_devices_and_the_rest_waits_where_they_will_be() {
    let mut state = three_workers();
    let body = submit(vec![(TaskSpec { devices: gpus(1), ..spec("gpu") }, 5)]);
    applied(&mut state, Command::Submit(body)).answer.unwrap();
    placed(&mut state);
    let charged = |state: &State, worker: u32| state.workers()[&WorkerId(worker)].devices[0].charged;
    assert_eq!(charged(&state, 1) + charged(&state, 2), 5);
    assert!(
        charged(&state, 1) >= 1 && charged(&state, 2) >= 2,
        "no device lies idle while a task waits for one"
    );
    // When: one ends, its device is free again.
    let task = state.live().iter().find(|(_, live)| live.phase.worker() == Some(WorkerId(1))).unwrap().0;
    let run = finished(TaskRange::single(*task), Epoch(1), Outcome::Exited(0));
    let before = charged(&state, 1);
    let body = report(&state, WorkerId(1), vec![], vec![run]);
    applied(&mut state, Command::Report(body)).answer.unwrap();
    assert_eq!(charged(&state, 1), before - 1);
}

#[test]
fn what_names_no_worker_is_refused_with_its_field() {
    let (mut state, _) = founded();
    let named = |name: &str, count| vec![Devices { name: name.to_owned(), count }];
    let twice = [gpus(1), gpus(1)].concat();
    for devices in
        [named("", 1), named("GPU", 1), named("a-b", 1), named("gpu", 0), named("gpu", 1_025), twice]
    {
        let body = submit(vec![(TaskSpec { devices, ..spec("a") }, 1)]);
        let answer = applied(&mut state, Command::Submit(body)).answer;
        let Err(Rejection::OutOfBounds { field, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!(field, "tasks[0].devices");
    }
    let unsorted = [("b", "1"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let constraints = Constraints { labels: unsorted.to_vec(), ..Constraints::default() };
    let answer =
        applied(&mut state, Command::Submit(submit(vec![(TaskSpec { constraints, ..spec("a") }, 1)]))).answer;
    let Err(Rejection::OutOfBounds { field, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(field, "tasks[0].constraints.labels");
}

fn change(state: &mut State, tenant: TenantId, target: Target, timeout_ms: u64) -> grey_core::Applied {
    applied(state, Command::ChangeTimeout(ChangeTimeout { tenant, target, timeout_ms }))
}

#[test]
fn a_changed_time_out_reaches_what_runs_what_waits_again_and_what_never_started() {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 2, vec![])).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), 4)]))).answer.unwrap();
    placed(&mut state);
    let (job, task) = (Target::Job(grey_core::JobId(1)), |number| Target::Task(TaskId(number)));
    // When: that of one running task is changed.
    let one = change(&mut state, TENANT, task(1), 5_000);
    assert_eq!(one.answer, Ok(Answer::TimeoutChanged { tasks: 1 }));
    let told = Effect::ChangeTimeout {
        worker: WorkerId(1),
        attempts: vec![AttemptId { task: TaskId(1), epoch: Epoch(1) }],
        timeout_ms: 5_000,
    };
    assert_eq!(one.effects, [told]);
    // Then: one of the array that has not started cannot be changed alone, and a stranger changes nothing.
    let not_started = change(&mut state, TENANT, task(3), 5_000).answer;
    assert!(matches!(not_started, Err(Rejection::NotStarted { .. })), "{not_started:?}");
    let foreign = change(&mut state, TenantId(1), task(1), 5_000).answer;
    assert_eq!(foreign, Err(Rejection::UnknownTask(TaskId(1))));
    for wrong in [0, limits::TIMEOUT_MS + 1] {
        let answer = change(&mut state, TENANT, job, wrong).answer;
        assert!(matches!(answer, Err(Rejection::OutOfBounds { .. })), "{answer:?}");
    }
    // When: the first fails and is tried again, it keeps its own time-out.
    let run = finished(TaskRange::single(TaskId(1)), Epoch(1), Outcome::Exited(1));
    let body = report(&state, WorkerId(1), vec![], vec![run]);
    applied(&mut state, Command::Report(body)).answer.unwrap();
    pass(&mut state, 1_000);
    let planned = plan(&state, 1);
    let effects = applied(&mut state, Command::Plan(planned)).effects;
    let timeouts = |effects: &[Effect]| -> Vec<(TaskId, u64)> {
        let assigned = effects.iter().filter_map(|effect| match effect {
            Effect::Assign(one) => Some((one.placement.tasks.first, one.timeout_ms)),
            _ => None,
        });
        assigned.collect()
    };
    assert_eq!(timeouts(&effects), [(TaskId(1), 5_000)]);
    // When: that of the job is changed, all four have it.
    let all = change(&mut state, TENANT, job, 9_000);
    assert_eq!(all.answer, Ok(Answer::TimeoutChanged { tasks: 4 }));
    applied(&mut state, register(2, 1, 9, vec![])).answer.unwrap();
    let planned = plan(&state, 10);
    let effects = applied(&mut state, Command::Plan(planned)).effects;
    assert_eq!(timeouts(&effects), [(TaskId(3), 9_000)]);
    // When: a worker announces itself again, it is told once more: the first word may not have reached it.
    let holding = vec![AttemptId { task: TaskId(2), epoch: Epoch(1) }];
    let effects = applied(&mut state, announce(1, 1, 2, 2, holding)).effects;
    let again = effects.iter().filter(|effect| matches!(effect, Effect::ChangeTimeout { .. })).count();
    assert_eq!(again, 1);
    // Then: what has ended has no time-out.
    change(&mut state, TENANT, Target::Task(TaskId(99)), 1).answer.unwrap_err();
}
