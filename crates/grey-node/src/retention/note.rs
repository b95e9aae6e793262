//! What a segment of history says that matters for keeping: which jobs it is about, when they ended, which blobs it names.
//!
//! A segment never changes, so this is found out once and kept beside it. Until every job of it has ended it is found out
//! again whenever one has.

use std::collections::BTreeMap;

use grey_core::{BlobReference, FlowRecord, Items, JobRecord, ReportRecord};
use grey_proof::Digest;
use grey_store::{RecordKey, StoreError};
use serde::{Deserialize, Serialize};

use super::Cutoffs;
use crate::records::{Record, decoded};

/// Version of a note's bytes; one of another version is made again.
const VERSION: u8 = 1;

/// What a blob is to the job that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Log,
    Result,
    Input,
    /// A list of items, which may name inputs itself.
    List,
}

/// A blob that a record names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) blob: BlobReference,
    pub(crate) role: Role,
    pub(crate) job: u64,
    /// When the job ended, wall clock; absent while it lives.
    pub(crate) ended_at_ms: Option<u64>,
}

impl Named {
    /// Whether it is still kept, where its job is not needed otherwise.
    pub(crate) fn is_kept(&self, cutoffs: &Cutoffs) -> bool {
        let cutoff_ms = match self.role {
            Role::Log => cutoffs.horizons.logs_ms,
            Role::Result => cutoffs.horizons.results_ms,
            Role::Input | Role::List => cutoffs.inputs_ms,
        };
        self.ended_at_ms.is_none_or(|ended_at_ms| ended_at_ms > cutoff_ms)
    }
}

/// What there is to know of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    version: u8,
    /// Its jobs, as ranges of first and last.
    jobs: Vec<(u64, u64)>,
    /// Those that had not ended when the note was made.
    pub(crate) live: Vec<u64>,
    /// The first end and the last one of its jobs that had ended, wall clock.
    pub(crate) first_end_ms: Option<u64>,
    pub(crate) last_end_ms: u64,
    /// Blobs that it names.
    pub(crate) named: Vec<Named>,
}

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Serialising to memory fails only for types without a known length, of which there are none here.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Note> {
        let note: Note = postcard::from_bytes(bytes).ok()?;
        (note.version == VERSION).then_some(note)
    }

    /// Whether something of a job is in it.
    pub(crate) fn is_about(&self, job: u64) -> bool {
        let after = self.jobs.partition_point(|(first, _)| *first <= job);
        after.checked_sub(1).and_then(|at| self.jobs.get(at)).is_some_and(|(_, last)| job <= *last)
    }

    /// Whether everything in it may go: all its jobs have ended, so long ago, and none is needed.
    pub(crate) fn is_over(&self, cutoffs: &Cutoffs, needed: impl IntoIterator<Item = u64>) -> bool {
        self.live.is_empty()
            && self.last_end_ms <= cutoffs.horizons.history_ms
            && !needed.into_iter().any(|job| self.is_about(job))
    }
}

/// A note in the making.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// The jobs and their ends, as far as the segment says them.
    jobs: BTreeMap<u64, Option<u64>>,
    /// When attempts ended of which no job is known.
    stray_end_ms: u64,
    named: Vec<(BlobReference, Role, u64)>,
}

impl Gathered {
    /// Takes a record of the segment in.
    pub(crate) fn add(&mut self, key: RecordKey, bytes: &[u8]) -> Result<(), StoreError> {
        match decoded(key, bytes)? {
            Record::Report(report) => self.report(&report),
            Record::Job(job, record) => self.job(job.0, &record),
            Record::Flow(job, record) => self.flow(job.0, &record),
            // Whatever they point at was appended together with them.
            Record::Pointer => {}
        }
        Ok(())
    }

    fn report(&mut self, report: &ReportRecord) {
        for run in &report.runs {
            let Some(context) = &run.context else {
                let ends = run.finished.usage.iter().map(|usage| usage.completed_at_ms());
                self.stray_end_ms = ends.fold(self.stray_end_ms, u64::max);
                continue;
            };
            let job = context.job.0;
            self.jobs.entry(job).or_insert(None);
            for (is_stream, blob) in run.finished.result.blobs() {
                self.named.push((blob, if is_stream { Role::Log } else { Role::Result }, job));
            }
        }
    }

    fn job(&mut self, job: u64, record: &JobRecord) {
        self.jobs.insert(job, Some(record.ended_at_ms));
        for blob in record.groups.iter().flat_map(|(_, spec)| spec.blobs()) {
            self.named.push((blob, Role::Input, job));
        }
    }

    fn flow(&mut self, job: u64, record: &FlowRecord) {
        self.jobs.entry(job).or_insert(None);
        for stage in &record.flow.stages {
            if let Some(Items::Listed(list)) = stage.items {
                self.named.push((list, Role::List, job));
            }
        }
    }

    /// The blobs that were named, and whether each is a list of items.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = (Digest, bool)> {
        self.named.iter().map(|(blob, role, _)| (blob.digest, *role == Role::List))
    }

    /// The jobs whose end the segment does not say.
    pub(crate) fn unknown(&self) -> Vec<u64> {
        let unknown = self.jobs.iter().filter(|(_, ended)| ended.is_none());
        unknown.map(|(job, _)| *job).collect()
    }

    /// The note. `live` are those of the unknown jobs that live; `end_of` says when others ended, nothing where their
    /// record is gone already.
    pub(crate) fn finish<E>(
        mut self,
        live: Vec<u64>,
        mut end_of: impl FnMut(u64) -> Result<Option<u64>, E>,
    ) -> Result<Note, E> {
        for job in self.unknown() {
            if live.binary_search(&job).is_err() {
                // Without a record it went with the segment that had it, of which everything was over.
                self.jobs.insert(job, Some(end_of(job)?.unwrap_or(0)));
            }
        }
        let mut jobs: Vec<(u64, u64)> = Vec::new();
        for job in self.jobs.keys() {
            match jobs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*job) => *last = *job,
                _ => jobs.push((*job, *job)),
            }
        }
        let ends = self.jobs.values().copied().flatten();
        let first_end_ms = ends.clone().chain((self.stray_end_ms > 0).then_some(self.stray_end_ms)).min();
        let last_end_ms = ends.fold(self.stray_end_ms, u64::max);
        let named = self.named.into_iter().map(|(blob, role, job)| Named {
            blob,
            role,
            job,
            ended_at_ms: self.jobs.get(&job).copied().flatten(),
        });
        Ok(Note { version: VERSION, jobs, live, first_end_ms, last_end_ms, named: named.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_store::Horizons;

    fn gathered(jobs: &[(u64, Option<u64>)]) -> Gathered {
        let blob = |job: u64| BlobReference { digest: Digest::of(&job.to_le_bytes()), size_bytes: job };
        Gathered {
            jobs: jobs.iter().copied().collect(),
            stray_end_ms: 0,
            named: jobs.iter().map(|(job, _)| (blob(*job), Role::Log, *job)).collect(),
        }
    }

    fn cutoffs(time_ms: u64) -> Cutoffs {
        let horizons = Horizons { logs_ms: time_ms, results_ms: time_ms, history_ms: time_ms };
        Cutoffs { horizons, inputs_ms: time_ms }
    }

    #[test]
    fn a_segment_is_over_when_all_its_jobs_ended_long_enough_ago_and_none_is_needed() {
        let known = [(3, Some(50)), (4, Some(70)), (9, None), (12, None)];
        let note = gathered(&known).finish::<()>(vec![9], |job| Ok((job == 12).then_some(90))).unwrap();
        assert!(!note.is_over(&cutoffs(1_000), []), "j9 lives");
        let note = gathered(&known).finish::<()>(vec![], |job| Ok((job == 12).then_some(90))).unwrap();
        assert_eq!((note.first_end_ms, note.last_end_ms), (Some(0), 90));
        assert!(!note.is_over(&cutoffs(89), []) && note.is_over(&cutoffs(90), []));
        assert!(note.is_over(&cutoffs(90), [2, 5, 8, 10, 13]));
        for needed in [3, 4, 9, 12] {
            assert!(!note.is_over(&cutoffs(90), [needed]), "j{needed} is needed");
        }
        assert_eq!(Note::decode(&note.encode()), Some(note));
    }

    #[test]
    fn what_a_live_job_names_is_kept_and_of_an_ended_one_each_role_has_its_own_time() {
        let note = gathered(&[(1, None), (2, Some(50))]).finish::<()>(vec![1], |_| Ok(None)).unwrap();
        let kept = |at: &Cutoffs| note.named.iter().map(|named| named.is_kept(at)).collect::<Vec<_>>();
        assert_eq!(kept(&cutoffs(49)), [true, true]);
        assert_eq!(kept(&cutoffs(50)), [true, false]);
        let mut only_inputs = cutoffs(0);
        only_inputs.inputs_ms = u64::MAX;
        assert_eq!(kept(&only_inputs), [true, true], "a log does not go with the inputs");
    }
}
