//! What a certificate of the node plane says.

use grey_core::NodeRole;
use grey_proof::Digest;
use rustls::pki_types::CertificateDer;

use crate::error::TrustError;
use crate::keys::tls_key;

/// A node, as its certificate names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The cluster.
    pub cluster: Digest,
    /// What the node is.
    pub role: NodeRole,
    /// The digest of its proof key.
    pub node: Digest,
    /// By what its TLS key is known.
    pub tls_key: Digest,
}

fn parse(uri: &str) -> Option<(Digest, NodeRole, Digest)> {
    let mut parts = uri.strip_prefix("grey://")?.split('/');
    let (cluster, role, node) = (parts.next()?, parts.next()?, parts.next()?);
    let role = match role {
        "server" => NodeRole::Server,
        "worker" => NodeRole::Worker,
        _ => return None,
    };
    parts.next().is_none().then_some((cluster.parse().ok()?, role, node.parse().ok()?))
}

/// The node that a certificate in DER names. That the certificate is right says its chain.
///
/// # Errors
/// [`TrustError::Certificate`] when it is no certificate of a node.
pub fn peer_of(certificate: &[u8]) -> Result<Peer, TrustError> {
    let key = tls_key(certificate)?;
    let der = CertificateDer::from(certificate);
    let parsed = webpki::EndEntityCert::try_from(&der);
    let parsed = parsed.map_err(|error| TrustError::Certificate(error.to_string()))?;
    let mut named = parsed.valid_uri_names();
    match (named.next().and_then(parse), named.next()) {
        (Some((cluster, role, node)), None) => Ok(Peer { cluster, role, node, tls_key: key }),
        _ => Err(TrustError::Certificate("it names no node".to_owned())),
    }
}
