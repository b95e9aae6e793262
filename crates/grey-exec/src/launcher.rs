//! The launcher: the binary re-executed, which stays and forks the guard of every attempt.
//!
//! It gets a guard's descriptors and which fence to make, never a plan: what one task is told passes through no process
//! that another task's guard is forked from.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Signal;

use crate::guard::{self, Failure, Owner};
use crate::plan::{Fence, LAUNCH_ARGUMENT, Stage};
use crate::system::{self, Forked, SingleThread};

/// The exit status of a launcher that was started by hand or could not do its work.
const FAILED: i32 = 125;
/// The descriptors of a request.
const DESCRIPTORS: usize = 3;

/// Becomes a launcher and never returns if the process was started as one; otherwise does nothing.
///
/// It must be the first statement of the `main` of every binary that is given as `ProcessOptions::launcher`: a launcher
/// may have one thread only, and must not open anything that a task could inherit.
pub fn run_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == LAUNCH_ARGUMENT) {
        run()
    }
}

/// What the worker asks for: a guard with these ends of an attempt's socket and pipes.
pub(crate) struct Request {
    pub(crate) fence: Fence,
    pub(crate) channel: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

fn run() -> ! {
    let begun = SingleThread::verify().and_then(|thread| settle(&thread).map(|control| (thread, control)));
    let (thread, control) = begun.unwrap_or_else(|error| {
        eprintln!("grey: {LAUNCH_ARGUMENT} is for Grey itself: {error}");
        system::exit_now(FAILED)
    });
    serve(&thread, control)
}

/// Takes the worker's socket and leaves everything else behind that could reach a guard.
fn settle(thread: &SingleThread) -> io::Result<OwnedFd> {
    let control = system::take_channel(thread)?;
    // The socket counts as closed only when no guard has a copy of it.
    system::become_standard(File::open("/dev/null")?.as_fd(), 0)?;
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    std::env::set_current_dir("/")?;
    Ok(control)
}

/// Forks a guard for every request until the worker is gone. At a fork no descriptor of another attempt is open.
fn serve(thread: &SingleThread, control: OwnedFd) -> ! {
    let owner = Owner::of_this_process();
    loop {
        match receive(&control) {
            Ok(Some(request)) => match system::fork_sibling(thread, request.fence) {
                Ok(Forked::Child) => {
                    drop(control);
                    guard::attend(thread, owner, request)
                }
                Ok(Forked::Parent(_)) => {}
                Err(error) => {
                    let failure = Failure { stage: Stage::Fence, error, position: 0 };
                    guard::send(&request.channel, failure.report());
                }
            },
            // The worker is the only one who writes here; what it did not write whole, nobody waits for.
            Err(Errno::INTR | Errno::INVAL) => {}
            Ok(None) | Err(_) => system::exit_now(0),
        }
    }
}

/// The next request. `None` is a closed socket: the worker is gone.
fn receive(control: &OwnedFd) -> rustix::io::Result<Option<Request>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut number = [0];
    let message = rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut number)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let found = [descriptors.next(), descriptors.next(), descriptors.next()];
    let [number] = number;
    match (message.bytes, Fence::of(number), found) {
        (0, _, [None, ..]) => Ok(None),
        (1, Some(fence), [Some(channel), Some(stdout), Some(stderr)]) => {
            Ok(Some(Request { fence, channel, stdout, stderr }))
        }
        _ => Err(Errno::INVAL),
    }
}
