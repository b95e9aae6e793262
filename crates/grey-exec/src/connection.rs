//! The connection to one shim, and the thread that listens to it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grey_core::AttemptId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::Shutdown;
use rustix::process::Signal;

use crate::clock::{boot_ns, timespec};
use crate::datagram::{self, Got, Sent};
use crate::keeper::PATIENCE;
use crate::mailbox::{Ending, Mailbox};
use crate::message::{Clock, FromShim, MESSAGE_BYTES, ToShim};
use crate::plan::Fence;

/// How often a shim that holds something is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long is waited at least between two looks, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;
/// How long after the end of the lease a shim may take to have ended everything.
const AFTER_LEASE: Duration = Duration::from_millis(250);

/// An attempt that a shim holds from before this worker came.
pub(crate) struct Found {
    pub(crate) attempt: AttemptId,
    pub(crate) fence: Fence,
    pub(crate) clock: Clock,
    /// What the worker that started it wanted to have back.
    pub(crate) record: Vec<u8>,
    /// The reading ends of its streams; none where it never ran.
    pub(crate) pipes: Option<[OwnedFd; 2]>,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// A message with its descriptors.
pub(crate) struct Outgoing {
    pub(crate) message: ToShim,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The connection to one shim.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Shared>);

struct Shared {
    socket: OwnedFd,
    /// The shim.
    process: OwnedFd,
    wake: OwnedFd,
    state: Mutex<State>,
    /// Whether what runs is left to the next worker.
    leaving: AtomicBool,
    /// When the lease ends, in nanoseconds of the boot clock; zero where there is none.
    lease_ns: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    /// What found no room.
    outgoing: VecDeque<Outgoing>,
    /// Attempts that are held there and have not ended.
    mailboxes: BTreeMap<AttemptId, Arc<Mailbox>>,
    lost: bool,
}

impl Connection {
    /// Listens to a shim that was greeted and has said what it holds; `child` where this process started it, and whether it
    /// may outlive it.
    pub(crate) fn new(
        socket: OwnedFd,
        process: OwnedFd,
        child: Option<(Child, bool)>,
        lease_ns: Arc<AtomicU64>,
        found: &[Found],
    ) -> io::Result<Connection> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let running = found.iter().filter(|one| one.mailbox.look().ending.is_none());
        let mailboxes = running.map(|one| (one.attempt, one.mailbox.clone())).collect();
        let state = Mutex::new(State { mailboxes, ..State::default() });
        let leaving = AtomicBool::new(false);
        let shared = Arc::new(Shared { socket, process, wake, state, leaving, lease_ns });
        let listening = shared.clone();
        std::thread::Builder::new()
            .name("grey-shim".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || listening.listen(child))?;
        Ok(Connection(shared))
    }

    /// Whether the shim is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.state().lost
    }

    /// Asks for a guard for an attempt.
    pub(crate) fn start(&self, attempt: AttemptId, start: Outgoing, mailbox: &Arc<Mailbox>) {
        let mut state = self.0.state();
        if state.lost {
            return mailbox.over(Ending::Lost);
        }
        state.mailboxes.insert(attempt, mailbox.clone());
        self.0.send(&mut state, start);
    }

    /// Says something that needs no descriptor.
    pub(crate) fn say(&self, message: ToShim) {
        self.0.send(&mut self.0.state(), Outgoing { message, descriptors: Vec::new() });
    }

    /// Has an attempt forgotten, of which no more news is wanted.
    pub(crate) fn release(&self, attempt: AttemptId) {
        let mut state = self.0.state();
        state.mailboxes.remove(&attempt);
        let message = ToShim::Release(attempt);
        self.0.send(&mut state, Outgoing { message, descriptors: Vec::new() });
    }

    /// Leaves what runs to the next worker.
    pub(crate) fn leave(&self) {
        self.say(ToShim::End);
        self.0.leaving.store(true, Ordering::SeqCst);
        // That it is closed already is just as well.
        let _ = rustix::net::shutdown(&self.0.socket, Shutdown::Both);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends in order, without waiting: what finds no room goes when there is some.
    fn send(&self, state: &mut State, outgoing: Outgoing) {
        if state.outgoing.is_empty() && self.try_send(&outgoing) != Sent::Full {
            return;
        }
        state.outgoing.push_back(outgoing);
        // The counter can only be full when it wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn try_send(&self, outgoing: &Outgoing) -> Sent {
        let descriptors: Vec<_> = outgoing.descriptors.iter().map(AsFd::as_fd).collect();
        datagram::send(&self.socket, &outgoing.message.encode(), &descriptors)
    }

    fn flush(&self) {
        let mut state = self.state();
        while let Some(outgoing) = state.outgoing.front() {
            if self.try_send(outgoing) == Sent::Full {
                return;
            }
            state.outgoing.pop_front();
        }
    }

    fn listen(&self, child: Option<(Child, bool)>) {
        let mut asked: Option<Instant> = None;
        let mut quiet_since = Instant::now();
        while self.hear(&mut asked) {
            let (holds, waits) = {
                let state = self.state();
                (!state.mailboxes.is_empty(), !state.outgoing.is_empty())
            };
            if !holds {
                (asked, quiet_since) = (None, Instant::now());
            }
            let is_stuck = asked.is_some_and(|at| at.elapsed() >= PATIENCE);
            if is_stuck || (holds && self.outlived_lease()) {
                tracing::warn!(is_stuck, "the shim does not do its work, and is killed with what it holds");
                break;
            }
            if holds && asked.is_none() && quiet_since.elapsed() >= PING_EVERY {
                (asked, quiet_since) = (Some(Instant::now()), Instant::now());
                self.send(&mut self.state(), Outgoing { message: ToShim::Ping, descriptors: Vec::new() });
            }
            let timeout = self.look_again_in();
            let flags = if waits { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut descriptors = [PollFd::new(&self.socket, flags), PollFd::new(&self.wake, PollFlags::IN)];
            // Whatever it says, it is looked at anew.
            let _ = poll(&mut descriptors, Some(&timeout));
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut counter);
            self.flush();
        }
        self.lose(child);
    }

    /// When a ping is due, or the lease is over for so long that nothing may be left.
    fn look_again_in(&self) -> Timespec {
        let lease_ns = self.lease_ns.load(Ordering::SeqCst);
        let until_lease = lease_ns.saturating_sub(boot_ns()).saturating_add(in_ns(AFTER_LEASE));
        timespec(if lease_ns == 0 {
            in_ns(PING_EVERY)
        } else {
            until_lease.clamp(LOOK_NS, in_ns(PING_EVERY))
        })
    }

    fn outlived_lease(&self) -> bool {
        let lease_ns = self.lease_ns.load(Ordering::SeqCst);
        lease_ns != 0 && boot_ns() >= lease_ns.saturating_add(in_ns(AFTER_LEASE))
    }

    /// Takes in what the shim says; false when it says nothing more.
    fn hear(&self, asked: &mut Option<Instant>) -> bool {
        loop {
            let mut bytes = [0; MESSAGE_BYTES];
            let (message, descriptors) = match datagram::receive(&self.socket, &mut bytes) {
                Got::Message(length, descriptors) => {
                    (FromShim::decode(bytes.get(..length).unwrap_or_default()), descriptors)
                }
                Got::Nothing => return true,
                Got::End => return false,
            };
            match message {
                Some(FromShim::Started(attempt)) => {
                    let mailbox = self.state().mailboxes.get(&attempt).cloned();
                    if let Some(mailbox) = mailbox {
                        mailbox.started(descriptors.into_iter().next());
                    }
                }
                Some(FromShim::Ended(attempt, end)) => {
                    let mailbox = self.state().mailboxes.remove(&attempt);
                    mailbox.iter().for_each(|mailbox| mailbox.over(Ending::Ended(end)));
                }
                Some(FromShim::Pong) => *asked = None,
                _ => return false,
            }
        }
    }

    /// The shim is gone, or this worker goes.
    fn lose(&self, child: Option<(Child, bool)>) {
        let leaving = self.leaving.load(Ordering::SeqCst);
        let outlives = child.as_ref().is_none_or(|(_, may_outlive)| *may_outlive);
        if !leaving {
            // Who does not listen any more must not hold anything either.
            let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        }
        if let Some((mut child, _)) = child
            && !(leaving && outlives)
        {
            // Nobody has a use for how it ended.
            let _ = child.wait();
        }
        let ending = if leaving && outlives { Ending::Left } else { Ending::Lost };
        let mut state = self.state();
        if !state.mailboxes.is_empty() && !leaving {
            tracing::warn!(attempts = state.mailboxes.len(), "the shim is gone, and its attempts with it");
        }
        state.lost = true;
        state.outgoing.clear();
        std::mem::take(&mut state.mailboxes).values().for_each(|mailbox| mailbox.over(ending));
    }
}

fn in_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
