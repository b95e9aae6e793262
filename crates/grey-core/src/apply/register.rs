//! Workers announce themselves, and what they no longer hold is lost.

use std::collections::BTreeSet;

use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::RegisterWorker;
use crate::constraint::{Devices, Tier};
use crate::effect::{Answer, Assignment, Effect};
use crate::ids::{TaskId, TaskRange, WorkerId};
use crate::limits;
use crate::quarantine::{HealthEvent, Quarantine};
use crate::rejection::Rejection;
use crate::rows::{LiveTask, Phase, Presence, Worker, WorkerDevices};
use crate::spec::Resources;
use crate::validate;

impl Application<'_> {
    pub(super) fn register_worker(&mut self, body: RegisterWorker) -> Result<Answer, Stop> {
        bounds(&body)?;
        let tier = self.admitted_tier(&body.node, &body.certificate)?;
        let cordoned = self.rows.base.node(&body.node).is_some_and(|row| row.cordoned);
        let known = self.rows.base.workers.iter().find(|(_, worker)| worker.node == body.node);
        let worker = match known {
            Some((worker, row)) if body.incarnation < row.incarnation => {
                return Err(Rejection::StaleIncarnation {
                    worker: *worker,
                    given: body.incarnation,
                    present: row.incarnation,
                }
                .into());
            }
            Some((worker, row)) if body.incarnation == row.incarnation && body.session <= row.session => {
                let (given, present) = (body.session, row.session);
                return Err(Rejection::StaleSession { worker: *worker, given, present }.into());
            }
            Some((worker, row)) => {
                let sequence = if body.incarnation == row.incarnation { row.last_sequence } else { 0 };
                let devices = row.devices.clone();
                let (charged, held, quarantine) = (row.charged, row.held, row.quarantine);
                let kept = Kept { last_sequence: sequence, charged, held, devices, quarantine };
                let worker = *worker;
                self.rows.workers.insert(worker, worker_row(&body, (tier, cordoned), kept));
                worker
            }
            None => self.first_registration(&body, (tier, cordoned))?,
        };
        self.judge(worker, HealthEvent::Heard)?;
        let unknown = self.reconcile(worker, &body)?;
        Ok(Answer::Registered { worker, unknown })
    }

    fn first_registration(&mut self, body: &RegisterWorker, node: OfNode) -> Result<WorkerId, Stop> {
        let registered = self.rows.meta.workers_registered;
        if self.rows.base.workers.len() >= limits::WORKERS {
            return Err(
                Rejection::QueueFull { what: "workers".to_owned(), limit: limits::WORKERS as u64 }.into()
            );
        }
        let number = registered.checked_add(1).ok_or_else(|| Rejection::Exhausted("worker".to_owned()))?;
        self.rows.meta.workers_registered = number;
        self.rows.workers.insert(WorkerId(number), worker_row(body, node, Kept::default()));
        Ok(WorkerId(number))
    }

    /// Loses what the worker does not hold, sends what it has not got yet, and returns what it should not hold.
    fn reconcile(&mut self, worker: WorkerId, body: &RegisterWorker) -> Result<Vec<AttemptId>, Stop> {
        let holding: BTreeSet<AttemptId> = body.holding.iter().copied().collect();
        let same_life =
            self.rows.base.workers.get(&worker).is_some_and(|row| row.incarnation == body.incarnation);
        let held: Vec<(TaskId, LiveTask)> = self
            .rows
            .base
            .live
            .iter()
            .filter(|(_, live)| live.phase.worker() == Some(worker))
            .map(|(task, live)| (*task, live.clone()))
            .collect();
        let mut known = BTreeSet::new();
        for (task, live) in held {
            let attempt = AttemptId { task, epoch: live.epoch };
            known.insert(attempt);
            if holding.contains(&attempt) {
                if matches!(live.phase, Phase::Stopping { .. }) {
                    self.effects.push(Effect::Stop { worker, attempt });
                } else if let Some(timeout_ms) = live.timeout_ms {
                    self.effects.push(Effect::ChangeTimeout { worker, attempts: vec![attempt], timeout_ms });
                }
            } else if same_life && matches!(live.phase, Phase::Assigned { .. }) {
                self.assign_again(worker, attempt, &live)?;
            } else {
                let (job, _) = self.job_and_tenant(live.group)?;
                #[cfg(feature = "mutants")]
                if self.rows.base.mutant == Some(crate::mutant::Mutant::ForgetRetirement) {
                    continue;
                }
                self.lose(attempt)?;
                let wall_ms = self.rows.jobs.get(&job).map_or(0, |job| job.info.created_at_ms);
                self.end_job_if_done(job, wall_ms)?;
            }
        }
        #[cfg(feature = "mutants")]
        if self.rows.base.mutant == Some(crate::mutant::Mutant::AcceptStaleEpoch) {
            return Ok(Vec::new());
        }
        Ok(holding.difference(&known).copied().collect())
    }

    /// An assignment that may not have reached the worker in this life.
    fn assign_again(&mut self, worker: WorkerId, attempt: AttemptId, live: &LiveTask) -> Result<(), Stop> {
        let (job, tenant) = self.job_and_tenant(live.group)?;
        let tenant = self.tenant_mut(tenant)?.name.clone();
        let spec =
            self.rows.specs.get(&live.group).ok_or(Stop::Bug("a group without its specification"))?.clone();
        let tasks = TaskRange::single(attempt.task);
        let stage = self.stage_of(job, attempt.task);
        let timeout_ms = live.timeout_ms.unwrap_or(spec.timeout_ms);
        self.effects.push(Effect::Assign(Assignment {
            placement: crate::command::Placement { worker, tasks, epoch: attempt.epoch },
            job,
            group: live.group,
            tenant,
            spec,
            stage,
            timeout_ms,
            term: live.assigned_term,
            index: live.assigned_index,
        }));
        Ok(())
    }
}

/// What a worker's row repeats of its node's: how far it is trusted, and whether it is cordoned.
type OfNode = (Tier, bool);

/// What a worker's row keeps over a new announcement.
#[derive(Default)]
struct Kept {
    last_sequence: u64,
    charged: Resources,
    held: u32,
    devices: Vec<WorkerDevices>,
    quarantine: Quarantine,
}

/// The devices that a worker announces, charged as they were. Those of a kind that it has no longer stay while attempts
/// are charged for them.
fn devices(announced: &[Devices], kept: Vec<WorkerDevices>) -> Vec<WorkerDevices> {
    let mut rows: Vec<WorkerDevices> = kept.into_iter().filter(|kind| kind.charged > 0).collect();
    rows.iter_mut().for_each(|kind| kind.count = 0);
    for kind in announced {
        match rows.iter_mut().find(|row| row.name == kind.name) {
            Some(row) => row.count = kind.count,
            None => rows.push(WorkerDevices { name: kind.name.clone(), count: kind.count, charged: 0 }),
        }
    }
    rows.sort_by(|left, right| left.name.cmp(&right.name));
    rows
}

fn worker_row(body: &RegisterWorker, (tier, cordoned): OfNode, kept: Kept) -> Worker {
    Worker {
        node: body.node,
        name: body.name.as_str().into(),
        incarnation: body.incarnation,
        session: body.session,
        presence: Presence::Present,
        quarantine: kept.quarantine,
        last_sequence: kept.last_sequence,
        capacity: body.capacity,
        charged: kept.charged,
        slots: body.slots,
        held: kept.held,
        sandbox: body.sandbox,
        tier,
        cordoned,
        labels: body.labels.clone(),
        devices: devices(&body.devices, kept.devices),
        certificate: body.certificate,
    }
}

fn bounds(body: &RegisterWorker) -> Result<(), Rejection> {
    let refuse = |field: &str, problem: &str, limit: u64| {
        Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit })
    };
    if body.name.len() > limits::NAME_BYTES {
        return refuse("name", "is too long", limits::NAME_BYTES as u64);
    }
    if body.slots > limits::WORKER_SLOTS {
        return refuse("slots", "are too many", u64::from(limits::WORKER_SLOTS));
    }
    if body.holding.len() > limits::WORKER_SLOTS as usize {
        return refuse("holding", "is too long", u64::from(limits::WORKER_SLOTS));
    }
    validate::worker(&body.labels, &body.devices)?;
    let capacity = &body.capacity;
    if capacity.cpu_millicores.max(capacity.memory_bytes).max(capacity.disk_bytes) > limits::RESOURCE_TOTAL {
        return refuse("capacity", "is too large", limits::RESOURCE_TOTAL);
    }
    Ok(())
}
