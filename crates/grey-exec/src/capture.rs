//! One output stream of an attempt: small in memory, larger in a file, hashed as it comes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grey_agent::{Captured, Tail};
use grey_core::limits::INLINE_OUTPUT_BYTES;
use grey_proof::Digest;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::directory::AttemptDirectory;

/// What a stream has brought so far, shared with those who follow it.
#[derive(Default)]
pub(crate) struct Brought(Mutex<State>);

#[derive(Default)]
struct State {
    inline: Vec<u8>,
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
            let Some(file) = state.file.clone() else {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(state.inline.len());
                let rest = state.inline.get(from..).unwrap_or_default();
                let piece = rest.get(..most.min(rest.len())).unwrap_or_default();
                return Ok((piece.to_vec(), state.ended && piece.len() == rest.len()));
            };
            (file, state.size_bytes, state.ended)
        };
        let left = size_bytes.saturating_sub(offset);
        let mut piece = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(most)];
        file.read_exact_at(&mut piece, offset)?;
        let is_last = piece.len() as u64 == left;
        Ok((piece, ended && is_last))
    }
}

/// Takes what a stream brings.
pub(crate) struct Capture {
    /// The file's name in the attempt's directory, should it need one.
    name: &'static str,
    brought: Arc<Brought>,
    /// Of what is in the file.
    hasher: Sha256,
}

impl Capture {
    /// An empty stream.
    pub(crate) fn new(name: &'static str, brought: Arc<Brought>) -> Capture {
        Capture { name, brought, hasher: Sha256::new() }
    }

    /// Adds what was read.
    pub(crate) fn push(&mut self, bytes: &[u8], directory: &AttemptDirectory) -> io::Result<()> {
        let file = {
            let mut state = self.brought.state();
            if state.file.is_none() && state.inline.len().saturating_add(bytes.len()) <= INLINE_OUTPUT_BYTES {
                state.inline.extend_from_slice(bytes);
                return Ok(());
            }
            if state.file.is_none() {
                let file = Arc::new(create(directory, self.name)?);
                (&*file).write_all(&state.inline)?;
                self.hasher.update(&state.inline);
                state.size_bytes = state.inline.len() as u64;
                state.file = Some(file);
                state.inline = Vec::new();
            }
            state.file.clone()
        };
        if let Some(file) = file {
            // Those who follow need not wait for the disk: they see what is written when its size is told.
            (&*file).write_all(bytes)?;
            self.hasher.update(bytes);
            let mut state = self.brought.state();
            state.size_bytes = state.size_bytes.saturating_add(bytes.len() as u64);
        }
        Ok(())
    }

    /// The stream as it is handed on.
    pub(crate) fn finish(self, directory: &AttemptDirectory) -> Captured {
        let mut state = self.brought.state();
        state.ended = true;
        match &state.file {
            // Who follows goes on reading what is here.
            None => Captured::Inline(state.inline.clone()),
            Some(_) => Captured::File {
                path: directory.path.join(self.name),
                size_bytes: state.size_bytes,
                digest: Digest(self.hasher.finalize().into()),
            },
        }
    }
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
