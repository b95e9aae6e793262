//! The promise of a lease, under delays, drifting clocks, pauses and a change of leader.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_health::{Grant, LeaderLeases, LeaseOptions, WorkerLease};
use proptest::prelude::*;

/// Any two of the clocks below drift by less than a tenth from one another.
const DRIFT_PERMILLE: u64 = 100;
const PARTS_PER_MILLION: u64 = 45_000;

#[derive(Debug, Clone, Copy)]
struct Clock {
    offset_us: u64,
    parts_per_million: u64,
}

impl Clock {
    /// What it shows, rounded down, at a true time.
    fn at_ms(&self, true_us: u64) -> u64 {
        let faster = u128::from(true_us) * u128::from(1_000_000 - PARTS_PER_MILLION + self.parts_per_million);
        (self.offset_us + (faster / 1_000_000) as u64) / 1_000
    }
}

fn clock() -> impl Strategy<Value = Clock> {
    (0u64..10_000_000, 0..=2 * PARTS_PER_MILLION)
        .prop_map(|(offset_us, parts_per_million)| Clock { offset_us, parts_per_million })
}

/// One heartbeat of the worker.
#[derive(Debug, Clone)]
struct Beat {
    /// True time until the next one.
    gap_us: u64,
    there_us: u64,
    back_us: u64,
    to_old_leader: bool,
    lost: bool,
}

fn beats() -> impl Strategy<Value = Vec<Beat>> {
    let delay = || prop_oneof![3 => 0u64..50_000, 1 => 50_000u64..900_000];
    let gap = prop_oneof![3 => 1_000u64..200_000, 1 => 200_000u64..2_500_000];
    let beat = (gap, delay(), delay(), any::<bool>(), prop::bool::weighted(0.2));
    prop::collection::vec(
        beat.prop_map(|(gap_us, there_us, back_us, to_old_leader, lost)| Beat {
            gap_us,
            there_us,
            back_us,
            to_old_leader,
            lost,
        }),
        1..40,
    )
}

#[derive(Debug, Clone)]
enum Happening {
    Send(Beat),
    Receive {
        number: u64,
        beat: Beat,
    },
    Acknowledge(u64),
    /// A quorum has confirmed the old leader, asked this long before.
    Confirm {
        ago_us: u64,
    },
    Elect,
    /// Time to look whether somebody is gone.
    Look,
}

fn happenings(beats: Vec<Beat>, elected_us: u64) -> Vec<(u64, Happening)> {
    let mut agenda = vec![(elected_us, Happening::Elect)];
    let mut at_us = 0;
    for beat in beats {
        agenda.push((at_us, Happening::Send(beat.clone())));
        at_us += beat.gap_us;
    }
    let end_us = at_us.max(elected_us) + 3_000_000;
    agenda.extend((0..end_us).step_by(10_000).map(|at_us| (at_us, Happening::Look)));
    // The last confirmation may have been asked for up to the moment of the election.
    agenda.extend(
        (0..=elected_us).step_by(70_000).map(|at_us| (at_us + 20_000, Happening::Confirm { ago_us: 20_000 })),
    );
    agenda
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_leader_calls_a_worker_gone_that_still_believes_in_its_lease(
        worker_clock in clock(),
        old_clock in clock(),
        new_clock in clock(),
        beats in beats(),
        elected_us in 0u64..4_000_000,
        length_ms in 100u64..1_200,
        unconfirmed_ms in 1u64..400,
    ) {
        let options = LeaseOptions {
            length_ms,
            drift_permille: DRIFT_PERMILLE,
            unconfirmed_ms,
            longest_tick_gap_ms: length_ms.min(90),
            workers: 1,
        };
        let mut worker = WorkerLease::new(&options).unwrap();
        let mut old = LeaderLeases::new(options.clone(), [], old_clock.at_ms(0)).unwrap();
        old.register((), old_clock.at_ms(0)).unwrap();
        let mut new: Option<LeaderLeases<()>> = None;
        let mut gone = false;
        // By time, then by order of arising; the future is taken out of a map so that it may grow meanwhile.
        let mut agenda = std::collections::BTreeMap::new();
        for (order, (at_us, happening)) in happenings(beats, elected_us).into_iter().enumerate() {
            agenda.insert((at_us, order), happening);
        }
        let mut order = agenda.len();
        let mut granted = 0;
        while let Some(((at_us, _), happening)) = agenda.pop_first() {
            order += 1;
            match happening {
                Happening::Send(beat) => {
                    let number = worker.sending(worker_clock.at_ms(at_us));
                    agenda.insert((at_us + beat.there_us, order), Happening::Receive { number, beat });
                }
                Happening::Receive { number, beat } => {
                    let grant = match &mut new {
                        Some(leader) if !beat.to_old_leader => leader.received(&(), new_clock.at_ms(at_us)),
                        _ => old.received(&(), old_clock.at_ms(at_us)),
                    };
                    if grant == Grant::Given && !beat.lost {
                        agenda.insert((at_us + beat.back_us, order), Happening::Acknowledge(number));
                    }
                }
                Happening::Acknowledge(number) => {
                    granted += 1;
                    worker.acknowledged(number);
                }
                // Whoever was elected after the question was asked does not make its answer untrue.
                Happening::Confirm { ago_us } if at_us - ago_us <= elected_us => {
                    old.quorum_confirmed(old_clock.at_ms(at_us - ago_us));
                }
                Happening::Confirm { .. } => {}
                Happening::Elect => {
                    // What the old leader called gone was committed, and is not in the state any more.
                    let workers = (!gone).then_some(());
                    let mut leader = LeaderLeases::new(options.clone(), workers, new_clock.at_ms(at_us)).unwrap();
                    leader.quorum_confirmed(u64::MAX);
                    new = Some(leader);
                }
                Happening::Look => {
                    let called = match &mut new {
                        Some(leader) => leader.tick(new_clock.at_ms(at_us)),
                        None => old.tick(old_clock.at_ms(at_us)),
                    };
                    gone |= !called.is_empty();
                }
            }
            prop_assert!(!(gone && worker.is_held(worker_clock.at_ms(at_us))), "at {} µs", at_us);
        }
        prop_assert!(gone, "a worker that is silent for good is gone at last; {} grants", granted);
    }
}
