//! Wishes about a running attempt: to stop it, to change its time-out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use grey_agent::StopReason;
use rustix::event::{EventfdFlags, eventfd};

/// Carries wishes to the thread of an attempt.
pub(crate) struct Stop {
    /// 0 none, 1 cancelled, 2 infrastructure; it only grows.
    reason: AtomicU8,
    /// In milliseconds.
    timeout_ms: AtomicU64,
    wake: OwnedFd,
}

impl Stop {
    /// No wish to stop yet.
    pub(crate) fn new(timeout_ms: u64) -> io::Result<Stop> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop { reason: AtomicU8::new(0), timeout_ms: AtomicU64::new(timeout_ms), wake })
    }

    /// Asks for a stop.
    pub(crate) fn request(&self, reason: StopReason) {
        let number = match reason {
            StopReason::Cancelled => 1,
            StopReason::Infrastructure => 2,
        };
        self.reason.fetch_max(number, Ordering::SeqCst);
        self.wake_up();
    }

    /// Asks for another time-out, in milliseconds.
    pub(crate) fn change_timeout(&self, timeout_ms: u64) {
        self.timeout_ms.store(timeout_ms, Ordering::SeqCst);
        self.wake_up();
    }

    /// The time-out that was asked for last, in milliseconds.
    pub(crate) fn timeout_ms(&self) -> u64 {
        self.timeout_ms.load(Ordering::SeqCst)
    }

    fn wake_up(&self) {
        // The counter can only be full when it wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// What was asked for; once it was, it stays.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        match self.reason.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopReason::Cancelled),
            _ => Some(StopReason::Infrastructure),
        }
    }

    /// What becomes readable with a wish.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the descriptor wait for the next wish; [`Stop::reason`] is looked at afterwards.
    pub(crate) fn acknowledge(&self) {
        let mut counter = [0; 8];
        // Nothing to read means that there was no wish.
        let _ = rustix::io::read(&self.wake, &mut counter);
    }
}
