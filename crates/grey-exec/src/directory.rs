//! The directories of attempts: made, swept and removed without following a link.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use grey_core::{AttemptId, Epoch, TaskId};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::ExecError;

/// In an attempt's directory: what came over standard output, where something did.
pub(crate) const STDOUT: &str = "stdout";
/// In an attempt's directory: what came over standard error, where something did.
pub(crate) const STDERR: &str = "stderr";
/// Below an attempt's directory: where the program starts.
pub(crate) const WORK: &str = "work";
/// Below an attempt's directory: what the task leaves.
pub(crate) const OUT: &str = "out";
/// Below an attempt's directory: for temporary files.
pub(crate) const TEMPORARY: &str = "tmp";
/// How the names of directories begin that are being removed.
const REMOVING: &str = ".removing-";
/// Names taken from a directory before they are worked off.
const NAMES: usize = 1_024;
/// How long is waited for the processes of a shim that has ended, which end with it.
const SWEEP_WAIT: Duration = Duration::from_secs(5);
/// How often is looked whether they have ended.
const SWEEP_LOOK: Duration = Duration::from_millis(5);

const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory under which every attempt has its own. Held by one executor at a time.
pub(crate) struct WorkDirectory {
    path: PathBuf,
    descriptor: OwnedFd,
    /// Numbers the directories that are being removed.
    removals: AtomicU64,
}

/// The name of an attempt's directory.
fn name_of(attempt: AttemptId) -> String {
    format!("{}-{}", attempt.task, attempt.epoch)
}

fn is_ours(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    if name.strip_prefix(REMOVING).is_some_and(|number| number.parse::<u64>().is_ok()) {
        return true;
    }
    name.split_once('-')
        .is_some_and(|(task, epoch)| task.parse::<TaskId>().is_ok() && epoch.parse::<Epoch>().is_ok())
}

impl WorkDirectory {
    /// Makes the directory where it is missing, and takes it for this executor.
    pub(crate) fn open(path: &Path) -> Result<WorkDirectory, ExecError> {
        let unusable = |source: io::Error| ExecError::WorkDirectory { path: path.to_path_buf(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        let descriptor = rustix::fs::open(&path, OPEN_DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .map_err(unusable)?;
        match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(ExecError::WorkDirectoryInUse { path }),
            result => result.map_err(io::Error::from).map_err(unusable)?,
        }
        Ok(WorkDirectory { path, descriptor, removals: AtomicU64::new(0) })
    }

    /// Removes what an earlier life left, but for attempts that go on. Entries with names that Grey does not give are left
    /// alone.
    pub(crate) fn sweep(&self, going_on: &[AttemptId]) -> Result<(), ExecError> {
        let kept: BTreeSet<Vec<u8>> = going_on.iter().map(|attempt| name_of(*attempt).into_bytes()).collect();
        let unusable = |source: io::Error| ExecError::WorkDirectory { path: self.path.clone(), source };
        self.remove_all_but(&kept).map_err(unusable)
    }

    /// Makes the directory of an attempt with everything that belongs into it.
    pub(crate) fn create(&self, attempt: AttemptId) -> io::Result<AttemptDirectory> {
        let name = name_of(attempt);
        let mode = Mode::RWXU;
        rustix::fs::mkdirat(&self.descriptor, &name, mode)?;
        let descriptor = rustix::fs::openat(&self.descriptor, &name, OPEN_DIRECTORY, Mode::empty())?;
        for below in [WORK, OUT, TEMPORARY] {
            rustix::fs::mkdirat(&descriptor, below, mode)?;
        }
        Ok(AttemptDirectory { path: self.path.join(name), descriptor })
    }

    /// Opens the directory of an attempt that goes on.
    pub(crate) fn reopen(&self, attempt: AttemptId) -> io::Result<AttemptDirectory> {
        let name = name_of(attempt);
        let descriptor = rustix::fs::openat(&self.descriptor, &name, OPEN_DIRECTORY, Mode::empty())?;
        Ok(AttemptDirectory { path: self.path.join(name), descriptor })
    }

    /// Waits until the guard of an attempt is gone whose shim is: it locks the attempt's directory as long as it lives.
    pub(crate) fn wait_for_guard(&self, attempt: AttemptId) -> io::Result<()> {
        self.wait_for_earlier_life(&CString::new(name_of(attempt))?)
    }

    /// Removes an attempt's directory; one that does not exist is removed already.
    pub(crate) fn remove(&self, attempt: AttemptId) -> io::Result<()> {
        let name = CString::new(name_of(attempt))?;
        // The usual task leaves nothing behind, and what was made for it goes the way it came. What stands in the way is
        // left for the thorough removal.
        if let Ok(directory) = rustix::fs::openat(&self.descriptor, &name, OPEN_DIRECTORY, Mode::empty()) {
            for below in [WORK, OUT, TEMPORARY] {
                let _ = rustix::fs::unlinkat(&directory, below, AtFlags::REMOVEDIR);
            }
            for stream in [STDOUT, STDERR] {
                let _ = rustix::fs::unlinkat(&directory, stream, AtFlags::empty());
            }
        }
        if rustix::fs::unlinkat(&self.descriptor, &name, AtFlags::REMOVEDIR).is_ok() {
            return Ok(());
        }
        match self.remove_entry(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn remove_all_but(&self, kept: &BTreeSet<Vec<u8>>) -> io::Result<()> {
        loop {
            let goes = |name: &CStr| is_ours(name.to_bytes()) && !kept.contains(name.to_bytes());
            let names: Vec<CString> = names_in(&self.descriptor, goes)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                self.wait_for_earlier_life(&name)?;
                self.remove_entry(&name)?;
            }
        }
    }

    /// The guard of an attempt locks its directory as long as it lives, and ends with its shim.
    fn wait_for_earlier_life(&self, name: &CStr) -> io::Result<()> {
        let Ok(descriptor) = rustix::fs::openat(&self.descriptor, name, OPEN_DIRECTORY, Mode::empty()) else {
            return Ok(());
        };
        let deadline = Instant::now().checked_add(SWEEP_WAIT);
        loop {
            match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                    std::thread::sleep(SWEEP_LOOK);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(io::Error::other(format!("{name:?} still has processes of an earlier life")));
                }
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// Removes a file or a tree directly below the work directory.
    ///
    /// Directories are not descended into, since a task may nest them deeper than descriptors or paths reach. Each is
    /// moved up next to its root under a fresh name and emptied there, so the depth at work is always one.
    fn remove_entry(&self, name: &CStr) -> io::Result<()> {
        if self.remove_simple(&self.descriptor, name)? {
            return Ok(());
        }
        let mut waiting = vec![self.move_up(&self.descriptor, name)?];
        while let Some(number) = waiting.pop() {
            let name = CString::new(format!("{REMOVING}{number}"))?;
            self.empty(&name, &mut waiting)?;
            rustix::fs::unlinkat(&self.descriptor, &name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }

    /// Takes everything out of a directory below the work directory; directories within are added to `waiting`.
    fn empty(&self, name: &CStr, waiting: &mut Vec<u64>) -> io::Result<()> {
        let directory = open_writable(&self.descriptor, name)?;
        loop {
            let names = names_in(&directory, |_| true)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if !self.remove_simple(&directory, &name)? {
                    waiting.push(self.move_up(&directory, &name)?);
                }
            }
        }
    }

    /// Removes anything but a directory that is not empty, and says whether it did.
    fn remove_simple(&self, parent: &OwnedFd, name: &CStr) -> io::Result<bool> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            // POSIX says EPERM for a directory, Linux says EISDIR.
            Err(Errno::ISDIR | Errno::PERM) => {}
            result => return result.map(|()| true).map_err(io::Error::from),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            result => result.map(|()| true).map_err(io::Error::from),
        }
    }

    fn move_up(&self, parent: &OwnedFd, name: &CStr) -> io::Result<u64> {
        // Moving a directory changes its `..`, so it must be writable.
        drop(open_writable(parent, name)?);
        loop {
            let number = self.removals.fetch_add(1, Ordering::Relaxed);
            let target = format!("{REMOVING}{number}");
            match rustix::fs::renameat_with(parent, name, &self.descriptor, &target, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => return result.map(|()| number).map_err(io::Error::from),
            }
        }
    }
}

/// Opens a directory after giving its owner every right on it, as a task may have taken them away.
fn open_writable(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // Through the handle, since the name could have come to mean a link.
        rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), mode | Mode::RWXU)?;
    }
    Ok(rustix::fs::openat(&handle, c".", OPEN_DIRECTORY, Mode::empty())?)
}

/// At most [`NAMES`] names in a directory that `wanted` accepts.
fn names_in(directory: &OwnedFd, wanted: impl Fn(&CStr) -> bool) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." && wanted(name) {
            names.push(name.to_owned());
            if names.len() >= NAMES {
                break;
            }
        }
    }
    Ok(names)
}

/// The directory of one attempt. Its descriptor keeps meaning it whatever the task does to the name.
pub(crate) struct AttemptDirectory {
    /// Where it lies; absolute.
    pub(crate) path: PathBuf,
    descriptor: OwnedFd,
}

impl AttemptDirectory {
    /// The directory itself.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.descriptor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ATTEMPT: AttemptId = AttemptId { task: TaskId(7), epoch: Epoch(2) };

    #[test]
    fn an_attempt_directory_is_private_and_whole() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkDirectory::open(root.path()).unwrap();
        let attempt = work.create(ATTEMPT).unwrap();
        assert!(attempt.path.ends_with("t7-e2"));
        for below in ["", WORK, OUT, TEMPORARY] {
            let mode = attempt.path.join(below).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{below}");
        }
        assert!(work.create(ATTEMPT).is_err(), "a directory in use was given out again");
    }

    #[test]
    fn removal_takes_deep_and_read_only_trees_and_follows_no_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        let work = WorkDirectory::open(root.path()).unwrap();
        let attempt = work.create(ATTEMPT).unwrap();
        let inside = attempt.path.join(WORK);
        std::os::unix::fs::symlink(outside.path(), inside.join("link")).unwrap();
        let mut deep = rustix::fs::open(&inside, OPEN_DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3_000 {
            rustix::fs::mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = rustix::fs::openat(&deep, "d", OPEN_DIRECTORY, Mode::empty()).unwrap();
        }
        std::fs::create_dir(inside.join("locked")).unwrap();
        std::fs::write(inside.join("locked/file"), "x").unwrap();
        std::fs::set_permissions(inside.join("locked"), PermissionsExt::from_mode(0o000)).unwrap();
        work.remove(ATTEMPT).unwrap();
        work.remove(ATTEMPT).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn leftovers_are_swept_and_other_names_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        for name in ["t1-e1/work", "t7-e2/work", ".removing-0/a/b", "t1-x/work", "notes"] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let work = WorkDirectory::open(root.path()).unwrap();
        work.sweep(&[ATTEMPT]).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes", "t1-x", "t7-e2"]);
    }

    #[test]
    fn a_work_directory_has_one_owner_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = WorkDirectory::open(root.path()).unwrap();
        assert!(matches!(WorkDirectory::open(root.path()), Err(ExecError::WorkDirectoryInUse { .. })));
        drop(first);
        WorkDirectory::open(root.path()).unwrap();
    }
}
