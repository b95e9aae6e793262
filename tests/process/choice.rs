//! What a task asks of its worker, long lists of items, streams of tasks, and time-outs that change, through the real
//! binary.

use std::io::{BufRead, Write};
use std::process::Stdio;

use grey_api::{
    BlobCreated, ClientError, ErrorCode, JobCreated, JobStatus, StreamEnd, StreamedJob, TaskExplanation,
    TimeoutChanged,
};

use super::support::{Home, Ran, wait_until};

/// A cluster whose worker is in zone a and has two GPUs.
fn equipped(home: &Home) {
    let mut first = home.command(&["run", "--", "true"]);
    first.env("GREY_WORKER_LABELS", "zone=a,disk=ssd").env("GREY_WORKER_DEVICES", "gpu=2");
    let ran = Ran::of(first.output().unwrap());
    assert_eq!(ran.status, 0, "{}", ran.errors);
}

#[test]
fn a_task_has_its_devices_to_itself_and_runs_where_its_labels_are() {
    let home = Home::new();
    equipped(&home);
    let script = "echo $GREY_DEVICE_GPU";
    let ran = home.grey(&["run", "--device", "gpu=2", "--constraint", "zone=a", "--", "sh", "-c", script]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "0,1\n"), "{}", ran.errors);
    let workers = home.json(&["cluster", "status", "--json"])["workers"].clone();
    assert_eq!(workers[0]["labels"]["disk"], "ssd");
    assert_eq!(workers[0]["devices"]["gpu"]["count"], 2);
    assert_eq!(workers[0]["tier"], "software");
}

#[test]
fn what_no_worker_offers_is_waited_for_and_explained() {
    let home = Home::new();
    equipped(&home);
    for (number, (task, reason)) in [
        (r#"{"command":["true"],"constraints":{"labels":{"zone":"b"}}}"#, "no worker has the label zone=b"),
        (r#"{"command":["true"],"devices":{"gpu":3}}"#, "no worker has 3 device(s) `gpu`"),
        (r#"{"command":["true"],"constraints":{"tier":"hardware"}}"#, "no worker has the tier hardware"),
    ]
    .into_iter()
    .enumerate()
    {
        home.post::<JobCreated>("/v1/tasks", "application/json", task, None).unwrap();
        let path = format!("/v1/tasks/t{}/explain", number + 2);
        let explained: TaskExplanation = home.get(&path).unwrap();
        assert_eq!((explained.state.as_str(), explained.reason.as_deref()), ("pending", Some(reason)));
        assert_eq!((explained.feasible, explained.estimated_wait_ms), (Some(false), None));
    }
    for (task, field) in [
        (r#"{"command":["true"],"constraints":{"tier":"blocked"}}"#, "constraints.tier"),
        (r#"{"command":["true"],"constraints":{"sandbox":"vm"}}"#, "constraints.sandbox"),
        (r#"{"command":["true"],"devices":{"GPU":1}}"#, "tasks[0].devices"),
    ] {
        let refused = home.post::<JobCreated>("/v1/tasks", "application/json", task, None);
        let Err(ClientError::Refused(problem)) = refused else { panic!("{task} was taken") };
        assert_eq!(problem.field.as_deref(), Some(field), "{}", problem.detail);
    }
}

#[test]
fn an_array_of_more_items_than_a_submission_may_list_is_one_array() {
    let home = Home::new();
    let lines: String = (0..12_345).map(|number| format!("line {number}\n")).collect();
    std::fs::write(home.path("lines"), lines).unwrap();
    let text = "version = 1\n[[task]]\nexecutor = \"noop\"\neach = { lines = \"lines\" }\n";
    std::fs::write(home.path("many.toml"), text).unwrap();
    let ran = home.grey(&["submit", "many.toml", "--wait"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let job: JobStatus = home.get("/v1/jobs/j1").unwrap();
    assert_eq!((job.tasks, job.counts.completed), (12_345, 12_345));
}

#[test]
fn each_task_of_a_list_finds_its_item_and_its_file_and_a_failed_one_is_run_again_with_them() {
    let home = Home::new();
    std::fs::create_dir(home.path("data")).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(home.path(&format!("data/{name}")), format!("content of {name}")).unwrap();
    }
    let text = r#"
        version = 1
        [[task]]
        name = "read"
        each = { files = "data/*" }
        command = ["sh", "-c", 'echo "$GREY_INDEX $GREY_ITEM $(cat "$GREY_ITEM") $(ls data | wc -l)"; test $GREY_INDEX != 1']
        [[task]]
        name = "say"
        each = { items = ["x y", "", 7, "tab\tnewline\n."] }
        command = ["sh", "-c", 'printf %s "$GREY_ITEM"']
    "#;
    std::fs::write(home.path("job.toml"), text).unwrap();
    let ran = home.grey(&["submit", "job.toml", "--wait"]);
    assert_eq!(ran.status, 1, "{}", ran.errors);
    let said = |task: u32| home.grey(&["task", "logs", &format!("t{task}")]).text;
    assert_eq!(said(1), "0 data/a content of a 1\n");
    assert_eq!(said(3), "2 data/c content of c 1\n");
    assert_eq!([4, 5, 6, 7].map(said), ["x y", "", "7", "tab\tnewline\n."]);
    // The keys of what they executed differ by the item alone.
    let key = |task: u32| {
        let path = home.path(&format!("{task}.json"));
        let ran = home.grey(&["task", "proof", &format!("t{task}"), "--out", path.to_str().unwrap()]);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        let shown = home.json(&["verify", path.to_str().unwrap(), "--json"]);
        shown["statement"]["predicate"]["exec_key"].as_str().unwrap().to_owned()
    };
    let keys: std::collections::BTreeSet<String> = [1, 2, 3].map(key).into_iter().collect();
    assert_eq!(keys.len(), 3);
    // When what failed is run again, it is the same item.
    let again = home.json(&["job", "rerun", "j1", "--json"]);
    assert_eq!(again["tasks"], 1);
    let task = again["first_task"].as_str().unwrap();
    home.grey(&["task", "wait", task]);
    assert_eq!(home.grey(&["task", "logs", task]).text, "1 data/b content of b 1\n");
}

#[test]
fn a_list_that_does_not_fit_its_array_is_refused_with_the_line() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let submit = |list: &str, count: u32| {
        let kept: BlobCreated = home.post("/v1/blobs", "application/octet-stream", list, None).unwrap();
        let task = serde_json::json!({
            "command": ["true"], "count": count, "items": { "digest": kept.digest, "size_bytes": kept.size_bytes },
        });
        match home.post::<JobCreated>("/v1/tasks", "application/json", task.to_string(), None) {
            Err(ClientError::Refused(problem)) => *problem,
            other => panic!("{other:?}"),
        }
    };
    let wrong_line = submit("\"a\"\n{}\n", 2);
    assert_eq!(wrong_line.field.as_deref(), Some("tasks[0].items"));
    assert!(wrong_line.detail.starts_with("line 2 of the list"), "{}", wrong_line.detail);
    let wrong_count = submit("\"a\"\n\"b\"\n", 3);
    assert_eq!((wrong_count.code, wrong_count.limit), (ErrorCode::InvalidRequest, Some(2)));
    let no_jobs: grey_api::JobList = home.get("/v1/jobs").unwrap();
    assert_eq!(no_jobs.jobs.len(), 1, "nothing of it was accepted");
}

#[test]
fn a_time_out_changes_while_a_task_runs() {
    let home = Home::new();
    // Given a task that runs for as long as it may.
    let mut running = home.command(&["run", "--", "sh", "-c", "echo begun; sleep 1000"]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it runs", || {
        home.get::<grey_api::TaskStatus>("/v1/tasks/t1").is_ok_and(|task| task.state == "running")
    });
    // When its time-out becomes shorter than what it has run.
    let changed = home.json(&["task", "timeout", "t1", "1ms", "--json"]);
    assert_eq!(changed["tasks"], 1);
    // Then it ends as timed out, and its time-out cannot be changed any more.
    assert_eq!(running.wait().unwrap().code(), Some(124));
    let message = home.json(&["task", "status", "t1", "--json"])["result"]["message"].clone();
    assert_eq!(message, "the task ran longer than its time-out of 1 ms");
    let ended = home.grey(&["task", "timeout", "t1", "1h"]);
    assert_eq!(ended.status, 3);
    assert!(ended.errors.contains("[has_ended]"), "{}", ended.errors);
    let body = r#"{"timeout_ms":1000}"#;
    let ended = home.post::<TimeoutChanged>("/v1/jobs/j1/timeout", "application/json", body, None);
    assert!(matches!(ended, Err(ClientError::Refused(problem)) if problem.code == ErrorCode::HasEnded));
}

#[test]
fn a_directory_of_another_format_is_left_alone_and_says_what_to_do() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    assert_eq!(home.grey(&["down"]).status, 0);
    let mark = home.data().join("format");
    let written = std::fs::read(&mark).unwrap();
    for found in [Some("1"), Some("2"), Some("99"), None] {
        match found {
            Some(found) => std::fs::write(&mark, found).unwrap(),
            None => std::fs::remove_file(&mark).unwrap(),
        }
        let ran = home.grey(&["run", "--", "true"]);
        assert_eq!(ran.status, 125);
        let expected = format!("was written in format {}", found.unwrap_or("1"));
        assert!(ran.errors.contains(&expected) && ran.errors.contains("--data-dir"), "{}", ran.errors);
    }
    std::fs::write(&mark, written).unwrap();
    assert_eq!(home.grey(&["task", "status", "t1"]).status, 0, "nothing was lost");
}

#[test]
fn a_stream_of_tasks_becomes_jobs_as_it_comes() {
    let home = Home::new();
    let mut stream = home.command(&["submit", "-", "--json"]);
    let mut stream =
        stream.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = stream.stdin.take().unwrap();
    let mut answers = std::io::BufReader::new(stream.stdout.take().unwrap()).lines();
    // Given: as many lines as fit into a job, and one more, and no end yet.
    let line = r#"{"executor":"noop"}"#;
    for _ in 0..10_001 {
        writeln!(input, "{line}").unwrap();
    }
    // Then: the first job is durable before the stream ends.
    let first: StreamedJob = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
    assert_eq!((first.tasks, first.first_line, first.last_line), (10_000, 1, 10_000));
    // When: it ends, the rest is a job too.
    write!(input, "{line}").unwrap();
    drop(input);
    let second: StreamedJob = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
    assert_eq!((second.tasks, second.first_line, second.last_line), (2, 10_001, 10_002));
    assert!(answers.next().is_none());
    assert_eq!(stream.wait().unwrap().code(), Some(0));
}

#[test]
fn a_wrong_line_ends_a_stream_and_what_came_before_stands() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let good = "{\"executor\":\"noop\"}\n".repeat(10_000);
    let send =
        |text: &str, key: &str| home.lines("/v1/tasks/stream", "application/x-ndjson", text, Some(key));
    // Given: a wrong line in the second job.
    let lines = send(&format!("{good}\n{{\"executor\":\"noop\"}}\n{{\"comand\":1}}\n"), "k").unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let end: StreamEnd = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!((end.lines, end.jobs, end.tasks), (10_001, 1, 10_000));
    assert!(end.problem.unwrap().detail.starts_with("line 10003 cannot be read"));
    // When: the mended stream is sent under the same key, what is there already is not made again.
    let lines = send(&format!("{good}\n{{\"executor\":\"noop\"}}\n"), "k").unwrap();
    let jobs: Vec<StreamedJob> = lines[..2].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((jobs[0].duplicate, jobs[1].duplicate), (true, false));
    assert_eq!((jobs[1].first_line, jobs[1].last_line, jobs[1].tasks), (10_002, 10_002, 1));
    // Then: a first line that is wrong, a stream without tasks, and tasks that wait for others are refused whole.
    for (text, said) in [
        ("{}\n", "command"),
        ("{\"command\":[\"a\"],\"after\":[\"b\"]}\n", "line 1 waits for other tasks"),
        ("\n\n{\"command\":[\"a\"],\"inputs_from\":[{\"task\":\"b\",\"path\":\"c\"}]}\n", "line 3 waits"),
        ("\n \n", "no tasks"),
        ("", "no tasks"),
    ] {
        let Err(ClientError::Refused(problem)) = send(text, "other") else { panic!("{text} was taken") };
        assert!(problem.detail.contains(said), "{text}: {}", problem.detail);
    }
}

#[test]
fn a_worker_that_cannot_be_is_refused_before_anything_starts() {
    let home = Home::new();
    for (variable, value, said) in [
        ("GREY_WORKER_DEVICES", "gpu=99999", "the limit is 1024"),
        ("GREY_WORKER_DEVICES", "GPU=1", "lower-case"),
        ("GREY_WORKER_LABELS", "nothing", "KEY=VALUE"),
        ("GREY_WORKER_LABELS", &format!("zone={}", "z".repeat(129)), "the limit is 128"),
    ] {
        let mut command = home.command(&["run", "--", "true"]);
        let ran = Ran::of(command.env(variable, value).output().unwrap());
        assert_eq!(ran.status, 125, "{variable}={value}");
        // What the background process says before it can be asked is in its log, which is named.
        assert!(ran.errors.contains(said) || ran.errors.contains("grey.log") && home.log().contains(said));
    }
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
}
