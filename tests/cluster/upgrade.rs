//! Two versions side by side. Servers that play the earlier one are told to understand no more than it does.

use serde_json::Value;

use crate::house::House;
use crate::support::wait_until;

const NEW: u64 = grey_core::NEWEST_FEATURE_LEVEL as u64;
/// One before what quotas came with.
const EARLIER: u16 = 3;

fn level(house: &House) -> Value {
    house.json(&["cluster", "status"]).unwrap()["feature_level"].clone()
}

fn understood(house: &House, server: &str) -> Option<u64> {
    house.node(server)?["feature_level"].as_u64()
}

#[test]
fn a_cluster_is_upgraded_one_server_after_the_other_while_it_works_and_then_goes_back_no_more() {
    // Given: servers of the earlier version.
    let house = House::of_three_that_understand(EARLIER);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    wait_until("every server has said what it runs", || {
        ["s1", "s2", "s3"].into_iter().all(|server| understood(&house, server) == Some(EARLIER.into()))
    });
    let quota = ["tenant", "quota", "default", "--queued", "5"];
    // When: they become the new version one at a time, with both side by side meanwhile.
    house.set_limit(None);
    for server in ["s1", "s2", "s3"] {
        // Then: what only the new version understands is refused, and the log has nothing of it.
        let refused = house.grey(&quota);
        assert_eq!(refused.status, 3, "{}", refused.errors);
        assert!(refused.errors.contains("feature level 4 is needed and 3 is in force"), "{}", refused.errors);
        let nothing = house.grey(&["cluster", "upgrade"]);
        assert_eq!(nothing.status, 0, "{}", nothing.errors);
        assert!(nothing.errors.contains("nothing was changed"), "{}", nothing.errors);
        house.terminate(server);
        house.start_server(server);
        wait_until("it is the new version", || understood(&house, server) == Some(NEW));
        let ran = house.grey(&["run", "--", "echo", server]);
        assert_eq!((ran.status, ran.text.trim()), (0, server), "{}", ran.errors);
    }
    assert_eq!(level(&house), EARLIER);
    let status = house.grey(&["cluster", "status"]);
    assert!(status.text.contains("`grey cluster upgrade` puts it in force"), "{}", status.text);
    // Then: what the new version brought comes into force when it is asked for.
    let raised = house.json(&["cluster", "upgrade"]).unwrap();
    assert_eq!(
        (raised["before"].as_u64(), raised["feature_level"].as_u64()),
        (Some(EARLIER.into()), Some(NEW))
    );
    let set = house.grey(&quota);
    assert_eq!(set.status, 0, "{}", set.errors);
    assert!(set.text.contains("5 task(s) may wait"), "{}", set.text);
    wait_until("all servers have the same state", || house.states_agree(3));
    // When: a server goes back to the earlier version.
    house.terminate("s3");
    house.set_limit(Some(EARLIER));
    let back = house.server_command(3, None).output().unwrap();
    // Then: it says why it does not run, and harms nobody.
    let errors = String::from_utf8_lossy(&back.stderr);
    assert_eq!(back.status.code(), Some(1), "{errors}");
    assert!(errors.contains("understands up to 3; install a newer version"), "{errors}");
    house.set_limit(None);
    house.start_server("s3");
    wait_until("all servers have the same state", || house.states_agree(3));
}

#[test]
fn a_new_cluster_begins_at_the_newest_level_and_a_tenant_s_quota_holds_in_it() {
    let house = House::founded(1);
    wait_until("the newest level is in force", || level(&house) == NEW);
    let set =
        house.json(&["tenant", "quota", "default", "--queued", "3", "--rate", "2", "--burst", "4"]).unwrap();
    assert_eq!(
        (set["quota"]["queued_tasks"].as_u64(), set["quota"]["rate"]["burst_tasks"].as_u64()),
        (Some(3), Some(4))
    );
    let many = |count: u32| {
        let task = serde_json::json!({ "name": "t", "command": ["true"], "count": count });
        let job = serde_json::json!({ "version": 1, "name": "many", "task": [task] });
        let path = house.path(&format!("{count}.json"));
        std::fs::write(&path, job.to_string()).unwrap();
        house.grey(&["submit", path.to_str().unwrap(), "--json"])
    };
    // There is no worker: everything waits.
    assert_eq!(many(3).status, 0);
    let refused = many(1);
    assert_eq!(refused.status, 3, "{}", refused.errors);
    assert!(refused.errors.contains("the limit is 3"), "{}", refused.errors);
    // What is not named stays; `none` takes a bound away.
    let changed =
        house.json(&["tenant", "quota", "default", "--queued", "none", "--weight", "2000"]).unwrap();
    assert_eq!((changed["weight_milli"].as_u64(), changed["quota"].get("queued_tasks")), (Some(2_000), None));
    let refused = many(5);
    assert_eq!(refused.status, 3, "{}", refused.errors);
    assert!(refused.errors.contains("the tenant may submit 4 at once"), "{}", refused.errors);
    // Nothing to change is no change.
    let nothing = house.grey(&["tenant", "quota", "default"]);
    assert_eq!(nothing.status, 2, "{}", nothing.errors);
    let unknown = house.grey(&["tenant", "quota", "nobody", "--queued", "1"]);
    assert!(unknown.status != 0 && unknown.errors.contains("nobody"), "{}", unknown.errors);
}
