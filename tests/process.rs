//! The real binary: what a user meets, and what is left when something is killed, full, taken or damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "process/choice.rs"]
mod choice;
#[path = "process/contexts.rs"]
mod contexts;
#[path = "process/door.rs"]
mod door;
#[path = "process/faults.rs"]
mod faults;
#[path = "process/flows.rs"]
mod flows;
#[path = "process/follow.rs"]
mod follow;
#[path = "process/formats.rs"]
mod formats;
#[path = "process/held.rs"]
mod held;
#[path = "process/http.rs"]
mod http;
#[path = "process/metrics.rs"]
mod metrics;
#[path = "process/retention.rs"]
mod retention;
mod support;
#[path = "process/tenants.rs"]
mod tenants;
#[path = "process/top.rs"]
mod top;
#[path = "process/traces.rs"]
mod traces;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use grey_api::{ErrorCode, JobCreated, JobStatus};
use grey_proof::StreamDigest;
use serde_json::Value;
use support::{Home, Ran, code, finish, is_alive, kill, processes_with, wait_until};

#[test]
fn a_run_returns_the_task_s_streams_and_status_and_says_the_rest_on_stderr() {
    let home = Home::new();
    let ran =
        home.grey(&["run", "--proof", "proof.json", "--", "sh", "-c", "printf out; printf err >&2; exit 3"]);
    assert_eq!(ran.status, 3);
    assert_eq!(ran.stdout, b"out");
    for said in [
        "err",
        "data",
        "task t1 (job j1)",
        "exited with 3",
        "attempt 1",
        "peak memory",
        "sandbox",
        "proof proof.json",
        "local root",
        "grey verify proof.json",
    ] {
        assert!(ran.errors.contains(said), "`{said}` is missing in {}", ran.errors);
    }
    assert!(ran.errors.contains(&*home.data().to_string_lossy()));

    let quiet = home.grey(&["run", "--quiet", "--", "sh", "-c", "printf out; printf err >&2"]);
    assert_eq!((quiet.status, quiet.text.as_str(), quiet.errors.as_str()), (0, "out", "err"));
}

#[test]
fn the_exit_status_says_whose_failure_it_was() {
    let home = Home::new();
    for (status, arguments) in [
        (0, &["run", "--", "true"][..]),
        (42, &["run", "--", "sh", "-c", "exit 42"]),
        (124, &["run", "--timeout", "200ms", "--", "sleep", "60"]),
        (125, &["run", "--tenant", "nobody", "--", "true"]),
        (125, &["run", "--output-limit", "10B", "--", "echo", "more than ten bytes"]),
        (125, &["run", "--cpu", "100000", "--", "true"]),
        (126, &["run", "--", "/etc/passwd"]),
        (127, &["run", "--", "no-such-program-anywhere"]),
        (137, &["run", "--", "sh", "-c", "kill -9 $$"]),
        (2, &["run", "--no-such-flag", "--", "true"]),
        (2, &["run", "--memory", "64", "--", "true"]),
        (2, &["run"]),
        (2, &["run", "--proof", "no/such/directory/p.json", "--", "true"]),
        (1, &["task", "status", "t999"]),
        (1, &["task", "logs", "t999"]),
        (3, &["task", "status", "j1"]),
        (2, &["task", "status", "../x"]),
        (2, &["task", "status", "t1 OR 1=1"]),
        (2, &["verify", "--root", "absent.json", "absent.json"]),
    ] {
        let ran = home.grey(arguments);
        assert_eq!(ran.status, status, "{arguments:?}: {}", ran.errors);
        assert!(!ran.errors.contains("panicked"), "{arguments:?}: {}", ran.errors);
        if status != 0 && status != 42 {
            assert!(!ran.errors.trim().is_empty(), "{arguments:?} says nothing");
        }
    }
    assert!(!home.log().contains("panicked"), "{}", home.log());
}

#[test]
fn a_task_sees_what_it_is_promised_and_nothing_of_the_shell() {
    let home = Home::new();
    let output = home
        .command(&["run", "-q", "--env", "LEVEL=9", "--", "env"])
        .env("SECRET_OF_THE_SHELL", "1")
        .output()
        .unwrap();
    let text = Ran::of(output).text;
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    let mut promised = [
        "GREY_ATTEMPT",
        "GREY_INDEX",
        "GREY_JOB",
        "GREY_OUT",
        "GREY_TASK",
        "HOME",
        "LANG",
        "LEVEL",
        "PATH",
        "TMPDIR",
    ]
    .to_vec();
    promised.sort_unstable();
    assert_eq!(names, promised, "{text}");
    assert!(text.contains("GREY_TASK=t1") && text.contains("LEVEL=9"));
}

#[test]
fn inputs_travel_and_are_part_of_what_is_proved() {
    let home = Home::new();
    std::fs::create_dir_all(home.path("set/deep")).unwrap();
    std::fs::write(home.path("a.txt"), "alpha\n").unwrap();
    std::fs::write(home.path("set/deep/b.txt"), "beta\n").unwrap();
    std::fs::write(home.path("set/tool"), "#!/bin/sh\necho tool\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path("set/tool"), executable).unwrap();
    std::fs::write(home.path("large"), vec![b'z'; 20 << 20]).unwrap();
    let script = "cat a.txt set/deep/b.txt; ./set/tool; wc -c < large; cat";
    let arguments =
        ["run", "--in", "a.txt", "--in", "set", "--in", "large", "--stdin", "-", "--", "sh", "-c", script];
    let run = |stdin: &str| {
        let mut command = home.command(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        finish(child)
    };
    let first = run("from the shell\n");
    assert_eq!(first.text, "alpha\nbeta\ntool\n20971520\nfrom the shell\n", "{}", first.errors);
    assert!(first.errors.contains("sent 5 file(s)"), "{}", first.errors);
    let second = run("something else\n");
    assert!(second.errors.contains("sent 1 file(s)"), "what is there is not sent again: {}", second.errors);
    let key = |task: &str| {
        let proof: Value = serde_json::from_slice(&home.grey(&["task", "proof", task, "-q"]).stdout).unwrap();
        proof["statement"]["predicate"]["exec_key"].as_str().unwrap().to_owned()
    };
    assert_ne!(key("t1"), key("t2"), "another standard input is another execution");

    for (arguments, status) in [
        (&["run", "--in", "absent", "--", "true"][..], 2),
        (&["run", "--in", "/dev/null", "--", "true"], 2),
        (&["run", "--stdin", "absent", "--", "true"], 2),
        (&["run", "--in", "a.txt", "--in", "./a.txt", "--", "true"], 125),
    ] {
        let ran = home.grey(arguments);
        assert_eq!(ran.status, status, "{arguments:?}: {}", ran.errors);
    }
    let body = format!(
        "{{\"command\":[\"true\"],\"inputs\":[{{\"path\":\"x\",\"digest\":\"{}\",\"size_bytes\":1}}]}}",
        "0".repeat(64)
    );
    let refused = home.post::<JobCreated>("/v1/tasks", "application/json", body, None).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::InvalidRequest);
    assert!(refused.to_string().contains("was not sent"), "{refused}");
}

#[test]
fn bytes_that_are_no_text_pass_unchanged() {
    let home = Home::new();
    let ran = home.grey(&["run", "-q", "--", "printf", "\\377\\000\\200a\\n\\376"]);
    assert_eq!(ran.stdout, b"\xff\x00\x80a\n\xfe");
    let ran = home.grey(&[
        "run",
        "-q",
        "--out",
        "*",
        "--results",
        "r",
        "--",
        "sh",
        "-c",
        "printf x > \"$GREY_OUT/$(printf 'a\\377b')\"",
    ]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xffb");
    assert_eq!(std::fs::read(home.path("r").join(name)).unwrap(), b"x");
}

#[test]
fn a_gigabyte_of_output_passes_in_bounded_memory_and_the_default_limit_stops_it() {
    let home = Home::new();
    let arguments = ["run", "-q", "--output-limit", "2GiB", "--", "head", "-c", "1073741824", "/dev/zero"];
    let mut child = home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut digest, mut piece) = (StreamDigest::new(), vec![0; 1 << 20]);
    let mut stdout = child.stdout.take().unwrap();
    loop {
        let read = stdout.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        digest.update(&piece[..read]);
    }
    let ran = finish(child);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let (length, digest) = digest.finish();
    assert_eq!(length, 1 << 30);
    let result = home.json(&["task", "result", "t1", "--json", "-q"]);
    assert_eq!(result["stdout"]["digest"], digest.to_string());
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 400 * 1024, "the node took {peak_kib} KiB");

    let refused = home.grey(&["run", "--", "head", "-c", "1073741824", "/dev/zero"]);
    assert_eq!(refused.status, 125);
    assert!(refused.errors.contains("67108864"), "the limit is not named: {}", refused.errors);
}

#[test]
fn shells_that_start_the_cluster_at_once_share_it_and_an_interrupt_in_one_leaves_the_others_alone() {
    let home = Home::new();
    let spawn = |script: &str| {
        let mut command = home.command(&["run", "--", "sh", "-c", script]);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let marker = format!("601.{}", std::process::id());
    let interrupted = spawn(&format!("sleep {marker}"));
    let others: Vec<_> = (0..3).map(|n| spawn(&format!("sleep 0.3; echo {n}"))).collect();
    wait_until("the task runs", || !processes_with(&format!("sleep\0{marker}")).is_empty());
    // The whole process group, as a terminal does it: the background process must not be in it.
    kill(-i32::try_from(interrupted.id()).unwrap(), "INT");
    let ran = finish(interrupted);
    assert_eq!(ran.status, 130, "{}", ran.errors);
    assert!(ran.errors.contains("cancel"), "{}", ran.errors);
    for (number, other) in others.into_iter().enumerate() {
        let ran = finish(other);
        assert_eq!((ran.status, ran.text), (0, format!("{number}\n")), "{}", ran.errors);
    }
    wait_until("the cancelled task is gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert_eq!(home.json(&["cluster", "status", "--json"])["tasks_submitted"], 4);
}

#[test]
fn a_second_interrupt_detaches_and_says_how_to_come_back() {
    let home = Home::new();
    // The task ignores the polite request to end, so that there is time for a second interrupt.
    let marker = format!("602.{}", std::process::id());
    let script = format!("trap '' TERM; sleep {marker} & while true; do wait; done");
    let child = home
        .command(&["run", "--", "sh", "-c", &script])
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the task runs", || !processes_with(&format!("sleep\0{marker}")).is_empty());
    // An interrupt at once after another may be one to the process: what counts is that it ends and says so.
    for _ in 0..100 {
        kill(i32::try_from(child.id()).unwrap(), "INT");
        std::thread::sleep(std::time::Duration::from_millis(2));
        if !is_alive(i32::try_from(child.id()).unwrap()) {
            break;
        }
    }
    let ran = finish(child);
    assert_eq!(ran.status, 130);
    assert!(
        ran.errors.contains("grey task wait t1") || ran.errors.contains("t1 cancelled"),
        "{}",
        ran.errors
    );
    wait_until("the task is gone", || processes_with(&format!("sleep\0{marker}")).is_empty());
    assert_eq!(home.json(&["task", "status", "t1", "--json"])["state"], "cancelled");
}

#[test]
fn a_stdout_that_is_closed_or_full_ends_neither_in_a_panic_nor_in_a_hang() {
    let home = Home::new();
    let mut child = home
        .command(&["run", "--", "seq", "1", "200000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let ran = finish(child);
    assert_eq!((ran.status, &first), (0, b"1\n"), "{}", ran.errors);

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = Ran::of(home.command(&["run", "--", "echo", "x"]).stdout(full).output().unwrap());
    assert_eq!(ran.status, 125);
    assert!(ran.errors.contains("standard output"), "{}", ran.errors);

    let binary = env!("CARGO_BIN_EXE_grey");
    let mut closed = Command::new("sh");
    closed.args(["-c", &format!("'{binary}' run -- echo x >&-")]).env("GREY_DATA", home.data());
    let ran = Ran::of(closed.output().unwrap());
    assert!(!ran.errors.contains("panicked"), "{}", ran.errors);
}

#[test]
fn without_a_home_grey_asks_for_a_place_and_takes_the_one_it_is_given() {
    let home = Home::new();
    let without = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env_remove("HOME").env_remove("GREY_DATA");
        Ran::of(command.output().unwrap())
    };
    let ran = without(&["run", "--", "true"]);
    assert_eq!(ran.status, 2);
    assert!(ran.errors.contains("GREY_DATA"), "{}", ran.errors);
    let place = home.data().to_str().unwrap().to_owned();
    assert_eq!(without(&["--data-dir", &place, "run", "--", "true"]).status, 0);
    assert_eq!(without(&["--data-dir", &place, "task", "proof", "t1", "--out", "p.json"]).status, 0);
    std::fs::copy(home.data().join("root.json"), home.path("root.json")).unwrap();
    assert_eq!(without(&["verify", "--root", "root.json", "p.json"]).status, 0);
}

#[test]
fn long_paths_and_paths_with_spaces_work() {
    for name in ["a b'c\"d", &format!("{}/{}", "x".repeat(100), "y".repeat(100))] {
        let home = Home::with_data(name);
        let ran = home.grey(&["run", "--", "echo", "here"]);
        assert_eq!((ran.status, ran.text.as_str()), (0, "here\n"), "{}", ran.errors);
    }
}

#[test]
fn an_address_that_nobody_answers_at_is_never_replaced_by_the_local_cluster() {
    let home = Home::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (arguments, status) in [(&["run", "--", "true"][..], 125), (&["job", "list"], 4)] {
        let output = home.command(arguments).env("GREY_ADDR", free.to_string()).output().unwrap();
        let ran = Ran::of(output);
        assert_eq!(ran.status, status, "{}", ran.errors);
        assert!(ran.errors.contains(&free.to_string()), "{}", ran.errors);
    }
    assert!(!home.data().exists(), "nothing local was begun");
}

#[test]
fn a_proof_holds_elsewhere_with_the_exported_root_and_any_change_is_refused_with_its_reason() {
    let home = Home::new();
    let ran = home.grey(&[
        "run",
        "--proof",
        "p.json",
        "--out",
        "*.txt",
        "--results",
        "out",
        "--",
        "sh",
        "-c",
        "echo hello; echo a > $GREY_OUT/a.txt",
    ]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    std::fs::write(home.path("stdout"), &ran.stdout).unwrap();
    let root = home.grey(&["cluster", "root", "-q"]);
    std::fs::write(home.path("root.json"), &root.stdout).unwrap();

    let elsewhere = Home::new();
    for file in ["p.json", "root.json", "stdout"] {
        std::fs::copy(home.path(file), elsewhere.path(file)).unwrap();
    }
    std::fs::create_dir(elsewhere.path("out")).unwrap();
    std::fs::copy(home.path("out/a.txt"), elsewhere.path("out/a.txt")).unwrap();
    let whole = ["verify", "--root", "root.json", "--stdout", "stdout", "--results", "out", "p.json"];
    let ran = elsewhere.grey(&whole);
    assert_eq!(ran.status, 0, "{}{}", ran.text, ran.errors);
    assert!(ran.text.contains("The proof holds, under a local root."));
    assert!(!elsewhere.data().exists(), "checking starts nothing");

    let proof: Value = serde_json::from_slice(&std::fs::read(home.path("p.json")).unwrap()).unwrap();
    let refused = |what: &str, arguments: &[&str], check: &str| {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let ran = elsewhere.grey(&arguments);
        assert_eq!(ran.status, 1, "{what}: {}{}", ran.text, ran.errors);
        let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let failed: Vec<&str> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| !check["refusal"].is_null())
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert!(failed.contains(&check), "{what}: {failed:?}");
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut proof = proof.clone();
        change(&mut proof);
        std::fs::write(elsewhere.path("changed.json"), serde_json::to_vec(&proof).unwrap()).unwrap();
    };
    changed(&|proof| proof["statement"]["predicate"]["exit_code"] = 1.into());
    refused("exit code", &["verify", "--root", "root.json", "changed.json"], "statement");
    changed(&|proof| proof["result"]["stdout_digest"] = "0".repeat(64).into());
    refused("stdout digest", &["verify", "--root", "root.json", "changed.json"], "result");
    changed(&|proof| {
        let text = proof["signature"].as_str().unwrap().to_owned();
        let other = if text.starts_with('A') { "B" } else { "A" };
        proof["signature"] = format!("{other}{}", &text[1..]).into();
    });
    refused("signature", &["verify", "--root", "root.json", "changed.json"], "signature");

    std::fs::write(elsewhere.path("other"), "hullo\n").unwrap();
    refused("stdout", &["verify", "--root", "root.json", "--stdout", "other", "p.json"], "stdout");
    std::fs::write(elsewhere.path("out/a.txt"), "b\n").unwrap();
    refused("files", &["verify", "--root", "root.json", "--results", "out", "p.json"], "files");

    let another = Home::new();
    assert_eq!(another.grey(&["run", "--", "true"]).status, 0);
    std::fs::write(elsewhere.path("other-root.json"), another.grey(&["cluster", "root"]).stdout).unwrap();
    refused("root", &["verify", "--root", "other-root.json", "p.json"], "certificate");
    std::fs::write(elsewhere.path("none.json"), "{}").unwrap();
    assert_eq!(elsewhere.grey(&["verify", "--root", "root.json", "none.json"]).status, 1);
}

#[test]
fn a_task_file_becomes_a_job_its_results_come_back_and_what_failed_is_run_again() {
    let home = Home::new();
    std::fs::create_dir(home.path("photos")).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(home.path("photos").join(name), name.repeat(1_000)).unwrap();
    }
    let file = r#"
        version = 1
        name = "compress"
        [defaults]
        cpu = "250m"
        [[task]]
        each = { files = "photos/*" }
        command = ["sh", "-c", 'gzip -c "$GREY_ITEM" >"$GREY_OUT/$GREY_INDEX.gz"; echo "$GREY_ITEM"']
        outputs = ["*.gz"]
        [[task]]
        name = "fails"
        count = 3
        command = ["sh", "-c", 'echo "index $GREY_INDEX"; test "$GREY_INDEX" != 1']
    "#;
    std::fs::write(home.path("job.toml"), file).unwrap();
    let ran = home.grey(&["submit", "job.toml", "--wait", "--results", "results", "--json"]);
    assert_eq!(ran.status, 1, "one of its tasks fails: {}", ran.errors);
    let status: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(
        (status["counts"]["completed"].as_u64(), status["counts"]["failed"].as_u64()),
        (Some(5), Some(1))
    );
    for (task, item) in [("t1", "photos/a"), ("t2", "photos/b"), ("t3", "photos/c")] {
        let place = home.path("results").join(task);
        assert_eq!(std::fs::read_to_string(place.join("stdout")).unwrap(), format!("{item}\n"));
        assert_eq!(std::fs::read_dir(place.join("out")).unwrap().count(), 1);
        let proof = place.join("proof.json");
        let stdout = place.join("stdout");
        let (proof, stdout) = (proof.to_str().unwrap(), stdout.to_str().unwrap());
        let results = place.join("out");
        let verified =
            home.grey(&["verify", proof, "--stdout", stdout, "--results", results.to_str().unwrap()]);
        assert_eq!(verified.status, 0, "{}", verified.text);
    }
    // The failed one is run again as a job of its own, and knows which of the array it was.
    let again = home.grey(&["job", "rerun", "j1", "-q"]);
    assert_eq!((again.status, again.text.as_str()), (0, "j2\n"), "{}", again.errors);
    assert_eq!(home.grey(&["job", "wait", "j2"]).status, 1);
    assert_eq!(home.grey(&["job", "logs", "j2", "-q"]).text, "index 1\n");
    let status: JobStatus = home.get("/v1/jobs/j2").unwrap();
    assert_eq!((status.tasks, status.counts.failed, status.name.as_str()), (1, 1, "compress"));
    assert_eq!(home.grey(&["job", "rerun", "j99"]).status, 1);

    for (name, text, said) in [
        ("wrong.toml", "version = 1\n[[task]]\ncomand = [\"x\"]\n", "did you mean `command`?"),
        ("wrong.json", "{\"version\": 1}", "missing field `task`"),
        ("wrong.yaml", "version: 1\ntask:\n  - comand: [x]\n", "did you mean `command`?"),
        ("wrong.txt", "version: 1", ".toml, .yaml or .json"),
        (
            "wrong.toml",
            "version = 1\n[[task]]\nname = \"a\"\n[[task]]\nafter = [\"b\"]\n",
            "did you mean `a`?",
        ),
    ] {
        std::fs::write(home.path(name), text).unwrap();
        let ran = home.grey(&["submit", name]);
        assert_eq!(ran.status, 2, "{}", ran.errors);
        assert!(ran.errors.contains(said) && ran.errors.contains(name), "{}", ran.errors);
    }
    assert_eq!(home.json(&["cluster", "status", "--json"])["jobs_submitted"], 2);
}

#[test]
fn help_and_completions_are_there_for_every_command() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.grey(&["completions", shell]);
        assert!(ran.status == 0 && ran.stdout.len() > 1_000, "{shell}");
    }
    for command in [
        "run",
        "submit",
        "dev",
        "down",
        "task",
        "job",
        "verify",
        "cluster",
        "top",
        "doctor",
        "bench",
        "completions",
    ] {
        let ran = home.grey(&[command, "--help"]);
        assert_eq!(ran.status, 0, "{command}");
        assert!(ran.text.contains("Usage: grey"), "{}", ran.text);
    }
    for command in ["run", "submit", "dev", "verify", "top", "bench"] {
        assert!(home.grey(&[command, "--help"]).text.contains("Examples:"), "{command}");
    }
    let findings = home.grey(&["doctor", "--json"]);
    assert_eq!(findings.status, 0, "{}", findings.text);
    assert!(findings.text.contains("\"sandbox\""));
    assert!(!home.data().exists(), "the doctor begins nothing");
}
