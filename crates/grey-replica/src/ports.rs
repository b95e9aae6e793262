//! What a replica needs from storage, in plain types: the engine's own never leave this crate.

use bytes::Bytes;

use crate::installation::Installation;

/// The engine's durable promise: never granted again after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// Whom this node voted for in that term; 0 is nobody.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// What an entry of the log carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEntryKind {
    /// A command, or nothing at the start of a term.
    Normal,
    /// A change of membership in the engine's encoding.
    Membership,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The leader's term when it was appended.
    pub term: u64,
    /// Its position; the first is 1 and there are no gaps.
    pub index: u64,
    /// What it carries.
    pub kind: LogEntryKind,
    /// Opaque bytes.
    pub data: Bytes,
}

/// Membership as of an index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Nodes that vote.
    pub voters: Vec<u64>,
    /// Nodes that vote in the configuration that is being left.
    pub voters_outgoing: Vec<u64>,
    /// Nodes that receive the log and do not vote.
    pub learners: Vec<u64>,
    /// Voters of the outgoing configuration that become learners.
    pub learners_next: Vec<u64>,
    /// Whether the joint configuration is left by itself.
    pub auto_leave: bool,
}

/// What must be on disk before `Persisted(number)` is said. Batches are written in order of their number;
/// one fsync may cover several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PersistBatch {
    /// Consecutive from 1 in each life of a replica.
    pub number: u64,
    /// A whole state that replaces everything, in one step with the hard state and before the entries.
    pub installation: Option<Box<Installation>>,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Entries to append; the first may lie at or below the end of the log, and then everything from it on is replaced.
    pub entries: Vec<LogEntry>,
}

/// One changed row of the state; `None` deletes it.
pub type RowChange = (Vec<u8>, Option<Vec<u8>>);

/// The state as of an index, as changed rows since the checkpoint before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Index of the last applied entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Membership as of that index.
    pub membership: Membership,
    /// Changed rows, in key order, no key twice.
    pub rows: Vec<RowChange>,
    /// Entries up to this index may be dropped from the log once the checkpoint is durable; at most `index`, and 0 where none may.
    pub truncate_through: u64,
}

/// What storage found at start, before a replica lives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The last durable hard state.
    pub hard_state: HardState,
    /// Index of the last checkpoint; 0 is none.
    pub checkpoint_index: u64,
    /// Its term.
    pub checkpoint_term: u64,
    /// Membership at the checkpoint.
    pub membership: Membership,
    /// All rows of the state at the checkpoint, in key order.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// Index of the entry before the first one in the log, and its term.
    pub truncated: (u64, u64),
    /// Index of the last entry in the log.
    pub last_index: u64,
}

/// Why an entry could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It lies below the start of the log.
    #[error("entry {0} was dropped after a checkpoint")]
    Truncated(u64),
    /// It lies past the end of the log.
    #[error("entry {0} is not in the log")]
    Missing(u64),
    /// The medium failed or holds something else.
    #[error("{0}")]
    Damaged(String),
}

/// Reads what has been appended, also what is not durable yet. Used for entries that left the replica's own window.
pub trait LogReader: Send {
    /// Entries `low..high`, at least one, stopping before their data exceeds `max_bytes`.
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, ReadError>;

    /// The term of one entry.
    fn term(&self, index: u64) -> Result<u64, ReadError>;
}
