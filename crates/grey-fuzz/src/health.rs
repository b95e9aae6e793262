//! Sequences of calls into what judges peers, workers and tenants: its promises hold whatever the order.

use std::collections::BTreeMap;

use grey_core::{Gcra, HealthEvent, Quarantine, QuarantineOptions, RateLimit, RateRefusal, Standing};
use grey_health::{
    Amount, BreakerOptions, BreakerState, Call, CallOutcome, Chance, CircuitBreaker, Class, OutboxOptions,
    PeerOutbox,
};

use crate::bytes::Bytes;

const STEPS: usize = 200;

/// One of the four, by the first byte.
pub(crate) fn sequence(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    match bytes.below(4) {
        0 => rate(&mut bytes),
        1 => quarantine(&mut bytes),
        2 => breaker(&mut bytes),
        _ => outbox(&mut bytes),
    }
}

fn passed(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.below(8) {
        0 => bytes.near(0),
        1 => u64::from(bytes.byte()) * 1_000,
        _ => bytes.byte().into(),
    }
}

/// In no span of time is more let through than the burst and what the rate allows for its length.
fn rate(bytes: &mut Bytes<'_>) {
    let limit = RateLimit { tasks_per_second: bytes.near(10).max(1), burst: bytes.near(20).max(1) };
    if limit.validate().is_err() {
        return;
    }
    let (mut bucket, mut now_ms) = (Gcra::default(), 0u64);
    let mut let_through: Vec<(u64, u64)> = Vec::new();
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        now_ms = now_ms.saturating_add(passed(bytes));
        let tasks = bytes.near(limit.burst / 2);
        match bucket.charged(limit, tasks, now_ms) {
            Ok(next) => {
                bucket = next;
                let_through.push((now_ms, tasks));
            }
            Err(RateRefusal::NeverFits { .. }) => assert!(tasks > limit.burst),
            Err(RateRefusal::TooSoon { retry_after_ms }) => {
                assert!(retry_after_ms >= 1);
                if let Some(later_ms) = now_ms.checked_add(retry_after_ms) {
                    assert!(bucket.charged(limit, tasks, later_ms).is_ok(), "it fits when it was said to");
                    assert!(bucket.charged(limit, tasks, later_ms - 1).is_err(), "it does not fit before");
                }
            }
        }
    }
    for (position, (from_ms, _)) in let_through.iter().enumerate() {
        let mut sum = 0u128;
        for (at_ms, tasks) in let_through.iter().skip(position) {
            sum += u128::from(*tasks) * 1_000;
            let allowed = u128::from(limit.burst) * 1_000
                + u128::from(at_ms - from_ms) * u128::from(limit.tasks_per_second);
            assert!(sum <= allowed, "more is let through than the rate allows");
        }
    }
}

/// A worker in quarantine gets no work, its quarantine ends, and time that passes in steps passes as in one.
fn quarantine(bytes: &mut Bytes<'_>) {
    let options = QuarantineOptions::default();
    let events = [
        HealthEvent::Suspected,
        HealthEvent::Heard,
        HealthEvent::Failed,
        HealthEvent::Succeeded,
        HealthEvent::Passed,
        HealthEvent::Released,
        HealthEvent::Ordered,
    ];
    let (mut worker, mut now_ms) = (Quarantine::default(), 0u64);
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        now_ms = now_ms.saturating_add(passed(bytes));
        let event = bytes.pick(&events).unwrap_or(HealthEvent::Passed);
        let room = bytes.chance(2);
        let looked_at = worker.after(HealthEvent::Passed, now_ms, room, &options).0;
        let (next, _) = worker.after(event, now_ms, room, &options);
        assert_eq!(looked_at.after(event, now_ms, room, &options).0, next, "looking changes nothing");
        worker = next;
        let slots = worker.slots(16, &options);
        match worker.standing {
            Standing::Active => assert_eq!(slots, 16),
            Standing::Probation { successes } => {
                assert!(slots <= options.probation_slots && successes < options.probation_successes);
            }
            Standing::Suspect { .. } => assert_eq!(slots, 0),
            Standing::Quarantined { until_ms, .. } => {
                assert_eq!(slots, 0);
                assert!(until_ms > now_ms || now_ms == u64::MAX, "a quarantine that is over goes on");
                assert!(until_ms - now_ms <= options.longest_ms, "a quarantine is too long");
                assert_eq!(worker.deadline_ms(), Some(until_ms));
            }
        }
    }
}

/// An open breaker admits nothing, a half open one no more probes than it may, and who is refused may come at the time told.
fn breaker(bytes: &mut Bytes<'_>) {
    let options = BreakerOptions {
        window: bytes.near(20) as usize,
        least_calls: bytes.near(10) as usize,
        failed_permille: bytes.near(500),
        jitter_ms: bytes.near(6_000),
        probes: bytes.near(2) as usize,
        ..BreakerOptions::default()
    };
    let Ok(mut breaker) = CircuitBreaker::new(options.clone(), Chance::seeded(bytes.number())) else {
        return;
    };
    let (mut now_ms, mut calls): (u64, Vec<Call>) = (0, Vec::new());
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        now_ms = now_ms.saturating_add(passed(bytes));
        let before = breaker.state(now_ms);
        if bytes.chance(2) && !calls.is_empty() {
            let call = calls.swap_remove(usize::from(bytes.byte()) % calls.len());
            let outcomes = [CallOutcome::Succeeded, CallOutcome::Failed, CallOutcome::Refused];
            breaker.record(call, bytes.pick(&outcomes).unwrap_or(CallOutcome::Failed), now_ms);
            continue;
        }
        match breaker.admit(now_ms) {
            Ok(call) => {
                assert!(!matches!(before, BreakerState::Open { .. }), "an open breaker admits a call");
                calls.push(call);
            }
            Err(refused) => {
                assert!(refused.retry_after_ms >= 1);
                assert_ne!(before, BreakerState::Closed, "a closed breaker refuses a call");
            }
        }
        calls.truncate(64);
    }
    if let Some(later_ms) =
        now_ms.checked_add(2 * (options.open_ms + options.jitter_ms + options.probe_timeout_ms))
    {
        assert!(
            !matches!(breaker.state(later_ms), BreakerState::Open { .. }),
            "a breaker stays open for ever"
        );
    }
}

/// What was taken in is sent once, answered once, or overdue once; the window is kept, and nothing is lost or held twice.
fn outbox(bytes: &mut Bytes<'_>) {
    let small = |bytes: &mut Bytes<'_>| Amount {
        count: 1 + u64::from(bytes.below(6)),
        bytes: 64 + u64::from(bytes.byte()),
    };
    let mut options =
        OutboxOptions { first_window: small(bytes), most_window: small(bytes), ..OutboxOptions::default() };
    options.capacity.shared = small(bytes);
    options.message_bytes = bytes.near(32);
    let Ok(mut outbox) = PeerOutbox::new(options) else { return };
    let (mut now_ms, mut next) = (0u64, 0u64);
    let (mut waiting, mut sent): (BTreeMap<u64, u64>, BTreeMap<u64, u64>) = Default::default();
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        now_ms = now_ms.saturating_add(passed(bytes));
        match bytes.below(8) {
            0..=2 => {
                let class = bytes.pick(&Class::ALL).unwrap_or(Class::Other);
                let deadline_ms = now_ms.saturating_add(passed(bytes));
                next += 1;
                if outbox.push(class, bytes.near(16), deadline_ms, next, now_ms).is_ok() {
                    waiting.insert(next, deadline_ms);
                }
            }
            3 | 4 => {
                if let Some(sending) = outbox.take(now_ms) {
                    let deadline_ms = waiting.remove(&sending.message);
                    assert_eq!(deadline_ms, Some(sending.deadline_ms), "what was not taken in is sent");
                    assert!(sending.deadline_ms > now_ms, "what is overdue is sent");
                    sent.insert(sending.number, sending.deadline_ms);
                }
            }
            5 => {
                let known: Vec<u64> = sent.keys().copied().collect();
                let number = bytes.pick(&known).unwrap_or(u64::from(bytes.byte()));
                assert_eq!(outbox.answered(number), sent.remove(&number).is_some());
            }
            6 => {
                let lost = if bytes.chance(4) { outbox.disconnected() } else { outbox.connected() };
                assert!(lost.iter().all(|number| sent.remove(number).is_some()));
                assert!(sent.is_empty(), "what an earlier connection had under way is forgotten");
            }
            _ => {
                let overdue = outbox.overdue(now_ms);
                for message in overdue.unsent {
                    assert!(waiting.remove(&message).is_some_and(|at_ms| at_ms <= now_ms));
                }
                for number in overdue.unanswered {
                    assert!(sent.remove(&number).is_some_and(|at_ms| at_ms <= now_ms));
                }
                assert!(waiting.values().chain(sent.values()).all(|at_ms| *at_ms > now_ms));
            }
        }
        let first_ms = waiting.values().chain(sent.values()).min().copied();
        assert_eq!(outbox.next_deadline_ms(), first_ms);
    }
}

pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut random = crate::Random::seeded(14);
    (0..12u8).map(|number| [vec![number], random.bytes(300)].concat()).collect()
}
