//! The side that is asked. A server never signs two roots of one size: it signs the root of its own log, and that only grows.

use std::sync::Arc;
use std::time::Duration;

use grey_proof::{Digest, SignedCheckpoint, log_root, stored_hash_count};
use grey_store::{StoreError, TreeFile};
use grey_wire::{CosignReply, CosignRequest, decode_digest};
use tokio::sync::watch;
use tonic::Status;

use crate::identity::Signing;

/// How long a server waits until its own log is as long as what it is to sign.
const REACH_WITHIN: Duration = Duration::from_secs(1);

/// What a server signs other servers' checkpoints with.
pub(crate) struct Cosigner {
    pub(crate) signing: Arc<Signing>,
    /// The hashes of its own log.
    pub(crate) tree: TreeFile,
    /// The last entry of which they are there.
    pub(crate) kept: watch::Receiver<u64>,
}

impl Cosigner {
    /// Signs a checkpoint that says what this server's own log says.
    pub(crate) async fn cosign(&self, request: &CosignRequest) -> Result<CosignReply, Status> {
        let size = request.size;
        let root =
            decode_digest(&request.root).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let needed = stored_hash_count(size);
        let mut kept = self.kept.clone();
        let reached = kept.wait_for(|_| self.tree.hashes() >= needed);
        match tokio::time::timeout(REACH_WITHIN, reached).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Status::unavailable("the server is stopping")),
            Err(_) => return Err(Status::unavailable("this server does not have that much of the log yet")),
        }
        match is_own(size, root, |hash| self.tree.read(hash)) {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(size, %root, "a server has another log than this one; compare `state_hash` of `grey cluster status --here`");
                return Err(Status::failed_precondition("this server's log has another root at that size"));
            }
            // It entered later, and others have not given it what was before yet.
            Err(StoreError::Absent { .. }) => {
                return Err(Status::unavailable("this server does not have all of the log yet"));
            }
            Err(error) => return Err(Status::internal(error.to_string())),
        }
        let checkpoint = SignedCheckpoint::new(self.signing.cluster, size, root);
        let certificate = serde_json::to_vec(&self.signing.certified().server_certificate)
            .map_err(|error| Status::internal(error.to_string()))?;
        let signature = checkpoint.signature(&self.signing.server_key).into();
        Ok(CosignReply { signature, certificate: certificate.into() })
    }
}

/// Whether a log whose stored hashes `read` gives has this root at this size. Of nothing there is nothing to sign.
fn is_own<E>(size: u64, root: Digest, read: impl FnMut(u64) -> Result<Digest, E>) -> Result<bool, E> {
    Ok(size > 0 && log_root(size, read)? == root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_proof::{LogTree, leaf_hash};

    /// A log of leaves, its stored hashes, and its root at every size.
    fn log(leaves: &[&[u8]]) -> (Vec<Digest>, Vec<Digest>) {
        let (mut tree, mut stored) = (LogTree::default(), Vec::new());
        let mut roots = vec![tree.root()];
        for leaf in leaves {
            stored.extend(tree.append(leaf_hash(leaf)));
            roots.push(tree.root());
        }
        (stored, roots)
    }

    #[test]
    fn what_the_own_log_said_at_any_size_is_signed_and_a_fork_of_it_never() {
        let (stored, roots) = log(&[b"a", b"b", b"c", b"d", b"e"]);
        // Another log that has a longer part in common at each size.
        let (_, fork) = log(&[b"a", b"b", b"c", b"x", b"e"]);
        let signs = |size: u64, root: Digest| {
            is_own(size, root, |hash| stored.get(hash as usize).copied().ok_or(hash)).unwrap()
        };
        for size in 1..=5 {
            assert!(signs(size, roots[size as usize]), "{size}");
            assert_eq!(signs(size, fork[size as usize]), size < 4, "a fork at {size}");
        }
        assert!(!signs(4, roots[5]) && !signs(5, roots[4]), "the root of another size");
        assert!(!signs(0, roots[0]), "there is nothing to sign");
        assert!(
            is_own(6, roots[5], |hash| stored.get(hash as usize).copied().ok_or(hash)).is_err(),
            "what is not there is not made up"
        );
    }
}
