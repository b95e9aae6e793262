//! Tasks one a line, sent as they come: what was not answered for is kept until it is, and is sent again when the connection is lost.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use crate::client::{ANSWER_TIMEOUT, Body, Client, ClientError};
use crate::problem::ErrorCode;
use crate::retry::{Attempts, Repeat};
use crate::types::{StreamEnd, StreamedJob};

/// How much may be under way that was not answered for, in bytes: more than a node ever holds of a stream before it answers, which is two
/// batches of a mebibyte and what it reads at once, so that waiting for an answer never keeps the answer from coming.
const UNANSWERED_BYTES: usize = 8 * 1024 * 1024;
/// The most bytes of a line of the answer.
const ANSWER_LINE_BYTES: usize = 1024 * 1024;
/// The most bytes of a piece of what is sent, and how many pieces wait to be written to a connection.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_WAITING: usize = 4;

/// Why a stream of tasks ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum TaskStreamError {
    /// What was to be sent could not be read.
    #[error("cannot be read: {0}")]
    Input(std::io::Error),
    /// The cluster was not reached, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
}

type Opening<'c> = Pin<Box<dyn Future<Output = Result<Body, ClientError>> + Send + 'c>>;

/// What a request is given to send.
enum Piece {
    Lines(Bytes),
    /// There is no more. A request that is given up has no end, so that the node does not take what came of it for the whole.
    End,
}

/// The body of a request.
struct Lines(Receiver<Piece>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|piece| match piece {
            Some(Piece::Lines(lines)) => Some(Ok(Frame::data(lines))),
            Some(Piece::End) => None,
            None => Some(Err(std::io::Error::other("the stream was given up"))),
        })
    }
}

/// The answer to a request.
enum Answer<'c> {
    /// It has not begun.
    Awaited(Opening<'c>),
    /// It comes line by line.
    Comes(Body),
}

impl Answer<'_> {
    /// What comes of it next: nothing as long as it only begins.
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self {
            Answer::Awaited(opening) => {
                let body = opening.as_mut().await?;
                *self = Answer::Comes(body);
                Ok(Some(Bytes::new()))
            }
            Answer::Comes(body) => body.next().await,
        }
    }
}

/// A request that carries lines.
struct Request<'c> {
    answer: Answer<'c>,
    /// Where pieces go; `None` once the last one has gone, or the connection takes no more.
    pieces: Option<Sender<Piece>>,
    /// How much of what is kept has gone, in bytes, and whether the end has.
    sent: usize,
    has_end: bool,
    /// What came of the answer after its last whole line.
    rest: Vec<u8>,
}

impl Request<'_> {
    /// The next line of the answer, where it is there.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        Some(self.rest.drain(..=end).collect())
    }
}

/// What a step came to.
enum Step {
    Job(StreamedJob),
    End,
    Goes,
    Failed(ClientError),
}

/// Sends tasks, one a line, and tells which jobs they became. At most 8 MiB are held, however long the stream is.
///
/// Where a connection is lost, or whoever answered leads no more, the stream goes on at the first line without an answer, as the client's
/// [`RetryOptions`](crate::RetryOptions) allow; each answer begins them anew.
pub struct TaskStream<'c> {
    client: &'c Client,
    path: String,
    key: String,
    input: Receiver<std::io::Result<Bytes>>,
    input_ended: bool,
    /// What was read and not answered for, from the beginning of a line on.
    kept: VecDeque<u8>,
    request: Option<Request<'c>>,
    /// Whether a node was there before.
    was_there: bool,
    /// Whether there is nothing that a node would have to hear of before more comes.
    rests: bool,
    /// How much was read in all, in bytes, and how much of it when a node had last waited for more in vain.
    read_bytes: u64,
    waited_in_vain_at: Option<u64>,
    /// The attempts since something was answered for; none as long as nothing failed.
    attempts: Option<Attempts>,
    /// Since when something waits to be sent or answered for, and nothing happens.
    stands_since: Option<Instant>,
    /// What was answered for.
    so_far: StreamEnd,
}

impl<'c> TaskStream<'c> {
    /// A stream to `path` with its query, such as `/v1/tasks/stream?tenant=red`, under an idempotency key. Nothing is sent yet.
    pub fn new(
        client: &'c Client,
        path: &str,
        key: &str,
        input: Receiver<std::io::Result<Bytes>>,
    ) -> TaskStream<'c> {
        TaskStream {
            client,
            path: path.to_owned(),
            key: key.to_owned(),
            input,
            input_ended: false,
            kept: VecDeque::new(),
            request: None,
            was_there: false,
            rests: true,
            read_bytes: 0,
            waited_in_vain_at: None,
            attempts: None,
            stands_since: None,
            so_far: StreamEnd { lines: 0, jobs: 0, tasks: 0, problem: None },
        }
    }

    /// What was answered for so far: at the end, everything.
    pub fn so_far(&self) -> &StreamEnd {
        &self.so_far
    }

    /// The next job; `None` once everything was answered for.
    ///
    /// # Errors
    /// The input cannot be read, the cluster refuses a line, or it cannot be reached any more. What was answered for stays.
    pub async fn next(&mut self) -> Result<Option<StreamedJob>, TaskStreamError> {
        loop {
            let failed = match self.step().await? {
                Step::Job(job) => return Ok(Some(job)),
                Step::End => return Ok(None),
                Step::Goes => continue,
                Step::Failed(error) => error,
            };
            let had_all = self.request.take().is_some_and(|request| request.has_end);
            self.stands_since = None;
            self.was_there |= !matches!(failed, ClientError::Unreachable { .. });
            let waited = failed.problem().is_some_and(|problem| problem.code == ErrorCode::RequestTimeout);
            if waited && !had_all {
                // What came meanwhile it may not have seen.
                let before = self.waited_in_vain_at.replace(self.read_bytes);
                self.rests = before == Some(self.read_bytes);
                continue;
            }
            let repeat = if self.was_there { Repeat::Resumed } else { Repeat::Always };
            let attempts = self.attempts.get_or_insert_with(|| self.client.retries().begin());
            if !self.client.wait_to_repeat(attempts, &failed, repeat).await {
                return Err(failed.into());
            }
        }
    }

    async fn step(&mut self) -> Result<Step, TaskStreamError> {
        if self.is_answered() && self.request.is_none() {
            return Ok(Step::End);
        }
        if self.request.is_none() && (!self.rests || self.input_ended) {
            self.request = Some(self.open());
        }
        let may_read = !self.input_ended && self.kept.len() < UNANSWERED_BYTES;
        let Some(request) = self.request.as_mut() else {
            let piece = self.input.recv().await;
            return self.take_in(piece).map(|()| Step::Goes);
        };
        if let Some(line) = request.line() {
            return Ok(self.told(&line));
        }
        let unsent = self.kept.len().saturating_sub(request.sent);
        let may_send = (unsent > 0 || self.input_ended) && request.pieces.is_some();
        // A job is answered for when it is whole: while the node may wait for more, nothing is late.
        if may_send || !may_read {
            self.stands_since.get_or_insert_with(Instant::now);
        } else {
            self.stands_since = None;
        }
        let late_at = self.stands_since.map(|since| since + ANSWER_TIMEOUT);
        let pieces = request.pieces.clone();
        let room = async {
            match pieces {
                Some(pieces) => pieces.reserve_owned().await.ok(),
                None => None,
            }
        };
        let late = async {
            match late_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => core::future::pending().await,
            }
        };
        let failed = tokio::select! {
            // What is answered already makes it needless to send more.
            biased;
            answer = request.answer.next() => match answer {
                Ok(Some(piece)) => {
                    (self.stands_since, self.was_there) = (None, true);
                    request.rest.extend_from_slice(&piece);
                    let is_endless = request.rest.len() > ANSWER_LINE_BYTES && !request.rest.contains(&b'\n');
                    is_endless.then(|| self.unreadable("a line without an end"))
                }
                Ok(None) => Some(self.client.broken("the answer ended before it was complete")),
                Err(error) => Some(error),
            },
            room = room, if may_send => {
                self.stands_since = None;
                match room {
                    Some(room) if unsent > 0 => {
                        let length = unsent.min(PIECE_BYTES);
                        let lines: Vec<u8> = self.kept.range(request.sent..).take(length).copied().collect();
                        room.send(Piece::Lines(lines.into()));
                        request.sent = request.sent.saturating_add(length);
                    }
                    Some(room) => {
                        room.send(Piece::End);
                        (request.pieces, request.has_end) = (None, true);
                    }
                    // What it ended with, the answer says.
                    None => request.pieces = None,
                }
                None
            }
            piece = self.input.recv(), if may_read => {
                self.take_in(piece)?;
                None
            }
            () = late => Some(self.client.broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        };
        Ok(failed.map_or(Step::Goes, Step::Failed))
    }

    fn take_in(&mut self, piece: Option<std::io::Result<Bytes>>) -> Result<(), TaskStreamError> {
        match piece {
            Some(Ok(piece)) => {
                self.read_bytes = self.read_bytes.saturating_add(piece.len() as u64);
                self.kept.extend(piece);
                self.rests = false;
            }
            Some(Err(error)) => return Err(TaskStreamError::Input(error)),
            None => self.input_ended = true,
        }
        Ok(())
    }

    /// Whether nothing is left that has to be answered for. An input without any task is for the cluster to refuse.
    fn is_answered(&self) -> bool {
        self.input_ended && self.so_far.jobs > 0 && self.kept.iter().all(u8::is_ascii_whitespace)
    }

    /// Begins a request with the first line that was not answered for.
    fn open(&self) -> Request<'c> {
        let (sender, pieces) = channel(PIECES_WAITING);
        let mut path = self.path.clone();
        if self.so_far.jobs > 0 {
            let begins = if path.contains('?') { '&' } else { '?' };
            let StreamEnd { lines, jobs, .. } = self.so_far;
            path.push_str(&format!("{begins}lines_before={lines}&jobs_before={jobs}"));
        }
        let (client, key) = (self.client, self.key.clone());
        let opening = async move {
            client.post_streaming(&path, "application/x-ndjson", Lines(pieces), Some(&key)).await
        };
        let answer = Answer::Awaited(Box::pin(opening));
        Request { answer, pieces: Some(sender), sent: 0, has_end: false, rest: Vec::new() }
    }

    /// Takes in a line of the answer.
    fn told(&mut self, line: &[u8]) -> Step {
        if let Ok(job) = serde_json::from_slice::<StreamedJob>(line) {
            let lines = job.last_line.checked_sub(self.so_far.lines);
            if !lines.is_some_and(|lines| self.forget(lines)) {
                return Step::Failed(self.unreadable("an answer for lines that were not sent"));
            }
            self.so_far.lines = job.last_line;
            self.so_far.jobs = self.so_far.jobs.saturating_add(1);
            self.so_far.tasks = self.so_far.tasks.saturating_add(u64::from(job.tasks));
            self.client.retries().succeeded(Duration::ZERO, None);
            self.attempts = None;
            return Step::Job(job);
        }
        match serde_json::from_slice::<StreamEnd>(line) {
            Ok(StreamEnd { problem: None, .. }) if self.input_ended => Step::End,
            Ok(StreamEnd { problem: Some(problem), .. }) => {
                Step::Failed(ClientError::Refused(Box::new(problem)))
            }
            _ => Step::Failed(self.unreadable("a line that is neither a job nor the end")),
        }
    }

    fn unreadable(&self, reason: &str) -> ClientError {
        ClientError::Unreadable { address: self.client.address().to_string(), reason: reason.to_owned() }
    }

    /// Lets go of the first lines that are kept; false where so many have not gone. The input's last line needs no line feed.
    fn forget(&mut self, lines: u64) -> bool {
        let Some(request) = &mut self.request else { return false };
        let (mut left, mut length) = (lines, 0usize);
        for byte in self.kept.iter().take(request.sent) {
            if left == 0 {
                break;
            }
            length = length.saturating_add(1);
            left -= u64::from(*byte == b'\n');
        }
        let is_last = self.input_ended && length == self.kept.len();
        if left > u64::from(is_last) {
            return false;
        }
        self.kept.drain(..length);
        request.sent -= length;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;
    use crate::address::Address;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    fn chunk(line: &str) -> String {
        format!("{:x}\r\n{line}\n\r\n", line.len() + 1)
    }

    fn job(number: u64, first_line: u64, last_line: u64) -> String {
        let job = StreamedJob {
            job: format!("j{number}"),
            first_task: "t1".to_owned(),
            tasks: u32::try_from(last_line - first_line + 1).unwrap(),
            duplicate: false,
            first_line,
            last_line,
        };
        chunk(&serde_json::to_string(&job).unwrap())
    }

    /// What a connection brings until it has a text.
    async fn until(stream: &mut UnixStream, text: &str) -> String {
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(text) {
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).await.unwrap();
            assert!(length > 0, "it ended without {text:?}: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&piece[..length]);
        }
        String::from_utf8(read).unwrap()
    }

    fn client(socket: &Path) -> Client {
        Client::new(Address::Unix(socket.to_owned()), None)
    }

    async fn input(pieces: &[&str]) -> Receiver<std::io::Result<Bytes>> {
        let (sender, receiver) = channel(pieces.len() + 1);
        for piece in pieces {
            sender.send(Ok(Bytes::from((*piece).to_owned()))).await.unwrap();
        }
        receiver
    }

    #[tokio::test]
    async fn a_stream_that_broke_goes_on_at_the_first_line_without_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let node = tokio::spawn(async move {
            // Given: a node that answers for two of three lines and is gone,
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = until(&mut stream, "three").await;
            assert!(asked.starts_with("POST /v1/tasks/stream?tenant=red HTTP"), "{asked}");
            stream.write_all(format!("{HEAD}{}", job(1, 1, 2)).as_bytes()).await.unwrap();
            drop(stream);
            // and one that has the rest.
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = until(&mut stream, "0\r\n\r\n").await;
            let end = chunk(r#"{"lines":4,"jobs":2,"tasks":2}"#);
            stream.write_all(format!("{HEAD}{}{end}0\r\n\r\n", job(2, 3, 4)).as_bytes()).await.unwrap();
            asked
        });
        let client = client(&socket);
        let pieces = input(&["one\ntw", "o\nthree\nfo", "ur"]).await;
        let mut stream = TaskStream::new(&client, "/v1/tasks/stream?tenant=red", "k", pieces);
        assert_eq!(stream.next().await.unwrap().unwrap().job, "j1");
        assert_eq!(stream.next().await.unwrap().unwrap().job, "j2");
        assert_eq!(stream.next().await.unwrap(), None);
        assert_eq!(*stream.so_far(), StreamEnd { lines: 4, jobs: 2, tasks: 4, problem: None });
        // Then: the second one got what was not answered for, and where that stands.
        let asked = node.await.unwrap();
        assert!(asked.contains("?tenant=red&lines_before=2&jobs_before=1 "), "{asked}");
        let body: String = asked.split("\r\n\r\n").nth(1).unwrap().split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(body, "three\nfour");
    }

    #[tokio::test]
    async fn a_stream_that_broke_goes_on_however_long_ago_its_last_answer_was() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let options = crate::RetryOptions { deadline: Duration::from_millis(400), ..Default::default() };
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "one").await;
            // Longer than what its attempts may take from the first one that failed on.
            tokio::time::sleep(options.deadline * 2).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "0\r\n\r\n").await;
            let end = chunk(r#"{"lines":1,"jobs":1,"tasks":1}"#);
            stream.write_all(format!("{HEAD}{}{end}0\r\n\r\n", job(1, 1, 1)).as_bytes()).await.unwrap();
        });
        let client = client(&socket).with_retries(Some(options));
        let mut stream = TaskStream::new(&client, "/s", "k", input(&["one"]).await);
        assert_eq!(stream.next().await.unwrap().unwrap().job, "j1");
        assert_eq!(stream.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_node_that_waited_for_lines_in_vain_is_sent_them_once_there_are_more() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, pieces) = channel(1);
        tokio::spawn(async move {
            // Given: a node that waits no longer, which is nobody's failure, however often.
            for lines in ["one", "two"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                until(&mut stream, lines).await;
                let problem = crate::Problem::new(ErrorCode::RequestTimeout, "paused");
                let problem = serde_json::to_string(&problem).unwrap();
                let head = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length:";
                let answer = format!("{head} {}\r\n\r\n{problem}", problem.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
                sender.send(Ok(Bytes::from_static(b"two\n"))).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "two\n").await;
            drop(sender);
            until(&mut stream, "0\r\n\r\n").await;
            let end = chunk(r#"{"lines":3,"jobs":1,"tasks":3}"#);
            stream.write_all(format!("{HEAD}{}{end}0\r\n\r\n", job(1, 1, 3)).as_bytes()).await.unwrap();
        });
        let (first, input) = channel(3);
        first.send(Ok(Bytes::from_static(b"one\n"))).await.unwrap();
        tokio::spawn(async move {
            let mut pieces: Receiver<std::io::Result<Bytes>> = pieces;
            while let Some(piece) = pieces.recv().await {
                first.send(piece).await.unwrap();
            }
        });
        let options = crate::RetryOptions { tokens: 0, ..Default::default() };
        let client = client(&socket).with_retries(Some(options));
        let mut stream = TaskStream::new(&client, "/s", "k", input);
        assert_eq!(stream.next().await.unwrap().unwrap().last_line, 3);
        assert_eq!(stream.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stream_that_is_given_up_has_no_end_that_a_node_could_take_for_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let node = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            // A connection that breaks is as good an end.
            drop(stream.read_to_end(&mut all).await);
            String::from_utf8(all).unwrap()
        });
        let (sender, pieces) = channel(2);
        let client = client(&socket);
        let mut stream = TaskStream::new(&client, "/s", "k", pieces);
        sender.send(Ok(Bytes::from_static(b"one\n"))).await.unwrap();
        // When: what follows cannot be read.
        let failing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sender.send(Err(std::io::Error::other("the disk is gone"))).await.unwrap();
        };
        let (ended, ()) = tokio::join!(stream.next(), failing);
        assert!(matches!(ended, Err(TaskStreamError::Input(_))), "{ended:?}");
        drop(stream);
        let sent = node.await.unwrap();
        assert!(!sent.contains("0\r\n\r\n"), "{sent}");
    }

    #[tokio::test]
    async fn nothing_is_sent_again_where_everything_was_answered_for_and_only_the_end_was_lost() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "0\r\n\r\n").await;
            stream.write_all(format!("{HEAD}{}", job(1, 1, 2)).as_bytes()).await.unwrap();
        });
        let client = client(&socket);
        let mut stream = TaskStream::new(&client, "/s", "k", input(&["one\ntwo\n\n"]).await);
        assert_eq!(stream.next().await.unwrap().unwrap().last_line, 2);
        assert_eq!(stream.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn no_more_is_read_than_may_be_under_way_without_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        // Given: a node that takes everything and never answers, and a producer without end.
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut piece = vec![0; 65_536];
            while stream.read(&mut piece).await.unwrap() > 0 {}
        });
        let (sender, pieces) = channel(1);
        let client = client(&socket);
        let mut stream = TaskStream::new(&client, "/s", "k", pieces);
        let producer = async {
            let mut taken = 0;
            let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
            // Then: it is held up.
            while tokio::time::timeout(Duration::from_secs(1), sender.send(Ok(piece.clone()))).await.is_ok() {
                taken += PIECE_BYTES;
                assert!(taken < 2 * UNANSWERED_BYTES, "{taken} bytes were taken");
            }
            taken
        };
        let taken = tokio::select! {
            taken = producer => taken,
            ended = stream.next() => panic!("{ended:?}"),
        };
        assert!(taken >= UNANSWERED_BYTES, "only {taken} bytes were taken");
    }

    #[tokio::test]
    async fn a_refused_line_ends_it_and_so_does_an_answer_for_lines_that_were_not_sent() {
        let refused = r#"{"lines":0,"jobs":0,"tasks":0,"problem":{"type":"x","title":"x","status":400,"code":"invalid_request","detail":"line 1"}}"#;
        for (answer, says) in [(chunk(refused), "line 1"), (job(1, 1, 9), "lines that were not sent")] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("socket");
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                until(&mut stream, "0\r\n\r\n").await;
                stream.write_all(format!("{HEAD}{answer}0\r\n\r\n").as_bytes()).await.unwrap();
            });
            let client = client(&socket);
            let mut stream = TaskStream::new(&client, "/s", "k", input(&["one\n"]).await);
            let error = stream.next().await.unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn an_input_that_cannot_be_read_is_told_as_that() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let (sender, pieces) = channel(1);
        sender.send(Err(std::io::Error::other("the disk is gone"))).await.unwrap();
        let client = client(&socket);
        let mut stream = TaskStream::new(&client, "/s", "k", pieces);
        let error = stream.next().await.unwrap_err();
        assert!(matches!(error, TaskStreamError::Input(_)), "{error}");
    }
}
