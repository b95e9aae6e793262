//! The cluster, its root, its health, its end.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use grey_api::{ClusterStatus, DeviceStatus, ErrorCode, Problem, WorkerStatus};
use grey_core::WorkerDevices;
use grey_replica::Replica;

use super::jobs::Parameters;
use super::reply::{Refusal, json, typed, value};
use crate::control::Role;
use crate::handle::Node;

/// How many entries a server may be behind what is committed, and still be ready.
const READY_BEHIND: u64 = 1_000;

fn devices(kind: &WorkerDevices) -> (String, DeviceStatus) {
    (kind.name.clone(), DeviceStatus { count: kind.count, asked_for: kind.charged })
}

/// `GET /v1/cluster`.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Query(query): Query<Parameters>,
) -> Result<Response, Refusal> {
    let stale = query.get("stale").map(|text| value::<bool>("stale", text)).transpose()?.unwrap_or(false);
    let identity = (node.signing.cluster, node.signing.root.class.name());
    let data_dir = node.data_dir.display().to_string();
    let refusing = node.disk.refusal().map(|problem| problem.detail);
    let (retention, server) = (node.keeping.status(&node.records), node.server);
    let (ended, pressure) = (node.rate.in_last_minute(), node.pressure.level().name().to_owned());
    let issuing = node.issuing.clone();
    let question = move |replica: &Replica| {
        let state = replica.state();
        let mut membership = replica.membership();
        membership.voters.sort_unstable();
        membership.learners.sort_unstable();
        let meta = state.meta();
        let workers = state.workers().iter().map(|(id, worker)| WorkerStatus {
            id: id.to_string(),
            node: worker.node.to_string(),
            name: worker.name.as_ref().to_owned(),
            sandbox: worker.sandbox.name().to_owned(),
            presence: worker.presence.name().to_owned(),
            held: worker.held,
            slots: worker.slots,
            cpu_millicores: worker.capacity.cpu_millicores,
            memory_bytes: worker.capacity.memory_bytes,
            asked_cpu_millicores: worker.charged.cpu_millicores,
            asked_memory_bytes: worker.charged.memory_bytes,
            tier: worker.tier.name().to_owned(),
            labels: worker.labels.iter().cloned().collect(),
            devices: worker.devices.iter().map(devices).collect(),
        });
        ClusterStatus {
            cluster: identity.0.to_string(),
            class: identity.1.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server,
            leader: Some(replica.leader()).filter(|leader| *leader != 0),
            term: replica.term(),
            voters: membership.voters,
            learners: membership.learners,
            feature_level: state.feature_level(),
            understood_by_all: state.understood_by_all(),
            issuing_key: issuing.as_ref().and_then(|issuing| issuing.status()),
            applied_index: state.applied_index(),
            state_hash: state.hash().to_string(),
            reports: meta.log.size(),
            jobs_submitted: meta.jobs_submitted,
            tasks_submitted: meta.tasks_submitted,
            jobs_live: state.jobs().len() as u64,
            stale_placements: meta.stale_placements,
            refused_results: meta.refused_results,
            attempts_ended_in_last_minute: ended,
            pressure,
            refusing,
            retention,
            workers: workers.collect(),
            data_dir,
            process_id: std::process::id(),
        }
    };
    json(&if stale { node.look(question).await? } else { node.ask(question).await? })
}

/// `GET /v1/cluster/root`.
pub(crate) async fn root(State(node): State<Arc<Node>>) -> Response {
    typed("application/json", node.signing.root.encode())
}

/// `POST /v1/cluster/shutdown`.
pub(crate) async fn shutdown(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    node.shutdown.notify_one();
    json(&serde_json::json!({ "stopping": true }))
}

/// `GET /openapi.json`.
pub(crate) async fn openapi() -> Result<Response, Refusal> {
    json(&grey_api::openapi())
}

/// `GET /health/live`.
pub(crate) async fn live() -> Response {
    typed("text/plain", "live\n")
}

/// `GET /health/ready`: whether requests that come here are answered. Whoever does not lead passes them on.
pub(crate) async fn ready(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    let role = *node.role.borrow();
    let (applied, committed) =
        node.look(|replica| (replica.state().applied_index(), replica.commit_index())).await?;
    not_ready(role, applied, committed).map_or(Ok(()), Err)?;
    match node.disk.refusal() {
        Some(problem) => Err(Refusal(problem)),
        None => Ok(typed("text/plain", "ready\n")),
    }
}

/// Why a server is not ready, if it is not.
fn not_ready(role: Role, applied_index: u64, commit_index: u64) -> Option<Refusal> {
    let unavailable =
        |detail: String| Some(Refusal(Problem::new(ErrorCode::Unavailable, detail).retry_after_ms(200)));
    if !role.leads && role.leader == 0 {
        return unavailable("no server leads, as far as this one knows".to_owned());
    }
    let behind = commit_index.saturating_sub(applied_index);
    if behind > READY_BEHIND {
        return unavailable(format!("this server is {behind} entries behind; {READY_BEHIND} is the most"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_that_leads_or_follows_closely() {
        let role = |leads, leader| Role { leads, leader };
        for (role, applied_index, commit_index, ready) in [
            (role(true, 1), 10, 10, true),
            (role(false, 2), 10, 10, true),
            (role(false, 2), 10, 10 + READY_BEHIND, true),
            (role(false, 2), 10, 11 + READY_BEHIND, false),
            (role(false, 0), 10, 10, false),
        ] {
            assert_eq!(not_ready(role, applied_index, commit_index).is_none(), ready, "{role:?}");
        }
    }
}
