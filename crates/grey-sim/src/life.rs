//! How processes end and begin again, and what they find on their disks.

use grey_store::StoreError;

use crate::disk::SyncFault;
use crate::fact::Fact;
use crate::faults::Fault;
use crate::network::NodeIndex;
use crate::server::{Ended, Server, StartOptions};
use crate::shim::Shim;
use crate::worker::Worker;
use crate::workload::WALL_MS;
use crate::world::{Event, Input, Node, Process, World};

impl World {
    /// Starts whatever belongs on a node.
    pub fn start(&mut self, index: NodeIndex) {
        let Some(node) = self.nodes.get(index) else { return };
        if node.at_risk && node.disk.misdirected() > 0 {
            // It ended by another fault before its medium was looked at: the operator does not trust it.
            self.counters.count(Fault::Misdirected);
            self.lose(index);
            return;
        }
        if node.lost || node.stays_down || !matches!(node.process, Process::Down) {
            return;
        }
        if index < self.servers {
            self.start_server(index);
        } else {
            self.start_worker(index);
        }
    }

    fn start_server(&mut self, index: NodeIndex) {
        let options = StartOptions {
            id: index as u64 + 1,
            servers: self.servers as u64,
            founders: self.founders as u64,
            election_seed: self.chance.election.next(),
            checkpoint_bytes: self.plan.checkpoint_bytes,
            version: self.version(index),
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            behaviour: self.behaviour.clone(),
            paced: self.nodes.get(index).is_some_and(|node| node.entry_us > 0),
            keys: self.keys.clone(),
            nodes: self.by_node.clone(),
        };
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        match Server::start(&node.disk, options) {
            Ok(server) => {
                let state = server.replica().state();
                let applied = server.restored_index;
                // What was known to be committed may have been applied already.
                let hash = (state.applied_index() == applied).then(|| state.hash());
                let reports = server.restored_reports;
                node.begin_life(now_us, Process::Server(Box::new(server)));
                self.trace.fold(&[now_us, 10, index as u64, applied]);
                let name = self.name(index);
                self.trace.say(now_us, || format!("{name} starts from index {applied}"));
                self.tell(&Fact::Restored { server: index as u64 + 1, index: applied, reports, hash });
                let first_us = now_us + 1 + self.chance.clock.below(50_000);
                self.later(first_us, index, Input::Timer);
            }
            Err(Ended::Store(StoreError::Full { .. })) => {
                self.counters.count(Fault::NoSpace);
                self.queue.push(now_us + 500_000, Event::Start { node: index });
            }
            Err(ended) => {
                let name = self.name(index);
                self.break_promise("undamaged-starts", format!("{name} does not start: {ended:?}"));
            }
        }
    }

    /// A server took over a whole state.
    pub fn installed(&mut self, index: NodeIndex, at: u64) {
        let Some(server) = self.nodes.get(index).and_then(Node::server) else { return };
        let state = server.replica().state();
        let hash = (state.applied_index() == at).then(|| state.hash());
        let reports = state.meta().log.size();
        self.counters.count(Fault::WholeState);
        self.trace.fold(&[self.now_us, 14, index as u64, at]);
        let name = self.name(index);
        self.trace.say(self.now_us, || format!("{name} takes over the whole state at index {at}"));
        self.tell(&Fact::Installed { server: index as u64 + 1, index: at, reports, hash });
    }

    fn start_worker(&mut self, index: NodeIndex) {
        let (now_us, servers) = (self.now_us, self.servers as u64);
        if let Some(life) = self.nodes.get(index).map(|node| node.life) {
            self.outlived(index, life);
        }
        let Some(identity) = self.identities.get_mut(index - self.servers) else { return };
        identity.incarnation += 1;
        #[cfg(feature = "mutants")]
        {
            identity.mutant = self.mutant;
        }
        let Some(node) = self.nodes.get_mut(index) else { return };
        let wall_ms = WALL_MS + node.wall_offset_ms + now_us / 1_000;
        let mut shim = identity.shim.take().unwrap_or_default();
        shim.rebase(node.clock.local_us(now_us));
        match Worker::start(&node.disk, identity, shim, servers, wall_ms) {
            Ok(worker) => {
                node.begin_life(now_us, Process::Worker(Box::new(worker)));
                self.trace.fold(&[now_us, 11, index as u64]);
                let name = self.name(index);
                self.trace.say(now_us, || format!("{name} starts"));
                self.later(now_us, index, Input::Timer);
            }
            Err(reason) => {
                let name = self.name(index);
                self.break_promise("undamaged-starts", format!("{name} does not start: {reason}"));
            }
        }
    }

    /// The process of a worker is killed, and nothing else: what it runs goes on where it has a lease.
    pub fn kill_worker_alone(&mut self, index: NodeIndex) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        let local_us = node.clock.local_us(now_us);
        let Process::Worker(worker) = &mut node.process else { return };
        let Some(mut shim) = worker.leave(local_us) else { return self.kill(index) };
        shim.rebase(local_us);
        if let Some(identity) = self.identities.get_mut(index - self.servers) {
            identity.shim = Some(shim);
        }
        self.end_process(index);
        self.trace.fold(&[now_us, 15, index as u64]);
        let name = self.name(index);
        self.trace.say(now_us, || format!("{name} is killed, and what it runs goes on"));
        self.await_outlived(index);
    }

    /// What goes on without its worker is looked at when the next of it ends.
    fn await_outlived(&mut self, index: NodeIndex) {
        let shim = self.identities.get(index - self.servers).and_then(|identity| identity.shim.as_ref());
        let Some(local_us) = shim.and_then(Shim::next_end_us) else { return };
        let Some(node) = self.nodes.get(index) else { return };
        let at_us = node.clock.real_us(local_us).max(self.now_us + 1);
        self.queue.push(at_us, Event::Outlived { node: index, life: node.life });
    }

    /// Something may have ended of what goes on without its worker.
    pub fn outlived(&mut self, index: NodeIndex, life: u32) {
        let Some(node) = self.nodes.get(index).filter(|node| node.life == life) else { return };
        let local_us = node.clock.local_us(self.now_us);
        let identity = self.identities.get_mut(index - self.servers);
        let Some(shim) = identity.and_then(|identity| identity.shim.as_mut()) else { return };
        for (attempt, outcome) in shim.elapse_to(local_us) {
            self.attempt_ended(index, attempt, Some(outcome));
        }
        self.await_outlived(index);
    }

    /// A process is killed; the system's cache stays.
    pub fn kill(&mut self, index: NodeIndex) {
        let Some(node) = self.nodes.get(index) else { return };
        if matches!(node.process, Process::Down | Process::Client(_) | Process::Load(_)) {
            return;
        }
        self.end_process(index);
        self.note_end(index, "is killed");
    }

    fn end_process(&mut self, index: NodeIndex) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        let survivor = node.disk.after_kill();
        // What the process would still do when it is dropped, it does on a disk that nobody reads any more.
        let old = std::mem::replace(&mut node.disk, survivor);
        old.die();
        node.begin_life(now_us, Process::Down);
    }

    /// The power goes, in the middle of a write if one is under way.
    pub fn power_cut(&mut self, index: NodeIndex, life: u32, torn: bool) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.life != life || matches!(node.process, Process::Down) {
            return;
        }
        node.disk.fail_sync(u32::from(self.chance.disk.chance(300_000)), SyncFault::PowerOff);
        match &mut node.process {
            Process::Server(server) => server.write_in_vain(),
            Process::Worker(worker) => worker.write_in_vain(),
            Process::Down | Process::Client(_) | Process::Load(_) => {}
        }
        let (survivor, lost, tore) = node.disk.after_power_cut(torn, &mut self.chance.disk);
        let old = std::mem::replace(&mut node.disk, survivor);
        old.die();
        node.begin_life(now_us, Process::Down);
        if lost {
            self.counters.count(Fault::LostUnsynced);
        }
        if tore {
            self.counters.count(Fault::Torn);
        }
        self.note_end(index, "loses its power");
        let down_us = self.chance.process.between(50_000, 4_000_000);
        self.queue.push(now_us + down_us, Event::Start { node: index });
    }

    fn note_end(&mut self, index: NodeIndex, how: &str) {
        self.trace.fold(&[self.now_us, 12, index as u64]);
        let name = self.name(index);
        self.trace.say(self.now_us, || format!("{name} {how}"));
        let worker = index.checked_sub(self.servers).and_then(|number| self.identities.get(number));
        if let Some(node) = worker.map(|identity| identity.node) {
            self.tell(&Fact::WorkerDied { worker: node });
        }
    }

    /// A server cannot go on. Where its disk is at fault it starts anew; anything else is a broken promise.
    pub fn server_ended(&mut self, index: NodeIndex, ended: Ended) {
        let name = self.name(index);
        match ended {
            Ended::Store(error @ (StoreError::Io { .. } | StoreError::Full { .. })) => {
                let fault =
                    if matches!(error, StoreError::Full { .. }) { Fault::NoSpace } else { Fault::SyncError };
                self.counters.count(fault);
                self.trace.say(self.now_us, || format!("{name} ends: {error}"));
                // What a failed sync wrote nobody knows, so the process ends as after a power cut.
                let Some(life) = self.nodes.get(index).map(|node| node.life) else { return };
                self.power_cut_quietly(index, life);
            }
            Ended::Store(error) => self.break_promise("storage-serves", format!("{name} ends: {error}")),
            Ended::Replica(reason) => self.break_promise("replica-goes-on", format!("{name} ends: {reason}")),
        }
    }

    fn power_cut_quietly(&mut self, index: NodeIndex, life: u32) {
        let now_us = self.now_us;
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.life != life {
            return;
        }
        let (survivor, ..) = node.disk.after_power_cut(true, &mut self.chance.disk);
        let old = std::mem::replace(&mut node.disk, survivor);
        old.die();
        node.begin_life(now_us, Process::Down);
        self.note_end(index, "ends");
        let down_us = self.chance.process.between(50_000, 2_000_000);
        self.queue.push(now_us + down_us, Event::Start { node: index });
    }

    /// A worker cannot go on: its outbox cannot be written.
    pub fn worker_ended(&mut self, index: NodeIndex, reason: &str) {
        let name = self.name(index);
        self.trace.say(self.now_us, || format!("{name} ends: {reason}"));
        self.counters.count(Fault::SyncError);
        let Some(life) = self.nodes.get(index).map(|node| node.life) else { return };
        self.power_cut_quietly(index, life);
    }

    /// A server's storage is not to be used any more.
    pub fn lose(&mut self, index: NodeIndex) {
        self.kill(index);
        if let Some(node) = self.nodes.get_mut(index) {
            (node.lost, node.at_risk) = (true, false);
            node.disk = crate::disk::SimulatedDisk::default();
        }
        self.trace.fold(&[self.now_us, 13, index as u64]);
        let name = self.name(index);
        self.trace.say(self.now_us, || format!("{name} has lost its storage"));
    }

    /// Whether one more server may lose what it has: a majority always keeps it.
    pub fn may_lose(&self) -> bool {
        let members = self.members();
        let is_lost =
            |index: &&NodeIndex| self.nodes.get(**index).is_some_and(|node| node.lost || node.at_risk);
        // Which majority it would be is open while the membership changes.
        !self.is_changing() && 2 * (members.iter().filter(is_lost).count() + 1) < members.len()
    }
}
