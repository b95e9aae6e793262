//! How fast attempts end, over the last minute: what an estimate of a wait is made from.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use grey_core::{AttemptId, Epoch, TaskId};

/// The most attempts whose beginning is remembered. A worker says so of those that run for longer than a moment.
const STARTS_KEPT: usize = 65_536;

/// Over how many seconds it is taken.
const WINDOW_S: usize = 60;

#[derive(Debug)]
struct Buckets {
    /// Ended in each second, by the second's number modulo the window.
    ended: [u64; WINDOW_S],
    /// The second that was written last.
    last_s: u64,
}

/// A rolling count.
#[derive(Debug)]
pub(crate) struct EndRate {
    begun: Instant,
    buckets: Mutex<Buckets>,
    /// When attempts were said to have started that have not ended.
    starts: Mutex<BTreeMap<AttemptId, Instant>>,
}

impl Buckets {
    /// Empties the seconds in which nothing ended.
    fn advance(&mut self, now_s: u64) {
        let passed = now_s.saturating_sub(self.last_s).min(WINDOW_S as u64);
        for second in 1..=passed {
            let place = (self.last_s + second) % WINDOW_S as u64;
            if let Some(bucket) = self.ended.get_mut(place as usize) {
                *bucket = 0;
            }
        }
        self.last_s = now_s.max(self.last_s);
    }
}

impl EndRate {
    pub(crate) fn new() -> EndRate {
        let buckets = Buckets { ended: [0; WINDOW_S], last_s: 0 };
        EndRate { begun: Instant::now(), buckets: Mutex::new(buckets), starts: Mutex::default() }
    }

    /// Attempts have started.
    pub(crate) fn started(&self, attempts: &[AttemptId]) {
        let Ok(mut starts) = self.starts.lock() else { return };
        let now = Instant::now();
        for attempt in attempts {
            starts.entry(*attempt).or_insert(now);
        }
        // What was never heard of again is mostly old, and the oldest tasks have the lowest numbers.
        while starts.len() > STARTS_KEPT {
            starts.pop_first();
        }
    }

    /// A task's attempt has ended.
    pub(crate) fn ended(&self, task: TaskId) {
        let Ok(mut starts) = self.starts.lock() else { return };
        while let Some(attempt) = starts.range(AttemptId { task, epoch: Epoch(0) }..).next() {
            let attempt = *attempt.0;
            if attempt.task != task {
                break;
            }
            starts.remove(&attempt);
        }
    }

    /// For how long attempts have run so far, in milliseconds, as far as that is known.
    pub(crate) fn running_times_ms(&self, attempts: &[AttemptId]) -> Vec<u64> {
        let Ok(starts) = self.starts.lock() else { return Vec::new() };
        let known = attempts.iter().filter_map(|attempt| starts.get(attempt));
        known.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)).collect()
    }

    /// Counts attempts that ended now.
    pub(crate) fn count(&self, ended: u64) {
        self.count_at(self.begun.elapsed().as_secs(), ended);
    }

    fn count_at(&self, now_s: u64, ended: u64) {
        let Ok(mut buckets) = self.buckets.lock() else { return };
        buckets.advance(now_s);
        if let Some(bucket) = buckets.ended.get_mut((now_s % WINDOW_S as u64) as usize) {
            *bucket += ended;
        }
    }

    /// How many attempts ended within the last minute.
    pub(crate) fn in_last_minute(&self) -> u64 {
        self.ended_at(self.begun.elapsed().as_secs())
    }

    fn ended_at(&self, now_s: u64) -> u64 {
        let Ok(mut buckets) = self.buckets.lock() else { return 0 };
        buckets.advance(now_s);
        buckets.ended.iter().sum()
    }

    /// How long so many attempts take to end at the rate of the last minute, in milliseconds; `None` when none ended.
    pub(crate) fn time_for_ms(&self, attempts: u64) -> Option<u64> {
        self.time_at(self.begun.elapsed().as_secs(), attempts)
    }

    fn time_at(&self, now_s: u64, attempts: u64) -> Option<u64> {
        let ended = self.ended_at(now_s);
        let window_ms = (now_s + 1).min(WINDOW_S as u64) * 1_000;
        attempts.saturating_mul(window_ms).checked_div(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_minute_and_none_when_nothing_ended() {
        let rate = EndRate::new();
        assert_eq!(rate.time_at(0, 10), None);
        (0..20).for_each(|second| rate.count_at(second, 5));
        // A hundred in twenty seconds: ten more take two.
        assert_eq!(rate.time_at(19, 10), Some(2_000));
        assert_eq!((rate.ended_at(19), rate.ended_at(59)), (100, 100));
        assert_eq!(rate.time_at(59, 10), Some(6_000));
        assert_eq!(rate.time_at(69, 10), Some(12_000), "half of them are out of the window");
        assert_eq!((rate.time_at(500, 10), rate.ended_at(500)), (None, 0));
        rate.count_at(500, 1);
        assert_eq!(rate.time_at(500, 1), Some(60_000));
    }
}
