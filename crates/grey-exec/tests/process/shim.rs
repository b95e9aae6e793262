//! The shim that all attempts are forked from: what is lost with it, and what passes through it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use grey_agent::{Executor, ExecutorEvent};
use grey_core::{AttemptId, Outcome, SandboxLevel};
use grey_exec::ProcessExecutor;

use crate::Test;
use crate::rig::{LEVELS, Rig, execution, fresh_attempt, lives, mark, options, script, sink, spec, text};

pub(crate) const TESTS: &[Test] = &[
    ("a_lost_shim_takes_its_attempts_along_and_another_takes_its_place", || {
        alone("a_lost_shim_takes_its_attempts_along_and_another_takes_its_place")
    }),
    ("a_shim_lost_at_any_moment_leaves_one_end_each", || {
        alone("a_shim_lost_at_any_moment_leaves_one_end_each")
    }),
    ("a_stuck_shim_is_replaced", || alone("a_stuck_shim_is_replaced")),
    ("a_stuck_shim_outlives_no_lease", || alone("a_stuck_shim_outlives_no_lease")),
    ("nothing_of_a_task_stays_with_the_shim", || alone("nothing_of_a_task_stays_with_the_shim")),
    ("attempts_share_no_descriptor", || alone("attempts_share_no_descriptor")),
    ("a_killed_worker_takes_its_shim_and_all_attempts_along", a_killed_worker_takes_all_along),
];

/// Tests that look at every child of their process, and so run in one of their own.
const ALONE: &[Test] = &[
    ("a_lost_shim_takes_its_attempts_along_and_another_takes_its_place", a_lost_shim_takes_all_along),
    ("a_shim_lost_at_any_moment_leaves_one_end_each", a_shim_lost_at_any_moment),
    ("a_stuck_shim_is_replaced", a_stuck_shim_is_replaced),
    ("a_stuck_shim_outlives_no_lease", a_stuck_shim_outlives_no_lease),
    ("nothing_of_a_task_stays_with_the_shim", nothing_of_a_task_stays),
    ("attempts_share_no_descriptor", attempts_share_no_descriptor),
];

fn alone(name: &str) {
    let output = Command::new("/proc/self/exe").args(["play-alone", name]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The parts that this binary plays when a test starts it again.
pub(crate) fn played(role: &str, arguments: &[String]) -> bool {
    match (role, arguments) {
        ("play-alone", [name]) => {
            let (_, test) = ALONE.iter().find(|(known, _)| known == name).expect("no such test");
            test();
            true
        }
        ("play-many", [level, directory, mark]) => {
            play_many(level, directory, mark);
            true
        }
        _ => false,
    }
}

pub(crate) fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// State and parent of every process.
pub(crate) fn processes() -> BTreeMap<u32, (char, u32)> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        Some((pid, (fields.next()?.chars().next()?, fields.next()?.parse().ok()?)))
    });
    entries.collect()
}

pub(crate) fn children(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, (_, above))| *above == parent).map(|(pid, _)| pid).collect()
}

/// What the descriptors of a process mean.
fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().map(|entry| std::fs::read_link(entry.unwrap().path()));
    links.filter_map(Result::ok).collect()
}

/// The guard of a running attempt is the child of the shim that has its directory open.
pub(crate) fn guard(rig: &Rig, attempt: AttemptId) -> u32 {
    let directory = rig.directory(attempt);
    let holds = |pid: &u32| descriptors(*pid).contains(&directory);
    let shims = children(std::process::id()).into_iter().filter(|pid| is_shim(*pid));
    shims.flat_map(children).find(holds).expect("the attempt has no guard")
}

fn is_shim(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0__grey-launch\0"))
}

/// The shim of a worker that has one.
fn shim(parent: u32) -> Option<u32> {
    children(parent).into_iter().find(|pid| is_shim(*pid))
}

fn the_shim(parent: u32) -> u32 {
    wait_until("a shim", || shim(parent).is_some());
    shim(parent).unwrap()
}

pub(crate) fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts attempts and returns when all of them run.
fn start_all(rig: &Rig, attempts: &[AttemptId], text: &str) {
    attempts.iter().for_each(|attempt| rig.executor.start(execution(*attempt, script(text))));
    for _ in attempts {
        assert!(matches!(rig.event(), ExecutorEvent::Started(_)));
    }
}

fn a_lost_shim_takes_all_along() {
    for level in LEVELS {
        let rig = Rig::with(level, 8);
        let mark = mark();
        let running = [(); 4].map(|()| fresh_attempt());
        start_all(&rig, &running, &format!("echo said; trap '' TERM; setsid sleep {mark} & sleep {mark}"));
        wait_until("their output", || {
            running.iter().all(|attempt| rig.directory(*attempt).join("stdout").exists())
        });
        let first = the_shim(std::process::id());
        kill("-KILL", first);
        for _ in running {
            let executed = rig.expect_finished();
            assert_eq!(executed.outcome, Outcome::Infrastructure);
            assert!(executed.message.contains("shim"), "{}", executed.message);
            assert_eq!(text(&executed.stdout), "said\n", "what it wrote is not lost");
        }
        assert!(!lives(&mark), "a process outlived its shim at level {level:?}");
        let later: Vec<AttemptId> = (0..20).map(|_| fresh_attempt()).collect();
        later.iter().for_each(|attempt| rig.executor.start(execution(*attempt, spec(&["true"]))));
        let mut ended = BTreeSet::new();
        while ended.len() < later.len() {
            if let ExecutorEvent::Finished(executed) = rig.event() {
                assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
                assert!(ended.insert(executed.attempt), "an attempt ended twice");
            }
        }
        let second = the_shim(std::process::id());
        assert!(second != first && !processes().contains_key(&first), "the lost shim was not reaped");
        assert!(rig.is_silent());
        drop(rig);
        wait_until("the shim's end", || children(std::process::id()).is_empty());
    }
}

fn a_shim_lost_at_any_moment() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let (over, kills) = (AtomicBool::new(false), AtomicU32::new(0));
        let (mut good, mut lost) = (0, 0);
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if let Some(pid) = shim(std::process::id()) {
                        // It may have been replaced since, as what was killed before.
                        let killed = rustix::process::kill_process(
                            rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                            rustix::process::Signal::KILL,
                        );
                        kills.fetch_add(u32::from(killed.is_ok()), Ordering::SeqCst);
                    }
                    // So that some attempts have the time to end.
                    std::thread::sleep(Duration::from_millis(15));
                }
            });
            // However fast attempts are here, the shim is lost under many of them.
            while kills.load(Ordering::SeqCst) <= 10 {
                let attempts: BTreeSet<AttemptId> = (0..150).map(|_| fresh_attempt()).collect();
                attempts.iter().for_each(|attempt| rig.executor.start(execution(*attempt, spec(&["true"]))));
                let mut ended = BTreeSet::new();
                while ended.len() < attempts.len() {
                    if let ExecutorEvent::Finished(executed) = rig.event() {
                        match executed.outcome {
                            Outcome::Exited(0) => good += 1,
                            Outcome::Infrastructure => lost += 1,
                            other => panic!("{other:?} {}", executed.message),
                        }
                        assert!(ended.insert(executed.attempt), "an attempt ended twice");
                    }
                }
                assert!(rig.is_silent());
                assert_eq!(ended, attempts);
            }
            over.store(true, Ordering::SeqCst);
            killer.join().unwrap();
        });
        let kills = kills.load(Ordering::SeqCst);
        println!("{kills} shims were killed at {level:?}: {good} attempts ran, {lost} could not");
        let after = rig.run(spec(&["true"]));
        assert_eq!(after.outcome, Outcome::Exited(0), "{}", after.message);
        drop(rig);
        wait_until("the end of every child", || children(std::process::id()).is_empty());
    }
}

fn a_stuck_shim_is_replaced() {
    let rig = Rig::new();
    let first = the_shim(std::process::id());
    kill("-STOP", first);
    // Noticing takes ten seconds.
    let executed = rig.run(spec(&["true"]));
    assert_eq!(executed.outcome, Outcome::Infrastructure, "{}", executed.message);
    let executed = rig.run(spec(&["true"]));
    assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
    assert!(rig.is_silent() && the_shim(std::process::id()) != first);
}

fn a_stuck_shim_outlives_no_lease() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mark = mark();
        let attempt = fresh_attempt();
        rig.executor.start(execution(attempt, spec(&["sleep", &mark])));
        rig.expect_started(attempt);
        kill("-STOP", the_shim(std::process::id()));
        let begun = Instant::now();
        rig.executor.hold_until(grey_exec::boot_ns() + 500_000_000);
        assert_eq!(rig.expect_finished().outcome, Outcome::Infrastructure);
        assert!(begun.elapsed() >= Duration::from_millis(500) && begun.elapsed() < Duration::from_secs(5));
        assert!(!lives(&mark));
    }
}

/// Whether a secret lies anywhere in what a process may write to, or in its environment.
fn remembers(pid: u32, secret: &[u8]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut looked_at = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (first, last) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(number(last) - number(first)).unwrap()];
        memory.seek(SeekFrom::Start(number(first))).unwrap();
        memory.read_exact(&mut bytes).unwrap();
        looked_at += bytes.len();
        if bytes.windows(secret.len()).any(|window| window == secret) {
            return true;
        }
    }
    assert!(looked_at > 100_000, "the memory was not read");
    std::fs::read(format!("/proc/{pid}/environ"))
        .unwrap()
        .windows(secret.len())
        .any(|window| window == secret)
}

fn nothing_of_a_task_stays() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let secret = "a-word-that-only-one-task-knows";
        let attempt = fresh_attempt();
        let mut wanted = script(&format!("cat; echo {secret}; sleep 1000"));
        wanted.environment = vec![("SECRET".to_owned(), secret.to_owned())];
        let mut knowing = execution(attempt, wanted);
        knowing.stdin = Some(rig.file("stdin", secret.as_bytes()));
        rig.executor.start(knowing);
        rig.expect_started(attempt);
        assert!(remembers(guard(&rig, attempt), secret.as_bytes()), "this test finds nothing");
        assert!(!remembers(the_shim(std::process::id()), secret.as_bytes()));
        let other = fresh_attempt();
        start_all(&rig, &[other], "sleep 1000");
        let guard = guard(&rig, other);
        assert!(!remembers(guard, secret.as_bytes()), "a guard knows of another's task");
        let [program] = children(guard)[..] else { panic!("not one program") };
        assert!(!remembers(program, secret.as_bytes()), "a task knows of another's");
        assert!(std::fs::read(format!("/proc/{guard}/environ")).unwrap().is_empty());
    }
}

fn attempts_share_no_descriptor() {
    for level in LEVELS {
        let rig = Rig::with(level, 8);
        let attempts = [(); 8].map(|()| fresh_attempt());
        start_all(&rig, &attempts, "exec sleep 1000");
        let mut owners: BTreeMap<PathBuf, u32> = BTreeMap::new();
        let shared = ["/dev/null", "anon_inode:[signalfd]"].map(PathBuf::from);
        let mut claim = |pid: u32| {
            let links: BTreeSet<PathBuf> = descriptors(pid).into_iter().collect();
            let own: Vec<PathBuf> = links.into_iter().filter(|link| !shared.contains(link)).collect();
            for link in &own {
                let other = owners.insert(link.clone(), pid);
                assert_eq!(other, None, "{} is open in {pid} as well", link.display());
            }
            own.len()
        };
        for attempt in attempts {
            let guard = guard(&rig, attempt);
            // Its channel, two pipes, the lock of the directory.
            assert_eq!(claim(guard), 4, "{:?}", descriptors(guard));
            let [program] = children(guard)[..] else { panic!("not one program") };
            let open = descriptors(program);
            assert!(open.len() == 3 && open.first() == shared.first(), "{open:?}");
        }
    }
}

fn play_many(level: &str, directory: &str, mark: &str) {
    let (sink, events) = sink();
    let level = LEVELS.into_iter().find(|known| known.name() == level).unwrap();
    let options = options(directory.as_ref(), 8);
    let executor = ProcessExecutor::with_highest_level(options, sink, level).unwrap();
    for _ in 0..8 {
        executor.start(execution(
            fresh_attempt(),
            script(&format!("trap '' TERM; setsid sleep {mark} & sleep {mark}")),
        ));
    }
    for event in events {
        println!("{}", if matches!(event, ExecutorEvent::Started(_)) { "started" } else { "ended" });
    }
}

fn a_killed_worker_takes_all_along() {
    for level in [SandboxLevel::PidNamespace, SandboxLevel::ProcessGroup] {
        let root = tempfile::tempdir().unwrap();
        let mark = mark();
        let mut worker = Command::new("/proc/self/exe")
            .args(["play-many", level.name(), root.path().to_str().unwrap(), &mark])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        assert!(lines.take(8).all(|line| line.unwrap() == "started"));
        let below = children(worker.id());
        assert_eq!(below, [the_shim(worker.id())], "a shim and nothing else");
        let guards = children(the_shim(worker.id()));
        assert_eq!(guards.len(), 8, "{guards:?}");
        worker.kill().unwrap();
        worker.wait().unwrap();
        wait_until("the end of the shim and of every guard", || {
            let left = processes();
            below.iter().chain(&guards).all(|pid| left.get(pid).is_none_or(|(state, _)| *state == 'Z'))
        });
        let (sink, _events) = sink();
        let _next_life = ProcessExecutor::new(options(root.path(), 1), sink).unwrap();
        assert!(!lives(&mark), "a process outlived its worker");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "the directory was not swept");
    }
}
