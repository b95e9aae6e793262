//! Seeds that found a bug, each with what it was. What a seed does changes with the code, so every one of them also has a
//! test of its own where the bug was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_sim::{Options, run};

fn holds(options: &Options) {
    let outcome = run(options, None).unwrap();
    assert_eq!(outcome.broken, None, "again: grey sim {}", options.arguments());
}

/// An attempt that a worker gave back and was assigned again stood in its line twice, and was started twice. Since servers cut their logs and
/// send whole states the seed is another run than the one that showed it; `grey-agent` has the test that does.
#[test]
fn an_attempt_that_was_given_back_and_assigned_again_starts_once() {
    holds(&Options::new(1_236));
}

/// A worker gave an attempt back and the answer was lost. Asked again it said nothing, since it held the attempt no longer, and so nobody ever ran it.
#[test]
fn an_attempt_whose_return_was_lost_is_given_back_again() {
    holds(&Options::new(20_016));
}

/// As before, but when the answer was lost nobody idled any more who could have started the attempt, so it was never asked for again.
#[test]
fn an_attempt_whose_return_was_lost_is_asked_for_again_also_when_nobody_idles() {
    holds(&Options::new(30_942));
}

/// The simulator took a membership for settled when the leader had applied it. Two of five were lost before the others knew that the third votes,
/// and went by the four of before, of which two are no majority.
#[test]
fn nobody_is_lost_before_all_know_who_votes() {
    holds(&Options::new(45_324));
}

/// A worker that had ended many short attempts a second was given a dozen of five seconds each, which it runs one at a time. Nothing of it was asked
/// back while others idled, since its resources were not overcharged.
#[test]
fn a_worker_that_holds_more_than_it_asks_for_now_gives_it_back() {
    holds(&Options::new(11));
}
