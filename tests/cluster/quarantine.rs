//! What a worker's trouble costs it: nothing where all were in trouble at once, and what an operator says.

use crate::house::House;
use crate::support::wait_until;

fn health(house: &House, worker: &str) -> Option<String> {
    Some(house.node(worker)?["health"].as_str()?.to_owned())
}

/// A cluster of one server and two workers.
fn with_workers() -> House {
    let house = House::founded(1);
    house.start_worker("w1");
    house.start_worker("w2");
    wait_until("the workers are there", || house.workers() == 2);
    wait_until("the newest feature level is in force", || {
        house
            .json(&["cluster", "status"])
            .is_some_and(|status| status["feature_level"] == status["understood_by_all"])
    });
    house
}

#[test]
fn workers_of_a_cluster_that_was_off_work_at_once() {
    // Given: a cluster whose workers stay away for longer than the server waits for them.
    let house = with_workers();
    for name in ["w1", "w2", "s1"] {
        house.kill_9(name);
    }
    house.start_server("s1");
    for worker in ["w1", "w2"] {
        wait_until("it is lost", || house.node(worker).is_some_and(|node| node["presence"] == "lost"));
    }
    // When: they are back.
    house.restart_worker("w1");
    house.restart_worker("w2");
    wait_until("the workers are there", || house.workers() == 2);
    // Then: neither has a penalty.
    for worker in ["w1", "w2"] {
        assert_eq!(health(&house, worker).as_deref(), Some("active"), "{worker}");
    }
    // When: one is lost alone, it is another matter.
    house.kill_9("w1");
    wait_until("it is in quarantine", || health(&house, "w1").as_deref() == Some("quarantined"));
}

#[test]
fn an_operator_puts_workers_into_quarantine_and_releases_them() {
    let house = with_workers();
    for worker in ["w1", "w2"] {
        let ordered = house.json(&["node", "quarantine", worker]).unwrap();
        assert_eq!(ordered["health"], "quarantined", "{ordered}");
        assert!(house.grey(&["node", "list"]).text.contains("present, quarantined"));
    }
    let submitted = house.json(&["submit", house.task_file("waits", "echo ran").to_str().unwrap()]).unwrap();
    let job = submitted["job"].as_str().unwrap();
    assert_eq!(house.json(&["job", "status", job]).unwrap()["counts"]["pending"], 1);
    let released = house.json(&["node", "release", "w2"]).unwrap();
    assert_eq!(released["health"], "active", "{released}");
    let waited = house.grey(&["job", "wait", job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    assert_eq!(health(&house, "w1").as_deref(), Some("quarantined"), "only one was released");
    let server = house.grey(&["node", "quarantine", "s1"]);
    assert!(server.status == 3 && server.errors.contains("it is a server"), "{}", server.errors);
}
