//! A proof rests on what a quorum of the servers signed, and is there without the others.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::house::House;
use crate::leader;
use crate::support::{kill, wait_until};

/// Longer than a proof may wait for a server that does not answer, and shorter than anybody would.
const PROMPT: Duration = Duration::from_secs(10);

/// Runs a command and keeps its proof.
fn prove(house: &House, name: &str) {
    let path = house.path(name);
    let ran = house.grey(&["run", "--proof", path.to_str().unwrap(), "--", "true"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
}

/// What `grey verify` says of a proof, and whether it holds.
fn verified(house: &House, name: &str, arguments: &[&str]) -> (Value, bool) {
    let (root, proof) = (house.path("root.json"), house.path(name));
    let mut all = vec!["verify", "--json", "--root", root.to_str().unwrap(), proof.to_str().unwrap()];
    all.extend(arguments);
    let ran = house.grey(&all);
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.errors));
    assert_eq!(said["holds"], ran.status == 0);
    (said, ran.status == 0)
}

fn cosigners(house: &House, name: &str) -> usize {
    let (said, holds) = verified(house, name, &[]);
    assert!(holds, "{said}");
    said["cosigners"].as_array().unwrap().len()
}

/// Makes proofs until one has the signatures of all three: it is made soon after a majority has signed, without whoever comes later.
fn wait_for_all(house: &House, name: &str) {
    wait_until("all three sign", || {
        prove(house, name);
        cosigners(house, name) == 3
    });
}

/// The checks that a proof does not pass when so many servers are asked for.
fn refused(house: &House, name: &str, quorum: usize) -> Vec<String> {
    let (said, _) = verified(house, name, &["--quorum", &quorum.to_string()]);
    let checks = said["checks"].as_array().unwrap().iter();
    let refused = checks.filter(|check| !check["refusal"].is_null());
    refused.map(|check| check["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_proof_is_cosigned_by_the_servers_that_are_there_and_made_without_those_that_are_not() {
    // Given: three servers that vote.
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let root = house.grey(&["cluster", "root"]);
    assert_eq!(root.status, 0, "{}", root.errors);
    std::fs::write(house.path("root.json"), root.stdout).unwrap();
    // Then: all of them sign the log's root, and no more than there are can be asked for.
    wait_for_all(&house, "three.json");
    assert!(refused(&house, "three.json", 3).is_empty());
    assert_eq!(refused(&house, "three.json", 4), ["quorum"]);
    let path = house.path("three.json");
    let root = house.path("root.json");
    let ran = house.grey(&["verify", "--root", root.to_str().unwrap(), path.to_str().unwrap()]);
    assert!(ran.text.contains("3 certified server(s) signed the log's root"), "{}", ran.text);
    assert!(ran.text.contains("How many servers the cluster had is not in a proof"), "{}", ran.text);
    // When: one hangs, a proof is there all the same, and promptly.
    let follower = ["s1", "s2", "s3"].into_iter().find(|name| leader(&house).as_deref() != Some(name));
    let follower = follower.unwrap();
    kill(house.process_id(follower), "STOP");
    let begun = Instant::now();
    prove(&house, "hung.json");
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    assert_eq!(cosigners(&house, "hung.json"), 2);
    // When: it is gone.
    kill(house.process_id(follower), "CONT");
    house.kill_9(follower);
    prove(&house, "two.json");
    assert_eq!(cosigners(&house, "two.json"), 2);
    assert!(refused(&house, "two.json", 2).is_empty());
    assert_eq!(refused(&house, "two.json", 3), ["quorum"]);
    // Then: a root file that asks for three refuses it, and takes what three have signed.
    let asking = house.grey(&["cluster", "root", "--quorum", "3"]);
    assert_eq!(asking.status, 0, "{}", asking.errors);
    std::fs::write(house.path("asking.json"), asking.stdout).unwrap();
    for (name, status) in [("two.json", 1), ("three.json", 0)] {
        let (root, proof) = (house.path("asking.json"), house.path(name));
        let ran = house.grey(&["verify", "--root", root.to_str().unwrap(), proof.to_str().unwrap()]);
        assert_eq!(ran.status, status, "{name}: {}{}", ran.text, ran.errors);
    }
    // When: it is back, it signs what it missed, too, as soon as it is waited for again.
    house.start_server(follower);
    wait_until("all servers have the same state", || house.states_agree(3));
    wait_for_all(&house, "again.json");
    // A proof of before is as it was.
    assert_eq!(cosigners(&house, "two.json"), 2);
}

#[test]
fn a_server_whose_log_says_something_else_does_not_sign_and_says_so() {
    // Given: three servers that have each written down what the log of reports is.
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    std::fs::write(house.path("root.json"), house.grey(&["cluster", "root"]).stdout).unwrap();
    // Two reports, so that the root of three rests on a hash that was written before.
    prove(&house, "first.json");
    wait_for_all(&house, "before.json");
    house.fill_log();
    wait_until("all servers have the same state", || house.states_agree(3));
    // When: one of them finds something else written there.
    let follower = ["s1", "s2", "s3"].into_iter().find(|name| leader(&house).as_deref() != Some(name));
    let follower = follower.unwrap();
    house.terminate(follower);
    let hashes = house.path(follower).join("tree.hashes");
    let mut bytes = std::fs::read(&hashes).unwrap();
    assert!(!bytes.is_empty());
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&hashes, bytes).unwrap();
    house.start_server(follower);
    wait_until("all servers have the same state", || house.states_agree(3));
    // Then: the others sign without it.
    prove(&house, "after.json");
    assert_eq!(cosigners(&house, "after.json"), 2);
    // The proof was made as soon as a majority had signed; it may have been asked after that.
    wait_until("it says so", || house.said(follower).contains("a server has another log than this one"));
    assert_eq!(cosigners(&house, "before.json"), 3);
}
