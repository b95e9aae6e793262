//! One attempt, from its directory to its outcome, on a thread of its own.
//!
//! The shim sees to it that the attempt ends: at its time-out, at the end of the lease, when somebody wants it to. This thread
//! takes what it writes, and what it leaves. Another worker can go on with it from here at any moment.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use grey_agent::{Captured, CapturedFile, Executed, Execution, StopReason};
use grey_core::limits::MESSAGE_BYTES;
use grey_core::{AttemptId, Outcome, SandboxLevel, Usage, UsageSource};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::capture::{Brought, Capture, Taken};
use crate::clock::monotonic_ns;
use crate::collect::{Refusal, collect};
use crate::connection::{Found, Outgoing};
use crate::directory::{AttemptDirectory, STDERR, STDOUT, WorkDirectory};
use crate::keeper::{Keeper, PATIENCE};
use crate::mailbox::{Ending, Mailbox};
use crate::message::{Clock, End, Halted, ToShim};
use crate::noop::wall_clock_ms;
use crate::plan::{Fence, NotStarted, Report, Stage};
use crate::prepare;
use crate::record;
use crate::wishes::{NotAsked, Wishes};

/// What is taken from a stream at once: a pipe's usual capacity.
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

/// Runs an attempt to its end and returns when every process of it is gone; `None` when it is left to the next worker.
/// Calls `started` when the program runs.
pub(crate) fn run(
    ground: &Ground<'_>,
    execution: &Execution,
    wishes: &Wishes,
    brought: &[Arc<Brought>; 2],
    started: &dyn Fn(),
) -> Option<Executed> {
    let (started_at_ms, started_ns) = (wall_clock_ms(), monotonic_ns());
    let (attempt, level) = (execution.attempt, ground.fence.level());
    let refused = |message: String| Some(never_ran(attempt, level, Outcome::Infrastructure, &message));
    let directory = match ground.work.create(attempt) {
        Ok(directory) => directory,
        Err(error) => return refused(format!("the attempt's directory cannot be made: {error}")),
    };
    let prepared = prepare::plan(ground.fence, execution, &directory).and_then(|plan| {
        let file = record::write(&plan, &execution.record);
        let made = file.and_then(|file| Ok((file, pipe()?, pipe()?, Arc::new(Mailbox::new()?))));
        made.map_err(|error| format!("the attempt cannot be watched: {error}"))
    });
    let (file, [stdout, their_stdout], [stderr, their_stderr], mailbox) = match prepared {
        Ok(prepared) => prepared,
        Err(message) => return refused(message),
    };
    let pipes = stdout.try_clone().and_then(|stdout| Ok([stdout, stderr.try_clone()?]));
    let pipes = match pipes {
        Ok(pipes) => pipes,
        Err(error) => return refused(format!("the attempt cannot be watched: {error}")),
    };
    let asked = wishes.begin(|timeout_ms| {
        let clock = Clock { started_ns, started_at_ms, timeout_ms };
        let message = ToShim::Start(attempt, ground.fence, clock);
        let descriptors = vec![file, their_stdout, their_stderr, stdout, stderr];
        ground.keeper.start(attempt, Outgoing { message, descriptors }, &mailbox)
    });
    match asked {
        Ok(()) => {}
        Err(NotAsked::Stopped(reason)) => {
            let (outcome, message) = stopped(reason);
            return Some(never_ran(attempt, level, outcome, message));
        }
        Err(NotAsked::Failed(error)) => return refused(format!("the shim cannot be started: {error}")),
    }
    let [out, err] = brought.clone();
    let captures = [Capture::new(STDOUT, out), Capture::new(STDERR, err)];
    let ran = (started_ns, started_at_ms);
    let watched = Watched { level, mailbox, captures, pipes: pipes.map(Some) };
    Running::new(ground, execution, wishes, &directory, watched).run(ran, started)
}

/// Goes on with an attempt that a shim holds from before, as [`run`] would have.
pub(crate) fn resume(
    ground: &Ground<'_>,
    execution: &Execution,
    found: Found,
    wishes: &Wishes,
    brought: &[Arc<Brought>; 2],
    started: &dyn Fn(),
) -> Option<Executed> {
    let resumed = ground.work.reopen(found.attempt).and_then(|directory| {
        let [out, err] = brought.clone();
        let captures = [Capture::resume(STDOUT, out, &directory)?, Capture::resume(STDERR, err, &directory)?];
        Ok((directory, captures))
    });
    let (directory, captures) = match resumed {
        Ok(resumed) => resumed,
        Err(error) => {
            // Nobody would take what it writes.
            ground.keeper.release(found.attempt);
            found.mailbox.wait_for_guard(PATIENCE);
            let message = format!("the attempt's directory cannot be gone on with: {error}");
            return Some(never_ran(found.attempt, ground.fence.level(), Outcome::Infrastructure, &message));
        }
    };
    let pipes = found.pipes.map_or([None, None], |pipes| pipes.map(Some));
    let ran = (found.clock.started_ns, found.clock.started_at_ms);
    // Behind which fence it runs was decided when it was started.
    let watched = Watched { level: found.fence.level(), mailbox: found.mailbox, captures, pipes };
    Running::new(ground, execution, wishes, &directory, watched).run(ran, started)
}

fn pipe() -> io::Result<[OwnedFd; 2]> {
    let (reading, writing) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok([reading, writing])
}

/// One of the two output streams.
struct Stream {
    pipe: Option<OwnedFd>,
    capture: Capture,
}

/// What an attempt that runs is watched by.
struct Watched {
    level: SandboxLevel,
    mailbox: Arc<Mailbox>,
    captures: [Capture; 2],
    pipes: [Option<OwnedFd>; 2],
}

struct Running<'a> {
    ground: &'a Ground<'a>,
    level: SandboxLevel,
    execution: &'a Execution,
    wishes: &'a Wishes,
    directory: &'a AttemptDirectory,
    mailbox: Arc<Mailbox>,
    streams: [Stream; 2],
    is_started: bool,
    is_over: bool,
    /// What is wrong with its output.
    trouble: Option<(Outcome, String)>,
}

impl<'a> Running<'a> {
    fn new(
        ground: &'a Ground<'a>,
        execution: &'a Execution,
        wishes: &'a Wishes,
        directory: &'a AttemptDirectory,
        watched: Watched,
    ) -> Running<'a> {
        let Watched { level, mailbox, captures: [out, err], pipes: [stdout, stderr] } = watched;
        let streams = [Stream { pipe: stdout, capture: out }, Stream { pipe: stderr, capture: err }];
        let (is_started, is_over, trouble) = (false, false, None);
        Running {
            ground,
            level,
            execution,
            wishes,
            directory,
            mailbox,
            streams,
            is_started,
            is_over,
            trouble,
        }
    }

    fn run(mut self, (started_ns, started_at_ms): (u64, u64), started: &dyn Fn()) -> Option<Executed> {
        let ending = self.watch(started);
        self.is_over = true;
        if ending == Ending::Left {
            return None;
        }
        // Every writer is dead, so what is in the pipes is all there will be. A descriptor that the task passed to a
        // process outside of the attempt does not keep us waiting.
        for number in 0..self.streams.len() {
            while self.take(number) {}
        }
        let Ending::Ended(end) = ending else {
            // The guard is told by the end of the shim; until it is gone, something may run.
            self.mailbox.wait_for_guard(PATIENCE);
            let waited = self.ground.work.wait_for_guard(self.execution.attempt);
            let message = match waited {
                Ok(()) => "the shim that held the attempt was lost".to_owned(),
                Err(error) => format!("the shim that held the attempt was lost: {error}"),
            };
            let duration_us = monotonic_ns().saturating_sub(started_ns) / 1_000;
            let usage = Usage { started_at_ms, duration_us, ..Usage::default() };
            return Some(self.finish((Outcome::Infrastructure, message), Vec::new(), usage));
        };
        let (mut outcome, mut files) = (self.outcome(end), Vec::new());
        if let Outcome::Exited(status) = outcome.0 {
            match self.collect(status == 0) {
                Ok(collected) => files = collected,
                Err(refusal) => outcome = refusal,
            }
        }
        let usage = Usage {
            started_at_ms,
            duration_us: end.ended_ns.saturating_sub(started_ns) / 1_000,
            cpu_time_us: end.consumed.cpu_time_us,
            peak_memory_bytes: end.consumed.peak_memory_bytes,
        };
        Some(self.finish(outcome, files, usage))
    }

    /// Takes the output until the attempt is over.
    fn watch(&mut self, started: &dyn Fn()) -> Ending {
        loop {
            let news = self.mailbox.look();
            if news.is_started && !self.is_started {
                self.is_started = true;
                started();
            }
            if let Some(ending) = news.ending {
                return ending;
            }
            for (number, is_readable) in self.wait().into_iter().enumerate() {
                if is_readable {
                    self.take(number);
                }
            }
        }
    }

    /// Waits for news or for output, and says which streams have some.
    fn wait(&self) -> [bool; 2] {
        let mut descriptors = vec![PollFd::from_borrowed_fd(self.mailbox.descriptor(), PollFlags::IN)];
        let mut places = [None; 2];
        for (place, stream) in places.iter_mut().zip(&self.streams) {
            if let Some(pipe) = &stream.pipe {
                *place = Some(descriptors.len());
                descriptors.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        // A signal, or a moment without memory: it is looked at again.
        let _ = poll(&mut descriptors, None);
        let is_ready =
            |place: usize| descriptors.get(place).is_some_and(|descriptor| !descriptor.revents().is_empty());
        places.map(|place| place.is_some_and(is_ready))
    }

    /// What the streams may still bring.
    fn left_bytes(&self) -> u64 {
        let taken =
            self.streams.iter().fold(0u64, |sum, stream| sum.saturating_add(stream.capture.size_bytes()));
        self.execution.spec.output_limit_bytes.saturating_sub(taken)
    }

    /// Takes something from a stream; false when there is nothing to be taken now or any more.
    fn take(&mut self, number: usize) -> bool {
        let most = usize::try_from(self.left_bytes()).unwrap_or(usize::MAX).min(READ_BYTES);
        let Some(stream) = self.streams.get_mut(number) else { return false };
        let Some(pipe) = &stream.pipe else { return false };
        let taken = if most == 0 || self.trouble.is_some() {
            crate::capture::look(pipe)
        } else {
            stream.capture.take(pipe, most, self.directory)
        };
        match taken {
            Ok(Taken::Bytes(0)) => {
                let message = over_limit(self.execution);
                self.halt(Halted::OutputLimit, Outcome::OutputLimit, message);
                self.pass_over(number)
            }
            Ok(Taken::Bytes(_)) => true,
            Ok(Taken::Nothing) => false,
            Ok(Taken::End) => {
                stream.pipe = None;
                false
            }
            Err(error) => {
                let message = format!("the output cannot be kept: {error}");
                self.halt(Halted::OutputLost, Outcome::Infrastructure, message);
                self.pass_over(number)
            }
        }
    }

    /// Empties a pipe of what is not kept, so that nobody waits for room in it. Once all are dead, nobody does.
    fn pass_over(&mut self, number: usize) -> bool {
        let Some(stream) = self.streams.get_mut(number) else { return false };
        let has_some = |pipe: &OwnedFd| matches!(crate::capture::look(pipe), Ok(Taken::Bytes(_)));
        let Some(pipe) = stream.pipe.as_ref().filter(|pipe| !self.is_over && has_some(pipe)) else {
            stream.pipe = None;
            return false;
        };
        let mut buffer = vec![0; READ_BYTES];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(1..) | Err(Errno::INTR) => {}
            _ => stream.pipe = None,
        }
        stream.pipe.is_some()
    }

    /// Has the attempt stopped because of its output; the first reason stays. The shim knows it before anything is thrown
    /// away, so that another worker would too.
    fn halt(&mut self, why: Halted, outcome: Outcome, message: String) {
        if self.trouble.is_none() {
            self.trouble = Some((outcome, message));
            self.ground.keeper.say(ToShim::Halt(self.execution.attempt, why, false));
        }
    }

    /// Puts together how it ended and what it left.
    fn finish(
        self,
        (outcome, message): (Outcome, String),
        files: Vec<CapturedFile>,
        usage: Usage,
    ) -> Executed {
        let sandbox = self.level;
        let [stdout, stderr] = self.streams.map(|stream| stream.capture.finish(self.directory));
        let executed = |stdout, stderr, files, outcome, message: &str| Executed {
            attempt: self.execution.attempt,
            outcome,
            sandbox,
            usage_source: UsageSource::ResourceUsage,
            usage,
            stdout,
            stderr,
            files,
            message: bounded(message),
        };
        match (stdout, stderr) {
            (Ok(stdout), Ok(stderr)) => executed(stdout, stderr, files, outcome, &message),
            (Err(error), _) | (_, Err(error)) => {
                let message = format!("the kept output was changed by somebody: {error}");
                let nothing = || Captured::Inline(Vec::new());
                executed(nothing(), nothing(), Vec::new(), Outcome::OutputRefused, &message)
            }
        }
    }

    fn outcome(&mut self, end: End) -> (Outcome, String) {
        if let Some(why) = end.halted {
            return self.explain_halt(why);
        }
        if let Some(trouble) = self.trouble.take() {
            return trouble;
        }
        let status = match end.last {
            Some(Report::Ended(status, _)) => ExitStatus::from_raw(status),
            Some(Report::NotStarted(why, error)) => return self.explain_not_started(why, error),
            Some(Report::Failed(stage, error, position)) => {
                return (Outcome::Infrastructure, self.explain_failure(stage, error, position));
            }
            Some(Report::Probed(_) | Report::Started) | None => {
                let message = "the attempt's guard ended without saying how the program did";
                return (Outcome::Infrastructure, message.to_owned());
            }
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

    fn explain_halt(&mut self, why: Halted) -> (Outcome, String) {
        let (outcome, message) = match why {
            Halted::Cancelled => stopped(StopReason::Cancelled),
            Halted::Infrastructure => stopped(StopReason::Infrastructure),
            Halted::LeaseEnded => (Outcome::Infrastructure, "the worker's lease ended"),
            Halted::TimedOut => {
                let timeout_ms = self.wishes.timeout_ms();
                let message = format!("the task ran longer than its time-out of {timeout_ms} ms");
                return (Outcome::TimedOut, message);
            }
            Halted::OutputLimit => return (Outcome::OutputLimit, over_limit(self.execution)),
            Halted::OutputLost => {
                let message = || (Outcome::Infrastructure, "the output could not be kept".to_owned());
                return self.trouble.take().unwrap_or_else(message);
            }
        };
        (outcome, message.to_owned())
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

    fn collect(&self, complete: bool) -> Result<Vec<CapturedFile>, (Outcome, String)> {
        collect(self.directory, &self.execution.spec.outputs, self.left_bytes(), complete).map_err(
            |refusal| match refusal {
                Refusal::Refused(message) => (Outcome::OutputRefused, message),
                Refusal::OverLimit => (Outcome::OutputLimit, over_limit(self.execution)),
                Refusal::Failed(error) => {
                    (Outcome::Infrastructure, format!("the outputs cannot be read: {error}"))
                }
            },
        )
    }
}

fn over_limit(execution: &Execution) -> String {
    format!("the output is larger than its limit of {} bytes", execution.spec.output_limit_bytes)
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
