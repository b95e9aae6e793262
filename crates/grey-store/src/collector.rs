//! Looks through history from beginning to end, and takes whole segments out of it.
//!
//! What may go is the owner's to say. What is said here is that a segment which may still be written again from the log
//! stays, and that a segment is named as gone, durably, before it is removed.

use std::sync::{Arc, PoisonError};

use crate::disk::Disk;
use crate::error::StoreError;
use crate::gone::Horizons;
use crate::history::{HEADER_BYTES, HistoryReader, MAGIC, RecordKey, name};

const NOTE_MAGIC: &[u8; 8] = b"GREYNOT1";
/// The longest note, in bytes: it is about records of one segment.
const LONGEST_NOTE_BYTES: u64 = 256 * 1024 * 1024;

/// What a collector sees of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Its number.
    pub number: u32,
    /// Length of its records in bytes.
    pub bytes: u64,
    /// Whether nothing is added to it any more.
    pub sealed: bool,
    /// Whether a checkpoint covers all of it, so that it never comes again from the log: only then may it be removed.
    pub settled: bool,
}

/// Records one after another, and where the next one begins.
#[derive(Debug)]
pub struct RecordBatch {
    /// Keys and contents in the order in which they were appended.
    pub records: Vec<(RecordKey, Vec<u8>)>,
    /// To be given to the next call; `None` at the end.
    pub next: Option<u64>,
}

/// Reads segments as a whole, keeps a note about each, and removes them. For one thread at a time.
#[derive(Debug, Clone)]
pub struct HistoryCollector {
    disk: Arc<dyn Disk>,
    reader: HistoryReader,
}

pub(crate) fn note_name(number: u32) -> String {
    format!("history-{number:08}.note")
}

impl HistoryCollector {
    pub(crate) fn new(disk: Arc<dyn Disk>, reader: HistoryReader) -> HistoryCollector {
        HistoryCollector { disk, reader }
    }

    /// A reader of the same history.
    pub fn reader(&self) -> &HistoryReader {
        &self.reader
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<SegmentFacts> {
        let segments = self.reader.segments.read().unwrap_or_else(PoisonError::into_inner);
        let settled_below = self.reader.standing.settled_below();
        let facts = segments.iter().map(|segment| SegmentFacts {
            number: segment.number,
            bytes: segment.end,
            sealed: segment.is_sealed(),
            settled: segment.is_sealed() && segment.number < settled_below,
        });
        facts.collect()
    }

    /// Records of a segment from a place on, which is zero or what the last call gave, until they have about so many
    /// bytes. A segment that is gone has none.
    pub fn records(&self, number: u32, from: u64, about_bytes: usize) -> Result<RecordBatch, StoreError> {
        self.records_until(number, from, about_bytes, u64::MAX)
    }

    /// [`HistoryCollector::records`] of those that begin before `until`.
    pub(crate) fn records_until(
        &self,
        number: u32,
        from: u64,
        about_bytes: usize,
        until: u64,
    ) -> Result<RecordBatch, StoreError> {
        let segments = self.reader.segments.read().unwrap_or_else(PoisonError::into_inner);
        let mut batch = RecordBatch { records: Vec::new(), next: None };
        let Ok(position) = segments.binary_search_by_key(&number, |segment| segment.number) else {
            return Ok(batch);
        };
        let Some(segment) = segments.get(position) else { return Ok(batch) };
        let (mut at, mut bytes) = (from.max(MAGIC.len() as u64), 0);
        while at < segment.end.min(until) {
            if bytes >= about_bytes {
                batch.next = Some(at);
                break;
            }
            let (key, value) = segment.record(at)?;
            at += (HEADER_BYTES + value.len()) as u64;
            bytes += value.len();
            batch.records.push((key, value));
        }
        Ok(batch)
    }

    /// What was noted about a sealed segment. A note that is damaged or absent is none: it can be made again.
    pub fn note(&self, number: u32) -> Option<Vec<u8>> {
        let name = note_name(number);
        if !self.disk.list().ok()?.contains(&name) {
            return None;
        }
        let medium = self.disk.open(&name).ok()?;
        let length = medium.length().ok().filter(|length| *length <= LONGEST_NOTE_BYTES)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        medium.read_at(0, &mut bytes).ok()?;
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        let holds = crc32c::crc32c(body) == u32::from_le_bytes(*checksum);
        body.strip_prefix(NOTE_MAGIC.as_slice()).filter(|_| holds).map(<[u8]>::to_vec)
    }

    /// Notes something about a settled segment, in the place of what was noted before. About any other nothing is noted:
    /// it may come again from the log with other records. It is not synced: a note that a power cut damages is made again.
    pub fn put_note(&self, number: u32, note: &[u8]) -> Result<(), StoreError> {
        if !self.is_settled(number) {
            return Ok(());
        }
        let name = note_name(number);
        let mut bytes = NOTE_MAGIC.to_vec();
        bytes.extend_from_slice(note);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let io = |action| {
            let name = &name;
            move |error| StoreError::io(name, action, error)
        };
        let medium = self.disk.open(&name).map_err(io("open"))?;
        medium.set_len(0).map_err(io("cut"))?;
        medium.write_at(0, &bytes).map_err(io("write"))
    }

    /// Says, durably, that of jobs which ended at or before these times something may be missing. To be called before it
    /// is; readers see it when this returns.
    pub fn move_horizons(&self, horizons: Horizons) -> Result<(), StoreError> {
        // Readers do not wait for the disk: nobody else changes it.
        let mut changed = self.reader.standing.gone().clone();
        let later = changed.horizons.later(horizons);
        if later == changed.horizons {
            return Ok(());
        }
        changed.horizons = later;
        changed.write(self.disk.as_ref())?;
        *self.reader.standing.gone() = changed;
        Ok(())
    }

    fn is_settled(&self, number: u32) -> bool {
        self.segments().iter().any(|segment| segment.number == number && segment.settled)
    }

    /// Removes a segment that is settled; false where it is not, or is gone already. Once this returns it is gone for
    /// good, whatever happens to the process in between.
    pub fn remove(&self, number: u32) -> Result<bool, StoreError> {
        if !self.is_settled(number) {
            return Ok(false);
        }
        let mut changed = self.reader.standing.gone().clone();
        changed.segments.insert(number);
        changed.write(self.disk.as_ref())?;
        *self.reader.standing.gone() = changed;
        {
            let mut segments = self.reader.segments.write().unwrap_or_else(PoisonError::into_inner);
            segments.retain(|segment| segment.number != number);
        }
        remove_files(self.disk.as_ref(), number, &[name(number), note_name(number)])?;
        Ok(true)
    }
}

/// Removes what there is of a segment that is named as gone.
pub(crate) fn remove_files(disk: &dyn Disk, number: u32, names: &[String]) -> Result<(), StoreError> {
    for file in [name(number), note_name(number)] {
        if !names.contains(&file) {
            continue;
        }
        match disk.remove(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io(&file, "remove", error));
            }
            _ => {}
        }
    }
    Ok(())
}
