//! What a worker states of one attempt: an in-toto Statement v1 in canonical JSON.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canonical::{CanonicalWriter, parse_rfc3339, rfc3339};
use crate::digest::Digest;
use crate::error::ProofError;
use crate::result::present;

/// The type of the statement's predicate.
pub const PREDICATE_TYPE: &str = "urn:grey:predicate:execution:v1";

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// Who ran what, where, when, and with what outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionStatement {
    /// The cluster.
    pub cluster: Digest,
    /// The tenant's name.
    pub tenant: String,
    /// The job's number.
    pub job_id: u64,
    /// The task's number.
    pub task_id: u64,
    /// Which assignment of the task.
    pub attempt_epoch: u32,
    /// The worker's node: digest of its public key.
    pub worker_id: Digest,
    /// What executed it.
    pub executor: String,
    /// What was enforced around it.
    pub sandbox_level: String,
    /// How far the cluster trusts the worker.
    pub tier: String,
    /// Digest of everything that was executed.
    pub exec_key: Digest,
    /// Digest of the result.
    pub result_hash: Digest,
    /// How it ended, as a class.
    pub outcome: String,
    /// The status, or 128 plus the signal.
    pub exit_code: Option<i32>,
    /// Start by the worker's wall clock, milliseconds since 1970, before the year 10000.
    pub started_at_ms: u64,
    /// End by the worker's wall clock, likewise.
    pub completed_at_ms: u64,
    /// Run time by the monotonic clock, in microseconds.
    pub duration_us: u64,
    /// Processor time in microseconds.
    pub cpu_time_us: u64,
    /// Highest resident memory in bytes.
    pub peak_memory_bytes: u64,
    /// Where the last two figures come from.
    pub usage_source: String,
    /// Digest of the worker's certificate.
    pub certificate: Digest,
    /// Term of the entry that assigned the attempt.
    pub assignment_term: u64,
    /// Index of the entry that assigned the attempt.
    pub assignment_index: u64,
}

impl ExecutionStatement {
    /// Appends the statement's canonical bytes, version 1. They are what is hashed and signed, so they never change.
    pub fn encode_v1(&self, out: &mut Vec<u8>) -> Result<(), ProofError> {
        let started_at = rfc3339("started_at", self.started_at_ms)?;
        let completed_at = rfc3339("completed_at", self.completed_at_ms)?;
        CanonicalWriter::object(out, |statement| {
            statement.string("_type", STATEMENT_TYPE);
            statement.nested("predicate", |predicate| {
                predicate.number("assignment_index", self.assignment_index)?;
                predicate.number("assignment_term", self.assignment_term)?;
                predicate.number("attempt_epoch", u64::from(self.attempt_epoch))?;
                predicate.digest("certificate", &self.certificate);
                predicate.digest("cluster", &self.cluster);
                predicate.string("completed_at", &completed_at);
                predicate.number("cpu_time_us", self.cpu_time_us)?;
                predicate.number("duration_us", self.duration_us)?;
                predicate.digest("exec_key", &self.exec_key);
                predicate.string("executor", &self.executor);
                match self.exit_code.and_then(|code| u64::try_from(code).ok()) {
                    Some(code) => predicate.number("exit_code", code)?,
                    None => predicate.null("exit_code"),
                }
                predicate.number("job_id", self.job_id)?;
                predicate.string("outcome", &self.outcome);
                predicate.number("peak_memory_bytes", self.peak_memory_bytes)?;
                predicate.digest("result_hash", &self.result_hash);
                predicate.string("sandbox_level", &self.sandbox_level);
                predicate.string("started_at", &started_at);
                predicate.number("task_id", self.task_id)?;
                predicate.string("tenant", &self.tenant);
                predicate.string("tier", &self.tier);
                predicate.string("usage_source", &self.usage_source);
                predicate.digest("worker_id", &self.worker_id);
                Ok(())
            })?;
            statement.string("predicateType", PREDICATE_TYPE);
            statement.array_of_one("subject", |subject| {
                subject.nested("digest", |digest| {
                    digest.digest("sha256", &self.result_hash);
                    Ok(())
                })?;
                subject.string("name", &subject_name(self.task_id));
                Ok(())
            })
        })
    }
}

fn subject_name(task_id: u64) -> String {
    format!("grey:task:{task_id}:result")
}

/// The statement's members as they stand in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementJson {
    #[serde(rename = "_type")]
    kind: String,
    predicate: PredicateJson,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: [SubjectJson; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectJson {
    digest: SubjectDigestJson,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigestJson {
    sha256: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PredicateJson {
    assignment_index: u64,
    assignment_term: u64,
    attempt_epoch: u32,
    certificate: Digest,
    cluster: Digest,
    completed_at: String,
    cpu_time_us: u64,
    duration_us: u64,
    exec_key: Digest,
    executor: String,
    #[serde(deserialize_with = "present")]
    exit_code: Option<i32>,
    job_id: u64,
    outcome: String,
    peak_memory_bytes: u64,
    result_hash: Digest,
    sandbox_level: String,
    started_at: String,
    task_id: u64,
    tenant: String,
    tier: String,
    usage_source: String,
    worker_id: Digest,
}

impl Serialize for ExecutionStatement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = |field, unix_ms| rfc3339(field, unix_ms).map_err(serde::ser::Error::custom);
        let predicate = PredicateJson {
            assignment_index: self.assignment_index,
            assignment_term: self.assignment_term,
            attempt_epoch: self.attempt_epoch,
            certificate: self.certificate,
            cluster: self.cluster,
            completed_at: time("completed_at", self.completed_at_ms)?,
            cpu_time_us: self.cpu_time_us,
            duration_us: self.duration_us,
            exec_key: self.exec_key,
            executor: self.executor.clone(),
            exit_code: self.exit_code,
            job_id: self.job_id,
            outcome: self.outcome.clone(),
            peak_memory_bytes: self.peak_memory_bytes,
            result_hash: self.result_hash,
            sandbox_level: self.sandbox_level.clone(),
            started_at: time("started_at", self.started_at_ms)?,
            task_id: self.task_id,
            tenant: self.tenant.clone(),
            tier: self.tier.clone(),
            usage_source: self.usage_source.clone(),
            worker_id: self.worker_id,
        };
        let subject = SubjectJson {
            digest: SubjectDigestJson { sha256: self.result_hash },
            name: subject_name(self.task_id),
        };
        let kind = STATEMENT_TYPE.to_owned();
        StatementJson { kind, predicate, predicate_type: PREDICATE_TYPE.to_owned(), subject: [subject] }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ExecutionStatement {
    /// Every member must be known and hold what [`ExecutionStatement::encode_v1`] would write, so that nothing is read
    /// that is not signed.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExecutionStatement, D::Error> {
        let StatementJson { kind, predicate, predicate_type, subject: [subject] } =
            StatementJson::deserialize(deserializer)?;
        if kind != STATEMENT_TYPE || predicate_type != PREDICATE_TYPE {
            return Err(D::Error::custom("a statement of another type"));
        }
        if subject.digest.sha256 != predicate.result_hash || subject.name != subject_name(predicate.task_id) {
            return Err(D::Error::custom("a statement about another subject than its predicate's"));
        }
        if predicate.exit_code.is_some_and(|code| code < 0) {
            return Err(D::Error::custom("an exit code below zero"));
        }
        let time = |text: &str| {
            parse_rfc3339(text).ok_or_else(|| D::Error::custom(format_args!("`{text}` is no time")))
        };
        Ok(ExecutionStatement {
            cluster: predicate.cluster,
            job_id: predicate.job_id,
            task_id: predicate.task_id,
            attempt_epoch: predicate.attempt_epoch,
            worker_id: predicate.worker_id,
            exec_key: predicate.exec_key,
            result_hash: predicate.result_hash,
            exit_code: predicate.exit_code,
            started_at_ms: time(&predicate.started_at)?,
            completed_at_ms: time(&predicate.completed_at)?,
            duration_us: predicate.duration_us,
            cpu_time_us: predicate.cpu_time_us,
            peak_memory_bytes: predicate.peak_memory_bytes,
            certificate: predicate.certificate,
            assignment_term: predicate.assignment_term,
            assignment_index: predicate.assignment_index,
            tenant: predicate.tenant,
            executor: predicate.executor,
            sandbox_level: predicate.sandbox_level,
            tier: predicate.tier,
            outcome: predicate.outcome,
            usage_source: predicate.usage_source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_is_published_and_does_not_change() {
        let statement = ExecutionStatement {
            cluster: Digest::of(b"cluster"),
            tenant: "default".to_owned(),
            job_id: 1,
            task_id: 2,
            attempt_epoch: 3,
            worker_id: Digest::of(b"worker"),
            executor: "process".to_owned(),
            sandbox_level: "pid-namespace".to_owned(),
            tier: "software".to_owned(),
            exec_key: Digest::of(b"exec"),
            result_hash: Digest::of(b"result"),
            outcome: "exited".to_owned(),
            exit_code: Some(0),
            started_at_ms: 1_795_512_600_123,
            completed_at_ms: 1_795_512_601_000,
            duration_us: 876_543,
            cpu_time_us: 1_234,
            peak_memory_bytes: 4_096,
            usage_source: "rusage".to_owned(),
            certificate: Digest::of(b"certificate"),
            assignment_term: 1,
            assignment_index: 9,
        };
        let mut bytes = Vec::new();
        statement.encode_v1(&mut bytes).unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "930ec40d56497fa57f8f87443d8fd933d2f8d8cb0f178423f3cbddb4557eb206",
            "{}",
            String::from_utf8_lossy(&bytes)
        );

        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_vec(&value).unwrap(), bytes, "keys are sorted and nothing is spaced");
        for field in ["task_id", "worker_id", "started_at", "completed_at", "cpu_time_us", "result_hash"] {
            assert!(value["predicate"].get(field).is_some(), "{field} is missing");
        }

        assert_eq!(serde_json::from_slice::<ExecutionStatement>(&bytes).unwrap(), statement);
        assert_eq!(serde_json::to_value(&statement).unwrap(), value, "both writers write the same members");

        let mut too_large = statement.clone();
        too_large.cpu_time_us = crate::canonical::MAX_INTEGER + 1;
        assert!(matches!(
            too_large.encode_v1(&mut Vec::new()),
            Err(ProofError::NumberOutOfRange { field: "cpu_time_us", .. })
        ));
    }
}
