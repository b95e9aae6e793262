//! Bodies that are read on for a while after their request was answered.
//!
//! A refusal that comes before a body was read closes the connection under whoever still sends, who may then see the broken connection and not the refusal. (RFC 9112,
//! section 9.6 says so of closing.)

use core::pin::Pin;
use core::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

use super::REQUEST_BYTES;

/// For how long a body is read on that nobody wants.
const READ_ON: Duration = Duration::from_secs(2);

/// A body that is read on when it is dropped before its end.
struct Lingering(Option<Body>);

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let left = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (left, tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(READ_ON, read_on(body)));
        }
    }
}

/// Reads no more than any request may have.
async fn read_on(mut body: Body) {
    let mut read = 0usize;
    while let Some(Ok(frame)) = body.frame().await {
        read = read.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if read > REQUEST_BYTES {
            return;
        }
    }
}

/// The same request, whose body is read on.
pub(super) async fn linger(request: Request) -> Request {
    request.map(|body| Body::new(Lingering(Some(body))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Whoever sends a body of so many bytes, and reads nothing before it is sent, to somebody who refuses at once.
    async fn told(bytes: usize) -> String {
        let refuse = || async { (axum::http::StatusCode::FORBIDDEN, "no") };
        let routes = axum::Router::new().fallback(refuse).layer(axum::middleware::map_request(linger));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes).into_future());
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head =
            format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 64 * 1024];
        for _ in 0..bytes / piece.len() {
            if stream.write_all(&piece).await.is_err() {
                return "broken".to_owned();
            }
        }
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        answer.lines().next().unwrap_or("broken").to_owned()
    }

    #[tokio::test]
    async fn whoever_sends_on_hears_the_refusal() {
        assert_eq!(told(8 * 1024 * 1024).await, "HTTP/1.1 403 Forbidden");
    }

    #[tokio::test]
    async fn what_is_more_than_a_request_may_have_is_not_read_to_its_end() {
        assert_eq!(told(64 * 1024 * 1024).await, "broken");
    }
}
