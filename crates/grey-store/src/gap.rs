//! What a server lacks of history since it took over a whole state, and how it gets that from another one.
//!
//! What comes is appended to history like anything new, and put into the tree's file where that has a hole. Until the next checkpoint the
//! gap counts as open: a start before that cuts history back to the last one, and everything comes once more.

use crate::error::StoreError;
use crate::snapshot::{SnapshotFacts, SnapshotPart};
use crate::storage::SideStorage;

/// A snapshot of another server as it is taken in for what is lacking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    facts: SnapshotFacts,
    /// How many hashes have come.
    hashes: u64,
}

impl Filling {
    /// Begins with what the snapshot says of itself.
    pub fn begin(facts: SnapshotFacts) -> Filling {
        Filling { facts, hashes: 0 }
    }

    /// As of when the snapshot is.
    pub fn index(&self) -> u64 {
        self.facts.index
    }
}

impl SideStorage {
    /// Up to which entry history lacks something; 0 where it lacks nothing.
    pub fn gap(&self) -> u64 {
        self.gap
    }

    /// Takes in what is lacking of some parts of a snapshot, in their order.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fill(&mut self, filling: &mut Filling, parts: &[SnapshotPart]) -> Result<(), StoreError> {
        let reader = self.history.reader();
        let mut records = Vec::new();
        for part in parts {
            match part {
                SnapshotPart::Record(key, value) if reader.get(*key)?.is_none() => {
                    records.push((*key, value.as_slice()));
                }
                SnapshotPart::Hashes(bytes) => {
                    self.tree.fill(filling.hashes, bytes)?;
                    filling.hashes = filling.hashes.saturating_add(bytes.len() as u64 / 32);
                }
                _ => {}
            }
        }
        self.history.append(records)
    }

    /// The snapshot has ended. Says whether nothing is lacking any more: not where the other server lacked something itself, or where another
    /// whole state was taken over meanwhile.
    pub fn filled(&mut self, filling: &Filling) -> bool {
        let is_whole = filling.facts.tree_absent.is_empty() && filling.hashes == filling.facts.tree_hashes;
        if is_whole && filling.facts.index >= self.gap && self.tree.absent().is_empty() {
            self.gap = 0;
        }
        self.gap == 0
    }
}
