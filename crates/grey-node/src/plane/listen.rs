//! The listener of a node: TLS, then gRPC or the client API by what a request says it is.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, header};
use grey_proof::Digest;
use grey_trust::{JOIN_EXPORTER_LABEL, tls_key};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower::ServiceExt;

/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 16_384;
/// Handshakes at once: whoever opens connections and says nothing holds up so many others for a while, and no more.
const HANDSHAKES: usize = 256;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet connection is asked for a sign of life, and how long that may take.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long what was sent may stay unacknowledged before the system gives a connection up, in milliseconds: after a partition has
/// healed, a connection that waits for its next retransmission would look dead for as long again.
const UNACKNOWLEDGED_MS: u32 = 4_000;
/// The same where a client is at the other end, who may read slowly, such as page by page: the time that what waits for a reader counts, too.
const UNTAKEN_BY_CLIENT_MS: u32 = 600_000;
/// How long requests and streams may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// What is known of a connection before its first request.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// SHA-256 of the SubjectPublicKeyInfo of the key with which the other side was authenticated, where it showed a certificate.
    pub(crate) tls_key: Option<Digest>,
    /// What both ends of this connection know and nobody else: a join is bound to it.
    pub(crate) exporter: [u8; 32],
    /// Where it comes from.
    pub(crate) remote: SocketAddr,
}

/// Sets what every connection of a node has.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(stream.as_fd(), UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// The secret of a connection that a join is bound to.
pub(super) fn exporter<Data>(
    connection: &tokio_rustls::rustls::ConnectionCommon<Data>,
) -> std::io::Result<[u8; 32]> {
    let exported = connection.export_keying_material([0; 32], JOIN_EXPORTER_LABEL, None);
    exported.map_err(std::io::Error::other)
}

/// Takes connections until it is told to stop, then lets requests end for a moment.
pub(crate) async fn listen(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    node_plane: Router,
    client_plane: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let (connections, handshakes) =
        (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(HANDSHAKES)));
    loop {
        let Ok(place) = connections.clone().acquire_owned().await else { break };
        let Ok(turn) = handshakes.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told(&mut stopping) => break,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Descriptors may have run out; others end meanwhile.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, node_plane, client_plane) =
            (acceptor.clone(), node_plane.clone(), client_plane.clone());
        let mut stopping = stopping.clone();
        tokio::spawn(async move {
            let _place = place;
            let Some((tls, connection)) = handshake(&acceptor, stream, remote).await else { return };
            drop(turn);
            let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(connection.clone());
                let is_node = request
                    .headers()
                    .get(header::CONTENT_TYPE)
                    .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
                let router = if is_node { node_plane.clone() } else { client_plane.clone() };
                async move {
                    let answered: Result<Response<Body>, Infallible> =
                        router.oneshot(request.map(Body::new)).await;
                    answered
                }
            });
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(Some(KEEP_ALIVE))
                .keep_alive_timeout(KEEP_ALIVE)
                .max_concurrent_streams(256);
            let served = builder.serve_connection(TokioIo::new(tls), service);
            let mut served = core::pin::pin!(served);
            let ended = tokio::select! {
                ended = served.as_mut() => ended,
                () = told(&mut stopping) => {
                    served.as_mut().graceful_shutdown();
                    // Streams that never end by themselves are cut when the grace is over.
                    tokio::time::timeout(GRACE, served).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%remote, error, "a connection broke");
            }
        });
    }
}

/// Resolves when the node is to end.
async fn told(stopping: &mut watch::Receiver<bool>) {
    // Whoever would say so is gone only when it ends.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Connection)> {
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, async {
        prepare(&stream)?;
        acceptor.accept(stream).await
    });
    let tls = match shaken.await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "a handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%remote, "a handshake took too long");
            return None;
        }
    };
    let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let key = match shown.map(|certificate| tls_key(certificate)).transpose() {
        Ok(key) => key,
        Err(error) => {
            tracing::debug!(%remote, %error, "a certificate cannot be read");
            return None;
        }
    };
    if key.is_none() {
        let kept = rustix::net::sockopt::set_tcp_user_timeout(tls.get_ref().0.as_fd(), UNTAKEN_BY_CLIENT_MS);
        kept.ok()?;
    }
    let exporter = exporter(tls.get_ref().1).ok()?;
    Some((tls, Connection { tls_key: key, exporter, remote }))
}
