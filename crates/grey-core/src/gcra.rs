//! How many tasks a second a tenant may submit.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::rejection::Rejection;

/// A task in the unit in which a backlog is counted: then so many units go in a millisecond as tasks are allowed in a second.
const TASK_UNITS: u128 = 1_000;

/// A rate and how far it may be exceeded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Tasks a second in the long run; 1 to [`limits::RATE_TASKS_PER_SECOND`].
    pub tasks_per_second: u64,
    /// Tasks at once after a pause; 1 to [`limits::RATE_BURST_TASKS`]. A batch of more never fits.
    pub burst: u64,
}

impl RateLimit {
    /// Checks every bound.
    ///
    /// # Errors
    /// A [`Rejection::OutOfBounds`] for each that is wrong.
    pub fn validate(&self) -> Result<(), Vec<Rejection>> {
        let bounds = [
            ("tasks_per_second", self.tasks_per_second, limits::RATE_TASKS_PER_SECOND),
            ("burst", self.burst, limits::RATE_BURST_TASKS),
        ];
        let wrong: Vec<Rejection> = bounds
            .into_iter()
            .filter(|(_, given, limit)| !(1..=*limit).contains(given))
            .map(|(field, given, limit)| Rejection::OutOfBounds {
                field: field.to_owned(),
                problem: if given == 0 { "is zero" } else { "is too large" }.to_owned(),
                limit,
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Why tasks do not fit a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RateRefusal {
    /// They are more than a burst: they fit at no time.
    #[error("a batch has at most {burst} tasks under this rate; split it")]
    NeverFits {
        /// The bound.
        burst: u64,
    },
    /// They come too soon.
    #[error("too many tasks for the rate; they fit in {retry_after_ms} ms")]
    TooSoon {
        /// When they fit if nothing else is let through meanwhile, in milliseconds; at least 1.
        retry_after_ms: u64,
    },
}

/// The generic cell rate algorithm (ITU-T I.371, annex A) in its form of a leaky bucket, which lets through exactly what the form with a
/// theoretical arrival time does. The bucket is chosen because it stays in integers for every rate, and because what it keeps are
/// tasks: a changed rate or burst needs no conversion.
///
/// In no span of time are more tasks let through than the burst and what the rate allows for its length. A batch of n costs n. What is refused
/// costs nothing: a new state is returned only for what was let through, and the caller keeps it when the batch is accepted by everything
/// else as well.
///
/// ```
/// use grey_core::{Gcra, RateLimit, RateRefusal};
///
/// let limit = RateLimit { tasks_per_second: 10, burst: 3 };
/// let full = Gcra::default().charged(limit, 3, 0)?;
/// assert_eq!(full.charged(limit, 1, 99), Err(RateRefusal::TooSoon { retry_after_ms: 1 }));
/// assert!(full.charged(limit, 1, 100).is_ok());
/// assert_eq!(full.charged(limit, 4, 60_000), Err(RateRefusal::NeverFits { burst: 3 }));
/// # Ok::<(), RateRefusal>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gcra {
    /// What was let through and has not drained yet, in thousandths of a task.
    backlog_milli: u64,
    /// When that was so, in milliseconds of the time that it is asked with.
    as_of_ms: u64,
}

impl Gcra {
    /// What has not drained by now, in thousandths of a task. Time that goes backwards drains nothing.
    fn backlog_milli(&self, limit: RateLimit, now_ms: u64) -> u128 {
        let passed_ms = now_ms.saturating_sub(self.as_of_ms);
        let drained = u128::from(passed_ms) * u128::from(limit.tasks_per_second);
        u128::from(self.backlog_milli).saturating_sub(drained)
    }

    /// The state after a batch of so many tasks was let through.
    ///
    /// # Errors
    /// [`RateRefusal`]; then nothing was charged.
    pub fn charged(&self, limit: RateLimit, tasks: u64, now_ms: u64) -> Result<Gcra, RateRefusal> {
        if tasks > limit.burst {
            return Err(RateRefusal::NeverFits { burst: limit.burst });
        }
        let backlog = self.backlog_milli(limit, now_ms).saturating_add(u128::from(tasks) * TASK_UNITS);
        let beyond = backlog.saturating_sub(u128::from(limit.burst) * TASK_UNITS);
        if tasks > 0 && beyond > 0 {
            let wait_ms = beyond.div_ceil(u128::from(limit.tasks_per_second.max(1)));
            return Err(RateRefusal::TooSoon { retry_after_ms: u64::try_from(wait_ms).unwrap_or(u64::MAX) });
        }
        let backlog_milli = u64::try_from(backlog).unwrap_or(u64::MAX);
        Ok(Gcra { backlog_milli, as_of_ms: self.as_of_ms.max(now_ms) })
    }

    /// How many tasks of the burst are used, rounded up.
    pub fn used(&self, limit: RateLimit, now_ms: u64) -> u64 {
        u64::try_from(self.backlog_milli(limit, now_ms).div_ceil(TASK_UNITS)).unwrap_or(u64::MAX)
    }

    /// Whether it is as good as new, and need not be kept.
    pub fn is_drained(&self, limit: RateLimit, now_ms: u64) -> bool {
        self.backlog_milli(limit, now_ms) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { tasks_per_second: 3, burst: 5 };

    #[test]
    fn a_rate_that_is_no_whole_number_of_milliseconds_does_not_drift() {
        // Three a second: the n-th beyond the burst fits at ⌈n × 1000 / 3⌉ ms, for as long as one likes.
        let mut rate = Gcra::default().charged(LIMIT, 5, 0).unwrap();
        for number in 1..=3_000u64 {
            let fits_ms = (number * 1_000).div_ceil(3);
            assert_eq!(
                rate.charged(LIMIT, 1, fits_ms - 1),
                Err(RateRefusal::TooSoon { retry_after_ms: 1 }),
                "{number}"
            );
            rate = rate.charged(LIMIT, 1, fits_ms).unwrap();
        }
    }

    #[test]
    fn a_refusal_says_exactly_when_the_batch_fits() {
        let rate = Gcra::default().charged(LIMIT, 4, 1_000).unwrap();
        assert_eq!(rate.charged(LIMIT, 6, 1_000), Err(RateRefusal::NeverFits { burst: 5 }));
        let Err(RateRefusal::TooSoon { retry_after_ms }) = rate.charged(LIMIT, 3, 1_000) else { panic!() };
        assert_eq!(retry_after_ms, 667);
        assert!(rate.charged(LIMIT, 3, 1_000 + 666).is_err());
        assert!(rate.charged(LIMIT, 3, 1_000 + 667).is_ok());
        assert_eq!((rate.used(LIMIT, 1_000), rate.used(LIMIT, 1_334), rate.used(LIMIT, 9_000)), (4, 3, 0));
        assert!(rate.is_drained(LIMIT, 2_334) && !rate.is_drained(LIMIT, 2_333));
    }

    #[test]
    fn a_changed_limit_holds_for_what_is_left() {
        let rate = Gcra::default().charged(LIMIT, 5, 0).unwrap();
        let lower = RateLimit { tasks_per_second: 1, burst: 2 };
        assert_eq!(rate.charged(lower, 1, 0), Err(RateRefusal::TooSoon { retry_after_ms: 4_000 }));
        assert!(rate.charged(lower, 0, 0).is_ok(), "nothing fits always");
        let higher = RateLimit { tasks_per_second: 1, burst: 6 };
        assert!(rate.charged(higher, 1, 0).is_ok());
    }

    #[test]
    fn extremes_neither_overflow_nor_panic() {
        let most = RateLimit { tasks_per_second: u64::MAX, burst: u64::MAX };
        let rate = Gcra::default().charged(most, u64::MAX, u64::MAX).unwrap();
        assert!(rate.charged(most, u64::MAX, 0).is_err(), "time that goes backwards drains nothing");
        let none = RateLimit { tasks_per_second: 0, burst: 1 };
        assert!(rate.charged(none, 1, u64::MAX).is_err());
    }

    #[test]
    fn limits_name_all_that_is_wrong() {
        LIMIT.validate().unwrap();
        let wrong = RateLimit { tasks_per_second: 0, burst: u64::MAX };
        assert_eq!(wrong.validate().unwrap_err().len(), 2);
    }
}
