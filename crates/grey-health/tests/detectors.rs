//! The failure detectors against plainly written models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_health::{Heard, HeartbeatDetector, HeartbeatOptions, PhiDetector, PhiOptions, limits};
use proptest::prelude::*;

const TIMEOUT_MS: u64 = 100;
const GAP_MS: u64 = 60;

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Tick,
    Register(u8),
    Remove(u8),
    Heartbeat(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..50).prop_map(Step::Wait),
        1 => (50u64..300).prop_map(Step::Wait),
        6 => Just(Step::Tick),
        1 => (0u8..3).prop_map(Step::Register),
        1 => (0u8..3).prop_map(Step::Remove),
        3 => (0u8..3).prop_map(Step::Heartbeat),
    ];
    prop::collection::vec(step, 1..200)
}

/// Whether a peer is suspect, derived from all that ever happened: from its last sign of life on, some tick in time found
/// that more than the time-out had passed since that sign or since the last late tick.
fn is_suspect(history: &[(u64, Step)], peer: u8) -> bool {
    let mut last_tick_ms = 0;
    // Since when silence counts, and whether it was found too long; nothing while the peer is not registered.
    let mut silence: Option<(u64, bool)> = None;
    for (at_ms, step) in history {
        match step {
            Step::Register(who) if *who == peer => silence = Some((*at_ms, false)),
            Step::Remove(who) if *who == peer => silence = None,
            Step::Heartbeat(who) if *who == peer => silence = silence.map(|_| (*at_ms, false)),
            Step::Tick => {
                let late = at_ms - last_tick_ms > GAP_MS;
                last_tick_ms = *at_ms;
                silence = silence.map(|(since_ms, suspect)| {
                    if late {
                        (*at_ms, suspect)
                    } else {
                        (since_ms, suspect || at_ms - since_ms > TIMEOUT_MS)
                    }
                });
            }
            _ => {}
        }
    }
    silence.is_some_and(|(_, suspect)| suspect)
}

proptest! {
    #[test]
    fn the_heartbeat_detector_suspects_exactly_whom_its_history_says(steps in steps()) {
        let options = HeartbeatOptions { timeout_ms: TIMEOUT_MS, longest_tick_gap_ms: GAP_MS, peers: 3 };
        let mut detector = HeartbeatDetector::new(options, 0).unwrap();
        let mut history = Vec::new();
        let mut now_ms = 0;
        for step in steps {
            let before: Vec<bool> = (0..3).map(|peer| is_suspect(&history, peer)).collect();
            history.push((now_ms, step.clone()));
            let mut raised = Vec::new();
            match step {
                Step::Wait(ms) => now_ms += ms,
                Step::Tick => raised = detector.tick(now_ms),
                Step::Register(peer) => detector.register(peer, now_ms).unwrap(),
                Step::Remove(peer) => drop(detector.remove(&peer)),
                Step::Heartbeat(peer) => {
                    let heard = detector.heartbeat(&peer, now_ms);
                    prop_assert_eq!(heard == Heard::Recovered, before[usize::from(peer)]);
                }
            }
            for peer in 0..3u8 {
                let suspect = is_suspect(&history, peer);
                prop_assert_eq!(detector.is_suspect(&peer), suspect);
                prop_assert_eq!(raised.contains(&peer), suspect && !before[usize::from(peer)]);
            }
        }
    }
}

/// −log10 of the normal tail beyond a number of deviations, by the trapezoid rule: slow, and without any special function.
fn phi_by_integration(distance: f64) -> f64 {
    const STEPS: u32 = 20_000;
    let (from, to) = (distance, distance.max(0.0) + 12.0);
    let width = (to - from) / f64::from(STEPS);
    // Scaled by the density at the nearer end, so that a small tail does not vanish.
    let peak = distance.max(0.0);
    let density = |at: f64| (-(at * at - peak * peak) / 2.0).exp();
    let inner: f64 = (1..STEPS).map(|step| density(from + width * f64::from(step))).sum();
    let area = width * (inner + (density(from) + density(to)) / 2.0) / (2.0 * core::f64::consts::PI).sqrt();
    peak * peak / 2.0 * core::f64::consts::LOG10_E - area.log10()
}

/// A detector that has heard a peer at these intervals, and when it did last.
fn heard(options: &PhiOptions, intervals: &[u64]) -> (PhiDetector<u8>, u64) {
    let mut detector = PhiDetector::new(options.clone(), 0).unwrap();
    detector.register(0, 0).unwrap();
    detector.heartbeat(&0, 0);
    let mut now_ms = 0;
    for interval in intervals {
        now_ms += interval;
        detector.heartbeat(&0, now_ms);
        detector.tick(now_ms);
    }
    (detector, now_ms)
}

/// Never late, and nobody is suspect while intervals are measured.
fn patient(window: usize, floor_ms: u64, pause_ms: u64) -> PhiOptions {
    PhiOptions {
        threshold_milli: 8_000,
        window,
        expected_interval_ms: 500,
        deviation_floor_ms: floor_ms,
        pause_ms,
        failover_timeout_ms: 10_000,
        failover_samples: 10,
        longest_tick_gap_ms: 10_000,
        peers: 1,
    }
}

proptest! {
    #[test]
    fn phi_is_what_the_samples_of_the_window_say(
        window in 10usize..30,
        floor_ms in 200u64..400,
        pause_ms in 0u64..1_000,
        intervals in prop::collection::vec(300u64..900, 0..60),
        elapsed_ms in 0u64..5_000,
    ) {
        let options = patient(window, floor_ms, pause_ms);
        let (detector, now_ms) = heard(&options, &intervals);
        let mut samples: Vec<f64> = vec![375.0, 625.0];
        samples.extend(intervals.iter().map(|interval| *interval as f64));
        let samples = &samples[samples.len().saturating_sub(window)..];
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let variance =
            samples.iter().map(|sample| (sample - mean) * (sample - mean)).sum::<f64>() / samples.len() as f64;
        let deviation = variance.sqrt().max(floor_ms as f64);
        let expected = phi_by_integration((elapsed_ms as f64 - mean - pause_ms as f64) / deviation);
        let phi = f64::from(detector.phi_milli(&0, now_ms + elapsed_ms).unwrap()) / 1_000.0;
        prop_assert!((phi - expected.min(100.0)).abs() < 0.003, "{} instead of {}", phi, expected);
    }

    #[test]
    fn phi_never_falls_while_a_peer_is_silent_and_stays_within_its_bound(
        floor_ms in 1u64..400,
        pause_ms in 0u64..1_000,
        intervals in prop::collection::vec(1u64..1_500, 0..40),
        mut silences in prop::collection::vec(prop_oneof![0u64..5_000, any::<u64>()], 2..50),
    ) {
        let (detector, now_ms) = heard(&patient(20, floor_ms, pause_ms), &intervals);
        silences.sort_unstable();
        let phis: Vec<u32> =
            silences.iter().map(|silence| detector.phi_milli(&0, now_ms.saturating_add(*silence)).unwrap()).collect();
        prop_assert!(phis.is_sorted(), "{:?}", phis);
        prop_assert!(phis.iter().all(|phi| *phi <= limits::PHI_MILLI));
        // Every single millisecond around where it rises, too.
        let fine: Vec<u32> =
            (0..4_000).map(|silence| detector.phi_milli(&0, now_ms + silence).unwrap()).collect();
        prop_assert!(fine.is_sorted());
    }

    #[test]
    fn a_tick_suspects_exactly_from_the_threshold_on(
        intervals in prop::collection::vec(300u64..900, 0..40),
        ticks in prop::collection::vec(1u64..400, 1..30),
    ) {
        let (mut detector, mut now_ms) = heard(&patient(20, 100, 500), &intervals);
        let mut suspect = false;
        for gap in ticks {
            now_ms += gap;
            let reached = detector.phi_milli(&0, now_ms).unwrap() >= 8_000;
            let raised = detector.tick(now_ms);
            prop_assert_eq!(raised.is_empty(), suspect || !reached);
            suspect |= reached;
            prop_assert_eq!(detector.is_suspect(&0), suspect);
        }
        prop_assert_eq!(detector.heartbeat(&0, now_ms), if suspect { Heard::Recovered } else { Heard::Trusted });
    }
}
