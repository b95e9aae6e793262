//! How fast attempts end, over the last minute: what an estimate of a wait is made from.

use std::sync::Mutex;
use std::time::Instant;

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
        EndRate { begun: Instant::now(), buckets: Mutex::new(buckets) }
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

    /// How long so many attempts take to end at the rate of the last minute, in milliseconds; `None` when none ended.
    pub(crate) fn time_for_ms(&self, attempts: u64) -> Option<u64> {
        self.time_at(self.begun.elapsed().as_secs(), attempts)
    }

    fn time_at(&self, now_s: u64, attempts: u64) -> Option<u64> {
        let mut buckets = self.buckets.lock().ok()?;
        buckets.advance(now_s);
        let ended: u64 = buckets.ended.iter().sum();
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
        assert_eq!(rate.time_at(59, 10), Some(6_000));
        assert_eq!(rate.time_at(69, 10), Some(12_000), "half of them are out of the window");
        assert_eq!(rate.time_at(500, 10), None);
        rate.count_at(500, 1);
        assert_eq!(rate.time_at(500, 1), Some(60_000));
    }
}
