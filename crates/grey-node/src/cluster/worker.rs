//! A worker of a cluster.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grey_agent::{Agent, AgentOptions, EventSink, Executor, KeepOptions};
use grey_blob::BlobStore;
use grey_core::{Devices, NodeRole, Signer, validate};
use grey_exec::{NoopExecutor, ProcessExecutor, ProcessOptions, machine_resources};
use grey_proof::Digest;
use grey_store::{DirectoryLock, Disk, Folder, Journal};
use grey_trust::{IdentityHandle, Trust, client_config, tls_key_of_seed};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{Notify, watch};

use super::papers::{Papers, node_secret, proof_key, tls_seed};
use super::renew::renew;
use super::server::{measurement, papers, runtime};
use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::config::{Join, WorkerConfig};
use crate::error::NodeError;
use crate::format::check_format;
use crate::gather::Inputs;
use crate::identity::random;
use crate::items::ItemLists;
use crate::local::{ATTEMPTS_AT_ONCE, PROCESSES_AT_ONCE};
use crate::metrics::{self, Meters};
use crate::plane::{
    Dialler, Doubt, Here, Joining, Servers, Tails, certificate_id, follow_issuer, link_to_leader,
};
use crate::threads::spawn;
use crate::traces::{Teller, Traces};
use crate::worker::{Leader, Worker, WorkerMessage, WorkerWiring};

/// Where the shim listens that holds what runs: in the data directory.
const DOOR_FILE: &str = "shim.sock";
/// How long what is under way may take at the end.
const GRACE: Duration = Duration::from_secs(2);

/// What a worker tells once it runs.
#[derive(Debug, Clone)]
pub struct WorkerReady {
    /// The cluster.
    pub cluster: Digest,
    /// Its node.
    pub node: Digest,
    /// What is enforced around tasks here.
    pub sandbox: String,
}

/// Runs a worker until it is told to end or cannot go on. What runs outlives it until its lease ends: the next worker on the same
/// directory goes on with it. `launcher` is the binary that is re-executed as a task's launcher.
///
/// # Errors
/// Why it cannot start, or go on.
pub fn run_worker(
    config: &WorkerConfig,
    launcher: PathBuf,
    on_ready: impl FnOnce(&WorkerReady),
) -> Result<(), NodeError> {
    let labels: Vec<(String, String)> = config.labels.clone().into_iter().collect();
    let devices = config.devices.iter().map(|(name, count)| Devices { name: name.clone(), count: *count });
    let devices: Vec<Devices> = devices.collect();
    validate::worker(&labels, &devices)
        .map_err(|rejection| NodeError::Worker { reason: rejection.to_string() })?;
    let directory = config.data_dir.as_path();
    let _lock = DirectoryLock::take(directory)?;
    check_format(directory)?;
    let secret = node_secret(directory)?;
    let joining = Joining {
        role: NodeRole::Worker,
        name: config.name.clone(),
        address: String::new(),
        key: proof_key(&secret, NodeRole::Worker),
        tls_seed: tls_seed(&secret),
        measurement: measurement()?,
    };
    let runtime = runtime()?;
    let join = Join { servers: config.servers.clone(), token: config.token.clone() };
    let papers = papers(&runtime, directory, &joining, Some(&join))?;
    let served = runtime.block_on(work(config, papers, joining, launcher, labels, devices, on_ready));
    runtime.shutdown_timeout(GRACE);
    served
}

async fn work(
    config: &WorkerConfig,
    papers: Papers,
    joining: Joining,
    launcher: PathBuf,
    labels: Vec<(String, String)>,
    devices: Vec<Devices>,
    on_ready: impl FnOnce(&WorkerReady),
) -> Result<(), NodeError> {
    let directory = config.data_dir.as_path();
    let disk: Arc<dyn Disk> =
        Arc::new(Folder::open(directory).map_err(NodeError::io("open", directory.display()))?);
    let (cluster, key) = (papers.cluster(), papers.proof_key());
    let signer = Signer {
        cluster,
        node: key.verifying_key().id(),
        certificate: certificate_id(papers.certificate())?,
    };
    let trust = Trust::of_cluster(cluster);
    trust.pin(papers.servers().iter().map(|place| place.tls_key));
    let handle = IdentityHandle::new(&papers.tls)?;
    let dialler = Dialler::new(Arc::new(client_config(&trust, Some(&handle))?));
    let (found, places) = watch::channel(papers.servers());
    let (itself, messages) = channel();
    let sink_to = itself.clone();
    let sink: EventSink = Arc::new(move |event| drop(sink_to.send(WorkerMessage::Event(event))));
    let resources = machine_resources(directory)?;
    let process_options = ProcessOptions {
        work_dir: directory.join("attempts"),
        launcher,
        door: Some(directory.join(DOOR_FILE)),
        max_running: PROCESSES_AT_ONCE,
        resources,
    };
    let process = ProcessExecutor::new(process_options, sink.clone())?;
    let adoptable = process.adoptable();
    if !adoptable.is_empty() {
        tracing::info!(attempts = adoptable.len(), "going on with what outlived the worker before this one");
    }
    let process: Arc<dyn Executor> = Arc::new(process);
    let noop: Arc<dyn Executor> = Arc::new(NoopExecutor::new(resources, sink));
    let capabilities = process.capabilities();
    let options = AgentOptions {
        signer,
        name: config.name.clone(),
        lease: Some(KeepOptions::default()),
        // Each start is another life; a clock that was set back is noticed by the cluster, which refuses an earlier one.
        incarnation: wall_ms(),
        capacity: capabilities.resources,
        sandbox: capabilities.sandbox,
        labels,
        devices,
        parallel: ATTEMPTS_AT_ONCE,
        salt_seed: random()?,
    };
    let journal = Journal::open(disk)?;
    let outbox = journal.entries().iter().map(|(key, bytes)| (*key, bytes.as_slice()));
    let agent = Agent::new(options, key, outbox, &adoptable)?;
    let local = Arc::new(BlobStore::open(&directory.join("blobs"))?);
    let servers = Servers::new(dialler.clone(), places.clone());
    let (say, said) = unbounded_channel();
    let tails = Arc::new(Tails::new(process.clone()));
    tokio::spawn(Tails::sweep(Arc::downgrade(&tails)));
    let doubt = Doubt::default();
    let here = Here { worker: itself.clone(), tails, doubt: doubt.clone() };
    let meters = Arc::new(Meters::new());
    let teller = Teller { cluster, node: signer.node, name: Some(&config.name), role: "worker" };
    let traces = Traces::start(config.traces.as_ref(), &teller, meters.clone())?;
    let wiring = WorkerWiring {
        leader: Leader::Elsewhere(say),
        itself: itself.clone(),
        process,
        noop,
        inputs: Inputs {
            blobs: Arc::new(Blobs::among(local, servers, None)),
            items: Arc::new(ItemLists::default()),
            gatherer: None,
        },
        traces: traces.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let ended = Arc::new(Notify::new());
    let tell = ended.clone();
    let thread = spawn("worker", move || {
        let outcome = Worker::new(agent, journal, wiring).run(&messages);
        tell.notify_one();
        outcome
    })?;
    let link = Servers::new(dialler.clone(), places.clone());
    let (asked, own_key) = (places.clone(), tls_key_of_seed(&joining.tls_seed));
    let seed = crate::engine::seed()?;
    let (link, (tells, issuer)) = (Arc::new(link), watch::channel(None));
    tokio::spawn(link_to_leader(link.clone(), cluster, found, said, here, seed));
    tokio::spawn(follow_issuer(link, tells));
    let (papers, agent) = (Arc::new(Mutex::new(papers)), itself.clone());
    tokio::spawn(renew(papers, handle, joining, dialler, (places, issuer), move |papers: &Papers| {
        match certificate_id(papers.certificate()) {
            Ok(certificate) => drop(agent.send(WorkerMessage::Certified(certificate))),
            Err(error) => tracing::error!(%error, "the next certificate is not usable"),
        }
    }));
    let _metrics = match config.metrics_listen {
        None => None,
        Some(address) => {
            let data_dir = config.data_dir.clone();
            let source = metrics::Source { meters, data_dir, server: None, worker: Some(itself.clone()) };
            Some(metrics::listen(address, source).await?)
        }
    };
    on_ready(&WorkerReady { cluster, node: signer.node, sandbox: capabilities.sandbox.name().to_owned() });
    let asked = Servers::new(Dialler::new(Arc::new(client_config(&trust, None)?)), asked);
    let told = tokio::select! {
        told = told_to_end(&ended) => told,
        () = doubt.until_removed(&asked, &own_key) => Err(NodeError::Removed { directory: directory.display().to_string() }),
    };
    drop(itself.send(WorkerMessage::End));
    let outcome = tokio::task::spawn_blocking(move || thread.join()).await;
    if let Some(traces) = traces {
        traces.flush().await;
    }
    let outcome = outcome.ok().and_then(Result::ok).unwrap_or(Err(NodeError::ThreadEnded("worker")));
    told.and(outcome)
}

async fn told_to_end(ended: &Notify) -> Result<(), NodeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate()).map_err(NodeError::io("watch", "SIGTERM"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(NodeError::io("watch", "SIGINT"))?;
    tokio::select! {
        () = ended.notified() => {}
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
