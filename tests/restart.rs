//! Workers that end and begin again while tasks run: what runs goes on, counts once, and never runs twice at the same time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "cluster/house.rs"]
mod house;
#[path = "cluster/machine.rs"]
mod machine;
#[path = "cluster/network.rs"]
mod network;
mod support;
#[path = "cluster/switch.rs"]
mod switch;

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use house::House;
use serde_json::Value;
use support::{is_alive, kill, wait_until};

/// Whose turn it is: what is shown here is shown within a lease of seconds, in which a worker has to be started anew. On a machine that starts those
/// of all tests at once it may not be.
static TURN: Mutex<()> = Mutex::new(());

/// A cluster that has the machine to itself, as far as these tests go.
struct Alone {
    house: House,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Alone {
    type Target = House;

    fn deref(&self) -> &House {
        &self.house
    }
}

/// A cluster of one server and one worker.
fn with_worker() -> Alone {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let house = House::founded(1);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    Alone { house, _turn: turn }
}

/// Submits a job of one task that takes next to nothing of a machine.
fn submit(house: &House, name: &str, script: &str) -> String {
    let path = house.path(&format!("{name}.json"));
    let task = serde_json::json!({ "name": name, "command": ["sh", "-c", script], "cpu": "100m" });
    std::fs::write(&path, serde_json::json!({ "version": 1, "name": name, "task": [task] }).to_string())
        .unwrap();
    let submitted = house.json(&["submit", path.to_str().unwrap()]).unwrap();
    submitted["job"].as_str().unwrap().to_owned()
}

fn only_task(house: &House, job: &str) -> Value {
    let mut tasks = house.rows(&["task", "list", "--job", job]);
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    tasks.remove(0)
}

fn runs(house: &House, job: &str) -> bool {
    house.json(&["job", "status", job]).is_some_and(|job| job["counts"]["running"] == 1)
}

/// A script that notes when it begins, when it has waited for a file, and when it ends.
fn noting(house: &House, go: &str) -> String {
    let (times, go) = (house.path("times"), house.path(go));
    let note = |word: &str| format!("echo {word} $GREY_ATTEMPT $(date +%s%N) >>'{}'", times.display());
    format!(
        "{}; echo begun; until test -e '{}'; do sleep 0.02; echo waits >&2; done; seq 1 20000; echo over; {}",
        note("begun"),
        go.display(),
        note("over")
    )
}

fn notes(house: &House) -> Vec<(String, u64, u128)> {
    let text = std::fs::read_to_string(house.path("times")).unwrap_or_default();
    let note = |line: &str| {
        let mut words = line.split(' ');
        let (word, attempt, at) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((word.to_owned(), attempt, at))
    };
    text.lines().filter_map(note).collect()
}

/// What a whole run of [`noting`] prints.
fn printed() -> String {
    let numbers: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    format!("begun\n{numbers}over\n")
}

#[test]
fn a_killed_worker_s_task_goes_on_and_counts_once() {
    let house = with_worker();
    let job = submit(&house, "long", &noting(&house, "go"));
    wait_until("the task runs", || runs(&house, &job) && !notes(&house).is_empty());
    let shim_before = house.shim("w1").expect("a worker has a shim");
    // When: the worker is killed, again and again, and the task goes on without it.
    for round in 1..=3 {
        house.kill_9("w1");
        house.restart_worker("w1");
        wait_until("the worker has taken it over", || {
            let log = std::fs::read_to_string(house.path("w1.log")).unwrap();
            log.matches("going on with what outlived").count() == round
        });
    }
    house.kill_9("w1");
    std::fs::write(house.path("go"), "").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    house.restart_worker("w1");
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    // Then: it ran once, and everything that it printed is there.
    let task = only_task(&house, &job);
    assert_eq!(task["attempt"], 1, "{task}");
    assert_eq!(house.shim("w1"), Some(shim_before));
    let words: Vec<(String, u64)> = notes(&house).into_iter().map(|(word, epoch, _)| (word, epoch)).collect();
    assert_eq!(words, [("begun".to_owned(), 1), ("over".to_owned(), 1)]);
    let id = task["id"].as_str().unwrap();
    assert_eq!(house.grey(&["task", "logs", id]).text, printed());
    let proof = house.grey(&["task", "proof", id, "--out", "p.json"]);
    assert_eq!(proof.status, 0, "{}", proof.errors);
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    let verified = house.grey(&["verify", "--root", "root.json", "p.json"]);
    assert_eq!(verified.status, 0, "{}", verified.errors);
    // Its time is its own, whoever watched it.
    let noted = notes(&house);
    let took_us = u64::try_from((noted[1].2 - noted[0].2) / 1_000).unwrap();
    let status = house.json(&["task", "status", id]).unwrap();
    let duration_us = status["result"]["duration_us"].as_u64().unwrap_or_else(|| panic!("{status}"));
    assert!(duration_us >= took_us && duration_us < took_us + 2_000_000, "{duration_us} for {took_us}");
    // And: nothing is left of it, and the worker works.
    wait_until("its directory is gone", || {
        std::fs::read_dir(house.path("w1/attempts")).unwrap().count() == 0
    });
    let ran = house.grey(&["run", "--", "echo", "on"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "on\n"), "{}", ran.errors);
}

#[test]
fn a_task_that_ends_while_no_worker_is_there_is_reported_by_the_next_one() {
    let house = with_worker();
    let over = house.path("over");
    let script =
        format!("echo begun; sleep 0.7; echo left >$GREY_OUT/f; touch '{}'; echo over", over.display());
    let file = house.path("ends.json");
    let task = serde_json::json!({ "name": "ends", "command": ["sh", "-c", script], "outputs": ["*"] });
    std::fs::write(&file, serde_json::json!({ "version": 1, "name": "ends", "task": [task] }).to_string())
        .unwrap();
    let submitted = house.json(&["submit", file.to_str().unwrap()]).unwrap();
    let job = submitted["job"].as_str().unwrap();
    wait_until("the task runs", || runs(&house, job));
    house.kill_9("w1");
    wait_until("it has ended", || over.exists());
    assert!(runs(&house, job), "nobody can have reported it");
    house.restart_worker("w1");
    let waited = house.grey(&["job", "wait", job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    let task = only_task(&house, job);
    assert_eq!(task["attempt"], 1, "{task}");
    let id = task["id"].as_str().unwrap();
    assert_eq!(house.grey(&["task", "logs", id]).text, "begun\nover\n");
    let result = house.grey(&["task", "result", id, "--results", "r"]);
    assert_eq!(result.status, 0, "{}", result.errors);
    assert_eq!(std::fs::read_to_string(house.path("r/f")).unwrap(), "left\n");
}

/// A task says all the time that it is there, until another attempt of it does.
fn the_lease_parts_two_attempts(leave: impl FnOnce(&House)) -> Alone {
    let house = with_worker();
    let alive = house.path("alive");
    let beats = format!("while :; do date +%s%N >>{}.$GREY_ATTEMPT; sleep 0.02; done", alive.display());
    let job = submit(&house, "beats", &beats);
    wait_until("it runs", || runs(&house, &job) && house.path("alive.1").exists());
    leave(&house);
    house.start_worker("w2");
    wait_until("it runs again", || house.path("alive.2").exists());
    // Long enough for whatever of the first would go on.
    std::thread::sleep(Duration::from_millis(500));
    let times = |epoch: u64| -> Vec<u128> {
        let text = std::fs::read_to_string(house.path(&format!("alive.{epoch}"))).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let (first, second) = (times(1), times(2));
    let (last, begun) = (first.last().unwrap(), second.first().unwrap());
    assert!(last < begun, "they ran at the same time: {last} and {begun}");
    assert!(last - first[0] > 1_000_000_000, "it ended long before its lease");
    assert_eq!(only_task(&house, &job)["attempt"], 2);
    assert_eq!(house.grey(&["job", "cancel", &job]).status, 0);
    house
}

#[test]
fn what_a_worker_leaves_ends_with_its_lease_before_it_runs_elsewhere() {
    let mut left = None;
    let house = the_lease_parts_two_attempts(|house| {
        left = house.shim("w1");
        house.kill_9("w1");
    });
    let left = left.expect("a worker has a shim");
    wait_until("the shim has ended", || !is_alive(left));
    assert_eq!(house.shim("w1"), None);
}

#[test]
fn a_worker_that_comes_back_after_its_lease_finds_its_shim_and_runs_the_task_again() {
    let house = with_worker();
    let began = house.path("began");
    let job = submit(&house, "long", &format!("touch {}.$GREY_ATTEMPT; exec sleep 600", began.display()));
    let has_begun = |epoch: u64| house.path(&format!("began.{epoch}")).exists();
    // Given: a task that ended with the lease of its worker, and the shim that waits for the next one.
    wait_until("it runs", || runs(&house, &job) && has_begun(1));
    let shim = house.shim("w1").unwrap();
    let guards = || std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert!(!guards().is_empty(), "the attempt has a guard");
    house.kill_9("w1");
    wait_until("its lease has ended", || guards().is_empty());
    assert!(is_alive(shim), "it waits for results to be fetched");
    house.restart_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    wait_until("it runs again", || has_begun(2));
    assert_eq!(house.grey(&["job", "cancel", &job]).status, 0);
}

#[test]
fn what_a_stopped_worker_ran_ends_with_its_lease_too() {
    let house = the_lease_parts_two_attempts(|house| kill(house.process_id("w1"), "STOP"));
    kill(house.process_id("w1"), "CONT");
    wait_until("both workers are there", || house.workers() == 2);
}

#[test]
fn what_a_killed_shim_held_runs_again() {
    let house = with_worker();
    let job = submit(&house, "long", &noting(&house, "go"));
    wait_until("the task runs", || runs(&house, &job) && !notes(&house).is_empty());
    let killed = house.shim("w1").unwrap();
    kill(killed, "KILL");
    wait_until("it runs again", || notes(&house).len() == 2);
    std::fs::write(house.path("go"), "").unwrap();
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    let task = only_task(&house, &job);
    assert_eq!(task["attempt"], 2, "{task}");
    let words: Vec<(String, u64)> = notes(&house).into_iter().map(|(word, epoch, _)| (word, epoch)).collect();
    assert_eq!(words, [("begun".to_owned(), 1), ("begun".to_owned(), 2), ("over".to_owned(), 2)]);
    assert_eq!(house.grey(&["task", "logs", task["id"].as_str().unwrap()]).text, printed());
    assert!(house.shim("w1").is_some_and(|shim| shim != killed));
}

#[test]
fn a_cancel_and_another_time_out_reach_what_no_worker_watched() {
    let house = with_worker();
    let pid = house.path("pid");
    let job = submit(&house, "endless", &format!("echo $$ >'{}'; exec sleep 600", pid.display()));
    let trap = house.path("trapped");
    let script = format!("trap 'touch {}; exit 0' TERM; while :; do sleep 0.02; done", trap.display());
    let gentle = submit(&house, "gentle", &script);
    let slow = submit(&house, "slow", "sleep 600");
    wait_until("all run", || [&job, &gentle, &slow].iter().all(|job| runs(&house, job)));
    // When: one is cancelled while no worker is there, and another given less time.
    house.kill_9("w1");
    assert_eq!(house.grey(&["job", "cancel", &gentle]).status, 0);
    assert_eq!(house.grey(&["job", "timeout", &slow, "1s"]).status, 0);
    assert!(!trap.exists(), "nobody can have told it");
    house.restart_worker("w1");
    // Then: both are told, and the third goes on.
    wait_until("it was told in order", || trap.exists());
    wait_until("both have stopped", || house.node("w1").is_some_and(|node| node["held"] == 1));
    let ended = only_task(&house, &slow);
    assert_eq!((ended["state"].as_str(), ended["attempt"].as_u64()), (Some("failed"), Some(1)), "{ended}");
    assert!(runs(&house, &job));
    assert_eq!(only_task(&house, &gentle)["state"], "cancelled");
    assert_eq!(house.grey(&["job", "cancel", &job]).status, 0);
    wait_until("nothing is held", || house.node("w1").is_some_and(|node| node["held"] == 0));
}

#[test]
fn a_worker_that_is_told_to_end_leaves_what_runs_to_the_next_one() {
    let house = with_worker();
    // Given: nothing runs: it takes its shim along.
    let idle = house.shim("w1").unwrap();
    house.terminate("w1");
    wait_until("the shim has ended", || !is_alive(idle));
    house.restart_worker("w1");
    wait_until("the worker is there", || house.workers() == 1 && house.shim("w1").is_some());
    // When: something runs, and it is restarted as by an upgrade.
    let job = submit(&house, "long", &noting(&house, "go"));
    wait_until("the task runs", || runs(&house, &job) && !notes(&house).is_empty());
    // It may have been placed on the worker that had ended just before.
    let attempt = only_task(&house, &job)["attempt"].clone();
    house.terminate("w1");
    house.restart_worker("w1");
    std::fs::write(house.path("go"), "").unwrap();
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    assert_eq!(only_task(&house, &job)["attempt"], attempt);
    // And: a second worker on the same directory is refused, also while a shim is there.
    let second = support::Ran::of(house.worker_command("w1", None).output().unwrap());
    assert!(second.status == 1 && second.errors.contains("is in use by process"), "{}", second.errors);
}
