//! Backpressure and retries against plainly written models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_health::{
    Backoff, BackoffOptions, Backpressure, BackpressureOptions, Chance, DelayShedder, Level, RetryBudget,
    RetryBudgetOptions, ShedOptions,
};
use proptest::prelude::*;

const LEVELS: [Level; 4] = [Level::Normal, Level::Warning, Level::Critical, Level::Blocked];

proptest! {
    #[test]
    fn levels_are_those_of_a_walk_one_level_at_a_time(
        fills in prop::collection::vec(0u64..1_200, 1..100),
        hysteresis_permille in 0u64..300,
        warning_permille in 301u64..500,
        critical_permille in 500u64..800,
        blocked_permille in 801u64..=1_000,
    ) {
        let mut pressure = Backpressure::new(BackpressureOptions {
            warning_permille,
            critical_permille,
            blocked_permille,
            hysteresis_permille,
            ..BackpressureOptions::default()
        })
        .unwrap();
        let begins = [0, warning_permille, critical_permille, blocked_permille];
        let mut level = 0;
        for fill in fills {
            while level < 3 && fill >= begins[level + 1] {
                level += 1;
            }
            while level > 0 && fill < begins[level] - hysteresis_permille {
                level -= 1;
            }
            prop_assert_eq!(pressure.update(fill), LEVELS[level]);
        }
    }

    #[test]
    fn retries_are_at_most_the_tokens_and_a_part_of_the_successes(
        tokens in 1u64..20,
        returned_milli in 0u64..=1_000,
        retries in prop::collection::vec(any::<bool>(), 1..400),
    ) {
        let mut budget = RetryBudget::new(RetryBudgetOptions { tokens, returned_milli }).unwrap();
        // Every window of the history, plainly: the retries in it are paid by the tokens and the successes in it.
        let mut history = Vec::new();
        for retry in retries {
            if retry {
                let mut paid = true;
                let (mut successes, mut taken) = (0, 1);
                for past_retry in history.iter().rev() {
                    paid &= taken * 1_000 <= tokens * 1_000 + successes * returned_milli;
                    if *past_retry { taken += 1 } else { successes += 1 }
                }
                paid &= taken * 1_000 <= tokens * 1_000 + successes * returned_milli;
                prop_assert_eq!(budget.take(), paid);
                if paid {
                    history.push(true);
                }
            } else {
                budget.succeeded();
                history.push(false);
            }
        }
    }

    #[test]
    fn a_wait_lies_between_what_was_asked_for_and_that_plus_its_ceiling(
        seed in any::<u64>(),
        first_ms in 1u64..1_000,
        longest_ms in 1_000u64..60_000,
        hints in prop::collection::vec(prop::option::of(0u64..100_000), 1..80),
    ) {
        let mut backoff = Backoff::new(BackoffOptions { first_ms, longest_ms }).unwrap();
        let mut again = backoff.clone();
        let (mut chance, mut same_chance) = (Chance::seeded(seed), Chance::seeded(seed));
        for (retry, hint) in hints.into_iter().enumerate() {
            let doubled = (0..retry).fold(u128::from(first_ms), |ceiling, _| ceiling * 2);
            let ceiling = doubled.min(u128::from(longest_ms)) as u64;
            let wait_ms = backoff.wait_ms(hint, &mut chance);
            prop_assert!((hint.unwrap_or(0)..=hint.unwrap_or(0) + ceiling).contains(&wait_ms));
            prop_assert_eq!(again.wait_ms(hint, &mut same_chance), wait_ms, "a seed replays");
        }
    }
}

proptest! {
    #[test]
    fn work_is_refused_exactly_while_every_delay_of_an_interval_was_above_the_target(
        observations in prop::collection::vec((0u64..700, 0u64..120), 1..120),
        asked_after_ms in 0u64..700,
    ) {
        let options = ShedOptions { target_ms: 50, interval_ms: 500, longest_retry_after_ms: 1_000 };
        let mut shedder = DelayShedder::new(options).unwrap();
        let mut history: Vec<(u64, u64)> = Vec::new();
        let mut now_ms = 0;
        for (gap_ms, delay_ms) in observations {
            // Mostly dense, now and then with a gap.
            now_ms += if gap_ms < 600 { gap_ms / 10 } else { gap_ms };
            shedder.observe(delay_ms, now_ms);
            history.push((now_ms, delay_ms));
            for asked_ms in [now_ms, now_ms + asked_after_ms] {
                // Backwards from the question: every observation above the target, none further than an interval from the next.
                let (mut after_ms, mut reached) = (asked_ms, false);
                for (at_ms, delay_ms) in history.iter().rev() {
                    if *delay_ms <= 50 || after_ms - at_ms > 500 {
                        break;
                    }
                    after_ms = *at_ms;
                    reached |= asked_ms - at_ms >= 500;
                }
                let expected = reached.then(|| delay_ms - 50);
                prop_assert_eq!(shedder.retry_after_ms(asked_ms), expected);
            }
        }
    }
}
