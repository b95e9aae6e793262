//! What a worker signs: the root over a report's statements; and what the cluster's log keeps of it.

use serde::{Deserialize, Serialize};

use crate::canonical::CanonicalWriter;
use crate::digest::{Digest, DigestBuilder};
use crate::envelope::pre_authentication_encoding;
use crate::error::ProofError;
use crate::keys::{SigningKey, VerifyingKey};

/// The type of a signed report header.
pub const REPORT_PAYLOAD_TYPE: &str = "application/vnd.grey.report.v1+json";

/// What one signature covers: the statements of a report, by their root, and where they belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportHeader {
    /// The cluster.
    pub cluster: Digest,
    /// The worker's node.
    pub worker_id: Digest,
    /// Its certificate.
    pub certificate: Digest,
    /// Its life.
    pub incarnation: u64,
    /// The report's number in that life.
    pub sequence: u64,
    /// How many statements.
    pub leaf_count: u32,
    /// Merkle root over their salted leaves.
    pub root: Digest,
}

impl ReportHeader {
    /// The canonical bytes that are signed, version 1.
    pub fn encode_v1(&self) -> Result<Vec<u8>, ProofError> {
        let mut out = Vec::with_capacity(512);
        CanonicalWriter::object(&mut out, |header| {
            header.digest("certificate", &self.certificate);
            header.digest("cluster", &self.cluster);
            header.number("incarnation", self.incarnation)?;
            header.number("leaf_count", u64::from(self.leaf_count))?;
            header.digest("root", &self.root);
            header.number("sequence", self.sequence)?;
            header.string("type", "urn:grey:report:v1");
            header.digest("worker_id", &self.worker_id);
            Ok(())
        })?;
        Ok(out)
    }

    /// Signs the header in its DSSE envelope.
    pub fn sign(&self, key: &SigningKey) -> Result<[u8; 64], ProofError> {
        Ok(key.sign(&pre_authentication_encoding(REPORT_PAYLOAD_TYPE, &self.encode_v1()?)))
    }

    /// Whether `signature` is the key's over this header.
    pub fn verify(&self, key: &VerifyingKey, signature: &[u8]) -> Result<(), ProofError> {
        key.verify(&pre_authentication_encoding(REPORT_PAYLOAD_TYPE, &self.encode_v1()?), signature)
    }
}

/// What the cluster's log says of a report: a digest over the signed header and its signature.
pub fn report_digest(header: &ReportHeader, signature: &[u8]) -> Result<Digest, ProofError> {
    let mut hash = DigestBuilder::domain("grey/report/v1");
    hash.field(&header.encode_v1()?);
    hash.field(signature);
    Ok(hash.finish())
}

/// One leaf of the cluster's log: a report that was accepted, and which of its statements were not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// Which report, by [`report_digest`].
    pub report_digest: Digest,
    /// Term of the entry that accepted it.
    pub term: u64,
    /// Index of the entry that accepted it.
    pub index: u64,
    /// Leaves whose results came too late or were not the worker's to give, ascending.
    pub refused: Vec<u32>,
}

impl LogEntry {
    /// The leaf's canonical bytes, version 1.
    pub fn encode_v1(&self) -> Result<Vec<u8>, ProofError> {
        let mut out = Vec::with_capacity(256);
        CanonicalWriter::object(&mut out, |entry| {
            entry.number("index", self.index)?;
            entry.numbers("refused", &self.refused);
            entry.digest("report_digest", &self.report_digest);
            entry.number("term", self.term)?;
            entry.string("type", "urn:grey:log:report:v1");
            Ok(())
        })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ReportHeader {
        ReportHeader {
            cluster: Digest::of(b"cluster"),
            worker_id: Digest::of(b"worker"),
            certificate: Digest::of(b"certificate"),
            incarnation: 1,
            sequence: 2,
            leaf_count: 3,
            root: Digest::of(b"root"),
        }
    }

    #[test]
    fn the_signed_header_and_the_log_entry_are_published_and_do_not_change() {
        assert_eq!(
            Digest::of(&header().encode_v1().unwrap()).to_string(),
            "34d79716e6c8bb5bbf014f60a33951bab5e99f23b5d8ea32480506f758f20a96"
        );
        let entry = LogEntry { report_digest: Digest::of(b"r"), term: 1, index: 2, refused: vec![0, 7] };
        assert_eq!(
            Digest::of(&entry.encode_v1().unwrap()).to_string(),
            "703cfa41ebc54a6742a44691dd4e4cc6b64db642a84c6e455028751b49101220"
        );
    }

    #[test]
    fn a_signature_holds_for_its_key_and_header_only() {
        let key = SigningKey::from_seed([7; 32]);
        let signature = header().sign(&key).unwrap();
        assert_eq!(header().verify(&key.verifying_key(), &signature), Ok(()));
        let other = SigningKey::from_seed([8; 32]).verifying_key();
        assert!(header().verify(&other, &signature).is_err());
        for position in 0..64 {
            let mut flipped = signature;
            flipped[position] ^= 1;
            assert!(header().verify(&key.verifying_key(), &flipped).is_err(), "byte {position}");
        }
        assert!(header().verify(&key.verifying_key(), &signature[..63]).is_err());
        for change in [
            (|header| header.sequence += 1) as fn(&mut ReportHeader),
            |header| header.incarnation += 1,
            |header| header.leaf_count += 1,
            |header| header.root = Digest::ZERO,
            |header| header.cluster = Digest::ZERO,
            |header| header.worker_id = Digest::ZERO,
            |header| header.certificate = Digest::ZERO,
        ] {
            let mut changed = header();
            change(&mut changed);
            assert!(changed.verify(&key.verifying_key(), &signature).is_err());
        }
    }
}
