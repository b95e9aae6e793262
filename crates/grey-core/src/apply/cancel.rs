//! Cancels: terminal once committed.

use super::task::{CANCELLED, End, PENDING, held_count};
use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::{Cancel, Target};
use crate::effect::{Answer, Effect};
use crate::ids::{JobId, TaskId, TaskRange, TenantId};
use crate::rejection::Rejection;
use crate::rows::{Job, Phase};

impl Application<'_> {
    pub(super) fn cancel(&mut self, body: &Cancel) -> Result<Answer, Stop> {
        let (job, row, tasks) = self.target(body.tenant, body.target)?;
        self.rows.meta.wall_ms = body.wall_ms;
        #[cfg(feature = "mutants")]
        if self.rows.base.mutant == Some(crate::mutant::Mutant::LoseCancel) {
            return Ok(Answer::Cancelled { cancelled: u64::from(tasks.count), already_ended: 0 });
        }
        let cancelled = self.cancel_tasks(job, &row, tasks)?;
        self.event_cancelled(job, cancelled);
        self.end_job_if_done(job, row.info.created_at_ms)?;
        Ok(Answer::Cancelled { cancelled, already_ended: u64::from(tasks.count).saturating_sub(cancelled) })
    }

    /// The job and the tasks that a tenant's command is about.
    pub(super) fn target(&self, tenant: TenantId, target: Target) -> Result<(JobId, Job, TaskRange), Stop> {
        let unknown = || match target {
            Target::Job(job) => Rejection::UnknownJob(job),
            Target::Task(task) => Rejection::UnknownTask(task),
        };
        let (job, task) = match target {
            Target::Job(job) => (job, None),
            Target::Task(task) => {
                let (_, group) = self.rows.base.group_of(task).ok_or_else(unknown)?;
                (group.job, Some(task))
            }
        };
        // Another tenant's work is not even acknowledged to exist.
        let row = self.rows.jobs.get(&job).filter(|row| row.info.tenant == tenant).ok_or_else(unknown)?;
        let tasks = task.map_or(row.info.tasks, TaskRange::single);
        Ok((job, row.clone(), tasks))
    }

    /// Cancels what has not ended of a range of a job's tasks; returns how many that were.
    pub(super) fn cancel_tasks(&mut self, job: JobId, row: &Job, tasks: TaskRange) -> Result<u64, Stop> {
        Ok(self.cancel_waiting(job, row, tasks)? + self.cancel_live(job, row.info.tenant, tasks)?)
    }

    /// Cancels tasks that were never assigned. A range of several is made of whole groups.
    fn cancel_waiting(&mut self, job: JobId, row: &Job, tasks: TaskRange) -> Result<u64, Stop> {
        let mut cancelled = 0;
        let begin = self.rows.base.group_of(tasks.first).map_or(tasks.first, |(first, _)| first);
        let groups = self.rows.base.groups.range(begin..tasks.end()).map(|(first, _)| *first);
        for first in groups.collect::<Vec<_>>() {
            let group = self.rows.groups.get_mut(&first).ok_or(Stop::Bug("a job without its group"))?;
            let of_group = if tasks.count == 1 {
                u64::from(group.pending.remove(tasks))
            } else {
                let all = group.pending.count();
                group.pending.clear();
                all
            };
            if of_group > 0 {
                self.note_ended(job, first, of_group, false)?;
            }
            cancelled += of_group;
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
                    self.end_task(task, job, PENDING, End::Cancelled)?;
                }
                Phase::Assigned { worker } | Phase::Running { worker } => {
                    self.move_count(job, held_count(live.phase), CANCELLED, 1)?;
                    self.note_ended(job, task, 1, false)?;
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
