//! One server goes on alone after the others were lost for good.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grey_core::{Command, Entry, Keeper, NodeRole, Recover};
use grey_proof::Digest;
use grey_replica::{Replica, ServerOptions};
use grey_store::{DirectoryLock, Disk, Folder, Storage, StorageOptions};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::oneshot;

use super::papers::Papers;
use super::server::runtime;
use crate::clock::wall_ms;
use crate::control::Message;
use crate::engine::{Engine, EngineOptions, end, own_version, start_engine};
use crate::error::NodeError;
use crate::format::check_format;
use crate::local::CHECKPOINT_BYTES;
use crate::peers::Peers;

/// How long another server may take to answer that it lives.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked how far the log is applied.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// With what a cluster went on.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The cluster.
    pub cluster: Digest,
    /// The server that goes on.
    pub server: u64,
    /// Index of the last entry that it had. What was agreed on behind it is lost.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Names of the nodes that are forgotten.
    pub forgotten: Vec<String>,
}

/// What the server's own log comes to.
struct Found {
    applied: u64,
    committed: u64,
    term: u64,
    time_ms: u64,
    voters: Vec<u64>,
    nodes: Vec<(Digest, String)>,
}

fn look(engine: &Engine) -> Result<Found, NodeError> {
    let (reply, answer) = oneshot::channel();
    let question = Box::new(move |replica: &Replica| {
        let state = replica.state();
        let nodes = state.nodes().map(|row| (row.node, row.name.clone()));
        drop(reply.send(Found {
            applied: state.applied_index(),
            committed: replica.commit_index(),
            term: state.applied_term(),
            time_ms: state.meta().time_ms,
            voters: replica.membership().voters,
            nodes: nodes.collect(),
        }));
    });
    let gone = || NodeError::ThreadEnded("control");
    engine.control.send(Message::Look(question)).map_err(|_| gone())?;
    answer.blocking_recv().map_err(|_| gone())
}

/// Everything that is in the log, applied and under a checkpoint.
fn apply_all(directory: &Path, disk: &Arc<dyn Disk>, papers: &Papers) -> Result<Found, NodeError> {
    let (dial, _nobody) = unbounded_channel();
    let own = papers.number();
    let options = EngineOptions {
        server: own,
        cluster: papers.cluster(),
        checkpoint_bytes: CHECKPOINT_BYTES,
        version: own_version(None),
        behaviour: ServerOptions::default(),
        worker_key: None,
        peers: Some(Peers::new(own, dial, Vec::new())),
        named: None,
        takes_all_for_agreed: true,
    };
    let engine = start_engine(disk.clone(), directory, options)?;
    let found = loop {
        match look(&engine) {
            Ok(found) if found.applied >= found.committed => break Ok(found),
            Ok(_) => std::thread::sleep(LOOK_EVERY),
            Err(error) => break Err(error),
        }
    };
    let ended = end(engine);
    let found = found?;
    ended.map(|()| found)
}

/// Has the cluster go on with the server whose directory this is, alone, with what it has. Everything in its log is taken for agreed
/// on; what only others had is lost.
///
/// # Errors
/// When the directory is no server's, another server answers, or the disk fails.
pub fn recover(directory: &Path) -> Result<Recovery, NodeError> {
    let _lock = DirectoryLock::take(directory)?;
    check_format(directory)?;
    let papers = Papers::open(directory, NodeRole::Server)?.ok_or_else(|| NodeError::NoCluster {
        directory: directory.display().to_string(),
        hint: "only a server of a cluster can be what is left of it",
    })?;
    let own = papers.number();
    for place in papers.servers().into_iter().filter(|place| place.number != own) {
        let addresses = place.address.to_socket_addrs().into_iter().flatten();
        for address in addresses {
            if TcpStream::connect_timeout(&address, ANSWERS_WITHIN).is_ok() {
                let (server, address) = (place.number, place.address);
                return Err(NodeError::AnotherLives { server, address });
            }
        }
    }
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let disk: Arc<dyn Disk> =
        Arc::new(Folder::open(directory).map_err(NodeError::io("open", directory.display()))?);
    let found = apply_all(directory, &disk, &papers)?;
    if found.voters == [own] {
        return Err(NodeError::Alone { directory: directory.display().to_string() });
    }
    let survivor = papers.proof_key().verifying_key().id();
    let command = Command::Recover(Recover { keeper: Keeper::Survivor(survivor), wall_ms: wall_ms() });
    let entry = Entry { time_ms: found.time_ms, command }.encode();
    let entry = entry.map_err(|error| NodeError::Config(error.to_string()))?;
    Storage::go_on_alone(disk, &StorageOptions::default(), own, entry)?;
    let mut papers = papers;
    let places = papers.servers();
    let left: Vec<_> = places.into_iter().filter(|place| place.number == own).collect();
    papers.know(&left)?;
    let others = found.nodes.into_iter().filter(|(node, _)| *node != survivor);
    Ok(Recovery {
        cluster: papers.cluster(),
        server: own,
        index: found.applied,
        term: found.term,
        forgotten: others.map(|(_, name)| name).collect(),
    })
}
