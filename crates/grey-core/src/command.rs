//! Commands: what is proposed, and the body of a log entry once committed.

use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::attempt::{AttemptId, Finished, SandboxLevel};
use crate::authority::SetIssuingAuthority;
use crate::constraint::Devices;
use crate::flow::FlowSubmission;
use crate::identity::{
    AdmitNode, CordonNode, CreateJoinToken, CreateTenant, CreateToken, EnrolFounder, ForgetNode, Recover,
    RenewNode, RevokeJoinToken, RevokeToken, SetNodeAddress, SetNodeStanding, SetTenantSuspended,
};
use crate::ids::{Epoch, JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::level::{RaiseFeatureLevel, SetNodeVersion};
use crate::quota::SetTenantQuota;
use crate::spec::{Resources, TaskSpec};

/// Founds the cluster: the first entry of every log, and refused anywhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The cluster's identity: the digest of its root key.
    pub cluster: Digest,
    /// Wall clock of the founder, milliseconds since 1970.
    pub wall_ms: u64,
    /// Tenants to begin with.
    pub tenants: Vec<TenantRecord>,
}

/// A tenant as created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// Unique name.
    pub name: String,
    /// What a task gets that leaves it unset.
    pub defaults: TaskDefaults,
}

/// Values for what a submission leaves unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDefaults {
    /// Resources of one attempt.
    pub resources: Resources,
    /// Time-out of an attempt in milliseconds.
    pub timeout_ms: u64,
    /// Output limit of an attempt in bytes.
    pub output_limit_bytes: u64,
    /// Priority, 0–255.
    pub priority: u8,
}

/// A key under which a client may repeat a submission without a second job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The client's key, 1 to [`crate::limits::KEY_BYTES`] bytes.
    pub key: String,
    /// Digest of the submission's body; another body under the key is refused.
    pub body: Digest,
}

/// A run of equal tasks within a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSubmission {
    /// What each of them does.
    pub spec: TaskSpec,
    /// How many; at least one.
    pub count: u32,
}

/// Submits a job: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Whose job it is.
    pub tenant: TenantId,
    /// Who sent it, as authenticated.
    pub submitter: String,
    /// The user's name for the job; may be empty.
    pub name: String,
    /// Labels, sorted by key, no key twice.
    pub labels: Vec<(String, String)>,
    /// The idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The tasks; ids are given in this order.
    pub groups: Vec<GroupSubmission>,
    /// How they follow one another.
    pub flow: FlowSubmission,
    /// Wall clock of the receiving server, milliseconds since 1970.
    pub wall_ms: u64,
}

/// A worker announces itself, at its start and after every loss of contact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterWorker {
    /// The node's identity: the digest of its public key.
    pub node: Digest,
    /// The host's name, for people.
    pub name: String,
    /// One more at every start of the worker process.
    pub incarnation: u64,
    /// One more at every announcement of that life: an announcement that comes late or twice changes nothing.
    pub session: u64,
    /// What the worker has to give.
    pub capacity: Resources,
    /// How many attempts it wants to hold.
    pub slots: u32,
    /// What it can enforce.
    pub sandbox: SandboxLevel,
    /// Labels that its operator gave it, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Devices that it has to give, sorted by name.
    pub devices: Vec<Devices>,
    /// Digest of the certificate that its statements name.
    pub certificate: Digest,
    /// Attempts that it still holds or whose results it still has to report; every other one is lost.
    pub holding: Vec<AttemptId>,
}

/// A run of neighbouring tasks given to one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Who is to run them.
    pub worker: WorkerId,
    /// The tasks, all of one group.
    pub tasks: TaskRange,
    /// The epoch that each of them gets: one more than it has.
    pub epoch: Epoch,
}

/// Placements that the planner derived from the state; each is checked again when applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the planning rules.
    pub version: u16,
    /// Who runs what.
    pub placements: Vec<Placement>,
}

/// The worker's signature over the statements of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRoot {
    /// Merkle root over the statements, in the order of the report.
    pub root: Digest,
    /// From which each leaf's salt is derived; disclosed leaf by leaf.
    pub salt: [u8; 32],
    /// Ed25519 signature of the report's envelope, 64 bytes.
    pub signature: Vec<u8>,
}

/// What happened on a worker since its last report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who reports.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Under which announcement: one that was made before a newer announcement was applied is refused.
    pub session: u64,
    /// One more for every report of that life.
    pub sequence: u64,
    /// How many attempts it wants to hold from now on.
    pub slots: u32,
    /// Attempts that have started and have not ended.
    pub started: Vec<AttemptId>,
    /// Attempts that have ended.
    pub finished: Vec<Finished>,
    /// The signature over `finished`; absent exactly when nothing finished.
    pub signed: Option<SignedRoot>,
}

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A whole job.
    Job(JobId),
    /// One task.
    Task(TaskId),
}

/// Cancels what has not ended. Terminal once committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Whose it must be.
    pub tenant: TenantId,
    /// What.
    pub target: Target,
    /// Wall clock of the receiving server, milliseconds since 1970.
    pub wall_ms: u64,
}

/// Changes the time-out of what has not ended, also of attempts under way: they end when they have run so long
/// altogether.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeTimeout {
    /// Whose it must be.
    pub tenant: TenantId,
    /// What. Of an array, one task alone can be changed once it was given to a worker.
    pub target: Target,
    /// The longest run of an attempt from now on, in milliseconds.
    pub timeout_ms: u64,
}

/// Attempts that a worker gave back before it started them, so that an idle one can have them. Whoever gives an attempt
/// back never starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Who gave them back.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Which attempts.
    pub attempts: Vec<AttemptId>,
}

/// A worker has not been heard of for so long that it may be gone, or is heard of again. It gets no new work meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectWorker {
    /// Who.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Under which announcement.
    pub session: u64,
    /// Whether it is suspected from now on.
    pub suspected: bool,
}

/// A worker's lease has ended, so that nothing runs there any more: what it held waits again, with a new epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoseWorker {
    /// Who.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Under which announcement: one that was made since is not affected.
    pub session: u64,
}

/// A worker keeps failing what it is given through no fault of the tasks: it gets no work for a while, and then little at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineWorker {
    /// Who.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Under which announcement.
    pub session: u64,
}

/// An operator puts a worker into quarantine, or takes it out of that or of its probation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetQuarantine {
    /// The worker's node.
    pub node: Digest,
    /// Whether it is to be in quarantine from now on.
    pub quarantined: bool,
}

/// Everything that can be proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Found the cluster.
    Bootstrap(Bootstrap),
    /// Submit a job.
    Submit(Submit),
    /// Announce a worker.
    RegisterWorker(RegisterWorker),
    /// Place tasks.
    Plan(Plan),
    /// Report attempts.
    Report(Report),
    /// Cancel a job or a task.
    Cancel(Cancel),
    /// Give unstarted attempts back.
    Revoked(Revoked),
    /// Change a time-out.
    ChangeTimeout(ChangeTimeout),
    /// Suspect a worker, or stop suspecting it.
    SuspectWorker(SuspectWorker),
    /// Take a worker for lost.
    LoseWorker(LoseWorker),
    /// Give a worker no work for a while.
    QuarantineWorker(QuarantineWorker),
    /// Do so on an operator's order, or give it work again.
    SetQuarantine(SetQuarantine),
    /// Give the first server its place.
    EnrolFounder(EnrolFounder),
    /// The cluster goes on after a loss.
    Recover(Recover),
    /// Let a node in.
    AdmitNode(AdmitNode),
    /// Give a node other certificates.
    RenewNode(RenewNode),
    /// Block a node, or let it leave.
    SetNodeStanding(SetNodeStanding),
    /// Give a worker no new work, or work again.
    CordonNode(CordonNode),
    /// Dial a server elsewhere.
    SetNodeAddress(SetNodeAddress),
    /// Forget a node that left.
    ForgetNode(ForgetNode),
    /// Make a right to enter.
    CreateJoinToken(CreateJoinToken),
    /// Take one back.
    RevokeJoinToken(RevokeJoinToken),
    /// Make a token of the client API.
    CreateToken(CreateToken),
    /// Take one back.
    RevokeToken(RevokeToken),
    /// Make a tenant.
    CreateTenant(CreateTenant),
    /// Suspend a tenant, or let it submit again.
    SetTenantSuspended(SetTenantSuspended),
    /// Keep what a server runs.
    SetNodeVersion(SetNodeVersion),
    /// Put the next feature level in force.
    RaiseFeatureLevel(RaiseFeatureLevel),
    /// Change what a tenant may have.
    SetTenantQuota(SetTenantQuota),
    /// Another issuing key follows the current one.
    SetIssuingAuthority(SetIssuingAuthority),
    /// Let time pass: proposed only when a deadline is due.
    Tick,
}
