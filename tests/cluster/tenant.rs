//! A tenant that submits one job after another while something is done to the cluster, and what must be true of its jobs afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::house::House;
use crate::support::{Ran, wait_until};

/// How long everything that was accepted may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a tenant rests between two submissions.
const PACE: Duration = Duration::from_millis(100);
/// Tasks of each submission.
pub const TASKS: usize = 3;

/// Submits a job of a few tasks under a key, which is its name; whether that was acknowledged.
pub fn submit_one(house: &House, binary: &Path, key: u64, script: &str) -> bool {
    let file = house.path(&format!("{key}.json"));
    let task = serde_json::json!({
        "name": "t", "count": TASKS, "command": ["sh", "-c", script], "cpu": "100m",
        "retries": { "infrastructure": 50 },
    });
    let job = serde_json::json!({ "version": 1, "name": key.to_string(), "task": [task] });
    std::fs::write(&file, job.to_string()).unwrap();
    let arguments = ["submit", "-q", "--key", &key.to_string(), file.to_str().unwrap()];
    Ran::of(house.command_of(binary, &arguments).output().unwrap()).status == 0
}

/// Submits one job after another, each under a key and with the next of the binaries, until it is told to end; the keys that were
/// acknowledged.
pub fn submit(house: &House, binaries: &[&Path], ends: &AtomicBool, from: u64) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    for (key, binary) in (from..).zip(binaries.iter().cycle()) {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        // About half of what two workers can do on two processors.
        std::thread::sleep(PACE);
        if submit_one(house, binary, key, "sleep 0.05") {
            acknowledged.insert(key);
        }
    }
    acknowledged
}

/// Tells a tenant to end when whoever started it has come to an end, well or not.
pub struct EndsWithMe<'a>(pub &'a AtomicBool);

impl Drop for EndsWithMe<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everything that was acknowledged is done, once, and all servers agree.
pub fn settle(house: &House, acknowledged: &BTreeSet<u64>) {
    let begun = Instant::now();
    loop {
        let jobs = house.rows(&["job", "list", "--limit", "0"]);
        let left: Vec<_> = jobs.iter().filter(|job| job["ended"] != true).collect();
        if left.is_empty() && !jobs.is_empty() {
            break;
        }
        if begun.elapsed() > PATIENCE {
            let nodes = house.grey(&["node", "list"]).text;
            let tasks = house.grey(&["task", "list", "-o", "wide", "--limit", "100"]).text;
            let why = left.first().and_then(|job| job["first_task"].as_str());
            let why = why.map(|task| house.grey(&["task", "explain", task]).text);
            panic!("{} job(s) do not end: {left:?}\n{nodes}\n{tasks}\n{why:?}", left.len());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut jobs = house.rows(&["job", "list", "--limit", "0"]);
    jobs.retain(|job| job["name"].as_str().unwrap().parse::<u64>().is_ok());
    let names: Vec<u64> = jobs.iter().map(|job| job["name"].as_str().unwrap().parse().unwrap()).collect();
    let distinct: BTreeSet<u64> = names.iter().copied().collect();
    assert_eq!(distinct.len(), names.len(), "a key is one job's");
    assert!(distinct.is_superset(acknowledged), "lost: {:?}", acknowledged - &distinct);
    for job in &jobs {
        assert_eq!(job["counts"]["completed"], TASKS, "{job}");
    }
    wait_until("all servers have the same state", || house.states_agree(3));
}
