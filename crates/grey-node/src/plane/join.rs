//! How a node enters the cluster, and how it gets another certificate: hello, challenge, evidence, accept or reject.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use grey_core::{
    AdmitNode, Answer, Command, NewNode, NodeRole, NodeStanding, Presence, RenewNode, State, Tier,
};
use grey_proof::{Certificate, Digest, Envelope, SigningKey, VerifyingKey};
use grey_replica::{Replica, ReplicaError};
use grey_trust::join::{
    Accept, Challenge, Hello, JoinMessage as Said, Policy, Reject, RejectCode, ServerAddress, appraise,
    binding, software_evidence,
};
use grey_trust::{JoinToken, certificate_request, tls_key, tls_key_of_seed};
use grey_wire::JoinMessage;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::dial::{Dialled, Dialler};
use super::listen::Connection;
use crate::clock::wall_ms;
use crate::control::{Message, Outcome, Role};
use crate::directory::Directory;
use crate::error::NodeError;
use crate::identity::random;
use crate::issuing::{Issuing, kept};

/// How long a challenge may be answered.
const CHALLENGE: Duration = Duration::from_secs(60);
/// How long either side waits for a message that needs no thought.
const MESSAGE: Duration = Duration::from_secs(10);
/// The version of this handshake.
const VERSION: u32 = 1;

/// Lets nodes in, while this server leads.
pub(crate) struct Admission {
    cluster: Digest,
    control: Sender<Message>,
    directory: watch::Receiver<Arc<Directory>>,
    role: watch::Receiver<Role>,
    issuing: Arc<Issuing>,
    policy: Policy,
    /// Held from looking at what names are taken until a node has its own.
    naming: Mutex<()>,
}

fn reject(code: RejectCode, detail: impl ToString) -> Reject {
    Reject { code, detail: detail.to_string(), leader: None }
}

fn internal(detail: impl ToString) -> Reject {
    reject(RejectCode::Unavailable, detail)
}

/// What the cluster knows of who asks.
enum Asking {
    /// Nothing but this token.
    Joining(Digest),
    /// It belongs to the cluster.
    Renewing(Digest),
}

impl Admission {
    pub(crate) fn new(
        cluster: Digest,
        control: Sender<Message>,
        directory: watch::Receiver<Arc<Directory>>,
        role: watch::Receiver<Role>,
        issuing: Arc<Issuing>,
    ) -> Admission {
        Admission {
            cluster,
            control,
            directory,
            role,
            issuing,
            policy: Policy::default(),
            naming: Mutex::new(()),
        }
    }

    /// Answers a node that wants to enter.
    pub(crate) fn join(
        self: Arc<Self>,
        connection: Connection,
        stream: Streaming<JoinMessage>,
    ) -> ReceiverStream<Result<JoinMessage, Status>> {
        self.converse(connection, stream, false)
    }

    /// Answers a node of the cluster that wants another certificate.
    pub(crate) fn renew(
        self: Arc<Self>,
        connection: Connection,
        stream: Streaming<JoinMessage>,
    ) -> ReceiverStream<Result<JoinMessage, Status>> {
        self.converse(connection, stream, true)
    }

    fn converse(
        self: Arc<Self>,
        connection: Connection,
        mut stream: Streaming<JoinMessage>,
        renews: bool,
    ) -> ReceiverStream<Result<JoinMessage, Status>> {
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            let answer = match self.decide(&connection, &mut stream, &sender, renews).await {
                Ok(accept) => Said::Accept(accept),
                Err(reject) => {
                    tracing::info!(remote = %connection.remote, code = ?reject.code, detail = reject.detail, "a node is not let in");
                    Said::Reject(reject)
                }
            };
            // Who asked may be gone.
            drop(sender.send(Ok(JoinMessage { body: answer.encode().into() })).await);
        });
        ReceiverStream::new(receiver)
    }

    async fn decide(
        &self,
        connection: &Connection,
        stream: &mut Streaming<JoinMessage>,
        sender: &mpsc::Sender<Result<JoinMessage, Status>>,
        renews: bool,
    ) -> Result<Accept, Reject> {
        let Said::Hello(hello) = next(stream, MESSAGE).await? else {
            return Err(reject(RejectCode::Malformed, "the first message must be a hello"));
        };
        if hello.version != VERSION {
            let detail =
                format!("this server speaks version {VERSION} of joining, the node {}", hello.version);
            return Err(reject(RejectCode::Version, detail));
        }
        self.must_lead()?;
        let key = VerifyingKey::from_bytes(&hello.public_key)
            .map_err(|error| reject(RejectCode::Malformed, format!("the node's key: {error}")))?;
        let asking = self.asking(connection, &hello, &key, renews)?;
        let nonce = random().map_err(internal)?;
        let expires_ms = u64::try_from(CHALLENGE.as_millis()).unwrap_or(u64::MAX);
        let challenge = Challenge { nonce, expires_ms };
        let message = JoinMessage { body: Said::Challenge(challenge).encode().into() };
        sender.send(Ok(message)).await.map_err(|_| internal("the node is gone"))?;
        let Said::Evidence(evidence) = next(stream, CHALLENGE).await? else {
            return Err(reject(RejectCode::Malformed, "evidence is expected"));
        };
        let serial = u64::from_le_bytes(first_eight(&random().map_err(internal)?)) >> 12;
        let naming = match asking {
            Asking::Joining(_) => Some(self.naming.lock().await),
            Asking::Renewing(_) => None,
        };
        let known = self.known(key.id(), hello.name.clone()).await?;
        // Before the token is used up: it is good for a second try under another name.
        if let (Some(_), Some(namesake)) = (&naming, &known.namesake) {
            return Err(reject(RejectCode::Refused, namesake));
        }
        let (chain, leaf_key) = self.issue_tls(&hello, &key, serial, known.issuer)?;
        let bound = binding(&self.cluster, &nonce, &key.id(), &leaf_key, &connection.exporter);
        let appraisal = appraise(&self.policy, &evidence, &bound, &hello.public_key)
            .map_err(|code| reject(code, "the evidence is not taken"))?;
        let issued = self.issue_proof(&hello, &key, appraisal.tier, serial, &known)?;
        let certificate = (issued.id, issued.encoded.clone());
        let command = match asking {
            Asking::Joining(token) => Command::AdmitNode(AdmitNode {
                token,
                nonce,
                node: NewNode {
                    node: key.id(),
                    public_key: hello.public_key,
                    tls_key: leaf_key,
                    name: hello.name.clone(),
                    role: hello.role,
                    address: hello.address.clone(),
                    tier: appraisal.tier,
                    evidence: appraisal.evidence,
                    serial,
                    certificate,
                },
                wall_ms: wall_ms(),
            }),
            Asking::Renewing(node) => Command::RenewNode(RenewNode {
                node,
                nonce,
                tls_key: leaf_key,
                tier: appraisal.tier,
                evidence: appraisal.evidence,
                serial,
                certificate: issued.is_new.then_some(certificate),
                wall_ms: wall_ms(),
            }),
        };
        let server = self.propose(command).await?;
        drop(naming);
        let directory = self.directory.borrow().clone();
        let server = match server {
            Some(server) => Some(server),
            None => directory.node(&key.id()).and_then(|row| row.server),
        };
        let servers = directory.servers().map(|place| ServerAddress {
            number: place.number,
            address: place.address,
            tls_key: place.tls_key,
        });
        tracing::info!(node = %key.id(), name = hello.name, role = ?hello.role, remote = %connection.remote, renews, "a node is let in");
        Ok(Accept {
            cluster: self.cluster,
            server,
            tls_chain: chain,
            certificate: issued.encoded,
            issuer: issued.issuer,
            servers: servers.collect(),
            tier: appraisal.tier,
        })
    }

    fn must_lead(&self) -> Result<(), Reject> {
        let role = *self.role.borrow();
        if role.leads {
            return Ok(());
        }
        let directory = self.directory.borrow().clone();
        let leader = directory.servers().find(|place| place.number == role.leader).map(|place| place.address);
        Err(Reject { code: RejectCode::NotLeader, detail: "this server does not lead".to_owned(), leader })
    }

    fn asking(
        &self,
        connection: &Connection,
        hello: &Hello,
        key: &VerifyingKey,
        renews: bool,
    ) -> Result<Asking, Reject> {
        if !renews {
            let secret = hello.token.as_ref();
            let secret = secret.ok_or_else(|| reject(RejectCode::Token, "a join token is needed"))?;
            // Whether it is good the state says; asking earlier spares the node the rest of the handshake.
            let id = Digest::of(secret);
            return match self.directory.borrow().join_token(&id) {
                Some(row) if row.role == hello.role => Ok(Asking::Joining(id)),
                Some(_) => Err(reject(RejectCode::Token, "the join token is for another role")),
                None => Err(reject(RejectCode::Token, "the join token is unknown, used up or expired")),
            };
        }
        let directory = self.directory.borrow().clone();
        let row = connection.tls_key.and_then(|key| directory.node_of_key(&key).cloned());
        let row =
            row.ok_or_else(|| reject(RejectCode::Unknown, "the node does not belong to this cluster"))?;
        if row.standing == NodeStanding::Blocked {
            return Err(reject(RejectCode::Blocked, "the node is blocked"));
        }
        if row.node != key.id() || row.role != hello.role {
            return Err(reject(RejectCode::Unknown, "the node is another one"));
        }
        Ok(Asking::Renewing(row.node))
    }

    /// What the state knows, as of everything that was committed before.
    async fn known(&self, node: Digest, name: String) -> Result<Known, Reject> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |replica: Result<&Replica, ReplicaError>| {
            let known = replica.map(|replica| {
                let state = replica.state();
                let current = state.issuing_authority().and_then(|row| row.current.as_ref());
                let last = state.node(&node).and_then(|row| row.certificates.last());
                let last = last.and_then(|id| state.certificate(id)).map(|(_, bytes)| bytes.to_vec());
                let namesake = namesake(state, &node, &name);
                Known { issuer: current.map(|current| current.issuer), last, namesake }
            });
            // Who asked and is gone needs no answer.
            drop(reply.send(known));
        });
        self.control.send(Message::Ask(question)).map_err(|_| internal("the server is stopping"))?;
        answer.await.map_err(|_| internal("the server is stopping"))?.map_err(internal)
    }

    fn issue_tls(
        &self,
        hello: &Hello,
        key: &VerifyingKey,
        serial: u64,
        issuer: Option<Digest>,
    ) -> Result<(Vec<Vec<u8>>, Digest), Reject> {
        let host = hello.address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
        let addresses: Vec<String> = host.into_iter().filter(|host| !host.is_empty()).collect();
        let (request, node) = (&hello.certificate_request, key.id());
        let issued = self.issuing.with(issuer, |authority| {
            authority.issue_tls(request, &node, hello.role, &addresses, serial, wall_ms())
        });
        let chain = issued.map_err(internal)?.map_err(|error| reject(RejectCode::Malformed, error))?;
        let leaf = chain.first().ok_or_else(|| internal("no certificate was issued"))?;
        let leaf_key = tls_key(leaf).map_err(internal)?;
        Ok((chain, leaf_key))
    }

    /// A certificate of the node's proof key. It is good for as long as the issuing key, so that a node keeps the one that it has until that
    /// changes, or its tier does: what it has signed is proved with it, and only so many are kept of a node.
    fn issue_proof(
        &self,
        hello: &Hello,
        key: &VerifyingKey,
        tier: Tier,
        serial: u64,
        known: &Known,
    ) -> Result<Issued, Reject> {
        let last: Option<Envelope> = known.last.as_ref().and_then(|last| serde_json::from_slice(last).ok());
        let issued = self.issuing.with(known.issuer, |authority| {
            let issuer = authority.issuer().clone();
            match last.filter(|last| authority.vouches_for(last, tier)) {
                Some(last) => Ok((last, issuer, false)),
                None => {
                    let made = authority.issue_proof(key, hello.role, tier, serial, wall_ms());
                    made.map(|made| (made, issuer, true))
                }
            }
        });
        let (envelope, issuer, is_new) = issued.map_err(internal)?.map_err(internal)?;
        let (id, encoded) = kept(&envelope).map_err(internal)?;
        Ok(Issued { id, encoded, issuer: serde_json::to_vec(&issuer).map_err(internal)?, is_new })
    }

    async fn propose(&self, command: Command) -> Result<Option<u64>, Reject> {
        let (reply, answer) = oneshot::channel();
        let proposed = self.control.send(Message::Propose(command, Instant::now(), reply));
        proposed.map_err(|_| internal("the server is stopping"))?;
        match answer.await {
            Ok(Outcome::Applied(Ok(Answer::Admitted { server }), _)) => Ok(server),
            Ok(Outcome::Applied(Ok(_), _)) => Ok(None),
            Ok(Outcome::Applied(Err(rejection), _)) => Err(reject(RejectCode::Refused, rejection)),
            Ok(Outcome::Refused(error)) => Err(internal(error)),
            Ok(Outcome::Unknown) | Err(_) => Err(internal("leadership was lost meanwhile; ask again")),
        }
    }
}

struct Issued {
    id: Digest,
    encoded: Vec<u8>,
    issuer: Vec<u8>,
    /// Whether the state does not have it yet.
    is_new: bool,
}

/// What the state knows of the issuing key and of a node.
struct Known {
    /// The key that is current, where the state names one.
    issuer: Option<Digest>,
    /// The node's last certificate of its proof key.
    last: Option<Vec<u8>>,
    /// Why the node cannot have its name, if it cannot.
    namesake: Option<String>,
}

/// Why a node cannot have a name, if it cannot: people and their commands know nodes by it. A worker that is lost does not keep its name, since
/// one whose disk was lost with it enters anew under the same; a server that is away still votes, and has to be taken out first.
fn namesake(state: &State, node: &Digest, name: &str) -> Option<String> {
    let lost = |of: &Digest| {
        let worker = state.workers().iter().find(|(_, worker)| worker.node == *of);
        worker.is_some_and(|(_, worker)| worker.presence == Presence::Lost)
    };
    let taken = state.nodes().find(|row| {
        row.name == name && row.node != *node && row.standing != NodeStanding::Blocked && !lost(&row.node)
    });
    taken.map(|row| {
        format!(
            "the name {name} is that of a {} of the cluster already, node {}: choose another one with --name, or take that one out first \
             (`grey node remove`). The token was not used up",
            row.role.name(),
            row.node
        )
    })
}

fn first_eight(bytes: &[u8; 32]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    [a, b, c, d, e, f, g, h]
}

/// The digest by which reports name a certificate.
pub(crate) fn certificate_id(envelope: &Envelope) -> Result<Digest, NodeError> {
    Ok(Certificate::decode(&envelope.payload)?.id()?)
}

async fn next(stream: &mut Streaming<JoinMessage>, within: Duration) -> Result<Said, Reject> {
    match tokio::time::timeout(within, stream.message()).await {
        Ok(Ok(Some(message))) => {
            Said::decode(&message.body).map_err(|_| reject(RejectCode::Malformed, "a message cannot be read"))
        }
        Ok(Ok(None)) => Err(reject(RejectCode::Malformed, "the node left in the middle")),
        Ok(Err(status)) => Err(internal(status.message())),
        Err(_) => Err(reject(RejectCode::Expired, "the node took too long")),
    }
}

/// What a node says of itself when it enters, or asks for another certificate.
pub(crate) struct Joining {
    /// As what.
    pub(crate) role: NodeRole,
    /// Its name, for people.
    pub(crate) name: String,
    /// Where others dial it; empty for a worker.
    pub(crate) address: String,
    /// Signs its statements, and its evidence.
    pub(crate) key: SigningKey,
    /// Of its TLS key.
    pub(crate) tls_seed: [u8; 32],
    /// Digest of the running binary.
    pub(crate) measurement: Digest,
}

/// The servers' answer to a node.
pub(crate) enum Answered {
    Accepted(Box<Accept>),
    Rejected(Reject),
}

impl Joining {
    /// Asks one server. With a token the node enters; without, it belongs to the cluster and gets another certificate.
    pub(crate) async fn ask(
        &self,
        dialled: &Dialled,
        cluster: &Digest,
        token: Option<&JoinToken>,
    ) -> Result<Answered, String> {
        let request = certificate_request(&self.tls_seed).map_err(|error| error.to_string())?;
        let hello = Hello {
            version: VERSION,
            token: token.map(JoinToken::secret),
            certificate_request: request,
            public_key: self.key.verifying_key().to_bytes(),
            role: self.role,
            name: self.name.clone(),
            address: self.address.clone(),
        };
        let (sender, receiver) = mpsc::channel(2);
        let say = async |message: Said| {
            let message = JoinMessage { body: message.encode().into() };
            sender.send(message).await.map_err(|_| "the connection broke".to_owned())
        };
        say(Said::Hello(hello)).await?;
        let mut client = dialled.client.clone();
        let stream = ReceiverStream::new(receiver);
        let begun = match token {
            Some(_) => client.join(stream).await,
            None => client.renew(stream).await,
        };
        let mut answers = begun.map_err(|status| status.message().to_owned())?.into_inner();
        loop {
            let message = tokio::time::timeout(CHALLENGE, answers.message()).await;
            let message = message.map_err(|_| "no answer within 60 s".to_owned())?;
            let message = message.map_err(|status| status.message().to_owned())?;
            let message = message.ok_or_else(|| "the server said nothing more".to_owned())?;
            match Said::decode(&message.body).map_err(|_| "the server's answer cannot be read".to_owned())? {
                Said::Challenge(Challenge { nonce, .. }) => {
                    let leaf_key = tls_key_of_seed(&self.tls_seed);
                    let node = self.key.verifying_key().id();
                    let bound = binding(cluster, &nonce, &node, &leaf_key, &dialled.exporter);
                    let version = env!("CARGO_PKG_VERSION").to_owned();
                    say(Said::Evidence(software_evidence(&self.key, self.measurement, version, &bound)))
                        .await?;
                }
                Said::Accept(accept) => return Ok(Answered::Accepted(Box::new(accept))),
                Said::Reject(reject) => return Ok(Answered::Rejected(reject)),
                Said::Hello(_) | Said::Evidence(_) => {
                    return Err("the server's answer is out of order".to_owned());
                }
            }
        }
    }

    /// Enters the cluster through whichever of these servers leads.
    pub(crate) async fn enter(
        &self,
        dialler: &Dialler,
        addresses: &[String],
        token: &JoinToken,
    ) -> Result<Accept, NodeError> {
        let mut waiting: Vec<String> = addresses.iter().rev().cloned().collect();
        let (mut tried, mut reasons) = (0, Vec::new());
        // Each server may name another one as the leader, which changes now and then.
        while let Some(address) = waiting.pop().filter(|_| tried < addresses.len() + 8) {
            tried += 1;
            let answered = match dialler.dial(&address, None).await {
                Ok(dialled) => self.ask(&dialled, &token.cluster(), Some(token)).await,
                Err(error) => Err(error.to_string()),
            };
            match answered {
                Ok(Answered::Accepted(accept)) => return Ok(*accept),
                Ok(Answered::Rejected(Reject {
                    code: RejectCode::NotLeader, leader: Some(leader), ..
                })) => {
                    waiting.push(leader);
                }
                Ok(Answered::Rejected(Reject {
                    code: RejectCode::NotLeader | RejectCode::Unavailable,
                    detail,
                    ..
                }))
                | Err(detail) => reasons.push(format!("{address}: {detail}")),
                Ok(Answered::Rejected(reject)) => {
                    return Err(NodeError::NotAdmitted { server: address, reason: reject.detail });
                }
            }
        }
        Err(NodeError::NotJoined { reasons: reasons.join("; ") })
    }
}
