//! `grey events`: what happens to jobs, as it happens.

use std::time::Duration;

use grey_api::{Body, Client, ClientError, EventMessage};
use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use super::output::{Output, harmless};
use super::run::connect;
use super::session::{Target, runtime};

/// Examples of `grey events`.
pub const EXAMPLES: &str = "\
Examples:
  grey events
  grey events --json | grep job_ended

What happens while no server can be reached is not told afterwards; `grey job list` has what it came to.";

/// For how long a stream may be silent: a server says every 15 s that it is there.
const SILENT_FOR: Duration = Duration::from_secs(45);
/// When to try again where no server says it.
const AGAIN_MS: u64 = 500;

/// Calls `show` with the data of every event of a stream, as it comes, until the stream ends or nobody reads any more.
pub async fn each(
    body: &mut Body,
    output: &Output,
    mut show: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut unread = Vec::new();
    while !output.is_closed() {
        let piece = tokio::time::timeout(SILENT_FOR, body.next()).await;
        let silent = |_| CliError::unreachable(format!("nothing was heard for {} s", SILENT_FOR.as_secs()));
        let Some(piece) = piece.map_err(silent)?? else { break };
        unread.extend_from_slice(&piece);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            if let Some(data) = text.strip_prefix("data:") {
                show(data.trim())?;
            }
        }
    }
    Ok(())
}

/// An event in a few words, without its job.
pub fn told(event: &EventMessage) -> String {
    let mut line = event.kind.replace('_', " ");
    for part in [&event.task, &event.outcome].into_iter().flatten() {
        line.push_str(&format!(" {part}"));
    }
    if event.retry == Some(true) {
        line.push_str(", to be tried again");
    }
    if let Some(tasks) = event.tasks {
        line.push_str(&format!(", {tasks} task(s)"));
    }
    harmless(&line)
}

fn show(data: &str, output: &Output) -> Result<(), CliError> {
    if let Ok(event) = serde_json::from_str::<EventMessage>(data) {
        return output.item(&event, || format!("{} {}\n", harmless(&event.job), told(&event)));
    }
    // Who reads too slowly is told what was left out.
    let other = serde_json::from_str::<serde_json::Value>(data).unwrap_or_default();
    match other["missed"].as_u64() {
        Some(missed) => output.note(&format!("{missed} event(s) were left out: they came too fast")),
        None => output.note(&harmless(data)),
    }
    Ok(())
}

/// When to try again what failed, in milliseconds; nothing where that would be no use.
fn again_ms(error: &ClientError, listened: bool) -> Option<u64> {
    match error {
        ClientError::Refused(problem) => problem.retry_after_ms,
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => listened.then_some(AGAIN_MS),
        ClientError::Unreadable { .. } => None,
    }
}

/// Prints events until nobody reads them, from whichever server there is.
async fn listen(client: &Client, output: &Output) -> Result<(), CliError> {
    let (mut listened, mut lost) = (false, false);
    while !output.is_closed() {
        let failed = match client.stream("/v1/events").await {
            Ok(mut body) => {
                let again =
                    if lost { "again, and what happened meanwhile is not told" } else { "until Ctrl-C" };
                output.note(&format!("listening {again}"));
                (listened, lost) = (true, false);
                let ended = each(&mut body, output, |data| show(data, output)).await;
                ended.err().map_or_else(|| "the server ended it".to_owned(), |error| error.message)
            }
            Err(error) => {
                let Some(wait_ms) = again_ms(&error, listened) else { return Err(error.into()) };
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                error.to_string()
            }
        };
        if !lost && !output.is_closed() {
            output.note(&format!("the stream of events is lost, and tried again: {}", harmless(&failed)));
        }
        lost = true;
    }
    Ok(())
}

/// Prints what happens to every job that the token may see, until it is interrupted.
pub fn events(target: &Target, output: &Output) -> Result<u8, CliError> {
    output.must_not_be_names()?;
    runtime()?.block_on(async {
        let mut interrupts =
            signal(SignalKind::interrupt()).map_err(|error| CliError::io("watch", "for Ctrl-C", &error))?;
        let client = connect(target, output).await?;
        tokio::select! {
            ended = listen(&client, output) => ended.map(|()| 0),
            _ = interrupts.recv() => Ok(0),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_api::{ErrorCode, Problem};

    #[test]
    fn an_event_is_told_in_a_few_words() {
        let event = EventMessage {
            index: 7,
            job: "j1".to_owned(),
            kind: "attempt_ended".to_owned(),
            task: Some("t2".to_owned()),
            outcome: Some("lost".to_owned()),
            retry: Some(true),
            tasks: None,
        };
        assert_eq!(told(&event), "attempt ended t2 lost, to be tried again");
        let ended =
            EventMessage { kind: "job_ended".to_owned(), task: None, outcome: None, retry: None, ..event };
        assert_eq!(told(&EventMessage { tasks: Some(3), ..ended }), "job ended, 3 task(s)");
    }

    #[test]
    fn a_lost_server_is_looked_for_again_and_a_refusal_is_final() {
        let refused = |problem: Problem| ClientError::Refused(Box::new(problem));
        let forbidden = refused(Problem::new(ErrorCode::Unauthorized, "no"));
        let nobody_leads = refused(Problem::new(ErrorCode::Unavailable, "wait").retry_after_ms(300));
        let gone = ClientError::Unreachable { address: "a".to_owned(), reason: "b".to_owned() };
        for (error, listened, expected) in [
            (&forbidden, true, None),
            (&nobody_leads, false, Some(300)),
            (&gone, true, Some(AGAIN_MS)),
            // An address where nobody ever answered is more likely wrong.
            (&gone, false, None),
        ] {
            assert_eq!(again_ms(error, listened), expected, "{error}");
        }
    }
}
