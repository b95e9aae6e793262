//! The cluster, its root, its health, its end.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use grey_api::{ClusterStatus, DeviceStatus, ErrorCode, Problem, WorkerStatus};
use grey_core::WorkerDevices;

use super::reply::{Refusal, json, typed};
use crate::handle::Node;

fn devices(kind: &WorkerDevices) -> (String, DeviceStatus) {
    (kind.name.clone(), DeviceStatus { count: kind.count, asked_for: kind.charged })
}

/// `GET /v1/cluster`.
pub(crate) async fn show(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    let identity = (node.identity.cluster(), node.identity.root.class.name());
    let data_dir = node.data_dir.display().to_string();
    let refusing = node.disk.refusal().map(|problem| problem.detail);
    let retention = node.keeping.status(&node.records);
    let status = node
        .ask(move |replica| {
            let state = replica.state();
            let meta = state.meta();
            let workers = state.workers().iter().map(|(id, worker)| WorkerStatus {
                id: id.to_string(),
                node: worker.node.to_string(),
                name: worker.name.as_ref().to_owned(),
                sandbox: worker.sandbox.name().to_owned(),
                held: worker.held,
                slots: worker.slots,
                cpu_millicores: worker.capacity.cpu_millicores,
                memory_bytes: worker.capacity.memory_bytes,
                tier: worker.tier.name().to_owned(),
                labels: worker.labels.iter().cloned().collect(),
                devices: worker.devices.iter().map(devices).collect(),
            });
            ClusterStatus {
                cluster: identity.0.to_string(),
                class: identity.1.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                server: crate::local::SERVER,
                leader: replica.leader(),
                term: replica.term(),
                applied_index: state.applied_index(),
                state_hash: state.hash().to_string(),
                reports: meta.log.size(),
                jobs_submitted: meta.jobs_submitted,
                tasks_submitted: meta.tasks_submitted,
                jobs_live: state.jobs().len() as u64,
                stale_placements: meta.stale_placements,
                refused_results: meta.refused_results,
                refusing,
                retention,
                workers: workers.collect(),
                data_dir,
                process_id: std::process::id(),
            }
        })
        .await?;
    json(&status)
}

/// `GET /v1/cluster/root`.
pub(crate) async fn root(State(node): State<Arc<Node>>) -> Response {
    typed("application/json", node.identity.root.encode())
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

/// `GET /health/ready`.
pub(crate) async fn ready(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    if !node.role.borrow().leads {
        return Err(Refusal(
            Problem::new(ErrorCode::Unavailable, "the node does not lead").retry_after_ms(200),
        ));
    }
    match node.disk.refusal() {
        Some(problem) => Err(Refusal(problem)),
        None => Ok(typed("text/plain", "ready\n")),
    }
}
