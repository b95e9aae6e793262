//! Whether this node still belongs to its cluster.
//!
//! That a server does not take it is no proof: a server that lags does not know who has entered since. Who leads answers as of everything that
//! was committed before it was asked, and a node that was removed does not belong again under its key. Only that ends a node. It is asked without
//! a certificate: that of a node which was removed while it was off may have ended, and is not taken any more.

use std::sync::Arc;
use std::time::Duration;

use grey_proof::Digest;
use grey_wire::Standing;
use tokio::sync::Notify;

use super::servers::Servers;

/// How long after one round of questions the next begins, at the soonest.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Somebody's doubt whether this node belongs to the cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt(Arc<Notify>);

impl Doubt {
    /// There is reason to ask.
    pub(crate) fn raise(&self) {
        self.0.notify_one();
    }

    /// Returns once the node with a TLS key was removed from the cluster, as somebody who leads says. `servers` are dialled without a certificate.
    pub(crate) async fn until_removed(&self, servers: &Servers, tls_key: &Digest) {
        loop {
            self.0.notified().await;
            let mut is_blocked = false;
            // All are asked: what the others say may be of before it was removed.
            for place in servers.places() {
                match servers.standing(&place, tls_key).await {
                    Ok(Standing::Removed) => return,
                    Ok(standing) => is_blocked |= standing == Standing::Blocked,
                    Err(error) => {
                        tracing::debug!(server = place.number, %error, "does not say whether this node belongs");
                    }
                }
            }
            if is_blocked {
                tracing::warn!("this node is blocked, and waits until an operator lets it in again");
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
