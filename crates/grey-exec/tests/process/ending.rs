//! How attempts end, and what they find and leave.

use std::time::Instant;

use grey_agent::{Captured, Executor, ExecutorEvent};
use grey_core::{Outcome, SandboxLevel, UsageSource};

use crate::Test;
use crate::rig::{LEVELS, Rig, bytes, execution, fresh_attempt, script, spec, text};

pub(crate) const TESTS: &[Test] = &[
    ("an_exit_status_and_a_signal_are_told_apart", an_exit_status_and_a_signal_are_told_apart),
    ("a_program_that_cannot_start_says_why", a_program_that_cannot_start_says_why),
    ("streams_are_kept_to_the_byte", streams_are_kept_to_the_byte),
    ("ten_megabytes_come_with_the_right_digest", ten_megabytes_come_with_the_right_digest),
    ("output_over_the_limit_ends_the_attempt", output_over_the_limit_ends_the_attempt),
    ("the_environment_is_what_is_promised", the_environment_is_what_is_promised),
    ("a_task_starts_clean", a_task_starts_clean),
    ("a_namespace_has_processes_of_its_own", a_namespace_has_processes_of_its_own),
    ("usage_counts_every_reaped_process", usage_counts_every_reaped_process),
    ("started_comes_once_and_only_when_the_program_runs", started_comes_once_and_only_when_the_program_runs),
    ("the_executor_says_what_it_enforces", the_executor_says_what_it_enforces),
];

fn an_exit_status_and_a_signal_are_told_apart() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        for (text, outcome) in [
            ("exit 0", Outcome::Exited(0)),
            ("exit 3", Outcome::Exited(3)),
            ("exit 255", Outcome::Exited(255)),
            ("kill -TERM $$", Outcome::Signaled(15)),
            ("kill -KILL $$", Outcome::Signaled(9)),
            ("kill -SEGV $$", Outcome::Signaled(11)),
        ] {
            let executed = rig.run(script(text));
            assert_eq!(executed.outcome, outcome, "{text}: {}", executed.message);
            assert_eq!(executed.sandbox, level);
            assert!(rig.is_silent());
        }
    }
}

fn a_program_that_cannot_start_says_why() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let plain = rig.file("plain", b"no program");
        let orphan = rig.file("orphan", b"#!/nowhere/interpreter\n");
        for path in [&plain, &orphan] {
            let mode =
                std::os::unix::fs::PermissionsExt::from_mode(if path == &plain { 0o644 } else { 0o755 });
            std::fs::set_permissions(path, mode).unwrap();
        }
        let garbage = rig.file("garbage", b"\x01\x02");
        std::fs::set_permissions(&garbage, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for (program, outcome) in [
            ("grey-has-no-such-program", Outcome::CommandNotFound),
            ("./missing", Outcome::CommandNotFound),
            ("/", Outcome::CommandNotExecutable),
            (plain.to_str().unwrap(), Outcome::CommandNotExecutable),
            (orphan.to_str().unwrap(), Outcome::CommandNotExecutable),
            (garbage.to_str().unwrap(), Outcome::CommandNotExecutable),
        ] {
            let executed = rig.run(spec(&[program]));
            assert_eq!(executed.outcome, outcome, "{program}: {}", executed.message);
            assert!(executed.message.contains(&format!("`{program}`")), "{}", executed.message);
        }
    }
}

fn streams_are_kept_to_the_byte() {
    let rig = Rig::new();
    let executed = rig.run(script(r"printf 'a\377\000b'; printf 'c\376' >&2"));
    assert_eq!(executed.stdout, Captured::Inline(b"a\xff\0b".to_vec()));
    assert_eq!(executed.stderr, Captured::Inline(b"c\xfe".to_vec()));
    for size in [4_096, 4_097] {
        let executed = rig.run(script(&format!("head -c {size} /dev/zero")));
        assert_eq!(matches!(executed.stdout, Captured::Inline(_)), size == 4_096);
        assert_eq!(bytes(&executed.stdout), vec![0; size]);
    }
}

fn ten_megabytes_come_with_the_right_digest() {
    let rig = Rig::new();
    let mut wanted = script("seq 1 1500000; seq 7 9 >&2");
    wanted.output_limit_bytes = 16 << 20;
    let executed = rig.run(wanted);
    let expected: String = (1..=1_500_000).map(|number| format!("{number}\n")).collect();
    assert!(expected.len() > 10_000_000);
    assert_eq!(text(&executed.stdout), expected);
    assert_eq!(text(&executed.stderr), "7\n8\n9\n");
}

fn output_over_the_limit_ends_the_attempt() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let mut endless = script("yes & exec yes >&2");
        endless.output_limit_bytes = 100_000;
        let executed = rig.run(endless);
        assert_eq!(executed.outcome, Outcome::OutputLimit);
        assert!(executed.message.contains("100000 bytes"), "{}", executed.message);
        assert!(bytes(&executed.stdout).len() + bytes(&executed.stderr).len() <= 100_000);
        let mut exact = script("head -c 1000 /dev/zero");
        exact.output_limit_bytes = 1_000;
        assert_eq!(rig.run(exact.clone()).outcome, Outcome::Exited(0));
        exact.output_limit_bytes = 999;
        assert_eq!(rig.run(exact).outcome, Outcome::OutputLimit);
    }
}

fn the_environment_is_what_is_promised() {
    let rig = Rig::new();
    let attempt = fresh_attempt();
    let mut wanted = spec(&["env"]);
    wanted.environment = [("EMPTY", ""), ("LANG", "C"), ("WORD", "a b\nc=ü")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    wanted.command.push("-0".to_owned());
    let executed = rig.run_execution(execution(attempt, wanted));
    let directory = rig.directory(attempt).display().to_string();
    let mut found: Vec<String> = text(&executed.stdout).split_terminator('\0').map(str::to_owned).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "EMPTY=".to_owned(),
            "GREY_ATTEMPT=3".to_owned(),
            "GREY_INDEX=4".to_owned(),
            "GREY_JOB=j9".to_owned(),
            format!("GREY_OUT={directory}/out"),
            format!("GREY_TASK={}", attempt.task),
            format!("HOME={directory}/work"),
            "LANG=C".to_owned(),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            format!("TMPDIR={directory}/tmp"),
            "WORD=a b\nc=ü".to_owned(),
        ]
    );
}

fn a_task_starts_clean() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let attempt = fresh_attempt();
        let check = "pwd; umask; ulimit -c; ls /proc/self/fd | wc -w; readlink /proc/self/fd/0
            grep -E '^(SigBlk|SigIgn|NoNewPrivs)' /proc/self/status | tr -d '\\t'; ps -o sid= -p $$ | tr -d ' ' >/dev/null
            test \"$(cut -d' ' -f6 /proc/self/stat)\" = $$ && echo own session";
        let executed = rig.run_execution(execution(attempt, script(check)));
        let work = rig.directory(attempt).join("work").display().to_string();
        // The fourth descriptor is the one with which `ls` reads the directory.
        let expected = format!(
            "{work}\n0022\n0\n4\n/dev/null\nNoNewPrivs:1\nSigBlk:0000000000000000\nSigIgn:0000000000000000\nown session\n"
        );
        let mut lines: Vec<String> = text(&executed.stdout).lines().map(str::to_owned).collect();
        lines.sort();
        let mut wanted: Vec<&str> = expected.lines().collect();
        wanted.sort_unstable();
        assert_eq!(lines, wanted, "{}", text(&executed.stderr));
    }
}

fn a_namespace_has_processes_of_its_own() {
    let rig = Rig::new();
    let executed =
        rig.run(script("echo $$; ls -d /proc/[0-9]* | wc -l; kill -KILL 1; kill -TERM 1; cat /proc/1/comm"));
    assert_eq!(executed.outcome, Outcome::Exited(0), "{}", text(&executed.stderr));
    let output = text(&executed.stdout);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.first(), Some(&"2"), "the program is not the second process: {lines:?}");
    assert!(lines[1].parse::<u32>().unwrap() <= 5, "other processes are seen: {lines:?}");
}

fn usage_counts_every_reaped_process() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let busy = "dd if=/dev/zero of=/dev/null bs=1M count=3000 2>/dev/null & wait; head -c 64M /dev/zero | tail -c 60M | wc -c";
        let executed = rig.run(script(busy));
        assert_eq!(text(&executed.stdout), "62914560\n");
        assert_eq!(executed.usage_source, UsageSource::ResourceUsage);
        let usage = executed.usage;
        assert!(usage.cpu_time_us > 10_000, "{usage:?}");
        assert!(usage.peak_memory_bytes > 40 << 20 && usage.peak_memory_bytes < 1 << 30, "{usage:?}");
        assert!(usage.duration_us >= usage.cpu_time_us / 16 && usage.duration_us < 60_000_000, "{usage:?}");
        assert!(usage.started_at_ms > 1_700_000_000_000, "{usage:?}");
        let idle = rig.run(script("sleep 0.2")).usage;
        assert!(idle.duration_us >= 200_000 && idle.cpu_time_us < 150_000, "{idle:?}");
    }
}

fn started_comes_once_and_only_when_the_program_runs() {
    for level in LEVELS {
        let rig = Rig::with(level, 4);
        let attempt = fresh_attempt();
        rig.executor.start(execution(attempt, spec(&["sleep", "0.3"])));
        rig.expect_started(attempt);
        assert_eq!(rig.expect_finished().attempt, attempt);
        rig.executor.start(execution(fresh_attempt(), spec(&["grey-has-no-such-program"])));
        assert!(matches!(rig.event(), ExecutorEvent::Finished(_)));
        assert!(rig.is_silent());
    }
}

fn the_executor_says_what_it_enforces() {
    for level in LEVELS {
        let begin = Instant::now();
        let capabilities = Rig::with(level, 4).executor.capabilities();
        assert!(begin.elapsed().as_secs() < 10);
        assert_eq!(capabilities.sandbox, level);
        assert_eq!(capabilities.resources.cpu_millicores, 2_000);
        for fact in ["Memory", "network", "user", "limits"] {
            assert!(
                capabilities.notes.iter().any(|note| note.contains(fact)),
                "nothing is said about {fact}"
            );
        }
        let namespace =
            capabilities.notes.iter().any(|note| note.starts_with("Every attempt has a pid namespace"));
        assert_eq!(namespace, level == SandboxLevel::PidNamespace);
    }
}
