//! The door as clients meet it: refusals that say when to come back, and what gets through all the same.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use grey_api::{Address, Client, JobCreated, JobStatus, TaskStatus};
use serde_json::Value;

use crate::support::{Home, Ran, runtime, wait_until};

/// One submission as plain text over the socket: status, head and body.
fn submit(socket: &Path, body: &str) -> (u16, String, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap())
}

/// What one member of a head says.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn started(home: &Home, environment: &[(&str, &str)]) -> std::path::PathBuf {
    let mut command = home.command(&["run", "-q", "--", "true"]);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    home.data().join("grey.sock")
}

#[test]
fn a_tenant_that_floods_is_told_when_to_come_back_while_cancels_and_results_get_through() {
    let home = Home::new();
    let socket = started(&home, &[("GREY_SUBMIT_RATE", "2"), ("GREY_SUBMIT_BURST", "4")]);
    let go = home.path("go");
    let waits = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let submitted = |script: &str| -> JobCreated {
        let body = serde_json::json!({ "tasks": [{ "command": ["sh", "-c", script] }] }).to_string();
        let (status, _, answer) = submit(&socket, &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    };
    let (endless, ending) = (submitted("sleep 600"), submitted(&waits));
    let running = |job: &JobCreated| {
        home.get::<TaskStatus>(&format!("/v1/tasks/{}", job.first_task)).unwrap().state == "running"
    };
    wait_until("both run", || running(&endless) && running(&ending));

    // When: three clients submit as fast as they can.
    let over = AtomicBool::new(false);
    let one = r#"{"tasks":[{"command":["true"]}]}"#;
    let refused = std::thread::scope(|scope| {
        let flood = || {
            let mut refused = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let (status, head, answer) = submit(&socket, one);
                if status != 200 {
                    refused.push((status, head, answer));
                }
            }
            refused
        };
        let flooding: Vec<_> = (0..3).map(|_| scope.spawn(flood)).collect();
        // Then: a task that runs ends, and one that would not is cancelled.
        std::fs::write(&go, "").unwrap();
        let path = format!("/v1/jobs/{}?wait_ms=30000", ending.job);
        let ended: JobStatus = home.get(&path).unwrap();
        let cancelled = home.grey(&["job", "cancel", &endless.job]);
        let path = format!("/v1/jobs/{}?wait_ms=30000", endless.job);
        let stopped: JobStatus = home.get(&path).unwrap();
        over.store(true, Ordering::Relaxed);
        assert_eq!((ended.ended, ended.counts.completed), (true, 1));
        assert_eq!(cancelled.status, 0, "{}", cancelled.errors);
        assert_eq!(stopped.counts.cancelled, 1);
        flooding.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(!refused.is_empty());
    for (status, head, answer) in &refused {
        assert_eq!((*status, answer["code"].as_str()), (429, Some("rate_exceeded")), "{answer}");
        assert_eq!(answer["limit"], 4);
        assert!(answer["usage"].as_u64().unwrap() <= 4);
        let retry_after_ms = answer["retry_after_ms"].as_u64().unwrap();
        let seconds: u64 = header(head, "retry-after").unwrap().parse().unwrap();
        assert!((1..=500).contains(&retry_after_ms) && seconds == 1, "{retry_after_ms} {seconds}");
    }

    // The command line waits as it is told, and succeeds; what never fits is refused once.
    while submit(&socket, one).0 == 200 {}
    let ran = home.grey(&["run", "-q", "--", "echo", "back"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "back\n"), "{}", ran.errors);
    let (status, head, answer) = submit(&socket, r#"{"tasks":[{"command":["true"],"count":5}]}"#);
    assert_eq!((status, answer["code"].as_str()), (422, Some("burst_exceeded")));
    assert_eq!(header(&head, "retry-after"), None);
}

#[test]
fn a_node_that_has_too_much_says_so_and_clients_that_wait_all_succeed() {
    let home = Home::new();
    let socket = started(&home, &[("GREY_UNDER_WAY", "1")]);
    let body = serde_json::json!({ "tasks": (0..50).map(|number| {
        serde_json::json!({ "command": ["true"], "executor": "noop", "name": format!("n{number}") })
    }).collect::<Vec<_>>() })
    .to_string();
    let mut refused = Vec::new();
    wait_until("one of many at once is refused", || {
        std::thread::scope(|scope| {
            let sending: Vec<_> = (0..16).map(|_| scope.spawn(|| submit(&socket, &body))).collect();
            let answers = sending.into_iter().map(|thread| thread.join().unwrap());
            refused.extend(answers.filter(|(status, ..)| *status != 200));
        });
        !refused.is_empty()
    });
    for (status, head, answer) in &refused {
        assert_eq!((*status, answer["code"].as_str()), (503, Some("overloaded")), "{answer}");
        assert_eq!((answer["limit"].as_u64(), answer["usage"].as_u64()), (Some(1), Some(1)));
        assert_eq!(header(head, "retry-after"), Some("1"));
        assert!(answer["retry_after_ms"].as_u64().is_some());
    }
    // Given: sixteen clients that wait as they are told. Then: each of them succeeds.
    let accepted: Vec<JobCreated> = runtime().block_on(async {
        let sending = (0..16).map(|number| {
            let (client, body) = (Client::new(Address::Unix(socket.clone()), None), body.clone());
            tokio::spawn(async move {
                let key = format!("client-{number}");
                client.post_bytes("/v1/jobs", "application/json", body.into(), Some(&key)).await
            })
        });
        let sending: Vec<_> = sending.collect();
        let mut accepted = Vec::new();
        for one in sending {
            accepted.push(one.await.unwrap().unwrap());
        }
        accepted
    });
    let jobs: std::collections::BTreeSet<String> = accepted.into_iter().map(|created| created.job).collect();
    assert_eq!(jobs.len(), 16);
    // A stream waits for room by itself.
    let lines = format!("{}\n", r#"{"command":["true"],"executor":"noop"}"#).repeat(20_000);
    let stream = || home.lines("/v1/tasks/stream", crate::support::NDJSON, &lines, None).unwrap();
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..3).map(|_| scope.spawn(stream)).collect();
        for one in streams {
            let answers = one.join().unwrap();
            let end: Value = serde_json::from_str(answers.last().unwrap()).unwrap();
            assert_eq!((end["tasks"].as_u64(), end.get("problem")), (Some(20_000), None), "{end}");
        }
    });
}

#[test]
fn an_intake_outside_its_bounds_is_refused_at_the_start() {
    let home = Home::new();
    for (variable, value) in
        [("GREY_UNDER_WAY", "0"), ("GREY_SUBMIT_RATE", "0"), ("GREY_SUBMIT_BURST", "many")]
    {
        let output = home.command(&["dev", "--listen", "127.0.0.1:0"]).env(variable, value).output().unwrap();
        let ran = Ran::of(output);
        assert_ne!(ran.status, 0, "{variable}={value}");
    }
}
