//! The grey binary. No command stands yet; it says so rather than pretend.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let told = writeln!(
        std::io::stderr(),
        "grey {}: no command runs a task yet. What stands is listed in README.md.",
        env!("CARGO_PKG_VERSION")
    );
    // Status 2 either way: there is nobody left to tell when standard error is closed.
    drop(told);
    ExitCode::from(2)
}
