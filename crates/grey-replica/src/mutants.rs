//! The replica's deliberate mistakes, for the simulator's own proof.

use grey_core::Mutant;
use raft::eraftpb::{Entry, EntryType, Message};

use crate::replica::Replica;

impl Replica {
    /// Some servers take neighbouring entries in the wrong order.
    pub(crate) fn disordered(&self, mut committed: Vec<Entry>) -> Vec<Entry> {
        if self.mutant != Some(Mutant::ApplyOutOfOrder) || self.engine.raft.id.is_multiple_of(2) {
            return committed;
        }
        if let [first, second, ..] = committed.as_mut_slice()
            && (first.entry_type, second.entry_type) == (EntryType::EntryNormal, EntryType::EntryNormal)
        {
            core::mem::swap(&mut first.data, &mut second.data);
        }
        committed
    }

    /// What waits for the disk is sent at once.
    pub(crate) fn acknowledged_early(&mut self, messages: Vec<Message>) -> Vec<Message> {
        if self.mutant != Some(Mutant::AcknowledgeBeforeSync) {
            return messages;
        }
        self.send(messages);
        Vec::new()
    }
}
