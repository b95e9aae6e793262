//! Reports of workers: started and finished attempts, at most one accepted completion each.

use std::collections::BTreeSet;

use grey_proof::{Digest, LogEntry, leaf_hash};

use super::task::{ASSIGNED, End, RUNNING, held_count};
use super::{Application, Stop};
use crate::attempt::{AttemptId, Finished, Outcome};
use crate::command::{Report, SignedRoot};
use crate::effect::{Answer, Effect, Event, EventKind};
use crate::history::{AttemptPointer, HistoryRecord, ReportRecord, ReportedRun, RunContext};
use crate::identity::{IdentityKey, IdentityRow, NodeStanding};
use crate::ids::{JobId, TaskId, TaskRange, WorkerId};
use crate::level::{ACCEPTANCE_LEVEL, TROUBLE_LEVEL};
use crate::limits;
use crate::quarantine::{HealthEvent, Standing};
use crate::rejection::Rejection;
use crate::rows::{LiveTask, Phase};
use crate::statement::report_digest;

/// What a report's finished runs came to.
#[derive(Default)]
struct Tally {
    runs: Vec<ReportedRun>,
    refused: Vec<u32>,
    pointers: Vec<(TaskRange, u32, u32)>,
    jobs: BTreeSet<JobId>,
    latest_wall_ms: u64,
}

impl Application<'_> {
    pub(super) fn report(&mut self, body: Report) -> Result<Answer, Stop> {
        check_shape(&body)?;
        let row = self.rows.workers.get(&body.worker).ok_or(Rejection::UnknownWorker(body.worker))?;
        if row.incarnation != body.incarnation {
            return Err(Rejection::StaleIncarnation {
                worker: body.worker,
                given: body.incarnation,
                present: row.incarnation,
            }
            .into());
        }
        let (node, last_sequence) = (row.node, row.last_sequence);
        self.check_session(body.worker, body.session)?;
        self.check_not_blocked(&node)?;
        if body.sequence <= last_sequence {
            #[cfg(feature = "mutants")]
            if self.rows.base.mutant == Some(crate::mutant::Mutant::ReplayCompletion) {
                for run in &body.finished {
                    let pointer = AttemptPointer { position: 0, leaf: 0 };
                    let (tasks, epoch) = (run.tasks, run.epoch.0);
                    self.effects.push(Effect::History(HistoryRecord::Attempts { tasks, epoch, pointer }));
                }
            }
            return Ok(Answer::Reported { duplicate: true });
        }
        let expected = last_sequence.saturating_add(1);
        if body.sequence != expected {
            return Err(
                Rejection::ReportOutOfOrder { worker: body.worker, given: body.sequence, expected }.into()
            );
        }
        let worker = self.worker_mut(body.worker)?;
        worker.last_sequence = body.sequence;
        worker.slots = body.slots.min(limits::WORKER_SLOTS);
        for attempt in &body.started {
            self.start(body.worker, *attempt)?;
        }
        if let Some(signed) = body.signed {
            self.finish_all(body.worker, body.sequence, signed, body.finished)?;
        }
        Ok(Answer::Reported { duplicate: false })
    }

    /// A server takes nothing from a node once its own state says that it is blocked; this is for what had been proposed by then.
    fn check_not_blocked(&self, node: &Digest) -> Result<(), Stop> {
        let standing = match self.rows.identity.get(&IdentityKey::Node(*node)) {
            Some(IdentityRow::Node(row)) => row.standing,
            _ => return Ok(()),
        };
        if standing == NodeStanding::Blocked && self.rows.meta.feature_level >= ACCEPTANCE_LEVEL {
            return Err(Rejection::NotAdmitted("the node is blocked".to_owned()).into());
        }
        Ok(())
    }

    fn start(&mut self, worker: WorkerId, attempt: AttemptId) -> Result<(), Stop> {
        let Some(live) = self.rows.live.get(&attempt.task) else { return Ok(()) };
        if live.epoch != attempt.epoch || live.phase != (Phase::Assigned { worker }) {
            return Ok(());
        }
        let spec = self.rows.specs.get(&live.group).ok_or(Stop::Bug("a group without its specification"))?;
        let executor = spec.executor;
        let clock = self.run_clock(live.timeout_ms.unwrap_or(spec.timeout_ms));
        let (job, _) = self.job_and_tenant(live.group)?;
        self.move_count(job, ASSIGNED, RUNNING, 1)?;
        if let Some(live) = self.rows.live.get_mut(&attempt.task) {
            live.phase = Phase::Running { worker };
            live.clock = Some(clock);
        }
        self.executor_started(worker, executor, attempt.task);
        Ok(())
    }

    fn finish_all(
        &mut self,
        worker: WorkerId,
        sequence: u64,
        signed: SignedRoot,
        finished: Vec<Finished>,
    ) -> Result<(), Stop> {
        let mut tally = Tally::default();
        let mut leaf = 0u32;
        for run in finished {
            let count = run.tasks.count;
            self.finish_run(worker, run, leaf, &mut tally)?;
            leaf = leaf.saturating_add(count);
        }
        self.append_to_log(worker, sequence, signed, leaf, &mut tally)?;
        for job in tally.jobs {
            self.end_job_if_done(job, tally.latest_wall_ms)?;
        }
        Ok(())
    }

    fn finish_run(
        &mut self,
        worker: WorkerId,
        run: Finished,
        leaf: u32,
        tally: &mut Tally,
    ) -> Result<(), Stop> {
        let mut context: Option<RunContext> = None;
        let mut group: Option<TaskId> = None;
        let mut assigned = Vec::with_capacity(run.usage.len());
        let mut accepted: Option<(TaskRange, u32)> = None;
        for (offset, task) in (0u32..).zip(run.tasks.tasks()) {
            let attempt = AttemptId { task, epoch: run.epoch };
            // A run is of one group, since its attempts share a context; what a worker mixes in is refused.
            let live = self
                .held_attempt(worker, attempt)
                .filter(|live| group.is_none_or(|group| group == live.group));
            assigned.push(live.as_ref().map_or((0, 0), |live| (live.assigned_term, live.assigned_index)));
            if let (Some(live), None) = (&live, &context) {
                context = Some(self.context(live.group, run.tasks.first)?);
                group = Some(live.group);
            }
            let live = live.filter(|live| !matches!(live.phase, Phase::Stopping { .. }));
            let Some(live) = live else {
                self.refuse_result(worker, attempt)?;
                tally.refused.push(leaf.saturating_add(offset));
                if let Some((tasks, first_leaf)) = accepted.take() {
                    tally.pointers.push((tasks, run.epoch.0, first_leaf));
                }
                continue;
            };
            match &mut accepted {
                Some((tasks, _)) => tasks.count += 1,
                None => accepted = Some((TaskRange::single(task), leaf.saturating_add(offset))),
            }
            let job = self.finish_one(worker, attempt, &live, run.result.outcome)?;
            tally.jobs.insert(job);
        }
        if let Some((tasks, first_leaf)) = accepted {
            tally.pointers.push((tasks, run.epoch.0, first_leaf));
        }
        let latest = run.usage.iter().map(|usage| usage.completed_at_ms()).max().unwrap_or(0);
        tally.latest_wall_ms = tally.latest_wall_ms.max(latest);
        if let Some(context) = &mut context {
            context.assigned = assigned;
        }
        tally.runs.push(ReportedRun { context, finished: run });
        Ok(())
    }

    /// The live task of an attempt that this worker holds, cancelled or not.
    fn held_attempt(&self, worker: WorkerId, attempt: AttemptId) -> Option<LiveTask> {
        let live = self.rows.live.get(&attempt.task)?;
        #[cfg(feature = "mutants")]
        if self.rows.base.mutant == Some(crate::mutant::Mutant::AcceptStaleEpoch)
            && live.phase.worker().is_some()
        {
            return Some(live.clone());
        }
        (live.phase.worker() == Some(worker) && live.epoch == attempt.epoch).then(|| live.clone())
    }

    /// A result that comes too late: refused, but a cancelled attempt has thereby stopped.
    fn refuse_result(&mut self, worker: WorkerId, attempt: AttemptId) -> Result<(), Stop> {
        self.rows.meta.refused_results = self.rows.meta.refused_results.saturating_add(1);
        let Some(live) = self.rows.live.get(&attempt.task).cloned() else { return Ok(()) };
        if live.epoch != attempt.epoch || live.phase != (Phase::Stopping { worker }) {
            return Ok(());
        }
        let (job, _) = self.job_and_tenant(live.group)?;
        self.release(worker, attempt.task, live.group)?;
        self.stopped(attempt.task, job)?;
        let wall_ms = self.rows.jobs.get(&job).map_or(0, |job| job.info.created_at_ms);
        self.end_job_if_done(job, wall_ms)
    }

    fn context(&self, group: TaskId, first: TaskId) -> Result<RunContext, Stop> {
        let (job, tenant) = self.job_and_tenant(group)?;
        let tenant = self.rows.tenants.get(&tenant).ok_or(Stop::Bug("a job without its tenant"))?;
        let spec = self.rows.specs.get(&group).ok_or(Stop::Bug("a group without its specification"))?;
        let stage = self.stage_of(job, group);
        Ok(RunContext {
            job,
            tenant: tenant.name.as_ref().to_owned(),
            executor: spec.executor,
            exec_key: spec.exec_key(stage.as_deref()),
            first_item: RunContext::first_item_of(stage.as_deref(), first),
            assigned: Vec::new(),
        })
    }

    fn finish_one(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        live: &LiveTask,
        outcome: Outcome,
    ) -> Result<JobId, Stop> {
        let (job, _) = self.job_and_tenant(live.group)?;
        let from = held_count(live.phase);
        let spec =
            self.rows.specs.get(&live.group).ok_or(Stop::Bug("a group without its specification"))?.clone();
        let mut retry = false;
        self.executor_ended(worker, spec.executor, live, outcome)?;
        if outcome == Outcome::Infrastructure {
            retry = live.losses < spec.retries.infrastructure;
            self.lose_until(attempt, self.phase_after_loss(attempt, live.losses))?;
        } else {
            self.release(worker, attempt.task, live.group)?;
            if outcome.is_success() {
                if matches!(self.worker_mut(worker)?.quarantine.standing, Standing::Probation { .. }) {
                    self.judge(worker, HealthEvent::Succeeded)?;
                }
                self.end_task(attempt.task, job, from, End::Completed)?;
            } else if live.failures < spec.retries.failure {
                retry = true;
                let until_ms = self.rows.meta.time_ms.saturating_add(backoff_ms(attempt, live.failures));
                self.wait_again(attempt.task, live.group, from, |live| {
                    live.failures += 1;
                    live.phase = Phase::Backoff { until_ms };
                })?;
            } else {
                self.end_task(attempt.task, job, from, End::Failed)?;
            }
        }
        let kind = EventKind::AttemptEnded { task: attempt.task, outcome: outcome.class(), retry };
        self.effects.push(Effect::Event(Event { index: self.index, job, kind }));
        Ok(job)
    }

    /// How a task waits that a worker could not run. At once, it might be back on the same worker before anybody knows what is wrong
    /// with that, and a few broken ones would use up all its retries.
    fn phase_after_loss(&self, attempt: AttemptId, losses: u16) -> Phase {
        if self.rows.meta.feature_level < TROUBLE_LEVEL {
            return Phase::Ready;
        }
        Phase::Backoff { until_ms: self.rows.meta.time_ms.saturating_add(backoff_ms(attempt, losses)) }
    }

    /// One leaf of the cluster's log for the whole report, and the records from which proofs are rebuilt.
    fn append_to_log(
        &mut self,
        worker: WorkerId,
        sequence: u64,
        signed: SignedRoot,
        leaf_count: u32,
        tally: &mut Tally,
    ) -> Result<(), Stop> {
        let row = self.worker_mut(worker)?;
        let (node, certificate, incarnation) = (row.node, row.certificate, row.incarnation);
        let cluster = self.rows.meta.cluster.ok_or(Stop::Bug("a report before the founding"))?;
        let position = self.rows.meta.log.size();
        let record = ReportRecord {
            position,
            node,
            certificate,
            incarnation,
            sequence,
            signed,
            term: self.term,
            index: self.index,
            refused: core::mem::take(&mut tally.refused),
            runs: core::mem::take(&mut tally.runs),
        };
        let entry = LogEntry {
            report_digest: report_digest(cluster, &record, leaf_count),
            term: self.term,
            index: self.index,
            refused: record.refused.clone(),
        };
        let encoded = entry.encode_v1().map_err(|_| Stop::Bug("a log entry's index is out of range"))?;
        let hashes = self.rows.meta.log.append(leaf_hash(&encoded));
        self.effects.push(Effect::LogGrew { position, hashes });
        for (tasks, epoch, leaf) in tally.pointers.drain(..) {
            let pointer = AttemptPointer { position, leaf };
            self.effects.push(Effect::History(HistoryRecord::Attempts { tasks, epoch, pointer }));
        }
        self.effects.push(Effect::History(HistoryRecord::Report(Box::new(record))));
        Ok(())
    }
}

/// Waits before a failed task is tried again, after so many of its kind before: doubling, capped, spread by a quarter so that neighbours do not
/// return together. The spread follows from the attempt, so every replica agrees.
fn backoff_ms(attempt: AttemptId, failures: u16) -> u64 {
    let doubled = limits::BACKOFF_FIRST_MS << u32::from(failures).min(16);
    let whole = doubled.min(limits::BACKOFF_LONGEST_MS);
    let spread = (attempt.task.0 ^ u64::from(attempt.epoch.0).rotate_left(32))
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        >> 32;
    whole - whole / 4 + spread % (whole / 4 + 1)
}

fn check_shape(body: &Report) -> Result<(), Rejection> {
    let refuse = |field: &str, problem: &str, limit: u64| {
        Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit })
    };
    if body.started.len() > limits::WORKER_SLOTS as usize {
        return refuse("started", "is too long", u64::from(limits::WORKER_SLOTS));
    }
    let mut attempts = 0usize;
    for run in &body.finished {
        attempts = attempts.saturating_add(run.tasks.count as usize);
        if run.tasks.count == 0 || run.usage.len() != run.tasks.count as usize {
            return refuse("finished", "has a run whose figures do not match its tasks", 0);
        }
        if run.result.message.len() > limits::MESSAGE_BYTES {
            return refuse("message", "is too long", limits::MESSAGE_BYTES as u64);
        }
    }
    if attempts > limits::REPORT_ATTEMPTS {
        return refuse("finished", "has too many attempts", limits::REPORT_ATTEMPTS as u64);
    }
    if body.signed.is_some() == body.finished.is_empty() {
        return refuse("signed", "must be there exactly when an attempt finished", 0);
    }
    Ok(())
}
