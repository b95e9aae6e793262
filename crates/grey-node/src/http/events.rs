//! Events as they happen (server-sent events).

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use grey_core::{Event as CoreEvent, EventKind, JobId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::reply::{Refusal, value};
use crate::control::event_message;
use crate::handle::{ActivityGuard, Node};
use crate::views;

fn event<T: serde::Serialize>(name: &str, id: Option<u64>, data: &T) -> Event {
    let text = serde_json::to_string(data).unwrap_or_default();
    let event = Event::default().event(name).data(text);
    match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    }
}

/// Live events, of one job until it ends or of all. Who is too slow is told how many were left out.
fn live(
    receiver: Receiver<CoreEvent>,
    job: Option<JobId>,
    open: ActivityGuard,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((receiver, open)), move |live| async move {
        let (mut receiver, open) = live?;
        loop {
            match receiver.recv().await {
                Ok(found) if job.is_none_or(|job| job == found.job) => {
                    let message = event_message(&found);
                    let last = job.is_some() && matches!(found.kind, EventKind::Ended(_));
                    let sent = event(&message.kind, Some(found.index), &message);
                    return Some((Ok(sent), (!last).then_some((receiver, open))));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    let sent = event("lagged", None, &serde_json::json!({ "missed": missed }));
                    return Some((Ok(sent), Some((receiver, open))));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

/// `GET /v1/events`.
pub(crate) async fn all(State(node): State<Arc<Node>>) -> Response {
    let events = live(node.events.subscribe(), None, node.activity.enter());
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// `GET /v1/jobs/{id}/events`: the job as it is, then what happens to it. Whoever comes back gets it as it is again, so
/// nothing is missed.
pub(crate) async fn of_job(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let receiver = node.events.subscribe();
    let status = views::job(&node, id).await?;
    let first = stream::once(std::future::ready(Ok::<_, Infallible>(event("job", None, &status))));
    if status.ended {
        return Ok(Sse::new(first).into_response());
    }
    let events = first.chain(live(receiver, Some(id), node.activity.enter()));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
