//! A server of the node plane that says what a test has it say, down to the bytes.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use futures_util::stream;
use grey_wire::NodePlaneClient;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tonic::transport::{Channel, Endpoint};

/// A client of a server that answers each call so. To be called in a runtime, with which it ends.
pub(crate) fn answering<Answer>(
    answer: impl Fn(Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
) -> NodePlaneClient<Channel>
where
    Answer: Future<Output = Response<Body>> + Send + 'static,
{
    let connector = tower::service_fn(move |_| {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let http = Builder::new(TokioExecutor::new());
            drop(http.serve_connection(TokioIo::new(there), service).await);
        });
        async move { Ok::<_, Infallible>(TokioIo::new(here)) }
    });
    let endpoint = Endpoint::from_static("http://server");
    NodePlaneClient::new(endpoint.connect_with_connector_lazy(connector))
}

/// An answer of messages, each as it is encoded.
pub(crate) fn said(messages: &[&[u8]]) -> Response<Body> {
    let framed = messages.iter().map(|message| {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        Frame::data(Bytes::from([&[0], length.as_slice(), message].concat()))
    });
    let status = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let frames: Vec<_> = framed.chain([Frame::trailers(status)]).map(Ok::<_, Infallible>).collect();
    let answer = Response::builder().header("content-type", "application/grpc");
    answer.body(Body::new(StreamBody::new(stream::iter(frames)))).unwrap()
}
