//! The rows of the state: what is checkpointed, hashed and changed through the overlay.

use std::sync::Arc;

use grey_proof::{Digest, LogTree};
use serde::{Deserialize, Serialize};

use crate::apply::multiplied;
use crate::attempt::SandboxLevel;
use crate::command::TaskDefaults;
use crate::constraint::{Constraints, Devices, Tier};
use crate::ids::{Epoch, JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::limits;
use crate::quarantine::{Quarantine, QuarantineOptions, Standing};
use crate::range_set::RangeSet;
use crate::spec::{Resources, TaskSpec};

/// What belongs to the cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// The cluster's identity; absent until the bootstrap.
    pub cluster: Option<Digest>,
    /// The feature level in force; 0 until the bootstrap.
    pub feature_level: u16,
    /// Wall clock at the founding, milliseconds since 1970.
    pub founded_at_ms: u64,
    /// Cluster time of the last applied entry, in milliseconds.
    pub time_ms: u64,
    /// Wall clock of the server that took the last submission or cancel, milliseconds since 1970. Data, never used to decide
    /// what runs.
    pub wall_ms: u64,
    /// Jobs submitted so far.
    pub jobs_submitted: u64,
    /// Tasks submitted so far.
    pub tasks_submitted: u64,
    /// Workers registered so far.
    pub workers_registered: u32,
    /// Servers that were given a number so far.
    pub servers_numbered: u64,
    /// Placements that were dropped because the state had moved on.
    pub stale_placements: u64,
    /// Results that were refused because another attempt or a cancel came first.
    pub refused_results: u64,
    /// Workers that belonged in quarantine while too many were there already: the cause is likely not theirs.
    pub quarantine_alerts: u64,
    /// Entries whose effects were discarded because an invariant broke.
    pub internal_bugs: u64,
    /// The cluster's log of reports, as a frontier.
    pub log: LogTree,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Unique name.
    pub name: Arc<str>,
    /// What a task gets that leaves it unset.
    pub defaults: TaskDefaults,
    /// Share relative to others, in thousandths.
    pub weight_milli: u32,
    /// Whether it may submit nothing.
    pub suspended: bool,
    /// Tasks that wait.
    pub queued_tasks: u64,
    /// Tasks assigned or running.
    pub held_tasks: u64,
    /// Resources of the assigned and running ones.
    pub usage: Resources,
    /// Idempotency keys kept.
    pub keys: u64,
}

/// Whether a worker can be reached, as far as the cluster has agreed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It has announced itself.
    Present,
    /// Its lease has ended: it holds nothing, until it announces itself.
    Lost,
}

impl Presence {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Presence::Present => "present",
            Presence::Lost => "lost",
        }
    }
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// The node's identity.
    pub node: Digest,
    /// The host's name.
    pub name: Arc<str>,
    /// Its present life.
    pub incarnation: u64,
    /// Its latest announcement in that life.
    pub session: u64,
    /// Whether it can be reached.
    pub presence: Presence,
    /// What its troubles cost it.
    pub quarantine: Quarantine,
    /// The last report of that life.
    pub last_sequence: u64,
    /// What it has to give.
    pub capacity: Resources,
    /// Resources of every attempt it holds, started or not; prefetched ones may take it above the capacity.
    pub charged: Resources,
    /// How many attempts it wants to hold.
    pub slots: u32,
    /// How many it holds.
    pub held: u32,
    /// What it can enforce.
    pub sandbox: SandboxLevel,
    /// How far it is trusted.
    pub tier: Tier,
    /// Whether it gets no new work, as its node's row says.
    pub cordoned: bool,
    /// Its labels, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Its devices, sorted by name.
    pub devices: Vec<WorkerDevices>,
    /// Digest of its certificate.
    pub certificate: Digest,
}

/// Devices of a kind that a worker has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerDevices {
    /// The kind.
    pub name: String,
    /// How many it has.
    pub count: u32,
    /// How many are spoken for by the attempts it holds; prefetched ones may take it above the count.
    pub charged: u64,
}

impl Worker {
    /// Whether the worker is what a task asks for and could run it, were it empty.
    pub fn suits(&self, spec: &TaskSpec) -> bool {
        spec.resources.fits(&self.capacity) && self.meets(&spec.constraints) && self.has(&spec.devices)
    }

    /// Whether the worker is like that.
    pub fn meets(&self, constraints: &Constraints) -> bool {
        let has = |label: &(String, String)| self.labels.binary_search(label).is_ok();
        // Also where a task would be content with less.
        let is_known = self.tier > Tier::None;
        is_known
            && self.tier >= constraints.tier
            && self.sandbox >= constraints.sandbox
            && constraints.labels.iter().all(has)
    }

    /// Whether the worker has these devices, free or not.
    pub fn has(&self, devices: &[Devices]) -> bool {
        devices.iter().all(|needed| {
            self.devices.iter().any(|kind| kind.name == needed.name && kind.count >= needed.count)
        })
    }

    /// How many attempts it may hold, as things stand.
    pub fn usable_slots(&self) -> u32 {
        match self.presence {
            Presence::Present if self.cordoned => 0,
            Presence::Present => self.quarantine.slots(self.slots, &QuarantineOptions::default()),
            Presence::Lost => 0,
        }
    }

    /// Whether it has not been heard of for some time.
    pub fn is_suspect(&self) -> bool {
        matches!(
            self.quarantine.standing,
            Standing::Suspect { .. } | Standing::Quarantined { silent: true, .. }
        )
    }

    /// Whether a task could be started here at once.
    pub(crate) fn could_start(&self, spec: &TaskSpec) -> bool {
        let with_it = self.charged.checked_add(&spec.resources);
        let has_free = |needed: &Devices| {
            let kind = self.devices.iter().find(|kind| kind.name == needed.name);
            kind.is_some_and(|kind| u64::from(kind.count) >= kind.charged.saturating_add(needed.count.into()))
        };
        self.suits(spec)
            && with_it.is_some_and(|charged| charged.fits(&self.capacity))
            && spec.devices.iter().all(has_free)
    }

    /// Whether the attempts it holds need more than it has, so that some wait for others.
    pub(crate) fn is_overcharged(&self) -> bool {
        !self.charged.fits(&self.capacity)
            || self.devices.iter().any(|kind| kind.charged > u64::from(kind.count))
    }

    /// Whether some of what it holds waits for others there: by its resources, or because it holds more than it now asks for, as after a run of
    /// short attempts when long ones follow.
    pub(crate) fn is_overfull(&self) -> bool {
        self.is_overcharged() || self.held > self.slots
    }

    /// Whether it would be less overfull without a task. Another one is of no use elsewhere, and would be given to it again.
    pub(crate) fn is_relieved_of(&self, spec: &TaskSpec) -> bool {
        let (charged, capacity, needed) = (&self.charged, &self.capacity, &spec.resources);
        let over = |charged: u64, capacity: u64, needed: u64| charged > capacity && needed > 0;
        let over_devices = |needed: &Devices| {
            let kind = self.devices.iter().find(|kind| kind.name == needed.name);
            kind.is_some_and(|kind| over(kind.charged, kind.count.into(), needed.count.into()))
        };
        self.held > self.slots
            || over(charged.cpu_millicores, capacity.cpu_millicores, needed.cpu_millicores)
            || over(charged.memory_bytes, capacity.memory_bytes, needed.memory_bytes)
            || over(charged.disk_bytes, capacity.disk_bytes, needed.disk_bytes)
            || spec.devices.iter().any(over_devices)
    }

    /// How many it starts at once, as far as its slots tell: it asks for at least twice as many.
    pub(crate) fn started_at_once(&self) -> u32 {
        self.slots.div_ceil(2)
    }

    /// Gives it so many attempts of a task; `None` when a charge would overflow.
    pub(crate) fn charge(&mut self, spec: &TaskSpec, attempts: u32) -> Option<()> {
        self.held = self.held.checked_add(attempts)?;
        self.charged = self.charged.checked_add(&multiplied(&spec.resources, attempts)?)?;
        for needed in &spec.devices {
            let kind = self.devices.iter_mut().find(|kind| kind.name == needed.name)?;
            let more = u64::from(needed.count).checked_mul(u64::from(attempts))?;
            kind.charged = kind.charged.checked_add(more)?;
        }
        Some(())
    }

    /// Takes an attempt of a task off it; `None` when a charge would fall below zero.
    pub(crate) fn release(&mut self, spec: &TaskSpec) -> Option<()> {
        self.held = self.held.checked_sub(1)?;
        self.charged = self.charged.checked_sub(&spec.resources)?;
        for needed in &spec.devices {
            let kind = self.devices.iter_mut().find(|kind| kind.name == needed.name)?;
            kind.charged = kind.charged.checked_sub(u64::from(needed.count))?;
        }
        Some(())
    }
}

/// What never changes about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Whose it is.
    pub tenant: TenantId,
    /// Who sent it.
    pub submitter: String,
    /// The user's name for it.
    pub name: String,
    /// Labels, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Wall clock of the submission, milliseconds since 1970.
    pub created_at_ms: u64,
    /// Its tasks.
    pub tasks: TaskRange,
    /// The idempotency key, released a while after the end.
    pub key: Option<String>,
}

/// How many tasks of a job are where. Their sum is the job's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Waiting for a place, a back-off included.
    pub pending: u64,
    /// Placed and not started.
    pub assigned: u64,
    /// Started.
    pub running: u64,
    /// Succeeded.
    pub completed: u64,
    /// Failed for good.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl Counts {
    /// All tasks. It saturates, as does what follows: counts are summed before a state that was read is known to hold.
    pub fn total(&self) -> u64 {
        let ended = [self.completed, self.failed, self.cancelled];
        ended.into_iter().fold(self.live(), u64::saturating_add)
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> u64 {
        self.pending.saturating_add(self.assigned).saturating_add(self.running)
    }
}

/// A job that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What never changes.
    pub info: Arc<JobInfo>,
    /// Where its tasks are.
    pub counts: Counts,
    /// Cancelled attempts whose worker has not yet said that they stopped.
    pub stopping: u64,
}

impl Job {
    /// Attempts that workers hold.
    pub fn held(&self) -> u64 {
        self.counts.assigned.saturating_add(self.counts.running).saturating_add(self.stopping)
    }
}

/// A run of equal tasks of a job that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The job.
    pub job: JobId,
    /// All tasks of the run; the group's key is the first.
    pub tasks: TaskRange,
    /// 0–255, higher first; as in the specification.
    pub priority: u8,
    /// Cluster time of the submission, in milliseconds: from then on its tasks age.
    pub queued_at_ms: u64,
    /// Tasks never assigned so far.
    pub pending: RangeSet,
}

impl Group {
    /// The group's place in its tenant's line: lower comes first. All tasks that wait gain on later ones alike, so the
    /// order between two never changes, and the place need not be reckoned again as time passes: priority `p` after
    /// waiting for `w` counts as `p + w / step`, and that difference between two is the same at any time.
    pub fn rank(&self) -> u64 {
        let below_highest = u64::from(u8::MAX - self.priority);
        self.queued_at_ms.saturating_add(below_highest * limits::AGEING_STEP_MS)
    }
}

/// Where a task is that is no longer, or not only, part of its group's pending range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for a place again.
    Ready,
    /// Waits until a cluster time, in milliseconds.
    Backoff {
        /// When it becomes ready.
        until_ms: u64,
    },
    /// Placed.
    Assigned {
        /// Where.
        worker: WorkerId,
    },
    /// Started.
    Running {
        /// Where.
        worker: WorkerId,
    },
    /// Cancelled; its worker has not yet said that it stopped.
    Stopping {
        /// Where.
        worker: WorkerId,
    },
}

impl Phase {
    /// The worker that holds an attempt in this phase.
    pub fn worker(self) -> Option<WorkerId> {
        match self {
            Phase::Ready | Phase::Backoff { .. } => None,
            Phase::Assigned { worker } | Phase::Running { worker } | Phase::Stopping { worker } => {
                Some(worker)
            }
        }
    }
}

/// How long a running attempt may take, by the cluster's clock. The worker's own clock ends it at its time-out; this one only
/// notices a worker that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunClock {
    /// When its start was reported.
    pub started_ms: u64,
    /// Time-out and grace after that; later once the worker was asked.
    pub overdue_ms: u64,
}

/// A task that was assigned at least once and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveTask {
    /// Its group.
    pub group: TaskId,
    /// The epoch of its latest assignment.
    pub epoch: Epoch,
    /// Term of the entry that assigned it.
    pub assigned_term: u64,
    /// Index of the entry that assigned it.
    pub assigned_index: u64,
    /// Failures of its own so far.
    pub failures: u16,
    /// Losses of its worker so far.
    pub losses: u16,
    /// Its time-out in milliseconds, where that is no longer what the specification said.
    pub timeout_ms: Option<u64>,
    /// While it runs: since when, and when the cluster asks after it, both in cluster milliseconds.
    pub clock: Option<RunClock>,
    /// Where it is.
    pub phase: Phase,
}

/// A kept idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The submission's body.
    pub body: Digest,
    /// The job it made.
    pub job: JobId,
    /// The job's tasks, so that a repeated submission gets the whole answer.
    pub tasks: TaskRange,
    /// When it is forgotten, in cluster milliseconds; absent while the job lives.
    pub expires_at_ms: Option<u64>,
}

/// Key of an idempotency record.
pub type KeyId = (TenantId, String);
