//! A whole state on its way to a server that lags so far behind that the log no longer has what it misses.

use grey_core::State;
use raft::eraftpb::Snapshot;
use raft::{ProgressState, SnapshotStatus};
use serde::{Deserialize, Serialize};

use crate::error::ReplicaError;
use crate::level::understood;
use crate::ports::Membership;
use crate::replica::{Output, Replica};
use crate::window::{from_conf_state, to_conf_state};

/// Version of the encoding.
const VERSION: u8 = 1;
/// How long a whole state is on its way before it is sent again, in milliseconds.
const OFFER_MS: u64 = 5_000;

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

/// A whole state that is being made durable.
pub(crate) struct Installing {
    pub(crate) batch: u64,
    pub(crate) index: u64,
    pub(crate) state: State,
}

impl Replica {
    /// Takes in a whole state. Until it is durable the engine sees nothing.
    pub(crate) fn begin_installation(
        &mut self,
        snapshot: &Snapshot,
    ) -> Result<Box<Installation>, ReplicaError> {
        let installation = Installation::from_engine(snapshot)?;
        let rows = installation.rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        let mut state = State::load(rows)?;
        understood(&self.version, state.feature_level())?;
        state.take_dirty_rows();
        #[cfg(feature = "mutants")]
        state.mutate(self.mutant);
        let (index, term) = (installation.index, installation.term);
        let membership = snapshot.get_metadata().get_conf_state().clone();
        self.engine.mut_store().install(index, term, membership);
        self.installing = Some(Installing { batch: self.next_batch, index, state });
        Ok(Box::new(installation))
    }

    pub(crate) fn installed(&mut self, installing: Installing) {
        self.state = installing.state;
        self.clock_ms = self.clock_ms.max(self.state.meta().time_ms);
        self.engine.advance_apply_to(installing.index);
        self.plan_is_moot = false;
        (self.grown_at, self.bytes_since_growth) = (installing.index, 0);
        let unknown = core::mem::take(&mut self.proposals).into_values().map(|(_, ticket)| ticket);
        self.outputs.extend(unknown.map(Output::Unknown));
        self.outputs.push_back(Output::Installed { index: installing.index });
    }

    /// Makes a whole state for those who lag behind the log.
    pub(crate) fn offer(&mut self) {
        let installation = Installation {
            index: self.state.applied_index(),
            term: self.state.applied_term(),
            membership: self.membership(),
            rows: self.state.all_rows(),
            tree_hashes: grey_proof::stored_hash_count(self.state.meta().log.size()),
        };
        self.engine.mut_store().set_offer(Some(installation.into_engine()));
    }

    /// A whole state that was sent and not taken is taken for lost after a while, or its receiver would wait for ever.
    pub(crate) fn pass_offers(&mut self, elapsed_ms: u64) {
        if self.offered.is_empty() {
            return;
        }
        let waiting = core::mem::take(&mut self.offered).into_iter().filter_map(|(to, waited_ms)| {
            let progress = self.engine.raft.prs().get(to)?;
            let waits = progress.state == ProgressState::Snapshot;
            waits.then(|| (to, waited_ms.saturating_add(elapsed_ms)))
        });
        for (to, waited_ms) in waiting.collect::<Vec<_>>() {
            if waited_ms < OFFER_MS {
                self.offered.insert(to, waited_ms);
            } else {
                self.engine.report_snapshot(to, SnapshotStatus::Failure);
            }
        }
        if self.offered.is_empty() {
            self.engine.mut_store().set_offer(None);
        }
    }
}
