//! The grey binary: parses what the user says and passes it on.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A launcher of a task is this binary too, and must be one thread from its first statement on.
    grey_exec::launcher::run_if_requested();
    cli::main()
}
