//! A rolling upgrade with two binaries: that of an earlier revision, and this one. `cargo xtask upgrade --from REVISION` builds the
//! earlier one and runs this; there is nothing to run without it.
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
#[path = "cluster/tenant.rs"]
mod tenant;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use grey_core::NEWEST_FEATURE_LEVEL;
use house::House;
use support::{BINARY, Ran, finish, wait_until};
use tenant::{EndsWithMe, TASKS, settle, submit, submit_one};

/// Where the earlier binary is.
const FROM: &str = "GREY_UPGRADE_FROM";
/// Where both understand the same, the earlier one is told to understand one level less: so there is always one to be raised.
const EARLIER_LIMIT: u16 = NEWEST_FEATURE_LEVEL - 1;

struct Upgrade {
    house: House,
    earlier: PathBuf,
    /// Keys that were acknowledged.
    acknowledged: BTreeSet<u64>,
    next_key: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Earlier,
    New,
}

impl Upgrade {
    fn binaries(&self) -> [&Path; 2] {
        [&self.earlier, Path::new(BINARY)]
    }

    fn install(&self, version: Version) {
        match version {
            Version::Earlier => self.house.install(&self.earlier, Some(EARLIER_LIMIT)),
            Version::New => self.house.install(Path::new(BINARY), None),
        }
    }

    /// The feature level in force, and the newest that all servers understand.
    fn levels(&self) -> Option<(u64, u64)> {
        let status = self.house.json(&["cluster", "status"])?;
        Some((status["feature_level"].as_u64()?, status["understood_by_all"].as_u64()?))
    }

    fn level(&self) -> u64 {
        wait_until("the status is known", || self.levels().is_some());
        self.levels().unwrap().0
    }

    /// Which servers are said to be of the new version.
    fn new_servers(&self) -> BTreeSet<String> {
        let mut nodes = self.house.rows(&["node", "list"]);
        nodes.retain(|node| node["feature_level"] == NEWEST_FEATURE_LEVEL);
        nodes.iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }

    fn leader(&self) -> Option<String> {
        let found = self.house.rows(&["node", "list"]).into_iter().find(|node| node["leads"] == true)?;
        found["name"].as_str().map(str::to_owned)
    }

    /// Does something to the cluster while a tenant submits with both binaries and tasks run that were begun before. Afterwards all of it has
    /// ended well, once, and either binary proves so.
    fn step(&mut self, what: &str, strike: impl FnOnce(&Upgrade)) {
        let begun = Instant::now();
        let (long, go) = (self.next_key, self.house.path(&format!("go{}", self.next_key)));
        let script = format!("until test -e '{}'; do sleep 0.02; done", go.display());
        assert!(submit_one(&self.house, Path::new(BINARY), long, &script), "{}", self.house.said("s1"));
        self.acknowledged.insert(long);
        let job = self.job(long);
        wait_until("the long tasks run", || {
            self.house.json(&["job", "status", &job]).is_some_and(|job| job["counts"]["running"] == TASKS)
        });
        let ends = AtomicBool::new(false);
        let meanwhile = std::thread::scope(|scope| {
            let tenant = scope.spawn(|| submit(&self.house, &self.binaries(), &ends, long + 3));
            let end = EndsWithMe(&ends);
            strike(self);
            std::fs::write(&go, "").unwrap();
            // Whoever asks afterwards is answered, whichever binary they have, and every worker works.
            for (key, binary) in (long + 1..).zip(self.binaries()) {
                let ran = Ran::of(self.house.command_of(binary, &["cluster", "status"]).output().unwrap());
                assert_eq!(ran.status, 0, "{what}: {}", ran.errors);
                assert!(submit_one(&self.house, binary, key, "true"), "{what}: {}", binary.display());
            }
            for (worker, other) in [("w1", "w2"), ("w2", "w1")] {
                self.works_alone(worker, other);
            }
            drop(end);
            tenant.join().unwrap()
        });
        let count = meanwhile.len();
        assert!(count > 0, "{what}: nothing was acknowledged meanwhile");
        self.next_key = meanwhile.last().unwrap() + 2;
        self.acknowledged.extend(meanwhile.into_iter().chain([long + 1, long + 2]));
        settle(&self.house, &self.acknowledged);
        let tasks = self.house.rows(&["task", "list", "--job", &job]);
        let again = tasks.iter().filter(|task| task["attempt"] != 1).count();
        self.prove(&job, &job);
        println!(
            "{what}: {count} jobs acknowledged meanwhile; of {TASKS} tasks that ran before it, {again} ran again; settled after {:?}",
            begun.elapsed()
        );
    }

    fn job(&self, key: u64) -> String {
        let name = key.to_string();
        let mut jobs = self.house.rows(&["job", "list", "--limit", "0"]);
        jobs.retain(|job| job["name"].as_str() == Some(&name));
        assert_eq!(jobs.len(), 1, "a key is one job's: {jobs:?}");
        jobs[0]["id"].as_str().unwrap().to_owned()
    }

    /// Has each binary fetch the proofs of a job's tasks into a directory, and each check those of both.
    fn prove(&self, job: &str, at: &str) {
        for (number, binary) in self.binaries().into_iter().enumerate() {
            let directory = format!("{at}-{number}");
            let mut fetch = self.house.command_of(binary, &["job", "proof", job, "--out", &directory]);
            let ran = Ran::of(fetch.output().unwrap());
            assert_eq!(ran.status, 0, "{}", ran.errors);
        }
        self.verify(at);
    }

    fn verify(&self, at: &str) {
        for number in 0..2 {
            let files = std::fs::read_dir(self.house.path(&format!("{at}-{number}"))).unwrap();
            let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
            assert_eq!(files.len(), TASKS);
            for binary in self.binaries() {
                for file in &files {
                    let arguments = ["verify", "--root", "root.json", file.to_str().unwrap()];
                    let ran = Ran::of(self.house.command_of(binary, &arguments).output().unwrap());
                    assert_eq!(ran.status, 0, "{}: {}{}", binary.display(), ran.text, ran.errors);
                }
            }
        }
    }

    /// Restarts a server as another version, and waits until it serves as that.
    fn replace_server(&self, name: &str, version: Version) {
        self.house.terminate(name);
        self.install(version);
        self.house.start_server(name);
        let is_new = version == Version::New;
        wait_until("it is known to be of that version", || self.new_servers().contains(name) == is_new);
        let number = name.trim_start_matches('s').parse().unwrap();
        wait_until("it answers", || {
            let mut here = self.house.command(&["cluster", "status", "--here"]);
            Ran::of(here.env("GREY_ADDR", self.house.address(number)).output().unwrap()).status == 0
        });
    }

    fn replace_worker(&self, name: &str, version: Version) {
        self.house.terminate(name);
        self.install(version);
        self.house.restart_worker(name);
    }

    /// Has a worker run something that no other may.
    fn works_alone(&self, worker: &str, other: &str) {
        let cordoned = self.house.grey(&["node", "cordon", other]);
        assert_eq!(cordoned.status, 0, "{}", cordoned.errors);
        let mut run = self.house.command(&["run", "--", "echo", worker]);
        let ran = finish(run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!((ran.status, ran.text.trim()), (0, worker), "{}", ran.errors);
        let uncordoned = self.house.grey(&["node", "uncordon", other]);
        assert_eq!(uncordoned.status, 0, "{}", uncordoned.errors);
    }

    /// Has a server lead.
    fn lead(&self, name: &str) {
        wait_until("it takes the lead", || {
            let ran = self.house.grey(&["cluster", "transfer", name]);
            ran.status == 0 && self.leader().is_some_and(|leads| leads == name)
        });
    }
}

fn earlier() -> PathBuf {
    let path = std::env::var(FROM).expect("`cargo xtask upgrade --from REVISION` runs this");
    let (earlier, new) = (std::fs::read(&path).unwrap(), std::fs::read(BINARY).unwrap());
    assert!(earlier != new, "{path} is the very binary that is upgraded to");
    PathBuf::from(path)
}

#[test]
fn one_process_after_another_becomes_the_new_version_and_nothing_is_lost_or_done_twice() {
    // Given: a cluster of the earlier version at work, and what it has proved.
    let earlier = earlier();
    let house = House::of_three_from(&earlier, EARLIER_LIMIT);
    house.start_worker("w1");
    house.start_worker("w2");
    wait_until("the workers are there", || house.workers() == 2);
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    let mut upgrade = Upgrade { house, earlier, acknowledged: BTreeSet::new(), next_key: 1 };
    upgrade.step("the earlier version", |_| {});
    let (first, before) = (upgrade.job(1), upgrade.level());
    assert!(before < NEWEST_FEATURE_LEVEL.into(), "{before}");
    assert_eq!(upgrade.new_servers(), BTreeSet::new());

    // When: a worker becomes the new version, under servers of the earlier one, and goes back.
    upgrade.step("w1 is new", |upgrade| upgrade.replace_worker("w1", Version::New));
    upgrade.step("w1 goes back", |upgrade| upgrade.replace_worker("w1", Version::Earlier));
    upgrade.step("w1 is new again", |upgrade| upgrade.replace_worker("w1", Version::New));
    // When: servers follow; the first one leads as the new version, goes back, and comes again.
    upgrade.step("s2 is new", |upgrade| upgrade.replace_server("s2", Version::New));
    upgrade.step("s2 leads", |upgrade| upgrade.lead("s2"));
    // Then: both versions are shown, and what only the new one understands is not in force.
    assert_eq!(upgrade.new_servers(), BTreeSet::from(["s2".to_owned()]));
    assert_eq!(upgrade.levels().unwrap(), (before, before));
    upgrade.step("s2 goes back", |upgrade| upgrade.replace_server("s2", Version::Earlier));
    assert_eq!(upgrade.new_servers(), BTreeSet::new());
    upgrade.step("s2 is new again", |upgrade| upgrade.replace_server("s2", Version::New));
    upgrade.step("s3 is new", |upgrade| upgrade.replace_server("s3", Version::New));
    upgrade.step("s1 leads", |upgrade| upgrade.lead("s1"));
    let asked = upgrade.house.grey(&["cluster", "upgrade"]);
    assert!(asked.status == 0 && asked.errors.contains("nothing was changed"), "{}", asked.errors);
    upgrade.step("s1 is new", |upgrade| upgrade.replace_server("s1", Version::New));
    assert_eq!(upgrade.levels().unwrap(), (before, NEWEST_FEATURE_LEVEL.into()));
    // When: the new level is put in force, while a worker is still of the earlier version.
    upgrade.step("the level rises", |upgrade| {
        let raised = upgrade.house.grey(&["cluster", "upgrade"]);
        assert_eq!(raised.status, 0, "{}", raised.errors);
    });
    assert_eq!(upgrade.level(), u64::from(NEWEST_FEATURE_LEVEL));
    upgrade.step("w2 is new", |upgrade| upgrade.replace_worker("w2", Version::New));

    // Then: there is no way back for a server, which says so and harms nobody.
    upgrade.step("s3 cannot go back", |upgrade| {
        upgrade.house.terminate("s3");
        upgrade.install(Version::Earlier);
        let mut back = upgrade.house.server_command(3, None);
        let back = finish(back.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert_eq!(back.status, 1, "{}", back.errors);
        assert!(back.errors.contains("install a newer"), "{}", back.errors);
        println!("the earlier version says: {}", back.errors.lines().last().unwrap_or_default());
        upgrade.install(Version::New);
        upgrade.house.start_server("s3");
    });
    // Then: proofs of before are what they were, and the servers of today give out such as the earlier version can check.
    upgrade.verify(&first);
    upgrade.prove(&first, "today");
    println!("{} jobs, feature level {before} to {NEWEST_FEATURE_LEVEL}", upgrade.acknowledged.len());
}
