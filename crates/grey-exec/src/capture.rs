//! One output stream of an attempt, kept in a file of its directory.
//!
//! What comes over the pipe goes into the file without passing through this process, and the length of the file says what
//! was taken. So whoever comes after a worker that was killed finds everything: in the file, or in the pipe.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grey_agent::{Captured, Tail};
use grey_core::limits::INLINE_OUTPUT_BYTES;
use grey_proof::Digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use sha2::{Digest as _, Sha256};

use crate::directory::AttemptDirectory;

/// What is read back at once.
const READ_BYTES: usize = 64 * 1024;

/// What a stream has brought so far, shared with those who follow it.
#[derive(Default)]
pub(crate) struct Brought(Mutex<State>);

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    size_bytes: u64,
    ended: bool,
}

impl Brought {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes that belong together, so a poisoned state is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.state().ended = true;
    }
}

impl Tail for Brought {
    fn read(&self, offset: u64, most: usize) -> io::Result<(Vec<u8>, bool)> {
        let (file, size_bytes, ended) = {
            let state = self.state();
            (state.file.clone(), state.size_bytes, state.ended)
        };
        let left = size_bytes.saturating_sub(offset);
        let mut piece = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(most)];
        if let Some(file) = file {
            file.read_exact_at(&mut piece, offset)?;
        }
        let is_last = piece.len() as u64 == left;
        Ok((piece, ended && is_last))
    }
}

/// What a look at a pipe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many bytes.
    Bytes(u64),
    /// None now.
    Nothing,
    /// None any more: nobody has the other end.
    End,
}

/// Takes what a stream brings.
pub(crate) struct Capture {
    /// The file's name in the attempt's directory.
    name: &'static str,
    brought: Arc<Brought>,
    /// Of what is in the file, as far as it was read back.
    hasher: Sha256,
    hashed_bytes: u64,
}

impl Capture {
    /// An empty stream.
    pub(crate) fn new(name: &'static str, brought: Arc<Brought>) -> Capture {
        Capture { name, brought, hasher: Sha256::new(), hashed_bytes: 0 }
    }

    /// Goes on where an earlier worker stopped. The task may write into the same directory: what is no plain file of one
    /// name there, no worker made.
    pub(crate) fn resume(
        name: &'static str,
        brought: Arc<Brought>,
        directory: &AttemptDirectory,
    ) -> io::Result<Capture> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(directory.descriptor(), name, flags, Mode::empty()) {
            Ok(opened) => {
                let file = File::from(opened);
                let metadata = file.metadata()?;
                if metadata.is_file() && metadata.nlink() == 1 {
                    let mut state = brought.state();
                    (state.size_bytes, state.file) = (metadata.len(), Some(Arc::new(file)));
                }
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Capture::new(name, brought))
    }

    /// How much was taken, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.brought.state().size_bytes
    }

    /// Takes at most so many bytes, which must be some.
    pub(crate) fn take(
        &mut self,
        pipe: &OwnedFd,
        most: usize,
        directory: &AttemptDirectory,
    ) -> io::Result<Taken> {
        let (file, size_bytes) = {
            let state = self.brought.state();
            (state.file.clone(), state.size_bytes)
        };
        let file = match file {
            Some(file) => file,
            None => match look(pipe)? {
                Taken::Bytes(_) => {
                    let file = Arc::new(create(directory, self.name)?);
                    self.brought.state().file = Some(file.clone());
                    file
                }
                nothing => return Ok(nothing),
            },
        };
        match move_over(pipe, &file, size_bytes, most)? {
            Taken::Bytes(count) => {
                // Those who follow see what is written when its size is told.
                let size_bytes = {
                    let mut state = self.brought.state();
                    state.size_bytes = state.size_bytes.saturating_add(count);
                    state.size_bytes
                };
                if size_bytes > INLINE_OUTPUT_BYTES as u64 {
                    self.hash_through(&file, size_bytes)?;
                }
                Ok(Taken::Bytes(count))
            }
            other => Ok(other),
        }
    }

    fn hash_through(&mut self, file: &File, size_bytes: u64) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while self.hashed_bytes < size_bytes {
            let left = usize::try_from(size_bytes.saturating_sub(self.hashed_bytes)).unwrap_or(usize::MAX);
            let piece = buffer.get_mut(..left.min(READ_BYTES)).unwrap_or_default();
            file.read_exact_at(piece, self.hashed_bytes)?;
            self.hasher.update(&*piece);
            self.hashed_bytes = self.hashed_bytes.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// The stream as it is handed on. An error means that somebody has cut the file.
    pub(crate) fn finish(mut self, directory: &AttemptDirectory) -> io::Result<Captured> {
        let (file, size_bytes) = {
            let mut state = self.brought.state();
            state.ended = true;
            (state.file.clone(), state.size_bytes)
        };
        let Some(file) = file else { return Ok(Captured::Inline(Vec::new())) };
        if size_bytes <= INLINE_OUTPUT_BYTES as u64 {
            let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
            file.read_exact_at(&mut bytes, 0)?;
            return Ok(Captured::Inline(bytes));
        }
        self.hash_through(&file, size_bytes)?;
        let digest = Digest(self.hasher.finalize().into());
        Ok(Captured::File { path: directory.path.join(self.name), size_bytes, digest })
    }
}

/// What a pipe has, without taking it.
pub(crate) fn look(pipe: &OwnedFd) -> io::Result<Taken> {
    let mut descriptors = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [seen] = descriptors.map(|descriptor| descriptor.revents());
    Ok(if seen.contains(PollFlags::IN) {
        Taken::Bytes(0)
    } else if seen.is_empty() {
        Taken::Nothing
    } else {
        Taken::End
    })
}

/// Moves bytes from a pipe to the end of a file. Either the kernel does it, or nothing has happened: there is no moment at
/// which a byte is in this process only. Some rare file systems take none that way; there, what is under way at the moment
/// is lost with this process.
fn move_over(pipe: &OwnedFd, file: &File, end_bytes: u64, most: usize) -> io::Result<Taken> {
    let mut offset = end_bytes;
    loop {
        return match rustix::pipe::splice(pipe, None, file, Some(&mut offset), most, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(Taken::End),
            Ok(count) => Ok(Taken::Bytes(count as u64)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(Taken::Nothing),
            Err(Errno::INVAL) => carry_over(pipe, file, end_bytes, most),
            Err(error) => Err(error.into()),
        };
    }
}

/// Moves bytes from a pipe to the end of a file through this process.
fn carry_over(pipe: &OwnedFd, file: &File, end_bytes: u64, most: usize) -> io::Result<Taken> {
    let seen = look(pipe)?;
    if !matches!(seen, Taken::Bytes(_)) {
        return Ok(seen);
    }
    let mut buffer = vec![0; most.min(READ_BYTES)];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut buffer))?;
    file.write_all_at(buffer.get(..count).unwrap_or_default(), end_bytes)?;
    Ok(if count == 0 { Taken::End } else { Taken::Bytes(count as u64) })
}

/// Makes a file that did not exist. The task may write into the same directory, so what it put under the name goes.
fn create(directory: &AttemptDirectory, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(directory.descriptor(), name, flags, Mode::RUSR | Mode::WUSR);
    let opened = match open() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(directory.descriptor(), name, AtFlags::empty())?;
            open()
        }
        result => result,
    };
    Ok(File::from(opened?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_move_once_whichever_way_the_file_takes_them() {
        // No file takes them by splice that is open for appending.
        for appends in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("f");
            let file = File::options().create(true).write(true).append(appends).open(&path).unwrap();
            let (reading, writing) = rustix::pipe::pipe().unwrap();
            assert_eq!(move_over(&reading, &file, 0, 10).unwrap(), Taken::Nothing);
            let mut writing = File::from(writing);
            writing.write_all(b"hello, world").unwrap();
            assert_eq!(move_over(&reading, &file, 0, 5).unwrap(), Taken::Bytes(5));
            assert_eq!(move_over(&reading, &file, 5, 100).unwrap(), Taken::Bytes(7));
            assert_eq!(move_over(&reading, &file, 12, 100).unwrap(), Taken::Nothing);
            drop(writing);
            assert_eq!(move_over(&reading, &file, 12, 100).unwrap(), Taken::End);
            assert_eq!(std::fs::read(&path).unwrap(), b"hello, world");
        }
    }

    #[test]
    fn to_look_takes_nothing() {
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        assert_eq!(look(&reading).unwrap(), Taken::Nothing);
        File::from(writing).write_all(b"x").unwrap();
        assert_eq!(look(&reading).unwrap(), Taken::Bytes(0));
        assert_eq!(look(&reading).unwrap(), Taken::Bytes(0), "also when nobody writes any more");
        assert_eq!(rustix::io::read(&reading, &mut [0u8; 8]).unwrap(), 1);
        assert_eq!(look(&reading).unwrap(), Taken::End);
    }
}
