//! What attempts on other machines write, read by the leader while they run. A question goes over the conversation that the worker holds with
//! the server anyway; the worker has nothing that could be dialled.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use grey_agent::OutputStream;
use grey_core::AttemptId;
use grey_proof::Digest;
use grey_wire::{StreamPiece, StreamRequest};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// Questions to a worker that wait; more wait for their turn.
const WAITING: usize = 64;
/// Questions to a worker that it has not answered yet.
const UNANSWERED: usize = 64;
/// How long a worker may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Which stream of which attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId {
    pub(crate) attempt: AttemptId,
    pub(crate) stream: OutputStream,
}

/// What is asked of a worker, and who waits for the answer.
pub(super) struct Question {
    pub(super) ask: StreamRequest,
    pub(super) reply: oneshot::Sender<StreamPiece>,
}

/// Questions to a worker that it has not answered yet, in one conversation.
#[derive(Default)]
pub(super) struct Unanswered {
    waiting: BTreeMap<u64, oneshot::Sender<StreamPiece>>,
    last_number: u64,
}

impl Unanswered {
    /// Whether another question may be asked. Who gave up waiting makes room.
    pub(super) fn has_room(&mut self) -> bool {
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        self.waiting.len() < UNANSWERED
    }

    /// Gives a question its number.
    pub(super) fn ask(&mut self, question: Question) -> StreamRequest {
        let Question { ask, reply } = question;
        self.last_number = self.last_number.wrapping_add(1);
        self.waiting.insert(self.last_number, reply);
        StreamRequest { number: self.last_number, ..ask }
    }

    /// Gives an answer to whoever waits for it. Who asked and went away needs none.
    pub(super) fn answer(&mut self, piece: StreamPiece) {
        self.waiting.remove(&piece.number).map(|waiting| waiting.send(piece));
    }
}

/// The workers that can be asked: those that speak with this server.
#[derive(Default)]
pub(crate) struct Streams {
    workers: Mutex<BTreeMap<Digest, (u64, Sender<Question>)>>,
}

impl Streams {
    fn workers(&self) -> MutexGuard<'_, BTreeMap<Digest, (u64, Sender<Question>)>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker speaks with this server over a connection, and can be asked until that ends.
    pub(super) fn connected(self: &Arc<Self>, worker: Digest, connection: u64) -> Connected {
        let (sender, questions) = channel(WAITING);
        self.workers().insert(worker, (connection, sender));
        Connected { streams: self.clone(), worker, connection, questions }
    }

    /// At most `most` bytes of a stream from `offset` on, and whether nothing more will come after them; `None` where the worker does not
    /// have the attempt (yet, or any more), or cannot be asked.
    ///
    /// # Errors
    /// What the worker says that it cannot do.
    pub(crate) async fn read(
        &self,
        worker: &Digest,
        id: StreamId,
        offset: u64,
        most: u32,
    ) -> io::Result<Option<(Bytes, bool)>> {
        let Some((_, questions)) = self.workers().get(worker).cloned() else { return Ok(None) };
        let ask = StreamRequest {
            // The conversation gives it its number.
            number: 0,
            task: id.attempt.task.0,
            epoch: id.attempt.epoch.0,
            stderr: id.stream == OutputStream::Stderr,
            offset,
            most,
        };
        let (reply, answer) = oneshot::channel();
        let answered = async {
            questions.send(Question { ask, reply }).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWERS_WITHIN, answered).await {
            Ok(Some(piece)) if !piece.error.is_empty() => Err(io::Error::other(piece.error)),
            Ok(Some(piece)) if piece.unknown => Ok(None),
            Ok(Some(piece)) => Ok(Some((piece.data, piece.ended))),
            Ok(None) | Err(_) => Ok(None),
        }
    }
}

/// A worker that can be asked, as long as this is there.
pub(super) struct Connected {
    streams: Arc<Streams>,
    worker: Digest,
    connection: u64,
    pub(super) questions: Receiver<Question>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut workers = self.streams.workers();
        // It may have come back over another connection.
        if workers.get(&self.worker).is_some_and(|(connection, _)| *connection == self.connection) {
            workers.remove(&self.worker);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use grey_core::{Epoch, TaskId};

    const ID: StreamId =
        StreamId { attempt: AttemptId { task: TaskId(7), epoch: Epoch(2) }, stream: OutputStream::Stderr };

    #[tokio::test]
    async fn a_worker_is_asked_over_its_present_connection_and_only_while_it_has_one() {
        let (streams, worker) = (Arc::new(Streams::default()), Digest::of(b"worker"));
        assert!(streams.read(&worker, ID, 0, 10).await.unwrap().is_none());
        let first = streams.connected(worker, 1);
        let mut second = streams.connected(worker, 2);
        drop(first);
        let answers = tokio::spawn(async move {
            let Question { ask, reply } = second.questions.recv().await.unwrap();
            assert_eq!((ask.task, ask.epoch, ask.stderr, ask.offset, ask.most), (7, 2, true, 5, 10));
            reply.send(StreamPiece { data: "some".into(), ended: true, ..StreamPiece::default() }).unwrap();
            let Question { reply, .. } = second.questions.recv().await.unwrap();
            reply.send(StreamPiece { error: "the disk".to_owned(), ..StreamPiece::default() }).unwrap();
            let Question { reply, .. } = second.questions.recv().await.unwrap();
            reply.send(StreamPiece { unknown: true, ..StreamPiece::default() }).unwrap();
        });
        assert_eq!(streams.read(&worker, ID, 5, 10).await.unwrap(), Some(("some".into(), true)));
        assert!(streams.read(&worker, ID, 5, 10).await.is_err());
        assert!(streams.read(&worker, ID, 5, 10).await.unwrap().is_none());
        answers.await.unwrap();
        assert!(streams.read(&worker, ID, 0, 10).await.unwrap().is_none(), "its connection has ended");
    }

    #[test]
    fn questions_that_nobody_waits_for_any_more_make_room() {
        let mut unanswered = Unanswered::default();
        let mut waiting: Vec<_> = (0..UNANSWERED)
            .map(|_| {
                assert!(unanswered.has_room());
                let (reply, answer) = oneshot::channel();
                let request = unanswered.ask(Question { ask: StreamRequest::default(), reply });
                (request.number, answer)
            })
            .collect();
        assert!(!unanswered.has_room());
        drop(waiting.split_off(1));
        assert!(unanswered.has_room());
        let (number, mut answer) = waiting.remove(0);
        unanswered.answer(StreamPiece { number, ended: true, ..StreamPiece::default() });
        assert!(answer.try_recv().unwrap().ended);
    }
}
