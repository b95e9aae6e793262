//! The local cluster's background process.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grey_node::config::{LogConfig, LogFormat};
use grey_node::{Intake, LocalOptions, NodeError, Ready, Retention, run_local, run_server, run_worker};
use tracing_subscriber::EnvFilter;

use super::error::{ANSWER_IS_NO, CliError, REFUSED, UNREACHABLE};
use super::node_config::{self, ServerArguments};
use super::session::StartReport;
use super::units;

/// How long the background process stays without a request and without work.
const IDLE_EXIT: Duration = Duration::from_secs(15 * 60);
/// What a task's launcher is: this binary, also after its file was replaced.
pub const LAUNCHER: &str = "/proc/self/exe";

/// Arguments of the background process.
#[derive(clap::Args)]
pub struct LocalArguments {
    /// End after so long without a request and without work, in milliseconds
    #[arg(long)]
    idle_exit_ms: Option<u64>,
    #[command(flatten)]
    worker: WorkerArguments,
    #[command(flatten)]
    intake: IntakeArguments,
    #[command(flatten)]
    retention: RetentionArguments,
}

/// How long a local cluster keeps what has ended.
#[derive(clap::Args)]
pub struct RetentionArguments {
    /// How long stdout and stderr are kept after the end of their job, where they are large [default: 30d]
    #[arg(long, env = "GREY_RETAIN_LOGS", value_parser = units::duration_ms, value_name = "TIME")]
    retain_logs: Option<u64>,
    /// How long output files are kept, where they are large [default: 30d]
    #[arg(long, env = "GREY_RETAIN_RESULTS", value_parser = units::duration_ms, value_name = "TIME")]
    retain_results: Option<u64>,
    /// How long records of jobs and tasks are kept, with what is small, and their proofs [default: 90d]
    #[arg(long, env = "GREY_RETAIN_HISTORY", value_parser = units::duration_ms, value_name = "TIME")]
    retain_history: Option<u64>,
    /// How long inputs are kept that no job needs any more; 24h at least [default: 7d]
    #[arg(long, env = "GREY_RETAIN_INPUTS", value_parser = units::duration_ms, value_name = "TIME")]
    retain_inputs: Option<u64>,
}

impl RetentionArguments {
    /// What was given, and what is usual for the rest.
    pub fn retention(&self) -> Retention {
        let usual = Retention::default();
        Retention {
            logs_ms: self.retain_logs.unwrap_or(usual.logs_ms),
            results_ms: self.retain_results.unwrap_or(usual.results_ms),
            history_ms: self.retain_history.unwrap_or(usual.history_ms),
            inputs_ms: self.retain_inputs.unwrap_or(usual.inputs_ms),
        }
    }
}

/// What the worker of a local cluster is like.
#[derive(clap::Args)]
pub struct WorkerArguments {
    /// A label of its worker, by which tasks choose it; may be given several times
    #[arg(long = "label", env = "GREY_WORKER_LABELS", value_delimiter = ',', value_parser = units::label, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// Devices of its worker, such as gpu=2; may be given several times
    #[arg(long = "device", env = "GREY_WORKER_DEVICES", value_delimiter = ',', value_parser = units::devices, value_name = "KIND=COUNT")]
    devices: Vec<(String, u32)>,
}

impl WorkerArguments {
    /// The labels by key.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// The devices by kind.
    pub fn devices(&self) -> BTreeMap<String, u32> {
        self.devices.iter().cloned().collect()
    }
}

/// How much a local cluster takes in.
#[derive(clap::Args)]
pub struct IntakeArguments {
    /// Tasks a second that a tenant may submit in the long run
    #[arg(long = "submit-rate", env = "GREY_SUBMIT_RATE", value_name = "TASKS")]
    tasks_per_second: Option<u64>,
    /// Tasks that a tenant may submit at once after a pause; a larger submission is refused
    #[arg(long = "submit-burst", env = "GREY_SUBMIT_BURST", value_name = "TASKS")]
    burst_tasks: Option<u64>,
    /// Submissions under way at once; more are refused until there is room
    #[arg(long = "under-way", env = "GREY_UNDER_WAY", value_name = "COUNT")]
    proposals: Option<u64>,
}

impl IntakeArguments {
    /// As the node takes it.
    pub fn intake(&self) -> Intake {
        let IntakeArguments { tasks_per_second, burst_tasks, proposals } = *self;
        Intake { tasks_per_second, burst_tasks, proposals }
    }
}

/// Writes structured logs to stderr.
pub fn log_to_stderr(default_level: &str) {
    let filter = EnvFilter::try_from_env("GREY_LOG").unwrap_or_else(|_| EnvFilter::new(default_level));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber would be refused; the first one stays.
    drop(subscriber.with_ansi(false).try_init());
}

fn tell(report: &StartReport) {
    let line = serde_json::to_string(report).unwrap_or_default();
    // Whoever started it may be gone; the cluster is there for the next one.
    let mut stdout = std::io::stdout().lock();
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// Says how a node of a cluster writes its log.
fn log_as(log: &LogConfig) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber would be refused; the first one stays.
    match log.format {
        LogFormat::Text => drop(subscriber.with_ansi(false).try_init()),
        LogFormat::Json => drop(subscriber.json().try_init()),
    }
}

fn make_directory(directory: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| CliError::io("make", directory.display(), &error))
}

fn ended(outcome: Result<(), NodeError>) -> Result<u8, CliError> {
    match outcome {
        Ok(()) => {
            tracing::info!("ended");
            Ok(0)
        }
        Err(error) => {
            let exit_status = match error {
                NodeError::NotAdmitted { .. } | NodeError::Removed { .. } => REFUSED,
                NodeError::NotJoined { .. } => UNREACHABLE,
                _ => ANSWER_IS_NO,
            };
            Err(CliError { exit_status, ..CliError::failed(error.to_string()) })
        }
    }
}

/// The same, for a node whose log is read by programs: why it ended is one of its lines.
fn ended_as_logged(outcome: Result<(), NodeError>, log: &LogConfig) -> Result<u8, CliError> {
    match (ended(outcome), log.format) {
        (Err(error), LogFormat::Json) => {
            tracing::error!(error = %error.message, "ended");
            Ok(error.exit_status)
        }
        (outcome, _) => outcome,
    }
}

/// Runs a server of a cluster until it is told to end.
pub fn server(arguments: &ServerArguments, data_dir: Option<&Path>) -> Result<u8, CliError> {
    let config = arguments.config(data_dir)?;
    log_as(&config.log);
    make_directory(&config.data_dir)?;
    let outcome = run_server(&config, |ready| {
        tracing::info!(cluster = %ready.cluster, server = ready.server, listen = %ready.listen, advertise = ready.advertise, "ready");
    });
    ended_as_logged(outcome, &config.log)
}

/// Runs a worker of a cluster until it is told to end.
pub fn worker(arguments: &node_config::WorkerArguments, data_dir: Option<&Path>) -> Result<u8, CliError> {
    let config = arguments.config(data_dir)?;
    log_as(&config.log);
    make_directory(&config.data_dir)?;
    let outcome = run_worker(&config, PathBuf::from(LAUNCHER), |ready| {
        tracing::info!(cluster = %ready.cluster, node = %ready.node, sandbox = ready.sandbox, "ready");
    });
    ended_as_logged(outcome, &config.log)
}

/// Runs until it is told to end or has been idle for long enough.
pub fn local(arguments: &LocalArguments, data_dir: PathBuf) -> u8 {
    log_to_stderr("info");
    let options = LocalOptions {
        data_dir,
        launcher: PathBuf::from(LAUNCHER),
        listen: None,
        metrics_listen: None,
        // It outlives the shell that started it, and would tell its spans wherever that happened to tell them.
        traces: None,
        labels: arguments.worker.labels(),
        devices: arguments.worker.devices(),
        retention: arguments.retention.retention(),
        intake: arguments.intake.intake(),
        idle_exit: Some(arguments.idle_exit_ms.map_or(IDLE_EXIT, Duration::from_millis)),
    };
    let mut ready = false;
    let outcome = run_local(&options, |_: &Ready| {
        ready = true;
        tracing::info!(data_dir = %options.data_dir.display(), "ready");
        tell(&StartReport::Ready);
    });
    match outcome {
        Ok(()) => {
            tracing::info!("ended");
            0
        }
        Err(NodeError::Store(grey_store_error @ grey_node::StoreError::Locked { .. })) => {
            tracing::info!(reason = %grey_store_error, "another process has the directory");
            tell(&StartReport::Locked);
            1
        }
        Err(error) => {
            tracing::error!(%error, "the local cluster ended");
            if !ready {
                tell(&StartReport::Failed(error.to_string()));
            }
            1
        }
    }
}
