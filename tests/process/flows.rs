//! Tasks that follow one another, through the real binary.

use std::process::Stdio;

use grey_api::{ErrorCode, JobCreated, JobStatus, TaskStatus};

use super::support::{Home, Ran};

/// The commands of the guide's worked examples.
fn examples() -> Vec<String> {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guide.md")).unwrap();
    let section = guide.split("## Two worked examples").nth(1).unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

#[test]
fn the_guide_s_worked_examples_do_what_it_says() {
    // Given the project's directory as a newcomer has it.
    let home = Home::new();
    let project = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["docs", "examples"] {
        copy(&project.join(name), &home.path(name));
    }
    // When each command of the guide is run, then each succeeds.
    let commands = examples();
    assert_eq!(commands.len(), 6, "{commands:?}");
    let mut texts = Vec::new();
    for command in &commands {
        let line = command.replacen("grey ", &format!("'{}' ", env!("CARGO_BIN_EXE_grey")), 1);
        let line = if command.starts_with("grey ") { &line } else { command };
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", line]).current_dir(home.path("")).env("GREY_DATA", home.data());
        shell.env_remove("GREY_ADDR").env_remove("GREY_TOKEN").stdin(Stdio::null());
        let ran = Ran::of(shell.output().unwrap());
        assert_eq!(ran.status, 0, "{command}\n{}\n{}", ran.text, ran.errors);
        texts.push(ran.text);
    }
    // And the manifest names every file of the directory with the digest of what the tasks left.
    let mut names: Vec<String> = std::fs::read_dir(home.path("try/files"))
        .unwrap()
        .map(|entry| format!("{}.gz", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    names.sort();
    let manifest: Vec<(&str, &str)> = texts[2].lines().map(|line| line.split_once("  ").unwrap()).collect();
    assert_eq!(manifest.iter().map(|(_, name)| *name).collect::<Vec<_>>(), names);
    for (number, (digest, name)) in manifest.iter().enumerate() {
        let path = home.path(&format!("try/results/t{}/out/{name}", number + 1));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(grey_proof::Digest::of(&bytes).to_string(), *digest);
    }
    // And the ranking has every point of the sweep, the best first.
    let ranking: Vec<&str> = texts[5].lines().collect();
    assert_eq!(ranking.len(), 6);
    assert!(ranking[0].contains("midpoint\t1000\t3.1415927"), "{}", ranking[0]);
    assert!(ranking[5].contains("left\t10\t"), "{}", ranking[5]);
}

#[test]
fn what_failed_is_run_again_with_what_waited_for_it_and_takes_the_rest_from_before() {
    // Given five tasks of which one fails while a file is missing, and one that takes what they left.
    let home = Home::new();
    let gate = home.path("gate");
    let file = format!(
        "version = 1\n[[task]]\nname = \"work\"\neach = {{ range = \"5..9\" }}\noutputs = [\"*\"]\n\
         command = [\"sh\", \"-c\", 'echo $GREY_ITEM >\"$GREY_OUT/$GREY_ITEM\"; [ $GREY_ITEM != 7 ] || [ -e {} ]']\n\
         [[task]]\nname = \"sum\"\ninputs = [{{ from = \"work\", to = \"in\" }}]\n\
         command = [\"sh\", \"-c\", 'cat in/*']\n",
        gate.display()
    );
    std::fs::write(home.path("job.toml"), file).unwrap();
    // When it is submitted, then the one fails, the last is cancelled, and both say why.
    assert_eq!(home.grey(&["submit", "job.toml", "--wait", "--junit", "report.xml"]).status, 1);
    let waited = home.grey(&["job", "wait", "j1"]);
    assert!(waited.errors.contains("1 failed: exited with 1, first t3"), "{}", waited.errors);
    let report = std::fs::read_to_string(home.path("report.xml")).unwrap();
    assert!(report.contains("tests=\"6\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{report}");
    assert!(report.contains("<failure type=\"exited\" message=\"exit code 1\">"), "{report}");
    let events = home.grey(&["job", "events", "j1"]);
    assert!(events.status == 0 && events.text.contains("failed"), "{}", events.text);
    let job: JobStatus = home.get("/v1/jobs/j1").unwrap();
    assert_eq!((job.counts.completed, job.counts.failed, job.counts.cancelled), (4, 1, 1));
    let last: TaskStatus = home.get("/v1/tasks/t6").unwrap();
    assert_eq!(last.state, "cancelled");
    assert!(last.reason.as_deref().unwrap().contains("`work`"), "{last:?}");
    // When what was missing is there and the job is run again, also after a kill.
    std::fs::write(&gate, "").unwrap();
    home.kill_9();
    assert_eq!(home.grey(&["job", "rerun", "j1", "-q"]).text, "j2\n");
    // Then two tasks run, and the last has all five numbers.
    assert_eq!(home.grey(&["job", "wait", "j2"]).status, 0);
    let job: JobStatus = home.get("/v1/jobs/j2").unwrap();
    assert_eq!(job.tasks, 2);
    assert_eq!(home.grey(&["task", "logs", "t8"]).text, "5\n6\n7\n8\n9\n");
    let ran = home.grey(&["task", "proof", "t8", "--out", "proof.json"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    assert_eq!(home.grey(&["verify", home.path("proof.json").to_str().unwrap()]).status, 0);
}

#[test]
fn files_of_the_same_name_cannot_be_taken_and_the_task_says_which() {
    let home = Home::new();
    let body = r#"{"tasks": [
        {"name": "a", "command": ["sh", "-c", "echo x >$GREY_OUT/same"], "outputs": ["same"], "count": 2},
        {"command": ["true"], "inputs_from": [{"task": "a", "path": "in"}]}
    ]}"#;
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let created: JobCreated = home.post("/v1/jobs", "application/json", body, None).unwrap();
    assert_eq!(home.grey(&["job", "wait", &created.job]).status, 1);
    let task: TaskStatus = home.get("/v1/tasks/t4").unwrap();
    let result = task.result.unwrap();
    assert_eq!((result.outcome.as_str(), result.exit_code), ("input_refused", 125));
    assert!(result.message.contains("`in/same`"), "{}", result.message);
}

#[test]
fn an_order_that_makes_no_sense_is_refused_with_its_field() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    for (body, field, code) in [
        (
            r#"{"tasks":[{"name":"a","command":["x"],"after":["b"]}]}"#,
            "tasks[0].after",
            ErrorCode::InvalidRequest,
        ),
        (
            r#"{"tasks":[{"name":"a","command":["x"],"after":["b"]},{"name":"b","command":["x"],"after":["a"]}]}"#,
            "after",
            ErrorCode::OutOfBounds,
        ),
        (
            r#"{"tasks":[{"name":"a","command":["x"]},{"command":["x"],"inputs_from":[{"task":"a","path":"/etc"}]}]}"#,
            "inputs_from",
            ErrorCode::OutOfBounds,
        ),
        (r#"{"parallel":0,"tasks":[{"command":["x"]}]}"#, "parallel", ErrorCode::OutOfBounds),
    ] {
        let refused = home.post::<JobCreated>("/v1/jobs", "application/json", body, None).unwrap_err();
        let problem = refused.problem().unwrap();
        assert_eq!((problem.field.as_deref(), problem.code), (Some(field), code), "{body}: {problem:?}");
    }
    assert_eq!(home.json(&["cluster", "status", "--json"])["jobs_submitted"], 1);
}

#[test]
fn events_are_told_as_they_happen_until_the_job_ends() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let gate = home.path("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 4", gate.display());
    let body = serde_json::json!({ "tasks": [{ "command": ["sh", "-c", script] }] }).to_string();
    let created: JobCreated = home.post("/v1/jobs", "application/json", body, None).unwrap();
    let mut watching = home.command(&["job", "events", &created.job]);
    let mut watching = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first line says that it watches.
    let mut first = [0; 3];
    std::io::Read::read_exact(watching.stdout.as_mut().unwrap(), &mut first).unwrap();
    std::fs::write(&gate, "").unwrap();
    let ran = super::support::finish(watching);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let told: Vec<&str> = ran.text.lines().collect();
    assert!(told.contains(&"attempt ended t2 exited") && told.contains(&"job ended, 1 task(s)"), "{told:?}");
}

#[test]
fn a_waiting_task_is_explained_with_its_place_in_the_line_and_what_it_waits_for() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let body = r#"{"parallel": 1, "tasks": [
        {"name": "long", "command": ["sleep", "600"], "count": 50, "priority": 9},
        {"name": "last", "command": ["true"], "after": ["long"]}
    ]}"#;
    let _: JobCreated = home.post("/v1/jobs", "application/json", body, None).unwrap();
    super::support::wait_until("the first runs", || {
        home.get::<TaskStatus>("/v1/tasks/t2").is_ok_and(|task| task.state == "running")
    });
    let middle = home.json(&["task", "explain", "t12", "--json"]);
    assert_eq!(middle["ahead"].as_u64(), Some(9), "t3 to t11 are before it: {middle}");
    assert_eq!(middle["feasible"], true, "{middle}");
    assert!(middle["reason"].as_str().unwrap().contains("1 task(s) of its job run"), "{middle}");
    let last = home.json(&["task", "explain", "t52", "--json"]);
    assert!(last["reason"].as_str().unwrap().contains("0 of 50"), "{last}");
    assert_eq!(last.get("ahead"), None, "it stands in no line before that");
    let text = home.grey(&["task", "explain", "t12"]).text;
    assert!(text.contains("ahead     9 task(s)") && text.contains("estimate  "), "{text}");
    assert_eq!(home.grey(&["job", "cancel", "j2"]).status, 0);
}

#[test]
fn a_wait_is_estimated_from_how_long_tasks_of_the_job_run_and_is_unknown_before_anything_is() {
    let home = Home::new();
    let gate = home.path("gate");
    let script = format!(
        "[ $GREY_INDEX = 0 ] || exec sleep 600; until [ -e {} ]; do sleep 0.05; done",
        gate.display()
    );
    let body = format!(
        r#"{{"parallel": 1, "tasks": [{{"name": "long", "command": ["sh", "-c", "{script}"], "count": 50}}]}}"#
    );
    assert_eq!(home.grey(&["job", "list"]).status, 0);
    let _: JobCreated = home.post("/v1/jobs", "application/json", body, None).unwrap();
    let runs = |task: &str| {
        let status = || home.get::<TaskStatus>(&format!("/v1/tasks/{task}"));
        super::support::wait_until("it runs", || status().is_ok_and(|found| found.state == "running"));
    };
    runs("t1");
    // Given the first of its job runs and nothing has ended: the next may start at any moment, later ones wait for more.
    let next = home.json(&["task", "explain", "t2", "--json"]);
    assert_eq!(next.get("estimated_wait_ms"), None, "{next}");
    assert!(home.grey(&["task", "explain", "t2"]).text.contains("estimate  unknown"));
    super::support::wait_until("it has run for a while", || {
        home.json(&["task", "explain", "t12", "--json"])["estimated_from"] == "running_times"
    });
    assert!(home.grey(&["task", "explain", "t12"]).text.contains("estimate  at least "));
    // When it has ended, then what it took is what the others are expected to take.
    std::fs::write(&gate, "").unwrap();
    runs("t2");
    let took_ms = home.json(&["task", "result", "t1", "--json"])["duration_us"].as_u64().unwrap() / 1_000;
    let later = home.json(&["task", "explain", "t12", "--json"]);
    assert_eq!(later["estimated_from"], "durations", "{later}");
    let wait_ms = later["estimated_wait_ms"].as_u64().unwrap();
    assert!((9 * took_ms..=10 * took_ms).contains(&wait_ms), "nine others of {took_ms} ms each: {wait_ms}");
    assert_eq!(home.grey(&["job", "cancel", "j1"]).status, 0);
}
