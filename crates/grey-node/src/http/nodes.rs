//! Nodes of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use grey_api::{ErrorCode, NodeList, NodeStatus, Problem};
use grey_core::{
    Command, CordonNode, NodeRole, NodeRow, NodeStanding, NodeVersion, SetNodeStanding, SetQuarantine,
    WorkerId,
};
use grey_proof::Digest;

use super::reply::{Refusal, json};
use super::tokens::one_of;
use crate::handle::Node;

/// What the state knows of a worker of a node.
#[derive(Clone)]
struct Announced {
    worker: WorkerId,
    presence: &'static str,
    health: &'static str,
    held: u32,
    shut_executors: Vec<String>,
}

fn status(
    row: &NodeRow,
    version: Option<&NodeVersion>,
    leader: u64,
    announced: Option<&Announced>,
) -> NodeStatus {
    NodeStatus {
        id: row.node.to_string(),
        name: row.name.clone(),
        role: row.role.name().to_owned(),
        standing: row.standing.name().to_owned(),
        cordoned: row.cordoned,
        server: row.server,
        leads: leader != 0 && row.server == Some(leader),
        address: Some(row.address.clone()).filter(|address| !address.is_empty()),
        version: version.map(|version| version.name.clone()),
        feature_level: version.map(|version| version.understands),
        tier: row.tier.name().to_owned(),
        admitted_at_ms: row.admitted_wall_ms,
        worker: announced.map(|announced| announced.worker.to_string()),
        presence: announced.map(|announced| announced.presence.to_owned()),
        health: announced.map(|announced| announced.health.to_owned()),
        held: announced.map(|announced| announced.held),
        shut_executors: announced.map(|announced| announced.shut_executors.clone()).unwrap_or_default(),
    }
}

/// Every node as the state has it now, servers first, and what it says of itself.
pub(super) async fn all(node: &Node) -> Result<Vec<(Digest, NodeStatus)>, Problem> {
    let found = node.ask(|replica| {
        let state = replica.state();
        let announced = state.workers().iter().map(|(id, worker)| {
            let (presence, health) = (worker.presence.name(), worker.quarantine.standing.name());
            let breakers = state.breakers(*id).into_iter().flat_map(|row| &row.executors);
            let shut = breakers.filter(|breaker| breaker.is_shut());
            let shut_executors = shut.map(|breaker| breaker.executor.name().to_owned()).collect();
            (worker.node, Announced { worker: *id, presence, health, held: worker.held, shut_executors })
        });
        let announced: BTreeMap<Digest, Announced> = announced.collect();
        let mut rows: Vec<&NodeRow> = state.nodes().collect();
        rows.sort_by_key(|row| (row.role != NodeRole::Server, row.server, row.name.clone(), row.node));
        let leader = replica.leader();
        let shown = rows.into_iter().map(|row| {
            let (version, announced) = (state.version_of(&row.node), announced.get(&row.node));
            (row.node, status(row, version, leader, announced))
        });
        shown.collect::<Vec<_>>()
    });
    found.await
}

/// The node of an identity, of the beginning of one, or of a name that only one has.
pub(super) fn find<'a>(
    all: &'a [(Digest, NodeStatus)],
    text: &str,
) -> Result<&'a (Digest, NodeStatus), Problem> {
    let mut named = all.iter().filter(|(_, status)| status.name == text);
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => {
            let shown: String = text.chars().take(64).collect();
            let detail = format!("`{shown}` is the name of several nodes");
            Err(Problem::new(ErrorCode::InvalidRequest, detail).field("id").hint("give its identity"))
        }
        (None, _) => one_of(all, text, "node", |(digest, _)| *digest),
    }
}

/// `GET /v1/nodes`.
pub(crate) async fn list(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    json(&NodeList { nodes: all(&node).await?.into_iter().map(|(_, status)| status).collect() })
}

/// `GET /v1/nodes/{id}`.
pub(crate) async fn show(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<Response, Refusal> {
    json(&find(&all(&node).await?, &id)?.1)
}

async fn set_standing(node: &Node, id: &str, standing: NodeStanding) -> Result<Response, Refusal> {
    let digest = find(&all(node).await?, id)?.0;
    node.propose(Command::SetNodeStanding(SetNodeStanding { node: digest, standing })).await?;
    json(&find(&all(node).await?, &digest.to_string())?.1)
}

/// `POST /v1/nodes/{id}/block`.
pub(crate) async fn block(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_standing(&node, &id, NodeStanding::Blocked).await
}

/// `POST /v1/nodes/{id}/unblock`.
pub(crate) async fn unblock(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_standing(&node, &id, NodeStanding::Admitted).await
}

/// `POST /v1/nodes/{id}/remove`.
pub(crate) async fn remove(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_standing(&node, &id, NodeStanding::Leaving).await
}

/// A server does nothing that it could be spared by a cordon or a quarantine.
fn is_worker(status: &NodeStatus) -> Result<(), Problem> {
    if status.server.is_none() {
        return Ok(());
    }
    Err(Problem::new(ErrorCode::Conflict, "it is a server, and no tasks run on servers").field("id").hint(
        "`grey cluster transfer` has another server lead; `grey node remove NAME` takes this one out of the cluster",
    ))
}

/// Changes a worker, and shows it as it is then.
async fn change_worker(
    node: &Node,
    id: &str,
    change: impl FnOnce(Digest) -> Command,
) -> Result<Response, Refusal> {
    let (digest, status) = find(&all(node).await?, id)?.clone();
    is_worker(&status)?;
    node.propose(change(digest)).await?;
    json(&find(&all(node).await?, &digest.to_string())?.1)
}

async fn set_cordoned(node: &Node, id: &str, cordoned: bool) -> Result<Response, Refusal> {
    change_worker(node, id, |node| Command::CordonNode(CordonNode { node, cordoned })).await
}

/// `POST /v1/nodes/{id}/cordon`.
pub(crate) async fn cordon(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_cordoned(&node, &id, true).await
}

/// `POST /v1/nodes/{id}/uncordon`.
pub(crate) async fn uncordon(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_cordoned(&node, &id, false).await
}

async fn set_quarantined(node: &Node, id: &str, quarantined: bool) -> Result<Response, Refusal> {
    change_worker(node, id, |node| Command::SetQuarantine(SetQuarantine { node, quarantined })).await
}

/// `POST /v1/nodes/{id}/quarantine`.
pub(crate) async fn quarantine(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_quarantined(&node, &id, true).await
}

/// `POST /v1/nodes/{id}/release`.
pub(crate) async fn release(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    set_quarantined(&node, &id, false).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::Tier;

    fn row(number: u8, name: &str, server: Option<u64>) -> NodeRow {
        NodeRow {
            node: Digest([number; 32]),
            public_key: [number; 32],
            tls_key: Digest([number; 32]),
            name: name.to_owned(),
            role: if server.is_some() { NodeRole::Server } else { NodeRole::Worker },
            server,
            address: if server.is_some() { "a:1".to_owned() } else { String::new() },
            tier: Tier::Software,
            serial: 1,
            evidence: Digest([0; 32]),
            certificates: Vec::new(),
            admitted_wall_ms: 1,
            standing: NodeStanding::Admitted,
            cordoned: false,
        }
    }

    #[test]
    fn a_node_is_found_by_its_name_or_the_beginning_of_its_identity() {
        let rows = [row(0x11, "s1", Some(1)), row(0x22, "w", None), row(0x33, "w", None)];
        let all: Vec<(Digest, NodeStatus)> =
            rows.iter().map(|row| (row.node, status(row, None, 1, None))).collect();
        let found =
            |text: &str| find(&all, text).map(|(digest, _)| digest.0[0]).map_err(|problem| problem.status);
        assert_eq!(
            (found("s1"), found("22222222"), found("w"), found("x")),
            (Ok(0x11), Ok(0x22), Err(400), Err(404))
        );
    }

    #[test]
    fn a_node_is_shown_with_what_it_said_of_itself() {
        let announced = Announced {
            worker: WorkerId(7),
            presence: "present",
            health: "suspect",
            held: 3,
            shut_executors: vec!["process".to_owned()],
        };
        let worker = status(&row(1, "w", None), None, 1, Some(&announced));
        assert_eq!((worker.address, worker.leads, worker.held), (None, false, Some(3)));
        assert_eq!(worker.shut_executors, ["process"]);
        assert_eq!(
            (worker.presence.as_deref(), worker.health.as_deref()),
            (Some("present"), Some("suspect"))
        );
        let server = status(&row(1, "s", Some(2)), None, 2, None);
        assert_eq!((server.address.as_deref(), server.leads, server.worker), (Some("a:1"), true, None));
        assert!(!status(&row(1, "s", Some(2)), None, 0, None).leads);
        let cordoned = NodeRow { cordoned: true, ..row(1, "w", None) };
        assert!(status(&cordoned, None, 1, None).cordoned && !worker.cordoned);
    }

    #[test]
    fn a_server_is_not_cordoned_and_what_to_do_instead_is_said() {
        assert!(is_worker(&status(&row(1, "w", None), None, 1, None)).is_ok());
        let refused = is_worker(&status(&row(1, "s", Some(1)), None, 1, None)).unwrap_err();
        let hint = refused.hint.unwrap();
        assert!(hint.contains("grey cluster transfer") && hint.contains("grey node remove"), "{hint}");
    }
}
