/// Why a message of another node is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no such message.
    #[error("the other side sent something that is no {0}")]
    Malformed(&'static str),
    /// The other side speaks a version that this one does not understand.
    #[error(
        "the other side speaks version {theirs} of the node plane; this one understands {oldest} to {newest}"
    )]
    Version {
        /// What it speaks.
        theirs: u32,
        /// The oldest that is understood here.
        oldest: u32,
        /// The newest that is.
        newest: u32,
    },
    /// The other side belongs to another cluster.
    #[error("the other side belongs to another cluster")]
    ForeignCluster,
}
