//! `grey sim` as a user meets it: a seed is the same in every process, a failure says how to see it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_grey")).arg("sim").args(arguments).output().unwrap()
}

fn summary(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn the_same_seed_in_two_processes_leaves_the_same_trace() {
    let arguments = ["--seed", "17", "--seconds", "8", "--json"];
    let (first, second) = (sim(&arguments), sim(&arguments));
    assert!(first.status.success(), "{first:?}");
    let (first, second) = (summary(&first), summary(&second));
    assert_eq!(first["trace_hash"], second["trace_hash"]);
    assert_eq!(first["events"], second["events"]);
    assert!(first["events"].as_u64().unwrap() > 1_000);
    let other = summary(&sim(&["--seed", "18", "--seconds", "8", "--json"]));
    assert_ne!(first["trace_hash"], other["trace_hash"]);
}

#[test]
fn a_class_that_was_asked_for_and_never_fires_fails_the_run_and_is_named() {
    let arguments = ["--seed", "1", "--seconds", "3", "--servers", "1", "--workers", "1", "--faults", "wipe"];
    let output = sim(&arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("chosen-faults-fire") && said.contains("wipe"), "{said}");
    assert!(said.contains("grey sim --seed 1 --servers 1 --workers 1 --seconds 3 --faults wipe"), "{said}");
}

#[test]
fn a_trace_is_written_and_nothing_but_the_summary_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.txt");
    let output = sim(&["--seeds", "5..6", "--seconds", "5", "--trace", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "progress is for terminals");
    let trace = std::fs::read_to_string(path).unwrap();
    assert!(trace.contains("leads in term") && trace.contains("the storm is over"));
}

#[test]
fn an_unknown_class_of_fault_is_refused_with_the_known_ones() {
    let output = sim(&["--faults", "meteor"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("meteor") && said.contains("zombie-leader"), "{said}");
}
