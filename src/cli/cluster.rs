//! `grey cluster`.

use grey_api::{ClusterStatus, RetentionStatus};

use super::error::CliError;
use super::output::{Output, harmless, table};
use super::run::connect;
use super::session::{Target, runtime};
use super::units;

/// Subcommands of `grey cluster`.
#[derive(clap::Subcommand)]
pub enum ClusterCommand {
    /// The cluster as this node sees it
    Status,
    /// The root that a verifier keeps, to be given to `grey verify --root`
    Root,
}

/// What a node keeps of what has ended, in two sentences.
pub fn kept(retention: &RetentionStatus) -> (String, String) {
    let history = format!(
        "records and proofs for {}: {} in {} segment(s)",
        units::shown_span(retention.history_ms),
        units::shown_size(retention.history_bytes),
        retention.history_segments
    );
    let takes = match (retention.blobs, retention.blob_bytes) {
        (Some(blobs), Some(bytes)) => format!("{} in {blobs} blob(s)", units::shown_size(bytes)),
        _ => "not measured yet".to_owned(),
    };
    let blobs = format!(
        "logs for {}, output files for {}, unused inputs for {}: {takes}",
        units::shown_span(retention.logs_ms),
        units::shown_span(retention.results_ms),
        units::shown_span(retention.inputs_ms)
    );
    (history, blobs)
}

fn text(status: &ClusterStatus) -> String {
    let mut text = format!(
        "cluster   {} ({} root)\nserver    {} of term {}, leader {}, version {}, process {}\nlog       applied to {}, state {}\nwork      {} job(s) live, {} jobs and {} tasks submitted, {} reports\ndata      {}\n",
        status.cluster,
        status.class,
        status.server,
        status.term,
        status.leader,
        status.version,
        status.process_id,
        status.applied_index,
        status.state_hash,
        status.jobs_live,
        status.jobs_submitted,
        status.tasks_submitted,
        status.reports,
        harmless(&status.data_dir),
    );
    let (history, blobs) = kept(&status.retention);
    text.push_str(&format!("kept      {history}\n          {blobs}\n"));
    if let Some(refusing) = &status.refusing {
        text.push_str(&format!("refusing  new work: {}\n", harmless(refusing)));
    }
    let rows: Vec<Vec<String>> = status
        .workers
        .iter()
        .map(|worker| {
            vec![
                worker.id.clone(),
                harmless(&worker.name),
                worker.sandbox.clone(),
                format!("{}/{}", worker.held, worker.slots),
                format!("{}m", worker.cpu_millicores),
                units::shown_size(worker.memory_bytes),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(&["WORKER", "HOST", "SANDBOX", "HELD/SLOTS", "CPU", "MEMORY"], &rows));
    text
}

/// Does what a subcommand of `grey cluster` says.
pub fn cluster(command: &ClusterCommand, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        match command {
            ClusterCommand::Status => {
                let status: ClusterStatus = client.get("/v1/cluster").await?;
                output.result(&status, || text(&status))?;
            }
            ClusterCommand::Root => output.bytes(&client.get_bytes("/v1/cluster/root").await?)?,
        }
        Ok(0)
    })
}
