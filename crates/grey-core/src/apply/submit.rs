//! Submissions: all of a job or nothing of it.

use std::sync::Arc;

use super::{Application, Stop};
use crate::command::{GroupSubmission, Submit};
use crate::effect::{Answer, Effect, Event, EventKind};
use crate::ids::{JobId, TaskId, TaskRange};
use crate::limits;
use crate::range_set::RangeSet;
use crate::rejection::Rejection;
use crate::rows::{Counts, Group, Job, JobInfo, KeyRecord};
use crate::validate;

impl Application<'_> {
    pub(super) fn submit(&mut self, body: Submit) -> Result<Answer, Stop> {
        let total = validate::submission(&body)?;
        let tenant = self.rows.tenants.get(&body.tenant).ok_or(Rejection::UnknownTenant(body.tenant))?;
        if let Some(answer) = self.repeated(&body)? {
            return Ok(answer);
        }
        #[cfg(feature = "mutants")]
        let suspended =
            tenant.suspended && self.rows.base.mutant != Some(crate::mutant::Mutant::ForgetSuspension);
        #[cfg(not(feature = "mutants"))]
        let suspended = tenant.suspended;
        if suspended {
            return Err(Rejection::TenantSuspended(body.tenant).into());
        }
        let queued = tenant.queued_tasks.saturating_add(u64::from(total));
        let quota = self.rows.quotas.get(&body.tenant).copied().unwrap_or_default();
        #[cfg(feature = "mutants")]
        let quota = if self.rows.base.mutant == Some(crate::mutant::Mutant::IgnoreQuota) {
            Default::default()
        } else {
            quota
        };
        if queued > quota.queued_tasks() {
            return Err(full("queued tasks", quota.queued_tasks()));
        }
        let charged = quota.charged(u64::from(total), self.rows.meta.time_ms)?;
        let keys = tenant.keys + u64::from(body.key.is_some());
        if keys > limits::TENANT_KEYS {
            return Err(full("idempotency keys", limits::TENANT_KEYS));
        }
        let (job, tasks) = self.number(total)?;
        self.rows.meta.wall_ms = body.wall_ms;
        if let Some(tenant) = self.rows.tenants.get_mut(&body.tenant) {
            tenant.queued_tasks = queued;
            tenant.keys = keys;
        }
        if charged != quota {
            self.rows.quotas.insert(body.tenant, charged);
        }
        if let Some(key) = &body.key {
            let record = KeyRecord { body: key.body, job, tasks, expires_at_ms: None };
            self.rows.keys.insert((body.tenant, key.key.clone()), record);
        }
        self.insert_flow(job, tasks.first, body.flow, &body.groups);
        self.insert_groups(job, tasks.first, body.groups);
        let info = JobInfo {
            tenant: body.tenant,
            submitter: body.submitter,
            name: body.name,
            labels: body.labels,
            created_at_ms: body.wall_ms,
            tasks,
            key: body.key.map(|key| key.key),
        };
        let counts = Counts { pending: u64::from(total), ..Counts::default() };
        self.rows.jobs.insert(job, Job { info: Arc::new(info), counts, stopping: 0 });
        self.effects.push(Effect::Event(Event { index: self.index, job, kind: EventKind::Submitted }));
        Ok(Answer::Submitted { job, tasks, duplicate: false })
    }

    fn repeated(&self, body: &Submit) -> Result<Option<Answer>, Stop> {
        let Some(key) = &body.key else { return Ok(None) };
        match self.rows.keys.get(&(body.tenant, key.key.clone())) {
            None => Ok(None),
            Some(record) if record.body == key.body => {
                Ok(Some(Answer::Submitted { job: record.job, tasks: record.tasks, duplicate: true }))
            }
            Some(record) => Err(Rejection::IdempotencyConflict { job: record.job }.into()),
        }
    }

    fn number(&mut self, total: u32) -> Result<(JobId, TaskRange), Stop> {
        let meta = &mut self.rows.meta;
        let first = TaskId(meta.tasks_submitted + 1);
        let jobs =
            meta.jobs_submitted.checked_add(1).ok_or_else(|| Rejection::Exhausted("job".to_owned()))?;
        let tasks = meta
            .tasks_submitted
            .checked_add(u64::from(total))
            .filter(|tasks| *tasks < u64::MAX - 1)
            .ok_or_else(|| Rejection::Exhausted("task".to_owned()))?;
        meta.jobs_submitted = jobs;
        meta.tasks_submitted = tasks;
        Ok((JobId(jobs), TaskRange { first, count: total }))
    }

    fn insert_groups(&mut self, job: JobId, first: TaskId, groups: Vec<GroupSubmission>) {
        let mut first = first;
        for group in groups {
            let tasks = TaskRange { first, count: group.count };
            let row = Group {
                job,
                tasks,
                priority: group.spec.priority,
                queued_at_ms: self.rows.meta.time_ms,
                pending: RangeSet::of(tasks),
            };
            self.rows.groups.insert(first, row);
            self.rows.specs.insert(first, Arc::new(group.spec));
            first = tasks.end();
        }
    }
}

fn full(what: &str, limit: u64) -> Stop {
    Rejection::QueueFull { what: what.to_owned(), limit }.into()
}
