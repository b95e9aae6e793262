//! A job again: what failed of it, all of it, or some of it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Extension, Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use grey_api::{ErrorCode, JobStatus, Problem};
use grey_core::{
    Flow, FlowSubmission, GroupSubmission, Items, JobId, JobInfo, Submit, TaskId, TaskRange, TaskSpec, limits,
};

use super::access::{self, Principal, Scope};
use super::flow;
use super::reply::{Refusal, value};
use super::submit::{created, key, propose, refuse};
use crate::clock::wall_ms;
use crate::handle::Node;
use crate::retention::Class;
use crate::views;

/// How many tasks are looked at together.
const PAGE_TASKS: usize = 1_000;
/// How many ranges of tasks one request may name.
const RANGES: usize = 1_000;

/// Which tasks of a job are run again.
enum Which {
    /// Those that failed or were cancelled.
    Failed,
    /// All, as they were submitted.
    All,
    /// These, ascending.
    Only(Vec<TaskRange>),
}

impl Which {
    fn of(query: &HashMap<String, String>) -> Result<Which, Refusal> {
        match (query.get("which").map(String::as_str), query.get("tasks")) {
            (None | Some("failed"), None) => Ok(Which::Failed),
            (Some("all"), None) => Ok(Which::All),
            (None, Some(tasks)) => Ok(Which::Only(ranges(tasks)?)),
            (Some(_), Some(_)) => Err(refuse("which", "`which` and `tasks` exclude one another")),
            (Some(_), None) => Err(refuse("which", "it is `failed` or `all`")),
        }
    }

    /// Whether a task in a state is one of them. What was named must have ended, and an ended one is taken as it is.
    fn takes(&self, task: TaskId, state: &str) -> Result<bool, Refusal> {
        let Which::Only(ranges) = self else { return Ok(matches!(state, "failed" | "cancelled")) };
        let named = ranges.iter().any(|range| range.contains(task));
        if named && !matches!(state, "completed" | "failed" | "cancelled") {
            let problem = Problem::new(ErrorCode::NotEnded, format!("task {task} is {state}"));
            return Err(Refusal(problem.hint(format!("`grey task wait {task}` waits for it"))));
        }
        Ok(named)
    }
}

/// `t7,t9..t12`: both ends are included.
fn ranges(text: &str) -> Result<Vec<TaskRange>, Refusal> {
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let (first, last): (TaskId, TaskId) = (value("tasks", first)?, value("tasks", last)?);
        let count = last.0.checked_sub(first.0).and_then(|more| u32::try_from(more).ok()?.checked_add(1));
        let count = count.ok_or_else(|| refuse("tasks", format!("`{part}` is no range: t9..t12 is one")))?;
        ranges.push(TaskRange { first, count });
    }
    if ranges.len() > RANGES {
        let problem =
            Problem::new(ErrorCode::OutOfBounds, format!("more than {RANGES} tasks and ranges are named"));
        return Err(Refusal(problem.field("tasks").limit(RANGES as u64).hint("name ranges such as t9..t12")));
    }
    Ok(ranges)
}

/// `POST /v1/jobs/{id}/rerun`: a new job of tasks of another.
pub(crate) async fn rerun(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let which = Which::of(&query)?;
    let job = views::job(&node, id).await?;
    let (info, groups, flow) = match &which {
        Which::All => whole(&node, id).await?,
        which => part(&node, id, &job, which).await?,
    };
    let mut selection: Vec<&str> = query.iter().flat_map(|(name, value)| [name.as_str(), value]).collect();
    selection.sort_unstable();
    let body = format!("{id} {}", selection.join(" "));
    let named = matches!(principal.scope(), Scope::All).then_some(job.tenant.as_str());
    let behalf = access::behalf(&node.directory(), &principal, named)?;
    let submission = Submit {
        tenant: info.tenant,
        submitter: behalf.submitter.clone(),
        name: job.name.clone(),
        labels: info.labels.clone(),
        key: key(&headers, &job.tenant, &job.name, body.trim_end().as_bytes())?,
        groups,
        flow,
        wall_ms: wall_ms(),
    };
    created(propose(&node, behalf.scope, submission, &[], Some(id)).await?)
}

type Again = (Arc<JobInfo>, Vec<GroupSubmission>, FlowSubmission);

/// Everything as it was submitted: arrays stay arrays.
async fn whole(node: &Node, id: JobId) -> Result<Again, Refusal> {
    let (info, groups) = views::groups(node, id).await?;
    let flow = views::flow(node, id).await?;
    let ranges: Vec<TaskRange> = groups.iter().map(|(tasks, _)| *tasks).collect();
    let flow = flow.map_or_else(FlowSubmission::default, |flow| flow::as_submitted(&flow, &ranges));
    let group = |(tasks, spec): (TaskRange, TaskSpec)| GroupSubmission { spec, count: tasks.count };
    Ok((info, groups.into_iter().map(group).collect(), flow))
}

/// Some tasks, each as one of its own.
async fn part(node: &Node, id: JobId, job: &JobStatus, which: &Which) -> Result<Again, Refusal> {
    let (mut groups, mut reports, mut from) = (Vec::new(), views::LastReport::default(), TaskId(0));
    let (mut info, mut again) = (None, Vec::new());
    let flow = views::flow(node, id).await?;
    if flow.is_some() && !job.ended {
        let problem = Problem::new(ErrorCode::NotEnded, format!("tasks of {id} still wait for others"));
        return Err(Refusal(problem.hint(format!("`grey job wait {id}` waits for it"))));
    }
    loop {
        let page = views::facts_of_job(node, id, from, PAGE_TASKS).await?;
        let Some(last) = page.last() else { break };
        from = TaskId(last.task.0.saturating_add(1));
        info = Some(last.info.clone());
        for facts in &page {
            let state = views::task_status(node, facts, &mut reports)?.state;
            if which.takes(facts.task, &state)? {
                groups.push(GroupSubmission { spec: alone(node, facts, flow.as_ref()).await?, count: 1 });
                again.push(facts.task);
            }
        }
        if groups.len() > limits::BATCH_TASKS {
            let detail = format!("more than {} tasks of {id} are to be run again", limits::BATCH_TASKS);
            let problem = Problem::new(ErrorCode::OutOfBounds, detail).limit(limits::BATCH_TASKS as u64);
            return Err(Refusal(problem.hint("name fewer with `tasks`, or run all of it again")));
        }
    }
    if let Which::Only(ranges) = which {
        let named: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        if named != again.len() as u64 {
            let detail = format!("{named} task(s) are named, {} of them are of {id}", again.len());
            return Err(refuse("tasks", detail));
        }
    }
    let info = info.filter(|_| !groups.is_empty()).ok_or_else(|| {
        Refusal(Problem::new(ErrorCode::NotFound, format!("no task of {id} has failed or was cancelled")))
    })?;
    let flow = flow.map_or_else(FlowSubmission::default, |flow| flow::again(&flow, &again));
    Ok((info, groups, flow))
}

/// A task as one of its own, which keeps its position in the array that it was taken from.
async fn alone(node: &Node, facts: &views::TaskFacts, flow: Option<&Flow>) -> Result<TaskSpec, Refusal> {
    let mut spec = facts.spec.as_ref().clone();
    let mut set = |name: &str, value: String| {
        if let Err(place) = spec.environment.binary_search_by(|(other, _)| other.as_str().cmp(name)) {
            spec.environment.insert(place, (name.to_owned(), value));
        }
    };
    if let Some(index) = facts.index {
        set("GREY_INDEX", index.to_string());
    }
    let stage = flow.and_then(|flow| flow.stage_of(facts.task));
    let position = facts.task.0.saturating_sub(stage.map_or(facts.task.0, |(_, stage)| stage.tasks.first.0));
    match stage.and_then(|(_, stage)| stage.items) {
        None => {}
        Some(Items::Numbers(first)) => {
            set("GREY_ITEM", first.saturating_add(i64::try_from(position).unwrap_or(i64::MAX)).to_string());
        }
        Some(Items::Listed(list)) => {
            let index = u32::try_from(position).unwrap_or(u32::MAX);
            drop(node.depot.ensure(&list.digest).await);
            let item = node.items.item(&node.blobs, list, index).await;
            let item = match item {
                Ok(item) => item,
                Err(_) if node.blobs.size_bytes(&list.digest).await.is_ok_and(|size| size.is_none()) => {
                    let what = format!("the list of items of task {}", facts.task);
                    return Err(Refusal(node.keeping.not_retained(what, Class::Inputs)));
                }
                Err(error) => return Err(Problem::new(ErrorCode::Internal, error.to_string()).into()),
            };
            set("GREY_ITEM", item.text);
            spec.inputs.extend(item.file);
        }
    }
    Ok(spec)
}
