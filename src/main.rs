//! The grey binary: parses what the user says and passes it on.

use std::process::ExitCode;

fn main() -> ExitCode {
    grey::main()
}
