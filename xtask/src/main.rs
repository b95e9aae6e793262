//! What is run by hand, and takes longer than a test may.

use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask chaos [--minutes M] [--faults NAME,NAME…]

  chaos  a cluster of real processes under faults of processes, machines, links and cables, for so many minutes (10)";

/// The arguments of `chaos`: minutes, and which faults.
fn chaos(arguments: &[String]) -> Option<(u64, String)> {
    let (mut minutes, mut faults) = (10, String::new());
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--minutes" => minutes = value.parse().ok()?,
            [name, value] if name == "--faults" => faults.clone_from(value),
            _ => return None,
        }
    }
    Some((minutes, faults))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = arguments.split_first().map_or(("", &[][..]), |(task, rest)| (task.as_str(), rest));
    let Some((minutes, faults)) = Some(rest).filter(|_| task == "chaos").and_then(chaos) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let ran = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["test", "-p", "grey", "--test", "chaos", "--", "--nocapture", "--test-threads", "1"])
        .env("GREY_CHAOS_MINUTES", minutes.to_string())
        .env("GREY_CHAOS_FAULTS", faults)
        .status();
    match ran {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo does not run: {error}");
            ExitCode::FAILURE
        }
    }
}
