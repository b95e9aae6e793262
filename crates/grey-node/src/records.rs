//! How history records are keyed, so that an attempt, a report or a job is found again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use grey_core::{
    AttemptPointer, Counts, FlowRecord, HistoryRecord, JobId, JobInfo, JobRecord, Outcome, ReportRecord,
    TaskId, TaskRange,
};
use grey_store::{HistoryReader, Horizons, RecordKey, RecordKind, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const ATTEMPTS: RecordKind = RecordKind(1);
const REPORT: RecordKind = RecordKind(2);
const JOB: RecordKind = RecordKind(3);
const JOB_OF_TASK: RecordKind = RecordKind(4);
const FLOW: RecordKind = RecordKind(5);
/// Tasks are gathered in blocks of so many; a record lies within one block.
const BLOCK_BITS: u32 = 6;
const BLOCK_TASKS: u64 = 1 << BLOCK_BITS;
/// The most reports that are read to tell how long tasks take.
const REPORTS_READ: usize = 32;
/// The most records that are looked through for one task: more attempts than retries allow of a whole block.
const BLOCK_RECORDS: usize = 65_536;

/// Attempts of neighbouring tasks in one block.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct AttemptsRecord {
    tasks: TaskRange,
    epoch: u32,
    pointer: AttemptPointer,
}

/// One attempt of a task and where its report lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundAttempt {
    pub(crate) epoch: u32,
    pub(crate) pointer: AttemptPointer,
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising to memory fails only for types without a known length, and records have none of those.
    postcard::to_allocvec(value).unwrap_or_default()
}

/// The records to be appended for one of the core's.
pub(crate) fn encoded(record: &HistoryRecord, out: &mut Vec<(RecordKey, Vec<u8>)>) {
    match record {
        HistoryRecord::Attempts { tasks, epoch, pointer } => {
            let (mut first, end) = (tasks.first.0, tasks.end().0);
            while first < end {
                let block = first >> BLOCK_BITS;
                let last = end.min((block + 1) << BLOCK_BITS);
                let skipped = u32::try_from(first - tasks.first.0).unwrap_or(u32::MAX);
                let part = AttemptsRecord {
                    tasks: TaskRange { first: TaskId(first), count: (last - first) as u32 },
                    epoch: *epoch,
                    pointer: AttemptPointer {
                        position: pointer.position,
                        leaf: pointer.leaf.saturating_add(skipped),
                    },
                };
                // A task and an epoch end once, so the first task within the block and the epoch name the record.
                let place = (first % BLOCK_TASKS) as u32;
                let subkey = place << (32 - BLOCK_BITS) | (*epoch & (u32::MAX >> BLOCK_BITS));
                out.push((RecordKey { kind: ATTEMPTS, key: block, subkey }, encode(&part)));
                first = last;
            }
        }
        HistoryRecord::Report(report) => {
            out.push((RecordKey { kind: REPORT, key: report.position, subkey: 0 }, encode(report)));
        }
        HistoryRecord::Job(job, record) => {
            out.push((RecordKey { kind: JOB, key: job.0, subkey: 0 }, encode(record)));
            let first = record.info.tasks.first.0;
            out.push((RecordKey { kind: JOB_OF_TASK, key: first, subkey: 0 }, encode(job)));
        }
        HistoryRecord::Flow(job, record) => {
            out.push((RecordKey { kind: FLOW, key: job.0, subkey: 0 }, encode(record)));
        }
    }
}

/// A record as it was kept.
pub(crate) enum Record {
    Report(Box<ReportRecord>),
    Job(JobId, Box<JobRecord>),
    Flow(JobId, Box<FlowRecord>),
    /// Says only where another one lies.
    Pointer,
}

/// Reads a record of history.
pub(crate) fn decoded(key: RecordKey, bytes: &[u8]) -> Result<Record, StoreError> {
    Ok(match key.kind {
        REPORT => Record::Report(Box::new(decode(bytes)?)),
        JOB => Record::Job(JobId(key.key), Box::new(decode(bytes)?)),
        FLOW => Record::Flow(JobId(key.key), Box::new(decode(bytes)?)),
        _ => Record::Pointer,
    })
}

/// Reads history in the core's types.
#[derive(Debug, Clone)]
pub(crate) struct Records(pub(crate) HistoryReader);

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| undecodable())
}

fn undecodable() -> StoreError {
    StoreError::Damaged {
        file: "history".to_owned(),
        place: "a record".to_owned(),
        what: "its checksum holds and it does not decode".to_owned(),
    }
}

impl Records {
    /// Of jobs that ended at or before these times something may be missing.
    pub(crate) fn horizons(&self) -> Horizons {
        self.0.horizons()
    }

    /// How many segments there are, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.0.size()
    }

    /// When a job ended, where its record is there: without reading what its tasks were.
    pub(crate) fn end_of(&self, job: u64) -> Result<Option<u64>, StoreError> {
        let Some(bytes) = self.0.get(RecordKey { kind: JOB, key: job, subkey: 0 })? else { return Ok(None) };
        // A record's fields follow one another as they are declared.
        let beginning = postcard::take_from_bytes::<(JobInfo, Counts, u64)>(&bytes);
        beginning.map(|((_, _, ended_at_ms), _)| Some(ended_at_ms)).map_err(|_| undecodable())
    }

    /// All attempts of a task that were reported, lowest epoch first.
    pub(crate) fn attempts(&self, task: TaskId) -> Result<Vec<FoundAttempt>, StoreError> {
        let block = task.0 >> BLOCK_BITS;
        let from = RecordKey { kind: ATTEMPTS, key: block, subkey: 0 };
        let to = RecordKey { kind: ATTEMPTS, key: block + 1, subkey: 0 };
        let mut found = Vec::new();
        for (_, bytes) in self.0.scan(from, to, BLOCK_RECORDS, false)? {
            let record: AttemptsRecord = decode(&bytes)?;
            if record.tasks.contains(task) {
                let offset = u32::try_from(task.0 - record.tasks.first.0).unwrap_or(u32::MAX);
                let AttemptPointer { position, leaf } = record.pointer;
                let pointer = AttemptPointer { position, leaf: leaf.saturating_add(offset) };
                found.push(FoundAttempt { epoch: record.epoch, pointer });
            }
        }
        found.sort_by_key(|attempt| attempt.epoch);
        Ok(found)
    }

    /// How long attempts of these tasks took that ran and were neither cancelled nor lost, in milliseconds: the last ones, at
    /// most about so many.
    pub(crate) fn durations_ms(&self, tasks: TaskRange, most: usize) -> Result<Vec<u64>, StoreError> {
        let from = RecordKey { kind: ATTEMPTS, key: tasks.first.0 >> BLOCK_BITS, subkey: 0 };
        let to =
            RecordKey { kind: ATTEMPTS, key: (tasks.end().0 >> BLOCK_BITS).saturating_add(1), subkey: 0 };
        let (mut found, mut reports) = (Vec::new(), BTreeMap::new());
        for (_, bytes) in self.0.scan(from, to, most, true)? {
            let record: AttemptsRecord = decode(&bytes)?;
            let position = record.pointer.position;
            if found.len() >= most || (reports.len() >= REPORTS_READ && !reports.contains_key(&position)) {
                break;
            }
            if let Entry::Vacant(place) = reports.entry(position) {
                place.insert(self.report(position)?);
            }
            let Some(Some(report)) = reports.get(&position) else { continue };
            for run in &report.runs {
                let counts = run.finished.epoch.0 == record.epoch
                    && !matches!(run.finished.result.outcome, Outcome::Cancelled | Outcome::Infrastructure);
                let attempts = run.finished.tasks.tasks().zip(&run.finished.usage);
                let of_these = attempts
                    .filter(|(task, _)| counts && tasks.contains(*task) && record.tasks.contains(*task));
                found.extend(of_these.map(|(_, usage)| usage.duration_us / 1_000));
            }
        }
        Ok(found)
    }

    /// A report by its position.
    pub(crate) fn report(&self, position: u64) -> Result<Option<ReportRecord>, StoreError> {
        let bytes = self.0.get(RecordKey { kind: REPORT, key: position, subkey: 0 })?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    /// A job that has ended.
    pub(crate) fn job(&self, job: JobId) -> Result<Option<JobRecord>, StoreError> {
        let bytes = self.0.get(RecordKey { kind: JOB, key: job.0, subkey: 0 })?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    /// How the stages of a job that ended followed one another; nothing for a job without any.
    pub(crate) fn flow(&self, job: JobId) -> Result<Option<FlowRecord>, StoreError> {
        let bytes = self.0.get(RecordKey { kind: FLOW, key: job.0, subkey: 0 })?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    /// The ended job that a task belongs to.
    pub(crate) fn job_of(&self, task: TaskId) -> Result<Option<(JobId, JobRecord)>, StoreError> {
        let Some((_, bytes)) = self.0.at_or_below(JOB_OF_TASK, task.0)? else { return Ok(None) };
        let job: JobId = decode(&bytes)?;
        let record = self.job(job)?.filter(|record| record.info.tasks.contains(task));
        Ok(record.map(|record| (job, record)))
    }

    /// Ended jobs below `before`, newest first, at most `limit`.
    pub(crate) fn jobs_before(
        &self,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<(JobId, JobRecord)>, StoreError> {
        let from = RecordKey { kind: JOB, key: 0, subkey: 0 };
        let to = RecordKey { kind: JOB, key: before.0, subkey: 0 };
        self.0
            .scan(from, to, limit, true)?
            .into_iter()
            .map(|(key, bytes)| Ok((JobId(key.key), decode(&bytes)?)))
            .collect()
    }
}
