//! Taking an attempt's output files after its last process is gone.
//!
//! The task named them and may have put anything there. Nothing is opened through a link or a mount, and only regular
//! files with one name are read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use grey_agent::{Captured, CapturedFile};
use grey_core::limits::{INLINE_OUTPUT_BYTES, OUTPUT_FILES};
use grey_proof::Digest;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::directory::{AttemptDirectory, OUT};
use crate::pattern::Pattern;

/// The most entries that are looked at below the output directory.
const ENTRIES: usize = 65_536;
/// The most bytes of a path below the output directory.
const PATH_BYTES: usize = 4_095;
/// The most steps that matching all paths with all patterns may take: about a second.
const MATCHING_STEPS: u64 = 200_000_000;
/// What is read from a file at once.
const READ_BYTES: usize = 256 * 1024;

/// Why the outputs of an attempt were not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A file is not what may be taken, or is missing; for a person.
    Refused(String),
    /// The files hold more bytes than were left of the limit.
    OverLimit,
    /// The worker could not read them.
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Failed(error)
    }
}

/// Takes the files that match a pattern, sorted by path, at most `left_bytes` together. With `complete`, a pattern
/// that matches no file refuses them all.
pub(crate) fn collect(
    directory: &AttemptDirectory,
    patterns: &[String],
    left_bytes: u64,
    complete: bool,
) -> Result<Vec<CapturedFile>, Refusal> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let root = open(directory.descriptor(), OUT.as_bytes(), OFlags::DIRECTORY).map_err(|error| {
        Refusal::Refused(format!("the output directory cannot be opened: {}", io::Error::from(error)))
    })?;
    let mut search = Search {
        root,
        patterns: patterns.iter().map(|text| Pattern::new(text)).collect(),
        found: vec![false; patterns.len()],
        paths: Vec::new(),
        entries: 0,
        steps_left: MATCHING_STEPS,
    };
    search.walk()?;
    if complete
        && let Some((pattern, _)) = search.patterns.iter().zip(&search.found).find(|(_, found)| !**found)
    {
        return Err(Refusal::Refused(format!("no file matches the pattern `{}`", pattern.text())));
    }
    search.paths.sort_unstable();
    let mut left_bytes = left_bytes;
    let base = directory.path.join(OUT);
    let mut files = Vec::with_capacity(search.paths.len());
    for path in &search.paths {
        files.push(take(&search.root, path, &base, &mut left_bytes)?);
    }
    Ok(files)
}

struct Search {
    root: OwnedFd,
    patterns: Vec<Pattern>,
    /// Which patterns matched a file.
    found: Vec<bool>,
    paths: Vec<Vec<u8>>,
    entries: usize,
    steps_left: u64,
}

impl Search {
    fn walk(&mut self) -> Result<(), Refusal> {
        let mut waiting = VecDeque::from([Vec::new()]);
        while let Some(path) = waiting.pop_front() {
            let name = if path.is_empty() { b"." } else { path.as_slice() };
            let directory =
                open(self.root.as_fd(), name, OFlags::DIRECTORY).map_err(|error| unreadable(&path, error))?;
            for entry in Dir::read_from(&directory).map_err(|error| unreadable(&path, error))? {
                let entry = entry.map_err(|error| unreadable(&path, error))?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                self.entries = self.entries.saturating_add(1);
                if self.entries > ENTRIES {
                    return Err(Refusal::Refused(format!("more than {ENTRIES} entries lie below GREY_OUT")));
                }
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name);
                if below.len() > PATH_BYTES {
                    return Err(refused(&below, "has a path that is too long"));
                }
                // Not every file system tells the kind in a listing.
                let kind = match entry.file_type() {
                    FileType::Unknown => {
                        kind(&directory, entry.file_name()).map_err(|error| unreadable(&below, error))?
                    }
                    kind => kind,
                };
                if kind == FileType::Directory {
                    waiting.push_back(below);
                } else if self.is_wanted(&below)? {
                    self.add(below, kind)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a pattern matches; every pattern is tried, as each must have matched something in the end.
    fn is_wanted(&mut self, path: &[u8]) -> Result<bool, Refusal> {
        let mut wanted = false;
        for (pattern, found) in self.patterns.iter().zip(&mut self.found) {
            let matched = pattern
                .matches(path, &mut self.steps_left)
                .map_err(|_| Refusal::Refused("the output patterns take too long to match".to_owned()))?;
            *found |= matched;
            wanted |= matched;
        }
        Ok(wanted)
    }

    fn add(&mut self, path: Vec<u8>, kind: FileType) -> Result<(), Refusal> {
        check_kind(&path, kind)?;
        if self.paths.len() >= OUTPUT_FILES {
            return Err(Refusal::Refused(format!(
                "more than {OUTPUT_FILES} files match the output patterns"
            )));
        }
        self.paths.push(path);
        Ok(())
    }
}

fn kind(directory: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<FileType> {
    let stat = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn check_kind(path: &[u8], kind: FileType) -> Result<(), Refusal> {
    Err(refused(
        path,
        match kind {
            FileType::RegularFile => return Ok(()),
            FileType::Symlink => "is a symbolic link",
            FileType::Fifo => "is a named pipe",
            FileType::Socket => "is a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "is a device",
            _ => "is no regular file",
        },
    ))
}

/// Paths are raw bytes; a person gets them escaped, and not too much of them.
fn shown(path: &[u8]) -> String {
    let (head, mark) = path.split_at_checked(256).map_or((path, ""), |(head, _)| (head, "…"));
    format!("{}{mark}", head.escape_ascii())
}

fn refused(path: &[u8], why: &str) -> Refusal {
    Refusal::Refused(format!("the output `{}` {why}", shown(path)))
}

fn unreadable(path: &[u8], error: Errno) -> Refusal {
    refused(path, &format!("cannot be read: {}", io::Error::from(error)))
}

/// Opens below `directory` through no link and no mount.
fn open(directory: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags =
        flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
            // A rename elsewhere made the kernel unsure; it asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

fn take(
    root: &OwnedFd,
    path: &[u8],
    base: &std::path::Path,
    left_bytes: &mut u64,
) -> Result<CapturedFile, Refusal> {
    let descriptor = open(root.as_fd(), path, OFlags::empty()).map_err(|error| unreadable(path, error))?;
    let stat: Stat = rustix::fs::fstat(&descriptor).map_err(|error| unreadable(path, error))?;
    check_kind(path, FileType::from_raw_mode(stat.st_mode))?;
    if stat.st_nlink != 1 {
        return Err(refused(path, "is a hard link: it has another name, perhaps outside GREY_OUT"));
    }
    if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > *left_bytes {
        return Err(Refusal::OverLimit);
    }
    let (size_bytes, digest, inline) = read(File::from(descriptor), *left_bytes)?;
    *left_bytes = left_bytes.saturating_sub(size_bytes);
    let content = match inline {
        Some(bytes) => Captured::Inline(bytes),
        None => Captured::File {
            path: base.join(PathBuf::from(std::ffi::OsStr::from_bytes(path))),
            size_bytes,
            digest,
        },
    };
    let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
    Ok(CapturedFile { path: path.to_vec(), executable, content })
}

/// Size, digest and, of a small file, the bytes.
fn read(mut file: File, limit_bytes: u64) -> Result<(u64, Digest, Option<Vec<u8>>), Refusal> {
    let mut hasher = Sha256::new();
    let mut size_bytes: u64 = 0;
    let mut inline = Some(Vec::new());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok((size_bytes, Digest(hasher.finalize().into()), inline));
        }
        size_bytes = size_bytes.saturating_add(bytes.len() as u64);
        if size_bytes > limit_bytes {
            return Err(Refusal::OverLimit);
        }
        hasher.update(bytes);
        inline = inline.filter(|kept| kept.len().saturating_add(bytes.len()) <= INLINE_OUTPUT_BYTES).map(
            |mut kept: Vec<u8>| {
                kept.extend_from_slice(bytes);
                kept
            },
        );
    }
}
