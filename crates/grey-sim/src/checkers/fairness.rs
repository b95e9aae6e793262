//! Fairness between tenants, and the order within one: over time nobody is passed over who asks for less.
//!
//! A plan is made from a state and applied to a later one, so a single placement may look unfair where it was fair. What
//! must not happen is that it goes on: the bound is a number of plans in a row.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Presence, ReadyKey, Resources, State, TaskId, TenantId};

use super::Checker;
use crate::fact::{Fact, Placed};

/// So many plans in a row may give to a richer tenant while the same task of a poorer one waits.
const UNFAIR_PLANS: u32 = 6;
/// So many plans may pass a group over for later ones of its tenant. One plan may place hundreds: it was made from one state, so it counts once.
const OVERTAKEN: u32 = 20;

/// What waits in a tenant's line and could go wherever something as large goes.
type Waiting = BTreeMap<TenantId, BTreeMap<TaskId, (ReadyKey, Resources)>>;

#[derive(Default)]
pub struct Fairness {
    index: u64,
    usage: BTreeMap<TenantId, (Resources, u64)>,
    waiting: Waiting,
    unfair: BTreeMap<TaskId, u32>,
    overtaken: BTreeMap<TaskId, u32>,
}

fn waiting(state: &State) -> Waiting {
    let mut all = Waiting::new();
    for (tenant, keys) in state.ready() {
        let line = all.entry(*tenant).or_default();
        for key in keys {
            let Some(spec) = state.spec(key.group) else { continue };
            let limited = state
                .groups()
                .get(&key.group)
                .and_then(|group| state.flow(group.job))
                .is_some_and(|flow| flow.parallel.is_some());
            let plain = spec.devices.is_empty() && spec.constraints == Default::default();
            if plain && !limited {
                line.insert(key.task, (*key, spec.resources));
            }
        }
    }
    all
}

/// A dominant share in millionths.
fn share(usage: &Resources, held: u64, totals: &(Resources, u64)) -> u128 {
    let part = |used: u64, of: u64| u128::from(used) * 1_000_000 / u128::from(of.max(1));
    part(usage.cpu_millicores, totals.0.cpu_millicores)
        .max(part(usage.memory_bytes, totals.0.memory_bytes))
        .max(part(held, totals.1))
}

impl Fairness {
    fn judge(&mut self, state: &State, placed: &[Placed], now: &Waiting) -> Result<(), String> {
        let there = state.workers().iter().filter(|(_, worker)| worker.presence != Presence::Lost);
        let totals = there.fold((Resources::default(), 0), |(sum, slots), (_, worker)| {
            (sum.checked_add(&worker.capacity).unwrap_or(sum), slots + u64::from(worker.slots))
        });
        let none = (Resources::default(), 0);
        let mut groups: BTreeMap<TaskId, TaskId> = BTreeMap::new();
        for one in placed {
            groups.entry(one.group).or_insert(one.attempt.task);
        }
        let mut overtaken = BTreeSet::new();
        let mut passed_over: BTreeMap<TaskId, (TenantId, u128, u128)> = BTreeMap::new();
        for (group, first) in groups {
            let Some(job) = state.groups().get(&group).and_then(|row| state.jobs().get(&row.job)) else {
                continue;
            };
            let Some(needs) = state.spec(group).map(|spec| spec.resources) else { continue };
            let tenant = job.info.tenant;
            let (used, held) = self.usage.get(&tenant).copied().unwrap_or(none);
            let (own, largest) = (share(&used, held, &totals), share(&needs, 1, &totals));
            for (other, line) in self.waiting.iter().filter(|(other, _)| **other != tenant) {
                // What the poorer one has after the plan is still less than the richer one had before it.
                let row = state.tenants().get(other);
                let theirs = row.map_or(0, |row| share(&row.usage, row.held_tasks, &totals));
                if theirs + 2 * largest >= own {
                    continue;
                }
                let still = now.get(other);
                for (task, (_, resources)) in line {
                    if resources.fits(&needs) && still.is_some_and(|line| line.contains_key(task)) {
                        passed_over.insert(*task, (tenant, own, theirs));
                    }
                }
            }
            self.overtake(tenant, (group, first), &needs, now, &mut overtaken);
        }
        for task in overtaken {
            let plans = self.overtaken.entry(task).or_default();
            *plans += 1;
            if *plans > OVERTAKEN {
                return Err(format!("{task} was passed over by {plans} plans for later ones of its tenant"));
            }
        }
        // A plan is made from an earlier state, so one that came to wait meanwhile may be passed over once or twice.
        self.unfair.retain(|task, _| passed_over.contains_key(task));
        for (task, (rich, more, less)) in passed_over {
            let plans = self.unfair.entry(task).or_default();
            *plans += 1;
            if *plans > UNFAIR_PLANS {
                return Err(format!(
                    "{task} was passed over by {plans} plans in a row: its tenant has {less} millionths, and \
                     tenant {rich} got more though it had {more}"
                ));
            }
        }
        Ok(())
    }

    /// Groups of the same tenant that came first, ask for no more, and waited before and after.
    fn overtake(
        &self,
        tenant: TenantId,
        (group, first): (TaskId, TaskId),
        needs: &Resources,
        now: &Waiting,
        overtaken: &mut BTreeSet<TaskId>,
    ) {
        let Some(line) = self.waiting.get(&tenant) else { return };
        let placed = line.values().find(|(key, _)| key.group == group || key.task == first);
        let Some((placed, _)) = placed else { return };
        for (task, (key, resources)) in line {
            let still = now.get(&tenant).is_some_and(|line| line.contains_key(task));
            if key.rank < placed.rank && still && resources.fits(needs) {
                overtaken.insert(*task);
            }
        }
    }
}

impl Checker for Fairness {
    fn promise(&self) -> &'static str {
        "fair-and-nobody-starves"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { first: true, index, state, placed, .. } = fact else { return Ok(()) };
        if state.applied_index() != *index {
            return Ok(());
        }
        let now = waiting(state);
        if self.index + 1 == *index && !placed.is_empty() {
            self.judge(state, placed, &now)?;
        }
        self.index = *index;
        self.usage =
            state.tenants().iter().map(|(id, tenant)| (*id, (tenant.usage, tenant.held_tasks))).collect();
        self.overtaken.retain(|task, _| now.values().any(|line| line.contains_key(task)));
        self.waiting = now;
        Ok(())
    }
}
