//! The servers of the cluster, as other nodes ask them for something: one that answers is kept until it does not.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use grey_blob::BlobStore;
use grey_core::{BlobReference, InputFile, Stage};
use grey_proof::Digest;
use grey_wire::{
    AuthorityRequest, BlobPiece, CosignReply, CosignRequest, FetchBlobRequest, GatherRequest,
    KeepAuthorityRequest, NodePlaneClient, PIECE_BYTES, ServersRequest, SnapshotRequest, Standing,
    StandingRequest, decode_digest, encode_stage,
};
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::dial::{Dialler, root_of};
use crate::directory::ServerPlace;
use crate::gather::GatherError;

/// Within which time a server answers a question that needs no content to be moved.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Within which time a server begins to send what it has: it may have to write a checkpoint first.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(90);
/// Pieces of content that wait to be written.
const PIECES_WAITING: usize = 4;
/// How long content may pause that comes piece by piece.
const NEXT_PIECE: Duration = Duration::from_secs(30);
/// How long a server may take over what it is sent to keep.
const PATIENCE: Patience = Patience {
    a_piece: NEXT_PIECE,
    kept: ANSWER_WITHIN,
    spread: Duration::from_secs(120),
    least_bytes_a_second: 1024 * 1024,
};

/// Content on its way, piece by piece.
pub(crate) type Content = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// How long a server may take over content that it is to keep: whoever sends it waits for as long.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Over a piece, until it has room for the next.
    a_piece: Duration,
    /// Over its answer when it was given the last piece: most of what was sent is on its disk by then.
    kept: Duration,
    /// Over its answer where it has others keep it too. It sends it to one after the other, and some may not answer.
    spread: Duration,
    /// What it writes, or sends on, at the slowest: the more there is, the later its answer may come.
    least_bytes_a_second: u64,
}

impl Patience {
    /// Within which time the answer comes after so many bytes.
    fn answer_within(&self, bytes: u64, replicate: bool) -> Duration {
        let at_once = if replicate { self.spread } else { self.kept };
        at_once.saturating_add(Duration::from_secs(bytes / self.least_bytes_a_second.max(1)))
    }
}

/// Ways to the servers.
pub(crate) struct Servers {
    dialler: Dialler,
    places: watch::Receiver<Vec<ServerPlace>>,
    connected: Mutex<Vec<(u64, NodePlaneClient<Channel>)>>,
}

/// The pieces that a server sends, as long as they come.
fn pieces(stream: Streaming<BlobPiece>) -> Content {
    let stream = futures_util::stream::unfold(stream, |mut stream| async move {
        let piece = match tokio::time::timeout(NEXT_PIECE, stream.message()).await {
            Ok(Ok(piece)) => piece.map(|piece| Ok(piece.data)),
            Ok(Err(status)) => Some(Err(io::Error::other(status.message().to_owned()))),
            Err(_) => Some(Err(io::Error::new(io::ErrorKind::TimedOut, "no more came for 30 s"))),
        };
        piece.map(|piece| (piece, stream))
    });
    stream.boxed()
}

/// Whether a status is about the connection: that it broke, which the transport says with a cause of its own or as unknown, or that whoever
/// showed a certificate on it is not taken, which another certificate may change. All else the server said over it, and will again.
fn is_of_the_connection(status: &tonic::Status) -> bool {
    let is_broken = core::error::Error::source(status).is_some();
    is_broken
        || matches!(
            status.code(),
            tonic::Code::Unknown | tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
        )
}

impl Servers {
    pub(crate) fn new(dialler: Dialler, places: watch::Receiver<Vec<ServerPlace>>) -> Servers {
        Servers { dialler, places, connected: Mutex::new(Vec::new()) }
    }

    /// Who they are, as far as is known here.
    pub(crate) fn places(&self) -> Vec<ServerPlace> {
        self.places.borrow().clone()
    }

    /// A way to one server: the connection that is there, or a new one.
    pub(crate) async fn to(&self, place: &ServerPlace) -> io::Result<NodePlaneClient<Channel>> {
        let found = self
            .locked()
            .iter()
            .find(|(number, _)| *number == place.number)
            .map(|(_, client)| client.clone());
        if let Some(client) = found {
            return Ok(client);
        }
        let client = self.dialler.dial(&place.address, Some(place.tls_key)).await?.client;
        let mut connected = self.locked();
        connected.retain(|(number, _)| *number != place.number);
        connected.push((place.number, client.clone()));
        Ok(client)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<(u64, NodePlaneClient<Channel>)>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a connection that failed.
    pub(super) fn failed(&self, number: u64) {
        self.locked().retain(|(other, _)| *other != number);
    }

    /// Lets go of a connection where what was said is about it, and not about the question.
    fn refused(&self, number: u64, status: &tonic::Status) {
        if is_of_the_connection(status) {
            self.failed(number);
        }
    }

    async fn answered<T>(
        &self,
        place: &ServerPlace,
        asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> io::Result<T> {
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                self.refused(place.number, &status);
                Err(io::Error::other(status.message().to_owned()))
            }
            Err(_) => {
                self.failed(place.number);
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 30 s"))
            }
        }
    }

    /// Whether the node with a key belongs to the cluster, as who leads has it.
    pub(super) async fn standing(&self, place: &ServerPlace, tls_key: &Digest) -> io::Result<Standing> {
        let mut client = self.to(place).await?;
        let asked = StandingRequest { tls_key: Bytes::copy_from_slice(&tls_key.0) };
        Ok(self.answered(place, client.standing(asked)).await?.standing())
    }

    /// What a server issues certificates with.
    pub(crate) async fn authority(&self, place: &ServerPlace) -> io::Result<Bytes> {
        let mut client = self.to(place).await?;
        Ok(self.answered(place, client.authority(AuthorityRequest {})).await?.authority)
    }

    /// Has a server keep what may issue certificates next.
    pub(crate) async fn keep_authority(&self, place: &ServerPlace, authority: Vec<u8>) -> io::Result<()> {
        let mut client = self.to(place).await?;
        let request = KeepAuthorityRequest { authority: authority.into() };
        self.answered(place, client.keep_authority(request)).await.map(drop)
    }

    /// Which issuing key is current as far as a server knows; none where its state names none.
    pub(crate) async fn issuer(&self, place: &ServerPlace) -> io::Result<Option<Digest>> {
        let mut client = self.to(place).await?;
        let answer = self.answered(place, client.servers(ServersRequest {})).await?;
        Ok(decode_digest(&answer.issuer).ok())
    }

    /// A server's signature of the log's root at a size.
    pub(crate) async fn cosign(
        &self,
        place: &ServerPlace,
        size: u64,
        root: Digest,
    ) -> io::Result<CosignReply> {
        let mut client = self.to(place).await?;
        let request = CosignRequest { size, root: Bytes::copy_from_slice(&root.0) };
        self.answered(place, client.cosign(request)).await
    }

    /// The content of a blob from one server.
    async fn fetch_from(&self, place: &ServerPlace, digest: &Digest, anywhere: bool) -> io::Result<Content> {
        let mut client = self.to(place).await?;
        let request = FetchBlobRequest { digest: Bytes::copy_from_slice(&digest.0), anywhere };
        let asked = tokio::time::timeout(ANSWER_WITHIN, client.fetch_blob(request)).await;
        let stream = match asked {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                self.refused(place.number, &status);
                return Err(io::Error::other(status.message().to_owned()));
            }
            Err(_) => {
                self.failed(place.number);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 30 s"));
            }
        };
        Ok(pieces(stream))
    }

    /// What a server has as of an entry.
    pub(crate) async fn snapshot(&self, place: &ServerPlace) -> io::Result<Content> {
        let mut client = self.to(place).await?;
        let asked = tokio::time::timeout(SNAPSHOT_WITHIN, client.snapshot(SnapshotRequest {})).await;
        match asked {
            Ok(Ok(answer)) => Ok(pieces(answer.into_inner())),
            Ok(Err(status)) => Err(io::Error::other(status.message().to_owned())),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 90 s")),
        }
    }

    /// The content of a blob, from whichever server has it: from each its own, or from any that asks the others.
    pub(crate) async fn fetch(&self, digest: &Digest, anywhere: bool) -> io::Result<Content> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no server is known");
        for place in self.places() {
            match self.fetch_from(&place, digest, anywhere).await {
                Ok(pieces) => return Ok(pieces),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Has one server keep a blob durably; returns how many servers have it.
    pub(crate) async fn store_at(
        &self,
        place: &ServerPlace,
        digest: Digest,
        content: Content,
        replicate: bool,
    ) -> io::Result<u32> {
        let client = self.to(place).await?;
        match stored(client, digest, content, replicate, PATIENCE).await {
            Ok(servers) => Ok(servers),
            Err(NotStored::Refused(status)) => {
                self.refused(place.number, &status);
                Err(io::Error::other(status.message().to_owned()))
            }
            Err(NotStored::Late(late)) => {
                self.failed(place.number);
                Err(io::Error::new(io::ErrorKind::TimedOut, late))
            }
            Err(NotStored::Unread(error)) => Err(error),
        }
    }

    /// Has some server see to it that a majority keeps a blob.
    pub(crate) async fn store(&self, digest: Digest, local: &BlobStore) -> io::Result<()> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no server is known");
        for place in self.places() {
            match self.store_at(&place, digest, content_of(local, &digest).await?, true).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The output files that a stage's tasks are given, found by a server.
    pub(crate) async fn gather(
        &self,
        stage: &Stage,
        index: u64,
        taken: &[String],
    ) -> Result<Vec<InputFile>, GatherError> {
        let mut last = "no server is known".to_owned();
        for place in self.places() {
            let mut client = match self.to(&place).await {
                Ok(client) => client,
                Err(error) => {
                    last = root_of(&error);
                    continue;
                }
            };
            let request = GatherRequest { stage: encode_stage(stage), index, taken: taken.to_vec() };
            let answer = match tokio::time::timeout(ANSWER_WITHIN, client.gather(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    self.refused(place.number, &status);
                    last = status.message().to_owned();
                    continue;
                }
                Err(_) => {
                    self.failed(place.number);
                    last = "no answer within 30 s".to_owned();
                    continue;
                }
            };
            if !answer.refused.is_empty() {
                return Err(GatherError::Refused(answer.refused));
            }
            let file = |file: grey_wire::GatheredFile| {
                let digest =
                    decode_digest(&file.digest).map_err(|error| GatherError::Failed(error.to_string()))?;
                let blob = BlobReference { digest, size_bytes: file.size_bytes };
                Ok(InputFile { path: file.path, blob, executable: file.executable })
            };
            return answer.files.into_iter().map(file).collect();
        }
        Err(GatherError::Failed(last))
    }
}

/// Why a server does not keep what it was sent.
#[derive(Debug)]
enum NotStored {
    /// It says why, or the connection broke.
    Refused(tonic::Status),
    /// It took too long.
    Late(&'static str),
    /// What was to be sent cannot be read.
    Unread(io::Error),
}

/// Sends a server content to keep, for as long as it takes it; returns how many servers have it.
async fn stored(
    mut client: NodePlaneClient<Channel>,
    digest: Digest,
    mut content: Content,
    replicate: bool,
    patience: Patience,
) -> Result<u32, NotStored> {
    let (sender, received) = channel(PIECES_WAITING);
    let sent = async move {
        let opening = BlobPiece { digest: Bytes::copy_from_slice(&digest.0), data: Bytes::new(), replicate };
        let (mut next, mut bytes) = (vec![opening], 0_u64);
        loop {
            for piece in next {
                bytes = bytes.saturating_add(piece.data.len() as u64);
                match tokio::time::timeout(patience.a_piece, sender.send(piece)).await {
                    Ok(Ok(())) => {}
                    // Nobody takes it any more: the answer is there, or about to be.
                    Ok(Err(_)) => return Ok(bytes),
                    Err(_) => return Err(NotStored::Late("it took no more of the content for 30 s")),
                }
            }
            // A piece as it is read from the disk is larger than a message ought to be.
            next = match content.next().await {
                Some(Ok(piece)) => pieces_of(piece),
                Some(Err(error)) => return Err(NotStored::Unread(error)),
                None => return Ok(bytes),
            };
        }
    };
    let answered = client.store_blob(ReceiverStream::new(received));
    tokio::pin!(sent, answered);
    let answer = tokio::select! {
        answer = &mut answered => answer,
        sent = &mut sent => {
            let within = patience.answer_within(sent?, replicate);
            let answer = tokio::time::timeout(within, answered).await;
            answer.map_err(|_| NotStored::Late("it did not say in time that it keeps the content"))?
        }
    };
    answer.map(|answer| answer.into_inner().servers).map_err(NotStored::Refused)
}

/// A blob that is here, as it is sent.
pub(crate) async fn content_of(local: &BlobStore, digest: &Digest) -> io::Result<Content> {
    let (_, pieces) = local.reader(digest, 0).await.map_err(io::Error::other)?;
    Ok(pieces.map(|piece| piece.map_err(io::Error::other)).boxed())
}

/// A piece as messages carry it.
pub(super) fn pieces_of(mut piece: Bytes) -> Vec<BlobPiece> {
    let mut pieces = Vec::with_capacity(piece.len().div_ceil(PIECE_BYTES));
    while !piece.is_empty() {
        let data = piece.split_to(piece.len().min(PIECE_BYTES));
        pieces.push(BlobPiece { digest: Bytes::new(), data, replicate: false });
    }
    pieces
}

#[cfg(test)]
impl Servers {
    /// The way to one server, over a connection that is there.
    pub(crate) fn by(client: NodePlaneClient<Channel>) -> Servers {
        use tokio_rustls::rustls::{ClientConfig, RootCertStore};
        let nobody = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
        let dialler = Dialler::new(std::sync::Arc::new(nobody.with_no_client_auth()));
        let place = ServerPlace { number: 1, address: "127.0.0.1:1".to_owned(), tls_key: Digest::of(b"key") };
        let servers = Servers::new(dialler, watch::channel(vec![place]).1);
        servers.locked().push((1, client));
        servers
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::{answering, said};
    use super::*;
    use http_body_util::BodyExt;
    use tonic::Status;

    #[test]
    fn a_connection_is_let_go_of_when_it_broke_or_its_certificate_is_not_taken_and_not_for_a_refusal() {
        let reset = || Box::new(io::Error::from(io::ErrorKind::ConnectionReset));
        for (status, ends) in [
            (Status::from_error(reset()), true),
            (Status::unknown("Service was not ready: broken pipe"), true),
            (Status::unauthenticated("the node does not belong to this cluster (any more)"), true),
            (Status::permission_denied("the node is blocked"), true),
            (Status::unavailable("not that much of the log yet"), false),
            (Status::failed_precondition("server 2 leads, as far as this one knows"), false),
            (Status::unimplemented(""), false),
            (Status::not_found("blob"), false),
            (Status::invalid_argument("a digest"), false),
        ] {
            assert_eq!(is_of_the_connection(&status), ends, "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_call_on_a_connection_that_broke_is_told_from_a_refusal() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // It takes the connection, and closes it once something was asked.
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1];
            drop(tokio::io::AsyncReadExt::read(&mut stream, &mut asked).await);
        });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let status = NodePlaneClient::new(channel).servers(ServersRequest {}).await.unwrap_err();
        assert!(is_of_the_connection(&status), "{status:?}");
    }

    const TIGHT: Patience = Patience {
        a_piece: Duration::from_millis(200),
        kept: Duration::from_millis(200),
        spread: Duration::from_millis(200),
        least_bytes_a_second: u64::MAX,
    };

    /// More than waits on the way to a server that takes nothing.
    fn content(pieces: usize) -> Content {
        let piece = |_| Ok(Bytes::from(vec![7; PIECE_BYTES]));
        futures_util::stream::iter((0..pieces).map(piece)).boxed()
    }

    #[tokio::test]
    async fn a_server_that_takes_content_and_then_nothing_does_not_hold_up_who_sends_it() {
        // One that takes no content, and one that takes all of it and does not answer.
        for (takes, said) in [(false, "no more of the content"), (true, "in time")] {
            let client = answering(move |request| async move {
                let mut body = request.into_body();
                while takes && body.frame().await.is_some() {}
                // What was not taken stays on its way.
                let _body = body;
                core::future::pending().await
            });
            for replicate in [false, true] {
                let storing = stored(client.clone(), Digest::of(b"x"), content(32), replicate, TIGHT);
                let stored = tokio::time::timeout(Duration::from_secs(30), storing).await.unwrap();
                assert!(matches!(&stored, Err(NotStored::Late(late)) if late.contains(said)), "{stored:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_is_slow_is_waited_for_while_it_takes_content() {
        let client = answering(|request| async move {
            let mut body = request.into_body();
            while body.frame().await.is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // It keeps the content, and says so of two servers.
            said(&[&[0x08, 2]])
        });
        let patient = Patience { a_piece: Duration::from_secs(20), kept: Duration::from_secs(20), ..TIGHT };
        let stored = stored(client, Digest::of(b"x"), content(32), false, patient).await;
        assert_eq!(stored.unwrap(), 2);
    }

    #[tokio::test]
    async fn content_that_cannot_be_read_here_says_so_and_is_not_the_server_s_fault() {
        let client = answering(|request| async move {
            let mut body = request.into_body();
            while body.frame().await.is_some() {}
            core::future::pending().await
        });
        let broken = content(1).chain(futures_util::stream::iter([Err(io::Error::other("a bad sector"))]));
        let stored = stored(client, Digest::of(b"x"), broken.boxed(), false, PATIENCE).await;
        assert!(matches!(&stored, Err(NotStored::Unread(error)) if error.to_string() == "a bad sector"));
    }

    #[test]
    fn the_answer_may_come_the_later_the_more_was_sent() {
        assert_eq!(PATIENCE.answer_within(0, false), Duration::from_secs(30));
        assert_eq!(PATIENCE.answer_within(1 << 30, false), Duration::from_secs(30 + 1_024));
        assert_eq!(PATIENCE.answer_within(1 << 30, true), Duration::from_secs(120 + 1_024));
    }
}
