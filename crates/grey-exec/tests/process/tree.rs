//! Every process of an attempt ends with it, however hard it tries not to.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grey_agent::{Executor, ExecutorEvent, StopReason};
use grey_core::{Outcome, SandboxLevel};
use grey_exec::{ExecError, ProcessExecutor};

use crate::Test;
use crate::rig::{LEVELS, Rig, execution, fresh_attempt, lives, mark, options, script, sink, spec, text};

pub(crate) const TESTS: &[Test] = &[
    ("a_time_out_ends_the_whole_tree", a_time_out_ends_the_whole_tree),
    ("a_task_may_end_in_order_when_its_time_is_over", a_task_may_end_in_order_when_its_time_is_over),
    ("a_cancel_ends_the_whole_tree", a_cancel_ends_the_whole_tree),
    ("a_lost_worker_stops_at_once", a_lost_worker_stops_at_once),
    ("a_daemon_ends_with_its_attempt", a_daemon_ends_with_its_attempt),
    ("a_fork_bomb_ends_with_its_attempt", a_fork_bomb_ends_with_its_attempt),
    ("orphans_are_reaped_while_the_task_runs", orphans_are_reaped_while_the_task_runs),
    ("a_killed_guard_takes_the_attempt_along", a_killed_guard_takes_the_attempt_along),
    ("a_killed_worker_leaves_nothing", a_killed_worker_leaves_nothing),
    ("a_worker_without_privilege_fences_too", a_worker_without_privilege_fences_too),
    ("a_launcher_that_is_none_is_refused", a_launcher_that_is_none_is_refused),
];

/// A script that leaves two processes behind that ignore SIGTERM, one in a session of its own.
fn stubborn(mark: &str) -> String {
    format!("trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {mark}' & sleep {mark}")
}

fn a_time_out_ends_the_whole_tree() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        let mut wanted = script(&stubborn(&mark));
        wanted.timeout_ms = 300;
        let begin = Instant::now();
        let executed = rig.run(wanted);
        assert_eq!(executed.outcome, Outcome::TimedOut);
        assert!(executed.message.contains("300 ms"), "{}", executed.message);
        assert!(!lives(&mark), "a process outlived its attempt at level {level:?}");
        let elapsed = begin.elapsed();
        assert!(elapsed >= Duration::from_millis(2_300) && elapsed < Duration::from_secs(10), "{elapsed:?}");
    }
}

fn a_task_may_end_in_order_when_its_time_is_over() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mut wanted = script("trap 'echo in order; exit 0' TERM; while :; do sleep 0.01; done");
        wanted.timeout_ms = 300;
        let begin = Instant::now();
        let executed = rig.run(wanted);
        assert_eq!(executed.outcome, Outcome::TimedOut);
        assert_eq!(text(&executed.stdout), "in order\n");
        assert!(begin.elapsed() < Duration::from_secs(2), "the grace was waited for in vain");
    }
}

fn a_cancel_ends_the_whole_tree() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        let attempt = fresh_attempt();
        rig.executor.start(execution(attempt, script(&stubborn(&mark))));
        rig.expect_started(attempt);
        rig.executor.stop(attempt, StopReason::Cancelled);
        rig.executor.stop(attempt, StopReason::Cancelled);
        let executed = rig.expect_finished();
        assert_eq!(executed.outcome, Outcome::Cancelled);
        assert!(!lives(&mark));
        rig.executor.stop(attempt, StopReason::Cancelled);
        assert!(rig.is_silent());
    }
}

fn a_lost_worker_stops_at_once() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        let attempt = fresh_attempt();
        rig.executor.start(execution(attempt, script(&stubborn(&mark))));
        rig.expect_started(attempt);
        let begin = Instant::now();
        rig.executor.stop(attempt, StopReason::Infrastructure);
        assert_eq!(rig.expect_finished().outcome, Outcome::Infrastructure);
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert!(!lives(&mark));
    }
}

fn a_daemon_ends_with_its_attempt() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        let begin = Instant::now();
        let executed = rig
            .run(script(&format!("(setsid sleep {mark} &) ; (setsid sh -c 'sleep {mark}; :' &); echo done")));
        assert_eq!(executed.outcome, Outcome::Exited(0));
        assert_eq!(text(&executed.stdout), "done\n");
        assert!(!lives(&mark), "a daemon outlived its attempt at level {level:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

fn a_fork_bomb_ends_with_its_attempt() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        // Every process leaves its session, starts a successor and ends: nobody is where they were last seen.
        let bomb = r#"trap '' TERM; (setsid sh "$0" "$0" "$1" & sleep 0.01) & (setsid sh -c 'exec sleep "$0"' "$1" &)"#;
        let mut wanted =
            script(&format!("cat >bomb <<'END'\n{bomb}\nEND\nsh bomb bomb {mark}; sleep {mark}"));
        wanted.timeout_ms = 400;
        let executed = rig.run(wanted);
        assert_eq!(executed.outcome, Outcome::TimedOut, "{}", executed.message);
        assert!(!lives(&mark), "a process outlived its attempt at level {level:?}");
    }
}

fn orphans_are_reaped_while_the_task_runs() {
    let rig = Rig::new();
    let executed = rig.run(script(
        "for i in $(seq 50); do (sleep 0.01 &); done; sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l",
    ));
    assert_eq!(text(&executed.stdout), "0\n");
}

fn a_killed_guard_takes_the_attempt_along() {
    let rig = Rig::new();
    let mark = mark();
    let attempt = fresh_attempt();
    rig.executor.start(execution(attempt, spec(&["sleep", &mark])));
    rig.expect_started(attempt);
    crate::shim::kill("-KILL", crate::shim::guard(&rig, attempt));
    assert_eq!(rig.expect_finished().outcome, Outcome::Infrastructure);
    assert!(!lives(&mark));
}

/// The parts that this binary plays when a test starts it again.
pub(crate) fn played(role: &str, arguments: &[String]) -> bool {
    let [directory, command @ ..] = arguments else { return false };
    if role != "play-worker" {
        return false;
    }
    let (sink, events) = sink();
    let executor = ProcessExecutor::new(options(directory.as_ref(), 1), sink).unwrap();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    println!("level {}", executor.capabilities().sandbox.name());
    executor.start(execution(fresh_attempt(), spec(&command)));
    for event in events {
        match event {
            ExecutorEvent::Started(_) => println!("started"),
            ExecutorEvent::Finished(executed) => {
                println!("{:?} {:?} {}", executed.outcome, text(&executed.stdout), executed.message);
                break;
            }
        }
    }
    true
}

fn a_killed_worker_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mark = mark();
    let mut worker = Command::new("/proc/self/exe")
        .args(["play-worker".as_ref(), root.path().as_os_str()])
        .args(["setsid", "--wait", "sleep", &mark])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    assert_eq!(lines.nth(1).unwrap().unwrap(), "started");
    worker.kill().unwrap();
    worker.wait().unwrap();
    let (sink, _events) = sink();
    let _next_life = ProcessExecutor::new(options(root.path(), 1), sink).unwrap();
    // A guard lets go of its directory a moment before the kernel ends the rest of its namespace.
    crate::shim::wait_until("the end of every process", || !lives(&mark));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "the directory was not swept");
}

fn a_worker_without_privilege_fences_too() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test is one without privilege.
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(root.path(), Some(65_534), Some(65_534)).unwrap();
    let output = Command::new("/proc/self/exe")
        .args(["play-worker".as_ref(), root.path().as_os_str()])
        .args(["sh", "-c", "sleep 0.3; id -u; echo $$"])
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.get(1), Some(&"started"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let isolated = lines.first() == Some(&"level pid-namespace");
    let expected = if isolated { r#"Exited(0) "65534\n2\n" "# } else { r#"Exited(0) "65534\n"# };
    assert!(lines.get(2).is_some_and(|line| line.starts_with(expected)), "{said}");
}

fn a_launcher_that_is_none_is_refused() {
    for launcher in ["/bin/true", "/bin/cat", "/nowhere"] {
        let root = tempfile::tempdir().unwrap();
        let mut options = options(root.path(), 1);
        options.launcher = launcher.into();
        let result = ProcessExecutor::with_highest_level(options, sink().0, SandboxLevel::PidNamespace);
        assert!(matches!(result, Err(ExecError::Launcher { .. })), "{launcher} was taken for a launcher");
    }
}
