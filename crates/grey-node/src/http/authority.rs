//! The next issuing key: it is made here, certified where the root key is, and agreed on.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use grey_api::{ErrorCode, IssuingKeyAsked, IssuingKeyCertified, IssuingKeyStatus, Problem};
use grey_core::{AUTHORITY_LEVEL, Command, Rejection, SetIssuingAuthority};
use grey_proof::Digest;
use grey_trust::{CertifiedIssuer, from_pem, pem};

use super::reply::{Refusal, json, parse, whole};
use crate::clock::wall_ms;
use crate::error::NodeError;
use crate::handle::{Node, rejected};
use crate::identity::random;
use crate::issuing::{Issuing, kept};

/// How long this server may take to issue with the key that it made, once that is agreed on.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

fn issuing(node: &Node) -> Result<Arc<Issuing>, Problem> {
    node.issuing.clone().ok_or_else(|| {
        Problem::new(
            ErrorCode::InvalidRequest,
            "a local cluster has no issuing key: its root certifies all it needs",
        )
    })
}

/// What the state says as of everything that was committed before.
struct Agreed {
    feature_level: u16,
    follows: Option<Digest>,
    voters: Vec<u64>,
}

async fn agreed(node: &Node) -> Result<Agreed, Problem> {
    let found = node.ask(|replica| {
        let state = replica.state();
        let current = state.issuing_authority().and_then(|row| row.current.as_ref());
        Agreed {
            feature_level: state.feature_level(),
            follows: current.map(|current| current.issuer),
            voters: replica.membership().voters,
        }
    });
    let agreed = found.await?;
    if agreed.feature_level < AUTHORITY_LEVEL {
        let (needed, in_force) = (AUTHORITY_LEVEL, agreed.feature_level);
        return Err(rejected(&Rejection::FeatureLevel { needed, in_force }));
    }
    Ok(agreed)
}

fn failed(error: &NodeError) -> Problem {
    match error {
        NodeError::NotAsked | NodeError::Trust(_) => Problem::new(ErrorCode::Conflict, error.to_string()),
        _ => Problem::new(ErrorCode::Internal, error.to_string()).hint("see the server's log"),
    }
}

/// `POST /v1/cluster/authority/request`.
pub(crate) async fn request(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    let issuing = issuing(&node)?;
    agreed(&node).await?;
    if !issuing.may_make() {
        let detail = "the server that leads is on its way out of the cluster, and would know the key";
        return Err(Refusal(
            Problem::new(ErrorCode::Conflict, detail).hint("ask again once another one leads"),
        ));
    }
    let asked = issuing.ask(random().map_err(|error| failed(&error))?);
    json(&IssuingKeyAsked {
        cluster: node.signing.cluster.to_string(),
        public_key: Digest(asked.key.to_bytes()).to_string(),
        serial: asked.serial,
        root_certificate: pem(&asked.root),
    })
}

/// `POST /v1/cluster/authority`.
pub(crate) async fn follow(
    State(node): State<Arc<Node>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let certified: IssuingKeyCertified = parse(&whole(body)?, "what the root key has certified")?;
    let issuing_der = from_pem(&certified.certificate)
        .map_err(|error| Problem::new(ErrorCode::InvalidRequest, error.to_string()).field("certificate"))?;
    let certified = CertifiedIssuer { issuing: issuing_der, issuer: certified.issuer };
    // Whoever asked may go away in the middle, and the next one must still wait until it is known what became of it.
    let task = tokio::spawn(async move { set(&node, certified).await });
    let set = task.await.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
    json(&set?)
}

async fn set(node: &Node, certified: CertifiedIssuer) -> Result<IssuingKeyStatus, Problem> {
    let issuing = issuing(node)?;
    let _one_at_a_time = issuing.following.lock().await;
    // A key that a leader of before proposed is current by now, or never will be.
    let Agreed { follows, voters, .. } = agreed(node).await?;
    let next = issuing.certified(certified).await.map_err(|error| failed(&error))?;
    let have = issuing.spread(&next).await;
    let have = voters.iter().filter(|voter| have.contains(voter)).count();
    if have <= voters.len() / 2 {
        let detail = format!(
            "{have} of {} server(s) that vote have taken the next issuing key, and a majority must have it before it is current; nothing was changed",
            voters.len()
        );
        return Err(Problem::new(ErrorCode::Unavailable, detail)
            .hint("see that the servers reach one another, and run `grey cluster rekey` again"));
    }
    let own = node.signing.certified().issuers.first().cloned();
    let previous = issuing.certificate().or(own).as_ref().map(kept).transpose();
    let certificate = next.authority().certificate();
    let command = SetIssuingAuthority {
        follows,
        previous: previous.map_err(|error| failed(&error))?,
        issuer: kept(next.authority().issuer()).map_err(|error| failed(&error))?,
        serial: certificate.serial,
        not_after_wall_ms: certificate.not_after_ms,
        wall_ms: wall_ms(),
    };
    node.propose(Command::SetIssuingAuthority(command)).await?;
    issuing.settled(SETTLED_WITHIN).await;
    issuing.status().ok_or_else(|| Problem::new(ErrorCode::Internal, "the server lost the issuing key"))
}
