//! What becomes of executors that fail, and of those that are tried again. All of it came with a feature level: below that nothing is
//! counted.

use super::{Application, Stop};
use crate::attempt::Outcome;
use crate::breaker::{ExecutorBreaker, Moment, WorkerBreakers, has_room};
use crate::ids::{TaskId, TaskRange, WorkerId};
use crate::level::BREAKER_LEVEL;
use crate::rows::{LiveTask, Presence};
use crate::spec::ExecutorKind;

impl Application<'_> {
    fn moment(&self, worker: WorkerId) -> Moment {
        let now_ms = self.rows.meta.time_ms;
        Moment { now_ms, index: self.index, spread: self.index ^ u64::from(worker.0).rotate_left(32) }
    }

    /// Changes a breaker that is there, and forgets it when there is nothing left to remember.
    fn change_breaker<T>(
        &mut self,
        worker: WorkerId,
        executor: ExecutorKind,
        change: impl FnOnce(&mut ExecutorBreaker) -> T,
    ) -> Option<T> {
        self.rows.breakers.get(&worker)?.before(executor)?;
        let row = self.rows.breakers.get_mut(&worker)?;
        let changed = change(row.before_mut(executor)?);
        row.tidy();
        if row.executors.is_empty() {
            self.rows.breakers.remove(&worker);
        }
        Some(changed)
    }

    /// How many more attempts a worker's executor may be given.
    pub(super) fn executor_room(&self, worker: WorkerId, executor: ExecutorKind) -> u32 {
        self.rows.breakers.get(&worker).map_or(u32::MAX, |row| row.room(executor))
    }

    /// A worker's executor was given attempts.
    pub(super) fn executor_given(&mut self, worker: WorkerId, executor: ExecutorKind, tasks: TaskRange) {
        if self.executor_room(worker, executor) != u32::MAX {
            let now_ms = self.rows.meta.time_ms;
            self.change_breaker(worker, executor, |breaker| breaker.given(tasks.tasks(), now_ms));
        }
    }

    /// A worker's executor has started an attempt.
    pub(super) fn executor_started(&mut self, worker: WorkerId, executor: ExecutorKind, task: TaskId) {
        self.change_breaker(worker, executor, |breaker| breaker.started(task));
    }

    /// A worker holds an attempt no longer.
    pub(super) fn executor_released(&mut self, worker: WorkerId, executor: ExecutorKind, task: TaskId) {
        self.change_breaker(worker, executor, |breaker| breaker.is_over(task));
    }

    /// An attempt ended at a worker's executor.
    pub(super) fn executor_ended(
        &mut self,
        worker: WorkerId,
        executor: ExecutorKind,
        live: &LiveTask,
        outcome: Outcome,
    ) -> Result<(), Stop> {
        let has_failed = match outcome {
            Outcome::Infrastructure => true,
            // These may never have run.
            Outcome::Cancelled | Outcome::InputRefused => return Ok(()),
            _ => false,
        };
        let is_known = self.rows.breakers.get(&worker).is_some_and(|row| row.before(executor).is_some());
        if self.rows.meta.feature_level < BREAKER_LEVEL || (!has_failed && !is_known) {
            return Ok(());
        }
        if self.rows.breakers.get(&worker).is_none() {
            self.rows.breakers.insert(worker, Default::default());
        }
        let row = self.rows.breakers.get_mut(&worker).ok_or(Stop::Bug("a breaker's row disappeared"))?;
        row.before_or_closed(executor);
        let assigned_index = live.assigned_index;
        let belongs_open =
            self.change_breaker(worker, executor, |breaker| breaker.ended(has_failed, assigned_index));
        if belongs_open == Some(true) {
            let (room, moment) = (self.may_shut(worker, executor), self.moment(worker));
            if !room {
                self.rows.meta.quarantine_alerts = self.rows.meta.quarantine_alerts.saturating_add(1);
            }
            self.change_breaker(worker, executor, |breaker| match room {
                true => breaker.open(moment),
                false => breaker.close(),
            });
        }
        Ok(())
    }

    /// Whether a worker's executor may be shut beside those of others that are.
    fn may_shut(&self, worker: WorkerId, executor: ExecutorKind) -> bool {
        let base = self.rows.base;
        let is_there =
            |other: &WorkerId| base.workers.get(other).is_some_and(|row| row.presence == Presence::Present);
        let is_shut = |row: &WorkerBreakers| row.before(executor).is_some_and(ExecutorBreaker::is_shut);
        let shut = base
            .breakers
            .iter()
            .filter(|(other, row)| **other != worker && is_there(other) && is_shut(row))
            .count();
        has_room(shut, base.workers.keys().filter(|other| is_there(other)).count())
    }

    /// The time of a worker's breaker has come.
    pub(super) fn breakers_due(&mut self, worker: WorkerId) -> Result<(), Stop> {
        let moment = self.moment(worker);
        let row = self.rows.breakers.get_mut(&worker).ok_or(Stop::Bug("a deadline without its breaker"))?;
        row.executors.iter_mut().for_each(|breaker| breaker.pass(moment));
        Ok(())
    }
}
