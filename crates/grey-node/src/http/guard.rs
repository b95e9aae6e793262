//! Who may speak: checked before anything else, on every method.

use std::sync::Arc;

use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use grey_api::{ENDPOINTS, Endpoint, ErrorCode, Problem, nearest};
use grey_proof::Digest;

use super::reply::{PROBLEM_MEDIA_TYPE, Refusal};
use super::{REQUEST_BYTES, blobs};
use crate::handle::Activity;

/// A refusal of the framework's own is a sentence.
const LONGEST_REFUSAL_BYTES: usize = 4_096;
/// How much of an unknown parameter is repeated, in characters.
const LONGEST_SHOWN: usize = 64;

/// How a request came in.
pub(crate) enum Entrance {
    /// Over the unix socket.
    Socket,
    /// Over the loopback interface, with this token.
    Loopback {
        /// What must be shown.
        token: String,
    },
}

/// Lets a request in or refuses it, and counts it as activity.
pub(crate) async fn guard(
    State(gate): State<Arc<(Entrance, Arc<Activity>)>>,
    request: Request,
    next: Next,
) -> Response {
    let (entrance, activity) = gate.as_ref();
    if let Err(problem) = admit(entrance, request.headers(), request.uri().path()) {
        return Refusal(problem).into_response();
    }
    if let Err(problem) = known_parameters(&request) {
        return Refusal(problem).into_response();
    }
    let _open = activity.enter();
    with_particulars(next.run(request).await).await
}

/// Refuses a parameter of the query that the endpoint does not have: what it was meant to say would not happen.
fn known_parameters(request: &Request) -> Result<(), Problem> {
    // A path that is no endpoint is refused as such, a query that does not read by whoever reads it.
    let Some(path) = request.extensions().get::<MatchedPath>() else { return Ok(()) };
    let Ok(Query(given)) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()) else { return Ok(()) };
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let is_asked = |endpoint: &&Endpoint| {
        endpoint.path == path.as_str() && method.as_str().eq_ignore_ascii_case(endpoint.method)
    };
    let Some(endpoint) = ENDPOINTS.iter().find(is_asked) else { return Ok(()) };
    let known: Vec<&str> = endpoint.query.iter().map(|(name, _)| *name).collect();
    let Some((unknown, _)) = given.iter().find(|(name, _)| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let shown: String = unknown.chars().take(LONGEST_SHOWN).collect();
    let detail = format!("`{shown}` is not a parameter of {} {}", method.as_str(), endpoint.path);
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

fn admit(entrance: &Entrance, headers: &HeaderMap, path: &str) -> Result<(), Problem> {
    // A page in a browser of the same machine may reach the port, and even name it by a host of its own.
    if headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(ErrorCode::ForbiddenOrigin, "requests from web pages are not taken"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_local(host) {
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
    match entrance {
        Entrance::Socket => Ok(()),
        Entrance::Loopback { .. } if path == "/health/live" || path == "/health/ready" => Ok(()),
        Entrance::Loopback { token } => {
            let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
            // Digests are compared, so that the time it takes tells nothing of the token.
            if Digest::of(shown.as_bytes()) == Digest::of(token.as_bytes()) {
                return Ok(());
            }
            Err(Problem::new(ErrorCode::Unauthorized, "the token is missing or not this node's")
                .hint("set GREY_TOKEN to the token that `grey dev` prints"))
        }
    }
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
    fn only_local_names_without_an_origin_and_with_the_token_come_in() {
        let loopback = Entrance::Loopback { token: "secret".to_owned() };
        let authorized = ("authorization", "Bearer secret");
        for host in ["localhost", "localhost:7654", "127.0.0.1:1", "127.9.9.9", "[::1]:7654"] {
            assert!(admit(&Entrance::Socket, &headers(&[("host", host)]), "/v1/jobs").is_ok(), "{host}");
            assert!(admit(&loopback, &headers(&[("host", host), authorized]), "/v1/jobs").is_ok(), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "10.0.0.1", "[::2]"] {
            let refused = admit(&loopback, &headers(&[("host", host), authorized]), "/v1/jobs");
            assert_eq!(refused.unwrap_err().code, ErrorCode::ForbiddenOrigin, "{host}");
        }
        let origin = headers(&[("host", "localhost"), authorized, ("origin", "http://localhost")]);
        assert_eq!(admit(&loopback, &origin, "/v1/jobs").unwrap_err().code, ErrorCode::ForbiddenOrigin);
        for token in ["", "secret", "Bearer ", "Bearer secre", "Bearer secret2", "bearer secret"] {
            let shown = headers(&[("host", "localhost"), ("authorization", token)]);
            assert_eq!(admit(&loopback, &shown, "/v1/jobs").unwrap_err().code, ErrorCode::Unauthorized);
        }
        assert!(admit(&loopback, &headers(&[("host", "localhost")]), "/health/live").is_ok());
    }
}
