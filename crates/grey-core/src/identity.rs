//! Who belongs to the cluster, and who may speak to it: rows and commands.
//!
//! Secrets are nowhere in here, only their digests. Dates are wall clock that the proposing server wrote into the entry: applying an
//! entry reads no clock.

use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::authority::AuthorityRow;
use crate::command::TaskDefaults;
use crate::constraint::Tier;
use crate::ids::TenantId;
use crate::level::NodeVersion;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeRole {
    /// It holds the log and votes.
    Server,
    /// It runs tasks.
    Worker,
}

impl NodeRole {
    /// The name in certificates and listings.
    pub fn name(self) -> &'static str {
        match self {
            NodeRole::Server => "server",
            NodeRole::Worker => "worker",
        }
    }
}

/// How a node stands with the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStanding {
    /// It belongs to the cluster.
    Admitted,
    /// It is on its way out, by an operator's decision.
    Leaving,
    /// Nobody speaks with it.
    Blocked,
}

impl NodeStanding {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        match self {
            NodeStanding::Admitted => "admitted",
            NodeStanding::Leaving => "leaving",
            NodeStanding::Blocked => "blocked",
        }
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The digest of its proof key.
    pub node: Digest,
    /// The proof key, Ed25519.
    pub public_key: [u8; 32],
    /// SHA-256 of its TLS key's SubjectPublicKeyInfo.
    pub tls_key: Digest,
    /// The host's name, for people.
    pub name: String,
    /// What it is.
    pub role: NodeRole,
    /// A server's number: given once, never again.
    pub server: Option<u64>,
    /// Where others dial a server, host and port; empty for a worker.
    pub address: String,
    /// How far it is trusted.
    pub tier: Tier,
    /// Serial number of its certificates.
    pub serial: u64,
    /// Digest of what its tier was found out from.
    pub evidence: Digest,
    /// The certificates of its proof key by their digests, oldest first: statements name them, also those that were followed by
    /// another.
    pub certificates: Vec<Digest>,
    /// When it was admitted, milliseconds since 1970.
    pub admitted_wall_ms: u64,
    /// How it stands.
    pub standing: NodeStanding,
    /// Whether it gets no new work, by an operator's decision. Only ever of a worker; what it runs goes on.
    pub cordoned: bool,
}

/// A right to enter the cluster, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRow {
    /// Digest of the secret.
    pub id: Digest,
    /// As what.
    pub role: NodeRole,
    /// Until when, milliseconds since 1970.
    pub expires_wall_ms: u64,
    /// When it was made, milliseconds since 1970.
    pub created_wall_ms: u64,
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TokenRole {
    /// Sees what is the tenant's.
    Viewer,
    /// And submits and cancels for it.
    Submitter,
    /// And makes tokens of the tenant.
    TenantAdmin,
    /// Runs the cluster.
    Operator,
    /// Sees everything and changes nothing.
    Auditor,
}

impl TokenRole {
    /// Every role.
    pub const ALL: [TokenRole; 5] = [
        TokenRole::Viewer,
        TokenRole::Submitter,
        TokenRole::TenantAdmin,
        TokenRole::Operator,
        TokenRole::Auditor,
    ];

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            TokenRole::Viewer => "viewer",
            TokenRole::Submitter => "submitter",
            TokenRole::TenantAdmin => "tenant-admin",
            TokenRole::Operator => "operator",
            TokenRole::Auditor => "auditor",
        }
    }

    /// Whether it is a role within one tenant.
    pub fn is_of_tenant(self) -> bool {
        matches!(self, TokenRole::Viewer | TokenRole::Submitter | TokenRole::TenantAdmin)
    }
}

/// A token of the client API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Digest of the secret.
    pub id: Digest,
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub role: TokenRole,
    /// For which tenant, where the role is one within a tenant.
    pub tenant: Option<TenantId>,
    /// Until when, milliseconds since 1970.
    pub expires_wall_ms: u64,
    /// When it was made, milliseconds since 1970.
    pub created_wall_ms: u64,
    /// Who made it.
    pub created_by: String,
}

/// A row of who belongs to the cluster and who may speak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum IdentityKey {
    Node(Digest),
    Certificate(Digest),
    JoinToken(Digest),
    Token(Digest),
    /// A nonce that was used, or the digest of one.
    Nonce(Digest),
    /// What a server runs.
    Version(Digest),
    /// Which issuing key is current.
    Authority,
}

/// The content of such a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IdentityRow {
    Node(NodeRow),
    /// A certificate as a verifier reads it, and the node whose it is.
    Certificate(Digest, Vec<u8>),
    JoinToken(JoinTokenRow),
    Token(TokenRow),
    /// Until when it is remembered, milliseconds since 1970.
    Nonce(u64),
    Version(NodeVersion),
    Authority(AuthorityRow),
}

/// The first server takes its place, with the first token: right after the founding, and refused once there is a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolFounder {
    /// The node, as a server.
    pub node: NewNode,
    /// A token for whoever runs the cluster.
    pub token: TokenRow,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

/// The cluster goes on with one server after the others were lost for good, or from an earlier state. It is the first entry behind what is
/// left, and written by whoever recovers the cluster while no server runs. What the lost part had given out is not given out again:
/// numbers go on far behind it. All other nodes are forgotten: servers would bring back what is lost, and what workers were told in it is
/// not known. They enter anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recover {
    /// The server that goes on.
    pub keeper: Keeper,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

/// With which server a cluster goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeper {
    /// One that belongs to it.
    Survivor(Digest),
    /// A new one, on an earlier state.
    Newcomer {
        /// The node, as a server.
        node: Box<NewNode>,
        /// A token for whoever runs the cluster.
        token: TokenRow,
        /// Certificates of what signed certificates of before, with their digests: proofs of before rest on them.
        issuers: Vec<(Digest, Vec<u8>)>,
    },
}

/// What is known of a node that enters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    /// The digest of its proof key.
    pub node: Digest,
    /// The proof key.
    pub public_key: [u8; 32],
    /// SHA-256 of its TLS key's SubjectPublicKeyInfo.
    pub tls_key: Digest,
    /// The host's name.
    pub name: String,
    /// What it is to be.
    pub role: NodeRole,
    /// Where others dial it, where it is a server.
    pub address: String,
    /// How far it is trusted.
    pub tier: Tier,
    /// Digest of what that was found out from.
    pub evidence: Digest,
    /// Serial number of its certificates; of no other node.
    pub serial: u64,
    /// The certificate of its proof key, and its digest.
    pub certificate: (Digest, Vec<u8>),
}

/// Lets a node in. Uses up the token and the nonce before a certificate leaves the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitNode {
    /// Digest of the join token's secret.
    pub token: Digest,
    /// The challenge that its evidence answered.
    pub nonce: [u8; 32],
    /// The node.
    pub node: NewNode,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

/// A node's next certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewNode {
    /// Which node.
    pub node: Digest,
    /// The challenge that its evidence answered.
    pub nonce: [u8; 32],
    /// Its TLS key from now on.
    pub tls_key: Digest,
    /// How far it is trusted from now on.
    pub tier: Tier,
    /// Digest of what that was found out from.
    pub evidence: Digest,
    /// Serial number of the new certificates.
    pub serial: u64,
    /// The next certificate of its proof key, where it gets one.
    pub certificate: Option<(Digest, Vec<u8>)>,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

/// Changes how a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNodeStanding {
    /// Which node.
    pub node: Digest,
    /// How it stands from now on.
    pub standing: NodeStanding,
}

/// Gives a worker no new work, or work again. What it runs goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CordonNode {
    /// Which node.
    pub node: Digest,
    /// Whether it is cordoned from now on.
    pub cordoned: bool,
}

/// Changes where a server is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNodeAddress {
    /// Which node.
    pub node: Digest,
    /// Host and port.
    pub address: String,
}

/// Forgets a node. What it signed can still be proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetNode {
    /// Which node.
    pub node: Digest,
}

/// Makes a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateJoinToken {
    /// The token.
    pub token: JoinTokenRow,
}

/// Takes a join token back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeJoinToken {
    /// Digest of its secret.
    pub id: Digest,
}

/// Makes a token of the client API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    /// The token.
    pub token: TokenRow,
}

/// Takes a token back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Digest of its secret.
    pub id: Digest,
}

/// Makes a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTenant {
    /// Unique name.
    pub name: String,
    /// What a task gets that leaves it unset.
    pub defaults: TaskDefaults,
    /// Share relative to others, in thousandths; 1 to 2^20.
    pub weight_milli: u32,
}

/// Lets a tenant submit no more, or again. What it submitted goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTenantSuspended {
    /// Which tenant.
    pub tenant: TenantId,
    /// Whether it is suspended from now on.
    pub suspended: bool,
}
