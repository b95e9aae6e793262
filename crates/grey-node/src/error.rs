//! Why a node cannot start or go on.

/// Everything that ends a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Storage.
    #[error(transparent)]
    Store(#[from] grey_store::StoreError),
    /// Blobs.
    #[error(transparent)]
    Blob(#[from] grey_blob::BlobError),
    /// Executors.
    #[error(transparent)]
    Exec(#[from] grey_exec::ExecError),
    /// How much it takes in lies outside its bounds.
    #[error("the intake is wrong: {0}")]
    Intake(String),
    /// Consensus and state.
    #[error(transparent)]
    Replica(#[from] grey_replica::ReplicaError),
    /// The worker's agent.
    #[error(transparent)]
    Agent(#[from] grey_agent::AgentError),
    /// Keys and certificates.
    #[error(transparent)]
    Proof(#[from] grey_proof::ProofError),
    /// A file or socket of the node.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The address to listen on is taken.
    #[error("{address} is in use by another program; choose another with {flag}, or end that program")]
    AddressInUse {
        /// The address.
        address: String,
        /// What says another one.
        flag: &'static str,
    },
    /// The plain interface is for this machine only.
    #[error("{address} is not a loopback address; without TLS only 127.0.0.0/8 and [::1] are listened on")]
    NotLoopback {
        /// The address.
        address: String,
    },
    /// What the worker is said to be cannot be.
    #[error("the worker's {reason}; give others with --label and --device")]
    Worker {
        /// What is wrong with its labels or devices, and the limit.
        reason: String,
    },
    /// What has ended cannot be kept like that.
    #[error("{reason}")]
    Retention {
        /// Which retention, what it is and the limit.
        reason: String,
    },
    /// Another version wrote the data directory.
    #[error(
        "{directory} was written in format {found}, this version reads format {supported}: run the version that wrote \
         it, or choose another directory with --data-dir"
    )]
    Format {
        /// The directory.
        directory: String,
        /// Its format.
        found: String,
        /// The only one that is read.
        supported: &'static str,
    },
    /// Keys and data do not belong together.
    #[error(
        "the keys in {directory} are not those of its log: the directory was put together from two clusters"
    )]
    ForeignKeys {
        /// The data directory.
        directory: String,
    },
    /// A key file holds something else.
    #[error("{file} is damaged: {reason}")]
    DamagedKey {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the node is told cannot be used.
    #[error("{0}")]
    Config(String),
    /// There is no way to the collector of traces.
    #[error("traces cannot be told to {endpoint}: {reason}")]
    Traces {
        /// The collector.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Certificates and TLS.
    #[error(transparent)]
    Trust(#[from] grey_trust::TrustError),
    /// An issuing key that this server was not asked to make, or does not remember.
    #[error(
        "this server has not asked for an issuing key to be certified; another one may lead since, or it was restarted. Nothing was changed: run `grey cluster rekey` again"
    )]
    NotAsked,
    /// A file of the node holds something else.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A server does not let the node in.
    #[error("{server} does not let this node into the cluster: {reason}")]
    NotAdmitted {
        /// Which server said so.
        server: String,
        /// Why.
        reason: String,
    },
    /// The node was removed from the cluster while it ran.
    #[error(
        "this node was removed from the cluster and belongs to it no more: to have it enter again, empty {directory} and start it with a token of `grey cluster token`"
    )]
    Removed {
        /// The data directory.
        directory: String,
    },
    /// No server could let the node in.
    #[error("no server lets this node into the cluster: {reasons}")]
    NotJoined {
        /// What became of each attempt.
        reasons: String,
    },
    /// The node belongs to no cluster and is not told how to enter one.
    #[error("{directory} belongs to no cluster: {hint}")]
    NoCluster {
        /// The data directory.
        directory: String,
        /// What to do.
        hint: &'static str,
    },
    /// The key is not that of the snapshot's cluster.
    #[error(
        "the root key is not that of the cluster that {snapshot} is of; give the file `root.key` that `grey cluster init` made"
    )]
    ForeignRootKey {
        /// The snapshot's file.
        snapshot: String,
    },
    /// A directory that is to be empty is not.
    #[error("{directory} holds something already; choose an empty directory with --data-dir")]
    NotEmpty {
        /// The directory.
        directory: String,
    },
    /// A cluster of which other servers live is not recovered.
    #[error(
        "server {server} answers at {address}: stop every other server that is left, and take care that none starts again with \
         its data, or bring back a majority instead"
    )]
    AnotherLives {
        /// Its number.
        server: u64,
        /// Where it answers.
        address: String,
    },
    /// The server votes alone already.
    #[error("the server in {directory} votes alone already; start it with `grey server`")]
    Alone {
        /// Its data directory.
        directory: String,
    },
    /// What is asked for contradicts what was founded.
    #[error(
        "the cluster in {directory} was founded before, its first server with the {what} {founded}; it is asked for with the {what} \
         {asked}. Nothing was changed"
    )]
    FoundedOtherwise {
        /// The data directory.
        directory: String,
        /// What differs: the server's `name` or `address`.
        what: &'static str,
        /// What it was founded with.
        founded: String,
        /// What was asked for now.
        asked: String,
    },
    /// The data directory is another kind of node's.
    #[error("{directory} is the data of a {found}, not of a {expected}; choose another directory")]
    AnotherKind {
        /// The data directory.
        directory: String,
        /// What it is.
        found: &'static str,
        /// What was started.
        expected: &'static str,
    },
    /// A thread of the node ended though nobody asked it to.
    #[error("the {0} thread ended unexpectedly")]
    ThreadEnded(&'static str),
}

impl NodeError {
    pub(crate) fn io(action: &'static str, what: impl ToString) -> impl FnOnce(std::io::Error) -> NodeError {
        let what = what.to_string();
        move |source| NodeError::Io { action, what, source }
    }
}
