//! Tasks one a line, sent as they are read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use grey_api::{Client, StreamEnd, TaskStream, TaskStreamError};
use tokio::sync::mpsc;

use super::error::CliError;
use super::output::{Output, harmless};
use super::run::fresh_key;
use super::submit::SubmitArguments;

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be sent.
const PIECES_WAITING: usize = 4;

/// Whether a file holds tasks one a line.
pub fn is_one(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    file == Path::new("-") || matches!(extension, Some("ndjson" | "jsonl"))
}

/// Reads on a thread of its own: a pipe may be slow, and answers come meanwhile.
fn pieces(mut reader: impl Read + Send + 'static) -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Submits every line of a file, or of standard input for `-`, and prints each job once it is durable. Returns the jobs.
pub async fn send(
    client: &Client,
    arguments: &SubmitArguments,
    usual_tenant: Option<String>,
    output: &Output,
) -> Result<Vec<String>, CliError> {
    let (file, tenant) = (arguments.file.as_path(), arguments.tenant.clone().or(usual_tenant));
    let pieces = if file == Path::new("-") {
        pieces(std::io::stdin())
    } else {
        let opened = File::open(file).map_err(|error| CliError::io("read", file.display(), &error))?;
        pieces(opened)
    };
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if let Some(tenant) = tenant.as_ref().filter(|tenant| !plain(tenant)) {
        return Err(CliError::usage(format!("`{}` is no tenant's name", harmless(tenant))));
    }
    let query = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
    let path = format!("/v1/tasks/stream{query}");
    let key = arguments.key.clone().map_or_else(fresh_key, Ok)?;
    let mut stream = TaskStream::new(client, &path, &key, pieces);
    let (mut jobs, mut duplicates) = (Vec::new(), 0u64);
    loop {
        let job = match stream.next().await {
            Ok(Some(job)) => job,
            Ok(None) => break,
            Err(error) => {
                output.progress("");
                return Err(cut_short(error, file, &key, stream.so_far()));
            }
        };
        // Who waits gets the jobs as they ended.
        if !arguments.wait {
            output.item(&job, || format!("{}\n", job.job))?;
        }
        duplicates += u64::from(job.duplicate);
        output.progress(&format!("{} line(s) accepted", job.last_line));
        jobs.push(job.job);
    }
    output.progress("");
    let StreamEnd { lines, tasks, .. } = stream.so_far();
    output.note(&format!("{lines} line(s) became {} job(s) of {tasks} task(s)", jobs.len()));
    if duplicates > 0 {
        output.note(&format!("{duplicates} of them were submitted before under this key"));
    }
    Ok(jobs)
}

/// Why not every line was accepted, and how to go on: what was accepted stands.
fn cut_short(error: TaskStreamError, file: &Path, key: &str, so_far: &StreamEnd) -> CliError {
    let told = match error {
        TaskStreamError::Input(error) => CliError::io("read", file.display(), &error),
        TaskStreamError::Client(error) => error.into(),
    };
    if so_far.jobs == 0 {
        return told;
    }
    let StreamEnd { lines, jobs, .. } = so_far;
    let accepted = format!(
        "{jobs} job(s) of the first {lines} line(s) were accepted; all lines again with `--key {key}` make no others of these"
    );
    let hint = told.hint.as_ref().map_or_else(|| accepted.clone(), |hint| format!("{hint}; {accepted}"));
    told.hint(hint)
}
