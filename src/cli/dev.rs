//! `grey dev` and `grey down`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grey_api::{Client, ClientError, ClusterStatus};
use grey_node::config::metrics_listen;
use grey_node::{LocalOptions, Ready, run_local};

use super::error::CliError;
use super::node_config::TracesArguments;
use super::output::Output;
use super::serve::{IntakeArguments, LAUNCHER, RetentionArguments, WorkerArguments, log_to_stderr};
use super::session::{Target, runtime};

/// How long `grey down` waits for the process to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Arguments of `grey dev`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey dev                            listen on 127.0.0.1:7654 until Ctrl-C
  grey dev --listen 127.0.0.1:8000    on another port
  grey --data-dir ./try dev           with data of its own
  grey dev --label zone=a --device gpu=2    a worker that tasks may choose by its label, with two GPUs
  grey dev --metrics-listen 7655      metrics at http://127.0.0.1:7655/metrics
  grey dev --traces-endpoint http://127.0.0.1:4317     spans to an OpenTelemetry collector
  grey dev --retain-logs 7d --retain-history 1000d     keep logs for a week, records and proofs for years")]
pub struct DevArguments {
    /// The loopback address to listen on
    #[arg(long, default_value = "127.0.0.1:7654", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// A loopback address, or a port of 127.0.0.1, at which metrics are read [default: nowhere]
    #[arg(long, env = "GREY_METRICS_LISTEN", value_parser = metrics_listen, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    traces: TracesArguments,
    #[command(flatten)]
    worker: WorkerArguments,
    #[command(flatten)]
    retention: RetentionArguments,
    #[command(flatten)]
    intake: IntakeArguments,
}

/// Runs the local cluster in the foreground.
pub fn dev(arguments: &DevArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    let data_dir = target.directory()?.to_path_buf();
    log_to_stderr("warn");
    let options = LocalOptions {
        data_dir: data_dir.clone(),
        launcher: PathBuf::from(LAUNCHER),
        listen: Some(arguments.listen),
        metrics_listen: arguments.metrics_listen,
        traces: arguments.traces.config()?,
        idle_exit: None,
        labels: arguments.worker.labels(),
        devices: arguments.worker.devices(),
        retention: arguments.retention.retention(),
        intake: arguments.intake.intake(),
    };
    let outcome = run_local(&options, |ready: &Ready| {
        // A closed stdout must not end the cluster.
        drop(output.result(&announcement(ready, &data_dir), || announced(ready, &data_dir)));
    });
    outcome.map(|()| 0).map_err(|error| {
        let error = CliError::failed(error.to_string());
        match target.directory() {
            Ok(_) if error.message.contains("is in use by process") => {
                error.hint("`grey down` ends the background process of this data directory")
            }
            _ => error,
        }
    })
}

fn metrics_url(address: SocketAddr) -> String {
    format!("http://{address}/metrics")
}

fn announcement(ready: &Ready, data_dir: &Path) -> serde_json::Value {
    serde_json::json!({
        "address": ready.address.map(|address| format!("http://{address}")),
        "token": ready.token,
        "metrics": ready.metrics.map(metrics_url),
        "socket": ready.socket,
        "cluster": ready.cluster,
        "sandbox": ready.sandbox,
        "data_dir": data_dir,
    })
}

fn announced(ready: &Ready, data_dir: &Path) -> String {
    let address = ready.address.map(|address| format!("http://{address}")).unwrap_or_default();
    let metrics =
        ready.metrics.map(|address| format!("metrics  {}\n", metrics_url(address))).unwrap_or_default();
    format!(
        "cluster  {}\ndata     {}\nsandbox  {}\nsocket   {}\n{metrics}\nIn another shell:\n  export GREY_ADDR={address}\n  export GREY_TOKEN={}\n  grey run -- echo hello\n\nCtrl-C ends it; the data stays.\n",
        ready.cluster,
        data_dir.display(),
        ready.sandbox,
        ready.socket.display(),
        ready.token.as_deref().unwrap_or_default(),
    )
}

fn silent(client: &Client) -> ClientError {
    let reason = format!("it does not answer within {} s", END_TIMEOUT.as_secs());
    ClientError::Broken { address: client.address().to_string(), reason }
}

/// Ends the local cluster's background process.
pub fn down(target: &Target, output: &Output) -> Result<u8, CliError> {
    let directory = target.directory()?.to_path_buf();
    runtime()?.block_on(async {
        let client = target.client(output);
        let status = tokio::time::timeout(END_TIMEOUT, client.get::<ClusterStatus>("/v1/cluster")).await;
        let status = match status.unwrap_or_else(|_| Err(silent(&client))) {
            Ok(status) => status,
            Err(ClientError::Broken { .. }) if !directory_is_held(&directory) => return Ok(0),
            Err(ClientError::Unreachable { .. }) => {
                output.note(&format!("no local cluster runs in {}", directory.display()));
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let begun = Instant::now();
        let nothing = serde_json::json!({});
        let asked = client.post::<_, serde_json::Value>("/v1/cluster/shutdown", &nothing, None);
        // Without an answer it may be ending already, at somebody else's word; whether it does shows below.
        if let Ok(Err(error @ ClientError::Refused(_))) = tokio::time::timeout(END_TIMEOUT, asked).await {
            return Err(error.into());
        }
        // The process releases the directory as the last thing it does, so that is what is waited for.
        while Path::new(&format!("/proc/{}/fd", status.process_id)).exists() && directory_is_held(&directory)
        {
            if begun.elapsed() > END_TIMEOUT {
                return Err(CliError::failed(format!("process {} does not end", status.process_id)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        output.note(&format!("ended the local cluster in {}; its data stays", directory.display()));
        if status.jobs_live > 0 {
            output.note(&format!("{} job(s) had not ended and go on at the next start", status.jobs_live));
        }
        Ok(0)
    })
}

/// Whether a process has the data directory.
pub fn directory_is_held(directory: &Path) -> bool {
    std::fs::File::open(directory.join("lock")).is_ok_and(|file| {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    })
}
