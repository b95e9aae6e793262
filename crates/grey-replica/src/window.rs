//! The engine's view of the log: recent entries in memory, older ones through the reader.

use std::cell::Cell;
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState as EngineHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::ports::{HardState, LogEntry, LogEntryKind, LogReader, Membership, ReadError};

/// Bytes of recent entries that stay in memory once they are durable and applied.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// The log as the engine sees it.
pub(crate) struct Window {
    hard_state: EngineHardState,
    membership: ConfState,
    /// Index and term of the entry before the first that the log still has.
    truncated: (u64, u64),
    /// Index of the entry at the front of `recent`; one past the end when there is none.
    recent_first: u64,
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    reader: Box<dyn LogReader>,
    /// Whether the engine asked for a whole state and there was none to offer.
    wanted: Cell<bool>,
    offer: Option<Snapshot>,
}

impl Window {
    pub(crate) fn new(
        hard_state: HardState,
        membership: &Membership,
        truncated: (u64, u64),
        last_index: u64,
        reader: Box<dyn LogReader>,
    ) -> Window {
        Window {
            hard_state: EngineHardState {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
                ..EngineHardState::default()
            },
            membership: to_conf_state(membership),
            truncated,
            recent_first: last_index + 1,
            recent: VecDeque::new(),
            recent_bytes: 0,
            reader,
            wanted: Cell::new(false),
            offer: None,
        }
    }

    fn end(&self) -> u64 {
        self.recent_first + self.recent.len() as u64
    }

    /// Takes entries of a ready; the first may replace what follows it.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.end() > first.index {
            match self.recent.pop_back() {
                Some(entry) => self.recent_bytes -= entry.data.len(),
                None => self.recent_first = first.index,
            }
        }
        for entry in entries {
            self.recent_bytes += entry.data.len();
            self.recent.push_back(entry.clone());
        }
    }

    /// Forgets the oldest entries above the window's size; `durable` ones can be read again, and only those go.
    pub(crate) fn shrink(&mut self, durable: u64) {
        while self.recent_bytes > WINDOW_BYTES && self.recent_first <= durable {
            let Some(entry) = self.recent.pop_front() else { break };
            self.recent_bytes -= entry.data.len();
            self.recent_first += 1;
        }
    }

    /// The log begins after `index` from now on.
    pub(crate) fn truncate_through(&mut self, index: u64) {
        if index <= self.truncated.0 {
            return;
        }
        let Ok(term) = self.term(index) else { return };
        self.truncated = (index, term);
        while self.recent_first <= index {
            let Some(entry) = self.recent.pop_front() else { break };
            self.recent_bytes -= entry.data.len();
            self.recent_first += 1;
        }
    }

    /// Everything is replaced by a state as of an index.
    pub(crate) fn install(&mut self, index: u64, term: u64, membership: ConfState) {
        self.membership = membership;
        self.truncated = (index, term);
        self.recent_first = index + 1;
        self.recent.clear();
        self.recent_bytes = 0;
        self.offer = None;
    }

    /// Whether a whole state is wanted and none can be offered; asked once.
    pub(crate) fn wants_offer(&self) -> bool {
        self.wanted.take()
    }

    /// Offers a whole state to whoever lags too far behind. The log still has what follows it.
    pub(crate) fn set_offer(&mut self, offer: Option<Snapshot>) {
        self.offer = offer;
    }

    pub(crate) fn set_membership(&mut self, membership: ConfState) {
        self.membership = membership;
    }

    pub(crate) fn membership(&self) -> Membership {
        from_conf_state(&self.membership)
    }
}

impl Storage for Window {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.membership.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.end() {
            return Err(StorageError::Unavailable.into());
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        if low < self.recent_first {
            let older =
                self.reader.entries(low, high.min(self.recent_first), max_bytes).map_err(read_error)?;
            return Ok(older.into_iter().map(to_entry).collect());
        }
        let (mut taken, mut bytes) = (Vec::new(), 0u64);
        let skip = usize::try_from(low - self.recent_first).unwrap_or(usize::MAX);
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        for entry in self.recent.iter().skip(skip).take(count) {
            bytes = bytes.saturating_add(entry.data.len() as u64);
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        if index >= self.end() {
            return Err(StorageError::Unavailable.into());
        }
        let recent = index.checked_sub(self.recent_first).and_then(|at| usize::try_from(at).ok());
        match recent.and_then(|at| self.recent.get(at)) {
            Some(entry) => Ok(entry.term),
            None => self.reader.term(index).map_err(read_error),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.end() - 1)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Whoever installs it goes on from the log, which must still have what follows.
        match &self.offer {
            Some(offer) if offer.get_metadata().index >= self.truncated.0.max(request_index) => {
                Ok(offer.clone())
            }
            _ => {
                self.wanted.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

fn read_error(error: ReadError) -> raft::Error {
    match error {
        ReadError::Truncated(_) => StorageError::Compacted.into(),
        ReadError::Missing(_) => StorageError::Unavailable.into(),
        damaged @ ReadError::Damaged(_) => StorageError::Other(Box::new(damaged)).into(),
    }
}

fn to_entry(entry: LogEntry) -> Entry {
    let entry_type = match entry.kind {
        LogEntryKind::Normal => EntryType::EntryNormal,
        LogEntryKind::Membership => EntryType::EntryConfChangeV2,
    };
    Entry { term: entry.term, index: entry.index, entry_type, data: entry.data, ..Entry::default() }
}

pub(crate) fn from_entry(entry: &Entry) -> LogEntry {
    let kind = match entry.entry_type {
        EntryType::EntryNormal => LogEntryKind::Normal,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => LogEntryKind::Membership,
    };
    LogEntry { term: entry.term, index: entry.index, kind, data: Bytes::clone(&entry.data) }
}

pub(crate) fn to_conf_state(membership: &Membership) -> ConfState {
    ConfState {
        voters: membership.voters.clone(),
        voters_outgoing: membership.voters_outgoing.clone(),
        learners: membership.learners.clone(),
        learners_next: membership.learners_next.clone(),
        auto_leave: membership.auto_leave,
        ..ConfState::default()
    }
}

pub(crate) fn from_conf_state(state: &ConfState) -> Membership {
    Membership {
        voters: state.voters.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners: state.learners.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave,
    }
}
