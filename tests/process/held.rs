//! What is held open for long, and by whom.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::support::{Home, wait_until};
use super::tenants::Site;

/// The head of an upload, and the first bytes of it.
const BEGUN: &str = "Content-Length: 1000000\r\n\r\nabc";
/// The streams that a tenant may have open.
const STREAMS_OF_A_TENANT: usize = 256;
/// The uploads that a tenant may have under way.
const UPLOADS_OF_A_TENANT: usize = 16;

#[test]
fn uploads_of_one_tenant_that_stand_still_leave_room_for_those_of_others() {
    let site = Site::new();
    let (red, blue) = (site.token("r", "submitter", Some("red")), site.token("b", "submitter", Some("blue")));
    // Given more uploads of red than it may have, of which none goes on.
    let mut stalled: Vec<_> =
        (0..=UPLOADS_OF_A_TENANT).map(|_| site.begun(&red, "POST /v1/blobs", BEGUN)).collect();
    // Then one of them is refused, and blue's are not.
    let mut told = vec![0; 16_384];
    let mut answers = Vec::new();
    for stream in &mut stalled {
        stream.set_nonblocking(true).unwrap();
    }
    wait_until("one of them is refused", || {
        answers.extend(stalled.iter_mut().filter_map(|stream| {
            let length = stream.read(&mut told).ok()?;
            Some(String::from_utf8_lossy(&told[..length]).into_owned())
        }));
        !answers.is_empty()
    });
    let answer = answers.concat();
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("queue_full"), "{answer}");
    assert!(answer.contains("16 uploads of the tenant are under way"), "{answer}");
    std::fs::write(site.home.path("in.txt"), "of blue\n").unwrap();
    let ran = site.as_bearer(&blue, &["run", "-q", "--in", "in.txt", "--", "cat", "in.txt"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "of blue\n"), "{}", ran.errors);
    // Once they are gone, red's are taken again.
    drop(stalled);
    let ran = site.as_bearer(&red, &["run", "-q", "--in", "in.txt", "--", "cat", "in.txt"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "of blue\n"), "{}", ran.errors);
    site.end();
}

#[test]
fn who_changes_the_cluster_and_hangs_up_is_told_of_in_the_log() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "-q", "--", "true"]).status, 0);
    let made = || {
        let listed = home.grey(&["tenant", "list", "-o", "name"]).text;
        listed.lines().filter(|name| name.starts_with("gone-")).count()
    };
    assert_eq!(made(), 0);
    // When somebody makes tenants and never waits for an answer.
    for number in 0..20 {
        let body = format!("{{\"name\": \"gone-{number}\"}}");
        let length = body.len();
        let head = "Host: localhost\r\nContent-Type: application/json";
        let request =
            format!("POST /v1/tenants HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        let mut stream = UnixStream::connect(home.data().join("grey.sock")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
    }
    // Then there is a line for each that was made.
    wait_until("some of them are made", || made() > 0);
    wait_until("each is told of", || home.log().matches("somebody changed the cluster").count() >= made());
}

/// What comes over a connection until it ends.
fn rest(mut stream: impl Read) -> String {
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    String::from_utf8_lossy(&told).into_owned()
}

/// What comes over a connection, up to what is waited for.
fn until(stream: &mut impl Read, what: &str) -> String {
    let (mut told, mut byte) = (Vec::new(), [0]);
    while !told.ends_with(what.as_bytes()) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&told));
        told.push(byte[0]);
    }
    String::from_utf8_lossy(&told).into_owned()
}

#[test]
fn what_is_open_for_a_token_ends_when_it_is_revoked() {
    let site = Site::new();
    let red = site.token("r", "submitter", Some("red"));
    let runs = serde_json::json!({ "command": ["sh", "-c", "echo begun; sleep 600"] });
    let waits = serde_json::json!({ "command": ["true"], "constraints": { "labels": { "is": "nowhere" } } });
    std::fs::write(site.home.path("tasks.jsonl"), format!("{runs}\n{waits}\n")).unwrap();
    let ran = site.as_bearer(&red, &["submit", "tasks.jsonl"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    // Given streams that are open for red's token.
    let mut events = site.begun(&red, "GET /v1/events", "Connection: close\r\n\r\n");
    until(&mut events, "\r\n\r\n");
    let mut log = site.begun(&red, "GET /v1/tasks/t3/logs?follow=true", "Connection: close\r\n\r\n");
    until(&mut log, "begun\n");
    let pending = site.begun(&red, "GET /v1/tasks/t4/logs?follow=true", "Connection: close\r\n\r\n");
    let mut tasks = site.begun(
        &red,
        "POST /v1/tasks/stream",
        "Content-Type: application/x-ndjson\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    // When it is revoked.
    let listed = site.home.grey(&["token", "list", "-o", "jsonl"]).text;
    let listed: serde_json::Value = serde_json::from_str(listed.trim()).unwrap();
    assert_eq!(site.home.grey(&["token", "revoke", listed["id"].as_str().unwrap()]).status, 0);
    // Then they end: events as they are, a log broken off, and what was not answered yet with a refusal.
    rest(events);
    let log = rest(log);
    assert!(!log.ends_with("0\r\n\r\n"), "{log}");
    let told = rest(pending);
    assert!(told.starts_with("HTTP/1.1 401") && told.contains("the token was revoked"), "{told}");
    tasks.write_all(b"15\r\n{\"command\": [\"true\"]}\r\n0\r\n\r\n").unwrap();
    let told = rest(tasks);
    assert!(told.starts_with("HTTP/1.1 401") && told.contains("the token was revoked"), "{told}");
    site.end();
}

#[test]
fn a_tenant_has_so_many_streams_open_and_others_have_theirs() {
    let site = Site::new();
    let (red, blue) = (site.token("r", "viewer", Some("red")), site.token("b", "viewer", Some("blue")));
    let events = |token: &str| {
        let mut stream = site.begun(token, "GET /v1/events", "\r\n");
        let head = until(&mut stream, "\r\n\r\n");
        (stream, head)
    };
    let mut open: Vec<_> = (0..STREAMS_OF_A_TENANT).map(|_| events(&red)).collect();
    assert!(open.iter().all(|(_, head)| head.starts_with("HTTP/1.1 200")));
    let (_, head) = events(&red);
    assert!(head.starts_with("HTTP/1.1 429") && head.to_lowercase().contains("retry-after: 1\r\n"), "{head}");
    assert!(events(&blue).1.starts_with("HTTP/1.1 200"));
    open.pop();
    wait_until("a place is free again", || events(&red).1.starts_with("HTTP/1.1 200"));
    drop(open);
    site.end();
}
