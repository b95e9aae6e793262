//! What a task on another machine writes is read while it runs.

use std::fs::File;

use crate::house::House;
use crate::leader;
use crate::support::{finish, wait_until};

#[test]
fn a_stream_is_followed_while_its_task_runs_elsewhere_also_when_the_leader_is_lost_meanwhile() {
    // Given: a task that has written something, and waits.
    let house = House::of_three();
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    let go = house.path("go");
    let script =
        format!("echo one; until test -e '{}'; do sleep 0.05; done; echo two; echo err >&2", go.display());
    let file = house.task_file("talks", &script);
    let submitted = house.json(&["submit", file.to_str().unwrap()]).unwrap();
    assert_eq!(submitted["job"], "j1");
    wait_until("it has written something", || house.grey(&["task", "logs", "t1"]).text == "one\n");
    // When: it is followed, and the leader is lost.
    let told = house.path("told");
    let mut command = house.command(&["task", "logs", "t1", "--follow"]);
    let following =
        command.stdout(File::create(&told).unwrap()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_until("what there is is printed", || std::fs::read_to_string(&told).unwrap() == "one\n");
    house.kill_9(&leader(&house).unwrap());
    wait_until("another one leads", || leader(&house).is_some());
    wait_until("it still runs", || house.grey(&["task", "logs", "t1"]).text == "one\n");
    std::fs::write(&go, "").unwrap();
    // Then: the rest follows, and nothing comes twice.
    let ran = finish(following);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "one\ntwo\n");
    let kept = house.grey(&["task", "logs", "t1", "--stderr"]);
    assert_eq!(kept.text, "err\n", "{}", kept.errors);
}

#[test]
fn whoever_reads_slowly_gets_all_of_it() {
    // Given: more than what lies between the ends of a connection.
    const BYTES: usize = 40_000_000;
    let house = House::founded(1);
    house.start_worker("w1");
    let script = format!("head -c {BYTES} /dev/zero | tr '\\0' x");
    let file = house.task_file("much", &script);
    assert_eq!(house.grey(&["submit", file.to_str().unwrap(), "--wait"]).status, 0);
    // When: nothing is read for longer than a node that is gone is waited for, as in a pager.
    let mut command = house.command(&["task", "logs", "t1"]);
    let mut reading = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(6));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut reading.stdout.take().unwrap(), &mut read).unwrap();
    // Then: all of it came.
    assert!(reading.wait().unwrap().success());
    assert_eq!(read.len(), BYTES);
}
