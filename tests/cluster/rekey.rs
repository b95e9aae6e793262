//! One issuing key follows another: what every node gets of it, what stays good of before, and what is left when servers fail.

use std::path::Path;

use serde_json::Value;

use crate::house::House;
use crate::leader;
use crate::support::wait_until;

/// The issuing key as the cluster's status has it.
fn issuing_key(house: &House) -> Value {
    house.json(&["cluster", "status"]).map(|status| status["issuing_key"].clone()).unwrap_or_default()
}

/// The certificate of the issuing key that a node's certificates come from.
fn issuer(house: &House, name: &str) -> Value {
    let bytes = std::fs::read(house.path(name).join("node.json")).unwrap_or_default();
    let file: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    file["issuer"].clone()
}

fn secret(house: &House, name: &str) -> Option<Vec<u8>> {
    std::fs::read(house.path(name).join("authority.key")).ok()
}

/// Waits until certificates of all these nodes come from one key that is not that of before, and all servers among them have it.
fn wait_for_next(house: &House, names: &[&str], before: &Value) -> Value {
    wait_until("every node's certificates come from the next issuing key", || {
        let issuers: Vec<Value> = names.iter().map(|name| issuer(house, name)).collect();
        let one = issuers.iter().all(|issuer| *issuer == issuers[0] && issuer.is_object());
        let servers = names.iter().filter(|name| name.starts_with('s'));
        let secrets: Vec<Option<Vec<u8>>> = servers.map(|name| secret(house, name)).collect();
        one && issuers[0] != *before && secrets.iter().all(|secret| *secret == secrets[0] && secret.is_some())
    });
    issuer(house, names[0])
}

fn rekey(house: &House, root_key: &Path) -> crate::support::Ran {
    house.grey(&["cluster", "rekey", "--root-key", root_key.to_str().unwrap(), "--json"])
}

/// Has the next key follow, which has this number.
fn rekeyed(house: &House, number: u64) {
    let ran = rekey(house, &house.path("root.key"));
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let key: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((key["serial"].as_u64(), key["here"].as_bool()), (Some(number), Some(true)), "{key}");
    assert!(key["warning"].is_null(), "{key}");
}

/// Whether the proof in a file holds under the root that was given out in the beginning.
fn verify(house: &House, proof: &str) {
    let verified = house.grey(&["verify", "--root", "root.json", proof]);
    assert_eq!(verified.status, 0, "{proof}: {}{}", verified.text, verified.errors);
}

/// Gets a task's proof into a file, and checks it; returns the worker's certificate in it.
fn prove(house: &House, task: &str, file: &str) -> Value {
    let proof = house.grey(&["task", "proof", task, "--out", file]);
    assert_eq!(proof.status, 0, "{}", proof.errors);
    verify(house, file);
    let proof: Value = serde_json::from_slice(&std::fs::read(house.path(file)).unwrap()).unwrap();
    proof["certificate"].clone()
}

fn run(house: &House, word: &str) {
    let ran = house.grey(&["run", "--", "echo", word]);
    assert_eq!((ran.status, ran.text.trim()), (0, word), "{}", ran.errors);
}

/// Three servers and a worker; the root key and the root are with the operator.
fn at_work() -> House {
    let house = House::of_three();
    std::fs::rename(house.path("s1").join("root.key"), house.path("root.key")).unwrap();
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    house
}

#[test]
fn every_node_gets_certificates_of_the_next_issuing_key_and_proofs_of_before_and_after_hold() {
    let house = at_work();
    run(&house, "before");
    let old = prove(&house, "t1", "before.json");
    let first = issuer(&house, "w1");
    // When: somebody has another cluster's root key. Then: that is said, and nothing has changed.
    std::fs::write(house.path("other.key"), "42".repeat(32)).unwrap();
    let refused = rekey(&house, &house.path("other.key"));
    assert_eq!(refused.status, 1, "{}", refused.errors);
    assert!(refused.errors.contains("not of this one; nothing was changed"), "{}", refused.errors);
    assert_eq!(issuing_key(&house)["serial"], 1);
    assert_eq!(issuer(&house, "w1"), first);
    // When: the root key certifies the next one.
    rekeyed(&house, 2);
    // Then: it is on every server, and everybody's certificates come from it.
    let second = wait_for_next(&house, &["s1", "s2", "s3", "w1"], &first);
    for name in ["s1", "s2", "s3"] {
        wait_until("nothing is left over", || !house.path(name).join("authority.next").exists());
    }
    // Then: what was proved can still be proved, also anew, and so can what runs now, under another certificate.
    run(&house, "after");
    verify(&house, "before.json");
    assert_eq!(prove(&house, "t1", "again.json"), old);
    assert_ne!(prove(&house, "t2", "after.json"), old);
    // Then: a server and a worker enter, and get it too.
    let token = house.token("server");
    house.start_new_server(4, &token);
    wait_until("it votes", || house.voters() == 4);
    house.start_worker("w2");
    wait_until("both workers are there", || house.workers() == 2);
    wait_for_next(&house, &["s1", "s4", "w1", "w2"], &first);
    // When: a server leaves. Then: it is said that it knows the key, until another one follows, which it does not get.
    assert_eq!(house.grey(&["node", "remove", "s4"]).status, 0);
    wait_until("it is gone", || house.node("s4").is_none());
    house.kill_9("s4");
    let status = house.grey(&["cluster", "status"]);
    assert!(status.text.contains("1 server(s) that left know the issuing key"), "{}", status.text);
    assert_eq!(issuing_key(&house)["servers_left"], 1);
    rekeyed(&house, 3);
    wait_for_next(&house, &["s1", "s2", "s3", "w1", "w2"], &second);
    assert_ne!(secret(&house, "s4"), secret(&house, "s1"));
    assert_eq!(issuing_key(&house)["servers_left"], 0);
    wait_until("all servers have the same state", || house.states_agree(3));
}

#[test]
fn the_next_leader_issues_when_the_one_that_made_the_key_is_killed_right_afterwards() {
    let house = at_work();
    run(&house, "before");
    let first = issuer(&house, "w1");
    let made_by = leader(&house).unwrap();
    rekeyed(&house, 2);
    house.kill_9(&made_by);
    // Then: another one leads, has the key, and lets nodes in with it.
    let left: Vec<&str> = ["s1", "s2", "s3"].into_iter().filter(|name| *name != made_by).collect();
    wait_until("another one leads", || leader(&house).is_some_and(|leads| leads != made_by));
    house.start_worker("w2");
    wait_until("the new worker is there", || house.workers() >= 2);
    let second = wait_for_next(&house, &[left[0], left[1], "w1", "w2"], &first);
    run(&house, "after");
    prove(&house, "t1", "before.json");
    prove(&house, "t2", "after.json");
    // When: the killed one is back, having missed nothing but what it made itself.
    house.start_server(&made_by);
    wait_for_next(&house, &["s1", "s2", "s3", "w1", "w2"], &first);
    assert_eq!(issuer(&house, &made_by), second);
    // When: one that was away while the next key came is back. Then: it fetches that.
    house.kill_9(left[0]);
    wait_until("somebody leads", || leader(&house).is_some());
    rekeyed(&house, 3);
    house.start_server(left[0]);
    wait_for_next(&house, &["s1", "s2", "s3", "w1", "w2"], &second);
    wait_until("all servers have the same state", || house.states_agree(3));
}

#[test]
fn without_a_majority_that_takes_it_no_key_becomes_current_and_a_later_attempt_does() {
    let house = at_work();
    let leads = leader(&house).unwrap();
    let others: Vec<&str> = ["s1", "s2", "s3"].into_iter().filter(|name| **name != leads).collect();
    // When: both others cannot keep the key.
    for name in &others {
        std::fs::create_dir(house.path(name).join("authority.next.new")).unwrap();
    }
    let refused = rekey(&house, &house.path("root.key"));
    // Then: it is refused, and the key of before issues.
    assert_ne!(refused.status, 0);
    assert!(refused.errors.contains("1 of 3 server(s) that vote have taken"), "{}", refused.errors);
    assert_eq!(issuing_key(&house)["serial"], 1);
    house.start_worker("w2");
    wait_until("a node enters", || house.workers() == 2);
    // Also after a restart with what is left over.
    house.kill_9(&leads);
    house.start_server(&leads);
    wait_until("somebody leads", || leader(&house).is_some());
    for name in &others {
        std::fs::remove_dir(house.path(name).join("authority.next.new")).unwrap();
    }
    let first = issuer(&house, "w1");
    wait_until("all servers have the same state", || house.states_agree(3));
    rekeyed(&house, 2);
    wait_for_next(&house, &["s1", "s2", "s3", "w1", "w2"], &first);
}

#[test]
fn a_cluster_that_is_restored_has_an_issuing_key_of_its_own_and_proves_what_came_under_all_before() {
    let house = House::founded(1);
    std::fs::rename(house.path("s1").join("root.key"), house.path("root.key")).unwrap();
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    run(&house, "first");
    let first = issuer(&house, "w1");
    rekeyed(&house, 2);
    wait_for_next(&house, &["s1", "w1"], &first);
    run(&house, "second");
    let taken = house.grey(&["cluster", "snapshot", "taken"]);
    assert_eq!(taken.status, 0, "{}", taken.errors);
    house.kill_9("s1");
    house.kill_9("w1");
    // When: it goes on from a snapshot in another directory.
    let address = house.address(1).replace("https://", "");
    let arguments = [
        "cluster",
        "restore",
        "taken",
        "--root-key",
        "root.key",
        "--listen",
        &address,
        "--advertise",
        &address,
    ];
    let data = house.path("restored");
    let mut command = house.command(&[&arguments[..], &["--name", "s1"]].concat());
    let restored = crate::support::Ran::of(command.env("GREY_DATA", &data).output().unwrap());
    assert_eq!(restored.status, 0, "{}", restored.errors);
    std::fs::copy(data.join("operator.token"), house.path("operator.token")).unwrap();
    let mut server = house.server_command(1, None);
    server.env("GREY_DATA", &data);
    house.spawn("restored", server);
    wait_until("it leads", || leader(&house).is_some());
    // Then: nobody of before knows its key, and everything of before is proved.
    let key = issuing_key(&house);
    assert_eq!((key["serial"].as_u64(), key["servers_left"].as_u64()), (Some(1), Some(0)), "{key}");
    assert_ne!(secret(&house, "restored"), secret(&house, "s1"));
    prove(&house, "t1", "first.json");
    prove(&house, "t2", "second.json");
    // Then: another key follows that one too.
    rekeyed(&house, 2);
    prove(&house, "t1", "first.json");
    prove(&house, "t2", "second.json");
}

#[test]
fn a_certificate_that_the_disk_does_not_take_is_used_all_the_same_and_asked_for_once() {
    let house = House::founded(1);
    std::fs::rename(house.path("s1").join("root.key"), house.path("root.key")).unwrap();
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let vouching = |file: &str| -> Value {
        let proof: Value = serde_json::from_slice(&std::fs::read(house.path(file)).unwrap()).unwrap();
        proof["log"]["servers"].clone()
    };
    run(&house, "before");
    prove(&house, "t1", "before.json");
    let first = issuer(&house, "s1");
    let said = |what: &[&str]| {
        let log = house.said("s1");
        log.lines().filter(|line| what.iter().all(|what| line.contains(what))).count()
    };
    // When: the server is to have another certificate, and cannot write it.
    std::fs::create_dir(house.path("s1").join("tls.chain.new")).unwrap();
    rekeyed(&house, 2);
    wait_until("it has tried to keep it twice", || said(&["in use and not on the disk"]) >= 2);
    // Then: it is in use.
    assert_eq!(issuer(&house, "s1"), first);
    run(&house, "after");
    prove(&house, "t2", "after.json");
    assert_ne!(vouching("after.json"), vouching("before.json"));
    // Then: the cluster was asked for it once, however often it was tried to keep it.
    let asked = || said(&["a node is let in", "name=\"s1\"", "renews=true"]);
    assert_eq!(asked(), 1, "{}", house.said("s1"));
    // When: the server can write. Then: that is kept which it has.
    std::fs::remove_dir(house.path("s1").join("tls.chain.new")).unwrap();
    wait_for_next(&house, &["s1"], &first);
    assert_eq!(asked(), 1, "{}", house.said("s1"));
}
