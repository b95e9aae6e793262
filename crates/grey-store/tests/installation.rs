//! Taking over the state of another server: whole or not at all, whenever the power is cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use grey_proof::Digest;
use grey_replica::{
    Checkpoint, HardState, Installation, LogEntry, LogEntryKind, Membership, PersistBatch, Recovered,
};
use grey_store::{
    Filling, RecordKey, RecordKind, SnapshotFacts, SnapshotPart, SnapshotReader, SnapshotWriter, Storage,
    StorageOptions, StoreError,
};
use support::{Choices, Fault, ForgetfulDisk};

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 4_000 };

fn rows(seed: u64, count: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut choices = Choices::new(seed);
    (0..count).map(|row| (row.to_be_bytes().to_vec(), choices.bytes(100))).collect()
}

fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry { term, index, kind: LogEntryKind::Normal, data: Bytes::from(vec![7; 50]) }
}

fn hard_state(term: u64, commit: u64) -> Option<HardState> {
    Some(HardState { term, vote: 2, commit })
}

/// A server with a checkpoint at 5, entries up to 12 of term 1, and ten hashes.
fn lagging() -> ForgetfulDisk {
    let disk = ForgetfulDisk::default();
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    let entries = (1..=12).map(|index| entry(1, index)).collect();
    let batch = PersistBatch { number: 1, hard_state: hard_state(1, 5), entries, ..PersistBatch::default() };
    storage.log.append(&[batch]).unwrap();
    for number in 0..10u64 {
        storage.side.tree.append(&[Digest::of(&number.to_le_bytes())]).unwrap();
        let key = RecordKey { kind: RecordKind(1), key: number, subkey: 0 };
        storage.side.history.append([(key, b"record".as_slice())]).unwrap();
    }
    let changed = rows(1, 30).into_iter().map(|(key, value)| (key, Some(value))).collect();
    let membership = Membership { voters: vec![1, 2, 3], ..Membership::default() };
    let checkpoint = Checkpoint { index: 5, term: 1, membership, rows: changed, truncate_through: 5 };
    storage.side.write_checkpoint(&checkpoint).unwrap();
    storage.log.truncate_through(5).unwrap();
    disk
}

fn installation() -> Installation {
    Installation {
        index: 100,
        term: 4,
        membership: Membership { voters: vec![1, 2, 3, 4], ..Membership::default() },
        rows: rows(2, 12),
        tree_hashes: 40,
    }
}

fn install(storage: &mut Storage) -> Result<(), StoreError> {
    let installation = installation();
    storage.side.install(&installation)?;
    let batch = PersistBatch {
        number: 1,
        installation: Some(Box::new(installation)),
        hard_state: hard_state(4, 100),
        ..PersistBatch::default()
    };
    storage.log.append(&[batch])
}

fn is_installed(recovered: &Recovered) -> bool {
    let installation = installation();
    if recovered.checkpoint_index != 100 {
        return false;
    }
    assert_eq!(recovered.rows, installation.rows, "all of the new rows and none of the old");
    assert_eq!((recovered.checkpoint_term, &recovered.membership), (4, &installation.membership));
    assert_eq!((recovered.truncated, recovered.last_index), ((100, 4), 100), "the log begins after it");
    assert!(recovered.hard_state.commit >= 100);
    true
}

#[test]
fn what_was_installed_is_there_and_the_log_goes_on_behind_it() {
    let disk = lagging();
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    install(&mut storage).unwrap();
    let batch = PersistBatch {
        number: 2,
        hard_state: hard_state(4, 101),
        entries: vec![entry(4, 101), entry(4, 102)],
        ..PersistBatch::default()
    };
    storage.log.append(&[batch]).unwrap();
    storage.side.tree.append(&[Digest::of(b"after")]).unwrap();
    drop(storage);

    let (mut storage, recovered) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    assert_eq!((recovered.checkpoint_index, recovered.truncated, recovered.last_index), (100, (100, 4), 102));
    // Then: hashes of before are here, those of between are named as absent, and those of after follow.
    let tree = &storage.side.tree;
    assert_eq!(tree.read(9).unwrap(), Digest::of(&9u64.to_le_bytes()));
    assert!(matches!(tree.read(10), Err(StoreError::Absent { .. })));
    assert!(matches!(tree.read(39), Err(StoreError::Absent { .. })));
    tree.append(&[Digest::of(b"after")]).unwrap();
    assert_eq!(tree.read(40).unwrap(), Digest::of(b"after"));
    let key = RecordKey { kind: RecordKind(1), key: 3, subkey: 0 };
    assert_eq!(storage.side.history.reader().get(key).unwrap().as_deref(), Some(b"record".as_slice()));

    // And: the next checkpoint keeps the gap.
    let checkpoint = Checkpoint {
        index: 101,
        term: 4,
        membership: Membership::default(),
        rows: vec![],
        truncate_through: 101,
    };
    storage.side.write_checkpoint(&checkpoint).unwrap();
    storage.log.truncate_through(101).unwrap();
    drop(storage);
    let (storage, recovered) = Storage::open(Arc::new(disk), &OPTIONS).unwrap();
    assert_eq!((recovered.truncated, recovered.last_index), ((101, 4), 102));
    assert!(matches!(storage.side.tree.read(20), Err(StoreError::Absent { .. })));
    assert_eq!(storage.side.tree.read(40).unwrap(), Digest::of(b"after"));
}

#[test]
fn a_power_cut_leaves_the_old_state_or_the_new_one_as_a_whole() {
    let whole = {
        let disk = lagging();
        let before = disk.changes();
        let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
        install(&mut storage).unwrap();
        disk.changes() - before
    };
    let (mut old, mut new) = (0, 0);
    for cut in 0..=whole {
        for seed in 0..4 {
            let disk = lagging();
            disk.set_fault(Some(Fault::PowerOff(cut)));
            if let Ok((mut storage, _)) = Storage::open(Arc::new(disk.clone()), &OPTIONS) {
                let acknowledged = install(&mut storage).is_ok();
                let disk = disk.after_power_cut(&mut Choices::new(seed));
                let (_, recovered) = Storage::open(Arc::new(disk), &OPTIONS).unwrap();
                if is_installed(&recovered) {
                    new += 1;
                } else {
                    assert!(!acknowledged, "what was acknowledged is there");
                    assert_eq!((recovered.checkpoint_index, recovered.last_index), (5, 12));
                    assert_eq!(recovered.rows, rows(1, 30));
                    old += 1;
                }
            }
        }
    }
    assert!(old > 10 && new > 10, "cuts fell on both sides: {old} and {new}");
}

/// A checkpoint of before a whole state may have its log dropped only after the whole state came: both wait for the same thread.
#[test]
fn dropping_what_lies_before_a_whole_state_drops_nothing_behind_it() {
    let disk = lagging();
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    install(&mut storage).unwrap();
    let entries = vec![entry(4, 101)];
    storage.log.append(&[PersistBatch { number: 2, entries, ..PersistBatch::default() }]).unwrap();
    storage.log.truncate_through(8).unwrap();
    drop(storage);
    let (_, recovered) = Storage::open(Arc::new(disk), &OPTIONS).unwrap();
    assert_eq!((recovered.truncated, recovered.last_index), ((100, 4), 101));
}

/// Everything that a server has that never lagged, as a snapshot of it.
fn whole() -> Vec<SnapshotPart> {
    let disk = ForgetfulDisk::default();
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    for number in 0..40u64 {
        storage.side.tree.append(&[Digest::of(&number.to_le_bytes())]).unwrap();
        let key = RecordKey { kind: RecordKind(1), key: number, subkey: 0 };
        storage.side.history.append([(key, b"record".as_slice())]).unwrap();
    }
    let Installation { index, term, membership, rows, .. } = installation();
    let rows = rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
    let checkpoint = Checkpoint { index, term, membership, rows, truncate_through: 0 };
    storage
        .log
        .append(&[PersistBatch {
            number: 1,
            entries: (1..=100).map(|index| entry(4, index)).collect(),
            ..PersistBatch::default()
        }])
        .unwrap();
    storage.side.write_checkpoint(&checkpoint).unwrap();
    let frozen = storage.side.freeze().unwrap().unwrap();
    let mut writer = SnapshotWriter::begin(Vec::new(), b"").unwrap();
    writer.frozen(&frozen, |_, _| Ok(())).unwrap();
    let bytes = writer.end().unwrap();
    let mut reader = SnapshotReader::begin(bytes.as_slice()).unwrap();
    let mut parts = Vec::new();
    while let Some(part) = reader.next_part().unwrap() {
        parts.push(part);
    }
    parts
}

/// The same, saying something else of itself.
fn said(parts: &[SnapshotPart], change: impl Fn(&mut SnapshotFacts)) -> Vec<SnapshotPart> {
    let mut parts = parts.to_vec();
    for part in &mut parts {
        if let SnapshotPart::Facts(facts) = part {
            change(facts);
        }
    }
    parts
}

/// Takes in what is lacking; says whether nothing is lacking any more.
fn fill(storage: &mut Storage, parts: &[SnapshotPart]) -> bool {
    let facts = parts.iter().find_map(|part| match part {
        SnapshotPart::Facts(facts) => Some(facts.clone()),
        _ => None,
    });
    let mut filling = Filling::begin(facts.unwrap());
    for part in parts {
        storage.side.fill(&mut filling, core::slice::from_ref(part)).unwrap();
    }
    storage.side.filled(&filling)
}

fn lacks(storage: &Storage) -> usize {
    let reader = storage.side.history.reader();
    let key = |number| RecordKey { kind: RecordKind(1), key: number, subkey: 0 };
    let records = (0..40).filter(|number| reader.get(key(*number)).unwrap().is_none()).count();
    let hashes = (0..40u64).filter(|number| match storage.side.tree.read(*number) {
        Ok(hash) => {
            assert_eq!(hash, Digest::of(&number.to_le_bytes()));
            false
        }
        Err(StoreError::Absent { .. }) => true,
        Err(error) => panic!("{error}"),
    });
    records + hashes.count()
}

#[test]
fn what_a_whole_state_left_out_comes_from_another_server_and_counts_from_the_next_checkpoint_on() {
    // Given: a server that was sent a whole state, and what another one has.
    let (disk, parts) = (lagging(), whole());
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    assert_eq!(storage.side.gap(), 0);
    install(&mut storage).unwrap();
    assert_eq!((storage.side.gap(), lacks(&storage)), (100, 60));
    // When: it is filled, then nothing is lacking, and nothing is there twice.
    assert!(fill(&mut storage, &parts));
    assert_eq!((storage.side.gap(), lacks(&storage)), (0, 0));
    let size = storage.side.history.reader().size();
    assert!(fill(&mut storage, &parts), "once more is no harm");
    assert_eq!(storage.side.history.reader().size(), size);
    // When: it is started anew before a checkpoint. Then: the gap is open again, and can be filled again.
    drop(storage);
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS).unwrap();
    assert_eq!((storage.side.gap(), lacks(&storage)), (100, 60));
    assert!(fill(&mut storage, &parts));
    let (term, membership) = (4, Membership::default());
    let checkpoint = Checkpoint { index: 100, term, membership, rows: vec![], truncate_through: 100 };
    storage.side.write_checkpoint(&checkpoint).unwrap();
    drop(storage);
    let (storage, _) = Storage::open(Arc::new(disk), &OPTIONS).unwrap();
    assert_eq!((storage.side.gap(), lacks(&storage)), (0, 0));
}

#[test]
fn a_gap_stays_open_while_something_is_lacking() {
    let (disk, parts) = (lagging(), whole());
    let (mut storage, _) = Storage::open(Arc::new(disk), &OPTIONS).unwrap();
    install(&mut storage).unwrap();
    // A snapshot that broke off.
    let half = &parts[..parts.len() - 1];
    assert!(!fill(&mut storage, half));
    assert_eq!(storage.side.gap(), 100);
    // A snapshot of before what was taken over last.
    let early = said(&parts, |facts| facts.index = 99);
    assert!(!fill(&mut storage, &early));
    // A snapshot of a server that lacks something itself.
    let lacking = said(&parts, |facts| facts.tree_absent = vec![(10, 12)]);
    assert!(!fill(&mut storage, &lacking));
    assert!(fill(&mut storage, &parts));
}
