//! A cluster of several processes under faults of processes and network, one after another, while tenants submit: nothing that was
//! acknowledged is lost, nothing is done twice, and all servers come to agree.
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
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use house::{House, ON_SMALL_DISK};
use network::Network;
use support::{BINARY, kill, wait_until};
use switch::Weather;
use tenant::{EndsWithMe, settle, submit};

/// For how many minutes faults go on, where more than one round is wanted (`cargo xtask chaos --minutes 10`).
const MINUTES: &str = "GREY_CHAOS_MINUTES";
/// Which faults, where not all are wanted: their names, with commas.
const CHOSEN: &str = "GREY_CHAOS_FAULTS";
/// How long a fault lasts that does not end by itself.
const LASTS: Duration = Duration::from_millis(1_500);
/// Longer than a worker's lease.
const PAST_THE_LEASE: Duration = Duration::from_secs(12);
/// How far a clock is moved: further than certificates are good for.
const DAYS_S: i64 = 30 * 24 * 3_600;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillLeader,
    KillFollower,
    StopLeader,
    KillWorker,
    RestartWorker,
    KillShim,
    StopWorkerPastItsLease,
    CutOffLeaderInwards,
    CutOffFollower,
    BadWeather,
    RestartAll,
    WipeFollower,
    FillDisk,
    MoveClocks,
    OutrunFollower,
    PullCableOfLeader,
    PullCableOfFollowerForLong,
    MuteLeader,
    NarrowCables,
    PullCableOfWorkerPastItsLease,
}

const FAULTS: [Fault; 15] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::StopLeader,
    Fault::KillWorker,
    Fault::RestartWorker,
    Fault::KillShim,
    Fault::StopWorkerPastItsLease,
    Fault::CutOffLeaderInwards,
    Fault::CutOffFollower,
    Fault::BadWeather,
    Fault::RestartAll,
    Fault::WipeFollower,
    Fault::FillDisk,
    Fault::MoveClocks,
    Fault::OutrunFollower,
];

/// What can be done where each node has a network namespace.
const CABLE_FAULTS: [Fault; 5] = [
    Fault::PullCableOfLeader,
    Fault::PullCableOfFollowerForLong,
    Fault::MuteLeader,
    Fault::NarrowCables,
    Fault::PullCableOfWorkerPastItsLease,
];

struct Chaos {
    house: House,
    /// Names of the three servers that vote.
    servers: Vec<String>,
}

impl Chaos {
    fn leader(&self) -> Option<String> {
        let found = self.house.rows(&["node", "list"]).into_iter().find(|node| node["leads"] == true)?;
        found["name"].as_str().map(str::to_owned)
    }

    fn a_leader(&self) -> String {
        wait_until("somebody leads", || self.leader().is_some_and(|name| self.servers.contains(&name)));
        self.leader().unwrap_or_else(|| self.a_leader())
    }

    fn a_follower(&self) -> String {
        let leader = self.a_leader();
        self.servers.iter().find(|name| **name != leader).unwrap().clone()
    }

    fn number(name: &str) -> usize {
        name.trim_start_matches('s').parse().unwrap()
    }

    fn stop_for(&self, name: &str, time: Duration) {
        let process = self.house.process_id(name);
        kill(process, "STOP");
        std::thread::sleep(time);
        kill(process, "CONT");
    }

    fn weather_for(&self, name: &str, weather: Weather) {
        let switch = self.house.switch();
        switch.set(Chaos::number(name), weather);
        std::thread::sleep(LASTS);
        switch.set(Chaos::number(name), Weather::default());
    }

    fn unplugged_for(&self, name: &str, time: Duration) {
        self.house.network().pull_cable(name);
        std::thread::sleep(time);
        self.house.network().plug_in(name);
    }

    fn whole_states(&self, name: &str) -> usize {
        self.house.said(name).matches("took over a whole state").count()
    }

    fn strike(&self, fault: Fault) {
        match fault {
            Fault::KillLeader | Fault::KillFollower => {
                let name =
                    if matches!(fault, Fault::KillLeader) { self.a_leader() } else { self.a_follower() };
                self.house.kill_9(&name);
                std::thread::sleep(LASTS);
                self.house.start_server(&name);
            }
            Fault::StopLeader => self.stop_for(&self.a_leader(), LASTS),
            Fault::KillWorker => {
                self.house.kill_9("w1");
                // Within its lease: what it ran goes on meanwhile.
                std::thread::sleep(LASTS);
                self.house.restart_worker("w1");
            }
            Fault::RestartWorker => {
                std::thread::sleep(LASTS);
                self.house.terminate("w1");
                self.house.restart_worker("w1");
            }
            Fault::KillShim => {
                std::thread::sleep(LASTS);
                wait_until("the worker has a shim", || self.house.shim("w1").is_some());
                kill(self.house.shim("w1").unwrap(), "KILL");
            }
            Fault::StopWorkerPastItsLease => self.stop_for("w2", PAST_THE_LEASE),
            Fault::CutOffLeaderInwards => {
                self.weather_for(&self.a_leader(), Weather { cut_inwards: true, ..Weather::default() });
            }
            Fault::CutOffFollower => {
                let weather = Weather { cut_inwards: true, cut_outwards: true, ..Weather::default() };
                self.weather_for(&self.a_follower(), weather);
            }
            Fault::BadWeather => {
                self.house.switch().set_all(Weather {
                    jitter_ms: 50,
                    loss_percent: 10,
                    ..Weather::default()
                });
                std::thread::sleep(2 * LASTS);
                self.house.switch().set_all(Weather::default());
            }
            Fault::RestartAll => {
                for name in self.servers.clone() {
                    self.house.terminate(&name);
                    self.house.start_server(&name);
                    wait_until("it is back", || self.house.states_agree(3));
                }
            }
            Fault::WipeFollower => {
                let name = self.a_follower();
                self.house.kill_9(&name);
                let removed = self.house.grey(&["node", "remove", &name]);
                assert_eq!(removed.status, 0, "{}", removed.errors);
                std::fs::remove_dir_all(self.house.data_seen(&name)).unwrap();
                // Whoever lost its disk is nobody that the cluster knows, and enters like anybody else.
                wait_until("it is forgotten", || self.house.node(&name).is_none());
                let token = self.house.token("server");
                self.house.start_new_server(Chaos::number(&name), &token);
                wait_until("it votes", || self.house.voters() == 3);
            }
            Fault::FillDisk => {
                let Some(disk) = self.house.disk() else {
                    println!("no disk of its own can be mounted here, so none is filled");
                    return;
                };
                disk.fill();
                std::thread::sleep(2 * LASTS);
                // The others go on with it or without it.
                let ran = self.house.grey(&["cluster", "status"]);
                assert_eq!(ran.status, 0, "{}", ran.errors);
                disk.free();
                let ended = self.house.revive(ON_SMALL_DISK);
                println!("the server on the full disk {}", if ended { "ended" } else { "went on" });
            }
            Fault::PullCableOfLeader => self.unplugged_for(&self.a_leader(), 2 * LASTS),
            // Long enough that what is sent again is sent again seldom by then.
            Fault::PullCableOfFollowerForLong => self.unplugged_for(&self.a_follower(), PAST_THE_LEASE),
            Fault::PullCableOfWorkerPastItsLease => self.unplugged_for("w2", PAST_THE_LEASE),
            Fault::MuteLeader => {
                let (network, name) = (self.house.network(), self.a_leader());
                network.mute(&name);
                std::thread::sleep(2 * LASTS);
                network.unmute(&name);
            }
            Fault::NarrowCables => {
                let network = self.house.network();
                self.servers.iter().for_each(|name| network.narrow(name, 256));
                std::thread::sleep(2 * LASTS);
                self.servers.iter().for_each(|name| network.widen(name));
            }
            Fault::OutrunFollower => {
                let name = self.a_follower();
                let before = self.whole_states(&name);
                self.house.kill_9(&name);
                self.house.fill_log();
                self.house.start_server(&name);
                wait_until("it takes over a whole state", || self.whole_states(&name) > before);
            }
            Fault::MoveClocks => {
                for (name, seconds) in [(self.a_leader(), DAYS_S), (self.a_follower(), -DAYS_S)] {
                    self.house.clock().set(&name, seconds);
                    std::thread::sleep(LASTS);
                    self.house.clock().set(&name, 0);
                }
            }
        }
    }
}

/// Faults of a kind, one after another, in as many rounds as were asked for.
fn torment(house: House, faults: &[Fault]) {
    let minutes = std::env::var(MINUTES).map_or(0, |text| text.parse::<u64>().unwrap());
    // Both tests have their share of the time, where faults of both were chosen.
    let share = [&FAULTS[..], &CABLE_FAULTS].iter().filter(|kind| !chosen(kind).is_empty()).count() as u64;
    let lasts = Duration::from_secs(60 * minutes / share);
    house.start_worker("w1");
    house.start_worker("w2");
    wait_until("the workers are there", || house.workers() == 2);
    let servers = (1..=3).map(|number| format!("s{number}")).collect();
    let chaos = Chaos { house, servers };
    let (begun, mut rounds, mut keys, mut all) = (Instant::now(), 0, 1, BTreeSet::new());
    while rounds == 0 || begun.elapsed() < lasts {
        for fault in faults.iter().copied() {
            let struck = Instant::now();
            let ends = AtomicBool::new(false);
            let acknowledged = std::thread::scope(|scope| {
                let tenant = scope.spawn(|| submit(&chaos.house, &[BINARY.as_ref()], &ends, keys));
                let end = EndsWithMe(&ends);
                chaos.strike(fault);
                drop(end);
                tenant.join().unwrap()
            });
            keys = acknowledged.last().map_or(keys, |last| last + 1) + 1;
            let count = acknowledged.len();
            all.extend(acknowledged);
            settle(&chaos.house, &all);
            println!("{fault:?}: {count} jobs acknowledged meanwhile, settled after {:?}", struck.elapsed());
        }
        rounds += 1;
    }
    assert!(all.len() > faults.len(), "next to nothing was acknowledged: {}", all.len());
    println!("{rounds} round(s) of {} faults, {} jobs", faults.len(), all.len());
}

/// Those of some faults that were chosen.
fn chosen(faults: &[Fault]) -> Vec<Fault> {
    let chosen = std::env::var(CHOSEN).unwrap_or_default();
    let all = FAULTS.iter().chain(&CABLE_FAULTS).map(|fault| format!("{fault:?}")).collect::<Vec<_>>();
    for name in chosen.split(',').filter(|name| !name.is_empty()) {
        assert!(all.iter().any(|known| known == name), "none of {all:?} is called {name}");
    }
    let is_chosen =
        |fault: &&Fault| chosen.is_empty() || chosen.split(',').any(|name| name == format!("{fault:?}"));
    faults.iter().filter(is_chosen).copied().collect()
}

#[test]
fn whatever_happens_to_processes_and_links_nothing_acknowledged_is_lost_or_done_twice() {
    let faults = chosen(&FAULTS);
    if !faults.is_empty() {
        torment(House::of_three_behind_a_switch(), &faults);
    }
}

#[test]
fn whatever_happens_to_cables_between_machines_nothing_acknowledged_is_lost_or_done_twice() {
    let faults = chosen(&CABLE_FAULTS);
    match Network::lay() {
        Ok(network) if !faults.is_empty() => torment(House::of_three_on(network), &faults),
        Ok(_) => {}
        // What a cut does to packets is what the switch of the other test does to what is in them, but for how connections stall.
        Err(reason) => println!("this machine allows no network namespaces: {reason}"),
    }
}
