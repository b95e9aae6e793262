//! Cancels: terminal once committed.

use super::task::{CANCELLED, PENDING, held_count};
use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::{Cancel, CancelTarget};
use crate::effect::{Answer, Effect, Event, EventKind};
use crate::ids::{JobId, TaskId, TaskRange, TenantId};
use crate::rejection::Rejection;
use crate::rows::{Job, Phase};

impl Application<'_> {
    pub(super) fn cancel(&mut self, body: &Cancel) -> Result<Answer, Stop> {
        let (job, tasks) = match body.target {
            CancelTarget::Job(job) => {
                let row = self.rows.jobs.get(&job).ok_or(Rejection::UnknownJob(job))?;
                (job, row.info.tasks)
            }
            CancelTarget::Task(task) => {
                let unknown = Rejection::UnknownTask(task);
                let (_, group) = self.rows.base.group_of(task).ok_or(unknown)?;
                (group.job, TaskRange::single(task))
            }
        };
        let row = self.rows.jobs.get(&job).cloned().ok_or(Stop::Bug("a group without its job"))?;
        if row.info.tenant != body.tenant {
            // Another tenant's work is not even acknowledged to exist.
            return Err(match body.target {
                CancelTarget::Job(job) => Rejection::UnknownJob(job).into(),
                CancelTarget::Task(task) => Rejection::UnknownTask(task).into(),
            });
        }
        let cancelled =
            self.cancel_waiting(job, &row, tasks)? + self.cancel_live(job, row.info.tenant, tasks)?;
        if cancelled > 0 {
            let kind = EventKind::Cancelled(cancelled);
            self.effects.push(Effect::Event(Event { index: self.index, job, kind }));
        }
        self.end_job_if_done(job, row.info.created_at_ms)?;
        Ok(Answer::Cancelled { cancelled, already_ended: u64::from(tasks.count).saturating_sub(cancelled) })
    }

    /// Cancels tasks that were never assigned.
    fn cancel_waiting(&mut self, job: JobId, row: &Job, tasks: TaskRange) -> Result<u64, Stop> {
        let mut cancelled = 0;
        for first in self.group_ids(row) {
            let group = self.rows.groups.get_mut(&first).ok_or(Stop::Bug("a job without its group"))?;
            if group.tasks.end() <= tasks.first || tasks.end() <= group.tasks.first {
                continue;
            }
            if tasks.count == 1 {
                cancelled += u64::from(group.pending.remove(tasks));
            } else {
                cancelled += group.pending.count();
                group.pending.clear();
            }
        }
        self.move_count(job, PENDING, CANCELLED, cancelled)?;
        self.dequeue(row.info.tenant, cancelled)?;
        Ok(cancelled)
    }

    fn dequeue(&mut self, tenant: TenantId, amount: u64) -> Result<(), Stop> {
        let row = self.tenant_mut(tenant)?;
        row.queued_tasks = row
            .queued_tasks
            .checked_sub(amount)
            .ok_or(Stop::Bug("a tenant's queued tasks fell below zero"))?;
        Ok(())
    }

    /// Cancels tasks that wait again or are held by a worker.
    fn cancel_live(&mut self, job: JobId, tenant: TenantId, tasks: TaskRange) -> Result<u64, Stop> {
        let found: Vec<TaskId> =
            self.rows.base.live.range(tasks.first..tasks.end()).map(|(task, _)| *task).collect();
        let mut cancelled = 0;
        for task in found {
            let Some(live) = self.rows.live.get(&task).cloned() else { continue };
            match live.phase {
                Phase::Stopping { .. } => continue,
                Phase::Ready | Phase::Backoff { .. } => {
                    self.dequeue(tenant, 1)?;
                    self.end_task(task, job, PENDING, CANCELLED)?;
                }
                Phase::Assigned { worker } | Phase::Running { worker } => {
                    self.move_count(job, held_count(live.phase), CANCELLED, 1)?;
                    self.job_mut(job)?.stopping += 1;
                    if let Some(live) = self.rows.live.get_mut(&task) {
                        live.phase = Phase::Stopping { worker };
                    }
                    self.effects
                        .push(Effect::Stop { worker, attempt: AttemptId { task, epoch: live.epoch } });
                }
            }
            cancelled += 1;
        }
        Ok(cancelled)
    }
}
