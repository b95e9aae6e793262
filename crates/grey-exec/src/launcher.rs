//! The start of a shim: the binary re-executed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::plan::LAUNCH_ARGUMENT;
use crate::shim;
use crate::system::{self, SingleThread};

/// The exit status of a shim that was started by hand or could not do its work.
const FAILED: i32 = 125;

/// Becomes a shim and never returns if the process was started as one; otherwise does nothing.
///
/// It must be the first statement of the `main` of every binary that is given as `ProcessOptions::launcher`: a shim may
/// have one thread only, and must not open anything that a task could inherit.
pub fn run_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == LAUNCH_ARGUMENT) {
        run()
    }
}

fn run() -> ! {
    let begun = SingleThread::verify().and_then(|thread| settle(&thread).map(|socket| (thread, socket)));
    let (thread, socket) = begun.unwrap_or_else(|error| {
        eprintln!("grey: {LAUNCH_ARGUMENT} is for Grey itself: {error}");
        system::exit_now(FAILED)
    });
    shim::serve(&thread, socket)
}

/// Takes the worker's socket and leaves everything else behind that could reach a guard.
fn settle(thread: &SingleThread) -> io::Result<OwnedFd> {
    let socket = system::take_channel(thread)?;
    system::become_standard(File::open("/dev/null")?.as_fd(), 0)?;
    // What ends the worker, a terminal or its group, does not end what outlives it.
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    Ok(socket)
}
