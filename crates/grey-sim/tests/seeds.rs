//! Seeds that must hold every promise, and what the simulator promises of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Mutex;

use grey_sim::{Counters, Fault, Options, run};

/// Storms are shorter here than by default, so that many seeds fit into a test's time.
const SECONDS: u64 = 10;
/// How many seeds are run unless `GREY_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 200;

fn options(seed: u64) -> Options {
    Options { seconds: SECONDS, ..Options::new(seed) }
}

/// Damage makes the database panic inside the store, which contains it: nobody needs to read that.
fn quiet() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| place.file().to_owned()).unwrap_or_default();
        if !place.contains("redb") {
            eprintln!("{panic}");
        }
    }));
}

#[test]
fn every_seed_holds_every_promise_and_every_class_of_fault_fires() {
    quiet();
    let seeds = std::env::var("GREY_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let (next, counters) = (Mutex::new(1..=seeds), Mutex::new(Counters::default()));
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let work = || {
            while let Some(seed) = { next.lock().unwrap().next() } {
                let outcome = run(&options(seed), None).unwrap();
                counters.lock().unwrap().add(&outcome.counters);
                if let Some(broken) = outcome.broken {
                    let events = outcome.last_events.join("\n");
                    panic!("{events}\n{broken:?}\nagain: grey sim {}", options(seed).arguments());
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let silent = counters.lock().unwrap().silent(&Fault::ALL.iter().copied().collect());
    assert_eq!(silent, [], "never happened in {seeds} seeds");
}

#[test]
fn without_faults_everything_goes_well_and_nothing_fires() {
    let calm = Options { faults: Some(BTreeSet::new()), seconds: 30, ..options(3) };
    let outcome = run(&calm, None).unwrap();
    assert_eq!(outcome.broken, None);
    assert_eq!(outcome.counters.total(), 0);
    assert!(outcome.operations > 10, "only {} operations", outcome.operations);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    quiet();
    let first = run(&options(11), None).unwrap();
    let again = run(&options(11), None).unwrap();
    let other = run(&options(12), None).unwrap();
    assert_eq!((first.trace_hash, first.events), (again.trace_hash, again.events));
    assert_ne!(first.trace_hash, other.trace_hash);
}
