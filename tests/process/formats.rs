//! How results are printed, and jobs that are run again, through the real binary.

use serde_json::Value;

use super::support::Home;

/// A home in which j1 has three tasks, the second of which failed, and j2 one that succeeded.
fn with_two_jobs() -> Home {
    let home = Home::new();
    let text = "version = 1\nname = \"three\"\nlabels = { kind = \"try\" }\n[[task]]\nname = \"one\"\ncount = 3\n\
                command = [\"sh\", \"-c\", \"echo $GREY_INDEX; test $GREY_INDEX != 1\"]\n";
    std::fs::write(home.path("three.toml"), text).unwrap();
    assert_eq!(home.grey(&["submit", "three.toml", "--wait"]).status, 1);
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    home
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn a_listing_is_the_same_in_every_format() {
    let home = with_two_jobs();
    let text = |format: &str| {
        let ran = home.grey(&["job", "list", "-o", format]);
        assert_eq!(ran.status, 0, "{format}: {}", ran.errors);
        ran.text
    };
    assert_eq!(text("name"), "j2\nj1\n");
    let json: Value = serde_json::from_str(&text("json")).unwrap();
    assert_eq!(json["jobs"][1]["labels"]["kind"], "try");
    assert_eq!(yaml(&text("yaml")), json);
    let lines: Vec<Value> = text("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::from(lines), json["jobs"]);
    let (table, wide) = (text("table"), text("wide"));
    assert!(table.starts_with("JOB") && !table.contains("kind=try"), "{table}");
    assert!(wide.starts_with("JOB") && wide.contains("kind=try"), "{wide}");
    assert_eq!(home.grey(&["job", "list"]).text, table);
    assert_eq!(home.grey(&["job", "list", "--json"]).text, text("json"));
}

#[test]
fn a_listing_goes_on_page_by_page_as_far_as_it_is_asked_to() {
    let home = Home::new();
    let many = "{\"executor\":\"noop\",\"count\":2500}";
    std::fs::write(home.path("many.ndjson"), many).unwrap();
    assert_eq!(home.grey(&["submit", "many.ndjson", "--wait", "--quiet"]).status, 0);
    let names = |limit: &str| {
        let ran = home.grey(&["task", "list", "--job", "j1", "-o", "name", "--limit", limit]);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        ran.text.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let all = names("0");
    let expected: Vec<String> = (1..=2_500).map(|number| format!("t{number}")).collect();
    assert_eq!(all, expected);
    assert_eq!(names("1700"), expected[..1_700]);
    assert_eq!(names("3"), expected[..3]);
    let whole = home.json(&["task", "list", "--job", "j1", "--limit", "0", "-o", "json"]);
    assert_eq!(whole["tasks"].as_array().unwrap().len(), 2_500);
    assert!(whole.get("next").is_none());
    let table = home.grey(&["task", "list", "--job", "j1", "--limit", "0"]).text;
    assert_eq!(table.lines().filter(|line| line.starts_with("TASK")).count(), 1, "one header for all pages");
    assert_eq!(table.lines().count(), 2_501);
    assert!(home.grey(&["task", "list", "--job", "j1"]).errors.contains("there are more"));
}

#[test]
fn every_command_that_prints_a_result_prints_it_in_every_format() {
    let home = with_two_jobs();
    let commands: [&[&str]; 10] = [
        &["job", "status", "j1"],
        &["job", "result", "j1"],
        &["job", "wait", "j2"],
        &["task", "status", "t1"],
        &["task", "explain", "t1"],
        &["task", "result", "t1"],
        &["task", "wait", "t1"],
        &["cluster", "status"],
        &["top"],
        &["job", "events", "j2"],
    ];
    for command in commands {
        for format in ["table", "wide", "json", "jsonl", "yaml", "name"] {
            let ran = home.grey(&[command, &["-o", format]].concat());
            assert_eq!(ran.status, 0, "{command:?} -o {format}: {}", ran.errors);
            assert!(!ran.text.trim().is_empty(), "{command:?} -o {format} printed nothing");
            match format {
                "json" | "jsonl" => {
                    let each = serde_json::Deserializer::from_str(&ran.text).into_iter::<Value>();
                    assert!(each.map(Result::unwrap).count() > 0);
                }
                "yaml" => drop(yaml(ran.text.trim_start_matches("---\n"))),
                "name" => assert!(ran.text.lines().all(|line| !line.contains(' ')), "{}", ran.text),
                _ => {}
            }
        }
    }
    // Changes name what they changed; what has no name says so before anything is done.
    let cancelled = home.grey(&["job", "cancel", "j1", "-o", "name"]);
    assert_eq!((cancelled.status, cancelled.text.as_str()), (1, "j1\n"));
    let refused = home.grey(&["doctor", "-o", "name"]);
    assert_eq!(refused.status, 2);
    assert!(refused.errors.contains("-o json"), "{}", refused.errors);
    assert_eq!(home.grey(&["job", "list", "-o", "xml"]).status, 2);
}

#[test]
fn a_run_prints_its_result_for_programs_and_its_stream_for_people() {
    let home = Home::new();
    let run = |format: &str| home.grey(&["run", "-o", format, "--", "sh", "-c", "echo hello"]).text;
    assert_eq!(run("table"), "hello\n");
    assert_eq!(serde_json::from_str::<Value>(&run("json")).unwrap()["exit_code"], 0);
    assert_eq!(yaml(&run("yaml"))["outcome"], "exited");
    assert_eq!(run("name"), "t4\n");
}

#[test]
fn a_key_makes_a_command_repeatable() {
    let home = with_two_jobs();
    let run = || home.grey(&["run", "--key", "nightly-1", "--", "sh", "-c", "echo once"]);
    let first = run();
    assert_eq!((first.status, first.text.as_str()), (0, "once\n"));
    let again = run();
    assert_eq!((again.status, again.text.as_str()), (0, "once\n"));
    assert!(again.errors.contains("submitted before under this key"), "{}", again.errors);
    assert_eq!(home.grey(&["job", "list", "-o", "name"]).text, "j3\nj2\nj1\n", "it ran once");
    let other = home.grey(&["run", "--key", "nightly-1", "--", "true"]);
    assert_eq!(other.status, 125);
    assert!(other.errors.contains("[idempotency_conflict]"), "{}", other.errors);
    for wrong in ["", "a b", &"k".repeat(101)] {
        assert_eq!(home.grey(&["run", "--key", wrong, "--", "true"]).status, 2, "{wrong}");
    }
    let rerun = || home.grey(&["job", "rerun", "j1", "--key", "again", "-o", "name"]).text;
    assert_eq!((rerun(), rerun()), ("j4\n".to_owned(), "j4\n".to_owned()));
    let submit = || home.grey(&["submit", "three.toml", "--key", "file", "-o", "name"]).text;
    assert_eq!((submit(), submit()), ("j5\n".to_owned(), "j5\n".to_owned()));
}

#[test]
fn what_failed_or_all_or_some_of_a_job_is_run_again() {
    let home = with_two_jobs();
    let again = |arguments: &[&str]| {
        let created = home.json(&[&["job", "rerun", "j1", "--json"], arguments].concat());
        let job = created["job"].as_str().unwrap().to_owned();
        home.grey(&["job", "wait", &job]);
        (created["tasks"].as_u64().unwrap(), home.grey(&["job", "logs", &job]).text)
    };
    assert_eq!(again(&[]), (1, "1\n".to_owned()));
    assert_eq!(again(&["--failed"]), (1, "1\n".to_owned()));
    assert_eq!(again(&["--all"]), (3, "0\n1\n2\n".to_owned()));
    assert_eq!(again(&["--task", "t1,t3"]), (2, "0\n2\n".to_owned()));
    assert_eq!(again(&["--task", "t2..t3"]), (2, "1\n2\n".to_owned()));
    for (wrong, status) in [
        (&["--task", "t4"][..], 3),
        (&["--task", "t3..t1"], 3),
        (&["--task", "x"], 3),
        (&["--task", "t1/../.."], 2),
        (&["--all", "--failed"], 2),
        (&["--all", "--task", "t1"], 2),
    ] {
        let ran = home.grey(&[&["job", "rerun", "j1"], wrong].concat());
        assert_eq!(ran.status, status, "{wrong:?}: {}", ran.errors);
    }
}

#[test]
fn a_job_with_an_order_is_run_again_as_a_whole_with_its_order_and_its_arrays() {
    let home = Home::new();
    let text = "version = 1\n[[task]]\nname = \"part\"\neach = { items = [\"a\", \"b\"] }\n\
                command = [\"sh\", \"-c\", \"echo $GREY_ITEM > $GREY_OUT/$GREY_ITEM\"]\noutputs = [\"*\"]\n\
                [[task]]\nname = \"whole\"\ninputs = [{ from = \"part\", to = \"in\" }]\ncommand = [\"sh\", \"-c\", \"cat in/*\"]\n";
    std::fs::write(home.path("order.toml"), text).unwrap();
    assert_eq!(home.grey(&["submit", "order.toml", "--wait"]).status, 0);
    let created = home.json(&["job", "rerun", "j1", "--all", "--json"]);
    assert_eq!(created["tasks"], 3);
    assert_eq!(home.grey(&["job", "wait", "j2"]).status, 0);
    assert_eq!(home.grey(&["task", "logs", "t6"]).text, "a\nb\n");
}
