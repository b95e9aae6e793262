//! The binary of an earlier revision, built beside this one, and the suite that upgrades a cluster of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, run, run_suite};

/// How many digits of a revision tell it from others.
const REVISION_DIGITS: usize = 12;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(root());
    command
}

/// The whole name of a revision.
fn resolve(revision: &str) -> Result<String, String> {
    let asked = git()
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
        .arg(format!("{revision}^{{commit}}"))
        .output();
    let answer = asked.map_err(|error| format!("git does not run: {error}"))?;
    if !answer.status.success() {
        return Err(format!("git knows no revision {revision}"));
    }
    Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

/// Builds the `grey` of a revision, unless it was built before; where it is then. The build's own directory stays, so that the next revision
/// needs little more than our crates.
fn build(revision: &str) -> Result<PathBuf, String> {
    let place = root().join("target/upgrade");
    let short = revision.get(..REVISION_DIGITS).unwrap_or(revision);
    let (source, built) = (place.join(format!("source-{short}")), place.join("build"));
    let binary = place.join(format!("grey-{short}"));
    if binary.exists() {
        return Ok(binary);
    }
    // What a run that was broken off has left is made anew.
    let _ = std::fs::remove_dir_all(&source);
    run(git().args(["worktree", "prune"]))?;
    run(git().args(["worktree", "add", "--detach"]).args([source.as_os_str(), revision.as_ref()]))?;
    let mut command = cargo();
    command.args(["build", "--locked", "-p", "grey", "--bin", "grey"]);
    let compiled = run(command.current_dir(&source).env("CARGO_TARGET_DIR", &built));
    let kept = compiled.and_then(|()| {
        // Copied under another name first: what has its name is whole.
        let part = binary.with_extension("part");
        std::fs::copy(built.join("debug/grey"), &part)
            .and_then(|_| std::fs::rename(&part, &binary))
            .map_err(|error| format!("{} cannot be written: {error}", binary.display()))
    });
    run(git().args(["worktree", "remove", "--force"]).arg(&source))?;
    kept.map(|()| binary)
}

/// Upgrades a cluster from a revision's binary to this one's.
pub fn run_from(revision: &str) -> Result<(), String> {
    let revision = resolve(revision)?;
    let binary = build(&revision)?;
    eprintln!("upgrading from {revision}");
    run_suite("upgrade", &[("GREY_UPGRADE_FROM", &binary.to_string_lossy())])
}
