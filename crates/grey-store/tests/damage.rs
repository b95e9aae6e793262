//! Damage: a flipped bit anywhere is either without effect or an error that names the file; never other content, never a
//! panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use grey_proof::Digest;
use grey_replica::{Checkpoint, HardState, LogEntry, LogEntryKind, LogReader, Membership, PersistBatch};
use grey_store::{DirectoryLock, Journal, RecordKey, RecordKind, Storage, StorageOptions, StoreError};
use support::{Choices, ForgetfulDisk};

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 4_000 };

/// Everything that a reader can get out of a disk.
#[derive(Debug, PartialEq)]
struct Content {
    log: Vec<(u64, u64, Vec<u8>)>,
    hard_state: HardState,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    membership: Membership,
    history: Vec<(RecordKey, Vec<u8>)>,
    tree: Vec<Digest>,
    outbox: BTreeMap<u64, Vec<u8>>,
}

fn prepared() -> ForgetfulDisk {
    let disk = ForgetfulDisk::default();
    let mut choices = Choices::new(11);
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    for index in 1..=30u64 {
        let data = Bytes::from(choices.bytes(100));
        let entries = vec![LogEntry { term: 1, index, kind: LogEntryKind::Normal, data }];
        let hard_state = Some(HardState { term: 1, vote: 1, commit: index });
        storage
            .log
            .append(&[PersistBatch { number: index, hard_state, entries, ..PersistBatch::default() }])
            .unwrap();
        let key = RecordKey { kind: RecordKind(1), key: index, subkey: 2 };
        let value = choices.bytes(300);
        storage.side.history.append([(key, value.as_slice())]).unwrap();
        storage.side.tree.append(&[Digest::of(&index.to_le_bytes())]).unwrap();
    }
    let rows = (0..20u64).map(|row| (row.to_be_bytes().to_vec(), Some(choices.bytes(150)))).collect();
    let membership = Membership { voters: vec![1], ..Membership::default() };
    let checkpoint = Checkpoint { index: 20, term: 1, membership, rows, truncate_through: 10 };
    storage.side.write_checkpoint(&checkpoint).unwrap();
    storage.log.truncate_through(10).unwrap();
    drop(storage);
    let mut journal = Journal::open(Arc::new(disk.clone())).unwrap();
    for key in 0..10 {
        journal.change(vec![(key, Some(choices.bytes(200)))]).unwrap();
    }
    disk
}

fn read(disk: &ForgetfulDisk) -> Result<Content, String> {
    let named = |error: StoreError| error.to_string();
    let (storage, recovered) = Storage::open(Arc::new(disk.clone()), &OPTIONS).map_err(named)?;
    let reader = storage.log.reader();
    let (mut log, mut next) = (Vec::new(), recovered.truncated.0 + 1);
    while next <= recovered.last_index {
        let entries = reader.entries(next, recovered.last_index + 1, u64::MAX);
        for entry in entries.map_err(|error| error.to_string())? {
            log.push((entry.index, entry.term, entry.data.to_vec()));
            next = entry.index + 1;
        }
    }
    let from = RecordKey { kind: RecordKind(0), key: 0, subkey: 0 };
    let to = RecordKey { kind: RecordKind(255), key: 0, subkey: 0 };
    let history = storage.side.history.reader().scan(from, to, usize::MAX, false).map_err(named)?;
    let tree = (0..storage.side.tree.hashes()).map(|index| storage.side.tree.read(index));
    let tree = tree.collect::<Result<Vec<_>, _>>().map_err(named)?;
    let journal = Journal::open(Arc::new(disk.clone())).map_err(named)?;
    Ok(Content {
        log,
        hard_state: recovered.hard_state,
        rows: recovered.rows,
        membership: recovered.membership,
        history,
        tree,
        outbox: journal.entries().clone(),
    })
}

#[test]
fn a_flipped_bit_is_named_or_without_effect() {
    let disk = prepared();
    let whole = read(&disk.copy()).unwrap();
    assert_eq!(whole.history.len(), 30);
    // Damage in the outbox's last change looks like a change that the power cut, which was never acknowledged.
    let mut without_last = read(&disk.copy()).unwrap();
    without_last.outbox.pop_last();
    let mut choices = Choices::new(3);
    for (name, length) in disk.lengths() {
        // The tree's hashes check one another: a path that does not lead to the log's root is refused by whoever asks.
        if name == "tree.hashes" {
            continue;
        }
        let used = disk.content(&name).iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let samples = if length > 20_000 { 200 } else { 300 };
        for sample in 0..samples {
            let position =
                if used <= samples { sample % used.max(1) } else { choices.below(used as u64) as usize };
            let damaged = disk.with_flipped_bit(&name, position, 1 << choices.below(8));
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&damaged)));
            let Ok(outcome) = outcome else { panic!("{name}: byte {position} makes it panic") };
            match outcome {
                Ok(found) if name == "outbox.journal" && found == without_last => {}
                Ok(found) => assert_eq!(found, whole, "{name}: byte {position} was passed over"),
                Err(message) => assert!(message.contains(&name), "{name}: byte {position}: {message}"),
            }
        }
    }
}

#[test]
fn what_a_task_puts_out_is_never_taken_for_a_change() {
    // Given a result whose output is a whole change in all that can be known of it: its length, checksum and body.
    let body = [1, 7, 1, 2, b'h', b'i'];
    let length = (body.len() as u32).to_le_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), &body).to_le_bytes();
    let output = [length.as_slice(), &checksum, &body].concat().repeat(20);
    let disk = ForgetfulDisk::default();
    let mut journal = Journal::open(Arc::new(disk.clone())).unwrap();
    journal.change(vec![(1, Some(b"first".to_vec()))]).unwrap();
    let before = disk.content("outbox.journal").iter().rposition(|byte| *byte != 0).unwrap() + 1;
    journal.change(vec![(2, Some(output))]).unwrap();
    drop(journal);
    // When the power cuts the change that has it, so that its beginning is not on the disk.
    let medium = grey_store::Disk::open(&disk, "outbox.journal").unwrap();
    medium.write_at(before as u64, &[0; 24]).unwrap();
    // Then it is a change that was cut, and not damage before another one.
    let journal = Journal::open(Arc::new(disk)).unwrap();
    assert_eq!(journal.entries(), &BTreeMap::from([(1, b"first".to_vec())]));
}

#[test]
fn a_missing_or_cut_file_is_named() {
    let disk = prepared();
    for (name, length) in disk.lengths() {
        if length == 0 || name == "outbox.journal" {
            continue;
        }
        // An emptied file is like one that was never written: only the others know better.
        for left in [length / 2, 0] {
            let cut = disk.copy();
            grey_store::Disk::open(&cut, &name).unwrap().set_len(left as u64).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&cut)));
            let Ok(outcome) = outcome else { panic!("{name} cut to {left} bytes makes it panic") };
            match outcome {
                Ok(found) => assert_eq!(found, read(&disk.copy()).unwrap(), "{name}: a loss was passed over"),
                Err(message) => assert!(message.contains(&name), "{name}: {message}"),
            }
        }
    }
}

#[test]
fn a_directory_belongs_to_one_process_at_a_time_and_the_other_is_told_which() {
    let directory = tempfile::tempdir().unwrap();
    let held = DirectoryLock::take(directory.path()).unwrap();
    let refused = DirectoryLock::take(directory.path()).unwrap_err().to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    drop(held);
    DirectoryLock::take(directory.path()).unwrap();
}
