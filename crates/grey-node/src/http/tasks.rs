//! Tasks, their streams, files and proofs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use grey_api::{CancelResponse, ErrorCode, Problem};
use grey_blob::BlobError;
use grey_core::{Content, Target, TaskId};

use super::access::Principal;
use super::jobs::{Parameters, cancel_target, change_timeout, has_ended, page, task_page, wait};
use super::reply::{Refusal, json, parse, typed, value, whole};
use crate::handle::Node;
use crate::retention::Class;
use crate::{prover, views};

pub(super) fn epoch(query: &Parameters) -> Result<Option<u32>, Refusal> {
    query.get("attempt").map(|text| value("attempt", text)).transpose()
}

/// `GET /v1/tasks`.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let from = query.get("from").map(|text| value::<TaskId>("from", text)).transpose()?.unwrap_or_default();
    let limit = page(&query)?;
    let (found, next) = views::facts_of_live(&node, from, limit, principal.scope()).await?;
    task_page(&node, &found, next, query.get("state").map(String::as_str))
}

/// `GET /v1/tasks/{id}`.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let mut facts = views::facts(&node, id).await?;
    if let Some(longest) = wait(&query)? {
        node.wait_ended(facts.job, Some(id), longest).await;
        facts = views::facts(&node, id).await?;
    }
    json(&views::task_status(&node, &facts, &mut views::LastReport::default())?)
}

/// `GET /v1/tasks/{id}/explain`.
pub(crate) async fn explain(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    json(&views::explanation(&node, value("id", &id)?).await?)
}

/// `GET /v1/tasks/{id}/result`.
pub(crate) async fn result(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let (facts, attempt) = views::ended_attempt(&node, id, epoch(&query)?).await?;
    let damaged = || Problem::new(ErrorCode::Internal, "the report does not have the attempt");
    json(&views::task_result(id, facts.job, &attempt).ok_or_else(damaged)?)
}

/// `GET /v1/tasks/{id}/outputs/{number}`.
pub(crate) async fn output(
    State(node): State<Arc<Node>>,
    Path((id, number)): Path<(String, String)>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let number: usize = value("number", &number)?;
    let (facts, attempt) = views::ended_attempt(&node, id, epoch(&query)?).await?;
    let file = attempt.run().and_then(|(run, _)| run.finished.result.files.get(number));
    let file = file.ok_or_else(|| views::no_such("output file", format!("{number} of task {id}")))?;
    serve(&node, &facts, Class::Results, &file.content, 0).await
}

/// The content of a stream or a file of a task.
pub(super) async fn serve(
    node: &Node,
    facts: &views::TaskFacts,
    class: Class,
    content: &Content,
    offset: u64,
) -> Result<Response, Refusal> {
    const MEDIA_TYPE: &str = "application/octet-stream";
    match content {
        Content::Inline(bytes) => {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(typed(MEDIA_TYPE, Bytes::copy_from_slice(bytes.get(from..).unwrap_or_default())))
        }
        Content::Blob(blob) => {
            // What is not here may be on another server; what is nowhere is told below.
            drop(node.depot.ensure(&blob.digest).await);
            let opened = node.blobs.reader(&blob.digest, offset).await;
            let (_, pieces) = opened.map_err(|error| {
                if matches!(error, BlobError::NotFound { .. }) && is_gone(node, facts, class) {
                    let what = if class == Class::Logs { "the log" } else { "the output file" };
                    return Refusal(
                        node.keeping.not_retained(format!("{what} of task {}", facts.task), class),
                    );
                }
                tracing::error!(%error, "a blob cannot be read");
                Refusal(Problem::new(ErrorCode::Internal, error.to_string()))
            })?;
            // A blob that turns out damaged ends the response early: the client sees a broken connection, never
            // different bytes.
            let open = node.activity.enter();
            let pieces = pieces.map(move |piece| {
                // While somebody reads, the node is not idle.
                let _reading = &open;
                if let Err(error) = &piece {
                    tracing::error!(%error, "a blob cannot be read to its end");
                }
                piece
            });
            Ok(typed(MEDIA_TYPE, Body::from_stream(pieces)))
        }
    }
}

/// Whether blobs of a class may have been removed of a task's job.
fn is_gone(node: &Node, facts: &views::TaskFacts, class: Class) -> bool {
    let horizons = node.records.horizons();
    let horizon_ms = if class == Class::Logs { horizons.logs_ms } else { horizons.results_ms };
    facts.ended_at_ms.is_some_and(|ended_at_ms| ended_at_ms <= horizon_ms)
}

/// `GET /v1/tasks/{id}/proof`.
pub(crate) async fn proof(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let (_, attempt) = views::ended_attempt(&node, id, epoch(&query)?).await?;
    let bundle = prover::prove(&node, &attempt).await?;
    Ok(typed("application/vnd.grey.proof.v1+json", bundle.encode()))
}

/// `POST /v1/tasks/{id}/cancel`.
pub(crate) async fn cancel(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let facts = views::facts(&node, id).await?;
    if views::task_status(&node, &facts, &mut views::LastReport::default())?.ended() {
        return json(&CancelResponse { cancelled: 0, already_ended: 1 });
    }
    cancel_target(&node, facts.info.tenant, Target::Task(id)).await
}

/// `POST /v1/tasks/{id}/timeout`.
pub(crate) async fn timeout(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let request = parse(&whole(body)?, "the time-out")?;
    let facts = views::facts(&node, id).await?;
    if views::task_status(&node, &facts, &mut views::LastReport::default())?.ended() {
        return Err(has_ended("task", id));
    }
    change_timeout(&node, facts.info.tenant, Target::Task(id), request).await
}
