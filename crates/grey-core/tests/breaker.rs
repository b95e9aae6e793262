//! Breakers before the executors of workers: which get no work, when they are tried again, and what that costs others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use grey_core::{
    AttemptId, BreakerPhase, Command, ExecutorKind, NEWEST_FEATURE_LEVEL, OLDEST_FEATURE_LEVEL, Outcome,
    RaiseFeatureLevel, Retries, State, TaskRange, TaskSpec, WorkerId, plan, steal,
};
use support::{applied, finished, founded, pass, register, report, spec, submit};

const BROKEN: WorkerId = WorkerId(1);
const PROBES: usize = 2;
/// What breakers came with.
const BREAKER_LEVEL: u16 = 5;

/// A cluster of so many workers at the newest level.
fn cluster(workers: u8) -> State {
    let (mut state, _) = founded();
    for level in OLDEST_FEATURE_LEVEL + 1..=NEWEST_FEATURE_LEVEL {
        applied(&mut state, Command::RaiseFeatureLevel(RaiseFeatureLevel { level })).answer.unwrap();
    }
    for node in 1..=workers {
        applied(&mut state, register(node, 1, 16, vec![])).answer.unwrap();
    }
    state
}

fn work(executor: ExecutorKind) -> TaskSpec {
    let command = if executor == ExecutorKind::Noop { Vec::new() } else { vec!["true".to_owned()] };
    let retries = Retries { failure: 0, infrastructure: 200 };
    TaskSpec { executor, command, retries, ..spec("work") }
}

fn submitted(state: &mut State, executor: ExecutorKind, tasks: u32) {
    applied(state, Command::Submit(submit(vec![(work(executor), tasks)]))).answer.unwrap();
}

/// Places what can be placed; how many tasks went where.
fn placed(state: &mut State) -> BTreeMap<WorkerId, usize> {
    let mut went: BTreeMap<WorkerId, usize> = BTreeMap::new();
    loop {
        let planned = plan(state, 1_000);
        if planned.placements.is_empty() {
            return went;
        }
        for placement in &planned.placements {
            *went.entry(placement.worker).or_default() += placement.tasks.count as usize;
        }
        let count = planned.placements.iter().map(|one| u64::from(one.tasks.count)).sum::<u64>();
        let answer = applied(state, Command::Plan(planned)).answer.unwrap();
        assert_eq!(answer, grey_core::Answer::Planned { placed: count, stale: 0 });
    }
}

fn held(state: &State, worker: WorkerId, executor: ExecutorKind) -> Vec<AttemptId> {
    let of = state.live().iter().filter(|(_, live)| {
        live.phase.worker() == Some(worker) && state.spec(live.group).unwrap().executor == executor
    });
    of.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect()
}

fn end(state: &mut State, worker: WorkerId, attempts: &[AttemptId], outcome: Outcome) {
    let runs =
        attempts.iter().map(|attempt| finished(TaskRange::single(attempt.task), attempt.epoch, outcome));
    let body = report(state, worker, vec![], runs.collect());
    applied(state, Command::Report(body)).answer.unwrap();
}

fn start(state: &mut State, worker: WorkerId, attempts: &[AttemptId]) {
    let body = report(state, worker, attempts.to_vec(), vec![]);
    applied(state, Command::Report(body)).answer.unwrap();
}

fn phase(state: &State, worker: WorkerId) -> Option<BreakerPhase> {
    Some(state.breakers(worker)?.before(ExecutorKind::Process)?.phase.clone())
}

fn is_shut(state: &State, worker: WorkerId) -> bool {
    state.breakers(worker).and_then(|row| row.before(ExecutorKind::Process)).is_some_and(|one| one.is_shut())
}

/// A cluster of so many workers of which the first has failed ten processes in a row; it holds six more that it has not started.
fn broken(workers: u8) -> State {
    let mut state = cluster(workers);
    submitted(&mut state, ExecutorKind::Process, 16 * u32::from(workers));
    placed(&mut state);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    assert_eq!(attempts.len(), 16);
    end(&mut state, BROKEN, &attempts[..9], Outcome::Infrastructure);
    assert!(!is_shut(&state, BROKEN), "nine say too little");
    end(&mut state, BROKEN, &attempts[9..10], Outcome::Infrastructure);
    assert!(is_shut(&state, BROKEN));
    state
}

/// Ends what everybody but the broken one holds, so that there is room.
fn others_finish(state: &mut State) {
    let workers: Vec<WorkerId> = state.workers().keys().copied().filter(|id| *id != BROKEN).collect();
    for worker in workers {
        let attempts = held(state, worker, ExecutorKind::Process);
        if !attempts.is_empty() {
            end(state, worker, &attempts, Outcome::Exited(0));
        }
    }
}

#[test]
fn an_executor_that_fails_half_of_ten_gets_nothing_while_others_of_the_worker_go_on() {
    let mut state = broken(2);
    others_finish(&mut state);
    submitted(&mut state, ExecutorKind::Noop, 20);

    let went = placed(&mut state);

    assert_eq!(
        held(&state, BROKEN, ExecutorKind::Process).len(),
        6,
        "what it has it keeps, until it is asked"
    );
    assert!(!held(&state, BROKEN, ExecutorKind::Noop).is_empty(), "another executor works: {went:?}");
    assert!(went[&WorkerId(2)] >= 10, "what came back is placed elsewhere: {went:?}");
}

#[test]
fn what_it_has_not_started_is_asked_back() {
    let mut state = broken(2);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    start(&mut state, BROKEN, &attempts[..2]);
    let asked = steal(&state, 100);
    let back: Vec<AttemptId> = attempts[2..].iter().rev().copied().collect();
    assert_eq!(asked, BTreeMap::from([(BROKEN, back)]));
}

#[test]
fn refused_inputs_and_cancels_say_nothing_of_an_executor() {
    let mut state = cluster(1);
    submitted(&mut state, ExecutorKind::Process, 16);
    placed(&mut state);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &attempts[..8], Outcome::InputRefused);
    end(&mut state, BROKEN, &attempts[8..], Outcome::TimedOut);
    assert_eq!(state.breakers(BROKEN), None, "and the tasks' own failures neither");
}

#[test]
fn after_its_time_few_probes_are_tried_and_enough_starts_close_it() {
    let mut state = broken(1);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &attempts, Outcome::Exited(0));
    assert!(is_shut(&state, BROKEN), "what began before it opened says nothing");
    assert!(placed(&mut state).is_empty());

    // When: its time is over, which is 30 s with a jitter of 6.
    pass(&mut state, 23_999);
    assert!(placed(&mut state).is_empty());
    pass(&mut state, 12_001);

    // Then: two are tried at once, and no more.
    assert_eq!(placed(&mut state), BTreeMap::from([(BROKEN, PROBES)]));
    let probes = held(&state, BROKEN, ExecutorKind::Process);
    start(&mut state, BROKEN, &probes[..1]);
    assert_eq!(placed(&mut state), BTreeMap::from([(BROKEN, 1)]), "a start makes room for the next");
    let probes: Vec<AttemptId> = held(&state, BROKEN, ExecutorKind::Process)[1..].to_vec();
    start(&mut state, BROKEN, &probes);
    assert_eq!(state.breakers(BROKEN), None, "three starts suffice, and nothing is remembered");
    assert_eq!(placed(&mut state), BTreeMap::from([(BROKEN, 7)]), "all that waited");
}

#[test]
fn a_probe_that_fails_or_is_not_started_opens_it_again() {
    let mut state = broken(1);
    pass(&mut state, 36_000);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &attempts, Outcome::Exited(0));
    assert_eq!(placed(&mut state)[&BROKEN], PROBES);
    let probes = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &probes[..1], Outcome::Infrastructure);
    assert!(matches!(phase(&state, BROKEN), Some(BreakerPhase::Open { .. })));

    pass(&mut state, 36_000);
    assert_eq!(placed(&mut state)[&BROKEN], PROBES);
    pass(&mut state, 9_999);
    assert!(matches!(phase(&state, BROKEN), Some(BreakerPhase::HalfOpen { .. })));
    pass(&mut state, 1);
    assert!(matches!(phase(&state, BROKEN), Some(BreakerPhase::Open { .. })), "ten seconds are enough");
}

#[test]
fn a_probe_that_is_given_back_or_lost_makes_room_for_another() {
    let mut state = broken(1);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &attempts, Outcome::Exited(0));
    pass(&mut state, 36_000);
    placed(&mut state);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    let given = grey_core::Revoked { worker: BROKEN, incarnation: 1, attempts };
    applied(&mut state, Command::Revoked(given)).answer.unwrap();
    assert_eq!(placed(&mut state), BTreeMap::from([(BROKEN, PROBES)]));
    applied(&mut state, register(1, 2, 16, vec![])).answer.unwrap();
    assert_eq!(placed(&mut state), BTreeMap::from([(BROKEN, PROBES)]), "a restart is no recovery");
}

#[test]
fn at_most_half_of_the_workers_are_left_alone_but_always_one() {
    let mut state = cluster(5);
    submitted(&mut state, ExecutorKind::Process, 16 * 5);
    placed(&mut state);
    for worker in 1..=5 {
        let attempts = held(&state, WorkerId(worker), ExecutorKind::Process);
        end(&mut state, WorkerId(worker), &attempts, Outcome::Infrastructure);
    }
    let shut = (1..=5).filter(|worker| is_shut(&state, WorkerId(*worker))).count();
    assert_eq!((shut, state.meta().quarantine_alerts), (2, 3), "two of five are less than half");
    // What failed waits for its back-off.
    pass(&mut state, 100);
    assert!(!placed(&mut state).is_empty(), "the cluster goes on");
    assert!(is_shut(&broken(1), BROKEN), "the only one is tried again later");
}

#[test]
fn below_its_level_nothing_is_counted() {
    let (mut state, _) = founded();
    for level in OLDEST_FEATURE_LEVEL + 1..BREAKER_LEVEL {
        applied(&mut state, Command::RaiseFeatureLevel(RaiseFeatureLevel { level })).answer.unwrap();
    }
    applied(&mut state, register(1, 1, 16, vec![])).answer.unwrap();
    submitted(&mut state, ExecutorKind::Process, 16);
    placed(&mut state);
    let attempts = held(&state, BROKEN, ExecutorKind::Process);
    end(&mut state, BROKEN, &attempts, Outcome::Infrastructure);
    assert_eq!(state.breakers(BROKEN), None);
}

#[test]
fn a_checkpoint_has_the_breakers_and_their_deadlines() {
    let mut state = broken(2);
    pass(&mut state, 36_000);
    others_finish(&mut state);
    placed(&mut state);
    let rows = state.all_rows();
    let loaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))).unwrap();
    assert!(loaded == state);
    assert!(loaded.next_deadline_ms().is_some());
}
