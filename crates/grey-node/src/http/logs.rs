//! Streams of attempts: as they were kept, or as they are written.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use grey_agent::{OutputStream, Tail};
use grey_api::{ErrorCode, Problem};
use grey_core::{AttemptId, Epoch, TaskId};

use super::jobs::Parameters;
use super::reply::{Refusal, typed, value};
use super::tasks::{epoch, serve};
use crate::handle::Node;
use crate::retention::Class;
use crate::views;

/// How often a stream that is followed is looked at, and how often a task that has not begun.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How much of a stream is read at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Which attempt a stream is of.
const ATTEMPT_HEADER: HeaderName = HeaderName::from_static("grey-attempt");
const MEDIA_TYPE: &str = "application/octet-stream";

/// `GET /v1/tasks/{id}/logs`.
pub(crate) async fn logs(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let id: TaskId = value("id", &id)?;
    let offset = query.get("offset").map(|text| value::<u64>("offset", text)).transpose()?.unwrap_or(0);
    let stream = match query.get("stream").map_or("stdout", String::as_str) {
        "stdout" => OutputStream::Stdout,
        "stderr" => OutputStream::Stderr,
        other => {
            let shown: String = other.chars().take(64).collect();
            let detail = format!("`{shown}` is no stream; stdout and stderr are");
            return Err(Refusal(Problem::new(ErrorCode::InvalidRequest, detail).field("stream")));
        }
    };
    let follow = query.get("follow").map(|text| value::<bool>("follow", text)).transpose()?.unwrap_or(false);
    let after = query.get("after").map(|text| value::<u32>("after", text)).transpose()?.unwrap_or(0);
    let wanted = epoch(&query)?;
    if !follow {
        let running = match wanted {
            Some(_) => None,
            None => running(&node, id).await?,
        };
        // Of an attempt under way, what there is so far.
        if let Some((attempt, Some(tail))) =
            running.map(|attempt| (attempt, tail(&node, id, attempt, stream)))
        {
            return Ok(of(attempt, typed(MEDIA_TYPE, pieces(&node, tail, offset, false))));
        }
        return kept(&node, id, wanted, stream, offset).await;
    }
    if wanted.is_some() {
        let problem = Problem::new(ErrorCode::InvalidRequest, "`follow` goes from attempt to attempt")
            .field("attempt")
            .hint("leave out `attempt`, or give `after` to begin behind one");
        return Err(Refusal(problem));
    }
    let _open = node.activity.enter();
    loop {
        let facts = views::facts(&node, id).await?;
        let status = views::task_status(&node, &facts, &mut views::LastReport::default())?;
        let ended = status.ended();
        if status.attempt > after {
            if let Some(tail) = tail(&node, id, status.attempt, stream) {
                return Ok(of(status.attempt, typed(MEDIA_TYPE, pieces(&node, tail, offset, true))));
            }
            let has_result = status.result.as_ref().is_some_and(|result| result.attempt == status.attempt);
            if ended || has_result {
                return kept(&node, id, Some(status.attempt), stream, offset).await;
            }
        }
        if ended {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        node.wait_ended(facts.job, Some(id), LOOK_EVERY).await;
    }
}

/// The number of the attempt that is under way.
async fn running(node: &Node, id: TaskId) -> Result<Option<u32>, Problem> {
    node.view(move |state| {
        let live = state.live().get(&id)?;
        live.phase.worker().map(|_| live.epoch.0)
    })
    .await
}

fn tail(node: &Node, task: TaskId, attempt: u32, stream: OutputStream) -> Option<Arc<dyn Tail>> {
    node.process.as_ref()?.tail(AttemptId { task, epoch: Epoch(attempt) }, stream)
}

fn of(attempt: u32, mut response: Response) -> Response {
    response.headers_mut().insert(ATTEMPT_HEADER, HeaderValue::from(attempt));
    response
}

/// The stream of an attempt that has ended.
async fn kept(
    node: &Node,
    id: TaskId,
    wanted: Option<u32>,
    stream: OutputStream,
    offset: u64,
) -> Result<Response, Refusal> {
    let (facts, attempt) = views::ended_attempt(node, id, wanted).await?;
    let (run, _) = attempt.run().ok_or_else(|| views::no_such("task", id))?;
    let content = match stream {
        OutputStream::Stdout => &run.finished.result.stdout,
        OutputStream::Stderr => &run.finished.result.stderr,
    };
    Ok(of(attempt.found.epoch, serve(node, &facts, Class::Logs, content, offset).await?))
}

/// What a stream has brought from `offset` on; with `follow` also what it brings until its end.
fn pieces(node: &Arc<Node>, tail: Arc<dyn Tail>, offset: u64, follow: bool) -> Body {
    // While somebody reads, the node is not idle.
    let open = node.activity.enter();
    let begin = (tail, offset, false, open);
    Body::from_stream(stream::unfold(begin, move |(tail, mut offset, ended, open)| async move {
        if ended {
            return None;
        }
        loop {
            let source = tail.clone();
            let read = tokio::task::spawn_blocking(move || source.read(offset, PIECE_BYTES)).await;
            let (piece, is_end) = match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, "a stream cannot be followed");
                    return Some((Err(error), (tail, offset, true, open)));
                }
            };
            if piece.is_empty() {
                if is_end || !follow {
                    return None;
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            offset += piece.len() as u64;
            return Some((Ok(Bytes::from(piece)), (tail, offset, is_end, open)));
        }
    }))
}
