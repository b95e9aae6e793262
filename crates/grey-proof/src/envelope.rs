//! DSSE, version 1: a signature covers the content's type too, so that one type is never taken for another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::ProofError;
use crate::keys::{SigningKey, VerifyingKey};

/// The bytes that are signed (DSSE protocol, "PAE").
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Bytes in standard base64 (RFC 4648, section 4), in JSON.
pub(crate) mod base64_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// Signed content as it travels (DSSE, "Envelope").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The content.
    #[serde(with = "base64_bytes")]
    pub payload: Vec<u8>,
    /// Its type.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Who signed it.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// The key's identity: a hint, what counts is the key that the reader has.
    pub keyid: String,
    /// The signature.
    #[serde(with = "base64_bytes")]
    pub sig: Vec<u8>,
}

impl Envelope {
    /// Signs content.
    pub fn sign(payload_type: &str, payload: Vec<u8>, key: &SigningKey) -> Envelope {
        let sig = key.sign(&pre_authentication_encoding(payload_type, &payload)).to_vec();
        let keyid = key.verifying_key().id().to_string();
        Envelope {
            payload,
            payload_type: payload_type.to_owned(),
            signatures: vec![EnvelopeSignature { keyid, sig }],
        }
    }

    /// The content, once it is of the type that was asked for and `key` signed it.
    pub fn open(&self, payload_type: &str, key: &VerifyingKey) -> Result<&[u8], ProofError> {
        if self.payload_type != payload_type {
            return Err(ProofError::WrongPayloadType {
                found: self.payload_type.chars().take(128).collect(),
                expected: payload_type.to_owned(),
            });
        }
        let key_id = key.id().to_string();
        let signature = self.signatures.iter().find(|signature| signature.keyid == key_id);
        let signature = signature.ok_or(ProofError::MissingSignature { key_id })?;
        key.verify(&pre_authentication_encoding(payload_type, &self.payload), &signature.sig)?;
        Ok(&self.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_one_of_the_protocol_s_example() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn content_is_only_given_out_under_its_type_and_its_key() {
        let key = SigningKey::from_seed([1; 32]);
        let envelope = Envelope::sign("a/b", b"content".to_vec(), &key);
        let json = serde_json::to_vec(&envelope).unwrap();
        let envelope: Envelope = serde_json::from_slice(&json).unwrap();
        assert_eq!(envelope.open("a/b", &key.verifying_key()), Ok(&b"content"[..]));
        assert!(matches!(
            envelope.open("a/c", &key.verifying_key()),
            Err(ProofError::WrongPayloadType { .. })
        ));
        let other = SigningKey::from_seed([2; 32]).verifying_key();
        assert!(matches!(envelope.open("a/b", &other), Err(ProofError::MissingSignature { .. })));
        let mut changed = envelope.clone();
        changed.payload[0] ^= 1;
        assert!(matches!(changed.open("a/b", &key.verifying_key()), Err(ProofError::BadSignature { .. })));
    }
}
