//! When a request is sent again, and how long to wait before that: a budget over all of a client's requests, waits with full jitter, a
//! deadline over all attempts of one. `grey-health` has the same policy for nodes; a client of the API does not import the state machine for it.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::client::ClientError;
use crate::problem::ErrorCode;

/// What a retry costs and a success gives back, in thousandths of a token.
const RETRY_MILLI: u64 = 1_000;
const RETURNED_MILLI: u64 = 100;
/// The longest pause that a level advises.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How a client sends requests again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// How many retries there may be before requests succeed again: a success gives a tenth of one back.
    pub tokens: u64,
    /// The most that is waited before the first retry, beyond what the node asked for; it doubles with every other.
    pub first_wait: Duration,
    /// The most that is waited before any, beyond what the node asked for.
    pub longest_wait: Duration,
    /// After so long no other attempt is begun.
    pub deadline: Duration,
}

impl Default for RetryOptions {
    fn default() -> RetryOptions {
        RetryOptions {
            tokens: 100,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
        }
    }
}

/// What a request may be sent again after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Only what certainly did not happen.
    Refused,
    /// Anything: a read, or a write under a key.
    Always,
    /// The same of a request that goes on where an earlier one ended: who was there a moment ago will be there again.
    Resumed,
}

#[derive(Debug)]
struct State {
    left_milli: u64,
    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
    random: u64,
    /// Until when the next write waits, because the node said that it fills up.
    slow_until: Option<Instant>,
    /// What the last attempt came to, where another one is made.
    said: Option<String>,
}

/// A client's budget and chance.
#[derive(Debug)]
pub(crate) struct Retries {
    options: Option<RetryOptions>,
    state: Mutex<State>,
}

/// The attempts of one request.
pub(crate) struct Attempts {
    begun: Instant,
    ceiling: Duration,
}

impl Retries {
    pub(crate) fn new(options: Option<RetryOptions>) -> Retries {
        // The standard library's hasher has a seed of its own in each process, which is all that jitter needs.
        let random = RandomState::new().hash_one(std::process::id());
        let left_milli = options.map_or(0, |options| options.tokens.saturating_mul(RETRY_MILLI));
        Retries { options, state: Mutex::new(State { left_milli, random, slow_until: None, said: None }) }
    }

    pub(crate) fn begin(&self) -> Attempts {
        let ceiling = self.options.map_or(Duration::ZERO, |options| options.first_wait);
        Attempts { begun: Instant::now(), ceiling }
    }

    /// How long to wait before another attempt; `None` when the failure is final.
    pub(crate) fn wait(
        &self,
        attempts: &mut Attempts,
        error: &ClientError,
        repeat: Repeat,
    ) -> Option<Duration> {
        let options = self.options?;
        let asked = worth(error, repeat)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = asked + part(&mut state.random, attempts.ceiling);
        if attempts.begun.elapsed() + wait > options.deadline {
            return None;
        }
        state.left_milli = state.left_milli.checked_sub(RETRY_MILLI)?;
        attempts.ceiling = attempts.ceiling.saturating_mul(2).min(options.longest_wait);
        state.said = Some(error.to_string());
        Some(wait)
    }

    /// After what time of a request no other attempt is begun; nothing where there is one attempt only.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.options.map(|options| options.deadline)
    }

    /// Nothing was said yet of what is asked now.
    pub(crate) fn forget_said(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).said = None;
    }

    /// What the last attempt came to, where another one is made.
    pub(crate) fn said(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).said.clone()
    }

    /// A request was answered after so long, at a level that the node named.
    pub(crate) fn succeeded(&self, took: Duration, level: Option<&str>) {
        let Some(options) = self.options else { return };
        let most = options.tokens.saturating_mul(RETRY_MILLI);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left_milli = state.left_milli.saturating_add(RETURNED_MILLI).min(most);
        state.slow_until = pause(took, level).map(|pause| Instant::now() + pause);
    }

    /// How long a write waits, because the node said that it fills up.
    pub(crate) fn pause(&self) -> Duration {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.slow_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

/// Half the rate at a warning, a tenth when it is critical, nothing for the longest pause when it is blocked.
fn pause(took: Duration, level: Option<&str>) -> Option<Duration> {
    match level? {
        "warning" => Some(took.min(LONGEST_PAUSE)),
        "critical" => Some(took.saturating_mul(9).min(LONGEST_PAUSE)),
        "blocked" => Some(LONGEST_PAUSE),
        _ => None,
    }
}

/// Whether another attempt makes sense, and after what time the node wants it.
fn worth(error: &ClientError, repeat: Repeat) -> Option<Duration> {
    match error {
        ClientError::Refused(problem) => {
            let asked = problem.retry_after_ms.map(Duration::from_millis);
            match problem.code {
                ErrorCode::Overloaded
                | ErrorCode::RateExceeded
                | ErrorCode::QueueFull
                | ErrorCode::Unavailable => asked,
                ErrorCode::OutcomeUnknown if repeat != Repeat::Refused => asked,
                // Whoever sends had nothing to send for a while.
                ErrorCode::RequestTimeout if repeat == Repeat::Resumed => Some(Duration::ZERO),
                _ => None,
            }
        }
        ClientError::Broken { .. } if repeat != Repeat::Refused => Some(Duration::ZERO),
        ClientError::Unreachable { .. } if repeat == Repeat::Resumed => Some(Duration::ZERO),
        // Nobody is there: whoever starts a cluster, or knows another, decides.
        ClientError::Broken { .. } | ClientError::Unreachable { .. } | ClientError::Unreadable { .. } => None,
    }
}

/// A part of a time by chance, from nothing to all of it ("full jitter": Brooker, "Exponential backoff and jitter", 2015).
fn part(random: &mut u64, of: Duration) -> Duration {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let most_us = of.as_micros();
    let drawn_us = (u128::from(mixed) * (most_us + 1)) >> 64;
    Duration::from_micros(u64::try_from(drawn_us).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::problem::Problem;

    fn refused(code: ErrorCode, retry_after_ms: Option<u64>) -> ClientError {
        let mut problem = Problem::new(code, "no");
        problem.retry_after_ms = retry_after_ms;
        ClientError::Refused(Box::new(problem))
    }

    fn broken() -> ClientError {
        ClientError::Broken { address: String::new(), reason: String::new() }
    }

    #[test]
    fn what_certainly_did_not_happen_is_sent_again_and_what_may_have_only_where_that_does_no_harm() {
        use Repeat::{Always, Refused};
        let second = Some(Duration::from_secs(1));
        for (error, repeat, expected) in [
            (refused(ErrorCode::Overloaded, Some(1_000)), Refused, second),
            (refused(ErrorCode::RateExceeded, Some(1_000)), Refused, second),
            (refused(ErrorCode::Unavailable, Some(1_000)), Refused, second),
            (refused(ErrorCode::OutcomeUnknown, Some(1_000)), Refused, None),
            (refused(ErrorCode::OutcomeUnknown, Some(1_000)), Always, second),
            (refused(ErrorCode::BurstExceeded, None), Always, None),
            (refused(ErrorCode::QueueFull, None), Always, None),
            (refused(ErrorCode::InvalidRequest, Some(1_000)), Always, None),
            (broken(), Refused, None),
            (broken(), Always, Some(Duration::ZERO)),
        ] {
            assert_eq!(worth(&error, repeat), expected, "{error:?} {repeat:?}");
        }
    }

    #[test]
    fn retry_after_is_kept_to_and_the_jitter_comes_on_top() {
        let retries = Retries::new(Some(RetryOptions::default()));
        let mut attempts = retries.begin();
        for most_ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let wait =
                retries.wait(&mut attempts, &refused(ErrorCode::Overloaded, Some(2_000)), Repeat::Refused);
            let beyond = wait.unwrap() - Duration::from_secs(2);
            assert!(beyond <= Duration::from_millis(most_ms), "{beyond:?}");
        }
    }

    #[test]
    fn the_budget_ends_retries_and_successes_give_a_tenth_back() {
        let options = RetryOptions { tokens: 3, ..RetryOptions::default() };
        let retries = Retries::new(Some(options));
        let wait =
            |retries: &Retries| retries.wait(&mut retries.begin(), &broken(), Repeat::Always).is_some();
        assert_eq!(
            [wait(&retries), wait(&retries), wait(&retries), wait(&retries)],
            [true, true, true, false]
        );
        (0..10).for_each(|_| retries.succeeded(Duration::ZERO, None));
        assert_eq!([wait(&retries), wait(&retries)], [true, false]);
        assert!(!wait(&Retries::new(None)));
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let options = RetryOptions { deadline: Duration::from_secs(1), ..RetryOptions::default() };
        let retries = Retries::new(Some(options));
        let late = refused(ErrorCode::Overloaded, Some(1_001));
        assert_eq!(retries.wait(&mut retries.begin(), &late, Repeat::Always), None);
    }

    #[test]
    fn a_writer_slows_down_as_the_level_rises() {
        let took = Duration::from_millis(100);
        assert_eq!(pause(took, None), None);
        assert_eq!(pause(took, Some("warning")), Some(took));
        assert_eq!(pause(took, Some("critical")), Some(took * 9));
        assert_eq!(pause(took, Some("blocked")), Some(LONGEST_PAUSE));
        let retries = Retries::new(Some(RetryOptions::default()));
        retries.succeeded(Duration::from_secs(9), Some("warning"));
        assert!(retries.pause() > Duration::from_secs(1));
        retries.succeeded(Duration::from_secs(9), None);
        assert_eq!(retries.pause(), Duration::ZERO);
    }
}
