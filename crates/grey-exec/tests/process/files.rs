//! Files laid in and taken out.

use grey_agent::{Captured, Executor};
use grey_core::Outcome;

use crate::Test;
use crate::rig::{LEVELS, Rig, bytes, execution, fresh_attempt, input, script, spec, text};

pub(crate) const TESTS: &[Test] = &[
    ("inputs_and_stdin_reach_the_task", inputs_and_stdin_reach_the_task),
    ("an_input_that_cannot_be_laid_in_is_named", an_input_that_cannot_be_laid_in_is_named),
    ("outputs_are_taken_by_pattern_and_sorted", outputs_are_taken_by_pattern_and_sorted),
    ("an_output_that_is_no_plain_file_is_refused", an_output_that_is_no_plain_file_is_refused),
    ("a_missing_output_counts_only_after_success", a_missing_output_counts_only_after_success),
    ("output_files_count_against_the_limit", output_files_count_against_the_limit),
    ("outputs_have_a_greatest_number", outputs_have_a_greatest_number),
    ("a_task_cannot_lead_the_capture_astray", a_task_cannot_lead_the_capture_astray),
    ("release_removes_the_directory", release_removes_the_directory),
];

fn inputs_and_stdin_reach_the_task() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let large = vec![b'x'; 3_000_000];
        let mut wanted =
            script("cat; bin/run; wc -c <data; stat -c '%a %n' data bin/run; echo changed >>data");
        wanted.inputs = vec![input("bin/run", true), input("data", false)];
        let mut execution = execution(fresh_attempt(), wanted);
        let data = rig.file("blob-data", &large);
        execution.inputs = vec![rig.file("blob-run", b"#!/bin/sh\necho ran\n"), data.clone()];
        execution.stdin = Some(rig.file("blob-stdin", b"from stdin\n"));
        let executed = rig.run_execution(execution);
        assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
        assert_eq!(text(&executed.stdout), "from stdin\nran\n3000000\n600 data\n700 bin/run\n");
        assert_eq!(
            std::fs::read(data).unwrap(),
            large,
            "a task changed the content that its input came from"
        );
    }
}

fn an_input_that_cannot_be_laid_in_is_named() {
    let rig = Rig::new();
    for (path, source) in [("../escape", "blob"), ("/absolute", "blob"), ("", "blob"), ("here", "missing")] {
        rig.file("blob", b"x");
        let mut wanted = spec(&["true"]);
        wanted.inputs = vec![input(path, false)];
        let mut execution = execution(fresh_attempt(), wanted);
        execution.inputs = vec![rig.root.path().join(source)];
        let executed = rig.run_execution(execution);
        assert_eq!(executed.outcome, Outcome::Infrastructure);
        assert!(executed.message.contains(&format!("`{path}`")), "{}", executed.message);
    }
    assert!(!rig.root.path().join("work/escape").exists());
}

fn outputs_are_taken_by_pattern_and_sorted() {
    let rig = Rig::new();
    let mut wanted = script(
        r#"cd "$GREY_OUT"; mkdir -p d/e; echo z >z.txt; echo a >a.txt; echo n >none.log; head -c 5000 /dev/zero >d/e/large.bin
        printf x >"$(printf 'd/\377.bin')"; echo '#!' >run; chmod 700 run; ln -s /etc/passwd unwanted"#,
    );
    wanted.outputs = ["*.txt", "d/**/*.bin", "run", "z*"].map(str::to_owned).to_vec();
    let attempt = fresh_attempt();
    let executed = rig.run_execution(execution(attempt, wanted));
    assert_eq!(executed.outcome, Outcome::Exited(0), "{}", executed.message);
    let found: Vec<(&[u8], bool, usize)> = executed
        .files
        .iter()
        .map(|file| (file.path.as_slice(), file.executable, bytes(&file.content).len()))
        .collect();
    assert_eq!(
        found,
        [
            (&b"a.txt"[..], false, 2),
            (b"d/e/large.bin", false, 5_000),
            (b"d/\xff.bin", false, 1),
            (b"run", true, 3),
            (b"z.txt", false, 2),
        ]
    );
    let large = &executed.files[1].content;
    let Captured::File { path, .. } = large else { panic!("{large:?} is not a file") };
    assert_eq!(*path, rig.directory(attempt).join("out/d/e/large.bin"));
}

fn an_output_that_is_no_plain_file_is_refused() {
    let rig = Rig::new();
    for (text, why) in [
        (r#"ln -s /etc/passwd "$GREY_OUT/o""#, "`o` is a symbolic link"),
        (r#"mkfifo "$GREY_OUT/o""#, "`o` is a named pipe"),
        (r#"echo x >x; ln x "$GREY_OUT/o""#, "`o` is a hard link"),
        (r#"rmdir "$GREY_OUT"; ln -s /etc "$GREY_OUT""#, "the output directory cannot be opened"),
        (r#"ln -s /etc "$GREY_OUT/d"; echo"#, "no file matches the pattern `o`"),
        (r#"mkdir "$GREY_OUT/o""#, "no file matches the pattern `o`"),
    ] {
        let mut wanted = script(text);
        wanted.outputs = vec!["o".to_owned()];
        let executed = rig.run(wanted);
        assert_eq!(executed.outcome, Outcome::OutputRefused, "{text}");
        assert!(executed.message.contains(why), "{text}: {}", executed.message);
        assert!(executed.files.is_empty());
    }
    let mut through = script(r#"ln -s /etc "$GREY_OUT/d""#);
    through.outputs = vec!["d/passwd".to_owned()];
    assert_eq!(rig.run(through).outcome, Outcome::OutputRefused);
}

fn a_missing_output_counts_only_after_success() {
    let rig = Rig::new();
    for (text, outcome) in [("exit 0", Outcome::OutputRefused), ("exit 5", Outcome::Exited(5))] {
        let mut wanted = script(text);
        wanted.outputs = vec!["result".to_owned()];
        assert_eq!(rig.run(wanted).outcome, outcome);
    }
    let mut partial = script(r#"echo x >"$GREY_OUT/result"; exit 5"#);
    partial.outputs = vec!["result".to_owned()];
    let executed = rig.run(partial);
    assert_eq!((executed.outcome, executed.files.len()), (Outcome::Exited(5), 1));
}

fn output_files_count_against_the_limit() {
    let rig = Rig::new();
    for (limit, outcome) in [(1_100, Outcome::Exited(0)), (1_099, Outcome::OutputLimit)] {
        let mut wanted = script(r#"head -c 100 /dev/zero; head -c 1000 /dev/zero >"$GREY_OUT/o""#);
        wanted.outputs = vec!["o".to_owned()];
        wanted.output_limit_bytes = limit;
        assert_eq!(rig.run(wanted).outcome, outcome);
    }
    let mut sparse = script(r#"truncate -s 1T "$GREY_OUT/o""#);
    sparse.outputs = vec!["o".to_owned()];
    assert_eq!(rig.run(sparse).outcome, Outcome::OutputLimit);
}

fn outputs_have_a_greatest_number() {
    let rig = Rig::new();
    for (count, outcome) in [(1_024, Outcome::Exited(0)), (1_025, Outcome::OutputRefused)] {
        let mut wanted = script(&format!(r#"cd "$GREY_OUT"; seq {count} | xargs touch"#));
        wanted.outputs = vec!["*".to_owned()];
        let executed = rig.run(wanted);
        assert_eq!(executed.outcome, outcome, "{}", executed.message);
    }
}

fn a_task_cannot_lead_the_capture_astray() {
    let rig = Rig::new();
    let victim = rig.file("victim", b"precious");
    let wanted = script(&format!("ln -s {} ../stdout; head -c 5000 /dev/zero", victim.display()));
    let executed = rig.run(wanted);
    assert_eq!(bytes(&executed.stdout).len(), 5_000);
    assert_eq!(std::fs::read(victim).unwrap(), b"precious");
}

fn release_removes_the_directory() {
    let rig = Rig::new();
    let outside = rig.file("outside", b"kept");
    let attempt = fresh_attempt();
    let text = format!("mkdir -p a/b; echo x >a/b/c; ln -s {} link; chmod 0 a/b a .", outside.display());
    rig.run_execution(execution(attempt, script(&text)));
    assert!(rig.directory(attempt).exists());
    rig.executor.release(attempt);
    rig.executor.release(attempt);
    assert_eq!(std::fs::read_dir(rig.root.path().join("work")).unwrap().count(), 0);
    assert!(outside.exists());
}
