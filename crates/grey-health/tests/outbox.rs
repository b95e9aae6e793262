//! The outbox of a peer: its rules case by case, and against a plainly written model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_health::{
    Advice, Amount, BackpressureOptions, CapacityOptions, Class, HealthError, Level, NotTaken, OutboxOptions,
    Overdue, PeerOutbox,
};
use proptest::prelude::*;

fn options() -> OutboxOptions {
    OutboxOptions {
        capacity: CapacityOptions {
            heartbeats: Amount { count: 1, bytes: 10 },
            endings: Amount { count: 2, bytes: 20 },
            shared: Amount { count: 16, bytes: 160 },
        },
        message_bytes: 10,
        first_window: Amount { count: 2, bytes: 20 },
        most_window: Amount { count: 7, bytes: 70 },
        heartbeats_in_flight: 1,
        endings_in_flight: 1,
        in_order: false,
        pressure: BackpressureOptions::default(),
    }
}

fn filled(messages: u64) -> PeerOutbox<u64> {
    let mut outbox = PeerOutbox::new(options()).unwrap();
    fill(&mut outbox, messages);
    outbox
}

fn fill(outbox: &mut PeerOutbox<u64>, messages: u64) {
    for message in 0..messages {
        outbox.push(Class::Other, 10, 1_000, message, 0).unwrap();
    }
}

/// Sends all that the window lets through.
fn burst(outbox: &mut PeerOutbox<u64>) -> Vec<u64> {
    core::iter::from_fn(|| outbox.take(0)).map(|sending| sending.number).collect()
}

#[test]
fn after_a_connection_the_window_doubles_from_a_small_one() {
    let mut outbox = filled(14);
    assert!(burst(&mut outbox).is_empty(), "there is no connection");
    outbox.connected();
    let mut bursts = Vec::new();
    loop {
        let numbers = burst(&mut outbox);
        if numbers.is_empty() {
            break;
        }
        bursts.push(numbers.len());
        numbers.into_iter().for_each(|number| assert!(outbox.answered(number)));
    }
    assert_eq!(bursts, [2, 4, 7, 1]);
    fill(&mut outbox, 14);
    assert_eq!(burst(&mut outbox).len(), 7);
    // What was under way is unknown; the next connection starts small again.
    assert_eq!(outbox.disconnected().len(), 7);
    assert!(burst(&mut outbox).is_empty());
    assert_eq!(outbox.connected(), [0u64; 0]);
    assert_eq!(burst(&mut outbox).len(), 2);
}

#[test]
fn a_full_outbox_says_so_and_still_takes_heartbeats_and_endings() {
    let mut outbox = filled(9);
    assert_eq!(outbox.level(), Level::Normal);
    let levels: Vec<Level> =
        (0..7).map(|message| outbox.push(Class::Other, 10, 1_000, message, 0).unwrap()).collect();
    let expected =
        [Level::Warning, Level::Warning, Level::Warning, Level::Critical, Level::Critical, Level::Critical];
    assert_eq!(levels[..6], expected);
    assert_eq!(levels[6], Level::Blocked);
    let full = NotTaken::Full { level: Level::Blocked, retry_after_ms: 1_000 };
    assert_eq!(outbox.push(Class::Other, 1, 1_000, 99, 0), Err((99, full)));
    assert_eq!(outbox.advice(), Advice::Reject { retry_after_ms: 1_000 });
    outbox.push(Class::Heartbeat, 10, 1_000, 100, 0).unwrap();
    outbox.push(Class::Ending, 10, 1_000, 101, 0).unwrap();
    outbox.push(Class::Ending, 10, 1_000, 102, 0).unwrap();
    assert_eq!(outbox.push(Class::Heartbeat, 10, 1_000, 103, 0), Err((103, full)));
    // They overtake, and go even when the window is full.
    outbox.connected();
    let sent: Vec<(Class, u64)> =
        core::iter::from_fn(|| outbox.take(0)).map(|sending| (sending.class, sending.message)).collect();
    assert_eq!(sent[..3], [(Class::Heartbeat, 100), (Class::Ending, 101), (Class::Ending, 102)]);
    assert_eq!(sent[3..], [(Class::Other, 0)]);
}

#[test]
fn a_blocked_outbox_takes_work_again_only_when_it_has_clearly_drained() {
    let mut outbox = filled(16);
    outbox.connected();
    for answered in 1..=16 {
        let sending = outbox.take(0).unwrap();
        outbox.answered(sending.number);
        // 13 of 16 are 812 thousandths, the first below 850.
        assert_eq!(outbox.level() == Level::Blocked, answered < 3, "{answered}");
    }
}

#[test]
fn what_is_overdue_is_handed_back_and_never_sent() {
    let mut outbox = PeerOutbox::new(options()).unwrap();
    assert_eq!(outbox.push(Class::Other, 1, 50, 9, 50), Err((9, NotTaken::Overdue)));
    assert_eq!(outbox.push(Class::Other, 11, 50, 9, 0), Err((9, NotTaken::TooLarge { limit: 10 })));
    for (message, deadline_ms) in [(0, 100), (1, 300), (2, 200), (3, 400)] {
        outbox.push(Class::Other, 10, deadline_ms, message, 0).unwrap();
    }
    outbox.connected();
    let first = outbox.take(0).unwrap();
    assert_eq!(outbox.next_deadline_ms(), Some(100));
    assert_eq!(outbox.take(300).unwrap().message, 3, "those before are overdue");
    assert_eq!(outbox.overdue(300), Overdue { unsent: vec![2, 1], unanswered: vec![first.number] });
    assert!(!outbox.answered(first.number), "the answer came too late");
    assert_eq!(outbox.next_deadline_ms(), Some(400));
}

#[test]
fn in_order_an_ending_waits_for_what_came_before_it_and_a_heartbeat_does_not() {
    let mut outbox = PeerOutbox::new(OutboxOptions { in_order: true, ..options() }).unwrap();
    for (class, message) in [
        (Class::Other, 1),
        (Class::Ending, 2),
        (Class::Other, 3),
        (Class::Other, 4),
        (Class::Ending, 5),
        (Class::Heartbeat, 6),
    ] {
        outbox.push(class, 10, 1_000, message, 0).unwrap();
    }
    outbox.connected();
    let sent: Vec<_> = core::iter::from_fn(|| outbox.take(0)).collect();
    let messages: Vec<u64> = sent.iter().map(|sending| sending.message).collect();
    assert_eq!(messages, [6, 1, 2, 3], "the window has two of the rest, and an ending of its own");
    sent.iter().for_each(|sending| assert!(outbox.answered(sending.number)));
    let messages: Vec<u64> = core::iter::from_fn(|| outbox.take(0)).map(|sending| sending.message).collect();
    assert_eq!(messages, [4, 5]);
}

#[test]
fn the_latest_of_a_class_takes_the_place_of_the_oldest_and_of_no_other_class() {
    let mut outbox = filled(15);
    for message in 100..110 {
        outbox.push_latest(Class::Heartbeat, 10, 1_000, message, 0).unwrap();
    }
    outbox.connected();
    let first = outbox.take(0).unwrap();
    assert_eq!((first.class, first.message), (Class::Heartbeat, 108), "its own room and one of the shared");
    outbox.clear();
    assert_eq!(outbox.level(), Level::Normal);
    assert!(outbox.take(0).is_none());
    assert_eq!(outbox.next_deadline_ms(), Some(1_000), "what is under way stays so");
}

#[test]
fn options_name_all_that_is_wrong() {
    OutboxOptions::default().validate().unwrap();
    options().validate().unwrap();
    let mut wrong = options();
    wrong.capacity.endings.count = 0;
    wrong.message_bytes = 21;
    wrong.most_window.count = 17;
    let Err(HealthError::Options { problems, .. }) = wrong.validate() else { panic!("they passed") };
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["capacity.endings.count", "message_bytes", "most_window.count"]);
}

#[derive(Debug, Clone)]
enum Step {
    Push { class: Class, bytes: u64, for_ms: u64 },
    Take,
    Answer(usize),
    Wait(u64),
    Overdue,
    Connect,
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![1 => Just(Class::Heartbeat), 1 => Just(Class::Ending), 3 => Just(Class::Other)];
    let step = prop_oneof![
        8 => (class, 0u64..12, 0u64..60)
            .prop_map(|(class, bytes, for_ms)| Step::Push { class, bytes, for_ms }),
        6 => Just(Step::Take),
        5 => any::<usize>().prop_map(Step::Answer),
        2 => (0u64..15).prop_map(Step::Wait),
        1 => Just(Step::Overdue),
        1 => Just(Step::Connect),
        1 => prop::bool::weighted(0.3).prop_map(|lost| if lost { Step::Disconnect } else { Step::Take }),
    ];
    prop::collection::vec(step, 1..300)
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    number: u64,
    class: Class,
    bytes: u64,
    deadline_ms: u64,
    sent: bool,
}

/// What of some messages does not fit into the room of their own classes, as (count, bytes).
fn beyond<'a>(
    known: impl Iterator<Item = &'a Known> + Clone,
    own: impl Fn(Class) -> (u64, u64),
) -> (u64, u64) {
    let mut sum = (0, 0);
    for class in Class::ALL {
        let of_class = known.clone().filter(|one| one.class == class);
        sum.0 += (of_class.clone().count() as u64).saturating_sub(own(class).0);
        sum.1 += of_class.map(|one| one.bytes).sum::<u64>().saturating_sub(own(class).1);
    }
    sum
}

fn own_in_outbox(class: Class) -> (u64, u64) {
    match class {
        Class::Heartbeat => (1, 10),
        Class::Ending => (2, 20),
        Class::Other => (0, 0),
    }
}

fn own_in_window(class: Class) -> (u64, u64) {
    if class == Class::Other { (0, 0) } else { (1, 10) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn it_holds_sends_and_forgets_what_a_flat_list_does(steps in steps()) {
        let mut outbox = PeerOutbox::new(options()).unwrap();
        let mut known: Vec<Known> = Vec::new();
        let (mut now_ms, mut next, mut connected) = (0, 1, false);
        let (mut window, mut answered) = (2u64, 0);
        for step in steps {
            match step {
                Step::Push { class, bytes, for_ms } => {
                    let one = Known { number: next, class, bytes, deadline_ms: now_ms + for_ms, sent: false };
                    let blocked = class == Class::Other && outbox.level() == Level::Blocked;
                    let with: Vec<Known> = known.iter().copied().chain([one]).collect();
                    let (count, total) = beyond(with.iter(), own_in_outbox);
                    let fits = for_ms > 0 && bytes <= 10 && !blocked && count <= 16 && total <= 160;
                    prop_assert_eq!(outbox.push(class, bytes, now_ms + for_ms, next, now_ms).is_ok(), fits);
                    if fits {
                        known.push(one);
                        next += 1;
                    }
                }
                Step::Take => {
                    let goes = |candidate: &Known| {
                        let with = known.iter().filter(|one| one.sent || one.number == candidate.number);
                        let after = beyond(with, own_in_window);
                        let before = beyond(known.iter().filter(|one| one.sent), own_in_window);
                        // The window may have become smaller only with nothing under way, so both bounds are plain.
                        let grows = |before: u64, after: u64, most: u64| after == before || after <= most;
                        grows(before.0, after.0, window) && grows(before.1, after.1, window * 10)
                    };
                    let expected = Class::ALL.into_iter().find_map(|class| {
                        let mut waiting = known.iter().filter(|one| one.class == class && !one.sent);
                        waiting.find(|one| one.deadline_ms > now_ms).filter(|one| connected && goes(one)).copied()
                    });
                    let taken = outbox.take(now_ms);
                    prop_assert_eq!(taken.as_ref().map(|sending| sending.message), expected.map(|one| one.number));
                    if let Some(sending) = taken {
                        prop_assert_eq!(sending.number, sending.message);
                        known.iter_mut().filter(|one| one.number == sending.number).for_each(|one| one.sent = true);
                    }
                }
                Step::Answer(which) => {
                    let sent: Vec<u64> = known.iter().filter(|one| one.sent).map(|one| one.number).collect();
                    let Some(number) = sent.get(which % sent.len().max(1)) else {
                        prop_assert!(!outbox.answered(next));
                        continue;
                    };
                    prop_assert!(outbox.answered(*number));
                    known.retain(|one| one.number != *number);
                    answered += 1;
                    if answered >= window {
                        (window, answered) = ((window * 2).min(7), 0);
                    }
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Overdue => {
                    let overdue = outbox.overdue(now_ms);
                    let mut late: Vec<Known> =
                        known.iter().filter(|one| one.deadline_ms <= now_ms).copied().collect();
                    late.sort_by_key(|one| (one.deadline_ms, one.number));
                    let numbers = |sent: bool| -> Vec<u64> {
                        late.iter().filter(|one| one.sent == sent).map(|one| one.number).collect()
                    };
                    prop_assert_eq!(overdue.unsent, numbers(false));
                    prop_assert_eq!(overdue.unanswered, numbers(true));
                    known.retain(|one| one.deadline_ms > now_ms);
                }
                Step::Connect | Step::Disconnect => {
                    let connecting = matches!(step, Step::Connect);
                    let lost = if connecting { outbox.connected() } else { outbox.disconnected() };
                    let sent: Vec<u64> = known.iter().filter(|one| one.sent).map(|one| one.number).collect();
                    prop_assert_eq!(lost, sent);
                    known.retain(|one| !one.sent);
                    connected = connecting;
                    if connecting {
                        (window, answered) = (2, 0);
                    }
                }
            }
            prop_assert_eq!(outbox.next_deadline_ms(), known.iter().map(|one| one.deadline_ms).min());
            let (count, bytes) = beyond(known.iter(), own_in_outbox);
            prop_assert!(count <= 16 && bytes <= 160);
        }
    }
}
