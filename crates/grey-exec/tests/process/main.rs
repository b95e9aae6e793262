//! Real processes run by the process executor.
//!
//! This binary is its own launcher, so it has a `main` of its own instead of the usual test harness.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation ends a test"
)]

mod ending;
mod files;
mod many;
mod outlive;
mod rig;
mod shim;
mod tree;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A rule and the function that holds it.
type Test = (&'static str, fn());

/// Tests at the same time: most of them wait.
const PARALLEL: usize = 4;

fn main() {
    grey_exec::launcher::run_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((role, rest)) = arguments.split_first()
        && (tree::played(role, rest) || shim::played(role, rest) || outlive::played(role, rest))
    {
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let tests: Vec<Test> =
        [ending::TESTS, files::TESTS, tree::TESTS, shim::TESTS, outlive::TESTS, many::TESTS]
            .concat()
            .into_iter()
            .filter(|(name, _)| {
                filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
            })
            .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.lock().unwrap().push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("\ntest result: {} passed; {} failed", tests.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(101);
    }
}
