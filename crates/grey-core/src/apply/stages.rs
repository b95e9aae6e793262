//! Stages: a task that ends lets others go on, or cancels those that waited for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Application, Stop};
use crate::command::GroupSubmission;
use crate::effect::{Effect, Event, EventKind};
use crate::flow::{Broken, Flow, FlowSubmission, OutputsOf, Source, Stage, StageProgress};
use crate::ids::{JobId, TaskId, TaskRange};
use crate::rows::Job;

/// For each stage those that wait for it.
fn followers_of(flow: &Flow) -> Vec<Vec<usize>> {
    let mut followers = vec![Vec::new(); flow.stages.len()];
    for (number, stage) in flow.stages.iter().enumerate() {
        for other in &stage.after {
            if let Some(followers) = followers.get_mut(*other as usize) {
                followers.push(number);
            }
        }
    }
    followers
}

impl Application<'_> {
    /// Keeps the flow of a new job whose first task is `first`.
    pub(super) fn insert_flow(
        &mut self,
        job: JobId,
        first: TaskId,
        submission: FlowSubmission,
        groups: &[GroupSubmission],
    ) {
        if submission.is_empty() {
            return;
        }
        let (mut ranges, mut next, mut counts) = (Vec::new(), first, groups.iter().map(|group| group.count));
        for stage in &submission.stages {
            let count = counts.by_ref().take(stage.groups as usize).sum();
            let tasks = TaskRange { first: next, count };
            next = tasks.end();
            ranges.push(tasks);
        }
        let stages = submission.stages.into_iter().zip(&ranges).map(|(stage, tasks)| {
            let inputs = stage.inputs.into_iter().map(|input| {
                let sources = input.sources.iter().filter_map(|source| match source {
                    Source::Stage(number) => ranges.get(*number as usize).copied(),
                    Source::Tasks(range) => Some(*range),
                });
                OutputsOf { tasks: sources.collect(), path: input.path }
            });
            let inputs = inputs.collect();
            Arc::new(Stage { tasks: *tasks, inputs, after: stage.after, items: stage.items })
        });
        let stages: Vec<Arc<Stage>> = stages.collect();
        for stage in &stages {
            let progress = StageProgress {
                job,
                tasks: stage.tasks,
                unfinished: u64::from(stage.tasks.count),
                waiting: !stage.after.is_empty(),
                broken: None,
            };
            self.rows.progress.insert(stage.tasks.first, progress);
        }
        let flow = Flow { parallel: submission.parallel, max_failures: submission.max_failures, stages };
        self.rows.flows.insert(job, Arc::new(flow));
    }

    /// The stage of a task whose job has any.
    pub(super) fn stage_of(&self, job: JobId, task: TaskId) -> Option<Arc<Stage>> {
        self.rows.flows.get(&job)?.stage_of(task).map(|(_, stage)| stage.clone())
    }

    /// How many more tasks of a job may be held.
    pub(super) fn job_room(&self, job: &Job, id: JobId) -> u64 {
        let parallel = self.rows.flows.get(&id).and_then(|flow| flow.parallel);
        parallel.map_or(u64::MAX, |most| u64::from(most).saturating_sub(job.held()))
    }

    /// Notes that tasks of one stage, `task` among them, ended.
    pub(super) fn note_ended(
        &mut self,
        job: JobId,
        task: TaskId,
        amount: u64,
        succeeded: bool,
    ) -> Result<(), Stop> {
        let Some(stage) = self.stage_of(job, task) else { return Ok(()) };
        let progress = self.progress_mut(&stage)?;
        if succeeded {
            progress.unfinished = progress
                .unfinished
                .checked_sub(amount)
                .ok_or(Stop::Bug("a stage's unfinished tasks fell below zero"))?;
        } else {
            progress.broken.get_or_insert(Broken::Own);
        }
        Ok(())
    }

    fn progress_mut(&mut self, stage: &Stage) -> Result<&mut StageProgress, Stop> {
        self.rows.progress.get_mut(&stage.tasks.first).ok_or(Stop::Bug("a stage without its progress"))
    }

    /// After tasks of a job ended: cancels what can no longer run, and lets go on what need not wait any longer.
    pub(super) fn settle_flow(&mut self, job: JobId) -> Result<(), Stop> {
        let Some(flow) = self.rows.flows.get(&job).cloned() else { return Ok(()) };
        let row = self.rows.jobs.get(&job).cloned().ok_or(Stop::Bug("a flow without its job"))?;
        let too_many = flow.max_failures.is_some_and(|most| row.counts.failed > u64::from(most));
        if too_many && row.counts.live() > 0 {
            let cancelled = self.cancel_tasks(job, &row, row.info.tasks)?;
            self.event_cancelled(job, cancelled);
        }
        let mut due: BTreeSet<usize> = (0..flow.stages.len()).collect();
        let mut followers: Option<Vec<Vec<usize>>> = None;
        while let Some(number) = due.pop_first() {
            let Some(stage) = flow.stages.get(number).filter(|stage| !stage.after.is_empty()) else {
                continue;
            };
            // Only what waits for a stage that was settled is looked at again, so each link is followed twice at most.
            if self.settle_stage(job, &flow, stage)? {
                let followers = followers.get_or_insert_with(|| followers_of(&flow));
                due.extend(followers.get(number).into_iter().flatten());
            }
        }
        Ok(())
    }

    fn settle_stage(&mut self, job: JobId, flow: &Flow, stage: &Stage) -> Result<bool, Stop> {
        let progress = self.rows.progress.get(&stage.tasks.first);
        let progress = progress.ok_or(Stop::Bug("a stage without its progress"))?;
        if !progress.waiting || matches!(progress.broken, Some(Broken::After(_))) {
            return Ok(false);
        }
        let (mut waits, mut broken) = (false, None);
        for number in &stage.after {
            let other = flow.stages.get(*number as usize).ok_or(Stop::Bug("a stage waits for none"))?;
            let other = self.rows.progress.get(&other.tasks.first);
            let other = other.ok_or(Stop::Bug("a stage without its progress"))?;
            waits |= other.unfinished > 0;
            if other.broken.is_some() {
                broken.get_or_insert(*number);
            }
        }
        if let Some(number) = broken {
            self.progress_mut(stage)?.broken = Some(Broken::After(number));
            let row = self.rows.jobs.get(&job).cloned().ok_or(Stop::Bug("a flow without its job"))?;
            let cancelled = self.cancel_tasks(job, &row, stage.tasks)?;
            self.event_cancelled(job, cancelled);
            return Ok(true);
        }
        if !waits {
            self.progress_mut(stage)?.waiting = false;
        }
        Ok(!waits)
    }

    pub(super) fn event_cancelled(&mut self, job: JobId, cancelled: u64) {
        if cancelled > 0 {
            let kind = EventKind::Cancelled(cancelled);
            self.effects.push(Effect::Event(Event { index: self.index, job, kind }));
        }
    }

    /// Takes the flow of a job that ended out of the state.
    pub(super) fn remove_flow(&mut self, job: JobId) -> Option<(Arc<Flow>, Vec<Option<Broken>>)> {
        let flow = self.rows.flows.get(&job).cloned()?;
        self.rows.flows.remove(&job);
        let mut broken = Vec::with_capacity(flow.stages.len());
        for stage in &flow.stages {
            broken.push(self.rows.progress.get(&stage.tasks.first).and_then(|progress| progress.broken));
            self.rows.progress.remove(&stage.tasks.first);
        }
        Some((flow, broken))
    }
}
