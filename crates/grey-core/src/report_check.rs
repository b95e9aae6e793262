//! The leader's look at a report before it proposes it: what the worker signed must be what the state would record, or
//! no proof of it could be built later.

use grey_proof::{VerifyingKey, report_digest};

use crate::attempt::AttemptId;
use crate::command::Report;
use crate::history::{ReportedRun, RunContext};
use crate::ids::TaskId;
use crate::limits;
use crate::rows::{Presence, Worker};
use crate::state::State;
use crate::statement::{Signer, report_root};

/// Why a report is not proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefusal {
    /// The worker is unknown, or has begun another life: it must announce itself.
    #[error("the worker is not registered in this life")]
    Unregistered,
    /// The worker does not hold these attempts: it must leave them out.
    #[error("{} attempt(s) are not held by the worker", .0.len())]
    NotHeld(Vec<AttemptId>),
    /// The root is not over the statements of these attempts, or the signature is not the worker's.
    #[error("the report is not signed by its worker over what it says")]
    BadSignature,
    /// The report's shape breaks a bound.
    #[error("the report breaks a bound of its shape")]
    Malformed,
}

/// Checks a report against the state. One that was accepted before is fine: applying it again changes nothing.
pub fn check_report(state: &State, report: &Report, key: &VerifyingKey) -> Result<(), ReportRefusal> {
    let worker = state.workers.get(&report.worker).ok_or(ReportRefusal::Unregistered)?;
    let announced = worker.incarnation == report.incarnation && worker.session == report.session;
    if !announced || worker.presence == Presence::Lost || worker.node != key.id() {
        return Err(ReportRefusal::Unregistered);
    }
    let Some(signed) = &report.signed else { return Ok(()) };
    if report.sequence <= worker.last_sequence {
        return Ok(());
    }
    let runs = runs(state, report)?;
    let cluster = state.meta.cluster.ok_or(ReportRefusal::Unregistered)?;
    let signer = Signer { cluster, node: worker.node, certificate: worker.certificate };
    let root = report_root(&signer, &signed.salt, &runs).map_err(|_| ReportRefusal::Malformed)?;
    if root != signed.root {
        return Err(ReportRefusal::BadSignature);
    }
    let header = header(worker, cluster, report, root);
    // Whoever can be hashed into the log can also be checked again from it.
    report_digest(&header, &signed.signature).map_err(|_| ReportRefusal::Malformed)?;
    header.verify(key, &signed.signature).map_err(|_| ReportRefusal::BadSignature)
}

fn header(
    worker: &Worker,
    cluster: grey_proof::Digest,
    report: &Report,
    root: grey_proof::Digest,
) -> grey_proof::ReportHeader {
    let leaf_count = report.finished.iter().map(|run| run.tasks.count).fold(0u32, u32::saturating_add);
    grey_proof::ReportHeader {
        cluster,
        worker_id: worker.node,
        certificate: worker.certificate,
        incarnation: report.incarnation,
        sequence: report.sequence,
        leaf_count,
        root,
    }
}

/// The runs as the state would record them.
fn runs(state: &State, report: &Report) -> Result<Vec<ReportedRun>, ReportRefusal> {
    let (mut runs, mut strangers, mut attempts) = (Vec::new(), Vec::new(), 0usize);
    for run in &report.finished {
        attempts = attempts.saturating_add(run.tasks.count as usize);
        if attempts > limits::REPORT_ATTEMPTS || run.usage.len() != run.tasks.count as usize {
            return Err(ReportRefusal::Malformed);
        }
        let mut group: Option<TaskId> = None;
        let mut assigned = Vec::with_capacity(run.usage.len());
        for task in run.tasks.tasks() {
            let attempt = AttemptId { task, epoch: run.epoch };
            #[cfg(feature = "mutants")]
            let any = state.mutant == Some(crate::mutant::Mutant::AcceptStaleEpoch);
            #[cfg(not(feature = "mutants"))]
            let any = false;
            let live = state.live.get(&task).filter(|live| {
                if any && live.phase.worker().is_some() {
                    return true;
                }
                live.epoch == run.epoch
                    && live.phase.worker() == Some(report.worker)
                    && group.is_none_or(|group| group == live.group)
            });
            match live {
                Some(live) => {
                    group = Some(live.group);
                    assigned.push((live.assigned_term, live.assigned_index));
                }
                None => strangers.push(attempt),
            }
        }
        let context = group.and_then(|group| context(state, group, run.tasks.first, assigned));
        runs.push(ReportedRun { context, finished: run.clone() });
    }
    if strangers.is_empty() { Ok(runs) } else { Err(ReportRefusal::NotHeld(strangers)) }
}

fn context(state: &State, group: TaskId, first: TaskId, assigned: Vec<(u64, u64)>) -> Option<RunContext> {
    let job = state.groups.get(&group)?.job;
    let tenant = state.jobs.get(&job)?.info.tenant;
    let tenant = state.tenants.get(&tenant)?.name.as_ref().to_owned();
    let spec = state.specs.get(&group)?;
    let stage = state.flow(job).and_then(|flow| flow.stage_of(group));
    let stage = stage.map(|(_, stage)| stage.as_ref());
    let (exec_key, first_item) = (spec.exec_key(stage), RunContext::first_item_of(stage, first));
    Some(RunContext { job, tenant, executor: spec.executor, exec_key, first_item, assigned })
}
