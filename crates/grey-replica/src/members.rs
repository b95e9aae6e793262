//! What the leader does about the servers that the cluster has agreed on: the log says who belongs to it, and the leader changes the
//! engine's membership until it is so. A server enters as a learner and votes once it has caught up; one that leaves, or that
//! was blocked, is removed, after it has handed on leadership where it has that. Who has left is forgotten: a server when it is removed, a worker
//! when it holds nothing any more, by its work or by its lease.

use std::collections::BTreeSet;

use grey_core::{Command, FORGET_LEVEL, ForgetNode, NodeRole, NodeRow, NodeStanding, SetNodeVersion};
use grey_proof::Digest;

use crate::error::{NoSuccessor, ReplicaError};
use crate::reconfigure::MemberChange;
use crate::replica::Ticket;
use crate::server::{Pending, Server};

/// How often the leader compares, in milliseconds. A change takes a commit, and another is begun only after it.
pub(crate) const TEND_EVERY_MS: u64 = 100;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Change(MemberChange),
    HandOver,
    Forget(Digest),
    /// Has the cluster keep what a server runs.
    Version(SetNodeVersion),
}

impl Server {
    /// Hands leadership on to a voter that is in touch and has everything that is committed: to the one that is named, else to any.
    /// Returns which it is; that it leads shows later, and it may yet fail to.
    ///
    /// # Errors
    /// [`ReplicaError::NotLeader`], and [`ReplicaError::NoSuccessor`] where that one, or none, can lead.
    pub fn hand_over(&mut self, to: Option<u64>) -> Result<u64, ReplicaError> {
        if !self.replica().leads() {
            return Err(ReplicaError::NotLeader { leader: self.replica().leader() });
        }
        let own = self.replica().id();
        let successor = match to {
            Some(named) => self.can_lead(named).map(|()| named)?,
            None => {
                let voters = self.replica().membership().voters;
                let mut others = voters.into_iter().filter(|voter| *voter != own);
                others.find(|voter| self.can_lead(*voter).is_ok()).ok_or(NoSuccessor::Nobody)?
            }
        };
        // To name the one that leads is no request to change anything.
        if successor != own {
            self.replica_mut().transfer_leadership(successor)?;
        }
        Ok(successor)
    }

    fn can_lead(&self, number: u64) -> Result<(), NoSuccessor> {
        let replica = self.replica();
        match number {
            _ if !replica.membership().voters.contains(&number) => Err(NoSuccessor::DoesNotVote(number)),
            _ if number == replica.id() => Ok(()),
            _ if !replica.is_in_touch(number) => Err(NoSuccessor::OutOfTouch(number)),
            _ if !replica.has_caught_up(number) => Err(NoSuccessor::Behind(number)),
            _ => Ok(()),
        }
    }

    /// Takes the next step from the membership that is to the one that was agreed on.
    pub(crate) fn tend_members(&mut self) -> Result<(), ReplicaError> {
        if !self.replica().leads() {
            return Ok(());
        }
        match self.next_step() {
            None => Ok(()),
            Some(Step::HandOver) => match self.hand_over(None) {
                // It leads on until there is somebody.
                Ok(_) | Err(ReplicaError::NoSuccessor(_)) => Ok(()),
                Err(error) => Err(error),
            },
            Some(Step::Forget(node)) => {
                self.propose_own(Pending::Member, Command::ForgetNode(ForgetNode { node }));
                Ok(())
            }
            Some(Step::Version(version)) => {
                self.propose_own(Pending::Member, Command::SetNodeVersion(version));
                Ok(())
            }
            Some(Step::Change(change)) => {
                let ticket: Ticket = self.ticket(Pending::Member);
                match self.replica_mut().reconfigure(ticket, &[change]) {
                    Ok(()) => Ok(()),
                    Err(
                        ReplicaError::NotLeader { .. }
                        | ReplicaError::Overloaded
                        | ReplicaError::BadReconfiguration,
                    ) => {
                        self.forget(ticket);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Whether those of the other voters that are in touch are a majority of them.
    fn can_spare(&self, number: u64) -> bool {
        let replica = self.replica();
        let others: Vec<u64> =
            replica.membership().voters.into_iter().filter(|voter| *voter != number).collect();
        let in_touch = |voter: &&u64| **voter == replica.id() || replica.is_in_touch(**voter);
        2 * others.iter().filter(in_touch).count() > others.len()
    }

    fn next_step(&self) -> Option<Step> {
        let (replica, state) = (self.replica(), self.state());
        let membership = replica.membership();
        if !membership.voters_outgoing.is_empty() {
            return None;
        }
        let mut servers = state.nodes().filter(|row| row.role == NodeRole::Server).peekable();
        // A cluster that was founded without nodes has its membership from elsewhere.
        servers.peek()?;
        let mut agreed = Vec::new();
        for row in servers {
            let Some(number) = row.server else { continue };
            let (votes, learns) =
                (membership.voters.contains(&number), membership.learners.contains(&number));
            if row.standing == NodeStanding::Admitted {
                agreed.push(number);
                if !votes && !learns {
                    return Some(Step::Change(MemberChange::AddLearner(number)));
                }
                if learns && replica.has_caught_up(number) && replica.is_in_touch(number) {
                    return Some(Step::Change(MemberChange::Promote(number)));
                }
            } else if number == replica.id() {
                return Some(Step::HandOver);
            } else if (votes && self.can_spare(number)) || learns {
                return Some(Step::Change(MemberChange::Remove(number)));
            } else if votes {
                // Without it those in touch would be no majority: it stays until they are.
                agreed.push(number);
            } else if row.standing == NodeStanding::Leaving {
                return Some(Step::Forget(row.node));
            }
        }
        let strays = membership.voters.iter().chain(&membership.learners);
        strays
            .copied()
            .find(|number| !agreed.contains(number) && *number != replica.id())
            .map(|number| Step::Change(MemberChange::Remove(number)))
            .or_else(|| self.unkept_version().map(Step::Version))
            .or_else(|| self.departed().map(Step::Forget))
    }

    /// A worker that has left and holds nothing any more.
    fn departed(&self) -> Option<Digest> {
        let state = self.state();
        if state.feature_level() < FORGET_LEVEL {
            return None;
        }
        let leaves = |row: &&NodeRow| row.role == NodeRole::Worker && row.standing == NodeStanding::Leaving;
        let mut leaving = state.nodes().filter(leaves).peekable();
        leaving.peek()?;
        let holding = state.workers().values().filter(|worker| worker.held > 0);
        let busy: BTreeSet<Digest> = holding.map(|worker| worker.node).collect();
        leaving.find(|row| !busy.contains(&row.node)).map(|row| row.node)
    }

    /// What a server runs, where the cluster has something else kept of it.
    fn unkept_version(&self) -> Option<SetNodeVersion> {
        let (replica, state) = (self.replica(), self.state());
        let mut servers = state.nodes().filter_map(|row| Some((row.server?, row.node)));
        servers.find_map(|(number, node)| {
            let own = (number == replica.id()).then_some(&replica.version);
            let said = own.or_else(|| self.versions.get(&number))?;
            let is_kept = state.version_of(&node) == Some(said);
            (!is_kept).then(|| SetNodeVersion { node, version: said.clone() })
        })
    }
}
