//! Proofs of execution: digests, Merkle trees, canonical statements, keys and signatures.
//!
//! This crate knows nothing of clusters and imports nothing of Grey. What it encodes is published: its golden tests
//! hold the bytes, and a change of them is a new version beside the old one.

mod bundle;
mod canonical;
mod certificate;
mod checkpoint;
mod digest;
mod envelope;
mod error;
mod keys;
mod log_tree;
mod merkle;
mod report;
mod result;
mod root;
mod statement;
mod verify;

pub use bundle::{BUNDLE_TYPE, BundledLeaf, BundledLog, LARGEST_BUNDLE_BYTES, ProofBundle};
pub use canonical::{MAX_INTEGER, utc};
pub use certificate::{CERTIFICATE_PAYLOAD_TYPE, Certificate, MOST_ISSUERS, Role};
pub use checkpoint::SignedCheckpoint;
pub use digest::{Digest, DigestBuilder, StreamDigest};
pub use envelope::{Envelope, EnvelopeSignature, pre_authentication_encoding};
pub use error::ProofError;
pub use keys::{SigningKey, VerifyingKey, derive_seed};
pub use log_tree::{LogTree, log_inclusion_path, log_root, stored_hash_count, stored_hash_index};
pub use merkle::{
    inclusion_path, leaf_hash, leaf_salt, merkle_root, node_hash, statement_leaf, verify_inclusion,
};
pub use report::{LogEntry, REPORT_PAYLOAD_TYPE, ReportHeader, report_digest};
pub use result::{ExecInputs, ResultFile, ResultManifest, exec_key};
pub use root::{ROOT_TYPE, RootClass, RootFile, RootKey};
pub use statement::{ExecutionStatement, PREDICATE_TYPE};
pub use verify::{Check, Evidence, EvidenceFile, Verification, verify};
