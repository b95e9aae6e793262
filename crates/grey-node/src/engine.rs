//! The threads of a server, from its disk to its control thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::JoinHandle;

use grey_core::NodeVersion;
use grey_proof::{Digest, VerifyingKey};
use grey_replica::{Options, Replica, Server, ServerOptions};
use grey_store::{Disk, HistoryCollector, Storage, StorageOptions};
use tokio::sync::{Notify, broadcast, watch};

use crate::control::{Control, Message, Role, Wiring};
use crate::directory::Directory;
use crate::disk_room::DiskRoom;
use crate::error::NodeError;
use crate::identity::random;
use crate::metrics::Meters;
use crate::peers::Peers;
use crate::pressure::Pressure;
use crate::rate::EndRate;
use crate::records::Records;
use crate::threads::{SideNews, SideRequest, log_thread, side_thread, spawn};
use crate::worker::WorkerMessage;

/// The number of the first server: every log begins with it as the only voter.
pub(crate) const FOUNDER: u64 = 1;
/// Events that a slow reader may lag behind.
const EVENTS_KEPT: usize = 4_096;

/// The threads of a node, ended in an order in which nobody waits for one that is gone.
pub(crate) struct Threads {
    pub(crate) control: JoinHandle<Result<(), NodeError>>,
    pub(crate) log: JoinHandle<Result<(), NodeError>>,
    pub(crate) side: JoinHandle<Result<(), NodeError>>,
    pub(crate) worker: Option<JoinHandle<Result<(), NodeError>>>,
    /// The collector, and what tells it to end by being dropped.
    pub(crate) collector: Option<(JoinHandle<()>, Sender<()>)>,
}

/// What the node's threads share before it takes requests.
pub(crate) struct Engine {
    pub(crate) control: Sender<Message>,
    pub(crate) side: SyncSender<SideRequest>,
    pub(crate) history: HistoryCollector,
    pub(crate) worker: (Sender<WorkerMessage>, Option<Receiver<WorkerMessage>>),
    pub(crate) kept: watch::Receiver<u64>,
    /// Up to which entry history lacks something; 0 where it lacks nothing.
    pub(crate) gap: watch::Receiver<u64>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    pub(crate) events: broadcast::Sender<grey_core::Event>,
    pub(crate) rate: Arc<EndRate>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) ended: Arc<Notify>,
    pub(crate) threads: Threads,
    pub(crate) records: Records,
    pub(crate) tree: grey_store::TreeFile,
    pub(crate) room: Arc<DiskRoom>,
}

/// How a server is started on its disk.
pub(crate) struct EngineOptions {
    /// Its number.
    pub(crate) server: u64,
    /// The cluster that its log must be of.
    pub(crate) cluster: Digest,
    /// Bytes of log after which a checkpoint is due.
    pub(crate) checkpoint_bytes: u64,
    /// What it runs.
    pub(crate) version: NodeVersion,
    /// How it behaves towards clients, workers and other servers.
    pub(crate) behaviour: ServerOptions,
    /// The key of the worker in the same process, where there is one.
    pub(crate) worker_key: Option<VerifyingKey>,
    /// Other servers.
    pub(crate) peers: Option<Peers>,
    /// Who is told of the content that reports name.
    pub(crate) named: Option<tokio::sync::mpsc::Sender<Digest>>,
    /// Whether everything in the log is taken for agreed on. Only where nobody else is left to say so.
    pub(crate) takes_all_for_agreed: bool,
}

/// What this program is as a server; one that is to understand less than it does plays an earlier version.
pub(crate) fn own_version(feature_level_limit: Option<u16>) -> NodeVersion {
    let newest = NodeVersion::newest(env!("CARGO_PKG_VERSION"));
    let understands = feature_level_limit.map_or(newest.understands, |limit| newest.understands.min(limit));
    NodeVersion { understands, ..newest }
}

/// Starts a server's threads on what its disk holds.
pub(crate) fn start_engine(
    disk: Arc<dyn Disk>,
    data_dir: &Path,
    options: EngineOptions,
) -> Result<Engine, NodeError> {
    // On a disk that an earlier life left full the reserve is what there is to begin with.
    let room = Arc::new(DiskRoom::new(data_dir.to_path_buf())?);
    let (storage, mut recovered) = Storage::open(disk, &StorageOptions::default())?;
    if recovered.membership.voters.is_empty() {
        recovered.membership.voters = vec![FOUNDER];
    }
    if options.takes_all_for_agreed {
        recovered.hard_state.commit = recovered.last_index;
    }
    let (records, tree) = (Records(storage.side.history.reader()), storage.side.tree.clone());
    let history = storage.side.history.collector();
    let replica_options = Options {
        id: options.server,
        seed: seed()?,
        checkpoint_bytes: options.checkpoint_bytes,
        version: options.version,
    };
    let checkpoint_index = recovered.checkpoint_index;
    let replica = Replica::new(&replica_options, recovered, Box::new(storage.log.reader()))?;
    if replica.state().meta().cluster.is_some_and(|cluster| cluster != options.cluster) {
        return Err(NodeError::ForeignKeys { directory: data_dir.display().to_string() });
    }
    let server = Server::with_options(replica, options.behaviour)?;
    let (control, messages) = channel();
    let (worker, worker_messages) = channel();
    let (kept_sender, kept) = watch::channel(checkpoint_index);
    let (gap_sender, gap) = watch::channel(storage.side.gap());
    let (role_sender, role) = watch::channel(Role::default());
    let (directory_sender, directory) = watch::channel(Arc::default());
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let ended = Arc::new(Notify::new());
    let meters = Arc::new(Meters::new());
    let (log_requests, log) = log_thread(storage.log, control.clone(), meters.clone())?;
    let news = SideNews { kept: kept_sender, gap: gap_sender };
    let (side_requests, side) = side_thread(storage.side, log_requests.clone(), control.clone(), news)?;
    let (rate, pressure) = (Arc::new(EndRate::new()), Arc::new(Pressure::default()));
    let wiring = Wiring {
        log: log_requests,
        side: side_requests.clone(),
        worker: options.worker_key.map(|key| (worker.clone(), key)),
        peers: options.peers,
        named: options.named,
        events: events.clone(),
        role: role_sender,
        directory: directory_sender,
        rate: rate.clone(),
        pressure: pressure.clone(),
        meters: meters.clone(),
    };
    let tell = ended.clone();
    let control_thread = spawn("control", move || {
        let outcome = Control::new(server, wiring).run(&messages);
        tell.notify_one();
        outcome
    })?;
    Ok(Engine {
        control,
        side: side_requests,
        history,
        worker: (worker, Some(worker_messages)),
        kept,
        gap,
        role,
        directory,
        events,
        rate,
        pressure,
        meters,
        ended,
        threads: Threads { control: control_thread, log, side, worker: None, collector: None },
        records,
        tree,
        room,
    })
}

pub(crate) fn seed() -> Result<u64, NodeError> {
    let [a, b, c, d, e, f, g, h, ..] = random()?;
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// Ends the threads; the reason that one gave itself says more than that it is gone.
pub(crate) fn end(engine: Engine) -> Result<(), NodeError> {
    let Threads { control, log, side, worker, collector } = engine.threads;
    let collector = collector.map(|(handle, running)| {
        drop(running);
        handle
    });
    drop(engine.worker.0.send(WorkerMessage::End));
    drop(engine.control.send(Message::Stop));
    drop((engine.control, engine.side, engine.worker, engine.events));
    let joined = |handle: JoinHandle<Result<(), NodeError>>, name| {
        handle.join().unwrap_or(Err(NodeError::ThreadEnded(name)))
    };
    let worker = worker.map_or(Ok(()), |handle| joined(handle, "worker"));
    let control = joined(control, "control");
    // It waits for nobody who is gone, and what it leaves undone is done the next time.
    let collected =
        collector.map_or(Ok(()), |handle| handle.join()).map_err(|_| NodeError::ThreadEnded("collector"));
    let (side, log) = (joined(side, "history"), joined(log, "log"));
    worker.and(log).and(side).and(control).and(collected)
}

pub(crate) async fn ask<T: Send + 'static>(
    engine: &Engine,
    question: impl FnOnce(&grey_core::State) -> T + Send + 'static,
) -> Result<T, NodeError> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let question = Box::new(move |replica: Result<&Replica, _>| {
        if let Ok(replica) = replica {
            // Who asked and is gone needs no answer.
            drop(reply.send(question(replica.state())));
        }
    });
    drop(engine.control.send(Message::Ask(question)));
    answer.await.map_err(|_| NodeError::ThreadEnded("control"))
}
