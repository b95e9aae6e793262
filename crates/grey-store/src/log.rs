//! The log: entries by index, the hard state, and where the log begins. One transaction, and so one sync, takes any
//! number of batches.

use std::sync::Arc;

use bytes::Bytes;
use grey_replica::{
    HardState, Installation, LogEntry, LogEntryKind, LogReader, Membership, PersistBatch, ReadError,
};
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::database::{FACTS_KEY, File, contained, facts, failure, open, sealed};
use crate::disk::Disk;
use crate::error::StoreError;

/// The file's name.
pub(crate) const LOG_FILE: &str = "log.redb";
const FORMAT_VERSION: u64 = 1;
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// Checksum, kind and term before an entry's data.
const HEADER_BYTES: usize = 13;

/// What the log says of itself at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogFacts {
    pub(crate) hard_state: HardState,
    pub(crate) truncated: (u64, u64),
    pub(crate) last_index: u64,
}

/// [`LogFacts`] as they are written, in the same transaction as the entries that they speak of.
#[derive(Debug, Serialize, Deserialize)]
struct FactsRow {
    version: u64,
    hard_state: (u64, u64, u64),
    truncated: (u64, u64),
    last_index: u64,
}

impl LogFacts {
    fn begin_after(&mut self, index: u64, term: u64) {
        self.truncated = (index, term);
        self.last_index = index;
    }

    fn encode(&self) -> Vec<u8> {
        let HardState { term, vote, commit } = self.hard_state;
        let row = FactsRow {
            version: FORMAT_VERSION,
            hard_state: (term, vote, commit),
            truncated: self.truncated,
            last_index: self.last_index,
        };
        // Serialising to memory fails only for types without a known length, of which there are none here.
        sealed(FACTS_KEY.as_bytes(), &postcard::to_allocvec(&row).unwrap_or_default())
    }

    fn decode(bytes: &[u8]) -> Result<LogFacts, StoreError> {
        let row: FactsRow = postcard::from_bytes(bytes)
            .map_err(|_| StoreError::damaged(LOG_FILE, "its facts", "they do not decode"))?;
        if row.version != FORMAT_VERSION {
            let file = LOG_FILE.to_owned();
            return Err(StoreError::Version { file, found: row.version, supported: FORMAT_VERSION });
        }
        let (term, vote, commit) = row.hard_state;
        let hard_state = HardState { term, vote, commit };
        Ok(LogFacts { hard_state, truncated: row.truncated, last_index: row.last_index })
    }
}

/// The durable log of one node.
#[derive(Debug)]
pub struct LogStore {
    database: Arc<File>,
    facts: LogFacts,
    failed: bool,
}

/// Reads the log from any thread.
#[derive(Debug, Clone)]
pub struct LogStoreReader {
    database: Arc<File>,
}

fn wrong(error: impl Into<redb::Error>) -> StoreError {
    failure(LOG_FILE, error)
}

fn encode(entry: &LogEntry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + entry.data.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.push(match entry.kind {
        LogEntryKind::Normal => 0,
        LogEntryKind::Membership => 1,
    });
    bytes.extend_from_slice(&entry.term.to_le_bytes());
    bytes.extend_from_slice(&entry.data);
    let checksum = checksum(entry.index, &bytes);
    if let Some(place) = bytes.first_chunk_mut::<4>() {
        *place = checksum.to_le_bytes();
    }
    bytes
}

/// Covers the index too: a right entry in the wrong place is wrong.
fn checksum(index: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), bytes.get(4..).unwrap_or_default())
}

fn decode(index: u64, bytes: &[u8]) -> Result<LogEntry, StoreError> {
    let damaged = |what: &str| StoreError::damaged(LOG_FILE, format!("entry {index}"), what);
    let (stored, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut short"))?;
    if u32::from_le_bytes(*stored) != checksum(index, bytes) {
        return Err(damaged("its checksum does not hold"));
    }
    let (kind, rest) = rest.split_first().ok_or_else(|| damaged("it is cut short"))?;
    let (term, data) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
    let kind = match kind {
        0 => LogEntryKind::Normal,
        1 => LogEntryKind::Membership,
        _ => return Err(damaged("its kind is unknown")),
    };
    Ok(LogEntry { term: u64::from_le_bytes(*term), index, kind, data: Bytes::copy_from_slice(data) })
}

impl LogStore {
    pub(crate) fn open(disk: &dyn Disk) -> Result<(LogStore, LogFacts), StoreError> {
        contained(LOG_FILE, || LogStore::open_uncontained(disk))
    }

    fn open_uncontained(disk: &dyn Disk) -> Result<(LogStore, LogFacts), StoreError> {
        let database = Arc::new(open(disk, LOG_FILE)?);
        let transaction = database.begin_write()?;
        let found = match facts(LOG_FILE, &transaction, FACTS)? {
            None => LogFacts::default(),
            Some(stored) => LogFacts::decode(&stored)?,
        };
        {
            let entries = transaction.open_table(ENTRIES).map_err(wrong)?;
            let first = entries.first().map_err(wrong)?.map(|(index, _)| index.value());
            let last = entries.last().map_err(wrong)?.map(|(index, _)| index.value());
            let expected =
                (found.last_index > found.truncated.0).then_some((found.truncated.0 + 1, found.last_index));
            if first.zip(last) != expected {
                let what = format!("entries {first:?} to {last:?} are there; {expected:?} were written");
                return Err(StoreError::damaged(LOG_FILE, "its entries", what));
            }
            let mut table = transaction.open_table(FACTS).map_err(wrong)?;
            table.insert(FACTS_KEY, found.encode().as_slice()).map_err(wrong)?;
        }
        database.commit(transaction)?;
        Ok((LogStore { database, facts: found, failed: false }, found))
    }

    /// A reader for other threads.
    pub fn reader(&self) -> LogStoreReader {
        LogStoreReader { database: self.database.clone() }
    }

    /// Begins anew after the state of another server that was installed as the last checkpoint: a start that comes between
    /// the two steps of an installation completes it.
    pub(crate) fn begin_after(&mut self, index: u64, term: u64) -> Result<LogFacts, StoreError> {
        let hard_state = self.facts.hard_state;
        let hard_state = HardState { commit: hard_state.commit.max(index), ..hard_state };
        let installation =
            Installation { index, term, membership: Membership::default(), rows: Vec::new(), tree_hashes: 0 };
        self.append(&[PersistBatch {
            installation: Some(Box::new(installation)),
            hard_state: Some(hard_state),
            ..PersistBatch::default()
        }])?;
        Ok(self.facts)
    }

    /// Writes batches in their order. One that installs a state drops the whole log; the state itself must have been given to
    /// [`crate::SideStorage::install`] before. When this returns, all of them are durable; after an error none may be taken for
    /// durable, nothing more is written, and the node must end.
    pub fn append(&mut self, batches: &[PersistBatch]) -> Result<(), StoreError> {
        self.write(batches, None)
    }

    /// Drops entries up to `index`, once a checkpoint covers them. Does nothing where the log begins behind them, as after a whole
    /// state that came since the checkpoint.
    pub fn truncate_through(&mut self, index: u64) -> Result<(), StoreError> {
        self.write(&[], Some(index))
    }

    /// Both with one sync: writes batches like [`LogStore::append`], then drops entries like [`LogStore::truncate_through`].
    pub fn write(
        &mut self,
        batches: &[PersistBatch],
        truncate_through: Option<u64>,
    ) -> Result<(), StoreError> {
        let truncated = truncate_through.filter(|index| *index > self.facts.truncated.0);
        if batches.is_empty() && truncated.is_none() {
            return Ok(());
        }
        let mut facts = self.facts;
        self.guarded(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(false);
            {
                let mut entries = transaction.open_table(ENTRIES).map_err(wrong)?;
                for batch in batches {
                    if let Some(installation) = &batch.installation {
                        entries.retain(|_, _| false).map_err(wrong)?;
                        facts.begin_after(installation.index, installation.term);
                    }
                    facts.hard_state = batch.hard_state.unwrap_or(facts.hard_state);
                    if let Some(first) = batch.entries.first()
                        && facts.last_index >= first.index
                    {
                        entries.retain_in(first.index.., |_, _| false).map_err(wrong)?;
                    }
                    for entry in &batch.entries {
                        entries.insert(entry.index, encode(entry).as_slice()).map_err(wrong)?;
                        facts.last_index = entry.index;
                    }
                }
                if let Some(index) = truncated.filter(|index| *index > facts.truncated.0) {
                    let term = match entries.get(index).map_err(wrong)? {
                        Some(entry) => decode(index, entry.value())?.term,
                        None => {
                            return Err(StoreError::damaged(
                                LOG_FILE,
                                format!("entry {index}"),
                                "it is missing",
                            ));
                        }
                    };
                    entries.retain_in(..=index, |_, _| false).map_err(wrong)?;
                    facts.truncated = (index, term);
                    facts.last_index = facts.last_index.max(index);
                }
                let mut table = transaction.open_table(FACTS).map_err(wrong)?;
                table.insert(FACTS_KEY, facts.encode().as_slice()).map_err(wrong)?;
            }
            database.commit(transaction)
        })?;
        self.facts = facts;
        Ok(())
    }

    fn guarded(&mut self, write: impl FnOnce(&File) -> Result<(), StoreError>) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed { file: LOG_FILE.to_owned() });
        }
        // Until it is known to have gone well it has failed: also when the write unwinds.
        self.failed = true;
        contained(LOG_FILE, || write(&self.database))?;
        self.failed = false;
        Ok(())
    }
}

impl LogStoreReader {
    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, StoreError> {
        let transaction = self.database.begin_read()?;
        let entries = transaction.open_table(ENTRIES).map_err(wrong)?;
        let (mut taken, mut size, mut next) = (Vec::new(), 0u64, low);
        for row in entries.range(low..high).map_err(wrong)? {
            let (index, value) = row.map_err(wrong)?;
            let bytes = value.value();
            size = size.saturating_add(bytes.len() as u64);
            if size > max_bytes && !taken.is_empty() {
                break;
            }
            if index.value() != next {
                return Err(StoreError::damaged(LOG_FILE, format!("entry {next}"), "it is missing"));
            }
            taken.push(decode(next, bytes)?);
            next += 1;
        }
        Ok(taken)
    }
}

impl LogReader for LogStoreReader {
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, ReadError> {
        let entries = contained(LOG_FILE, || self.read(low, high, max_bytes))
            .map_err(|error| ReadError::Damaged(error.to_string()))?;
        if entries.is_empty() {
            // Whoever asks knows the log's bounds, so what is not there has gone.
            let gone = StoreError::damaged(LOG_FILE, format!("entry {low}"), "it is missing");
            return Err(ReadError::Damaged(gone.to_string()));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64, ReadError> {
        let entries = self.entries(index, index.saturating_add(1), u64::MAX)?;
        entries.first().map(|entry| entry.term).ok_or(ReadError::Missing(index))
    }
}
