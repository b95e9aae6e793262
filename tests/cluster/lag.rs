//! A server that was away for so long that the others have dropped what it lacks of the log.

use crate::house::House;
use crate::leader;
use crate::support::wait_until;

#[test]
fn a_server_that_needs_a_whole_state_gets_what_ended_meanwhile_too() {
    // Given: a server is away while a job runs to its end and the log is dropped behind it.
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let away = ["s2", "s3"].into_iter().find(|name| Some((*name).to_owned()) != leader(&house)).unwrap();
    house.terminate(away);
    let ran = house.grey(&["run", "--", "sh", "-c", "echo while it was away"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let job = house.rows(&["job", "list"])[0]["id"].as_str().unwrap().to_owned();
    house.fill_log();
    // When: it is back.
    house.start_server(away);
    wait_until("all servers have the same state", || house.states_agree(3));
    assert!(house.said(away).contains("took over a whole state"), "{}", house.said(away));
    wait_until("it has what ended meanwhile", || house.said(away).contains("history has what it lacked"));
    // Then: it answers for that as any other server does, with a proof, and keeps it.
    let asked = |what: &str| {
        let transferred = house.grey(&["cluster", "transfer", away]);
        assert_eq!(transferred.status, 0, "{}", transferred.errors);
        let shown = house.grey(&["job", "status", &job]);
        assert_eq!(shown.status, 0, "{what}: {}", shown.errors);
        let logs = house.grey(&["job", "logs", &job]);
        assert!(logs.text.contains("while it was away"), "{what}: {}", logs.errors);
        let proof = house.path("proof.json");
        let taken = house.grey(&["job", "proof", &job, "--out", proof.to_str().unwrap()]);
        assert_eq!(taken.status, 0, "{what}: {}", taken.errors);
    };
    asked("at once");
    house.terminate(away);
    house.start_server(away);
    wait_until("all servers have the same state", || house.states_agree(3));
    asked("after a start");
    assert_eq!(house.said(away).matches("history has what it lacked").count(), 1);
}
