//! Keys and certificates of a local node, in files that only their owner reads.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use grey_core::{Signer, Tier};
use grey_proof::{
    Certificate, Digest, Envelope, Role, RootClass, RootFile, SigningKey, VerifyingKey, derive_seed,
};
use serde::{Deserialize, Serialize};

use crate::error::NodeError;

/// How long a certificate of a local cluster holds: ten years, in milliseconds.
const VALIDITY_MS: u64 = 10 * 365 * 24 * 3_600 * 1_000;
/// A clock that was set back a little must not put executions before their certificate.
const BACKDATED_MS: u64 = 24 * 3_600 * 1_000;

/// Who this node is.
pub(crate) struct Identity {
    /// The root that verifiers keep.
    pub(crate) root: RootFile,
    /// Signs reports.
    worker_seed: [u8; 32],
    /// Signs checkpoints.
    pub(crate) server_key: SigningKey,
    /// The worker's certificate.
    pub(crate) worker_certificate: Envelope,
    /// The server's certificate.
    pub(crate) server_certificate: Envelope,
    /// What every statement of this node has in common.
    pub(crate) signer: Signer,
    /// The worker's public key.
    pub(crate) worker_key: VerifyingKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificates {
    worker: Envelope,
    server: Envelope,
}

/// Who vouches for a server's key: replaced when its certificate is.
pub(crate) struct Certified {
    /// The server's certificate.
    pub(crate) server_certificate: Envelope,
    /// What signed it, where the root did not.
    pub(crate) issuers: Vec<Envelope>,
}

impl Signing {
    /// Who vouches for the server's key.
    pub(crate) fn certified(&self) -> Arc<Certified> {
        self.certified.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Others vouch for the server's key from now on.
    pub(crate) fn renewed(&self, certified: Arc<Certified>) {
        *self.certified.write().unwrap_or_else(PoisonError::into_inner) = certified;
    }
}

/// What a server signs with, and what proofs rest on that it puts together.
pub(crate) struct Signing {
    /// The root that verifiers keep.
    pub(crate) root: RootFile,
    /// The cluster.
    pub(crate) cluster: Digest,
    /// Signs checkpoints.
    pub(crate) server_key: SigningKey,
    /// Who vouches for that key.
    pub(crate) certified: RwLock<Arc<Certified>>,
    /// What the worker of the same process signs with. Certificates of others are in the state.
    pub(crate) worker: Option<(Signer, Envelope)>,
}

impl Identity {
    /// What this node signs with as a server.
    pub(crate) fn into_signing(self) -> Signing {
        Signing {
            root: self.root,
            cluster: self.signer.cluster,
            server_key: self.server_key,
            certified: RwLock::new(Arc::new(Certified {
                server_certificate: self.server_certificate,
                issuers: Vec::new(),
            })),
            worker: Some((self.signer, self.worker_certificate)),
        }
    }

    /// The identity in `directory`, made there when there is none.
    pub(crate) fn open(directory: &Path, wall_ms: u64) -> Result<Identity, NodeError> {
        let root_key = SigningKey::from_seed(secret(directory, "root.key")?);
        let node_secret = secret(directory, "node.key")?;
        let worker_seed = derive_seed(&node_secret, "worker");
        let worker_key = SigningKey::from_seed(worker_seed).verifying_key();
        let server_key = SigningKey::from_seed(derive_seed(&node_secret, "server"));
        let cluster = root_key.verifying_key().id();
        let issue = |key: VerifyingKey, role, serial| -> Result<Envelope, NodeError> {
            let not_before_ms = wall_ms.saturating_sub(BACKDATED_MS);
            let certificate = Certificate {
                cluster,
                node_id: key.id(),
                role,
                public_key: key,
                tier: Tier::Software.name().to_owned(),
                serial,
                not_before_ms,
                not_after_ms: not_before_ms.saturating_add(VALIDITY_MS),
            };
            Ok(certificate.sign(&root_key)?)
        };
        let path = directory.join("certificates.json");
        let certificates = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| NodeError::DamagedKey {
                file: path.display().to_string(),
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let worker = issue(worker_key, Role::Worker, 1)?;
                let server = issue(server_key.verifying_key(), Role::Server, 2)?;
                let certificates = Certificates { worker, server };
                write_new(
                    directory,
                    "certificates.json",
                    &serde_json::to_vec_pretty(&certificates).unwrap_or_default(),
                )?;
                certificates
            }
            Err(error) => return Err(NodeError::io("read", path.display())(error)),
        };
        let certificate = Certificate::open(&certificates.worker, [&root_key.verifying_key()])?;
        Certificate::open(&certificates.server, [&root_key.verifying_key()])?;
        let root = RootFile::new(RootClass::Local, &root_key.verifying_key(), 1);
        if !directory.join("root.json").exists() {
            write_new(directory, "root.json", &root.encode())?;
        }
        let signer = Signer { cluster, node: worker_key.id(), certificate: certificate.id()? };
        Ok(Identity {
            root,
            worker_seed,
            server_key,
            worker_certificate: certificates.worker,
            server_certificate: certificates.server,
            signer,
            worker_key,
        })
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> Digest {
        self.signer.cluster
    }

    /// The key that signs reports.
    pub(crate) fn report_key(&self) -> SigningKey {
        SigningKey::from_seed(self.worker_seed)
    }
}

/// Thirty-two random bytes.
pub(crate) fn random() -> Result<[u8; 32], NodeError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        NodeError::io("read", "the system's random source")(std::io::Error::other(error.to_string()))
    })?;
    Ok(bytes)
}

/// A secret of 32 bytes as hexadecimal digits; made when there is none.
pub(crate) fn secret(directory: &Path, name: &str) -> Result<[u8; 32], NodeError> {
    match secret_in(&directory.join(name)) {
        Err(NodeError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let bytes = random()?;
            write_new(directory, name, format!("{}\n", Digest(bytes)).as_bytes())?;
            Ok(bytes)
        }
        found => found,
    }
}

/// The secret in a file.
pub(crate) fn secret_in(path: &Path) -> Result<[u8; 32], NodeError> {
    let mut text = String::new();
    let file = File::open(path).map_err(NodeError::io("read", path.display()))?;
    let damaged = |reason: String| NodeError::DamagedKey { file: path.display().to_string(), reason };
    file.take(256).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let digits: Digest = text.trim_end().parse().map_err(|_| {
        damaged("64 hexadecimal digits are expected; restore it from a copy, or begin with another data directory".to_owned())
    })?;
    Ok(digits.0)
}

/// Writes a file that appears whole or not at all, durably, readable by its owner only.
pub(crate) fn write_new(directory: &Path, name: &str, content: &[u8]) -> Result<(), NodeError> {
    let (path, temporary) = (directory.join(name), directory.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(NodeError::io("write", path.display()))
}
