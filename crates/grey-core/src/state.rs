//! The replicated state: rows, the indexes derived from them, and the hash that replicas compare.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use grey_proof::{Digest, DigestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::breaker::WorkerBreakers;
use crate::changed::Changed;
use crate::flow::{Flow, StageProgress};
use crate::identity::IdentityKey;
use crate::identity_table::IdentityTable;
use crate::ids::{JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::level::NEWEST_FEATURE_LEVEL;
use crate::overlay::Changes;
use crate::quota::QuotaRow;
use crate::rows::{Group, Job, KeyId, KeyRecord, LiveTask, Meta, Phase, Tenant, Worker};
use crate::seats::{Seat, Seats, Totals};
use crate::spec::{ExecutorKind, TaskSpec};
use crate::table::{Numbered, Table};

/// Where a waiting task stands in its tenant's line: priority and age first, then the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyKey {
    /// What [`Group::rank`] says, lowest first.
    pub rank: u64,
    /// The lowest waiting task of the group, or the task that waits again.
    pub task: TaskId,
    /// Its group.
    pub group: TaskId,
}

/// Something that becomes due at a cluster time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deadline {
    /// A task's back-off ends.
    Backoff(TaskId),
    /// An idempotency key is forgotten.
    Key(KeyId),
    /// An attempt should have been ended by its worker.
    Overdue(TaskId),
    /// A worker's quarantine ends.
    Quarantine(WorkerId),
    /// An executor of a worker is tried again, or has not started what it was tried with.
    Breaker(WorkerId),
}

/// Why rows are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A row does not decode.
    #[error("state row {key} of table {table} does not decode")]
    Row {
        /// The table's number.
        table: u8,
        /// The row's key in hexadecimal.
        key: String,
    },
    /// A newer version wrote them.
    #[error(
        "the state is of feature level {level}; this version understands up to {NEWEST_FEATURE_LEVEL}; install a newer one"
    )]
    FeatureLevel {
        /// Its level.
        level: u16,
    },
    /// The rows are well-formed and contradict one another.
    #[error("the state breaks an invariant: {0}")]
    Invariant(String),
}

/// The whole state as of one index. A pure value: no clock, no chance, no IO.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) hash: Digest,
    pub(crate) meta: Meta,
    pub(crate) tenants: Table<TenantId, Tenant>,
    pub(crate) quotas: Table<TenantId, QuotaRow>,
    pub(crate) workers: Table<WorkerId, Worker>,
    pub(crate) jobs: Table<JobId, Job>,
    pub(crate) groups: Table<TaskId, Group>,
    pub(crate) specs: Table<TaskId, Arc<TaskSpec>>,
    pub(crate) live: Table<TaskId, LiveTask>,
    pub(crate) keys: BTreeMap<KeyId, KeyRecord>,
    pub(crate) identity: IdentityTable,
    pub(crate) flows: Table<JobId, Arc<Flow>>,
    pub(crate) progress: Table<TaskId, StageProgress>,
    pub(crate) breakers: Table<WorkerId, WorkerBreakers>,
    pub(crate) ready: BTreeMap<TenantId, BTreeSet<ReadyKey>>,
    pub(crate) deadlines: BTreeSet<(u64, Deadline)>,
    pub(crate) seats: Seats,
    pub(crate) totals: Totals,
    /// Keys that changed since the last checkpoint, and whether that checkpoint has them; the tables know it of their rows
    /// themselves. What came and went in between leaves no trace.
    pub(crate) dirty_keys: BTreeMap<KeyId, bool>,
    /// The same of who belongs to the cluster and who may speak.
    pub(crate) dirty_identity: BTreeMap<IdentityKey, bool>,
    /// The mistake that this state's code makes, for the simulator's own proof.
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<crate::mutant::Mutant>,
}

const TABLE_META: u8 = 1;
const TABLE_TENANT: u8 = 2;
const TABLE_WORKER: u8 = 3;
const TABLE_JOB: u8 = 4;
const TABLE_GROUP: u8 = 5;
const TABLE_SPEC: u8 = 6;
const TABLE_LIVE: u8 = 7;
const TABLE_KEY: u8 = 8;
const TABLE_POSITION: u8 = 9;
const TABLE_FLOW: u8 = 10;
const TABLE_PROGRESS: u8 = 11;
const TABLE_IDENTITY: u8 = 12;
const TABLE_QUOTA: u8 = 13;
const TABLE_BREAKER: u8 = 14;

/// A row's key: the table's number and the big-endian key, so that rows sort as the tables do.
trait RowKey: Ord + Clone {
    fn write(&self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! numeric_row_key {
    ($($name:ident($inner:ty)),*) => {$(
        impl Numbered for $name {
            fn number(self) -> u64 {
                u64::from(self.0)
            }
        }

        impl RowKey for $name {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0.to_be_bytes());
            }
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(|bytes| $name(<$inner>::from_be_bytes(bytes)))
            }
        }
    )*};
}
numeric_row_key!(TenantId(u32), WorkerId(u32), JobId(u64), TaskId(u64));

impl RowKey for KeyId {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        out.extend_from_slice(self.1.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (tenant, key) = bytes.split_first_chunk::<4>()?;
        Some((TenantId(u32::from_be_bytes(*tenant)), String::from_utf8(key.to_vec()).ok()?))
    }
}

impl RowKey for IdentityKey {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, digest) = match self {
            IdentityKey::Node(digest) => (1, digest),
            IdentityKey::Certificate(digest) => (2, digest),
            IdentityKey::JoinToken(digest) => (3, digest),
            IdentityKey::Token(digest) => (4, digest),
            IdentityKey::Nonce(digest) => (5, digest),
            IdentityKey::Version(digest) => (6, digest),
            // There is one; its key is as long as the others.
            IdentityKey::Authority => (7, &Digest::ZERO),
        };
        out.push(kind);
        out.extend_from_slice(&digest.0);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, digest) = bytes.split_first()?;
        let digest = Digest(digest.try_into().ok()?);
        match kind {
            1 => Some(IdentityKey::Node(digest)),
            2 => Some(IdentityKey::Certificate(digest)),
            3 => Some(IdentityKey::JoinToken(digest)),
            4 => Some(IdentityKey::Token(digest)),
            5 => Some(IdentityKey::Nonce(digest)),
            6 => Some(IdentityKey::Version(digest)),
            7 if digest == Digest::ZERO => Some(IdentityKey::Authority),
            _ => None,
        }
    }
}

fn row_key<K: RowKey>(table: u8, key: &K) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.push(table);
    key.write(&mut bytes);
    bytes
}

/// The row of a number in a table: tenants and workers have shorter ones.
fn numbered_row(table: u8, number: u64) -> Vec<u8> {
    match (table, u32::try_from(number)) {
        (TABLE_TENANT | TABLE_QUOTA, Ok(number)) => row_key(table, &TenantId(number)),
        (TABLE_WORKER | TABLE_BREAKER, Ok(number)) => row_key(table, &WorkerId(number)),
        _ => row_key(table, &TaskId(number)),
    }
}

fn encode<V: Serialize>(value: &V) -> Vec<u8> {
    // Serialising to memory fails only for types without a known length, and rows have none of those.
    postcard::to_allocvec(value).unwrap_or_default()
}

/// Takes what is encoded into a buffer that has something in it already.
struct Sink<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Sink<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// So many bytes of changes are gathered before they are hashed.
const HASHED_BYTES: usize = 4_096;
/// Room for what a small entry changes.
const GATHERED_BYTES: usize = 1_024;

/// Hashes an entry's changes and moves them into a table, which marks the rows for the next checkpoint.
struct Committer {
    hash: DigestBuilder,
    /// Fields that are not hashed yet.
    fields: Vec<u8>,
}

impl Committer {
    /// Gathers a field: its length, then what `write` writes.
    fn field(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.fields.len();
        self.fields.extend_from_slice(&[0; 8]);
        write(&mut self.fields);
        let size_bytes = (self.fields.len() - start).saturating_sub(8) as u64;
        if let Some(length) = self.fields.get_mut(start..start + 8) {
            length.copy_from_slice(&size_bytes.to_le_bytes());
        }
        if self.fields.len() >= HASHED_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.hash.fields(&self.fields);
        self.fields.clear();
    }

    fn value<V: Serialize>(&mut self, value: Option<&V>) {
        self.field(|fields| {
            let encoded = value.map(|value| postcard::serialize_with_flavor(value, Sink(fields)));
            // As of `encode`: rows have no types that do not encode.
            debug_assert!(encoded.is_none_or(|encoded| encoded.is_ok()));
        });
    }

    fn row<K: RowKey, V: Serialize>(&mut self, table: u8, key: &K, value: Option<&V>) {
        self.field(|fields| {
            fields.push(table);
            key.write(fields);
        });
        self.value(value);
    }

    fn table<K: RowKey + Numbered, V: Serialize>(
        &mut self,
        table: u8,
        base: &mut Table<K, V>,
        changes: Changed<K, V>,
    ) {
        for (key, value) in changes.into_ascending() {
            // What came and went within the entry has not changed.
            if value.is_some() || base.contains_key(&key) {
                self.row(table, &key, value.as_ref());
                base.set(key, value);
            }
        }
    }

    /// Rows whose keys are no numbers; `set` puts one in its place and returns what was there.
    fn keyed<K: RowKey, V: Serialize>(
        &mut self,
        table: u8,
        dirty: &mut BTreeMap<K, bool>,
        changes: BTreeMap<K, Option<V>>,
        mut set: impl FnMut(K, Option<V>) -> Option<V>,
    ) {
        for (key, value) in changes {
            self.row(table, &key, value.as_ref());
            let is_there = value.is_some();
            let before = set(key.clone(), value);
            match dirty.entry(key) {
                Entry::Occupied(noted) => {
                    if !is_there && !noted.get() {
                        noted.remove();
                    }
                }
                // Untouched so far, the last checkpoint has it exactly when it was there until now.
                Entry::Vacant(place) => {
                    if is_there || before.is_some() {
                        place.insert(before.is_some());
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Digest {
        self.flush();
        self.hash.finish()
    }
}

/// What is to be found in the indexes once the changes of an entry are taken over.
#[derive(Default)]
struct Indexed {
    groups: Vec<TaskId>,
    released: Vec<TaskRange>,
    live: Vec<TaskId>,
    keys: Vec<KeyId>,
    workers: Vec<WorkerId>,
    breakers: Vec<WorkerId>,
}

impl State {
    /// The state before the first entry.
    pub fn new() -> State {
        State::default()
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Term of the last applied entry.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// Hash over every change since the first entry, in order: equal at equal index on every replica.
    pub fn hash(&self) -> Digest {
        self.hash
    }

    /// What belongs to the cluster as a whole.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// All tenants.
    pub fn tenants(&self) -> &Table<TenantId, Tenant> {
        &self.tenants
    }

    /// The tenant of a name.
    pub fn tenant_named(&self, name: &str) -> Option<(TenantId, &Tenant)> {
        self.tenants.iter().find(|(_, tenant)| &*tenant.name == name).map(|(id, tenant)| (*id, tenant))
    }

    /// What a tenant may have, where it has a quota of its own.
    pub fn quota(&self, tenant: TenantId) -> Option<&QuotaRow> {
        self.quotas.get(&tenant)
    }

    /// Whether a tenant's idempotency key was used: what is submitted under it again is nothing new.
    pub fn knows_key(&self, tenant: TenantId, key: &str) -> bool {
        self.keys.contains_key(&(tenant, key.to_owned()))
    }

    /// All workers.
    pub fn workers(&self) -> &Table<WorkerId, Worker> {
        &self.workers
    }

    /// What stands before the executors of a worker; none where nothing has failed lately.
    pub fn breakers(&self, worker: WorkerId) -> Option<&WorkerBreakers> {
        self.breakers.get(&worker)
    }

    /// How many more attempts a worker's executor may be given, for what its breaker knows; [`u32::MAX`] where none stands before it.
    pub fn executor_room(&self, worker: WorkerId, executor: ExecutorKind) -> u32 {
        self.breakers.get(&worker).map_or(u32::MAX, |row| row.room(executor))
    }

    /// Jobs that have not ended.
    pub fn jobs(&self) -> &Table<JobId, Job> {
        &self.jobs
    }

    /// Groups of those jobs.
    pub fn groups(&self) -> &Table<TaskId, Group> {
        &self.groups
    }

    /// Tasks that were assigned at least once and have not ended.
    pub fn live(&self) -> &Table<TaskId, LiveTask> {
        &self.live
    }

    /// A group's specification.
    pub fn spec(&self, group: TaskId) -> Option<&Arc<TaskSpec>> {
        self.specs.get(&group)
    }

    /// How the tasks of a live job follow one another, where they do.
    pub fn flow(&self, job: JobId) -> Option<&Arc<Flow>> {
        self.flows.get(&job)
    }

    /// How far the stage that a task of a live job belongs to is, where its job has stages.
    pub fn stage_progress(&self, task: TaskId) -> Option<&StageProgress> {
        let (_, progress) = self.progress.range(..=task).next_back()?;
        progress.tasks.contains(task).then_some(progress)
    }

    /// The group that a task of a live job belongs to.
    pub fn group_of(&self, task: TaskId) -> Option<(TaskId, &Group)> {
        let (first, group) = self.groups.range(..=task).next_back()?;
        group.tasks.contains(task).then_some((*first, group))
    }

    /// The waiting tasks of each tenant, in the order in which they are to be placed.
    pub fn ready(&self) -> &BTreeMap<TenantId, BTreeSet<ReadyKey>> {
        &self.ready
    }

    /// The earliest cluster time at which something is due, in milliseconds.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(due_ms, _)| *due_ms)
    }

    /// Takes over what an entry changed and extends the hash by it.
    pub(crate) fn commit(&mut self, index: u64, term: u64, changes: Changes) {
        let mut hash = DigestBuilder::domain("grey/state/v1");
        hash.field(&self.hash.0);
        hash.number(index);
        hash.number(term);
        let indexed = self.unindex(&changes);
        let mut committer = Committer { hash, fields: Vec::with_capacity(GATHERED_BYTES) };
        if changes.meta != self.meta {
            committer.value(Some(&changes.meta));
            self.meta = changes.meta;
        }
        committer.table(TABLE_TENANT, &mut self.tenants, changes.tenants);
        committer.table(TABLE_WORKER, &mut self.workers, changes.workers);
        committer.table(TABLE_JOB, &mut self.jobs, changes.jobs);
        committer.table(TABLE_GROUP, &mut self.groups, changes.groups);
        committer.table(TABLE_SPEC, &mut self.specs, changes.specs);
        committer.table(TABLE_LIVE, &mut self.live, changes.live);
        let keys = &mut self.keys;
        committer.keyed(TABLE_KEY, &mut self.dirty_keys, changes.keys, |key, value| match value {
            Some(value) => keys.insert(key, value),
            None => keys.remove(&key),
        });
        committer.table(TABLE_FLOW, &mut self.flows, changes.flows);
        committer.table(TABLE_PROGRESS, &mut self.progress, changes.progress);
        let identity = &mut self.identity;
        committer.keyed(TABLE_IDENTITY, &mut self.dirty_identity, changes.identity, |key, value| {
            identity.set(key, value)
        });
        committer.table(TABLE_QUOTA, &mut self.quotas, changes.quotas);
        committer.table(TABLE_BREAKER, &mut self.breakers, changes.breakers);
        self.hash = committer.finish();
        self.applied_index = index;
        self.applied_term = term;
        self.index(indexed);
    }

    /// Stages whose tasks need wait for others no longer.
    fn released(&self, changes: &Changes) -> Vec<TaskRange> {
        let went_on = changes.progress.iter().filter_map(|(first, now)| {
            let before = self.progress.get(&first)?;
            let now = now?;
            (before.waiting && !now.waiting).then_some(now.tasks)
        });
        went_on.collect()
    }

    /// Takes what is about to change out of the indexes; returns what is to be put in again.
    fn unindex(&mut self, changes: &Changes) -> Indexed {
        let mut indexed = Indexed { released: self.released(changes), ..Indexed::default() };
        for (group, now) in changes.groups.iter() {
            self.index_group(group, false);
            indexed.groups.extend(now.filter(|now| !now.pending.is_empty()).map(|_| group));
        }
        for (task, now) in changes.live.iter() {
            self.index_live(task, false);
            let has_place = |now: &&LiveTask| now.phase.worker().is_none() || now.clock.is_some();
            indexed.live.extend(now.filter(has_place).map(|_| task));
        }
        for (key, now) in &changes.keys {
            self.index_key(key, false);
            indexed.keys.extend(now.as_ref().map(|_| key.clone()));
        }
        for (worker, _) in changes.workers.iter() {
            self.index_worker(worker, false);
            indexed.workers.push(worker);
        }
        for (worker, _) in changes.breakers.iter() {
            self.index_breakers(worker, false);
            indexed.breakers.push(worker);
        }
        indexed
    }

    fn index(&mut self, indexed: Indexed) {
        for group in indexed.groups {
            self.index_group(group, true);
        }
        for tasks in indexed.released {
            let groups = self.groups.range(tasks.first..tasks.end()).map(|(first, _)| *first);
            for group in groups.collect::<Vec<_>>() {
                self.index_group(group, true);
            }
        }
        for task in indexed.live {
            self.index_live(task, true);
        }
        for key in indexed.keys {
            self.index_key(&key, true);
        }
        for worker in indexed.workers {
            self.index_worker(worker, true);
        }
        for worker in indexed.breakers {
            self.index_breakers(worker, true);
        }
    }

    fn index_breakers(&mut self, worker: WorkerId, present: bool) {
        if let Some(due_ms) = self.breakers.get(&worker).and_then(WorkerBreakers::deadline_ms) {
            self.set_deadline(due_ms, Deadline::Breaker(worker), present);
        }
    }

    fn index_worker(&mut self, worker: WorkerId, present: bool) {
        let Some(row) = self.workers.get(&worker) else { return };
        let deadline_ms = row.quarantine.deadline_ms();
        self.seats.set(&Seat::of(worker, row), present);
        self.totals.set(row, present);
        if let Some(due_ms) = deadline_ms {
            self.set_deadline(due_ms, Deadline::Quarantine(worker), present);
        }
    }

    fn set_ready(&mut self, tenant: TenantId, key: ReadyKey, present: bool) {
        if present {
            self.ready.entry(tenant).or_default().insert(key);
        } else if let Some(line) = self.ready.get_mut(&tenant) {
            line.remove(&key);
            if line.is_empty() {
                self.ready.remove(&tenant);
            }
        }
    }

    fn index_group(&mut self, first: TaskId, present: bool) {
        let Some(group) = self.groups.get(&first) else { return };
        let Some(task) = group.pending.first() else { return };
        if self.stage_progress(first).is_some_and(|progress| progress.waiting) {
            return;
        }
        let key = ReadyKey { rank: group.rank(), task, group: first };
        // A group leaves in the same entry as its job; the tenant of a removed job was indexed before that entry.
        let Some(tenant) = self.jobs.get(&group.job).map(|job| job.info.tenant) else { return };
        self.set_ready(tenant, key, present);
    }

    fn index_live(&mut self, task: TaskId, present: bool) {
        let Some(live) = self.live.get(&task) else { return };
        match live.phase {
            Phase::Ready => {
                let Some(group) = self.groups.get(&live.group) else { return };
                let key = ReadyKey { rank: group.rank(), task, group: live.group };
                let Some(tenant) = self.jobs.get(&group.job).map(|job| job.info.tenant) else { return };
                self.set_ready(tenant, key, present);
            }
            Phase::Backoff { until_ms } => self.set_deadline(until_ms, Deadline::Backoff(task), present),
            Phase::Running { .. } => {
                if let Some(clock) = live.clock {
                    self.set_deadline(clock.overdue_ms, Deadline::Overdue(task), present);
                }
            }
            Phase::Assigned { .. } | Phase::Stopping { .. } => {}
        }
    }

    fn index_key(&mut self, key: &KeyId, present: bool) {
        let Some(expires_at_ms) = self.keys.get(key).and_then(|record| record.expires_at_ms) else { return };
        self.set_deadline(expires_at_ms, Deadline::Key(key.clone()), present);
    }

    fn set_deadline(&mut self, due_ms: u64, deadline: Deadline, present: bool) {
        if present {
            self.deadlines.insert((due_ms, deadline));
        } else {
            self.deadlines.remove(&(due_ms, deadline));
        }
    }

    /// The rows that changed since the last call; `None` deletes a row. Together with all earlier ones
    /// they are the state at [`State::applied_index`].
    pub fn take_dirty_rows(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        type DirtyRows = Vec<(Vec<u8>, Option<Vec<u8>>)>;
        fn table<K: Numbered, V: Serialize>(out: &mut DirtyRows, number: u8, rows: &mut Table<K, V>) {
            rows.take_changed(|key, value| out.push((numbered_row(number, key), value.map(encode))));
        }
        let mut rows = vec![(vec![TABLE_META], Some(encode(&self.meta)))];
        table(&mut rows, TABLE_TENANT, &mut self.tenants);
        table(&mut rows, TABLE_WORKER, &mut self.workers);
        table(&mut rows, TABLE_JOB, &mut self.jobs);
        table(&mut rows, TABLE_GROUP, &mut self.groups);
        table(&mut rows, TABLE_SPEC, &mut self.specs);
        table(&mut rows, TABLE_LIVE, &mut self.live);
        table(&mut rows, TABLE_FLOW, &mut self.flows);
        table(&mut rows, TABLE_PROGRESS, &mut self.progress);
        for key in core::mem::take(&mut self.dirty_keys).into_keys() {
            rows.push((row_key(TABLE_KEY, &key), self.keys.get(&key).map(encode)));
        }
        for key in core::mem::take(&mut self.dirty_identity).into_keys() {
            rows.push((row_key(TABLE_IDENTITY, &key), self.identity.rows.get(&key).map(encode)));
        }
        table(&mut rows, TABLE_QUOTA, &mut self.quotas);
        table(&mut rows, TABLE_BREAKER, &mut self.breakers);
        let position = (self.applied_index, self.applied_term, self.hash);
        rows.push((vec![TABLE_POSITION], Some(encode(&position))));
        rows
    }

    /// Every row, in key order.
    pub fn all_rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        fn table<'a, K: RowKey + 'a, V: Serialize + 'a>(
            out: &mut Vec<(Vec<u8>, Vec<u8>)>,
            number: u8,
            rows: impl IntoIterator<Item = (&'a K, &'a V)>,
        ) {
            out.extend(rows.into_iter().map(|(key, value)| (row_key(number, key), encode(value))));
        }
        let mut rows = vec![(vec![TABLE_META], encode(&self.meta))];
        table(&mut rows, TABLE_TENANT, &self.tenants);
        table(&mut rows, TABLE_WORKER, &self.workers);
        table(&mut rows, TABLE_JOB, &self.jobs);
        table(&mut rows, TABLE_GROUP, &self.groups);
        table(&mut rows, TABLE_SPEC, &self.specs);
        table(&mut rows, TABLE_LIVE, &self.live);
        table(&mut rows, TABLE_KEY, &self.keys);
        rows.push((vec![TABLE_POSITION], encode(&(self.applied_index, self.applied_term, self.hash))));
        table(&mut rows, TABLE_FLOW, &self.flows);
        table(&mut rows, TABLE_PROGRESS, &self.progress);
        table(&mut rows, TABLE_IDENTITY, &self.identity.rows);
        table(&mut rows, TABLE_QUOTA, &self.quotas);
        table(&mut rows, TABLE_BREAKER, &self.breakers);
        rows
    }

    /// Rebuilds a state from the rows of a checkpoint, its indexes included, and checks its invariants.
    pub fn load<'a>(rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<State, LoadError> {
        let mut state = State::new();
        for (row, value) in rows {
            let (table, key) = row.split_first().map_or((0, row), |(table, key)| (*table, key));
            // The row of the whole comes first: what another version added is not read before its level is known.
            if state.feature_level() > NEWEST_FEATURE_LEVEL {
                return Err(LoadError::FeatureLevel { level: state.feature_level() });
            }
            state.load_row(table, key, value).ok_or_else(|| LoadError::Row {
                table,
                key: key.iter().map(|byte| format!("{byte:02x}")).collect(),
            })?;
        }
        for group in state.groups.keys().copied().collect::<Vec<_>>() {
            state.index_group(group, true);
        }
        for task in state.live.keys().copied().collect::<Vec<_>>() {
            state.index_live(task, true);
        }
        for key in state.keys.keys().cloned().collect::<Vec<_>>() {
            state.index_key(&key, true);
        }
        for worker in state.workers.keys().copied().collect::<Vec<_>>() {
            state.index_worker(worker, true);
        }
        for worker in state.breakers.keys().copied().collect::<Vec<_>>() {
            state.index_breakers(worker, true);
        }
        state.check().map_err(LoadError::Invariant)?;
        Ok(state)
    }

    fn load_row(&mut self, table: u8, key: &[u8], value: &[u8]) -> Option<()> {
        fn decode<V: DeserializeOwned>(value: &[u8]) -> Option<V> {
            match postcard::take_from_bytes(value) {
                Ok((value, [])) => Some(value),
                _ => None,
            }
        }
        fn insert<K: RowKey + Numbered, V: DeserializeOwned>(
            rows: &mut Table<K, V>,
            key: &[u8],
            value: &[u8],
        ) -> Option<()> {
            rows.load(K::read(key)?, decode(value)?);
            Some(())
        }
        match table {
            TABLE_META => self.meta = decode(value)?,
            TABLE_TENANT => insert(&mut self.tenants, key, value)?,
            TABLE_WORKER => insert(&mut self.workers, key, value)?,
            TABLE_JOB => insert(&mut self.jobs, key, value)?,
            TABLE_GROUP => insert(&mut self.groups, key, value)?,
            TABLE_SPEC => insert(&mut self.specs, key, value)?,
            TABLE_LIVE => insert(&mut self.live, key, value)?,
            TABLE_KEY => drop(self.keys.insert(KeyId::read(key)?, decode(value)?)),
            TABLE_FLOW => insert(&mut self.flows, key, value)?,
            TABLE_PROGRESS => insert(&mut self.progress, key, value)?,
            TABLE_IDENTITY => drop(self.identity.set(IdentityKey::read(key)?, Some(decode(value)?))),
            TABLE_QUOTA => insert(&mut self.quotas, key, value)?,
            TABLE_BREAKER => insert(&mut self.breakers, key, value)?,
            TABLE_POSITION => (self.applied_index, self.applied_term, self.hash) = decode(value)?,
            _ => return None,
        }
        Some(())
    }
}

/// Equality of what is replicated; which rows await a checkpoint is a replica's own affair.
impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.applied_index == other.applied_index
            && self.applied_term == other.applied_term
            && self.hash == other.hash
            && self.meta == other.meta
            && self.tenants == other.tenants
            && self.quotas == other.quotas
            && self.identity == other.identity
            && self.workers == other.workers
            && self.jobs == other.jobs
            && self.groups == other.groups
            && self.specs == other.specs
            && self.live == other.live
            && self.keys == other.keys
            && self.flows == other.flows
            && self.progress == other.progress
            && self.breakers == other.breakers
            && self.ready == other.ready
            && self.deadlines == other.deadlines
            && self.seats == other.seats
            && self.totals == other.totals
    }
}
