//! Results on their way to the cluster: gathered into records, each made durable before it is reported and forgotten
//! when its report was accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use grey_core::{
    AttemptId, AttemptResult, Finished, JobId, ReportedRun, RunContext, Stage, TaskId, TaskRange, TaskSpec,
    Usage, limits,
};
use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

/// Version of a record's bytes.
const RECORD_VERSION: u8 = 1;
/// A record is closed at half of what a report may hold: its estimate is rough.
const RECORD_BYTES: usize = limits::REPORT_BYTES / 2;

/// What the attempts of one group have in common.
#[derive(Debug)]
pub(crate) struct GroupContext {
    pub(crate) job: JobId,
    pub(crate) group: TaskId,
    pub(crate) tenant: Arc<str>,
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) stage: Option<Arc<Stage>>,
    pub(crate) exec_key: Digest,
}

/// An attempt that ended and is in no record yet.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) attempt: AttemptId,
    pub(crate) context: Arc<GroupContext>,
    pub(crate) assigned: (u64, u64),
    pub(crate) result: AttemptResult,
    pub(crate) usage: Usage,
}

impl Ended {
    /// Whether an executor of processes may hold something of it.
    pub(crate) fn is_process(&self) -> bool {
        self.context.spec.executor == grey_core::ExecutorKind::Process
    }
}

/// The results of one report.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) runs: Vec<ReportedRun>,
    pub(crate) durable: bool,
    /// The report that carries it, once it was sent.
    pub(crate) sequence: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct RecordBytes {
    version: u8,
    runs: Vec<ReportedRun>,
}

/// Records by key, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    records: BTreeMap<u64, Record>,
    next_key: u64,
    forgotten: Vec<u64>,
}

fn estimate(ended: &Ended) -> usize {
    let content = |content: &grey_core::Content| match content {
        grey_core::Content::Inline(bytes) => bytes.len(),
        grey_core::Content::Blob(_) => 48,
    };
    let result = &ended.result;
    let files: usize = result.files.iter().map(|file| file.path.len() + content(&file.content) + 16).sum();
    content(&result.stdout) + content(&result.stderr) + files + result.message.len() + 64
}

impl Outbox {
    /// What an earlier life left.
    pub(crate) fn recover<'a>(
        found: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<Outbox, AgentError> {
        let mut outbox = Outbox::default();
        for (key, bytes) in found {
            let record: RecordBytes =
                postcard::from_bytes(bytes).map_err(|_| AgentError::DamagedRecord { key })?;
            if record.version != RECORD_VERSION || key == u64::MAX || !is_one(&record.runs) {
                return Err(AgentError::DamagedRecord { key });
            }
            outbox.records.insert(key, Record { runs: record.runs, durable: true, sequence: None });
            outbox.next_key = key.saturating_add(1);
        }
        Ok(outbox)
    }

    /// Makes a record of as many ended attempts as one report takes. Returns what is to be made durable: the record,
    /// and the removal of those that were accepted since.
    pub(crate) fn gather(&mut self, ended: &mut Vec<Ended>) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut changes: Vec<(u64, Option<Vec<u8>>)> =
            core::mem::take(&mut self.forgotten).into_iter().map(|key| (key, None)).collect();
        if ended.is_empty() {
            return changes;
        }
        let mut size = 0usize;
        let fitting = ended
            .iter()
            .take(limits::REPORT_ATTEMPTS)
            .take_while(|one| {
                let fits = size == 0 || size + estimate(one) <= RECORD_BYTES;
                size += estimate(one);
                fits
            })
            .count();
        let mut taken: Vec<Ended> = ended.drain(..fitting).collect();
        taken.sort_by_key(|one| one.attempt);
        let record = RecordBytes { version: RECORD_VERSION, runs: runs(taken) };
        // Serialising to memory fails only for types without a known length, and runs have none of those.
        let bytes = postcard::to_allocvec(&record).unwrap_or_default();
        changes.push((self.next_key, Some(bytes)));
        self.records.insert(self.next_key, Record { runs: record.runs, durable: false, sequence: None });
        self.next_key += 1;
        changes
    }

    /// Whether a record waits to become durable.
    pub(crate) fn is_writing(&self) -> bool {
        self.records.values().any(|record| !record.durable)
    }

    /// Whether records were accepted whose removal is not durable yet.
    pub(crate) fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// Everything asked for so far is durable.
    pub(crate) fn durable(&mut self) {
        self.records.values_mut().for_each(|record| record.durable = true);
    }

    /// The oldest durable record that was not sent.
    pub(crate) fn next_to_send(&mut self) -> Option<&mut Record> {
        self.records.values_mut().find(|record| record.durable && record.sequence.is_none())
    }

    /// The record that a report carried.
    pub(crate) fn sent_as(&self, sequence: u64) -> Option<&Record> {
        self.records.values().find(|record| record.sequence == Some(sequence))
    }

    /// A report was accepted; its record is forgotten, durably with the next change.
    pub(crate) fn accepted(&mut self, sequence: u64) {
        let key = self.records.iter().find(|(_, record)| record.sequence == Some(sequence));
        if let Some(key) = key.map(|(key, _)| *key) {
            self.records.remove(&key);
            self.forgotten.push(key);
        }
    }

    /// Attempts whose results are in a record.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.records.values().flat_map(|record| &record.runs).flat_map(|run| {
            let epoch = run.finished.epoch;
            run.finished.tasks.tasks().map(move |task| AttemptId { task, epoch })
        })
    }

    /// The runs of every record.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &ReportedRun> {
        self.records.values().flat_map(|record| &record.runs)
    }

    /// Whether a record has the attempt's result.
    pub(crate) fn covers(&self, attempt: AttemptId) -> bool {
        let has = |run: &ReportedRun| {
            run.finished.epoch == attempt.epoch && run.finished.tasks.contains(attempt.task)
        };
        self.records.values().any(|record| record.runs.iter().any(has))
    }

    /// Takes results out that nobody wants any more. What is on the disk stays; it is refused again, if it comes to that.
    pub(crate) fn drop_attempts(&mut self, unwanted: &dyn Fn(AttemptId) -> bool) {
        for record in self.records.values_mut() {
            record.runs = record.runs.drain(..).flat_map(|run| without(run, unwanted)).collect();
        }
        let empty: Vec<u64> = self
            .records
            .iter()
            .filter(|(_, record)| record.runs.is_empty() && record.sequence.is_none())
            .map(|(key, _)| *key)
            .collect();
        for key in empty {
            self.records.remove(&key);
            self.forgotten.push(key);
        }
    }
}

/// Whether these runs can be of one report: what follows goes through their tasks one by one, with the figures of each.
fn is_one(runs: &[ReportedRun]) -> bool {
    let mut attempts = 0usize;
    runs.iter().all(|run| {
        let (tasks, count) = (run.finished.tasks, run.finished.tasks.count as usize);
        attempts = attempts.saturating_add(count);
        let whole = tasks.first.0.checked_add(u64::from(tasks.count)).is_some();
        let assigned = run.context.as_ref().map(|context| context.assigned.len());
        count > 0
            && whole
            && attempts <= limits::REPORT_ATTEMPTS
            && run.finished.usage.len() == count
            && assigned == Some(count)
    })
}

/// Joins neighbouring attempts of one group and epoch that came to the same.
fn runs(ended: Vec<Ended>) -> Vec<ReportedRun> {
    let mut runs: Vec<ReportedRun> = Vec::new();
    let mut last_group: Option<TaskId> = None;
    for one in ended {
        let joins = last_group == Some(one.context.group)
            && runs.last().is_some_and(|run| {
                run.finished.tasks.end() == one.attempt.task
                    && run.finished.epoch == one.attempt.epoch
                    && run.finished.result == one.result
            });
        last_group = Some(one.context.group);
        match runs.last_mut() {
            Some(run) if joins => {
                run.finished.tasks.count += 1;
                run.finished.usage.push(one.usage);
                if let Some(context) = &mut run.context {
                    context.assigned.push(one.assigned);
                }
            }
            _ => runs.push(ReportedRun {
                context: Some(RunContext {
                    job: one.context.job,
                    tenant: one.context.tenant.as_ref().to_owned(),
                    executor: one.context.spec.executor,
                    exec_key: one.context.exec_key,
                    first_item: RunContext::first_item_of(one.context.stage.as_deref(), one.attempt.task),
                    assigned: vec![one.assigned],
                }),
                finished: Finished {
                    tasks: TaskRange::single(one.attempt.task),
                    epoch: one.attempt.epoch,
                    result: one.result,
                    usage: vec![one.usage],
                },
            }),
        }
    }
    runs
}

/// A run without the unwanted attempts: what lies between them stays together.
fn without(run: ReportedRun, unwanted: &dyn Fn(AttemptId) -> bool) -> Vec<ReportedRun> {
    let epoch = run.finished.epoch;
    if !run.finished.tasks.tasks().any(|task| unwanted(AttemptId { task, epoch })) {
        return vec![run];
    }
    let mut kept: Vec<ReportedRun> = Vec::new();
    let mut joins = false;
    for (offset, task) in run.finished.tasks.tasks().enumerate() {
        let assigned = run.context.as_ref().and_then(|context| context.assigned.get(offset)).copied();
        let usage = run.finished.usage.get(offset).copied();
        let (false, Some(assigned), Some(usage)) = (unwanted(AttemptId { task, epoch }), assigned, usage)
        else {
            joins = false;
            continue;
        };
        match kept.last_mut() {
            Some(last) if joins => {
                last.finished.tasks.count += 1;
                last.finished.usage.push(usage);
                if let Some(context) = &mut last.context {
                    context.assigned.push(assigned);
                }
            }
            _ => {
                let mut one = run.clone();
                one.finished.tasks = TaskRange::single(task);
                one.finished.usage = vec![usage];
                if let Some(context) = &mut one.context {
                    context.assigned = vec![assigned];
                }
                kept.push(one);
            }
        }
        joins = true;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::{Content, Epoch, ExecutorKind, Outcome, SandboxLevel, UsageSource};

    fn run(first: u64, count: u32, figures: usize) -> ReportedRun {
        let result = AttemptResult {
            outcome: Outcome::Exited(0),
            sandbox: SandboxLevel::None,
            usage_source: UsageSource::None,
            stdout: Content::EMPTY,
            stderr: Content::EMPTY,
            files: Vec::new(),
            message: String::new(),
        };
        let context = RunContext {
            job: JobId(1),
            tenant: "default".to_owned(),
            executor: ExecutorKind::Noop,
            exec_key: Digest::ZERO,
            first_item: None,
            assigned: vec![(1, 1); figures],
        };
        let tasks = TaskRange { first: TaskId(first), count };
        let finished = Finished { tasks, epoch: Epoch(1), result, usage: vec![Usage::default(); figures] };
        ReportedRun { context: Some(context), finished }
    }

    fn recovered(key: u64, runs: Vec<ReportedRun>) -> Result<usize, AgentError> {
        let bytes = postcard::to_allocvec(&RecordBytes { version: RECORD_VERSION, runs }).unwrap();
        Outbox::recover([(key, bytes.as_slice())]).map(|outbox| outbox.attempts().count())
    }

    #[test]
    fn a_record_that_no_report_could_carry_is_damaged() {
        assert_eq!(recovered(3, vec![run(1, 2, 2), run(9, 1, 1)]).unwrap(), 3);
        assert_eq!(recovered(3, Vec::new()).unwrap(), 0);
        let half = limits::REPORT_ATTEMPTS as u32 / 2 + 1;
        let without_context = ReportedRun { context: None, ..run(1, 1, 1) };
        for (key, wrong) in [
            // Four thousand million attempts that no figures stand for would be announced one by one.
            (3, vec![run(1, u32::MAX, 1)]),
            (3, vec![run(1, 0, 0)]),
            (3, vec![run(1, 1, 2)]),
            (3, vec![run(u64::MAX, 2, 2)]),
            (3, vec![run(1, half, half as usize), run(9_999, half, half as usize)]),
            (3, vec![without_context]),
            // No key comes after it.
            (u64::MAX, vec![run(1, 1, 1)]),
        ] {
            assert!(matches!(recovered(key, wrong), Err(AgentError::DamagedRecord { .. })));
        }
    }
}
