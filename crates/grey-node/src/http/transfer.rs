//! Another server is to lead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use grey_api::{ErrorCode, LeadershipTransferred, NodeStatus, Problem, TransferRequest};
use grey_replica::{NoSuccessor, ReplicaError};

use super::nodes::{all, find};
use super::reply::{Refusal, json, parse, whole};
use crate::handle::{Node, not_leading};

/// Within which time another server must lead.
const LEADS_WITHIN: Duration = Duration::from_secs(10);
/// For how long a server that is asked to lead may fail to, before it is asked again: longer than an election takes.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// For how long a server may lack what was committed last, or seem out of touch: under load every follower does for a moment, and the engine
/// begins to count anew at every election time-out who has answered.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The number of the server that was named.
fn number(servers: &[NodeStatus], text: &str) -> Option<u64> {
    let mut named = servers.iter().filter(|node| node.name == text).filter_map(|node| node.server);
    let named = match (named.next(), named.next()) {
        // Whoever is meant by it has to be said otherwise.
        (Some(_), Some(_)) => return None,
        (named, _) => named,
    };
    let numbered = text.parse().ok().filter(|number| servers.iter().any(|node| node.server == Some(*number)));
    named.or(numbered)
}

/// Which server is to lead, where one is named.
async fn named(node: &Node, text: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let all = all(node).await?;
    let servers: Vec<NodeStatus> = all.iter().map(|(_, status)| status.clone()).collect();
    if let Some(number) = number(&servers, text) {
        return Ok(Some(number));
    }
    match find(&all, text)?.1.server {
        Some(number) => Ok(Some(number)),
        None => Err(Problem::new(ErrorCode::Conflict, "it is a worker, and only servers lead").field("to")),
    }
}

/// Asks another server to lead, and gives it a moment to catch up.
async fn ask(node: &Node, to: Option<u64>) -> Result<u64, ReplicaError> {
    let begun = Instant::now();
    loop {
        match node.hand_over(to).await {
            Err(ReplicaError::NoSuccessor(reason))
                if !matches!(reason, NoSuccessor::DoesNotVote(_)) && begun.elapsed() < CATCHES_UP_WITHIN =>
            {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// Hands leadership on and says who leads then.
async fn transfer(node: &Node, to: Option<u64>) -> Result<u64, Problem> {
    let (begun, mut role) = (Instant::now(), node.role.clone());
    while begun.elapsed() < LEADS_WITHIN {
        let asked = match ask(node, to).await {
            Ok(asked) if asked == node.server => return Ok(asked),
            // That it leads no longer shows below, where it is this request's doing.
            Err(ReplicaError::NotLeader { .. }) => None,
            asked => Some(asked.map_err(|error| not_leading(&error))?),
        };
        let within = ASK_AGAIN.min(LEADS_WITHIN.saturating_sub(begun.elapsed()));
        let another = role.wait_for(|role| !role.leads && ![0, node.server].contains(&role.leader));
        if let Ok(Ok(role)) = tokio::time::timeout(within, another).await {
            return Ok(role.leader);
        }
        tracing::info!(?asked, "the server that was asked to lead does not");
    }
    let waited_s = LEADS_WITHIN.as_secs();
    Err(Problem::new(ErrorCode::Conflict, format!("no other server led within {waited_s} s"))
        .hint("`grey node list` says who leads and who can be reached"))
}

/// `POST /v1/cluster/transfer`.
pub(crate) async fn leadership(
    State(node): State<Arc<Node>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let request: TransferRequest = parse(&whole(body)?, "")?;
    let to = named(&node, request.to.as_deref()).await?;
    let leader = transfer(&node, to).await?;
    if let Some(to) = to.filter(|to| *to != leader) {
        // An election came between.
        let detail = format!("server {leader} leads now, and not server {to}");
        return Err(Refusal(Problem::new(ErrorCode::Conflict, detail).hint("ask again")));
    }
    let directory = node.directory();
    let name = directory.nodes().find(|row| row.server == Some(leader)).map(|row| row.name.clone());
    json(&LeadershipTransferred { leader, name: name.unwrap_or_default(), before: node.server })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_before_it_is_numbered() {
        let server = |name: &str, server: Option<u64>| NodeStatus {
            id: String::new(),
            name: name.to_owned(),
            role: String::new(),
            standing: String::new(),
            cordoned: false,
            server,
            leads: false,
            address: None,
            version: None,
            feature_level: None,
            tier: String::new(),
            admitted_at_ms: 0,
            worker: None,
            presence: None,
            health: None,
            held: None,
            shut_executors: Vec::new(),
        };
        let servers = [server("s1", Some(1)), server("1", Some(2)), server("w", None)];
        let found = ["s1", "1", "2", "3", "w", "x"].map(|text| number(&servers, text));
        assert_eq!(found, [Some(1), Some(2), Some(2), None, None, None]);
        // A name of several is nobody's, and a worker's is no server's.
        let servers = [server("w", None), server("s", Some(1)), server("s", Some(2)), server("w", Some(3))];
        assert_eq!(["s", "w"].map(|text| number(&servers, text)), [None, Some(3)]);
    }
}
