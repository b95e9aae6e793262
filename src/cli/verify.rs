//! `grey verify`: the offline check of a proof.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use grey_proof::{
    Digest, Evidence, EvidenceFile, LARGEST_BUNDLE_BYTES, ProofBundle, RootFile, StreamDigest, Verification,
    verify as check,
};

use super::error::{ANSWER_IS_NO, CliError, USAGE};
use super::output::{Output, harmless};
use super::root;
use super::session::Target;

/// The most files that a result may have, and so the most that are compared.
const MOST_FILES: usize = 100_000;

/// Arguments of `grey verify`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey cluster root > root.json                       on the cluster, once
  grey verify --root root.json proof.json             anywhere, without a network
  grey verify --root root.json --stdout out.txt --results plots proof.json
  grey verify --root root.json --quorum 2 proof.json  two servers at least must have signed the log's root

The root is never taken from the proof. Exit status: 0 every check holds, 1 one does not, 2 a file cannot be read.")]
pub struct VerifyArguments {
    /// The proof
    #[arg(value_name = "PROOF")]
    proof: PathBuf,
    /// The root to trust [default: the one of the local cluster's data directory]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Standard output to compare with the one signed
    #[arg(long, value_name = "FILE")]
    stdout: Option<PathBuf>,
    /// Directory of output files to compare with the ones signed
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// How many different servers must have signed the log's root, such as 2 of a cluster of 3
    #[arg(long, value_name = "SERVERS", value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError { exit_status: USAGE, ..CliError::io("read", path.display(), error) }
}

/// Length and digest of a file, read piece by piece.
fn digest_of(path: &Path) -> Result<(u64, Digest), CliError> {
    let mut file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut digest = StreamDigest::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece).map_err(|error| unreadable(path, &error))?;
        if read == 0 {
            return Ok(digest.finish());
        }
        digest.update(piece.get(..read).unwrap_or_default());
    }
}

/// Every file below a directory, by its path from there.
fn files_below(directory: &Path) -> Result<Vec<EvidenceFile>, CliError> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))? {
            let path = entry.map_err(|error| unreadable(&folder, &error))?.path();
            let facts = path.symlink_metadata().map_err(|error| unreadable(&path, &error))?;
            if facts.is_dir() {
                folders.push(path);
                continue;
            }
            if !facts.is_file() {
                return Err(CliError::usage(format!("{} is neither a file nor a directory", path.display())));
            }
            if files.len() >= MOST_FILES {
                return Err(CliError::usage(format!(
                    "{} has more than {MOST_FILES} files",
                    directory.display()
                )));
            }
            let (size_bytes, digest) = digest_of(&path)?;
            let relative = path.strip_prefix(directory).unwrap_or(&path).as_os_str().as_bytes().to_vec();
            let executable = facts.permissions().mode() & 0o100 != 0;
            files.push(EvidenceFile { path: relative, executable, size_bytes, digest });
        }
    }
    Ok(files)
}

fn the_root(
    arguments: &VerifyArguments,
    target: Option<&Target>,
    output: &Output,
) -> Result<RootFile, CliError> {
    if let Some(path) = &arguments.root {
        return root::read(path);
    }
    match target {
        Some(Target::Local(directory)) if directory.join("root.json").exists() => {
            let path = directory.join("root.json");
            output.note(&format!("trusting the local cluster's root, {}", path.display()));
            root::read(&path)
        }
        _ => Err(CliError::usage("there is no root to trust")
            .hint("give --root FILE; `grey cluster root > root.json` writes one, on the cluster")),
    }
}

/// Checks a proof.
pub fn verify(arguments: &VerifyArguments, target: Option<&Target>, output: &Output) -> Result<u8, CliError> {
    let root = the_root(arguments, target, output)?;
    let bytes = root::read_bounded(&arguments.proof, LARGEST_BUNDLE_BYTES as u64)?;
    let bundle = ProofBundle::decode(&bytes).map_err(|error| {
        let message = format!("{}: {error}", arguments.proof.display());
        CliError { code: Some("proof_unreadable"), ..CliError::failed(message) }
    })?;
    let evidence = Evidence {
        stdout: arguments.stdout.as_deref().map(digest_of).transpose()?,
        files: arguments.results.as_deref().map(files_below).transpose()?,
        quorum: arguments.quorum,
    };
    let verification = check(&bundle, &root, &evidence);
    let report = serde_json::json!({
        "holds": verification.holds(),
        "root_class": root.class.name(),
        "task": format!("t{}", bundle.statement.task_id),
        "checks": verification.checks,
        "cosigners": verification.cosigners,
        "not_checked": verification.not_checked,
        "statement": bundle.statement,
    });
    output.result(&report, || shown(&bundle, &root, &verification))?;
    Ok(if verification.holds() { 0 } else { ANSWER_IS_NO })
}

fn shown(bundle: &ProofBundle, root: &RootFile, verification: &Verification) -> String {
    let statement = &bundle.statement;
    let mut text = format!(
        "task t{} of job j{}, tenant {}, attempt {}: {}{}\n\n",
        statement.task_id,
        statement.job_id,
        harmless(&statement.tenant),
        statement.attempt_epoch,
        harmless(&statement.outcome),
        statement.exit_code.map(|code| format!(" with {code}")).unwrap_or_default(),
    );
    for check in &verification.checks {
        match &check.refusal {
            None => text.push_str(&format!("  holds    {:12} {}\n", check.name, check.meaning)),
            Some(refusal) => text.push_str(&format!("  REFUSED  {:12} {}\n", check.name, harmless(refusal))),
        }
    }
    if verification.cosigners.len() > 1 {
        text.push_str("\nServers that signed the log's root:\n");
        for server in &verification.cosigners {
            text.push_str(&format!("  {server}\n"));
        }
    }
    text.push_str("\nNot checked:\n");
    for sentence in &verification.not_checked {
        text.push_str(&format!("  {sentence}\n"));
    }
    let verdict = if verification.holds() { "The proof holds" } else { "The proof does not hold" };
    text.push_str(&format!("\n{verdict}, under a {} root.\n", root.class.name()));
    text
}
