//! Checkpoints: the rows of the state, and how far history and tree had come, in one transaction.

use grey_replica::{Checkpoint, Installation, Membership, RowChange};
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::database::{FACTS_KEY, File, contained, facts, failure, open, sealed, unsealed};
use crate::disk::Disk;
use crate::error::StoreError;

/// The file's name.
pub(crate) const STATE_FILE: &str = "state.redb";
const FORMAT_VERSION: u64 = 1;
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// How far the files beside the state had come at a checkpoint: what follows is regenerated from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SidePosition {
    /// Number of the open history segment.
    pub history_segment: u32,
    /// Its length in bytes.
    pub history_bytes: u64,
    /// Hashes in the tree file.
    pub tree_hashes: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Facts {
    version: u64,
    index: u64,
    term: u64,
    membership: MembershipFact,
    side: SidePosition,
    /// Runs of hashes that the tree file does not have.
    tree_absent: Vec<(u64, u64)>,
    /// Whether this is the state of another server, and the log begins right after it.
    installed: bool,
    /// How many rows there are, so that one that is gone is missed.
    rows: u64,
    /// Up to which entry history lacks what a whole state came with; 0 where it lacks nothing.
    gap: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct MembershipFact {
    voters: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
}

impl From<&Membership> for MembershipFact {
    fn from(membership: &Membership) -> MembershipFact {
        MembershipFact {
            voters: membership.voters.clone(),
            voters_outgoing: membership.voters_outgoing.clone(),
            learners: membership.learners.clone(),
            learners_next: membership.learners_next.clone(),
            auto_leave: membership.auto_leave,
        }
    }
}

impl From<MembershipFact> for Membership {
    fn from(membership: MembershipFact) -> Membership {
        Membership {
            voters: membership.voters,
            voters_outgoing: membership.voters_outgoing,
            learners: membership.learners,
            learners_next: membership.learners_next,
            auto_leave: membership.auto_leave,
        }
    }
}

/// What the last checkpoint holds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) membership: Membership,
    pub(crate) side: SidePosition,
    pub(crate) tree_absent: Vec<(u64, u64)>,
    pub(crate) installed: bool,
    pub(crate) gap: u64,
    pub(crate) rows: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The durable state of one node as of its last checkpoint.
#[derive(Debug)]
pub struct CheckpointStore {
    database: File,
    failed: bool,
}

fn wrong(error: impl Into<redb::Error>) -> StoreError {
    failure(STATE_FILE, error)
}

impl CheckpointStore {
    pub(crate) fn open(disk: &dyn Disk) -> Result<(CheckpointStore, Option<Found>), StoreError> {
        contained(STATE_FILE, || CheckpointStore::open_uncontained(disk))
    }

    fn open_uncontained(disk: &dyn Disk) -> Result<(CheckpointStore, Option<Found>), StoreError> {
        let database = open(disk, STATE_FILE)?;
        let transaction = database.begin_write()?;
        let found = match facts(STATE_FILE, &transaction, FACTS)? {
            None => None,
            Some(stored) => Some(read(&stored, &transaction.open_table(ROWS).map_err(wrong)?)?),
        };
        database.commit(transaction)?;
        Ok((CheckpointStore { database, failed: false }, found))
    }

    /// Writes a checkpoint; durable when this returns. The history and the tree must be durable up to `side` before.
    pub fn write(
        &mut self,
        checkpoint: &Checkpoint,
        side: SidePosition,
        tree_absent: Vec<(u64, u64)>,
        gap: u64,
    ) -> Result<(), StoreError> {
        let facts = facts_of(checkpoint.index, checkpoint.term, &checkpoint.membership);
        let facts = Facts { side, tree_absent, gap, ..facts };
        self.guarded(|store| store.write_rows(&checkpoint.rows, false, facts))
    }

    /// Puts the state of another server in the place of what is here; durable when this returns.
    pub fn install(
        &mut self,
        installation: &Installation,
        side: SidePosition,
        tree_absent: Vec<(u64, u64)>,
        gap: u64,
    ) -> Result<(), StoreError> {
        let facts = facts_of(installation.index, installation.term, &installation.membership);
        let rows: Vec<RowChange> =
            installation.rows.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let facts = Facts { side, tree_absent, gap, installed: true, ..facts };
        self.guarded(|store| store.write_rows(&rows, true, facts))
    }

    /// The rows as they are now, whatever is written meanwhile.
    pub(crate) fn freeze(&self) -> Result<Option<FrozenRows>, StoreError> {
        contained(STATE_FILE, || {
            let transaction = self.database.begin_read()?;
            if transaction.list_tables().map_err(wrong)?.next().is_none() {
                return Ok(None);
            }
            let stored = {
                let table = transaction.open_table(FACTS).map_err(wrong)?;
                let stored = table.get(FACTS_KEY).map_err(wrong)?;
                let missing = || StoreError::damaged(STATE_FILE, "its facts", "they are missing");
                unsealed(STATE_FILE, FACTS_KEY.as_bytes(), stored.ok_or_else(missing)?.value())?
            };
            Ok(Some(FrozenRows { transaction, facts: decode(&stored)? }))
        })
    }

    fn guarded(
        &mut self,
        write: impl FnOnce(&CheckpointStore) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed { file: STATE_FILE.to_owned() });
        }
        self.failed = true;
        contained(STATE_FILE, || write(self))?;
        self.failed = false;
        Ok(())
    }

    fn write_rows(&self, changes: &[RowChange], afresh: bool, mut facts: Facts) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut rows = transaction.open_table(ROWS).map_err(wrong)?;
            if afresh {
                rows.retain(|_, _| false).map_err(wrong)?;
            }
            for (key, value) in changes {
                match value {
                    Some(value) => {
                        drop(rows.insert(key.as_slice(), sealed(key, value).as_slice()).map_err(wrong)?)
                    }
                    None => drop(rows.remove(key.as_slice()).map_err(wrong)?),
                }
            }
            facts.rows = rows.len().map_err(wrong)?;
            // Serialising to memory fails only for types without a known length, of which there are none here.
            let facts = postcard::to_allocvec(&facts).unwrap_or_default();
            let mut table = transaction.open_table(FACTS).map_err(wrong)?;
            table.insert(FACTS_KEY, sealed(FACTS_KEY.as_bytes(), &facts).as_slice()).map_err(wrong)?;
        }
        self.database.commit(transaction)
    }
}

fn facts_of(index: u64, term: u64, membership: &Membership) -> Facts {
    Facts { version: FORMAT_VERSION, index, term, membership: membership.into(), ..Facts::default() }
}

/// The rows of one checkpoint.
pub(crate) struct FrozenRows {
    transaction: redb::ReadTransaction,
    facts: Facts,
}

impl core::fmt::Debug for FrozenRows {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.debug_struct("FrozenRows").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl FrozenRows {
    /// Index and term of its last entry, and who belonged to the cluster then.
    pub(crate) fn place(&self) -> (u64, u64, &MembershipFact) {
        (self.facts.index, self.facts.term, &self.facts.membership)
    }

    /// How far the files beside it had come, and which hashes are absent.
    pub(crate) fn side(&self) -> (SidePosition, &[(u64, u64)]) {
        (self.facts.side, &self.facts.tree_absent)
    }

    /// Gives each row, in key order.
    pub(crate) fn each(
        &self,
        mut row: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        contained(STATE_FILE, || {
            let table = self.transaction.open_table(ROWS).map_err(wrong)?;
            for found in table.iter().map_err(wrong)? {
                let (key, value) = found.map_err(wrong)?;
                row(key.value(), &unsealed(STATE_FILE, key.value(), value.value())?)?;
            }
            Ok(())
        })
    }
}

fn decode(facts: &[u8]) -> Result<Facts, StoreError> {
    let facts: Facts = postcard::from_bytes(facts)
        .map_err(|_| StoreError::damaged(STATE_FILE, "its facts", "they do not decode"))?;
    if facts.version != FORMAT_VERSION {
        let file = STATE_FILE.to_owned();
        return Err(StoreError::Version { file, found: facts.version, supported: FORMAT_VERSION });
    }
    Ok(facts)
}

fn read(facts: &[u8], rows: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Found, StoreError> {
    let facts = decode(facts)?;
    let mut found = Vec::new();
    for row in rows.iter().map_err(wrong)? {
        let (key, value) = row.map_err(wrong)?;
        let key = key.value().to_vec();
        let value = unsealed(STATE_FILE, &key, value.value())?;
        found.push((key, value));
    }
    if found.len() as u64 != facts.rows {
        let what = format!("there are {}; {} were written", found.len(), facts.rows);
        return Err(StoreError::damaged(STATE_FILE, "its rows", what));
    }
    Ok(Found {
        index: facts.index,
        term: facts.term,
        membership: facts.membership.into(),
        side: facts.side,
        tree_absent: facts.tree_absent,
        installed: facts.installed,
        gap: facts.gap,
        rows: found,
    })
}
