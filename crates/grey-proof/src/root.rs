//! The root that a verifier trusts: exported once from a cluster, kept by the one who checks.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ProofError;
use crate::keys::VerifyingKey;

/// The type that a root file names.
pub const ROOT_TYPE: &str = "urn:grey:root:v1";

/// What stands behind a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootClass {
    /// A cluster of one machine, whose owner could sign anything: it proves integrity, not honesty.
    Local,
    /// A cluster that accepts minted evidence, for trying things out.
    Lab,
    /// A cluster whose evidence is rooted in its makers' keys.
    Production,
}

impl RootClass {
    /// The name in root files.
    pub fn name(self) -> &'static str {
        match self {
            RootClass::Local => "local",
            RootClass::Lab => "lab",
            RootClass::Production => "production",
        }
    }
}

/// One key of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKey {
    /// The Ed25519 public key: 64 hexadecimal digits.
    pub public_key: Digest,
}

/// The file from which `grey verify` takes its trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootFile {
    /// [`ROOT_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The cluster: the identity of its first root key.
    pub cluster: Digest,
    /// What stands behind it.
    pub class: RootClass,
    /// How many servers must have signed a checkpoint.
    pub checkpoint_signatures: u32,
    /// Keys, the first of which named the cluster.
    pub keys: Vec<RootKey>,
}

impl RootFile {
    /// The root file of a cluster with one root key.
    pub fn new(class: RootClass, key: &VerifyingKey, checkpoint_signatures: u32) -> RootFile {
        RootFile {
            kind: ROOT_TYPE.to_owned(),
            cluster: key.id(),
            class,
            checkpoint_signatures,
            keys: vec![RootKey { public_key: Digest(key.to_bytes()) }],
        }
    }

    /// Reads a root file.
    pub fn decode(bytes: &[u8]) -> Result<RootFile, ProofError> {
        let unreadable = |reason: String| ProofError::Unreadable { expected: "a root file", reason };
        let root: RootFile = serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
        if root.kind != ROOT_TYPE {
            return Err(unreadable(format!("its type is not {ROOT_TYPE}")));
        }
        let keys = root.verifying_keys()?;
        if keys.first().map(VerifyingKey::id) != Some(root.cluster) {
            return Err(unreadable("its cluster is not the identity of its first key".to_owned()));
        }
        if root.checkpoint_signatures == 0 {
            return Err(unreadable("`checkpoint_signatures` is 0; at least 1 is needed".to_owned()));
        }
        Ok(root)
    }

    /// The file's text.
    pub fn encode(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Its keys.
    pub fn verifying_keys(&self) -> Result<Vec<VerifyingKey>, ProofError> {
        self.keys.iter().map(|key| VerifyingKey::from_bytes(&key.public_key.0)).collect()
    }
}

/// Indented JSON with a line's end.
pub(crate) fn pretty<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising to memory fails only for maps whose keys are no strings, of which there are none here.
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
