//! What the agent reports to its shell.

/// Why the agent cannot do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// A record of the outbox does not decode.
    #[error("record {key} of the outbox does not decode")]
    DamagedRecord {
        /// The record's key.
        key: u64,
    },
    /// The lease is kept by options that contradict themselves.
    #[error(transparent)]
    Health(#[from] grey_health::HealthError),
    /// A statement could not be written down.
    #[error(transparent)]
    Proof(#[from] grey_proof::ProofError),
}
