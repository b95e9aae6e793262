//! A cluster that was switched off for so long that every certificate of its nodes has ended.

use crate::house::House;
use crate::only_task;
use crate::support::wait_until;

const MONTH_S: i64 = 35 * 24 * 3_600;
const ALL: [&str; 4] = ["s1", "s2", "s3", "w1"];

#[test]
fn a_cluster_that_was_off_for_a_month_starts_again_and_goes_on_with_what_it_had() {
    // Given: a cluster with a job that has ended, and one that waits for a worker that can have it.
    let house = House::of_three_with_clocks();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let ran = house.grey(&["run", "--", "echo", "before"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    assert_eq!(house.grey(&["node", "cordon", "w1"]).status, 0);
    let file = house.task_file("waits", "echo after a month");
    let submitted = house.json(&["submit", file.to_str().unwrap()]).unwrap();
    let waits = submitted["job"].as_str().unwrap();
    // When: everything is switched off, and on again a month later.
    for name in ALL {
        house.terminate(name);
    }
    for name in ALL.into_iter().chain(["w2", "operator"]) {
        house.clock().set(name, MONTH_S);
    }
    for name in ["s1", "s2", "s3"] {
        house.start_server(name);
    }
    house.restart_worker("w1");
    wait_until("all servers have the same state", || house.states_agree(3));
    wait_until("the worker is back", || house.workers() == 1);
    // Then: it knows what was, and does what waited, and its proof holds.
    let logs = house.grey(&["job", "logs", "j1"]);
    assert!(logs.text.contains("before"), "{}{}", logs.text, logs.errors);
    assert_eq!(house.grey(&["node", "uncordon", "w1"]).status, 0);
    let waited = house.grey(&["job", "wait", waits]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    let (proof, root) = (house.path("proof.json"), house.path("root.json"));
    let task = only_task(&house, waits)["id"].as_str().unwrap().to_owned();
    assert_eq!(house.grey(&["task", "proof", &task, "--out", proof.to_str().unwrap()]).status, 0);
    std::fs::write(&root, house.grey(&["cluster", "root"]).stdout).unwrap();
    let verified = house.grey(&["verify", "--root", root.to_str().unwrap(), proof.to_str().unwrap()]);
    assert_eq!(verified.status, 0, "{}{}", verified.text, verified.errors);
    // And: who is taken out while it is off, and whose certificate has ended, hears so when it comes back.
    house.terminate("w1");
    assert_eq!(house.grey(&["node", "remove", "w1"]).status, 0);
    wait_until("it is forgotten", || house.node("w1").is_none());
    house.clock().set("w1", 2 * MONTH_S);
    house.restart_worker("w1");
    assert_eq!(house.status_of("w1"), Some(3), "{}", house.said("w1"));
    assert!(house.said("w1").contains("removed from the cluster"), "{}", house.said("w1"));
    // And: nodes can enter.
    house.start_worker("w2");
    wait_until("another worker is there", || house.workers() == 1);
}
