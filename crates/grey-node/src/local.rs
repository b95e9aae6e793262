//! A cluster of one process: server and worker on one data directory, reached over a unix socket in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use grey_agent::{Agent, AgentOptions, Capabilities, EventSink, Executor};
use grey_blob::BlobStore;
use grey_core::{Bootstrap, Command, Devices, Resources, TaskDefaults, TenantRecord, validate};
use grey_exec::{NoopExecutor, ProcessExecutor, ProcessOptions, machine_resources};
use grey_proof::Digest;
use grey_replica::{DoorOptions, ServerOptions};
use grey_store::{DirectoryLock, Disk, Folder, Journal};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;

use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::config::TracesConfig;
use crate::control::{Message, Outcome};
use crate::engine::{Engine, EngineOptions, ask, end, own_version, start_engine};
use crate::error::NodeError;
use crate::format::check_format;
use crate::gather::{Gatherer, Inputs};
use crate::handle::{Activity, HELD, Node, UPLOADS};
use crate::http;
use crate::identity::{Identity, random, secret};
use crate::items::ItemLists;
use crate::level::raise;
use crate::metrics::{self, MetricsListener};
use crate::places::Places;
use crate::retention::{Asker, CollectorWiring, Keeping, Retention, collector_thread};
use crate::snapshot::SnapshotSource;
use crate::threads::spawn;
use crate::traces::{Teller, Traces};
use crate::worker::{Leader, Worker, WorkerMessage, WorkerWiring};

/// The number of the only server.
pub(crate) const SERVER: u64 = 1;
/// The socket's name in the data directory.
pub const SOCKET_FILE: &str = "grey.sock";
/// The longest path of a unix socket that the system takes, in bytes.
const LONGEST_SOCKET_PATH_BYTES: usize = 107;
/// Log after which a checkpoint is due, in bytes.
pub(crate) const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// Attempts that the worker gives to its executors at once; their resources bound them further.
pub(crate) const ATTEMPTS_AT_ONCE: u32 = 1_024;
/// Processes that run at once.
pub(crate) const PROCESSES_AT_ONCE: usize = 256;
/// How often idleness is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long open requests may take to end at a shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Choices of a local cluster.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// The binary that is re-executed as a task's launcher.
    pub launcher: PathBuf,
    /// A loopback address to listen on beside the socket; a token is then needed there.
    pub listen: Option<SocketAddr>,
    /// A loopback address at which metrics are read; nowhere when there is none.
    pub metrics_listen: Option<SocketAddr>,
    /// Where spans are told; nowhere when there is none.
    pub traces: Option<TracesConfig>,
    /// End after so long without a request and without work.
    pub idle_exit: Option<Duration>,
    /// Labels of its worker, by which tasks choose it.
    pub labels: BTreeMap<String, String>,
    /// Devices of its worker: how many of each kind tasks may have.
    pub devices: BTreeMap<String, u32>,
    /// How long it keeps what has ended.
    pub retention: Retention,
    /// How much it takes in.
    pub intake: Intake,
}

/// How much a node takes in. What is left out has the usual bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Intake {
    /// Tasks a second that each tenant may submit in the long run; 1 to 10,000,000.
    pub tasks_per_second: Option<u64>,
    /// Tasks that a tenant may submit at once after a pause, and so the most of one submission; 1 to 100,000,000.
    pub burst_tasks: Option<u64>,
    /// Proposals that may be under way at once, beside those that end work; 1 to 4,096.
    pub proposals: Option<u64>,
}

impl Intake {
    pub(crate) fn door(self) -> Result<DoorOptions, NodeError> {
        let mut door = DoorOptions::default();
        if let Some(rate) = &mut door.rate {
            rate.tasks_per_second = self.tasks_per_second.unwrap_or(rate.tasks_per_second);
            rate.burst = self.burst_tasks.unwrap_or(rate.burst);
            rate.validate().map_err(|problems| {
                NodeError::Intake(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            })?;
        }
        let most = door.gate.capacity.shared.count;
        if let Some(proposals) = self.proposals {
            if !(1..=most).contains(&proposals) {
                return Err(NodeError::Intake(format!(
                    "`proposals` is {proposals}; it must be from 1 to {most}"
                )));
            }
            door.gate.capacity.shared.count = proposals;
        }
        Ok(door)
    }
}

/// What a node tells once it takes requests.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The socket.
    pub socket: PathBuf,
    /// The loopback address, where one was asked for.
    pub address: Option<SocketAddr>,
    /// The token for it.
    pub token: Option<String>,
    /// Where metrics are read, where that was asked for.
    pub metrics: Option<SocketAddr>,
    /// The cluster.
    pub cluster: String,
    /// What is enforced around tasks here.
    pub sandbox: String,
}

/// The defaults of a local tenant.
pub(crate) fn defaults() -> TaskDefaults {
    TaskDefaults {
        resources: Resources { cpu_millicores: 1_000, memory_bytes: 64 * 1024 * 1024, disk_bytes: 0 },
        timeout_ms: 24 * 3_600 * 1_000,
        output_limit_bytes: 64 * 1024 * 1024,
        priority: 100,
    }
}

/// The worker's labels and devices, sorted.
fn offered(options: &LocalOptions) -> (Vec<(String, String)>, Vec<Devices>) {
    let labels = options.labels.clone().into_iter().collect();
    let devices = options.devices.iter().map(|(name, count)| Devices { name: name.clone(), count: *count });
    (labels, devices.collect())
}

/// Runs a local cluster until it is told to end, has been idle for long enough, or cannot go on.
pub fn run_local(options: &LocalOptions, on_ready: impl FnOnce(&Ready)) -> Result<(), NodeError> {
    let plain = [options.listen, options.metrics_listen];
    if let Some(address) = plain.into_iter().flatten().find(|address| !address.ip().is_loopback()) {
        return Err(NodeError::NotLoopback { address: address.to_string() });
    }
    options.retention.check()?;
    let (labels, devices) = offered(options);
    validate::worker(&labels, &devices)
        .map_err(|rejection| NodeError::Worker { reason: rejection.to_string() })?;
    let _lock = DirectoryLock::take(&options.data_dir)?;
    check_format(&options.data_dir)?;
    let door = options.intake.door()?;
    let identity = Identity::open(&options.data_dir, wall_ms())?;
    let disk: Arc<dyn Disk> =
        Arc::new(Folder::open(&options.data_dir).map_err(NodeError::io("open", options.data_dir.display()))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(NodeError::io("start", "the runtime"))?;
    // A worker in the same process lives and dies with this server, and there is no other: nothing to watch, no links.
    let engine_options = EngineOptions {
        server: SERVER,
        cluster: identity.cluster(),
        checkpoint_bytes: CHECKPOINT_BYTES,
        version: own_version(None),
        behaviour: ServerOptions { door, ..ServerOptions::default() },
        worker_key: Some(identity.worker_key),
        peers: None,
        named: None,
        takes_all_for_agreed: false,
    };
    let mut engine = start_engine(disk.clone(), &options.data_dir, engine_options)?;
    let served = runtime.block_on(serve(options, identity, disk, &mut engine, on_ready));
    let ended = end(engine);
    runtime.shutdown_timeout(GRACE);
    served.and(ended)
}

async fn serve(
    options: &LocalOptions,
    identity: Identity,
    disk: Arc<dyn Disk>,
    engine: &mut Engine,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), NodeError> {
    let (socket, listener) = bind_socket(&options.data_dir)?;
    let loopback = match options.listen {
        Some(address) => Some(bind_loopback(address).await?),
        None => None,
    };
    let address = loopback.as_ref().and_then(|listener| listener.local_addr().ok());
    let token = match loopback {
        Some(_) => Some(Digest(secret(&options.data_dir, "token")?).to_string()),
        None => None,
    };
    tokio::select! {
        found = lead(engine, &identity) => found?,
        // Why it ended, its thread says when it is joined.
        () = engine.ended.notified() => return Ok(()),
    };
    let blobs = Arc::new(BlobStore::open(&options.data_dir.join("blobs"))?);
    let keeping = Arc::new(Keeping::new(options.retention));
    let items = Arc::new(ItemLists::default());
    let (cluster, node) = (identity.cluster(), identity.signer.node);
    let teller = Teller { cluster, node, name: None, role: "local" };
    let traces = Traces::start(options.traces.as_ref(), &teller, engine.meters.clone())?;
    let (capabilities, process) =
        start_worker(options, &identity, disk, engine, (&blobs, &items), traces.clone()).await?;
    start_collector(engine, &blobs, &keeping, None)?;
    let cluster = identity.cluster().to_string();
    let node = Arc::new(Node {
        control: engine.control.clone(),
        snapshots: SnapshotSource::new(engine.control.clone(), engine.side.clone()),
        kept: engine.kept.clone(),
        role: engine.role.clone(),
        records: engine.records.clone(),
        tree: engine.tree.clone(),
        depot: Arc::new(Blobs::alone(blobs.clone())),
        blobs,
        claims: Arc::default(),
        keeping,
        items,
        process: Some(process),
        streams: None,
        signing: Arc::new(identity.into_signing()),
        cosigners: None,
        issuing: None,
        events: engine.events.clone(),
        rate: engine.rate.clone(),
        directory: engine.directory.clone(),
        server: SERVER,
        forwarder: None,
        data_dir: options.data_dir.clone(),
        shutdown: Notify::new(),
        activity: Arc::new(Activity::new()),
        uploads: Places::new(UPLOADS),
        held: Places::new(HELD),
        pressure: engine.pressure.clone(),
        meters: engine.meters.clone(),
        traces: traces.clone(),
        disk: engine.room.clone(),
        capacity: Some(capabilities.resources),
    });
    let metrics = listen_for_metrics(options, engine, &node).await?;
    let sandbox = capabilities.sandbox.name().to_owned();
    let stopping = Arc::new(Notify::new());
    let mut servers = tokio::task::JoinSet::new();
    let wait = stopping.clone();
    servers.spawn(
        axum::serve(listener, http::for_socket(node.clone()))
            .with_graceful_shutdown(async move { wait.notified().await })
            .into_future(),
    );
    if let (Some(listener), Some(token)) = (loopback, token.clone()) {
        let wait = stopping.clone();
        servers.spawn(
            axum::serve(listener, http::for_loopback(node.clone(), token))
                .with_graceful_shutdown(async move { wait.notified().await })
                .into_future(),
        );
    }
    let metrics_at = metrics.as_ref().map(|listener| listener.address);
    on_ready(&Ready { socket: socket.clone(), address, metrics: metrics_at, token, cluster, sandbox });
    wait_for_end(&node, &engine.ended, options.idle_exit).await?;
    stopping.notify_waiters();
    // Streams that never end by themselves are cut when the grace is over.
    drop(tokio::time::timeout(GRACE, async { while servers.join_next().await.is_some() {} }).await);
    drop(std::fs::remove_file(&socket));
    if let Some(traces) = traces {
        traces.flush().await;
    }
    Ok(())
}

async fn listen_for_metrics(
    options: &LocalOptions,
    engine: &Engine,
    node: &Arc<Node>,
) -> Result<Option<MetricsListener>, NodeError> {
    let Some(address) = options.metrics_listen else { return Ok(None) };
    let source = metrics::Source {
        meters: engine.meters.clone(),
        data_dir: options.data_dir.clone(),
        server: Some(node.clone()),
        worker: Some(engine.worker.0.clone()),
    };
    metrics::listen(address, source).await.map(Some)
}

/// Waits for leadership, and founds the cluster where there is none.
async fn lead(engine: &Engine, identity: &Identity) -> Result<(), NodeError> {
    let mut role = engine.role.clone();
    role.wait_for(|role| role.leads).await.map_err(|_| NodeError::ThreadEnded("control"))?;
    let founded = ask(engine, |state| state.meta().cluster.is_some()).await?;
    if !founded {
        found(engine, identity).await?;
    }
    let (in_force, understood) =
        ask(engine, |state| (state.feature_level(), state.understood_by_all())).await?;
    raise(&engine.control, in_force, understood).await
}

async fn found(engine: &Engine, identity: &Identity) -> Result<(), NodeError> {
    let tenant = |name: &str| TenantRecord { name: name.to_owned(), defaults: defaults() };
    let body = Bootstrap {
        cluster: identity.cluster(),
        wall_ms: wall_ms(),
        tenants: vec![tenant("system"), tenant("default")],
    };
    let (reply, answer) = tokio::sync::oneshot::channel();
    drop(engine.control.send(Message::Propose(Command::Bootstrap(body), Instant::now(), reply)));
    match answer.await {
        Ok(Outcome::Applied(Ok(_), _)) => Ok(()),
        other => {
            tracing::error!(?other, "the cluster could not be founded");
            Err(NodeError::ThreadEnded("control"))
        }
    }
}

async fn start_worker(
    options: &LocalOptions,
    identity: &Identity,
    disk: Arc<dyn Disk>,
    engine: &mut Engine,
    (blobs, items): (&Arc<BlobStore>, &Arc<ItemLists>),
    traces: Option<Arc<Traces>>,
) -> Result<(Capabilities, Arc<dyn Executor>), NodeError> {
    let node = identity.signer.node;
    let lives = move |state: &grey_core::State| {
        state.workers().values().find(|worker| worker.node == node).map_or(0, |worker| worker.incarnation)
    };
    let incarnation = ask(engine, lives).await?.saturating_add(1);
    let (itself, messages) = (engine.worker.0.clone(), engine.worker.1.take());
    let sink_to = itself.clone();
    let sink: EventSink = Arc::new(move |event| drop(sink_to.send(WorkerMessage::Event(event))));
    let resources = machine_resources(&options.data_dir)?;
    let process_options = ProcessOptions {
        work_dir: options.data_dir.join("attempts"),
        launcher: options.launcher.clone(),
        // This process is the whole cluster: nobody would take up what outlives it.
        door: None,
        max_running: PROCESSES_AT_ONCE,
        resources,
    };
    let process: Arc<dyn Executor> = Arc::new(ProcessExecutor::new(process_options, sink.clone())?);
    let noop: Arc<dyn Executor> = Arc::new(NoopExecutor::new(resources, sink));
    let capabilities = process.capabilities();
    let (labels, devices) = offered(options);
    let agent_options = AgentOptions {
        signer: identity.signer,
        name: host_name(),
        lease: None,
        incarnation,
        capacity: capabilities.resources,
        sandbox: capabilities.sandbox,
        labels,
        devices,
        parallel: ATTEMPTS_AT_ONCE,
        salt_seed: random()?,
    };
    let key = identity.report_key();
    let journal = Journal::open(disk)?;
    let outbox = journal.entries().iter().map(|(key, bytes)| (*key, bytes.as_slice()));
    let agent = Agent::new(agent_options, key, outbox, &[])?;
    let wiring = WorkerWiring {
        leader: Leader::Here(engine.control.clone()),
        itself,
        process: process.clone(),
        noop,
        inputs: Inputs {
            blobs: Arc::new(Blobs::alone(blobs.clone())),
            items: items.clone(),
            gatherer: Some(Gatherer {
                records: engine.records.clone(),
                kept: engine.kept.clone(),
                blobs: blobs.clone(),
            }),
        },
        traces,
        runtime: tokio::runtime::Handle::current(),
    };
    let messages = messages.ok_or(NodeError::ThreadEnded("worker"))?;
    let tell = engine.ended.clone();
    engine.threads.worker = Some(spawn("worker", move || {
        let outcome = Worker::new(agent, journal, wiring).run(&messages);
        tell.notify_one();
        outcome
    })?);
    Ok((capabilities, process))
}

pub(crate) fn start_collector(
    engine: &mut Engine,
    blobs: &Arc<BlobStore>,
    keeping: &Arc<Keeping>,
    among_others: Option<Arc<Blobs>>,
) -> Result<(), NodeError> {
    let is_among_others = among_others.is_some();
    let wiring = CollectorWiring {
        history: engine.history.clone(),
        blobs: blobs.clone(),
        keeping: keeping.clone(),
        asker: Asker {
            control: engine.control.clone(),
            kept: engine.kept.clone(),
            runtime: tokio::runtime::Handle::current(),
            is_among_others,
        },
        among_others,
        worker: (!is_among_others).then(|| engine.worker.0.clone()),
        side: engine.side.clone(),
    };
    let (running, ended) = channel();
    engine.threads.collector = Some((collector_thread(wiring, ended)?, running));
    Ok(())
}

pub(crate) fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    name.chars().take(64).collect()
}

/// Binds the socket, also where its path is longer than the system takes: through the open directory. Whoever holds the
/// directory's lock may remove what an earlier process left.
fn bind_socket(data_dir: &Path) -> Result<(PathBuf, UnixListener), NodeError> {
    let path = data_dir.join(SOCKET_FILE);
    let shown = path.display().to_string();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(NodeError::io("remove", shown)(error));
        }
        _ => {}
    }
    let listener = if path.as_os_str().len() <= LONGEST_SOCKET_PATH_BYTES {
        UnixListener::bind(&path)
    } else {
        let directory = File::open(data_dir).map_err(NodeError::io("open", data_dir.display()))?;
        UnixListener::bind(
            Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(SOCKET_FILE),
        )
    };
    let listener = listener.map_err(NodeError::io("listen on", &shown))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(NodeError::io("protect", shown))?;
    Ok((path, listener))
}

async fn bind_loopback(address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            NodeError::AddressInUse { address: address.to_string(), flag: "--listen" }
        }
        _ => NodeError::io("listen on", address)(error),
    })
}

/// Returns when the node is to end: told by a client or a signal, idle, or broken.
pub(crate) async fn wait_for_end(
    node: &Node,
    ended: &Notify,
    idle_exit: Option<Duration>,
) -> Result<(), NodeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate()).map_err(NodeError::io("watch", "SIGTERM"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(NodeError::io("watch", "SIGINT"))?;
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = node.shutdown.notified() => return Ok(()),
            () = ended.notified() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            _ = look.tick() => {
                node.disk.look();
                if idle_exit.is_some_and(|longest| node.activity.idle() >= longest) {
                    // Work keeps a node alive, also when nobody is watching.
                    match node.ask(|replica| replica.state().jobs().is_empty()).await {
                        Ok(true) => return Ok(()),
                        _ => node.activity.touch(),
                    }
                }
            }
        }
    }
}
