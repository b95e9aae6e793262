//! What must hold of every state. The simulator and the property tests ask after every entry, a node after loading.

use std::collections::BTreeMap;

use crate::breaker::{BreakerPhase, PROBES};
use crate::flow::Stage;
use crate::ids::{JobId, TaskId, TenantId, WorkerId};
use crate::level::{BREAKER_LEVEL, NEWEST_FEATURE_LEVEL, OLDEST_FEATURE_LEVEL, QUOTA_LEVEL};
use crate::quota::Quota;
use crate::rows::{Counts, Phase, Presence};
use crate::spec::Resources;
use crate::state::State;

/// What the rows of attempts add up to.
#[derive(Default)]
struct Sums {
    held: BTreeMap<WorkerId, (u32, Resources)>,
    devices: BTreeMap<(WorkerId, String), u64>,
    tenant_held: BTreeMap<TenantId, (u64, Resources)>,
    jobs: BTreeMap<JobId, (Counts, u64)>,
}

fn add(sum: &mut Resources, more: &Resources) -> Result<(), String> {
    *sum = sum.checked_add(more).ok_or("resources overflow")?;
    Ok(())
}

impl State {
    /// Checks every invariant; the error names the first that does not hold. Costs a walk over all live work.
    pub fn check(&self) -> Result<(), String> {
        self.check_meta()?;
        let mut sums = Sums::default();
        self.check_live(&mut sums)?;
        self.check_groups(&mut sums)?;
        self.check_jobs(&sums)?;
        self.check_workers(&sums)?;
        self.check_flows()?;
        self.check_identity()?;
        self.check_tenants(&sums)
    }

    /// Numbers that only grow are far from their ends, and the log's tree has the edge of its size.
    fn check_meta(&self) -> Result<(), String> {
        let meta = &self.meta;
        let grows = [
            self.applied_index,
            meta.jobs_submitted,
            meta.tasks_submitted,
            meta.servers_numbered,
            meta.log.size(),
        ];
        if grows.into_iter().any(|number| number > grey_proof::MAX_INTEGER) || !meta.log.is_whole() {
            return Err(
                "a number of the cluster as a whole is impossible, or its log has another edge".to_owned()
            );
        }
        let founded = meta.cluster.is_some();
        if founded != (OLDEST_FEATURE_LEVEL..=NEWEST_FEATURE_LEVEL).contains(&meta.feature_level) {
            return Err(format!("feature level {} is in force", meta.feature_level));
        }
        let first = self.groups.values().map(|group| group.tasks.end().0).max().unwrap_or(0);
        if first > meta.tasks_submitted.saturating_add(1) {
            return Err("there are tasks that were never submitted".to_owned());
        }
        Ok(())
    }

    fn check_flows(&self) -> Result<(), String> {
        let stages: usize = self.flows.values().map(|flow| flow.stages.len()).sum();
        if stages != self.progress.len() {
            return Err("a stage's progress without its stage, or the other way round".to_owned());
        }
        for (id, flow) in &self.flows {
            let job = self.jobs.get(id).ok_or_else(|| format!("the flow of {id} outlived its job"))?;
            if flow.parallel.is_some_and(|most| job.held() > u64::from(most)) {
                return Err(format!("more tasks of {id} are held than may be: {}", job.held()));
            }
            let within = |stage: &Stage| {
                let known = stage.after.iter().all(|number| (*number as usize) < flow.stages.len());
                known && stage.tasks.count > 0 && job.info.tasks.contains(stage.tasks.first)
            };
            let ascending =
                flow.stages.array_windows::<2>().all(|[one, next]| one.tasks.end() <= next.tasks.first);
            if !ascending || !flow.stages.iter().all(|stage| within(stage)) {
                return Err(format!("the stages of {id} overlap, or wait for none of its own"));
            }
            let progress_of = |number: &u32| {
                flow.stages.get(*number as usize).and_then(|stage| self.progress.get(&stage.tasks.first))
            };
            for stage in &flow.stages {
                let progress = self.progress.get(&stage.tasks.first);
                let progress = progress.ok_or_else(|| format!("a stage of {id} has no progress"))?;
                let waits = stage.after.iter().filter_map(progress_of).any(|other| other.unfinished > 0);
                let started = self.live.range(stage.tasks.first..stage.tasks.end()).next().is_some();
                if progress.waiting != waits || (waits && started) {
                    return Err(format!(
                        "the stage at {} of {id} started too early or waits for nothing",
                        stage.tasks.first
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_live(&self, sums: &mut Sums) -> Result<(), String> {
        for (task, live) in &self.live {
            let group =
                self.groups.get(&live.group).ok_or_else(|| format!("{task} lives without its group"))?;
            if !group.tasks.contains(*task) || group.pending.contains(*task) {
                return Err(format!("{task} is both live and waiting, or in a foreign group"));
            }
            if live.epoch.0 == 0 {
                return Err(format!("{task} lives without ever having been assigned"));
            }
            let (counts, stopping) = sums.jobs.entry(group.job).or_default();
            match live.phase {
                Phase::Ready | Phase::Backoff { .. } => counts.pending += 1,
                Phase::Assigned { .. } => counts.assigned += 1,
                Phase::Running { .. } => counts.running += 1,
                Phase::Stopping { .. } => *stopping += 1,
            }
            if let Some(worker) = live.phase.worker() {
                let spec = self.specs.get(&live.group).ok_or("a group without its specification")?;
                let resources = spec.resources;
                for kind in &spec.devices {
                    *sums.devices.entry((worker, kind.name.clone())).or_default() += u64::from(kind.count);
                }
                let tenant = self.jobs.get(&group.job).ok_or("a group without its job")?.info.tenant;
                let (held, charged) = sums.held.entry(worker).or_default();
                *held += 1;
                add(charged, &resources)?;
                let (held, usage) = sums.tenant_held.entry(tenant).or_default();
                *held += 1;
                add(usage, &resources)?;
            }
        }
        Ok(())
    }

    fn check_groups(&self, sums: &mut Sums) -> Result<(), String> {
        let mut end = TaskId(0);
        for (first, group) in &self.groups {
            if *first != group.tasks.first || *first < end || group.tasks.count == 0 {
                return Err(format!("the group at {first} overlaps another or is empty"));
            }
            end = group.tasks.end();
            let ranges = group.pending.ranges();
            let inside =
                ranges.iter().all(|range| range.first >= *first && range.end() <= end && range.count > 0);
            let ascending = ranges.array_windows::<2>().all(|[one, next]| one.end() < next.first);
            let of_job = self
                .jobs
                .get(&group.job)
                .is_none_or(|job| job.info.tasks.contains(*first) && end <= job.info.tasks.end());
            if !of_job {
                return Err(format!("the group at {first} lies outside of its job"));
            }
            if !inside || !ascending || !self.specs.contains_key(first) {
                return Err(format!("the group at {first} waits for foreign tasks or has no specification"));
            }
            sums.jobs.entry(group.job).or_default().0.pending += group.pending.count();
        }
        if self.specs.len() != self.groups.len() {
            return Err("a specification without its group".to_owned());
        }
        Ok(())
    }

    fn check_jobs(&self, sums: &Sums) -> Result<(), String> {
        if sums.jobs.len() != self.jobs.len() {
            return Err("a group without its job, or a job without a group".to_owned());
        }
        for (id, job) in &self.jobs {
            if !self.tenants.contains_key(&job.info.tenant) {
                return Err(format!("{id} is of no tenant"));
            }
            let (counts, stopping) = sums.jobs.get(id).ok_or_else(|| format!("{id} has no group"))?;
            let kept = (job.counts.pending, job.counts.assigned, job.counts.running, job.stopping);
            if kept != (counts.pending, counts.assigned, counts.running, *stopping) {
                return Err(format!(
                    "the counts of {id} are {kept:?}, its tasks say {counts:?} and {stopping}"
                ));
            }
            if job.counts.total() != u64::from(job.info.tasks.count) {
                return Err(format!("the tasks of {id} are not conserved: {:?}", job.counts));
            }
            if job.counts.live() == 0 && job.stopping == 0 {
                return Err(format!("{id} has ended and is still here"));
            }
        }
        Ok(())
    }

    fn check_workers(&self, sums: &Sums) -> Result<(), String> {
        if sums.held.keys().any(|worker| !self.workers.contains_key(worker)) {
            return Err("an attempt on an unknown worker".to_owned());
        }
        for (id, worker) in &self.workers {
            let (held, charged) = sums.held.get(id).copied().unwrap_or_default();
            if worker.held != held || worker.charged != charged {
                return Err(format!("{id} is charged {} attempts and holds {held}", worker.held));
            }
            if worker.cordoned != self.node(&worker.node).is_some_and(|row| row.cordoned) {
                return Err(format!("{id} is cordoned and its node is not, or the other way round"));
            }
            if worker.presence == Presence::Lost && held > 0 {
                return Err(format!("{id} is lost and holds {held} attempts"));
            }
            for kind in &worker.devices {
                let charged = sums.devices.get(&(*id, kind.name.clone())).copied().unwrap_or(0);
                if kind.charged != charged {
                    let (name, kept) = (&kind.name, kind.charged);
                    return Err(format!("{id} is charged {kept} of {name}, its attempts say {charged}"));
                }
            }
        }
        self.check_breakers()
    }

    fn check_breakers(&self) -> Result<(), String> {
        for (id, row) in &self.breakers {
            let is_known = self.workers.contains_key(id) && self.meta.feature_level >= BREAKER_LEVEL;
            let ascends = row.executors.is_sorted_by(|one, next| one.executor < next.executor);
            if !is_known || !ascends || row.executors.is_empty() {
                return Err(format!("the breakers of {id} are nobody's, say nothing, or are not in force"));
            }
            for breaker in &row.executors {
                let BreakerPhase::HalfOpen { probes, .. } = &breaker.phase else { continue };
                let waits = |task: &TaskId| {
                    let live = self.live.get(task);
                    live.is_some_and(|live| {
                        let spec = self.specs.get(&live.group);
                        live.phase.worker() == Some(*id)
                            && !matches!(live.phase, Phase::Running { .. })
                            && spec.is_some_and(|spec| spec.executor == breaker.executor)
                    })
                };
                if probes.len() > PROBES as usize || !probes.iter().all(waits) {
                    return Err(format!("{id} waits for the start of a probe that it does not hold"));
                }
            }
        }
        Ok(())
    }

    fn check_tenants(&self, sums: &Sums) -> Result<(), String> {
        let mut queued: BTreeMap<TenantId, u64> = BTreeMap::new();
        for job in self.jobs.values() {
            *queued.entry(job.info.tenant).or_default() += job.counts.pending;
        }
        let mut keys: BTreeMap<TenantId, u64> = BTreeMap::new();
        for (tenant, key) in self.keys.keys() {
            if !self.tenants.contains_key(tenant) {
                return Err(format!("the idempotency key {key} is of no tenant"));
            }
            *keys.entry(*tenant).or_default() += 1;
        }
        for (id, row) in &self.quotas {
            let known = self.tenants.contains_key(id) && row.quota != Quota::default();
            if !known || self.meta.feature_level < QUOTA_LEVEL {
                return Err(format!(
                    "the quota of tenant {id} is of no tenant, or says nothing, or is not in force"
                ));
            }
        }
        for (id, tenant) in &self.tenants {
            let (held, usage) = sums.tenant_held.get(id).copied().unwrap_or_default();
            let sums =
                (held, usage, queued.get(id).copied().unwrap_or(0), keys.get(id).copied().unwrap_or(0));
            if sums != (tenant.held_tasks, tenant.usage, tenant.queued_tasks, tenant.keys) {
                return Err(format!(
                    "the usage of tenant {} is kept as {tenant:?}, its tasks say {sums:?}",
                    tenant.name
                ));
            }
        }
        Ok(())
    }
}
