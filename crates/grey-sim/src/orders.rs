//! What an operator wants of tenants and workers in a storm: that a tenant submits nothing for a while, that a worker gets no new work, or
//! leaves and comes back. Whoever leads is asked until its state says so.

use std::collections::BTreeMap;

use grey_core::{Command, CordonNode, NodeRow, NodeStanding, SetTenantSuspended, State, TenantId};
use grey_health::Amount;
use grey_proof::Digest;
use grey_replica::{LinkOptions, Peer};

use crate::faults::Fault;
use crate::network::NodeIndex;
use crate::random::Stream;
use crate::server::Ended;
use crate::workload::TENANTS;
use crate::world::{Event, Node, Process, World};

/// How often it is looked what is to be done, in microseconds.
const LOOK_US: u64 = 100_000;
/// The most commands that are proposed at once.
const AT_ONCE: usize = 8;

/// Something that is to be so for a while, from when it has come about.
#[derive(Debug)]
struct Order {
    for_us: u64,
    since_us: Option<u64>,
}

impl Order {
    /// How a worker is shut out: half of them are blocked, as one is that was broken into.
    fn standing(&self) -> NodeStanding {
        if self.for_us.is_multiple_of(2) { NodeStanding::Blocked } else { NodeStanding::Leaving }
    }

    fn is_over(&self, now_us: u64) -> bool {
        self.since_us.is_some_and(|since_us| now_us >= since_us + self.for_us)
    }
}

/// All that is wanted.
#[derive(Debug, Default)]
pub struct Orders {
    suspended: BTreeMap<TenantId, Order>,
    cordoned: BTreeMap<NodeIndex, Order>,
    leaving: BTreeMap<NodeIndex, Order>,
    looked_us: u64,
}

/// Notes what has come about, and forgets what is over; how often something came about.
fn note<K: Ord + Copy>(
    orders: &mut BTreeMap<K, Order>,
    now_us: u64,
    calm: bool,
    is_so: impl Fn(K) -> bool,
) -> u64 {
    let mut begun = 0;
    for (key, order) in orders.iter_mut() {
        if order.since_us.is_none() && is_so(*key) {
            order.since_us = Some(now_us);
            begun += 1;
        }
    }
    orders.retain(|_, order| !calm && !order.is_over(now_us));
    begun
}

impl World {
    /// Something more is wanted.
    pub fn order(&mut self, fault: Fault, chance: &mut Stream) {
        let order = Order { for_us: chance.between(500_000, 6_000_000), since_us: None };
        let (tenant, draw) = (1 + chance.below(u64::from(TENANTS)), chance.next());
        let workers: Vec<NodeIndex> = (self.servers..self.servers + self.workers).collect();
        let worker = workers.get(draw as usize % workers.len().max(1)).copied();
        match (fault, worker) {
            (Fault::TenantChange, _) => {
                self.orders.suspended.entry(TenantId(u32::try_from(tenant).unwrap_or(1))).or_insert(order);
            }
            (Fault::Cordon, Some(worker)) => drop(self.orders.cordoned.entry(worker).or_insert(order)),
            (_, Some(worker)) => drop(self.orders.leaving.entry(worker).or_insert(order)),
            _ => {}
        }
    }

    /// Whether tenants and workers are this operator's affair, and nobody else's.
    fn gives_orders(&self) -> bool {
        [Fault::TenantChange, Fault::Cordon, Fault::WorkerLeave].iter().any(|fault| self.plan.has(*fault))
    }

    /// Takes the next steps, through the server that leads.
    pub fn carry_out_orders(&mut self, index: NodeIndex) -> Result<(), Ended> {
        let (now_us, calm) = (self.now_us, self.calm);
        if !self.gives_orders() {
            return Ok(());
        }
        if now_us < self.orders.looked_us + LOOK_US || self.leader() != Some(index) {
            return Ok(());
        }
        self.orders.looked_us = now_us;
        let servers = self.servers;
        let names: Vec<Digest> = self.identities.iter().map(|identity| identity.node).collect();
        let Some(Process::Server(server)) = self.nodes.get_mut(index).map(|node| &mut node.process) else {
            return Ok(());
        };
        let state = server.replica().state();
        let row =
            |worker: NodeIndex| names.get(worker.checked_sub(servers)?).and_then(|node| state.node(node));
        let is = |worker: NodeIndex, what: fn(&NodeRow) -> bool| row(worker).is_some_and(what);
        let orders = &mut self.orders;
        for (fault, begun) in [
            (
                Fault::TenantChange,
                note(&mut orders.suspended, now_us, calm, |tenant| is_suspended(state, tenant)),
            ),
            (
                Fault::Cordon,
                note(&mut orders.cordoned, now_us, calm, |worker| is(worker, |row| row.cordoned)),
            ),
            (Fault::WorkerLeave, note(&mut orders.leaving, now_us, calm, |worker| is(worker, is_leaving))),
        ] {
            (0..begun).for_each(|_| self.counters.count(fault));
        }
        let mut commands = Vec::new();
        for tenant in (1..=TENANTS).map(TenantId) {
            let suspended = self.orders.suspended.contains_key(&tenant);
            if state.tenants().get(&tenant).is_some_and(|row| row.suspended != suspended) {
                commands.push(Command::SetTenantSuspended(SetTenantSuspended { tenant, suspended }));
            }
        }
        let (mut ends, mut returns, mut forgotten) = (Vec::new(), Vec::new(), Vec::new());
        for worker in servers..servers + names.len() {
            let Some(row) = row(worker) else {
                if !self.orders.leaving.contains_key(&worker) {
                    forgotten.push(worker);
                }
                continue;
            };
            let cordoned = self.orders.cordoned.contains_key(&worker);
            if row.cordoned != cordoned {
                commands.push(Command::CordonNode(CordonNode { node: row.node, cordoned }));
            }
            let order = self.orders.leaving.get(&worker);
            let standing = order.map_or(NodeStanding::Admitted, Order::standing);
            if row.standing != standing {
                commands
                    .push(Command::SetNodeStanding(grey_core::SetNodeStanding { node: row.node, standing }));
            }
            match order.and_then(|order| Some((order.since_us?, order.for_us))) {
                // What it runs goes on for a part of the time.
                Some((since_us, for_us)) if now_us >= since_us + for_us / 4 => ends.push(worker),
                None if row.standing == NodeStanding::Admitted => returns.push(worker),
                _ => {}
            }
        }
        commands.truncate(AT_ONCE);
        if !commands.is_empty() {
            server.propose(commands)?;
        }
        for worker in forgotten {
            // At the beginning they wait already.
            if self.operator.as_mut().is_some_and(|operator| operator.lets_in_again(worker)) {
                // Who enters anew begins anew.
                self.end_and_return(&[worker], &[]);
            }
        }
        self.end_and_return(&ends, &returns);
        Ok(())
    }

    fn end_and_return(&mut self, ends: &[NodeIndex], returns: &[NodeIndex]) {
        for worker in ends.iter().copied() {
            if self.nodes.get(worker).is_some_and(|node| !node.stays_down) {
                self.kill(worker);
                self.nodes.get_mut(worker).into_iter().for_each(|node| node.stays_down = true);
            }
        }
        for worker in returns.iter().copied() {
            let waits = self.operator.as_ref().is_some_and(|operator| operator.is_waiting(worker));
            if let Some(node) = self.nodes.get_mut(worker).filter(|node| node.stays_down && !waits) {
                node.stays_down = false;
                self.queue.push(self.now_us, Event::Start { node: worker });
            }
        }
    }

    /// What an operator wanted for a while and has not yet taken back.
    pub fn open_orders(&self, leader: NodeIndex) -> Option<String> {
        if !self.gives_orders() {
            return None;
        }
        let state = self.nodes.get(leader).and_then(Node::server)?.replica().state();
        if let Some(tenant) = (1..=TENANTS).map(TenantId).find(|tenant| is_suspended(state, *tenant)) {
            return Some(format!("tenant {tenant} is suspended"));
        }
        let row = state.nodes().find(|row| row.cordoned || is_leaving(row) && row.server.is_none());
        row.map(|row| format!("{} is cordoned or leaving", row.name))
    }

    /// Servers of this run have links, with outboxes so small that they fill.
    pub fn use_links(&mut self) {
        let mut chance = Stream::new(self.seed, 3_020);
        let mut links = LinkOptions { seed: self.seed | 1, ..LinkOptions::default() };
        let (waiting, assigned) = (chance.between(16, 256), chance.between(64, 1_024));
        for (outbox, count) in [(&mut links.servers, waiting), (&mut links.workers, assigned)] {
            outbox.capacity.shared = Amount { count, ..outbox.capacity.shared };
            outbox.most_window = Amount { count: count.min(64), ..outbox.most_window };
        }
        self.behaviour.links = Some(links);
    }

    /// What its connections say to a server of their other ends: that nothing can be written while the link is cut or nothing runs there.
    pub fn look_at_connections(&mut self, index: NodeIndex) {
        let now_us = self.now_us;
        let cut = |from, to| self.network.is_cut(now_us, from, to);
        let others = (0..self.servers + self.workers).filter(|other| *other != index);
        let away = others.filter(|other| cut(index, *other) || cut(*other, index) || !self.is_up(*other));
        let away = away.map(|other| {
            let worker = other.checked_sub(self.servers).and_then(|number| self.identities.get(number));
            worker.map_or(Peer::Server(other as u64 + 1), |identity| Peer::Worker(identity.node))
        });
        let away = away.collect();
        if let Some(Process::Server(server)) = self.nodes.get_mut(index).map(|node| &mut node.process) {
            server.set_all_away(away);
        }
    }
}

fn is_suspended(state: &State, tenant: TenantId) -> bool {
    state.tenants().get(&tenant).is_some_and(|row| row.suspended)
}

fn is_leaving(row: &NodeRow) -> bool {
    row.standing != NodeStanding::Admitted
}
