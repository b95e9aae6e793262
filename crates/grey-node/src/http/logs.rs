//! Streams of attempts: as they were kept, or as they are written.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use grey_agent::{OutputStream, Tail};
use grey_api::{ErrorCode, Problem};
use grey_core::{AttemptId, TaskId};
use grey_proof::Digest;

use super::access::Principal;
use super::jobs::Parameters;
use super::reply::{Refusal, typed, value};
use super::session::Session;
use super::tasks::{epoch, serve};
use crate::handle::Node;
use crate::plane::{StreamId, Streams};
use crate::retention::Class;
use crate::views;

/// When a stream that is followed is looked at again where nothing came, or a task that has not begun; the longer nothing happens, the later.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LATEST_LOOK: Duration = Duration::from_secs(1);
/// How much of a stream is read at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Which attempt a stream is of.
const ATTEMPT_HEADER: HeaderName = HeaderName::from_static("grey-attempt");
const MEDIA_TYPE: &str = "application/octet-stream";

/// How long to wait after having waited for so long in vain.
fn later(wait: Duration) -> Duration {
    wait.saturating_mul(2).min(LATEST_LOOK)
}

/// `GET /v1/tasks/{id}/logs`.
pub(crate) async fn logs(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
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
        // Of an attempt under way, what there is so far.
        if wanted.is_none()
            && let Some((attempt, source)) = running(&node, id, stream).await?
        {
            return Ok(of(attempt, typed(MEDIA_TYPE, pieces(&node, source, offset, None))));
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
    let mut session = Session::open(&node, principal).await?;
    let (mut wait, mut seen) = (FIRST_LOOK, 0);
    loop {
        session.check()?;
        let facts = views::facts(&node, id).await?;
        let status = views::task_status(&node, &facts, &mut views::LastReport::default())?;
        let ended = status.ended();
        if status.attempt > after {
            if let Some((attempt, source)) = running(&node, id, stream).await?
                && attempt == status.attempt
            {
                return Ok(of(attempt, typed(MEDIA_TYPE, pieces(&node, source, offset, Some(session)))));
            }
            let has_result = status.result.as_ref().is_some_and(|result| result.attempt == status.attempt);
            if ended || has_result {
                return kept(&node, id, Some(status.attempt), stream, offset).await;
            }
        }
        if ended {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        if status.attempt != core::mem::replace(&mut seen, status.attempt) {
            // What was given to a worker begins soon.
            wait = FIRST_LOOK;
        }
        node.wait_ended(facts.job, Some(id), wait).await;
        wait = later(wait);
    }
}

/// Where a stream of a running attempt is read.
#[derive(Clone)]
enum Source {
    /// In this process.
    Here(Arc<dyn Tail>),
    /// At the worker of this identity.
    There(Arc<Streams>, Digest, StreamId),
}

impl Source {
    /// What the stream has from `offset` on, and whether nothing more will come; nothing where it cannot be read any more.
    async fn read(&self, offset: u64) -> std::io::Result<Option<(Bytes, bool)>> {
        match self {
            Source::Here(tail) => {
                let source = tail.clone();
                let read = tokio::task::spawn_blocking(move || source.read(offset, PIECE_BYTES)).await;
                let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                read.map(|(piece, is_end)| Some((Bytes::from(piece), is_end)))
            }
            Source::There(streams, worker, id) => {
                streams.read(worker, *id, offset, u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX)).await
            }
        }
    }
}

/// The attempt that is under way, and where its stream is read.
async fn running(node: &Node, task: TaskId, stream: OutputStream) -> Result<Option<(u32, Source)>, Problem> {
    let found = node.view(move |state| {
        let live = state.live().get(&task)?;
        let worker = state.workers().get(&live.phase.worker()?)?;
        Some((live.epoch, worker.node))
    });
    let Some((epoch, worker)) = found.await? else { return Ok(None) };
    let id = StreamId { attempt: AttemptId { task, epoch }, stream };
    let source = match (&node.process, &node.streams) {
        (Some(process), _) => process.tail(id.attempt, stream).map(Source::Here),
        (None, Some(streams)) => {
            // The worker may not have begun, or have ended it already.
            let known = streams.read(&worker, id, 0, 0).await.is_ok_and(|read| read.is_some());
            known.then(|| Source::There(streams.clone(), worker, id))
        }
        (None, None) => None,
    };
    Ok(source.map(|source| (epoch.0, source)))
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

/// What a stream has brought from `offset` on; for whoever follows it also what it brings until its end.
fn pieces(node: &Arc<Node>, source: Source, offset: u64, session: Option<Session>) -> Body {
    // While somebody reads, the node is not idle.
    let open = node.activity.enter();
    let begin = (source, offset, false, (session, open));
    Body::from_stream(stream::unfold(begin, move |(source, mut offset, ended, mut held)| async move {
        if ended {
            return None;
        }
        let mut wait = FIRST_LOOK;
        loop {
            if let Some(Err(problem)) = held.0.as_mut().map(Session::check) {
                return Some((Err(std::io::Error::other(problem)), (source, offset, true, held)));
            }
            let gone = || std::io::Error::other("the worker does not answer any more");
            let (piece, is_end) = match source.read(offset).await.and_then(|read| read.ok_or_else(gone)) {
                Ok(read) => read,
                Err(error) => {
                    // Whoever follows asks again, for the attempt that comes next or for what was kept of this one.
                    tracing::warn!(%error, "a stream cannot be followed");
                    return Some((Err(error), (source, offset, true, held)));
                }
            };
            if piece.is_empty() {
                if is_end || held.0.is_none() {
                    return None;
                }
                tokio::time::sleep(wait).await;
                wait = later(wait);
                continue;
            }
            offset += piece.len() as u64;
            return Some((Ok(piece), (source, offset, is_end, held)));
        }
    }))
}
