//! Tokens of the client API, and those that let nodes in. A secret is in the answer that made it, and nowhere else.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use grey_api::{
    ErrorCode, JoinTokenCreated, JoinTokenRequest, Problem, Role, TokenCreated, TokenList, TokenRequest,
    TokenStatus,
};
use grey_core::{
    Command, CreateJoinToken, CreateToken, JoinTokenRow, NodeRole, RevokeToken, TenantId, TokenRole,
    TokenRow, limits,
};
use grey_proof::Digest;
use grey_trust::{ApiToken, JoinToken};

use super::access::{Principal, Scope, role_of, unknown_tenant};
use super::reply::{Refusal, json, parse, whole};
use crate::clock::wall_ms;
use crate::directory::Directory;
use crate::handle::Node;
use crate::identity::random;

fn status(directory: &Directory, row: &TokenRow, wall_ms: u64) -> TokenStatus {
    TokenStatus {
        id: row.id.to_string(),
        name: row.name.clone(),
        role: role_of(row.role),
        tenant: row.tenant.map(|tenant| directory.tenant_name(tenant)),
        created_at_ms: row.created_wall_ms,
        expires_at_ms: row.expires_wall_ms,
        created_by: row.created_by.clone(),
        expired: wall_ms >= row.expires_wall_ms,
    }
}

/// Whether a token is a principal's to see and to revoke: those of its tenant; one who runs the cluster has all.
fn is_its(principal: &Principal, row: &TokenRow) -> bool {
    match (principal.scope(), row.tenant) {
        (Scope::All, _) => true,
        (scope, Some(tenant)) => scope.has(tenant),
        (_, None) => false,
    }
}

/// The tokens as the state has them now.
async fn rows(node: &Node) -> Result<Vec<TokenRow>, Problem> {
    node.ask(|replica| replica.state().tokens().cloned().collect()).await
}

fn secret() -> Result<[u8; 32], Problem> {
    random().map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))
}

/// For which tenant a principal may make a token of a role, if it may.
fn tenant_of(
    directory: &Directory,
    principal: &Principal,
    role: Role,
    named: Option<&str>,
) -> Result<Option<TenantId>, Problem> {
    let field = |code, detail: String| Err(Problem::new(code, detail).field("tenant"));
    match (principal.scope(), role.is_of_a_tenant(), named) {
        (Scope::All, true, Some(named)) => {
            let entry = directory.tenants.get(named);
            Ok(Some(entry.ok_or_else(|| unknown_tenant(directory, principal, Some(named)))?.id))
        }
        (Scope::All, true, None) => {
            field(ErrorCode::InvalidRequest, format!("a {role} is of a tenant, and none is named"))
        }
        (Scope::All, false, None) => Ok(None),
        (Scope::All, false, Some(_)) => field(
            ErrorCode::InvalidRequest,
            format!("a token of the role {role} is of the cluster, not of a tenant"),
        ),
        (Scope::Only(own), true, named) => {
            let entry = named.map(|named| directory.tenants.get(named).map(|entry| entry.id));
            match entry {
                None => Ok(Some(own)),
                Some(Some(id)) if id == own => Ok(Some(own)),
                Some(_) => Err(unknown_tenant(directory, principal, named)),
            }
        }
        (Scope::Only(_), false, _) | (Scope::Nothing, ..) => {
            let detail = format!("a token of a tenant makes none of the role {role}");
            Err(Problem::new(ErrorCode::Forbidden, detail).field("role").hint("an operator makes it"))
        }
    }
}

fn core_role(role: Role) -> TokenRole {
    match role {
        Role::Viewer => TokenRole::Viewer,
        Role::Submitter => TokenRole::Submitter,
        Role::TenantAdmin => TokenRole::TenantAdmin,
        Role::Operator => TokenRole::Operator,
        Role::Auditor => TokenRole::Auditor,
    }
}

/// `GET /v1/tokens`.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, Refusal> {
    let (directory, wall_ms) = (node.directory(), wall_ms());
    let mut rows = rows(&node).await?;
    rows.retain(|row| is_its(&principal, row));
    rows.sort_by_key(|row| (row.created_wall_ms, row.id));
    json(&TokenList { tokens: rows.iter().map(|row| status(&directory, row, wall_ms)).collect() })
}

/// `POST /v1/tokens`.
pub(crate) async fn create(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let request: TokenRequest = parse(&whole(body)?, "the token")?;
    let (directory, wall_ms) = (node.directory(), wall_ms());
    let tenant = tenant_of(&directory, &principal, request.role, request.tenant.as_deref())?;
    must_last(request.valid_ms, limits::TOKEN_MS)?;
    let token = ApiToken::new(secret()?);
    let row = TokenRow {
        id: token.id(),
        name: request.name,
        role: core_role(request.role),
        tenant,
        expires_wall_ms: wall_ms.saturating_add(request.valid_ms),
        created_wall_ms: wall_ms,
        created_by: principal.name().chars().take(limits::NAME_BYTES / 4).collect(),
    };
    node.propose(Command::CreateToken(CreateToken { token: row.clone() })).await?;
    json(&TokenCreated { token: token.reveal(), status: status(&directory, &row, wall_ms) })
}

fn must_last(valid_ms: u64, longest_ms: u64) -> Result<(), Refusal> {
    if (1..=longest_ms).contains(&valid_ms) {
        return Ok(());
    }
    let detail = format!("`valid_ms` is {valid_ms}; it must be from 1 to {longest_ms}");
    Err(Refusal(Problem::new(ErrorCode::OutOfBounds, detail).field("valid_ms").limit(longest_ms)))
}

/// `DELETE /v1/tokens/{id}`: the whole digest, or enough of its beginning to name one token.
pub(crate) async fn revoke(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let mut rows = rows(&node).await?;
    rows.retain(|row| is_its(&principal, row));
    let row = one_of(&rows, &id, "token", |row| row.id)?;
    node.propose(Command::RevokeToken(RevokeToken { id: row.id })).await?;
    json(&status(&node.directory(), row, wall_ms()))
}

/// The one whose digest begins with a text of eight digits at least.
pub(super) fn one_of<'a, T>(
    all: &'a [T],
    text: &str,
    what: &str,
    digest: impl Fn(&T) -> Digest,
) -> Result<&'a T, Problem> {
    const SHORTEST: usize = 8;
    let shown: String = text.chars().take(64).collect();
    let mut found =
        all.iter().filter(|one| text.len() >= SHORTEST && digest(one).to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => {
            let detail = format!("`{shown}` is the beginning of several identities of a {what}");
            Err(Problem::new(ErrorCode::InvalidRequest, detail).field("id").hint("write more of it"))
        }
        (None, _) => Err(Problem::new(ErrorCode::NotFound, format!("there is no {what} {shown}")).hint(
            format!("`grey {what} list` shows what there is; {SHORTEST} digits of an identity are enough"),
        )),
    }
}

/// `POST /v1/join-tokens`.
pub(crate) async fn create_join(
    State(node): State<Arc<Node>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let request: JoinTokenRequest = parse(&whole(body)?, "the join token")?;
    let role = match request.role.as_str() {
        "server" => NodeRole::Server,
        "worker" => NodeRole::Worker,
        other => {
            let shown: String = other.chars().take(64).collect();
            let detail = format!("`{shown}` is no role of a node; `server` and `worker` are");
            return Err(Refusal(Problem::new(ErrorCode::InvalidRequest, detail).field("role")));
        }
    };
    must_last(request.valid_ms, limits::JOIN_TOKEN_MS)?;
    if node.directory().nodes().next().is_none() {
        let detail = "a local cluster is one process, and no node can join it";
        let problem = Problem::new(ErrorCode::Conflict, detail);
        return Err(Refusal(problem.hint("`grey cluster init` begins one of several machines")));
    }
    let created_wall_ms = wall_ms();
    let token = JoinToken::new(node.signing.cluster, secret()?);
    let expires_wall_ms = created_wall_ms.saturating_add(request.valid_ms);
    let row = JoinTokenRow { id: token.id(), role, expires_wall_ms, created_wall_ms };
    node.propose(Command::CreateJoinToken(CreateJoinToken { token: row })).await?;
    json(&JoinTokenCreated {
        token: token.reveal(),
        id: token.id().to_string(),
        role: role.name().to_owned(),
        expires_at_ms: expires_wall_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::TenantEntry;
    use grey_core::TaskDefaults;

    fn directory() -> Directory {
        let defaults = TaskDefaults {
            resources: grey_core::Resources::default(),
            timeout_ms: 1,
            output_limit_bytes: 1,
            priority: 0,
        };
        let entry = |id| TenantEntry { id: TenantId(id), defaults, weight_milli: 1, suspended: false };
        let mut directory = Directory::default();
        directory.tenants.insert("own".to_owned(), entry(2));
        directory.tenants.insert("other".to_owned(), entry(3));
        directory
    }

    #[test]
    fn a_tenant_s_admin_makes_tokens_of_the_tenant_and_no_others() {
        let directory = directory();
        let admin = Principal::Bearer {
            token: Digest([9; 32]),
            name: "t".to_owned(),
            role: Role::TenantAdmin,
            tenant: Some(TenantId(2)),
        };
        let operator = Principal::Bearer {
            token: Digest([9; 32]),
            name: "o".to_owned(),
            role: Role::Operator,
            tenant: None,
        };
        for (principal, role, named, expected) in [
            (&admin, Role::Submitter, None, Ok(Some(TenantId(2)))),
            (&admin, Role::TenantAdmin, Some("own"), Ok(Some(TenantId(2)))),
            (&admin, Role::Viewer, Some("other"), Err(404)),
            (&admin, Role::Viewer, Some("nobody"), Err(404)),
            (&admin, Role::Operator, None, Err(403)),
            (&admin, Role::Auditor, Some("own"), Err(403)),
            (&operator, Role::Submitter, Some("other"), Ok(Some(TenantId(3)))),
            (&operator, Role::Submitter, None, Err(400)),
            (&operator, Role::Submitter, Some("nobody"), Err(404)),
            (&operator, Role::Operator, None, Ok(None)),
            (&operator, Role::Auditor, Some("own"), Err(400)),
            (&Principal::Owner, Role::Operator, None, Ok(None)),
        ] {
            let found = tenant_of(&directory, principal, role, named).map_err(|problem| problem.status);
            assert_eq!(found, expected, "{principal:?} {role} {named:?}");
        }
    }

    #[test]
    fn a_tenant_s_admin_sees_and_revokes_tokens_of_the_tenant_only() {
        let row = |tenant| TokenRow {
            id: Digest([0; 32]),
            name: String::new(),
            role: TokenRole::Viewer,
            tenant,
            expires_wall_ms: 0,
            created_wall_ms: 0,
            created_by: String::new(),
        };
        let admin = Principal::Bearer {
            token: Digest([9; 32]),
            name: String::new(),
            role: Role::TenantAdmin,
            tenant: Some(TenantId(2)),
        };
        for (tenant, its) in [(Some(TenantId(2)), true), (Some(TenantId(3)), false), (None, false)] {
            assert_eq!(is_its(&admin, &row(tenant)), its);
            assert!(is_its(&Principal::Owner, &row(tenant)));
        }
    }

    #[test]
    fn the_beginning_of_an_identity_is_enough_where_it_names_one() {
        let all = [Digest([0x11; 32]), Digest([0x22; 32])];
        let find = |text: &str| one_of(&all, text, "token", |one| *one).map_err(|problem| problem.status);
        assert_eq!(find("11111111"), Ok(&all[0]));
        assert_eq!(find(&all[1].to_string()), Ok(&all[1]));
        assert_eq!((find("1111111"), find(""), find("33333333")), (Err(404), Err(404), Err(404)));
        let twins = [Digest([0x11; 32]), Digest([0x11; 32])];
        assert_eq!(one_of(&twins, "11111111", "token", |one| *one).unwrap_err().status, 400);
    }
}
