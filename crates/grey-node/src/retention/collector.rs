//! The thread that removes what is no longer kept.
//!
//! One look goes like this, in an order that leaves no gap: remember what is put from now on; say what may be removed, and
//! wait for those who are naming earlier tasks; mark what results on their way name, then what live jobs name, then what
//! records name that are kept; remove segments that are over; remove blobs without a mark. Every step is small, and after
//! each the thread rests longer than it worked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use grey_blob::{BlobError, BlobStore, FOLDERS, Sweep};
use grey_core::BlobReference;
use grey_proof::Digest;
use grey_store::{HistoryCollector, Horizons, SegmentFacts, StoreError};
use tokio::sync::oneshot;

use super::live::Asker;
use super::marks::Marks;
use super::note::{Gathered, Note, Role};
use super::{Cutoffs, Keeping};
use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::control::Message;
use crate::error::NodeError;
use crate::identity::random;
use crate::items;
use crate::records::Records;
use crate::threads::{SideRequest, spawn};
use crate::worker::WorkerMessage;

/// How much of a segment is read at once, in bytes.
const READ_BYTES: usize = 1024 * 1024;
/// The thread rests so many times as long as it worked, up to this at once: a tenth of one processor at most.
const RESTS: u32 = 9;
const LONGEST_REST: Duration = Duration::from_secs(2);
/// A look begins at the earliest after so many times what the last one took.
const LOOKS_APART: u32 = 4;
/// How long a copy that is missing on this server may stay unnoticed.
const COPIES_WITHIN: Duration = Duration::from_secs(60);
/// When a server that has started looks for the first time.
const FIRST_COPIES_AFTER: Duration = Duration::from_secs(1);
/// The lowest priority that a thread can have.
const LOWEST_PRIORITY: i32 = 19;

/// Why a look ends before it is done.
pub(crate) enum Stop {
    /// The node ends.
    Ended,
    /// Something failed; it is tried again the next time.
    Failed(String),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Failed(error.to_string())
    }
}

impl From<BlobError> for Stop {
    fn from(error: BlobError) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// What the collector works with.
pub(crate) struct CollectorWiring {
    pub(crate) history: HistoryCollector,
    pub(crate) blobs: Arc<BlobStore>,
    pub(crate) keeping: Arc<Keeping>,
    pub(crate) asker: Asker,
    /// Blobs of other servers, where there are any.
    pub(crate) among_others: Option<Arc<Blobs>>,
    /// The worker of this process, where it has one.
    pub(crate) worker: Option<Sender<WorkerMessage>>,
    pub(crate) side: SyncSender<SideRequest>,
}

struct Collector {
    wiring: CollectorWiring,
    records: Records,
    /// Closed when the node ends.
    ended: Receiver<()>,
    /// Since when it has worked without a rest.
    working_since: Instant,
    marks_bytes: usize,
    /// Notes of segments that may still come again from the log, with how long these were.
    passing: BTreeMap<u32, (u64, Note)>,
}

/// Starts the thread; it ends soon after the sender is dropped.
pub(crate) fn collector_thread(
    wiring: CollectorWiring,
    ended: Receiver<()>,
) -> Result<JoinHandle<()>, NodeError> {
    spawn("collector", move || {
        // Only this thread's priority; without it the rests alone hold it back.
        let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
        let records = Records(wiring.history.reader().clone());
        let (working_since, passing) = (Instant::now(), BTreeMap::new());
        Collector { wiring, records, ended, working_since, marks_bytes: 0, passing }.run();
    })
}

impl Collector {
    fn run(mut self) {
        let mut pause = self.first_pause();
        loop {
            if self.sleep(pause).is_err() {
                return;
            }
            let begun = Instant::now();
            self.working_since = begun;
            match self.look() {
                Ok(()) => {}
                Err(Stop::Ended) => return,
                Err(Stop::Failed(reason)) => {
                    tracing::warn!(reason, "what is no longer kept could not be removed");
                }
            }
            pause = self.pause().max(begun.elapsed() * LOOKS_APART);
        }
    }

    /// Among other servers, copies that are missing here are not to be missing for long.
    fn pause(&self) -> Duration {
        let pause = self.wiring.keeping.policy.pause();
        if self.wiring.among_others.is_some() { pause.min(COPIES_WITHIN) } else { pause }
    }

    /// A server that enters, or was away, begins with what it misses.
    fn first_pause(&self) -> Duration {
        if self.wiring.among_others.is_some() { self.pause().min(FIRST_COPIES_AFTER) } else { self.pause() }
    }

    fn sleep(&self, time: Duration) -> Result<(), Stop> {
        match self.ended.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stop::Ended),
        }
    }

    /// To be called after each small step.
    fn rest(&mut self) -> Result<(), Stop> {
        let worked = self.working_since.elapsed();
        self.sleep((worked * RESTS).min(LONGEST_REST))?;
        self.working_since = Instant::now();
        Ok(())
    }

    fn look(&mut self) -> Result<(), Stop> {
        let mut sweep = self.wiring.blobs.begin_sweep();
        let cutoffs = self.wiring.keeping.announce(wall_ms());
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] =
            random().map_err(|error| Stop::Failed(error.to_string()))?;
        let seed =
            [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])];
        let mut marks = Marks::new(self.marks_bytes, seed);
        let mut lists = BTreeSet::new();
        self.mark_unreported(&mut marks)?;
        let needed = self.mark_needed(&mut marks, &mut lists)?;
        let over = self.mark_recorded(&cutoffs, &needed, &mut marks, &mut lists)?;
        self.marks_bytes = marks.next_bytes();
        let segments = self.remove_segments(&over)?;
        self.remove_blobs(&cutoffs, &marks, &mut sweep)?;
        self.wiring.keeping.looked(wall_ms(), &sweep.swept, segments);
        Ok(())
    }

    /// Marks what results name that have not become records yet.
    fn mark_unreported(&mut self, marks: &mut Marks) -> Result<(), Stop> {
        let Some(worker) = &self.wiring.worker else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        worker.send(WorkerMessage::Unreported(reply)).map_err(|_| Stop::Ended)?;
        let unreported = answer.blocking_recv().map_err(|_| Stop::Ended)?;
        unreported.iter().for_each(|digest| marks.insert(digest));
        self.rest()
    }

    /// Marks what live jobs name, and returns the earlier jobs whose output files they take.
    fn mark_needed(
        &mut self,
        marks: &mut Marks,
        lists: &mut BTreeSet<Digest>,
    ) -> Result<BTreeSet<u64>, Stop> {
        let (mut found, mut named) = (Vec::new(), Vec::new());
        let ended = &self.ended;
        let needed = self.wiring.asker.needed(
            |blob, is_list| {
                marks.insert(&blob.digest);
                named.push(blob.digest);
                if is_list {
                    found.push(blob);
                }
                Ok(())
            },
            || match ended.recv_timeout(Duration::from_millis(1)) {
                Err(RecvTimeoutError::Timeout) => Ok(()),
                _ => Err(Stop::Ended),
            },
        )?;
        for digest in named {
            self.copy_here(&digest)?;
        }
        for list in found {
            self.mark_list(list, marks, lists)?;
        }
        let mut jobs = BTreeSet::new();
        for task in needed.tasks {
            jobs.extend(self.records.job_of(task)?.map(|(job, _)| job.0));
            self.rest()?;
        }
        Ok(jobs)
    }

    /// Marks the files that a list of items names.
    fn mark_list(
        &mut self,
        list: BlobReference,
        marks: &mut Marks,
        lists: &mut BTreeSet<Digest>,
    ) -> Result<(), Stop> {
        if !lists.insert(list.digest) {
            return Ok(());
        }
        // What is damaged or gone names nothing that anybody could have.
        match self.wiring.asker.runtime.block_on(self.wiring.blobs.verified_path(&list.digest)) {
            Err(BlobError::NotFound { .. } | BlobError::Damaged { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(path) => {
                let walked = items::files(&path, |digest| marks.insert(&digest));
                walked.map_err(|error| Stop::Failed(format!("a list of items: {error}")))?;
            }
        }
        self.rest()
    }

    /// Marks what kept records name, and returns the segments of which nothing is kept, with the last end of each.
    fn mark_recorded(
        &mut self,
        cutoffs: &Cutoffs,
        needed: &BTreeSet<u64>,
        marks: &mut Marks,
        lists: &mut BTreeSet<Digest>,
    ) -> Result<Vec<(u32, u64)>, Stop> {
        let (mut over, mut wants_checkpoint) = (Vec::new(), false);
        let segments = self.wiring.history.segments();
        self.passing.retain(|number, _| segments.iter().any(|segment| segment.number == *number));
        for segment in segments {
            let note = self.note(&segment)?;
            if segment.sealed && note.is_over(cutoffs, needed.iter().copied()) {
                if segment.settled {
                    over.push((segment.number, note.last_end_ms));
                    continue;
                }
                wants_checkpoint = true;
            }
            let oldest_ms = note.first_end_ms.map_or(0, |end_ms| wall_ms().saturating_sub(end_ms));
            if !segment.sealed && oldest_ms > self.wiring.keeping.policy.open_ms() {
                let seal = SideRequest::Seal(segment.number);
                self.wiring.side.send(seal).map_err(|_| Stop::Ended)?;
                wants_checkpoint = true;
            }
            for named in
                note.named.iter().filter(|named| needed.contains(&named.job) || named.is_kept(cutoffs))
            {
                marks.insert(&named.blob.digest);
                self.copy_here(&named.blob.digest)?;
                if named.role == Role::List {
                    self.mark_list(named.blob, marks, lists)?;
                }
            }
            self.keep_note(&segment, note);
            self.rest()?;
        }
        if wants_checkpoint {
            self.wiring.asker.control.send(Message::Checkpoint).map_err(|_| Stop::Ended)?;
        }
        Ok(over)
    }

    /// Fetches what is kept and not here: this server was away when it came, or lost it.
    fn copy_here(&mut self, digest: &Digest) -> Result<(), Stop> {
        let Some(blobs) = &self.wiring.among_others else { return Ok(()) };
        if blobs.local.path_of(digest).exists() {
            return Ok(());
        }
        if let Err(error) = self.wiring.asker.runtime.block_on(blobs.copy_here(digest)) {
            tracing::debug!(%digest, %error, "a copy did not come; it is tried again at the next look");
        }
        self.rest()
    }

    fn keep_note(&mut self, segment: &SegmentFacts, note: Note) {
        if segment.settled {
            self.passing.remove(&segment.number);
        } else {
            self.passing.insert(segment.number, (segment.bytes, note));
        }
    }

    /// What there is to know of a segment, as it was noted where that still holds.
    fn note(&mut self, segment: &SegmentFacts) -> Result<Note, Stop> {
        let noted = if segment.settled {
            self.wiring.history.note(segment.number).and_then(|bytes| Note::decode(&bytes))
        } else {
            let passing = self.passing.remove(&segment.number);
            passing.filter(|(bytes, _)| *bytes == segment.bytes).map(|(_, note)| note)
        };
        if let Some(note) = noted
            && self.wiring.asker.live_of(&note.live)?.len() == note.live.len()
        {
            return Ok(note);
        }
        let note = self.gathered(segment.number)?;
        if segment.settled
            && let Err(error) = self.wiring.history.put_note(segment.number, &note.encode())
        {
            // A full disk is when it matters most that the look goes on.
            tracing::warn!(%error, "what a segment says could not be noted; it is read again the next time");
        }
        Ok(note)
    }

    /// Reads a segment through.
    fn gathered(&mut self, number: u32) -> Result<Note, Stop> {
        let (mut gathered, mut from) = (Gathered::default(), Some(0));
        while let Some(place) = from {
            let batch = self.wiring.history.records(number, place, READ_BYTES)?;
            for (key, bytes) in &batch.records {
                gathered.add(*key, bytes)?;
            }
            from = batch.next;
            self.rest()?;
        }
        let live = self.wiring.asker.live_of(&gathered.unknown())?;
        let records = &self.records;
        gathered.finish(live, |job| Ok(records.end_of(job)?))
    }

    fn remove_segments(&mut self, over: &[(u32, u64)]) -> Result<u64, Stop> {
        let mut removed = 0;
        let Some(history_ms) = over.iter().map(|(_, last_end_ms)| *last_end_ms).max() else {
            return Ok(removed);
        };
        self.wiring.history.move_horizons(Horizons { history_ms, ..Horizons::default() })?;
        for (number, _) in over {
            removed += u64::from(self.wiring.history.remove(*number)?);
            self.rest()?;
        }
        tracing::info!(segments = removed, "records that are no longer kept were removed");
        Ok(removed)
    }

    fn remove_blobs(&mut self, cutoffs: &Cutoffs, marks: &Marks, sweep: &mut Sweep) -> Result<(), Stop> {
        for folder in 0..FOLDERS {
            let (ended, history) = (&self.ended, &self.wiring.history);
            let mut since = self.working_since;
            let rest = || {
                let pause = (since.elapsed() * RESTS).min(LONGEST_REST);
                since = Instant::now() + pause;
                match ended.recv_timeout(pause) {
                    Err(RecvTimeoutError::Timeout) => Ok(()),
                    _ => Err(Stop::Ended),
                }
            };
            let horizons = Horizons { history_ms: 0, ..cutoffs.horizons };
            let before_first = || Ok(history.move_horizons(horizons)?);
            let folder = u8::try_from(folder).unwrap_or(u8::MAX);
            sweep.folder::<Stop>(folder, |digest| marks.has(digest), rest, before_first)?;
            self.rest()?;
        }
        let (blobs, bytes) = (sweep.swept.removed, sweep.swept.removed_bytes);
        if blobs > 0 {
            tracing::info!(blobs, bytes, "content that is no longer kept was removed");
        }
        Ok(())
    }
}
