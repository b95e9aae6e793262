//! The statements behind a report, built alike by the worker that signs, the leader that checks and the server that
//! proves: one function, so that they cannot differ.

use grey_proof::{
    Digest, DigestBuilder, ExecutionStatement, ProofError, ReportHeader, leaf_salt, merkle_root,
    statement_leaf,
};

use crate::attempt::Finished;
use crate::constraint::Tier;
use crate::history::{ReportRecord, ReportedRun, RunContext};
use crate::ids::TaskId;

/// Who signs: what every statement of a report has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signer {
    /// The cluster.
    pub cluster: Digest,
    /// The worker's node.
    pub node: Digest,
    /// Its certificate.
    pub certificate: Digest,
}

/// The statement of attempt `offset` of a run; `None` past its end.
pub fn statement(
    signer: &Signer,
    context: &RunContext,
    run: &Finished,
    offset: u32,
) -> Option<ExecutionStatement> {
    let usage = run.usage.get(offset as usize)?;
    let (assignment_term, assignment_index) = *context.assigned.get(offset as usize)?;
    let task = TaskId(run.tasks.first.0.checked_add(u64::from(offset))?);
    let manifest = run.result.manifest();
    Some(ExecutionStatement {
        cluster: signer.cluster,
        tenant: context.tenant.clone(),
        job_id: context.job.0,
        task_id: task.0,
        attempt_epoch: run.epoch.0,
        worker_id: signer.node,
        executor: context.executor.name().to_owned(),
        sandbox_level: run.result.sandbox.name().to_owned(),
        // Every worker has this tier until evidence of hardware is appraised.
        tier: Tier::Software.name().to_owned(),
        exec_key: context.exec_key_of(offset),
        result_hash: manifest.result_hash().ok()?,
        outcome: manifest.outcome_class,
        exit_code: manifest.exit_code,
        started_at_ms: usage.started_at_ms,
        completed_at_ms: usage.completed_at_ms(),
        duration_us: usage.duration_us,
        cpu_time_us: usage.cpu_time_us,
        peak_memory_bytes: usage.peak_memory_bytes,
        usage_source: run.result.usage_source.name().to_owned(),
        certificate: signer.certificate,
        assignment_term,
        assignment_index,
    })
}

/// The leaves of a report in order: for each attempt the salted hash of its statement. A run without context has none
/// that anyone could have stated, so its leaves are hashed over nothing.
pub fn leaves(signer: &Signer, salt: &[u8; 32], runs: &[ReportedRun]) -> Result<Vec<Digest>, ProofError> {
    let mut leaves = Vec::new();
    let mut bytes = Vec::with_capacity(2_048);
    for run in runs {
        let mut stated: Option<ExecutionStatement> = None;
        for offset in 0..run.finished.tasks.count {
            bytes.clear();
            if let Some(context) = &run.context {
                restate(&mut stated, signer, context, &run.finished, offset);
                if let Some(statement) = &stated {
                    statement.encode_v1(&mut bytes)?;
                }
            }
            let index = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
            leaves.push(statement_leaf(&leaf_salt(salt, index), &bytes));
        }
    }
    Ok(leaves)
}

/// Moves a statement on to another attempt of the same run: only a few of its fields differ, and building the rest
/// anew for each attempt would cost more than hashing it.
fn restate(
    stated: &mut Option<ExecutionStatement>,
    signer: &Signer,
    context: &RunContext,
    run: &Finished,
    offset: u32,
) {
    let (Some(previous), Some(usage), Some(assigned)) =
        (stated.as_mut(), run.usage.get(offset as usize), context.assigned.get(offset as usize))
    else {
        *stated = statement(signer, context, run, offset);
        return;
    };
    previous.task_id = run.tasks.first.0.saturating_add(u64::from(offset));
    previous.started_at_ms = usage.started_at_ms;
    previous.completed_at_ms = usage.completed_at_ms();
    previous.duration_us = usage.duration_us;
    previous.cpu_time_us = usage.cpu_time_us;
    previous.peak_memory_bytes = usage.peak_memory_bytes;
    previous.exec_key = context.exec_key_of(offset);
    (previous.assignment_term, previous.assignment_index) = *assigned;
}

/// The Merkle root that a report's signature covers.
pub fn report_root(signer: &Signer, salt: &[u8; 32], runs: &[ReportedRun]) -> Result<Digest, ProofError> {
    Ok(merkle_root(&leaves(signer, salt, runs)?))
}

/// The header that a report's signature covers, from its record.
pub fn report_header(cluster: Digest, record: &ReportRecord, leaf_count: u32) -> ReportHeader {
    ReportHeader {
        cluster,
        worker_id: record.node,
        certificate: record.certificate,
        incarnation: record.incarnation,
        sequence: record.sequence,
        leaf_count,
        root: record.signed.root,
    }
}

/// What the cluster's log says of a report: a digest over the signed header and the signature.
pub(crate) fn report_digest(cluster: Digest, record: &ReportRecord, leaf_count: u32) -> Digest {
    grey_proof::report_digest(&report_header(cluster, record, leaf_count), &record.signed.signature)
        .unwrap_or_else(|_| DigestBuilder::domain("grey/report/unstatable").finish())
}
