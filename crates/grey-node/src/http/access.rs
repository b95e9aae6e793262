//! Who asks, and what they may: the one place where that is decided. What is not allowed here is refused.

use axum::http::{HeaderMap, Method, header};
use grey_api::{ENDPOINTS, Endpoint, ErrorCode, Problem, Right, Role, Subject};
use grey_core::{TaskDefaults, TenantId, TokenRole, TokenRow, limits};
use grey_proof::{Digest, utc};
use grey_trust::ApiToken;

use super::guard::Entrance;
use super::submit::DEFAULT_TENANT;
use crate::directory::Directory;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Nobody who is known; only what is open to everybody is answered.
    Nobody,
    /// Whoever may open the socket of a node, or shows the token that lies beside it.
    Owner,
    /// The bearer of a token.
    Bearer {
        /// Which token.
        token: Digest,
        /// What people call the token.
        name: String,
        /// What it is for.
        role: Role,
        /// Whose it is; of a role within a tenant only.
        tenant: Option<TenantId>,
    },
}

/// Whose a principal may see and touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every tenant's.
    All,
    /// One tenant's.
    Only(TenantId),
    /// Nobody's.
    Nothing,
}

impl Scope {
    /// Whether what is a tenant's lies within it.
    pub(crate) fn has(self, tenant: TenantId) -> bool {
        match self {
            Scope::All => true,
            Scope::Only(own) => own == tenant,
            Scope::Nothing => false,
        }
    }
}

impl Principal {
    /// Whether a right is among its own.
    pub(crate) fn may(&self, right: Right) -> bool {
        match self {
            Principal::Nobody => right == Right::None,
            Principal::Owner => true,
            Principal::Bearer { role, .. } => role.may(right),
        }
    }

    /// Whose it may see and touch.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Principal::Nobody => Scope::Nothing,
            Principal::Owner => Scope::All,
            Principal::Bearer { role, tenant, .. } => match (role.is_of_a_tenant(), tenant) {
                (false, None) => Scope::All,
                (true, Some(tenant)) => Scope::Only(*tenant),
                // No such token is made; one that was would be good for nothing.
                (true, None) | (false, Some(_)) => Scope::Nothing,
            },
        }
    }

    /// What it is, in logs.
    pub(crate) fn role_name(&self) -> &'static str {
        match self {
            Principal::Nobody => "nobody",
            Principal::Owner => "owner",
            Principal::Bearer { role, .. } => role.name(),
        }
    }

    /// The name that stands for it in what it submits.
    pub(crate) fn name(&self) -> &str {
        match self {
            Principal::Nobody => "",
            Principal::Owner => "owner",
            Principal::Bearer { name, .. } => name,
        }
    }
}

/// The role of the API that a token of the state has.
pub(crate) fn role_of(role: TokenRole) -> Role {
    match role {
        TokenRole::Viewer => Role::Viewer,
        TokenRole::Submitter => Role::Submitter,
        TokenRole::TenantAdmin => Role::TenantAdmin,
        TokenRole::Operator => Role::Operator,
        TokenRole::Auditor => Role::Auditor,
    }
}

/// The entry of the table that a request is for; `path` is the route that it matched. A route that is not in the table is refused,
/// whatever would answer it.
pub(crate) fn endpoint(method: &Method, path: Option<&str>) -> Result<&'static Endpoint, Problem> {
    const HINT: &str = "GET /openapi.json lists them";
    let none = || Problem::new(ErrorCode::NotFound, "there is no such endpoint").hint(HINT);
    let path = path.ok_or_else(none)?;
    let of_path = || ENDPOINTS.iter().filter(|endpoint| endpoint.path == path);
    // The head of an answer is asked for like the answer.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    match of_path().find(|endpoint| method.as_str().eq_ignore_ascii_case(endpoint.method)) {
        Some(endpoint) => Ok(endpoint),
        None if of_path().next().is_some() => {
            let detail = "this endpoint does not take this method";
            Err(Problem::new(ErrorCode::MethodNotAllowed, detail).hint(HINT))
        }
        None => Err(none()),
    }
}

/// Who asks, by how they came in and what they show.
pub(crate) fn principal(
    entrance: &Entrance,
    headers: &HeaderMap,
    directory: &Directory,
    wall_ms: u64,
) -> Result<Principal, Problem> {
    if matches!(entrance, Entrance::Socket) {
        return Ok(Principal::Owner);
    }
    let Some(shown) = headers.get(header::AUTHORIZATION) else { return Ok(Principal::Nobody) };
    let shown = shown.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    let shown = shown.ok_or_else(|| unauthorized(entrance, "`Authorization` must read `Bearer TOKEN`"))?;
    if let Entrance::Loopback { token } = entrance
        // Digests are compared, so that the time it takes tells nothing of the token.
        && Digest::of(shown.as_bytes()) == Digest::of(token.as_bytes())
    {
        return Ok(Principal::Owner);
    }
    let row = shown.parse::<ApiToken>().ok().and_then(|token| directory.tokens.get(&token.id()));
    let row =
        row.ok_or_else(|| unauthorized(entrance, "the token is unknown, was revoked, or has expired"))?;
    // Only who shows the token itself comes to its row, and so is told of it.
    bearer(row, wall_ms).ok_or_else(|| unauthorized(entrance, &expired(row.expires_wall_ms)))
}

/// What is said of a token that is good no more.
pub(crate) fn expired(at_wall_ms: u64) -> String {
    match utc(at_wall_ms) {
        Some(at) => format!("the token expired at {at}"),
        None => "the token has expired".to_owned(),
    }
}

fn bearer(row: &TokenRow, wall_ms: u64) -> Option<Principal> {
    (wall_ms < row.expires_wall_ms).then(|| Principal::Bearer {
        token: row.id,
        name: row.name.clone(),
        role: role_of(row.role),
        tenant: row.tenant,
    })
}

pub(crate) fn unauthorized(entrance: &Entrance, detail: &str) -> Problem {
    let hint = match entrance {
        Entrance::Loopback { .. } => {
            "set GREY_TOKEN to the token that `grey dev` prints, or to one that `grey token create` made"
        }
        _ => "set GREY_TOKEN to a token that `grey token create` made, or keep it in a context",
    };
    Problem::new(ErrorCode::Unauthorized, detail).hint(hint)
}

/// Refuses a principal who may not use an endpoint.
pub(crate) fn allow(entrance: &Entrance, principal: &Principal, endpoint: &Endpoint) -> Result<(), Problem> {
    if principal.may(endpoint.needs) {
        return Ok(());
    }
    if *principal == Principal::Nobody {
        return Err(unauthorized(entrance, "a token is needed, and none is shown"));
    }
    let able: Vec<&str> =
        Role::ALL.into_iter().filter(|role| role.may(endpoint.needs)).map(Role::name).collect();
    let role = match principal {
        Principal::Bearer { role, .. } => role.name(),
        Principal::Nobody | Principal::Owner => "",
    };
    let what = format!("{} {}", endpoint.method.to_uppercase(), endpoint.path);
    let detail = format!("the token's role `{role}` does not allow {what}");
    let hint = match able.as_slice() {
        [] => "only who may open the node's own socket can do it".to_owned(),
        able => format!("it needs a token of one of the roles {}", able.join(", ")),
    };
    Err(Problem::new(ErrorCode::Forbidden, detail).hint(hint))
}

/// What is said of something that is not a principal's, and of what is not there: the same, so that neither tells of the other.
pub(crate) fn not_there(subject: Subject, id: &str) -> Problem {
    let what = match subject {
        Subject::Job => "job",
        Subject::Task => "task",
        Subject::Nothing => "thing",
    };
    let shown: String = id.chars().take(64).collect();
    Problem::new(ErrorCode::NotFound, format!("the tenant has no {what} {shown} that is still kept"))
        .hint(format!("`grey {what} list` shows what there is"))
}

/// For whom something is submitted, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Behalf {
    /// The tenant's name.
    pub(crate) tenant: String,
    /// Its number.
    pub(crate) id: TenantId,
    /// What its tasks get that leave it unset.
    pub(crate) defaults: TaskDefaults,
    /// The authenticated name.
    pub(crate) submitter: String,
    /// Whose content may be named.
    pub(crate) scope: Scope,
}

/// For whom a principal submits that names a tenant, or none: its own; one who runs the cluster may name any.
pub(crate) fn behalf(
    directory: &Directory,
    principal: &Principal,
    named: Option<&str>,
) -> Result<Behalf, Problem> {
    let own = match principal.scope() {
        Scope::All => None,
        Scope::Only(tenant) => Some(tenant),
        Scope::Nothing => return Err(Problem::new(ErrorCode::Forbidden, "the token is of no tenant")),
    };
    let of_number = |id: TenantId| directory.tenants.iter().find(|(_, entry)| entry.id == id);
    let found = match (own, named) {
        (Some(own), None) => of_number(own),
        (Some(own), Some(named)) => of_number(own).filter(|(name, _)| name.as_str() == named),
        (None, named) => directory.tenants.get_key_value(named.unwrap_or(DEFAULT_TENANT)),
    };
    let (name, entry) = found.ok_or_else(|| unknown_tenant(directory, principal, named))?;
    if entry.suspended {
        return Err(Problem::new(ErrorCode::TenantSuspended, format!("tenant `{name}` is suspended"))
            .field("tenant")
            .hint(format!("an operator lets it submit again: `grey tenant resume {name}`")));
    }
    let submitter = principal.name().chars().take(limits::NAME_BYTES / 4).collect();
    let (tenant, id, defaults, scope) = (name.clone(), entry.id, entry.defaults, principal.scope());
    Ok(Behalf { tenant, id, defaults, submitter, scope })
}

/// The tenants that a listing is about: those of the principal, or of them the one that is named.
pub(crate) fn listed(
    directory: &Directory,
    principal: &Principal,
    named: Option<&str>,
) -> Result<Scope, Problem> {
    let Some(named) = named else { return Ok(principal.scope()) };
    let found = directory.tenants.get(named).filter(|entry| principal.scope().has(entry.id));
    found.map(|entry| Scope::Only(entry.id)).ok_or_else(|| unknown_tenant(directory, principal, Some(named)))
}

/// What is said of a tenant that is not there, or is none of a principal's.
pub(crate) fn unknown_tenant(directory: &Directory, principal: &Principal, named: Option<&str>) -> Problem {
    let shown: String = named.unwrap_or(DEFAULT_TENANT).chars().take(limits::NAME_BYTES).collect();
    let seen = directory.tenants.iter().filter(|(_, entry)| principal.scope().has(entry.id));
    let names: Vec<&str> = seen.map(|(name, _)| name.as_str()).take(20).collect();
    Problem::new(ErrorCode::UnknownTenant, format!("tenant `{shown}` is unknown"))
        .field("tenant")
        .hint(format!("there are: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::TenantEntry;
    use grey_core::Resources;

    const OWN: TenantId = TenantId(2);
    const OTHER: TenantId = TenantId(3);
    const NOW_MS: u64 = 1_000;

    fn token(number: u8) -> ApiToken {
        ApiToken::new([number; 32])
    }

    fn directory() -> Directory {
        let defaults = TaskDefaults {
            resources: Resources::default(),
            timeout_ms: 1,
            output_limit_bytes: 1,
            priority: 0,
        };
        let tenant = |id, suspended| TenantEntry { id, defaults, weight_milli: 1_000, suspended };
        let row = |number, name: &str, role, tenant, expires_wall_ms| TokenRow {
            id: token(number).id(),
            name: name.to_owned(),
            role,
            tenant,
            expires_wall_ms,
            created_wall_ms: 0,
            created_by: String::new(),
        };
        let rows = [
            row(1, "v", TokenRole::Viewer, Some(OWN), 2_000),
            row(2, "s", TokenRole::Submitter, Some(OWN), 2_000),
            row(3, "t", TokenRole::TenantAdmin, Some(OWN), 2_000),
            row(4, "o", TokenRole::Operator, None, 2_000),
            row(5, "a", TokenRole::Auditor, None, 2_000),
            row(6, "late", TokenRole::Operator, None, NOW_MS),
        ];
        let mut directory = Directory::default();
        directory.tenants.insert("default".to_owned(), tenant(TenantId(1), false));
        directory.tenants.insert("own".to_owned(), tenant(OWN, false));
        directory.tenants.insert("other".to_owned(), tenant(OTHER, false));
        directory.tenants.insert("asleep".to_owned(), tenant(TenantId(4), true));
        directory.tokens = rows.into_iter().map(|row| (row.id, row)).collect();
        directory
    }

    fn shown(token: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        headers
    }

    /// The bearers of the five tokens, nobody, and the owner.
    fn everybody() -> Vec<Principal> {
        let directory = directory();
        let mut all: Vec<Principal> = (1..=5)
            .map(|number| {
                principal(&Entrance::Cluster, &shown(&token(number).reveal()), &directory, NOW_MS).unwrap()
            })
            .collect();
        all.push(principal(&Entrance::Cluster, &HeaderMap::new(), &directory, NOW_MS).unwrap());
        all.push(principal(&Entrance::Socket, &HeaderMap::new(), &directory, NOW_MS).unwrap());
        all
    }

    #[test]
    fn every_endpoint_takes_the_roles_of_this_table_and_no_others() {
        // viewer, submitter, tenant-admin, operator, auditor, nobody, owner: y for an answer, n for 401, . for 403.
        let table: &[(&str, &[&str])] = &[
            (
                "yyyyyny",
                &[
                    "get /v1/jobs",
                    "get /v1/jobs/{id}",
                    "get /v1/jobs/{id}/tasks",
                    "get /v1/jobs/{id}/events",
                    "get /v1/tasks",
                    "get /v1/tasks/{id}",
                    "get /v1/tasks/{id}/result",
                    "get /v1/tasks/{id}/logs",
                    "get /v1/tasks/{id}/outputs/{number}",
                    "get /v1/tasks/{id}/proof",
                    "get /v1/tasks/{id}/explain",
                    "get /v1/events",
                    "get /v1/cluster/root",
                    "get /openapi.json",
                    "get /v1/tenants",
                    "get /v1/tenants/{name}",
                ],
            ),
            (
                ".yyy.ny",
                &[
                    "post /v1/jobs",
                    "post /v1/tasks",
                    "post /v1/tasks/stream",
                    "post /v1/jobs/{id}/rerun",
                    "post /v1/jobs/{id}/cancel",
                    "post /v1/jobs/{id}/timeout",
                    "post /v1/tasks/{id}/cancel",
                    "post /v1/tasks/{id}/timeout",
                    "post /v1/blobs",
                    "post /v1/blobs/missing",
                ],
            ),
            ("..yy.ny", &["get /v1/tokens", "post /v1/tokens", "delete /v1/tokens/{id}"]),
            ("...yyny", &["get /v1/cluster", "get /v1/nodes", "get /v1/nodes/{id}"]),
            (
                "...y.ny",
                &[
                    "post /v1/tenants",
                    "post /v1/tenants/{name}/quota",
                    "post /v1/tenants/{name}/suspend",
                    "post /v1/tenants/{name}/resume",
                    "post /v1/join-tokens",
                    "post /v1/nodes/{id}/block",
                    "post /v1/nodes/{id}/unblock",
                    "post /v1/nodes/{id}/remove",
                    "get /v1/cluster/snapshot",
                    "post /v1/nodes/{id}/cordon",
                    "post /v1/nodes/{id}/uncordon",
                    "post /v1/nodes/{id}/quarantine",
                    "post /v1/nodes/{id}/release",
                    "post /v1/cluster/transfer",
                    "post /v1/cluster/upgrade",
                    "post /v1/cluster/authority/request",
                    "post /v1/cluster/authority",
                ],
            ),
            (".....ny", &["post /v1/cluster/shutdown"]),
            ("yyyyyyy", &["get /health/live", "get /health/ready"]),
        ];
        let mut seen = 0;
        for (expected, endpoints) in table {
            for name in *endpoints {
                let (method, path) = name.split_once(' ').unwrap();
                let found = ENDPOINTS.iter().find(|one| one.method == method && one.path == path);
                let endpoint = found.unwrap_or_else(|| panic!("{name} is not in the table of endpoints"));
                let outcome = |principal: &Principal| match allow(&Entrance::Cluster, principal, endpoint) {
                    Ok(()) => 'y',
                    Err(problem) if problem.code == ErrorCode::Unauthorized => 'n',
                    Err(problem) => {
                        assert_eq!(problem.status, 403);
                        '.'
                    }
                };
                let found: String = everybody().iter().map(outcome).collect();
                assert_eq!(&found, expected, "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, ENDPOINTS.len(), "an endpoint that stands here does not need to be guessed");
    }

    #[test]
    fn what_is_a_tenant_s_is_seen_by_it_and_by_who_is_of_no_tenant() {
        let scopes: Vec<Scope> = everybody().iter().map(Principal::scope).collect();
        let of = |tenant| -> String {
            scopes.iter().map(|scope| if scope.has(tenant) { 'y' } else { '.' }).collect()
        };
        // viewer, submitter, tenant-admin, operator, auditor, nobody, owner
        assert_eq!((of(OWN).as_str(), of(OTHER).as_str()), ("yyyyy.y", "...yy.y"));
        for (role, tenant) in [(Role::Viewer, None), (Role::Operator, Some(OWN))] {
            let wrong = Principal::Bearer { token: token(9).id(), name: String::new(), role, tenant };
            assert_eq!(wrong.scope(), Scope::Nothing);
            assert!(behalf(&directory(), &wrong, None).is_err());
        }
    }

    #[test]
    fn a_token_that_is_unknown_revoked_expired_or_malformed_is_nobody_s() {
        let directory = directory();
        let refused =
            |text: &str| principal(&Entrance::Cluster, &shown(text), &directory, NOW_MS).unwrap_err();
        for (text, says) in [
            (token(9).reveal(), "revoked"),
            (token(6).reveal(), "expired"),
            (String::new(), "revoked"),
            (token(4).reveal().replacen("grey", "gray", 1), "revoked"),
            (format!("{}x", token(4).reveal()), "revoked"),
        ] {
            let problem = refused(&text);
            assert_eq!(problem.status, 401);
            assert!(problem.detail.contains(says), "{}", problem.detail);
        }
        assert_eq!(refused(&token(6).reveal()).detail, "the token expired at 1970-01-01T00:00:01.000Z");
        let mut basic = HeaderMap::new();
        basic.insert(header::AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(principal(&Entrance::Cluster, &basic, &directory, NOW_MS).unwrap_err().status, 401);
        // The token of a local cluster's loopback interface is good there only.
        let loopback = Entrance::Loopback { token: "local".to_owned() };
        assert_eq!(principal(&loopback, &shown("local"), &directory, NOW_MS), Ok(Principal::Owner));
        assert_eq!(refused("local").status, 401);
        let bearer = principal(&loopback, &shown(&token(1).reveal()), &directory, NOW_MS).unwrap();
        assert_eq!(bearer.scope(), Scope::Only(OWN));
    }

    #[test]
    fn a_request_is_for_the_token_s_tenant_and_only_who_runs_the_cluster_names_another() {
        let (directory, all) = (directory(), everybody());
        let (submitter, operator) = (&all[1], &all[3]);
        for (principal, named, expected) in [
            (submitter, None, Ok("own")),
            (submitter, Some("own"), Ok("own")),
            (submitter, Some("other"), Err(ErrorCode::UnknownTenant)),
            (submitter, Some("nobody"), Err(ErrorCode::UnknownTenant)),
            (operator, None, Ok("default")),
            (operator, Some("other"), Ok("other")),
            (operator, Some("nobody"), Err(ErrorCode::UnknownTenant)),
            (operator, Some("asleep"), Err(ErrorCode::TenantSuspended)),
        ] {
            let found = behalf(&directory, principal, named);
            let found = found.as_ref().map(|found| found.tenant.as_str()).map_err(|problem| problem.code);
            assert_eq!(found, expected, "{named:?}");
        }
        assert_eq!(behalf(&directory, submitter, None).unwrap().submitter, "s");
        // What a tenant is told of another is what it is told of none.
        let told = |named| behalf(&directory, submitter, Some(named)).unwrap_err();
        let (other, none) = (told("other"), told("nobody"));
        assert_eq!(other.detail.replace("other", "nobody"), none.detail);
        assert_eq!(other.hint, none.hint);
        assert!(!none.hint.unwrap().contains("other"));
    }

    #[test]
    fn a_listing_is_about_the_principal_s_tenants() {
        let (directory, all) = (directory(), everybody());
        let (viewer, auditor) = (&all[0], &all[4]);
        assert_eq!(listed(&directory, viewer, None), Ok(Scope::Only(OWN)));
        assert_eq!(listed(&directory, auditor, None), Ok(Scope::All));
        assert_eq!(listed(&directory, auditor, Some("other")), Ok(Scope::Only(OTHER)));
        assert_eq!(listed(&directory, viewer, Some("other")).unwrap_err().status, 404);
    }

    #[test]
    fn a_route_that_is_not_in_the_table_is_refused_whatever_would_answer_it() {
        assert!(endpoint(&Method::GET, Some("/v1/jobs")).is_ok());
        assert!(endpoint(&Method::HEAD, Some("/v1/jobs")).is_ok());
        assert_eq!(endpoint(&Method::GET, Some("/v1/debug")).unwrap_err().status, 404);
        assert_eq!(endpoint(&Method::GET, None).unwrap_err().status, 404);
        assert_eq!(endpoint(&Method::DELETE, Some("/v1/jobs")).unwrap_err().status, 405);
        assert_eq!(endpoint(&Method::OPTIONS, Some("/v1/jobs")).unwrap_err().status, 405);
    }

    #[test]
    fn whatever_a_path_names_of_a_tenant_s_is_known_to_belong_to_it() {
        for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path.contains("{id}")) {
            let is_work = matches!(endpoint.needs, Right::ReadWork | Right::ChangeWork);
            assert_eq!(is_work, endpoint.subject() != Subject::Nothing, "{}", endpoint.path);
        }
    }
}
