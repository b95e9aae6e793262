//! Attempts outlive their worker until the lease ends, and the next worker goes on with them.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use grey_agent::{Executed, Executor, ExecutorEvent, OutputStream, StopReason};
use grey_core::{AttemptId, Epoch, Outcome, SandboxLevel, TaskId};
use grey_exec::{ProcessExecutor, ProcessOptions, boot_ns};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};

use crate::Test;
use crate::rig::{LEVELS, bytes, execution, lives, mark, options, script, sink, text};
use crate::shim::{processes, wait_until};

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_worker_s_attempt_goes_on_and_is_adopted", a_killed_worker_s_attempt_goes_on),
    ("what_ended_while_nobody_was_there_is_found", what_ended_while_nobody_was_there_is_found),
    ("a_time_out_counts_while_nobody_is_there", a_time_out_counts_while_nobody_is_there),
    ("an_adopted_attempt_can_be_stopped_and_given_more_time", an_adopted_attempt_can_be_stopped),
    ("what_waits_for_a_thread_can_be_stopped_and_given_another_time_out", what_waits_for_a_thread),
    ("an_output_limit_holds_over_a_change_of_workers", an_output_limit_holds),
    ("the_lease_ends_everything_and_then_the_shim_ends", the_lease_ends_everything),
    ("without_a_lease_nothing_outlives_a_worker", without_a_lease_nothing_outlives_a_worker),
    ("what_nobody_adopts_is_ended", what_nobody_adopts_is_ended),
    ("a_worker_that_leaves_with_nothing_takes_the_shim_along", a_worker_that_leaves_with_nothing),
    ("a_worker_of_another_protocol_ends_what_it_cannot_take", a_worker_of_another_protocol),
    ("what_no_worker_says_costs_nothing_but_the_connection", what_no_worker_says),
];

const ATTEMPT: AttemptId = AttemptId { task: TaskId(1), epoch: Epoch(3) };
/// Longer than a test takes.
const LONG_MS: u64 = 60_000;

fn outliving(root: &Path) -> ProcessOptions {
    ProcessOptions { door: Some(root.join("shim.sock")), ..options(&root.join("work"), 4) }
}

/// The part of a worker that this binary plays when a test starts it again.
pub(crate) fn played(role: &str, arguments: &[String]) -> bool {
    let [root, level, lease_ms, timeout_ms, text] = arguments else { return false };
    if role != "play-outlived" {
        return false;
    }
    let (sink, events) = sink();
    let level = LEVELS.into_iter().find(|known| known.name() == level).unwrap();
    let executor = ProcessExecutor::with_highest_level(outliving(root.as_ref()), sink, level).unwrap();
    let lease_ms: u64 = lease_ms.parse().unwrap();
    if lease_ms > 0 {
        executor.hold_until(boot_ns() + lease_ms * 1_000_000);
    }
    let mut wanted = script(text);
    (wanted.timeout_ms, wanted.output_limit_bytes) = (timeout_ms.parse().unwrap(), 200_000);
    let mut starting = execution(ATTEMPT, wanted);
    starting.record = b"kept".to_vec();
    executor.start(starting);
    for event in events {
        println!("{}", if matches!(event, ExecutorEvent::Started(_)) { "started" } else { "ended" });
    }
    true
}

/// A worker that runs a script and is about to be killed.
struct First {
    /// There until it is killed.
    root: Option<tempfile::TempDir>,
    level: SandboxLevel,
    worker: Child,
}

impl First {
    /// Returns when the script runs.
    fn new(level: SandboxLevel, lease_ms: u64, timeout_ms: u64, text: &str) -> First {
        let root = tempfile::tempdir().unwrap();
        let mut worker = Command::new("/proc/self/exe")
            .args(["play-outlived".as_ref(), root.path().as_os_str()])
            .args([level.name(), &lease_ms.to_string(), &timeout_ms.to_string(), text])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        let first = First { root: Some(root), level, worker };
        assert_eq!(lines.next().unwrap().unwrap(), "started");
        first
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.as_ref().unwrap().path().join(name)
    }

    fn kill(mut self) -> Left {
        Left { root: self.root.take().unwrap(), level: self.level }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let killed = self.worker.kill().and_then(|()| self.worker.wait());
        assert!(killed.is_ok() || std::thread::panicking());
    }
}

/// What a killed worker left.
struct Left {
    root: tempfile::TempDir,
    level: SandboxLevel,
}

impl Left {
    fn next(self) -> Next {
        self.next_running(4)
    }

    /// A worker that runs so many attempts at a time.
    fn next_running(self, max_running: usize) -> Next {
        let (sink, events) = sink();
        let options = ProcessOptions { max_running, ..outliving(self.root.path()) };
        let executor = ProcessExecutor::with_highest_level(options, sink, self.level).unwrap();
        Next { executor: Some(executor), events, root: self.root }
    }

    fn door(&self) -> OwnedFd {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let address = SocketAddrUnix::new(self.root.path().join("shim.sock")).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    }
}

struct Next {
    executor: Option<ProcessExecutor>,
    events: Receiver<ExecutorEvent>,
    root: tempfile::TempDir,
}

impl Next {
    fn executor(&self) -> &ProcessExecutor {
        self.executor.as_ref().unwrap()
    }

    fn adopt(&self, text: &str) {
        let found = self.executor().adoptable();
        let [one] = &found[..] else { panic!("not one attempt: {found:?}") };
        assert_eq!((one.attempt, one.record.as_slice()), (ATTEMPT, &b"kept"[..]));
        let mut wanted = script(text);
        (wanted.timeout_ms, wanted.output_limit_bytes) = (one.timeout_ms, 200_000);
        self.executor().adopt(execution(ATTEMPT, wanted));
        assert!(self.executor().adoptable().is_empty());
    }

    fn event(&self) -> ExecutorEvent {
        self.events.recv_timeout(Duration::from_secs(60)).expect("the executor said nothing")
    }

    fn expect_started(&self) {
        assert_eq!(self.event(), ExecutorEvent::Started(ATTEMPT));
    }

    /// The end, before which a start may be told.
    fn expect_finished(&self) -> Executed {
        loop {
            if let ExecutorEvent::Finished(executed) = self.event() {
                return *executed;
            }
        }
    }

    /// Everything is over: nothing is held, and the shim ends with the worker.
    fn ends(mut self) {
        self.executor().release(ATTEMPT);
        assert!(!self.root.path().join("work/t1-e3").exists());
        drop(self.executor.take());
        let door = self.root.path().join("shim.sock");
        wait_until("the end of the shim", || !answers(&door));
    }
}

fn answers(door: &Path) -> bool {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(door).unwrap()).is_ok()
}

fn a_killed_worker_s_attempt_goes_on() {
    for level in LEVELS {
        let text_of = |root: &Path| {
            format!(
                "cd {}; echo one; touch began; until test -e go; do sleep 0.01; done; echo two >&2; seq 1 30000; echo x >>times",
                root.display()
            )
        };
        let root = tempfile::tempdir().unwrap();
        let text = text_of(root.path());
        let first = First::new(level, LONG_MS, LONG_MS, &text);
        wait_until("it has begun", || root.path().join("began").exists());
        let ran_from = Instant::now();
        let left = first.kill();
        // Given: it writes more than a pipe holds while nobody is there.
        std::fs::write(root.path().join("go"), "").unwrap();
        let times = root.path().join("times");
        let script = root.path().display().to_string();
        wait_until("it can write no more", || times.exists() || has_filled_its_pipe(&script));
        assert!(!times.exists(), "somebody took what it wrote");
        let ran_alone = ran_from.elapsed();
        // When: the next worker comes.
        let next = left.next();
        next.adopt(&text);
        let executed = next.expect_finished();
        // Then: everything is there, once.
        assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
        let expected: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(text_of_captured(&executed), (format!("one\n{expected}"), "two\n".to_owned()));
        assert_eq!(std::fs::read_to_string(root.path().join("times")).unwrap(), "x\n");
        assert_eq!(executed.sandbox, level);
        let ran = Duration::from_micros(executed.usage.duration_us);
        assert!(ran >= ran_alone, "{ran:?} are less than the {ran_alone:?} without a worker");
        assert!(executed.usage.peak_memory_bytes > 0 && executed.usage.started_at_ms > 1_700_000_000_000);
        next.ends();
    }
}

/// Whether nothing more goes into the standard output of a process in whose command line something stands.
fn has_filled_its_pipe(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_full = |process: PathBuf| {
        let pipe = std::fs::File::open(process.join("fd/1")).ok()?;
        let size_bytes = rustix::pipe::fcntl_getpipe_size(&pipe).ok()?;
        let unread_bytes = rustix::io::ioctl_fionread(&pipe).ok()?;
        // A write of a page waits for room for all of it.
        Some(unread_bytes + 4_096 > size_bytes as u64)
    };
    let has_word = |process: &PathBuf| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    processes.filter(has_word).filter_map(is_full).any(|is_full| is_full)
}

fn text_of_captured(executed: &Executed) -> (String, String) {
    (text(&executed.stdout), text(&executed.stderr))
}

fn what_ended_while_nobody_was_there_is_found() {
    for level in LEVELS {
        let first = First::new(level, LONG_MS, LONG_MS, "echo first; sleep 0.3; echo last; exit 7");
        wait_until("its first line was taken", || first.file("work/t1-e3/stdout").exists());
        let left = first.kill();
        std::thread::sleep(Duration::from_millis(700));
        let next = left.next();
        next.adopt("");
        let executed = next.expect_finished();
        assert_eq!(executed.outcome, Outcome::Exited(7), "{}", executed.message);
        assert_eq!(text(&executed.stdout), "first\nlast\n");
        let duration_us = executed.usage.duration_us;
        assert!((300_000..650_000).contains(&duration_us), "it is not its own time: {duration_us}");
        next.ends();
    }
}

fn a_time_out_counts_while_nobody_is_there() {
    for level in LEVELS {
        let mark = mark();
        let text = format!("trap 'exit 3' TERM; sleep {mark} & wait");
        let left = First::new(level, LONG_MS, 400, &text).kill();
        wait_until("its end", || !lives(&mark));
        let next = left.next();
        next.adopt("");
        let executed = next.expect_finished();
        assert_eq!(executed.outcome, Outcome::TimedOut, "{}", executed.message);
        assert!(executed.message.contains("400 ms"), "{}", executed.message);
        next.ends();
    }
}

fn an_adopted_attempt_can_be_stopped() {
    for level in LEVELS {
        let mark = mark();
        let next = First::new(level, LONG_MS, 2_000, &format!("echo here; sleep {mark}")).kill().next();
        next.adopt("");
        next.expect_started();
        let tail = next.executor().tail(ATTEMPT, OutputStream::Stdout).expect("it can be followed");
        wait_until("its output", || tail.read(0, 100).unwrap() == (b"here\n".to_vec(), false));
        next.executor().change_timeout(ATTEMPT, LONG_MS);
        std::thread::sleep(Duration::from_millis(2_200));
        assert!(lives(&mark), "it has the time that it had before");
        next.executor().stop(ATTEMPT, StopReason::Cancelled);
        assert_eq!(next.expect_finished().outcome, Outcome::Cancelled);
        assert!(!lives(&mark));
        next.ends();
    }
}

fn what_waits_for_a_thread() {
    for level in LEVELS {
        for outcome in [Outcome::Cancelled, Outcome::TimedOut] {
            let mark = mark();
            let left = First::new(level, LONG_MS, LONG_MS, &format!("sleep {mark}")).kill();
            wait_until("it runs", || lives(&mark));
            // Given: another attempt has the only thread of the next worker.
            let next = left.next_running(1);
            let other = AttemptId { task: TaskId(2), epoch: Epoch(1) };
            next.executor().start(execution(other, script("sleep 60")));
            assert_eq!(next.event(), ExecutorEvent::Started(other));
            next.adopt("");
            // When: something is wished of what waits for it. Then: that happens, and not only when it has a thread.
            match outcome {
                Outcome::Cancelled => next.executor().stop(ATTEMPT, StopReason::Cancelled),
                _ => next.executor().change_timeout(ATTEMPT, 300),
            }
            wait_until("its end", || !lives(&mark));
            next.executor().stop(other, StopReason::Cancelled);
            assert_eq!(next.expect_finished().attempt, other);
            let executed = next.expect_finished();
            assert_eq!((executed.attempt, executed.outcome), (ATTEMPT, outcome), "{}", executed.message);
            next.executor().release(other);
            next.ends();
        }
    }
}

fn an_output_limit_holds() {
    for level in LEVELS {
        let first = First::new(level, LONG_MS, LONG_MS, "head -c 150000 /dev/zero; sleep 0.3; exec yes");
        wait_until("most was taken", || {
            first.file("work/t1-e3/stdout").metadata().is_ok_and(|file| file.len() == 150_000)
        });
        let next = first.kill().next();
        next.adopt("");
        next.expect_started();
        let executed = next.expect_finished();
        assert_eq!(executed.outcome, Outcome::OutputLimit, "{}", executed.message);
        assert_eq!(bytes(&executed.stdout).len(), 200_000);
        next.ends();
    }
}

fn the_lease_ends_everything() {
    for level in LEVELS {
        let mark = mark();
        let begun = Instant::now();
        let stubborn = format!("trap '' TERM; setsid sleep {mark} & sleep {mark}");
        let left = First::new(level, 1_500, LONG_MS, &stubborn).kill();
        let shim = rustix::net::sockopt::socket_peercred(left.door()).unwrap().pid;
        let shim = shim.as_raw_nonzero().get().cast_unsigned();
        wait_until("a process without a worker", || lives(&mark));
        wait_until("the end of the attempt", || !lives(&mark));
        let elapsed = begun.elapsed();
        assert!(elapsed >= Duration::from_millis(1_500) && elapsed < Duration::from_secs(5), "{elapsed:?}");
        wait_until("the end of the shim", || processes().get(&shim).is_none_or(|(state, _)| *state == 'Z'));
        // The next worker finds nothing and begins anew.
        let next = left.next();
        assert!(next.executor().adoptable().is_empty());
        next.ends();
    }
}

fn without_a_lease_nothing_outlives_a_worker() {
    for level in LEVELS {
        let mark = mark();
        let left = First::new(level, 0, LONG_MS, &format!("sleep {mark}")).kill();
        wait_until("the end of the attempt", || !lives(&mark));
        let next = left.next();
        next.adopt("");
        let executed = next.expect_finished();
        assert_eq!(executed.outcome, Outcome::Infrastructure, "{}", executed.message);
        assert!(executed.message.contains("lease"), "{}", executed.message);
        next.ends();
    }
}

fn what_nobody_adopts_is_ended() {
    for level in LEVELS {
        let mark = mark();
        let next = First::new(level, LONG_MS, LONG_MS, &format!("sleep {mark}")).kill().next();
        assert_eq!(next.executor().adoptable().len(), 1);
        next.executor().release(ATTEMPT);
        assert!(!lives(&mark) && next.executor().adoptable().is_empty());
        next.ends();
    }
}

fn a_worker_that_leaves_with_nothing() {
    let next = First::new(SandboxLevel::PidNamespace, LONG_MS, LONG_MS, "sleep 0.3").kill().next();
    next.adopt("");
    assert_eq!(next.expect_finished().outcome, Outcome::Exited(0));
    next.ends();
}

fn a_worker_of_another_protocol() {
    for level in LEVELS {
        let mark = mark();
        let left = First::new(level, LONG_MS, LONG_MS, &format!("sleep {mark}")).kill();
        let socket = left.door();
        rustix::net::send(&socket, b"H\xff\0\0\0", SendFlags::empty()).unwrap();
        let mut answer = [0; 64];
        let (count, _) = rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
        assert_eq!(answer[..count], *b"H\x01\0\0\0\x01\0\0\0", "it says its protocol and that it holds one");
        wait_until("the end of the attempt", || !lives(&mark));
        let door = left.root.path().join("shim.sock");
        wait_until("the end of the shim", || !answers(&door));
    }
}

fn what_no_worker_says() {
    let mark = mark();
    let left =
        First::new(SandboxLevel::PidNamespace, LONG_MS, LONG_MS, &format!("echo said; sleep {mark}")).kill();
    let mut chance = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..300 {
        let socket = left.door();
        if round % 3 > 0 {
            rustix::net::send(&socket, b"H\x01\0\0\0", SendFlags::NOSIGNAL).unwrap();
        }
        for _ in 0..4 {
            let mut message = Vec::new();
            for _ in 0..chance % 90 + 1 {
                chance =
                    chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                message.push((chance >> 33) as u8);
            }
            // What a worker may say about attempts that are not held, it may; a lease and an end are true words.
            message[0] = *b"SXTRPHhserp\0\xff".get(chance as usize % 13).unwrap();
            // It may have closed the connection by now.
            let _ = rustix::net::send(&socket, &message, SendFlags::NOSIGNAL);
        }
    }
    wait_until("a process that nothing has happened to", || lives(&mark));
    let next = left.next();
    next.adopt("");
    next.expect_started();
    next.executor().stop(ATTEMPT, StopReason::Infrastructure);
    let executed = next.expect_finished();
    assert_eq!((executed.outcome, text(&executed.stdout).as_str()), (Outcome::Infrastructure, "said\n"));
    next.ends();
}
