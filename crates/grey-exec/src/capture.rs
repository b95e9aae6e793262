//! One output stream of an attempt: small in memory, larger in a file, hashed as it comes.

use std::fs::File;
use std::io::{self, Write};

use grey_agent::Captured;
use grey_core::limits::INLINE_OUTPUT_BYTES;
use grey_proof::Digest;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::directory::AttemptDirectory;

/// What a stream has brought so far.
pub(crate) struct Capture {
    /// The file's name in the attempt's directory, should it need one.
    name: &'static str,
    inline: Vec<u8>,
    file: Option<Overflow>,
}

struct Overflow {
    file: File,
    hasher: Sha256,
    size_bytes: u64,
}

impl Capture {
    /// An empty stream.
    pub(crate) fn new(name: &'static str) -> Capture {
        Capture { name, inline: Vec::new(), file: None }
    }

    /// Adds what was read.
    pub(crate) fn push(&mut self, bytes: &[u8], directory: &AttemptDirectory) -> io::Result<()> {
        if self.file.is_none() && self.inline.len().saturating_add(bytes.len()) <= INLINE_OUTPUT_BYTES {
            self.inline.extend_from_slice(bytes);
            return Ok(());
        }
        let overflow = match &mut self.file {
            Some(overflow) => overflow,
            empty => {
                let file = create(directory, self.name)?;
                let overflow = empty.insert(Overflow { file, hasher: Sha256::new(), size_bytes: 0 });
                overflow.push(&std::mem::take(&mut self.inline))?;
                overflow
            }
        };
        overflow.push(bytes)
    }

    /// The stream as it is handed on.
    pub(crate) fn finish(self, directory: &AttemptDirectory) -> Captured {
        match self.file {
            None => Captured::Inline(self.inline),
            Some(overflow) => Captured::File {
                path: directory.path.join(self.name),
                size_bytes: overflow.size_bytes,
                digest: Digest(overflow.hasher.finalize().into()),
            },
        }
    }
}

impl Overflow {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// Makes a file that did not exist. The task may write into the same directory, so what it put under the name goes.
fn create(directory: &AttemptDirectory, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
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
