//! Fuzz targets: each takes any bytes and panics where a rule does not hold.
//!
//! The same functions are driven twice: by libFuzzer, in the folder `fuzz`, and by a seeded generator in this crate's
//! tests, which every `cargo test` runs. `docs/fuzzing.md` says how.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a target says by panicking what it found"
)]

mod bytes;
mod commands;
mod disk;
mod documents;
mod engine;
mod health;
mod identities;
mod mutate;
mod proofs;
mod rows;
mod shell;
mod store;
mod wire;

pub use mutate::{Random, mutated};

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is also that of its folder of inputs.
    pub name: &'static str,
    /// Panics where a rule does not hold for these bytes.
    pub run: fn(&[u8]),
    /// Inputs to begin with, each made by Grey's own encoders.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// How many mutated inputs `cargo test` tries: as many as a debug build takes for about half a second.
    pub runs: u32,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "entry", run: commands::entry, corpus: commands::entry_corpus, runs: 4_000 },
    Target { name: "commands", run: commands::sequence, corpus: commands::sequence_corpus, runs: 500 },
    Target { name: "state_rows", run: rows::load, corpus: rows::corpus, runs: 2_000 },
    Target { name: "engine_messages", run: engine::messages, corpus: engine::corpus, runs: 2_500 },
    Target { name: "store_files", run: store::files, corpus: store::files_corpus, runs: 40 },
    Target { name: "outbox_journal", run: store::journal, corpus: store::journal_corpus, runs: 500 },
    Target { name: "outbox_records", run: shell::outbox_records, corpus: shell::outbox_corpus, runs: 1_500 },
    Target { name: "proof_bundle", run: proofs::bundle, corpus: proofs::bundle_corpus, runs: 400 },
    Target { name: "proof_documents", run: proofs::documents, corpus: proofs::documents_corpus, runs: 3_000 },
    Target { name: "launch_plan", run: shell::launch_plan, corpus: shell::launch_corpus, runs: 3_000 },
    Target { name: "shim_messages", run: shell::shim_messages, corpus: shell::shim_corpus, runs: 5_000 },
    Target { name: "adopted", run: shell::adopted, corpus: shell::adopted_corpus, runs: 1_500 },
    Target { name: "output_pattern", run: shell::output_pattern, corpus: shell::pattern_corpus, runs: 1_500 },
    Target {
        name: "submission",
        run: documents::submission,
        corpus: documents::submission_corpus,
        runs: 1_500,
    },
    Target {
        name: "task_stream",
        run: documents::task_stream,
        corpus: documents::stream_corpus,
        runs: 1_500,
    },
    Target { name: "task_file", run: documents::task_file, corpus: documents::task_file_corpus, runs: 300 },
    Target {
        name: "node_config",
        run: documents::node_config,
        corpus: documents::node_config_corpus,
        runs: 1_500,
    },
    Target { name: "words", run: documents::words, corpus: documents::words_corpus, runs: 5_000 },
    Target {
        name: "trust_documents",
        run: identities::documents,
        corpus: identities::documents_corpus,
        runs: 1_000,
    },
    Target { name: "node_plane", run: wire::node_plane, corpus: wire::node_plane_corpus, runs: 5_000 },
    Target { name: "snapshot", run: store::snapshot, corpus: store::snapshot_corpus, runs: 200 },
    Target { name: "health", run: health::sequence, corpus: health::corpus, runs: 400 },
];

/// Runs the target of a name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("{name} is no target")).run)(data);
}
