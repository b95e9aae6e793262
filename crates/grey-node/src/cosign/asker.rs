//! The side that asks. A checkpoint that others signed is used again for a moment, so that many proofs at once ask once.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use grey_api::Problem;
use grey_core::NodeRow;
use grey_proof::{Certificate, Digest, Envelope, LogTree, ProofError, Role, SignedCheckpoint, VerifyingKey};
use grey_wire::CosignReply;
use tokio::sync::Mutex;

use crate::handle::Node;
use crate::plane::Servers;
use crate::prover::{issuers, needed};

/// Within which time the others must have signed. One that has not by then is absent from the proof, and the proof is made.
const COSIGN_WITHIN: Duration = Duration::from_secs(2);
/// How much longer the rest is waited for once a quorum has signed.
const REST_WITHIN: Duration = Duration::from_millis(200);
/// For so long a checkpoint is good for every proof of what it covers, though the log has grown since.
const FRESH: Duration = Duration::from_secs(1);
/// For so long it is used again while the log has not grown and all voters have signed it. Certificates are renewed meanwhile.
const KEPT: Duration = Duration::from_secs(60);
/// Issuers of the servers' certificates in one proof: with the worker's there are fewer than a verifier takes.
const MOST_SERVER_ISSUERS: usize = 6;
const _: () = assert!(MOST_SERVER_ISSUERS < grey_proof::MOST_ISSUERS);

/// What servers have signed of the log.
pub(crate) struct Checkpoint {
    /// Leaves in the log.
    pub(crate) size: u64,
    /// The root over them.
    pub(crate) root: Digest,
    /// The signed note.
    pub(crate) note: String,
    /// Certificates of those who signed it, in the order of their signatures.
    pub(crate) servers: Vec<Envelope>,
    /// What signed these certificates, where the root did not.
    pub(crate) issuers: Vec<Envelope>,
    /// Whether all voters have signed.
    is_whole: bool,
    made: Instant,
}

impl Checkpoint {
    /// Whether a proof of what stands at a position may rest on it.
    fn serves(&self, log: &LogTree, position: u64, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.made);
        let is_same = self.is_whole && (self.size, self.root) == (log.size(), log.root());
        position < self.size && (age < FRESH || (is_same && age < KEPT))
    }
}

/// Ways to the servers that vote, and what they signed last.
pub(crate) struct Cosigners {
    servers: Servers,
    own: u64,
    last: Mutex<Option<Arc<Checkpoint>>>,
}

/// What this server signs by itself.
fn own(node: &Node, log: &LogTree) -> (SignedCheckpoint, Envelope) {
    let mut checkpoint = SignedCheckpoint::new(node.signing.cluster, log.size(), log.root());
    checkpoint.sign(&node.signing.server_key);
    (checkpoint, node.signing.certified().server_certificate.clone())
}

fn checkpoint(
    log: &LogTree,
    signed: &SignedCheckpoint,
    servers: Vec<Envelope>,
    issuers: Vec<Envelope>,
    voters: usize,
) -> Checkpoint {
    let issuers = needed(issuers, &servers.iter().collect::<Vec<_>>());
    Checkpoint {
        issuers,
        size: log.size(),
        root: log.root(),
        note: signed.encode(),
        is_whole: servers.len() >= voters,
        servers,
        made: Instant::now(),
    }
}

/// The checkpoint of a cluster of one process: nobody else could sign it.
pub(crate) fn alone(node: &Node, log: &LogTree) -> Arc<Checkpoint> {
    let (signed, certificate) = own(node, log);
    Arc::new(checkpoint(log, &signed, vec![certificate], issuers(node), 1))
}

impl Cosigners {
    pub(crate) fn new(servers: Servers, own: u64) -> Cosigners {
        Cosigners { servers, own, last: Mutex::default() }
    }

    /// A checkpoint of the log that covers a position, signed by this server and by as many of the other voters as sign it in time.
    pub(crate) async fn checkpoint(
        &self,
        node: &Node,
        log: &LogTree,
        position: u64,
    ) -> Result<Arc<Checkpoint>, Problem> {
        // Whoever comes meanwhile waits, and mostly finds what it needs.
        let mut last = self.last.lock().await;
        if let Some(found) = last.as_ref().filter(|found| found.serves(log, position, Instant::now())) {
            return Ok(found.clone());
        }
        let made = Arc::new(self.ask(node, log).await?);
        *last = Some(made.clone());
        Ok(made)
    }

    async fn ask(&self, node: &Node, log: &LogTree) -> Result<Checkpoint, Problem> {
        let voters = node.ask(|replica| replica.membership().voters).await?;
        let (directory, places) = (node.directory(), self.servers.places());
        let (size, root) = (log.size(), log.root());
        let asked: FuturesUnordered<_> = directory
            .nodes()
            .filter(|row| row.server.is_some_and(|number| number != self.own && voters.contains(&number)))
            .filter_map(|row| {
                let place = places.iter().find(|place| Some(place.number) == row.server)?.clone();
                let row = row.clone();
                Some(async move { (row, self.servers.cosign(&place, size, root).await) })
            })
            .collect();
        let (mut signed, certificate) = own(node, log);
        let trusted = Trusted {
            cluster: node.signing.cluster,
            roots: node.signing.root.verifying_keys().unwrap_or_default(),
            issuers: issuers(node),
        };
        let mut servers = vec![certificate];
        gather(asked, &trusted, voters.len() / 2 + 1, &mut signed, &mut servers).await;
        Ok(checkpoint(log, &signed, servers, trusted.issuers, voters.len()))
    }
}

/// What a certificate must lead to.
struct Trusted {
    cluster: Digest,
    roots: Vec<VerifyingKey>,
    issuers: Vec<Envelope>,
}

/// Takes signatures as they come, until everybody has answered or it takes too long.
async fn gather(
    mut answers: impl Stream<Item = (NodeRow, io::Result<CosignReply>)> + Unpin,
    trusted: &Trusted,
    quorum: usize,
    signed: &mut SignedCheckpoint,
    servers: &mut Vec<Envelope>,
) {
    let mut deadline = tokio::time::Instant::now() + COSIGN_WITHIN;
    while let Ok(Some((row, answer))) = tokio::time::timeout_at(deadline, answers.next()).await {
        let taken = answer
            .map_err(|error| error.to_string())
            .and_then(|reply| trusted.take(&row, &reply, signed, servers).map_err(|error| error.to_string()));
        if let Err(reason) = taken {
            // A server of an earlier version does not know the question, and is as good as absent.
            tracing::debug!(server = row.server, reason, "a server does not cosign");
        }
        if servers.len() == quorum {
            deadline = deadline.min(tokio::time::Instant::now() + REST_WITHIN);
        }
    }
}

impl Trusted {
    /// Adds a server's signature, if a verifier will take it: one that does not hold would spoil the whole proof.
    fn take(
        &self,
        row: &NodeRow,
        reply: &CosignReply,
        signed: &mut SignedCheckpoint,
        servers: &mut Vec<Envelope>,
    ) -> Result<(), ProofError> {
        let unreadable = |reason: &str| ProofError::Unreadable {
            expected: "a server's signature of the log",
            reason: reason.to_owned(),
        };
        let envelope: Envelope = serde_json::from_slice(&reply.certificate)
            .map_err(|error| unreadable(&format!("its certificate: {error}")))?;
        let vouching = needed(self.issuers.clone(), &[&envelope]);
        let certificate = Certificate::open_issued(&envelope, &self.roots, &vouching)?;
        let is_it = certificate.role == Role::Server
            && certificate.cluster == self.cluster
            && certificate.node_id == row.node
            && certificate.public_key.to_bytes() == row.public_key;
        if !is_it {
            return Err(unreadable("its certificate is not that of the server that was asked"));
        }
        let all: Vec<&Envelope> = servers.iter().chain([&envelope]).collect();
        if needed(self.issuers.clone(), &all).len() > MOST_SERVER_ISSUERS {
            return Err(unreadable("there are too many issuers for one proof"));
        }
        let before = signed.signature_count();
        signed.add(&certificate.public_key, &reply.signature)?;
        if signed.signature_count() > before {
            servers.push(envelope);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
