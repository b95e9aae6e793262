//! A server of a cluster.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use grey_blob::BlobStore;
use grey_core::{
    Bootstrap, Command, EnrolFounder, NodeRole, NodeStanding, NodeVersion, OLDEST_FEATURE_LEVEL,
    SetNodeVersion, TenantRecord,
};
use grey_proof::{Digest, StreamDigest};
use grey_replica::{LinkOptions, ServerOptions, WatchOptions};
use grey_store::{DirectoryLock, Disk, Folder};
use grey_trust::{IdentityHandle, JoinToken, Trust, client_config, server_config, tls_key_of_seed};
use grey_wire::{MESSAGE_BYTES, NodePlaneServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::begin;
use super::copies::copy;
use super::fill::fill;
use super::found::Founding;
use super::papers::{Papers, node_secret, proof_key, tls_seed};
use super::renew::renew;
use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::config::{Join, ServerConfig};
use crate::control::{Message, Outcome};
use crate::cosign::{Cosigner, Cosigners};
use crate::directory::{Directory, ServerPlace};
use crate::engine::{Engine, EngineOptions, FOUNDER, end, own_version, start_engine};
use crate::error::NodeError;
use crate::format::check_format;
use crate::gather::Gatherer;
use crate::handle::{Activity, HELD, Node, UPLOADS};
use crate::http;
use crate::issuing::Issuing;
use crate::items::ItemLists;
use crate::level::raise;
use crate::local::{defaults, start_collector, wait_for_end};
use crate::metrics;
use crate::peers::Peers;
use crate::places::Places;
use crate::plane::{
    Admission, Dialler, Doubt, Joining, OwnHello, Plane, STANDINGS, Served, Servers, Streams, dial_servers,
    listen,
};
use crate::retention::Keeping;
use crate::snapshot::SnapshotSource;
use crate::traces::{Teller, Traces};

/// Content that waits to be fetched from other servers; more is left to the collector.
const COPIES_WAITING: usize = 16_384;
/// How long leadership may take to be handed on at the end.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
/// How often a server asks whether it belongs to the cluster, as long as its own state does not say so.
const LOOK_FOR_ITSELF_EVERY: Duration = Duration::from_secs(5);
/// How long open requests may take to end at a shutdown.
const GRACE: Duration = Duration::from_secs(3);

/// What a server tells once it takes requests.
#[derive(Debug, Clone)]
pub struct ServerReady {
    /// Its number.
    pub server: u64,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What others dial.
    pub advertise: String,
    /// The cluster.
    pub cluster: Digest,
}

/// The digest of the binary that runs.
pub(super) fn measurement() -> Result<Digest, NodeError> {
    let path = "/proc/self/exe";
    let mut file = File::open(path).map_err(NodeError::io("open", path))?;
    let (mut hash, mut piece) = (StreamDigest::new(), vec![0; 1024 * 1024]);
    loop {
        match file.read(&mut piece).map_err(NodeError::io("read", path))? {
            0 => return Ok(hash.finish().1),
            read => hash.update(piece.get(..read).unwrap_or_default()),
        }
    }
}

/// Enters the cluster, where the directory belongs to none yet.
fn enter(
    runtime: &tokio::runtime::Runtime,
    directory: &Path,
    joining: &Joining,
    servers: &[String],
    token: &str,
) -> Result<Papers, NodeError> {
    let token: JoinToken = token.parse()?;
    let trust = Trust::of_cluster(token.cluster());
    let dialler = Dialler::new(Arc::new(client_config(&trust, None)?));
    let accept = runtime.block_on(joining.enter(&dialler, servers, &token))?;
    tracing::info!(cluster = %accept.cluster, server = ?accept.server, "entered the cluster");
    if joining.role == NodeRole::Server {
        begin::note(directory)?;
    }
    Papers::accepted(directory, joining.role, &accept)
}

/// The papers of a node that belongs to a cluster, or enters it now.
pub(super) fn papers(
    runtime: &tokio::runtime::Runtime,
    directory: &Path,
    joining: &Joining,
    join: Option<&Join>,
) -> Result<Papers, NodeError> {
    if let Some(papers) = Papers::open(directory, joining.role)? {
        return Ok(papers);
    }
    let missing = |hint| NodeError::NoCluster { directory: directory.display().to_string(), hint };
    let join = join.ok_or_else(|| {
        missing("begin one with `grey cluster init`, or give --join and a token of `grey cluster token`")
    })?;
    let token = join.token.as_ref().ok_or_else(|| {
        missing("a token of `grey cluster token` is needed, with --join-token-file or GREY_JOIN_TOKEN")
    })?;
    let token = token.read().map_err(|error| NodeError::Config(error.to_string()))?;
    let servers: Vec<String> = join.servers.iter().map(ToString::to_string).collect();
    enter(runtime, directory, joining, &servers, &token)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, NodeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(NodeError::io("start", "the runtime"))
}

/// Runs a server until it is told to end or cannot go on.
///
/// # Errors
/// Why it cannot start, or go on.
pub fn run_server(config: &ServerConfig, on_ready: impl FnOnce(&ServerReady)) -> Result<(), NodeError> {
    config.retention.check()?;
    let directory = config.data_dir.as_path();
    let _lock = DirectoryLock::take(directory)?;
    check_format(directory)?;
    let door = config.intake.door()?;
    let runtime = runtime()?;
    let secret = node_secret(directory)?;
    let joining = Joining {
        role: NodeRole::Server,
        name: config.name.clone(),
        address: config.advertise.to_string(),
        key: proof_key(&secret, NodeRole::Server),
        tls_seed: tls_seed(&secret),
        measurement: measurement()?,
    };
    let papers = papers(&runtime, directory, &joining, config.join.as_ref())?;
    let disk: Arc<dyn Disk> =
        Arc::new(Folder::open(directory).map_err(NodeError::io("open", directory.display()))?);
    let (dial, asked) = unbounded_channel();
    let (named, copied) = tokio::sync::mpsc::channel(COPIES_WAITING);
    let own = papers.number();
    let seed = crate::engine::seed()?;
    let options = EngineOptions {
        server: own,
        cluster: papers.cluster(),
        checkpoint_bytes: config.checkpoint_bytes,
        version: own_version(config.feature_level_limit),
        behaviour: ServerOptions {
            watch: Some(WatchOptions::default()),
            door,
            links: Some(LinkOptions { seed, ..LinkOptions::default() }),
        },
        worker_key: None,
        peers: Some(Peers::new(own, dial, papers.servers())),
        named: Some(named),
        takes_all_for_agreed: false,
    };
    runtime.block_on(begin(&disk, &papers))?;
    let mut engine = start_engine(disk, directory, options)?;
    let served = runtime.block_on(serve(config, papers, joining, asked, copied, &mut engine, on_ready));
    let ended = end(engine);
    runtime.shutdown_timeout(GRACE);
    served.and(ended)
}

/// Has a server that enters begin from what another one has.
async fn begin(disk: &Arc<dyn Disk>, papers: &Papers) -> Result<(), NodeError> {
    let known = papers.servers();
    let trust = Trust::of_cluster(papers.cluster());
    trust.pin(known.iter().map(|place| place.tls_key));
    let handle = IdentityHandle::new(&papers.tls)?;
    let dialler = Dialler::new(Arc::new(client_config(&trust, Some(&handle))?));
    let (_places, known) = watch::channel(known);
    begin::begin(disk, papers, &Servers::new(dialler, known)).await
}

/// The servers as the state has them; as they were known before where it has none.
fn follow_places(
    mut directory: watch::Receiver<Arc<Directory>>,
    trust: Trust,
    known: Vec<ServerPlace>,
) -> watch::Receiver<Vec<ServerPlace>> {
    trust.pin(known.iter().map(|place| place.tls_key));
    let (sender, places) = watch::channel(known);
    tokio::spawn(async move {
        loop {
            let known = directory.borrow_and_update().clone();
            let found: Vec<ServerPlace> = known.servers().collect();
            if !found.is_empty() {
                trust.pin(known.spoken_to().map(|row| row.tls_key));
                sender.send_replace(found);
            }
            if directory.changed().await.is_err() {
                return;
            }
        }
    });
    places
}

/// Which issuing key is current as the state has it.
fn follow_issuer(mut directory: watch::Receiver<Arc<Directory>>) -> watch::Receiver<Option<Digest>> {
    let (sender, issuer) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let found = directory.borrow_and_update().issuer();
            sender.send_if_modified(|known| core::mem::replace(known, found) != found);
            if directory.changed().await.is_err() {
                return;
            }
        }
    });
    issuer
}

async fn serve(
    config: &ServerConfig,
    papers: Papers,
    joining: Joining,
    asked: tokio::sync::mpsc::UnboundedReceiver<ServerPlace>,
    copied: tokio::sync::mpsc::Receiver<Digest>,
    engine: &mut Engine,
    on_ready: impl FnOnce(&ServerReady),
) -> Result<(), NodeError> {
    let (cluster, own, known) = (papers.cluster(), papers.number(), papers.servers());
    let trust = Trust::of_cluster(cluster);
    let handle = IdentityHandle::new(&papers.tls)?;
    let dialler = Dialler::new(Arc::new(client_config(&trust, Some(&handle))?));
    let listener = TcpListener::bind(config.listen).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            NodeError::AddressInUse { address: config.listen.to_string(), flag: "--listen" }
        }
        _ => NodeError::io("listen on", config.listen)(error),
    })?;
    let listening = listener.local_addr().map_err(NodeError::io("listen on", config.listen))?;
    let places = follow_places(engine.directory.clone(), trust.clone(), known.clone());
    let own_hello = OwnHello { cluster, version: own_version(config.feature_level_limit) };
    let (doubt, own_key) = (Doubt::default(), tls_key_of_seed(&joining.tls_seed));
    tokio::spawn(dial_servers(dialler.clone(), own_hello, asked, engine.control.clone(), doubt.clone()));
    tokio::spawn(look_for_itself(engine.directory.clone(), joining.key.verifying_key().id(), doubt.clone()));

    let local = Arc::new(BlobStore::open(&config.data_dir.join("blobs"))?);
    let servers = Servers::new(dialler.clone(), places.clone());
    let blobs = Arc::new(Blobs::among(local.clone(), servers, Some(own)));
    tokio::spawn(copy(blobs.clone(), copied));
    let issuing = Servers::new(dialler.clone(), places.clone());
    let issuing = Arc::new(Issuing::open(&papers, engine.directory.clone(), issuing)?);
    let admission = Arc::new(Admission::new(
        cluster,
        engine.control.clone(),
        engine.directory.clone(),
        engine.role.clone(),
        issuing.clone(),
    ));
    let snapshots = SnapshotSource::new(engine.control.clone(), engine.side.clone());
    let streams = Arc::new(Streams::default());
    let signing = Arc::new(papers.signing()?);
    let plane = Plane {
        cluster,
        streams: streams.clone(),
        snapshots: snapshots.clone(),
        control: engine.control.clone(),
        directory: engine.directory.clone(),
        role: engine.role.clone(),
        blobs: blobs.clone(),
        gatherer: Gatherer {
            records: engine.records.clone(),
            kept: engine.kept.clone(),
            blobs: local.clone(),
        },
        admission,
        issuing: issuing.clone(),
        cosigner: Cosigner { signing: signing.clone(), tree: engine.tree.clone(), kept: engine.kept.clone() },
        standings: Semaphore::new(STANDINGS),
        known,
    };
    let node_plane = NodePlaneServer::new(Served(Arc::new(plane)))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let node_plane = tonic::service::Routes::new(node_plane).into_axum_router();
    let keeping = Arc::new(Keeping::new(config.retention));
    start_collector(engine, &local, &keeping, Some(blobs.clone()))?;
    let forwarder =
        http::Forwarder::new(grey_api::Trust::from_pem(papers.ca_pem()?.as_bytes()).map_err(|error| {
            NodeError::Damaged {
                file: config.data_dir.join("ca.pem").display().to_string(),
                reason: error.to_string(),
            }
        })?);
    let itself = joining.key.verifying_key().id();
    let teller = Teller { cluster, node: itself, name: Some(&config.name), role: "server" };
    let traces = Traces::start(config.traces.as_ref(), &teller, engine.meters.clone())?;
    let node = Arc::new(Node {
        control: engine.control.clone(),
        snapshots,
        kept: engine.kept.clone(),
        role: engine.role.clone(),
        directory: engine.directory.clone(),
        server: own,
        forwarder: Some(forwarder),
        records: engine.records.clone(),
        tree: engine.tree.clone(),
        blobs: local,
        depot: blobs,
        claims: Arc::default(),
        keeping,
        items: Arc::new(ItemLists::default()),
        process: None,
        streams: Some(streams),
        signing,
        cosigners: Some(Cosigners::new(Servers::new(dialler.clone(), places.clone()), own)),
        issuing: Some(issuing.clone()),
        events: engine.events.clone(),
        rate: engine.rate.clone(),
        data_dir: config.data_dir.clone(),
        shutdown: Notify::new(),
        activity: Arc::new(Activity::new()),
        uploads: Places::new(UPLOADS),
        held: Places::new(HELD),
        pressure: engine.pressure.clone(),
        meters: engine.meters.clone(),
        traces: traces.clone(),
        disk: engine.room.clone(),
        capacity: None,
    });
    if let Some(founding) = Founding::read(&config.data_dir)? {
        let (engine_control, role, directory) =
            (engine.control.clone(), engine.role.clone(), engine.directory.clone());
        let version = own_version(config.feature_level_limit);
        tokio::spawn(async move {
            if let Err(error) = enrol(engine_control, role, directory, cluster, founding, version).await {
                tracing::error!(%error, "the cluster could not be founded");
            }
        });
    }
    let _metrics = match config.metrics_listen {
        None => None,
        Some(address) => {
            let (meters, data_dir) = (engine.meters.clone(), config.data_dir.clone());
            let source = metrics::Source { meters, data_dir, server: Some(node.clone()), worker: None };
            Some(metrics::listen(address, source).await?)
        }
    };
    // Whoever renews outlives the server's threads, which end when nobody has the node any more.
    let (papers, vouched) = (Arc::new(Mutex::new(papers)), Arc::downgrade(&node));
    let told = (places.clone(), follow_issuer(engine.directory.clone()));
    tokio::spawn(renew(papers, handle.clone(), joining, dialler.clone(), told, move |papers: &Papers| {
        if let Some(node) = vouched.upgrade() {
            node.signing.renewed(papers.certified());
        }
    }));
    // Nothing can end this early any more, so that it is ended below.
    let others = Servers::new(dialler.clone(), places.clone());
    let filling = tokio::spawn(fill(engine.gap.clone(), engine.side.clone(), others, places.clone(), own));
    tokio::spawn(issuing.follow(engine.role.clone()));
    let (stop, stopping) = watch::channel(false);
    let tls = Arc::new(server_config(&trust, &handle)?);
    let listens = tokio::spawn(listen(listener, tls, node_plane, http::for_cluster(node.clone()), stopping));
    on_ready(&ServerReady {
        server: own,
        listen: listening,
        advertise: config.advertise.to_string(),
        cluster,
    });
    let others = Servers::new(Dialler::new(Arc::new(client_config(&trust, None)?)), places);
    let ended = tokio::select! {
        ended = wait_for_end(&node, &engine.ended, None) => ended,
        () = doubt.until_removed(&others, &own_key) => {
            Err(NodeError::Removed { directory: config.data_dir.display().to_string() })
        }
    };
    hand_over(engine).await;
    stop.send_replace(true);
    drop(tokio::time::timeout(GRACE, listens).await);
    // The side's thread ends when nobody can ask it for anything any more.
    filling.abort();
    drop(filling.await);
    if let Some(traces) = traces {
        traces.flush().await;
    }
    ended
}

/// Raises a doubt as long as the state does not count this server among those that belong: an earlier state may not know it yet, and of a later
/// one it is told nothing.
async fn look_for_itself(mut directory: watch::Receiver<Arc<Directory>>, itself: Digest, doubt: Doubt) {
    let is_missing = |directory: &Directory| {
        let row = directory.node(&itself);
        directory.nodes().next().is_some() && row.is_none_or(|row| row.standing != NodeStanding::Admitted)
    };
    while directory.wait_for(|directory| is_missing(directory)).await.is_ok() {
        doubt.raise();
        tokio::time::sleep(LOOK_FOR_ITSELF_EVERY).await;
    }
}

/// Before a server ends, another one leads, so that nobody waits for an election.
async fn hand_over(engine: &Engine) {
    let (reply, done) = oneshot::channel();
    if !engine.role.borrow().leads || engine.control.send(Message::HandOver(None, reply)).is_err() {
        return;
    }
    let mut role = engine.role.clone();
    let handed = async {
        drop(done.await);
        // Whoever would say so is gone only when the server ends.
        drop(role.wait_for(|role| !role.leads).await);
    };
    if tokio::time::timeout(HAND_OVER_WITHIN, handed).await.is_err() {
        tracing::info!("nobody took over the leadership");
    }
}

/// The first entries of a cluster. Whichever of them is there already is not made again.
async fn enrol(
    control: std::sync::mpsc::Sender<Message>,
    mut role: watch::Receiver<crate::control::Role>,
    mut directory: watch::Receiver<Arc<Directory>>,
    cluster: Digest,
    founding: EnrolFounder,
    version: NodeVersion,
) -> Result<(), NodeError> {
    let gone = || NodeError::ThreadEnded("control");
    // The engine names this server before it leads; that another one leads means that the cluster was founded long ago.
    role.wait_for(|role| role.leads || ![0, FOUNDER].contains(&role.leader)).await.map_err(|_| gone())?;
    if !role.borrow().leads || directory.borrow().nodes().next().is_some() {
        return Ok(());
    }
    let propose = async |command: Command| {
        let (reply, answer) = oneshot::channel();
        control.send(Message::Propose(command, Instant::now(), reply)).map_err(|_| gone())?;
        match answer.await {
            Ok(Outcome::Applied(Ok(_), _)) => Ok(()),
            other => {
                tracing::error!(?other, "an entry of the founding was not taken");
                Err(gone())
            }
        }
    };
    if directory.borrow().tenants.is_empty() {
        let tenant = |name: &str| TenantRecord { name: name.to_owned(), defaults: defaults() };
        let tenants = vec![tenant("system"), tenant("default")];
        propose(Command::Bootstrap(Bootstrap { cluster, wall_ms: wall_ms(), tenants })).await?;
    }
    let node = founding.node.node;
    propose(Command::EnrolFounder(founding)).await?;
    directory.wait_for(|directory| directory.nodes().next().is_some()).await.map_err(|_| gone())?;
    propose(Command::SetNodeVersion(SetNodeVersion { node, version: version.clone() })).await?;
    raise(&control, OLDEST_FEATURE_LEVEL, version.understands).await?;
    tracing::info!(%cluster, "the cluster is founded");
    Ok(())
}
