//! What makes a cluster's certificate believed: its root, and nothing of the machine's own.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The most bytes that a file of root certificates may have.
pub const LARGEST_TRUST_BYTES: usize = 256 * 1024;
/// The most root certificates of one cluster: while a root is replaced there are two.
const MOST_ROOTS: usize = 16;
/// The client plane's protocol. The node plane is on the same port and speaks another.
const PROTOCOL: &[u8] = b"http/1.1";

/// Root certificates that a server's certificate must lead to, over TLS 1.3.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Trust")
    }
}

/// Why root certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error("there is no certificate in it; it begins with -----BEGIN CERTIFICATE-----")]
    Empty,
    /// There are more, or they are longer, than one cluster has.
    #[error("it holds more than {MOST_ROOTS} certificates or {LARGEST_TRUST_BYTES} bytes")]
    TooLarge,
    /// One cannot be read.
    #[error("certificate {number} of it cannot be read: {reason}")]
    Unreadable {
        /// Which one, from one.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Trust {
    /// Trust in the certificates of a PEM text, and in no others.
    ///
    /// # Errors
    /// When there is none in it, too many are, or one is damaged.
    pub fn from_pem(pem: &[u8]) -> Result<Trust, TrustError> {
        if pem.len() > LARGEST_TRUST_BYTES {
            return Err(TrustError::TooLarge);
        }
        let mut roots = RootCertStore::empty();
        for (position, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let unreadable =
                |reason: String| TrustError::Unreadable { number: position.saturating_add(1), reason };
            if position >= MOST_ROOTS {
                return Err(TrustError::TooLarge);
            }
            let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TrustError::Unreadable { number: 1, reason: error.to_string() })?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Trust(Arc::new(config)))
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}
