//! Retrying without making things worse: a budget over all calls, and growing waits with jitter for one.

use crate::chance::Chance;
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// What a retry costs, in thousandths of a token.
const RETRY_MILLI: u64 = 1_000;

/// What a [`RetryBudget`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryBudgetOptions {
    /// The most tokens, and those at the beginning; 1 to 1,000,000.
    pub tokens: u64,
    /// What a success gives back, in thousandths of a token; 0 to 1,000.
    pub returned_milli: u64,
}

impl Default for RetryBudgetOptions {
    fn default() -> RetryBudgetOptions {
        RetryBudgetOptions { tokens: 100, returned_milli: 100 }
    }
}

impl RetryBudgetOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("tokens", self.tokens, 1..=1_000_000);
        checks.within("returned_milli", self.returned_milli, 0..=1_000);
        checks.finish("retry budget")
    }
}

/// Bounds how many of all calls are retries: a retry costs a token, a success gives a tenth of one back. When everything fails,
/// retries end, and the load is at most a tenth above what it would be without them (after gRPC's retry throttling, proposal A6).
///
/// ```
/// use grey_health::{RetryBudget, RetryBudgetOptions};
///
/// let mut budget = RetryBudget::new(RetryBudgetOptions { tokens: 1, returned_milli: 100 })?;
/// assert!(budget.take());
/// assert!(!budget.take());
/// (0..10).for_each(|_| budget.succeeded());
/// assert!(budget.take());
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryBudget {
    options: RetryBudgetOptions,
    left_milli: u64,
}

impl RetryBudget {
    /// A full one.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: RetryBudgetOptions) -> Result<RetryBudget, HealthError> {
        options.validate()?;
        let left_milli = options.tokens * RETRY_MILLI;
        Ok(RetryBudget { options, left_milli })
    }

    /// Pays for a retry, and says whether there was a token: if not, the failure is final.
    pub fn take(&mut self) -> bool {
        let left = self.left_milli.checked_sub(RETRY_MILLI);
        self.left_milli = left.unwrap_or(self.left_milli);
        left.is_some()
    }

    /// A call has succeeded.
    pub fn succeeded(&mut self) {
        let most = self.options.tokens * RETRY_MILLI;
        self.left_milli = self.left_milli.saturating_add(self.options.returned_milli).min(most);
    }
}

/// What a [`Backoff`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The longest wait before the first retry, in milliseconds; it doubles with each further one; 1 to `longest_ms`.
    pub first_ms: u64,
    /// The longest wait before any retry, in milliseconds; 1 to a day.
    pub longest_ms: u64,
}

impl Default for BackoffOptions {
    fn default() -> BackoffOptions {
        BackoffOptions { first_ms: 100, longest_ms: 30_000 }
    }
}

impl BackoffOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        checks.within("first_ms", self.first_ms, 1..=self.longest_ms);
        checks.within("longest_ms", self.longest_ms, 1..=limits::OPTION_MS);
        checks.finish("back-off")
    }
}

/// The waits between the attempts of one call: evenly from nothing to a ceiling that doubles ("full jitter": Brooker, "Exponential
/// backoff and jitter", 2015). A retry-after is kept to, and the jitter comes on top of it, or all who were told the same would
/// come back together. It sets no end to retrying: the call's deadline and the [`RetryBudget`] do.
///
/// ```
/// use grey_health::{Backoff, BackoffOptions, Chance};
///
/// let mut chance = Chance::seeded(1);
/// let mut backoff = Backoff::new(BackoffOptions::default())?;
/// assert!(backoff.wait_ms(None, &mut chance) <= 100);
/// assert!((5_000..=5_200).contains(&backoff.wait_ms(Some(5_000), &mut chance)));
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    options: BackoffOptions,
    ceiling_ms: u64,
}

impl Backoff {
    /// Before the first retry.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: BackoffOptions) -> Result<Backoff, HealthError> {
        options.validate()?;
        let ceiling_ms = options.first_ms;
        Ok(Backoff { options, ceiling_ms })
    }

    /// How long to wait before the next retry, in milliseconds.
    pub fn wait_ms(&mut self, retry_after_ms: Option<u64>, chance: &mut Chance) -> u64 {
        let jitter_ms = chance.at_most(self.ceiling_ms);
        self.ceiling_ms = self.ceiling_ms.saturating_mul(2).min(self.options.longest_ms);
        retry_after_ms.unwrap_or(0).saturating_add(jitter_ms)
    }

    /// It worked: the next failure is a first one again.
    pub fn reset(&mut self) {
        self.ceiling_ms = self.options.first_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_cap_and_start_again_after_a_success() {
        let mut longest = [0; 6];
        for seed in 0..2_000 {
            let mut chance = Chance::seeded(seed);
            let mut backoff = Backoff::new(BackoffOptions { first_ms: 100, longest_ms: 500 }).unwrap();
            for (retry, longest) in longest.iter_mut().enumerate() {
                if retry == 5 {
                    backoff.reset();
                }
                *longest = backoff.wait_ms(None, &mut chance).max(*longest);
            }
        }
        let ceilings = [100, 200, 400, 500, 500, 100];
        for (longest, ceiling) in longest.iter().zip(ceilings) {
            assert!(*longest <= ceiling && *longest > ceiling * 95 / 100, "{longest} of {ceiling}");
        }
    }

    #[test]
    fn a_retry_after_is_kept_to_and_spread() {
        let mut met = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut backoff = Backoff::new(BackoffOptions::default()).unwrap();
            met.insert(backoff.wait_ms(Some(7_000), &mut Chance::seeded(seed)));
        }
        assert!(met.len() > 30 && met.iter().all(|wait| (7_000..=7_100).contains(wait)));
        let mut backoff = Backoff::new(BackoffOptions::default()).unwrap();
        assert_eq!(backoff.wait_ms(Some(u64::MAX), &mut Chance::seeded(1)), u64::MAX);
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        RetryBudgetOptions::default().validate().unwrap();
        BackoffOptions::default().validate().unwrap();
        let wrong = RetryBudgetOptions { tokens: 0, returned_milli: 1_001 };
        assert!(
            matches!(wrong.validate(), Err(HealthError::Options { problems, .. }) if problems.len() == 2)
        );
        let wrong = BackoffOptions { first_ms: 5, longest_ms: 0 };
        assert!(
            matches!(wrong.validate(), Err(HealthError::Options { problems, .. }) if problems.len() == 2)
        );
    }
}
