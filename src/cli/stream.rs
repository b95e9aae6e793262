//! Tasks one a line, sent as they are read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use grey_api::{Client, StreamEnd, StreamedJob};
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
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = match reader.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    Ok(piece.into())
                }
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
    let mut answer = client.post_pieces(&path, "application/x-ndjson", pieces, Some(&key)).await?;
    let (mut rest, mut jobs, mut duplicates) = (Vec::new(), Vec::new(), 0u64);
    while let Some(piece) = answer.next().await? {
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Ok(job) = serde_json::from_slice::<StreamedJob>(&line) {
                // Who waits gets the jobs as they ended.
                if !arguments.wait {
                    output.item(&job, || format!("{}\n", job.job))?;
                }
                duplicates += u64::from(job.duplicate);
                output.progress(&format!("{} line(s) accepted", job.last_line));
                jobs.push(job.job);
            } else if let Ok(end) = serde_json::from_slice::<StreamEnd>(&line) {
                output.progress("");
                let text =
                    format!("{} line(s) became {} job(s) of {} task(s)", end.lines, end.jobs, end.tasks);
                output.note(&text);
                if duplicates > 0 {
                    output.note(&format!("{duplicates} of them were submitted before under this key"));
                }
                return match end.problem {
                    None => Ok(jobs),
                    Some(problem) => Err(grey_api::ClientError::Refused(Box::new(problem)).into()),
                };
            }
        }
    }
    let accepted = jobs.len();
    Err(CliError::failed("the answer ended before it was complete")
        .hint(format!("{accepted} job(s) were accepted; `grey job list` shows all that there are")))
}
