//! Transitions of one task, each with its counters: the only place that moves a task from one count to another.

use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::Placement;
use crate::effect::{Assignment, Effect, Event, EventKind};
use crate::history::{FlowRecord, HistoryRecord, JobRecord};
use crate::ids::{Epoch, JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::limits;
use crate::rows::{Counts, Group, Job, LiveTask, Phase, Tenant, Worker};
use crate::spec::Resources;

/// Where a task goes that leaves a count.
pub(super) type CountField = fn(&mut Counts) -> &mut u64;

pub(super) const PENDING: CountField = |counts| &mut counts.pending;
pub(super) const ASSIGNED: CountField = |counts| &mut counts.assigned;
pub(super) const RUNNING: CountField = |counts| &mut counts.running;
const COMPLETED: CountField = |counts| &mut counts.completed;
const FAILED: CountField = |counts| &mut counts.failed;
pub(super) const CANCELLED: CountField = |counts| &mut counts.cancelled;

/// How a task ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Failed,
    Cancelled,
}

fn take(count: &mut u64, amount: u64, what: &'static str) -> Result<(), Stop> {
    *count = count.checked_sub(amount).ok_or(Stop::Bug(what))?;
    Ok(())
}

impl Application<'_> {
    pub(super) fn job_mut(&mut self, job: JobId) -> Result<&mut Job, Stop> {
        self.rows.jobs.get_mut(&job).ok_or(Stop::Bug("a group without its job"))
    }

    pub(super) fn tenant_mut(&mut self, tenant: TenantId) -> Result<&mut Tenant, Stop> {
        self.rows.tenants.get_mut(&tenant).ok_or(Stop::Bug("a job without its tenant"))
    }

    pub(super) fn worker_mut(&mut self, worker: WorkerId) -> Result<&mut Worker, Stop> {
        self.rows.workers.get_mut(&worker).ok_or(Stop::Bug("an attempt without its worker"))
    }

    pub(super) fn group_row(&self, group: TaskId) -> Result<&Group, Stop> {
        self.rows.groups.get(&group).ok_or(Stop::Bug("a live task without its group"))
    }

    pub(super) fn job_and_tenant(&self, group: TaskId) -> Result<(JobId, TenantId), Stop> {
        let job = self.group_row(group)?.job;
        let row = self.rows.jobs.get(&job).ok_or(Stop::Bug("a group without its job"))?;
        Ok((job, row.info.tenant))
    }

    /// Moves `amount` tasks of a job from one count to another.
    pub(super) fn move_count(
        &mut self,
        job: JobId,
        from: CountField,
        to: CountField,
        amount: u64,
    ) -> Result<(), Stop> {
        let counts = &mut self.job_mut(job)?.counts;
        take(from(counts), amount, "a job's count fell below zero")?;
        *to(counts) += amount;
        Ok(())
    }

    /// Checks one placement against the state as it is now and carries it out; `false` when it has become stale.
    pub(super) fn place(&mut self, placement: &Placement) -> Result<bool, Stop> {
        let (tasks, count) = (placement.tasks, placement.tasks.count);
        let Some(worker) = self.rows.workers.get(&placement.worker) else { return Ok(false) };
        let room = worker.usable_slots().saturating_sub(worker.held);
        let live = self.rows.live.get(&tasks.first);
        let Some((group_id, job)) = self.group_for(tasks, live) else { return Ok(false) };
        let spec = self.rows.specs.get(&group_id).ok_or(Stop::Bug("a group without its specification"))?;
        #[cfg(feature = "mutants")]
        let room = match self.rows.base.mutant {
            Some(crate::mutant::Mutant::SkipRecheck) => u32::MAX,
            _ => room,
        };
        let room = room.min(self.executor_room(placement.worker, spec.executor));
        if count == 0 || count > room || count > limits::PLAN_TASKS || !worker.suits(spec) {
            return Ok(false);
        }
        let Some(total) = multiplied(&spec.resources, count) else { return Ok(false) };
        let (was_live, timeout_ms) = (live.is_some(), live.and_then(|live| live.timeout_ms));
        let spec = spec.clone();
        let row = self.rows.jobs.get(&job).ok_or(Stop::Bug("a group without its job"))?;
        let tenant_id = row.info.tenant;
        let stage = self.stage_of(job, group_id);
        let waits = stage.as_ref().is_some_and(|stage| {
            self.rows.progress.get(&stage.tasks.first).is_some_and(|progress| progress.waiting)
        });
        if waits || self.job_room(row, job) < u64::from(count) {
            return Ok(false);
        }
        let taken =
            if was_live { self.take_again(placement)? } else { self.take_pending(group_id, placement)? };
        if !taken {
            return Ok(false);
        }
        self.move_count(job, PENDING, ASSIGNED, u64::from(count))?;
        let tenant = self.tenant_mut(tenant_id)?;
        take(&mut tenant.queued_tasks, u64::from(count), "a tenant's queued tasks fell below zero")?;
        tenant.held_tasks += u64::from(count);
        tenant.usage = tenant.usage.checked_add(&total).ok_or(Stop::Bug("a tenant's usage overflowed"))?;
        let tenant_name = tenant.name.clone();
        let worker = self.worker_mut(placement.worker)?;
        worker.charge(&spec, count).ok_or(Stop::Bug("a worker's charge overflowed"))?;
        self.executor_given(placement.worker, spec.executor, tasks);
        self.effects.push(Effect::Assign(Assignment {
            placement: *placement,
            job,
            group: group_id,
            tenant: tenant_name,
            timeout_ms: timeout_ms.unwrap_or(spec.timeout_ms),
            spec,
            stage,
            term: self.term,
            index: self.index,
        }));
        Ok(true)
    }

    /// The group that holds every task of a placement, and its job; `live` is the row of the first.
    fn group_for(&self, tasks: TaskRange, live: Option<&LiveTask>) -> Option<(TaskId, JobId)> {
        if let Some(live) = live {
            let group = self.rows.groups.get(&live.group).filter(|_| tasks.count == 1)?;
            return Some((live.group, group.job));
        }
        // Plans come after submissions, so the group is in the state already, not only in this entry.
        let (first, _) = self.rows.base.group_of(tasks.first)?;
        let group = self.rows.groups.get(&first)?;
        (tasks.end() <= group.tasks.end()).then_some((first, group.job))
    }

    /// Takes a task that waits again.
    fn take_again(&mut self, placement: &Placement) -> Result<bool, Stop> {
        let first = placement.tasks.first;
        let live = self.rows.live.get(&first).ok_or(Stop::Bug("a live task disappeared"))?;
        if live.phase != Phase::Ready || live.epoch.next() != Some(placement.epoch) {
            return Ok(false);
        }
        let live = self.rows.live.get_mut(&first).ok_or(Stop::Bug("a live task disappeared"))?;
        live.phase = Phase::Assigned { worker: placement.worker };
        live.epoch = placement.epoch;
        live.assigned_term = self.term;
        live.assigned_index = self.index;
        Ok(true)
    }

    /// Takes tasks that were never assigned.
    fn take_pending(&mut self, group_id: TaskId, placement: &Placement) -> Result<bool, Stop> {
        let group = self.rows.groups.get_mut(&group_id).ok_or(Stop::Bug("a live task without its group"))?;
        if placement.epoch != Epoch(1) || !group.pending.remove(placement.tasks) {
            return Ok(false);
        }
        for task in placement.tasks.tasks() {
            let live = LiveTask {
                group: group_id,
                epoch: Epoch(1),
                assigned_term: self.term,
                assigned_index: self.index,
                failures: 0,
                losses: 0,
                timeout_ms: None,
                clock: None,
                phase: Phase::Assigned { worker: placement.worker },
            };
            self.rows.live.insert(task, live);
        }
        Ok(true)
    }

    /// Takes a task's attempt off its worker and its tenant's usage.
    pub(super) fn release(&mut self, worker: WorkerId, task: TaskId, group: TaskId) -> Result<(), Stop> {
        let spec = self.rows.specs.get(&group).ok_or(Stop::Bug("a group without its specification"))?.clone();
        let resources = spec.resources;
        let (_, tenant) = self.job_and_tenant(group)?;
        let row = self.worker_mut(worker)?;
        row.release(&spec).ok_or(Stop::Bug("a worker's charge fell below zero"))?;
        self.executor_released(worker, spec.executor, task);
        let row = self.tenant_mut(tenant)?;
        take(&mut row.held_tasks, 1, "a tenant's held tasks fell below zero")?;
        row.usage = row.usage.checked_sub(&resources).ok_or(Stop::Bug("a tenant's usage fell below zero"))?;
        Ok(())
    }

    /// An attempt that its worker lost: its task waits again with its next epoch, or has failed for good.
    pub(super) fn lose(&mut self, attempt: AttemptId) -> Result<bool, Stop> {
        self.lose_until(attempt, Phase::Ready)
    }

    /// The same, where the task is in a certain phase while it waits.
    pub(super) fn lose_until(&mut self, attempt: AttemptId, waiting: Phase) -> Result<bool, Stop> {
        let Some(live) = self.rows.live.get(&attempt.task).cloned() else { return Ok(false) };
        let Some(worker) = live.phase.worker() else { return Ok(false) };
        if live.epoch != attempt.epoch {
            return Ok(false);
        }
        self.release(worker, attempt.task, live.group)?;
        let (job, _) = self.job_and_tenant(live.group)?;
        if let Phase::Stopping { .. } = live.phase {
            self.stopped(attempt.task, job)?;
            return Ok(true);
        }
        let from = held_count(live.phase);
        let spec = self.rows.specs.get(&live.group).ok_or(Stop::Bug("a group without its specification"))?;
        if live.losses >= spec.retries.infrastructure {
            self.end_task(attempt.task, job, from, End::Failed)?;
        } else {
            self.wait_again(attempt.task, live.group, from, |live| {
                live.losses += 1;
                live.phase = waiting;
            })?;
        }
        Ok(true)
    }

    /// A task goes back to waiting.
    pub(super) fn wait_again(
        &mut self,
        task: TaskId,
        group: TaskId,
        from: CountField,
        change: impl FnOnce(&mut LiveTask),
    ) -> Result<(), Stop> {
        let (job, tenant) = self.job_and_tenant(group)?;
        self.move_count(job, from, PENDING, 1)?;
        self.tenant_mut(tenant)?.queued_tasks += 1;
        let live = self.rows.live.get_mut(&task).ok_or(Stop::Bug("a live task disappeared"))?;
        live.clock = None;
        change(live);
        Ok(())
    }

    /// A live task ends.
    pub(super) fn end_task(
        &mut self,
        task: TaskId,
        job: JobId,
        from: CountField,
        end: End,
    ) -> Result<(), Stop> {
        self.rows.live.remove(&task);
        let to = match end {
            End::Completed => COMPLETED,
            End::Failed => FAILED,
            End::Cancelled => CANCELLED,
        };
        self.move_count(job, from, to, 1)?;
        self.note_ended(job, task, 1, end == End::Completed)
    }

    /// The attempt of a cancelled task is gone.
    pub(super) fn stopped(&mut self, task: TaskId, job: JobId) -> Result<(), Stop> {
        self.rows.live.remove(&task);
        take(&mut self.job_mut(job)?.stopping, 1, "a job's stopping attempts fell below zero")
    }

    /// Moves a job whose last task has ended out of the state.
    pub(super) fn end_job_if_done(&mut self, job: JobId, wall_ms: u64) -> Result<(), Stop> {
        if !self.rows.jobs.contains(&job) {
            return Ok(());
        }
        self.settle_flow(job)?;
        let Some(row) = self.rows.jobs.get(&job).cloned() else { return Ok(()) };
        if row.counts.live() > 0 || row.stopping > 0 {
            return Ok(());
        }
        let mut groups: Vec<(TaskRange, _)> = Vec::new();
        for first in self.group_ids(&row) {
            let group = self.group_row(first)?.tasks;
            let spec = self.rows.specs.get(&first).ok_or(Stop::Bug("a group without its specification"))?;
            groups.push((group, spec.as_ref().clone()));
            self.rows.groups.remove(&first);
            self.rows.specs.remove(&first);
        }
        if let Some(key) = &row.info.key {
            let expires_at_ms = self.rows.meta.time_ms.saturating_add(limits::KEY_RETENTION_MS);
            if let Some(record) = self.rows.keys.get_mut(&(row.info.tenant, key.clone())) {
                record.expires_at_ms = Some(expires_at_ms);
            }
        }
        self.rows.jobs.remove(&job);
        if let Some((flow, broken)) = self.remove_flow(job) {
            let record = FlowRecord { flow: flow.as_ref().clone(), broken };
            self.effects.push(Effect::History(HistoryRecord::Flow(job, Box::new(record))));
        }
        // A job that is cancelled after a long wait has no report that says when it ended, and retention counts from here.
        let at_least_ms = self.rows.meta.wall_ms.max(row.info.created_at_ms);
        let record = JobRecord {
            info: row.info.as_ref().clone(),
            counts: row.counts,
            ended_at_ms: wall_ms.max(at_least_ms),
            groups,
        };
        self.effects.push(Effect::History(HistoryRecord::Job(job, Box::new(record))));
        let kind = EventKind::Ended(row.counts);
        self.effects.push(Effect::Event(Event { index: self.index, job, kind }));
        Ok(())
    }

    /// The first tasks of a job's groups, ascending.
    pub(super) fn group_ids(&self, job: &Job) -> Vec<TaskId> {
        let tasks = job.info.tasks;
        self.rows.base.groups.range(tasks.first..tasks.end()).map(|(first, _)| *first).collect()
    }
}

/// The count that a held attempt's task is in.
pub(super) fn held_count(phase: Phase) -> CountField {
    match phase {
        Phase::Assigned { .. } => ASSIGNED,
        Phase::Running { .. } | Phase::Stopping { .. } => RUNNING,
        Phase::Ready | Phase::Backoff { .. } => PENDING,
    }
}

/// The resources of `count` equal tasks.
pub(crate) fn multiplied(resources: &Resources, count: u32) -> Option<Resources> {
    let count = u64::from(count);
    Some(Resources {
        cpu_millicores: resources.cpu_millicores.checked_mul(count)?,
        memory_bytes: resources.memory_bytes.checked_mul(count)?,
        disk_bytes: resources.disk_bytes.checked_mul(count)?,
    })
}
