//! The client API over HTTP. Handlers check, ask and answer; what happens is decided in the core.

mod access;
mod authority;
mod blobs;
mod bulk;
mod cluster;
mod events;
mod flow;
mod forward;
mod guard;
mod jobs;
mod linger;
mod logs;
mod nodes;
mod paced;
mod reply;
mod request_id;
mod rerun;
mod session;
mod snapshot;
mod submit;
mod tasks;
mod tenants;
mod tokens;
mod transfer;
mod upgrade;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use grey_api::{ErrorCode, Problem};

use crate::handle::Node;
pub(crate) use access::Scope;
pub(crate) use bulk::batches;
pub(crate) use forward::Forwarder;
use guard::{Entrance, Keeper, guard};
use reply::Refusal;
pub(crate) use submit::submissions;

/// The most bytes of a request's body: a submission's JSON is several times its encoded size.
pub(crate) const REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// The routes behind one entrance.
fn routes(node: Arc<Node>, entrance: Entrance) -> Router {
    let api = Router::new()
        .route("/v1/jobs", post(submit::job).get(jobs::list))
        .route("/v1/tasks", post(submit::tasks).get(tasks::list))
        .route(bulk::PATH, post(bulk::stream))
        .route("/v1/jobs/{id}", get(jobs::show))
        .route("/v1/jobs/{id}/tasks", get(jobs::tasks))
        .route("/v1/jobs/{id}/events", get(events::of_job))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/timeout", post(jobs::timeout))
        .route("/v1/jobs/{id}/rerun", post(rerun::rerun))
        .route("/v1/tasks/{id}", get(tasks::show))
        .route("/v1/tasks/{id}/explain", get(tasks::explain))
        .route("/v1/tasks/{id}/result", get(tasks::result))
        .route("/v1/tasks/{id}/logs", get(logs::logs))
        .route("/v1/tasks/{id}/outputs/{number}", get(tasks::output))
        .route("/v1/tasks/{id}/proof", get(tasks::proof))
        .route("/v1/tasks/{id}/cancel", post(tasks::cancel))
        .route("/v1/tasks/{id}/timeout", post(tasks::timeout))
        .route(blobs::PATH, post(blobs::create))
        .route("/v1/blobs/missing", post(blobs::missing))
        .route("/v1/events", get(events::all))
        .route("/v1/tenants", get(tenants::list).post(tenants::create))
        .route("/v1/tenants/{name}", get(tenants::show))
        .route("/v1/tenants/{name}/quota", post(tenants::quota))
        .route("/v1/tenants/{name}/suspend", post(tenants::suspend))
        .route("/v1/tenants/{name}/resume", post(tenants::resume))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/v1/join-tokens", post(tokens::create_join))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{id}", get(nodes::show))
        .route("/v1/nodes/{id}/block", post(nodes::block))
        .route("/v1/nodes/{id}/unblock", post(nodes::unblock))
        .route("/v1/nodes/{id}/cordon", post(nodes::cordon))
        .route("/v1/nodes/{id}/uncordon", post(nodes::uncordon))
        .route("/v1/nodes/{id}/quarantine", post(nodes::quarantine))
        .route("/v1/nodes/{id}/release", post(nodes::release))
        .route("/v1/nodes/{id}/remove", post(nodes::remove))
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/root", get(cluster::root))
        .route("/v1/cluster/snapshot", get(snapshot::take))
        .route("/v1/cluster/transfer", post(transfer::leadership))
        .route("/v1/cluster/upgrade", post(upgrade::raise))
        .route("/v1/cluster/authority/request", post(authority::request))
        .route("/v1/cluster/authority", post(authority::follow))
        .route("/v1/cluster/shutdown", post(cluster::shutdown))
        .route("/openapi.json", get(cluster::openapi))
        .route("/health/live", get(cluster::live))
        .route("/health/ready", get(cluster::ready))
        // The guard refuses what is no endpoint before anything is asked for an answer.
        .fallback(|| async { Refusal(Problem::new(ErrorCode::NotFound, "there is no such endpoint")) })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(node.clone());
    let keeper = Arc::new(Keeper { entrance, node });
    api.layer(axum::middleware::from_fn_with_state(keeper, guard))
        .layer(axum::middleware::map_request(linger::linger))
}

/// Routes for the unix socket: its permissions say who may speak.
pub(crate) fn for_socket(node: Arc<Node>) -> Router {
    routes(node, Entrance::Socket)
}

/// Routes for the loopback interface: a token says who may speak.
pub(crate) fn for_loopback(node: Arc<Node>, token: String) -> Router {
    routes(node, Entrance::Loopback { token })
}

/// Routes for every server of a cluster, behind its TLS listener: tokens of the cluster say who may do what, and the leader answers.
pub(crate) fn for_cluster(node: Arc<Node>) -> Router {
    routes(node, Entrance::Cluster)
}
