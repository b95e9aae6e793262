//! `grey cluster status`: what the leader knows, or, where none is in touch with a majority, what is known to the server that answers.

use std::time::Duration;

use grey_api::{Client, ClientError, ClusterStatus, ErrorCode, RetentionStatus, RetryOptions};
use serde::Serialize;

use super::error::{CliError, UNREACHABLE};
use super::output::{Output, harmless, table};
use super::rekey;
use super::units;

/// For how long a leader is asked for; an election takes less.
const ASKED_FOR: Duration = Duration::from_secs(4);
/// Within which time a leader answers that was asked.
const LEADER_WITHIN: Duration = Duration::from_secs(10);
/// Within which time a server says what it knows itself.
const SERVER_WITHIN: Duration = Duration::from_secs(5);
/// How whoever looks at the cluster's state asks: for long enough that an election passes, and so often that the answer comes soon after it.
pub const RETRIES: RetryOptions = RetryOptions {
    tokens: 100,
    first_wait: Duration::from_millis(100),
    longest_wait: Duration::from_millis(500),
    deadline: ASKED_FOR,
};

/// A cluster, and whether that is agreed on.
#[derive(Serialize)]
struct Shown {
    /// Whether a leader has said it that is in touch with a majority.
    agreed: bool,
    /// Where none did although it was asked for: who has said it instead, and why.
    #[serde(flatten)]
    instead: Option<Instead>,
    #[serde(flatten)]
    status: ClusterStatus,
}

#[derive(Serialize)]
struct Instead {
    /// The server that was asked.
    asked: String,
    /// What became of asking the leader.
    trouble: String,
}

impl Instead {
    fn says(&self) -> String {
        format!("no leader is in touch with a majority; this is what {} knows", self.asked)
    }
}

impl Shown {
    /// What stands before everything else where it is not what was asked for.
    fn marked(&self) -> String {
        let line = |instead: &Instead| {
            format!("agreed    no: {}\n          {}\n", instead.says(), harmless(&instead.trouble))
        };
        self.instead.as_ref().map(line).unwrap_or_default()
    }
}

/// Prints the cluster's status. Without a leader that is in touch with a majority it is what one server knows, and the exit status says so.
pub async fn status(client: Client, here: bool, output: &Output) -> Result<u8, CliError> {
    let client = client.with_retries(Some(RETRIES));
    if here {
        let shown = Shown { agreed: false, instead: None, status: of_server(&client).await? };
        output.result(&shown, || text(&shown))?;
        return Ok(0);
    }
    let error = match of_leader(&client).await {
        Ok(status) => {
            let shown = Shown { agreed: true, instead: None, status };
            output.result(&shown, || text(&shown))?;
            return Ok(0);
        }
        Err(error) if is_without_leader(&error) => error,
        Err(error) => return Err(error.into()),
    };
    let status = match of_server(&client).await {
        Ok(status) => status,
        // It refuses whoever asks, and not for its own trouble.
        Err(refused) if !is_without_leader(&refused) && refused.problem().is_some() => {
            return Err(refused.into());
        }
        Err(_) => return Err(error.into()),
    };
    let instead = Instead { asked: client.address().to_string(), trouble: error.to_string() };
    output.note(&instead.says());
    let shown = Shown { agreed: false, instead: Some(instead), status };
    output.result(&shown, || text(&shown))?;
    Ok(UNREACHABLE)
}

async fn of_leader(client: &Client) -> Result<ClusterStatus, ClientError> {
    within(client, LEADER_WITHIN, client.get("/v1/cluster")).await
}

async fn of_server(client: &Client) -> Result<ClusterStatus, ClientError> {
    within(client, SERVER_WITHIN, client.get("/v1/cluster?stale=true")).await
}

async fn within<T>(
    client: &Client,
    longest: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(longest, answer).await.unwrap_or_else(|_| {
        let reason = format!("it does not answer within {} s", longest.as_secs());
        Err(ClientError::Broken { address: client.address().to_string(), reason })
    })
}

/// Whether a server may yet say what it knows where this is what became of asking the leader.
fn is_without_leader(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(problem) => problem.code == ErrorCode::Unavailable,
        ClientError::Broken { .. } => true,
        ClientError::Unreachable { .. } | ClientError::Unreadable { .. } => false,
    }
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

/// Who votes, and who learns.
fn members(status: &ClusterStatus) -> String {
    let numbers = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    match status.learners.as_slice() {
        [] => numbers(&status.voters),
        learners => format!("{}; {} learn(s)", numbers(&status.voters), numbers(learners)),
    }
}

/// The feature level in force, and whether another one may be.
fn level(status: &ClusterStatus) -> String {
    if status.understood_by_all > status.feature_level {
        return format!(
            "{}; every server understands {}: `grey cluster upgrade` puts it in force",
            status.feature_level, status.understood_by_all
        );
    }
    status.feature_level.to_string()
}

fn text(shown: &Shown) -> String {
    let status = &shown.status;
    let mut text = shown.marked();
    text.push_str(&format!(
        "cluster   {} ({} root)\nserver    {} of term {}, leader {}, version {}, process {}\nvoters    {}\nlevel     {}\nlog       applied to {}, state {}\nwork      {} job(s) live, {} jobs and {} tasks submitted, {} reports\ndata      {}\n",
        status.cluster,
        status.class,
        status.server,
        status.term,
        status.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
        status.version,
        status.process_id,
        members(status),
        level(status),
        status.applied_index,
        status.state_hash,
        status.jobs_live,
        status.jobs_submitted,
        status.tasks_submitted,
        status.reports,
        harmless(&status.data_dir),
    ));
    let (history, blobs) = kept(&status.retention);
    text.push_str(&format!("kept      {history}\n          {blobs}\n"));
    if let Some(key) = &status.issuing_key {
        text.push_str(&format!("issuing   key {}\n", rekey::shown(key)));
    }
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
