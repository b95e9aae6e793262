//! A node's certificate is renewed when half of its life is over, or when another issuing key is current, by whichever server leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use grey_proof::Digest;
use grey_trust::IdentityHandle;
use grey_trust::join::{Reject, RejectCode};
use tokio::sync::watch;

use super::papers::Papers;
use crate::clock::wall_ms;
use crate::directory::ServerPlace;
use crate::plane::{Answered, Dialler, Joining};

/// How often it is looked whether a certificate needs another.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon it is renewed again while the same issuing key is named: whoever named it may lag behind, and so may whoever renewed. Each time
/// costs the cluster an entry.
const AGAIN: Duration = Duration::from_secs(60);

/// Renews a node's certificate again and again, until the node ends.
pub(super) async fn renew(
    papers: Arc<Mutex<Papers>>,
    handle: IdentityHandle,
    joining: Joining,
    dialler: Dialler,
    (places, mut issuer): (watch::Receiver<Vec<ServerPlace>>, watch::Receiver<Option<Digest>>),
    renewed: impl Fn(&Papers) + Send + Sync + 'static,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut asked: Option<(Option<Digest>, Instant)> = None;
    let mut is_kept = true;
    loop {
        // Where nobody tells any more which key is current, the clock is left.
        let told = async {
            if issuer.changed().await.is_err() {
                core::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = look.tick() => {}
            () = told => {}
        }
        let current = *issuer.borrow();
        let known = places.borrow().clone();
        let looked = on_disk(&papers, {
            let known = known.clone();
            move |papers| {
                if !known.is_empty()
                    && known != papers.servers()
                    && let Err(error) = papers.know(&known)
                {
                    tracing::warn!(%error, "where the servers are is not kept");
                }
                let is_kept = is_kept || keep(papers);
                let is_other = current.is_some_and(|current| papers.issuer().ok() != Some(current));
                (is_kept, papers.cluster(), papers.tls.needs_renewal(wall_ms()) || is_other)
            }
        });
        let Some((now_kept, cluster, wanted)) = looked.await else { return };
        is_kept = now_kept;
        let just_asked = asked.is_some_and(|(of, at)| of == current && at.elapsed() < AGAIN);
        let due = wanted && !just_asked;
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
                    asked = Some((current, Instant::now()));
                    let taken = on_disk(&papers, move |papers| {
                        let renewed = papers.renewed(&accept);
                        renewed.map(|()| keep(papers))
                    });
                    let Some(taken) = taken.await else { return };
                    let papers = papers.lock().unwrap_or_else(PoisonError::into_inner);
                    let shown = taken.and_then(|kept| {
                        is_kept = kept;
                        Ok(handle.replace(&papers.tls)?)
                    });
                    match shown {
                        // Also where the disk does not take it: the one before ends, and the cluster counts on this one.
                        Ok(()) => {
                            renewed(&papers);
                            tracing::info!("the certificate was renewed");
                        }
                        Err(error) => tracing::error!(%error, "the next certificate is not usable"),
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

/// Does with the papers what may have to wait for the disk, on a thread that may wait: the runtime's answer everybody else. None where the
/// node ends meanwhile.
async fn on_disk<Kept: Send + 'static, T: Send + 'static>(
    papers: &Arc<Mutex<Kept>>,
    act: impl FnOnce(&mut Kept) -> T + Send + 'static,
) -> Option<T> {
    let papers = papers.clone();
    let acting =
        tokio::task::spawn_blocking(move || act(&mut papers.lock().unwrap_or_else(PoisonError::into_inner)));
    acting.await.ok()
}

/// Whether the papers are on the disk now; until they are, that is tried at every look.
fn keep(papers: &Papers) -> bool {
    let kept = papers.write();
    if let Err(error) = &kept {
        tracing::error!(%error, "the next certificate is in use and not on the disk; until it is, a restart goes back to the one before");
    }
    kept.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_disk_holds_up_nobody_else() {
        let (disk, written) = std::sync::mpsc::channel();
        let papers = Arc::new(Mutex::new(0));
        // The runtime has one thread, which has to go on for this to end.
        let acting = on_disk(&papers, move |papers| {
            *papers += 1;
            written.recv_timeout(Duration::from_secs(30)).is_ok()
        });
        let (kept, others) = tokio::join!(acting, async { disk.send(()) });
        assert_eq!((kept, others.is_ok(), *papers.lock().unwrap()), (Some(true), true, 1));
    }
}
