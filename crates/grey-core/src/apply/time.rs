//! The passing of cluster time, which every entry carries.

use super::{Application, Stop};
use crate::limits;
use crate::quarantine::HealthEvent;
use crate::rows::Phase;
use crate::state::Deadline;

impl Application<'_> {
    /// Moves cluster time on, never back and never by more than one step, and does what became due.
    pub(super) fn pass_time(&mut self, proposed_ms: u64) -> Result<(), Stop> {
        let last_ms = self.rows.meta.time_ms;
        let now_ms = proposed_ms.clamp(last_ms, last_ms.saturating_add(limits::TIME_STEP_MS));
        self.rows.meta.time_ms = now_ms;
        let due: Vec<Deadline> = self
            .rows
            .base
            .deadlines
            .iter()
            .take_while(|(due_ms, _)| *due_ms <= now_ms)
            .take(limits::EXPIRIES_PER_ENTRY)
            .map(|(_, deadline)| deadline.clone())
            .collect();
        for deadline in due {
            match deadline {
                Deadline::Backoff(task) => {
                    let live =
                        self.rows.live.get_mut(&task).ok_or(Stop::Bug("a back-off without its task"))?;
                    live.phase = Phase::Ready;
                }
                Deadline::Overdue(task) => self.overdue(task)?,
                Deadline::Breaker(worker) => self.breakers_due(worker)?,
                Deadline::Quarantine(worker) => self.judge(worker, HealthEvent::Passed)?,
                Deadline::Key(key) => {
                    let tenant =
                        self.rows.tenants.get_mut(&key.0).ok_or(Stop::Bug("a key without its tenant"))?;
                    tenant.keys =
                        tenant.keys.checked_sub(1).ok_or(Stop::Bug("a tenant's keys fell below zero"))?;
                    self.rows.keys.remove(&key);
                }
            }
        }
        Ok(())
    }
}
