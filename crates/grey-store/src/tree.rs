//! The hashes of the cluster's log of reports, 32 bytes each, in the order in which the tree completes them.

use std::sync::{Arc, Mutex};

use grey_proof::Digest;

use crate::disk::{Disk, Medium};
use crate::error::StoreError;

/// The file's name.
pub(crate) const TREE_FILE: &str = "tree.hashes";
const HASH_BYTES: u64 = 32;

/// The file of hashes, shared by the thread that appends and those that read.
#[derive(Debug, Clone)]
pub struct TreeFile {
    medium: Arc<dyn Medium>,
    reach: Arc<Mutex<Reach>>,
}

/// How far the file reaches, and what in it was never written here.
#[derive(Debug, Default)]
struct Reach {
    hashes: u64,
    /// Runs of hashes of before a whole state was taken over: first and the one after the last, ascending.
    absent: Vec<(u64, u64)>,
}

impl TreeFile {
    /// Opens the file and cuts off what the last checkpoint does not cover: it is regenerated from the log.
    pub(crate) fn open(
        disk: &dyn Disk,
        hashes: u64,
        absent: Vec<(u64, u64)>,
    ) -> Result<TreeFile, StoreError> {
        let medium = disk.open(TREE_FILE).map_err(|error| StoreError::io(TREE_FILE, "open", error))?;
        let length = medium.length().map_err(|error| StoreError::io(TREE_FILE, "measure", error))?;
        if length < hashes * HASH_BYTES {
            let what = format!("it holds {} hashes of {hashes}", length / HASH_BYTES);
            return Err(StoreError::damaged(TREE_FILE, format!("byte {length}"), what));
        }
        medium.set_len(hashes * HASH_BYTES).map_err(|error| StoreError::io(TREE_FILE, "cut", error))?;
        Ok(TreeFile { medium, reach: Arc::new(Mutex::new(Reach { hashes, absent })) })
    }

    fn reach(&self) -> std::sync::MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How many hashes.
    pub fn hashes(&self) -> u64 {
        self.reach().hashes
    }

    /// Runs of hashes that are not here, ascending.
    pub(crate) fn absent(&self) -> Vec<(u64, u64)> {
        self.reach().absent.clone()
    }

    /// Goes on at `hashes`: what lies between is not here.
    pub(crate) fn skip_to(&self, hashes: u64) -> Result<(), StoreError> {
        let mut reach = self.reach();
        if hashes > reach.hashes {
            let length = hashes.saturating_mul(HASH_BYTES);
            self.medium.set_len(length).map_err(|error| StoreError::io(TREE_FILE, "extend", error))?;
            let run = (reach.hashes, hashes);
            reach.absent.push(run);
            reach.hashes = hashes;
        }
        Ok(())
    }

    /// Puts hashes of another server's file, from the one of this number on, where they are absent. Readers see them at once; they count as
    /// here, durably, with the next checkpoint.
    pub(crate) fn fill(&self, from: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut reach = self.reach();
        let to = from.saturating_add(bytes.len() as u64 / HASH_BYTES);
        let mut left = Vec::new();
        for (begins, ends) in core::mem::take(&mut reach.absent) {
            let (first, last) = (begins.max(from), ends.min(to));
            if first >= last {
                left.push((begins, ends));
                continue;
            }
            let place = |hash: u64| usize::try_from((hash - from) * HASH_BYTES).unwrap_or(usize::MAX);
            let piece = bytes.get(place(first)..place(last)).unwrap_or_default();
            let written = self.medium.write_at(first * HASH_BYTES, piece);
            written.map_err(|error| StoreError::io(TREE_FILE, "write", error))?;
            left.extend([(begins, first), (last, ends)].into_iter().filter(|(begins, ends)| begins < ends));
        }
        reach.absent = left;
        Ok(())
    }

    /// Appends hashes. Readers see them at once; they are durable after [`TreeFile::sync`].
    pub fn append(&self, hashes: &[Digest]) -> Result<(), StoreError> {
        let mut reach = self.reach();
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        self.medium
            .write_at(reach.hashes * HASH_BYTES, &bytes)
            .map_err(|error| StoreError::io(TREE_FILE, "write", error))?;
        reach.hashes += hashes.len() as u64;
        Ok(())
    }

    /// Makes everything appended durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.medium.sync().map_err(|error| StoreError::io(TREE_FILE, "sync", error))
    }

    /// So many hashes from one on as they stand in the file, those included that are absent.
    pub(crate) fn raw(&self, from: u64, count: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; usize::try_from(count.saturating_mul(HASH_BYTES)).unwrap_or(0)];
        let read = self.medium.read_at(from.saturating_mul(HASH_BYTES), &mut bytes);
        read.map_err(|error| StoreError::io(TREE_FILE, "read", error))?;
        Ok(bytes)
    }

    /// One hash.
    pub fn read(&self, index: u64) -> Result<Digest, StoreError> {
        if index >= self.hashes() {
            return Err(StoreError::damaged(TREE_FILE, format!("hash {index}"), "it is missing"));
        }
        let is_absent = |(from, to): &(u64, u64)| (*from..*to).contains(&index);
        if self.reach().absent.iter().any(is_absent) {
            return Err(StoreError::Absent { file: TREE_FILE.to_owned(), what: format!("hash {index}") });
        }
        let mut hash = Digest::ZERO;
        self.medium
            .read_at(index * HASH_BYTES, &mut hash.0)
            .map_err(|error| StoreError::io(TREE_FILE, "read", error))?;
        Ok(hash)
    }
}
