//! Who a node is and how far it is trusted: certificates, TLS, evidence, and the tokens with which one enters.
//!
//! Sans-IO: bytes in, bytes out. All keys are Ed25519. The cluster's root key signs an issuing key; the issuing key signs what nodes
//! show one another, which holds for an hour. Servers know one another by keys that the log has, whatever the dates: a cluster that
//! was off for long starts again.

mod authority;
mod error;
mod identity;
pub mod join;
mod keys;
mod peer;
mod tls;
mod token;

pub use authority::{Authority, CertifiedIssuer, certify_issuer, from_pem, needs_rekey, pem, root_of_chain};
pub use error::TrustError;
pub use identity::{IdentityHandle, TlsIdentity};
pub use keys::{certificate_request, tls_key, tls_key_of_seed};
pub use peer::{Peer, peer_of};
pub use tls::{Trust, client_config, server_config};
pub use token::{ApiToken, JoinToken};

/// Under which label a connection's secret is exported to which a join is bound (RFC 8446, section 7.5).
pub const JOIN_EXPORTER_LABEL: &[u8] = b"EXPORTER-grey-join-v1";
