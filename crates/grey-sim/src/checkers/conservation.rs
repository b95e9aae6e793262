//! Accepted is terminal plus live, at every index that a replica's state is seen at; and no invariant of the core broke.

use std::collections::BTreeMap;

use grey_core::{Counts, Effect, HistoryRecord, JobId};

use super::Checker;
use crate::fact::Fact;

#[derive(Default)]
pub struct Conservation {
    ended: BTreeMap<JobId, Counts>,
    tasks_ended: u64,
    /// Terminal counts of live jobs never fall.
    terminal: BTreeMap<JobId, (u64, u64, u64)>,
}

impl Checker for Conservation {
    fn promise(&self) -> &'static str {
        "tasks-are-conserved"
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { first: true, index, state, applied, .. } = fact else { return Ok(()) };
        for effect in &applied.effects {
            if let Effect::History(HistoryRecord::Job(job, record)) = effect {
                self.ended.insert(*job, record.counts);
                self.terminal.remove(job);
                self.tasks_ended += record.counts.total();
            }
        }
        if state.applied_index() != *index {
            return Ok(());
        }
        let meta = state.meta();
        if meta.internal_bugs > 0 {
            return Err(format!("an invariant of the core broke at or before {index}: {:?}", applied.answer));
        }
        let live: u64 = state.jobs().values().map(|job| job.counts.total()).sum();
        if meta.tasks_submitted != live + self.tasks_ended {
            return Err(format!(
                "{} tasks were accepted; {live} are of live jobs, {} of ended ones",
                meta.tasks_submitted, self.tasks_ended
            ));
        }
        if meta.jobs_submitted != state.jobs().len() as u64 + self.ended.len() as u64 {
            return Err(format!("of {} jobs some are neither live nor ended", meta.jobs_submitted));
        }
        for (job, row) in state.jobs() {
            let counts = &row.counts;
            let now = (counts.completed, counts.failed, counts.cancelled);
            let before = self.terminal.insert(*job, now).unwrap_or_default();
            if now.0 < before.0 || now.1 < before.1 || now.2 < before.2 {
                return Err(format!("tasks of {job} that had ended did so no longer: {before:?}, {now:?}"));
            }
        }
        Ok(())
    }
}
