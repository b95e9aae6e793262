//! A server that enters an old cluster begins from what another one has: the log alone no longer tells of everything that has ended.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use grey_store::{Disk, Restoring, SnapshotPart, SnapshotReader, StorageOptions};
use tokio::sync::mpsc::Receiver;

use super::papers::Papers;
use crate::directory::ServerPlace;
use crate::error::NodeError;
use crate::identity::write_new;
use crate::plane::Servers;

/// Says that the directory holds nothing of the cluster's data yet, or a part of it that does not count.
const ENTERING_FILE: &str = "entering";
/// Within which time some server gives what it has; after that the log has to do.
const WITHIN: Duration = Duration::from_secs(60);
/// Pieces that wait to be written.
const PIECES_WAITING: usize = 4;
/// How soon the servers are asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Notes that the server has yet to begin, before it has papers.
pub(super) fn note(directory: &Path) -> Result<(), NodeError> {
    write_new(directory, ENTERING_FILE, b"")
}

/// Fetches what another server has, where this one has yet to begin.
pub(super) async fn begin(disk: &Arc<dyn Disk>, papers: &Papers, servers: &Servers) -> Result<(), NodeError> {
    if !is_entering(disk.as_ref())? {
        return Ok(());
    }
    let begun = Instant::now();
    let own = papers.number();
    loop {
        for place in papers.servers().into_iter().filter(|place| place.number != own) {
            // What an earlier attempt left is no part of what comes now.
            clear(disk)?;
            let into = disk.clone();
            let outcome = read_from(servers, &place, move |reader| restore(&into, reader)).await;
            match outcome {
                Ok(index) => {
                    tracing::info!(index, server = place.number, "began from what another server has");
                    return done(disk.as_ref());
                }
                Err(reason) => {
                    tracing::warn!(server = place.number, reason, "a server gives not what it has")
                }
            }
        }
        if begun.elapsed() >= WITHIN {
            clear(disk)?;
            tracing::warn!("no server gave what it has; what ended long ago may be missing here");
            return done(disk.as_ref());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn is_entering(disk: &dyn Disk) -> Result<bool, NodeError> {
    let names = disk.list().map_err(NodeError::io("list", "the data directory"))?;
    Ok(names.iter().any(|name| name == ENTERING_FILE))
}

/// The data is whole, and stays so: were the mark back after a power cut, the next start would clear what was acknowledged meanwhile.
fn done(disk: &dyn Disk) -> Result<(), NodeError> {
    let removed = disk.remove(ENTERING_FILE).and_then(|()| disk.sync_names());
    removed.map_err(NodeError::io("remove", ENTERING_FILE))
}

/// Removes what belongs to a state, history and tree.
fn clear(disk: &Arc<dyn Disk>) -> Result<(), NodeError> {
    grey_store::clear(disk.as_ref()).map_err(NodeError::from)
}

/// Reads what a server has, on a thread of its own.
pub(super) async fn read_from<T: Send + 'static>(
    servers: &Servers,
    place: &ServerPlace,
    read: impl FnOnce(SnapshotReader<Pieces>) -> Result<T, NodeError> + Send + 'static,
) -> Result<T, String> {
    let mut content = servers.snapshot(place).await.map_err(|error| error.to_string())?;
    let (sender, pieces) = tokio::sync::mpsc::channel(PIECES_WAITING);
    let reading = tokio::task::spawn_blocking(move || {
        read(SnapshotReader::begin(Pieces { pieces, left: Bytes::new() })?)
    });
    while let Some(piece) = content.next().await {
        // Who gave up says why.
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    drop(sender);
    let outcome = reading.await.map_err(|error| error.to_string())?;
    outcome.map_err(|error| error.to_string())
}

/// Takes in what comes; the index of the last entry in it.
fn restore(disk: &Arc<dyn Disk>, mut reader: SnapshotReader<Pieces>) -> Result<u64, NodeError> {
    let mut restoring: Option<(Restoring, u64)> = None;
    while let Some(part) = reader.next_part()? {
        match (&mut restoring, part) {
            (None, SnapshotPart::Facts(facts)) => {
                let index = facts.index;
                restoring = Some((Restoring::begin(disk, &StorageOptions::default(), facts)?, index));
            }
            (Some((restoring, _)), part) => drop(restoring.take(&part)?),
            (None, _) => {}
        }
    }
    match restoring {
        Some((restoring, index)) => restoring.finish().map(|()| index).map_err(NodeError::from),
        None => Err(NodeError::Config("what the server sent has no beginning".to_owned())),
    }
}

/// Pieces that come, as one thread reads them.
pub(super) struct Pieces {
    pieces: Receiver<io::Result<Bytes>>,
    left: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.left = piece?,
                None => return Ok(0),
            }
        }
        let taken = self.left.split_to(self.left.len().min(out.len()));
        if let Some(place) = out.get_mut(..taken.len()) {
            place.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_store::Medium;
    use std::sync::Mutex;

    /// Names of files, as they are and as they are after a power cut.
    #[derive(Debug, Default)]
    struct Names {
        present: Mutex<Vec<String>>,
        durable: Mutex<Vec<String>>,
    }

    impl Names {
        fn lose_power(&self) {
            *self.present.lock().unwrap() = self.durable.lock().unwrap().clone();
        }
    }

    impl Disk for Names {
        fn open(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
            Err(io::Error::other(format!("{name} has no content")))
        }

        fn list(&self) -> io::Result<Vec<String>> {
            Ok(self.present.lock().unwrap().clone())
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.present.lock().unwrap().retain(|present| present != name);
            Ok(())
        }

        fn replace(&self, from: &str, _to: &str) -> io::Result<()> {
            Err(io::Error::other(format!("{from} is not renamed")))
        }

        fn sync_names(&self) -> io::Result<()> {
            *self.durable.lock().unwrap() = self.present.lock().unwrap().clone();
            Ok(())
        }
    }

    #[test]
    fn a_server_that_has_begun_has_done_so_for_good() {
        let disk = Names::default();
        disk.present.lock().unwrap().extend([ENTERING_FILE, "log.redb"].map(str::to_owned));
        disk.sync_names().unwrap();
        assert!(is_entering(&disk).unwrap());
        done(&disk).unwrap();
        disk.lose_power();
        assert!(!is_entering(&disk).unwrap());
        assert_eq!(disk.list().unwrap(), ["log.redb"]);
    }

    #[test]
    fn the_mark_is_where_the_disk_of_the_directory_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let disk = grey_store::Folder::open(directory.path()).unwrap();
        assert!(!is_entering(&disk).unwrap());
        note(directory.path()).unwrap();
        assert!(is_entering(&disk).unwrap());
        done(&disk).unwrap();
        assert!(!is_entering(&disk).unwrap());
    }
}
