//! Feature levels at a server: what it must not write yet, and what it cannot read.

use grey_core::{Command, NodeVersion, OLDEST_FEATURE_LEVEL, Rejection};

use crate::error::ReplicaError;
use crate::replica::Replica;

/// Another version wrote what this one does not understand: to skip it would make replicas differ.
pub(crate) fn understood(version: &NodeVersion, level: u16) -> Result<(), ReplicaError> {
    if level <= version.understands {
        return Ok(());
    }
    Err(ReplicaError::NotUnderstood { level, understands: version.understands })
}

impl Replica {
    /// An entry of a level that is not in force would halt servers of an earlier version, also where it is refused when applied.
    pub(crate) fn must_be_in_force(&self, command: &Command) -> Result<(), ReplicaError> {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(grey_core::Mutant::WriteTooEarly) {
            return Ok(());
        }
        if let Command::RaiseFeatureLevel(raise) = command {
            // What servers run is known once everything of earlier terms is applied.
            if !self.leads() {
                return Err(ReplicaError::NotLeader { leader: self.leader() });
            }
            return Ok(self.state.may_raise_to(raise.level)?);
        }
        let (needed, in_force) = (command.feature_level(), self.state.feature_level());
        if needed > in_force && needed > OLDEST_FEATURE_LEVEL {
            return Err(Rejection::FeatureLevel { needed, in_force }.into());
        }
        Ok(())
    }
}
