//! Deliberate mistakes are seen, each within a bounded number of seeds.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_sim::{Mutant, Options, run, shrink};

/// The first seed, and how many are tried.
const FIRST_SEED: u64 = 1;

/// In which seed a mistake is seen first, and which promise it breaks.
fn seen(mutant: Mutant, seeds: u64) -> Option<(u64, &'static str)> {
    (FIRST_SEED..FIRST_SEED + seeds).find_map(|seed| {
        let options = Options { mutant: Some(mutant), seconds: 15, ..Options::new(seed) };
        run(&options, None).unwrap().broken.map(|broken| (seed, broken.promise))
    })
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident within $seeds:literal breaks $promises:expr,)*) => {$(
        #[test]
        fn $name() {
            let found = seen(Mutant::$mutant, $seeds);
            let (seed, promise) = found.unwrap_or_else(|| panic!("not seen in {} seeds", $seeds));
            println!("{:?}: {promise} in seed {seed} of {}", Mutant::$mutant, $seeds);
            assert!($promises.contains(&promise), "seed {seed} breaks another promise: {promise}");
        }
    )*};
}

mutants! {
    // The engine would panic at a leader that commits what is not there; a server refuses it, and never catches up.
    acknowledging_before_a_sync_is_seen: AcknowledgeBeforeSync within 100
        breaks ["replicas-agree", "acknowledged-stays", "one-leader-a-term", "recovers", "replica-goes-on"],
    a_forgotten_vote_is_seen: ForgetVote within 30
        breaks ["replicas-agree", "one-leader-a-term", "acknowledged-stays", "never-panics", "replica-goes-on"],
    entries_in_the_wrong_order_are_seen: ApplyOutOfOrder within 10
        // What is applied before it is in force halts a server, too.
        breaks ["replicas-agree", "replica-goes-on"],
    suspicion_by_an_observer_that_is_late_is_seen: SuspectWhileLate within 200 breaks ["leases-hold"],
    a_result_of_a_stale_epoch_is_seen: AcceptStaleEpoch within 20
        // A worker is not told either what it holds in vain, and an attempt that is to stop may then stop for nobody.
        breaks ["one-completion", "tasks-are-conserved", "leases-hold", "recovers"],
    a_placement_that_is_not_checked_again_is_seen: SkipRecheck within 20 breaks ["within-capacity"],
    a_retirement_that_is_forgotten_is_seen: ForgetRetirement within 10 breaks ["recovers"],
    a_lost_cancel_is_seen: LoseCancel within 10 breaks ["clients-see-one-order", "recovers"],
    favouring_the_rich_is_seen: FavourTheRich within 30 breaks ["fair-and-nobody-starves"],
    a_completion_that_counts_twice_is_seen: ReplayCompletion within 10 breaks ["one-completion"],
    running_what_was_given_back_is_seen: RunRevoked within 20 breaks ["leases-hold"],
    outliving_a_lease_is_seen: OutliveLease within 20 breaks ["leases-hold"],
    a_read_without_a_quorum_is_seen: ReadWithoutQuorum within 60 breaks ["clients-see-one-order"],
    a_forgotten_suspension_is_seen: ForgetSuspension within 20 breaks ["who-is-shut-out-rests"],
    a_quota_that_is_not_checked_again_is_seen: IgnoreQuota within 40 breaks ["quotas-hold"],
    what_is_written_too_early_is_seen: WriteTooEarly within 20 breaks ["replica-goes-on"],
}

/// How many runs a search may take here.
const SHRINK_RUNS: u32 = 120;

/// A failing run is made much smaller, and still breaks the same promise: also when it is run again by what is printed.
fn becomes_smaller(mutant: Mutant, seeds: u64, operations: usize) {
    // A run that broke after a handful of operations is small already, where its promise takes more than one.
    let (options, whole, promise) = (FIRST_SEED..FIRST_SEED + seeds)
        .find_map(|seed| {
            let options = Options { mutant: Some(mutant), seconds: 15, ..Options::new(seed) };
            let whole = run(&options, None).unwrap();
            let promise = whole.broken.as_ref()?.promise;
            (whole.begun.len() >= operations).then_some((options, whole, promise))
        })
        .unwrap();
    let seed = options.seed;
    let smaller = shrink(&options, SHRINK_RUNS, &mut |_, _| {}).unwrap().unwrap();
    let again = run(&smaller.options, None).unwrap();
    println!("{mutant:?} in seed {seed}: {} in {} runs", smaller.options.arguments(), smaller.runs);
    assert!(smaller.runs <= SHRINK_RUNS);
    assert_eq!(again.broken.as_ref().map(|broken| broken.promise), Some(promise));
    assert_eq!((again.trace_hash, again.events), (smaller.outcome.trace_hash, smaller.outcome.events));
    let (classes, operations) = (again.faults.len(), again.begun.len());
    let least = (whole.faults.len() / 3, (whole.begun.len() / 2).max(2));
    assert!(classes <= least.0, "{classes} of {} classes are left", whole.faults.len());
    assert!(operations <= least.1, "{operations} of {} operations are left", whole.begun.len());
    assert!(smaller.options.seconds <= options.seconds);
}

#[test]
fn a_run_that_breaks_agreement_becomes_smaller() {
    becomes_smaller(Mutant::ApplyOutOfOrder, 10, 0);
}

#[test]
fn a_run_that_breaks_completions_becomes_smaller() {
    becomes_smaller(Mutant::ReplayCompletion, 100, 10);
}

#[test]
fn a_run_that_breaks_a_lease_becomes_smaller() {
    becomes_smaller(Mutant::OutliveLease, 20, 0);
}
