//! What the command line says when no majority of the servers is there, and whom a server answers then.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grey_api::{Client, RetryOptions, Trust};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::house::House;
use crate::leader;
use crate::support::{Ran, code, finish, kill, runtime, wait_until};

/// Longer than `grey cluster status` waits for anything, and on a slow machine.
const A_FEW_SECONDS: Duration = Duration::from_secs(15);

/// Has a command complain to a terminal of so many columns; returns what a person there sees, and the terminal, which is to be kept open.
fn complains_to_a_terminal(command: &mut Command, columns: u16) -> (File, File) {
    let person: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let path = ptsname(&person, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    command.stdout(Stdio::piped()).stderr(Stdio::from(terminal.try_clone().unwrap()));
    (File::from(person), terminal)
}

/// What is seen up to a text.
fn read_until(person: &mut File, text: &str) -> String {
    let (begun, mut seen, mut piece) = (Instant::now(), String::new(), [0; 4_096]);
    while !seen.contains(text) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no `{text}`: {seen}");
        let read = person.read(&mut piece).unwrap();
        seen.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    seen
}

/// The status, in the time that a person has.
fn status(house: &House, more: &[&str]) -> Ran {
    let begun = Instant::now();
    let ran = house.grey(&[&["cluster", "status"], more].concat());
    assert!(begun.elapsed() < A_FEW_SECONDS, "{:?}: {}", begun.elapsed(), ran.errors);
    ran
}

fn parsed(ran: &Ran) -> Value {
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.errors))
}

#[test]
fn without_a_majority_the_status_is_what_one_server_knows_and_what_waits_says_for_what() {
    // Given: three servers that vote, of which two are killed.
    let house = House::of_three();
    let agreed = parsed(&status(&house, &["--json"]));
    assert_eq!((&agreed["agreed"], &agreed["voters"]), (&json!(true), &json!([1, 2, 3])));
    assert!(agreed["leader"].as_u64() > Some(0) && agreed.get("asked").is_none(), "{agreed}");
    house.kill_9("s2");
    house.kill_9("s3");

    // Then: the status is that of the one that is left, and says so.
    let ran = status(&house, &["--json"]);
    assert_eq!(ran.status, 4, "{}", ran.errors);
    let known = parsed(&ran);
    assert_eq!((&known["agreed"], &known["asked"]), (&json!(false), &json!(house.address(1))), "{known}");
    assert_eq!((&known["server"], &known["voters"]), (&json!(1), &json!([1, 2, 3])), "{known}");
    assert!(known["leader"].is_null() && known["trouble"].is_string(), "{known}");
    let ran = status(&house, &[]);
    assert_eq!(ran.status, 4, "{}", ran.errors);
    let marked = format!(
        "agreed    no: no leader is in touch with a majority; this is what {} knows\n",
        house.address(1)
    );
    assert!(ran.text.starts_with(&marked), "{}", ran.text);
    for said in ["leader none", "voters    1, 2, 3\n"] {
        assert!(ran.text.contains(said), "`{said}` is missing in {}", ran.text);
    }
    let here = status(&house, &["--here", "--json"]);
    assert_eq!((here.status, &parsed(&here)["agreed"]), (0, &json!(false)), "{}", here.errors);

    // And: whoever looks in another way is told why there is nothing to see.
    for look in [&["top"][..], &["doctor"]] {
        let begun = Instant::now();
        let ran = house.grey(look);
        assert!(ran.status != 0 && begun.elapsed() < A_FEW_SECONDS, "{look:?}: {}", ran.errors);
        let said = [ran.text, ran.errors].concat();
        assert!(said.contains("no server leads at the moment"), "{look:?}: {said}");
    }

    // And: what waits says at a terminal what for, within its line, and takes it back when the answer comes.
    let file = house.task_file("waits", "true");
    let mut command = house.command(&["submit", file.to_str().unwrap()]);
    let (mut person, terminal) = complains_to_a_terminal(&mut command, 300);
    let submits = command.spawn().unwrap();
    let seen = read_until(&mut person, "until 60 s)");
    let told = seen.rsplit("\r\u{1b}[K").next().unwrap();
    assert!(told.starts_with("no answer yet from https://127.0.0.1:"), "{seen:?}");
    assert!(told.contains("trying again ("), "{seen:?}");
    house.start_server("s2");
    let ran = finish(submits);
    assert_eq!((ran.status, ran.text.as_str()), (0, "j1\n"), "{}", ran.errors);
    let seen = read_until(&mut person, "next: grey job wait j1");
    assert!(seen.contains("\r\u{1b}[Kgrey: j1: 1 task(s)"), "{seen:?}");
    drop(terminal);
    assert_eq!(parsed(&status(&house, &["--json"]))["agreed"], true);
}

#[test]
fn a_server_whose_leader_went_silent_says_within_seconds_that_nobody_leads() {
    let house = House::of_three();
    let (leads, follows) = (leader(&house).unwrap(), |leads: &str| {
        ["s1", "s2", "s3"].into_iter().filter(|name| *name != leads).collect::<Vec<_>>()
    });
    // Given: a follower that is asked, while the leader and the other one stand still.
    let (left, other) = (follows(&leads)[0], follows(&leads)[1]);
    let address = house.address(left[1..].parse().unwrap());
    let stopped = [house.process_id(&leads), house.process_id(other)];
    stopped.iter().for_each(|process_id| kill(*process_id, "STOP"));
    let ask = |arguments: &[&str]| {
        let begun = Instant::now();
        let ran = Ran::of(house.command(arguments).env("GREY_ADDR", &address).output().unwrap());
        (begun.elapsed(), ran)
    };
    // Then: it answers what it knows, also where the others are tried first.
    let (took, ran) = ask(&["cluster", "status", "--json"]);
    assert!(ran.status == 4 && took < A_FEW_SECONDS, "{took:?}: {}", ran.errors);
    assert_eq!(parsed(&ran)["asked"], address.as_str());
    assert_eq!(status(&house, &[]).status, 4);
    // And: a write that was passed on is unknown before its sender gives up.
    let trust = Trust::from_pem(&std::fs::read(house.path("ca.pem")).unwrap()).unwrap();
    let token = std::fs::read_to_string(house.path("operator.token")).unwrap();
    let client = |token: &str, retries: Option<RetryOptions>| {
        Client::new(address.parse().unwrap(), Some(token.to_owned()))
            .with_trust(trust.clone())
            .with_retries(retries)
    };
    let refusal = runtime().block_on(client(token.trim(), None).get_bytes("/v1/nodes")).unwrap_err();
    assert_eq!(code(&refusal), grey_api::ErrorCode::Unavailable);
    // And: whether it is well it tells everybody, whatever token is sent.
    let unknown = client("grey_api_nonsense", None);
    assert_eq!(&runtime().block_on(unknown.get_bytes("/health/live")).unwrap()[..], b"live\n");
    let refusal = runtime().block_on(unknown.get_bytes("/health/ready")).unwrap_err();
    assert_eq!(code(&refusal), grey_api::ErrorCode::Unavailable);
    stopped.iter().for_each(|process_id| kill(*process_id, "CONT"));
    wait_until("somebody leads", || leader(&house).is_some());
}
