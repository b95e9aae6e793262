//! `grey job`: what was submitted together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use grey_api::{CancelResponse, Client, EventMessage, JobCreated, JobList, JobStatus, TaskList, TaskStatus};
use tokio::signal::unix::{SignalKind, signal};

use super::error::{ANSWER_IS_NO, CliError};
use super::events;
use super::junit;
use super::listing;
use super::output::{Output, harmless, table};
use super::run::{connect, fresh_key, outcome};
use super::session::{Target, runtime};
use super::task::{Stream, cancelled, change_timeout, copy_stream, follow, save_proof, segment, tasks_table};
use super::units;

/// Subcommands of `grey job`.
#[derive(clap::Subcommand)]
pub enum JobCommand {
    /// Where a job's tasks are
    Status {
        /// The job, such as j17
        job: String,
    },
    /// Jobs, newest first
    List {
        /// Only jobs before this one
        #[arg(long)]
        before: Option<String>,
        /// At most so many; 0 for all
        #[arg(long, default_value_t = 20)]
        limit: u64,
    },
    /// Standard output of a job's tasks, one after another
    Logs {
        /// The job
        job: String,
        /// Standard error instead
        #[arg(long)]
        stderr: bool,
        /// Wait for each task, and print what it writes as it is written, to its end
        #[arg(long, short)]
        follow: bool,
    },
    /// What a job's tasks came to
    Result {
        /// The job
        job: String,
        /// Only tasks in this state
        #[arg(long)]
        state: Option<String>,
        /// Where to write a JUnit report of all its tasks
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
    },
    /// What happens to a job's tasks, as it happens, until it ends
    Events {
        /// The job
        job: String,
    },
    /// The signed proofs of a job's tasks
    Proof {
        /// The job
        job: String,
        /// Where to put them, one file a task
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Wait until a job has ended; exits with 0 when all of its tasks succeeded
    Wait {
        /// The job
        job: String,
    },
    /// Run those tasks again that failed or were cancelled, as a new job
    Rerun {
        /// The job
        job: String,
        /// What failed or was cancelled: what it does when nothing else is said
        #[arg(long, conflicts_with_all = ["all", "tasks"])]
        failed: bool,
        /// Every task
        #[arg(long, conflicts_with = "tasks")]
        all: bool,
        /// Only these, such as t7,t9..t12
        #[arg(long = "task", value_delimiter = ',', value_name = "TASKS")]
        tasks: Vec<String>,
        /// A key under which this may be repeated: the same one gives the same job
        #[arg(long, value_parser = units::key)]
        key: Option<String>,
    },
    /// Cancel what has not ended of a job
    Cancel {
        /// The job
        job: String,
    },
    /// Give the tasks of a job that have not ended another time-out, also those that run
    Timeout {
        /// The job
        job: String,
        /// Longest run of an attempt from its start, such as 2h
        #[arg(value_parser = units::duration_ms, value_name = "TIME")]
        time: u64,
    },
}

/// The most pages of failed tasks that are looked at to tell why a job failed.
const FAILURE_PAGES: usize = 20;
/// The most causes that are told.
const CAUSES_SHOWN: usize = 8;

fn state(job: &JobStatus) -> &'static str {
    match job {
        job if !job.ended => "active",
        job if job.counts.failed > 0 => "failed",
        job if job.counts.cancelled > 0 => "cancelled",
        _ => "completed",
    }
}

/// The header of a table of jobs.
pub fn jobs_header(wide: bool) -> Vec<&'static str> {
    let mut header =
        vec!["JOB", "STATE", "TASKS", "WAITING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "NAME"];
    if wide {
        header.extend(["TENANT", "FIRST", "TOOK", "LABELS"]);
    }
    header
}

/// A row for each job.
pub fn jobs_rows(jobs: &[JobStatus], wide: bool) -> Vec<Vec<String>> {
    let row = |job: &JobStatus| {
        let counts = &job.counts;
        let waiting = counts.pending + counts.assigned;
        let mut row = vec![job.id.clone(), state(job).to_owned(), job.tasks.to_string()];
        row.extend(
            [waiting, counts.running, counts.completed, counts.failed, counts.cancelled]
                .map(|n| n.to_string()),
        );
        row.push(harmless(&job.name));
        if wide {
            let took_ms = job.ended_at_ms.map(|ended_at_ms| ended_at_ms.saturating_sub(job.created_at_ms));
            let labels: Vec<String> =
                job.labels.iter().map(|(key, value)| harmless(&format!("{key}={value}"))).collect();
            row.push(harmless(&job.tenant));
            row.push(job.first_task.clone());
            row.push(took_ms.map_or_else(|| "-".to_owned(), |ms| units::shown_time(ms * 1_000)));
            row.push(labels.join(","));
        }
        row
    };
    jobs.iter().map(row).collect()
}

fn jobs_table(jobs: &[JobStatus], output: &Output) -> String {
    table(&jobs_header(output.is_wide()), &jobs_rows(jobs, output.is_wide()))
}

/// Visits every task of a job, a page at a time.
pub async fn every_task(
    client: &Client,
    job: &str,
    filter: &str,
    mut visit: impl AsyncFnMut(TaskStatus) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut from = String::new();
    loop {
        let list: TaskList = client.get(&format!("/v1/jobs/{job}/tasks?limit=500{filter}{from}")).await?;
        for task in list.tasks {
            visit(task).await?;
        }
        match list.next {
            Some(next) => from = format!("&from={next}"),
            None => return Ok(()),
        }
    }
}

/// Does what a subcommand of `grey job` says.
pub fn job(command: &JobCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        match command {
            JobCommand::Status { job } => {
                let status: JobStatus = client.get(&format!("/v1/jobs/{}", segment(job)?)).await?;
                output.result(&status, || jobs_table(core::slice::from_ref(&status), output))?;
                Ok(0)
            }
            JobCommand::List { before, limit } => {
                let before = before.as_ref().map(|job| segment(job)).transpose()?;
                let path =
                    before.map_or_else(|| "/v1/jobs".to_owned(), |job| format!("/v1/jobs?before={job}"));
                if let Some(next) = listing::print::<JobList>(&client, &path, *limit, output).await? {
                    output.note(&format!("there are more: grey job list --before {next}"));
                }
                Ok(0)
            }
            JobCommand::Logs { job, stderr, follow: true } => {
                let stream = if *stderr { "stderr" } else { "stdout" };
                let mut status = 0;
                every_task(&client, segment(job)?, "", async |task| {
                    if status == 0 {
                        status = follow(&client, &task.id, stream, output).await?;
                    }
                    Ok(())
                })
                .await?;
                Ok(status)
            }
            JobCommand::Logs { job, stderr, follow: false } => {
                let name = if *stderr { Stream::Stderr } else { Stream::Stdout };
                every_task(&client, segment(job)?, "", async |task| match task.result {
                    Some(_) => copy_stream(&client, &task.id, name, None, output).await,
                    None => Ok(()),
                })
                .await?;
                Ok(0)
            }
            JobCommand::Events { job } => events(&client, segment(job)?, output).await,
            JobCommand::Result { job, state, junit } => {
                if let Some(path) = junit {
                    junit::write(&client, segment(job)?, path).await?;
                }
                let state = state.as_ref().map(|state| segment(state)).transpose()?;
                let filter = state.map(|state| format!("&state={state}")).unwrap_or_default();
                let mut tasks = Vec::new();
                every_task(&client, segment(job)?, &filter, async |task| {
                    tasks.push(task);
                    Ok(())
                })
                .await?;
                output.results(&tasks, || tasks_table(&tasks, output))?;
                Ok(0)
            }
            JobCommand::Proof { job, out } => proofs(&client, segment(job)?, out, output).await,
            JobCommand::Wait { job } => wait(&client, segment(job)?, output).await,
            JobCommand::Rerun { job, failed: _, all, tasks, key } => {
                let which = match tasks.as_slice() {
                    [] if *all => "?which=all".to_owned(),
                    [] => String::new(),
                    tasks => format!("?tasks={}", ranges(tasks)?),
                };
                let path = format!("/v1/jobs/{}/rerun{which}", segment(job)?);
                let key = key.clone().map_or_else(fresh_key, Ok)?;
                let created: JobCreated = client.post(&path, &serde_json::json!({}), Some(&key)).await?;
                output.result(&created, || format!("{}\n", created.job))?;
                note_duplicate(&created, output);
                output.note(&format!("{} task(s); next: grey job wait {}", created.tasks, created.job));
                Ok(0)
            }
            JobCommand::Cancel { job } => {
                let path = format!("/v1/jobs/{}/cancel", segment(job)?);
                let response: CancelResponse = client.post(&path, &serde_json::json!({}), None).await?;
                cancelled(job, &response, output)
            }
            JobCommand::Timeout { job, time } => change_timeout(&client, "jobs", job, *time, output).await,
        }
    })
}

/// Tasks and ranges of them as a parameter.
fn ranges(tasks: &[String]) -> Result<String, CliError> {
    for task in tasks {
        for end in task.splitn(2, "..") {
            segment(end)?;
        }
    }
    Ok(tasks.join(","))
}

/// Says that a submission was not made anew.
pub fn note_duplicate(created: &JobCreated, output: &Output) {
    if created.duplicate {
        output.note("it was submitted before under this key");
    }
}

/// One line: how far, how fast, how long still.
fn progress(status: &JobStatus, done: u64, rate_per_s: u64) -> String {
    let counts = &status.counts;
    let mut line = format!("{done} of {}, {} running", status.tasks, counts.running);
    if counts.failed > 0 {
        line.push_str(&format!(", {} failed", counts.failed));
    }
    let left = u64::from(status.tasks).saturating_sub(done);
    if let Some(left_s) = left.checked_div(rate_per_s) {
        line.push_str(&format!(", {rate_per_s}/s, about {left_s} s left"));
    }
    line
}

/// Prints what happens to a job, one line an event.
async fn events(client: &Client, job: &str, output: &Output) -> Result<u8, CliError> {
    let mut body = client.stream(&format!("/v1/jobs/{job}/events")).await?;
    events::each(&mut body, output, |data| event_line(data, output)).await?;
    Ok(0)
}

fn event_line(data: &str, output: &Output) -> Result<(), CliError> {
    let Ok(event) = serde_json::from_str::<EventMessage>(data) else {
        // The first one is the job as it is.
        return match serde_json::from_str::<JobStatus>(data) {
            Ok(job) => output.item(&job, || jobs_table(core::slice::from_ref(&job), output)),
            Err(_) => output.line(&harmless(data)),
        };
    };
    output.item(&event, || format!("{}\n", events::told(&event)))
}

async fn proofs(
    client: &Client,
    job: &str,
    directory: &std::path::Path,
    output: &Output,
) -> Result<u8, CliError> {
    std::fs::create_dir_all(directory)
        .map_err(|error| CliError::io("create", directory.display(), &error))?;
    let (mut written, mut without) = (0u64, 0u64);
    every_task(client, job, "", async |task| {
        if task.result.is_none() {
            without += 1;
            return Ok(());
        }
        save_proof(client, &task.id, None, &directory.join(format!("{}.json", task.id))).await?;
        written += 1;
        Ok(())
    })
    .await?;
    output
        .note(&format!("{written} proof(s) in {}, {without} task(s) without a result", directory.display()));
    Ok(if written == 0 { ANSWER_IS_NO } else { 0 })
}

/// Says how the tasks of a job failed, grouped by cause, the most frequent first.
async fn causes(client: &Client, job: &str, output: &Output) -> Result<(), CliError> {
    let mut causes: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut from = String::new();
    for _ in 0..FAILURE_PAGES {
        let path = format!("/v1/jobs/{job}/tasks?limit=500&state=failed{from}");
        let list: TaskList = client.get(&path).await?;
        for task in list.tasks {
            let cause = task.result.as_ref().map_or_else(|| "lost its worker too often".to_owned(), outcome);
            causes.entry(cause).or_insert((0, task.id)).0 += 1;
        }
        match list.next {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    let mut causes: Vec<(String, (u64, String))> = causes.into_iter().collect();
    causes.sort_by_key(|(_, (count, _))| core::cmp::Reverse(*count));
    for (cause, (count, first)) in causes.iter().take(CAUSES_SHOWN) {
        output.note(&format!("{count} failed: {cause}, first {first}"));
    }
    Ok(())
}

/// Waits until a job has ended, with its progress on a terminal.
pub async fn wait(client: &Client, job: &str, output: &Output) -> Result<u8, CliError> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
    // On a terminal an answer comes every half second, so that there is something to show.
    let wait_ms = if output.shows_progress() { 500 } else { 30_000 };
    let path = format!("/v1/jobs/{job}?wait_ms={wait_ms}");
    let begun = Instant::now();
    let mut first: Option<u64> = None;
    let status: JobStatus = loop {
        tokio::select! {
            status = client.get::<JobStatus>(&path) => {
                let status = status?;
                if status.ended {
                    break status;
                }
                let done = u64::from(status.tasks) - status.counts.pending - status.counts.assigned - status.counts.running;
                let rate = done.saturating_sub(*first.get_or_insert(done)) * 1_000
                    / u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
                output.progress(&progress(&status, done, rate));
            }
            _ = interrupts.recv() => return Ok(130),
        }
    };
    output.progress("");
    output.result(&status, || jobs_table(core::slice::from_ref(&status), output))?;
    if status.counts.failed > 0 {
        causes(client, job, output).await?;
    }
    Ok(if status.counts.completed == u64::from(status.tasks) { 0 } else { ANSWER_IS_NO })
}
