//! Jobs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::Response;
use grey_api::{CancelResponse, ErrorCode, JobList, Problem, TaskList, TimeoutChanged, TimeoutRequest};
use grey_core::{Answer, Cancel, ChangeTimeout, Command, JobId, Target, TaskId, TenantId};

use super::access::{self, Principal};
use super::reply::{Refusal, json, parse, value, whole};
use crate::clock::wall_ms;
use crate::handle::Node;
use crate::views;

/// The longest that a request may wait for something to end, in milliseconds.
pub(super) const LONGEST_WAIT_MS: u64 = 60_000;
/// The most items of a page.
const LARGEST_PAGE: usize = 1_000;
const USUAL_PAGE: usize = 100;

pub(crate) type Parameters = HashMap<String, String>;

/// How long a request waits.
pub(crate) fn wait(query: &Parameters) -> Result<Option<Duration>, Refusal> {
    let wait = query.get("wait_ms").map(|text| value::<u64>("wait_ms", text)).transpose()?;
    Ok(wait.map(|wait_ms| Duration::from_millis(wait_ms.min(LONGEST_WAIT_MS))))
}

/// How many items a page has.
pub(crate) fn page(query: &Parameters) -> Result<usize, Refusal> {
    let limit = query.get("limit").map(|text| value::<usize>("limit", text)).transpose()?;
    let limit = limit.unwrap_or(USUAL_PAGE);
    if (1..=LARGEST_PAGE).contains(&limit) {
        return Ok(limit);
    }
    let problem = Problem::new(ErrorCode::OutOfBounds, format!("`limit` must be from 1 to {LARGEST_PAGE}"));
    Err(Refusal(problem.field("limit").limit(LARGEST_PAGE as u64)))
}

/// `GET /v1/jobs`.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let before = query.get("before").map(|text| value::<JobId>("before", text)).transpose()?;
    let limit = page(&query)?;
    let named = query.get("tenant").map(String::as_str);
    let scope = access::listed(&node.directory(), &principal, named)?;
    let (jobs, more) = views::jobs(&node, before.unwrap_or(JobId(u64::MAX)), limit, scope).await?;
    let next = if more { jobs.last().map(|job| job.id.clone()) } else { None };
    json(&JobList { jobs, next })
}

/// `GET /v1/jobs/{id}`.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    if let Some(longest) = wait(&query)? {
        views::job(&node, id).await?;
        node.wait_ended(id, None, longest).await;
    }
    json(&views::job(&node, id).await?)
}

/// `GET /v1/jobs/{id}/tasks`.
pub(crate) async fn tasks(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let from = query.get("from").map(|text| value::<TaskId>("from", text)).transpose()?.unwrap_or_default();
    let limit = page(&query)?;
    let mut found = views::facts_of_job(&node, id, from, limit + 1).await?;
    let next = if found.len() > limit { found.pop().map(|facts| facts.task) } else { None };
    task_page(&node, &found, next, query.get("state").map(String::as_str))
}

/// A page of tasks, and where the next one begins.
pub(crate) fn task_page(
    node: &Node,
    found: &[views::TaskFacts],
    next: Option<TaskId>,
    state: Option<&str>,
) -> Result<Response, Refusal> {
    const STATES: [&str; 6] = ["pending", "assigned", "running", "completed", "failed", "cancelled"];
    if let Some(state) = state.filter(|state| !STATES.contains(state)) {
        let shown: String = state.chars().take(64).collect();
        let detail = format!("`{shown}` is no state; the states are {}", STATES.join(", "));
        return Err(Refusal(Problem::new(ErrorCode::InvalidRequest, detail).field("state")));
    }
    let (mut tasks, mut reports) = (Vec::with_capacity(found.len()), views::LastReport::default());
    for facts in found {
        let status = views::task_status(node, facts, &mut reports)?;
        if state.is_none_or(|state| status.state == state) {
            tasks.push(status);
        }
    }
    json(&TaskList { tasks, next: next.map(|task| task.to_string()) })
}

/// `POST /v1/jobs/{id}/cancel`.
pub(crate) async fn cancel(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let live = node.view(move |state| state.jobs().get(&id).map(|job| job.info.tenant)).await?;
    let Some(tenant) = live else {
        let job = views::job(&node, id).await?;
        let already_ended = u64::from(job.tasks);
        return json(&CancelResponse { cancelled: 0, already_ended });
    };
    cancel_target(&node, tenant, Target::Job(id)).await
}

/// `POST /v1/jobs/{id}/timeout`.
pub(crate) async fn timeout(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let request = parse(&whole(body)?, "the time-out")?;
    let live = node.view(move |state| state.jobs().get(&id).map(|job| job.info.tenant)).await?;
    let Some(tenant) = live else {
        // One that is known says that it has ended, any other that there is none.
        views::job(&node, id).await?;
        return Err(has_ended("job", id));
    };
    change_timeout(&node, tenant, Target::Job(id), request).await
}

pub(crate) fn has_ended(what: &str, id: impl core::fmt::Display) -> Refusal {
    Refusal(
        Problem::new(ErrorCode::HasEnded, format!("{what} {id} has ended"))
            .hint(format!("`grey {what} status {id}` shows how")),
    )
}

/// Proposes another time-out.
pub(crate) async fn change_timeout(
    node: &Node,
    tenant: TenantId,
    target: Target,
    request: TimeoutRequest,
) -> Result<Response, Refusal> {
    let timeout_ms = request.timeout_ms;
    match node.propose(Command::ChangeTimeout(ChangeTimeout { tenant, target, timeout_ms })).await {
        Ok(Answer::TimeoutChanged { tasks }) => json(&TimeoutChanged { tasks, timeout_ms }),
        Ok(other) => Err(Refusal(Problem::new(ErrorCode::Internal, format!("unexpected answer {other:?}")))),
        // It was there a moment ago.
        Err(problem) if problem.code == ErrorCode::NotFound => Err(match target {
            Target::Job(job) => has_ended("job", job),
            Target::Task(task) => has_ended("task", task),
        }),
        Err(problem) => Err(Refusal(problem)),
    }
}

/// Proposes a cancel. What ended in the meantime is no failure.
pub(crate) async fn cancel_target(
    node: &Node,
    tenant: TenantId,
    target: Target,
) -> Result<Response, Refusal> {
    match node.propose(Command::Cancel(Cancel { tenant, target, wall_ms: wall_ms() })).await {
        Ok(Answer::Cancelled { cancelled, already_ended }) => {
            json(&CancelResponse { cancelled, already_ended })
        }
        Ok(other) => Err(Refusal(Problem::new(ErrorCode::Internal, format!("unexpected answer {other:?}")))),
        Err(problem) if problem.code == ErrorCode::NotFound => {
            json(&CancelResponse { cancelled: 0, already_ended: 1 })
        }
        Err(problem) => Err(Refusal(problem)),
    }
}
