//! Attempts that outlive the worker that started them: what is kept with each, and how the next worker takes them over.
//!
//! What is kept has to survive the worker's process and nothing else: with the machine, or with the shim that holds it, the attempt is
//! gone too. So it is given to the executor with the attempt, and belongs to no outbox.

use std::sync::Arc;

use grey_core::{AttemptId, JobId, Stage, TaskId, TaskSpec};
use grey_proof::Digest;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Held, HeldPhase, Output, Start};
use crate::executor::Adoptable;
use crate::outbox::GroupContext;

/// Version of a record's bytes. The next worker may be of a later version than the one that wrote it.
const RECORD_VERSION: u8 = 1;

/// What is kept with an attempt.
#[derive(Serialize)]
struct Kept<'a> {
    version: u8,
    job: JobId,
    group: TaskId,
    tenant: &'a str,
    /// What was to be executed: what is read back must have the same.
    exec_key: Digest,
    assigned: (u64, u64),
    devices: &'a [(String, Vec<u32>)],
    spec: &'a TaskSpec,
    stage: Option<&'a Stage>,
}

/// The same, read back.
#[derive(Deserialize)]
struct Recovered {
    version: u8,
    job: JobId,
    group: TaskId,
    tenant: String,
    exec_key: Digest,
    assigned: (u64, u64),
    devices: Vec<(String, Vec<u32>)>,
    spec: TaskSpec,
    stage: Option<Stage>,
}

/// What the next worker needs to know of an attempt.
pub(crate) fn record(
    context: &GroupContext,
    assigned: (u64, u64),
    devices: &[(String, Vec<u32>)],
) -> Vec<u8> {
    let kept = Kept {
        version: RECORD_VERSION,
        job: context.job,
        group: context.group,
        tenant: &context.tenant,
        exec_key: context.exec_key,
        assigned,
        devices,
        spec: &context.spec,
        stage: context.stage.as_deref(),
    };
    // Serialising to memory fails only for types without a known length, and this has none of those.
    postcard::to_allocvec(&kept).unwrap_or_default()
}

/// Reads a record; nothing where it is none of this version, or says what no worker of this version would execute by it.
fn recover(attempt: AttemptId, bytes: &[u8]) -> Option<Recovered> {
    // The version is the first byte, so that what follows it may be anything.
    let recovered: Recovered =
        postcard::from_bytes(bytes).ok().filter(|_| bytes.first() == Some(&RECORD_VERSION))?;
    let is_whole = recovered.version == RECORD_VERSION
        && recovered.group <= attempt.task
        && recovered.spec.exec_key(recovered.stage.as_ref()) == recovered.exec_key;
    is_whole.then_some(recovered)
}

impl Agent {
    /// Takes over what an executor found. What this worker cannot know, or has the result of, is released.
    pub(crate) fn adopt(&mut self, found: &[Adoptable]) {
        for one in found {
            let known = self.outbox.covers(one.attempt) || self.held.contains_key(&one.attempt);
            let recovered = recover(one.attempt, &one.record).filter(|_| !known);
            match recovered {
                Some(recovered) => self.adopt_one(one, recovered),
                None => self.outputs.push_back(Output::Release(vec![one.attempt])),
            }
        }
    }

    fn adopt_one(&mut self, one: &Adoptable, recovered: Recovered) {
        let Adoptable { attempt, timeout_ms, .. } = *one;
        let known = self.contexts.get(&recovered.group);
        let context = match known.filter(|context| context.exec_key == recovered.exec_key) {
            Some(context) => context.clone(),
            None => Arc::new(GroupContext {
                job: recovered.job,
                group: recovered.group,
                tenant: recovered.tenant.into(),
                spec: Arc::new(recovered.spec),
                exec_key: recovered.exec_key,
                stage: recovered.stage.map(Arc::new),
            }),
        };
        self.contexts.insert(recovered.group, context.clone());
        // It has them, even where the worker has been given less since; then nothing is started beside it.
        self.running = self.running.checked_add(&context.spec.resources).unwrap_or(self.running);
        self.running_count += 1;
        self.free_devices.take_these(&recovered.devices);
        let index = attempt.task.0.saturating_sub(context.group.0);
        self.outputs.push_back(Output::Adopt(Start {
            attempt,
            job: context.job.to_string(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            spec: context.spec.clone(),
            stage: context.stage.clone(),
            timeout_ms,
            devices: recovered.devices.clone(),
            assigned_index: recovered.assigned.1,
            record: one.record.clone(),
        }));
        let held = Held {
            context,
            assigned: recovered.assigned,
            timeout_ms,
            devices: recovered.devices,
            phase: HeldPhase::Running,
        };
        self.held.insert(attempt, held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::{Epoch, ExecutorKind, Resources, Retries};

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "n".to_owned(),
            executor: ExecutorKind::Process,
            command: vec!["true".to_owned()],
            environment: Vec::new(),
            stdin: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            resources: Resources::default(),
            priority: 0,
            devices: Vec::new(),
            constraints: Default::default(),
            retries: Retries::default(),
            timeout_ms: 9,
            output_limit_bytes: 10,
        }
    }

    fn context(exec_key: Digest) -> GroupContext {
        GroupContext {
            job: JobId(2),
            group: TaskId(3),
            tenant: "t".into(),
            spec: Arc::new(spec()),
            stage: None,
            exec_key,
        }
    }

    const ATTEMPT: AttemptId = AttemptId { task: TaskId(5), epoch: Epoch(1) };

    #[test]
    fn a_record_reads_back_and_one_that_says_something_else_is_none() {
        let devices = vec![("gpu".to_owned(), vec![1])];
        let good = record(&context(spec().exec_key(None)), (4, 5), &devices);
        let recovered = recover(ATTEMPT, &good).unwrap();
        assert_eq!((recovered.job, recovered.group, recovered.assigned), (JobId(2), TaskId(3), (4, 5)));
        assert_eq!((recovered.spec, recovered.devices), (spec(), devices));
        // Whoever changes what is written here raises the version.
        assert_eq!(
            Digest::of(&good).to_string(),
            "f80afddee6e0ba4a58d70e2863d766677ebf409393372ba4e6b94e8bd0166b7c"
        );
        let of_another_task = record(&context(Digest::of(b"another")), (4, 5), &[]);
        assert!(recover(ATTEMPT, &of_another_task).is_none());
        assert!(recover(AttemptId { task: TaskId(2), ..ATTEMPT }, &good).is_none(), "not of its group");
        let of_another_version = [&[RECORD_VERSION + 1], &good[1..]].concat();
        assert!(recover(ATTEMPT, &of_another_version).is_none());
        assert!((0..good.len()).all(|end| recover(ATTEMPT, &good[..end]).is_none()));
    }
}
