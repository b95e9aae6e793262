//! The listener for whoever reads metrics: one path, bounded connections, and one look at the node for all that ask at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::exposition::Exposition;
use super::meters::Meters;
use super::process;
use crate::control::Message;
use crate::error::NodeError;
use crate::handle::Node;
use crate::worker::WorkerMessage;

/// Where metrics are read.
const PATH: &str = "/metrics";
/// The media type of what is read there.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 16;
/// How long a connection may take from its beginning to its end. Each has one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the node's threads may take to say how they are.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// For so long what was read is good for others: that bounds what all who ask cost together.
const FRESH: Duration = Duration::from_millis(250);

/// What metrics are made from.
pub(crate) struct Source {
    pub(crate) meters: Arc<Meters>,
    pub(crate) data_dir: PathBuf,
    /// The server of this process, where it has one.
    pub(crate) server: Option<Arc<Node>>,
    /// The worker of this process, where it has one.
    pub(crate) worker: Option<Sender<WorkerMessage>>,
}

/// A listener that ends when it is dropped.
pub(crate) struct MetricsListener {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

/// Listens for whoever reads metrics.
pub(crate) async fn listen(address: SocketAddr, source: Source) -> Result<MetricsListener, NodeError> {
    let listener = TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            NodeError::AddressInUse { address: address.to_string(), flag: "--metrics-listen" }
        }
        _ => NodeError::io("listen on", address)(error),
    })?;
    let address = listener.local_addr().map_err(NodeError::io("listen on", address))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::new(Scrapes { source, last: Mutex::default() })));
    tracing::info!(%address, "metrics are read here");
    Ok(MetricsListener { address, _tasks: tasks })
}

async fn accept(listener: TcpListener, scrapes: Arc<Scrapes>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        // What has ended need not be held any longer.
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let scrapes = scrapes.clone();
                connections.spawn(async move {
                    let _place = place;
                    // Who takes longer is cut off, and may come again.
                    drop(tokio::time::timeout(ANSWER_WITHIN, answer(stream, scrapes)).await);
                });
            }
            Err(error) => {
                // Descriptors may have run out; others end meanwhile.
                tracing::warn!(%error, "a connection for metrics could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, scrapes: Arc<Scrapes>) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let scrapes = scrapes.clone();
        async move { Ok::<Response<Body>, Infallible>(scrapes.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

/// Who asks, and what was answered last.
struct Scrapes {
    source: Source,
    last: Mutex<Option<(Instant, Bytes)>>,
}

/// What is answered to a request before anything is looked at, if it is no scrape.
fn refusal<T>(request: &Request<T>) -> Option<(StatusCode, &'static str)> {
    // A page in a browser of the same machine may reach the port.
    if request.headers().contains_key(header::ORIGIN) {
        return Some((StatusCode::FORBIDDEN, "requests from web pages are not taken\n"));
    }
    if request.uri().path() != PATH {
        return Some((StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    (!is_read).then_some((StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n"))
}

fn response(status: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    response
}

impl Scrapes {
    async fn answer<T>(&self, request: &Request<T>) -> Response<Body> {
        if let Some((status, why)) = refusal(request) {
            return response(status, "text/plain", why);
        }
        match tokio::time::timeout(LOOK_WITHIN, self.text()).await {
            Ok(Some(text)) => response(StatusCode::OK, MEDIA_TYPE, text),
            _ => response(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the node does not say how it is\n"),
        }
    }

    /// What there is to read, looked at now or a moment ago.
    async fn text(&self) -> Option<Bytes> {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(text.clone());
        }
        let text = Bytes::from(self.source.text().await?);
        *last = Some((Instant::now(), text.clone()));
        Some(text)
    }
}

impl Source {
    /// Looks at everything; `None` when a thread of the node is gone.
    async fn text(&self) -> Option<String> {
        let mut exposition = Exposition::new();
        self.meters.expose_start(&mut exposition);
        process::expose(&mut exposition, &self.data_dir);
        if let Some(node) = &self.server {
            let (reply, sample) = oneshot::channel();
            node.control.send(Message::Measure(reply)).ok()?;
            sample.await.ok()?.expose(&mut exposition);
            self.meters.expose(&mut exposition);
            expose_node(node, &mut exposition);
        }
        if let Some(worker) = &self.worker {
            let (reply, sample) = oneshot::channel();
            worker.send(WorkerMessage::Measure(reply)).ok()?;
            sample.await.ok()?.expose(&mut exposition);
        }
        Some(exposition.text())
    }
}

/// What a server's node holds beside its control thread.
fn expose_node(node: &Node, exposition: &mut Exposition) {
    exposition.gauge(
        "history_kept_index",
        "The last entry whose history is written; it follows the applied one",
        *node.kept.borrow(),
    );
    let issuing = node.issuing.as_ref().and_then(|issuing| issuing.status());
    exposition.gauge(
        "authority_expires_seconds",
        "When the key that issues certificates ends, since 1970; 0 where there is none",
        issuing.map_or(0, |key| key.not_after_ms / 1_000),
    );
    exposition.bytes("disk_floor", "So much must be free for new work to be taken", node.disk.floor_bytes());
    let kept = node.keeping.status(&node.records);
    exposition.bytes("history", "What history takes", kept.history_bytes);
    exposition.bytes("blobs", "What blobs took when they were last looked at", kept.blob_bytes.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_read_and_nothing_is_told_to_a_web_page() {
        let request =
            |method: &str, path: &str| Request::builder().method(method).uri(path).body(()).unwrap();
        for (method, path, status) in [
            ("GET", "/metrics", None),
            ("HEAD", "/metrics", None),
            ("GET", "/metrics?x=1", None),
            ("POST", "/metrics", Some(405)),
            ("GET", "/", Some(404)),
            ("GET", "/v1/cluster", Some(404)),
        ] {
            let refused = refusal(&request(method, path)).map(|(status, _)| status.as_u16());
            assert_eq!(refused, status, "{method} {path}");
        }
        let mut page = request("GET", "/metrics");
        page.headers_mut().insert(header::ORIGIN, header::HeaderValue::from_static("http://localhost"));
        assert_eq!(refusal(&page).map(|(status, _)| status), Some(StatusCode::FORBIDDEN));
    }
}
