//! The API as other programs meet it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use grey_api::{ClientError, ErrorCode, JobCreated};
use serde_json::Value;

use crate::support::{self, Home, NDJSON, Ran, batch, code, kill};

/// One request as plain text; the response with its head.
fn http(address: &str, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = Vec::new();
    // A node may reset a connection on whose body it gave up; what it said before counts.
    drop(stream.read_to_end(&mut response));
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn the_loopback_interface_needs_its_token_and_refuses_pages_hosts_and_nonsense() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = home.grey(&["dev", "--listen", &address]);
    assert_eq!(ran.status, 1);
    assert!(ran.errors.contains(&address) && ran.errors.contains("in use"), "{}", ran.errors);
    assert_ne!(home.grey(&["dev", "--listen", "0.0.0.0:0"]).status, 0);
    drop(taken);

    let mut dev = home
        .command(&["dev", "--json", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut announced = String::new();
    let mut stdout = std::io::BufReader::new(dev.stdout.take().unwrap());
    while serde_json::from_str::<Value>(&announced).is_err() {
        assert_ne!(std::io::BufRead::read_line(&mut stdout, &mut announced).unwrap(), 0, "{announced}");
    }
    let announced: Value = serde_json::from_str(&announced).unwrap();
    let (url, token) = (announced["address"].as_str().unwrap(), announced["token"].as_str().unwrap());
    let address = url.strip_prefix("http://").unwrap();
    let host = format!("Host: {address}\r\nConnection: close\r\n");
    let authorized = format!("{host}Authorization: Bearer {token}\r\n");
    let post = |length: usize, body: &str| {
        format!(
            "POST /v1/jobs HTTP/1.1\r\n{authorized}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    for (request, status, code) in [
        (format!("GET /v1/jobs HTTP/1.1\r\n{host}\r\n"), 401, "unauthorized"),
        (
            format!("GET /v1/jobs HTTP/1.1\r\n{host}Authorization: Bearer {}\r\n\r\n", "0".repeat(64)),
            401,
            "unauthorized",
        ),
        (
            format!("GET /v1/jobs HTTP/1.1\r\n{authorized}Origin: http://example.com\r\n\r\n"),
            403,
            "forbidden_origin",
        ),
        (
            format!(
                "GET /v1/jobs HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
            ),
            403,
            "forbidden_origin",
        ),
        (format!("GET /nowhere HTTP/1.1\r\n{authorized}\r\n"), 404, "not_found"),
        (format!("DELETE /v1/jobs HTTP/1.1\r\n{authorized}\r\n"), 405, "method_not_allowed"),
        (format!("GET /v1/tasks/%ff HTTP/1.1\r\n{authorized}\r\n"), 400, "invalid_request"),
        (format!("GET /v1/jobs?limit=0 HTTP/1.1\r\n{authorized}\r\n"), 422, "out_of_bounds"),
        (post(9, "{\"tasks\":"), 400, "invalid_request"),
        (post(20_000_000, ""), 413, "too_large"),
    ] {
        let response = http(address, &request);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}\n{response}");
        assert!(response.contains(&format!("\"code\":\"{code}\"")), "{request}\n{response}");
        assert!(response.contains("application/problem+json"), "{response}");
    }
    for (request, hint) in [
        (format!("GET /v1/jobs?limt=5 HTTP/1.1\r\n{authorized}\r\n"), "did you mean `limit`?"),
        (format!("HEAD /v1/jobs?limt=5 HTTP/1.1\r\n{authorized}\r\n"), ""),
        (format!("GET /v1/tokens?x HTTP/1.1\r\n{authorized}\r\n"), "it has no parameters"),
        (
            format!("GET /v1/tasks/t1/logs?colour=1 HTTP/1.1\r\n{authorized}\r\n"),
            "its parameters are stream, offset, follow, after, attempt",
        ),
        (
            format!("POST /v1/jobs/j1/rerun?wich=all HTTP/1.1\r\n{authorized}Content-Length: 0\r\n\r\n"),
            "did you mean `which`?",
        ),
    ] {
        let response = http(address, &request);
        assert!(response.starts_with("HTTP/1.1 400") && response.contains(hint), "{request}\n{response}");
        assert!(request.starts_with("HEAD") || response.contains("is not a parameter of"), "{response}");
    }
    assert!(http(address, &format!("GET /health/live HTTP/1.1\r\n{host}\r\n")).contains("200 OK"));

    // Another client with address and token is served as well.
    let output = home
        .command(&["run", "-q", "--", "echo", "over loopback"])
        .env("GREY_ADDR", url)
        .env("GREY_TOKEN", token)
        .output()
        .unwrap();
    assert_eq!(Ran::of(output).text, "over loopback\n");
    let output = home.command(&["job", "list"]).env("GREY_ADDR", url).env("GREY_TOKEN", "wrong").output();
    assert_eq!(Ran::of(output.unwrap()).status, 3);
    kill(i32::try_from(dev.id()).unwrap(), "INT");
    assert!(dev.wait().unwrap().success());
}

#[test]
fn every_described_endpoint_is_there_and_events_tell_a_job_to_its_end() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let document: Value = home.get("/openapi.json").unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        if operations.get("get").is_none() || path.ends_with("events") {
            continue;
        }
        let path =
            path.replace("/v1/jobs/{id}", "/v1/jobs/j1").replace("{id}", "t1").replace("{number}", "0");
        match home.get::<Value>(&path) {
            Ok(_) | Err(ClientError::Unreadable { .. }) => {}
            Err(refusal) => {
                let problem = refusal.problem().unwrap();
                assert!(!problem.detail.contains("endpoint"), "{path}: {problem:?}");
            }
        }
    }
    let created: JobCreated = home.post("/v1/tasks", NDJSON, batch(3, "sleep 0.2"), None).unwrap();
    let text = support::runtime().block_on(async {
        let client = grey_api::Client::new(grey_api::Address::Unix(home.data().join("grey.sock")), None);
        let mut events = client.stream(&format!("/v1/jobs/{}/events", created.job)).await.unwrap();
        let mut text = String::new();
        while let Some(piece) = events.next().await.unwrap() {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text
    });
    assert!(text.starts_with("event: job\n"), "{text}");
    assert_eq!(text.matches("event: attempt_ended").count(), 3, "{text}");
    assert_eq!(text.matches("event: job_ended").count(), 1, "{text}");
}

#[test]
fn a_repeated_submission_is_one_job_and_a_batch_is_taken_whole_or_not_at_all() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let body = batch(2, "true");
    let first: JobCreated = home.post("/v1/tasks", NDJSON, body.clone(), Some("key")).unwrap();
    let second: JobCreated = home.post("/v1/tasks", NDJSON, body.clone(), Some("key")).unwrap();
    assert_eq!((first.job.as_str(), first.duplicate), ("j2", false));
    assert_eq!((second.job.as_str(), second.duplicate), ("j2", true));
    let other = home.post::<JobCreated>("/v1/tasks", NDJSON, batch(3, "true"), Some("key")).unwrap_err();
    assert_eq!(code(&other), ErrorCode::IdempotencyConflict);

    let submitted = || home.json(&["cluster", "status", "--json", "-q"])["tasks_submitted"].as_u64().unwrap();
    let before = submitted();
    let mut lines: Vec<String> = body.lines().map(str::to_owned).collect();
    lines.push("{\"command\":[\"true\"],\"cpu_milicores\":1}".to_owned());
    let refused = home.post::<JobCreated>("/v1/tasks", NDJSON, lines.join("\n"), None).unwrap_err();
    let problem = refused.problem().unwrap();
    assert!(problem.detail.contains("line 3") && problem.detail.contains("cpu_milicores"), "{problem:?}");
    let refused = home.post::<JobCreated>("/v1/tasks", NDJSON, batch(10_001, "true"), None).unwrap_err();
    assert_eq!((code(&refused), refused.problem().unwrap().limit), (ErrorCode::OutOfBounds, Some(10_000)));
    for (body, field) in [
        ("{\"command\":[]}", "command"),
        ("{\"command\":[\"true\"],\"timeout_ms\":0}", "timeout_ms"),
        ("{\"command\":[\"true\"],\"count\":1000001}", "count"),
        ("{\"command\":[\"true\"],\"count\":0}", "count"),
        ("{\"command\":[\"tr\\u0000ue\"]}", "command"),
        ("{\"command\":[\"true\"],\"env\":{\"A=B\":\"c\"}}", "env"),
        ("{\"command\":[\"true\"],\"executor\":\"magic\"}", "executor"),
    ] {
        let refused = home.post::<JobCreated>("/v1/tasks", "application/json", body, None).unwrap_err();
        let problem = refused.problem().unwrap_or_else(|| panic!("{body}: {refused}"));
        let named = problem.field.as_deref().unwrap_or_default();
        assert!(named.contains(field), "{body}: {problem:?}");
    }
    // A refusal names the place in the list that was sent, also behind equal neighbours.
    let list =
        "[{\"command\":[\"true\"]},{\"command\":[\"true\"]},{\"command\":[\"true\"],\"timeout_ms\":0}]";
    let refused = home.post::<JobCreated>("/v1/tasks", "application/json", list, None).unwrap_err();
    assert_eq!(refused.problem().unwrap().field.as_deref(), Some("tasks[2].timeout_ms"));
    // Forty-five tasks of 100 kB are more than one submission may hold in the log.
    let large: String =
        (0..45).map(|n| format!("{{\"command\":[\"true\",\"{n}{}\"]}}\n", "x".repeat(100_000))).collect();
    let refused = home.post::<JobCreated>("/v1/tasks", NDJSON, large, None).unwrap_err();
    let problem = refused.problem().unwrap();
    assert_eq!(
        (problem.code, problem.limit, problem.retry_after_ms),
        (ErrorCode::TooLarge, Some(4 << 20), None)
    );
    assert_eq!(submitted(), before, "nothing of what was refused is there");
}
