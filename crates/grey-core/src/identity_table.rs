//! The rows of who belongs to the cluster and who may speak, with the indexes by which they are found.

use std::collections::{BTreeMap, BTreeSet};

use grey_proof::Digest;

use crate::authority::AuthorityRow;
use crate::identity::{IdentityKey, IdentityRow, JoinTokenRow, NodeRole, NodeRow, TokenRow};
use crate::level::{AUTHORITY_LEVEL, NodeVersion};
use crate::limits;
use crate::state::State;

/// The rows and their indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdentityTable {
    pub(crate) rows: BTreeMap<IdentityKey, IdentityRow>,
    by_tls_key: BTreeMap<Digest, Digest>,
    by_server: BTreeMap<u64, Digest>,
    expiring: BTreeSet<(u64, IdentityKey)>,
    nonces: usize,
    certificates: usize,
}

const FIRST: Digest = Digest([0; 32]);
const LAST: Digest = Digest([0xff; 32]);

fn expires_wall_ms(row: &IdentityRow) -> Option<u64> {
    match row {
        IdentityRow::JoinToken(row) => Some(row.expires_wall_ms),
        IdentityRow::Token(row) => Some(row.expires_wall_ms),
        IdentityRow::Nonce(until) => Some(*until),
        IdentityRow::Node(_)
        | IdentityRow::Certificate(..)
        | IdentityRow::Version(_)
        | IdentityRow::Authority(_) => None,
    }
}

impl IdentityTable {
    /// Puts a row in its place, or takes it away; returns what was there.
    pub(crate) fn set(&mut self, key: IdentityKey, row: Option<IdentityRow>) -> Option<IdentityRow> {
        let before = self.rows.remove(&key);
        if let Some(before) = &before {
            self.index(&key, before, false);
        }
        if let Some(row) = row {
            self.index(&key, &row, true);
            self.rows.insert(key, row);
        }
        before
    }

    fn index(&mut self, key: &IdentityKey, row: &IdentityRow, present: bool) {
        if let IdentityRow::Node(row) = row {
            if present {
                self.by_tls_key.insert(row.tls_key, row.node);
                self.by_server.extend(row.server.map(|number| (number, row.node)));
            } else {
                self.by_tls_key.remove(&row.tls_key);
                row.server.map(|number| self.by_server.remove(&number));
            }
        }
        if let Some(expires) = expires_wall_ms(row) {
            if present {
                self.expiring.insert((expires, key.clone()));
            } else {
                self.expiring.remove(&(expires, key.clone()));
            }
        }
        let counted = match row {
            IdentityRow::Nonce(_) => &mut self.nonces,
            IdentityRow::Certificate(..) => &mut self.certificates,
            IdentityRow::Node(_)
            | IdentityRow::JoinToken(_)
            | IdentityRow::Token(_)
            | IdentityRow::Version(_)
            | IdentityRow::Authority(_) => return,
        };
        *counted = if present { counted.saturating_add(1) } else { counted.saturating_sub(1) };
    }
}

impl State {
    /// All nodes, by their digests. There is none in a cluster of one process.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        let range = IdentityKey::Node(FIRST)..=IdentityKey::Node(LAST);
        self.identity.rows.range(range).filter_map(|(_, row)| match row {
            IdentityRow::Node(row) => Some(row),
            _ => None,
        })
    }

    /// One node.
    pub fn node(&self, node: &Digest) -> Option<&NodeRow> {
        match self.identity.rows.get(&IdentityKey::Node(*node)) {
            Some(IdentityRow::Node(row)) => Some(row),
            _ => None,
        }
    }

    /// The node with a TLS key, by the digest of its SubjectPublicKeyInfo.
    pub fn node_of_key(&self, tls_key: &Digest) -> Option<&NodeRow> {
        self.node(self.identity.by_tls_key.get(tls_key)?)
    }

    /// The server with a number.
    pub fn node_of_server(&self, number: u64) -> Option<&NodeRow> {
        self.node(self.identity.by_server.get(&number)?)
    }

    /// A certificate of a proof key by its digest: whose it is, and its bytes.
    pub fn certificate(&self, id: &Digest) -> Option<(&Digest, &[u8])> {
        match self.identity.rows.get(&IdentityKey::Certificate(*id)) {
            Some(IdentityRow::Certificate(node, bytes)) => Some((node, bytes)),
            _ => None,
        }
    }

    /// Certificates of issuing keys, as far as the state has them, lowest digest first: that of the current one, of those before it, and of those
    /// before the cluster was restored from a snapshot. The first key of a cluster is among them once another one followed it.
    pub fn issuers(&self) -> impl Iterator<Item = &[u8]> {
        let cluster = self.meta().cluster;
        let range = IdentityKey::Certificate(FIRST)..=IdentityKey::Certificate(LAST);
        self.identity.rows.range(range).filter_map(move |(_, row)| match row {
            IdentityRow::Certificate(of, bytes) if Some(*of) == cluster => Some(bytes.as_slice()),
            _ => None,
        })
    }

    /// Join tokens that were not used; some may have expired.
    pub fn join_tokens(&self) -> impl Iterator<Item = &JoinTokenRow> {
        let range = IdentityKey::JoinToken(FIRST)..=IdentityKey::JoinToken(LAST);
        self.identity.rows.range(range).filter_map(|(_, row)| match row {
            IdentityRow::JoinToken(row) => Some(row),
            _ => None,
        })
    }

    /// Tokens of the client API; some may have expired.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRow> {
        let range = IdentityKey::Token(FIRST)..=IdentityKey::Token(LAST);
        self.identity.rows.range(range).filter_map(|(_, row)| match row {
            IdentityRow::Token(row) => Some(row),
            _ => None,
        })
    }

    /// What a server runs, as far as it has said so.
    pub fn version_of(&self, node: &Digest) -> Option<&NodeVersion> {
        match self.identity.rows.get(&IdentityKey::Version(*node)) {
            Some(IdentityRow::Version(version)) => Some(version),
            _ => None,
        }
    }

    pub(crate) fn used_nonces(&self) -> usize {
        self.identity.nonces
    }

    pub(crate) fn certificates_kept(&self) -> usize {
        self.identity.certificates
    }

    /// What must hold of the rows of who belongs to the cluster and who may speak.
    pub(crate) fn check_identity(&self) -> Result<(), String> {
        let (mut nodes, mut servers, mut join_tokens, mut tokens) = (0, 0, 0, 0);
        for (key, row) in &self.identity.rows {
            let id = match row {
                IdentityRow::Node(row) => IdentityKey::Node(row.node),
                IdentityRow::JoinToken(row) => IdentityKey::JoinToken(row.id),
                IdentityRow::Token(row) => IdentityKey::Token(row.id),
                // These rows do not repeat what their key says.
                IdentityRow::Certificate(..)
                | IdentityRow::Nonce(_)
                | IdentityRow::Version(_)
                | IdentityRow::Authority(_) => key.clone(),
            };
            let alike = matches!(
                (key, row),
                (IdentityKey::Node(_), IdentityRow::Node(_))
                    | (IdentityKey::Certificate(_), IdentityRow::Certificate(..))
                    | (IdentityKey::JoinToken(_), IdentityRow::JoinToken(_))
                    | (IdentityKey::Token(_), IdentityRow::Token(_))
                    | (IdentityKey::Nonce(_), IdentityRow::Nonce(_))
                    | (IdentityKey::Version(_), IdentityRow::Version(_))
                    | (IdentityKey::Authority, IdentityRow::Authority(_))
            );
            if *key != id || !alike {
                return Err(format!("a row of identities stands under another key: {key:?}"));
            }
            match row {
                IdentityRow::Node(row) => {
                    self.check_node(row)?;
                    nodes += 1;
                    servers += usize::from(row.server.is_some());
                }
                IdentityRow::JoinToken(_) => join_tokens += 1,
                IdentityRow::Token(row) => {
                    tokens += 1;
                    let known = row.tenant.is_none_or(|tenant| self.tenants.contains_key(&tenant));
                    if !known || row.role.is_of_tenant() != row.tenant.is_some() {
                        return Err(format!("token {} is of no tenant, or should be of none", row.id));
                    }
                }
                IdentityRow::Version(_) => {
                    let IdentityKey::Version(node) = key else { continue };
                    if self.node(node).is_none_or(|row| row.server.is_none()) {
                        return Err(format!("what {node} runs is kept, and it is no server"));
                    }
                }
                IdentityRow::Authority(row) => self.check_authority(row)?,
                IdentityRow::Certificate(..) | IdentityRow::Nonce(_) => {}
            }
        }
        if self.identity.by_tls_key.len() != nodes || self.identity.by_server.len() != servers {
            return Err("two nodes share a key or a number".to_owned());
        }
        let bounded = servers <= limits::SERVERS
            && nodes - servers <= limits::WORKERS
            && join_tokens <= limits::JOIN_TOKENS
            && tokens <= limits::TOKENS
            && self.identity.nonces <= limits::USED_NONCES
            && self.identity.certificates <= limits::CERTIFICATES;
        if bounded { Ok(()) } else { Err("there are more identities than there may be".to_owned()) }
    }

    fn check_authority(&self, row: &AuthorityRow) -> Result<(), String> {
        if self.meta.feature_level < AUTHORITY_LEVEL {
            return Err("the state says of the issuing key what came with a later feature level".to_owned());
        }
        let Some(current) = &row.current else { return Ok(()) };
        let of_cluster = self.certificate(&current.issuer).map(|(of, _)| Some(*of) == self.meta.cluster);
        if of_cluster == Some(true) {
            Ok(())
        } else {
            Err("the current issuing key's certificate is not kept".to_owned())
        }
    }

    fn check_node(&self, row: &NodeRow) -> Result<(), String> {
        let node = row.node;
        if node != Digest::of(&row.public_key) {
            return Err(format!("node {node} is not its key's"));
        }
        if (row.role == NodeRole::Server) != row.server.is_some() {
            return Err(format!("node {node} lacks a number, or has a number that its role has not"));
        }
        if row.server.is_some_and(|number| number == 0 || number > self.meta.servers_numbered) {
            return Err(format!("node {node} has a number that was never given"));
        }
        if row.cordoned && row.role != NodeRole::Worker {
            return Err(format!("node {node} is a server and is cordoned"));
        }
        let kept = |id: &Digest| self.certificate(id).is_some_and(|(of, _)| *of == node);
        if row.certificates.len() > limits::NODE_CERTIFICATES || !row.certificates.iter().all(kept) {
            return Err(format!("node {node} has too many certificates, or one that is not kept for it"));
        }
        Ok(())
    }

    /// What has expired by then, at most so many.
    pub(crate) fn expired_identities(&self, wall_ms: u64, most: usize) -> Vec<IdentityKey> {
        let expired = self.identity.expiring.iter().take_while(|(expires, _)| *expires < wall_ms);
        expired.take(most).map(|(_, key)| key.clone()).collect()
    }
}
