//! Spans of several processes make one trace.

use std::process::Command;

use crate::house::House;
use crate::leader;
use crate::support::collector::Collector;
use crate::support::{finish, wait_until};

/// A trace that somebody else began.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[test]
fn a_request_that_is_passed_on_is_one_trace_and_the_worker_tells_its_attempt() {
    // Given: two servers and a worker that tell their spans.
    let (collector, house) = (Collector::new(), House::new(2));
    let telling = |mut command: Command| {
        command.env("GREY_TRACES_ENDPOINT", collector.endpoint());
        command
    };
    house.init();
    house.spawn("s1", telling(house.server_command(1, None)));
    wait_until("the first server leads", || leader(&house).is_some());
    let token = house.token("server");
    house.spawn("s2", telling(house.server_command(2, Some(&token))));
    wait_until("two vote", || house.voters() == 2);
    let token = house.token("worker");
    house.spawn("w1", telling(house.worker_command("w1", Some(&token))));
    wait_until("the worker is there", || house.workers() == 1);
    // When: the one that does not lead is asked, in a trace.
    let follower = if leader(&house).as_deref() == Some("s1") { 2 } else { 1 };
    let token = std::fs::read_to_string(house.path("operator.token")).unwrap();
    let asking = Command::new("curl")
        .args(["-sS", "--fail-with-body", "--cacert"])
        .arg(house.path("ca.pem"))
        .args(["-H", &format!("Authorization: Bearer {}", token.trim())])
        .args(["-H", &format!("traceparent: 00-{TRACE}-{PARENT}-01")])
        .args(["-H", "Content-Type: application/json", "-d", "{\"command\":[\"true\"]}"])
        .arg(format!("{}/v1/tasks", house.address(follower)))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ran = finish(asking);
    assert_eq!(ran.status, 0, "{}{}", ran.text, ran.errors);
    // Then: both servers' spans are in the trace, the leader's below the other's.
    let of_trace = || -> Vec<_> {
        collector.named("POST /v1/tasks").into_iter().filter(|told| told.trace() == TRACE).collect()
    };
    wait_until("both are told", || of_trace().len() == 2);
    let (asked, led): (Vec<_>, Vec<_>) = of_trace().into_iter().partition(|told| told.parent() == PARENT);
    assert_eq!((asked.len(), led.len()), (1, 1));
    assert_eq!(led[0].parent(), asked[0].id());
    assert_eq!(asked[0].teller("grey.node.name"), Some(format!("s{follower}")));
    assert_ne!(led[0].teller("grey.node.name"), asked[0].teller("grey.node.name"));
    wait_until("the attempt is told", || {
        collector.named("attempt").iter().any(|told| {
            let names = (told.teller("grey.role"), told.teller("grey.node.name"));
            told.has("grey.task", "t1") && names == (Some("worker".to_owned()), Some("w1".to_owned()))
        })
    });
}
