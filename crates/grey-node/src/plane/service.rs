//! What a server does for other nodes. Who may ask for what is settled here, by the key of the connection, on every call.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use grey_core::{NodeRole, NodeRow, NodeStanding, State, limits};
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{Parcel, Peer, PeerMessage};
use grey_wire::{
    AuthorityReply, AuthorityRequest, BlobPiece, CosignReply, CosignRequest, FetchBlobRequest, GatherReply,
    GatherRequest, GatheredFile, Hello, JoinMessage, KeepAuthorityReply, KeepAuthorityRequest, NodePlane,
    ReplicateReply, ReplicateRequest, STREAMS_VERSION, ServerAddress, ServersReply, ServersRequest,
    SnapshotRequest, Standing, StandingReply, StandingRequest, StoreBlobReply, WorkReply, WorkRequest,
    check_hello, decode_digest, decode_from_worker, decode_stage, decode_version, encode_to_worker,
    replicate_request, work_request,
};
use tokio::sync::mpsc::{Sender as Channel, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::join::Admission;
use super::listen::Connection;
use super::replicate::next_connection;
use super::say::{NotTaken, say};
use super::servers::pieces_of;
use super::streams::{Connected, Question, Streams, Unanswered};
use crate::blobs::Blobs;
use crate::control::{Message, Role};
use crate::cosign::Cosigner;
use crate::directory::Directory;
use crate::directory::ServerPlace;
use crate::gather::{GatherError, Gatherer};
use crate::issuing::Issuing;
use crate::peers::PeerEvent;
use crate::snapshot::{SnapshotSource, stream};

/// How long a node may take to say the first thing on a stream.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// Messages to a worker that wait to be written.
const WAITING: usize = 64;
/// How soon it is looked whether there is room for questions to a worker that has left too many unanswered.
const ROOM_AGAIN: Duration = Duration::from_secs(1);
/// How many questions for the standing of a node may be under way; a node asks every few seconds while it has reason to.
pub(crate) const STANDINGS: usize = 4;
/// How long what a node sends of a blob may pause.
const NEXT_PIECE: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The node plane of a server.
pub(crate) struct Plane {
    pub(crate) cluster: Digest,
    pub(crate) control: Sender<Message>,
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) snapshots: SnapshotSource,
    pub(crate) streams: Arc<Streams>,
    pub(crate) gatherer: Gatherer,
    pub(crate) admission: Arc<Admission>,
    pub(crate) issuing: Arc<Issuing>,
    pub(crate) cosigner: Cosigner,
    /// Questions for a node's standing that may be under way.
    pub(crate) standings: Semaphore,
    /// Servers of which this one was told when it entered: until its own state says more, these may speak.
    pub(crate) known: Vec<ServerPlace>,
}

/// Who is at the other end.
#[derive(Debug, Clone)]
enum Caller {
    Server(u64),
    Worker(Box<NodeRow>),
}

fn connection<T>(request: &Request<T>) -> Result<Connection, Status> {
    request
        .extensions()
        .get::<Connection>()
        .cloned()
        .ok_or_else(|| Status::internal("the connection is not known"))
}

impl Plane {
    fn caller_of(&self, key: Option<Digest>) -> Result<Caller, Status> {
        let key = key.ok_or_else(|| Status::unauthenticated("this needs the certificate of a node"))?;
        let directory = self.directory.borrow().clone();
        let Some(row) = directory.node_of_key(&key) else {
            let known = self.known.iter().find(|place| place.tls_key == key);
            return match known.filter(|_| directory.nodes().next().is_none()) {
                Some(place) => Ok(Caller::Server(place.number)),
                None => Err(Status::unauthenticated("the node does not belong to this cluster (any more)")),
            };
        };
        match (row.standing, row.role, row.server) {
            (NodeStanding::Blocked, ..) => Err(Status::permission_denied("the node is blocked")),
            (_, NodeRole::Server, Some(number)) => Ok(Caller::Server(number)),
            (_, NodeRole::Worker, _) => Ok(Caller::Worker(Box::new(row.clone()))),
            (_, NodeRole::Server, None) => Err(Status::permission_denied("the server has no number")),
        }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.caller_of(connection(request)?.tls_key)
    }

    fn server<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        match self.caller(request)? {
            Caller::Server(number) => Ok(number),
            Caller::Worker(_) => Err(Status::permission_denied("this is for servers")),
        }
    }

    /// A server that may know what issues certificates. Of one that is on its way out the row says so; who has none has just entered, or this
    /// server has.
    fn keeper<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let number = self.server(request)?;
        let directory = self.directory.borrow().clone();
        if directory.nodes().next().is_some() && !directory.may_have_authority(number) {
            return Err(Status::permission_denied("the server is on its way out of the cluster"));
        }
        Ok(number)
    }

    fn worker<T>(&self, request: &Request<T>) -> Result<NodeRow, Status> {
        match self.caller(request)? {
            Caller::Worker(row) => Ok(*row),
            Caller::Server(_) => Err(Status::permission_denied("this is for workers")),
        }
    }

    /// The version that both sides understand.
    fn greeted(&self, hello: &Hello) -> Result<u32, Status> {
        check_hello(hello, &self.cluster).map_err(|error| Status::failed_precondition(error.to_string()))
    }

    /// Carries messages both ways until somebody ends it; returns why.
    async fn converse(
        self: &Arc<Self>,
        mut stream: Streaming<WorkRequest>,
        mut written: UnboundedReceiver<Parcel>,
        out: &Channel<Result<WorkReply, Status>>,
        talk: Talk,
    ) -> Status {
        let Talk { peer, connection, key, tls_key, version } = talk;
        // One that speaks an earlier version is asked for nothing.
        let mut asked = (version >= STREAMS_VERSION).then(|| self.streams.connected(key.id(), connection));
        let mut unanswered = Unanswered::default();
        let refused = Plane::until_refused(self.directory.clone(), self.clone(), tls_key);
        let mut refused = core::pin::pin!(refused);
        loop {
            let has_room = unanswered.has_room();
            tokio::select! {
                status = refused.as_mut() => return status,
                () = tokio::time::sleep(ROOM_AGAIN), if !has_room => {}
                parcel = written.recv() => {
                    let Some(Parcel { number, message, .. }) = parcel else {
                        return Status::aborted("the server let go of the connection");
                    };
                    if let PeerMessage::Worker(message) = message {
                        let reply = WorkReply { to_worker: encode_to_worker(&message), ..WorkReply::default() };
                        if let Err(reason) = say(out, Ok(reply)).await {
                            return not_taken(reason);
                        }
                    }
                    drop(self.control.send(Message::Peer(PeerEvent::Written { peer, connection, number })));
                }
                question = next(&mut asked), if has_room => {
                    let stream_request = Some(unanswered.ask(question));
                    let reply = WorkReply { stream_request, ..WorkReply::default() };
                    if let Err(reason) = say(out, Ok(reply)).await {
                        return not_taken(reason);
                    }
                }
                message = stream.message() => {
                    let said = match message {
                        Ok(Some(WorkRequest { message: Some(work_request::Message::FromWorker(bytes)) })) => bytes,
                        Ok(Some(WorkRequest { message: Some(work_request::Message::StreamPiece(piece)) })) => {
                            unanswered.answer(piece);
                            continue;
                        }
                        Ok(Some(_)) => return Status::invalid_argument("a message of a worker is expected"),
                        Ok(None) => return Status::cancelled("the worker is gone"),
                        Err(status) => return status,
                    };
                    match decode_from_worker(&said) {
                        Ok(message) => drop(self.control.send(Message::FromNode(key, connection, message))),
                        Err(error) => return Status::invalid_argument(error.to_string()),
                    }
                }
            }
        }
    }

    /// Resolves when the node at the other end may not speak any more.
    async fn until_refused(
        directory: watch::Receiver<Arc<Directory>>,
        plane: Arc<Plane>,
        key: Option<Digest>,
    ) -> Status {
        let mut directory = directory;
        loop {
            if directory.changed().await.is_err() {
                return Status::unavailable("the server is stopping");
            }
            if let Err(status) = plane.caller_of(key) {
                return status;
            }
        }
    }
}

/// What the state says of the node with a key. A row is there before its node has a certificate, and when it is gone it is for good.
fn standing_of(state: &State, tls_key: &Digest) -> Standing {
    match state.node_of_key(tls_key).map(|row| row.standing) {
        None => Standing::Removed,
        Some(NodeStanding::Blocked) => Standing::Blocked,
        Some(NodeStanding::Admitted | NodeStanding::Leaving) => Standing::Belongs,
    }
}

/// The next question to a worker; none for ever where it is not asked.
async fn next(asked: &mut Option<Connected>) -> Question {
    if let Some(asked) = asked
        && let Some(question) = asked.questions.recv().await
    {
        return question;
    }
    core::future::pending().await
}

/// A worker's conversation.
struct Talk {
    version: u32,
    peer: Peer,
    connection: u64,
    key: VerifyingKey,
    tls_key: Option<Digest>,
}

async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_MESSAGE, stream.message()).await {
        Ok(message) => message?.ok_or_else(|| Status::invalid_argument("nothing was said")),
        Err(_) => Err(Status::deadline_exceeded("nothing was said for 5 s")),
    }
}

/// Why a conversation ends in which something was not taken.
fn not_taken(reason: NotTaken) -> Status {
    match reason {
        NotTaken::Gone => Status::cancelled("the worker is gone"),
        NotTaken::Late => Status::deadline_exceeded("the worker took nothing for 5 s"),
    }
}

fn stopping<E>(_: E) -> Status {
    Status::unavailable("the server is stopping")
}

/// The node plane as it is served: a handle, so that streams outlive the call that began them.
pub(crate) struct Served(pub(crate) Arc<Plane>);

#[tonic::async_trait]
impl NodePlane for Served {
    async fn replicate(&self, request: Request<Streaming<ReplicateRequest>>) -> Answer<ReplicateReply> {
        let plane = self.0.clone();
        let from = plane.server(&request)?;
        let key = connection(&request)?.tls_key;
        let mut stream = request.into_inner();
        match first(&mut stream).await?.message {
            Some(replicate_request::Message::Hello(hello)) => {
                plane.greeted(&hello)?;
                let version =
                    decode_version(&hello).map_err(|error| Status::invalid_argument(error.to_string()))?;
                if let Some(version) = version {
                    let event = PeerEvent::Version { server: from, version };
                    plane.control.send(Message::Peer(event)).map_err(stopping)?;
                }
            }
            _ => return Err(Status::invalid_argument("the first message must be a hello")),
        }
        let refused = Plane::until_refused(plane.directory.clone(), plane.clone(), key);
        let mut refused = core::pin::pin!(refused);
        loop {
            let message = tokio::select! {
                message = stream.message() => message?,
                status = refused.as_mut() => return Err(status),
            };
            match message.map(|message| message.message) {
                None => return Ok(Response::new(ReplicateReply {})),
                Some(Some(replicate_request::Message::Engine(bytes))) => {
                    plane.control.send(Message::FromServer(from, bytes)).map_err(stopping)?;
                }
                Some(_) => return Err(Status::invalid_argument("a message of the engine is expected")),
            }
        }
    }

    type WorkStream = Outgoing<WorkReply>;

    async fn work(&self, request: Request<Streaming<WorkRequest>>) -> Answer<Self::WorkStream> {
        let plane = self.0.clone();
        let row = plane.worker(&request)?;
        let tls_key = connection(&request)?.tls_key;
        let key = VerifyingKey::from_bytes(&row.public_key)
            .map_err(|error| Status::internal(format!("the node's key: {error}")))?;
        let mut stream = request.into_inner();
        let version = match first(&mut stream).await?.message {
            Some(work_request::Message::Hello(hello)) => plane.greeted(&hello)?,
            _ => return Err(Status::invalid_argument("the first message must be a hello")),
        };
        let (peer, connection) = (Peer::Worker(row.node), next_connection());
        let (parcels, written) = unbounded_channel();
        plane
            .control
            .send(Message::Peer(PeerEvent::Connected { peer, connection, parcels }))
            .map_err(stopping)?;
        let (out, outgoing) = channel(WAITING);
        tokio::spawn(async move {
            let status =
                plane.converse(stream, written, &out, Talk { version, peer, connection, key, tls_key }).await;
            drop(plane.control.send(Message::Peer(PeerEvent::Disconnected { peer, connection })));
            // Who listened may be gone, or take nothing.
            let _ = say(&out, Err(status)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    type JoinStream = Outgoing<JoinMessage>;

    async fn join(&self, request: Request<Streaming<JoinMessage>>) -> Answer<Self::JoinStream> {
        let connection = connection(&request)?;
        let stream = request.into_inner();
        Ok(Response::new(Box::pin(self.0.admission.clone().join(connection, stream))))
    }

    type RenewStream = Outgoing<JoinMessage>;

    async fn renew(&self, request: Request<Streaming<JoinMessage>>) -> Answer<Self::RenewStream> {
        let connection = connection(&request)?;
        self.0.caller(&request)?;
        let stream = request.into_inner();
        Ok(Response::new(Box::pin(self.0.admission.clone().renew(connection, stream))))
    }

    async fn servers(&self, request: Request<ServersRequest>) -> Answer<ServersReply> {
        self.0.caller(&request)?;
        let directory = self.0.directory.borrow().clone();
        let servers = directory.servers().map(|place| ServerAddress {
            number: place.number,
            address: place.address,
            tls_key: Bytes::copy_from_slice(&place.tls_key.0),
        });
        let leader = self.0.role.borrow().leader;
        let issuer = directory.issuer().map(|issuer| Bytes::copy_from_slice(&issuer.0)).unwrap_or_default();
        Ok(Response::new(ServersReply { servers: servers.collect(), leader, issuer }))
    }

    async fn authority(&self, request: Request<AuthorityRequest>) -> Answer<AuthorityReply> {
        self.0.keeper(&request)?;
        match self.0.issuing.encoded() {
            Some(authority) => Ok(Response::new(AuthorityReply { authority: authority.into() })),
            None => Err(Status::unavailable("this server does not have the current one")),
        }
    }

    async fn keep_authority(&self, request: Request<KeepAuthorityRequest>) -> Answer<KeepAuthorityReply> {
        let from = self.0.keeper(&request)?;
        // What a leader of before gives late must not take the place of what the present one gave.
        let leader = self.0.role.borrow().leader;
        if leader != from {
            let known = format!("server {leader} leads, as far as this one knows");
            return Err(Status::failed_precondition(known));
        }
        let issuing = self.0.issuing.clone();
        let kept = tokio::task::spawn_blocking(move || issuing.keep(&request.into_inner().authority)).await;
        match kept {
            Ok(Ok(())) => Ok(Response::new(KeepAuthorityReply {})),
            Ok(Err(error)) => Err(Status::invalid_argument(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn standing(&self, request: Request<StandingRequest>) -> Answer<StandingReply> {
        let key = decode_digest(&request.get_ref().tls_key)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !self.0.role.borrow().leads {
            return Err(Status::failed_precondition("this server does not lead"));
        }
        // Everybody may ask, and must not keep others from reading.
        let turn = self.0.standings.try_acquire();
        let _turn = turn.map_err(|_| Status::resource_exhausted("others are asking for the same"))?;
        let (reply, answer) = tokio::sync::oneshot::channel();
        let question =
            Box::new(move |replica: Result<&grey_replica::Replica, grey_replica::ReplicaError>| {
                let standing = replica.map(|replica| standing_of(replica.state(), &key));
                // Who asked and went away needs no answer.
                let _ = reply.send(standing.map_err(|error| error.to_string()));
            });
        let ending = || Status::unavailable("the node is ending");
        self.0.control.send(Message::Ask(question)).map_err(|_| ending())?;
        let standing = answer.await.map_err(|_| ending())?.map_err(Status::failed_precondition)?;
        Ok(Response::new(StandingReply { standing: standing.into() }))
    }

    async fn cosign(&self, request: Request<CosignRequest>) -> Answer<CosignReply> {
        self.0.server(&request)?;
        self.0.cosigner.cosign(request.get_ref()).await.map(Response::new)
    }

    type SnapshotStream = Outgoing<BlobPiece>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        self.0.server(&request)?;
        let unavailable = |detail: String| Status::unavailable(detail);
        let (reply, answer) = tokio::sync::oneshot::channel();
        let question = Box::new(move |replica: &grey_replica::Replica| {
            // Who asked and went away needs no answer.
            let _ = reply.send(replica.state().applied_index());
        });
        let ending = || unavailable("the node is ending".to_owned());
        self.0.control.send(Message::Look(question)).map_err(|_| ending())?;
        let index = answer.await.map_err(|_| ending())?;
        let taken = self.0.snapshots.take(index).await.map_err(|problem| unavailable(problem.detail))?;
        let pieces = stream(taken, Vec::new(), |frozen, mut writer| {
            let written = writer.frozen(frozen, |_, _| Ok(())).and_then(|()| writer.end());
            written.map(drop).map_err(|error| error.to_string())
        });
        let pieces = ReceiverStream::new(pieces).map(|piece| match piece {
            Ok(data) => Ok(BlobPiece { data, ..BlobPiece::default() }),
            Err(error) => Err(Status::data_loss(error.to_string())),
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    type FetchBlobStream = Outgoing<BlobPiece>;

    async fn fetch_blob(&self, request: Request<FetchBlobRequest>) -> Answer<Self::FetchBlobStream> {
        self.0.caller(&request)?;
        let FetchBlobRequest { digest, anywhere } = request.into_inner();
        let digest = decode_digest(&digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if anywhere {
            let found = self.0.blobs.ensure(&digest).await;
            found.map_err(|error| Status::not_found(error.to_string()))?;
        }
        let read = self.0.blobs.local.reader(&digest, 0).await;
        let (_, pieces) = read.map_err(|error| Status::not_found(error.to_string()))?;
        let pieces = pieces.flat_map(|piece| {
            let pieces = match piece {
                Ok(piece) => pieces_of(piece).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(Status::data_loss(error.to_string()))],
            };
            futures_util::stream::iter(pieces)
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn store_blob(&self, request: Request<Streaming<BlobPiece>>) -> Answer<StoreBlobReply> {
        self.0.caller(&request)?;
        let mut stream = request.into_inner();
        let opening = first(&mut stream).await?;
        let digest =
            decode_digest(&opening.digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, received) = tokio::sync::mpsc::channel(4);
        let pieces = tokio::spawn(async move {
            let mut next = Some(opening.data);
            while let Some(data) = next {
                if sender.send(Ok::<Bytes, Status>(data)).await.is_err() {
                    return;
                }
                next = match tokio::time::timeout(NEXT_PIECE, stream.message()).await {
                    Ok(Ok(piece)) => piece.map(|piece| piece.data),
                    Ok(Err(status)) => return drop(sender.send(Err(status)).await),
                    Err(_) => {
                        let late = Status::deadline_exceeded("the next piece of a blob took more than 30 s");
                        return drop(sender.send(Err(late)).await);
                    }
                };
            }
        });
        let kept = self.0.blobs.keep(digest, ReceiverStream::new(received), limits::OUTPUT_LIMIT_BYTES).await;
        pieces.abort();
        kept.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let servers = if opening.replicate {
            self.0.blobs.spread(&digest).await.map_err(|error| Status::unavailable(error.to_string()))?
        } else {
            1
        };
        Ok(Response::new(StoreBlobReply { servers }))
    }

    async fn gather(&self, request: Request<GatherRequest>) -> Answer<GatherReply> {
        self.0.worker(&request)?;
        let GatherRequest { stage, index, taken } = request.into_inner();
        let stage = decode_stage(&stage).map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.0.gatherer.gather(&Arc::new(stage), index, taken.into_iter().collect()).await {
            Ok(files) => {
                let files = files.into_iter().map(|file| GatheredFile {
                    path: file.path,
                    digest: Bytes::copy_from_slice(&file.blob.digest.0),
                    size_bytes: file.blob.size_bytes,
                    executable: file.executable,
                });
                Ok(Response::new(GatherReply { files: files.collect(), refused: String::new() }))
            }
            Err(GatherError::Refused(refused)) => {
                Ok(Response::new(GatherReply { files: Vec::new(), refused }))
            }
            Err(GatherError::Failed(reason)) => Err(Status::unavailable(reason)),
        }
    }
}
