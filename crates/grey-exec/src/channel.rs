//! The worker's end of the socket to a guard.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use crate::keeper::{Keeper, PATIENCE};
use crate::launcher::Request;
use crate::plan::{CONTROL_KILL, Consumed, Fence, Plan, REPORT_BYTES, Report};
use crate::system;

/// How often a launcher that ended before it made a guard is replaced for the sake of one attempt.
const LAUNCHERS: usize = 3;

/// A guard that was given its plan.
pub(crate) struct Channel {
    fence: Fence,
    /// The guard, a child of this process, until it is waited for. `None` also where none could be forked.
    guard: Option<Pid>,
    socket: UnixStream,
    inbox: Vec<u8>,
    output: Option<[OwnedFd; 2]>,
}

/// What came from the guard.
pub(crate) enum Received {
    /// A report.
    Report(Report),
    /// Nothing yet.
    Nothing,
    /// Nothing more: the guard has ended, or speaks no language of ours.
    End,
}

impl Channel {
    /// Has a guard forked and gives it its plan. A launcher that is lost meanwhile is replaced: nothing has run then.
    pub(crate) fn open(keeper: &Keeper, plan: &Plan) -> io::Result<Channel> {
        let bytes = plan.encode();
        let mut error = None;
        for _ in 0..LAUNCHERS {
            match Channel::try_open(keeper, plan.fence, &bytes) {
                Ok(Some(channel)) => return Ok(channel),
                Ok(None) => {}
                // Out of descriptors or memory: another launcher would not change that.
                Err(failed) if failed.kind() != io::ErrorKind::BrokenPipe => return Err(failed),
                Err(failed) => error = Some(failed),
            }
        }
        Err(error.unwrap_or_else(|| io::Error::other("it ended before it made a process, several times")))
    }

    /// `None` when the launcher was lost before it forked.
    fn try_open(keeper: &Keeper, fence: Fence, plan: &[u8]) -> io::Result<Option<Channel>> {
        let (socket, theirs) = UnixStream::pair()?;
        // The kernel says who speaks, by the process id that counts here.
        set_socket_passcred(&socket, true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let request = Request { fence, channel: theirs.into(), stdout: their_stdout, stderr: their_stderr };
        let control = keeper.ask(&request)?;
        // From here on the other ends are the guard's alone, so that they close with it.
        drop(request);
        let mut channel =
            Channel { fence, guard: None, socket, inbox: Vec::new(), output: Some([stdout, stderr]) };
        let written = channel.socket.write_all(plan);
        let mut heard = channel.hear_first_word();
        if heard.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // Without a launcher that is stuck no guard comes late: either one is there, or the socket closes now.
            keeper.discard(&control);
            heard = channel.hear_first_word();
        }
        // Who closes a socket with something unread in it resets it: the plan was not read, so nothing runs by it.
        let is_unread = heard.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        if !is_unread {
            heard?;
        }
        if channel.inbox.is_empty() {
            keeper.discard(&control);
            return Ok(None);
        }
        match written {
            // A guard that ended early says why by its reports, so a broken pipe is no error here.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(Some(channel)),
        }
    }

    /// Waits for the first report and notes which process it is from; nothing is in the inbox when none will come.
    fn hear_first_word(&mut self) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut buffer = [0; REPORT_BYTES];
        while self.inbox.len() < REPORT_BYTES {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let left = REPORT_BYTES.saturating_sub(self.inbox.len());
            let piece = buffer.get_mut(..left).unwrap_or_default();
            let count = match rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(piece)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => continue,
                // Something unread on the other side resets the connection.
                Err(Errno::CONNRESET) => 0,
                result => result?.bytes,
            };
            let speaker = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
                _ => None,
            });
            if count == 0 {
                break;
            }
            self.inbox.extend_from_slice(buffer.get(..count).unwrap_or_default());
            // Of a fence that cannot be made the launcher itself speaks.
            if self.inbox.first_chunk().and_then(Report::decode) == Some(Report::Begun) {
                self.guard = speaker;
            }
        }
        Ok(())
    }

    /// The program's standard output and standard error, once.
    pub(crate) fn take_output(&mut self) -> Option<[OwnedFd; 2]> {
        self.output.take()
    }

    /// From now on [`Channel::receive`] does not wait.
    pub(crate) fn do_not_wait(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Sends a control byte. A guard that is gone does not need it any more.
    pub(crate) fn control(&mut self, byte: u8) {
        let _ = self.socket.write(&[byte]);
    }

    /// The next report.
    pub(crate) fn receive(&mut self) -> Received {
        loop {
            if let Some(bytes) = self.inbox.first_chunk::<REPORT_BYTES>() {
                let report = Report::decode(bytes);
                self.inbox.drain(..REPORT_BYTES);
                return report.map_or(Received::End, Received::Report);
            }
            let mut buffer = [0; 16 * REPORT_BYTES];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Received::End,
                Ok(count) => self.inbox.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Received::Nothing,
                    // A guard that left something unread resets the connection.
                    _ => return Received::End,
                },
            }
        }
    }

    /// What to poll for the next report.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends every process of the attempt: with the first process of its namespace, or by the guard that knows them.
    pub(crate) fn kill_all(&mut self) {
        self.control(CONTROL_KILL);
        if self.fence != Fence::Subreaper {
            self.kill();
        }
    }

    /// Kills the guard; in a namespace every other process dies with it.
    pub(crate) fn kill(&mut self) {
        if let Some(guard) = self.guard {
            // It is a child that was not waited for, so the number still means it, even if it has ended.
            let _ = rustix::process::kill_process(guard, Signal::KILL);
        }
    }

    /// Waits for the guard's end, which in a namespace comes after every other process's, and says what all of them used.
    pub(crate) fn wait(&mut self) -> io::Result<Consumed> {
        match self.guard.take().map(system::wait_for) {
            // Whoever ignores SIGCHLD waits as well, and learns nothing.
            Some(Err(error)) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
                Ok(Consumed::default())
            }
            Some(result) => result,
            None => Ok(Consumed::default()),
        }
    }
}

impl Drop for Channel {
    /// Without it an early return would leave a zombie.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if self.guard.is_some() {
            self.kill_all();
            let _ = self.wait();
        }
    }
}
