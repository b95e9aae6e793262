//! Answers and refusals as responses.

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use grey_api::{ErrorCode, Problem};
use grey_health::Level;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::REQUEST_BYTES;

/// The media type of refusals.
pub(crate) const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A refusal on its way to the client.
pub(crate) struct Refusal(pub(crate) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(problem) = self;
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let media_type = HeaderValue::from_static(PROBLEM_MEDIA_TYPE);
        let mut response = (status, [(header::CONTENT_TYPE, media_type)], body).into_response();
        response.extensions_mut().insert(problem.code);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_after_ms) = problem.retry_after_ms {
            let seconds = HeaderValue::from(retry_after_ms.div_ceil(1_000));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// A document.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<Response, Refusal> {
    let mut body = serde_json::to_vec(value)
        .map_err(|error| Refusal(Problem::new(ErrorCode::Internal, error.to_string())))?;
    body.push(b'\n');
    Ok(typed("application/json", body))
}

/// The header that says how full the door is. It is left out while there is room.
pub(crate) const PRESSURE: HeaderName = HeaderName::from_static("grey-pressure");

/// A response that says how full the door is, unless it says so already.
pub(crate) fn with_level(mut response: Response, level: Level) -> Response {
    if level != Level::Normal && !response.headers().contains_key(PRESSURE) {
        response.headers_mut().insert(PRESSURE, HeaderValue::from_static(level.name()));
    }
    response
}

/// Bytes of a media type.
pub(crate) fn typed(media_type: &'static str, body: impl Into<Body>) -> Response {
    let name: HeaderName = header::CONTENT_TYPE;
    ([(name, HeaderValue::from_static(media_type))], body.into()).into_response()
}

/// A request's body, or why it was not read.
pub(crate) fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Refusal> {
    body.map_err(|rejection| {
        let problem = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let detail = format!("the body is larger than {REQUEST_BYTES} bytes");
            Problem::new(ErrorCode::TooLarge, detail).limit(REQUEST_BYTES as u64).hint("send it in parts")
        } else {
            Problem::new(ErrorCode::InvalidRequest, rejection.body_text())
        };
        Refusal(problem)
    })
}

/// Reads a document that a client sent.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], place: &str) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!("{place} cannot be read: {error}");
        Refusal(
            Problem::new(ErrorCode::InvalidRequest, detail).hint("GET /openapi.json describes the request"),
        )
    })
}

/// A value of the path or the query.
pub(crate) fn value<T: core::str::FromStr>(field: &str, text: &str) -> Result<T, Refusal>
where
    T::Err: core::fmt::Display,
{
    text.parse().map_err(|error: T::Err| {
        Refusal(Problem::new(ErrorCode::InvalidRequest, format!("`{field}`: {error}")).field(field))
    })
}
