//! What goes on while leadership moves.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use bytes::Bytes;
use grey_api::{BlobCreated, Client, ErrorCode, Trust};
use tokio::sync::mpsc;

use crate::house::House;
use crate::leader;
use crate::support::{finish, wait_until};

/// Has another server lead, and returns which did before.
fn moved(house: &House) -> String {
    let before = leader(house).unwrap();
    let ran = house.grey(&["cluster", "transfer"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    wait_until("another one leads", || leader(house).is_some_and(|now| now != before));
    before
}

#[test]
fn an_upload_goes_on_while_leadership_moves_and_a_tenant_is_told_to_send_it_to_who_leads() {
    let house = House::of_three();
    assert_eq!(house.grey(&["tenant", "create", "red"]).status, 0);
    let made = house.grey(&["token", "create", "r", "--role", "submitter", "-t", "red"]);
    let operator = std::fs::read_to_string(house.path("operator.token")).unwrap();
    let tokens = [operator.trim().to_owned(), made.text.trim().to_owned()];
    // Given two uploads by way of a server that does not lead, of which the first half has come.
    let leads = leader(&house).unwrap();
    let way = (1..=3).find(|number| format!("s{number}") != leads).unwrap();
    let trust = Trust::from_pem(&std::fs::read(house.path("ca.pem")).unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let uploads = tokens.map(|token| {
        let client = Client::new(house.address(way).parse().unwrap(), Some(token));
        let client = client.with_trust(trust.clone()).with_retries(None);
        let (sender, pieces) = mpsc::channel(1);
        let upload = runtime.spawn(async move {
            let mut answer =
                client.post_pieces("/v1/blobs", "application/octet-stream", pieces, None).await?;
            Ok(serde_json::from_slice::<BlobCreated>(&answer.next().await?.unwrap()).unwrap())
        });
        runtime.block_on(sender.send(Ok(Bytes::from("first ")))).unwrap();
        (sender, upload)
    });
    let incoming = house.path(&leads).join("blobs/incoming");
    wait_until("both have begun to come", || std::fs::read_dir(&incoming).unwrap().count() == 2);
    // When: another server leads, and the rest comes after that.
    moved(&house);
    wait_until("all servers have the same state", || house.states_agree(3));
    // Longer than an answer of who led before is waited for: what came sooner would get through in any case.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let [all, reds] = uploads.map(|(sender, upload)| {
        runtime.block_on(sender.send(Ok(Bytes::from("second")))).unwrap();
        drop(sender);
        runtime.block_on(upload).unwrap() as Result<BlobCreated, grey_api::ClientError>
    });
    // Then: it is kept; for a tenant the one who leads must see it, to know whose it is.
    assert_eq!(all.unwrap().digest, grey_proof::Digest::of(b"first second").to_string());
    let refused = reds.unwrap_err();
    let problem = refused.problem().unwrap_or_else(|| panic!("{refused}"));
    assert_eq!(problem.code, ErrorCode::Unavailable, "{problem:?}");
    assert!(
        problem.retry_after_ms.is_some() && problem.detail.contains("another server leads"),
        "{problem:?}"
    );
}

#[test]
fn whoever_waits_for_a_task_to_begin_goes_on_waiting_while_leadership_moves() {
    // Given: somebody who follows a task that nobody can run yet.
    let house = House::of_three();
    let file = house.task_file("waits", "echo begun");
    assert_eq!(house.json(&["submit", file.to_str().unwrap()]).unwrap()["job"], "j1");
    let mut command = house.command(&["task", "logs", "t1", "--follow"]);
    let following = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let open = format!("/proc/{}/fd", following.id());
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    wait_until("it has asked", || {
        std::fs::read_dir(&open).unwrap().flatten().filter(|entry| is_socket(&entry.path())).count() > 0
    });
    wait_until("all servers have the same state", || house.states_agree(3));
    // When: leadership moves, more than once.
    for _ in 0..2 {
        moved(&house);
        wait_until("all servers have the same state", || house.states_agree(3));
    }
    house.start_worker("w1");
    // Then: it is told what the task writes.
    let ran = finish(following);
    assert_eq!((ran.status, ran.text.as_str()), (0, "begun\n"), "{}", ran.errors);
}

#[test]
fn tasks_that_come_from_a_pipe_are_all_accepted_once_though_the_leader_is_killed_meanwhile() {
    // Given: a producer of whose lines the first 10,000 are a job already, and more have come.
    let house = House::of_three();
    let mut command = house.command(&["submit", "-", "-o", "jsonl"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut submitting = command.spawn().unwrap();
    let mut input = submitting.stdin.take().unwrap();
    let mut send = |lines: core::ops::Range<usize>| {
        for number in lines {
            writeln!(input, "{{\"executor\":\"noop\",\"name\":\"n{number}\"}}").unwrap();
        }
        input.flush().unwrap();
    };
    send(0..14_000);
    let mut answers = BufReader::new(submitting.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&answers.next()?.unwrap()).ok();
    assert_eq!(next().unwrap()["last_line"], 10_000);
    // When: who leads is gone, and the rest comes after that.
    house.kill_9(&leader(&house).unwrap());
    send(14_000..25_000);
    drop(input);
    // Then: it goes on where it was, and nothing is lost or there twice.
    let spans = [next(), next(), next()]
        .map(|job| job.map(|job| (job["first_line"].clone(), job["last_line"].clone())));
    let span = |first: u64, last: u64| Some((first.into(), last.into()));
    assert_eq!(spans, [span(10_001, 20_000), span(20_001, 25_000), None]);
    let ran = finish(submitting);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    assert!(ran.errors.contains("25000 line(s) became 3 job(s) of 25000 task(s)"), "{}", ran.errors);
    let tasks: Vec<u64> =
        house.rows(&["job", "list"]).iter().map(|job| job["tasks"].as_u64().unwrap()).collect();
    assert_eq!(tasks, [5_000, 10_000, 10_000], "newest first");
}
