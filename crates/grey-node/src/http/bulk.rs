//! Tasks one a line, any number of them: they become jobs as they come, and are answered as these are durable.
//!
//! What is held is one batch, however long the stream is. The stream is read as fast as its jobs become durable, which is
//! what slows a sender down: when the door fills up the stream pauses, and while it is closed the stream waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use grey_api::{ErrorCode, Problem, StreamEnd, StreamedJob};
use grey_core::{IdempotencyKey, limits};
use grey_health::{Advice, Backpressure};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::access::{self, Behalf, Principal};
use super::paced::paced;
use super::reply::{Refusal, typed};
use super::session::Session;
use super::submit::{Heading, Run, body_digest, given_key, lines, submit};
use crate::handle::Node;

/// Where streams are sent to.
pub(crate) const PATH: &str = "/v1/tasks/stream";
/// For how long a job that the door refuses is tried again before the stream ends with the refusal.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause after a job.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For how long its sender may pause: whoever makes the tasks may have to work for some.
const LONGEST_SENDERS_PAUSE: Duration = Duration::from_secs(300);
/// The most bytes of the lines of one job. What a job is made of follows from the lines alone, so that the same stream
/// under the same key makes the same jobs.
const BATCH_BYTES: usize = 1024 * 1024;
/// The most bytes of an idempotency key: each job's is the stream's with a number behind it.
const KEY_BYTES: usize = limits::KEY_BYTES - 21;
/// The most lines and jobs that a stream goes on behind.
const MOST_BEFORE: u64 = 1 << 53;
/// Answers that may wait for a slow reader.
const ANSWERS_WAITING: usize = 16;

/// The lines of one job.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    tasks: usize,
}

/// Cuts a stream into lines and these into batches.
struct Batches<S> {
    pieces: S,
    /// What has come last.
    rest: Vec<u8>,
    /// Where what is in no batch yet begins in it.
    begins: usize,
    /// How far it has been looked at for the end of a line.
    searched: usize,
    ended: bool,
    next: Batch,
}

impl<S> Batches<S>
where
    S: futures_util::Stream<Item = Result<Bytes, Problem>> + Unpin,
{
    fn new(pieces: S) -> Batches<S> {
        let next = Batch::default();
        Batches { pieces, rest: Vec::new(), begins: 0, searched: 0, ended: false, next }
    }

    /// The next batch; nothing after the last. `line` counts those before it.
    async fn next(&mut self, line: u64) -> Result<Option<Batch>, Problem> {
        loop {
            while let Some(end) = self.line_end() {
                let text = self.rest.get(self.begins..end).unwrap_or_default();
                let is_blank = text.iter().all(u8::is_ascii_whitespace);
                let too_long = self.next.bytes.len() + text.len() > BATCH_BYTES;
                if self.next.tasks > 0 && (too_long || !is_blank && self.next.tasks >= limits::BATCH_TASKS) {
                    return Ok(Some(core::mem::take(&mut self.next)));
                }
                if too_long && !self.next.bytes.is_empty() {
                    let (first, last) = (line + 1, line + self.next.lines + 1);
                    let detail = format!("there is no task in lines {first} to {last}");
                    return Err(Problem::new(ErrorCode::TooLarge, detail)
                        .limit(BATCH_BYTES as u64)
                        .hint("leave blank lines out"));
                }
                self.next.bytes.extend_from_slice(text);
                (self.begins, self.searched) = (end, end);
                self.next.lines += 1;
                self.next.tasks += usize::from(!is_blank);
            }
            if self.rest.len() - self.begins > BATCH_BYTES {
                let number = line + self.next.lines + 1;
                return Err(Problem::new(ErrorCode::TooLarge, format!("line {number} is too long"))
                    .limit(BATCH_BYTES as u64)
                    .hint("send what is large as blobs"));
            }
            if self.ended {
                let last = core::mem::take(&mut self.next);
                return Ok((last.tasks > 0).then_some(last));
            }
            match self.pieces.next().await {
                Some(Ok(piece)) => {
                    self.rest.drain(..self.begins);
                    self.searched -= self.begins;
                    self.begins = 0;
                    self.rest.extend_from_slice(&piece);
                }
                Some(Err(problem)) => return Err(problem),
                None => self.ended = true,
            }
        }
    }

    /// Where the next whole line ends, its line feed included.
    fn line_end(&mut self) -> Option<usize> {
        let unseen = self.rest.get(self.searched..).unwrap_or_default();
        match unseen.iter().position(|byte| *byte == b'\n') {
            Some(position) => Some(self.searched + position + 1),
            None if self.ended && self.begins < self.rest.len() => Some(self.rest.len()),
            None => {
                self.searched = self.rest.len();
                None
            }
        }
    }
}

/// For the fuzz targets: the batches of a stream that comes in pieces of so many bytes, or why it is refused.
pub(crate) fn batches(text: &[u8], piece_bytes: usize) -> Result<Vec<Vec<u8>>, String> {
    use futures_util::FutureExt;
    let pieces = text.chunks(piece_bytes.max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece)));
    let mut batches = Batches::new(futures_util::stream::iter(pieces));
    let (mut found, mut lines) = (Vec::new(), 0);
    // What is there already is never waited for.
    while let Some(next) = batches.next(lines).now_or_never() {
        match next.map_err(|problem| problem.detail)? {
            Some(batch) => {
                lines += batch.lines;
                found.push(batch.bytes);
            }
            None => break,
        }
    }
    Ok(found)
}

/// Submits the jobs of one stream, one after another.
struct Submitter {
    node: Arc<Node>,
    session: Session,
    behalf: Behalf,
    name: String,
    key: Option<String>,
    end: StreamEnd,
    /// How long to wait before the next job.
    pause: Duration,
}

/// How long a sender pauses at a level after a job that took so long: it then sends at about the part of its rate that is advised.
fn pause(took: Duration, advice: Advice) -> Duration {
    let pause = match advice {
        Advice::Send { rate_permille } => {
            let permille = u32::try_from(rate_permille.clamp(1, 1_000)).unwrap_or(1_000);
            took.saturating_mul(1_000 - permille) / permille
        }
        Advice::Reject { retry_after_ms } => Duration::from_millis(retry_after_ms),
    };
    pause.min(LONGEST_PAUSE)
}

impl Submitter {
    /// Submits a batch once there is room for it.
    async fn submit_in_time(&mut self, batch: &Batch) -> Result<StreamedJob, Problem> {
        tokio::time::sleep(core::mem::take(&mut self.pause)).await;
        let begun = Instant::now();
        loop {
            let refused = match self.submit(batch).await {
                Ok(created) => return Ok(created),
                Err(problem) => problem,
            };
            let closed = matches!(
                refused.code,
                ErrorCode::Overloaded | ErrorCode::RateExceeded | ErrorCode::QueueFull
            );
            match refused.retry_after_ms.map(Duration::from_millis) {
                Some(wait) if closed && begun.elapsed() + wait < PATIENCE => tokio::time::sleep(wait).await,
                _ => return Err(refused),
            }
        }
    }

    async fn submit(&mut self, batch: &Batch) -> Result<StreamedJob, Problem> {
        self.session.check()?;
        let before = self.end.lines;
        let (runs, listed) = lines(&batch.bytes).map_err(|refusal| moved(refusal.0, before))?;
        if let Some(run) = runs.iter().find(|run| is_linked(run)) {
            let is_task = |(_, line): &(usize, &[u8])| !line.iter().all(u8::is_ascii_whitespace);
            let mut tasks = batch.bytes.split(|byte| *byte == b'\n').enumerate().filter(is_task);
            let number = before + tasks.nth(run.position).map_or(0, |(number, _)| number as u64) + 1;
            let detail = format!("line {number} waits for other tasks, which a stream's do not");
            return Err(Problem::new(ErrorCode::InvalidRequest, detail)
                .hint("submit tasks that follow one another as one job"));
        }
        let heading = Heading { name: self.name.clone(), listed, ..Heading::default() };
        let key = self.key.as_ref().map(|key| IdempotencyKey {
            key: format!("{key}/{}", self.end.jobs + 1),
            body: body_digest(&self.behalf.tenant, &heading.name, &batch.bytes),
        });
        let begun = Instant::now();
        let (created, level) =
            submit(&self.node, &self.behalf, key, heading, runs).await.map_err(|refusal| {
                let mut problem = refusal.0;
                problem.detail =
                    format!("lines {} to {}: {}", before + 1, before + batch.lines, problem.detail);
                problem
            })?;
        self.pause = pause(begun.elapsed(), Backpressure::default().advice_for(level));
        self.end.lines += batch.lines;
        self.end.jobs += 1;
        self.end.tasks += u64::from(created.tasks);
        Ok(StreamedJob {
            job: created.job,
            first_task: created.first_task,
            tasks: created.tasks,
            duplicate: created.duplicate,
            first_line: before + 1,
            last_line: self.end.lines,
        })
    }
}

/// The lines and jobs that an earlier stream under the same key was answered for: this one goes on behind them.
fn before(query: &HashMap<String, String>, has_key: bool) -> Result<(u64, u64), Problem> {
    let invalid = |detail: String| {
        Problem::new(ErrorCode::InvalidRequest, detail)
            .hint("send both as the last answer had them: last_line, and how many jobs there were")
    };
    let number = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) if number <= MOST_BEFORE => Ok(Some(number)),
            _ => Err(invalid(format!("`{name}` is no number of at most {MOST_BEFORE}")).limit(MOST_BEFORE)),
        },
    };
    match (number("lines_before")?, number("jobs_before")?) {
        (None, None) => Ok((0, 0)),
        (Some(_), Some(_)) if !has_key => {
            Err(invalid("a stream goes on under the idempotency key that it began under".to_owned()))
        }
        (Some(lines), Some(jobs)) if jobs <= lines && (jobs > 0 || lines == 0) => Ok((lines, jobs)),
        (Some(lines), Some(jobs)) => Err(invalid(format!("{lines} lines do not make {jobs} jobs"))),
        _ => Err(invalid("`lines_before` and `jobs_before` belong together".to_owned())),
    }
}

fn is_linked(run: &Run) -> bool {
    !run.request.after.is_empty() || !run.request.inputs_from.is_empty()
}

/// A complaint about a line of a batch, as one about a line of the stream.
fn moved(mut problem: Problem, before: u64) -> Problem {
    let number = problem.detail.strip_prefix("line ").and_then(|rest| rest.split_once(' '));
    if let Some((number, rest)) = number
        && let Ok(number) = number.parse::<u64>()
    {
        problem.detail = format!("line {} {rest}", before + number);
    }
    problem
}

fn line<T: serde::Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// `POST /v1/tasks/stream`.
pub(crate) async fn stream(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Query(mut query): Query<HashMap<String, String>>,
    request: Request,
) -> Result<Response, Refusal> {
    let key = given_key(request.headers(), KEY_BYTES)?;
    let behalf = access::behalf(&node.directory(), &principal, query.get("tenant").map(String::as_str))?;
    let name = query.remove("name").unwrap_or_default();
    let (lines, jobs) = before(&query, key.is_some()).map_err(Refusal)?;
    let session = Session::open(&node, principal).await?;
    let end = StreamEnd { lines, jobs, tasks: 0, problem: None };
    let mut submitter = Submitter { node, session, behalf, name, key, end, pause: Duration::ZERO };
    let mut batches = Batches::new(paced(request.into_body(), LONGEST_SENDERS_PAUSE));
    // The first job's refusal is the request's: until then nothing was accepted.
    let first = batches.next(lines).await.map_err(Refusal)?.ok_or_else(|| {
        Refusal(Problem::new(ErrorCode::InvalidRequest, "the stream has no tasks").hint("send one a line"))
    })?;
    let created = submitter.submit_in_time(&first).await.map_err(Refusal)?;
    let (answers, body) = mpsc::channel::<Result<Bytes, core::convert::Infallible>>(ANSWERS_WAITING);
    tokio::spawn(async move {
        let mut answer = line(&created);
        loop {
            // Who does not read any more has gone; what is durable stays, and the stream may be sent again.
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            let batch = match batches.next(submitter.end.lines).await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(problem) => {
                    submitter.end.problem = Some(problem);
                    break;
                }
            };
            match submitter.submit_in_time(&batch).await {
                Ok(created) => answer = line(&created),
                Err(problem) => {
                    submitter.end.problem = Some(problem);
                    break;
                }
            }
        }
        if let Some(problem) = &submitter.end.problem {
            submitter.node.meters.refused(problem.code);
        }
        drop(answers.send(Ok(line(&submitter.end))).await);
    });
    Ok(typed("application/x-ndjson", Body::from_stream(ReceiverStream::new(body))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_health::Level;

    async fn batches(pieces: Vec<Vec<u8>>) -> Result<Vec<(u64, usize, Vec<u8>)>, Problem> {
        let pieces = pieces.into_iter().map(|piece| Ok(piece.into()));
        let mut batches = Batches::new(futures_util::stream::iter(pieces));
        let mut found = Vec::new();
        while let Some(batch) = batches.next(0).await? {
            found.push((batch.lines, batch.tasks, batch.bytes));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn batches_follow_from_the_lines_and_not_from_the_pieces_that_they_come_in() {
        let text: Vec<u8> = (0..25_000).flat_map(|n| format!("{{\"n\":{n}}}\n\n").into_bytes()).collect();
        let whole = batches(vec![text.clone()]).await.ok().unwrap();
        let tasks: Vec<usize> = whole.iter().map(|(_, tasks, _)| *tasks).collect();
        assert_eq!(tasks, [10_000, 10_000, 5_000]);
        for size in [1_000, 4_097, 70_000] {
            let pieces = text.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(batches(pieces).await.ok().unwrap(), whole, "in pieces of {size}");
        }
        let joined: Vec<u8> = whole.into_iter().flat_map(|(_, _, bytes)| bytes).collect();
        assert_eq!(joined, text, "not a byte is lost");
    }

    #[tokio::test]
    async fn long_lines_make_smaller_batches_and_one_that_is_too_long_is_named() {
        let long = |bytes: usize| [vec![b'x'; bytes], b"\n".to_vec()].concat();
        let pieces = vec![long(600_000), long(600_000), long(10)];
        let tasks: Vec<usize> =
            batches(pieces).await.ok().unwrap().iter().map(|(_, tasks, _)| *tasks).collect();
        assert_eq!(tasks, [1, 2]);
        let problem = batches(vec![long(10), vec![b'x'; BATCH_BYTES + 1]]).await.err().unwrap();
        assert_eq!((problem.code, problem.detail.as_str()), (ErrorCode::TooLarge, "line 2 is too long"));
    }

    #[test]
    fn a_stream_goes_on_behind_whole_jobs_and_under_a_key_only() {
        let asked = |query: &[(&str, &str)], has_key| {
            let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            before(&query.collect(), has_key).map_err(|problem| problem.detail)
        };
        let both = |lines, jobs, has_key| asked(&[("lines_before", lines), ("jobs_before", jobs)], has_key);
        assert_eq!(asked(&[], false), Ok((0, 0)));
        assert_eq!(both("20000", "2", true), Ok((20_000, 2)));
        assert_eq!(both("0", "0", true), Ok((0, 0)));
        for (refused, says) in [
            (both("20000", "2", false), "under the idempotency key"),
            (both("1", "2", true), "1 lines do not make 2 jobs"),
            (both("1", "0", true), "1 lines do not make 0 jobs"),
            (both("-1", "0", true), "`lines_before` is no number"),
            (both("9007199254740993", "1", true), "at most 9007199254740992"),
            (asked(&[("jobs_before", "1")], true), "belong together"),
        ] {
            assert!(refused.as_ref().is_err_and(|detail| detail.contains(says)), "{refused:?}");
        }
    }

    #[test]
    fn a_stream_pauses_as_long_as_the_level_advises() {
        let advice = |level| Backpressure::default().advice_for(level);
        let took = Duration::from_millis(100);
        let cases =
            [(Level::Normal, 0), (Level::Warning, 100), (Level::Critical, 900), (Level::Blocked, 1_000)];
        for (level, pause_ms) in cases {
            assert_eq!(pause(took, advice(level)), Duration::from_millis(pause_ms), "{level:?}");
        }
        assert_eq!(pause(Duration::from_secs(60), advice(Level::Critical)), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn blank_lines_are_held_no_more_than_others() {
        let blank = vec![b'\n'; 700_000];
        let task = b"{}\n".to_vec();
        let endless = vec![task.clone(), blank.clone(), blank.clone(), blank.clone(), blank.clone()];
        let found = batches(endless).await;
        let problem = found.err().unwrap();
        assert_eq!(problem.code, ErrorCode::TooLarge, "without end they would take all memory");
        let found = batches(vec![blank.clone(), task.clone(), blank.clone(), task]).await.ok().unwrap();
        assert_eq!(found.iter().map(|(_, tasks, _)| *tasks).collect::<Vec<_>>(), [1, 1]);
        let problem = batches(vec![blank.clone(), blank]).await.err().unwrap();
        assert_eq!(problem.code, ErrorCode::TooLarge);
        assert!(problem.detail.starts_with("there is no task in lines 1 to "), "{}", problem.detail);
    }

    #[tokio::test]
    async fn a_last_line_needs_no_end_and_blank_ones_are_no_tasks() {
        let found = batches(vec![b"\n{}\n \n{}".to_vec()]).await.ok().unwrap();
        assert_eq!(found, [(4, 2, b"\n{}\n \n{}".to_vec())]);
        assert!(batches(vec![b"\n \n".to_vec()]).await.ok().unwrap().is_empty());
        assert!(batches(vec![]).await.ok().unwrap().is_empty());
    }
}
