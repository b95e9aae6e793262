//! Servers and workers of one cluster on the loopback interface, each a process of its own.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::machine::{Clock, SmallDisk};
use crate::network::Network;
use crate::support::{BINARY, Home, Ran, kill, wait_until};
use crate::switch::Switch;

pub struct House {
    home: Home,
    ports: Vec<u16>,
    /// What lies between the nodes; nothing where they dial one another.
    switch: Option<Switch>,
    running: Mutex<BTreeMap<String, Child>>,
    /// What nodes are started from.
    binary: Mutex<PathBuf>,
    /// The newest feature level that servers are started with, where they play an earlier version.
    limit: Mutex<Option<u16>>,
    /// The disk that the third server has to itself, and the clocks of all: where machines are tormented.
    disk: Option<SmallDisk>,
    /// The network that the nodes are on; this machine's loopback interface where there is none.
    network: Option<Network>,
    clock: Option<Clock>,
}

/// Whose disk can be filled.
pub const ON_SMALL_DISK: &str = "s3";

/// Ports that are free now. That somebody else takes one before a server does is rare, and fails loudly.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

impl House {
    /// Room for so many servers; nothing runs.
    pub fn new(servers: usize) -> House {
        House {
            home: Home::new(),
            ports: free_ports(servers),
            switch: None,
            running: Mutex::default(),
            binary: Mutex::new(PathBuf::from(BINARY)),
            limit: Mutex::default(),
            disk: None,
            network: None,
            clock: None,
        }
    }

    /// A cluster of its first server, with room for others.
    pub fn founded(servers: usize) -> House {
        House::new(servers).begun()
    }

    fn begun(self) -> House {
        let house = self;
        house.init();
        house.start_server("s1");
        wait_until("the first server leads", || {
            house.rows(&["node", "list"]).first().is_some_and(|node| node["leads"] == true)
        });
        house
    }

    /// A cluster of three servers that vote, with room for a fourth.
    pub fn of_three() -> House {
        House::founded(4).grown()
    }

    /// The same, of servers that understand feature levels up to this one, as those of an earlier version do.
    pub fn of_three_that_understand(level: u16) -> House {
        let house = House::new(3);
        house.set_limit(Some(level));
        house.begun().grown()
    }

    /// The same, of servers of another binary.
    pub fn of_three_from(binary: &Path, level: u16) -> House {
        let house = House::new(3);
        house.install(binary, Some(level));
        house.begun().grown()
    }

    /// What nodes run that are started from now on, and the newest feature level of theirs.
    pub fn install(&self, binary: &Path, level: Option<u16>) {
        binary.clone_into(&mut self.binary.lock().unwrap());
        self.set_limit(level);
    }

    /// What servers understand that are started from now on.
    pub fn set_limit(&self, level: Option<u16>) {
        *self.limit.lock().unwrap() = level;
    }

    /// The same, where nodes reach a server through a switch only; whoever runs the cluster reaches them all.
    pub fn of_three_behind_a_switch() -> House {
        let mut house = House::new(3);
        house.switch = Some(Switch::before(&house.ports));
        house.disk = SmallDisk::mount(&house.path("disk"));
        house.clock = Some(Clock::new(&house.path("")));
        house.begun().grown()
    }

    /// The same, where every clock can be moved: those of servers and workers, and that of whoever runs the cluster.
    pub fn of_three_with_clocks() -> House {
        let mut house = House::new(3);
        house.clock = Some(Clock::new(&house.path("")));
        house.begun().grown()
    }

    /// Has a command see the clock of a machine, where clocks can be moved.
    fn wear(&self, name: &str, command: &mut Command) {
        if let Some(clock) = &self.clock {
            clock.wear(name, command);
        }
    }

    /// The same, with each node in a network namespace of its own.
    pub fn of_three_on(network: Network) -> House {
        let mut house = House::new(3);
        house.network = Some(network);
        house.begun().grown()
    }

    pub fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    /// The disk that can be filled, where the machine allows one.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().unwrap()
    }

    /// Where a node's data is, as it sees it.
    fn data(&self, name: &str) -> PathBuf {
        match &self.disk {
            Some(_) if name == ON_SMALL_DISK => self.path("disk").join("data"),
            _ => self.path(name),
        }
    }

    /// Where a node's data is, as this process sees it.
    pub fn data_seen(&self, name: &str) -> PathBuf {
        match &self.disk {
            Some(disk) if name == ON_SMALL_DISK => disk.seen_at().join("data"),
            _ => self.path(name),
        }
    }

    pub fn switch(&self) -> &Switch {
        self.switch.as_ref().unwrap()
    }

    fn grown(self) -> House {
        let house = self;
        for number in 2..=3 {
            let token = house.token("server");
            house.start_new_server(number, &token);
        }
        wait_until("all servers have the same state", || house.states_agree(3));
        wait_until("three vote", || house.voters() == 3);
        house
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path(name)
    }

    pub fn init(&self) -> Value {
        let (listen, advertise) = (self.listen(1), self.advertise(1));
        let arguments =
            ["cluster", "init", "--json", "--name", "s1", "--listen", &listen, "--advertise", &advertise];
        let mut command = self.installed(&arguments);
        let ran = Ran::of(command.env("GREY_DATA", self.path("s1")).output().unwrap());
        assert_eq!(ran.status, 0, "{}", ran.errors);
        // Whoever runs the cluster does so from elsewhere.
        for name in ["ca.pem", "operator.token"] {
            std::fs::copy(self.path("s1").join(name), self.path(name)).unwrap();
        }
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    fn listen(&self, number: usize) -> String {
        let port = self.ports[number - 1];
        match &self.network {
            Some(network) => format!("{}:{port}", network.address(&format!("s{number}"))),
            None => format!("127.0.0.1:{port}"),
        }
    }

    /// What other nodes dial.
    fn advertise(&self, number: usize) -> String {
        match &self.switch {
            Some(switch) => format!("127.0.0.1:{}", switch.ports()[number - 1]),
            None => self.listen(number),
        }
    }

    /// Where a new node asks: at every server that there is room for, whether it runs or not.
    pub fn join(&self) -> String {
        (1..=self.ports.len()).map(|number| self.advertise(number)).collect::<Vec<_>>().join(",")
    }

    pub fn address(&self, number: usize) -> String {
        format!("https://{}", self.listen(number))
    }

    /// What a node is started from, on its machine.
    fn installed(&self, arguments: &[&str]) -> Command {
        self.home.command_of(&self.binary.lock().unwrap(), arguments)
    }

    /// The binary as an operator uses it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(BINARY), arguments)
    }

    /// The same with another binary.
    pub fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = self.home.command_of(binary, arguments);
        let addresses: Vec<String> = (1..=self.ports.len()).map(|number| self.address(number)).collect();
        let token = std::fs::read_to_string(self.path("operator.token")).unwrap_or_default();
        command
            .env_remove("GREY_DATA")
            .env("GREY_ADDR", addresses.join(","))
            .env("GREY_CA", self.path("ca.pem"))
            .env("GREY_TOKEN", token.trim());
        self.wear("operator", &mut command);
        command
    }

    pub fn grey(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// What a command prints, where it succeeds.
    pub fn json(&self, arguments: &[&str]) -> Option<Value> {
        let ran = self.grey(&[arguments, &["--json"]].concat());
        (ran.status == 0).then(|| serde_json::from_slice(&ran.stdout).unwrap())
    }

    /// What a listing has; nothing where it fails.
    pub fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let ran = self.grey(&[arguments, &["-o", "jsonl"]].concat());
        if ran.status != 0 {
            return Vec::new();
        }
        ran.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How a node is listed.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.rows(&["node", "list"]).into_iter().find(|node| node["name"] == name)
    }

    /// How many servers vote.
    pub fn voters(&self) -> usize {
        let status = self.json(&["cluster", "status"]);
        status.and_then(|status| Some(status["voters"].as_array()?.len())).unwrap_or_default()
    }

    pub fn token(&self, role: &str) -> String {
        let ran = self.grey(&["cluster", "token", "--role", role]);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        ran.text.trim().to_owned()
    }

    pub fn server_command(&self, number: usize, token: Option<&str>) -> Command {
        let name = format!("s{number}");
        let (listen, advertise) = (self.listen(number), self.advertise(number));
        let arguments = ["server", "--name", &name, "--listen", &listen, "--advertise", &advertise];
        let mut command = self.installed(&arguments);
        command.env("GREY_DATA", self.data(&name));
        // Tests see logs dropped that would take minutes to fill; benchmarks measure what is usual.
        if cfg!(test) {
            command.env("GREY_CHECKPOINT_EVERY", "1MiB");
        }
        self.wear(&name, &mut command);
        if let Some(level) = *self.limit.lock().unwrap() {
            command.env("GREY_FEATURE_LEVEL_LIMIT", level.to_string());
        }
        if let Some(token) = token {
            command.env("GREY_JOIN", self.join()).env("GREY_JOIN_TOKEN", token);
        }
        match &self.disk {
            Some(disk) if name == ON_SMALL_DISK => disk.enter(&command),
            _ => self.on_network(&name, command),
        }
    }

    fn on_network(&self, name: &str, command: Command) -> Command {
        match &self.network {
            Some(network) => network.enter(name, &command),
            None => command,
        }
    }

    /// Starts a server again that has ended by itself; says whether it had.
    pub fn revive(&self, name: &str) -> bool {
        let ended = self.running.lock().unwrap().get_mut(name).unwrap().try_wait().unwrap().is_some();
        if ended {
            self.running.lock().unwrap().remove(name);
            self.start_server(name);
        }
        ended
    }

    pub fn worker_command(&self, name: &str, token: Option<&str>) -> Command {
        let mut command = self.installed(&["worker", "--name", name]);
        command.env("GREY_DATA", self.path(name)).env("GREY_JOIN", self.join());
        self.wear(name, &mut command);
        if let Some(token) = token {
            command.env("GREY_JOIN_TOKEN", token);
        }
        self.on_network(name, command)
    }

    pub fn spawn(&self, name: &str, mut command: Command) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log")));
        let child = command.stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap();
        self.running.lock().unwrap().insert(name.to_owned(), child);
    }

    pub fn start_server(&self, name: &str) {
        let number = name.trim_start_matches('s').parse().unwrap();
        self.spawn(name, self.server_command(number, None));
    }

    pub fn start_new_server(&self, number: usize, token: &str) {
        self.spawn(&format!("s{number}"), self.server_command(number, Some(token)));
    }

    pub fn start_worker(&self, name: &str) {
        let token = self.token("worker");
        self.start_worker_with(name, &token);
    }

    pub fn start_worker_with(&self, name: &str, token: &str) {
        self.spawn(name, self.worker_command(name, Some(token)));
    }

    /// Starts a worker that has entered before.
    pub fn restart_worker(&self, name: &str) {
        self.spawn(name, self.worker_command(name, None));
    }

    /// Ends a process in order.
    pub fn terminate(&self, name: &str) {
        kill(self.process_id(name), "TERM");
        let mut child = self.running.lock().unwrap().remove(name).unwrap();
        wait_until("the process ends", || child.try_wait().unwrap().is_some());
    }

    /// The exit status of a process that ends by itself.
    pub fn status_of(&self, name: &str) -> Option<i32> {
        let ended = || self.running.lock().unwrap().get_mut(name).unwrap().try_wait().unwrap();
        wait_until("the process ends by itself", || ended().is_some());
        self.running.lock().unwrap().remove(name).unwrap().wait().unwrap().code()
    }

    pub fn process_id(&self, name: &str) -> i32 {
        i32::try_from(self.running.lock().unwrap()[name].id()).unwrap()
    }

    /// The shim that a worker's directory has: whoever listens at its door.
    pub fn shim(&self, worker: &str) -> Option<i32> {
        let door = self.path(worker).join("shim.sock");
        // Who listens has this among its flags.
        const LISTENS: &str = " 00010000 ";
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let mut lines = sockets.lines().filter(|line| line.contains(LISTENS));
        let line = lines.find(|line| line.ends_with(door.to_str().unwrap()))?;
        let socket = PathBuf::from(format!("socket:[{}]", line.split_whitespace().nth(6)?));
        std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let process: i32 = entry.file_name().to_str()?.parse().ok()?;
            let mut open = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            let has = open.any(|open| std::fs::read_link(open.path()).is_ok_and(|to| to == socket));
            has.then_some(process)
        })
    }

    pub fn kill_9(&self, name: &str) {
        let mut child = self.running.lock().unwrap().remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Workers that can be reached, as far as the cluster has agreed on it.
    pub fn workers(&self) -> usize {
        self.rows(&["node", "list"]).iter().filter(|node| node["presence"] == "present").count()
    }

    /// Whether so many servers have applied the same entries, and are the same by them.
    pub fn states_agree(&self, servers: usize) -> bool {
        let states: Vec<(u64, String)> = (1..=self.ports.len())
            .filter_map(|number| {
                let mut command = self.command(&["cluster", "status", "--here", "--json"]);
                let ran = Ran::of(command.env("GREY_ADDR", self.address(number)).output().unwrap());
                let status: Value = serde_json::from_slice(&ran.stdout).ok()?;
                Some((status["applied_index"].as_u64()?, status["state_hash"].as_str()?.to_owned()))
            })
            .collect();
        states.len() == servers && states.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// How many blobs a server has.
    pub fn blobs(&self, name: &str) -> usize {
        let folders = std::fs::read_dir(self.path(name).join("blobs")).into_iter().flatten().flatten();
        let folders = folders.filter(|folder| folder.file_name() != "incoming").map(|folder| folder.path());
        folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten()).count()
    }

    /// Submits so much that every server writes several checkpoints, and takes it back: nobody can run it.
    pub fn fill_log(&self) {
        let environment = serde_json::json!({ "FILLER": "x".repeat(100_000) });
        let tasks: Vec<Value> = (0..15)
            .map(|number| {
                serde_json::json!({
                    "name": format!("f{number}"), "command": ["true"], "env": environment,
                    "constraints": { "labels": { "nobody": "has-it" } },
                })
            })
            .collect();
        let job = serde_json::json!({ "version": 1, "name": "filler", "task": tasks });
        let path = self.path("filler.json");
        std::fs::write(&path, job.to_string()).unwrap();
        for _ in 0..4 {
            let submitted = self.json(&["submit", path.to_str().unwrap()]).expect("the filler is taken");
            let cancelled = self.grey(&["job", "cancel", submitted["job"].as_str().unwrap()]);
            assert_eq!(cancelled.status, 0, "{}", cancelled.errors);
        }
    }

    /// What a node has written to its log.
    pub fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap()
    }

    /// A task file of one task.
    pub fn task_file(&self, name: &str, script: &str) -> PathBuf {
        let path = self.path(&format!("{name}.json"));
        let task = serde_json::json!({ "name": name, "command": ["sh", "-c", script] });
        let job = serde_json::json!({ "version": 1, "name": name, "task": [task] });
        std::fs::write(&path, job.to_string()).unwrap();
        path
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap();
        for child in running.values_mut() {
            drop(child.kill());
        }
        for child in running.values_mut() {
            drop(child.wait());
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.home.path("")).unwrap().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    eprintln!(
                        "== {}\n{}",
                        entry.path().display(),
                        std::fs::read_to_string(entry.path()).unwrap()
                    );
                }
            }
        }
    }
}
