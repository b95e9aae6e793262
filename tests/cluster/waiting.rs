//! What waits for a worker that the cluster does not have.

use std::fs::File;
use std::process::Stdio;

use crate::house::House;
use crate::support::{finish, kill, wait_until};

#[test]
fn a_task_that_no_worker_could_run_says_so_while_it_waits() {
    // Given: a cluster whose only worker has far less memory than a task asks for.
    let house = House::founded(1);
    house.start_worker("w1");
    wait_until("the worker is there", || house.workers() == 1);
    // When: it is run.
    let said = house.path("said");
    let mut command = house.command(&["run", "--memory", "200TiB", "--", "true"]);
    let waits = command.stdout(Stdio::null()).stderr(File::create(&said).unwrap()).spawn().unwrap();
    // Then: whoever waits for it reads why, and nobody estimates when it will run.
    let text = || std::fs::read_to_string(&said).unwrap();
    wait_until("it says why it waits", || {
        text().contains("waits: no worker has the 219902325555200 bytes of memory")
    });
    let explained = house.json(&["task", "explain", "t1"]).unwrap();
    assert_eq!(explained["feasible"], false, "{explained}");
    assert_eq!(explained.get("estimated_wait_ms"), None, "{explained}");
    let shown = house.grey(&["task", "explain", "t1"]).text;
    assert!(shown.contains("estimate  none: it starts when a worker enters that can run it"), "{shown}");
    kill(i32::try_from(waits.id()).unwrap(), "INT");
    assert_ne!(finish(waits).status, 0);
    assert_eq!(text().matches("waits:").count(), 1, "once: {}", text());
}
