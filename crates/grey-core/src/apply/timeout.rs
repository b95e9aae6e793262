//! Time-outs that change, also while attempts run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::{ChangeTimeout, Target};
use crate::effect::{Answer, Effect};
use crate::ids::{TaskId, TaskRange, WorkerId};
use crate::limits;
use crate::quarantine::HealthEvent;
use crate::rejection::Rejection;
use crate::rows::{Phase, RunClock};

/// When the cluster asks after an attempt that started at a time.
fn overdue_ms(started_ms: u64, timeout_ms: u64) -> u64 {
    started_ms.saturating_add(timeout_ms).saturating_add(limits::TIMEOUT_GRACE_MS)
}

impl Application<'_> {
    /// The clock of an attempt whose start is reported now.
    pub(super) fn run_clock(&self, timeout_ms: u64) -> RunClock {
        let started_ms = self.rows.meta.time_ms;
        RunClock { started_ms, overdue_ms: overdue_ms(started_ms, timeout_ms) }
    }

    /// A worker did not end an attempt at its time-out: it is asked to, again after each grace, and gets no new work for a
    /// while. The attempt stays charged until the worker answers or is lost, for until then it may run.
    pub(super) fn overdue(&mut self, task: TaskId) -> Result<(), Stop> {
        let again_ms = self.rows.meta.time_ms.saturating_add(limits::TIMEOUT_GRACE_MS);
        let live = self.rows.live.get_mut(&task).ok_or(Stop::Bug("a clock without its task"))?;
        let Phase::Running { worker } = live.phase else {
            return Err(Stop::Bug("a clock of an attempt that does not run"));
        };
        if let Some(clock) = &mut live.clock {
            clock.overdue_ms = again_ms;
        }
        let (attempt, group, changed_ms) =
            (AttemptId { task, epoch: live.epoch }, live.group, live.timeout_ms);
        let spec = self.rows.specs.get(&group).ok_or(Stop::Bug("a group without its specification"))?;
        let timeout_ms = changed_ms.unwrap_or(spec.timeout_ms);
        self.effects.push(Effect::ChangeTimeout { worker, attempts: vec![attempt], timeout_ms });
        self.judge(worker, HealthEvent::Failed)
    }

    pub(super) fn change_timeout(&mut self, body: &ChangeTimeout) -> Result<Answer, Stop> {
        if body.timeout_ms == 0 || body.timeout_ms > limits::TIMEOUT_MS {
            return Err(Rejection::OutOfBounds {
                field: "timeout_ms".to_owned(),
                problem: "is zero or too long".to_owned(),
                limit: limits::TIMEOUT_MS,
            }
            .into());
        }
        let (_, row, tasks) = self.target(body.tenant, body.target)?;
        let held = self.change_live(tasks, body.timeout_ms);
        let waiting = match body.target {
            Target::Job(_) => {
                for first in self.group_ids(&row) {
                    self.change_spec(first, body.timeout_ms)?;
                }
                self.waiting_in(tasks)
            }
            Target::Task(task) => u64::from(self.change_waiting(task, body.timeout_ms)?),
        };
        if held + waiting == 0 {
            return Err(match body.target {
                Target::Job(job) => Rejection::UnknownJob(job).into(),
                Target::Task(task) => Rejection::UnknownTask(task).into(),
            });
        }
        Ok(Answer::TimeoutChanged { tasks: held + waiting })
    }

    /// Tasks of a whole job that were never assigned.
    fn waiting_in(&self, tasks: TaskRange) -> u64 {
        let groups = self.rows.base.groups.range(tasks.first..tasks.end());
        groups.map(|(_, group)| group.pending.count()).sum()
    }

    /// Changes those that were assigned at least once and tells the workers that hold them; returns how many.
    fn change_live(&mut self, tasks: TaskRange, timeout_ms: u64) -> u64 {
        let found: Vec<TaskId> =
            self.rows.base.live.range(tasks.first..tasks.end()).map(|(task, _)| *task).collect();
        let (mut changed, mut told) = (0, BTreeMap::<WorkerId, Vec<AttemptId>>::new());
        for task in found {
            let Some(live) = self.rows.live.get_mut(&task) else { continue };
            if matches!(live.phase, Phase::Stopping { .. }) {
                continue;
            }
            live.timeout_ms = Some(timeout_ms);
            if let Some(clock) = &mut live.clock {
                clock.overdue_ms = overdue_ms(clock.started_ms, timeout_ms);
            }
            changed += 1;
            if let Some(worker) = live.phase.worker() {
                told.entry(worker).or_default().push(AttemptId { task, epoch: live.epoch });
            }
        }
        for (worker, attempts) in told {
            self.effects.push(Effect::ChangeTimeout { worker, attempts, timeout_ms });
        }
        changed
    }

    /// Changes a task that was never assigned, whether there is such a one. In an array it has no row of its own, so
    /// that only the whole job can be changed.
    fn change_waiting(&mut self, task: TaskId, timeout_ms: u64) -> Result<bool, Stop> {
        let found = self.rows.base.group_of(task).filter(|(_, group)| group.pending.contains(task));
        let Some((first, group)) = found else { return Ok(false) };
        if group.tasks.count > 1 {
            return Err(Rejection::NotStarted { task, job: group.job }.into());
        }
        self.change_spec(first, timeout_ms)?;
        Ok(true)
    }

    fn change_spec(&mut self, first: TaskId, timeout_ms: u64) -> Result<(), Stop> {
        let spec = self.rows.specs.get_mut(&first).ok_or(Stop::Bug("a group without its specification"))?;
        Arc::make_mut(spec).timeout_ms = timeout_ms;
        Ok(())
    }
}
