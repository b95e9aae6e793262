//! Nodes of a real cluster: several servers and workers, each a process with a directory of its own.

mod begin;
mod copies;
mod fill;
mod found;
mod papers;
mod recover;
mod rekey;
mod renew;
mod server;
mod snapshot;
mod worker;

pub use found::{Founded, found};
pub(crate) use papers::Papers;
pub use recover::{Recovery, recover};
pub use rekey::certify;
pub use server::{ServerReady, run_server};
pub(crate) use snapshot::Header;
pub use snapshot::{Restored, SnapshotSummary, check_snapshot, restore};
pub use worker::{WorkerReady, run_worker};
