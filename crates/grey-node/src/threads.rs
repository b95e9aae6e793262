//! The threads that write: one for the log, one for history and checkpoints. Each owns its files.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use grey_core::Effect;
use grey_replica::{Checkpoint, PersistBatch};
use grey_store::{Filling, Frozen, LogStore, SideStorage, SnapshotFacts, SnapshotPart, StoreError};
use tokio::sync::{oneshot, watch};

use crate::control::Message;
use crate::error::NodeError;
use crate::metrics::Meters;
use crate::records::encoded;

/// How many batches are written with one sync at most.
const BATCHES_PER_SYNC: usize = 256;
/// How many requests may wait for a writing thread before the one who asks has to wait too.
const QUEUE_LENGTH: usize = 4_096;

/// What the log's thread is asked.
pub(crate) enum LogRequest {
    /// Make a batch durable.
    Persist(PersistBatch),
    /// Drop entries up to an index.
    Truncate(u64),
}

/// What the side's thread is asked, in the order of the log.
pub(crate) enum SideRequest {
    /// Keep what an entry left, and say that everything up to its index is kept.
    Effects(u64, Vec<Effect>),
    /// Close the open segment of history, where it is still the one of this number.
    Seal(u32),
    /// Make everything so far durable, with the state.
    Checkpoint(Box<Checkpoint>),
    /// Give what is here as of the last checkpoint.
    Freeze(oneshot::Sender<Result<Option<Frozen>, StoreError>>),
    /// Put a whole state in the place of what is here; the log gets the same batch.
    Install(Box<PersistBatch>),
    /// Take in what history lacks of another server's snapshot, and say when that is done.
    Fill(FillStep, Sender<()>),
}

/// A snapshot of another server, as it comes.
pub(crate) enum FillStep {
    /// Its beginning. What came of one before is left as it is.
    Begin(SnapshotFacts),
    /// Some of its parts, in their order.
    Parts(Vec<SnapshotPart>),
    /// It was whole.
    End,
}

/// What the side's thread tells.
pub(crate) struct SideNews {
    /// Up to which index effects are kept.
    pub(crate) kept: watch::Sender<u64>,
    /// Up to which entry history lacks what a whole state came with; 0 where it lacks nothing.
    pub(crate) gap: watch::Sender<u64>,
}

/// Starts a named thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, NodeError> {
    let builder = std::thread::Builder::new().name(format!("grey-{name}"));
    builder.spawn(body).map_err(NodeError::io("start", format!("the {name} thread")))
}

/// Starts the log's thread.
pub(crate) fn log_thread(
    mut log: LogStore,
    control: Sender<Message>,
    meters: Arc<Meters>,
) -> Result<(SyncSender<LogRequest>, JoinHandle<Result<(), NodeError>>), NodeError> {
    let (sender, requests) = sync_channel(QUEUE_LENGTH);
    let handle = spawn("log", move || {
        let outcome = write_log(&mut log, &requests, &control, &meters);
        // Whoever waits for a write must learn that none will come.
        drop(control.send(Message::Failed("log")));
        outcome
    })?;
    Ok((sender, handle))
}

fn write_log(
    log: &mut LogStore,
    requests: &Receiver<LogRequest>,
    control: &Sender<Message>,
    meters: &Meters,
) -> Result<(), NodeError> {
    let mut batches: Vec<PersistBatch> = Vec::new();
    while let Ok(first) = requests.recv() {
        let mut truncate = None;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                LogRequest::Persist(batch) => batches.push(batch),
                LogRequest::Truncate(index) => truncate = Some(index),
            }
            next = if batches.len() < BATCHES_PER_SYNC { requests.try_recv().ok() } else { None };
        }
        let begun = Instant::now();
        log.write(&batches, truncate)?;
        if let Some(last) = batches.last().map(|batch| batch.number) {
            meters.synced(begun.elapsed());
            batches.clear();
            if control.send(Message::Persisted(last)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Starts the side's thread.
pub(crate) fn side_thread(
    mut side: SideStorage,
    log: SyncSender<LogRequest>,
    control: Sender<Message>,
    news: SideNews,
) -> Result<(SyncSender<SideRequest>, JoinHandle<Result<(), NodeError>>), NodeError> {
    let (sender, requests) = sync_channel(QUEUE_LENGTH);
    let handle = spawn("side", move || {
        let outcome = write_side(&mut side, &requests, &log, &control, &news);
        drop(control.send(Message::Failed("history")));
        outcome
    })?;
    Ok((sender, handle))
}

fn write_side(
    side: &mut SideStorage,
    requests: &Receiver<SideRequest>,
    log: &SyncSender<LogRequest>,
    control: &Sender<Message>,
    news: &SideNews,
) -> Result<(), NodeError> {
    let (mut records, mut filling) = (Vec::new(), None);
    while let Ok(first) = requests.recv() {
        let (mut next, mut checkpoint, mut index, mut taken) = (Some(first), None, None, 0usize);
        let (mut seal, mut install, mut freeze, mut fill) = (None, None, None, None);
        while let Some(request) = next {
            match request {
                SideRequest::Effects(at, effects) => {
                    for effect in &effects {
                        match effect {
                            Effect::History(record) => encoded(record, &mut records),
                            Effect::LogGrew { hashes, .. } => side.tree.append(hashes)?,
                            _ => {}
                        }
                    }
                    index = Some(at);
                }
                SideRequest::Seal(number) => seal = Some(number),
                // Nothing that follows a checkpoint may be written before it.
                SideRequest::Checkpoint(found) => checkpoint = Some(found),
                SideRequest::Install(batch) => install = Some(batch),
                SideRequest::Freeze(reply) => freeze = Some(reply),
                SideRequest::Fill(step, done) => fill = Some((step, done)),
            }
            taken += 1;
            let ends = checkpoint.is_some() || install.is_some() || freeze.is_some() || fill.is_some();
            let more = !ends && taken < BATCHES_PER_SYNC;
            next = if more { requests.try_recv().ok() } else { None };
        }
        side.history.append(records.iter().map(|(key, value)| (*key, value.as_slice())))?;
        records.clear();
        if let Some(number) = seal {
            side.history.seal_early(number)?;
        }
        if let Some(index) = index {
            news.kept.send_replace(index);
        }
        if let Some((step, done)) = fill {
            take_in(side, &mut filling, step)?;
            news.gap.send_replace(side.gap());
            // Who gave up needs no answer.
            let _ = done.send(());
        }
        if let Some(reply) = freeze {
            // Who asked and went away needs none.
            drop(reply.send(side.freeze()));
        }
        if let Some(batch) = install {
            if let Some(installation) = &batch.installation {
                side.install(installation)?;
                news.kept.send_replace(installation.index);
                news.gap.send_replace(side.gap());
            }
            if log.send(LogRequest::Persist(*batch)).is_err() {
                return Ok(());
            }
        }
        if let Some(checkpoint) = checkpoint {
            side.write_checkpoint(&checkpoint)?;
            let through = checkpoint.truncate_through;
            // Only once the checkpoint is durable may the log forget what it covers.
            if through > 0 && log.send(LogRequest::Truncate(through)).is_err() {
                return Ok(());
            }
            if control.send(Message::Checkpointed(through)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Takes in what is lacking of another server's snapshot.
fn take_in(side: &mut SideStorage, filling: &mut Option<Filling>, step: FillStep) -> Result<(), StoreError> {
    match (step, filling) {
        (FillStep::Begin(facts), filling) => *filling = Some(Filling::begin(facts)),
        (FillStep::Parts(parts), Some(filling)) => side.fill(filling, &parts)?,
        (FillStep::End, filling) => {
            if let Some(filling) = filling.take() {
                let index = filling.index();
                match side.filled(&filling) {
                    true => tracing::info!(index, "history has what it lacked"),
                    false => tracing::warn!(index, "another server lacks some of what history lacks here"),
                }
            }
        }
        (FillStep::Parts(_), None) => {}
    }
    Ok(())
}
