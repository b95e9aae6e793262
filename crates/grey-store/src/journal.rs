//! A small durable map from numbers to bytes: the worker's outbox. One append and one sync a change.
//!
//! Each change begins with the file's mark, which is drawn by chance when the file is made. A change that was cut short is
//! told from a damaged one by whether another follows it, and what tasks put out lies in the changes: without the mark a task
//! could put out bytes that look like a change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::{Disk, Medium};
use crate::error::StoreError;

/// The file's name.
pub(crate) const JOURNAL_FILE: &str = "outbox.journal";
const NEW_FILE: &str = "outbox.journal.new";
const MAGIC: &[u8; 8] = b"GREYJNL2";
/// Room that is written ahead, so that a sync need not change the file's length or its blocks each time.
const STEP_BYTES: usize = 256 * 1024;
/// Garbage above which the file is written anew, when it is also more than half of it.
const GARBAGE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of the file's mark.
const MARK_BYTES: usize = 8;
/// Mark, length and checksum before a change.
const HEADER_BYTES: usize = MARK_BYTES + 8;
/// The largest change, in bytes.
const LARGEST_CHANGE_BYTES: usize = 64 * 1024 * 1024;

/// What one change does: entries to put, or to remove where there is no value.
type Change = Vec<(u64, Option<Vec<u8>>)>;

/// The outbox of one worker.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    medium: Arc<dyn Medium>,
    mark: [u8; MARK_BYTES],
    entries: BTreeMap<u64, Vec<u8>>,
    end: u64,
    room: u64,
    live_bytes: u64,
    failed: bool,
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
    move |error| StoreError::io(JOURNAL_FILE, action, error)
}

fn checksum(length: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), body)
}

/// One change as bytes: whole or not there, since one checksum covers it.
fn frame(mark: [u8; MARK_BYTES], change: &Change) -> Result<Vec<u8>, StoreError> {
    let body = postcard::to_allocvec(change).unwrap_or_default();
    let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= LARGEST_CHANGE_BYTES);
    let length = length
        .ok_or_else(|| StoreError::damaged(JOURNAL_FILE, "a new change", "it is too large to be written"))?
        .to_le_bytes();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&mark);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(length, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The change at the beginning of `bytes` and its whole length; `None` where no whole change stands.
fn parse(mark: [u8; MARK_BYTES], bytes: &[u8]) -> Option<(Change, usize)> {
    let rest = bytes.strip_prefix(&mark)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (stored, rest) = rest.split_first_chunk::<4>()?;
    let size = u32::from_le_bytes(*length) as usize;
    if size == 0 {
        return None;
    }
    let body = rest.get(..size)?;
    if checksum(*length, body) != u32::from_le_bytes(*stored) {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, HEADER_BYTES + size))
}

impl Journal {
    /// Opens the outbox. A change that was being written when the power went is cut off: it was never promised. One
    /// that is damaged before others is an error.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Journal, StoreError> {
        let medium = disk.open(JOURNAL_FILE).map_err(io("open"))?;
        let length = medium.length().map_err(io("measure"))?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        medium.read_at(0, &mut bytes).map_err(io("read"))?;
        let entries = BTreeMap::new();
        let (mark, end) = ([0; MARK_BYTES], (MAGIC.len() + MARK_BYTES) as u64);
        let mut journal =
            Journal { disk, medium, mark, entries, end, room: length, live_bytes: 0, failed: false };
        if bytes.iter().all(|byte| *byte == 0) {
            getrandom::fill(&mut journal.mark)
                .map_err(|error| io("mark")(std::io::Error::other(error.to_string())))?;
            journal.medium.write_at(0, &journal.header()).map_err(io("write"))?;
            journal.medium.sync().map_err(io("sync"))?;
            journal.room = journal.room.max(end);
            return Ok(journal);
        }
        match bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk()) {
            Some((mark, changes)) if *mark != [0; MARK_BYTES] => {
                journal.mark = *mark;
                journal.replay(changes)?;
                Ok(journal)
            }
            _ => {
                let what = "it is no outbox, or of another version";
                Err(StoreError::damaged(JOURNAL_FILE, "byte 0", what))
            }
        }
    }

    fn header(&self) -> Vec<u8> {
        [MAGIC.as_slice(), &self.mark].concat()
    }

    fn replay(&mut self, changes: &[u8]) -> Result<(), StoreError> {
        let mut rest = changes;
        while let Some((change, length)) = parse(self.mark, rest) {
            self.note(change);
            rest = rest.get(length..).unwrap_or_default();
        }
        self.end += (changes.len() - rest.len()) as u64;
        let used = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // A change is synced before the next one is written, so a whole change behind a broken one means damage.
        let mut marks = rest.windows(MARK_BYTES).take(used).enumerate().skip(1);
        let followed = marks.any(|(at, window)| {
            window == self.mark && rest.get(at..).and_then(|after| parse(self.mark, after)).is_some()
        });
        if followed {
            let place = format!("byte {}", self.end);
            return Err(StoreError::damaged(JOURNAL_FILE, place, "a change's checksum does not hold"));
        }
        if used > 0 {
            self.medium.write_at(self.end, &vec![0; used]).map_err(io("clear"))?;
            self.medium.sync().map_err(io("sync"))?;
        }
        Ok(())
    }

    fn note(&mut self, change: Change) {
        for (key, value) in change {
            let old = match value {
                Some(value) => {
                    self.live_bytes += value.len() as u64;
                    self.entries.insert(key, value)
                }
                None => self.entries.remove(&key),
            };
            self.live_bytes -= old.map_or(0, |old| old.len() as u64);
        }
    }

    /// Everything in it, by key.
    pub fn entries(&self) -> &BTreeMap<u64, Vec<u8>> {
        &self.entries
    }

    /// Puts entries, or removes them where there is no value; all of it is durable when this returns. After an error
    /// nothing more is taken and the node must end.
    pub fn change(&mut self, change: Vec<(u64, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed { file: JOURNAL_FILE.to_owned() });
        }
        if change.is_empty() {
            return Ok(());
        }
        let mut bytes = frame(self.mark, &change)?;
        self.failed = true;
        let end = self.end + bytes.len() as u64;
        if end > self.room {
            bytes.resize(bytes.len() + STEP_BYTES, 0);
            self.room = self.end + bytes.len() as u64;
        }
        self.medium.write_at(self.end, &bytes).map_err(io("write"))?;
        self.medium.sync().map_err(io("sync"))?;
        self.end = end;
        self.note(change);
        let garbage = self.end.saturating_sub(self.live_bytes);
        if garbage > GARBAGE_BYTES && garbage > self.live_bytes {
            self.write_anew()?;
        }
        self.failed = false;
        Ok(())
    }

    fn write_anew(&mut self) -> Result<(), StoreError> {
        let mut bytes = self.header();
        for (key, value) in &self.entries {
            bytes.extend(frame(self.mark, &vec![(*key, Some(value.clone()))])?);
        }
        let medium = self.disk.open(NEW_FILE).map_err(io("create"))?;
        medium.set_len(0).map_err(io("cut"))?;
        medium.write_at(0, &bytes).map_err(io("write"))?;
        medium.sync().map_err(io("sync"))?;
        self.disk.replace(NEW_FILE, JOURNAL_FILE).map_err(io("replace"))?;
        self.medium = medium;
        self.end = bytes.len() as u64;
        self.room = self.end;
        Ok(())
    }
}
