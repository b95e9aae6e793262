//! A node's certificate is renewed when half of its life is over, by whichever server leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grey_trust::IdentityHandle;
use grey_trust::join::{Reject, RejectCode};
use tokio::sync::watch;

use super::papers::Papers;
use crate::clock::wall_ms;
use crate::directory::ServerPlace;
use crate::plane::{Answered, Dialler, Joining};

/// How often it is looked whether a certificate needs another.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Renews a node's certificate again and again, until the node ends.
pub(super) async fn renew(
    papers: Arc<Mutex<Papers>>,
    handle: IdentityHandle,
    joining: Joining,
    dialler: Dialler,
    places: watch::Receiver<Vec<ServerPlace>>,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        let known = places.borrow().clone();
        let (cluster, due) = {
            let mut papers = papers.lock().unwrap_or_else(PoisonError::into_inner);
            if !known.is_empty()
                && known != papers.servers()
                && let Err(error) = papers.know(&known)
            {
                tracing::warn!(%error, "where the servers are is not kept");
            }
            (papers.cluster(), papers.tls.needs_renewal(wall_ms()))
        };
        if !due {
            continue;
        }
        for place in known {
            let answered = match dialler.dial(&place.address, Some(place.tls_key)).await {
                Ok(dialled) => joining.ask(&dialled, &cluster, None).await,
                Err(error) => Err(error.to_string()),
            };
            match answered {
                Ok(Answered::Accepted(accept)) => {
                    let mut papers = papers.lock().unwrap_or_else(PoisonError::into_inner);
                    let kept = papers.renewed(&accept);
                    let shown = handle.replace(&papers.tls);
                    match (kept, shown) {
                        (Ok(()), Ok(())) => tracing::info!("the certificate was renewed"),
                        (kept, shown) => tracing::error!(?kept, ?shown, "the next certificate is not kept"),
                    }
                    break;
                }
                Ok(Answered::Rejected(Reject { code: RejectCode::NotLeader, .. })) => {}
                Ok(Answered::Rejected(reject)) => {
                    tracing::error!(code = ?reject.code, detail = reject.detail, "the certificate is not renewed");
                    break;
                }
                Err(reason) => {
                    tracing::debug!(server = place.number, reason, "asked for another certificate in vain");
                }
            }
        }
    }
}
