//! What was taken out of history: which segments, and of jobs of which end something may be missing. One small file, put
//! in the place of the one before, durable before the first of what it names is removed.

use std::collections::BTreeSet;

use crate::disk::Disk;
use crate::error::StoreError;

/// The file's name.
pub(crate) const GONE_FILE: &str = "history.gone";
const NEW_FILE: &str = "history.gone.new";
const MAGIC: &[u8; 8] = b"GREYGON1";

/// Of jobs that ended at or before these times something may be missing: wall clock, milliseconds since 1970. They only
/// grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Horizons {
    /// Streams that are blobs.
    pub logs_ms: u64,
    /// Output files that are blobs.
    pub results_ms: u64,
    /// Records, and with them proofs.
    pub history_ms: u64,
}

impl Horizons {
    /// The later of both, in each.
    #[must_use]
    pub fn later(self, other: Horizons) -> Horizons {
        Horizons {
            logs_ms: self.logs_ms.max(other.logs_ms),
            results_ms: self.results_ms.max(other.results_ms),
            history_ms: self.history_ms.max(other.history_ms),
        }
    }
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Gone {
    pub(crate) horizons: Horizons,
    /// Numbers of segments that were removed.
    pub(crate) segments: BTreeSet<u32>,
}

/// Neighbours as ranges of first and last: a node that is years old has removed most of its segments.
fn ranges(segments: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in segments {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

impl Gone {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let Horizons { logs_ms, results_ms, history_ms } = self.horizons;
        [logs_ms, results_ms, history_ms].iter().for_each(|time| bytes.extend(time.to_le_bytes()));
        for (first, last) in ranges(&self.segments) {
            bytes.extend(first.to_le_bytes());
            bytes.extend(last.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], most: u32) -> Option<Gone> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let rest = body.strip_prefix(MAGIC.as_slice())?;
        let (logs, rest) = rest.split_first_chunk::<8>()?;
        let (results, rest) = rest.split_first_chunk::<8>()?;
        let (history, rest) = rest.split_first_chunk::<8>()?;
        let horizons = Horizons {
            logs_ms: u64::from_le_bytes(*logs),
            results_ms: u64::from_le_bytes(*results),
            history_ms: u64::from_le_bytes(*history),
        };
        let mut segments = BTreeSet::new();
        let pairs = rest.chunks_exact(8);
        if !pairs.remainder().is_empty() {
            return None;
        }
        for pair in pairs {
            let (first, last) = pair.split_first_chunk::<4>()?;
            let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(last.try_into().ok()?));
            // Only what lies before the checkpoint's segment is ever removed.
            if first > last || last >= most {
                return None;
            }
            segments.extend(first..=last);
        }
        Some(Gone { horizons, segments })
    }

    /// Reads the file. Nothing is gone where there is none. Segments are numbered below `most`.
    pub(crate) fn read(disk: &dyn Disk, names: &[String], most: u32) -> Result<Gone, StoreError> {
        if !names.iter().any(|name| name == GONE_FILE) {
            return Ok(Gone::default());
        }
        let medium = disk.open(GONE_FILE).map_err(|error| StoreError::io(GONE_FILE, "open", error))?;
        let length = medium.length().map_err(|error| StoreError::io(GONE_FILE, "measure", error))?;
        let mut bytes = vec![0; usize::try_from(length.min(1 << 30)).unwrap_or(0)];
        medium.read_at(0, &mut bytes).map_err(|error| StoreError::io(GONE_FILE, "read", error))?;
        Gone::decode(&bytes, most).ok_or_else(|| {
            StoreError::damaged(GONE_FILE, "byte 0", "it does not decode, so nobody knows what was removed")
        })
    }

    /// Puts it in the place of the file before; durable when this returns.
    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        let io = |action| move |error| StoreError::io(NEW_FILE, action, error);
        let medium = disk.open(NEW_FILE).map_err(io("open"))?;
        medium.set_len(0).map_err(io("cut"))?;
        medium.write_at(0, &self.encode()).map_err(io("write"))?;
        medium.sync().map_err(io("sync"))?;
        disk.replace(NEW_FILE, GONE_FILE).map_err(|error| StoreError::io(GONE_FILE, "replace", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_as_written_and_no_flipped_bit_is_passed_over() {
        let horizons = Horizons { logs_ms: 3, results_ms: 1 << 40, history_ms: 7 };
        let gone = Gone { horizons, segments: [0, 1, 2, 5, 9, 10].into() };
        let bytes = gone.encode();
        assert_eq!(Gone::decode(&bytes, 11).as_ref(), Some(&gone));
        assert_eq!(Gone::decode(&bytes, 10), None, "a segment that cannot be gone");
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert_eq!(Gone::decode(&damaged, 11), None, "byte {place}");
            assert_eq!(Gone::decode(&bytes[..place], 11), None, "cut at {place}");
        }
    }
}
