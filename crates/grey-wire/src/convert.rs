use bytes::Bytes;
use grey_core::{FromWorker, NodeVersion, Stage, ToWorker, limits};
use grey_proof::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::WireError;
use crate::{Hello, OLDEST_VERSION, VERSION};

/// The first message of a stream; a server says what it runs.
pub fn hello(cluster: &Digest, runs: Option<&NodeVersion>) -> Hello {
    Hello {
        version: VERSION,
        cluster: Bytes::copy_from_slice(&cluster.0),
        feature_level: runs.map_or(0, |runs| runs.understands.into()),
        release: runs.map(|runs| runs.name.clone()).unwrap_or_default(),
    }
}

/// What a server says that it runs; `None` where it says nothing of that.
///
/// # Errors
/// [`WireError::Malformed`] for a level that is none, and for a name that is too long or has control characters.
pub fn decode_version(hello: &Hello) -> Result<Option<NodeVersion>, WireError> {
    let understands =
        u16::try_from(hello.feature_level).map_err(|_| WireError::Malformed("feature level"))?;
    if hello.release.len() > limits::NAME_BYTES || hello.release.chars().any(char::is_control) {
        return Err(WireError::Malformed("version of a server"));
    }
    Ok((understands > 0).then(|| NodeVersion { understands, name: hello.release.clone() }))
}

/// Whether the other side can be spoken to; the version that both understand.
///
/// # Errors
/// [`WireError::Version`] and [`WireError::ForeignCluster`].
pub fn check_hello(hello: &Hello, cluster: &Digest) -> Result<u32, WireError> {
    if hello.version < OLDEST_VERSION {
        return Err(WireError::Version { theirs: hello.version, oldest: OLDEST_VERSION, newest: VERSION });
    }
    if decode_digest(&hello.cluster)? != *cluster {
        return Err(WireError::ForeignCluster);
    }
    // A newer one understands its neighbour, and says so by speaking as this one does.
    Ok(hello.version.min(VERSION))
}

/// A digest of exactly 32 bytes.
pub fn decode_digest(bytes: &[u8]) -> Result<Digest, WireError> {
    <[u8; 32]>::try_from(bytes).map(Digest).map_err(|_| WireError::Malformed("digest"))
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    // Serialising to memory fails only for types without a known length, and messages have none of those.
    postcard::to_allocvec(value).unwrap_or_default().into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(WireError::Malformed(what)),
    }
}

/// What a worker says, as it travels.
pub fn encode_from_worker(message: &FromWorker) -> Bytes {
    encode(message)
}

/// What a worker said.
pub fn decode_from_worker(bytes: &[u8]) -> Result<FromWorker, WireError> {
    decode(bytes, "message of a worker")
}

/// What the leader says to a worker, as it travels.
pub fn encode_to_worker(message: &ToWorker) -> Bytes {
    encode(message)
}

/// What the leader said to a worker.
pub fn decode_to_worker(bytes: &[u8]) -> Result<ToWorker, WireError> {
    decode(bytes, "message to a worker")
}

/// A stage of a job, as it travels.
pub fn encode_stage(stage: &Stage) -> Bytes {
    encode(stage)
}

/// A stage of a job.
pub fn decode_stage(bytes: &[u8]) -> Result<Stage, WireError> {
    decode(bytes, "stage of a job")
}

#[cfg(test)]
mod tests {
    use grey_core::{Heartbeat, WorkerId, WorkerMessage};

    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        let heartbeat = Heartbeat { worker: WorkerId(3), incarnation: 7, session: 2, number: 9 };
        let said = FromWorker::Heartbeat(heartbeat);
        assert_eq!(decode_from_worker(&encode_from_worker(&said)), Ok(said.clone()));
        let message = WorkerMessage::Heard(9);
        let told = ToWorker { incarnation: 7, session: 2, number: 4, message };
        assert_eq!(decode_to_worker(&encode_to_worker(&told)), Ok(told));
        let mut longer = encode_from_worker(&said).to_vec();
        longer.push(0);
        assert_eq!(decode_from_worker(&longer), Err(WireError::Malformed("message of a worker")));
        assert!(decode_to_worker(&[9; 3]).is_err());
    }

    #[test]
    fn only_a_node_of_the_same_cluster_and_a_known_version_is_spoken_to() {
        let (ours, theirs) = (Digest::of(b"ours"), Digest::of(b"theirs"));
        assert_eq!(check_hello(&hello(&ours, None), &ours), Ok(VERSION));
        assert_eq!(check_hello(&Hello { version: VERSION + 1, ..hello(&ours, None) }, &ours), Ok(VERSION));
        assert_eq!(check_hello(&hello(&theirs, None), &ours), Err(WireError::ForeignCluster));
        let old = check_hello(&Hello { version: 0, ..hello(&ours, None) }, &ours);
        assert_eq!(old, Err(WireError::Version { theirs: 0, oldest: OLDEST_VERSION, newest: VERSION }));
    }
}
