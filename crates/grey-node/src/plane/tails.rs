//! What a worker answers about streams of what it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use grey_agent::{Executor, OutputStream, Tail};
use grey_core::{AttemptId, Epoch, TaskId};
use grey_wire::{StreamPiece, StreamRequest};

use super::streams::StreamId;

/// Streams that are kept open for whoever reads them piece by piece, also after their attempt was reported.
const OPEN: usize = 256;
/// For how long one is that nobody reads on.
const IDLE: Duration = Duration::from_secs(60);
/// The most bytes of one answer.
const PIECE_BYTES: usize = 256 * 1024;

/// The streams of a worker's attempts.
pub(crate) struct Tails {
    process: Arc<dyn Executor>,
    open: Mutex<BTreeMap<StreamId, (Arc<dyn Tail>, Instant)>>,
}

impl Tails {
    /// Of what this executor runs.
    pub(crate) fn new(process: Arc<dyn Executor>) -> Tails {
        Tails { process, open: Mutex::default() }
    }

    fn tail(&self, id: StreamId) -> Option<Arc<dyn Tail>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (_, read)| read.elapsed() < IDLE);
        if let Some((tail, read)) = open.get_mut(&id) {
            *read = Instant::now();
            return Some(tail.clone());
        }
        let tail = self.process.tail(id.attempt, id.stream)?;
        if open.len() < OPEN {
            open.insert(id, (tail.clone(), Instant::now()));
        }
        Some(tail)
    }

    /// Reads what is asked for. Blocks for a disk.
    pub(crate) fn answer(&self, ask: &StreamRequest) -> StreamPiece {
        let id = StreamId {
            attempt: AttemptId { task: TaskId(ask.task), epoch: Epoch(ask.epoch) },
            stream: if ask.stderr { OutputStream::Stderr } else { OutputStream::Stdout },
        };
        let nothing = StreamPiece { number: ask.number, ..StreamPiece::default() };
        let Some(tail) = self.tail(id) else { return StreamPiece { unknown: true, ..nothing } };
        match tail.read(ask.offset, PIECE_BYTES.min(ask.most as usize)) {
            Ok((data, ended)) => StreamPiece { data: data.into(), ended, ..nothing },
            Err(error) => StreamPiece { error: error.to_string(), ..nothing },
        }
    }
}
