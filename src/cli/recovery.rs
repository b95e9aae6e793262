//! `grey cluster snapshot`, `restore` and `recover`: what is done before and after a loss.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use grey_node::SnapshotSummary;
use serde::Serialize;

use super::error::CliError;
use super::node_config::ServerArguments;
use super::output::{Output, harmless};
use super::run::connect;
use super::session::{Target, runtime};
use super::units;

/// What is after a snapshot's name until it is whole.
const UNFINISHED: &str = "part";

/// Arguments of `grey cluster snapshot`.
#[derive(clap::Args)]
pub struct SnapshotArguments {
    /// The file that the snapshot is written to, or that is looked through
    file: PathBuf,
    /// Look an existing snapshot through from beginning to end; nothing is taken
    #[arg(long)]
    check: bool,
}

/// Arguments of `grey cluster restore`.
#[derive(clap::Args)]
pub struct RestoreArguments {
    /// The snapshot
    file: PathBuf,
    /// The root key of the cluster, which `grey cluster init` made
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
    #[command(flatten)]
    server: ServerArguments,
}

/// Arguments of `grey cluster recover`.
#[derive(clap::Args)]
pub struct RecoverArguments {
    /// Yes: what only the lost servers had is given up
    #[arg(long)]
    yes: bool,
}

/// A snapshot as it is told.
#[derive(Serialize)]
struct Summary {
    file: PathBuf,
    cluster: String,
    index: u64,
    taken_wall_ms: u64,
    records: u64,
    contents: u64,
    bytes: u64,
}

impl Summary {
    fn new(file: &Path, summary: &SnapshotSummary) -> Summary {
        let SnapshotSummary { cluster, index, taken_wall_ms, records, contents, bytes } = *summary;
        let (file, cluster) = (file.to_path_buf(), cluster.to_string());
        Summary { file, cluster, index, taken_wall_ms, records, contents, bytes }
    }

    fn text(&self) -> String {
        format!(
            "snapshot  {}\ncluster   {}\nas of     entry {}\nholds     {} record(s) of history, {} piece(s) of content, {}\n",
            harmless(&self.file.display().to_string()),
            self.cluster,
            self.index,
            self.records,
            self.contents,
            units::shown_size(self.bytes),
        )
    }
}

/// Writes what the cluster sends into a file that appears whole or not at all.
async fn fetch(target: &Target, output: &Output, file: &Path) -> Result<(), CliError> {
    let client = connect(target, output).await?;
    let mut body = client.stream("/v1/cluster/snapshot").await?;
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{UNFINISHED}"));
    let unfinished = PathBuf::from(name);
    let failed = |error: std::io::Error| CliError::io("write", unfinished.display(), &error);
    // It holds what the data directory of a server does. One that was left unfinished may have been made by an earlier version.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut written = options.open(&unfinished).map_err(failed)?;
    written.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    let received = async {
        let mut received_bytes = 0;
        while let Some(piece) = body.next().await? {
            written.write_all(&piece).map_err(failed)?;
            received_bytes += piece.len() as u64;
            output.progress(&units::shown_size(received_bytes));
        }
        output.progress("");
        written.sync_all().map_err(failed)
    };
    let checked = match received.await {
        Ok(()) => {
            let checked = grey_node::check_snapshot(&unfinished);
            checked.map(drop).map_err(|error| CliError::failed(error.to_string()))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = checked {
        drop(std::fs::remove_file(&unfinished));
        return Err(error);
    }
    // A copy that a power cut takes the name of is none.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let renamed = std::fs::rename(&unfinished, file).and_then(|()| File::open(folder)?.sync_all());
    renamed.map_err(failed)
}

/// Takes a snapshot, or looks one through.
pub fn snapshot(arguments: &SnapshotArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    if !arguments.check {
        runtime()?.block_on(fetch(target, output, &arguments.file))?;
    }
    let summary = grey_node::check_snapshot(&arguments.file);
    let summary = summary.map_err(|error| CliError::failed(error.to_string()))?;
    let summary = Summary::new(&arguments.file, &summary);
    output.result(&summary, || summary.text())?;
    Ok(0)
}

/// A cluster that goes on from a snapshot.
#[derive(Serialize)]
struct Restored {
    cluster: String,
    server: u64,
    index: u64,
    ca_file: PathBuf,
    token_file: PathBuf,
}

/// Makes the data directory the first server of a cluster that goes on from a snapshot.
pub fn restore(
    arguments: &RestoreArguments,
    data_dir: Option<&Path>,
    output: &Output,
) -> Result<u8, CliError> {
    let config = arguments.server.config(data_dir)?;
    let restored = grey_node::restore(&config, &arguments.file, &arguments.root_key)
        .map_err(|error| CliError::failed(error.to_string()))?;
    let result = Restored {
        cluster: restored.founded.cluster.to_string(),
        server: restored.server,
        index: restored.summary.index,
        ca_file: restored.founded.ca_file,
        token_file: restored.founded.token_file,
    };
    output.note("what happened after the snapshot is lost; tokens that were revoked after it are good again");
    output.note("nodes of before belong to the cluster no more; they enter anew, with empty directories");
    output.result(&result, || {
        format!(
            "cluster   {}\nserver    {}, as of entry {}\nroot      {} (as before)\ntoken     {} (for an operator: GREY_TOKEN)\n",
            result.cluster,
            result.server,
            result.index,
            harmless(&result.ca_file.display().to_string()),
            harmless(&result.token_file.display().to_string()),
        )
    })?;
    Ok(0)
}

/// With what a cluster went on.
#[derive(Serialize)]
struct Recovered {
    cluster: String,
    server: u64,
    index: u64,
    term: u64,
    forgotten: Vec<String>,
}

/// Has the cluster go on with the server in the data directory alone.
pub fn recover(
    arguments: &RecoverArguments,
    data_dir: Option<&Path>,
    output: &Output,
) -> Result<u8, CliError> {
    let directory = data_dir.ok_or_else(|| CliError::usage("say with --data-dir which server goes on"))?;
    if !arguments.yes {
        return Err(CliError::failed(
            "what only the lost servers had is given up for ever; say --yes when none of them can be brought back",
        ));
    }
    let recovery = grey_node::recover(directory).map_err(|error| CliError::failed(error.to_string()))?;
    let result = Recovered {
        cluster: recovery.cluster.to_string(),
        server: recovery.server,
        index: recovery.index,
        term: recovery.term,
        forgotten: recovery.forgotten,
    };
    output.note("what was agreed on after that entry and only the lost servers had is lost");
    output.note("other nodes belong to the cluster no more; they enter anew, with empty directories");
    output.result(&result, || {
        let names: Vec<String> = result.forgotten.iter().map(|name| harmless(name)).collect();
        format!(
            "cluster   {}\nserver    {} goes on alone, as of entry {} of term {}\nforgotten {}\n",
            result.cluster,
            result.server,
            result.index,
            result.term,
            if names.is_empty() { "nobody".to_owned() } else { names.join(", ") },
        )
    })?;
    Ok(0)
}
