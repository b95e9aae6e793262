//! Removing what nobody names any more, while others put, ask and name.
//!
//! A sweep does not stop anybody. It removes a blob under the same lock under which one is put into its place or is
//! counted on, so each of these comes before or after as a whole. What is put for a record that is yet to be written is
//! held meanwhile; what is held, or was at any time since the sweep began, is not removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use grey_proof::Digest;

use crate::error::BlobError;
use crate::store::BlobStore;

/// Folders that blobs lie in: one for each first byte of a digest.
pub const FOLDERS: u16 = 256;
/// A promise is not written again for less than this.
const PROMISE_STEP: Duration = Duration::from_secs(60);
/// How many blobs that were held a sweep remembers: beyond it ends without removing anything more. 32 bytes each.
const MOST_REMEMBERED: usize = 1 << 20;
/// How many blobs are looked at between two rests.
const BLOBS_A_STEP: usize = 512;

/// What is held, and what was since a sweep began.
#[derive(Debug, Default)]
struct Held {
    /// How often each is held now.
    now: BTreeMap<Digest, u32>,
    /// All that was held at any time since the sweep under way began.
    since: Option<BTreeSet<Digest>>,
}

/// What puts, questions and sweeps agree by.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Taken around what happens to one file; by the digest's last byte, so that the disk is not waited for by all.
    places: [Mutex<()>; 16],
    held: Mutex<Held>,
}

impl Watch {
    fn place(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let [.., last] = digest.0;
        // The remainder is below the number of places, so the place is there.
        let place = self.places.get(usize::from(last) % self.places.len()).unwrap_or(&self.places[0]);
        place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a file into its place. A promise that was given for what lies there goes over.
    pub(crate) fn put_in_place(
        &self,
        incoming: &Path,
        path: &Path,
        digest: &Digest,
        counted_on_until: Option<SystemTime>,
    ) -> std::io::Result<()> {
        let _place = self.place(digest);
        let before = std::fs::metadata(path).and_then(|facts| facts.modified()).ok();
        let before = before.filter(|until| *until > SystemTime::now());
        if let Some(until) = before.filter(|until| Some(*until) > counted_on_until) {
            File::options().write(true).open(incoming)?.set_modified(until)?;
        }
        std::fs::rename(incoming, path)
    }

    pub(crate) fn count_on(
        &self,
        path: &Path,
        digest: &Digest,
        until: SystemTime,
    ) -> std::io::Result<Option<u64>> {
        let _place = self.place(digest);
        let facts = match std::fs::metadata(path) {
            Ok(facts) => facts,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if facts.modified()? + PROMISE_STEP < until {
            File::options().write(true).open(path)?.set_modified(until)?;
        }
        Ok(Some(facts.len()))
    }
}

/// Holds the blobs that were put through it until it is dropped: by then a record names them, or they are not needed.
#[derive(Debug)]
pub struct Hold {
    store: Arc<BlobStore>,
    digests: Vec<Digest>,
}

impl Hold {
    fn add(&mut self, digest: Digest) {
        let mut held = self.store.watch.held();
        *held.now.entry(digest).or_insert(0) += 1;
        if let Some(since) = &mut held.since {
            since.insert(digest);
        }
        self.digests.push(digest);
    }

    /// Keeps bytes, as [`BlobStore::put`] does.
    pub async fn put(&mut self, bytes: Bytes) -> Result<Digest, BlobError> {
        self.add(Digest::of(&bytes));
        self.store.put(bytes, None).await
    }

    /// Keeps a finished file, as [`BlobStore::put_file`] does.
    pub async fn put_file(&mut self, path: &Path, digest: &Digest, size_bytes: u64) -> Result<(), BlobError> {
        self.add(*digest);
        self.store.put_file(path, digest, size_bytes).await
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.store.watch.held();
        for digest in &self.digests {
            if let Some(count) = held.now.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    held.now.remove(digest);
                }
            }
        }
    }
}

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs that are kept.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that were removed.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
}

/// A sweep under way. What is to be kept is found out after it began; one at a time.
#[derive(Debug)]
pub struct Sweep {
    store: Arc<BlobStore>,
    /// What it has come to so far.
    pub swept: Swept,
}

impl BlobStore {
    /// Begins to hold what is put for a record that is yet to be written.
    pub fn hold(self: &Arc<Self>) -> Hold {
        Hold { store: self.clone(), digests: Vec::new() }
    }

    /// Begins a sweep: from now on it is remembered what is held.
    pub fn begin_sweep(self: &Arc<Self>) -> Sweep {
        let mut held = self.watch.held();
        held.since = Some(held.now.keys().copied().collect());
        Sweep { store: self.clone(), swept: Swept::default() }
    }
}

impl Sweep {
    /// Goes through one of the [`FOLDERS`] and removes what is neither named, nor held, nor counted on. `rest` is called
    /// now and then, and before the first is removed `before_first`; what either says ends it.
    pub fn folder<E: From<BlobError>>(
        &mut self,
        folder: u8,
        named: impl Fn(&Digest) -> bool,
        mut rest: impl FnMut() -> Result<(), E>,
        mut before_first: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.store.folder(folder);
        let shown = path.display().to_string();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(BlobError::failed("read", shown)(error).into()),
        };
        let mut removed_any = false;
        for (number, entry) in entries.enumerate() {
            if number % BLOBS_A_STEP == BLOBS_A_STEP - 1 {
                rest()?;
            }
            let entry = entry.map_err(BlobError::failed("read", &shown))?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()) else {
                continue;
            };
            if named(&digest) {
                // One that is gone meanwhile was removed by hand; nothing is to be counted then.
                if let Ok(facts) = entry.metadata() {
                    self.swept.blobs += 1;
                    self.swept.bytes += facts.len();
                }
                continue;
            }
            if !removed_any {
                before_first()?;
                removed_any = true;
            }
            self.look_at(&entry, &digest)?;
        }
        Ok(())
    }

    /// Removes a blob that nobody names, unless it is held or counted on.
    fn look_at(&mut self, entry: &DirEntry, digest: &Digest) -> Result<(), BlobError> {
        let failed = |action| BlobError::failed(action, format!("blob {digest}"));
        let _place = self.store.watch.place(digest);
        let facts = match std::fs::metadata(entry.path()) {
            Ok(facts) => facts,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("look for")(error)),
        };
        let held = {
            let held = self.store.watch.held();
            let since = held.since.as_ref();
            since.is_none_or(|since| since.len() > MOST_REMEMBERED || since.contains(digest))
        };
        let counted_on = facts.modified().map_err(failed("look for"))? > SystemTime::now();
        if held || counted_on {
            self.swept.blobs += 1;
            self.swept.bytes += facts.len();
            return Ok(());
        }
        std::fs::remove_file(entry.path()).map_err(failed("remove"))?;
        self.swept.removed += 1;
        self.swept.removed_bytes += facts.len();
        Ok(())
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.store.watch.held().since = None;
    }
}
