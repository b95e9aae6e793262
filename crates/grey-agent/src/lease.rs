//! How a worker keeps its lease: heartbeats, answers that do not come, and the end.
//!
//! Once a lease has ended, an answer does not bring it back: only a new announcement does, which is an entry of the log and so
//! cannot come from a leader of before.

use std::collections::VecDeque;

use grey_health::{HealthError, LeaseOptions, WorkerLease};

/// How a worker keeps its lease.
#[derive(Debug, Clone)]
pub struct KeepOptions {
    /// What both sides go by.
    pub lease: LeaseOptions,
    /// Between two heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long an answer is waited for before the worker announces itself anew, in milliseconds.
    pub answer_ms: u64,
}

impl Default for KeepOptions {
    /// A heartbeat every half second, and answers awaited for one.
    fn default() -> KeepOptions {
        KeepOptions { lease: LeaseOptions::default(), heartbeat_ms: 500, answer_ms: 1_000 }
    }
}

/// A lease as the agent keeps it.
#[derive(Debug)]
pub(crate) struct Lease {
    options: KeepOptions,
    lease: WorkerLease,
    /// The latest announcement among what was sent, and when that was.
    announcement: (u64, u64),
    /// Heartbeats of this session without an answer: number and time of sending.
    unanswered: VecDeque<(u64, u64)>,
    last_sent_us: u64,
    over: bool,
}

impl Lease {
    pub(crate) fn new(options: KeepOptions) -> Result<Lease, HealthError> {
        Ok(Lease {
            lease: WorkerLease::new(&options.lease)?,
            options,
            announcement: (0, 0),
            unanswered: VecDeque::new(),
            last_sent_us: 0,
            over: true,
        })
    }

    /// Whether nothing may run.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// The worker announces itself now.
    pub(crate) fn announced(&mut self, now_us: u64) {
        self.announcement = (self.lease.sending(now_us / 1_000), now_us);
        self.unanswered.clear();
    }

    /// The announcement was accepted.
    pub(crate) fn granted(&mut self, now_us: u64) {
        self.lease.acknowledged(self.announcement.0);
        self.last_sent_us = now_us;
        self.over = !self.lease.is_held(now_us / 1_000);
    }

    /// A heartbeat was answered.
    pub(crate) fn heard(&mut self, number: u64) {
        while self.unanswered.front().is_some_and(|(sent, _)| *sent <= number) {
            self.unanswered.pop_front();
        }
        if !self.over {
            self.lease.acknowledged(number);
        }
    }

    /// The number of the heartbeat that is due now, if one is.
    pub(crate) fn heartbeat(&mut self, now_us: u64) -> Option<u64> {
        if now_us.saturating_sub(self.last_sent_us) < self.options.heartbeat_ms * 1_000 {
            return None;
        }
        let number = self.lease.sending(now_us / 1_000);
        self.last_sent_us = now_us;
        self.unanswered.push_back((number, now_us));
        Some(number)
    }

    /// Whether something that was sent at a time has waited too long for its answer.
    pub(crate) fn is_late(&self, sent_us: u64, now_us: u64) -> bool {
        now_us.saturating_sub(sent_us) > self.options.answer_ms * 1_000
    }

    /// Whether the announcement has.
    pub(crate) fn announcement_is_late(&self, now_us: u64) -> bool {
        self.is_late(self.announcement.1, now_us)
    }

    /// Whether a heartbeat has. That bounds how many are waited for.
    pub(crate) fn heartbeat_is_late(&self, now_us: u64) -> bool {
        self.unanswered.front().is_some_and(|(_, sent_us)| self.is_late(*sent_us, now_us))
    }

    /// Ends the lease when its time is up; whether it ended just now.
    pub(crate) fn expire(&mut self, now_us: u64) -> bool {
        let ended = self.lease.ended(now_us / 1_000);
        self.over |= ended;
        ended
    }

    /// When the lease ends, in microseconds of the agent's clock; nothing once it has.
    pub(crate) fn end_us(&self) -> Option<u64> {
        self.lease.ends_ms().map(|end_ms| end_ms.saturating_mul(1_000))
    }

    /// When the next heartbeat is due.
    pub(crate) fn heartbeat_us(&self) -> u64 {
        self.last_sent_us.saturating_add(self.options.heartbeat_ms * 1_000)
    }

    /// When the announcement has waited too long for its answer.
    pub(crate) fn announcement_late_us(&self) -> u64 {
        self.announcement.1.saturating_add(self.options.answer_ms * 1_000 + 1)
    }
}
