//! Changes of membership: who votes, who learns, who leaves. Several at once go through a joint configuration (Ongaro,
//! "Consensus: Bridging Theory and Practice", 2014, section 4.3), which is left by itself.

use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::error::ReplicaError;
use crate::replica::{Replica, Ticket};

/// One change of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// A server receives the log and does not vote. How every server begins.
    AddLearner(u64),
    /// A server votes from now on. It should have caught up.
    Promote(u64),
    /// A server belongs to the cluster no longer. Its number is never used again.
    Remove(u64),
}

impl MemberChange {
    fn single(self) -> ConfChangeSingle {
        let (change_type, node_id) = match self {
            MemberChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            MemberChange::Promote(id) => (ConfChangeType::AddNode, id),
            MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        ConfChangeSingle { change_type, node_id, ..ConfChangeSingle::default() }
    }
}

impl Replica {
    /// Proposes changes of membership, all of them as one step. What became of it comes as
    /// [`crate::Output::Reconfigured`] or [`crate::Output::Unknown`] with the same ticket. One change is made at a time: while another
    /// is under way this one is refused.
    pub fn reconfigure(&mut self, ticket: Ticket, changes: &[MemberChange]) -> Result<(), ReplicaError> {
        if !self.leads() {
            return Err(ReplicaError::NotLeader { leader: self.leader() });
        }
        let membership = self.membership();
        let leaves_nobody = {
            let mut voters = membership.voters.clone();
            for change in changes {
                match *change {
                    MemberChange::Promote(id) => voters.push(id),
                    MemberChange::Remove(id) | MemberChange::AddLearner(id) => {
                        voters.retain(|voter| *voter != id);
                    }
                }
            }
            voters.is_empty()
        };
        if changes.is_empty() || leaves_nobody || changes.iter().any(|change| change.single().node_id == 0) {
            return Err(ReplicaError::BadReconfiguration);
        }
        let transition = ConfChangeTransition::Auto;
        let singles: Vec<ConfChangeSingle> = changes.iter().map(|change| change.single()).collect();
        let change = ConfChangeV2 { transition, changes: singles.into(), ..ConfChangeV2::default() };
        self.propose_membership(change, Some(ticket))?;
        self.settle()
    }

    pub(crate) fn propose_membership(
        &mut self,
        change: ConfChangeV2,
        ticket: Option<Ticket>,
    ) -> Result<(), ReplicaError> {
        match self.engine.propose_conf_change(Vec::new(), change) {
            Ok(()) => {}
            Err(raft::Error::ProposalDropped) => return Err(ReplicaError::Overloaded),
            Err(error) => return Err(error.into()),
        }
        if let Some(ticket) = ticket {
            let index = self.engine.raft.raft_log.last_index();
            self.proposals.insert(index, (self.engine.raft.term, ticket));
        }
        Ok(())
    }

    /// Leaves a joint configuration that an earlier leader could not leave any more; whether it was proposed.
    pub(crate) fn leave_joint(&mut self) -> Result<bool, ReplicaError> {
        let membership = self.membership();
        let under_way = self.engine.raft.pending_conf_index > self.state().applied_index();
        if membership.voters_outgoing.is_empty() || under_way {
            return Ok(false);
        }
        match self.propose_membership(ConfChangeV2::default(), None) {
            Ok(()) => Ok(true),
            Err(ReplicaError::Overloaded) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks another voter to take over. It does once it has everything; nothing happens when it cannot within an election
    /// time-out.
    pub fn transfer_leadership(&mut self, to: u64) -> Result<(), ReplicaError> {
        if self.engine.raft.state != StateRole::Leader {
            return Err(ReplicaError::NotLeader { leader: self.leader() });
        }
        self.engine.transfer_leader(to);
        self.settle()
    }

    /// Whether a server that receives the log has all of it that is committed, as far as the leader knows.
    pub fn has_caught_up(&self, id: u64) -> bool {
        let progress = self.engine.raft.prs().get(id);
        progress.is_some_and(|progress| progress.matched >= self.commit_index())
    }

    /// Whether a server has answered within the last election time-out, as far as this one knows while it leads.
    pub fn is_in_touch(&self, id: u64) -> bool {
        self.engine.raft.prs().get(id).is_some_and(|progress| progress.recent_active)
    }
}
