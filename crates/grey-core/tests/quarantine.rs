//! Quarantine over a cluster of workers: what holds whatever happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_core::{Consequence, HealthEvent, Quarantine, QuarantineOptions, Standing};
use proptest::prelude::*;

const OPTIONS: QuarantineOptions = QuarantineOptions {
    first_ms: 30,
    longest_ms: 100,
    forget_after_ms: 400,
    probation_slots: 2,
    probation_successes: 3,
    at_most_permille: 100,
};

fn events() -> impl Strategy<Value = Vec<(u64, usize, HealthEvent)>> {
    let event = prop_oneof![
        2 => Just(HealthEvent::Suspected),
        2 => Just(HealthEvent::Heard),
        3 => Just(HealthEvent::Failed),
        6 => Just(HealthEvent::Succeeded),
        2 => Just(HealthEvent::Passed),
        1 => prop::bool::weighted(0.1)
            .prop_map(|released| if released { HealthEvent::Released } else { HealthEvent::Succeeded }),
        1 => prop::bool::weighted(0.1)
            .prop_map(|ordered| if ordered { HealthEvent::Ordered } else { HealthEvent::Succeeded }),
    ];
    let gap = prop_oneof![30 => 0u64..8, 1 => 300u64..900];
    prop::collection::vec((gap, any::<usize>(), event), 1..400)
}

/// One worker, derived from all that ever happened to it: (when, what, whether there was room).
fn standing(history: &[(u64, HealthEvent, bool)]) -> Standing {
    // Its quarantines since a release, as (begin, end), and what it has done since the last one.
    let mut quarantines: Vec<(u64, u64)> = Vec::new();
    let (mut suspect, mut successes, mut cleared_ms) = (false, None, 0);
    for (at_ms, event, room) in history {
        let inside = quarantines.last().is_some_and(|(_, end_ms)| at_ms < end_ms);
        if successes.is_none() && !suspect && !inside {
            let last_ms = quarantines.last().map_or(0, |(_, end_ms)| *end_ms).max(cleared_ms);
            if at_ms - last_ms >= OPTIONS.forget_after_ms {
                quarantines.clear();
            }
        }
        match event {
            HealthEvent::Released => {
                (quarantines, successes, cleared_ms) = (Vec::new(), None, 0);
            }
            HealthEvent::Suspected => {
                suspect = true;
                successes = successes.map(|_| 0);
            }
            HealthEvent::Heard => suspect = false,
            _ if inside => {}
            HealthEvent::Passed => {}
            HealthEvent::Failed | HealthEvent::Ordered if *room || *event == HealthEvent::Ordered => {
                let times = quarantines.len() as u64 + 1;
                let length_ms = (times * OPTIONS.first_ms).min(OPTIONS.longest_ms);
                quarantines.push((*at_ms, at_ms + length_ms));
                successes = Some(0);
            }
            HealthEvent::Failed | HealthEvent::Ordered => {
                successes = if suspect { successes } else { successes.map(|_| 0) }
            }
            HealthEvent::Succeeded if !suspect => {
                successes = successes.map(|successes| successes + 1).filter(|successes| *successes < 3);
            }
            HealthEvent::Succeeded => {}
        }
    }
    let now_ms = history.last().map_or(0, |(at_ms, ..)| *at_ms);
    match (quarantines.last(), suspect, successes) {
        (Some((_, until_ms)), ..) if now_ms < *until_ms => {
            Standing::Quarantined { until_ms: *until_ms, silent: suspect }
        }
        (_, true, successes) => Standing::Suspect { on_probation: successes.is_some() },
        (_, false, Some(successes)) => Standing::Probation { successes },
        (_, false, None) => Standing::Active,
    }
}

proptest! {
    #[test]
    fn a_worker_stands_as_its_history_says_and_no_more_than_a_tenth_are_shut_out(
        workers in 1usize..35,
        events in events(),
    ) {
        let mut rows = vec![Quarantine::default(); workers];
        let mut histories = vec![Vec::new(); workers];
        let mut now_ms = 0;
        for (gap_ms, which, event) in events {
            now_ms += gap_ms;
            // As a leader does: what is over ends first.
            for (row, history) in rows.iter_mut().zip(&mut histories) {
                if row.deadline_ms().is_some_and(|until_ms| until_ms <= now_ms) {
                    *row = row.after(HealthEvent::Passed, now_ms, true, &OPTIONS).0;
                    history.push((now_ms, HealthEvent::Passed, true));
                }
            }
            let quarantined = |rows: &[Quarantine]| {
                rows.iter().filter(|row| matches!(row.standing, Standing::Quarantined { .. })).count()
            };
            let which = which % workers;
            let room = OPTIONS.has_room(quarantined(&rows) as u64, workers as u64);
            let before = rows[which];
            let (after, consequence) = before.after(event, now_ms, room, &OPTIONS);
            rows[which] = after;
            histories[which].push((now_ms, event, room));
            prop_assert_eq!(after.standing, standing(&histories[which]), "{:?}", histories[which]);
            // Only an operator shuts out more than that.
            let ordered = histories.iter().flatten().filter(|(_, event, _)| *event == HealthEvent::Ordered);
            prop_assert!(quarantined(&rows) <= (workers / 10).max(1) + ordered.count());
            let shut_out = matches!(before.standing, Standing::Quarantined { .. });
            let alert = event == HealthEvent::Failed && !room && !shut_out;
            prop_assert_eq!(consequence == Consequence::Alert, alert);
            let slots = after.slots(16, &OPTIONS);
            prop_assert_eq!(slots == 16, after.standing == Standing::Active);
            prop_assert!(slots == 16 || slots <= 2);
        }
    }
}
