//! TLS 1.3 between nodes, and what a peer's certificate must be like.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use grey_core::NodeRole;
use grey_proof::Digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};
use webpki::KeyUsage;

use crate::error::TrustError;
use crate::identity::IdentityHandle;
use crate::keys::{ed25519_of, spki_of};
use crate::peer::{Peer, peer_of};

/// Certificates of a chain: the node's, the issuing key's and the root's.
const MOST_CERTIFICATES: usize = 3;

/// Whom a node believes: the cluster's root, and servers that the log has.
#[derive(Debug, Clone)]
pub struct Trust {
    cluster: Digest,
    pinned: Arc<RwLock<BTreeSet<Digest>>>,
}

impl Trust {
    /// Believes what the root key of this cluster has signed: a chain that is shown ends in the root's certificate, whose key has this
    /// digest.
    pub fn of_cluster(cluster: Digest) -> Trust {
        Trust { cluster, pinned: Arc::default() }
    }

    /// Believes these servers, by the digests of their keys, whatever the dates of their certificates.
    pub fn pin(&self, keys: impl IntoIterator<Item = Digest>) {
        *self.pinned.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().collect();
    }

    fn is_pinned(&self, key: &Digest) -> bool {
        self.pinned.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Whether a chain as nodes show it is good at a time, milliseconds since 1970.
    pub(crate) fn holds(&self, chain: &[Vec<u8>], at_ms: u64) -> bool {
        let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| der.as_slice().into()).collect();
        let at = UnixTime::since_unix_epoch(core::time::Duration::from_millis(at_ms));
        chain.split_first().is_some_and(|(leaf, above)| self.check(leaf, above, at).is_ok())
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, Error> {
        let peer = peer_of(leaf).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if peer.cluster != self.cluster {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let (root, between) = chain.split_last().ok_or_else(unknown)?;
        let root_key = spki_of(root).ok().and_then(|spki| ed25519_of(&spki)).ok_or_else(unknown)?;
        if Digest::of(&root_key) != self.cluster {
            return Err(unknown());
        }
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| unknown())?;
        let parsed = webpki::EndEntityCert::try_from(leaf)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let anchors = [anchor];
        let verify = |at: UnixTime| {
            let (algorithms, usage) = ([webpki::ring::ED25519], KeyUsage::client_auth());
            parsed.verify_for_usage(&algorithms, &anchors, between, at, usage, None, None).map(|_| ())
        };
        let mut verified = verify(now);
        if self.is_pinned(&peer.tls_key) {
            // Only the dates are forgiven: what the certificate says must still be what the cluster's root vouches for. Each round
            // goes to the time at which the one that was out of date held.
            for _ in 0..MOST_CERTIFICATES {
                verified = match verified {
                    Err(webpki::Error::CertExpired { not_after, .. }) => verify(not_after),
                    Err(webpki::Error::CertNotValidYet { not_before, .. }) => verify(not_before),
                    done => done,
                };
            }
        }
        verified.map_err(|error| {
            Error::InvalidCertificate(match error {
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                _ => CertificateError::UnknownIssuer,
            })
        })?;
        Ok(peer)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Verifies both sides alike.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(trust: &Trust) -> Arc<Verifier> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Arc::new(Verifier { trust: trust.clone(), algorithms })
    }
}

impl ServerCertVerifier for Verifier {
    /// The name that was dialled says nothing: who it is says the certificate, and whether that one was meant says whoever dialled.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.trust.check(end_entity, intermediates, now)?;
        if peer.role != NodeRole::Server {
            return Err(Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    /// Clients of the API and nodes that want to enter have no certificate.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.check(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// TLS for a server's listener: 1.3 only, a client's certificate verified where it shows one, every connection a handshake of its own,
/// since one that is resumed would ask nobody whether the node is still trusted.
///
/// # Errors
/// [`TrustError::Tls`] when the configuration contradicts itself.
pub fn server_config(trust: &Trust, identity: &IdentityHandle) -> Result<ServerConfig, TrustError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Verifier::new(trust))
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// TLS for dialling servers, with a certificate or, for a node that wants to enter, without.
///
/// # Errors
/// [`TrustError::Tls`] when the configuration contradicts itself.
pub fn client_config(trust: &Trust, identity: Option<&IdentityHandle>) -> Result<ClientConfig, TrustError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(trust));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
