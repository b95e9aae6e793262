//! The real binary: what a user meets, and what is left when something is killed, full, taken or damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use grey_api::{ClientError, ErrorCode, JobCreated, JobStatus, TaskList};
use grey_proof::StreamDigest;
use serde_json::Value;
use support::{Home, Ran, finish, is_alive, kill, processes_with, wait_until};

const NDJSON: &str = "application/x-ndjson";

fn code(refusal: &ClientError) -> ErrorCode {
    refusal.problem().unwrap_or_else(|| panic!("{refusal}")).code
}

#[test]
fn a_run_returns_the_task_s_streams_and_status_and_says_the_rest_on_stderr() {
    let home = Home::new();
    let ran =
        home.grey(&["run", "--proof", "proof.json", "--", "sh", "-c", "printf out; printf err >&2; exit 3"]);
    assert_eq!(ran.status, 3);
    assert_eq!(ran.stdout, b"out");
    for said in [
        "err",
        "data",
        "task t1 (job j1)",
        "exited with 3",
        "attempt 1",
        "peak memory",
        "sandbox",
        "proof proof.json",
        "local root",
        "grey verify proof.json",
    ] {
        assert!(ran.errors.contains(said), "`{said}` is missing in {}", ran.errors);
    }
    assert!(ran.errors.contains(&*home.data().to_string_lossy()));

    let quiet = home.grey(&["run", "--quiet", "--", "sh", "-c", "printf out; printf err >&2"]);
    assert_eq!((quiet.status, quiet.text.as_str(), quiet.errors.as_str()), (0, "out", "err"));
}

#[test]
fn the_exit_status_says_whose_failure_it_was() {
    let home = Home::new();
    for (status, arguments) in [
        (0, &["run", "--", "true"][..]),
        (42, &["run", "--", "sh", "-c", "exit 42"]),
        (124, &["run", "--timeout", "200ms", "--", "sleep", "60"]),
        (125, &["run", "--tenant", "nobody", "--", "true"]),
        (125, &["run", "--output-limit", "10B", "--", "echo", "more than ten bytes"]),
        (125, &["run", "--cpu", "100000", "--", "true"]),
        (126, &["run", "--", "/etc/passwd"]),
        (127, &["run", "--", "no-such-program-anywhere"]),
        (137, &["run", "--", "sh", "-c", "kill -9 $$"]),
        (2, &["run", "--no-such-flag", "--", "true"]),
        (2, &["run", "--memory", "64", "--", "true"]),
        (2, &["run"]),
        (2, &["run", "--proof", "no/such/directory/p.json", "--", "true"]),
        (1, &["task", "status", "t999"]),
        (1, &["task", "logs", "t999"]),
        (3, &["task", "status", "j1"]),
        (2, &["task", "status", "../x"]),
        (2, &["task", "status", "t1 OR 1=1"]),
        (2, &["verify", "--root", "absent.json", "absent.json"]),
    ] {
        let ran = home.grey(arguments);
        assert_eq!(ran.status, status, "{arguments:?}: {}", ran.errors);
        assert!(!ran.errors.contains("panicked"), "{arguments:?}: {}", ran.errors);
        if status != 0 && status != 42 {
            assert!(!ran.errors.trim().is_empty(), "{arguments:?} says nothing");
        }
    }
    assert!(!home.log().contains("panicked"), "{}", home.log());
}

#[test]
fn a_task_sees_what_it_is_promised_and_nothing_of_the_shell() {
    let home = Home::new();
    let output = home
        .command(&["run", "-q", "--env", "LEVEL=9", "--", "env"])
        .env("SECRET_OF_THE_SHELL", "1")
        .output()
        .unwrap();
    let text = Ran::of(output).text;
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    let mut promised = [
        "GREY_ATTEMPT",
        "GREY_INDEX",
        "GREY_JOB",
        "GREY_OUT",
        "GREY_TASK",
        "HOME",
        "LANG",
        "LEVEL",
        "PATH",
        "TMPDIR",
    ]
    .to_vec();
    promised.sort_unstable();
    assert_eq!(names, promised, "{text}");
    assert!(text.contains("GREY_TASK=t1") && text.contains("LEVEL=9"));
}

#[test]
fn inputs_travel_and_are_part_of_what_is_proved() {
    let home = Home::new();
    std::fs::create_dir_all(home.path("set/deep")).unwrap();
    std::fs::write(home.path("a.txt"), "alpha\n").unwrap();
    std::fs::write(home.path("set/deep/b.txt"), "beta\n").unwrap();
    std::fs::write(home.path("set/tool"), "#!/bin/sh\necho tool\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path("set/tool"), executable).unwrap();
    std::fs::write(home.path("large"), vec![b'z'; 20 << 20]).unwrap();
    let script = "cat a.txt set/deep/b.txt; ./set/tool; wc -c < large; cat";
    let arguments =
        ["run", "--in", "a.txt", "--in", "set", "--in", "large", "--stdin", "-", "--", "sh", "-c", script];
    let run = |stdin: &str| {
        let mut command = home.command(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        finish(child)
    };
    let first = run("from the shell\n");
    assert_eq!(first.text, "alpha\nbeta\ntool\n20971520\nfrom the shell\n", "{}", first.errors);
    assert!(first.errors.contains("sent 5 file(s)"), "{}", first.errors);
    let second = run("something else\n");
    assert!(second.errors.contains("sent 1 file(s)"), "what is there is not sent again: {}", second.errors);
    let key = |task: &str| {
        let proof: Value = serde_json::from_slice(&home.grey(&["task", "proof", task, "-q"]).stdout).unwrap();
        proof["statement"]["predicate"]["exec_key"].as_str().unwrap().to_owned()
    };
    assert_ne!(key("t1"), key("t2"), "another standard input is another execution");

    for (arguments, status) in [
        (&["run", "--in", "absent", "--", "true"][..], 2),
        (&["run", "--in", "/dev/null", "--", "true"], 2),
        (&["run", "--stdin", "absent", "--", "true"], 2),
        (&["run", "--in", "a.txt", "--in", "./a.txt", "--", "true"], 125),
    ] {
        let ran = home.grey(arguments);
        assert_eq!(ran.status, status, "{arguments:?}: {}", ran.errors);
    }
    let body = format!(
        "{{\"command\":[\"true\"],\"inputs\":[{{\"path\":\"x\",\"digest\":\"{}\",\"size_bytes\":1}}]}}",
        "0".repeat(64)
    );
    let refused = home.post::<JobCreated>("/v1/tasks", "application/json", body, None).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::InvalidRequest);
    assert!(refused.to_string().contains("was not sent"), "{refused}");
}

#[test]
fn bytes_that_are_no_text_pass_unchanged() {
    let home = Home::new();
    let ran = home.grey(&["run", "-q", "--", "printf", "\\377\\000\\200a\\n\\376"]);
    assert_eq!(ran.stdout, b"\xff\x00\x80a\n\xfe");
    let ran = home.grey(&[
        "run",
        "-q",
        "--out",
        "*",
        "--results",
        "r",
        "--",
        "sh",
        "-c",
        "printf x > \"$GREY_OUT/$(printf 'a\\377b')\"",
    ]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xffb");
    assert_eq!(std::fs::read(home.path("r").join(name)).unwrap(), b"x");
}

#[test]
fn a_gigabyte_of_output_passes_in_bounded_memory_and_the_default_limit_stops_it() {
    let home = Home::new();
    let arguments = ["run", "-q", "--output-limit", "2GiB", "--", "head", "-c", "1073741824", "/dev/zero"];
    let mut child = home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut digest, mut piece) = (StreamDigest::new(), vec![0; 1 << 20]);
    let mut stdout = child.stdout.take().unwrap();
    loop {
        let read = stdout.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        digest.update(&piece[..read]);
    }
    let ran = finish(child);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let (length, digest) = digest.finish();
    assert_eq!(length, 1 << 30);
    let result = home.json(&["task", "result", "t1", "--json", "-q"]);
    assert_eq!(result["stdout"]["digest"], digest.to_string());
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 400 * 1024, "the node took {peak_kib} KiB");

    let refused = home.grey(&["run", "--", "head", "-c", "1073741824", "/dev/zero"]);
    assert_eq!(refused.status, 125);
    assert!(refused.errors.contains("67108864"), "the limit is not named: {}", refused.errors);
}

/// A batch of tasks that each leave a line.
fn batch(tasks: u32, script: &str) -> String {
    (0..tasks)
        .map(|number| {
            format!(
                "{{\"command\":[\"sh\",\"-c\",\"{script}\"],\"cpu_millicores\":250,\"name\":\"n{number}\"}}\n"
            )
        })
        .collect()
}

#[test]
fn a_killed_node_goes_on_with_the_same_data_and_every_acknowledged_task_ends_once() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let created: JobCreated = home.post("/v1/tasks", NDJSON, batch(200, "echo $GREY_TASK"), None).unwrap();
    assert_eq!((created.job.as_str(), created.first_task.as_str(), created.tasks), ("j2", "t2", 200));
    // When: the process is killed again and again while the batch runs.
    for round in 0..3 {
        let status: JobStatus = home.get("/v1/jobs/j2").unwrap();
        let before = status.counts.completed;
        wait_until("some tasks have completed", || {
            let status: JobStatus = home.get("/v1/jobs/j2").unwrap();
            status.ended || status.counts.completed > before
        });
        home.kill_9();
        let ran = home.grey(&["run", "-q", "--", "echo", "again"]);
        assert_eq!((ran.status, ran.text.as_str()), (0, "again\n"), "round {round}: {}", ran.errors);
    }
    // Then: everything acknowledged completes, each task with one accepted result, and ids go on.
    assert_eq!(home.grey(&["job", "wait", "j2"]).status, 0);
    let job: JobStatus = home.get("/v1/jobs/j2").unwrap();
    assert_eq!((job.counts.completed, job.tasks, job.ended), (200, 200, true));
    let tasks: TaskList = home.get("/v1/jobs/j2/tasks?limit=1000").unwrap();
    assert_eq!(tasks.tasks.len(), 200);
    for task in &tasks.tasks {
        let result = task.result.as_ref().unwrap();
        assert_eq!((task.state.as_str(), result.attempt), ("completed", task.attempt));
        assert_eq!(result.stdout.size_bytes as usize, task.id.len() + 1);
    }
    let proof = home.path("p.json");
    let last = &tasks.tasks[199];
    assert_eq!(home.grey(&["task", "proof", &last.id, "--out", proof.to_str().unwrap()]).status, 0);
    assert_eq!(home.grey(&["verify", proof.to_str().unwrap()]).status, 0);
    let job: JobCreated = home.post("/v1/tasks", NDJSON, batch(1, "true"), None).unwrap();
    assert_eq!(job.job, "j6");
}

#[test]
fn a_killed_node_takes_its_tasks_with_it_and_they_are_tried_again() {
    let home = Home::new();
    let marker = format!("600.{}", std::process::id());
    let mut child = home
        .command(&[
            "run",
            "-q",
            "--",
            "sh",
            "-c",
            &format!("test $GREY_ATTEMPT -gt 1 && echo second || sleep {marker}"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the task runs", || processes_with(&format!("sleep\0{marker}")).len() == 1);
    home.kill_9();
    wait_until("its processes are gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert!(child.try_wait().unwrap().is_none(), "the one who waits does not give up");
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let ran = finish(child);
    assert_eq!((ran.status, ran.text.as_str()), (0, "second\n"), "{}", ran.errors);
}

#[test]
fn shells_that_start_the_cluster_at_once_share_it_and_an_interrupt_in_one_leaves_the_others_alone() {
    let home = Home::new();
    let spawn = |script: &str| {
        let mut command = home.command(&["run", "--", "sh", "-c", script]);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let marker = format!("601.{}", std::process::id());
    let interrupted = spawn(&format!("sleep {marker}"));
    let others: Vec<_> = (0..3).map(|n| spawn(&format!("sleep 0.3; echo {n}"))).collect();
    wait_until("the task runs", || !processes_with(&format!("sleep\0{marker}")).is_empty());
    // The whole process group, as a terminal does it: the background process must not be in it.
    kill(-i32::try_from(interrupted.id()).unwrap(), "INT");
    let ran = finish(interrupted);
    assert_eq!(ran.status, 130, "{}", ran.errors);
    assert!(ran.errors.contains("cancel"), "{}", ran.errors);
    for (number, other) in others.into_iter().enumerate() {
        let ran = finish(other);
        assert_eq!((ran.status, ran.text), (0, format!("{number}\n")), "{}", ran.errors);
    }
    wait_until("the cancelled task is gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert_eq!(home.json(&["cluster", "status", "--json"])["tasks_submitted"], 4);
}

#[test]
fn a_second_interrupt_detaches_and_says_how_to_come_back() {
    let home = Home::new();
    // The task ignores the polite request to end, so that there is time for a second interrupt.
    let marker = format!("602.{}", std::process::id());
    let script = format!("trap '' TERM; sleep {marker} & while true; do wait; done");
    let child = home
        .command(&["run", "--", "sh", "-c", &script])
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the task runs", || !processes_with(&format!("sleep\0{marker}")).is_empty());
    // An interrupt at once after another may be one to the process: what counts is that it ends and says so.
    for _ in 0..100 {
        kill(i32::try_from(child.id()).unwrap(), "INT");
        std::thread::sleep(std::time::Duration::from_millis(2));
        if !is_alive(i32::try_from(child.id()).unwrap()) {
            break;
        }
    }
    let ran = finish(child);
    assert_eq!(ran.status, 130);
    assert!(
        ran.errors.contains("grey task wait t1") || ran.errors.contains("t1 cancelled"),
        "{}",
        ran.errors
    );
    wait_until("the task is gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert_eq!(home.json(&["task", "status", "t1", "--json"])["state"], "cancelled");
}

#[test]
fn a_stdout_that_is_closed_or_full_ends_neither_in_a_panic_nor_in_a_hang() {
    let home = Home::new();
    let mut child = home
        .command(&["run", "--", "seq", "1", "200000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let ran = finish(child);
    assert_eq!((ran.status, &first), (0, b"1\n"), "{}", ran.errors);

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = Ran::of(home.command(&["run", "--", "echo", "x"]).stdout(full).output().unwrap());
    assert_eq!(ran.status, 125);
    assert!(ran.errors.contains("standard output"), "{}", ran.errors);

    let binary = env!("CARGO_BIN_EXE_grey");
    let mut closed = Command::new("sh");
    closed.args(["-c", &format!("'{binary}' run -- echo x >&-")]).env("GREY_DATA", home.data());
    let ran = Ran::of(closed.output().unwrap());
    assert!(!ran.errors.contains("panicked"), "{}", ran.errors);
}

#[test]
fn without_a_home_grey_asks_for_a_place_and_takes_the_one_it_is_given() {
    let home = Home::new();
    let without = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env_remove("HOME").env_remove("GREY_DATA");
        Ran::of(command.output().unwrap())
    };
    let ran = without(&["run", "--", "true"]);
    assert_eq!(ran.status, 2);
    assert!(ran.errors.contains("GREY_DATA"), "{}", ran.errors);
    let place = home.data().to_str().unwrap().to_owned();
    assert_eq!(without(&["--data-dir", &place, "run", "--", "true"]).status, 0);
    assert_eq!(without(&["--data-dir", &place, "task", "proof", "t1", "-o", "p.json"]).status, 0);
    std::fs::copy(home.data().join("root.json"), home.path("root.json")).unwrap();
    assert_eq!(without(&["verify", "--root", "root.json", "p.json"]).status, 0);
}

#[test]
fn long_paths_and_paths_with_spaces_work() {
    for name in ["a b'c\"d", &format!("{}/{}", "x".repeat(100), "y".repeat(100))] {
        let home = Home::with_data(name);
        let ran = home.grey(&["run", "--", "echo", "here"]);
        assert_eq!((ran.status, ran.text.as_str()), (0, "here\n"), "{}", ran.errors);
    }
}

#[test]
fn an_address_that_nobody_answers_at_is_never_replaced_by_the_local_cluster() {
    let home = Home::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (arguments, status) in [(&["run", "--", "true"][..], 125), (&["job", "list"], 4)] {
        let output = home.command(arguments).env("GREY_ADDR", free.to_string()).output().unwrap();
        let ran = Ran::of(output);
        assert_eq!(ran.status, status, "{}", ran.errors);
        assert!(ran.errors.contains(&free.to_string()), "{}", ran.errors);
    }
    assert!(!home.data().exists(), "nothing local was begun");
}

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
    assert_eq!(submitted(), before, "nothing of what was refused is there");
}

#[test]
fn a_proof_holds_elsewhere_with_the_exported_root_and_any_change_is_refused_with_its_reason() {
    let home = Home::new();
    let ran = home.grey(&[
        "run",
        "--proof",
        "p.json",
        "--out",
        "*.txt",
        "--results",
        "out",
        "--",
        "sh",
        "-c",
        "echo hello; echo a > $GREY_OUT/a.txt",
    ]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    std::fs::write(home.path("stdout"), &ran.stdout).unwrap();
    let root = home.grey(&["cluster", "root", "-q"]);
    std::fs::write(home.path("root.json"), &root.stdout).unwrap();

    let elsewhere = Home::new();
    for file in ["p.json", "root.json", "stdout"] {
        std::fs::copy(home.path(file), elsewhere.path(file)).unwrap();
    }
    std::fs::create_dir(elsewhere.path("out")).unwrap();
    std::fs::copy(home.path("out/a.txt"), elsewhere.path("out/a.txt")).unwrap();
    let whole = ["verify", "--root", "root.json", "--stdout", "stdout", "--results", "out", "p.json"];
    let ran = elsewhere.grey(&whole);
    assert_eq!(ran.status, 0, "{}{}", ran.text, ran.errors);
    assert!(ran.text.contains("The proof holds, under a local root."));
    assert!(!elsewhere.data().exists(), "checking starts nothing");

    let proof: Value = serde_json::from_slice(&std::fs::read(home.path("p.json")).unwrap()).unwrap();
    let refused = |what: &str, arguments: &[&str], check: &str| {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let ran = elsewhere.grey(&arguments);
        assert_eq!(ran.status, 1, "{what}: {}{}", ran.text, ran.errors);
        let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let failed: Vec<&str> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| !check["refusal"].is_null())
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert!(failed.contains(&check), "{what}: {failed:?}");
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut proof = proof.clone();
        change(&mut proof);
        std::fs::write(elsewhere.path("changed.json"), serde_json::to_vec(&proof).unwrap()).unwrap();
    };
    changed(&|proof| proof["statement"]["predicate"]["exit_code"] = 1.into());
    refused("exit code", &["verify", "--root", "root.json", "changed.json"], "statement");
    changed(&|proof| proof["result"]["stdout_digest"] = "0".repeat(64).into());
    refused("stdout digest", &["verify", "--root", "root.json", "changed.json"], "result");
    changed(&|proof| {
        let text = proof["signature"].as_str().unwrap().to_owned();
        let other = if text.starts_with('A') { "B" } else { "A" };
        proof["signature"] = format!("{other}{}", &text[1..]).into();
    });
    refused("signature", &["verify", "--root", "root.json", "changed.json"], "signature");

    std::fs::write(elsewhere.path("other"), "hullo\n").unwrap();
    refused("stdout", &["verify", "--root", "root.json", "--stdout", "other", "p.json"], "stdout");
    std::fs::write(elsewhere.path("out/a.txt"), "b\n").unwrap();
    refused("files", &["verify", "--root", "root.json", "--results", "out", "p.json"], "files");

    let another = Home::new();
    assert_eq!(another.grey(&["run", "--", "true"]).status, 0);
    std::fs::write(elsewhere.path("other-root.json"), another.grey(&["cluster", "root"]).stdout).unwrap();
    refused("root", &["verify", "--root", "other-root.json", "p.json"], "certificate");
    std::fs::write(elsewhere.path("none.json"), "{}").unwrap();
    assert_eq!(elsewhere.grey(&["verify", "--root", "root.json", "none.json"]).status, 1);
}

/// A copy of a data directory, without what only a running process has.
fn copied(from: &Home) -> Home {
    let to = Home::new();
    let copy = Command::new("cp").arg("-r").arg(from.data()).arg(to.data()).status().unwrap();
    assert!(copy.success());
    to
}

#[test]
fn a_damaged_file_is_named_and_never_read_as_something_else() {
    let home = Home::new();
    let script = "head -c 20000 /dev/zero | tr '\\0' x";
    for _ in 0..3 {
        assert_eq!(home.grey(&["run", "-q", "--", "sh", "-c", script]).status, 0);
    }
    let expected = vec![b'x'; 20_000];
    assert_eq!(home.grey(&["down"]).status, 0);
    let mut files: Vec<String> = [
        "log.redb",
        "state.redb",
        "history-00000000.seg",
        "tree.hashes",
        "node.key",
        "root.key",
        "certificates.json",
    ]
    .map(str::to_owned)
    .to_vec();
    let blob = walk(&home.data().join("blobs"));
    files.push(blob[0].strip_prefix(home.data()).unwrap().to_string_lossy().into_owned());
    for file in files {
        let damaged = copied(&home);
        let path = damaged.data().join(&file);
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len().min(4_096);
        for position in [length / 3, length / 2, length - 2] {
            bytes[position] ^= 0x11;
        }
        std::fs::write(&path, bytes).unwrap();
        for arguments in [&["task", "logs", "t2"][..], &["task", "proof", "t2", "-o", "p.json"]] {
            let ran = damaged.grey(arguments);
            let is_logs = arguments[1] == "logs";
            if ran.status == 0 {
                assert!(!is_logs || ran.stdout == expected, "{file}: other content");
                if !is_logs {
                    let root = home.data().join("root.json");
                    let verified = damaged.grey(&["verify", "--root", root.to_str().unwrap(), "p.json"]);
                    assert_eq!(verified.status, 0, "{file}: {}", verified.text);
                }
                continue;
            }
            let base = file.rsplit('/').next().unwrap();
            let said = format!("{}{}", ran.errors, damaged.log());
            assert!(said.contains(base), "{file}: {said}");
            assert!(!ran.errors.contains("panicked"), "{file}: {}", ran.errors);
        }
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

#[test]
fn a_full_disk_refuses_new_work_and_loses_nothing() {
    let home = Home::new();
    let binary = env!("CARGO_BIN_EXE_grey");
    let disk = home.path("disk");
    std::fs::create_dir(&disk).unwrap();
    // A small disk of its own, in a mount namespace that ends with the script.
    let script = format!(
        "set -u
         mount -t tmpfs -o size=24m none '{disk}' || exit 77
         export GREY_DATA='{disk}/data'
         '{binary}' -q run --proof '{disk}/p.json' -- echo before || exit 10
         head -c 30m /dev/zero > '{disk}/fill' 2>/dev/null
         tries=0
         while '{binary}' -q run -- true 2> '{disk}/refused'; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 11
         done
         '{binary}' -q run -- true 2>&1 | grep -q disk_full || exit 12
         '{binary}' -q task logs t1 | grep -q before || exit 13
         '{binary}' -q verify '{disk}/p.json' > /dev/null || exit 14
         rm '{disk}/fill'
         tries=0
         until '{binary}' -q run -- echo after 2> /dev/null | grep -q after; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 15; sleep 0.05
         done
         '{binary}' -q run --output-limit 1GiB -- head -c 100m /dev/zero > /dev/null 2>&1 && exit 16
         '{binary}' -q run -- true || exit 17
         '{binary}' -q task logs t1 | grep -q before || exit 18
         '{binary}' -q down; grep -q panicked '{disk}/data/grey.log' && exit 19
         exit 0",
        disk = disk.display(),
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--map-root-user", "sh", "-c", &script]).stdin(Stdio::null());
    let ran = Ran::of(unshare.output().unwrap());
    if ran.status == 77 || ran.errors.contains("unshare failed") || ran.errors.contains("unshare: ") {
        // The simulated disk of grey-store's tests is full where a machine does not allow this one.
        println!("no disk of its own can be mounted here: {}", ran.errors);
        return;
    }
    assert_eq!(ran.status, 0, "{}{}", ran.text, ran.errors);
}

#[test]
fn help_and_completions_are_there_for_every_command() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.grey(&["completions", shell]);
        assert!(ran.status == 0 && ran.stdout.len() > 1_000, "{shell}");
    }
    for command in
        ["run", "dev", "down", "task", "job", "verify", "cluster", "doctor", "bench", "completions"]
    {
        let ran = home.grey(&[command, "--help"]);
        assert_eq!(ran.status, 0, "{command}");
        assert!(ran.text.contains("Usage: grey"), "{}", ran.text);
    }
    for command in ["run", "dev", "verify", "bench"] {
        assert!(home.grey(&[command, "--help"]).text.contains("Examples:"), "{command}");
    }
    let findings = home.grey(&["doctor", "--json"]);
    assert_eq!(findings.status, 0, "{}", findings.text);
    assert!(findings.text.contains("\"sandbox\""));
    assert!(!home.data().exists(), "the doctor begins nothing");
}
