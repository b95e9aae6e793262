//! Who is shut out rests: a suspended tenant submits nothing, and is refused only while it is suspended; a worker that is cordoned or shut
//! out is given nothing, and of one that is blocked nothing is accepted.

use std::collections::BTreeSet;

use grey_core::{
    ACCEPTANCE_LEVEL, Effect, EventKind, HistoryRecord, NodeStanding, Rejection, TenantId, Tier,
};

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Resting {
    /// Tenants of which the log has a refusal.
    refused: BTreeSet<TenantId>,
}

impl Checker for Resting {
    fn promise(&self) -> &'static str {
        "who-is-shut-out-rests"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { index, first: true, state, applied, placed, .. } => {
                // Several entries may have been applied at once; the state is that after the last.
                let exact = state.applied_index() == *index;
                let is_suspended =
                    |tenant: &TenantId| state.tenants().get(tenant).is_some_and(|row| row.suspended);
                if let Err(Rejection::TenantSuspended(tenant)) = &applied.answer {
                    self.refused.insert(*tenant);
                    if exact && !is_suspended(tenant) {
                        return Err(format!("tenant {tenant} was refused at {index} and is not suspended"));
                    }
                }
                for effect in &applied.effects {
                    if let Effect::Event(event) = effect
                        && event.kind == EventKind::Submitted
                        && exact
                        && let Some(job) = state.jobs().get(&event.job)
                        && is_suspended(&job.info.tenant)
                    {
                        let tenant = job.info.tenant;
                        return Err(format!(
                            "{} was submitted by tenant {tenant}, which is suspended",
                            event.job
                        ));
                    }
                    if let Effect::History(HistoryRecord::Report(record)) = effect
                        && exact
                        && state.feature_level() >= ACCEPTANCE_LEVEL
                        && state.node(&record.node).is_some_and(|row| row.standing == NodeStanding::Blocked)
                    {
                        let node = record.node;
                        return Err(format!("a report of {node}, which is blocked, was accepted at {index}"));
                    }
                }
                for one in *placed {
                    let worker = state.workers().get(&one.worker);
                    if worker.is_some_and(|row| row.cordoned || row.tier == Tier::Blocked) {
                        let attempt = one.attempt;
                        return Err(format!(
                            "{}/{} was given to {}, which is cordoned or shut out",
                            attempt.task, attempt.epoch, one.worker
                        ));
                    }
                }
                Ok(())
            }
            Fact::Refused { tenant } if !self.refused.contains(tenant) => {
                Err(format!("a client of tenant {tenant} was refused, and no log says so"))
            }
            _ => Ok(()),
        }
    }
}
