//! What has ended goes when its time has come, nothing before, and what is gone is said to be gone.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use grey_api::{BlobsMissing, ClusterStatus, ErrorCode, JobCreated, JobStatus};
use grey_proof::Digest;

use crate::support::{Home, Ran, code, wait_until};

/// How long what has ended is kept.
type Kept = [(&'static str, &'static str)];

const SHORT_BLOBS: &Kept = &[("GREY_RETAIN_LOGS", "2s"), ("GREY_RETAIN_RESULTS", "2s")];
const SHORT: &Kept =
    &[("GREY_RETAIN_LOGS", "2s"), ("GREY_RETAIN_RESULTS", "2s"), ("GREY_RETAIN_HISTORY", "2s")];

/// Runs the binary; the cluster that it may start keeps what has ended for so long.
fn grey(home: &Home, kept: &Kept, arguments: &[&str]) -> Ran {
    Ran::of(home.command(arguments).envs(kept.iter().copied()).output().unwrap())
}

fn done(home: &Home, kept: &Kept, arguments: &[&str]) -> String {
    let ran = grey(home, kept, arguments);
    assert_eq!(ran.status, 0, "{arguments:?}: {}", ran.errors);
    ran.text
}

/// The refusal of something that is no longer kept.
fn is_gone(home: &Home, kept: &Kept, arguments: &[&str]) -> bool {
    let ran = grey(home, kept, arguments);
    assert!(ran.status == 0 || ran.errors.contains("[not_retained]"), "{arguments:?}: {}", ran.errors);
    let refused = if arguments.first() == Some(&"run") { 125 } else { 1 };
    assert!(ran.status == 0 || ran.status == refused, "{arguments:?} exits with {}", ran.status);
    ran.status != 0
}

/// Blobs by their digests.
fn blobs(home: &Home) -> BTreeSet<String> {
    let folders = std::fs::read_dir(home.data().join("blobs")).into_iter().flatten().flatten();
    let within = folders.filter(|folder| folder.file_name() != "incoming").map(|folder| folder.path());
    let files = within.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    files.map(|file| file.file_name().into_string().unwrap()).collect()
}

fn blob(home: &Home, digest: &str) -> PathBuf {
    home.data().join("blobs").join(&digest[..2]).join(digest)
}

/// Lets a promise for a blob be over.
fn expire(home: &Home, digest: &str) {
    let file = File::options().write(true).open(blob(home, digest)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1)).unwrap();
}

fn segments(home: &Home) -> BTreeSet<String> {
    let names = std::fs::read_dir(home.data()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".seg")).collect()
}

/// Waits until the collector has looked through everything from now on.
fn wait_for_looks(home: &Home, looks: u32) {
    for _ in 0..looks {
        let looked_at = || home.get::<ClusterStatus>("/v1/cluster").unwrap().retention.looked_at_ms;
        let before = looked_at();
        wait_until("the collector has looked", || looked_at() != before);
    }
}

fn write(home: &Home, name: &str, text: &str) {
    std::fs::write(home.path(name), text).unwrap();
}

/// Two parts that leave files too large for a report, and a task that takes them once a gate is open.
fn order(home: &Home, gate: &str) -> String {
    let gate = home.path(gate);
    format!(
        "version = 1\n[[task]]\nname = \"part\"\ncount = 2\noutputs = [\"*\"]\n\
         command = [\"sh\", \"-c\", \"seq 20000 > $GREY_OUT/$GREY_INDEX; seq 9000\"]\n\
         [[task]]\nname = \"whole\"\ninputs = [{{ from = \"part\", to = \"in\" }}]\nretries = {{ failure = 0, infrastructure = 50 }}\n\
         command = [\"sh\", \"-c\", \"until [ -e {} ]; do sleep 0.05; done; cat in/* | wc -l\"]\n",
        gate.display()
    )
}

fn wait_for_completed(home: &Home, job: &str, completed: u64) {
    wait_until("tasks have completed", || {
        home.get::<JobStatus>(&format!("/v1/jobs/{job}")).unwrap().counts.completed >= completed
    });
}

fn verify(home: &Home, kept: &Kept, task: &str) {
    done(home, kept, &["task", "proof", task, "--out", "p.json"]);
    done(home, kept, &["verify", "p.json"]);
}

/// Submits a task that leaves a log and a file which are blobs, and fetches nothing: how soon a test comes to do so is
/// not to matter.
fn submit_large(home: &Home) {
    let body =
        "{\"command\":[\"sh\",\"-c\",\"seq 5000; seq 30000 > $GREY_OUT/numbers\"],\"outputs\":[\"*\"]}";
    let _: JobCreated = home.post("/v1/tasks", "application/json", body, None).unwrap();
}

#[test]
fn logs_and_files_of_ended_jobs_go_and_their_records_stay_and_prove() {
    let home = Home::new();
    done(&home, SHORT_BLOBS, &["cluster", "status"]);
    submit_large(&home);
    wait_until("j1 has ended", || home.get::<JobStatus>("/v1/jobs/j1").unwrap().ended);
    write(&home, "order.toml", &order(&home, "gate"));
    done(&home, SHORT_BLOBS, &["submit", "order.toml"]);
    wait_for_completed(&home, "j2", 2);
    // Then: what the ended job left goes, what the live one has goes not.
    wait_until("the blobs of j1 are gone", || blobs(&home).len() == 2);
    let ran = grey(&home, SHORT_BLOBS, &["task", "logs", "t1"]);
    assert_eq!(ran.status, 1, "{}", ran.errors);
    for said in ["[not_retained]", "the log of task t1", "2s after the end of their job", "--retain-logs"] {
        assert!(ran.errors.contains(said), "`{said}` is missing in {}", ran.errors);
    }
    let refused = home.get::<serde_json::Value>("/v1/tasks/t1/outputs/0").unwrap_err();
    assert_eq!(code(&refused), ErrorCode::NotRetained);
    verify(&home, SHORT_BLOBS, "t1");
    assert!(done(&home, SHORT_BLOBS, &["task", "result", "t1"]).contains("numbers"));
    assert!(done(&home, SHORT_BLOBS, &["task", "logs", "t2"]).ends_with("9000\n"));
    // And: over a kill, too.
    home.kill_9();
    done(&home, SHORT_BLOBS, &["job", "list"]);
    wait_for_looks(&home, 2);
    assert_eq!(blobs(&home).len(), 2, "a live job lost something");
    write(&home, "gate", "");
    done(&home, SHORT_BLOBS, &["job", "wait", "j2"]);
    assert_eq!(done(&home, SHORT_BLOBS, &["task", "logs", "t4"]), "40000\n");
    wait_until("nothing is left", || blobs(&home).is_empty());
    ["t1", "t2", "t3", "t4"].iter().for_each(|task| verify(&home, SHORT_BLOBS, task));
    let status = done(&home, SHORT_BLOBS, &["cluster", "status"]);
    assert!(status.contains("records and proofs for 90 d") && status.contains("logs for 2 s"), "{status}");
    let doctor = done(&home, SHORT_BLOBS, &["doctor"]);
    assert!(doctor.contains("kept") && doctor.contains("unused inputs for 7 d"), "{doctor}");
    assert!(!home.log().contains("panicked"), "{}", home.log());
}

#[test]
fn records_go_in_whole_segments_and_what_is_needed_stays_over_kills() {
    let home = Home::new();
    done(&home, SHORT, &["cluster", "status"]);
    submit_large(&home);
    wait_until("j1 is gone", || is_gone(&home, SHORT, &["job", "status", "j1"]));
    // It is named as gone, durably, before its file is removed.
    wait_until("its file is removed", || !segments(&home).contains("history-00000000.seg"));
    for arguments in [
        &["job", "status", "j1"][..],
        &["job", "wait", "j1"],
        &["job", "rerun", "j1", "--all"],
        &["task", "status", "t1"],
        &["task", "proof", "t1", "--out", "p.json"],
        &["task", "logs", "t1"],
    ] {
        assert!(is_gone(&home, SHORT, arguments), "{arguments:?}");
    }
    for (path, expected) in [
        ("/v1/jobs/j1", ErrorCode::NotRetained),
        ("/v1/tasks/t1/result", ErrorCode::NotRetained),
        ("/v1/jobs/j0", ErrorCode::NotFound),
        ("/v1/jobs/j99", ErrorCode::NotFound),
        ("/v1/tasks/t99", ErrorCode::NotFound),
    ] {
        assert_eq!(code(&home.get::<serde_json::Value>(path).unwrap_err()), expected, "{path}");
    }
    let leaves = std::fs::metadata(home.data().join("tree.hashes")).unwrap().len();
    // Given: a live job whose first tasks have ended, in a segment with a job that has ended.
    write(&home, "order.toml", &order(&home, "gate"));
    done(&home, SHORT, &["submit", "order.toml"]);
    wait_for_completed(&home, "j2", 2);
    submit_large(&home);
    wait_until("its segment is closed", || segments(&home).len() == 2);
    let kept = segments(&home).first().unwrap().clone();
    // When: later ones go, and the node is killed again and again meanwhile.
    for round in 0..3 {
        let job = format!("j{}", 4 + round);
        submit_large(&home);
        if round > 0 {
            home.kill_9();
        }
        wait_until("a later one is gone", || is_gone(&home, SHORT, &["job", "status", &job]));
        // Then: everything of the live one is there and proves.
        assert!(segments(&home).contains(&kept), "{:?}", segments(&home));
        for task in ["t2", "t3"] {
            verify(&home, SHORT, task);
            assert!(done(&home, SHORT, &["task", "logs", task]).ends_with("9000\n"));
        }
        wait_until("its blobs are all that is left", || blobs(&home).len() == 2);
    }
    assert!(std::fs::metadata(home.data().join("tree.hashes")).unwrap().len() > leaves, "leaves stay");
    // And: it ends as it would have, with what its first tasks had left.
    let job = home.get::<JobStatus>("/v1/jobs/j2").unwrap();
    assert_eq!((job.counts.completed, job.ended), (2, false));
    assert_eq!(grey(&home, SHORT, &["down"]).status, 0);
    write(&home, "gate", "");
    // What is kept for longer now does not come back.
    done(&home, &[], &["job", "wait", "j2"]);
    assert_eq!(done(&home, &[], &["task", "logs", "t4"]), "40000\n");
    verify(&home, &[], "t4");
    assert!(is_gone(&home, &[], &["job", "status", "j4"]));
    assert_eq!(done(&home, &[], &["job", "list", "-o", "name"]), "j2\n");
    assert!(!home.log().contains("panicked"), "{}", home.log());
}

#[test]
fn what_a_job_takes_from_the_one_before_stays_until_it_has_ended() {
    let home = Home::new();
    let text = order(&home, "gate").replace("cat in/*", "test $GREY_JOB != j1 && cat in/*");
    write(&home, "order.toml", &text.replace("until [", "until [ $GREY_JOB = j1 ] || ["));
    assert_eq!(grey(&home, &[], &["submit", "order.toml", "--wait"]).status, 1);
    done(&home, &[], &["job", "rerun", "j1"]);
    wait_until("it runs", || home.get::<JobStatus>("/v1/jobs/j2").unwrap().counts.running == 1);
    assert_eq!(grey(&home, &[], &["down"]).status, 0);
    // When: the files of the job before are past their time, and the one that takes them is started again.
    for _ in 0..2 {
        done(&home, SHORT_BLOBS, &["job", "status", "j1"]);
        wait_for_looks(&home, 2);
        assert!(blobs(&home).len() >= 2, "what j2 takes is gone");
        home.kill_9();
    }
    write(&home, "gate", "");
    done(&home, SHORT_BLOBS, &["job", "wait", "j2"]);
    assert_eq!(done(&home, SHORT_BLOBS, &["task", "logs", "t4"]), "40000\n");
    // Then: afterwards they go, and can be taken no more.
    wait_until("nothing is left", || blobs(&home).is_empty());
    let ran = grey(&home, SHORT_BLOBS, &["job", "rerun", "j1"]);
    assert_eq!(ran.status, 1, "{}", ran.errors);
    assert!(ran.errors.contains("what task t1 left is no longer kept"), "{}", ran.errors);
    done(&home, SHORT_BLOBS, &["job", "rerun", "j1", "--all"]);
    done(&home, SHORT_BLOBS, &["job", "wait", "j3"]);
}

#[test]
fn inputs_stay_while_anybody_counts_on_them() {
    let home = Home::new();
    let text: String = (0..5_000).map(|line| format!("line {line}\n")).collect();
    let digest = Digest::of(text.as_bytes()).to_string();
    write(&home, "input", &text);
    // Whether its record is fetched before it goes is not to matter.
    is_gone(&home, SHORT, &["run", "-q", "--in", "input", "--", "true"]);
    wait_until("j1 is gone", || is_gone(&home, SHORT, &["job", "status", "j1"]));
    wait_for_looks(&home, 2);
    assert!(blob(&home, &digest).exists(), "it was sent less than a day ago");
    // Given: its time is over, and somebody asks before it is looked at.
    let query = format!("{{\"digests\":[\"{digest}\"]}}");
    let missing =
        || home.post::<BlobsMissing>("/v1/blobs/missing", "application/json", query.as_str(), None).unwrap();
    assert_eq!(grey(&home, SHORT, &["down"]).status, 0);
    expire(&home, &digest);
    done(&home, &[], &["cluster", "status"]);
    assert!(missing().missing.is_empty());
    let promised = std::fs::metadata(blob(&home, &digest)).unwrap().modified().unwrap();
    assert!(promised > SystemTime::now() + Duration::from_secs(24 * 3_600), "a promise of less than a day");
    assert_eq!(grey(&home, SHORT, &["down"]).status, 0);
    done(&home, SHORT, &["cluster", "status"]);
    wait_for_looks(&home, 2);
    assert!(blob(&home, &digest).exists());
    // Given: a live job that names it, without any promise.
    let gate = home.path("gate");
    let script = format!("until [ -e {} ]; do sleep 0.05; done; wc -l < input", gate.display());
    let body = format!(
        "{{\"command\":[\"sh\",\"-c\",\"{script}\"],\
         \"inputs\":[{{\"path\":\"input\",\"digest\":\"{digest}\",\"size_bytes\":{}}}]}}",
        text.len()
    );
    let created: JobCreated = home.post("/v1/tasks", "application/json", body, None).unwrap();
    expire(&home, &digest);
    wait_for_looks(&home, 2);
    home.kill_9();
    done(&home, SHORT, &["cluster", "status"]);
    wait_for_looks(&home, 2);
    assert!(blob(&home, &digest).exists(), "a live job lost its input");
    std::fs::write(&gate, "").unwrap();
    // Then: when it has ended and its record is gone, so is the input, and who asks is told to send it.
    wait_until("the job is gone", || is_gone(&home, SHORT, &["job", "status", &created.job]));
    wait_until("the input is gone", || !blob(&home, &digest).exists());
    assert_eq!(missing().missing, [digest]);
}

#[test]
fn a_retention_that_cannot_be_is_refused_before_anything_starts() {
    let home = Home::new();
    for (name, given, said) in [
        ("GREY_RETAIN_LOGS", "91d", "which --retain-history keeps for 90d"),
        ("GREY_RETAIN_INPUTS", "23h", "--retain-inputs is 23h; it must be from 1d"),
        ("GREY_RETAIN_HISTORY", "1ms", "--retain-history is 1ms; it must be from 1s"),
    ] {
        let ran = grey(&home, &[(name, given)], &["run", "--", "true"]);
        assert_eq!(ran.status, 125, "{}", ran.errors);
        assert!(ran.errors.contains(said), "{}", ran.errors);
        assert!(!home.data().join("log.redb").exists());
    }
    let ran = grey(&home, &[], &["dev", "--retain-logs", "30"]);
    assert_eq!(ran.status, 2);
    assert!(ran.errors.contains("units: ms, s, m, h, d"), "{}", ran.errors);
}
