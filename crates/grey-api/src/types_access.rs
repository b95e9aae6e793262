//! Requests and responses about tenants, tokens and nodes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::rights::Role;

/// What a task of a tenant gets that leaves it unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantDefaults {
    /// Thousandths of a processor core; 1000 when left out.
    #[serde(default = "usual_cpu_millicores")]
    pub cpu_millicores: u64,
    /// Memory in bytes; 64 MiB when left out.
    #[serde(default = "usual_memory_bytes")]
    pub memory_bytes: u64,
    /// Scratch disk in bytes; none when left out.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Longest run of an attempt in milliseconds; 24 hours when left out.
    #[serde(default = "usual_timeout_ms")]
    pub timeout_ms: u64,
    /// The most that an attempt may write, in bytes; 64 MiB when left out.
    #[serde(default = "usual_output_limit_bytes")]
    pub output_limit_bytes: u64,
    /// 0–255, higher first; 100 when left out.
    #[serde(default = "usual_priority")]
    pub priority: u8,
}

fn usual_cpu_millicores() -> u64 {
    1_000
}

fn usual_memory_bytes() -> u64 {
    64 * 1024 * 1024
}

fn usual_timeout_ms() -> u64 {
    24 * 3_600 * 1_000
}

fn usual_output_limit_bytes() -> u64 {
    64 * 1024 * 1024
}

fn usual_priority() -> u8 {
    100
}

fn usual_weight_milli() -> u32 {
    1_000
}

impl Default for TenantDefaults {
    fn default() -> TenantDefaults {
        TenantDefaults {
            cpu_millicores: usual_cpu_millicores(),
            memory_bytes: usual_memory_bytes(),
            disk_bytes: 0,
            timeout_ms: usual_timeout_ms(),
            output_limit_bytes: usual_output_limit_bytes(),
            priority: usual_priority(),
        }
    }
}

/// A tenant to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantRequest {
    /// Its name, of no other tenant: 1 to 63 lower-case letters, digits and hyphens.
    pub name: String,
    /// Share relative to others, in thousandths; 1000 when left out, 1 to 1048576.
    #[serde(default = "usual_weight_milli")]
    pub weight_milli: u32,
    /// What its tasks get that leave it unset.
    #[serde(default)]
    pub defaults: TenantDefaults,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantStatus {
    /// Its name.
    pub name: String,
    /// Whether it may submit nothing.
    pub suspended: bool,
    /// Share relative to others, in thousandths.
    pub weight_milli: u32,
    /// What its tasks get that leave it unset.
    pub defaults: TenantDefaults,
    /// Tasks that wait.
    pub queued_tasks: u64,
    /// Tasks that are assigned or run.
    pub held_tasks: u64,
    /// Thousandths of processor cores of those.
    pub used_cpu_millicores: u64,
    /// Their memory in bytes.
    pub used_memory_bytes: u64,
    /// What it may have, where it has a quota of its own.
    #[serde(default)]
    pub quota: TenantQuota,
}

/// What a tenant may have. What is left out is as for every tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantQuota {
    /// Tasks that wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_tasks: Option<u64>,
    /// How fast it may submit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<SubmissionRate>,
}

/// How fast tasks may be submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmissionRate {
    /// Tasks a second in the long run, 1 to 10000000.
    pub tasks_per_second: u64,
    /// Tasks at once after a pause, 1 to 100000000. A submission of more never fits.
    pub burst_tasks: u64,
}

/// A change of what a tenant may have: what is left out stays, what is null is as for every tenant again (RFC 7396).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaRequest {
    /// Share relative to others, in thousandths, 1 to 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_milli: Option<u32>,
    /// Tasks that wait, at most 2000000.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub queued_tasks: Option<Option<u64>>,
    /// How fast it may submit.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<SubmissionRate>)]
    pub rate: Option<Option<SubmissionRate>>,
}

/// A field that is there, even if it is null.
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// Tenants, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    /// The tenants.
    pub tenants: Vec<TenantStatus>,
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What people call it; it is the submitter's name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// For which tenant; only for a role within a tenant, and the asking token's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How long it is good, in milliseconds.
    pub valid_ms: u64,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenStatus {
    /// Digest of its secret: by this it is revoked.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// For which tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// When it was made, milliseconds since 1970.
    pub created_at_ms: u64,
    /// Until when it is good, milliseconds since 1970.
    pub expires_at_ms: u64,
    /// Who made it.
    pub created_by: String,
    /// Whether it has expired.
    pub expired: bool,
}

/// Tokens, by when they were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// The tokens.
    pub tokens: Vec<TokenStatus>,
}

/// A token was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// The token itself. It is shown this once; the cluster keeps its digest.
    pub token: String,
    /// What is known of it.
    #[serde(flatten)]
    pub status: TokenStatus,
}

/// A right to enter that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// As what: `server` or `worker`.
    pub role: String,
    /// How long it is good, in milliseconds.
    pub valid_ms: u64,
}

/// A right to enter was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenCreated {
    /// The token itself, which names the cluster. It is shown this once; the cluster keeps its digest.
    pub token: String,
    /// Digest of its secret.
    pub id: String,
    /// As what a node enters with it.
    pub role: String,
    /// Until when it is good, milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its identity: the digest of its key.
    pub id: String,
    /// The host's name.
    pub name: String,
    /// `server` or `worker`.
    pub role: String,
    /// `admitted`, `leaving` or `blocked`.
    pub standing: String,
    /// Whether it is a worker that gets no new work, by an operator's decision.
    #[serde(default)]
    pub cordoned: bool,
    /// A server's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<u64>,
    /// Whether it leads, as far as the server that answers knows.
    pub leads: bool,
    /// Where a server is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The version that a server runs, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The newest feature level that such a server understands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_level: Option<u16>,
    /// How far it is trusted.
    pub tier: String,
    /// When it was let in, milliseconds since 1970.
    pub admitted_at_ms: u64,
    /// A worker's number, once it has announced itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whether such a worker is `present` or `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<String>,
    /// What its troubles cost such a worker: it is `active`, gets no new work as a `suspect` or while it is `quarantined`, or a little on
    /// `probation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Attempts that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u32>,
    /// Executors of it that failed too often lately, such as `process`: they get no work for about 30 s, and then little to try them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shut_executors: Vec<String>,
}

/// Nodes, servers first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
}

/// Another feature level is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeatureLevelRaised {
    /// The level in force now.
    pub feature_level: u16,
    /// The level that was in force before: the same where every server understood no newer one.
    pub before: u16,
}

/// Another server is to lead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Which one: its name, its number, or its identity. Any voter that has caught up when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Another server leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeadershipTransferred {
    /// The number of the server that leads.
    pub leader: u64,
    /// Its name.
    pub name: String,
    /// The number of the server that led before: the same where the one that was named led already.
    pub before: u64,
}
