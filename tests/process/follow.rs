//! Streams that are followed while they are written, through the real binary.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};

use grey_api::JobCreated;

use super::support::{Home, wait_until};

/// A cluster with nothing to do.
fn ready() -> Home {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    home
}

fn submit(home: &Home, script: &str, more: serde_json::Value) -> String {
    let mut task = serde_json::json!({ "command": ["sh", "-c", script] });
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let created: JobCreated = home.post("/v1/tasks", "application/json", task.to_string(), None).unwrap();
    created.first_task
}

fn following(home: &Home, arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = home.command(&[&["task", "logs", "--follow"], arguments].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

#[test]
fn a_line_is_seen_while_the_task_goes_on_and_nothing_is_lost_at_its_end() {
    let home = ready();
    // Given a task that waits, after its first line, for a file that is made only once that line was seen.
    let go = home.path("go");
    let script =
        format!("echo first; until test -e '{}'; do sleep 0.02; done; seq 3000; printf last", go.display());
    let task = submit(&home, &script, serde_json::json!({}));
    let (mut child, mut stdout) = following(&home, &[&task]);
    assert_eq!(line(&mut stdout), "first\n");
    let so_far = home.grey(&["task", "logs", &task]);
    assert_eq!(
        (so_far.status, so_far.text.as_str()),
        (0, "first\n"),
        "without --follow there is what there is"
    );
    std::fs::write(&go, "").unwrap();
    // Then every byte comes once and in order, also of what went over into a file, and it ends with the task.
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let numbers: String = (1..=3_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(rest, format!("{numbers}last"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // A task that has ended is told whole.
    let again = home.grey(&["task", "logs", "-f", &task]);
    assert_eq!(again.text, format!("first\n{numbers}last"));
}

#[test]
fn what_is_written_before_after_and_by_a_second_attempt_is_followed() {
    let home = ready();
    // The first attempt ends only when its first line was seen: the second would be followed alone otherwise.
    let (mark, go) = (home.path("mark"), home.path("go"));
    let script = format!(
        "echo out; echo err >&2; if test -e '{0}'; then echo second; else touch '{0}'; \
         until test -e '{1}'; do sleep 0.02; done; exit 1; fi",
        mark.display(),
        go.display()
    );
    let more = serde_json::json!({ "retries": { "failure": 1 } });
    let task = submit(&home, &script, more);
    let (child, mut stdout) = following(&home, &[&task]);
    assert_eq!(line(&mut stdout), "out\n");
    std::fs::write(&go, "").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!((ended.status.code(), rest.as_str()), (Some(0), "out\nsecond\n"), "{errors}");
    assert!(errors.contains("attempt 2"), "{errors}");
    assert_eq!(
        home.grey(&["task", "logs", "-f", "--stderr", &task]).text,
        "err\n",
        "of an ended task, the latest"
    );
}

#[test]
fn a_chatty_binary_stream_comes_to_the_byte() {
    let home = ready();
    let script = "head -c 30000000 /dev/zero | tr '\\0' '\\377'";
    let task = submit(&home, script, serde_json::json!({}));
    let (mut child, mut stdout) = following(&home, &[&task]);
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 30_000_000);
    assert!(bytes.iter().all(|byte| *byte == 0xff));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn following_ends_with_a_cancelled_task_whether_or_not_it_ran() {
    let home = ready();
    let task = submit(&home, "echo begun; sleep 1000", serde_json::json!({}));
    let (mut child, mut stdout) = following(&home, &[&task]);
    assert_eq!(line(&mut stdout), "begun\n");
    // Given another one that never begins, and somebody who waits for it.
    let absent = serde_json::json!({ "constraints": { "labels": { "zone": "nowhere" } } });
    let waiting = submit(&home, "true", absent);
    let (mut other, mut nothing) = following(&home, &[&waiting]);
    wait_until("it is waited for", || {
        home.get::<grey_api::TaskStatus>(&format!("/v1/tasks/{waiting}"))
            .is_ok_and(|task| task.state == "pending")
    });
    for id in [&task, &waiting] {
        assert_eq!(home.grey(&["task", "cancel", id]).status, 0);
    }
    assert_eq!(line(&mut stdout), "");
    assert_eq!(line(&mut nothing), "");
    assert_eq!((child.wait().unwrap().code(), other.wait().unwrap().code()), (Some(0), Some(0)));
}

#[test]
fn a_job_s_tasks_are_followed_one_after_another() {
    let home = ready();
    let created: JobCreated = home
        .post(
            "/v1/tasks",
            "application/json",
            r#"{"command":["sh","-c","echo $GREY_INDEX"],"count":3}"#,
            None,
        )
        .unwrap();
    let ran = home.grey(&["job", "logs", "-f", &created.job]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "0\n1\n2\n"), "{}", ran.errors);
    for wrong in [&["task", "logs", "-f", "t99"][..], &["task", "logs", "-f", "x"]] {
        assert_eq!(home.grey(wrong).status, if wrong[3] == "x" { 3 } else { 1 }, "{wrong:?}");
    }
}
