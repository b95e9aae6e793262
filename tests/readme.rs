//! Every command of the README does what it says there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::process::{Command, Stdio};

use support::{Home, Ran};

#[test]
fn the_readme_s_commands_work_in_an_empty_directory() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let mut commands = Vec::new();
    for block in readme.split("```sh\n").skip(1) {
        commands.extend(block.split("```").next().unwrap().lines().map(str::to_owned));
    }
    assert_eq!(commands[0], "cargo run -- run --proof hello.json -- echo hello");
    // The second command is the one that runs this test.
    assert_eq!(commands[1], "cargo test");
    let home = Home::new();
    for command in commands.iter().filter(|command| *command != "cargo test") {
        let line = command.replacen("cargo run --", &format!("'{}'", env!("CARGO_BIN_EXE_grey")), 1);
        assert_ne!(&line, command, "a command that is not Grey's");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(home.path("")).env("GREY_DATA", home.data());
        shell.env_remove("GREY_ADDR").env_remove("GREY_TOKEN").stdin(Stdio::null());
        let ran = Ran::of(shell.output().unwrap());
        assert_eq!(ran.status, 0, "{command}\n{}\n{}", ran.text, ran.errors);
        if command.contains("echo hello") {
            assert_eq!(ran.text, "hello\n");
            assert!(home.path("hello.json").exists());
        }
    }
}
