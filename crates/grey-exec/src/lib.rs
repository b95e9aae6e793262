//! The executors behind the agent's port: native processes, and nothing at all.
//!
//! A process executor never sets a child up from its own, threaded process. It re-executes the binary once, as a
//! launcher, which is single-threaded from its first statement and forks a guard for each attempt. The guard builds the
//! fence around the task and watches over it; it is the executor's own child, not the launcher's. The program that uses a [`ProcessExecutor`] must therefore call [`launcher::run_if_requested`] first of all in `main`.
//!
//! ```text
//! worker ── socket ── launcher, which gets descriptors and no plan
//! worker ── socket ── guard (pid 1 of the attempt's namespace) ── the task and its descendants
//! ```
//!
//! The worker writes one plan into a guard's socket, then single control bytes; the guard writes fixed-size reports. When
//! the worker dies the socket closes, and the guard kills the attempt.

mod attempt;
mod capture;
mod channel;
mod collect;
mod directory;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod keeper;
pub mod launcher;
mod machine;
mod noop;
mod pattern;
mod plan;
mod prepare;
mod probe;
mod process;
mod program;
mod stop;
mod supervise;
mod system;

pub use error::ExecError;
pub use machine::machine_resources;
pub use noop::NoopExecutor;
pub use process::{ProcessExecutor, ProcessOptions};
