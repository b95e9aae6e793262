//! Fairness between tenants, and the order within one: over time nobody is passed over who asks for less.
//!
//! A plan is made from a state and applied to a later one, so a single placement may look unfair where it was fair. What
//! must not happen is that it goes on: the bound is a number of plans in a row.

use std::collections::BTreeMap;

use grey_core::{Assignment, Effect, ReadyKey, Resources, State, TaskId, TenantId};

use super::Checker;
use crate::fact::Fact;

/// So many plans in a row may favour the richer of two tenants that both wait.
const UNFAIR_PLANS: u32 = 12;
/// So often a group may be passed over by later ones of its tenant.
const OVERTAKEN: u32 = 40;

/// What waits in a tenant's line and could go wherever something as large goes.
type Waiting = BTreeMap<TenantId, BTreeMap<TaskId, (ReadyKey, Resources)>>;

#[derive(Default)]
pub struct Fairness {
    index: u64,
    usage: BTreeMap<TenantId, (Resources, u64)>,
    waiting: Waiting,
    unfair: BTreeMap<(TenantId, TenantId), u32>,
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
    fn judge(&mut self, state: &State, placed: &[&Assignment], now: &Waiting) -> Result<(), String> {
        let totals = state.workers().values().fold((Resources::default(), 0), |(sum, slots), worker| {
            (sum.checked_add(&worker.capacity).unwrap_or(sum), slots + u64::from(worker.slots))
        });
        let mut usage = self.usage.clone();
        let mut favoured: BTreeMap<(TenantId, TenantId), bool> = BTreeMap::new();
        for assignment in placed {
            let Some(job) = state.jobs().get(&assignment.job) else { continue };
            let (tenant, needs) = (job.info.tenant, assignment.spec.resources);
            let (used, held) = usage.get(&tenant).copied().unwrap_or_default();
            let own = share(&used, held, &totals);
            let largest = share(&needs, 1, &totals);
            for (other, line) in &self.waiting {
                let still = now.get(other);
                let waits = |(task, (_, resources)): (&TaskId, &(ReadyKey, Resources))| {
                    resources.fits(&needs) && still.is_some_and(|line| line.contains_key(task))
                };
                if *other == tenant || !line.iter().any(waits) {
                    continue;
                }
                let (used, held) = usage.get(other).copied().unwrap_or_default();
                let poorer = share(&used, held, &totals) + 2 * largest < own;
                *favoured.entry((tenant, *other)).or_default() |= poorer;
            }
            self.overtake(tenant, assignment, now)?;
            let count = u64::from(assignment.placement.tasks.count);
            let entry = usage.entry(tenant).or_default();
            let more = Resources {
                cpu_millicores: needs.cpu_millicores * count,
                memory_bytes: needs.memory_bytes * count,
                disk_bytes: needs.disk_bytes * count,
            };
            *entry = (entry.0.checked_add(&more).unwrap_or(entry.0), entry.1 + count);
        }
        for ((rich, poor), unfair) in favoured {
            let plans = self.unfair.entry((rich, poor)).or_default();
            *plans = if unfair { *plans + 1 } else { 0 };
            if *plans > UNFAIR_PLANS {
                return Err(format!(
                    "{plans} plans in a row gave to tenant {rich} while {poor} had less and waited"
                ));
            }
        }
        Ok(())
    }

    /// Groups of the same tenant that came first, ask for no more, and waited before and after.
    fn overtake(&mut self, tenant: TenantId, assignment: &Assignment, now: &Waiting) -> Result<(), String> {
        let first = assignment.placement.tasks.first;
        let Some(line) = self.waiting.get(&tenant) else { return Ok(()) };
        let placed = line.values().find(|(key, _)| key.group == assignment.group || key.task == first);
        let Some((placed, _)) = placed else { return Ok(()) };
        for (task, (key, resources)) in line {
            let still = now.get(&tenant).is_some_and(|line| line.contains_key(task));
            if key.rank < placed.rank && still && resources.fits(&assignment.spec.resources) {
                let times = self.overtaken.entry(*task).or_default();
                *times += 1;
                if *times > OVERTAKEN {
                    return Err(format!("{task} was passed over {times} times by later ones of its tenant"));
                }
            }
        }
        Ok(())
    }
}

impl Checker for Fairness {
    fn promise(&self) -> &'static str {
        "fair-and-nobody-starves"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { first: true, index, state, applied, .. } = fact else { return Ok(()) };
        if state.applied_index() != *index {
            return Ok(());
        }
        let now = waiting(state);
        let placed: Vec<&Assignment> = applied
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Assign(assignment) if assignment.index == *index => Some(assignment),
                _ => None,
            })
            .collect();
        if self.index + 1 == *index && !placed.is_empty() {
            self.judge(state, &placed, &now)?;
        }
        self.index = *index;
        self.usage =
            state.tenants().iter().map(|(id, tenant)| (*id, (tenant.usage, tenant.held_tasks))).collect();
        self.overtaken.retain(|task, _| now.values().any(|line| line.contains_key(task)));
        self.waiting = now;
        Ok(())
    }
}
