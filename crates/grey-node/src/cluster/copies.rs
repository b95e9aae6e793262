//! Content comes to every server. A majority has it before it counts; the others fetch it afterwards, so that a server that is left
//! alone has it too.

use std::sync::Arc;
use std::time::Duration;

use grey_proof::Digest;
use tokio::sync::mpsc::Receiver;

use crate::blobs::Blobs;

/// How often a copy is asked for before it is left to the collector, which looks for what is missing again and again.
const ATTEMPTS: u32 = 3;
/// How long after the first attempt the second one is made.
const AGAIN: Duration = Duration::from_secs(1);

/// Fetches what reports name, one after another, until the node ends.
pub(super) async fn copy(blobs: Arc<Blobs>, mut named: Receiver<Digest>) {
    while let Some(digest) = named.recv().await {
        for attempt in 0..ATTEMPTS {
            match blobs.copy_here(&digest).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(%digest, %error, "a copy did not come"),
            }
            tokio::time::sleep(AGAIN * 2u32.pow(attempt)).await;
        }
    }
}
