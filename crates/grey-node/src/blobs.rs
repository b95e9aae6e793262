//! Blobs of a cluster: here, and on other servers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use grey_blob::{BlobError, BlobStore};
use grey_core::limits;
use grey_proof::Digest;

use crate::directory::ServerPlace;
use crate::plane::{Servers, content_of};

/// How long content stays that came from another node and that no record names yet: far longer than a record takes to come.
const COUNTED_ON: Duration = Duration::from_secs(48 * 3_600);

/// How long content stays that was fetched because something names it. A look at what is kept that was under way by then may not know that: it
/// takes less than this.
const A_LOOK: Duration = Duration::from_secs(3_600);

/// Why content is not where it is needed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobsError {
    /// The disk here.
    #[error(transparent)]
    Local(#[from] BlobError),
    /// Other nodes.
    #[error("blob {digest} is not here, and no server has it: {reason}")]
    Elsewhere {
        /// Which content.
        digest: Digest,
        /// What the last one said.
        reason: String,
    },
    /// Too few servers took it.
    #[error("blob {digest} is on {servers} of {needed} servers that it must be on: {reason}")]
    TooFew {
        /// Which content.
        digest: Digest,
        /// How many have it.
        servers: u32,
        /// How many must.
        needed: u32,
        /// What the last one said.
        reason: String,
    },
}

/// Blobs here, and ways to those elsewhere.
pub(crate) struct Blobs {
    pub(crate) local: Arc<BlobStore>,
    /// Other servers; none for a cluster of one process.
    others: Option<Others>,
}

struct Others {
    servers: Servers,
    /// The number of this server; none on a worker.
    own: Option<u64>,
}

impl Blobs {
    /// Blobs of a cluster of one process.
    pub(crate) fn alone(local: Arc<BlobStore>) -> Blobs {
        Blobs { local, others: None }
    }

    /// Blobs of one node of several. `own` is its number where it is a server.
    pub(crate) fn among(local: Arc<BlobStore>, servers: Servers, own: Option<u64>) -> Blobs {
        Blobs { local, others: Some(Others { servers, own }) }
    }

    /// The servers, where there are others.
    pub(crate) fn servers(&self) -> Option<&Servers> {
        self.others.as_ref().map(|others| &others.servers)
    }

    /// Fetches a blob that is not here from where it is. One that is here stays for as long as it would have: whoever reads it makes
    /// no promise that it is kept.
    pub(crate) async fn ensure(&self, digest: &Digest) -> Result<(), BlobsError> {
        // What names it may not have come here yet.
        self.fetch(digest, SystemTime::now() + COUNTED_ON).await
    }

    /// Fetches a blob that something here names already: that alone keeps it, once it is known to a look at what is kept.
    pub(crate) async fn copy_here(&self, digest: &Digest) -> Result<(), BlobsError> {
        self.fetch(digest, SystemTime::now() + A_LOOK).await
    }

    async fn fetch(&self, digest: &Digest, until: SystemTime) -> Result<(), BlobsError> {
        if self.local.size_bytes(digest).await?.is_some() {
            return Ok(());
        }
        let elsewhere = |reason: String| BlobsError::Elsewhere { digest: *digest, reason };
        let Some(Others { servers, own }) = &self.others else {
            return Err(BlobError::NotFound { digest: *digest }.into());
        };
        // A server asks each of the others for its own; a worker asks one, which asks the others.
        let content = match own {
            Some(_) => servers.fetch(digest, false).await,
            None => servers.fetch(digest, true).await,
        };
        let content = content.map_err(|error| elsewhere(error.to_string()))?;
        self.keep_until(*digest, content, limits::OUTPUT_LIMIT_BYTES, until).await
    }

    /// Keeps content that another node sends; what is not of its digest is not counted on.
    pub(crate) async fn keep<E: core::error::Error + Send + Sync + 'static>(
        &self,
        digest: Digest,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin + Send,
        limit_bytes: u64,
    ) -> Result<(), BlobsError> {
        self.keep_until(digest, content, limit_bytes, SystemTime::now() + COUNTED_ON).await
    }

    async fn keep_until<E: core::error::Error + Send + Sync + 'static>(
        &self,
        digest: Digest,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin + Send,
        limit_bytes: u64,
        until: SystemTime,
    ) -> Result<(), BlobsError> {
        let (found, _) = self.local.put_stream(content, limit_bytes, until).await?;
        if found != digest {
            let reason = format!("{found} came instead");
            return Err(BlobsError::Elsewhere { digest, reason });
        }
        Ok(())
    }

    /// Has so many servers keep a blob that a majority does; returns how many do. On a worker, a server sees to it.
    pub(crate) async fn spread(&self, digest: &Digest) -> Result<u32, BlobsError> {
        let Some(Others { servers, own }) = &self.others else { return Ok(1) };
        let Some(own) = own else {
            let stored = servers.store(*digest, &self.local).await;
            return stored.map(|()| 1).map_err(|error| BlobsError::TooFew {
                digest: *digest,
                servers: 0,
                needed: 1,
                reason: error.to_string(),
            });
        };
        let places = servers.places();
        let needed = u32::try_from(places.len() / 2 + 1).unwrap_or(u32::MAX);
        let (mut have, mut reason) = (1, String::new());
        let others: Vec<ServerPlace> = places.into_iter().filter(|place| place.number != *own).collect();
        for place in others {
            if have >= needed {
                break;
            }
            let stored = match content_of(&self.local, digest).await {
                Ok(content) => servers.store_at(&place, *digest, content, false).await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(_) => have += 1,
                Err(error) => reason = error.to_string(),
            }
        }
        if have < needed {
            return Err(BlobsError::TooFew { digest: *digest, servers: have, needed, reason });
        }
        Ok(have)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::answers::{answering, said};

    /// A piece of content, as a server sends it: the second member of the message.
    fn piece(content: &[u8]) -> Vec<u8> {
        [&[0x12, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn among(directory: &std::path::Path) -> Blobs {
        let server = answering(|_| async { said(&[&piece(b"a copy")]) });
        let local = Arc::new(BlobStore::open(directory).unwrap());
        Blobs::among(local, Servers::by(server), Some(2))
    }

    fn sweep(blobs: &Blobs, sweep: &mut grey_blob::Sweep) {
        for folder in 0..grey_blob::FOLDERS {
            let folder = u8::try_from(folder).unwrap();
            // It began before anything named the copy, so that it knows of no name.
            sweep.folder::<BlobError>(folder, |_| false, || Ok(()), || Ok(())).unwrap();
        }
        assert!(blobs.local.path_of(&Digest::of(b"nobody's")).metadata().is_err());
    }

    #[tokio::test]
    async fn a_look_that_was_under_way_leaves_a_copy_that_was_fetched_because_something_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let (blobs, copy) = (among(directory.path()), Digest::of(b"a copy"));
        blobs.local.put("nobody's".into(), None).await.unwrap();
        let mut look = blobs.local.begin_sweep();
        blobs.copy_here(&copy).await.unwrap();
        sweep(&blobs, &mut look);
        assert_eq!(blobs.local.size_bytes(&copy).await.unwrap(), Some(6));
        // Nothing but names keeps it for longer than any look takes.
        let kept_until = blobs.local.path_of(&copy).metadata().unwrap().modified().unwrap();
        let longest = SystemTime::now() + A_LOOK;
        assert!(kept_until <= longest && kept_until > longest - Duration::from_secs(60));
    }
}
