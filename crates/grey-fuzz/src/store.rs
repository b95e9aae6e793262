//! Files of a data directory, changed anywhere: opening them is what was written or an error that names the file, never
//! a panic and never fewer records than were there.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes as Data;
use grey_core::NodeVersion;
use grey_proof::Digest;
use grey_replica::{
    Checkpoint, HardState, LogEntry, LogEntryKind, LogReader, Membership, Options, PersistBatch, Replica,
};
use grey_store::{
    Disk, Journal, RecordKey, RecordKind, Restoring, SnapshotPart, SnapshotReader, SnapshotWriter, Storage,
    StorageOptions, StoreError,
};

use crate::Random;
use crate::bytes::Bytes;
use crate::disk::MemoryDisk;

const OPTIONS: StorageOptions = StorageOptions { segment_bytes: 1_000 };
const ENTRIES: u64 = 12;
const CHECKPOINT: u64 = 8;
const TRUNCATED: u64 = 4;

/// Everything that a reader gets out of a disk.
#[derive(Debug, PartialEq)]
struct Content {
    log: Vec<(u64, u64, Vec<u8>)>,
    hard_state: HardState,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    membership: Membership,
    history: Vec<(RecordKey, Vec<u8>)>,
    tree: Vec<Digest>,
}

static FILES: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| written().expect("a disk is written"));
static WHOLE: LazyLock<Content> = LazyLock::new(|| {
    read(&MemoryDisk::holding(&FILES)).unwrap_or_else(|error| panic!("a whole disk is read: {error}"))
});

fn written() -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let disk = MemoryDisk::default();
    let mut random = Random::seeded(11);
    let (mut storage, _) = Storage::open(Arc::new(disk.clone()), &OPTIONS)?;
    for index in 1..=ENTRIES {
        let data = Data::from(random.bytes(60));
        let entries = vec![LogEntry { term: 1, index, kind: LogEntryKind::Normal, data }];
        let hard_state = Some(HardState { term: 1, vote: 1, commit: index });
        storage.log.append(&[PersistBatch {
            number: index,
            hard_state,
            entries,
            ..PersistBatch::default()
        }])?;
        let key = RecordKey { kind: RecordKind(1), key: index, subkey: 2 };
        let value = random.bytes(200);
        storage.side.history.append([(key, value.as_slice())])?;
        storage.side.tree.append(&[Digest::of(&index.to_le_bytes())])?;
    }
    let rows =
        crate::commands::busy().all_rows().into_iter().map(|(key, value)| (key, Some(value))).collect();
    let membership = Membership { voters: vec![1], ..Membership::default() };
    let checkpoint = Checkpoint { index: CHECKPOINT, term: 1, membership, rows, truncate_through: TRUNCATED };
    storage.side.write_checkpoint(&checkpoint)?;
    storage.log.truncate_through(TRUNCATED)?;
    drop(storage);
    Ok(disk.files())
}

/// Reads all of it. The hashes of the tree have no checksums (see decision 4), so they are read and not compared.
fn read(disk: &MemoryDisk) -> Result<Content, String> {
    let named = |error: StoreError| error.to_string();
    let (storage, recovered) = Storage::open(Arc::new(disk.clone()), &OPTIONS).map_err(named)?;
    let reader = storage.log.reader();
    let (mut log, mut next) = (Vec::new(), recovered.truncated.0 + 1);
    while next <= recovered.last_index && log.len() < 1_000 {
        let entries = reader.entries(next, recovered.last_index + 1, u64::MAX);
        for entry in entries.map_err(|error| error.to_string())? {
            log.push((entry.index, entry.term, entry.data.to_vec()));
            next = entry.index + 1;
        }
    }
    let from = RecordKey { kind: RecordKind(0), key: 0, subkey: 0 };
    let to = RecordKey { kind: RecordKind(255), key: 0, subkey: 0 };
    let history = storage.side.history.reader().scan(from, to, usize::MAX, false).map_err(named)?;
    let tree = (0..storage.side.tree.hashes().min(1_000)).map(|index| storage.side.tree.read(index));
    let tree = tree.collect::<Result<Vec<_>, _>>().map_err(named)?;
    let content = Content {
        log,
        hard_state: recovered.hard_state,
        rows: recovered.rows.clone(),
        membership: recovered.membership.clone(),
        history,
        tree,
    };
    // What is found is what a server starts from; whether it does is the rows' affair.
    let options =
        Options { id: 1, seed: 1, checkpoint_bytes: u64::MAX, version: NodeVersion::newest("test") };
    drop(Replica::new(&options, recovered, Box::new(reader)));
    Ok(content)
}

/// One file, changed: which, how often, and each change as a place and what is put there.
pub(crate) fn files(data: &[u8]) {
    quiet();
    let mut bytes = Bytes::new(data);
    let mut files = FILES.clone();
    let names: Vec<String> = files.keys().cloned().collect();
    let Some(name) = bytes.pick(&(0..names.len()).collect::<Vec<_>>()).and_then(|at| names.get(at)) else {
        return;
    };
    let Some(content) = files.get_mut(name) else { return };
    let before = content.clone();
    let used = before.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match bytes.below(8) {
        0 => content.truncate(place(&mut bytes, before.len())),
        1 => content.extend_from_slice(bytes.slice(200)),
        _ => {
            for _ in 0..=bytes.below(3) {
                let at = place(&mut bytes, used);
                let put = bytes.slice(16);
                let end = (at + put.len()).min(content.len());
                if let Some(found) = content.get_mut(at..end) {
                    found.copy_from_slice(put.get(..end - at).unwrap_or_default());
                }
            }
        }
    }
    let unchanged = *content == before;
    match read(&MemoryDisk::holding(&files)) {
        Ok(found) if name == "tree.hashes" => assert_eq!(found.tree.len(), WHOLE.tree.len()),
        Ok(found) => assert!(found == *WHOLE, "{name}: what was changed was passed over"),
        Err(error) => {
            assert!(!unchanged, "a whole disk is refused: {error}");
            assert!(error.contains(name.as_str()), "{name}: {error}");
        }
    }
}

fn place(bytes: &mut Bytes<'_>, length: usize) -> usize {
    let (high, low) = (usize::from(bytes.byte()), usize::from(bytes.byte()));
    let far = usize::from(bytes.byte());
    (far << 16 | high << 8 | low) % (length + 1)
}

/// redb's panics are caught by the store; a fuzzer that ends at the first panic must not see those. Who replays one input sees
/// them.
pub(crate) fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let within = std::env::var_os("GREY_FUZZ_INPUT").is_none()
                && panic.location().is_some_and(|place| place.file().contains("redb"));
            if !within {
                before(panic);
            }
        }));
    });
}

pub(crate) fn files_corpus() -> Vec<Vec<u8>> {
    let mut random = Random::seeded(12);
    (0..24u8)
        .map(|number| {
            let mut input = vec![number, number / 6 + 1, number % 3];
            input.extend(random.bytes(3));
            input.extend([1 + number % 4]);
            input.extend(random.bytes(24));
            input
        })
        .collect()
}

/// Changes that a worker's outbox went through, and what a damaged file of them gives back.
pub(crate) fn journal(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let disk = MemoryDisk::default();
    // Content of every state that was promised, the oldest first.
    let mut promised: Vec<BTreeMap<u64, Vec<u8>>> = vec![BTreeMap::new()];
    let mut journal = Journal::open(Arc::new(disk.clone())).expect("a new outbox opens");
    for _ in 0..bytes.below(8) {
        let changes = 1 + bytes.below(2);
        let change: Vec<(u64, Option<Vec<u8>>)> = (0..changes)
            .map(|_| (bytes.below(6).into(), (!bytes.chance(4)).then(|| bytes.slice(60).to_vec())))
            .collect();
        let mut next = promised.last().cloned().unwrap_or_default();
        for (key, value) in &change {
            match value {
                Some(value) => next.insert(*key, value.clone()),
                None => next.remove(key),
            };
        }
        journal.change(change).expect("an outbox takes changes");
        promised.push(next);
    }
    assert_eq!(Some(journal.entries()), promised.last());
    drop(journal);
    let mut files = disk.files();
    let Some(content) = files.get_mut("outbox.journal") else { return };
    let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let damaged = bytes.below(4);
    for _ in 0..damaged {
        let at = place(&mut bytes, used);
        let put = bytes.slice(12);
        let end = (at + put.len()).min(content.len());
        if let Some(found) = content.get_mut(at..end) {
            found.copy_from_slice(put.get(..end - at).unwrap_or_default());
        }
    }
    let reopened = Journal::open(Arc::new(MemoryDisk::holding(&files)));
    match reopened {
        Ok(found) if damaged == 0 => assert_eq!(Some(found.entries()), promised.last()),
        // Damage in the last change, or in all that is left from one on, looks like a write that the power cut.
        Ok(found) => {
            assert!(promised.contains(found.entries()), "an outbox gives back what was never promised")
        }
        Err(error) => assert!(error.to_string().contains("outbox.journal"), "{error}"),
    }
    // A file of any bytes, and one whose changes are any bytes behind a length and a checksum that are right.
    let mark = [7; 8];
    let mut framed = [b"GREYJNL2".as_slice(), &mark].concat();
    while !bytes.is_empty() && framed.len() < 4_096 {
        let body = bytes.slice(80);
        let length = (body.len() as u32).to_le_bytes();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), body);
        framed.extend([mark.as_slice(), &length, &checksum.to_le_bytes(), body].concat());
    }
    for content in [data.to_vec(), framed] {
        let disk: Arc<dyn Disk> =
            Arc::new(MemoryDisk::holding(&BTreeMap::from([("outbox.journal".to_owned(), content)])));
        if let Ok(first) = Journal::open(disk.clone()) {
            let again = Journal::open(disk).expect("what opened once opens again");
            assert_eq!(first.entries(), again.entries());
        }
    }
}

pub(crate) fn journal_corpus() -> Vec<Vec<u8>> {
    let mut random = Random::seeded(13);
    (0..10).map(|number| [vec![number], random.bytes(160)].concat()).collect()
}

/// A snapshot of the same disk.
static SNAPSHOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let disk = MemoryDisk::holding(&FILES);
    let taken = || -> Result<Vec<u8>, StoreError> {
        let (storage, _) = Storage::open(Arc::new(disk), &OPTIONS)?;
        let mut writer = SnapshotWriter::begin(Vec::new(), b"{}")?;
        let frozen = storage.side.freeze()?.expect("there is a checkpoint");
        writer.frozen(&frozen, |_, _| Ok(()))?;
        writer.content(&Digest::of(b"content"))?;
        writer.piece(b"content")?;
        writer.end()
    };
    taken().expect("a snapshot is taken")
});

/// Its parts: each one's kind and content.
fn parts(snapshot: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut parts, mut rest) = (Vec::new(), snapshot.get(8..).unwrap_or_default());
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let [kind, l0, l1, l2, l3, ..] = *head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let (content, next) = after.split_at(length.min(after.len()));
        parts.push((kind, content.to_vec()));
        rest = next;
    }
    parts
}

/// The parts as a snapshot again, with checksums that hold.
fn joined(parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"GREYSNP1".to_vec();
    for (kind, content) in parts {
        let digest = Digest::of(&bytes);
        // The last part is the digest of all before it.
        let content: &[u8] = if *kind == 8 { &digest.0 } else { content };
        bytes.push(*kind);
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c_append(crc32c::crc32c(&[*kind]), content).to_le_bytes());
        bytes.extend_from_slice(content);
    }
    bytes
}

/// A snapshot that was changed is refused; one whose parts are others, with checksums that hold, is refused or leaves a directory that opens
/// or says what is wrong.
pub(crate) fn snapshot(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut changed = SNAPSHOT.clone();
    if bytes.chance(3) {
        let before = changed.clone();
        for _ in 0..=bytes.below(3) {
            let at = bytes.near(0) as usize % changed.len();
            changed[at] ^= bytes.byte();
        }
        if bytes.chance(2) {
            changed.truncate(bytes.near(200) as usize);
        }
        assert!(restored(&changed).is_err() || changed == before, "a changed snapshot is taken");
        return;
    }
    let mut parts = parts(&changed);
    for _ in 0..=bytes.below(4) {
        let at = usize::from(bytes.byte()) % parts.len();
        match bytes.below(5) {
            0 => drop(parts.remove(at)),
            1 => {
                let other = usize::from(bytes.byte()) % parts.len();
                parts.swap(at, other);
            }
            2 => parts.insert(at, (bytes.below(10), bytes.slice(40).to_vec())),
            3 => {
                let copy = parts[at].clone();
                parts.push(copy);
            }
            _ => {
                let (place, byte) = (usize::from(bytes.byte()), bytes.byte());
                let content = &mut parts[at].1;
                if !content.is_empty() {
                    let place = place % content.len();
                    content[place] ^= byte;
                }
            }
        }
        if parts.is_empty() {
            break;
        }
    }
    drop(restored(&joined(&parts)));
}

fn restored(snapshot: &[u8]) -> Result<(), String> {
    let text = |error: StoreError| error.to_string();
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
    let mut reader = SnapshotReader::begin(snapshot).map_err(text)?;
    let mut restoring = None;
    while let Some(part) = reader.next_part().map_err(text)? {
        match (&mut restoring, part) {
            (None, SnapshotPart::Facts(facts)) => {
                restoring = Some(Restoring::begin(&disk, &OPTIONS, facts).map_err(text)?);
            }
            (Some(restoring), part) => drop(Restoring::take(restoring, &part).map_err(text)?),
            (None, _) => {}
        }
    }
    let restoring = restoring.ok_or("it has no beginning")?;
    restoring.finish().map_err(text)?;
    Storage::open(disk, &OPTIONS).map(drop).map_err(text)
}

pub(crate) fn snapshot_corpus() -> Vec<Vec<u8>> {
    let mut random = Random::seeded(31);
    (0..12).map(|_| random.bytes(24)).collect()
}
