//! The blows of the storm, its end, and the look whether the cluster has recovered.

use std::sync::Arc;

use bytes::Bytes;
use grey_core::Resources;
use grey_proof::Digest;
use grey_replica::{HardState, LogReader};
use grey_store::{RecordKey, RecordKind, Storage, StorageOptions, StoreError};

use crate::disk::{SimulatedDisk, SyncFault};
use crate::fact::Fact;
use crate::faults::Fault;
use crate::network::NodeIndex;
use crate::random::Stream;
use crate::world::{Event, Input, Node, Process, World};

/// How long after the storm everything must be done, in microseconds.
pub const RECOVERY_US: u64 = 60_000_000;
/// How much longer a storm is for a class of fault that has yet to fire, in microseconds, and how often at most.
const EXTENSION_US: u64 = 4_000_000;
const MOST_EXTENSIONS: u32 = 9;
/// How much longer it is at most.
pub const LONGEST_EXTENSION_US: u64 = EXTENSION_US * MOST_EXTENSIONS as u64;
/// How often it is looked whether it is, in microseconds.
const LOOK_US: u64 = 100_000;

impl World {
    fn nodes_of(&self, from: usize, count: usize) -> Vec<NodeIndex> {
        (from..from + count).collect()
    }

    fn server_indexes(&self) -> Vec<NodeIndex> {
        self.nodes_of(0, self.servers)
    }

    fn worker_indexes(&self) -> Vec<NodeIndex> {
        self.nodes_of(self.servers, self.workers)
    }

    fn clients(&self) -> Vec<NodeIndex> {
        let first = self.servers + self.workers;
        (first..self.nodes.len()).collect()
    }

    /// Whether a process runs on a node.
    pub fn is_up(&self, index: NodeIndex) -> bool {
        self.nodes.get(index).is_some_and(|node| !matches!(node.process, Process::Down))
    }

    fn up(&self, among: Vec<NodeIndex>) -> Vec<NodeIndex> {
        among.into_iter().filter(|index| self.is_up(*index)).collect()
    }

    /// The server that leads in the highest term.
    pub fn leader(&self) -> Option<NodeIndex> {
        let leads = |index: &NodeIndex| {
            let server = self.nodes.get(*index).and_then(Node::server)?;
            server.replica().leads().then(|| (server.replica().term(), *index))
        };
        self.server_indexes().iter().filter_map(leads).max().map(|(_, index)| index)
    }

    /// One fault of the plan.
    pub fn blow(&mut self, position: usize) {
        let Some(blow) = self.plan.blows.get(position).cloned() else { return };
        if self.calm || self.skipped_blows.contains(&blow.number) {
            return;
        }
        if blow.fault == Fault::Replace && self.is_changing() {
            return self.queue.push(self.now_us + 500_000, Event::Blow(position));
        }
        let mut chance = Stream::new(self.seed, 10_000_000 + blow.number);
        self.trace.fold(&[self.now_us, 20, blow.number, blow.fault as u64]);
        self.trace.say(self.now_us, || format!("blow {}: {}", blow.number, blow.fault));
        let fired = match blow.fault {
            Fault::Clog
            | Fault::Partition
            | Fault::OneWay
            | Fault::Bridge
            | Fault::Flap
            | Fault::Congestion => self.strike_network(blow.fault, &mut chance),
            Fault::LostUnsynced | Fault::Torn | Fault::Corrupt | Fault::Misdirected | Fault::NoSpace => {
                self.strike_disk(blow.fault, &mut chance)
            }
            Fault::SyncError | Fault::SlowDisk => self.strike_disk(blow.fault, &mut chance),
            Fault::WorkerCrash | Fault::WorkerChange | Fault::ZombieWorker | Fault::BrokenExecutor => {
                self.strike_worker(blow.fault, &mut chance)
            }
            Fault::WorkerRestart => {
                // Counted when something is taken over.
                self.restart_worker(&mut chance);
                false
            }
            Fault::TenantChange | Fault::Cordon | Fault::WorkerLeave => {
                // Counted when the state says so.
                self.order(blow.fault, &mut chance);
                false
            }
            Fault::Upgrade | Fault::QuotaChange => {
                // Counted when it is in force.
                self.change(blow.fault, &mut chance);
                false
            }
            Fault::Replace => {
                // Counted when it has come about.
                self.replace(&mut chance);
                false
            }
            _ => self.strike_process(blow.fault, &mut chance),
        };
        if fired {
            self.counters.count(blow.fault);
        }
    }

    fn strike_network(&mut self, fault: Fault, chance: &mut Stream) -> bool {
        let until_us = self.now_us + chance.between(300_000, 6_000_000);
        let all = self.nodes.len();
        let mut servers = self.server_indexes();
        chance.shuffle(&mut servers);
        let rest: Vec<NodeIndex> = (self.servers..all).collect();
        let size = usize::try_from(chance.between(1, (self.servers as u64 / 2).max(1))).unwrap_or(1);
        match fault {
            Fault::Partition => {
                let (few, many) = servers.split_at(size);
                let (mut few, mut many) = (few.to_vec(), many.to_vec());
                for node in rest {
                    if chance.chance(500_000) { few.push(node) } else { many.push(node) }
                }
                self.network.separate(&few, &many, until_us);
            }
            Fault::Bridge => {
                let Some((bridge, others)) = servers.split_first() else { return false };
                let (few, many) = others.split_at(size.min(others.len()));
                self.trace.fold(&[*bridge as u64]);
                self.network.separate(few, many, until_us);
            }
            Fault::OneWay => {
                let victim = servers.first().copied().unwrap_or(0);
                let hears = chance.chance(500_000);
                for other in (0..all).filter(|other| *other != victim) {
                    if hears {
                        self.network.cut(victim, other, until_us)
                    } else {
                        self.network.cut(other, victim, until_us)
                    }
                }
            }
            _ => {
                let victim = chance.index(self.servers + self.workers);
                let half_us = chance.between(50_000, 600_000);
                let rate = chance.between(2, 50);
                for other in (0..all).filter(|other| *other != victim) {
                    for (from, to) in [(victim, other), (other, victim)] {
                        match fault {
                            Fault::Clog => self.network.clog(from, to, until_us),
                            Fault::Flap => self.network.flap(from, to, until_us, half_us),
                            _ => self.network.congest(from, to, until_us, rate),
                        }
                    }
                }
                // Flapping counts what it drops.
                return fault != Fault::Flap;
            }
        }
        true
    }

    fn strike_disk(&mut self, fault: Fault, chance: &mut Stream) -> bool {
        let now_us = self.now_us;
        let mut victims = self.up(self.server_indexes());
        if matches!(fault, Fault::LostUnsynced | Fault::Torn | Fault::SyncError | Fault::SlowDisk) {
            let mut workers = self.up(self.worker_indexes());
            chance.shuffle(&mut workers);
            victims.extend(workers.into_iter().take(2));
        }
        let Some(victim) = chance.pick(&victims).copied() else { return false };
        let may_lose = self.may_lose();
        let Some(node) = self.nodes.get_mut(victim) else { return false };
        match fault {
            // These count where they show.
            Fault::LostUnsynced => node.doomed = Some(false),
            Fault::Torn => node.doomed = Some(true),
            Fault::SyncError => {
                node.disk.fail_sync(u32::try_from(chance.below(2)).unwrap_or(0), SyncFault::Error);
            }
            Fault::NoSpace => {
                node.disk.set_full(true);
                let at_us = now_us + chance.between(500_000, 5_000_000);
                self.queue.push(at_us, Event::Room { node: victim });
            }
            Fault::SlowDisk => {
                node.slow_disk_until_us = now_us + chance.between(500_000, 5_000_000);
                return true;
            }
            Fault::Misdirected if may_lose && !node.at_risk => {
                node.at_risk = true;
                node.disk.misdirect(chance.next());
                let at_us = now_us + chance.between(100_000, 2_000_000);
                self.queue.push(at_us, Event::Misdirected { node: victim });
            }
            Fault::Corrupt if may_lose && !node.at_risk => {
                self.kill(victim);
                let Some(node) = self.nodes.get(victim) else { return false };
                let whole = node.disk.copy();
                let damaged = node.disk.copy();
                let Some((file, offset)) = damaged.corrupt(chance) else { return false };
                let name = self.name(victim);
                self.trace.say(now_us, || format!("{name}: {file} is damaged at byte {offset}"));
                self.comes_back_damaged(victim, &whole, damaged, chance);
                return true;
            }
            _ => {}
        }
        false
    }

    /// A server whose write landed elsewhere stops; what lies on its medium is not what was meant.
    pub fn after_misdirection(&mut self, index: NodeIndex) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        // What did not happen so far is not to happen later, unobserved.
        node.disk.spare();
        if node.disk.misdirected() == 0 {
            node.at_risk = false;
            return;
        }
        if !node.at_risk || matches!(node.process, Process::Down) {
            return;
        }
        node.at_risk = false;
        let (whole, damaged) = (node.disk.after_kill(), node.disk.as_it_lies());
        let mut chance = Stream::new(self.seed, 20_000_000 + self.now_us);
        self.kill(index);
        self.counters.count(Fault::Misdirected);
        self.comes_back_damaged(index, &whole, damaged, &mut chance);
    }

    /// A damaged disk is named, or reads as if it were whole, or lacks what a power cut could have taken; never anything
    /// else. Unless it reads as whole, the server counts as lost.
    fn comes_back_damaged(
        &mut self,
        index: NodeIndex,
        whole: &SimulatedDisk,
        damaged: SimulatedDisk,
        chance: &mut Stream,
    ) {
        let now_us = self.now_us;
        let name = self.name(index);
        damaged.reset();
        match (contents(&whole.copy()), contents(&damaged.copy())) {
            (Err(error), _) => {
                self.break_promise("undamaged-starts", format!("{name} does not start: {error}"));
            }
            (
                Ok(_),
                Err(
                    error @ (StoreError::Damaged { .. } | StoreError::Version { .. } | StoreError::Io { .. }),
                ),
            ) => {
                self.trace.say(now_us, || format!("{name}: {error}"));
                self.lose(index);
            }
            (Ok(_), Err(error)) => {
                self.break_promise("damage-is-named", format!("{name}: damage shows as: {error}"));
            }
            (Ok(whole), Ok(found)) if whole == found => {
                if let Some(node) = self.nodes.get_mut(index) {
                    node.disk = damaged;
                }
                let at_us = now_us + chance.between(50_000, 1_000_000);
                self.queue.push(at_us, Event::Start { node: index });
            }
            (Ok(whole), Ok(found)) => {
                // The tree's hashes check one another: a path that does not lead to the log's root is refused.
                let only_tree = found.tree != whole.tree && found.equal_but_for_the_tree(&whole);
                if only_tree || found.is_older_than(&whole) {
                    self.trace.say(now_us, || format!("{name}: damage that cannot be told from a power cut"));
                    self.lose(index);
                } else {
                    self.break_promise("damage-is-named", format!("{name}: damage was passed over"));
                }
            }
        }
    }

    fn strike_worker(&mut self, fault: Fault, chance: &mut Stream) -> bool {
        let now_us = self.now_us;
        let workers = self.up(self.worker_indexes());
        let Some(victim) = chance.pick(&workers).copied() else { return false };
        match fault {
            Fault::ZombieWorker => {
                let until_us = now_us + chance.between(4_000_000, 12_000_000);
                if chance.chance(500_000) {
                    self.pause(victim, until_us);
                } else {
                    let servers = self.server_indexes();
                    self.network.separate(&[victim], &servers, until_us);
                }
            }
            Fault::BrokenExecutor => {
                self.break_executor(victim, now_us + chance.between(1_000_000, 15_000_000))
            }
            _ => {
                self.kill(victim);
                let at_us = now_us + chance.between(50_000, 4_000_000);
                self.queue.push(at_us, Event::Start { node: victim });
                let identity = self.identities.get_mut(victim - self.servers);
                if let (Fault::WorkerChange, Some(identity)) = (fault, identity) {
                    identity.capacity = Resources {
                        cpu_millicores: 1_000 * chance.between(2, 8),
                        memory_bytes: 1 << 30,
                        disk_bytes: 0,
                    };
                    identity.parallel = u32::try_from(chance.between(1, 6)).unwrap_or(1);
                }
            }
        }
        true
    }

    /// The process of a worker ends and begins again; what it runs goes on, for the rest of the lease.
    fn restart_worker(&mut self, chance: &mut Stream) {
        let runs = |index: &NodeIndex| {
            let process = self.nodes.get(*index).map(|node| &node.process);
            matches!(process, Some(Process::Worker(worker)) if worker.running() > 0)
        };
        let busy: Vec<NodeIndex> = self.worker_indexes().into_iter().filter(runs).collect();
        let Some(victim) = chance.pick(&busy).copied() else { return };
        self.kill_worker_alone(victim);
        let at_us = self.now_us + chance.between(20_000, 4_000_000);
        self.queue.push(at_us, Event::Start { node: victim });
    }

    /// Until then the executor of a worker fails whatever it is given, also after a restart.
    pub fn break_executor(&mut self, worker: NodeIndex, until_us: u64) {
        let identity = worker.checked_sub(self.servers).and_then(|number| self.identities.get_mut(number));
        if let Some(identity) = identity {
            identity.broken_until_us = until_us;
        }
        if let Some(Process::Worker(worker)) = self.nodes.get_mut(worker).map(|node| &mut node.process) {
            worker.broken_until_us = until_us;
        }
    }

    fn strike_process(&mut self, fault: Fault, chance: &mut Stream) -> bool {
        let now_us = self.now_us;
        let servers = self.up(self.server_indexes());
        let Some(server) = chance.pick(&servers).copied() else { return false };
        match fault {
            Fault::Crash => {
                self.kill(server);
                let at_us = now_us + chance.between(20_000, 5_000_000);
                self.queue.push(at_us, Event::Start { node: server });
            }
            Fault::Wipe => {
                let at_risk = self.nodes.get(server).is_some_and(|node| node.at_risk);
                if at_risk || !self.may_lose() {
                    return false;
                }
                self.lose(server);
            }
            Fault::ZombieLeader => {
                let Some(leader) = self.leader() else { return false };
                let until_us = now_us + chance.between(1_000_000, 5_000_000);
                if chance.chance(500_000) {
                    self.pause(leader, until_us);
                } else {
                    let others: Vec<NodeIndex> =
                        self.server_indexes().into_iter().filter(|other| *other != leader).collect();
                    self.network.separate(&[leader], &others, until_us);
                }
            }
            Fault::Pause => {
                let victim = chance.index(self.servers + self.workers);
                self.pause(victim, now_us + chance.between(50_000, 3_000_000));
            }
            Fault::SlowNode => {
                let victim = chance.index(self.servers + self.workers);
                let slow = (now_us + chance.between(500_000, 5_000_000), chance.between(500, 20_000));
                self.nodes.get_mut(victim).into_iter().for_each(|node| node.slow = slow);
            }
            Fault::ClockJump => {
                let victim = chance.index(self.nodes.len());
                let to_ms = chance.below(1_000_000_000);
                if let Some(node) = self.nodes.get_mut(victim) {
                    node.wall_offset_ms = to_ms;
                    if let Process::Client(client) = &mut node.process {
                        client.set_wall_offset(to_ms);
                    }
                }
            }
            Fault::LateTick => {
                // Counted with each tick that is late.
                let until_us = now_us + chance.between(500_000, 5_000_000);
                self.nodes.get_mut(server).into_iter().for_each(|node| node.late_until_us = until_us);
                return false;
            }
            Fault::WholeState => {
                // Counted when it takes one over.
                let (leader, all) = (self.leader(), self.server_indexes());
                let followers: Vec<NodeIndex> =
                    servers.into_iter().filter(|server| Some(*server) != leader).collect();
                let Some(victim) = chance.pick(&followers).copied() else { return false };
                let others: Vec<NodeIndex> = all.into_iter().filter(|other| *other != victim).collect();
                self.network.separate(&[victim], &others, now_us + chance.between(4_000_000, 10_000_000));
                return false;
            }
            Fault::Burst => {
                for index in self.clients() {
                    let operations = chance.between(1, 4);
                    if let Some(Process::Client(client)) =
                        self.nodes.get_mut(index).map(|node| &mut node.process)
                    {
                        client.hurry(operations);
                    }
                    self.later(now_us, index, Input::Next);
                }
            }
            _ => return false,
        }
        true
    }

    /// A node stands still until then.
    pub fn pause(&mut self, index: NodeIndex, until_us: u64) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.paused_until_us = node.paused_until_us.max(until_us);
        }
        let identity = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        if let Some(worker) = identity.map(|identity| identity.node) {
            self.tell(&Fact::Frozen { worker, until_us });
        }
    }

    /// The storm is over, unless a class of fault that should have fired has not: then it goes on for a while, and strikes again.
    pub fn end_storm(&mut self) {
        let now_us = self.now_us;
        let may_lose = self.may_lose();
        let silent = self.counters.silent(&self.plan.faults).into_iter().filter(|fault| match fault {
            // For these the cluster has lost enough.
            Fault::Corrupt | Fault::Misdirected | Fault::Wipe => may_lose,
            _ => true,
        });
        let mut silent: Vec<Fault> = silent.collect();
        let waits = silent.contains(&Fault::Upgrade) || silent.contains(&Fault::QuotaChange);
        if waits && self.plan.has(Fault::Replace) && !silent.contains(&Fault::Replace) {
            // A lost server holds them up until another one has entered in its place.
            silent.push(Fault::Replace);
        }
        if silent.is_empty() || self.extensions >= MOST_EXTENSIONS {
            return self.heal();
        }
        self.extensions += 1;
        self.trace.say(now_us, || format!("the storm goes on for {silent:?}"));
        self.plan.due = silent.iter().copied().collect();
        for index in self.clients() {
            self.later(now_us, index, Input::Next);
        }
        for (place, fault) in silent.into_iter().enumerate() {
            let at_us = now_us + 200_000 * place as u64 % EXTENSION_US;
            if let Some(position) = self.plan.add_blow(fault, self.extensions, at_us) {
                self.queue.push(at_us, Event::Blow(position));
            }
        }
        self.queue.push(now_us + EXTENSION_US, Event::Heal);
    }

    /// The storm is over: links and disks are whole, a random majority of servers stays up, every worker comes back.
    pub fn heal(&mut self) {
        let now_us = self.now_us;
        self.calm = true;
        self.plan.due.clear();
        self.healed_us = now_us;
        self.network.heal();
        for worker in self.worker_indexes() {
            self.break_executor(worker, 0);
        }
        for index in self.server_indexes() {
            if self.nodes.get(index).is_some_and(|node| node.at_risk && node.disk.misdirected() > 0) {
                self.lose(index);
            }
        }
        let members = self.members();
        let majority = members.len() / 2 + 1;
        let mut sound: Vec<NodeIndex> = members
            .into_iter()
            .filter(|index| self.nodes.get(*index).is_some_and(|node| !node.lost))
            .collect();
        self.chance.process.shuffle(&mut sound);
        let spread = sound.len().saturating_sub(majority) as u64;
        let more = usize::try_from(self.chance.process.between(0, spread)).unwrap_or(0);
        // While the membership changes all are needed: which of them vote is open.
        let kept = if self.is_changing() { sound.len() } else { majority + more };
        let leaving: Vec<NodeIndex> = sound.iter().skip(kept).copied().collect();
        for index in leaving {
            self.kill(index);
            self.nodes.get_mut(index).into_iter().for_each(|node| node.stays_down = true);
        }
        for index in 0..self.nodes.len() {
            let Some(node) = self.nodes.get_mut(index) else { continue };
            node.disk.set_full(false);
            node.disk.spare();
            (node.doomed, node.at_risk) = (None, false);
            (node.slow, node.late_until_us, node.slow_disk_until_us) = ((0, 0), 0, 0);
            if node.paused_until_us > now_us {
                node.paused_until_us = now_us;
                self.queue.push(now_us, Event::Resume { node: index });
            }
            let down = matches!(node.process, Process::Down) && !node.lost && !node.stays_down;
            if down {
                let at_us = now_us + self.chance.process.below(500_000);
                self.queue.push(at_us, Event::Start { node: index });
            }
        }
        for index in self.clients() {
            self.later(now_us + 1, index, Input::Next);
        }
        self.trace.fold(&[now_us, 30, kept as u64]);
        self.trace.say(now_us, || format!("the storm is over; {kept} servers stay"));
        self.queue.push(now_us + LOOK_US, Event::Look);
    }

    /// Whether everybody who stayed agrees and all accepted work is done.
    pub fn look(&mut self) {
        match self.missing() {
            None => {
                self.finished = true;
                self.tell_the_end();
            }
            Some(what) if self.now_us >= self.healed_us + RECOVERY_US => {
                self.break_promise("recovers", format!("a minute after the storm: {what}"));
            }
            Some(_) => self.queue.push(self.now_us + LOOK_US, Event::Look),
        }
    }

    /// What is still to come until all agree and nothing is under way; none when that is so.
    pub fn missing(&self) -> Option<String> {
        let Some(leader) = self.leader() else { return Some("nobody leads".to_owned()) };
        if self.is_changing() {
            return Some("the membership is not what was agreed on".to_owned());
        }
        if let Some(what) = self.open_orders(leader).or_else(|| self.open_quota(leader)) {
            return Some(what);
        }
        for index in self.clients() {
            if let Some(Process::Client(client)) = self.nodes.get(index).map(|node| &node.process)
                && !client.is_idle()
            {
                return Some(format!("{} has no answer: {:?}", self.name(index), client.open));
            }
        }
        let state = self.nodes.get(leader).and_then(Node::server)?.replica().state();
        if let Some((job, row)) = state.jobs().iter().next() {
            let live: Vec<String> = state
                .live()
                .range(row.info.tasks.first..row.info.tasks.end())
                .take(3)
                .map(|(task, live)| format!("{task}: {live:?}"))
                .collect();
            let counts = row.counts;
            return Some(format!("{job} has not ended: {counts:?}, {} stopping; {live:?}", row.stopping));
        }
        for index in self.server_indexes() {
            let Some(node) = self.nodes.get(index) else { continue };
            if node.lost || node.stays_down {
                continue;
            }
            let Some(server) = node.server() else { return Some(format!("{} is down", self.name(index))) };
            if server.replica().state().applied_index() != state.applied_index() {
                let (at, of) = (server.replica().state().applied_index(), state.applied_index());
                return Some(format!("{} has applied {at} of {of}", self.name(index)));
            }
            if server.is_writing() {
                return Some(format!("{} still writes", self.name(index)));
            }
        }
        None
    }

    /// Tells the checkers what every server has in the end.
    pub fn tell_the_end(&mut self) {
        for index in self.server_indexes() {
            let Some(server) = self.nodes.get(index).and_then(Node::server) else { continue };
            match server.history() {
                Ok(history) => {
                    if self.broken.is_none() {
                        let state = server.replica().state();
                        let fact = Fact::Final { server: index as u64 + 1, state, history: &history };
                        self.broken = self.checkers.observe(self.now_us, &fact).err();
                    }
                }
                Err(error) => {
                    let name = self.name(index);
                    self.break_promise("storage-serves", format!("{name}: history: {error}"));
                }
            }
        }
    }
}

/// Everything that a server would read from a disk at its start.
#[derive(PartialEq)]
struct Contents {
    hard_state: HardState,
    checkpoint_index: u64,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    log: Vec<(u64, u64, Bytes)>,
    history: Vec<(RecordKey, Vec<u8>)>,
    tree: Vec<Option<Digest>>,
}

impl Contents {
    fn equal_but_for_the_tree(&self, other: &Contents) -> bool {
        self.hard_state == other.hard_state
            && self.checkpoint_index == other.checkpoint_index
            && self.rows == other.rows
            && self.log == other.log
            && self.history == other.history
    }

    /// Whether this is what a power cut before the last write could have left of the other.
    fn is_older_than(&self, other: &Contents) -> bool {
        // The other may have dropped the first of them meanwhile, behind a checkpoint.
        let dropped = other.log.first().map_or(u64::MAX, |(first, ..)| *first);
        let mine = self.log.iter().skip_while(|(index, ..)| *index < dropped);
        let differ = mine.zip(&other.log).skip_while(|(mine, theirs)| mine == theirs);
        // The last write may have replaced entries, so what differs must lie at the end.
        self.checkpoint_index <= other.checkpoint_index
            && other.history.starts_with(&self.history)
            && self.hard_state.term <= other.hard_state.term
            && differ.count() <= MOST_IN_ONE_WRITE
    }
}

/// Entries that one write may have added or replaced.
const MOST_IN_ONE_WRITE: usize = 64;

fn contents(disk: &SimulatedDisk) -> Result<Contents, StoreError> {
    let options = StorageOptions { segment_bytes: crate::server::SEGMENT_BYTES };
    let (storage, recovered) = Storage::open(Arc::new(disk.clone()), &options)?;
    let reader = storage.log.reader();
    let (mut log, mut next) = (Vec::new(), recovered.truncated.0 + 1);
    while next <= recovered.last_index {
        let entries = reader.entries(next, recovered.last_index + 1, u64::MAX).map_err(|error| {
            StoreError::Damaged {
                file: "log.redb".to_owned(),
                place: format!("entry {next}"),
                what: error.to_string(),
            }
        })?;
        for entry in entries {
            next = entry.index + 1;
            log.push((entry.index, entry.term, entry.data));
        }
    }
    let first = RecordKey { kind: RecordKind(0), key: 0, subkey: 0 };
    let end = RecordKey { kind: RecordKind(u8::MAX), key: u64::MAX, subkey: u32::MAX };
    let history = storage.side.history.reader().scan(first, end, usize::MAX, false)?;
    let hash = |at: u64| match storage.side.tree.read(at) {
        // It came with a whole state.
        Err(StoreError::Absent { .. }) => Ok(None),
        read => read.map(Some),
    };
    let tree: Result<Vec<Option<Digest>>, StoreError> = (0..storage.side.tree.hashes()).map(hash).collect();
    Ok(Contents {
        hard_state: recovered.hard_state,
        checkpoint_index: recovered.checkpoint_index,
        rows: recovered.rows,
        log,
        history,
        tree: tree?,
    })
}
