//! The launcher that all attempts are forked from: what is lost with it, and what passes through it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use grey_agent::{Executor, ExecutorEvent};
use grey_core::{AttemptId, Outcome, SandboxLevel};
use grey_exec::ProcessExecutor;

use crate::Test;
use crate::rig::{LEVELS, Rig, execution, fresh_attempt, lives, mark, options, script, sink, spec};

pub(crate) const TESTS: &[Test] = &[
    ("a_lost_launcher_costs_no_attempt", || alone("a_lost_launcher_costs_no_attempt")),
    ("a_launcher_lost_at_any_moment_leaves_one_end_each", || {
        alone("a_launcher_lost_at_any_moment_leaves_one_end_each")
    }),
    ("a_stuck_launcher_is_replaced", || alone("a_stuck_launcher_is_replaced")),
    ("nothing_of_a_task_stays_with_the_launcher", || alone("nothing_of_a_task_stays_with_the_launcher")),
    ("attempts_share_no_descriptor", || alone("attempts_share_no_descriptor")),
    ("a_killed_worker_takes_its_launcher_and_all_attempts_along", a_killed_worker_takes_all_along),
];

/// Tests that look at every child of their process, and so run in one of their own.
const ALONE: &[Test] = &[
    ("a_lost_launcher_costs_no_attempt", a_lost_launcher_costs_no_attempt),
    ("a_launcher_lost_at_any_moment_leaves_one_end_each", a_launcher_lost_at_any_moment),
    ("a_stuck_launcher_is_replaced", a_stuck_launcher_is_replaced),
    ("nothing_of_a_task_stays_with_the_launcher", nothing_of_a_task_stays),
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

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// State and parent of every process.
fn processes() -> BTreeMap<u32, (char, u32)> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        Some((pid, (fields.next()?.chars().next()?, fields.next()?.parse().ok()?)))
    });
    entries.collect()
}

fn children(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, (_, above))| *above == parent).map(|(pid, _)| pid).collect()
}

/// What the descriptors of a process mean.
fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().map(|entry| std::fs::read_link(entry.unwrap().path()));
    links.filter_map(Result::ok).collect()
}

/// The guard of a running attempt is the child that has its directory open.
fn guard(rig: &Rig, attempt: AttemptId) -> u32 {
    let directory = rig.directory(attempt);
    let holds = |pid: &u32| descriptors(*pid).contains(&directory);
    children(std::process::id()).into_iter().find(holds).expect("the attempt has no guard")
}

/// The launcher is the child with one socket and nothing else open.
fn launcher(parent: u32) -> Option<u32> {
    children(parent).into_iter().find(|pid| {
        let open: Vec<String> = descriptors(*pid)
            .iter()
            .map(|link| link.display().to_string())
            .filter(|link| link != "/dev/null")
            .collect();
        open.len() == 1 && open.iter().all(|link| link.starts_with("socket:"))
    })
}

/// The launcher, once it has closed what it was given for a guard.
fn idle_launcher(parent: u32) -> u32 {
    let begin = Instant::now();
    loop {
        if let Some(pid) = launcher(parent) {
            return pid;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "no launcher");
    }
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
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

fn a_lost_launcher_costs_no_attempt() {
    for level in LEVELS {
        let rig = Rig::with(level, 8);
        let running = [(); 4].map(|()| fresh_attempt());
        let go = rig.root.path().join("go");
        start_all(&rig, &running, &format!("while ! test -e {}; do sleep 0.01; done", go.display()));
        let first = idle_launcher(std::process::id());
        kill("-KILL", first);
        let later: Vec<AttemptId> = (0..20).map(|_| fresh_attempt()).collect();
        later.iter().for_each(|attempt| rig.executor.start(execution(*attempt, spec(&["true"]))));
        let mut ended = BTreeSet::new();
        let mut take = |count: usize| {
            while ended.len() < count {
                if let ExecutorEvent::Finished(executed) = rig.event() {
                    assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
                    assert!(ended.insert(executed.attempt), "an attempt ended twice");
                }
            }
        };
        take(later.len());
        let second = idle_launcher(std::process::id());
        assert!(second != first && !processes().contains_key(&first), "the lost launcher was not reaped");
        std::fs::write(go, "").unwrap();
        take(later.len() + running.len());
        assert!(rig.is_silent());
        drop(rig);
        wait_until("the launcher's end", || children(std::process::id()).is_empty());
    }
}

fn a_launcher_lost_at_any_moment() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let over = AtomicBool::new(false);
        let (mut good, mut lost) = (0, 0);
        let kills = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut kills = 0;
                while !over.load(Ordering::SeqCst) {
                    if let Some(pid) = launcher(std::process::id()) {
                        // It may have been replaced since, as what was killed before.
                        kills += u32::from(
                            rustix::process::kill_process(
                                rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                                rustix::process::Signal::KILL,
                            )
                            .is_ok(),
                        );
                    }
                }
                kills
            });
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
            over.store(true, Ordering::SeqCst);
            killer.join().unwrap()
        });
        assert!(kills > 10, "the launcher was killed {kills} times only");
        println!("{kills} launchers were killed at {level:?}: {good} attempts ran, {lost} could not");
        let after = rig.run(spec(&["true"]));
        assert_eq!(after.outcome, Outcome::Exited(0), "{}", after.message);
        drop(rig);
        wait_until("the end of every child", || children(std::process::id()).is_empty());
    }
}

fn a_stuck_launcher_is_replaced() {
    let rig = Rig::new();
    let first = idle_launcher(std::process::id());
    kill("-STOP", first);
    // Noticing takes ten seconds, which count as the attempt's.
    let mut patient = spec(&["true"]);
    patient.timeout_ms = 50_000;
    let executed = rig.run(patient);
    assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
    assert!(rig.is_silent() && idle_launcher(std::process::id()) != first);
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
        assert!(!remembers(idle_launcher(std::process::id()), secret.as_bytes()));
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
        let launcher = idle_launcher(std::process::id());
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
        assert_eq!(claim(launcher), 1);
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
        assert_eq!(below.len(), 9, "a launcher and eight guards: {below:?}");
        assert!(below.contains(&idle_launcher(worker.id())));
        worker.kill().unwrap();
        worker.wait().unwrap();
        wait_until("the end of the launcher and of every guard", || {
            let left = processes();
            below.iter().all(|pid| left.get(pid).is_none_or(|(state, _)| *state == 'Z'))
        });
        let (sink, _events) = sink();
        let _next_life = ProcessExecutor::new(options(root.path(), 1), sink).unwrap();
        assert!(!lives(&mark), "a process outlived its worker");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "the directory was not swept");
    }
}
