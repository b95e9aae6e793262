//! How the tasks of a job follow one another, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use grey_core::{
    AttemptId, BlobReference, Broken, Cancel, Command, Effect, Entry, Epoch, FlowSubmission, HistoryRecord,
    Items, JobId, Outcome, Rejection, Source, StageInput, StageSubmission, State, Target, TaskId, TaskRange,
    WorkerId, limits, plan,
};
use grey_proof::Digest;
use support::{TENANT, applied, finished, founded, register, report, spec, submit};

const JOB: JobId = JobId(1);

fn stage(after: &[u32]) -> StageSubmission {
    StageSubmission { groups: 1, after: after.to_vec(), inputs: Vec::new(), items: None }
}

fn with_flow(groups: &[(&str, u32)], flow: FlowSubmission) -> Command {
    let mut body = submit(groups.iter().map(|(name, count)| (spec(name), *count)).collect());
    body.flow = flow;
    Command::Submit(body)
}

/// A cluster with a worker and a job of that flow.
fn submitted(groups: &[(&str, u32)], flow: FlowSubmission) -> State {
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 100, vec![]));
    applied(&mut state, with_flow(groups, flow)).answer.unwrap();
    state
}

/// Places what can be placed and returns which tasks were.
fn place(state: &mut State) -> Vec<u64> {
    let planned = plan(state, 1_000);
    let tasks = planned.placements.iter().flat_map(|placement| placement.tasks.tasks());
    let tasks: Vec<u64> = tasks.map(|task| task.0).collect();
    applied(state, Command::Plan(planned));
    tasks
}

fn finish(state: &mut State, first: u64, count: u32, outcome: Outcome) -> Vec<Effect> {
    let run = finished(TaskRange { first: TaskId(first), count }, Epoch(1), outcome);
    let body = report(state, WorkerId(1), vec![], vec![run]);
    applied(state, Command::Report(body)).effects
}

fn counts(state: &State) -> (u64, u64, u64) {
    let counts = state.jobs()[&JOB].counts;
    (counts.completed, counts.failed, counts.cancelled)
}

#[test]
fn a_stage_is_placed_when_every_task_that_it_waits_for_has_succeeded() {
    // Given two tasks, and two that each wait for them, and one that waits for those.
    let stages = vec![stage(&[]), stage(&[0]), stage(&[0]), stage(&[1, 2])];
    let flow = FlowSubmission { stages, ..FlowSubmission::default() };
    let mut state = submitted(&[("a", 2), ("b", 1), ("c", 1), ("d", 1)], flow);
    // When they end one after another, then each follows when it may, and not before.
    assert_eq!(place(&mut state), [1, 2]);
    finish(&mut state, 1, 1, Outcome::Exited(0));
    assert_eq!(place(&mut state), [0u64; 0]);
    finish(&mut state, 2, 1, Outcome::Exited(0));
    assert_eq!(place(&mut state), [3, 4]);
    finish(&mut state, 4, 1, Outcome::Exited(0));
    assert_eq!(place(&mut state), [0u64; 0]);
    finish(&mut state, 3, 1, Outcome::Exited(0));
    assert_eq!(place(&mut state), [5]);
    let effects = finish(&mut state, 5, 1, Outcome::Exited(0));
    assert!(state.jobs().is_empty());
    let kept = effects.iter().any(|effect| matches!(effect, Effect::History(HistoryRecord::Flow(JOB, _))));
    assert!(kept, "the flow goes to history with its job");
}

#[test]
fn a_failure_cancels_whatever_waits_for_it_and_nothing_else() {
    let stages = vec![stage(&[]), stage(&[0]), stage(&[1]), stage(&[])];
    let flow = FlowSubmission { stages, ..FlowSubmission::default() };
    let mut state = submitted(&[("a", 2), ("b", 3), ("c", 4), ("free", 1)], flow);
    assert_eq!(place(&mut state), [1, 2, 10]);
    // The first failure is retried, so nothing is cancelled for it.
    finish(&mut state, 1, 1, Outcome::Exited(1));
    assert_eq!(counts(&state), (0, 0, 0));
    applied(&mut state, Command::Tick);
    let tick = Entry { time_ms: state.meta().time_ms + 5_000, command: Command::Tick };
    let index = state.applied_index() + 1;
    grey_core::apply(&mut state, 1, index, &tick.encode().unwrap()).unwrap();
    assert_eq!(place(&mut state), [1]);
    let run = finished(TaskRange::single(TaskId(1)), Epoch(2), Outcome::Exited(1));
    let body = report(&state, WorkerId(1), vec![], vec![run]);
    applied(&mut state, Command::Report(body));
    assert_eq!(counts(&state), (0, 1, 7), "b and c are cancelled; a's other task and the free one go on");
    finish(&mut state, 2, 1, Outcome::Exited(0));
    finish(&mut state, 10, 1, Outcome::Exited(0));
    assert!(state.jobs().is_empty());
}

#[test]
fn no_more_tasks_of_a_job_are_held_than_it_allows() {
    let flow = FlowSubmission { parallel: Some(2), ..FlowSubmission::default() };
    let mut state = submitted(&[("a", 5)], flow);
    assert_eq!(place(&mut state), [1, 2]);
    assert_eq!(place(&mut state), [0u64; 0]);
    finish(&mut state, 2, 1, Outcome::Exited(0));
    assert_eq!(place(&mut state), [3]);
    // A plan that says otherwise is stale, and nothing of it is taken.
    let placements = vec![grey_core::Placement {
        worker: WorkerId(1),
        tasks: TaskRange { first: TaskId(4), count: 2 },
        epoch: Epoch(1),
    }];
    applied(&mut state, Command::Plan(grey_core::Plan { version: 1, placements }));
    assert_eq!(state.jobs()[&JOB].held(), 2);
    assert_eq!(state.meta().stale_placements, 2);
}

#[test]
fn a_job_at_its_limit_does_not_keep_an_idle_worker_from_having_what_another_has_not_started() {
    // Given a worker of ten places that holds twenty tasks, and a job that waits because of its own limit.
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 21, vec![]));
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), 20)]))).answer.unwrap();
    let limited = FlowSubmission { parallel: Some(1), ..FlowSubmission::default() };
    applied(&mut state, with_flow(&[("b", 3)], limited)).answer.unwrap();
    assert_eq!(place(&mut state).len(), 21);
    // When another worker comes, then it is to have some of the twenty.
    applied(&mut state, register(2, 1, 100, vec![]));
    assert_eq!(place(&mut state), [0u64; 0]);
    let asked = grey_core::steal(&state, 100);
    assert_eq!(asked[&WorkerId(1)].len(), 10);
}

#[test]
fn a_worker_that_holds_more_than_it_asks_for_now_gives_the_rest_to_one_that_idles() {
    // Given a worker that was given twelve small tasks while it ended many a second, and which now asks for two at a time.
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 12, vec![]));
    let mut small = spec("a");
    small.resources.cpu_millicores = 1;
    applied(&mut state, Command::Submit(submit(vec![(small, 12)]))).answer.unwrap();
    assert_eq!(place(&mut state).len(), 12);
    let first = AttemptId { task: TaskId(1), epoch: Epoch(1) };
    let mut began = report(&state, WorkerId(1), vec![first], vec![]);
    began.slots = 2;
    applied(&mut state, Command::Report(began)).answer.unwrap();
    assert!(grey_core::steal(&state, 100).is_empty(), "nobody else may have it");
    // When another one idles that starts four at once, then it is to have the four that came last.
    applied(&mut state, register(2, 1, 8, vec![]));
    let last = |from: u64, to: u64| -> Vec<u64> { (from..=to).rev().collect() };
    let tasks = |asked: &[AttemptId]| -> Vec<u64> { asked.iter().map(|attempt| attempt.task.0).collect() };
    assert_eq!(tasks(&grey_core::steal(&state, 100)[&WorkerId(1)]), last(9, 12));
    // With a third one that has room for all, only what the holder does not ask for.
    applied(&mut state, register(3, 1, 100, vec![]));
    assert_eq!(tasks(&grey_core::steal(&state, 100)[&WorkerId(1)]), last(3, 12));
}

#[test]
fn past_its_limit_of_failures_the_rest_of_a_job_is_cancelled() {
    let flow = FlowSubmission { max_failures: Some(1), ..FlowSubmission::default() };
    let mut specification = spec("a");
    specification.retries.failure = 0;
    let (mut state, _) = founded();
    applied(&mut state, register(1, 1, 4, vec![]));
    let mut body = submit(vec![(specification, 10)]);
    body.flow = flow;
    applied(&mut state, Command::Submit(body)).answer.unwrap();
    assert_eq!(place(&mut state), [1, 2, 3, 4]);
    finish(&mut state, 1, 1, Outcome::Exited(1));
    assert_eq!(counts(&state), (0, 1, 0));
    let effects = finish(&mut state, 2, 1, Outcome::TimedOut);
    assert_eq!(counts(&state), (0, 2, 8), "two had been started and are stopped, six never will be");
    let stopped = effects.iter().filter(|effect| matches!(effect, Effect::Stop { .. })).count();
    assert_eq!(stopped, 2);
    finish(&mut state, 3, 2, Outcome::Cancelled);
    assert!(state.jobs().is_empty());
}

#[test]
fn a_flow_that_makes_no_sense_is_refused_whole_with_its_field() {
    let takes = |number| StageSubmission {
        inputs: vec![StageInput { path: "in".to_owned(), sources: vec![Source::Stage(number)] }],
        ..stage(&[0])
    };
    let outside = StageSubmission {
        inputs: vec![StageInput { path: "../in".to_owned(), sources: vec![Source::Stage(0)] }],
        ..stage(&[0])
    };
    let wrong: Vec<(Vec<StageSubmission>, &str)> = vec![
        (vec![stage(&[1]), stage(&[0])], "after"),
        (vec![stage(&[0]), stage(&[])], "after"),
        (vec![stage(&[]), stage(&[7])], "after"),
        (vec![stage(&[])], "after"),
        (vec![stage(&[]), StageSubmission { groups: 0, ..stage(&[]) }], "after"),
        (vec![stage(&[]), takes(1)], "inputs_from"),
        (vec![stage(&[]), outside], "inputs_from"),
    ];
    for (stages, expected) in wrong {
        let (mut state, _) = founded();
        let flow = FlowSubmission { stages: stages.clone(), ..FlowSubmission::default() };
        let answer = applied(&mut state, with_flow(&[("a", 1), ("b", 1)], flow)).answer;
        let Err(Rejection::OutOfBounds { field, .. }) = answer else { panic!("{stages:?}: {answer:?}") };
        assert_eq!(field, expected, "{stages:?}");
        assert!(state.jobs().is_empty() && state.meta().jobs_submitted == 0);
    }
    let (mut state, _) = founded();
    let flow = FlowSubmission { parallel: Some(0), ..FlowSubmission::default() };
    assert!(applied(&mut state, with_flow(&[("a", 1)], flow)).answer.is_err());
}

#[test]
fn what_a_task_takes_of_others_is_part_of_what_is_executed() {
    let taken = |count| grey_core::Stage {
        tasks: TaskRange::single(TaskId(9)),
        after: vec![0],
        inputs: vec![grey_core::OutputsOf {
            path: "in".to_owned(),
            tasks: vec![TaskRange { first: TaskId(1), count }],
        }],
        items: None,
    };
    let listed = |text: &[u8]| Items::Listed(BlobReference { digest: Digest::of(text), size_bytes: 9 });
    let with = |items| grey_core::Stage { inputs: Vec::new(), items, ..taken(1) };
    let spec = spec("a");
    let keys = [
        spec.exec_key(None),
        spec.exec_key(Some(&taken(1))),
        spec.exec_key(Some(&taken(2))),
        spec.exec_key(Some(&with(Some(Items::Numbers(1))))),
        spec.exec_key(Some(&with(Some(Items::Numbers(2))))),
        spec.exec_key(Some(&with(Some(listed(b"a"))))),
        spec.exec_key(Some(&with(Some(listed(b"b"))))),
    ];
    let distinct: std::collections::BTreeSet<Digest> = keys.into_iter().collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(spec.exec_key(Some(&with(None))), spec.exec_key(None));
}

#[test]
fn the_bytes_of_a_submission_with_a_flow_are_published_and_do_not_change() {
    let inputs = vec![StageInput {
        path: "in".to_owned(),
        sources: vec![Source::Stage(0), Source::Tasks(TaskRange { first: TaskId(300), count: 2 })],
    }];
    let last =
        StageSubmission { groups: 1, after: vec![0], inputs, items: Some(grey_core::Items::Numbers(-3)) };
    let flow = FlowSubmission { parallel: Some(7), max_failures: Some(300), stages: vec![stage(&[]), last] };
    let entry = Entry { time_ms: 0x0102_0304, command: with_flow(&[("a", 2), ("b", 1)], flow) };
    let bytes = entry.encode().unwrap();
    assert_eq!(Entry::decode(&bytes).unwrap(), entry);
    assert_eq!(Digest::of(&bytes).to_string().get(..16), Some("0dd7d903e36b56be"));
}

#[test]
fn a_cancel_runs_back_through_stages_that_wait_for_later_ones() {
    // Given as many stages as there may be, each of which waits for seven that come after it in the list.
    let (mut state, _) = founded();
    let stages = limits::STAGES as u32;
    let mut job = submit((0..stages).map(|_| (spec("a"), 1)).collect());
    let stage = |number: u32| StageSubmission {
        groups: 1,
        after: (number + 1..(number + 8).min(stages)).collect(),
        inputs: Vec::new(),
        items: None,
    };
    job.flow.stages = (0..stages).map(stage).collect();
    applied(&mut state, Command::Submit(job)).answer.unwrap();
    // When the one that waits for none is cancelled.
    let last = Target::Task(TaskId(u64::from(stages)));
    let cancelled =
        applied(&mut state, Command::Cancel(Cancel { tenant: TENANT, target: last, wall_ms: 3_000 }));
    // Then all are, each because of one that it waited for.
    assert!(state.jobs().is_empty());
    let record = cancelled.effects.iter().find_map(|effect| match effect {
        Effect::History(HistoryRecord::Flow(_, record)) => Some(record),
        _ => None,
    });
    let broken = &record.unwrap().broken;
    assert_eq!(broken.last(), Some(&Some(Broken::Own)));
    let after = |broken: &Option<Broken>| matches!(broken, Some(Broken::After(_)));
    assert!(broken[..broken.len() - 1].iter().all(after));
}
