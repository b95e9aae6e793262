//! What an operator does before work on a machine, and what is seen meanwhile.

use std::fs::File;

use serde_json::Value;

use crate::house::House;
use crate::leader;
use crate::support::{Ran, kill, wait_until};

#[test]
fn a_node_that_is_not_let_in_ends_with_what_that_is_also_for_programs() {
    let house = House::founded(1);
    let used = house.token("worker");
    house.start_worker_with("w1", &used);
    wait_until("the worker is there", || house.workers() == 1);
    // Refused is 3, and nobody there is 4.
    for (servers, status, why) in [
        (house.join(), 3, "does not let this node into the cluster"),
        ("127.0.0.1:1".to_owned(), 4, "no server lets this node into the cluster"),
    ] {
        for format in ["text", "json"] {
            let mut command = house.worker_command("w2", Some(&used));
            command.env("GREY_JOIN", &servers).args(["--log-format", format]);
            let ran = Ran::of(command.output().unwrap());
            assert_eq!(ran.status, status, "{}", ran.errors);
            let last = ran.errors.lines().last().unwrap();
            assert!(last.contains(why), "{last}");
            assert_eq!(serde_json::from_str::<Value>(last).is_ok(), format == "json", "{last}");
        }
    }
}

#[test]
fn a_worker_that_was_taken_out_is_forgotten_and_what_it_ran_stays_provable() {
    let house = House::founded(1);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    assert_eq!(house.grey(&["run", "--", "true"]).status, 0);
    assert_eq!(house.grey(&["node", "remove", "w1"]).status, 0);
    wait_until("it is forgotten", || house.node("w1").is_none() && house.workers() == 0);
    assert!(house.json(&["cluster", "status"]).unwrap()["workers"].as_array().unwrap().is_empty());
    // It hears so, and ends.
    assert_eq!(house.status_of("w1"), Some(3));
    assert!(house.said("w1").contains("removed from the cluster"), "{}", house.said("w1"));
    // Its name is free for another one.
    std::fs::remove_dir_all(house.path("w1")).unwrap();
    house.start_worker("w1");
    wait_until("the other one is there", || house.workers() == 1 && house.node("w1").is_some());
    let file = house.path("proof.json");
    let proved = house.grey(&["task", "proof", "t1", "--out", file.to_str().unwrap()]);
    assert_eq!(proved.status, 0, "{}", proved.errors);
    assert_eq!(house.grey(&["run", "--", "true"]).status, 0);
}

#[test]
fn the_leader_s_log_says_who_changed_nodes_tenants_and_tokens() {
    // Given: an operator whose token has a name.
    let house = House::founded(1);
    let token = house.json(&["token", "create", "carol", "--role", "operator"]).unwrap();
    let as_carol = |arguments: &[&str]| {
        let mut command = house.command(arguments);
        let ran = command.env("GREY_TOKEN", token["token"].as_str().unwrap()).output().unwrap();
        ran.status.success()
    };
    // When: she changes something, and something that is not there, and then looks.
    assert!(as_carol(&["tenant", "create", "acme"]));
    assert!(!as_carol(&["node", "block", "nobody"]));
    assert!(as_carol(&["node", "list"]));
    // Then: the log has what she asked for and what came of it, and no secret.
    let told = |path: &str, status: &str| {
        house.said("s1").lines().any(|line| {
            let words = [path, status, "by=\"carol\"", "role=\"operator\""];
            words.iter().all(|word| line.contains(word))
        })
    };
    assert!(told("/v1/tenants", "status=200"), "{}", house.said("s1"));
    assert!(told("/v1/nodes/nobody/block", "status=404"), "{}", house.said("s1"));
    let log = house.said("s1");
    assert_eq!(log.matches("by=\"carol\"").count(), 2, "{log}");
    assert!(!log.contains(token["token"].as_str().unwrap()));
}

#[test]
fn leadership_goes_to_the_server_that_is_named_and_to_none_that_cannot_lead() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let first = leader(&house).unwrap();
    let others: Vec<&str> = ["s1", "s2", "s3"].into_iter().filter(|name| **name != first).collect();
    let transfer = |to: &str| {
        let ran = house.grey(&["cluster", "transfer", to, "--json"]);
        assert_eq!(ran.status, 0, "it is not handed on to {to}: {}", ran.errors);
        serde_json::from_slice::<Value>(&ran.stdout).unwrap()
    };
    // When: a server is named, by its name or its number.
    let now = transfer(others[0]);
    assert_eq!((now["name"].as_str(), leader(&house).as_deref()), (Some(others[0]), Some(others[0])));
    let number = house.node(others[1]).unwrap()["server"].to_string();
    assert_eq!(transfer(&number)["name"], others[1]);
    let again = house.grey(&["cluster", "transfer", others[1]]);
    assert!(again.status == 0 && again.errors.contains("led already"), "{}", again.errors);
    // When: none is named.
    let any = house.json(&["cluster", "transfer"]).expect("it is handed on");
    assert_ne!(any["name"], others[1]);
    assert_eq!(leader(&house).as_deref(), any["name"].as_str());
    // Then: one that cannot lead is not asked to, and the reason is said.
    let leads = any["name"].as_str().unwrap();
    let gone = ["s1", "s2", "s3"].into_iter().find(|name| *name != leads).unwrap();
    house.kill_9(gone);
    for (to, status, why) in [("w1", 3, "only servers lead"), ("s9", 1, "s9"), (gone, 3, "is out of touch")] {
        wait_until(&format!("{to} is refused because of `{why}`"), || {
            let refused = house.grey(&["cluster", "transfer", to]);
            refused.status == status && refused.errors.contains(why)
        });
    }
    assert_eq!(leader(&house).as_deref(), Some(leads));
}

/// Where the tasks of a job are: waiting, placed, running, completed.
fn counts(house: &House, job: &str) -> [u64; 4] {
    let status = house.json(&["job", "status", job]).unwrap_or_default();
    ["pending", "assigned", "running", "completed"].map(|name| status["counts"][name].as_u64().unwrap_or(0))
}

#[test]
fn a_drained_worker_ends_what_runs_and_gets_nothing_until_it_is_uncordoned_also_over_restarts() {
    // Given: a worker that runs some of many tasks, and holds others ahead of time.
    let house = House::founded(1);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let go = house.path("go");
    let script = format!("until test -e '{}'; do sleep 0.05; done", go.display());
    let task = serde_json::json!({ "name": "t", "command": ["sh", "-c", script], "count": 200 });
    let job = serde_json::json!({ "version": 1, "name": "many", "task": [task] });
    std::fs::write(house.path("many.json"), job.to_string()).unwrap();
    let submitted = house.json(&["submit", house.path("many.json").to_str().unwrap()]).unwrap();
    let job = submitted["job"].as_str().unwrap().to_owned();
    wait_until("some run and others are held", || {
        let [_, assigned, running, _] = counts(&house, &job);
        assigned > 0 && running > 0
    });
    // When: it is drained and they do not end.
    let drained = house.grey(&["node", "drain", "w1", "--wait", "1s"]);
    assert_eq!(drained.status, 1, "{}", drained.errors);
    assert!(drained.errors.contains("still there"), "{}", drained.errors);
    // Then: it keeps what runs, and what it had not started waits.
    let mut running = 0;
    wait_until("it has given back what it had not started", || {
        let [pending, assigned, runs, _] = counts(&house, &job);
        running = runs;
        assigned == 0 && runs > 0 && pending + runs == 200
    });
    let node = house.node("w1").unwrap();
    assert_eq!((node["cordoned"].as_bool(), node["held"].as_u64()), (Some(true), Some(running)));
    std::fs::write(&go, "").unwrap();
    let drained = house.grey(&["node", "drain", "w1", "--wait", "1m"]);
    assert_eq!(drained.status, 0, "{}", drained.errors);
    assert!(drained.text.contains("cordoned"), "{}", drained.text);
    assert_eq!(counts(&house, &job), [200 - running, 0, 0, running]);
    // When: everything starts again, then it is still cordoned.
    house.kill_9("w1");
    house.kill_9("s1");
    house.start_server("s1");
    house.restart_worker("w1");
    wait_until("the worker has announced itself again", || {
        house.node("w1").is_some_and(|node| node["presence"] == "present" && node["cordoned"] == true)
    });
    assert_eq!(counts(&house, &job)[3], running);
    let explained = house.grey(&["task", "explain", "t200"]);
    assert!(explained.text.contains("cordoned"), "{}", explained.text);
    assert_eq!(house.grey(&["node", "uncordon", "w1"]).status, 0);
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    // A server has no work of which it could be freed.
    let refused = house.grey(&["node", "cordon", "s1"]);
    assert_eq!(refused.status, 3, "{}", refused.errors);
    assert!(refused.errors.contains("grey cluster transfer"), "{}", refused.errors);
}

#[test]
fn events_are_told_as_they_happen_also_after_the_server_that_told_them_is_lost() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let (told, noted) = (house.path("told"), house.path("noted"));
    let mut command = house.command(&["events", "--json"]);
    command.stdout(File::create(&told).unwrap()).stderr(File::create(&noted).unwrap());
    let mut listener = command.spawn().unwrap();
    let notes = || std::fs::read_to_string(&noted).unwrap();
    let ended = || {
        let text = std::fs::read_to_string(&told).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ended = events.filter(|event| event["kind"] == "job_ended");
        ended.map(|event| event["job"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_until("it listens", || notes().contains("listening"));
    assert_eq!(house.grey(&["run", "--", "true"]).status, 0);
    wait_until("the end of the first job is told", || ended() == ["j1"]);
    // When: the server from which the events come is killed.
    house.kill_9(&leader(&house).unwrap());
    wait_until("it listens to another", || notes().contains("listening again"));
    assert_eq!(house.grey(&["run", "--", "true"]).status, 0);
    wait_until("the end of the second job is told", || ended() == ["j1", "j2"]);
    kill(i32::try_from(listener.id()).unwrap(), "INT");
    assert_eq!(listener.wait().unwrap().code(), Some(0));
}
