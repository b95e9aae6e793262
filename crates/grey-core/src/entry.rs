//! The bytes of a log entry: feature level, kind, time and a compact body.
//!
//! A published body never changes. A new shape is a new kind, enabled by a higher feature level.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::command::Command;
use crate::level::{AUTHORITY_LEVEL, NEWEST_FEATURE_LEVEL, OLDEST_FEATURE_LEVEL, QUOTA_LEVEL, TROUBLE_LEVEL};
use crate::limits;

const HEADER_BYTES: usize = 12;
const KIND_BOOTSTRAP: u16 = 1;
const KIND_SUBMIT: u16 = 2;
const KIND_REGISTER_WORKER: u16 = 3;
const KIND_PLAN: u16 = 4;
const KIND_REPORT: u16 = 5;
const KIND_CANCEL: u16 = 6;
const KIND_TICK: u16 = 7;
const KIND_REVOKED: u16 = 8;
const KIND_CHANGE_TIMEOUT: u16 = 9;
const KIND_SUSPECT_WORKER: u16 = 10;
const KIND_LOSE_WORKER: u16 = 11;
const KIND_QUARANTINE_WORKER: u16 = 12;
const KIND_ENROL_FOUNDER: u16 = 13;
const KIND_ADMIT_NODE: u16 = 14;
const KIND_RENEW_NODE: u16 = 15;
const KIND_SET_NODE_STANDING: u16 = 16;
const KIND_SET_NODE_ADDRESS: u16 = 17;
const KIND_FORGET_NODE: u16 = 18;
const KIND_CREATE_JOIN_TOKEN: u16 = 19;
const KIND_REVOKE_JOIN_TOKEN: u16 = 20;
const KIND_CREATE_TOKEN: u16 = 21;
const KIND_REVOKE_TOKEN: u16 = 22;
const KIND_CREATE_TENANT: u16 = 23;
const KIND_SET_TENANT_SUSPENDED: u16 = 24;
const KIND_RECOVER: u16 = 25;
const KIND_CORDON_NODE: u16 = 26;
const KIND_SET_NODE_VERSION: u16 = 27;
const KIND_RAISE_FEATURE_LEVEL: u16 = 28;
const KIND_SET_TENANT_QUOTA: u16 = 29;
const KIND_SET_ISSUING_AUTHORITY: u16 = 30;
const KIND_SET_QUARANTINE: u16 = 31;

/// A command with the cluster time at which it was proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Cluster time in milliseconds as the leader saw it; clamped when applied.
    pub time_ms: u64,
    /// What to do.
    pub command: Command,
}

/// Why bytes are not an entry of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Another version wrote it: the node must stop rather than skip it.
    #[error(
        "entry of feature level {level} and kind {kind}; this version understands {OLDEST_FEATURE_LEVEL} to {NEWEST_FEATURE_LEVEL}; install a newer one"
    )]
    Unknown {
        /// The entry's feature level.
        level: u16,
        /// The entry's kind.
        kind: u16,
    },
    /// The kind is known and the body does not decode.
    #[error("entry of kind {kind} has a body that does not decode")]
    Malformed {
        /// The entry's kind.
        kind: u16,
    },
    /// Larger than an entry of its kind may be.
    #[error("it has {size_bytes} bytes as an entry of the log; the limit is {limit_bytes}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The bound.
        limit_bytes: usize,
    },
}

impl EntryError {
    /// Whether the node must stop: another version wrote the entry, and skipping it would make replicas differ.
    pub fn must_halt(&self) -> bool {
        matches!(self, EntryError::Unknown { .. })
    }
}

impl Entry {
    /// The entry's bytes. Fails only when they would exceed [`limits::SUBMISSION_BYTES`] for a submission, or
    /// [`limits::ENTRY_BYTES`] for anything else.
    pub fn encode(&self) -> Result<Vec<u8>, EntryError> {
        match &self.command {
            Command::Bootstrap(body) => self.encode_as(KIND_BOOTSTRAP, body),
            Command::Submit(body) => self.encode_as(KIND_SUBMIT, body),
            Command::RegisterWorker(body) => self.encode_as(KIND_REGISTER_WORKER, body),
            Command::Plan(body) => self.encode_as(KIND_PLAN, body),
            Command::Report(body) => self.encode_as(KIND_REPORT, body),
            Command::Cancel(body) => self.encode_as(KIND_CANCEL, body),
            Command::Tick => self.encode_as(KIND_TICK, &()),
            Command::Revoked(body) => self.encode_as(KIND_REVOKED, body),
            Command::ChangeTimeout(body) => self.encode_as(KIND_CHANGE_TIMEOUT, body),
            Command::SuspectWorker(body) => self.encode_as(KIND_SUSPECT_WORKER, body),
            Command::LoseWorker(body) => self.encode_as(KIND_LOSE_WORKER, body),
            Command::QuarantineWorker(body) => self.encode_as(KIND_QUARANTINE_WORKER, body),
            Command::EnrolFounder(body) => self.encode_as(KIND_ENROL_FOUNDER, body),
            Command::AdmitNode(body) => self.encode_as(KIND_ADMIT_NODE, body),
            Command::RenewNode(body) => self.encode_as(KIND_RENEW_NODE, body),
            Command::SetNodeStanding(body) => self.encode_as(KIND_SET_NODE_STANDING, body),
            Command::SetNodeAddress(body) => self.encode_as(KIND_SET_NODE_ADDRESS, body),
            Command::ForgetNode(body) => self.encode_as(KIND_FORGET_NODE, body),
            Command::CreateJoinToken(body) => self.encode_as(KIND_CREATE_JOIN_TOKEN, body),
            Command::RevokeJoinToken(body) => self.encode_as(KIND_REVOKE_JOIN_TOKEN, body),
            Command::CreateToken(body) => self.encode_as(KIND_CREATE_TOKEN, body),
            Command::RevokeToken(body) => self.encode_as(KIND_REVOKE_TOKEN, body),
            Command::CreateTenant(body) => self.encode_as(KIND_CREATE_TENANT, body),
            Command::SetTenantSuspended(body) => self.encode_as(KIND_SET_TENANT_SUSPENDED, body),
            Command::Recover(body) => self.encode_as(KIND_RECOVER, body),
            Command::CordonNode(body) => self.encode_as(KIND_CORDON_NODE, body),
            Command::SetNodeVersion(body) => self.encode_as(KIND_SET_NODE_VERSION, body),
            Command::RaiseFeatureLevel(body) => self.encode_as(KIND_RAISE_FEATURE_LEVEL, body),
            Command::SetTenantQuota(body) => self.encode_as(KIND_SET_TENANT_QUOTA, body),
            Command::SetIssuingAuthority(body) => self.encode_as(KIND_SET_ISSUING_AUTHORITY, body),
            Command::SetQuarantine(body) => self.encode_as(KIND_SET_QUARANTINE, body),
        }
    }

    fn encode_as<T: Serialize>(&self, kind: u16, body: &T) -> Result<Vec<u8>, EntryError> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&self.command.feature_level().to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&self.time_ms.to_le_bytes());
        let bytes = postcard::to_extend(body, bytes).map_err(|_| EntryError::Malformed { kind })?;
        let limit_bytes = match kind {
            KIND_SUBMIT => limits::SUBMISSION_BYTES,
            _ => limits::ENTRY_BYTES,
        };
        within(bytes.len(), limit_bytes)?;
        Ok(bytes)
    }

    /// Reads an entry back; every byte must be used.
    pub fn decode(bytes: &[u8]) -> Result<Entry, EntryError> {
        within(bytes.len(), limits::ENTRY_BYTES)?;
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(EntryError::Malformed { kind: 0 });
        };
        let [l0, l1, k0, k1, time @ ..] = *header;
        let level = u16::from_le_bytes([l0, l1]);
        let kind = u16::from_le_bytes([k0, k1]);
        if !(OLDEST_FEATURE_LEVEL..=NEWEST_FEATURE_LEVEL).contains(&level) {
            return Err(EntryError::Unknown { level, kind });
        }
        let command = match kind {
            KIND_BOOTSTRAP => Command::Bootstrap(decode_body(kind, body)?),
            KIND_SUBMIT => Command::Submit(decode_body(kind, body)?),
            KIND_REGISTER_WORKER => Command::RegisterWorker(decode_body(kind, body)?),
            KIND_PLAN => Command::Plan(decode_body(kind, body)?),
            KIND_REPORT => Command::Report(decode_body(kind, body)?),
            KIND_CANCEL => Command::Cancel(decode_body(kind, body)?),
            KIND_TICK => {
                let () = decode_body(kind, body)?;
                Command::Tick
            }
            KIND_REVOKED => Command::Revoked(decode_body(kind, body)?),
            KIND_CHANGE_TIMEOUT => Command::ChangeTimeout(decode_body(kind, body)?),
            KIND_SUSPECT_WORKER => Command::SuspectWorker(decode_body(kind, body)?),
            KIND_LOSE_WORKER => Command::LoseWorker(decode_body(kind, body)?),
            KIND_QUARANTINE_WORKER => Command::QuarantineWorker(decode_body(kind, body)?),
            KIND_ENROL_FOUNDER => Command::EnrolFounder(decode_body(kind, body)?),
            KIND_ADMIT_NODE => Command::AdmitNode(decode_body(kind, body)?),
            KIND_RENEW_NODE => Command::RenewNode(decode_body(kind, body)?),
            KIND_SET_NODE_STANDING => Command::SetNodeStanding(decode_body(kind, body)?),
            KIND_SET_NODE_ADDRESS => Command::SetNodeAddress(decode_body(kind, body)?),
            KIND_FORGET_NODE => Command::ForgetNode(decode_body(kind, body)?),
            KIND_CREATE_JOIN_TOKEN => Command::CreateJoinToken(decode_body(kind, body)?),
            KIND_REVOKE_JOIN_TOKEN => Command::RevokeJoinToken(decode_body(kind, body)?),
            KIND_CREATE_TOKEN => Command::CreateToken(decode_body(kind, body)?),
            KIND_REVOKE_TOKEN => Command::RevokeToken(decode_body(kind, body)?),
            KIND_CREATE_TENANT => Command::CreateTenant(decode_body(kind, body)?),
            KIND_SET_TENANT_SUSPENDED => Command::SetTenantSuspended(decode_body(kind, body)?),
            KIND_RECOVER => Command::Recover(decode_body(kind, body)?),
            KIND_CORDON_NODE => Command::CordonNode(decode_body(kind, body)?),
            KIND_SET_NODE_VERSION => Command::SetNodeVersion(decode_body(kind, body)?),
            KIND_RAISE_FEATURE_LEVEL => Command::RaiseFeatureLevel(decode_body(kind, body)?),
            KIND_SET_TENANT_QUOTA => Command::SetTenantQuota(decode_body(kind, body)?),
            KIND_SET_ISSUING_AUTHORITY => Command::SetIssuingAuthority(decode_body(kind, body)?),
            KIND_SET_QUARANTINE => Command::SetQuarantine(decode_body(kind, body)?),
            _ => return Err(EntryError::Unknown { level, kind }),
        };
        if command.feature_level() != level {
            return Err(EntryError::Malformed { kind });
        }
        Ok(Entry { time_ms: u64::from_le_bytes(time), command })
    }
}

/// The feature level that the bytes of an entry ask for, whether they are an entry of this version or not; `None` for the engine's own.
pub fn level_of_entry(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk::<2>().map(|level| u16::from_le_bytes(*level))
}

impl Command {
    /// The feature level that must be in force for this, or that it puts in force.
    pub fn feature_level(&self) -> u16 {
        match self {
            Command::RaiseFeatureLevel(body) => body.level,
            Command::SetTenantQuota(_) => QUOTA_LEVEL,
            Command::SetIssuingAuthority(_) => AUTHORITY_LEVEL,
            Command::SetQuarantine(_) => TROUBLE_LEVEL,
            _ => OLDEST_FEATURE_LEVEL,
        }
    }
}

fn within(size_bytes: usize, limit_bytes: usize) -> Result<(), EntryError> {
    if size_bytes > limit_bytes { Err(EntryError::TooLarge { size_bytes, limit_bytes }) } else { Ok(()) }
}

fn decode_body<T: DeserializeOwned>(kind: u16, body: &[u8]) -> Result<T, EntryError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(EntryError::Malformed { kind }),
    }
}
