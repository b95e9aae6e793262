//! Rules that hold whatever is proposed, in whatever order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use grey_core::{Answer, Entry, State, apply, plan};
use proptest::prelude::*;
use support::{Step, entry_for, founded, founded_at_newest, step};

/// Applies steps to a state of the oldest feature level or the newest, and returns the entries that they became.
fn run(steps: &[Step], newest: bool) -> (State, Vec<Vec<u8>>) {
    let (mut state, mut log) = if newest { founded_at_newest() } else { founded() };
    for (number, step) in steps.iter().enumerate() {
        let entry = entry_for(&state, step, number as u64);
        let bytes = entry.encode().unwrap();
        let index = state.applied_index() + 1;
        apply(&mut state, 1, index, &bytes).unwrap();
        state.check().unwrap_or_else(|broken| panic!("after {step:?}: {broken}"));
        assert_eq!(state.meta().internal_bugs, 0, "after {step:?}");
        log.push(bytes);
    }
    (state, log)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_entry_and_replicas_agree(newest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..80)) {
        let (first, log) = run(&steps, newest);
        let mut second = State::new();
        for (index, bytes) in (1..).zip(&log) {
            apply(&mut second, 1, index, bytes).unwrap();
        }
        prop_assert_eq!(first.hash(), second.hash());
        prop_assert!(first == second);
        prop_assert_eq!(plan(&first, 1_000), plan(&second, 1_000));
    }

    #[test]
    fn a_checkpoint_and_the_rest_of_the_log_are_the_whole_log(
        newest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..80),
        cuts in proptest::collection::vec(0usize..80, 0..4),
    ) {
        let (whole, log) = run(&steps, newest);
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut state = State::new();
        for (index, bytes) in (1..).zip(&log) {
            apply(&mut state, 1, index, bytes).unwrap();
            if !cuts.contains(&(index as usize)) {
                continue;
            }
            for (key, value) in state.take_dirty_rows() {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            prop_assert_eq!(&rows, &state.all_rows().into_iter().collect());
            let loaded = State::load(rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))).unwrap();
            prop_assert!(loaded == state);
            state = loaded;
        }
        prop_assert!(state == whole);
    }

    #[test]
    fn entries_read_back_as_written(
        newest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let (_, log) = run(&steps, newest);
        for bytes in log {
            prop_assert_eq!(Entry::decode(&bytes).unwrap().encode().unwrap(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_apply_panic_or_break_the_state(
        newest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..20),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (mut state, log) = run(&steps, newest);
        for bytes in log.into_iter().chain([garbage]) {
            let mut bytes = bytes;
            for (at, value) in &flips {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] ^= value;
                }
            }
            let before = state.hash();
            let index = state.applied_index() + 1;
            match apply(&mut state, 1, index, &bytes) {
                Ok(_) => state.check().unwrap(),
                Err(_) => prop_assert_eq!(state.hash(), before, "an entry that halts changes nothing"),
            }
        }
        prop_assert_eq!(state.meta().internal_bugs, 0);
    }

    #[test]
    fn every_placement_of_a_plan_holds_when_applied_to_the_state_it_was_made_of(
        newest in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..60),
        budget in 1u32..500,
    ) {
        let (mut state, _) = run(&steps, newest);
        let planned = plan(&state, budget);
        let tasks: u64 = planned.placements.iter().map(|placement| u64::from(placement.tasks.count)).sum();
        prop_assert!(tasks <= u64::from(budget));
        let entry = Entry { time_ms: state.meta().time_ms, command: grey_core::Command::Plan(planned) };
        let index = state.applied_index() + 1;
        let applied = apply(&mut state, 1, index, &entry.encode().unwrap()).unwrap();
        prop_assert_eq!(applied.answer, Ok(Answer::Planned { placed: tasks, stale: 0 }));
    }
}
