//! Keeps the house in order: who may import whom, how long a file may grow, what must not be left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each may import; a crate that is not listed may not exist.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("proof", &[]),
    ("core", &["proof"]),
    ("health", &["core"]),
    ("agent", &["core", "health", "proof"]),
    ("replica", &["core", "health", "proof"]),
    ("store", &["core", "proof", "replica"]),
    ("blob", &["proof"]),
    ("exec", &["agent", "core", "proof"]),
    ("api", &["proof"]),
    ("sim", &["proof", "core", "health", "agent", "replica", "store", "blob", "api"]),
    ("trust", &["core", "proof"]),
    ("wire", &["proof", "core"]),
    (
        "node",
        &["proof", "core", "agent", "health", "replica", "store", "blob", "exec", "api", "trust", "wire"],
    ),
    (
        "fuzz",
        &["proof", "core", "health", "agent", "replica", "store", "exec", "api", "node", "trust", "wire"],
    ),
];

/// Crates whose code is a pure function of its inputs.
const PURE: [&str; 4] = ["core", "health", "agent", "replica"];

/// Words that bring a clock, chance, IO, threads, hash order or floats into a crate.
const IMPURE: [&str; 12] = [
    "std::time",
    "SystemTime",
    "Instant",
    "std::fs",
    "std::net",
    "std::thread",
    "HashMap",
    "HashSet",
    "f32",
    "f64",
    "async fn",
    "getrandom",
];

/// The only file of a pure crate that may compute with floats, and it keeps none: phi is the logarithm of a normal tail, and
/// the crate `libm` computes it in software, to the same bits on every platform.
const COMPUTES_WITH_FLOATS: &str = "crates/grey-health/src/phi_value.rs";

/// The longest a source file may be, in lines.
const LONGEST_FILE_LINES: usize = 800;

fn sources(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn our_sources() -> Vec<PathBuf> {
    ["src", "tests", "benches", "crates"].iter().flat_map(|folder| sources(&root().join(folder))).collect()
}

#[test]
fn every_crate_imports_only_what_it_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let folder = entry.file_name().into_string().unwrap();
        let name = folder.strip_prefix("grey-").unwrap_or(&folder);
        let may = allowed.get(name).unwrap_or_else(|| panic!("{folder} is not in the list of the house"));
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        for line in dependencies.lines() {
            if let Some(import) =
                line.split(['.', ' ', '=']).next().and_then(|name| name.strip_prefix("grey-"))
            {
                assert!(may.contains(&import), "{folder} imports grey-{import}");
            }
        }
    }
}

#[test]
fn pure_crates_have_no_clock_chance_io_or_hash_order() {
    for name in PURE {
        for path in sources(&root().join(format!("crates/grey-{name}/src"))) {
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap();
                for word in IMPURE {
                    if word == "f64" && path.ends_with(COMPUTES_WITH_FLOATS) {
                        continue;
                    }
                    assert!(!code.contains(word), "{}:{}: {word}", path.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn files_stay_readable_and_nothing_is_left_over() {
    // Put together here, so that this file does not contain what it looks for.
    let leftovers =
        [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["dbg", "!("].concat(), ["#[ign", "ore"].concat()];
    for path in our_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE_LINES, "{} has {lines} lines", path.display());
        for leftover in &leftovers {
            assert!(!text.contains(leftover.as_str()), "{} contains {leftover}", path.display());
        }
    }
}

#[test]
fn every_crate_s_manifest_takes_the_workspace_s_lints() {
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]"), "{} has no lints", entry.path().display());
    }
}
