//! Which tenant has sent which content. Content lies under its digest once for all, so a tenant that learns another's digest could
//! name it; it may name what it has sent itself.
//!
//! This is kept in memory, at the server that leads: what is forgotten is sent again, which costs time and gives nothing away.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use grey_core::{TenantId, limits};
use grey_proof::Digest;

use crate::http::Scope;

/// The most digests that are remembered of a tenant: the files of the longest list of items, and some.
const DIGESTS_OF_ONE: usize = (limits::ARRAY_TASKS as usize) + 65_536;
/// The most that are remembered of all tenants; each takes about 120 bytes.
const DIGESTS: usize = 2 * DIGESTS_OF_ONE;

/// What one tenant has sent.
#[derive(Default)]
struct Sent {
    by_digest: HashMap<Digest, u64>,
    by_use: BTreeMap<u64, Digest>,
    uses: u64,
}

impl Sent {
    fn use_now(&mut self, digest: Digest) {
        self.uses = self.uses.saturating_add(1);
        if let Some(before) = self.by_digest.insert(digest, self.uses) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, digest);
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.by_use.pop_first() {
            self.by_digest.remove(&oldest);
        }
    }
}

/// What each tenant has sent. Beyond a bound, what was used longest ago is forgotten: of the tenant itself, or of the one that has
/// most.
pub(crate) struct Claims {
    most_of_one: usize,
    most: usize,
    tenants: Mutex<BTreeMap<TenantId, Sent>>,
}

impl Default for Claims {
    fn default() -> Claims {
        Claims::bounded(DIGESTS_OF_ONE, DIGESTS)
    }
}

impl Claims {
    fn bounded(most_of_one: usize, most: usize) -> Claims {
        Claims { most_of_one, most, tenants: Mutex::default() }
    }

    /// Content was sent by somebody of a scope, whole.
    pub(crate) fn sent(&self, scope: Scope, digest: Digest) {
        let Scope::Only(tenant) = scope else { return };
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = tenants.entry(tenant).or_default();
        sent.use_now(digest);
        if sent.by_digest.len() > self.most_of_one {
            sent.forget_oldest();
        }
        let total: usize = tenants.values().map(|sent| sent.by_digest.len()).sum();
        if total > self.most
            && let Some(largest) = tenants.values_mut().max_by_key(|sent| sent.by_digest.len())
        {
            largest.forget_oldest();
        }
    }

    /// Whether somebody of a scope may name content that is here: what is the tenant's own; who is of no tenant may name all.
    pub(crate) fn may_name(&self, scope: Scope, digest: &Digest) -> bool {
        let tenant = match scope {
            Scope::All => return true,
            Scope::Nothing => return false,
            Scope::Only(tenant) => tenant,
        };
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sent) = tenants.get_mut(&tenant).filter(|sent| sent.by_digest.contains_key(digest)) else {
            return false;
        };
        sent.use_now(*digest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    #[test]
    fn a_tenant_names_what_it_has_sent_and_who_is_of_no_tenant_names_all() {
        let (claims, own, other) = (Claims::default(), Scope::Only(TenantId(2)), Scope::Only(TenantId(3)));
        claims.sent(own, digest(1));
        claims.sent(Scope::All, digest(2));
        for (scope, first, second) in [
            (own, true, false),
            (other, false, false),
            (Scope::All, true, true),
            (Scope::Nothing, false, false),
        ] {
            let found = (claims.may_name(scope, &digest(1)), claims.may_name(scope, &digest(2)));
            assert_eq!(found, (first, second), "{scope:?}");
        }
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_first_and_others_are_not_crowded_out() {
        let (own, other) = (Scope::Only(TenantId(2)), Scope::Only(TenantId(3)));
        let claims = Claims::bounded(10, 12);
        claims.sent(other, digest(0));
        (0..10).for_each(|number| claims.sent(own, digest(number)));
        assert!(claims.may_name(own, &digest(0)), "used again");
        claims.sent(own, digest(10));
        assert!(!claims.may_name(own, &digest(1)), "it was the oldest");
        assert!(claims.may_name(own, &digest(0)) && claims.may_name(own, &digest(10)));
        // With both at the bound of all, it is the larger one that forgets.
        claims.sent(other, digest(20));
        claims.sent(other, digest(21));
        assert!(!claims.may_name(own, &digest(2)) && claims.may_name(own, &digest(3)));
        assert!([0, 20, 21].iter().all(|number| claims.may_name(other, &digest(*number))));
    }
}
