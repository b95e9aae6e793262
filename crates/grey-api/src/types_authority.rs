//! Requests and responses about the key that issues the cluster's certificates.

use grey_proof::Envelope;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The key that issues the cluster's certificates. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuingKeyStatus {
    /// The digest of its certificate among the proofs.
    pub issuer: String,
    /// The serial number of that certificate.
    pub serial: u64,
    /// Until when it is good.
    pub not_after_ms: u64,
    /// Since when it is current; absent for the one with which the cluster was founded or restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// How many servers left or were blocked since: each knows it.
    pub servers_left: u64,
    /// Whether the server that answers has it; one that does not fetches it.
    pub here: bool,
    /// Why another one is due, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What the root key is asked to certify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuingKeyAsked {
    /// The cluster's identity: the digest of its root key.
    pub cluster: String,
    /// The new issuing key, Ed25519, 64 hexadecimal digits.
    pub public_key: String,
    /// The serial number of its certificate among the proofs.
    pub serial: u64,
    /// The root's certificate, PEM.
    pub root_certificate: String,
}

/// What the root key has certified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuingKeyCertified {
    /// The issuing key's certificate for TLS, PEM.
    pub certificate: String,
    /// Its certificate among the proofs, as proofs have it.
    #[schema(value_type = Object)]
    pub issuer: Envelope,
}
