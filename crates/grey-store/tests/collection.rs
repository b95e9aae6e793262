//! Collection: whole segments go, for good and only those; everything else stays as it was, over power cuts too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use grey_proof::Digest;
use grey_replica::{Checkpoint, LogEntry, LogEntryKind, Membership, PersistBatch};
use grey_store::{Horizons, RecordKey, RecordKind, Storage, StorageOptions, StoreError};
use support::{Choices, Fault, ForgetfulDisk};

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 2_000 };

fn key(number: u64) -> RecordKey {
    RecordKey { kind: RecordKind(1), key: number, subkey: 0 }
}

fn open(disk: &ForgetfulDisk) -> Storage {
    Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap().0
}

fn append(storage: &mut Storage, numbers: std::ops::Range<u64>, choices: &mut Choices) {
    for number in numbers {
        let value = choices.bytes(400);
        storage.side.history.append([(key(number), value.as_slice())]).unwrap();
        storage.side.tree.append(&[Digest::of(&number.to_le_bytes())]).unwrap();
    }
}

/// A checkpoint at an index, which the log reaches first.
fn checkpoint(storage: &mut Storage, index: u64) -> Result<(), StoreError> {
    let entry = LogEntry { term: 1, index, kind: LogEntryKind::Normal, data: Bytes::new() };
    let batch = PersistBatch { number: index, entries: vec![entry], ..PersistBatch::default() };
    storage.log.append(&[batch])?;
    let membership = Membership { voters: vec![1], ..Membership::default() };
    storage.side.write_checkpoint(&Checkpoint {
        index,
        term: 1,
        membership,
        rows: Vec::new(),
        truncate_through: 0,
    })
}

/// Every record, by its number, and in which segment a collector finds it.
fn records(storage: &Storage) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let collector = storage.side.history.collector();
    let mut found = BTreeMap::new();
    for segment in collector.segments() {
        let mut from = Some(0);
        while let Some(place) = from {
            let batch = collector.records(segment.number, place, 700).unwrap();
            from = batch.next;
            found.extend(batch.records.into_iter().map(|(key, value)| (key.key, (segment.number, value))));
        }
    }
    for (number, (_, value)) in &found {
        assert_eq!(collector.reader().get(key(*number)).unwrap().as_ref(), Some(value), "record {number}");
    }
    found
}

#[test]
fn what_is_removed_is_gone_for_good_and_what_is_not_is_as_it_was() {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(1);
    let mut storage = open(&disk);
    append(&mut storage, 1..60, &mut choices);
    checkpoint(&mut storage, 1).unwrap();
    let before = records(&storage);
    let collector = storage.side.history.collector();
    let segments = collector.segments();
    assert!(segments.len() > 6, "{segments:?}");
    // When: some go, from the middle too.
    for number in [0, 1, 3] {
        collector.put_note(number, b"noted").unwrap();
        assert!(collector.remove(number).unwrap());
        assert!(!collector.remove(number).unwrap(), "it is gone already");
    }
    let kept: BTreeMap<_, _> =
        before.iter().filter(|(_, (segment, _))| ![0, 1, 3].contains(segment)).collect();
    // Then: exactly their records are missing, now and after a restart, and the tree has every hash.
    for round in 0..3 {
        let found = records(&storage);
        assert_eq!(found.iter().collect::<BTreeMap<_, _>>(), kept, "round {round}");
        assert_eq!(storage.side.tree.hashes(), 59);
        for (number, (segment, _)) in &before {
            let read = storage.side.history.reader().get(key(*number)).unwrap();
            assert_eq!(read.is_some(), ![0, 1, 3].contains(segment), "record {number}");
        }
        drop(storage);
        storage = open(&disk);
    }
    let names: Vec<String> = disk.lengths().into_iter().map(|(name, _)| name).collect();
    for gone in ["history-00000000.seg", "history-00000003.seg", "history-00000000.note"] {
        assert!(!names.iter().any(|name| name == gone), "{gone} is still there");
    }
}

#[test]
fn a_segment_that_may_come_again_from_the_log_is_not_removed() {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(2);
    let mut storage = open(&disk);
    append(&mut storage, 1..30, &mut choices);
    let collector = storage.side.history.collector();
    let sealed: Vec<_> = collector.segments().into_iter().filter(|segment| segment.sealed).collect();
    assert!(sealed.len() > 3);
    for segment in &sealed {
        assert!(!segment.settled && !collector.remove(segment.number).unwrap());
    }
    checkpoint(&mut storage, 1).unwrap();
    let open_segment = collector.segments().last().unwrap().number;
    assert!(!collector.remove(open_segment).unwrap(), "the open one stays");
    assert!(collector.remove(0).unwrap());
}

#[test]
fn a_segment_is_sealed_early_once_and_only_when_it_has_records() {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(3);
    let mut storage = open(&disk);
    let numbers = |storage: &Storage| storage.side.history.collector().segments().len();
    storage.side.history.seal_early(0).unwrap();
    assert_eq!(numbers(&storage), 1, "an empty one stays open");
    append(&mut storage, 1..3, &mut choices);
    storage.side.history.seal_early(0).unwrap();
    storage.side.history.seal_early(0).unwrap();
    assert_eq!(numbers(&storage), 2);
    append(&mut storage, 3..5, &mut choices);
    checkpoint(&mut storage, 1).unwrap();
    let before = records(&storage);
    drop(storage);
    assert_eq!(records(&open(&disk)), before);
}

#[test]
fn horizons_only_grow_and_are_there_after_a_restart() {
    let disk = ForgetfulDisk::default();
    let storage = open(&disk);
    let collector = storage.side.history.collector();
    collector.move_horizons(Horizons { logs_ms: 5, results_ms: 7, history_ms: 0 }).unwrap();
    collector.move_horizons(Horizons { logs_ms: 3, results_ms: 9, history_ms: 1 }).unwrap();
    let expected = Horizons { logs_ms: 5, results_ms: 9, history_ms: 1 };
    assert_eq!(storage.side.history.reader().horizons(), expected);
    let mut choices = Choices::new(1);
    assert_eq!(open(&disk.after_power_cut(&mut choices)).side.history.reader().horizons(), expected);
}

#[test]
fn a_segment_that_is_missing_and_was_not_removed_is_damage() {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(4);
    let mut storage = open(&disk);
    append(&mut storage, 1..30, &mut choices);
    checkpoint(&mut storage, 1).unwrap();
    storage.side.history.collector().remove(0).unwrap();
    drop(storage);
    for (lost, named) in
        [("history-00000001.seg", "history-00000001.seg"), ("history.gone", "history-00000000.seg")]
    {
        let copy = disk.copy();
        grey_store::Disk::remove(&copy, lost).unwrap();
        let error = Storage::open(Arc::new(copy), &OPTIONS).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("missing"), "{lost}: {error}");
    }
    let damaged = disk.with_flipped_bit("history.gone", 9, 4);
    let error = Storage::open(Arc::new(damaged), &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("history.gone"), "{error}");
}

#[test]
fn a_damaged_note_is_none() {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(5);
    let mut storage = open(&disk);
    append(&mut storage, 1..9, &mut choices);
    let collector = storage.side.history.collector();
    collector.put_note(0, b"too early").unwrap();
    assert_eq!(collector.note(0), None, "it may come again from the log with other records");
    checkpoint(&mut storage, 1).unwrap();
    collector.put_note(0, b"a longer one").unwrap();
    collector.put_note(0, b"a note").unwrap();
    assert_eq!(collector.note(0).as_deref(), Some(b"a note".as_slice()));
    let length = disk.content("history-00000000.note").len();
    for position in 0..length {
        let damaged = disk.with_flipped_bit("history-00000000.note", position, 1);
        assert_eq!(open(&damaged).side.history.collector().note(0), None, "byte {position}");
    }
}

#[test]
fn a_power_cut_while_segments_are_removed_loses_nothing_else() {
    for seed in 0..60 {
        let mut choices = Choices::new(seed);
        let disk = ForgetfulDisk::default();
        let mut storage = open(&disk);
        append(&mut storage, 1..40, &mut choices);
        checkpoint(&mut storage, 1).unwrap();
        let before = records(&storage);
        let collector = storage.side.history.collector();
        let settled: Vec<u32> =
            collector.segments().iter().filter(|segment| segment.settled).map(|found| found.number).collect();
        // When: some are removed, and the power goes at any step of it.
        disk.set_fault(Some(Fault::PowerOff(choices.below(30))));
        let (mut removed, mut tried) = (BTreeSet::new(), BTreeSet::new());
        for number in settled.iter().filter(|number| *number % 2 == seed as u32 % 2) {
            tried.insert(*number);
            match collector.remove(*number) {
                Ok(true) => drop(removed.insert(*number)),
                _ => break,
            }
        }
        disk.set_fault(Some(Fault::PowerOff(0)));
        let survivor = disk.after_power_cut(&mut choices);
        drop(storage);
        // Then: what was removed is gone, what was not even tried is whole, and the one between is one of both.
        let found = records(&open(&survivor));
        let segments: BTreeSet<u32> = found.values().map(|(segment, _)| *segment).collect();
        assert!(segments.is_disjoint(&removed), "seed {seed}");
        for (number, (segment, value)) in &before {
            match found.get(number) {
                Some((_, there)) => assert_eq!(there, value, "seed {seed}"),
                None => assert!(tried.contains(segment), "seed {seed}: record {number} is lost"),
            }
        }
        // And: a new life goes on with it.
        let mut again = open(&survivor);
        append(&mut again, 100..110, &mut choices);
        checkpoint(&mut again, 2).unwrap();
        drop(again);
        assert_eq!(records(&open(&survivor)).len(), found.len() + 10, "seed {seed}");
    }
}
