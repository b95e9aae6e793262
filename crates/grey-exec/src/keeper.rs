//! The worker's side of the launcher: starting it, asking it for guards, and starting another when it is gone.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::launcher::Request;
use crate::plan::LAUNCH_ARGUMENT;

/// How long a launcher may take to accept a request, or a guard to say its first word.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The socket to one life of the launcher.
pub(crate) type Control = Arc<OwnedFd>;

/// Keeps a launcher.
///
/// A thread of its own starts it: guards die with the thread that they are children of, which is the one that started
/// the launcher. It stays until the keeper is dropped, which no guard may outlive.
pub(crate) struct Keeper {
    path: PathBuf,
    current: Mutex<Option<Control>>,
    /// `None` only while the keeper is dropped.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// End the launcher that there is, if any, and start another.
    Start(Sender<io::Result<Control>>),
    /// End the launcher that there is, if any.
    End,
}

impl Keeper {
    /// Starts no launcher yet.
    pub(crate) fn new(path: PathBuf) -> io::Result<Keeper> {
        let (orders, received) = channel();
        let binary = path.clone();
        let thread = std::thread::Builder::new()
            .name("grey-launcher".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || obey(&binary, &received))?;
        Ok(Keeper { path, current: Mutex::new(None), orders: Some(orders), thread: Some(thread) })
    }

    /// The binary that is the launcher.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for a guard, and says which launcher was asked. That it was asked is no promise: it may end before it forks.
    pub(crate) fn ask(&self, request: &Request) -> io::Result<Control> {
        let control = self.control()?;
        match send(&control, request) {
            Ok(()) => Ok(control),
            Err(error) => {
                self.discard(&control);
                Err(error)
            }
        }
    }

    fn control(&self) -> io::Result<Control> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = &*current {
            return Ok(control.clone());
        }
        let (answer, answered) = channel();
        let lost = || io::Error::other("the thread that starts launchers is gone");
        self.orders.as_ref().ok_or_else(lost)?.send(Order::Start(answer)).map_err(|_| lost())?;
        let control = answered.recv().map_err(|_| lost())??;
        *current = Some(control.clone());
        Ok(control)
    }

    /// Ends the launcher behind `control`, should it still be there. The guards that it has forked live on; those that it
    /// was asked for and has not forked see their channel closed.
    pub(crate) fn discard(&self, control: &Control) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.take_if(|current| Arc::ptr_eq(current, control)).is_some() {
            tracing::warn!(launcher = %self.path.display(), "the launcher is gone or does not answer");
            // The thread lives as long as the keeper.
            let _ = self.orders.as_ref().map(|orders| orders.send(Order::End));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn obey(path: &Path, orders: &Receiver<Order>) {
    let mut child: Option<Child> = None;
    loop {
        let order = orders.recv();
        if let Some(mut child) = child.take() {
            // It may have ended already. Nobody has a use for how it ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        match order {
            Err(_) => return,
            Ok(Order::End) => {}
            Ok(Order::Start(answer)) => {
                let started = start(path).map(|(started, control)| {
                    child = Some(started);
                    control
                });
                // Who asked waits for the answer.
                let _ = answer.send(started);
            }
        }
    }
}

fn start(path: &Path) -> io::Result<(Child, Control)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
    let child = Command::new(path)
        .arg(LAUNCH_ARGUMENT)
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, Arc::new(ours)))
}

fn send(control: &OwnedFd, request: &Request) -> io::Result<()> {
    let descriptors = [request.channel.as_fd(), request.stdout.as_fd(), request.stderr.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let number = [request.fence.number()];
    loop {
        match rustix::net::sendmsg(control, &[IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(|_| ()).map_err(io::Error::from),
        }
    }
}
