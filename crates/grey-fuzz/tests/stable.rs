//! Every target with its corpus and with seeded mutations of it: what libFuzzer does with feedback, without.
//!
//! `GREY_FUZZ_RUNS` multiplies how many inputs each target gets; `GREY_FUZZ_SEED` chooses others. A failure prints the
//! input and the command that runs it alone, which sets `GREY_FUZZ_TARGET` and `GREY_FUZZ_INPUT`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use grey_fuzz::{Random, TARGETS, Target, mutated};

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name)
}

/// The inputs in a target's folder, in the order of their names.
fn stored(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries =
        std::fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("{}: {error}", target.name));
    let mut found: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().map(|digit| digit.to_digit(16).expect("hexadecimal digits")).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn tried(target: &Target, input: &[u8], origin: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let (name, input) = (target.name, hex(input));
        eprintln!("target {name} does not hold for {origin}; it alone:");
        eprintln!(
            "GREY_FUZZ_TARGET={name} GREY_FUZZ_INPUT={input} cargo test -p grey-fuzz one_input_alone -- --nocapture"
        );
        resume_unwind(panic);
    }
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let corpus: Vec<Vec<u8>> = stored(target)
        .into_iter()
        .map(|(file, input)| {
            tried(target, &input, &format!("the input {file}"));
            input
        })
        .collect();
    let seed = number("GREY_FUZZ_SEED", 1);
    for run in 0..u64::from(target.runs) * number("GREY_FUZZ_RUNS", 1) {
        // Each run has a seed of its own, so that one can be repeated without those before it.
        let mut random = Random::seeded(seed.wrapping_mul(0x1_0000_0001).wrapping_add(run));
        let input = match random.below(16) {
            0 => {
                let length = random.below(300);
                random.bytes(length)
            }
            _ => {
                let from = corpus.get(random.below(corpus.len())).map_or(&[][..], Vec::as_slice);
                mutated(from, &corpus, &mut random)
            }
        };
        tried(target, &input, &format!("seed {seed}, run {run}"));
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, run);
        }
    };
}

targets![
    entry,
    commands,
    state_rows,
    engine_messages,
    store_files,
    outbox_journal,
    outbox_records,
    proof_bundle,
    proof_documents,
    launch_plan,
    shim_messages,
    adopted,
    output_pattern,
    submission,
    task_stream,
    task_file,
    node_config,
    words,
    trust_documents,
    node_plane,
    snapshot,
    health,
];

#[test]
fn one_input_alone() {
    let Ok(name) = std::env::var("GREY_FUZZ_TARGET") else { return };
    let input = unhex(&std::env::var("GREY_FUZZ_INPUT").expect("GREY_FUZZ_INPUT"));
    grey_fuzz::run(&name, &input);
}

#[test]
fn the_corpus_is_what_our_encoders_write_today() {
    for target in TARGETS {
        let stored = stored(target);
        for (number, input) in (target.corpus)().iter().enumerate() {
            let file = format!("made-{number:02}");
            let found = stored.iter().find(|(name, _)| *name == file).map(|(_, input)| input);
            let how = "cargo run -p grey-fuzz --example corpus";
            assert!(found == Some(input), "{}/{file} is another; `{how}` writes it", target.name);
        }
    }
}

#[test]
fn the_corpus_stays_small_and_every_target_of_the_folder_is_one_of_ours() {
    let size: usize = TARGETS.iter().flat_map(stored).map(|(_, input)| input.len()).sum();
    assert!(size <= 200 * 1024, "the corpus has {size} bytes");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    let mut ours: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    ours.sort();
    assert_eq!(names, ours);
}
