//! Room on the disk: new work is refused before it is full, and what was accepted has a reserve to end in.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use grey_api::{ErrorCode, Problem};
use grey_store::StoreError;
use rustix::fs::FallocateFlags;

/// The share of a disk that new work must leave free: a twentieth, within these bounds, in bytes.
const LEAST_FLOOR_BYTES: u64 = 4 * 1024 * 1024;
const MOST_FLOOR_BYTES: u64 = 256 * 1024 * 1024;
/// The reserve's file in the data directory.
const RESERVE_FILE: &str = "reserve";

/// Whether there is room for new work, and the reserve for accepted work.
#[derive(Debug)]
pub(crate) struct DiskRoom {
    directory: PathBuf,
    floor_bytes: u64,
    reserve: PathBuf,
    /// Half of the floor: others can fill the disk faster than anybody looks.
    reserve_bytes: u64,
    holds_reserve: AtomicBool,
}

impl DiskRoom {
    /// Looks at the disk of a data directory and takes the reserve where there is room for it.
    pub(crate) fn new(directory: PathBuf) -> Result<DiskRoom, StoreError> {
        let total = grey_store::total_bytes(&directory)?;
        let floor_bytes = (total / 20).clamp(LEAST_FLOOR_BYTES, MOST_FLOOR_BYTES);
        let reserve = directory.join(RESERVE_FILE);
        // What an earlier life left may be of another size.
        let holds_reserve = AtomicBool::new(reserve.exists());
        let room =
            DiskRoom { directory, floor_bytes, reserve, reserve_bytes: floor_bytes / 2, holds_reserve };
        room.give_up();
        room.look();
        Ok(room)
    }

    fn free_bytes(&self) -> u64 {
        // A disk that cannot be asked will say so when it is written to.
        grey_store::free_bytes(&self.directory).unwrap_or(u64::MAX)
    }

    /// So much must be free for new work to be taken.
    pub(crate) fn floor_bytes(&self) -> u64 {
        self.floor_bytes
    }

    /// Why no new work is taken, if none is. It asks the system each time, which costs about a microsecond.
    pub(crate) fn refusal(&self) -> Option<Problem> {
        let free = self.free_bytes();
        (free < self.floor_bytes).then(|| {
            let detail = format!(
                "{} bytes are free below {}; new work is taken from {} bytes on",
                free,
                self.directory.display(),
                self.floor_bytes
            );
            Problem::new(ErrorCode::DiskFull, detail)
                .limit(self.floor_bytes)
                .hint("make room on that disk; work that was accepted goes on")
                .retry_after_ms(5_000)
        })
    }

    /// Gives the reserve up to accepted work when the disk is nearly full, and takes it again when there is room for it
    /// and for new work. To be called now and then.
    pub(crate) fn look(&self) {
        let free = self.free_bytes();
        let holds = self.holds_reserve.load(Ordering::Relaxed);
        if holds && free < self.reserve_bytes {
            tracing::warn!(
                free_bytes = free,
                "the disk is nearly full: the reserve is given to accepted work"
            );
            self.give_up();
        } else if !holds && free >= self.floor_bytes.saturating_add(self.reserve_bytes) {
            match take(&self.reserve, self.reserve_bytes) {
                Ok(()) => self.holds_reserve.store(true, Ordering::Relaxed),
                Err(error) => {
                    tracing::warn!(%error, "no reserve can be taken on the disk");
                    self.give_up();
                }
            }
        }
    }

    fn give_up(&self) {
        match std::fs::remove_file(&self.reserve) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the reserve on the disk cannot be given up");
            }
            _ => self.holds_reserve.store(false, Ordering::Relaxed),
        }
    }
}

/// Allocates a file without writing it.
fn take(path: &Path, size_bytes: u64) -> std::io::Result<()> {
    let file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_allocated_and_can_be_given_up_and_taken_again() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        // Given what an earlier life left, of another size.
        std::fs::write(directory.path().join(RESERVE_FILE), "short").unwrap();
        let room = DiskRoom::new(directory.path().to_path_buf()).unwrap();
        let blocks = || std::fs::metadata(&room.reserve).map(|facts| facts.blocks() * 512).unwrap_or(0);
        assert!(blocks() >= room.reserve_bytes, "{} bytes are allocated", blocks());
        room.give_up();
        assert_eq!(blocks(), 0);
        room.look();
        assert!(blocks() >= room.reserve_bytes);
    }
}
