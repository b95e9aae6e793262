//! A server's content as one stream of bytes: the state as of one entry, with the history and the tree up to it, and beside them what
//! their owner adds. It ends with a digest of itself, so that one that was cut short or changed is known for it.
//!
//! Each part is its kind, its length and its checksum, four bytes each but the kind, little-endian, and then its content.

use std::io::{Read, Write};
use std::sync::Arc;

use grey_proof::{Digest, StreamDigest};
use grey_replica::Installation;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointStore, FrozenRows, MembershipFact, SidePosition};
use crate::collector::HistoryCollector;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::history::{HistoryWriter, RecordKey};
use crate::storage::StorageOptions;
use crate::tree::TreeFile;

const MAGIC: &[u8; 8] = b"GREYSNP1";
const WHAT: &str = "the snapshot";
/// The largest part, in bytes: a record of history with its key.
const LARGEST_PART_BYTES: usize = 65 * 1024 * 1024;
/// How much of history is read at once, in bytes.
const READ_BYTES: usize = 1024 * 1024;
/// How many hashes are one part.
const HASHES_A_PART: u64 = 8_192;
/// How many records are appended at once.
const RECORDS_AT_ONCE: usize = 1_024;

/// As of when a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// Index of the last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Who belonged to the cluster then.
    pub(crate) membership: MembershipFact,
    /// How many hashes the tree has.
    pub tree_hashes: u64,
    /// Runs of hashes that the tree does not have: first and the one after the last.
    pub tree_absent: Vec<(u64, u64)>,
}

/// One part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotPart {
    /// What its owner says of it; the first part.
    Header(Vec<u8>),
    /// As of when it is; before everything that follows.
    Facts(SnapshotFacts),
    /// A row of the state: key and content.
    Row(Vec<u8>, Vec<u8>),
    /// A record of history.
    Record(RecordKey, Vec<u8>),
    /// Hashes of the tree, 32 bytes each.
    Hashes(Vec<u8>),
    /// Content of its owner begins: its digest.
    Content(Digest),
    /// Some more of that content.
    Piece(Vec<u8>),
}

const HEADER: u8 = 1;
const FACTS: u8 = 2;
const ROW: u8 = 3;
const RECORD: u8 = 4;
const HASHES: u8 = 5;
const CONTENT: u8 = 6;
const PIECE: u8 = 7;
const END: u8 = 8;

/// A server's content as of its last checkpoint, whatever is written meanwhile.
#[derive(Debug)]
pub struct Frozen {
    pub(crate) rows: FrozenRows,
    pub(crate) history: HistoryCollector,
    pub(crate) tree: TreeFile,
}

impl Frozen {
    /// As of when it is.
    pub fn facts(&self) -> SnapshotFacts {
        let ((index, term, membership), (side, tree_absent)) = (self.rows.place(), self.rows.side());
        let membership = membership.clone();
        SnapshotFacts {
            index,
            term,
            membership,
            tree_hashes: side.tree_hashes,
            tree_absent: tree_absent.to_vec(),
        }
    }
}

/// Writes a snapshot.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    out: W,
    digest: StreamDigest,
}

fn unwritable(error: std::io::Error) -> StoreError {
    StoreError::io(WHAT, "write", error)
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins with what its owner says of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(out: W, header: &[u8]) -> Result<SnapshotWriter<W>, StoreError> {
        let mut writer = SnapshotWriter { out, digest: StreamDigest::new() };
        writer.bytes(MAGIC)?;
        writer.part(HEADER, &[header])?;
        Ok(writer)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.digest.update(bytes);
        self.out.write_all(bytes).map_err(unwritable)
    }

    fn part(&mut self, kind: u8, pieces: &[&[u8]]) -> Result<(), StoreError> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let checksum =
            pieces.iter().fold(crc32c::crc32c(&[kind]), |sum, piece| crc32c::crc32c_append(sum, piece));
        self.bytes(&[kind])?;
        self.bytes(&length.to_le_bytes())?;
        self.bytes(&checksum.to_le_bytes())?;
        pieces.iter().try_for_each(|piece| self.bytes(piece))
    }

    /// Writes a server's content; `record` is told of each record of history.
    ///
    /// # Errors
    /// When it cannot be read or written, or as `record` says.
    pub fn frozen(
        &mut self,
        frozen: &Frozen,
        mut record: impl FnMut(RecordKey, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let facts = frozen.facts();
        // Serialising to memory fails only for types without a known length, of which there are none here.
        self.part(FACTS, &[&postcard::to_allocvec(&facts).unwrap_or_default()])?;
        frozen.rows.each(|key, value| {
            let length = u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes();
            self.part(ROW, &[&length, key, value])
        })?;
        let (SidePosition { history_segment, history_bytes, .. }, _) = frozen.rows.side();
        for segment in frozen.history.segments() {
            let until = match segment.number.cmp(&history_segment) {
                core::cmp::Ordering::Less => u64::MAX,
                core::cmp::Ordering::Equal => history_bytes,
                core::cmp::Ordering::Greater => break,
            };
            let mut from = Some(0);
            while let Some(place) = from {
                let batch = frozen.history.records_until(segment.number, place, READ_BYTES, until)?;
                for (key, value) in &batch.records {
                    record(*key, value)?;
                    self.part(RECORD, &[&key.to_bytes(), value])?;
                }
                from = batch.next;
            }
        }
        let mut at = 0;
        while at < facts.tree_hashes {
            let count = HASHES_A_PART.min(facts.tree_hashes - at);
            self.part(HASHES, &[&frozen.tree.raw(at, count)?])?;
            at += count;
        }
        Ok(())
    }

    /// Begins content of its owner, which follows in pieces.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn content(&mut self, digest: &Digest) -> Result<(), StoreError> {
        self.part(CONTENT, &[&digest.0])
    }

    /// Some more of the content that was begun last.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.part(PIECE, &[bytes])
    }

    /// Ends it. Without this it is none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(self) -> Result<W, StoreError> {
        let SnapshotWriter { mut out, digest } = self;
        let (_, digest) = digest.finish();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&[END]), &digest.0);
        let mut bytes = vec![END];
        bytes.extend_from_slice(&32u32.to_le_bytes());
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&digest.0);
        out.write_all(&bytes).and_then(|()| out.flush()).map_err(unwritable)?;
        Ok(out)
    }
}

/// Reads a snapshot.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    input: R,
    digest: StreamDigest,
    read_bytes: u64,
    ended: bool,
}

impl<R: Read> SnapshotReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When it is no snapshot of this version.
    pub fn begin(input: R) -> Result<SnapshotReader<R>, StoreError> {
        let mut reader = SnapshotReader { input, digest: StreamDigest::new(), read_bytes: 0, ended: false };
        let mut magic = [0; 8];
        reader.fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(reader.damaged("it is no snapshot of this version"));
        }
        reader.digest.update(&magic);
        Ok(reader)
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::damaged(WHAT, format!("byte {}", self.read_bytes), what)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        match self.input.read_exact(bytes) {
            Ok(()) => {
                self.read_bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it is cut short"))
            }
            Err(error) => Err(StoreError::io(WHAT, "read", error)),
        }
    }

    /// The next part; nothing after the last one, when all of it was what had been written.
    ///
    /// # Errors
    /// When it is damaged or cut short.
    pub fn next_part(&mut self) -> Result<Option<SnapshotPart>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > LARGEST_PART_BYTES {
            return Err(self.damaged("a part's length is impossible"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        if crc32c::crc32c_append(crc32c::crc32c(&[kind]), &body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(self.damaged("a part's checksum does not hold"));
        }
        if kind == END {
            let digest = core::mem::replace(&mut self.digest, StreamDigest::new()).finish().1;
            if body != digest.0 {
                return Err(self.damaged("its digest does not hold"));
            }
            self.ended = true;
            return Ok(None);
        }
        self.digest.update(&head);
        self.digest.update(&body);
        self.decode(kind, body).map(Some)
    }

    fn decode(&self, kind: u8, body: Vec<u8>) -> Result<SnapshotPart, StoreError> {
        let wrong = || self.damaged("a part does not decode");
        Ok(match kind {
            HEADER => SnapshotPart::Header(body),
            FACTS => SnapshotPart::Facts(postcard::from_bytes(&body).map_err(|_| wrong())?),
            ROW => {
                let (length, rest) = body.split_first_chunk::<4>().ok_or_else(wrong)?;
                let length = u32::from_le_bytes(*length) as usize;
                let (key, value) = rest.split_at_checked(length).ok_or_else(wrong)?;
                SnapshotPart::Row(key.to_vec(), value.to_vec())
            }
            RECORD => {
                let (key, value) = RecordKey::split(&body).ok_or_else(wrong)?;
                SnapshotPart::Record(key, value.to_vec())
            }
            HASHES if body.len().is_multiple_of(32) => SnapshotPart::Hashes(body),
            CONTENT => SnapshotPart::Content(Digest(body.as_slice().try_into().map_err(|_| wrong())?)),
            PIECE => SnapshotPart::Piece(body),
            _ => return Err(wrong()),
        })
    }
}

/// Puts a snapshot into a directory that holds nothing. Nothing counts before [`Restoring::finish`].
#[derive(Debug)]
pub struct Restoring {
    checkpoint: CheckpointStore,
    history: HistoryWriter,
    tree: TreeFile,
    facts: SnapshotFacts,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    records: Vec<(RecordKey, Vec<u8>)>,
}

impl Restoring {
    /// Begins on a disk without a state.
    ///
    /// # Errors
    /// When there is a state, or the disk fails.
    pub fn begin(
        disk: &Arc<dyn Disk>,
        options: &StorageOptions,
        facts: SnapshotFacts,
    ) -> Result<Restoring, StoreError> {
        let (checkpoint, found) = CheckpointStore::open(disk.as_ref())?;
        if found.is_some() {
            let what = "the directory holds a state already";
            return Err(StoreError::damaged(crate::checkpoint::STATE_FILE, "its facts", what));
        }
        let history = HistoryWriter::open(disk.clone(), 0, 0, options.segment_bytes)?;
        let tree = TreeFile::open(disk.as_ref(), 0, Vec::new())?;
        Ok(Restoring { checkpoint, history, tree, facts, rows: Vec::new(), records: Vec::new() })
    }

    /// Takes a part in; `false` says that it is the owner's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take(&mut self, part: &SnapshotPart) -> Result<bool, StoreError> {
        match part {
            SnapshotPart::Row(key, value) => self.rows.push((key.clone(), value.clone())),
            SnapshotPart::Record(key, value) => {
                self.records.push((*key, value.clone()));
                if self.records.len() >= RECORDS_AT_ONCE {
                    self.append()?;
                }
            }
            SnapshotPart::Hashes(bytes) => {
                let hashes = bytes.chunks_exact(32).filter_map(|hash| hash.try_into().ok().map(Digest));
                self.tree.append(&hashes.collect::<Vec<Digest>>())?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn append(&mut self) -> Result<(), StoreError> {
        self.history.append(self.records.iter().map(|(key, value)| (*key, value.as_slice())))?;
        self.records.clear();
        Ok(())
    }

    /// The rows so far.
    pub fn rows(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.rows
    }

    /// Makes it what the directory holds; durable when this returns.
    ///
    /// # Errors
    /// When the snapshot was not whole, or the disk fails.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.append()?;
        if self.tree.hashes() != self.facts.tree_hashes {
            let what = format!("there are {} hashes of {}", self.tree.hashes(), self.facts.tree_hashes);
            return Err(StoreError::damaged(WHAT, "its hashes", what));
        }
        self.history.sync()?;
        self.tree.sync()?;
        let (history_segment, history_bytes) = self.history.position();
        let tree_hashes = self.facts.tree_hashes;
        let side = SidePosition { history_segment, history_bytes, tree_hashes };
        let (index, term) = (self.facts.index, self.facts.term);
        let membership = self.facts.membership.into();
        let installation = Installation { index, term, membership, rows: self.rows, tree_hashes };
        // What the other server lacked is lacking here too.
        let gap = if self.facts.tree_absent.is_empty() { 0 } else { self.facts.index };
        self.checkpoint.install(&installation, side, self.facts.tree_absent, gap)
    }
}
