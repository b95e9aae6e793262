//! Certificates: the cluster's root says which key speaks for which node, as what, and until when.

use serde::Deserialize;

use crate::canonical::{CanonicalWriter, parse_rfc3339, rfc3339};
use crate::digest::Digest;
use crate::envelope::Envelope;
use crate::error::ProofError;
use crate::keys::{SigningKey, VerifyingKey};

/// The type of a signed certificate.
pub const CERTIFICATE_PAYLOAD_TYPE: &str = "application/vnd.grey.certificate.v1+json";

/// The most issuers that are tried: each costs two checks of a signature.
pub const MOST_ISSUERS: usize = 8;

const KIND: &str = "urn:grey:certificate:v1";

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reports of executions.
    Worker,
    /// Checkpoints of the cluster's log.
    Server,
    /// Certificates of workers and servers, and nothing else.
    Issuer,
}

impl Role {
    /// The name in certificates.
    pub fn name(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Server => "server",
            Role::Issuer => "issuer",
        }
    }
}

/// What the root, or an issuer that it certified, says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The cluster.
    pub cluster: Digest,
    /// The node: digest of its public key.
    pub node_id: Digest,
    /// What the key may sign.
    pub role: Role,
    /// The public key.
    pub public_key: VerifyingKey,
    /// How far the cluster trusts the node.
    pub tier: String,
    /// Number of the certificate, unique under the root.
    pub serial: u64,
    /// Valid from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Valid until and with, milliseconds since 1970.
    pub not_after_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateJson {
    cluster: Digest,
    node_id: Digest,
    not_after: String,
    not_before: String,
    public_key: Digest,
    role: Role,
    serial: u64,
    tier: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Certificate {
    /// The canonical bytes, version 1.
    pub fn encode_v1(&self) -> Result<Vec<u8>, ProofError> {
        let mut out = Vec::with_capacity(512);
        let not_before = rfc3339("not_before", self.not_before_ms)?;
        let not_after = rfc3339("not_after", self.not_after_ms)?;
        CanonicalWriter::object(&mut out, |certificate| {
            certificate.digest("cluster", &self.cluster);
            certificate.digest("node_id", &self.node_id);
            certificate.string("not_after", &not_after);
            certificate.string("not_before", &not_before);
            certificate.digest("public_key", &Digest(self.public_key.to_bytes()));
            certificate.string("role", self.role.name());
            certificate.number("serial", self.serial)?;
            certificate.string("tier", &self.tier);
            certificate.string("type", KIND);
            Ok(())
        })?;
        Ok(out)
    }

    /// Reads the canonical bytes; any other spelling of the same content is refused.
    pub fn decode(bytes: &[u8]) -> Result<Certificate, ProofError> {
        let unreadable = |reason: String| ProofError::Unreadable { expected: "a certificate", reason };
        let json: CertificateJson =
            serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
        let time = |text: &str| parse_rfc3339(text).ok_or_else(|| unreadable(format!("`{text}` is no time")));
        let certificate = Certificate {
            cluster: json.cluster,
            node_id: json.node_id,
            role: json.role,
            public_key: VerifyingKey::from_bytes(&json.public_key.0)?,
            tier: json.tier,
            serial: json.serial,
            not_before_ms: time(&json.not_before)?,
            not_after_ms: time(&json.not_after)?,
        };
        if json.kind != KIND || certificate.encode_v1()? != bytes {
            return Err(unreadable("it is not in canonical form".to_owned()));
        }
        if certificate.node_id != certificate.public_key.id() {
            return Err(unreadable("its node is not its key's".to_owned()));
        }
        Ok(certificate)
    }

    /// The certificate's identity, which statements name.
    pub fn id(&self) -> Result<Digest, ProofError> {
        Ok(Digest::of(&self.encode_v1()?))
    }

    /// Signs the certificate with a root's key.
    pub fn sign(&self, root: &SigningKey) -> Result<Envelope, ProofError> {
        Ok(Envelope::sign(CERTIFICATE_PAYLOAD_TYPE, self.encode_v1()?, root))
    }

    /// Reads a certificate that one of `roots` signed.
    pub fn open<'a>(
        envelope: &Envelope,
        roots: impl IntoIterator<Item = &'a VerifyingKey>,
    ) -> Result<Certificate, ProofError> {
        let mut refusal = ProofError::MissingSignature { key_id: "of any root".to_owned() };
        for root in roots {
            match envelope.open(CERTIFICATE_PAYLOAD_TYPE, root) {
                Ok(payload) => return Certificate::decode(payload),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Reads a certificate that one of `roots` signed, or an issuer whose own certificate one of them signed and held when this one
    /// began. An issuer certifies workers and servers of its cluster, and no other issuer.
    pub fn open_issued<'a>(
        envelope: &Envelope,
        roots: impl IntoIterator<Item = &'a VerifyingKey> + Clone,
        issuers: &[Envelope],
    ) -> Result<Certificate, ProofError> {
        let mut refusal = match Certificate::open(envelope, roots.clone()) {
            Ok(certificate) => return Ok(certificate),
            Err(error) => error,
        };
        for issuer in issuers.iter().take(MOST_ISSUERS) {
            let issuer = match Certificate::open(issuer, roots.clone()) {
                Ok(issuer) if issuer.role == Role::Issuer => issuer,
                Ok(_) => continue,
                Err(error) => {
                    refusal = error;
                    continue;
                }
            };
            match Certificate::open(envelope, [&issuer.public_key]) {
                Ok(certificate) => {
                    let begins = certificate.not_before_ms;
                    let vouched = certificate.role != Role::Issuer
                        && certificate.cluster == issuer.cluster
                        && (issuer.not_before_ms..=issuer.not_after_ms).contains(&begins);
                    return if vouched { Ok(certificate) } else { Err(ProofError::NotVouchedFor) };
                }
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_certifies_nodes_of_its_cluster_while_it_is_certified_itself_and_no_other_issuer() {
        let key = |seed| SigningKey::from_seed([seed; 32]);
        let (root, issuing, node) = (key(1), key(2), key(3));
        let certificate = |of: &SigningKey, role, from_ms: u64| Certificate {
            cluster: Digest::of(b"cluster"),
            node_id: of.verifying_key().id(),
            role,
            public_key: of.verifying_key(),
            tier: "software".to_owned(),
            serial: 7,
            not_before_ms: from_ms,
            not_after_ms: from_ms + 1_000,
        };
        let issuer = certificate(&issuing, Role::Issuer, 10_000).sign(&root).unwrap();
        let roots = [root.verifying_key()];
        let open = |leaf: &Certificate, signer: &SigningKey, issuers: &[Envelope]| {
            Certificate::open_issued(&leaf.sign(signer).unwrap(), &roots, issuers)
        };
        let leaf = certificate(&node, Role::Worker, 10_500);
        let issuers = [issuer.clone()];
        assert_eq!(open(&leaf, &issuing, &issuers), Ok(leaf.clone()));
        assert_eq!(open(&leaf, &root, &[]), Ok(leaf.clone()));
        assert!(open(&leaf, &issuing, &[]).is_err(), "without the issuer's certificate");
        for begins in [9_999, 11_001] {
            let late = certificate(&node, Role::Worker, begins);
            assert_eq!(open(&late, &issuing, &issuers), Err(ProofError::NotVouchedFor));
        }
        let another = certificate(&node, Role::Issuer, 10_500);
        assert_eq!(open(&another, &issuing, &issuers), Err(ProofError::NotVouchedFor));
        let elsewhere = Certificate { cluster: Digest::of(b"another"), ..leaf.clone() };
        assert_eq!(open(&elsewhere, &issuing, &issuers), Err(ProofError::NotVouchedFor));
        let worker = certificate(&issuing, Role::Worker, 10_000).sign(&root).unwrap();
        assert!(open(&leaf, &issuing, &[worker]).is_err(), "a worker issues nothing");
        let chained = certificate(&node, Role::Issuer, 10_500).sign(&issuing).unwrap();
        assert!(open(&leaf, &node, &[issuer, chained]).is_err(), "an issuer certifies no issuer");
    }

    #[test]
    fn a_certificate_is_published_and_reads_back_only_from_its_canonical_bytes() {
        let key = SigningKey::from_seed([3; 32]).verifying_key();
        let certificate = Certificate {
            cluster: Digest::of(b"cluster"),
            node_id: key.id(),
            role: Role::Worker,
            public_key: key,
            tier: "software".to_owned(),
            serial: 7,
            not_before_ms: 1_795_512_600_000,
            not_after_ms: 1_795_599_000_000,
        };
        let bytes = certificate.encode_v1().unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "8ff3c48d252bab648dae31d07a1fccf7d67948fa3aed40b647a37c887d604ed7",
            "{}",
            String::from_utf8_lossy(&bytes)
        );
        assert_eq!(Certificate::decode(&bytes), Ok(certificate.clone()));
        let issuer = Certificate { role: Role::Issuer, ..certificate.clone() };
        assert_eq!(
            Digest::of(&issuer.encode_v1().unwrap()).to_string(),
            "ad9c4c96e067dd5bb70e45728f92e86146f13c9d903a14374eda0878c76119f1",
        );
        assert_eq!(Certificate::decode(&issuer.encode_v1().unwrap()), Ok(issuer));
        let spaced = String::from_utf8(bytes.clone()).unwrap().replace(",\"role\"", ", \"role\"");
        assert!(Certificate::decode(spaced.as_bytes()).is_err());
        let other = Certificate { node_id: Digest::ZERO, ..certificate };
        assert!(Certificate::decode(&other.encode_v1().unwrap()).is_err());
    }
}
