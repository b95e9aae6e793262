//! Places for what holds something open for long: so many at once, and so many of one tenant, so that no tenant takes them from all others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use grey_api::{ErrorCode, Problem};
use grey_core::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::Scope;

/// When to ask again for a place.
const ASK_AGAIN_MS: u64 = 1_000;

/// How many places there are, and what for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What takes them, in the plural.
    pub(crate) what: &'static str,
    /// All of them.
    pub(crate) at_once: usize,
    /// Those that one tenant may take. Who is of no tenant runs the cluster, and may take all.
    pub(crate) of_a_tenant: usize,
    /// For how long somebody waits for one before being refused.
    pub(crate) wait: Duration,
}

/// Places that are taken and given back.
pub(crate) struct Places {
    bounds: Bounds,
    all: Arc<Semaphore>,
    /// A tenant's part lives as long as somebody holds or waits for a place of it.
    tenants: Mutex<BTreeMap<TenantId, Weak<Semaphore>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_the_tenant: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new(bounds: Bounds) -> Places {
        Places { bounds, all: Arc::new(Semaphore::new(bounds.at_once)), tenants: Mutex::default() }
    }

    /// A place for somebody of a scope: one of the tenant's, and one of all.
    pub(crate) async fn take(&self, scope: Scope) -> Result<Place, Problem> {
        let Bounds { what, at_once, of_a_tenant, wait } = self.bounds;
        let part = match scope {
            Scope::Only(tenant) => Some(self.part_of(tenant)),
            Scope::All | Scope::Nothing => None,
        };
        let of_the_tenant = match part {
            None => None,
            Some(part) => Some(taken(part, wait).await.ok_or_else(|| {
                let detail = format!("{of_a_tenant} {what} of the tenant are under way");
                full(ErrorCode::QueueFull, detail, of_a_tenant).hint("wait until some of them have ended")
            })?),
        };
        let of_all = taken(self.all.clone(), wait)
            .await
            .ok_or_else(|| full(ErrorCode::Overloaded, format!("{at_once} {what} are under way"), at_once))?;
        Ok(Place { _of_all: of_all, _of_the_tenant: of_the_tenant })
    }

    fn part_of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return part;
        }
        // What is left of those that hold nothing any more.
        tenants.retain(|_, part| part.strong_count() > 0);
        let part = Arc::new(Semaphore::new(self.bounds.of_a_tenant));
        tenants.insert(tenant, Arc::downgrade(&part));
        part
    }
}

/// A permit, if there is one within a time.
async fn taken(semaphore: Arc<Semaphore>, wait: Duration) -> Option<OwnedSemaphorePermit> {
    tokio::time::timeout(wait, semaphore.acquire_owned()).await.ok()?.ok()
}

fn full(code: ErrorCode, detail: String, limit: usize) -> Problem {
    Problem::new(code, detail).limit(limit as u64).usage(limit as u64).retry_after_ms(ASK_AGAIN_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Scope = Scope::Only(TenantId(2));
    const BLUE: Scope = Scope::Only(TenantId(3));

    fn places() -> Places {
        Places::new(Bounds { what: "things", at_once: 3, of_a_tenant: 2, wait: Duration::ZERO })
    }

    #[tokio::test]
    async fn a_tenant_takes_its_part_and_leaves_the_rest_to_others() {
        let places = places();
        let _one = places.take(RED).await.unwrap();
        let two = places.take(RED).await.unwrap();
        let refused = places.take(RED).await.unwrap_err();
        assert_eq!((refused.status, refused.limit, refused.usage), (429, Some(2), Some(2)));
        assert_eq!(refused.detail, "2 things of the tenant are under way");
        let blue = places.take(BLUE).await.unwrap();
        let refused = places.take(Scope::All).await.unwrap_err();
        assert_eq!((refused.status, refused.detail.as_str()), (503, "3 things are under way"));
        // What is given back is there for whoever asks next.
        drop(two);
        let all = places.take(Scope::All).await.unwrap();
        drop((all, blue));
        assert!(places.take(RED).await.is_ok());
    }

    #[tokio::test]
    async fn who_is_refused_for_all_keeps_nothing_of_the_tenant_s_and_tenants_that_left_are_forgotten() {
        let places = places();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(places.take(Scope::All).await.unwrap());
        }
        for _ in 0..5 {
            assert_eq!(places.take(RED).await.unwrap_err().status, 503);
        }
        held.clear();
        let _red = (places.take(RED).await.unwrap(), places.take(RED).await.unwrap());
        for tenant in 10..20 {
            assert!(places.take(Scope::Only(TenantId(tenant))).await.is_ok());
        }
        assert!(places.tenants.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn a_place_is_waited_for() {
        let wait = Duration::from_secs(30);
        let places = Arc::new(Places::new(Bounds { what: "things", at_once: 1, of_a_tenant: 1, wait }));
        let held = places.take(RED).await.unwrap();
        let (waiting, patient) =
            (places.clone(), tokio::spawn(async move { places.take(RED).await.map(drop) }));
        while waiting.tenants.lock().unwrap().values().all(|part| part.strong_count() < 2) {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert!(patient.await.unwrap().is_ok());
    }
}
