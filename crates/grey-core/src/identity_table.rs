//! The rows of who belongs to the cluster and who may speak, with the indexes by which they are found.

use std::collections::{BTreeMap, BTreeSet};

use grey_proof::Digest;

use crate::identity::{IdentityKey, IdentityRow, JoinTokenRow, NodeRow, TokenRow};
use crate::state::State;

/// The rows and their indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdentityTable {
    pub(crate) rows: BTreeMap<IdentityKey, IdentityRow>,
    by_tls_key: BTreeMap<Digest, Digest>,
    by_server: BTreeMap<u64, Digest>,
    expiring: BTreeSet<(u64, IdentityKey)>,
    nonces: usize,
}

const FIRST: Digest = Digest([0; 32]);
const LAST: Digest = Digest([0xff; 32]);

fn expires_wall_ms(row: &IdentityRow) -> Option<u64> {
    match row {
        IdentityRow::JoinToken(row) => Some(row.expires_wall_ms),
        IdentityRow::Token(row) => Some(row.expires_wall_ms),
        IdentityRow::Nonce(until) => Some(*until),
        IdentityRow::Node(_) | IdentityRow::Certificate(..) => None,
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
        if matches!(row, IdentityRow::Nonce(_)) {
            self.nonces = if present { self.nonces + 1 } else { self.nonces.saturating_sub(1) };
        }
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

    pub(crate) fn used_nonces(&self) -> usize {
        self.identity.nonces
    }

    /// What has expired by then, at most so many.
    pub(crate) fn expired_identities(&self, wall_ms: u64, most: usize) -> Vec<IdentityKey> {
        let expired = self.identity.expiring.iter().take_while(|(expires, _)| *expires < wall_ms);
        expired.take(most).map(|(_, key)| key.clone()).collect()
    }
}
