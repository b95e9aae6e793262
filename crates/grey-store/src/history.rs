//! History: records of what has ended, in segments that never change once they are full.
//!
//! Nothing is synced as it is appended: the log covers everything since the last checkpoint, and a checkpoint syncs the
//! history first. At start everything past the checkpoint is cut off and comes again from the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::collector::{HistoryCollector, remove_files};
use crate::disk::{Disk, Medium};
use crate::error::StoreError;
use crate::gone::{Gone, Horizons};

/// What a record is about; numbers are the owner's to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKind(pub u8);

/// A record's key: kind, number, and a second number below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// What it is about.
    pub kind: RecordKind,
    /// The first number.
    pub key: u64,
    /// The second.
    pub subkey: u32,
}

pub(crate) const MAGIC: &[u8; 8] = b"GREYHST1";
const FOOTER_MAGIC: &[u8; 8] = b"GREYIDX1";
const KEY_BYTES: usize = 13;
pub(crate) const HEADER_BYTES: usize = 8 + KEY_BYTES;
const INDEX_ENTRY_BYTES: u64 = KEY_BYTES as u64 + 8;
/// Count, checksum and magic behind the index of a sealed segment.
const TRAILER_BYTES: u64 = 8 + 4 + 8;
const LARGEST_RECORD_BYTES: usize = 64 * 1024 * 1024;
const INDEX_READ_ENTRIES: u64 = 1024;

pub(crate) fn name(number: u32) -> String {
    format!("history-{number:08}.seg")
}

/// Whether a file belongs to a history.
pub(crate) fn is_file(name: &str) -> bool {
    name.starts_with("history-") && (name.ends_with(".seg") || name.ends_with(".note"))
}

fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("history-")?.strip_suffix(".seg")?.parse().ok()
}

impl RecordKey {
    pub(crate) fn to_bytes(self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        let parts = [self.kind.0].into_iter().chain(self.key.to_be_bytes()).chain(self.subkey.to_be_bytes());
        bytes.iter_mut().zip(parts).for_each(|(place, part)| *place = part);
        bytes
    }

    /// The key that stands at the beginning of bytes, and what follows it.
    pub(crate) fn split(bytes: &[u8]) -> Option<(RecordKey, &[u8])> {
        let (key, rest) = bytes.split_first_chunk::<KEY_BYTES>()?;
        Some((RecordKey::from_bytes(key)?, rest))
    }

    fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Option<RecordKey> {
        let (kind, rest) = bytes.split_first()?;
        let (key, subkey) = rest.split_first_chunk::<8>()?;
        let subkey = u32::from_be_bytes(subkey.try_into().ok()?);
        Some(RecordKey { kind: RecordKind(*kind), key: u64::from_be_bytes(*key), subkey })
    }
}

/// One file of history.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    name: String,
    medium: Arc<dyn Medium>,
    /// Where its records end.
    pub(crate) end: u64,
    index: Index,
}

/// What is known of history as a whole, beside its segments.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Segments below this number are covered by a checkpoint: they never come again from the log.
    settled_below: AtomicU32,
    gone: Mutex<Gone>,
}

impl Standing {
    pub(crate) fn settled_below(&self) -> u32 {
        self.settled_below.load(Ordering::Acquire)
    }

    pub(crate) fn gone(&self) -> MutexGuard<'_, Gone> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest and the highest key of each kind. Numbers mostly grow, so that of many segments one or two can have a key.
type Spans = BTreeMap<RecordKind, (RecordKey, RecordKey)>;

/// Where a segment's records stand.
#[derive(Debug)]
enum Index {
    /// Still growing: in memory.
    Open(BTreeMap<RecordKey, u64>),
    /// Sealed: in the file, behind the records.
    Sealed { begins: u64, count: u64, checked: OnceLock<Spans> },
}

impl Segment {
    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
        move |error| StoreError::io(&self.name, action, error)
    }

    fn damaged(&self, offset: u64, what: &str) -> StoreError {
        StoreError::damaged(&self.name, format!("byte {offset}"), what)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.index, Index::Sealed { .. })
    }

    /// The record at an offset, checked.
    pub(crate) fn record(&self, offset: u64) -> Result<(RecordKey, Vec<u8>), StoreError> {
        let mut header = [0; HEADER_BYTES];
        self.medium
            .read_at(offset, &mut header)
            .map_err(|_| self.damaged(offset, "a record is cut short"))?;
        let short = || self.damaged(offset, "a record is cut short");
        let (length, rest) = header.split_first_chunk::<4>().ok_or_else(short)?;
        let (stored, key) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let size = u32::from_le_bytes(*length) as usize;
        if size > LARGEST_RECORD_BYTES {
            return Err(self.damaged(offset, "a record's length is impossible"));
        }
        let mut value = vec![0; size];
        self.medium.read_at(offset + HEADER_BYTES as u64, &mut value).map_err(|_| short())?;
        let checksum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(length), key), &value);
        let key = key.try_into().ok().and_then(RecordKey::from_bytes);
        match key {
            Some(key) if checksum == u32::from_le_bytes(*stored) => Ok((key, value)),
            _ => Err(self.damaged(offset, "a record's checksum does not hold")),
        }
    }

    fn index_entry(&self, begins: u64, at: u64) -> Result<(RecordKey, u64), StoreError> {
        let place = begins + at * INDEX_ENTRY_BYTES;
        let mut bytes = [0; INDEX_ENTRY_BYTES as usize];
        self.medium.read_at(place, &mut bytes).map_err(|_| self.damaged(place, "its index is cut short"))?;
        let parsed = bytes.split_first_chunk::<KEY_BYTES>().and_then(|(key, offset)| {
            Some((RecordKey::from_bytes(key)?, u64::from_le_bytes(offset.try_into().ok()?)))
        });
        parsed.ok_or_else(|| self.damaged(place, "its index does not decode"))
    }

    /// Reads the whole index of a sealed segment once, so that a damaged one cannot hide a record.
    fn check_index(&self, begins: u64, count: u64) -> Result<Spans, StoreError> {
        let (mut checksum, mut spans) = (0, Spans::new());
        let mut at = 0;
        while at < count {
            let entries = (count - at).min(INDEX_READ_ENTRIES);
            let mut bytes = vec![0; usize::try_from(entries * INDEX_ENTRY_BYTES).unwrap_or(0)];
            let place = begins + at * INDEX_ENTRY_BYTES;
            self.medium
                .read_at(place, &mut bytes)
                .map_err(|_| self.damaged(place, "its index is cut short"))?;
            checksum = crc32c::crc32c_append(checksum, &bytes);
            let keys = bytes
                .chunks_exact(INDEX_ENTRY_BYTES as usize)
                .filter_map(|entry| entry.first_chunk::<KEY_BYTES>().and_then(RecordKey::from_bytes));
            for key in keys {
                let span = spans.entry(key.kind).or_insert((key, key));
                *span = (span.0.min(key), span.1.max(key));
            }
            at += entries;
        }
        let mut stored = [0; 4];
        let place = begins + count * INDEX_ENTRY_BYTES + 8;
        self.medium
            .read_at(place, &mut stored)
            .map_err(|_| self.damaged(place, "its trailer is cut short"))?;
        if checksum != u32::from_le_bytes(stored) {
            return Err(self.damaged(begins, "its index's checksum does not hold"));
        }
        Ok(spans)
    }

    /// Keys and offsets from `from` up to and without `to`, at most `limit`, lowest or highest first.
    fn find(
        &self,
        from: RecordKey,
        to: RecordKey,
        limit: usize,
        highest: bool,
    ) -> Result<Vec<(RecordKey, u64)>, StoreError> {
        match &self.index {
            Index::Open(index) => {
                let range = index.range(from..to).map(|(key, offset)| (*key, *offset));
                Ok(if highest { range.rev().take(limit).collect() } else { range.take(limit).collect() })
            }
            Index::Sealed { begins, count, checked } => {
                let spans = match checked.get() {
                    Some(spans) => spans,
                    None => {
                        let spans = self.check_index(*begins, *count)?;
                        checked.get_or_init(|| spans)
                    }
                };
                if !spans.values().any(|(lowest, highest)| from <= *highest && *lowest < to) {
                    return Ok(Vec::new());
                }
                let low = self.position(*begins, *count, from)?;
                let high = self.position(*begins, *count, to)?;
                let entry = |at| self.index_entry(*begins, at);
                if highest {
                    (low..high).rev().take(limit).map(entry).collect()
                } else {
                    (low..high).take(limit).map(entry).collect()
                }
            }
        }
    }

    /// Position of the first index entry at or above a key.
    fn position(&self, begins: u64, count: u64, key: RecordKey) -> Result<u64, StoreError> {
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.index_entry(begins, middle)?.0 < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// Reads history from any thread; sees records as soon as they are appended.
#[derive(Debug, Clone)]
pub struct HistoryReader {
    /// Ascending by number.
    pub(crate) segments: Arc<RwLock<Vec<Segment>>>,
    pub(crate) standing: Arc<Standing>,
}

impl HistoryReader {
    /// Of jobs that ended at or before these times something may be missing.
    pub fn horizons(&self) -> Horizons {
        self.standing.gone().horizons
    }

    /// How many segments there are, and how many bytes their records take.
    pub fn size(&self) -> (u64, u64) {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        (segments.len() as u64, segments.iter().map(|segment| segment.end).sum())
    }

    /// One record.
    pub fn get(&self, key: RecordKey) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(next) = key.subkey.checked_add(1) else { return Ok(None) };
        Ok(self.scan(key, RecordKey { subkey: next, ..key }, 1, false)?.pop().map(|(_, value)| value))
    }

    /// The record with the highest second number.
    pub fn last(&self, kind: RecordKind, key: u64) -> Result<Option<(RecordKey, Vec<u8>)>, StoreError> {
        let Some(next) = key.checked_add(1) else { return Ok(None) };
        let from = RecordKey { kind, key, subkey: 0 };
        Ok(self.scan(from, RecordKey { kind, key: next, subkey: 0 }, 1, true)?.pop())
    }

    /// The record with the highest first number at or below `key`.
    pub fn at_or_below(
        &self,
        kind: RecordKind,
        key: u64,
    ) -> Result<Option<(RecordKey, Vec<u8>)>, StoreError> {
        let from = RecordKey { kind, key: 0, subkey: 0 };
        let to = RecordKey { kind, key: key.saturating_add(1), subkey: 0 };
        Ok(self.scan(from, to, 1, true)?.pop())
    }

    /// Records from `from` up to and without `to`, at most `limit`, lowest or highest first.
    pub fn scan(
        &self,
        from: RecordKey,
        to: RecordKey,
        limit: usize,
        highest: bool,
    ) -> Result<Vec<(RecordKey, Vec<u8>)>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for segment in segments.iter() {
            for (key, offset) in segment.find(from, to, limit, highest)? {
                found.push((key, offset, segment));
            }
        }
        found.sort_by_key(|(key, _, _)| *key);
        if highest {
            found.reverse();
        }
        found
            .into_iter()
            .take(limit)
            .map(|(key, offset, segment)| match segment.record(offset)? {
                (stored, value) if stored == key => Ok((key, value)),
                _ => Err(segment.damaged(offset, "another record stands where the index points")),
            })
            .collect()
    }
}

/// Appends to history.
#[derive(Debug)]
pub struct HistoryWriter {
    disk: Arc<dyn Disk>,
    segments: Arc<RwLock<Vec<Segment>>>,
    standing: Arc<Standing>,
    number: u32,
    length: u64,
    segment_bytes: u64,
    pending: Vec<u8>,
    failed: bool,
}

/// How many bytes are gathered before they are handed to the system.
const PENDING_BYTES: usize = 256 * 1024;

impl HistoryWriter {
    /// Opens history as of a checkpoint: segment `number` of `length` bytes is open, those before it are sealed or gone, and
    /// everything else is cut off.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        number: u32,
        length: u64,
        segment_bytes: u64,
    ) -> Result<HistoryWriter, StoreError> {
        let names = disk.list().map_err(|error| StoreError::io("history", "list", error))?;
        let mut segments = Vec::new();
        for found in names.iter().filter_map(|name| number_of(name)).filter(|found| *found > number) {
            let name = name(found);
            disk.remove(&name).map_err(|error| StoreError::io(&name, "remove", error))?;
        }
        let gone = Gone::read(disk.as_ref(), &names, number)?;
        for earlier in 0..number {
            if gone.segments.contains(&earlier) {
                // An earlier life ended between naming it and removing it.
                remove_files(disk.as_ref(), earlier, &names)?;
            } else {
                segments.push(open_sealed(disk.as_ref(), earlier, &names)?);
            }
        }
        segments.push(open_last(disk.as_ref(), number, length)?);
        let length = length.max(MAGIC.len() as u64);
        let segments = Arc::new(RwLock::new(segments));
        let standing = Standing { settled_below: AtomicU32::new(number), gone: Mutex::new(gone) };
        Ok(HistoryWriter {
            disk,
            segments,
            standing: Arc::new(standing),
            number,
            length,
            segment_bytes,
            pending: Vec::new(),
            failed: false,
        })
    }

    /// A reader for other threads.
    pub fn reader(&self) -> HistoryReader {
        HistoryReader { segments: self.segments.clone(), standing: self.standing.clone() }
    }

    /// What looks through history as a whole, for another thread.
    pub fn collector(&self) -> HistoryCollector {
        HistoryCollector::new(self.disk.clone(), self.reader())
    }

    /// A checkpoint that has this as its open segment is durable.
    pub(crate) fn checkpointed(&self, number: u32) {
        self.standing.settled_below.store(number, Ordering::Release);
    }

    /// Number and length of the open segment, once [`HistoryWriter::flush`] has been called.
    pub(crate) fn position(&self) -> (u32, u64) {
        (self.number, self.length)
    }

    /// Appends records; readers see them when this returns.
    pub fn append<'a>(
        &mut self,
        records: impl IntoIterator<Item = (RecordKey, &'a [u8])>,
    ) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed { file: name(self.number) });
        }
        self.failed = true;
        let mut added = Vec::new();
        for (key, value) in records {
            if value.len() > LARGEST_RECORD_BYTES {
                return Err(StoreError::damaged(
                    &name(self.number),
                    "a new record",
                    "it is too large to be written",
                ));
            }
            added.push((key, self.length + self.pending.len() as u64));
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes();
            let key = key.to_bytes();
            let checksum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&length), &key), value);
            self.pending.extend_from_slice(&length);
            self.pending.extend_from_slice(&checksum.to_le_bytes());
            self.pending.extend_from_slice(&key);
            self.pending.extend_from_slice(value);
            if self.pending.len() >= PENDING_BYTES {
                self.write_out(core::mem::take(&mut added))?;
            }
        }
        self.write_out(added)?;
        if self.length >= self.segment_bytes {
            self.seal()?;
        }
        self.failed = false;
        Ok(())
    }

    fn write_out(&mut self, added: Vec<(RecordKey, u64)>) -> Result<(), StoreError> {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let Some(segment) = segments.last_mut() else { return Ok(()) };
        let written = segment.medium.write_at(self.length, &self.pending);
        written.map_err(|error| StoreError::io(&segment.name, "write", error))?;
        self.length += self.pending.len() as u64;
        segment.end = self.length;
        self.pending.clear();
        if let Index::Open(index) = &mut segment.index {
            index.extend(added);
        }
        Ok(())
    }

    /// Makes everything appended durable.
    pub fn sync(&self) -> Result<(), StoreError> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        match segments.last() {
            Some(segment) => segment.medium.sync().map_err(segment.io("sync")),
            None => Ok(()),
        }
    }

    /// Closes the open segment before it is full, where it is still the one of this number and has records: what is in
    /// it shall not wait for what comes later.
    pub fn seal_early(&mut self, number: u32) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed { file: name(self.number) });
        }
        if number != self.number || self.length <= MAGIC.len() as u64 {
            return Ok(());
        }
        self.failed = true;
        self.seal()?;
        self.failed = false;
        Ok(())
    }

    /// Closes the open segment with its index and begins the next.
    fn seal(&mut self) -> Result<(), StoreError> {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let Some(segment) = segments.last_mut() else { return Ok(()) };
        let Index::Open(index) = &segment.index else { return Ok(()) };
        let mut footer = Vec::new();
        for (key, offset) in index {
            footer.extend_from_slice(&key.to_bytes());
            footer.extend_from_slice(&offset.to_le_bytes());
        }
        let (count, checksum) = (index.len() as u64, crc32c::crc32c(&footer));
        footer.extend_from_slice(&count.to_le_bytes());
        footer.extend_from_slice(&checksum.to_le_bytes());
        footer.extend_from_slice(FOOTER_MAGIC);
        segment.medium.write_at(self.length, &footer).map_err(segment.io("seal"))?;
        segment.medium.sync().map_err(segment.io("sync"))?;
        segment.index = Index::Sealed { begins: self.length, count, checked: OnceLock::new() };
        self.number += 1;
        segments.push(open_last(self.disk.as_ref(), self.number, 0)?);
        self.length = MAGIC.len() as u64;
        Ok(())
    }
}

fn open_sealed(disk: &dyn Disk, number: u32, names: &[String]) -> Result<Segment, StoreError> {
    let name = name(number);
    if !names.contains(&name) {
        return Err(StoreError::damaged(&name, "the whole file", "it is missing"));
    }
    let medium = disk.open(&name).map_err(|error| StoreError::io(&name, "open", error))?;
    let length = medium.length().map_err(|error| StoreError::io(&name, "measure", error))?;
    let damaged =
        |what| StoreError::damaged(&name, format!("byte {}", length.saturating_sub(TRAILER_BYTES)), what);
    let mut trailer = [0; TRAILER_BYTES as usize];
    let at = length.checked_sub(TRAILER_BYTES).ok_or_else(|| damaged("it is cut short"))?;
    medium.read_at(at, &mut trailer).map_err(|_| damaged("it is cut short"))?;
    let (count, rest) = trailer.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
    let count = u64::from_le_bytes(*count);
    let begins = count.checked_mul(INDEX_ENTRY_BYTES).and_then(|size| at.checked_sub(size));
    match begins {
        Some(begins) if rest.ends_with(FOOTER_MAGIC) => {
            check_magic(&name, medium.as_ref())?;
            let index = Index::Sealed { begins, count, checked: OnceLock::new() };
            Ok(Segment { number, name, medium, end: begins, index })
        }
        _ => Err(damaged("its trailer is not one")),
    }
}

fn check_magic(name: &str, medium: &dyn Medium) -> Result<(), StoreError> {
    let mut magic = [0; 8];
    let read = medium.read_at(0, &mut magic);
    if read.is_err() || &magic != MAGIC {
        return Err(StoreError::damaged(name, "byte 0", "it is no history, or of another version"));
    }
    Ok(())
}

fn open_last(disk: &dyn Disk, number: u32, length: u64) -> Result<Segment, StoreError> {
    let name = name(number);
    let medium = disk.open(&name).map_err(|error| StoreError::io(&name, "open", error))?;
    let present = medium.length().map_err(|error| StoreError::io(&name, "measure", error))?;
    // A segment without records is begun anew, so how much of its beginning survived a power cut does not matter.
    if present < length && length > MAGIC.len() as u64 {
        return Err(StoreError::damaged(
            &name,
            format!("byte {present}"),
            "it is shorter than at the checkpoint",
        ));
    }
    if length <= MAGIC.len() as u64 {
        medium.set_len(0).map_err(|error| StoreError::io(&name, "cut", error))?;
        medium.write_at(0, MAGIC).map_err(|error| StoreError::io(&name, "write", error))?;
    } else {
        check_magic(&name, medium.as_ref())?;
        medium.set_len(length).map_err(|error| StoreError::io(&name, "cut", error))?;
    }
    let end = length.max(MAGIC.len() as u64);
    let mut segment = Segment { number, name, medium, end, index: Index::Open(BTreeMap::new()) };
    let (mut at, mut index) = (MAGIC.len() as u64, BTreeMap::new());
    while at < length {
        let (key, value) = segment.record(at)?;
        index.insert(key, at);
        at += (HEADER_BYTES + value.len()) as u64;
    }
    segment.index = Index::Open(index);
    Ok(segment)
}
