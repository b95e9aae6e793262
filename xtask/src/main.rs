//! What is run by hand, and takes longer than a test may.

mod upgrade;

use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask chaos [--minutes M] [--faults NAME,NAME…]
       cargo xtask upgrade --from REVISION

  chaos    a cluster of real processes under faults of processes, machines, links and cables, for so many minutes (10)
  upgrade  a cluster of the revision's binary becomes this one's while it works, one process after another";

/// What is wanted.
enum Task {
    Chaos { minutes: u64, faults: String },
    Upgrade { from: String },
}

fn parse(arguments: &[String]) -> Option<Task> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["chaos", ref rest @ ..] => {
            let (mut minutes, mut faults) = (10, String::new());
            for pair in rest.chunks(2) {
                match *pair {
                    ["--minutes", value] => minutes = value.parse().ok()?,
                    ["--faults", value] => faults = value.to_owned(),
                    _ => return None,
                }
            }
            Some(Task::Chaos { minutes, faults })
        }
        ["upgrade", "--from", from] => Some(Task::Upgrade { from: from.to_owned() }),
        _ => None,
    }
}

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
}

/// Runs a command that shows what it does.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown} ended with {status}")),
        Err(error) => Err(format!("{shown} does not run: {error}")),
    }
}

/// Runs one suite of the root package, with something in its environment.
fn run_suite(suite: &str, environment: &[(&str, &str)]) -> Result<(), String> {
    let mut command = cargo();
    command.args(["test", "-p", "grey", "--test", suite, "--", "--nocapture", "--test-threads", "1"]);
    run(command.envs(environment.iter().copied()))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ran = match parse(&arguments) {
        Some(Task::Chaos { minutes, faults }) => run_suite(
            "chaos",
            &[("GREY_CHAOS_MINUTES", &minutes.to_string()), ("GREY_CHAOS_FAULTS", &faults)],
        ),
        Some(Task::Upgrade { from }) => upgrade::run_from(&from),
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
