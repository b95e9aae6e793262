//! The worker: holds attempts, starts what fits, and reports what they came to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use grey_core::{
    Assignment, AttemptId, AttemptResult, BlobReference, Content, Devices, Finished, FromWorker, Heartbeat,
    JobId, Outcome, RegisterWorker, Report, ReportAnswer, ReportedRun, Resources, Revoked, SandboxLevel,
    SignedRoot, Signer, Stage, TaskId, TaskSpec, ToWorker, Usage, UsageSource, WorkerId, WorkerMessage,
    limits, report_root,
};
use grey_proof::{Digest, ReportHeader, SigningKey, derive_seed};

use crate::adoption;
use crate::devices::FreeDevices;
use crate::error::AgentError;
use crate::executor::{Adoptable, StopReason};
use crate::lease::{KeepOptions, Lease};
use crate::outbox::{Ended, GroupContext, Outbox};
use crate::prefetch::Prefetch;

/// Reports that may wait for their answers at once.
const REPORTS_IN_FLIGHT: usize = 2;
/// An attempt that ends sooner is never reported as started, in microseconds.
const STARTED_AFTER_US: u64 = 20_000;
/// How many attempts that wait for a device may be overtaken: bounds what is looked at each time.
const OVERTAKEN: usize = 256;
/// A result becomes durable after this long also when no report can be sent, in microseconds.
const DURABLE_AFTER_US: u64 = 50_000;

/// Who a worker is and what it has to give.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Cluster, node and certificate.
    pub signer: Signer,
    /// The host's name.
    pub name: String,
    /// One more at every start of the worker.
    pub incarnation: u64,
    /// What it has to give.
    pub capacity: Resources,
    /// What it can enforce.
    pub sandbox: SandboxLevel,
    /// Its labels, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Its devices, sorted by name.
    pub devices: Vec<Devices>,
    /// How many attempts may run at once, at least one.
    pub parallel: u32,
    /// How it keeps its lease; none where the leader lives in the same process and shares the worker's fate.
    pub lease: Option<KeepOptions>,
    /// From which the salts of this life's reports are derived: 32 random bytes.
    pub salt_seed: [u8; 32],
    /// A mistake that it makes.
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
}

/// An attempt to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// Which.
    pub attempt: AttemptId,
    /// The job's id as users write it.
    pub job: String,
    /// Position of the task within its group, from zero.
    pub index: u32,
    /// What to do.
    pub spec: Arc<TaskSpec>,
    /// What it is given of other tasks, where its job has stages.
    pub stage: Option<Arc<Stage>>,
    /// Its time-out in milliseconds.
    pub timeout_ms: u64,
    /// The devices that it has to itself: of each kind their numbers, ascending.
    pub devices: Vec<(String, Vec<u32>)>,
    /// Index of the entry that assigned it: what it is given was committed before.
    pub assigned_index: u64,
    /// To be kept with it, for the next worker should it outlive this one; empty where it cannot.
    pub record: Vec<u8>,
}

/// What the agent asks of its shell, in order.
#[derive(Debug)]
pub enum Output {
    /// Send to the leader; what it answers comes through [`Agent::receive`], or [`Agent::unavailable`] is called.
    Send(FromWorker),
    /// Run an attempt; answered by [`Agent::started`] and [`Agent::finished`].
    Execute(Start),
    /// Go on with an attempt that was found; answered as [`Output::Execute`] is.
    Adopt(Start),
    /// Attempts of processes whose results are durable, or that nobody wants to know of: the executor may forget them.
    Release(Vec<AttemptId>),
    /// Stop a running attempt; [`Agent::finished`] follows.
    Stop(AttemptId, StopReason),
    /// Give a running attempt another time-out, in milliseconds from its start.
    ChangeTimeout(AttemptId, u64),
    /// Make changes of the outbox durable, then call [`Agent::persisted`].
    Persist(Vec<(u64, Option<Vec<u8>>)>),
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) context: Arc<GroupContext>,
    pub(crate) assigned: (u64, u64),
    pub(crate) timeout_ms: u64,
    /// Devices that it has to itself while it runs.
    pub(crate) devices: Vec<(String, Vec<u32>)>,
    pub(crate) phase: HeldPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldPhase {
    /// Not started.
    Waiting,
    /// Given to the executor.
    Running,
    /// Its result nobody wants; it only has to end.
    Unwanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// To be announced.
    Down,
    /// Announced, not answered.
    Announcing,
    /// Known under this number.
    Up(WorkerId),
}

#[derive(Debug)]
struct InFlight {
    sequence: u64,
    sent_us: u64,
}

/// One worker.
#[derive(Debug)]
pub struct Agent {
    options: AgentOptions,
    key: SigningKey,
    link: Link,
    /// The latest announcement, and the number of the message that is due in its session.
    session: u64,
    due_number: u64,
    lease: Option<Lease>,
    pub(crate) held: BTreeMap<AttemptId, Held>,
    pub(crate) contexts: BTreeMap<TaskId, Arc<GroupContext>>,
    waiting: VecDeque<AttemptId>,
    pub(crate) running: Resources,
    pub(crate) running_count: u32,
    pub(crate) free_devices: FreeDevices,
    started: BTreeMap<AttemptId, u64>,
    ended: Vec<Ended>,
    ended_since_us: u64,
    pub(crate) outbox: Outbox,
    in_flight: VecDeque<InFlight>,
    next_sequence: u64,
    announced_slots: u32,
    prefetch: Prefetch,
    now_us: u64,
    persisting: bool,
    /// What the record has that is being made durable.
    to_release: Vec<AttemptId>,
    pub(crate) outputs: VecDeque<Output>,
}

impl Agent {
    /// A worker's life begins with what an earlier one left in the outbox, and with what still runs of it.
    ///
    /// # Errors
    /// [`AgentError`] when a record does not decode or options contradict themselves.
    pub fn new<'a>(
        options: AgentOptions,
        key: SigningKey,
        outbox: impl IntoIterator<Item = (u64, &'a [u8])>,
        found: &[Adoptable],
    ) -> Result<Agent, AgentError> {
        let prefetch = Prefetch::new(options.parallel.max(1));
        let mut agent = Agent {
            key,
            link: Link::Down,
            session: 0,
            due_number: 0,
            lease: options.lease.clone().map(Lease::new).transpose()?,
            held: BTreeMap::new(),
            contexts: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Resources::default(),
            running_count: 0,
            free_devices: FreeDevices::new(&options.devices),
            started: BTreeMap::new(),
            ended: Vec::new(),
            ended_since_us: 0,
            outbox: Outbox::recover(outbox)?,
            in_flight: VecDeque::new(),
            next_sequence: 1,
            announced_slots: prefetch.slots(),
            prefetch,
            now_us: 0,
            persisting: false,
            to_release: Vec::new(),
            outputs: VecDeque::new(),
            options,
        };
        agent.adopt(found);
        agent.announce();
        Ok(agent)
    }

    /// What is to be done, in order. The shell drains it after every batch of calls and one of [`Agent::settle`].
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.outputs.drain(..)
    }

    /// Attempts held, started or not.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The job of an attempt that is held.
    pub fn job(&self, attempt: &AttemptId) -> Option<JobId> {
        Some(self.held.get(attempt)?.context.job)
    }

    /// Attempts that were given to the executor and have not ended.
    pub fn running(&self) -> u32 {
        self.running_count
    }

    /// Results that no leader has accepted yet. It looks at each record of the outbox.
    pub fn unreported(&self) -> usize {
        let recorded = self.outbox.runs().map(|run| run.finished.usage.len()).sum::<usize>();
        self.ended.len() + recorded
    }

    /// Whether a leader knows the worker.
    pub fn is_registered(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// The blobs of results that were not accepted yet: no record of the cluster names them so far.
    pub fn unreported_blobs(&self) -> impl Iterator<Item = BlobReference> + '_ {
        let recorded = self.outbox.runs().map(|run| &run.finished.result);
        let results = self.ended.iter().map(|ended| &ended.result).chain(recorded);
        results.flat_map(AttemptResult::blobs).map(|(_, blob)| blob)
    }

    /// Whether nothing is held and nothing waits to be reported.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.ended.is_empty() && self.in_flight.is_empty()
    }

    /// Lets time pass, in microseconds of the monotonic clock.
    pub fn elapse(&mut self, elapsed_us: u64) {
        self.now_us = self.now_us.saturating_add(elapsed_us);
        self.prefetch.elapse(elapsed_us);
    }

    /// When the lease ends unless it is prolonged, and what time it is: both in microseconds of the agent's clock. Nothing once it
    /// has ended, and where there is none.
    pub fn lease_end_and_now_us(&self) -> Option<(u64, u64)> {
        Some((self.lease.as_ref()?.end_us()?, self.now_us))
    }

    /// In how many microseconds [`Agent::settle`] is worth calling though nothing happened.
    pub fn next_wake_us(&self) -> Option<u64> {
        // What cannot be done now is done when an answer comes; to be woken for it would be to be woken all the time.
        let can_report = matches!(self.link, Link::Up(_)) && self.in_flight.is_empty();
        let started = self.started.values().min().filter(|_| can_report);
        let started = started.map(|at| at.saturating_add(STARTED_AFTER_US));
        let can_gather = !self.persisting && !self.ended.is_empty();
        let ended = can_gather.then(|| self.ended_since_us.saturating_add(DURABLE_AFTER_US));
        let lease = self.lease.as_ref().and_then(|lease| {
            // Who is not in touch has no heartbeat to send: that would be due all the time.
            let next = match self.link {
                Link::Down => None,
                Link::Announcing => Some(lease.announcement_late_us()),
                Link::Up(_) => Some(lease.heartbeat_us()),
            };
            next.into_iter().chain(lease.end_us()).min()
        });
        let due = started.into_iter().chain(ended).chain(lease).min()?;
        Some(due.saturating_sub(self.now_us))
    }

    /// The cluster knows the worker; of what it holds, `unknown` is not wanted.
    pub fn registered(&mut self, worker: WorkerId, unknown: &[AttemptId]) {
        self.link = Link::Up(worker);
        if let Some(lease) = &mut self.lease {
            lease.granted(self.now_us);
        }
        self.forget(unknown);
        // Reports that were not answered are sent again under their numbers; the cluster knows them if it took them.
        let resend: Vec<u64> = self.in_flight.drain(..).map(|report| report.sequence).collect();
        for sequence in resend {
            self.send(worker, sequence, Vec::new());
        }
    }

    /// The leader says something. What belongs to an earlier session is passed over; when a message is missing, the worker
    /// has to announce itself anew, which makes good what was in it. `wall_ms` is data: milliseconds since 1970.
    pub fn receive(&mut self, message: ToWorker, wall_ms: u64) {
        if (message.incarnation, message.session) != (self.options.incarnation, self.session)
            || self.link == Link::Down
        {
            return;
        }
        let ended = matches!(message.message, WorkerMessage::Unavailable { .. });
        if ended || message.number != self.due_number {
            return self.unavailable();
        }
        self.due_number += 1;
        match message.message {
            WorkerMessage::Registered { worker, unknown } => self.registered(worker, &unknown),
            WorkerMessage::Assign(assignment) => self.assign(&assignment),
            WorkerMessage::Stop(attempt) => {
                let (result, usage) = cancelled_before_start(wall_ms);
                self.stop(attempt, result, usage);
            }
            WorkerMessage::ChangeTimeout(attempts, timeout_ms) => self.change_timeout(&attempts, timeout_ms),
            WorkerMessage::Revoke(attempts) => self.revoke(&attempts),
            WorkerMessage::Reported(sequence, answer) => self.reported(sequence, answer),
            WorkerMessage::Heard(number) => {
                if let Some(lease) = &mut self.lease {
                    lease.heard(number);
                }
            }
            WorkerMessage::Unavailable { .. } => {}
        }
    }

    /// Whether this worker may run attempts now.
    pub fn has_lease(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| !lease.is_over())
    }

    /// Sends what is due, gives up on answers that do not come, and ends what runs when the lease does.
    fn keep_lease(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        #[cfg(feature = "mutants")]
        let lives_on = self.options.mutant == Some(grey_core::Mutant::OutliveLease);
        #[cfg(not(feature = "mutants"))]
        let lives_on = false;
        if !lives_on && lease.expire(self.now_us) {
            self.link = Link::Down;
            let running = self.held.iter().filter(|(_, held)| held.phase == HeldPhase::Running);
            let stops = running.map(|(attempt, _)| Output::Stop(*attempt, StopReason::Infrastructure));
            self.outputs.extend(stops);
            return;
        }
        match self.link {
            Link::Down => {}
            Link::Announcing => {
                if lease.announcement_is_late(self.now_us) {
                    self.link = Link::Down;
                }
            }
            Link::Up(worker) => {
                let oldest = self.in_flight.front();
                let report_is_late = oldest.is_some_and(|report| lease.is_late(report.sent_us, self.now_us));
                if report_is_late || lease.heartbeat_is_late(self.now_us) {
                    self.link = Link::Down;
                } else if let Some(number) = lease.heartbeat(self.now_us) {
                    let (incarnation, session) = (self.options.incarnation, self.session);
                    let heartbeat = Heartbeat { worker, incarnation, session, number };
                    self.outputs.push_back(Output::Send(FromWorker::Heartbeat(heartbeat)));
                }
            }
        }
    }

    /// The cluster could not be reached, or did not say what became of a request.
    pub fn unavailable(&mut self) {
        self.link = Link::Down;
    }

    /// The worker's key has another certificate: what is signed from now on names that one. The cluster goes by the one that was announced, so
    /// the worker announces itself again.
    pub fn certified(&mut self, certificate: Digest) {
        if self.options.signer.certificate != certificate {
            self.options.signer.certificate = certificate;
            self.link = Link::Down;
        }
    }

    /// Whether the worker has to announce itself again.
    pub fn is_down(&self) -> bool {
        self.link == Link::Down
    }

    /// Announces the worker again after [`Agent::unavailable`]. The shell decides when.
    pub fn announce(&mut self) {
        if self.link == Link::Announcing {
            return;
        }
        self.link = Link::Announcing;
        self.session += 1;
        self.due_number = 0;
        if let Some(lease) = &mut self.lease {
            lease.announced(self.now_us);
        }
        let mut holding: Vec<AttemptId> = self.held.keys().copied().collect();
        holding.extend(self.ended.iter().map(|ended| ended.attempt));
        holding.extend(self.outbox.attempts());
        holding.sort_unstable();
        holding.dedup();
        holding.truncate(limits::WORKER_SLOTS as usize);
        self.outputs.push_back(Output::Send(FromWorker::Register(RegisterWorker {
            node: self.options.signer.node,
            name: self.options.name.clone(),
            incarnation: self.options.incarnation,
            session: self.session,
            capacity: self.options.capacity,
            slots: self.announced_slots,
            sandbox: self.options.sandbox,
            labels: self.options.labels.clone(),
            devices: self.options.devices.clone(),
            certificate: self.options.signer.certificate,
            holding,
        })));
    }

    /// Attempts were given to this worker. One that it has, or has had, is not taken twice.
    pub fn assign(&mut self, assignment: &Assignment) {
        let context = self.context(assignment);
        let assigned = (assignment.term, assignment.index);
        for task in assignment.placement.tasks.tasks() {
            let attempt = AttemptId { task, epoch: assignment.placement.epoch };
            if self.held.len() >= 2 * limits::WORKER_SLOTS as usize {
                break;
            }
            if self.held.contains_key(&attempt) || self.has_result(attempt) {
                continue;
            }
            let (context, timeout_ms) = (context.clone(), assignment.timeout_ms);
            let held = Held { context, assigned, timeout_ms, devices: Vec::new(), phase: HeldPhase::Waiting };
            self.held.insert(attempt, held);
            self.waiting.push_back(attempt);
        }
    }

    fn context(&mut self, assignment: &Assignment) -> Arc<GroupContext> {
        if let Some(context) = self.contexts.get(&assignment.group) {
            return context.clone();
        }
        // Contexts of groups of which nothing is held any more go when there are many.
        if self.contexts.len() >= 1_024 {
            self.contexts.retain(|_, context| Arc::strong_count(context) > 1);
        }
        let context = Arc::new(GroupContext {
            job: assignment.job,
            group: assignment.group,
            tenant: assignment.tenant.clone(),
            spec: assignment.spec.clone(),
            exec_key: assignment.spec.exec_key(assignment.stage.as_deref()),
            stage: assignment.stage.clone(),
        });
        self.contexts.insert(assignment.group, context.clone());
        context
    }

    /// Whether the attempt ended here and its result is on its way. Only what is said again asks, so it may search.
    fn has_result(&self, attempt: AttemptId) -> bool {
        self.ended.iter().any(|ended| ended.attempt == attempt) || self.outbox.covers(attempt)
    }

    /// A cancel was committed for an attempt.
    pub fn stop(&mut self, attempt: AttemptId, result_if_unstarted: AttemptResult, usage: Usage) {
        match self.held.get(&attempt).map(|held| held.phase) {
            Some(HeldPhase::Waiting) => {
                // Its place in the line is passed over when its turn comes.
                if let Some(held) = self.held.remove(&attempt) {
                    self.note_ended(attempt, held, result_if_unstarted, usage);
                }
            }
            Some(HeldPhase::Running) => {
                self.outputs.push_back(Output::Stop(attempt, StopReason::Cancelled));
            }
            Some(HeldPhase::Unwanted) | None => {}
        }
    }

    /// The time-out of attempts was changed.
    pub fn change_timeout(&mut self, attempts: &[AttemptId], timeout_ms: u64) {
        for attempt in attempts {
            let Some(held) = self.held.get_mut(attempt) else { continue };
            held.timeout_ms = timeout_ms;
            if held.phase == HeldPhase::Running {
                self.outputs.push_back(Output::ChangeTimeout(*attempt, timeout_ms));
            }
        }
    }

    /// The cluster asks for attempts back. What has not been started is never started from now on; what has, goes on. What is not here, and
    /// neither its result, was given back before, and that it was did not arrive: it is said again.
    pub fn revoke(&mut self, attempts: &[AttemptId]) {
        let Link::Up(worker) = self.link else { return };
        let mut revoked = Vec::new();
        for attempt in attempts {
            if !self.held.contains_key(attempt) {
                if !self.has_result(*attempt) {
                    revoked.push(*attempt);
                }
                continue;
            }
            if self.held.get(attempt).is_some_and(|held| held.phase == HeldPhase::Waiting) {
                revoked.push(*attempt);
                #[cfg(feature = "mutants")]
                if self.options.mutant == Some(grey_core::Mutant::RunRevoked) {
                    continue;
                }
                self.held.remove(attempt);
            }
        }
        if !revoked.is_empty() {
            let incarnation = self.options.incarnation;
            let body = Revoked { worker, incarnation, attempts: revoked };
            self.outputs.push_back(Output::Send(FromWorker::Revoked(body)));
        }
    }

    /// The program of an attempt runs.
    pub fn started(&mut self, attempt: AttemptId) {
        if self.held.get(&attempt).is_some_and(|held| held.phase == HeldPhase::Running) {
            self.started.insert(attempt, self.now_us);
        }
    }

    /// An attempt ended, and its outputs are either in `result` or durable elsewhere.
    pub fn finished(&mut self, attempt: AttemptId, result: AttemptResult, usage: Usage) {
        let Some(held) = self.held.remove(&attempt) else {
            self.outputs.push_back(Output::Release(vec![attempt]));
            return;
        };
        self.started.remove(&attempt);
        if held.phase != HeldPhase::Waiting {
            let resources = &held.context.spec.resources;
            self.running = self.running.checked_sub(resources).unwrap_or_default();
            self.running_count = self.running_count.saturating_sub(1);
            self.free_devices.give_back(&held.devices);
        }
        self.prefetch.completed(1);
        if held.phase != HeldPhase::Unwanted {
            self.note_ended(attempt, held, result, usage);
        } else if held.context.spec.executor == grey_core::ExecutorKind::Process {
            self.outputs.push_back(Output::Release(vec![attempt]));
        }
    }

    fn note_ended(&mut self, attempt: AttemptId, held: Held, result: AttemptResult, usage: Usage) {
        if self.ended.is_empty() {
            self.ended_since_us = self.now_us;
        }
        self.ended.push(Ended { attempt, context: held.context, assigned: held.assigned, result, usage });
    }

    /// What [`Output::Persist`] asked for last is durable.
    pub fn persisted(&mut self) {
        self.persisting = false;
        self.outbox.durable();
        let released = core::mem::take(&mut self.to_release);
        if !released.is_empty() {
            self.outputs.push_back(Output::Release(released));
        }
    }

    /// The cluster answered a report.
    pub fn reported(&mut self, sequence: u64, answer: ReportAnswer) {
        let Some(position) = self.in_flight.iter().position(|report| report.sequence == sequence) else {
            return;
        };
        match answer {
            ReportAnswer::Accepted => {
                if let Some(report) = self.in_flight.remove(position) {
                    self.prefetch.answered(self.now_us.saturating_sub(report.sent_us));
                }
                self.outbox.accepted(sequence);
            }
            ReportAnswer::NotHeld(attempts) => {
                self.in_flight.remove(position);
                self.forget(&attempts);
                if let Link::Up(worker) = self.link {
                    self.send(worker, sequence, Vec::new());
                }
            }
            ReportAnswer::TooEarly => {
                self.in_flight.remove(position);
                if let Link::Up(worker) = self.link {
                    self.send(worker, sequence, Vec::new());
                }
            }
            ReportAnswer::Unregistered => self.link = Link::Down,
        }
    }

    /// Attempts that are no longer this worker's: unstarted ones are dropped, running ones stopped, results left out.
    fn forget(&mut self, attempts: &[AttemptId]) {
        if attempts.is_empty() {
            return;
        }
        let unwanted: BTreeSet<AttemptId> = attempts.iter().copied().collect();
        for attempt in &unwanted {
            match self.held.get_mut(attempt) {
                Some(held) if held.phase == HeldPhase::Running => {
                    held.phase = HeldPhase::Unwanted;
                    self.outputs.push_back(Output::Stop(*attempt, StopReason::Infrastructure));
                }
                Some(held) if held.phase == HeldPhase::Waiting => {
                    self.held.remove(attempt);
                }
                _ => {}
            }
            self.started.remove(attempt);
        }
        self.waiting.retain(|attempt| !unwanted.contains(attempt));
        let dropped = self.ended.extract_if(.., |ended| unwanted.contains(&ended.attempt));
        let released: Vec<AttemptId> = dropped.filter(Ended::is_process).map(|ended| ended.attempt).collect();
        if !released.is_empty() {
            self.outputs.push_back(Output::Release(released));
        }
        self.outbox.drop_attempts(&|attempt| unwanted.contains(&attempt));
    }

    /// Does what has become possible: starts attempts, makes results durable, sends reports.
    pub fn settle(&mut self) -> Result<(), AgentError> {
        self.keep_lease();
        self.start_what_fits();
        self.gather();
        if let Link::Up(worker) = self.link {
            self.report(worker);
        }
        Ok(())
    }

    /// Starts attempts in the order of their assignment: one that does not fit yet is not overtaken, or it might wait
    /// forever. Only one that waits for a device is: who needs none takes nothing from it.
    fn start_what_fits(&mut self) {
        if !self.has_lease() {
            return;
        }
        let mut position = 0;
        while let Some(attempt) = self.waiting.get(position).copied() {
            // What was given back and then assigned again stands in the line twice: it starts once.
            let held = self.held.get_mut(&attempt).filter(|held| held.phase == HeldPhase::Waiting);
            let Some(held) = held else {
                self.waiting.remove(position);
                continue;
            };
            let spec = &held.context.spec;
            if !self.free_devices.has(&spec.devices) {
                position += 1;
                if position >= OVERTAKEN {
                    break;
                }
                continue;
            }
            let Some(running) = self.running.checked_add(&spec.resources) else { break };
            let alone = self.running_count == 0;
            let fits = running.fits(&self.options.capacity) && self.running_count < self.options.parallel;
            if !fits && !alone {
                break;
            }
            held.phase = HeldPhase::Running;
            held.devices = self.free_devices.take(&spec.devices);
            // Without a lease nothing outlives the worker.
            let record = match &self.lease {
                Some(_) => adoption::record(&held.context, held.assigned, &held.devices),
                None => Vec::new(),
            };
            let index = attempt.task.0.saturating_sub(held.context.group.0);
            self.outputs.push_back(Output::Execute(Start {
                attempt,
                job: held.context.job.to_string(),
                index: u32::try_from(index).unwrap_or(u32::MAX),
                spec: spec.clone(),
                stage: held.context.stage.clone(),
                timeout_ms: held.timeout_ms,
                devices: held.devices.clone(),
                assigned_index: held.assigned.1,
                record,
            }));
            self.running = running;
            self.running_count += 1;
            self.waiting.remove(position);
        }
    }

    /// Results are gathered while a report is on its way, so that load makes batches and an idle worker does not wait.
    fn gather(&mut self) {
        if self.persisting {
            return;
        }
        let free = self.in_flight.len() < REPORTS_IN_FLIGHT && !self.outbox.is_writing();
        let waited = self.now_us.saturating_sub(self.ended_since_us) >= DURABLE_AFTER_US;
        let due = free || waited || self.ended.len() >= limits::REPORT_ATTEMPTS;
        if (self.ended.is_empty() || !due) && !self.outbox.has_forgotten() {
            return;
        }
        if self.ended.is_empty() && !(free && self.held.is_empty()) {
            // Removals alone are not worth a sync while more is to come.
            return;
        }
        let gathered = self.ended.iter().map(|ended| ended.is_process().then_some(ended.attempt));
        let mut gathered: Vec<Option<AttemptId>> = gathered.collect();
        let changes = self.outbox.gather(&mut self.ended);
        gathered.truncate(gathered.len().saturating_sub(self.ended.len()));
        self.to_release = gathered.into_iter().flatten().collect();
        self.ended_since_us = self.now_us;
        self.persisting = true;
        self.outputs.push_back(Output::Persist(changes));
    }

    fn report(&mut self, worker: WorkerId) {
        while self.in_flight.len() < REPORTS_IN_FLIGHT {
            let started: Vec<AttemptId> = self
                .started
                .iter()
                .filter(|(_, at)| at.saturating_add(STARTED_AFTER_US) <= self.now_us)
                .map(|(attempt, _)| *attempt)
                .take(limits::REPORT_ATTEMPTS)
                .collect();
            let sequence = self.next_sequence;
            let has_record = match self.outbox.next_to_send() {
                Some(record) => {
                    record.sequence = Some(sequence);
                    true
                }
                None => false,
            };
            let wants_more = self.in_flight.is_empty() && self.prefetch.slots() > 2 * self.announced_slots;
            if !has_record && !wants_more && (started.is_empty() || !self.in_flight.is_empty()) {
                break;
            }
            for attempt in &started {
                self.started.remove(attempt);
            }
            self.next_sequence += 1;
            self.send(worker, sequence, started);
        }
    }

    fn send(&mut self, worker: WorkerId, sequence: u64, started: Vec<AttemptId>) {
        let runs: &[ReportedRun] = self.outbox.sent_as(sequence).map_or(&[], |record| record.runs.as_slice());
        let finished: Vec<Finished> = runs.iter().map(|run| run.finished.clone()).collect();
        // A statement that cannot be written down would never be accepted; its attempts are lost when the lease ends.
        let signed = self.sign(sequence, runs).ok().flatten();
        self.announced_slots = self.prefetch.slots();
        self.in_flight.push_back(InFlight { sequence, sent_us: self.now_us });
        self.outputs.push_back(Output::Send(FromWorker::Report(Report {
            worker,
            incarnation: self.options.incarnation,
            session: self.session,
            sequence,
            slots: self.announced_slots,
            started,
            finished: if signed.is_some() { finished } else { Vec::new() },
            signed,
        })));
    }

    fn sign(&self, sequence: u64, runs: &[ReportedRun]) -> Result<Option<SignedRoot>, AgentError> {
        if runs.is_empty() {
            return Ok(None);
        }
        let signer = &self.options.signer;
        let salt =
            derive_seed(&self.options.salt_seed, &format!("salt/{}/{sequence}", self.options.incarnation));
        let root = report_root(signer, &salt, runs)?;
        let leaf_count = runs.iter().map(|run| run.finished.tasks.count).fold(0u32, u32::saturating_add);
        let header = ReportHeader {
            cluster: signer.cluster,
            worker_id: signer.node,
            certificate: signer.certificate,
            incarnation: self.options.incarnation,
            sequence,
            leaf_count,
            root,
        };
        let signature = header.sign(&self.key)?.to_vec();
        Ok(Some(SignedRoot { root, salt, signature }))
    }
}

/// What an attempt comes to that was cancelled before it started.
fn cancelled_before_start(wall_ms: u64) -> (AttemptResult, Usage) {
    let result = AttemptResult {
        outcome: Outcome::Cancelled,
        sandbox: SandboxLevel::None,
        usage_source: UsageSource::None,
        stdout: Content::EMPTY,
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: "cancelled before it started".to_owned(),
    };
    (result, Usage { started_at_ms: wall_ms, duration_us: 0, cpu_time_us: 0, peak_memory_bytes: 0 })
}
