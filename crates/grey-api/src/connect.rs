//! How a connection to a node is opened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::address::Address;
use crate::trust::Trust;

/// The longest path of a unix socket that the system takes, in bytes.
const LONGEST_SOCKET_PATH_BYTES: usize = 107;
/// After so long without a word on an open connection the other side is asked whether it is there, so often at most.
const ASK_AFTER: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMES: u32 = 3;
/// What was sent and not received within this time, in milliseconds, ends the connection: a machine that lost its power does
/// not say so.
const RECEIVED_WITHIN_MS: u32 = 25_000;

/// Bytes both ways, however they travel.
pub trait Wire: hyper::rt::Read + hyper::rt::Write + Unpin + Send {}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin + Send> Wire for T {}

/// Opens a connection. The server behind an HTTPS address has shown that it is the one that the address names.
///
/// # Errors
/// When nobody takes it, or the server's certificate does not lead to a root that is believed, or is for another name.
pub async fn connect(address: &Address, trust: Option<&Trust>) -> io::Result<Box<dyn Wire>> {
    match address {
        Address::Unix(path) => Ok(Box::new(TokioIo::new(connect_unix(path).await?))),
        Address::Http { host, port } => Ok(Box::new(TokioIo::new(connect_tcp(host, *port).await?))),
        Address::Https { host, port } => {
            let trust = trust.ok_or_else(|| {
                io::Error::other(
                    "its certificate cannot be checked: the cluster's root certificate is not given",
                )
            })?;
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let stream = connect_tcp(host, *port).await?;
            let stream = TlsConnector::from(trust.config()).connect(name, stream).await?;
            Ok(Box::new(TokioIo::new(stream)))
        }
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, ASK_AFTER)?;
    rustix::net::sockopt::set_tcp_keepintvl(&stream, ASK_EVERY)?;
    rustix::net::sockopt::set_tcp_keepcnt(&stream, ASK_TIMES)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, RECEIVED_WITHIN_MS)?;
    Ok(stream)
}

/// Opens a socket also where its path is longer than the system takes: through the open directory.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= LONGEST_SOCKET_PATH_BYTES {
        return UnixStream::connect(path).await;
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path).await;
    };
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}
