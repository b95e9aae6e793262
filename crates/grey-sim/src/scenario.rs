//! A cluster under conditions of one's choosing instead of a seed's: links, loads, cuts and slow disks by hand, with every checker on.
//!
//! Servers have their links here (outboxes, windows, breakers), so what a cut does to them is what it does in a cluster. The same calls
//! give the same run, bit for bit.

use std::collections::BTreeSet;

use grey_core::{JobId, Presence, Resources};
use grey_health::{BreakerState, Level};
use grey_proof::Digest;
use grey_replica::{DoorOptions, LinkOptions as PeerOptions, Peer, ServerOptions, WatchOptions};

use crate::checkers::Broken;
use crate::load::{Load, LoadOptions, LoadReport};
use crate::network::{LinkOptions, NodeIndex};
use crate::server::Server;
use crate::swarm::Plan;
use crate::trace::Trace;
use crate::world::{Event, Input, Node, Process, World};

/// Log after which a checkpoint is due, in bytes, as on a real node.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;

/// How long everything that was accepted may take to end once all is whole, in milliseconds.
const RECOVERY_MS: u64 = 60_000;
/// What each worker may hold: enough that servers are the narrow place.
const SLOTS: u32 = 64;

/// What a scenario begins with.
#[derive(Debug, Clone)]
pub struct ScenarioOptions {
    /// The seed.
    pub seed: u64,
    /// Servers, one to nine.
    pub servers: usize,
    /// Workers, one to 1,000.
    pub workers: usize,
    /// Clients, each with a load of its own.
    pub clients: usize,
    /// How links behave.
    pub links: LinkOptions,
    /// What servers let in.
    pub door: DoorOptions,
    /// What each entry costs a server's disk, in microseconds: this is what bounds the capacity.
    pub entry_us: u64,
    /// Only the first server is started, and votes alone; the others and the workers are to be let in and started.
    pub first_alone: bool,
    /// How servers watch workers; workers keep leases of the same length.
    pub watch: WatchOptions,
}

impl ScenarioOptions {
    /// Three servers, four workers and two clients on such links, with the usual door and disks whose cost does not depend on entries.
    pub fn new(seed: u64, links: LinkOptions) -> ScenarioOptions {
        ScenarioOptions {
            seed,
            servers: 3,
            workers: 4,
            clients: 2,
            links,
            door: DoorOptions::default(),
            entry_us: 0,
            first_alone: false,
            watch: WatchOptions::default(),
        }
    }
}

/// Links that take a time between the two, in microseconds, and lose so many messages of a million. Between servers, and to and from clients,
/// what is lost is lost for good and messages overtake one another, which is harsher than a connection. What servers and workers say to each
/// other keeps its order, and what is lost of it the connection sends again: their sessions need every message.
pub fn links(shortest_us: u64, longest_us: u64, loss: u64) -> LinkOptions {
    LinkOptions {
        shortest_us,
        longest_us,
        loss,
        duplicate: 0,
        delay: 0,
        delay_us: 0,
        reorder: longest_us > shortest_us,
        answer_lost: 0,
        unordered_workers: false,
    }
}

/// A running cluster.
pub struct Scenario {
    pub(crate) world: World,
    clients: usize,
    pub(crate) cut: BTreeSet<(NodeIndex, NodeIndex)>,
}

impl Scenario {
    /// Starts a cluster, and runs it until somebody leads and every worker is there.
    ///
    /// # Errors
    /// [`Broken`], also when that is not so after ten seconds.
    pub fn start(options: &ScenarioOptions) -> Result<Scenario, Broken> {
        let mut scenario = Scenario::new(options);
        for _ in 0..100 {
            scenario.run_ms(100)?;
            if scenario.leader().is_some() && scenario.present_workers() == options.workers {
                return Ok(scenario);
            }
        }
        Err(Broken {
            promise: "starts",
            what: "no leader, or not every worker, after ten seconds".to_owned(),
        })
    }

    /// A cluster whose processes are about to start.
    pub fn new(options: &ScenarioOptions) -> Scenario {
        let mut plan = Plan::new(options.seed, 0, Some(&BTreeSet::new()));
        (plan.links, plan.sync_us) = (options.links, (200, 800));
        plan.checkpoint_bytes = CHECKPOINT_BYTES;
        let (servers, workers, clients) = (options.servers, options.workers, options.clients);
        let mut world =
            World::new(options.seed, servers, workers, clients, plan, Trace::new(options.seed, None));
        world.behaviour = ServerOptions {
            watch: Some(options.watch.clone()),
            door: options.door.clone(),
            links: Some(PeerOptions { seed: options.seed, ..PeerOptions::default() }),
        };
        for identity in &mut world.identities {
            identity.parallel = SLOTS;
            identity.keep.lease = options.watch.lease.clone();
            identity.capacity =
                Resources { cpu_millicores: 1_000 * u64::from(SLOTS), memory_bytes: 1 << 36, disk_bytes: 0 };
        }
        for (index, node) in world.nodes.iter_mut().enumerate() {
            match index.checked_sub(servers + workers) {
                None if index < servers => node.entry_us = options.entry_us,
                None => {}
                Some(client) => node.process = Process::Load(Box::new(Load::new(client, servers))),
            }
        }
        world.network.set_streams(servers..servers + workers);
        if options.first_alone {
            world.founders = 1;
            world.nodes.iter_mut().take(servers + workers).skip(1).for_each(|node| node.stays_down = true);
        }
        world.keeps_ledger = true;
        for index in 0..servers + workers {
            world.queue.push(index as u64, Event::Start { node: index });
        }
        Scenario { world, clients, cut: BTreeSet::new() }
    }

    /// Lets so many virtual milliseconds pass.
    ///
    /// # Errors
    /// [`Broken`] when a checker says so.
    pub fn run_ms(&mut self, ms: u64) -> Result<(), Broken> {
        let end_us = self.world.now_us + ms * 1_000;
        self.world.run(end_us);
        self.world.now_us = end_us;
        self.world.broken.clone().map_or(Ok(()), Err)
    }

    /// Lets so many virtual milliseconds pass, and looks at the cluster after everything that happens; once `done` it goes no further.
    /// Whether that was so.
    ///
    /// # Errors
    /// [`Broken`] when a checker says so.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Scenario) -> bool) -> Result<bool, Broken> {
        let end_us = self.world.now_us + ms * 1_000;
        while self.world.run_one(end_us) {
            if done(self) {
                return Ok(true);
            }
        }
        self.world.now_us = end_us;
        self.world.broken.clone().map_or(Ok(false), Err)
    }

    /// The virtual time, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.world.now_us
    }

    /// The hash over everything that happened: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace.hash()
    }

    /// Where a server is, counted from 0.
    pub fn server(&self, number: usize) -> NodeIndex {
        number
    }

    /// Where a worker is, counted from 0.
    pub fn worker(&self, number: usize) -> NodeIndex {
        self.world.servers + number
    }

    /// Where a client is, counted from 0.
    pub fn client(&self, number: usize) -> NodeIndex {
        self.world.servers + self.world.workers + number
    }

    /// A client begins a load; what was told of an earlier one is forgotten.
    pub fn load(&mut self, client: usize, options: LoadOptions) {
        let (index, now_us) = (self.client(client), self.world.now_us);
        if let Some(load) = self.world.load(index) {
            load.begin(options, now_us);
        }
        self.world.later(now_us, index, Input::Next);
    }

    /// What became of a client's load so far.
    pub fn report(&mut self, client: usize) -> LoadReport {
        let index = self.client(client);
        self.world.load(index).map(|load| load.reported()).unwrap_or_default()
    }

    /// A client cancels a job.
    pub fn cancel(&mut self, client: usize, job: JobId) {
        let index = self.client(client);
        self.world.load_cancel(index, job);
    }

    /// Cuts everything between two groups of nodes, both ways. Connections between them break when they are written to.
    pub fn cut(&mut self, one: &[NodeIndex], other: &[NodeIndex]) {
        for (left, right) in one.iter().flat_map(|left| other.iter().map(move |right| (*left, *right))) {
            for (from, to) in [(left, right), (right, left)] {
                self.world.network.cut(from, to, u64::MAX);
                self.cut.insert((from, to));
                self.look_whether_away(from, to);
            }
        }
    }

    /// Ends every cut.
    pub fn heal(&mut self) {
        for (from, to) in std::mem::take(&mut self.cut) {
            self.world.network.join(from, to);
            self.look_whether_away(from, to);
        }
    }

    /// What a connection says of its other end: that nothing can be written to it while the link is cut or nothing runs there.
    pub(crate) fn look_whether_away(&mut self, from: NodeIndex, to: NodeIndex) {
        let away = self.cut.contains(&(from, to)) || !self.world.is_up(to);
        let worker = to.checked_sub(self.world.servers).and_then(|number| self.world.identities.get(number));
        let peer = match worker {
            Some(identity) => Peer::Worker(identity.node),
            None => Peer::Server(to as u64 + 1),
        };
        if let Some(server) = self.real(from) {
            server.set_away(peer, away);
        }
    }

    /// What each further entry costs a server's disk, in microseconds.
    pub fn set_entry_cost(&mut self, server: usize, entry_us: u64) {
        if let Some(node) = self.world.nodes.get_mut(server) {
            node.entry_us = entry_us;
        }
        if let Some(server) = self.real(server) {
            server.paced = entry_us > 0;
        }
    }

    /// Every sync of a server takes 20 to 400 ms more for so many milliseconds.
    pub fn slow_disk(&mut self, server: usize, for_ms: u64) {
        let until_us = self.world.now_us + for_ms * 1_000;
        if let Some(node) = self.world.nodes.get_mut(server) {
            node.slow_disk_until_us = until_us;
        }
    }

    pub(crate) fn real(&mut self, server: usize) -> Option<&mut Server> {
        match self.world.nodes.get_mut(server).map(|node| &mut node.process) {
            Some(Process::Server(server)) => Some(server),
            _ => None,
        }
    }

    pub(crate) fn seen(&self, server: usize) -> Option<&Server> {
        self.world.nodes.get(server).and_then(Node::server)
    }

    /// The server that leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        self.world.leader()
    }

    /// The term of a server. While no term changes, no leader does.
    pub fn term(&self, server: usize) -> u64 {
        self.seen(server).map_or(0, |server| server.replica().term())
    }

    /// How full a server's door is.
    pub fn level(&mut self, server: usize) -> Option<Level> {
        self.real(server).map(|server| server.real().level())
    }

    /// How many proposals a server has under way.
    pub fn depth(&mut self, server: usize) -> usize {
        self.real(server).map_or(0, |server| server.real().under_way())
    }

    /// The breaker of a server before another one.
    pub fn breaker(&mut self, server: usize, other: usize) -> Option<BreakerState> {
        self.real(server)?.real().breaker_state(Peer::Server(other as u64 + 1))
    }

    /// How full the outbox of a server for another one is.
    pub fn outbox_level(&mut self, server: usize, other: usize) -> Option<Level> {
        self.real(server)?.real().outbox_level(Peer::Server(other as u64 + 1))
    }

    /// Bytes that were sent from one node to another and not lost at once.
    pub fn taken_bytes(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        self.world.network.taken_bytes(from, to)
    }

    /// Workers that are there and not suspect, as the leader has it.
    pub fn present_workers(&self) -> usize {
        let state = self.leader().and_then(|leader| self.seen(leader)).map(|server| server.replica().state());
        let there = |state: &grey_core::State| {
            let present = state.workers().values().filter(|row| row.presence == Presence::Present);
            present.filter(|row| !row.is_suspect()).count()
        };
        state.map_or(0, there)
    }

    /// Jobs that a server has and that have not ended.
    pub fn jobs(&self, server: usize) -> usize {
        self.seen(server).map_or(0, |server| server.replica().state().jobs().len())
    }

    /// The last entry that a server has applied, and the hash of its state after it.
    pub fn state(&self, server: usize) -> Option<(u64, Digest)> {
        let state = self.seen(server)?.replica().state();
        Some((state.applied_index(), state.hash()))
    }

    /// Ends every cut and every cost of disks, and runs until every client has its answers, all that was accepted has ended, and all
    /// servers have the same state. Returns how long that took, in milliseconds.
    ///
    /// # Errors
    /// [`Broken`] when a checker says so, or when it is not so after a minute.
    pub fn finish(&mut self) -> Result<u64, Broken> {
        self.heal();
        let began_us = self.world.now_us;
        for server in 0..self.world.servers {
            self.set_entry_cost(server, 0);
            self.slow_disk(server, 0);
        }
        loop {
            let missing = self.unfinished();
            let took_ms = (self.world.now_us - began_us) / 1_000;
            match missing {
                None => break,
                Some(what) if took_ms >= RECOVERY_MS => {
                    return Err(Broken { promise: "recovers", what: format!("after a minute: {what}") });
                }
                Some(_) => self.run_ms(50)?,
            }
        }
        self.world.tell_the_end();
        self.world.broken.clone().map_or(Ok((self.world.now_us - began_us) / 1_000), Err)
    }

    /// What is still to come until every client has its answers, all that was accepted has ended, and all servers have the same state;
    /// none when that is so.
    pub fn unfinished(&self) -> Option<String> {
        for client in 0..self.clients {
            let node = self.world.nodes.get(self.client(client));
            if let Some(Process::Load(load)) = node.map(|node| &node.process)
                && !load.is_idle(self.world.now_us)
            {
                return Some(format!("client {client} waits for answers"));
            }
        }
        self.world.missing()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_same_calls_give_the_same_run_and_another_seed_another() {
        let run = |seed: u64| {
            let mut scenario =
                Scenario::start(&ScenarioOptions::new(seed, links(1_000, 20_000, 50_000))).unwrap();
            let (per_second, lasts_ms, again_ms, patience_ms) = (40, 1_000, 100, 20_000);
            let attempt_us = 5_000;
            let load = LoadOptions { per_second, lasts_ms, again_ms, patience_ms, attempt_us, obeys: false };
            scenario.load(0, load);
            scenario.cut(&[0], &[1]);
            scenario.run_ms(1_000).unwrap();
            scenario.finish().unwrap();
            scenario.trace_hash()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
