//! A server that lagged so far behind that it was sent a whole state gets from another one what ended meanwhile.

use std::sync::mpsc::{SyncSender, channel};
use std::time::Duration;

use grey_store::{SnapshotPart, SnapshotReader};
use tokio::sync::watch;

use super::begin::{Pieces, read_from};
use crate::directory::ServerPlace;
use crate::error::NodeError;
use crate::plane::Servers;
use crate::threads::{FillStep, SideRequest};

/// How soon the servers are asked again, after none had it.
const AGAIN: Duration = Duration::from_secs(5);
/// How many parts are taken in at once.
const PARTS_AT_ONCE: usize = 256;
/// How many bytes of them, about.
const BYTES_AT_ONCE: usize = 1024 * 1024;

/// Fetches what history lacks, whenever it does, until the node ends.
pub(super) async fn fill(
    mut gap: watch::Receiver<u64>,
    side: SyncSender<SideRequest>,
    servers: Servers,
    places: watch::Receiver<Vec<ServerPlace>>,
    own: u64,
) {
    while gap.wait_for(|gap| *gap > 0).await.is_ok() {
        let known = places.borrow().clone();
        for place in known.into_iter().filter(|place| place.number != own) {
            let side = side.clone();
            let taken = read_from(&servers, &place, move |reader| take_in(reader, &side)).await;
            match taken {
                Ok(()) if *gap.borrow() == 0 => break,
                Ok(()) => {}
                Err(reason) => {
                    tracing::warn!(server = place.number, reason, "a server gives not what history lacks")
                }
            }
        }
        if *gap.borrow() > 0 {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn ask(side: &SyncSender<SideRequest>, step: FillStep) -> Result<(), NodeError> {
    let gone = || NodeError::ThreadEnded("history");
    let (done, is_done) = channel();
    side.send(SideRequest::Fill(step, done)).map_err(|_| gone())?;
    is_done.recv().map_err(|_| gone())
}

fn size_bytes(part: &SnapshotPart) -> usize {
    match part {
        SnapshotPart::Record(_, value) => value.len(),
        SnapshotPart::Hashes(bytes) => bytes.len(),
        _ => 0,
    }
}

/// Hands on what the side takes in, in pieces, one after the other. Nothing closes the gap before the whole was checked.
fn take_in(mut reader: SnapshotReader<Pieces>, side: &SyncSender<SideRequest>) -> Result<(), NodeError> {
    let (mut parts, mut bytes) = (Vec::new(), 0usize);
    while let Some(part) = reader.next_part()? {
        match part {
            SnapshotPart::Facts(facts) => ask(side, FillStep::Begin(facts))?,
            SnapshotPart::Record(..) | SnapshotPart::Hashes(_) => {
                bytes = bytes.saturating_add(size_bytes(&part));
                parts.push(part);
            }
            _ => {}
        }
        if parts.len() >= PARTS_AT_ONCE || bytes >= BYTES_AT_ONCE {
            ask(side, FillStep::Parts(core::mem::take(&mut parts)))?;
            bytes = 0;
        }
    }
    ask(side, FillStep::Parts(parts))?;
    ask(side, FillStep::End)
}
