//! What fails is found out in time, left alone for as long as it must, and comes back; what it was doing is done again, once. The real
//! servers, workers and stores run on the simulator's links and disks with every checker on; what must always hold is looked at after every
//! single thing that happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scenario;

use std::collections::BTreeSet;

use grey_core::{Answer, AttemptId, Epoch, NodeStanding, Outcome, Presence, QuarantineOptions, Standing};
use grey_health::{BreakerOptions, BreakerState, LeaseOptions, PhiOptions};
use grey_replica::WatchOptions;
use grey_sim::{Scenario, ScenarioOptions, Work};
use scenario::*;

/// How often a worker says that it is there, in milliseconds.
const HEARTBEAT_MS: u64 = 500;
/// The longest that a decision takes from the clock that finds it due until the leader has applied it, in milliseconds: a look at the clock,
/// the way to a follower and back, and a sync on each side that may find one under way.
const DECISION_MS: u64 = TICK_MS + 2 * LONGEST_LINK_MS + 4 * SYNC_MS;
/// The longest from an election time-out until somebody may lead: asked for twice, and an entry of its own, with syncs on both sides.
const ELECTION_MS: u64 = TICK_MS + 6 * LONGEST_LINK_MS + 6 * SYNC_MS;

fn presence(now: &Scenario, worker: usize) -> Option<Presence> {
    now.worker_row(worker).map(|(_, row)| row.presence)
}

fn standing(now: &Scenario, worker: usize) -> Option<Standing> {
    now.worker_row(worker).map(|(_, row)| row.quarantine.standing)
}

fn is_suspect(now: &Scenario, worker: usize) -> bool {
    now.worker_row(worker).is_some_and(|(_, row)| row.is_suspect())
}

fn is_quarantined(now: &Scenario, worker: usize) -> bool {
    matches!(standing(now, worker), Some(Standing::Quarantined { .. }))
}

fn assert_active(now: &Scenario, workers: impl IntoIterator<Item = usize>) {
    for worker in workers {
        if let Some((_, row)) = now.worker_row(worker) {
            assert_eq!(
                (row.presence, row.quarantine.standing),
                (Presence::Present, Standing::Active),
                "{worker}"
            );
        }
    }
}

fn kill_worker(cluster: &mut Cluster, worker: usize) -> usize {
    let index = cluster.scenario.worker(worker);
    cluster.scenario.kill(index);
    index
}

#[test]
fn test_heartbeat_failure_detection() {
    for length_ms in [1_000, 3_000, 5_000] {
        // Given: leases of some length, and four workers with work.
        let lease = LeaseOptions { length_ms, ..LeaseOptions::default() };
        let watch = WatchOptions { lease, ..WatchOptions::default() };
        let options = ScenarioOptions { watch, ..ScenarioOptions::new(length_ms, near()) };
        // A worker's clock may be a hundredth slower than the leader's, and readings are rounded.
        let period_ms = length_ms * 101 / 100 + 1;
        let mut cluster = Cluster::start(&options);
        cluster.scenario.load(0, load(20, 12_000, 500 * MS));
        cluster.run(5_100);
        // When: a worker's process ends.
        kill_worker(&mut cluster, 0);
        let took_ms = cluster.until("it is lost", 2 * period_ms, |now| {
            assert_active(now, 1..4);
            presence(now, 0) == Some(Presence::Lost)
        });
        // Then: it is lost once its lease must be over, which counts from its last heartbeat, and not before.
        println!("heartbeat: lease {length_ms} ms, lost after {took_ms} ms");
        assert!(took_ms >= period_ms - HEARTBEAT_MS - LONGEST_LINK_MS, "{took_ms}");
        assert!(took_ms <= period_ms + LONGEST_LINK_MS + DECISION_MS, "{took_ms}");
        cluster.finish();
    }
    leaders_are_missed_in_time();
    late_observers_miss_nobody();
}

/// Between servers: a leader that is gone is missed after an election time-out, which is drawn from a range.
fn leaders_are_missed_in_time() {
    let mut cluster = Cluster::start(&ScenarioOptions { servers: 5, ..ScenarioOptions::new(11, near()) });
    let old = cluster.leader();
    cluster.run(1_000);
    cluster.scenario.kill(old);
    let misses =
        |now: &Scenario| (0..5).any(|server| server != old && now.believed_leader(server) != Some(old));
    let took_ms = cluster.until("it is missed", LONGEST_ELECTION_MS + TICK_MS, misses);
    println!("heartbeat: a leader is missed after {took_ms} ms");
    assert!(took_ms >= SHORTEST_ELECTION_MS - 2 * TICK_MS, "{took_ms}");
    cluster.scenario.start_again(old);
    cluster.finish();
}

/// A server that stood still itself takes nobody for gone whom it could not hear meanwhile.
fn late_observers_miss_nobody() {
    let options = ScenarioOptions { servers: 1, ..ScenarioOptions::new(12, near()) };
    let mut cluster = Cluster::start(&options);
    cluster.scenario.load(0, load(20, 20_000, 300 * MS));
    for paused_ms in [700, 2_500, 8_000] {
        cluster.run(2_000);
        cluster.scenario.pause(0, paused_ms);
        cluster.run_and(paused_ms + 4_000, |now| assert_active(now, 0..4));
    }
    cluster.finish();
}

/// The silence after which phi is 8 of whom heartbeats come exactly as they should, in milliseconds: the mean, the acceptable pause, and 5.6
/// of the least deviation.
const REGULAR_SILENCE_MS: u64 = 500 + 1_000 + 560;

#[test]
fn test_phi_accrual_detection() {
    assert_eq!(PhiOptions::default().threshold_milli, 8_000);
    // Given: a worker that was heard regularly for a while. When: it falls silent, and when one does that stood still now and again.
    let silence = |irregular: bool| {
        let mut cluster = Cluster::start(&ScenarioOptions::new(21, near()));
        let worker = cluster.scenario.worker(0);
        for round in 0..20 {
            if irregular {
                cluster.scenario.pause(worker, 300 + 100 * (round % 5));
            }
            // Then: neither is suspected as long as it is as it always was.
            cluster.run_and(1_300, |now| assert_active(now, 0..4));
        }
        cluster.scenario.kill(worker);
        let took_ms = cluster.until("it is suspected", 3_000, |now| {
            assert_active(now, 1..4);
            is_suspect(now, 0)
        });
        assert_eq!(presence(&cluster.scenario, 0), Some(Presence::Present), "it is not taken for lost yet");
        assert_eq!(cluster.scenario.worker_row(0).unwrap().1.usable_slots(), 0, "it gets nothing new");
        cluster.finish();
        took_ms
    };
    let (regular_ms, irregular_ms) = (silence(false), silence(true));
    println!(
        "phi: suspected {regular_ms} ms after the end of a regular worker, {irregular_ms} ms of an irregular one"
    );
    // Then: the regular one is suspected when phi is 8, counted from its last heartbeat; the other one is given more time.
    assert!(regular_ms >= REGULAR_SILENCE_MS - HEARTBEAT_MS - LONGEST_LINK_MS, "{regular_ms}");
    assert!(regular_ms <= REGULAR_SILENCE_MS + LONGEST_LINK_MS + DECISION_MS, "{regular_ms}");
    assert!(irregular_ms >= regular_ms + 100);
    suspicions_end_when_heard();
    failovers_give_more_time();
}

fn suspicions_end_when_heard() {
    let mut cluster = Cluster::start(&ScenarioOptions::new(22, near()));
    cluster.run(10_000);
    cluster.scenario.submit(0, Work { tasks: 40, attempt_us: 8_000 * MS, failures: 0 });
    cluster.run(1_000);
    let worker = cluster.scenario.worker(busiest(&cluster.scenario));
    let number = worker - 3;
    // When: it cannot be reached for a time that is acceptable. Then: nobody suspects it.
    cluster.scenario.cut(&[worker], &[0, 1, 2]);
    cluster.run_and(1_200, |now| assert!(!is_suspect(now, number)));
    cluster.scenario.heal();
    cluster.run_and(3_000, |now| assert!(!is_suspect(now, number)));
    // When: for longer, and less than its lease. Then: it is suspected, and once it is heard no longer, as if nothing had been.
    cluster.scenario.cut(&[worker], &[0, 1, 2]);
    cluster.until("it is suspected", 2_500, |now| is_suspect(now, number));
    cluster.scenario.heal();
    let took_ms = cluster.until("it is heard", 1_000, |now| !is_suspect(now, number));
    println!("phi: heard {took_ms} ms after it could be");
    cluster.run_and(500, |now| assert_active(now, 0..4));
    assert_eq!(cluster.scenario.worker_row(number).unwrap().1.quarantine.times, 0);
    cluster.finish();
    let accepted = &cluster.scenario.ledger().accepted;
    assert!(accepted.values().all(|all| all == &[(Epoch(1), Outcome::Exited(0))]), "nothing ran twice");
}

/// The worker that holds the most.
fn busiest(now: &Scenario) -> usize {
    let held = |worker: &usize| now.worker_row(*worker).map_or(0, |(_, row)| row.held);
    (0..4).max_by_key(held).unwrap()
}

/// Whoever has just begun to lead knows nothing of how regular anybody is, and waits for three seconds.
fn failovers_give_more_time() {
    let mut cluster = Cluster::start(&ScenarioOptions::new(23, near()));
    cluster.run(2_000);
    let old = cluster.leader();
    cluster.scenario.kill(old);
    cluster.until("another one leads", 2 * LONGEST_ELECTION_MS, |now| now.leader().is_some());
    cluster.run_and(2_000, |now| assert_active(now, 0..4));
    kill_worker(&mut cluster, 0);
    let took_ms = cluster.until("it is suspected", 4_000, |now| is_suspect(now, 0));
    println!("phi: suspected {took_ms} ms after its end where the leader is new");
    assert!(took_ms >= 3_000 - HEARTBEAT_MS - LONGEST_LINK_MS, "{took_ms}");
    assert!(took_ms <= 3_000 + LONGEST_LINK_MS + DECISION_MS, "{took_ms}");
    cluster.scenario.start_again(old);
    cluster.finish();
}

#[test]
fn test_quarantine_after_failure() {
    let policy = QuarantineOptions::default();
    let mut cluster = Cluster::start(&ScenarioOptions::new(31, near()));
    for times in 1..=2u32 {
        // Given: a worker that works. When: it ends, and starts again two seconds after it was taken for lost.
        let work = Work { tasks: 300, attempt_us: 200 * MS, failures: 0 };
        cluster.scenario.submit(0, work);
        cluster.run(300);
        let held = cluster.scenario.worker_row(0).unwrap().1.held;
        assert!(held > policy.probation_slots, "{held}");
        let worker = kill_worker(&mut cluster, 0);
        cluster.until("it is lost", 4_000, |now| presence(now, 0) == Some(Presence::Lost));
        let lost_us = cluster.scenario.now_us();
        let (state, row) =
            (cluster.scenario.state_of(cluster.leader()).unwrap(), cluster.scenario.worker_row(0));
        let (time_ms, row) = (state.meta().time_ms, row.unwrap().1);
        let until_ms = time_ms + policy.first_ms * u64::from(times);
        assert_eq!(row.quarantine.times, times);
        assert_eq!(row.quarantine.standing, Standing::Quarantined { until_ms, silent: true });
        cluster.run(2_000);
        cluster.scenario.start_again(worker);
        if times == 1 {
            one_more_finds_no_room(&mut cluster);
        }
        // Then: it gets nothing for thirty seconds, the second time for sixty, although it is there and there is work.
        cluster.until("it is there", 1_000, |now| presence(now, 0) == Some(Presence::Present));
        cluster.scenario.load(1, load(4, 20_000, 100 * MS));
        cluster.until("its quarantine ends", 100_000, |now| {
            let (_, row) = now.worker_row(0).unwrap();
            assert!(row.held == 0 && row.usable_slots() == 0 || !is_quarantined(now, 0));
            !is_quarantined(now, 0)
        });
        let took_ms = (cluster.scenario.now_us() - lost_us) / MS;
        println!("quarantine {times}: {took_ms} ms");
        let length_ms = policy.first_ms * u64::from(times);
        // Cluster time is that of the last entry, and a lease may end between two.
        assert!((length_ms - HEARTBEAT_MS..=length_ms + DECISION_MS).contains(&took_ms), "{took_ms}");
        assert_eq!(standing(&cluster.scenario, 0), Some(Standing::Probation { successes: 0 }));
        // When: there is work for everybody. Then: it holds two attempts at most, until five have succeeded, and then as many as before.
        cluster.scenario.submit(0, Work { tasks: 1_000, attempt_us: 300 * MS, failures: 0 });
        let (mut most, mut successes) = (0, BTreeSet::new());
        cluster.until("it has proved itself", 10_000, |now| match standing(now, 0) {
            Some(Standing::Probation { successes: so_far }) => {
                successes.insert(so_far);
                most = most.max(now.worker_row(0).unwrap().1.held);
                false
            }
            other => {
                assert_eq!(other, Some(Standing::Active));
                true
            }
        });
        assert_eq!((most, successes.len()), (policy.probation_slots, policy.probation_successes as usize));
        cluster.until("it works as before", 3_000, |now| {
            now.worker_row(0).unwrap().1.held > policy.probation_slots
        });
        cluster.finish();
    }
    assert_eq!(cluster.scenario.state_of(0).unwrap().meta().quarantine_alerts, 1);
}

/// A tenth of the workers may be in quarantine at once, but always one: of four one. The next one that is lost is only told of.
fn one_more_finds_no_room(cluster: &mut Cluster) {
    let worker = kill_worker(cluster, 1);
    cluster.until("it is lost", 4_000, |now| presence(now, 1) == Some(Presence::Lost));
    cluster.scenario.start_again(worker);
    cluster.until("it is active", 1_000, |now| {
        assert!(!is_quarantined(now, 1));
        standing(now, 1) == Some(Standing::Active) && presence(now, 1) == Some(Presence::Present)
    });
    assert!(is_quarantined(&cluster.scenario, 0));
    assert_eq!(cluster.scenario.worker_row(1).unwrap().1.quarantine.times, 0);
}

#[test]
fn test_circuit_breaker_activation() {
    let breaker = BreakerOptions::default();
    let policy = QuarantineOptions::default();
    // Given: a worker whose executor fails whatever it is given. When: there is work for everybody.
    let mut cluster = Cluster::start(&ScenarioOptions::new(41, near()));
    cluster.scenario.break_executor(0, true);
    let work = Work { tasks: 300, attempt_us: 300 * MS, failures: 0 };
    cluster.scenario.submit(0, work);
    cluster.until("it is left alone", 5_000, |now| is_quarantined(now, 0));
    let opened_us = cluster.scenario.now_us();
    let node = cluster.scenario.worker_node(0).unwrap();
    let ran = |cluster: &Cluster, from_us: u64| {
        let runs = cluster.scenario.ledger().runs.values();
        runs.filter(|run| run.worker == node && run.from_us >= from_us).count()
    };
    // Then: its breaker opens after ten failures, and what it held by then is all that it ever got.
    let failed = ran(&cluster, 0);
    println!("breaker: opened after {failed} attempts that could not be run");
    let slots = cluster.scenario.worker_row(0).unwrap().1.slots as usize;
    assert!((breaker.least_calls..=slots).contains(&failed), "{failed}");
    cluster.run_and(2_000, |now| assert_active(now, 1..4));
    assert_eq!(cluster.scenario.worker_row(0).unwrap().1.quarantine.times, 1);
    // When: it is tried again on probation, and still fails. Then: one failure is enough, and it is left alone for twice as long.
    cluster.run_and(policy.first_ms - 2_500, |now| assert!(is_quarantined(now, 0)));
    assert_eq!(ran(&cluster, opened_us + DECISION_MS * MS), 0, "it got nothing meanwhile");
    cluster.until("it is tried", 2_000, |now| matches!(standing(now, 0), Some(Standing::Probation { .. })));
    cluster.scenario.submit(0, work);
    let again_ms = cluster.until("it is left alone again", 5_000, |now| is_quarantined(now, 0));
    let tried = ran(&cluster, opened_us + DECISION_MS * MS);
    println!("breaker: opened again {again_ms} ms after it had work, after {tried} attempts");
    assert!(tried <= 2 * policy.probation_slots as usize, "{tried}");
    assert_eq!(cluster.scenario.worker_row(0).unwrap().1.quarantine.times, 2);
    // When: it is repaired. Then: it passes its next probation, and the breaker is closed: it works as before.
    cluster.scenario.break_executor(0, false);
    cluster.run_and(2 * policy.first_ms - 500, |now| assert!(is_quarantined(now, 0)));
    cluster.until("it is tried", 2_000, |now| matches!(standing(now, 0), Some(Standing::Probation { .. })));
    cluster.scenario.submit(0, Work { tasks: 1_000, ..work });
    cluster.until("it is active", 10_000, |now| {
        assert!(!is_quarantined(now, 0));
        standing(now, 0) == Some(Standing::Active)
    });
    cluster.finish();
    failures_of_tasks_open_nothing();
    a_server_s_breaker_goes_round();
}

/// What fails by its own fault says nothing of who ran it.
fn failures_of_tasks_open_nothing() {
    let mut cluster = Cluster::start(&ScenarioOptions::new(42, near()));
    cluster.scenario.submit(0, Work { tasks: 300, attempt_us: 20 * MS, failures: 1 });
    cluster.run_and(3_000, |now| assert_active(now, 0..4));
    cluster.scenario.finish().unwrap();
    let ended: Vec<_> = cluster.scenario.ledger().ended.values().map(|(_, counts)| counts.failed).collect();
    assert_eq!(ended, [300]);
}

/// The breaker of a leader before a follower that cannot be reached: closed, open for about a second, half open, open, …, closed.
fn a_server_s_breaker_goes_round() {
    let mut cluster = Cluster::start(&ScenarioOptions::new(43, near()));
    let leader = cluster.leader();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.scenario.cut(&[away], &[leader, other]);
    let mut seen: Vec<BreakerState> = Vec::new();
    let mut note = |cluster: &mut Cluster| {
        let state = cluster.scenario.breaker(leader, away).unwrap();
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    };
    for _ in 0..1_500 {
        cluster.run(10);
        note(&mut cluster);
    }
    cluster.scenario.heal();
    for _ in 0..600 {
        cluster.run(10);
        note(&mut cluster);
    }
    let opened = seen.iter().filter(|state| matches!(state, BreakerState::Open { .. })).count();
    println!("breaker: open {opened} times in fifteen seconds");
    assert_eq!((seen.first(), seen.last()), (Some(&BreakerState::Closed), Some(&BreakerState::Closed)));
    assert!(opened >= 3 && seen.contains(&BreakerState::HalfOpen), "{seen:?}");
    for (before, after) in seen.iter().zip(&seen[1..]) {
        let follows = match before {
            BreakerState::Closed => matches!(after, BreakerState::Open { .. }),
            // A probe that fails at once opens it before anybody has seen it half open.
            BreakerState::Open { until_ms } => match after {
                BreakerState::Open { until_ms: later_ms } => *later_ms >= until_ms + 750,
                other => *other == BreakerState::HalfOpen,
            },
            BreakerState::HalfOpen => matches!(after, BreakerState::Open { .. } | BreakerState::Closed),
        };
        assert!(follows, "{before:?}, then {after:?}");
    }
    cluster.finish();
}

fn stands(cluster: &mut Cluster, server: usize, standing: NodeStanding) {
    let command = cluster.scenario.standing(server, standing);
    assert_eq!(cluster.propose(command), Ok(Answer::Identity));
}

fn admit_and_start(cluster: &mut Cluster, index: usize) {
    cluster.admit(index);
    cluster.scenario.start_again(index);
}

#[test]
fn test_membership_reconfiguration() {
    // Given: three servers that vote, two that may replace them, and work all the time. That whoever leads is in touch with a majority of
    // those who vote is looked at after everything that happens.
    let options = ScenarioOptions { servers: 5, workers: 3, ..ScenarioOptions::new(51, near()) };
    let mut cluster = Cluster::founded(&options);
    for index in [1, 2].into_iter().chain((0..3).map(|worker| 5 + worker)) {
        admit_and_start(&mut cluster, index);
    }
    let vote = |members: &[usize]| {
        let members: BTreeSet<usize> = members.iter().copied().collect();
        move |now: &Scenario| now.leader().is_some_and(|leader| voters(now, leader) == members)
    };
    cluster.until("three vote", 2_000, vote(&[0, 1, 2]));
    cluster.scenario.load(0, load(20, 45_000, 100 * MS));
    // When: a follower ends. Then: suspicion alone removes nobody who votes, and the others go on.
    cluster.scenario.kill(1);
    let three = vote(&[0, 1, 2]);
    cluster.run_and(20_000, |now| assert!(three(now)));
    assert_eq!((cluster.leader(), cluster.scenario.term(0)), (0, 1));
    // When: an operator says that it leaves. Then: it is removed and forgotten, and another one can take its place.
    stands(&mut cluster, 1, NodeStanding::Leaving);
    let removed_ms = cluster.until("it is removed", 1_000, vote(&[0, 2]));
    let forgotten = |now: &Scenario| now.state_of(0).is_some_and(|state| state.node_of_server(2).is_none());
    let forgotten_ms = cluster.until("it is forgotten", 1_000, forgotten);
    assert_eq!(cluster.admit(3), Some(4), "a number is given once");
    cluster.scenario.start_again(3);
    let replaced_ms = cluster.until("another one votes", 5_000, vote(&[0, 2, 3]));
    println!(
        "members: removed after {removed_ms} ms, forgotten {forgotten_ms} ms later; replaced in {replaced_ms} ms"
    );
    // When: one is to leave while the one that would have to be there instead is not. Then: it stays until that one is.
    cluster.scenario.kill(3);
    cluster.run(LONGEST_ELECTION_MS);
    stands(&mut cluster, 2, NodeStanding::Leaving);
    let three = vote(&[0, 2, 3]);
    cluster.run_and(3_000, |now| assert!(three(now)));
    cluster.scenario.start_again(3);
    cluster.until("it may leave", 5_000, vote(&[0, 3]));
    cluster.run(500);
    cluster.scenario.kill(2);
    // When: the leader itself leaves. Then: it hands on leadership first, so that nobody waits for an election, and is removed.
    admit_and_start(&mut cluster, 4);
    cluster.until("three vote again", 5_000, vote(&[0, 3, 4]));
    cluster.run(4_000);
    stands(&mut cluster, 0, NodeStanding::Leaving);
    let before = cluster.invariants.without_leader;
    let began_us = cluster.scenario.now_us();
    let handed_ms =
        cluster.until("another one leads", 1_000, |now| now.leader().is_some_and(|leader| leader != 0));
    assert!(handed_ms < SHORTEST_ELECTION_MS - TICK_MS, "{handed_ms}: no election had to be waited for");
    cluster.until("the first server is removed", 2_000, vote(&[3, 4]));
    println!(
        "members: handed on in {handed_ms} ms, without a leader for {} looks; removed after {} ms",
        cluster.invariants.without_leader - before,
        (cluster.scenario.now_us() - began_us) / MS
    );
    cluster.run(500);
    cluster.scenario.kill(0);
    cluster.finish();
    let report = cluster.scenario.report(0);
    assert_eq!(report.acknowledged.len() as u64, report.begun);
    // Whoever asks while members change may have to ask again, every quarter of a second, until it has found who leads.
    assert!(report.latency_us(980) < 100 * MS, "{}", report.latency_us(980));
    assert!(report.latency_us(1_000) < 1_500 * MS, "{}", report.latency_us(1_000));
}

/// What a worker holds, as the leader has it.
fn held(now: &Scenario, worker: usize) -> BTreeSet<AttemptId> {
    let (Some((id, _)), Some(state)) =
        (now.worker_row(worker), now.leader().and_then(|one| now.state_of(one)))
    else {
        return BTreeSet::new();
    };
    let of_it = state.live().iter().filter(|(_, live)| live.phase.worker() == Some(id));
    of_it.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect()
}

#[test]
fn test_task_replay_after_recovery() {
    // Given: a worker with attempts that end in two to three seconds. When: it is cut off, for longer than its lease.
    let mut cluster = Cluster::start(&ScenarioOptions::new(61, near()));
    cluster.scenario.submit(0, Work { tasks: 200, attempt_us: 2_000 * MS, failures: 0 });
    cluster.run(500);
    let number = busiest(&cluster.scenario);
    let (worker, node) = (cluster.scenario.worker(number), cluster.scenario.worker_node(number).unwrap());
    let lost = held(&cluster.scenario, number);
    assert!(lost.len() >= 20 && lost.iter().all(|attempt| attempt.epoch == Epoch(1)));
    cluster.scenario.cut(&[worker], &[0, 1, 2]);
    let lost_ms = cluster.until("it is lost", 4_000, |now| presence(now, number) == Some(Presence::Lost));
    // Then: nothing runs there any more by then, by its own clock; some had ended by itself before.
    let lost_us = cluster.scenario.now_us();
    let runs: Vec<_> =
        cluster.scenario.ledger().runs.clone().into_iter().filter(|(_, run)| run.worker == node).collect();
    assert!(runs.iter().all(|(_, run)| run.to_us.is_some_and(|to_us| to_us < lost_us)));
    // And all that it held waits again or is elsewhere, in a later epoch, once it is given to somebody: the next one, or the one after that where
    // whoever had it then gave it back to one that idled.
    assert!(held(&cluster.scenario, number).is_empty());
    let again_ms = cluster.until("all of it runs again", 6_000, |now| {
        let runs = &now.ledger().runs;
        let runs_in =
            |attempt: &AttemptId, epoch| runs.contains_key(&AttemptId { epoch: Epoch(epoch), ..*attempt });
        lost.iter().all(|attempt| runs_in(attempt, 2) || runs_in(attempt, 3))
    });
    println!("replay: {} attempts lost after {lost_ms} ms, all run again {again_ms} ms later", lost.len());
    // When: it is back with the results of what had ended there. Then: they are refused, and each task completes once, in a later epoch.
    cluster.scenario.heal();
    cluster.finish();
    let ledger = cluster.scenario.ledger();
    let succeeded = |attempt: &&AttemptId| ledger.runs[attempt].outcome == Some(Outcome::Exited(0));
    let late: BTreeSet<AttemptId> =
        runs.iter().map(|(attempt, _)| *attempt).filter(|one| succeeded(&one)).collect();
    let late: BTreeSet<AttemptId> = late.intersection(&lost).copied().collect();
    println!("replay: {} successes of the old epoch were refused", late.len());
    assert!(late.len() > 10 && late.is_subset(&ledger.refused));
    for attempt in &lost {
        let [(epoch, outcome)] = ledger.accepted[&attempt.task][..] else {
            panic!("{attempt:?} counts twice")
        };
        assert!(
            outcome == Outcome::Exited(0) && (2..=3).contains(&epoch.0),
            "{attempt:?}: {epoch} {outcome:?}"
        );
    }
    whole_clusters_come_back_with_what_they_had();
}

/// All servers end at once. What was acknowledged and has not ended is found in the log, and goes on: nothing is done twice that ended while
/// its worker's lease lasted, whenever that could be told; what had to be stopped then is done again.
fn whole_clusters_come_back_with_what_they_had() {
    const LONG: usize = 20;
    for (away_ms, twice) in [(1_000, 0), (6_000, LONG)] {
        let mut cluster = Cluster::start(&ScenarioOptions::new(62, near()));
        cluster.scenario.submit(1, Work { tasks: LONG as u32, attempt_us: 8_000 * MS, failures: 0 });
        cluster.scenario.load(0, load(40, 4_000, 1_000 * MS));
        cluster.run(2_500);
        let before = cluster.scenario.report(0).jobs;
        let live: BTreeSet<_> = {
            let state = cluster.scenario.state_of(cluster.leader()).unwrap();
            before.iter().filter(|job| state.jobs().contains_key(job)).copied().collect()
        };
        assert!(live.len() > 20 && live.len() < before.len());
        cluster.whole = false;
        (0..3).for_each(|server| cluster.scenario.kill(server));
        cluster.run(away_ms);
        (0..3).for_each(|server| cluster.scenario.start_again(server));
        let led_ms = cluster.until("somebody leads", 3_000, |now| now.leader().is_some());
        cluster.whole = true;
        // Then: exactly these are still to be done; none of those that had ended is.
        let state = cluster.scenario.state_of(cluster.leader()).unwrap();
        let found: BTreeSet<_> =
            before.iter().filter(|job| state.jobs().contains_key(job)).copied().collect();
        assert!(found.is_subset(&live) && found.len() + 10 > live.len(), "{} of {}", found.len(), live.len());
        cluster.finish();
        let ledger = cluster.scenario.ledger();
        let again = ledger.runs.keys().filter(|attempt| {
            ledger.runs.contains_key(&AttemptId { epoch: Epoch(attempt.epoch.0 + 1), ..**attempt })
        });
        let again = again.count();
        println!(
            "replay: away {away_ms} ms, led {led_ms} ms later, {} found, {again} run again",
            found.len()
        );
        assert_eq!(again, twice);
        assert_eq!(cluster.scenario.report(0).acknowledged.len(), 160);
    }
}

#[test]
fn test_leader_failover() {
    // Given: five servers, steady submissions, and some tasks that run all the time.
    let mut cluster = Cluster::start(&ScenarioOptions { servers: 5, ..ScenarioOptions::new(71, near()) });
    cluster.scenario.submit(1, Work { tasks: 8, attempt_us: 14_000 * MS, failures: 0 });
    cluster.scenario.load(0, load(100, 16_000, 20 * MS));
    for round in 0..4 {
        cluster.run_and(2_500, |now| assert_active(now, 0..4));
        let (old, term) = (cluster.leader(), cluster.scenario.term(cluster.leader()));
        // When: whoever leads is killed, or cut off from the others with its own belief.
        let began_us = cluster.scenario.now_us();
        cluster.whole = round % 2 == 0;
        let others: Vec<usize> = (0..5).filter(|server| *server != old).collect();
        if round % 2 == 0 {
            cluster.scenario.kill(old)
        } else {
            cluster.scenario.cut(&[old], &others)
        }
        let led_ms = cluster.until("another one leads", 2 * LONGEST_ELECTION_MS + ELECTION_MS, |now| {
            now.leader().is_some_and(|leader| leader != old && now.term(leader) > term)
        });
        cluster.run(1_000);
        if round % 2 == 0 {
            cluster.scenario.start_again(old)
        } else {
            cluster.scenario.heal()
        }
        cluster.whole = true;
        // Then: submissions are acknowledged again as soon as clients have found the new leader, which they look for by asking again.
        let acknowledged = cluster.scenario.report(0).acknowledged;
        let after =
            acknowledged.iter().filter(|(due_us, _)| *due_us >= began_us).map(|(due_us, took)| due_us + took);
        let first_ms = (after.min().unwrap() - began_us) / MS;
        println!("failover: another leader after {led_ms} ms, the first acknowledgement after {first_ms} ms");
        assert!(led_ms >= SHORTEST_ELECTION_MS - 2 * TICK_MS, "{led_ms}");
        assert!(first_ms <= led_ms + 400 + 2 * 250, "{first_ms}");
    }
    cluster.finish();
    let report = cluster.scenario.report(0);
    assert_eq!(report.acknowledged.len() as u64, report.begun);
    println!("failover: the slowest acknowledgement took {} ms", report.latency_us(1_000) / MS);
    assert!(report.latency_us(1_000) <= (2 * LONGEST_ELECTION_MS + ELECTION_MS + 1_000) * MS);
    // What ran all the time was not disturbed: no worker was lost, and nothing was begun again.
    let ledger = cluster.scenario.ledger();
    let long: Vec<_> =
        ledger.runs.iter().filter(|(_, run)| run.to_us.unwrap() - run.from_us > 10 * SECOND).collect();
    assert_eq!(long.len(), 8);
    assert!(
        long.iter()
            .all(|(attempt, _)| ledger.accepted[&attempt.task] == [(attempt.epoch, Outcome::Exited(0))])
    );
    assert!(cluster.invariants.led().0 >= 5);
}

#[test]
fn test_recovery_after_partition() {
    // Given: five servers, four workers, a client on each side, and work on every worker.
    let mut cluster = Cluster::start(&ScenarioOptions { servers: 5, ..ScenarioOptions::new(81, near()) });
    cluster.scenario.load(0, load(20, 14_000, 50 * MS));
    cluster.scenario.load(1, load(20, 14_000, 50 * MS));
    cluster.scenario.submit(0, Work { tasks: 200, attempt_us: 4_000 * MS, failures: 0 });
    cluster.run(2_000);
    let (old, term) = (cluster.leader(), cluster.scenario.term(cluster.leader()));
    let number = busiest(&cluster.scenario);
    let lost = held(&cluster.scenario, number);
    assert!(lost.len() > 20);
    let few = [old, (old + 1) % 5, cluster.scenario.worker(number), cluster.scenario.client(1)];
    let nodes = 5 + 4 + 2;
    let many: Vec<usize> = (0..nodes).filter(|node| !few.contains(node)).collect();
    // When: the leader, one server, one worker and one client are cut off from the rest.
    let cut_us = cluster.scenario.now_us();
    cluster.whole = false;
    cluster.scenario.cut(&few, &many);
    let ended_ms = cluster
        .until("the old leader gives up", 2 * LONGEST_ELECTION_MS, |now| !now.leaders().contains(&old));
    cluster.run_and(8_000, |now| assert!(!now.leaders().iter().any(|leader| few.contains(leader))));
    let heal_us = cluster.scenario.now_us();
    // Then: the few have acknowledged nothing but what was under way; the many have gone on, with the tasks of the lost worker too.
    assert_eq!(cluster.scenario.report(1).arrived(cut_us + 2 * LONGEST_LINK_MS * MS, heal_us), 0);
    let new = cluster.leader();
    assert!(many.contains(&new) && cluster.scenario.term(new) > term);
    assert_eq!(
        few[..2].iter().map(|server| cluster.scenario.term(*server)).max(),
        Some(term),
        "no term rose in vain"
    );
    assert!(cluster.scenario.report(0).arrived(cut_us + 2 * SECOND, heal_us) >= 20 * 6);
    assert_eq!(presence(&cluster.scenario, number), Some(Presence::Lost));
    // When: all is whole again. Then: everybody follows the one leader without another election, has its entries, and both clients have
    // their answers; the worker is there, and left alone for its time.
    cluster.scenario.heal();
    let agreed_ms = cluster.until("all follow", 4_000, |now| {
        (0..5).all(|server| now.believed_leader(server) == Some(new) && now.term(server) == now.term(new))
    });
    cluster.whole = true;
    cluster.until("the worker is there", 4_000, |now| presence(now, number) == Some(Presence::Present));
    assert!(is_quarantined(&cluster.scenario, number));
    let ended = cluster.finish();
    println!(
        "partition: gave up after {ended_ms} ms, all follow {agreed_ms} ms after, all ended {ended} ms after that"
    );
    for client in 0..2 {
        let report = cluster.scenario.report(client);
        assert_eq!(report.acknowledged.len() as u64, report.begun);
    }
    let ledger = cluster.scenario.ledger();
    for attempt in &lost {
        assert_eq!(ledger.accepted[&attempt.task].last(), Some(&(Epoch(2), Outcome::Exited(0))));
    }
}

/// Completions of attempts that ended within that second, from `from_us` on.
fn completions(now: &Scenario, from_us: u64) -> usize {
    let ended =
        |run: &grey_sim::Run| run.to_us.is_some_and(|to_us| (from_us..from_us + SECOND).contains(&to_us));
    now.ledger().runs.values().filter(|run| ended(run)).count()
}

#[test]
fn test_cascading_failure_prevention() {
    // Given: twenty workers of which about half are needed. When: six of the twelve that have the most to do end at once.
    const WORKERS: usize = 20;
    const RATE: u64 = 200;
    let options = ScenarioOptions { workers: WORKERS, ..ScenarioOptions::new(91, near()) };
    let mut cluster = Cluster::start(&options);
    let (leader, term) = (cluster.leader(), cluster.scenario.term(cluster.leader()));
    cluster.scenario.load(0, load(RATE, 18_000, 2_000 * MS));
    cluster.run(6_000);
    let before = completions(&cluster.scenario, cluster.scenario.now_us() - SECOND);
    let mut by_load: Vec<usize> = (0..WORKERS).collect();
    by_load.sort_by_key(|worker| std::cmp::Reverse(held(&cluster.scenario, *worker).len()));
    let place = |worker: &usize| by_load.iter().position(|other| other == worker).unwrap();
    let gone: Vec<usize> =
        (0..WORKERS).filter(|worker| place(worker) < 12 && place(worker).is_multiple_of(2)).collect();
    let lost: usize = gone.iter().map(|worker| held(&cluster.scenario, *worker).len()).sum();
    assert!(lost > 200, "{lost}");
    let began_us = cluster.scenario.now_us();
    for worker in &gone {
        kill_worker(&mut cluster, *worker);
    }
    // Then: at no time are more than a tenth in quarantine, and whoever is not gone is neither suspected nor left alone.
    let room = WORKERS * QuarantineOptions::default().at_most_permille as usize / 1_000;
    let mut most = 0;
    let gone_nodes: BTreeSet<_> =
        gone.iter().filter_map(|worker| cluster.scenario.worker_node(*worker)).collect();
    let mut look = |now: &Scenario| {
        let workers = now.leader().and_then(|leader| now.state_of(leader)).unwrap().workers();
        let mut quarantined = 0;
        for row in workers.values() {
            let standing = row.quarantine.standing;
            quarantined += usize::from(matches!(standing, Standing::Quarantined { .. }));
            assert!(
                gone_nodes.contains(&row.node) || standing == Standing::Active,
                "{}: {standing:?}",
                row.name
            );
        }
        assert!(quarantined <= room, "{quarantined}");
        most = most.max(quarantined);
    };
    cluster.run_and(8_000, &mut look);
    let all_lost = gone.iter().filter(|worker| presence(&cluster.scenario, **worker) == Some(Presence::Lost));
    assert_eq!(all_lost.count(), 6);
    // When: they are back. Then: as many as fit into quarantine stay there; the others, of which an operator is told, work at once.
    gone.iter().for_each(|worker| cluster.scenario.start_again(cluster.scenario.worker(*worker)));
    cluster.run_and(4_000, &mut look);
    assert_eq!(most, room);
    let state = cluster.scenario.state_of(leader).unwrap();
    assert_eq!(state.meta().quarantine_alerts as usize, 6 - room);
    let active = (0..WORKERS).filter(|worker| standing(&cluster.scenario, *worker) == Some(Standing::Active));
    assert_eq!(active.count(), WORKERS - room);
    // Throughput falls by what was lost until that is known, is made up for then, and is what it was.
    let rates: Vec<usize> =
        (0..12).map(|second| completions(&cluster.scenario, began_us + second * SECOND)).collect();
    println!(
        "cascade: {before} completions a second before, then {rates:?}; {lost} attempts lost, {most} in quarantine"
    );
    assert!(rates.iter().all(|rate| rate * 4 >= before), "{rates:?}");
    assert!(rates[8..].iter().all(|rate| rate * 10 >= before * 9), "{rates:?}");
    cluster.finish();
    // The control plane noticed nothing of it.
    let report = cluster.scenario.report(0);
    assert_eq!((report.acknowledged.len() as u64, report.refusals()), (report.begun, 0));
    assert!(report.latency_us(990) < (4 * LONGEST_LINK_MS + 4 * SYNC_MS) * MS);
    assert_eq!((cluster.leader(), cluster.scenario.term(leader)), (leader, term));
}
