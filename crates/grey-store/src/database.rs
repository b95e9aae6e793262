//! redb over a [`Medium`], and its errors with the file's name.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction};

use crate::disk::{Disk, Medium};
use crate::error::StoreError;

/// Memory that redb may hold for one file, in bytes: a node must stay small.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
struct Backend(Arc<dyn Medium>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

/// A database of redb. Its end is contained as its use is: redb writes once more when it is closed, and panics there too
/// where the structure contradicts itself, which would end the process if it happened while another panic unwinds. What
/// is lost by it is only that the next start looks through the whole file.
#[derive(Debug)]
pub(crate) struct File {
    name: &'static str,
    database: Option<Database>,
}

impl File {
    /// Begins a transaction that writes.
    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        self.open()?.begin_write().map_err(|error| failure(self.name, error))
    }

    /// Begins a transaction that reads.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        self.open()?.begin_read().map_err(|error| failure(self.name, error))
    }

    /// Makes a transaction durable.
    ///
    /// redb frees the pages that a commit replaced right after it, in a commit of its own that is not durable; as long as anybody
    /// reads the state before, it leaves them to the next commit, which looks after such pages anyway. So somebody does.
    pub(crate) fn commit(&self, transaction: WriteTransaction) -> Result<(), StoreError> {
        let before = self.begin_read()?;
        transaction.commit().map_err(|error| failure(self.name, error))?;
        drop(before);
        Ok(())
    }

    fn open(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or_else(|| StoreError::Failed { file: self.name.to_owned() })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let database = self.database.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
    }
}

/// Opens or creates a database.
pub(crate) fn open(disk: &dyn Disk, file: &'static str) -> Result<File, StoreError> {
    let medium = disk.open(file).map_err(|error| StoreError::io(file, "open", error))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Backend(medium))
        .map_err(|error| failure(file, error))?;
    Ok(File { name: file, database: Some(database) })
}

/// Any error of redb, told of the file.
pub(crate) fn failure(file: &str, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            StoreError::damaged(file, "its header", source)
        }
        redb::Error::Io(source) => StoreError::io(file, "read or write", source),
        redb::Error::PreviousIo => StoreError::Failed { file: file.to_owned() },
        redb::Error::UpgradeRequired(found) => {
            StoreError::Version { file: file.to_owned(), found: u64::from(found), supported: 3 }
        }
        other => StoreError::damaged(file, "its structure", other),
    }
}

/// Runs what uses redb, which panics where the structure of a damaged file contradicts itself: here that is an error like
/// any other. The caller takes nothing more from the database afterwards.
pub(crate) fn contained<T>(file: &str, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        let what = said.unwrap_or_else(|| "it contradicts itself".to_owned());
        Err(StoreError::damaged(file, "its structure", what))
    })
}

/// A value behind its checksum, which covers the key too: a right value in the wrong place is wrong.
pub(crate) fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 4);
    bytes.extend_from_slice(&crc32c::crc32c_append(crc32c::crc32c(key), value).to_le_bytes());
    bytes.extend_from_slice(value);
    bytes
}

/// The value of what [`sealed`] made.
pub(crate) fn unsealed(file: &str, key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    let place = || format!("row {}", key.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    match bytes.split_first_chunk::<4>() {
        Some((stored, value))
            if u32::from_le_bytes(*stored) == crc32c::crc32c_append(crc32c::crc32c(key), value) =>
        {
            Ok(value.to_vec())
        }
        _ => Err(StoreError::damaged(file, place(), "its checksum does not hold")),
    }
}

/// The facts that a file keeps about itself; nothing in a file that holds no table yet. A file with tables and without
/// facts is damaged, not new.
pub(crate) fn facts(
    file: &str,
    transaction: &redb::WriteTransaction,
    table: redb::TableDefinition<'static, &'static str, &'static [u8]>,
) -> Result<Option<Vec<u8>>, StoreError> {
    let wrong = |error: redb::Error| failure(file, error);
    let tables = transaction.list_tables().map_err(|error| wrong(error.into()))?.count();
    if tables == 0 {
        return Ok(None);
    }
    let table = transaction.open_table(table).map_err(|error| wrong(error.into()))?;
    let stored = redb::ReadableTable::get(&table, FACTS_KEY).map_err(|error| wrong(error.into()))?;
    match stored {
        Some(stored) => Ok(Some(unsealed(file, FACTS_KEY.as_bytes(), stored.value())?)),
        None => Err(StoreError::damaged(file, "its facts", "they are missing")),
    }
}

/// Under which the facts stand.
pub(crate) const FACTS_KEY: &str = "facts";
