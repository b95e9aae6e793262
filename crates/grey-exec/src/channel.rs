//! The worker's end of the socket to a launcher.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::plan::{LAUNCH_ARGUMENT, Plan, REPORT_BYTES, Report};

/// How long a launcher may take to read its plan, or to answer a probe.
const PATIENCE: Duration = Duration::from_secs(10);

/// A launcher that was given its plan.
///
/// The thread that starts a launcher must stay until [`Channel::wait`]: launchers die with the thread that made them.
pub(crate) struct Channel {
    child: Child,
    socket: UnixStream,
    inbox: Vec<u8>,
}

/// What came from the launcher.
pub(crate) enum Received {
    /// A report.
    Report(Report),
    /// Nothing yet.
    Nothing,
    /// Nothing more: launcher and init have ended, or speak no language of ours.
    End,
}

impl Channel {
    /// Starts a launcher and gives it its plan.
    pub(crate) fn open(launcher: &Path, plan: &Plan, output: fn() -> Stdio) -> io::Result<Channel> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(launcher)
            .arg(LAUNCH_ARGUMENT)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(output())
            .stderr(output())
            .spawn()?;
        let mut channel = Channel { child, socket: ours, inbox: Vec::new() };
        channel.socket.set_write_timeout(Some(PATIENCE))?;
        channel.socket.set_read_timeout(Some(PATIENCE))?;
        // A launcher that ended early says why by its reports, so a broken pipe is no error here.
        match channel.socket.write_all(&plan.encode()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                channel.kill();
                Err(error)
            }
            _ => Ok(channel),
        }
    }

    /// The program's output, if it was piped.
    pub(crate) fn take_output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// From now on [`Channel::receive`] does not wait.
    pub(crate) fn do_not_wait(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Sends a control byte. A launcher that is gone does not need it any more.
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
                    // A launcher that left something unread resets the connection.
                    _ => return Received::End,
                },
            }
        }
    }

    /// What to poll for the next report.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Kills the launcher; its children die with it.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }

    /// Waits for the launcher's end.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        self.child.wait().map(|_| ())
    }
}

impl Drop for Channel {
    /// Without it an early return would leave a zombie. The launcher that lost its socket ends by itself.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}
