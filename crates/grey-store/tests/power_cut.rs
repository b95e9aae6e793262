//! Power cuts and full disks: what was acknowledged is there afterwards, exactly; what was not is there as a whole or
//! not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use grey_proof::Digest;
use grey_replica::{
    Checkpoint, HardState, LogEntry, LogEntryKind, LogReader, Membership, PersistBatch, Recovered,
};
use grey_store::{
    HistoryReader, Journal, RecordKey, RecordKind, Storage, StorageOptions, StoreError, TreeFile,
};
use support::{Choices, Fault, ForgetfulDisk};

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 6_000 };

/// What must be found again.
#[derive(Debug, Clone, PartialEq, Default)]
struct Model {
    log: BTreeMap<u64, (u64, Vec<u8>)>,
    hard_state: (u64, u64, u64),
    truncated: (u64, u64),
    checkpoint: (u64, u64),
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    history: BTreeMap<RecordKey, Vec<u8>>,
    tree: Vec<Digest>,
}

/// One node's storage together with what it should hold.
struct Bench {
    storage: Storage,
    /// As acknowledged.
    model: Model,
    /// History and tree run ahead of the last checkpoint.
    history: BTreeMap<RecordKey, Vec<u8>>,
    tree: Vec<Digest>,
    next_record: u64,
}

fn last(model: &Model) -> u64 {
    model.log.keys().next_back().copied().unwrap_or(model.truncated.0)
}

impl Bench {
    fn open(disk: &ForgetfulDisk) -> (Bench, Recovered) {
        let (storage, recovered) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
        let model = Model::default();
        (Bench { storage, model, history: BTreeMap::new(), tree: Vec::new(), next_record: 0 }, recovered)
    }

    /// What the model becomes if the operation is carried out, and the operation's outcome.
    fn append(&mut self, choices: &mut Choices) -> (Model, Result<(), StoreError>) {
        let (after, batches) = self.batches(choices);
        let outcome = self.storage.log.append(&batches);
        (after, outcome)
    }

    /// Both in one write.
    fn append_and_truncate(&mut self, choices: &mut Choices) -> (Model, Result<(), StoreError>) {
        let (mut after, batches) = self.batches(choices);
        let (index, term) = after.checkpoint;
        after.log = after.log.split_off(&(index + 1));
        after.truncated = (index, term);
        let outcome = self.storage.log.write(&batches, Some(index));
        (after, outcome)
    }

    fn batches(&self, choices: &mut Choices) -> (Model, Vec<PersistBatch>) {
        let mut after = self.model.clone();
        let mut batches = Vec::new();
        for number in 1..=1 + choices.below(3) {
            let mut batch = PersistBatch { number, ..PersistBatch::default() };
            let end = last(&after);
            // Now and then a new leader replaces what was not committed.
            let first = if choices.below(6) == 0 && end > after.checkpoint.0.max(after.truncated.0) {
                end - choices.below(end - after.checkpoint.0.max(after.truncated.0))
            } else {
                end + 1
            };
            after.log.split_off(&first);
            for index in first..first + 1 + choices.below(4) {
                let term = index / 7 + 1;
                let bound = if choices.below(10) == 0 { 20_000 } else { 400 };
                let length = choices.below(bound) as usize;
                let data = choices.bytes(length);
                after.log.insert(index, (term, data.clone()));
                batch.entries.push(LogEntry {
                    term,
                    index,
                    kind: LogEntryKind::Normal,
                    data: Bytes::from(data),
                });
            }
            if choices.below(3) == 0 {
                let term = after.hard_state.0 + 1;
                after.hard_state = (term, choices.below(5), last(&after));
                batch.hard_state =
                    Some(HardState { term, vote: after.hard_state.1, commit: after.hard_state.2 });
            }
            batches.push(batch);
        }
        (after, batches)
    }

    fn keep(&mut self, choices: &mut Choices) -> (Model, Result<(), StoreError>) {
        let mut records = Vec::new();
        for _ in 0..1 + choices.below(6) {
            self.next_record += 1;
            let key =
                RecordKey { kind: RecordKind(choices.below(3) as u8), key: self.next_record, subkey: 1 };
            let length = choices.below(900) as usize;
            records.push((key, choices.bytes(length)));
        }
        let outcome = self
            .storage
            .side
            .history
            .append(records.iter().map(|(key, value)| (*key, value.as_slice())))
            .and_then(|()| {
                let hashes: Vec<Digest> =
                    (0..choices.below(4)).map(|n| Digest::of(&n.to_le_bytes())).collect();
                self.tree.extend(&hashes);
                self.storage.side.tree.append(&hashes)
            });
        self.history.extend(records);
        (self.model.clone(), outcome)
    }

    fn checkpoint(&mut self, choices: &mut Choices) -> (Model, Result<(), StoreError>) {
        let mut after = self.model.clone();
        let index = last(&after);
        let term = after.log.get(&index).map_or(after.truncated.1, |(term, _)| *term);
        let mut rows = BTreeMap::new();
        for _ in 0..choices.below(20) {
            let key = choices.below(50).to_be_bytes().to_vec();
            let length = choices.below(300) as usize;
            let value = (choices.below(4) > 0).then(|| choices.bytes(length));
            match &value {
                Some(value) => drop(after.rows.insert(key.clone(), value.clone())),
                None => drop(after.rows.remove(&key)),
            }
            rows.insert(key, value);
        }
        after.checkpoint = (index, term);
        after.history = self.history.clone();
        after.tree = self.tree.clone();
        let checkpoint = Checkpoint {
            index,
            term,
            membership: Membership { voters: vec![1, 2, index], ..Membership::default() },
            rows: rows.into_iter().collect(),
            truncate_through: index,
        };
        let outcome = self.storage.side.write_checkpoint(&checkpoint);
        (after, outcome)
    }

    fn truncate(&mut self) -> (Model, Result<(), StoreError>) {
        let mut after = self.model.clone();
        let (index, term) = after.checkpoint;
        after.log = after.log.split_off(&(index + 1));
        after.truncated = (index, term);
        let outcome = self.storage.log.truncate_through(index);
        (after, outcome)
    }

    fn act(&mut self, choices: &mut Choices) -> (Model, Result<(), StoreError>) {
        match choices.below(10) {
            0..=4 => self.append(choices),
            5..=7 => self.keep(choices),
            8 => self.checkpoint(choices),
            _ if self.model.checkpoint.0 > self.model.truncated.0 => match choices.below(2) {
                0 => self.truncate(),
                _ => self.append_and_truncate(choices),
            },
            _ => self.append(choices),
        }
    }
}

/// Everything that a new life finds, in the model's terms.
fn found(storage: &Storage, recovered: &Recovered) -> Model {
    let (truncated, last_index) = (recovered.truncated, recovered.last_index);
    let reader = storage.log.reader();
    let mut log = BTreeMap::new();
    let mut next = truncated.0 + 1;
    while next <= last_index {
        for entry in reader.entries(next, last_index + 1, u64::MAX).unwrap() {
            assert_eq!(entry.index, next);
            log.insert(next, (entry.term, entry.data.to_vec()));
            next += 1;
        }
    }
    let state = recovered.hard_state;
    Model {
        log,
        hard_state: (state.term, state.vote, state.commit),
        truncated,
        checkpoint: (recovered.checkpoint_index, recovered.checkpoint_term),
        rows: recovered.rows.iter().cloned().collect(),
        history: history(&storage.side.history.reader()),
        tree: tree(&storage.side.tree),
    }
}

fn history(reader: &HistoryReader) -> BTreeMap<RecordKey, Vec<u8>> {
    let from = RecordKey { kind: RecordKind(0), key: 0, subkey: 0 };
    let to = RecordKey { kind: RecordKind(255), key: 0, subkey: 0 };
    reader.scan(from, to, usize::MAX, false).unwrap().into_iter().collect()
}

fn tree(file: &TreeFile) -> Vec<Digest> {
    (0..file.hashes()).map(|index| file.read(index).unwrap()).collect()
}

fn power_cut(seed: u64) {
    let mut choices = Choices::new(seed);
    let mut disk = ForgetfulDisk::default();
    let (mut bench, _) = Bench::open(&disk);
    for life in 0..4 {
        // Given: some operations, the last of which the power cut may interrupt anywhere.
        disk.set_fault(Some(Fault::PowerOff(choices.below(120))));
        let mut possible = vec![bench.model.clone()];
        for _ in 0..choices.below(40) {
            let (after, outcome) = bench.act(&mut choices);
            match outcome {
                Ok(()) => {
                    bench.model = after;
                    possible = vec![bench.model.clone()];
                }
                Err(_) => {
                    possible.push(after);
                    break;
                }
            }
        }
        // When: the power is gone and comes back.
        disk.set_fault(Some(Fault::PowerOff(0)));
        let survivor = disk.after_power_cut(&mut choices);
        drop(bench);
        disk = survivor;
        let (reopened, recovered) = Bench::open(&disk);
        // Then: everything acknowledged is there, and what was not is whole or absent.
        let there = found(&reopened.storage, &recovered);
        let matching = possible.iter().find(|model| **model == there);
        let Some(model) = matching else {
            panic!("seed {seed}, life {life}: found\n{there:?}\ninstead of one of\n{possible:?}");
        };
        if there.checkpoint.0 > 0 {
            assert_eq!(recovered.membership.voters, [1, 2, there.checkpoint.0]);
        }
        bench = reopened;
        bench.history = model.history.clone();
        bench.tree = model.tree.clone();
        bench.next_record = 1_000 * (life + 1) + seed;
        bench.model = model.clone();
    }
}

#[test]
fn any_subset_of_unsynced_writes_loses_nothing_that_was_acknowledged() {
    for seed in 0..40 {
        power_cut(seed);
    }
}

#[test]
fn a_full_disk_is_said_and_what_was_acknowledged_stays() {
    for seed in 0..20 {
        let mut choices = Choices::new(seed);
        let disk = ForgetfulDisk::default();
        let (mut bench, _) = Bench::open(&disk);
        for _ in 0..10 {
            let (after, outcome) = bench.act(&mut choices);
            outcome.unwrap();
            bench.model = after;
        }
        disk.set_fault(Some(Fault::Full(choices.below(10))));
        let mut possible = vec![bench.model.clone()];
        for _ in 0..400 {
            let (after, outcome) = bench.act(&mut choices);
            match outcome {
                Ok(()) => {
                    bench.model = after;
                    possible = vec![bench.model.clone()];
                }
                Err(error) => {
                    assert!(matches!(error, StoreError::Full { .. }), "seed {seed}: {error}");
                    possible.push(after);
                    break;
                }
            }
        }
        assert_eq!(possible.len(), 2, "seed {seed}: the disk never became full");
        let survivor = disk.after_power_cut(&mut choices);
        disk.set_fault(Some(Fault::PowerOff(0)));
        drop(bench);
        let (reopened, recovered) = Bench::open(&survivor);
        let there = found(&reopened.storage, &recovered);
        assert!(possible.contains(&there), "seed {seed}");
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_taken() {
    let disk = ForgetfulDisk::default();
    let (mut bench, _) = Bench::open(&disk);
    let entry = LogEntry { term: 1, index: 1, kind: LogEntryKind::Normal, data: Bytes::from_static(b"x") };
    let batch = PersistBatch { number: 1, entries: vec![entry], ..PersistBatch::default() };
    disk.set_fault(Some(Fault::PowerOff(0)));
    assert!(bench.storage.log.append(std::slice::from_ref(&batch)).is_err());
    disk.set_fault(None);
    assert!(matches!(bench.storage.log.append(&[batch]), Err(StoreError::Failed { .. })));
}

#[test]
fn the_outbox_keeps_every_acknowledged_change_over_power_cuts() {
    for seed in 0..60 {
        let mut choices = Choices::new(seed);
        let mut disk = ForgetfulDisk::default();
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for life in 0..4 {
            let mut journal = Journal::open(Arc::new(disk.clone())).unwrap();
            assert_eq!(journal.entries(), &model, "seed {seed}, life {life}");
            disk.set_fault(Some(Fault::PowerOff(choices.below(60))));
            let mut possible = vec![model.clone()];
            for _ in 0..choices.below(40) {
                let mut after = model.clone();
                let mut change = Vec::new();
                for _ in 0..1 + choices.below(4) {
                    let key = choices.below(12);
                    let length = choices.below(3_000) as usize;
                    let value = (choices.below(3) > 0).then(|| choices.bytes(length));
                    match &value {
                        Some(value) => drop(after.insert(key, value.clone())),
                        None => drop(after.remove(&key)),
                    }
                    change.push((key, value));
                }
                if journal.change(change).is_err() {
                    possible.push(after);
                    break;
                }
                model = after;
                possible = vec![model.clone()];
            }
            let survivor = disk.after_power_cut(&mut choices);
            disk = survivor;
            let journal = Journal::open(Arc::new(disk.clone())).unwrap();
            assert!(possible.contains(journal.entries()), "seed {seed}, life {life}");
            model = journal.entries().clone();
        }
    }
}

#[test]
fn an_outbox_that_is_rewritten_stays_small_and_whole() {
    let disk = ForgetfulDisk::default();
    let mut journal = Journal::open(Arc::new(disk.clone())).unwrap();
    let mut choices = Choices::new(5);
    for round in 0..40u64 {
        journal.change(vec![(round % 3, Some(choices.bytes(400_000)))]).unwrap();
    }
    let expected = journal.entries().clone();
    drop(journal);
    let length: usize = disk.lengths().iter().map(|(_, length)| length).sum();
    assert!(length < 8 * 1024 * 1024, "{length} bytes for three entries");
    let mut choices = Choices::new(6);
    let journal = Journal::open(Arc::new(disk.after_power_cut(&mut choices))).unwrap();
    assert_eq!(journal.entries(), &expected);
}
