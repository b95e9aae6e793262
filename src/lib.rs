//! What the grey binary is made of. It is a library only so that what reads a user's files can be fuzzed; its one entry is
//! [`main()`].

mod cli;

use std::process::ExitCode;

/// The program: parses what the user says and passes it on.
pub fn main() -> ExitCode {
    // A launcher of a task is this binary too, and must be one thread from its first statement on.
    grey_exec::launcher::run_if_requested();
    cli::main()
}

#[doc(hidden)]
pub use cli::fuzzing;
