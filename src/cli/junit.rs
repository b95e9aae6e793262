//! What a job's tasks came to, as a JUnit report: the language in which build servers read results.

use std::fmt::Write;
use std::path::Path;

use grey_api::{Client, TaskStatus};

use super::error::CliError;
use super::job::every_task;
use super::task::write_whole;

/// Fetches what a job's tasks came to and writes the report.
pub async fn write(client: &Client, job: &str, path: &Path) -> Result<(), CliError> {
    let mut tasks = Vec::new();
    every_task(client, job, "", async |task| {
        tasks.push(task);
        Ok(())
    })
    .await?;
    write_whole(path, report(job, &tasks).as_bytes())
}

fn seconds(duration_us: u64) -> String {
    format!("{}.{:06}", duration_us / 1_000_000, duration_us % 1_000_000)
}

/// A test case a task: failed, skipped when it was cancelled or has not ended, or passed.
fn report(job: &str, tasks: &[TaskStatus]) -> String {
    let count = |state: &str| tasks.iter().filter(|task| task.state == state).count();
    let skipped = tasks.len() - count("completed") - count("failed");
    let total_us =
        tasks.iter().filter_map(|task| task.result.as_ref()).map(|result| result.duration_us).sum();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a text does not fail.
    let _ = writeln!(
        text,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{skipped}\" time=\"{}\">",
        escaped(job),
        tasks.len(),
        count("failed"),
        seconds(total_us),
    );
    for task in tasks {
        let name = if task.name.is_empty() { task.id.clone() } else { format!("{} {}", task.name, task.id) };
        let time = task.result.as_ref().map_or(0, |result| result.duration_us);
        let _ = write!(
            text,
            "  <testcase name=\"{}\" classname=\"{}\" time=\"{}\"",
            escaped(&name),
            escaped(job),
            seconds(time)
        );
        let reason = escaped(task.reason.as_deref().unwrap_or_default());
        let _ = match (task.state.as_str(), &task.result) {
            ("completed", _) => writeln!(text, "/>"),
            ("failed", Some(result)) => writeln!(
                text,
                "><failure type=\"{}\" message=\"exit code {}\">{reason}</failure></testcase>",
                escaped(&result.outcome),
                result.exit_code
            ),
            ("failed", None) => writeln!(text, "><failure type=\"lost\">{reason}</failure></testcase>"),
            (state, _) => {
                writeln!(text, "><skipped message=\"{} {reason}\"/></testcase>", escaped(state))
            }
        };
    }
    text.push_str("</testsuite>\n");
    text
}

/// Text as XML takes it; what XML 1.0 cannot say becomes a replacement character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_a_case_and_no_text_of_a_task_is_markup() {
        let task = |id: &str, state: &str, reason: Option<&str>| TaskStatus {
            id: id.to_owned(),
            job: "j1".to_owned(),
            name: "a<b".to_owned(),
            tenant: "default".to_owned(),
            state: state.to_owned(),
            reason: reason.map(str::to_owned),
            attempt: 1,
            worker: None,
            command: Vec::new(),
            result: None,
        };
        let tasks = [
            task("t1", "completed", None),
            task("t2", "failed", Some("</failure>\u{1b}&")),
            task("t3", "cancelled", Some("it waited")),
        ];
        let text = report("j1", &tasks);
        assert!(text.contains("tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{text}");
        assert!(text.contains("name=\"a&lt;b t1\" classname=\"j1\" time=\"0.000000\"/>"), "{text}");
        assert!(text.contains("&lt;/failure&gt;\u{fffd}&amp;</failure>"), "{text}");
        assert!(text.contains("<skipped message=\"cancelled it waited\"/>"), "{text}");
        assert_eq!(text.matches("<testcase").count(), 3);
    }
}
