//! `grey task`: one task at a time.

use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use grey_api::{
    CancelResponse, Client, ClientError, ErrorCode, FileStatus, TaskExplanation, TaskList, TaskResult,
    TaskStatus, TimeoutChanged, TimeoutRequest,
};
use grey_proof::RootFile;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{ANSWER_IS_NO, CliError};
use super::listing;
use super::output::{About, Output, harmless, table};
use super::run::{connect, summarise};
use super::session::{Target, runtime};
use super::units;

/// Subcommands of `grey task`.
#[derive(clap::Subcommand)]
pub enum TaskCommand {
    /// A task's state, and why it is there
    Status {
        /// The task, such as t42
        task: String,
    },
    /// Why a task waits, how many are ahead of it, and how long that may take
    Explain {
        /// The task
        task: String,
    },
    /// Tasks of jobs that have not ended, or of one job
    List {
        /// Only of this job, those that have ended too
        #[arg(long)]
        job: Option<String>,
        /// Only tasks in this state
        #[arg(long)]
        state: Option<String>,
        /// At most so many; 0 for all
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// A task's standard output
    Logs {
        /// The task
        task: String,
        /// Standard error instead
        #[arg(long)]
        stderr: bool,
        /// Which attempt [default: the latest]
        #[arg(long, conflicts_with = "follow")]
        attempt: Option<u32>,
        /// Wait for it to begin, and print what it writes as it is written, to the end of the task
        #[arg(long, short)]
        follow: bool,
    },
    /// What an attempt came to
    Result {
        /// The task
        task: String,
        /// Which attempt [default: the latest]
        #[arg(long)]
        attempt: Option<u32>,
        /// Where to put its output files
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
    },
    /// The signed proof of an attempt
    Proof {
        /// The task
        task: String,
        /// Which attempt [default: the latest]
        #[arg(long)]
        attempt: Option<u32>,
        /// Where to write it [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Wait until a task has ended; exits as the task did
    Wait {
        /// The task
        task: String,
    },
    /// Cancel a task
    Cancel {
        /// The task
        task: String,
    },
    /// Give a task another time-out, also while it runs
    Timeout {
        /// The task
        task: String,
        /// Longest run of an attempt from its start, such as 2h
        #[arg(value_parser = units::duration_ms, value_name = "TIME")]
        time: u64,
    },
}

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Copies a stream of an attempt to the same stream of this process.
pub async fn copy_stream(
    client: &Client,
    task: &str,
    stream: Stream,
    attempt: Option<u32>,
    output: &Output,
) -> Result<(), CliError> {
    let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
    let mut path = format!("/v1/tasks/{task}/logs?stream={name}");
    if let Some(attempt) = attempt {
        path.push_str(&format!("&attempt={attempt}"));
    }
    let mut body = client.stream(&path).await?;
    while let Some(piece) = body.next().await? {
        match stream {
            Stream::Stdout => output.bytes(&piece)?,
            Stream::Stderr => output.error_bytes(&piece),
        }
    }
    Ok(())
}

/// How often a stream that broke is taken up again without anything new having come, and how long is waited before.
const TAKEN_UP_AGAIN: u32 = 20;
const TAKE_UP_AFTER: Duration = Duration::from_millis(500);
/// A question that was held for so long before it broke was in the hands of somebody who would have answered it.
const HELD: Duration = Duration::from_secs(5);

/// How far a stream of a task was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Followed {
    /// The last attempt whose stream was printed to its end.
    after: u32,
    /// The attempt whose stream is being printed.
    attempt: u32,
    /// How much of it was.
    offset: u64,
}

/// What came of following a stream once.
enum Copied {
    /// There is another attempt, or more of this one.
    More,
    /// The task has ended, and everything was printed.
    All,
    /// The connection broke, or the worker is out of touch.
    Broken(ClientError),
}

/// Whether a request may come to something a little later.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(problem) => {
            matches!(problem.code, ErrorCode::Unavailable | ErrorCode::Overloaded | ErrorCode::OutcomeUnknown)
        }
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
        _ => false,
    }
}

/// Prints what a stream brings until it ends or breaks.
async fn copy_followed(
    client: &Client,
    (task, stream): (&str, &str),
    followed: &mut Followed,
    output: &Output,
) -> Result<Copied, CliError> {
    let Followed { after, offset, .. } = *followed;
    let path = format!("/v1/tasks/{task}/logs?stream={stream}&follow=true&after={after}&offset={offset}");
    let mut body = match client.stream(&path).await {
        Ok(body) => body,
        // Whoever leads next goes on with it, also where the task has not begun.
        Err(error) if may_pass(&error) => return Ok(Copied::Broken(error)),
        Err(error) => return Err(error.into()),
    };
    let Some(attempt) = body.attempt() else { return Ok(Copied::All) };
    if attempt != followed.attempt {
        if attempt > 1 {
            output.note(&format!("attempt {attempt}"));
        }
        let from_its_beginning = Followed { after: attempt.saturating_sub(1), attempt, offset: 0 };
        *followed = from_its_beginning;
        if offset > 0 {
            // What was asked for was more of an attempt that came to nothing.
            return Ok(Copied::More);
        }
    }
    loop {
        match body.next().await {
            Ok(Some(piece)) => {
                output.bytes(&piece)?;
                followed.offset = followed.offset.saturating_add(piece.len() as u64);
            }
            Ok(None) => {
                *followed = Followed { after: attempt, attempt, offset: 0 };
                return Ok(Copied::More);
            }
            Err(error) => return Ok(Copied::Broken(error)),
        }
    }
}

/// Prints a stream of a task while it is written, attempt after attempt. One that breaks is taken up again where it broke.
pub async fn follow(client: &Client, task: &str, stream: &str, output: &Output) -> Result<u8, CliError> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
    let (mut followed, mut in_vain, mut in_touch) = (Followed::default(), 0, false);
    loop {
        let (before, asked) = (followed, Instant::now());
        let copied = async {
            let copied = copy_followed(client, (task, stream), &mut followed, output).await?;
            let held = asked.elapsed();
            if matches!(copied, Copied::Broken(_)) {
                tokio::time::sleep(TAKE_UP_AFTER).await;
            }
            Ok::<(Copied, Duration), CliError>((copied, held))
        };
        let (copied, held) = tokio::select! {
            copied = copied => copied?,
            _ = interrupts.recv() => return Ok(130),
        };
        let is_unreachable = matches!(copied, Copied::Broken(ClientError::Unreachable { .. }));
        let was_held = held >= HELD && !is_unreachable;
        in_vain = if followed == before && !was_held { in_vain + 1 } else { 0 };
        match copied {
            Copied::All => return Ok(0),
            // Nobody has ever answered: waiting would not bring it about.
            Copied::Broken(error) if is_unreachable && !in_touch => return Err(error.into()),
            Copied::Broken(error) if in_vain >= TAKEN_UP_AGAIN => return Err(error.into()),
            Copied::More | Copied::Broken(_) => in_touch |= !is_unreachable,
        }
    }
}

/// Writes a file that appears whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        drop(std::fs::remove_file(&temporary));
        CliError::io("write", path.display(), &error)
    })
}

/// Fetches a proof into a file; returns what kind of root signed it.
pub async fn save_proof(
    client: &Client,
    task: &str,
    attempt: Option<u32>,
    path: &Path,
) -> Result<&'static str, CliError> {
    let bytes = proof(client, task, attempt).await?;
    write_whole(path, &bytes)?;
    let root = client.get_bytes("/v1/cluster/root").await?;
    let root = RootFile::decode(&root).map_err(|error| CliError::failed(error.to_string()))?;
    Ok(root.class.name())
}

async fn proof(client: &Client, task: &str, attempt: Option<u32>) -> Result<Vec<u8>, CliError> {
    let query = attempt.map(|attempt| format!("?attempt={attempt}")).unwrap_or_default();
    Ok(client.get_bytes(&format!("/v1/tasks/{task}/proof{query}")).await?.to_vec())
}

/// Where an output file belongs below a directory; `None` when its path would lead out of it.
fn place(directory: &Path, file: &FileStatus) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let raw = match &file.path_hex {
        None => file.path.clone().into_bytes(),
        Some(hex) => (0..hex.len() / 2)
            .map(|at| hex.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect::<Option<Vec<u8>>>()?,
    };
    let relative = PathBuf::from(std::ffi::OsString::from_vec(raw));
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && relative.components().next().is_some()).then(|| directory.join(relative))
}

/// Fetches an attempt's output files into a directory.
pub async fn save_outputs(client: &Client, result: &TaskResult, directory: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |path: &Path, error: &std::io::Error| CliError::io("write", path.display(), error);
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    for file in &result.files {
        let path = place(directory, file).ok_or_else(|| {
            CliError::failed(format!(
                "the output file `{}` would lie outside of {}",
                harmless(&file.path),
                directory.display()
            ))
        })?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
        }
        let source = format!("/v1/tasks/{}/outputs/{}?attempt={}", result.task, file.number, result.attempt);
        let mut body = client.stream(&source).await?;
        let mut target = std::fs::File::create(&path).map_err(|error| failed(&path, &error))?;
        while let Some(piece) = body.next().await? {
            target.write_all(&piece).map_err(|error| failed(&path, &error))?;
        }
        if file.executable {
            let permissions = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, permissions).map_err(|error| failed(&path, &error))?;
        }
    }
    Ok(())
}

/// Fetches a stream of a task's latest attempt into a file.
pub async fn save_stream(client: &Client, task: &str, stream: &str, path: &Path) -> Result<(), CliError> {
    let failed = |error: &std::io::Error| CliError::io("write", path.display(), error);
    let mut body = client.stream(&format!("/v1/tasks/{task}/logs?stream={stream}")).await?;
    let mut target = std::fs::File::create(path).map_err(|error| failed(&error))?;
    while let Some(piece) = body.next().await? {
        target.write_all(&piece).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The header of a table of tasks.
pub fn tasks_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec!["TASK", "JOB", "STATE", "ATTEMPT", "EXIT", "TIME", "COMMAND"];
    if wide {
        header.extend(["NAME", "TENANT", "WORKER", "MEMORY", "BECAUSE"]);
    }
    header
}

/// A row for each task.
pub fn tasks_rows(tasks: &[TaskStatus], wide: bool) -> Vec<Vec<String>> {
    let row = |task: &TaskStatus| {
        let result = task.result.as_ref();
        let (exit, time) = result.map_or((String::new(), String::new()), |result| {
            (result.exit_code.to_string(), units::shown_time(result.duration_us))
        });
        let most = if wide { usize::MAX } else { 60 };
        let command: String = harmless(&task.command.join(" ")).chars().take(most).collect();
        let mut row =
            vec![task.id.clone(), task.job.clone(), task.state.clone(), task.attempt.to_string(), exit, time];
        row.push(command);
        if wide {
            row.push(harmless(&task.name));
            row.push(harmless(&task.tenant));
            row.push(task.worker.clone().unwrap_or_default());
            row.push(result.map_or_else(String::new, |result| units::shown_size(result.peak_memory_bytes)));
            row.push(harmless(task.reason.as_deref().unwrap_or_default()));
        }
        row
    };
    tasks.iter().map(row).collect()
}

/// A table of tasks.
pub fn tasks_table(tasks: &[TaskStatus], output: &Output) -> String {
    table(&tasks_header(output.is_wide()), &tasks_rows(tasks, output.is_wide()))
}

/// An attempt's result as text.
pub fn result_text(result: &TaskResult) -> String {
    let mut text = format!(
        "task      {} (job {}), attempt {}\noutcome   {}, exit code {}\ntime      {}, processor {}\nmemory    {} at most\nsandbox   {}\nworker    {}\nstdout    {}, sha256 {}\nstderr    {}\n",
        result.task,
        result.job,
        result.attempt,
        result.outcome,
        result.exit_code,
        units::shown_time(result.duration_us),
        units::shown_time(result.cpu_time_us),
        units::shown_size(result.peak_memory_bytes),
        result.sandbox,
        result.worker,
        units::shown_size(result.stdout.size_bytes),
        result.stdout.digest,
        units::shown_size(result.stderr.size_bytes),
    );
    if !result.message.is_empty() {
        text.push_str(&format!("message   {}\n", harmless(&result.message)));
    }
    for file in &result.files {
        let size = units::shown_size(file.size_bytes);
        text.push_str(&format!("file      {} ({size}, sha256 {})\n", harmless(&file.path), file.digest));
    }
    text
}

fn status_text(status: &TaskStatus) -> String {
    let mut text = format!(
        "task      {} (job {}, tenant {})\nstate     {}, attempt {}\ncommand   {}\n",
        status.id,
        status.job,
        harmless(&status.tenant),
        status.state,
        status.attempt,
        harmless(&status.command.join(" ")),
    );
    if let Some(worker) = &status.worker {
        text.push_str(&format!("worker    {worker}\n"));
    }
    if let Some(reason) = &status.reason {
        text.push_str(&format!("because   {}\n", harmless(reason)));
    }
    text
}

fn explanation_text(explanation: &TaskExplanation) -> String {
    let mut text = format!("task      {}\nstate     {}\n", explanation.task, explanation.state);
    if let Some(reason) = &explanation.reason {
        text.push_str(&format!("because   {}\n", harmless(reason)));
    }
    if let Some(ahead) = explanation.ahead {
        let least = if explanation.ahead_is_lower_bound { "at least " } else { "" };
        text.push_str(&format!("ahead     {least}{ahead} task(s) of its tenant\n"));
        text.push_str(&match explanation.estimated_wait_ms {
            Some(wait_ms) => {
                let shown = units::shown_time(wait_ms.saturating_mul(1_000));
                match explanation.estimated_from.as_deref() {
                    Some("durations") => {
                        format!("estimate  {shown}, as tasks of its job take and as many run\n")
                    }
                    Some("running_times") => {
                        format!("estimate  at least {shown}, as tasks of its job have run so far\n")
                    }
                    _ => format!("estimate  {shown} at the rate of the last minute\n"),
                }
            }
            None if explanation.feasible == Some(false) => {
                "estimate  none: it starts when a worker enters that can run it\n".to_owned()
            }
            None => "estimate  unknown: no task of its job and nothing else has ended of late\n".to_owned(),
        });
    }
    text
}

/// Does what a subcommand of `grey task` says.
pub fn task(command: &TaskCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        match command {
            TaskCommand::Status { task } => {
                let status: TaskStatus = client.get(&format!("/v1/tasks/{}", segment(task)?)).await?;
                output.result(&status, || status_text(&status))?;
                Ok(0)
            }
            TaskCommand::Explain { task } => {
                let path = format!("/v1/tasks/{}/explain", segment(task)?);
                let explanation: TaskExplanation = client.get(&path).await?;
                output.result(&explanation, || explanation_text(&explanation))?;
                Ok(0)
            }
            TaskCommand::List { job, state, limit } => {
                let state = state.as_ref().map(|state| segment(state)).transpose()?;
                let state = state.map(|state| format!("?state={state}")).unwrap_or_default();
                let path = match job {
                    Some(job) => format!("/v1/jobs/{}/tasks{state}", segment(job)?),
                    None => format!("/v1/tasks{state}"),
                };
                if listing::print::<TaskList>(&client, &path, *limit, output).await?.is_some() {
                    output.note("there are more: --limit 0 shows all");
                }
                Ok(0)
            }
            TaskCommand::Logs { task, stderr, follow: true, .. } => {
                let stream = if *stderr { "stderr" } else { "stdout" };
                follow(&client, segment(task)?, stream, output).await
            }
            TaskCommand::Logs { task, stderr, attempt, follow: false } => {
                let stream = if *stderr { "stderr" } else { "stdout" };
                let query = attempt.map(|attempt| format!("&attempt={attempt}")).unwrap_or_default();
                let path = format!("/v1/tasks/{}/logs?stream={stream}{query}", segment(task)?);
                let mut body = client.stream(&path).await?;
                while let Some(piece) = body.next().await? {
                    output.bytes(&piece)?;
                }
                Ok(0)
            }
            TaskCommand::Result { task, attempt, results } => {
                let query = attempt.map(|attempt| format!("?attempt={attempt}")).unwrap_or_default();
                let path = format!("/v1/tasks/{}/result{query}", segment(task)?);
                let result: TaskResult = client.get(&path).await?;
                if let Some(directory) = results {
                    save_outputs(&client, &result, directory).await?;
                }
                output.result(&result, || result_text(&result))?;
                Ok(0)
            }
            TaskCommand::Proof { task, attempt, out } => {
                let task = segment(task)?;
                match out {
                    Some(path) => {
                        let root = save_proof(&client, task, *attempt, path).await?;
                        output.note(&format!("proof {}, signed under a {root} root", path.display()));
                    }
                    None => output.bytes(&proof(&client, task, *attempt).await?)?,
                }
                Ok(0)
            }
            TaskCommand::Wait { task } => wait_for(&client, segment(task)?, output).await,
            TaskCommand::Cancel { task } => {
                let path = format!("/v1/tasks/{}/cancel", segment(task)?);
                let response: CancelResponse = client.post(&path, &serde_json::json!({}), None).await?;
                cancelled(task, &response, output)
            }
            TaskCommand::Timeout { task, time } => {
                change_timeout(&client, "tasks", task, *time, output).await
            }
        }
    })
}

/// Changes a time-out and says of how many tasks.
pub async fn change_timeout(
    client: &Client,
    what: &str,
    id: &str,
    timeout_ms: u64,
    output: &Output,
) -> Result<u8, CliError> {
    let path = format!("/v1/{what}/{}/timeout", segment(id)?);
    let changed: TimeoutChanged = client.post(&path, &TimeoutRequest { timeout_ms }, None).await?;
    output.result(&About::new(id, &changed), || {
        format!("{} task(s) may run for {} ms from their start\n", changed.tasks, changed.timeout_ms)
    })?;
    Ok(0)
}

/// Says what a cancel came to: nothing to cancel is a "no".
pub fn cancelled(id: &str, response: &CancelResponse, output: &Output) -> Result<u8, CliError> {
    let text = format!("{} cancelled, {} had ended before\n", response.cancelled, response.already_ended);
    output.result(&About::new(id, response), || text)?;
    Ok(if response.cancelled == 0 { ANSWER_IS_NO } else { 0 })
}

async fn wait_for(client: &Client, task: &str, output: &Output) -> Result<u8, CliError> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
    let path = format!("/v1/tasks/{task}?wait_ms=30000");
    let status: TaskStatus = loop {
        tokio::select! {
            status = client.get::<TaskStatus>(&path) => {
                let status = status?;
                if status.ended() {
                    break status;
                }
            }
            // Waiting is all that an interrupt ends here.
            _ = interrupts.recv() => return Ok(130),
        }
    };
    output.result(&status, || format!("{} {}\n", status.id, status.state))?;
    if let Some(result) = &status.result {
        summarise(result, output);
    }
    Ok(match (&status.result, status.state.as_str()) {
        (_, "cancelled") => 130,
        (Some(result), _) => result.exit_code,
        (None, _) => 125,
    })
}

/// An identifier as a part of a path: nothing that would end it.
pub fn segment(text: &str) -> Result<&str, CliError> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { Ok(text) } else { Err(CliError::usage(format!("`{}` is no identifier", harmless(text)))) }
}
