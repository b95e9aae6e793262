//! Ed25519 keys (RFC 8032). A secret key is wiped when dropped and never printed.

use core::fmt;

use ed25519_dalek::Signer;

use crate::digest::{Digest, hmac};
use crate::error::ProofError;

/// A secret key.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte seed, which must come from a source of randomness or from [`derive_seed`].
    pub fn from_seed(seed: [u8; 32]) -> SigningKey {
        SigningKey(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// The public key.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({:?})", self.verifying_key().id())
    }
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// The key of 32 bytes; refused when they are no point of the curve or one of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<VerifyingKey, ProofError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| ProofError::NotAKey)?;
        if key.is_weak() { Err(ProofError::NotAKey) } else { Ok(VerifyingKey(key)) }
    }

    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The key's identity, which is also its node's: the digest of its bytes.
    pub fn id(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Whether `signature` is this key's over `message`, by the strict rules that leave one signature a message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), ProofError> {
        let wrong = || ProofError::BadSignature { key_id: self.id().to_string() };
        let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| wrong())?;
        self.0.verify_strict(message, &signature).map_err(|_| wrong())
    }
}

/// A seed for one purpose from a node's secret: keys of different purposes tell nothing of one another.
pub fn derive_seed(secret: &[u8; 32], purpose: &str) -> [u8; 32] {
    hmac(secret, &[b"grey/key/v1", purpose.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_agree_with_rfc_8032_test_1() {
        let seed: [u8; 32] =
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse::<Digest>().unwrap().0;
        let key = SigningKey::from_seed(seed);
        assert_eq!(
            Digest(key.verifying_key().to_bytes()).to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert!(key.verifying_key().verify(b"", &key.sign(b"")).is_ok());
        assert!(key.verifying_key().verify(b"x", &key.sign(b"")).is_err());
    }

    #[test]
    fn a_weak_key_is_refused_and_purposes_differ() {
        assert_eq!(VerifyingKey::from_bytes(&[0; 32]), Err(ProofError::NotAKey));
        assert_ne!(derive_seed(&[1; 32], "proof"), derive_seed(&[1; 32], "tls"));
        assert!(!format!("{:?}", SigningKey::from_seed([1; 32])).contains("[1"));
    }
}
