//! Who belongs to the cluster, and who may speak.

use grey_proof::Digest;

use super::{Application, Stop};
use crate::command::TaskDefaults;
use crate::constraint::Tier;
use crate::effect::Answer;
use crate::identity::{
    AdmitNode, CordonNode, CreateJoinToken, CreateTenant, CreateToken, EnrolFounder, ForgetNode, IdentityKey,
    IdentityRow, JoinTokenRow, NewNode, NodeRole, NodeRow, NodeStanding, RenewNode, RevokeJoinToken,
    RevokeToken, SetNodeAddress, SetNodeStanding, SetTenantSuspended, TokenRow,
};
use crate::ids::TenantId;
use crate::level::FORGET_LEVEL;
use crate::limits;
use crate::rejection::Rejection;
use crate::rows::{Tenant, Worker};
use crate::spec::Resources;

fn refuse<T>(field: &str, problem: &str, limit: u64) -> Result<T, Stop> {
    Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit }.into())
}

fn name(field: &str, name: &str) -> Result<(), Stop> {
    if name.is_empty() || name.len() > limits::NAME_BYTES || name.chars().any(char::is_control) {
        return refuse(field, "is empty, too long, or has control characters", limits::NAME_BYTES as u64);
    }
    Ok(())
}

fn full<T>(what: &str, limit: usize) -> Result<T, Stop> {
    Err(Rejection::QueueFull { what: what.to_owned(), limit: limit as u64 }.into())
}

fn not_admitted<T>(why: &str) -> Result<T, Stop> {
    Err(Rejection::NotAdmitted(why.to_owned()).into())
}

impl Application<'_> {
    pub(super) fn enrol_founder(&mut self, body: EnrolFounder) -> Result<Answer, Stop> {
        if self.rows.base.nodes().next().is_some() || self.rows.meta.jobs_submitted > 0 {
            return not_admitted("the cluster has its first server, or work, already");
        }
        if body.node.role != NodeRole::Server {
            return not_admitted("the first node must be a server");
        }
        self.check_token(&body.token)?;
        self.rows.identity.insert(IdentityKey::Token(body.token.id), IdentityRow::Token(body.token));
        let server = self.add_node(body.node, body.wall_ms)?;
        Ok(Answer::Admitted { server })
    }

    pub(super) fn admit_node(&mut self, body: AdmitNode) -> Result<Answer, Stop> {
        if self.rows.base.nodes().next().is_none() {
            return not_admitted("the cluster is one process; it has no nodes");
        }
        self.sweep(body.wall_ms);
        let key = IdentityKey::JoinToken(body.token);
        let Some(IdentityRow::JoinToken(token)) = self.rows.identity.get(&key).cloned() else {
            return not_admitted("the join token is unknown or used up");
        };
        if token.expires_wall_ms < body.wall_ms {
            return not_admitted("the join token has expired");
        }
        if token.role != body.node.role {
            return not_admitted("the join token is for another role");
        }
        self.use_nonce(body.nonce, body.wall_ms)?;
        self.rows.identity.remove(&key);
        let server = self.add_node(body.node, body.wall_ms)?;
        Ok(Answer::Admitted { server })
    }

    fn use_nonce(&mut self, nonce: [u8; 32], wall_ms: u64) -> Result<(), Stop> {
        let key = IdentityKey::Nonce(Digest(nonce));
        if self.rows.identity.get(&key).is_some() {
            return not_admitted("the challenge was answered before");
        }
        if self.rows.base.used_nonces() >= limits::USED_NONCES {
            return full("answered challenges", limits::USED_NONCES);
        }
        let until = wall_ms.saturating_add(limits::NONCE_KEPT_MS);
        self.rows.identity.insert(key, IdentityRow::Nonce(until));
        Ok(())
    }

    /// Forgets some of what has expired by then.
    fn sweep(&mut self, wall_ms: u64) {
        for key in self.rows.base.expired_identities(wall_ms, limits::IDENTITIES_SWEPT) {
            self.rows.identity.remove(&key);
        }
    }

    pub(super) fn add_node(&mut self, new: NewNode, wall_ms: u64) -> Result<Option<u64>, Stop> {
        name("name", &new.name)?;
        let state = self.rows.base;
        if new.node != Digest::of(&new.public_key) {
            return not_admitted("the node is not its key's");
        }
        let taken = |row: &NodeRow| row.serial == new.serial;
        if state.node(&new.node).is_some() || state.node_of_key(&new.tls_key).is_some() {
            return not_admitted("the node belongs to the cluster already");
        }
        if state.nodes().any(taken) {
            return not_admitted("the serial number is taken");
        }
        if new.tier <= Tier::None {
            return not_admitted("nothing is known of the node");
        }
        let alike = state.nodes().filter(|row| row.role == new.role).count();
        let server = match new.role {
            NodeRole::Worker => {
                if alike >= limits::WORKERS {
                    return full("workers", limits::WORKERS);
                }
                if !new.address.is_empty() {
                    return refuse("address", "is only for servers", 0);
                }
                None
            }
            NodeRole::Server => {
                if alike >= limits::SERVERS {
                    return full("servers", limits::SERVERS);
                }
                check_address(&new.address)?;
                let number = self.rows.meta.servers_numbered.checked_add(1);
                let number = number.ok_or_else(|| Rejection::Exhausted("server".to_owned()))?;
                self.rows.meta.servers_numbered = number;
                Some(number)
            }
        };
        let (certificate, bytes) = new.certificate;
        self.keep_certificate(new.node, certificate, bytes)?;
        let row = NodeRow {
            node: new.node,
            public_key: new.public_key,
            tls_key: new.tls_key,
            name: new.name,
            role: new.role,
            server,
            address: new.address,
            tier: new.tier,
            serial: new.serial,
            evidence: new.evidence,
            certificates: vec![certificate],
            admitted_wall_ms: wall_ms,
            standing: NodeStanding::Admitted,
            cordoned: false,
        };
        self.rows.identity.insert(IdentityKey::Node(row.node), IdentityRow::Node(row));
        Ok(server)
    }

    /// Keeps a certificate, also when its node is forgotten: what it signed can still be proved.
    pub(super) fn keep_certificate(&mut self, node: Digest, id: Digest, bytes: Vec<u8>) -> Result<(), Stop> {
        check_certificate(&bytes)?;
        let key = IdentityKey::Certificate(id);
        match self.rows.identity.get(&key) {
            Some(IdentityRow::Certificate(of, _)) if *of == node => return Ok(()),
            Some(_) => return not_admitted("the certificate is another node's"),
            None => {}
        }
        if self.rows.base.certificates_kept() >= limits::CERTIFICATES {
            return full("certificates", limits::CERTIFICATES);
        }
        self.rows.identity.insert(key, IdentityRow::Certificate(node, bytes));
        Ok(())
    }

    /// The worker of a node, where it announced itself.
    fn worker_of(&mut self, node: &Digest) -> Option<&mut Worker> {
        let mut workers = self.rows.base.workers.iter();
        let (worker, _) = workers.find(|(_, worker)| worker.node == *node)?;
        self.rows.workers.get_mut(worker)
    }

    fn node_row(&mut self, node: Digest) -> Result<&mut NodeRow, Stop> {
        match self.rows.identity.get_mut(&IdentityKey::Node(node)) {
            Some(IdentityRow::Node(row)) => Ok(row),
            _ => Err(Rejection::UnknownNode(node).into()),
        }
    }

    pub(super) fn renew_node(&mut self, body: RenewNode) -> Result<Answer, Stop> {
        self.sweep(body.wall_ms);
        let other = self.rows.base.node_of_key(&body.tls_key).is_some_and(|row| row.node != body.node);
        let taken = self.rows.base.nodes().any(|row| row.serial == body.serial);
        self.use_nonce(body.nonce, body.wall_ms)?;
        let row = self.node_row(body.node)?;
        if row.standing == NodeStanding::Blocked {
            return not_admitted("the node is blocked");
        }
        if other || taken {
            return not_admitted("the key or the serial number is another node's");
        }
        if body.tier <= Tier::None {
            return not_admitted("nothing is known of the node");
        }
        (row.tls_key, row.serial, row.evidence, row.tier) =
            (body.tls_key, body.serial, body.evidence, body.tier);
        let (server, standing) = (row.server, row.standing);
        if standing == NodeStanding::Admitted
            && let Some(worker) = self.worker_of(&body.node)
        {
            worker.tier = body.tier;
        }
        if let Some((certificate, bytes)) = body.certificate {
            self.keep_certificate(body.node, certificate, bytes)?;
            let row = self.node_row(body.node)?;
            if !row.certificates.contains(&certificate) {
                row.certificates.push(certificate);
            }
            let excess = row.certificates.len().saturating_sub(limits::NODE_CERTIFICATES);
            for old in row.certificates.drain(..excess).collect::<Vec<Digest>>() {
                self.rows.identity.remove(&IdentityKey::Certificate(old));
            }
        }
        Ok(Answer::Admitted { server })
    }

    pub(super) fn set_node_standing(&mut self, body: &SetNodeStanding) -> Result<Answer, Stop> {
        let servers = self.rows.base.nodes().filter(|row| {
            row.role == NodeRole::Server && row.standing == NodeStanding::Admitted && row.node != body.node
        });
        let last = servers.count() == 0;
        let row = self.node_row(body.node)?;
        if last && row.role == NodeRole::Server && body.standing != NodeStanding::Admitted {
            return not_admitted("it is the last server of the cluster");
        }
        let leaves = row.role == NodeRole::Server
            && row.standing == NodeStanding::Admitted
            && body.standing != NodeStanding::Admitted;
        row.standing = body.standing;
        let tier = if body.standing == NodeStanding::Admitted { row.tier } else { Tier::Blocked };
        // Nothing new is placed on a worker that is shut out. What runs there ends with its lease, or with its work.
        if let Some(worker) = self.worker_of(&body.node) {
            worker.tier = tier;
        }
        self.servers_left(usize::from(leaves));
        Ok(Answer::Identity)
    }

    pub(super) fn cordon_node(&mut self, body: &CordonNode) -> Result<Answer, Stop> {
        let row = self.node_row(body.node)?;
        if row.role != NodeRole::Worker {
            return not_admitted("it is a server, and runs no work of which it could be freed");
        }
        row.cordoned = body.cordoned;
        if let Some(worker) = self.worker_of(&body.node) {
            worker.cordoned = body.cordoned;
        }
        Ok(Answer::Identity)
    }

    pub(super) fn set_node_address(&mut self, body: SetNodeAddress) -> Result<Answer, Stop> {
        check_address(&body.address)?;
        let row = self.node_row(body.node)?;
        if row.role != NodeRole::Server {
            return refuse("address", "is only for servers", 0);
        }
        row.address = body.address;
        Ok(Answer::Identity)
    }

    pub(super) fn forget_node(&mut self, body: &ForgetNode) -> Result<Answer, Stop> {
        let row = self.node_row(body.node)?;
        if row.standing == NodeStanding::Admitted {
            return not_admitted("it belongs to the cluster; it has to leave first");
        }
        if self.rows.meta.feature_level >= FORGET_LEVEL {
            self.forget_worker(&body.node)?;
        } else if let Some(worker) = self.worker_of(&body.node) {
            // Should it enter anew, nobody has cordoned it.
            worker.cordoned = false;
        }
        self.rows.identity.remove(&IdentityKey::Node(body.node));
        self.rows.identity.remove(&IdentityKey::Version(body.node));
        Ok(Answer::Identity)
    }

    /// Its certificates stay, for the proofs of what it ran. Should it enter anew it has another number.
    fn forget_worker(&mut self, node: &Digest) -> Result<(), Stop> {
        let mut workers = self.rows.base.workers.iter();
        let Some((worker, row)) = workers.find(|(_, row)| row.node == *node) else { return Ok(()) };
        if row.held > 0 {
            return not_admitted("the worker's attempts have not ended yet");
        }
        self.rows.workers.remove(worker);
        self.rows.breakers.remove(worker);
        Ok(())
    }

    pub(super) fn create_join_token(&mut self, body: CreateJoinToken) -> Result<Answer, Stop> {
        let JoinTokenRow { id, expires_wall_ms, created_wall_ms, .. } = body.token;
        self.sweep(created_wall_ms);
        let longest = created_wall_ms.saturating_add(limits::JOIN_TOKEN_MS);
        if expires_wall_ms <= created_wall_ms || expires_wall_ms > longest {
            return refuse("expires", "is past, or too far away", limits::JOIN_TOKEN_MS);
        }
        let key = IdentityKey::JoinToken(id);
        if self.rows.identity.get(&key).is_some() {
            return refuse("id", "is taken", 0);
        }
        if self.rows.base.join_tokens().count() >= limits::JOIN_TOKENS {
            return full("join tokens", limits::JOIN_TOKENS);
        }
        self.rows.identity.insert(key, IdentityRow::JoinToken(body.token));
        Ok(Answer::Identity)
    }

    pub(super) fn revoke_join_token(&mut self, body: &RevokeJoinToken) -> Result<Answer, Stop> {
        let key = IdentityKey::JoinToken(body.id);
        if self.rows.identity.get(&key).is_none() {
            return Err(Rejection::UnknownToken(body.id).into());
        }
        self.rows.identity.remove(&key);
        Ok(Answer::Identity)
    }

    pub(super) fn check_token(&self, token: &TokenRow) -> Result<(), Stop> {
        name("name", &token.name)?;
        if token.created_by.len() > limits::NAME_BYTES {
            return refuse("created_by", "is too long", limits::NAME_BYTES as u64);
        }
        if token.role.is_of_tenant() != token.tenant.is_some() {
            return refuse("tenant", "is missing for a role within a tenant, or given for another role", 0);
        }
        if let Some(tenant) = token.tenant.filter(|tenant| !self.rows.tenants.contains(tenant)) {
            return Err(Rejection::UnknownTenant(tenant).into());
        }
        let longest = token.created_wall_ms.saturating_add(limits::TOKEN_MS);
        if token.expires_wall_ms <= token.created_wall_ms || token.expires_wall_ms > longest {
            return refuse("expires", "is past, or too far away", limits::TOKEN_MS);
        }
        Ok(())
    }

    pub(super) fn create_token(&mut self, body: CreateToken) -> Result<Answer, Stop> {
        self.sweep(body.token.created_wall_ms);
        self.check_token(&body.token)?;
        let key = IdentityKey::Token(body.token.id);
        if self.rows.identity.get(&key).is_some() {
            return refuse("id", "is taken", 0);
        }
        let (mut all, mut alike) = (0, 0);
        for row in self.rows.base.tokens() {
            all += 1;
            alike += usize::from(row.tenant == body.token.tenant);
        }
        if all >= limits::TOKENS {
            return full("tokens", limits::TOKENS);
        }
        if alike >= limits::TENANT_TOKENS {
            return full("tokens of the tenant", limits::TENANT_TOKENS);
        }
        self.rows.identity.insert(key, IdentityRow::Token(body.token));
        Ok(Answer::Identity)
    }

    pub(super) fn revoke_token(&mut self, body: &RevokeToken) -> Result<Answer, Stop> {
        let key = IdentityKey::Token(body.id);
        if self.rows.identity.get(&key).is_none() {
            return Err(Rejection::UnknownToken(body.id).into());
        }
        self.rows.identity.remove(&key);
        Ok(Answer::Identity)
    }

    pub(super) fn create_tenant(&mut self, body: CreateTenant) -> Result<Answer, Stop> {
        name("name", &body.name)?;
        if !(1..=limits::WEIGHT_MILLI).contains(&body.weight_milli) {
            return refuse("weight", "is none or too large", u64::from(limits::WEIGHT_MILLI));
        }
        check_defaults(&body.defaults)?;
        if self.rows.base.tenant_named(&body.name).is_some() {
            return refuse("name", "is another tenant's", 0);
        }
        let last = self.rows.base.tenants().keys().next_back().copied();
        if self.rows.base.tenants().len() >= limits::FOUNDING_TENANTS {
            return full("tenants", limits::FOUNDING_TENANTS);
        }
        let number = last.map_or(Some(1), |last| last.0.checked_add(1));
        let number = number.ok_or_else(|| Rejection::Exhausted("tenant".to_owned()))?;
        let tenant = TenantId(number);
        let row = Tenant {
            name: body.name.into(),
            defaults: body.defaults,
            weight_milli: body.weight_milli,
            suspended: false,
            queued_tasks: 0,
            held_tasks: 0,
            usage: Resources::default(),
            keys: 0,
        };
        self.rows.tenants.insert(tenant, row);
        Ok(Answer::TenantCreated { tenant })
    }

    pub(super) fn set_tenant_suspended(&mut self, body: &SetTenantSuspended) -> Result<Answer, Stop> {
        match self.rows.tenants.get_mut(&body.tenant) {
            Some(row) => row.suspended = body.suspended,
            None => return Err(Rejection::UnknownTenant(body.tenant).into()),
        }
        Ok(Answer::Identity)
    }

    /// Whether a worker may announce itself, and how far it is trusted. Where no node was ever enrolled, the cluster is one process.
    pub(super) fn admitted_tier(&self, node: &Digest, certificate: &Digest) -> Result<Tier, Stop> {
        let mut nodes = self.rows.base.nodes().peekable();
        if nodes.peek().is_none() {
            return Ok(Tier::Software);
        }
        match self.rows.base.node(node) {
            Some(row) if row.role != NodeRole::Worker => not_admitted("the node is no worker"),
            Some(row) if row.standing != NodeStanding::Admitted => {
                not_admitted("the node is blocked or leaving")
            }
            Some(row) if !row.certificates.contains(certificate) => {
                not_admitted("the certificate is not one of the node's")
            }
            Some(row) => Ok(row.tier),
            None => not_admitted("the node does not belong to the cluster"),
        }
    }
}

fn check_certificate(bytes: &[u8]) -> Result<(), Stop> {
    if bytes.is_empty() || bytes.len() > limits::CERTIFICATE_BYTES {
        return refuse("certificate", "is missing or too long", limits::CERTIFICATE_BYTES as u64);
    }
    Ok(())
}

fn check_address(address: &str) -> Result<(), Stop> {
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok()?;
        (!host.is_empty() && port > 0).then_some(port)
    });
    let plain = address.chars().all(|letter| letter.is_ascii_graphic());
    if port.is_none() || !plain || address.len() > limits::ADDRESS_BYTES {
        return refuse("address", "is no host and port", limits::ADDRESS_BYTES as u64);
    }
    Ok(())
}

fn check_defaults(defaults: &TaskDefaults) -> Result<(), Stop> {
    let Resources { cpu_millicores, memory_bytes, disk_bytes } = defaults.resources;
    if cpu_millicores.max(memory_bytes).max(disk_bytes) >= limits::RESOURCE_TOTAL {
        return refuse("defaults", "have too large resources", limits::RESOURCE_TOTAL);
    }
    if !(1..=limits::TIMEOUT_MS).contains(&defaults.timeout_ms) {
        return refuse("defaults", "have no time-out, or one that is too long", limits::TIMEOUT_MS);
    }
    if defaults.output_limit_bytes > limits::OUTPUT_LIMIT_BYTES {
        return refuse("defaults", "have too large an output limit", limits::OUTPUT_LIMIT_BYTES);
    }
    Ok(())
}
