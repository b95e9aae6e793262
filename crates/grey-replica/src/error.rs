//! Everything that a replica can report.

use grey_core::{EntryError, LoadError, Rejection};

use crate::door::DoorRefusal;
use crate::replica::UNCOMMITTED_BYTES;

/// Why another server cannot lead now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSuccessor {
    /// It is none of the voters.
    #[error("server {0} does not vote")]
    DoesNotVote(u64),
    /// It has not answered within an election time-out.
    #[error("server {0} is out of touch")]
    OutOfTouch(u64),
    /// It lacks something that is committed.
    #[error("server {0} has not caught up")]
    Behind(u64),
    /// None was named, and none of the others can.
    #[error("no other voter is in touch and has caught up")]
    Nobody,
}

/// Who leads, for people.
fn led_by(leader: u64) -> String {
    match leader {
        0 => "who does is not known to it".to_owned(),
        leader => format!("server {leader} does"),
    }
}

/// Why a replica cannot go on, or would not take something.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Only the leader takes proposals and reads.
    #[error("this server does not lead; {}", led_by(*leader))]
    NotLeader {
        /// The leader's number, 0 when unknown.
        leader: u64,
    },
    /// Too much is proposed and not yet committed.
    #[error("more than {} bytes are proposed and not yet committed", UNCOMMITTED_BYTES)]
    Overloaded,
    /// The door refused it; nothing was proposed and nothing charged.
    #[error(transparent)]
    Door(#[from] DoorRefusal),
    /// The entry is too large, or of a version that this one does not understand.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// What would be refused when it is applied, and must not even be in the log. Nothing was proposed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The log, or a state, is of a feature level that this server does not understand: it must stop.
    #[error(
        "the cluster writes feature level {level}; this server understands up to {understands}; install a newer version"
    )]
    NotUnderstood {
        /// The level.
        level: u16,
        /// The newest that it understands.
        understands: u16,
    },
    /// The checkpoint's rows are not a state.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine failed.
    #[error("consensus engine: {0}")]
    Engine(#[from] raft::Error),
    /// Bytes that are no message of the engine. The replica is as it was.
    #[error("not a message of the consensus engine")]
    BadMessage,
    /// A change of membership that changes nothing, or leaves no voter.
    #[error("a change of membership must name servers, and leave at least one voter")]
    BadReconfiguration,
    /// Leadership cannot be handed on as asked. Nothing changed.
    #[error(transparent)]
    NoSuccessor(#[from] NoSuccessor),
    /// A whole state from another server does not decode.
    #[error("the state that another server sent does not decode")]
    BadInstallation,
    /// A message that no server sends: its sender is wrong, or this server's log is. The replica is as it was.
    #[error("a message of server {from} is refused: {what}")]
    Refused {
        /// Who sent it, as it says.
        from: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A committed change of membership that cannot be carried out.
    #[error("the change of membership at index {index} cannot be carried out: {what}")]
    BadMembership {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The watch over the workers cannot be kept.
    #[error(transparent)]
    Health(#[from] grey_health::HealthError),
    /// What storage found contradicts itself.
    #[error("the log ends at {last_index}, before the checkpoint at {checkpoint_index}")]
    LogBehindCheckpoint {
        /// The log's last index.
        last_index: u64,
        /// The checkpoint's index.
        checkpoint_index: u64,
    },
}
