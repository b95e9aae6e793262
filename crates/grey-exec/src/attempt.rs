//! One attempt, from its directory to its outcome, on a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use grey_agent::{Captured, CapturedFile, Executed, Execution, StopReason};
use grey_core::limits::MESSAGE_BYTES;
use grey_core::{AttemptId, Outcome, SandboxLevel, Usage, UsageSource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::capture::{Brought, Capture};
use crate::channel::{Channel, Received};
use crate::collect::{Refusal, collect};
use crate::directory::{AttemptDirectory, WorkDirectory};
use crate::keeper::Keeper;
use crate::noop::wall_clock_ms;
use crate::plan::{CONTROL_TERMINATE, Consumed, Fence, NotStarted, Report, Stage};
use crate::prepare;
use crate::stop::Stop;

/// What a task has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// What is read from a stream at once: a pipe's usual capacity.
const READ_BYTES: usize = 64 * 1024;

/// What ends an attempt that does not end by itself, in words.
pub(crate) fn stopped(reason: StopReason) -> (Outcome, &'static str) {
    match reason {
        StopReason::Cancelled => (Outcome::Cancelled, "the task was cancelled"),
        StopReason::Infrastructure => (Outcome::Infrastructure, "the worker stopped the attempt"),
    }
}

/// An attempt that ended without having run.
pub(crate) fn never_ran(
    attempt: AttemptId,
    sandbox: SandboxLevel,
    outcome: Outcome,
    message: &str,
) -> Executed {
    Executed {
        attempt,
        outcome,
        sandbox,
        usage_source: UsageSource::None,
        usage: Usage { started_at_ms: wall_clock_ms(), ..Usage::default() },
        stdout: Captured::Inline(Vec::new()),
        stderr: Captured::Inline(Vec::new()),
        files: Vec::new(),
        message: bounded(message),
    }
}

fn bounded(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES);
    message.get(..end).unwrap_or_default().to_owned()
}

/// What all attempts of an executor share.
pub(crate) struct Ground<'a> {
    pub(crate) work: &'a WorkDirectory,
    pub(crate) keeper: &'a Keeper,
    pub(crate) fence: Fence,
}

/// Runs an attempt to its end and returns when every process of it is gone. Calls `started` when the program runs.
pub(crate) fn run(
    ground: &Ground<'_>,
    execution: &Execution,
    stop: &Stop,
    brought: &[Arc<Brought>; 2],
    started: &dyn Fn(),
) -> Executed {
    let started_at_ms = wall_clock_ms();
    let clock = Instant::now();
    let level = ground.fence.level();
    let refused = |message: String| never_ran(execution.attempt, level, Outcome::Infrastructure, &message);
    let directory = match ground.work.create(execution.attempt) {
        Ok(directory) => directory,
        Err(error) => return refused(format!("the attempt's directory cannot be made: {error}")),
    };
    let plan = match prepare::plan(ground.fence, execution, &directory) {
        Ok(plan) => plan,
        Err(message) => return refused(message),
    };
    let opened = Channel::open(ground.keeper, &plan)
        .and_then(|channel| Running::new(execution, &directory, channel, stop, brought, clock));
    drop(plan);
    let mut running = match opened {
        Ok(running) => running,
        Err(error) => return refused(format!("the launcher cannot be started: {error}")),
    };
    running.watch(started);
    let duration_us = u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX);
    running.finish(level, Usage { started_at_ms, duration_us, ..Usage::default() })
}

/// One of the two output streams.
struct Stream {
    pipe: Option<OwnedFd>,
    capture: Capture,
}

/// An attempt that is being stopped.
struct Stopping {
    outcome: Outcome,
    message: String,
    /// When patience ends; `None` after everything was killed.
    kill_at: Option<Instant>,
}

struct Running<'a> {
    execution: &'a Execution,
    directory: &'a AttemptDirectory,
    channel: Channel,
    stop: &'a Stop,
    clock: Instant,
    streams: [Stream; 2],
    /// What the streams may still bring.
    left_bytes: u64,
    ended: Option<ExitStatus>,
    consumed: Option<Consumed>,
    /// Whether the guard said its last word.
    is_over: bool,
    failure: Option<(Outcome, String)>,
    stopping: Option<Stopping>,
}

impl<'a> Running<'a> {
    fn new(
        execution: &'a Execution,
        directory: &'a AttemptDirectory,
        mut channel: Channel,
        stop: &'a Stop,
        brought: &[Arc<Brought>; 2],
        clock: Instant,
    ) -> io::Result<Running<'a>> {
        channel.do_not_wait()?;
        let [stdout, stderr] = channel.take_output().map_or([None, None], |pipes| pipes.map(Some));
        let [out, err] = brought.clone();
        let streams = [("stdout", stdout, out), ("stderr", stderr, err)]
            .map(|(name, pipe, brought)| Stream { pipe, capture: Capture::new(name, brought) });
        for pipe in streams.iter().filter_map(|stream| stream.pipe.as_ref()) {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Running {
            execution,
            directory,
            channel,
            stop,
            clock,
            streams,
            left_bytes: execution.spec.output_limit_bytes,
            ended: None,
            consumed: None,
            is_over: false,
            failure: None,
            stopping: None,
        })
    }

    /// Serves the attempt until its guard has ended and its output is read.
    fn watch(&mut self, started: &dyn Fn()) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    self.halt(
                        Outcome::Infrastructure,
                        format!("the attempt cannot be watched: {error}"),
                        false,
                    );
                    break;
                }
            };
            if ready.channel && !self.read_reports(started) {
                break;
            }
            for (number, readable) in ready.streams.into_iter().enumerate() {
                if readable {
                    self.read_stream(number, &mut buffer);
                }
            }
            self.look_at_time_and_wishes();
        }
        self.wait_for_the_last(started);
        // Every writer is dead, so what is in the pipes is all there will be. A descriptor that the task passed to
        // a process outside of the attempt does not keep us waiting.
        for number in 0..self.streams.len() {
            while self.read_stream(number, &mut buffer) {}
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let timeout = self.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up, so that the deadline has passed when the wait is over.
            let left = left.saturating_add(Duration::from_micros(1));
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        // After the last resort no further wish makes a difference.
        let wishes = if self.stopping_for_good() { PollFlags::empty() } else { PollFlags::IN };
        let mut descriptors = vec![
            PollFd::from_borrowed_fd(self.channel.descriptor(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.stop.descriptor(), wishes),
        ];
        let mut places = [None; 2];
        for (place, stream) in places.iter_mut().zip(&self.streams) {
            if let Some(pipe) = &stream.pipe {
                *place = Some(descriptors.len());
                descriptors.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        match poll(&mut descriptors, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(Ready::default()),
            result => result?,
        };
        let is_ready =
            |place: usize| descriptors.get(place).is_some_and(|descriptor| !descriptor.revents().is_empty());
        if is_ready(1) {
            self.stop.acknowledge();
        }
        Ok(Ready { channel: is_ready(0), streams: places.map(|place| place.is_some_and(is_ready)) })
    }

    fn stopping_for_good(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.kill_at.is_none())
    }

    fn next_deadline(&self) -> Option<Instant> {
        match &self.stopping {
            Some(stopping) => stopping.kill_at,
            None => self.deadline(),
        }
    }

    /// When the attempt has run for too long; `None` is a time that the clock cannot tell.
    fn deadline(&self) -> Option<Instant> {
        self.clock.checked_add(Duration::from_millis(self.stop.timeout_ms()))
    }

    /// Takes in what the guard says; false after its last word.
    fn read_reports(&mut self, started: &dyn Fn()) -> bool {
        while !self.is_over {
            match self.channel.receive() {
                Received::Report(report) => self.take_report(report, started),
                Received::Nothing => return true,
                Received::End => return false,
            }
        }
        false
    }

    fn take_report(&mut self, report: Report, started: &dyn Fn()) {
        self.is_over = report.is_last();
        match report {
            Report::Started => started(),
            Report::NotStarted(why, error) => self.failure = Some(self.explain_not_started(why, error)),
            Report::Ended(status, consumed) => {
                self.ended = Some(ExitStatus::from_raw(status));
                self.consumed = Some(consumed);
            }
            Report::Failed(stage, error, position) => {
                let message = self.explain_failure(stage, error, position);
                self.failure.get_or_insert((Outcome::Infrastructure, message));
            }
            Report::Begun | Report::Probed(_) => {}
        }
    }

    fn explain_not_started(&self, why: NotStarted, error: i32) -> (Outcome, String) {
        let program = self.execution.spec.command.first().map_or("", String::as_str);
        let program = program.get(..program.floor_char_boundary(256)).unwrap_or_default();
        match why {
            NotStarted::NotFound => {
                (Outcome::CommandNotFound, format!("the program `{program}` was not found"))
            }
            NotStarted::NotExecutable => (
                Outcome::CommandNotExecutable,
                format!(
                    "the program `{program}` cannot be executed: {}",
                    io::Error::from_raw_os_error(error)
                ),
            ),
            NotStarted::NoInterpreter => (
                Outcome::CommandNotExecutable,
                format!(
                    "the program `{program}` cannot be executed: the interpreter that it names is missing"
                ),
            ),
        }
    }

    fn explain_failure(&self, stage: Stage, error: i32, position: u64) -> String {
        let error = io::Error::from_raw_os_error(error);
        let what = match stage {
            Stage::Plan => "the attempt's plan was not understood",
            Stage::Fence => "the fence around the attempt cannot be made",
            Stage::Stdin => "standard input cannot be opened",
            Stage::WorkDirectory => "the working directory cannot be entered",
            Stage::Process => "the first process cannot be prepared",
            Stage::Descendants => "the attempt's processes cannot be found",
            Stage::Input => {
                let input = usize::try_from(position)
                    .ok()
                    .and_then(|position| self.execution.spec.inputs.get(position));
                let path = input.map_or("", |input| input.path.as_str());
                let path = path.get(..path.floor_char_boundary(256)).unwrap_or_default();
                return format!("the input `{path}` cannot be laid in: {error}");
            }
        };
        format!("{what}: {error}")
    }

    /// Reads once from a stream; false when there is nothing to read now or any more.
    fn read_stream(&mut self, number: usize, buffer: &mut [u8]) -> bool {
        let Some(stream) = self.streams.get_mut(number) else { return false };
        let Some(pipe) = &stream.pipe else { return false };
        let count = match rustix::io::read(pipe, &mut *buffer) {
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => return false,
            Ok(0) | Err(_) => {
                stream.pipe = None;
                return false;
            }
            Ok(count) => count,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let fitting = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(count);
        self.left_bytes = self.left_bytes.saturating_sub(fitting as u64);
        let kept = stream.capture.push(bytes.get(..fitting).unwrap_or_default(), self.directory);
        if let Err(error) = kept {
            self.halt(Outcome::Infrastructure, format!("the output cannot be kept: {error}"), false);
        } else if fitting < count {
            self.halt(Outcome::OutputLimit, over_limit(self.execution), false);
        }
        true
    }

    fn look_at_time_and_wishes(&mut self) {
        let now = Instant::now();
        if let Some(reason) = self.stop.reason() {
            let (outcome, message) = stopped(reason);
            self.halt(outcome, message.to_owned(), reason == StopReason::Cancelled);
        }
        if self.stopping.is_none() && self.deadline().is_some_and(|deadline| deadline <= now) {
            let timeout_ms = self.stop.timeout_ms();
            self.halt(
                Outcome::TimedOut,
                format!("the task ran longer than its time-out of {timeout_ms} ms"),
                true,
            );
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.kill_at.is_some_and(|at| at <= now)
        {
            stopping.kill_at = None;
            self.channel.kill_all();
        }
    }

    /// Begins to stop the attempt, or hastens a stop that has begun; the first reason stays.
    fn halt(&mut self, outcome: Outcome, message: String, gently: bool) {
        // A program that has ended by itself cannot be stopped any more; only what it wrote still counts.
        let too_late = self.ended.is_some() && matches!(outcome, Outcome::Cancelled | Outcome::TimedOut);
        if too_late {
            return;
        }
        if self.stopping_for_good() {
            return;
        }
        let first = self.stopping.is_none();
        let stopping = self.stopping.get_or_insert(Stopping {
            outcome,
            message,
            kill_at: Instant::now().checked_add(GRACE),
        });
        if !gently {
            stopping.kill_at = None;
            self.channel.kill_all();
        } else if first {
            self.channel.control(CONTROL_TERMINATE);
        }
    }

    /// Waits until the guard is reaped, and with it, in a namespace, everything else.
    fn wait_for_the_last(&mut self, started: &dyn Fn()) {
        if !self.read_reports(started) && !self.is_over {
            // The guard did not end in order.
            self.channel.kill();
        }
        match self.channel.wait() {
            Ok(consumed) => drop(self.consumed.get_or_insert(consumed)),
            Err(error) => {
                let message = format!("the attempt's guard was lost: {error}");
                self.failure.get_or_insert((Outcome::Infrastructure, message));
            }
        }
    }

    /// Decides on the outcome and takes the outputs.
    fn finish(mut self, sandbox: SandboxLevel, mut usage: Usage) -> Executed {
        let consumed = self.consumed.unwrap_or_default();
        usage.cpu_time_us = consumed.cpu_time_us;
        usage.peak_memory_bytes = consumed.peak_memory_bytes;
        let (mut outcome, mut message) = self.outcome();
        let mut files = Vec::new();
        if let Outcome::Exited(status) = outcome {
            match self.collect(status == 0) {
                Ok(collected) => files = collected,
                Err(refusal) => (outcome, message) = refusal,
            }
        }
        let [stdout, stderr] = self.streams.map(|stream| stream.capture.finish(self.directory));
        Executed {
            attempt: self.execution.attempt,
            outcome,
            sandbox,
            usage_source: UsageSource::ResourceUsage,
            usage,
            stdout,
            stderr,
            files,
            message: bounded(&message),
        }
    }

    fn outcome(&mut self) -> (Outcome, String) {
        if let Some(stopping) = self.stopping.take() {
            return (stopping.outcome, stopping.message);
        }
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        let Some(status) = self.ended else {
            return (
                Outcome::Infrastructure,
                "the attempt's guard ended without saying how the program did".to_owned(),
            );
        };
        let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        match (status.code(), status.signal()) {
            (Some(status), _) => (Outcome::Exited(number(status)), String::new()),
            (None, Some(signal)) => {
                (Outcome::Signaled(number(signal)), format!("the program was ended by signal {signal}"))
            }
            (None, None) => (Outcome::Infrastructure, "the program's end has no known form".to_owned()),
        }
    }

    fn collect(&self, complete: bool) -> Result<Vec<CapturedFile>, (Outcome, String)> {
        collect(self.directory, &self.execution.spec.outputs, self.left_bytes, complete).map_err(|refusal| {
            match refusal {
                Refusal::Refused(message) => (Outcome::OutputRefused, message),
                Refusal::OverLimit => (Outcome::OutputLimit, over_limit(self.execution)),
                Refusal::Failed(error) => {
                    (Outcome::Infrastructure, format!("the outputs cannot be read: {error}"))
                }
            }
        })
    }
}

fn over_limit(execution: &Execution) -> String {
    format!("the output is larger than its limit of {} bytes", execution.spec.output_limit_bytes)
}

#[derive(Default)]
struct Ready {
    channel: bool,
    streams: [bool; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_characters() {
        let long = "é".repeat(MESSAGE_BYTES);
        let cut = bounded(&format!("a{long}"));
        assert_eq!(cut.len(), MESSAGE_BYTES - 1);
        assert_eq!(bounded("short"), "short");
    }
}
