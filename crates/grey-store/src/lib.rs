//! What a node keeps on its disk: the log, checkpoints of the state, history, the tree of reports, the worker's outbox.
//!
//! A write that is acknowledged is durable. A damaged file is named with the place of the damage, never passed over.
//! After a failed write or sync a store takes nothing more: the node ends and starts anew from what is on the disk.

mod checkpoint;
mod collector;
mod database;
mod disk;
mod error;
mod gap;
mod gone;
mod history;
mod journal;
mod log;
mod snapshot;
mod storage;
mod tree;

pub use checkpoint::{CheckpointStore, SidePosition};
pub use collector::{HistoryCollector, RecordBatch, SegmentFacts};
pub use disk::{Disk, Folder, Medium};
pub use error::StoreError;
pub use gap::Filling;
pub use gone::Horizons;
pub use history::{HistoryReader, HistoryWriter, RecordKey, RecordKind};
pub use journal::Journal;
pub use log::{LogStore, LogStoreReader};
pub use snapshot::{Frozen, Restoring, SnapshotFacts, SnapshotPart, SnapshotReader, SnapshotWriter};
pub use storage::{DirectoryLock, SideStorage, Storage, StorageOptions, clear, free_bytes, total_bytes};
pub use tree::TreeFile;
