//! What snapshots are taken from, and the pieces in which one travels.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grey_api::{ErrorCode, Problem};
use grey_store::{Frozen, SnapshotWriter};
use tokio::sync::mpsc::{Receiver, Sender as Channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::control::Message;
use crate::threads::SideRequest;

/// Within which time a checkpoint has everything that was acknowledged before.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much is sent at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for a slow reader.
const PIECES_WAITING: usize = 4;
/// Snapshots that are taken at once: an operator's, and one for a server that enters.
const AT_ONCE: usize = 2;

fn ending() -> Problem {
    Problem::new(ErrorCode::Unavailable, "the node is ending")
}

/// What snapshots are taken from.
#[derive(Clone)]
pub(crate) struct SnapshotSource {
    control: Sender<Message>,
    side: SyncSender<SideRequest>,
    gate: Arc<Semaphore>,
}

/// What is here as of a checkpoint, and the right to read it.
pub(crate) struct Taken {
    pub(crate) frozen: Frozen,
    _permit: OwnedSemaphorePermit,
}

impl SnapshotSource {
    pub(crate) fn new(control: Sender<Message>, side: SyncSender<SideRequest>) -> SnapshotSource {
        SnapshotSource { control, side, gate: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// What is here as of the last checkpoint; nothing before the first one.
    async fn last(&self) -> Result<Option<Frozen>, Problem> {
        let (reply, answer) = oneshot::channel();
        let side = self.side.clone();
        // It may have to wait until the thread that writes has room.
        let sent = tokio::task::spawn_blocking(move || side.send(SideRequest::Freeze(reply))).await;
        sent.map_err(|_| ending())?.map_err(|_| ending())?;
        let frozen = answer.await.map_err(|_| ending())?;
        frozen.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))
    }

    /// What is here as of a checkpoint that has everything up to an entry.
    pub(crate) async fn take(&self, index: u64) -> Result<Taken, Problem> {
        let permit = self.gate.clone().try_acquire_owned().map_err(|_| {
            Problem::new(ErrorCode::Unavailable, "other snapshots are being taken").retry_after_ms(5_000)
        })?;
        let begun = Instant::now();
        loop {
            match self.last().await? {
                Some(frozen) if frozen.facts().index >= index => {
                    return Ok(Taken { frozen, _permit: permit });
                }
                _ if begun.elapsed() >= CHECKPOINT_WITHIN => {
                    let detail = format!("no checkpoint was written within {CHECKPOINT_WITHIN:?}");
                    return Err(Problem::new(ErrorCode::Unavailable, detail).retry_after_ms(5_000));
                }
                _ => {}
            }
            self.control.send(Message::Checkpoint).map_err(|_| ending())?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Pieces of a snapshot, for whoever writes them on a thread of its own.
pub(crate) struct Pieces {
    sender: Channel<std::io::Result<Bytes>>,
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

/// Writes a snapshot on a thread of its own. `write` is given the writer after the header, and ends it. What fails breaks the stream off,
/// and without its end a snapshot is none.
pub(crate) fn stream(
    taken: Taken,
    header: Vec<u8>,
    write: impl FnOnce(&Frozen, SnapshotWriter<Pieces>) -> Result<(), String> + Send + 'static,
) -> Receiver<std::io::Result<Bytes>> {
    let (sender, pieces) = tokio::sync::mpsc::channel(PIECES_WAITING);
    tokio::task::spawn_blocking(move || {
        let out = Pieces { sender: sender.clone(), buffer: Vec::with_capacity(PIECE_BYTES) };
        let begun = SnapshotWriter::begin(out, &header).map_err(|error| error.to_string());
        match begun.and_then(|writer| write(&taken.frozen, writer)) {
            Ok(()) => tracing::info!(index = taken.frozen.facts().index, "a snapshot was taken"),
            Err(reason) => {
                tracing::warn!(reason, "a snapshot was broken off");
                drop(sender.blocking_send(Err(std::io::Error::other(reason))));
            }
        }
    });
    pieces
}
