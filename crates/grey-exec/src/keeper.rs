//! The worker's side of the shim: finding it or starting it, and another one when it is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use grey_core::AttemptId;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::clock::timespec;
use crate::connection::{Connection, Found, Outgoing};
use crate::datagram::{self, Got};
use crate::door;
use crate::mailbox::Mailbox;
use crate::message::{FromShim, HELD_DESCRIPTORS, MESSAGE_BYTES, PROTOCOL, ToShim};
use crate::plan::LAUNCH_ARGUMENT;
use crate::record;

/// How long a shim may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps a shim.
pub(crate) struct Keeper {
    path: PathBuf,
    /// Where a shim listens that outlives its worker; nothing where it ends with it.
    door: Option<PathBuf>,
    current: Mutex<Option<Connection>>,
    /// Held by whoever starts a shim, which takes time: what concerns the one that there is does not wait for that.
    starting: Mutex<()>,
    /// When the lease ends, in nanoseconds of the boot clock; zero where there is none.
    lease_ns: Arc<AtomicU64>,
}

/// A shim that was reached, and the process that it is.
struct Reached {
    socket: OwnedFd,
    process: OwnedFd,
    /// Whoever started it waits for it.
    child: Option<Child>,
}

impl Keeper {
    /// Goes on with the shim that listens at `door`, if there is one that holds something, and starts one otherwise.
    /// Returns what it holds.
    pub(crate) fn open(path: PathBuf, door: Option<PathBuf>) -> io::Result<(Keeper, Vec<Found>)> {
        let (current, starting) = (Mutex::default(), Mutex::default());
        let keeper = Keeper { path, door, current, starting, lease_ns: Arc::default() };
        let found = match keeper.door.as_deref().map(find).transpose()?.flatten() {
            Some((reached, found)) => {
                let lease_ns = keeper.lease_ns.clone();
                let connection = Connection::new(reached.socket, reached.process, None, lease_ns, &found)?;
                *keeper.current() = Some(connection);
                found
            }
            None => {
                keeper.connection()?;
                Vec::new()
            }
        };
        Ok((keeper, found))
    }

    /// The binary that is the shim.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> io::Result<Connection> {
        let usable = || self.current().clone().filter(|connection| !connection.is_lost());
        if let Some(connection) = usable() {
            return Ok(connection);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have started one meanwhile.
        if let Some(connection) = usable() {
            return Ok(connection);
        }
        let (mut reached, is_listening) = match &self.door {
            None => (start_alone(&self.path)?, false),
            Some(door) => (start_behind(&self.path, door)?, true),
        };
        if let Err(error) = greet(&reached).and_then(|(_, found)| none_of(&found)) {
            // Whatever it is, it is no shim.
            let _ = rustix::process::pidfd_send_signal(&reached.process, Signal::KILL);
            if let Some(child) = &mut reached.child {
                let _ = child.wait();
            }
            return Err(error);
        }
        let child = reached.child.map(|child| (child, is_listening));
        let lease_ns = self.lease_ns.clone();
        let connection = Connection::new(reached.socket, reached.process, child, lease_ns, &[])?;
        let mut current = self.current();
        // A lease that is told from now on is told to this one.
        let lease_ns = self.lease_ns.load(Ordering::SeqCst);
        if lease_ns > 0 {
            connection.say(ToShim::Lease(lease_ns));
        }
        *current = Some(connection.clone());
        Ok(connection)
    }

    /// Asks for a guard for an attempt, whose mailbox gets to know what comes of it.
    pub(crate) fn start(
        &self,
        attempt: AttemptId,
        start: Outgoing,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<()> {
        self.connection()?.start(attempt, start, mailbox);
        Ok(())
    }

    /// Tells the shim that there is, if there is one, something about an attempt.
    pub(crate) fn say(&self, message: ToShim) {
        if let Some(connection) = &*self.current() {
            connection.say(message);
        }
    }

    /// Has the shim forget an attempt, and end it first should it run.
    pub(crate) fn release(&self, attempt: AttemptId) {
        if let Some(connection) = &*self.current() {
            connection.release(attempt);
        }
    }

    /// The lease ends then, in nanoseconds of the boot clock.
    pub(crate) fn hold_until(&self, until_ns: u64) {
        let current = self.current();
        self.lease_ns.store(until_ns, Ordering::SeqCst);
        if let Some(connection) = &*current {
            connection.say(ToShim::Lease(until_ns));
        }
    }

    /// Whether what runs goes on without this worker.
    pub(crate) fn outlives(&self) -> bool {
        self.door.is_some()
    }

    /// Leaves the shim, and everything that it holds, to the next worker.
    pub(crate) fn leave(&self) {
        if let Some(connection) = self.current().take() {
            connection.leave();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.leave();
    }
}

fn none_of(found: &[Found]) -> io::Result<()> {
    if found.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other("it holds attempts though it has just begun"))
    }
}

/// The shim behind a door with what it holds, if there is one of our protocol that holds something. Any other is gone then.
fn find(door: &Path) -> io::Result<Option<(Reached, Vec<Found>)>> {
    let Some(socket) = door::dial(door, PATIENCE)? else { return Ok(None) };
    let peer = socket_peercred(&socket)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(io::Error::other(format!("{} belongs to user {}", door.display(), peer.uid.as_raw())));
    }
    // It is the process that answers, if it does: then the number meant it already.
    let Ok(process) = rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()) else { return Ok(None) };
    let reached = Reached { socket, process, child: None };
    match greet(&reached) {
        Ok((PROTOCOL, found)) if !found.is_empty() => return Ok(Some((reached, found))),
        Ok((PROTOCOL, _)) => {
            // It may be of an earlier version: a new one costs nothing now.
            let _ = datagram::send(&reached.socket, &ToShim::End.encode(), &[]);
        }
        // One of another protocol ends by itself.
        Ok(_) => {}
        // One that does not answer is stuck, or none.
        Err(error) => {
            tracing::warn!(%error, "a shim does not answer, and is killed with what it holds");
            let _ = rustix::process::pidfd_send_signal(&reached.process, Signal::KILL);
        }
    }
    end(&reached);
    Ok(None)
}

/// Waits until a shim has ended that is to, and kills it where that takes too long.
fn end(reached: &Reached) {
    let mut descriptors = [PollFd::new(&reached.process, PollFlags::IN)];
    let patience = timespec(u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX));
    if !poll(&mut descriptors, Some(&patience)).is_ok_and(|ready| ready > 0) {
        tracing::warn!("a shim that is of no use does not end, and is killed");
        let _ = rustix::process::pidfd_send_signal(&reached.process, Signal::KILL);
        let _ = poll(&mut descriptors, Some(&patience));
    }
}

/// Says hello, and takes in what the shim holds: its protocol, and its attempts where that is ours.
fn greet(reached: &Reached) -> io::Result<(u32, Vec<Found>)> {
    let lost = || io::Error::other("it ended instead of answering");
    let sent = datagram::send(&reached.socket, &ToShim::Hello(PROTOCOL).encode(), &[]);
    if sent != datagram::Sent::Whole {
        return Err(lost());
    }
    let deadline = Instant::now().checked_add(PATIENCE);
    let (mut protocol, mut found) = (None, Vec::<Found>::new());
    loop {
        let mut bytes = [0; MESSAGE_BYTES];
        let (message, descriptors) = match datagram::receive(&reached.socket, &mut bytes) {
            Got::Message(length, descriptors) => {
                (FromShim::decode(bytes.get(..length).unwrap_or_default()), descriptors)
            }
            Got::End => return Err(lost()),
            Got::Nothing => {
                let left = deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    return Err(io::Error::other("it does not answer within 10 seconds"));
                }
                let left = timespec(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
                let mut descriptors = [PollFd::new(&reached.socket, PollFlags::IN)];
                let _ = poll(&mut descriptors, Some(&left));
                continue;
            }
        };
        match (message, protocol) {
            (Some(FromShim::Hello(PROTOCOL, _)), None) => protocol = Some(PROTOCOL),
            (Some(FromShim::Hello(other, _)), None) => return Ok((other, Vec::new())),
            (Some(FromShim::Held(attempt, fence, clock)), Some(_)) => {
                let descriptors = <[OwnedFd; HELD_DESCRIPTORS]>::try_from(descriptors).ok();
                let (record, pipes) = descriptors.map_or((Vec::new(), None), |[plan, stdout, stderr]| {
                    (record::read(plan).unwrap_or_default(), Some([stdout, stderr]))
                });
                found.push(Found {
                    attempt,
                    fence,
                    clock,
                    record,
                    pipes,
                    mailbox: Arc::new(Mailbox::new()?),
                });
            }
            (Some(FromShim::Started(attempt)), Some(_)) => {
                if let Some(one) = found.iter().find(|one| one.attempt == attempt) {
                    one.mailbox.started(descriptors.into_iter().next());
                }
            }
            (Some(FromShim::Ended(attempt, end)), Some(_)) => {
                let ending = crate::mailbox::Ending::Ended(end);
                found.iter().filter(|one| one.attempt == attempt).for_each(|one| one.mailbox.over(ending));
            }
            (Some(FromShim::Ready), Some(protocol)) => return Ok((protocol, found)),
            _ => return Err(io::Error::other("it says what no shim says")),
        }
    }
}

/// A shim that ends with this worker.
fn start_alone(path: &Path) -> io::Result<Reached> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (child, process) = spawn(path, theirs)?;
    Ok(Reached { socket: ours, process, child: Some(child) })
}

/// A shim that listens for the workers that come after this one.
fn start_behind(path: &Path, door: &Path) -> io::Result<Reached> {
    let listener = door::make(door)?;
    let (mut child, process) = spawn(path, listener)?;
    match door::dial(door, PATIENCE) {
        Ok(Some(socket)) => Ok(Reached { socket, process, child: Some(child) }),
        other => {
            let _ = child.kill();
            let _ = child.wait();
            Err(other.err().unwrap_or_else(|| io::Error::other("it does not listen")))
        }
    }
}

fn spawn(path: &Path, socket: OwnedFd) -> io::Result<(Child, OwnedFd)> {
    let mut child = Command::new(path)
        .arg(LAUNCH_ARGUMENT)
        .env_clear()
        .stdin(socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = Pid::from_child(&child);
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok((child, process)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}
