//! A cluster of several processes: servers that found and join it, workers, and what is left when some of them are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "cluster/cosign.rs"]
mod cosign;
#[path = "cluster/follow.rs"]
mod follow;
#[path = "cluster/house.rs"]
mod house;
#[path = "cluster/lag.rs"]
mod lag;
#[path = "cluster/machine.rs"]
mod machine;
#[path = "cluster/month.rs"]
mod month;
#[path = "cluster/moves.rs"]
mod moves;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/quarantine.rs"]
mod quarantine;
#[path = "cluster/rekey.rs"]
mod rekey;
mod support;
#[path = "cluster/switch.rs"]
mod switch;
#[path = "cluster/traces.rs"]
mod traces;
#[path = "cluster/trouble.rs"]
mod trouble;
#[path = "cluster/upgrade.rs"]
mod upgrade;
#[path = "cluster/upkeep.rs"]
mod upkeep;
#[path = "cluster/waiting.rs"]
mod waiting;

use house::House;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use support::metrics::{exposed, free_port, listed, scrape};
use support::{Ran, is_alive, kill, wait_until};

/// A server's number by its name, where a listing has it.
fn leader(house: &House) -> Option<String> {
    let found = house.rows(&["node", "list"]).into_iter().find(|node| node["leads"] == true)?;
    Some(found["name"].as_str()?.to_owned())
}

/// The only task of a job.
fn only_task(house: &House, job: &str) -> Value {
    let mut tasks = house.rows(&["task", "list", "--job", job]);
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    tasks.remove(0)
}

#[test]
fn to_found_a_cluster_again_changes_nothing_and_an_unready_directory_says_what_to_do() {
    let house = House::new(1);
    let first = house.init();
    let again = house.init();
    assert_eq!(first["cluster"], again["cluster"]);
    assert_eq!((first["before"].as_bool(), again["before"].as_bool()), (Some(false), Some(true)));
    // Nothing that contradicts what was founded is said to be founded.
    let papers = std::fs::read(house.path("s1").join("node.json")).unwrap();
    let port = free_port().to_string();
    let (here, elsewhere) = (house.join(), format!("127.0.0.1:{port}"));
    for (name, address, founded, asked) in
        [("other", here.as_str(), "s1", "other"), ("s1", &elsewhere, here.as_str(), elsewhere.as_str())]
    {
        let arguments = ["cluster", "init", "--name", name, "--listen", address, "--advertise", address];
        let mut command = house.command(&arguments);
        let ran = Ran::of(command.env("GREY_DATA", house.path("s1")).output().unwrap());
        assert_eq!((ran.status, ran.text.as_str()), (3, ""), "{}", ran.errors);
        for said in [founded, asked, "Nothing was changed"] {
            assert!(ran.errors.contains(said), "`{said}` is missing in {}", ran.errors);
        }
    }
    assert_eq!(papers, std::fs::read(house.path("s1").join("node.json")).unwrap());
    assert_eq!(house.init()["cluster"], first["cluster"]);
    // Whoever provisions a machine need not know whether its server runs.
    house.start_server("s1");
    wait_until("it leads", || leader(&house).is_some());
    assert_eq!(house.init()["before"], true);
    let data = house.path("nowhere");
    let arguments = ["server", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:1"];
    let ran = house.grey(&arguments);
    assert_eq!(ran.status, 1, "{}", ran.errors);
    assert!(ran.errors.contains("grey cluster init") && ran.errors.contains("--join"), "{}", ran.errors);
}

#[test]
fn a_token_lets_one_node_in_once() {
    let house = House::founded(2);
    let token = house.token("worker");
    house.start_worker_with("w1", &token);
    wait_until("the worker is there", || house.workers() == 1);
    let mut second = house.worker_command("w2", Some(&token));
    let ran = second.output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(3), "{errors}");
    assert!(errors.contains("used up"), "{errors}");
    // A worker's token is none for a server.
    let token = house.token("worker");
    let ran = house.server_command(2, Some(&token)).output().unwrap();
    assert!(String::from_utf8_lossy(&ran.stderr).contains("another role"));
}

#[test]
fn a_name_is_one_node_s_until_that_is_lost() {
    let house = House::founded(2);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    // Given: another machine under the same name.
    let token = house.token("worker");
    let namesake = |directory: &str, token: &str| {
        let mut command = house.worker_command("w1", Some(token));
        command.env("GREY_DATA", house.path(directory));
        command
    };
    // Then: it is told so, and keeps its token; a server's name is no worker's either.
    let ran = Ran::of(namesake("w1-again", &token).output().unwrap());
    assert_eq!(ran.status, 3, "{}", ran.errors);
    for said in ["the name w1 is that of a worker", "--name", "The token was not used up"] {
        assert!(ran.errors.contains(said), "`{said}` is missing in {}", ran.errors);
    }
    let ran = Ran::of(
        house.worker_command("s1", Some(&token)).env("GREY_DATA", house.path("w9")).output().unwrap(),
    );
    assert!(ran.status == 3 && ran.errors.contains("the name s1 is that of a server"), "{}", ran.errors);
    // When: the first one is gone, with its disk.
    house.kill_9("w1");
    wait_until("it is lost", || house.workers() == 0);
    // Then: the name is free, for one of two that come at once.
    let another = house.token("worker");
    house.spawn("first", namesake("w1-again", &token));
    house.spawn("second", namesake("w1-third", &another));
    let refused = |name: &str| house.said(name).contains("the name w1 is that of a worker");
    wait_until("one is refused", || refused("first") || refused("second"));
    wait_until("the other one is there", || house.workers() == 1);
    assert!(refused("first") != refused("second"));
}

#[test]
fn work_goes_on_when_the_leader_is_killed_and_every_result_is_there_afterwards() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    run_large(&house);
    let go = house.path("go");
    let script = format!("echo begun; until test -e '{}'; do sleep 0.05; done; echo over", go.display());
    let submitted = house.json(&["submit", house.task_file("long", &script).to_str().unwrap()]).unwrap();
    let job = submitted["job"].as_str().unwrap().to_owned();
    wait_until("the task runs", || {
        house.json(&["job", "status", &job]).is_some_and(|job| job["counts"]["running"] == 1)
    });
    let killed = leader(&house).unwrap();
    house.kill_9(&killed);
    // Another one leads, and what was under way is the same attempt.
    let after = house.grey(&["run", "--", "echo", "after"]);
    assert_eq!((after.status, after.text.as_str()), (0, "after\n"), "{}", after.errors);
    std::fs::write(&go, "").unwrap();
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    assert_eq!(only_task(&house, &job)["attempt"], 1);
    let new = leader(&house).unwrap();
    assert_ne!(new, killed);
    // What only the killed one and one other had can be read, and so can its proof.
    check_large(&house, "again");
    // The killed one comes back, catches up, and agrees.
    house.start_server(&killed);
    wait_until("all servers have the same state", || house.states_agree(3));
}

#[test]
fn a_killed_worker_s_tasks_run_elsewhere_and_a_blocked_one_gets_none() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let submitted = house.json(&["submit", house.task_file("long", "sleep 1; echo done").to_str().unwrap()]);
    let job = submitted.unwrap()["job"].as_str().unwrap().to_owned();
    wait_until("the task runs", || {
        house.json(&["job", "status", &job]).is_some_and(|job| job["counts"]["running"] == 1)
    });
    house.kill_9("w1");
    house.start_worker("w2");
    let waited = house.grey(&["job", "wait", &job]);
    assert_eq!(waited.status, 0, "{}", waited.errors);
    assert_eq!(only_task(&house, &job)["attempt"], 2);
    assert_eq!(house.grey(&["node", "block", "w2"]).status, 0);
    assert_eq!(house.node("w2").unwrap()["standing"], "blocked");
    let refused = house.grey(&["submit", house.task_file("waits", "true").to_str().unwrap()]);
    assert_eq!(refused.status, 0, "{}", refused.errors);
    wait_until("the blocked worker is lost", || {
        house.node("w2").is_some_and(|node| node["presence"] == "lost")
    });
    // It is told so, and waits: only who was removed ends.
    wait_until("it says so", || house.said("w2").contains("this node is blocked"));
    assert_eq!(house.grey(&["node", "unblock", "w2"]).status, 0);
    wait_until("the worker is back", || house.workers() == 1);
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_with_it_everything_is_there_again() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    assert_eq!(house.grey(&["run", "--", "true"]).status, 0);
    house.kill_9("s2");
    house.kill_9("s3");
    let mut command =
        house.command(&["submit", "--key", "k", house.task_file("one", "echo one").to_str().unwrap()]);
    let mut waiting = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert!(
        waiting.try_wait().unwrap().is_none_or(|status| !status.success()),
        "one of three acknowledged it"
    );
    house.start_server("s2");
    wait_until("somebody leads", || leader(&house).is_some());
    kill(i32::try_from(waiting.id()).unwrap(), "KILL");
    waiting.wait().unwrap();
    let again =
        house.grey(&["submit", "--key", "k", "--wait", house.task_file("one", "echo one").to_str().unwrap()]);
    assert_eq!(again.status, 0, "{}", again.errors);
    let jobs = house.rows(&["job", "list"]);
    assert_eq!(jobs.iter().filter(|job| job["name"] == "one").count(), 1, "the key is one job's: {jobs:?}");
    house.start_server("s3");
    wait_until("all servers have the same state", || house.states_agree(3));
}

#[test]
fn a_server_is_taken_out_also_when_it_leads_and_another_takes_its_place() {
    let house = House::of_three();
    let leads = leader(&house).unwrap();
    let removed = house.grey(&["node", "remove", &leads]);
    assert_eq!(removed.status, 0, "{}", removed.errors);
    wait_until("another leads, and it is forgotten", || {
        leader(&house).is_some_and(|name| name != leads) && house.node(&leads).is_none()
    });
    assert_eq!(house.status_of(&leads), Some(3), "it hears so, and ends");
    assert!(house.said(&leads).contains("removed from the cluster"), "{}", house.said(&leads));
    let token = house.token("server");
    house.start_new_server(4, &token);
    wait_until("the new one follows", || house.node("s4").is_some());
    wait_until("it votes", || house.voters() == 3);
    // It takes the loss of one of the others.
    wait_until("all servers have the same state", || house.states_agree(3));
    let other = ["s1", "s2", "s3"].into_iter().find(|name| *name != leads).unwrap();
    house.kill_9(other);
    house.start_worker("w1");
    let ran = house.grey(&["run", "--", "echo", "fine"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "fine\n"), "{}", ran.errors);
}

/// Runs a task that leaves a file too large for its report.
fn run_large(house: &House) {
    std::fs::write(house.path("big"), vec![7; 200_000]).unwrap();
    let ran = house.grey(&[
        "run",
        "--in",
        "big",
        "--out",
        "o",
        "--results",
        "r",
        "--",
        "sh",
        "-c",
        "cp big $GREY_OUT/o",
    ]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
}

/// What [`run_large`] left can be read and proved.
fn check_large(house: &House, results: &str) {
    let output = house.grey(&["task", "result", "t1", "--results", results]);
    assert_eq!(output.status, 0, "{}", output.errors);
    assert_eq!(std::fs::read(house.path(results).join("o")).unwrap(), vec![7; 200_000]);
    let proof = house.grey(&["task", "proof", "t1", "--out", "p.json"]);
    assert_eq!(proof.status, 0, "{}", proof.errors);
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    let verified = house.grey(&["verify", "--root", "root.json", "--results", results, "p.json"]);
    assert_eq!(verified.status, 0, "{}", verified.errors);
}

#[test]
fn a_server_that_enters_an_old_cluster_has_all_that_ended_before_and_can_take_its_place() {
    let house = House::founded(2);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    run_large(&house);
    let token = house.token("server");
    house.start_new_server(2, &token);
    wait_until("it votes", || house.voters() == 2);
    let log = std::fs::read_to_string(house.path("s2.log")).unwrap();
    assert!(log.contains("began from what another server has"), "{log}");
    assert!(!house.path("s2/entering").exists());
    wait_until("it has the file", || house.blobs("s2") == 1);
    // When: the only server that was there at the time is gone for ever.
    assert_eq!(house.grey(&["node", "remove", "s1"]).status, 0);
    wait_until("the other one leads", || {
        leader(&house).is_some_and(|name| name == "s2") && house.voters() == 1
    });
    house.kill_9("s1");
    check_large(&house, "again");
    let ran = house.grey(&["run", "--", "echo", "on"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "on\n"), "{}", ran.errors);
}

fn recover(house: &House, name: &str, more: &[&str]) -> support::Ran {
    let mut command = house.command(&[&["cluster", "recover"], more].concat());
    support::Ran::of(command.env("GREY_DATA", house.path(name)).output().unwrap())
}

#[test]
fn a_cluster_that_lost_its_majority_for_good_goes_on_with_what_one_server_has() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    run_large(&house);
    let waits = house.json(&["submit", house.task_file("waits", "sleep 600").to_str().unwrap()]).unwrap();
    wait_until("it runs", || {
        house
            .json(&["job", "status", waits["job"].as_str().unwrap()])
            .is_some_and(|job| job["counts"]["running"] == 1)
    });
    wait_until("all servers have the same state", || house.states_agree(3));
    // A majority has its content before it counts, and the others soon after.
    wait_until("all servers have its file", || (1..=3).all(|number| house.blobs(&format!("s{number}")) == 1));
    let number = house.node("s2").unwrap()["server"].as_u64().unwrap();
    // Nobody gives up what others still have, by mistake.
    let running = recover(&house, "s2", &["--yes"]);
    assert!(running.status == 1 && running.errors.contains("is in use by process"), "{}", running.errors);
    house.kill_9("s2");
    let alive = recover(&house, "s2", &["--yes"]);
    assert!(alive.status == 1 && alive.errors.contains("answers at"), "{}", alive.errors);
    for name in ["s1", "s3", "w1"] {
        house.kill_9(name);
    }
    let unsure = recover(&house, "s2", &[]);
    assert!(unsure.status == 1 && unsure.errors.contains("--yes"), "{}", unsure.errors);
    // When: it is said to be the one that is left.
    let recovered = recover(&house, "s2", &["--yes", "--json"]);
    assert_eq!(recovered.status, 0, "{}", recovered.errors);
    let recovered: Value = serde_json::from_slice(&recovered.stdout).unwrap();
    let mut forgotten: Vec<&str> =
        recovered["forgotten"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    forgotten.sort_unstable();
    assert_eq!((recovered["server"].as_u64(), forgotten), (Some(number), vec!["s1", "s3", "w1"]));
    let again = recover(&house, "s2", &["--yes"]);
    assert!(again.status == 1 && again.errors.contains("votes alone already"), "{}", again.errors);
    house.start_server("s2");
    wait_until("it leads", || leader(&house).is_some_and(|name| name == "s2"));
    assert_eq!(house.rows(&["node", "list"]).len(), 1);
    // Then: what was acknowledged is there, and what ran waits for a worker.
    check_large(&house, "again");
    let job = house.json(&["job", "status", waits["job"].as_str().unwrap()]).unwrap();
    assert_eq!(job["counts"]["pending"], 1, "{job}");
    assert_eq!(house.grey(&["job", "cancel", waits["job"].as_str().unwrap()]).status, 0);
    // And: it grows again. What was a server of it before is none now.
    house.start_server("s3");
    house.start_worker("w2");
    let token = house.token("server");
    house.start_new_server(4, &token);
    let ran = house.grey(&["run", "--", "echo", "on"]);
    assert_eq!((ran.status, ran.text.as_str()), (0, "on\n"), "{}", ran.errors);
    wait_until("two vote", || house.voters() == 2);
    assert_eq!(house.node("s3"), None);
    let jobs = house.rows(&["job", "list"]);
    let newest = jobs[0]["id"].as_str().unwrap().trim_start_matches('j').parse::<u64>().unwrap();
    assert!(newest > 1_000_000_000, "numbers of the lost part could be given out again: {newest}");
}

#[test]
fn a_snapshot_is_the_whole_cluster_and_goes_on_elsewhere() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    assert_eq!(house.grey(&["tenant", "create", "ada"]).status, 0);
    let token = house.json(&["token", "create", "hers", "--role", "submitter", "--tenant", "ada"]).unwrap();
    run_large(&house);
    let waits = house.json(&["submit", house.task_file("waits", "sleep 600").to_str().unwrap()]).unwrap();
    let taken = house.json(&["cluster", "snapshot", "all.snapshot"]).expect("it is taken");
    assert_eq!(taken["contents"], 1, "the input and the output are the same: {taken}");
    assert!(!house.path("all.snapshot.part").exists());
    let mode = std::fs::metadata(house.path("all.snapshot")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds what a server's disk does");
    assert_eq!(
        house.json(&["cluster", "snapshot", "--check", "all.snapshot"]).unwrap()["index"],
        taken["index"]
    );
    // What comes after it is not in it.
    assert_eq!(house.grey(&["tenant", "create", "eve"]).status, 0);
    for name in ["s1", "s2", "s3", "w1"] {
        house.kill_9(name);
    }
    let root_key = house.path("s1/root.key");
    let restore = |file: &str, root_key: &std::path::Path, name: &str| {
        let arguments =
            ["cluster", "restore", file, "--root-key", root_key.to_str().unwrap(), "--name", name, "--json"];
        let mut command = house.command(&arguments);
        let listen = house.address(4).trim_start_matches("https://").to_owned();
        command.env("GREY_DATA", house.path(name)).env("GREY_LISTEN", listen);
        support::Ran::of(command.output().unwrap())
    };
    // Given: one that is damaged, another cluster's key, a directory that holds something: nothing is written.
    let mut bytes = std::fs::read(house.path("all.snapshot")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(house.path("damaged.snapshot"), bytes).unwrap();
    std::fs::write(house.path("other.key"), "00".repeat(32)).unwrap();
    for (file, key, name, said) in [
        ("damaged.snapshot", &root_key, "s4", "is damaged at byte"),
        ("all.snapshot", &house.path("other.key"), "s4", "the root key is not that of the cluster"),
        ("all.snapshot", &root_key, "s1", "holds something already"),
        ("no.snapshot", &root_key, "s4", "no.snapshot"),
    ] {
        let ran = restore(file, key, name);
        assert!(ran.status == 1 && ran.errors.contains(said), "{file} {name}: {}", ran.errors);
        assert!(!house.path("s4/node.json").exists());
    }
    let ran = restore("all.snapshot", &root_key, "s4");
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let restored: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(
        (restored["server"].as_u64(), restored["cluster"].clone()),
        (Some(4), taken["cluster"].clone())
    );
    house.start_server("s4");
    wait_until("it leads", || leader(&house).is_some_and(|name| name == "s4"));
    // Then: clients of before are served as before, and what was done is there and proves.
    check_large(&house, "again");
    let tenants = house.rows(&["tenant", "list"]);
    assert!(tenants.iter().any(|tenant| tenant["name"] == "ada"), "{tenants:?}");
    assert!(!tenants.iter().any(|tenant| tenant["name"] == "eve"), "it came after the snapshot");
    let job = house.json(&["job", "status", waits["job"].as_str().unwrap()]).unwrap();
    assert_eq!(job["counts"]["pending"], 1, "{job}");
    assert_eq!(house.grey(&["job", "cancel", waits["job"].as_str().unwrap()]).status, 0);
    house.start_worker("w2");
    let mut command = house.command(&["run", "--", "echo", "hers"]);
    let ran = support::Ran::of(command.env("GREY_TOKEN", token["token"].as_str().unwrap()).output().unwrap());
    assert_eq!((ran.status, ran.text.as_str()), (0, "hers\n"), "{}", ran.errors);
    let made = house.command(&["job", "list"]).env("GREY_TOKEN", restored_token(&house)).output().unwrap();
    assert!(made.status.success(), "the token that was made is an operator's");
}

fn restored_token(house: &House) -> String {
    std::fs::read_to_string(house.path("s4/operator.token")).unwrap().trim().to_owned()
}

#[test]
fn a_tenant_s_token_is_good_for_that_tenant_only_at_whichever_server() {
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    assert_eq!(house.grey(&["tenant", "create", "ada"]).status, 0);
    let created =
        house.json(&["token", "create", "ada-token", "--role", "submitter", "--tenant", "ada"]).unwrap();
    let token = created["token"].as_str().unwrap();
    for number in 1..=3 {
        let mut command = house.command(&["run", "--", "echo", "hers"]);
        command.env("GREY_TOKEN", token).env("GREY_ADDR", house.address(number));
        let ran = support::Ran::of(command.output().unwrap());
        assert_eq!((ran.status, ran.text.as_str()), (0, "hers\n"), "{}", ran.errors);
        let mut command = house.command(&["node", "list"]);
        command.env("GREY_TOKEN", token).env("GREY_ADDR", house.address(number));
        let ran = support::Ran::of(command.output().unwrap());
        assert_eq!(ran.status, 3, "{}", ran.errors);
        let mut command = house.command(&["job", "list"]);
        command.env("GREY_TOKEN", "grey-token-1.AAAA").env("GREY_ADDR", house.address(number));
        assert_eq!(support::Ran::of(command.output().unwrap()).status, 3);
    }
}

#[test]
fn a_server_that_ends_in_order_hands_leadership_on_and_leaves_nothing_running() {
    let house = House::of_three();
    let leads = leader(&house).unwrap();
    let process = house.process_id(&leads);
    kill(process, "TERM");
    wait_until("it has ended", || !is_alive(process));
    let new = leader(&house).expect("another one leads at once");
    assert_ne!(new, leads);
}

#[test]
fn an_operator_sees_every_node_and_only_the_leader_exposes_what_concerns_the_cluster() {
    let house = House::founded(2);
    let with_metrics = |mut command: std::process::Command| {
        let port = free_port();
        command.env("GREY_METRICS_LISTEN", port.to_string());
        (command, port)
    };
    house.kill_9("s1");
    let (command, first) = with_metrics(house.server_command(1, None));
    house.spawn("s1", command);
    wait_until("the first server leads", || leader(&house).is_some());
    let (command, second) = with_metrics(house.server_command(2, Some(&house.token("server"))));
    house.spawn("s2", command);
    let (command, working) = with_metrics(house.worker_command("w1", Some(&house.token("worker"))));
    house.spawn("w1", command);
    wait_until("all are there", || house.workers() == 1 && house.voters() == 2);

    let names = |text: &str| exposed(text).into_keys().collect::<Vec<_>>();
    let listed = |headings: &[&str]| listed(headings).into_keys().collect::<Vec<_>>();
    // On a slow machine leadership may change hands at any time; a scrape is of one moment.
    let mut seen = None;
    wait_until("one leads and one follows", || {
        let texts = [scrape(first), scrape(second)];
        let leads = |text: &&String| text.contains("grey_raft_leads 1\n");
        let follows =
            |text: &&String| text.contains("grey_raft_leads 0\n") && !text.contains("grey_raft_leader 0\n");
        seen = texts.iter().find(leads).cloned().zip(texts.iter().find(follows).cloned());
        seen.is_some()
    });
    let (leading, following) = seen.unwrap();
    assert_eq!(names(&leading), listed(&["Every node", "Servers"]));
    assert_eq!(names(&scrape(working)), listed(&["Every node", "Workers"]));
    assert!(leading.contains("grey_workers{presence=\"present\"} 1\n"), "{leading}");
    for (sample, is_there) in [
        ("grey_raft_applied_index ", true),
        ("grey_tasks{", false),
        ("grey_workers{", false),
        ("grey_worker_registered", false),
    ] {
        assert_eq!(following.contains(sample), is_there, "{sample}");
    }
    wait_until("the worker says that a leader knows it", || {
        scrape(working).contains("grey_worker_registered 1\n")
    });

    let look = house.json(&["top"]).unwrap();
    let nodes = look["nodes"].as_array().unwrap().iter();
    let mut seen: Vec<(&str, Option<u64>)> =
        nodes.map(|node| (node["state"].as_str().unwrap(), node["load"]["held"].as_u64())).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("follows", None), ("leads", None), ("present", Some(0))]);
}
