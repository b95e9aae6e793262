//! Bodies that are read piece by piece, as long as they come.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream::{self, BoxStream, StreamExt};
use grey_api::{ErrorCode, Problem};

/// For how long a body may pause: what it holds meanwhile, others wait for.
pub(super) const NEXT_PIECE: Duration = Duration::from_secs(30);

/// How fast content is sent at least: so many bytes within each such time, beside its last ones. A pause alone bounds nothing, where a byte
/// ends it.
pub(super) const LEAST: Least = Least { bytes: 64 * 1024, within: Duration::from_secs(60) };

/// A least rate. What counts is the time for which a piece was waited for, and not for which what came was dealt with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Least {
    pub(super) bytes: usize,
    pub(super) within: Duration,
}

/// The pieces of a body; one that pauses for longer, or breaks off, ends in why.
pub(super) fn paced(body: Body, longest_pause: Duration) -> BoxStream<'static, Result<Bytes, Problem>> {
    pieces(body, longest_pause, None)
}

/// The pieces of a body that others wait for the end of: besides, one that comes too slowly ends in that.
pub(super) fn steady(
    body: Body,
    longest_pause: Duration,
    least: Least,
) -> BoxStream<'static, Result<Bytes, Problem>> {
    pieces(body, longest_pause, Some(least))
}

/// What came since the least was there the last time.
#[derive(Debug, Clone, Copy, Default)]
struct Since {
    bytes: usize,
    waited: Duration,
}

fn pieces(
    body: Body,
    longest_pause: Duration,
    least: Option<Least>,
) -> BoxStream<'static, Result<Bytes, Problem>> {
    let begun = Some((body.into_data_stream(), Since::default()));
    stream::unfold(begun, move |state| async move {
        let (mut pieces, mut since) = state?;
        let left = least.map_or(Duration::MAX, |least| least.within.saturating_sub(since.waited));
        let begun = Instant::now();
        match tokio::time::timeout(longest_pause.min(left), pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => {
                since.waited += begun.elapsed();
                since.bytes += piece.len();
                if least.is_none_or(|least| since.bytes >= least.bytes) {
                    since = Since::default();
                }
                Some((Ok(piece), Some((pieces, since))))
            }
            Ok(Some(Err(error))) => {
                let detail = format!("the body broke off: {error}");
                Some((Err(Problem::new(ErrorCode::InvalidRequest, detail)), None))
            }
            Err(_) => {
                let slow = least.filter(|_| left < longest_pause);
                Some((Err(slow.map_or_else(|| paused(longest_pause), slower)), None))
            }
        }
    })
    .boxed()
}

fn slower(least: Least) -> Problem {
    let Least { bytes, within } = least;
    let detail =
        format!("less than {} KiB more of the body came within {} s", bytes / 1024, within.as_secs());
    Problem::new(ErrorCode::RequestTimeout, detail)
        .limit(within.as_secs())
        .hint("send it again, from where it can be sent faster")
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

    #[tokio::test]
    async fn content_that_comes_by_the_byte_is_not_waited_for_and_what_is_large_or_short_is() {
        let least = Least { bytes: 3, within: Duration::from_millis(300) };
        let read = |piece: &'static str, count: usize, pause_ms: u64| async move {
            let pieces = stream::unfold(0, move |sent| async move {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                (sent < count).then_some((Ok::<_, std::io::Error>(piece), sent + 1))
            });
            // The pause alone would never end it.
            let read = steady(Body::from_stream(pieces), Duration::from_secs(30), least);
            let read: Vec<_> = read.collect().await;
            let refused = read.iter().find_map(|piece| piece.as_ref().err());
            let refused = refused.map(|problem| (problem.status, problem.limit));
            (refused, read.iter().filter(|piece| piece.is_ok()).count())
        };
        let (refused, came) = read("x", 1_000, 200).await;
        assert_eq!(refused, Some((408, Some(0))));
        assert!(came <= 2, "{came}");
        // Each piece has what has to come, so that a body may last as long as it takes.
        assert_eq!(read("all", 20, 30).await, (None, 20));
        assert_eq!(read("x", 2, 20).await, (None, 2));
    }
}
