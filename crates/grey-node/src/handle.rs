//! What request handlers hold: ways to propose, to ask, to wait, and to read what has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use grey_agent::Executor;
use grey_api::{ErrorCode, Problem};
use grey_blob::BlobStore;
use grey_core::{
    Answer, Command, EntryError, Event, JobId, RateRefusal, Rejection, Resources, State, TaskId, TenantId,
};
use grey_health::{GateRefusal, Level, RefusalCode};
use grey_replica::{Replica, ReplicaError};
use grey_store::{StoreError, TreeFile};
use tokio::sync::{Notify, broadcast, oneshot, watch};

use crate::blobs::Blobs;
use crate::claims::Claims;
use crate::control::{Message, Outcome, Role};
use crate::cosign::Cosigners;
use crate::directory::Directory;
use crate::disk_room::DiskRoom;
use crate::http::{Forwarder, Scope};
use crate::identity::Signing;
use crate::issuing::Issuing;
use crate::items::ItemLists;
use crate::metrics::Meters;
use crate::places::{Bounds, Place, Places};
use crate::plane::Streams;
use crate::pressure::Pressure;
use crate::rate::EndRate;
use crate::records::Records;
use crate::retention::Keeping;
use crate::snapshot::SnapshotSource;
use crate::traces::Traces;

/// Uploads that are written at once; more wait for a moment and are then refused. They are no proposals, so the server's door does not
/// see them.
pub(crate) const UPLOADS: Bounds =
    Bounds { what: "uploads", at_once: 64, of_a_tenant: 16, wait: Duration::from_secs(5) };
/// Streams that stay open: events, logs that are followed, tasks one a line. What a stream costs while nothing happens is a look each second.
pub(crate) const HELD: Bounds =
    Bounds { what: "streams", at_once: 2_048, of_a_tenant: 256, wait: Duration::ZERO };
/// How long history may lag behind the state before a read gives up.
const HISTORY_WAIT: Duration = Duration::from_secs(30);

/// The parts of a running node.
pub(crate) struct Node {
    pub(crate) control: Sender<Message>,
    /// What snapshots are taken from.
    pub(crate) snapshots: SnapshotSource,
    pub(crate) kept: watch::Receiver<u64>,
    /// Who leads, as far as this server knows.
    pub(crate) role: watch::Receiver<Role>,
    /// Who may speak, and whom there is to speak to.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// This server's number.
    pub(crate) server: u64,
    /// The way to whoever leads, where that can be another server.
    pub(crate) forwarder: Option<Forwarder>,
    pub(crate) records: Records,
    pub(crate) tree: TreeFile,
    pub(crate) blobs: Arc<BlobStore>,
    /// The same, and ways to those of other servers.
    pub(crate) depot: Arc<Blobs>,
    /// Which tenant has sent which content.
    pub(crate) claims: Arc<Claims>,
    pub(crate) keeping: Arc<Keeping>,
    pub(crate) items: Arc<ItemLists>,
    /// What runs here, for those who follow it.
    pub(crate) process: Option<Arc<dyn Executor>>,
    /// What runs on other machines, where there are any.
    pub(crate) streams: Option<Arc<Streams>>,
    pub(crate) signing: Arc<Signing>,
    /// Those who sign the log's checkpoints with this server; nobody in a local cluster.
    pub(crate) cosigners: Option<Cosigners>,
    /// What issues certificates; nothing in a local cluster.
    pub(crate) issuing: Option<Arc<Issuing>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) rate: Arc<EndRate>,
    pub(crate) data_dir: PathBuf,
    pub(crate) shutdown: Notify,
    pub(crate) activity: Arc<Activity>,
    pub(crate) uploads: Places,
    /// Places for streams that stay open.
    pub(crate) held: Places,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) meters: Arc<Meters>,
    /// Where spans are told, if anywhere.
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) disk: Arc<DiskRoom>,
    /// What the only worker of a local cluster has: what exceeds it would wait for ever. Elsewhere a larger one may come.
    pub(crate) capacity: Option<Resources>,
}

/// When the node last had something to do for somebody.
pub(crate) struct Activity {
    begun: Instant,
    last_ms: AtomicU64,
    open: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Activity {
        Activity { begun: Instant::now(), last_ms: AtomicU64::new(0), open: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A request or a stream begins; it lasts until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> ActivityGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        ActivityGuard(self.clone())
    }

    /// How long nothing was open.
    pub(crate) fn idle(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }

    /// Counts as something to do.
    pub(crate) fn touch(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }
}

/// One open request.
pub(crate) struct ActivityGuard(Arc<Activity>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.touch();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn gone() -> Problem {
    Problem::new(ErrorCode::Unavailable, "the node is stopping")
        .hint("try again in a moment")
        .retry_after_ms(500)
}

pub(crate) fn not_leading(error: &ReplicaError) -> Problem {
    match error {
        ReplicaError::Entry(EntryError::TooLarge { limit_bytes, .. }) => {
            Problem::new(ErrorCode::TooLarge, error.to_string())
                .limit(*limit_bytes as u64)
                .hint("send it in parts; equal tasks are one task with a `count`")
        }
        ReplicaError::Door(refused) => at_the_door(&refused.refusal),
        ReplicaError::Rejected(rejection) => rejected(rejection),
        ReplicaError::NotLeader { .. } => Problem::new(ErrorCode::Unavailable, error.to_string())
            .hint("try again in a moment; another server may answer")
            .retry_after_ms(200),
        ReplicaError::Overloaded => {
            Problem::new(ErrorCode::Overloaded, error.to_string()).retry_after_ms(200)
        }
        ReplicaError::NoSuccessor(_) => Problem::new(ErrorCode::Conflict, error.to_string()),
        _ => Problem::new(ErrorCode::Internal, error.to_string()),
    }
}

/// A refusal by the door: 429 where the tenant is to blame, 503 where the node has too much of everybody's.
fn at_the_door(refusal: &GateRefusal) -> Problem {
    let GateRefusal { code, limit, usage, retry_after_ms } = *refusal;
    let (error, detail, hint) = match code {
        RefusalCode::Burst => (
            ErrorCode::BurstExceeded,
            format!("the submission has {usage} tasks; the tenant may submit {limit} at once"),
            "send it in parts",
        ),
        RefusalCode::Rate => (
            ErrorCode::RateExceeded,
            format!("the tenant submits too fast: {usage} of {limit} tasks at once are used up"),
            "submit more slowly, or in larger pauses",
        ),
        RefusalCode::Queue => (
            ErrorCode::QueueFull,
            format!("the tenant has {usage} tasks that wait; the limit is {limit}"),
            "wait until tasks of the tenant have ended",
        ),
        RefusalCode::Proposals
        | RefusalCode::ProposalBytes
        | RefusalCode::Delay
        | RefusalCode::Tenants
        | RefusalCode::Reads => {
            (ErrorCode::Overloaded, format!("{code}: {usage} of {limit}"), "what was accepted goes on")
        }
    };
    let problem = Problem::new(error, detail).limit(limit).usage(usage).hint(hint);
    match retry_after_ms {
        Some(retry_after_ms) => problem.retry_after_ms(retry_after_ms),
        None => problem,
    }
}

impl Node {
    /// Proposes a command and waits for what it came to.
    pub(crate) async fn propose(&self, command: Command) -> Result<Answer, Problem> {
        Ok(self.propose_at_level(command).await?.0)
    }

    /// Proposes a command, and says how full the door is for its tenant after it was applied.
    pub(crate) async fn propose_at_level(&self, command: Command) -> Result<(Answer, Level), Problem> {
        let (reply, answer) = oneshot::channel();
        self.control.send(Message::Propose(command, Instant::now(), reply)).map_err(|_| gone())?;
        match answer.await {
            Ok(Outcome::Applied(Ok(answer), level)) => Ok((answer, level)),
            Ok(Outcome::Applied(Err(rejection), _)) => Err(rejected(&rejection)),
            Ok(Outcome::Refused(error)) => Err(not_leading(&error)),
            Ok(Outcome::Unknown) | Err(_) => Err(Problem::new(
                ErrorCode::OutcomeUnknown,
                "the node lost track of the request; it may have happened",
            )
            .hint("send it again under the same Idempotency-Key")
            .retry_after_ms(500)),
        }
    }

    /// Asks the state, as of everything that was committed before.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Replica) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |replica: Result<&Replica, ReplicaError>| {
            let answer = replica.map(question);
            drop(reply.send(answer));
        });
        self.control.send(Message::Ask(question)).map_err(|_| gone())?;
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(not_leading(&error)),
            Err(_) => Err(gone()),
        }
    }

    /// Asks the state, then waits until history has everything that the state had let go of.
    pub(crate) async fn view<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (answer, index) =
            self.ask(move |replica| (question(replica.state()), replica.state().applied_index())).await?;
        let mut kept = self.kept.clone();
        let caught_up = kept.wait_for(|kept| *kept >= index);
        match tokio::time::timeout(HISTORY_WAIT, caught_up).await {
            Ok(Ok(_)) => Ok(answer),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(Problem::new(ErrorCode::Overloaded, "history lags behind").retry_after_ms(1_000)),
        }
    }

    /// Asks another server to lead, a certain one or any, and says which one was asked; it may yet fail to.
    pub(crate) async fn hand_over(&self, to: Option<u64>) -> Result<u64, ReplicaError> {
        let (reply, answer) = oneshot::channel();
        // A node that is stopping leads no longer.
        let gone = || ReplicaError::NotLeader { leader: 0 };
        self.control.send(Message::HandOver(to, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Waits until a job, or one task of it, has ended.
    pub(crate) async fn wait_ended(&self, job: JobId, task: Option<TaskId>, longest: Duration) {
        let (reply, ended) = oneshot::channel();
        if self.control.send(Message::Wait(job, task, reply)).is_ok() {
            // Whether it ended or time is up, the caller looks for itself.
            drop(tokio::time::timeout(longest, ended).await);
        }
    }

    /// Whether the disk has room for new work.
    pub(crate) fn must_have_room(&self) -> Result<(), Problem> {
        self.disk.refusal().map_or(Ok(()), Err)
    }

    /// A place among the uploads that are written, for somebody of a scope.
    pub(crate) async fn admit_upload(&self, scope: Scope) -> Result<Place, Problem> {
        self.must_have_room()?;
        self.uploads.take(scope).await
    }

    /// The name of a tenant.
    pub(crate) fn tenant_name(&self, id: TenantId) -> String {
        self.directory.borrow().tenant_name(id)
    }

    /// Whether this server answers what only the leader can; the only one of a local cluster always does.
    pub(crate) fn leads(&self) -> bool {
        self.forwarder.is_none() || self.role.borrow().leads
    }

    /// Who may speak, and whom there is to speak to, as of now.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.directory.borrow().clone()
    }

    /// Looks at the state as it is here, which may lag behind the leader's.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Replica) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        // Who asked and is gone needs no answer.
        let question = Box::new(move |replica: &Replica| drop(reply.send(question(replica))));
        self.control.send(Message::Look(question)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// A rejection by the state machine, as a client reads it.
pub(crate) fn rejected(rejection: &Rejection) -> Problem {
    let detail = rejection.to_string();
    match rejection {
        Rejection::OutOfBounds { field, limit, .. } => {
            Problem::new(ErrorCode::OutOfBounds, detail).field(field.clone()).limit(*limit)
        }
        Rejection::UnknownTenant(_) => Problem::new(ErrorCode::UnknownTenant, detail),
        Rejection::UnknownJob(_) | Rejection::UnknownTask(_) => Problem::new(ErrorCode::NotFound, detail),
        Rejection::IdempotencyConflict { .. } => Problem::new(ErrorCode::IdempotencyConflict, detail)
            .field("Idempotency-Key")
            .hint("use a new key for a new submission"),
        Rejection::QueueFull { limit, .. } => Problem::new(ErrorCode::QueueFull, detail)
            .limit(*limit)
            .hint("wait until tasks of the tenant have ended")
            .retry_after_ms(1_000),
        Rejection::NotStarted { job, .. } => Problem::new(ErrorCode::InvalidRequest, detail)
            .hint(format!("`grey job timeout {job} TIME` changes all of its tasks")),
        Rejection::TenantSuspended(_) => Problem::new(ErrorCode::TenantSuspended, detail)
            .field("tenant")
            .hint("an operator lets it submit again: `grey tenant resume NAME`"),
        Rejection::UnknownNode(_) => Problem::new(ErrorCode::NotFound, detail),
        Rejection::UnknownToken(_) => Problem::new(ErrorCode::NotFound, detail),
        Rejection::NotAdmitted(_) => Problem::new(ErrorCode::Conflict, detail),
        Rejection::FeatureLevel { .. } | Rejection::NotUnderstood { .. } => {
            Problem::new(ErrorCode::Conflict, detail).hint("`grey node list` says what each server runs")
        }
        Rejection::RateExceeded { limit, refusal: RateRefusal::NeverFits { burst } } => {
            Problem::new(ErrorCode::BurstExceeded, detail)
                .limit(*burst)
                .usage(limit.burst)
                .hint("send it in parts")
        }
        Rejection::RateExceeded { limit, refusal: RateRefusal::TooSoon { retry_after_ms } } => {
            Problem::new(ErrorCode::RateExceeded, detail)
                .limit(limit.burst)
                .hint("submit more slowly, or in larger pauses")
                .retry_after_ms(*retry_after_ms)
        }
        Rejection::NotFounded => Problem::new(ErrorCode::Unavailable, detail).retry_after_ms(200),
        _ => Problem::new(ErrorCode::Internal, detail),
    }
}

/// Storage that could not be read, as a client reads it.
pub(crate) fn unreadable(error: &StoreError) -> Problem {
    tracing::error!(%error, "history cannot be read");
    Problem::new(ErrorCode::Internal, error.to_string())
        .hint("see the node's log; restore the named file from a copy")
}
