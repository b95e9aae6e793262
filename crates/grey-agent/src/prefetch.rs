//! How many attempts a worker asks for: what it completes in the time that a report takes to bring new work.

use grey_core::limits;

/// A window of measurement, in microseconds.
const WINDOW_US: u64 = 50_000;
/// The loop is taken for at least this long, in microseconds: a faster one is not measured reliably.
const SHORTEST_LOOP_US: u64 = 2_000;

/// Measures rate and loop, in integers.
#[derive(Debug)]
pub(crate) struct Prefetch {
    parallel: u32,
    window_us: u64,
    completed: u64,
    rate_per_s: u64,
    loop_us: u64,
    slots: u32,
}

impl Prefetch {
    /// `parallel` attempts may run at once.
    pub(crate) fn new(parallel: u32) -> Prefetch {
        let slots = parallel.saturating_mul(2).clamp(1, limits::WORKER_SLOTS);
        Prefetch { parallel, window_us: 0, completed: 0, rate_per_s: 0, loop_us: SHORTEST_LOOP_US, slots }
    }

    /// Attempts to be held from now on.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    pub(crate) fn completed(&mut self, count: u64) {
        self.completed = self.completed.saturating_add(count);
    }

    /// A report was answered after `took_us`.
    pub(crate) fn answered(&mut self, took_us: u64) {
        self.loop_us = (self.loop_us.saturating_mul(3).saturating_add(took_us) / 4).max(SHORTEST_LOOP_US);
    }

    pub(crate) fn elapse(&mut self, elapsed_us: u64) {
        self.window_us = self.window_us.saturating_add(elapsed_us);
        if self.window_us < WINDOW_US {
            return;
        }
        let measured = self.completed.saturating_mul(1_000_000) / self.window_us.max(1);
        // Rising at once and falling by half, so that a pause of one window does not starve the next.
        self.rate_per_s = measured.max(self.rate_per_s.midpoint(measured));
        (self.window_us, self.completed) = (0, 0);
        // Twice, because the next report leaves when the one before has been answered.
        let ahead = self.rate_per_s.saturating_mul(self.loop_us) / 500_000;
        let wanted = u64::from(self.parallel.saturating_mul(2)).saturating_add(ahead);
        self.slots = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, limits::WORKER_SLOTS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_rate_times_loop_and_stay_bounded() {
        let mut prefetch = Prefetch::new(2);
        assert_eq!(prefetch.slots(), 4, "at the start twice what may run");
        for _ in 0..100 {
            prefetch.answered(10_000);
        }
        prefetch.completed(1_000);
        prefetch.elapse(50_000);
        // 20,000 a second over a loop of 10 ms, twice, and what may run, twice.
        assert!((380..=404).contains(&prefetch.slots()), "{}", prefetch.slots());
        for _ in 0..20 {
            prefetch.elapse(50_000);
        }
        assert_eq!(prefetch.slots(), 4, "an idle worker asks for little");
        prefetch.completed(u64::MAX / 2_000_000);
        prefetch.elapse(50_000);
        assert_eq!(prefetch.slots(), limits::WORKER_SLOTS);
    }
}
