//! Who belongs to the cluster and who may speak, as of an applied entry: what requests are checked against.

use std::collections::BTreeMap;

use grey_core::{
    AuthorityRow, JoinTokenRow, NodeRole, NodeRow, NodeStanding, State, TaskDefaults, TenantId, TokenRow,
};
use grey_proof::Digest;

/// A tenant as requests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantEntry {
    /// Its number.
    pub(crate) id: TenantId,
    /// What a task gets that leaves it unset.
    pub(crate) defaults: TaskDefaults,
    /// Share relative to others, in thousandths.
    pub(crate) weight_milli: u32,
    /// Whether it may submit nothing.
    pub(crate) suspended: bool,
}

/// Another server, as it is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerPlace {
    /// Its number.
    pub(crate) number: u64,
    /// Host and port.
    pub(crate) address: String,
    /// SHA-256 of its TLS key's SubjectPublicKeyInfo.
    pub(crate) tls_key: Digest,
}

/// Who belongs to the cluster and who may speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Tenants by name.
    pub(crate) tenants: BTreeMap<String, TenantEntry>,
    /// Tokens of the client API by the digests of their secrets; some may have expired.
    pub(crate) tokens: BTreeMap<Digest, TokenRow>,
    /// Certificates of issuing keys, as far as the state has them.
    pub(crate) issuers: Vec<Vec<u8>>,
    /// Which issuing key is current, where the state says so.
    pub(crate) authority: Option<AuthorityRow>,
    nodes: BTreeMap<Digest, NodeRow>,
    by_tls_key: BTreeMap<Digest, Digest>,
    join_tokens: BTreeMap<Digest, JoinTokenRow>,
}

impl Directory {
    /// What a state says.
    pub(crate) fn of(state: &State) -> Directory {
        let tenant = |(id, tenant): (&TenantId, &grey_core::Tenant)| {
            let entry = TenantEntry {
                id: *id,
                defaults: tenant.defaults,
                weight_milli: tenant.weight_milli,
                suspended: tenant.suspended,
            };
            (tenant.name.as_ref().to_owned(), entry)
        };
        Directory {
            tenants: state.tenants().iter().map(tenant).collect(),
            tokens: state.tokens().map(|row| (row.id, row.clone())).collect(),
            issuers: state.issuers().map(<[u8]>::to_vec).collect(),
            authority: state.issuing_authority().cloned(),
            join_tokens: state.join_tokens().map(|row| (row.id, row.clone())).collect(),
            ..Directory::of_nodes(state.nodes().cloned())
        }
    }

    /// Nodes alone.
    pub(crate) fn of_nodes(rows: impl IntoIterator<Item = NodeRow>) -> Directory {
        let nodes: BTreeMap<Digest, NodeRow> = rows.into_iter().map(|row| (row.node, row)).collect();
        let by_tls_key = nodes.values().map(|row| (row.tls_key, row.node)).collect();
        Directory { nodes, by_tls_key, ..Directory::default() }
    }

    /// The name of a tenant.
    pub(crate) fn tenant_name(&self, id: TenantId) -> String {
        let found = self.tenants.iter().find(|(_, tenant)| tenant.id == id);
        found.map_or_else(|| id.to_string(), |(name, _)| name.clone())
    }

    /// All nodes. There is none in a cluster of one process.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values()
    }

    /// One node.
    pub(crate) fn node(&self, node: &Digest) -> Option<&NodeRow> {
        self.nodes.get(node)
    }

    /// The node with a TLS key, by the digest of its SubjectPublicKeyInfo.
    pub(crate) fn node_of_key(&self, tls_key: &Digest) -> Option<&NodeRow> {
        self.nodes.get(self.by_tls_key.get(tls_key)?)
    }

    /// A join token that was not used; it may have expired.
    pub(crate) fn join_token(&self, id: &Digest) -> Option<&JoinTokenRow> {
        self.join_tokens.get(id)
    }

    /// The nodes that are spoken to, whatever the dates of their certificates: a worker that was off for longer than those hold comes
    /// back, and renews them first. Who is no longer to be spoken to is blocked or forgotten.
    pub(crate) fn spoken_to(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values().filter(|row| row.standing != NodeStanding::Blocked)
    }

    /// The issuing key that is current, by the digest of its certificate, where the state says so.
    pub(crate) fn issuer(&self) -> Option<Digest> {
        self.authority.as_ref()?.current.as_ref().map(|current| current.issuer)
    }

    /// Whether a server may know the issuing key: not when it is on its way out.
    pub(crate) fn may_have_authority(&self, server: u64) -> bool {
        let row = self.nodes.values().find(|row| row.server == Some(server));
        row.is_some_and(|row| row.standing == NodeStanding::Admitted)
    }

    /// The servers that are spoken to.
    pub(crate) fn servers(&self) -> impl Iterator<Item = ServerPlace> {
        self.spoken_to().filter(|row| row.role == NodeRole::Server).filter_map(|row| {
            let (address, tls_key) = (row.address.clone(), row.tls_key);
            Some(ServerPlace { number: row.server?, address, tls_key })
        })
    }
}
