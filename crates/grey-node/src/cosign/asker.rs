//! The side that asks. A checkpoint that others signed is used again for a moment, so that many proofs at once ask once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use grey_api::Problem;
use grey_core::NodeRow;
use grey_proof::{Certificate, Digest, Envelope, LogTree, ProofError, Role, SignedCheckpoint, VerifyingKey};
use grey_wire::CosignReply;
use tokio::sync::Mutex;

use crate::directory::ServerPlace;
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
    /// Whether a proof of what stands at a position may rest on it, however long the log is by now.
    fn is_fresh(&self, position: u64, now: Instant) -> bool {
        position < self.size && now.saturating_duration_since(self.made) < FRESH
    }

    /// Whether a proof of what stands at a position may rest on it.
    fn serves(&self, log: &LogTree, position: u64, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.made);
        let is_same = self.is_whole && (self.size, self.root) == (log.size(), log.root());
        self.is_fresh(position, now) || (position < self.size && is_same && age < KEPT)
    }
}

/// What was signed last, for all that need it.
#[derive(Default)]
struct Last(Mutex<Option<Arc<Checkpoint>>>);

impl Last {
    /// A checkpoint that covers a position: the last one, or another one of the log as it is when it is this one's turn to ask.
    async fn checkpoint<L, A>(
        &self,
        position: u64,
        log: impl FnOnce() -> L,
        ask: impl FnOnce(LogTree) -> A,
    ) -> Result<Arc<Checkpoint>, Problem>
    where
        L: Future<Output = Result<LogTree, Problem>>,
        A: Future<Output = Result<Checkpoint, Problem>>,
    {
        // Whoever comes meanwhile waits, and mostly finds what it needs.
        let mut last = self.0.lock().await;
        if let Some(found) = last.as_ref().filter(|found| found.is_fresh(position, Instant::now())) {
            return Ok(found.clone());
        }
        // Not looked at before: it then has what everybody else who waits by now needs, so that one question is enough for all.
        let log = log().await?;
        if let Some(found) = last.as_ref().filter(|found| found.serves(&log, position, Instant::now())) {
            return Ok(found.clone());
        }
        let made = Arc::new(ask(log).await?);
        *last = Some(made.clone());
        Ok(made)
    }
}

/// Servers that did not answer in time. They go on being asked, and are not waited for until they have signed again.
#[derive(Default)]
struct Silent(std::sync::Mutex<BTreeMap<u64, Asked>>);

/// Whether a silent server is being asked: once at a time is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Now,
    Before,
}

/// Who is asked, and who of them is waited for.
#[derive(Debug, PartialEq, Eq)]
struct Round {
    asked: BTreeSet<u64>,
    awaited: BTreeSet<u64>,
}

impl Silent {
    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to ask the other voters: all, where without the silent ones there is no quorum.
    fn begin(&self, voters: &[u64], own: u64) -> Round {
        let mut known = self.known();
        let others: BTreeSet<u64> = voters.iter().copied().filter(|number| *number != own).collect();
        known.retain(|number, _| others.contains(number));
        let awaited: BTreeSet<u64> =
            others.iter().copied().filter(|number| !known.contains_key(number)).collect();
        let are_needed = awaited.len().saturating_add(1) < quorum(voters);
        let asked = others.into_iter().filter(|number| match known.get_mut(number) {
            None => true,
            Some(asked) => core::mem::replace(asked, Asked::Now) == Asked::Before || are_needed,
        });
        Round { asked: asked.collect(), awaited }
    }

    /// What has become of asking one: whether it answered at all in time, and signed.
    fn end(&self, number: u64, is_in_time: bool, has_signed: bool) {
        let mut known = self.known();
        if has_signed {
            known.remove(&number);
        } else if !is_in_time {
            known.insert(number, Asked::Before);
        } else if let Some(asked) = known.get_mut(&number) {
            *asked = Asked::Before;
        }
    }
}

fn quorum(voters: &[u64]) -> usize {
    voters.len() / 2 + 1
}

/// Ways to the servers that vote, and what they signed last.
pub(crate) struct Cosigners {
    servers: Arc<Servers>,
    own: u64,
    last: Last,
    silent: Arc<Silent>,
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
        Cosigners { servers: Arc::new(servers), own, last: Last::default(), silent: Arc::default() }
    }

    /// A checkpoint of the log that covers a position, signed by this server and by as many of the other voters as sign it in time.
    pub(crate) async fn checkpoint(&self, node: &Node, position: u64) -> Result<Arc<Checkpoint>, Problem> {
        self.last
            .checkpoint(position, || current_log(node), |log| async move { self.ask(node, &log).await })
            .await
    }

    async fn ask(&self, node: &Node, log: &LogTree) -> Result<Checkpoint, Problem> {
        let voters = node.ask(|replica| replica.membership().voters).await?;
        let (directory, places) = (node.directory(), self.servers.places());
        let (size, root) = (log.size(), log.root());
        let Round { asked, awaited } = self.silent.begin(&voters, self.own);
        let answers: FuturesUnordered<_> = directory
            .nodes()
            .filter_map(|row| {
                let number = row.server.filter(|number| asked.contains(number))?;
                let place = places.iter().find(|place| place.number == number).cloned();
                Some(self.answer(row.clone(), number, place, size, root))
            })
            .collect();
        let (mut signed, certificate) = own(node, log);
        let trusted = Trusted {
            cluster: node.signing.cluster,
            roots: node.signing.root.verifying_keys().unwrap_or_default(),
            issuers: issuers(node),
        };
        let mut servers = vec![certificate];
        gather(answers, &trusted, (quorum(&voters), awaited), &mut signed, &mut servers).await;
        Ok(checkpoint(log, &signed, servers, trusted.issuers, voters.len()))
    }

    /// What a server answers. It is asked whether or not somebody waits for that to its end, so that it is known whether it answers.
    fn answer(
        &self,
        row: NodeRow,
        number: u64,
        place: Option<ServerPlace>,
        size: u64,
        root: Digest,
    ) -> impl Future<Output = (NodeRow, io::Result<CosignReply>)> + use<> {
        let (servers, silent) = (self.servers.clone(), self.silent.clone());
        let asked = tokio::spawn(async move {
            let answer = async {
                let place = place.ok_or_else(|| io::Error::other("where it is is not known"))?;
                servers.cosign(&place, size, root).await
            };
            let answer = tokio::time::timeout(COSIGN_WITHIN, answer).await;
            silent.end(number, answer.is_ok(), matches!(answer, Ok(Ok(_))));
            answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        async move { (row, asked.await.unwrap_or_else(|error| Err(io::Error::other(error)))) }
    }
}

/// The log as this server has applied it.
pub(crate) async fn current_log(node: &Node) -> Result<LogTree, Problem> {
    node.view(|state| state.meta().log.clone()).await
}

/// What a certificate must lead to.
struct Trusted {
    cluster: Digest,
    roots: Vec<VerifyingKey>,
    issuers: Vec<Envelope>,
}

/// Takes signatures as they come, until everybody has answered that is waited for and a quorum has signed, or it takes too long.
async fn gather(
    mut answers: impl Stream<Item = (NodeRow, io::Result<CosignReply>)> + Unpin,
    trusted: &Trusted,
    (quorum, mut awaited): (usize, BTreeSet<u64>),
    signed: &mut SignedCheckpoint,
    servers: &mut Vec<Envelope>,
) {
    let mut deadline = tokio::time::Instant::now() + COSIGN_WITHIN;
    while servers.len() < quorum || !awaited.is_empty() {
        let Ok(Some((row, answer))) = tokio::time::timeout_at(deadline, answers.next()).await else { return };
        row.server.map(|number| awaited.remove(&number));
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
