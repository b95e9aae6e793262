//! The proof of one execution as a file: everything that a verifier needs but the root, which it brings itself.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::envelope::{Envelope, base64_bytes};
use crate::error::ProofError;
use crate::report::{LogEntry, ReportHeader};
use crate::result::ResultManifest;
use crate::root::pretty;
use crate::statement::ExecutionStatement;

/// The type that a proof names.
pub const BUNDLE_TYPE: &str = "urn:grey:proof:v1";
/// The most bytes that a proof may have: one with the most files of the longest paths is far smaller.
pub const LARGEST_BUNDLE_BYTES: usize = 16 * 1024 * 1024;

/// Where the statement stands in its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledLeaf {
    /// Its number.
    pub index: u32,
    /// The salt that is hashed before it.
    pub salt: Digest,
    /// The hashes beside the way to the report's root, from the leaf upwards.
    pub path: Vec<Digest>,
}

/// Where the report stands in the cluster's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledLog {
    /// The log's entry.
    pub entry: LogEntry,
    /// Its position, from zero.
    pub position: u64,
    /// The hashes beside the way to the checkpoint's root, from the leaf upwards.
    pub path: Vec<Digest>,
    /// The signed note over the log's size and root.
    pub checkpoint: String,
    /// Certificates of the servers that signed it.
    pub servers: Vec<Envelope>,
}

/// A proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofBundle {
    /// [`BUNDLE_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// What the worker states.
    pub statement: ExecutionStatement,
    /// What the statement's result hash stands for.
    pub result: ResultManifest,
    /// Where the statement stands in the report.
    pub leaf: BundledLeaf,
    /// What the worker signed.
    pub report: ReportHeader,
    /// The worker's signature over it.
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
    /// The worker's certificate.
    pub certificate: Envelope,
    /// Certificates of what signed certificates here, where the root did not sign them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<Envelope>,
    /// The receipt: where the cluster's log has the report.
    pub log: BundledLog,
}

impl ProofBundle {
    /// Reads a proof. That it reads says nothing of whether it holds.
    pub fn decode(bytes: &[u8]) -> Result<ProofBundle, ProofError> {
        let unreadable = |reason: String| ProofError::Unreadable { expected: "a proof", reason };
        if bytes.len() > LARGEST_BUNDLE_BYTES {
            return Err(unreadable(format!(
                "it has {} bytes; the limit is {LARGEST_BUNDLE_BYTES}",
                bytes.len()
            )));
        }
        let bundle: ProofBundle =
            serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
        if bundle.kind != BUNDLE_TYPE {
            return Err(unreadable(format!("its type is not {BUNDLE_TYPE}")));
        }
        Ok(bundle)
    }

    /// The proof's text.
    pub fn encode(&self) -> Vec<u8> {
        pretty(self)
    }
}
