//! Which issuing key the cluster's certificates come from. The key itself is with the servers; the state has the digest of its certificate, so
//! that every server knows which one is current, and the certificates of all that there were, on which proofs rest.

use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::identity::{IdentityKey, IdentityRow};
use crate::state::State;

/// The issuing key that is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentIssuer {
    /// The digest of its certificate among the proofs.
    pub issuer: Digest,
    /// The serial number of that certificate.
    pub serial: u64,
    /// Until when it is good, milliseconds since 1970.
    pub not_after_wall_ms: u64,
    /// Since when it is current, milliseconds since 1970.
    pub since_wall_ms: u64,
}

/// What the state knows of the issuing key. There is no such row before another key followed the first one, or a server left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRow {
    /// The current key. Unset, it is the one with which the cluster was founded or restored.
    pub current: Option<CurrentIssuer>,
    /// How many servers left or were blocked since that key is current: each knows it.
    pub servers_left: u64,
}

/// Another issuing key follows the current one. The root's key has certified it, which the server that proposes this has checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetIssuingAuthority {
    /// The key that it follows, as [`CurrentIssuer::issuer`]; unset where the state names none yet.
    pub follows: Option<Digest>,
    /// The certificate of the key that it follows, with its digest, where the server that proposes this has it: proofs rest on it.
    pub previous: Option<(Digest, Vec<u8>)>,
    /// The new key's certificate among the proofs, with its digest.
    pub issuer: (Digest, Vec<u8>),
    /// The serial number of that certificate: higher than that of the key that it follows.
    pub serial: u64,
    /// Until when the new key is good, milliseconds since 1970.
    pub not_after_wall_ms: u64,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

impl State {
    /// What the state knows of the issuing key.
    pub fn issuing_authority(&self) -> Option<&AuthorityRow> {
        match self.identity.rows.get(&IdentityKey::Authority) {
            Some(IdentityRow::Authority(row)) => Some(row),
            _ => None,
        }
    }
}
