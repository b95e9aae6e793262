//! Kill -9, damage, full disks: what was acknowledged stays.

use std::process::{Command, Stdio};

use grey_api::{JobCreated, JobStatus, TaskList};

use crate::support::{Home, NDJSON, Ran, batch, finish, processes_with, wait_until};

#[test]
fn a_killed_node_goes_on_with_the_same_data_and_every_acknowledged_task_ends_once() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let created: JobCreated = home.post("/v1/tasks", NDJSON, batch(200, "echo $GREY_TASK"), None).unwrap();
    assert_eq!((created.job.as_str(), created.first_task.as_str(), created.tasks), ("j2", "t2", 200));
    // When: the process is killed again and again while the batch runs.
    for round in 0..3 {
        let status: JobStatus = home.get("/v1/jobs/j2").unwrap();
        let before = status.counts.completed;
        wait_until("some tasks have completed", || {
            let status: JobStatus = home.get("/v1/jobs/j2").unwrap();
            status.ended || status.counts.completed > before
        });
        home.kill_9();
        let ran = home.grey(&["run", "-q", "--", "echo", "again"]);
        assert_eq!((ran.status, ran.text.as_str()), (0, "again\n"), "round {round}: {}", ran.errors);
    }
    // Then: everything acknowledged completes, each task with one accepted result, and ids go on.
    assert_eq!(home.grey(&["job", "wait", "j2"]).status, 0);
    let job: JobStatus = home.get("/v1/jobs/j2").unwrap();
    assert_eq!((job.counts.completed, job.tasks, job.ended), (200, 200, true));
    let tasks: TaskList = home.get("/v1/jobs/j2/tasks?limit=1000").unwrap();
    assert_eq!(tasks.tasks.len(), 200);
    for task in &tasks.tasks {
        let result = task.result.as_ref().unwrap();
        assert_eq!((task.state.as_str(), result.attempt), ("completed", task.attempt));
        assert_eq!(result.stdout.size_bytes as usize, task.id.len() + 1);
    }
    let proof = home.path("p.json");
    let last = &tasks.tasks[199];
    assert_eq!(home.grey(&["task", "proof", &last.id, "--out", proof.to_str().unwrap()]).status, 0);
    assert_eq!(home.grey(&["verify", proof.to_str().unwrap()]).status, 0);
    let job: JobCreated = home.post("/v1/tasks", NDJSON, batch(1, "true"), None).unwrap();
    assert_eq!(job.job, "j6");
}

#[test]
fn a_killed_node_takes_its_tasks_with_it_and_they_are_tried_again() {
    let home = Home::new();
    let marker = format!("600.{}", std::process::id());
    let mut child = home
        .command(&[
            "run",
            "-q",
            "--",
            "sh",
            "-c",
            &format!("test $GREY_ATTEMPT -gt 1 && echo second || sleep {marker}"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the task runs", || processes_with(&format!("sleep\0{marker}")).len() == 1);
    home.kill_9();
    wait_until("its processes are gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert!(child.try_wait().unwrap().is_none(), "the one who waits does not give up");
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let ran = finish(child);
    assert_eq!((ran.status, ran.text.as_str()), (0, "second\n"), "{}", ran.errors);
}

/// A copy of a data directory, without what only a running process has.
fn copied(from: &Home) -> Home {
    let to = Home::new();
    let copy = Command::new("cp").arg("-r").arg(from.data()).arg(to.data()).status().unwrap();
    assert!(copy.success());
    to
}

#[test]
fn a_damaged_file_is_named_and_never_read_as_something_else() {
    let home = Home::new();
    let script = "head -c 20000 /dev/zero | tr '\\0' x";
    for _ in 0..3 {
        assert_eq!(home.grey(&["run", "-q", "--", "sh", "-c", script]).status, 0);
    }
    let expected = vec![b'x'; 20_000];
    assert_eq!(home.grey(&["down"]).status, 0);
    let mut files: Vec<String> = [
        "log.redb",
        "state.redb",
        "history-00000000.seg",
        "tree.hashes",
        "node.key",
        "root.key",
        "certificates.json",
    ]
    .map(str::to_owned)
    .to_vec();
    let blob = walk(&home.data().join("blobs"));
    files.push(blob[0].strip_prefix(home.data()).unwrap().to_string_lossy().into_owned());
    for file in files {
        let damaged = copied(&home);
        let path = damaged.data().join(&file);
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len().min(4_096);
        for position in [length / 3, length / 2, length - 2] {
            bytes[position] ^= 0x11;
        }
        std::fs::write(&path, bytes).unwrap();
        for arguments in [&["task", "logs", "t2"][..], &["task", "proof", "t2", "--out", "p.json"]] {
            let ran = damaged.grey(arguments);
            let is_logs = arguments[1] == "logs";
            if ran.status == 0 {
                assert!(!is_logs || ran.stdout == expected, "{file}: other content");
                if !is_logs {
                    let root = home.data().join("root.json");
                    let verified = damaged.grey(&["verify", "--root", root.to_str().unwrap(), "p.json"]);
                    assert_eq!(verified.status, 0, "{file}: {}", verified.text);
                }
                continue;
            }
            let base = file.rsplit('/').next().unwrap();
            let said = format!("{}{}", ran.errors, damaged.log());
            assert!(said.contains(base), "{file}: {said}");
            assert!(!ran.errors.contains("panicked"), "{file}: {}", ran.errors);
        }
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

#[test]
fn a_full_disk_refuses_new_work_and_loses_nothing() {
    let home = Home::new();
    let binary = env!("CARGO_BIN_EXE_grey");
    let disk = home.path("disk");
    std::fs::create_dir(&disk).unwrap();
    // A small disk of its own, in a mount namespace that ends with the script.
    let script = format!(
        "set -u
         mount -t tmpfs -o size=24m none '{disk}' || exit 77
         export GREY_DATA='{disk}/data'
         '{binary}' -q run --proof '{disk}/p.json' -- echo before || exit 10
         '{binary}' -q run -- sh -c \"echo held; until test -e '{go}'; do sleep 0.05; done\" > '{held}' 2>&1 &
         held=$!
         tries=0
         until '{binary}' -q task status t2 2>/dev/null | grep -q running; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 20; sleep 0.05
         done
         [ -e '{disk}/data/reserve' ] || exit 21
         head -c 30m /dev/zero > '{disk}/fill' 2>/dev/null
         tries=0
         while [ -e '{disk}/data/reserve' ]; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 22; sleep 0.05
         done
         tries=0
         while '{binary}' -q run -- true 2> '{disk}/refused'; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 11
         done
         '{binary}' -q run -- true 2>&1 | grep -q disk_full || exit 12
         : > '{go}'; wait $held || exit 23
         grep -q '^held$' '{held}' || exit 24
         '{binary}' -q task logs t1 | grep -q before || exit 13
         '{binary}' -q verify '{disk}/p.json' > /dev/null || exit 14
         rm '{disk}/fill'
         tries=0
         until [ -e '{disk}/data/reserve' ]; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 25; sleep 0.05
         done
         tries=0
         until '{binary}' -q run -- echo after 2> /dev/null | grep -q after; do
             tries=$((tries + 1)); [ $tries -lt 200 ] || exit 15; sleep 0.05
         done
         '{binary}' -q run --output-limit 1GiB -- head -c 100m /dev/zero > /dev/null 2>&1 && exit 16
         '{binary}' -q run -- true || exit 17
         '{binary}' -q task logs t1 | grep -q before || exit 18
         '{binary}' -q down; grep -q panicked '{disk}/data/grey.log' && exit 19
         exit 0",
        disk = disk.display(),
        go = home.path("go").display(),
        held = home.path("held").display(),
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--map-root-user", "sh", "-c", &script]).stdin(Stdio::null());
    let ran = Ran::of(unshare.output().unwrap());
    if ran.status == 77 || ran.errors.contains("unshare failed") || ran.errors.contains("unshare: ") {
        // The simulated disk of grey-store's tests is full where a machine does not allow this one.
        println!("no disk of its own can be mounted here: {}", ran.errors);
        return;
    }
    assert_eq!(ran.status, 0, "{}{}", ran.text, ran.errors);
}

/// Starts the binary and leaves it to itself.
fn start(mut command: Command) -> std::process::Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_run_ends_in_bounded_time_when_its_cluster_is_ended_and_its_task_goes_on_at_the_next_start() {
    // Given a run whose task waits for a file.
    let home = Home::new();
    let gate = home.path("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; echo done", gate.display());
    let run = home.command(&["run", "--", "sh", "-c", &script]);
    let run = start(run);
    wait_until("the task runs", || {
        home.get::<grey_api::TaskStatus>("/v1/tasks/t1").is_ok_and(|task| task.state == "running")
    });
    // When the cluster is ended, then the run says how to come back, and does not wait for ever.
    assert_eq!(home.grey(&["down"]).status, 0);
    let ran = finish(run);
    assert_eq!(ran.status, 125, "{}", ran.errors);
    assert!(ran.errors.contains("the local cluster has ended"), "{}", ran.errors);
    assert!(ran.errors.contains("`grey task wait t1` starts it again"), "{}", ran.errors);
    // And the task is not lost.
    std::fs::write(&gate, "").unwrap();
    assert_eq!(home.grey(&["task", "wait", "t1"]).status, 0);
    assert_eq!(home.grey(&["task", "logs", "t1"]).text, "done\n");
}

#[test]
fn runs_and_downs_at_once_lose_nothing_and_hang_nowhere() {
    let home = Home::new();
    let rounds: Vec<_> = (0..6)
        .map(|_| (start(home.command(&["run", "--", "true"])), start(home.command(&["down"]))))
        .collect();
    let mut accepted = 0;
    for (run, down) in rounds {
        let ran = finish(run);
        assert!(ran.status == 0 || ran.status == 125, "{}", ran.errors);
        accepted += u64::from(ran.errors.contains("(job j"));
        let ended = finish(down);
        assert_eq!(ended.status, 0, "{}", ended.errors);
    }
    // Whatever was accepted is completed by the cluster that is started next.
    let status = home.json(&["cluster", "status", "--json"]);
    let submitted = status["jobs_submitted"].as_u64().unwrap();
    assert!(submitted >= accepted, "{submitted} jobs are known, {accepted} were acknowledged");
    for number in 1..=submitted {
        assert_eq!(home.grey(&["job", "wait", &format!("j{number}")]).status, 0);
    }
}
