//! Refusing new work while what was accepted waits too long.

use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// What a [`DelayShedder`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShedOptions {
    /// The queueing delay that is always acceptable, in milliseconds; 1 to a day.
    pub target_ms: u64,
    /// A delay above the target for so long is no burst any more, in milliseconds; `target_ms` to a day.
    pub interval_ms: u64,
    /// The longest time after which a refused one is told to try again, in milliseconds; 1 to a day.
    pub longest_retry_after_ms: u64,
}

impl Default for ShedOptions {
    fn default() -> ShedOptions {
        ShedOptions { target_ms: 50, interval_ms: 500, longest_retry_after_ms: 30_000 }
    }
}

impl ShedOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("target_ms", self.target_ms, 1..=limits::OPTION_MS);
        checks.within("interval_ms", self.interval_ms, self.target_ms..=limits::OPTION_MS);
        checks.within("longest_retry_after_ms", self.longest_retry_after_ms, 1..=limits::OPTION_MS);
        checks.finish("shedding")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// When the first of the delays above the target was observed.
    since_ms: u64,
    /// When the latest was.
    until_ms: u64,
    /// The latest delay.
    delay_ms: u64,
}

/// Says when new work is to be refused because of the delay of what is queued. The question is the one of CoDel (Nichols and
/// Jacobson: "Controlling queue delay", ACM Queue 2012): has the *minimum* of the delay over an interval stayed above the target? A burst
/// drains within an interval and passes; a standing queue does not.
///
/// CoDel drops packets from the queue, ever faster. Here what is queued was accepted, and is never shed; the door is closed instead:
///
/// 1. A run begins with a delay above the target, and ends with one that is not, or when none is observed for an interval.
/// 2. New work is refused while a run has lasted for at least an interval.
/// 3. It is told to come back after the part of the latest delay that is above the target: when the queue will have drained to it, if nothing
///    is added.
///
/// Observe the delay of everything that leaves the queue, and at every tick the age of the oldest in it, zero if it is empty.
///
/// ```
/// use grey_health::{DelayShedder, ShedOptions};
///
/// let mut shedder = DelayShedder::new(ShedOptions::default())?;
/// for now_ms in (0..500).step_by(100) {
///     shedder.observe(80, now_ms);
///     assert_eq!(shedder.retry_after_ms(now_ms), None);
/// }
/// shedder.observe(80, 500);
/// assert_eq!(shedder.retry_after_ms(500), Some(30));
/// shedder.observe(50, 510);
/// assert_eq!(shedder.retry_after_ms(510), None);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayShedder {
    options: ShedOptions,
    run: Option<Run>,
}

impl DelayShedder {
    /// One that has observed nothing.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: ShedOptions) -> Result<DelayShedder, HealthError> {
        options.validate()?;
        Ok(DelayShedder::of(options))
    }

    /// With options that were checked.
    pub(crate) fn of(options: ShedOptions) -> DelayShedder {
        DelayShedder { options, run: None }
    }

    /// How far the present run has gone towards closing the door, in thousandths of the interval; 1,000 when it is closed.
    pub fn standing_permille(&self, now_ms: u64) -> u64 {
        let Some(run) = self.current(now_ms) else { return 0 };
        let lasted = u128::from(now_ms.saturating_sub(run.since_ms)) * 1_000;
        let permille = lasted.checked_div(u128::from(self.options.interval_ms)).unwrap_or(1_000);
        u64::try_from(permille).unwrap_or(1_000).min(1_000)
    }

    /// Something has waited in the queue for so long, or waits there for so long.
    pub fn observe(&mut self, delay_ms: u64, now_ms: u64) {
        let since_ms = self.current(now_ms).map_or(now_ms, |run| run.since_ms);
        let above = delay_ms > self.options.target_ms;
        self.run = above.then_some(Run { since_ms, until_ms: now_ms, delay_ms });
    }

    /// Whether new work is to be refused: then when it may come back, in milliseconds; at least 1.
    pub fn retry_after_ms(&self, now_ms: u64) -> Option<u64> {
        let run = self.current(now_ms)?;
        let standing = now_ms.saturating_sub(run.since_ms) >= self.options.interval_ms;
        let above_ms = run.delay_ms.saturating_sub(self.options.target_ms).max(1);
        standing.then_some(above_ms.min(self.options.longest_retry_after_ms))
    }

    /// The latest delay, if it is above the target, in milliseconds.
    pub fn delay_ms(&self, now_ms: u64) -> Option<u64> {
        self.current(now_ms).map(|run| run.delay_ms)
    }

    /// The target, in milliseconds.
    pub fn target_ms(&self) -> u64 {
        self.options.target_ms
    }

    fn current(&self, now_ms: u64) -> Option<&Run> {
        self.run.as_ref().filter(|run| now_ms.saturating_sub(run.until_ms) <= self.options.interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_standing_queue_does_not() {
        let mut shedder = DelayShedder::new(ShedOptions::default()).unwrap();
        // Every 400 ms the queue is short for a moment: bursts.
        for now_ms in (0..4_000).step_by(10) {
            let delay_ms = if now_ms % 400 == 0 { 50 } else { 900 };
            shedder.observe(delay_ms, now_ms);
            assert_eq!(shedder.retry_after_ms(now_ms), None, "at {now_ms}");
        }
        for now_ms in (4_000..4_500).step_by(10) {
            shedder.observe(900, now_ms);
        }
        // The run has lasted since 3,610.
        assert_eq!(shedder.retry_after_ms(4_490), Some(850));
        shedder.observe(u64::MAX, 4_500);
        assert_eq!(shedder.retry_after_ms(4_500), Some(30_000));
        shedder.observe(0, 4_510);
        assert_eq!(shedder.retry_after_ms(4_510), None);
    }

    #[test]
    fn an_interval_without_an_observation_says_nothing() {
        let mut shedder = DelayShedder::new(ShedOptions::default()).unwrap();
        (0..=600).step_by(100).for_each(|now_ms| shedder.observe(900, now_ms));
        assert!(shedder.retry_after_ms(1_100).is_some());
        assert_eq!(shedder.retry_after_ms(1_101), None);
        shedder.observe(900, 1_200);
        assert_eq!(shedder.retry_after_ms(1_200), None, "it begins anew");
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        ShedOptions::default().validate().unwrap();
        let wrong =
            ShedOptions { target_ms: 0, interval_ms: limits::OPTION_MS + 1, longest_retry_after_ms: 0 };
        assert!(
            matches!(wrong.validate(), Err(HealthError::Options { problems, .. }) if problems.len() == 3)
        );
    }
}
