//! Tenants.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use grey_api::{
    ErrorCode, Problem, QuotaRequest, SubmissionRate, TenantDefaults, TenantList, TenantQuota, TenantRequest,
    TenantStatus,
};
use grey_core::{
    Command, CreateTenant, QuotaRow, RateLimit, Resources, SetTenantQuota, SetTenantSuspended, TaskDefaults,
    Tenant, TenantId,
};

use super::access::{Principal, Scope, unknown_tenant};
use super::reply::{Refusal, json, parse, whole};
use crate::handle::Node;

/// The longest name of a tenant, in bytes: it may stand in names of hosts and of files.
const LONGEST_NAME_BYTES: usize = 63;

fn shown(row: &QuotaRow) -> TenantQuota {
    let rate = row
        .quota
        .rate
        .map(|rate| SubmissionRate { tasks_per_second: rate.tasks_per_second, burst_tasks: rate.burst });
    TenantQuota { queued_tasks: row.quota.queued_tasks, rate }
}

fn status(tenant: &Tenant, quota: Option<&QuotaRow>) -> TenantStatus {
    let TaskDefaults { resources, timeout_ms, output_limit_bytes, priority } = tenant.defaults;
    TenantStatus {
        name: tenant.name.as_ref().to_owned(),
        suspended: tenant.suspended,
        weight_milli: tenant.weight_milli,
        defaults: TenantDefaults {
            cpu_millicores: resources.cpu_millicores,
            memory_bytes: resources.memory_bytes,
            disk_bytes: resources.disk_bytes,
            timeout_ms,
            output_limit_bytes,
            priority,
        },
        queued_tasks: tenant.queued_tasks,
        held_tasks: tenant.held_tasks,
        used_cpu_millicores: tenant.usage.cpu_millicores,
        used_memory_bytes: tenant.usage.memory_bytes,
        quota: quota.map(shown).unwrap_or_default(),
    }
}

/// The tenants of a scope as the state has them now, by name.
async fn of_scope(node: &Node, scope: Scope) -> Result<Vec<TenantStatus>, Problem> {
    let found = node.ask(move |replica| {
        let state = replica.state();
        let tenants = state.tenants().iter().filter(|(id, _)| scope.has(**id));
        tenants.map(|(id, tenant)| status(tenant, state.quota(*id))).collect::<Vec<_>>()
    });
    let mut found = found.await?;
    found.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(found)
}

async fn named(node: &Node, principal: &Principal, name: &str) -> Result<TenantStatus, Refusal> {
    let found = of_scope(node, principal.scope()).await?.into_iter().find(|tenant| tenant.name == name);
    found.ok_or_else(|| Refusal(unknown_tenant(&node.directory(), principal, Some(name))))
}

/// `GET /v1/tenants`.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, Refusal> {
    json(&TenantList { tenants: of_scope(&node, principal.scope()).await? })
}

/// `GET /v1/tenants/{name}`.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    json(&named(&node, &principal, &name).await?)
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = !name.starts_with('-') && !name.ends_with('-');
    (1..=LONGEST_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain) && ends
}

/// `POST /v1/tenants`.
pub(crate) async fn create(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let request: TenantRequest = parse(&whole(body)?, "the tenant")?;
    if !is_name(&request.name) {
        let detail =
            "a tenant's name has 1 to 63 lower-case letters, digits and hyphens, and no hyphen at an end";
        let problem = Problem::new(ErrorCode::OutOfBounds, detail).field("name");
        return Err(Refusal(problem.limit(LONGEST_NAME_BYTES as u64)));
    }
    if node.directory().tenants.contains_key(&request.name) {
        let detail = format!("there is a tenant `{}` already", request.name);
        return Err(Refusal(Problem::new(ErrorCode::Conflict, detail).field("name")));
    }
    let TenantDefaults { cpu_millicores, memory_bytes, disk_bytes, timeout_ms, output_limit_bytes, priority } =
        request.defaults;
    let defaults = TaskDefaults {
        resources: Resources { cpu_millicores, memory_bytes, disk_bytes },
        timeout_ms,
        output_limit_bytes,
        priority,
    };
    let name = request.name.clone();
    let command = CreateTenant { name: request.name, defaults, weight_milli: request.weight_milli };
    node.propose(Command::CreateTenant(command)).await?;
    json(&named(&node, &principal, &name).await?)
}

fn id_of(node: &Node, principal: &Principal, name: &str) -> Result<TenantId, Refusal> {
    let directory = node.directory();
    let entry = directory.tenants.get(name);
    Ok(entry.ok_or_else(|| unknown_tenant(&directory, principal, Some(name)))?.id)
}

/// `POST /v1/tenants/{name}/quota`.
pub(crate) async fn quota(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let request: QuotaRequest = parse(&whole(body)?, "the quota")?;
    let tenant = id_of(&node, &principal, &name)?;
    let rate =
        |rate: SubmissionRate| RateLimit { tasks_per_second: rate.tasks_per_second, burst: rate.burst_tasks };
    let change = SetTenantQuota {
        tenant,
        weight_milli: request.weight_milli,
        queued_tasks: request.queued_tasks,
        rate: request.rate.map(|given| given.map(rate)),
    };
    node.propose(Command::SetTenantQuota(change)).await?;
    json(&named(&node, &principal, &name).await?)
}

async fn set_suspended(
    node: &Node,
    principal: &Principal,
    name: &str,
    suspended: bool,
) -> Result<Response, Refusal> {
    let tenant = id_of(node, principal, name)?;
    node.propose(Command::SetTenantSuspended(SetTenantSuspended { tenant, suspended })).await?;
    json(&named(node, principal, name).await?)
}

/// `POST /v1/tenants/{name}/suspend`.
pub(crate) async fn suspend(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    set_suspended(&node, &principal, &name, true).await
}

/// `POST /v1/tenants/{name}/resume`.
pub(crate) async fn resume(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    set_suspended(&node, &principal, &name, false).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tenants_are_plain() {
        for good in ["a", "team-1", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "-a", "a-", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
