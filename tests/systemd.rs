//! The units of deploy/systemd do what docs/operations.md says of them, under a systemd that is the first process of namespaces of its own. That needs root,
//! systemd and what `tests/systemd/boot.sh` looks for; elsewhere these tests say what is missing, and show nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::{BINARY, Ran, wait_until};

/// Whose turn it is: a worker that crashed has to be started anew within its lease of seconds.
static TURN: Mutex<()> = Mutex::new(());

/// Where `boot.sh` ends that cannot have here what it needs.
const CANNOT: i32 = 77;

const CONFIG: &str = r#"
[server]
name = "grey1"
data_dir = "/var/lib/grey/server"
listen = "127.0.0.1:7654"
[worker]
name = "worker1"
data_dir = "/var/lib/grey/worker"
servers = ["127.0.0.1:7654"]
token_file = "/etc/grey/join.token"
"#;

/// A systemd with the units, and everything that it has started.
struct Machine {
    boot: Child,
    systemd: u32,
    environment: Vec<(&'static str, String)>,
    _place: tempfile::TempDir,
}

impl Machine {
    /// Boots one; none where that cannot be.
    fn boot() -> Option<Machine> {
        let says_why = |why: &str| eprintln!("not shown here: {}", why.trim());
        if !rustix::process::geteuid().is_root() {
            says_why("only root may start a systemd of its own");
            return None;
        }
        let alone = |command: &[&str]| {
            let mut unshare = Command::new("unshare");
            unshare.arg("--mount").args(command);
            unshare
        };
        if !alone(&["true"]).output().is_ok_and(|ran| ran.status.success()) {
            says_why("`unshare --mount` makes no namespace");
            return None;
        }
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let place = tempfile::tempdir().unwrap();
        let mut boot = alone(&[here.join("tests/systemd/boot.sh").to_str().unwrap()])
            .args([place.path(), BINARY.as_ref(), &here.join("deploy/systemd")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // It cleans up however these tests end, also by a signal to their group.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(boot.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let Ok(systemd) = said.trim().parse() else {
            let mut why = String::new();
            boot.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            assert_eq!(boot.wait().unwrap().code(), Some(CANNOT), "{why}");
            says_why(&why);
            return None;
        };
        let machine = Machine { boot, systemd, environment: Vec::new(), _place: place };
        wait_until("it has booted", || machine.run("systemctl is-active multi-user.target").status == 0);
        Some(machine)
    }

    /// One with a cluster of a server and a worker, as an operator makes it.
    fn with_cluster() -> Option<(MutexGuard<'static, ()>, Machine)> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut machine = Machine::boot()?;
        std::fs::write(machine.file("/etc/grey/grey.toml"), CONFIG).unwrap();
        machine.done("install -d -o grey -g grey -m 700 /var/lib/grey");
        machine.done("runuser -u grey -- grey cluster init --config /etc/grey/grey.toml");
        machine.done("systemctl start grey-server");
        let token = std::fs::read_to_string(machine.file("/var/lib/grey/server/operator.token")).unwrap();
        machine.environment = vec![
            ("GREY_ADDR", "https://127.0.0.1:7654".to_owned()),
            ("GREY_CA", "/var/lib/grey/server/ca.pem".to_owned()),
            ("GREY_TOKEN", token.trim().to_owned()),
        ];
        machine.until_it_answers();
        machine.done("(umask 027; grey cluster token --role worker > /etc/grey/join.token)");
        machine.done("chgrp grey /etc/grey/join.token");
        machine.done("systemctl start grey-worker");
        wait_until("the worker is there", || machine.run("grey node list").text.contains("present"));
        Some((turn, machine))
    }

    fn until_it_answers(&self) {
        wait_until("the server answers", || self.run("grey cluster status").text.contains("leader 1"));
    }

    /// A file there, as it is seen from here.
    fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.systemd))
    }

    /// Types a line there.
    fn run(&self, line: &str) -> Ran {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.systemd.to_string(), "--mount", "--pid", "--uts", "--ipc", "--net"])
            .args(["--cgroup", "--root", "--wd", "sh", "-c", line])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        Ran::of(command.output().unwrap())
    }

    /// Types a line that does what it says; what it printed.
    fn done(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.status, 0, "{line}: {}{}", ran.text, ran.errors);
        ran.text.trim().to_owned()
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.done(&format!("systemctl show {unit} --property {name} --value"))
    }

    /// The unit's main process once it is another one than before.
    fn another_than(&self, unit: &str, before: &str) -> String {
        let mut now = String::new();
        wait_until("systemd has started it again", || {
            now = self.property(unit, "MainPID");
            now != "0" && now != before && self.property(unit, "ActiveState") == "active"
        });
        now
    }

    /// Submits a job of one task that says that it has begun, and goes on until it is let.
    fn submit_patient(&self, name: &str) -> String {
        let script = format!(
            "echo begun; echo x >>/tmp/{name}.begun; while ! [ -e /tmp/{name}.go ]; do sleep 0.05; done; echo done"
        );
        let job = self.submit(name, &serde_json::json!([{ "name": name, "command": ["sh", "-c", script] }]));
        wait_until("it has begun", || self.file(&format!("/tmp/{name}.begun")).exists());
        job
    }

    fn submit(&self, name: &str, tasks: &serde_json::Value) -> String {
        let job = serde_json::json!({ "version": 1, "name": name, "task": tasks });
        std::fs::write(self.file(&format!("/tmp/{name}.json")), job.to_string()).unwrap();
        self.done(&format!("grey submit -q /tmp/{name}.json"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in ["server", "worker"] {
                let log = std::fs::read_to_string(self.file(&format!("/var/log/grey/{node}")));
                eprintln!("== {node}\n{}", log.unwrap_or_default());
            }
        }
        drop(self.boot.stdin.take());
        drop(self.boot.wait());
    }
}

#[test]
fn the_units_are_as_systemd_understands_them_and_a_node_that_is_not_let_in_is_not_started_again() {
    let Some(machine) = Machine::boot() else { return };
    let units = "/etc/grey-units/grey-server.service /etc/grey-units/grey-worker.service";
    let verified = machine.run(&format!("SYSTEMD_UNIT_PATH=/etc/grey-units systemd-analyze verify {units}"));
    assert_eq!((verified.status, verified.text + &verified.errors), (0, String::new()));
    let units = ["grey-server", "grey-worker"];
    let end_with = |status: u8| {
        for unit in units {
            let drop_in = format!("[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit {status}'\n");
            let path = format!("/etc/grey-units/{unit}.service.d/ends.conf");
            std::fs::write(machine.file(&path), drop_in).unwrap();
            machine.done(&format!("systemctl daemon-reload; systemctl start {unit}"));
        }
    };
    end_with(3);
    for unit in units {
        wait_until("it has failed", || machine.property(unit, "ActiveState") == "failed");
        assert_eq!(machine.property(unit, "NRestarts"), "0", "{unit}");
    }
    // What else a node ends with may pass, however often it comes: systemd gives up after five times in ten seconds unless it is told not to.
    end_with(1);
    for unit in units {
        let restarts = || machine.property(unit, "NRestarts").parse::<u32>().unwrap();
        wait_until("it is started again and again", || restarts() > 6);
        machine.done(&format!("systemctl stop {unit}"));
    }
}

#[test]
fn what_runs_outlives_a_restart_and_a_crash_of_its_worker_and_a_task_s_end_is_its_own() {
    let Some((_turn, machine)) = Machine::with_cluster() else { return };
    let worker = |name| machine.property("grey-worker", name);
    for (name, act) in [
        ("restart", "systemctl restart grey-worker"),
        ("crash", "kill -KILL $(systemctl show grey-worker --property MainPID --value)"),
    ] {
        let (job, before) = (machine.submit_patient(name), worker("MainPID"));
        machine.done(act);
        machine.another_than("grey-worker", &before);
        std::fs::write(machine.file(&format!("/tmp/{name}.go")), "").unwrap();
        machine.done(&format!("grey job wait {job}"));
        assert_eq!(machine.done(&format!("grey job logs {job}")), "begun\ndone");
        let begun = std::fs::read_to_string(machine.file(&format!("/tmp/{name}.begun"))).unwrap();
        assert_eq!(begun, "x\n", "{name}: it was begun once");
    }
    assert_eq!(worker("NRestarts"), "1");
    // Killed as the kernel does where memory is out: the task has failed, and its service goes on.
    let before = worker("MainPID");
    assert_eq!(machine.run("grey run -- sh -c 'kill -KILL $$'").status, 137);
    assert_eq!(machine.done("grey run -- echo hello"), "hello");
    assert_eq!((worker("MainPID"), worker("ActiveState")), (before, "active".to_owned()));
    // Told to end, it leaves what runs to its lease, and of that is nothing left then.
    let processes = || {
        let group = machine.file("/sys/fs/cgroup/system.slice/grey-worker.service/cgroup.procs");
        std::fs::read_to_string(group).map_or(0, |processes| processes.lines().count())
    };
    machine.submit_patient("left");
    machine.done("systemctl stop grey-worker");
    assert!(processes() > 0 && worker("Result") == "success");
    wait_until("nothing is left of it", || processes() == 0);
}

#[test]
fn a_server_ends_in_order_and_starts_again_and_what_was_acknowledged_ends_once() {
    let Some((_turn, machine)) = Machine::with_cluster() else { return };
    let server = |name| machine.property("grey-server", name);
    let script = "sleep 0.02; echo $GREY_INDEX";
    let job = machine.submit(
        "load",
        &serde_json::json!([{ "name": "t", "each": { "range": "0..149" }, "command": ["sh", "-c", script] }]),
    );
    for act in ["systemctl restart grey-server", "systemctl kill --signal KILL --kill-whom main grey-server"]
    {
        let before = server("MainPID");
        machine.done(act);
        machine.another_than("grey-server", &before);
        machine.until_it_answers();
    }
    assert_eq!(server("NRestarts"), "1");
    machine.done(&format!("grey job wait {job}"));
    let said = machine.done(&format!("grey job logs {job}"));
    let mut said: Vec<u32> = said.lines().map(|line| line.parse().unwrap()).collect();
    said.sort_unstable();
    assert_eq!(said, (0..=149).collect::<Vec<u32>>());
    let begun = Instant::now();
    machine.done("systemctl stop grey-server");
    assert!(begun.elapsed() < Duration::from_secs(30), "it was not killed for its slowness");
    assert_eq!((server("Result"), server("ExecMainStatus")), ("success".to_owned(), "0".to_owned()));
    let log = std::fs::read_to_string(machine.file("/var/log/grey/server")).unwrap();
    assert!(log.trim_end().ends_with("ended"), "{log}");
    machine.done("systemctl start grey-server");
    machine.until_it_answers();
    assert_eq!(machine.done("grey run -- echo back"), "back");
}
