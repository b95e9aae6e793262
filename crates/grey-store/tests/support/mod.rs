//! A disk that forgets: what was written and not synced may be there after a power cut, in any part and combination.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use grey_store::{Disk, Medium};

/// The part of a write that a disk keeps or loses as a whole.
const SECTOR_BYTES: usize = 512;

/// A seeded source of choices (xorshift64*).
pub struct Choices(u64);

impl Choices {
    pub fn new(seed: u64) -> Choices {
        Choices(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 40) as u8).collect()
    }
}

#[derive(Debug, Clone)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Unsynced {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Unsynced::Write(offset, data) => {
                if content.len() < offset + data.len() {
                    content.resize(offset + data.len(), 0);
                }
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
            Unsynced::Length(length) => content.resize(*length, 0),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Contents {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

/// What happens to the next operations that would change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// After so many the power is gone: nothing works any more.
    PowerOff(u64),
    /// After so many the disk is full: only writes that grow a file fail.
    Full(u64),
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<String, Contents>,
    fault: Option<Fault>,
    changes: u64,
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub struct ForgetfulDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct ForgetfulMedium {
    disk: ForgetfulDisk,
    name: Mutex<String>,
}

impl ForgetfulDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// From now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.inner().fault = fault;
    }

    /// Operations so far that changed something.
    pub fn changes(&self) -> u64 {
        self.inner().changes
    }

    /// What a new life finds after the power was cut: everything synced, and of the rest what chance kept.
    pub fn after_power_cut(&self, choices: &mut Choices) -> ForgetfulDisk {
        let inner = self.inner();
        let mut files = BTreeMap::new();
        // Sometimes all of it, sometimes nothing, mostly any part.
        let mode = choices.below(8);
        let keeps = |choices: &mut Choices| match mode {
            0 => true,
            1 => false,
            _ => choices.below(2) == 0,
        };
        for (name, contents) in &inner.files {
            let mut content = contents.durable.clone();
            for change in &contents.unsynced {
                match change {
                    Unsynced::Length(_) => {
                        if keeps(choices) {
                            change.apply(&mut content);
                        }
                    }
                    Unsynced::Write(offset, data) => {
                        let mut done = 0;
                        while done < data.len() {
                            let at = offset + done;
                            let part = (SECTOR_BYTES - at % SECTOR_BYTES).min(data.len() - done);
                            if keeps(choices) {
                                Unsynced::Write(at, data[done..done + part].to_vec()).apply(&mut content);
                            }
                            done += part;
                        }
                    }
                }
            }
            let found = Contents { durable: content.clone(), current: content, unsynced: Vec::new() };
            files.insert(name.clone(), found);
        }
        ForgetfulDisk(Arc::new(Mutex::new(Inner { files, fault: None, changes: 0 })))
    }

    /// A copy with one bit of a file changed.
    pub fn with_flipped_bit(&self, name: &str, position: usize, bit: u8) -> ForgetfulDisk {
        let mut files = self.inner().files.clone();
        let contents = files.get_mut(name).unwrap();
        contents.current[position] ^= bit;
        contents.durable = contents.current.clone();
        contents.unsynced.clear();
        ForgetfulDisk(Arc::new(Mutex::new(Inner { files, fault: None, changes: 0 })))
    }

    /// A copy.
    pub fn copy(&self) -> ForgetfulDisk {
        let files = self.inner().files.clone();
        ForgetfulDisk(Arc::new(Mutex::new(Inner { files, fault: None, changes: 0 })))
    }

    /// Names and lengths of all files.
    pub fn lengths(&self) -> Vec<(String, usize)> {
        self.inner().files.iter().map(|(name, contents)| (name.clone(), contents.current.len())).collect()
    }

    /// The content of a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.inner().files[name].current.clone()
    }
}

impl Inner {
    /// Whether an operation that changes something is carried out.
    fn change(&mut self, grows: bool) -> io::Result<()> {
        self.changes += 1;
        match &mut self.fault {
            None => Ok(()),
            Some(Fault::PowerOff(0)) => Err(io::Error::other("the power is gone")),
            Some(Fault::Full(0)) if grows => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Full(0)) => Ok(()),
            Some(Fault::PowerOff(left) | Fault::Full(left)) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.fault {
            Some(Fault::PowerOff(0)) => Err(io::Error::other("the power is gone")),
            _ => Ok(()),
        }
    }
}

impl Disk for ForgetfulDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let mut inner = self.inner();
        if !inner.files.contains_key(name) {
            inner.change(false)?;
            inner.files.insert(name.to_owned(), Contents::default());
        }
        Ok(Arc::new(ForgetfulMedium { disk: self.clone(), name: Mutex::new(name.to_owned()) }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.change(false)?;
        inner.files.remove(name);
        Ok(())
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.change(false)?;
        let contents = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_owned(), contents);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.inner().change(false)
    }
}

impl ForgetfulMedium {
    /// An open file follows its content to another name, as it does in a file system.
    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> io::Result<T> {
        let mut inner = self.disk.inner();
        let mut name = self.name.lock().unwrap();
        if !inner.files.contains_key(name.as_str()) {
            *name = name.trim_end_matches(".new").to_owned();
        }
        inner.files.get_mut(name.as_str()).map(act).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn record(&self, change: Unsynced) -> io::Result<()> {
        self.with(|contents| {
            change.apply(&mut contents.current);
            contents.unsynced.push(change);
        })
    }
}

impl Medium for ForgetfulMedium {
    fn length(&self) -> io::Result<u64> {
        self.disk.inner().alive()?;
        self.with(|contents| contents.current.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.inner().alive()?;
        self.with(|contents| {
            let found = contents.current.get(offset as usize..offset as usize + out.len());
            found.map(|found| out.copy_from_slice(found)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        })?
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = self.with(|contents| contents.current.len())?;
        self.disk.inner().change(offset as usize + data.len() > length)?;
        self.record(Unsynced::Write(offset as usize, data.to_vec()))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let present = self.with(|contents| contents.current.len())?;
        self.disk.inner().change(length as usize > present)?;
        self.record(Unsynced::Length(length as usize))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.inner().change(false)?;
        self.with(|contents| {
            contents.durable = contents.current.clone();
            contents.unsynced.clear();
        })
    }
}
