//! The overlay through which an entry is applied: reads fall through to the state, writes stay here until the whole
//! entry is known to hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::breaker::WorkerBreakers;
use crate::changed::Changed;
use crate::flow::{Flow, StageProgress};
use crate::identity::{IdentityKey, IdentityRow};
use crate::ids::{JobId, TaskId, TenantId, WorkerId};
use crate::quota::QuotaRow;
use crate::rows::{Group, Job, KeyId, KeyRecord, LiveTask, Meta, Tenant, Worker};
use crate::spec::TaskSpec;
use crate::state::State;
use crate::table::{Numbered, Table};

/// One table's changes above its rows.
pub(crate) struct Layer<'a, K, V> {
    base: &'a Table<K, V>,
    changes: Changed<K, V>,
}

impl<'a, K: Numbered, V: Clone> Layer<'a, K, V> {
    fn new(base: &'a Table<K, V>) -> Layer<'a, K, V> {
        Layer { base, changes: Changed::default() }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self.changes.get(*key) {
            Some(changed) => changed.as_ref(),
            None => self.base.get(key),
        }
    }

    /// The row for writing; it counts as changed from here on.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let base = self.base;
        self.changes.get_or_add(*key, || base.get(key).cloned())?.as_mut()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.changes.set(key, Some(value));
    }

    pub(crate) fn remove(&mut self, key: &K) {
        let base = self.base;
        self.changes.remove(*key, || base.contains_key(key));
    }
}

/// The changes of rows whose keys are no numbers, above these rows.
pub(crate) struct KeyLayer<'a, K, V> {
    base: &'a BTreeMap<K, V>,
    changes: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Clone, V: Clone> KeyLayer<'_, K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self.changes.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.base.get(key),
        }
    }

    /// The row for writing; it counts as changed from here on.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.changes.contains_key(key) {
            let row = self.base.get(key)?.clone();
            self.changes.insert(key.clone(), Some(row));
        }
        self.changes.get_mut(key)?.as_mut()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.changes.insert(key, Some(value));
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if self.base.contains_key(key) {
            self.changes.insert(key.clone(), None);
        } else {
            self.changes.remove(key);
        }
    }
}

/// All tables with an entry's changes above them.
pub(crate) struct Overlay<'a> {
    pub(crate) base: &'a State,
    pub(crate) meta: Meta,
    pub(crate) quotas: Layer<'a, TenantId, QuotaRow>,
    pub(crate) tenants: Layer<'a, TenantId, Tenant>,
    pub(crate) workers: Layer<'a, WorkerId, Worker>,
    pub(crate) jobs: Layer<'a, JobId, Job>,
    pub(crate) groups: Layer<'a, TaskId, Group>,
    pub(crate) specs: Layer<'a, TaskId, Arc<TaskSpec>>,
    pub(crate) live: Layer<'a, TaskId, LiveTask>,
    pub(crate) keys: KeyLayer<'a, KeyId, KeyRecord>,
    pub(crate) identity: KeyLayer<'a, IdentityKey, IdentityRow>,
    pub(crate) flows: Layer<'a, JobId, Arc<Flow>>,
    pub(crate) progress: Layer<'a, TaskId, StageProgress>,
    pub(crate) breakers: Layer<'a, WorkerId, WorkerBreakers>,
}

/// What an entry changed, free of the state that it was derived from.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) meta: Meta,
    pub(crate) quotas: Changed<TenantId, QuotaRow>,
    pub(crate) tenants: Changed<TenantId, Tenant>,
    pub(crate) workers: Changed<WorkerId, Worker>,
    pub(crate) jobs: Changed<JobId, Job>,
    pub(crate) groups: Changed<TaskId, Group>,
    pub(crate) specs: Changed<TaskId, Arc<TaskSpec>>,
    pub(crate) live: Changed<TaskId, LiveTask>,
    pub(crate) keys: BTreeMap<KeyId, Option<KeyRecord>>,
    pub(crate) identity: BTreeMap<IdentityKey, Option<IdentityRow>>,
    pub(crate) flows: Changed<JobId, Arc<Flow>>,
    pub(crate) progress: Changed<TaskId, StageProgress>,
    pub(crate) breakers: Changed<WorkerId, WorkerBreakers>,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a State) -> Overlay<'a> {
        Overlay {
            base,
            meta: base.meta.clone(),
            quotas: Layer::new(&base.quotas),
            tenants: Layer::new(&base.tenants),
            workers: Layer::new(&base.workers),
            jobs: Layer::new(&base.jobs),
            groups: Layer::new(&base.groups),
            specs: Layer::new(&base.specs),
            live: Layer::new(&base.live),
            keys: KeyLayer { base: &base.keys, changes: BTreeMap::new() },
            identity: KeyLayer { base: &base.identity.rows, changes: BTreeMap::new() },
            flows: Layer::new(&base.flows),
            progress: Layer::new(&base.progress),
            breakers: Layer::new(&base.breakers),
        }
    }

    pub(crate) fn into_changes(self) -> Changes {
        Changes {
            meta: self.meta,
            quotas: self.quotas.changes,
            tenants: self.tenants.changes,
            workers: self.workers.changes,
            jobs: self.jobs.changes,
            groups: self.groups.changes,
            specs: self.specs.changes,
            live: self.live.changes,
            keys: self.keys.changes,
            identity: self.identity.changes,
            flows: self.flows.changes,
            progress: self.progress.changes,
            breakers: self.breakers.changes,
        }
    }
}
