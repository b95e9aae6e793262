//! What a node of a cluster keeps about itself: its secret, what vouches for it, and where the servers were.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use grey_core::NodeRole;
use grey_proof::{Digest, Envelope, RootClass, RootFile, SigningKey, derive_seed};
use grey_trust::join::Accept;
use grey_trust::{Authority, IdentityHandle, TlsIdentity, pem, root_of_chain};
use serde::{Deserialize, Serialize};

use crate::clock::wall_ms;
use crate::directory::ServerPlace;
use crate::error::NodeError;
use crate::identity::{Certified, Signing, secret, write_new};
use crate::issuing::sync_directory;
use crate::plane::certificate_id;

const NODE_FILE: &str = "node.json";
const TLS_FILE: &str = "tls.chain";
const AUTHORITY_FILE: &str = "authority.key";
/// The key that may follow.
const NEXT_AUTHORITY_FILE: &str = "authority.next";
/// The cluster's root certificate, for clients.
pub(crate) const CA_FILE: &str = "ca.pem";
const ROOT_FILE: &str = "root.json";

/// Another server, as it was known last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    number: u64,
    address: String,
    tls_key: Digest,
}

/// What the node is, in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    cluster: Digest,
    role: String,
    server: Option<u64>,
    certificate: Envelope,
    issuer: Envelope,
    servers: Vec<Known>,
}

/// A node's papers.
pub(crate) struct Papers {
    directory: PathBuf,
    role: NodeRole,
    secret: [u8; 32],
    file: NodeFile,
    pub(crate) tls: TlsIdentity,
}

fn damaged(path: &Path) -> impl FnOnce(String) -> NodeError + '_ {
    |reason| NodeError::Damaged { file: path.display().to_string(), reason }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, NodeError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NodeError::io("read", path.display())(error)),
    }
}

/// The seed of a node's TLS key.
pub(crate) fn tls_seed(secret: &[u8; 32]) -> [u8; 32] {
    derive_seed(secret, "tls")
}

/// A node's proof key.
pub(crate) fn proof_key(secret: &[u8; 32], role: NodeRole) -> SigningKey {
    SigningKey::from_seed(derive_seed(secret, role.name()))
}

/// The secret of the node whose directory this is; made when there is none.
pub(crate) fn node_secret(directory: &Path) -> Result<[u8; 32], NodeError> {
    secret(directory, "node.key")
}

impl Papers {
    /// The papers in a directory; none where the node belongs to no cluster yet.
    pub(crate) fn open(directory: &Path, role: NodeRole) -> Result<Option<Papers>, NodeError> {
        let path = directory.join(NODE_FILE);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let file: NodeFile =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&path)(error.to_string()))?;
        if file.role != role.name() {
            let found = if role == NodeRole::Server { "worker" } else { "server" };
            let directory = directory.display().to_string();
            return Err(NodeError::AnotherKind { directory, found, expected: role.name() });
        }
        let secret = node_secret(directory)?;
        let path = directory.join(TLS_FILE);
        let bytes = read(&path)?.ok_or_else(|| damaged(&path)("it is missing".to_owned()))?;
        let tls = TlsIdentity::decode(tls_seed(&secret), &bytes)
            .map_err(|error| damaged(&path)(error.to_string()))?;
        Ok(Some(Papers { directory: directory.to_path_buf(), role, secret, file, tls }))
    }

    /// Keeps what a node was given when it was let in. Its own file is written last: without it nothing counts.
    pub(crate) fn accepted(directory: &Path, role: NodeRole, accept: &Accept) -> Result<Papers, NodeError> {
        let papers = Papers::of(directory, role, node_secret(directory)?, accept)?;
        papers.write()?;
        Ok(papers)
    }

    /// What a node was given, which is nowhere on the disk yet.
    fn of(directory: &Path, role: NodeRole, secret: [u8; 32], accept: &Accept) -> Result<Papers, NodeError> {
        let parse = |bytes: &[u8]| -> Result<Envelope, NodeError> {
            serde_json::from_slice(bytes)
                .map_err(|error| damaged(&directory.join(NODE_FILE))(error.to_string()))
        };
        let servers = accept.servers.iter().map(|server| Known {
            number: server.number,
            address: server.address.clone(),
            tls_key: server.tls_key,
        });
        let file = NodeFile {
            cluster: accept.cluster,
            role: role.name().to_owned(),
            server: accept.server,
            certificate: parse(&accept.certificate)?,
            issuer: parse(&accept.issuer)?,
            servers: servers.collect(),
        };
        root_of_chain(&accept.tls_chain, &accept.cluster)?;
        let tls = TlsIdentity::new(tls_seed(&secret), accept.tls_chain.clone(), wall_ms());
        Ok(Papers { directory: directory.to_path_buf(), role, secret, file, tls })
    }

    /// Has what a node was given when it asked for another certificate take the place of what it had. It is on the disk after
    /// [`Papers::write`], and in use without: the cluster counts on it already.
    pub(crate) fn renewed(&mut self, accept: &Accept) -> Result<(), NodeError> {
        let next = Papers::of(&self.directory, self.role, self.secret, accept)?;
        // What cannot be shown must not take the place of what can, on the disk least of all.
        IdentityHandle::new(&next.tls)?;
        *self = next;
        Ok(())
    }

    /// Has them on the disk. The node's own file is the last one.
    pub(crate) fn write(&self) -> Result<(), NodeError> {
        let root_certificate = self.tls.root().unwrap_or_default();
        let root = root_of_chain(&[root_certificate.to_vec()], &self.file.cluster)?;
        let root_file = RootFile::new(RootClass::Production, &root, 1);
        write_new(&self.directory, ROOT_FILE, &root_file.encode())?;
        write_new(&self.directory, CA_FILE, pem(root_certificate).as_bytes())?;
        write_new(&self.directory, TLS_FILE, &self.tls.encode())?;
        self.write_file()
    }

    fn write_file(&self) -> Result<(), NodeError> {
        let bytes = serde_json::to_vec_pretty(&self.file).unwrap_or_default();
        write_new(&self.directory, NODE_FILE, &bytes)
    }

    /// Where the servers are, for the next start.
    pub(crate) fn know(&mut self, servers: &[ServerPlace]) -> Result<(), NodeError> {
        let known = servers.iter().map(|place| Known {
            number: place.number,
            address: place.address.clone(),
            tls_key: place.tls_key,
        });
        self.file.servers = known.collect();
        self.write_file()
    }

    pub(crate) fn cluster(&self) -> Digest {
        self.file.cluster
    }

    /// The server's number; zero for a worker.
    pub(crate) fn number(&self) -> u64 {
        self.file.server.unwrap_or(0)
    }

    pub(crate) fn servers(&self) -> Vec<ServerPlace> {
        let place = |known: &Known| ServerPlace {
            number: known.number,
            address: known.address.clone(),
            tls_key: known.tls_key,
        };
        self.file.servers.iter().map(place).collect()
    }

    /// The key of its statements, or of its signatures under checkpoints.
    pub(crate) fn proof_key(&self) -> SigningKey {
        proof_key(&self.secret, self.role)
    }

    /// The certificate of its proof key.
    pub(crate) fn certificate(&self) -> &Envelope {
        &self.file.certificate
    }

    /// The root certificate, for clients of the API.
    pub(crate) fn ca_pem(&self) -> Result<String, NodeError> {
        let path = self.directory.join(CA_FILE);
        std::fs::read_to_string(&path).map_err(NodeError::io("read", path.display()))
    }

    /// The certificate of its proof key, with that of the issuing key that signed it.
    pub(crate) fn certified(&self) -> Arc<Certified> {
        let (server_certificate, issuers) = (self.file.certificate.clone(), vec![self.file.issuer.clone()]);
        Arc::new(Certified { server_certificate, issuers })
    }

    /// The digest of the certificate of the issuing key that signed its certificates.
    pub(crate) fn issuer(&self) -> Result<Digest, NodeError> {
        certificate_id(&self.file.issuer)
    }

    /// What a server signs with.
    pub(crate) fn signing(&self) -> Result<Signing, NodeError> {
        let path = self.directory.join(ROOT_FILE);
        let bytes = std::fs::read(&path).map_err(NodeError::io("read", path.display()))?;
        Ok(Signing {
            root: RootFile::decode(&bytes)?,
            cluster: self.cluster(),
            server_key: self.proof_key(),
            certified: RwLock::new(self.certified()),
            worker: None,
        })
    }

    /// What issues certificates, where this server has it.
    pub(crate) fn authority(&self) -> Result<Option<Authority>, NodeError> {
        self.authority_in(AUTHORITY_FILE)
    }

    /// What may issue certificates next, where this server has it.
    pub(crate) fn next_authority(&self) -> Result<Option<Authority>, NodeError> {
        self.authority_in(NEXT_AUTHORITY_FILE)
    }

    fn authority_in(&self, name: &str) -> Result<Option<Authority>, NodeError> {
        let path = self.directory.join(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let authority = Authority::decode(&bytes, &self.cluster());
        authority.map(Some).map_err(|error| damaged(&path)(error.to_string()))
    }

    /// Keeps what issues certificates.
    pub(crate) fn keep_authority(directory: &Path, authority: &Authority) -> Result<(), NodeError> {
        write_new(directory, AUTHORITY_FILE, &authority.encode())
    }

    /// Keeps what may issue certificates next.
    pub(crate) fn keep_next_authority(directory: &Path, authority: &Authority) -> Result<(), NodeError> {
        write_new(directory, NEXT_AUTHORITY_FILE, &authority.encode())
    }

    /// What could issue certificates next does from now on, durably.
    pub(crate) fn adopt_authority(directory: &Path) -> Result<(), NodeError> {
        let (from, to) = (directory.join(NEXT_AUTHORITY_FILE), directory.join(AUTHORITY_FILE));
        std::fs::rename(from, &to).map_err(NodeError::io("write", to.display()))?;
        sync_directory(directory)
    }

    /// Nothing may follow any more, durably.
    pub(crate) fn drop_next_authority(directory: &Path) -> Result<(), NodeError> {
        let path = directory.join(NEXT_AUTHORITY_FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(NodeError::io("remove", path.display())(error))
            }
            _ => sync_directory(directory),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}
