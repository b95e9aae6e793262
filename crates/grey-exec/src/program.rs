//! The last steps of a task's first process before it becomes the program.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal};

use crate::guard::Streams;
use crate::plan::{NotStarted, Plan, Stage};
use crate::system;

/// Where programs are looked for, unless the task sets a path of its own.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The length of the answer that a process writes when it could not become the program.
const ANSWER_BYTES: usize = 6;
/// The exit status of a process that could not become the program; its answer is what counts.
const NOT_RUN: i32 = 125;

/// Why the process did not become the program, with the error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartError {
    /// The program is at fault.
    NotStarted(NotStarted, i32),
    /// A step before it is.
    Failed(Stage, i32),
}

/// Restricts the process and becomes the program. Writes an answer and ends when that fails.
pub(crate) fn run(plan: &Plan, streams: &Streams, answer: &OwnedFd) -> ! {
    let error = match prepare(plan, streams) {
        Ok(()) => become_program(plan),
        Err(error) => error,
    };
    let [low, second, third, high] = match error {
        StartError::NotStarted(_, error) | StartError::Failed(_, error) => error.to_le_bytes(),
    };
    let (kind, detail) = match error {
        StartError::NotStarted(NotStarted::NotFound, _) => (0, 0),
        StartError::NotStarted(NotStarted::NotExecutable, _) => (0, 1),
        StartError::NotStarted(NotStarted::NoInterpreter, _) => (0, 2),
        StartError::Failed(stage, _) => (1, u8::try_from(stage.number()).unwrap_or(0)),
    };
    // Six bytes into an empty pipe are one write; the supervisor is its only reader.
    let _ = rustix::io::write(answer, &[kind, detail, low, second, third, high]);
    system::exit_now(NOT_RUN)
}

/// Reads what [`run`] answered; `None` is a pipe that the program's start closed.
pub(crate) fn read_answer(verdict: &OwnedFd) -> Option<StartError> {
    let mut bytes = [0; ANSWER_BYTES];
    let count = loop {
        match rustix::io::read(verdict, &mut bytes) {
            Err(Errno::INTR) => {}
            result => break result.unwrap_or(0),
        }
    };
    let [kind, detail, error @ ..] = bytes;
    let error = i32::from_le_bytes(error);
    match (count, kind, detail) {
        (ANSWER_BYTES, 0, 0) => Some(StartError::NotStarted(NotStarted::NotFound, error)),
        (ANSWER_BYTES, 0, 1) => Some(StartError::NotStarted(NotStarted::NotExecutable, error)),
        (ANSWER_BYTES, 0, 2) => Some(StartError::NotStarted(NotStarted::NoInterpreter, error)),
        (ANSWER_BYTES, _, stage) => {
            Some(StartError::Failed(Stage::of(u64::from(stage)).unwrap_or(Stage::Process), error))
        }
        _ => None,
    }
}

fn failed(stage: Stage) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError::Failed(stage, error.raw_os_error().unwrap_or(0))
}

fn prepare(plan: &Plan, streams: &Streams) -> Result<(), StartError> {
    std::env::set_current_dir(plan.work()).map_err(failed(Stage::WorkDirectory))?;
    system::become_standard(streams.stdin.as_fd(), 0).map_err(failed(Stage::Stdin))?;
    for (stream, number) in [(&streams.stdout, 1), (&streams.stderr, 2)] {
        system::become_standard(stream.as_fd(), number).map_err(failed(Stage::Process))?;
    }
    restrict().map_err(failed(Stage::Process))
}

fn restrict() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::thread::set_no_new_privs(true)?;
    system::close_on_exec()?;
    system::default_signals()
}

fn become_program(plan: &Plan) -> StartError {
    let strings = |list: &[Vec<u8>]| {
        list.iter().map(|item| CString::new(item.as_slice())).collect::<Result<Vec<_>, _>>()
    };
    let invalid = StartError::NotStarted(NotStarted::NotExecutable, Errno::INVAL.raw_os_error());
    let (Ok(arguments), Ok(environment)) = (strings(&plan.command), strings(&plan.environment)) else {
        return invalid;
    };
    let Some(program) = plan.command.first() else { return invalid };
    let mut worst = StartError::NotStarted(NotStarted::NotFound, Errno::NOENT.raw_os_error());
    for candidate in candidates(program, search_path(&plan.environment)) {
        let Ok(path) = CString::new(candidate.as_slice()) else { return invalid };
        let error = system::exec(&path, &arguments, &environment).raw_os_error().unwrap_or(0);
        match Errno::from_raw_os_error(error) {
            Errno::NOENT | Errno::NOTDIR => {
                if Path::new(OsStr::from_bytes(&candidate)).is_file() {
                    return StartError::NotStarted(NotStarted::NoInterpreter, error);
                }
            }
            // As a shell does: one that may not be executed does not hide one further on that may.
            Errno::ACCESS => worst = StartError::NotStarted(NotStarted::NotExecutable, error),
            _ => return StartError::NotStarted(NotStarted::NotExecutable, error),
        }
    }
    worst
}

fn search_path(environment: &[Vec<u8>]) -> &[u8] {
    environment.iter().find_map(|item| item.strip_prefix(b"PATH=")).unwrap_or(SEARCH_PATH.as_bytes())
}

/// The files that a program's name may mean. A name with a slash is itself; an empty part of the path is the working
/// directory, as execvp(3) has it.
fn candidates(program: &[u8], search_path: &[u8]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') || program.is_empty() {
        return vec![program.to_vec()];
    }
    search_path
        .split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            Path::new(OsStr::from_bytes(directory))
                .join(OsStr::from_bytes(program))
                .into_os_string()
                .into_vec()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_on_the_path_and_a_path_is_itself() {
        assert_eq!(candidates(b"sh", b"/bin::/usr/bin/"), [&b"/bin/sh"[..], b"./sh", b"/usr/bin/sh"]);
        assert_eq!(candidates(b"./run", b"/bin"), [b"./run"]);
        assert_eq!(candidates(b"", b"/bin"), [b""]);
    }

    #[test]
    fn the_task_decides_on_the_search_path() {
        assert_eq!(search_path(&[b"HOME=/".to_vec(), b"PATH=/opt".to_vec()]), b"/opt");
        assert_eq!(search_path(&[]), SEARCH_PATH.as_bytes());
    }
}
