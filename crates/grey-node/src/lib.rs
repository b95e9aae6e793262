//! The shell around the core: threads, files, HTTP. It decides nothing.

mod blobs;
mod claims;
mod clock;
mod cluster;
pub mod config;
mod control;
mod cosign;
mod directory;
mod disk_room;
mod engine;
mod error;
mod estimate;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod handle;
mod http;
mod identity;
mod inspection;
mod issuing;
mod items;
mod level;
mod local;
mod metrics;
mod peers;
mod places;
mod plane;
mod pressure;
mod prover;
mod rate;
mod records;
mod retention;
mod snapshot;
mod threads;
mod traces;
pub mod units;
mod views;
mod worker;

pub use cluster::{
    Founded, Recovery, Restored, ServerReady, SnapshotSummary, WorkerReady, certify, check_snapshot, found,
    recover, restore, run_server, run_worker,
};
pub use error::NodeError;
pub use grey_store::StoreError;
pub use inspection::Inspection;
pub use local::{Intake, LocalOptions, Ready, SOCKET_FILE, run_local};
pub use retention::Retention;
