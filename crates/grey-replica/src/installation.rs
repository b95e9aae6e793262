//! A whole state on its way to a server that lags so far behind that the log no longer has what it misses.

use raft::eraftpb::Snapshot;
use serde::{Deserialize, Serialize};

use crate::ports::Membership;
use crate::replica::ReplicaError;
use crate::window::{from_conf_state, to_conf_state};

/// Version of the encoding.
const VERSION: u8 = 1;

/// A whole state from another server. It replaces everything that this one has: rows, log and membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Index of the last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Membership as of that index.
    pub membership: Membership,
    /// All rows, in key order.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many hashes the log of reports has by then ([`grey_proof::stored_hash_count`]).
    pub tree_hashes: u64,
}

#[derive(Serialize, Deserialize)]
struct Encoded {
    version: u8,
    tree_hashes: u64,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Installation {
    /// As the engine carries it.
    pub(crate) fn into_engine(self) -> Snapshot {
        // Serialising to memory fails only for types without a known length, and rows have none of those.
        let encoded = Encoded { version: VERSION, tree_hashes: self.tree_hashes, rows: self.rows };
        let data = postcard::to_allocvec(&encoded).unwrap_or_default();
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index;
        metadata.term = self.term;
        metadata.set_conf_state(to_conf_state(&self.membership));
        snapshot
    }

    /// Reads what another server sent.
    pub(crate) fn from_engine(snapshot: &Snapshot) -> Result<Installation, ReplicaError> {
        let encoded: Encoded =
            postcard::from_bytes(&snapshot.data).map_err(|_| ReplicaError::BadInstallation)?;
        if encoded.version != VERSION {
            return Err(ReplicaError::BadInstallation);
        }
        let metadata = snapshot.get_metadata();
        Ok(Installation {
            index: metadata.index,
            term: metadata.term,
            membership: from_conf_state(metadata.get_conf_state()),
            rows: encoded.rows,
            tree_hashes: encoded.tree_hashes,
        })
    }
}
