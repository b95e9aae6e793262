//! A disk behind the store's port: it forgets what was not synced, in parts of 512 bytes, and can fail in every way that
//! a disk fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grey_store::{Disk, Medium};

use crate::random::Stream;

/// The part of a write that a disk keeps or loses as a whole.
pub const SECTOR_BYTES: usize = 512;

/// What is in the system's cache and not on the medium.
#[derive(Debug, Clone)]
enum Change {
    /// A write of so many bytes at an offset. What it wrote stands in the current content, unless a later change touched it and it
    /// was put aside before.
    Write {
        offset: usize,
        length: usize,
        aside: Option<Vec<u8>>,
    },
    Length(usize),
}

impl Change {
    /// What a write wrote.
    fn data<'a>(&'a self, current: &'a [u8]) -> &'a [u8] {
        match self {
            Change::Write { aside: Some(data), .. } => data,
            Change::Write { offset, length, aside: None } => {
                current.get(*offset..offset + length).unwrap_or_default()
            }
            Change::Length(_) => &[],
        }
    }

    fn apply(&self, content: &mut Vec<u8>, current: &[u8]) {
        match self {
            Change::Write { offset, .. } => write(content, *offset, self.data(current)),
            Change::Length(length) => content.resize(*length, 0),
        }
    }
}

fn write(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    if let Some(place) = content.get_mut(offset..end) {
        place.copy_from_slice(data);
    }
}

#[derive(Debug, Clone, Default)]
struct Contents {
    /// What survives a power cut in any case.
    durable: Vec<u8>,
    /// What the system's cache says.
    current: Vec<u8>,
    unsynced: Vec<Change>,
    /// How far anything was ever written, in bytes.
    written: usize,
}

/// How a sync ends that is not to go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncFault {
    /// It says that it failed; nobody knows what it wrote.
    Error,
    /// The power goes before it returns.
    PowerOff,
}

#[derive(Debug, Clone, Default)]
struct Inner {
    files: BTreeMap<String, Contents>,
    /// What becomes of a sync, after so many that go well.
    sync_fault: Option<(u32, SyncFault)>,
    /// Nothing works any more.
    dead: bool,
    /// Nothing may grow.
    full: bool,
    /// A draw that decides which part of the next sync lands elsewhere.
    misdirect: Option<u64>,
    misdirected: u64,
}

/// The disk of one node.
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct SimulatedMedium {
    disk: SimulatedDisk,
    name: Mutex<String>,
}

impl SimulatedDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a sync fail after so many that go well.
    pub fn fail_sync(&self, after: u32, fault: SyncFault) {
        self.inner().sync_fault = Some((after, fault));
    }

    /// Whether there is room to grow.
    pub fn set_full(&self, full: bool) {
        self.inner().full = full;
    }

    /// Lets a part of the next sync land elsewhere.
    pub fn misdirect(&self, draw: u64) {
        self.inner().misdirect = Some(draw);
    }

    /// Lets every sync and write go well from now on.
    pub fn spare(&self) {
        let mut inner = self.inner();
        (inner.misdirect, inner.sync_fault) = (None, None);
    }

    /// How many parts landed elsewhere so far.
    pub fn misdirected(&self) -> u64 {
        self.inner().misdirected
    }

    /// What a new life of the process finds: the system's cache is still there.
    pub fn after_kill(&self) -> SimulatedDisk {
        let mut inner = self.inner().clone();
        (inner.sync_fault, inner.dead) = (None, false);
        SimulatedDisk(Arc::new(Mutex::new(inner)))
    }

    /// What a new life finds after a power cut: everything synced, and of the rest what chance kept; whole writes, or any
    /// sectors of them where `torn`. Also whether something was lost, and whether something was torn.
    pub fn after_power_cut(&self, torn: bool, chance: &mut Stream) -> (SimulatedDisk, bool, bool) {
        let inner = self.inner();
        let (mut files, mut lost, mut tore) = (BTreeMap::new(), false, false);
        // Sometimes all of it, sometimes nothing, mostly any part.
        let mode = chance.below(8);
        for (name, contents) in &inner.files {
            let mut content = contents.durable.clone();
            for change in &contents.unsynced {
                let mut keeps = || match mode {
                    0 => true,
                    1 => false,
                    _ => chance.below(2) == 0,
                };
                match change {
                    Change::Write { offset, .. } if torn => {
                        let data = change.data(&contents.current);
                        let (mut done, mut kept) = (0, [false; 2]);
                        while done < data.len() {
                            let at = offset + done;
                            let part = (SECTOR_BYTES - at % SECTOR_BYTES).min(data.len() - done);
                            let keep = keeps();
                            kept[usize::from(keep)] = true;
                            if keep {
                                write(&mut content, at, data.get(done..done + part).unwrap_or_default());
                            }
                            done += part;
                        }
                        lost |= kept[0];
                        tore |= kept == [true, true];
                    }
                    Change::Write { .. } | Change::Length(_) => {
                        if keeps() {
                            change.apply(&mut content, &contents.current);
                        } else {
                            lost = true;
                        }
                    }
                }
            }
            let found = Contents {
                durable: content.clone(),
                current: content,
                unsynced: Vec::new(),
                written: contents.written,
            };
            files.insert(name.clone(), found);
        }
        let found = Inner { files, full: inner.full, misdirected: inner.misdirected, ..Inner::default() };
        (SimulatedDisk(Arc::new(Mutex::new(found))), lost, tore)
    }

    /// From now on nothing is done here any more.
    pub fn die(&self) {
        self.inner().dead = true;
    }

    /// What the medium itself holds once everything is written to it, also where that is not what was meant.
    pub fn as_it_lies(&self) -> SimulatedDisk {
        let mut inner = self.inner().clone();
        for contents in inner.files.values_mut() {
            contents.make_durable(None);
            contents.current = contents.durable.clone();
        }
        (inner.sync_fault, inner.dead, inner.misdirect) = (None, false, None);
        SimulatedDisk(Arc::new(Mutex::new(inner)))
    }

    /// Forgets that something landed elsewhere: it has been looked at.
    pub fn reset(&self) {
        self.inner().misdirected = 0;
    }

    /// A copy of its own, with room and without faults.
    pub fn copy(&self) -> SimulatedDisk {
        let files = self.inner().files.clone();
        SimulatedDisk(Arc::new(Mutex::new(Inner { files, ..Inner::default() })))
    }

    /// Puts something else into one used sector; which file and where. Nothing happens on an empty disk.
    pub fn corrupt(&self, chance: &mut Stream) -> Option<(String, usize)> {
        let mut inner = self.inner();
        // Not what is no zero: builds of the database differ in what they leave in the bytes that they do not use.
        let used = |contents: &Contents| contents.written.min(contents.current.len());
        let files: Vec<(String, usize)> = inner
            .files
            .iter()
            .map(|(name, contents)| (name.clone(), used(contents)))
            .filter(|(_, used)| *used > 0)
            .collect();
        let (name, used) = chance.pick(&files)?.clone();
        let sector = chance.index(used.div_ceil(SECTOR_BYTES)) * SECTOR_BYTES;
        let contents = inner.files.get_mut(&name)?;
        let end = (sector + SECTOR_BYTES).min(contents.current.len());
        match chance.below(3) {
            0 => {
                let at = sector + chance.index(end - sector);
                let bit = 1u8 << chance.below(8);
                contents.current.get_mut(at).into_iter().for_each(|byte| *byte ^= bit);
            }
            1 => contents.current.get_mut(sector..end)?.fill(0),
            _ => {
                let draw = chance.next().to_le_bytes();
                let place = contents.current.get_mut(sector..end)?;
                place.iter_mut().zip(draw.iter().cycle()).for_each(|(byte, noise)| *byte = *noise);
            }
        }
        contents.durable = contents.current.clone();
        contents.unsynced.clear();
        Some((name, sector))
    }
}

impl Inner {
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn may_grow(&mut self, from: usize, to: usize) -> io::Result<()> {
        self.alive()?;
        if self.full && to > from {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.alive()?;
        match &mut self.sync_fault {
            Some((0, SyncFault::PowerOff)) => {
                self.dead = true;
                self.alive()
            }
            Some((0, SyncFault::Error)) => {
                self.sync_fault = None;
                Err(io::Error::other("the disk failed to sync"))
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Contents {
    /// Everything written becomes durable; one sector of it in another place where a draw says so.
    fn make_durable(&mut self, misdirect: Option<u64>) -> bool {
        let mut misdirected = false;
        let writes = self.unsynced.iter().filter(|change| matches!(change, Change::Write { .. })).count();
        let victim = misdirect.map(|draw| draw as usize % writes.max(1));
        let mut seen = 0;
        for change in &self.unsynced {
            if let Change::Write { offset, length, .. } = change {
                if victim == Some(seen) && *length >= SECTOR_BYTES && !self.durable.is_empty() {
                    let draw = misdirect.unwrap_or(0) >> 32;
                    let sectors = (self.durable.len() / SECTOR_BYTES).max(1) as u64;
                    let elsewhere = (draw % sectors) as usize * SECTOR_BYTES;
                    misdirected |= elsewhere != *offset;
                    write(&mut self.durable, elsewhere, change.data(&self.current));
                    seen += 1;
                    continue;
                }
                seen += 1;
            }
            change.apply(&mut self.durable, &self.current);
        }
        self.unsynced.clear();
        misdirected
    }

    /// Puts aside what unsynced writes wrote from `from` up to and without `to`, which is about to change.
    fn put_aside(&mut self, from: usize, to: usize) {
        for change in &mut self.unsynced {
            if let Change::Write { offset, length, aside } = change
                && aside.is_none()
                && *offset < to
                && from < *offset + *length
            {
                *aside = self.current.get(*offset..*offset + *length).map(<[u8]>::to_vec);
            }
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        self.put_aside(offset, end);
        write(&mut self.current, offset, data);
        self.written = self.written.max(end);
        self.unsynced.push(Change::Write { offset, length: data.len(), aside: None });
    }

    fn set_len(&mut self, length: usize) {
        self.put_aside(length, usize::MAX);
        self.current.resize(length, 0);
        self.written = self.written.min(length);
        self.unsynced.push(Change::Length(length));
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let mut inner = self.inner();
        inner.alive()?;
        inner.files.entry(name.to_owned()).or_default();
        Ok(Arc::new(SimulatedMedium { disk: self.clone(), name: Mutex::new(name.to_owned()) }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.inner();
        inner.alive()?;
        Ok(inner.files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.alive()?;
        inner.files.remove(name);
        Ok(())
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.alive()?;
        let contents = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_owned(), contents);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.inner().alive()
    }
}

impl SimulatedMedium {
    /// An open file follows its content to another name, as it does in a file system.
    fn with<T>(&self, inner: &mut Inner, act: impl FnOnce(&mut Contents) -> io::Result<T>) -> io::Result<T> {
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.files.contains_key(name.as_str()) {
            *name = name.trim_end_matches(".new").to_owned();
        }
        act(inner.files.get_mut(name.as_str()).ok_or(io::ErrorKind::NotFound)?)
    }

    /// Changes the content, which reaches to `to` afterwards or further.
    fn change(&self, to: usize, change: impl FnOnce(&mut Contents)) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let present = self.with(&mut inner, |contents| Ok(contents.current.len()))?;
        inner.may_grow(present, to)?;
        self.with(&mut inner, |contents| {
            change(contents);
            Ok(())
        })
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Medium for SimulatedMedium {
    fn length(&self) -> io::Result<u64> {
        let mut inner = self.disk.inner();
        inner.alive()?;
        self.with(&mut inner, |contents| Ok(contents.current.len() as u64))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = position(offset)?;
        let mut inner = self.disk.inner();
        inner.alive()?;
        self.with(&mut inner, |contents| {
            let found = contents.current.get(offset..offset.saturating_add(out.len()));
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = position(offset)?;
        self.change(offset + data.len(), |contents| contents.write(offset, data))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = position(length)?;
        self.change(length, |contents| contents.set_len(length))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.sync()?;
        let misdirect = inner.misdirect;
        let misdirected = self.with(&mut inner, |contents| Ok(contents.make_durable(misdirect)))?;
        if misdirected {
            inner.misdirect = None;
            inner.misdirected += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(disk: &SimulatedDisk) -> Vec<u8> {
        let medium = disk.open("file").unwrap();
        let mut found = vec![0; usize::try_from(medium.length().unwrap()).unwrap()];
        medium.read_at(0, &mut found).unwrap();
        found
    }

    #[test]
    fn what_was_synced_survives_a_power_cut_and_a_sector_is_whole_or_not_there() {
        let (mut lost_any, mut tore_any) = (false, false);
        for seed in 0..50 {
            let disk = SimulatedDisk::default();
            let medium = disk.open("file").unwrap();
            medium.write_at(0, &[1; 2_048]).unwrap();
            medium.sync().unwrap();
            medium.write_at(0, &[2; 1_536]).unwrap();
            let (after, lost, tore) = disk.after_power_cut(true, &mut Stream::new(seed, 1));
            let found = content(&after);
            assert_eq!(found.len(), 2_048);
            let sectors: Vec<&[u8]> = found.chunks(SECTOR_BYTES).collect();
            assert!(sectors.iter().all(|sector| *sector == [1; 512] || *sector == [2; 512]));
            assert_eq!(sectors[3], [1; 512]);
            assert_eq!(lost, sectors[..3].contains(&&[1; 512][..]));
            (lost_any, tore_any) = (lost_any | lost, tore_any | tore);
        }
        assert!(lost_any && tore_any);
    }

    #[test]
    fn a_power_cut_may_keep_an_earlier_write_without_the_one_that_followed_it() {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let disk = SimulatedDisk::default();
            let medium = disk.open("file").unwrap();
            medium.write_at(0, &[1; 8]).unwrap();
            medium.sync().unwrap();
            medium.write_at(0, &[2; 8]).unwrap();
            medium.write_at(4, &[3; 4]).unwrap();
            medium.set_len(6).unwrap();
            medium.set_len(8).unwrap();
            assert_eq!(content(&disk), [2, 2, 2, 2, 3, 3, 0, 0]);
            found.insert(content(&disk.after_power_cut(false, &mut Stream::new(seed, 1)).0));
        }
        for expected in [[1; 8], [2; 8], [1, 1, 1, 1, 3, 3, 3, 3], [2, 2, 2, 2, 3, 3, 0, 0]] {
            assert!(found.contains(expected.as_slice()), "{expected:?} is not in {found:?}");
        }
    }

    #[test]
    fn a_kill_loses_nothing_that_the_system_has() {
        let disk = SimulatedDisk::default();
        disk.open("file").unwrap().write_at(0, &[7; 100]).unwrap();
        assert_eq!(content(&disk.after_kill()), [7; 100]);
    }

    #[test]
    fn a_full_disk_takes_only_what_does_not_grow_a_file() {
        let disk = SimulatedDisk::default();
        let medium = disk.open("file").unwrap();
        medium.write_at(0, &[7; 100]).unwrap();
        disk.set_full(true);
        medium.write_at(50, &[8; 50]).unwrap();
        let refused = medium.write_at(60, &[8; 50]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }
}
