//! The rate of a tenant against an oracle that knows the whole history.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_core::{Gcra, RateLimit, RateRefusal};
use proptest::prelude::*;

/// The rule itself: in every span that ends now, what was let through and the batch are no more than the burst and what the rate
/// allows for the span's length.
fn fits(history: &[(u64, u64)], limit: RateLimit, tasks: u64, now_ms: u64) -> bool {
    let mut together = u128::from(tasks);
    let allowed = |since_ms: u64| {
        u128::from(limit.burst) * 1_000 + u128::from(limit.tasks_per_second) * u128::from(now_ms - since_ms)
    };
    together * 1_000 <= allowed(now_ms)
        && history.iter().rev().all(|(at_ms, earlier)| {
            together += u128::from(*earlier);
            together * 1_000 <= allowed(*at_ms)
        })
}

proptest! {
    #[test]
    fn it_lets_through_exactly_what_fits_every_span_of_the_past(
        tasks_per_second in prop_oneof![1u64..20, 1u64..100_000],
        burst in 1u64..50,
        batches in prop::collection::vec((prop_oneof![4 => 0u64..200, 1 => 0u64..20_000], 1u64..60), 1..150),
    ) {
        let limit = RateLimit { tasks_per_second, burst };
        let mut rate = Gcra::default();
        let mut history: Vec<(u64, u64)> = Vec::new();
        let mut now_ms = 0;
        for (gap_ms, tasks) in batches {
            now_ms += gap_ms;
            let charged = rate.charged(limit, tasks, now_ms);
            prop_assert_eq!(charged.is_ok(), fits(&history, limit, tasks, now_ms));
            match charged {
                Ok(next) => {
                    rate = next;
                    history.push((now_ms, tasks));
                }
                Err(RateRefusal::NeverFits { .. }) => prop_assert!(tasks > burst),
                Err(RateRefusal::TooSoon { retry_after_ms }) => {
                    prop_assert!(fits(&history, limit, tasks, now_ms + retry_after_ms));
                    prop_assert!(!fits(&history, limit, tasks, now_ms + retry_after_ms - 1));
                }
            }
            prop_assert!(rate.used(limit, now_ms) <= burst);
        }
    }
}
