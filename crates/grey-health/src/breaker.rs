//! A circuit breaker: whoever keeps failing is left alone for a while, and then tried with care.

use std::collections::{BTreeMap, VecDeque};

use crate::chance::Chance;
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;

/// What a [`CircuitBreaker`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerOptions {
    /// How many calls are remembered; 1 to [`limits::BREAKER_CALLS`].
    pub window: usize,
    /// With fewer calls than this in the window it does not open; 1 to `window`.
    pub least_calls: usize,
    /// It opens when at least so many of the calls in the window failed, in thousandths; 1 to 1,000.
    pub failed_permille: u64,
    /// How long it stays open, in milliseconds; 1 to a day.
    pub open_ms: u64,
    /// That time is shortened or lengthened by chance by at most this, in milliseconds, so that not everybody comes back at once;
    /// 0 to `open_ms`.
    pub jitter_ms: u64,
    /// How many probes are under way at once while it is half open; 1 to [`limits::BREAKER_CALLS`].
    pub probes: usize,
    /// A probe without an answer for so long has failed, in milliseconds; 1 to a day.
    pub probe_timeout_ms: u64,
    /// So many probes have to succeed before it closes; 1 to [`limits::BREAKER_CALLS`].
    pub successes: usize,
}

impl Default for BreakerOptions {
    fn default() -> BreakerOptions {
        BreakerOptions {
            window: 20,
            least_calls: 10,
            failed_permille: 500,
            open_ms: 30_000,
            jitter_ms: 6_000,
            probes: 2,
            probe_timeout_ms: 10_000,
            successes: 3,
        }
    }
}

impl BreakerOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        let calls = 1..=limits::BREAKER_CALLS as u64;
        checks.within("window", self.window as u64, calls.clone());
        checks.within("least_calls", self.least_calls as u64, 1..=self.window as u64);
        checks.within("failed_permille", self.failed_permille, 1..=1_000);
        checks.within("open_ms", self.open_ms, 1..=limits::OPTION_MS);
        checks.within("jitter_ms", self.jitter_ms, 0..=self.open_ms);
        checks.within("probes", self.probes as u64, calls.clone());
        checks.within("probe_timeout_ms", self.probe_timeout_ms, 1..=limits::OPTION_MS);
        checks.within("successes", self.successes as u64, calls);
        checks.finish("circuit breaker")
    }
}

/// How a call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// It was answered as it should be.
    Succeeded,
    /// It failed, or its answer did not come in time.
    Failed,
    /// It was refused by a quota or for load: the other side works, so this is neither.
    Refused,
}

/// A call that was admitted. It is not to be copied, since it is recorded once; dropping it leaves a probe to its time-out.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "record how the call went"]
pub struct Call {
    /// The breaker's state in which the call began: its answer means nothing in a later one.
    generation: u64,
    number: u64,
}

/// A call that was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it failed too often lately and is left alone; try again in {retry_after_ms} ms")]
pub struct CallRefused {
    /// When trying again makes sense, in milliseconds from now; at least 1.
    pub retry_after_ms: u64,
}

/// In which state a breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// No call goes through until then.
    Open {
        /// The end, in monotonic milliseconds.
        until_ms: u64,
    },
    /// Some probes go through.
    HalfOpen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Closed {
        /// Whether each of the last calls failed.
        failed: VecDeque<bool>,
    },
    Open {
        until_ms: u64,
    },
    HalfOpen {
        /// Until when each probe under way may be answered.
        probes: BTreeMap<u64, u64>,
        successes: usize,
    },
}

/// Stands before one peer, worker or executor (the pattern is Nygard's, "Release It!", 2007).
///
/// - Closed: a failure opens it when at least `least_calls` of the last `window` calls are known and at least `failed_permille` of
///   those failed.
/// - Open: it admits nothing until its time is over; then it is half open.
/// - Half open: it admits `probes` at once. One that is not answered in time gives up its place and has failed. `successes` of them close it, with an empty
///   window; any failure opens it again.
///
/// Time passes by itself: what a breaker answers does not depend on how often it was asked before.
///
/// ```
/// use grey_health::{BreakerOptions, BreakerState, CallOutcome, Chance, CircuitBreaker};
///
/// let options = BreakerOptions { jitter_ms: 0, ..BreakerOptions::default() };
/// let mut breaker = CircuitBreaker::new(options, Chance::seeded(1))?;
/// for _ in 0..10 {
///     let Ok(call) = breaker.admit(0) else { break };
///     breaker.record(call, CallOutcome::Failed, 0);
/// }
/// assert_eq!(breaker.admit(10_000).unwrap_err().retry_after_ms, 20_000);
/// assert_eq!(breaker.state(30_000), BreakerState::HalfOpen);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitBreaker {
    options: BreakerOptions,
    chance: Chance,
    phase: Phase,
    generation: u64,
    next: u64,
}

impl CircuitBreaker {
    /// A closed one. Its jitter comes from the generator.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: BreakerOptions, chance: Chance) -> Result<CircuitBreaker, HealthError> {
        options.validate()?;
        let phase = Phase::Closed { failed: VecDeque::new() };
        Ok(CircuitBreaker { options, chance, phase, generation: 0, next: 0 })
    }

    /// Asks for a call.
    ///
    /// # Errors
    /// [`CallRefused`] while it is open, and while it is half open and has no place for another probe.
    pub fn admit(&mut self, now_ms: u64) -> Result<Call, CallRefused> {
        self.advance(now_ms);
        let number = self.next;
        match &mut self.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until_ms } => {
                return Err(CallRefused { retry_after_ms: until_ms.saturating_sub(now_ms).max(1) });
            }
            Phase::HalfOpen { probes, .. } if probes.len() < self.options.probes => {
                probes.insert(number, now_ms.saturating_add(self.options.probe_timeout_ms));
            }
            // Until a probe has to be answered; if it is not, the breaker says itself for how long it is open.
            Phase::HalfOpen { probes, .. } => {
                let first_ms = probes.values().min().copied().unwrap_or(now_ms);
                return Err(CallRefused { retry_after_ms: first_ms.saturating_sub(now_ms).max(1) });
            }
        }
        self.next += 1;
        Ok(Call { generation: self.generation, number })
    }

    /// Says how a call went. One that began in an earlier state, or a probe whose time was over, does not count.
    pub fn record(&mut self, call: Call, outcome: CallOutcome, now_ms: u64) {
        self.advance(now_ms);
        if call.generation != self.generation {
            return;
        }
        let options = &self.options;
        match (&mut self.phase, outcome) {
            (Phase::Closed { .. }, CallOutcome::Refused) | (Phase::Open { .. }, _) => {}
            (Phase::Closed { failed }, outcome) => {
                failed.push_back(outcome == CallOutcome::Failed);
                while failed.len() > options.window {
                    failed.pop_front();
                }
                let failures = failed.iter().filter(|failed| **failed).count() as u64;
                let half = failures * 1_000 >= options.failed_permille * failed.len() as u64;
                // A success after failures is no reason to leave alone whoever is back.
                if outcome == CallOutcome::Failed && failed.len() >= options.least_calls && half {
                    self.open(now_ms);
                }
            }
            (Phase::HalfOpen { probes, .. }, CallOutcome::Refused) => drop(probes.remove(&call.number)),
            (Phase::HalfOpen { .. }, CallOutcome::Failed) => self.open(now_ms),
            (Phase::HalfOpen { probes, successes }, CallOutcome::Succeeded) => {
                probes.remove(&call.number);
                *successes += 1;
                if *successes >= options.successes {
                    self.enter(Phase::Closed { failed: VecDeque::new() });
                }
            }
        }
    }

    /// In which state it is now.
    pub fn state(&mut self, now_ms: u64) -> BreakerState {
        self.advance(now_ms);
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until_ms } => BreakerState::Open { until_ms },
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Lets time pass: a probe whose time was over opens the breaker from then on, and an open one becomes half open.
    fn advance(&mut self, now_ms: u64) {
        if let Phase::HalfOpen { probes, .. } = &self.phase
            && let Some(overdue_ms) = probes.values().min().copied().filter(|until_ms| *until_ms <= now_ms)
        {
            self.open(overdue_ms);
        }
        if let Phase::Open { until_ms } = self.phase
            && until_ms <= now_ms
        {
            self.enter(Phase::HalfOpen { probes: BTreeMap::new(), successes: 0 });
        }
    }

    fn open(&mut self, from_ms: u64) {
        let BreakerOptions { open_ms, jitter_ms, .. } = self.options;
        let open_ms = (open_ms - jitter_ms).saturating_add(self.chance.at_most(jitter_ms.saturating_mul(2)));
        self.enter(Phase::Open { until_ms: from_ms.saturating_add(open_ms) });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CallOutcome::{Failed, Refused, Succeeded};

    fn breaker(jitter_ms: u64) -> CircuitBreaker {
        CircuitBreaker::new(BreakerOptions { jitter_ms, ..BreakerOptions::default() }, Chance::seeded(1))
            .unwrap()
    }

    fn calls(breaker: &mut CircuitBreaker, outcomes: &[(CallOutcome, usize)], now_ms: u64) {
        for (outcome, times) in outcomes {
            for _ in 0..*times {
                let call = breaker.admit(now_ms).unwrap();
                breaker.record(call, *outcome, now_ms);
            }
        }
    }

    #[test]
    fn a_failure_opens_it_when_half_of_at_least_ten_calls_failed() {
        let cases: [(&[(CallOutcome, usize)], bool); 9] = [
            (&[(Failed, 9)], false),
            (&[(Failed, 10)], true),
            (&[(Succeeded, 5), (Failed, 5)], true),
            (&[(Failed, 5), (Succeeded, 5)], false),
            (&[(Failed, 5), (Succeeded, 5), (Failed, 1)], true),
            (&[(Failed, 9), (Succeeded, 11)], false),
            (&[(Succeeded, 6), (Failed, 5)], false),
            (&[(Succeeded, 500), (Failed, 9)], false),
            (&[(Succeeded, 500), (Failed, 10)], true),
        ];
        for (outcomes, opens) in cases {
            let mut breaker = breaker(0);
            calls(&mut breaker, outcomes, 7);
            let expected = if opens { BreakerState::Open { until_ms: 30_007 } } else { BreakerState::Closed };
            assert_eq!(breaker.state(7), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn refusals_by_quota_or_load_are_neither_failures_nor_successes() {
        let mut breaker = breaker(0);
        calls(&mut breaker, &[(Failed, 9), (Refused, 1_000), (Failed, 1)], 0);
        assert_eq!(breaker.state(0), BreakerState::Open { until_ms: 30_000 });
        let (first, second) = (breaker.admit(30_000).unwrap(), breaker.admit(30_000).unwrap());
        assert!(breaker.admit(30_000).is_err());
        breaker.record(first, Refused, 30_001);
        assert!(breaker.admit(30_001).is_ok(), "a refused probe gives its place back");
        breaker.record(second, Succeeded, 30_002);
        assert_eq!(breaker.state(30_002), BreakerState::HalfOpen);
    }

    #[test]
    fn half_open_admits_few_probes_and_closes_after_enough_successes() {
        let mut breaker = breaker(0);
        calls(&mut breaker, &[(Failed, 10)], 0);
        assert_eq!(breaker.admit(29_999), Err(CallRefused { retry_after_ms: 1 }));
        let (first, second) = (breaker.admit(30_000).unwrap(), breaker.admit(30_100).unwrap());
        assert_eq!(breaker.admit(30_100), Err(CallRefused { retry_after_ms: 9_900 }));
        breaker.record(first, Succeeded, 30_200);
        breaker.record(second, Succeeded, 30_200);
        assert_eq!(breaker.state(30_200), BreakerState::HalfOpen);
        calls(&mut breaker, &[(Succeeded, 1)], 30_300);
        assert_eq!(breaker.state(30_300), BreakerState::Closed);
        calls(&mut breaker, &[(Failed, 9)], 30_300);
        assert_eq!(breaker.state(30_300), BreakerState::Closed, "it closed with an empty window");
    }

    #[test]
    fn any_failed_probe_opens_it_again() {
        let mut breaker = breaker(0);
        calls(&mut breaker, &[(Failed, 10)], 0);
        calls(&mut breaker, &[(Succeeded, 2), (Failed, 1)], 31_000);
        assert_eq!(breaker.state(31_000), BreakerState::Open { until_ms: 61_000 });
    }

    #[test]
    fn a_probe_that_is_never_answered_has_failed_when_its_time_was_over() {
        let mut breaker = breaker(0);
        calls(&mut breaker, &[(Failed, 10)], 0);
        let lost = breaker.admit(30_000).unwrap();
        assert_eq!(breaker.state(39_999), BreakerState::HalfOpen);
        assert_eq!(breaker.state(50_000), BreakerState::Open { until_ms: 70_000 }, "from its time-out on");
        breaker.record(lost, Succeeded, 70_000);
        calls(&mut breaker, &[(Succeeded, 2)], 70_000);
        assert_eq!(breaker.state(70_000), BreakerState::HalfOpen, "the late answer did not count");
        let mut asked_rarely = self::breaker(0);
        calls(&mut asked_rarely, &[(Failed, 10)], 0);
        drop(asked_rarely.admit(30_000).unwrap());
        assert!(asked_rarely.admit(1_000_000).is_ok());
    }

    #[test]
    fn answers_of_calls_from_an_earlier_state_do_not_count() {
        let mut breaker = breaker(0);
        let early: Vec<Call> = (0..20).map(|_| breaker.admit(0).unwrap()).collect();
        calls(&mut breaker, &[(Failed, 10)], 0);
        calls(&mut breaker, &[(Succeeded, 3)], 30_000);
        early.into_iter().for_each(|call| breaker.record(call, Failed, 30_000));
        assert_eq!(breaker.state(30_000), BreakerState::Closed);
    }

    #[test]
    fn jitter_spreads_the_return_within_its_bounds() {
        let mut ends = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut breaker = CircuitBreaker::new(BreakerOptions::default(), Chance::seeded(seed)).unwrap();
            calls(&mut breaker, &[(Failed, 10)], 0);
            let BreakerState::Open { until_ms } = breaker.state(0) else { panic!("not open") };
            assert!((24_000..=36_000).contains(&until_ms));
            ends.insert(until_ms);
        }
        assert!(ends.len() > 150 && *ends.first().unwrap() < 25_000 && *ends.last().unwrap() > 35_000);
    }

    #[test]
    fn options_name_all_that_is_wrong() {
        BreakerOptions::default().validate().unwrap();
        let wrong =
            BreakerOptions { least_calls: 21, jitter_ms: 30_001, probes: 0, ..BreakerOptions::default() };
        let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["least_calls", "jitter_ms", "probes"]);
    }
}
