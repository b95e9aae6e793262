//! `grey submit`: a job from a task file, or any number of tasks one a line.

use std::path::{Path, PathBuf};

use grey_api::{Client, JobCreated, TaskStatus};

use super::error::CliError;
use super::job::{every_task, note_duplicate, wait};
use super::junit;
use super::output::Output;
use super::run::{connect, submit_job};
use super::session::{Target, runtime};
use super::stream;
use super::task::{save_outputs, save_proof, save_stream, write_whole};
use super::task_file;
use super::units;

/// Arguments of `grey submit`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey submit job.toml                            submit and go on
  grey submit job.toml --wait --results results   wait, and fetch everything that its tasks left
  grey job rerun j7                               run those again that failed
  produce | grey submit -                         any number of tasks, one a line: {\"command\": [\"true\"]}

A task file:
  version = 1
  name = \"compress\"
  [defaults]
  cpu = \"500m\"
  timeout = \"10m\"
  [[task]]
  each = { files = \"photos/*\" }                   or range = \"1..100\", lines = \"names\", items = [...]
  command = [\"sh\", \"-c\", 'gzip -c \"$GREY_ITEM\" >\"$GREY_OUT/$GREY_INDEX.gz\"']
  outputs = [\"*.gz\"]")]
pub struct SubmitArguments {
    /// The task file, in TOML, YAML or JSON; or tasks one a line: a file whose name ends in .ndjson or .jsonl, or `-`
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Whose tasks they are [default: the task file's, the context's, else `default`] [env: GREY_TENANT]
    #[arg(long, short, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// A key under which this may be repeated: the same one gives the same job
    #[arg(long, value_parser = units::key)]
    pub key: Option<String>,
    /// Wait until the job has ended; exits with 0 when all of its tasks succeeded
    #[arg(long)]
    pub wait: bool,
    /// Where to put what its tasks left: a directory each, with stdout, stderr, output files, result and proof
    #[arg(long, value_name = "DIR", requires = "wait")]
    results: Option<PathBuf>,
    /// Where to write a JUnit report of its tasks
    #[arg(long, value_name = "FILE", requires = "wait")]
    junit: Option<PathBuf>,
}

/// Submits a task file.
pub fn submit(arguments: &SubmitArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    if stream::is_one(&arguments.file) {
        if arguments.junit.is_some() {
            let error = CliError::usage("--junit is about one job; tasks one a line become several");
            return Err(error.hint("`grey job result JOB --junit FILE` writes it of each"));
        }
        return stream(arguments, target, output);
    }
    let mut prepared = task_file::read(&arguments.file)?;
    let tenant = &mut prepared.request.tenant;
    *tenant = arguments.tenant.clone().or(tenant.take()).or_else(|| target.tenant());
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        prepared.inputs.send(&client, output).await?;
        let created: JobCreated =
            submit_job(target, &client, &prepared.request, arguments.key.as_deref(), output).await?;
        note_duplicate(&created, output);
        let text = format!("{}: {} task(s) from {} on", created.job, created.tasks, created.first_task);
        if !arguments.wait {
            output.result(&created, || format!("{}\n", created.job))?;
            output.note(&text);
            output.note(&format!("next: grey job wait {}", created.job));
            return Ok(0);
        }
        output.note(&text);
        let status = wait(&client, &created.job, output).await?;
        if let Some(directory) = &arguments.results {
            fetch(&client, &created.job, directory, output).await?;
        }
        if let Some(path) = &arguments.junit {
            junit::write(&client, &created.job, path).await?;
        }
        if status != 0 {
            output.note(&format!(
                "next: grey job result {} --state failed; grey job rerun {}",
                created.job, created.job
            ));
        }
        Ok(status)
    })
}

/// Submits tasks as they come, and waits for the jobs that they become where that is asked for.
fn stream(arguments: &SubmitArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        let jobs = stream::send(&client, arguments, target.tenant(), output).await?;
        if !arguments.wait {
            return Ok(0);
        }
        let mut worst = 0;
        for job in &jobs {
            worst = worst.max(wait(&client, job, output).await?);
            if let Some(directory) = &arguments.results {
                fetch(&client, job, directory, output).await?;
            }
        }
        Ok(worst)
    })
}

/// Puts everything that a job's tasks left below a directory.
async fn fetch(client: &Client, job: &str, directory: &Path, output: &Output) -> Result<(), CliError> {
    let mut fetched = 0u64;
    every_task(client, job, "", async |task: TaskStatus| {
        let Some(result) = &task.result else { return Ok(()) };
        let place = directory.join(&task.id);
        std::fs::create_dir_all(&place).map_err(|error| CliError::io("create", place.display(), &error))?;
        for stream in ["stdout", "stderr"] {
            save_stream(client, &task.id, stream, &place.join(stream)).await?;
        }
        if !result.files.is_empty() {
            save_outputs(client, result, &place.join("out")).await?;
        }
        let text = serde_json::to_vec_pretty(result).unwrap_or_default();
        write_whole(&place.join("result.json"), &text)?;
        save_proof(client, &task.id, None, &place.join("proof.json")).await?;
        fetched += 1;
        Ok(())
    })
    .await?;
    output.note(&format!("results of {fetched} task(s) in {}", directory.display()));
    Ok(())
}
