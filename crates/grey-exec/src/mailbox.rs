//! What the thread of an attempt is told by whoever listens to the shim.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::clock::timespec;
use crate::message::End;

/// How an attempt is over for its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It has ended.
    Ended(End),
    /// The shim is gone, and the attempt with it.
    Lost,
    /// The attempt goes on, and the next worker will see to it.
    Left,
}

/// What has been told so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct News {
    /// Whether the program runs, or did.
    pub(crate) is_started: bool,
    /// How it is over, once it is.
    pub(crate) ending: Option<Ending>,
}

/// Carries news to the thread of an attempt.
pub(crate) struct Mailbox {
    news: Mutex<News>,
    /// The guard, once the program runs.
    guard: Mutex<Option<OwnedFd>>,
    wake: OwnedFd,
}

impl Mailbox {
    /// No news yet.
    pub(crate) fn new() -> io::Result<Mailbox> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { news: Mutex::default(), guard: Mutex::default(), wake })
    }

    /// The program runs, under a guard.
    pub(crate) fn started(&self, guard: Option<OwnedFd>) {
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = guard;
        self.change(|news| news.is_started = true);
    }

    /// It is over; the first way stays.
    pub(crate) fn over(&self, ending: Ending) {
        self.change(|news| {
            news.ending.get_or_insert(ending);
        });
    }

    fn change(&self, change: impl FnOnce(&mut News)) {
        // No code panics between two changes that belong together, so poisoned news are whole.
        change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        // The counter can only be full when it wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Waits for the end of the guard, and with it, in a namespace, of everything else: for so long at most.
    pub(crate) fn wait_for_guard(&self, patience: Duration) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = &*guard {
            let patience = timespec(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
            let _ = poll(&mut [PollFd::new(guard, PollFlags::IN)], Some(&patience));
        }
    }

    /// What becomes readable with news.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What has been told, after which the descriptor waits for more.
    pub(crate) fn look(&self) -> News {
        let mut counter = [0; 8];
        // Nothing to read means that there is nothing new.
        let _ = rustix::io::read(&self.wake, &mut counter);
        *self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
