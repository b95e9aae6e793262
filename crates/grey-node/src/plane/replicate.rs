//! One server's messages to the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use grey_core::NodeVersion;
use grey_proof::Digest;
use grey_replica::{Parcel, Peer, PeerMessage};
use grey_wire::{ReplicateRequest, hello, replicate_request};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::dial::Dialler;
use super::standing::Doubt;
use crate::control::Message;
use crate::directory::ServerPlace;
use crate::peers::PeerEvent;

/// Connections are told apart by numbers, of either kind.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// A number that no other connection of this process has.
pub(super) fn next_connection() -> u64 {
    NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed)
}

/// What this server says first to another one.
#[derive(Debug, Clone)]
pub(crate) struct OwnHello {
    /// The cluster.
    pub(crate) cluster: Digest,
    /// What it runs.
    pub(crate) version: NodeVersion,
}

/// Dials whom the control thread asks for, and sends what it has for them, until it ends.
pub(crate) async fn dial_servers(
    dialler: Dialler,
    own: OwnHello,
    mut asked: UnboundedReceiver<ServerPlace>,
    control: Sender<Message>,
    doubt: Doubt,
) {
    while let Some(place) = asked.recv().await {
        let (dialler, own, control, doubt) = (dialler.clone(), own.clone(), control.clone(), doubt.clone());
        tokio::spawn(async move {
            if let Err(reason) = send_to(&dialler, &own, &place, &control, &doubt).await {
                // It may be that nobody takes it any more.
                doubt.raise();
                tracing::debug!(server = place.number, address = place.address, reason, "no connection");
                // The control thread is gone only when the node ends.
                drop(control.send(Message::Peer(PeerEvent::Unreachable(place.number))));
            }
        });
    }
}

/// The messages of a connection, as they are taken to be written.
fn messages(
    own: &OwnHello,
    parcels: UnboundedReceiver<Parcel>,
    peer: Peer,
    connection: u64,
    control: Sender<Message>,
) -> impl Stream<Item = ReplicateRequest> + Send + use<> {
    let first = ReplicateRequest {
        message: Some(replicate_request::Message::Hello(hello(&own.cluster, Some(&own.version)))),
    };
    let rest = UnboundedReceiverStream::new(parcels).filter_map(move |parcel| {
        let number = parcel.number;
        drop(control.send(Message::Peer(PeerEvent::Written { peer, connection, number })));
        match parcel.message {
            PeerMessage::Server(bytes) => {
                Some(ReplicateRequest { message: Some(replicate_request::Message::Engine(bytes.into())) })
            }
            PeerMessage::Worker(_) => None,
        }
    });
    tokio_stream::once(first).chain(rest)
}

/// Returns when the connection ended that was made, or why none was made.
async fn send_to(
    dialler: &Dialler,
    own: &OwnHello,
    place: &ServerPlace,
    control: &Sender<Message>,
    doubt: &Doubt,
) -> Result<(), String> {
    let dialled = dialler.dial(&place.address, Some(place.tls_key)).await;
    let mut client = dialled.map_err(|error| error.to_string())?.client;
    let (peer, connection) = (Peer::Server(place.number), next_connection());
    let (parcels, written) = unbounded_channel();
    let messages = messages(own, written, peer, connection, control.clone());
    drop(control.send(Message::Peer(PeerEvent::Connected { peer, connection, parcels })));
    if let Err(status) = client.replicate(messages).await {
        let reason = status.message();
        tracing::debug!(server = place.number, reason, code = ?status.code(), "a connection to a server ended");
        if matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unauthenticated) {
            doubt.raise();
            tracing::warn!(server = place.number, reason, "another server does not take this one's messages");
            // Its answer will be the same for a while.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    drop(control.send(Message::Peer(PeerEvent::Disconnected { peer, connection })));
    Ok(())
}
