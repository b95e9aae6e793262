//! Snapshots: what comes back is what was there, or it is refused; and a cluster that goes on alone does so whenever the power is cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use grey_proof::Digest;
use grey_replica::{
    Checkpoint, HardState, LogEntry, LogEntryKind, LogReader, Membership, PersistBatch, Recovered,
};
use grey_store::{
    Disk, RecordKey, RecordKind, Restoring, SnapshotPart, SnapshotReader, SnapshotWriter, Storage,
    StorageOptions, StoreError,
};
use support::{Choices, ForgetfulDisk};

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 2_000 };
const HEADER: &[u8] = b"whose it is";

fn key(number: u64) -> RecordKey {
    RecordKey { kind: RecordKind(1), key: number, subkey: 0 }
}

fn shared(disk: &ForgetfulDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// A server with a checkpoint at 12 and nothing behind it.
fn server(disk: &ForgetfulDisk) -> Storage {
    let (mut storage, _) = Storage::open(shared(disk), &OPTIONS).unwrap();
    let data = Bytes::from(vec![7; 50]);
    let entry = |index| LogEntry { term: 1, index, kind: LogEntryKind::Normal, data: data.clone() };
    let hard_state = Some(HardState { term: 3, vote: 2, commit: 12 });
    let entries = (1..=12).map(entry).collect();
    storage
        .log
        .append(&[PersistBatch { number: 1, hard_state, entries, ..PersistBatch::default() }])
        .unwrap();
    grow(&mut storage, 0..60);
    let mut choices = Choices::new(1);
    let rows = (0..50u64).map(|row| (row.to_be_bytes().to_vec(), Some(choices.bytes(100)))).collect();
    let membership = Membership { voters: vec![1, 2, 3], ..Membership::default() };
    let checkpoint = Checkpoint { index: 12, term: 1, membership, rows, truncate_through: 5 };
    storage.side.write_checkpoint(&checkpoint).unwrap();
    storage
}

fn grow(storage: &mut Storage, numbers: core::ops::Range<u64>) {
    for number in numbers {
        storage.side.tree.append(&[Digest::of(&number.to_le_bytes())]).unwrap();
        storage.side.history.append([(key(number), vec![number as u8; 90].as_slice())]).unwrap();
    }
}

fn taken(storage: &Storage) -> Vec<u8> {
    let frozen = storage.side.freeze().unwrap().unwrap();
    let mut writer = SnapshotWriter::begin(Vec::new(), HEADER).unwrap();
    let mut records = 0;
    let count = |_: RecordKey, _: &[u8]| {
        records += 1;
        Ok(())
    };
    writer.frozen(&frozen, count).unwrap();
    assert_eq!(records, 60);
    writer.content(&Digest::of(b"content")).unwrap();
    writer.piece(b"cont").unwrap();
    writer.piece(b"ent").unwrap();
    writer.end().unwrap()
}

/// Reads a snapshot into an empty directory; what is the owner's in it.
fn restored(bytes: &[u8], disk: &ForgetfulDisk) -> Result<Vec<SnapshotPart>, StoreError> {
    let mut reader = SnapshotReader::begin(bytes)?;
    let (mut own, mut restoring) = (Vec::new(), None);
    while let Some(part) = reader.next_part()? {
        match (&mut restoring, part) {
            (None, SnapshotPart::Facts(facts)) => {
                restoring = Some(Restoring::begin(&shared(disk), &OPTIONS, facts)?);
            }
            (Some(restoring), part) => {
                if !restoring.take(&part)? {
                    own.push(part);
                }
            }
            (None, part) => own.push(part),
        }
    }
    restoring.unwrap().finish()?;
    Ok(own)
}

fn found(disk: &ForgetfulDisk) -> (Storage, Recovered) {
    Storage::open(shared(disk), &OPTIONS).unwrap()
}

#[test]
fn what_is_restored_is_what_was_there_at_the_checkpoint_and_nothing_that_came_after() {
    let (from, to) = (ForgetfulDisk::default(), ForgetfulDisk::default());
    let mut storage = server(&from);
    // Given: history and tree have gone on since the checkpoint.
    grow(&mut storage, 60..80);
    let bytes = taken(&storage);
    let own = restored(&bytes, &to).unwrap();
    let digest = Digest::of(b"content");
    let pieces = [SnapshotPart::Piece(b"cont".to_vec()), SnapshotPart::Piece(b"ent".to_vec())];
    assert_eq!(own[..2], [SnapshotPart::Header(HEADER.to_vec()), SnapshotPart::Content(digest)]);
    assert_eq!(own[2..], pieces);
    let (restored, after) = found(&to);
    drop(storage);
    let (_, before) = found(&from);
    assert_eq!((after.checkpoint_index, after.checkpoint_term), (12, 1));
    assert_eq!((after.truncated, after.last_index), ((12, 1), 12), "the log begins behind it");
    assert_eq!((after.membership, after.rows), (before.membership, before.rows));
    let reader = restored.side.history.reader();
    for number in 0..80 {
        let expected = (number < 60).then(|| vec![number as u8; 90]);
        assert_eq!(reader.get(key(number)).unwrap(), expected, "record {number}");
    }
    assert_eq!(restored.side.tree.hashes(), 60);
    assert_eq!(restored.side.tree.read(59).unwrap(), Digest::of(&59u64.to_le_bytes()));
    // A directory that holds something takes none.
    drop(restored);
    assert!(self::restored(&bytes, &to).is_err());
}

#[test]
fn a_snapshot_that_was_cut_short_or_changed_anywhere_is_refused_and_leaves_no_state() {
    let storage = server(&ForgetfulDisk::default());
    let bytes = taken(&storage);
    let refused = |bytes: &[u8], what: &str| {
        let disk = ForgetfulDisk::default();
        let error = restored(bytes, &disk).expect_err(what);
        assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
        assert_eq!(found(&disk).1.checkpoint_index, 0, "{what}");
    };
    let mut choices = Choices::new(4);
    for _ in 0..60 {
        let at = choices.below(bytes.len() as u64) as usize;
        refused(&bytes[..at], &format!("cut at byte {at}"));
        let mut changed = bytes.clone();
        changed[at] ^= 1 << choices.below(8);
        refused(&changed, &format!("a bit of byte {at} flipped"));
    }
    // A part that is left out whole has no wrong checksum of its own.
    let mut writer = SnapshotWriter::begin(Vec::new(), HEADER).unwrap();
    writer.frozen(&storage.side.freeze().unwrap().unwrap(), |_, _| Ok(())).unwrap();
    let ends = writer.end().unwrap();
    let mut joined = bytes[..bytes.len() - 41].to_vec();
    joined.extend_from_slice(&ends[ends.len() - 41..]);
    refused(&joined, "the end of another one");
}

#[test]
fn a_cluster_goes_on_alone_whenever_the_power_is_cut_and_not_with_entries_that_were_never_applied() {
    let disk = ForgetfulDisk::default();
    drop(server(&disk));
    let done = disk.copy();
    Storage::go_on_alone(shared(&done), &OPTIONS, 2, b"recover".to_vec()).unwrap();
    let total = done.changes();
    let last = |storage: &Storage, index| storage.log.reader().entries(index, index + 1, 1_000);
    let alone = Membership { voters: vec![2], ..Membership::default() };
    let (storage, after) = found(&done);
    assert_eq!((after.membership, after.last_index, after.checkpoint_index), (alone.clone(), 13, 12));
    assert_eq!(after.hard_state, HardState { term: 4, vote: 2, commit: 13 });
    let [entry] = &last(&storage, 13).unwrap()[..] else { panic!("one entry") };
    assert_eq!((entry.term, entry.data.as_ref()), (4, b"recover".as_slice()));
    drop(storage);
    // With an entry behind the checkpoint there is something to be applied first.
    let error = Storage::go_on_alone(shared(&done), &OPTIONS, 2, b"again".to_vec()).unwrap_err();
    assert!(error.to_string().contains("behind the checkpoint"), "{error}");
    // Whenever the power is cut: it votes alone only where the entry is there that says so.
    let mut seen = [0, 0];
    for cut in 0..=total {
        let trial = disk.copy();
        trial.set_fault(Some(support::Fault::PowerOff(cut)));
        let outcome = Storage::go_on_alone(shared(&trial), &OPTIONS, 2, b"recover".to_vec());
        trial.set_fault(None);
        let left = trial.after_power_cut(&mut Choices::new(cut));
        let (storage, after) = found(&left);
        let is_alone = after.membership == alone;
        assert!(!is_alone || last(&storage, 13).is_ok(), "cut {cut}");
        assert!(outcome.is_err() || is_alone, "cut {cut}: it was said to be done");
        seen[usize::from(is_alone)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
