//! Who may speak: checked before anything else, on every method.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use grey_api::{Endpoint, ErrorCode, Problem, Right, Subject, nearest};

use super::access::{self, Principal, Scope};
use super::forward::Forwarder;
use super::reply::{PROBLEM_MEDIA_TYPE, Refusal, with_level};
use super::request_id::{REQUEST_ID, request_id};
use super::{REQUEST_BYTES, blobs, bulk, jobs};
use crate::clock::wall_ms;
use crate::handle::Node;
use crate::traces::RequestSpan;
use crate::views;
use tracing::Instrument;

/// A refusal of the framework's own is a sentence.
const LONGEST_REFUSAL_BYTES: usize = 4_096;
/// How much of an unknown parameter is repeated, in characters.
const LONGEST_SHOWN: usize = 64;

/// Within which time a request is answered that asks for no waiting.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How a request came in.
pub(crate) enum Entrance {
    /// Over the unix socket: its permissions say who may speak.
    Socket,
    /// Over the loopback interface of a local cluster.
    Loopback {
        /// What its owner shows; others show tokens of their own.
        token: String,
    },
    /// Over TLS, at any server of a cluster.
    Cluster,
}

/// Stands at an entrance of a node.
pub(crate) struct Keeper {
    pub(crate) entrance: Entrance,
    pub(crate) node: Arc<Node>,
}

/// Stands before every request, names it, and counts how they are answered.
pub(crate) async fn guard(State(keeper): State<Arc<Keeper>>, mut request: Request, next: Next) -> Response {
    let (method, begun) = (request.method().clone(), Instant::now());
    let id = request_id(request.headers(), keeper.node.server, wall_ms());
    let span = {
        let (id, path) = (id.to_str().unwrap_or_default(), request.uri().path());
        tracing::info_span!("request", id, %method, path, trace = tracing::field::Empty)
    };
    let traced = trace(&keeper.node, &id, &mut request);
    if let Some(trace) = traced.as_ref().and_then(RequestSpan::trace) {
        span.record("trace", trace);
    }
    // Whoever it is passed on to calls it the same.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = let_in(&keeper, request, next).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id);
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    span.in_scope(|| tracing::debug!(status, took_us = took.as_micros() as u64, "answered"));
    let meters = &keeper.node.meters;
    meters.answered(&method, response.status());
    let refused = response.extensions().get::<ErrorCode>().copied();
    // What another server refused is counted there.
    if let Some(code) = refused {
        meters.refused(code);
    }
    if let Some(traced) = traced {
        traced.answered(response.status(), refused.map(ErrorCode::name));
    }
    response
}

/// Begins the request's span, where spans are told.
fn trace(node: &Node, id: &HeaderValue, request: &mut Request) -> Option<RequestSpan> {
    let traces = node.traces.as_ref()?;
    let route = request.extensions().get::<MatchedPath>().cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (id, route) = (id.to_str().unwrap_or_default(), route.as_ref().map(MatchedPath::as_str));
    traces.request(&method, &path, route, id, request.headers_mut())
}

/// Lets a request in or refuses it, counts it as activity, sees that it is answered in time, and says how full the door is.
async fn let_in(keeper: &Keeper, request: Request, next: Next) -> Response {
    if let Err(problem) = take(&keeper.entrance, request.headers(), request.uri().path()) {
        return Refusal(problem).into_response();
    }
    let _open = keeper.node.activity.enter();
    let is_read = request.method().is_safe();
    let deadline = deadline(request.uri().path(), request.uri().query().unwrap_or_default());
    let answering = async {
        match elsewhere(keeper, &request) {
            // The leader decides who may ask what: it alone knows what was decided last.
            Some(forwarder) => forwarder.forward(&keeper.node, request).await,
            None => answer_here(keeper, request, next).await,
        }
    };
    let response = match deadline {
        None => answering.await,
        Some(deadline) => match tokio::time::timeout(deadline, answering).await {
            Ok(response) => response,
            Err(_) => Refusal(late(deadline, is_read)).into_response(),
        },
    };
    with_level(with_particulars(response).await, keeper.node.pressure.level())
}

/// The way to the server that answers a request, where that is not this one.
fn elsewhere<'a>(keeper: &'a Keeper, request: &Request) -> Option<&'a Forwarder> {
    let forwarder =
        keeper.node.forwarder.as_ref().filter(|_| matches!(keeper.entrance, Entrance::Cluster))?;
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let is_about_this_one = path.starts_with("/health/") || (path == "/v1/cluster" && query == "stale=true");
    (!is_about_this_one && !keeper.node.leads()).then_some(forwarder)
}

/// Answers a request of somebody who may ask it.
async fn answer_here(keeper: &Keeper, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let admitted = match admit(keeper, &request) {
        Ok((principal, endpoint)) => {
            must_own(&keeper.node, &principal, endpoint, &path).await.map(|()| (principal, endpoint))
        }
        Err(problem) => Err(problem),
    };
    match admitted {
        Ok((principal, endpoint)) => {
            let by = is_told(endpoint, request.method()).then(|| principal.clone());
            let mut told = by.map(|by| Told { by, status: None });
            request.extensions_mut().insert(principal);
            let response = next.run(request).await;
            if let Some(told) = &mut told {
                told.status = Some(response.status().as_u16());
            }
            response
        }
        Err(problem) => Refusal(problem).into_response(),
    }
}

/// Has the log say who changed the cluster, or tried to. It is said when this is dropped: a change that was proposed happens also where
/// nobody waits for its answer any more.
struct Told {
    by: Principal,
    /// What was answered, if anything.
    status: Option<u16>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let (by, role) = (self.by.name(), self.by.role_name());
        match self.status {
            Some(status) => tracing::info!(by, role, status, "somebody changed the cluster, or tried to"),
            None => tracing::info!(
                by,
                role,
                "somebody changed the cluster, or tried to, and did not wait for the answer"
            ),
        }
    }
}

/// Whether the log says who asked for it: what changes nodes, tenants or tokens, and not what changes work.
fn is_told(endpoint: &Endpoint, method: &Method) -> bool {
    let changes = matches!(
        endpoint.needs,
        Right::ChangeNodes | Right::ChangeTenants | Right::ChangeTokens | Right::EndProcess
    );
    changes && !method.is_safe()
}

/// Who asks, and what for, if they may ask that of anything.
fn admit(keeper: &Keeper, request: &Request) -> Result<(Principal, &'static Endpoint), Problem> {
    let (entrance, directory) = (&keeper.entrance, keeper.node.directory());
    let principal = access::principal(entrance, request.headers(), &directory, wall_ms());
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let endpoint = access::endpoint(request.method(), path);
    let principal = match principal {
        // Whoever asks whether a server is well is answered, with a token that is good for nothing as without one.
        Err(_) if endpoint.as_ref().is_ok_and(|endpoint| endpoint.needs == Right::None) => Principal::Nobody,
        known => known?,
    };
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        // What there is and is not, nobody is told who is not known.
        Err(_) if principal == Principal::Nobody => {
            return Err(access::unauthorized(entrance, "a token is needed, and none is shown"));
        }
        Err(problem) => return Err(problem),
    };
    access::allow(entrance, &principal, endpoint)?;
    known_parameters(request, endpoint)?;
    Ok((principal, endpoint))
}

/// Refuses what belongs to another tenant as if it were not there.
async fn must_own(
    node: &Node,
    principal: &Principal,
    endpoint: &Endpoint,
    path: &str,
) -> Result<(), Problem> {
    let subject = endpoint.subject();
    if subject == Subject::Nothing || principal.scope() == Scope::All {
        return Ok(());
    }
    let shown = path.split('/').nth(3).unwrap_or_default();
    let owner = match subject {
        Subject::Job => match shown.parse() {
            Ok(job) => views::tenant_of_job(node, job).await?,
            Err(_) => None,
        },
        Subject::Task => match shown.parse() {
            Ok(task) => views::tenant_of_task(node, task).await?,
            Err(_) => None,
        },
        Subject::Nothing => None,
    };
    match owner {
        Some(tenant) if principal.scope().has(tenant) => Ok(()),
        _ => Err(access::not_there(subject, shown)),
    }
}

/// Within which time a request must be answered; what is sent or followed piece by piece goes on as long as it moves.
fn deadline(path: &str, query: &str) -> Option<Duration> {
    let is_piecewise =
        path == blobs::PATH || path == bulk::PATH || path.ends_with("/logs") || path.ends_with("/events");
    if is_piecewise {
        return None;
    }
    // One that cannot be read is refused by its handler.
    let waits =
        query.split('&').find_map(|parameter| parameter.strip_prefix("wait_ms=")?.parse::<u64>().ok());
    Some(ANSWER_WITHIN + Duration::from_millis(waits.unwrap_or(0).min(jobs::LONGEST_WAIT_MS)))
}

/// Nothing that was accepted is taken back: the request may go on, only its answer is no longer waited for.
fn late(deadline: Duration, is_read: bool) -> Problem {
    let detail = format!("the request was not answered within {} s", deadline.as_secs());
    if is_read {
        return Problem::new(ErrorCode::Unavailable, detail).retry_after_ms(1_000);
    }
    Problem::new(ErrorCode::OutcomeUnknown, format!("{detail}; it may have happened"))
        .hint("send it again under the same Idempotency-Key")
        .retry_after_ms(1_000)
}

/// Refuses a parameter of the query that the endpoint does not have: what it was meant to say would not happen.
fn known_parameters(request: &Request, endpoint: &Endpoint) -> Result<(), Problem> {
    // A query that does not read is refused by whoever reads it.
    let Ok(Query(given)) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()) else { return Ok(()) };
    let known: Vec<&str> = endpoint.query.iter().map(|(name, _)| *name).collect();
    let Some((unknown, _)) = given.iter().find(|(name, _)| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let shown: String = unknown.chars().take(LONGEST_SHOWN).collect();
    let detail = format!("`{shown}` is not a parameter of {} {}", request.method(), endpoint.path);
    let hint = match (nearest(unknown, known.iter().copied()), known.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, false) => format!("its parameters are {}", known.join(", ")),
        (None, true) => "it has no parameters".to_owned(),
    };
    Err(Problem::new(ErrorCode::InvalidRequest, detail).field("query").hint(hint))
}

/// What the framework refuses by itself, in the form of every other refusal.
async fn with_particulars(response: Response) -> Response {
    let status = response.status();
    let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if status.is_success() || media_type == Some(PROBLEM_MEDIA_TYPE) {
        return response;
    }
    let said = axum::body::to_bytes(response.into_body(), LONGEST_REFUSAL_BYTES).await.unwrap_or_default();
    let code = if status.is_client_error() { ErrorCode::InvalidRequest } else { ErrorCode::Internal };
    Refusal(Problem::new(code, String::from_utf8_lossy(&said))).into_response()
}

/// Refuses what is not taken from anybody.
fn take(entrance: &Entrance, headers: &HeaderMap, path: &str) -> Result<(), Problem> {
    // A page in a browser of the same machine may reach the port, and even name it by a host of its own.
    if headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(ErrorCode::ForbiddenOrigin, "requests from web pages are not taken"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // A server of a cluster is reached by many names, and shows a certificate for those that are its own.
    if !matches!(entrance, Entrance::Cluster) && !is_local(host) {
        let shown: String = host.chars().take(128).collect();
        let detail = format!("`{shown}` is not a name of this machine's loopback interface");
        return Err(
            Problem::new(ErrorCode::ForbiddenOrigin, detail).hint("use 127.0.0.1, [::1] or localhost")
        );
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if path != blobs::PATH && length.is_some_and(|length| length > REQUEST_BYTES as u64) {
        // Said before the body is sent, so that nobody sends it in vain.
        let detail = format!("the body is larger than {REQUEST_BYTES} bytes");
        return Err(Problem::new(ErrorCode::TooLarge, detail)
            .limit(REQUEST_BYTES as u64)
            .hint("send it in parts"));
    }
    Ok(())
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn every_request_has_a_deadline_except_what_goes_piece_by_piece() {
        for (path, query, seconds) in [
            ("/v1/jobs", "", Some(60)),
            ("/v1/jobs/j1", "wait_ms=30000", Some(90)),
            ("/v1/jobs/j1", "limit=1&wait_ms=999999999", Some(120)),
            ("/v1/jobs/j1", "wait_ms=nonsense", Some(60)),
            ("/v1/tasks/stream", "", None),
            ("/v1/blobs", "", None),
            ("/v1/blobs/missing", "", Some(60)),
            ("/v1/tasks/t1/logs", "follow=true", None),
            ("/v1/jobs/j1/events", "", None),
            ("/v1/events", "", None),
        ] {
            assert_eq!(deadline(path, query), seconds.map(Duration::from_secs), "{path}?{query}");
        }
        assert_eq!(late(Duration::from_secs(60), true).status, 503);
        assert_eq!(late(Duration::from_secs(60), false).code, ErrorCode::OutcomeUnknown);
    }

    #[test]
    fn only_local_names_without_an_origin_come_in_and_every_name_of_a_cluster_s_server() {
        let loopback = Entrance::Loopback { token: "secret".to_owned() };
        for host in ["localhost", "localhost:7654", "127.0.0.1:1", "127.9.9.9", "[::1]:7654"] {
            for entrance in [&Entrance::Socket, &loopback, &Entrance::Cluster] {
                assert!(take(entrance, &headers(&[("host", host)]), "/v1/jobs").is_ok(), "{host}");
            }
        }
        for host in ["", "example.com", "localhost.example.com", "10.0.0.1", "[::2]"] {
            let refused = take(&loopback, &headers(&[("host", host)]), "/v1/jobs");
            assert_eq!(refused.unwrap_err().code, ErrorCode::ForbiddenOrigin, "{host}");
            assert!(take(&Entrance::Cluster, &headers(&[("host", host)]), "/v1/jobs").is_ok(), "{host}");
        }
        let origin = headers(&[("host", "localhost"), ("origin", "http://localhost")]);
        for entrance in [&Entrance::Socket, &loopback, &Entrance::Cluster] {
            let refused = take(entrance, &origin, "/v1/jobs").unwrap_err();
            assert_eq!(refused.code, ErrorCode::ForbiddenOrigin);
        }
    }
}
