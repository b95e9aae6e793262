//! What the API says of jobs, tasks and results: from the state while a job lives, from history afterwards.

use std::sync::Arc;

use grey_api::{
    ContentStatus, ErrorCode, FileStatus, JobCounts, JobStatus, Problem, TaskExplanation, TaskResult,
    TaskStatus,
};
use grey_core::{
    Broken, Content, Counts, Flow, FlowRecord, Job, JobId, JobInfo, JobRecord, Outcome, Phase, ReportRecord,
    ReportedRun, Resources, State, TaskId, TaskRange, TaskSpec, TenantId, Usage, Worker, WorkerId,
};

use crate::estimate::{estimate, peers};
use crate::handle::{Node, unreadable};
use crate::http::Scope;
use crate::records::{FoundAttempt, Records};
use crate::retention::Class;

/// The most attempts that are looked at to tell how a task ended.
const ATTEMPTS_LOOKED_AT: usize = 64;

/// The most tasks that one page of live ones looks at: many of a job may have ended, and the state's thread has other
/// things to do.
const TASKS_LOOKED_AT: usize = 20_000;

/// What is known of a task without its results.
#[derive(Debug, Clone)]
pub(crate) struct TaskFacts {
    pub(crate) task: TaskId,
    pub(crate) job: JobId,
    pub(crate) info: Arc<JobInfo>,
    pub(crate) spec: Arc<TaskSpec>,
    /// Its position in the run of equal tasks that it belongs to; nothing when it is alone.
    pub(crate) index: Option<u32>,
    counts: Counts,
    /// When its job ended, wall clock; nothing while it lives.
    pub(crate) ended_at_ms: Option<u64>,
    /// Why it was cancelled, if it was, where that was not asked for.
    cancelled_because: Option<String>,
    /// Where a task is that has not ended.
    live: Option<LiveFacts>,
}

#[derive(Debug, Clone)]
struct LiveFacts {
    state: &'static str,
    reason: Option<String>,
    attempt: u32,
    worker: Option<String>,
}

/// One attempt with its report.
pub(crate) struct Attempt {
    pub(crate) found: FoundAttempt,
    pub(crate) report: Arc<ReportRecord>,
}

/// The report that was read last: neighbours of a listing are mostly in the same one.
#[derive(Default)]
pub(crate) struct LastReport(Option<Arc<ReportRecord>>);

impl LastReport {
    pub(crate) fn attempt(&mut self, records: &Records, found: FoundAttempt) -> Result<Attempt, Problem> {
        let position = found.pointer.position;
        if let Some(report) = self.0.as_ref().filter(|report| report.position == position) {
            return Ok(Attempt { found, report: report.clone() });
        }
        let report = records.report(position).map_err(|error| unreadable(&error))?;
        let missing = || {
            // It was there a moment ago, when the attempt was found.
            let removed = records.horizons().history_ms > 0;
            let code = if removed { ErrorCode::NotRetained } else { ErrorCode::Internal };
            Problem::new(code, format!("report {position} is no longer in history"))
        };
        let report = Arc::new(report.ok_or_else(missing)?);
        self.0 = Some(report.clone());
        Ok(Attempt { found, report })
    }
}

impl Attempt {
    /// The attempt's run and its offset within the run.
    pub(crate) fn run(&self) -> Option<(&ReportedRun, u32)> {
        let mut leaf = self.found.pointer.leaf;
        for run in &self.report.runs {
            if leaf < run.finished.tasks.count {
                return Some((run, leaf));
            }
            leaf -= run.finished.tasks.count;
        }
        None
    }

    fn outcome(&self) -> Option<Outcome> {
        self.run().map(|(run, _)| run.finished.result.outcome)
    }
}

fn counts(counts: &Counts) -> JobCounts {
    JobCounts {
        pending: counts.pending,
        assigned: counts.assigned,
        running: counts.running,
        completed: counts.completed,
        failed: counts.failed,
        cancelled: counts.cancelled,
    }
}

fn job_status(node: &Node, id: JobId, info: &JobInfo, total: &Counts, ended_at_ms: Option<u64>) -> JobStatus {
    JobStatus {
        id: id.to_string(),
        name: info.name.clone(),
        tenant: node.tenant_name(info.tenant),
        submitter: info.submitter.clone(),
        labels: info.labels.iter().cloned().collect(),
        ended: total.live() == 0,
        counts: counts(total),
        first_task: info.tasks.first.to_string(),
        tasks: info.tasks.count,
        created_at_ms: info.created_at_ms,
        ended_at_ms,
    }
}

pub(crate) fn no_such(what: &str, id: impl core::fmt::Display) -> Problem {
    let problem = Problem::new(ErrorCode::NotFound, format!("there is no {what} {id}"));
    match what {
        "job" | "task" => problem.hint(format!("`grey {what} list` shows what there is")),
        _ => problem.hint("`grey task result` shows a task's attempts and files"),
    }
}

/// The refusal of what has no record: it was never there, or is no longer kept. Identifiers follow one another.
async fn without_record(node: &Node, what: &str, number: u64, id: String) -> Problem {
    let submitted = |replica: &grey_replica::Replica| {
        let meta = replica.state().meta();
        (meta.jobs_submitted, meta.tasks_submitted)
    };
    let (jobs, tasks) = match node.ask(submitted).await {
        Ok(submitted) => submitted,
        Err(problem) => return problem,
    };
    let given = if what == "job" { jobs } else { tasks };
    if (1..=given).contains(&number) && node.records.horizons().history_ms > 0 {
        return node.keeping.not_retained(format!("{what} {id}"), Class::History);
    }
    no_such(what, id)
}

/// A job that is not live. Of one that is no longer kept some records may still be there; none of it is shown.
async fn ended_job(node: &Node, id: JobId) -> Result<JobRecord, Problem> {
    let record = node.records.job(id).map_err(|error| unreadable(&error))?;
    let horizon_ms = node.records.horizons().history_ms;
    match record.filter(|record| record.ended_at_ms > horizon_ms) {
        Some(record) => Ok(record),
        None => Err(without_record(node, "job", id.0, id.to_string()).await),
    }
}

/// The attempts of a task that were reported, all of them or a refusal.
fn attempts(node: &Node, facts: &TaskFacts) -> Result<Vec<FoundAttempt>, Problem> {
    let attempts = node.records.attempts(facts.task).map_err(|error| unreadable(&error))?;
    // Asked after they were read: what is missing then has moved the horizon before.
    let horizon_ms = node.records.horizons().history_ms;
    match facts.ended_at_ms {
        Some(ended_at_ms) if ended_at_ms <= horizon_ms => {
            Err(node.keeping.not_retained(format!("task {}", facts.task), Class::History))
        }
        _ => Ok(attempts),
    }
}

/// Whose a job is that is still kept.
pub(crate) async fn tenant_of_job(node: &Node, id: JobId) -> Result<Option<TenantId>, Problem> {
    if let Some(tenant) = node.view(move |state| state.jobs().get(&id).map(|job| job.info.tenant)).await? {
        return Ok(Some(tenant));
    }
    let record = node.records.job(id).map_err(|error| unreadable(&error))?;
    let horizon_ms = node.records.horizons().history_ms;
    Ok(record.filter(|record| record.ended_at_ms > horizon_ms).map(|record| record.info.tenant))
}

/// Whose a task is that is still kept.
pub(crate) async fn tenant_of_task(node: &Node, task: TaskId) -> Result<Option<TenantId>, Problem> {
    let live = node.view(move |state| {
        let (_, group) = state.group_of(task)?;
        state.jobs().get(&group.job).map(|job| job.info.tenant)
    });
    if let Some(tenant) = live.await? {
        return Ok(Some(tenant));
    }
    let found = node.records.job_of(task).map_err(|error| unreadable(&error))?;
    let horizon_ms = node.records.horizons().history_ms;
    Ok(found.filter(|(_, record)| record.ended_at_ms > horizon_ms).map(|(_, record)| record.info.tenant))
}

/// A job, wherever it is.
pub(crate) async fn job(node: &Node, id: JobId) -> Result<JobStatus, Problem> {
    let live =
        node.view(move |state| state.jobs().get(&id).map(|job| (job.info.clone(), job.counts))).await?;
    match live {
        Some((info, total)) => Ok(job_status(node, id, &info, &total, None)),
        None => {
            let record = ended_job(node, id).await?;
            Ok(job_status(node, id, &record.info, &record.counts, Some(record.ended_at_ms)))
        }
    }
}

/// Jobs before `before`, newest first, live and ended ones together; and whether there are more.
pub(crate) async fn jobs(
    node: &Node,
    before: JobId,
    limit: usize,
    scope: Scope,
) -> Result<(Vec<JobStatus>, bool), Problem> {
    let live: Vec<(JobId, Arc<JobInfo>, Counts)> = node
        .view(move |state| {
            let below = state.jobs().range(..before).rev();
            let of_tenant = below.filter(|(_, job)| scope.has(job.info.tenant));
            of_tenant.take(limit + 1).map(|(id, job)| (*id, job.info.clone(), job.counts)).collect()
        })
        .await?;
    let mut found: Vec<(JobId, JobStatus)> =
        live.iter().map(|(id, info, total)| (*id, job_status(node, *id, info, total, None))).collect();
    // Pages of ended jobs are read until enough are of the tenant.
    let (mut below, mut ended, horizon_ms) = (before, 0, node.records.horizons().history_ms);
    while ended <= limit {
        let page = node.records.jobs_before(below, limit + 1).map_err(|error| unreadable(&error))?;
        let Some((lowest, _)) = page.last() else { break };
        below = *lowest;
        for (id, record) in &page {
            let is_kept = record.ended_at_ms > horizon_ms;
            if is_kept && scope.has(record.info.tenant) {
                ended += 1;
                let status = job_status(node, *id, &record.info, &record.counts, Some(record.ended_at_ms));
                found.push((*id, status));
            }
        }
    }
    found.sort_by_key(|(id, _)| core::cmp::Reverse(*id));
    found.dedup_by_key(|(id, _)| *id);
    let more = found.len() > limit;
    found.truncate(limit);
    Ok((found.into_iter().map(|(_, status)| status).collect(), more))
}

/// What a job's tasks were, in order, live or ended.
pub(crate) async fn groups(
    node: &Node,
    id: JobId,
) -> Result<(Arc<JobInfo>, Vec<(TaskRange, TaskSpec)>), Problem> {
    let live = node
        .view(move |state| {
            let info = state.jobs().get(&id)?.info.clone();
            let tasks = info.tasks;
            let groups = state.groups().range(tasks.first..tasks.end());
            let specs =
                groups.filter_map(|(first, group)| Some((group.tasks, state.spec(*first)?.as_ref().clone())));
            let specs = specs.collect();
            Some((info, specs))
        })
        .await?;
    if let Some(found) = live {
        return Ok(found);
    }
    let record = ended_job(node, id).await?;
    Ok((Arc::new(record.info), record.groups))
}

/// How the stages of a job follow one another, live or ended.
pub(crate) async fn flow(node: &Node, id: JobId) -> Result<Option<Flow>, Problem> {
    if let Some(flow) = node.view(move |state| state.flow(id).cloned()).await? {
        return Ok(Some(flow.as_ref().clone()));
    }
    Ok(node.records.flow(id).map_err(|error| unreadable(&error))?.map(|record| record.flow))
}

/// Why a task of a job with stages was cancelled, if it was.
fn cancelled_because(
    flow: &Flow,
    task: TaskId,
    failed: u64,
    broken: impl Fn(u32) -> Option<Broken>,
    name_of: impl Fn(TaskId) -> String,
) -> Option<String> {
    if let Some(most) = flow.max_failures.filter(|most| failed > u64::from(*most)) {
        return Some(format!("more than {most} task(s) of its job failed"));
    }
    let (number, _) = flow.stage_of(task)?;
    let Some(Broken::After(other)) = broken(number) else { return None };
    let other = flow.stages.get(other as usize)?.tasks.first;
    Some(format!("it waited for `{}`, of which not every task succeeded", name_of(other)))
}

/// What a waiting task waits for.
fn waiting_reason(state: &State, task: TaskId, spec: &TaskSpec, job: &Job, id: JobId) -> String {
    if let Some(flow) = state.flow(id) {
        let stage = flow.stage_of(task).map(|(_, stage)| stage);
        let waits_for = stage.into_iter().flat_map(|stage| &stage.after).find_map(|number| {
            let other = flow.stages.get(*number as usize)?.tasks;
            let unfinished = state.stage_progress(other.first)?.unfinished;
            (unfinished > 0).then(|| {
                let name = state.spec(other.first).map_or("", |spec| spec.name.as_str());
                let done = u64::from(other.count).saturating_sub(unfinished);
                format!("it waits for `{name}`, of which {done} of {} task(s) have succeeded", other.count)
            })
        });
        if let Some(reason) = waits_for {
            return reason;
        }
        if let Some(most) = flow.parallel.filter(|most| job.held() >= u64::from(*most)) {
            return format!("{most} task(s) of its job run, which is the most that may at once");
        }
    }
    no_room_reason(state, spec)
}

/// What the state knows of a task of a job that lives.
fn live_facts(state: &State, task: TaskId) -> Option<TaskFacts> {
    let (first, group) = state.group_of(task)?;
    let job = state.jobs().get(&group.job)?;
    let spec = state.spec(first)?.clone();
    let live = if group.pending.contains(task) {
        Some(LiveFacts {
            state: "pending",
            reason: Some(waiting_reason(state, task, &spec, job, group.job)),
            attempt: 0,
            worker: None,
        })
    } else {
        state.live().get(&task).and_then(|live| {
            let (name, reason) = match live.phase {
                Phase::Ready => ("pending", Some(waiting_reason(state, task, &spec, job, group.job))),
                Phase::Backoff { .. } => ("pending", Some("it waits before it is tried again".to_owned())),
                Phase::Assigned { .. } => ("assigned", None),
                Phase::Running { .. } => ("running", None),
                Phase::Stopping { .. } => return None,
            };
            let worker = live.phase.worker().map(|worker| worker.to_string());
            Some(LiveFacts { state: name, reason, attempt: live.epoch.0, worker })
        })
    };
    let index = position(group.tasks, task);
    let cancelled_because = state.flow(group.job).filter(|_| live.is_none()).and_then(|flow| {
        let progress = |number: u32| {
            let stage = flow.stages.get(number as usize)?;
            state.stage_progress(stage.tasks.first)?.broken
        };
        let name_of = |task| state.spec(task).map_or_else(String::new, |spec| spec.name.clone());
        cancelled_because(flow, task, job.counts.failed, progress, name_of)
    });
    let (info, counts) = (job.info.clone(), job.counts);
    let job = group.job;
    Some(TaskFacts { task, job, info, spec, index, counts, ended_at_ms: None, cancelled_because, live })
}

fn no_room_reason(state: &State, spec: &TaskSpec) -> String {
    let any = |suits: &dyn Fn(&Worker) -> bool| state.workers().values().any(suits);
    if state.workers().is_empty() {
        return "no worker is registered".to_owned();
    }
    if any(&|worker| worker.suits(spec)) && !any(&|worker| worker.suits(spec) && !worker.cordoned) {
        return "every worker that could run it is cordoned".to_owned();
    }
    let is_open = |id: WorkerId| state.executor_room(id, spec.executor) == u32::MAX;
    let suits = |worker: &Worker| worker.suits(spec) && !worker.cordoned;
    if any(&suits) && !state.workers().iter().any(|(id, worker)| suits(worker) && is_open(*id)) {
        let executor = spec.executor.name();
        return format!(
            "the executor `{executor}` of every worker that could run it failed too often; it is tried again within a minute"
        );
    }
    if any(&|worker| worker.suits(spec)) {
        return "every worker that could run it is full".to_owned();
    }
    if !any(&|worker| spec.resources.fits(&worker.capacity)) {
        return beyond_every_worker(state, &spec.resources);
    }
    for kind in &spec.devices {
        if !any(&|worker| worker.has(core::slice::from_ref(kind))) {
            return format!("no worker has {} device(s) `{}`", kind.count, kind.name);
        }
    }
    let constraints = &spec.constraints;
    for label in &constraints.labels {
        if !any(&|worker| worker.labels.binary_search(label).is_ok()) {
            return format!("no worker has the label {}={}", label.0, label.1);
        }
    }
    if !any(&|worker| worker.tier >= constraints.tier) {
        return format!("no worker has the tier {}", constraints.tier.name());
    }
    if !any(&|worker| worker.sandbox >= constraints.sandbox) {
        return format!("no worker enforces {}", constraints.sandbox.name());
    }
    "no worker has all that it asks for at once".to_owned()
}

/// What a task asks for that no worker has.
fn beyond_every_worker(state: &State, needs: &Resources) -> String {
    let most = |of: fn(&Resources) -> u64| {
        state.workers().values().map(|worker| of(&worker.capacity)).max().unwrap_or(0)
    };
    let cpu: fn(&Resources) -> u64 = |resources| resources.cpu_millicores;
    let memory: fn(&Resources) -> u64 = |resources| resources.memory_bytes;
    let disk: fn(&Resources) -> u64 = |resources| resources.disk_bytes;
    let found = [("millicores", cpu), ("bytes of memory", memory), ("bytes of disk", disk)]
        .into_iter()
        .find_map(|(unit, of)| (of(needs) > most(of)).then(|| (of(needs), most(of), unit)));
    match found {
        Some((needs, most, unit)) => {
            format!("no worker has the {needs} {unit} that it asks for; the largest has {most}")
        }
        None => "no worker has all the resources that it asks for at once".to_owned(),
    }
}

fn position(tasks: TaskRange, task: TaskId) -> Option<u32> {
    let index = u32::try_from(task.0.saturating_sub(tasks.first.0)).ok();
    index.filter(|_| tasks.count > 1)
}

fn ended_facts(task: TaskId, job: JobId, record: &JobRecord, flow: Option<&FlowRecord>) -> Option<TaskFacts> {
    let (tasks, spec) = record.groups.iter().find(|(tasks, _)| tasks.contains(task))?;
    let (spec, info) = (Arc::new(spec.clone()), Arc::new(record.info.clone()));
    let index = position(*tasks, task);
    let cancelled_because = flow.and_then(|kept| {
        let broken = |number: u32| kept.broken.get(number as usize).copied().flatten();
        let name_of = |task| record.spec(task).map_or_else(String::new, |spec| spec.name.clone());
        cancelled_because(&kept.flow, task, record.counts.failed, broken, name_of)
    });
    let (counts, ended_at_ms) = (record.counts, Some(record.ended_at_ms));
    Some(TaskFacts { task, job, info, spec, index, counts, ended_at_ms, cancelled_because, live: None })
}

/// What is known of a task, wherever it is.
pub(crate) async fn facts(node: &Node, task: TaskId) -> Result<TaskFacts, Problem> {
    if let Some(facts) = node.view(move |state| live_facts(state, task)).await? {
        return Ok(facts);
    }
    let found = node.records.job_of(task).map_err(|error| unreadable(&error))?;
    let horizon_ms = node.records.horizons().history_ms;
    let Some((job, record)) = found.filter(|(_, record)| record.ended_at_ms > horizon_ms) else {
        return Err(without_record(node, "task", task.0, task.to_string()).await);
    };
    let flow = node.records.flow(job).map_err(|error| unreadable(&error))?;
    ended_facts(task, job, &record, flow.as_ref()).ok_or_else(|| no_such("task", task))
}

/// The tasks of a job from `from` on, at most `limit`.
pub(crate) async fn facts_of_job(
    node: &Node,
    job: JobId,
    from: TaskId,
    limit: usize,
) -> Result<Vec<TaskFacts>, Problem> {
    let live = node
        .view(move |state| {
            let tasks = state.jobs().get(&job)?.info.tasks;
            let first = from.max(tasks.first);
            let range = (first.0..tasks.end().0).take(limit);
            Some(range.filter_map(|task| live_facts(state, TaskId(task))).collect::<Vec<_>>())
        })
        .await?;
    if let Some(found) = live {
        return Ok(found);
    }
    let record = ended_job(node, job).await?;
    let tasks = record.info.tasks;
    let first = from.max(tasks.first);
    let range = (first.0..tasks.end().0).take(limit);
    let flow = node.records.flow(job).map_err(|error| unreadable(&error))?;
    Ok(range.filter_map(|task| ended_facts(TaskId(task), job, &record, flow.as_ref())).collect())
}

/// Tasks of live jobs from `from` on that have not ended, at most `limit`, and from where to go on.
pub(crate) async fn facts_of_live(
    node: &Node,
    from: TaskId,
    limit: usize,
    scope: Scope,
) -> Result<(Vec<TaskFacts>, Option<TaskId>), Problem> {
    node.view(move |state| {
        let (mut found, mut looked_at) = (Vec::new(), 0usize);
        for job in state.jobs().values().filter(|job| scope.has(job.info.tenant)) {
            let tasks = job.info.tasks;
            for task in from.max(tasks.first).0..tasks.end().0 {
                if found.len() >= limit || looked_at >= TASKS_LOOKED_AT {
                    return (found, Some(TaskId(task)));
                }
                looked_at += 1;
                found.extend(live_facts(state, TaskId(task)).filter(|facts| facts.live.is_some()));
            }
        }
        (found, None)
    })
    .await
}

/// Why a task is where it is, how many are ahead of it, and how long that may take.
pub(crate) async fn explanation(node: &Node, task: TaskId) -> Result<TaskExplanation, Problem> {
    let facts = facts(node, task).await?;
    let status = task_status(node, &facts, &mut LastReport::default())?;
    let found = node.ask(move |replica| {
        let state = replica.state();
        (tasks_ahead(state, task), peers(state, task), is_feasible(state, task))
    });
    let (ahead, peers, feasible) = found.await?;
    let (ahead, estimated) = match (ahead, peers) {
        // Nobody knows when a worker enters.
        (Some(ahead), _) if feasible == Some(false) => (Some(ahead), None),
        (Some((tasks, more)), Some(peers)) => {
            let (records, rate) = (node.records.clone(), node.rate.clone());
            // It reads reports, which takes as long as the disk does.
            let estimated =
                tokio::task::spawn_blocking(move || estimate(tasks, &peers, &records, &rate)).await;
            let estimated =
                estimated.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
            (Some((tasks, more)), estimated.map_err(|error| unreadable(&error))?)
        }
        _ => (None, None),
    };
    Ok(TaskExplanation {
        task: status.id,
        state: status.state,
        reason: status.reason,
        feasible: feasible.filter(|_| ahead.is_some()),
        ahead: ahead.map(|(tasks, _)| tasks),
        ahead_is_lower_bound: ahead.is_some_and(|(_, more)| more),
        estimated_wait_ms: estimated.map(|estimated| estimated.wait_ms),
        estimated_from: estimated.map(|estimated| estimated.from.to_owned()),
    })
}

/// Whether some worker could run a live task, were it empty.
fn is_feasible(state: &State, task: TaskId) -> Option<bool> {
    let spec = state.spec(state.group_of(task)?.0)?;
    Some(state.workers().values().any(|worker| worker.suits(spec)))
}

/// How many tasks of its tenant stand before a waiting one in the line, and whether that is only a lower bound.
fn tasks_ahead(state: &State, task: TaskId) -> Option<(u64, bool)> {
    let (first, group) = state.group_of(task)?;
    let tenant = state.jobs().get(&group.job)?.info.tenant;
    let waits_in_group = group.pending.contains(task);
    let waits_again = state.live().get(&task).is_some_and(|live| live.phase == Phase::Ready);
    if !waits_in_group && !waits_again {
        return None;
    }
    let mut ahead = 0u64;
    for (looked_at, key) in state.ready().get(&tenant)?.iter().enumerate() {
        if (waits_again && key.task == task) || (waits_in_group && key.group == first) {
            let within = group.pending.ranges().iter().map(|range| {
                let before = task.0.min(range.end().0).saturating_sub(range.first.0);
                if waits_in_group { before } else { 0 }
            });
            return Some((ahead + within.sum::<u64>(), false));
        }
        if looked_at >= TASKS_LOOKED_AT {
            return Some((ahead, true));
        }
        let alone = state.live().contains_key(&key.task);
        ahead += if alone { 1 } else { state.groups().get(&key.group)?.pending.count() };
    }
    // It waits for other tasks, so it stands in no line yet.
    None
}

/// An attempt that must exist, and its task.
pub(crate) async fn ended_attempt(
    node: &Node,
    task: TaskId,
    epoch: Option<u32>,
) -> Result<(TaskFacts, Attempt), Problem> {
    let facts = facts(node, task).await?;
    let attempts = attempts(node, &facts)?;
    let found = match epoch {
        Some(epoch) => attempts.into_iter().find(|attempt| attempt.epoch == epoch),
        None => attempts.into_iter().next_back(),
    };
    if let Some(found) = found {
        let attempt = LastReport::default().attempt(&node.records, found)?;
        return Ok((facts, attempt));
    }
    match (&facts.live, epoch) {
        (Some(live), _) => Err(Problem::new(
            ErrorCode::NotEnded,
            format!("task {task} is {}: nothing of it has ended yet", live.state),
        )
        .hint(format!("`grey task wait {task}` waits for it"))),
        (None, Some(epoch)) => Err(no_such("attempt", format!("{epoch} of task {task}"))),
        (None, None) => Err(Problem::new(
            ErrorCode::NotFound,
            format!("task {task} ended without an attempt whose result was accepted"),
        )),
    }
}

/// How a task ended: its latest result says it, unless a cancel came between two attempts.
fn ended_state(
    node: &Node,
    facts: &TaskFacts,
    attempts: &[FoundAttempt],
    reports: &mut LastReport,
) -> Result<&'static str, Problem> {
    let (mut failures, mut losses) = (0u32, 0u32);
    for found in attempts.iter().rev().take(ATTEMPTS_LOOKED_AT) {
        match reports.attempt(&node.records, *found)?.outcome() {
            Some(outcome) if outcome.is_success() => return Ok("completed"),
            Some(Outcome::Infrastructure) => losses += 1,
            _ => failures += 1,
        }
    }
    let retries = facts.spec.retries;
    let exhausted = failures > u32::from(retries.failure) || losses > u32::from(retries.infrastructure);
    Ok(if exhausted || facts.counts.cancelled == 0 { "failed" } else { "cancelled" })
}

/// A task as the API shows it.
pub(crate) fn task_status(
    node: &Node,
    facts: &TaskFacts,
    reports: &mut LastReport,
) -> Result<TaskStatus, Problem> {
    let attempts = attempts(node, facts)?;
    let latest = attempts.last().map(|found| reports.attempt(&node.records, *found)).transpose()?;
    let result = latest.as_ref().and_then(|attempt| task_result(facts.task, facts.job, attempt));
    let (state, reason, attempt, worker) = match &facts.live {
        Some(live) => (live.state, live.reason.clone(), live.attempt, live.worker.clone()),
        None => {
            let state = ended_state(node, facts, &attempts, reports)?;
            let reached = latest.as_ref().map_or(0, |attempt| attempt.found.epoch);
            let message = result.as_ref().map(|result| result.message.clone());
            let message = message.filter(|message| !message.is_empty());
            let because = facts.cancelled_because.clone().filter(|_| state == "cancelled");
            (state, because.or(message), reached, None)
        }
    };
    Ok(TaskStatus {
        id: facts.task.to_string(),
        job: facts.job.to_string(),
        name: facts.spec.name.clone(),
        tenant: node.tenant_name(facts.info.tenant),
        state: state.to_owned(),
        reason,
        attempt,
        worker,
        command: facts.spec.command.clone(),
        result,
    })
}

fn content_status(content: &Content) -> ContentStatus {
    ContentStatus { size_bytes: content.size_bytes(), digest: content.digest().to_string() }
}

/// What an attempt came to, as the API shows it.
pub(crate) fn task_result(task: TaskId, job: JobId, attempt: &Attempt) -> Option<TaskResult> {
    let (run, offset) = attempt.run()?;
    let usage: &Usage = run.finished.usage.get(offset as usize)?;
    let result = &run.finished.result;
    let files = result.files.iter().zip(0u32..).map(|(file, number)| {
        let text = core::str::from_utf8(&file.path).is_ok();
        let hex = || file.path.iter().map(|byte| format!("{byte:02x}")).collect();
        FileStatus {
            path: String::from_utf8_lossy(&file.path).into_owned(),
            path_hex: (!text).then(hex),
            number,
            executable: file.executable,
            size_bytes: file.content.size_bytes(),
            digest: file.content.digest().to_string(),
        }
    });
    Some(TaskResult {
        task: task.to_string(),
        job: job.to_string(),
        attempt: attempt.found.epoch,
        outcome: result.outcome.class().to_owned(),
        exit_code: result.outcome.exit_code(),
        message: result.message.clone(),
        sandbox: result.sandbox.name().to_owned(),
        worker: attempt.report.node.to_string(),
        started_at_ms: usage.started_at_ms,
        duration_us: usage.duration_us,
        cpu_time_us: usage.cpu_time_us,
        peak_memory_bytes: usage.peak_memory_bytes,
        stdout: content_status(&result.stdout),
        stderr: content_status(&result.stderr),
        files: files.collect(),
    })
}
