//! Feature levels: what the servers of a cluster have agreed to write.
//!
//! Two neighbouring versions of Grey run side by side while a cluster is upgraded. What only the newer one understands must not be in the
//! log, nor in the state, before every server is of the newer version. So each kind of entry has the level that it came with, the state has the
//! level in force, and that rises by an entry, one level at a time, once every server has said that it understands the next one.
//! An entry that raises the level is itself of the level to which it raises: a server that does not understand that halts there and not later.

use serde::{Deserialize, Serialize};

use grey_proof::Digest;

use crate::identity::{NodeRow, NodeStanding};
use crate::rejection::Rejection;
use crate::state::State;

/// The level in force in a cluster as it is founded, and that of every kind of entry there is without a later one. Levels 1 and 2 were
/// never released.
pub const OLDEST_FEATURE_LEVEL: u16 = 3;

/// The newest level that this version understands.
pub const NEWEST_FEATURE_LEVEL: u16 = ACCEPTANCE_LEVEL;

/// The level that tenants' quotas came with.
pub(crate) const QUOTA_LEVEL: u16 = 4;

/// The level that came with what the state knows of the issuing key.
pub const AUTHORITY_LEVEL: u16 = 4;

/// The level from which on executors are judged by themselves.
pub(crate) const BREAKER_LEVEL: u16 = 5;

/// The level that changed what a worker's trouble costs: an operator may order a quarantine or end one, who is lost with everybody else is
/// not penalised, and what a worker could not run waits before it is tried again.
pub(crate) const TROUBLE_LEVEL: u16 = 6;

/// The level from which on a worker that has left the cluster is forgotten, and with its node all that the state knew of the worker.
pub const FORGET_LEVEL: u16 = 7;

/// The level from which on nothing that a blocked worker reports is accepted, also what was under way when it was blocked.
pub const ACCEPTANCE_LEVEL: u16 = 8;

/// What a server runs, as it told the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVersion {
    /// The newest feature level that it understands.
    pub understands: u16,
    /// The version's name, for people; at most [`crate::limits::NAME_BYTES`] bytes.
    pub name: String,
}

impl NodeVersion {
    /// What a server of this version runs, under a name.
    pub fn newest(name: &str) -> NodeVersion {
        NodeVersion { understands: NEWEST_FEATURE_LEVEL, name: name.to_owned() }
    }
}

/// Keeps what a server runs. The leader proposes it when it hears something else than is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNodeVersion {
    /// Which server.
    pub node: Digest,
    /// What it runs.
    pub version: NodeVersion,
}

/// Puts the next feature level in force, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseFeatureLevel {
    /// Which: one more than is in force.
    pub level: u16,
}

impl State {
    /// The feature level in force; 0 before the cluster is founded.
    pub fn feature_level(&self) -> u16 {
        self.meta().feature_level
    }

    /// The newest feature level that every server understands, as far as they have said so. A cluster of one process has no servers that
    /// could say so, and understands what this version does.
    pub fn understood_by_all(&self) -> u16 {
        self.servers_understand().map(|(_, understands)| understands).min().unwrap_or(NEWEST_FEATURE_LEVEL)
    }

    /// The servers that are sent entries, each with the newest level that it understands as far as it has said so.
    fn servers_understand(&self) -> impl Iterator<Item = (&NodeRow, u16)> {
        let servers =
            self.nodes().filter(|row| row.server.is_some() && row.standing != NodeStanding::Blocked);
        servers.map(|row| {
            (row, self.version_of(&row.node).map_or(OLDEST_FEATURE_LEVEL, |version| version.understands))
        })
    }

    /// Whether a feature level may be put in force now.
    ///
    /// # Errors
    /// [`Rejection::FeatureLevel`] where it is in force already or not the next one, [`Rejection::NotUnderstood`] naming a server that does
    /// not understand it.
    pub fn may_raise_to(&self, level: u16) -> Result<(), Rejection> {
        let in_force = self.feature_level();
        if level > NEWEST_FEATURE_LEVEL || in_force.checked_add(1) != Some(level) {
            return Err(Rejection::FeatureLevel { needed: level, in_force });
        }
        match self.servers_understand().find(|(_, understands)| *understands < level) {
            Some((row, understands)) => {
                Err(Rejection::NotUnderstood { level, server: row.name.clone(), understands })
            }
            None => Ok(()),
        }
    }
}
