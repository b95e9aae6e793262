//! What a worker answers about streams of what it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use grey_agent::{Executor, OutputStream, Tail};
use grey_core::{AttemptId, Epoch, TaskId};
use grey_wire::{StreamPiece, StreamRequest};

use super::streams::StreamId;

/// Streams that are kept open for whoever reads them piece by piece, also after their attempt was reported.
const OPEN: usize = 256;
/// For how long one is that nobody reads on.
const IDLE: Duration = Duration::from_secs(60);
/// The same of one that was read to its end: others may read it at their own pace, and nothing more comes.
const IDLE_AT_ITS_END: Duration = Duration::from_secs(5);
/// How often those are let go of whose time is over, also when nobody asks for anything any more: an open file keeps its room on the disk.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// The most bytes of one answer.
const PIECE_BYTES: usize = 256 * 1024;

/// The streams of a worker's attempts.
pub(crate) struct Tails {
    process: Arc<dyn Executor>,
    /// Each with when it is let go of.
    open: Mutex<BTreeMap<StreamId, (Arc<dyn Tail>, Instant)>>,
}

impl Tails {
    /// Of what this executor runs.
    pub(crate) fn new(process: Arc<dyn Executor>) -> Tails {
        Tails { process, open: Mutex::default() }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<StreamId, (Arc<dyn Tail>, Instant)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the streams whose time is over, until nobody has this any more.
    pub(crate) async fn sweep(tails: Weak<Tails>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            match tails.upgrade() {
                Some(tails) => tails.let_go(Instant::now()),
                None => return,
            }
        }
    }

    fn let_go(&self, now: Instant) {
        self.locked().retain(|_, (_, until)| now < *until);
    }

    fn tail(&self, id: StreamId) -> Option<Arc<dyn Tail>> {
        let now = Instant::now();
        self.let_go(now);
        let mut open = self.locked();
        if let Some((tail, until)) = open.get_mut(&id) {
            *until = now + IDLE;
            return Some(tail.clone());
        }
        let tail = self.process.tail(id.attempt, id.stream)?;
        if open.len() < OPEN {
            open.insert(id, (tail.clone(), now + IDLE));
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
            Ok((data, ended)) => {
                if ended && let Some((_, until)) = self.locked().get_mut(&id) {
                    *until = Instant::now() + IDLE_AT_ITS_END;
                }
                StreamPiece { data: data.into(), ended, ..nothing }
            }
            Err(error) => StreamPiece { error: error.to_string(), ..nothing },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use grey_agent::{Capabilities, Execution, StopReason};

    /// Runs one attempt that wrote ten bytes, until it is released.
    #[derive(Default)]
    struct Runs {
        released: core::sync::atomic::AtomicBool,
        open: Arc<()>,
    }

    struct Ten(#[allow(dead_code, reason = "it is counted")] Arc<()>);

    impl Tail for Ten {
        fn read(&self, offset: u64, most: usize) -> std::io::Result<(Vec<u8>, bool)> {
            let left = 10usize.saturating_sub(usize::try_from(offset).unwrap());
            Ok((vec![0; left.min(most)], left <= most))
        }
    }

    impl Executor for Runs {
        fn capabilities(&self) -> Capabilities {
            unreachable!("it is not asked")
        }
        fn start(&self, _: Execution) {}
        fn adopt(&self, _: Execution) {}
        fn hold_until(&self, _: u64) {}
        fn stop(&self, _: AttemptId, _: StopReason) {}
        fn change_timeout(&self, _: AttemptId, _: u64) {}
        fn tail(&self, _: AttemptId, _: OutputStream) -> Option<Arc<dyn Tail>> {
            let runs = !self.released.load(core::sync::atomic::Ordering::Relaxed);
            runs.then(|| Arc::new(Ten(self.open.clone())) as Arc<dyn Tail>)
        }
        fn release(&self, _: AttemptId) {
            self.released.store(true, core::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_that_nobody_reads_on_is_let_go_of_and_one_at_its_end_sooner() {
        let runs = Arc::new(Runs::default());
        let tails = Tails::new(runs.clone());
        let read = |offset, most| {
            let piece =
                tails.answer(&StreamRequest { task: 1, epoch: 1, offset, most, ..Default::default() });
            (piece.data.len(), piece.ended, piece.unknown)
        };
        let open = || Arc::strong_count(&runs.open) - 1;
        // Given one that is read in the middle, whose attempt is released.
        assert_eq!(read(0, 4), (4, false, false));
        runs.release(AttemptId { task: TaskId(1), epoch: Epoch(1) });
        // Then it stays for whoever reads on, and not for ever.
        tails.let_go(Instant::now() + IDLE_AT_ITS_END);
        assert_eq!((read(4, 4), open()), ((4, false, false), 1));
        assert_eq!((read(8, 4), open()), ((2, true, false), 1));
        assert_eq!((read(4, 4), open()), ((4, false, false), 1), "another one reads more slowly");
        tails.let_go(Instant::now() + IDLE_AT_ITS_END);
        assert_eq!((read(8, 4), open()), ((2, true, false), 1));
        tails.let_go(Instant::now() + IDLE_AT_ITS_END);
        assert_eq!((open(), read(0, 4)), (0, (0, false, true)));
    }
}
