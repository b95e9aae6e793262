//! redb over a [`Medium`], and its errors with the file's name.

use std::io;
use std::sync::Arc;

use redb::{Database, StorageBackend};

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

/// Opens or creates a database.
pub(crate) fn open(disk: &dyn Disk, file: &'static str) -> Result<Database, StoreError> {
    let medium = disk.open(file).map_err(|error| StoreError::io(file, "open", error))?;
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Backend(medium))
        .map_err(|error| failure(file, error))
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
