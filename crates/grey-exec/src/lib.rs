//! The executors behind the agent's port: native processes, and nothing at all.
//!
//! A process executor never sets a child up from its own, threaded process. It re-executes the binary once, as a shim,
//! which is single-threaded from its first statement and forks a guard for each attempt. The guard builds the fence around
//! the task and watches over it. The program that uses a [`ProcessExecutor`] must therefore call
//! [`launcher::run_if_requested`] first of all in `main`.
//!
//! ```text
//! worker ── socket ── shim ── socket ── guard (pid 1 of the attempt's namespace) ── the task and its descendants
//!    └────────────────────── pipes ──────────────────────────────────────────────────────┘
//! ```
//!
//! The shim gets an attempt's descriptors and its clock, never what it is to do: that is in a file that the guard reads. It
//! ends an attempt at its time-out and at the end of the worker's lease. When the worker dies, the shim goes on until then and
//! hands everything to the next worker, or ends everything at once where none will come. When the shim dies, everything
//! dies with it.

mod attempt;
mod capture;
mod clock;
mod collect;
mod connection;
mod datagram;
mod directory;
mod door;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod keeper;
pub mod launcher;
mod machine;
mod mailbox;
mod message;
mod noop;
mod pattern;
mod plan;
mod prepare;
mod probe;
mod process;
mod program;
mod record;
mod shim;
mod supervise;
mod system;
mod wishes;

pub use clock::boot_ns;
pub use error::ExecError;
pub use machine::machine_resources;
pub use noop::NoopExecutor;
pub use process::{ProcessExecutor, ProcessOptions};
