//! The data directory of one node: who has it, what is in it, and what was found at start.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use grey_replica::{
    Checkpoint, HardState, Installation, LogEntry, LogEntryKind, Membership, PersistBatch, Recovered,
};

use crate::checkpoint::{CheckpointStore, SidePosition};
use crate::disk::{Disk, Folder};
use crate::error::StoreError;
use crate::history::HistoryWriter;
use crate::log::LogStore;
use crate::snapshot::Frozen;
use crate::tree::TreeFile;

const LOCK_FILE: &str = "lock";

/// Choices of a node's storage.
#[derive(Debug, Clone, Copy)]
pub struct StorageOptions {
    /// Length at which a history segment is sealed, in bytes.
    pub segment_bytes: u64,
}

impl Default for StorageOptions {
    fn default() -> StorageOptions {
        StorageOptions { segment_bytes: 16 * 1024 * 1024 }
    }
}

/// Holds a data directory for this process; released by the system when the process ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the directory, creating it where needed, or names the process that has it.
    pub fn take(directory: &Path) -> Result<DirectoryLock, StoreError> {
        let shown = directory.display().to_string();
        Folder::open(directory).map_err(|error| StoreError::io(&shown, "create", error))?;
        let path = directory.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| StoreError::io(&shown, "lock", error))?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut process = String::new();
            // Only for the message: who cannot be named is still there.
            drop(file.read_to_string(&mut process));
            return Err(StoreError::Locked { directory: shown, process: process.trim().to_owned() });
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| StoreError::io(&shown, "lock", error))?;
        Ok(DirectoryLock { _file: file })
    }
}

/// The durable parts of a server, each to be owned by the thread that writes it.
#[derive(Debug)]
pub struct Storage {
    /// The log.
    pub log: LogStore,
    /// Checkpoints, history and tree.
    pub side: SideStorage,
}

/// What is written at checkpoints, and what only checkpoints make durable.
#[derive(Debug)]
pub struct SideStorage {
    checkpoint: CheckpointStore,
    /// History.
    pub history: HistoryWriter,
    /// Hashes of the log of reports.
    pub tree: TreeFile,
    /// Up to which entry history lacks what a whole state came with; 0 where it lacks nothing.
    pub(crate) gap: u64,
}

impl Storage {
    /// Opens everything and returns what a replica is brought back from.
    pub fn open(disk: Arc<dyn Disk>, options: &StorageOptions) -> Result<(Storage, Recovered), StoreError> {
        let (mut log, mut facts) = LogStore::open(disk.as_ref())?;
        let (checkpoint, found) = CheckpointStore::open(disk.as_ref())?;
        let found = found.unwrap_or_default();
        if found.installed && facts.truncated != (found.index, found.term) {
            facts = log.begin_after(found.index, found.term)?;
        }
        if facts.truncated.0 > found.index {
            let what = format!(
                "the log begins after {} and the checkpoint ends at {}",
                facts.truncated.0, found.index
            );
            return Err(StoreError::damaged(crate::checkpoint::STATE_FILE, "its facts", what));
        }
        let last_index = facts.last_index.max(facts.truncated.0);
        if last_index < found.index {
            let what = format!("it ends at entry {last_index}, before the checkpoint at {}", found.index);
            return Err(StoreError::damaged(crate::log::LOG_FILE, "its entries", what));
        }
        let side = found.side;
        let history = HistoryWriter::open(
            disk.clone(),
            side.history_segment,
            side.history_bytes,
            options.segment_bytes,
        )?;
        let tree = TreeFile::open(disk.as_ref(), side.tree_hashes, found.tree_absent)?;
        let recovered = Recovered {
            hard_state: facts.hard_state,
            checkpoint_index: found.index,
            checkpoint_term: found.term,
            membership: found.membership,
            rows: found.rows,
            truncated: facts.truncated,
            last_index,
        };
        Ok((Storage { log, side: SideStorage { checkpoint, history, tree, gap: found.gap } }, recovered))
    }
}

impl Storage {
    /// Has the cluster go on with `voter` alone from here: `command`, an encoded entry, follows the last one as if it had been agreed on, and
    /// nobody else votes. To be done again after a crash; durable when this returns. What is here must be a checkpoint without entries
    /// behind it.
    ///
    /// # Errors
    /// When there are entries behind the checkpoint, or the disk fails.
    pub fn go_on_alone(
        disk: Arc<dyn Disk>,
        options: &StorageOptions,
        voter: u64,
        command: Vec<u8>,
    ) -> Result<(), StoreError> {
        let (mut storage, found) = Storage::open(disk, options)?;
        if found.last_index != found.checkpoint_index {
            let what = format!(
                "entries up to {} lie behind the checkpoint at {}",
                found.last_index, found.checkpoint_index
            );
            return Err(StoreError::damaged(crate::checkpoint::STATE_FILE, "its facts", what));
        }
        let (index, term) = (found.last_index + 1, found.hard_state.term.max(found.checkpoint_term) + 1);
        let entry = LogEntry { term, index, kind: LogEntryKind::Normal, data: command.into() };
        storage.log.append(&[PersistBatch {
            number: 1,
            hard_state: Some(HardState { term, vote: voter, commit: index }),
            entries: vec![entry],
            ..PersistBatch::default()
        }])?;
        // The other way round a crash between the two would leave a voter that does not know that it is alone.
        storage.side.write_checkpoint(&Checkpoint {
            index: found.checkpoint_index,
            term: found.checkpoint_term,
            membership: Membership { voters: vec![voter], ..Membership::default() },
            ..Checkpoint::default()
        })
    }
}

impl SideStorage {
    /// What is here as of the last checkpoint, to be read by another thread; nothing before the first one.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn freeze(&self) -> Result<Option<Frozen>, StoreError> {
        let (history, tree) = (self.history.collector(), self.tree.clone());
        Ok(self.checkpoint.freeze()?.map(|rows| Frozen { rows, history, tree }))
    }

    /// Makes history and tree durable, then writes the checkpoint; durable when this returns. Every effect up to the
    /// checkpoint's index must have been appended before, and none after it.
    pub fn write_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.history.sync()?;
        self.tree.sync()?;
        let (history_segment, history_bytes) = self.history.position();
        let side = SidePosition { history_segment, history_bytes, tree_hashes: self.tree.hashes() };
        self.checkpoint.write(checkpoint, side, self.tree.absent(), self.gap)?;
        self.history.checkpointed(history_segment);
        Ok(())
    }
}

impl SideStorage {
    /// Puts the state of another server in the place of what is here: the first of two durable steps, of which the second
    /// is the log's ([`LogStore::append`] with the same batch). A start between them completes the second. What ended before and
    /// after the last applied entry is in no history of this server and no part of its tree file: both go on behind a gap.
    pub fn install(&mut self, installation: &Installation) -> Result<(), StoreError> {
        self.history.sync()?;
        self.tree.skip_to(installation.tree_hashes)?;
        self.tree.sync()?;
        let (history_segment, history_bytes) = self.history.position();
        let side = SidePosition { history_segment, history_bytes, tree_hashes: self.tree.hashes() };
        self.gap = installation.index;
        self.checkpoint.install(installation, side, self.tree.absent(), self.gap)?;
        self.history.checkpointed(history_segment);
        Ok(())
    }
}

/// Removes log, state, history and tree, where a directory is to begin anew.
///
/// # Errors
/// When the disk fails.
pub fn clear(disk: &dyn Disk) -> Result<(), StoreError> {
    let names = disk.list().map_err(|error| StoreError::io("the directory", "list", error))?;
    let fixed =
        [crate::log::LOG_FILE, crate::checkpoint::STATE_FILE, crate::tree::TREE_FILE, crate::gone::GONE_FILE];
    let is_ours = |name: &&String| fixed.contains(&name.as_str()) || crate::history::is_file(name);
    for name in names.iter().filter(is_ours) {
        disk.remove(name).map_err(|error| StoreError::io(name, "remove", error))?;
    }
    Ok(())
}

/// Bytes free for this user on the disk of a path.
pub fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let facts = rustix::fs::statvfs(path)
        .map_err(|error| StoreError::io(&path.display().to_string(), "measure", error.into()))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Size of the disk of a path, in bytes.
pub fn total_bytes(path: &Path) -> Result<u64, StoreError> {
    let facts = rustix::fs::statvfs(path)
        .map_err(|error| StoreError::io(&path.display().to_string(), "measure", error.into()))?;
    Ok(facts.f_blocks.saturating_mul(facts.f_frsize))
}
