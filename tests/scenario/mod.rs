//! What suites on simulated clusters share: the conditions that they begin with, and what must hold after everything that happens.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Answer, Command, Rejection};
use grey_sim::{LinkOptions, LoadOptions, LoadReport, NodeIndex, Scenario, ScenarioOptions, Told, links};

/// In microseconds.
pub const MS: u64 = 1_000;
/// In microseconds.
pub const SECOND: u64 = 1_000 * MS;
/// The longest sync of a disk, in milliseconds.
pub const SYNC_MS: u64 = 1;
/// How often servers look at their clocks, in milliseconds.
pub const TICK_MS: u64 = 50;
/// The longest that a server waits for a leader before it stands for election, in milliseconds: it is drawn from 300 to 600.
pub const LONGEST_ELECTION_MS: u64 = 600;
/// The shortest.
pub const SHORTEST_ELECTION_MS: u64 = 300;

/// Links of one to five milliseconds that lose nothing.
pub const LONGEST_LINK_MS: u64 = 5;
pub fn near() -> LinkOptions {
    links(MS, LONGEST_LINK_MS * MS, 0)
}

/// Submissions at a steady rate of tasks that take so long.
pub fn load(per_second: u64, lasts_ms: u64, attempt_us: u64) -> LoadOptions {
    LoadOptions { per_second, lasts_ms, again_ms: 250, patience_ms: 60_000, attempt_us, obeys: false }
}

/// A simulated cluster whose invariants are looked at after everything that happens.
pub struct Cluster {
    pub scenario: Scenario,
    pub invariants: Invariants,
    /// Whether somebody who leads has to be in touch with a majority: not while a test takes it away.
    pub whole: bool,
    servers: usize,
    clients: usize,
}

impl Cluster {
    /// Nothing has happened yet.
    pub fn new(options: &ScenarioOptions) -> Cluster {
        let (scenario, invariants) = (Scenario::new(options), Invariants::default());
        Cluster { scenario, invariants, whole: true, servers: options.servers, clients: options.clients }
    }

    /// Somebody leads, and every worker is there.
    pub fn start(options: &ScenarioOptions) -> Cluster {
        let mut cluster = Cluster::new(options);
        let workers = options.workers;
        cluster.until("it has started", 10_000, |now| {
            now.present_workers() == workers && now.leader().is_some()
        });
        cluster
    }

    /// The first server leads, and is enrolled as the first node.
    pub fn founded(options: &ScenarioOptions) -> Cluster {
        let mut cluster = Cluster::new(&ScenarioOptions { first_alone: true, ..options.clone() });
        cluster.until("it is founded", 1_000, |now| now.leader().is_some() && is_founded(now));
        let enrolment = cluster.scenario.enrolment();
        assert_eq!(cluster.propose(enrolment), Ok(Answer::Admitted { server: Some(1) }));
        cluster
    }

    pub fn run(&mut self, ms: u64) {
        self.run_and(ms, |_| {});
    }

    /// Lets so many milliseconds pass, with a look of the test's own after everything that happens.
    pub fn run_and(&mut self, ms: u64, mut look: impl FnMut(&Scenario)) {
        self.look_until(ms, |now| {
            look(now);
            false
        });
    }

    /// Lets time pass until something is so; after how many milliseconds.
    pub fn until(&mut self, what: &str, most_ms: u64, done: impl FnMut(&Scenario) -> bool) -> u64 {
        let began_us = self.scenario.now_us();
        assert!(self.look_until(most_ms, done), "{what}: not within {most_ms} ms");
        (self.scenario.now_us() - began_us).div_ceil(MS)
    }

    fn look_until(&mut self, ms: u64, mut done: impl FnMut(&Scenario) -> bool) -> bool {
        let (invariants, servers, whole) = (&mut self.invariants, self.servers, self.whole);
        let look = |now: &Scenario| {
            invariants.look(now, servers);
            if whole {
                assert_majority_in_touch(now);
            }
            done(now)
        };
        self.scenario.run_until(ms, look).unwrap()
    }

    pub fn leader(&self) -> usize {
        self.scenario.leader().expect("somebody leads")
    }

    /// What the leader makes of a command that the first client asks it to propose.
    pub fn propose(&mut self, command: Command) -> Result<Answer, Rejection> {
        let leader = self.leader();
        let number = self.scenario.ask(0, leader, command);
        for _ in 0..1_000 {
            self.run(1);
            match self.scenario.told(0, number) {
                None => {}
                Some(Told::Applied(answer)) => return answer,
                Some(other) => panic!("{other:?}"),
            }
        }
        panic!("no answer within a second");
    }

    /// A server or a worker is let in; its number, where it is a server.
    pub fn admit(&mut self, index: NodeIndex) -> Option<u64> {
        let (token, admit) = self.scenario.admission(index);
        assert_eq!(self.propose(token), Ok(Answer::Identity));
        match self.propose(admit) {
            Ok(Answer::Admitted { server }) => server,
            other => panic!("{other:?}"),
        }
    }

    /// Runs to the end, and says that every server that is up has the same state and that every task that was acknowledged has exactly
    /// one accepted completion; how long it took, in milliseconds.
    pub fn finish(&mut self) -> u64 {
        self.scenario.heal();
        let began_us = self.scenario.now_us();
        while let Some(what) = self.scenario.unfinished() {
            assert!(self.scenario.now_us() - began_us < 60 * SECOND, "it does not end: {what}");
            self.run(50);
        }
        let took_ms = (self.scenario.now_us() - began_us) / MS;
        self.scenario.finish().unwrap();
        let states: BTreeSet<_> =
            (0..self.servers).filter_map(|server| self.scenario.state(server)).collect();
        assert_eq!(states.len(), 1, "all servers agree");
        let reports: Vec<LoadReport> = (0..self.clients).map(|client| self.scenario.report(client)).collect();
        let ledger = self.scenario.ledger();
        for (client, report) in reports.iter().enumerate() {
            assert_eq!(
                (report.unknown, report.open),
                (0, 0),
                "client {client} knows what became of everything"
            );
            for job in &report.jobs {
                let (tasks, counts) = ledger.ended.get(job).unwrap_or_else(|| panic!("{job} has not ended"));
                assert_eq!(counts.completed, u64::from(tasks.count), "{job} is complete: {counts:?}");
            }
        }
        for (task, completions) in ledger.completions() {
            assert_eq!(completions, 1, "{task}: {:?}", ledger.accepted.get(&task));
        }
        took_ms
    }
}

/// Whether whoever leads has the founding in its state.
pub fn is_founded(scenario: &Scenario) -> bool {
    let state = scenario.leader().and_then(|leader| scenario.state_of(leader));
    state.is_some_and(|state| state.meta().cluster.is_some())
}

/// What holds after every single thing that happens, whatever it is.
#[derive(Default)]
pub struct Invariants {
    terms: BTreeMap<usize, u64>,
    leaders: BTreeMap<u64, usize>,
    votes: BTreeMap<(usize, u64), usize>,
    /// How often was looked.
    pub looks: u64,
    /// How often nobody led.
    pub without_leader: u64,
}

impl Invariants {
    pub fn look(&mut self, scenario: &Scenario, servers: usize) {
        self.looks += 1;
        for server in 0..servers {
            let Some((term, vote)) = scenario.vote(server) else { continue };
            let before = self.terms.insert(server, term).unwrap_or(0);
            assert!(term >= before, "the term of server {server} fell from {before} to {term}");
            if let Some(vote) = vote {
                let first = *self.votes.entry((server, term)).or_insert(vote);
                assert_eq!(vote, first, "server {server} votes twice in term {term}");
            }
        }
        let leaders = scenario.leaders();
        self.without_leader += u64::from(leaders.is_empty());
        for leader in leaders {
            let term = scenario.term(leader);
            if !self.leaders.contains_key(&term) {
                self.elected(scenario, leader, term);
            }
            assert_eq!(
                self.leaders.insert(term, leader).unwrap_or(leader),
                leader,
                "two lead in term {term}"
            );
        }
    }

    /// Whoever begins to lead has the votes of a majority in its term, and everything that anybody has applied.
    fn elected(&self, scenario: &Scenario, leader: usize, term: u64) {
        let voters = voters(scenario, leader);
        let granted = |voter: &&usize| self.votes.get(&(**voter, term)) == Some(&leader);
        let votes = voters.iter().filter(granted).count();
        assert!(2 * votes > voters.len(), "server {leader} leads with {votes} votes of {}", voters.len());
        let applied = |server: usize| scenario.state(server).map_or(0, |(index, _)| index);
        let most = self.terms.keys().map(|server| applied(*server)).max().unwrap_or(0);
        assert!(applied(leader) >= most, "server {leader} leads without what was committed");
    }

    /// How many terms had a leader, and who led in the last one.
    pub fn led(&self) -> (usize, Option<usize>) {
        (self.leaders.len(), self.leaders.values().next_back().copied())
    }
}

/// Who votes, as a server has it; from 0.
pub fn voters(scenario: &Scenario, server: usize) -> BTreeSet<usize> {
    let membership = scenario.membership(server).unwrap_or_default();
    membership.voters.iter().map(|number| *number as usize - 1).collect()
}

/// Whoever leads is in touch with a majority of those who vote.
pub fn assert_majority_in_touch(scenario: &Scenario) {
    for leader in scenario.leaders() {
        let voters = voters(scenario, leader);
        let in_touch = voters.iter().filter(|voter| scenario.are_in_touch(leader, **voter)).count();
        assert!(2 * in_touch > voters.len(), "server {leader} is in touch with {in_touch} of {voters:?}");
    }
}
