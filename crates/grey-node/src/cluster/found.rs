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
use crate::local::host_name;
use crate::plane::certificate_id;

/// What the first entry of the cluster says of its first server.
const FOUNDING_FILE: &str = "founding.json";
/// Where the first token is written, for its owner.
const TOKEN_FILE: &str = "operator.token";
/// The root key's file; it may be taken elsewhere.
const ROOT_KEY_FILE: &str = "root.key";
/// The serial number of the founder's certificates; the authority's own is 1.
const FOUNDER_SERIAL: u64 = 2;
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

impl Founded {
    /// What is where in a directory.
    pub(super) fn in_directory(directory: &Path, cluster: Digest, before: bool) -> Founded {
        Founded {
            cluster,
            ca_file: directory.join(CA_FILE),
            token_file: directory.join(TOKEN_FILE),
            root_key_file: directory.join(ROOT_KEY_FILE),
            before,
        }
    }
}

/// What makes a server the first one.
pub(super) struct Origin {
    pub(super) authority: Authority,
    /// The server's number.
    pub(super) server: u64,
    /// The serial number of its certificates.
    pub(super) serial: u64,
    pub(super) token_name: &'static str,
    pub(super) made_by: &'static str,
}

/// A server that nobody let in, and the token of whoever runs it.
pub(super) struct FirstServer {
    pub(super) node: NewNode,
    pub(super) token: TokenRow,
    pub(super) accept: Accept,
    secret: ApiToken,
}

impl FirstServer {
    /// Makes its certificates and a token, and keeps the authority in its directory.
    pub(super) fn make(config: &ServerConfig, origin: Origin) -> Result<FirstServer, NodeError> {
        let Origin { authority, server, serial, token_name, made_by } = origin;
        let directory = config.data_dir.as_path();
        let now_ms = wall_ms();
        let (cluster, node) = (authority.cluster(), node_secret(directory)?);
        let (key, address) = (proof_key(&node, NodeRole::Server), config.advertise.to_string());
        let request = certificate_request(&tls_seed(&node))?;
        let public = key.verifying_key();
        let hosts = [config.advertise.host.clone()];
        let chain = authority.issue_tls(&request, &public.id(), NodeRole::Server, &hosts, serial, now_ms)?;
        let envelope = authority.issue_proof(&public, NodeRole::Server, Tier::Software, serial, now_ms)?;
        let json = |envelope| serde_json::to_vec(envelope).unwrap_or_default();
        let certificate = json(&envelope);
        let tls_key = tls_key_of_seed(&tls_seed(&node));
        let secret = ApiToken::new(random()?);
        let node = NewNode {
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
        };
        let token = TokenRow {
            id: secret.id(),
            name: token_name.to_owned(),
            role: TokenRole::Operator,
            tenant: None,
            expires_wall_ms: now_ms.saturating_add(TOKEN_MS.min(limits::TOKEN_MS)),
            created_wall_ms: now_ms,
            created_by: made_by.to_owned(),
        };
        let accept = Accept {
            cluster,
            server: Some(server),
            tls_chain: chain,
            certificate,
            issuer: json(authority.issuer()),
            servers: vec![ServerAddress { number: server, address, tls_key }],
            tier: Tier::Software,
        };
        Papers::keep_authority(directory, &authority)?;
        Ok(FirstServer { node, token, accept, secret })
    }

    /// Writes the token into a file for whoever runs the cluster.
    pub(super) fn keep_token(&self, directory: &Path) -> Result<(), NodeError> {
        write_new(directory, TOKEN_FILE, format!("{}\n", self.secret.reveal()).as_bytes())
    }
}

/// Refuses what contradicts the first server as it was founded. The name that a server has when none is asked for contradicts nothing.
fn must_agree(config: &ServerConfig, papers: &Papers) -> Result<(), NodeError> {
    let directory = config.data_dir.as_path();
    let founder = Founding::read(directory)?.map(|founding| founding.node);
    // One that was restored from a snapshot has no founding of its own.
    let address = match &founder {
        Some(founder) => Some(founder.address.clone()),
        None => {
            let own = papers.servers().into_iter().find(|place| place.number == papers.number());
            own.map(|own| own.address)
        }
    };
    let name = founder.map(|founder| founder.name).filter(|_| config.name != host_name());
    for (what, founded, asked) in
        [("name", name, config.name.clone()), ("address", address, config.advertise.to_string())]
    {
        if let Some(founded) = founded.filter(|founded| *founded != asked) {
            let directory = directory.display().to_string();
            return Err(NodeError::FoundedOtherwise { directory, what, founded, asked });
        }
    }
    Ok(())
}

/// What was founded in a directory, if anything was.
fn founded_before(config: &ServerConfig) -> Result<Option<Founded>, NodeError> {
    let directory = config.data_dir.as_path();
    let Some(papers) = Papers::open(directory, NodeRole::Server)? else { return Ok(None) };
    must_agree(config, &papers)?;
    Ok(Some(Founded::in_directory(directory, papers.cluster(), true)))
}

/// Founds a cluster whose first server this directory is. To do it again changes nothing.
///
/// # Errors
/// When the directory is another node's, or cannot be written; when the cluster was founded before, and its first server has another name or
/// address than it is asked to have.
pub fn found(config: &ServerConfig) -> Result<Founded, NodeError> {
    let directory = config.data_dir.as_path();
    // Nothing is written then, so that the server may run meanwhile.
    if let Some(before) = founded_before(config)? {
        return Ok(before);
    }
    let _lock = DirectoryLock::take(directory)?;
    check_format(directory)?;
    // Somebody else may have come first.
    if let Some(before) = founded_before(config)? {
        return Ok(before);
    }
    let root_key = SigningKey::from_seed(secret(directory, ROOT_KEY_FILE)?);
    let authority = Authority::found(&root_key, random()?, wall_ms())?;
    let cluster = authority.cluster();
    let origin = Origin {
        authority,
        server: FOUNDER,
        serial: FOUNDER_SERIAL,
        token_name: "founder",
        made_by: "grey cluster init",
    };
    let first = FirstServer::make(config, origin)?;
    first.keep_token(directory)?;
    let FirstServer { node, token, accept, .. } = first;
    let founding = Founding(EnrolFounder { node, token, wall_ms: wall_ms() });
    write_new(directory, FOUNDING_FILE, &serde_json::to_vec(&founding).unwrap_or_default())?;
    Papers::accepted(directory, NodeRole::Server, &accept)?;
    Ok(Founded::in_directory(directory, cluster, false))
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
