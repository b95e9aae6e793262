//! How a node enters: hello, challenge, evidence, then accept or reject. The messages, what evidence is bound to, and what is made of it.
//!
//! A challenge is answered by evidence over [`binding`]: the cluster, the challenge's nonce, the node, its TLS key and the connection,
//! so that an answer is worth nothing in another place.

use grey_core::{NodeRole, Tier};
use grey_proof::{Digest, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use crate::error::TrustError;

/// The most bytes of one message.
pub const MESSAGE_BYTES: usize = 64 * 1024;
/// How long a challenge may be answered, in milliseconds.
pub const CHALLENGE_MS: u64 = 60_000;
/// The most bytes of a version in evidence.
const VERSION_BYTES: usize = 128;

/// A node says who it is and what it wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of this handshake.
    pub version: u32,
    /// The join token's secret; absent for a node that belongs to the cluster and wants another certificate.
    pub token: Option<[u8; 32]>,
    /// A request for a certificate of its TLS key, in DER.
    pub certificate_request: Vec<u8>,
    /// Its proof key, Ed25519.
    pub public_key: [u8; 32],
    /// As what it enters.
    pub role: NodeRole,
    /// The host's name.
    pub name: String,
    /// Where others dial it, where it is a server.
    pub address: String,
}

/// What the node's evidence must answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Random, and good for one answer.
    pub nonce: [u8; 32],
    /// For how long, in milliseconds from when it was sent.
    pub expires_ms: u64,
}

/// What a node shows of what it runs. More kinds will follow; a reader refuses those it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// Nothing. It is always refused.
    None,
    /// The node says itself what it runs. Whoever owns the machine can lie.
    Software {
        /// Digest of the running binary.
        measurement: Digest,
        /// Its version.
        version: String,
        /// The proof key's signature over the binding, the measurement and the version.
        signature: Vec<u8>,
    },
}

/// A server, as it is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAddress {
    /// Its number.
    pub number: u64,
    /// Host and port.
    pub address: String,
    /// By what its TLS key is known.
    pub tls_key: Digest,
}

/// The node belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The cluster.
    pub cluster: Digest,
    /// Its number, where it is a server.
    pub server: Option<u64>,
    /// Certificates for TLS, its own first, in DER.
    pub tls_chain: Vec<Vec<u8>>,
    /// The certificate of its proof key, as JSON.
    pub certificate: Vec<u8>,
    /// The certificate of what signed that, as JSON.
    pub issuer: Vec<u8>,
    /// The servers.
    pub servers: Vec<ServerAddress>,
    /// How far it is trusted.
    pub tier: Tier,
}

/// Why a node is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RejectCode {
    /// A message makes no sense.
    Malformed,
    /// Another version of the handshake.
    Version,
    /// The server does not lead; another one may.
    NotLeader,
    /// The server cannot let anybody in now.
    Unavailable,
    /// The join token is not good.
    Token,
    /// The node does not belong to the cluster.
    Unknown,
    /// The node is blocked.
    Blocked,
    /// It took too long.
    Expired,
    /// There is no evidence, or of a kind that is not taken.
    NoEvidence,
    /// The evidence is not of this node, connection or challenge.
    NotBound,
    /// What the node runs is not allowed.
    Measurement,
    /// The cluster refused the entry.
    Refused,
}

/// The node is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Why.
    pub code: RejectCode,
    /// For people.
    pub detail: String,
    /// Who leads, where another server has to be asked.
    pub leader: Option<String>,
}

/// One message of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinMessage {
    /// From the node, first.
    Hello(Hello),
    /// From the server.
    Challenge(Challenge),
    /// From the node.
    Evidence(Evidence),
    /// From the server, last.
    Accept(Accept),
    /// From the server, last.
    Reject(Reject),
}

impl JoinMessage {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising to memory fails only for types without a known length, and messages have none of those.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads a message of at most [`MESSAGE_BYTES`]; every byte must be used.
    ///
    /// # Errors
    /// [`TrustError::Unreadable`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<JoinMessage, TrustError> {
        if bytes.len() > MESSAGE_BYTES {
            return Err(TrustError::Unreadable("message"));
        }
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(TrustError::Unreadable("message")),
        }
    }
}

/// What evidence is bound to. `exporter` is exported from the connection under [`crate::JOIN_EXPORTER_LABEL`] without a context.
pub fn binding(
    cluster: &Digest,
    nonce: &[u8; 32],
    node: &Digest,
    tls_key: &Digest,
    exporter: &[u8; 32],
) -> [u8; 64] {
    let mut hash = Sha512::new();
    hash.update(b"grey/join/v1\0");
    for part in [&cluster.0, nonce, &node.0, &tls_key.0, exporter] {
        hash.update(part);
    }
    hash.finalize().into()
}

fn signed(binding: &[u8; 64], measurement: &Digest, version: &str) -> Vec<u8> {
    [b"grey/evidence/software/v1\0".as_slice(), binding, &measurement.0, version.as_bytes()].concat()
}

/// A node's word on what it runs.
pub fn software_evidence(
    key: &SigningKey,
    measurement: Digest,
    version: String,
    binding: &[u8; 64],
) -> Evidence {
    let signature = key.sign(&signed(binding, &measurement, &version)).to_vec();
    Evidence::Software { measurement, version, signature }
}

/// What evidence must be like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Digests of binaries that may run; any, where none are given.
    pub allowed_measurements: Option<Vec<Digest>>,
}

/// What is made of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appraisal {
    /// How far the node is trusted.
    pub tier: Tier,
    /// Digest of the evidence.
    pub evidence: Digest,
}

/// Appraises evidence that answers a challenge.
///
/// # Errors
/// Why it is not taken.
pub fn appraise(
    policy: &Policy,
    evidence: &Evidence,
    binding: &[u8; 64],
    public_key: &[u8; 32],
) -> Result<Appraisal, RejectCode> {
    match evidence {
        Evidence::None => Err(RejectCode::NoEvidence),
        Evidence::Software { measurement, version, signature } => {
            if version.len() > VERSION_BYTES {
                return Err(RejectCode::Malformed);
            }
            let key = VerifyingKey::from_bytes(public_key).map_err(|_| RejectCode::Malformed)?;
            key.verify(&signed(binding, measurement, version), signature)
                .map_err(|_| RejectCode::NotBound)?;
            if policy.allowed_measurements.as_ref().is_some_and(|allowed| !allowed.contains(measurement)) {
                return Err(RejectCode::Measurement);
            }
            // Serialising to memory fails only for types without a known length, and evidence has none of those.
            let encoded = postcard::to_allocvec(evidence).unwrap_or_default();
            Ok(Appraisal { tier: Tier::Software, evidence: Digest::of(&encoded) })
        }
    }
}

/// A challenge that a server has sent and that was not answered. It is good for one answer: who answers it uses it up.
#[derive(Debug)]
pub struct OpenChallenge {
    nonce: [u8; 32],
    binding: [u8; 64],
    public_key: [u8; 32],
    until_ms: u64,
}

impl OpenChallenge {
    /// Challenges whoever says hello with this proof key and TLS key over a connection with this exporter value. `nonce` must be
    /// random; `now_ms` is of a clock that does not jump.
    pub fn new(
        cluster: &Digest,
        nonce: [u8; 32],
        public_key: [u8; 32],
        tls_key: &Digest,
        exporter: &[u8; 32],
        now_ms: u64,
    ) -> OpenChallenge {
        let binding = binding(cluster, &nonce, &Digest::of(&public_key), tls_key, exporter);
        OpenChallenge { nonce, binding, public_key, until_ms: now_ms.saturating_add(CHALLENGE_MS) }
    }

    /// The nonce, which the log remembers as used.
    pub fn nonce(&self) -> [u8; 32] {
        self.nonce
    }

    /// What is sent to the node.
    pub fn message(&self) -> Challenge {
        Challenge { nonce: self.nonce, expires_ms: CHALLENGE_MS }
    }

    /// Appraises the answer.
    ///
    /// # Errors
    /// [`RejectCode::Expired`] when it comes too late, and why [`appraise`] does not take it.
    pub fn answer(self, policy: &Policy, evidence: &Evidence, now_ms: u64) -> Result<Appraisal, RejectCode> {
        if now_ms > self.until_ms {
            return Err(RejectCode::Expired);
        }
        appraise(policy, evidence, &self.binding, &self.public_key)
    }
}
