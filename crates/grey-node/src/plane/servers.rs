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

/// Content on its way, piece by piece.
pub(crate) type Content = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

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

    /// Whether this node belongs to the cluster, as who leads has it.
    pub(super) async fn standing(&self, place: &ServerPlace) -> io::Result<Standing> {
        let mut client = self.to(place).await?;
        Ok(self.answered(place, client.standing(StandingRequest {})).await?.standing())
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
        let mut client = self.to(place).await?;
        let named = Bytes::copy_from_slice(&digest.0);
        let first = BlobPiece { digest: named, data: Bytes::new(), replicate };
        let (sender, received) = channel(PIECES_WAITING);
        tokio::spawn(async move {
            let (mut content, mut next) = (content, vec![first]);
            loop {
                for piece in next {
                    if sender.send(piece).await.is_err() {
                        return;
                    }
                }
                // A piece as it is read from the disk is larger than a message ought to be. Content that cannot be read ends the
                // stream early, and what came is then not of its digest.
                next = match content.next().await {
                    Some(Ok(piece)) => pieces_of(piece),
                    Some(Err(_)) | None => return,
                };
            }
        });
        let stream = ReceiverStream::new(received);
        match client.store_blob(stream).await {
            Ok(answer) => Ok(answer.into_inner().servers),
            Err(status) => {
                self.refused(place.number, &status);
                Err(io::Error::other(status.message().to_owned()))
            }
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
mod tests {
    use super::*;
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
}
