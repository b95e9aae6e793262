//! A disk in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grey_store::{Disk, Medium};

/// The most bytes that a file may grow to: a length that a damaged file asks for must not take the machine's memory.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

type Content = Arc<Mutex<Vec<u8>>>;

/// Files by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<BTreeMap<String, Content>>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    pub(crate) fn holding(files: &BTreeMap<String, Vec<u8>>) -> MemoryDisk {
        let content = |bytes: &Vec<u8>| Arc::new(Mutex::new(bytes.clone()));
        let files = files.iter().map(|(name, bytes)| (name.clone(), content(bytes)));
        MemoryDisk(Arc::new(Mutex::new(files.collect())))
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        locked(&self.0).iter().map(|(name, content)| (name.clone(), locked(content).clone())).collect()
    }
}

#[derive(Debug)]
struct MemoryMedium(Content);

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        Ok(Arc::new(MemoryMedium(locked(&self.0).entry(name.to_owned()).or_default().clone())))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(locked(&self.0).keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        locked(&self.0).remove(name);
        Ok(())
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = locked(&self.0);
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl MemoryMedium {
    fn grown(&self, length: u64) -> io::Result<MutexGuard<'_, Vec<u8>>> {
        if length > FILE_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = locked(&self.0);
        let length = length as usize;
        if content.len() < length {
            content.resize(length, 0);
        }
        Ok(content)
    }
}

impl Medium for MemoryMedium {
    fn length(&self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = locked(&self.0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = content.get(from..from.saturating_add(out.len()));
        found.map(|found| out.copy_from_slice(found)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        let mut content = self.grown(end)?;
        let from = offset as usize;
        if let Some(place) = content.get_mut(from..from + data.len()) {
            place.copy_from_slice(data);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.grown(length)?.truncate(length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
