//! Two versions side by side in a storm: servers begin as the earlier one, are upgraded one after the other, and then what only the new one
//! understands comes into force. Tenants' quotas are that, and change in flight.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    Command, NEWEST_FEATURE_LEVEL, NodeStanding, NodeVersion, OLDEST_FEATURE_LEVEL, Quota, RaiseFeatureLevel,
    RateLimit, SetNodeStanding, SetTenantQuota, TenantId,
};
use grey_proof::Digest;

use crate::faults::Fault;
use crate::network::NodeIndex;
use crate::random::Stream;
use crate::server::Ended;
use crate::workload::TENANTS;
use crate::world::{Event, Node, Process, World};

/// How often it is looked what is to be done, in microseconds.
const LOOK_US: u64 = 100_000;
/// How long a server is away while it is upgraded, in microseconds.
const AWAY_US: u64 = 200_000;

/// What is wanted, and how far it has come about.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Whether servers are being upgraded.
    begun: bool,
    /// Those that run the new version, or will from their next start on.
    upgraded: BTreeSet<NodeIndex>,
    /// Whether what is new has come into force.
    in_force: bool,
    /// Quotas that are wanted for a while: until when, and whether that has come about.
    quotas: BTreeMap<TenantId, (Quota, u64, bool)>,
    looked_us: u64,
}

impl World {
    /// What a server runs.
    pub fn version(&self, index: NodeIndex) -> NodeVersion {
        let newest = NodeVersion::newest("simulated");
        let earlier = self.plan.has(Fault::Upgrade) && !self.upgrade.upgraded.contains(&index);
        let understands = if earlier { OLDEST_FEATURE_LEVEL } else { newest.understands };
        NodeVersion { understands, ..newest }
    }

    /// Whether feature levels are this run's affair.
    pub fn has_levels(&self) -> bool {
        [Fault::Upgrade, Fault::QuotaChange, Fault::BrokenExecutor]
            .into_iter()
            .any(|fault| self.plan.has(fault))
    }

    /// A server that enters from now on runs what servers are upgraded to.
    pub fn enters(&mut self, index: NodeIndex) {
        if self.upgrade.begun {
            self.upgrade.upgraded.insert(index);
        }
    }

    /// Servers are upgraded, or a tenant is to have a quota for a while.
    pub fn change(&mut self, fault: Fault, chance: &mut Stream) {
        if fault == Fault::Upgrade {
            self.upgrade.begun = true;
            return;
        }
        let tenant = TenantId(u32::try_from(1 + chance.below(u64::from(TENANTS))).unwrap_or(1));
        let queued_tasks = chance.chance(500_000).then(|| chance.below(40));
        let rate = chance
            .chance(700_000)
            .then(|| RateLimit { tasks_per_second: chance.between(1, 50), burst: chance.between(1, 100) });
        let until_us = self.now_us + chance.between(1_000_000, 8_000_000);
        let quota = Quota { queued_tasks, rate };
        if quota != Quota::default() {
            self.upgrade.quotas.entry(tenant).or_insert((quota, until_us, false));
        }
    }

    /// Takes the next steps, through the server that leads.
    pub fn carry_out_upgrade(&mut self, index: NodeIndex) -> Result<(), Ended> {
        let (now_us, calm) = (self.now_us, self.calm);
        let (upgrades, levels) = (self.plan.has(Fault::Upgrade), self.has_levels());
        let due = now_us >= self.upgrade.looked_us + LOOK_US;
        if !levels || !due || self.leader() != Some(index) {
            return Ok(());
        }
        self.upgrade.looked_us = now_us;
        let given_up = self.given_up();
        let Some(Process::Server(server)) = self.nodes.get_mut(index).map(|node| &mut node.process) else {
            return Ok(());
        };
        let state = server.replica().state();
        let in_force = state.feature_level();
        if upgrades && in_force == NEWEST_FEATURE_LEVEL && !self.upgrade.in_force {
            self.upgrade.in_force = true;
            self.counters.count(Fault::Upgrade);
        }
        let mut commands = Vec::new();
        if (OLDEST_FEATURE_LEVEL..NEWEST_FEATURE_LEVEL).contains(&in_force) {
            // Too early most of the time: then it must be refused before it is in anybody's log.
            commands.push(Command::RaiseFeatureLevel(RaiseFeatureLevel { level: in_force + 1 }));
        }
        self.upgrade.quotas.retain(|_, (_, until_us, _)| !calm && now_us < *until_us);
        for tenant in (1..=TENANTS).map(TenantId) {
            let present = state.quota(tenant).map(|row| row.quota).unwrap_or_default();
            let wanted = self.upgrade.quotas.get_mut(&tenant);
            let quota = wanted.as_ref().map(|(quota, ..)| *quota).unwrap_or_default();
            if quota != present {
                commands.push(Command::SetTenantQuota(SetTenantQuota {
                    tenant,
                    weight_milli: None,
                    queued_tasks: Some(quota.queued_tasks),
                    rate: Some(quota.rate),
                }));
            } else if let Some((_, _, come_about)) = wanted
                && !std::mem::replace(come_about, true)
            {
                self.counters.count(Fault::QuotaChange);
            }
        }
        let admitted =
            |node: &Digest| state.node(node).is_some_and(|row| row.standing == NodeStanding::Admitted);
        let blocks = given_up.into_iter().filter(|block| admitted(&block.node));
        commands.extend(blocks.map(Command::SetNodeStanding));
        if !commands.is_empty() && state.meta().cluster.is_some() {
            server.propose(commands)?;
        }
        self.upgrade_next();
        Ok(())
    }

    /// Servers that are lost for good are blocked where none enters in their place: what they last said that they run would hold everybody up.
    fn given_up(&self) -> Vec<SetNodeStanding> {
        if self.plan.has(Fault::Replace) {
            return Vec::new();
        }
        let lost = |index: &NodeIndex| self.nodes.get(*index).is_some_and(|node| node.lost);
        let members = self.members().into_iter().filter(lost);
        let blocks = members.map(|index| self.standing(index, NodeStanding::Blocked));
        blocks
            .filter_map(|block| match block {
                Command::SetNodeStanding(block) => Some(block),
                _ => None,
            })
            .collect()
    }

    /// The next server is ended and started as the new version, once all that were upgraded are back.
    fn upgrade_next(&mut self) {
        if !self.upgrade.begun {
            return;
        }
        let is_down = |node: &Node| matches!(node.process, Process::Down) && !node.lost && !node.stays_down;
        let members = self.members();
        let away = members.iter().any(|index| self.nodes.get(*index).is_some_and(is_down));
        let next = members.into_iter().find(|index| {
            let sound = |node: &Node| !node.lost && !node.at_risk && !node.stays_down;
            !self.upgrade.upgraded.contains(index) && self.nodes.get(*index).is_some_and(sound)
        });
        let (Some(next), false) = (next, away) else { return };
        let name = self.name(next);
        self.trace.fold(&[self.now_us, 22, next as u64]);
        self.trace.say(self.now_us, || format!("{name} is upgraded"));
        self.upgrade.upgraded.insert(next);
        self.kill(next);
        self.queue.push(self.now_us + AWAY_US, Event::Start { node: next });
    }

    /// A quota that was wanted for a while and has not been taken back.
    pub fn open_quota(&self, leader: NodeIndex) -> Option<String> {
        let state = self.nodes.get(leader).and_then(Node::server)?.replica().state();
        let tenant = (1..=TENANTS).map(TenantId).find(|tenant| state.quota(*tenant).is_some())?;
        Some(format!("tenant {tenant} has a quota"))
    }
}
