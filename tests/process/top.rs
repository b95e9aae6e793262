//! `grey top`: one look where nobody watches, and a terminal that is as it was where somebody does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::support::{Home, finish, kill, wait_until};

#[test]
fn without_a_terminal_it_is_one_look_and_with_a_count_so_many_documents() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let ran = home.grey(&["top"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    for said in
        ["server 1 leads in term 1", "0 task(s) wait", "pressure  normal", "default", "server and worker"]
    {
        assert!(ran.text.contains(said), "`{said}` is missing in {}", ran.text);
    }
    assert!(!ran.text.contains('\u{1b}'), "{}", ran.text);

    let ran = home.grey(&["top", "--json", "-n", "3", "--every", "100ms"]);
    assert_eq!(ran.status, 0, "{}", ran.errors);
    let documents: Vec<Value> = ran.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(documents.len(), 3, "{}", ran.text);
    for document in &documents {
        assert_eq!(document["leader"], 1);
        assert_eq!(document["attempts_ended_in_last_minute"], 1);
        assert_eq!(document["nodes"][0]["load"]["held"], 0);
        let names: Vec<&str> = document["tenants"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tenant| tenant["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["default", "system"]);
    }
    for wrong in [&["top", "-n", "0"][..], &["top", "--every", "1"], &["top", "--every", "99ms"]] {
        assert_eq!(home.grey(wrong).status, 2, "{wrong:?}");
    }
}

#[test]
fn tasks_that_run_and_wait_are_seen_with_their_tenant_s_share() {
    let home = Home::new();
    assert_eq!(home.grey(&["tenant", "create", "red"]).status, 0);
    // Each takes all processors, so that one runs and the others wait.
    let cpu = home.json(&["cluster", "status", "--json"])["workers"][0]["cpu_millicores"].as_u64().unwrap();
    let task = serde_json::json!({ "command": ["sleep", "600"], "cpu_millicores": cpu, "count": 3 });
    let job: Value = home.post("/v1/tasks?tenant=red", "application/json", task.to_string(), None).unwrap();
    let look = || home.json(&["top", "--json", "-q"]);
    // A second one is given to the worker before the first has ended.
    wait_until("tasks are held", || look()["tenants"][0]["held_tasks"].as_u64() > Some(0));
    let document = look();
    let red = &document["tenants"][0];
    assert_eq!(red["name"], "red", "the busiest comes first: {document}");
    assert_eq!(red["pending_tasks"].as_u64().unwrap() + red["held_tasks"].as_u64().unwrap(), 3);
    assert!(red["share_permille"].as_u64() >= Some(1_000), "{document}");
    assert!(document["nodes"][0]["load"]["cpu_permille"].as_u64() >= Some(1_000), "{document}");
    home.grey(&["job", "cancel", job["job"].as_str().unwrap()]);
}

/// `grey top` at a terminal of 80 columns and 24 lines.
struct Seat {
    /// What the person holds: the keyboard and the screen.
    person: File,
    /// The terminal as programs have it.
    terminal: File,
    view: Child,
}

impl Seat {
    fn at(mut command: Command) -> Seat {
        let person: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let path = ptsname(&person, Vec::new()).unwrap();
        let open = std::fs::OpenOptions::new().read(true).write(true).open(path.to_str().unwrap());
        let terminal = open.unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let view = command
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::from(terminal.try_clone().unwrap()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Seat { person: File::from(person), terminal, view }
    }

    /// What is on the screen up to a text.
    fn read_until(&mut self, text: &str) -> String {
        let (begun, mut seen, mut piece) = (Instant::now(), Vec::new(), [0; 4_096]);
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "no `{text}`: {}",
                String::from_utf8_lossy(&seen)
            );
            let read = self.person.read(&mut piece).unwrap();
            seen.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Whether typed lines are gathered, shown, and can interrupt.
    fn is_as_usual(&self) -> bool {
        let usual = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcgetattr(&self.terminal).unwrap().local_modes.contains(usual)
    }
}

#[test]
fn a_key_or_a_signal_ends_the_live_view_and_leaves_the_terminal_as_it_was() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let (leave, enter) = ("\u{1b}[?25h\u{1b}[?1049l", "\u{1b}[?1049h");
    let ways: [(&str, fn(&mut Seat)); 4] = [
        ("q", |seat| seat.person.write_all(b"xq").unwrap()),
        ("Ctrl-C", |seat| seat.person.write_all(b"\x03").unwrap()),
        ("SIGTERM", |seat| kill(i32::try_from(seat.view.id()).unwrap(), "TERM")),
        ("SIGINT", |seat| kill(i32::try_from(seat.view.id()).unwrap(), "INT")),
    ];
    for (way, end) in ways {
        let mut seat = Seat::at(home.command(&["top", "--every", "100ms"]));
        let seen = seat.read_until("MEMORY");
        assert!(seen.contains(enter), "{way}: {seen:?}");
        assert!(!seat.is_as_usual(), "{way}: keys are taken one by one");
        // It goes on by itself.
        seat.read_until("MEMORY");
        end(&mut seat);
        seat.read_until(leave);
        let usual = || seat.is_as_usual();
        wait_until("the terminal is as it was", usual);
        let ran = finish(seat.view);
        assert_eq!(ran.status, 0, "{way}: {}", ran.errors);
    }
}

#[test]
fn a_live_view_says_when_the_cluster_no_longer_answers_and_shows_what_it_saw_last() {
    let home = Home::new();
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    let mut seat = Seat::at(home.command(&["top", "--every", "100ms"]));
    seat.read_until("MEMORY");
    assert_eq!(home.grey(&["down"]).status, 0);
    seat.read_until("STALE");
    seat.read_until("default");
    seat.person.write_all(b"q").unwrap();
    seat.read_until("\u{1b}[?1049l");
    assert_eq!(finish(seat.view).status, 0);
}
