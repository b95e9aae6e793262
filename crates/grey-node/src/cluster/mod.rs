//! Nodes of a real cluster: several servers and workers, each a process with a directory of its own.

mod found;
mod papers;
mod renew;
mod server;
mod worker;

pub use found::{Founded, found};
pub use server::{ServerReady, run_server};
pub use worker::{WorkerReady, run_worker};
