//! Leases: a worker stops its attempts before the leader gives them to somebody else.
//!
//! The worker counts its lease from when it *sent* a heartbeat that was acknowledged, the leader counts its grant from when
//! it *received* one, which is never earlier. With a length L and clocks of which none runs faster than another by more than
//! the drift d, a worker's belief ends before L·(1+d) of the leader's time has passed since the grant. Readings are rounded down to
//! milliseconds, which may hide one more; so the leader waits ⌈L·(1+d)⌉ + 1 (after Gray and Cheriton: "Leases", SOSP 1989).
//!
//! A leader that was deposed may not know it yet. It grants only while a quorum confirmed it at most U ago by its own clock; its
//! successor was elected after that confirmation, and waits for ⌈U·(1+d)⌉ + 1 more before it calls anybody gone.

use std::collections::BTreeMap;

use crate::detector::Observer;
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// What both sides of a lease go by; the same on every node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// How long a worker may go on without an acknowledgement, by its own clock, in milliseconds; 10 to a day.
    pub length_ms: u64,
    /// By how much one node's clock may run faster than another's, in thousandths; 0 to 500.
    pub drift_permille: u64,
    /// A leader whom no quorum confirmed for longer than this grants nothing, in milliseconds; 1 to a day.
    pub unconfirmed_ms: u64,
    /// A leader whose ticks lie further apart than this was late, in milliseconds; 1 to `length_ms`.
    pub longest_tick_gap_ms: u64,
    /// The most workers; 1 to [`limits::PEERS`].
    pub workers: usize,
}

impl Default for LeaseOptions {
    fn default() -> LeaseOptions {
        LeaseOptions {
            length_ms: 3_000,
            drift_permille: 10,
            unconfirmed_ms: 1_000,
            longest_tick_gap_ms: 1_000,
            workers: 10_000,
        }
    }
}

impl LeaseOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("length_ms", self.length_ms, 10..=limits::OPTION_MS);
        checks.within("drift_permille", self.drift_permille, 0..=500);
        checks.within("unconfirmed_ms", self.unconfirmed_ms, 1..=limits::OPTION_MS);
        checks.within("longest_tick_gap_ms", self.longest_tick_gap_ms, 1..=self.length_ms);
        checks.within("workers", self.workers as u64, 1..=limits::PEERS as u64);
        checks.finish("lease")
    }

    /// What another node's clock may have counted, at most, while one counted so many milliseconds, with the rounding.
    fn stretched_ms(&self, length_ms: u64) -> u64 {
        length_ms.saturating_mul(1_000 + self.drift_permille).div_ceil(1_000).saturating_add(1)
    }

    /// How long after a grant a leader waits before a worker is gone, in milliseconds.
    pub fn period_ms(&self) -> u64 {
        self.stretched_ms(self.length_ms)
    }

    /// How long a new leader waits before a worker is gone that it has not heard, in milliseconds.
    pub fn failover_period_ms(&self) -> u64 {
        self.period_ms().saturating_add(self.stretched_ms(self.unconfirmed_ms))
    }
}

/// The worker's side.
///
/// ```
/// use grey_health::{LeaseOptions, WorkerLease};
///
/// let mut lease = WorkerLease::new(&LeaseOptions { length_ms: 1_000, ..LeaseOptions::default() })?;
/// let heartbeat = lease.sending(0);
/// lease.acknowledged(heartbeat);
/// assert!(lease.is_held(999));
/// assert!(lease.ended(1_000), "kill the attempts");
/// assert!(!lease.ended(1_001), "they were killed");
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLease {
    length_ms: u64,
    /// When heartbeats were sent that may still be acknowledged, by their numbers.
    sent_ms: BTreeMap<u64, u64>,
    next: u64,
    ends_ms: u64,
    /// Whether there is a lease whose end was not told yet.
    running: bool,
}

impl WorkerLease {
    /// No lease yet.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: &LeaseOptions) -> Result<WorkerLease, HealthError> {
        options.validate()?;
        let length_ms = options.length_ms;
        Ok(WorkerLease { length_ms, sent_ms: BTreeMap::new(), next: 1, ends_ms: 0, running: false })
    }

    /// A heartbeat is about to be sent; call it before the bytes leave. Returns the number that the heartbeat carries and its
    /// acknowledgement repeats.
    pub fn sending(&mut self, now_ms: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sent_ms.insert(number, now_ms);
        while self.sent_ms.len() > limits::HEARTBEATS_IN_FLIGHT {
            self.sent_ms.pop_first();
        }
        number
    }

    /// A leader has acknowledged a heartbeat: the lease goes on from when that one was sent. An unknown number changes
    /// nothing.
    pub fn acknowledged(&mut self, number: u64) {
        let Some(sent_ms) = self.sent_ms.get(&number).copied() else { return };
        self.sent_ms = self.sent_ms.split_off(&(number + 1));
        self.ends_ms = self.ends_ms.max(sent_ms.saturating_add(self.length_ms));
        self.running = true;
    }

    /// Whether attempts may run.
    pub fn is_held(&self, now_ms: u64) -> bool {
        now_ms < self.ends_ms
    }

    /// When the lease ends if nothing is acknowledged any more; `None` when it has ended. Wake up then.
    pub fn ends_ms(&self) -> Option<u64> {
        self.running.then_some(self.ends_ms)
    }

    /// Whether the lease has ended since this was asked last: then every attempt is to be killed.
    pub fn ended(&mut self, now_ms: u64) -> bool {
        let ended = self.running && !self.is_held(now_ms);
        self.running &= !ended;
        ended
    }
}

/// What a leader makes of a worker's heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The lease goes on: acknowledge the heartbeat.
    Given,
    /// No quorum has confirmed this leader lately: do not acknowledge.
    Unconfirmed,
    /// The worker was called gone, and has to register again: do not acknowledge.
    Gone,
    /// The worker is not registered: do not acknowledge.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Granted {
    until_ms: u64,
    gone: bool,
}

/// The leader's side. It is made anew whenever a node becomes leader.
///
/// ```
/// use grey_health::{Grant, LeaderLeases, LeaseOptions};
///
/// let options = LeaseOptions { length_ms: 1_000, drift_permille: 10, ..LeaseOptions::default() };
/// let mut leases = LeaderLeases::new(options, ["w1"], 0)?;
/// assert_eq!(leases.received(&"w1", 300), Grant::Given);
/// leases.quorum_confirmed(900);
/// # for now_ms in (0..2_000).step_by(500) { leases.tick(now_ms); }
/// // After a failover it waits for what an earlier leader may have granted.
/// assert!(leases.tick(2_021).is_empty());
/// assert_eq!(leases.tick(2_022), ["w1"]);
/// assert_eq!(leases.received(&"w1", 2_100), Grant::Gone);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderLeases<K> {
    options: LeaseOptions,
    observer: Observer,
    confirmed_ms: u64,
    workers: BTreeMap<K, Granted>,
}

impl<K: Ord + Clone> LeaderLeases<K> {
    /// This node has just become leader, so a quorum has confirmed it. The workers are those of the state; an earlier leader may
    /// have granted to any of them.
    ///
    /// # Errors
    /// [`HealthError::Options`], and [`HealthError::Full`] when there are more workers than the bound.
    pub fn new(
        options: LeaseOptions,
        workers: impl IntoIterator<Item = K>,
        now_ms: u64,
    ) -> Result<LeaderLeases<K>, HealthError> {
        options.validate()?;
        let until_ms = now_ms.saturating_add(options.failover_period_ms());
        let workers: BTreeMap<K, Granted> =
            workers.into_iter().map(|worker| (worker, Granted { until_ms, gone: false })).collect();
        if workers.len() > options.workers {
            return Err(HealthError::Full { part: "lease", limit: options.workers });
        }
        let observer = Observer::new(options.longest_tick_gap_ms, now_ms);
        Ok(LeaderLeases { options, observer, confirmed_ms: now_ms, workers })
    }

    /// A worker has registered, or has done so again after it was gone. What it was granted before is not shortened.
    ///
    /// # Errors
    /// [`HealthError::Full`] at the bound of workers.
    pub fn register(&mut self, worker: K, now_ms: u64) -> Result<(), HealthError> {
        if !self.workers.contains_key(&worker) && self.workers.len() >= self.options.workers {
            return Err(HealthError::Full { part: "lease", limit: self.options.workers });
        }
        let period_ms = self.options.period_ms();
        let granted = self.workers.entry(worker).or_insert(Granted { until_ms: 0, gone: false });
        granted.until_ms = granted.until_ms.max(now_ms.saturating_add(period_ms));
        granted.gone = false;
        Ok(())
    }

    /// Forgets a worker, and says whether it was known.
    pub fn remove(&mut self, worker: &K) -> bool {
        self.workers.remove(worker).is_some()
    }

    /// A quorum has confirmed that this node led when it asked, at that time: the time of the question, not of the answers.
    pub fn quorum_confirmed(&mut self, asked_ms: u64) {
        self.confirmed_ms = self.confirmed_ms.max(asked_ms);
    }

    /// A worker's heartbeat has come.
    pub fn received(&mut self, worker: &K, now_ms: u64) -> Grant {
        let confirmed = now_ms.saturating_sub(self.confirmed_ms) <= self.options.unconfirmed_ms;
        let period_ms = self.options.period_ms();
        match self.workers.get_mut(worker) {
            None => Grant::Unknown,
            Some(granted) if granted.gone => Grant::Gone,
            Some(_) if !confirmed => Grant::Unconfirmed,
            Some(granted) => {
                granted.until_ms = granted.until_ms.max(now_ms.saturating_add(period_ms));
                Grant::Given
            }
        }
    }

    /// Returns the workers that are gone from now on, in order: none of them believes in its lease any more, and none is
    /// granted another before it registers again. A tick that comes late calls nobody gone and waits for another period, since
    /// heartbeats may have queued up.
    pub fn tick(&mut self, now_ms: u64) -> Vec<K> {
        let late = self.observer.tick(now_ms);
        let again_ms = now_ms.saturating_add(self.options.period_ms());
        let mut gone = Vec::new();
        for (key, granted) in self.workers.iter_mut().filter(|(_, granted)| !granted.gone) {
            if late {
                granted.until_ms = granted.until_ms.max(again_ms);
            } else if now_ms >= granted.until_ms {
                granted.gone = true;
                gone.push(key.clone());
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LeaseOptions {
        LeaseOptions {
            length_ms: 1_000,
            drift_permille: 100,
            unconfirmed_ms: 300,
            longest_tick_gap_ms: 500,
            workers: 2,
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending_and_not_from_the_answer() {
        let mut lease = WorkerLease::new(&options()).unwrap();
        assert!(!lease.is_held(0) && lease.ends_ms().is_none() && !lease.ended(0));
        let (first, second) = (lease.sending(100), lease.sending(600));
        lease.acknowledged(first);
        assert_eq!(lease.ends_ms(), Some(1_100));
        lease.acknowledged(second);
        assert_eq!(lease.ends_ms(), Some(1_600));
        lease.acknowledged(first);
        lease.acknowledged(77);
        assert_eq!(lease.ends_ms(), Some(1_600), "an old or unknown answer renews nothing");
        assert!(!lease.ended(1_599) && lease.ended(1_600) && !lease.ended(1_600));
        let third = lease.sending(2_000);
        lease.acknowledged(third);
        assert!(lease.is_held(2_999) && lease.ended(3_000));
    }

    #[test]
    fn a_worker_remembers_a_bounded_number_of_heartbeats() {
        let mut lease = WorkerLease::new(&options()).unwrap();
        let oldest = lease.sending(0);
        (0..limits::HEARTBEATS_IN_FLIGHT).for_each(|_| assert!(lease.sending(500) > oldest));
        lease.acknowledged(oldest);
        assert_eq!(lease.ends_ms(), None);
    }

    fn ticked(leases: &mut LeaderLeases<u8>, from_ms: u64, to_ms: u64) -> Option<u64> {
        (from_ms..=to_ms).find(|now_ms| !leases.tick(*now_ms).is_empty())
    }

    #[test]
    fn a_worker_is_gone_when_lease_and_drift_have_passed() {
        let mut leases = LeaderLeases::new(options(), [], 0).unwrap();
        leases.register(1, 0).unwrap();
        assert_eq!(ticked(&mut leases, 0, 200), None);
        assert_eq!(leases.received(&1, 200), Grant::Given);
        assert_eq!(ticked(&mut leases, 200, 5_000), Some(200 + 1_100 + 1));
        assert_eq!(leases.received(&1, 1_400), Grant::Gone);
        leases.register(1, 1_400).unwrap();
        leases.quorum_confirmed(1_400);
        assert_eq!(leases.received(&1, 1_400), Grant::Given);
        assert_eq!(leases.received(&2, 1_400), Grant::Unknown);
    }

    #[test]
    fn a_leader_without_a_quorum_grants_nothing() {
        let mut leases = LeaderLeases::new(options(), [1], 0).unwrap();
        assert_eq!(leases.received(&1, 300), Grant::Given);
        assert_eq!(leases.received(&1, 301), Grant::Unconfirmed);
        leases.quorum_confirmed(250);
        assert_eq!(leases.received(&1, 550), Grant::Given);
    }

    #[test]
    fn a_new_leader_waits_for_what_the_last_one_may_have_granted() {
        let mut leases = LeaderLeases::new(options(), [1], 50).unwrap();
        assert_eq!(ticked(&mut leases, 50, 5_000), Some(50 + 1_101 + 331));
    }

    #[test]
    fn a_leader_that_was_late_calls_nobody_gone() {
        let mut leases = LeaderLeases::new(options(), [1], 0).unwrap();
        assert_eq!(leases.tick(9_000), [0u8; 0]);
        assert_eq!(ticked(&mut leases, 9_000, 12_000), Some(9_000 + 1_101));
    }

    #[test]
    fn options_and_workers_are_bounded() {
        LeaseOptions::default().validate().unwrap();
        let wrong = LeaseOptions { length_ms: 0, drift_permille: 501, ..options() };
        let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["length_ms", "drift_permille", "longest_tick_gap_ms"]);
        let full = HealthError::Full { part: "lease", limit: 2 };
        assert_eq!(LeaderLeases::new(options(), [1, 2, 3], 0).unwrap_err(), full);
        let mut leases = LeaderLeases::new(options(), [1, 2], 0).unwrap();
        assert_eq!(leases.register(3, 0).unwrap_err(), full);
    }
}
