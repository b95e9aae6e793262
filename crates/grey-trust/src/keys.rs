//! Keys as X.509 and TLS want them.

use grey_proof::{Digest, SigningKey};
use rcgen::{PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::TrustError;

/// What comes before the 32 bytes of an Ed25519 seed in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What comes before the 32 bytes of an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key that signs certificates.
pub(crate) struct Signing<'a> {
    key: &'a SigningKey,
    public: [u8; 32],
}

impl<'a> Signing<'a> {
    pub(crate) fn new(key: &'a SigningKey) -> Signing<'a> {
        Signing { key, public: key.verifying_key().to_bytes() }
    }
}

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

/// The SubjectPublicKeyInfo of an Ed25519 key.
pub(crate) fn spki(public: &[u8; 32]) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), public].concat()
}

/// The Ed25519 key of a SubjectPublicKeyInfo; no other kind of key is used in a cluster.
pub(crate) fn ed25519_of(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(SPKI_PREFIX.as_slice())?.try_into().ok()
}

/// A private key for TLS.
pub(crate) fn private_key(seed: &[u8; 32]) -> PrivateKeyDer<'static> {
    let encoded = Zeroizing::new([PKCS8_PREFIX.as_slice(), seed].concat());
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(encoded.to_vec()))
}

/// The SubjectPublicKeyInfo in a certificate.
pub(crate) fn spki_of(certificate: &[u8]) -> Result<Vec<u8>, TrustError> {
    let certificate = CertificateDer::from(certificate);
    let parsed = webpki::EndEntityCert::try_from(&certificate);
    let parsed = parsed.map_err(|error| TrustError::Certificate(error.to_string()))?;
    Ok(parsed.subject_public_key_info().to_vec())
}

/// By what a TLS key is known: SHA-256 of its SubjectPublicKeyInfo, from a certificate in DER.
///
/// # Errors
/// [`TrustError::Certificate`] when the bytes are no certificate.
pub fn tls_key(certificate: &[u8]) -> Result<Digest, TrustError> {
    Ok(Digest::of(&spki_of(certificate)?))
}

/// By what the TLS key of a seed is known.
pub fn tls_key_of_seed(seed: &[u8; 32]) -> Digest {
    Digest::of(&spki(&SigningKey::from_seed(*seed).verifying_key().to_bytes()))
}

/// A request for a certificate of a seed's key (RFC 2986), in DER. It says nothing but the key.
///
/// # Errors
/// [`TrustError::Certificate`] when it cannot be written.
pub fn certificate_request(seed: &[u8; 32]) -> Result<Vec<u8>, TrustError> {
    let key = SigningKey::from_seed(*seed);
    let request = rcgen::CertificateParams::default().serialize_request(&Signing::new(&key))?;
    Ok(request.der().to_vec())
}

/// The key of a request, whose owner has proved that it is theirs. What else the request says is not read.
pub(crate) fn key_of_request(request: &[u8]) -> Result<SubjectPublicKeyInfo, TrustError> {
    let parsed = rcgen::CertificateSigningRequestParams::from_der(&request.into())?;
    let raw: [u8; 32] = match parsed.public_key.algorithm() == &PKCS_ED25519 {
        true => parsed.public_key.der_bytes().try_into().ok(),
        false => None,
    }
    .ok_or_else(|| TrustError::Certificate("its key is not Ed25519".to_owned()))?;
    Ok(SubjectPublicKeyInfo::from_der(&spki(&raw))?)
}
