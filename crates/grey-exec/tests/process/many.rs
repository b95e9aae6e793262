//! Many attempts: the bound on those that run, and one end for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use grey_agent::{Executor, ExecutorEvent, StopReason};
use grey_core::{Outcome, Resources, SandboxLevel};
use grey_exec::NoopExecutor;

use crate::Test;
use crate::rig::{LEVELS, Rig, execution, fresh_attempt, script, spec};

pub(crate) const TESTS: &[Test] = &[
    ("no_more_attempts_run_than_allowed", no_more_attempts_run_than_allowed),
    ("a_queued_attempt_is_stopped_without_running", a_queued_attempt_is_stopped_without_running),
    ("two_hundred_quick_attempts_have_one_end_each", two_hundred_quick_attempts_have_one_end_each),
    ("an_attempt_started_twice_runs_once", an_attempt_started_twice_runs_once),
    ("stops_at_any_moment_give_one_end", stops_at_any_moment_give_one_end),
    ("a_dropped_executor_ends_its_attempts", a_dropped_executor_ends_its_attempts),
    ("noop_answers_at_once", noop_answers_at_once),
];

fn no_more_attempts_run_than_allowed() {
    let rig = Rig::with(SandboxLevel::PidNamespace, 3);
    for _ in 0..12 {
        rig.executor.start(execution(fresh_attempt(), script("sleep 0.05")));
    }
    let (mut running, mut most, mut ended) = (0i32, 0, 0);
    while ended < 12 {
        match rig.event() {
            ExecutorEvent::Started(_) => running += 1,
            ExecutorEvent::Finished(executed) => {
                assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
                running -= 1;
                ended += 1;
            }
        }
        most = most.max(running);
    }
    assert_eq!(most, 3, "the bound of three was not kept or not used");
}

fn a_queued_attempt_is_stopped_without_running() {
    let rig = Rig::with(SandboxLevel::PidNamespace, 1);
    let attempts = [(); 3].map(|()| fresh_attempt());
    for attempt in attempts {
        rig.executor.start(execution(attempt, spec(&["sleep", "100"])));
    }
    rig.expect_started(attempts[0]);
    for (attempt, reason, outcome) in [
        (attempts[2], StopReason::Cancelled, Outcome::Cancelled),
        (attempts[1], StopReason::Infrastructure, Outcome::Infrastructure),
    ] {
        rig.executor.stop(attempt, reason);
        let executed = rig.expect_finished();
        assert_eq!((executed.attempt, executed.outcome), (attempt, outcome));
        assert!(!rig.directory(attempt).exists());
    }
    rig.executor.stop(attempts[0], StopReason::Cancelled);
    assert_eq!(rig.expect_finished().attempt, attempts[0]);
}

fn two_hundred_quick_attempts_have_one_end_each() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let begin = Instant::now();
        let mut ends = BTreeMap::new();
        for _ in 0..200 {
            let attempt = fresh_attempt();
            ends.insert(attempt, 0);
            rig.executor.start(execution(attempt, spec(&["true"])));
        }
        let mut ended = 0;
        while ended < 200 {
            if let ExecutorEvent::Finished(executed) = rig.event() {
                assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
                rig.executor.release(executed.attempt);
                *ends.get_mut(&executed.attempt).unwrap() += 1;
                ended += 1;
            }
        }
        println!("200 × true at level {level:?}: {:.0}/s", 200.0 / begin.elapsed().as_secs_f64());
        assert!(ends.values().all(|count| *count == 1));
        assert!(rig.is_silent());
        assert_eq!(std::fs::read_dir(rig.root.path().join("work")).unwrap().count(), 0);
    }
}

fn an_attempt_started_twice_runs_once() {
    let rig = Rig::new();
    let attempt = fresh_attempt();
    rig.executor.start(execution(attempt, script("sleep 0.2")));
    rig.executor.start(execution(attempt, script("sleep 0.2")));
    rig.expect_started(attempt);
    assert_eq!(rig.expect_finished().outcome, Outcome::Exited(0));
    assert!(rig.is_silent());
}

fn stops_at_any_moment_give_one_end() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        for step in 0..40 {
            let attempt = fresh_attempt();
            rig.executor.start(execution(attempt, script("sleep 0.005")));
            let begin = Instant::now();
            while begin.elapsed().as_micros() < step * 300 {
                std::hint::spin_loop();
            }
            rig.executor.stop(
                attempt,
                if step % 2 == 0 { StopReason::Cancelled } else { StopReason::Infrastructure },
            );
            let executed = match rig.event() {
                ExecutorEvent::Started(_) => rig.expect_finished(),
                ExecutorEvent::Finished(executed) => *executed,
            };
            assert!(
                matches!(executed.outcome, Outcome::Exited(0) | Outcome::Cancelled | Outcome::Infrastructure),
                "{executed:?}"
            );
            assert!(rig.is_silent());
        }
    }
}

fn a_dropped_executor_ends_its_attempts() {
    let (sink, events) = crate::rig::sink();
    let root = tempfile::tempdir().unwrap();
    let executor = grey_exec::ProcessExecutor::new(crate::rig::options(root.path(), 1), sink).unwrap();
    for _ in 0..2 {
        executor.start(execution(fresh_attempt(), spec(&["sleep", "100"])));
    }
    assert!(matches!(events.recv(), Ok(ExecutorEvent::Started(_))));
    drop(executor);
    let ends: Vec<Outcome> = events
        .iter()
        .filter_map(|event| match event {
            ExecutorEvent::Finished(executed) => Some(executed.outcome),
            ExecutorEvent::Started(_) => None,
        })
        .collect();
    assert_eq!(ends, [Outcome::Infrastructure; 2]);
}

fn noop_answers_at_once() {
    let ends = Arc::new(AtomicU64::new(0));
    let counted = ends.clone();
    let resources = Resources { cpu_millicores: 1, ..Resources::default() };
    let executor = NoopExecutor::new(
        resources,
        Arc::new(move |event| {
            if let ExecutorEvent::Finished(executed) = event {
                assert_eq!((executed.outcome, executed.sandbox), (Outcome::Exited(0), SandboxLevel::None));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }),
    );
    assert_eq!(executor.capabilities().resources, resources);
    let nothing = execution(fresh_attempt(), spec(&[]));
    let begin = Instant::now();
    for _ in 0..100_000 {
        executor.start(nothing.clone());
    }
    println!("noop: {:.0}/s", 100_000.0 / begin.elapsed().as_secs_f64());
    assert_eq!(ends.load(Ordering::Relaxed), 100_000);
}
