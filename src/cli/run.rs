//! `grey run`: one task, its streams, its exit status.

use std::path::{Path, PathBuf};
use std::time::Duration;

use grey_api::{
    Address, Client, ClientError, ConstraintsRequest, ErrorCode, JobCreated, JobRequest, TaskRequest,
    TaskResult, TaskStatus,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::dev::directory_is_held;
use super::error::CliError;
use super::inputs::Inputs;
use super::job::note_duplicate;
use super::output::{Output, harmless};
use super::session::{Target, runtime};
use super::task::{Stream, copy_stream, save_outputs, save_proof};
use super::units;

/// How long one request waits for the task to end, in milliseconds.
const WAIT_MS: u64 = 30_000;
/// After so long a task that has not begun is worth a word on why, in milliseconds.
const SILENT_MS: u64 = 2_000;
/// How often a node that is away is asked again, and how often at most.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const MOST_RETRIES: u32 = 60;
/// A local cluster that has ended comes back only when somebody starts it.
const RETRIES_WHEN_ENDED: u32 = 3;

/// Arguments of `grey run`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey run -- echo hello
  grey run --timeout 30s --cpu 500m --memory 256MiB -- ./simulate --steps 1000
  grey run --out '*.png' --results plots -- sh -c 'plot > \"$GREY_OUT/a.png\"'
  grey run --in data.csv --in scripts -- python3 scripts/clean.py data.csv
  sort names | grey run --stdin - -- uniq -c
  grey run --env LEVEL=9 --proof proof.json -- sh -c 'echo $LEVEL'

The task sees PATH, HOME, TMPDIR, LANG, its own variables and GREY_TASK, GREY_JOB, GREY_INDEX, GREY_ATTEMPT and
GREY_OUT, nothing of this shell. stdout is exactly the accepted attempt's.")]
pub struct RunArguments {
    /// Whose task it is [default: the context's, else `default`] [env: GREY_TENANT]
    #[arg(long, short, value_name = "TENANT")]
    tenant: Option<String>,
    /// A name
    #[arg(long)]
    name: Option<String>,
    /// Share of processors, such as 500m or 2
    #[arg(long, value_parser = units::cpu_millicores, value_name = "CORES")]
    cpu: Option<u64>,
    /// Memory, such as 64MiB
    #[arg(long, value_parser = units::size_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Longest run of an attempt, such as 30s
    #[arg(long, value_parser = units::duration_ms, value_name = "TIME")]
    timeout: Option<u64>,
    /// The most that stdout, stderr and output files may hold together, such as 1GiB
    #[arg(long, value_parser = units::size_bytes, value_name = "SIZE")]
    output_limit: Option<u64>,
    /// 0–255, higher first; a task that waits gains a level every minute
    #[arg(long, value_name = "LEVEL")]
    priority: Option<u8>,
    /// Devices that it has to itself, such as gpu=1; may be given several times
    #[arg(long = "device", value_parser = units::devices, value_name = "KIND=COUNT")]
    devices: Vec<(String, u32)>,
    /// A label that its worker must have; may be given several times
    #[arg(long = "constraint", value_parser = units::label, value_name = "KEY=VALUE")]
    constraints: Vec<(String, String)>,
    /// How far its worker must be trusted at least: software, measured-tpm, hardware-degraded, hardware
    #[arg(long, value_name = "TIER")]
    tier: Option<String>,
    /// What its worker must enforce at least: process-group, pid-namespace
    #[arg(long, value_name = "LEVEL")]
    sandbox: Option<String>,
    /// How often to try again when the task fails
    #[arg(long, default_value_t = 0, value_name = "TIMES")]
    retries: u16,
    /// A variable of the task; may be given several times
    #[arg(long = "env", short = 'e', value_parser = units::variable, value_name = "NAME=VALUE")]
    environment: Vec<(String, String)>,
    /// A file or directory that the task finds in its working directory; may be given several times
    #[arg(long = "in", value_name = "PATH")]
    inputs: Vec<PathBuf>,
    /// The task's standard input: a file, or `-` for this one's [default: an empty one]
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// Files to keep, relative to $GREY_OUT; may be given several times
    #[arg(long = "out", value_name = "PATTERN")]
    outputs: Vec<String>,
    /// Where to put the files that were kept
    #[arg(long, value_name = "DIR", requires = "outputs")]
    results: Option<PathBuf>,
    /// Where to write the signed proof
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// A key under which this may be repeated: the same one gives the same task
    #[arg(long, value_parser = units::key)]
    key: Option<String>,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl RunArguments {
    fn request(&self, inputs: &Inputs, tenant: Option<String>) -> JobRequest {
        let task = TaskRequest {
            name: self.name.clone(),
            command: self.command.clone(),
            env: self.environment.iter().cloned().collect(),
            stdin: inputs.stdin.clone(),
            inputs: inputs.files.clone(),
            outputs: self.outputs.clone(),
            cpu_millicores: self.cpu,
            memory_bytes: self.memory,
            priority: self.priority,
            devices: self.devices.iter().cloned().collect(),
            constraints: Some(ConstraintsRequest {
                labels: self.constraints.iter().cloned().collect(),
                tier: self.tier.clone(),
                sandbox: self.sandbox.clone(),
            })
            .filter(|asked| *asked != ConstraintsRequest::default()),
            timeout_ms: self.timeout,
            output_limit_bytes: self.output_limit,
            retries: Some(grey_api::RetriesRequest { failure: self.retries, infrastructure: 5 }),
            ..TaskRequest::default()
        };
        JobRequest {
            name: self.name.clone().unwrap_or_default(),
            tenant: self.tenant.clone().or(tenant),
            tasks: vec![task],
            ..JobRequest::default()
        }
    }
}

/// A key under which this submission may be repeated.
pub fn fresh_key() -> Result<String, CliError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| CliError::failed(format!("no randomness: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Says which cluster is spoken to and where its data lies.
pub async fn connect(target: &Target, output: &Output) -> Result<Client, CliError> {
    let (client, started) = target.connect(output).await?;
    match target {
        Target::Remote(remote) => output.note(&format!("cluster at {remote}")),
        Target::Local(directory) => {
            let how = if started { "started" } else { "using" };
            output.note(&format!("{how} the local cluster, its data in {}", directory.display()));
        }
    }
    Ok(client)
}

/// Runs one task.
pub fn run(arguments: &RunArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    writable(arguments.proof.as_deref())?;
    let mut inputs = Inputs::gather(&arguments.inputs, arguments.stdin.as_deref())?;
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        let mut interrupts =
            signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
        inputs.send(&client, output).await?;
        let key = arguments.key.as_deref();
        let request = arguments.request(&inputs, target.tenant());
        let created = submit_job(target, &client, &request, key, output).await?;
        note_duplicate(&created, output);
        output.note(&format!("task {} (job {})", created.first_task, created.job));
        let left = async {
            let Some(status) = wait(&client, &created.first_task, &mut interrupts, output).await? else {
                output.note(&format!("detached; `grey task wait {}` comes back to it", created.first_task));
                return Ok(130);
            };
            finish(arguments, &client, &status, output).await
        };
        left.await.map_err(|error: CliError| {
            if !has_ended(&client) {
                return error;
            }
            let error =
                CliError { message: format!("the local cluster has ended: {}", error.message), ..error };
            error.hint(format!(
                "{} is not lost; `grey task wait {}` starts it again",
                created.first_task, created.first_task
            ))
        })
    })
}

/// A proof that cannot be written at the end should not cost a run.
fn writable(path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !directory.is_dir() {
        return Err(CliError::usage(format!("--proof {}: the file cannot be written there", path.display())));
    }
    Ok(())
}

/// Submits a job under a key, a fresh one unless one is given, again and again until it is known to be accepted or refused. A local cluster
/// that somebody ended meanwhile is started again.
pub async fn submit_job(
    target: &Target,
    client: &Client,
    request: &JobRequest,
    key: Option<&str>,
    output: &Output,
) -> Result<JobCreated, CliError> {
    let key = key.map_or_else(fresh_key, |key| Ok(key.to_owned()))?;
    let mut tries = 0;
    loop {
        match client.post("/v1/jobs", request, Some(&key)).await {
            Ok(created) => return Ok(created),
            Err(error) => {
                again(client, &mut tries, error).await?;
                if has_ended(client) {
                    target.connect(output).await?;
                }
            }
        }
    }
}

/// Whether the local cluster behind a client has ended: nobody holds its directory.
fn has_ended(client: &Client) -> bool {
    match client.address() {
        Address::Unix(socket) => socket
            .parent()
            .is_some_and(|directory| directory.join("lock").exists() && !directory_is_held(directory)),
        Address::Http { .. } | Address::Https { .. } => false,
    }
}

/// Waits before the same request is sent again under the same key; gives up when that is pointless.
async fn again(client: &Client, tries: &mut u32, error: ClientError) -> Result<(), CliError> {
    let wait = match error.problem() {
        // The client has tried these again for as long as makes sense.
        Some(problem)
            if matches!(
                problem.code,
                ErrorCode::Overloaded | ErrorCode::RateExceeded | ErrorCode::QueueFull
            ) =>
        {
            None
        }
        Some(problem) if problem.status >= 500 || problem.status == 429 => problem.retry_after_ms,
        Some(_) => None,
        None => matches!(error, ClientError::Broken { .. } | ClientError::Unreachable { .. })
            .then_some(u64::try_from(ASK_AGAIN.as_millis()).unwrap_or(500)),
    };
    let full = error.problem().is_some_and(|problem| problem.code == ErrorCode::DiskFull);
    *tries += 1;
    let most = if has_ended(client) { RETRIES_WHEN_ENDED } else { MOST_RETRIES };
    match wait {
        Some(wait_ms) if *tries <= most && !full => {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            Ok(())
        }
        _ => Err(error.into()),
    }
}

/// Waits for a task. The first interrupt cancels it, the second one leaves it alone: then there is no status.
pub async fn wait(
    client: &Client,
    task: &str,
    interrupts: &mut Signal,
    output: &Output,
) -> Result<Option<TaskStatus>, CliError> {
    let mut tries = 0;
    let mut cancelling = false;
    let (mut wait_ms, mut said) = (SILENT_MS, None);
    loop {
        let path = format!("/v1/tasks/{task}?wait_ms={wait_ms}");
        tokio::select! {
            status = client.get::<TaskStatus>(&path) => match status {
                Ok(status) if status.ended() => return Ok(Some(status)),
                Ok(status) => {
                    (tries, wait_ms) = (0, WAIT_MS);
                    let reason = status.reason.filter(|_| status.state == "pending" && !cancelling);
                    if reason.is_some() && reason != said {
                        let why = harmless(reason.as_deref().unwrap_or_default());
                        output.note(&format!("{task} waits: {why}"));
                        said = reason;
                    }
                }
                Err(error) => again(client, &mut tries, error).await?,
            },
            _ = interrupts.recv() => {
                if cancelling {
                    return Ok(None);
                }
                cancelling = true;
                output.note(&format!("cancelling {task}; Ctrl-C again leaves it to itself"));
                let cancel = format!("/v1/tasks/{task}/cancel");
                let _: grey_api::CancelResponse = client.post(&cancel, &serde_json::json!({}), None).await?;
            }
        }
    }
}

async fn finish(
    arguments: &RunArguments,
    client: &Client,
    status: &TaskStatus,
    output: &Output,
) -> Result<u8, CliError> {
    let result = status.result.as_ref().filter(|_| status.state != "cancelled");
    let Some(result) = result else {
        output.note(&format!("{} {}", status.id, status.state));
        if arguments.proof.is_some() {
            output.note("there is no proof: no result of it was accepted");
        }
        return Ok(if status.state == "cancelled" { 130 } else { 125 });
    };
    copy_stream(client, &status.id, Stream::Stderr, None, output).await?;
    if output.is_for_programs() {
        output.result(result, String::new)?;
    } else {
        copy_stream(client, &status.id, Stream::Stdout, None, output).await?;
    }
    if let Some(directory) = &arguments.results {
        save_outputs(client, result, directory).await?;
        output.note(&format!("{} output file(s) in {}", result.files.len(), directory.display()));
    }
    summarise(result, output);
    if let Some(path) = &arguments.proof {
        let root = save_proof(client, &status.id, None, path).await?;
        output.note(&format!("proof {}, signed under a {root} root", path.display()));
        output.note(&format!("next: grey verify {}", path.display()));
    } else {
        output.note(&format!("next: grey task proof {} --out proof.json", status.id));
    }
    Ok(result.exit_code)
}

/// How an attempt ended, in words.
pub fn outcome(result: &TaskResult) -> String {
    match result.outcome.as_str() {
        "exited" => format!("exited with {}", result.exit_code),
        "signaled" => format!("ended by signal {}", result.exit_code.saturating_sub(128)),
        other => other.replace('_', " "),
    }
}

/// Outcome, time, attempt, memory, sandbox.
pub fn summarise(result: &TaskResult, output: &Output) {
    let outcome = outcome(result);
    output.note(&format!(
        "{outcome} in {}, attempt {}, peak memory {}, sandbox {}",
        units::shown_time(result.duration_us),
        result.attempt,
        units::shown_size(result.peak_memory_bytes),
        result.sandbox,
    ));
    if !result.message.is_empty() {
        output.note(&harmless(&result.message));
    }
}
