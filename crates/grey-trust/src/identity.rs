//! What a node shows in TLS: its key and the certificates that vouch for it, replaced before they end.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::TrustError;
use crate::keys::private_key;

/// Version of a written identity.
const VERSION: u8 = 1;

/// A TLS key with its certificates.
#[derive(Clone)]
pub struct TlsIdentity {
    seed: Zeroizing<[u8; 32]>,
    chain: Vec<Vec<u8>>,
    issued_ms: u64,
    expires_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Encoded {
    version: u8,
    chain: Vec<Vec<u8>>,
    issued_ms: u64,
    expires_ms: u64,
}

impl TlsIdentity {
    /// A key of this seed, with the chain that was issued for it just now, by the wall clock here.
    pub fn new(seed: [u8; 32], chain: Vec<Vec<u8>>, issued_ms: u64) -> TlsIdentity {
        // What it says of its own end is for others; renewing goes by when it was issued.
        let expires_ms = issued_ms.saturating_add(3_600 * 1_000);
        TlsIdentity { seed: Zeroizing::new(seed), chain, issued_ms, expires_ms }
    }

    /// The certificates, which are no secret. The seed is kept elsewhere.
    pub fn encode(&self) -> Vec<u8> {
        let (chain, issued_ms, expires_ms) = (self.chain.clone(), self.issued_ms, self.expires_ms);
        // Serialising to memory fails only for types without a known length, and this has none of those.
        postcard::to_allocvec(&Encoded { version: VERSION, chain, issued_ms, expires_ms }).unwrap_or_default()
    }

    /// Reads what [`TlsIdentity::encode`] wrote.
    ///
    /// # Errors
    /// [`TrustError::Unreadable`] for anything else.
    pub fn decode(seed: [u8; 32], bytes: &[u8]) -> Result<TlsIdentity, TrustError> {
        match postcard::take_from_bytes::<Encoded>(bytes) {
            Ok((Encoded { version: VERSION, chain, issued_ms, expires_ms }, [])) => {
                Ok(TlsIdentity { seed: Zeroizing::new(seed), chain, issued_ms, expires_ms })
            }
            _ => Err(TrustError::Unreadable("certificate")),
        }
    }

    /// Whether half of its life is over, or its end past, or its beginning to come.
    pub fn needs_renewal(&self, wall_ms: u64) -> bool {
        let half = self.issued_ms.saturating_add(self.expires_ms.saturating_sub(self.issued_ms) / 2);
        wall_ms >= half || wall_ms < self.issued_ms
    }

    /// The node's own certificate, in DER.
    pub fn leaf(&self) -> Option<&[u8]> {
        self.chain.first().map(Vec::as_slice)
    }

    /// The root's certificate, at the end of the chain, in DER.
    pub fn root(&self) -> Option<&[u8]> {
        self.chain.last().map(Vec::as_slice)
    }

    fn certified(&self) -> Result<CertifiedKey, TrustError> {
        let rustls::pki_types::PrivateKeyDer::Pkcs8(key) = private_key(&self.seed) else {
            return Err(TrustError::Unreadable("key"));
        };
        let chain = self.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Ok(CertifiedKey::new(chain, any_eddsa_type(&key)?))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TlsIdentity(expires {})", self.expires_ms)
    }
}

/// The identity that connections show from now on.
#[derive(Debug, Clone)]
pub struct IdentityHandle(Arc<RwLock<Arc<CertifiedKey>>>);

impl IdentityHandle {
    /// Shows this one.
    ///
    /// # Errors
    /// [`TrustError::Tls`] when the key cannot be used.
    pub fn new(identity: &TlsIdentity) -> Result<IdentityHandle, TrustError> {
        Ok(IdentityHandle(Arc::new(RwLock::new(Arc::new(identity.certified()?)))))
    }

    /// Shows another one from now on.
    ///
    /// # Errors
    /// [`TrustError::Tls`] when the key cannot be used.
    pub fn replace(&self, identity: &TlsIdentity) -> Result<(), TrustError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity.certified()?);
        Ok(())
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for IdentityHandle {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }
}

impl ResolvesClientCert for IdentityHandle {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
