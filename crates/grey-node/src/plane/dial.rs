//! Connections to servers.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Uri;
use grey_proof::Digest;
use grey_trust::tls_key;
use grey_wire::{MESSAGE_BYTES, NodePlaneClient};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::listen::{KEEP_ALIVE, exporter, prepare};

/// How long making a connection may take, the handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to a server.
#[derive(Clone)]
pub(crate) struct Dialled {
    /// What calls go through.
    pub(crate) client: NodePlaneClient<Channel>,
    /// What both ends of the connection know and nobody else.
    pub(crate) exporter: [u8; 32],
}

/// Makes connections to servers of the cluster.
#[derive(Clone)]
pub(crate) struct Dialler {
    tls: Arc<ClientConfig>,
}

impl Dialler {
    pub(crate) fn new(tls: Arc<ClientConfig>) -> Dialler {
        Dialler { tls }
    }

    /// Connects to a server of the cluster at `address`; to this one only, where its key is given.
    pub(crate) async fn dial(&self, address: &str, key: Option<Digest>) -> io::Result<Dialled> {
        let uri: Uri = format!("http://{address}").parse().map_err(io::Error::other)?;
        // What a connection is learned to be comes from within the connector.
        let learned = Arc::new(Mutex::new(None));
        let (tls, learn) = (self.tls.clone(), learned.clone());
        let connector = service_fn(move |uri: Uri| {
            let (tls, learn) = (tls.clone(), learn.clone());
            async move {
                let (stream, facts) = connect(tls, &uri, key).await?;
                *learn.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from(uri)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let connected =
            tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector)).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(io::Error::other(root_of(&error))),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within 3 s")),
        };
        let facts = learned.lock().unwrap_or_else(PoisonError::into_inner).take();
        let exporter = facts.ok_or_else(|| io::Error::other("the connection was not made"))?;
        let client = NodePlaneClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        Ok(Dialled { client, exporter })
    }
}

/// What is at the bottom of an error: the layers above only say that there is one.
pub(super) fn root_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

async fn connect(
    tls: Arc<ClientConfig>,
    uri: &Uri,
    key: Option<Digest>,
) -> io::Result<(tokio_rustls::client::TlsStream<TcpStream>, [u8; 32])> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(grey_api::DEFAULT_PORT);
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    prepare(&stream)?;
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let shown = shown.ok_or_else(|| io::Error::other("the server shows no certificate"))?;
    let found = tls_key(shown).map_err(io::Error::other)?;
    if key.is_some_and(|key| key != found) {
        return Err(io::Error::other("another server answers there"));
    }
    let exporter = exporter(stream.get_ref().1)?;
    Ok((stream, exporter))
}
