//! Events as they happen (server-sent events).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use grey_core::{Event as CoreEvent, EventKind, JobId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::access::{Principal, Scope};
use super::reply::{Refusal, value};
use super::session::Session;
use crate::control::event_message;
use crate::handle::{ActivityGuard, Node};
use crate::views;

/// Jobs of which a listener remembers whose they are; of more it asks again.
const JOBS_KNOWN: usize = 10_000;

fn event<T: serde::Serialize>(name: &str, id: Option<u64>, data: &T) -> Event {
    let text = serde_json::to_string(data).unwrap_or_default();
    let event = Event::default().event(name).data(text);
    match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    }
}

/// Live events of one job until it ends. Who is too slow is told how many were left out.
fn live(
    receiver: Receiver<CoreEvent>,
    job: JobId,
    open: ActivityGuard,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((receiver, open)), move |live| async move {
        let (mut receiver, open) = live?;
        loop {
            match receiver.recv().await {
                Ok(found) if job == found.job => {
                    let message = event_message(&found);
                    let last = matches!(found.kind, EventKind::Ended(_));
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
pub(crate) async fn all(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, Refusal> {
    let session = Session::open(&node, principal.clone()).await?;
    let events = of_scope(node.clone(), principal.scope(), node.events.subscribe());
    let open = node.activity.enter();
    let events = events.map(move |sent| {
        // While somebody listens, the node is not idle.
        let _listening = &open;
        sent
    });
    let events = events.take_until(session.over());
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// What a listener to all jobs of a scope has.
struct Listener {
    node: Arc<Node>,
    scope: Scope,
    receiver: Receiver<CoreEvent>,
    /// Whether jobs that something happened to are of the scope, until they end.
    known: BTreeMap<JobId, bool>,
}

impl Listener {
    /// Whether an event is about a job of the scope.
    async fn hears(&mut self, event: &CoreEvent) -> bool {
        if self.scope == Scope::All {
            return true;
        }
        let known = match self.known.get(&event.job) {
            Some(known) => *known,
            // A job whose tenant cannot be told is nobody's.
            None => match views::tenant_of_job(&self.node, event.job).await {
                Ok(Some(tenant)) => self.scope.has(tenant),
                Ok(None) | Err(_) => false,
            },
        };
        if matches!(event.kind, EventKind::Ended(_)) || self.known.len() >= JOBS_KNOWN {
            self.known.remove(&event.job);
        } else {
            self.known.insert(event.job, known);
        }
        known
    }
}

/// Live events of all jobs of a scope.
fn of_scope(
    node: Arc<Node>,
    scope: Scope,
    receiver: Receiver<CoreEvent>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let listener = Listener { node, scope, receiver, known: BTreeMap::new() };
    stream::unfold(listener, |mut listener| async move {
        loop {
            let sent = match listener.receiver.recv().await {
                Ok(found) if listener.hears(&found).await => {
                    let message = event_message(&found);
                    event(&message.kind, Some(found.index), &message)
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(missed)) => {
                    event("lagged", None, &serde_json::json!({ "missed": missed }))
                }
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok(sent), listener));
        }
    })
}

/// `GET /v1/jobs/{id}/events`: the job as it is, then what happens to it. Whoever comes back gets it as it is again, so
/// nothing is missed.
pub(crate) async fn of_job(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id: JobId = value("id", &id)?;
    let session = Session::open(&node, principal).await?;
    let receiver = node.events.subscribe();
    let status = views::job(&node, id).await?;
    let first = stream::once(std::future::ready(Ok::<_, Infallible>(event("job", None, &status))));
    if status.ended {
        return Ok(Sse::new(first).into_response());
    }
    let events = first.chain(live(receiver, id, node.activity.enter())).take_until(session.over());
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
