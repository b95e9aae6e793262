//! `GET /v1/cluster/snapshot`: everything that a server has, as one stream.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use grey_api::{ErrorCode, Problem};
use grey_proof::Digest;
use grey_store::{Frozen, RecordKey, SnapshotWriter, StoreError};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::reply::{Refusal, typed};
use crate::cluster::Header;
use crate::control::Message;
use crate::handle::Node;
use crate::items;
use crate::prover::issuers;
use crate::retention::{Asker, Gathered, Stop};
use crate::threads::SideRequest;

/// Within which time a checkpoint has everything that was acknowledged before.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much is sent at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for a slow reader.
const PIECES_WAITING: usize = 4;

/// What snapshots are taken from.
pub(crate) struct SnapshotSource {
    side: SyncSender<SideRequest>,
    /// One is taken at a time.
    gate: Arc<Semaphore>,
}

impl SnapshotSource {
    pub(crate) fn new(side: SyncSender<SideRequest>) -> SnapshotSource {
        SnapshotSource { side, gate: Arc::new(Semaphore::new(1)) }
    }

    /// What is here as of the last checkpoint.
    async fn frozen(&self) -> Result<Frozen, Problem> {
        let (reply, answer) = oneshot::channel();
        let side = self.side.clone();
        let gone = || Problem::new(ErrorCode::Unavailable, "the node is ending");
        // It may have to wait until the thread that writes has room.
        let sent = tokio::task::spawn_blocking(move || side.send(SideRequest::Freeze(reply))).await;
        sent.map_err(|_| gone())?.map_err(|_| gone())?;
        let frozen = answer.await.map_err(|_| gone())?;
        frozen.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))
    }
}

/// `GET /v1/cluster/snapshot`.
pub(crate) async fn take(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    if node.forwarder.is_none() {
        let problem = Problem::new(ErrorCode::InvalidRequest, "a local cluster has no snapshots");
        return Err(Refusal(problem.hint("end it with `grey down` and copy its data directory")));
    }
    let permit = node.snapshots.gate.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Refusal(Problem::new(ErrorCode::Unavailable, "another snapshot is being taken").retry_after_ms(5_000))
    })?;
    let index = node.ask(|replica| replica.state().applied_index()).await?;
    let frozen = frozen(&node, index).await?;
    let (sender, pieces) = tokio::sync::mpsc::channel(PIECES_WAITING);
    let writer = Pieces { sender, buffer: Vec::with_capacity(PIECE_BYTES) };
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || write(&node, &frozen, writer, &runtime, permit));
    Ok(typed("application/octet-stream", Body::from_stream(ReceiverStream::new(pieces))))
}

/// What is here as of a checkpoint that has everything up to an entry.
async fn frozen(node: &Node, index: u64) -> Result<Frozen, Refusal> {
    let begun = Instant::now();
    loop {
        let frozen = node.snapshots.frozen().await;
        match frozen {
            Ok(frozen) if frozen.facts().index >= index => return Ok(frozen),
            // Before the first one there is none.
            Ok(_) | Err(Problem { code: ErrorCode::Internal, .. }) if begun.elapsed() < CHECKPOINT_WITHIN => {
            }
            Ok(_) => {
                let detail = format!("no checkpoint was written within {CHECKPOINT_WITHIN:?}");
                return Err(Refusal(Problem::new(ErrorCode::Unavailable, detail).retry_after_ms(5_000)));
            }
            Err(problem) => return Err(Refusal(problem)),
        }
        if node.control.send(Message::Checkpoint).is_err() {
            return Err(Refusal(Problem::new(ErrorCode::Unavailable, "the node is ending")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Pieces of a body, for whoever writes them on a thread of its own.
struct Pieces {
    sender: Sender<std::io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let piece = core::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes it all. What fails breaks the connection off, and without its end a snapshot is none.
fn write(node: &Node, frozen: &Frozen, pieces: Pieces, runtime: &Handle, _permit: OwnedSemaphorePermit) {
    let sender = pieces.sender.clone();
    match content(node, frozen, pieces, runtime) {
        Ok(missing) => tracing::info!(index = frozen.facts().index, missing, "a snapshot was taken"),
        Err(reason) => {
            tracing::warn!(reason, "a snapshot was broken off");
            drop(sender.blocking_send(Err(std::io::Error::other(reason))));
        }
    }
}

/// How much content that is named was on no server.
fn content(node: &Node, frozen: &Frozen, pieces: Pieces, runtime: &Handle) -> Result<u64, String> {
    let text = |error: StoreError| error.to_string();
    let header = Header::new(node.signing.cluster, node.server, issuers(node));
    let mut writer = SnapshotWriter::begin(pieces, &header.encode()).map_err(text)?;
    let mut gathered = Gathered::default();
    writer.frozen(frozen, |key: RecordKey, bytes: &[u8]| gathered.add(key, bytes)).map_err(text)?;
    let mut missing = 0;
    for digest in named(node, &gathered, runtime)? {
        if runtime.block_on(node.depot.ensure(&digest)).is_err() {
            // It was kept for a time that is over, or is on servers that are away.
            missing += 1;
            continue;
        }
        let read = runtime.block_on(node.blobs.reader(&digest, 0));
        let (_, mut pieces) = read.map_err(|error| error.to_string())?;
        writer.content(&digest).map_err(text)?;
        while let Some(piece) = runtime.block_on(pieces.next()) {
            writer.piece(&piece.map_err(|error| error.to_string())?).map_err(text)?;
        }
    }
    writer.end().map_err(text)?;
    Ok(missing)
}

/// All content that records and live jobs name.
fn named(node: &Node, gathered: &Gathered, runtime: &Handle) -> Result<BTreeSet<Digest>, String> {
    let text = |stop| match stop {
        Stop::Ended => "the node is ending".to_owned(),
        Stop::Failed(reason) => reason,
    };
    let (mut named, mut lists) = (BTreeSet::new(), BTreeSet::new());
    let mut take = |digest: Digest, is_list: bool| {
        named.insert(digest);
        if is_list {
            lists.insert(digest);
        }
    };
    gathered.blobs().for_each(|(digest, is_list)| take(digest, is_list));
    let asker = Asker {
        control: node.control.clone(),
        kept: node.kept.clone(),
        runtime: runtime.clone(),
        is_among_others: true,
    };
    let live = asker.needed(
        |blob, is_list| {
            take(blob.digest, is_list);
            Ok(())
        },
        || Ok(()),
    );
    live.map_err(text)?;
    for list in lists {
        if runtime.block_on(node.depot.ensure(&list)).is_ok() {
            let walked = items::files(&node.blobs.path_of(&list), |digest| {
                named.insert(digest);
            });
            walked.map_err(|error| error.to_string())?;
        }
    }
    Ok(named)
}
