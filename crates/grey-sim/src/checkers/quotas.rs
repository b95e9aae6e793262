//! No tenant exceeds its quota at any index: what is accepted fits what may wait, and in no span of time more is accepted than the burst and
//! what the rate allows for its length.

use std::collections::BTreeMap;

use grey_core::{Effect, EventKind, Quota, TenantId};

use super::Checker;
use crate::fact::Fact;

/// What was accepted under a quota: when, in milliseconds of cluster time, and how many tasks.
#[derive(Default)]
struct Accepted {
    quota: Quota,
    tasks: Vec<(u64, u64)>,
}

impl Accepted {
    /// The first span that ends now and has more than the rate allows: since when, how many, and how many it may have.
    fn excess(&self, now_ms: u64) -> Option<(u64, u64, u64)> {
        let rate = self.quota.rate?;
        let mut sum = 0;
        self.tasks.iter().rev().find_map(|(since_ms, tasks)| {
            sum += tasks;
            let thousandths = now_ms.saturating_sub(*since_ms).saturating_mul(rate.tasks_per_second);
            let most = rate.burst.saturating_add(thousandths / 1_000);
            (sum > most).then_some((*since_ms, sum, most))
        })
    }
}

#[derive(Default)]
pub struct Quotas(BTreeMap<TenantId, Accepted>);

impl Checker for Quotas {
    fn promise(&self) -> &'static str {
        "quotas-hold"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        // Several entries may have been applied at once; the state is that after the last.
        let Fact::Applied { index, first: true, state, applied, .. } = fact else { return Ok(()) };
        if state.applied_index() != *index {
            return Ok(());
        }
        for (tenant, row) in state.tenants().keys().filter_map(|id| Some((id, state.quota(*id)?))) {
            let accepted = self.0.entry(*tenant).or_default();
            if accepted.quota != row.quota {
                *accepted = Accepted { quota: row.quota, tasks: Vec::new() };
            }
        }
        self.0.retain(|tenant, _| state.quota(*tenant).is_some());
        let now_ms = state.meta().time_ms;
        for effect in &applied.effects {
            let Effect::Event(event) = effect else { continue };
            let job = state.jobs().get(&event.job).filter(|_| event.kind == EventKind::Submitted);
            let Some(info) = job.map(|job| &job.info) else { continue };
            let Some(accepted) = self.0.get_mut(&info.tenant) else { continue };
            let waiting = state.tenants().get(&info.tenant).map_or(0, |row| row.queued_tasks);
            if let Some(most) = accepted.quota.queued_tasks.filter(|most| waiting > *most) {
                let (job, tenant) = (event.job, info.tenant);
                return Err(format!("{job}: {waiting} tasks of tenant {tenant} wait, of {most} that may"));
            }
            accepted.tasks.push((now_ms, u64::from(info.tasks.count)));
            if let Some((since_ms, sum, most)) = accepted.excess(now_ms) {
                let (job, tenant) = (event.job, info.tenant);
                return Err(format!(
                    "{job}: {sum} tasks of tenant {tenant} were accepted from {since_ms} to {now_ms} ms, of {most} that may be"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::RateLimit;

    #[test]
    fn a_span_has_the_burst_and_what_the_rate_allows_for_its_length_and_no_more() {
        let rate = Some(RateLimit { tasks_per_second: 10, burst: 3 });
        let under = |tasks: &[(u64, u64)]| {
            let accepted = Accepted { quota: Quota { queued_tasks: None, rate }, tasks: tasks.to_vec() };
            accepted.excess(tasks.last().map_or(0, |(at_ms, _)| *at_ms))
        };
        assert_eq!(under(&[(0, 3), (100, 1), (200, 1)]), None);
        assert_eq!(under(&[(0, 3), (99, 1)]), Some((0, 4, 3)));
        assert_eq!(
            under(&[(0, 3), (60_000, 3), (60_099, 1)]),
            Some((60_000, 4, 3)),
            "also inside a longer one"
        );
    }
}
