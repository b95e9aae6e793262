//! Workers that are not heard of: what they hold, what they get, what they may still say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use grey_core::{
    Answer, AttemptId, Command, Effect, EnrolFounder, Entry, Epoch, LoseWorker, NodeRole, Outcome, Phase,
    Presence, QuarantineOptions, QuarantineWorker, Rejection, SetQuarantine, Standing, State, SuspectWorker,
    TaskId, TaskRange, TokenRole, TokenRow, WorkerId, apply, limits, plan,
};
use grey_proof::Digest;
use support::{
    announce, applied, finished, founded, founded_at_newest, new_node, pass, phase, register, report, spec,
    submit,
};

const WORKER: WorkerId = WorkerId(1);

/// A worker of one slot more than the job has tasks, all of them given to it, the first one started.
fn busy() -> State {
    busy_in(founded().0)
}

fn busy_in(mut state: State) -> State {
    applied(&mut state, register(1, 1, 4, vec![])).answer.unwrap();
    applied(&mut state, Command::Submit(submit(vec![(spec("a"), 3)]))).answer.unwrap();
    let planned = plan(&state, 10);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    let started = report(&state, WORKER, vec![attempt(1, 1)], vec![]);
    applied(&mut state, Command::Report(started)).answer.unwrap();
    state
}

fn attempt(task: u64, epoch: u32) -> AttemptId {
    AttemptId { task: TaskId(task), epoch: Epoch(epoch) }
}

fn lose(session: u64) -> Command {
    Command::LoseWorker(LoseWorker { worker: WORKER, incarnation: 1, session })
}

fn suspect(suspected: bool) -> Command {
    Command::SuspectWorker(SuspectWorker { worker: WORKER, incarnation: 1, session: 1, suspected })
}

#[test]
fn what_a_lost_worker_held_waits_again_and_goes_elsewhere_with_a_new_epoch() {
    let mut state = busy();
    applied(&mut state, lose(1)).answer.unwrap();
    assert_eq!(state.workers()[&WORKER].presence, Presence::Lost);
    assert_eq!((1..=3).map(|task| phase(&state, task)).collect::<Vec<_>>(), [Some(Phase::Ready); 3]);
    assert!(plan(&state, 10).placements.is_empty(), "a lost worker gets nothing");

    applied(&mut state, register(2, 1, 4, vec![])).answer.unwrap();
    let planned = plan(&state, 10);
    assert!(planned.placements.iter().all(|one| one.worker == WorkerId(2) && one.epoch == Epoch(2)));
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    assert_eq!(phase(&state, 3), Some(Phase::Assigned { worker: WorkerId(2) }));
}

#[test]
fn a_lost_worker_may_say_nothing_until_it_announces_itself_and_then_holds_nothing() {
    let mut state = busy();
    let run = finished(TaskRange::single(TaskId(1)), Epoch(1), Outcome::Exited(0));
    let late = report(&state, WORKER, vec![], vec![run]);
    applied(&mut state, lose(1)).answer.unwrap();
    let refused = applied(&mut state, Command::Report(late.clone())).answer;
    assert_eq!(refused, Err(Rejection::WorkerLost(WORKER)));
    assert_eq!(state.meta().log.size(), 0, "a result that cannot be proved is in no log");

    let holding = vec![attempt(1, 1), attempt(2, 1)];
    let answer = applied(&mut state, announce(1, 1, 2, 4, holding.clone())).answer;
    assert_eq!(answer, Ok(Answer::Registered { worker: WORKER, unknown: holding }));
    let refused = applied(&mut state, Command::Report(late)).answer;
    assert_eq!(refused, Err(Rejection::StaleSession { worker: WORKER, given: 1, present: 2 }));
    assert_eq!(state.workers()[&WORKER].presence, Presence::Present);
}

#[test]
fn who_announced_itself_meanwhile_is_not_lost() {
    let mut state = busy();
    let holding = vec![attempt(1, 1), attempt(2, 1), attempt(3, 1)];
    applied(&mut state, announce(1, 1, 2, 4, holding)).answer.unwrap();
    let refused = applied(&mut state, lose(1)).answer;
    assert_eq!(refused, Err(Rejection::StaleSession { worker: WORKER, given: 1, present: 2 }));
    assert_eq!(phase(&state, 1), Some(Phase::Running { worker: WORKER }));
}

#[test]
fn an_announcement_that_comes_late_or_twice_changes_nothing() {
    let mut state = busy();
    let holding = vec![attempt(1, 1), attempt(2, 1), attempt(3, 1)];
    applied(&mut state, announce(1, 1, 3, 4, holding)).answer.unwrap();
    for session in [1, 2, 3] {
        let refused = applied(&mut state, announce(1, 1, session, 4, vec![])).answer;
        assert_eq!(refused, Err(Rejection::StaleSession { worker: WORKER, given: session, present: 3 }));
    }
    assert_eq!(phase(&state, 1), Some(Phase::Running { worker: WORKER }), "it still holds all of it");
}

#[test]
fn a_suspect_keeps_what_it_has_and_gets_nothing_new_until_it_is_heard_of() {
    let mut state = busy();
    applied(&mut state, Command::Submit(submit(vec![(spec("b"), 1)]))).answer.unwrap();
    applied(&mut state, suspect(true)).answer.unwrap();
    assert!(state.workers()[&WORKER].is_suspect());
    assert!(plan(&state, 10).placements.is_empty());
    assert_eq!(phase(&state, 1), Some(Phase::Running { worker: WORKER }));
    let run = finished(TaskRange::single(TaskId(1)), Epoch(1), Outcome::Exited(0));
    let body = report(&state, WORKER, vec![], vec![run]);
    assert!(applied(&mut state, Command::Report(body)).answer.is_ok(), "its results count");

    applied(&mut state, suspect(false)).answer.unwrap();
    assert_eq!(plan(&state, 10).placements.len(), 1);
}

fn standing(state: &State) -> Standing {
    state.workers()[&WORKER].quarantine.standing
}

#[test]
fn who_was_lost_comes_back_through_quarantine_and_probation() {
    let mut state = busy();
    applied(&mut state, lose(1)).answer.unwrap();
    applied(&mut state, announce(1, 1, 2, 4, vec![])).answer.unwrap();
    assert!(matches!(standing(&state), Standing::Quarantined { silent: false, .. }));
    assert!(plan(&state, 10).placements.is_empty(), "in quarantine it gets nothing");
    assert!(
        state.next_deadline_ms().is_some(),
        "its end is a deadline, so that an idle cluster wakes up for it"
    );

    pass(&mut state, 30_000);
    assert_eq!(standing(&state), Standing::Probation { successes: 0 });
    applied(&mut state, Command::Submit(submit(vec![(spec("b"), 20)]))).answer.unwrap();
    let mut done = 0;
    while standing(&state) != Standing::Active {
        let planned = plan(&state, 10);
        applied(&mut state, Command::Plan(planned)).answer.unwrap();
        assert_eq!(state.workers()[&WORKER].held, 2, "on probation it gets a little");
        let live = state.live().iter().find(|(_, live)| live.phase.worker() == Some(WORKER));
        let (task, epoch) = live.map(|(task, live)| (*task, live.epoch)).unwrap();
        let run = finished(TaskRange::single(task), epoch, Outcome::Exited(0));
        let body = report(&state, WORKER, vec![], vec![run]);
        applied(&mut state, Command::Report(body)).answer.unwrap();
        done += 1;
    }
    assert_eq!(done, QuarantineOptions::default().probation_successes);
    let planned = plan(&state, 10);
    applied(&mut state, Command::Plan(planned)).answer.unwrap();
    assert_eq!(state.workers()[&WORKER].held, 4);
}

#[test]
fn a_worker_that_keeps_failing_keeps_what_it_has_gets_nothing_for_a_while_and_then_a_little() {
    let mut state = busy();
    let quarantine = |session: u64| {
        Command::QuarantineWorker(QuarantineWorker { worker: WORKER, incarnation: 1, session })
    };
    let stale = applied(&mut state, quarantine(7)).answer;
    assert_eq!(stale, Err(Rejection::StaleSession { worker: WORKER, given: 7, present: 1 }));
    applied(&mut state, quarantine(1)).answer.unwrap();
    assert!(matches!(standing(&state), Standing::Quarantined { silent: false, .. }));
    assert_eq!(state.workers()[&WORKER].presence, Presence::Present);
    assert_eq!(state.workers()[&WORKER].held, 3, "what it has it keeps");
    applied(&mut state, Command::Submit(submit(vec![(spec("b"), 3)]))).answer.unwrap();
    assert!(plan(&state, 10).placements.is_empty());
    pass(&mut state, 30_000);
    assert_eq!(standing(&state), Standing::Probation { successes: 0 });
}

#[test]
fn a_tenth_of_the_workers_may_be_in_quarantine_and_beyond_that_an_alert_is_counted() {
    let (mut state, _) = founded();
    for node in 1..=20 {
        applied(&mut state, register(node, 1, 4, vec![])).answer.unwrap();
    }
    for worker in (1..=20).map(WorkerId) {
        applied(&mut state, Command::LoseWorker(LoseWorker { worker, incarnation: 1, session: 1 }))
            .answer
            .unwrap();
    }
    let quarantined = state
        .workers()
        .values()
        .filter(|row| matches!(row.quarantine.standing, Standing::Quarantined { .. }))
        .count();
    assert_eq!((quarantined, state.meta().quarantine_alerts), (2, 18));
    for node in 1..=20 {
        applied(&mut state, announce(node, 1, 2, 4, vec![])).answer.unwrap();
    }
    let working = state.workers().values().filter(|row| row.usable_slots() > 0).count();
    assert_eq!(working, 18, "what the whole cluster suffers shuts out a tenth of it");
}

/// A cluster at the newest feature level with so many workers, each announced once.
fn with_workers(count: u8) -> State {
    let (mut state, _) = founded_at_newest();
    for node in 1..=count {
        applied(&mut state, register(node, 1, 4, vec![])).answer.unwrap();
    }
    state
}

fn of(worker: WorkerId, suspected: bool) -> Command {
    Command::SuspectWorker(SuspectWorker { worker, incarnation: 1, session: 1, suspected })
}

fn loss_of(worker: WorkerId) -> Command {
    Command::LoseWorker(LoseWorker { worker, incarnation: 1, session: 1 })
}

fn is_quarantined(state: &State, worker: WorkerId) -> bool {
    matches!(state.workers()[&worker].quarantine.standing, Standing::Quarantined { .. })
}

#[test]
fn who_is_lost_with_everybody_else_is_not_penalised() {
    // Given: all workers fall silent, as they do when the whole cluster is off; some are lost before others.
    let mut state = with_workers(3);
    let workers = [WorkerId(1), WorkerId(2), WorkerId(3)];
    for worker in workers {
        applied(&mut state, of(worker, true)).answer.unwrap();
    }
    for worker in workers {
        applied(&mut state, loss_of(worker)).answer.unwrap();
    }
    assert_eq!(state.meta().quarantine_alerts, 0, "nobody belongs in quarantine");
    // When: they come back.
    for node in 1..=3 {
        applied(&mut state, announce(node, 1, 2, 4, vec![])).answer.unwrap();
    }
    // Then: all of them work at once.
    let usable: Vec<u32> = state.workers().values().map(|row| row.usable_slots()).collect();
    assert_eq!(usable, [4, 4, 4]);
}

#[test]
fn who_is_lost_while_another_worker_is_heard_goes_into_quarantine() {
    let mut state = with_workers(2);
    applied(&mut state, of(WORKER, true)).answer.unwrap();
    applied(&mut state, loss_of(WORKER)).answer.unwrap();
    assert!(is_quarantined(&state, WORKER));
    // The other one is the last one now: there is nobody who would do its work.
    applied(&mut state, loss_of(WorkerId(2))).answer.unwrap();
    assert!(!is_quarantined(&state, WorkerId(2)));
    applied(&mut state, announce(2, 1, 2, 4, vec![])).answer.unwrap();
    assert_eq!(state.workers()[&WorkerId(2)].usable_slots(), 4);
}

#[test]
fn a_probation_is_not_passed_by_being_lost_with_everybody_else() {
    let mut state = with_workers(1);
    applied(
        &mut state,
        Command::QuarantineWorker(QuarantineWorker { worker: WORKER, incarnation: 1, session: 1 }),
    )
    .answer
    .unwrap();
    pass(&mut state, 30_000);
    assert_eq!(standing(&state), Standing::Probation { successes: 0 });
    applied(&mut state, loss_of(WORKER)).answer.unwrap();
    applied(&mut state, announce(1, 1, 2, 4, vec![])).answer.unwrap();
    assert_eq!(standing(&state), Standing::Probation { successes: 0 });
}

#[test]
fn before_the_level_is_in_force_a_loss_means_what_it_meant() {
    let mut state = busy();
    applied(&mut state, lose(1)).answer.unwrap();
    assert!(is_quarantined(&state, WORKER), "logs that were written so are replayed so");
}

fn order(node: u8, quarantined: bool) -> Command {
    Command::SetQuarantine(SetQuarantine { node: Digest([node; 32]), quarantined })
}

#[test]
fn an_operator_puts_a_worker_into_quarantine_whatever_number_is_there_and_releases_it() {
    let mut state = busy_in(founded_at_newest().0);
    applied(&mut state, register(2, 1, 4, vec![])).answer.unwrap();
    for node in [1, 2] {
        applied(&mut state, order(node, true)).answer.unwrap();
        assert!(is_quarantined(&state, WorkerId(node.into())), "no cap bounds an operator's order");
    }
    assert_eq!(state.workers()[&WORKER].held, 3, "what it has it keeps");
    assert_eq!(state.meta().quarantine_alerts, 0);
    // It ends like any other.
    pass(&mut state, 30_000);
    assert_eq!(standing(&state), Standing::Probation { successes: 0 });
    // When: it is released, from a probation or from a quarantine.
    applied(&mut state, order(1, false)).answer.unwrap();
    assert_eq!(state.workers()[&WORKER].quarantine, Default::default(), "and what was before is forgotten");
    applied(&mut state, order(1, true)).answer.unwrap();
    applied(&mut state, order(1, false)).answer.unwrap();
    assert_eq!(state.workers()[&WORKER].usable_slots(), 4);
}

#[test]
fn a_release_does_not_make_a_silent_worker_a_present_one() {
    let mut state = with_workers(2);
    applied(&mut state, of(WORKER, true)).answer.unwrap();
    applied(&mut state, order(1, false)).answer.unwrap();
    assert!(state.workers()[&WORKER].is_suspect());
    applied(&mut state, loss_of(WORKER)).answer.unwrap();
    applied(&mut state, order(1, false)).answer.unwrap();
    assert_eq!(state.workers()[&WORKER].usable_slots(), 0);
    applied(&mut state, announce(1, 1, 2, 4, vec![])).answer.unwrap();
    assert_eq!(standing(&state), Standing::Active, "it was released while it was away");
}

#[test]
fn an_order_about_a_node_that_is_no_worker_is_refused() {
    let mut state = with_workers(1);
    let refused = applied(&mut state, order(9, true)).answer;
    assert_eq!(refused, Err(Rejection::UnknownNode(Digest([9; 32]))));
    let (node, token) = (
        new_node(3, NodeRole::Server),
        TokenRow {
            id: Digest::of(b"operator"),
            name: "operator".to_owned(),
            role: TokenRole::Operator,
            tenant: None,
            expires_wall_ms: 2,
            created_wall_ms: 1,
            created_by: String::new(),
        },
    );
    let server = node.node;
    applied(&mut state, Command::EnrolFounder(EnrolFounder { node, token, wall_ms: 1 })).answer.unwrap();
    let of_server = Command::SetQuarantine(SetQuarantine { node: server, quarantined: true });
    let refused = applied(&mut state, of_server).answer.unwrap_err();
    assert!(refused.to_string().contains("has not announced itself as a worker"), "{refused}");
}

#[test]
fn a_worker_that_does_not_end_an_attempt_at_its_time_out_is_asked_to_and_gets_nothing_new() {
    let mut state = busy();
    let asked = |state: &mut State, ms: u64| {
        let target_ms = state.meta().time_ms + ms;
        let mut asked = 0;
        while state.meta().time_ms < target_ms {
            let bytes = Entry { time_ms: target_ms, command: Command::Tick }.encode().unwrap();
            let index = state.applied_index() + 1;
            let effects = apply(state, 1, index, &bytes).unwrap().effects;
            state.check().unwrap();
            asked += effects
                .iter()
                .filter(|effect| {
                    matches!(effect, Effect::ChangeTimeout { worker: WORKER, attempts, timeout_ms: 60_000 }
                        if *attempts == [attempt(1, 1)])
                })
                .count();
        }
        asked
    };
    let grace_ms = limits::TIMEOUT_GRACE_MS;
    assert_eq!(asked(&mut state, 60_000 + grace_ms - 1), 0, "the worker's own clock comes first");
    assert_eq!(asked(&mut state, 1), 1);
    assert!(matches!(standing(&state), Standing::Quarantined { .. }));
    assert_eq!(asked(&mut state, 2 * grace_ms), 2, "and again");
    assert_eq!(phase(&state, 1), Some(Phase::Running { worker: WORKER }), "it may still run");

    // When: it has ended, nobody asks any more.
    let run = finished(TaskRange::single(TaskId(1)), Epoch(1), Outcome::TimedOut);
    let body = report(&state, WORKER, vec![], vec![run]);
    applied(&mut state, Command::Report(body)).answer.unwrap();
    assert_eq!(asked(&mut state, 10 * grace_ms), 0);
}
