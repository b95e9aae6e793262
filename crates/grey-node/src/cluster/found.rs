//! The beginning of a cluster: keys, certificates, and the first server's papers. Nothing runs yet.

use std::path::{Path, PathBuf};

use grey_core::{EnrolFounder, NewNode, NodeRole, Tier, TokenRole, TokenRow, limits};
use grey_proof::{Digest, SigningKey};
use grey_store::DirectoryLock;
use grey_trust::join::{Accept, ServerAddress};
use grey_trust::{ApiToken, Authority, certificate_request, tls_key_of_seed};
use serde::{Deserialize, Serialize};

use super::papers::{CA_FILE, Papers, node_secret, proof_key, tls_seed};
use crate::clock::wall_ms;
use crate::config::ServerConfig;
use crate::engine::FOUNDER;
use crate::error::NodeError;
use crate::format::check_format;
use crate::identity::{random, secret, write_new};
use crate::plane::certificate_id;

/// What the first entry of the cluster says of its first server.
const FOUNDING_FILE: &str = "founding.json";
/// Where the first token is written, for its owner.
const TOKEN_FILE: &str = "operator.token";
/// How long the first token is good, in milliseconds: a year.
const TOKEN_MS: u64 = 365 * 24 * 3_600 * 1_000;

/// A cluster that was founded.
#[derive(Debug, Clone)]
pub struct Founded {
    /// Its identity.
    pub cluster: Digest,
    /// The file with the root certificate, which clients are told to trust.
    pub ca_file: PathBuf,
    /// The file with a token for whoever runs the cluster.
    pub token_file: PathBuf,
    /// The file with the root key. It is needed for another issuing key only, and best kept elsewhere.
    pub root_key_file: PathBuf,
    /// Whether it had been founded before, and nothing was done.
    pub before: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Founding(EnrolFounder);

/// Founds a cluster whose first server this directory is. To do it again changes nothing.
///
/// # Errors
/// When the directory is another node's, or cannot be written.
pub fn found(config: &ServerConfig) -> Result<Founded, NodeError> {
    let directory = config.data_dir.as_path();
    let _lock = DirectoryLock::take(directory)?;
    check_format(directory)?;
    let founded = |cluster, before| Founded {
        cluster,
        ca_file: directory.join(CA_FILE),
        token_file: directory.join(TOKEN_FILE),
        root_key_file: directory.join("root.key"),
        before,
    };
    if let Some(papers) = Papers::open(directory, NodeRole::Server)? {
        return Ok(founded(papers.cluster(), true));
    }
    let now_ms = wall_ms();
    let root_key = SigningKey::from_seed(secret(directory, "root.key")?);
    let authority = Authority::found(&root_key, random()?, now_ms)?;
    let (cluster, node) = (authority.cluster(), node_secret(directory)?);
    let (key, address) = (proof_key(&node, NodeRole::Server), config.advertise.to_string());
    let request = certificate_request(&tls_seed(&node))?;
    let public = key.verifying_key();
    let serial = 2;
    let hosts = [config.advertise.host.clone()];
    let chain = authority.issue_tls(&request, &public.id(), NodeRole::Server, &hosts, serial, now_ms)?;
    let envelope = authority.issue_proof(&public, NodeRole::Server, Tier::Software, serial, now_ms)?;
    let json = |envelope| serde_json::to_vec(envelope).unwrap_or_default();
    let certificate = json(&envelope);
    let tls_key = tls_key_of_seed(&tls_seed(&node));
    let token = ApiToken::new(random()?);
    let founding = Founding(EnrolFounder {
        node: NewNode {
            node: public.id(),
            public_key: public.to_bytes(),
            tls_key,
            name: config.name.clone(),
            role: NodeRole::Server,
            address: address.clone(),
            tier: Tier::Software,
            evidence: Digest::ZERO,
            serial,
            certificate: (certificate_id(&envelope)?, certificate.clone()),
        },
        token: TokenRow {
            id: token.id(),
            name: "founder".to_owned(),
            role: TokenRole::Operator,
            tenant: None,
            expires_wall_ms: now_ms.saturating_add(TOKEN_MS.min(limits::TOKEN_MS)),
            created_wall_ms: now_ms,
            created_by: "grey cluster init".to_owned(),
        },
        wall_ms: now_ms,
    });
    Papers::keep_authority(directory, &authority)?;
    write_new(directory, TOKEN_FILE, format!("{}\n", token.reveal()).as_bytes())?;
    write_new(directory, FOUNDING_FILE, &serde_json::to_vec(&founding).unwrap_or_default())?;
    let accept = Accept {
        cluster,
        server: Some(FOUNDER),
        tls_chain: chain,
        certificate,
        issuer: json(authority.issuer()),
        servers: vec![ServerAddress { number: FOUNDER, address, tls_key }],
        tier: Tier::Software,
    };
    Papers::accepted(directory, NodeRole::Server, &accept)?;
    Ok(founded(cluster, false))
}

impl Founding {
    /// What the cluster's first entries say, where this is the directory of its first server.
    pub(super) fn read(directory: &Path) -> Result<Option<EnrolFounder>, NodeError> {
        let path = directory.join(FOUNDING_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let read: Result<Founding, _> = serde_json::from_slice(&bytes);
                let damaged = |error: serde_json::Error| NodeError::Damaged {
                    file: path.display().to_string(),
                    reason: error.to_string(),
                };
                read.map(|founding| Some(founding.0)).map_err(damaged)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NodeError::io("read", path.display())(error)),
        }
    }
}
