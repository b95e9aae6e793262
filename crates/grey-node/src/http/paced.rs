//! Bodies that are read piece by piece, as long as they come.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream::{self, BoxStream, StreamExt};
use grey_api::{ErrorCode, Problem};

/// For how long a body may pause: what it holds meanwhile, others wait for.
pub(super) const NEXT_PIECE: Duration = Duration::from_secs(30);

/// The pieces of a body; one that pauses for longer, or breaks off, ends in why.
pub(super) fn paced(body: Body, longest_pause: Duration) -> BoxStream<'static, Result<Bytes, Problem>> {
    let pieces = body.into_data_stream();
    stream::unfold(Some(pieces), move |pieces| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(longest_pause, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => {
                let detail = format!("the body broke off: {error}");
                Some((Err(Problem::new(ErrorCode::InvalidRequest, detail)), None))
            }
            Err(_) => Some((Err(paused(longest_pause)), None)),
        }
    })
    .boxed()
}

fn paused(longest_pause: Duration) -> Problem {
    let detail = format!("nothing more of the body came for {} s", longest_pause.as_secs());
    Problem::new(ErrorCode::RequestTimeout, detail)
        .limit(longest_pause.as_secs())
        .hint("send it again, without a pause that is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_comes_to_its_end_unless_it_pauses_or_breaks() {
        let pieces = || stream::iter([Ok::<_, std::io::Error>("one"), Ok("two")]);
        let read = |body: Body| async move {
            let read: Vec<_> = paced(body, Duration::from_millis(50)).collect().await;
            let failed = read.iter().filter_map(|piece| piece.as_ref().err().map(|problem| problem.status));
            (read.iter().filter(|piece| piece.is_ok()).count(), failed.collect::<Vec<u16>>())
        };
        assert_eq!(read(Body::from_stream(pieces())).await, (2, vec![]));
        let paused = pieces().chain(stream::pending());
        assert_eq!(read(Body::from_stream(paused)).await, (2, vec![408]));
        let broken = pieces().chain(stream::iter([Err(std::io::Error::other("reset"))]));
        assert_eq!(read(Body::from_stream(broken)).await, (2, vec![400]));
    }
}
