//! Content that tasks name by its digest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use grey_api::{BlobCreated, BlobQuery, BlobsMissing, ErrorCode, Problem};
use grey_blob::{BlobError, BlobStore};
use grey_core::{JobId, limits};
use grey_proof::Digest;

use super::access::{Principal, Scope};
use super::paced::{LEAST, NEXT_PIECE, steady};
use super::reply::{Refusal, json, parse, value, whole};
use crate::handle::Node;
use crate::retention::Class;

/// Where content is sent to; its body may be as large as an output.
pub(crate) const PATH: &str = "/v1/blobs";
/// The most digests of one question.
const DIGESTS: usize = 1_000;

fn refused(error: &BlobError) -> Refusal {
    let code = match error {
        BlobError::Full { .. } => ErrorCode::DiskFull,
        BlobError::Oversized { .. } => ErrorCode::TooLarge,
        // The only content that is received is the client's own.
        BlobError::Io { action: "receive", source, .. } => match source.downcast_ref::<Problem>() {
            Some(problem) => return Refusal(problem.clone()),
            None => ErrorCode::InvalidRequest,
        },
        _ => ErrorCode::Internal,
    };
    if code == ErrorCode::Internal {
        tracing::error!(%error, "a blob cannot be kept");
    }
    Refusal(Problem::new(code, error.to_string()))
}

/// Keeps a body as it comes, and gives up one that pauses for longer, or comes by the byte.
async fn received(
    blobs: &BlobStore,
    body: Body,
    longest_pause: Duration,
    until: SystemTime,
) -> Result<(Digest, u64), Refusal> {
    let pieces = steady(body, longest_pause, LEAST);
    let kept = blobs.put_stream(pieces, limits::OUTPUT_LIMIT_BYTES, until).await;
    kept.map_err(|error| refused(&error))
}

/// `POST /v1/blobs`.
pub(crate) async fn create(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Refusal> {
    let _place = node.admit_upload(principal.scope()).await?;
    let until = node.keeping.promised_until();
    let (digest, size_bytes) = received(&node.blobs, request.into_body(), NEXT_PIECE, until).await?;
    // Whoever is told that it is kept may lose any one server after that.
    node.depot.spread(&digest).await.map_err(|error| {
        Refusal(
            Problem::new(ErrorCode::Unavailable, error.to_string())
                .hint("send it again when more servers are in touch")
                .retry_after_ms(1_000),
        )
    })?;
    // What a tenant has sent is remembered by whoever leads: by another one it would be told that it sent nothing.
    if principal.scope() != Scope::All && !node.leads() {
        let detail = "another server leads since the content began to come, and does not know who sent it";
        return Err(Refusal(
            Problem::new(ErrorCode::Unavailable, detail).hint("send it again").retry_after_ms(200),
        ));
    }
    node.claims.sent(principal.scope(), digest);
    json(&BlobCreated { digest: digest.to_string(), size_bytes })
}

/// `POST /v1/blobs/missing`.
pub(crate) async fn missing(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let query: BlobQuery = parse(&whole(body)?, "the question")?;
    if query.digests.len() > DIGESTS {
        let problem =
            Problem::new(ErrorCode::OutOfBounds, format!("more than {DIGESTS} digests are asked for"));
        return Err(Refusal(problem.field("digests").limit(DIGESTS as u64)));
    }
    let digests = query.digests.iter().map(|digest| value("digests", digest));
    let digests = digests.collect::<Result<Vec<Digest>, Refusal>>()?;
    // Whoever is told that something is here does not send it: it stays for long enough to be named.
    let until = node.keeping.promised_until();
    let mut missing = Vec::new();
    for digest in digests {
        // What another tenant has sent is not here for this one.
        let here = node.claims.may_name(principal.scope(), &digest)
            && node.blobs.count_on(&digest, until).await.map_err(|error| refused(&error))?.is_some();
        if !here {
            missing.push(digest);
        }
    }
    json(&BlobsMissing { missing: missing.iter().map(Digest::to_string).collect() })
}

/// Refuses a submission that names content which is not here, or is of another length. What is here stays until the
/// submission is applied, and far longer. `again` is the job that is run again, where one is: it had the content.
pub(crate) async fn check(
    node: &Node,
    scope: Scope,
    field: &str,
    digest: &Digest,
    size_bytes: u64,
    again: Option<JobId>,
) -> Result<(), Refusal> {
    let until = node.keeping.promised_until();
    // What was sent to an earlier leader is on a majority, and so perhaps not here.
    drop(node.depot.ensure(digest).await);
    let found = node.blobs.count_on(digest, until).await.map_err(|error| refused(&error))?;
    // A job that is run again is its tenant's, and so is its content.
    let found = found.filter(|_| again.is_some() || node.claims.may_name(scope, digest));
    if found == Some(size_bytes) {
        return Ok(());
    }
    if let (Some(job), None) = (again, found) {
        return Err(Refusal(node.keeping.not_retained(format!("an input of job {job}"), Class::Inputs)));
    }
    let detail = match found {
        None => format!("`{field}` names content {digest}, which was not sent"),
        Some(found) => format!("`{field}` says that {digest} has {size_bytes} bytes; it has {found}"),
    };
    let problem = Problem::new(ErrorCode::InvalidRequest, detail).field(field);
    Err(Refusal(problem.hint("send it with POST /v1/blobs first")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::{self, StreamExt};

    #[tokio::test]
    async fn content_that_pauses_is_refused_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(directory.path()).unwrap();
        let stalled = stream::iter([Ok::<_, std::io::Error>("one")]).chain(stream::pending());
        let pause = Duration::from_millis(50);
        let refused = received(&blobs, Body::from_stream(stalled), pause, SystemTime::now()).await;
        let Refusal(problem) = refused.err().unwrap();
        assert_eq!((problem.code, problem.status), (ErrorCode::RequestTimeout, 408));
        assert_eq!(std::fs::read_dir(directory.path().join("incoming")).unwrap().count(), 0);
        let whole = received(&blobs, Body::from("one"), pause, SystemTime::now()).await;
        assert_eq!(whole.ok().unwrap(), (Digest::of(b"one"), 3));
    }
}
