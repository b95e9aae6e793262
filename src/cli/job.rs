//! `grey job`: what was submitted together.

use std::path::PathBuf;

use grey_api::{CancelResponse, Client, JobList, JobStatus, TaskList, TaskStatus};
use tokio::signal::unix::{SignalKind, signal};

use super::error::{ANSWER_IS_NO, CliError};
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::task::{Stream, cancelled, copy_stream, save_proof, segment, tasks_table};

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
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Standard output of a job's tasks, one after another
    Logs {
        /// The job
        job: String,
        /// Standard error instead
        #[arg(long)]
        stderr: bool,
    },
    /// What a job's tasks came to
    Result {
        /// The job
        job: String,
        /// Only tasks in this state
        #[arg(long)]
        state: Option<String>,
    },
    /// The signed proofs of a job's tasks
    Proof {
        /// The job
        job: String,
        /// Where to put them, one file a task
        #[arg(long, short, value_name = "DIR")]
        out: PathBuf,
    },
    /// Wait until a job has ended; exits with 0 when all of its tasks succeeded
    Wait {
        /// The job
        job: String,
    },
    /// Cancel what has not ended of a job
    Cancel {
        /// The job
        job: String,
    },
}

fn state(job: &JobStatus) -> &'static str {
    match job {
        job if !job.ended => "active",
        job if job.counts.failed > 0 => "failed",
        job if job.counts.cancelled > 0 => "cancelled",
        _ => "completed",
    }
}

fn jobs_table(jobs: &[JobStatus]) -> String {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let counts = &job.counts;
            let waiting = counts.pending + counts.assigned;
            let mut row = vec![job.id.clone(), state(job).to_owned(), job.tasks.to_string()];
            row.extend(
                [waiting, counts.running, counts.completed, counts.failed, counts.cancelled]
                    .map(|n| n.to_string()),
            );
            row.push(harmless(&job.name));
            row
        })
        .collect();
    table(&["JOB", "STATE", "TASKS", "WAITING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "NAME"], &rows)
}

/// Visits every task of a job, a page at a time.
async fn every_task(
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
                output.result(&status, || jobs_table(core::slice::from_ref(&status)))?;
                Ok(0)
            }
            JobCommand::List { before, limit } => {
                let before = before.as_ref().map(|job| segment(job)).transpose()?;
                let before = before.map(|job| format!("&before={job}")).unwrap_or_default();
                let list: JobList = client.get(&format!("/v1/jobs?limit={limit}{before}")).await?;
                output.result(&list, || jobs_table(&list.jobs))?;
                if let Some(next) = &list.next {
                    output.note(&format!("there are more: grey job list --before {next}"));
                }
                Ok(0)
            }
            JobCommand::Logs { job, stderr } => {
                let name = if *stderr { Stream::Stderr } else { Stream::Stdout };
                every_task(&client, segment(job)?, "", async |task| match task.result {
                    Some(_) => copy_stream(&client, &task.id, name, None, output).await,
                    None => Ok(()),
                })
                .await?;
                Ok(0)
            }
            JobCommand::Result { job, state } => {
                let state = state.as_ref().map(|state| segment(state)).transpose()?;
                let filter = state.map(|state| format!("&state={state}")).unwrap_or_default();
                let mut tasks = Vec::new();
                every_task(&client, segment(job)?, &filter, async |task| {
                    tasks.push(task);
                    Ok(())
                })
                .await?;
                output.result(&tasks, || tasks_table(&tasks))?;
                Ok(0)
            }
            JobCommand::Proof { job, out } => proofs(&client, segment(job)?, out, output).await,
            JobCommand::Wait { job } => wait(&client, segment(job)?, output).await,
            JobCommand::Cancel { job } => {
                let path = format!("/v1/jobs/{}/cancel", segment(job)?);
                let response: CancelResponse = client.post(&path, &serde_json::json!({}), None).await?;
                cancelled(&response, output)
            }
        }
    })
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

async fn wait(client: &Client, job: &str, output: &Output) -> Result<u8, CliError> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
    let path = format!("/v1/jobs/{job}?wait_ms=30000");
    let status: JobStatus = loop {
        tokio::select! {
            status = client.get::<JobStatus>(&path) => {
                let status = status?;
                if status.ended {
                    break status;
                }
            }
            _ = interrupts.recv() => return Ok(130),
        }
    };
    output.result(&status, || jobs_table(core::slice::from_ref(&status)))?;
    Ok(if status.counts.completed == u64::from(status.tasks) { 0 } else { ANSWER_IS_NO })
}
