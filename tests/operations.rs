//! Every command of docs/operations.md does what it says there, on machines that are directories of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use support::{Home, Ran, wait_until};

/// What is at a step of the page.
enum Step {
    /// Commands that are typed on a machine.
    Type { machine: String, lines: Vec<String> },
    /// A machine is lost.
    Kill(String),
    /// It takes a moment until there are so many voters or workers.
    Until(usize, String),
}

fn steps(page: &str) -> Vec<Step> {
    let (mut steps, mut lines) = (Vec::new(), page.lines());
    while let Some(line) = lines.next() {
        if let Some(machine) = line.strip_prefix("```sh ") {
            let typed = lines.by_ref().take_while(|line| *line != "```").map(str::to_owned);
            steps.push(Step::Type { machine: machine.to_owned(), lines: typed.collect() });
        } else if let Some(told) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            match told.split(' ').collect::<Vec<_>>()[..] {
                ["kill", machine] => steps.push(Step::Kill(machine.to_owned())),
                ["until", count, what] => {
                    steps.push(Step::Until(count.parse().unwrap(), what.trim_end_matches('s').to_owned()));
                }
                _ => panic!("`{line}` tells nothing"),
            }
        } else {
            assert!(!line.starts_with("```sh"), "a block without a machine");
        }
    }
    steps
}

struct Machines {
    home: Home,
    ports: BTreeMap<String, u16>,
    running: BTreeMap<String, Child>,
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            for machine in self.ports.keys() {
                let log = std::fs::read_to_string(self.place(machine).join("log")).unwrap_or_default();
                eprintln!("== {machine}\n{log}");
            }
        }
    }
}

/// Copies among directories what `scp` copies among machines.
const SCP: &str = r#"
place() { case "$1" in *:/*) echo "$MACHINES/${1%%:*}/${1#*:/}" ;; *:*) echo "$MACHINES/${1%%:*}/${1#*:}" ;; *) echo "$1" ;; esac; }
scp() { for last; do :; done; to=$(place "$last"); while [ $# -gt 1 ]; do cp "$(place "$1")" "$to" || return; shift; done; }
"#;

impl Machines {
    fn new(names: impl Iterator<Item = String>) -> Machines {
        let home = Home::new();
        // All at once, so that no two get the same.
        let held: BTreeMap<String, TcpListener> =
            names.map(|name| (name, TcpListener::bind("127.0.0.1:0").unwrap())).collect();
        let ports: BTreeMap<String, u16> = held
            .iter()
            .map(|(name, listener)| (name.clone(), listener.local_addr().unwrap().port()))
            .collect();
        let machines = Machines { home, ports, running: BTreeMap::new() };
        for name in machines.ports.keys() {
            std::fs::create_dir_all(machines.place(name).join("var/lib")).unwrap();
        }
        machines
    }

    fn place(&self, machine: &str) -> PathBuf {
        self.home.path("machines").join(machine)
    }

    /// A line as it is typed on a machine that is a directory.
    fn translated(&self, machine: &str, line: &str) -> String {
        let own = |port: u16| format!("127.0.0.1:{port}");
        let mut line =
            line.replace("/var/lib/grey", &format!("{}/var/lib/grey", self.place(machine).display()));
        // What `scp` names is on another machine, and stays as it is.
        if line.starts_with("scp ") {
            line = line.replace(&format!("{}/", self.place(machine).display()), "/");
        }
        line = line.replace("0.0.0.0:7654", &own(self.ports[machine]));
        for (name, port) in &self.ports {
            line = line.replace(&format!("{name}:7654"), &own(*port));
        }
        line
    }

    fn shell(&self, machine: &str, line: &str) -> Command {
        let environment = self.place(machine).join("environment");
        std::fs::OpenOptions::new().create(true).append(true).open(&environment).unwrap();
        let mut shell = Command::new("sh");
        let script = format!(
            "{SCP}. '{}'\n{line}\nstatus=$?\nexport -p > '{}'\nexit $status",
            environment.display(),
            environment.display()
        );
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_grey"));
        let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
        shell.args(["-c", &script]).current_dir(self.place(machine)).stdin(Stdio::null());
        for name in ["GREY_ADDR", "GREY_TOKEN", "GREY_CA", "GREY_DATA", "GREY_CONTEXT"] {
            shell.env_remove(name);
        }
        shell.env("PATH", path).env("MACHINES", self.home.path("machines")).env("HOME", self.home.path(""));
        shell
    }

    fn type_in(&mut self, machine: &str, line: &str) {
        let translated = self.translated(machine, line);
        if ["grey server", "grey worker"].iter().any(|service| line.starts_with(service)) {
            let log =
                std::fs::OpenOptions::new().create(true).append(true).open(self.place(machine).join("log"));
            let mut shell = self.shell(machine, &format!("exec {translated}"));
            let child = shell.stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap();
            self.running.insert(machine.to_owned(), child);
            return;
        }
        // The first request after a start or a loss may find nobody who answers yet; a person types it again.
        wait_until(&format!("`{line}` on {machine}"), || {
            let ran = Ran::of(self.shell(machine, &translated).output().unwrap());
            let again = ran.errors.contains("no cluster answers")
                || ran.errors.contains("[unavailable]")
                || ran.errors.contains("[unauthorized]");
            assert!(ran.status == 0 || again, "`{line}` on {machine}: {}\n{}", ran.text, ran.errors);
            ran.status == 0
        });
    }

    fn told(&self, command: &str) -> serde_json::Value {
        let ran = Ran::of(self.shell("operator", command).output().unwrap());
        serde_json::from_slice(&ran.stdout).unwrap_or_default()
    }

    fn count(&self, what: &str) -> usize {
        match what {
            "voter" => self.told("grey cluster status --json")["voters"].as_array().map_or(0, Vec::len),
            "worker" => {
                let nodes = self.told("grey node list --json");
                let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
                nodes.iter().filter(|node| node["presence"] == "present").count()
            }
            _ => panic!("nobody counts {what}"),
        }
    }
}

#[test]
fn the_commands_of_the_operations_page_lead_from_empty_machines_through_every_loss() {
    let page = include_str!("../docs/operations.md");
    let steps = steps(page);
    let names = steps.iter().filter_map(|step| match step {
        Step::Type { machine, .. } => Some(machine.clone()),
        _ => None,
    });
    let mut machines = Machines::new(names);
    let mut typed = 0;
    for step in &steps {
        match step {
            Step::Type { machine, lines } => {
                for line in lines {
                    machines.type_in(machine, line);
                    typed += 1;
                }
            }
            Step::Kill(machine) => {
                let mut child = machines.running.remove(machine).unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Step::Until(count, what) => {
                wait_until(&format!("{count} {what}(s)"), || machines.count(what) == *count);
            }
        }
    }
    assert!(typed > 40, "only {typed} commands were found");
    // What was run before the first loss is there after the last one.
    let jobs = machines.told("grey job list --json");
    assert!(jobs["jobs"].as_array().unwrap().len() >= 2, "{jobs}");
}
